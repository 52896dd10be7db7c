"""Chapter D: DoRA on tensors. Nothing of size (m, k) is made besides results: norms go by strips of rows in float64,
and gradients are products with the factors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

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

from . import triton
from .arrays import as_weights, operation, refuse_nan, row_chunks, working_dtype
from .low_rank import truncated_svd
from .policy import by_kernel

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

triton.KERNELS.update(dora_norm=triton.anything)


class Update(NamedTuple):
    """Checked arguments as matrices, w and a in the working dtype."""

    w: Tensor  # (m, k), possibly a transposed view
    b: Tensor  # float64, (m, r), times the scaling
    a: Tensor  # (r, k)


def _rows(w: Tensor, layout: str) -> Tensor:
    """(m, k) view of a stored weight."""
    return w.mT if layout == "transposed" else w.reshape(w.shape[0], w.shape[1:].numel())


def check_weight(clause: str, w: Tensor, layout: str) -> Update:
    """A weight without factors."""
    w = as_weights(clause, "w", w)
    m, k = check_rows(clause, "w", w.shape, layout)
    refuse_nan(clause, "w", w)
    w = _rows(w, layout).to(working_dtype(w))
    return Update(w, w.new_zeros((m, 0), dtype=torch.float64), w.new_zeros((0, k)))


def check_factors(
    clause: str,
    w: Tensor,
    b: Tensor,
    a: Tensor,
    scaling: float,
    layout: str,
    *others: Tensor,
    name: str = "w",
) -> Update:
    """A weight and its factors; ``others`` are checked tensors that have a say in the working dtype."""
    w = as_weights(clause, name, w)
    b, a = as_weights(clause, "b", b, like=w), as_weights(clause, "a", a, like=w)
    m, k, r = check_update(clause, name, w.shape, b.shape, a.shape, scaling, layout)
    for label, x in ((name, w), ("b", b), ("a", a)):
        refuse_nan(clause, label, x)
    dtype = working_dtype(w, b, a, *others)
    return Update(_rows(w, layout).to(dtype), b.reshape(m, r).to(torch.float64) * scaling, a.reshape(r, k).to(dtype))


def _per_row(clause: str, name: str, x: Tensor, m: int | None, like: Tensor) -> Tensor:
    """A checked vector with one entry per output."""
    x = as_weights(clause, name, x, like=like)
    check_matrix(clause, name, x.shape, (m,))
    refuse_nan(clause, name, x)
    return x


def _stored(rows: Tensor, shape: torch.Size, layout: str) -> Tensor:
    """(m, k) as a contiguous stored weight."""
    return rows.mT.contiguous() if layout == "transposed" else rows.reshape(shape)


def norms(given: Update) -> Tensor:
    """‖W_i + s (B A)_i‖, strips of rows in float64."""
    w, b, a = given
    found = torch.empty(w.shape[0], dtype=w.dtype, device=w.device)
    wide = a.to(torch.float64)
    for part in row_chunks(w.shape[0], w.shape[1], w.device):
        v = torch.addmm(w[part].to(torch.float64), b[part], wide)
        found[part] = torch.linalg.vector_norm(v, dim=1)
    return found


def _norms(given: Update) -> Tensor:
    """D-1 and D-2, by one kernel for both or by :func:`norms` for both, so that they agree where B is 0."""
    if by_kernel("dora_norm", given.w):
        found: Tensor = triton.launcher("dora").dora_norm(*given)
        return found
    return norms(given)


def quotient(magnitude: Tensor, c: Tensor) -> Tensor:
    """m / c, and 1 for a row without direction."""
    used = c > 0
    return torch.where(used, magnitude / torch.where(used, c, 1.0), 1.0)


@operation
def dora_magnitude(w: Tensor, /, *, layout: DoraLayout = "linear") -> Tensor:
    """Norm of every output's weights, summed in float64.  [D-1]"""
    return _norms(check_weight("D-1", w, layout))


