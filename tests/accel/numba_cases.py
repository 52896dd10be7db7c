"""Weights and second moments for the tests of the Numba backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def weights(m: int, k: int, *, dtype: str = "float64", seed: int = 0) -> Array:
    """Gaussian weights whose rows differ in scale."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((m, k)) * np.exp(rng.standard_normal((m, 1)))).astype(dtype)


def moment(k: int, *, dtype: str = "float64", seed: int = 1, dead: tuple[int, ...] = ()) -> Array:
    """Second moment of correlated inputs of different scale; the columns in ``dead`` are always 0."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2 * k + 1, k)) * np.exp(rng.standard_normal(k))
    x += 0.5 * x[:, :1]
    x[:, list(dead)] = 0
    return np.asarray(x.T @ x).astype(dtype)
