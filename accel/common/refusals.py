"""Refusals of the fast backends: pure Python on shapes and parameters, no arrays.

The rules are the specification's in the backends' own words, so that a wrong call is refused with the same clause
everywhere, before any work is done. Those of one chapter lie in the file of its name, with the few numbers that follow
from shapes alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lowbit.reference.errors import SpecError

__all__ = [
    "check_block_size",
    "check_choice",
    "check_damping",
    "check_either",
    "check_matrix",
    "check_number",
    "check_options",
    "check_square",
    "check_whole",
    "refuse_nonfinite",
]


def check_choice(clause: str, name: str, value: str, options: Sequence[str]) -> None:
    """Refuse anything but one of a few words."""
    if value not in options:
        raise SpecError(clause, f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")


def check_either(clause: str, name: str, value: str, options: Sequence[str]) -> None:
    """As :func:`check_choice`, of two words."""
    if value not in options:
        raise SpecError(clause, f"{name} must be {' or '.join(map(repr, options))}, got {value!r}")


def check_options(words: Mapping[str, Sequence[str]], clause: str, /, **chosen: str) -> None:
    """:func:`check_choice` of options by their names, from a table of their words."""
    for name, value in chosen.items():
        check_choice(clause, name, value, words[name])


def check_whole(clause: str, name: str, value: int, low: int, high: int = 2**31 - 1) -> int:
    """Refuse anything but an integer in low..high; NumPy's integers pass, booleans do not."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or not low <= value <= high:
        raise SpecError(clause, f"{name} must be an integer in {low}..{high}, got {value!r}")
    return value.__index__()


def check_number(clause: str, name: str, value: float, low: float = -math.inf, high: float = math.inf) -> float:
    """Refuse what is not a finite number in low..high."""
    if (
        isinstance(value, bool)
        or not hasattr(value, "__float__")
        or not (math.isfinite(value) and low <= value <= high)
    ):
        raise SpecError(clause, f"{name} must be a finite number in {low}..{high}, got {value!r}")
    return float(value)


def check_block_size(clause: str, block_size: int) -> None:
    """Refuse a block size that is not a positive integer."""
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
        raise SpecError(clause, f"block_size must be a positive integer, got {block_size!r}")


def check_matrix(clause: str, name: str, shape: Sequence[int], expected: tuple[int | None, ...]) -> None:
    """Refuse a shape that differs from ``expected`` (None matches any length)."""
    if len(shape) != len(expected) or any(e is not None and s != e for s, e in zip(shape, expected, strict=True)):
        want = ", ".join("any" if e is None else str(e) for e in expected)
        raise SpecError(clause, f"{name} must have shape ({want}), got {tuple(shape)}")


def check_square(clause: str, name: str, shape: Sequence[int], size: int | None = None) -> None:
    """Refuse anything but a (size, size) matrix."""
    if len(shape) != 2 or shape[0] != shape[1] or (size is not None and shape[0] != size):
        want = "square" if size is None else f"of shape ({size}, {size})"
        raise SpecError(clause, f"{name} must be {want}, got {tuple(shape)}")


def check_damping(clause: str, damping: float) -> None:
    """Refuse a damping that is negative or not finite."""
    if not (math.isfinite(damping) and damping >= 0):
        raise SpecError(clause, f"damping must be finite and not negative, got {damping!r}")


def refuse_nonfinite(clause: str, name: str, count: int, position: tuple[int, ...]) -> None:
    """Raise the clause A-4 error for ``count`` bad values of argument ``name``, the first at ``position``."""
    raise SpecError("A-4", f"{name} holds {count} NaN or infinite values, the first at {position} (clause {clause})")
