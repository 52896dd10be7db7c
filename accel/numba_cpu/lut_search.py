"""L: searches of look-up tables. The rules are those of :mod:`lowbit.reference.lut_search`."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from lowbit.accel.common import lut_search as shared
from lowbit.accel.common.refusals import check_whole
from lowbit.reference.errors import SpecError
from lowbit.reference.types import (
    GeneticSearch,
    OptimalTable,
    SearchDraws,
    SearchFit,
    SearchObjective,
    SearchProblem,
    TableFunction,
)

from ._arrays import Array, finite_weights, fixed, integers
from ._genetic_search import chord, evolve, fitness_of
from ._jit import share
from ._optimal_search import costs, excess, line, objective_of, shortest, sums_before
from ._philox import key

__all__ = [
    "genetic_search",
    "genome_fitness",
    "knot_grid",
    "optimal_search",
    "optimality_bound",
    "search_problem",
    "table_objective",
]

_ROWS = 16  # rows of costs that one thread takes at a time


# --- the genetic search


@functools.lru_cache(maxsize=16)
def _sampled(function: str) -> tuple[int, Array, Array]:
    """Number of a function, and the samples of its fitness, read-only."""
    x, y = shared.samples(function)
    return shared.FUNCTIONS.index(function), fixed(x), fixed(y)


def _ends(function: str, ends: tuple[float, float]) -> Array:
    return np.array([*ends, *shared.values(function, np.array(ends))])


def genome_fitness(genomes: Array, /, *, function: TableFunction, fraction_bits: int = 6) -> Array:
    """Mean squared error of the tables that genomes stand for, as the published search has it.  [L-20]"""
    shared.check_function("L-20", function)
    given = finite_weights("L-20", "genomes", genomes, (None, None))
    check_whole("L-20", "fraction_bits", fraction_bits, 0, 24)
    number, x, y = _sampled(function)
    found = np.empty(len(given))
    ends = _ends(function, shared.sentinels(function))
    fitness_of(fixed(given, np.float64), number, x, y, ends, 2.0**-fraction_bits, found)
    return found


def genetic_search(
    *,
    function: TableFunction,
    entries: int,
    seed: int = 42,
    draws: SearchDraws = "addressed",
    rounding: bool | None = None,
    generations: int = 500,
    population: int = 50,
) -> GeneticSearch[Array]:
    """The published genetic search of a table, with addressed or with the published random numbers.  [L-21, L-22]

    One thread does one search and the interpreter's lock is free meanwhile: searches with different seeds run beside
    each other in Python threads.
    """
    plan = shared.check_plan(function, entries, seed, draws, rounding, generations, population)
    number, x, y = _sampled(function)
    published = draws == "published"
    python, legacy = np.zeros(625, np.uint32), np.zeros(625, np.uint32)
    if published:
        python[:] = random.Random(seed).getstate()[1]
        state: Any = np.random.RandomState(seed).get_state(legacy=True)
        legacy[:624], legacy[624] = state[1], state[2]
    k0, k1 = key(0 if published else seed)
    now, fitness = np.empty((population, plan.genes)), np.empty(population)
    best = np.empty(generations + 1)
    ends = _ends(function, plan.ends)
    evolve(
        number, x, y, ends, *plan.span, np.array(plan.grids, np.int64), plan.rounds, published, k0, k1, python, legacy,
        now, np.empty_like(now), fitness, np.empty_like(fitness), best,
    )  # fmt: skip
    p = now[int(np.argmin(fitness))].copy()
    a = np.concatenate([ends[:1], p, ends[1:2]])
    slopes, intercepts = _lines(a, shared.values(function, a), 2.0**-6)
    return GeneticSearch(p, slopes, intercepts, now, fitness, best)


def _lines(a: Array, v: Array, unit: float) -> tuple[Array, Array]:
    found = [chord(a[i], v[i], a[i + 1], v[i + 1], unit) for i in range(len(a) - 1)]
    return np.array([k for k, _ in found]), np.array([b for _, b in found])


# --- the optimal search


class _Searched:
    """Checked arguments of an optimal search, and the costs of all pieces."""

    def __init__(
        self,
        clause: str,
        given: tuple[Array, Array, Array, Array, Array],
        objective: str,
        fit: str,
        fraction_bits: int | None,
    ) -> None:
        shared.check_objective(clause, objective, fit, fraction_bits)
        knots, values, x, y = (
            fixed(finite_weights(clause, name, part, (None,)), np.float64)
            for name, part in zip(("knots", "values", "x", "y"), given, strict=False)
        )
        shared.check_knots(clause, knots)
        if values.shape != knots.shape:
            raise SpecError(clause, f"{len(knots)} knots need as many values, got {len(values)}")
        cuts = integers(clause, "cuts", given[4])
        weight = shared.check_cuts(clause, x, y, cuts, len(knots))
        self.far, self.m = objective == "max", len(knots)
        self.knots, sums = knots, np.empty((6, self.m))
        sums_before(x, y, cuts, weight, sums)
        unit = 0.0 if fraction_bits is None else 2.0**-fraction_bits
        self.pieces = (knots, values, x, cuts, sums, fit == "least_squares", unit)
        self.samples = (x, y, cuts, weight)

    def costs(self) -> Array:
        made = np.empty((self.m, self.m))
        a, v, x, cuts, sums, squares, unit = self.pieces
        parts = range(0, self.m, _ROWS)

        def task(number: int) -> None:
            first = parts[len(parts) - 1 - number]  # the long rows first
            last = min(first + _ROWS, self.m)
            costs(first, last, a, v, x, self.samples[1], cuts, sums, squares, unit, self.far, made)

        share(len(parts), task)
        return made


def knot_grid(*, function: TableFunction, fraction_bits: int = 6) -> Array:
    """Multiples of 2^−f in the published range of breakpoints, between the two sentinels, float64.  [L-23]"""
    return shared.grid(function, fraction_bits)


def search_problem(
    knots: Array, /, *, function: TableFunction, scale_bits: Sequence[int] | None = None
) -> SearchProblem[Array]:
    """The samples that a search is to fit, and where the knots fall among them.  [L-24]"""
    given = finite_weights("L-24", "knots", knots, (None,))
    return SearchProblem(*shared.problem(given.astype(np.float64), function, scale_bits))


def optimal_search(
    knots: Array,
    values: Array,
    x: Array,
    y: Array,
    cuts: Array,
    /,
    *,
    entries: int,
    objective: SearchObjective = "mse",
    fit: SearchFit = "chord",
    fraction_bits: int | None = 6,
) -> OptimalTable[Array]:
    """The best table whose breakpoints are knots, by dynamic programming.  [L-25]"""
    given = _Searched("L-25", (knots, values, x, y, cuts), objective, fit, fraction_bits)
    n = shared.check_entries(entries, given.m)
    u, path = np.empty((n + 1, given.m)), np.zeros(n + 1, np.int64)
    shortest(given.costs(), given.far, u, path)
    a, v, xs, c, sums, squares, unit = given.pieces
    found = [line(path[s], path[s + 1], a, v, xs, c, sums, squares, unit) for s in range(n)]
    k, b = np.array([line[0] for line in found]), np.array([line[1] for line in found])
    reached = float(objective_of(*given.samples, k, b, path, given.far))
    return OptimalTable(a[path[1:-1]], k, b, reached, u)


def optimality_bound(
    knots: Array,
    values: Array,
    x: Array,
    y: Array,
    cuts: Array,
    potentials: Array,
    /,
    *,
    objective: SearchObjective = "mse",
    fit: SearchFit = "chord",
    fraction_bits: int | None = 6,
) -> float:
    """Lower bound of the objective of every table on the knots, proved by potentials.  [L-26]"""
    given = _Searched("L-26", (knots, values, x, y, cuts), objective, fit, fraction_bits)
    u = fixed(finite_weights("L-26", "potentials", potentials, (None, None)), np.float64)
    shared.check_potentials(u.shape, given.m)
    return float(u[-1, -1] - excess(u, given.costs(), given.far))


def table_objective(
    x: Array, y: Array, cuts: Array, slopes: Array, intercepts: Array, /, *, objective: SearchObjective = "mse"
) -> float:
    """Objective of any table, whoever made it.  [L-27]"""
    shared.check_objective("L-27", objective)
    xs, ys, k, b = (
        fixed(finite_weights("L-27", name, part, (None,)), np.float64)
        for name, part in (("x", x), ("y", y), ("slopes", slopes), ("intercepts", intercepts))
    )
    if k.shape != b.shape or not k.size:
        raise SpecError("L-27", f"slopes and intercepts must have one length, got {k.size} and {b.size}")
    c = integers("L-27", "cuts", cuts)
    weight = shared.check_cuts("L-27", xs, ys, c, k.size + 1)
    return float(objective_of(xs, ys, c, weight, k, b, np.arange(k.size + 1), objective == "max"))
