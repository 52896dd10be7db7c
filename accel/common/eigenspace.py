"""Chapter E for any arrays: what NumPy and torch name alike in the exact solve, its numbers and the published recipe.

A backend brings its library ``xp`` and its ``cast`` to another precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np

from lowbit.reference.errors import SpecError
from lowbit.reference.types import Compensation, EigenPolicy, LowRank, Split, Stationarity

from . import krylov
from .refusals import check_either

__all__ = [
    "DEPENDENT",
    "NO_ENERGY",
    "U64",
    "check_definite",
    "check_moment",
    "compensation",
    "factors",
    "pays",
    "published",
    "refuse_negative",
    "stationarity",
    "trace",
]

Array = Any  # of whatever backend
Cast = Callable[[Array, Any], Array]

U64 = 2.0**-53
NO_ENERGY = 2.0**-40  # of a row of A, relative to abs(a) abs(C) abs(a)ᵀ: rounding, not energy
DEPENDENT = 2.0**-30  # eigenvalue of A C Aᵀ, its diagonal 1, up to which rows of A are dependent
_SYMMETRY = 2.0**-12  # largest |c − cᵀ| / max|c| that rounding explains
_INDEFINITE = 2.0**-8  # share of ‖c‖ down to which an eigenvalue below 0 is rounding
_STEPS = 40
_PANEL = 512  # columns of D per Gram panel: large enough for BLAS, small enough to stay in cache


def check_moment(clause: str, c: Array) -> None:
    """Refuse what is not symmetric up to the order of sums, or has a negative diagonal; by tiles, no copy of ``c``."""
    if not c.shape[0]:
        return
    skew = 0.0
    for i in range(0, c.shape[0], _PANEL):
        gap = c[i : i + _PANEL, : i + _PANEL] - c[: i + _PANEL, i : i + _PANEL].T
        skew = max(skew, float(gap.max()), -float(gap.min()))
    if skew > _SYMMETRY * max(float(c.max()), -float(c.min())):
        raise SpecError(clause, f"c must be symmetric, largest |c - cᵀ| is {skew:.3g}")
    diagonal = c.diagonal()
    if float(diagonal.min()) < 0:
        j = int(diagonal.argmin())
        raise SpecError(clause, f"c must have a diagonal >= 0, got {float(diagonal[j])!r} at ({j}, {j})")


def check_definite(xp: Any, clause: str, name: str, c: Array) -> None:
    """Refuse an indefinite ``c``: by the least Ritz value of some Lanczos steps, which is above the least eigenvalue.

    In float32 or float64. Never refuses a semi-definite matrix, and costs as many products with a vector as steps. A
    negative eigenvalue of a few hundredths of the spread is found; one at the tolerance itself may pass.
    """
    if not c.shape[0]:
        return
    start = xp.cos(xp.cumsum(xp.ones_like(c[0]), 0) - 1)
    basis = xp.zeros_like(c[:_STEPS])
    basis[0] = start / xp.linalg.norm(start)
    found: list[float] = []
    beside: list[float] = []
    for i in range(len(basis)):
        image = c @ basis[i]
        found.append(float(image @ basis[i]))
        for _ in range(2):
            image = image - (basis[: i + 1] @ image) @ basis[: i + 1]
        norm = float(xp.linalg.norm(image))
        if i + 1 == len(basis) or norm <= _SYMMETRY * abs(found[0]):
            break
        beside.append(norm)
        basis[i + 1] = image / norm
    least = float(np.linalg.eigvalsh(np.diag(found) + np.diag(beside, 1) + np.diag(beside, -1))[0])
    if least < -_INDEFINITE * float(xp.linalg.norm(c)):
        raise SpecError(clause, f"{name} must be positive semi-definite, it has an eigenvalue of {least:.3g} or less")


def refuse_negative(xp: Any, value: float, d: Array, c: Array) -> float:
    """J of d, which shows by itself that ``c`` is indefinite if it is further below 0 than rounding explains."""
    if value < 0 and value < -_INDEFINITE * float(xp.linalg.norm(c)) * float(xp.linalg.norm(d)) ** 2:
        raise SpecError("E-1", f"c must be positive semi-definite, tr(D C Dᵀ) is {value:.3g}")
    return value


def factors(xp: Any, cast: Cast, u: Array, values: Array, d: Array, split: Split, dtype: Any) -> LowRank[Array]:
    """B = U, A = Uᵀ D, or both scaled to the same singular values (eq. 1.4)."""
    b, a = u, u.T @ cast(d, u.dtype)
    if split == "balanced":
        scale = krylov.balance(xp, values, max(d.shape))
        b, a = b * scale, a / scale[:, None]
    return LowRank(B=cast(b, dtype), A=cast(a, dtype))


def trace(xp: Any, contiguous: Callable[[Array], Array], e: Array, c: Array) -> float:
    """tr(E C Eᵀ) = ⟨EᵀE, C⟩ by panels of the Gram matrix, one triangle only: m k² multiplications, small workspace.

    Products run in the precision of ``e``; the sum over panels is float64.
    """
    k = e.shape[1]
    total = 0.0
    for i in range(0, k, _PANEL):
        left = contiguous(e[:, i : i + _PANEL].T)
        for j in range(i, k, _PANEL):
            gram = left @ e[:, j : j + _PANEL]
            weight = c[i : i + _PANEL, j : j + _PANEL]
            if j > i:
                weight = weight + c[j : j + _PANEL, i : i + _PANEL].T
            gram *= weight
            total += float(gram.sum(dtype=xp.float64))
    return total


def stationarity(xp: Any, d: Array, c: Array, b: Array, a: Array) -> Stationarity:
    """Relative residuals of the first-order conditions, of float64 arrays."""
    dc = d @ c
    rest = dc - b @ (a @ c)
    size = float(xp.linalg.norm(dc))

    def ratio(top: Array, factor: Array) -> float:
        bottom = float(xp.linalg.norm(factor)) * size
        return float(xp.linalg.norm(top)) / bottom if bottom > 0 else 0.0

    return Stationarity(left=ratio(b.T @ rest, b), right=ratio(rest @ a.T, a))


def published(xp: Any, cast: Cast, d: Array, c: Array, rank: int, policy: EigenPolicy, dtype: Any) -> LowRank[Array]:
    """The published recipe on checked arrays."""
    check_either("E-4", "policy", policy, get_args(EigenPolicy))
    c64 = cast(c, xp.float64)
    values, q = xp.linalg.eigh((c64 + c64.T) / 2)
    if policy == "nvlabs":
        positive = values[values > 0]
        if positive.shape[0] == 0:
            raise SpecError("E-4", "policy 'nvlabs' needs a positive eigenvalue of c, and there is none")
        if bool((values == 0).any()):
            raise SpecError("E-4", "policy 'nvlabs' cannot invert the exact zero eigenvalue of c")
        root = xp.sqrt(xp.where(values < 0, positive.min(), values))
        inverse = 1 / root
    else:
        keep = values > max(float(values[-1]), 0.0) * min(1.0, max(1, c.shape[0]) * 2.0**-23)
        root = xp.sqrt(xp.where(keep, values, 0.0))
        inverse = xp.where(keep, 1 / xp.where(keep, root, 1.0), 0.0)
    u, s, vt = xp.linalg.svd(cast(d, dtype) @ cast(q * root, dtype), full_matrices=False)
    half = xp.sqrt(s[:rank])
    return LowRank(B=u[:, :rank] * half, A=(half[:, None] * vt[:rank]) @ cast(inverse[:, None] * q.T, dtype))


def compensation(low: LowRank[Array], found: float, best: float, total: float, size: int) -> Compensation[Array]:
    """An exact patch with its objective and a lower bound, from Σ of the trailing eigenvalues and tr M."""
    found = max(found, 0.0)
    # LAPACK's eigenvalues are those of M + F with ‖F‖ ≤ p(n)·u·‖M‖; the sum of the trailing ones and the trace of
    # the residual then agree within a small multiple of n·u·tr M, which the bound gives up.
    lower = min(max(best - U64 * size * total, 0.0), found)
    return Compensation(B=low.B, A=low.A, objective=found, lower_bound=lower, method="exact")


def pays(shape: Sequence[int], rank: int, tolerance: float) -> bool:
    """Refuse a bad tolerance; True when the fast path is worth its while."""
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise SpecError("E-5", f"tolerance must be finite and not negative, got {tolerance!r}")
    return krylov.worth(shape, rank)
