"""Kernels of chapter T: a group that fits a tile is read once; a larger one once for every statistic.

Sums over a tile are taken in float32, what is made of them in float64. A group that takes several programs has one
partial result for each; every program of the next kernel adds them up again, in the same order. Which of the two ways
serves a group depends on its length alone, so that it gives the same bits by itself and among others.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import TILE, cdiv, finite_or_zero, flags, launch, next_power_of_2, not_above, round_half_even, tiling

__all__ = ["Ternary", "min_max", "straight_through", "ternary"]

_PARTS = 1024  # most programs that share a group
AT_THE_MEAN = tl.constexpr(1 - 2.0**-16)  # of T-3
_LARGEST = tl.constexpr(3.4028234663852886e38)  # of float32


@triton.jit
def _cut(average, THRESHOLD: tl.constexpr):
    """What lies above a multiple of the mean magnitude lies above this float32: (T.2)."""
    return not_above(tl.full((), THRESHOLD, tl.float64) * average)


@triton.jit
def _mean(above, number, average):
    """(T.3) in float64; the mean of what is above an average is, but for rounding."""
    mean = above / tl.maximum(number, 1.0)
    return tl.where(number > 0, tl.maximum(mean, average), average)


@triton.jit
def _answer(x, magnitude, cut, mean, KIND: tl.constexpr, BITS: tl.constexpr):
    """Values (KIND 0) or codes (1) of T-1 and T-2; levels of T-3, as published (2) or bounded (3)."""
    if KIND == 1:
        answer = tl.where(magnitude > cut, tl.where(x < 0.0, -1, 1), 0)
    else:
        alpha = mean.to(tl.float32)
        if KIND == 0:
            answer = tl.where(magnitude > cut, tl.where(x < 0.0, -alpha, alpha), 0.0)
        else:
            step = (2.0 * mean / (2.0**BITS - 1.0)).to(tl.float32)
            k = round_half_even(tl.div_rn(magnitude, tl.broadcast_to(tl.where(step > 0.0, step, 1.0), magnitude.shape)))
            k = tl.where(magnitude < (mean * AT_THE_MEAN).to(tl.float32), k, 2.0 ** (BITS - 1))
            k = tl.minimum(k, 2.0 ** (BITS - 1) - (1.0 if KIND == 3 else 0.0))
            answer = tl.where(x < 0.0, -k, k) * step
    return answer


@triton.jit
def _ternary_rows(
    x, out, scale, bad, count, n, clip,
    THRESHOLD: tl.constexpr, KIND: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Groups that fit a tile: statistics and answer from registers."""
    group = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (group < count)[:, None] & (column < n)[None, :]
    place = group[:, None] * n + column[None, :]
    value, wrong = finite_or_zero(x + place, inside)
    magnitude = tl.minimum(tl.abs(value), clip)
    average = tl.sum(magnitude, axis=1).to(tl.float64) / n
    cut = _cut(average, THRESHOLD)
    kept = magnitude > cut[:, None]
    number = tl.sum(kept.to(tl.int32), axis=1).to(tl.float64)
    mean = _mean(tl.sum(tl.where(kept, magnitude, 0.0), axis=1).to(tl.float64), number, average)
    tl.store(out + place, _answer(value, magnitude, cut[:, None], mean[:, None], KIND, BITS), mask=inside)
    tl.store(scale + group, mean.to(tl.float32), mask=group < count)
    tl.store(bad + tl.program_id(0), tl.max(tl.max(wrong, axis=1), axis=0))


@triton.jit
def _magnitudes(x, totals, bad, n, parts, share, clip, BLOCK: tl.constexpr):
    """Σ|x| of a part of a group."""
    part = tl.program_id(0)
    base = x + (part // parts).to(tl.int64) * n
    first = (part % parts).to(tl.int64) * share
    total = tl.full((), 0.0, tl.float64)
    marks = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, share, BLOCK):
        column = first + start + tl.arange(0, BLOCK)
        value, wrong = finite_or_zero(base + column, column < n)
        total += tl.sum(tl.minimum(tl.abs(value), clip), axis=0).to(tl.float64)
        marks = tl.maximum(marks, wrong)
    tl.store(totals + part, total)
    tl.store(bad + part, tl.max(marks, axis=0))


