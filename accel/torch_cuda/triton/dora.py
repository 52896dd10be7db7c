"""Kernel of chapter D: norms of updated rows, a tile at a time in registers."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false
# (Triton reads annotations of kernels as its own types)

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import cdiv, next_power_of_2

__all__ = ["dora_norm"]


@triton.jit
def _dora_norm(w, b, a, norms, m, k, r, w_row, w_column, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """norms = ‖W + B A‖ by rows: V lives in registers, a tile at a time, in float64"""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    present = row < m
    total = tl.zeros((ROWS,), dtype=tl.float64)
    for start in range(0, k, BLOCK):
        column = start + tl.arange(0, BLOCK).to(tl.int64)
        inside = present[:, None] & (column < k)[None, :]
        place = w + row[:, None] * w_row + column[None, :] * w_column
        v = tl.load(place, mask=inside, other=0.0).to(tl.float64)
        for j in range(r):
            left = tl.load(b + row * r + j, mask=present, other=0.0).to(tl.float64)
            right = tl.load(a + j * k + column, mask=column < k, other=0.0).to(tl.float64)
            v += left[:, None] * right[None, :]
        total += tl.sum(v * v, axis=1)
    tl.store(norms + row, tl.sqrt(total).to(norms.dtype.element_ty), mask=present)


def dora_norm(w: Tensor, b: Tensor, a: Tensor) -> Tensor:
    """Norms of the rows of W + B A, the scaling folded into B; w may have any strides, its values any precision."""
    m, k = w.shape
    norms = torch.empty(m, dtype=torch.float64 if w.dtype == torch.float64 else torch.float32, device=w.device)
    if m:
        rows = 4
        block = max(16, min(256, next_power_of_2(max(k, 1))))
        arguments = (w, b.contiguous(), a.contiguous(), norms, m, k, a.shape[0], *w.stride())
        kernel: Any = _dora_norm
        kernel[(cdiv(m, rows),)](*arguments, ROWS=rows, BLOCK=block, enable_fp_fusion=True)
    return norms
