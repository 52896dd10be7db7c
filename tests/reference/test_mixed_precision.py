"""Chapter M: bits by word frequency, bits by sensitivity, and the projection while retraining."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lowbit.reference as ref
from lowbit.reference.errors import SpecError
from lowbit.reference.mixed_precision import (
    TRANSLATION_BITS,
    average_bits,
    cluster_sizes,
    projection_due,
    translation_size,
)
from lowbit.reference.types import BinaryMethod

from .bounds import LAW, Array, near

# -- words -------------------------------------------------------------------------------------------------------------


@LAW
@given(st.integers(0, 5000), st.integers(1, 8), st.integers(1, 9))
def test_m1_sizes_add_up_and_follow_the_ratio(v: int, b: int, r: int) -> None:
    sizes = cluster_sizes(v, clusters=b, ratio=r)
    assert sum(sizes) == v
    assert len(sizes) == b
    total = sum(r**i for i in range(b))
    for i, n in enumerate(sizes[:-1]):
        assert n <= v * r**i / total < n + 1
    assert 0 <= sizes[-1] - v * r ** (b - 1) / total < b
    formula = sum((b - i) * r**i for i in range(b)) / total
    assert abs(average_bits(v, clusters=b, ratio=r) - formula) <= b * b / max(v, 1) + (v == 0) * b


@pytest.mark.parametrize(
    ("b", "averages"), [(4, {1: 2.5, 2: 1.733, 4: 1.318, 8: 1.142}), (3, {1: 2.0, 2: 1.571, 4: 1.286, 8: 1.137})]
)
def test_m1_averages(b: int, averages: dict[int, float]) -> None:
    for r, expected in averages.items():
        assert round(average_bits(10**7, clusters=b, ratio=r), 3) == expected


@LAW
@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 4), st.integers(1, 4))
def test_m1_bits_fall_with_rank_and_ties_go_by_id(counts: list[int], b: int, r: int) -> None:
    bits = ref.row_bits(np.array(counts, int), clusters=b, ratio=r)
    order = sorted(range(len(counts)), key=lambda j: (-counts[j], j))
    ranked = bits[order].tolist()
    assert ranked == sorted(ranked, reverse=True)
    assert [ranked.count(b - i) for i in range(b)] == cluster_sizes(len(counts), clusters=b, ratio=r)
    assert bits.dtype == np.int32


def test_m1_markers_get_the_bits_of_the_count_they_are_given() -> None:
    counts = np.array([0, 0, 500, 400, 300, 200])  # begin and end of sentence stand in no corpus file
    assert ref.row_bits(counts, clusters=3)[:2].tolist() == [1, 1]
    counts[:2] = counts.sum()
    assert ref.row_bits(counts, clusters=3)[:2].tolist() == [3, 3]


def test_m1_refusals() -> None:
    with pytest.raises(SpecError, match=r"\[M-1\] counts must be at least 0, got -3 at 1"):
        ref.row_bits([1, -3], clusters=2)
    with pytest.raises(SpecError, match=r"\[M-1\] counts must hold integers, got dtype float64"):
        ref.row_bits([0.5], clusters=2)
    with pytest.raises(SpecError, match=r"\[M-1\] counts must have 1 dimensions"):
        ref.row_bits([[1]], clusters=2)
    for options in ({"clusters": 0}, {"clusters": 9}, {"clusters": 2, "ratio": 0}, {"clusters": 2, "ratio": 1.5}):
        with pytest.raises(SpecError, match=r"\[M-1\] (clusters|ratio)"):
            ref.row_bits([1], **options)
    with pytest.raises(SpecError, match=r"\[M-1\] rows"):
        cluster_sizes(-1, clusters=1, ratio=1)


# -- blocks ------------------------------------------------------------------------------------------------------------


def brute_force(errors: Array, sizes: Array, budget: int) -> float:
    """Least error of all Qⁿ allocations that fit."""
    n, widths = errors.shape
    best = math.inf
    for level in itertools.product(range(widths), repeat=n):
        if sum(sizes[j, q] for j, q in enumerate(level)) <= budget:
            best = min(best, sum(errors[j, q] for j, q in enumerate(level)))
    return best


tiny = st.tuples(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4))


@LAW
@given(tiny, st.floats(0, 1))
def test_m2a_convex_errors_and_equal_steps_reach_the_optimum(problem: tuple[int, int, int], share: float) -> None:
    seed, n, widths = problem
    g = np.random.default_rng(seed)
    gains = -np.sort(-g.integers(0, 50, (n, widths)), axis=1)  # falling gains: convex
    errors = np.cumsum(gains[:, ::-1], axis=1)[:, ::-1].astype(float)
    sizes = np.tile(7 * np.arange(1, widths + 1), (n, 1))
    budget = int(sizes[:, 0].sum() + share * (sizes[:, -1] - sizes[:, 0]).sum())
    found = ref.allocate_bits(errors, sizes, budget=budget)
    assert found.error == brute_force(errors, sizes, budget)
    assert found.size <= budget


@LAW
@given(tiny, st.floats(0, 1), st.booleans())
def test_m2c_the_bound_holds_for_any_errors_and_sizes(
    problem: tuple[int, int, int], share: float, monotone: bool
) -> None:
    seed, n, widths = problem
    g = np.random.default_rng(seed)
    errors = g.integers(0, 50, (n, widths)).astype(float)
    if monotone:
        errors = -np.sort(-errors, axis=1)
    sizes = np.cumsum(g.integers(1, 9, (n, widths)), axis=1)
    budget = int(sizes[:, 0].sum() + share * (sizes[:, -1] - sizes[:, 0]).sum())
    found = ref.allocate_bits(errors, sizes, budget=budget)
    level = found.bits - 1
    assert found.size == sizes[np.arange(n), level].sum() <= budget
    assert found.error == errors[np.arange(n), level].sum()
    best = brute_force(errors, sizes, budget)
    near(min(found.lower_bound - best, 0.0), found.lower_bound - best, roundings=100, magnitude=errors.sum())
    assert best <= found.error
    assert found.error - found.lower_bound <= (errors.max(axis=1) - errors.min(axis=1)).max() + errors.sum() * 2.0**-40
    if found.size == budget and found.lower_bound == found.error:
        assert found.error == best


@LAW
@given(tiny)
def test_m2_more_budget_never_hurts_the_bound_and_the_ends_are_exact(problem: tuple[int, int, int]) -> None:
    seed, n, widths = problem
    g = np.random.default_rng(seed)
    errors, sizes = g.random((n, widths)), np.cumsum(g.integers(1, 9, (n, widths)), axis=1)
    low, high = int(sizes[:, 0].sum()), int(sizes[:, -1].sum())
    assert (ref.allocate_bits(errors, sizes, budget=low).bits == 1).all()
    bounds = [ref.allocate_bits(errors, sizes, budget=s).lower_bound for s in range(low, high + 1)]
    assert all(b <= a + 2.0**-40 for a, b in itertools.pairwise(bounds))
    whole = ref.allocate_bits(errors, sizes, budget=high)
    near(whole.error, errors.min(axis=1).sum(), roundings=n)
    assert whole.lower_bound == whole.error


def test_m2b_equal_slopes_go_to_the_lower_block() -> None:
    errors, sizes = [[4.0, 2.0, 0.0]] * 3, [[1, 2, 3]] * 3
    assert [ref.allocate_bits(errors, sizes, budget=s).bits.tolist() for s in (4, 5, 6, 7)] == [
        [2, 1, 1],
        [3, 1, 1],
        [3, 2, 1],
        [3, 3, 1],
    ]


def test_m2_a_step_that_does_not_fit_closes_its_block_only() -> None:
    errors = [[100.0, 0.0, -1.0], [5.0, 4.0, 3.5]]
    sizes = [[1, 9, 10], [1, 2, 3]]
    found = ref.allocate_bits(errors, sizes, budget=5)
    assert found.bits.tolist() == [1, 3]
    assert found.size == 4
    assert found.error == 103.5
    assert found.lower_bound == 105 - 100 / 8 * 3


def test_m2_points_above_the_hull_are_skipped() -> None:
    """2 bits barely help, 3 do: nobody stops at 2. Errors that rise with bits are never bought."""
    found = ref.allocate_bits([[10.0, 9.9, 0.0, 1.0]], [[1, 2, 3, 4]], budget=4)
    assert (found.bits.tolist(), found.size) == ([3], 3)
    found = ref.allocate_bits([[10.0, 9.9, 0.0]], [[1, 2, 3]], budget=2)  # 3 do not fit: 2 are better than nothing
    assert (found.bits.tolist(), found.lower_bound) == ([2], 5.0)
    assert ref.allocate_bits([[10.0, 11.0, 0.0]], [[1, 2, 3]], budget=2).bits.tolist() == [1]
    found = ref.allocate_bits([[10.0, 9.0, 9.0, 0.0]], [[1, 2, 3, 4]], budget=3)
    assert (found.bits.tolist(), found.size) == ([2], 2)


def test_m2_a_third_is_no_third() -> None:
    """1, 2/3, 1/3 in float32 lie a little above their line: the hull skips 2 bits, and the budget must not care."""
    errors = np.array([[1.0, 2 / 3, 1 / 3]], np.float32)
    assert ref.allocate_bits(errors, [[2, 4, 6]], budget=4).bits.tolist() == [2]


def test_m2_points_on_one_line_keep_their_order_when_slopes_round() -> None:
    """0.1, −2.3, −4.7: in floating point the second slope is the larger one; taken first, a bit would come for free."""
    errors = np.array([[0.1, -2.3, -4.7]] * 2)
    assert errors[0, 1] - errors[0, 2] > errors[0, 0] - errors[0, 1] > (errors[0, 0] - errors[0, 2]) / 2 - 2.0**-50
    for budget, bits in ((3, [2, 1]), (4, [3, 1]), (5, [3, 2])):
        found = ref.allocate_bits(errors, [[1, 2, 3]] * 2, budget=budget)
        assert (found.bits.tolist(), found.size) == (bits, budget)


def test_m2_empty_and_refusals() -> None:
    nothing = ref.allocate_bits(np.zeros((0, 3)), np.zeros((0, 3), int), budget=0)
    assert (nothing.bits.shape, nothing.size, nothing.error, nothing.lower_bound) == ((0,), 0, 0.0, 0.0)
    e, s = [[2.0, 1.0]], [[3, 5]]
    for words, arrays, budget in (
        (r"budget 2 is below the 3 that 1 bit everywhere takes", (e, s), 2),
        (r"errors \(1, 2\) and sizes \(1, 1\) must have one shape", (e, [[3]]), 9),
        (r"errors \(1, 0\) and sizes \(1, 0\) must have one shape with at least one width", ([[]], [[]]), 9),
        (r"sizes must be above 0 and ascend along each row, got 3 at \(0, 1\)", (e, [[3, 3]]), 9),
        (r"sizes must be above 0 and ascend along each row, got 0 at \(0, 0\)", (e, [[0, 3]]), 9),
        (r"sizes must hold integers", (e, [[0.5, 3.0]]), 9),
        (r"budget must be an integer", (e, s), 9.5),
    ):
        with pytest.raises(SpecError, match=rf"\[M-2\] {words}"):
            ref.allocate_bits(*arrays, budget=budget)  # type: ignore[arg-type]


# -- sizes -------------------------------------------------------------------------------------------------------------


def test_published_size_and_averages_of_the_translation_model() -> None:
    full, small = translation_size()
    assert round(full / 1e6, 1) == 243.7
    assert round(full / small, 1) == 11.7
    d = 512 * 512
    encoder = (4 * TRANSLATION_BITS["encoder self"] + 8 * TRANSLATION_BITS["encoder ffn"]) / 12
    decoder = (
        4 * TRANSLATION_BITS["decoder self"]
        + 4 * TRANSLATION_BITS["decoder cross"]
        + 8 * TRANSLATION_BITS["decoder ffn"]
    ) / 16
    assert (round(encoder, 1), decoder) == (3.7, 1.75)
    words = average_bits(32768, clusters=4, ratio=1)
    weights = {"encoder": 72 * d, "decoder": 96 * d, "words": 32768 * 512}
    total = (weights["encoder"] * encoder + weights["decoder"] * decoder + weights["words"] * words) / sum(
        weights.values()
    )
    assert round(total, 2) == 2.55
    smaller_words = average_bits(32768, clusters=4, ratio=4)
    total = total + weights["words"] * (smaller_words - words) / sum(weights.values())
    assert round(total, 2) == 2.23


def test_size_is_additive() -> None:
    """What a plane more of one type adds does not depend on the others."""
    base = dict(TRANSLATION_BITS)
    for name in base:
        grown = [translation_size(bits={**b, name: b[name] + 1})[1] - translation_size(bits=b)[1] for b in (
            base, dict.fromkeys(base, 2),
        )]  # fmt: skip
        assert abs(grown[0] - grown[1]) <= 1  # whole bytes
    with pytest.raises(SpecError, match="bits must be given for encoder self"):
        translation_size(bits={"encoder": 2})


def test_scales_are_not_negligible_at_one_bit() -> None:
    one = dict.fromkeys(TRANSLATION_BITS, 1)
    with_scales = translation_size(bits=one, clusters=1)[1]
    _, plain = translation_size(bits=one, clusters=1, width=512)
    weights = (6 * 28 * 512 * 512 + 32768 * 512) / 8
    assert with_scales == plain
    assert 1.05 < (with_scales - 4 * 6 * 512 * 32) / weights < 1.07  # 32 bits of scale on 512 (or 2048) of weight


# -- retraining --------------------------------------------------------------------------------------------------------


def test_m3_distinct_values_per_row() -> None:
    w = np.repeat(np.random.default_rng(0).standard_normal((1, 200)), 8, axis=0)
    w_hat = ref.project_rows(w, np.arange(1, 9))
    for q, row in enumerate(w_hat, 1):
        assert len(np.unique(np.round(row, 9))) <= 2**q
    error = ((w - w_hat) ** 2).sum(axis=1) / (w**2).sum(axis=1)
    assert (np.diff(error) < 0).all()


def test_m3_gaussian_anchors() -> None:
    """Relative error of greedy codes of a normal row: 1 − 2/π at one bit, then as published codes give."""
    w = np.random.default_rng(1).standard_normal((1, 400_000))
    for q, anchor in ((1, 1 - 2 / math.pi), (2, 0.1310), (3, 0.0588), (4, 0.0332)):
        error = ((w - ref.project_rows(w, [q])) ** 2).mean()
        assert abs(error - anchor) < 0.002


@LAW
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 16))
def test_m3_rows_are_projected_alone_and_energy_falls(seed: int, q: int, k: int) -> None:
    w = np.random.default_rng(seed).standard_normal((3, k))
    mixed = ref.project_rows(w, [q, 1, 8])
    for row, bits in enumerate((q, 1, 8)):
        assert (mixed[row] == ref.project_rows(w[row : row + 1], [bits])[0]).all()
    r = w[0]
    for _ in range(q):  # ‖r_i‖² = ‖r_{i−1}‖² − k α²
        α = np.abs(r).mean()
        after = r - np.where(r < 0, -α, α)
        near((after**2).sum(), (r**2).sum() - k * α**2, roundings=8 * k, magnitude=(r**2).sum())
        r = after
    near(w[0] - mixed[0], r, roundings=8 * k, magnitude=np.abs(w[0]).sum())
    assert (ref.project_rows(-w, [q, 1, 8])[np.abs(mixed) > 0] == -mixed[np.abs(mixed) > 0]).all()
    assert (ref.project_rows(4 * w, [q, 1, 8]) == 4 * mixed).all()


def test_m3_zero_is_positive() -> None:
    assert ref.project_rows([[0.0, 2.0]], [1]).tolist() == [[1.0, 1.0]]
    assert ref.project_rows([[-0.0, -2.0]], [1]).tolist() == [[1.0, -1.0]]
    assert ref.project_rows([[0.0, 0.0]], [3]).tolist() == [[0.0, 0.0]]


def test_m3_greedy_may_not_find_its_own_planes_back() -> None:
    """Scales far apart come back; scales 1.0 and 0.9 do not: greedy reads another first scale off them."""
    g = np.random.default_rng(2)
    b = g.choice([-1.0, 1.0], (2, 64))
    b[1] *= np.where(np.arange(64) % 2, 1, -1)  # planes uncorrelated enough
    for scales, exact in (((1.0, 0.01), True), ((1.0, 0.9), False)):
        w = scales[0] * b[:1] + scales[1] * b[1:]
        error = np.abs(ref.project_rows(w, [2]) - w).max()
        assert (error < 0.01) == exact


def test_m3c_is_binary_coding_row_by_row() -> None:
    w = np.random.default_rng(4).standard_normal((6, 40))
    bits = np.array([1, 2, 3, 1, 2, 3])
    methods: tuple[BinaryMethod, ...] = ("refined", "alternating")
    for method in methods:
        found = ref.project_rows(w, bits, method=method, rounds=3)
        for row, q in enumerate(bits.tolist()):
            code = ref.bcq(w[row : row + 1], bits=q, method=method, rounds=3)
            assert (found[row] == ref.bcq_weight(code.codes, code.scale, code.offset)[0]).all()
        assert ref.project_rows(w[:0], bits[:0], method=method).shape == (0, 40)
        assert ref.project_rows(w[:, :0], bits, method=method).shape == (6, 0)
    greedy = ref.bcq(w[:2], bits=2, method="greedy")
    near(
        ref.project_rows(w[:2], [2, 2]),
        ref.bcq_weight(greedy.codes, greedy.scale, greedy.offset),
        roundings=200,
        magnitude=4,
    )


def test_m3c_projecting_twice() -> None:
    """Scales far apart: alternating returns exactly, greedy nearly. Scales of a normal row are closer: both move on."""
    g = np.random.default_rng(5)
    planes = g.choice([-1.0, 1.0], (3, 32, 256))
    apart = np.tensordot([1.0, 0.4, 0.15], planes, 1)
    rows, bits = g.standard_normal((32, 256)), np.full(32, 3)

    def moved(w: Array, method: BinaryMethod) -> float:
        return float(((ref.project_rows(w, bits, method=method) - w) ** 2).sum())

    assert moved(apart, "alternating") < 2.0**-80
    assert 2.0**-20 < moved(apart, "greedy") < 0.01 * (apart**2).sum()
    methods: tuple[BinaryMethod, ...] = ("greedy", "alternating")
    for method in methods:
        once = ref.project_rows(rows, bits, method=method)
        assert 0 < moved(once, method) < moved(rows, method)


def test_retraining_limits() -> None:
    """Period 1 with a small step is stuck, a period beyond the end is quantization after training."""
    g = np.random.default_rng(3)
    x, target = g.standard_normal((64, 8)), g.standard_normal((2, 8))
    fine = np.array([1, 1, -1, -1, 1, 1, -1, -1])
    start = fine + np.array([[5.0, 5, 5, 5, -5, -5, -5, -5], [5, -5, 5, -5, 5, -5, 5, -5]])
    q = [2, 2]
    assert (ref.project_rows(start, q) == start).all()

    def train(period: int, lr: float, total: int = 60) -> Array:
        w = start
        for t in range(1, total + 1):
            w = w - lr * (w @ x.T - target @ x.T) @ x / len(x)
            if projection_due(t, period=period, total=total):
                w = ref.project_rows(w, q)
        return w

    def free(lr: float, total: int = 60) -> Array:
        w = start
        for _ in range(total):
            w = w - lr * (w @ x.T - target @ x.T) @ x / len(x)
        return w

    assert (train(10**6, 0.3) == ref.project_rows(free(0.3), q)).all()

    def codes(w: Array) -> Array:
        return np.stack([np.sign(w), np.sign(w - ref.project_rows(w, [1, 1]))])

    assert (codes(train(1, 2.0**-9, 600)) == codes(start)).all()  # the scales follow, the planes never do
    assert (codes(free(2.0**-9, 600)) != codes(start)).any()

    def loss(w: Array) -> float:
        return float((((w - target) @ x.T) ** 2).sum())

    assert loss(train(10, 0.3)) < loss(train(1, 2.0**-9, 600))
    for w in (train(1, 0.3), train(7, 0.3), train(10**6, 0.3)):
        assert all(len(np.unique(np.round(row, 9))) <= 4 for row in w)


def test_projection_due() -> None:
    assert [t for t in range(1, 8) if projection_due(t, period=3, total=7)] == [3, 6, 7]
    assert [t for t in range(1, 4) if projection_due(t, period=9, total=3)] == [3]
    assert all(projection_due(t, period=1, total=3) for t in range(1, 4))
    for step, period, total in ((0, 1, 1), (2, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(SpecError):
            projection_due(step, period=period, total=total)


def test_m3_empty_and_refusals() -> None:
    assert ref.project_rows(np.zeros((0, 3)), np.zeros(0, int)).shape == (0, 3)
    assert ref.project_rows(np.zeros((2, 0)), [1, 2]).shape == (2, 0)
    for words, bits in (
        (r"bits must have one entry per row of w \(2, 3\), got \(1,\)", [1]),
        (r"bits must be in 1\.\.8, got 9 at 1", [1, 9]),
        (r"bits must be in 1\.\.8, got 0 at 0", [0, 1]),
        (r"bits must hold integers", [1.0, 2.0]),
    ):
        with pytest.raises(SpecError, match=rf"\[M-3\] {words}"):
            ref.project_rows(np.ones((2, 3)), bits)
    with pytest.raises(SpecError, match=r"\[M-3\] method must be one of"):
        ref.project_rows(np.ones((2, 3)), [1, 2], method="optimal")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"\[M-3\] rounds must be at least 0"):
        ref.project_rows(np.ones((2, 3)), [1, 2], rounds=-1)
