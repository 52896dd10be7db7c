"""Matrix products on packed operands, and the triangular factor that chapter G needs.

A packed operand is a sequence of panels: W rows (or columns) of the operand side by side, the common axis running
slowest, short panels filled with zeros. W is MR for the left operand of a product and NR for the right one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lowbit.reference.errors import SpecError

from ._arrays import Array
from ._jit import kernel, share
from ._vector import DEPTH, MR, NR32, NR64, multiply_tile

__all__ = [
    "BLOCK",
    "add_product",
    "columns_per_tile",
    "factor_upper",
    "invert_small",
    "invert_upper",
    "pack_crossed",
    "pack_straight",
    "panels",
]

RUN = 8  # panels of the right operand that are used together
BLOCK = 192
"""Columns that a factorisation eliminates at a time."""


def columns_per_tile(dtype: Any) -> int:
    """NR for a dtype."""
    return NR64 if np.dtype(dtype) == np.float64 else NR32


def panels(width: int, size: int) -> int:
    """Panels of ``size`` that hold ``width`` rows or columns."""
    return -(-width // size)


@kernel
def pack_straight(source: Any, p0: int, depth: int, c0: int, width: int, size: int, out: Any, o0: int) -> None:
    """Panels of columns: out[q][p][c] = source[p0 + p, c0 + q·size + c]."""
    for start in range(0, width, size):
        count = min(size, width - start)
        for p in range(depth):
            row = source[p0 + p, c0 + start : c0 + start + count]
            panel = out[o0 : o0 + size]
            for c in range(count):
                panel[c] = row[c]
            for c in range(count, size):
                panel[c] = 0
            o0 += size


@kernel
def pack_crossed(source: Any, r0: int, rows: int, p0: int, depth: int, size: int, out: Any, o0: int) -> None:
    """Panels of rows: out[q][p][r] = source[r0 + q·size + r, p0 + p]."""
    for start in range(0, rows, size):
        count = min(size, rows - start)
        if count < size:
            for p in range(o0, o0 + depth * size):
                out[p] = 0
        for r in range(count):
            row = source[r0 + start + r, p0 : p0 + depth]
            for p in range(depth):
                out[o0 + p * size + r] = row[p]
        o0 += depth * size


@kernel
def _add_rows(tile: Any, nr: int, sign: int, c: Any, i0: int, rows: int, j0: int, columns: int) -> None:
    for r in range(rows):
        row, sums = c[i0 + r, j0 : j0 + columns], tile[r * nr : r * nr + columns]
        if sign > 0:
            for l in range(columns):
                row[l] += sums[l]
        else:
            for l in range(columns):
                row[l] -= sums[l]


@kernel
def add_product(
    depth: int, a: Any, a0: int, m: int, b: Any, b0: int, n: int, nr: int, sign: int, c: Any, i0: int, j0: int,
    upper: bool, tile: Any,
) -> None:  # fmt: skip
    """c[i0 + i, j0 + j] += sign · Σ_p a[i, p] b[p, j]; with ``upper`` only tiles that reach i0 + i ≤ j0 + j."""
    for group in range(0, n, RUN * nr):  # a few panels of b stay in the cache, rows of c are met in runs
        end = min(group + RUN * nr, n)
        for p in range(0, depth, DEPTH):
            part = min(DEPTH, depth - p)
            for i in range(0, m, MR):
                for j in range(group, end, nr):
                    columns = min(nr, n - j)
                    if upper and i0 + i > j0 + j + columns - 1:
                        continue
                    multiply_tile(part, a, a0 + i * depth + p * MR, b, b0 + j * depth + p * nr, tile)
                    _add_rows(tile, nr, sign, c, i0 + i, min(MR, m - i), j0 + j, columns)


@kernel
def _factor_block(a: Any, j0: int, size: int) -> Any:
    """Upper R of the diagonal block, A = R Rᵀ, in place, from the last column to the first; False if not definite."""
    column = np.empty(size, a.dtype)
    for j in range(size - 1, -1, -1):
        pivot = a[j0 + j, j0 + j]
        if not pivot > 0:
            return False
        pivot = np.sqrt(pivot)
        a[j0 + j, j0 + j] = pivot
        for i in range(j):
            a[j0 + i, j0 + j] /= pivot
            column[i] = a[j0 + i, j0 + j]
        for i in range(j):
            row, rest, factor = a[j0 + i, j0 + i : j0 + j], column[i:j], column[i]
            for l in range(row.size):
                row[l] -= factor * rest[l]
    return True


@kernel
def _invert_block(r: Any, j0: int, size: int, out: Any) -> None:
    """out (size, size) = inverse of the upper triangular diagonal block of r."""
    for i in range(size):
        row = out[i]
        for l in range(size):
            row[l] = 0
    for i in range(size - 1, -1, -1):
        row = out[i, i:size]
        row[0] = 1
        for p in range(i + 1, size):
            factor, below = r[j0 + i, j0 + p], out[p, p:size]
            target = out[i, p:size]
            for l in range(below.size):
                target[l] -= factor * below[l]
        pivot = r[j0 + i, j0 + i]
        for l in range(row.size):
            row[l] /= pivot


@kernel
def _solve_panel(a: Any, i0: int, rows: int, j0: int, size: int, inverse: Any, nr: int, left: Any, right: Any) -> None:
    """Rows of R above a diagonal block: a[i, J] ← a[i, J] · U_JJᵀ; also packed for the update that follows."""
    tile = np.empty(MR * nr, a.dtype)
    own = np.empty((rows + MR) * size, a.dtype)
    pack_crossed(a, i0, rows, j0, size, MR, own, 0)
    for i in range(rows):
        row = a[i0 + i, j0 : j0 + size]
        for j in range(size):
            row[j] = 0
    add_product(size, own, 0, rows, inverse, 0, size, nr, 1, a, i0, j0, False, tile)
    pack_crossed(a, i0, rows, j0, size, MR, left, i0 * size)
    pack_crossed(a, i0, rows, j0, size, nr, right, i0 * size)


@kernel
def _update_rows(a: Any, i0: int, rows: int, end: int, size: int, nr: int, left: Any, right: Any) -> None:
    """a[i, j] −= R[i, J] · R[j, J], rows i0 … i0 + rows − 1, i ≤ j < end."""
    tile = np.empty(MR * nr, a.dtype)
    add_product(size, left, i0 * size, rows, right, i0 * size, end - i0, nr, -1, a, i0, i0, True, tile)


def factor_upper(a: Array, clause: str, why: str) -> None:
    """Replace the upper triangle of ``a`` by R, upper triangular with A = R Rᵀ. The lower one is not looked at.

    Raises:
        SpecError: ``clause``, a pivot that is not positive, with the sentence ``why``.
    """
    k, nr = a.shape[0], columns_per_tile(a.dtype)
    step = MR * nr // 2  # rows per task: whole panels of both kinds
    left = np.empty((k + step) * BLOCK, a.dtype)
    right = np.empty((k + step) * BLOCK, a.dtype)
    inverse = np.empty((BLOCK, BLOCK), a.dtype)
    packed = np.empty(panels(BLOCK, nr) * nr * BLOCK, a.dtype)
    for j0 in range((k - 1) // BLOCK * BLOCK, -1, -BLOCK) if k else ():
        size = min(BLOCK, k - j0)
        if not _factor_block(a, j0, size):
            raise SpecError(clause, why)
        if j0 == 0:
            return
        _invert_block(a, j0, size, inverse)
        pack_crossed(inverse, 0, size, 0, size, nr, packed, 0)
        tasks = panels(j0, step)

        def solve(t: int, j0: int = j0, size: int = size) -> None:
            _solve_panel(a, t * step, min(step, j0 - t * step), j0, size, packed, nr, left, right)

        def update(t: int, j0: int = j0, size: int = size) -> None:
            _update_rows(a, t * step, min(step, j0 - t * step), j0, size, nr, left, right)

        share(tasks, solve)
        share(tasks, update)


@kernel
def _invert_columns(r: Any, j0: int, size: int, nr: int, diagonal: Any, out: Any) -> None:
    """Columns j0 … of R⁻¹, block row by block row from the diagonal up."""
    tile = np.empty(MR * nr, r.dtype)
    end = j0 + size
    left = np.empty((BLOCK + MR) * end, r.dtype)
    right = np.empty((size + nr) * end, r.dtype)
    sums = np.empty((BLOCK, size), r.dtype)
    result = np.zeros((end, size), r.dtype)
    b = j0 // BLOCK
    for i in range(size):
        row, corner = result[j0 + i], diagonal[b, i]
        for j in range(size):
            row[j] = corner[j]
    for i in range(b - 1, -1, -1):
        i0 = i * BLOCK
        p0 = i0 + BLOCK
        depth = end - p0
        for i1 in range(BLOCK):
            row = sums[i1]
            for j in range(size):
                row[j] = 0
        pack_crossed(r, i0, BLOCK, p0, depth, MR, left, 0)
        pack_straight(result, p0, depth, 0, size, nr, right, 0)
        add_product(depth, left, 0, BLOCK, right, 0, size, nr, -1, sums, 0, 0, False, tile)
        pack_crossed(diagonal[i], 0, BLOCK, 0, BLOCK, MR, left, 0)
        pack_straight(sums, 0, BLOCK, 0, size, nr, right, 0)
        add_product(BLOCK, left, 0, BLOCK, right, 0, size, nr, 1, result, i0, 0, False, tile)
    for i in range(end):
        row, target = result[i], out[i, j0:end]
        for j in range(size):
            target[j] = row[j]


def invert_small(r: Array, j0: int, size: int) -> Array:
    """Inverse of the upper triangular diagonal block r[j0 : j0 + size, j0 : j0 + size], (size, size)."""
    if size > 2 * BLOCK:
        return invert_upper(np.ascontiguousarray(r[j0 : j0 + size, j0 : j0 + size]), r.dtype)
    out: Array = np.empty((size, size), r.dtype)
    _invert_block(r, j0, size, out)
    return out


def invert_upper(r: Array, dtype: Any) -> Array:
    """R⁻¹, upper triangular, in the given dtype, of an upper triangular matrix; its lower part is not looked at."""
    k, nr = r.shape[0], columns_per_tile(r.dtype)
    out: Array = np.zeros((k, k), dtype)
    blocks = panels(k, BLOCK)
    diagonal = np.zeros((blocks, BLOCK, BLOCK), r.dtype)
    share(blocks, lambda i: _invert_block(r, i * BLOCK, min(BLOCK, k - i * BLOCK), diagonal[i]))

    def columns(t: int) -> None:
        j0 = (blocks - 1 - t) * BLOCK  # the longest first
        _invert_columns(r, j0, min(BLOCK, k - j0), nr, diagonal, out)

    share(blocks, columns)
    return out
