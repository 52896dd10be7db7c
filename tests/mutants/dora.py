"""Wrong backends of chapter D: DoRA."""

# ruff: noqa: E501  (edits quote lines of source, and their replacements, whole)
from __future__ import annotations

from typing import Any

import numpy as np

from lowbit import reference

from . import Array, edit, replace, wrap

edit(
    "D-1",
    "norms of columns, as the paper's (in, out) reads",
    "dora",
    "dora_magnitude",
    ("** 2).sum(axis=1)))  # (2.8)", "** 2).sum(axis=0)))"),
)
edit(
    "D-1",
    "forgets the root",
    "dora",
    "dora_magnitude",
    (
        'np.sqrt((unfolded(w, "w", layout, "D-1") ** 2).sum(axis=1))',
        '(unfolded(w, "w", layout, "D-1") ** 2).sum(axis=1)',
    ),
)
edit(
    "D-1",
    "one magnitude per token of an embedding",
    "dora",
    "dora_magnitude",
    ('np.ascontiguousarray(W.T) if layout == "transposed" else W\n    if', "W\n    if"),
)
edit(
    "D-2",
    "divides by the norm of W alone",
    "dora",
    "dora_norm",
    ("((W + B @ A) ** 2).sum(axis=1)))  # (2.2)", "(W**2).sum(axis=1)))"),
)
edit(
    "D-2",
    "scaling outside the norm",
    "dora",
    "dora_norm",
    ("return W, scaling * B.reshape(m, r)", "return W, B.reshape(m, r)"),
)
edit(
    "D-2",
    "adds an epsilon that is not small",
    "dora",
    "dora_norm",
    ("((W + B @ A) ** 2).sum(axis=1)))  # (2.2)", "((W + B @ A) ** 2).sum(axis=1) + 1e-6))"),
)


@replace("D-2", "expands the square in float32")
def dora_norm(w: Any, b: Any, a: Any, /, *, scaling: float, layout: Any = "linear") -> Array:
    """(2.6) in the precision of training: nothing is left where B A erases W."""
    if layout != "linear":
        return reference.dora_norm(w, b, a, scaling=scaling, layout=layout)
    W, B, A = (np.asarray(x, np.float32) for x in (w, scaling * np.asarray(b), a))
    square = (W**2).sum(axis=1) + 2 * (B * (W @ A.T)).sum(axis=1) + (B @ (A @ A.T) * B).sum(axis=1)
    return np.asarray(np.sqrt(np.maximum(square, 0)), np.float64)


edit(
    "D-2a",
    "norms in another order than at the start",
    "dora",
    "dora_norm",
    (
        "((W + B @ A) ** 2).sum(axis=1)))  # (2.2)",
        "((W + B @ A)[:, ::-1] ** 2).cumsum(axis=1)[:, -1])) if np.size(w) else dora_magnitude(w)",
    ),
)
wrap("D-2a", "magnitudes stored in half precision", "dora_magnitude", lambda m: m.astype(np.float16).astype(np.float64))
edit("D-3", "drops the quadratic term", "dora", "factored_norm", (" + (B @ (A @ A.T) * B).sum(axis=1)  # (2.6)", ""))
edit("D-3", "forgets the 2", "dora", "factored_norm", ("square += 2 * (B", "square += (B"))


@replace("D-3", "sums in float32")
def factored_norm(w: Any, square_norm: Any, b: Any, a: Any, /, *, scaling: float) -> Array:
    """Negative squares are clamped, and the others are noise."""
    reference.factored_norm(w, square_norm, b, a, scaling=scaling)
    W, q, B, A = (np.asarray(x, np.float32) for x in (w, square_norm, scaling * np.asarray(b), a))
    square = q + 2 * (B * (W @ A.T)).sum(axis=1) + (B @ (A @ A.T) * B).sum(axis=1)
    return np.asarray(np.sqrt(np.maximum(square, 0)), np.float64)


