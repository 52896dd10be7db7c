"""Chapter G: groups, blocks and patterns of sparsity."""

from __future__ import annotations

from typing import get_args

from lowbit.reference.errors import SpecError
from lowbit.reference.types import GroupScales

from .refusals import check_block_size, check_either
from .uniform import grid_groups

__all__ = ["check_gptq", "check_group_scales", "check_n_of_m"]


def check_gptq(clause: str, k: int, group_size: int | None, block_size: int) -> int:
    """Refuse bad block and group sizes; return the length of one group."""
    check_block_size(clause, block_size)
    if group_size is None:
        return k
    grid_groups((1, k), "group", group_size)
    return group_size


def check_group_scales(clause: str, group_scales: str) -> None:
    """Refuse an unknown rule for which weights make a group's grid."""
    check_either(clause, "group_scales", group_scales, get_args(GroupScales))


def check_n_of_m(clause: str, k: int, keep: int, of: int) -> None:
    """Refuse an N:M pattern that does not tile the input axis."""
    if not (isinstance(keep, int) and isinstance(of, int) and 0 < keep <= of):
        raise SpecError(clause, f"keep must be between 1 and of, got keep={keep!r} of={of!r}")
    if k % of:
        raise SpecError(clause, f"{keep}:{of} sparsity needs an input axis divisible by {of}, got {k}")
