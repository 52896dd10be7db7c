"""L: searches of look-up tables. The published genetic search, and the optimum by dynamic programming.

A table of n entries is fixed by its n − 1 breakpoints: slopes and intercepts follow as rounded chords, or as rounded
least-squares lines. Dong et al. 2024 (GQA-LUT, arXiv 2403.19591) search the breakpoints with a genetic algorithm whose
mutation rounds genes to coarse grids, so that they survive the rounding of a deployed scale. But the error of a piece
depends on its two end points alone, whatever is rounded, and so the best breakpoints on a grid of knots are a shortest
path: found exactly, in less time, and with a proof that a third party can check.

Deliberately left out: an elitist genetic search. The published one loses its best genome at times (``best`` shows it).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from . import checks
from .checks import F64, Array
from .errors import SpecError
from .lut import FUNCTIONS, ascending
from .philox import philox_integers, philox_normal, philox_uniform
from .tables import TABLE_SEARCH
from .types import (
    SEARCH_DRAWS,
    SEARCH_FITS,
    SEARCH_OBJECTIVES,
    GeneticSearch,
    OptimalTable,
    Purpose,
    SearchDraws,
    SearchFit,
    SearchObjective,
    SearchProblem,
    TableFunction,
)

__all__ = [
    "genetic_search",
    "genome_fitness",
    "knot_grid",
    "optimal_search",
    "optimality_bound",
    "search_problem",
    "table_objective",
]

CROSSOVER, MUTATION, TOURNAMENT = 0.7, 0.2, 3  # published probabilities, and candidates of one selection
KICK, STEP = 0.9, 0.2  # a uniform from KICK on moves a gene by a normal step of this deviation
LEVEL = 0.05  # probability of rounding to one grid
MOST_ENTRIES = 256
GRAIN = 2.0**-20  # of addressed normals


# -- the genetic search ------------------------------------------------------------------------------------------------


def genome_tables(genomes: F64, function: str, fraction_bits: int) -> tuple[F64, F64, F64]:
    """Sorted genomes with their rounded chords to the sentinels: (G, n − 1), (G, n), (G, n).  [L-1, L-2, L-4]"""
    f = FUNCTIONS[function]
    p = np.sort(genomes, axis=1)
    ends = (np.full((len(p), 1), end) for end in f.ends)
    a = np.concatenate([next(ends), p, next(ends)], axis=1)
    v, width = f.value(a), np.diff(a, axis=1)
    dead = width == 0
    k = np.where(dead, 0.0, np.diff(v, axis=1) / np.where(dead, 1.0, width))
    b = np.where(dead, 0.0, v[:, :-1] - a[:, :-1] * k)
    return p, np.rint(k * 2.0**fraction_bits) / 2.0**fraction_bits, np.rint(b * 2.0**fraction_bits) / 2.0**fraction_bits


def fitness_samples(function: str) -> tuple[F64, F64]:
    """The inputs of the published fitness, 0.01 apart and without the upper end, and the function there."""
    x = np.arange(*FUNCTIONS[function].domain, 0.01)
    return x, FUNCTIONS[function].value(x)


def fitness_of(genomes: F64, function: str, samples: tuple[F64, F64], fraction_bits: int = 6) -> F64:
    """The fitness of every genome (L.20)."""
    x, y = samples
    found = np.empty(len(genomes))
    for g, (p, k, b) in enumerate(zip(*genome_tables(genomes, function, fraction_bits), strict=True)):
        i = np.searchsorted(p, x, side="right")
        found[g] = np.mean((y - (k[i] * x + b[i])) ** 2)  # (L.20)
    return found


def genome_fitness(genomes: npt.ArrayLike, /, *, function: TableFunction, fraction_bits: int = 6) -> F64:
    """Mean squared error of the tables that genomes stand for, as the published search has it.  [L-20]

        F(p) = mean over x = lo, lo + 0.01, … < hi  of  (f(x) − K_i x − B_i)²                            (L.20)

    with the rounded, unclipped chords K, B of the sorted genome between the sentinels, i by the right tie, and neither
    a scale nor rounded breakpoints: the search knows of quantization only what K, B and its mutation tell it.

    Shapes: genomes (G, n − 1) in any order → float64 (G,). Source: the authors' code, gqa_lut_trainer.py, evaluate.

    >>> genome_fitness([[3.0, -3.0]], function="hswish").round(4).tolist()
    [0.9]
    """
    checks.choice(function, tuple(FUNCTIONS), "function", "L-20")
    given = checks.finite(genomes, "genomes", "L-20", ndim=2)
    f = checks.whole(fraction_bits, "fraction_bits", "L-20", low=0, high=24)
    return fitness_of(given, function, fitness_samples(function), f)


class Draws(Protocol):
    """Where a search gets its randomness; asked in the order of the published code."""

    def initial(self, individual: int) -> F64: ...  # (n − 1,) in the range of breakpoints
    def tournament(self, generation: int, individual: int) -> Sequence[int]: ...  # candidates, with replacement
    def cut(self, generation: int, pair: int) -> tuple[int, int] | None: ...  # genes to exchange, or no crossover
    def mutates(self, generation: int, individual: int) -> bool: ...
    def uniform(self, generation: int, individual: int, gene: int, level: int) -> float: ...  # in [0, 1)
    def step(self, generation: int, individual: int, gene: int, level: int) -> float: ...  # N(0, 0.2)


def exchange(first: int, second: int) -> tuple[int, int]:
    """Genes [low, high) of a two-point crossover from points drawn in 1 … n and 1 … n − 1.  [L-22]"""
    return (first, second + 1) if second >= first else (second, first)


class AddressedDraws:
    """Every draw a function of its address, so that nothing depends on order or threads.  [L-21]"""

    def __init__(self, seed: int, population: int, genes: int, span: tuple[float, float]) -> None:
        self.seed, self.population, self.genes, self.span = seed, population, genes, span

    def initial(self, individual: int) -> F64:
        address = [[0, individual, g, Purpose.INITIAL] for g in range(self.genes)]
        low, high = self.span
        return low + (high - low) * philox_uniform(address, seed=self.seed)[:, 0]

    def tournament(self, generation: int, individual: int) -> list[int]:
        address = [generation, individual, 0, Purpose.SELECT]
        found = philox_integers(address, seed=self.seed, bound=self.population)[:TOURNAMENT]
        return [int(i) for i in found]

    def cut(self, generation: int, pair: int) -> tuple[int, int] | None:
        address = [generation, pair, 0, Purpose.CROSS]
        if philox_uniform(address, seed=self.seed)[0] >= CROSSOVER:
            return None
        first = 1 + int(philox_integers(address, seed=self.seed, bound=self.genes)[1])
        return exchange(first, 1 + int(philox_integers(address, seed=self.seed, bound=self.genes - 1)[2]))

    def mutates(self, generation: int, individual: int) -> bool:
        return bool(philox_uniform([generation, individual, 0, Purpose.MUTATE], seed=self.seed)[0] < MUTATION)

    def uniform(self, generation: int, individual: int, gene: int, level: int) -> float:
        slot = [generation, individual, 1 + 64 * gene + level // 4, Purpose.MUTATE]
        return float(philox_uniform(slot, seed=self.seed)[level % 4])

    def step(self, generation: int, individual: int, gene: int, level: int) -> float:
        """The normal is rounded to 2⁻²⁰: the last digits of a library's logarithm do not steer the search."""
        slot = [generation, individual, 1 + 64 * gene + 32 + level, Purpose.MUTATE]
        return STEP * float(np.rint(philox_normal(slot, seed=self.seed)[0] / GRAIN) * GRAIN)


