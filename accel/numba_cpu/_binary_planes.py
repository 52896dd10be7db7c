"""Kernels of packed binary codes: planes, tables of signed sums, and the two products."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from ._arrays import Array, fixed
from ._jit import claim, kernel
from ._lookup import LANES as ROWS
from ._lookup import add_strip, build_tables, permuted_strip

__all__ = [
    "ROWS",
    "add_strips",
    "all_tables",
    "expand",
    "fill_tables",
    "packer",
    "permuted_strips",
    "plan",
    "shift_rows",
    "unpacker",
]

WORDS = 4  # packed words (128 columns) of a strip: their tables stay in the first-level cache


@cache
def packer(q: int) -> Callable[..., Any]:
    def pack_words(codes: Any, planes: Any) -> Any:
        m, k = codes.shape
        seen = np.int32(0)
        for row in range(m):
            for n in range(planes.shape[0]):
                last = min(32, k - 32 * n)
                part = codes[row, 32 * n : 32 * n + last]
                for i in range(q):
                    word = np.uint32(0)
                    for j in range(last):
                        word |= np.uint32((part[j] >> np.int32(i)) & np.int32(1)) << np.uint32(j)
                    planes[n, i, row] = np.int32(word)
                for j in range(last):
                    seen |= part[j]
        return seen

    return kernel(pack_words)


@cache
def unpacker(q: int) -> Callable[..., Any]:
    def unpack_words(planes: Any, codes: Any) -> None:
        m, k = codes.shape
        for row in range(m):
            for n in range(planes.shape[0]):
                last = min(32, k - 32 * n)
                part = codes[row, 32 * n : 32 * n + last]
                for j in range(last):
                    part[j] = 0
                for i in range(q):
                    word = np.uint32(planes[n, i, row])
                    for j in range(last):
                        part[j] |= np.int32((word >> np.uint32(j)) & np.uint32(1)) << np.int32(i)

    return kernel(unpack_words)


@kernel
def all_tables(x: Any, width: int, full: bool, out: Any) -> None:
    size = 1 << width
    tables = (x.shape[1] + width - 1) // width
    work = np.empty(size, x.dtype)
    for t in range(x.shape[0]):
        for c in range(tables):
            build_tables(x[t], 0, x.shape[1], c * width, width, work, 0, 1)
            for i in range(size if full else size // 2):
                out[t, c, i] = work[i]


@cache
def plan(k: int, groups: int) -> Array:
    """The blocks of a shape, int64 (blocks, 4)."""
    blocks = np.empty((groups * (k // groups // (32 * WORDS) + 2), 4), np.int64)
    return fixed(blocks[: _blocks(k, groups, blocks)])


@kernel
def _blocks(k: int, groups: int, out: Any) -> int:
    """Blocks of at most WORDS words of one group: first word, words, group, first table word; how many there are.

    A word on the border of two groups belongs to a block of each, with tables that are 0 for the other's columns.
    """
    g = k // groups
    number, place = 0, 0
    for group in range(groups):
        word, end = group * g // 32, (group * g + g + 31) // 32
        while word < end:
            count = min(WORDS, end - word)
            out[number, 0], out[number, 1], out[number, 2], out[number, 3] = word, count, group, place
            number += 1
            word += count
            place += count
    return number


@kernel
def fill_tables(x: Any, k: int, groups: int, blocks: Any, width: int, out: Any, sums: Any) -> None:
    """Tables of every block, and the sum of the inputs of every group unless nobody asks (``sums`` is empty)."""
    g = k // groups
    per_word = 32 // width
    for b in range(blocks.shape[0]):
        word, count, group, place = blocks[b, 0], blocks[b, 1], blocks[b, 2], blocks[b, 3]
        start = place * per_word * (1 << width)
        build_tables(x, group * g, group * g + g, word * 32, width, out, start, count * per_word)
    for group in range(sums.size):
        total = 0.0
        for j in range(group * g, group * g + g):
            total += np.float64(x[j])
        sums[group] = total


@kernel
def shift_rows(shift: Any, sums: Any, r0: int, r1: int, out: Any) -> None:
    """out[row] += Σ_groups offset · Σ x."""
    for group in range(shift.shape[0]):
        amount = sums[group]
        row = shift[group]
        for r in range(r0, r1):
            out[r] += row[r] * amount


@kernel
def add_strips(
    planes: Any, scale: Any, q: int, m: int, r0: int, r1: int, blocks: Any, tables: Any, out: Any, work: Any
) -> None:
    """Rows r0 … r1 − 1 of one product, by tables of eight inputs."""
    for b in range(blocks.shape[0]):
        word, count, group, place = blocks[b, 0], blocks[b, 1], blocks[b, 2], blocks[b, 3]
        add_strip(
            planes, word * q * m + r0, q * m, m, count, q, r1 - r0,
            tables, place * 1024, scale, group * q * m + r0, m, work, out, r0,
        )  # fmt: skip


@kernel
def permuted_strips(
    planes: Any, scale: Any, q: int, m: int, rows: int, strip: int, blocks: Any, tables: Any, outs: Any, turn: Any
) -> None:
    """The first ``rows`` rows of the products with all inputs, by tables of four in registers, strip by strip as
    claimed; ``rows`` and ``strip`` are multiples of 16.
    """
    r0 = claim(turn) * strip
    while r0 < rows:
        r1 = min(r0 + strip, rows)
        for b in range(blocks.shape[0]):
            word, count, group, place = blocks[b, 0], blocks[b, 1], blocks[b, 2], blocks[b, 3]
            ahead = q * m * count if (word + 2 * count) * q * m <= planes.size else 0
            for t in range(outs.shape[0]):
                permuted_strip(
                    planes, word * q * m + r0, q * m, m, count, q, (r1 - r0) // ROWS,
                    tables[t], place * 128, scale, group * q * m + r0, m, outs[t], r0, ahead,
                )  # fmt: skip
        r0 = claim(turn) * strip


@kernel
def expand(planes: Any, scale: Any, shift: Any, g: int, k0: int, k1: int, r0: int, r1: int, out: Any) -> None:
    """Columns k0 … k1 − 1 of rows r0 … r1 − 1 of the weight, transposed: out (k1 − k0, r1 − r0)."""
    q = scale.shape[1]
    rows = r1 - r0
    for j in range(k0, k1):
        group, word, bit = j // g, j // 32, np.uint32(j % 32)
        line = out[j - k0]
        own = shift[group, r0:r1]
        for r in range(rows):
            line[r] = own[r]
        for i in range(q):
            keys, alpha = planes[word, i, r0:r1], scale[group, i, r0:r1]
            for r in range(rows):
                line[r] += alpha[r] if (np.uint32(keys[r]) >> bit) & np.uint32(1) else -alpha[r]
