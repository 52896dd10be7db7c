"""E: EoRA, the rank-r patch that is best for the inputs a layer sees. Closed form, no gradients.

    D = W − Ŵ (m, k), formed in float32 or better;  C = XᵀX (k, k), any positive multiple;  find B (m, r), A (r, k):

        min J = ‖(D − BA) Xᵀ‖² = tr[(D − BA) C (D − BA)ᵀ]                                               (1.1)
        min J = Σ_{i>r} s_i²,   s_i the singular values of D C^½                                        (1.2)
        C^½ may be any S with S Sᵀ = C: Q L^½, Q L^½ Qᵀ, Cholesky, or Xᵀ itself                         (1.3)
        BA = U_r U_rᵀ D,   U_r the r leading eigenvectors of M = D C Dᵀ                                 (1.4)

C is in × in and multiplies D on the *right*. It is positive semi-definite: an eigenvalue a little below 0 is the
rounding of a sum, and each operation says what becomes of it. One below −2⁻⁸ ‖C‖_F is refused, with what is not
symmetric and a negative diagonal, wherever an optimum or a bound is told, since it has none; so is an objective below
−2⁻⁸ ‖C‖_F ‖D‖_F² [E-1a]. The published recipe alone repairs whatever it finds [E-4]. Deliberately not here: gradients,
fine-tuning of the patch, and the loop over layers (a recipe). Source: Liu et al. 2024, EoRA (arXiv 2410.21271).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from . import checks, uniform
from .checks import F64, Array
from .errors import SpecError
from .gptq import gptq, quadratic_loss
from .types import (
    AdapterMethod,
    Compensation,
    EigenPolicy,
    LowRank,
    QuantizedAdapter,
    QuantizedWeight,
    ScaleDtype,
    Scheme,
    Split,
    Stationarity,
)

__all__ = [
    "eora",
    "eora_certified",
    "eora_published",
    "error_spectrum",
    "objective",
    "optimum",
    "quantize_adapter",
    "residual_moment",
    "stationarity",
]

U64 = 2.0**-53  # unit roundoff of float64


def gamma(n: int) -> float:
    """γ_n = n u / (1 − n u): relative error of n roundings (Higham 2002, lemma 3.1)."""
    return n * U64 / (1 - n * U64)


def problem(d: npt.ArrayLike, c: npt.ArrayLike, clause: str) -> tuple[F64, F64]:
    """Checked D (m, k) and C (k, k)."""
    D = checks.finite(d, "d", clause, ndim=2)
    return D, checks.second_moment(c, D.shape[1], "c", clause)


def solvable(d: npt.ArrayLike, c: npt.ArrayLike, clause: str) -> tuple[F64, F64]:
    """Checked D and C that have an optimum."""
    D, C = problem(d, c, clause)
    return D, checks.definite(C, "c", clause)


def moment_in_error_space(D: F64, C: F64) -> F64:
    """M = D C Dᵀ, symmetric.  (1.4)"""
    M = D @ C @ D.T
    return np.asarray((M + M.T) / 2)


def slack(D: F64, C: F64) -> float:
    """Largest error of a sum of eigenvalues of M = D C Dᵀ as computed here in float64.  [E-5]  (E.7)

        √m γ_{2k+1} ‖ |D| |C| |D|ᵀ ‖_F + m² u ‖M‖_F

    M is computed with error ≤ γ_{2k+1} |D||C||D|ᵀ entrywise, and a sum of its eigenvalues moves by at most the
    trace norm of that (Mirsky), ≤ √m times Frobenius. eigh is backward stable: m u ‖M‖ for each of ≤ m values.
    """
    m, k = D.shape
    magnitude = np.linalg.norm(np.abs(D) @ np.abs(C) @ np.abs(D).T)
    return float(np.sqrt(m) * gamma(2 * k + 1) * magnitude + m**2 * U64 * np.linalg.norm(D @ C @ D.T))


def objective(d: npt.ArrayLike, c: npt.ArrayLike, /) -> float:
    """J = tr(D C Dᵀ), the output error of d on the inputs behind c.  [E-1]  (1.1)

    Shapes: d (m, k), c (k, k). Of a patch: ``objective(d - B @ A, c)``. Rounding may leave it a little below 0.

    >>> objective([[1.0, 2.0]], [[1.0, 0.0], [0.0, 10.0]])
    41.0
    """
    D, C = problem(d, c, "E-1")
    J = float(((D @ C) * D).sum())
    if -checks.INDEFINITE * np.linalg.norm(C) * np.linalg.norm(D) ** 2 > J:
        raise SpecError("E-1", f"c must be positive semi-definite, tr(D C Dᵀ) is {J:.3g}")
    return J


def eora(d: npt.ArrayLike, c: npt.ArrayLike, /, *, rank: int, split: Split = "balanced") -> LowRank[Array]:
    """The inverse-free form: no C^−½, no eigenvalue to repair, C may be singular.  [E-2]  (1.4)

        left:      B = U_r,           A = U_rᵀ D                                                        (E.1)
        balanced:  B = U_r s_r^½,     A = s_r^−½ U_rᵀ D,   factor 1 where s ≈ 0                          (E.2)

    Shapes: d (m, k), c (k, k) → B (m, r), A (r, k), 1 ≤ r ≤ min(m, k). Costs one m × m eigenproblem, not k × k.
    "Balanced" has the scaling of the published factors (section 1.2 step 5 there: B = U √s, A = √s Vᵀ S⁻¹); the
    product is the same. s ≈ 0 means s² ≤ max(m, k) 2⁻⁵² s_1². The patch also acts on null(C), where J is blind;
    the pseudo-inverse form (eora_published, "truncate") is 0 there. Both have the same J.
    Why: U_r Σ_r V_rᵀ S⁻¹ = U_r U_rᵀ (D S) S⁻¹ for every S of (1.3).

    >>> B, A = eora([[1.0, 0.0], [0.0, 2.0]], [[100.0, 0.0], [0.0, 1.0]], rank=1)
    >>> np.round(B @ A, 12).tolist()    # plain SVD would keep the 2
    [[1.0, 0.0], [0.0, 0.0]]
    """
    checks.choice(split, ("balanced", "left"), "split", "E-2")
    D, C = solvable(d, c, "E-2")
    r = checks.rank(rank, D.shape, "E-2")
    λ, U = np.linalg.eigh(moment_in_error_space(D, C))  # (1.4), ascending
    λ, U = λ[::-1][:r], U[:, ::-1][:, :r]
    B, A = U, U.T @ D  # (E.1)
    if split == "balanced":
        s = np.sqrt(np.where(λ > max(D.shape) * 2 * U64 * λ[0], λ, 1.0))
        B, A = B * np.sqrt(s), A / np.sqrt(s)[:, None]  # (E.2)
    return LowRank(B, A)


def error_spectrum(d: npt.ArrayLike, c: npt.ArrayLike, /) -> F64:
    """Singular values of D C^½, descending: what each rank buys.  [E-3]  (1.2)

    Shapes: d (m, k), c (k, k) → (min(m, k),). C^½ = Q L^½ of (1.3), eigenvalues below 0 (rounding) counted as 0.

    >>> error_spectrum([[1.0, 0.0], [0.0, 2.0]], [[100.0, 0.0], [0.0, 1.0]]).tolist()
    [10.0, 2.0]
    """
    D, C = solvable(d, c, "E-3")
    L, Q = np.linalg.eigh(C)
    return np.asarray(np.linalg.svd(D @ (Q * np.sqrt(np.maximum(L, 0))), compute_uv=False), np.float64)  # (1.2)


def optimum(d: npt.ArrayLike, c: npt.ArrayLike, /, *, rank: int) -> float:
    """min J over all patches of rank r: Σ_{i>r} s_i².  [E-3]  (1.2)

    Shapes: d (m, k), c (k, k), 1 ≤ r ≤ min(m, k) → a number, 0 at full rank.

    >>> optimum([[1.0, 0.0], [0.0, 2.0]], [[100.0, 0.0], [0.0, 1.0]], rank=1)
    4.0
    """
    r = checks.rank(rank, checks.finite(d, "d", "E-3", ndim=2).shape, "E-3")
    return float((error_spectrum(d, c)[r:] ** 2).sum())


def eora_published(
    d: npt.ArrayLike, c: npt.ArrayLike, /, *, rank: int, policy: EigenPolicy = "truncate"
) -> LowRank[Array]:
    """The authors' steps, with the two published treatments of eigenvalues that are not positive.  [E-4]

        C = Q diag(L) Qᵀ,   S = Q diag(L^½),   S⁻¹ = diag(L^−½) Qᵀ                                      (E.3)
        U, s, Vᵀ = svd(D S)                                                                             (E.4)
        B = U_r diag(s_r^½),   A = diag(s_r^½) V_rᵀ S⁻¹                                                 (E.5)

    Shapes: d (m, k), c (k, k) → B (m, r), A (r, k).

    ``nvlabs``: every L < 0 becomes the smallest L > 0. An exact 0 is left alone there and 1/√0 fills A with NaN;
    here it is refused, as is a C without a positive eigenvalue. A tiny positive L stays, and 1/√L amplifies.
    ``truncate``: L ≤ max(L_max, 0) · min(1, k 2⁻²³) has √L and 1/√L set to 0, a truncated pseudo-inverse.
    Source: steps 1-5 of NVlabs/EoRA ``eora.py``; "truncate" ModelCloud/GPTQModel ``eora.py`` (its #3014). Both cast
    S, S⁻¹ and D to float32 and take (E.4) there: everything here is float64. Prefer :func:`eora`.

    >>> eora_published([[1.0, 1.0]], [[1.0, 0.0], [0.0, 0.0]], rank=1, policy="nvlabs")
    Traceback (most recent call last):
    lowbit.reference.errors.SpecError: [E-4] c has an eigenvalue that is exactly 0: policy 'nvlabs' would divide by it
    """
    checks.choice(policy, ("nvlabs", "truncate"), "policy", "E-4")
    D, C = problem(d, c, "E-4")
    r = checks.rank(rank, D.shape, "E-4")
    L, Q = np.linalg.eigh(C)
    if policy == "nvlabs":
        if not (L > 0).any():
            raise SpecError("E-4", "c has no positive eigenvalue")
        if (L == 0).any():
            raise SpecError("E-4", "c has an eigenvalue that is exactly 0: policy 'nvlabs' would divide by it")
        L = np.where(L < 0, L[L > 0].min(), L)
        root, inverse = np.sqrt(L), 1 / np.sqrt(L)
    else:
        kept = max(L[-1], 0.0) * min(1.0, len(L) * 2.0**-23) < L
        root = np.sqrt(np.where(kept, L, 0.0))
        inverse = np.divide(1.0, root, out=np.zeros_like(root), where=kept)
    U, s, Vt = np.linalg.svd((D @ Q) * root, full_matrices=False)  # (E.3), (E.4)
    half = np.sqrt(s[:r])
    return LowRank(U[:, :r] * half, (half[:, None] * Vt[:r] * inverse) @ Q.T)  # (E.5)


def eora_certified(
    d: npt.ArrayLike, c: npt.ArrayLike, /, *, rank: int, tolerance: float = 1e-6, split: Split = "balanced"
) -> Compensation[Array]:
    """A patch with a proof: lower_bound ≤ min J ≤ objective ≤ (1 + tolerance) lower_bound + slack.  [E-5]

        lower_bound = max(0, Σ_{i>r} λ_i(M) − slack)                                                    (E.6)

    Shapes: d (m, k), c (k, k) → B (m, r), A (r, k), objective of the factors returned, lower_bound, method.
    The specification always solves exactly (method "exact"), so tolerance is met up to the slack; backends may
    iterate, must return a bound that holds for every input, and fall through to the exact solve with a
    RuntimeWarning when theirs does not close. The slack of (E.7) covers this function's own rounding.

    >>> eora_certified([[1.0, 0.0], [0.0, 2.0]], [[100.0, 0.0], [0.0, 1.0]], rank=2).method
    'exact'
    """
    tolerance = checks.number(tolerance, "tolerance", "E-5", low=0.0)
    D, C = solvable(d, c, "E-5")
    r = checks.rank(rank, D.shape, "E-5")
    B, A = eora(D, C, rank=r, split=split)
    λ = np.linalg.eigvalsh(moment_in_error_space(D, C))  # ascending, of m values the last r are captured
    bound = max(0.0, float(np.maximum(λ[: len(λ) - r], 0).sum()) - slack(D, C))  # (E.6)
    return Compensation(B, A, objective(D - B @ A, C), bound, "exact")


def stationarity(d: npt.ArrayLike, c: npt.ArrayLike, b: npt.ArrayLike, a: npt.ArrayLike, /) -> Stationarity:
    """How far a patch is from the first-order conditions of (1.1), relative; both 0 at the optimum.  [E-6]

        ∂J/∂A = 0:  Bᵀ (D − BA) C = 0       left  = ‖Bᵀ (D − BA) C‖ / (‖B‖ ‖D C‖)                        (E.8)
        ∂J/∂B = 0:  (D − BA) C Aᵀ = 0       right = ‖(D − BA) C Aᵀ‖ / (‖A‖ ‖D C‖)                        (E.9)

    Shapes: d (m, k), c (k, k), b (m, r), a (r, k); Frobenius norms. 0/0 is 0, x/0 is inf.

    >>> stationarity([[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]], [[0.0], [1.0]], [[0.0, 2.0]])
    Stationarity(left=0.0, right=0.0)
    """
    D, C = solvable(d, c, "E-6")
    B, A = checks.finite(b, "b", "E-6", ndim=2), checks.finite(a, "a", "E-6", ndim=2)
    if B.shape[1] != A.shape[0] or (B.shape[0], A.shape[1]) != D.shape:
        raise SpecError("E-6", f"b {B.shape} times a {A.shape} is not a patch for d {D.shape}")
    R = (D - B @ A) @ C

    def ratio(x: F64, y: F64) -> float:
        top, below = np.linalg.norm(x), np.linalg.norm(y) * np.linalg.norm(D @ C)
        return float(top / below) if below > 0 else (float("inf") if top > 0 else 0.0)

    return Stationarity(left=ratio(B.T @ R, B), right=ratio(R @ A.T, A))  # (E.8), (E.9)


def quantize_adapter(
    b: npt.ArrayLike,
    a: npt.ArrayLike,
    c: npt.ArrayLike,
    /,
    *,
    bits: int,
    method: AdapterMethod = "gptq",
    scheme: Scheme = "asymmetric",
    group_size: int | None = None,
    damping: float = 0.01,
    scale_dtype: ScaleDtype | None = None,
) -> QuantizedAdapter[Array]:
    """Both factors quantized as two ordinary linear layers, x → A x → B (A x).  [E-7]

        A with H = C,   B with H = A C Aᵀ        the un-quantized A: both are quantized at once          (E.10)

    Shapes: b (m, r), a (r, k), c (k, k) → QuantizedWeight over (m, r) and over (r, k).
    A group_size that exceeds or does not divide a factor's row falls back to the whole row (rows of B have length
    r). ``rtn`` rounds to nearest; its loss is that of gptq, ½ tr[Δ (H + damp I) Δᵀ], so that the two compare.
    The B of balanced or left EoRA factors sees A C Aᵀ = diag(s) or diag(s²), so there the two methods agree.
    Source: Liu et al. 2024; NVlabs/EoRA quantizes the adapter's linears of a block together.

    >>> quantize_adapter([[1.0], [2.0]], [[1.0, 0.5]], np.eye(2), bits=4, group_size=2).B.scale.shape
    (2, 1)
    """
    checks.choice(method, ("rtn", "gptq"), "method", "E-7")
    A = checks.finite(a, "a", "E-7", ndim=2)
    B = checks.finite(b, "b", "E-7", ndim=2)
    if B.shape[1] != A.shape[0]:
        raise SpecError("E-7", f"b {B.shape} times a {A.shape} is not a patch")
    C = checks.definite(checks.second_moment(c, A.shape[1], "c", "E-7"), "c", "E-7")
    if group_size is not None:
        group_size = checks.whole(group_size, "group_size", "E-7", low=1)

    def factor(w: F64, H: F64) -> QuantizedWeight[Array]:
        n = w.shape[1]
        g = group_size if group_size is not None and group_size <= n and n % group_size == 0 else None
        if method == "gptq":
            return gptq(w, H, bits=bits, scheme=scheme, group_size=g, damping=damping, scale_dtype=scale_dtype)
        s, z = uniform.fit_grid(
            w, bits=bits, scheme=scheme, granularity="group" if g else "row", group_size=g, scale_dtype=scale_dtype
        )
        codes = uniform.quantize(w, s, z, bits=bits, scheme=scheme)
        q = uniform.dequantize(codes, s, z)
        index: Array = (np.arange(n) // (g or max(n, 1))).astype(np.int32)
        return QuantizedWeight(codes, s, z, index, q, quadratic_loss(w, q, H, damping))

    return QuantizedAdapter(B=factor(B, moment_in_error_space(A, C)), A=factor(A, C))  # (E.10)


def residual_moment(c: npt.ArrayLike, a: npt.ArrayLike, /) -> F64:
    """What a patch with rows ``a`` leaves of the second moment, when its B is best for the error.  [E-8]

        H = C − C Aᵀ (A C Aᵀ)⁺ A C,     tr(D H Dᵀ) = min over B of tr[(D − BA) C (D − BA)ᵀ]            (E.11)

    Shapes: c (k, k), a (r, k) → H (k, k), symmetric. A quantizer that minimises tr(D H Dᵀ) spends nothing on the
    directions that the patch restores anyway. Only the row space of A counts: rows are first scaled to energy
    (A C Aᵀ)_ii = 1, those with an energy up to 2⁻⁴⁰ |a| |C| |a|ᵀ left out; then eigenvalues of A C Aᵀ up to 2⁻³⁰
    count as 0. H_jj is at least k 2⁻⁵² C_jj: 0 would declare a channel dead, and only C knows dead channels.
    Source: least squares for B in (1.1), a Schur complement; the use as a Hessian is not in a paper known to us.

    >>> residual_moment([[100.0, 0.0], [0.0, 1.0]], [[1.0, 1.0]]).round(3).tolist()    # [1, 1] serves channel 0
    [[0.99, -0.99], [-0.99, 0.99]]
    """
    A = checks.finite(a, "a", "E-8", ndim=2)
    C = checks.definite(checks.second_moment(c, A.shape[1], "c", "E-8"), "c", "E-8")
    energy, bulk = ((A @ C) * A).sum(axis=1), ((np.abs(A) @ np.abs(C)) * np.abs(A)).sum(axis=1)
    seen = energy > 2.0**-40 * bulk
    N = A[seen] / np.sqrt(energy[seen])[:, None]
    λ, V = np.linalg.eigh(moment_in_error_space(N, C))
    kept = λ > 2.0**-30
    G = (V[:, kept].T @ N @ C) / np.sqrt(λ[kept])[:, None]
    H: F64 = C - G.T @ G  # (E.11)
    np.fill_diagonal(H, np.maximum(H.diagonal(), len(C) * 2 * U64 * C.diagonal()))
    return H
