"""``python -m tests.stress``: the kit with 2,000 examples a check, every backend, five seeds; hours, and resumable.

One line of ``--out`` a check; what stands there is not run again, so that it can be stopped and started.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import lowbit
from lowbit.conformance import runner
from lowbit.conformance.kit import PROFILES, Kit

BACKENDS = ("reference", "numba", "torch")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="only this one; may be repeated")
    parser.add_argument("--seed", action="append", type=int, help="only this one; may be repeated (default 1 to 5)")
    parser.add_argument("--clause", action="append", help="only this chapter or clause; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("stress.jsonl"), help="the record, a line a check")
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    seeds, backends = chosen.seed or range(1, 6), chosen.backend or BACKENDS
    wanted = chosen.clause or [""]
    checks = [check for check in runner.checks() if any(check.clause.id.startswith(word) for word in wanted)]
    results = {identity(line): line for line in map(json.loads, lines(chosen.out))}
    for seed in seeds:
        for backend in backends:
            subject = lowbit.load(backend)
            for check in checks:
                name = f"{check.clause.id} {check.name}"
                line: dict[str, Any] = {"backend": backend, "seed": seed, "check": name}
                if identity(line) in results:
                    continue
                begun = time.monotonic()
                outcome = Kit(subject, examples=PROFILES["stress"], seed=seed).outcome(check)
                line |= {"status": outcome.status, "margin": outcome.margin, "seconds": time.monotonic() - begun}
                if outcome.error is not None:
                    line["note"] = outcome.note
                    print(json.dumps(line), flush=True)
                results[identity(line)] = line
                with chosen.out.open("a", encoding="utf-8") as record:
                    record.write(json.dumps(line) + "\n")
            own = [line for line in results.values() if (line["backend"], line["seed"]) == (backend, seed)]
            seconds = sum(line["seconds"] for line in own)
            print(backend, seed, dict(Counter(line["status"] for line in own)), f"{seconds:.0f} s", flush=True)
    return int(any(line["status"] == "fail" for line in results.values()))


def identity(line: dict[str, Any]) -> tuple[str, int, str]:
    return line["backend"], line["seed"], line["check"]


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
