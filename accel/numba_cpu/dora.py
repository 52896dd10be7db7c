"""D: DoRA. The rules are those of :mod:`lowbit.reference.dora`.

Rows are worked on one at a time in float64: V = W + s B A of a row lives in cache, its norm is taken and, where a
weight is asked for, the scaled row is written. Gradients are products with the factors.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg

from lowbit.accel.common.dora import check_rows, check_update
from lowbit.accel.common.low_rank import check_patch
from lowbit.accel.common.refusals import check_matrix
from lowbit.reference.errors import SpecError
from lowbit.reference.types import (
    DecompositionChange,
    DoraGradient,
    DoraLayout,
    DoraMerged,
    DvoraGradient,
    LoraRefit,
    LowRank,
)

from ._arrays import Array, finite_weights, fixed, refuse_bad, weights, working_dtype
from ._jit import by_pieces, kernel
from ._vector import lane_sum
from .low_rank import svd_patch

__all__ = [
    "decomposition_change",
    "dora_forward",
    "dora_gradient",
    "dora_magnitude",
    "dora_merge",
    "dora_norm",
    "dora_to_lora",
    "dora_unmerge",
    "dora_weight",
    "dvora_factors",
    "dvora_gradient",
    "factored_norm",
]

_LANES = 16  # of lane_sum


class _Update(NamedTuple):
    """Checked arguments as contiguous matrices in the working dtype."""

    w: Array  # (m, k)
    b: Array  # float64, (m, r), times the scaling
    a: Array  # float64, (r, k)


def _rows(w: Array, layout: str) -> Array:
    """(m, k) of a stored weight."""
    if layout == "transposed":
        return w.T
    m, k = check_rows("D-1", "w", w.shape, layout)
    return w.reshape(m, k)


def _update(
    clause: str, w: Any, b: Any, a: Any, scaling: float, layout: str, *others: Array, name: str = "w"
) -> _Update:
    """Weight and factors; ``others`` are checked arrays that have a say in the working dtype."""
    given = [weights(clause, label, x) for label, x in ((name, w), ("b", b), ("a", a))]
    m, k, r = check_update(clause, name, given[0].shape, given[1].shape, given[2].shape, scaling, layout)
    for label, x in zip((name, "b", "a"), given, strict=True):
        refuse_bad(clause, label, fixed(x, working_dtype(x)))
    rows = fixed(_rows(given[0], layout), working_dtype(*given, *others))
    left = fixed(given[1].reshape(m, r).astype(np.float64) * scaling)
    return _Update(rows, left, fixed(given[2].reshape(r, k), np.float64))


def _stored(rows: Array, shape: tuple[int, ...], layout: str) -> Array:
    """(m, k) as a stored weight."""
    return np.ascontiguousarray(rows.T) if layout == "transposed" else rows.reshape(shape)


@kernel
def _fill(w: Any, b: Any, a: Any, i: int, v: Any) -> None:
    """v = W_i + (B A)_i"""
    for j in range(v.size):
        v[j] = w[i, j]
    for l in range(a.shape[0]):
        left, right = b[i, l], a[l]
        for j in range(v.size):
            v[j] += left * right[j]


@kernel
def _norms(w: Any, b: Any, a: Any, out: Any) -> None:
    k = w.shape[1]
    v = np.empty(k, np.float64)
    for i in range(w.shape[0]):
        _fill(w, b, a, i, v)
        for j in range(k):
            v[j] *= v[j]
        total = lane_sum(v)
        for j in range(k // _LANES * _LANES, k):
            total += v[j]
        out[i] = np.sqrt(total)


@kernel
def _scaled(w: Any, b: Any, a: Any, factor: Any, out: Any) -> None:
    v = np.empty(w.shape[1], np.float64)
    for i in range(w.shape[0]):
        _fill(w, b, a, i, v)
        g = np.float64(factor[i])
        for j in range(v.size):
            out[i, j] = g * v[j]


def _norm(given: _Update) -> Array:
    """‖W_i + s (B A)_i‖ in the working dtype."""
    w, b, a = given
    out = np.empty(len(w), w.dtype)
    by_pieces((w.shape[0], w.shape[1] * (1 + len(a))), lambda p: _norms(w[p], b[p], a, out[p]))
    return out


def _weight(given: _Update, factor: Array) -> Array:
    """diag(factor) (W + s B A)."""
    w, b, a = given
    out = np.empty(w.shape, w.dtype)
    by_pieces((w.shape[0], w.shape[1] * (1 + len(a))), lambda p: _scaled(w[p], b[p], a, factor[p], out[p]))
    return out


def _quotient(magnitude: Array, c: Array) -> Array:
    """m / c, and 1 for a row without direction."""
    return np.divide(magnitude, c, out=np.ones_like(c), where=c > 0)


def dora_magnitude(w: Array, /, *, layout: DoraLayout = "linear") -> Array:
    """Norm of every output's weights, summed in float64.  [D-1]"""
    given = weights("D-1", "w", w)
    m, k = check_rows("D-1", "w", given.shape, layout)
    refuse_bad("D-1", "w", fixed(given, working_dtype(given)))
    rows = fixed(_rows(given, layout), working_dtype(given))
    return _norm(_Update(rows, fixed(np.zeros((m, 0))), fixed(np.zeros((0, k)))))


