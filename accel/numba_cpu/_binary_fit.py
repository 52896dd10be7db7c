"""Kernels that fit binary codes: levels, thresholds and least squares of a handful of scales.

Fitting keeps of a group what the scales depend on, and no more: for the 2^q − 1 thresholds between levels, how many
weights reach each and what they sum to. A round reads the group once for that, and everything else of it, Gram matrix,
solve, levels, is arithmetic on a handful of numbers. Codes are written once, at the end.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._jit import kernel
from ._vector import LANES, THRESHOLDS, upper_sums

__all__ = ["assign_groups", "fit_groups", "refit_groups", "value_groups"]

RANK_CUT = 2.0**-12
"""Below this an eigenvalue, or a pivot, of the Gram matrix of at most nine ±1 columns is 0: no other is that small."""
GREEDY, REFINED, ALTERNATING = range(3)
CHUNK = 4096  # values whose upper sums are kept in the precision of the data; chunks are added in float64


@kernel
def _eigen(a: Any, v: Any, p: int) -> None:
    """Cyclic Jacobi: a (p, p) symmetric becomes diagonal, v its eigenvectors in columns."""
    for i in range(p):
        for j in range(p):
            v[i, j] = 1.0 if i == j else 0.0
    for _ in range(30):
        off, total = 0.0, 0.0
        for i in range(p):
            for j in range(p):
                total += a[i, j] * a[i, j]
                if i != j:
                    off += a[i, j] * a[i, j]
        if off <= 1e-34 * total:
            return
        for i in range(p - 1):
            for j in range(i + 1, p):
                if a[i, j] == 0.0:
                    continue
                theta = (a[j, j] - a[i, i]) / (2.0 * a[i, j])
                t = (1.0 if theta >= 0 else -1.0) / (abs(theta) + math.sqrt(theta * theta + 1.0))
                c = 1.0 / math.sqrt(t * t + 1.0)
                s = t * c
                for n in range(p):
                    x, y = a[n, i], a[n, j]
                    a[n, i], a[n, j] = c * x - s * y, s * x + c * y
                for n in range(p):
                    x, y = a[i, n], a[j, n]
                    a[i, n], a[j, n] = c * x - s * y, s * x + c * y
                for n in range(p):
                    x, y = v[n, i], v[n, j]
                    v[n, i], v[n, j] = c * x - s * y, s * x + c * y


@kernel
def _solve(gram: Any, rhs: Any, p: int, x: Any, factor: Any, vectors: Any) -> None:
    """x = gram⁺ rhs for the Gram matrix of p columns of ±1: by L D Lᵀ, or by eigenvectors where it is singular."""
    singular = False
    for i in range(p):
        for j in range(i + 1):
            total = gram[i, j]
            for n in range(j):
                total -= factor[i, n] * factor[j, n] * factor[n, n]
            if i == j:
                factor[i, i] = total
                if total < RANK_CUT:  # the squared distance of column i from those before it
                    singular = True
                    break
            else:
                factor[i, j] = total / factor[j, j]
        if singular:
            break
    if not singular:
        for i in range(p):
            total = rhs[i]
            for n in range(i):
                total -= factor[i, n] * x[n]
            x[i] = total
        for i in range(p):
            x[i] = x[i] / factor[i, i]
        for back in range(p):
            i = p - 1 - back
            for n in range(i + 1, p):
                x[i] -= factor[n, i] * x[n]
        return
    for i in range(p):
        for j in range(p):
            factor[i, j] = gram[i, j]
    _eigen(factor, vectors, p)
    for i in range(p):
        x[i] = 0.0
    for n in range(p):
        if factor[n, n] > RANK_CUT:
            weight = 0.0
            for i in range(p):
                weight += vectors[i, n] * rhs[i]
            weight /= factor[n, n]
            for i in range(p):
                x[i] += weight * vectors[i, n]


@kernel
def _fit(
    count: Any, total: Any, code: Any, size: int, q: int, offset: bool, x: Any, gram: Any, rhs: Any, work: Any
) -> Any:
    """Least-squares scales from the count and the sum of every code; x[q] is the offset.  (B.4)"""
    p = q + 1 if offset else q
    for i in range(p):
        rhs[i] = 0.0
        for j in range(i + 1):
            gram[i, j] = 0.0
    for n in range(size):
        c, number, amount = code[n], count[n], total[n]
        for i in range(p):
            plus = i == q or (c >> i) & 1 == 1
            rhs[i] += amount if plus else -amount
            for j in range(i + 1):
                same = plus == (j == q or (c >> j) & 1 == 1)
                gram[i, j] += number if same else -number
    for i in range(p):
        for j in range(i):
            gram[j, i] = gram[i, j]
    _solve(gram, rhs, p, x, work[0], work[1])


@kernel
def _levels(x: Any, q: int, offset: bool, level: Any) -> None:
    """level[code] = offset + Σ ± scale, in float64."""
    low = x[q] if offset else 0.0
    for i in range(q):
        low -= x[i]
    level[0] = low
    for i in range(q):
        for c in range(1 << i):
            level[c + (1 << i)] = level[c] + 2.0 * x[i]


@kernel
def _sort(level: Any, order: Any, size: int) -> Any:
    """Codes by ascending level, equal levels by code; tells whether ``order`` has changed."""
    moved = False
    for n in range(1, size):
        c = order[n]
        value = level[c]
        at = n
        while at > 0:
            other = order[at - 1]
            if level[other] < value or (level[other] == value and other < c):
                break
            order[at] = other
            at -= 1
        if at != n:
            order[at] = c
            moved = True
    return moved


@kernel
def _thresholds(level: Any, order: Any, size: int, out: Any) -> None:
    """Midpoints of neighbouring levels, rounded *up* in the precision of the weights: w ≥ midpoint stays as it is."""
    for n in range(size - 1):
        low, high = level[order[n]], level[order[n + 1]]
        middle = low + (high - low) / 2.0
        t = out.dtype.type(middle)
        if np.float64(t) < middle:
            t = np.nextafter(t, out.dtype.type(np.inf))
        out[n] = t


@kernel
def _bisect(limits: Any, size: int, value: Any) -> int:
    """#{limits ≤ value}."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        if limits[middle] <= value:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def _scaled(group: Any, out: Any) -> Any:
    """Weights over the power of two below their largest magnitude, padded to whole lanes; the exponent."""
    most = 0.0
    bad = False
    for j in range(group.size):
        value = abs(np.float64(group[j]))
        bad |= value - value != 0.0
        most = max(most, value)
    unit = 0
    if most > 0.0 and not bad:
        _, unit = math.frexp(most)
        unit -= 1
    first = -unit // 2
    a, b = math.ldexp(1.0, first), math.ldexp(1.0, -unit - first)
    for j in range(group.size):
        out[j] = np.float64(group[j]) * a * b
    for j in range(group.size, out.size):
        out[j] = -np.inf  # reaches no threshold
    return unit, bad


