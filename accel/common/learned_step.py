"""Chapter S: the axis of a step, its codes, and the scale of its gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowbit.reference.errors import SpecError
from lowbit.reference.types import LSQ_COUNTS

from .refusals import check_choice, check_number, check_whole

__all__ = ["check_learned_step", "gradient_scale", "step_view"]


def step_view(clause: str, shape: Sequence[int], axis: int | None) -> tuple[int, int, int]:
    """Lengths (before, n, after) around the axis of the steps; (1, 1, size) for one step."""
    if axis is None:
        return 1, 1, math.prod(shape)
    found = check_whole(clause, "axis", axis, -len(shape), len(shape) - 1) % len(shape)
    return math.prod(shape[:found]), shape[found], math.prod(shape[found + 1 :])


def check_learned_step(clause: str, bits: int, signed: bool, epsilon: float = 0.0) -> tuple[int, int, float]:
    """First and last code, and the floor of the step; refuses what clauses S-1 to S-4 refuse."""
    if not isinstance(signed, bool):
        raise SpecError(clause, f"signed must be True or False, got {signed!r}")
    check_whole(clause, "bits", bits, 2 if signed else 1, 8)
    floor = check_number(clause, "epsilon", epsilon, low=0.0)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, floor) if signed else (0, 2**bits - 1, floor)


def gradient_scale(shape: Sequence[int], axis: int | None, count: str, last: int) -> float:
    """1 / √(N Q_p) of clause S-5a."""
    check_choice("S-4", "count", count, LSQ_COUNTS)
    step_view("S-4", shape, axis)
    own = axis is not None and axis % len(shape) == 0
    if count == "features" and (not shape or own):
        raise SpecError("S-4", f"count 'features' needs a batch on axis 0, x is {tuple(shape)} and axis {axis}")
    if count == "unscaled":
        return 1.0
    sizes = list(shape[1:] if count == "features" else shape)
    if axis is not None:
        del sizes[axis % len(shape) - (count == "features")]
    return 1 / math.sqrt(max(math.prod(sizes), 1) * last)
