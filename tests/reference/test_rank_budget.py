"""Chapter K: the property tests of ranks under a budget, brute force on tiny instances, and the traps.

There are no golden vectors: RA-LoRA has no public code. What can be checked is that each part is what it says, and that
the allocation is the best one, by trying all.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lowbit.reference as ref
from lowbit.reference.errors import SpecError
from lowbit.reference.rank_budget import I32_MAX
from lowbit.reference.types import Leftover

from .bounds import LAW, Array, factorisation, gamma, near, psd

rng = np.random.default_rng
seeds = st.integers(0, 10**6)
LEFTOVERS: tuple[Leftover, ...] = ("stop", "fill")


def instance(seed: int, J: int = 4, R: int = 4, *, equal: bool = False) -> tuple[Array, Array, Array, Array, Array]:
    """Spectra, importance, cost, low and high of small numbers."""
    g = rng(seed)
    spectra = -np.sort(-g.integers(0, 9, (J, R)).astype(float), axis=1)
    importance = np.ldexp(1.0, g.integers(-2, 3, J))
    cost = np.full(J, 3) if equal else g.integers(1, 9, J)
    low = g.integers(0, 2, J)
    return spectra, importance, cost, low, np.minimum(low + g.integers(0, R + 1, J), R)


def every(low: Array, high: Array, multiple: int = 1) -> list[Array]:
    """All allocations within the bounds."""
    choices = [[r for r in range(a, b + 1) if r % multiple == 0] for a, b in zip(low, high, strict=True)]
    return [np.array(ranks) for ranks in itertools.product(*choices)]


def budgets(cost: Array, low: Array, high: Array) -> range:
    """From the smallest ranks to all of them."""
    return range(int(cost @ low), int(cost @ high) + 2)


# --- brute force ------------------------------------------------------------------------------------------------------


@LAW
@given(seeds, st.booleans())
def test_k5_no_allocation_that_spends_as_little_leaves_less(seed: int, equal: bool) -> None:
    """Greedy with "stop" is optimal at what it spends; with equal costs at every budget."""
    S, g, c, low, high = instance(seed, equal=equal)
    known = [(int(c @ r), ref.allocation_objective(S, g, r)) for r in every(low, high)]
    for P in budgets(c, low, high):
        ranks = ref.allocate_greedy(S, g, c, low, high, budget=P)
        left = ref.allocation_objective(S, g, ranks)
        spent = int(c @ ranks)
        assert spent <= P
        assert ((low <= ranks) & (ranks <= high)).all()
        assert left == min(J for price, J in known if price <= (P if equal else spent))
        best = min(J for price, J in known if price <= P)
        bound = ref.allocation_bound(S, g, c, low, high, budget=P)
        assert bound <= best * (1 + gamma(64))
        filled = ref.allocate_greedy(S, g, c, low, high, budget=P, leftover="fill")
        assert best <= ref.allocation_objective(S, g, filled) <= left
        assert int(c @ filled) <= P


@LAW
@given(seeds, st.integers(2, 3))
def test_k5_multiples_are_bought_whole(seed: int, multiple: int) -> None:
    S, g, c, low, high = instance(seed, J=3, R=6)
    possible = every(low, high, multiple)
    if not possible:
        with pytest.raises(SpecError, match=rf"\[K-5\] no multiple of {multiple} lies in"):
            ref.allocate_greedy(S, g, c, low, high, budget=10**6, multiple=multiple)
        return
    known = [(int(c @ r), ref.allocation_objective(S, g, r)) for r in possible]
    for P in range(min(price for price, _ in known), max(price for price, _ in known) + 2):
        ranks = ref.allocate_greedy(S, g, c, low, high, budget=P, multiple=multiple)
        assert not (ranks % multiple).any()
        spent = int(c @ ranks)
        best = min(J for price, J in known if price <= spent)
        assert ref.allocation_objective(S, g, ranks) == best
        bound = ref.allocation_bound(S, g, c, low, high, budget=P, multiple=multiple)
        assert bound <= min(J for price, J in known if price <= P) * (1 + gamma(64))


@pytest.mark.parametrize("multiple", [1, 2, 3])
def test_k8_the_bound_is_the_linear_program(multiple: int) -> None:
    """Against scipy's solver: minimise −gain·x over 0 ≤ x ≤ 1 under one budget row."""
    from scipy.optimize import linprog

    for seed in range(20):
        S, g, c, _, high = instance(seed, J=5, R=6)
        low, units = np.zeros(5, int), high // multiple
        P = int(rng(seed).integers(0, int(c @ units) * multiple + 1))
        blocks = [(j, t * multiple) for j in range(5) for t in range(units[j])]
        gain = [g[j] * (S[j, i : i + multiple] ** 2).sum() for j, i in blocks]
        price = [c[j] * multiple for j, _ in blocks]
        solved = linprog(-np.array(gain), A_ub=[price], b_ub=[P], bounds=(0, 1)).fun if gain else 0.0
        start = ref.allocation_objective(S, g, low)
        bound = ref.allocation_bound(S, g, c, low, high, budget=P, multiple=multiple)
        near(bound, start + float(solved or 0.0), roundings=64, magnitude=start + 1)


