"""Kernels of chapter O: StatsQ row by row, and a step of the oscillation tracker in one pass over its state.

The first tile of a row stays in registers; what a row has beyond it is read once for every statistic.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import TILE, cdiv, finite_or_zero, flags, launch, round_half_even, tiling

__all__ = ["Tracked", "statsq", "statsq_pull", "track"]


@triton.jit
def _half_code(value, alpha, n):
    """k + ½ of (O.2)."""
    above = tl.where(alpha > 0.0, alpha, 1.0)[:, None]
    v = tl.div_rn(value, tl.broadcast_to(above, value.shape)) * n
    return tl.minimum(tl.maximum(round_half_even(v - 0.5), -n), n - 1.0) + 0.5


@triton.jit
def _scale(w, row, base, m, k, LONG: tl.constexpr, BLOCK: tl.constexpr):
    """α of (O.1) in float32, NaN where a weight is not finite; the first tile of every row."""
    column = tl.arange(0, BLOCK).to(tl.int64)
    first, wrong = finite_or_zero(w + base + column[None, :], (row < m)[:, None] & (column < k)[None, :])
    total = tl.sum(tl.abs(first), axis=1)
    marks = tl.max(wrong, axis=1)
    if LONG:
        for start in range(BLOCK, k, BLOCK):
            there = start + column
            value, bad = finite_or_zero(w + base + there[None, :], (row < m)[:, None] & (there < k)[None, :])
            total += tl.sum(tl.abs(value), axis=1)
            marks = tl.maximum(marks, tl.max(bad, axis=1))
    alpha = tl.div_rn(total, tl.zeros_like(total) + k) * 2.0
    return first, alpha, marks


@triton.jit
def _write(values, codes, place, inside, half, step, CODES: tl.constexpr):
    """Values and codes of a tile: (O.3)."""
    tl.store(values + place, half * step[:, None], mask=inside)
    if CODES:
        tl.store(codes + place, (half - 0.5).to(tl.int32), mask=inside)


@triton.jit
def _statsq(
    w, values, codes, scale, m, k, n, unit,
    CODES: tl.constexpr, ROWS: tl.constexpr, LONG: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(O.1) to (O.3); ``unit`` is 1/n, exactly, as n is a power of two."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    base = (row * k)[:, None]
    column = tl.arange(0, BLOCK).to(tl.int64)
    first, alpha, marks = _scale(w, row, base, m, k, LONG, BLOCK)
    step = alpha * unit
    half = _half_code(first, alpha, n)
    _write(values, codes, base + column[None, :], (row < m)[:, None] & (column < k)[None, :], half, step, CODES)
    if LONG:
        for start in range(BLOCK, k, BLOCK):
            there = start + column
            inside = (row < m)[:, None] & (there < k)[None, :]
            value, _wrong = finite_or_zero(w + base + there[None, :], inside)
            _write(values, codes, base + there[None, :], inside, _half_code(value, alpha, n), step, CODES)
    tl.store(scale + row, tl.where(marks > 0, float("nan"), alpha), mask=row < m)


@triton.jit
def _statsq_pull(w, grad, out, bad, m, k, n, unit, ROWS: tl.constexpr, LONG: tl.constexpr, BLOCK: tl.constexpr):
    """(O.5): the gradient through the scale."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    base = (row * k)[:, None]
    column = tl.arange(0, BLOCK).to(tl.int64)
    inside = (row < m)[:, None] & (column < k)[None, :]
    first, alpha, marks = _scale(w, row, base, m, k, LONG, BLOCK)
    slope, also = finite_or_zero(grad + base + column[None, :], inside)
    total = tl.sum(_half_code(first, alpha, n) * unit * slope, axis=1)
    marks = tl.maximum(marks, tl.max(also, axis=1))
    if LONG:
        for start in range(BLOCK, k, BLOCK):
            there = start + column
            present = (row < m)[:, None] & (there < k)[None, :]
            value, _wrong = finite_or_zero(w + base + there[None, :], present)
            slope, also = finite_or_zero(grad + base + there[None, :], present)
            total += tl.sum(_half_code(value, alpha, n) * unit * slope, axis=1)
            marks = tl.maximum(marks, tl.max(also, axis=1))
    pull = tl.div_rn(total * 2.0, tl.zeros_like(total) + k)[:, None]
    answer = tl.where(first > 0.0, pull, tl.where(first < 0.0, -pull, 0.0))
    tl.store(out + base + column[None, :], answer, mask=inside)
    if LONG:
        for start in range(BLOCK, k, BLOCK):
            there = start + column
            present = (row < m)[:, None] & (there < k)[None, :]
            value, _wrong = finite_or_zero(w + base + there[None, :], present)
            answer = tl.where(value > 0.0, pull, tl.where(value < 0.0, -pull, 0.0))
            tl.store(out + base + there[None, :], answer, mask=present)
    tl.store(bad + tl.program_id(0), tl.max(marks, axis=0))


