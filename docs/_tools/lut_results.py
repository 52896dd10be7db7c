"""Errors of look-up tables by function, number of entries and search: writes ``docs/results/lut.md``.

python docs/_tools/lut_results.py
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

import lowbit
from lowbit.reference.tables import TABLE_SEARCH
from lowbit.reference.types import TableFunction

PAGE = Path(__file__).resolve().parents[1] / "results" / "lut.md"
ENTRIES = (8, 16, 32)
SEED = 42
PUBLISHED = {
    "gelu": (8, 16), "hswish": (8, 16), "silu": (8,), "exp": (8, 16), "reciprocal": (8, 16), "rsqrt": (8, 16)
}  # fmt: skip
NAMES = {
    "gelu": "GELU", "hswish": "HSWISH", "silu": "SiLU", "exp": "exp", "reciprocal": "1/x", "rsqrt": "1/√x",
    "sigmoid": "sigmoid", "tanh": "tanh",
}  # fmt: skip
TEXT = """# Look-up tables

Mean squared errors of piecewise-linear tables with slopes and intercepts of 6 fraction bits, rounded chords all of
them. *Fitness* is the published objective (L.20). The columns \\(2^{-b}\\) are the deployed operator over all INT8
codes in range, with breakpoints rounded to the scale and ties to the left; *mean* is their mean and *largest* the
largest error of any of these codes. Written by `docs/_tools/lut_results.py`.

- **published**: the published search with the random numbers of the authors' code, seed 42; for GELU, HSWISH and
  exp at 8 and 16 entries that is the shipped table, bit for bit. The published settings have no sigmoid, no tanh
  and no 32 entries.
- **genetic**: the same search with addressed random numbers, seed 42, 500 generations of 50.
- **optimal, fitness** and **optimal, scales**: dynamic programming for the fitness, and for the mean over the
  scales. The knots are the multiples of 1/64 in range and the breakpoints of the tables above, so that it is not
  worse than they are; the script asserts that, and that the certificate agrees.

Seconds are those of the Numba backend, one thread, on a machine with other work.
"""


class Row(NamedTuple):
    """One table and its errors."""

    name: str
    fitness: float
    scales: tuple[float, ...]
    largest: float
    seconds: float


def judged(backend: Any, function: TableFunction, name: str, table: Any, seconds: float) -> Row:
    """Errors of a table, whoever made it."""
    _, _, (left, right), (first, last), _, _ = TABLE_SEARCH[function]
    knots = np.array([left, *table.breakpoints, right])

    def error(bits: tuple[int, ...] | None, objective: str) -> float:
        p = backend.search_problem(knots, function=function, scale_bits=bits)
        found = backend.table_objective(p.x, p.y, p.cuts, table.slopes, table.intercepts, objective=objective)
        return float(found)

    bits = tuple(range(first, last + 1))
    scales = tuple(error((b,), "mse") for b in bits)
    return Row(name, error(None, "mse"), scales, error(bits, "max"), seconds)


def rows(backend: Any, function: TableFunction, entries: int) -> list[Row]:
    """All searches of one function at one number of entries."""
    made: list[Row] = []
    own: list[Any] = []
    kinds = [("genetic", "addressed")]
    if entries in PUBLISHED.get(function, ()):
        kinds.insert(0, ("published", "published"))
    for name, draws in kinds:
        start = time.perf_counter()
        table = backend.genetic_search(function=function, entries=entries, seed=SEED, draws=draws)
        made.append(judged(backend, function, name, table, time.perf_counter() - start))
        own.append(table.breakpoints)
    grid = backend.knot_grid(function=function)
    knots = np.concatenate([grid[:1], np.unique(np.concatenate([grid[1:-1], *own])), grid[-1:]])
    first, last = TABLE_SEARCH[function][3]
    for name, bits in (("optimal, fitness", None), ("optimal, scales", range(first, last + 1))):
        start = time.perf_counter()
        problem = backend.search_problem(knots, function=function, scale_bits=bits)
        table = backend.optimal_search(*problem, entries=entries)
        seconds = time.perf_counter() - start
        bound = backend.optimality_bound(*problem, table.potentials)
        assert abs(bound - table.objective) <= 1e-9 * table.objective + 1e-12, (function, entries, name)
        row = judged(backend, function, name, table, seconds)
        reached = [r.fitness if bits is None else float(np.mean(r.scales)) for r in (row, *made)]
        assert reached[0] <= min(reached[1:]) + 1e-12, (function, entries, name)
        made.append(row)
    return made


def page(backend: Any) -> str:
    """The page as Markdown."""
    parts = [TEXT]
    for function in get_args(TableFunction):
        first, last = TABLE_SEARCH[function][3]
        scales = [f"2^−{b}" if b else "1" for b in range(first, last + 1)]
        head = ["entries", "search", "fitness", *scales, "mean", "largest", "seconds"]
        lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
        for entries in ENTRIES:
            for r in rows(backend, function, entries):
                errors = [f"{e:.2e}" for e in (r.fitness, *r.scales, float(np.mean(r.scales)), r.largest)]
                lines.append(f"| {entries} | {r.name} | {' | '.join(errors)} | {r.seconds:.3f} |")
        parts.append(f"## {NAMES[function]}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    backend = lowbit.load("numba")
    for draws in ("addressed", "published"):  # compiled and warm before anything is timed
        backend.genetic_search(function="gelu", entries=8, generations=1, draws=draws)
    warm = backend.search_problem(backend.knot_grid(function="gelu", fraction_bits=0), function="gelu")
    backend.optimal_search(*warm, entries=4)
    PAGE.write_text(page(backend), encoding="utf-8")
