"""T: ternary and min-max fake quantizers. The rules are those of :mod:`lowbit.reference.ternary`.

Every operation sees (groups, values in a group). Small groups are taken a cache-full at a time through all passes; a
large one is cut into pieces, whose sums are added in order, so that results do not depend on the threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lowbit.accel.common.refusals import check_matrix
from lowbit.accel.common.ternary import (
    AT_THE_MEAN,
    check_clip,
    check_threshold,
    outer_steps,
    range_steps,
    shared_shape,
)
from lowbit.reference.errors import SpecError
from lowbit.reference.types import MinMaxScheme, Outermost, Sharing, TernaryCode

from ._arrays import Array, fixed, refuse_found, refuse_marked, weights, working_dtype
from ._jit import collected, kernel, pieces
from .learned_step import LARGE, chunk_sum, tiles
from .uniform import group_ranges

__all__ = ["clamped_uniform", "min_max", "straight_through", "twn", "twn_code"]

CHUNK = 1024  # magnitudes that are added in the precision of the data; chunks are added in float64, in order


@kernel
def _magnitudes(x: Any, clip: Any, total: Any) -> Any:
    """Σ min(|x|, clip) of every row; whether something is not finite."""
    buffer = np.empty(CHUNK, x.dtype)
    found = False
    for g in range(x.shape[0]):
        for start in range(0, x.shape[1], CHUNK):
            values = x[g, start : start + CHUNK]
            held = buffer[: values.size]
            for j in range(values.size):
                found |= values[j] - values[j] != 0.0
                held[j] = min(abs(values[j]), clip)
            total[g] += chunk_sum(held)
    return found


@kernel
def _above(x: Any, clip: Any, cut: Any, total: Any, count: Any) -> None:
    """Sum and number of the magnitudes above the cut of their row."""
    buffer = np.empty(CHUNK, x.dtype)
    none = x.dtype.type(0)
    for g in range(x.shape[0]):
        c = cut[g]
        for start in range(0, x.shape[1], CHUNK):
            values = x[g, start : start + CHUNK]
            held = buffer[: values.size]
            n = 0
            for j in range(values.size):
                a = min(abs(values[j]), clip)
                held[j] = a if a > c else none
                n += a > c
            total[g] += chunk_sum(held)
            count[g] += n


@kernel
def _ternary_values(x: Any, clip: Any, cut: Any, scale: Any, out: Any) -> None:
    none = x.dtype.type(0)
    for g in range(x.shape[0]):
        c, s = cut[g], scale[g]
        values, answers = x[g], out[g]
        for j in range(values.size):
            v = values[j]
            signed = s if v > none else -s
            answers[j] = signed if min(abs(v), clip) > c else none


@kernel
def _ternary_codes(x: Any, clip: Any, cut: Any, out: Any) -> None:
    none = x.dtype.type(0)
    for g in range(x.shape[0]):
        c = cut[g]
        values, answers = x[g], out[g]
        for j in range(values.size):
            v = values[j]
            sign = np.int32(1) if v > none else np.int32(-1)
            answers[j] = sign if min(abs(v), clip) > c else np.int32(0)


@kernel
def _clamped_values(x: Any, clip: Any, scale: Any, step: Any, outer: Any, last: Any, out: Any) -> None:
    none, one = x.dtype.type(0), x.dtype.type(1)
    for g in range(x.shape[0]):
        α, δ = scale[g], step[g]
        divisor = δ if δ > none else one
        values, answers = x[g], out[g]
        for j in range(values.size):
            a = min(abs(values[j]), clip)
            k = np.rint(a / divisor) if a < α else outer  # α as it comes, a little below the mean
            k = min(k, last) * δ
            answers[j] = k if values[j] > none else -k


@kernel
def _grid_values(x: Any, clip: Any, low: Any, reach: Any, n: float, out: Any) -> None:
    """In float64, so that n (x − lo) neither rounds nor overflows."""
    for g in range(x.shape[0]):
        lo, r = low[g], reach[g]
        divisor = r if r > 0.0 else 1.0
        values, answers = x[g], out[g]
        for j in range(values.size):
            v = np.float64(min(max(values[j], -clip), clip))
            answers[j] = lo + r * (np.rint(n * (v - lo) / divisor) / n)


@kernel
def _passed(grad: Any, x: Any, clip: Any, out: Any) -> Any:
    found_grad, found_x = False, False
    none = grad.dtype.type(0)
    for j in range(x.size):
        found_grad |= grad[j] - grad[j] != 0.0
        found_x |= x[j] - x[j] != 0.0
        out[j] = grad[j] if abs(x[j]) < clip else none
    return found_grad, found_x


def _down(x: Array, dtype: Any) -> Array:
    """The largest numbers of a format that are not above x: |a| > x says the same of both for an a of the format."""
    near = x.astype(dtype)
    return np.where(near > x, np.nextafter(near, dtype(-np.inf)), near)


Write = Callable[[Array, Any, Array, Array, Array], None]


def _large_values(
    clause: str, x: Any, granularity: str, threshold: float, clip: float | None, write: Write, kind: Any = None
) -> tuple[Array, Array]:
    """Answers, by default in working precision, and statistics of (T.2), (T.3) of every group.

    ``write(values, clip, cut, mean, to)`` answers for some groups, or a piece of one. The mean is that of the
    magnitudes above the threshold, or of all where there is none.
    """
    bound = check_clip(clause, clip)
    given = weights(clause, "x", x)
    shape, dtype = shared_shape(clause, given.shape, granularity), working_dtype(given)
    count = math.prod(shape)
    n = given.size // count if count else 0
    groups, out = fixed(given, dtype).reshape(count, n), np.empty(given.shape, kind or dtype)
    answers, bound, mean = out.reshape(count, n), dtype(bound), np.zeros(count)

    def settle(total: Array) -> tuple[Array, Array]:
        average = total / max(n, 1)
        return average, _down(threshold * average, dtype)

    def finish(average: Array, total: Array, number: Array) -> Array:
        return np.where(number > 0, np.maximum(total / np.maximum(number, 1), average), average)

    def small(start: int, stop: int) -> bool:
        rows = slice(start, stop)
        values = groups[rows]
        total, above, number = np.zeros(len(values)), np.zeros(len(values)), np.zeros(len(values), np.int64)
        if _magnitudes(values, bound, total):
            return True
        average, cut = settle(total)
        _above(values, bound, cut, above, number)
        mean[rows] = finish(average, above, number)
        write(values, bound, cut, mean[rows], answers[rows])
        return False

    if n <= LARGE:
        if any(collected(pieces(count, max(n, 1), elements=1 << 15), small)):
            refuse_found(clause, "x", given)
        return out, mean.astype(dtype).reshape(shape)
    columns = [(i, slice(*p)) for i, p in enumerate(pieces(n, 1))]
    for g in range(count):
        row, to = groups[g : g + 1], answers[g : g + 1]
        sums, aboves, numbers = (np.zeros((len(columns), 1), t) for t in (np.float64, np.float64, np.int64))

        def first(i: int, c: slice, row: Array = row, sums: Array = sums) -> bool:
            return bool(_magnitudes(row[:, c], bound, sums[i]))

        if any(collected(columns, first)):
            refuse_found(clause, "x", given)
        average, cut = settle(sums.sum(axis=0))

        def second(
            i: int, c: slice, row: Array = row, cut: Array = cut, total: Array = aboves, number: Array = numbers
        ) -> None:
            _above(row[:, c], bound, cut, total[i], number[i])

        collected(columns, second)
        own = mean[g : g + 1] = finish(average, aboves.sum(axis=0), numbers.sum(axis=0))

        def third(i: int, c: slice, row: Array = row, cut: Array = cut, own: Array = own, to: Array = to) -> None:
            write(row[:, c], bound, cut, own, to[:, c])

        collected(columns, third)
    return out, mean.astype(dtype).reshape(shape)


def twn_code(
    x: Array, /, *, granularity: Sharing = "tensor", threshold: float = 0.7, clip: float | None = None
) -> TernaryCode[Array]:
    """Ternary code: signs of the magnitudes above threshold · mean, and their mean.  [T-1]"""
    t = check_threshold(threshold)

    def write(values: Array, clip: Any, cut: Array, mean: Array, to: Array) -> None:
        _ternary_codes(values, clip, cut, to)

    return TernaryCode(*_large_values("T-1", x, granularity, t, clip, write, np.int32))


def twn(x: Array, /, *, granularity: Sharing = "tensor", threshold: float = 0.7, clip: float | None = None) -> Array:
    """Ternary values: code times scale of :func:`twn_code`, with its arguments, in x's precision.  [T-2]"""
    t = check_threshold(threshold)

    def write(values: Array, clip: Any, cut: Array, mean: Array, to: Array) -> None:
        _ternary_values(values, clip, cut, mean.astype(to.dtype), to)

    return _large_values("T-1", x, granularity, t, clip, write)[0]


