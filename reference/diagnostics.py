"""W: diagnostics. What quantization did to a network, read from its maps, its outputs and its curvature.

    ranking and cover length    did attention keep its order                                            (W.14), (W.15)
    ranges                      how far the attention output spreads                                    (W.16)
    norms                       who is attended to, and what that moves                                 (W.17)
    eigenvalues                 how sharp the loss is, each with a bound on its error                   (W.18), (W.19)

Shapes: heads H, tokens n, features d. Maps are probabilities, queries by keys; other leading axes belong to the caller.

Sources: Kim et al. 2022 (arXiv 2211.11014) and the notebooks of its code for what is measured and how it is summed;
Liu et al. 2021, Post-training quantization for vision transformer (arXiv 2106.14156), for the ranking loss;
Kobayashi et al. 2020, Attention is not only a weight (arXiv 2004.10102), for norms; Yao et al. 2020, PyHessian (arXiv
1912.07145), for the power iteration.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from . import checks
from .checks import F64, Array
from .errors import SpecError
from .types import PAIRS, ROWS, STOPS, AttentionNorms, EigenStop, Eigenvalues, PairRule, RowRule, TokenRange

__all__ = ["attention_norms", "attention_range", "cover_length", "power_eigenvalues", "ranking_loss"]

SYMMETRY = 2.0**-12
"""Largest accepted |H − Hᵀ| / max|H| of an explicit matrix: half the digits of float32."""
LOST = 2.0**-20
"""A start whose part outside of the earlier vectors is this short is refused: in float32 nothing of it is left."""


def map_pair(student: npt.ArrayLike, teacher: npt.ArrayLike, clause: str) -> tuple[F64, F64]:
    """Maps (H, n, n) of both networks."""
    S, T = (checks.finite(x, n, clause, ndim=3) for n, x in (("student", student), ("teacher", teacher)))
    if S.shape != T.shape or S.shape[1] != S.shape[2]:
        raise SpecError(clause, f"maps must be (H, n, n) in both networks, got {S.shape} and {T.shape}")
    return S, T


# -- order of attention ------------------------------------------------------------------------------------------------


def ranking_loss(student: npt.ArrayLike, teacher: npt.ArrayLike, /, *, pairs: PairRule = "published") -> F64:
    """How far the student's order of keys is from the teacher's, per head.  [W-6]

        Σ_r Σ_{(i,j)} max(0, −(s_ri − s_rj) sign(t_ri − t_rj))                                          (W.14)

        published   i = 0 … n − 2, j = 1 … n − 1
        once        i < j

    Shapes: maps student, teacher (H, n, n) → float (H,).
    A pair that both networks order alike costs nothing, one that they do not its difference in the student, one that is
    equal in the teacher nothing. There is no margin and no norm. The published ranges count most pairs twice, those
    with the first or the last key once.

    >>> ranking_loss([[[1.0, 2.0, 4.0]] * 3], [[[3.0, 2.0, 1.0]] * 3], pairs="once").tolist()
    [18.0]
    >>> ranking_loss([[[1.0, 2.0, 4.0]] * 3], [[[3.0, 2.0, 1.0]] * 3]).tolist()
    [18.0]
    """
    checks.choice(pairs, PAIRS, "pairs", "W-6")
    S, T = map_pair(student, teacher, "W-6")
    n = S.shape[1]
    i, j = np.arange(n)[:, None], np.arange(n)[None, :]
    counted = i < j if pairs == "once" else (i < n - 1) & (j > 0)
    wrong = -(S[..., :, None] - S[..., None, :]) * np.sign(T[..., :, None] - T[..., None, :])
    return np.asarray((np.maximum(wrong, 0.0) * counted).sum(axis=(1, 2, 3)))  # (W.14)


def cover_length(
    student: npt.ArrayLike, teacher: npt.ArrayLike, /, *, top: int = 5, rows: RowRule = "published"
) -> F64:
    """How much of the student's order it takes to cover the teacher's top keys, per head.  [W-7, W-7a]

        (1/n) Σ_r (1/n) max over the teacher's top keys of their place 0 … n − 1 in the student's order  (W.15)

        published   r = 0 … n − 2, divided by n all the same
        all         r = 0 … n − 1

    Shapes: maps student, teacher (H, n, n), 1 ≤ top ≤ n → float (H,).
    Both orders are descending, equal values by rising index [W-7a]. 0 is out of reach: with top = k a row
    adds at least (k − 1) / n.

    >>> cover_length([[[4.0, 3.0, 2.0]] * 3], [[[0.0, 1.0, 1.0]] * 3], top=1, rows="all").tolist()
    [0.3333333333333333]
    """
    checks.choice(rows, ROWS, "rows", "W-7")
    S, T = map_pair(student, teacher, "W-7")
    n = S.shape[1]
    if n == 0:
        return np.zeros(len(S))
    k = checks.whole(top, "top", "W-7", low=1, high=n)
    leading = np.argsort(-T, axis=-1, kind="stable")[..., :k]
    place = np.argsort(np.argsort(-S, axis=-1, kind="stable"), axis=-1, kind="stable")
    worst = np.take_along_axis(place, leading, axis=-1).max(axis=-1)  # (H, n)
    used = worst if rows == "all" else worst[:, :-1]
    return np.asarray(used.sum(axis=1) / n**2)  # (W.15)


# -- outputs -----------------------------------------------------------------------------------------------------------


def attention_range(x: npt.ArrayLike, /) -> TokenRange[Array]:
    """Least and largest feature of every token.  [W-8]

        low = min_d Y_nd,  high = max_d Y_nd                                                            (W.16)

    Shapes: x (n, d), d ≥ 1 → low, high (n,).
    Taken of the attention output Y of one layer, teacher and student side by side: a student whose range has grown at
    the separator token has learnt to shout, one whose range has shrunk is clipped.

    >>> attention_range([[1.0, -3.0], [2.0, 2.0]])
    TokenRange(low=array([-3.,  2.]), high=array([1., 2.]))
    """
    Y = checks.finite(x, "x", "W-8", ndim=2)
    if Y.shape[1] == 0:
        raise SpecError("W-8", "x needs at least one feature")
    return TokenRange(Y.min(axis=1), Y.max(axis=1))  # (W.16)


def attention_norms(
    maps: npt.ArrayLike,
    x: npt.ArrayLike,
    w_v: npt.ArrayLike,
    b_v: npt.ArrayLike | None,
    w_o: npt.ArrayLike,
    /,
) -> AttentionNorms[Array]:
    """How much a token is attended to, and how much that moves, per head.  [W-9]

        f_h(x_k) = (x_k W_V,hᵀ + b_V,h) W_O,hᵀ
        probability_hk = mean_i α_hik,   value_hk = ‖f_h(x_k)‖,   weighted_hk = mean_i ‖α_hik f_h(x_k)‖     (W.17)

    Shapes: maps (H, n, n), x (n, d), w_v (v, d), b_v (v,) or None, w_o (m, v) with H dividing v, head h owning the
    rows h v/H … of w_v and the same columns of w_o → probability, value, weighted (H, n).
    A head may look at a separator all the time and take next to nothing from it: probability is large, weighted is not.
    Quantization of scores shows in ``probability``, that of values and of the output matrix in ``value``.

    >>> found = attention_norms([[[0.25, 0.75]] * 2], np.eye(2), [[3.0, 0.0]], None, [[1.0], [0.0]])
    >>> found.value.tolist(), found.weighted.tolist()
    ([[3.0, 0.0]], [[0.75, 0.0]])
    """
    given = {"maps": (maps, 3), "x": (x, 2), "w_v": (w_v, 2), "w_o": (w_o, 2)}
    α, X, V, O = (checks.finite(a, name, "W-9", ndim=ndim) for name, (a, ndim) in given.items())
    bias = np.zeros(len(V)) if b_v is None else checks.finite(b_v, "b_v", "W-9", ndim=1)
    H, n = α.shape[:2]
    if α.shape != (H, n, n) or X.shape != (n, V.shape[1]) or bias.shape != (len(V),) or O.shape[1] != len(V):
        shapes = f"maps {α.shape}, x {X.shape}, w_v {V.shape}, b_v {bias.shape} and w_o {O.shape}"
        raise SpecError("W-9", f"{shapes} are not of one layer")
    if H == 0 or len(V) % H:
        raise SpecError("W-9", f"{H} heads do not divide {len(V)} values")
    values = (X @ V.T + bias).reshape(n, H, len(V) // H)
    f = np.einsum("nhd,mhd->hnm", values, O.reshape(len(O), H, len(V) // H))
    size = np.sqrt((f**2).sum(axis=-1))
    attended = np.abs(α).mean(axis=1) if n else np.zeros((H, 0))
    return AttentionNorms(α.mean(axis=1) if n else np.zeros((H, 0)), size, attended * size)  # (W.17)


# -- curvature ---------------------------------------------------------------------------------------------------------


def as_operator(operator: npt.ArrayLike | Callable[[F64], npt.ArrayLike], p: int) -> Callable[[F64], F64]:
    """v → H v, of a function or of a symmetric matrix; every product is looked at."""
    if callable(operator):

        def apply(v: F64) -> F64:
            product = checks.finite(operator(v.copy()), "product", "W-10", ndim=1)
            if product.shape != (p,):
                raise SpecError("W-10", f"operator must answer shape {(p,)}, got {product.shape}")
            return product

        return apply
    H = checks.finite(operator, "operator", "W-10", ndim=2)
    if H.shape != (p, p):
        raise SpecError("W-10", f"operator must have shape {(p, p)} of the starts, got {H.shape}")
    if p and np.abs(H - H.T).max() > SYMMETRY * np.abs(H).max():
        raise SpecError("W-10", "operator must be symmetric")
    return lambda v: np.asarray(H @ v)


def power_eigenvalues(
    operator: npt.ArrayLike | Callable[[F64], npt.ArrayLike],
    start: npt.ArrayLike,
    /,
    *,
    iterations: int = 100,
    tolerance: float = 1e-3,
    stop: EigenStop = "change",
    shift: float = 0.0,
) -> Eigenvalues[Array]:
    """Eigenvalues of largest magnitude of a symmetric operator, by power iteration.  [W-10, W-10a, W-10b, W-10c]

        v ← start_k / ‖·‖
        repeat:  v ← (v − Σ_{i<k} v_i v_iᵀ v) / ‖·‖
                 y = H v − shift v,   μ = vᵀ y,   r = ‖y − μ v‖
                 stop?  else v ← y / ‖y‖                                                                (W.18)
        value_k = μ + shift,  residual_k = r

        change     stop when |μ − μ_before| < tolerance (|μ_before| + 1e-6), from the second step on
        residual   stop when r ≤ tolerance |μ|

    At most ``iterations`` steps, which are counted. What comes back is a vector with its own Rayleigh quotient, however
    the iteration ended, and a certificate: H has an eigenvalue λ with

        |λ − value_k| ≤ residual_k / ‖v_k‖                                                              (W.19)

    ``change`` is the published rule. It stops early where two eigenvalues are close, and its residual then tells so;
    ``residual`` asks for the certificate itself. shift moves the spectrum: with the value found first as shift, the
    next call finds the other end of it. Later starts find the next eigenvalues in magnitude of H − shift, orthogonal to
    the vectors before.

    Shapes: operator a function (p,) → (p,), or a symmetric (p, p); start (count, p), count ≤ p, no row of zeros →
    value, residual (count,), vector (count, p), steps int32 (count,).
    The published analysis takes 3 values of the Hessian of a task's loss, 100 iterations, 10⁻³, one sentence at a time
    from Gaussian starts; draw those with ``philox_normal``. Through a straight-through estimator the "Hessian" is that
    of the surrogate: second derivatives pass a rounding as if it were the identity.

    >>> power_eigenvalues(np.diag([4.0, -1.0]), [[1.0, 0.0], [2.0, 0.0]])
    Traceback (most recent call last):
    lowbit.reference.errors.SpecError: [W-10] start 1 lies in the span of the vectors before it
    >>> power_eigenvalues(np.diag([4.0, -1.0]), np.eye(2)).value.tolist()
    [4.0, -1.0]
    """
    checks.choice(stop, STOPS, "stop", "W-10")
    most = checks.whole(iterations, "iterations", "W-10", low=1)
    ε = checks.number(tolerance, "tolerance", "W-10", low=0.0)
    σ = checks.number(shift, "shift", "W-10", low=-np.inf)
    starts = checks.finite(start, "start", "W-10", ndim=2)
    count, p = starts.shape
    if count > p:
        raise SpecError("W-10", f"{count} starts for {p} dimensions")
    apply = as_operator(operator, p)
    value, residual, vectors = np.zeros(count), np.zeros(count), np.zeros((count, p))
    steps = np.zeros(count, np.int32)
    for k, first in enumerate(starts):
        if not first.any():
            raise SpecError("W-10", f"start {k} is zero")
        v, before = first / np.sqrt(first @ first), np.inf
        found = vectors[:k]
        for step in range(1, most + 1):
            free = v - found.T @ (found @ v)
            free = free - found.T @ (found @ free)  # once more: what cancelled left its rounding behind
            length = float(np.sqrt(free @ free))
            if length <= LOST and step == 1:
                raise SpecError("W-10", f"start {k} lies in the span of the vectors before it")
            if length <= LOST:  # H takes the rest of the space to 0: y was rounding
                break
            v = free / length
            y = apply(v) - σ * v
            μ = float(v @ y)
            r, size = y - μ * v, float(np.sqrt(y @ y))
            value[k], residual[k], vectors[k], steps[k] = μ + σ, np.sqrt(r @ r), v, step
            if stop == "residual":
                done = residual[k] <= ε * abs(μ)
            else:
                done = abs(μ - before) < ε * (abs(before) + 1e-6) if np.isfinite(before) else False
            if done or size == 0:
                break
            v, before = y / size, μ  # (W.18)
    return Eigenvalues(value, residual, vectors, steps)
