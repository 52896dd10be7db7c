"""Wrong backends of chapter K: ranks under a budget."""

# ruff: noqa: E501  (edits quote lines of source, and their replacements, whole)
from __future__ import annotations

from typing import Any

import numpy as np

from lowbit import reference

from . import edit, replace, wrap

M = "rank_budget"

edit(
    "K-1",
    "shares of the values, not of their squares",
    M,
    "explained_error",
    ("np.cumsum(S**2, axis=1)]", "np.cumsum(S, axis=1)]"),
)
edit(
    "K-1",
    "starts at rank 1",
    M,
    "explained_error",
    ('return share(table(spectra, "spectra", "K-1"))', 'return share(table(spectra, "spectra", "K-1"))[:, 1:]'),
)
edit(
    "K-1",
    "nothing explained where there is no error",
    M,
    "explained_error",
    ("out=np.ones_like(sums)", "out=np.zeros_like(sums)"),
)
edit(
    "K-1a",
    "relative to the error",
    M,
    "residual_damage",
    ("tail, E, out", "tail, np.maximum(tail[:, :1], 1e-300), out"),
)
edit(
    "K-1a",
    "zero by zero is infinite",
    M,
    "residual_damage",
    ("np.where(tail > 0, np.inf, 0.0)", "np.full_like(tail, np.inf)"),
)
edit("K-1a", "tail as the total minus the head", M, "residual_damage", (
    "    tail = tails(S)\n    return np.asarray(np.divide",
    "    tail = (S.astype('f4')**2).sum(1, keepdims=True) - np.concatenate([np.zeros((len(S), 1)), np.cumsum(S.astype('f4')**2, axis=1)], axis=1)\n    return np.asarray(np.divide",
))  # fmt: skip
edit("K-2", "right singular vectors", M, "subspace_overlap", (
    "np.linalg.svd(x @ root, full_matrices=False)[0][:, :r]", "np.linalg.svd(x @ root, full_matrices=False)[2][:r].T"
))  # fmt: skip
edit(
    "K-2",
    "ignores the inputs",
    M,
    "subspace_overlap",
    ("root = Q * np.sqrt(np.maximum(L, 0))", "root = np.eye(len(C))"),
)
edit(
    "K-2",
    "not divided by the rank",
    M,
    "subspace_overlap",
    ("np.diagonal(overlap) / np.arange(1, r + 1)", "np.diagonal(overlap)"),
)
edit("K-2", "pairs direction with direction", M, "subspace_overlap", (
    "np.cumsum(np.cumsum((U.T @ V) ** 2, axis=0), axis=1)", "np.cumsum(np.diag(np.diag(U.T @ V) ** 2), axis=1).cumsum(axis=0)"
))  # fmt: skip
edit(
    "K-3",
    "norm instead of its square",
    M,
    "gradient_importance",
    ("float((G**2).sum())", "float(np.sqrt((G**2).sum()))"),
)
edit("K-3", "mean over tokens alone", M, "gradient_importance", ("total / max(G.size, 1)", "total / max(len(G), 1)"))
edit(
    "K-3a",
    "rise alone",
    M,
    "loss_importance",
    ("np.divide(np.maximum(loss - at, 0.0), total,", "np.divide(np.maximum(loss - at, 0.0), 1 + 0 * total,"),
)
edit(
    "K-3a",
    "a helpful compression counts against the module",
    M,
    "loss_importance",
    ("np.maximum(loss - at, 0.0)", "np.abs(loss - at)"),
)
edit("K-4", "area of the layer", M, "rank_cost", ("cost = each.sum(axis=1)", "cost = each.prod(axis=1)"))
edit("K-4", "bits of the sum round up once", M, "rank_cost", (
    "    cost = each.sum(axis=1)  # (K.5)\n", "    cost = each.sum(axis=1) if bits is None else -(-mk.sum(axis=1) * bits // 8)\n"
))  # fmt: skip
edit("K-4", "bits for bytes", M, "rank_cost", ("// 8)", "// 1)"))

