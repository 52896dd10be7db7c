"""Wrong backends of chapter U: scale tuning."""

# ruff: noqa: E501  (edits quote lines of source, and their replacements, whole)
from __future__ import annotations

from . import edit

edit(
    "U-1",
    "takes the largest value for the largest magnitude",
    "scale_tuning",
    "trainable_scales",
    ("np.argmax(np.abs(α), axis=2)", "np.argmax(α, axis=2)"),
)
edit(
    "U-1",
    "trains the largest scale when the first was asked for",
    "scale_tuning",
    "trainable_scales",
    ('np.zeros(α.shape[:2], np.int64) if train == "first" else np.argmax', "np.argmax"),
)
edit("U-1", "one scale per row", "scale_tuning", "trainable_scales", ("first[..., None])", "first[:, :1, None])"))
edit(
    "U-1",
    "counts planes from the last",
    "scale_tuning",
    "trainable_scales",
    ("np.zeros(α.shape[:2], np.int64)", "np.full(α.shape[:2], α.shape[2] - 1)"),
)
edit(
    "U-1a",
    "the higher of equal planes",
    "scale_tuning",
    "trainable_scales",
    ("np.argmax(np.abs(α), axis=2)", "α.shape[2] - 1 - np.argmax(np.abs(α)[..., ::-1], axis=2)"),
)
edit(
    "U-2",
    "forgets the signs",
    "scale_tuning",
    "scale_grad",
    ("by_group(D * B, groups)", "by_group(D * np.ones_like(B), groups)"),
)
edit(
    "U-2",
    "sums over the row whatever the group",
    "scale_tuning",
    "scale_grad",
    (
        "np.moveaxis(by_group(D * B, groups).sum(axis=-1), 0, -1)  # (U.4)",
        "np.moveaxis(by_group(D * B, groups).sum(axis=-1), 0, -1); g = g.sum(axis=1, keepdims=True) + 0 * g",
    ),
)
edit(
    "U-2",
    "interleaves the columns of groups",
    "scale_tuning",
    "scale_grad",
    (
        "return x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups if groups else 0)",
        "return np.swapaxes(x.reshape(*x.shape[:-1], x.shape[-1] // groups if groups else 0, groups), -1, -2)",
    ),
)
edit("U-2", "always divides", "scale_tuning", "scale_grad", ('if norm == "mean" else g', "if True else g"))
edit("U-2a", "never divides", "scale_tuning", "scale_grad", ('if norm == "mean" else g', "if False else g"))
edit(
    "U-2a",
    "divides by the row instead of the group",
    "scale_tuning",
    "scale_grad",
    ("max(D.shape[1] // max(groups, 1), 1)", "max(D.shape[1], 1)"),
)
edit(
    "U-2b",
    "highest bit first",
    "scale_tuning",
    "scale_grad",
    ("b >> np.arange(bits)[:, None, None]", "b >> np.arange(bits)[::-1, None, None]"),
)
edit(
    "U-2b",
    "reads a 1 as -1",
    "scale_tuning",
    "scale_grad",
    (
        "return 2 * bit - 1",
        "return 1 - 2 * bit",
    ),
)
edit(
    "U-2b",
    "planes of zeros and ones",
    "scale_tuning",
    "scale_grad",
    (
        "return 2 * bit - 1",
        "return bit",
    ),
)
edit(
    "U-3",
    "averages over tokens",
    "scale_tuning",
    "scale_grad_tokens",
    ("scale_grad(δ.T @ X, q,", "scale_grad(δ.T @ X / max(len(X), 1), q,"),
)
edit(
    "U-3",
    "multiplies in half precision",
    "scale_tuning",
    "scale_grad_tokens",
    ("scale_grad(δ.T @ X, q,", "scale_grad(δ.astype(np.float16).astype(np.float64).T @ X, q,"),
)
edit(
    "U-3",
    "drops the normalisation",
    "scale_tuning",
    "scale_grad_tokens",
    ("bits=bits, group_size=group_size, norm=norm)  # (U.6)", "bits=bits, group_size=group_size)"),
)
edit("U-4", "no bias correction", "scale_tuning", "tune_step", ("m2 / (1 - β1**t)", "m2"))
edit("U-4", "corrects by the step before", "scale_tuning", "tune_step", ("(1 - β2**t)", "(1 - β2 ** max(t - 1, 1))"))
edit("U-4", "decays towards zero", "scale_tuning", "tune_step", ("λ * (α - α0)", "λ * α"))
edit(
    "U-4",
    "decay inside the gradient",
    "scale_tuning",
    "tune_step",
    ("m2, v2 = β1 * m", "g = g + λ * (α - α0)\n    m2, v2 = β1 * m"),
)
edit(
    "U-4",
    "epsilon under the root",
    "scale_tuning",
    "tune_step",
    ("np.sqrt(v2 / (1 - β2**t)) + ε", "np.sqrt(v2 / (1 - β2**t) + ε)"),
)
edit("U-4", "climbs", "scale_tuning", "tune_step", ("α - η * (adam", "α + η * (adam"))
edit(
    "U-4",
    "forms 1 - beta in single precision",
    "scale_tuning",
    "tune_step",
    ("β2 * v + (1 - β2) * g**2", "β2 * v + float(np.float32(1) - np.float32(β2)) * g**2"),
)
edit("U-4", "divides zero by zero", "scale_tuning", "tune_step", ("where=below > 0)", "where=below >= 0)"))
edit("U-4a", "updates the state of frozen scales", "scale_tuning", "tune_step", ("np.where(on, m2, m)", "m2"))
edit(
    "U-4a",
    "decays frozen scales",
    "scale_tuning",
    "tune_step",
    ("np.where(on, α2, α)", "np.where(on, α2, α - η * λ * (α - α0))"),
)
edit(
    "U-4a",
    "masks the gradient instead of the step",
    "scale_tuning",
    "tune_step",
    ("m2, v2 = β1 * m", "g = g * on\n    m2, v2 = β1 * m"),
    ("np.where(on, α2, α), np.where(on, m2, m), np.where(on, v2, v)", "α2, m2, v2"),
)
edit(
    "U-5",
    "ignores the correlation of inputs",
    "scale_tuning",
    "fit_scales",
    ("Z @ C @ Z.T", "Z @ np.diag(np.diag(C)) @ Z.T"),
)
edit(
    "U-5",
    "fits the weight instead of what the others leave",
    "scale_tuning",
    "fit_scales",
    ("error = W[r] - (α[r].T[..., None] * parts).sum(axis=0).reshape(-1)", "error = W[r]"),
)
edit(
    "U-5",
    "fits white inputs",
    "scale_tuning",
    "fit_scales",
    ("λ, V = np.linalg.eigh", "C = np.eye(len(C))\n        λ, V = np.linalg.eigh"),
)
edit("U-5", "damps the equations", "scale_tuning", "fit_scales", ("/ λ[kept])", "/ (λ[kept] + λ.max() / 1000))"))
edit("U-5", "cuts off too much", "scale_tuning", "fit_scales", ("RESOLVED * λ.max", "0.4 * λ.max"))
edit(
    "U-5a",
    "fits every plane of a group that trains",
    "scale_tuning",
    "fit_scales",
    ("γ, plane = np.nonzero(on[r])", "γ, plane = np.nonzero(on[r].any(axis=1, keepdims=True) & (on[r] | True))"),
)
edit(
    "U-5a",
    "sorts the scales of a group",
    "scale_tuning",
    "fit_scales",
    ("    return fitted\n", "    return -np.sort(-fitted, axis=2)\n"),
)
edit(
    "U-5b",
    "gives everything to the first of equal planes",
    "scale_tuning",
    "fit_scales",
    (
        "λ, V = np.linalg.eigh(Z @ C @ Z.T)",
        "Z = Z * (np.abs(np.tril(np.sign(np.round(Z @ Z.T)), -1)).sum(axis=1) == 0)[:, None]\n        λ, V = np.linalg.eigh(Z @ C @ Z.T)",
    ),
)
edit(
    "U-5b",
    "starts from zero, and so moves what it need not",
    "scale_tuning",
    "fit_scales",
    ("error = W[r] - (α[r].T[..., None] * parts).sum(axis=0).reshape(-1)", "error = W[r]; fitted[r] = 0"),
)
edit(
    "U-5c",
    "scales are fitted by an indefinite moment",
    "scale_tuning",
    "fit_scales",
    (
        'checks.definite(checks.second_moment(c, W.shape[1], "c", "U-5"), "c", "U-5")',
        'checks.second_moment(c, W.shape[1], "c", "U-5")',
    ),
)
