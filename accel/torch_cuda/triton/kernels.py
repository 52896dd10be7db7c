"""Kernels: one program works on a run of outputs of one row, or on a tile of a product.

The arithmetic of chapter Q is that of the specification: a division rounded to nearest (Triton's plain ``/`` of
float32 is not), half to even, no fused multiply-add, zero points added as integers.
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

from .common import round_half_even
from .coreset import scores
from .distill import attention_map_loss
from .hadamard import hadamard_transform
from .learned_step import lsq, lsq_gradient
from .lut import evaluate_codes, lookup_codes
from .oscillation import statsq, statsq_pull, track
from .ternary import min_max, straight_through, ternary

__all__ = [
    "INTERPRETED",
    "attention_map_loss",
    "bcq_product",
    "codebook_matmul",
    "dequantize",
    "dequantize_packed",
    "dora_norm",
    "evaluate_codes",
    "hadamard_transform",
    "lookup_codes",
    "lsq",
    "lsq_gradient",
    "min_max",
    "pack",
    "quantize",
    "scores",
    "statsq",
    "statsq_pull",
    "straight_through",
    "ternary",
    "track",
    "unpack",
]

_BLOCK = 1024  # most outputs of a program


@triton.jit
def _place(BLOCK: tl.constexpr):
    """Row of this program, as 64 bits, and its columns."""
    return tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _unpacked(words, column, inside, BITS: tl.constexpr, PADDED: tl.constexpr):
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
def _quantize(x, scale, zero, codes, k, groups, size, low, high, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """codes = clip(round(x / s) + z, low, high)"""
    row, column = _place(BLOCK)
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
    row, column = _place(BLOCK)
    inside = column < k
    group = row * groups + column // size
    s = tl.load(scale + group, mask=inside, other=1.0)
    z = tl.load(zero + group, mask=inside, other=0).to(tl.int64)
    level = tl.load(codes + row * k + column, mask=inside, other=0).to(tl.int64) - z
    tl.store(values + row * k + column, level.to(s.dtype) * s, mask=inside)


@triton.jit
def _pack(codes, words, k, width, BITS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr):
    """Every lane gathers the codes that touch its word."""
    row, word = _place(BLOCK)
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
    row, column = _place(BLOCK)
    inside = column < k
    tl.store(codes + row * k + column, _unpacked(words + row * width, column, inside, BITS, PADDED), mask=inside)


@triton.jit
def _dequantize_packed(
    words, scale, zero, values, k, groups, size, width, offset, BITS: tl.constexpr, PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """values = s (code - offset - z), straight from the words"""
    row, column = _place(BLOCK)
    inside = column < k
    group = row * groups + column // size
    s = tl.load(scale + group, mask=inside, other=1.0)
    z = tl.load(zero + group, mask=inside, other=0).to(tl.int64)
    code = _unpacked(words + row * width, column, inside, BITS, PADDED).to(tl.int64)
    tl.store(values + row * k + column, (code - offset - z).to(s.dtype) * s, mask=inside)


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


@triton.jit
def _codebook_matmul(
    x, words, scale, levels, y, tokens, m, k, width, size, BITS: tl.constexpr, PADDED: tl.constexpr,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """y[t, i] = sum over j of x[t, j] s level: codes are looked up where they are used, sums stay in float32.

    DOT tiles go through the matrix units in full float32; one token at a time is a sum of products.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    total = tl.zeros((TOKENS, ROWS), dtype=tl.float32)
    place = tl.arange(0, COLUMNS)
    here = row.to(tl.int64)[:, None]
    for start in range(0, k, COLUMNS):
        column = start + place
        inside = (row < m)[:, None] & (column < k)[None, :]
        code = _unpacked(words + here * width, column[None, :], inside, BITS, PADDED)
        s = tl.load(scale + (here * k + column[None, :]) // size, mask=inside, other=0.0)
        w = tl.load(levels + code) * s
        reach = (token < tokens)[:, None] & (column < k)[None, :]
        value = tl.load(x + token.to(tl.int64)[:, None] * k + column[None, :], mask=reach, other=0.0)
        if DOT:
            total = tl.dot(value, tl.trans(w), total, input_precision="ieee")
        else:
            total += tl.sum(value[:, None, :] * w[None, :, :], axis=2)
    kept = (token < tokens)[:, None] & (row < m)[None, :]
    tl.store(y + token.to(tl.int64)[:, None] * m + row[None, :], total, mask=kept)


@triton.jit
def _bcq_product(
    x, planes, scale, offset, y, k, m, size, words, share,
    BITS: tl.constexpr, SHIFTED: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y[part, token, row] = sum over this part's words, groups and planes of scale * sum of +-x, plus offsets."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2)
    inside = row < m
    line = tl.arange(0, 32)
    total = tl.zeros((BLOCK,), dtype=y.dtype.element_ty)
    for word in range(part * share, tl.minimum(part * share + share, words)):
        if ALIGNED:  # a word lies in one group: one scale per plane and row
            column = word * 32 + line
            value = tl.load(x + token * k + column, mask=column < k, other=0.0)
            group = (word * 32) // size
            if SHIFTED:
                shift = tl.load(offset + group * m + row, mask=inside, other=0.0)
                total += shift * tl.sum(value, axis=0)
            for plane in tl.static_range(BITS):
                place = (word * BITS + plane) * m
                keys = tl.load(planes + place + row, mask=inside, other=0)
                bit = (keys[None, :] >> line[:, None]) & 1
                signed = tl.where(bit != 0, value[:, None], -value[:, None])
                alpha = tl.load(scale + (group * BITS + plane) * m + row, mask=inside, other=0.0)
                total += alpha * tl.sum(signed, axis=0)
        else:  # a group of any length: column by column
            for bit in range(tl.minimum(32, k - word * 32)):
                value = tl.load(x + token * k + word * 32 + bit)
                group = (word * 32 + bit) // size
                if SHIFTED:
                    total += tl.load(offset + group * m + row, mask=inside, other=0.0) * value
                for plane in tl.static_range(BITS):
                    place = (word * BITS + plane) * m
                    keys = tl.load(planes + place + row, mask=inside, other=0)
                    alpha = tl.load(scale + (group * BITS + plane) * m + row, mask=inside, other=0.0)
                    total += tl.where(((keys >> bit) & 1) != 0, alpha, -alpha) * value
    tokens = tl.num_programs(1)
    tl.store(y + (part.to(tl.int64) * tokens + token) * m + row, total, mask=inside)


INTERPRETED = not isinstance(_quantize, triton.runtime.JITFunction)
"""True when the kernels run on CPU tensors in Triton's interpreter."""


def _launch(kernel: Any, outputs: Tensor, *args: Any, **constants: Any) -> None:
    """Run a kernel with one lane per entry of ``outputs``, seen as rows along its last axis."""
    width = outputs.shape[-1] if outputs.ndim else 1
    block = min(_BLOCK, triton.next_power_of_2(width))
    rows = outputs.numel() // width
    kernel[(rows, triton.cdiv(width, block))](*args, **constants, BLOCK=block, enable_fp_fusion=False)


def _flat_groups(parameter: Tensor, shape: torch.Size) -> tuple[Tensor, int, int]:
    """A grid parameter as contiguous rows, one per row of the values; groups per row; columns per group."""
    if not shape:
        return parameter, 1, 1
    groups = parameter.shape[-1]
    return parameter.expand(*shape[:-1], groups).contiguous(), groups, shape[-1] // groups


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """Codes of checked arguments; see :func:`lowbit.accel.torch_cuda.quantize`."""
    codes = torch.empty(x.shape, dtype=torch.int32, device=x.device)
    if codes.numel():
        s, groups, size = _flat_groups(scale, x.shape)
        z, _, _ = _flat_groups(zero_point, x.shape)
        k = x.shape[-1] if x.ndim else 1
        wide = torch.float64 in (x.dtype, s.dtype)
        _launch(_quantize, codes, x.contiguous(), s, z, codes, k, groups, size, low, high, WIDE=wide)
    return codes


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, dtype: torch.dtype) -> Tensor:
    """Values of checked arguments; see :func:`lowbit.accel.torch_cuda.dequantize`."""
    values = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    if values.numel():
        s, groups, size = _flat_groups(scale.to(dtype), codes.shape)
        z, _, _ = _flat_groups(zero_point, codes.shape)
        k = codes.shape[-1] if codes.ndim else 1
        _launch(_dequantize, values, codes.contiguous(), s, z, values, k, groups, size)
    return values


def pack(codes: Tensor, bits: int, padded: bool, width: int) -> Tensor:
    """Words of checked arguments; see :func:`lowbit.accel.torch_cuda.pack`."""
    n, k = codes.shape
    words = torch.empty((n, width), dtype=torch.int32, device=codes.device)
    if words.numel():
        _launch(_pack, words, codes.contiguous(), words, k, width, BITS=bits, PADDED=padded)
    return words


def unpack(words: Tensor, bits: int, padded: bool, length: int) -> Tensor:
    """Codes of checked arguments; see :func:`lowbit.accel.torch_cuda.unpack`."""
    n, width = words.shape
    codes = torch.empty((n, length), dtype=torch.int32, device=words.device)
    if codes.numel():
        _launch(_unpack, codes, words.contiguous(), codes, length, width, BITS=bits, PADDED=padded)
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
        s, groups, size = _flat_groups(scale.to(dtype), values.shape)
        z, _, _ = _flat_groups(zero_point, values.shape)
        _launch(
            _dequantize_packed, values, words.contiguous(), s, z, values, length, groups, size, width, offset,
            BITS=bits, PADDED=padded,
        )  # fmt: skip
    return values


def dora_norm(w: Tensor, b: Tensor, a: Tensor) -> Tensor:
    """Norms of the rows of W + B A, the scaling folded into B; w may have any strides, its values any precision."""
    m, k = w.shape
    norms = torch.empty(m, dtype=torch.float64 if w.dtype == torch.float64 else torch.float32, device=w.device)
    if m:
        rows = 4
        block = max(16, min(256, triton.next_power_of_2(max(k, 1))))
        arguments = (w, b.contiguous(), a.contiguous(), norms, m, k, a.shape[0], *w.stride())
        kernel: Any = _dora_norm
        kernel[(triton.cdiv(m, rows),)](*arguments, ROWS=rows, BLOCK=block, enable_fp_fusion=True)
    return norms


def codebook_matmul(x: Tensor, words: Tensor, scale: Tensor, levels: Tensor, bits: int, block_size: int) -> Tensor:
    """Product of checked arguments in float32; see :func:`lowbit.accel.torch_cuda.codebook_matmul`."""
    (tokens, k), (m, width) = x.shape, words.shape
    y = torch.zeros((tokens, m), dtype=torch.float32, device=x.device)
    if min(tokens, k, m) == 0:
        return y
    x, scale = (a.to(torch.float32).contiguous() for a in (x, scale))
    dot = tokens >= 16
    rows, columns, together = (64, 32, 16 if tokens < 32 else 32) if dot else (16, 128, 1)
    grid = (triton.cdiv(m, rows), triton.cdiv(tokens, together))
    constants: dict[str, Any] = {"BITS": bits, "PADDED": False, "ROWS": rows, "TOKENS": together, "COLUMNS": columns}
    constants |= {"DOT": dot, "enable_fp_fusion": True}
    arrays = (x, words.contiguous(), scale, levels.to(torch.float32), y)
    _codebook_matmul[grid](*arrays, tokens, m, k, width, block_size, **constants)
    return y


def bcq_product(x: Tensor, planes: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """y = x Wᵀ of checked arguments; see :func:`lowbit.accel.torch_cuda.bcq_product`.

    The words of a row are shared between programs, so that a single token fills the device; their sums are added in
    one fixed order.
    """
    (tokens, k), (groups, bits, m) = x.shape, scale.shape
    if 0 in (tokens, k, m):
        return torch.zeros((tokens, m), dtype=x.dtype, device=x.device)
    size, words = k // groups, planes.shape[0]
    share = max(1, triton.cdiv(words, 16))
    parts = triton.cdiv(words, share)
    block = min(64, triton.next_power_of_2(m))
    y = torch.empty((parts, tokens, m), dtype=x.dtype, device=x.device)
    shift = scale if offset is None else offset.contiguous()
    kernel: Any = _bcq_product
    kernel[(triton.cdiv(m, block), tokens, parts)](
        x.contiguous(), planes.contiguous(), scale.contiguous(), shift, y, k, m, size, words, share,
        BITS=bits, SHIFTED=offset is not None, ALIGNED=size % 32 == 0, BLOCK=block, enable_fp_fusion=True,
    )  # fmt: skip
    return y.sum(0)
