"""Chapter D: layouts of a weight, and the factors that update it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

from lowbit.reference.errors import SpecError
from lowbit.reference.types import DoraLayout

from .refusals import check_matrix

__all__ = ["check_rows", "check_update"]


def check_rows(clause: str, name: str, shape: Sequence[int], layout: str) -> tuple[int, int]:
    """Refuse a weight that ``layout`` cannot store; return its (m, k): outputs and weights of each."""
    if layout not in get_args(DoraLayout):
        raise SpecError(clause, f"unknown layout {layout!r}; one of {', '.join(get_args(DoraLayout))}")
    if layout == "conv":
        if len(shape) < 3:
            raise SpecError(clause, f"{name} of a convolution needs 3 axes or more, got shape {tuple(shape)}")
        return shape[0], math.prod(shape[1:])
    check_matrix(clause, name, shape, (None, None))
    return (shape[1], shape[0]) if layout == "transposed" else (shape[0], shape[1])


def check_update(
    clause: str, name: str, w: Sequence[int], b: Sequence[int], a: Sequence[int], scaling: float, layout: str
) -> tuple[int, int, int]:
    """Refuse factors and a scaling that are no update of a weight; return (m, k, r). Arguments are shapes."""
    number = isinstance(scaling, (int, float)) and not isinstance(scaling, bool)
    if not number or not math.isfinite(scaling):
        raise SpecError(clause, f"scaling must be a finite number, got {scaling!r}")
    m, k = check_rows(clause, name, w, layout)
    r = a[0] if len(a) else -1
    axes = (1,) * (len(w) - 2)
    if tuple(b) != (m, r, *axes) or tuple(a) != ((r, *w[1:]) if layout == "conv" else (r, k)):
        update = f"b {tuple(b)} and a {tuple(a)} do not multiply to an update of {name} {tuple(w)}"
        raise SpecError(clause, f"{update} in layout {layout!r}")
    return m, k, r
