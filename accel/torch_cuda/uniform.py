"""Q: affine grids along the last axis, clip search, codes. The rules are those of :mod:`lowbit.reference.uniform`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lowbit.accel.common.uniform import check_bits, code_range, grid_groups
from lowbit.reference.errors import SpecError
from lowbit.reference.types import ClippedGrid, Granularity, Grid, ScaleDtype, Scheme

from . import triton
from .arrays import as_integers, as_weights, operation, refuse_nan, row_chunks, working_dtype
from .policy import by_kernel

__all__ = ["clip_search", "dequantize", "fit_grid", "quantize"]

triton.KERNELS.update(quantize=triton.anything, dequantize=triton.anything)

SMALLEST = 2.0**-126  # smallest normal float32: no scale is below it
_SCALE_BITS: dict[str, tuple[int, float, float]] = {  # bits of the significand, smallest normal, largest value
    "float32": (24, SMALLEST, 2.0**128 * (1 - 2.0**-24)),
    "float16": (11, 2.0**-14, 65504.0),
    "bfloat16": (8, SMALLEST, 2.0**128 * (1 - 2.0**-8)),
}


class Options(NamedTuple):
    """What a grid depends on besides its range: checked once, used for every group."""

    bits: int
    scheme: str
    range_floor: float
    scale_dtype: str | None
    dtype: torch.dtype  # of the scale


def check_grid_options(bits: int, scheme: str, range_floor: float, scale_dtype: str | None) -> None:
    """Refuse parameters outside clauses Q-1 and Q-2."""
    check_bits(bits, scheme)
    if not (math.isfinite(range_floor) and range_floor >= 0):
        raise SpecError("Q-2", f"range_floor must be finite and not negative, got {range_floor!r}")
    if scale_dtype is not None and scale_dtype not in _SCALE_BITS:
        raise SpecError("Q-2", f"scale_dtype must be one of {', '.join(_SCALE_BITS)} or None, got {scale_dtype!r}")


def value_range(x: Tensor, axis: int, *, include_zero: bool = True) -> tuple[Tensor, Tensor]:
    """Smallest and largest value along ``axis`` in float64, stretched to 0; an empty axis gives (0, 0)."""
    if x.shape[axis] == 0:
        zero = torch.zeros(_without(x.shape, axis), dtype=torch.float64, device=x.device)
        return zero, zero.clone()
    low, high = (t.to(torch.float64) for t in torch.aminmax(x, dim=axis))
    return (low.clamp_(max=0.0), high.clamp_(min=0.0)) if include_zero else (low, high)


def _without(shape: Sequence[int], axis: int) -> list[int]:
    kept = list(shape)
    del kept[axis]
    return kept


def grid_from_range(low: Tensor, high: Tensor, ratio: float | Tensor, o: Options) -> tuple[Tensor, Tensor]:
    """Scale and zero point of ranges shrunk by ``ratio``, any shape.  [Q-2, Q-8]

    Ranges are few, so they are worked out in float64 and rounded once, to the scale's own dtype. Returns scale in
    ``o.dtype``, infinite where it overflows (see :func:`refuse_overflow`), and zero point as float64 integers.
    """
    levels = 2**o.bits - 1
    if o.scheme == "asymmetric":
        empty = low == high
        scale = (high * ratio - low * ratio) / levels
        scale = torch.where(empty, 2.0 / levels, scale)
    else:
        amax = torch.maximum(-low, high).clamp(min=o.range_floor)
        empty = amax == 0
        amax = amax * ratio
        if o.scheme == "symmetric":
            scale = torch.where(empty, 1.0, amax / (2 ** (o.bits - 1) - 1))
        else:
            if o.scheme == "symmetric-full":
                width = 2 * amax
            else:  # the published code leaves the low end at 0 when nothing is negative
                width = torch.where(low < 0, 2 * amax, amax)
            scale = torch.where(empty, 2.0 / levels, width / levels)
    scale = _round_scale(scale, o)
    if o.scheme != "asymmetric":
        return scale, torch.zeros_like(scale, dtype=torch.float64)
    # the quotient is rounded to the working dtype first, as x / s will be: -lo/s = 127.5 stays a tie
    quotient = ((-low * ratio) / scale.to(torch.float64)).to(o.dtype).to(torch.float64)
    zero = torch.round(torch.where(empty, levels / 2, quotient))
    return scale, torch.where(high < 0, zero, zero.clamp(max=levels))  # a scale rounded down asks for one code more


def _round_scale(scale: Tensor, o: Options) -> Tensor:
    """Round float64 scales half to even to ``o.scale_dtype``, never below its smallest normal."""
    name = o.scale_dtype or ("float64" if o.dtype == torch.float64 else "float32")
    if name == "float64":
        return scale.clamp(min=SMALLEST)
    significand, smallest, largest = _SCALE_BITS[name]
    # rounding in the integer view: a detour through float32 would round twice
    drop = 53 - significand
    pattern = scale.contiguous().view(torch.int64)
    pattern = pattern + ((1 << (drop - 1)) - 1) + ((pattern >> drop) & 1)
    rounded = (pattern & -(1 << drop)).view(torch.float64).clamp(min=smallest)
    return torch.where(rounded > largest, torch.inf, rounded).to(o.dtype)


def refuse_overflow(scale: Tensor, o: Options) -> None:
    """Raise clause Q-2 when a scale is infinite. Checked once per operation: every look at a value waits for a GPU."""
    bad = ~torch.isfinite(scale)
    if bool(bad.any()):
        at = np.unravel_index(int(bad.reshape(-1).to(torch.uint8).argmax()), tuple(scale.shape))
        name = o.scale_dtype or str(o.dtype).removeprefix("torch.")
        raise SpecError("Q-2", f"the scale of group {tuple(int(i) for i in at)} is too large for {name}")


def _grouped(x: Tensor, groups: tuple[int, ...], granularity: str) -> Tensor:
    """Values of one scale along the last axis: shape (*groups, size)."""
    if granularity == "tensor":
        return x.reshape(*groups, x.numel())
    size = x.shape[-1] // groups[-1] if groups[-1] else 0
    return x.reshape(*groups, size)


@operation
def fit_grid(
    x: Tensor,
    /,
    *,
    bits: int,
    scheme: Scheme = "asymmetric",
    granularity: Granularity = "row",
    group_size: int | None = None,
    clip_ratio: float = 1.0,
    include_zero: bool = True,
    range_floor: float = 0.0,
    scale_dtype: ScaleDtype | None = None,
) -> Grid[Tensor]:
    """Affine grid that covers the values of every group.  [Q-1, Q-2, Q-8]"""
    x = as_weights("Q-2", "x", x)
    check_grid_options(bits, scheme, range_floor, scale_dtype)
    groups = grid_groups(x.shape, granularity, group_size)
    if not 0 < clip_ratio <= 1:
        raise SpecError("Q-2", f"clip_ratio must be in (0, 1], got {clip_ratio!r}")
    refuse_nan("Q-2", "x", x)
    values = _grouped(x, groups, granularity)
    options = Options(bits, scheme, range_floor, scale_dtype, working_dtype(x))
    scale, zero = grid_from_range(*value_range(values, -1), clip_ratio, options)
    if scheme == "asymmetric" and not include_zero:
        low, high = value_range(values, -1, include_zero=False)
        narrow, shifted = grid_from_range(low, high, clip_ratio, options)
        # a constant group has no range of its own, and a zero point must fit int32: both keep the range with 0
        apart = (high > low) & (shifted.abs() < 2**31 - 1)
        scale, zero = torch.where(apart, narrow, scale), torch.where(apart, shifted, zero)
    refuse_overflow(scale, options)
    return Grid(scale=scale, zero_point=zero.to(torch.int32))


def _clipping_error(
    x: Tensor, scale: Tensor, zero: Tensor, unit: Tensor, norm: float, codes: tuple[int, int]
) -> Tensor:
    """abs((s·(code − z) − x)·unit)**norm; scale, zero and unit as x, or of shapes that spread over one another."""
    error = (x / scale).round_()
    # x / s never leaves the float range of its own codes here, so z joins the clip bounds (two calls: one clamp with
    # a bound per row takes three times as long)
    torch.maximum(error, codes[0] - zero, out=error)
    torch.minimum(error, codes[1] - zero, out=error)
    error.mul_(scale).sub_(x).mul_(unit).abs_()
    if norm == 2:
        return error.square_()
    # Twice as fast as a power, and as exact: in units near the step the logarithms are small numbers.
    return error.log2_().mul_(norm).exp2_()


_LOOK = 8  # steps between two looks at which groups can still improve


def search_grid(values: Tensor, o: Options, *, norm: float, grid: int, max_shrink: float) -> tuple[Tensor, ...]:
    """Clip search over rows of (N, size): scale (N,), zero point (N,) float64 integers, step (N,) int32.  [Q-5]

    Works through cache-sized chunks of groups, so that the workspace does not grow with N or with the steps. What the
    clipping costs the two extreme values of a group is a lower bound of its error: a group leaves the search when no
    ratio that is left has a bound below the least error found.
    """
    n, size = values.shape
    device = values.device
    best_scale = torch.empty(n, dtype=o.dtype, device=device)
    best_zero = torch.empty(n, dtype=torch.float64, device=device)
    best_step = torch.zeros(n, dtype=torch.int32, device=device)
    steps = max(int(max_shrink * grid), 1)
    ratios = torch.tensor([1.0 - i / grid for i in range(steps)], dtype=torch.float64, device=device)[:, None]
    codes = code_range(o.bits, o.scheme)
    for rows in row_chunks(n, size, device):
        x = values[rows].to(o.dtype)
        low, high = value_range(x, -1)
        scales, exact = grid_from_range(low, high, ratios, o)  # (steps, n)
        best_scale[rows], best_zero[rows] = scales[0], exact[0]
        if size == 0 or steps == 1:
            continue
        zeros = exact.to(o.dtype)
        # a power of two, without rounding of its own; an infinite scale is refused by the caller
        unit = torch.exp2(-scales[0].log2().round()).nan_to_num(1.0, 1.0, 1.0)
        bound = torch.zeros_like(exact)
        for extreme in (x.amin(-1), x.amax(-1))[:size]:
            bound += _clipping_error(extreme, scales, zeros, unit, norm, codes)
        # sums of other orders may differ by rounding, which must not end a search
        bound = bound.mul_(1.0 - 1e-9).flip(0).cummin(0).values.flip(0)  # of this step and all later ones
        least = torch.full_like(low, torch.inf, dtype=torch.float64)
        step = torch.zeros_like(low, dtype=torch.int64)
        alive: Tensor | slice = slice(None)
        left, u = x, unit[:, None]  # of the groups that are alive
        for first in range(0, steps, _LOOK):
            if first and not bool((bound[first] < least).all()):
                alive = (bound[first] < least).nonzero().squeeze(-1)
                if not len(alive):
                    break
                left, u = x[alive], unit[alive, None]
            s, z = (part[first : first + _LOOK, alive, None] for part in (scales, zeros))
            for i in range(len(s)):
                total = _clipping_error(left, s[i], z[i], u, norm, codes).sum(-1, dtype=torch.float64)
                found = least[alive]
                better = total < found  # strict: on a tie the larger ratio stays
                least[alive] = torch.where(better, total, found)
                step[alive] = torch.where(better, first + i, step[alive])
        # an unshrunk grid that overflows is refused, even if a narrower one would not
        step.masked_fill_(~torch.isfinite(scales[0]), 0)
        best_step[rows] = step.to(torch.int32)
        best_scale[rows] = scales.gather(0, step[None]).squeeze(0)
        best_zero[rows] = exact.gather(0, step[None]).squeeze(0)
    return best_scale, best_zero, best_step


@operation
def clip_search(
    x: Tensor,
    /,
    *,
    bits: int,
    scheme: Scheme = "asymmetric",
    granularity: Granularity = "row",
    group_size: int | None = None,
    norm: float = 2.4,
    grid: int = 100,
    max_shrink: float = 0.8,
    range_floor: float = 0.0,
    scale_dtype: ScaleDtype | None = None,
) -> ClippedGrid[Tensor]:
    """Grid whose clip ratio minimises the sum of abs(error)**norm in every group.  [Q-5]"""
    x = as_weights("Q-5", "x", x)
    check_grid_options(bits, scheme, range_floor, scale_dtype)
    groups = grid_groups(x.shape, granularity, group_size)
    check_search(norm, grid, max_shrink)
    refuse_nan("Q-5", "x", x)
    values = _grouped(x, groups, granularity)
    values = values.reshape(math.prod(groups), values.shape[-1])
    options = Options(bits, scheme, range_floor, scale_dtype, working_dtype(x))
    scale, zero, step = search_grid(values, options, norm=norm, grid=grid, max_shrink=max_shrink)
    scale = scale.reshape(groups)
    refuse_overflow(scale, options)
    return ClippedGrid(scale=scale, zero_point=zero.to(torch.int32).reshape(groups), step=step.reshape(groups))


def check_search(norm: float, grid: int, max_shrink: float) -> None:
    """Refuse clip-search parameters outside clause Q-5."""
    if not (math.isfinite(norm) and norm > 0):
        raise SpecError("Q-5", f"norm must be finite and positive, got {norm!r}")
    if isinstance(grid, bool) or not isinstance(grid, int) or grid < 1:
        raise SpecError("Q-5", f"grid must be a positive integer, got {grid!r}")
    if not 0 <= max_shrink <= 1:
        raise SpecError("Q-5", f"max_shrink must be in [0, 1], got {max_shrink!r}")


def check_spread(shape: Sequence[int], parameter: Tensor, clause: str, name: str) -> None:
    """Refuse a grid parameter that does not cover values of a shape.

    Each of the G values along the parameter's last axis covers k/G consecutive columns; every other axis is equal
    or 1.
    """
    if parameter.ndim != len(shape):
        raise SpecError(
            clause, f"{name} must have {len(shape)} axes as the values have, got shape {tuple(parameter.shape)}"
        )
    if not shape:
        return
    for axis, (have, want) in enumerate(zip(parameter.shape[:-1], shape[:-1], strict=True)):
        if have not in (1, want):
            raise SpecError(clause, f"{name} has length {have} on axis {axis}, the values have {want}")
    k, groups = shape[-1], parameter.shape[-1]
    if k % groups if groups else k:
        raise SpecError(clause, f"{name} has {groups} groups, which do not divide axis length {k}")


def check_grid(clause: str, scale: Tensor, zero_point: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Refuse scales that are not positive and finite, and shapes of scale and zero point that differ."""
    scale = as_weights(clause, "scale", scale, like=like)
    zero_point = as_integers(clause, "zero_point", zero_point, like=like)
    if scale.shape != zero_point.shape:
        raise SpecError(
            clause,
            f"scale and zero_point must have one shape, got {tuple(scale.shape)} and {tuple(zero_point.shape)}",
        )
    refuse_nan(clause, "scale", scale)
    if scale.numel() and not bool((scale > 0).all()):
        raise SpecError(clause, f"scale must be positive, the smallest is {float(scale.min())!r}")
    return scale, zero_point


