"""Chapter F on NumPy arrays: errors of layers as divergence at the model's output.

Opens with the reference line it implements (F.4): with RᵀR = G_λ the best patch of D is R⁺ times EoRA's of R D. R is a
Cholesky factor where there is one. What is weighted is solved in float64, so that the bound stays one.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

from lowbit.accel.common import divergence as common
from lowbit.accel.common.divergence import Root
from lowbit.accel.common.eigenspace import check_definite
from lowbit.accel.common.low_rank import check_patch
from lowbit.accel.common.refusals import check_damping, check_whole
from lowbit.reference.errors import SpecError
from lowbit.reference.types import Compensation, Purpose

from ._arrays import finite_weights, working_dtype
from .eigenspace import eora_certified, error_spectrum
from .eigenspace import objective as output_error
from .gptq import symmetric_moment
from .philox import philox_uniform

__all__ = ["divergence", "divergence_patch", "divergence_spectrum", "draw_labels"]

Array = npt.NDArray[np.floating]


def _moment(clause: str, name: str, x: Array, size: int) -> Array:
    upper = symmetric_moment(clause, name, x, size)
    moment = np.triu(upper) + np.triu(upper, 1).T
    check_definite(np, clause, name, moment)
    return moment


def _problem(clause: str, d: Array, c: Array, g: Array) -> tuple[Array, Array, Array, Any]:
    """All three in float64, and the type of results."""
    error = finite_weights(clause, "d", d, (None, None))
    m, k = error.shape
    return error.astype(np.float64), _moment(clause, "c", c, k), _moment(clause, "g", g, m), working_dtype(error)


def _root(g: Array, damping: float) -> Root:
    m = len(g)
    try:
        upper = np.linalg.cholesky(g + damping * np.trace(g) / max(m, 1) * np.eye(m)).T
    except np.linalg.LinAlgError:
        return common.spectral_root(np, g, damping)
    pivots = upper.diagonal()
    if damping == 0 and m and pivots.min() <= pivots.max() * np.sqrt(m * common.NO_WEIGHT):  # perhaps singular
        return common.spectral_root(np, g, damping)
    return Root(upper, functools.partial(scipy.linalg.solve_triangular, upper, check_finite=False))


def divergence(d: Array, c: Array, g: Array, /) -> float:
    """½ tr(G D C Dᵀ), in float64.  [F-1]"""
    error, inputs, outputs, _ = _problem("F-1", d, c, g)
    return float(np.vdot(outputs @ error, error @ inputs)) / 2


def divergence_spectrum(d: Array, c: Array, g: Array, /, *, damping: float = 0.1) -> Array:
    """Singular values of R D C^½ / √2, descending.  [F-2]"""
    check_damping("F-2", damping)
    error, inputs, outputs, dtype = _problem("F-2", d, c, g)
    matrix = _root(outputs, damping).matrix
    values = np.zeros(min(error.shape), dtype)
    # Roots of the eigenvalues are enough for float32, and take half the time.
    found = error_spectrum((matrix @ error).astype(dtype), inputs.astype(dtype)) * dtype(np.sqrt(0.5))
    values[: len(found)] = found[: len(values)]
    return values


def divergence_patch(
    d: Array, c: Array, g: Array, /, *, rank: int, damping: float = 0.1, tolerance: float = 1e-6
) -> Compensation[Array]:
    """R⁺ U_r U_rᵀ R D with its certificate.  [F-3]"""
    check_damping("F-3", damping)
    check_patch("F-3", d.shape, rank, "balanced")
    error, inputs, outputs, dtype = _problem("F-3", d, c, g)
    root = _root(outputs, damping)
    weighted = np.zeros_like(error)
    weighted[: len(root.matrix)] = root.matrix @ error
    low = eora_certified(weighted, inputs, rank=rank, tolerance=tolerance)

    def reached(b: Array, a: Array) -> float:
        left = error - b.astype(dtype).astype(np.float64) @ a.astype(dtype).astype(np.float64)
        return output_error(root.matrix @ left, inputs)

    found = common.patch(root, low, reached)
    return found._replace(B=found.B.astype(dtype), A=found.A.astype(dtype))


def draw_labels(logits: Array, /, *, seed: int, first: int = 0) -> npt.NDArray[np.int32]:
    """The least label whose summed probability exceeds the uniform of its position; sums in float64.  [F-4]"""
    given = finite_weights("F-4", "logits", logits, (None, None))
    rows, size = given.shape
    check_whole("F-4", "first", first, 0, 2**32 - max(rows, 1))
    if size == 0:
        raise SpecError("F-4", f"logits of shape {given.shape} leave nothing to draw from")
    counters = np.zeros((rows, 4), np.int64)
    counters[:, 0], counters[:, 3] = first + np.arange(rows), Purpose.LABEL
    draws = philox_uniform(counters, seed=seed).astype(np.float64)
    u = draws[:, 0] + draws[:, 1] * 2.0**-24
    labels = np.empty(rows, np.int32)
    for part in common.label_rows(rows, size):
        sums = given[part].astype(np.float64)
        sums -= sums.max(axis=1, keepdims=True)
        np.cumsum(np.exp(sums, out=sums), axis=1, out=sums)
        for i, line in enumerate(sums, part.start):
            # Where rounding leaves nothing above, the first that reaches the whole sum is the last with a probability.
            at = np.searchsorted(line, u[i] * line[-1], side="right")
            labels[i] = at if at < size else np.searchsorted(line, line[-1], side="left")
    return labels