@LAW
@given(seeds, st.integers(1, 3))
def test_k6_k7_budgeted_rules_are_their_rule_at_some_threshold(seed: int, multiple: int) -> None:
    """Rule B: threshold_ranks at τ, plus ties of τ. Rule C: the formula at α, plus ties. By listing every τ and α."""
    S, _, c, _, high = instance(seed, J=4, R=6)
    low = np.zeros(4, int)
    σ = rng(seed).integers(0, 5, 4).astype(float)
    units = high // multiple
    ρ = ref.explained_error(S)
    τ = sorted({float(ρ[j, t * multiple]) for j in range(4) for t in range(units[j]) if ρ[j, t * multiple] < 1})
    α = sorted({(t + 0.5) * multiple / σ[j] for j in range(4) if σ[j] for t in range(units[j])})
    steps: list[Array] = [ref.threshold_ranks(S, low, high, threshold=x, multiple=multiple) for x in [*τ, 1.0]]
    factors: list[Array] = [low]
    for a in α:  # just past a: every unit that is due at a or before is bought
        due = [[(t + 0.5) * multiple / σ[j] <= a for t in range(units[j])] if σ[j] else [] for j in range(4)]
        factors.append(multiple * np.array([sum(d) for d in due]))
    for P in range(int(c @ high) + 2):
        for found, chain in (
            (ref.allocate_threshold(S, c, low, high, budget=P, multiple=multiple), steps),
            (ref.allocate_proportional(σ, c, low, high, budget=P, multiple=multiple), factors),
        ):
            assert int(c @ found) <= P
            assert not (found % multiple).any()
            below = [r for r in chain if (r <= found).all()]
            above = [r for r in chain if (r >= found).all()]
            assert below, "not above the rule at any threshold"
            assert above, "not below the rule at any threshold"
            # nothing lies strictly between the two: what is bought of it are ties, lower modules first
            lower, upper = max(below, key=np.sum), min(above, key=np.sum)
            between = [r for r in chain if (lower <= r).all() and (r <= upper).all()]
            assert all(np.array_equal(r, lower) or np.array_equal(r, upper) for r in between)
            partly = np.flatnonzero((found > lower) & (found < upper))
            assert len(partly) <= 1
            if len(partly):
                assert (found[: partly[0]] == upper[: partly[0]]).all()
                assert (found[partly[0] + 1 :] == lower[partly[0] + 1 :]).all()


# --- the property tests -----------------------------------------------------------------------------------------------


def rules(seed: int, leftover: Leftover) -> dict[str, Any]:
    """The three rules as functions of the budget alone."""
    S, g, c, low, high = instance(seed, J=6, R=5)
    σ = rng(seed).integers(0, 5, 6).astype(float)
    return {
        "greedy": lambda P: ref.allocate_greedy(S, g, c, low, high, budget=P, leftover=leftover),
        "threshold": lambda P: ref.allocate_threshold(S, c, low, high, budget=P, leftover=leftover),
        "proportional": lambda P: ref.allocate_proportional(σ, c, low, high, budget=P, leftover=leftover),
    }


