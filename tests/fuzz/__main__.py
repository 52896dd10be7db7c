"""``python -m tests.fuzz``: as many inputs as one likes, the same ones for the same seed; failures are kept as files.

With ``--atheris READER`` the inputs come from libFuzzer instead, guided by coverage (``pip install atheris``).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import inspect
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from .judge import Workplace, little_memory
from .readers import READERS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000, help="inputs a reader")
    parser.add_argument("--reader", action="append", choices=list(READERS), help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"), help="where inputs that fail are kept")
    parser.add_argument("--atheris", choices=list(READERS), help="let libFuzzer draw the inputs of this reader")
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)  # transformers talks about every odd configuration
    with tempfile.TemporaryDirectory() as scratch, little_memory():
        if chosen.atheris:
            return with_atheris(Workplace(READERS[chosen.atheris], Path(scratch) / "files"), chosen.runs)
        faults = 0
        for name in chosen.reader or READERS:
            faults += attack(name, Workplace(READERS[name], Path(scratch) / name), chosen)
    return 1 if faults else 0


def attack(name: str, workplace: Workplace, chosen: argparse.Namespace) -> int:
    """All inputs of one reader; the number of different faults."""
    generator = np.random.default_rng([chosen.seed, int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)])
    seen: set[str] = set()
    started = time.monotonic()
    for number in range(chosen.runs):
        content = workplace.damaged(generator.bytes(48))
        fault = workplace.fault(content)
        if fault is None:
            continue
        told = fault.strip().splitlines()
        kind = "\n".join([*[line for line in told if line.startswith("  File")][-2:], told[-1].partition(":")[0]])
        if kind in seen:
            continue
        seen.add(kind)
        place = chosen.out / f"{name.replace(' ', '-')}-{hashlib.sha256(content).hexdigest()[:12]}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        place.with_suffix(".txt").write_text(json.dumps({"input": number, "seed": chosen.seed}) + "\n" + fault)
        print(f"{name}: input {number}, kept as {place}\n{kind}\n{told[-1][:200]}", flush=True)
    print(f"{name}: {chosen.runs} inputs, {len(seen)} faults, {time.monotonic() - started:.0f} s", flush=True)
    return len(seen)


def with_atheris(workplace: Workplace, runs: int) -> int:
    """Never returns: libFuzzer leaves the process at the first fault, and keeps its input."""
    atheris: Any = importlib.import_module("atheris")  # optional

    def one(data: bytes) -> None:
        fault = workplace.fault(workplace.damaged(data))
        if fault is not None:
            raise AssertionError(fault)

    homes: list[Any] = [module for name, module in sys.modules.items() if name.startswith("lowbit.formats")]
    homes += [item for home in homes for item in vars(home).values() if inspect.isclass(item)]
    for home in homes:
        for function in filter(inspect.isfunction, list(vars(home).values())):
            if function.__module__.startswith("lowbit.formats"):
                atheris.instrument_func(function)
    atheris.Setup([sys.argv[0], f"-runs={runs}"], one)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
