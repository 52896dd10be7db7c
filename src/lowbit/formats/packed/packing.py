"""Vectorised bit packing of whole layers, the two layouts of clauses Q-6 and Q-7.

A format needs packing at the speed of the disk and without choosing a backend, so it is written here once more in
NumPy: whole columns of a period of codes are shifted into whole columns of words. One period of the dense layout is
lcm(bits, 32) bits, so a word border falls at the same places in every period.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["dense_words", "pack_dense", "pack_padded", "padded_words", "unpack_dense", "unpack_padded"]

_WORD = 32


def dense_words(length: int, bits: int) -> int:
    """Words that ``length`` codes take in the dense layout."""
    return -(-length * bits // _WORD)


def padded_words(length: int, bits: int) -> int:
    """Words that ``length`` codes take with ``32 // bits`` of them per word."""
    return -(-length // (_WORD // bits))


def _check(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must lie in 1..8, got {bits}")


def pack_dense(codes: npt.NDArray[np.integer], bits: int) -> npt.NDArray[np.int32]:
    """Codes (n, k) in 0..2^bits-1 → words int32 (n, ceil(k·bits/32)); code j occupies bits j·bits onward."""
    _check(bits)
    rows, length = codes.shape
    period = _WORD // math.gcd(bits, _WORD)  # codes after which code and word borders meet again
    words = period * bits // _WORD
    periods = -(-length // period)
    unsigned = np.zeros((rows, periods, period), np.uint32)
    unsigned.reshape(rows, -1)[:, :length] = codes
    packed = np.zeros((rows, periods, words), np.uint32)
    for j in range(period):
        word, shift = divmod(j * bits, _WORD)
        packed[..., word] |= unsigned[..., j] << np.uint32(shift)
        if shift + bits > _WORD:
            packed[..., word + 1] |= unsigned[..., j] >> np.uint32(_WORD - shift)
    flat = packed.reshape(rows, -1)[:, : dense_words(length, bits)]
    return np.ascontiguousarray(flat).view(np.int32)


def unpack_dense(words: npt.NDArray[np.int32], bits: int, length: int) -> npt.NDArray[np.int32]:
    """Inverse of :func:`pack_dense`: words (n, ceil(k·bits/32)) → codes int32 (n, k)."""
    _check(bits)
    rows, stored = words.shape
    period = _WORD // math.gcd(bits, _WORD)
    per = period * bits // _WORD
    periods = -(-length // period)
    packed = np.zeros((rows, periods, per), np.uint32)
    packed.reshape(rows, -1)[:, :stored] = np.ascontiguousarray(words).view(np.uint32)
    mask = np.uint32((1 << bits) - 1)
    codes = np.empty((rows, periods, period), np.int32)
    for j in range(period):
        word, shift = divmod(j * bits, _WORD)
        value = packed[..., word] >> np.uint32(shift)
        if shift + bits > _WORD:
            value |= packed[..., word + 1] << np.uint32(_WORD - shift)
        codes[..., j] = value & mask
    return np.ascontiguousarray(codes.reshape(rows, -1)[:, :length])


def pack_padded(codes: npt.NDArray[np.integer], bits: int) -> npt.NDArray[np.int32]:
    """Codes (n, k) → words int32 (n, ceil(k/(32//bits))); low bits first, spare high bits zero."""
    _check(bits)
    rows, length = codes.shape
    period = _WORD // bits
    stored = padded_words(length, bits)
    unsigned = np.zeros((rows, stored, period), np.uint32)
    unsigned.reshape(rows, -1)[:, :length] = codes
    packed = np.zeros((rows, stored), np.uint32)
    for j in range(period):
        packed |= unsigned[..., j] << np.uint32(j * bits)
    return packed.view(np.int32)


def unpack_padded(words: npt.NDArray[np.int32], bits: int, length: int) -> npt.NDArray[np.int32]:
    """Inverse of :func:`pack_padded`: words (n, ceil(k/(32//bits))) → codes int32 (n, k)."""
    _check(bits)
    rows, stored = words.shape
    period = _WORD // bits
    packed = np.ascontiguousarray(words).view(np.uint32)
    mask = np.uint32((1 << bits) - 1)
    codes = np.empty((rows, stored, period), np.int32)
    for j in range(period):
        codes[..., j] = (packed >> np.uint32(j * bits)) & mask
    return np.ascontiguousarray(codes.reshape(rows, -1)[:, :length])
