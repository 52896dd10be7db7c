"""Chapter G: GPTQ, its laws and its traps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lowbit.reference as ref
from lowbit.reference.errors import SpecError
from lowbit.reference.types import SCHEMES, GroupScales, QuantizedWeight, Scheme

from .bounds import LAW, Array, factorisation, near, psd

rng = np.random.default_rng


def rtn(w: Array, *, group_size: int | None = None, **options: Any) -> tuple[Array, Array]:
    """Codes and values of rounding to nearest."""
    s, z = ref.fit_grid(w, granularity="group" if group_size else "row", group_size=group_size, **options)
    codes = ref.quantize(w, s, z, bits=options["bits"], scheme=options.get("scheme", "asymmetric"))
    return codes, ref.dequantize(codes, s, z)


def damped(h: Array, damping: float = 0.01) -> Array:
    h = h + np.diag((np.diag(h) == 0).astype(float))
    return np.asarray(h + damping * np.diag(h).mean() * np.eye(len(h)))


def lazy_gptq(w: Array, h: Array, *, bits: int, group_size: int, block_size: int, scales: GroupScales) -> Array:
    """GPTQ as the published code blocks it: a block's own updates reach the outer W only at the block's end."""
    W, U = w.copy(), np.linalg.cholesky(np.linalg.inv(damped(h))).T
    Q, s, z = np.zeros_like(W), np.ones((len(W), 1)), np.zeros((len(W), 1), np.int32)
    for a in range(0, W.shape[1], block_size):
        b = min(a + block_size, W.shape[1])
        W1, E = W[:, a:b].copy(), np.zeros((len(W), b - a))
        for i in range(b - a):
            if (a + i) % group_size == 0:
                outer = W[:, a + i : a + i + group_size].copy()
                if scales == "current":
                    seen = W1[:, i : i + group_size]
                    outer[:, : seen.shape[1]] = seen
                    # columns of the group beyond the block have not yet seen this block's errors: add them
                    rest = slice(b, a + i + group_size)
                    outer[:, seen.shape[1] :] = W[:, rest] - E[:, :i] @ U[a : a + i, rest]
                s, z = ref.fit_grid(outer, bits=bits)
            q = ref.dequantize(ref.quantize(W1[:, [i]], s, z, bits=bits), s, z)[:, 0]
            E[:, i] = (W1[:, i] - q) / U[a + i, a + i]
            W1[:, i:] -= np.outer(E[:, i], U[a + i, a + i : b])
            Q[:, a + i] = q
        W[:, b:] -= E @ U[a:b, b:]
    return Q


# --- G-1 --------------------------------------------------------------------------------------------------------------


@LAW
@given(st.integers(1, 12), st.integers(0, 10**6), st.sampled_from([1e-4, 0.01, 1.0]))
def test_g1_factor_identity(k: int, seed: int, damping: float) -> None:
    H = psd(rng(seed), k, tokens=max(1, k // 2))  # rank-deficient: damping makes it definite
    U, dead = ref.inverse_cholesky(H, damping=damping)
    np.testing.assert_array_equal(U, np.triu(U))
    assert (np.diag(U) > 0).all()
    assert not dead.any()
    Hd = damped(H, damping)
    near(U.T @ U @ Hd, np.eye(k), roundings=factorisation(k), magnitude=np.linalg.cond(Hd))


def test_g1_dead_columns_count_as_one_before_the_mean_is_taken() -> None:
    H = np.diag([0.0, 8.0, 0.0, 6.0])
    U, dead = ref.inverse_cholesky(H, damping=0.5)
    assert dead.tolist() == [True, False, True, False]
    near(np.diag(U) ** -2, np.array([1, 8, 1, 6]) + 0.5 * (1 + 8 + 1 + 6) / 4, roundings=8)


def test_g1_refusals() -> None:
    for bad, message in (
        (np.ones((2, 3)), r"h must have shape \(2, 2\), got \(2, 3\)"),
        (np.ones(3), r"h must have 2 dimensions, got shape \(3,\)"),
        (1.0, r"h must have 2 dimensions, got shape \(\)"),
        ([[1.0, 0.5], [0.4, 1.0]], r"h must be symmetric, largest \|h - hᵀ\| is 0.1"),
        ([[1.0, 0.0], [0.0, -1.0]], r"h must have a diagonal >= 0, got -1.0 at \(1, 1\)"),
        ([[1.0, 2.0], [2.0, 1.0]], r"h is not positive definite with damping 0.01"),
        ([[1.0], [2.0, 1.0]], r"h is not an array"),
        ([["a"]], r"h must hold real numbers, got dtype <U1"),
    ):
        with pytest.raises(SpecError, match=rf"\[G-1\] {message}"):
            ref.inverse_cholesky(bad)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"\[G-1\] damping must be at least 0.0, got -1"):
        ref.inverse_cholesky(np.eye(2), damping=-1)
    with pytest.raises(SpecError, match=r"\[G-1\] h is not positive definite with damping 0.0"):
        ref.inverse_cholesky(np.ones((2, 2)), damping=0.0)


# --- G-2: laws --------------------------------------------------------------------------------------------------------


@LAW
@given(st.integers(0, 10**6), st.sampled_from(SCHEMES), st.integers(2, 5), st.sampled_from([None, 2, 4]))
def test_g2_white_inputs_make_gptq_round_to_nearest(
    seed: int, scheme: Scheme, bits: int, group_size: int | None
) -> None:
    W = rng(seed).standard_normal((3, 8))
    got = ref.gptq(W, 5.0 * np.eye(8), bits=bits, scheme=scheme, group_size=group_size)
    codes, values = rtn(W, bits=bits, scheme=scheme, group_size=group_size)
    np.testing.assert_array_equal(got.codes, codes)
    np.testing.assert_array_equal(got.weight, values)


def consistent(r: QuantizedWeight[Array]) -> None:
    """Codes, scales and group_index say the same as the weight, column by column."""
    s, z = r.scale[:, r.group_index], r.zero_point[:, r.group_index]
    np.testing.assert_array_equal(s * (r.codes - z), r.weight)
    assert (r.codes.dtype, r.zero_point.dtype, r.group_index.dtype) == (np.int32,) * 3


OPTIONS: list[dict[str, Any]] = [
    {},
    {"act_order": True},
    {"group_size": 4},
    {"group_size": 4, "group_scales": "block", "block_size": 8},
    {"group_size": 4, "act_order": True},
    {"group_size": 4, "act_order": True, "static_groups": True},
    {"static_groups": True},
    {"scheme": "symmetric", "clip_search": True},
    {"scheme": "symmetric-gptq", "scale_dtype": "float16"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_g3_loss_is_half_the_quadratic_form_and_results_are_consistent(options: dict[str, Any]) -> None:
    g = rng(3)
    W, H = g.standard_normal((5, 16)), psd(g, 16)
    H[2] = H[:, 2] = 0  # a dead column
    r = ref.gptq(W, H, bits=3, **options)
    consistent(r)
    assert not r.weight[:, 2].any()
    Δ = np.where(np.arange(16) == 2, 0, W) - r.weight
    want = ((Δ @ damped(H)) * Δ).sum() / 2
    near(r.loss, want, roundings=factorisation(16), magnitude=want * np.linalg.cond(damped(H)))


def test_g2_beats_rounding_to_nearest_on_correlated_inputs() -> None:
    g = rng(0)
    W, H = g.standard_normal((16, 32)), psd(g, 32, spread=1.5)
    r, (_, nearest) = ref.gptq(W, H, bits=3), rtn(W, bits=3)
    assert ref.objective(W - r.weight, H) < 0.5 * ref.objective(W - nearest, H)


def test_g2_scale_of_the_hessian_changes_only_the_loss() -> None:
    g = rng(1)
    W, H = g.standard_normal((4, 12)), psd(g, 12)
    one, four = ref.gptq(W, H, bits=3), ref.gptq(W, 4 * H, bits=3)
    np.testing.assert_array_equal(one.codes, four.codes)
    near(four.loss, 4 * one.loss, roundings=factorisation(12))


# --- G-2: which weights make a grid -----------------------------------------------------------------------------------


def test_g2_row_grid_sees_dead_columns_and_static_groups_do_not() -> None:
    """As published: find_params runs before W[:, dead] = 0, the static group grids after it."""
    W = np.array([[1.0, -1.0, 100.0, 0.5]])
    H = np.diag([1.0, 1.0, 0.0, 1.0])
    assert ref.gptq(W, H, bits=4).scale.item() == 101 / 15
    static = ref.gptq(W, H, bits=4, group_size=2, static_groups=True)
    assert static.scale.tolist() == [[2 / 15, 0.5 / 15]]


@pytest.mark.parametrize("scales", ["current", "block"])
@pytest.mark.parametrize(("group_size", "block_size"), [(4, 8), (8, 16), (6, 8), (8, 4), (24, 24)])
def test_g2_group_scales_current_and_stale(scales: GroupScales, group_size: int, block_size: int) -> None:
    """Against lazily blocked code; a group may also straddle a block's border."""
    g = rng(5)
    W, H = g.standard_normal((6, 24)), psd(g, 24)
    got = ref.gptq(W, H, bits=3, group_size=group_size, group_scales=scales, block_size=block_size)
    want = lazy_gptq(W, H, bits=3, group_size=group_size, block_size=block_size, scales=scales)
    near(got.weight, want, roundings=factorisation(24), magnitude=np.abs(want).max() * np.linalg.cond(damped(H)))


