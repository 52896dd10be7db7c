"""The figures of the chapter pages, computed by ``lowbit.reference`` and written as SVG.

    python docs/_tools/figures            write docs/figures/*.svg
    python docs/_tools/figures --check    compare with what is there

The files are committed and pasted into the pages, so they take the colours of the page in light and dark, need no
script and are read out by their title. Coordinates have one decimal: another processor's last bits do not show.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import adapters
import binary
import compensation
import grids
import networks
import numpy as np
import random_numbers
import tables
import training

FOLDER = Path(__file__).resolve().parents[2] / "figures"

FIGURES: dict[str, Callable[[], str]] = {
    "philox": random_numbers.philox,
    "rounding": grids.rounding,
    "grids": grids.grids,
    "codebooks": grids.codebooks,
    "ternary": training.ternary,
    "learned_step": training.learned_step,
    "oscillation": training.oscillation,
    "binary_coding": binary.binary_coding,
    "scale_tuning": binary.scale_tuning,
    "mixed_precision": binary.mixed_precision,
    "second_order": compensation.second_order,
    "weighting": compensation.weighting,
    "compensation": compensation.compensation,
    "decomposition": adapters.decomposition,
    "rotation": adapters.rotation,
    "tables": tables.tables,
    "ranks": adapters.ranks,
    "table_search": tables.table_search,
    "coreset": networks.coreset,
    "distillation": networks.distillation,
    "curvature": networks.curvature,
}

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def differences(old: str, new: str, *, pixels: float = 0.25) -> str | None:
    """What distinguishes two figures beyond a quarter of a pixel, or None."""
    if _NUMBER.sub("#", old) != _NUMBER.sub("#", new):
        return "other elements"
    a, b = (np.array(_NUMBER.findall(text), dtype=float) for text in (old, new))
    worst = float(np.abs(a - b).max()) if a.size else 0.0
    return f"a coordinate moved by {worst:g}" if worst > pixels else None


def main(arguments: Sequence[str]) -> int:
    """Write or check all figures; the number of those that differ."""
    FOLDER.mkdir(exist_ok=True)
    wrong = 0
    for name, draw in FIGURES.items():
        path, text = FOLDER / f"{name}.svg", draw()
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or (what := differences(path.read_text(encoding="utf-8"), text)):
            print(f"{path.name}: {what if path.exists() else 'missing'}")
            wrong += 1
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
