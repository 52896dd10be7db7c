"""Chapter K: ranks under a budget. Purchases are judged by the order of their rule, and on exact ties by equality."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lowbit.conformance import compare, laws, strategies
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array, PatchProblem
from lowbit.conformance.suite.test_eigenspace import check_moments, gap, size_of
from lowbit.conformance.suite.test_low_rank import check_shapes


class RankProblem(NamedTuple):
    """A market for ranks."""

    spectra: Array  # (J, R), descending rows
    importance: Array  # (J,)
    cost: Array  # int32, (J,)
    low: Array  # int32, (J,)
    high: Array  # int32, (J,)
    budget: int  # covers the smallest ranks
    multiple: int


@st.composite
def rank_problems(draw: st.DrawFn, *, ties: bool, modules: int = 6, values: int = 8) -> RankProblem:
    """Few modules with small spectra; every budget from the smallest ranks to all of them and beyond.

    ``ties`` draws small integers and powers of two: gains, shares and their quotients by costs are then exact, or as
    far apart as fractions of small integers are, and equal ones are common. Otherwise values are general, over a range
    of sizes, with modules that repeat, vanish, or have a low rank.
    """
    dtype = draw(strategies.float_dtypes())
    J = draw(st.sampled_from([1, 2, *range(2, modules + 1), modules]))
    R, μ = draw(st.sampled_from([1, 3, *range(4, values + 1), values])), draw(st.sampled_from([1, 1, 2, 3]))
    spectra = np.abs(draw(strategies.integers((J, R), 5 if ties else 999))).astype(np.float64)
    if not ties:
        spectra *= (
            np.ldexp(1.0, draw(arrays(np.int64, (J, 1), elements=st.sampled_from([0, 0, 0, 0, 0, 1, -9, 9])))) / 7
        )
        if draw(st.booleans()):
            spectra *= np.ldexp(1.0, -2 * np.arange(R))
    spectra = -np.sort(-spectra.astype(dtype), axis=1)
    if draw(st.booleans()):
        spectra[draw(st.integers(0, J - 1))] = spectra[0]
    if draw(st.booleans()):
        spectra[draw(st.integers(0, J - 1)), draw(st.integers(0, R - 1)) :] = 0.0
    if ties:
        importance = draw(arrays(np.float64, (J,), elements=st.sampled_from([1.0, 1.0, 2.0, 0.5, 0.0])))
    else:
        importance = draw(st.sampled_from([np.ones(J), np.abs(draw(strategies.integers((J,), 99))) / 9]))
    dear = draw(st.sampled_from([2, 9, 30000]))
    cost = draw(arrays(np.int64, (J,), elements=st.integers(1, 9 if ties else dear), fill=st.nothing()))
    span = draw(arrays(np.int64, (2, J), elements=st.integers(0, R // μ), fill=st.nothing()))
    first, last = np.minimum(*span), np.maximum(*span)
    if draw(st.sampled_from([True, True, False])):
        first, last = first * 0, last * 0 + R // μ
    # bounds are not multiples themselves: the lower one is met from above, the upper one from below
    low = np.maximum(first * μ - draw(st.integers(0, μ - 1)), 0)
    high = np.minimum(last * μ + draw(st.integers(0, μ - 1)), R)
    least, most = int(cost @ first) * μ, int(cost @ last) * μ
    budget = least + (most - least) * draw(st.integers(0, 16)) // 16 + draw(st.integers(0, 3))
    cost, low, high = (np.asarray(x, np.int32) for x in (cost, low, high))
    return RankProblem(spectra, importance.astype(dtype), cost, low, high, budget, μ)


U64 = compare.unit_roundoff("float64")
LEFTOVERS = st.sampled_from(["stop", "fill"])
TIES = rank_problems(ties=True)
GENERAL = rank_problems(ties=False)


def both(n: int, u: float) -> float:
    """γ_n of the backend and of this judge."""
    return compare.gamma(n, u) + compare.gamma(n, U64)


def squares(spectra: Array) -> Array:
    """s² in float64."""
    return np.asarray(spectra.astype(np.float64) ** 2)


def unit_gains(problem: RankProblem) -> Array:
    """Weighted error that each unit removes, (J, R // μ)."""
    s, μ = squares(problem.spectra), problem.multiple
    count = s.shape[1] // μ
    summed = s[:, : count * μ].reshape(len(s), count, μ).sum(axis=2)
    return np.asarray(problem.importance.astype(np.float64)[:, None] * summed)


def units(problem: RankProblem) -> tuple[Array, Array, Array]:
    """Price of a unit, fewest and most units of every module, int64."""
    μ = problem.multiple
    low, high = problem.low.astype(np.int64), problem.high.astype(np.int64)
    return problem.cost.astype(np.int64) * μ, -(-low // μ), high // μ


def counted(kit: Kit, ranks: Array, problem: RankProblem) -> Array:
    """Units bought, after the checks that hold for every rule: int32, multiples, bounds, budget."""
    price, first, last = units(problem)
    kit.require(ranks.dtype == np.int32, f"ranks have dtype {ranks.dtype}")
    kit.require(ranks.shape == first.shape, f"ranks have shape {ranks.shape}, expected {first.shape}")
    n = ranks.astype(np.int64) // problem.multiple
    kit.require(bool(np.all(n * problem.multiple == ranks)), f"{ranks.tolist()}: not multiples of {problem.multiple}")
    kit.require(bool(np.all((first <= n) & (n <= last))), f"{ranks.tolist()}: outside the bounds")
    kit.require(int(price @ n) <= problem.budget, f"{ranks.tolist()}: cost {price @ n}, budget {problem.budget}")
    return n


class Order(NamedTuple):
    """When units are due: the smaller the earlier."""

    key: Array  # (J, T), inf: never
    band: Array  # (J, T), what rounding may have done to it


def check_stopped(kit: Kit, ranks: Array, problem: RankProblem, order: Order) -> None:
    """Nothing was bought before what was due earlier, and the purchase ended where the budget did."""
    price, first, last = units(problem)
    n, left = counted(kit, ranks, problem), problem.budget
    left -= int(price @ n)
    took = np.flatnonzero(n > first)
    kit.require(bool(np.all(np.isfinite(order.key[took, n[took] - 1]))), "a unit that gains nothing was bought")
    more = np.flatnonzero(n < last)
    due, slack = order.key[more, n[more]], order.band[more, n[more]]
    more, due, slack = more[np.isfinite(due)], due[np.isfinite(due)], slack[np.isfinite(due)]
    if not more.size:
        kit.require(True, "")
        return
    if took.size:
        chosen, loose = order.key[took, n[took] - 1], order.band[took, n[took] - 1]
        band = loose[:, None] + slack[None]
        kit.check(compare.choice(chosen[:, None], due[None], band, "due time of a bought unit against one that waits"))
    earliest = int(np.argmin(due))
    might_be_first = due - slack <= due[earliest] + slack[earliest]
    kit.require(bool(np.any(price[more][might_be_first] > left)), f"stopped with {left} left, enough for what is due")


@clause("K-1", tier="forward-error", problem=GENERAL)
def test_explained_error(kit: Kit, problem: RankProblem) -> None:
    """Σ_{i≤r} s² / Σ s² for r = 0..R; 1 without error, 0 before the first rank otherwise."""
    s = squares(problem.spectra)
    found = kit.call("explained_error", problem.spectra)
    sums = np.concatenate([np.zeros((len(s), 1)), np.cumsum(s, axis=1)], axis=1)
    expected = np.divide(sums, sums[:, -1:], out=np.ones_like(sums), where=sums[:, -1:] > 0)
    allowed = both(2 * s.shape[1] + 3, kit.u(problem.spectra, result=found)) * expected
    kit.check(compare.forward(found, expected, allowed, "explained error"))
    kit.require(bool(np.all(np.diff(found, axis=1) >= 0)), "the explained error falls with the rank")


@clause("K-1a", tier="forward-error", problem=GENERAL, dark=st.booleans())
def test_residual_damage(kit: Kit, problem: RankProblem, dark: bool) -> None:
    """Σ_{i>r} s² / energy; the tails of small values keep their digits, x/0 is inf and 0/0 is 0."""
    s = squares(problem.spectra)
    energy = problem.importance * (0 if dark else 1)
    found = kit.call("residual_damage", problem.spectra, energy)
    tail = np.concatenate([np.cumsum(s[:, ::-1], axis=1)[:, ::-1], np.zeros((len(s), 1))], axis=1)
    below = np.broadcast_to(energy.astype(np.float64)[:, None], tail.shape)
    expected = np.divide(tail, below, out=np.where(tail > 0, np.inf, 0.0), where=below > 0)
    finite = np.where(np.isfinite(expected), expected, 0.0)
    allowed = both(s.shape[1] + 3, kit.u(problem.spectra, result=found)) * finite
    kit.check(compare.forward(found, expected, allowed, "residual damage"))


def leading(w: Array, c: Array, u: float) -> tuple[Array, Array]:
    """Left singular vectors of W C^½ (m, m), and how far rounding may turn the first r of them, r = 1..m (m,)."""
    wide = w.astype(np.float64)
    vectors, values, _ = np.linalg.svd(wide @ laws.root(c))
    m, size = len(w), size_of(w, c)
    λ = np.zeros(m + 1)
    λ[: len(values)] = values**2
    gaps = (λ[:-1] - λ[1:]) / size if size > 0 else np.zeros(m)
    n = 3 * max(w.shape) + 2
    turn = [compare.davis_kahan(g, n, u) + compare.davis_kahan(g, n, U64) for g in gaps]
    turn[-1] = 0.0  # all m directions: the whole space
    return vectors, np.array(turn)


@clause(
    "K-2",
    tier="forward-error",
    problem=strategies.patch_problems(),
    noise=[0.0, 0.125, 1.0, 8.0],
    seed=st.integers(0, 2**16),
)
def test_subspace_overlap(kit: Kit, problem: PatchProblem, noise: float, seed: int) -> None:
    """‖U_rᵀ Ũ_r‖² / r for every r up to the rank, wherever the data determine both subspaces; always in [0, 1]."""
    w, c, rank = problem
    size = float(np.max(np.abs(w), initial=0.0)) or 1.0
    w_hat = (w + noise * size * np.random.default_rng(seed).standard_normal(w.shape)).astype(w.dtype)
    found = kit.call("subspace_overlap", w, w_hat, c, rank=rank)
    kit.require(found.shape == (rank,), f"overlap has shape {found.shape}, expected {(rank,)}")
    kit.require(bool(np.all((found >= 0) & (found <= 1))), f"overlap outside 0..1: {found.tolist()}")
    u = kit.u(w, c, result=found)
    (left, turned), (right, turned_hat) = leading(w, c, u), leading(w_hat, c, u)
    for r in range(1, rank + 1):
        allowed = float(turned[r - 1] + turned_hat[r - 1]) + both(2 * len(w) + r + 2, u)
        if np.isfinite(allowed):
            expected = float(np.sum((left[:, :r].T @ right[:, :r]) ** 2)) / r
            kit.check(compare.forward(found[r - 1], expected, allowed, f"overlap of rank {r}"))


@clause("K-2a", tier="exact", dtype=strategies.WIDE_FLOATS, k=st.integers(3, 12))
def test_what_is_no_second_moment_has_no_directions(kit: Kit, dtype: str, k: int) -> None:
    """Neither leading ones, nor an order among those of a patch."""
    w, b, a = (np.eye(*shape, dtype=dtype) for shape in ((4, k), (4, 2), (2, k)))
    check_moments(kit, "subspace_overlap", lambda c: [w, w, c], k, dtype, "K", rank=1)
    check_moments(kit, "nest_patch", lambda c: [b, a, c], k, dtype, "K")


@clause("K-3", tier="forward-error", gradient=strategies.matrices())
def test_gradient_importance(kit: Kit, gradient: Array) -> None:
    """Sum or mean of the squares."""
    total = float(np.sum(gradient.astype(np.float64) ** 2))
    for name, expected in (("sum", total), ("mean", total / gradient.size)):
        found = kit.call("gradient_importance", gradient, normalisation=name)
        allowed = both(gradient.size + 2, kit.u(gradient)) * expected + kit.tiny(gradient.size)
        kit.check(compare.forward(found, expected, allowed, f"importance ({name})"))


@clause("K-3a", tier="forward-error", problem=GENERAL, base=st.integers(-99, 99))
def test_loss_importance(kit: Kit, problem: RankProblem, base: int) -> None:
    """(loss − base)⁺ / Σ s²: a module whose compression lowers the loss, or that has no error, counts nothing."""
    at = base / 16
    found = kit.call("loss_importance", problem.importance, problem.spectra, base=at)
    losses, total = problem.importance.astype(np.float64), np.sum(squares(problem.spectra), axis=1)
    rise = np.maximum(losses - at, 0.0)
    expected = np.divide(rise, total, out=np.zeros_like(rise), where=total > 0)
    n = problem.spectra.shape[1] + 4
    scale = np.divide(rise + (np.abs(losses) + abs(at)) * (rise > 0), total, out=np.zeros_like(rise), where=total > 0)
    allowed = both(n, kit.u(problem.spectra, result=found)) * scale + kit.tiny()
    kit.check(compare.forward(found, expected, allowed, "importance"))


@clause(
    "K-4",
    tier="exact",
    shapes=st.lists(st.tuples(st.integers(1, 40000), st.integers(1, 40000)), min_size=1, max_size=5),
    bits=[None, 1, 3, 4, 8, 16, 32],
)
def test_rank_cost(kit: Kit, shapes: list[tuple[int, int]], bits: int | None) -> None:
    """m + k parameters, or the bytes of a column of m and a row of k numbers, each ending on a byte."""
    found = kit.call("rank_cost", np.array(shapes, np.int32), bits=bits)
    kit.require(found.dtype == np.int32, f"cost has dtype {found.dtype}")
    expected = [m + k if bits is None else (m * bits + 7) // 8 + (k * bits + 7) // 8 for m, k in shapes]
    kit.check(compare.exact(found, np.array(expected), "cost"))


@clause("K-5", tier="tie-band", problem=GENERAL)
def test_greedy_buys_most_error_per_price(kit: Kit, problem: RankProblem) -> None:
    """By falling gain per cost, until the next unit does not fit."""
    *arrays, budget, multiple = problem
    found = kit.call("allocate_greedy", *arrays, budget=budget, multiple=multiple)
    ratio = unit_gains(problem) / problem.cost.astype(np.float64)[:, None]
    band = both(multiple + 4, kit.u(problem.spectra, problem.importance)) * ratio
    check_stopped(kit, found, problem, Order(np.where(ratio > 0, -ratio, np.inf), band))


@clause("K-5a", tier="exact", problem=TIES, leftover=LEFTOVERS)
def test_greedy_on_ties(kit: Kit, problem: RankProblem, leftover: str) -> None:
    """Small integers: who comes first is never a matter of rounding."""
    *arrays, budget, multiple = problem
    options: dict[str, Any] = {"budget": budget, "multiple": multiple, "leftover": leftover}
    found = kit.call("allocate_greedy", *arrays, **options)
    kit.check(compare.exact(found, kit.spec.allocate_greedy(*arrays, **options), f"ranks ({leftover})"))


def corner_problems() -> Iterator[RankProblem]:
    """Every budget of equal modules, of dear ones before cheap ones, and of ones that few directions explain."""
    for spectra, costs in (
        ([[1, 1, 1]] * 3, [1, 1, 1]),
        ([[4, 4, 4], [3, 3, 3], [2, 2, 2]], [3, 2, 1]),
        ([[1, 0, 0], [2, 0, 0], [1, 1, 0]], [1, 2, 1]),
    ):
        cost, low, high = (np.array(v, np.int32) for v in (costs, [0, 0, 0], [3, 3, 3]))
        for budget in range(3 * sum(costs) + 2):
            yield RankProblem(np.array(spectra, np.float32), np.ones(3, np.float32), cost, low, high, budget, 1)


@clause("K-5a", tier="exact", leftover=LEFTOVERS)
def test_greedy_on_corners(kit: Kit, leftover: str) -> None:
    """Ties of whole modules, units that do not fit, directions that gain nothing."""
    for *given, budget, _ in corner_problems():
        found = kit.call("allocate_greedy", *given, budget=budget, leftover=leftover)
        expected = kit.spec.allocate_greedy(*given, budget=budget, leftover=leftover)
        kit.check(compare.exact(found, expected, f"ranks ({leftover}, budget {budget})"))


@clause("K-5b", tier="certificate", problem=rank_problems(ties=False, modules=3, values=5))
def test_nothing_cheaper_is_better(kit: Kit, problem: RankProblem) -> None:
    """Brute force over all allocations that spend no more than this one did."""
    nothing_cheaper_is_better(kit, problem)


@clause("K-5b", tier="certificate")
def test_gain_per_cost_decides(kit: Kit) -> None:
    """Two modules where one dear rank and three cheap ones compete: what counts is the squared value per cost."""
    for dear in (3.0, 4.0):  # 9 against 3 · 4, then 16 against 3 · 4
        spectra = np.array([[dear, 0.5, 0.25], [2.0, 2.0, 2.0]], np.float32)
        cost, low, high = (np.array(v, np.int32) for v in ([3, 1], [0, 0], [3, 3]))
        problem = RankProblem(spectra, np.ones(2, np.float32), cost, low, high, budget=3, multiple=1)
        nothing_cheaper_is_better(kit, problem)


def nothing_cheaper_is_better(kit: Kit, problem: RankProblem) -> None:
    """The error left, against the least that any allocation of the same spending leaves."""
    *arrays, budget, multiple = problem
    found = kit.call("allocate_greedy", *arrays, budget=budget, multiple=multiple)
    n = counted(kit, found, problem)
    price, first, last = units(problem)
    gain = unit_gains(problem)
    won = np.concatenate([np.zeros((len(gain), 1)), np.cumsum(gain, axis=1)], axis=1)
    spent, modules = int(price @ n), range(len(n))
    most = max(
        sum(won[j, t] for j, t in zip(modules, taken, strict=True))
        for taken in itertools.product(*(range(a, b + 1) for a, b in zip(first, last, strict=True)))
        if int(price @ np.array(taken)) <= spent
    )
    total = float(gain.sum())
    allowed = 2 * both(multiple + 4, kit.u(problem.spectra, problem.importance)) * total
    reached = total - float(sum(won[j, n[j]] for j in modules))
    kit.check(compare.certificate(reached, total - float(most), allowed, "error left, against all that cost no more"))


def shares(problem: RankProblem) -> tuple[Array, Array]:
    """ρ after 0, μ, 2μ … ranks, and whether anything is left then."""
    s = squares(problem.spectra)
    sums = np.concatenate([np.zeros((len(s), 1)), np.cumsum(s, axis=1)], axis=1)
    ρ = np.divide(sums, sums[:, -1:], out=np.ones_like(sums), where=sums[:, -1:] > 0)
    tail = np.concatenate([np.cumsum(s[:, ::-1], axis=1)[:, ::-1], np.zeros((len(s), 1))], axis=1)
    return ρ[:, :: problem.multiple], tail[:, :: problem.multiple] > 0


@clause("K-6", tier="tie-band", problem=GENERAL, threshold=[0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0])
def test_threshold_ranks(kit: Kit, problem: RankProblem, threshold: float) -> None:
    """The first multiple at which the share is reached, within the bounds."""
    found = kit.call(
        "threshold_ranks", problem.spectra, problem.low, problem.high, threshold=threshold, multiple=problem.multiple
    )
    kit.require(found.dtype == np.int32, f"ranks have dtype {found.dtype}")
    _, first, last = units(problem)
    ρ, _ = shares(problem)
    band = both(2 * problem.spectra.shape[1] + 3, kit.u(problem.spectra)) * ρ
    least, most = (
        np.clip((ρ < threshold + side * band).sum(axis=1), first, last) * problem.multiple for side in (-1, 1)
    )
    kit.check(compare.interval(found, least, most, "ranks"))


@clause("K-6", tier="tie-band", problem=TIES, eighths=st.integers(0, 8))
def test_threshold_is_met_by_equality(kit: Kit, problem: RankProblem, eighths: int) -> None:
    """Flat spectra of 8 values: the share after r of them is r/8, exactly."""
    flat = np.ones((len(problem.spectra), 8), problem.spectra.dtype)
    low, high = np.zeros(len(flat), np.int32), np.full(len(flat), 8, np.int32)
    found = kit.call("threshold_ranks", flat, low, high, threshold=eighths / 8)
    kit.check(compare.exact(found, np.full(len(flat), eighths), "ranks"))


@clause("K-6a", tier="tie-band", problem=GENERAL)
def test_threshold_buys_by_share(kit: Kit, problem: RankProblem) -> None:
    """By rising share explained before the unit."""
    spectra, _, cost, low, high, budget, multiple = problem
    found = kit.call("allocate_threshold", spectra, cost, low, high, budget=budget, multiple=multiple)
    ρ, left = shares(problem)
    band = both(2 * spectra.shape[1] + 3, kit.u(spectra)) * ρ
    key = np.where(left, ρ, np.inf)
    # a unit that cannot be told from nothing may be bought or not
    unclear = left & (ρ + band >= 1)
    n = np.asarray(found, np.int64) // multiple
    waits = unclear & (np.arange(ρ.shape[1]) >= n[:, None]) if n.shape == (len(ρ),) else unclear
    check_stopped(kit, found, problem, Order(np.where(waits, np.inf, key), band))


@clause("K-6b", tier="exact", problem=TIES, leftover=LEFTOVERS)
def test_threshold_on_ties(kit: Kit, problem: RankProblem, leftover: str) -> None:
    """Small integers: shares are equal or far apart."""
    spectra, _, *arrays, budget, multiple = problem
    options: dict[str, Any] = {"budget": budget, "multiple": multiple, "leftover": leftover}
    found = kit.call("allocate_threshold", spectra, *arrays, **options)
    kit.check(compare.exact(found, kit.spec.allocate_threshold(spectra, *arrays, **options), f"ranks ({leftover})"))


@clause("K-6b", tier="exact", leftover=LEFTOVERS)
def test_threshold_on_corners(kit: Kit, leftover: str) -> None:
    """The same problems by shares."""
    for spectra, _, *given, budget, _ in corner_problems():
        found = kit.call("allocate_threshold", spectra, *given, budget=budget, leftover=leftover)
        expected = kit.spec.allocate_threshold(spectra, *given, budget=budget, leftover=leftover)
        kit.check(compare.exact(found, expected, f"ranks ({leftover}, budget {budget})"))


@clause("K-7", tier="tie-band", problem=GENERAL)
def test_proportional_buys_by_factor(kit: Kit, problem: RankProblem) -> None:
    """By rising α at which rounding α σ / μ reaches the unit."""
    _, sensitivity, cost, low, high, budget, multiple = problem
    found = kit.call("allocate_proportional", sensitivity, cost, low, high, budget=budget, multiple=multiple)
    _, _, last = units(problem)
    σ = sensitivity.astype(np.float64)[:, None]
    middle = (np.arange(int(last.max(initial=0)) + 1) + 0.5)[None] * multiple
    key = np.divide(middle, σ, out=np.full((len(σ), middle.shape[1]), np.inf), where=σ > 0)
    band = both(3, kit.u(sensitivity)) * np.where(np.isfinite(key), key, 0.0)
    check_stopped(kit, found, problem, Order(key, band))


@clause("K-7a", tier="exact", problem=TIES, leftover=LEFTOVERS, spread=st.integers(0, 30))
def test_proportional_on_ties(kit: Kit, problem: RankProblem, leftover: str, spread: int) -> None:
    """Dyadic sensitivities; bounds that no spectrum limits."""
    _, sensitivity, cost, low, high, budget, multiple = problem
    arrays = (sensitivity, cost, low, (high + spread).astype(np.int32))
    options: dict[str, Any] = {"budget": budget + 2 * spread, "multiple": multiple, "leftover": leftover}
    found = kit.call("allocate_proportional", *arrays, **options)
    kit.check(compare.exact(found, kit.spec.allocate_proportional(*arrays, **options), f"ranks ({leftover})"))


def error_left(problem: RankProblem, ranks: Array) -> float:
    """Σ_j g_j Σ_{i>r_j} s_j,i²."""
    s, g = squares(problem.spectra), problem.importance.astype(np.float64)
    beyond = np.arange(s.shape[1]) >= ranks[:, None]
    return float(np.sum(g[:, None] * s * beyond))


@clause("K-8", tier="forward-error", problem=GENERAL, high=st.booleans())
def test_allocation_objective(kit: Kit, problem: RankProblem, high: bool) -> None:
    """Tails are summed as tails: no difference of large numbers."""
    ranks = problem.high if high else problem.low
    found = kit.call("allocation_objective", problem.spectra, problem.importance, ranks)
    expected = error_left(problem, ranks)
    allowed = both(problem.spectra.size + 3, kit.u(problem.spectra, problem.importance)) * expected
    kit.check(compare.forward(found, expected, allowed + kit.tiny(problem.spectra.size), "error left"))


@clause("K-8a", tier="forward-error", problem=GENERAL)
def test_allocation_bound(kit: Kit, problem: RankProblem) -> None:
    """The optimum with units that may be split, by sorting all of them and cutting where the budget ends."""
    *arrays, budget, multiple = problem
    found = kit.call("allocation_bound", *arrays, budget=budget, multiple=multiple)
    price, first, last = units(problem)
    gain = unit_gains(problem)
    span = np.arange(gain.shape[1])
    module, unit = np.nonzero((span >= first[:, None]) & (span < last[:, None]) & (gain > 0))
    worth = gain[module, unit]
    order = np.argsort(-worth / price[module], kind="stable")
    room = budget - int(price @ first)
    before = np.concatenate([[0], np.cumsum(price[module][order])])[:-1]
    taken = np.clip((room - before) / price[module][order], 0.0, 1.0)
    expected = error_left(problem, first * multiple) - float(taken @ worth[order])
    total = error_left(problem, np.zeros(len(first), np.int64))
    allowed = 2 * both(problem.spectra.size + multiple + 6, kit.u(problem.spectra, problem.importance)) * total
    kit.check(compare.forward(found, max(expected, 0.0), allowed + kit.tiny(problem.spectra.size), "lower bound"))


@clause("K-9", tier="forward-error", problem=GENERAL, seed=st.integers(0, 2**16))
def test_pooled_modules(kit: Kit, problem: RankProblem, seed: int) -> None:
    """Squares and costs add up, bounds are those that all members keep."""
    spectra, importance, cost, low, high, *_ = problem
    J = len(spectra)
    low = np.minimum(low, high.min())  # any group has a rank in common
    group = np.random.default_rng(seed).integers(0, J, J)
    group = np.unique(group, return_inverse=True)[1].astype(np.int32)
    found = kit.call("pool_modules", spectra, importance, cost, low, high, group)
    T = int(group.max()) + 1
    member = group == np.arange(T)[:, None]
    expected = member @ (importance.astype(np.float64)[:, None] * squares(spectra))
    u = kit.u(spectra, importance, result=found.spectra)
    allowed = both(J + 4, u) * expected + kit.tiny(J)
    kit.check(compare.forward(found.spectra.astype(np.float64) ** 2, expected, allowed, "squared pooled spectra"))
    for name, want in (
        ("cost", [int(cost[m].sum()) for m in member]),
        ("low", [int(low[m].max()) for m in member]),
        ("high", [int(high[m].min()) for m in member]),
    ):
        kit.check(compare.exact(getattr(found, name), np.array(want), name))


@clause(
    "K-10",
    tier="exact",
    problem=TIES,
    other=TIES,
    step=st.integers(0, 4),
    seed=st.integers(0, 2**16),
)
def test_reallocation(kit: Kit, problem: RankProblem, other: RankProblem, step: int, seed: int) -> None:
    """What adapters hold and what they leave, merged; the present rank decides how far a module may go."""
    residual, importance, cost, low, high, budget, multiple = problem
    J = len(residual)
    kept = np.resize(other.spectra.astype(residual.dtype), (J, other.spectra.shape[1]))
    kept = -np.sort(-kept, axis=1)
    now = np.random.default_rng(seed).integers(low, high + 1).astype(np.int32)
    near, far = np.maximum(low, now - step), np.minimum(high, now + step)
    if np.any(-(-near // multiple) > far // multiple):
        multiple = 1
    least = int(cost.astype(np.int64) @ (-(-near // multiple))) * multiple
    arrays = (kept, residual, importance, cost, low, high, now)
    for hysteresis in (0.0, 0.5, 3.0):
        for allowed in (max(budget, least), least, least + multiple * int(cost.max())):
            options: dict[str, Any] = {"budget": allowed, "step": step, "multiple": multiple, "hysteresis": hysteresis}
            found = kit.call("reallocate_ranks", *arrays, **options)
            kit.check(compare.exact(found, kit.spec.reallocate_ranks(*arrays, **options), "ranks"))


@st.composite
def adapters(draw: st.DrawFn) -> tuple[Array, Array, Array]:
    """b (m, R), a (R, k), c (k, k): factors in no order, singular moments, directions that repeat or vanish."""
    problem = draw(strategies.patch_problems(largest=8))
    dtype, (m, k), rank = problem.d.dtype, problem.d.shape, problem.rank
    numbers = draw(st.lists(st.integers(-9, 9), min_size=rank * (m + k), max_size=rank * (m + k)))
    b, a = np.array(numbers[: rank * m], dtype).reshape(m, rank), np.array(numbers[rank * m :], dtype).reshape(rank, k)
    if draw(st.booleans()):
        a[0] *= 64  # the first direction large, or the last one
    if draw(st.booleans()):
        b[:, -1] *= 64
    return b, a, problem.c


def nested_size(b: Array, a: Array, c: Array) -> float:
    """Norm against which rounding of B (A C Aᵀ) Bᵀ is small."""
    wide = [np.linalg.norm(x.astype(np.float64)) for x in (b, a, c)]
    return float((wide[0] * wide[1]) ** 2 * wide[2])


@clause("K-11", tier="certificate", case=adapters(), split=["balanced", "left"])
def test_prefixes_of_a_nested_patch(kit: Kit, case: tuple[Array, Array, Array], split: str) -> None:
    """The first r directions leave no more of BA than the best patch of rank r does."""
    b, a, c = case
    patch = kit.call("nest_patch", b, a, c, split=split)
    check_shapes(kit, patch, np.empty((len(b), a.shape[1])), b.shape[1])
    product = b.astype(np.float64) @ a.astype(np.float64)
    n, size, u = max(product.shape), nested_size(b, a, c), kit.u(b, a, c, result=patch.B)
    for r in range(1, b.shape[1] + 1):
        reached = laws.patch_objective(product, c, patch.B[:, :r], patch.A[:r])
        allowed = compare.gram_gap(size, b.shape[1], n, u) + compare.gram_gap(size, b.shape[1], n, U64)
        best = laws.optimum(product, c, r)
        kit.check(compare.certificate(reached, best, allowed + kit.tiny(product.size), f"prefix of rank {r} ({split})"))


@clause("K-11a", tier="forward-error", case=adapters())
def test_nesting_keeps_the_product(kit: Kit, case: tuple[Array, Array, Array]) -> None:
    """B'A' = BA, also where C is blind; B' is orthonormal (left), or its columns have norm λ^¼ (balanced)."""
    b, a, c = case
    wide = [x.astype(np.float64) for x in (b, a, c)]
    product, rank = wide[0] @ wide[1], b.shape[1]
    norm = float(np.linalg.norm(wide[0]) * np.linalg.norm(wide[1]))
    values = np.linalg.svd(product @ laws.root(c), compute_uv=False)[:rank] ** 2
    for split in ("left", "balanced"):
        patch = kit.call("nest_patch", b, a, c, split=split)
        u = kit.u(b, a, c, result=patch.B)
        n = 2 * max(product.shape)
        allowed = compare.residual_gap(norm, n, u) + compare.residual_gap(norm, n, U64) + kit.tiny(product.size)
        found = patch.B.astype(np.float64) @ patch.A.astype(np.float64)
        kit.check(compare.forward(found, product, allowed, f"product ({split})"))
        columns = patch.B.astype(np.float64)
        slip = compare.gamma(4 * max(product.shape), u)
        if split == "left":
            kit.check(compare.forward(columns.T @ columns, np.eye(rank), slip, "Gram matrix of the columns of B"))
            continue
        off = compare.gram_gap(nested_size(b, a, c), 1, n, u) + compare.gram_gap(nested_size(b, a, c), 1, n, U64)
        powers = np.linalg.norm(columns, axis=0) ** 4
        expected = np.where(values > 2 * off, values, powers)  # below, a factor of one is taken
        kit.check(compare.forward(powers, expected, off + 4 * slip * values, "fourth power of the norms"))


@clause("K-11b", tier="certificate", problem=strategies.patch_problems())
def test_eora_is_nested(kit: Kit, problem: PatchProblem) -> None:
    """Rank r is the first r directions of rank R: one solve serves every smaller rank."""
    d, c, rank = problem
    patch = kit.call("eora", d, c, rank=rank)
    u = kit.u(d, c, result=patch.B)
    for r in range(1, rank + 1):
        reached = laws.patch_objective(d, c, patch.B[:, :r], patch.A[:r])
        kit.check(compare.certificate(reached, laws.optimum(d, c, r), gap(d, c, rank, u), f"prefix of rank {r}"))
