"""K: ranks under a budget. Which of J modules gets how many of the ranks that all of them may have together.

A reconstruction. RA-LoRA (Kim, Lee, Sung, Choi, Findings of ACL 2024, pp. 15773-15786) is published as an idea, ranks
chosen per module by a rank-subspace analysis; its metric, thresholds and code are not public. What stands here is the
least that such a method needs, each part with its own reason: the error spectrum says what a rank buys (it is exact
for EoRA patches), the overlap of output subspaces is LoRA's own similarity, and Rule A is optimal for its objective.

    s_j,1 ≥ s_j,2 ≥ …   singular values of D_j C_j^½, :func:`~lowbit.reference.error_spectrum` of module j        (3.1)
    min Σ_j g_j Σ_{i>r_j} s_j,i²    subject to    Σ_j c_j r_j ≤ P,   low_j ≤ r_j ≤ high_j,   r_j ∈ μℤ             (K.1)

``spectra`` (J, R) holds one complete spectrum per row, descending, zeros behind the last value; ``importance`` (J,)
holds g_j ≥ 0, ``cost`` (J,) the price c_j ≥ 1 of one rank, P is the ``budget`` and μ the ``multiple``. Ranks are bought
in units of μ. Every rule is an order in which units are bought, one after another, equal ones by the lower module:

    A  greedy         by falling g_j Σ_{i in unit} s_j,i² / c_j, error removed per price                          (K.2)
    B  threshold      by rising ρ_j before the unit: all modules reach the same share of their error              (K.3)
    C  proportional   by rising (rank at the middle of the unit) / σ_j: r_j ≈ α σ_j with one α for all            (K.4)

``leftover`` says what happens at the first unit that the budget does not cover: "stop" ends there, so a larger budget
lowers no rank; "fill" skips it and goes on. Units that gain nothing are never bought. Deliberately not here: training,
the choice of an adapter's start, and the loop over layers. Names of rules are this project's.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from . import checks
from .checks import F64, I32, Array
from .eigenspace import U64
from .errors import SpecError
from .types import Leftover, LowRank, Normalisation, RankPool, Split

__all__ = [
    "allocate_greedy",
    "allocate_proportional",
    "allocate_threshold",
    "allocation_bound",
    "allocation_objective",
    "explained_error",
    "gradient_importance",
    "loss_importance",
    "nest_patch",
    "pool_modules",
    "rank_cost",
    "reallocate_ranks",
    "residual_damage",
    "subspace_overlap",
    "threshold_ranks",
]

I64: TypeAlias = npt.NDArray[np.int64]
I32_MAX = 2**31 - 1


# --- arguments --------------------------------------------------------------------------------------------------------


def table(spectra: npt.ArrayLike, name: str, clause: str) -> F64:
    """Spectra (J, R): finite, not negative, each row descending."""
    S = checks.finite(spectra, name, clause, ndim=2)
    if (S < 0).any():
        j, i = (int(n) for n in np.argwhere(S < 0)[0])
        raise SpecError(clause, f"{name} must be >= 0, got {S[j, i]} at {(j, i)}")
    rising = np.diff(S, axis=1) > 0
    if rising.any():
        j, i = (int(n) for n in np.argwhere(rising)[0])
        raise SpecError(clause, f"{name} must descend, module {j} rises from {S[j, i]} to {S[j, i + 1]} at {i + 1}")
    with np.errstate(over="ignore"):
        if not np.isfinite((S**2).sum(axis=1)).all():
            raise SpecError(clause, f"the squares of {name} overflow float64")
    return S


def per_module(values: npt.ArrayLike, name: str, J: int, clause: str) -> F64:
    """One number ≥ 0 for every module."""
    a = checks.finite(values, name, clause, ndim=1)
    if a.shape != (J,):
        raise SpecError(clause, f"{name} must have shape {(J,)}, got {a.shape}")
    if (a < 0).any():
        raise SpecError(clause, f"{name} must be >= 0, got {a.min()}")
    return a


def whole_per_module(values: npt.ArrayLike, name: str, J: int, clause: str, *, least: int) -> I64:
    """One integer for every module, at least ``least`` and within int32."""
    a = checks.integers(values, name, clause, ndim=1)
    if a.shape != (J,):
        raise SpecError(clause, f"{name} must have shape {(J,)}, got {a.shape}")
    if ((a < least) | (a > I32_MAX)).any():
        j = int(np.flatnonzero((a < least) | (a > I32_MAX))[0])
        raise SpecError(clause, f"{name} must be in {least}..{I32_MAX}, got {a[j]} for module {j}")
    return a


def units(
    low: npt.ArrayLike, high: npt.ArrayLike, J: int, R: int | None, multiple: int, clause: str
) -> tuple[I64, I64, int]:
    """Fewest and most units of every module, and μ: the multiples of μ in low_j..high_j, at most R of them known."""
    μ = checks.whole(multiple, "multiple", clause, low=1, high=I32_MAX)
    bottom = whole_per_module(low, "low", J, clause, least=0)
    top = whole_per_module(high, "high", J, clause, least=0)
    if R is not None and (top > R).any():
        j = int(np.flatnonzero(top > R)[0])
        raise SpecError(clause, f"module {j} may have rank {top[j]}, but its spectrum holds {R} values")
    first, last = -(-bottom // μ), top // μ
    if (first > last).any():
        j = int(np.flatnonzero(first > last)[0])
        raise SpecError(clause, f"no multiple of {μ} lies in {bottom[j]}..{top[j]}, the ranks of module {j}")
    return first, last, μ


def gains(S: F64, g: F64, μ: int, clause: str) -> F64:
    """Weighted error that each unit removes, (J, R // μ).  (K.2)"""
    squares, count = S**2, S.shape[1] // μ
    gain = np.zeros((len(S), count))
    for i in range(μ):  # from the first value of a unit to its last
        gain += squares[:, i::μ][:, :count]
    with np.errstate(over="ignore"):
        gain = g[:, None] * gain
    if not np.isfinite(gain).all():
        raise SpecError(clause, "importance times squared spectrum overflows float64")
    return gain


# --- the market -------------------------------------------------------------------------------------------------------

Key: TypeAlias = Callable[[int, int], float]
"""key(j, t): when unit t of module j, counted from 0, is due; inf: never. It does not fall with t."""


def buy(key: Key, price: I64, first: I64, last: I64, budget: int, leftover: Leftover, clause: str) -> tuple[I64, int]:
    """Units of every module, and what is left of the budget: units by rising key, ties by the lower module.  (K.1)"""
    checks.choice(leftover, ("stop", "fill"), "leftover", clause)
    P = checks.whole(budget, "budget", clause, low=0)
    spent = sum(int(p) * int(n) for p, n in zip(price, first, strict=True))
    if spent > P:
        raise SpecError(clause, f"budget {P} is below {spent}, the cost of the smallest ranks")
    n, left = first.copy(), P - spent
    due = [(key(j, int(n[j])), j) for j in range(len(n)) if n[j] < last[j]]
    heapq.heapify(due)
    while due:
        when, j = heapq.heappop(due)
        if when == np.inf:
            break
        if price[j] > left:
            if leftover == "stop":
                break
            continue  # the budget only shrinks: no later unit of this module will fit either
        n[j] += 1
        left -= int(price[j])
        if n[j] < last[j]:
            heapq.heappush(due, (key(j, int(n[j])), j))
    return n, left


def by_gain(gain: F64, c: I64) -> tuple[F64, Key]:
    """Error removed per price of every unit, and Rule A's order.  (K.2)"""
    ratio = gain / c[:, None]
    return ratio, lambda j, t: -ratio[j, t] if ratio[j, t] > 0 else np.inf


# --- what a rank buys, and what it costs ------------------------------------------------------------------------------


def share(S: F64) -> F64:
    """ρ (J, R + 1) of checked spectra.  (3.2)"""
    sums = np.concatenate([np.zeros((len(S), 1)), np.cumsum(S**2, axis=1)], axis=1)
    total = sums[:, -1:]
    return np.asarray(np.divide(sums, total, out=np.ones_like(sums), where=total > 0))  # (3.2)


def tails(S: F64) -> F64:
    """Σ_{i>r} s_i² for r = 0..R, summed from the small end."""
    backwards = np.cumsum((S**2)[:, ::-1], axis=1)[:, ::-1]
    return np.concatenate([backwards, np.zeros((len(S), 1))], axis=1)


def explained_error(spectra: npt.ArrayLike, /) -> F64:
    """Share of a module's error that its r leading directions explain.  [K-1]  (3.2)

        ρ_j(r) = Σ_{i≤r} s_j,i² / Σ_i s_j,i²,   r = 0..R;   1 where there is no error

    Shapes: spectra (J, R) → (J, R + 1).

    >>> explained_error([[3.0, 1.0], [0.0, 0.0]]).tolist()
    [[0.0, 0.9, 1.0], [1.0, 1.0, 1.0]]
    """
    return share(table(spectra, "spectra", "K-1"))


def residual_damage(spectra: npt.ArrayLike, energy: npt.ArrayLike, /) -> F64:
    """Output error that rank r leaves, relative to the output itself.  [K-1]  (3.2)

        δ_j(r) = Σ_{i>r} s_j,i² / tr(W_j C_j W_jᵀ),   r = 0..R

    Shapes: spectra (J, R), energy (J,) → (J, R + 1). ``energy`` is :func:`~lowbit.reference.objective` of W_j itself.
    0/0 is 0, x/0 is inf.

    >>> residual_damage([[3.0, 1.0]], [40.0]).tolist()
    [[0.25, 0.025, 0.0]]
    """
    S = table(spectra, "spectra", "K-1")
    E = per_module(energy, "energy", len(S), "K-1")[:, None]
    tail = tails(S)
    return np.asarray(np.divide(tail, E, out=np.where(tail > 0, np.inf, 0.0), where=E > 0))  # (3.2)


def subspace_overlap(w: npt.ArrayLike, w_hat: npt.ArrayLike, c: npt.ArrayLike, /, *, rank: int) -> F64:
    """How much of the leading output directions of a module survives compression.  [K-2]  (3.3)

        φ(r) = ‖U_rᵀ Ũ_r‖² / r in [0, 1],   U_r, Ũ_r the leading left singular vectors of W C^½ and Ŵ C^½

    Shapes: w (m, k), w_hat (m, k), c (k, k), 1 ≤ rank ≤ min(m, k) → (rank,): φ(1)..φ(rank). ``w_hat`` is the
    compressed weight, with its patch or without. 1 − φ(r) is the sensitivity σ of Rule C. Where the r-th and the
    (r+1)-th singular value are equal, the data do not determine U_r, nor φ(r).
    Source: the similarity of Hu et al. 2021, LoRA, section 7.2 (there of two adapters); C^½ is added here.

    >>> subspace_overlap([[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 2.0]], np.eye(2), rank=2).tolist()
    [0.0, 1.0]
    """
    W, V = checks.finite(w, "w", "K-2", ndim=2), checks.finite(w_hat, "w_hat", "K-2", ndim=2)
    if V.shape != W.shape:
        raise SpecError("K-2", f"w_hat must have shape {W.shape}, got {V.shape}")
    C = checks.definite(checks.second_moment(c, W.shape[1], "c", "K-2"), "c", "K-2")
    r = checks.rank(rank, W.shape, "K-2")
    L, Q = np.linalg.eigh(C)
    root = Q * np.sqrt(np.maximum(L, 0))
    U, V = (np.linalg.svd(x @ root, full_matrices=False)[0][:, :r] for x in (W, V))
    overlap = np.cumsum(np.cumsum((U.T @ V) ** 2, axis=0), axis=1)
    return np.minimum(np.diagonal(overlap) / np.arange(1, r + 1), 1.0)  # (3.3)


def gradient_importance(gradient: npt.ArrayLike, /, *, normalisation: Normalisation = "mean") -> float:
    """Task weight g of a module from the gradient of the loss with respect to its output.  [K-3]  (3.4)

        mean:  g = Σ G² / (T m)         sum:  g = Σ G²

    Shapes: gradient G (T, m), one row per token → a number. Why "mean": if the entries of G are uncorrelated with
    zero mean and mean square γ, the loss changes by ⟨G, X Eᵀ⟩ under an error E, whose square is γ J(E) on average, so
    γ is the price of a unit of J. "sum" is the squared norm, T m times that; it prefers wide modules.

    >>> gradient_importance([[1.0, -2.0], [0.0, 1.0]])
    1.5
    """
    checks.choice(normalisation, ("mean", "sum"), "normalisation", "K-3")
    G = checks.finite(gradient, "gradient", "K-3", ndim=2)
    total = float((G**2).sum())
    return total / max(G.size, 1) if normalisation == "mean" else total  # (3.4)


def loss_importance(losses: npt.ArrayLike, spectra: npt.ArrayLike, /, *, base: float) -> F64:
    """Task weights from measured losses: g_j Σ_i s_j,i² is what compressing module j alone adds.  [K-3]  (3.4)

        g_j = max(0, loss_j − base) / Σ_i s_j,i²,   0 where there is no error

    Shapes: losses (J,), spectra (J, R) → (J,). ``losses[j]`` is the loss with only module j compressed, ``base``
    with none. Dividing by the error makes (K.1) the predicted loss, in the loss's own unit.

    >>> loss_importance([3.0, 1.5], [[2.0, 0.0], [1.0, 1.0]], base=2.0).tolist()
    [0.25, 0.0]
    """
    at = checks.number(base, "base", "K-3", low=-np.inf)
    S = table(spectra, "spectra", "K-3")
    loss = checks.finite(losses, "losses", "K-3", ndim=1)
    if loss.shape != (len(S),):
        raise SpecError("K-3", f"losses must have shape {(len(S),)}, got {loss.shape}")
    total = (S**2).sum(axis=1)
    return np.asarray(np.divide(np.maximum(loss - at, 0.0), total, out=np.zeros(len(S)), where=total > 0))  # (3.4)


def rank_cost(shapes: npt.ArrayLike, /, *, bits: int | None = None) -> I32:
    """Price of one rank: a column of B (m, r) and a row of A (r, k).  [K-4]

        parameters (bits None):  m + k          bytes:  ⌈m bits / 8⌉ + ⌈k bits / 8⌉                       (K.5)

    Shapes: shapes (J, 2), rows m, k → (J,) int32. Bytes of one rank end on a byte; scales of a quantized adapter are
    not counted.

    >>> rank_cost([[4, 9]]).tolist(), rank_cost([[4, 9]], bits=3).tolist()
    ([13], [6])
    """
    mk = checks.integers(shapes, "shapes", "K-4", ndim=2)
    if mk.shape[1] != 2:
        raise SpecError("K-4", f"shapes must have shape (J, 2), got {mk.shape}")
    if ((mk < 1) | (mk > I32_MAX)).any():
        j = int(np.flatnonzero(((mk < 1) | (mk > I32_MAX)).any(axis=1))[0])
        raise SpecError("K-4", f"shapes must be in 1..{I32_MAX}, module {j} has {tuple(mk[j].tolist())}")
    each = mk if bits is None else -(-mk * checks.whole(bits, "bits", "K-4", low=1, high=64) // 8)
    cost = each.sum(axis=1)  # (K.5)
    if (cost > I32_MAX).any():
        raise SpecError("K-4", f"the cost of a rank must fit int32, got {cost.max()}")
    return np.asarray(cost, np.int32)


# --- the three rules --------------------------------------------------------------------------------------------------


def allocate_greedy(
    spectra: npt.ArrayLike,
    importance: npt.ArrayLike,
    cost: npt.ArrayLike,
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    /,
    *,
    budget: int,
    multiple: int = 1,
    leftover: Leftover = "stop",
) -> I32:
    """Rule A: the units that remove most weighted error per price.  [K-5]  (K.2)

    Shapes: spectra (J, R), importance (J,) ≥ 0, cost (J,) ≥ 1, low and high (J,) with low ≤ high ≤ R → (J,) int32.
    A unit's squares are added from its first value on, multiplied by g_j, divided by c_j.

    Optimal for (K.1) at what it spends: the gains of a module fall, so the units bought before a "stop" are the best
    that fit any budget between that and their sum. With equal costs it is optimal for every budget. Otherwise the
    last gap may be filled better, by no more than :func:`allocation_bound` says. Under "stop" a larger budget, or a
    larger error or importance of module j, never lowers r_j; under "fill" it may.

    >>> s, g, c = [[3.0, 1.0], [2.0, 2.0]], [1.0, 1.0], [3, 1]
    >>> allocate_greedy(s, g, c, [0, 0], [2, 2], budget=4).tolist()    # 9 / 3 comes after 4 / 1, twice
    [0, 2]
    >>> allocate_greedy(s, g, c, [0, 0], [2, 2], budget=5).tolist()
    [1, 2]
    """
    S = table(spectra, "spectra", "K-5")
    g = per_module(importance, "importance", len(S), "K-5")
    c = whole_per_module(cost, "cost", len(S), "K-5", least=1)
    first, last, μ = units(low, high, len(S), S.shape[1], multiple, "K-5")
    _, key = by_gain(gains(S, g, μ, "K-5"), c)
    n, _ = buy(key, c * μ, first, last, budget, leftover, "K-5")
    return np.asarray(n * μ, np.int32)


def threshold_ranks(
    spectra: npt.ArrayLike, low: npt.ArrayLike, high: npt.ArrayLike, /, *, threshold: float, multiple: int = 1
) -> I32:
    """Rule B without a budget: the smallest rank that explains the share τ of the error.  [K-6]

        r_j = min {r ∈ μℤ : low_j ≤ r ≤ high_j, ρ_j(r) ≥ τ},   the largest allowed where none reaches τ

    Shapes: spectra (J, R), low and high (J,) → (J,) int32; 0 ≤ threshold ≤ 1.

    >>> threshold_ranks([[3.0, 1.0], [1.0, 1.0]], [0, 0], [2, 2], threshold=0.9).tolist()
    [1, 2]
    """
    τ = checks.number(threshold, "threshold", "K-6", low=0.0, high=1.0)
    S = table(spectra, "spectra", "K-6")
    first, last, μ = units(low, high, len(S), S.shape[1], multiple, "K-6")
    missing = (share(S)[:, ::μ] < τ).sum(axis=1)  # units after which the share is still below τ
    return np.asarray(np.clip(missing, first, last) * μ, np.int32)


def allocate_threshold(
    spectra: npt.ArrayLike,
    cost: npt.ArrayLike,
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    /,
    *,
    budget: int,
    multiple: int = 1,
    leftover: Leftover = "stop",
) -> I32:
    """Rule B: every module reaches the same share of its error, the largest that the budget covers.  [K-6]  (K.3)

    Shapes: spectra (J, R), cost (J,) ≥ 1, low and high (J,) → (J,) int32.
    The unit after rank r is due at ρ_j(r); it is bought by every threshold above that. So the result is
    :func:`threshold_ranks` at some τ, plus those units due at τ itself that still fit. Costs decide how far the
    budget reaches, not the order: a large error counts no more than a small one, which Rule A does not do.

    >>> allocate_threshold([[30.0, 10.0], [1.0, 1.0]], [1, 1], [0, 0], [2, 2], budget=3).tolist()
    [1, 2]
    """
    S = table(spectra, "spectra", "K-6")
    c = whole_per_module(cost, "cost", len(S), "K-6", least=1)
    first, last, μ = units(low, high, len(S), S.shape[1], multiple, "K-6")
    ρ = share(S)

    def key(j: int, t: int) -> float:
        return float(ρ[j, t * μ]) if ρ[j, t * μ] < 1 else np.inf

    n, _ = buy(key, c * μ, first, last, budget, leftover, "K-6")
    return np.asarray(n * μ, np.int32)


def allocate_proportional(
    sensitivity: npt.ArrayLike,
    cost: npt.ArrayLike,
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    /,
    *,
    budget: int,
    multiple: int = 1,
    leftover: Leftover = "stop",
) -> I32:
    """Rule C: ranks proportional to a sensitivity, rounded to multiples, with the largest factor that fits.  [K-7]

        r_j = clip(μ round(α σ_j / μ), low_j, high_j),   unit t (from 0) is due at α = (t + ½) μ / σ_j    (K.4)

    Shapes: sensitivity σ (J,) ≥ 0, cost (J,) ≥ 1, low and high (J,) → (J,) int32.
    Without bounds and rounding α = P / Σ_i c_i σ_i, that is r_j = r̄ σ_j / mean(σ) with the mean weighted by cost and
    r̄ = P / Σ c. Fixing α so and rounding may exceed the budget, and clipping may waste it; searching α does neither.
    A usual σ_j is 1 − φ_j of :func:`subspace_overlap`.

    >>> allocate_proportional([3.0, 1.0], [1, 1], [0, 0], [9, 9], budget=8).tolist()
    [6, 2]
    """
    σ = checks.finite(sensitivity, "sensitivity", "K-7", ndim=1)
    σ = per_module(σ, "sensitivity", len(σ), "K-7")
    c = whole_per_module(cost, "cost", len(σ), "K-7", least=1)
    first, last, μ = units(low, high, len(σ), None, multiple, "K-7")

    def key(j: int, t: int) -> float:
        return (t + 0.5) * μ / float(σ[j]) if σ[j] > 0 else np.inf

    n, _ = buy(key, c * μ, first, last, budget, leftover, "K-7")
    return np.asarray(n * μ, np.int32)


# --- judging and sharing ----------------------------------------------------------------------------------------------


def allocation_objective(spectra: npt.ArrayLike, importance: npt.ArrayLike, ranks: npt.ArrayLike, /) -> float:
    """Weighted error that an allocation leaves, (K.1).  [K-8]

    Shapes: spectra (J, R), importance (J,), ranks (J,) in 0..R → a number. With EoRA patches of these ranks and g = 1
    it is the sum of their objectives, exactly.

    >>> allocation_objective([[3.0, 1.0], [2.0, 2.0]], [1.0, 0.5], [1, 0])
    5.0
    """
    S = table(spectra, "spectra", "K-8")
    g = per_module(importance, "importance", len(S), "K-8")
    r = whole_per_module(ranks, "ranks", len(S), "K-8", least=0)
    if (r > S.shape[1]).any():
        j = int(np.flatnonzero(r > S.shape[1])[0])
        raise SpecError("K-8", f"module {j} has rank {r[j]}, but its spectrum holds {S.shape[1]} values")
    return float((g * tails(S)[np.arange(len(S)), r]).sum())


def allocation_bound(
    spectra: npt.ArrayLike,
    importance: npt.ArrayLike,
    cost: npt.ArrayLike,
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    /,
    *,
    budget: int,
    multiple: int = 1,
) -> float:
    """No allocation within bounds and budget leaves less than this.  [K-8]

        objective of Rule A with "stop" − (its leftover budget) · (best error removed per price not bought)    (K.6)

    Shapes: as :func:`allocate_greedy` → a number ≥ 0: the optimum of (K.1) when units may be split, which is linear
    programming with falling gains, so greedy solves it. Exact up to the rounding of its sums.

    >>> allocation_bound([[3.0, 1.0], [2.0, 2.0]], [1.0, 1.0], [3, 1], [0, 0], [2, 2], budget=4)
    4.0
    """
    S = table(spectra, "spectra", "K-8")
    g = per_module(importance, "importance", len(S), "K-8")
    c = whole_per_module(cost, "cost", len(S), "K-8", least=1)
    first, last, μ = units(low, high, len(S), S.shape[1], multiple, "K-8")
    ratio, key = by_gain(gains(S, g, μ, "K-8"), c)
    n, left = buy(key, c * μ, first, last, budget, "stop", "K-8")
    best = max((float(ratio[j, n[j]]) for j in range(len(S)) if n[j] < last[j]), default=0.0) / μ  # a unit costs c μ
    return max(0.0, float((g * tails(S)[np.arange(len(S)), n * μ]).sum()) - left * best)  # (K.6)


def pool_modules(
    spectra: npt.ArrayLike,
    importance: npt.ArrayLike,
    cost: npt.ArrayLike,
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    group: npt.ArrayLike,
    /,
) -> RankPool[Array]:
    """Modules that share one rank, such as all query projections, as one module.  [K-9]

        s_G,i = (Σ_{j∈G} g_j s_j,i²)^½,   c_G = Σ_{j∈G} c_j,   low_G = max low_j,   high_G = min high_j     (K.7)

    Shapes: spectra (J, R), importance, cost, low, high and group (J,), groups numbered 0..T − 1 without a gap →
    spectra (T, R), cost, low and high (T,) int32. (K.1) with r_j = r_G(j) is (K.1) of the pool with importance 1, so
    every rule applies to it; ``ranks[group]`` hands the result back.

    >>> pool_modules([[3.0, 0.0], [4.0, 1.0]], [1.0, 1.0], [2, 5], [0, 1], [2, 1], [0, 0]).spectra.tolist()
    [[5.0, 1.0]]
    """
    S = table(spectra, "spectra", "K-9")
    J = len(S)
    g = per_module(importance, "importance", J, "K-9")
    c = whole_per_module(cost, "cost", J, "K-9", least=1)
    first, last, _ = units(low, high, len(S), S.shape[1], 1, "K-9")
    member = whole_per_module(group, "group", J, "K-9", least=0)
    T = int(member.max()) + 1 if J else 0
    missing = np.setdiff1d(np.arange(min(T, J + 1)), member)
    if missing.size:
        raise SpecError("K-9", f"groups must be numbered without a gap, group {missing[0]} has no module")
    total, price = np.zeros((T, S.shape[1])), np.zeros(T, np.int64)
    bottom, top = np.zeros(T, np.int64), np.full(T, I32_MAX, np.int64)
    with np.errstate(over="ignore"):
        np.add.at(total, member, g[:, None] * S**2)
    np.add.at(price, member, c)
    np.maximum.at(bottom, member, first)
    np.minimum.at(top, member, last)
    if not np.isfinite(total).all():
        raise SpecError("K-9", "importance times squared spectrum overflows float64")
    if (price > I32_MAX).any():
        raise SpecError("K-9", f"the cost of a group must fit int32, got {price.max()}")
    if (bottom > top).any():
        t = int(np.flatnonzero(bottom > top)[0])
        raise SpecError(
            "K-9", f"group {t} has no rank in common: its largest low is {bottom[t]}, its smallest high {top[t]}"
        )
    return RankPool(np.sqrt(total), *(a.astype(np.int32) for a in (price, bottom, top)))  # (K.7)


# --- during training, and truncation ----------------------------------------------------------------------------------


def reallocate_ranks(
    kept: npt.ArrayLike,
    residual: npt.ArrayLike,
    importance: npt.ArrayLike,
    cost: npt.ArrayLike,
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    ranks: npt.ArrayLike,
    /,
    *,
    budget: int,
    step: int,
    multiple: int = 1,
    hysteresis: float = 0.0,
) -> I32:
    """Rule A again, on what the adapters hold and what they leave, at most ``step`` ranks away from now.  [K-10]

        v_j = (kept_j and residual_j, merged in descending order)                                         (K.8)
        max(low_j, r_j − step) ≤ r'_j ≤ min(high_j, r_j + step);  units within r_j gain (1 + hysteresis) times as much

    Shapes: kept (J, Q), residual (J, R), importance, cost, low, high and ranks (J,), low ≤ ranks ≤ high ≤ Q + R →
    (J,) int32. ``kept`` holds the singular values of B_j A_j C_j^½, ``residual`` those of (D_j − B_j A_j) C_j^½: what
    a dropped direction costs and what a new one gains, with C_j as it is now. At the optimum of (1.1) v is the error
    spectrum of D itself and the result is :func:`allocate_greedy` within the step. Always stops; never above budget,
    which may differ from the last one and must cover the smallest ranks within the step.
    Whether RA-LoRA re-allocates during training is not known; AdaLoRA does, by another criterion.

    >>> now = dict(budget=4, step=1)
    >>> kept, residual = [[5.0, 1.0], [5.0, 4.0]], [[0.5, 0.0], [3.0, 2.0]]
    >>> reallocate_ranks(kept, residual, [1.0, 1.0], [1, 1], [0, 0], [4, 4], [2, 2], **now).tolist()
    [1, 3]
    """
    K, E = table(kept, "kept", "K-10"), table(residual, "residual", "K-10")
    if len(E) != len(K):
        raise SpecError("K-10", f"residual must have {len(K)} rows, got shape {E.shape}")
    g = per_module(importance, "importance", len(K), "K-10")
    c = whole_per_module(cost, "cost", len(K), "K-10", least=1)
    v = -np.sort(-np.concatenate([K, E], axis=1), axis=1)  # (K.8)
    bottom = whole_per_module(low, "low", len(K), "K-10", least=0)
    top = whole_per_module(high, "high", len(K), "K-10", least=0)
    r = whole_per_module(ranks, "ranks", len(K), "K-10", least=0)
    if ((r < bottom) | (r > top)).any():
        j = int(np.flatnonzero((r < bottom) | (r > top))[0])
        raise SpecError("K-10", f"module {j} has rank {r[j]}, outside {bottom[j]}..{top[j]}")
    h = checks.number(hysteresis, "hysteresis", "K-10", low=0.0)
    by = checks.whole(step, "step", "K-10", low=0)
    near, far = np.maximum(bottom, r - by), np.minimum(top, r + by)
    first, last, μ = units(near, far, len(v), v.shape[1], multiple, "K-10")
    gain = gains(v, g, μ, "K-10")
    held = np.arange(gain.shape[1]) < (r // μ)[:, None]
    _, key = by_gain(np.where(held, gain * (1 + h), gain), c)
    n, _ = buy(key, c * μ, first, last, budget, "stop", "K-10")
    return np.asarray(n * μ, np.int32)


def nest_patch(b: npt.ArrayLike, a: npt.ArrayLike, c: npt.ArrayLike, /, *, split: Split = "balanced") -> LowRank[Array]:
    """The same patch with its directions in order: rank r is the first r of them, for every r.  [K-11]

        B = Q R,   R (A C Aᵀ) Rᵀ = Y diag(λ) Yᵀ, λ descending;    B' = Q Y,   A' = Yᵀ R A                   (K.9)

    Shapes: b (m, R), a (R, k), c (k, k), R ≤ min(m, k) → B' (m, R), A' (R, k) with B' A' = B A. ``B'[:, :r] @ A'[:r]``
    is the best rank-r approximation of B A on the inputs behind c (1.1), so a trained adapter can be cut to any rank
    without solving again, and ranks can be handed out afterwards. "balanced" as in :func:`~lowbit.reference.eora`.
    The patches of eora are nested already. Truncating factors that are not may be arbitrarily bad.

    >>> B, A = nest_patch([[1.0, 1.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 3.0]], np.eye(2))
    >>> np.round(B @ A, 12).tolist()
    [[1.0, 3.0], [0.0, 6.0]]
    """
    checks.choice(split, ("balanced", "left"), "split", "K-11")
    B, A = checks.finite(b, "b", "K-11", ndim=2), checks.finite(a, "a", "K-11", ndim=2)
    C = checks.definite(checks.second_moment(c, A.shape[1], "c", "K-11"), "c", "K-11")
    if B.shape[1] != A.shape[0]:
        raise SpecError("K-11", f"b {B.shape} times a {A.shape} is not a patch")
    if B.shape[1] > min(B.shape[0], A.shape[1]):
        raise SpecError("K-11", f"b {B.shape} times a {A.shape} has more directions than its product can have")
    Q, R = np.linalg.qr(B)
    M = R @ (A @ C @ A.T) @ R.T
    λ, Y = np.linalg.eigh((M + M.T) / 2)
    λ, Y = λ[::-1], Y[:, ::-1]
    nested, directions = Q @ Y, Y.T @ R @ A  # (K.9)
    if split == "balanced" and len(λ):
        s = np.sqrt(np.where(λ > max(B.shape[0], A.shape[1]) * 2 * U64 * λ[0], λ, 1.0))
        nested, directions = nested * np.sqrt(s), directions / np.sqrt(s)[:, None]
    return LowRank(nested, directions)
