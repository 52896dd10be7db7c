"""Searches of look-up tables: the library's backends against array code in plain NumPy.

The genetic search is compared with the specification, which evaluates a genome as arrays (the published code takes a
minute, sample by sample in Python); the optimal search with the same dynamic programme written by hand on matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from harness import Case

import lowbit
import lowbit.reference as spec


def by_hand(knots: np.ndarray, values: np.ndarray, x: np.ndarray, y: np.ndarray, cuts: np.ndarray, n: int) -> float:
    """Least mean squared error of n rounded chords between knots, by sums up to every knot and one minimum a step."""
    sizes = cuts[:, -1] - cuts[:, 0]
    w = np.repeat(1 / (len(sizes) * sizes), sizes)
    runs = np.cumsum(
        np.concatenate([np.zeros((6, 1)), w * np.stack([x**0, x, y, x * x, x * y, y * y])], axis=1), axis=1
    )
    at = (runs[:, cuts] - runs[:, cuts[:, :1]]).sum(axis=1)
    s1, sx, sy, xx, xy, yy = at[:, None, :] - at[:, :, None]
    width = knots[None] - knots[:, None]
    k = np.where(width == 0, 0, (values[None] - values[:, None]) / np.where(width == 0, 1, width))
    b = np.where(width == 0, 0, values[:, None] - knots[:, None] * k)
    k, b = np.rint(k * 64) / 64, np.rint(b * 64) / 64
    cost = yy - k * (2 * xy - k * xx - 2 * b * sx) - b * (2 * sy - b * s1)
    cost[np.tril_indices(len(knots), -1)] = np.inf
    reach = cost[0]
    for s in range(2, n + 1):
        inner = slice(1, len(knots) - 1)
        reach = (reach[inner, None] + cost[inner]).min(axis=0)
        if s < n:
            reach[-1] = np.inf
    return float(reach[-1])


def gate_replay(results: dict[str, Any]) -> dict[str, float]:
    """The same genomes, to the last bit."""
    first = next(iter(results.values()))
    want = np.asarray(first.population)
    for name, found in results.items():
        assert np.array_equal(np.asarray(found.population), want), f"{name}: another last population"
    return {"best fitness": float(np.asarray(first.fitness).min())}


def gate_seeds(results: dict[str, Any]) -> dict[str, float]:
    """Every seed has its result, however many threads there are."""
    one, two = (np.stack([r.breakpoints for r in found]) for found in results.values())
    assert np.array_equal(one, two)
    fitness = [float(r.fitness.min()) for r in next(iter(results.values()))]
    return {"median fitness": float(np.median(fitness)), "least fitness": min(fitness)}


def gate_optimal(results: dict[str, Any], *, problem: Any) -> dict[str, float]:
    """One optimum, and the certificate of each backend proves it to the Numba backend."""
    numba, figures = lowbit.load("numba"), {}
    least = results["NumPy by hand"]
    for name, found in results.items():
        if name == "NumPy by hand":
            continue
        assert abs(found.objective - least) <= 1e-12, f"{name}: {found.objective} against {least}"
        bound = numba.optimality_bound(*problem, np.asarray(found.potentials))
        assert found.objective - bound <= 1e-12, f"{name}: {found.objective} above its bound {bound}"
        figures[f"{name}: objective - bound"] = found.objective - bound
    return figures


def seeds(search: Any, count: int, threads: int) -> list[Any]:
    """Searches with seeds 0, 1, … on Python threads."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda seed: search(seed=seed), range(count)))


def cases(*, quick: bool) -> Iterator[Case]:
    """GELU with 8 entries by genetic search; 8 and 32 entries on the grid of 1/64 by dynamic programming."""
    numba, torch_ = lowbit.load("numba"), lowbit.load("torch")
    generations = 20 if quick else 500
    options: dict[str, Any] = {"function": "gelu", "entries": 8, "generations": generations}
    for draws in ("published", "addressed"):
        contenders = {  # an addressed draw at a time is what the specification is slow at: no baseline for anybody
            **({"specification": partial(spec.genetic_search, draws=draws, **options)} if draws == "published" else {}),
            "torch": partial(torch_.genetic_search, draws=draws, **options),
            "numba": partial(numba.genetic_search, draws=draws, **options),
        }
        yield Case(
            name=f"genetic search, GELU, 8 entries, {generations} generations, {draws} draws",
            baseline=next(iter(contenders)),
            contenders=contenders,
            gate=gate_replay,
            repeats=3,
            note="all contenders end with the same fifty genomes",
        )
    search = partial(numba.genetic_search, **options)
    yield Case(
        name=f"genetic search, {8 if quick else 64} seeds, {generations} generations",
        baseline="one thread",
        contenders={f"{w} thread{'s'[: n - 1]}": partial(seeds, search, 8 if quick else 64, n)
                    for w, n in (("one", 1), ("two", 2))},
        gate=gate_seeds,
        repeats=3,
    )  # fmt: skip
    knots = numba.knot_grid(function="gelu", fraction_bits=3 if quick else 6)
    for views, bits in (("one scale", None), ("the mean over seven", range(7))):
        problem = numba.search_problem(knots, function="gelu", scale_bits=bits)
        own = [torch_.asarray(part) for part in problem]
        for entries in (8, 32):
            yield Case(
                name=f"optimal search, GELU, {len(knots)} knots, {entries} entries, {views}",
                baseline="NumPy by hand",
                contenders={
                    "NumPy by hand": partial(by_hand, *problem, entries),
                    "numba": partial(numba.optimal_search, *problem, entries=entries),
                    "torch": partial(torch_.optimal_search, *own, entries=entries),
                },
                gate=partial(gate_optimal, problem=problem),
                note="by hand there is only the least error, neither the table nor the potentials",
            )
