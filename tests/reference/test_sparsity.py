"""Chapter G: SparseGPT and Wanda."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lowbit.reference as ref
from lowbit.reference.errors import SpecError
from lowbit.reference.types import SCHEMES, Scheme

from .bounds import LAW, Array, factorisation, near, psd
from .test_gptq import damped, rng

PATTERNS = [(2, 4), (1, 4), (1, 2), (4, 8), (3, 3)]


def brute_mask(score: Array, keep: int, of: int) -> Array:
    """Sorted by (score, index), one tuple at a time."""
    mask = np.zeros(score.shape, bool)
    for row in range(score.shape[0]):
        for a in range(0, score.shape[1], of):
            ordered = sorted(range(a, a + of), key=lambda j: (score[row, j], j))
            mask[row, ordered[: of - keep]] = True
    return mask


# --- G-5 --------------------------------------------------------------------------------------------------------------


@LAW
@given(st.integers(0, 10**6), st.sampled_from(PATTERNS), st.booleans())
def test_g5_prunes_exactly_and_by_magnitude_on_white_inputs(seed: int, pattern: tuple[int, int], dyadic: bool) -> None:
    keep, of = pattern
    W = rng(seed).standard_normal((4, 3 * of))
    if dyadic:
        W = np.round(2 * W) / 2  # many equal magnitudes: the tie rule decides
    r = ref.sparsegpt(W, 3 * np.eye(3 * of), keep=keep, of=of, block_size=of)
    np.testing.assert_array_equal(r.mask, brute_mask(np.abs(W), keep, of))
    np.testing.assert_array_equal(r.weight, np.where(r.mask, 0, W))
    assert r.codes is r.scale is r.zero_point is r.group_index is None


def test_g5_ties_prune_the_lower_index() -> None:
    assert ref.sparsegpt(np.ones((1, 8)), np.eye(8)).mask.tolist() == [[True, True, False, False] * 2]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("group_size", [None, 8])
def test_g5_joint_quantization_keeps_zeros_exact(scheme: Scheme, group_size: int | None) -> None:
    g = rng(2)
    W, H = g.standard_normal((6, 16)) + 0.3, psd(g, 16)
    r = ref.sparsegpt(W, H, bits=3, scheme=scheme, group_size=group_size)
    assert r.codes is not None
    assert r.scale is not None
    assert r.zero_point is not None
    assert r.group_index is not None
    s, z = r.scale[:, r.group_index], r.zero_point[:, r.group_index]
    assert (r.mask.reshape(6, 4, 4).sum(axis=2) == 2).all()
    np.testing.assert_array_equal(r.codes[r.mask], z[r.mask])
    assert (r.weight[r.mask] == 0).all()
    np.testing.assert_array_equal(s * (r.codes - z), r.weight)
    if group_size is None:  # the grid of the un-updated dense weight
        np.testing.assert_array_equal(r.scale, ref.fit_grid(W, bits=3, scheme=scheme).scale)


def test_g5_keeping_everything_is_gptq_or_nothing() -> None:
    g = rng(4)
    W, H = g.standard_normal((5, 12)), psd(g, 12)
    for options in ({}, {"group_size": 4}, {"group_size": 4, "group_scales": "block", "block_size": 8}):
        joint = ref.sparsegpt(W, H, keep=4, of=4, bits=3, **options)  # type: ignore[arg-type]
        plain = ref.gptq(W, H, bits=3, **options)  # type: ignore[arg-type]
        assert joint.codes is not None
        np.testing.assert_array_equal(joint.codes, plain.codes)
        assert joint.loss == plain.loss
    dense = ref.sparsegpt(W, H, keep=4, of=4)
    np.testing.assert_array_equal(dense.weight, W)
    assert dense.loss == 0


def test_g5_scores_use_the_weights_updated_so_far() -> None:
    """Column 0 is pruned and pushes its weight onto column 5, which then outranks columns 4 and 6."""
    H = np.eye(8)
    H[0, 5] = H[5, 0] = 0.9
    W = np.array([[1.0, 2.0, 3.0, 0.5, 0.6, 0.1, 0.7, 0.8]])
    r = ref.sparsegpt(W, H)
    assert r.mask[0, 0]
    assert not r.mask[0, 5]
    assert brute_mask(np.abs(W), 2, 4)[0, 5]


def test_g5_loss_identity_and_dead_columns() -> None:
    g = rng(6)
    W, H = g.standard_normal((5, 16)), psd(g, 16)
    H[3] = H[:, 3] = 0
    for bits in (None, 3):
        r = ref.sparsegpt(W, H, bits=bits)
        assert r.mask[:, 3].all()
        Δ = np.where(np.arange(16) == 3, 0, W) - r.weight
        want = ((Δ @ damped(H)) * Δ).sum() / 2
        near(r.loss, want, roundings=factorisation(16), magnitude=want * np.linalg.cond(damped(H)))


def test_g5_beats_pruning_without_an_update() -> None:
    g = rng(1)
    W, H = g.standard_normal((16, 32)), psd(g, 32)
    without = ref.wanda(W, np.diag(H)).weight
    assert ref.objective(W - ref.sparsegpt(W, H).weight, H) < 0.7 * ref.objective(W - without, H)


def test_g5_refusals() -> None:
    W, H = np.ones((2, 8)), np.eye(8)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"of": 3, "keep": 1, "block_size": 3}, "tuples of 3 do not divide axis length 8"),
        ({"block_size": 6}, "tuples of 4 do not divide block size 6"),
        ({"keep": 5}, r"keep must be in 1\.\.4, got 5"),
        ({"keep": 0}, r"keep must be in 1\.\.4, got 0"),
        ({"of": 0}, "of must be at least 1, got 0"),
        ({"group_size": 4}, "group_size 4 without bits: there is nothing to scale"),
        ({"group_scales": "x"}, "group_scales must be one of"),
    ]
    for options, message in cases:
        with pytest.raises(SpecError, match=rf"\[G-5\] {message}"):
            ref.sparsegpt(W, H, **options)
    with pytest.raises(SpecError, match=r"\[Q-1\] bits"):
        ref.sparsegpt(W, H, bits=0)


@pytest.mark.parametrize(("m", "k"), [(0, 8), (3, 0)])
def test_a2_sparsegpt_of_nothing(m: int, k: int) -> None:
    for bits in (None, 4):
        r = ref.sparsegpt(np.ones((m, k)), np.eye(k), bits=bits)
        assert r.weight.shape == r.mask.shape == (m, k)
        assert r.loss == 0


# --- G-6 --------------------------------------------------------------------------------------------------------------


@LAW
@given(st.integers(0, 10**6), st.sampled_from(PATTERNS))
def test_g6_is_the_sorted_rule_and_any_multiple_of_the_moment(seed: int, pattern: tuple[int, int]) -> None:
    keep, of = pattern
    g = rng(seed)
    W, a = np.round(4 * g.standard_normal((4, 2 * of))) / 4, g.integers(0, 4, 2 * of) ** 2.0
    r = ref.wanda(W, a, keep=keep, of=of)
    np.testing.assert_array_equal(r.mask, brute_mask(np.abs(W) * np.sqrt(a), keep, of))
    np.testing.assert_array_equal(r.weight, np.where(r.mask, 0, W))
    np.testing.assert_array_equal(ref.wanda(W, 16 * a, keep=keep, of=of).mask, r.mask)


def test_g6_ties_prune_the_lower_index() -> None:
    assert ref.wanda(-np.ones((1, 4)), np.ones(4)).mask.tolist() == [[True, True, False, False]]


def test_g6_refusals() -> None:
    with pytest.raises(SpecError, match=r"\[G-6\] feature_moment must have shape \(4,\), got \(3,\)"):
        ref.wanda(np.ones((1, 4)), np.ones(3))
    with pytest.raises(SpecError, match=r"\[G-6\] feature_moment must be >= 0, got -1.0"):
        ref.wanda(np.ones((1, 4)), -np.ones(4))
    with pytest.raises(SpecError, match=r"\[G-6\] tuples of 4 do not divide axis length 6"):
        ref.wanda(np.ones((1, 6)), np.ones(6))
    assert ref.wanda(np.ones((0, 4)), np.ones(4)).mask.shape == (0, 4)
