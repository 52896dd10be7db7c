"""Chapter S: learned step sizes, tile by tile, so that the passes over a tile find it in the cache."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from lowbit.accel.boundary import check_choice, check_learned_step, check_matrix, gradient_scale, step_view
from lowbit.reference.errors import SpecError
from lowbit.reference.types import LSQ_INITS, LsqCount, LsqGradient, LsqInit, LsqStart

from .arrays import as_weights, operation, refuse_nan, working_dtype

__all__ = ["lsq", "lsq_code", "lsq_gradient", "lsq_init"]

TILE = 1 << 17  # values of a tile on a CPU; elsewhere a launch takes what there is


class Plan(NamedTuple):
    """Checked arguments of one call, around the axis of the steps."""

    x: Tensor  # (before, n, after)
    step: Tensor  # (1, n, 1), floored
    offset: Tensor | None  # (1, n, 1)
    low: int
    high: int


def plan(
    clause: str, x: Tensor, step: Tensor, offset: Tensor | None, bits: int, signed: bool, axis: int | None,
    epsilon: float, *more: Tensor,
) -> Plan:  # fmt: skip
    """Check, floor the step, shape everything around the axis."""
    low, high, floor = check_learned_step(clause, bits, signed, epsilon)
    x = as_weights(clause, "x", x)
    before, n, after = step_view(clause, x.shape, axis)
    s = as_weights(clause, "step", step, like=x)
    check_matrix(clause, "step", s.shape, (n,))
    refuse_nan(clause, "x", x)
    refuse_nan(clause, "step", s)
    β = None
    if offset is not None:
        β = as_weights(clause, "offset", offset, like=x)
        check_matrix(clause, "offset", β.shape, (n,))
        refuse_nan(clause, "offset", β)
    if floor == 0 and n and not float(s.min()) > 0:
        raise SpecError(clause, f"step must be above 0, or epsilon, got {float(s.min())}")
    dtype = working_dtype(x, s, *more, *(() if β is None else (β,)))
    s = s.to(dtype).clamp(min=floor).reshape(1, n, 1)
    return Plan(
        x.to(dtype).reshape(before, n, after), s, None if β is None else β.to(dtype).reshape(1, n, 1), low, high
    )


def tiles(x: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Parts of (before, n, after), as much of the last axes as fits."""
    left = TILE if x.device.type == "cpu" else max(x.numel(), 1)
    parts: list[list[slice]] = []
    for length in reversed(x.shape):
        width = max(1, min(length, left))
        parts.insert(0, [slice(i, min(i + width, length)) for i in range(0, length, width)])
        left //= width
    yield from product(parts[0], parts[1], parts[2])


def quotient(q: Plan, at: tuple[slice, slice, slice]) -> Tensor:
    """(x − β) / s of a tile, in fresh memory."""
    j = at[1]
    if q.offset is None:
        return q.x[at] / q.step[:, j]
    return (q.x[at] - q.offset[:, j]).div_(q.step[:, j])


@operation
def lsq_init(
    x: Tensor, /, *, bits: int, signed: bool = True, axis: int | None = None, rule: LsqInit = "mean"
) -> LsqStart[Tensor]:
    """First step, and offset of LSQ+.  [S-1]

    Args:
        x: floating, of any shape.
        bits: 2 to 8, or from 1 when not signed.
        signed: codes around 0, or from 0.
        axis: one step for every index of it; None for one step.
        rule: "mean", "mean-doubled", "deviation" or "min-max".

    Returns:
        step and offset, (n,) or (1,), dtype of x but at least float32.

    Raises:
        SpecError: S-1 for parameters, A-4 for NaN or infinities.
    """
    low, high, _ = check_learned_step("S-1", bits, signed)
    check_choice("S-1", "rule", rule, LSQ_INITS)
    x = as_weights("S-1", "x", x)
    before, n, after = step_view("S-1", x.shape, axis)
    refuse_nan("S-1", "x", x)
    dtype = working_dtype(x)
    groups = x.to(dtype).reshape(before, n, after)
    count = max(before * after, 1)
    offset = torch.zeros(n, dtype=torch.float64, device=x.device)
    step = torch.zeros_like(offset)
    if rule in ("mean", "mean-doubled"):
        factor = 4.0 if rule == "mean-doubled" and not signed else 2.0
        step = groups.abs().sum((0, 2), dtype=torch.float64) * (factor / count / math.sqrt(high))
    elif rule == "deviation":
        wide = groups.to(torch.float64)
        mean = wide.sum((0, 2), keepdim=True) / count
        deviation = (wide - mean).square_().sum((0, 2)).div_(count).sqrt_()
        step = (mean.reshape(n).abs() + 3 * deviation) / 2 ** (bits - 1)
    elif groups.numel():
        least, most = groups.amin((0, 2)).to(torch.float64), groups.amax((0, 2)).to(torch.float64)
        step = (most - least) / (high - low)
        offset = least - step * low
    return LsqStart(torch.where(step > 0, step, 1.0).to(dtype), offset.to(dtype))