edit("K-5", "ignores what a rank costs", M, "allocate_greedy", ("ratio = gain / c[:, None]", "ratio = gain / 1.0"))
edit(
    "K-5",
    "ignores the importance",
    M,
    "allocate_greedy",
    ("gain = g[:, None] * gain", "gain = (g[:, None] > 0) * gain"),
)
edit("K-5", "values instead of squares", M, "allocate_greedy", ("squares, count = S**2,", "squares, count = S,"))
edit(
    "K-5",
    "first value of a unit for all of it",
    M,
    "allocate_greedy",
    ("gain += squares[:, i::μ][:, :count]", "gain += squares[:, ::μ][:, :count]"),
)
edit("K-5", "spends a unit too many", M, "allocate_greedy", ("if price[j] > left:", "if left <= 0:"))
edit(
    "K-5",
    "uniform ranks",
    M,
    "allocate_greedy",
    ("n, left = first.copy(), P - spent", "n, left = first.copy(), P - spent; key = lambda j, t: float(t)"),
)
edit(
    "K-5",
    "rounds down after buying single ranks",
    M,
    "allocate_greedy",
    ('_, key = by_gain(gains(S, g, μ, "K-5"), c)', '_, key = by_gain(gains(S, g, 1, "K-5"), c)'),
)
edit(
    "K-5a",
    "ties to the higher module",
    M,
    "allocate_greedy",
    ("(key(j, int(n[j])), j)", "(key(j, int(n[j])), -j)"),
    ("when, j = heapq.heappop(due)", "when, j = heapq.heappop(due); j = -j"),
)
edit("K-5a", "always fills", M, "allocate_greedy", ('if leftover == "stop":', "if False:"))
edit("K-5a", "never fills", M, "allocate_greedy", ('if leftover == "stop":', "if True:"))
edit(
    "K-5a",
    "buys what gains nothing",
    M,
    "allocate_greedy",
    ("-ratio[j, t] if ratio[j, t] > 0 else np.inf", "-ratio[j, t]"),
)
edit(
    "K-5a",
    "lower bounds rounded down",
    M,
    "allocate_greedy",
    ("first, last = -(-bottom // μ), top // μ", "first, last = bottom // μ, top // μ"),
)


@replace("K-5b", "largest value first, whatever it costs")
def allocate_greedy(spectra: Any, importance: Any, cost: Any, low: Any, high: Any, /, **options: Any) -> Any:
    """Singular values sorted globally, as if every module had the same shape."""
    return reference.allocate_greedy(
        spectra, np.ones_like(importance), np.ones_like(cost), low, high, **_affordable(cost, low, options)
    )


