"""Chapter P: counters, seeds and bounds."""

from __future__ import annotations

from collections.abc import Sequence

from lowbit.reference.errors import SpecError

__all__ = ["check_bound", "check_counters", "check_seed"]


def check_counters(shape: Sequence[int]) -> None:
    """Refuse counters without four words in their last axis."""
    if not shape or shape[-1] != 4:
        raise SpecError("P-1", f"counters must have shape (..., 4), got {tuple(shape)}")


def check_seed(seed: int) -> None:
    """Refuse a seed that is not an integer of 64 bits."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise SpecError("P-1", f"seed must be an integer in 0..2^64 - 1, got {seed!r}")


def check_bound(bound: int) -> None:
    """Refuse a bound that int32 results cannot reach."""
    if isinstance(bound, bool) or not isinstance(bound, int) or not 1 <= bound <= 2**31:
        raise SpecError("P-3", f"bound must be an integer in 1..2^31, got {bound!r}")
