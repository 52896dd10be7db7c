"""Chapter E on torch tensors: EoRA, exact and certified.

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
import torch
from torch import Tensor

from lowbit.accel.common import eigenspace as common
from lowbit.accel.common import krylov
from lowbit.accel.common.low_rank import check_patch
from lowbit.accel.common.refusals import check_matrix, check_square
from lowbit.reference.errors import SpecError
from lowbit.reference.types import Compensation, EigenPolicy, LowRank, Split, Stationarity

from .arrays import operation, refuse_nan
from .gptq import check_moment

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

_PANEL = 512  # columns of D per Gram panel: large enough for BLAS, small enough to stay in cache


# --- arguments -------------------------------------------------------------------------------------------------------


def _problem(clause: str, d: Tensor, c: Tensor) -> None:
    check_matrix(clause, "d", d.shape, (None, None))
    check_square(clause, "c", c.shape, d.shape[1])
    for name, x in (("d", d), ("c", c)):
        if not x.is_floating_point():
            raise SpecError(clause, f"{name} must hold real floating-point numbers, got {x.dtype}")
    for name, x in (("d", d), ("c", c)):
        refuse_nan(clause, name, x)
    common.check_moment(clause, c)


def _optimum(clause: str, d: Tensor, c: Tensor) -> None:
    """:func:`_problem` of what tells an optimum, which a moment that is not positive semi-definite has not."""
    _problem(clause, d, c)
    common.check_definite(torch, clause, "c", c.to(_float(c)))


def _float(*arrays: Tensor) -> torch.dtype:
    """The widest of the inputs, but at least float32; factors have the type that this gives D alone."""
    dtype = torch.float32
    for x in arrays:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


# --- the exact solve on the smaller side -----------------------------------------------------------------------------


Residual: TypeAlias = Callable[[Tensor, Tensor], float]
"""J of the factors (B, A), from products that the solve has made already."""


def _eigen(d: Tensor, c: Tensor, rank: int) -> tuple[Tensor, Tensor, Residual]:
    """Eigenvalues of M = D C Dᵀ, all min(m, k), descending, its top ``rank`` eigenvectors, and J, in float64.

    With m ≤ k the m x m matrix M itself is decomposed. With k < m its dual is: if C = L Lᵀ, the non-zero eigenvalues
    of M are those of the k x k matrix Lᵀ (DᵀD) L, and D L y is an eigenvector of M for every eigenvector y of the dual.
    A singular C has no Cholesky factor; then D = Q R and M = Q (R C Rᵀ) Qᵀ, which needs no factor of C.

    Shapes: d (m, k), c (k, k) → (min(m, k),), (m, rank), J of (m, r) and (r, k).
    """
    d64, c64 = d.to(torch.float64), c.to(torch.float64)
    m, k = d64.shape
    if m <= k:
        dc = d64 @ c64

        def residual(b: Tensor, a: Tensor) -> float:
            b, a = b.to(torch.float64), a.to(torch.float64)
            return float(((dc - b @ (a @ c64)) * (d64 - b @ a)).sum())

        return (*_top(dc @ d64.T, rank), residual)
    lower, failed = torch.linalg.cholesky_ex((c64 + c64.T) / 2)
    if int(failed) == 0:
        dl = d64 @ lower
        values, y = _top(dl.T @ dl, rank)

        # Householder QR keeps the leading directions and completes those of eigenvalue 0 to an orthonormal set.
        def squares(b: Tensor, a: Tensor) -> float:
            return float((dl - b.to(torch.float64) @ (a.to(torch.float64) @ lower)).square().sum())

        return values, torch.linalg.qr(dl @ y)[0], squares
    q, r = torch.linalg.qr(d64)
    values, y = _top(r @ c64 @ r.T, rank)

    def general(b: Tensor, a: Tensor) -> float:
        return _trace(d64 - b.to(torch.float64) @ a.to(torch.float64), c64)

    return values, q @ y, general


def _top(gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues of a symmetric matrix, descending and not below 0, and the first ``rank`` eigenvectors."""
    if rank == 0:
        return torch.linalg.eigvalsh((gram + gram.T) / 2).flip(0).clamp_min(0), gram[:, :0]
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    return values.flip(0).clamp_min(0), vectors[:, -rank:].flip(1)


