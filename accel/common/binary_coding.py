"""Chapter B: planes, groups and scales of a binary code."""

from __future__ import annotations

from collections.abc import Sequence

from lowbit.reference.errors import SpecError
from lowbit.reference.types import BINARY_METHODS

__all__ = ["binary_groups", "check_binary", "check_binary_scale", "check_flag", "check_planes"]


def check_planes(clause: str, name: str, count: int, most: int = 8) -> None:
    """Refuse a number of bits, planes or table inputs outside 1..most."""
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= most:
        raise SpecError(clause, f"{name} must be 1 to {most}, got {count!r}")


def check_flag(clause: str, name: str, value: bool) -> bool:
    """Refuse what is neither True nor False."""
    if value not in (False, True):
        raise SpecError(clause, f"{name} must be False or True, got {value!r}")
    return bool(value)


def binary_groups(clause: str, k: int, group_size: int | None) -> int:
    """Groups of a binary code along an axis of length k: 1 for whole rows."""
    if group_size is None:
        return 1
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1:
        raise SpecError(clause, f"group_size must be a positive integer, got {group_size!r}")
    if k % group_size:
        raise SpecError(clause, f"group size {group_size} does not divide axis length {k}")
    return k // group_size


def check_binary_scale(
    clause: str, values: Sequence[int], scale: Sequence[int], offset: Sequence[int] | None
) -> tuple[int, int, int]:
    """Refuse scales (m, G, q) and offsets (m, G) that do not cover values (m, k); return m, G and q."""
    if len(scale) != 3:
        raise SpecError(clause, f"scale must have shape (m, G, planes), got {tuple(scale)}")
    m, groups, planes = scale
    check_planes(clause, "planes of scale", planes)
    if offset is not None and tuple(offset) != (m, groups):
        raise SpecError(clause, f"offset must have shape {(m, groups)}, got {tuple(offset)}")
    if len(values) != 2 or values[0] != m or (values[1] % groups if groups else values[1]):
        raise SpecError(clause, f"scale of shape {tuple(scale)} does not cover values of shape {tuple(values)}")
    return m, groups, planes


def check_binary(clause: str, method: str, rounds: int) -> None:
    """Refuse an unknown way to find a binary code, or a number of rounds that is none."""
    if method not in BINARY_METHODS:
        raise SpecError(clause, f"method must be one of {', '.join(BINARY_METHODS)}, got {method!r}")
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 0:
        raise SpecError(clause, f"rounds must be an integer of at least 0, got {rounds!r}")
