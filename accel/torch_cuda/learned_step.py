"""Chapter S: learned step sizes, tile by tile, so that the passes over a tile find it in the cache.

The rules are those of :mod:`lowbit.reference.learned_step`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from lowbit.accel.common.learned_step import check_learned_step, gradient_scale, step_view
from lowbit.accel.common.refusals import check_choice, check_matrix
from lowbit.reference.errors import SpecError
from lowbit.reference.types import LSQ_INITS, LsqCount, LsqGradient, LsqInit, LsqStart

from . import triton
from .arrays import as_weights, finite_weights, operation, refuse_nan, working_dtype
from .policy import by_kernel

__all__ = ["lsq", "lsq_code", "lsq_gradient", "lsq_init"]

triton.KERNELS.update(lsq=triton.narrow, lsq_code=triton.narrow, lsq_gradient=triton.narrow)

TILE = 1 << 17  # values of a tile on a CPU; elsewhere a launch takes what there is


class Plan(NamedTuple):
    """Checked arguments of one call, around the axis of the steps; kernels look at what x holds, torch before."""

    x: Tensor  # (before, n, after)
    step: Tensor  # (1, n, 1), floored
    offset: Tensor | None  # (1, n, 1)
    low: int
    high: int
    dtype: torch.dtype  # of the work and of the answers
    given: Tensor  # x as it came

    def in_torch(self, clause: str) -> Plan:
        """x in working precision, known to be finite."""
        refuse_nan(clause, "x", self.given)
        return self._replace(x=self.x.to(self.dtype))

    def for_kernels(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """x in its own dtype, steps and offsets (n,), contiguous."""
        β = None if self.offset is None else self.offset.reshape(-1).contiguous()
        return self.x.contiguous(), self.step.reshape(-1).contiguous(), β


def plan(
    clause: str, x: Tensor, step: Tensor, offset: Tensor | None, bits: int, signed: bool, axis: int | None,
    epsilon: float, *more: Tensor,
) -> Plan:  # fmt: skip
    """Check all but the values of x, floor the step, shape everything around the axis."""
    low, high, floor = check_learned_step(clause, bits, signed, epsilon)
    x = as_weights(clause, "x", x)
    before, n, after = step_view(clause, x.shape, axis)
    s = finite_weights(clause, "step", step, (n,), like=x)
    β = None if offset is None else finite_weights(clause, "offset", offset, (n,), like=x)
    if floor == 0 and n and not float(s.min()) > 0:
        raise SpecError(clause, f"step must be above 0, or epsilon, got {float(s.min())}")
    dtype = working_dtype(x, s, *more, *(() if β is None else (β,)))
    s = s.to(dtype).clamp(min=floor).reshape(1, n, 1)
    β = None if β is None else β.to(dtype).reshape(1, n, 1)
    return Plan(x.reshape(before, n, after), s, β, low, high, dtype, x)


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
    """First step, and offset of LSQ+.  [S-1]"""
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
    """Codes round(clamp((x − offset) / step)).  [S-2]"""
    q = plan("S-2", x, step, offset, bits, signed, axis, epsilon)
    if q.x.numel() and by_kernel("lsq_code", q.given, q.step):
        return from_kernel(q, "S-2", codes=True)
    q = q.in_torch("S-2")
    out = torch.empty(q.x.shape, dtype=torch.int32, device=q.x.device)
    for at in tiles(q.x):
        out[at] = quotient(q, at).clamp_(q.low, q.high).round_().to(torch.int32)
    return out.reshape(q.given.shape)


def from_kernel(q: Plan, clause: str, *, codes: bool) -> Tensor:
    """S-2 or S-3 of what is not empty by a kernel."""
    out: Tensor
    out, bad = triton.launcher("learned_step").lsq(*q.for_kernels(), q.low, q.high, codes)
    if bool(bad.any()):
        refuse_nan(clause, "x", q.given)
    return out.reshape(q.given.shape)


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
    if q.x.numel() and by_kernel("lsq", q.given, q.step):
        return from_kernel(q, "S-3", codes=False)
    q = q.in_torch("S-3")
    out = torch.empty(q.x.shape, dtype=q.x.dtype, device=q.x.device)
    for at in tiles(q.x):
        codes, s = quotient(q, at).clamp_(q.low, q.high).round_(), q.step[:, at[1]]
        if q.offset is None:
            torch.mul(codes, s, out=out[at])
        else:
            torch.add(codes.mul_(s), q.offset[:, at[1]], out=out[at])
    return out.reshape(q.given.shape)


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
    """Gradients of input, step and offset.  [S-4, S-5, S-6]"""
    grad = as_weights("S-4", "grad", grad)
    q = plan("S-4", x, step, offset, bits, signed, axis, epsilon, grad)
    check_matrix("S-4", "grad", grad.shape, tuple(x.shape))
    g = gradient_scale(x.shape, axis, count, q.high)
    if q.x.numel() and by_kernel("lsq_gradient", q.given, q.step):
        found = triton.launcher("learned_step").lsq_gradient(grad.contiguous(), *q.for_kernels(), q.low, q.high)
        if bool(found.bad.any()):
            refuse_nan("S-4", "x", q.given)
            refuse_nan("S-4", "grad", grad)
        shift = None if found.offset is None else (g * found.offset).to(torch.float32)
        return LsqGradient(found.x.reshape(q.given.shape), (g * found.step).to(torch.float32), shift)
    q, dtype = q.in_torch("S-4"), q.dtype
    refuse_nan("S-4", "grad", grad)
    slope = grad.to(dtype).reshape(q.x.shape)
    out = torch.empty(q.x.shape, dtype=dtype, device=q.x.device)
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
    shift = None if q.offset is None else (g * to_offset).to(dtype)
    return LsqGradient(out.reshape(q.given.shape), (g * to_step).to(dtype), shift)