def dora_norm(w: Array, b: Array, a: Array, /, *, scaling: float, layout: DoraLayout = "linear") -> Array:
    """Norm of every row of W + s B A, which is never stored.  [D-2]"""
    return _norm(_update("D-2", w, b, a, scaling, layout))


def factored_norm(w: Array, square_norm: Array, b: Array, a: Array, /, *, scaling: float) -> Array:
    """The same norm by expanding its square around a kept ‖W_i‖², in float64.  [D-3]"""
    shape = weights("D-3", "w", w).shape
    check_matrix("D-3", "w", shape, (None, None))
    kept = finite_weights("D-3", "square_norm", square_norm, (shape[0],))
    if (kept < 0).any():
        raise SpecError("D-3", f"square_norm must be >= 0, got {kept.min()}")
    rows, left, right = _update("D-3", w, b, a, scaling, "linear", kept)
    out = np.empty(len(rows), rows.dtype)
    gram = right @ right.T

    def work(p: slice) -> None:
        cross = np.einsum("ij,ij->i", left[p], rows[p].astype(np.float64) @ right.T)
        square = kept[p].astype(np.float64) + 2 * cross + np.einsum("ij,ij->i", left[p] @ gram, left[p])
        out[p] = np.sqrt(np.maximum(square, 0))

    by_pieces(rows.shape, work)
    return out


def _layer(
    clause: str, w: Array, b: Array, a: Array, magnitude: Array, scaling: float, layout: str, *others: Array
) -> tuple[_Update, Array]:
    """Checked weight, factors and magnitude."""
    m, _ = check_rows(clause, "w", weights(clause, "w", w).shape, layout)
    checked = finite_weights(clause, "magnitude", magnitude, (m,))
    given = _update(clause, w, b, a, scaling, layout, checked, *others)
    return given, checked.astype(given.w.dtype)


def dora_weight(
    w: Array, b: Array, a: Array, magnitude: Array, /, *, scaling: float, layout: DoraLayout = "linear"
) -> Array:
    """diag(m / c) (W + s B A), factor 1 in a zero row.  [D-4]"""
    given, m = _layer("D-4", w, b, a, magnitude, scaling, layout)
    return _stored(_weight(given, _quotient(m, _norm(given))), w.shape, layout)


def dora_forward(
    x: Array,
    dropped: Array,
    w: Array,
    bias: Array,
    b: Array,
    a: Array,
    magnitude: Array,
    /,
    *,
    scaling: float,
    layout: DoraLayout = "linear",
) -> Array:
    """x Wᵀ + bias + (g − 1) (x̃ Wᵀ) + g s (x̃ Aᵀ) Bᵀ; the bias is not scaled.  [D-5]"""
    if layout == "conv":
        raise SpecError("D-5", "layout 'conv' has no matrix product: convolve with dora_weight(...)")
    seen, left = finite_weights("D-5", "x", x), finite_weights("D-5", "dropped", dropped)
    given, m = _layer("D-5", w, b, a, magnitude, scaling, layout, seen, left)
    shift = finite_weights("D-5", "bias", bias, (given.w.shape[0],))
    if seen.shape != left.shape or seen.ndim < 1 or seen.shape[-1] != given.w.shape[1]:
        raise SpecError(
            "D-5", f"x and dropped must be equal and end in {given.w.shape[1]}, got {seen.shape} and {left.shape}"
        )
    dtype = working_dtype(given.w, shift)
    g = _quotient(m, _norm(given))
    lead, k = seen.shape[:-1], seen.shape[-1]
    flat, rows = (v.astype(dtype).reshape(math.prod(lead), k) for v in (seen, left))
    base = flat @ given.w.T
    frozen = base if dropped is x else rows @ given.w.T
    update = (rows @ given.a.T.astype(dtype)) @ given.b.T.astype(dtype)
    y = base + shift.astype(dtype) + (g - 1) * frozen + g * update
    return np.ascontiguousarray(y.reshape(*lead, len(g)))


