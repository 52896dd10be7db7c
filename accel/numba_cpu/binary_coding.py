"""B: binary codes, their planes, and the product by tables, after :mod:`lowbit.reference.binary_coding`.

Fitting keeps of a group what the scales depend on, and no more: for the 2^q − 1 thresholds between levels, how many
weights reach each and what they sum to. A round reads the group once for that, and everything else of it, Gram matrix,
solve, levels, is arithmetic on a handful of numbers. Codes are written once, at the end.

The product has two kernels, and :func:`product_path` says which one a call would take.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from lowbit.accel.boundary import binary_groups, check_binary_scale, check_bits, check_planes, code_range
from lowbit.reference.errors import SpecError
from lowbit.reference.types import (
    BINARY_METHODS,
    PRODUCT_METHODS,
    BinaryCode,
    BinaryMethod,
    PackedBinary,
    ProductMethod,
    Scheme,
)

from ._arrays import Array, fixed, integers, refuse_bad, weights, working_dtype
from ._jit import claim, kernel, pieces, share, share_claims
from ._lookup import LANES as ROWS
from ._lookup import add_strip, build_tables, has_permutes, permuted_strip
from ._vector import LANES, THRESHOLDS, upper_sums
from .uniform import _affine

__all__ = [
    "bcq",
    "bcq_assign",
    "bcq_from_grid",
    "bcq_pack",
    "bcq_product",
    "bcq_refit",
    "bcq_unpack",
    "bcq_weight",
    "lookup_tables",
    "product_path",
]

RANK_CUT = 2.0**-12
"""Below this an eigenvalue, or a pivot, of the Gram matrix of at most nine ±1 columns is 0: no other is that small."""
GREEDY, REFINED, ALTERNATING = range(3)
CHUNK = 4096  # values whose upper sums are kept in the precision of the data; chunks are added in float64
WORDS = 4  # packed words (128 columns) of a strip: their tables stay in the first-level cache
STRIP = 1024  # rows of a strip
SMALL = {"avx512": 1 << 20, "portable": 1 << 17}  # words of a product that is not worth waking a second thread for
TILE = 512  # columns of the weight that are expanded at a time
LOOKUPS = {"avx512": 80, "portable": 24}  # planes times inputs up to which looking up beats a dense product


# --- fitting ----------------------------------------------------------------------------------------------------------


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
def _fit_groups(w: Any, q: int, method: int, rounds: int, offset: bool, codes: Any, scale: Any, shift: Any) -> Any:
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
def _refit_groups(w: Any, codes: Any, q: int, offset: bool, scale: Any, shift: Any) -> Any:
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
def _assign_groups(w: Any, scale: Any, shift: Any, q: int, codes: Any) -> Any:
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
def _value_groups(codes: Any, scale: Any, shift: Any, q: int, out: Any) -> Any:
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


def _run_groups(n: int, g: int, task: Callable[[slice], bool]) -> bool:
    """Run a kernel on pieces of groups; whether all of them say True."""
    parts = pieces(n, g, elements=1 << 15)
    fine = [True] * len(parts)

    def work(i: int) -> None:
        fine[i] = bool(task(slice(*parts[i])))

    share(len(parts), work)
    return all(fine)


def _flag(clause: str, name: str, value: bool) -> bool:
    if value not in (False, True):
        raise SpecError(clause, f"{name} must be False or True, got {value!r}")
    return bool(value)


def _matrix(clause: str, name: str, x: Any) -> Array:
    a = weights(clause, name, x)
    if a.ndim != 2:
        raise SpecError(clause, f"{name} must have 2 dimensions, got shape {a.shape}")
    return a


def _codes(clause: str, codes: Any, shape: tuple[int, ...] | None, q: int) -> Array:
    """Codes of q planes as int32, of the given shape."""
    c = integers(clause, "codes", codes)
    if c.ndim != 2 or (shape is not None and c.shape != shape):
        raise SpecError(clause, f"codes of shape {c.shape} must have shape {shape or '(m, k)'}")
    _refuse_codes(clause, c, 0, 2**q - 1)
    return c


def _refuse_codes(clause: str, codes: Array, first: int, last: int) -> None:
    if codes.size and (codes.min() < first or codes.max() > last):
        i, j = (int(n) for n in np.argwhere((codes < first) | (codes > last))[0])
        raise SpecError(clause, f"code {codes[i, j]} at ({i}, {j}) is outside {first}..{last}")


def _scales(clause: str, scale: Any, offset: Any, shape: tuple[int, ...]) -> tuple[Array, Array | None, int, int]:
    """Checked scale (m, G, q) and offset (m, G); groups and planes."""
    s = weights(clause, "scale", scale)
    o = None if offset is None else weights(clause, "offset", offset)
    _, groups, q = check_binary_scale(clause, shape, s.shape, None if o is None else o.shape)
    dtype = working_dtype(s) if o is None else working_dtype(s, o)
    s = fixed(s, dtype)
    refuse_bad(clause, "scale", s)
    if o is not None:
        o = fixed(o, dtype)
        refuse_bad(clause, "offset", o)
    return s, o, groups, q


def bcq(
    w: Array,
    /,
    *,
    bits: int,
    group_size: int | None = None,
    method: BinaryMethod = "alternating",
    rounds: int = 15,
    offset: bool = False,
) -> BinaryCode[Array]:
    """Binary code of a weight.  [B-1, B-2, B-3]

    Args:
        w: float16, float32 or float64, (m, k).
        bits: planes, 1 to 8.
        group_size: columns that share scales, a divisor of k; None for a row.
        method: "greedy", "refined" or "alternating".
        rounds: of assignment and least squares ("alternating").
        offset: whether groups have one.

    Returns:
        int32 codes (m, k), scales (m, G, bits) and offsets (m, G), or None, of w's precision.

    Raises:
        SpecError: B-1 or B-3 for arguments that make no code, A-4 for NaN and infinities.
    """
    check_planes("B-1", "bits", bits)
    if method not in BINARY_METHODS:
        raise SpecError("B-1", f"method must be one of {', '.join(BINARY_METHODS)}, got {method!r}")
    if isinstance(rounds, bool) or not isinstance(rounds, (int, np.integer)) or rounds < 0:
        raise SpecError("B-3", f"rounds must be an integer of at least 0, got {rounds!r}")
    shifted = _flag("B-1", "offset", offset)
    given = _matrix("B-1", "w", w)
    m, k = given.shape
    groups = binary_groups("B-1", k, group_size)
    source = fixed(given, working_dtype(given))
    n, g = m * groups, k // groups if groups else 0
    values = source.reshape(n, g)
    codes, scale = np.empty((m, k), np.int32), np.zeros((m, groups, bits), source.dtype)
    shift = np.zeros((m, groups), source.dtype)
    flat = codes.reshape(n, g), scale.reshape(n, bits), shift.reshape(n)
    kind = BINARY_METHODS.index(method)
    if not _run_groups(
        n, g, lambda p: _fit_groups(values[p], bits, kind, int(rounds), shifted, flat[0][p], flat[1][p], flat[2][p])
    ):
        refuse_bad("B-1", "w", source)
    return BinaryCode(codes, scale, shift if shifted else None)


def bcq_refit(
    w: Array, codes: Array, /, *, bits: int, group_size: int | None = None, offset: bool = False
) -> BinaryCode[Array]:
    """Least-squares scales of given codes.  [B-4]

    Args:
        w: float16, float32 or float64, (m, k).
        codes: integers 0 … 2^bits − 1, (m, k).
        bits, group_size, offset: as in :func:`bcq`.

    Returns:
        the codes, with scales and offsets as in :func:`bcq`; scales of any sign.

    Raises:
        SpecError: B-4 for arguments that do not fit, A-4 for NaN and infinities.
    """
    check_planes("B-4", "bits", bits)
    shifted = _flag("B-4", "offset", offset)
    given = _matrix("B-4", "w", w)
    m, k = given.shape
    kept = _codes("B-4", codes, given.shape, bits)
    groups = binary_groups("B-4", k, group_size)
    source = fixed(given, working_dtype(given))
    n, g = m * groups, k // groups if groups else 0
    values, marks = source.reshape(n, g), kept.reshape(n, g)
    scale, shift = np.zeros((m, groups, bits), source.dtype), np.zeros((m, groups), source.dtype)
    flat = scale.reshape(n, bits), shift.reshape(n)
    if not _run_groups(n, g, lambda p: _refit_groups(values[p], marks[p], bits, shifted, flat[0][p], flat[1][p])):
        refuse_bad("B-4", "w", source)
    return BinaryCode(kept.copy(), scale, shift if shifted else None)


def bcq_assign(w: Array, scale: Array, offset: Array | None, /) -> Array:
    """Codes of the nearest levels; a midpoint goes to the larger one.  [B-5]

    Args:
        w: float16, float32 or float64, (m, k).
        scale: (m, G, q), any sign and order.
        offset: (m, G) or None.

    Returns:
        int32, (m, k).

    Raises:
        SpecError: B-5 for scales that do not cover w, A-4 for NaN and infinities.
    """
    given = _matrix("B-5", "w", w)
    s, o, groups, q = _scales("B-5", scale, offset, given.shape)
    source = fixed(given, working_dtype(given))
    m, k = source.shape
    n, g = m * groups, k // groups if groups else 0
    shift = fixed(np.zeros((m, groups), s.dtype) if o is None else o)
    values, alpha, o = source.reshape(n, g), s.reshape(n, q), shift.reshape(n)
    codes = np.empty((m, k), np.int32)
    flat = codes.reshape(n, g)
    if not _run_groups(n, g, lambda p: _assign_groups(values[p], alpha[p], o[p], q, flat[p])):
        refuse_bad("B-5", "w", source)
    return codes


def bcq_weight(codes: Array, scale: Array, offset: Array | None, /) -> Array:
    """Values offset + Σ ± scale of codes.  [B-6]

    Args:
        codes: integers 0 … 2^q − 1, (m, k).
        scale: (m, G, q).
        offset: (m, G) or None.

    Returns:
        (m, k), precision of the scale.

    Raises:
        SpecError: B-6 for codes or scales that do not fit, A-4 for NaN and infinities.
    """
    c = integers("B-6", "codes", codes)
    s, o, groups, q = _scales("B-6", scale, offset, c.shape)
    m, k = c.shape
    n, g = m * groups, k // groups if groups else 0
    shift = fixed(np.zeros((m, groups), s.dtype) if o is None else o).reshape(n)
    marks, alpha = c.reshape(n, g), s.reshape(n, q)
    values = np.empty((m, k), s.dtype)
    flat = values.reshape(n, g)
    if not _run_groups(n, g, lambda p: _value_groups(marks[p], alpha[p], shift[p], q, flat[p])):
        _refuse_codes("B-6", c, 0, 2**q - 1)
    return values


def bcq_from_grid(
    codes: Array, scale: Array, zero_point: Array, /, *, bits: int, scheme: Scheme = "asymmetric"
) -> BinaryCode[Array]:
    """A uniform grid as a binary code: scale_i = s·2^(i−1), and an offset.  [B-7]

    Args:
        codes: integers of the grid, (m, k).
        scale: above 0, (m, G), or with one row or one column.
        zero_point: integers, the shape of scale.
        bits, scheme: of the grid.

    Returns:
        codes from 0, scales (m, G, bits) and offsets (m, G).

    Raises:
        SpecError: Q-1 or B-7 for a grid that does not fit the codes, A-4 for NaN and infinities.
    """
    check_bits(bits, scheme)
    first, last = code_range(bits, scheme)
    c = integers("B-7", "codes", codes)
    if c.ndim != 2:
        raise SpecError("B-7", f"codes must have 2 dimensions, got shape {c.shape}")
    flat_scale, flat_zero, _ = _affine("B-7", scale, zero_point, c.shape)
    _refuse_codes("B-7", c, first, last)
    shape = (c.shape[0], np.shape(scale)[-1])
    s, z = flat_scale.reshape(shape), flat_zero.reshape(shape)
    alpha = s[..., None] * np.ldexp(s.dtype.type(1), np.arange(bits) - 1).astype(s.dtype)
    shift = s.astype(np.float64) * ((2**bits - 1) / 2 + first - z.astype(np.float64))
    return BinaryCode(c - np.int32(first), alpha, shift.astype(s.dtype))


# --- planes -----------------------------------------------------------------------------------------------------------


@cache
def _packer(q: int) -> Callable[..., Any]:
    def pack_words(codes: Any, planes: Any) -> Any:
        m, k = codes.shape
        seen = np.int32(0)
        for row in range(m):
            for n in range(planes.shape[0]):
                last = min(32, k - 32 * n)
                part = codes[row, 32 * n : 32 * n + last]
                for i in range(q):
                    word = np.uint32(0)
                    for j in range(last):
                        word |= np.uint32((part[j] >> np.int32(i)) & np.int32(1)) << np.uint32(j)
                    planes[n, i, row] = np.int32(word)
                for j in range(last):
                    seen |= part[j]
        return seen

    return kernel(pack_words)


@cache
def _unpacker(q: int) -> Callable[..., Any]:
    def unpack_words(planes: Any, codes: Any) -> None:
        m, k = codes.shape
        for row in range(m):
            for n in range(planes.shape[0]):
                last = min(32, k - 32 * n)
                part = codes[row, 32 * n : 32 * n + last]
                for j in range(last):
                    part[j] = 0
                for i in range(q):
                    word = np.uint32(planes[n, i, row])
                    for j in range(last):
                        part[j] |= np.int32((word >> np.uint32(j)) & np.uint32(1)) << np.int32(i)

    return kernel(unpack_words)


def bcq_pack(codes: Array, scale: Array, offset: Array | None, /) -> PackedBinary[Array]:
    """Bit planes as the product reads them, rows running fastest.  [B-8]

    Args:
        codes: integers 0 … 2^q − 1, (m, k).
        scale: (m, G, q).
        offset: (m, G) or None.

    Returns:
        int32 planes (⌈k/32⌉, q, m), scale (G, q, m), offset (G, m) or None.

    Raises:
        SpecError: B-8 for codes or scales that do not fit, A-4 for NaN and infinities.
    """
    c = integers("B-8", "codes", codes)
    s, o, _, q = _scales("B-8", scale, offset, c.shape)
    m, k = c.shape
    planes = np.zeros((-(-k // 32), q, m), np.int32)
    parts = pieces(m, k)
    seen = [0] * len(parts)
    run = _packer(q)

    def work(i: int) -> None:
        rows = slice(*parts[i])
        seen[i] = int(run(c[rows], planes[..., rows]))

    share(len(parts), work)
    if any(mark < 0 or mark >= 2**q for mark in seen):
        _refuse_codes("B-8", c, 0, 2**q - 1)
    return PackedBinary(
        planes, np.ascontiguousarray(s.transpose(1, 2, 0)), None if o is None else np.ascontiguousarray(o.T)
    )


def _packed(clause: str, planes: Any, scale: Any, offset: Any, k: int) -> tuple[Array, Array, Array | None]:
    """Planes (words, q, m), scale (G, q, m) and offset (G, m) of shapes that fit, in one precision."""
    p = integers(clause, "planes", planes)
    if p.ndim != 3:
        raise SpecError(clause, f"planes must have shape (words, planes, rows), got {p.shape}")
    s = weights(clause, "scale", scale)
    o = None if offset is None else weights(clause, "offset", offset)
    if s.ndim != 3:
        raise SpecError(clause, f"scale must have shape (groups, planes, rows), got {s.shape}")
    groups, q, m = s.shape
    check_binary_scale(clause, (p.shape[2], k), (m, groups, q), None if o is None else o.shape[::-1])
    if p.shape != (-(-k // 32), q, m):
        raise SpecError(clause, f"{k} columns take planes of shape {(-(-k // 32), q, m)}, got {p.shape}")
    dtype = working_dtype(s) if o is None else working_dtype(s, o)
    return p, fixed(s, dtype), None if o is None else fixed(o, dtype)


def _refuse_values(clause: str, **values: Array | None) -> None:
    """Refuse NaN and infinities in any of the arrays."""
    for name, value in values.items():
        if value is not None:
            refuse_bad(clause, name, value)


def _unpacked(planes: Array, k: int) -> Array:
    _, q, m = planes.shape
    codes = np.empty((m, k), np.int32)
    run = _unpacker(q)
    parts = pieces(m, k)
    share(len(parts), lambda i: run(planes[..., slice(*parts[i])], codes[slice(*parts[i])]))
    return codes


def bcq_unpack(planes: Array, scale: Array, offset: Array | None, /, *, length: int) -> BinaryCode[Array]:
    """The code that was packed.  [B-8]

    Args:
        planes: int32, (⌈length/32⌉, q, m); bits beyond the length are not looked at.
        scale: (G, q, m).
        offset: (G, m) or None.
        length: columns.

    Returns:
        codes (m, length), scale (m, G, q), offset (m, G) or None.

    Raises:
        SpecError: B-8 for shapes that do not fit, A-4 for NaN and infinities.
    """
    if isinstance(length, bool) or not isinstance(length, (int, np.integer)) or length < 0:
        raise SpecError("B-8", f"length must be an integer of at least 0, got {length!r}")
    p, s, o = _packed("B-8", planes, scale, offset, int(length))
    _refuse_values("B-8", scale=s, offset=o)
    return BinaryCode(
        _unpacked(p, int(length)),
        np.ascontiguousarray(s.transpose(2, 0, 1)),
        None if o is None else np.ascontiguousarray(o.T),
    )


# --- products ---------------------------------------------------------------------------------------------------------


@kernel
def _all_tables(x: Any, width: int, full: bool, out: Any) -> None:
    size = 1 << width
    tables = (x.shape[1] + width - 1) // width
    work = np.empty(size, x.dtype)
    for t in range(x.shape[0]):
        for c in range(tables):
            build_tables(x[t], 0, x.shape[1], c * width, width, work, 0, 1)
            for i in range(size if full else size // 2):
                out[t, c, i] = work[i]


def lookup_tables(x: Array, /, *, width: int = 8, half: bool = False) -> Array:
    """All signed sums of every ``width`` consecutive inputs.  [B-9]

    Args:
        x: float16, float32 or float64, (t, k).
        width: inputs of a table, 1 to 16.
        half: first half of every table only; the other one is its negative in reverse.

    Returns:
        (t, ⌈k/width⌉, 2^width), or half as many entries, of x's precision.

    Raises:
        SpecError: B-9 for a width that does not exist, A-4 for NaN and infinities.
    """
    check_planes("B-9", "width", width, 16)
    halved = _flag("B-9", "half", half)
    given = _matrix("B-9", "x", x)
    source = fixed(given, working_dtype(given))
    refuse_bad("B-9", "x", source)
    t, k = source.shape
    out = np.empty((t, -(-k // width), 2 ** (width - halved)), source.dtype)
    _all_tables(source, width, not halved, out)
    return out


@cache
def _plan(k: int, groups: int) -> Array:
    """The blocks of a shape, int64 (blocks, 4)."""
    blocks = np.empty((groups * (k // groups // (32 * WORDS) + 2), 4), np.int64)
    return fixed(blocks[: _blocks(k, groups, blocks)])


@kernel
def _blocks(k: int, groups: int, out: Any) -> int:
    """Blocks of at most WORDS words of one group: first word, words, group, first table word; how many there are.

    A word on the border of two groups belongs to a block of each, with tables that are 0 for the other's columns.
    """
    g = k // groups
    number, place = 0, 0
    for group in range(groups):
        word, end = group * g // 32, (group * g + g + 31) // 32
        while word < end:
            count = min(WORDS, end - word)
            out[number, 0], out[number, 1], out[number, 2], out[number, 3] = word, count, group, place
            number += 1
            word += count
            place += count
    return number


@kernel
def _fill_tables(x: Any, k: int, groups: int, blocks: Any, width: int, out: Any, sums: Any) -> None:
    """Tables of every block, and the sum of the inputs of every group unless nobody asks (``sums`` is empty)."""
    g = k // groups
    per_word = 32 // width
    for b in range(blocks.shape[0]):
        word, count, group, place = blocks[b, 0], blocks[b, 1], blocks[b, 2], blocks[b, 3]
        start = place * per_word * (1 << width)
        build_tables(x, group * g, group * g + g, word * 32, width, out, start, count * per_word)
    for group in range(sums.size):
        total = 0.0
        for j in range(group * g, group * g + g):
            total += np.float64(x[j])
        sums[group] = total


@kernel
def _shift_rows(shift: Any, sums: Any, r0: int, r1: int, out: Any) -> None:
    """out[row] += Σ_groups offset · Σ x."""
    for group in range(shift.shape[0]):
        amount = sums[group]
        row = shift[group]
        for r in range(r0, r1):
            out[r] += row[r] * amount


@kernel
def _strips(
    planes: Any, scale: Any, q: int, m: int, r0: int, r1: int, blocks: Any, tables: Any, out: Any, work: Any
) -> None:
    """Rows r0 … r1 − 1 of one product, by tables of eight inputs."""
    for b in range(blocks.shape[0]):
        word, count, group, place = blocks[b, 0], blocks[b, 1], blocks[b, 2], blocks[b, 3]
        add_strip(
            planes, word * q * m + r0, q * m, m, count, q, r1 - r0,
            tables, place * 1024, scale, group * q * m + r0, m, work, out, r0,
        )  # fmt: skip


@kernel
def _permuted_strips(
    planes: Any, scale: Any, q: int, m: int, rows: int, strip: int, blocks: Any, tables: Any, outs: Any, turn: Any
) -> None:
    """The first ``rows`` rows of the products with all inputs, by tables of four in registers, strip by strip as
    claimed; ``rows`` and ``strip`` are multiples of 16.
    """
    r0 = claim(turn) * strip
    while r0 < rows:
        r1 = min(r0 + strip, rows)
        for b in range(blocks.shape[0]):
            word, count, group, place = blocks[b, 0], blocks[b, 1], blocks[b, 2], blocks[b, 3]
            ahead = q * m * count if (word + 2 * count) * q * m <= planes.size else 0
            for t in range(outs.shape[0]):
                permuted_strip(
                    planes, word * q * m + r0, q * m, m, count, q, (r1 - r0) // ROWS,
                    tables[t], place * 128, scale, group * q * m + r0, m, outs[t], r0, ahead,
                )  # fmt: skip
        r0 = claim(turn) * strip


def product_path(dtype: Any = np.float32, *, inputs: int = 1, bits: int = 1, method: ProductMethod = "auto") -> str:
    """What :func:`bcq_product` would run: "avx512", "portable" or "dequantize".

    Args:
        dtype: precision of inputs and scales.
        inputs: rows of x.
        bits: planes of the weight.
        method: as asked of the product.
    """
    path = "avx512" if np.dtype(dtype) != np.float64 and has_permutes() else "portable"
    if method == "dequantize" or (method == "auto" and inputs * bits > LOOKUPS[path]):
        return "dequantize"
    return path


def bcq_product(
    x: Array, planes: Array, scale: Array, offset: Array | None, /, *, method: ProductMethod = "auto"
) -> Array:
    """y = x Ŵᵀ from packed planes.  [B-10]

    Args:
        x: float16, float32 or float64, (t, k).
        planes: int32, (⌈k/32⌉, q, m), of :func:`bcq_pack`; bits beyond k are not looked at.
        scale: (G, q, m).
        offset: (G, m) or None.
        method: "lookup", "dequantize", or "auto", which looks up for few inputs.

    Returns:
        (t, m), precision of x and scale.

    Raises:
        SpecError: B-10 for shapes that do not fit, A-4 for NaN and infinities.
    """
    if method not in PRODUCT_METHODS:
        raise SpecError("B-10", f"method must be one of {', '.join(PRODUCT_METHODS)}, got {method!r}")
    given = _matrix("B-10", "x", x)
    t, k = given.shape
    p, s, o = _packed("B-10", planes, scale, offset, k)
    dtype = working_dtype(given, s)
    source, s = fixed(given, dtype), fixed(s, dtype)
    o = None if o is None else fixed(o, dtype)
    y = np.zeros((t, s.shape[2]), dtype)
    if y.size and k:
        path = product_path(dtype, inputs=t, bits=s.shape[1], method=method)
        (_dense_product if path == "dequantize" else _lookup_product)(source, p, s, o, y)
        if bool(np.isfinite(y).all()):  # a bad input or scale would have spoiled an output: no pass over the scales
            return y
    _refuse_values("B-10", x=source, scale=s, offset=o)
    return y


def _lookup_product(source: Array, p: Array, s: Array, o: Array | None, y: Array) -> None:
    """y += x Ŵᵀ by tables."""
    (t, k), (groups, q, m), dtype = source.shape, s.shape, y.dtype
    path = product_path(dtype, method="lookup")
    width = 4 if path == "avx512" else 8
    blocks = _plan(k, groups)
    spread = int(blocks[-1, 3] + blocks[-1, 1]) * (32 // width) * 2**width
    tables, sums = np.empty((t, spread), dtype), np.empty((t, 0 if o is None else groups), dtype)
    for n in range(t):
        _fill_tables(source[n], k, groups, blocks, width, tables[n], sums[n])
    words, alpha = p.reshape(-1), s.reshape(-1)
    strip = STRIP if p.size * t > SMALL[path] else m
    whole = m - m % ROWS if path == "avx512" else 0
    if whole:
        share_claims(
            -(-whole // strip),
            lambda turn: _permuted_strips(words, alpha, q, m, whole, strip, blocks, tables, y, turn),
        )
    if whole < m:
        parts = pieces(m - whole, 1, elements=strip)

        def work(i: int) -> None:
            _finish(source, words, alpha, q, m, whole + parts[i][0], whole + parts[i][1], blocks, tables, width, y)

        share(len(parts), work)
    if o is not None:
        for n in range(t):
            _shift_rows(o, sums[n], 0, m, y[n])


def _finish(
    x: Array, words: Array, alpha: Array, q: int, m: int, r0: int, r1: int, blocks: Array, tables: Array, width: int,
    y: Array,
) -> None:  # fmt: skip
    """Rows by the portable kernel: all of them, or the fewer than 16 that registers leave over."""
    groups = alpha.size // (q * m)
    buffer = np.empty(r1 - r0, y.dtype)
    for n in range(len(y)):
        own = tables[n]
        if width != 8:
            own = np.empty(int(blocks[-1, 3] + blocks[-1, 1]) * 1024, y.dtype)
            _fill_tables(x[n], x.shape[1], groups, blocks, 8, own, np.empty(0, y.dtype))
        _strips(words, alpha, q, m, r0, r1, blocks, own, y[n], buffer)


@kernel
def _expand(planes: Any, scale: Any, shift: Any, g: int, k0: int, k1: int, r0: int, r1: int, out: Any) -> None:
    """Columns k0 … k1 − 1 of rows r0 … r1 − 1 of the weight, transposed: out (k1 − k0, r1 − r0)."""
    q = scale.shape[1]
    rows = r1 - r0
    for j in range(k0, k1):
        group, word, bit = j // g, j // 32, np.uint32(j % 32)
        line = out[j - k0]
        own = shift[group, r0:r1]
        for r in range(rows):
            line[r] = own[r]
        for i in range(q):
            keys, alpha = planes[word, i, r0:r1], scale[group, i, r0:r1]
            for r in range(rows):
                line[r] += alpha[r] if (np.uint32(keys[r]) >> bit) & np.uint32(1) else -alpha[r]


def _dense_product(x: Array, planes: Array, scale: Array, offset: Array | None, y: Array) -> None:
    """Tiles of the weight in cache, multiplied by the library's matrix product."""
    k = x.shape[1]
    shift = fixed(np.zeros((len(scale), scale.shape[2]), scale.dtype) if offset is None else offset)
    parts = pieces(y.shape[1], 1, elements=256)
    g = k // len(scale)

    def work(i: int) -> None:
        r0, r1 = parts[i]
        tile = np.empty((min(k, TILE), r1 - r0), y.dtype)
        for k0 in range(0, k, TILE):
            k1 = min(k0 + TILE, k)
            part = tile[: k1 - k0]
            _expand(planes, scale, shift, g, k0, k1, r0, r1, part)
            y[:, r0:r1] += x[:, k0:k1] @ part

    share(len(parts), work)