class PublishedDraws:
    """The two generators of the authors' code, both seeded: a function of the order of the draws alone.  [L-22]

    Python's ``random`` selects, crosses and decides whether to mutate; NumPy's legacy generator makes the first
    population and the insides of a mutation. Both streams are frozen by their projects.
    """

    def __init__(self, seed: int, population: int, genes: int, span: tuple[float, float]) -> None:
        self.python, self.numpy = random.Random(seed), np.random.RandomState(seed)
        self.population, self.genes, self.span = population, genes, span

    def initial(self, individual: int) -> F64:
        return np.array([self.numpy.uniform(*self.span) for _ in range(self.genes)])

    def tournament(self, generation: int, individual: int) -> list[int]:
        return [self.python.choice(range(self.population)) for _ in range(TOURNAMENT)]

    def cut(self, generation: int, pair: int) -> tuple[int, int] | None:
        if self.python.random() >= CROSSOVER:
            return None
        return exchange(self.python.randint(1, self.genes), self.python.randint(1, self.genes - 1))

    def mutates(self, generation: int, individual: int) -> bool:
        return self.python.random() < MUTATION

    def uniform(self, generation: int, individual: int, gene: int, level: int) -> float:
        return self.numpy.random_sample()

    def step(self, generation: int, individual: int, gene: int, level: int) -> float:
        return self.numpy.normal(0, STEP)


