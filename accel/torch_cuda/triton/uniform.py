"""Kernels of chapter Q: one program works on a run of outputs of one row.

The arithmetic is that of the specification: a division rounded to nearest (Triton's plain ``/`` of float32 is not),
half to even, no fused multiply-add, zero points added as integers.
"""

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

from .common import cdiv, next_power_of_2, round_half_even

__all__ = ["dequantize", "flat_groups", "launch", "place", "quantize"]

_BLOCK = 1024  # most outputs of a program


@triton.jit
def place(BLOCK: tl.constexpr):
    """Row of this program, as 64 bits, and its columns."""
    return tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _quantize(x, scale, zero, codes, k, groups, size, low, high, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """codes = clip(round(x / s) + z, low, high)"""
    row, column = place(BLOCK)
    inside = column < k
    group = row * groups + column // size
    s = tl.load(scale + group, mask=inside, other=1.0)
    z = tl.load(zero + group, mask=inside, other=0).to(tl.int64)
    value = tl.load(x + row * k + column, mask=inside, other=0.0)
    if WIDE:
        level = value.to(tl.float64) / s.to(tl.float64)
    else:
        level = tl.div_rn(value.to(tl.float32), s.to(tl.float32))
    level = round_half_even(level)
    # 2^40 is beyond any zero point, so clipping there first changes no code and keeps the integer sum in range
    level = tl.minimum(tl.maximum(level, -1099511627776.0), 1099511627776.0).to(tl.int64) + z
    tl.store(codes + row * k + column, tl.minimum(tl.maximum(level, low), high).to(tl.int32), mask=inside)


@triton.jit
def _dequantize(codes, scale, zero, values, k, groups, size, BLOCK: tl.constexpr):
    """values = s (code - z)"""
    row, column = place(BLOCK)
    inside = column < k
    group = row * groups + column // size
    s = tl.load(scale + group, mask=inside, other=1.0)
    z = tl.load(zero + group, mask=inside, other=0).to(tl.int64)
    level = tl.load(codes + row * k + column, mask=inside, other=0).to(tl.int64) - z
    tl.store(values + row * k + column, level.to(s.dtype) * s, mask=inside)


def launch(kernel: Any, outputs: Tensor, *args: Any, **constants: Any) -> None:
    """Run a kernel with one lane per entry of ``outputs``, seen as rows along its last axis."""
    width = outputs.shape[-1] if outputs.ndim else 1
    block = min(_BLOCK, next_power_of_2(width))
    rows = outputs.numel() // width
    kernel[(rows, cdiv(width, block))](*args, **constants, BLOCK=block, enable_fp_fusion=False)


def flat_groups(parameter: Tensor, shape: torch.Size) -> tuple[Tensor, int, int]:
    """A grid parameter as contiguous rows, one per row of the values; groups per row; columns per group."""
    if not shape:
        return parameter, 1, 1
    groups = parameter.shape[-1]
    return parameter.expand(*shape[:-1], groups).contiguous(), groups, shape[-1] // groups


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """Codes of checked arguments; see :func:`lowbit.accel.torch_cuda.quantize`."""
    codes = torch.empty(x.shape, dtype=torch.int32, device=x.device)
    if codes.numel():
        s, groups, size = flat_groups(scale, x.shape)
        z, _, _ = flat_groups(zero_point, x.shape)
        k = x.shape[-1] if x.ndim else 1
        wide = torch.float64 in (x.dtype, s.dtype)
        launch(_quantize, codes, x.contiguous(), s, z, codes, k, groups, size, low, high, WIDE=wide)
    return codes


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, dtype: torch.dtype) -> Tensor:
    """Values of checked arguments; see :func:`lowbit.accel.torch_cuda.dequantize`."""
    values = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    if values.numel():
        s, groups, size = flat_groups(scale.to(dtype), codes.shape)
        z, _, _ = flat_groups(zero_point, codes.shape)
        k = codes.shape[-1] if codes.ndim else 1
        launch(_dequantize, values, codes.contiguous(), s, z, values, k, groups, size)
    return values
