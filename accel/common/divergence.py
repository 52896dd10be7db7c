"""Chapter F for any arrays: the problem of chapter E that a weighted one is, and the way back from its patch.

A backend brings its library ``xp``, whose arrays are float64 here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from lowbit.reference.types import Compensation

__all__ = ["NO_WEIGHT", "Root", "label_rows", "patch", "spectral_root"]

Array = Any  # of whatever backend

NO_WEIGHT = 2.0**-23
"""Eigenvalue of an undamped G, relative to m times the largest, that a mean summed in float32 cannot tell from 0."""

_LABEL_VALUES = 2**22  # logits that are float64 at a time


class Root(NamedTuple):
    """R with RᵀR = G_λ, and what undoes it."""

    matrix: Array  # (p, m)
    undo: Callable[[Array], Array]  # (p, r) → R⁺ of it, (m, r)


def spectral_root(xp: Any, g: Array, damping: float) -> Root:
    """By eigenvectors: for a G that is singular and not damped, or has eigenvalues below 0."""
    values, vectors = xp.linalg.eigh(g)
    m = g.shape[0]
    if damping == 0:
        floor = max(float(values[-1]), 0.0) * min(1.0, m * NO_WEIGHT) if m else 0.0
        values = xp.where(values > floor, values, 0.0 * values)
    values = values.clip(0.0) + damping * float(xp.trace(g)) / max(m, 1)
    kept = values > 0
    scale = xp.sqrt(values[kept])
    vectors = vectors[:, kept]
    return Root(scale[:, None] * vectors.T, lambda b: (vectors / scale) @ b)


def patch(root: Root, weighted: Compensation[Array], reached: Callable[[Array, Array], float]) -> Compensation[Array]:
    """The patch of D from that of R D, its bound in nats, and its objective as the rounded factors reach it.

    Args:
        root: of the outputs.
        weighted: patch of R D, padded with rows of zeros where R has fewer rows than D.
        reached: float64 factors → tr(G_λ E C Eᵀ) of what they leave.
    """
    b = root.undo(weighted.B[: root.matrix.shape[0]])
    found = max(reached(b, weighted.A), 0.0) / 2
    return weighted._replace(B=b, objective=found, lower_bound=min(weighted.lower_bound / 2, found))


def label_rows(rows: int, vocabulary: int) -> list[slice]:
    """Rows of logits that are worked on at a time."""
    step = max(1, _LABEL_VALUES // max(vocabulary, 1))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
