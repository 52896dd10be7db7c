"""Chapter T: ternary and min-max fake quantizers, tile by tile, so that passes over a tile find it in the cache.

The rules are those of :mod:`lowbit.reference.ternary`. Every operation has two ways, in torch and by kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lowbit.accel.common.refusals import check_matrix
from lowbit.accel.common.ternary import (
    AT_THE_MEAN,
    check_clip,
    check_threshold,
    outer_steps,
    range_steps,
    shared_shape,
)
from lowbit.reference.errors import SpecError
from lowbit.reference.types import MinMaxScheme, Outermost, Sharing, TernaryCode

from . import triton
from .arrays import as_weights, operation, refuse_nan, row_chunks, working_dtype
from .policy import by_kernel

__all__ = ["clamped_uniform", "min_max", "straight_through", "twn", "twn_code"]

triton.KERNELS.update(dict.fromkeys(__all__, triton.narrow))

TILE = 1 << 17  # values of a tile on a CPU; elsewhere a launch takes what there is


def not_above(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest numbers of a format that are not above x (float64): a > x says the same of both."""
    near = x.to(dtype)
    return torch.where(near.to(torch.float64) > x, torch.nextafter(near, torch.full_like(near, -torch.inf)), near)


def not_below(x: float, dtype: torch.dtype) -> float:
    """The smallest number of a format that is not below x."""
    near = torch.tensor(x, dtype=torch.float64).to(dtype)
    up = near if float(near) >= x else torch.nextafter(near, torch.tensor(torch.inf, dtype=dtype))
    return float(up)


def tiles(groups: Tensor) -> Iterator[tuple[slice, list[slice]]]:
    """Some groups at a time, and their values in pieces."""
    count, n = groups.shape
    width = TILE if groups.device.type == "cpu" else max(n, 1)
    columns = [slice(c, min(c + width, n)) for c in range(0, n, width)]
    for rows in row_chunks(count, min(n, width), groups.device):
        yield rows, columns


def magnitude(tile: Tensor, clip: float) -> Tensor:
    """min(|x|, clip), in fresh memory."""
    a = tile.abs()
    return a if math.isinf(clip) else a.clamp_(max=clip)


class Groups(NamedTuple):
    """Arguments of a quantizer that fit together; what x holds has not been looked at."""

    x: Tensor
    rows: Tensor  # (groups, values)
    shape: tuple[int, ...]  # of the statistics
    clip: float  # infinite for none


def grouped(clause: str, x: Tensor, granularity: str, clip: float | None) -> Groups:
    """Refuse what no quantizer of this chapter takes."""
    bound = check_clip(clause, clip)
    x = as_weights(clause, "x", x)
    shape = shared_shape(clause, x.shape, granularity)
    count = math.prod(shape)
    return Groups(x, x.reshape(count, x.numel() // count if count else 0), shape, bound)


Write = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], object]


def large_values(
    op: str, clause: str, given: Groups, threshold: float, kind: int, write: Write, bits: int = 2
) -> tuple[Tensor, Tensor]:
    """Answers, and statistics (T.2), (T.3) of every group; by a kernel of this kind, or in torch.

    There ``write(x, |x|, cut, mean, to)`` answers. The mean is that of the magnitudes above threshold · mean, or of all
    where there is none.
    """
    x, rows_of_x, shape, clip = given
    if x.numel() and by_kernel(op, x):
        answer = triton.launcher("ternary").ternary(rows_of_x.contiguous(), clip, threshold, kind, bits)
        if bool(answer.bad.any()):
            refuse_nan(clause, "x", x)
        return answer.out.reshape(x.shape), answer.scale.reshape(shape)
    refuse_nan(clause, "x", x)
    groups = rows_of_x.to(working_dtype(x))
    count, n = groups.shape
    out = torch.empty(groups.shape, dtype=torch.int32 if kind == 1 else groups.dtype, device=groups.device)
    found = torch.zeros((count, 1), dtype=torch.float64, device=groups.device)
    for rows, columns in tiles(groups):
        part = groups[rows]
        total = torch.zeros((part.shape[0], 1), dtype=torch.float64, device=groups.device)
        above, number = torch.zeros_like(total), torch.zeros_like(total)
        held = magnitude(part, clip) if len(columns) == 1 else None  # one tile: its magnitudes are kept
        for c in columns:
            a = magnitude(part[:, c], clip) if held is None else held
            total += a.sum(1, keepdim=True)
        average = total / max(n, 1)
        cut = not_above(threshold * average, groups.dtype)
        for c in columns:
            a = magnitude(part[:, c], clip) if held is None else held
            kept = a > cut
            number += kept.sum(1, keepdim=True)
            above += (a * kept).sum(1, keepdim=True)
        mean = torch.where(number > 0, torch.maximum(above / number.clamp(min=1), average), average)
        found[rows] = mean
        for c in columns:
            a = magnitude(part[:, c], clip) if held is None else held
            write(part[:, c], a, cut, mean, out[rows, c])
    return out.reshape(x.shape), found.to(groups.dtype).reshape(shape)


