"""Chapter T: ternary and min-max fake quantizers, tile by tile, so that passes over a tile find it in the cache.

Every operation comes in three parts: the check of its arguments, and two ways to serve them, in torch and by kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lowbit.accel.common.refusals import check_choice, check_matrix, check_number, check_whole
from lowbit.accel.common.ternary import check_clip, shared_shape
from lowbit.reference.errors import SpecError
from lowbit.reference.types import MIN_MAX_SCHEMES, OUTERMOST, MinMaxScheme, Outermost, Sharing, TernaryCode

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


Write = Callable[[Tensor, Tensor, Tensor, Tensor, slice, slice], None]


def large_values(groups: Tensor, threshold: float, clip: float, write: Write) -> Tensor:
    """Statistics (T.2), (T.3) of every group, float64 (groups, 1); ``write(x, |x|, cut, mean, rows, columns)`` answers.

    The mean is that of the magnitudes above threshold · mean, or of all where there is none.
    """
    count, n = groups.shape
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
            x = part[:, c]
            write(x, magnitude(x, clip) if held is None else held, cut, mean, rows, c)
    return found


class Groups(NamedTuple):
    """Arguments of a quantizer that fit together; what x holds has not been looked at."""

    clause: str
    x: Tensor
    shape: tuple[int, ...]  # of the statistics
    clip: float  # infinite for none

    def rows(self) -> Tensor:
        """x as (groups, values), in its own dtype."""
        count = math.prod(self.shape)
        return self.x.reshape(count, self.x.numel() // count if count else 0)

    def finite(self) -> Tensor:
        """The same in working precision; refuses NaN and infinities."""
        refuse_nan(self.clause, "x", self.x)
        return self.rows().to(working_dtype(self.x))

    def refuse(self, marks: Tensor) -> None:
        """The refusal of A-4 after a launch that left a mark."""
        if bool(marks.any()):
            refuse_nan(self.clause, "x", self.x)


def check(clause: str, x: Tensor, granularity: str, clip: float | None) -> Groups:
    """Refuse what no quantizer of this chapter takes."""
    bound = check_clip(clause, clip)
    x = as_weights(clause, "x", x)
    return Groups(clause, x, shared_shape(clause, x.shape, granularity), bound)


def check_ternary(x: Tensor, granularity: str, threshold: float, clip: float | None) -> tuple[Groups, float]:
    """Refuse what T-1 and T-2 do not take."""
    t = check_number("T-1", "threshold", threshold, low=0.0)
    if t >= 1:
        raise SpecError("T-1", f"threshold must be below 1, got {threshold!r}")
    return check("T-1", x, granularity, clip), t


@operation
def twn_code(
    x: Tensor, /, *, granularity: Sharing = "tensor", threshold: float = 0.7, clip: float | None = None
) -> TernaryCode[Tensor]:
    """Ternary code: signs of the magnitudes above threshold · mean, and their mean.  [T-1]

    Args:
        x: floating; one axis at least for "row", two for "matrix".
        granularity: values that share a scale: all, the last axis, the last two.
        threshold: factor of the mean magnitude, in [0, 1).
        clip: bound of the values before anything else, above 0; None for none.

    Returns:
        int32 codes of x's shape, scale with shared axes of length 1 and x's dtype but at least float32.

    Raises:
        SpecError: T-1 for parameters and shapes, A-4 for NaN and infinities.
    """
    given, t = check_ternary(x, granularity, threshold, clip)
    return (twn_code_by_kernel if by_kernel("twn_code", given.x) else twn_code_checked)(given, t)


def twn_code_checked(given: Groups, threshold: float) -> TernaryCode[Tensor]:
    """T-1 in torch."""
    groups = given.finite()
    codes = torch.empty(groups.shape, dtype=torch.int32, device=groups.device)

    def write(x: Tensor, a: Tensor, cut: Tensor, mean: Tensor, rows: slice, columns: slice) -> None:
        codes[rows, columns] = (a > cut) * x.sign().to(torch.int32)

    mean = large_values(groups, threshold, given.clip, write)
    return TernaryCode(codes.reshape(given.x.shape), mean.to(groups.dtype).reshape(given.shape))


def twn_code_by_kernel(given: Groups, threshold: float) -> TernaryCode[Tensor]:
    """T-1 by kernels."""
    if not given.x.numel():
        return twn_code_checked(given, threshold)
    found = triton.launcher("ternary").ternary(given.rows().contiguous(), given.clip, threshold, 1)
    given.refuse(found.bad)
    return TernaryCode(found.out.reshape(given.x.shape), found.scale.reshape(given.shape))


@operation
def twn(x: Tensor, /, *, granularity: Sharing = "tensor", threshold: float = 0.7, clip: float | None = None) -> Tensor:
    """Ternary values: code times scale of :func:`twn_code`, with its arguments, in x's dtype or float32.  [T-2]"""
    given, t = check_ternary(x, granularity, threshold, clip)
    return (twn_by_kernel if by_kernel("twn", given.x) else twn_checked)(given, t)


