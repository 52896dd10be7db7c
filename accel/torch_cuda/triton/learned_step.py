"""Kernels of chapter S: values in one pass, and all gradients in another.

x is (before, n, after) around the axis of its n steps. Seen as a matrix it has either one step to a row, (before · n,
after), or one to ``after`` columns, (before, n · after): the second where rows would be short. A program takes a tile;
its sums for the steps are partial results in memory, added up afterwards in one fixed order. There are no atomics.
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

from .common import TILE, cdiv, finite_or_zero, flags, launch, next_power_of_2, round_half_even

__all__ = ["Learned", "lsq", "lsq_gradient"]

_SHORT = 32  # entries of a row below which a program takes columns


@triton.jit
def _tile(wide, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Rows and columns of this program as 64 bits; ``wide`` tiles to a row."""
    tile = tl.program_id(0)
    row = (tile // wide).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return row, (tile % wide).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _spread(values, row, column, rows, width, n, after, BY_ROW: tl.constexpr):
    """The step, or the offset, of every entry of a tile: a column or a row."""
    if BY_ROW:
        found = tl.load(values + row % n, mask=row < rows, other=1.0)[:, None]
    else:
        found = tl.load(values + column // after, mask=column < width, other=1.0)[None, :]
    return found


@triton.jit
def _quotient(value, step, offset, row, column, rows, width, n, after, SHIFTED: tl.constexpr, BY_ROW: tl.constexpr):
    """((x − β) / s, s, β) of (S.1)."""
    s = _spread(step, row, column, rows, width, n, after, BY_ROW)
    beta = s
    if SHIFTED:
        beta = _spread(offset, row, column, rows, width, n, after, BY_ROW)
        value = value - beta
    return tl.div_rn(value, tl.broadcast_to(s, value.shape)), s, beta


@triton.jit
def _lsq(
    x, step, offset, out, bad, rows, width, wide, n, after, low, high,
    CODES: tl.constexpr, SHIFTED: tl.constexpr, BY_ROW: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x̂ = s round(clamp(v)) + β, or the codes."""
    row, column = _tile(wide, ROWS, BLOCK)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    place = row[:, None] * width + column[None, :]
    value, wrong = finite_or_zero(x + place, inside)
    v, s, beta = _quotient(value, step, offset, row, column, rows, width, n, after, SHIFTED, BY_ROW)
    code = round_half_even(tl.minimum(tl.maximum(v, low), high))
    if CODES:
        tl.store(out + place, code.to(tl.int32), mask=inside)
    else:
        answer = code * s
        if SHIFTED:
            answer = answer + beta
        tl.store(out + place, answer, mask=inside)
    tl.store(bad + tl.program_id(0), tl.max(tl.max(wrong, axis=1), axis=0))


@triton.jit
def _lsq_gradient(
    grad, x, step, offset, out, to_step, to_offset, bad, rows, width, wide, n, after, low, high,
    SHIFTED: tl.constexpr, BY_ROW: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """∂L/∂x, and this tile's terms of (S.6) and (S.7): one sum for each of its rows, or of its columns."""
    row, column = _tile(wide, ROWS, BLOCK)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    place = row[:, None] * width + column[None, :]
    value, wrong = finite_or_zero(x + place, inside)
    slope, also = finite_or_zero(grad + place, inside)
    v, _s, _beta = _quotient(value, step, offset, row, column, rows, width, n, after, SHIFTED, BY_ROW)
    c = tl.minimum(tl.maximum(v, low), high)
    within = c == v
    tl.store(out + place, tl.where(within, slope, 0.0), mask=inside)
    # outside, c is an end of the range and its own rounding
    term = slope * (round_half_even(c) - tl.where(within, c, 0.0))
    beyond = tl.where(within, 0.0, slope)
    if BY_ROW:
        partial = row * wide + tl.program_id(0) % wide
        tl.store(to_step + partial, tl.sum(term, axis=1), mask=row < rows)
        if SHIFTED:
            tl.store(to_offset + partial, tl.sum(beyond, axis=1), mask=row < rows)
    else:
        partial = (tl.program_id(0) // wide).to(tl.int64) * width + column
        tl.store(to_step + partial, tl.sum(term, axis=0), mask=column < width)
        if SHIFTED:
            tl.store(to_offset + partial, tl.sum(beyond, axis=0), mask=column < width)
    tl.store(bad + tl.program_id(0), tl.max(tl.max(tl.maximum(wrong, also), axis=1), axis=0))


class Learned(NamedTuple):
    """Gradients as (before, n, after) and, in float64, (n,); marks, one above 0 if an input is not finite."""

    x: Tensor
    step: Tensor
    offset: Tensor | None
    bad: Tensor


class _Layout(NamedTuple):
    """How a tensor is cut."""

    by_row: bool
    rows: int
    width: int
    wide: int  # tiles to a row
    tall: int  # tiles to a column
    tile: dict[str, Any]


def _layout(shape: torch.Size) -> _Layout:
    before, n, after = shape
    by_row = after >= _SHORT or before == 1
    rows, width = (before * n, after) if by_row else (before, n * after)
    block = min(TILE if by_row else 128, next_power_of_2(width))
    together = min(max(1, TILE // block), next_power_of_2(rows))
    tile: dict[str, Any] = {"BY_ROW": by_row, "ROWS": together, "BLOCK": block}
    return _Layout(by_row, rows, width, cdiv(width, block), cdiv(rows, together), tile)


def lsq(x: Tensor, step: Tensor, offset: Tensor | None, low: int, high: int, codes: bool) -> tuple[Tensor, Tensor]:
    """Values, or codes, of contiguous x (before, n, after), not empty, with float32 (n,) steps; and marks."""
    cut = _layout(x.shape)
    out = torch.empty(x.shape, dtype=torch.int32 if codes else torch.float32, device=x.device)
    bad = flags(cut.wide * cut.tall, x)
    sizes = (cut.rows, cut.width, cut.wide, *x.shape[1:], float(low), float(high))
    shift, constants = step if offset is None else offset, {"CODES": codes, "SHIFTED": offset is not None, **cut.tile}
    launch(_lsq, len(bad), x, step, shift, out, bad, *sizes, **constants)
    return out, bad


def lsq_gradient(grad: Tensor, x: Tensor, step: Tensor, offset: Tensor | None, low: int, high: int) -> Learned:
    """Gradients of arguments like those of :func:`lsq`, those of step and offset without their factor."""
    cut = _layout(x.shape)
    before, n, after = x.shape
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    bad = flags(cut.wide * cut.tall, x)
    sums = (before, n, cut.wide) if cut.by_row else (cut.tall, n, after)
    partial = torch.empty((1 if offset is None else 2, *sums), dtype=torch.float32, device=x.device)
    arrays = (grad, x, step, step if offset is None else offset, out, partial[0], partial[-1], bad)
    sizes = (cut.rows, cut.width, cut.wide, n, after, float(low), float(high))
    launch(_lsq_gradient, len(bad), *arrays, *sizes, SHIFTED=offset is not None, **cut.tile)
    total = partial.sum((1, 3), dtype=torch.float64)
    return Learned(out, total[0], None if offset is None else total[1], bad)
