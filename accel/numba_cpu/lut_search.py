"""L: searches of look-up tables. The rules are those of :mod:`lowbit.reference.lut_search`.

A genetic search is one call of one kernel: it holds two populations, draws as it goes, and evaluates a genome only when
one of its genes has changed. The optimal search finds the cost of a piece from sums up to each knot in constant time,
whatever the number of scales, and keeps costs by their right end, so that the inner loop reads memory in order.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from lowbit.accel import lut_search as shared
from lowbit.accel.boundary import check_whole
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
from ._jit import as_int, kernel, share
from ._philox import draw, key
from ._vector import LANES, lane_sum

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


# --- random numbers of the published code: two Mersenne twisters, each a state of 624 words and a position


@kernel
def _word(state: Any) -> Any:
    """The next 32 bits."""
    at: Any = np.int64(state[624])
    if at == 624:
        for i in range(624):
            y = (state[i] & np.uint32(0x80000000)) | (state[(i + 1) % 624] & np.uint32(0x7FFFFFFF))
            twist = np.uint32(0x9908B0DF) if y & np.uint32(1) else np.uint32(0)
            state[i] = state[(i + 397) % 624] ^ (y >> np.uint32(1)) ^ twist
        at = 0
    state[624] = np.uint32(at + 1)
    y = state[at]
    y ^= y >> np.uint32(11)
    y ^= (y << np.uint32(7)) & np.uint32(0x9D2C5680)
    y ^= (y << np.uint32(15)) & np.uint32(0xEFC60000)
    return np.uint32(y ^ (y >> np.uint32(18)))


@kernel
def _fraction(state: Any) -> float:
    """A multiple of 2⁻⁵³ in [0, 1), as both generators make it."""
    high = np.float64(_word(state) >> np.uint32(5))
    low = np.float64(_word(state) >> np.uint32(6))
    return (high * 67108864.0 + low) / 9007199254740992.0


@kernel
def _below(state: Any, bound: int) -> Any:
    """Python's integer below a bound: as many bits as the bound has, again until they are below it."""
    bits = 0
    while bound >> bits:
        bits += 1
    while True:
        found = np.int64(_word(state) >> np.uint32(32 - bits))
        if found < bound:
            return found


@kernel
def _normal(state: Any, kept: Any) -> Any:
    """The polar method, whose second number waits for the next call."""
    if kept[0] != 0.0:
        kept[0] = 0.0
        return kept[1]
    while True:
        a = 2.0 * _fraction(state) - 1.0
        b = 2.0 * _fraction(state) - 1.0
        square = a * a + b * b
        if square < 1.0 and square != 0.0:
            break
    factor = math.sqrt(-2.0 * math.log(square) / square)
    kept[0], kept[1] = 1.0, factor * a
    return factor * b


# --- fitness


@kernel
def _value(function: int, x: float) -> float:
    """The function by its number in the list of functions."""
    if function == 0:
        return 0.5 * x * (1.0 + math.erf(x / math.sqrt(2.0)))
    if function == 1:
        return x * min(max(x + 3.0, 0.0), 6.0) / 6.0
    if function == 2:
        return x / (1.0 + math.exp(-x))
    if function == 3:
        return math.exp(x)
    if function == 4:
        return 1.0 / x
    if function == 5:
        return 1.0 / math.sqrt(x)
    if function == 6:
        return 1.0 / (1.0 + math.exp(-x))
    return math.tanh(x)


@kernel
def _chord(a0: float, v0: float, a1: float, v1: float, unit: float) -> Any:
    """(slope, intercept) of a piece in multiples of the unit; 0 asks for no rounding."""
    if a0 == a1:
        return 0.0, 0.0
    k = (v1 - v0) / (a1 - a0)
    b = v0 - a0 * k
    if unit == 0.0:
        return k, b
    return np.rint(k / unit) * unit, np.rint(b / unit) * unit