def twn_checked(given: Groups, threshold: float) -> Tensor:
    """T-2 in torch."""
    groups = given.finite()
    out = torch.empty_like(groups)

    def write(x: Tensor, a: Tensor, cut: Tensor, mean: Tensor, rows: slice, columns: slice) -> None:
        kept = torch.gt(a, cut)
        torch.mul(torch.copysign(mean.to(x.dtype), x), kept, out=out[rows, columns])

    large_values(groups, threshold, given.clip, write)
    return out.reshape(given.x.shape)


def twn_by_kernel(given: Groups, threshold: float) -> Tensor:
    """T-2 by kernels."""
    if not given.x.numel():
        return twn_checked(given, threshold)
    found = triton.launcher("ternary").ternary(given.rows().contiguous(), given.clip, threshold, 0)
    given.refuse(found.bad)
    out: Tensor = found.out.reshape(given.x.shape)
    return out


def check_clamped(
    x: Tensor, bits: int, granularity: str, clip: float | None, outermost: str
) -> tuple[Groups, int, Outermost]:
    """Refuse what T-3 does not take."""
    check_whole("T-3", "bits", bits, 2, 8)
    check_choice("T-3", "outermost", outermost, OUTERMOST)
    return check("T-3", x, granularity, clip), bits, "bounded" if outermost == "bounded" else "published"


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
    """Multiples of 2α/(2^bits − 1) within ± α, the mean of the magnitudes above their mean.  [T-3]

    Args:
        x, granularity, clip: as in :func:`twn_code`.
        bits: 2 to 8.
        outermost: "published", ±2^(bits − 1) steps at and beyond α; "bounded", one less.

    Returns:
        x's shape, dtype of x but at least float32.

    Raises:
        SpecError: T-3 for parameters and shapes, A-4 for NaN and infinities.
    """
    given, b, ends = check_clamped(x, bits, granularity, clip, outermost)
    return (clamped_by_kernel if by_kernel("clamped_uniform", given.x) else clamped_checked)(given, b, ends)


def clamped_checked(given: Groups, bits: int, outermost: Outermost) -> Tensor:
    """T-3 in torch."""
    groups = given.finite()
    out = torch.empty_like(groups)
    last = 2 ** (bits - 1)

    def write(x: Tensor, a: Tensor, cut: Tensor, mean: Tensor, rows: slice, columns: slice) -> None:
        step = (2 * mean / (2**bits - 1)).to(x.dtype)
        k = (a / torch.where(step > 0, step, 1.0)).round_()
        k = torch.where(a < mean.to(x.dtype), k, float(last))
        k = k.clamp_(max=last - 1) if outermost == "bounded" else k
        torch.mul(k.copysign_(x), step, out=out[rows, columns])

    large_values(groups, 1.0, given.clip, write)
    return out.reshape(given.x.shape)


def clamped_by_kernel(given: Groups, bits: int, outermost: Outermost) -> Tensor:
    """T-3 by kernels."""
    if not given.x.numel():
        return clamped_checked(given, bits, outermost)
    kind = 3 if outermost == "bounded" else 2
    found = triton.launcher("ternary").ternary(given.rows().contiguous(), given.clip, 1.0, kind, bits)
    given.refuse(found.bad)
    out: Tensor = found.out.reshape(given.x.shape)
    return out


class Range(NamedTuple):
    """Arguments of T-4 that fit together."""

    groups: Groups
    levels: int
    symmetric: bool
    wider: float


def check_min_max(x: Tensor, bits: int, scheme: str, granularity: str, clip: float | None, epsilon: float) -> Range:
    """Refuse what T-4 does not take."""
    check_choice("T-4", "scheme", scheme, MIN_MAX_SCHEMES)
    symmetric = scheme == "symmetric"
    check_whole("T-4", "bits", bits, 2 if symmetric else 1, 8)
    wider = check_number("T-4", "epsilon", epsilon, low=0.0)
    levels = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    return Range(check("T-4", x, granularity, clip), levels, symmetric, wider)


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
    """The nearest of equally spaced values between the extremes.  [T-4]

    Args:
        x, granularity, clip: as in :func:`twn_code`.
        bits: 2 to 8, or from 1 for "asymmetric".
        scheme: "symmetric" around 0, or "asymmetric" from the smallest to the largest value.
        epsilon: is added to the range, at least 0.

    Returns:
        x's shape, dtype of x but at least float32.

    Raises:
        SpecError: T-4 for parameters, shapes and a range that overflows, A-4 for NaN and infinities.
    """
    given = check_min_max(x, bits, scheme, granularity, clip, epsilon)
    return (min_max_by_kernel if by_kernel("min_max", given.groups.x) else min_max_checked)(given)