@kernel
def _count(
    v: Any, g: int, limits: Any, order: Any, size: int, upper: Any, sums: Any, whole: float, count: Any, total: Any
) -> None:
    """Count and sum of the weights of every level, in the order of levels."""
    padded = (size - 1 + THRESHOLDS - 1) // THRESHOLDS * THRESHOLDS
    for t in range(padded):
        upper[t] = 0
        sums[t] = 0.0
    for start in range(0, g, CHUNK):
        part = v[start : start + CHUNK]
        rounds = (part.size + LANES - 1) // LANES
        for t in range(0, size - 1, THRESHOLDS):
            upper_sums(part, rounds, limits, upper, sums, t)
    count[0], total[0] = g - upper[0], whole - sums[0]
    for t in range(1, size - 1):
        count[t], total[t] = upper[t - 1] - upper[t], sums[t - 1] - sums[t]
    count[size - 1], total[size - 1] = upper[size - 2], sums[size - 2]


@kernel
def _tally(v: Any, g: int, codes: Any, size: int, count: Any, total: Any) -> None:
    """Count and sum of the weights of every code."""
    for c in range(size):
        count[c] = 0
        total[c] = 0.0
    for j in range(g):
        count[codes[j]] += 1
        total[codes[j]] += np.float64(v[j])