@LAW
@given(seeds)
def test_property_budget_is_kept_and_stop_is_monotone(seed: int) -> None:
    _, _, c, low, high = instance(seed, J=6, R=5)
    for name, rule in rules(seed, "stop").items():
        last = low
        for P in budgets(c, low, high):
            found = rule(P)
            assert found.dtype == np.int32
            assert int(c @ found) <= P, name
            assert (found >= last).all(), f"{name}: a larger budget lowered a rank"
            last = found
    for name, rule in rules(seed, "fill").items():
        stopped = rules(seed, "stop")[name]
        for P in budgets(c, low, high):
            assert (rule(P) >= stopped(P)).all()  # it goes on from there
            assert int(c @ rule(P)) <= P, name


def test_property_fill_is_not_monotone() -> None:
    """One more unit of budget buys the big unit that "fill" had to skip, and the small one does not fit any more."""
    S, c = [[4.0], [1.0]], [5, 2]
    few, more = (ref.allocate_greedy(S, [1, 1], c, [0, 0], [1, 1], budget=P, leftover="fill").tolist() for P in (4, 5))
    assert (few, more) == ([0, 1], [1, 0])
    assert ref.allocate_greedy(S, [1, 1], c, [0, 0], [1, 1], budget=4).tolist() == [0, 0]


@LAW
@given(seeds, st.integers(0, 40))
def test_property_identical_modules_get_equal_ranks_within_one(seed: int, P: int) -> None:
    S, g, c, *_ = instance(seed, J=2, R=5)
    S, g, c = (np.repeat(x, 3, axis=0) for x in (S, g, c))
    low, high = np.zeros(6, int), np.full(6, 5)
    for found in (
        ref.allocate_greedy(S, g, c, low, high, budget=P),
        ref.allocate_threshold(S, c, low, high, budget=P),
        ref.allocate_proportional(S[:, 0], c, low, high, budget=P),
    ):
        for same in (found[:3], found[3:]):
            assert (np.diff(same) <= 0).all(), "ties go to the lower module"
            levels = [np.unique(S[i * 3], return_counts=True)[1].max() for i in range(2)]
            assert same[0] - same[-1] <= max(levels)  # a run of equal values is bought module by module
    distinct = np.repeat([[5.0, 4.0, 3.0, 2.0, 1.0]], 4, axis=0)
    found = ref.allocate_greedy(distinct, np.ones(4), np.ones(4, int), np.zeros(4, int), np.full(4, 5), budget=P % 21)
    assert found.max() - found.min() <= 1


def test_property_a_module_without_error_gets_its_smallest_rank() -> None:
    S, g, c = np.array([[3.0, 1.0, 1.0], [0.0, 0.0, 0.0]]), np.ones(2), np.ones(2, int)
    for leftover in LEFTOVERS:
        options: Any = {"budget": 99, "leftover": leftover}
        assert ref.allocate_greedy(S, g, c, [0, 1], [3, 3], **options).tolist() == [3, 1]
        assert ref.allocate_threshold(S, c, [0, 1], [3, 3], **options).tolist() == [3, 1]
        assert ref.allocate_proportional(S[:, 0], c, [0, 1], [3, 3], **options).tolist() == [3, 1]
    assert ref.threshold_ranks(S, [0, 1], [3, 3], threshold=1.0).tolist() == [3, 1]
    assert ref.allocate_greedy(S, [0.0, 1.0], c, [0, 0], [3, 3], budget=99).tolist() == [0, 0]  # nobody cares


@LAW
@given(seeds, st.integers(1, 3))
def test_property_rule_a_is_not_worse_than_uniform_ranks(seed: int, r: int) -> None:
    """At equal costs. With unequal ones uniform ranks may use the budget to the last unit where "stop" does not; the
    bound says by how much."""
    for equal in (True, False):
        S, g, c, *_ = instance(seed, J=5, R=4, equal=equal)
        low, high = np.zeros(5, int), np.full(5, 4)
        P = int(c.sum()) * r
        ranks = ref.allocate_greedy(S, g, c, low, high, budget=P)
        ours, uniform = ref.allocation_objective(S, g, ranks), ref.allocation_objective(S, g, np.full(5, r))
        if equal:
            assert ours <= uniform
        assert ref.allocation_bound(S, g, c, low, high, budget=P) <= uniform * (1 + gamma(64))