def dora_gradient(
    grad: Array,
    w: Array,
    b: Array,
    a: Array,
    magnitude: Array,
    /,
    *,
    scaling: float,
    detach: bool = True,
    layout: DoraLayout = "linear",
) -> DoraGradient[Array]:
    """Gradients of the factors and of the magnitude from that of the weight.  [D-6]"""
    if not isinstance(detach, bool):
        raise SpecError("D-6", f"detach must be True or False, got {detach!r}")
    direction = finite_weights("D-6", "grad", grad)
    given, m = _layer("D-6", w, b, a, magnitude, scaling, layout, direction)
    if direction.shape != w.shape:
        raise SpecError("D-6", f"grad must have the shape {w.shape} of w, got {direction.shape}")
    dtype = given.w.dtype
    G = fixed(_rows(direction, layout), dtype)
    left, right = given.b.astype(dtype), given.a.astype(dtype)
    c = _norm(given)
    g, inverse = _quotient(m, c), np.divide(1.0, c, out=np.zeros_like(c), where=c > 0)
    against = G @ right.T
    dm = (np.einsum("ij,ij->i", G, given.w) + np.einsum("ij,ij->i", against, left)) * inverse  # ⟨G_i, V_i⟩ / c_i
    scaled = g[:, None] * left
    db, da = g[:, None] * against, scaled.T @ G
    if not detach:  # less g dm v, with V = W + B A
        along = (dm * inverse)[:, None]
        db -= g[:, None] * along * (given.w @ right.T + left @ (right @ right.T))
        scaled = scaled * along
        da -= scaled.T @ given.w + (scaled.T @ left) @ right
    db *= dtype.type(scaling)
    return DoraGradient(db.reshape(b.shape), np.ascontiguousarray(da).reshape(a.shape), dm)


def dora_merge(
    w: Array, b: Array, a: Array, magnitude: Array, /, *, scaling: float, layout: DoraLayout = "linear"
) -> DoraMerged[Array]:
    """The weight of :func:`dora_weight` with its factors m / c.  [D-7]"""
    given, m = _layer("D-7", w, b, a, magnitude, scaling, layout)
    factor = _quotient(m, _norm(given))
    return DoraMerged(_stored(_weight(given, factor), w.shape, layout), factor)


@kernel
def _restored(w: Any, b: Any, a: Any, factor: Any, out: Any) -> None:
    v = np.empty(w.shape[1], np.float64)
    for i in range(w.shape[0]):
        g = np.float64(factor[i])
        for j in range(v.size):
            v[j] = w[i, j] / g
        for l in range(a.shape[0]):
            left, right = b[i, l], a[l]
            for j in range(v.size):
                v[j] -= left * right[j]
        for j in range(v.size):
            out[i, j] = v[j]


def dora_unmerge(
    merged: Array, b: Array, a: Array, factor: Array, /, *, scaling: float, layout: DoraLayout = "linear"
) -> Array:
    """diag(1 / factor) W' − s B A, with the factor of the merge.  [D-7]"""
    m, _ = check_rows("D-7", "merged", weights("D-7", "merged", merged).shape, layout)
    divisor = finite_weights("D-7", "factor", factor, (m,))
    given = _update("D-7", merged, b, a, scaling, layout, divisor, name="merged")
    if not divisor.all():
        raise SpecError("D-7", f"factor is 0 in row {int(np.flatnonzero(divisor == 0)[0])}: the merge erased it")
    (rows, left, right), divisor = given, fixed(divisor, given.w.dtype)
    out = np.empty(rows.shape, rows.dtype)
    by_pieces(rows.shape, lambda p: _restored(rows[p], left[p], right, divisor[p], out[p]))
    return _stored(out, merged.shape, layout)