def refuse_range(levels: int, largest: float, dtype: torch.dtype) -> None:
    """The refusal of a range that overflows."""
    if not levels * largest <= torch.finfo(dtype).max:
        raise SpecError("T-4", f"{levels} times the range {largest:.4g} overflows {dtype}")


def min_max_checked(given: Range) -> Tensor:
    """T-4 in torch."""
    groups, n, bound = given.groups.finite(), given.levels, given.groups.clip
    if groups.numel() == 0:
        return groups.reshape(given.groups.x.shape).clone()
    low, high = (v.to(torch.float64).clamp_(-bound, bound) for v in torch.aminmax(groups, dim=1, keepdim=True))
    if given.symmetric:
        reach, low = torch.maximum(high, -low) + given.wider, torch.zeros_like(low)
    else:
        reach = high - low + given.wider
    refuse_range(n, float(reach.max()), groups.dtype)
    reach, low = reach.to(groups.dtype), low.to(groups.dtype)
    divisor = torch.where(reach > 0, reach, 1.0)
    out = torch.empty_like(groups)
    for rows, columns in tiles(groups):
        for c in columns:
            v = groups[rows, c].clamp(-bound, bound).sub_(low[rows]).mul_(n).div_(divisor[rows]).round_().div_(n)
            torch.addcmul(low[rows], v, reach[rows], out=out[rows, c])
    return out.reshape(given.groups.x.shape)


def min_max_by_kernel(given: Range) -> Tensor:
    """T-4 by kernels."""
    groups, n = given.groups, given.levels
    if not groups.x.numel():
        return min_max_checked(given)
    out, reaches = triton.launcher("ternary").min_max(
        groups.rows().contiguous(), n, groups.clip, given.wider, given.symmetric
    )
    largest = float(reaches.max())
    if math.isinf(largest):
        refuse_nan(groups.clause, "x", groups.x)
    refuse_range(n, largest, torch.float32)
    values: Tensor = out.reshape(groups.x.shape)
    return values


class Passed(NamedTuple):
    """Arguments of T-5 that fit together."""

    grad: Tensor
    x: Tensor
    clip: float


def check_passed(grad: Tensor, x: Tensor, clip: float | None) -> Passed:
    """Refuse what T-5 does not take."""
    bound = check_clip("T-5", clip)
    grad = as_weights("T-5", "grad", grad)
    x = as_weights("T-5", "x", x, like=grad)
    check_matrix("T-5", "x", x.shape, tuple(grad.shape))
    return Passed(grad, x, bound)


@operation
def straight_through(grad: Tensor, x: Tensor, /, *, clip: float | None) -> Tensor:
    """The gradient where |x| is below the clip, else 0.  [T-5]

    Args:
        grad: floating.
        x: floating, of the same shape.
        clip: above 0; None lets everything pass.

    Returns:
        grad's shape, the wider dtype of both but at least float32.

    Raises:
        SpecError: T-5 for shapes and a clip not above 0, A-4 for NaN and infinities.
    """
    given = check_passed(grad, x, clip)
    serve = (
        straight_through_by_kernel if by_kernel("straight_through", given.grad, given.x) else straight_through_checked
    )
    return serve(given)


def straight_through_checked(given: Passed) -> Tensor:
    """T-5 in torch."""
    grad, x, bound = given
    refuse_nan("T-5", "grad", grad)
    refuse_nan("T-5", "x", x)
    dtype = working_dtype(grad, x)
    slope, values = grad.to(dtype).reshape(1, -1), x.to(dtype).reshape(1, -1)
    limit, out = not_below(bound, dtype), torch.empty_like(slope)
    for rows, columns in tiles(slope):
        for c in columns:
            torch.mul(slope[rows, c], values[rows, c].abs() < limit, out=out[rows, c])
    return out.reshape(grad.shape)


def straight_through_by_kernel(given: Passed) -> Tensor:
    """T-5 by a kernel."""
    grad, x, bound = given
    if not grad.numel():
        return torch.zeros(grad.shape, dtype=torch.float32, device=grad.device)
    out: Tensor
    out, bad = triton.launcher("ternary").straight_through(
        grad.contiguous(), x.contiguous(), not_below(bound, torch.float32)
    )
    if bool(bad.any()):
        refuse_nan("T-5", "grad", grad)
        refuse_nan("T-5", "x", x)
    return out
