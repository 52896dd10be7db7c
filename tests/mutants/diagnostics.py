"""Wrong backends of chapter W: diagnostics."""

from __future__ import annotations

from . import edit

RANKING = ("diagnostics", "ranking_loss")
COVER = ("diagnostics", "cover_length")
RANGE = ("diagnostics", "attention_range")
NORMS = ("diagnostics", "attention_norms")
POWER = ("diagnostics", "power_eigenvalues")

edit("W-6", "every pair twice", *RANKING, ("(i < n - 1) & (j > 0)", "(i != j)"))
edit("W-6", "every pair once", *RANKING, ("(i < n - 1) & (j > 0)", "i < j"))
edit("W-6", "adds a margin", *RANKING, ("np.maximum(wrong, 0.0)", "np.maximum(wrong + 0.125, 0.0)"))
edit(
    "W-6",
    "order of the student, distance of the teacher",
    *RANKING,
    (
        "(S[..., :, None] - S[..., None, :]) * np.sign(T[..., :, None] - T[..., None, :])",
        "(T[..., :, None] - T[..., None, :]) * np.sign(S[..., :, None] - S[..., None, :])",
    ),
)
edit("W-6", "mean over rows", *RANKING, (".sum(axis=(1, 2, 3)))", ".sum(axis=(2, 3)).mean(axis=1))"))
edit("W-7", "counts the last row", *COVER, ('worst if rows == "all" else worst[:, :-1]', "worst"))
edit("W-7", "mean over the rows used", *COVER, ("used.sum(axis=1) / n**2", "used.mean(axis=1) / n"))
edit("W-7", "ascending order of the student", *COVER, ("np.argsort(-S,", "np.argsort(S,"))
edit("W-7", "places from 1", *COVER, ("leading, axis=-1).max(axis=-1)", "leading, axis=-1).max(axis=-1) + 1"))
edit(
    "W-7",
    "mean place instead of the worst",
    *COVER,
    ("leading, axis=-1).max(axis=-1)", "leading, axis=-1).mean(axis=-1)"),
)
edit(
    "W-7a",
    "the teacher's equal keys by falling index",
    *COVER,
    (
        'np.argsort(-T, axis=-1, kind="stable")[..., :k]',
        "T.shape[-1] - 1 - np.argsort(-T[..., ::-1], axis=-1, kind='stable')[..., :k]",
    ),
)
edit(
    "W-7a",
    "the student's equal keys share a place",
    *COVER,
    (
        'np.argsort(np.argsort(-S, axis=-1, kind="stable"), axis=-1, kind="stable")',
        "(S[..., None, :] > S[..., :, None]).sum(axis=-1)",
    ),
)
edit("W-8", "range of magnitudes", *RANGE, ("Y.min(axis=1)", "np.abs(Y).min(axis=1)"))
edit("W-8", "range of features over tokens", *RANGE, ("Y.max(axis=1)", "np.full(len(Y), Y.max(initial=0.0))"))
edit("W-9", "forgets the bias", *NORMS, ("(X @ V.T + bias)", "(X @ V.T)"))
edit("W-9", "mean over keys", *NORMS, ("α.mean(axis=1)", "α.mean(axis=2)"))
edit(
    "W-9",
    "interleaves the heads",
    *NORMS,
    (".reshape(n, H, len(V) // H)", ".reshape(n, len(V) // H, H).swapaxes(1, 2)"),
)
edit(
    "W-9",
    "norm before the output matrix",
    *NORMS,
    ("size = np.sqrt((f**2).sum(axis=-1))", "size = np.sqrt((values**2).sum(axis=-1)).T"),
)
edit("W-9", "sum over queries", *NORMS, ("attended * size)", "attended * n * size)"))
edit(
    "W-10",
    "answers the vector of the next step",
    *POWER,
    (
        "residual[k], vectors[k], steps[k] = μ + σ, np.sqrt(r @ r), v, step",
        "residual[k], vectors[k], steps[k] = μ + σ, np.sqrt(r @ r), y / (size or 1.0), step",
    ),
)
edit("W-10", "forgets to move the value back", *POWER, ("= μ + σ,", "= μ,"))
edit("W-10", "claims half the residual", *POWER, ("np.sqrt(r @ r), v, step", "np.sqrt(r @ r) / 2, v, step"))
edit("W-10", "does not deflate", *POWER, ("found = vectors[:k]", "found = vectors[:0]"))
edit("W-10", "norm of the product for its quotient", *POWER, ("μ = float(v @ y)", "μ = float(np.sqrt(y @ y))"))
edit(
    "W-10a",
    "deflates once, at the start",
    *POWER,
    ("free = v - found.T @ (found @ v)\n", "free = v - (step == 1) * found.T @ (found @ v)\n"),
    ("free = free - found.T @ (found @ free)", "free = free * 1.0"),
    ("y = apply(v) - σ * v", "y = apply(v) - σ * v + 1e-3 * found.sum(axis=0)"),
)
edit("W-10a", "a step too few", *POWER, ("range(1, most + 1)", "range(1, max(most, 2))"))
edit("W-10a", "squares the operator", *POWER, ("v, before = y / size, μ", "v, before = apply(y) / size, μ"))
edit(
    "W-10b",
    "an optimistic residual",
    *POWER,
    ("np.sqrt(r @ r), v, step", "(r @ r), v, step"),
    ("residual[k] <= ε * abs(μ)", "np.sqrt(r @ r) <= 0.5 * abs(μ)"),
)
edit("W-10b", "ignores the shift", *POWER, ("y = apply(v) - σ * v", "y = apply(v)"), ("= μ + σ,", "= μ,"))
edit("W-10c", "stops by change whatever was asked", *POWER, ('if stop == "residual":\n', "if False:\n"))
edit("W-10c", "stops by residual whatever was asked", *POWER, ('if stop == "residual":\n', "if True:\n"))
edit("W-10c", "counts from 0", *POWER, ("np.sqrt(r @ r), v, step", "np.sqrt(r @ r), v, step - 1"))
edit("W-10c", "change relative to the new value", *POWER, ("(abs(before) + 1e-6)", "(abs(μ) + 1e-6)"))
