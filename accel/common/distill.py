"""Chapter W: outputs of student and teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lowbit.reference.errors import SpecError

from .refusals import check_number

__all__ = ["check_above_zero", "check_labels", "check_lengths", "check_pair", "check_scores"]

IGNORED = -100


def check_above_zero(clause: str, name: str, value: float, high: float = math.inf) -> float:
    """Refuse what is not a finite number above 0, at most ``high``."""
    number = check_number(clause, name, value, 0.0, high)
    if number == 0.0:
        raise SpecError(clause, f"{name} must be above 0")
    return number


def check_pair(clause: str, student: Sequence[int], teacher: Sequence[int], axes: int) -> tuple[int, ...]:
    """Refuse student and teacher of different shape or another number of axes; return the shape."""
    if len(student) != axes:
        raise SpecError(clause, f"student must have {axes} dimensions, got shape {tuple(student)}")
    if tuple(teacher) != tuple(student):
        raise SpecError(clause, f"teacher of shape {tuple(teacher)} must have the shape of student, {tuple(student)}")
    return tuple(student)


def check_scores(clause: str, student: Sequence[int], teacher: Sequence[int]) -> tuple[int, ...]:
    """Refuse scores that are not (B, H, n, n) in both networks."""
    shape = check_pair(clause, student, teacher, 4)
    if shape[2] != shape[3]:
        raise SpecError(clause, f"scores must be (B, H, n, n), got {shape}")
    return shape


def check_lengths(clause: str, given: Any, batch: int, longest: int) -> list[int]:
    """Lengths of an integer array; refuses what is not one per sentence, from 1 to the width of the batch."""
    if given.ndim != 1:
        raise SpecError(clause, f"lengths must have shape ({batch},), got {tuple(given.shape)}")
    lengths: list[int] = given.tolist()
    if len(lengths) != batch:
        raise SpecError(clause, f"{len(lengths)} lengths for a batch of {batch}")
    for length in lengths:
        if not 1 <= length <= longest:
            raise SpecError(clause, f"lengths must be in 1..{longest}, got {length}")
    return lengths


def check_labels(clause: str, labels: Any, logits: Sequence[int]) -> Any:
    """Which of the labels, integers, are not -100; refuses another shape and others outside the vocabulary."""
    *shape, vocabulary = logits
    if tuple(labels.shape) != tuple(shape):
        raise SpecError(clause, f"labels of shape {tuple(labels.shape)} must have shape {tuple(shape)}")
    has = labels != IGNORED
    if has.any():
        low, high = int(labels[has].min()), int(labels[has].max())
        if low < 0 or high >= vocabulary:
            raise SpecError(clause, f"labels must be in 0..{vocabulary - 1} or -100, got {low if low < 0 else high}")
    return has
