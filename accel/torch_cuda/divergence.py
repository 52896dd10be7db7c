"""Chapter F on torch tensors: errors of layers as divergence at the model's output.

Opens with the reference line it implements (F.4): with RᵀR = G_λ the best patch of D is R⁺ times EoRA's of R D. R is a
Cholesky factor where there is one. What is weighted is solved in float64, so that the bound stays one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowbit.accel.common import divergence as common
from lowbit.accel.common.divergence import Root
from lowbit.accel.common.eigenspace import check_definite
from lowbit.accel.common.low_rank import check_patch
from lowbit.accel.common.refusals import check_damping, check_matrix, check_whole
from lowbit.reference.errors import SpecError
from lowbit.reference.types import Compensation, Purpose

from .arrays import as_weights, operation, refuse_nan
from .eigenspace import eora_certified, error_spectrum
from .eigenspace import objective as output_error
from .gptq import check_moment
from .philox import philox_uniform

__all__ = ["divergence", "divergence_patch", "divergence_spectrum", "draw_labels"]


def _problem(clause: str, d: Tensor, c: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All three in float64."""
    error = as_weights(clause, "d", d)
    check_matrix(clause, "d", error.shape, (None, None))
    refuse_nan(clause, "d", error)
    m, k = error.shape
    inputs, outputs = check_moment(clause, "c", c, k), check_moment(clause, "g", g, m)
    check_definite(torch, clause, "c", inputs)
    check_definite(torch, clause, "g", outputs)
    return error.to(torch.float64), inputs, outputs


def _root(g: Tensor, damping: float) -> Root:
    m = g.shape[0]
    eye = torch.eye(m, dtype=g.dtype, device=g.device)
    upper, failed = torch.linalg.cholesky_ex(g + damping * float(g.trace()) / max(m, 1) * eye, upper=True)
    pivots = upper.diagonal()
    doubtful = damping == 0 and m and float(pivots.min()) <= float(pivots.max()) * math.sqrt(m * common.NO_WEIGHT)
    if int(failed) or doubtful:
        return common.spectral_root(torch, g, damping)
    return Root(upper, lambda b: torch.linalg.solve_triangular(upper, b, upper=True))


def _float(d: Tensor) -> torch.dtype:
    return torch.promote_types(torch.float32, d.dtype)


@operation
def divergence(d: Tensor, c: Tensor, g: Tensor, /) -> float:
    """½ tr(G D C Dᵀ), in float64.  [F-1]"""
    error, inputs, outputs = _problem("F-1", d, c, g)
    return float(((outputs @ error) * (error @ inputs)).sum()) / 2


@operation
def divergence_spectrum(d: Tensor, c: Tensor, g: Tensor, /, *, damping: float = 0.1) -> Tensor:
    """Singular values of R D C^½ / √2, descending.  [F-2]"""
    check_damping("F-2", damping)
    error, inputs, outputs = _problem("F-2", d, c, g)
    matrix = _root(outputs, damping).matrix
    values = torch.zeros(min(error.shape), dtype=_float(d), device=d.device)
    # Roots of the eigenvalues are enough for float32, and take half the time.
    found = error_spectrum((matrix @ error).to(values.dtype), inputs.to(values.dtype)) * math.sqrt(0.5)
    values[: found.shape[0]] = found[: values.shape[0]]
    return values


@operation
def divergence_patch(
    d: Tensor, c: Tensor, g: Tensor, /, *, rank: int, damping: float = 0.1, tolerance: float = 1e-6
) -> Compensation[Tensor]:
    """R⁺ U_r U_rᵀ R D with its certificate.  [F-3]"""
    check_damping("F-3", damping)
    check_patch("F-3", d.shape, rank, "balanced")
    error, inputs, outputs = _problem("F-3", d, c, g)
    root = _root(outputs, damping)
    weighted = torch.zeros_like(error)
    weighted[: root.matrix.shape[0]] = root.matrix @ error
    low = eora_certified(weighted, inputs, rank=rank, tolerance=tolerance)
    dtype = _float(d)

    def reached(b: Tensor, a: Tensor) -> float:
        left = error - b.to(dtype).to(torch.float64) @ a.to(dtype).to(torch.float64)
        return output_error(root.matrix @ left, inputs)

    found = common.patch(root, low, reached)
    return found._replace(B=found.B.to(dtype), A=found.A.to(dtype))


@operation
def draw_labels(logits: Tensor, /, *, seed: int, first: int = 0) -> Tensor:
    """The least label whose summed probability exceeds the uniform of its position; sums in float64.  [F-4]"""
    given = as_weights("F-4", "logits", logits)
    check_matrix("F-4", "logits", given.shape, (None, None))
    rows, size = given.shape
    check_whole("F-4", "first", first, 0, 2**32 - max(rows, 1))
    if size == 0:
        raise SpecError("F-4", f"logits of shape {tuple(given.shape)} leave nothing to draw from")
    refuse_nan("F-4", "logits", given)
    counters = torch.zeros((rows, 4), dtype=torch.int64, device=given.device)
    counters[:, 0], counters[:, 3] = first + torch.arange(rows, device=given.device), int(Purpose.LABEL)
    draws = philox_uniform(counters, seed=seed).to(torch.float64)
    u = draws[:, 0] + draws[:, 1] * 2.0**-24
    labels = torch.empty(rows, dtype=torch.int32, device=given.device)
    for part in common.label_rows(rows, size):
        wide = given[part].to(torch.float64)
        sums = (wide - wide.amax(dim=1, keepdim=True)).exp_().cumsum(dim=1)
        whole = sums[:, -1:].contiguous()
        at = torch.searchsorted(sums, u[part, None] * whole, right=True)
        # Where rounding leaves nothing above, the first that reaches the whole sum is the last with a probability.
        labels[part] = torch.where(at < size, at, torch.searchsorted(sums, whole)).squeeze(1).to(torch.int32)
    return labels