@kernel
def _mean(e: Any) -> Any:
    """Mean in the order of NumPy: halves down to 128 terms, eight running sums in each.

    Two genomes that stand for the same lines then tie exactly, and ties decide in favour of the first.
    """
    starts, sizes, sums = np.empty(64, np.int64), np.empty(64, np.int64), np.empty(64)
    merged = np.zeros(64, np.int64)  # 0: to sum, 1: halves pushed, waiting for their sums
    top, done = 0, 0
    starts[0], sizes[0] = 0, e.size
    while top >= 0:
        start, size = starts[top], sizes[top]
        if merged[top] == 1:
            sums[done - 2] += sums[done - 1]
            done -= 1
            merged[top] = 0
            top -= 1
        elif size > 128:
            half = size // 2
            half -= half % 8
            merged[top] = 1
            starts[top + 1], sizes[top + 1], merged[top + 1] = start + half, size - half, 0
            starts[top + 2], sizes[top + 2], merged[top + 2] = start, half, 0
            top += 2
        else:
            total = 0.0
            stop = start
            if size >= 8:
                r0, r1, r2, r3 = e[start], e[start + 1], e[start + 2], e[start + 3]
                r4, r5, r6, r7 = e[start + 4], e[start + 5], e[start + 6], e[start + 7]
                stop = start + size - size % 8
                for i in range(start + 8, stop, 8):
                    r0 += e[i]
                    r1 += e[i + 1]
                    r2 += e[i + 2]
                    r3 += e[i + 3]
                    r4 += e[i + 4]
                    r5 += e[i + 5]
                    r6 += e[i + 6]
                    r7 += e[i + 7]
                total = ((r0 + r1) + (r2 + r3)) + ((r4 + r5) + (r6 + r7))
            for i in range(stop, start + size):
                total += e[i]
            sums[done] = total
            done += 1
            top -= 1
    return sums[0] / e.size


@kernel
def _fitness(
    p: Any, function: int, x: Any, y: Any, ends: Any, unit: float, error: Any, memo: Any, numpy_order: bool
) -> Any:
    """Fitness (L.20) of one sorted genome.

    ``error`` is as long as the samples or longer, and 0 beyond them; ``memo`` (2, 1024) holds values of the function
    that were computed before. The mean is NumPy's where a search is to be replayed; else its terms are added in 16
    lanes, and genomes that stand for the same lines tie exactly in either order.
    """
    a0, v0, start, n = ends[0], ends[2], np.int64(0), x.size
    for i in range(p.size + 1):
        if i < p.size:
            a1 = p[i]
            place = ((as_int(a1) * np.int64(-7046029254386353131)) >> np.int64(54)) & np.int64(1023)
            if memo[0, place] != a1:
                memo[0, place], memo[1, place] = a1, _value(function, a1)
            v1 = memo[1, place]
            stop = min(max(np.int64((a1 - x[0]) * 100.0), start), n)  # samples are 0.01 apart: a guess, then exact
            while stop < n and x[stop] < a1:
                stop += 1
            while stop > start and x[stop - 1] >= a1:
                stop -= 1
        else:
            a1, v1, stop = ends[1], ends[3], n
        k, b = _chord(a0, v0, a1, v1, unit)
        xs, ys, es = x[start:stop], y[start:stop], error[start:stop]
        for t in range(xs.size):  # indices that cannot be negative: a loop that the compiler turns into vectors
            e = ys[t] - (k * xs[t] + b)
            es[t] = e * e
        a0, v0, start = a1, v1, stop
    if numpy_order:
        return _mean(error[:n])
    return lane_sum(error) / n


@kernel
def _fitness_of(genomes: Any, function: int, x: Any, y: Any, ends: Any, unit: float, found: Any) -> None:
    error, memo = np.zeros(x.size), np.full((2, 1024), np.nan)
    for g in range(len(genomes)):
        found[g] = _fitness(np.sort(genomes[g]), function, x, y, ends, unit, error, memo, True)