@operation
def dora_norm(w: Tensor, b: Tensor, a: Tensor, /, *, scaling: float, layout: DoraLayout = "linear") -> Tensor:
    """Norm of every row of W + s B A, without an (m, k) temporary.  [D-2]"""
    return _norms(check_factors("D-2", w, b, a, scaling, layout))


@operation
def factored_norm(w: Tensor, square_norm: Tensor, b: Tensor, a: Tensor, /, *, scaling: float) -> Tensor:
    """The same norm by expanding its square around a kept ‖W_i‖², in float64.  [D-3]"""
    w = as_weights("D-3", "w", w)
    check_matrix("D-3", "w", w.shape, (None, None))
    square_norm = _per_row("D-3", "square_norm", square_norm, w.shape[0], w)
    if not bool((square_norm >= 0).all()):
        raise SpecError("D-3", f"square_norm must be >= 0, the smallest is {float(square_norm.min())!r}")
    given = check_factors("D-3", w, b, a, scaling, "linear", square_norm)
    left, right = given.b, given.a.to(torch.float64)
    square = square_norm.to(torch.float64) + (left @ (right @ right.mT) * left).sum(dim=1)
    for part in row_chunks(w.shape[0], w.shape[1], w.device):
        square[part] += 2 * (left[part] * (given.w[part].to(torch.float64) @ right.mT)).sum(dim=1)
    return square.clamp_min(0).sqrt().to(given.w.dtype)


def _layer(
    clause: str, w: Tensor, b: Tensor, a: Tensor, magnitude: Tensor, scaling: float, layout: str, *others: Tensor
) -> tuple[Update, Tensor]:
    """Checked weight, factors and magnitude."""
    like = as_weights(clause, "w", w)
    m, _ = check_rows(clause, "w", like.shape, layout)
    magnitude = _per_row(clause, "magnitude", magnitude, m, like)
    given = check_factors(clause, w, b, a, scaling, layout, magnitude, *others)
    return given, magnitude.to(given.w.dtype)


@operation
def dora_weight(
    w: Tensor, b: Tensor, a: Tensor, magnitude: Tensor, /, *, scaling: float, layout: DoraLayout = "linear"
) -> Tensor:
    """diag(m / c) (W + s B A), factor 1 in a zero row.  [D-4]"""
    given, m = _layer("D-4", w, b, a, magnitude, scaling, layout)
    return _stored(_scaled(given, quotient(m, norms(given))), w.shape, layout)


def _scaled(given: Update, factor: Tensor) -> Tensor:
    return torch.addmm(given.w, given.b.to(given.w.dtype), given.a).mul_(factor[:, None])


@operation
def dora_forward(
    x: Tensor,
    dropped: Tensor,
    w: Tensor,
    bias: Tensor,
    b: Tensor,
    a: Tensor,
    magnitude: Tensor,
    /,
    *,
    scaling: float,
    layout: DoraLayout = "linear",
) -> Tensor:
    """x Wᵀ + bias + (g − 1) (x̃ Wᵀ) + g s (x̃ Aᵀ) Bᵀ; the bias is not scaled.  [D-5]"""
    if layout == "conv":
        raise SpecError("D-5", "layout 'conv' has no matrix product: convolve with dora_weight(...)")
    x = as_weights("D-5", "x", x)
    dropped = as_weights("D-5", "dropped", dropped, like=x)
    given, m = _layer("D-5", w, b, a, magnitude, scaling, layout, x, dropped)
    bias = _per_row("D-5", "bias", bias, given.w.shape[0], x)
    if x.shape != dropped.shape or x.ndim < 1 or x.shape[-1] != given.w.shape[1]:
        shapes = f"{tuple(x.shape)} and {tuple(dropped.shape)}"
        raise SpecError("D-5", f"x and dropped must be equal and end in {given.w.shape[1]}, got {shapes}")
    refuse_nan("D-5", "x", x)
    refuse_nan("D-5", "dropped", dropped)
    dtype = working_dtype(given.w, bias)
    g = quotient(m, norms(given))
    weight = given.w.to(dtype)
    seen = dropped.to(dtype).reshape(-1, weight.shape[1])
    base = x.to(dtype).reshape(seen.shape) @ weight.mT
    frozen = base if dropped is x else seen @ weight.mT
    y = base + bias.to(dtype) + (g - 1) * frozen
    y += g * ((seen @ given.a.to(dtype).mT) @ given.b.to(dtype).mT)
    return y.reshape(*x.shape[:-1], len(g))


