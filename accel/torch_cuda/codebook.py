"""N: codebooks, double quantization, packed products. The rules are those of :mod:`lowbit.reference.codebook`."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit.accel.common.codebook import check_codebook_product, check_scales
from lowbit.accel.common.refusals import check_block_size, check_matrix
from lowbit.reference.errors import SpecError
from lowbit.reference.types import DoubleScale

from . import policy, triton
from .arrays import as_integers, as_weights, operation, refuse_nan, row_chunks, working_dtype
from .packing import unpack_checked
from .rounding import level_table, midpoints_of

__all__ = [
    "block_scale",
    "codebook_matmul",
    "dequantize_blocks",
    "dequantize_scale",
    "dynamic_float",
    "normal_float",
    "quantize_blocks",
    "quantize_scale",
]

triton.KERNELS.update(codebook_matmul=triton.anything)

_HALVES = 1 << 19  # from this many codes on, a table over all half-words pays for itself


@operation
def normal_float(*, bits: int, offset: float = 0.9677083) -> Tensor:
    """NormalFloat levels: quantiles of the normal distribution, from -1 to 1.  [N-1]"""
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise SpecError("N-1", f"bits must be in 2..8, got {bits!r}")
    if isinstance(offset, bool) or not isinstance(offset, (int, float)) or not 0.5 < offset < 1:
        raise SpecError("N-1", f"offset must be above 0.5 and below 1, got {offset!r}")
    return normal_levels(bits, offset).to(policy.device())


def normal_levels(bits: int, offset: float = 0.9677083) -> Tensor:
    """:func:`normal_float` of checked arguments, on the CPU."""
    half = 2 ** (bits - 1)
    above = torch.special.ndtri(torch.linspace(0.5, offset, half + 1, dtype=torch.float64))
    below = torch.special.ndtri(torch.linspace(0.5, offset, half, dtype=torch.float64))
    levels: Tensor = torch.cat([-below[1:].flip(0), above]) / above[-1]
    return levels


@operation
def dynamic_float(*, bits: int) -> Tensor:
    """Levels of the dynamic float that double quantization uses.  [N-1a]"""
    if isinstance(bits, bool) or not isinstance(bits, int) or not 3 <= bits <= 8:
        raise SpecError("N-1a", f"bits must be in 3..8, got {bits!r}")
    decades = []
    for e in range(bits - 1):
        steps = torch.arange(1, 2 ** (e + 1), 2, dtype=torch.float64)
        decades.append((0.1 + steps * (0.9 / 2 ** (e + 1))) * 10.0 ** (e - bits + 2))
    positive, ends = torch.cat(decades), torch.tensor([0.0, 1.0], dtype=torch.float64)
    return torch.cat([-positive.flip(0), ends[:1], positive, ends[1:]]).to(policy.device())


def largest(x: Tensor, size: int) -> Tensor:
    """Largest magnitude of every block of ``size`` values of the flattened tensor, which has x's dtype."""
    flat = x.reshape(-1)
    whole = flat.numel() // size
    scale = torch.zeros(-(-flat.numel() // size), dtype=x.dtype, device=x.device)
    if whole:
        low, high = torch.aminmax(flat[: whole * size].view(whole, size), dim=1)
        scale[:whole] = torch.maximum(-low, high)
    if whole < scale.numel():
        scale[whole] = flat[whole * size :].abs().max()
    return scale


def _runs(count: int, size: int, block: int, device: torch.device) -> list[tuple[slice, slice]]:
    """Blocks and their values in runs of cache size; the last block may be short and then runs alone."""
    whole = size // block
    runs = [(b, slice(b.start * block, b.stop * block)) for b in row_chunks(whole, block, device)]
    return runs if whole == count else [*runs, (slice(whole, count), slice(whole * block, size))]


def nearest(x: Tensor, scale: Tensor, levels: Tensor, block: int) -> Tensor:
    """Codes; x and scale of one dtype, levels in float64."""
    flat = x.reshape(-1)
    codes = torch.empty(flat.numel(), dtype=torch.int32, device=x.device)
    middle = midpoints_of(levels, x.dtype)
    used = scale > 0
    divisor = torch.where(used, scale, 1.0)
    for blocks, values in _runs(scale.numel(), flat.numel(), block, x.device):
        count = blocks.stop - blocks.start
        ratio = flat[values].view(count, -1) / divisor[blocks, None]
        ratio.masked_fill_(~used[blocks, None], 0.0)
        codes[values] = torch.searchsorted(middle, ratio, right=False, out_int32=True).view(-1)
    return codes.view(x.shape)


def restored(codes: Tensor, scale: Tensor, levels: Tensor, block: int) -> Tensor:
    """scale · level in the dtype of the scale; codes were checked."""
    flat, table = codes.reshape(-1), levels.to(scale.dtype)
    values = torch.empty(flat.numel(), dtype=scale.dtype, device=codes.device)
    for blocks, place in _runs(scale.numel(), flat.numel(), block, codes.device):
        count = blocks.stop - blocks.start
        found = torch.index_select(table, 0, flat[place].to(torch.int32)).view(count, -1)
        values[place] = found.mul_(scale[blocks, None]).view(-1)
    return values.view(codes.shape)


def _check_codes(clause: str, codes: Tensor, count: int) -> None:
    if codes.numel():
        low, high = (int(t) for t in torch.aminmax(codes))
        if low < 0 or high >= count:
            raise SpecError(clause, f"code {low if low < 0 else high} has no level among {count}")


def _check_scale(clause: str, scale: Tensor, size: int, block: int, like: Tensor) -> Tensor:
    scale = as_weights(clause, "scale", scale, like=like)
    check_scales(clause, scale.shape, size, block)
    refuse_nan(clause, "scale", scale)
    return scale


@operation
def block_scale(x: Tensor, /, *, block_size: int = 64) -> Tensor:
    """Largest magnitude of every block of the flattened tensor.  [N-2]"""
    check_block_size("N-2", block_size)
    x = as_weights("N-2", "x", x)
    refuse_nan("N-2", "x", x)
    return largest(x.to(working_dtype(x)), block_size)


@operation
def quantize_blocks(x: Tensor, scale: Tensor, levels: Tensor, /, *, block_size: int = 64) -> Tensor:
    """Index of the level nearest to x / s; midpoints go to the lower index, a scale of 0 reads x as 0.  [N-3]"""
    check_block_size("N-3", block_size)
    x = as_weights("N-3", "x", x)
    wide = level_table("N-3", levels, like=x)
    scale = _check_scale("N-3", scale, x.numel(), block_size, x)
    if scale.numel() and bool((scale < 0).any()):
        raise SpecError("N-3", f"scale must be >= 0, the smallest is {float(scale.min())!r}")
    refuse_nan("N-3", "x", x)
    dtype = working_dtype(x, scale)
    return nearest(x.to(dtype), scale.to(dtype), wide, block_size)


@operation
def dequantize_blocks(codes: Tensor, scale: Tensor, levels: Tensor, /, *, block_size: int = 64) -> Tensor:
    """scale · level.  [N-4]"""
    check_block_size("N-4", block_size)
    codes = as_integers("N-4", "codes", codes)
    wide = level_table("N-4", levels, like=codes)
    scale = _check_scale("N-4", scale, codes.numel(), block_size, codes)
    _check_codes("N-4", codes, wide.numel())
    return restored(codes, scale.to(working_dtype(scale)), wide, block_size)


@operation
def quantize_scale(scale: Tensor, levels: Tensor, /, *, block_size: int = 256) -> DoubleScale[Tensor]:
    """Scales quantized around their mean, in blocks of their own.  [N-5]"""
    check_block_size("N-5", block_size)
    scale = as_weights("N-5", "scale", scale)
    check_matrix("N-5", "scale", scale.shape, (None,))
    wide = level_table("N-5", levels, like=scale)
    refuse_nan("N-5", "scale", scale)
    dtype = working_dtype(scale)
    offset = scale.mean(dtype=torch.float64) if scale.numel() else torch.zeros((), device=scale.device)
    offset = offset.to(dtype)
    around = scale.to(dtype) - offset
    second = largest(around, block_size)
    return DoubleScale(nearest(around, second, wide, block_size), second, offset)


@operation
def dequantize_scale(
    codes: Tensor, scale: Tensor, offset: Tensor, levels: Tensor, /, *, block_size: int = 256
) -> Tensor:
    """offset + scale · level.  [N-5a]"""
    check_block_size("N-5a", block_size)
    codes = as_integers("N-5a", "codes", codes)
    check_matrix("N-5a", "codes", codes.shape, (None,))
    offset = as_weights("N-5a", "offset", offset, like=codes)
    check_matrix("N-5a", "offset", offset.shape, ())
    wide = level_table("N-5a", levels, like=codes)
    refuse_nan("N-5a", "offset", offset)
    scale = _check_scale("N-5a", scale, codes.numel(), block_size, codes)
    _check_codes("N-5a", codes, wide.numel())
    dtype = working_dtype(scale, offset)
    return restored(codes, scale.to(dtype), wide, block_size).add_(offset.to(dtype))


def check_product(
    x: Tensor, words: Tensor, scale: Tensor, levels: Tensor, bits: int, block_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Everything :func:`codebook_matmul` refuses; x, words, scale and the levels in float64."""
    x = as_weights("N-6", "x", x)
    words = as_integers("N-6", "words", words, like=x)
    if words.dtype != torch.int32:
        raise SpecError("N-6", f"words must be int32, got {str(words.dtype).removeprefix('torch.')}")
    scale = as_weights("N-6", "scale", scale, like=x)
    check_codebook_product(x.shape, words.shape, scale.shape, bits, block_size)
    wide = level_table("N-6", levels, like=x)
    if wide.numel() != 2**bits:
        raise SpecError("N-6", f"{bits} bits need {2**bits} levels, got {wide.numel()}")
    refuse_nan("N-6", "x", x)
    refuse_nan("N-6", "scale", scale)
    return x, words, scale, wide


def product_checked(x: Tensor, words: Tensor, scale: Tensor, levels: Tensor, bits: int, block: int) -> Tensor:
    """:func:`codebook_matmul` in torch: tiles of restored rows, each multiplied and forgotten."""
    (tokens, k), m = x.shape, words.shape[0]
    dtype = working_dtype(x, scale)
    x, scale, table = x.to(dtype), scale.to(dtype), levels.to(dtype)
    y = torch.zeros((tokens, m), dtype=dtype, device=x.device)
    if min(tokens, k, m) == 0:
        return y
    halves = 16 % bits == 0 and k * bits % 32 == 0 and m * k >= _HALVES
    if halves:  # one look-up gives all codes of 16 bits
        every = torch.arange(1 << 16, device=x.device)
        table = torch.stack([table[every >> shift & (2**bits - 1)] for shift in range(0, 16, bits)], dim=1)
    for rows in row_chunks(m, k, x.device, elements=1 << 20 if x.device.type == "cpu" else None):
        if halves:
            index = words[rows].contiguous().view(torch.int16).to(torch.int32) & 0xFFFF
            tile = torch.index_select(table, 0, index.view(-1)).view(-1, k)
        else:
            tile = torch.index_select(table, 0, unpack_checked(words[rows], bits, k, "dense").view(-1)).view(-1, k)
        first, last = rows.start * k, rows.stop * k
        if k % block == 0:
            tile.view(-1, block).mul_(scale[first // block : last // block, None])
        else:
            blocks = torch.arange(first, last, device=x.device) // block
            tile.view(-1).mul_(scale[blocks])
        y[:, rows] = x @ tile.mT
    return y


@operation
def codebook_matmul(
    x: Tensor, words: Tensor, scale: Tensor, levels: Tensor, /, *, bits: int, block_size: int = 64
) -> Tensor:
    """y = x Ŵᵀ for a weight of packed codes.  [N-6]"""
    x, words, scale, levels = check_product(x, words, scale, levels, bits, block_size)
    if working_dtype(x, scale) == torch.float32 and policy.by_kernel("codebook_matmul", x):
        y: Tensor = triton.launcher("codebook").codebook_matmul(x, words, scale, levels, bits, block_size)
        return y
    return product_checked(x, words, scale, levels, bits, block_size)
