"""T: ternary and min-max fake quantizers. The rules are those of :mod:`lowbit.reference.ternary`.

Every operation sees (groups, values in a group). Small groups are taken a cache-full at a time through all passes; a
large one is cut into pieces, whose sums are added in order, so that results do not depend on the threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lowbit.accel.common.refusals import check_choice, check_matrix, check_number, check_whole
from lowbit.accel.common.ternary import check_clip, shared_shape
from lowbit.reference.errors import SpecError
from lowbit.reference.types import MIN_MAX_SCHEMES, OUTERMOST, MinMaxScheme, Outermost, Sharing, TernaryCode

from ._arrays import Array, fixed, refuse_found, weights, working_dtype
from ._jit import kernel, pieces, share
from ._vector import LANES, lane_sum
from .uniform import group_ranges

__all__ = ["clamped_uniform", "min_max", "straight_through", "twn", "twn_code"]

CHUNK = 1024  # magnitudes that are added in the precision of the data; chunks are added in float64, in order
LARGE = 1 << 17  # a group of more values is shared between threads


@kernel
def _sum(values: Any) -> float:
    total = np.float64(lane_sum(values))
    for j in range(values.size // LANES * LANES, values.size):
        total += np.float64(values[j])
    return total


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
            total[g] += _sum(held)
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
            total[g] += _sum(held)
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
            k = np.rint(a / divisor) if a < α else outer
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


def _columns(n: int) -> list[slice]:
    """A group's values in pieces."""
    return [slice(*p) for p in pieces(n, 1)]


def _large_values(
    clause: str,
    x: Any,
    shape: tuple[int, ...],
    threshold: float,
    clip: float,
    write: Callable[[Array, Any, Array, Array, slice, slice], None],
) -> Array:
    """Statistics of (T.2), (T.3) for every group; ``write(values, clip, cut, mean, rows, columns)`` answers.

    Returns the mean of the magnitudes above the threshold, or the mean of all where there is none.
    """
    given = weights(clause, "x", x)
    dtype = working_dtype(given)
    count = math.prod(shape)
    n = given.size // count if count else 0
    groups = fixed(given, dtype).reshape(count, n)
    bound = dtype(clip)
    mean = np.zeros(count)

    def settle(total: Array) -> tuple[Array, Array]:
        average = total / max(n, 1)
        return average, _down(threshold * average, dtype)

    def finish(average: Array, total: Array, number: Array) -> Array:
        return np.where(number > 0, np.maximum(total / np.maximum(number, 1), average), average)

    if n <= LARGE:
        parts = [slice(*p) for p in pieces(count, max(n, 1), elements=1 << 15)]
        bad = [False] * len(parts)

        def work(i: int) -> None:
            rows = parts[i]
            values = groups[rows]
            total, number = np.zeros(len(values)), np.zeros(len(values), np.int64)
            bad[i] = bool(_magnitudes(values, bound, total))
            if bad[i]:
                return
            average, cut = settle(total)
            above = np.zeros(len(values))
            _above(values, bound, cut, above, number)
            mean[rows] = finish(average, above, number)
            write(values, bound, cut, mean[rows], rows, slice(None))

        share(len(parts), work)
        if any(bad):
            refuse_found(clause, "x", given)
        return mean
    columns = _columns(n)
    for g in range(count):
        row = groups[g : g + 1]
        sums, aboves, numbers = (np.zeros((len(columns), 1), t) for t in (np.float64, np.float64, np.int64))
        bad = [False] * len(columns)

        def first(i: int, row: Array = row, sums: Array = sums, bad: list[bool] = bad) -> None:
            bad[i] = bool(_magnitudes(row[:, columns[i]], bound, sums[i]))

        share(len(columns), first)
        if any(bad):
            refuse_found(clause, "x", given)
        average, cut = settle(sums.sum(axis=0))

        def second(i: int, row: Array = row, cut: Array = cut, to: Array = aboves, number: Array = numbers) -> None:
            _above(row[:, columns[i]], bound, cut, to[i], number[i])

        share(len(columns), second)
        mean[g : g + 1] = finish(average, aboves.sum(axis=0), numbers.sum(axis=0))

        def third(i: int, g: int = g, row: Array = row, cut: Array = cut) -> None:
            write(row[:, columns[i]], bound, cut, mean[g : g + 1], slice(g, g + 1), columns[i])

        share(len(columns), third)
    return mean


