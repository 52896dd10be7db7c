"""Wrong backends of chapter W: distillation losses."""

from __future__ import annotations

from . import edit

LOGITS = ("distill", "logit_loss")
TOKENS = ("distill", "token_loss")
FEATURES = ("distill", "feature_loss")
SCORES = ("distill", "score_loss")
MAPS = ("distill", "attention_map_loss")
MEAN = "return answer(τ**2 * terms.sum(axis=-1).mean(), τ * (Q - P) / len(S))"

edit("W-1", "mean over classes too", *LOGITS, (MEAN, "return answer(τ**2 * terms.mean(), τ * (Q - P) / S.size)"))
edit(
    "W-1",
    "forgets the square of the temperature",
    *LOGITS,
    (MEAN, "return answer(terms.sum(axis=-1).mean(), (Q - P) / τ / len(S))"),
)
edit("W-1", "sums over the batch", *LOGITS, (MEAN, "return answer(τ**2 * terms.sum(), τ * (Q - P))"))
edit(
    "W-1",
    "student and teacher exchanged",
    *LOGITS,
    ("log_softmax(S / τ), log_softmax(T / τ)", "log_softmax(T / τ), log_softmax(S / τ)"),
)
edit("W-1", "subtracts the entropy always", *LOGITS, ('if divergence == "cross-entropy" else', "if False else"))
edit("W-1a", "never subtracts the entropy", *LOGITS, ('if divergence == "cross-entropy" else', "if True else"))
edit(
    "W-1a",
    "gradient of the divergence with the wrong sign",
    *LOGITS,
    ("τ * (Q - P) / len(S))", 'τ * (Q - P if divergence == "cross-entropy" else P - Q) / len(S))'),
)
edit("W-2", "equal weights", *TOKENS, ("np.exp((c - top) / τ)", "np.exp(0 * (c - top) / τ)"))
edit(
    "W-2",
    "a softmax over all sequences",
    *TOKENS,
    ("total = w.sum(axis=1, keepdims=True)", "total = w.sum(keepdims=True)"),
)
edit("W-2", "weighs sure tokens", *TOKENS, ("own = -np.take_along_axis", "own = np.take_along_axis"))
edit("W-2", "mean over sequences", *TOKENS, ("return answer((w * -(P", "return answer(1 / len(S) * (w * -(P"))
edit(
    "W-2",
    "the temperature softens the logits too",
    *TOKENS,
    ("log_softmax(S), log_softmax(T)", "log_softmax(S / τ), log_softmax(T / τ)"),
)
edit(
    "W-2",
    "the last word of the vocabulary for a missing label",
    *TOKENS,
    ("c = np.where(has, own, 0.0)", "c = own"),
    ("np.where(has, label, 0)", "np.where(has, label, -1)"),
)
edit(
    "W-2",
    "gives padding its share",
    *TOKENS,
    ('counted = has if ignored == "skip" else', 'counted = has | True if ignored == "skip" else'),
)
edit(
    "W-2a",
    "multiplies by the mask, so that NaN stays NaN",
    *TOKENS,
    ("S, T = np.where(used, S, 0.0), np.where(used, T, 0.0)", "S, T = S * used, T * used"),
)
edit("W-3", "halves the square", *FEATURES, ("(Δ**2).sum() / N, 2 * Δ / N", "(Δ**2).sum() / N / 2, Δ / N"))
edit(
    "W-3", "divides by all elements whatever the lengths", *FEATURES, ("N = S.shape[2] * sum(s)  # (W.7)", "N = S.size")
)
edit("W-3", "divides by tokens, not by elements", *FEATURES, ("N = S.shape[2] * sum(s)  # (W.7)", "N = sum(s)"))
edit("W-3a", "one token too many", *FEATURES, ("[None, :, None] < np.array", "[None, :, None] <= np.array"))
edit(
    "W-3a",
    "multiplies by the mask, so that NaN stays NaN",
    *FEATURES,
    ("Δ = np.where(valid, S, 0.0) - np.where(valid, T, 0.0)", "Δ = (S - T) * valid"),
)
edit(
    "W-4",
    "the floor itself counts",
    *SCORES,
    (
        "np.where(least < S, S, 0.0) - np.where(least < T, T, 0.0)",
        "np.where(least <= S, S, 0.0) - np.where(least <= T, T, 0.0)",
    ),
)
edit(
    "W-4", "masks both networks by the student", *SCORES, ("np.where(least < T, T, 0.0)", "np.where(least < S, T, 0.0)")
)
edit("W-4", "gradient of masked scores", *SCORES, ("2 * Δ * (least < S)", "2 * Δ"))
edit("W-4", "puts the floor instead of 0", *SCORES, ("np.where(least < S, S, 0.0)", "np.maximum(S, least)"))
edit(
    "W-4a",
    "leaves out the diagonal",
    *SCORES,
    ("np.tril(np.ones((n, n), np.bool_))", "np.tril(np.ones((n, n), np.bool_), -1)"),
)
edit(
    "W-4a", "the upper triangle", *SCORES, ("np.tril(np.ones((n, n), np.bool_))", "np.triu(np.ones((n, n), np.bool_))")
)
edit("W-4a", "divides by the whole square", *SCORES, ("int(counted.sum())", "n * n"))
edit("W-5", "divides by the width of the batch", *MAPS, ("S.shape[1] * length, 1)", "S.shape[1] * S.shape[2], 1)"))
edit("W-5", "forgets the heads", *MAPS, ("max(S.shape[0] * S.shape[1] * length, 1)", "max(S.shape[0] * length, 1)"))
edit(
    "W-5",
    "divergence of teacher from student",
    *MAPS,
    ("log_softmax(T[block]), log_softmax(S[block])", "log_softmax(S[block]), log_softmax(T[block])"),
)
edit(
    "W-5",
    "gradient of scores as of probabilities",
    *MAPS,
    ("(q * a.sum(axis=-1, keepdims=True) - a) / share", "-(a / q) / share"),
)
edit(
    "W-5",
    "lengths are those of heads, not of sentences",
    *MAPS,
    (
        "loss += terms.sum() / share",
        "loss += sum(t.sum() / (S.shape[0] * S.shape[1] * s[h % len(s)]) for h, t in enumerate(terms))",
    ),
)
edit("W-5a", "one row too many", *MAPS, ("slice(length), slice(length))\n", "slice(length + 1), slice(length))\n"))
edit(
    "W-5a",
    "softmax over all keys",
    *MAPS,
    ("block = (b, slice(None), slice(length), slice(length))", "block = (b, slice(None), slice(length))"),
)
edit("W-5b", "adds the floor", *MAPS, ("np.maximum(np.exp(log_p), φ)", "np.exp(log_p) + φ"))
edit("W-5b", "no floor for the student", *MAPS, ("np.maximum(log_q, np.log(φ))", "log_q"))
edit("W-5b", "floored entries keep their own gradient", *MAPS, ("np.where(q >= φ, P, 0.0)", "P"))
edit(
    "W-5b",
    "no gradient at all below the floor",
    *MAPS,
    ("(q * a.sum(axis=-1, keepdims=True) - a) / share", "(q >= φ) * (q * a.sum(axis=-1, keepdims=True) - a) / share"),
)
edit(
    "W-2a",
    "looks at every logit",
    *TOKENS,
    (
        'np.broadcast_to(has[..., None] if ignored == "skip" else np.True_, S.shape)',
        "np.broadcast_to(np.True_, S.shape)",
    ),
)