@LAW
@given(seeds, st.integers(0, 4), st.integers(1, 3))
def test_property_a_larger_error_never_lowers_the_rank(seed: int, j: int, octaves: int) -> None:
    """Scaling E or √C of one module up, or its importance."""
    S, g, c, low, high = instance(seed, J=5, R=4)
    louder, dearer = S.copy(), g.copy()
    louder[j] *= 2.0**octaves
    dearer[j] *= 2.0**octaves
    for P in budgets(c, low, high):
        before = ref.allocate_greedy(S, g, c, low, high, budget=P)[j]
        assert ref.allocate_greedy(louder, g, c, low, high, budget=P)[j] >= before
        assert ref.allocate_greedy(S, dearer, c, low, high, budget=P)[j] >= before
        assert (
            ref.allocate_threshold(louder, c, low, high, budget=P)[j]
            == ref.allocate_threshold(S, c, low, high, budget=P)[j]
        )  # Rule B does not see sizes


@LAW
@given(seeds, st.integers(1, 7), st.integers(1, 7))
def test_property_overlap_lies_in_0_1_and_is_1_without_error(seed: int, m: int, k: int) -> None:
    g = rng(seed)
    W, C = g.standard_normal((m, k)), psd(g, k)
    r = min(m, k)
    found = ref.subspace_overlap(W, W + g.standard_normal((m, k)), C, rank=r)
    assert found.shape == (r,)
    assert ((found >= 0) & (found <= 1)).all()
    near(ref.subspace_overlap(W, W, C, rank=r), np.ones(r), roundings=factorisation(m, k))
    near(ref.subspace_overlap(W, -3 * W, C, rank=r), np.ones(r), roundings=10 * factorisation(m, k))
    if r == m:  # the whole space
        near(found[-1], 1.0, roundings=factorisation(m, k))


def test_k2_overlap_of_known_subspaces() -> None:
    """Rotating the second of two directions by θ: φ(1) = 1, φ(2) = (1 + cos² θ) / 2."""
    θ = 0.3
    W = np.diag([3.0, 2.0, 0.0])
    turn = np.array([[1, 0, 0], [0, np.cos(θ), -np.sin(θ)], [0, np.sin(θ), np.cos(θ)]])
    near(ref.subspace_overlap(W, turn @ W, np.eye(3), rank=2), [1, (1 + np.cos(θ) ** 2) / 2], roundings=200)
    weighted = ref.subspace_overlap(W, np.eye(3), np.diag([1.0, 1.0, 100.0]), rank=1)  # the inputs decide
    near(weighted, [0.0], roundings=1, magnitude=1.0)


# --- what a rank buys, and what it costs ------------------------------------------------------------------------------


@LAW
@given(seeds, st.integers(1, 6), st.integers(1, 6))
def test_k1_spectra_of_chapter_e_say_what_a_patch_leaves(seed: int, m: int, k: int) -> None:
    """ρ and δ against patches that are really made (cross-check of chapters E and K)."""
    g = rng(seed)
    W, D, C = g.standard_normal((m, k)), g.standard_normal((m, k)), psd(g, k)
    S = ref.error_spectrum(D, C)[None]
    whole, energy = ref.objective(D, C), ref.objective(W, C)
    ρ, δ = ref.explained_error(S)[0], ref.residual_damage(S, [energy])[0]
    assert (ρ[0], ρ[-1], δ[-1]) == (0.0, 1.0, 0.0)
    assert (np.diff(ρ) >= 0).all()
    assert (np.diff(δ) <= 0).all()
    allowed = factorisation(m, k) * 4
    for r in range(1, min(m, k) + 1):
        B, A = ref.eora(D, C, rank=r)
        left = ref.objective(D - B @ A, C)
        near(1 - ρ[r], left / whole, roundings=allowed, magnitude=1.0)
        near(δ[r], left / energy, roundings=allowed, magnitude=whole / energy)
        near(ref.allocation_objective(S, [1.0], [r]), left, roundings=allowed, magnitude=whole)


