"""Chapter O: oscillations of codes, weights near a threshold, and confidence-guided annealing.

The rules are those of :mod:`lowbit.reference.oscillation`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit.accel.common.oscillation import boundary_rates, check_range, check_tracking, check_words
from lowbit.accel.common.refusals import check_matrix
from lowbit.accel.common.scale_tuning import check_tuning
from lowbit.reference.errors import SpecError
from lowbit.reference.types import AnnealedStep, BoundaryStatistics, FreezeValue, Oscillation, Targets, Thresholds

from . import triton
from .arrays import as_integers, as_weights, finite_weights, operation, refuse_nan, row_chunks, working_dtype
from .policy import by_kernel
from .statsq import back, by_scale, check_weight, in_steps, row_scales
from .ternary import not_above

__all__ = ["boundary_statistics", "cga_mask", "cga_step", "start_oscillation", "track_oscillation"]

triton.KERNELS.update(track_oscillation=triton.narrow)


def check_boolean(clause: str, name: str, x: Tensor, shape: torch.Size, *, like: Tensor) -> Tensor:
    """Refuse anything but booleans of a shape, on the device of the other arguments."""
    if not isinstance(x, Tensor) or x.dtype != torch.bool or x.shape != shape:
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise SpecError(clause, f"{name} must be bool of shape {tuple(shape)}, got {got}")
    if x.device != like.device:
        raise SpecError(clause, f"{name} is on {x.device}, the other arguments are on {like.device}")
    return x


@operation
def start_oscillation(codes: Tensor, /) -> Oscillation[Tensor]:
    """State of a tracker before its first step.  [O-4]"""
    codes = as_integers("O-4", "codes", codes)
    zero = torch.zeros(codes.shape, dtype=torch.int32, device=codes.device)
    return Oscillation(
        codes.to(torch.int32, copy=True),
        zero,
        zero.to(torch.float32),
        zero.clone(),
        codes.to(torch.float32),
        zero.to(torch.bool),
        zero.clone(),
    )


@operation
def track_oscillation(
    codes: Tensor,
    previous: Tensor,
    direction: Tensor,
    frequency: Tensor,
    total: Tensor,
    average: Tensor,
    frozen: Tensor,
    target: Tensor,
    /,
    *,
    momentum: float = 0.01,
    threshold: float | None = None,
    freeze_to: FreezeValue = "average",
    targets: Targets = "held",
) -> Oscillation[Tensor]:
    """One step of the tracker: the codes to use, and the next state.  [O-4]"""
    limit = check_tracking(momentum, threshold, freeze_to, targets)
    codes = as_integers("O-4", "codes", codes)
    state = (previous, direction, frequency, total, average, frozen, target)
    fields = dict(zip(("previous", *Oscillation._fields[1:]), state, strict=True))
    for name, x in fields.items():
        if name == "frozen":
            check_boolean("O-4", "frozen", x, codes.shape, like=codes)
            continue
        take = as_weights if name in ("frequency", "average") else as_integers
        fields[name] = take("O-4", name, x, like=codes)
        check_matrix("O-4", name, fields[name].shape, tuple(codes.shape))
    previous, direction, frequency, total, average, frozen, target = fields.values()

    def refuse() -> None:
        refuse_nan("O-4", "frequency", frequency)
        refuse_nan("O-4", "average", average)
        if direction.numel() and int(direction.abs().amax()) > 1:
            least, most = int(direction.amin()), int(direction.amax())
            raise SpecError("O-4", f"direction must hold -1, 0 and 1, got {least} to {most}")

    if codes.numel() and by_kernel("track_oscillation", frequency, average):
        # f > limit says the same of float32 numbers as f > the largest of them that is not above the limit
        bound = float(not_above(torch.tensor(limit, dtype=torch.float64), torch.float32))
        how = momentum, bound, freeze_to == "average", targets == "rewritten"
        given = tuple(x.contiguous() for x in fields.values())
        found = triton.launcher("oscillation").track(codes.contiguous(), given, *how)
        if bool(found.bad.any()):
            refuse()
        return Oscillation(*found.state)
    refuse()
    went, goal, dtype = direction.to(torch.int32), target.to(torch.int32), working_dtype(frequency, average)
    mean = average.to(dtype)
    k = torch.where(frozen, goal, codes.to(torch.int32))
    d = (previous.to(torch.int32) - k).sign_()
    turned = d * went == -1
    f = frequency.to(dtype) * (1 - momentum) + turned.to(dtype) * momentum
    often = f.to(torch.float64) > limit
    written = often if targets == "rewritten" else often & ~frozen
    pinned = mean.round().to(torch.int32) if freeze_to == "average" else k
    return Oscillation(
        k,
        torch.where(d != 0, d, went),
        f,
        total.to(torch.int32) + turned,
        mean * (1 - momentum) + k.to(dtype) * momentum,
        frozen | often,
        torch.where(written, pinned, goal),
    )


def near_mask(clause: str, w: Tensor, bits: int, boundary_range: float, thresholds: str) -> tuple[Tensor, Tensor]:
    """Checked ``w``, and which of its weights are near a threshold."""
    check_words(clause, thresholds=thresholds)
    width = check_range(clause, boundary_range)
    w = check_weight(clause, w, bits)
    n, rows, alpha = 1 << (bits - 1), by_scale(w), row_scales(clause, w)
    near = torch.zeros(rows.shape, dtype=torch.bool, device=w.device)
    low, high = -n, n - 1
    parts = list(row_chunks(rows.shape[0], rows.shape[1], w.device)) if rows.numel() else []
    if thresholds == "occupied" and parts:
        # extremes of the weights in steps are those of the codes, rounding being monotone
        ends = [torch.stack(torch.aminmax(in_steps(rows[p], alpha[p], n))) for p in parts]
        ends_of_all = torch.stack(ends).sub_(0.5).round_().clamp_(-n, n - 1)
        low, high = int(ends_of_all[:, 0].amin()), int(ends_of_all[:, 1].amax())
    if high > low:
        for part in parts:
            v = in_steps(rows[part], alpha[part], n)
            near[part] = v.sub_(v.round().clamp_(low + 1, high)).abs_() <= width
    return w, back(near, w.shape)


@operation
def cga_mask(w: Tensor, /, *, bits: int, boundary_range: float = 0.005, thresholds: Thresholds = "all") -> Tensor:
    """Which weights confidence-guided annealing still trains.  [O-6]"""
    return near_mask("O-6", w, bits, boundary_range, thresholds)[1]


@operation
def boundary_statistics(
    w: Tensor,
    grad: Tensor,
    previous: Tensor,
    /,
    *,
    bits: int,
    boundary_range: float = 0.005,
    thresholds: Thresholds = "all",
) -> BoundaryStatistics:
    """Weights near a threshold, and how often gradients change sign there and elsewhere.  [O-5]"""
    w, near = near_mask("O-5", w, bits, boundary_range, thresholds)
    slopes = {"grad": grad, "previous": previous}
    now, before = (finite_weights("O-5", name, x, tuple(w.shape), like=w) for name, x in slopes.items())
    flip = now.sign().to(torch.int8) * before.sign().to(torch.int8) == -1
    count, turned, both = torch.stack([near.sum(), flip.sum(), (flip & near).sum()]).tolist()
    return boundary_rates(count, turned, both, near.numel())


@operation
def cga_step(
    w: Tensor,
    grad: Tensor,
    first: Tensor,
    second: Tensor,
    active: Tensor,
    /,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    decay: float = 0.0,
) -> AnnealedStep[Tensor]:
    """A step of AdamW under a mask: frozen weights come back to the last bit; arithmetic in float64.  [O-7]"""
    check_tuning("O-7", step=step, lr=lr, beta1=beta1, beta2=beta2, epsilon=epsilon, decay=decay)
    w = as_weights("O-7", "w", w)
    named = {"w": w, "grad": grad, "first": first, "second": second}
    for name, x in named.items():
        named[name] = finite_weights("O-7", name, x, tuple(w.shape), like=w)
    on = check_boolean("O-7", "active", active, w.shape, like=w)
    if w.numel() and bool((named["second"] < 0).any()):
        raise SpecError("O-7", f"second must be >= 0, the smallest is {float(named['second'].min())!r}")
    dtype = working_dtype(*named.values())
    old, g, m, v = (x.to(torch.float64) for x in named.values())
    g = torch.where(on, g, 0.0)
    mean, square = m.mul(beta1).add_(g, alpha=1 - beta1), v.mul(beta2).addcmul_(g, g, value=1 - beta2)
    below = (square / (1 - beta2**step)).sqrt_().add_(epsilon)
    move = torch.where(below > 0, mean / (1 - beta1**step) / torch.where(below > 0, below, 1.0), 0.0)
    moved = torch.where(on, old - lr * (move + decay * old), old)
    return AnnealedStep(moved.to(dtype), mean.to(dtype), square.to(dtype))