def _pair(names: tuple[str, str], b: Array, a: Array) -> tuple[Array, Array]:
    """Two checked factors (m, r) and (r, k)."""
    left, right = weights("D-8", names[0], b), weights("D-8", names[1], a)
    check_matrix("D-8", names[0], left.shape, (None, None))
    check_matrix("D-8", names[1], right.shape, (left.shape[1], None))
    return finite_weights("D-8", names[0], left), finite_weights("D-8", names[1], right)


def dvora_factors(b: Array, a: Array, row_scale: Array, rank_scale: Array, /) -> LowRank[Array]:
    """diag(row_scale) B and diag(rank_scale) A, the factors of a DVoRA layer.  [D-8]"""
    left, right = _pair(("b", "a"), b, a)
    row = finite_weights("D-8", "row_scale", row_scale, (left.shape[0],))
    rank = finite_weights("D-8", "rank_scale", rank_scale, (right.shape[0],))
    dtype = working_dtype(left, right, row, rank)
    return LowRank(
        np.multiply(row[:, None], left, dtype=dtype, order="C"),
        np.multiply(rank[:, None], right, dtype=dtype, order="C"),
    )


def dvora_gradient(grad_b: Array, grad_a: Array, b: Array, a: Array, /) -> DvoraGradient[Array]:
    """Gradients of the two vectors of DVoRA from those of its factors.  [D-8]"""
    left, right = _pair(("b", "a"), b, a)
    from_left, from_right = _pair(("grad_b", "grad_a"), grad_b, grad_a)
    check_matrix("D-8", "grad_b", from_left.shape, left.shape)
    check_matrix("D-8", "grad_a", from_right.shape, right.shape)
    dtype = working_dtype(left, right, from_left, from_right)
    pairs = ((from_left, left), (from_right, right))
    rows, ranks = (np.einsum("ij,ij->i", fixed(x, np.float64), fixed(y, np.float64)).astype(dtype) for x, y in pairs)
    return DvoraGradient(rows, ranks)


def decomposition_change(w: Array, start: Array, /) -> DecompositionChange:
    """Mean change of the norms of rows, and of 1 − cosine, in float64.  [D-9]"""
    given, before = weights("D-9", "w", w), weights("D-9", "start", start)
    check_matrix("D-9", "w", given.shape, (None, None))
    check_matrix("D-9", "start", before.shape, given.shape)
    given, before = finite_weights("D-9", "w", given), finite_weights("D-9", "start", before)

    def work(p: slice) -> tuple[Any, Any]:
        one, other = fixed(given[p], np.float64), fixed(before[p], np.float64)
        lengths = [np.sqrt(np.einsum("ij,ij->i", x, x)) for x in (one, other)]
        product = lengths[0] * lengths[1]
        cosine = ((lengths[0] == 0) & (lengths[1] == 0)).astype(np.float64)
        np.divide(np.einsum("ij,ij->i", one, other), product, out=cosine, where=product > 0)
        return np.abs(lengths[0] - lengths[1]).sum(), (1 - cosine).sum()

    found = np.array(by_pieces(given.shape, work)).reshape(-1, 2)
    length, turn = found.sum(axis=0) / max(len(given), 1)
    return DecompositionChange(float(length), float(turn))


def dora_to_lora(w: Array, b: Array, a: Array, magnitude: Array, /, *, scaling: float, rank: int) -> LoraRefit[Array]:
    """The rank-r patch nearest to W' − W, with what it leaves.  [D-10]"""
    given, m = _layer("D-10", w, b, a, magnitude, scaling, "linear")
    check_patch("D-10", given.w.shape, rank, "balanced")
    change = _weight(given, _quotient(m, _norm(given))) - given.w
    patch = svd_patch(change, rank=rank)
    update = float(scipy.linalg.norm(change.astype(np.float64)))
    left = change.astype(np.float64) - patch.B.astype(np.float64) @ patch.A.astype(np.float64)
    return LoraRefit(patch.B, patch.A, float(scipy.linalg.norm(left)), update)