def _threshold(threshold: float) -> float:
    t = check_number("T-1", "threshold", threshold, low=0.0)
    if t >= 1:
        raise SpecError("T-1", f"threshold must be below 1, got {threshold!r}")
    return t


def twn_code(
    x: Array, /, *, granularity: Sharing = "tensor", threshold: float = 0.7, clip: float | None = None
) -> TernaryCode[Array]:
    """Ternary code: signs of the magnitudes above threshold · mean, and their mean.  [T-1]

    Args:
        x: float16, float32 or float64; one axis at least for "row", two for "matrix".
        granularity: values that share a scale: all, the last axis, the last two.
        threshold: factor of the mean magnitude, in [0, 1).
        clip: bound of the values before anything else, above 0; None for none.

    Returns:
        int32 codes of x's shape, scale of x's precision with shared axes of length 1.

    Raises:
        SpecError: T-1 for parameters and shapes, A-4 for NaN and infinities.
    """
    t, bound = _threshold(threshold), check_clip("T-1", clip)
    given = weights("T-1", "x", x)
    shape = shared_shape("T-1", given.shape, granularity)
    out = np.empty(given.shape, np.int32)
    codes = out.reshape(math.prod(shape), -1 if out.size else 0)

    def write(values: Array, clip: Any, cut: Array, mean: Array, rows: slice, columns: slice) -> None:
        _ternary_codes(values, clip, cut, codes[rows, columns])

    mean = _large_values("T-1", given, shape, t, bound, write)
    return TernaryCode(out, mean.astype(working_dtype(given)).reshape(shape))


def twn(x: Array, /, *, granularity: Sharing = "tensor", threshold: float = 0.7, clip: float | None = None) -> Array:
    """Ternary values: code times scale of :func:`twn_code`, with its arguments, in x's precision.  [T-2]"""
    t, bound = _threshold(threshold), check_clip("T-1", clip)
    given = weights("T-1", "x", x)
    shape, dtype = shared_shape("T-1", given.shape, granularity), working_dtype(given)
    out = np.empty(given.shape, dtype)
    answers = out.reshape(math.prod(shape), -1 if out.size else 0)

    def write(values: Array, clip: Any, cut: Array, mean: Array, rows: slice, columns: slice) -> None:
        _ternary_values(values, clip, cut, mean.astype(dtype), answers[rows, columns])

    _large_values("T-1", given, shape, t, bound, write)
    return out


