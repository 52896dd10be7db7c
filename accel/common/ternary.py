"""Chapter T: statistics that axes share, and bounds of a clip."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowbit.reference.errors import SpecError
from lowbit.reference.types import MIN_MAX_SCHEMES, OUTERMOST, SHARINGS

from .refusals import check_choice, check_number, check_whole

__all__ = ["AT_THE_MEAN", "check_clip", "check_threshold", "outer_steps", "range_steps", "shared_shape"]


def shared_shape(clause: str, shape: Sequence[int], granularity: str) -> tuple[int, ...]:
    """Shape of statistics over all axes ("tensor"), the last one ("row") or the last two ("matrix")."""
    check_choice(clause, "granularity", granularity, SHARINGS)
    count = {"tensor": len(shape), "row": 1, "matrix": 2}[granularity]
    if len(shape) < count:
        raise SpecError(clause, f"x of shape {tuple(shape)} has no {granularity!r}")
    return (*shape[: len(shape) - count], *(1,) * count)


def check_clip(clause: str, clip: float | None) -> float:
    """The bound of a clip, infinite without one; refuses what is not above 0."""
    if clip is None:
        return math.inf
    bound = check_number(clause, "clip", clip, low=0.0)
    if bound == 0:
        raise SpecError(clause, f"clip must be above 0, got {clip!r}")
    return bound


def check_threshold(threshold: float) -> float:
    """Refuse a factor of the mean magnitude outside 0 … 1, or 1."""
    t = check_number("T-1", "threshold", threshold, low=0.0)
    if t >= 1:
        raise SpecError("T-1", f"threshold must be below 1, got {threshold!r}")
    return t


AT_THE_MEAN = 1 - 2.0**-16  # share of α from which a magnitude is at α, whatever a mean was rounded to


def outer_steps(bits: int, outermost: str) -> tuple[int, int]:
    """Steps of what is not below α, and most steps of all; refuses what clause T-3 refuses of bits and ends."""
    check_whole("T-3", "bits", bits, 2, 8)
    check_choice("T-3", "outermost", outermost, OUTERMOST)
    outer = 2 ** (bits - 1)
    return outer, outer - 1 if outermost == "bounded" else outer


def range_steps(bits: int, scheme: str, epsilon: float) -> tuple[int, float]:
    """Steps of a range, and what is added to it; refuses what clause T-4 refuses of them."""
    check_choice("T-4", "scheme", scheme, MIN_MAX_SCHEMES)
    symmetric = scheme == "symmetric"
    check_whole("T-4", "bits", bits, 2 if symmetric else 1, 8)
    return 2 ** (bits - symmetric) - 1, check_number("T-4", "epsilon", epsilon, low=0.0)
