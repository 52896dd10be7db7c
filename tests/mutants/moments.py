"""Wrong backends of chapter C: second moments and low-rank patches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lowbit import reference

from . import MUTANTS, Mutant, edit, low_precision


def tf32(op: Callable[..., Any]) -> Callable[..., Any]:
    """An operation that sees its float arguments with 11 significand bits."""

    def call(*arrays: Any, **options: Any) -> Any:
        return op(*(low_precision(a) for a in arrays), **options)

    return call


MUTANTS.append(Mutant("C-1", "TF32 product", lambda: {"moment_leaf": tf32(reference.moment_leaf)}))
edit("C-1", "covariance of tokens", "moments", "moment_leaf", ("S = X.T @ X", "S = X @ X.T"))
edit(
    "C-1",
    "mean instead of sum",
    "moments",
    "moment_leaf",
    ("gram(X), np.abs(X).sum(axis=0)", "gram(X) / max(len(X), 1), np.abs(X).sum(axis=0)"),
)
edit("C-1", "magnitude squared", "moments", "moment_leaf", ("np.abs(X).sum(axis=0)", "(X**2).sum(axis=0)"))
edit("C-1", "index forgotten", "moments", "moment_leaf", ("MomentNode(0, index, gram", "MomentNode(0, 0, gram"))
edit("C-1", "twice the sum, as GPTQ's Hessian", "moments", "moment_leaf", ("S = X.T @ X", "S = 2 * (X.T @ X)"))
edit(
    "C-1a",
    "triangles summed apart",
    "moments",
    "moment_leaf",
    ("np.triu(S) + np.triu(S, 1).T", "np.triu(S) + np.triu(S, 1).T * (1 + 2.0**-50)"),
)
edit(
    "C-1a",
    "float32 sums",
    "moments",
    "moment_leaf",
    ("return np.asarray(np.triu(S) + np.triu(S, 1).T)", "return np.asarray(np.triu(S) + np.triu(S, 1).T, np.float32)"),
)


def running_sum(left: Any, right: Any) -> Any:
    """All leaves in one node, added as they come: the usual accumulator."""
    nodes = [*left, *right]
    if len(nodes) < 2:
        return tuple(nodes)
    total = nodes[0]
    for node in nodes[1:]:
        total = total._replace(
            sum=total.sum + node.sum, magnitude=total.magnitude + node.magnitude, tokens=total.tokens + node.tokens
        )
    return (total._replace(level=10, index=0),)


MUTANTS.append(Mutant("C-2", "running sum", lambda: {"moment_merge": running_sum}))
edit(
    "C-2",
    "merges neighbours that are not siblings",
    "moments",
    "moment_merge",
    ("merged[-2].index ^ 1 == merged[-1].index", "merged[-2].index + 1 == merged[-1].index"),
)
edit("C-2", "siblings wait", "moments", "moment_merge", ("while len(merged) > 1 and", "while len(merged) > 2 and"))
edit(
    "C-2",
    "sorted by level",
    "moments",
    "moment_merge",
    ("return tuple(merged)", "return tuple(sorted(merged, key=lambda n: -n.index))"),
)
edit(
    "C-2a",
    "divides by the number of nodes",
    "moments",
    "moment_total",
    ("tokens = sum(n.tokens for n in merged)", "tokens = len(merged)"),
)
edit(
    "C-2a",
    "mean of the means",
    "moments",
    "moment_total",
    ("root.sum / tokens", "sum(n.sum / n.tokens for n in merged) / len(merged)"),
)
edit(
    "C-2a",
    "drops the last node",
    "moments",
    "moment_total",
    ("root = fold(merged, levels, 0)", "root = fold(merged[:-1] or merged, levels, 0)"),
)
edit(
    "C-2b",
    "counts a leaf twice",
    "moments",
    "moment_merge",
    ("if merged and node.index << node.level < (merged[-1].index + 1) << merged[-1].level:", "if False:"),
)
edit(
    "C-2b",
    "total of nothing",
    "moments",
    "moment_total",
    (
        "    if tokens == 0:",
        "    if not merged:\n        return SecondMoment(np.zeros((0, 0)), np.zeros(0), 0)\n    if tokens == 0:",
    ),
)
edit("C-3", "a plain mean", "moments", "recency_moment", ("C = C * total / (total + len(x))", "pass"))
edit("C-3", "one sequence per batch", "moments", "recency_moment", ("(total + len(x))", "(total + 1)"))
edit("C-3", "first batches count most", "moments", "recency_moment", ("for x in X:\n", "for x in X[::-1]:\n"))
edit(
    "C-4",
    "rank off by one",
    "low_rank",
    "svd_patch",
    ("U, σ, Vt = U[:, :r], σ[:r], Vt[:r]", "U, σ, Vt = U[:, :r], np.where(np.arange(r) < r - 1, σ[:r], 0.0), Vt[:r]"),
)
edit(
    "C-4",
    "smallest singular values",
    "low_rank",
    "svd_patch",
    ("U, σ, Vt = U[:, :r], σ[:r], Vt[:r]", "U, σ, Vt = U[:, -r:], σ[-r:], Vt[-r:]"),
)
edit(
    "C-4",
    "one sketch in half precision",
    "low_rank",
    "svd_patch",
    ("np.linalg.svd(D, full", "np.linalg.svd(D.astype('f2').astype('f8'), full"),
)
edit(
    "C-4",
    "singular values on both factors",
    "low_rank",
    "svd_patch",
    ("U * np.sqrt(σ), np.sqrt(σ)[:, None] * Vt", "U * σ, σ[:, None] * Vt"),
    ("return LowRank(U * σ, Vt)", "return LowRank(U * σ, σ[:, None] * Vt)"),
)
edit("C-4a", "always balanced", "low_rank", "svd_patch", ('if split == "left":', "if False:"))
edit("C-4a", "always left", "low_rank", "svd_patch", ('if split == "left":', "if True:"))
edit(
    "C-4a",
    "values on the right factor",
    "low_rank",
    "svd_patch",
    ("return LowRank(U * σ, Vt)", "return LowRank(U, σ[:, None] * Vt)"),
)
edit(
    "C-5",
    "unscaled",
    "low_rank",
    "scaled_svd_patch",
    ("truncated(D * a, r, split)", "truncated(D, r, split)"),
    ("np.divide(A, a, out=np.zeros_like(A), where=a > 0)", "A"),
)
edit("C-5", "scales back by multiplying", "low_rank", "scaled_svd_patch", ("np.divide(A, a,", "np.multiply(A, a,"))
edit(
    "C-5",
    "forgets to scale back",
    "low_rank",
    "scaled_svd_patch",
    ("np.divide(A, a, out=np.zeros_like(A), where=a > 0)", "np.where(a > 0, A, 0.0)"),
)
edit(
    "C-5a",
    "divides by an epsilon",
    "low_rank",
    "scaled_svd_patch",
    ("np.divide(A, a, out=np.zeros_like(A), where=a > 0)", "np.where(a > 0, A / np.maximum(a, 1e-9), 1.0)"),
)
