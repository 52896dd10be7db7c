"""Chapter T: statistics that axes share, and bounds of a clip."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowbit.reference.errors import SpecError
from lowbit.reference.types import SHARINGS

from .refusals import check_choice, check_number

__all__ = ["check_clip", "shared_shape"]


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