_balance = functools.partial(krylov.balance, torch)


_factors = functools.partial(common.factors, torch, Tensor.to)


# --- objective -------------------------------------------------------------------------------------------------------


_trace = functools.partial(common.trace, torch, Tensor.contiguous)


@operation
def objective(d: Tensor, c: Tensor, /) -> float:
    """J = tr(D C Dᵀ), the error that no patch is left with.  [E-1]

    Products in the input's precision (at least float32), sums in float64.
    """
    _problem("E-1", d, c)
    dtype = _float(d, c)
    d, c = d.to(dtype), c.to(dtype)
    return common.refuse_negative(torch, _trace(d, c), d, c)


@operation
def eora(d: Tensor, c: Tensor, /, *, rank: int, split: Split = "balanced") -> LowRank[Tensor]:
    """The rank-r patch that minimises tr[(D − BA) C (D − BA)ᵀ], computed exactly in float64.  [E-2]

        M = D C Dᵀ,   B = U_r,   A = U_rᵀ D                            (1.4)

    "balanced" multiplies the columns of B and divides the rows of A by sqrt(s), s the singular values of D C^{1/2}.
    """
    check_patch("E-2", d.shape, rank, split)
    _optimum("E-2", d, c)
    values, u, _ = _eigen(d, c, rank)
    return _factors(u, values[:rank], d, split, _float(d))


@operation
def error_spectrum(d: Tensor, c: Tensor, /) -> Tensor:
    """Singular values of D C^{1/2}, descending.  [E-3]

    For float32 results the roots of the eigenvalues of the float64 Gram matrix, whose error of sqrt(2^-53)·s_1 is
    below float32 rounding of s_1; for float64 the singular values themselves (no vectors).
    """
    _optimum("E-3", d, c)
    dtype = _float(d)
    if 0 in d.shape:
        return torch.zeros(0, dtype=dtype, device=d.device)
    if dtype != torch.float64:
        return _eigen(d, c, 0)[0].sqrt().to(dtype)
    c64 = (c.to(torch.float64) + c.to(torch.float64).T) / 2
    factor, failed = torch.linalg.cholesky_ex(c64)
    if int(failed):  # singular, or with negative eigenvalues from rounding
        values, q = torch.linalg.eigh(c64)
        factor = q * values.clamp_min(0).sqrt()
    spectrum: Tensor = torch.linalg.svdvals(d @ factor)
    return spectrum


@operation
def optimum(d: Tensor, c: Tensor, /, *, rank: int) -> float:
    """min J over all patches of rank r: Σ_{i>r} s_i².  [E-3]"""
    check_patch("E-3", d.shape, rank, "balanced")
    _optimum("E-3", d, c)
    return float(_eigen(d, c, 0)[0][rank:].sum())


@operation
def stationarity(d: Tensor, c: Tensor, b: Tensor, a: Tensor, /) -> Stationarity:
    """Relative residuals of the first-order conditions, in float64; 0 where a denominator vanishes.  [E-6]"""
    check_matrix("E-6", "b", b.shape, (d.shape[0] if d.ndim else None, None))
    check_matrix("E-6", "a", a.shape, (b.shape[1], d.shape[1] if d.ndim == 2 else None))
    _optimum("E-6", d, c)
    for name, x in (("b", b), ("a", a)):
        refuse_nan("E-6", name, x)
    return common.stationarity(torch, *(x.to(torch.float64) for x in (d, c, b, a)))


