"""Chapter O: scales of StatsQ, boundary ranges and heads."""

from __future__ import annotations

from collections.abc import Sequence

from lowbit.reference.errors import SpecError

from .refusals import check_number, check_whole

__all__ = ["check_attention", "check_heads", "check_range", "check_steps"]


def check_steps(clause: str, shape: Sequence[int]) -> None:
    """Refuse a weight without the axis that StatsQ has a scale for."""
    if len(shape) < 2:
        raise SpecError(clause, f"w must have 2 axes or more, got shape {tuple(shape)}")


def check_range(clause: str, boundary_range: float) -> float:
    """Refuse a boundary range outside 0..1/2, where the windows of two thresholds would overlap."""
    return check_number(clause, "boundary_range", boundary_range, 0.0, 0.5)


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