def test_k1_degenerate_shares() -> None:
    assert ref.residual_damage([[1.0], [0.0]], [0.0, 0.0]).tolist() == [[np.inf, 0.0], [0.0, 0.0]]
    assert ref.explained_error(np.zeros((2, 0))).tolist() == [[1.0], [1.0]]
    assert ref.explained_error(np.zeros((0, 3))).shape == (0, 4)


def test_k3_mean_gradient_prices_the_objective() -> None:
    """E ⟨G, X Eᵀ⟩² = γ J(E) for white gradients, by Monte Carlo over signs: exact in expectation, so list all signs."""
    g = rng(0)
    E, X = g.standard_normal((2, 3)), g.standard_normal((2, 3))
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=4))).reshape(-1, 2, 2)  # (T, m) gradients of ±1
    changes = np.array([(G * (X @ E.T)).sum() ** 2 for G in signs])
    price = ref.gradient_importance(signs[0])
    assert price == 1.0
    near(changes.mean(), price * ref.objective(E, X.T @ X), roundings=100)
    assert ref.gradient_importance(3 * signs[0], normalisation="sum") == 36.0
    assert ref.gradient_importance(np.zeros((0, 4))) == 0.0


def test_k3_measured_losses_become_the_objective() -> None:
    S = np.array([[2.0, 1.0], [3.0, 0.0], [0.0, 0.0]])
    g = ref.loss_importance([2.5, 1.9, 5.0], S, base=2.0)
    near(ref.allocation_objective(S, g, [0, 0, 0]), 0.5, roundings=10)
    assert g[1] == g[2] == 0.0  # a module whose compression helps, and one that has no error
    with pytest.raises(SpecError, match=r"\[K-3\] losses must have shape \(3,\), got \(2,\)"):
        ref.loss_importance([1.0, 2.0], S, base=0.0)
    with pytest.raises(SpecError, match=r"\[K-3\] normalisation must be one of 'mean', 'sum', got 'max'"):
        ref.gradient_importance(S, normalisation="max")  # type: ignore[arg-type]


def test_k4_prices() -> None:
    shapes = [[4096, 4096], [11008, 4096], [3, 5]]
    assert ref.rank_cost(shapes).tolist() == [8192, 15104, 8]
    assert ref.rank_cost(shapes, bits=16).tolist() == [16384, 30208, 16]
    assert ref.rank_cost(shapes, bits=4).tolist() == [4096, 7552, 5]
    for bad, words in (
        ([[3, 0]], r"shapes must be in 1\.\.2147483647, module 0 has \(3, 0\)"),
        ([[3, 4, 5]], r"shapes must have shape \(J, 2\), got \(1, 3\)"),
        ([[I32_MAX, 1]], "the cost of a rank must fit int32, got 2147483648"),
    ):
        with pytest.raises(SpecError, match=rf"\[K-4\] {words}"):
            ref.rank_cost(bad)


# --- sharing, re-allocation, truncation -------------------------------------------------------------------------------


@LAW
@given(seeds)
def test_k9_a_pool_is_the_problem_with_shared_ranks(seed: int) -> None:
    """Brute force over shared ranks agrees with Rule A on the pool."""
    S, g, c, _, _ = instance(seed, J=6, R=3)
    low, high, group = np.zeros(6, int), np.full(6, 3), np.array([0, 1, 2, 0, 1, 2])
    pool = ref.pool_modules(S, g, c, low, high, group)
    assert pool.cost.tolist() == [int(c[group == t].sum()) for t in range(3)]
    for r in every(np.zeros(3, int), np.full(3, 3)):
        shared = ref.allocation_objective(S, g, r[group])
        near(ref.allocation_objective(pool.spectra, np.ones(3), r), shared, roundings=40)
    P = int(pool.cost.sum())
    ranks = ref.allocate_greedy(pool.spectra, np.ones(3), pool.cost, pool.low, pool.high, budget=P)
    spent = int(pool.cost @ ranks)
    assert int(c @ ranks[group]) == spent
    everywhere = every(np.zeros(3, int), np.full(3, 3))
    best = min(ref.allocation_objective(S, g, r[group]) for r in everywhere if int(pool.cost @ r) <= spent)
    assert ref.allocation_objective(S, g, ranks[group]) <= best * (1 + gamma(64))


