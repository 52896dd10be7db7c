"""Chapter W: maps and weights of one attention layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lowbit.reference.errors import SpecError

from .distill import check_pair

__all__ = ["check_layer", "check_maps"]


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
