"""Chapter W: maps and weights of one attention layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from lowbit.reference.errors import SpecError
from lowbit.reference.types import PAIRS, ROWS, STOPS

from .distill import check_pair
from .refusals import check_matrix, check_number, check_options, check_whole

__all__ = ["LOST", "SYMMETRY", "check_iteration", "check_layer", "check_maps", "check_starts", "check_words"]

SYMMETRY = 2.0**-12
LOST = 2.0**-20

check_words = partial(check_options, {"pairs": PAIRS, "rows": ROWS, "stop": STOPS})


def check_iteration(stop: str, iterations: int, tolerance: float, shift: float) -> tuple[int, float, float]:
    """Most steps, tolerance and shift of a power iteration; refuses what clause W-10 refuses of them."""
    check_words("W-10", stop=stop)
    most = check_whole("W-10", "iterations", iterations, 1)
    return most, check_number("W-10", "tolerance", tolerance, 0.0), check_number("W-10", "shift", shift)


def check_starts(shape: Sequence[int]) -> tuple[int, int]:
    """Refuse starts that are not (count, p), count at most p; return both."""
    check_matrix("W-10", "start", shape, (None, None))
    count, p = shape
    if count > p:
        raise SpecError("W-10", f"{count} starts for {p} dimensions")
    return count, p


def check_maps(clause: str, student: Sequence[int], teacher: Sequence[int]) -> None:
    """Refuse maps that are not (H, n, n) in both networks."""
    shape = check_pair(clause, student, teacher, 3)
    if shape[1] != shape[2]:
        raise SpecError(clause, f"maps must be (H, n, n) in both networks, got {shape}")


def check_layer(clause: str, shapes: Mapping[str, Sequence[int]]) -> tuple[int, int, int]:
    """Refuse maps, inputs and weights that are not of one attention layer; return H, n and v."""
    for name, axes in (("maps", 3), ("x", 2), ("w_v", 2), ("w_o", 2)):
        if len(shapes[name]) != axes:
            raise SpecError(clause, f"{name} must have {axes} dimensions, got shape {tuple(shapes[name])}")
    heads, n, keys = shapes["maps"]
    v, d = shapes["w_v"]
    bias = tuple(shapes.get("b_v", (v,)))
    if keys != n or tuple(shapes["x"]) != (n, d) or bias != (v,) or shapes["w_o"][1] != v:
        given = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise SpecError(clause, f"{given} are not of one layer")
    if heads == 0 or v % heads:
        raise SpecError(clause, f"{heads} heads do not divide {v} values")
    return heads, n, v