def test_k9_bounds_of_a_pool_and_refusals() -> None:
    S, one = np.ones((3, 4)), np.ones(3)
    pool = ref.pool_modules(S, one, [1, 2, 3], [1, 0, 2], [4, 3, 4], [0, 0, 1])
    assert (pool.low.tolist(), pool.high.tolist(), pool.cost.tolist()) == ([1, 2], [3, 4], [3, 3])
    empty = ref.pool_modules(np.zeros((0, 4)), [], [], [], [], [])
    assert empty.spectra.shape == (0, 4)
    for arguments, words in (
        ((S, one, [1, 1, 1], [0, 0, 0], [4, 4, 4], [0, 2, 2]), "numbered without a gap, group 1 has no module"),
        ((S, one, [1, 1, 1], [0, 0, 0], [4, 4, 4], [0, 0, I32_MAX]), "group 1 has no module"),
        ((S, one, [1, 1, 1], [3, 0, 0], [4, 2, 4], [0, 0, 0]), "group 0 has no rank in common: its largest low is 3"),
        ((S, one, [I32_MAX, 1, 1], [0, 0, 0], [4, 4, 4], [0, 0, 1]), "cost of a group must fit int32, got 2147483648"),
        ((1e150 * S, 1e10 * one, [1, 1, 1], [0, 0, 0], [4, 4, 4], [0, 0, 1]), "overflows float64"),
    ):
        with pytest.raises(SpecError, match=rf"\[K-9\] .*{words}"):
            ref.pool_modules(*arguments)  # type: ignore[arg-type]


@LAW
@given(seeds, st.integers(0, 3))
def test_k10_reallocation_is_greedy_within_a_step(seed: int, step: int) -> None:
    """At the optimum the merged spectrum is that of the error itself; wide steps forget where they came from."""
    S, g, c, low, high = instance(seed, J=5, R=4)
    r = low + rng(seed + 1).integers(0, high - low + 1)
    kept = np.where(np.arange(4) < r[:, None], S, 0.0)
    residual = -np.sort(-np.where(np.arange(4) < r[:, None], 0.0, S), axis=1)
    P = int(c @ r) + step
    now = ref.reallocate_ranks(kept, residual, g, c, low, high, r, budget=P, step=step)
    assert int(c @ now) <= P
    assert (np.abs(now - r) <= step).all()
    near_by = ref.allocate_greedy(S, g, c, np.maximum(low, r - step), np.minimum(high, r + step), budget=P)
    np.testing.assert_array_equal(now, near_by)
    far = ref.reallocate_ranks(kept, residual, g, c, low, high, r, budget=P, step=9)
    np.testing.assert_array_equal(far, ref.allocate_greedy(S, g, c, low, high, budget=P))
    again = ref.reallocate_ranks(kept, residual, g, c, low, high, far, budget=P, step=9)
    np.testing.assert_array_equal(again, far)  # nothing left to move


def test_k10_hysteresis_keeps_what_is_nearly_as_good() -> None:
    kept, residual = np.array([[3.0, 2.0], [3.0, 0.0]]), np.array([[0.0], [2.1]])
    arguments = (kept, residual, [1.0, 1.0], [1, 1], [0, 0], [3, 3], [2, 1])
    assert ref.reallocate_ranks(*arguments, budget=3, step=1).tolist() == [1, 2]
    assert ref.reallocate_ranks(*arguments, budget=3, step=1, hysteresis=0.2).tolist() == [2, 1]
    assert ref.reallocate_ranks(*arguments, budget=2, step=1, hysteresis=0.2).tolist() == [1, 1]  # a smaller budget
    with pytest.raises(SpecError, match=r"\[K-10\] budget 0 is below 1, the cost of the smallest ranks"):
        ref.reallocate_ranks(*arguments, budget=0, step=1)
    with pytest.raises(SpecError, match=r"\[K-10\] module 1 has rank 1, outside 2\.\.3"):
        ref.reallocate_ranks(kept, residual, [1.0, 1.0], [1, 1], [0, 2], [3, 3], [2, 1], budget=9, step=1)
    with pytest.raises(SpecError, match=r"\[K-10\] residual must have 2 rows, got shape \(1, 1\)"):
        ref.reallocate_ranks(kept, residual[:1], [1.0, 1.0], [1, 1], [0, 0], [3, 3], [2, 1], budget=9, step=1)