def clamped_uniform(
    x: Array,
    /,
    *,
    bits: int = 4,
    granularity: Sharing = "tensor",
    clip: float | None = None,
    outermost: Outermost = "published",
) -> Array:
    """Multiples of 2α/(2^bits − 1) within ± α, the mean of the magnitudes above their mean.  [T-3]

    Args:
        x, granularity, clip: as in :func:`twn_code`.
        bits: 2 to 8.
        outermost: "published", ±2^(bits − 1) steps at and beyond α; "bounded", one less.

    Returns:
        x's shape and precision.

    Raises:
        SpecError: T-3 for parameters and shapes, A-4 for NaN and infinities.
    """
    check_whole("T-3", "bits", bits, 2, 8)
    check_choice("T-3", "outermost", outermost, OUTERMOST)
    bound = check_clip("T-3", clip)
    given = weights("T-3", "x", x)
    shape, dtype = shared_shape("T-3", given.shape, granularity), working_dtype(given)
    out = np.empty(given.shape, dtype)
    answers = out.reshape(math.prod(shape), -1 if out.size else 0)
    outer = 2 ** (bits - 1)
    last = outer - 1 if outermost == "bounded" else outer

    def write(values: Array, clip: Any, cut: Array, mean: Array, rows: slice, columns: slice) -> None:
        step = (2 * mean / (2**bits - 1)).astype(dtype)
        _clamped_values(values, clip, mean.astype(dtype), step, dtype(outer), dtype(last), answers[rows, columns])

    _large_values("T-3", given, shape, 1.0, bound, write)
    return out


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
    """The nearest of equally spaced values between the extremes.  [T-4]

    Args:
        x, granularity, clip: as in :func:`twn_code`.
        bits: 2 to 8, or from 1 for "asymmetric".
        scheme: "symmetric" around 0, or "asymmetric" from the smallest to the largest value.
        epsilon: is added to the range, at least 0.

    Returns:
        x's shape and precision.

    Raises:
        SpecError: T-4 for parameters, shapes and a range that overflows, A-4 for NaN and infinities.
    """
    check_choice("T-4", "scheme", scheme, MIN_MAX_SCHEMES)
    check_whole("T-4", "bits", bits, 2 if scheme == "symmetric" else 1, 8)
    wider, bound = check_number("T-4", "epsilon", epsilon, low=0.0), check_clip("T-4", clip)
    given = weights("T-4", "x", x)
    shape, dtype = shared_shape("T-4", given.shape, granularity), working_dtype(given)
    groups, low, high = group_ranges(fixed(given, dtype), shape, "T-4")
    low, high = (np.clip(v.astype(np.float64), -bound, bound) for v in (low, high))
    with np.errstate(over="ignore"):
        if scheme == "symmetric":
            reach, n, low = np.maximum(high, -low) + wider, 2 ** (bits - 1) - 1, np.zeros_like(low)
        else:
            reach, n = high - low + wider, 2**bits - 1
        if reach.size and not n * reach.max() <= np.finfo(dtype).max:
            raise SpecError("T-4", f"{n} times the range {reach.max():.4g} overflows {np.dtype(dtype)}")
    out = np.empty(given.shape, dtype)
    answers = out.reshape(groups.shape)
    tasks = [(slice(*p), slice(None)) for p in pieces(len(groups), max(groups.shape[1], 1), elements=1 << 16)]
    if groups.shape[1] > LARGE:
        tasks = [(slice(g, g + 1), c) for g in range(len(groups)) for c in _columns(groups.shape[1])]

    def work(i: int) -> None:
        rows, columns = tasks[i]
        _grid_values(groups[rows, columns], dtype(bound), low[rows], reach[rows], float(n), answers[rows, columns])

    share(len(tasks), work)
    return out


def straight_through(grad: Array, x: Array, /, *, clip: float | None) -> Array:
    """The gradient where |x| is below the clip, else 0.  [T-5]

    Args:
        grad: float16, float32 or float64.
        x: of the same shape.
        clip: above 0; None lets everything pass.

    Returns:
        grad's shape, of the wider precision.

    Raises:
        SpecError: T-5 for shapes and a clip not above 0, A-4 for NaN and infinities.
    """
    bound = check_clip("T-5", clip)
    d, given = weights("T-5", "grad", grad), weights("T-5", "x", x)
    check_matrix("T-5", "x", given.shape, d.shape)
    dtype = working_dtype(d, given)
    out = np.empty(d.shape, dtype)
    slope, values, answers = fixed(d, dtype).reshape(-1), fixed(given, dtype).reshape(-1), out.reshape(-1)
    near = dtype(bound)
    limit = (
        np.nextafter(near, dtype(np.inf)) if float(near) < bound else near
    )  # |x| < bound and |x| < limit are then the same
    parts = [slice(*p) for p in pieces(values.size, 1)]
    bad = [(False, False)] * len(parts)

    def work(i: int) -> None:
        bad[i] = _passed(slope[parts[i]], values[parts[i]], limit, answers[parts[i]])

    share(len(parts), work)
    for name, array, which in (("grad", d, 0), ("x", given, 1)):
        if any(found[which] for found in bad):
            refuse_found("T-5", name, array)
    return out