@operation
def residual_moment(c: Tensor, a: Tensor, /) -> Tensor:
    """C − C Aᵀ (A C Aᵀ)⁺ A C, in float64: what a patch with rows ``a`` leaves of the second moment.  [E-8]"""
    check_matrix("E-8", "a", a.shape, (None, None))
    check_square("E-8", "c", c.shape, a.shape[1])
    if not a.is_floating_point():
        raise SpecError("E-8", f"a must hold real floating-point numbers, got {a.dtype}")
    refuse_nan("E-8", "a", a)
    h = check_moment("E-8", "c", c, a.shape[1])
    common.check_definite(torch, "E-8", "c", h)
    rows = a.to(torch.float64)
    image = rows @ h
    energy = (image * rows).sum(1)
    bulk, size = torch.zeros_like(energy), rows.abs()
    for start in range(0, h.shape[0], _PANEL):  # no second matrix as large as h
        columns = slice(start, start + _PANEL)
        bulk += ((size @ h[:, columns].abs()) * size[:, columns]).sum(1)
    seen = energy > common.NO_ENERGY * bulk
    scale = energy[seen].rsqrt()[:, None]
    rows, image = rows[seen] * scale, image[seen] * scale
    values, vectors = torch.linalg.eigh(rows @ image.T)
    kept = values > common.DEPENDENT
    # With V Λ Vᵀ = A C Aᵀ, the rows of Λ^-1/2 Vᵀ A are orthonormal under C.
    image = (vectors[:, kept].T @ image) * values[kept].rsqrt()[:, None]
    floor = h.diagonal() * (h.shape[0] * 2 * common.U64)
    h.addmm_(image.T, image, alpha=-1)
    h.diagonal().copy_(torch.maximum(h.diagonal(), floor))
    for start in range(0, h.shape[0], _PANEL):  # addmm is symmetric up to rounding only
        rest = slice(start, None)
        strip = (h[start : start + _PANEL, rest] + h[rest, start : start + _PANEL].mT) / 2
        h[start : start + _PANEL, rest] = strip
        h[rest, start : start + _PANEL] = strip.mT
    return h.to(_float(c))


@operation
def eora_published(d: Tensor, c: Tensor, /, *, rank: int, policy: EigenPolicy = "truncate") -> LowRank[Tensor]:
    """The published recipe: float64 eigenvectors of C, then a full singular value decomposition of D C^{1/2}.  [E-4]

    S and S⁻¹ are rounded to the result's type.
    """
    check_patch("E-4", d.shape, rank, "balanced")
    _problem("E-4", d, c)
    return common.published(torch, Tensor.to, d, c, rank, policy, _float(d))


# --- the certified solve ---------------------------------------------------------------------------------------------


def _empty(rows: int, cols: int, like: Tensor) -> Tensor:
    """Uninitialised matrix; on the CPU from NumPy, which asks for huge pages (first touch is several times faster)."""
    if like.device.type == "cpu" and like.dtype == torch.float32:
        return torch.from_numpy(np.empty((rows, cols), dtype=np.float32))
    return torch.empty(rows, cols, dtype=like.dtype, device=like.device)