@triton.jit
def _track(
    codes, previous, direction, frequency, total, average, frozen, target,
    k_out, d_out, f_out, total_out, average_out, frozen_out, target_out, bad, size, keep, momentum, limit,
    AVERAGE: tl.constexpr, REWRITTEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(O.6) to (O.10)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    held = tl.load(frozen + at, mask=inside, other=0) != 0
    goal = tl.load(target + at, mask=inside, other=0).to(tl.int32)
    k = tl.where(held, goal, tl.load(codes + at, mask=inside, other=0).to(tl.int32))
    before = tl.load(previous + at, mask=inside, other=0).to(tl.int32)
    went = tl.load(direction + at, mask=inside, other=0).to(tl.int32)
    d = (before > k).to(tl.int32) - (before < k).to(tl.int32)
    turned = d * went == -1
    often, wrong = finite_or_zero(frequency + at, inside)
    mean, also = finite_or_zero(average + at, inside)
    often = often * keep + tl.where(turned, momentum, 0.0)
    above = often > limit
    written = above
    if not REWRITTEN:
        written = above & (held == 0)
    pinned = k
    if AVERAGE:
        pinned = round_half_even(mean).to(tl.int32)
    counted = tl.load(total + at, mask=inside, other=0).to(tl.int32) + turned.to(tl.int32)
    tl.store(k_out + at, k, mask=inside)
    tl.store(d_out + at, tl.where(d != 0, d, went), mask=inside)
    tl.store(f_out + at, often, mask=inside)
    tl.store(total_out + at, counted, mask=inside)
    tl.store(average_out + at, mean * keep + k.to(tl.float32) * momentum, mask=inside)
    tl.store(frozen_out + at, held | above, mask=inside)
    tl.store(target_out + at, tl.where(written, pinned, goal), mask=inside)
    unknown = (went < -1) | (went > 1)
    tl.store(bad + tl.program_id(0), tl.max(tl.maximum(tl.maximum(wrong, also), unknown.to(tl.int32) * 2), axis=0))


def statsq(rows: Tensor, n: int, with_codes: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """Values, codes and scales of contiguous rows (m, k), not empty; a scale is NaN where a weight is not finite."""
    m, k = rows.shape
    values = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
    codes = torch.empty(rows.shape, dtype=torch.int32, device=rows.device) if with_codes else None
    scale = torch.empty(m, dtype=torch.float32, device=rows.device)
    together, block = tiling(k)
    arrays = (rows, values, values if codes is None else codes, scale)
    constants = {"CODES": with_codes, "ROWS": together, "LONG": k > block, "BLOCK": block}
    launch(_statsq, cdiv(m, together), *arrays, m, k, float(n), 1 / n, **constants)
    return values, codes, scale


def statsq_pull(rows: Tensor, grad: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The gradient through the scale of contiguous rows (m, k), not empty, and marks of what is not finite."""
    m, k = rows.shape
    out = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
    together, block = tiling(k)
    bad = flags(cdiv(m, together), rows)
    constants = {"ROWS": together, "LONG": k > block, "BLOCK": block}
    launch(_statsq_pull, len(bad), rows, grad, out, bad, m, k, float(n), 1 / n, **constants)
    return out, bad


class Tracked(NamedTuple):
    """The fields of the state in their order, and marks: 1 for what is not finite, 2 for what is no direction."""

    state: tuple[Tensor, ...]
    bad: Tensor


def track(
    codes: Tensor, state: tuple[Tensor, ...], momentum: float, limit: float, average: bool, rewritten: bool
) -> Tracked:
    """One step from the seven fields of a state but the codes, all contiguous, of one shape, not empty."""
    kinds = (torch.int32, torch.int32, torch.float32, torch.int32, torch.float32, torch.bool, torch.int32)
    found = tuple(torch.empty(codes.shape, dtype=kind, device=codes.device) for kind in kinds)
    bad = flags(cdiv(codes.numel(), TILE // 4), codes)
    constants = {"AVERAGE": average, "REWRITTEN": rewritten, "BLOCK": TILE // 4, "num_warps": 4}
    launch(_track, len(bad), codes, *state, *found, bad, codes.numel(), 1 - momentum, momentum, limit, **constants)
    return Tracked(found, bad)