@LAW
@given(seeds, st.integers(1, 8), st.integers(1, 8), st.integers(0, 3))
def test_k11_every_prefix_is_the_best_of_its_rank(seed: int, m: int, k: int, dead: int) -> None:
    """Random factors, random inputs, dead channels: the product stays and prefixes leave the tail of its spectrum."""
    g = rng(seed)
    r = int(g.integers(1, min(m, k) + 1))
    b, a, C = g.standard_normal((m, r)), g.standard_normal((r, k)), psd(g, k)
    C[:dead] = C[:, :dead] = 0.0
    for split in ("balanced", "left"):
        B, A = ref.nest_patch(b, a, C, split=split)  # type: ignore[arg-type]
        size = np.linalg.norm(b) * np.linalg.norm(a)
        near(B @ A, b @ a, roundings=factorisation(m, k), magnitude=size)
        scale = np.linalg.norm(C) * size**2
        for n in range(1, r + 1):
            left = ref.objective(b @ a - B[:, :n] @ A[:n], C)
            near(left, ref.optimum(b @ a, C, rank=n), roundings=4 * factorisation(m, k), magnitude=scale)
        if split == "left":
            near(B.T @ B, np.eye(r), roundings=factorisation(m), magnitude=1.0)


@LAW
@given(seeds, st.integers(2, 8), st.integers(2, 8))
def test_k11_patches_of_eora_are_nested_already(seed: int, m: int, k: int) -> None:
    """Rank r is a prefix of rank R: one solve serves every smaller rank."""
    g = rng(seed)
    D, C = g.standard_normal((m, k)), psd(g, k)
    R = min(m, k)
    B, A = ref.eora(D, C, rank=R)
    for r in range(1, R):
        small = ref.eora(D, C, rank=r)
        near(B[:, :r] @ A[:r], small.B @ small.A, roundings=factorisation(m, k), magnitude=1e3 * np.linalg.norm(D))


def test_k11_truncating_factors_that_are_not_nested_loses_the_large_direction() -> None:
    b, a = np.array([[0.0, 1.0], [1.0, 0.0]]), np.diag([1.0, 9.0])
    plain = ref.objective(b @ a - b[:, :1] @ a[:1], np.eye(2))
    B, A = ref.nest_patch(b, a, np.eye(2))
    assert plain == 81.0
    near(ref.objective(b @ a - B[:, :1] @ A[:1], np.eye(2)), 1.0, roundings=100)
    nothing = ref.nest_patch(np.zeros((3, 0)), np.zeros((0, 2)), np.eye(2))
    assert (nothing.B.shape, nothing.A.shape) == ((3, 0), (0, 2))
    zero = ref.nest_patch(np.zeros((3, 2)), np.zeros((2, 4)), np.eye(4))
    assert not (zero.B @ zero.A).any()


def test_k11_eora_of_the_patch_may_lose_what_nest_patch_keeps() -> None:
    """A direction that the calibration inputs never reach: J is blind to it, other inputs are not."""
    b, a, C = np.eye(3)[:, :2], np.array([[1.0, 0, 0], [0, 1.0, 0]]), np.diag([1.0, 0.0, 0.0])
    B, A = ref.nest_patch(b, a, C)
    np.testing.assert_array_equal(np.round(B @ A, 12), b @ a)


# --- refusals ---------------------------------------------------------------------------------------------------------