edit(
    "D-4",
    "normalises by the norm of W",
    "dora",
    "dora_weight",
    (
        "    V = W + B @ A  # (2.1)\n    c = np.sqrt((V**2).sum(axis=1))\n    return folded",
        "    V = W + B @ A\n    c = np.sqrt((W**2).sum(axis=1))\n    return folded",
    ),
)
edit(
    "D-4",
    "forgets the magnitude",
    "dora",
    "dora_weight",
    ("return folded(quotient(m, c)", "return folded(quotient(np.ones_like(m), c)"),
)
edit(
    "D-4",
    "magnitude on the wrong axis of a transposed weight",
    "dora",
    "dora_weight",
    ('W.T if layout == "transposed" else W.reshape(shape)', "W.reshape(shape)"),
)
edit("D-4", "drops the sign of the magnitude", "dora", "dora_weight", ("quotient(m, c)", "quotient(np.abs(m), c)"))
edit(
    "D-4a",
    "divides zero by zero",
    "dora",
    "dora_weight",
    ("np.divide(magnitude, c, out=np.ones_like(c), where=c > 0)", "magnitude / c"),
)
edit("D-4a", "an infinity times zero", "dora", "dora_weight", ("out=np.ones_like(c)", "out=np.full_like(c, np.inf)"))
edit("D-5", "scales the bias", "dora", "dora_forward", ("X @ W.T + shift + (g - 1)", "X @ W.T + g * shift + (g - 1)"))
edit(
    "D-5",
    "reuses the base product under dropout",
    "dora",
    "dora_forward",
    ("(g - 1) * (dropped_x @ W.T)", "(g - 1) * (X @ W.T)"),
)
edit("D-5", "drops the base too", "dora", "dora_forward", ("(X @ W.T + shift", "(dropped_x @ W.T + shift"))
edit("D-5", "adds the base twice", "dora", "dora_forward", ("(g - 1) * (dropped_x", "g * (dropped_x"))
edit(
    "D-5a",
    "divides zero by zero in the output",
    "dora",
    "dora_forward",
    ("np.divide(magnitude, c, out=np.ones_like(c), where=c > 0)", "magnitude / c"),
)
edit(
    "D-5a",
    "loses the bias of a zero row",
    "dora",
    "dora_forward",
    ("X @ W.T + shift", "X @ W.T + shift * W.any(axis=1)"),
)
edit(
    "D-6",
    "goes through the norm when it is told not to",
    "dora",
    "dora_gradient",
    ("(G if detach else", "(G if False else"),
)
edit("D-6", "scaling forgotten in dB", "dora", "dora_gradient", ("scaling * dV @ A.T", "dV @ A.T"))
edit(
    "D-6",
    "leaves the factor out of the backward pass",
    "dora",
    "dora_gradient",
    ("dV = quotient(m, c)[:, None] * (G", "dV = np.ones_like(c)[:, None] * (G"),
)
edit("D-6", "gradient of m by V instead of its direction", "dora", "dora_gradient", ("dm = (G * v)", "dm = (G * V)"))
edit("D-6a", "takes the norm as a constant always", "dora", "dora_gradient", ("(G if detach else", "(G if True else"))
edit(
    "D-6a",
    "projects on V instead of its direction",
    "dora",
    "dora_gradient",
    ("G - dm[:, None] * v)", "G - dm[:, None] * V)"),
)
edit(
    "D-6a",
    "projects after the factor",
    "dora",
    "dora_gradient",
    (
        "quotient(m, c)[:, None] * (G if detach else G - dm[:, None] * v)",
        "(quotient(m, c)[:, None] * G if detach else quotient(m, c)[:, None] * G - dm[:, None] * v)",
    ),
)
edit(
    "D-6b",
    "divides zero by zero in the direction of a zero row",
    "dora",
    "dora_gradient",
    ("np.divide(V, c[:, None], out=np.zeros_like(V), where=c[:, None] > 0)", "V / c[:, None]"),
)
edit("D-6b", "a zero row never learns", "dora", "dora_gradient", ("out=np.ones_like(c)", "out=np.zeros_like(c)"))
edit(
    "D-7",
    "finds the norm again in the merged weight",
    "dora",
    "dora_unmerge",
    ("W / g[:, None] - B @ A", "W / (g * np.sqrt((W**2).sum(axis=1)) + (W == 0).all(axis=1))[:, None] - B @ A"),
)
edit("D-7", "multiplies instead of dividing", "dora", "dora_unmerge", ("W / g[:, None]", "W * g[:, None]"))
edit("D-7", "adds the update again", "dora", "dora_unmerge", ("- B @ A, np.shape(merged)", "+ B @ A, np.shape(merged)"))
edit(
    "D-7",
    "keeps the norm instead of the factor",
    "dora",
    "dora_merge",
    ("layout), g)  # (2.10)", "layout), np.sqrt((V**2).sum(axis=1)) + (g == 0))"),
)
edit("D-7a", "answers with NaN", "dora", "dora_unmerge", ("if not g.all():", "if False:"))
wrap("D-8", "scales the columns of A", "dvora_factors", lambda f: f._replace(A=f.A[:, ::-1]))
edit(
    "D-8",
    "scales once more with the rank vector",
    "dora",
    "dvora_factors",
    ("LowRank(row[:, None] * B,", "LowRank(row[:, None] * B * rank,"),
)
edit(
    "D-8",
    "sums the gradient of A over the wrong axis",
    "dora",
    "dvora_gradient",
    ("(dB * B).sum(axis=1)", "np.abs(dB * B).sum(axis=1)"),
)
edit(
    "D-9",
    "norm of the change instead of change of the norm",
    "dora",
    "decomposition_change",
    ("np.abs(p - q).sum()", "np.sqrt(((W - S) ** 2).sum(axis=1)).sum()"),
)
edit("D-9", "sums instead of the mean", "dora", "decomposition_change", ("n = max(len(W), 1)", "n = 1"))
edit(
    "D-9",
    "a zero row counts as unchanged",
    "dora",
    "decomposition_change",
    ("out=none.astype(np.float64)", "out=np.ones_like(p)"),
)
edit("D-10", "refits W' instead of its change", "dora", "dora_to_lora", ("[:, None] * V - W", "[:, None] * V"))
edit(
    "D-10",
    "tells the square of the residual",
    "dora",
    "dora_to_lora",
    ("float(np.linalg.norm(Δ - P @ Q))", "float(np.linalg.norm(Δ - P @ Q)) ** 2"),
)
edit(
    "D-10",
    "gives back the old factors",
    "dora",
    "dora_to_lora",
    (
        'P, Q = low_rank.truncated(Δ, r, "balanced")  # (2.14)',
        "P, Q = np.resize(B, (len(W), r)) if B.size else np.zeros((len(W), r)), np.resize(A, (r, W.shape[1])) if A.size else np.zeros((r, W.shape[1]))",
    ),
)
