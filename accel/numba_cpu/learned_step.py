"""S: learned step sizes. The rules are those of :mod:`lowbit.reference.learned_step`.

Values are seen as (before, n, after) around the axis of the steps. Where something comes after the axis, rows of it
share a step; where the axis is the last one, steps lie beside each other. One pass forward, one backward.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from lowbit.accel.common.learned_step import check_learned_step, gradient_scale, step_view
from lowbit.accel.common.refusals import check_choice, check_matrix
from lowbit.reference.errors import SpecError
from lowbit.reference.types import LSQ_INITS, LsqCount, LsqGradient, LsqInit, LsqStart

from ._arrays import Array, finite_weights, fixed, refuse_found, refuse_marked, weights, working_dtype
from ._jit import collected, kernel, pieces
from ._vector import LANES, lane_sum

__all__ = ["lsq", "lsq_code", "lsq_gradient", "lsq_init"]

CHUNK = 1024  # terms that are added in the precision of the data; chunks are added in float64, in order
LARGE = 1 << 17  # a row of more values is shared between threads


@kernel
def chunk_sum(values: Any) -> float:
    total = np.float64(lane_sum(values))
    for j in range(values.size // LANES * LANES, values.size):
        total += np.float64(values[j])
    return total


@kernel
def _rows(x: Any, first: int, step: Any, offset: Any, low: Any, high: Any, by: Any, plus: Any, out: Any) -> Any:
    """by · code + plus of rows that have one step each, in turn; whether something is not finite."""
    found = False
    for r in range(x.shape[0]):
        k = (first + r) % step.size
        s, b, m, a = step[k], offset[k], by[k], plus[k]
        values, answers = x[r], out[r]
        for j in range(values.size):
            found |= values[j] - values[j] != 0.0
            answers[j] = m * np.rint(min(max((values[j] - b) / s, low), high)) + a
    return found


@kernel
def _columns(x: Any, step: Any, offset: Any, low: Any, high: Any, by: Any, plus: Any, out: Any) -> Any:
    """The same where every column has its step."""
    found = False
    for r in range(x.shape[0]):
        values, answers = x[r], out[r]
        for j in range(values.size):
            found |= values[j] - values[j] != 0.0
            answers[j] = by[j] * np.rint(min(max((values[j] - offset[j]) / step[j], low), high)) + plus[j]
    return found


@kernel
def _row_slopes(
    grad: Any, x: Any, first: int, step: Any, offset: Any, low: Any, high: Any, out: Any, to_step: Any, to_offset: Any
) -> Any:
    """Gradients of x, and per row the sums for step and offset; whether grad, x are not finite."""
    found_grad, found_x = False, False
    inner, outer = np.empty(CHUNK, x.dtype), np.empty(CHUNK, x.dtype)
    none = x.dtype.type(0)
    for r in range(x.shape[0]):
        k = (first + r) % step.size
        s, b = step[k], offset[k]
        for start in range(0, x.shape[1], CHUNK):
            values, slopes = x[r, start : start + CHUNK], grad[r, start : start + CHUNK]
            answers = out[r, start : start + CHUNK]
            held, cut = inner[: values.size], outer[: values.size]
            for j in range(values.size):
                d = slopes[j]
                found_x |= values[j] - values[j] != 0.0
                found_grad |= d - d != 0.0
                v = (values[j] - b) / s
                c = min(max(v, low), high)
                passed = d if c == v else none
                answers[j] = passed
                cut[j] = d - passed
                held[j] = d * (np.rint(c) - v if c == v else c)
            to_step[r] += chunk_sum(held)
            to_offset[r] += chunk_sum(cut)
    return found_grad, found_x


@kernel
def _column_slopes(
    grad: Any, x: Any, step: Any, offset: Any, low: Any, high: Any, out: Any, to_step: Any, to_offset: Any
) -> Any:
    """The same where every column has its step; sums per column."""
    found_grad, found_x = False, False
    none = x.dtype.type(0)
    for r in range(x.shape[0]):
        values, slopes, answers = x[r], grad[r], out[r]
        for j in range(values.size):
            d = slopes[j]
            found_x |= values[j] - values[j] != 0.0
            found_grad |= d - d != 0.0
            v = (values[j] - offset[j]) / step[j]
            c = min(max(v, low), high)
            passed = d if c == v else none
            answers[j] = passed
            to_offset[j] += np.float64(d - passed)
            to_step[j] += np.float64(d * (np.rint(c) - v if c == v else c))
    return found_grad, found_x


class Plan(NamedTuple):
    """Checked arguments of one call."""

    given: Array
    x: Array  # (rows, values that lie together)
    step: Array  # floored, of the working dtype
    offset: Array
    low: Any
    high: Any
    by_column: bool
    tasks: list[tuple[slice, slice]]


def tiles(rows: int, width: int, elements: int, whole: bool = False) -> list[tuple[slice, slice]]:
    """Some rows at a time, or pieces of ``elements`` values of one row after the other, unless rows stay whole."""
    if width <= LARGE or whole:
        return [(slice(*p), slice(None)) for p in pieces(rows, max(width, 1), elements=1 << 16)]
    return [(slice(r, r + 1), slice(*p)) for r in range(rows) for p in pieces(width, 1, elements=elements)]


def _plan(
    clause: str, x: Any, step: Any, offset: Any, bits: int, signed: bool, axis: int | None, epsilon: float,
    *more: Array,
) -> Plan:  # fmt: skip
    low, high, floor = check_learned_step(clause, bits, signed, epsilon)
    given = weights(clause, "x", x)
    before, n, after = step_view(clause, given.shape, axis)
    s = finite_weights(clause, "step", step, (n,))
    β = None if offset is None else finite_weights(clause, "offset", offset, (n,))
    dtype = working_dtype(given, s, *more, *(() if β is None else (β,)))
    if floor == 0 and s.size and not s.min() > 0:
        raise SpecError(clause, f"step must be above 0, or epsilon, got {s.min()}")
    s = fixed(np.maximum(s.astype(dtype), dtype(floor)))
    β = np.zeros(n, dtype) if β is None else β
    by_column = after == 1 and n > 1
    shape = (before, n) if by_column else (before * n, after)
    cut = tiles(*shape, 1 << 16, by_column)
    return Plan(given, fixed(given, dtype).reshape(shape), s, fixed(β, dtype), dtype(low), dtype(high), by_column, cut)


def _forward(clause: str, q: Plan, by: Array, plus: Array, dtype: Any) -> Array:
    out = np.empty(q.given.shape, dtype)
    answers = out.reshape(q.x.shape)

    def work(rows: slice, columns: slice) -> bool:
        x, rest = q.x[rows, columns], (q.step, q.offset, q.low, q.high, by, plus, answers[rows, columns])
        return bool(_columns(x, *rest) if q.by_column else _rows(x, rows.start, *rest))

    if any(collected(q.tasks, work)):
        refuse_found(clause, "x", q.given)
    return out


def lsq_init(
    x: Array, /, *, bits: int, signed: bool = True, axis: int | None = None, rule: LsqInit = "mean"
) -> LsqStart[Array]:
    """First step, and offset of LSQ+, in float64 sums.  [S-1]"""
    low, high, _ = check_learned_step("S-1", bits, signed)
    check_choice("S-1", "rule", rule, LSQ_INITS)
    before, n, after = step_view("S-1", weights("S-1", "x", x).shape, axis)
    given = finite_weights("S-1", "x", x)
    dtype = working_dtype(given)
    groups = fixed(np.moveaxis(given.reshape(before, n, after), 1, 0).reshape(n, -1 if given.size else 0))
    count = max(groups.shape[1], 1)
    offset = np.zeros(n)
    if rule in ("mean", "mean-doubled"):
        factor = 4.0 if rule == "mean-doubled" and not signed else 2.0
        step = np.abs(groups).sum(axis=1, dtype=np.float64) * (factor / count / math.sqrt(high))
    elif rule == "deviation":
        values = groups.astype(np.float64)
        mean = values.sum(axis=1) / count
        deviation = np.sqrt(((values - mean[:, None]) ** 2).sum(axis=1) / count)
        step = (np.abs(mean) + 3 * deviation) / 2 ** (bits - 1)
    elif groups.size:
        least, most = (f(groups, axis=1).astype(np.float64) for f in (np.min, np.max))
        step = (most - least) / (high - low)
        offset = least - step * low
    else:
        step = np.zeros(n)
    return LsqStart(np.where(step > 0, step, 1.0).astype(dtype), offset.astype(dtype))


def lsq_code(
    x: Array,
    step: Array,
    offset: Array | None = None,
    /,
    *,
    bits: int,
    signed: bool = True,
    axis: int | None = None,
    epsilon: float = 0.0,
) -> Array:
    """Codes round(clamp((x − offset) / step)).  [S-2]"""
    q = _plan("S-2", x, step, offset, bits, signed, axis, epsilon)
    one, none = np.ones_like(q.step), np.zeros_like(q.step)
    return _forward("S-2", q, fixed(one), fixed(none), q.step.dtype).astype(np.int32)


def lsq(
    x: Array,
    step: Array,
    offset: Array | None = None,
    /,
    *,
    bits: int,
    signed: bool = True,
    axis: int | None = None,
    epsilon: float = 0.0,
) -> Array:
    """Values step · code + offset, arguments as in :func:`lsq_code`, in the widest precision of them.  [S-3]"""
    q = _plan("S-3", x, step, offset, bits, signed, axis, epsilon)
    return _forward("S-3", q, q.step, q.offset, q.step.dtype)


def lsq_gradient(
    grad: Array,
    x: Array,
    step: Array,
    offset: Array | None = None,
    /,
    *,
    bits: int,
    signed: bool = True,
    axis: int | None = None,
    epsilon: float = 0.0,
    count: LsqCount = "elements",
) -> LsqGradient[Array]:
    """Gradients of input, step and offset in one pass.  [S-4, S-5, S-6]"""
    given = weights("S-4", "grad", grad)
    q = _plan("S-4", x, step, offset, bits, signed, axis, epsilon, given)
    check_matrix("S-4", "grad", given.shape, q.given.shape)
    g = gradient_scale(q.given.shape, axis, count, int(q.high))
    dtype = q.step.dtype.type
    slope, out = fixed(given, dtype).reshape(q.x.shape), np.empty(q.given.shape, dtype)
    answers, n = out.reshape(q.x.shape), q.step.size
    parts = [(np.zeros((2, n)), *task) for task in q.tasks]

    def work(sums: Array, rows: slice, columns: slice) -> Any:
        arrays = slope[rows, columns], q.x[rows, columns]
        ends = q.step, q.offset, q.low, q.high, answers[rows, columns]
        if q.by_column:
            return _column_slopes(*arrays, *ends, sums[0], sums[1])
        own = np.zeros((2, len(arrays[0])))
        found = _row_slopes(*arrays, rows.start, *ends, own[0], own[1])
        index = np.arange(rows.start, rows.start + own.shape[1]) % n
        for total, part in zip(sums, own, strict=True):
            np.add.at(total, index, part)
        return found

    refuse_marked("S-4", collected(parts, work), grad=given, x=q.given)
    total = g * np.sum([part[0] for part in parts], axis=0) if parts else np.zeros((2, n))
    return LsqGradient(out, total[0].astype(dtype), None if offset is None else total[1].astype(dtype))
