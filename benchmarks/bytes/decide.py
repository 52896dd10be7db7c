"""``lowbit plan`` once, then ``lowbit compress --size`` at the sizes of the study, beside others, and at random.

``--beside NAME`` takes the bytes of an announced variant for a size, so that a peer is met at exactly its own.
``--random N`` pins the bits of a third of the modules by chance, N times at one size, and lets the decision do the
rest: settings from good to bad, whose predicted divergence is compared with the measured one.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

from measure import wanted
from study import CALIBRATION, SIZES, TEXTS, announce, arguments, original

from lowbit.formats.checkpoint import open_checkpoint

_RANDOM_BITS = (2, 3, 4, 5)


def lowbit(*words: object) -> None:
    """The command line."""
    subprocess.run([sys.executable, "-m", "lowbit", *map(str, words)], check=True)


def compressed(options: argparse.Namespace, plan: Path, name: str, size: int, *more: str, family: str) -> None:
    """One decision, carried out and announced."""
    folder = original(options).parent
    out = folder / "decision" / name
    text = options.data / TEXTS["wikitext2"].file
    calibration = [word for key, value in CALIBRATION.items() for word in (f"--{key}", value)]
    lowbit(
        *("compress", folder / "original", "-o", out, "--plan", plan, "--size", size, *more),
        *("--calibration", text, *calibration, "--no-spectrum", "--threads", 1),
    )
    record = json.loads((out / "lowbit.json").read_text(encoding="utf-8"))
    announce(
        options,
        name,
        family=family,
        path=f"decision/{name}",
        adapter=f"decision/{name}/factors" if (out / "factors").is_dir() else None,
        bytes=int(record["totals"]["bytes_shipped"]),
        asked=size,
        kl_predicted=record["decision"]["kl_predicted"],
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--beside", nargs="*", default=[], help="announced variants, + and embedding bits included")
    parser.add_argument("--random", type=int, default=0)
    parser.add_argument("--random-size", type=float, default=3.5, help="bits per weight")
    options = parser.parse_args()
    folder = original(options)
    values, plan = open_checkpoint(folder).weight_bytes() // 2, folder.parent / "plan"
    if not (plan / "plan.json").exists():
        calibration = [word for key, value in CALIBRATION.items() for word in (f"--{key}", value)]
        text = options.data / TEXTS["wikitext2"].file
        lowbit("plan", folder, "-o", plan, "--calibration", text, *calibration, "--threads", 1)
    sizes = {f"decision-{size:g}": int(size * values / 8) for size in SIZES}
    if options.beside:
        sizes = {f"decision-at-{v['name']}": v["bytes"] for v in wanted(options) if v["name"] in options.beside}
    for name, size in sizes.items() if not options.random else ():
        compressed(options, plan, name, size, family="decision")
    names = [module["name"] for module in json.loads((plan / "plan.json").read_text(encoding="utf-8"))["modules"]]
    for seed in range(options.random):
        chance = random.Random(seed)
        pins = ",".join(f"{one}={chance.choice(_RANDOM_BITS)}" for one in chance.sample(names, len(names) // 3))
        size = int(options.random_size * values / 8)
        compressed(options, plan, f"random-{seed}", size, "--bits-of", pins, family="random")


if __name__ == "__main__":
    main()
