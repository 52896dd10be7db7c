"""Chapter Q: widths, codes and the shapes of grids."""

from __future__ import annotations

from collections.abc import Sequence

from lowbit.reference.errors import SpecError
from lowbit.reference.types import GRANULARITIES, SCHEMES

__all__ = ["check_bits", "code_range", "grid_groups"]


def check_bits(bits: int, scheme: str) -> None:
    """Refuse a width or scheme outside clause Q-1."""
    if scheme not in SCHEMES:
        raise SpecError("Q-1", f"unknown scheme {scheme!r}; one of {', '.join(SCHEMES)}")
    low = 1 if scheme == "asymmetric" else 2
    if isinstance(bits, bool) or not isinstance(bits, int) or not low <= bits <= 8:
        raise SpecError("Q-1", f"{scheme} grids have {low} to 8 bits, got {bits!r}")


def code_range(bits: int, scheme: str) -> tuple[int, int]:
    """Smallest and largest code of a checked width and scheme."""
    return (0, 2**bits - 1) if scheme == "asymmetric" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def grid_groups(shape: Sequence[int], granularity: str, group_size: int | None) -> tuple[int, ...]:
    """Shape of the scales for an input of ``shape``; refuses what clause Q-2 refuses."""
    if granularity not in GRANULARITIES:
        raise SpecError("Q-2", f"unknown granularity {granularity!r}; one of {', '.join(GRANULARITIES)}")
    if granularity != "group" and group_size is not None:
        raise SpecError("Q-2", f"group_size {group_size} needs granularity 'group', got {granularity!r}")
    if granularity == "tensor":
        return (1,) * len(shape)
    if not shape:
        raise SpecError("Q-2", f"granularity {granularity!r} needs at least one axis, got a 0-d array")
    if granularity == "row" and len(shape) != 2:
        raise SpecError("Q-2", f"granularity 'row' needs a 2-D array, got shape {tuple(shape)}")
    if granularity != "group":
        return (*shape[:-1], 1)
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1:
        raise SpecError("Q-2", f"granularity 'group' needs a positive group_size, got {group_size!r}")
    if shape[-1] % group_size:
        raise SpecError("Q-2", f"group size {group_size} does not divide axis length {shape[-1]}")
    return (*shape[:-1], shape[-1] // group_size)
