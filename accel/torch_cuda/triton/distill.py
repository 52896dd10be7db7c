"""Kernel of chapter W: both softmaxes, the divergence and its gradient of whole rows of scores, each read once.

What lies beyond the length of a sentence is not read; its gradient is written as 0 by the same program.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import cdiv, finite_or_zero, launch, tiling

__all__ = ["attention_map_loss"]


@triton.jit
def _log_softmax(x, inside, live):
    """Logarithms of the softmax over the entries inside; 0 for the others and for rows without any."""
    top = tl.where(live, tl.max(tl.where(inside, x, -float("inf")), axis=1), 0.0)
    shifted = tl.where(inside, x - top[:, None], 0.0)
    total = tl.sum(tl.where(inside, tl.exp(shifted), 0.0), axis=1)
    return tl.where(inside, shifted - tl.log(tl.where(live, total, 1.0))[:, None], 0.0)


@triton.jit
def _attention_map(
    student, teacher, lengths, loss, gradient, rows, n, queries, share, log_floor,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Term of (W.10) and gradient (W.11) of every row; ``queries`` rows to a sentence, B·H maps in ``share``.

    The term of a row that holds what is not finite is NaN.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    length = tl.load(lengths + row // queries, mask=row < rows, other=0).to(tl.int32)
    live = (row < rows) & (row % n < length)
    inside = live[:, None] & (column[None, :] < length[:, None])
    place = row[:, None] * n + column[None, :]
    s, wrong = finite_or_zero(student + place, inside)
    t, also = finite_or_zero(teacher + place, inside)
    log_q = _log_softmax(s, inside, live)
    log_p = tl.maximum(_log_softmax(t, inside, live), log_floor)
    a = tl.where(inside, tl.exp(log_p), 0.0)
    floored = tl.maximum(log_q, log_floor)
    each = tl.sum(a * (log_p - floored), axis=1).to(tl.float64)
    a = tl.where(floored == log_q, a, 0.0)
    slope = tl.where(inside, tl.exp(log_q), 0.0) * tl.sum(a, axis=1)[:, None] - a
    mean = tl.where(live, length, 1).to(tl.float64)
    factor = (1.0 / (mean * share)).to(tl.float32)
    tl.store(gradient + place, slope * factor[:, None], mask=(row < rows)[:, None] & (column < n)[None, :])
    marks = tl.max(tl.maximum(wrong, also), axis=1)
    tl.store(loss + row, tl.where(marks > 0, float("nan"), each / mean), mask=row < rows)


def attention_map_loss(student: Tensor, teacher: Tensor, lengths: Tensor, log_floor: float) -> tuple[Tensor, Tensor]:
    """Terms of the loss, float64 (B, H, n), and gradient of contiguous scores (B, H, n, n), not empty."""
    batch, heads, n, _ = student.shape
    gradient = torch.empty(student.shape, dtype=torch.float32, device=student.device)
    loss = torch.empty(student.shape[:3], dtype=torch.float64, device=student.device)
    together, block = tiling(n, 16384)
    together = min(together, max(1, 4096 // block))
    programs, sizes = cdiv(loss.numel(), together), (loss.numel(), n, heads * n, batch * heads)
    arrays = (student, teacher, lengths.contiguous(), loss, gradient)
    launch(_attention_map, programs, *arrays, *sizes, log_floor, ROWS=together, BLOCK=block)
    return loss, gradient
