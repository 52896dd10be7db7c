"""Wrong backends of chapter G: second-order compression."""

from __future__ import annotations

from . import edit

edit(
    "G-1",
    "damping missing",
    "gptq",
    "inverse_cholesky",
    ("H + damping * (np.mean(np.diag(H)) if len(H) else 0.0) * np.eye(len(H))", "H + 1e-12 * np.eye(len(H))"),
)
edit(
    "G-1",
    "damps by the largest diagonal entry",
    "gptq",
    "inverse_cholesky",
    ("np.mean(np.diag(H))", "np.max(np.diag(H))"),
)
edit(
    "G-1",
    "lower factor",
    "gptq",
    "inverse_cholesky",
    (
        "np.triu(solve_triangular(R, np.eye(len(H)), lower=False))",
        "np.tril(solve_triangular(R, np.eye(len(H)), lower=False).T)",
    ),
)
edit(
    "G-1",
    "factor of H, not of its inverse",
    "gptq",
    "inverse_cholesky",
    ("solve_triangular(R, np.eye(len(H)), lower=False)", "R"),
)
edit(
    "G-1a",
    "dead columns overlooked",
    "gptq",
    "inverse_cholesky",
    ("return H + damping", "dead = np.zeros_like(dead)\n    return H + damping"),
)
edit(
    "G-1a",
    "mean before the repair",
    "gptq",
    "inverse_cholesky",
    (
        "    H = H + np.diag(dead.astype(np.float64))  # (G.1)",
        "    mean = np.mean(np.diag(H)) if len(H) else 0.0\n    H = H + np.diag(dead.astype(np.float64))",
    ),
    ("(np.mean(np.diag(H)) if len(H) else 0.0)", "mean"),
)
edit("G-2", "no update: plain rounding", "gptq", "gptq", ("W[:, i:] -= np.outer(e, U[i, i:])", "pass"))
edit("G-2", "lower factor", "gptq", "gptq", ("np.outer(e, U[i, i:])", "np.outer(e, U.T[i, i:])"))
edit(
    "G-2",
    "update not divided by the pivot",
    "gptq",
    "gptq",
    ("e = (W[:, i] - Q[:, j]) / U[i, i]", "e = W[:, i] - Q[:, j]"),
)
edit("G-2", "update of the wrong sign", "gptq", "gptq", ("W[:, i:] -= np.outer", "W[:, i:] += np.outer"))
edit(
    "G-2",
    "update stops at the block",
    "gptq",
    "gptq",
    (
        "W[:, i:] -= np.outer(e, U[i, i:])",
        "b = i // block_size * block_size + block_size; W[:, i:b] -= np.outer(e, U[i, i:b])",
    ),
)
edit(
    "G-2",
    "damping missing",
    "gptq",
    "gptq",
    ("[np.ix_(order, order)], damping=damping)", "[np.ix_(order, order)], damping=1e-9)"),
)
edit("G-2a", "loss without the half", "gptq", "gptq", ("float((e**2).sum() / 2)", "float((e**2).sum())"))
edit(
    "G-2a",
    "loss not divided by the pivot",
    "gptq",
    "gptq",
    ("float((e**2).sum() / 2)", "float(((e * U[i, i])**2).sum() / 2)"),
)
edit(
    "G-2b",
    "returns the updated weight",
    "gptq",
    "gptq",
    ("zero, group_index, Q, loss)", "zero, group_index, W[:, np.argsort(order)], loss)"),
)
edit("G-2c", "dead columns kept", "gptq", "gptq", ("W[:, dead] = 0", "pass"))
edit(
    "G-2c",
    "row grid after the dead columns are zeroed",
    "gptq",
    "gptq",
    ("    grid = find(W)  # of", "    W[:, np.diag(H) == 0] = 0\n    grid = find(W)  # of"),
)
edit("G-3", "act-order ascending", "gptq", "gptq", ("np.argsort(-np.where(dead", "np.argsort(np.where(dead"))
edit(
    "G-3",
    "ties to the higher index",
    "gptq",
    "gptq",
    (
        'np.argsort(-np.where(dead, 1.0, np.diag(H)), kind="stable")',
        'np.argsort(np.where(dead, 1.0, np.diag(H)), kind="stable")[::-1]',
    ),
)
edit("G-3", "dead columns last", "gptq", "gptq", ("-np.where(dead, 1.0, np.diag(H))", "-np.diag(H)"))
edit(
    "G-3b", "groups of original columns under act-order", "gptq", "gptq", ("(j if static_groups else i) // g", "j // g")
)
edit(
    "G-3b",
    "grids of original columns under act-order",
    "gptq",
    "gptq",
    (
        'grid = find((W if group_scales == "current" else seen)[:, i : i + g])',
        "grid = find(W[:, np.argsort(order)][:, i : i + g])",
    ),
)
edit("G-3a", "static groups by position", "gptq", "gptq", ("(j if static_groups else i) // g", "i // g"))
edit(
    "G-3a",
    "static groups fit on updated weights",
    "gptq",
    "gptq",
    ("if static_groups and group_size is not None:", "if False:"),
)
edit("G-4", "stale group scales", "gptq", "gptq", ('W if group_scales == "current" else seen', "seen"))
edit("G-4", "never stale", "gptq", "gptq", ('W if group_scales == "current" else seen', "W"))
edit(
    "G-4",
    "groups from the un-updated weight",
    "gptq",
    "gptq",
    ("if i % block_size == 0:", "if i == 0:"),
    ('W if group_scales == "current" else seen', "seen"),
)
edit(
    "G-4a",
    "clip search ignored",
    "gptq",
    "gptq",
    ("uniform.clip_search if clip_search else uniform.fit_grid", "uniform.fit_grid"),
)
edit("G-5", "prunes the largest", "sparsity", "sparsegpt", ("smallest((W[:, j]", "smallest(-(W[:, j]"))
edit("G-5", "saliency without the pivot", "sparsity", "sparsegpt", ("(W[:, j] / np.diag(U)[j]) ** 2", "W[:, j] ** 2"))
edit("G-5", "no update", "sparsity", "sparsegpt", ("W[:, i:] -= np.outer(e, U[i, i:])", "pass"))
edit("G-5", "keep and prune swapped", "sparsity", "sparsegpt", ("** 2, of - keep)", "** 2, keep)"))
edit(
    "G-5",
    "mask from the un-updated weight",
    "sparsity",
    "sparsegpt",
    ("    W[:, dead] = 0", "    W[:, dead] = 0\n    W0 = W.copy()"),
    ("smallest((W[:, j]", "smallest((W0[:, j]"),
)
edit(
    "G-5a",
    "ties prune the higher index",
    "sparsity",
    "sparsegpt",
    (
        'np.argsort(score, axis=-1, kind="stable")[..., :count]',
        'score.shape[-1] - 1 - np.argsort(score[..., ::-1], axis=-1, kind="stable")[..., :count]',
    ),
)
edit(
    "G-5b",
    "a pruned weight has code zero",
    "sparsity",
    "sparsegpt",
    ("            codes[:, [i]] = uniform.quantize(q,", "            codes[:, [i]] = 0 * uniform.quantize(q,"),
)
edit(
    "G-5b",
    "grid of the pruned weight",
    "sparsity",
    "sparsegpt",
    (
        'grid = find((W if group_scales == "current" else seen)[:, i : i + g])',
        'grid = find(np.where(mask, 0, W if group_scales == "current" else seen)[:, i : i + g])',
    ),
)
edit(
    "G-5b",
    "rounds the original weight",
    "sparsity",
    "sparsegpt",
    ("    W[:, dead] = 0", "    W[:, dead] = 0\n    W0 = W.copy()"),
    (
        "codes[:, [i]] = uniform.quantize(q,",
        "codes[:, [i]] = uniform.quantize(np.where(mask[:, [i]], 0.0, W0[:, [i]]),",
    ),
)
edit("G-6", "without the square root", "sparsity", "wanda", ("np.sqrt(a)", "a"))
edit("G-6", "prunes the largest", "sparsity", "wanda", ("smallest(score.reshape", "smallest(-score.reshape"))
edit("G-6", "ignores the activations", "sparsity", "wanda", ("np.abs(W) * np.sqrt(a)", "np.abs(W)"))
edit(
    "G-6",
    "tuples across columns",
    "sparsity",
    "wanda",
    ("score.reshape(m, k // of, of), of - keep)", "np.swapaxes(score.reshape(m, of, k // of), 1, 2), of - keep)"),
)
edit(
    "G-6a",
    "ties prune the higher index",
    "sparsity",
    "wanda",
    (
        'np.argsort(score, axis=-1, kind="stable")[..., :count]',
        'score.shape[-1] - 1 - np.argsort(score[..., ::-1], axis=-1, kind="stable")[..., :count]',
    ),
)
