"""Chapters C, E and K: ranks of a patch, and a budget of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from lowbit.reference.errors import SpecError
from lowbit.reference.types import Leftover, Split

from .refusals import check_choice, check_either, check_matrix, check_whole

__all__ = ["check_budget", "check_patch"]


def check_patch(clause: str, shape: Sequence[int], rank: int, split: str) -> None:
    """Refuse a rank outside 1..min(m, k) or an unknown split."""
    check_matrix(clause, "d", shape, (None, None))
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= min(shape):
        raise SpecError(clause, f"rank must be between 1 and {min(shape)} for shape {tuple(shape)}, got {rank!r}")
    check_either(clause, "split", split, get_args(Split))


def check_budget(clause: str, budget: int, leftover: str) -> int:
    """Refuse a negative budget, and an unknown rule for what it does not cover."""
    check_choice(clause, "leftover", leftover, get_args(Leftover))
    return check_whole(clause, "budget", budget, 0, 2**63 - 1)
