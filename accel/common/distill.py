"""Chapter W: outputs of student and teacher."""

from __future__ import annotations

from collections.abc import Sequence

from lowbit.reference.errors import SpecError

__all__ = ["check_labels", "check_lengths", "check_pair", "check_scores"]


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


def check_lengths(clause: str, lengths: Sequence[int], batch: int, longest: int) -> None:
    """Refuse lengths that are not one per sentence, from 1 to the width of the batch."""
    if len(lengths) != batch:
        raise SpecError(clause, f"{len(lengths)} lengths for a batch of {batch}")
    for length in lengths:
        if not 1 <= length <= longest:
            raise SpecError(clause, f"lengths must be in 1..{longest}, got {length}")


def check_labels(clause: str, low: int, high: int, vocabulary: int) -> None:
    """Refuse labels, least and largest of those that are not -100, outside the vocabulary."""
    if low < 0 or high >= vocabulary:
        raise SpecError(clause, f"labels must be in 0..{vocabulary - 1} or -100, got {low if low < 0 else high}")
