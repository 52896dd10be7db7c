"""Error bounds of float64 computations, each derived: no tolerance is chosen.

γ_n = n u / (1 − n u) with u = 2⁻⁵³ bounds n roundings in a row (Higham 2002, lemma 3.1). For orthogonal
factorisations the backward error is p(n) u ‖·‖ with p "modestly growing"; p = 8 n² is used, generous and still far
from anything an error of method could hide in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import settings

from lowbit.reference.eigenspace import gamma

Array = npt.NDArray[Any]

LAW = settings(derandomize=True, deadline=None, max_examples=30, database=None)


def near(actual: npt.ArrayLike, expected: npt.ArrayLike, *, roundings: int, magnitude: npt.ArrayLike = 0.0) -> None:
    """|actual − expected| ≤ γ_n · max(|expected|, magnitude), entrywise."""
    a, e = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert a.shape == e.shape, f"{a.shape} is not {e.shape}"
    allowed = gamma(roundings) * np.maximum(np.abs(e), magnitude)
    assert (np.abs(a - e) <= allowed).all(), f"{np.abs(a - e).max()} > {np.min(allowed, initial=np.inf)}"


def factorisation(*shapes: int) -> int:
    """Roundings that stand for one eigenvalue or singular value decomposition of the given order."""
    return 8 * max(shapes) ** 2


def psd(rng: np.random.Generator, k: int, *, tokens: int | None = None, spread: float = 1.0) -> Array:
    """A random second moment of correlated inputs; columns scaled over `spread` decades."""
    X = rng.standard_normal((tokens or 3 * k, k)) @ (np.eye(k) + 0.4 * rng.standard_normal((k, k)))
    X = X * 10.0 ** rng.uniform(0, spread, k)
    return np.asarray(X.T @ X / len(X))
