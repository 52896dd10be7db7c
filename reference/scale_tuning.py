"""U: scale tuning (AlphaTuning). The signs of a binary-coded weight are frozen, its scales are what a task may change.

    Ŵ = Σ_i α_i ∘ B_i,   B_i = 2 bit_i(codes) − 1,   one α_i for every row, group of columns and plane     (U.1)

α enters linearly, so its gradient needs no straight-through estimate, and fitting it to data is least squares. Of the
q scales of a group only the first is trained as published; a task is then m numbers per layer, and switching the task
is swapping them. Arrays are those of binary coding: codes (m, k) with plane i in bit i, where 1 stands for +1, and
scale (m, G, q) with G = k / group_size, or 1 for rows. An offset has no part in this: take it off the weight first.

Source: Kwon et al. 2022, AlphaTuning (arXiv 2210.03858).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from . import checks
from .checks import F64, Array, Bool
from .errors import SpecError
from .types import TRAINED, ScaleNorm, TaskSize, Trained, TunedScales

__all__ = [
    "bcq_bits",
    "fit_scales",
    "gpt2_shape",
    "scale_grad",
    "scale_grad_tokens",
    "task_size",
    "trainable_scales",
    "tune_step",
]

MOST_BITS = 8
RESOLVED = 2.0**-40
"""Eigenvalues of the normal equations at most this far below the largest count as 0 in :func:`fit_scales`."""


def planes(codes: npt.ArrayLike, bits: int, clause: str) -> F64:
    """The q planes B_i (q, m, k) of codes (m, k) in 0 … 2^q − 1, as float64."""
    bits = checks.whole(bits, "bits", clause, low=1, high=MOST_BITS)
    b = checks.integers(codes, "codes", clause, ndim=2)
    outside = (b < 0) | (b >= 2**bits)
    if outside.any():
        i, j = (int(n) for n in np.argwhere(outside)[0])
        raise SpecError(clause, f"code {b[i, j]} at ({i}, {j}) is outside 0..{2**bits - 1}")
    bit = (b >> np.arange(bits)[:, None, None] & 1).astype(np.float64)
    return 2 * bit - 1  # (U.1)


def group_count(columns: int, group_size: int | None, clause: str) -> int:
    """Groups along the input axis: 1 for whole rows, else k / group_size."""
    if group_size is None:
        return 1
    group_size = checks.whole(group_size, "group_size", clause, low=1)
    if columns % group_size:
        raise SpecError(clause, f"group size {group_size} does not divide axis length {columns}")
    return columns // group_size


def by_group(x: F64, groups: int) -> F64:
    """(..., k) as (..., G, k / G)."""
    return x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups if groups else 0)


def trainable_scales(scale: npt.ArrayLike, /, *, train: Trained = "first") -> Bool:
    """Which scales train.  [U-1]

        first     plane 0                                                                               (U.2)
        largest   argmax_i |α_i| of each row and group, the lower plane among equals                    (U.3)
        all       every one

    Shapes: scale (m, G, q) → bool (m, G, q).
    The paper trains α_1 and calls it the largest. That is so for most groups, not for all: in a sparse group with a
    heavy tail greedy gives α_2 up to twice α_1, and least squares may swap or even negate them. ``first`` is the
    published rule, ``largest`` what its reason asks for. Training all of them brought the authors nothing.

    >>> trainable_scales([[[1.0, -3.0]], [[2.0, 2.0]]], train="largest").tolist()
    [[[False, True]], [[True, False]]]
    """
    checks.choice(train, TRAINED, "train", "U-1")
    α = checks.finite(scale, "scale", "U-1", ndim=3)
    if train == "all" or α.shape[2] == 0:
        return np.ones(α.shape, np.bool_)
    first = np.zeros(α.shape[:2], np.int64) if train == "first" else np.argmax(np.abs(α), axis=2)
    return np.asarray(np.arange(α.shape[2]) == first[..., None])  # (U.2), (U.3)


def scale_grad(
    grad: npt.ArrayLike,
    codes: npt.ArrayLike,
    /,
    *,
    bits: int,
    group_size: int | None = None,
    norm: ScaleNorm = "sum",
) -> F64:
    """Gradient of the loss with respect to every scale, from that with respect to the weight.  [U-2, U-2a]

        ∂L/∂α_{r,γ,i} = Σ_{c in γ} ∂L/∂Ŵ_{r,c} B_{i,r,c}                        sum                     (U.4)
        the same divided by the number of columns of the group                  mean                    (U.5)

    Shapes: grad (m, k) = ∂L/∂Ŵ, codes (m, k) → float (m, G, q).
    ``sum`` is the derivative. ``mean`` is how the paper writes it, for stability; that its experiments used it is
    uncertain. Under Adam the two differ by the epsilon alone, under SGD by a factor in the learning rate.
    Multiply by :func:`trainable_scales` to freeze the rest.

    >>> scale_grad([[1.0, 2.0, 3.0, 4.0]], [[1, 0, 1, 3]], bits=2, group_size=2).tolist()
    [[[-1.0, -3.0], [7.0, 1.0]]]
    """
    checks.choice(norm, ("sum", "mean"), "norm", "U-2")
    D, B = checks.finite(grad, "grad", "U-2", ndim=2), planes(codes, bits, "U-2")
    if B.shape[1:] != D.shape:
        raise SpecError("U-2", f"codes {B.shape[1:]} and grad {D.shape} must have one shape")
    groups = group_count(D.shape[1], group_size, "U-2")
    g: F64 = np.moveaxis(by_group(D * B, groups).sum(axis=-1), 0, -1)  # (U.4)
    return g / max(D.shape[1] // max(groups, 1), 1) if norm == "mean" else g  # (U.5)


def scale_grad_tokens(
    x: npt.ArrayLike,
    delta: npt.ArrayLike,
    codes: npt.ArrayLike,
    /,
    *,
    bits: int,
    group_size: int | None = None,
    norm: ScaleNorm = "sum",
) -> F64:
    """Gradient of every scale from what backpropagation holds, without the gradient of the weight.  [U-3]

        y = x Ŵᵀ,  δ = ∂L/∂y:   ∂L/∂α_{r,γ,i} = Σ_t δ_{t,r} Σ_{c in γ} B_{i,r,c} x_{t,c}                (U.6)

    that is :func:`scale_grad` of δᵀ x. The inner sum is the forward product of plane i, before its scale.

    Shapes: x (T, k), delta (T, m), codes (m, k) → float (m, G, q).

    >>> scale_grad_tokens([[1.0, 2.0], [0.0, 1.0]], [[1.0], [-1.0]], [[3, 1]], bits=2).tolist()
    [[[2.0, 0.0]]]
    """
    checks.choice(norm, ("sum", "mean"), "norm", "U-3")
    X, δ = checks.finite(x, "x", "U-3", ndim=2), checks.finite(delta, "delta", "U-3", ndim=2)
    q = checks.integers(codes, "codes", "U-3", ndim=2)
    if len(X) != len(δ) or q.shape != (δ.shape[1], X.shape[1]):
        raise SpecError("U-3", f"x {X.shape}, delta {δ.shape} and codes {q.shape} are not of one layer")
    return scale_grad(δ.T @ X, q, bits=bits, group_size=group_size, norm=norm)  # (U.6)


def tune_step(
    scale: npt.ArrayLike,
    grad: npt.ArrayLike,
    initial: npt.ArrayLike,
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    trainable: npt.ArrayLike,
    /,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    decay: float = 0.0,
) -> TunedScales[Array]:
    """One step of AdamW on the scales that train; the others stay to the last bit.  [U-4, U-4a]

        m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²                                                 (U.7)
        α ← α − lr ( (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε) + λ (α − α⁰) )                            (U.8)

    with t = step ≥ 1 and λ = decay. Weight decay pulls towards the scales before training, α⁰ = initial, because decay
    towards zero would shrink the plane that carries most of the weight; pass zeros for α⁰ to have it all the same.
    Where trainable is False, α, m and v come back as they are. α, m and v belong in float32 at least.

    Shapes: scale, grad, initial, first, second float and trainable bool, all (m, G, q) → scale, first, second.
    Source: Loshchilov and Hutter 2019, Decoupled weight decay regularization, for the update; the decay towards α⁰ is
    ours. Learning rates and their decay over steps are the caller's.

    >>> old, zeros, on = [[[1.0, 0.5]]], [[[0.0, 0.0]]], [[[True, False]]]
    >>> tune_step(old, [[[4.0, 4.0]]], old, zeros, zeros, on, step=1, lr=0.25, epsilon=0.0).scale.tolist()
    [[[0.75, 0.5]]]
    """
    given = {"scale": scale, "grad": grad, "initial": initial, "first": first, "second": second}
    α, g, α0, m, v = (checks.finite(a, n, "U-4", ndim=3) for n, a in given.items())
    on = np.asarray(trainable)
    if on.dtype != np.bool_ and on.size:
        raise SpecError("U-4", f"trainable must hold booleans, got dtype {on.dtype}")
    for name, a in (("grad", g), ("initial", α0), ("first", m), ("second", v), ("trainable", on)):
        if a.shape != α.shape:
            raise SpecError("U-4", f"{name} of shape {a.shape} must have the shape of scale, {α.shape}")
    if (v < 0).any():
        raise SpecError("U-4", f"second must be at least 0, got {v.min()}")
    t = checks.whole(step, "step", "U-4", low=1)
    η = checks.number(lr, "lr", "U-4", low=0.0)
    β1, β2 = (checks.number(b, n, "U-4", low=0.0) for b, n in ((beta1, "beta1"), (beta2, "beta2")))
    if max(β1, β2) >= 1:
        raise SpecError("U-4", f"beta1 and beta2 must be below 1, got {beta1} and {beta2}")
    ε = checks.number(epsilon, "epsilon", "U-4", low=0.0)
    λ = checks.number(decay, "decay", "U-4", low=0.0)
    m2, v2 = β1 * m + (1 - β1) * g, β2 * v + (1 - β2) * g**2  # (U.7)
    top, below = m2 / (1 - β1**t), np.sqrt(v2 / (1 - β2**t)) + ε
    adam = np.divide(top, below, out=np.zeros_like(top), where=below > 0)  # 0 / 0 is no movement
    α2 = α - η * (adam + λ * (α - α0))  # (U.8)
    return TunedScales(np.where(on, α2, α), np.where(on, m2, m), np.where(on, v2, v))


def fit_scales(
    w: npt.ArrayLike, c: npt.ArrayLike, codes: npt.ArrayLike, scale: npt.ArrayLike, trainable: npt.ArrayLike, /
) -> F64:
    """Scales of least output error on the inputs behind c: where their training ends.  [U-5, U-5a, U-5b]

        min_α J = tr[(W − Ŵ(α)) C (W − Ŵ(α))ᵀ]   over the scales that train                             (U.9)
        row r:  α ← α + (Z C Zᵀ)⁺ Z C (w − ŵ)ᵀ                                                          (U.10)

    with Z the planes of row r, each cut to one group and 0 elsewhere, of the scales that train. The inverse is that of
    Moore and Penrose, eigenvalues up to 2⁻⁴⁰ of the largest counting as 0: planes that coincide share the change
    [U-5b], a dead group keeps its scale, and of all solutions the one nearest to the given scales is taken. The
    scales that do not train come back to the last bit [U-5a].

    Shapes: w (m, k) the weight, or the regression that a task asks for; c = XᵀX (k, k); codes (m, k); scale and
    trainable bool (m, G, q), G dividing k → float (m, G, q).
    With C = I this is the least-squares step of alternating binary coding, without its change of signs. J is convex in
    α, so gradient descent on the scales of a linear model ends here: the oracle for :func:`scale_grad`.
    Source: the normal equations of (U.1); AlphaTuning itself trains on the task's loss.

    >>> w, codes, scale, on = [[3.0, 1.0], [1.0, -1.0]], [[1, 1], [1, 0]], [[[9.0]], [[9.0]]], [[[True]], [[False]]]
    >>> fit_scales(w, np.eye(2), codes, scale, on).tolist()
    [[[2.0]], [[9.0]]]
    """
    W, α = checks.finite(w, "w", "U-5", ndim=2), checks.finite(scale, "scale", "U-5", ndim=3)
    C = checks.definite(checks.second_moment(c, W.shape[1], "c", "U-5"), "c", "U-5")
    on = np.asarray(trainable)
    m, groups, bits = α.shape
    B = planes(codes, bits, "U-5")
    if B.shape[1:] != W.shape:
        raise SpecError("U-5", f"codes {B.shape[1:]} and w {W.shape} must have one shape")
    if m != len(W) or (W.shape[1] % groups if groups else W.shape[1]):
        raise SpecError("U-5", f"scale {α.shape} does not cover codes {W.shape}")
    if on.shape != α.shape or (on.dtype != np.bool_ and on.size):
        raise SpecError("U-5", f"trainable must be bool of the shape of scale, {α.shape}, got {on.dtype} {on.shape}")
    fitted = α.copy()
    for r in range(m):
        γ, plane = np.nonzero(on[r])
        parts = by_group(B[:, r], groups)  # (q, G, k / G)
        error = W[r] - (α[r].T[..., None] * parts).sum(axis=0).reshape(-1)
        Z = np.zeros((len(plane), *parts.shape[1:]))
        Z[np.arange(len(plane)), γ] = parts[plane, γ]
        Z = Z.reshape(len(plane), W.shape[1])
        λ, V = np.linalg.eigh(Z @ C @ Z.T)
        kept = λ > RESOLVED * λ.max(initial=0.0)
        V = V[:, kept]
        fitted[r, γ, plane] += V @ ((V.T @ (Z @ C @ error)) / λ[kept])  # (U.10)
    return fitted


# -- sizes -------------------------------------------------------------------------------------------------------------


def bcq_bits(rows: int, columns: int, *, bits: int, group_size: int | None = None, scale_bits: int = 32) -> int:
    """Bits of a binary-coded matrix: one per weight and plane, and a scale per plane, row and group.

        q m (k + 32 G)                                                                                  (U.11)

    A 1-bit row of 512 weights spends 6 % more on its scale: count it. Papers count scales as float32, kernels often
    store float16 (scale_bits=16).

    >>> bcq_bits(1, 512, bits=1), bcq_bits(4096, 4096, bits=3, group_size=128) / 4096**2
    (544, 3.75)
    """
    bits = checks.whole(bits, "bits", "A-3", low=1, high=MOST_BITS)
    scale_bits = checks.whole(scale_bits, "scale_bits", "A-3", low=1)
    columns = checks.whole(columns, "columns", "A-3", low=0)
    groups = group_count(columns, group_size, "A-3")
    return bits * checks.whole(rows, "rows", "A-3", low=0) * (columns + scale_bits * groups)  # (U.11)


def gpt2_shape(
    layers: int, width: int, *, vocabulary: int = 50257, positions: int = 1024
) -> tuple[list[tuple[int, int]], int]:
    """Shapes (m, k) of the linear layers of GPT-2, and how many other parameters it has.

    >>> linears, other = gpt2_shape(24, 1024)
    >>> len(linears), sum(m * k for m, k in linears) + other
    (96, 354823168)
    """
    h = width
    linears = [(3 * h, h), (h, h), (4 * h, h), (h, 4 * h)] * layers
    biases, norms = 9 * h * layers, 2 * h * (2 * layers + 1)
    return linears, (vocabulary + positions) * h + biases + norms


def task_size(
    linears: Sequence[tuple[int, int]],
    other: int,
    /,
    *,
    bits: int,
    group_size: int | None = None,
    train: Trained = "first",
    scale_bits: int = 32,
) -> TaskSize:
    """Bytes of a model whose linear layers are binary-coded, and what of it a task trains.

        full = 4 (Σ m k + other),   compressed = Σ (U.11) / 8 + 4 other                                 (U.12)
        trainable = Σ m G,  q times that for ``all``;   task = scale_bits / 8 trainable                 (U.13)

    Embeddings, norms and biases stay in float32 and frozen, and are counted: quantizing a tied embedding would show in
    the softmax. The published sizes of GPT-2 medium and large (figures in MB of 10⁶ bytes) come out so:

    >>> size = task_size(*gpt2_shape(24, 1024), bits=4)
    >>> [round(task_size(*gpt2_shape(24, 1024), bits=q).compressed / 1e6, 1) for q in (2, 3, 4)]
    [288.6, 327.2, 365.9]
    >>> round(size.full / 1e6), size.trainable, round(size.task / 1e6, 2)
    (1419, 221184, 0.88)
    """
    checks.choice(train, TRAINED, "train", "A-3")
    other = checks.whole(other, "other", "A-3", low=0)
    coded = sum(bcq_bits(m, k, bits=bits, group_size=group_size, scale_bits=scale_bits) for m, k in linears)
    scales = sum(m * group_count(k, group_size, "A-3") for m, k in linears) * (bits if train == "all" else 1)
    return TaskSize(
        full=4 * (sum(m * k for m, k in linears) + other),
        compressed=-(-coded // 8) + 4 * other,  # (U.12)
        trainable=scales,
        task=-(-scales * scale_bits // 8),  # (U.13)
    )
