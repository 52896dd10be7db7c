"""D: DoRA, a weight taken apart into a magnitude per output and a direction, the direction updated by low rank.

    V = W + s B A,   c_i = ‖V_i‖,   W'_i = (m_i / c_i) V_i                                               (2.1), (2.2)

W (m, k) frozen, B (m, r) and A (r, k) trained, m (m,) trained, s the scaling, α / r (rsLoRA: α / √r), *inside* the
norm. The paper writes the weight as (in, out) and takes norms of columns: here, as in nn.Linear, they are rows, one per
*output*. A row with c_i = 0 has no direction; its factor m_i / c_i is 1, so that W' and all gradients stay finite.

``layout`` says how weight and factors are stored, and which axes a row runs over:

    linear      w (m, k),          b (m, r),             a (r, k)             nn.Linear
    transposed  w (k, m),          b (m, r),             a (r, k)             fan-in-fan-out: GPT-2 Conv1D, nn.Embedding
    conv        w (m, c, *kernel), b (m, r, 1, ..., 1),  a (r, c, *kernel)    nn.Conv: a row is a whole output channel

For an embedding k is the vocabulary and m the feature axis: one magnitude per *feature*, not per token. Factors of
rank 0 leave magnitude-only training, W' = (m / ‖W‖) W. A quantized base (QDoRA) is its dequantized weight everywhere,
at initialisation too, so that step 0 gives the output of the *quantized* model. Deliberately not here: the training
loop. Source: Liu et al. 2024, DoRA (arXiv 2402.09353); equations are numbered as on the chapter page.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from . import checks, low_rank
from .checks import F64, Array
from .errors import SpecError
from .types import DecompositionChange, DoraGradient, DoraLayout, DoraMerged, DvoraGradient, LoraRefit, LowRank

__all__ = [
    "decomposition_change",
    "dora_forward",
    "dora_gradient",
    "dora_magnitude",
    "dora_merge",
    "dora_norm",
    "dora_to_lora",
    "dora_unmerge",
    "dora_weight",
    "dvora_factors",
    "dvora_gradient",
    "factored_norm",
]

LAYOUTS = ("linear", "transposed", "conv")


def unfolded(w: npt.ArrayLike, name: str, layout: DoraLayout, clause: str) -> F64:
    """A stored weight as rows (m, k)."""
    checks.choice(layout, LAYOUTS, "layout", clause)
    W = checks.finite(w, name, clause, ndim=None if layout == "conv" else 2)
    if layout != "conv":
        return np.ascontiguousarray(W.T) if layout == "transposed" else W
    if W.ndim < 3:
        raise SpecError(clause, f"{name} of a convolution must have 3 dimensions or more, got shape {W.shape}")
    return W.reshape(len(W), math.prod(W.shape[1:]))


def folded(W: F64, shape: tuple[int, ...], layout: DoraLayout) -> F64:
    """Rows (m, k) as a stored weight of the given shape."""
    return np.ascontiguousarray(W.T if layout == "transposed" else W.reshape(shape))


def problem(
    w: npt.ArrayLike,
    b: npt.ArrayLike,
    a: npt.ArrayLike,
    scaling: float,
    layout: DoraLayout,
    clause: str,
    name: str = "w",
) -> tuple[F64, F64, F64]:
    """Checked W (m, k), s B (m, r), A (r, k): the scaling is folded into B."""
    scaling = checks.number(scaling, "scaling", clause, low=-math.inf)
    W, dims = unfolded(w, name, layout, clause), np.ndim(w)
    B, A = checks.finite(b, "b", clause, ndim=dims), checks.finite(a, "a", clause, ndim=dims)
    r, m = len(A), len(W)
    wanted = (r, *np.shape(w)[1:]) if layout == "conv" else (r, W.shape[1])
    if B.shape != (m, r, *(1,) * (dims - 2)) or A.shape != wanted:
        raise SpecError(
            clause, f"b {B.shape} times a {A.shape} is no update of {name} {np.shape(w)} in layout {layout!r}"
        )
    return W, scaling * B.reshape(m, r), A.reshape(r, W.shape[1])


def per_row(x: npt.ArrayLike, name: str, m: int, clause: str) -> F64:
    """A checked vector with one entry per output."""
    v = checks.finite(x, name, clause, ndim=1)
    if v.shape != (m,):
        raise SpecError(clause, f"{name} must have shape {(m,)}, got {v.shape}")
    return v


def quotient(magnitude: F64, c: F64) -> F64:
    """g = m / c, and 1 for a row without direction."""
    return np.divide(magnitude, c, out=np.ones_like(c), where=c > 0)


def dora_magnitude(w: npt.ArrayLike, /, *, layout: DoraLayout = "linear") -> F64:
    """The magnitude to start from: the norm of every output's weights.  [D-1]

        m_i = ‖W_i‖                                                                                     (2.8)

    Shapes: w as ``layout`` says → (m,). Sums in float64 whatever the dtype. With it and BA = 0 the quotient m / c is
    exactly 1, so nothing changes at the start; a magnitude rounded to half precision would not have this.

    >>> dora_magnitude([[3.0, 4.0], [0.0, 0.0]]).tolist()
    [5.0, 0.0]
    """
    return np.asarray(np.sqrt((unfolded(w, "w", layout, "D-1") ** 2).sum(axis=1)))  # (2.8)


def dora_norm(
    w: npt.ArrayLike, b: npt.ArrayLike, a: npt.ArrayLike, /, *, scaling: float, layout: DoraLayout = "linear"
) -> F64:
    """The norm that divides: that of the *updated* row, with the scaling inside.  [D-2]

        c_i = ‖W_i + s (B A)_i‖                                                                         (2.2)

    Shapes: w, b, a as ``layout`` says → (m,). Never less accurate than forming V in the dtype given, also where BA
    nearly cancels W. With b = 0 it is dora_magnitude(w) to the last bit.

    >>> dora_norm([[3.0, 0.0]], [[1.0]], [[0.0, 2.0]], scaling=2.0).tolist()    # ‖W‖ would be 3
    [5.0]
    """
    W, B, A = problem(w, b, a, scaling, layout, "D-2")
    return np.asarray(np.sqrt(((W + B @ A) ** 2).sum(axis=1)))  # (2.2)


def factored_norm(
    w: npt.ArrayLike, square_norm: npt.ArrayLike, b: npt.ArrayLike, a: npt.ArrayLike, /, *, scaling: float
) -> F64:
    """The same norm without an (m, k) temporary, from ‖W_i‖², which never changes and is kept.  [D-3]

        c_i² = ‖W_i‖² + 2 s ⟨B_i, (W Aᵀ)_i⟩ + s² B_i (A Aᵀ) B_iᵀ,   not below 0                          (2.6)

    Shapes: w (m, k), square_norm (m,) ≥ 0, b (m, r), a (r, k) → (m,). 2 m k r operations, memory m r.
    All sums in float64 whatever the dtype: where BA nearly cancels W, (2.6) loses every digit of float32 and turns
    negative in a third of the rows. An error of ε ‖W_i‖² in c² still means √ε ‖W_i‖ in c; dora_norm has no such loss.

    >>> factored_norm([[3.0, 0.0]], [9.0], [[1.0]], [[0.0, 2.0]], scaling=2.0).tolist()
    [5.0]
    """
    W, B, A = problem(w, b, a, scaling, "linear", "D-3")
    square = per_row(square_norm, "square_norm", len(W), "D-3")
    if (square < 0).any():
        raise SpecError("D-3", f"square_norm must be >= 0, got {square.min()}")
    square += 2 * (B * (W @ A.T)).sum(axis=1) + (B @ (A @ A.T) * B).sum(axis=1)  # (2.6)
    return np.asarray(np.sqrt(np.maximum(square, 0)))


def dora_weight(
    w: npt.ArrayLike,
    b: npt.ArrayLike,
    a: npt.ArrayLike,
    magnitude: npt.ArrayLike,
    /,
    *,
    scaling: float,
    layout: DoraLayout = "linear",
) -> F64:
    """The weight that the layer applies.  [D-4]

        V = W + s B A,   W'_i = (m_i / c_i) V_i,   factor 1 where c_i = 0                                (2.1), (2.2)

    Shapes: w, b, a as ``layout`` says, magnitude (m,) → that of w. ‖W'_i‖ = |m_i|, and V → t V changes nothing, t > 0.
    A convolution or an embedding is the ordinary one with W'.
    Source: Liu et al. 2024, eq. 5. The published code divides 0 / 0 in a zero row and fills the output with NaN.

    >>> dora_weight([[3.0, 4.0], [0.0, 0.0]], [[0.0], [0.0]], [[1.0, 1.0]], [10.0, 0.0], scaling=1.0).tolist()
    [[6.0, 8.0], [0.0, 0.0]]
    """
    W, B, A = problem(w, b, a, scaling, layout, "D-4")
    m = per_row(magnitude, "magnitude", len(W), "D-4")
    V = W + B @ A  # (2.1)
    c = np.sqrt((V**2).sum(axis=1))
    return folded(quotient(m, c)[:, None] * V, np.shape(w), layout)


def dora_forward(
    x: npt.ArrayLike,
    dropped: npt.ArrayLike,
    w: npt.ArrayLike,
    bias: npt.ArrayLike,
    b: npt.ArrayLike,
    a: npt.ArrayLike,
    magnitude: npt.ArrayLike,
    /,
    *,
    scaling: float,
    layout: DoraLayout = "linear",
) -> F64:
    """Output of a layer whose base sees x and whose update sees x after dropout.  [D-5]

        y = x Wᵀ + bias + (g − 1) ∘ (x̃ Wᵀ) + g ∘ s (x̃ Aᵀ) Bᵀ,   g = m / c                                (2.3)

    Shapes: x and dropped (..., k), w, b, a as ``layout`` says (linear or transposed), bias and magnitude (m,) →
    (..., m). Without dropout pass x twice: then y = x W'ᵀ + bias. The bias is not scaled. Dropout reaches the base
    term (g − 1) x̃ Wᵀ too; reusing x Wᵀ there is right only when x̃ is x.

    >>> x, w, b, a = [[1.0, 1.0]], [[3.0, 4.0]], [[0.0]], [[1.0, 1.0]]
    >>> dora_forward(x, [[2.0, 0.0]], w, [0.5], b, a, [10.0], scaling=1.0).tolist()    # 7 + 0.5 + (2 - 1) 6
    [[13.5]]
    """
    if layout == "conv":
        raise SpecError("D-5", "layout 'conv' has no matrix product: convolve with dora_weight(...)")
    W, B, A = problem(w, b, a, scaling, layout, "D-5")
    m, shift = per_row(magnitude, "magnitude", len(W), "D-5"), per_row(bias, "bias", len(W), "D-5")
    X, dropped_x = checks.finite(x, "x", "D-5"), checks.finite(dropped, "dropped", "D-5")
    if X.shape != dropped_x.shape or X.ndim < 1 or X.shape[-1] != W.shape[1]:
        raise SpecError("D-5", f"x {X.shape} and dropped {dropped_x.shape} must be equal and end in {W.shape[1]}")
    g = quotient(m, np.sqrt(((W + B @ A) ** 2).sum(axis=1)))
    return np.asarray(X @ W.T + shift + (g - 1) * (dropped_x @ W.T) + g * (dropped_x @ A.T @ B.T))  # (2.3)


def dora_gradient(
    grad: npt.ArrayLike,
    w: npt.ArrayLike,
    b: npt.ArrayLike,
    a: npt.ArrayLike,
    magnitude: npt.ArrayLike,
    /,
    *,
    scaling: float,
    detach: bool = True,
    layout: DoraLayout = "linear",
) -> DoraGradient[Array]:
    """From the gradient of W' to those of B, A and m.  [D-6]

        detach:   dV_i = g_i G_i                          c is a constant of the backward pass            (2.5)
        full:     dV_i = g_i (G_i − ⟨G_i, v_i⟩ v_i),      v_i = V_i / c_i, so that dV_i ⟂ V_i              (2.4)
        both:     dm_i = ⟨G_i, v_i⟩,   dB = s dV Aᵀ,   dA = s Bᵀ dV                                       (2.9)

    Shapes: grad as w, the rest as in dora_weight → B, A as given, magnitude (m,). In a linear layer G = (dL/dy)ᵀ x̃, and
    dL/dx = (dL/dy) W' without dropout. A row with c = 0 has v = 0 and g = 1: it can leave zero through B.
    ``detach`` is the paper's §4.3 ("DoRA-simple"), the default everywhere: c is recomputed in every forward pass, only
    its gradient is cut, so (2.5) is the derivative of the loss with c frozen, not of the loss.

    >>> found = dora_gradient([[1.0, 0.0]], [[3.0, 4.0]], [[1.0]], [[0.0, 0.0]], [5.0], scaling=1.0)
    >>> found.A.tolist(), found.magnitude.tolist()
    ([[1.0, 0.0]], [0.6])
    >>> full = dora_gradient([[1.0, 0.0]], [[3.0, 4.0]], [[1.0]], [[0.0, 0.0]], [5.0], scaling=1.0, detach=False)
    >>> np.round(full.A, 12).tolist()    # orthogonal to (3, 4)
    [[0.64, -0.48]]
    """
    detach = checks.flag(detach, "detach", "D-6")
    W, B, A = problem(w, b, a, scaling, layout, "D-6")
    m, G = per_row(magnitude, "magnitude", len(W), "D-6"), unfolded(grad, "grad", layout, "D-6")
    if np.shape(grad) != np.shape(w):
        raise SpecError("D-6", f"grad must have shape {np.shape(w)}, got {np.shape(grad)}")
    V = W + B @ A  # (2.1)
    c = np.sqrt((V**2).sum(axis=1))
    v = np.divide(V, c[:, None], out=np.zeros_like(V), where=c[:, None] > 0)
    dm = (G * v).sum(axis=1)
    dV = quotient(m, c)[:, None] * (G if detach else G - dm[:, None] * v)  # (2.5), (2.4)
    return DoraGradient((scaling * dV @ A.T).reshape(np.shape(b)), (B.T @ dV).reshape(np.shape(a)), dm)  # (2.9)


def dora_merge(
    w: npt.ArrayLike,
    b: npt.ArrayLike,
    a: npt.ArrayLike,
    magnitude: npt.ArrayLike,
    /,
    *,
    scaling: float,
    layout: DoraLayout = "linear",
) -> DoraMerged[Array]:
    """W' together with the factors that lead back.  [D-7]

        W' = diag(g) V,   g = m / c                                                                     (2.10)

    Shapes: as in dora_weight → weight as w, factor (m,). The factor must be kept: c cannot be found again in W', whose
    rows have norm |m|. Adapters merged one after the other do not commute, each normalises what the others left.

    >>> dora_merge([[3.0, 4.0]], [[0.0]], [[1.0, 1.0]], [10.0], scaling=1.0).factor.tolist()
    [2.0]
    """
    W, B, A = problem(w, b, a, scaling, layout, "D-7")
    m = per_row(magnitude, "magnitude", len(W), "D-7")
    V = W + B @ A  # (2.1)
    g = quotient(m, np.sqrt((V**2).sum(axis=1)))
    return DoraMerged(folded(g[:, None] * V, np.shape(w), layout), g)  # (2.10)


def dora_unmerge(
    merged: npt.ArrayLike,
    b: npt.ArrayLike,
    a: npt.ArrayLike,
    factor: npt.ArrayLike,
    /,
    *,
    scaling: float,
    layout: DoraLayout = "linear",
) -> F64:
    """The base weight back, with the factors of the merge: the inverse, up to one rounding per step.  [D-7]

        W = diag(1 / g) W' − s B A                                                                      (2.11)

    Shapes: merged as w, b, a as ``layout`` says, factor (m,) → that of merged. A factor of 0 (m_i = 0) has erased its
    row, and is refused: the published code divides by it and answers NaN.

    >>> dora_unmerge([[6.0, 8.0]], [[0.0]], [[1.0, 1.0]], [2.0], scaling=1.0).tolist()
    [[3.0, 4.0]]
    """
    W, B, A = problem(merged, b, a, scaling, layout, "D-7", "merged")
    g = per_row(factor, "factor", len(W), "D-7")
    if not g.all():
        row = int(np.flatnonzero(g == 0)[0])
        raise SpecError("D-7", f"factor is 0 in row {row}: the merge has erased that row")
    return folded(W / g[:, None] - B @ A, np.shape(merged), layout)  # (2.11)


def dvora_factors(
    b: npt.ArrayLike, a: npt.ArrayLike, row_scale: npt.ArrayLike, rank_scale: npt.ArrayLike, /
) -> LowRank[Array]:
    """DVoRA: the direction is updated by VeRA, two trained vectors around frozen random factors.  [D-8]

        B' = diag(b) B,   A' = diag(d) A,   and DoRA with B', A' and s = 1                               (2.12)

    Shapes: b (m, r), a (r, k), row_scale (m,), rank_scale (r,) → B' (m, r), A' (r, k). All layers share
    B and A; row_scale starts at 0, so W' = W at first. Published without code; the start of d is VeRA's.

    >>> dvora_factors([[1.0], [2.0]], [[3.0, 4.0]], [0.5, 1.0], [2.0]).A.tolist()
    [[6.0, 8.0]]
    """
    B, A, row, rank = _vera(b, a, row_scale, rank_scale)
    return LowRank(row[:, None] * B, rank[:, None] * A)  # (2.12)


def dvora_gradient(
    grad_b: npt.ArrayLike,
    grad_a: npt.ArrayLike,
    b: npt.ArrayLike,
    a: npt.ArrayLike,
    /,
) -> DvoraGradient[Array]:
    """From the gradients of B' and A', as dora_gradient gives them, to those of the two vectors.  [D-8]

        db_i = Σ_j dB'_ij B_ij,   dd_j = Σ_l dA'_jl A_jl                                                  (2.13)

    Shapes: grad_b and b (m, r), grad_a and a (r, k) → row_scale (m,), rank_scale (r,).

    >>> dvora_gradient([[1.0], [1.0]], [[1.0, 1.0]], [[1.0], [2.0]], [[3.0, 4.0]]).rank_scale.tolist()
    [7.0]
    """
    B, A = checks.finite(b, "b", "D-8", ndim=2), checks.finite(a, "a", "D-8", ndim=2)
    dB, dA = checks.finite(grad_b, "grad_b", "D-8", ndim=2), checks.finite(grad_a, "grad_a", "D-8", ndim=2)
    if dB.shape != B.shape or dA.shape != A.shape or B.shape[1] != len(A):
        shapes = f"{dB.shape}, {dA.shape}, {B.shape}, {A.shape}"
        raise SpecError("D-8", f"grad_b, grad_a, b, a must be (m, r), (r, k), (m, r), (r, k), got {shapes}")
    return DvoraGradient((dB * B).sum(axis=1), (dA * A).sum(axis=1))  # (2.13)


def _vera(b: npt.ArrayLike, a: npt.ArrayLike, row: npt.ArrayLike, rank: npt.ArrayLike) -> tuple[F64, F64, F64, F64]:
    B, A = checks.finite(b, "b", "D-8", ndim=2), checks.finite(a, "a", "D-8", ndim=2)
    if B.shape[1] != len(A):
        raise SpecError("D-8", f"b {B.shape} times a {A.shape} is not an update")
    return B, A, per_row(row, "row_scale", len(B), "D-8"), per_row(rank, "rank_scale", len(A), "D-8")


def decomposition_change(w: npt.ArrayLike, start: npt.ArrayLike, /) -> DecompositionChange:
    """How far training moved magnitudes and directions, averaged over the outputs.  [D-9]

        ΔM = mean_i |‖W_i‖ − ‖W⁰_i‖|,   ΔD = mean_i (1 − cos(W_i, W⁰_i))                                  (2.7)

    Shapes: w and start (m, k) → two numbers, ΔM ≥ 0 and 0 ≤ ΔD ≤ 2; 0 for no outputs. Two zero rows have the same
    direction, a zero row and another are at right angles. Their correlation over layers and checkpoints is what the
    paper draws: negative for full fine-tuning and DoRA, positive for LoRA.

    >>> decomposition_change([[0.0, 2.0]], [[1.0, 0.0]])
    DecompositionChange(magnitude=1.0, direction=1.0)
    """
    W, S = checks.finite(w, "w", "D-9", ndim=2), checks.finite(start, "start", "D-9", ndim=2)
    if W.shape != S.shape:
        raise SpecError("D-9", f"w and start must have one shape, got {W.shape} and {S.shape}")
    p, q = np.sqrt((W**2).sum(axis=1)), np.sqrt((S**2).sum(axis=1))
    both, none = (p > 0) & (q > 0), (p == 0) & (q == 0)
    cosine = np.divide((W * S).sum(axis=1), p * q, out=none.astype(np.float64), where=both)
    n = max(len(W), 1)
    return DecompositionChange(float(np.abs(p - q).sum() / n), float((1 - cosine).sum() / n))  # (2.7)


def dora_to_lora(
    w: npt.ArrayLike,
    b: npt.ArrayLike,
    a: npt.ArrayLike,
    magnitude: npt.ArrayLike,
    /,
    *,
    scaling: float,
    rank: int,
) -> LoraRefit[Array]:
    """The LoRA of a given rank that is nearest to a DoRA: for servers that know no magnitude vector.  [D-10]

        ΔW = W' − W = U diag(σ) Vᵀ,   B' = U_r diag(σ_r)^½,   A' = diag(σ_r)^½ V_rᵀ                       (2.14)
        update = ‖ΔW‖,   residual = ‖ΔW − B' A'‖ = (Σ_{i>r} σ_i²)^½                                       (2.15)

    Shapes: w (m, k), b (m, r), a (r, k), magnitude (m,) → B (m, rank), A (rank, k), residual, update (Frobenius
    norms). (g − 1) ∘ W has full rank unless g = 1: residual / update says what is lost. Use scaling 1 with B', A'.

    >>> found = dora_to_lora([[1.0, 0.0], [0.0, 1.0]], [[0.0], [0.0]], [[1.0, 1.0]], [4.0, 2.0], scaling=1.0, rank=1)
    >>> round(found.residual, 12), round(found.update**2, 12)
    (1.0, 10.0)
    """
    W, B, A = problem(w, b, a, scaling, "linear", "D-10")
    m, r = per_row(magnitude, "magnitude", len(W), "D-10"), checks.rank(rank, W.shape, "D-10")
    V = W + B @ A  # (2.1)
    Δ = quotient(m, np.sqrt((V**2).sum(axis=1)))[:, None] * V - W
    P, Q = low_rank.truncated(Δ, r, "balanced")  # (2.14)
    return LoraRefit(P, Q, float(np.linalg.norm(Δ - P @ Q)), float(np.linalg.norm(Δ)))  # (2.15)