def _affordable(cost: Any, low: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The budget in ranks that the dearest module can pay, but enough for the lower bounds."""
    μ = options.get("multiple", 1)
    least = int((-(-low.astype(int) // μ)).sum()) * μ
    room = options["budget"] - int(cost.astype(int) @ (-(-low.astype(int) // μ))) * μ
    return {**options, "budget": least + room // int(cost.max())}


edit("K-5b", "values instead of squares", M, "allocate_greedy", ("squares, count = S**2,", "squares, count = S,"))
edit(
    "K-6",
    "one unit short",
    M,
    "threshold_ranks",
    ("np.clip(missing, first, last)", "np.clip(missing - 1, first, last)"),
)
edit(
    "K-6",
    "share above the threshold, not at it",
    M,
    "threshold_ranks",
    ("share(S)[:, ::μ] < τ", "share(S)[:, ::μ] <= τ"),
)
edit("K-6", "shares of the values", M, "threshold_ranks", ("np.cumsum(S**2, axis=1)]", "np.cumsum(S, axis=1)]"))
edit(
    "K-6",
    "ignores the bounds",
    M,
    "threshold_ranks",
    ("np.clip(missing, first, last)", "np.minimum(missing, S.shape[1] // μ)"),
)
edit(
    "K-6a",
    "by the size of the error",
    M,
    "allocate_threshold",
    ("return float(ρ[j, t * μ]) if", "return float(-S[j, t * μ]) if"),
)
edit(
    "K-6a",
    "share after the unit",
    M,
    "allocate_threshold",
    ("return float(ρ[j, t * μ]) if", "return float(ρ[j, (t + 1) * μ]) if"),
)
edit("K-6a", "overspends", M, "allocate_threshold", ("if price[j] > left:", "if left <= 0:"))
edit(
    "K-6b",
    "ties to the higher module",
    M,
    "allocate_threshold",
    ("(key(j, int(n[j])), j)", "(key(j, int(n[j])), -j)"),
    ("when, j = heapq.heappop(due)", "when, j = heapq.heappop(due); j = -j"),
)
edit("K-6b", "never fills", M, "allocate_threshold", ('if leftover == "stop":', "if True:"))
edit(
    "K-6b",
    "buys where all is explained",
    M,
    "allocate_threshold",
    ("if ρ[j, t * μ] < 1 else np.inf", "if True else np.inf"),
)
edit("K-7", "units at their end", M, "allocate_proportional", ("(t + 0.5) * μ", "(t + 1) * μ"))
edit("K-7", "proportional to the root", M, "allocate_proportional", ("/ float(σ[j]) if", "/ float(σ[j]) ** 0.5 if"))
edit("K-7", "overspends", M, "allocate_proportional", ("if price[j] > left:", "if left <= 0:"))


@replace("K-7", "the formula with a fixed factor")
def allocate_proportional(sensitivity: Any, cost: Any, low: Any, high: Any, /, **options: Any) -> Any:
    """r̄ σ / mean(σ), rounded and clipped: what it costs is not looked at again."""
    reference.allocate_proportional(sensitivity, cost, low, high, **options)
    μ, σ = options.get("multiple", 1), np.asarray(sensitivity, float)
    factor = options["budget"] / max(float(cost @ σ), 1e-300)
    return np.clip(np.rint(factor * σ / μ), -(-low // μ), high // μ).astype(np.int32) * np.int32(μ)


edit(
    "K-7a",
    "ties to the higher module",
    M,
    "allocate_proportional",
    ("(key(j, int(n[j])), j)", "(key(j, int(n[j])), -j)"),
    ("when, j = heapq.heappop(due)", "when, j = heapq.heappop(due); j = -j"),
)
edit("K-7a", "never fills", M, "allocate_proportional", ('if leftover == "stop":', "if True:"))
edit(
    "K-7a",
    "insensitive modules buy too",
    M,
    "allocate_proportional",
    ("if σ[j] > 0 else np.inf", "if σ[j] > 0 else 1e30"),
)
edit(
    "K-8",
    "the head instead of the tail",
    M,
    "allocation_objective",
    ("tails(S)[np.arange(len(S)), r]", "(tails(S)[:, 0] - tails(S)[np.arange(len(S)), r])"),
)
edit(
    "K-8",
    "off by one",
    M,
    "allocation_objective",
    ("tails(S)[np.arange(len(S)), r]", "tails(S)[np.arange(len(S)), np.minimum(r + 1, S.shape[1])]"),
)
edit("K-8", "the total minus the head, in float32", M, "allocation_objective", (
    "(g * tails(S)[np.arange(len(S)), r]).sum()",
    "(g * ((S**2).sum(1).astype('f4') - (np.where(np.arange(S.shape[1]) < r[:, None], S, 0)**2).sum(1).astype('f4'))).sum()",
))  # fmt: skip
edit("K-8a", "objective of greedy itself", M, "allocation_bound", ("- left * best)", ")"))
edit("K-8a", "price of a rank for that of a unit", M, "allocation_bound", ("default=0.0) / μ", "default=0.0)"))
edit(
    "K-8a",
    "a whole unit more",
    M,
    "allocation_bound",
    ("- left * best)", "- float(max(price_of_unit(c, μ)) * best))"),
    ("I32_MAX = 2**31 - 1\n", "I32_MAX = 2**31 - 1\nprice_of_unit = lambda c, μ: c * μ\n"),
)
edit(
    "K-9",
    "roots add up",
    M,
    "pool_modules",
    ("np.add.at(total, member, g[:, None] * S**2)", "np.add.at(total, member, np.sqrt(g[:, None]) * S); total **= 2"),
)
edit("K-9", "importance left out", M, "pool_modules", ("g[:, None] * S**2", "S**2"))
edit(
    "K-9",
    "mean of the costs",
    M,
    "pool_modules",
    ("return RankPool(", "price = price // np.bincount(member, minlength=T); return RankPool("),
)
edit(
    "K-9",
    "widest bounds",
    M,
    "pool_modules",
    ("np.maximum.at(bottom, member, first)", "bottom[:] = I32_MAX; np.minimum.at(bottom, member, first)"),
)
edit(
    "K-10",
    "forgets what is kept",
    M,
    "reallocate_ranks",
    ("np.concatenate([K, E], axis=1)", "np.concatenate([0 * K, E], axis=1)"),
)
edit(
    "K-10",
    "not merged",
    M,
    "reallocate_ranks",
    ("v = -np.sort(-np.concatenate([K, E], axis=1), axis=1)", "v = np.concatenate([K, E], axis=1)"),
)
edit(
    "K-10",
    "as far as it likes",
    M,
    "reallocate_ranks",
    ("near, far = np.maximum(bottom, r - by), np.minimum(top, r + by)", "near, far = bottom, top"),
)
edit("K-10", "no hysteresis", M, "reallocate_ranks", ("gain * (1 + h)", "gain"))
edit(
    "K-10",
    "hysteresis for everything",
    M,
    "reallocate_ranks",
    ("held = np.arange(gain.shape[1]) < (r // μ)[:, None]", "held = np.arange(gain.shape[1]) <= (r // μ)[:, None]"),
)
edit("K-11", "ascending", M, "nest_patch", ("λ, Y = λ[::-1], Y[:, ::-1]", "λ, Y = λ, Y"))
edit("K-11", "ignores the inputs", M, "nest_patch", ("M = R @ (A @ C @ A.T) @ R.T", "M = R @ (A @ A.T) @ R.T"))
edit("K-11", "ignores B", M, "nest_patch", ("M = R @ (A @ C @ A.T) @ R.T", "M = A @ C @ A.T"))


@replace("K-11a", "EoRA of the product")
def nest_patch(b: Any, a: Any, c: Any, /, *, split: Any = "balanced") -> Any:
    """Right where C sees the patch, arbitrary where it is blind."""
    reference.nest_patch(b, a, c, split=split)
    product = np.asarray(b, float) @ np.asarray(a, float)
    return reference.eora_published(product, np.asarray(c, float), rank=np.shape(b)[1])


edit("K-11a", "balances one factor only", M, "nest_patch", ("directions / np.sqrt(s)[:, None]", "directions"))
edit("K-11a", "always left", M, "nest_patch", ('if split == "balanced" and len(λ):', "if False:"))
edit(
    "K-11a",
    "balanced by s instead of its root",
    M,
    "nest_patch",
    ("nested * np.sqrt(s), directions / np.sqrt(s)[:, None]", "nested * s, directions / s[:, None]"),
)
wrap("K-11b", "directions in ascending order", "eora", lambda p: p._replace(B=p.B[:, ::-1].copy(), A=p.A[::-1].copy()))
wrap(
    "K-11b",
    "directions mixed",
    "eora",
    lambda p: p._replace(B=(p.B @ _turn(p.B.shape[1])), A=_turn(p.B.shape[1]).T @ p.A),
)


def _turn(n: int) -> Any:
    """An orthogonal matrix that is not a permutation."""
    return np.linalg.qr(np.vander(np.linspace(1, 2, n), n) if n else np.zeros((0, 0)))[0]


edit(
    "K-2a",
    "an indefinite moment has leading directions",
    "rank_budget",
    "subspace_overlap",
    (
        'checks.definite(checks.second_moment(c, W.shape[1], "c", "K-2"), "c", "K-2")',
        'checks.second_moment(c, W.shape[1], "c", "K-2")',
    ),
)
edit(
    "K-2a",
    "a patch is nested by an indefinite moment",
    "rank_budget",
    "nest_patch",
    (
        'checks.definite(checks.second_moment(c, A.shape[1], "c", "K-11"), "c", "K-11")',
        'checks.second_moment(c, A.shape[1], "c", "K-11")',
    ),
)
