"""Kernels of chapter Q, second half: codes in words, gathered, taken out, and dequantized on the way."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false
# (Triton reads annotations of kernels as its own types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .uniform import flat_groups, launch, place

__all__ = ["dequantize_packed", "pack", "unpack", "unpacked"]


@triton.jit
def unpacked(words, column, inside, BITS: tl.constexpr, PADDED: tl.constexpr):
    """Codes of the given columns of one packed row.  [Q-6, Q-7]"""
    if PADDED:
        word = column // (32 // BITS)
        shift = (column % (32 // BITS)) * BITS
    else:
        word = (column * BITS) // 32
        shift = (column * BITS) % 32
    low = tl.load(words + word, mask=inside, other=0).to(tl.uint32, bitcast=True)
    crosses = inside & (shift + BITS > 32)
    high = tl.load(words + word + 1, mask=crosses, other=0).to(tl.uint32, bitcast=True)
    # as 64 bits, so that a shift by 32 - shift = 32 is defined
    both = low.to(tl.uint64) | (high.to(tl.uint64) << 32)
    return ((both >> shift.to(tl.uint64)) & ((1 << BITS) - 1)).to(tl.int32)


@triton.jit
def _pack(codes, words, k, width, BITS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr):
    """Every lane gathers the codes that touch its word."""
    row, word = place(BLOCK)
    inside = word < width
    codes += row * k
    result = tl.zeros((BLOCK,), dtype=tl.uint64)
    if PADDED:
        for slot in tl.static_range(32 // BITS):
            column = word * (32 // BITS) + slot
            code = tl.load(codes + column, mask=inside & (column < k), other=0)
            result |= code.to(tl.uint64) << (slot * BITS)
    else:
        first = (word * 32) // BITS
        # codes are laid out from the first one's own bit; what it has in the word before is shifted out at the end
        ahead = word * 32 - first * BITS
        for slot in tl.static_range(31 // BITS + 2):
            column = first + slot
            code = tl.load(codes + column, mask=inside & (column < k), other=0)
            result |= code.to(tl.uint64) << (slot * BITS)
        result = result >> ahead.to(tl.uint64)
    result = (result & 0xFFFFFFFF).to(tl.uint32).to(tl.int32, bitcast=True)
    tl.store(words + row * width + word, result, mask=inside)


@triton.jit
def _unpack(words, codes, k, width, BITS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr):
    row, column = place(BLOCK)
    inside = column < k
    tl.store(codes + row * k + column, unpacked(words + row * width, column, inside, BITS, PADDED), mask=inside)


@triton.jit
def _dequantize_packed(
    words, scale, zero, values, k, groups, size, width, offset, BITS: tl.constexpr, PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """values = s (code - offset - z), straight from the words"""
    row, column = place(BLOCK)
    inside = column < k
    group = row * groups + column // size
    s = tl.load(scale + group, mask=inside, other=1.0)
    z = tl.load(zero + group, mask=inside, other=0).to(tl.int64)
    code = unpacked(words + row * width, column, inside, BITS, PADDED).to(tl.int64)
    tl.store(values + row * k + column, (code - offset - z).to(s.dtype) * s, mask=inside)


def pack(codes: Tensor, bits: int, padded: bool, width: int) -> Tensor:
    """Words of checked arguments; see :func:`lowbit.accel.torch_cuda.pack`."""
    n, k = codes.shape
    words = torch.empty((n, width), dtype=torch.int32, device=codes.device)
    if words.numel():
        launch(_pack, words, codes.contiguous(), words, k, width, BITS=bits, PADDED=padded)
    return words


def unpack(words: Tensor, bits: int, padded: bool, length: int) -> Tensor:
    """Codes of checked arguments; see :func:`lowbit.accel.torch_cuda.unpack`."""
    n, width = words.shape
    codes = torch.empty((n, length), dtype=torch.int32, device=words.device)
    if codes.numel():
        launch(_unpack, codes, words.contiguous(), codes, length, width, BITS=bits, PADDED=padded)
    return codes


def dequantize_packed(
    words: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    padded: bool,
    length: int,
    offset: int,
    dtype: torch.dtype,
) -> Tensor:
    """Values of checked arguments; see :func:`lowbit.accel.torch_cuda.packing.dequantize_packed`."""
    n, width = words.shape
    values = torch.empty((n, length), dtype=dtype, device=words.device)
    if values.numel():
        s, groups, size = flat_groups(scale.to(dtype), values.shape)
        z, _, _ = flat_groups(zero_point, values.shape)
        launch(
            _dequantize_packed, values, words.contiguous(), s, z, values, length, groups, size, width, offset,
            BITS=bits, PADDED=padded,
        )  # fmt: skip
    return values