@triton.jit
def _above(
    x, totals, tops, counts, n, parts, share, clip, THRESHOLD: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr
):
    """Σ|x| and number of the magnitudes above the cut, of a part of a group."""
    part = tl.program_id(0)
    group = (part // parts).to(tl.int64)
    first = (part % parts).to(tl.int64) * share
    each = tl.arange(0, PARTS)
    sums = tl.load(totals + group * parts + each, mask=each < parts, other=0.0)
    cut = _cut(tl.sum(sums, axis=0) / n, THRESHOLD)
    top = tl.full((), 0.0, tl.float64)
    number = tl.full((), 0, tl.int32)
    for start in range(0, share, BLOCK):
        column = first + start + tl.arange(0, BLOCK)
        value, _ = finite_or_zero(x + group * n + column, column < n)
        magnitude = tl.minimum(tl.abs(value), clip)
        kept = magnitude > cut
        top += tl.sum(tl.where(kept, magnitude, 0.0), axis=0).to(tl.float64)
        number += tl.sum(kept.to(tl.int32), axis=0)
    tl.store(tops + part, top)
    tl.store(counts + part, number.to(tl.float64))


@triton.jit
def _ternary_parts(
    x, out, scale, totals, tops, counts, n, parts, share, clip,
    THRESHOLD: tl.constexpr, KIND: tl.constexpr, BITS: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Answers for a part of a group, from the partial sums of all its parts."""
    part = tl.program_id(0)
    group = (part // parts).to(tl.int64)
    first = (part % parts).to(tl.int64) * share
    each = tl.arange(0, PARTS)
    known = each < parts
    average = tl.sum(tl.load(totals + group * parts + each, mask=known, other=0.0), axis=0) / n
    cut = _cut(average, THRESHOLD)
    above = tl.sum(tl.load(tops + group * parts + each, mask=known, other=0.0), axis=0)
    number = tl.sum(tl.load(counts + group * parts + each, mask=known, other=0.0), axis=0)
    mean = _mean(above, number, average)
    for start in range(0, share, BLOCK):
        column = first + start + tl.arange(0, BLOCK)
        value, _ = finite_or_zero(x + group * n + column, column < n)
        magnitude = tl.minimum(tl.abs(value), clip)
        tl.store(out + group * n + column, _answer(value, magnitude, cut, mean, KIND, BITS), mask=column < n)
    tl.store(scale + group, mean.to(tl.float32), mask=part % parts == 0)


@triton.jit
def _range(low, high, clip, EPSILON: tl.constexpr, SYMMETRIC: tl.constexpr):
    """Lowest value and reach of (T.7) and (T.8), the reach in float64."""
    high = tl.minimum(tl.maximum(high, -clip), clip).to(tl.float64)
    low = tl.minimum(tl.maximum(low, -clip), clip).to(tl.float64)
    wider = tl.full((), EPSILON, tl.float64)
    if SYMMETRIC:
        reach = tl.maximum(high, -low) + wider
        low = tl.zeros_like(low)
    else:
        reach = high - low + wider
    return low.to(tl.float32), reach


@triton.jit
def _on_grid(value, low, reach, clip, LEVELS: tl.constexpr):
    """(T.9); a range that overflows, which is refused after the launch, counts as that of zeros."""
    fits = reach * LEVELS <= _LARGEST
    width = tl.where(fits, reach, 0.0).to(tl.float32)
    low = tl.where(fits, low, 0.0)
    value = tl.where(fits, value, 0.0)
    moved = (tl.minimum(tl.maximum(value, -clip), clip) - low) * LEVELS
    code = round_half_even(tl.div_rn(moved, tl.broadcast_to(tl.where(width > 0.0, width, 1.0), moved.shape)))
    return low + tl.div_rn(code, tl.full(code.shape, LEVELS, tl.float32)) * width


@triton.jit
def _min_max_rows(
    x, out, reaches, count, n, clip,
    LEVELS: tl.constexpr, EPSILON: tl.constexpr, SYMMETRIC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Groups that fit a tile: range and values from registers."""
    group = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (group < count)[:, None] & (column < n)[None, :]
    place = group[:, None] * n + column[None, :]
    value, wrong = finite_or_zero(x + place, inside)
    least = tl.where(group < count, tl.min(tl.where(inside, value, _LARGEST), axis=1), 0.0)
    most = tl.where(group < count, tl.max(tl.where(inside, value, -_LARGEST), axis=1), 0.0)
    low, reach = _range(least, most, clip, EPSILON, SYMMETRIC)
    tl.store(out + place, _on_grid(value, low[:, None], reach[:, None], clip, LEVELS), mask=inside)
    reach = tl.where(tl.max(wrong, axis=1) > 0, float("inf"), reach)
    tl.store(reaches + group, reach, mask=group < count)


@triton.jit
def _extremes(x, lows, highs, n, parts, share, BLOCK: tl.constexpr):
    """Smallest and largest value of a part of a group, both infinite if one of them is not finite."""
    part = tl.program_id(0)
    base = x + (part // parts).to(tl.int64) * n
    first = (part % parts).to(tl.int64) * share
    least = tl.full((BLOCK,), _LARGEST, tl.float32)
    most = tl.full((BLOCK,), -_LARGEST, tl.float32)
    marks = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, share, BLOCK):
        column = first + start + tl.arange(0, BLOCK)
        value, wrong = finite_or_zero(base + column, column < n)
        least = tl.minimum(least, tl.where(column < n, value, _LARGEST))
        most = tl.maximum(most, tl.where(column < n, value, -_LARGEST))
        marks = tl.maximum(marks, wrong)
    wrong = tl.max(marks, axis=0) > 0
    tl.store(lows + part, tl.where(wrong, -float("inf"), tl.min(least, axis=0)))
    tl.store(highs + part, tl.where(wrong, float("inf"), tl.max(most, axis=0)))


@triton.jit
def _min_max_parts(
    x, out, reaches, lows, highs, n, parts, share, clip,
    LEVELS: tl.constexpr, EPSILON: tl.constexpr, SYMMETRIC: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Values of a part of a group, from the extremes of all its parts."""
    part = tl.program_id(0)
    group = (part // parts).to(tl.int64)
    first = (part % parts).to(tl.int64) * share
    each = tl.arange(0, PARTS)
    known = each < parts
    least = tl.min(tl.load(lows + group * parts + each, mask=known, other=float("inf")), axis=0)
    most = tl.max(tl.load(highs + group * parts + each, mask=known, other=-float("inf")), axis=0)
    low, reach = _range(least, most, clip, EPSILON, SYMMETRIC)
    for start in range(0, share, BLOCK):
        column = first + start + tl.arange(0, BLOCK)
        value, _ = finite_or_zero(x + group * n + column, column < n)
        tl.store(out + group * n + column, _on_grid(value, low, reach, clip, LEVELS), mask=column < n)
    reach = tl.where(most < float("inf"), reach, float("inf"))  # a clip makes a finite range of an infinite value
    tl.store(reaches + group, reach, mask=part % parts == 0)


@triton.jit
def _straight_through(grad, x, out, bad, size, limit, BLOCK: tl.constexpr):
    """(T.10): the gradient where |x| is below a limit."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    slope, wrong = finite_or_zero(grad + at, inside)
    value, also = finite_or_zero(x + at, inside)
    tl.store(out + at, tl.where(tl.abs(value) < limit, slope, 0.0), mask=inside)
    tl.store(bad + tl.program_id(0), tl.max(tl.maximum(wrong, also), axis=0))


class Ternary(NamedTuple):
    """What a launch gives: answers (groups, n), scales (groups,), and marks, one of them above 0 if x is not finite."""

    out: Tensor
    scale: Tensor
    bad: Tensor


def _split(n: int) -> tuple[int, int]:
    """Parts of a group that does not fit a tile, and values of a part, whole tiles."""
    share = TILE * cdiv(cdiv(n, TILE), _PARTS)
    return cdiv(n, share), share


def ternary(x: Tensor, clip: float, threshold: float, kind: int, bits: int = 2) -> Ternary:
    """Values (kind 0), codes (1), or levels of a clamped grid (2, 3) of contiguous groups (count, n), not empty."""
    count, n = x.shape
    out = torch.empty(x.shape, dtype=torch.int32 if kind == 1 else torch.float32, device=x.device)
    scale = torch.empty(count, dtype=torch.float32, device=x.device)
    constants: dict[str, Any] = {"THRESHOLD": threshold, "KIND": kind, "BITS": bits}
    if n <= TILE:
        rows, block = tiling(n)
        bad = flags(cdiv(count, rows), x)
        launch(_ternary_rows, len(bad), x, out, scale, bad, count, n, clip, **constants, ROWS=rows, BLOCK=block)
        return Ternary(out, scale, bad)
    parts, share = _split(n)
    programs = count * parts
    bad, (totals, tops, counts) = flags(programs, x), torch.empty((3, programs), dtype=torch.float64, device=x.device)
    cut, tile = (n, parts, share, clip), {"PARTS": next_power_of_2(parts), "BLOCK": TILE}
    launch(_magnitudes, programs, x, totals, bad, *cut, BLOCK=TILE)
    launch(_above, programs, x, totals, tops, counts, *cut, THRESHOLD=threshold, **tile)
    launch(_ternary_parts, programs, x, out, scale, totals, tops, counts, *cut, **constants, **tile)
    return Ternary(out, scale, bad)


def min_max(x: Tensor, levels: int, clip: float, epsilon: float, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Values of contiguous groups (count, n), not empty, and their ranges in float64, infinite where x is not finite.

    A range whose product with ``levels`` leaves float32 makes no sense of its group; the caller refuses it.
    """
    count, n = x.shape
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    reaches = torch.empty(count, dtype=torch.float64, device=x.device)
    constants: dict[str, Any] = {"LEVELS": float(levels), "EPSILON": epsilon, "SYMMETRIC": symmetric}
    if n <= TILE:
        rows, block = tiling(n)
        programs = cdiv(count, rows)
        launch(_min_max_rows, programs, x, out, reaches, count, n, clip, **constants, ROWS=rows, BLOCK=block)
        return out, reaches
    parts, share = _split(n)
    lows, highs = torch.empty((2, count * parts), dtype=torch.float32, device=x.device)
    cut, tile = (n, parts, share), {"PARTS": next_power_of_2(parts), "BLOCK": TILE}
    launch(_extremes, count * parts, x, lows, highs, *cut, BLOCK=TILE)
    launch(_min_max_parts, count * parts, x, out, reaches, lows, highs, *cut, clip, **constants, **tile)
    return out, reaches


def straight_through(grad: Tensor, x: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """The gradient inside the limit, float32, and marks of what is not finite; contiguous, not empty."""
    out = torch.empty(grad.shape, dtype=torch.float32, device=grad.device)
    bad = flags(cdiv(grad.numel(), TILE), grad)
    launch(_straight_through, len(bad), grad, x, out, bad, grad.numel(), limit, BLOCK=TILE)
    return out, bad
