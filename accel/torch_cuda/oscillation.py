"""Chapter O: oscillations of codes, weights near a threshold, and confidence-guided annealing."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lowbit.accel.common.oscillation import check_range
from lowbit.accel.common.refusals import check_choice, check_matrix, check_number
from lowbit.accel.common.scale_tuning import check_tuning
from lowbit.reference.errors import SpecError
from lowbit.reference.types import (
    FREEZE_VALUES,
    TARGETS,
    THRESHOLDS,
    AnnealedStep,
    BoundaryStatistics,
    FreezeValue,
    Oscillation,
    Targets,
    Thresholds,
)

from . import triton
from .arrays import as_integers, as_weights, operation, refuse_nan, row_chunks, working_dtype
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
    """State of a tracker before its first step.  [O-4]

    Args:
        codes: integers of any shape.

    Returns:
        all fields of that shape, means in float32.

    Raises:
        SpecError: O-4 for what does not hold integers.
    """
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


class Step(NamedTuple):
    """Arguments of a step of the tracker that fit together; values of means and directions have not been looked at."""

    codes: Tensor
    previous: Tensor
    direction: Tensor
    frequency: Tensor
    total: Tensor
    average: Tensor
    frozen: Tensor
    target: Tensor
    momentum: float
    limit: float  # infinite for never
    freeze_to: FreezeValue
    targets: Targets

    def refuse_direction(self) -> None:
        """Refuse what is no direction."""
        went = self.direction
        if went.numel() and int(went.abs().amax()) > 1:
            raise SpecError("O-4", f"direction must hold -1, 0 and 1, got {int(went.amin())} to {int(went.amax())}")

    def refuse_means(self) -> None:
        """The refusal of A-4."""
        refuse_nan("O-4", "frequency", self.frequency)
        refuse_nan("O-4", "average", self.average)


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
    """One step of the tracker: the codes to use, and the next state.  [O-4]

    Args:
        codes: integers of any shape.
        previous, direction, total, target: integers of that shape.
        frequency, average: floating, of that shape.
        frozen: bool of that shape.
        momentum: above 0, at most 1.
        threshold: frequency above which a weight freezes; None for never.
        freeze_to: "average" of the codes, or the "current" one.
        targets: "held" once written, or "rewritten" while the frequency is above the threshold.

    Returns:
        all fields of that shape; means have the wider dtype of both but at least float32.

    Raises:
        SpecError: O-4 for shapes and parameters, A-4 for NaN or infinities.
    """
    state = (previous, direction, frequency, total, average, frozen, target)
    given = check_step(codes, state, momentum, threshold, freeze_to, targets)
    serve = tracked_by_kernel if by_kernel("track_oscillation", given.frequency, given.average) else tracked
    return serve(given)


def check_step(
    codes: Tensor,
    state: tuple[Tensor, ...],
    momentum: float,
    threshold: float | None,
    freeze_to: FreezeValue,
    targets: Targets,
) -> Step:
    """Refuse shapes, dtypes and parameters that O-4 does not take."""
    check_choice("O-4", "freeze_to", freeze_to, FREEZE_VALUES)
    check_choice("O-4", "targets", targets, TARGETS)
    if not check_number("O-4", "momentum", momentum, 0.0, 1.0) > 0:
        raise SpecError("O-4", f"momentum must be above 0, got {momentum!r}")
    limit = math.inf if threshold is None else check_number("O-4", "threshold", threshold, 0.0)
    codes = as_integers("O-4", "codes", codes)
    fields = dict(zip(Step._fields[1:8], state, strict=True))
    for name, x in fields.items():
        if name == "frozen":
            check_boolean("O-4", "frozen", x, codes.shape, like=codes)
            continue
        take = as_weights if name in ("frequency", "average") else as_integers
        fields[name] = take("O-4", name, x, like=codes)
        check_matrix("O-4", name, fields[name].shape, tuple(codes.shape))
    return Step(codes, **fields, momentum=momentum, limit=limit, freeze_to=freeze_to, targets=targets)


def tracked(given: Step) -> Oscillation[Tensor]:
    """O-4 in torch."""
    given.refuse_means()
    given.refuse_direction()
    held, went, goal = given.frozen, given.direction.to(torch.int32), given.target.to(torch.int32)
    momentum, dtype = given.momentum, working_dtype(given.frequency, given.average)
    mean = given.average.to(dtype)
    k = torch.where(held, goal, given.codes.to(torch.int32))
    d = (given.previous.to(torch.int32) - k).sign_()
    turned = d * went == -1
    f = given.frequency.to(dtype) * (1 - momentum) + turned.to(dtype) * momentum
    often = f.to(torch.float64) > given.limit
    written = often if given.targets == "rewritten" else often & ~held
    pinned = mean.round().to(torch.int32) if given.freeze_to == "average" else k
    return Oscillation(
        k,
        torch.where(d != 0, d, went),
        f,
        given.total.to(torch.int32) + turned,
        mean * (1 - momentum) + k.to(dtype) * momentum,
        held | often,
        torch.where(written, pinned, goal),
    )


def tracked_by_kernel(given: Step) -> Oscillation[Tensor]:
    """O-4 by a kernel."""
    if not given.codes.numel():
        return tracked(given)
    codes, *state = (x.contiguous() for x in given[:8])
    # f > limit says the same of float32 numbers as f > the largest of them that is not above the limit
    limit = float(not_above(torch.tensor(given.limit, dtype=torch.float64), torch.float32))
    average, rewritten = given.freeze_to == "average", given.targets == "rewritten"
    found = triton.launcher("oscillation").track(codes, tuple(state), given.momentum, limit, average, rewritten)
    if bool(found.bad.any()):
        given.refuse_means()
        given.refuse_direction()
    return Oscillation(*found.state)


def near_mask(clause: str, w: Tensor, bits: int, boundary_range: float, thresholds: str) -> tuple[Tensor, Tensor]:
    """Checked ``w``, and which of its weights are near a threshold."""
    check_choice(clause, "thresholds", thresholds, THRESHOLDS)
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
    """Which weights confidence-guided annealing still trains.  [O-6]

    Args:
        w: floating, (..., m, k).
        bits: 1 to 16.
        boundary_range: 0 to ½, in steps of the grid.
        thresholds: "all", or those between "occupied" codes.

    Returns:
        bool as ``w``.

    Raises:
        SpecError: O-6 for parameters, A-4 for NaN or infinities.
    """
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
    """Weights near a threshold, and how often gradients change sign there and elsewhere.  [O-5]

    Args:
        w: floating, (..., m, k).
        grad, previous: gradients of this step and the one before, as ``w``.
        bits, boundary_range, thresholds: as :func:`cga_mask`.

    Returns:
        numbers.

    Raises:
        SpecError: O-5 for shapes and parameters, A-4 for NaN or infinities.
    """
    w, near = near_mask("O-5", w, bits, boundary_range, thresholds)
    slopes = {"grad": grad, "previous": previous}
    for name, x in slopes.items():
        slopes[name] = as_weights("O-5", name, x, like=w)
        check_matrix("O-5", name, x.shape, tuple(w.shape))
        refuse_nan("O-5", name, slopes[name])
    flip = slopes["grad"].sign().to(torch.int8) * slopes["previous"].sign().to(torch.int8) == -1
    counts = torch.stack([near.sum(), flip.sum(), (flip & near).sum()]).tolist()
    count, turned, both = (int(c) for c in counts)
    return BoundaryStatistics(
        count, count / max(near.numel(), 1), both / max(count, 1), (turned - both) / max(near.numel() - count, 1)
    )


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
    """A step of AdamW under a mask: frozen weights come back to the last bit.  [O-7]

    Args:
        w, grad, first, second: floating, of one shape; ``second`` is not negative.
        active: bool of that shape.
        step: number of this step, from 1.
        lr, beta1, beta2, epsilon, decay: of AdamW.

    Returns:
        weight, first and second, the widest dtype but at least float32. The arithmetic is float64.

    Raises:
        SpecError: O-7 for shapes and parameters, A-4 for NaN or infinities.
    """
    check_tuning("O-7", step=step, lr=lr, beta1=beta1, beta2=beta2, epsilon=epsilon, decay=decay)
    w = as_weights("O-7", "w", w)
    named = {"w": w, "grad": grad, "first": first, "second": second}
    for name, x in named.items():
        named[name] = as_weights("O-7", name, x, like=w)
        check_matrix("O-7", name, x.shape, tuple(w.shape))
        refuse_nan("O-7", name, named[name])
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