def test_g2_stale_and_current_scales_differ_inside_a_block_only() -> None:
    g = rng(5)
    W, H = g.standard_normal((6, 24)), psd(g, 24)
    both = {s: ref.gptq(W, H, bits=3, group_size=4, group_scales=s, block_size=24) for s in ("current", "block")}  # type: ignore[arg-type]
    np.testing.assert_array_equal(both["current"].scale[:, 0], both["block"].scale[:, 0])
    assert (both["current"].scale[:, 1:] != both["block"].scale[:, 1:]).any()
    per_group = ref.gptq(W, H, bits=3, group_size=4, group_scales="block", block_size=4)
    np.testing.assert_array_equal(per_group.codes, both["current"].codes)  # a block per group hides nothing


def test_g2_block_size_changes_nothing_else() -> None:
    g = rng(6)
    W, H = g.standard_normal((4, 24)), psd(g, 24)
    for options in ({}, {"group_size": 8}, {"act_order": True}):
        a, b = (ref.gptq(W, H, bits=3, block_size=n, **options) for n in (5, 128))  # type: ignore[arg-type]
        np.testing.assert_array_equal(a.codes, b.codes)
        assert a.loss == b.loss


def test_g2_static_groups_use_the_original_weights() -> None:
    g = rng(7)
    W, H = g.standard_normal((4, 16)), psd(g, 16)
    r = ref.gptq(W, H, bits=3, group_size=4, static_groups=True, act_order=True)
    s, z = ref.fit_grid(W, bits=3, granularity="group", group_size=4)
    np.testing.assert_array_equal(r.scale, s)
    np.testing.assert_array_equal(r.zero_point, z)
    np.testing.assert_array_equal(r.group_index, np.arange(16) // 4)


# --- G-4: act-order ---------------------------------------------------------------------------------------------------


def test_g4_act_order_is_gptq_on_permuted_columns() -> None:
    g = rng(8)
    W, H = g.standard_normal((4, 12)), psd(g, 12, spread=1.0)
    order = np.argsort(-np.diag(H), kind="stable")
    assert (order != np.arange(12)).any()
    for options in ({}, {"group_size": 4}):
        got = ref.gptq(W, H, bits=3, act_order=True, **options)  # type: ignore[arg-type]
        by_hand = ref.gptq(W[:, order], H[np.ix_(order, order)], bits=3, **options)  # type: ignore[arg-type]
        np.testing.assert_array_equal(got.codes[:, order], by_hand.codes)
        np.testing.assert_array_equal(got.group_index[order], by_hand.group_index)
        np.testing.assert_array_equal(got.scale, by_hand.scale)


def test_g4_equal_diagonals_are_visited_by_index() -> None:
    """With dynamic groups the visiting order shows in group_index."""
    H = np.diag([1.0, 2.0, 2.0, 1.0, 2.0, 1.0])
    r = ref.gptq(np.ones((1, 6)), H, bits=4, act_order=True, group_size=1)
    assert r.group_index.tolist() == [3, 0, 1, 4, 2, 5]


def test_g4_a_dead_column_is_visited_as_if_its_diagonal_were_one() -> None:
    H = np.diag([0.5, 0.0, 2.0])
    r = ref.gptq(np.ones((1, 3)), H, bits=4, act_order=True, group_size=1)
    assert r.group_index.tolist() == [2, 1, 0]


# --- refusals and sizes -----------------------------------------------------------------------------------------------


def test_g2_refusals() -> None:
    W, H = np.ones((2, 6)), np.eye(6)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"group_size": 4}, r"\[Q-2\] group size 4 does not divide axis length 6"),
        ({"group_size": 0}, r"\[G-2\] group_size must be at least 1, got 0"),
        ({"group_scales": "stale"}, r"\[G-2\] group_scales must be one of 'current', 'block', got 'stale'"),
        ({"block_size": 0}, r"\[G-2\] block_size must be at least 1, got 0"),
        ({"bits": 9}, r"\[Q-1\] bits of scheme 'asymmetric' must be in 1\.\.8, got 9"),
        ({"scale_dtype": "int8"}, r"\[Q-2\] scale_dtype must be one of"),
    ]
    for options, message in cases:
        given: dict[str, Any] = {"bits": 3} | options
        with pytest.raises(SpecError, match=message):
            ref.gptq(W, H, **given)
    with pytest.raises(SpecError, match=r"\[G-2\] h must have shape \(6, 6\), got \(2, 2\)"):
        ref.gptq(W, np.eye(2), bits=3)


@pytest.mark.parametrize(("m", "k"), [(0, 8), (3, 0), (0, 0), (1, 1)])
@pytest.mark.parametrize("group_size", [None, 1])
def test_a2_gptq_of_nothing(m: int, k: int, group_size: int | None) -> None:
    r = ref.gptq(np.ones((m, k)), np.eye(k), bits=4, group_size=group_size)
    G = 1 if group_size is None else k
    assert (r.codes.shape, r.scale.shape, r.group_index.shape) == ((m, k), (m, G), (k,))
    assert r.loss == 0
    consistent(r)