@operation
def twn_code(
    x: Tensor, /, *, granularity: Sharing = "tensor", threshold: float = 0.7, clip: float | None = None
) -> TernaryCode[Tensor]:
    """Ternary code: signs of the magnitudes above threshold · mean, and their mean.  [T-1]"""
    t = check_threshold(threshold)

    def write(x: Tensor, a: Tensor, cut: Tensor, mean: Tensor, to: Tensor) -> None:
        torch.mul(a > cut, x.sign().to(torch.int32), out=to)

    return TernaryCode(*large_values("twn_code", "T-1", grouped("T-1", x, granularity, clip), t, 1, write))


@operation
def twn(x: Tensor, /, *, granularity: Sharing = "tensor", threshold: float = 0.7, clip: float | None = None) -> Tensor:
    """Ternary values: code times scale of :func:`twn_code`, with its arguments, in x's dtype or float32.  [T-2]"""
    t = check_threshold(threshold)

    def write(x: Tensor, a: Tensor, cut: Tensor, mean: Tensor, to: Tensor) -> None:
        torch.mul(torch.copysign(mean.to(x.dtype), x), a > cut, out=to)

    return large_values("twn", "T-1", grouped("T-1", x, granularity, clip), t, 0, write)[0]


@operation
def clamped_uniform(
    x: Tensor,
    /,
    *,
    bits: int = 4,
    granularity: Sharing = "tensor",
    clip: float | None = None,
    outermost: Outermost = "published",
) -> Tensor:
    """Multiples of 2α/(2^bits − 1) within ± α, the mean of the magnitudes above their mean.  [T-3]"""
    outer, last = outer_steps(bits, outermost)
    bounded = last < outer

    def write(x: Tensor, a: Tensor, cut: Tensor, mean: Tensor, to: Tensor) -> None:
        step = (2 * mean / (2**bits - 1)).to(x.dtype)
        k = (a / torch.where(step > 0, step, 1.0)).round_()
        k = torch.where(a < (AT_THE_MEAN * mean).to(x.dtype), k, float(outer)).clamp_(max=last)
        torch.mul(k.copysign_(x), step, out=to)

    given = grouped("T-3", x, granularity, clip)
    return large_values("clamped_uniform", "T-3", given, 1.0, 3 if bounded else 2, write, bits)[0]


@operation
def min_max(
    x: Tensor,
    /,
    *,
    bits: int = 8,
    scheme: MinMaxScheme = "symmetric",
    granularity: Sharing = "tensor",
    clip: float | None = None,
    epsilon: float = 0.0,
) -> Tensor:
    """The nearest of equally spaced values between the extremes.  [T-4]"""
    n, wider = range_steps(bits, scheme, epsilon)
    x, rows_of_x, _, bound = grouped("T-4", x, granularity, clip)
    symmetric = scheme == "symmetric"

    def refuse(largest: float, dtype: torch.dtype) -> None:
        if not n * largest <= torch.finfo(dtype).max:
            raise SpecError("T-4", f"{n} times the range {largest:.4g} overflows {dtype}")

    if x.numel() and by_kernel("min_max", x):
        launch = triton.launcher("ternary").min_max
        values, reaches = launch(rows_of_x.contiguous(), n, bound, wider, symmetric)
        largest = float(reaches.max())
        if math.isinf(largest):
            refuse_nan("T-4", "x", x)
        refuse(largest, torch.float32)
        answer: Tensor = values.reshape(x.shape)
        return answer
    refuse_nan("T-4", "x", x)
    groups = rows_of_x.to(working_dtype(x))
    if groups.numel() == 0:
        return groups.reshape(x.shape).clone()
    low, high = (v.to(torch.float64).clamp_(-bound, bound) for v in torch.aminmax(groups, dim=1, keepdim=True))
    if symmetric:
        reach, low = torch.maximum(high, -low) + wider, torch.zeros_like(low)
    else:
        reach = high - low + wider
    refuse(float(reach.max()), groups.dtype)
    reach, low = reach.to(groups.dtype), low.to(groups.dtype)
    divisor = torch.where(reach > 0, reach, 1.0)
    out = torch.empty_like(groups)
    for rows, columns in tiles(groups):
        for c in columns:
            v = groups[rows, c].clamp(-bound, bound).sub_(low[rows]).mul_(n).div_(divisor[rows]).round_().div_(n)
            torch.addcmul(low[rows], v, reach[rows], out=out[rows, c])
    return out.reshape(x.shape)


@operation
def straight_through(grad: Tensor, x: Tensor, /, *, clip: float | None) -> Tensor:
    """The gradient where |x| is below the clip, else 0.  [T-5]"""
    bound = check_clip("T-5", clip)
    grad = as_weights("T-5", "grad", grad)
    x = as_weights("T-5", "x", x, like=grad)
    check_matrix("T-5", "x", x.shape, tuple(grad.shape))
    dtype = working_dtype(grad, x)
    limit = not_below(bound, dtype)

    def refuse() -> None:
        refuse_nan("T-5", "grad", grad)
        refuse_nan("T-5", "x", x)

    out: Tensor
    if grad.numel() and by_kernel("straight_through", grad, x):
        out, bad = triton.launcher("ternary").straight_through(grad.contiguous(), x.contiguous(), limit)
        if bool(bad.any()):
            refuse()
        return out
    refuse()
    slope, values = grad.to(dtype).reshape(1, -1), x.to(dtype).reshape(1, -1)
    out = torch.empty_like(slope)
    for rows, columns in tiles(slope):
        for c in columns:
            torch.mul(slope[rows, c], values[rows, c].abs() < limit, out=out[rows, c])
    return out.reshape(grad.shape)
