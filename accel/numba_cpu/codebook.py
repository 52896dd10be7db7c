"""N: codebooks, double quantization, packed products. The rules are those of :mod:`lowbit.reference.codebook`.

The product of 4-bit codes keeps its levels in a vector register, see :mod:`._levels`; every other width, float64 and
blocks that cross rows go through tiles of restored rows and a matrix product.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from lowbit.accel.common.codebook import check_codebook_product, check_scales
from lowbit.accel.common.refusals import check_block_size
from lowbit.reference.errors import SpecError
from lowbit.reference.types import DoubleScale

from ._arrays import Array, fixed, integers, refuse_bad, weights, working_dtype
from ._jit import by_pieces, kernel, pieces, share
from ._levels import (
    AVAILABLE,
    BLOCKS,
    LANES,
    ROWS,
    SPAN,
    TOKENS,
    dot_row_1,
    dot_row_2,
    dot_row_3,
    dot_row_4,
    expand_row,
    multiply_rows_1,
    multiply_rows_2,
    multiply_rows_3,
)
from .rounding import count_midpoints, level_table, midpoints_of, search_midpoints

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

_FEW = 12  # up to this many rows of x, dot products beat the expansion of tiles
_TILE = 1 << 18  # values of a tile of restored rows: 1 MiB of float32


def normal_float(*, bits: int, offset: float = 0.9677083) -> Array:
    """NormalFloat levels, ascending, from −1 to 1.  [N-1]"""
    _width("N-1", bits, 2)
    if isinstance(offset, bool) or not isinstance(offset, (int, float)) or not 0.5 < offset < 1:
        raise SpecError("N-1", f"offset must be above 0.5 and below 1, got {offset!r}")
    quantile, half = NormalDist().inv_cdf, 2 ** (bits - 1)
    top = quantile(offset)
    levels = np.zeros(2 * half)
    for i in range(half):
        levels[-1 - i] = quantile(offset + i * (0.5 - offset) / half) / top
    for i in range(half - 1):
        levels[i] = -quantile(offset + i * (0.5 - offset) / (half - 1)) / top
    return levels


def dynamic_float(*, bits: int) -> Array:
    """Levels of the dynamic float of double quantization, ascending.  [N-1a]"""
    _width("N-1a", bits, 3)
    half = 2 ** (bits - 1)
    levels = np.zeros(2 * half)
    for i in range(1, half):  # 1 | 2 3 | 4 5 6 7 | …: decade e holds 2^e of them
        e = i.bit_length() - 1
        levels[half - 1 + i] = 10.0 ** (e - bits + 2) * (0.1 + 0.9 * (i - 2**e + 0.5) / 2**e)
        levels[half - 1 - i] = -levels[half - 1 + i]
    levels[-1] = 1.0
    return levels


def _width(clause: str, bits: int, low: int) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not low <= bits <= 8:
        raise SpecError(clause, f"bits must be in {low}..8, got {bits!r}")


@kernel
def _largest(x: Any, size: int, out: Any) -> Any:
    found = False
    for b in range(out.size):
        block = x[b * size : (b + 1) * size]
        most = x.dtype.type(0)
        for i in range(block.size):
            most = max(most, abs(block[i]))
            found |= block[i] - block[i] != 0.0
        out[b] = most
    return found


@kernel
def _nearest(x: Any, size: int, scale: Any, midpoints: Any, few: bool, out: Any) -> Any:
    """Codes of whole blocks; returns whether something was not finite."""
    found = False
    ratio = np.empty(1024, x.dtype)
    for b in range(scale.size):
        values, codes, s = x[b * size : (b + 1) * size], out[b * size : (b + 1) * size], scale[b]
        for start in range(0, values.size, 1024):
            part = values[start : start + 1024]
            quotient = ratio[: part.size]
            if s > 0:
                for i in range(part.size):
                    quotient[i] = part[i] / s
                    found |= part[i] - part[i] != 0.0
            else:
                for i in range(part.size):
                    quotient[i] = 0
                    found |= part[i] - part[i] != 0.0
            if few:
                count_midpoints(quotient, midpoints, codes[start : start + 1024])
            else:
                search_midpoints(quotient, midpoints, codes[start : start + 1024])
    return found


@kernel
def _restore(codes: Any, size: int, scale: Any, levels: Any, offset: Any, out: Any) -> Any:
    """offset + scale · level; returns the position of a code without a level, or −1."""
    for b in range(scale.size):
        s = scale[b]
        for i in range(b * size, min((b + 1) * size, codes.size)):
            if np.uint32(codes[i]) >= np.uint32(levels.size):
                return i
            out[i] = offset + s * levels[codes[i]]
    return -1


def _within(blocks: slice, size: int) -> slice:
    """The values of some blocks."""
    return slice(blocks.start * size, blocks.stop * size)


def scales_of(x: Array, size: int, clause: str) -> Array:
    """Largest magnitudes of the blocks of a float32 or float64 array."""
    flat = fixed(x.reshape(-1))
    out: Array = np.empty(-(-flat.size // size), flat.dtype)
    if any(by_pieces((out.size, size), lambda p: _largest(flat[_within(p, size)], size, out[p]))):
        refuse_bad(clause, "x", x)
    return out


def codes_of(x: Array, size: int, scale: Array, levels: Array, clause: str) -> Array:
    """Codes of a float32 or float64 array, scales of its dtype, float64 levels."""
    flat = fixed(x.reshape(-1))
    out: Array = np.empty(flat.size, np.int32)
    find, midpoints = midpoints_of(levels, flat.dtype)
    few = find is count_midpoints

    def work(p: slice) -> Any:
        at = _within(p, size)
        return _nearest(flat[at], size, scale[p], midpoints, few, out[at])

    if any(by_pieces((scale.size, size), work)):
        refuse_bad(clause, "x", x)
    return out.reshape(x.shape)


def values_of(codes: Array, size: int, scale: Array, levels: Array, offset: float, clause: str) -> Array:
    """offset + scale · level in the dtype of the scales."""
    flat = fixed(codes.reshape(-1))
    out: Array = np.empty(flat.size, scale.dtype)
    table = fixed(levels, scale.dtype)
    base = scale.dtype.type(offset)

    def work(p: slice) -> int:
        """Place of the first code without a level, or −1."""
        at = _within(p, size)
        found = int(_restore(flat[at], size, scale[p], table, base, out[at]))
        return found if found < 0 else at.start + found

    wrong = next((at for at in by_pieces((scale.size, size), work) if at >= 0), None)
    if wrong is not None:
        where = tuple(int(i) for i in np.unravel_index(wrong, codes.shape)) if codes.ndim else ()
        raise SpecError(clause, f"code {codes[where]} at {where} has no level among {levels.size}")
    return out.reshape(codes.shape)


def _scale(clause: str, scale: Any, size: int, block_size: int, dtype: Any, *, positive: bool = False) -> Array:
    """Checked scales of ``size`` values, read-only, in ``dtype``."""
    given = weights(clause, "scale", scale)
    check_scales(clause, given.shape, size, block_size)
    ready = fixed(given, dtype)
    refuse_bad(clause, "scale", ready)
    if positive and (ready < 0).any():
        raise SpecError(clause, f"scale must be >= 0, got {ready.min()}")
    return ready


def block_scale(x: Array, /, *, block_size: int = 64) -> Array:
    """Largest magnitude of every block of the flattened array.  [N-2]"""
    check_block_size("N-2", block_size)
    given = weights("N-2", "x", x)
    return scales_of(fixed(given, working_dtype(given)), block_size, "N-2")


def quantize_blocks(x: Array, scale: Array, levels: Array, /, *, block_size: int = 64) -> Array:
    """Index of the level nearest to x / s; a midpoint goes to the lower index, a scale of 0 reads x as 0.  [N-3]"""
    check_block_size("N-3", block_size)
    given = weights("N-3", "x", x)
    exact = level_table("N-3", levels)
    dtype = working_dtype(given, weights("N-3", "scale", scale))
    ready = _scale("N-3", scale, given.size, block_size, dtype, positive=True)
    return codes_of(fixed(given, dtype), block_size, ready, exact, "N-3")


def dequantize_blocks(codes: Array, scale: Array, levels: Array, /, *, block_size: int = 64) -> Array:
    """scale · level.  [N-4]"""
    check_block_size("N-4", block_size)
    q = integers("N-4", "codes", codes)
    exact = level_table("N-4", levels)
    ready = _scale("N-4", scale, q.size, block_size, working_dtype(weights("N-4", "scale", scale)))
    return values_of(q, block_size, ready, exact, 0.0, "N-4")


def quantize_scale(scale: Array, levels: Array, /, *, block_size: int = 256) -> DoubleScale[Array]:
    """Scales quantized around their mean, in blocks of their own.  [N-5]"""
    check_block_size("N-5", block_size)
    given = weights("N-5", "scale", scale)
    if given.ndim != 1:
        raise SpecError("N-5", f"scale must have shape (n,), got {given.shape}")
    exact = level_table("N-5", levels)
    dtype = working_dtype(given)
    ready = fixed(given, dtype)
    refuse_bad("N-5", "scale", ready)
    offset = np.asarray(ready.mean(dtype=np.float64) if ready.size else 0.0, dtype)
    around = fixed(ready - offset)
    second = scales_of(around, block_size, "N-5")
    return DoubleScale(codes_of(around, block_size, second, exact, "N-5"), second, offset)


def dequantize_scale(codes: Array, scale: Array, offset: Array, levels: Array, /, *, block_size: int = 256) -> Array:
    """offset + scale · level.  [N-5a]"""
    check_block_size("N-5a", block_size)
    q = integers("N-5a", "codes", codes)
    base = weights("N-5a", "offset", offset)
    if q.ndim != 1 or base.ndim != 0:
        raise SpecError("N-5a", f"codes must have shape (n,) and offset (), got {q.shape} and {base.shape}")
    exact = level_table("N-5a", levels)
    dtype = working_dtype(weights("N-5a", "scale", scale), base)
    refuse_bad("N-5a", "offset", fixed(base, dtype))
    ready = _scale("N-5a", scale, q.size, block_size, dtype)
    return values_of(q, block_size, ready, exact, float(base), "N-5a")


# -- the product -------------------------------------------------------------------------------------------------------


@kernel
def _expand_any(words: Any, bits: int, k: int, row0: int, size: int, scale: Any, levels: Any, out: Any) -> None:
    """Rows row0 … of the weight: codes cut from the bit stream, blocks counted over the flattened weight."""
    mask = (1 << bits) - 1
    for r in range(out.shape[0]):
        row, values = words[row0 + r], out[r]
        place = (row0 + r) * k
        block, left = place // size, size - place % size
        for j in range(k):
            bit = j * bits
            word, shift = bit >> 5, bit & 31
            code = np.int64(np.uint32(row[word])) >> shift
            if shift + bits > 32:
                code |= np.int64(np.uint32(row[word + 1])) << (32 - shift)
            values[j] = levels[code & mask] * scale[block]
            left -= 1
            if left == 0:
                block, left = block + 1, size


def _by_tiles(x: Array, words: Array, scale: Array, levels: Array, bits: int, size: int) -> Array:
    """Any width and block: restore some rows, multiply, forget them."""
    (tokens, k), m = x.shape, words.shape[0]
    out: Array = np.empty((tokens, m), x.dtype)
    table = fixed(levels, x.dtype)
    step = max(1, _TILE // max(k, 1))
    for first in range(0, m, step):
        count = min(step, m - first)
        tile: Array = np.empty((count, k), x.dtype)

        def expand(p: slice, first: int = first, tile: Array = tile) -> None:
            _expand_any(words, bits, k, first + p.start, size, scale, table, tile[p])

        by_pieces(tile.shape, expand, elements=1 << 15)
        np.matmul(x, tile.T, out=out[:, first : first + count])
    return out


@kernel
def _arrange(x: Any, out: Any) -> None:
    """Rows of x in the order of the lookups: out[t, c, s, l] = x[t, SPAN c + 8 l + s], zeros beyond the end."""
    for t in range(x.shape[0]):
        row = x[t]
        for c in range(out.shape[1]):
            for l in range(LANES):
                for s in range(8):
                    j = SPAN * c + 8 * l + s
                    out[t, c, s, l] = row[j] if j < row.size else 0


@kernel
def _arrange_columns(x: Any, out: Any) -> None:
    """Columns of x in the order of the lookups: out[c, s, l, t] = x[t, SPAN c + 8 l + s], zeros beyond the ends."""
    for c in range(out.shape[0]):
        for s in range(8):
            for l in range(LANES):
                j, target = SPAN * c + 8 * l + s, out[c, s, l]
                for t in range(target.size):
                    target[t] = x[t, j] if t < x.shape[0] and j < x.shape[1] else 0


@kernel
def _dot_rows(
    words: Any, first: int, last: int, width: int, x: Any, t0: int, tokens: int, table: Any, scale: Any, groups: int,
    place: Any, shift: int, out: Any,
) -> None:  # fmt: skip
    """out[t0 … t0 + tokens − 1, i] for rows first … last − 1, in one pass over the words.

    Chunks read a little beyond their row: into the next one, where x is 0, but not beyond the last, which is copied.
    """
    chunks = -(-width // LANES)
    stride, sums = SPAN * chunks, np.zeros(TOKENS, np.float32)
    edge_words, edge_scale = np.zeros((chunks + 1) * LANES, np.int32), np.zeros(groups + BLOCKS, np.float32)
    for i in range(first, last):
        source, w0, scales, s0 = words, i * width, scale, i * groups
        if w0 + chunks * LANES + 1 > words.size or s0 + groups + BLOCKS > scale.size:
            for j in range(width):
                edge_words[j] = words[w0 + j]
            for b in range(groups):
                edge_scale[b] = scale[s0 + b]
            source, w0, scales, s0 = edge_words, 0, edge_scale, 0
        x0 = t0 * stride
        if tokens == 1:
            dot_row_1(source, w0, chunks, x, x0, stride, table, scales, s0, place, shift, sums)
        elif tokens == 2:
            dot_row_2(source, w0, chunks, x, x0, stride, table, scales, s0, place, shift, sums)
        elif tokens == 3:
            dot_row_3(source, w0, chunks, x, x0, stride, table, scales, s0, place, shift, sums)
        else:
            dot_row_4(source, w0, chunks, x, x0, stride, table, scales, s0, place, shift, sums)
        for t in range(tokens):
            out[t0 + t, i] = sums[t]


@kernel
def _tile_rows(
    words: Any, first: int, last: int, width: int, x: Any, t0: int, table: Any, scale: Any, groups: int, place: Any,
    shift: int, vectors: int, rows: int, out: Any,
) -> None:  # fmt: skip
    """out[t0 …, i] for rows first … last − 1: chunks of some rows are expanded into a tile and multiplied."""
    chunks = -(-width // LANES)
    tokens = min(vectors * LANES, out.shape[0] - t0)
    tile, sums = np.empty((rows, SPAN), np.float32), np.empty((rows, vectors * LANES), np.float32)
    edge_words, edge_scale = np.zeros(2 * LANES, np.int32), np.zeros(BLOCKS, np.float32)
    for i in range(first, last, rows):
        sums[:] = 0
        count = min(rows, last - i)
        for c in range(chunks):
            block = SPAN * c >> shift
            for r in range(count):
                s0, w0 = (i + r) * groups + block, (i + r) * width + c * LANES
                if w0 + LANES < words.size and s0 + BLOCKS <= scale.size:
                    expand_row(words, w0, table, scale, s0, place, tile, r * SPAN)
                    continue
                for j in range(min(LANES, width - c * LANES)):
                    edge_words[j] = words[w0 + j]
                for b in range(min(BLOCKS, groups - block)):
                    edge_scale[b] = scale[s0 + b]
                expand_row(edge_words, 0, table, edge_scale, 0, place, tile, r * SPAN)
            x0 = c * SPAN * vectors * LANES
            if vectors == 1:
                multiply_rows_1(tile, x, x0, sums)
            elif vectors == 2:
                multiply_rows_2(tile, x, x0, sums)
            else:
                multiply_rows_3(tile, x, x0, sums)
        for r in range(count):
            for t in range(tokens):
                out[t0 + t, i + r] = sums[r, t]


def _aligned(*shape: int) -> Array:
    """An uninitialised float32 array that starts on a cache line: a vector load across two lines counts twice."""
    size = math.prod(shape)
    memory: Array = np.empty(size + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4
    return memory[start : start + size].reshape(shape)


def _by_lookup(x: Array, words: Array, scale: Array, levels: Array, size: int) -> Array:
    """4-bit codes, float32, blocks of 32 · 2^n columns inside rows."""
    (tokens, k), (m, width) = x.shape, words.shape
    groups, shift = k // size, size.bit_length() - 1
    chunks = -(-width // LANES)
    out: Array = np.empty((tokens, m), np.float32)
    place = fixed(np.minimum(8 * np.arange(LANES) // size, BLOCKS - 1), np.int32)
    table, flat = fixed(levels, np.float32), fixed(words.reshape(-1))
    parts = pieces(m, k, elements=1 << 21)
    if tokens <= _FEW:
        inputs = _aligned(tokens, chunks, 8, LANES)
        _arrange(x, inputs)
        line = fixed(inputs.reshape(-1))

        def dots(i: int) -> None:
            for t0 in range(0, tokens, TOKENS):
                count = min(TOKENS, tokens - t0)
                _dot_rows(flat, *parts[i], width, line, t0, count, table, scale, groups, place, shift, out)

        share(len(parts), dots)
        return out
    for t0 in range(0, tokens, len(ROWS) * LANES):
        some = x[t0 : t0 + len(ROWS) * LANES]
        vectors = -(-some.shape[0] // LANES)
        inputs = _aligned(chunks, 8, LANES, vectors * LANES)
        _arrange_columns(some, inputs)
        line = fixed(inputs.reshape(-1))

        def tiles(i: int, t0: int = t0, vectors: int = vectors, line: Array = line) -> None:
            _tile_rows(
                flat, *parts[i], width, line, t0, table, scale, groups, place, shift, vectors, ROWS[vectors], out
            )

        share(len(parts), tiles)
    return out


def codebook_matmul(
    x: Array, words: Array, scale: Array, levels: Array, /, *, bits: int, block_size: int = 64
) -> Array:
    """y = x Ŵᵀ for a weight of packed codes.  [N-6]

    4 bits in float32, with blocks of 32, 64, 128, … columns that divide the rows, run on levels kept in registers
    where the processor has AVX2 or AVX-512; everything else restores tiles of rows.
    """
    given, codes = weights("N-6", "x", x), integers("N-6", "words", words)
    steps = weights("N-6", "scale", scale)
    check_codebook_product(given.shape, codes.shape, steps.shape, bits, block_size)
    exact = level_table("N-6", levels)
    if exact.size != 2**bits:
        raise SpecError("N-6", f"{bits} bits need {2**bits} levels, got {exact.size}")
    dtype = working_dtype(given, steps)
    source, ready = fixed(given, dtype), fixed(steps, dtype)
    k = given.shape[1]
    aligned = bits == 4 and block_size >= 32 and block_size & (block_size - 1) == 0 and k % block_size == 0
    if min(*given.shape, codes.shape[0]) == 0:
        refuse_bad("N-6", "x", source)
        refuse_bad("N-6", "scale", ready)
        return np.zeros((given.shape[0], codes.shape[0]), dtype)
    if AVAILABLE and aligned and dtype == np.float32:
        out = _by_lookup(source, codes, ready, exact, block_size)
    else:
        out = _by_tiles(source, codes, ready, exact, bits, block_size)
    if not np.isfinite(out).all():  # a NaN or an infinity in x or in a scale always reaches a result
        refuse_bad("N-6", "x", source)
        refuse_bad("N-6", "scale", ready)
    return out
