"""W: distillation. A quantized student follows its full-precision teacher; every loss comes with its gradient.

    prediction   soft cross-entropy of the logits, for decoders weighted token by token                  (W.1) – (W.5)
    features     mean square difference: hidden states, attention output, context, Z before the residual (W.6)
    scores       mean square difference of Q Kᵀ/√d, masked entries set to 0                              (W.8)
    map          Kullback–Leibler divergence of the attention maps, over valid rows and keys             (W.10)

Each operation is one tensor pair, such as one layer, and answers (loss, gradient with respect to the student); a model
adds them up over its layers, :func:`total_loss`. Teachers take no gradient. Shapes: batch B, heads H, tokens n,
features d, vocabulary V. ``lengths`` (B,) is the true length s_b of every sentence; what lies beyond is not read.

A is the map softmax(S), Z = W_O(A V) the output of attention before the residual, Y = LayerNorm(Z + X) after it.

Sources: Kim et al. 2022, Understanding and improving knowledge distillation for quantization-aware training of large
transformer encoders (arXiv 2211.11014), with the normalisations of its code; Zhang et al. 2020, TernaryBERT (arXiv
2009.12812), for hidden states and scores; Kim et al. 2023, Token-scaled logit distillation (arXiv 2308.06744).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from . import checks
from .checks import F64, Array
from .errors import SpecError
from .types import DIVERGENCES, IGNORED_TOKENS, Divergence, IgnoredTokens, LossGradient

__all__ = [
    "attention_map_loss",
    "feature_loss",
    "logit_loss",
    "mixing_weights",
    "score_loss",
    "token_loss",
    "total_loss",
]

IGNORED = -100
"""Label of a token that has none, as in most training code."""


def pair(student: npt.ArrayLike, teacher: npt.ArrayLike, clause: str, ndim: int) -> tuple[F64, F64]:
    """Two arrays of one shape."""
    S, T = (checks.finite(x, n, clause, ndim=ndim) for n, x in (("student", student), ("teacher", teacher)))
    if S.shape != T.shape:
        raise SpecError(clause, f"teacher of shape {T.shape} must have the shape of student, {S.shape}")
    return S, T


def valid_pair(
    student: npt.ArrayLike, teacher: npt.ArrayLike, lengths: npt.ArrayLike, clause: str, ndim: int
) -> tuple[F64, F64, list[int]]:
    """Two arrays of one shape (B, …) whose axis −2 holds tokens, and the lengths 1 … n; padding may hold anything."""
    S, T = (checks.real(x, n, clause, ndim=ndim) for n, x in (("student", student), ("teacher", teacher)))
    if S.shape != T.shape:
        raise SpecError(clause, f"teacher of shape {T.shape} must have the shape of student, {S.shape}")
    s = checks.integers(lengths, "lengths", clause, ndim=1)
    if len(s) != len(S):
        raise SpecError(clause, f"{len(s)} lengths for a batch of {len(S)}")
    if ((s < 1) | (s > S.shape[-2])).any():
        raise SpecError(clause, f"lengths must be in 1..{S.shape[-2]}, got {s[(s < 1) | (s > S.shape[-2])][0]}")
    return S, T, s.tolist()


def refuse_bad(x: F64, name: str, used: npt.NDArray[np.bool_]) -> None:
    """The A-4 refusal for the entries that are read."""
    bad = np.argwhere(~np.isfinite(x) & used)
    if len(bad):
        at = tuple(int(i) for i in bad[0])
        raise SpecError("A-4", f"{name} holds {x[at]} at {at}")


def log_softmax(x: F64) -> F64:
    """x − log Σ exp x over the last axis, shifted by the maximum."""
    shifted = x - x.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def answer(loss: float, gradient: F64) -> LossGradient[Array]:
    """A result with a plain number for the loss."""
    return LossGradient(float(loss), gradient)


# -- prediction --------------------------------------------------------------------------------------------------------


def logit_loss(
    student: npt.ArrayLike,
    teacher: npt.ArrayLike,
    /,
    *,
    temperature: float = 1.0,
    divergence: Divergence = "cross-entropy",
) -> LossGradient[Array]:
    """Soft cross-entropy of the logits, mean over the batch.  [W-1, W-1a]

        P = softmax(t / τ),  Q = softmax(s / τ)
        L = τ² mean_b ( −Σ_c P log Q )                                    cross-entropy                 (W.1)
        L = τ² mean_b (  Σ_c P (log P − log Q) )                          kl                            (W.2)
        ∂L/∂s = τ (Q − P) / B                                             of both                       (W.3)

    Shapes: student, teacher (B, C) → loss, gradient (B, C).
    The published losses (KD-QAT, QAT-ACS, OFQ) have τ = 1 and keep the teacher's entropy: they do not vanish at s = t,
    where ``kl`` does. τ² keeps gradients comparable across temperatures (Hinton et al. 2015). A regression task takes
    :func:`feature_loss` of its (B, 1, C) outputs. An empty batch costs nothing.

    >>> logit_loss([[0.0, 0.0]], [[1.0, 1.0]]).gradient.tolist()
    [[0.0, 0.0]]
    """
    checks.choice(divergence, DIVERGENCES, "divergence", "W-1")
    τ = checks.number(temperature, "temperature", "W-1", low=0.0, above=True)
    S, T = pair(student, teacher, "W-1", 2)
    if S.size == 0:
        return answer(0.0, S)
    log_q, log_p = log_softmax(S / τ), log_softmax(T / τ)
    P, Q = np.exp(log_p), np.exp(log_q)
    terms = -P * log_q if divergence == "cross-entropy" else P * (log_p - log_q)
    return answer(τ**2 * terms.sum(axis=-1).mean(), τ * (Q - P) / len(S))  # (W.1), (W.2), (W.3)


def token_loss(
    student: npt.ArrayLike,
    teacher: npt.ArrayLike,
    labels: npt.ArrayLike,
    /,
    *,
    temperature: float = 10.0,
    ignored: IgnoredTokens = "weigh",
) -> LossGradient[Array]:
    """Token-scaled logit distillation of a decoder.  [W-2, W-2a]

        c_bt = −log softmax(t_bt)[label_bt]                                                             (W.4)
        w_bt = softmax over t of c_bt / τ
        L = Σ_bt w_bt ( −Σ_v P log Q ),   ∂L/∂s_bt = w_bt (Q − P)                                       (W.5)

    with P, Q the maps of teacher and student logits at temperature 1. Where the teacher itself is unsure the student
    learns more; weights of a sequence add up to 1, and sequences are summed, not averaged: that is the authors' code,
    whose τ is 10. Logits are those that predict the label: shift both before.

    A label of −100 has no c. ``weigh`` takes c = 0 there, as the code does, so padding takes a share of the weight;
    ``skip`` gives it weight 0, and then the logits of those tokens are not read. A sequence without labels weighs
    nothing in the second case.

    Shapes: student, teacher (B, n, V), labels integers (B, n), 0 … V − 1 or −100 → loss, gradient (B, n, V).

    >>> t = [[[0.0, 0.0], [9.0, 9.0]]]
    >>> for ignored in ("weigh", "skip"):
    ...     round(token_loss(t, t, [[0, -100]], temperature=1.0, ignored=ignored).loss, 6)
    0.693147
    0.693147
    >>> grad = token_loss([[[4.0, 0.0], [0.0, 4.0]]], t, [[0, -100]], ignored="skip").gradient
    >>> grad[0, 1].tolist()
    [0.0, 0.0]
    """
    checks.choice(ignored, IGNORED_TOKENS, "ignored", "W-2")
    τ = checks.number(temperature, "temperature", "W-2", low=0.0, above=True)
    S, T = (checks.real(x, n, "W-2", ndim=3) for n, x in (("student", student), ("teacher", teacher)))
    if S.shape != T.shape:
        raise SpecError("W-2", f"teacher of shape {T.shape} must have the shape of student, {S.shape}")
    label = checks.integers(labels, "labels", "W-2", ndim=2)
    if label.shape != S.shape[:2]:
        raise SpecError("W-2", f"labels of shape {label.shape} must have shape {S.shape[:2]}")
    has = label != IGNORED
    wrong = has & ((label < 0) | (label >= S.shape[2]))
    if wrong.any():
        raise SpecError("W-2", f"labels must be in 0..{S.shape[2] - 1} or {IGNORED}, got {label[wrong][0]}")
    used = np.broadcast_to(has[..., None] if ignored == "skip" else np.True_, S.shape)
    refuse_bad(S, "student", used)
    refuse_bad(T, "teacher", used)
    S, T = np.where(used, S, 0.0), np.where(used, T, 0.0)
    if S.size == 0:
        return answer(0.0, S)
    log_q, log_p = log_softmax(S), log_softmax(T)
    own = -np.take_along_axis(log_p, np.where(has, label, 0)[..., None], axis=-1)[..., 0]
    c = np.where(has, own, 0.0)  # (W.4)
    counted = has if ignored == "skip" else np.ones_like(has)
    top = np.where(counted, c, -np.inf).max(axis=1, keepdims=True, initial=0.0)
    w = np.where(counted, np.exp((c - top) / τ), 0.0)
    total = w.sum(axis=1, keepdims=True)
    w = np.divide(w, total, out=np.zeros_like(w), where=total > 0)
    P, Q = np.exp(log_p), np.exp(log_q)
    return answer((w * -(P * log_q).sum(axis=-1)).sum(), w[..., None] * (Q - P))  # (W.5)


# -- features ----------------------------------------------------------------------------------------------------------


def feature_loss(
    student: npt.ArrayLike, teacher: npt.ArrayLike, lengths: npt.ArrayLike | None = None, /
) -> LossGradient[Array]:
    """Mean square difference of features.  [W-3, W-3a]

        L = (1 / N) Σ (S − T)²,   ∂L/∂S = 2 (S − T) / N                                                 (W.6)
        N = B n d, every element                                          lengths None
        N = d Σ_b s_b, the valid tokens only                              lengths given                 (W.7)

    Shapes: student, teacher (B, n, d), lengths integers (B,), 1 … n, or None → loss, gradient (B, n, d).
    One operation for five published losses: hidden states X_l (l = 0 … L), attention output Y_l, the ``context`` A V,
    the ``sa_output`` Z_l before the residual, and the squared error of a regression task. All of them count padding
    as published (lengths None), so the same sentence weighs less in a wider batch; (W.7) is free of that, reads no
    padding, and leaves its gradient 0.

    >>> feature_loss([[[3.0], [50.0]]], [[[1.0], [0.0]]], [1]).loss
    4.0
    """
    if lengths is None:
        S, T = pair(student, teacher, "W-3", 3)
        Δ, N = S - T, S.size
    else:
        S, T, s = valid_pair(student, teacher, lengths, "W-3", 3)
        valid = np.broadcast_to(np.arange(S.shape[1])[None, :, None] < np.array(s, np.int64)[:, None, None], S.shape)
        refuse_bad(S, "student", valid)
        refuse_bad(T, "teacher", valid)
        Δ = np.where(valid, S, 0.0) - np.where(valid, T, 0.0)
        N = S.shape[2] * sum(s)  # (W.7)
    if N == 0:
        return answer(0.0, np.zeros(S.shape))
    return answer((Δ**2).sum() / N, 2 * Δ / N)  # (W.6)


# -- attention ---------------------------------------------------------------------------------------------------------


def score_loss(
    student: npt.ArrayLike, teacher: npt.ArrayLike, /, *, floor: float = -100.0, causal: bool = False
) -> LossGradient[Array]:
    """Mean square difference of attention scores.  [W-4, W-4a]

        Ŝ = S where S > floor, else 0;  T̂ alike                                                         (W.8)
        L = mean (Ŝ − T̂)²,   ∂L/∂S = 2 (Ŝ − T̂) / N where S > floor, else 0                              (W.9)

    over all N = B H n² entries, or with ``causal`` over the B H n (n + 1) / 2 on and below the diagonal.

    Shapes: student, teacher (B, H, n, n) → loss, gradient (B, H, n, n). The mask is in the scores, as −10000.
    The baseline of TernaryBERT. It treats every score alike and is not invariant to a constant added to a row, which
    leaves the map as it was. Rows of padding count. Each network is floored by its own scores: an entry that only the
    student masks is compared with 0 and gets no gradient.

    >>> score_loss([[[[3.0, -10000.0]]]], [[[[1.0, 2.0]]]])
    Traceback (most recent call last):
    lowbit.reference.errors.SpecError: [W-4] scores must be (B, H, n, n), got (1, 1, 1, 2)
    """
    causal = checks.flag(causal, "causal", "W-4")
    least = checks.number(floor, "floor", "W-4", low=-np.inf)
    S, T = pair(student, teacher, "W-4", 4)
    square("W-4", S)
    n = S.shape[-1]
    counted = np.tril(np.ones((n, n), np.bool_)) if causal else np.ones((n, n), np.bool_)
    N = S.shape[0] * S.shape[1] * int(counted.sum())
    Δ = (np.where(least < S, S, 0.0) - np.where(least < T, T, 0.0)) * counted  # (W.8)
    return answer((Δ**2).sum() / max(N, 1), 2 * Δ * (least < S) / max(N, 1))  # (W.9)


def square(clause: str, x: F64) -> None:
    """Scores have as many keys as queries."""
    if x.shape[-1] != x.shape[-2]:
        raise SpecError(clause, f"scores must be (B, H, n, n), got {x.shape}")


def attention_map_loss(
    student: npt.ArrayLike, teacher: npt.ArrayLike, lengths: npt.ArrayLike, /, *, floor: float = 1e-8
) -> LossGradient[Array]:
    """Divergence of the attention maps, from scores.  [W-5, W-5a, W-5b]

        p, q = softmax of teacher and student scores over the s_b valid keys
        P = max(p, floor),  log q̂ = log max(q, floor)
        L = (1 / BH) Σ_{b,h} (1 / s_b) Σ_{i,j < s_b} P_ij (log P_ij − log q̂_ij)                          (W.10)
        ∂L/∂S_ik = (q_ik Σ_j a_ij − a_ik) / (B H s_b),   a = P where q ≥ floor, else 0                   (W.11)

    Shapes: scores student, teacher (B, H, n, n), lengths integers (B,), 1 … n → loss, gradient (B, H, n, n).
    The mean divergence of a valid row, then the mean over heads and batch; layers are summed by the caller. Rows and
    keys beyond s_b are not read and their gradient is 0, whatever mask the scores carry: masked scores of −10000 and
    a softmax over all n keys give the same numbers, which is how the published code has it. Hence L does not depend on
    the width of the batch. It is invariant to a constant added to a row, at least −n·floor, and 0 where maps agree.

    The floor of 1e-8 is the code's. Below it the student's logarithm is a constant, so its own term passes no
    gradient, but the entry still takes part in the softmax of its row (W.11).

    >>> found = attention_map_loss([[[[0.0, 7.0], [0.0, 0.0]]]], [[[[5.0, 5.0], [0.0, 0.0]]]], [1])
    >>> found.loss, found.gradient.any()
    (0.0, np.False_)
    """
    φ = checks.number(floor, "floor", "W-5", low=0.0, high=1.0, above=True)
    S, T, s = valid_pair(student, teacher, lengths, "W-5", 4)
    square("W-5", S)
    inside = np.arange(S.shape[-1]) < np.array(s, np.int64)[:, None]  # (B, n)
    valid = np.broadcast_to((inside[:, None, :, None] & inside[:, None, None, :]), S.shape)
    refuse_bad(S, "student", valid)
    refuse_bad(T, "teacher", valid)
    loss, gradient = 0.0, np.zeros(S.shape)
    for b, length in enumerate(s):
        block = (b, slice(None), slice(length), slice(length))
        log_p, log_q = log_softmax(T[block]), log_softmax(S[block])
        P, q = np.maximum(np.exp(log_p), φ), np.exp(log_q)
        terms = P * (np.log(P) - np.maximum(log_q, np.log(φ)))
        a = np.where(q >= φ, P, 0.0)
        share = max(S.shape[0] * S.shape[1] * length, 1)
        loss += terms.sum() / share  # (W.10)
        gradient[block] = (q * a.sum(axis=-1, keepdims=True) - a) / share  # (W.11)
    return answer(loss, gradient)


# -- mixing ------------------------------------------------------------------------------------------------------------


def mixing_weights(gamma: float, /) -> tuple[float, float]:
    """Coefficients (γ, 1 − γ) of map and output in the paper's unified loss.

        γ Σ_l L_map + (1 − γ) Σ_l L_out                                                                 (W.12)

    The code sweeps two coefficients c_map and c_out on their own, with one of them 1; beside prediction and features
    that is not the same family, only the same ray of the attention part. Which of the two the tables used is not known.

    >>> mixing_weights(0.25)
    (0.25, 0.75)
    """
    γ = checks.number(gamma, "gamma", "W-5", low=0.0, high=1.0)
    return γ, 1 - γ


def total_loss(
    prediction: float,
    /,
    *,
    features: Sequence[float] = (),
    maps: Sequence[float] = (),
    outputs: Sequence[float] = (),
    scores: Sequence[float] = (),
    map_weight: float = 1.0,
    output_weight: float = 1.0,
    score_weight: float = 1.0,
) -> float:
    """Loss of a whole model from those of its layers.

        L_pred + Σ_{l=0..L} L_rep + c_map Σ_l L_map + c_out Σ_l L_out + c_score Σ_l L_score              (W.13)

    Layers are summed, not averaged, and nothing divides by their number. The gradient of a layer's tensor is that of
    its own loss times the coefficient.

    >>> total_loss(1.0, features=[0.5, 0.25], maps=[2.0], map_weight=0.5)
    2.75
    """
    attention = map_weight * sum(maps) + output_weight * sum(outputs) + score_weight * sum(scores)
    return float(prediction + sum(features) + attention)  # (W.13)