@operation
def lsq_code(
    x: Tensor,
    step: Tensor,
    offset: Tensor | None = None,
    /,
    *,
    bits: int,
    signed: bool = True,
    axis: int | None = None,
    epsilon: float = 0.0,
) -> Tensor:
    """Codes round(clamp((x − offset) / step)).  [S-2]

    Args:
        x: floating, of any shape.
        step: (n,) for an axis of length n, (1,) without; above 0 when epsilon is 0.
        offset: as step; None for 0.
        bits, signed, axis: as in :func:`lsq_init`.
        epsilon: floor of the step.

    Returns:
        int32, x's shape.

    Raises:
        SpecError: S-2 for parameters and shapes, A-4 for NaN or infinities.
    """
    q = plan("S-2", x, step, offset, bits, signed, axis, epsilon)
    out = torch.empty(q.x.shape, dtype=torch.int32, device=q.x.device)
    for at in tiles(q.x):
        out[at] = quotient(q, at).clamp_(q.low, q.high).round_().to(torch.int32)
    return out.reshape(x.shape)


@operation
def lsq(
    x: Tensor,
    step: Tensor,
    offset: Tensor | None = None,
    /,
    *,
    bits: int,
    signed: bool = True,
    axis: int | None = None,
    epsilon: float = 0.0,
) -> Tensor:
    """Values step · code + offset, arguments as in :func:`lsq_code`, in their widest dtype or float32.  [S-3]"""
    q = plan("S-3", x, step, offset, bits, signed, axis, epsilon)
    return forward(q).reshape(x.shape)


def forward(q: Plan) -> Tensor:
    """Values of checked arguments, (before, n, after)."""
    out = torch.empty(q.x.shape, dtype=q.x.dtype, device=q.x.device)
    for at in tiles(q.x):
        codes, s = quotient(q, at).clamp_(q.low, q.high).round_(), q.step[:, at[1]]
        if q.offset is None:
            torch.mul(codes, s, out=out[at])
        else:
            torch.add(codes.mul_(s), q.offset[:, at[1]], out=out[at])
    return out


@operation
def lsq_gradient(
    grad: Tensor,
    x: Tensor,
    step: Tensor,
    offset: Tensor | None = None,
    /,
    *,
    bits: int,
    signed: bool = True,
    axis: int | None = None,
    epsilon: float = 0.0,
    count: LsqCount = "elements",
) -> LsqGradient[Tensor]:
    """Gradients of input, step and offset.  [S-4, S-5, S-6]

    Args:
        grad: floating, x's shape.
        x, step, offset, bits, signed, axis, epsilon: as in :func:`lsq_code`.
        count: "elements", "features" or "unscaled".

    Returns:
        x of x's shape, step and offset of step's; the widest dtype of the arguments but at least float32.

    Raises:
        SpecError: S-4 for parameters and shapes, A-4 for NaN or infinities.
    """
    grad = as_weights("S-4", "grad", grad)
    q = plan("S-4", x, step, offset, bits, signed, axis, epsilon, grad)
    check_matrix("S-4", "grad", grad.shape, tuple(x.shape))
    g = gradient_scale(x.shape, axis, count, q.high)
    refuse_nan("S-4", "grad", grad)
    found = backward(q, grad, g)
    return LsqGradient(found.x.reshape(x.shape), found.step, found.offset)


def backward(q: Plan, grad: Tensor, g: float) -> LsqGradient[Tensor]:
    """Gradients of checked arguments; that of x is (before, n, after)."""
    slope = grad.to(q.x.dtype).reshape(q.x.shape)
    out = torch.empty(q.x.shape, dtype=q.x.dtype, device=q.x.device)
    to_step = torch.zeros(q.x.shape[1], dtype=torch.float64, device=q.x.device)
    to_offset = torch.zeros_like(to_step)
    for at in tiles(q.x):
        v, d = quotient(q, at), slope[at]
        c = v.clamp(q.low, q.high)
        inside = c == v
        torch.mul(d, inside, out=out[at])
        term = c.round().sub_(torch.where(inside, c, 0.0))  # outside c is an end of the range, and its own rounding
        to_step[at[1]] += term.mul_(d).sum((0, 2))
        if q.offset is not None:
            to_offset[at[1]] += (d - out[at]).sum((0, 2))
    dtype = q.x.dtype
    return LsqGradient(out, (g * to_step).to(dtype), None if q.offset is None else (g * to_offset).to(dtype))