def clamped_uniform(
    x: Array,
    /,
    *,
    bits: int = 4,
    granularity: Sharing = "tensor",
    clip: float | None = None,
    outermost: Outermost = "published",
) -> Array:
    """Multiples of 2α/(2^bits − 1) within ± α, the mean of the magnitudes above their mean.  [T-3]"""
    outer, last = outer_steps(bits, outermost)

    def write(values: Array, clip: Any, cut: Array, mean: Array, to: Array) -> None:
        dtype = to.dtype.type
        step = (2 * mean / (2**bits - 1)).astype(dtype)
        _clamped_values(values, clip, (AT_THE_MEAN * mean).astype(dtype), step, dtype(outer), dtype(last), to)

    return _large_values("T-3", x, granularity, 1.0, clip, write)[0]


def min_max(
    x: Array,
    /,
    *,
    bits: int = 8,
    scheme: MinMaxScheme = "symmetric",
    granularity: Sharing = "tensor",
    clip: float | None = None,
    epsilon: float = 0.0,
) -> Array:
    """The nearest of equally spaced values between the extremes.  [T-4]"""
    n, wider = range_steps(bits, scheme, epsilon)
    bound = check_clip("T-4", clip)
    given = weights("T-4", "x", x)
    shape, dtype = shared_shape("T-4", given.shape, granularity), working_dtype(given)
    groups, low, high = group_ranges(fixed(given, dtype), shape, "T-4")
    low, high = (np.clip(v.astype(np.float64), -bound, bound) for v in (low, high))
    with np.errstate(over="ignore"):
        if scheme == "symmetric":
            reach, low = np.maximum(high, -low) + wider, np.zeros_like(low)
        else:
            reach = high - low + wider
        if reach.size and not n * reach.max() <= np.finfo(dtype).max:
            raise SpecError("T-4", f"{n} times the range {reach.max():.4g} overflows {np.dtype(dtype)}")
    out = np.empty(given.shape, dtype)
    answers = out.reshape(groups.shape)

    def work(rows: slice, columns: slice) -> None:
        _grid_values(groups[rows, columns], dtype(bound), low[rows], reach[rows], float(n), answers[rows, columns])

    collected(tiles(len(groups), groups.shape[1], 1 << 18), work)
    return out


def straight_through(grad: Array, x: Array, /, *, clip: float | None) -> Array:
    """The gradient where |x| is below the clip, else 0.  [T-5]"""
    bound = check_clip("T-5", clip)
    d, given = weights("T-5", "grad", grad), weights("T-5", "x", x)
    check_matrix("T-5", "x", given.shape, d.shape)
    dtype = working_dtype(d, given)
    out = np.empty(d.shape, dtype)
    slope, values, answers = fixed(d, dtype).reshape(-1), fixed(given, dtype).reshape(-1), out.reshape(-1)
    near = dtype(bound)
    limit = np.nextafter(near, dtype(np.inf)) if float(near) < bound else near  # |x| < limit as |x| < bound

    def work(start: int, stop: int) -> Any:
        return _passed(slope[start:stop], values[start:stop], limit, answers[start:stop])

    refuse_marked("T-5", collected(pieces(values.size, 1), work), grad=d, x=given)
    return out