@operation
def dora_gradient(
    grad: Tensor,
    w: Tensor,
    b: Tensor,
    a: Tensor,
    magnitude: Tensor,
    /,
    *,
    scaling: float,
    detach: bool = True,
    layout: DoraLayout = "linear",
) -> DoraGradient[Tensor]:
    """Gradients of the factors and of the magnitude from that of the weight, by products with the factors.  [D-6]"""
    if not isinstance(detach, bool):
        raise SpecError("D-6", f"detach must be True or False, got {detach!r}")
    grad = as_weights("D-6", "grad", grad)
    given, m = _layer("D-6", w, b, a, magnitude, scaling, layout, grad)
    if grad.shape != w.shape:
        raise SpecError("D-6", f"grad must have the shape {tuple(w.shape)} of w, got {tuple(grad.shape)}")
    refuse_nan("D-6", "grad", grad)
    g_rows = _rows(grad, layout).to(given.w.dtype)
    c = norms(given)
    used, g, left = c > 0, quotient(m, c), given.b.to(given.w.dtype)
    against = g_rows @ given.a.mT  # G Aᵀ
    inner = (g_rows * given.w).sum(dim=1) + (against * left).sum(dim=1)  # ⟨G_i, V_i⟩
    dm = torch.where(used, inner / torch.where(used, c, 1.0), 0.0)
    scaled = g[:, None] * left
    db, da = g[:, None] * against, scaled.mT @ g_rows
    if not detach:  # less g dm v, by V = W + B A
        along = torch.where(used, dm / torch.where(used, c, 1.0), 0.0)[:, None]
        db -= g[:, None] * along * (given.w @ given.a.mT + left @ (given.a @ given.a.mT))
        scaled = scaled * along
        da -= scaled.mT @ given.w + (scaled.mT @ left) @ given.a
    return DoraGradient((db * scaling).reshape(b.shape), da.reshape(a.shape), dm)


@operation
def dora_merge(
    w: Tensor, b: Tensor, a: Tensor, magnitude: Tensor, /, *, scaling: float, layout: DoraLayout = "linear"
) -> DoraMerged[Tensor]:
    """The weight of :func:`dora_weight` with its factors m / c.  [D-7]"""
    given, m = _layer("D-7", w, b, a, magnitude, scaling, layout)
    factor = quotient(m, norms(given))
    return DoraMerged(_stored(_scaled(given, factor), w.shape, layout), factor)


@operation
def dora_unmerge(
    merged: Tensor, b: Tensor, a: Tensor, factor: Tensor, /, *, scaling: float, layout: DoraLayout = "linear"
) -> Tensor:
    """diag(1 / factor) W' − s B A, with the factor of the merge.  [D-7]"""
    like = as_weights("D-7", "merged", merged)
    m, _ = check_rows("D-7", "merged", like.shape, layout)
    factor = _per_row("D-7", "factor", factor, m, like)
    given = check_factors("D-7", merged, b, a, scaling, layout, factor, name="merged")
    erased = factor == 0
    if bool(erased.any()):
        raise SpecError("D-7", f"factor is 0 in row {int(erased.to(torch.uint8).argmax())}: the merge erased it")
    base = given.w / factor.to(given.w.dtype)[:, None]
    return _stored(torch.addmm(base, given.b.to(base.dtype), given.a, alpha=-1), merged.shape, layout)


