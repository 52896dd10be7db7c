"""Kernels of chapter L: codes to values of a table, in integers. Every program makes the entries for itself."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import TILE, cdiv, launch

__all__ = ["evaluate_codes", "lookup_codes"]


@triton.jit
def _values(q, breakpoints, slopes, intercepts, pieces, RIGHT: tl.constexpr):
    """k q + b of the piece of every code, in the type of the codes: which breakpoints are to its left is counted."""
    piece = tl.zeros_like(q).to(tl.int32)
    for i in range(pieces - 1):
        p = tl.load(breakpoints + i)
        if RIGHT:
            piece += (p <= q).to(tl.int32)
        else:
            piece += (p < q).to(tl.int32)
    return tl.load(slopes + piece).to(q.dtype) * q + tl.load(intercepts + piece).to(q.dtype)


@triton.jit
def _evaluate_bytes(q, breakpoints, slopes, intercepts, out, size, pieces, RIGHT: tl.constexpr, BLOCK: tl.constexpr):
    """int8 codes: a list of the 256 values, from which each takes its own without leaving the chip."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    code = tl.load(q + at, mask=at < size, other=0).to(tl.int32)
    entries = _values(tl.arange(0, 256) - 128, breakpoints, slopes, intercepts, pieces, RIGHT)
    tl.store(out + at, tl.gather(entries, code + 128, axis=0), mask=at < size)


@triton.jit
def _evaluate(
    q, breakpoints, slopes, intercepts, out, size, pieces,
    RIGHT: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Codes of any width, one by one."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    code = tl.load(q + at, mask=at < size, other=0).to(tl.int64 if WIDE else tl.int32)
    value = _values(code, breakpoints, slopes, intercepts, pieces, RIGHT)
    tl.store(out + at, value.to(tl.int32), mask=at < size)


@triton.jit
def _look_up(q, entries, out, size, low, BLOCK: tl.constexpr):
    """entries[q − low]"""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    index = tl.load(q + at, mask=at < size, other=0).to(tl.int64) - low
    tl.store(out + at, tl.load(entries + index, mask=at < size, other=0), mask=at < size)


def evaluate_codes(q: Tensor, breakpoints: Tensor, slopes: Tensor, intercepts: Tensor, right: bool) -> Tensor:
    """Values of a checked int32 table at contiguous codes; see :func:`lowbit.accel.torch_cuda.evaluate_codes`."""
    out = torch.empty(q.shape, dtype=torch.int32, device=q.device)
    if out.numel():
        kernel = _evaluate_bytes if q.dtype == torch.int8 else _evaluate
        constants: dict[str, Any] = {} if q.dtype == torch.int8 else {"WIDE": q.dtype == torch.int64}
        arrays = (q, breakpoints.contiguous(), slopes.contiguous(), intercepts.contiguous(), out)
        sizes = (q.numel(), slopes.numel())
        launch(kernel, cdiv(q.numel(), TILE), *arrays, *sizes, RIGHT=right, **constants, BLOCK=TILE)
    return out


def lookup_codes(q: Tensor, entries: Tensor, low: int) -> Tensor:
    """Entries of contiguous codes that are known to have one."""
    out = torch.empty(q.shape, dtype=entries.dtype, device=q.device)
    if out.numel():
        size = q.numel()
        launch(_look_up, cdiv(size, TILE), q, entries.contiguous(), out, size, low, BLOCK=TILE)
    return out
