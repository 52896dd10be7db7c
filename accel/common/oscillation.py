"""Chapter O: scales of StatsQ, boundary ranges and heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from lowbit.reference.errors import SpecError
from lowbit.reference.types import (
    BIASES,
    FREEZE_VALUES,
    FROZEN_SPACES,
    GRADIENT_PATHS,
    TARGETS,
    THRESHOLDS,
    BoundaryStatistics,
)

from .refusals import check_number, check_options, check_whole

__all__ = [
    "boundary_rates",
    "check_attention",
    "check_heads",
    "check_momentum",
    "check_range",
    "check_steps",
    "check_tracking",
    "check_words",
]

check_words = partial(
    check_options,
    {
        "path": GRADIENT_PATHS,
        "freeze_to": FREEZE_VALUES,
        "targets": TARGETS,
        "thresholds": THRESHOLDS,
        "freeze": FROZEN_SPACES,
        "biases": BIASES,
    },
)


def check_steps(clause: str, shape: Sequence[int]) -> None:
    """Refuse a weight without the axis that StatsQ has a scale for."""
    if len(shape) < 2:
        raise SpecError(clause, f"w must have 2 axes or more, got shape {tuple(shape)}")


def check_range(clause: str, boundary_range: float) -> float:
    """Refuse a boundary range outside 0..1/2, where the windows of two thresholds would overlap."""
    return check_number(clause, "boundary_range", boundary_range, 0.0, 0.5)


def check_momentum(momentum: float) -> None:
    """Refuse the momentum of a tracker outside 0 … 1, without 0."""
    if not check_number("O-4", "momentum", momentum, 0.0, 1.0) > 0:
        raise SpecError("O-4", f"momentum must be above 0, got {momentum!r}")


def check_tracking(momentum: float, threshold: float | None, freeze_to: str, targets: str) -> float:
    """The frequency above which a weight freezes, infinite for never; refuses what clause O-4 refuses of options."""
    check_words("O-4", freeze_to=freeze_to, targets=targets)
    check_momentum(momentum)
    return math.inf if threshold is None else check_number("O-4", "threshold", threshold, 0.0)


def boundary_rates(near: int, turned: int, both: int, size: int) -> BoundaryStatistics:
    """O-5 from how many of all weights are near a threshold, how many gradients have turned, and how many are both."""
    return BoundaryStatistics(near, near / max(size, 1), both / max(near, 1), (turned - both) / max(size - near, 1))


def check_heads(clause: str, name: str, rows: int, heads: int) -> None:
    """Refuse a number of heads that does not divide the rows of ``name``."""
    check_whole(clause, "heads", heads, 1)
    if rows % heads:
        raise SpecError(clause, f"{heads} heads do not divide {rows} rows of {name}")


def check_attention(clause: str, x: Sequence[int], w_q: Sequence[int], w_v: Sequence[int], heads: int) -> None:
    """Refuse weights of another width than x, and values that the heads do not divide. Arguments are shapes."""
    if not x[2] == w_q[1] == w_v[1]:
        raise SpecError(clause, f"x {tuple(x)}, w_q {tuple(w_q)} and w_v {tuple(w_v)} must end in one width")
    check_heads(clause, "w_v", w_v[0], heads)