@kernel
def _start(v: Any, g: int, q: int, offset: bool, refined: bool, codes: Any, x: Any, r: Any, own: Any) -> None:
    """Greedy planes of one group, with their scales.  (B.2), (B.3), (B.5)"""
    count, total, level, identity, gram, rhs, work = own
    x[q] = 0.0
    if offset:
        whole = 0.0
        for j in range(g):
            whole += np.float64(v[j])
        x[q] = whole / max(g, 1)
    for j in range(g):
        r[j] = np.float64(v[j]) - x[q]
        codes[j] = 0
    for i in range(q):
        size = 0.0
        for j in range(g):
            size += abs(np.float64(r[j]))
            codes[j] |= np.int32(r[j] >= 0) << np.int32(i)
        x[i] = size / max(g, 1)
        if refined:
            planes = i + 1
            _tally(v, g, codes, 1 << planes, count, total)
            kept = x[q]
            _fit(count, total, identity, 1 << planes, planes, offset, x, gram, rhs, work)
            fitted = x[planes] if offset else kept
            _levels(x, planes, offset, level)
            x[q] = fitted
            for j in range(g):
                r[j] = np.float64(v[j]) - level[codes[j]]
        else:
            alpha = r.dtype.type(x[i])
            for j in range(g):
                r[j] -= alpha if r[j] >= 0 else -alpha


@kernel
def _canonical(x: Any, q: int, size: int, rename: Any) -> None:
    """Scales ≥ 0 and descending; ``rename`` maps old codes to new ones."""
    for c in range(size):
        rename[c] = c
    for i in range(q):
        if x[i] < 0.0:
            x[i] = -x[i]
            for c in range(size):
                rename[c] ^= 1 << i
    for i in range(1, q):
        at = i
        while at > 0 and x[at - 1] < x[at]:
            x[at - 1], x[at] = x[at], x[at - 1]
            for c in range(size):
                low, high = (rename[c] >> (at - 1)) & 1, (rename[c] >> at) & 1
                if low != high:
                    rename[c] ^= 3 << (at - 1)
            at -= 1


@kernel
def _place(v: Any, g: int, limits: Any, size: int, name: Any, codes: Any) -> None:
    """codes[j] = name[#{limits ≤ v[j]}]"""
    if size <= 16:
        for j in range(g):
            codes[j] = 0
        for t in range(size - 1):
            limit = limits[t]
            for j in range(g):
                codes[j] += np.int32(v[j] >= limit)
        for j in range(g):
            codes[j] = name[codes[j]]
    else:
        for j in range(g):
            codes[j] = name[_bisect(limits, size - 1, v[j])]


