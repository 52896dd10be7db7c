"""Chapter X: logits and labels of samples, and how many of them are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from lowbit.reference.errors import SpecError
from lowbit.reference.types import (
    ACS_SCHEDULES,
    CENTERS,
    KEPT,
    METRICS,
    MODERATE_REFERENCES,
    NEVER_LEARNT,
    OUTPUTS,
)

from .refusals import check_number, check_options, check_whole

__all__ = [
    "acs_blend",
    "check_centres",
    "check_class_logits",
    "check_label_range",
    "check_layer",
    "check_words",
    "class_budget",
]

check_words = partial(
    check_options,
    {
        "keep": KEPT,
        "outputs": OUTPUTS,
        "never_learnt": NEVER_LEARNT,
        "center": CENTERS,
        "against": MODERATE_REFERENCES,
        "metric": METRICS,
        "schedule": ACS_SCHEDULES,
    },
)


def check_class_logits(clause: str, name: str, shape: Sequence[int], ndim: int = 2) -> None:
    """Refuse logits of another number of axes, without a class, or of no model where models have the first axis."""
    if len(shape) != ndim or shape[-1] == 0:
        raise SpecError(clause, f"{name} must have {ndim} axes and at least one class, got shape {tuple(shape)}")
    if ndim == 3 and shape[0] == 0:
        raise SpecError(clause, f"{name} must hold at least one model, got shape {tuple(shape)}")


def check_label_range(clause: str, least: int, most: int, classes: int | None) -> None:
    """Refuse labels whose smallest or largest names no class."""
    if least < 0 or (classes is not None and most >= classes):
        wrong = least if least < 0 else most
        raise SpecError(clause, f"labels must lie in 0..{'' if classes is None else classes - 1}, got {wrong}")


def check_layer(bias: bool, batch_size: int | None) -> int | None:
    """The batch whose mean is differentiated; refuses what clause X-6 refuses of it and of a last layer."""
    if not isinstance(bias, bool):
        raise SpecError("X-6", f"bias must be True or False, got {bias!r}")
    return None if batch_size is None else check_whole("X-6", "batch_size", batch_size, 1)


def check_centres(first: Sequence[int], count: int, n: int) -> None:
    """Refuse first centres that are not different rows, and more centres than there are rows."""
    if not first or min(first) < 0 or max(first) >= n or len(set(first)) != len(first):
        raise SpecError("X-10", f"first must hold different indices in 0..{n - 1}, got {first}")
    check_whole("X-10", "count", count, 0, n - len(first))


def acs_blend(epoch: float, epochs: int, schedule: str) -> float:
    """Share of the error-vector score at ``epoch``; refuses what clause X-3 refuses."""
    check_whole("X-3", "epochs", epochs, 1)
    check_number("X-3", "epoch", epoch, 0, epochs)
    check_words("X-3", schedule=schedule)
    left = 1 - epoch / epochs  # of the training
    if schedule in ("paper", "cosine"):
        quarter_wave = math.sin(left * math.pi / 2)  # a sine of what is left is exact at both ends
        return quarter_wave if schedule == "paper" else quarter_wave * quarter_wave
    if schedule in ("linear", "quadratic", "sqrt"):
        power = {"linear": 1.0, "quadratic": 2.0, "sqrt": 0.5}[schedule]
        return left if power == 1 else 1 - math.pow(epoch / epochs, power)
    return {"half": 0.5, "error-vector": 1.0, "disagreement": 0.0}[schedule]


def class_budget(fraction: float, members: int) -> int:
    """How many of ``members`` samples are kept: half to even, of the product in float64."""
    return round(float(fraction) * members)
