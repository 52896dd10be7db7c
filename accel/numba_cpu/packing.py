"""Q-6, Q-7: codes of 1 to 8 bits in 32-bit words. The layouts are those of :mod:`lowbit.reference.packing`.

A run of the dense layout is 32 codes in ``bits`` words; one kernel per width, its shifts known to the compiler. At
1, 2, 4 and 8 bits the two layouts are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, get_args

import numpy as np

from lowbit.accel.common.refusals import check_either
from lowbit.reference.errors import SpecError
from lowbit.reference.types import PackLayout

from ._arrays import Array, integers
from ._jit import by_pieces, kernel

__all__ = ["pack", "unpack"]


@cache
def _pack_dense(bits: int) -> Callable[..., Any]:
    def pack_rows(codes: Any, words: Any) -> Any:
        k = codes.shape[1]
        whole = k // 32
        seen = np.uint32(0)
        for row in range(codes.shape[0]):
            for run in range(whole):
                held = np.uint64(0)
                word = run * bits
                for j in range(32):
                    code = np.uint32(codes[row, run * 32 + j])
                    seen |= code
                    held |= np.uint64(code) << np.uint64((j * bits) % 32)
                    if ((j + 1) * bits) // 32 != (j * bits) // 32:
                        words[row, word] = np.int32(np.uint32(held & np.uint64(0xFFFFFFFF)))
                        held >>= np.uint64(32)
                        word += 1
            held = np.uint64(0)
            word = whole * bits
            filled = 0
            for j in range(whole * 32, k):
                code = np.uint32(codes[row, j])
                seen |= code
                held |= np.uint64(code) << np.uint64(filled)
                filled += bits
                if filled >= 32:
                    words[row, word] = np.int32(np.uint32(held & np.uint64(0xFFFFFFFF)))
                    held >>= np.uint64(32)
                    word += 1
                    filled -= 32
            if filled:
                words[row, word] = np.int32(np.uint32(held & np.uint64(0xFFFFFFFF)))
        return seen

    return kernel(pack_rows)


@cache
def _unpack_dense(bits: int) -> Callable[..., Any]:
    mask = 2**bits - 1

    def unpack_rows(words: Any, codes: Any) -> None:
        k = codes.shape[1]
        whole = k // 32
        for row in range(codes.shape[0]):
            for run in range(whole):
                for j in range(32):
                    word = run * bits + (j * bits) // 32
                    shift = (j * bits) % 32
                    code = np.uint32(words[row, word]) >> np.uint32(shift)
                    if shift + bits > 32:
                        code |= np.uint32(words[row, word + 1]) << np.uint32(32 - shift)
                    codes[row, run * 32 + j] = np.int32(code & np.uint32(mask))
            for j in range(whole * 32, k):
                word = (j * bits) // 32
                shift = (j * bits) % 32
                code = np.uint32(words[row, word]) >> np.uint32(shift)
                if shift + bits > 32:
                    code |= np.uint32(words[row, word + 1]) << np.uint32(32 - shift)
                codes[row, j] = np.int32(code & np.uint32(mask))

    return kernel(unpack_rows)


@cache
def _pack_padded(bits: int) -> Callable[..., Any]:
    per_word = 32 // bits

    def pack_rows(codes: Any, words: Any) -> Any:
        k = codes.shape[1]
        whole = k // per_word
        seen = np.uint32(0)
        for row in range(codes.shape[0]):
            for word in range(whole):
                held = np.uint32(0)
                for j in range(per_word):
                    code = np.uint32(codes[row, word * per_word + j])
                    seen |= code
                    held |= code << np.uint32(j * bits)
                words[row, word] = np.int32(held)
            held = np.uint32(0)
            for j in range(whole * per_word, k):
                code = np.uint32(codes[row, j])
                seen |= code
                held |= code << np.uint32((j - whole * per_word) * bits)
            if k > whole * per_word:
                words[row, whole] = np.int32(held)
        return seen

    return kernel(pack_rows)


@cache
def _unpack_padded(bits: int) -> Callable[..., Any]:
    per_word = 32 // bits
    mask = 2**bits - 1

    def unpack_rows(words: Any, codes: Any) -> None:
        k = codes.shape[1]
        whole = k // per_word
        for row in range(codes.shape[0]):
            for word in range(whole):
                held = np.uint32(words[row, word])
                for j in range(per_word):
                    codes[row, word * per_word + j] = np.int32((held >> np.uint32(j * bits)) & np.uint32(mask))
            for j in range(whole * per_word, k):
                held = np.uint32(words[row, whole])
                codes[row, j] = np.int32((held >> np.uint32((j - whole * per_word) * bits)) & np.uint32(mask))

    return kernel(unpack_rows)


def _check(bits: int, layout: str) -> str:
    """Clause of a layout, after refusing what neither layout has."""
    check_either("Q-6", "layout", layout, get_args(PackLayout))
    clause = "Q-6" if layout == "dense" else "Q-7"
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)) or not 1 <= bits <= 8:
        raise SpecError(clause, f"packing takes 1 to 8 bits, got {bits!r}")
    return clause


def _word_count(length: int, bits: int, layout: str) -> int:
    return -(-length * bits // 32) if layout == "dense" else -(-length // (32 // bits))


def pack(codes: Array, /, *, bits: int, layout: str = "dense") -> Array:
    """Unsigned codes to 32-bit words; unused bits are 0.  [Q-6, Q-7]"""
    clause = _check(bits, layout)
    source = integers(clause, "codes", codes)
    if source.ndim != 2:
        raise SpecError(clause, f"codes must have 2 dimensions, got shape {source.shape}")
    n, k = source.shape
    words = np.empty((n, _word_count(k, bits, layout)), np.int32)
    run = _pack_padded(int(bits)) if layout == "padded" or 32 % bits == 0 else _pack_dense(int(bits))
    seen = by_pieces((n, k), lambda p: int(run(source[p], words[p])))
    if any(s >= 2**bits for s in seen):  # the union of all bits set anywhere, so a negative code shows too
        outside = np.argwhere((source < 0) | (source >= 2**bits))[0]
        i, j = (int(v) for v in outside)
        raise SpecError(clause, f"code {source[i, j]} at ({i}, {j}) is outside 0..{2**bits - 1}")
    return words


def unpack(words: Array, /, *, bits: int, length: int, layout: str = "dense") -> Array:
    """The first ``length`` codes of every row.  [Q-6, Q-7]"""
    clause = _check(bits, layout)
    if isinstance(length, bool) or not isinstance(length, (int, np.integer)) or length < 0:
        raise SpecError(clause, f"length must be an integer of at least 0, got {length!r}")
    source = integers(clause, "words", words)
    wanted = _word_count(int(length), bits, layout)
    if source.ndim != 2 or source.shape[1] != wanted:
        raise SpecError(
            clause, f"{length} codes of {bits} bits take {wanted} words per row, got words of shape {source.shape}"
        )
    codes = np.empty((source.shape[0], int(length)), np.int32)
    run = _unpack_padded(int(bits)) if layout == "padded" or 32 % bits == 0 else _unpack_dense(int(bits))
    by_pieces(codes.shape, lambda p: run(source[p], codes[p]))
    return codes
