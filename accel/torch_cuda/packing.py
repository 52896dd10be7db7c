"""Q-6, Q-7: codes of 1 to 8 bits in 32-bit words. The layouts are those of :mod:`lowbit.reference.packing`."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit.accel.common.refusals import check_matrix
from lowbit.reference.errors import SpecError
from lowbit.reference.types import PackLayout

from . import triton
from .arrays import as_integers, operation, row_chunks, working_dtype
from .policy import by_kernel
from .uniform import check_grid, check_spread, dequantize_checked

__all__ = ["dequantize_packed", "pack", "unpack"]

triton.KERNELS.update(dict.fromkeys(__all__, triton.anything))

_CLAUSE = {"dense": "Q-6", "padded": "Q-7"}


def check_layout(bits: int, layout: str) -> str:
    """Refuse an unknown layout or width; return the layout's clause."""
    if layout not in _CLAUSE:
        raise SpecError("Q-6", f"layout must be 'dense' or 'padded', got {layout!r}")
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise SpecError(_CLAUSE[layout], f"packing takes 1 to 8 bits, got {bits!r}")
    return _CLAUSE[layout]


def check_pack(codes: Tensor, bits: int, layout: str) -> Tensor:
    """Everything :func:`pack` refuses."""
    clause = check_layout(bits, layout)
    codes = as_integers(clause, "codes", codes)
    check_matrix(clause, "codes", codes.shape, (None, None))
    if codes.numel():
        low, high = (int(t) for t in torch.aminmax(codes))
        if low < 0 or high >= 2**bits:
            value = low if low < 0 else high
            raise SpecError(clause, f"codes of {bits} bits lie in 0..{2**bits - 1}, got {value}")
    return codes


def check_unpack(words: Tensor, bits: int, length: int, layout: str) -> Tensor:
    """Everything :func:`unpack` refuses."""
    clause = check_layout(bits, layout)
    words = as_integers(clause, "words", words)
    if words.dtype != torch.int32:
        raise SpecError(clause, f"words must be int32, got {str(words.dtype).removeprefix('torch.')}")
    check_matrix(clause, "words", words.shape, (None, None))
    if isinstance(length, bool) or not isinstance(length, int) or length < 0:
        raise SpecError(clause, f"length must be a non-negative integer, got {length!r}")
    need = word_count(length, bits, layout)
    if words.shape[1] != need:
        raise SpecError(
            clause,
            f"{length} codes of {bits} bits fill {need} words per row in the {layout} layout, got {words.shape[1]}",
        )
    return words