def _pair(clause: str, names: tuple[str, str], b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Two checked factors (m, r) and (r, k)."""
    b = as_weights(clause, names[0], b)
    a = as_weights(clause, names[1], a, like=b)
    check_matrix(clause, names[0], b.shape, (None, None))
    check_matrix(clause, names[1], a.shape, (b.shape[1], None))
    refuse_nan(clause, names[0], b)
    refuse_nan(clause, names[1], a)
    return b, a


@operation
def dvora_factors(b: Tensor, a: Tensor, row_scale: Tensor, rank_scale: Tensor, /) -> LowRank[Tensor]:
    """diag(row_scale) B and diag(rank_scale) A, the factors of a DVoRA layer.  [D-8]"""
    b, a = _pair("D-8", ("b", "a"), b, a)
    row = _per_row("D-8", "row_scale", row_scale, b.shape[0], b)
    rank = _per_row("D-8", "rank_scale", rank_scale, a.shape[0], b)
    dtype = working_dtype(b, a, row, rank)
    return LowRank(row.to(dtype)[:, None] * b.to(dtype), rank.to(dtype)[:, None] * a.to(dtype))


@operation
def dvora_gradient(grad_b: Tensor, grad_a: Tensor, b: Tensor, a: Tensor, /) -> DvoraGradient[Tensor]:
    """Gradients of the two vectors of DVoRA from those of its factors.  [D-8]"""
    b, a = _pair("D-8", ("b", "a"), b, a)
    grad_b, grad_a = _pair("D-8", ("grad_b", "grad_a"), grad_b, grad_a)
    check_matrix("D-8", "grad_b", grad_b.shape, tuple(b.shape))
    check_matrix("D-8", "grad_a", grad_a.shape, tuple(a.shape))
    dtype = working_dtype(b, a, grad_b, grad_a)
    rows, ranks = grad_b.to(dtype) * b.to(dtype), grad_a.to(dtype) * a.to(dtype)
    return DvoraGradient(rows.sum(dim=1), ranks.sum(dim=1))


@operation
def decomposition_change(w: Tensor, start: Tensor, /) -> DecompositionChange:
    """Mean change of the norms of rows, and of 1 − cosine, in float64.  [D-9]"""
    w = as_weights("D-9", "w", w)
    start = as_weights("D-9", "start", start, like=w)
    check_matrix("D-9", "w", w.shape, (None, None))
    check_matrix("D-9", "start", start.shape, tuple(w.shape))
    refuse_nan("D-9", "w", w)
    refuse_nan("D-9", "start", start)
    length = turn = 0.0
    for part in row_chunks(w.shape[0], w.shape[1], w.device):
        one, other = w[part].to(torch.float64), start[part].to(torch.float64)
        p, q = torch.linalg.vector_norm(one, dim=1), torch.linalg.vector_norm(other, dim=1)
        both, size = (p > 0) & (q > 0), p * q
        alone = ((p == 0) & (q == 0)).to(torch.float64)
        cosine = torch.where(both, (one * other).sum(dim=1) / torch.where(both, size, 1.0), alone)
        length += float((p - q).abs().sum())
        turn += float((1 - cosine).sum())
    rows = max(w.shape[0], 1)
    return DecompositionChange(length / rows, turn / rows)


@operation
def dora_to_lora(
    w: Tensor, b: Tensor, a: Tensor, magnitude: Tensor, /, *, scaling: float, rank: int
) -> LoraRefit[Tensor]:
    """The rank-r patch nearest to W' − W, with what it leaves.  [D-10]"""
    given, m = _layer("D-10", w, b, a, magnitude, scaling, "linear")
    check_patch("D-10", given.w.shape, rank, "balanced")
    change = _scaled(given, quotient(m, norms(given))) - given.w
    patch = truncated_svd(change, rank, "balanced")
    update = float(torch.linalg.vector_norm(change, dtype=torch.float64))
    left = change.sub_(patch.B @ patch.A)
    return LoraRefit(patch.B, patch.A, float(torch.linalg.vector_norm(left, dtype=torch.float64)), update)
