"""Chapter L: tables, and inputs on a breakpoint."""

from __future__ import annotations

from collections.abc import Sequence

from lowbit.reference.errors import SpecError
from lowbit.reference.types import TABLE_TIES

__all__ = ["check_table", "check_tie"]


def check_tie(tie: str) -> None:
    """Refuse an unknown rule for an input on a breakpoint."""
    if tie not in TABLE_TIES:
        raise SpecError("L-8", f"tie must be one of {', '.join(map(repr, TABLE_TIES))}, got {tie!r}")


def check_table(
    clause: str, breakpoints: Sequence[int], slopes: Sequence[int], intercepts: Sequence[int], ascending: bool
) -> None:
    """Refuse shapes that are no table, and breakpoints that descend."""
    if not len(breakpoints) == len(slopes) == len(intercepts) == 1:
        raise SpecError(clause, f"a table has vectors, got {breakpoints}, {slopes} and {intercepts}")
    if not breakpoints[0] + 1 == slopes[0] == intercepts[0]:
        raise SpecError(
            clause,
            f"{breakpoints[0]} breakpoints separate {breakpoints[0] + 1} pieces, got {slopes[0]} slopes and "
            f"{intercepts[0]} intercepts",
        )
    if not ascending:
        raise SpecError(clause, "breakpoints must ascend")