def fits_float32(zero_point: Tensor) -> bool:
    """Whether code + zero point arithmetic is exact in float32."""
    if zero_point.numel() == 0:
        return True
    low, high = (int(t) for t in torch.aminmax(zero_point))
    return max(-low, high) < 2**22


@operation
def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, /, *, bits: int, scheme: Scheme = "asymmetric") -> Tensor:
    """Codes ``clip(round_half_even(x / scale) + zero_point, range)``; a true division.  [Q-3]"""
    x, scale, zero_point = check_quantize(x, scale, zero_point, bits, scheme)
    if by_kernel("quantize", x):
        codes: Tensor = triton.launcher("uniform").quantize(x, scale, zero_point, *code_range(bits, scheme))
        return codes
    return quantize_checked(x, scale, zero_point, bits, scheme)


def check_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, scheme: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Everything :func:`quantize` refuses."""
    x = as_weights("Q-3", "x", x)
    check_bits(bits, scheme)
    scale, zero_point = check_grid("Q-3", scale, zero_point, x)
    check_spread(x.shape, scale, "Q-3", "scale")
    refuse_nan("Q-3", "x", x)
    return x, scale, zero_point


def quantize_checked(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, scheme: str) -> Tensor:
    """:func:`quantize` in torch, in cache-sized runs of rows."""
    low, high = code_range(bits, scheme)
    dtype = working_dtype(x, scale)
    work = dtype if fits_float32(zero_point) else torch.float64
    values, s, z = _rows(x, scale, zero_point)
    codes = torch.empty(values.shape, dtype=torch.int32, device=x.device)
    for rows in row_chunks(values.shape[0], values.shape[1] * values.shape[2], x.device):
        level = values[rows].to(dtype).div(s[rows].to(dtype)).round_().to(work)
        # clip(r + z, low, high) = clip(r, low - z, high - z) + z, and the right side cannot overflow or round
        shift = z[rows].to(work)
        codes[rows] = level.clamp_(low - shift, high - shift).add_(shift)
    return codes.reshape(x.shape)


def _rows(x: Tensor, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values as (N, G, size) and their grid as (N, G, 1), N rows in all."""
    k = x.shape[-1] if x.ndim else 1
    groups = scale.shape[-1] if scale.ndim else 1
    n = math.prod(x.shape[:-1])
    lead = (*x.shape[:-1], groups) if x.ndim else ()
    s, z = (t.expand(lead).reshape(n, groups, 1) for t in (scale, zero_point))
    return x.reshape(n, groups, k // groups if groups else 0), s, z


@operation
def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, /) -> Tensor:
    """Values ``scale * (codes - zero_point)``.  [Q-4]"""
    codes, scale, zero_point = check_dequantize(codes, scale, zero_point)
    if by_kernel("dequantize", scale):
        values: Tensor = triton.launcher("uniform").dequantize(codes, scale, zero_point, working_dtype(scale))
        return values
    return dequantize_checked(codes, scale, zero_point)


def check_dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Everything :func:`dequantize` refuses."""
    codes = as_integers("Q-4", "codes", codes)
    scale, zero_point = check_grid("Q-4", scale, zero_point, codes)
    check_spread(codes.shape, scale, "Q-4", "scale")
    return codes, scale, zero_point


def dequantize_checked(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """:func:`dequantize` in torch, in cache-sized runs of rows."""
    dtype = working_dtype(scale)
    integer = torch.int32 if fits_float32(zero_point) and codes.dtype != torch.int64 else torch.int64
    levels, s, z = _rows(codes, scale, zero_point)
    values = torch.empty(levels.shape, dtype=dtype, device=codes.device)
    for rows in row_chunks(levels.shape[0], levels.shape[1] * levels.shape[2], codes.device):
        level = levels[rows].to(integer) - z[rows].to(integer)
        torch.mul(level, s[rows].to(dtype), out=values[rows])
    return values.reshape(codes.shape)
