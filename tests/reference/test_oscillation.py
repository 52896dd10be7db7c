"""Chapter O: frequency of oscillations, freezing, boundary range, and what confidence-guided annealing freezes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbit.reference as ref
from lowbit.reference.errors import SpecError

from .bounds import Array

RNG = np.random.default_rng(20240302)


def after(codes: Any, state: Any, **options: Any) -> Any:
    """State of a tracker after one step."""
    return ref.track_oscillation(codes, *state, **options)


def tracked(codes: Array, **options: Any) -> Any:
    """State after all rows of codes, started at the first."""
    state: Any = ref.start_oscillation(codes[0])
    for row in codes:
        state = after(row, state, **options)
    return state


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12))
def test_o4_oscillations_are_changes_against_the_last_change(codes: list[int]) -> None:
    """Counted on the list itself: the signs of its changes, those of 0 left out."""
    signs = [np.sign(a - b) for a, b in itertools.pairwise(codes) if a != b]
    turns = sum(a == -b for a, b in itertools.pairwise(signs))
    state = tracked(np.array(codes)[:, None])
    assert state.total.tolist() == [turns]
    assert state.direction.tolist() == [int(signs[-1]) if signs else 0]
    assert state.codes.tolist() == [codes[-1]]


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=12), st.sampled_from([0.01, 0.25, 1.0]))
def test_o4b_frequency_is_an_exponential_mean(codes: list[int], m: float) -> None:
    state, turns = ref.start_oscillation(np.array(codes[:1])), []
    for code in codes:
        before = int(state.total[0])
        state = after(np.array([code]), state, momentum=m)
        turns.append(int(state.total[0]) - before)
    weights = [m * (1 - m) ** (len(turns) - 1 - i) for i in range(len(turns))]
    assert state.frequency[0] == pytest.approx(np.dot(weights, turns), abs=1e-12)
    mean = codes[0] * (1 - m) ** len(codes) + np.dot(weights, codes)
    assert state.average[0] == pytest.approx(mean, abs=1e-12)


def test_o4_a_weight_that_alternates_reaches_frequency_one() -> None:
    codes = np.array([[0], [1]] * 400)
    assert tracked(codes, momentum=0.05).frequency[0] == pytest.approx(1.0, abs=1e-12)


def test_o4a_freezing_is_sticky_and_starts_with_the_next_step() -> None:
    codes = np.array([[0, 0], [1, 0], [0, 0], [1, 0], [0, 0], [3, 3], [3, 3]])
    state, used, frozen = ref.start_oscillation(codes[0]), [], []
    for row in codes:
        state = after(row, state, momentum=0.5, threshold=0.6, freeze_to="average")
        used.append(state.codes.tolist())
        frozen.append(state.frozen.tolist())
    assert frozen == [[False, False]] * 3 + [[True, False]] * 4  # the second turn in a row, at step 3
    assert used[3] == [1, 0]  # the step that freezes still uses what it was given
    assert [u[0] for u in used[4:]] == [0, 0, 0]  # then the mean of codes before it: ⌊(0+¼+...)⌉
    assert used[-1] == [0, 3]


def test_o4a_a_target_that_is_rewritten_keeps_a_frozen_weight_oscillating() -> None:
    """The published code, on a weight that alternates: its mean crosses one half with every step."""
    codes = np.array([[0], [1]] * 10)
    for targets, turns in (("held", 1), ("rewritten", 100)):
        state: Any = ref.start_oscillation(codes[0])
        for row in codes:
            state = after(row, state, momentum=0.5, threshold=0.6, targets=targets)
            if state.frozen.all():
                break
        before = int(state.total[0])
        for _ in range(100):  # whatever comes in is ignored
            state = after([7], state, momentum=0.5, threshold=0.6, targets=targets)
        assert int(state.total[0]) - before <= turns
        assert targets == "held" or int(state.total[0]) - before == turns


def test_o4a_freezes_to_the_current_code_when_asked() -> None:
    codes = np.array([[0], [1], [0], [1], [0], [5]])
    state = tracked(codes, momentum=0.5, threshold=0.6, freeze_to="current")
    assert state.codes.tolist() == [1]


def test_o4a_the_target_is_the_rounded_mean_half_to_even() -> None:
    """A mean of exactly one half goes to 0, of three halves to 2."""
    one = np.array([1, 1])
    state = ref.track_oscillation(
        [1, 2], [0, 1], one, [1.0, 1.0], one, [0.5, 1.5], [False, False], [0, 0], momentum=0.5, threshold=0.5
    )
    assert state.target.tolist() == [0, 2]
    assert state.frozen.all()
    assert state.average.tolist() == [0.75, 1.75]


def test_o4a_a_frequency_at_the_threshold_does_not_freeze() -> None:
    state = ref.track_oscillation([0], [1], [-1], [0.0], [0], [0.0], [False], [0], momentum=0.5, threshold=0.5)
    assert state.frequency.tolist() == [0.5]
    assert not state.frozen.any()


def test_o4a_without_a_threshold_nothing_freezes() -> None:
    codes = np.array([[0], [1]] * 20)
    assert not tracked(codes, momentum=1.0).frozen.any()


# -- boundary range ----------------------------------------------------------------------------------------------------

GRID = np.array([[1.0, -1.0, 2.25, 3.75], [0.0, 4.0, 2.0, -2.0]])  # α = 4: v = W / 2 with 2 bits, thresholds -1, 0, 1


@pytest.mark.parametrize("thresholds", ["all", "occupied"])
@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("width", [0.0, 0.005, 0.1, 0.5])
def test_o6_mask_against_the_published_inequality(thresholds: str, bits: int, width: float) -> None:
    """½ − BR ≤ u − i ≤ ½ + BR for some code i below the largest, u = n clip(W/α) − ½."""
    w = np.concatenate([RNG.standard_normal((5, 30)), np.abs(RNG.standard_normal((2, 30)))])
    found, n = ref.statsq(w, bits=bits), 2 ** (bits - 1)
    u = n * np.clip(w / found.scale, -1, 1 - 1e-6) - 0.5
    low, high = (found.codes.min(), found.codes.max()) if thresholds == "occupied" else (-n, n - 1)
    expected = np.zeros(w.shape, np.bool_)
    for i in range(int(low), int(high)):
        expected |= (u - i >= 0.5 - width) & (u - i <= 0.5 + width)
    mask = ref.cga_mask(w, bits=bits, boundary_range=width, thresholds=thresholds)  # type: ignore[arg-type]
    np.testing.assert_array_equal(mask, expected)


def test_o6_ends_are_inside_and_exact_hits_stay() -> None:
    w = np.array([[2.25, 1.75, 2.375, 1.625]])
    w = np.append(w, [[8.0]], axis=1)  # Σ|w| = 16, so α = 6.4
    w[0, 4] = 2 * w.shape[1] - 8.0  # Σ|w| = 10, so α = 4
    assert ref.statsq(w, bits=2).scale[0, 0] == 4
    assert ref.cga_mask(w, bits=2, boundary_range=0.125)[0, :4].tolist() == [True, True, False, False]
    assert ref.cga_mask(GRID, bits=2, boundary_range=0.0).tolist() == [[False] * 4, [True, False, True, True]]


def test_o6_a_range_of_one_half_leaves_the_outer_half_steps_frozen() -> None:
    w = RNG.standard_normal((4, 500))
    c = np.abs(w) / ref.statsq(w, bits=2).scale
    mask = ref.cga_mask(w, bits=2, boundary_range=0.5)
    np.testing.assert_array_equal(mask, c <= 1 - 1 / 4)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_o6_the_widest_and_the_narrowest_range_at_every_width(bits: int) -> None:
    """Eighths of a step from −n − 1 to n + 1, and what makes the scale n, so that a weight is its own v exactly.

    One half leaves |v| ≤ n − ½ active, the edge included; nothing leaves hits of the inner thresholds, ±n being none.
    """
    n = 2 ** (bits - 1)
    v = np.concatenate([np.arange(-8 * n - 8, 8 * n + 9) / 8, np.zeros(60), [22 * n - 9]])
    assert ref.statsq(v[None], bits=bits).scale[0, 0] == n
    half, none = (ref.cga_mask(v[None], bits=bits, boundary_range=width)[0] for width in (0.5, 0.0))
    np.testing.assert_array_equal(half, np.abs(v) <= n - 0.5)
    np.testing.assert_array_equal(none, (v == np.rint(v)) & (np.abs(v) < n))


def test_o6a_an_extreme_code_that_nobody_takes_removes_its_threshold() -> None:
    w = np.array([[2.0, 0.01, 2.0, 1.99]])  # no weight below zero: code -2 and -1 are free
    assert ref.cga_mask(w, bits=2, boundary_range=0.1)[0, 1]
    assert not ref.cga_mask(w, bits=2, boundary_range=0.1, thresholds="occupied")[0, 1]


def test_o6_share_of_gaussian_weights() -> None:
    """BR α (φ(0) + 2 φ(0.798)) with α = 1.596: 0.78 % at BR = 0.005."""
    w = np.random.default_rng(2).standard_normal((100, 4000))
    assert ref.cga_mask(w, bits=2).mean() == pytest.approx(0.0078, rel=0.05)


def test_o5_statistics_are_counts() -> None:
    w = RNG.standard_normal((4, 60))
    g, before = RNG.integers(-1, 2, (2, 4, 60)).astype(float)
    found = ref.boundary_statistics(w, g, before, bits=2, boundary_range=0.1)
    mask = ref.cga_mask(w, bits=2, boundary_range=0.1)
    pairs = [(bool(a), x * y < 0) for a, x, y in zip(mask.flat, g.flat, before.flat, strict=True)]
    near = [flip for a, flip in pairs if a]
    assert found.near == len(near)
    assert found.share == len(near) / 240
    assert found.flips == sum(near) / len(near)
    assert found.flips_elsewhere == sum(flip for a, flip in pairs if not a) / (240 - len(near))


def test_o5_of_nothing() -> None:
    empty = np.zeros((0, 4))
    assert ref.boundary_statistics(empty, empty, empty, bits=2) == (0, 0.0, 0.0, 0.0)
    assert ref.cga_mask(empty, bits=2, thresholds="occupied").shape == (0, 4)


# -- annealing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_o7_adamw_of_torch_with_weights_written_back(decay: float) -> None:
    torch = pytest.importorskip("torch")
    w = RNG.standard_normal((5, 8))
    active = ref.cga_mask(w, bits=2, boundary_range=0.3)
    assert 0 < active.sum() < w.size
    leaf = torch.nn.Parameter(torch.tensor(w))
    optimizer = torch.optim.AdamW([leaf], lr=0.1, weight_decay=decay)
    m, v, mine = np.zeros(w.shape), np.zeros(w.shape), w
    for t in range(1, 5):
        on = active if t > 2 else np.ones_like(active)  # two ordinary steps leave momentum to be held back
        g, before = RNG.standard_normal(w.shape), leaf.detach().clone()
        leaf.grad = torch.tensor(np.where(on, g, 0.0))
        optimizer.step()
        with torch.no_grad():
            leaf.copy_(torch.where(torch.tensor(on), leaf, before))
        old = mine
        mine, m, v = ref.cga_step(mine, g, m, v, on, step=t, lr=0.1, decay=decay)
        np.testing.assert_allclose(mine, leaf.detach().numpy(), rtol=1e-12)
        assert mine[~on].tobytes() == old[~on].tobytes()
    np.testing.assert_allclose(m, optimizer.state[leaf]["exp_avg"].numpy(), rtol=1e-12)


def test_o7_a_zeroed_gradient_alone_would_not_freeze() -> None:
    """Momentum and decay move the weight; the mask brings it back, and its moments fade."""
    one = np.ones(1)
    free = ref.cga_step(one, 0 * one, one, one, [True], step=2, lr=0.1, decay=0.1)
    assert free.weight[0] < 0.98
    held = ref.cga_step(one, 5 * one, one, one, [False], step=2, lr=0.1, decay=0.1)
    assert held.weight.tolist() == [1.0]
    assert held.first.tolist() == [0.9]
    assert held.second.tolist() == [0.999]


def test_o7_frozen_latents_may_change_their_value() -> None:
    """The scale of a row moves with the weights that train."""
    w = np.array([[1.0, 2.0, -3.0, 2.0]])
    after = ref.cga_step(w, [[0, 4, 0, 0]], 0 * w, 0 * w, [[False, True, False, False]], step=1, lr=1.0).weight
    assert (after[0, [0, 2, 3]] == w[0, [0, 2, 3]]).all()
    assert ref.statsq(w, bits=2).values[0, 0] != ref.statsq(after, bits=2).values[0, 0]


def test_o7_nothing_over_nothing_is_no_movement() -> None:
    zero = np.zeros(1)
    assert ref.cga_step([1.0], zero, zero, zero, [True], step=1, lr=0.5, epsilon=0.0).weight.tolist() == [1.0]


ONE, NO = np.ones(2), np.zeros(2, np.bool_)
I2 = np.zeros(2, np.int32)
STATE = (I2, I2, ONE, I2, ONE, NO, I2)


@pytest.mark.parametrize(
    ("call", "clause", "words"),
    [
        (lambda: ref.start_oscillation([0.5]), "O-4", "integers"),
        (lambda: ref.track_oscillation([1], *STATE), "O-4", "shape"),
        (lambda: ref.track_oscillation(I2, I2, I2 + 2, *STATE[2:]), "O-4", "direction"),
        (lambda: ref.track_oscillation(I2, *STATE[:5], ONE, I2), "O-4", "frozen"),
        (lambda: ref.track_oscillation(I2, *STATE, momentum=0.0), "O-4", "momentum"),
        (lambda: ref.track_oscillation(I2, *STATE, momentum=1.5), "O-4", "1.5"),
        (lambda: ref.track_oscillation(I2, *STATE, threshold=-0.5), "O-4", "threshold"),
        (lambda: ref.track_oscillation(I2, *STATE, freeze_to="last"), "O-4", "last"),  # type: ignore[arg-type]
        (lambda: ref.track_oscillation(I2, *STATE, targets="free"), "O-4", "free"),  # type: ignore[arg-type]
        (lambda: ref.cga_mask(GRID, bits=2, boundary_range=0.6), "O-6", "0.6"),
        (lambda: ref.cga_mask(GRID, bits=2, thresholds="some"), "O-6", "some"),  # type: ignore[arg-type]
        (lambda: ref.boundary_statistics(GRID, GRID[:1], GRID, bits=2), "O-5", "(1, 4)"),
        (lambda: ref.cga_step(ONE, ONE[:1], ONE, ONE, NO, step=1, lr=0.1), "O-7", "grad"),
        (lambda: ref.cga_step(ONE, ONE, ONE, ONE, ONE, step=1, lr=0.1), "O-7", "active"),
        (lambda: ref.cga_step(ONE, ONE, ONE, -ONE, NO, step=1, lr=0.1), "O-7", "second"),
        (lambda: ref.cga_step(ONE, ONE, ONE, ONE, NO, step=0, lr=0.1), "O-7", "step"),
        (lambda: ref.cga_step(ONE, ONE, ONE, ONE, NO, step=1, lr=-0.1), "O-7", "lr"),
        (lambda: ref.cga_step(ONE, ONE, ONE, ONE, NO, step=1, lr=0.1, beta1=1.0), "O-7", "below 1"),
    ],
)
def test_refusals(call: Any, clause: str, words: str) -> None:
    with pytest.raises(SpecError, match=f"\\[{clause}\\]") as error:
        call()
    assert words in str(error.value)