def mutate(
    genome: F64, draws: Draws, at: tuple[int, int], grids: Sequence[int], rounding: bool, span: tuple[float, float]
) -> None:
    """Rounding mutation, or the plain one, of one genome in place.  [L-22]

    For every gene and every grid 2⁻ʲ a fresh uniform u: the gene is rounded to the grid when 0.05 j ≤ u < 0.05 (j + 1),
    and takes a normal step when 0.9 ≤ u; in both cases it stays inside the range of breakpoints. Without rounding there
    is one uniform a gene. The paper reads as one uniform a gene in both cases; this is the code.
    """
    for g in range(len(genome)):
        for level, j in enumerate(grids):
            u = draws.uniform(*at, g, level)
            if rounding and LEVEL * j <= u < LEVEL * (j + 1):
                genome[g] = np.clip(np.rint(genome[g] * 2.0**j) / 2.0**j + 0.0, *span)  # + 0: no −0
            elif u >= KICK:
                genome[g] += draws.step(*at, g, level)
        genome[g] = np.clip(genome[g], *span)


def search_settings(function: str, entries: int, rounding: bool | None) -> tuple[tuple[float, float], list[int], bool]:
    """(range of breakpoints, grids of the mutation, whether it rounds), published where there is a published one.

    The exponential at 16 entries has a range of its own; GELU at 8 and HSWISH at 16 leave out the two coarsest grids.
    """
    _, span, _, (first, last), published, left_out = TABLE_SEARCH[function]
    rounds = published if rounding is None else rounding
    if function == "exp" and entries == 16:
        span = (-6.5, 0.0)
    return span, list(range(first + left_out.get(entries, 0), last + 1)) if rounds else [0], rounds


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
    """The published genetic search of a table.  [L-21, L-22]

    A generation: every place is won by the fittest of three candidates drawn with replacement, the first of equals;
    neighbours exchange the genes between two points with probability 0.7; each genome mutates with probability 0.2.
    Genomes that were touched are sorted and evaluated (L.20) anew. Nothing keeps the best one: the result is the best
    of the last generation.

    With ``draws="addressed"`` every draw is a Philox block at (generation, individual or pair, slot, purpose):  [L-21]

        gene of the first population    (0, individual, gene, INITIAL)           low + (high − low) u₀
        candidates                      (generation, place, 0, SELECT)           i₀, i₁, i₂ < population
        crossover                       (generation, pair, 0, CROSS)             u₀ < 0.7; points 1 + i₁, 1 + i₂
        whether to mutate               (generation, individual, 0, MUTATE)      u₀ < 0.2
        uniform of level l              (…, 1 + 64 gene + ⌊l / 4⌋, MUTATE)       u_(l mod 4)
        step of level l                 (…, 1 + 64 gene + 32 + l, MUTATE)        0.2 z₀, z₀ rounded to 2⁻²⁰

    with the uniforms u, integers i and normals z of chapter P, generations from 1. With ``draws="published"`` they
    come from the generators of the authors' code in its order, which reproduces the shipped tables bit for bit
    (seed 42).                                                                                           [L-22]

    Shapes: n entries, 3 ≤ n ≤ 256 → GeneticSearch. ``rounding`` None is the published choice: on, but for 1/x and 1/√x.

    >>> genetic_search(function="hswish", entries=3, draws="published", generations=9).best.round(3).tolist()[::3]
    [0.027, 0.021, 0.02, 0.02]
    """
    checks.choice(function, tuple(FUNCTIONS), "function", "L-21")
    n = checks.whole(entries, "entries", "L-21", low=3, high=MOST_ENTRIES)
    checks.choice(draws, SEARCH_DRAWS, "draws", "L-21")
    seed = checks.whole(seed, "seed", "L-21", low=0, high=2**32 - 1 if draws == "published" else 2**64 - 1)
    checks.choice(rounding, (None, False, True), "rounding", "L-21")
    generations = checks.whole(generations, "generations", "L-21", low=0)
    size = checks.whole(population, "population", "L-21", low=2)
    span, grids, rounds = search_settings(function, n, rounding)
    source: Draws = (PublishedDraws if draws == "published" else AddressedDraws)(seed, size, n - 1, span)
    samples = fitness_samples(function)
    genomes = np.sort([source.initial(i) for i in range(size)], axis=1)
    fitness = fitness_of(genomes, function, samples)
    best = [float(fitness.min())]
    for generation in range(1, generations + 1):
        rivals = np.array([source.tournament(generation, i) for i in range(size)])
        winners = rivals[np.arange(size), np.argmin(fitness[rivals], axis=1)]
        genomes, fitness = genomes[winners], fitness[winners]
        touched = np.zeros(size, np.bool_)
        for pair in range(size // 2):
            cut = source.cut(generation, pair)
            if cut:
                genes, both = slice(*cut), slice(2 * pair, 2 * pair + 2)
                genomes[both, genes], touched[both] = genomes[both, genes][::-1].copy(), True
        for i in range(size):
            if source.mutates(generation, i):
                mutate(genomes[i], source, (generation, i), grids, rounds, span)
                touched[i] = True
        genomes[touched] = np.sort(genomes[touched], axis=1)
        fitness[touched] = fitness_of(genomes[touched], function, samples)
        best.append(float(fitness.min()))
    winner = int(np.argmin(fitness))
    p, k, b = genome_tables(genomes[winner : winner + 1], function, 6)
    return GeneticSearch(p[0], k[0], b[0], genomes, fitness, np.array(best))


# -- the optimal search ------------------------------------------------------------------------------------------------


def knot_grid(*, function: TableFunction, fraction_bits: int = 6) -> F64:
    """Multiples of 2^−f in the published range of breakpoints, between the two sentinels.  [L-23]

    Shapes: → float64 (M,); 515 knots for GELU at f = 6. 0 ≤ f ≤ 12.

    >>> knot_grid(function="rsqrt", fraction_bits=0).tolist()
    [0.25, 1.0, 2.0, 3.0, 4.0]
    """
    checks.choice(function, tuple(FUNCTIONS), "function", "L-23")
    f = checks.whole(fraction_bits, "fraction_bits", "L-23", low=0, high=12)
    _, (low, high), (left, right), _, _, _ = TABLE_SEARCH[function]
    inner = np.arange(np.ceil(low * 2.0**f), np.floor(high * 2.0**f) + 1) / 2.0**f
    return np.concatenate([[left], inner, [right]])


def search_problem(
    knots: npt.ArrayLike, /, *, function: TableFunction, scale_bits: Sequence[int] | None = None
) -> SearchProblem[Array]:
    """The samples that a search is to fit, and where the knots fall among them.  [L-24]

    Without ``scale_bits``: one view, the samples of (L.20); a sample that equals a knot belongs to its right. With
    scale bits b₁ … b_V: V views, the deployed operator at S = 2⁻ᵇ. View v holds x = S q for all q in −128 … 127 with x
    in the closed range of inputs that count; the knots lie at round(2ᵇ p), half to even, and a q that equals one
    belongs to its left. Slopes and intercepts stay those of the unrounded knots, as deployed.

    Shapes: knots (M,), M ≥ 2, the inner ones ascending → SearchProblem. The outermost knots are sentinels: they end
    chords, no sample lies beyond them.

    >>> search_problem([-1e4, 0.5, 1e4], function="gelu", scale_bits=[0]).cuts.tolist()
    [[0, 5, 9]]
    """
    checks.choice(function, tuple(FUNCTIONS), "function", "L-24")
    a = checked_knots(knots, "L-24")
    f = FUNCTIONS[function]
    low, high = f.domain
    if scale_bits is None:
        x = fitness_samples(function)[0]
        views, sides = [x], [np.searchsorted(x, a, side="left")]
    else:
        views, sides = [], []
        for b in scale_bits:
            s = 2.0 ** checks.whole(b, "scale_bits", "L-24", low=0, high=12)
            q = np.arange(max(-128, np.ceil(low * s)), min(127, np.floor(high * s)) + 1)
            views.append(q / s)
            sides.append(np.searchsorted(q, np.rint(a * s), side="right"))
        if not views:
            raise SpecError("L-24", "scale_bits holds no scale")
        empty = [i for i, view in enumerate(views) if not len(view)]
        if empty:
            raise SpecError("L-24", f"no code of scale bit {scale_bits[empty[0]]} lies in {f.domain}")
    starts = np.cumsum([0, *(len(view) for view in views)])
    cuts = np.array(sides) + starts[:-1, None]
    cuts[:, 0], cuts[:, -1] = starts[:-1], starts[1:]
    x = np.concatenate(views)
    return SearchProblem(a, f.value(a), x, f.value(x), cuts.astype(np.int32))


def checked_knots(knots: npt.ArrayLike, clause: str) -> F64:
    """Two sentinels and inner knots that ascend."""
    a = checks.finite(knots, "knots", clause, ndim=1)
    if len(a) < 2:
        raise SpecError(clause, f"a table lies between 2 knots or more, got {len(a)}")
    ascending(a[1:-1], "inner knots", clause)
    return a


class Samples:
    """Checked samples: their weights, and which of them lie between two columns of cuts."""

    def __init__(self, x: npt.ArrayLike, y: npt.ArrayLike, cuts: npt.ArrayLike, columns: int, clause: str) -> None:
        self.x, self.y = checks.finite(x, "x", clause, ndim=1), checks.finite(y, "y", clause, ndim=1)
        self.cuts = checks.integers(cuts, "cuts", clause, ndim=2)
        n = len(self.x)
        if len(self.y) != n:
            raise SpecError(clause, f"x and y must have one length, got {n} and {len(self.y)}")
        if self.cuts.shape[1] != columns or not len(self.cuts):
            raise SpecError(clause, f"cuts must have {columns} columns and a row, got shape {self.cuts.shape}")
        flat = self.cuts.ravel()
        joined = (self.cuts[1:, 0] == self.cuts[:-1, -1]).all() and flat[0] == 0 and flat[-1] == n
        if not joined or (np.diff(self.cuts, axis=1) < 0).any():
            raise SpecError(clause, f"cuts must ascend from 0 to {n}, each view from the end of the one before")
        sizes = self.cuts[:, -1] - self.cuts[:, 0]
        if (sizes == 0).any():
            raise SpecError(clause, f"view {int(np.argmin(sizes))} has no samples")
        for v, (start, stop) in enumerate(zip(self.cuts[:, 0], self.cuts[:, -1], strict=True)):
            ascending(self.x[start:stop], f"x of view {v}", clause)
        self.weight = np.repeat(1.0 / (len(sizes) * sizes), sizes)

    def between(self, i: int, j: int) -> npt.NDArray[np.int64]:
        """Indices of the samples between the knots i and j, over all views."""
        return np.concatenate([np.arange(row[i], row[j]) for row in self.cuts])

    def error(self, at: npt.NDArray[np.int64], k: float, b: float, objective: SearchObjective) -> float:
        """Part of the objective that the samples ``at`` make with one line (L.21)."""
        e = self.y[at] - (k * self.x[at] + b)
        return float(np.abs(e).max(initial=0.0) if objective == "max" else self.weight[at] @ e**2)


def line(
    ends: tuple[float, float, float, float],
    samples: Samples,
    at: npt.NDArray[np.int64],
    fit: SearchFit,
    bits: int | None,
) -> tuple[float, float]:
    """Slope and intercept of the piece between two knots, rounded.  [L-1 … L-4]"""
    a0, v0, a1, v1 = ends
    if fit == "chord":
        k = (v1 - v0) / (a1 - a0) if a1 != a0 else 0.0
        b = v0 - a0 * k if a1 != a0 else 0.0
    else:
        k = b = 0.0
        if len(at):
            x, y, w = samples.x[at], samples.y[at], samples.weight[at] / samples.weight[at].sum()
            dx = x - w @ x
            k = float((w * dx) @ (y - w @ y) / ((w * dx) @ dx)) if np.ptp(x) else 0.0
            b = float(w @ y - k * (w @ x))
    if bits is None:
        return k, b
    return float(np.rint(k * 2.0**bits) / 2.0**bits), float(np.rint(b * 2.0**bits) / 2.0**bits)


def piece_costs(
    knots: npt.ArrayLike,
    values: npt.ArrayLike,
    samples: Callable[[int], Samples],
    objective: SearchObjective,
    fit: SearchFit,
    fraction_bits: int | None,
    clause: str,
) -> tuple[F64, F64, F64, F64]:
    """Knots, and cost, slope and intercept of the piece from knot i to knot j ≥ i, (M, M) each.  [L-25]"""
    a = checked_knots(knots, clause)
    v = checks.finite(values, "values", clause, ndim=1)
    if len(v) != len(a):
        raise SpecError(clause, f"{len(a)} knots need as many values, got {len(v)}")
    checks.choice(objective, SEARCH_OBJECTIVES, "objective", clause)
    checks.choice(fit, SEARCH_FITS, "fit", clause)
    if fraction_bits is not None:
        fraction_bits = checks.whole(fraction_bits, "fraction_bits", clause, low=0, high=24)
    data, m = samples(len(a)), len(a)
    cost, slope, intercept = np.zeros((m, m)), np.zeros((m, m)), np.zeros((m, m))
    for i in range(m):
        for j in range(i, m):
            at = data.between(i, j)
            k, b = line((a[i], v[i], a[j], v[j]), data, at, fit, fraction_bits)
            slope[i, j], intercept[i, j], cost[i, j] = k, b, data.error(at, k, b, objective)
    return a, cost, slope, intercept


def places(entries: int, m: int) -> list[range]:
    """Knots where a table of ``entries`` pieces may be after 0, 1, … pieces: sentinels at its ends."""
    return [range(1), *(range(1, m - 1) for _ in range(entries - 1)), range(m - 1, m)]


def optimal_search(
    knots: npt.ArrayLike,
    values: npt.ArrayLike,
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    cuts: npt.ArrayLike,
    /,
    *,
    entries: int,
    objective: SearchObjective = "mse",
    fit: SearchFit = "chord",
    fraction_bits: int | None = 6,
) -> OptimalTable[Array]:
    """The best table whose breakpoints are knots, by dynamic programming.  [L-25, L-25a]

        mse:  J = mean over views of the mean over samples of (y − K_i x − B_i)²                          (L.21)
        max:  J = max over all samples of |y − K_i x − B_i|
        D_0(0) = 0,   D_s(j) = min over i ≤ j of  D_{s−1}(i) ⊕ c(i, j),   J* = D_n(M − 1)                  (L.22)

    with ⊕ the sum (mse) or the maximum (max) and c(i, j) what the samples between the knots i and j contribute with the
    line of that piece: its rounded chord, or the rounded weighted least-squares line through its samples, as (L.2). The
    line is a function of the two knots alone, so that (L.22) is the minimum over all tables, not a heuristic; i = j, a
    dead piece, is allowed, so that from two entries on more are never worse. Breakpoints are inner knots.

    Shapes: the fields of a SearchProblem, entries ≥ 1 → OptimalTable. ``fraction_bits`` None rounds nothing. Of several
    best tables any may be returned. Memory and time grow with M².

    >>> knots, x = np.array([-2.0, -1.0, 0.0, 2.0]), np.array([-1.5, -0.5, 0.5, 1.5])
    >>> found = optimal_search(knots, abs(knots), x, abs(x), [[0, 1, 2, 4]], entries=2)
    >>> found.objective, found.breakpoints.tolist()
    (0.0, [0.0])
    """
    n = checks.whole(entries, "entries", "L-25", low=1, high=MOST_ENTRIES)
    a, cost, slope, intercept = piece_costs(
        knots, values, lambda m: Samples(x, y, cuts, m, "L-25"), objective, fit, fraction_bits, "L-25"
    )
    m = len(a)
    if n > 1 and m == 2:
        raise SpecError("L-25", f"{n} entries need an inner knot")
    D, origin = np.zeros((n + 1, m)), np.zeros((n + 1, m), np.int64)
    where = places(n, m)
    for s in range(1, n + 1):
        for j in where[s]:
            before = [i for i in where[s - 1] if i <= j]
            reach = join(D[s - 1, before], cost[before, j], objective)
            least = int(np.argmin(reach))
            D[s, j], origin[s, j] = reach[least], before[least]  # (L.22)
    path = [m - 1]
    for s in range(n, 0, -1):
        path.append(int(origin[s, path[-1]]))
    path.reverse()
    pieces = list(itertools.pairwise(path))
    k, b = (np.array([part[i, j] for i, j in pieces]) for part in (slope, intercept))
    return OptimalTable(a[path[1:-1]], k, b, float(D[n, m - 1]), D)


def join(left: Array, right: Array, objective: SearchObjective) -> Array:
    """⊕ of (L.22)."""
    return np.maximum(left, right) if objective == "max" else left + right


def optimality_bound(
    knots: npt.ArrayLike,
    values: npt.ArrayLike,
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    cuts: npt.ArrayLike,
    potentials: npt.ArrayLike,
    /,
    *,
    objective: SearchObjective = "mse",
    fit: SearchFit = "chord",
    fraction_bits: int | None = 6,
) -> float:
    """Lower bound of the objective of every table of n entries with breakpoints among the knots.  [L-26]

    Any numbers u_s(j) prove

        J ≥ u_n(M − 1) − Σ_s v_s,   v_0 = max(0, u_0(0)),   v_s = max(0, max over i ≤ j of
                                                                        u_s(j) − (u_{s−1}(i) ⊕ c(i, j)))    (L.23)

    by walking along the table piece by piece. With u = D of (L.22) all v are 0 and the bound is the optimum: the
    potentials of an :func:`optimal_search` are a certificate, checked here without a search and without trust in
    whoever made them. J / bound − 1 is then the gap of any other table on the knots.

    Shapes: the fields of a SearchProblem, potentials (n + 1, M) → float. Entries where no breakpoint may be are not
    looked at.

    >>> knots, x = np.array([-2.0, -1.0, 2.0]), np.array([-1.5, -0.5, 0.5, 1.5])
    >>> problem = knots, abs(knots), x, abs(x), [[0, 1, 4]]
    >>> best = optimal_search(*problem, entries=2)
    >>> best.objective == optimality_bound(*problem, best.potentials) > optimality_bound(*problem, np.zeros((3, 3)))
    True
    """
    a, cost, _, _ = piece_costs(
        knots, values, lambda m: Samples(x, y, cuts, m, "L-26"), objective, fit, fraction_bits, "L-26"
    )
    m = len(a)
    u = checks.finite(potentials, "potentials", "L-26", ndim=2)
    if u.shape[1] != m or len(u) < 2 or (len(u) > 2 and m == 2):
        raise SpecError("L-26", f"potentials must have 2 rows or more of {m} knots, got shape {u.shape}")
    where = places(len(u) - 1, m)
    bound = float(u[-1, -1]) - max(0.0, float(u[0, 0]))
    for s in range(1, len(u)):
        excess = [u[s, j] - join(u[s - 1, i], cost[i, j], objective) for j in where[s] for i in where[s - 1] if i <= j]
        bound -= max(0.0, *excess)
    return bound  # (L.23)


def table_objective(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    cuts: npt.ArrayLike,
    slopes: npt.ArrayLike,
    intercepts: npt.ArrayLike,
    /,
    *,
    objective: SearchObjective = "mse",
) -> float:
    """Objective (L.21) of any table, whoever made it.  [L-27]

    Shapes: x, y (N,); cuts (V, n + 1) of the table's own breakpoints between two sentinels, as
    :func:`search_problem` makes them; slopes and intercepts (n,) → float.

    >>> table_objective([0.0, 1.0], [0.0, 2.0], [[0, 1, 2]], [1.0, 1.0], [0.0, 0.0])
    0.5
    """
    k = checks.finite(slopes, "slopes", "L-27", ndim=1)
    b = checks.finite(intercepts, "intercepts", "L-27", ndim=1)
    if len(k) != len(b) or not len(k):
        raise SpecError("L-27", f"slopes and intercepts must have one length, got {len(k)} and {len(b)}")
    checks.choice(objective, SEARCH_OBJECTIVES, "objective", "L-27")
    data = Samples(x, y, cuts, len(k) + 1, "L-27")
    parts = [data.error(data.between(i, i + 1), k[i], b[i], objective) for i in range(len(k))]
    return float(max(parts) if objective == "max" else sum(parts))
