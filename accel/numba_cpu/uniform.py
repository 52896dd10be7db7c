"""Q: affine grids, their clip search, codes and values. The rules are those of :mod:`lowbit.reference.uniform`.

Groups are contiguous along the last axis, so every operation sees (groups, values in a group) and reads memory once.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lowbit.accel.common.uniform import check_bits, code_range, grid_groups
from lowbit.reference.errors import SpecError
from lowbit.reference.types import ClippedGrid, Granularity, Grid, ScaleDtype, Scheme

from ._arrays import Array, fixed, integers, refuse_bad, refuse_found, weights, working_dtype
from ._grid import GridRule, group_range, plan, refuse_overflow, scale_and_zero
from ._jit import as_float, as_int, by_pieces, kernel
from ._vector import LANES, lane_sum

__all__ = ["clip_search", "dequantize", "fit_grid", "quantize"]

CHUNK = 256  # values whose powers are summed in the precision of the data; chunks are added in float64, in order


@kernel
def _ranges(x: Any, low: Any, high: Any) -> None:
    for g in range(x.shape[0]):
        low[g], high[g] = group_range(x[g])


@kernel
def _grids(low: Any, high: Any, ratio: float, include_zero: bool, rule: GridRule, scale: Any, zero: Any) -> float:
    most = 0.0
    for g in range(low.size):
        s, z = scale_and_zero(np.float64(low[g]), np.float64(high[g]), ratio, include_zero, rule)
        most = max(most, s)
        scale[g], zero[g] = s, z
    return most


@kernel
def _codes(x: Any, scale: Any, zero: Any, first: float, last: float, out: Any) -> Any:
    found = False
    for g in range(x.shape[0]):
        values, codes, s, z = x[g], out[g], scale[g], np.float64(zero[g])
        for j in range(values.size):
            found |= values[j] - values[j] != 0.0
            # round(x/s) + z is exact in float64, for any int32 zero point
            codes[j] = np.int32(min(max(np.float64(np.rint(values[j] / s)) + z, first), last))
    return found


@kernel
def _values(codes: Any, scale: Any, zero: Any, out: Any) -> None:
    for g in range(codes.shape[0]):
        group, values, s, z = codes[g], out[g], np.float64(scale[g]), np.float64(zero[g])
        for j in range(group.size):
            values[j] = s * (np.float64(group[j]) - z)


@kernel
def _power32(x: Any, exponent: Any) -> Any:
    """x^exponent for float32 x ≥ 0, relative error about 1e-6 near 1: exp2(exponent · log2 x) by polynomials."""
    one = np.float32(1.0)
    bits = np.int32(as_int(x) - np.int32(0x3F3504F3))  # √½: the mantissa ends up in √½ … √2
    e = np.int32(bits >> 23)
    m = as_float(np.int32((bits & np.int32(0x007FFFFF)) + np.int32(0x3F3504F3)))
    t = (m - one) / (m + one)
    q = t * t
    series = np.float32(1 / 9)
    series = series * q + np.float32(1 / 7)
    series = series * q + np.float32(1 / 5)
    series = series * q + np.float32(1 / 3)
    log = np.float32(2.8853900817779268) * (t + t * q * series)  # 2 atanh(t) / ln 2
    y = exponent * (np.float32(e) + log)
    y = min(max(y, np.float32(-126.0)), np.float32(126.0))
    n = np.rint(y)
    f = y - n
    p = np.float32(1.5252733804059841e-05)  # ln(2)^j / j!, j = 7 … 1
    p = p * f + np.float32(1.5403530393381609e-04)
    p = p * f + np.float32(1.3333558146428443e-03)
    p = p * f + np.float32(9.618129107628477e-03)
    p = p * f + np.float32(5.5504108664821580e-02)
    p = p * f + np.float32(2.4022650695910072e-01)
    p = p * f + np.float32(6.9314718055994531e-01)
    p = p * f + one
    power = p * as_float(np.int32((np.int32(n) + np.int32(127)) << 23))
    return power if x > np.float32(1e-30) else np.float32(0.0)


@kernel
def _clipping_error(
    group: Any, s: Any, z: int, inverse: Any, norm: float, first: int, last: int, worst: float, buffer: Any
) -> float:
    """Σ (|s·(code − z) − x| · inverse)^norm over a group; infinite once above ``worst``.  [Q-5]"""
    p = group.dtype.type(norm)
    z0 = group.dtype.type(z)
    low, high = group.dtype.type(first), group.dtype.type(last)
    total = 0.0
    for start in range(0, group.size, CHUNK):
        values = group[start : start + CHUNK]
        errors = buffer[: values.size]
        for j in range(values.size):
            code = min(max(np.rint(values[j] / s) + z0, low), high)
            errors[j] = abs(s * (code - z0) - values[j]) * inverse
        if norm == 2.0:
            for j in range(errors.size):
                errors[j] = errors[j] * errors[j]
        elif norm != 1.0:
            if group.itemsize == 4:
                for j in range(errors.size):
                    errors[j] = _power32(errors[j], p)
            else:
                for j in range(errors.size):
                    errors[j] = errors[j] ** p
        total += np.float64(lane_sum(errors))
        for j in range(errors.size // LANES * LANES, errors.size):
            total += np.float64(errors[j])
        if total > worst:
            return np.inf
    return total


@kernel
def best_clipping(
    group: Any, low: float, high: float, norm: float, grid: int, steps: int, rule: GridRule, buffer: Any
) -> Any:
    """(scale, zero point, step, largest scale met) of the clipping ratio with the least error.  [Q-5]

    Errors are measured in units of the un-clipped scale, so that the power is taken of numbers near 1.
    """
    least = np.inf
    scale, zero, best, most = 1.0, np.int32(0), 0, 0.0
    inverse = group.dtype.type(1.0)
    for i in range(steps):
        s, z = scale_and_zero(low, high, 1.0 - i / grid, True, rule)
        if i == 0:
            inverse = group.dtype.type(2.0 ** -np.rint(np.log2(s)))  # a power of two: no rounding of its own
        most = max(most, s)
        error = _clipping_error(group, group.dtype.type(s), z, inverse, norm, rule.first, rule.last, least, buffer)
        if error < least:
            least, scale, zero, best = error, s, z, i
    return scale, zero, best, most


@kernel
def _search(
    x: Any, low: Any, high: Any, norm: float, grid: int, steps: int, rule: GridRule, scale: Any, zero: Any, step: Any
) -> float:
    buffer = np.empty(CHUNK, x.dtype)
    most = 0.0
    for g in range(x.shape[0]):
        lo, hi = np.float64(low[g]), np.float64(high[g])
        s, z, i, largest = best_clipping(x[g], lo, hi, norm, grid, steps, rule, buffer)
        most = max(most, largest)
        scale[g], zero[g], step[g] = s, z, i
    return most


def _number(value: float, name: str, clause: str, low: float, high: float, *, above: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise SpecError(clause, f"{name} must be a number, got {value!r}")
    if not (math.isfinite(value) and low <= value <= high) or (above and value == low):
        upper = "" if math.isinf(high) else f" and at most {high}"
        raise SpecError(clause, f"{name} must be {'above' if above else 'at least'} {low}{upper}, got {value}")
    return float(value)


def _grouped(x: Array, shape: tuple[int, ...]) -> Array:
    """x as (groups, values per group)."""
    groups = math.prod(shape)
    return x.reshape(groups, x.size // groups if groups else 0)


def group_ranges(x: Array, shape: tuple[int, ...], clause: str) -> tuple[Array, Array, Array]:
    """(groups, least of each, greatest of each); refuses NaN and infinities in the same pass.  [A-4]"""
    groups = _grouped(x, shape)
    views = [groups]
    if groups.shape[0] == 1 and groups.size > 1 << 16:  # one large group: cut it, its extremes are exact anyway
        cut = groups.size // 1024 * 1024
        views = [groups[:, :cut].reshape(-1, 1024), groups[:, cut:]][: 2 if cut < groups.size else 1]
    low, high = (np.concatenate(ends) for ends in zip(*(_extremes(fixed(view)) for view in views), strict=True))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        refuse_found(clause, "x", x)
    if views[0].shape != groups.shape:
        low, high = low.min(keepdims=True), high.max(keepdims=True)
    return fixed(groups), fixed(low), fixed(high)


def _extremes(x: Array) -> tuple[Array, Array]:
    """Least and greatest of every row."""
    low, high = np.empty(x.shape[0], x.dtype), np.empty(x.shape[0], x.dtype)
    by_pieces(x.shape, lambda p: _ranges(x[p], low[p], high[p]))
    return low, high


def fit_grid(
    x: Array,
    /,
    *,
    bits: int,
    scheme: Scheme = "asymmetric",
    granularity: Granularity = "row",
    group_size: int | None = None,
    clip_ratio: float = 1.0,
    include_zero: bool = True,
    range_floor: float = 0.0,
    scale_dtype: ScaleDtype | None = None,
) -> Grid[Array]:
    """Min-max grid of every group.  [Q-2, Q-8]"""
    given = weights("Q-2", "x", x)
    dtype = working_dtype(given)
    rule = plan(bits, scheme, range_floor, scale_dtype, dtype)
    ratio = _number(clip_ratio, "clip_ratio", "Q-2", 0.0, 1.0, above=True)
    shape = grid_groups(given.shape, granularity, group_size)
    _, low, high = group_ranges(fixed(given, dtype), shape, "Q-2")
    scale, zero = np.empty(shape, dtype), np.empty(shape, np.int32)
    s, z = scale.reshape(-1), zero.reshape(-1)
    most = by_pieces((low.size, 16), lambda p: _grids(low[p], high[p], ratio, bool(include_zero), rule, s[p], z[p]))
    refuse_overflow(max(most, default=0.0), rule)
    return Grid(scale, zero)


def clip_search(
    x: Array,
    /,
    *,
    bits: int,
    scheme: Scheme = "asymmetric",
    granularity: Granularity = "row",
    group_size: int | None = None,
    norm: float = 2.4,
    grid: int = 100,
    max_shrink: float = 0.8,
    range_floor: float = 0.0,
    scale_dtype: ScaleDtype | None = None,
) -> ClippedGrid[Array]:
    """Grid of every group with the ratio 1 − step/grid of least Σ |error|^norm; ties: the larger one.  [Q-5]"""
    given = weights("Q-5", "x", x)
    dtype = working_dtype(given)
    rule = plan(bits, scheme, range_floor, scale_dtype, dtype)
    power = _number(norm, "norm", "Q-5", 0.0, math.inf, above=True)
    if isinstance(grid, bool) or not isinstance(grid, (int, np.integer)) or grid < 1:
        raise SpecError("Q-5", f"grid must be an integer of at least 1, got {grid!r}")
    steps = max(1, math.floor(_number(max_shrink, "max_shrink", "Q-5", 0.0, 1.0, above=False) * int(grid)))
    shape = grid_groups(given.shape, granularity, group_size)
    groups, low, high = group_ranges(fixed(given, dtype), shape, "Q-5")
    scale, zero, step = np.empty(shape, dtype), np.empty(shape, np.int32), np.empty(shape, np.int32)
    s, z, at = scale.reshape(-1), zero.reshape(-1), step.reshape(-1)

    def work(p: slice) -> float:
        return _search(groups[p], low[p], high[p], power, int(grid), steps, rule, s[p], z[p], at[p])

    refuse_overflow(max(by_pieces(groups.shape, work, elements=1 << 13), default=0.0), rule)
    return ClippedGrid(scale, zero, step)


def _affine(
    clause: str, scale: Any, zero_point: Any, shape: tuple[int, ...], dtype: Any = None
) -> tuple[Array, Array, int]:
    """Checked (scale, zero point) of every group and the number of values in a group."""
    s = weights(clause, "scale", scale)
    z = integers(clause, "zero_point", zero_point)
    if s.shape != z.shape:
        raise SpecError(clause, f"zero_point of shape {z.shape} must have the shape of scale, {s.shape}")
    s = fixed(s, dtype or working_dtype(s))
    refuse_bad(clause, "scale", s)
    if (s <= 0).any():
        raise SpecError(clause, f"scale must be above 0, got {s.min()}")
    if s.ndim != len(shape):
        raise SpecError(clause, f"scale of shape {s.shape} does not cover values of shape {shape}")
    if not shape:
        return s.reshape(1), z.reshape(1), 1
    k, count = shape[-1], s.shape[-1]
    if k % count if count else k:
        raise SpecError(clause, f"{count} scales do not divide axis length {k}")
    try:
        s, z = (np.broadcast_to(a, (*shape[:-1], count)) for a in (s, z))
    except ValueError as error:
        raise SpecError(clause, f"scale of shape {s.shape} does not cover values of shape {shape}") from error
    return fixed(s).reshape(-1), fixed(z).reshape(-1), k // count if count else 0


def quantize(x: Array, scale: Array, zero_point: Array, /, *, bits: int, scheme: Scheme = "asymmetric") -> Array:
    """Codes clip(round(x / scale) + zero_point, first, last).  [Q-3]"""
    check_bits(bits, scheme)
    first, last = code_range(bits, scheme)
    given = weights("Q-3", "x", x)
    dtype = working_dtype(given, weights("Q-3", "scale", scale))
    s, z, size = _affine("Q-3", scale, zero_point, given.shape, dtype)
    source = fixed(given, dtype)
    out = np.empty(source.shape, np.int32)
    groups, codes = source.reshape(s.size, size), out.reshape(s.size, size)
    if any(by_pieces(groups.shape, lambda p: _codes(groups[p], s[p], z[p], float(first), float(last), codes[p]))):
        refuse_found("Q-3", "x", source)
    return out


def dequantize(codes: Array, scale: Array, zero_point: Array, /) -> Array:
    """Values scale · (codes − zero_point).  [Q-4]"""
    source = integers("Q-4", "codes", codes)
    s, z, size = _affine("Q-4", scale, zero_point, source.shape)
    out = np.empty(source.shape, s.dtype)
    groups, values = source.reshape(s.size, size), out.reshape(s.size, size)
    by_pieces(groups.shape, lambda p: _values(groups[p], s[p], z[p], values[p]))
    return out
