"""R: half to even, clipping, nearest level. The rules are those of :mod:`lowbit.reference.rounding`."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit.reference.errors import SpecError

from .arrays import as_weights, operation, refuse_nan, refuse_only_nan, working_dtype

__all__ = ["nearest_level", "round_clip", "round_half_even"]

_INT32 = (-(2**31), 2**31 - 1)


def level_table(clause: str, levels: Tensor, *, like: Tensor) -> Tensor:
    """Levels in float64, refused unless they are a finite, strictly ascending vector."""
    levels = as_weights(clause, "levels", levels, like=like)
    if levels.ndim != 1 or levels.numel() == 0:
        raise SpecError(clause, f"levels must have shape (L,) with L >= 1, got {tuple(levels.shape)}")
    refuse_nan(clause, "levels", levels)
    wide = levels.to(torch.float64)
    if not bool((wide[1:] > wide[:-1]).all()):
        at = int((wide[1:] > wide[:-1]).to(torch.uint8).argmin())
        raise SpecError(
            clause, f"levels must be strictly ascending, got {wide[at].item()!r} before {wide[at + 1].item()!r}"
        )
    return wide


def midpoints_of(levels: Tensor, dtype: torch.dtype) -> Tensor:
    """Midpoints of float64 levels, as the largest values of ``dtype`` that are not above them."""
    far = bool(levels.abs().max() > 1e300)
    middle = levels[:-1] / 2 + levels[1:] / 2 if far else (levels[:-1] + levels[1:]) / 2
    if dtype == torch.float64:
        return middle
    rounded = middle.to(torch.float32)
    down = torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))
    return torch.where(rounded.to(torch.float64) > middle, down, rounded)


@operation
def round_half_even(x: Tensor, /) -> Tensor:
    """Round to the nearest integer, ties to the even one.  [R-1]"""
    x = as_weights("R-1", "x", x)
    return torch.round(x.to(working_dtype(x)))


@operation
def round_clip(x: Tensor, /, *, low: int, high: int) -> Tensor:
    """Round half to even, then clip to ``[low, high]``.  [R-2]"""
    x = as_weights("R-2", "x", x)
    for name, bound in (("low", low), ("high", high)):
        if isinstance(bound, bool) or not isinstance(bound, int) or not _INT32[0] <= bound <= _INT32[1]:
            raise SpecError("R-2", f"{name} must be an int32 integer, got {bound!r}")
    if low > high:
        raise SpecError("R-2", f"low must not exceed high, got low={low} high={high}")
    refuse_only_nan("R-2", "x", x)
    # float32 holds every integer up to 2^24 only; beyond, the bounds themselves need float64
    wide = x.dtype == torch.float64 or max(abs(low), abs(high)) > 2**24
    x = x.to(torch.float64 if wide else torch.float32)
    return torch.round(x).clamp_(low, high).to(torch.int32)


@operation
def nearest_level(x: Tensor, levels: Tensor, /) -> Tensor:
    """Index of the nearest level; an exact midpoint goes to the lower index.  [R-3]"""
    x = as_weights("R-3", "x", x)
    wide = level_table("R-3", levels, like=x)
    refuse_nan("R-3", "x", x)
    x = x.to(working_dtype(x))
    return torch.searchsorted(midpoints_of(wide, x.dtype), x.contiguous(), right=False, out_int32=True)
