"""C-1 … C-3: second moments as a fixed tree of sums. The rules are those of :mod:`lowbit.reference.moments`.

XᵀX is symmetric, so only tiles that reach the upper triangle are computed: half of a general product. Chains of
fused multiply-adds over 128 tokens run in the precision of X, and their sums are added in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lowbit.accel.common import moments as common
from lowbit.reference.errors import SpecError
from lowbit.reference.types import MomentNode, SecondMoment

from ._arrays import Array, fixed, refuse_found, weights, working_dtype
from ._jit import by_pieces, kernel, share
from ._product import add_product, columns_per_tile, pack_straight
from ._vector import MR

__all__ = ["moment_leaf", "moment_merge", "moment_total", "recency_moment"]

_TILE = 64


@kernel
def _pack(x: Any, c0: int, width: int, nr: int, left: Any, right: Any, magnitude: Any) -> Any:
    """Columns c0 … of x, packed for both sides of XᵀX, and their Σ |x|; True when one is not finite."""
    depth = x.shape[0]
    pack_straight(x, 0, depth, c0, width, MR, left, c0 * depth)
    pack_straight(x, 0, depth, c0, width, nr, right, c0 * depth)
    bad = False
    sums = magnitude[c0 : c0 + width]
    for t in range(depth):
        row = x[t, c0 : c0 + width]
        for c in range(width):
            bad |= row[c] - row[c] != 0.0
            sums[c] += np.float64(abs(row[c]))
    return bad


@kernel
def _upper_rows(left: Any, right: Any, depth: int, i0: int, rows: int, nr: int, out: Any) -> None:
    tile = np.empty(MR * nr, left.dtype)
    add_product(
        depth, left, i0 * depth, rows, right, i0 * depth, out.shape[1] - i0, nr, 1, out, i0, i0, True, tile
    )  # fmt: skip


@kernel
def _mirror(a: Any, j0: int, j1: int) -> None:
    """Lower triangle of columns j0 … j1 − 1 from the upper one."""
    for i0 in range(j0, a.shape[0], _TILE):
        for i in range(i0, min(i0 + _TILE, a.shape[0])):
            row = a[i]
            for j in range(j0, min(j1, i)):
                row[j] = a[j, i]


def gram(x: Array, clause: str, name: str) -> tuple[Array, Array]:
    """(XᵀX, Σ |x|) in float64 of a float32 or float64 matrix (T, k); the first is exactly symmetric.  [A-4]"""
    depth, k = x.shape
    nr = columns_per_tile(x.dtype)
    step = MR * nr // 4  # whole panels of both kinds
    out: Array = np.zeros((k, k))
    magnitude: Array = np.zeros(k)
    left, right = (np.empty(depth * (k + step), x.dtype) for _ in range(2))
    source = fixed(x)
    starts = range(0, k, step)
    bad = [False] * len(starts)

    def pack(t: int) -> None:
        c0 = starts[t]
        bad[t] = bool(_pack(source, c0, min(step, k - c0), nr, left, right, magnitude))

    share(len(starts), pack)
    if any(bad):
        refuse_found(clause, name, source)
    a, b = fixed(left), fixed(right)
    share(len(starts), lambda t: _upper_rows(a, b, depth, starts[t], min(step, k - starts[t]), nr, out))
    tiles = range(0, k, _TILE)
    share(len(tiles), lambda t: _mirror(out, tiles[t], tiles[t] + _TILE))
    return out, magnitude


def _whole(value: int, name: str, clause: str, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
        raise SpecError(clause, f"{name} must be an integer of at least {low}, got {value!r}")
    return int(value)


def _add(a: Array, b: Array) -> Array:
    """a + b, one rounding per entry."""
    out: Array = np.empty_like(a)
    by_pieces((a.shape[0], a.size // max(1, a.shape[0])), lambda p: np.add(a[p], b[p], out=out[p]))
    return out


def moment_leaf(x: Array, /, *, index: int) -> tuple[MomentNode[Array], ...]:
    """Moments of one sequence, as leaf ``index`` of the summation tree.  [C-1]"""
    leaf = _whole(index, "index", "C-1", 0)
    given = weights("C-1", "x", x)
    if given.ndim != 2:
        raise SpecError("C-1", f"x must have shape (tokens, features), got {given.shape}")
    total, magnitude = gram(given.astype(working_dtype(given), copy=False), "C-1", "x")
    return (MomentNode(0, leaf, total, magnitude, given.shape[0]),)


def moment_merge(
    left: Sequence[MomentNode[Array]], right: Sequence[MomentNode[Array]], /
) -> tuple[MomentNode[Array], ...]:
    """Nodes of the union of two disjoint sets of leaves; siblings are added at once.  [C-2]"""
    return common.merged(common.in_order((*left, *right), "is in both sets"), _add)


def moment_total(nodes: Sequence[MomentNode[Array]], /) -> SecondMoment[Array]:
    """Mean second moment and mean magnitude over all tokens, summed along the tree.  [C-2]"""
    return common.total(moment_merge(nodes, ()), _add)


def recency_moment(batches: Sequence[Array], /, *, total: int) -> Array:
    """Second moment as the published hook weighs it: C ← C N / (N + b), C ← C + Σ xᵀx / N.  [C-3]"""
    n = _whole(total, "total", "C-3", 1)
    given = [weights("C-3", f"batches[{i}]", batch) for i, batch in enumerate(batches)]
    if not given or any(x.ndim != 3 or x.shape[2] != given[0].shape[-1] for x in given):
        raise SpecError("C-3", f"batches must be (b, T, k) of one k, got {[x.shape for x in given]}")
    dtype = working_dtype(*given)
    moment: Array = np.zeros((given[0].shape[2],) * 2)
    for i, x in enumerate(given):
        flat = x.astype(dtype, copy=False).reshape(-1, x.shape[2]) if x.size else np.empty((0, x.shape[2]), dtype)
        try:
            product, _ = gram(flat, "C-3", f"batches[{i}]")
        except SpecError:
            refuse_found("C-3", f"batches[{i}]", x)  # the same refusal, with the position in the batch
            raise
        moment = moment * n / (n + x.shape[0]) + product / n
    return moment.astype(dtype)
