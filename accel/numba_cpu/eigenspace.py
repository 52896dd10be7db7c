"""Chapter E on NumPy arrays: EoRA, exact and certified.

Opens with the reference line it implements (eq. 1.4): with M = D C Dᵀ and U_r its top r eigenvectors, the best patch
is B A = U_r U_rᵀ D. No inverse of C and no singular value decomposition of D is formed anywhere but in
:func:`eora_published`, which is there to reproduce the published recipe.

Source: Liu et al. 2024, EoRA, arXiv 2410.21271.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.linalg

from lowbit.accel.common import eigenspace as common
from lowbit.accel.common import krylov
from lowbit.accel.common.low_rank import check_patch
from lowbit.accel.common.refusals import check_matrix, check_square
from lowbit.reference.errors import SpecError
from lowbit.reference.types import Compensation, EigenPolicy, LowRank, Split, Stationarity

from ._arrays import fixed, refuse_bad, weights, working_dtype
from .gptq import symmetric_moment

__all__ = [
    "eora",
    "eora_certified",
    "eora_published",
    "eora_within",
    "error_spectrum",
    "objective",
    "optimum",
    "residual_moment",
    "stationarity",
]

Array = npt.NDArray[Any]
F64 = npt.NDArray[np.float64]


# --- arguments -------------------------------------------------------------------------------------------------------


def _problem(clause: str, d: Array, c: Array) -> None:
    check_matrix(clause, "d", d.shape, (None, None))
    check_square(clause, "c", c.shape, d.shape[1])
    for name, x in (("d", d), ("c", c)):
        if x.dtype.kind != "f":
            raise SpecError(clause, f"{name} must hold real floating-point numbers, got {x.dtype}")
    for name, x in (("d", d), ("c", c)):
        refuse_bad(clause, name, fixed(x, working_dtype(x)))
    common.check_moment(clause, c)


def _optimum(clause: str, d: Array, c: Array) -> None:
    """:func:`_problem` of what tells an optimum, which a moment that is not positive semi-definite has not."""
    _problem(clause, d, c)
    common.check_definite(np, clause, "c", c.astype(_float(c), copy=False))


def _float(*arrays: Array) -> np.dtype[Any]:
    """The widest of the inputs, but at least float32; factors have the type that this gives D alone."""
    return np.result_type(np.float32, *(x.dtype for x in arrays))


# --- the exact solve on the smaller side -----------------------------------------------------------------------------


Residual: TypeAlias = Callable[[Array, Array], float]
"""J of the factors (B, A), from products that the solve has made already."""


def _eigen(d: Array, c: Array, rank: int, *, spectrum: bool = False) -> tuple[F64, F64, float, Residual]:
    """Leading eigenvalues of M = D C Dᵀ, descending, the top ``rank`` eigenvectors, tr M, and J, in float64.

    With m ≤ k the m x m matrix M itself is decomposed. With k < m its dual is: if C = L Lᵀ, the non-zero eigenvalues
    of M are those of the k x k matrix Lᵀ (DᵀD) L, and D L y is an eigenvector of M for every eigenvector y of the dual.
    A singular C has no Cholesky factor; then D = Q R and M = Q (R C Rᵀ) Qᵀ, which needs no factor of C.

    Shapes: d (m, k), c (k, k) → (rank,), or (min(m, k),) when ``spectrum``; (m, rank); a number; J of (m, r), (r, k).
    """
    d64, c64 = d.astype(np.float64), c.astype(np.float64)
    m, k = d64.shape
    if m <= k:
        dc = d64 @ c64
        gram = dc @ d64.T
        values, u = _top(gram, rank, spectrum)

        def residual(b: Array, a: Array) -> float:
            b, a = b.astype(np.float64), a.astype(np.float64)
            return float(np.vdot(dc - b @ (a @ c64), d64 - b @ a))

        return values, u, float(np.trace(gram)), residual
    try:
        lower = np.linalg.cholesky((c64 + c64.T) / 2)
    except np.linalg.LinAlgError:  # not positive definite
        q, r = scipy.linalg.qr(d64, mode="economic", check_finite=False)
        gram = r @ c64 @ r.T
        values, y = _top(gram, rank, spectrum)

        def general(b: Array, a: Array) -> float:
            return _trace(d64 - b.astype(np.float64) @ a.astype(np.float64), c64)

        return values, q @ y, float(np.trace(gram)), general
    dl = d64 @ lower
    gram = dl.T @ dl
    values, y = _top(gram, rank, spectrum)

    # Householder QR keeps the leading directions and completes those of eigenvalue 0 to an orthonormal set.
    def squares(b: Array, a: Array) -> float:
        left = dl - b.astype(np.float64) @ (a.astype(np.float64) @ lower)
        return float(np.vdot(left, left))

    return values, np.linalg.qr(dl @ y)[0], float(np.trace(gram)), squares


def _top(gram: F64, rank: int, spectrum: bool) -> tuple[F64, F64]:
    """Eigenvalues of a symmetric matrix, descending and not below 0, and the first ``rank`` eigenvectors."""
    n = gram.shape[0]
    symmetric = (gram + gram.T) / 2
    if rank == 0:
        values = scipy.linalg.eigvalsh(symmetric, overwrite_a=True, check_finite=False)
        return np.maximum(values[::-1], 0), gram[:, :0]
    if spectrum or n <= krylov.EXACT_BELOW or 4 * rank >= n:
        values, vectors = np.linalg.eigh(symmetric)
    else:
        values, vectors = scipy.linalg.eigh(
            symmetric, subset_by_index=(n - rank, n - 1), overwrite_a=True, check_finite=False, driver="evr"
        )
    kept = values if spectrum else values[-rank:]
    return np.maximum(kept[::-1], 0), vectors[:, -rank:][:, ::-1]


_balance = functools.partial(krylov.balance, np)


_factors = functools.partial(common.factors, np, np.ndarray.astype)


# --- objective -------------------------------------------------------------------------------------------------------


_trace = functools.partial(common.trace, np, np.ascontiguousarray)


def objective(d: Array, c: Array, /) -> float:
    """J = tr(D C Dᵀ), the error that no patch is left with.  [E-1]

    Products in the input's precision (at least float32), sums in float64.
    """
    _problem("E-1", d, c)
    dtype = _float(d, c)
    d, c = d.astype(dtype, copy=False), c.astype(dtype, copy=False)
    return common.refuse_negative(np, _trace(d, c), d, c)


def eora(d: Array, c: Array, /, *, rank: int, split: Split = "balanced") -> LowRank[Array]:
    """The rank-r patch that minimises tr[(D − BA) C (D − BA)ᵀ], computed exactly in float64.  [E-2]

        M = D C Dᵀ,   B = U_r,   A = U_rᵀ D                            (1.4)

    "balanced" multiplies the columns of B and divides the rows of A by sqrt(s), s the singular values of D C^{1/2}.
    """
    check_patch("E-2", d.shape, rank, split)
    _optimum("E-2", d, c)
    values, u, *_ = _eigen(d, c, rank)
    return _factors(u, values, d, split, _float(d))


def error_spectrum(d: Array, c: Array, /) -> Array:
    """Singular values of D C^{1/2}, descending.  [E-3]

    For float32 results the roots of the eigenvalues of the float64 Gram matrix, whose error of sqrt(2^-53)·s_1 is
    below float32 rounding of s_1; for float64 the singular values themselves (no vectors).
    """
    _optimum("E-3", d, c)
    dtype = _float(d)
    if 0 in d.shape:
        return np.zeros(0, dtype=dtype)
    if dtype != np.float64:
        return np.sqrt(_eigen(d, c, 0)[0]).astype(dtype)
    c64 = (c.astype(np.float64) + c.T) / 2
    try:
        factor = np.linalg.cholesky(c64)
    except np.linalg.LinAlgError:  # singular, or with negative eigenvalues from rounding
        values, q = np.linalg.eigh(c64)
        factor = q * np.sqrt(np.maximum(values, 0))
    spectrum: Array = np.linalg.svd(d @ factor, compute_uv=False)
    return spectrum


def optimum(d: Array, c: Array, /, *, rank: int) -> float:
    """min J over all patches of rank r: Σ_{i>r} s_i².  [E-3]"""
    check_patch("E-3", d.shape, rank, "balanced")
    _optimum("E-3", d, c)
    return float(_eigen(d, c, 0)[0][rank:].sum())


def stationarity(d: Array, c: Array, b: Array, a: Array, /) -> Stationarity:
    """Relative residuals of the first-order conditions, in float64; 0 where a denominator vanishes.  [E-6]"""
    check_matrix("E-6", "b", b.shape, (d.shape[0] if d.ndim else None, None))
    check_matrix("E-6", "a", a.shape, (b.shape[1], d.shape[1] if d.ndim == 2 else None))
    _optimum("E-6", d, c)
    for name, x in (("b", b), ("a", a)):
        refuse_bad("E-6", name, fixed(x, working_dtype(x)))
    return common.stationarity(np, *(x.astype(np.float64) for x in (d, c, b, a)))


def residual_moment(c: Array, a: Array, /) -> Array:
    """C − C Aᵀ (A C Aᵀ)⁺ A C, in float64: what a patch with rows ``a`` leaves of the second moment.  [E-8]"""
    given = weights("E-8", "a", a)
    check_matrix("E-8", "a", given.shape, (None, None))
    refuse_bad("E-8", "a", fixed(given, working_dtype(given)))
    moment = weights("E-8", "c", c)
    upper = symmetric_moment("E-8", "c", moment, given.shape[1])
    h: F64 = np.triu(upper) + np.triu(upper, 1).T
    common.check_definite(np, "E-8", "c", h)
    rows = given.astype(np.float64, order="C")
    image = rows @ h
    energy = np.einsum("ij,ij->i", image, rows)
    seen = energy > common.NO_ENERGY * np.einsum("ij,ij->i", np.abs(rows) @ np.abs(h), np.abs(rows))
    scale = 1 / np.sqrt(energy[seen])[:, None]
    rows, image = rows[seen] * scale, image[seen] * scale
    gram = rows @ image.T
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    kept = values > common.DEPENDENT
    # With V Λ Vᵀ = A C Aᵀ, the rows of Λ^-1/2 Vᵀ A are orthonormal under C.
    image = (vectors[:, kept].T @ image) / np.sqrt(values[kept])[:, None]
    floor = h.diagonal() * (h.shape[0] * 2 * common.U64)
    h -= image.T @ image  # NumPy makes XᵀX exactly symmetric
    np.fill_diagonal(h, np.maximum(h.diagonal(), floor))
    return h.astype(working_dtype(moment))


def eora_published(d: Array, c: Array, /, *, rank: int, policy: EigenPolicy = "truncate") -> LowRank[Array]:
    """The published recipe: float64 eigenvectors of C, then a full singular value decomposition of D C^{1/2}.  [E-4]

    S and S⁻¹ are rounded to the result's type.
    """
    check_patch("E-4", d.shape, rank, "balanced")
    _problem("E-4", d, c)
    return common.published(np, np.ndarray.astype, d, c, rank, policy, _float(d))


# --- the certified solve ---------------------------------------------------------------------------------------------


class _Operator(krylov.Operator):
    xp: ClassVar[Any] = np

    def __init__(self, d: Array, c: Array) -> None:
        super().__init__(d, c)
        self._random = np.random.Generator(np.random.Philox(krylov.SEED))

    def __call__(self, rows: Array) -> Array:
        y = rows.astype(self.d.dtype, copy=False) @ self.d
        y *= self.d_scale
        z = y @ self.c
        z *= self.c_scale
        w: Array = z @ self.d.T
        w *= self.d_scale
        return w

    def start(self, block: int) -> Array:
        return self._random.standard_normal((block, self.d.shape[0]), dtype=np.float32).astype(np.float64)

    def probes(self) -> Array:
        shape = (krylov.PROBES, self.d.shape[0])
        return self._random.standard_normal(shape, dtype=np.float32).astype(self.d.dtype, copy=False)

    def cast(self, x: Array, dtype: Any) -> Array:
        return x.astype(dtype, copy=False)

    def zeros(self, *shape: int) -> Array:
        return np.zeros(shape)

    def ascending(self, x: Array) -> Array:
        return np.sort(x, axis=-1)

    def contiguous(self, x: Array) -> Array:
        return np.ascontiguousarray(x)

    def residual(self, b: Array, a: Array, z: Array, theta: Array) -> float:
        (d, c), k = (self.d, self.c), self.d.shape[1]
        wide, narrow = krylov.WIDE, krylov.NARROW
        positive = theta > 0
        # In units of D alone: Θ is that of the scaled operator, so Θ/c_scale belongs to d_scale·D and the given C.
        w = z[positive].astype(np.float64) / np.sqrt(theta[positive] / self.c_scale)[:, None]

        def panel(j: int) -> Array:
            part: Array = b @ a[:, j : j + wide]
            np.subtract(d[:, j : j + wide], part, out=part)
            part *= self.d_scale
            return part

        residual = np.zeros((w.shape[0], d.shape[0]), dtype=d.dtype)
        total = 0.0
        for i in range(0, k, wide):
            e = panel(i)
            residual += w[:, i : i + wide].astype(d.dtype) @ e.T
            for j in range(i, k, wide):
                f = e if j == i else panel(j)
                for p in range(0, e.shape[1], narrow):
                    first = p if j == i else 0  # of the diagonal panel only the upper triangle, by strips
                    gram = e[:, p : p + narrow].T @ f[:, first:]
                    rest = c[i + p : i + p + gram.shape[0], j + first : j + wide].astype(np.float64)
                    rest -= w[:, i + p : i + p + gram.shape[0]].T @ w[:, j + first : j + wide]
                    gram *= rest.astype(gram.dtype)
                    sums = gram.sum(axis=0, dtype=np.float64)
                    total += 2 * float(sums.sum()) - (float(sums[:narrow].sum()) if j == i else 0.0)
        total += float(np.square(residual).sum(dtype=np.float64))
        return total / self.d_scale / self.d_scale


def _exact(d: Array, c: Array, rank: int, split: Split) -> Compensation[Array]:
    """Exact solve with its objective and a float64 lower bound."""
    values, u, total, residual = _eigen(d, c, rank, spectrum=min(d.shape) <= krylov.EXACT_BELOW)
    low = _factors(u, values[:rank], d, split, _float(d))
    best = float(values[rank:].sum()) if values.size > rank else total - float(values.sum())
    return common.compensation(low, residual(low.B, low.A), best, total, max(d.shape))


def _checked(d: Array, c: Array, rank: int, tolerance: float, split: Split) -> bool:
    """Refuse bad arguments; True when the fast path is worth its while."""
    check_patch("E-5", d.shape, rank, split)
    _optimum("E-5", d, c)
    return common.pays(d.shape, rank, tolerance)


def _operator(d: Array, c: Array) -> _Operator:
    """In the type of the factors, C rounded or widened to it."""
    dtype = _float(d)
    return _Operator(d.astype(dtype, copy=False), c.astype(dtype, copy=False))


def eora_certified(
    d: Array, c: Array, /, *, rank: int, tolerance: float = 1e-6, split: Split = "balanced"
) -> Compensation[Array]:
    """EoRA with a certificate: lower_bound ≤ optimum ≤ objective ≤ (1 + tolerance)·lower_bound.  [E-5]

    By :mod:`lowbit.accel.common.krylov` where it pays. About half of the time goes into the two numbers: J itself is
    a sum of m k² products. See :func:`eora_within`.
    """
    if _checked(d, c, rank, tolerance, split):
        try:
            return krylov.certified(_operator(d, c), rank, tolerance, split)
        except krylov.Stalled as stalled:
            krylov.loud("eora_certified", d.shape, rank, stalled)
    return _exact(d, c, rank, split)


def eora_within(
    d: Array, c: Array, /, *, rank: int, tolerance: float = 1e-6, split: Split = "balanced"
) -> LowRank[Array]:
    """EoRA within ``tolerance`` of the optimum, certified as :func:`eora_certified`, but without J and its bound.

    Shapes: d (m, k), c (k, k) → B (m, r), A (r, k). Not an operation of the contract.
    """
    if _checked(d, c, rank, tolerance, split):
        try:
            return krylov.within(_operator(d, c), rank, tolerance, split)
        except krylov.Stalled as stalled:
            krylov.loud("eora_within", d.shape, rank, stalled)
    return eora(d, c, rank=rank, split=split)
