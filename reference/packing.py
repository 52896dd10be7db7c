"""Q, continued: codes of 1 to 8 bits in 32-bit words, two layouts. Exact, so every backend gives the same bytes.

For 3 bits, eleven codes a b c … k (first code in the lowest bits, words little end first):

    dense    kk jjj iii hhh ggg fff eee ddd ccc bbb aaa | … k        value j is bits 3j, 3j+1, 3j+2 of one bit stream
    padded   00 jjj iii hhh ggg fff eee ddd ccc bbb aaa | … kkk      ten values a word, two bits unused

Dense is GPTQ's and compressed-tensors' idea of 3 bits (values cross words); padded is what kernels with 32 // b
values a word read. At 1, 2, 4 and 8 bits the two are the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from . import checks
from .checks import I32
from .errors import SpecError
from .types import PackLayout

__all__ = ["pack", "unpack"]


def run_length(bits: int, layout: PackLayout) -> tuple[int, int]:
    """Values per run and words per run: dense packs 32 values in b words, padded 32 // b values in one.  [Q-6, Q-7]"""
    checks.choice(layout, ("dense", "padded"), "layout", "Q-6")
    return (32, bits) if layout == "dense" else (32 // bits, 1)


def word_count(length: int, *, bits: int, layout: PackLayout = "dense") -> int:
    """Words per row: ⌈k b / 32⌉ for dense, ⌈k / (32 // b)⌉ for padded.  [Q-6, Q-7]"""
    values, words = run_length(bits, layout)
    return -(-length * bits // 32) if layout == "dense" else -(-length // values) * words


def pack(codes: npt.ArrayLike, /, *, bits: int, layout: PackLayout = "dense") -> I32:
    """Unsigned codes to 32-bit words.  [Q-6, Q-7]

        dense:   value j occupies bits j b … j b + b − 1 of the row's bit stream, across word borders  (Q.10)
        padded:  value j occupies bits (j mod v) b … of word ⌊j / v⌋, v = 32 // b                      (Q.11)

    Shapes: codes (n, k), values 0 … 2^b − 1 → int32 (n, words), words as in word_count. Unused bits are 0.
    Signed codes are refused: add 2^(b−1), or z, first (both conventions exist; the caller knows which one).

    >>> [pack([[1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 7]], bits=3, layout=l).tolist() for l in ("dense", "padded")]
    [[[-786474799, 1]], [[287267025, 7]]]
    """
    bits = checks.whole(bits, "bits", "Q-6", low=1, high=8)
    values, words = run_length(bits, layout)
    clause = "Q-6" if layout == "dense" else "Q-7"
    q = checks.integers(codes, "codes", clause, ndim=2)
    outside = (q < 0) | (q >= 2**bits)
    if outside.any():
        i, j = (int(n) for n in np.argwhere(outside)[0])
        raise SpecError(clause, f"code {q[i, j]} at ({i}, {j}) is outside 0..{2**bits - 1}")
    n, k = q.shape
    runs = -(-k // values)
    padded = np.zeros((n, runs * values), np.int64)
    padded[:, :k] = q
    bit = (padded[..., None] >> np.arange(bits)) & 1  # (n, values, b): lowest bit first
    stream = np.zeros((n, runs, words * 32), np.uint8)
    stream[:, :, : values * bits] = bit.reshape(n, runs, values * bits)  # (Q.10), (Q.11)
    out = np.packbits(stream.reshape(n, runs * words * 32), axis=1, bitorder="little").view("<u4")
    return out[:, : word_count(k, bits=bits, layout=layout)].astype(np.uint32).view(np.int32)


def unpack(words: npt.ArrayLike, /, *, bits: int, length: int, layout: PackLayout = "dense") -> I32:
    """The first `length` codes of every row; unpack(pack(c)) = c.  [Q-6, Q-7]

    Shapes: words int32 (n, word_count(length)) → int32 (n, length), values 0 … 2^b − 1. Unused bits are not looked at.

    >>> unpack(pack([[5, 6, 7]], bits=3), bits=3, length=3).tolist()
    [[5, 6, 7]]
    """
    bits = checks.whole(bits, "bits", "Q-6", low=1, high=8)
    values, per_run = run_length(bits, layout)
    clause = "Q-6" if layout == "dense" else "Q-7"
    length = checks.whole(length, "length", clause, low=0)
    w = checks.integers(words, "words", clause, ndim=2)
    n, wanted = w.shape[0], word_count(length, bits=bits, layout=layout)
    if w.shape[1] != wanted:
        raise SpecError(clause, f"{length} codes of {bits} bits take {wanted} words, got {w.shape[1]}")
    runs = -(-length // values)
    whole = np.zeros((n, runs * per_run), "<u4")
    whole[:, :wanted] = w & 0xFFFFFFFF
    stream = np.unpackbits(whole.view(np.uint8), axis=1, bitorder="little").reshape(n, runs, per_run * 32)
    bit = stream[:, :, : values * bits].reshape(n, runs * values, bits).astype(np.int32)
    value = (bit << np.arange(bits, dtype=np.int32)).sum(axis=-1)
    return np.asarray(value[:, :length], dtype=np.int32)
