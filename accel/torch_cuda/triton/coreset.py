"""Kernel of chapter X: a program scores whole rows of logits; sums keep pace with the maximum that is known so far.

The first tile of a row stays in registers. Error vectors need nothing else, however long a row: one reading of the
logits. A disagreement is a sum over differences of probabilities, which both sums must precede, so that what a row has
beyond its first tile is read twice. The order of every sum depends on the number of classes alone.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import cdiv, finite_or_zero, launch, tiling

__all__ = ["scores"]

_LEAST = tl.constexpr(-3.4028234663852886e38)  # of float32: a maximum over nothing, finite so that it subtracts


@triton.jit
def _exponentials(x, counted, top):
    """e^(x − top) of what counts; a difference may overflow, to a value whose exponential is 0."""
    return tl.where(counted, tl.exp(tl.where(counted, x - top[:, None], 0.0)), 0.0)


@triton.jit
def _largest(x, counted):
    return tl.max(tl.where(counted, x, _LEAST), axis=1)


@triton.jit
def _error_vector(x, base, present, first, own, y, classes, LONG: tl.constexpr, BLOCK: tl.constexpr):
    """EVS and marks: the share of the others, relative to their maximum, times √(1 + Σ of squared shares of it)."""
    column = tl.arange(0, BLOCK).to(tl.int64)
    counted = present[:, None] & (column < classes)[None, :] & (column[None, :] != y[:, None])
    top = _largest(first, counted)
    e = _exponentials(first, counted, top)
    total, square = tl.sum(e, axis=1), tl.sum(e * e, axis=1)
    marks = tl.zeros_like(total).to(tl.int32)
    if LONG:
        for start in range(BLOCK, classes, BLOCK):
            there = start + column
            exists = present[:, None] & (there < classes)[None, :]
            value, wrong = finite_or_zero(x + base + there[None, :], exists)
            counted = exists & (there[None, :] != y[:, None])
            higher = tl.maximum(top, _largest(value, counted))
            shrunk = tl.exp(top - higher)
            e = _exponentials(value, counted, higher)
            total = total * shrunk + tl.sum(e, axis=1)
            square = square * (shrunk * shrunk) + tl.sum(e * e, axis=1)
            marks = tl.maximum(marks, tl.max(wrong, axis=1))
            top = higher
    some = total > 0.0
    gap = tl.where(some, own - top, 0.0)
    # of e^own and e^top the smaller is taken in units of the larger
    ratio = tl.exp(-tl.abs(gap))
    others = tl.where(gap > 0.0, total * ratio, total)
    label = tl.where(gap > 0.0, 1.0, ratio)
    spread = tl.where(some, tl.div_rn(square, tl.where(some, total * total, 1.0)), 0.0)
    return tl.where(some, tl.div_rn(others, others + label), 0.0) * tl.sqrt_rn(1.0 + spread), marks


@triton.jit
def _sums(x, base, present, first, classes, LONG: tl.constexpr, BLOCK: tl.constexpr):
    """Maximum and Σ e^(x − maximum) of rows; marks of those that hold what is not finite beyond the first tile."""
    column = tl.arange(0, BLOCK).to(tl.int64)
    counted = present[:, None] & (column < classes)[None, :]
    top = _largest(first, counted)
    total = tl.sum(_exponentials(first, counted, top), axis=1)
    marks = tl.zeros_like(total).to(tl.int32)
    if LONG:
        for start in range(BLOCK, classes, BLOCK):
            there = start + column
            counted = present[:, None] & (there < classes)[None, :]
            value, wrong = finite_or_zero(x + base + there[None, :], counted)
            higher = tl.maximum(top, _largest(value, counted))
            total = total * tl.exp(top - higher) + tl.sum(_exponentials(value, counted, higher), axis=1)
            marks = tl.maximum(marks, tl.max(wrong, axis=1))
            top = higher
    return top, tl.where(present, total, 1.0), marks


@triton.jit
def _squares(value, other, counted, top, total, far, all_):
    """Σ (p − p′)² over a tile."""
    p = tl.div_rn(_exponentials(value, counted, top), tl.broadcast_to(total[:, None], value.shape))
    q = tl.div_rn(_exponentials(other, counted, far), tl.broadcast_to(all_[:, None], value.shape))
    return tl.sum((p - q) * (p - q), axis=1)


@triton.jit
def _scores(
    x, reference, labels, out, rows, classes, blend, rest,
    ERROR: tl.constexpr, GAP: tl.constexpr, ROWS: tl.constexpr, LONG: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """blend · EVS + rest · DS, NaN where a logit is not finite."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    present = row < rows
    base = (row * classes)[:, None]
    column = tl.arange(0, BLOCK).to(tl.int64)
    inside = present[:, None] & (column < classes)[None, :]
    first, wrong = finite_or_zero(x + base + column[None, :], inside)
    marks = tl.max(wrong, axis=1)
    score = tl.zeros((ROWS,), tl.float32)
    if GAP:
        other, also = finite_or_zero(reference + base + column[None, :], inside)
        marks = tl.maximum(marks, tl.max(also, axis=1))
        top, total, bad = _sums(x, base, present, first, classes, LONG, BLOCK)
        far, all_, worse = _sums(reference, base, present, other, classes, LONG, BLOCK)
        marks = tl.maximum(marks, tl.maximum(bad, worse))
        square = _squares(first, other, inside, top, total, far, all_)
        if LONG:
            for start in range(BLOCK, classes, BLOCK):
                there = start + column
                counted = present[:, None] & (there < classes)[None, :]
                value, _wrong = finite_or_zero(x + base + there[None, :], counted)
                second, _wrong = finite_or_zero(reference + base + there[None, :], counted)
                square += _squares(value, second, counted, top, total, far, all_)
        score = tl.sqrt_rn(square) * rest
    if ERROR:
        y = tl.load(labels + row, mask=present, other=0).to(tl.int64)
        own, _unlike = finite_or_zero(x + row * classes + y, present)
        found, bad = _error_vector(x, base, present, first, own, y, classes, LONG, BLOCK)
        marks = tl.maximum(marks, bad)
        score += found * blend
    tl.store(out + row, tl.where(marks > 0, float("nan"), score), mask=present)


def scores(x: Tensor, reference: Tensor | None, labels: Tensor | None, blend: float) -> Tensor:
    """blend · EVS + (1 − blend) · DS of contiguous logits (n, C), not empty, NaN where one is not finite.

    A part that counts nothing is left out, so that the ends of a schedule are the scores themselves to the last bit.
    """
    n, classes = x.shape
    out = torch.empty(n, dtype=torch.float32, device=x.device)
    together, block = tiling(classes)
    y = out if labels is None else labels.contiguous()
    parts = {"ERROR": labels is not None, "GAP": reference is not None}
    tile = {"ROWS": together, "LONG": classes > block, "BLOCK": block}
    arrays = (x, x if reference is None else reference, y, out)
    launch(_scores, cdiv(n, together), *arrays, n, classes, blend, 1 - blend, **parts, **tile)
    return out
