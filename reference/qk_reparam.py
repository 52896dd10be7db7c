"""O: query-key reparameterisation (QKR): the product of the query and key weights is what is quantized.

    W^h = (W_q^h)ᵀ W_k^h,   one (C, C) matrix per head, stacked to (H·C, C)                              (O.17)
    score^h(n, m) = d^(−½) x_n · W^h x_m                                                                 (O.18)

Quantized on their own, W_q and W_k are coupled: an oscillating query weight changes the gradient of the key weight and
back. The straight-through gradient of the quantized product flows to the *latent* W_q and W_k alone.

Without quantizers this is plain attention, to rounding. It is not cheaper: H C² per token where queries and keys take
2 C d H, and scores of length C instead of d (:func:`qkr_cost`). Shapes: B sequences of N tokens of width C, H heads of
d rows. Deliberately not here: masks, dropout, the output projection. Where the published code departs from the paper
or from plain attention, both ways have a name: ``freeze`` of :func:`qkr_grad`, ``biases`` of :func:`qkr_attention`.

Source: Liu et al. 2023, OFQ (arXiv 2302.02210), and its published code.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from . import checks
from .checks import F64
from .errors import SpecError
from .oscillation import boolean
from .types import BIASES, FROZEN_SPACES, Biases, FrozenSpace, QkrCost, QkrGradient, QkrQuantizers

__all__ = ["qkr_attention", "qkr_cost", "qkr_grad", "qkr_weight"]

Quantizer = Callable[[F64], npt.ArrayLike] | None


def projections(w_q: npt.ArrayLike, w_k: npt.ArrayLike, heads: int, clause: str) -> tuple[F64, F64]:
    """Checked W_q and W_k as (H, d, C)."""
    q, k = checks.finite(w_q, "w_q", clause, ndim=2), checks.finite(w_k, "w_k", clause, ndim=2)
    heads = checks.whole(heads, "heads", clause, low=1)
    if q.shape != k.shape:
        raise SpecError(clause, f"w_q {q.shape} and w_k {k.shape} must have one shape")
    if len(q) % heads:
        raise SpecError(clause, f"{heads} heads do not divide {len(q)} rows")
    shape = (heads, len(q) // heads, q.shape[1])
    return q.reshape(shape), k.reshape(shape)


def qkr_weight(w_q: npt.ArrayLike, w_k: npt.ArrayLike, /, *, heads: int) -> F64:
    """The stacked product of query and key weights, (O.17).  [O-8]

    Shapes: w_q, w_k (H·d, C) → (H·C, C): row h·C + i belongs to head h and input feature i of the query. StatsQ on it
    has one scale per head and feature.

    >>> qkr_weight([[1.0, 2.0]], [[3.0, 4.0]], heads=1).tolist()
    [[3.0, 4.0], [6.0, 8.0]]
    """
    q, k = projections(w_q, w_k, heads, "O-8")
    return np.asarray(np.einsum("hdi,hdj->hij", q, k)).reshape(heads * q.shape[2], q.shape[2])  # (O.17)


def qkr_grad(
    w_q: npt.ArrayLike,
    w_k: npt.ArrayLike,
    grad: npt.ArrayLike,
    active: npt.ArrayLike | None = None,
    /,
    *,
    heads: int,
    freeze: FrozenSpace = "product",
) -> QkrGradient[F64]:
    """Gradients of the latent query and key weights from that of the stacked product.  [O-8a, O-8b]

        dW_q^h = W_k^h (G^h)ᵀ,   dW_k^h = W_q^h G^h                                                      (O.19)

    ``active`` is a mask of :func:`cga_mask` over the stack, None for all. What annealing does with it:

        product   G ← G where active, else 0: frozen products pass no gradient, as the paper has it      (O.20)
        none      the mask is ignored: what the published code does, where it touches only a tensor that is detached
                  afterwards, so that under QKR query and key weights train on unfrozen

    Shapes: w_q, w_k (H·d, C), grad (H·C, C), active bool (H·C, C) → q, k (H·d, C).
    A product that passes no gradient may still move with the weights behind it.

    >>> found = qkr_grad([[1.0, 2.0]], [[3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]], [[True, True], [True, False]], heads=1)
    >>> found.q.tolist(), found.k.tolist()
    ([[3.0, 0.0]], [[1.0, 0.0]])
    """
    checks.choice(freeze, FROZEN_SPACES, "freeze", "O-8")
    q, k = projections(w_q, w_k, heads, "O-8")
    C = q.shape[2]
    G = checks.finite(grad, "grad", "O-8", ndim=2)
    if G.shape != (heads * C, C):
        raise SpecError("O-8", f"grad must have shape {(heads * C, C)}, got {G.shape}")
    on = np.ones(G.shape, np.bool_) if active is None else boolean(active, "active", G.shape, "O-8")
    if freeze == "product":
        G = np.where(on, G, 0.0)  # (O.20)
    g = G.reshape(heads, C, C)
    dq, dk = np.einsum("hdj,hij->hdi", k, g), np.einsum("hdi,hij->hdj", q, g)  # (O.19)
    return QkrGradient(q=dq.reshape(np.shape(w_q)), k=dk.reshape(np.shape(w_k)))


def passed(quantizer: Quantizer, x: F64, name: str) -> F64:
    """What a quantizer makes of an array, which must keep its shape."""
    if quantizer is None:
        return x
    y = checks.finite(quantizer(x), f"the result of quantizer {name!r}", "O-9")
    if y.shape != x.shape:
        raise SpecError("O-9", f"quantizer {name!r} made {y.shape} of {x.shape}")
    return y


def qkr_attention(
    x: npt.ArrayLike,
    w_q: npt.ArrayLike,
    w_k: npt.ArrayLike,
    w_v: npt.ArrayLike,
    b_q: npt.ArrayLike | None = None,
    b_v: npt.ArrayLike | None = None,
    /,
    *,
    heads: int,
    biases: Biases = "kept",
    quantizers: QkrQuantizers | None = None,
) -> F64:
    """Self-attention by the product of query and key weights: the heads side by side.  [O-9, O-9a, O-9b]

        x̂ = Q_input(x),   Ŵ = Q_product(W),   U = Q_keys([Ŵ^h x̂_m])   (B, N·H, C), row m·H + h           (O.21)
        A = Q_map(softmax_m( d^(−½) (x̂_n · U_mh + c^h · x̂_m) )),   c^h = (W_k^h)ᵀ b_q^h                  (O.22)
        v = Q_value(x̂ Q_value_weight(W_v)ᵀ + b_v),   context^h = A^h v^h                                  (O.23)

    Every Q is the identity where ``quantizers`` names none; each maps an array to one of its shape. The published
    model has learned steps for input, keys (one per token and head), map and value, each but the map between two
    learned offsets, and StatsQ for the two weights. An offset after Q_keys adds x̂_n · b^h, the same for every key:
    the softmax does not see it, its gradient is exactly 0.

    biases
        kept      the query bias adds c^h · x̂_m to the score of key m, and so does here; a key bias adds the same to
                  every key, so that there is no argument for it
        dropped   b_q is ignored: what the published conversion does, so that a pretrained model changes before any
                  quantization

    Shapes: x (B, N, C); w_q, w_k (H·d, C); w_v (D, C), H divides D; b_q (H·d,), b_v (D,), None for 0 → (B, N, D).

    >>> qkr_attention([[[1.0, 0.0], [0.0, 1.0]]], [[0.0, 0.0]], [[1.0, 2.0]], [[4.0, 8.0]], heads=1).tolist()
    [[[6.0], [6.0]]]
    """
    checks.choice(biases, BIASES, "biases", "O-9")
    X = checks.finite(x, "x", "O-9", ndim=3)
    q, k = projections(w_q, w_k, heads, "O-9")
    V = checks.finite(w_v, "w_v", "O-9", ndim=2)
    B, N, C = X.shape
    if q.shape[2] != C or V.shape[1] != C:
        raise SpecError(
            "O-9", f"x of width {C} does not fit w_q and w_k of {q.shape[2]} and w_v of {V.shape[1]} columns"
        )
    if len(V) % heads:
        raise SpecError("O-9", f"{heads} heads do not divide {len(V)} rows of w_v")
    bias_q = np.zeros(q.shape[:2]) if b_q is None else checks.finite(b_q, "b_q", "O-9", ndim=1)
    bias_v = np.zeros(len(V)) if b_v is None else checks.finite(b_v, "b_v", "O-9", ndim=1)
    if bias_q.size != q.shape[0] * q.shape[1] or len(bias_v) != len(V):
        raise SpecError("O-9", f"b_q {bias_q.shape} and b_v {bias_v.shape} must have an entry per row of w_q and w_v")
    Q = QkrQuantizers() if quantizers is None else quantizers
    x_hat = passed(Q.input, X, "input")
    Ŵ = passed(Q.product, qkr_weight(w_q, w_k, heads=heads), "product").reshape(heads, C, C)
    U = passed(Q.keys, np.einsum("hij,bmj->bmhi", Ŵ, x_hat).reshape(B, N * heads, C), "keys")  # (O.21)
    scores = np.einsum("bni,bmhi->bhnm", x_hat, U.reshape(B, N, heads, C))
    if biases == "kept":
        scores = scores + np.einsum("hdi,hd,bmi->bhm", k, bias_q.reshape(q.shape[:2]), x_hat)[:, :, None]
    scores = scores / np.sqrt(max(q.shape[1], 1))
    A = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-np.inf))
    A = passed(Q.attention, A / A.sum(axis=-1, keepdims=True), "attention")  # (O.22)
    v = passed(Q.value, x_hat @ passed(Q.value_weight, V, "value_weight").T + bias_v, "value")
    context = np.einsum("bhnm,bmhe->bnhe", A, v.reshape(B, N, heads, len(V) // heads))  # (O.23)
    return np.asarray(context).reshape(B, N, len(V))


def qkr_cost(tokens: int, width: int, heads: int, /) -> QkrCost:
    """Multiply-accumulates of a sequence, plain attention and QKR.

        plain   2 N C² for queries and keys,   N² C for scores                                           (O.24)
        QKR     H N C² for U,   H N² C for scores,   C³ a step for the product                           (O.25)

    with H heads of C / H rows. The keys that are quantized are H times as many.

    >>> cost = qkr_cost(197, 384, 6)  # DeiT-S
    >>> cost.qkr_projection / cost.projection, cost.qkr_scores / cost.scores
    (3.0, 6.0)
    """
    N, C = checks.whole(tokens, "tokens", "A-3", low=1), checks.whole(width, "width", "A-3", low=1)
    H = checks.whole(heads, "heads", "A-3", low=1)
    if C % H:
        raise SpecError("A-3", f"{H} heads do not divide width {C}")
    return QkrCost(2 * N * C * C, N * N * C, H * N * C * C, H * N * N * C, C * C * C)