class _Operator(krylov.Operator):
    xp: ClassVar[Any] = torch

    def __init__(self, d: Tensor, c: Tensor) -> None:
        super().__init__(d, c)
        self._random = torch.Generator().manual_seed(krylov.SEED)

    def __call__(self, rows: Tensor) -> Tensor:
        # As columns, which BLAS multiplies faster: half the time for 16 of them, a tenth less for 80.
        columns = rows.to(self.d.dtype).T.contiguous()
        y = (self.d.T @ columns).mul_(self.d_scale)
        z = (self.c @ y).mul_(self.c_scale)
        w: Tensor = (self.d @ z).mul_(self.d_scale)
        return w.T.contiguous()

    def start(self, block: int) -> Tensor:
        drawn = torch.randn(block, self.d.shape[0], generator=self._random)
        return drawn.to(self.d.device, torch.float64)

    def probes(self) -> Tensor:
        drawn = torch.randn(krylov.PROBES, self.d.shape[0], generator=self._random, dtype=torch.float64)
        return drawn.to(self.d.device, self.d.dtype)

    def cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype)

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self.d.device)

    def ascending(self, x: Tensor) -> Tensor:
        return x.sort().values

    def contiguous(self, x: Tensor) -> Tensor:
        return x.contiguous()

    def residual(self, b: Tensor, a: Tensor, z: Tensor, theta: Tensor) -> float:
        d, c, d_scale = self.d, self.c, self.d_scale
        m, k = d.shape
        wide, narrow = krylov.WIDE, krylov.NARROW
        positive = theta > 0
        # In units of D alone: Θ is that of the scaled operator, so Θ/c_scale belongs to d_scale·D and the given C.
        w = z[positive].to(torch.float64) / (theta[positive] / self.c_scale).sqrt()[:, None]

        def panel(j: int, out: Tensor) -> Tensor:
            part = d[:, j : j + wide]
            return torch.addmm(part, b, a[:, j : j + wide], beta=d_scale, alpha=-d_scale, out=out[:, : part.shape[1]])

        left, right = _empty(m, min(wide, k), d), _empty(m, min(wide, k), d)
        residual = d.new_zeros((w.shape[0], m))
        total = 0.0
        for i in range(0, k, wide):
            e = panel(i, left)
            residual.addmm_(w[:, i : i + wide].to(d.dtype), e.T)
            for j in range(i, k, wide):
                f = e if j == i else panel(j, right)
                for p in range(0, e.shape[1], narrow):
                    first = p if j == i else 0  # of the diagonal panel only the upper triangle, by strips
                    gram = e[:, p : p + narrow].T @ f[:, first:]
                    rest = c[i + p : i + p + gram.shape[0], j + first : j + wide].to(torch.float64, copy=True)
                    rest.addmm_(w[:, i + p : i + p + gram.shape[0]].T, w[:, j + first : j + wide], alpha=-1)
                    gram *= rest.to(gram.dtype)
                    sums = gram.sum(dim=0, dtype=torch.float64)
                    total += 2 * float(sums.sum()) - (float(sums[:narrow].sum()) if j == i else 0.0)
        total += float(residual.square().sum(dtype=torch.float64))
        return total / d_scale / d_scale


def _exact(d: Tensor, c: Tensor, rank: int, split: Split) -> Compensation[Tensor]:
    """Exact solve with its objective and a float64 lower bound."""
    values, u, residual = _eigen(d, c, rank)
    low = _factors(u, values[:rank], d, split, _float(d))
    best, total = float(values[rank:].sum()), float(values.sum())
    return common.compensation(low, residual(low.B, low.A), best, total, max(d.shape))


def _checked(d: Tensor, c: Tensor, rank: int, tolerance: float, split: Split) -> bool:
    """Refuse bad arguments; True when the fast path is worth its while."""
    check_patch("E-5", d.shape, rank, split)
    _optimum("E-5", d, c)
    return common.pays(d.shape, rank, tolerance)


def _operator(d: Tensor, c: Tensor) -> _Operator:
    """In the type of the factors, C rounded or widened to it."""
    dtype = _float(d)
    return _Operator(d.to(dtype), c.to(dtype))


@operation
def eora_certified(
    d: Tensor, c: Tensor, /, *, rank: int, tolerance: float = 1e-6, split: Split = "balanced"
) -> Compensation[Tensor]:
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
    d: Tensor, c: Tensor, /, *, rank: int, tolerance: float = 1e-6, split: Split = "balanced"
) -> LowRank[Tensor]:
    """EoRA within ``tolerance`` of the optimum, certified as :func:`eora_certified`, but without J and its bound.

    Shapes: d (m, k), c (k, k) → B (m, r), A (r, k). Not an operation of the contract.
    """
    if _checked(d, c, rank, tolerance, split):
        try:
            return krylov.within(_operator(d, c), rank, tolerance, split)
        except krylov.Stalled as stalled:
            krylov.loud("eora_within", d.shape, rank, stalled)
    return eora(d, c, rank=rank, split=split)