def word_count(length: int, bits: int, layout: str) -> int:
    """Words per row of ``length`` codes."""
    return -(-length * bits // 32) if layout == "dense" else -(-length // (32 // bits))


def _slots(bits: int, layout: str) -> tuple[int, int, list[tuple[int, int]]]:
    """The repeating pattern of a layout: codes per period, words per period, and (word, shift) of each code.

    The dense layout repeats after 32 codes in ``bits`` words (sooner when ``bits`` divides 32), the padded one after
    each word.
    """
    if layout == "dense" and 32 % bits:
        return 32, bits, [divmod(j * bits, 32) for j in range(32)]
    per_word = 32 // bits
    return per_word, 1, [(0, j * bits) for j in range(per_word)]


@operation
def pack(codes: Tensor, /, *, bits: int, layout: PackLayout = "dense") -> Tensor:
    """Pack unsigned codes into words, low bits first.  [Q-6, Q-7]"""
    codes = check_pack(codes, bits, layout)
    if by_kernel("pack", codes):
        width = word_count(codes.shape[1], bits, layout)
        words: Tensor = triton.launcher("packing").pack(codes, bits, layout == "padded", width)
        return words
    return pack_checked(codes, bits, layout)


def pack_checked(codes: Tensor, bits: int, layout: str) -> Tensor:
    """:func:`pack` in torch."""
    n, k = codes.shape
    words = torch.empty((n, word_count(k, bits, layout)), dtype=torch.int32, device=codes.device)
    if words.numel() == 0:
        return words
    codes_per, words_per, slots = _slots(bits, layout)
    periods = -(-k // codes_per)
    for rows in row_chunks(n, k, codes.device):
        chunk = codes[rows].to(torch.int32)
        padded = torch.zeros((chunk.shape[0], periods * codes_per), dtype=torch.int32, device=codes.device)
        padded[:, :k] = chunk
        source = padded.view(-1, periods, codes_per).movedim(-1, 0).contiguous()  # one plane per position
        out = torch.zeros((words_per, *source.shape[1:]), dtype=torch.int32, device=codes.device)
        for j, (word, shift) in enumerate(slots):
            out[word] |= source[j] << shift
            if shift + bits > 32:
                out[word + 1] |= source[j] >> (32 - shift)
        words[rows] = out.movedim(0, -1).reshape(chunk.shape[0], -1)[:, : words.shape[1]]
    return words


@operation
def unpack(words: Tensor, /, *, bits: int, length: int, layout: PackLayout = "dense") -> Tensor:
    """Inverse of :func:`pack`.  [Q-6, Q-7]"""
    words = check_unpack(words, bits, length, layout)
    if by_kernel("unpack", words):
        codes: Tensor = triton.launcher("packing").unpack(words, bits, layout == "padded", length)
        return codes
    return unpack_checked(words, bits, length, layout)


def unpack_checked(words: Tensor, bits: int, length: int, layout: str) -> Tensor:
    """:func:`unpack` in torch."""
    n = words.shape[0]
    codes = torch.empty((n, length), dtype=torch.int32, device=words.device)
    if codes.numel() == 0:
        return codes
    codes_per, words_per, slots = _slots(bits, layout)
    periods = -(-length // codes_per)
    mask = 2**bits - 1
    for rows in row_chunks(n, length, words.device):
        chunk = words[rows]
        padded = torch.zeros((chunk.shape[0], periods * words_per), dtype=torch.int32, device=words.device)
        padded[:, : chunk.shape[1]] = chunk
        source = padded.view(-1, periods, words_per).movedim(-1, 0).contiguous()
        out = torch.empty((codes_per, *source.shape[1:]), dtype=torch.int32, device=words.device)
        for j, (word, shift) in enumerate(slots):
            value = source[word] >> shift  # arithmetic: bits above 32 - shift are copies of the sign
            if shift + bits > 32:
                value &= (1 << (32 - shift)) - 1
                value |= source[word + 1] << (32 - shift)
            out[j] = value & mask
        codes[rows] = out.movedim(0, -1).reshape(chunk.shape[0], -1)[:, :length]
    return codes


@operation
def dequantize_packed(
    words: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    /,
    *,
    bits: int,
    length: int,
    layout: PackLayout = "dense",
    offset: int = 0,
) -> Tensor:
    """Values ``scale * (unpack(words) - offset - zero_point)``, without keeping the codes.  [Q-4, Q-6, Q-7]

    Not an operation of the contract: the composition that layers need.

    Args:
        words: int32, as :func:`pack` makes them.
        scale, zero_point: (n, G) or broadcastable to it.
        bits, length, layout: as for :func:`unpack`.
        offset: what was added to signed codes before packing, ``2**(bits-1)`` for symmetric schemes.

    Returns:
        (n, length), dtype of ``scale`` but at least float32.

    Raises:
        SpecError: as :func:`unpack` and :func:`~lowbit.accel.torch_cuda.dequantize`.
    """
    words, scale, zero_point = check_dequantize_packed(
        words, scale, zero_point, bits=bits, length=length, layout=layout
    )
    if by_kernel("dequantize_packed", scale):
        values: Tensor = triton.launcher("packing").dequantize_packed(
            words, scale, zero_point, bits, layout == "padded", length, offset, working_dtype(scale)
        )
        return values
    return dequantize_packed_checked(words, scale, zero_point, bits, length, layout, offset)


def check_dequantize_packed(
    words: Tensor, scale: Tensor, zero_point: Tensor, *, bits: int, length: int, layout: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Everything :func:`dequantize_packed` refuses."""
    words = check_unpack(words, bits, length, layout)
    scale, zero_point = check_grid("Q-4", scale, zero_point, words)
    check_spread((words.shape[0], length), scale, "Q-4", "scale")
    return words, scale, zero_point


def dequantize_packed_checked(
    words: Tensor, scale: Tensor, zero_point: Tensor, bits: int, length: int, layout: str, offset: int
) -> Tensor:
    """:func:`dequantize_packed` in torch: rows in cache-sized runs, so that no full matrix of codes exists."""
    n = words.shape[0]
    dtype = working_dtype(scale)
    values = torch.empty((n, length), dtype=dtype, device=words.device)
    scale, zero_point = scale.expand(n, -1), zero_point.expand(n, -1)
    for rows in row_chunks(n, length, words.device):
        codes = unpack_checked(words[rows], bits, length, layout).sub_(offset)
        values[rows] = dequantize_checked(codes, scale[rows], zero_point[rows])
    return values
