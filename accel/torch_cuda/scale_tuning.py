"""Chapter U: the scales of binary codes, their gradient, a step of training, and their least-squares fit."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit.accel.common.binary_coding import binary_groups, check_planes
from lowbit.accel.common.eigenspace import check_definite
from lowbit.accel.common.refusals import check_matrix
from lowbit.accel.common.scale_tuning import check_norm, check_train, check_tuning
from lowbit.reference.errors import SpecError
from lowbit.reference.types import ScaleNorm, Trained, TunedScales

from .arrays import as_integers, as_weights, operation, refuse_nan, row_chunks, working_dtype
from .gptq import check_moment

__all__ = ["fit_scales", "scale_grad", "scale_grad_tokens", "trainable_scales", "tune_step"]

RESOLVED = 2.0**-40  # eigenvalues of the normal equations this far below the largest are 0


def check_codes(clause: str, codes: Tensor, shape: tuple[int, ...], bits: int, *, like: Tensor) -> Tensor:
    """Refuse codes of another shape or outside 0 … 2^bits − 1."""
    codes = as_integers(clause, "codes", codes, like=like)
    check_matrix(clause, "codes", codes.shape, shape)
    if codes.numel():
        low, high = (int(v) for v in torch.aminmax(codes))
        if low < 0 or high >= 1 << bits:
            outside = (codes < 0) | (codes >= 1 << bits)
            row, column = divmod(int(outside.reshape(-1).to(torch.uint8).argmax()), codes.shape[1])
            value = int(codes[row, column])
            raise SpecError(clause, f"code {value} at ({row}, {column}) is outside 0..{(1 << bits) - 1}")
    return codes


def check_mask(clause: str, trainable: Tensor, shape: tuple[int, ...], *, like: Tensor) -> Tensor:
    """Refuse anything but booleans of the shape of the scales."""
    if not isinstance(trainable, Tensor) or trainable.dtype != torch.bool or tuple(trainable.shape) != shape:
        got = f"{trainable.dtype} {tuple(trainable.shape)}" if isinstance(trainable, Tensor) else type(trainable)
        raise SpecError(clause, f"trainable must be bool of shape {shape}, got {got}")
    if trainable.device != like.device:
        raise SpecError(clause, f"trainable is on {trainable.device}, the other arguments are on {like.device}")
    return trainable


def signed_sums(x: Tensor, codes: Tensor, groups: int, bits: int) -> Tensor:
    """Σ ±x over every group of columns, (m, k) → (m, G, q).

    A bit is shifted to where floats keep their sign and put there by an exclusive or, which turns every value whose bit
    is set: the sum comes out negated.
    """
    m, k = x.shape
    out = torch.zeros((m, groups, bits), dtype=x.dtype, device=x.device)
    if x.numel() == 0:
        return out
    width = k // groups
    integer, top = (torch.int64, 63) if x.dtype == torch.float64 else (torch.int32, 31)
    for rows in row_chunks(m, k, x.device):
        keys, picked = x[rows].contiguous().view(integer), codes[rows].to(integer)
        for i in range(bits):
            flip = (picked << (top - i)).bitwise_and_(torch.iinfo(integer).min)
            signed = flip.bitwise_xor_(keys).view(x.dtype)
            out[rows, :, i] = signed.reshape(-1, groups, width).sum(-1)
    return out.neg_()


@operation
def trainable_scales(scale: Tensor, /, *, train: Trained = "first") -> Tensor:
    """Which scales train: plane 0, the largest magnitude (ties to the lower plane), or all.  [U-1]"""
    check_train("U-1", train)
    scale = as_weights("U-1", "scale", scale)
    check_matrix("U-1", "scale", scale.shape, (None, None, None))
    refuse_nan("U-1", "scale", scale)
    planes = torch.arange(scale.shape[2], device=scale.device)
    if train == "all" or scale.numel() == 0:
        return torch.ones(scale.shape, dtype=torch.bool, device=scale.device)
    if train == "first":
        return (planes == 0).expand(scale.shape).clone()
    size = scale.to(working_dtype(scale)).abs()
    # argmax of equal values is whichever a device meets first: the lowest is found by its number
    leading = torch.where(size == size.amax(-1, keepdim=True), planes, scale.shape[2]).amin(-1, keepdim=True)
    return planes == leading


@operation
def scale_grad(
    grad: Tensor, codes: Tensor, /, *, bits: int, group_size: int | None = None, norm: ScaleNorm = "sum"
) -> Tensor:
    """Gradient of every scale from that of the weight: signed sums over groups.  [U-2]"""
    check_norm("U-2", norm)
    grad = as_weights("U-2", "grad", grad)
    check_matrix("U-2", "grad", grad.shape, (None, None))
    check_planes("U-2", "bits", bits)
    groups = binary_groups("U-2", grad.shape[1], group_size)
    codes = check_codes("U-2", codes, tuple(grad.shape), bits, like=grad)
    refuse_nan("U-2", "grad", grad)
    return normalised(signed_sums(grad.to(working_dtype(grad)), codes, groups, bits), grad.shape[1], norm)


def normalised(sums: Tensor, k: int, norm: ScaleNorm) -> Tensor:
    """Sums as they are, or divided by the columns of a group."""
    return sums / max(k // max(sums.shape[1], 1), 1) if norm == "mean" else sums


@operation
def scale_grad_tokens(
    x: Tensor, delta: Tensor, codes: Tensor, /, *, bits: int, group_size: int | None = None, norm: ScaleNorm = "sum"
) -> Tensor:
    """Gradient of every scale from inputs and output gradients.  [U-3]"""
    check_norm("U-3", norm)
    x = as_weights("U-3", "x", x)
    delta = as_weights("U-3", "delta", delta, like=x)
    check_matrix("U-3", "x", x.shape, (None, None))
    check_matrix("U-3", "delta", delta.shape, (x.shape[0], None))
    k, m = x.shape[1], delta.shape[1]
    check_planes("U-3", "bits", bits)
    groups = binary_groups("U-3", k, group_size)
    codes = check_codes("U-3", codes, (m, k), bits, like=x)
    refuse_nan("U-3", "x", x)
    refuse_nan("U-3", "delta", delta)
    dtype = working_dtype(x, delta)
    x, slope = x.to(dtype), delta.to(dtype).mT
    out = torch.empty((m, groups, bits), dtype=dtype, device=x.device)
    for rows in row_chunks(m, k, x.device, elements=1 << 22):
        out[rows] = signed_sums(slope[rows] @ x, codes[rows], groups, bits)
    return normalised(out, k, norm)


@operation
def tune_step(
    scale: Tensor,
    grad: Tensor,
    initial: Tensor,
    first: Tensor,
    second: Tensor,
    trainable: Tensor,
    /,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    decay: float = 0.0,
) -> TunedScales[Tensor]:
    """A step of AdamW on the scales that train, decaying towards their start, in float64.  [U-4]"""
    check_tuning("U-4", step=step, lr=lr, beta1=beta1, beta2=beta2, epsilon=epsilon, decay=decay)
    scale = as_weights("U-4", "scale", scale)
    check_matrix("U-4", "scale", scale.shape, (None, None, None))
    named = {"scale": scale, "grad": grad, "initial": initial, "first": first, "second": second}
    for name, x in named.items():
        named[name] = as_weights("U-4", name, x, like=scale)
        check_matrix("U-4", name, x.shape, tuple(scale.shape))
        refuse_nan("U-4", name, named[name])
    on = check_mask("U-4", trainable, tuple(scale.shape), like=scale)
    dtype = working_dtype(*named.values())
    if scale.numel() and bool((named["second"] < 0).any()):
        raise SpecError("U-4", f"second must be >= 0, the smallest is {float(named['second'].min())!r}")
    α, g, start, m, v = (x.to(torch.float64) for x in named.values())
    mean, square = m.mul(beta1).add_(g, alpha=1 - beta1), v.mul(beta2).addcmul_(g, g, value=1 - beta2)
    below = (square / (1 - beta2**step)).sqrt_().add_(epsilon)
    move = torch.where(below > 0, mean / (1 - beta1**step) / torch.where(below > 0, below, 1.0), 0.0)
    moved = α - lr * (move + decay * (α - start))
    return TunedScales(*(torch.where(on, new, old).to(dtype) for new, old in ((moved, α), (mean, m), (square, v))))


@operation
def fit_scales(w: Tensor, c: Tensor, codes: Tensor, scale: Tensor, trainable: Tensor, /) -> Tensor:
    """Scales of least output error tr[(W − Ŵ) C (W − Ŵ)ᵀ], the nearest to the given ones.  [U-5]

    Rows are solved together, in float64, through the eigenvalues of their normal equations.
    """
    w = as_weights("U-5", "w", w)
    check_matrix("U-5", "w", w.shape, (None, None))
    scale = as_weights("U-5", "scale", scale, like=w)
    check_matrix("U-5", "scale", scale.shape, (w.shape[0], None, None))
    (m, k), (_, groups, bits) = w.shape, scale.shape
    if k % groups if groups else k:
        raise SpecError("U-5", f"{groups} scales do not divide axis length {k}")
    check_planes("U-5", "planes of scale", bits)
    codes = check_codes("U-5", codes, (m, k), bits, like=w)
    on = check_mask("U-5", trainable, tuple(scale.shape), like=w)
    refuse_nan("U-5", "w", w)
    refuse_nan("U-5", "scale", scale)
    moment = check_moment("U-5", "c", c, k, like=w)
    moment = (moment + moment.mT) / 2
    check_definite(torch, "U-5", "c", moment)
    fitted = scale.to(working_dtype(w, scale), copy=True)
    used = on.any(0).any(0).nonzero()[:, 0]
    count = int(used.numel()) * groups
    if count == 0 or m == 0 or k == 0:
        return fitted
    width = k // groups
    for rows in row_chunks(m, max(k * bits, count * count), w.device, elements=1 << 21):
        picked, α = codes[rows], scale[rows].to(torch.float64)
        signs = ((picked[:, None] >> torch.arange(bits, device=w.device)[:, None]) & 1).to(torch.float64) * 2 - 1
        parts = signs.reshape(-1, bits, groups, width)  # (rows, q, G, k/G)
        error = w[rows].to(torch.float64) - torch.einsum("rgi,rigc->rgc", α, parts).reshape(-1, k)
        parts = parts[:, used]
        right = torch.einsum("rigc,rgc->rig", parts, (error @ moment).reshape(-1, groups, width))
        blocks = moment.reshape(groups, width, groups, width)
        normal = torch.empty((parts.shape[0], count, count), dtype=torch.float64, device=w.device)
        for g in range(groups):
            product = torch.einsum("rid,dhc->rihc", parts[:, :, g], blocks[g])
            block = torch.einsum("rihc,rjhc->rijh", product, parts)
            normal.view(-1, len(used), groups, len(used), groups)[:, :, g] = block
        mask = on[rows][..., used].movedim(-1, 1).reshape(-1, count)
        normal = torch.where(mask[:, :, None] & mask[:, None], (normal + normal.mT) / 2, 0.0)
        value, vector = torch.linalg.eigh(normal)
        kept = value > RESOLVED * value[:, -1:].clamp(min=0)
        inside = torch.einsum("rij,ri->rj", vector, torch.where(mask, right.reshape(-1, count), 0.0))
        inside = torch.where(kept, inside / torch.where(kept, value, 1.0), 0.0)
        change = torch.einsum("rij,rj->ri", vector, inside).reshape(-1, len(used), groups).movedim(1, -1)
        chosen = on[rows][..., used]
        old = scale[rows][..., used]
        fitted[rows.start : rows.stop, :, used] = torch.where(
            chosen, old.to(torch.float64) + change, old.to(torch.float64)
        ).to(fitted.dtype)
    return fitted