# --- the genetic search


@kernel
def _sort(p: Any) -> None:
    """Insertion sort: a genome is short and nearly sorted."""
    for i in range(1, p.size):
        gene, j = p[i], i
        while j > 0 and p[j - 1] > gene:
            p[j] = p[j - 1]
            j -= 1
        p[j] = gene


@kernel
def _evolve(
    function: int,
    x: Any,
    y: Any,
    ends: Any,
    low: float,
    high: float,
    grids: Any,
    rounds: bool,
    published: bool,
    k0: Any,
    k1: Any,
    python: Any,
    legacy: Any,
    now: Any,
    then: Any,
    fitness: Any,
    before: Any,
    best: Any,
) -> None:
    """All generations; the last population stays in ``now``, its fitness in ``fitness``."""
    size, genes = now.shape
    first: Any
    second: Any
    third: Any
    start: Any
    stop: Any
    error, memo = np.zeros((x.size + LANES - 1) // LANES * LANES), np.full((2, 1024), np.nan)
    kept, touched = np.zeros(2), np.zeros(size, np.bool_)
    unit = 1.0 / 64.0
    for i in range(size):
        for g in range(genes):
            u = _fraction(legacy) if published else np.float64(draw(0, i, g, 3, k0, k1)[0] >> np.uint32(8)) * 2.0**-24
            now[i, g] = low + (high - low) * u
        _sort(now[i])
        fitness[i] = _fitness(now[i], function, x, y, ends, unit, error, memo, published)
    best[0] = fitness.min()
    for t in range(1, best.size):
        for i in range(size):
            then[i] = now[i]
            before[i] = fitness[i]
        for i in range(size):
            if published:
                first, second, third = _below(python, size), _below(python, size), _below(python, size)
            else:
                w = draw(t, i, 0, 4, k0, k1)
                first = np.int64((np.uint64(w[0]) * np.uint64(size)) >> np.uint64(32))
                second = np.int64((np.uint64(w[1]) * np.uint64(size)) >> np.uint64(32))
                third = np.int64((np.uint64(w[2]) * np.uint64(size)) >> np.uint64(32))
            if before[second] < before[first]:
                first = second
            if before[third] < before[first]:
                first = third
            now[i] = then[first]
            fitness[i] = before[first]
            touched[i] = False
        for pair in range(size // 2):
            if published:
                if _fraction(python) >= 0.7:
                    continue
                start, stop = 1 + _below(python, genes), 1 + _below(python, genes - 1)
            else:
                w = draw(t, pair, 0, 5, k0, k1)
                if np.float64(w[0] >> np.uint32(8)) * 2.0**-24 >= 0.7:
                    continue
                start = 1 + np.int64((np.uint64(w[1]) * np.uint64(genes)) >> np.uint64(32))
                stop = 1 + np.int64((np.uint64(w[2]) * np.uint64(genes - 1)) >> np.uint64(32))
            if stop >= start:
                stop += 1
            else:
                start, stop = stop, start
            for g in range(start, stop):
                left, right = now[2 * pair, g], now[2 * pair + 1, g]
                if left != right:
                    now[2 * pair, g], now[2 * pair + 1, g] = right, left
                    touched[2 * pair] = touched[2 * pair + 1] = True
        for i in range(size):
            if published:
                gate = _fraction(python)
            else:
                gate = np.float64(draw(t, i, 0, 6, k0, k1)[0] >> np.uint32(8)) * 2.0**-24
            if gate >= 0.2:
                continue
            for g in range(genes):
                gene = now[i, g]
                word0 = word1 = word2 = word3 = np.uint32(0)
                for level in range(grids.size):
                    if published:
                        u = _fraction(legacy)
                    else:
                        if level % 4 == 0:
                            word0, word1, word2, word3 = draw(t, i, 1 + 64 * g + level // 4, 6, k0, k1)
                        u = np.float64(word0 >> np.uint32(8)) * 2.0**-24
                        word0, word1, word2 = word1, word2, word3
                    j = grids[level]
                    if rounds and 0.05 * j <= u and u < 0.05 * (j + 1):
                        scale = np.float64(1 << j)
                        gene = min(max(np.rint(gene * scale) / scale + 0.0, low), high)
                    elif u >= 0.9:
                        if published:
                            gene += 0.2 * _normal(legacy, kept)
                        else:
                            w = draw(t, i, 1 + 64 * g + 32 + level, 6, k0, k1)
                            radius = math.sqrt(-2.0 * math.log((np.float64(w[0]) + 0.5) * 2.0**-32))
                            z = radius * math.cos(2.0 * math.pi * (np.float64(w[1]) * 2.0**-32))
                            gene += 0.2 * (np.rint(z * 1048576.0) / 1048576.0)
                gene = min(max(gene, low), high)
                if gene != now[i, g]:
                    now[i, g] = gene
                    touched[i] = True
        for i in range(size):
            if touched[i]:
                _sort(now[i])
                fitness[i] = _fitness(now[i], function, x, y, ends, unit, error, memo, published)
        best[t] = fitness.min()


@functools.lru_cache(maxsize=16)
def _sampled(function: str) -> tuple[int, Array, Array]:
    """Number of a function, and the samples of its fitness, read-only."""
    x, y = shared.samples(function)
    return shared.FUNCTIONS.index(function), fixed(x), fixed(y)


def _ends(function: str, ends: tuple[float, float]) -> Array:
    return np.array([*ends, *shared.values(function, np.array(ends))])


def genome_fitness(genomes: Array, /, *, function: TableFunction, fraction_bits: int = 6) -> Array:
    """Mean squared error of the tables that genomes stand for, as the published search has it.  [L-20]

    Args:
        genomes: (G, n − 1) breakpoints in any order, float16, float32 or float64.
        function: gelu, hswish, silu, exp, reciprocal, rsqrt, sigmoid or tanh.
        fraction_bits: of slopes and intercepts, 0 to 24.

    Returns:
        float64, (G,).

    Raises:
        SpecError: L-20, and A-4 for NaN and infinities.
    """
    shared.check_function("L-20", function)
    given = finite_weights("L-20", "genomes", genomes, (None, None))
    check_whole("L-20", "fraction_bits", fraction_bits, 0, 24)
    number, x, y = _sampled(function)
    found = np.empty(len(given))
    ends = _ends(function, shared.sentinels(function))
    _fitness_of(fixed(given, np.float64), number, x, y, ends, 2.0**-fraction_bits, found)
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

    Args:
        function: gelu, hswish, silu, exp, reciprocal, rsqrt, sigmoid or tanh.
        entries: pieces of the table, 3 to 256.
        seed: of all draws; below 2³² with the published ones.
        draws: "addressed", or "published" to replay the authors' code.
        rounding: whether mutations round to coarse grids; None is the published choice.
        generations: number of them.
        population: number of genomes.

    Returns:
        The best table of the last generation, that generation, and the course of the best fitness, float64.

    Raises:
        SpecError: L-21.
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
    _evolve(
        number, x, y, ends, *plan.span, np.array(plan.grids, np.int64), plan.rounds, published, k0, k1, python, legacy,
        now, np.empty_like(now), fitness, np.empty_like(fitness), best,
    )  # fmt: skip
    p = now[int(np.argmin(fitness))].copy()
    a = np.concatenate([ends[:1], p, ends[1:2]])
    slopes, intercepts = _lines(a, shared.values(function, a), 2.0**-6)
    return GeneticSearch(p, slopes, intercepts, now, fitness, best)


def _lines(a: Array, v: Array, unit: float) -> tuple[Array, Array]:
    found = [_chord(a[i], v[i], a[i + 1], v[i + 1], unit) for i in range(len(a) - 1)]
    return np.array([k for k, _ in found]), np.array([b for _, b in found])


# --- the optimal search


@kernel
def _sums(x: Any, y: Any, cuts: Any, weight: Any, out: Any) -> None:
    """Weighted sums of 1, x, y, x², xy, y² over the samples left of every knot, views added up: (6, M)."""
    out[:] = 0.0
    for v in range(len(cuts)):
        run = np.zeros(6)
        t = cuts[v, 0]
        for j in range(cuts.shape[1]):
            while t < cuts[v, j]:
                run[0] += weight[v]
                run[1] += weight[v] * x[t]
                run[2] += weight[v] * y[t]
                run[3] += weight[v] * x[t] * x[t]
                run[4] += weight[v] * x[t] * y[t]
                run[5] += weight[v] * y[t] * y[t]
                t += 1
            for s in range(6):
                out[s, j] += run[s]


@kernel
def _line(i: int, j: int, a: Any, v: Any, x: Any, cuts: Any, sums: Any, squares: bool, unit: float) -> Any:
    """(slope, intercept) of the piece between the knots i and j."""
    if not squares:
        return _chord(a[i], v[i], a[j], v[j], unit)
    least, most = np.inf, -np.inf
    for view in range(len(cuts)):
        if cuts[view, i] < cuts[view, j]:
            least, most = min(least, x[cuts[view, i]]), max(most, x[cuts[view, j] - 1])
    if least > most:
        return 0.0, 0.0
    s1 = sums[0, j] - sums[0, i]
    mx, my = (sums[1, j] - sums[1, i]) / s1, (sums[2, j] - sums[2, i]) / s1
    k = 0.0
    if least < most:
        k = ((sums[4, j] - sums[4, i]) - s1 * mx * my) / ((sums[3, j] - sums[3, i]) - s1 * mx * mx)
    b = my - k * mx
    if unit == 0.0:
        return k, b
    return np.rint(k / unit) * unit, np.rint(b / unit) * unit


@kernel
def _largest(i: int, j: int, k: float, b: float, x: Any, y: Any, cuts: Any) -> Any:
    """Largest distance of the samples between two knots from a line."""
    m0 = m1 = m2 = m3 = 0.0
    for view in range(len(cuts)):
        xs, ys = x[cuts[view, i] : cuts[view, j]], y[cuts[view, i] : cuts[view, j]]
        stop = xs.size // 4 * 4
        for t in range(0, stop, 4):
            e0, e1 = abs(ys[t] - (k * xs[t] + b)), abs(ys[t + 1] - (k * xs[t + 1] + b))
            e2, e3 = abs(ys[t + 2] - (k * xs[t + 2] + b)), abs(ys[t + 3] - (k * xs[t + 3] + b))
            m0, m1 = e0 if e0 > m0 else m0, e1 if e1 > m1 else m1
            m2, m3 = e2 if e2 > m2 else m2, e3 if e3 > m3 else m3
        for t in range(stop, xs.size):
            m0 = max(m0, abs(ys[t] - (k * xs[t] + b)))
    return max(max(m0, m1), max(m2, m3))


@kernel
def _costs(
    first: int, last: int, a: Any, v: Any, x: Any, y: Any, cuts: Any, sums: Any, squares: bool, unit: float, far: bool,
    cost: Any,
) -> None:  # fmt: skip
    """cost[j, i] of the pieces that end at knots first … last − 1."""
    for j in range(first, last):
        for i in range(j + 1):
            k, b = _line(i, j, a, v, x, cuts, sums, squares, unit)
            if far:
                cost[j, i] = _largest(i, j, k, b, x, y, cuts)
            else:
                s1, sx, sy = sums[0, j] - sums[0, i], sums[1, j] - sums[1, i], sums[2, j] - sums[2, i]
                xx, xy, yy = sums[3, j] - sums[3, i], sums[4, j] - sums[4, i], sums[5, j] - sums[5, i]
                cost[j, i] = max(yy - k * (2.0 * xy - k * xx - 2.0 * b * sx) - b * (2.0 * sy - b * s1), 0.0)


@kernel
def _advance(u: Any, cost: Any, low: int, stop: int, far: bool) -> Any:
    """min over low ≤ i < stop of u[i] ⊕ cost[i], four running minima."""
    m0 = m1 = m2 = m3 = np.inf
    i = low
    while i + 4 <= stop:
        if far:
            m0, m1 = min(m0, max(u[i], cost[i])), min(m1, max(u[i + 1], cost[i + 1]))
            m2, m3 = min(m2, max(u[i + 2], cost[i + 2])), min(m3, max(u[i + 3], cost[i + 3]))
        else:
            m0, m1 = min(m0, u[i] + cost[i]), min(m1, u[i + 1] + cost[i + 1])
            m2, m3 = min(m2, u[i + 2] + cost[i + 2]), min(m3, u[i + 3] + cost[i + 3])
        i += 4
    while i < stop:
        m0 = min(m0, max(u[i], cost[i]) if far else u[i] + cost[i])
        i += 1
    return min(min(m0, m1), min(m2, m3))


@kernel
def _shortest(cost: Any, far: bool, u: Any, path: Any) -> None:
    """Potentials (L.22), and the knots of a best table."""
    n, m = u.shape[0] - 1, u.shape[1]
    u[:] = 0.0
    for s in range(1, n + 1):
        low, stop = (0, 1) if s == 1 else (1, m - 1)
        begin, end = (m - 1, m) if s == n else (1, m - 1)
        for j in range(begin, end):
            u[s, j] = _advance(u[s - 1], cost[j], low, min(stop, j + 1), far)
    path[n] = m - 1
    for s in range(n, 0, -1):
        j = path[s]
        low, stop = (0, 1) if s == 1 else (1, min(m - 1, j + 1))
        for i in range(low, stop):
            if (max(u[s - 1, i], cost[j, i]) if far else u[s - 1, i] + cost[j, i]) == u[s, j]:
                path[s - 1] = i
                break


@kernel
def _excess(u: Any, cost: Any, far: bool) -> Any:
    """What the potentials promise too much, step by step, summed: (L.23)."""
    n, m = u.shape[0] - 1, u.shape[1]
    total = max(0.0, u[0, 0])
    for s in range(1, n + 1):
        low, stop = (0, 1) if s == 1 else (1, m - 1)
        begin, end = (m - 1, m) if s == n else (1, m - 1)
        most = 0.0
        for j in range(begin, end):
            most = max(most, u[s, j] - _advance(u[s - 1], cost[j], low, min(stop, j + 1), far))
        total += most
    return total


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
        _sums(x, y, cuts, weight, sums)
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
            _costs(first, last, a, v, x, self.samples[1], cuts, sums, squares, unit, self.far, made)

        share(len(parts), task)
        return made


def knot_grid(*, function: TableFunction, fraction_bits: int = 6) -> Array:
    """Multiples of 2^−f in the published range of breakpoints, between the two sentinels, float64.  [L-23]"""
    return shared.grid(function, fraction_bits)


def search_problem(
    knots: Array, /, *, function: TableFunction, scale_bits: Sequence[int] | None = None
) -> SearchProblem[Array]:
    """The samples that a search is to fit, and where the knots fall among them.  [L-24]

    Args:
        knots: (M,) a sentinel, breakpoints to choose from, ascending, a sentinel.
        function: gelu, hswish, silu, exp, reciprocal, rsqrt, sigmoid or tanh.
        scale_bits: the deployed operator at these scales 2⁻ᵇ; None for the samples of the published fitness.

    Returns:
        Arguments of :func:`optimal_search`, float64 and int32.

    Raises:
        SpecError: L-24, and A-4 for NaN and infinities.
    """
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
    """The best table whose breakpoints are knots, by dynamic programming.  [L-25]

    Args:
        knots: fields of a :class:`SearchProblem`: (M,);
        values: (M,);
        x: (N,);
        y: (N,);
        cuts: (V, M), integers.
        entries: pieces of the table, 1 to 256.
        objective: "mse", the mean over views of the mean squared error, or "max", the largest error.
        fit: "chord" or "least_squares".
        fraction_bits: of slopes and intercepts; None rounds nothing.

    Returns:
        The table, its objective, and the potentials that prove it best, float64.

    Raises:
        SpecError: L-25, and A-4 for NaN and infinities.
    """
    given = _Searched("L-25", (knots, values, x, y, cuts), objective, fit, fraction_bits)
    n = shared.check_entries(entries, given.m)
    u, path = np.empty((n + 1, given.m)), np.zeros(n + 1, np.int64)
    _shortest(given.costs(), given.far, u, path)
    a, v, xs, c, sums, squares, unit = given.pieces
    found = [_line(path[s], path[s + 1], a, v, xs, c, sums, squares, unit) for s in range(n)]
    k, b = np.array([line[0] for line in found]), np.array([line[1] for line in found])
    reached = float(_objective(*given.samples, k, b, path, given.far))
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
    """Lower bound of the objective of every table on the knots, proved by potentials.  [L-26]

    Args:
        knots: fields of a :class:`SearchProblem`: (M,);
        values: (M,);
        x: (N,);
        y: (N,);
        cuts: (V, M), integers.
        potentials: (n + 1, M) for tables of n pieces.
        objective: as in :func:`optimal_search`, as are the options that follow.
        fit: "chord" or "least_squares".
        fraction_bits: of slopes and intercepts; None rounds nothing.

    Raises:
        SpecError: L-26, and A-4 for NaN and infinities.
    """
    given = _Searched("L-26", (knots, values, x, y, cuts), objective, fit, fraction_bits)
    u = fixed(finite_weights("L-26", "potentials", potentials, (None, None)), np.float64)
    shared.check_potentials(u.shape, given.m)
    return float(u[-1, -1] - _excess(u, given.costs(), given.far))


@kernel
def _objective(x: Any, y: Any, cuts: Any, weight: Any, slopes: Any, intercepts: Any, path: Any, far: bool) -> Any:
    """Objective (L.21) of a table whose pieces lie between the columns ``path`` of the cuts."""
    total = 0.0
    for s in range(slopes.size):
        for view in range(len(cuts)):
            part = 0.0
            for t in range(cuts[view, path[s]], cuts[view, path[s + 1]]):
                e = y[t] - (slopes[s] * x[t] + intercepts[s])
                if far:
                    total = max(total, abs(e))
                else:
                    part += e * e
            total += weight[view] * part
    return total


def table_objective(
    x: Array, y: Array, cuts: Array, slopes: Array, intercepts: Array, /, *, objective: SearchObjective = "mse"
) -> float:
    """Objective of any table, whoever made it.  [L-27]

    Args:
        x: (N,).
        y: (N,).
        cuts: (V, n + 1) of the table's own breakpoints between two sentinels, integers.
        slopes: (n,).
        intercepts: (n,).
        objective: "mse" or "max".

    Raises:
        SpecError: L-27, and A-4 for NaN and infinities.
    """
    shared.check_objective("L-27", objective)
    xs, ys, k, b = (
        fixed(finite_weights("L-27", name, part, (None,)), np.float64)
        for name, part in (("x", x), ("y", y), ("slopes", slopes), ("intercepts", intercepts))
    )
    if k.shape != b.shape or not k.size:
        raise SpecError("L-27", f"slopes and intercepts must have one length, got {k.size} and {b.size}")
    c = integers("L-27", "cuts", cuts)
    weight = shared.check_cuts("L-27", xs, ys, c, k.size + 1)
    return float(_objective(xs, ys, c, weight, k, b, np.arange(k.size + 1), objective == "max"))
