"""Wrong backends of chapter M: mixed precision."""

# ruff: noqa: E501  (edits quote lines of source, and their replacements, whole)
from __future__ import annotations

from . import edit

edit(
    "M-1",
    "few bits for the frequent",
    "mixed_precision",
    "row_bits",
    ("np.arange(clusters, 0, -1)", "np.arange(1, clusters + 1)"),
)
edit(
    "M-1",
    "the largest cluster to the most frequent",
    "mixed_precision",
    "row_bits",
    ("share = [r**i for i in range(b)]", "share = [r ** (b - 1 - i) for i in range(b)]"),
)
edit(
    "M-1",
    "what is left over goes to the first cluster",
    "mixed_precision",
    "row_bits",
    (
        "return [*sizes, rows - sum(sizes)]",
        "return [rows - sum(sizes) - rows * share[-1] // sum(share) + sizes[0], *sizes[1:], rows * share[-1] // sum(share)] if sizes else [rows]",
    ),
)
edit(
    "M-1",
    "rounds sizes to nearest",
    "mixed_precision",
    "row_bits",
    ("rows * s // sum(share)", "(2 * rows * s + sum(share)) // (2 * sum(share))"),
)
edit("M-1", "bits by id", "mixed_precision", "row_bits", ('bits[np.argsort(-n, kind="stable")] =', "bits[:] ="))
edit(
    "M-1",
    "counts in single precision",
    "mixed_precision",
    "row_bits",
    ("np.argsort(-n,", "np.argsort(-n.astype(np.float32) // 4096,"),
)
edit(
    "M-1a",
    "ties by the higher id",
    "mixed_precision",
    "row_bits",
    ('np.argsort(-n, kind="stable")', 'len(n) - 1 - np.argsort(-n[::-1], kind="stable")'),
)
edit(
    "M-1a",
    "sorting that is not stable",
    "mixed_precision",
    "row_bits",
    ('np.argsort(-n, kind="stable")', 'np.argsort(-n + 0.0, kind="heapsort")'),
)
edit(
    "M-2",
    "stops at the first step that does not fit",
    "mixed_precision",
    "allocate_bits",
    ("            closed.add(j)\n", "            closed.update(range(len(e)))\n"),
)
edit(
    "M-2",
    "does not shorten a step",
    "mixed_precision",
    "allocate_bits",
    ("for q in range(a, b) if", "for q in range(a, a + 1) if"),
)
edit(
    "M-2",
    "largest gain first, whatever it costs",
    "mixed_precision",
    "allocate_bits",
    ("/ (size[here + 1 :] - size[here])  # (M.3)", "/ 1"),
)
edit(
    "M-2",
    "spends up to one unit too much",
    "mixed_precision",
    "allocate_bits",
    ("spent + cost <= budget", "spent + cost <= budget + 1"),
)
edit("M-2", "buys bits one by one", "mixed_precision", "allocate_bits", ("best = int(np.argmax(slope))", "best = 0"))
edit(
    "M-2",
    "goes on with a block that was closed",
    "mixed_precision",
    "allocate_bits",
    ("if j not in closed and spent", "if spent"),
)
edit(
    "M-2a",
    "shallow steps first",
    "mixed_precision",
    "allocate_bits",
    ("key=lambda step: step[:2])", "key=lambda step: (-step[0], step[1]))"),
)
edit(
    "M-2a",
    "the same bits for every block",
    "mixed_precision",
    "allocate_bits",
    ("key=lambda step: step[:2])", "key=lambda step: (step[2], step[1]))"),
)
edit(
    "M-2b",
    "equal slopes to the higher block",
    "mixed_precision",
    "allocate_bits",
    ("key=lambda step: step[:2])", "key=lambda step: (step[0], -step[1]))"),
)
edit(
    "M-2b",
    "one step per block in turn",
    "mixed_precision",
    "allocate_bits",
    ("key=lambda step: step[:2])", "key=lambda step: (step[0], step[2], step[1]))"),
)
edit(
    "M-2b",
    "lets rounding turn the order of a block",
    "mixed_precision",
    "allocate_bits",
    ("last = min(last, float(slope[best]))", "last = float(slope[best])"),
)
edit(
    "M-2c",
    "the error for a bound",
    "mixed_precision",
    "allocate_bits",
    ("error if relaxed is None else relaxed", "error"),
)
edit(
    "M-2c",
    "a bound of minus infinity",
    "mixed_precision",
    "allocate_bits",
    ("error if relaxed is None else relaxed", "-np.inf"),
)
edit(
    "M-2c",
    "bound from the last step that does not fit",
    "mixed_precision",
    "allocate_bits",
    ("        if relaxed is None:\n", "        if True:\n"),
)
edit(
    "M-3",
    "every row with the most planes",
    "mixed_precision",
    "project_rows",
    ("on = (q > i)[:, None]", "on = np.ones((len(q), 1), bool)"),
)
edit(
    "M-3",
    "one plane too few",
    "mixed_precision",
    "project_rows",
    ("on = (q > i)[:, None]", "on = (q > max(i, 1))[:, None]"),
)
edit(
    "M-3",
    "a scale for the whole matrix",
    "mixed_precision",
    "project_rows",
    (
        "np.abs(r).sum(axis=1, keepdims=True) / max(W.shape[1], 1)",
        "np.full((len(r), 1), np.abs(r).mean() if r.size else 0.0)",
    ),
)
edit(
    "M-3",
    "the largest magnitude as the scale",
    "mixed_precision",
    "project_rows",
    ("np.abs(r).sum(axis=1, keepdims=True) / max(W.shape[1], 1)", "np.abs(r).max(axis=1, keepdims=True, initial=0.0)"),
)
edit(
    "M-3a",
    "scales in half precision",
    "mixed_precision",
    "project_rows",
    ("plane = np.where(on", "α = α.astype(np.float16).astype(np.float64)\n        plane = np.where(on"),
)
edit(
    "M-3a",
    "forgets the residual",
    "mixed_precision",
    "project_rows",
    ("r, w_hat = r - plane, w_hat + plane", "r, w_hat = r - plane / 2, w_hat + plane"),
)
edit(
    "M-3b", "the sign of zero is zero", "mixed_precision", "project_rows", ("np.where(r < 0, -α, α)", "np.sign(r) * α")
)
edit(
    "M-3b",
    "the sign of minus zero is minus",
    "mixed_precision",
    "project_rows",
    ("np.where(r < 0, -α, α)", "np.copysign(α, r)"),
)
edit(
    "M-3b",
    "zero counts as negative",
    "mixed_precision",
    "project_rows",
    ("np.where(r < 0, -α, α)", "np.where(r <= 0, -α, α)"),
)
edit(
    "M-3c", "greedy whatever was asked for", "mixed_precision", "project_rows", ('if method != "greedy":', "if False:")
)
edit(
    "M-3c",
    "no rounds",
    "mixed_precision",
    "project_rows",
    ("method=method, rounds=rounds", 'method="greedy" if method == "refined" else method, rounds=0'),
)
edit("M-3c", "a plane more", "mixed_precision", "project_rows", ("bits=b, method", "bits=b + 1, method"))
