"""The genetic search of a table as one kernel: it holds two populations and draws as it goes.

A genome is evaluated only when one of its genes has changed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._jit import as_int, kernel
from ._philox import draw
from ._vector import LANES, lane_sum

__all__ = ["chord", "evolve", "fitness_of"]


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


# --- fitness and generations


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
def chord(a0: float, v0: float, a1: float, v1: float, unit: float) -> Any:
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
        k, b = chord(a0, v0, a1, v1, unit)
        xs, ys, es = x[start:stop], y[start:stop], error[start:stop]
        for t in range(xs.size):  # indices that cannot be negative: a loop that the compiler turns into vectors
            e = ys[t] - (k * xs[t] + b)
            es[t] = e * e
        a0, v0, start = a1, v1, stop
    if numpy_order:
        return _mean(error[:n])
    return lane_sum(error) / n


@kernel
def fitness_of(genomes: Any, function: int, x: Any, y: Any, ends: Any, unit: float, found: Any) -> None:
    error, memo = np.zeros(x.size), np.full((2, 1024), np.nan)
    for g in range(len(genomes)):
        found[g] = _fitness(np.sort(genomes[g]), function, x, y, ends, unit, error, memo, True)


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
def evolve(
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
