"""Chapter E on NumPy arrays: EoRA, exact and certified.

Opens with the reference line it implements (eq. 1.4): with M = D C Dᵀ and U_r its top r eigenvectors, the best patch
is B A = U_r U_rᵀ D. No inverse of C and no singular value decomposition of D is formed anywhere but in
:func:`eora_published`, which is there to reproduce the published recipe.

Source: Liu et al. 2024, EoRA, arXiv 2410.21271.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.linalg

from lowbit.accel.boundary import check_matrix, check_patch, check_square
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

_U64 = 2.0**-53
_U32 = 2.0**-24
_NO_ENERGY = 2.0**-40  # of a row of A, relative to abs(a) abs(C) abs(a)ᵀ: rounding, not energy
_DEPENDENT = 2.0**-30  # eigenvalue of A C Aᵀ, its diagonal 1, up to which rows of A are dependent
_PANEL = 512  # columns of D per Gram panel


# --- arguments -------------------------------------------------------------------------------------------------------


def _problem(clause: str, d: Array, c: Array) -> None:
    check_matrix(clause, "d", d.shape, (None, None))
    check_square(clause, "c", c.shape, d.shape[1])
    for name, x in (("d", d), ("c", c)):
        if x.dtype.kind != "f":
            raise SpecError(clause, f"{name} must hold real floating-point numbers, got {x.dtype}")
    for name, x in (("d", d), ("c", c)):
        refuse_bad(clause, name, fixed(x, working_dtype(x)))


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
    if spectrum or n <= _EXACT_BELOW or 4 * rank >= n:
        values, vectors = np.linalg.eigh(symmetric)
    else:
        values, vectors = scipy.linalg.eigh(
            symmetric, subset_by_index=(n - rank, n - 1), overwrite_a=True, check_finite=False, driver="evr"
        )
    kept = values if spectrum else values[-rank:]
    return np.maximum(kept[::-1], 0), vectors[:, -rank:][:, ::-1]


def _balance(values: F64, size: int) -> F64:
    """sqrt of the singular values sqrt(λ), and 1 where λ is zero up to rounding; shape of ``values``."""
    floor = float(values.max(initial=0.0)) * size * _U64
    return np.where(values > floor, np.maximum(values, 0.0), 1.0) ** 0.25


def _factors(u: F64, values: F64, d: Array, split: Split, dtype: np.dtype[Any]) -> LowRank[Array]:
    """B = U, A = Uᵀ D, or both scaled to the same singular values (eq. 1.4)."""
    b, a = u, u.T @ d.astype(u.dtype, copy=False)
    if split == "balanced":
        scale = _balance(values, max(d.shape))
        b, a = b * scale, a / scale[:, None]
    return LowRank(B=b.astype(dtype), A=a.astype(dtype))


# --- objective -------------------------------------------------------------------------------------------------------


def _trace(e: Array, c: Array) -> float:
    """tr(E C Eᵀ) = ⟨EᵀE, C⟩ by panels of the Gram matrix, one triangle only: m k² multiplications, small workspace.

    Products run in the precision of ``e``; the sum over panels is float64.
    """
    k = e.shape[1]
    total = 0.0
    for i in range(0, k, _PANEL):
        left = np.ascontiguousarray(e[:, i : i + _PANEL].T)
        for j in range(i, k, _PANEL):
            gram = left @ e[:, j : j + _PANEL]
            weight = c[i : i + _PANEL, j : j + _PANEL]
            if j > i:
                weight = weight + c[j : j + _PANEL, i : i + _PANEL].T
            gram *= weight
            total += float(gram.sum(dtype=np.float64))
    return total


def objective(d: Array, c: Array, /) -> float:
    """J = tr(D C Dᵀ), the error that no patch is left with.  [E-1]

    Shapes: d (m, k), c (k, k). Products in the input's precision (at least float32), sums in float64.
    """
    _problem("E-1", d, c)
    dtype = _float(d, c)
    return _trace(d.astype(dtype, copy=False), c.astype(dtype, copy=False))


def eora(d: Array, c: Array, /, *, rank: int, split: Split = "balanced") -> LowRank[Array]:
    """The rank-r patch that minimises tr[(D − BA) C (D − BA)ᵀ], computed exactly in float64.  [E-2]

        M = D C Dᵀ,   B = U_r,   A = U_rᵀ D                            (1.4)

    "balanced" multiplies the columns of B and divides the rows of A by sqrt(s), s the singular values of D C^{1/2}.
    Shapes: d (m, k), c (k, k) → B (m, r), A (r, k).
    """
    check_patch("E-2", d.shape, rank, split)
    _problem("E-2", d, c)
    values, u, *_ = _eigen(d, c, rank)
    return _factors(u, values, d, split, _float(d))


def error_spectrum(d: Array, c: Array, /) -> Array:
    """Singular values of D C^{1/2}, descending.  [E-3]

    For float32 results the roots of the eigenvalues of the float64 Gram matrix, whose error of sqrt(2^-53)·s_1 is
    below float32 rounding of s_1; for float64 the singular values themselves (no vectors).

    Shapes: d (m, k), c (k, k) → (min(m, k),).
    """
    _problem("E-3", d, c)
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
    _problem("E-3", d, c)
    return float(_eigen(d, c, 0)[0][rank:].sum())


def stationarity(d: Array, c: Array, b: Array, a: Array, /) -> Stationarity:
    """Relative residuals of the first-order conditions, 0 at the optimum.  [E-6]

        left = ‖Bᵀ(D − BA)C‖ / (‖B‖ ‖DC‖),   right = ‖(D − BA)CAᵀ‖ / (‖A‖ ‖DC‖)

    Shapes: d (m, k), c (k, k), b (m, r), a (r, k). Float64 throughout; 0 where a denominator vanishes.
    """
    check_matrix("E-6", "b", b.shape, (d.shape[0] if d.ndim else None, None))
    check_matrix("E-6", "a", a.shape, (b.shape[1], d.shape[1] if d.ndim == 2 else None))
    _problem("E-6", d, c)
    for name, x in (("b", b), ("a", a)):
        refuse_bad("E-6", name, fixed(x, working_dtype(x)))
    d64, c64, b64, a64 = (x.astype(np.float64) for x in (d, c, b, a))
    dc = d64 @ c64
    rest = dc - b64 @ (a64 @ c64)
    size = float(np.linalg.norm(dc))

    def ratio(top: F64, factor: F64) -> float:
        bottom = float(np.linalg.norm(factor)) * size
        return float(np.linalg.norm(top)) / bottom if bottom > 0 else 0.0

    return Stationarity(left=ratio(b64.T @ rest, b64), right=ratio(rest @ a64.T, a64))


def residual_moment(c: Array, a: Array, /) -> Array:
    """What a patch with rows ``a`` leaves of the second moment, when its B is best for the error.  [E-8]

        H = C − C Aᵀ (A C Aᵀ)⁺ A C,   tr(D H Dᵀ) = min over B of tr[(D − BA) C (D − BA)ᵀ]

    Shapes: c (k, k), a (r, k) → (k, k), precision of c but at least float32. Computed in float64.

    Raises:
        SpecError: E-8 for shapes, types, and a c that is not symmetric or has a diagonal below 0; A-4 for NaN and
            infinities.
    """
    given = weights("E-8", "a", a)
    check_matrix("E-8", "a", given.shape, (None, None))
    refuse_bad("E-8", "a", fixed(given, working_dtype(given)))
    moment = weights("E-8", "c", c)
    upper = symmetric_moment("E-8", "c", moment, given.shape[1])
    h: F64 = np.triu(upper) + np.triu(upper, 1).T
    rows = given.astype(np.float64, order="C")
    image = rows @ h
    energy = np.einsum("ij,ij->i", image, rows)
    seen = energy > _NO_ENERGY * np.einsum("ij,ij->i", np.abs(rows) @ np.abs(h), np.abs(rows))
    scale = 1 / np.sqrt(energy[seen])[:, None]
    rows, image = rows[seen] * scale, image[seen] * scale
    gram = rows @ image.T
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    kept = values > _DEPENDENT
    # With V Λ Vᵀ = A C Aᵀ, the rows of Λ^-1/2 Vᵀ A are orthonormal under C.
    image = (vectors[:, kept].T @ image) / np.sqrt(values[kept])[:, None]
    floor = h.diagonal() * (h.shape[0] * 2 * _U64)
    h -= image.T @ image  # NumPy makes XᵀX exactly symmetric
    np.fill_diagonal(h, np.maximum(h.diagonal(), floor))
    return h.astype(working_dtype(moment))


def eora_published(d: Array, c: Array, /, *, rank: int, policy: EigenPolicy = "truncate") -> LowRank[Array]:
    """The published recipe: float64 eigenvectors of C, then a full singular value decomposition of D C^{1/2}.  [E-4]

        C = Q Λ Qᵀ,   S = Q Λ^{1/2},   U Σ Vᵀ = svd(D S),   B = U_r Σ_r^{1/2},   A = Σ_r^{1/2} V_rᵀ S⁻¹

    Policy "nvlabs" lifts negative eigenvalues to the smallest positive one and cannot treat an exact zero; "truncate"
    zeroes both roots at and below max(λ_max, 0)·min(1, max(1, k)·2^-23). S and S⁻¹ are rounded to the result's type.
    """
    check_patch("E-4", d.shape, rank, "balanced")
    _problem("E-4", d, c)
    if policy not in ("nvlabs", "truncate"):
        raise SpecError("E-4", f"policy must be 'nvlabs' or 'truncate', got {policy!r}")
    dtype = _float(d)
    c64 = c.astype(np.float64)
    values, q = np.linalg.eigh((c64 + c64.T) / 2)
    if policy == "nvlabs":
        positive = values[values > 0]
        if positive.size == 0:
            raise SpecError("E-4", "policy 'nvlabs' needs a positive eigenvalue of c, and there is none")
        if bool((values == 0).any()):
            raise SpecError("E-4", "policy 'nvlabs' cannot invert the exact zero eigenvalue of c")
        root = np.sqrt(np.where(values < 0, positive.min(), values))
        inverse = 1 / root
    else:
        keep = values > max(float(values[-1]), 0.0) * min(1.0, max(1, c.shape[0]) * 2.0**-23)
        root = np.sqrt(np.where(keep, values, 0.0))
        inverse = np.where(keep, 1 / np.where(keep, root, 1.0), 0.0)
    u, s, vt = np.linalg.svd(d.astype(dtype, copy=False) @ (q * root).astype(dtype), full_matrices=False)
    half = np.sqrt(s[:rank])
    return LowRank(B=u[:, :rank] * half, A=(half[:, None] * vt[:rank]) @ (inverse[:, None] * q.T).astype(dtype))


# --- the certified solve ---------------------------------------------------------------------------------------------
#
# Vectors are rows, so that every product with D or C reads them along memory. Block Krylov iteration on M = D C Dᵀ
# from a seeded Gaussian block gives an orthonormal basis V; M V is formed once per block, in float32 (float64 for
# float64 input), everything of basis size in float64. Three facts make the certificate:
#
# (1) With T = V M Vᵀ, residual S = (I − VᵀV) M Vᵀ and β ≥ ‖(I − VᵀV) M (I − VᵀV)‖, in a basis that starts with V
#         M  ≤  [[T, Sᵀ], [S, β I]]          (the difference has one block, β I − (...) ≥ 0)
#     so the top r eigenvalues of that small matrix bound those of M. Only the last block of S is more than rounding.
# (2) Rounding F of the computed M V is measured, not assumed: exact products would make V M Vᵀ symmetric, so its
#     antisymmetric part is a sample of F, which then enters (1) beside S.
# (3) β comes from p fresh Gaussian probes g: Σ ‖Hᑫ g‖² ≥ λ_max(H)²ᑫ χ²_p, so
#         λ_max(H) ≤ (Σ ‖Hᑫ g‖² / x)^(1/2q)   except with probability P(χ²_p < x) = 1e-10.
#
# The bound on the optimum is then J − (bound of (1) − Σ θ_i), with J = tr(E C Eᵀ) taken from E = D − B A itself.

_EXACT_BELOW = 1000  # min(m, k) up to which the exact solve is used: faster there, and a Krylov basis may break down
_FILL = 0.5  # of the space: the largest basis that is still a saving
_OVERSAMPLE = 16
_MULTIPLE = 16  # block sizes are multiples of this
_SEED = 0x10B17
_WIDE, _NARROW = 1024, 256  # columns of the panels of E and of the strips of its Gram matrix
_PROBES = 16
_CHI2 = 0.43368156896587584  # P(χ² with 16 degrees of freedom < this) = 1e-10
_POWERS = 8  # most applications spent on β
_SAFETY = 2.0  # on the measured rounding of M V (a median over a block)


class _Stalled(Exception):
    """The fast path cannot certify this problem; the message says why."""


def _unit(dtype: np.dtype[Any]) -> float:
    return _U32 if dtype == np.float32 else _U64


def _trace_error(dtype: np.dtype[Any]) -> float:
    """Relative error granted to J: see `_residual_objective`."""
    return 4 * _U32 if dtype == np.float32 else 64 * _U64


def _power_of_two(x: Array) -> float:
    """2^-e with max|x| in [2^e, 2^(e+1)), or 1 for a zero matrix."""
    top = max(-float(x.min()), float(x.max()))
    return float(2.0 ** -math.floor(math.log2(top))) if top > 0 else 1.0


def _block(rank: int) -> int:
    """Rows of a Krylov block: the rank and some more, so that the last wanted vectors converge too."""
    return -(-(rank + _OVERSAMPLE) // _MULTIPLE) * _MULTIPLE


class _Operator:
    """X → X M scaled by powers of two, M = D C Dᵀ, for rows X (b, m); products in the precision of d and c."""

    def __init__(self, d: Array, c: Array) -> None:
        self.d, self.c = d, c
        self.d_scale, self.c_scale = _power_of_two(d), _power_of_two(c)

    def __call__(self, x: Array) -> Array:
        y = x.astype(self.d.dtype, copy=False) @ self.d
        y *= self.d_scale
        z = y @ self.c
        z *= self.c_scale
        w: Array = z @ self.d.T
        w *= self.d_scale
        return w


def _orthonormal(rows: F64, size: F64, unit: float) -> F64:
    """Orthonormal basis of the span of ``rows`` (b, m); directions within rounding of ``size`` (b,) are left out.

    Gram eigenvectors twice: stable for any rank, unlike a Cholesky factor. Rows below rounding of what they were
    before projection hold no information and are dropped, which is how a breakdown ends the basis.
    """
    rows = rows[np.linalg.norm(rows, axis=1) > size * (4 * unit)]
    for tolerance in (1e-10, 1e-2):
        if rows.shape[0]:
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            values, vectors = np.linalg.eigh(rows @ rows.T)
            keep = values > tolerance * values[-1]
            rows = (vectors[:, keep] / np.sqrt(values[keep])).T @ rows
    return rows


class _Krylov:
    """Growing orthonormal basis V (rows), T = V M Vᵀ, the residual of the last block, and measured rounding."""

    def __init__(self, op: _Operator, start: F64) -> None:
        self.op = op
        self.unit = _unit(op.d.dtype)
        self._store = np.empty((8 * start.shape[0], start.shape[1]))
        self._take(start, 0)
        self.t: F64 = np.zeros((0, 0))
        self.noise: F64 = np.zeros(0)  # (K,): squared norm of the rounding F per basis row
        self.next: F64 = np.zeros((0, 0))  # residual rows of the last block
        self.size: F64 = self.noise
        self.last = 0

    def _take(self, rows: F64, known: int) -> None:
        """V is the first ``known`` rows and these, (K, m), orthonormal in float64; rounding it for products is in F."""
        count = known + rows.shape[0]
        if count > self._store.shape[0]:
            self._store = np.concatenate((self._store, np.empty_like(self._store)))
        self._store[known:count] = rows
        self.v = self._store[:count]

    def extend(self) -> None:
        """Apply M to the newest block and take it into T."""
        known = self.t.shape[0]
        w = self.op(self.v[known:]).astype(np.float64)
        size = np.linalg.norm(w, axis=1)
        if not math.isfinite(float(size.sum())):
            raise _Stalled("the products overflow the working precision")
        cross = self.v @ w.T  # (K, b)
        self.next = w - cross.T @ self.v
        square = cross[known:]
        b, m = square.shape[0], w.shape[1]
        # E skew_ij² = (φ_i² + φ_j²)/m for independent rounding of norm φ_i in row i. The median over j of such a
        # squared normal variable is 0.4549 of its mean, and not moved by the few rows that are much larger.
        skew = np.sort((square - square.T) ** 2, axis=1)
        phi = skew[:, min((b + 1) // 2, b - 1)] * (m / 0.4549)  # entry 0 of a sorted row is the diagonal
        self.noise = np.concatenate((self.noise, np.maximum(phi, (0.5 * self.unit * size) ** 2)))
        grown = np.zeros((known + b, known + b))
        grown[:known, :known] = self.t
        grown[:known, known:] = cross[:known]
        grown[known:, :known] = cross[:known].T
        grown[known:, known:] = (square + square.T) / 2
        self.t = grown
        self.size = size
        self.last = b

    def advance(self) -> bool:
        """Orthonormalise the residual into a new block; False when nothing is left of it (an invariant subspace)."""
        # A short residual is less orthogonal to V than float64 allows, by the factor that it is shorter than the
        # product it came from; the second projection is of unit rows, and what it leaves is rounding.
        rows = _orthonormal(self.next, self.size, self.unit)
        rows = _orthonormal(rows - (rows @ self.v.T) @ self.v, np.zeros(rows.shape[0]), self.unit)
        # What deflation left out counts with the rounding of that block, all of it in every row: its rows may be alike.
        left = self.next - (self.next @ rows.T) @ rows
        self.noise[-self.last :] += float((left**2).sum())
        if rows.shape[0] == 0:
            self.next = self.next[:0]
            return False
        self._take(rows, self.v.shape[0])
        return True


class _Ritz:
    """Ritz values (descending) and vectors of a Krylov basis, with what the bound (1) needs."""

    def __init__(self, space: _Krylov) -> None:
        values, vectors = np.linalg.eigh(space.t)
        self.values: F64 = values[::-1].copy()
        self.y: F64 = vectors[:, ::-1]  # (K, K), columns
        rest = space.next
        gram_values, gram_vectors = np.linalg.eigh(rest @ rest.T)
        root = np.sqrt(np.maximum(gram_values, 0))[:, None] * gram_vectors.T  # (b, b)
        self.s: F64 = root @ self.y[self.y.shape[0] - rest.shape[0] :]
        self.phi: F64 = _SAFETY * np.sqrt(space.noise @ self.y**2)  # (K,): norm of F per Ritz vector

    def outlook(self, rank: int, beta: float, dimension: int) -> tuple[float, float]:
        """The shares of residual and of rounding in what `excess` bounds, each alone and to second order; no bound."""
        gap = np.maximum(self.values[:rank] - beta, 1e-300)
        with np.errstate(over="ignore"):
            residual = float(((self.s[:, :rank] ** 2).sum(axis=0) / gap).sum())
        return residual, self._rounding(rank, beta, dimension, 1.0)

    def excess(self, rank: int, beta: float, dimension: int, weight: float) -> float:
        """Bound on (Σ of the top r eigenvalues of M) − (Σ of the top r Rayleigh quotients)."""
        # The sum of the top r eigenvalues is convex: (1) is p times a matrix with 1/p of the residual alone plus 1 − p
        # times one with 1/(1 − p) of the rounding alone, for any 0 < p < 1 (``weight``).
        count, b = self.values.size, self.s.shape[0]
        small = np.zeros((count + b, count + b))
        small[:count, :count] = np.diag(self.values)
        small[count:, :count] = self.s / weight
        small[:count, count:] = self.s.T / weight
        small[count:, count:] = np.diag(np.full(b, beta))
        residual = self._gain(np.linalg.eigvalsh(small), rank, beta, dimension) * weight
        return residual + self._rounding(rank, beta, dimension, 1 - weight)

    def _gain(self, bounds: npt.NDArray[np.floating[Any]], rank: int, beta: float, dimension: int) -> float:
        """Top r sum of ``bounds`` and the β of the dimensions outside the basis, less that of the Ritz values."""
        outside = np.full(min(rank, max(dimension - self.values.size, 0)), beta)
        largest = np.sort(np.concatenate((bounds, outside)))[::-1][:rank]
        return max(float(largest.sum() - self.values[:rank].sum()), 0.0)

    def _rounding(self, rank: int, beta: float, dimension: int, weight: float) -> float:
        values, count = self.values, self.values.size
        # (2): rows of F are the rounding errors of different products, so F Fᵀ ≤ (1 + sqrt(K/m))² diag(φ²), as for
        # independent rows of length m; then the small matrix falls apart into 2 x 2 ones.
        phi = (1 + math.sqrt(count / dimension)) / weight * self.phi
        bounds = (values + beta) / 2 + np.hypot((values - beta) / 2, phi)
        rounding = self._gain(bounds, rank, beta, dimension) * weight
        # Between a kept and a dropped Ritz vector: a pair with gap g and coupling ν gains at most min(ν, ν²/g).
        nu = np.maximum(self.phi[:rank, None], self.phi[None, rank:]) / math.sqrt(dimension)
        gap = np.maximum(values[:rank, None] - values[None, rank:], 0)
        pairs = np.where(gap > nu, nu * (nu / np.maximum(gap, np.maximum(nu, 1e-300))), nu)
        return rounding + float(pairs.sum()) + _U64 * count * float(values[:rank].sum())


def _outer_norm(op: _Operator, space: _Krylov, enough: float, generator: np.random.Generator) -> float:
    """Upper bound of ‖(I − VᵀV) M (I − VᵀV)‖ by fresh probes (3); stops as soon as it is below ``enough``."""
    v = space.v.astype(op.d.dtype)
    g: Array = generator.standard_normal((_PROBES, v.shape[1]), dtype=np.float32).astype(v.dtype)
    log_scale, best = 0.0, math.inf
    g = g - (g @ v.T) @ v
    for power in range(1, _POWERS + 1):
        g = op(g)
        for _ in range(2):
            g = g - (g @ v.T) @ v
        square = float(np.square(g).sum(dtype=np.float64))
        if square == 0:
            return 0.0
        bound = math.exp((log_scale + math.log(square / _CHI2)) / (2 * power))
        best = min(best, bound * (1 + 64 * _U32))
        if best <= enough:
            break
        g = g / v.dtype.type(math.sqrt(square))
        log_scale += math.log(square)
    return best


class _Solved(NamedTuple):
    """Leading invariant subspace of the scaled operator, within ``excess`` of the best in the sum of eigenvalues."""

    op: _Operator
    u: Array  # (r, m) rows, working precision
    theta: F64  # (r,) Rayleigh quotients, float64, scaled
    excess: float  # scaled


def _solve(d: Array, c: Array, rank: int, tolerance: float) -> _Solved:
    """Block Krylov until (1) to (3) leave at most two thirds of the tolerance; raises `_Stalled` when they cannot."""
    dtype, m = d.dtype, d.shape[0]
    if tolerance < 4 * _trace_error(dtype):
        raise _Stalled(f"tolerance {tolerance:g} is below what {dtype} products can certify")
    generator = np.random.Generator(np.random.Philox(_SEED))
    op = _Operator(d, c)
    block = _block(rank)
    limit = int(_FILL * min(d.shape))
    start = generator.standard_normal((block, m), dtype=np.float32).astype(np.float64)
    space = _Krylov(op, _orthonormal(start, np.zeros(block), _U64))
    restarts = 0
    exhausted = False
    while True:
        if not exhausted:
            space.extend()
        count = space.t.shape[0]
        if count >= 3 * block or restarts or exhausted or count + block > limit:
            ritz = _Ritz(space)
            # The part of the optimum inside the basis is a lower bound of it; aim at two thirds of the tolerance.
            allowed = 0.65 * tolerance * float(np.maximum(ritz.values[rank:], 0).sum())
            # A cheap look with a guess of β, before the real one and the real bound are paid for.
            residual, rounding = ritz.outlook(rank, float(ritz.values[min(count, block) - 1]), m)
            if (math.sqrt(residual) + math.sqrt(rounding)) ** 2 <= allowed:
                beta = _outer_norm(op, space, 0.9 * float(ritz.values[rank - 1]), generator)
                # The best weight to second order.
                weight = math.sqrt(residual) / max(math.sqrt(residual) + math.sqrt(rounding), 1e-300)
                excess = ritz.excess(rank, beta, m, min(max(weight, 0.1), 0.9))
                if excess <= allowed:
                    break
            if rounding > allowed and residual < 0.1 * allowed:
                # Rounding of a basis row is that of its largest Ritz component; Ritz vectors as first block grade it.
                if restarts:
                    share = rounding / max(2 * allowed, 1e-300)
                    raise _Stalled(f"{dtype} rounding alone takes {share:.1e} of the tolerance")
                restarts += 1
                exhausted = False
                space = _Krylov(op, np.ascontiguousarray(ritz.y[:, :block].T @ space.v))
                continue
        if exhausted:
            raise _Stalled(f"the Krylov space is exhausted at {count} dimensions")
        if count + block > limit:
            raise _Stalled(f"the basis would exceed half of the space ({limit} of {min(d.shape)} dimensions)")
        exhausted = not space.advance()
    u = (ritz.y[:, :rank].T @ space.v).astype(dtype)
    return _Solved(op, u, ritz.values[:rank], excess)


def _patch(d: Array, solved: _Solved, split: Split) -> tuple[LowRank[Array], Array]:
    """Factors of the wanted split, and Uᵀ D before scaling."""
    op, u, theta = solved.op, solved.u, solved.theta
    plain = u @ d
    if split == "left":
        return LowRank(B=np.ascontiguousarray(u.T), A=plain), plain
    unit = 1.0 / (op.d_scale * op.d_scale) / op.c_scale  # value of 1 in the caller's units
    scale = (_balance(theta, max(d.shape)) * unit**0.25).astype(d.dtype)
    return LowRank(B=np.ascontiguousarray(u.T * scale), A=plain / scale[:, None]), plain


def _certified(d: Array, c: Array, rank: int, tolerance: float, split: Split) -> Compensation[Array]:
    """The fast path with its numbers; raises `_Stalled` when it cannot certify the tolerance."""
    dtype = d.dtype
    solved = _solve(d, c, rank, tolerance)
    op = solved.op
    (b, a), plain = _patch(d, solved, split)
    z = (plain * op.d_scale) @ c  # (r, k)
    found = _residual_objective(d, c, b, a, z, solved.theta, op)
    unit = 1.0 / (op.d_scale * op.d_scale) / op.c_scale
    excess = solved.excess * unit
    # J of the factors as they are, against J as computed: 4u for the sum of m·k² products, whose rounding averages
    # out; and the rounding δ of E = D − B A, whose first-order share 2⟨δ, E C⟩ is of the order u·sqrt(J tr M / m).
    total = found + float(solved.theta.sum()) * unit
    spread = 8 * _unit(dtype) * math.sqrt(max(found, 0.0) * total / min(d.shape))
    lower = found * (1 - _trace_error(dtype)) - spread - excess
    if not found <= lower * (1 + tolerance):
        raise _Stalled(f"the bound leaves a gap of {(found - lower) / max(found, 1e-300):.1e} of the objective")
    return Compensation(B=b, A=a, objective=found, lower_bound=lower, method="krylov")


def _residual_objective(d: Array, c: Array, b: Array, a: Array, z: Array, theta: F64, op: _Operator) -> float:
    """J = tr(E C Eᵀ) of E = D − B A, without the cancellation of ⟨EᵀE, C⟩ over the directions that A has removed.

    For any Z (r, k) and Θ > 0: J = tr(E C′ Eᵀ) + ‖Θ^{-1/2} Z Eᵀ‖² with C′ = C − Zᵀ Θ⁻¹ Z. With Z = U_rᵀ D C the
    eigenvalues of D C′ Dᵀ are those of M beyond the first r, so the terms of the sum are of the size of J, not of
    tr M; and Z Eᵀ is only the residual of the eigenvectors.
    """
    k = d.shape[1]
    positive = theta > 0
    # In units of D alone: Θ is that of the scaled operator, so Θ/c_scale belongs to d_scale·D and the given C.
    w = z[positive].astype(np.float64) / np.sqrt(theta[positive] / op.c_scale)[:, None]

    def panel(j: int) -> Array:
        part: Array = b @ a[:, j : j + _WIDE]
        np.subtract(d[:, j : j + _WIDE], part, out=part)
        part *= op.d_scale
        return part

    residual = np.zeros((w.shape[0], d.shape[0]), dtype=d.dtype)
    total = 0.0
    for i in range(0, k, _WIDE):
        e = panel(i)
        residual += w[:, i : i + _WIDE].astype(d.dtype) @ e.T
        for j in range(i, k, _WIDE):
            f = e if j == i else panel(j)
            for p in range(0, e.shape[1], _NARROW):
                first = p if j == i else 0  # of the diagonal panel only the upper triangle, by strips
                gram = e[:, p : p + _NARROW].T @ f[:, first:]
                rest = c[i + p : i + p + gram.shape[0], j + first : j + _WIDE].astype(np.float64)
                rest -= w[:, i + p : i + p + gram.shape[0]].T @ w[:, j + first : j + _WIDE]
                gram *= rest.astype(gram.dtype)
                sums = gram.sum(axis=0, dtype=np.float64)
                total += 2 * float(sums.sum()) - (float(sums[:_NARROW].sum()) if j == i else 0.0)
    total += float(np.square(residual).sum(dtype=np.float64))
    return total / op.d_scale / op.d_scale


def _exact(d: Array, c: Array, rank: int, split: Split) -> Compensation[Array]:
    """Exact solve with its objective and a float64 lower bound."""
    values, u, total, residual = _eigen(d, c, rank, spectrum=min(d.shape) <= _EXACT_BELOW)
    low = _factors(u, values[:rank], d, split, _float(d))
    found = max(residual(low.B, low.A), 0.0)
    # LAPACK's eigenvalues are those of M + F with ‖F‖ ≤ p(n)·u·‖M‖; the sum of the trailing ones and the trace of
    # the residual then agree within a small multiple of n·u·tr M, which the bound gives up.
    best = float(values[rank:].sum()) if values.size > rank else total - float(values.sum())
    slack = _U64 * max(d.shape) * total
    return Compensation(
        B=low.B, A=low.A, objective=found, lower_bound=min(max(best - slack, 0.0), found), method="exact"
    )


def _checked(d: Array, c: Array, rank: int, tolerance: float, split: Split) -> bool:
    """Refuse bad arguments; True when the fast path is worth its while."""
    check_patch("E-5", d.shape, rank, split)
    _problem("E-5", d, c)
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise SpecError("E-5", f"tolerance must be finite and not negative, got {tolerance!r}")
    small = int(min(d.shape))
    return small > _EXACT_BELOW and 4 * _block(rank) <= _FILL * small


def _loud(name: str, d: Array, rank: int, stalled: _Stalled) -> None:
    """Say that the exact solve has to follow, and why."""
    warnings.warn(
        f"{name}: no fast certificate for shape {tuple(d.shape)}, rank {rank}: {stalled}; solving exactly instead",
        RuntimeWarning,
        stacklevel=3,
    )


def eora_certified(
    d: Array, c: Array, /, *, rank: int, tolerance: float = 1e-6, split: Split = "balanced"
) -> Compensation[Array]:
    """EoRA with a certificate: lower_bound ≤ optimum ≤ objective ≤ (1 + tolerance)·lower_bound.  [E-5]

    Up to min(m, k) of about a thousand, or when a Krylov basis would fill the space, the exact solve in float64.
    Above, block Krylov iteration on M = D C Dᵀ in operator form (M is never formed) with an a-posteriori bound. When
    that bound cannot be brought to ``tolerance`` (a spectrum flat to the end, an optimum below rounding, a tolerance
    below the precision of the input), a RuntimeWarning says so and the exact solve follows. The bound holds except
    with probability 1e-10 over the seeded probes, and takes rounding errors of different products as independent.

    About half of the time goes into the two numbers: J itself is a sum of m k² products. See :func:`eora_within`.

    Shapes: d (m, k), c (k, k) → B (m, r), A (r, k).
    """
    if _checked(d, c, rank, tolerance, split):
        dtype = _float(d)
        try:
            return _certified(d.astype(dtype, copy=False), c.astype(dtype, copy=False), rank, tolerance, split)
        except _Stalled as stalled:
            _loud("eora_certified", d, rank, stalled)
    return _exact(d, c, rank, split)


def eora_within(
    d: Array, c: Array, /, *, rank: int, tolerance: float = 1e-6, split: Split = "balanced"
) -> LowRank[Array]:
    """EoRA within ``tolerance`` of the optimum, certified as :func:`eora_certified`, but without J and its bound.

    J(BA) ≤ (1 + tolerance)·optimum needs no J: the distance to the optimum is bounded by itself, and the trailing
    Ritz values bound the optimum from below. Not an operation of the contract.

    Shapes: d (m, k), c (k, k) → B (m, r), A (r, k).
    """
    if _checked(d, c, rank, tolerance, split):
        dtype = _float(d)
        try:
            d, c = d.astype(dtype, copy=False), c.astype(dtype, copy=False)
            return _patch(d, _solve(d, c, rank, tolerance), split)[0]
        except _Stalled as stalled:
            _loud("eora_within", d, rank, stalled)
    return eora(d, c, rank=rank, split=split)