@kernel
def fit_groups(w: Any, q: int, method: int, rounds: int, offset: bool, codes: Any, scale: Any, shift: Any) -> Any:
    """Codes and scales of groups (n, g); False as soon as a weight is not finite."""
    n, g = w.shape
    size = 1 << q
    v = np.empty((g + LANES - 1) // LANES * LANES, w.dtype)
    r = np.empty(g, w.dtype)
    x = np.zeros(q + 1)
    count, total = np.zeros(size, np.int64), np.zeros(size)
    upper, sums = np.zeros(size + THRESHOLDS, np.int64), np.zeros(size + THRESHOLDS)
    before = np.zeros(size, np.int64)
    level, order, rename = np.zeros(size), np.arange(size), np.arange(size)
    identity = np.arange(size)
    limits = np.full(size + THRESHOLDS, np.inf, w.dtype)
    gram, rhs, work = np.zeros((q + 1, q + 1)), np.zeros(q + 1), np.zeros((2, q + 1, q + 1))
    own = (count, total, level, identity, gram, rhs, work)
    for group in range(n):
        unit, bad = _scaled(w[group], v)
        if bad:
            return False
        mine = codes[group]
        _start(v, g, q, offset, method == REFINED, mine, x, r, own)
        if method == ALTERNATING:
            whole = 0.0
            for j in range(g):
                whole += np.float64(v[j])
            _tally(v, g, mine, size, count, total)
            _fit(count, total, identity, size, q, offset, x, gram, rhs, work)
            for c in range(size):
                order[c] = c
            for turn in range(rounds):
                _levels(x, q, offset, level)
                moved = _sort(level, order, size)
                _thresholds(level, order, size, limits)
                _count(v, g, limits, order, size, upper, sums, whole, count, total)
                same = turn > 0 and not moved
                for c in range(size):
                    same = same and count[c] == before[c]
                    before[c] = count[c]
                if same:  # a fixed point
                    break
                _fit(count, total, order, size, q, offset, x, gram, rhs, work)
            _canonical(x, q, size, rename)
            if rounds:
                for c in range(size):
                    identity[c] = rename[order[c]]
                _place(v, g, limits, size, identity, mine)
                for c in range(size):
                    identity[c] = c
            else:
                for j in range(g):
                    mine[j] = rename[mine[j]]
        for i in range(q):
            scale[group, i] = math.ldexp(x[i], unit)
        shift[group] = math.ldexp(x[q], unit) if offset else 0.0
    return True


@kernel
def refit_groups(w: Any, codes: Any, q: int, offset: bool, scale: Any, shift: Any) -> Any:
    n, g = w.shape
    size = 1 << q
    v = np.empty(g, w.dtype)
    x, count, total = np.zeros(q + 1), np.zeros(size, np.int64), np.zeros(size)
    identity = np.arange(size)
    gram, rhs, work = np.zeros((q + 1, q + 1)), np.zeros(q + 1), np.zeros((2, q + 1, q + 1))
    for group in range(n):
        unit, bad = _scaled(w[group], v)
        if bad:
            return False
        _tally(v, g, codes[group], size, count, total)
        _fit(count, total, identity, size, q, offset, x, gram, rhs, work)
        for i in range(q):
            scale[group, i] = math.ldexp(x[i], unit)
        shift[group] = math.ldexp(x[q], unit) if offset else 0.0
    return True


@kernel
def assign_groups(w: Any, scale: Any, shift: Any, q: int, codes: Any) -> Any:
    n, g = w.shape
    size = 1 << q
    x, level, order = np.zeros(q + 1), np.zeros(size), np.arange(size)
    limits = np.full(size, np.inf, w.dtype)
    for group in range(n):
        for j in range(g):
            if w[group, j] - w[group, j] != 0.0:
                return False
        for i in range(q):
            x[i] = scale[group, i]
        x[q] = shift[group]
        _levels(x, q, True, level)
        for c in range(size):
            order[c] = c
        _sort(level, order, size)
        _thresholds(level, order, size, limits)
        _place(w[group], g, limits, size, order, codes[group])
    return True


@kernel
def value_groups(codes: Any, scale: Any, shift: Any, q: int, out: Any) -> Any:
    n, g = codes.shape
    size = 1 << q
    x, level = np.zeros(q + 1), np.zeros(size)
    for group in range(n):
        for i in range(q):
            x[i] = scale[group, i]
        x[q] = shift[group]
        _levels(x, q, True, level)
        seen = np.int32(0)
        for j in range(g):
            seen |= codes[group, j]
            out[group, j] = level[codes[group, j] & (size - 1)]
        if seen < 0 or seen >= size:
            return False
    return True