S, ONE, C1 = np.array([[3.0, 1.0], [2.0, 2.0]]), np.ones(2), [1, 1]
LOW, HIGH = [0, 0], [2, 2]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: ref.explained_error([[1.0, 2.0]]),
            r"\[K-1\] spectra must descend, module 0 rises from 1.0 to 2.0 at 1",
        ),
        (lambda: ref.explained_error([[1.0, -2.0]]), r"\[K-1\] spectra must be >= 0, got -2.0 at \(0, 1\)"),
        (lambda: ref.explained_error([[1e200, 1.0]]), r"\[K-1\] the squares of spectra overflow float64"),
        (lambda: ref.residual_damage(S, [1.0]), r"\[K-1\] energy must have shape \(2,\), got \(1,\)"),
        (lambda: ref.residual_damage(S, [1.0, -1.0]), r"\[K-1\] energy must be >= 0, got -1.0"),
        (lambda: ref.subspace_overlap(S, S[:1], np.eye(2), rank=1), r"\[K-2\] w_hat must have shape \(2, 2\)"),
        (lambda: ref.subspace_overlap(S, S, np.eye(3), rank=1), r"\[K-2\] c must have shape \(2, 2\)"),
        (
            lambda: ref.subspace_overlap(S, S, np.eye(2), rank=3),
            r"\[K-2\] rank of a patch for shape \(2, 2\) must be in",
        ),
        (
            lambda: ref.allocate_greedy(S, ONE, C1, [2, 1], HIGH, budget=2),
            r"\[K-5\] budget 2 is below 3, the cost of the smallest ranks",
        ),
        (lambda: ref.allocate_greedy(S, ONE, C1, LOW, [2, 3], budget=9), r"\[K-5\] module 1 may have rank 3, but its"),
        (
            lambda: ref.allocate_greedy(S, ONE, C1, [1, 1], [2, 1], budget=9, multiple=2),
            r"no multiple of 2 lies in 1\.\.1",
        ),
        (lambda: ref.allocate_greedy(S, ONE, C1, LOW, HIGH, budget=-1), r"\[K-5\] budget must be at least 0, got -1"),
        (lambda: ref.allocate_greedy(S, ONE, C1, LOW, HIGH, budget=2.5), r"\[K-5\] budget must be an integer"),  # type: ignore[arg-type]
        (lambda: ref.allocate_greedy(S, ONE, C1, LOW, HIGH, budget=9, multiple=0), r"\[K-5\] multiple must be in 1"),
        (
            lambda: ref.allocate_greedy(S, ONE, [1, 0], LOW, HIGH, budget=9),
            r"\[K-5\] cost must be in 1.*got 0 for module 1",
        ),
        (
            lambda: ref.allocate_greedy(S, ONE, [1], LOW, HIGH, budget=9),
            r"\[K-5\] cost must have shape \(2,\), got \(1,\)",
        ),
        (lambda: ref.allocate_greedy(S, ONE, [1.5, 1], LOW, HIGH, budget=9), r"\[K-5\] cost must hold integers"),
        (
            lambda: ref.allocate_greedy(1e150 * S, 1e10 * ONE, C1, LOW, HIGH, budget=9),
            r"\[K-5\] importance times squared",
        ),
        (
            lambda: ref.allocate_greedy(S, ONE, C1, LOW, HIGH, budget=9, leftover="spend"),  # type: ignore[arg-type]
            r"\[K-5\] leftover must be one of 'stop', 'fill', got 'spend'",
        ),
        (
            lambda: ref.threshold_ranks(S, LOW, HIGH, threshold=1.1),
            r"\[K-6\] threshold must be at least 0.0 and at most 1.0",
        ),
        (
            lambda: ref.allocate_proportional([-1.0], [1], [0], [2], budget=9),
            r"\[K-7\] sensitivity must be >= 0, got -1.0",
        ),
        (
            lambda: ref.allocation_objective(S, ONE, [0, 3]),
            r"\[K-8\] module 1 has rank 3, but its spectrum holds 2 values",
        ),
        (lambda: ref.allocation_objective(S, ONE, [0, -1]), r"\[K-8\] ranks must be in 0\.\..*got -1 for module 1"),
        (lambda: ref.nest_patch(S, np.ones((3, 2)), np.eye(2)), r"\[K-11\] b \(2, 2\) times a \(3, 2\) is not a patch"),
        (
            lambda: ref.nest_patch(np.ones((1, 2)), S, np.eye(2)),
            r"\[K-11\] .* more directions than its product can have",
        ),
        (lambda: ref.nest_patch(S, S, np.eye(2), split="right"), r"\[K-11\] split must be one of"),  # type: ignore[arg-type]
    ],
)
def test_refusals(call: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        call()
