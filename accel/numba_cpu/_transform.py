"""Hadamard transforms of flat rows: one factor and a power of two at a time, by butterflies, sums or a table."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from lowbit.accel.common import hadamard

from ._arrays import Array, fixed, refuse_found, working_dtype
from ._hadamard import BYTES, COLUMNS, FAR, NEAR, combinations, picked_sums, table_tile
from ._jit import by_pieces, kernel

__all__ = ["outer", "refuse_unless_finite", "stage", "transform"]

_near0, _near1, _near2, _near3 = NEAR[:4]
_near4 = NEAR[-1]  # the same as _near3 where registers are few
_far1, _far2, _far3 = FAR[:3]
_far4 = FAR[-1]
_ROUNDS = len(FAR)
_SHORT = 64  # combinations of longer tables would fill the first-level cache


@kernel
def _butterflies(x: Any, x0: int, y: Any, y0: int, length: int, twos: int, lanes: int, scale: float) -> None:
    """y ← scale (I ⊗ H_twos) x for ``length`` entries; twos is a multiple of lanes."""
    left = 0
    while (lanes << left) < twos:
        left += 1
    rounds = min(left, _ROUNDS)
    if rounds == 0:
        _near0(x, x0, y, y0, length, scale)
    elif rounds == 1:
        _near1(x, x0, y, y0, length, scale)
    elif rounds == 2:
        _near2(x, x0, y, y0, length, scale)
    elif rounds == 3:
        _near3(x, x0, y, y0, length, scale)
    else:
        _near4(x, x0, y, y0, length, scale)
    stride = lanes << rounds
    left -= rounds
    while left > 0:
        rounds = min(left, _ROUNDS)
        if rounds == 1:
            _far1(y, y0, length, stride)
        elif rounds == 2:
            _far2(y, y0, length, stride)
        elif rounds == 3:
            _far3(y, y0, length, stride)
        else:
            _far4(y, y0, length, stride)
        stride <<= rounds
        left -= rounds


@kernel
def _powers(x: Any, out: Any, rows: int, size: int, lanes: int, scale: float) -> Any:
    """Rows whose length is a power of two; False when a result is not finite."""
    finite = True
    for r in range(rows):
        _butterflies(x, r * size, out, r * size, size, size, lanes, scale)
        finite &= np.isfinite(out[r * size])
    return finite


@kernel
def _aligned(size: int, like: Any) -> Any:
    """Memory for vectors that begins with a cache line, so that none of them lies across two."""
    raw = np.empty(size + 64 // like.itemsize, like.dtype)
    start = (-raw.ctypes.data % 64) // like.itemsize
    return raw[start : start + size]


@kernel
def _lookups(x: Any, out: Any, rows: int, index: Any, order: int, twos: int, lanes: int, scale: float) -> Any:
    """As :func:`_tables` for short tables: sums of four entries are made once and picked by every row of the table."""
    finite = True
    size = order * twos
    batch = max(1, 2 * lanes // twos)
    scratch = _aligned(batch * size, out)
    vectors, count = twos // lanes, order // 4
    places = np.empty(batch * vectors + 2, np.int64)
    half = 16 * count * lanes
    sums = _aligned(2 * half, out)
    for r in range(0, rows, batch):
        many = min(batch, rows - r)
        for b in range(many):
            _butterflies(x, (r + b) * size, scratch, b * size, size, twos, lanes, scale)
            for v in range(vectors):
                places[b * vectors + v] = b * size + v * lanes
        places[many * vectors] = places[many * vectors - 1]
        for v in range(0, many * vectors, 2):
            for q in range(count):
                combinations(scratch, places[v] + 4 * q * twos, twos, sums, 16 * q * lanes)
                combinations(scratch, places[v + 1] + 4 * q * twos, twos, sums, half + 16 * q * lanes)
            for i in range(0, order, 4):
                picked_sums(sums, half, index, i * count, count, out, r * size + i * twos, twos, places, v)
        for b in range(many):
            finite &= np.isfinite(out[(r + b) * size])
    return finite


@kernel
def _tables(x: Any, out: Any, rows: int, table: Any, order: int, twos: int, lanes: int, scale: float) -> Any:
    """Rows of (order, twos), twos at least one vector: butterflies into a scratch, then the table."""
    finite = True
    size = order * twos
    batch = max(1, COLUMNS * lanes // twos)  # so many rows fill a tile
    scratch = _aligned(batch * size, out)
    vectors = twos // lanes
    places = np.empty(batch * vectors + COLUMNS, np.int64)
    for r in range(0, rows, batch):
        many = min(batch, rows - r)
        for b in range(many):
            _butterflies(x, (r + b) * size, scratch, b * size, size, twos, lanes, scale)
            for v in range(vectors):
                places[b * vectors + v] = b * size + v * lanes
        count = many * vectors
        for v in range(COLUMNS):
            places[count + v] = places[count - 1]  # a short last tile writes its last vector again
        for v in range(0, count, COLUMNS):
            for i in range(0, order, 4):
                table_tile(table, i, order, scratch, twos, places, v, out, r * size + i * twos)
        for b in range(many):
            finite &= np.isfinite(out[(r + b) * size])
    return finite


@kernel
def _dense(x: Any, out: Any, rows: int, table: Any, order: int, inner: int, scale: float) -> Any:
    """Rows of (order, inner) times a table, transposed, of any order: short powers of two, outer factors."""
    finite = True
    size = order * inner
    for r in range(rows):
        row, result = x[r * size : (r + 1) * size], out[r * size : (r + 1) * size]
        result[:] = 0
        if inner == 1:
            for k in range(order):
                value, signs = row[k] * scale, table[k * order : (k + 1) * order]
                for i in range(order):
                    result[i] += value * signs[i]
        else:
            for k in range(order):
                values = row[k * inner : (k + 1) * inner]
                for i in range(order):
                    sign, target = table[k * order + i] * scale, result[i * inner : (i + 1) * inner]
                    for j in range(inner):
                        target[j] += sign * values[j]
        finite &= np.isfinite(result[0])
    return finite


@functools.lru_cache(maxsize=64)
def _transposed(orders: tuple[int, ...], dtype: str, transpose: bool) -> Array:
    """The product of the tables of ``orders``, flat, column by column (row by row for the transposed matrix)."""
    made = np.ones((1, 1), np.int8)
    for n in orders:
        made = np.kron(made, hadamard.table(n))
    return fixed(np.ascontiguousarray(made if transpose else made.T, dtype).reshape(-1))


def _picks(table: Array, order: int, lanes: int) -> Array:
    """Where the sum of every four signs of a row lies among the combinations."""
    minus = (table.reshape(order, order).T < 0).reshape(order, order // 4, 4)  # the table comes column by column
    chosen = minus @ np.array([1, 2, 4, 8])
    return fixed(((16 * np.arange(order // 4) + chosen) * lanes).reshape(-1), np.int64)


def stage(x: Array, out: Array, table: Array | None, order: int, twos: int, scale: float) -> bool:
    """One factor and a power of two on flat arrays; False when a result is not finite."""
    lanes = BYTES // x.itemsize
    size = order * twos
    factor = x.dtype.type(scale)
    short = table is not None and twos >= lanes and order % 4 == 0 and order <= _SHORT
    index = _picks(table, order, lanes) if short and table is not None else None

    def work(p: slice) -> bool:
        span, rows = slice(p.start * size, p.stop * size), p.stop - p.start
        source, target = x[span], out[span]
        if table is None:
            return bool(_powers(source, target, rows, size, lanes, factor))
        if index is not None:
            return bool(_lookups(source, target, rows, index, order, twos, lanes, factor))
        if twos >= lanes and order % 4 == 0:
            return bool(_tables(source, target, rows, table, order, twos, lanes, factor))
        return bool(_dense(source, target, rows, table, order, twos, factor))

    return all(by_pieces((x.size // size, size), work))


def transform(x: Array, orders: tuple[int, ...], transpose: bool) -> Array:
    """Runs of Π orders of a checked array, the innermost factors first."""
    size = math.prod(orders)
    source = fixed(x, working_dtype(x))
    out = np.empty_like(source)
    if not out.size:
        return out
    flat, result = source.reshape(-1), out.reshape(-1)
    lanes = BYTES // source.itemsize
    twos = orders[-1] if orders[-1] & (orders[-1] - 1) == 0 else 1
    tables = orders[:-1] if twos > 1 or orders[-1] == 1 else orders
    scale = 1 / math.sqrt(size)
    if not tables and twos >= lanes:
        finite = stage(flat, result, None, 1, twos, scale)
    else:
        inner = tables[-1] if tables else 1
        if twos < lanes:
            table = _transposed((inner, twos), source.dtype.name, transpose)
            finite = stage(flat, result, table, inner * twos, 1, scale)
        else:
            finite = stage(flat, result, _transposed((inner,), source.dtype.name, transpose), inner, twos, scale)
        done = inner * twos
        for n in reversed(tables[:-1]):
            held = fixed(result.copy())
            table = _transposed((n,), source.dtype.name, transpose)
            finite = outer(held, result, table, n, done) and finite
            done *= n
    if not finite:
        refuse_unless_finite(source)
    return out


def outer(x: Array, out: Array, table: Array, order: int, inner: int) -> bool:
    """An outer factor: rows of (order, inner) with whatever inner length."""
    size = order * inner

    def work(p: slice) -> bool:
        span = slice(p.start * size, p.stop * size)
        return bool(_dense(x[span], out[span], p.stop - p.start, table, order, inner, x.dtype.type(1)))

    return all(by_pieces((x.size // size, size), work))


def refuse_unless_finite(x: Array) -> None:
    """A result that is not finite comes of such an entry, or of a sum beyond the range, which is an answer."""
    if not np.isfinite(x).all():
        refuse_found("H-2", "x", x)
