"""Chapter E: the property tests of EoRA and every trap that its users fell into.

"The slack" below is the derived bound of (E.7) on a sum of eigenvalues of M = D C Dᵀ; objectives are compared with it.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lowbit.reference as ref
from lowbit.reference.eigenspace import slack
from lowbit.reference.errors import SpecError
from lowbit.reference.types import LowRank, Split

from .bounds import LAW, Array, factorisation, gamma, near, psd

rng = np.random.default_rng
SPLITS: tuple[Split, ...] = ("balanced", "left")
seeds = st.integers(0, 10**6)
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def problem(seed: int, shape: tuple[int, int] = (8, 12), *, spread: float = 1.0) -> tuple[Array, Array]:
    g = rng(seed)
    return g.standard_normal(shape), psd(g, shape[1], spread=spread)


def left_over(D: Array, C: Array, patch: LowRank[Array]) -> float:
    return ref.objective(D - patch.B @ patch.A, C)


def at_optimum(D: Array, C: Array, patch: LowRank[Array], r: int, *, allow: float = 4.0) -> None:
    """J within the slack of the optimum; `allow` counts the computed quantities that enter."""
    assert abs(left_over(D, C, patch) - ref.optimum(D, C, rank=r)) <= allow * slack(D, C)


# --- the eight property tests -----------------------------------------------------------------------------------------


@LAW
@given(seeds, shapes, st.integers(1, 4))
def test_property_1_full_rank_restores_the_weight(seed: int, shape: tuple[int, int], rank: int) -> None:
    g = rng(seed)
    r = min(rank, *shape)
    D = g.standard_normal((shape[0], r)) @ g.standard_normal((r, shape[1]))  # rank(D) ≤ r
    C = psd(g, shape[1])
    for split in SPLITS:
        B, A = ref.eora(D, C, rank=r, split=split)
        # U spans D's columns up to (rounding of M) / (smallest eigenvalue kept): Davis-Kahan
        kept = ref.error_spectrum(D, C)[r - 1] ** 2
        near(D - B @ A, np.zeros(shape), roundings=1, magnitude=np.linalg.norm(D) * 4 * slack(D, C) / kept / gamma(1))


@LAW
@given(seeds, shapes, st.data())
def test_property_2_reaches_the_optimum_and_nothing_goes_below(
    seed: int, shape: tuple[int, int], data: st.DataObject
) -> None:
    D, C = problem(seed, shape)
    r = data.draw(st.integers(1, min(shape)))
    g = rng(seed + 1)
    for split in SPLITS:
        at_optimum(D, C, ref.eora(D, C, rank=r, split=split), r)
    best = ref.optimum(D, C, rank=r)
    random = LowRank(g.standard_normal((shape[0], r)), g.standard_normal((r, shape[1])))
    projected = LowRank(random.B, np.linalg.lstsq(random.B, D)[0])
    mean_abs = np.sqrt(np.diag(C))
    others = [ref.svd_patch(D, rank=r), ref.scaled_svd_patch(D, mean_abs, rank=r), random, projected]
    assert all(left_over(D, C, other) >= best - 4 * slack(D, C) for other in others)


def test_property_2_is_non_increasing_in_the_rank() -> None:
    D, C = problem(0)
    J = [left_over(D, C, ref.eora(D, C, rank=r)) for r in range(1, 9)]
    assert all(b <= a + 4 * slack(D, C) for a, b in itertools.pairwise(J))
    bought = -np.diff([ref.objective(D, C), *J])
    near(bought, ref.error_spectrum(D, C) ** 2, roundings=factorisation(12), magnitude=ref.objective(D, C))


@LAW
@given(seeds, shapes)
def test_property_3_white_inputs_are_plain_svd(seed: int, shape: tuple[int, int]) -> None:
    D = rng(seed).standard_normal(shape)
    r = max(1, min(shape) - 1)
    patch = ref.svd_patch(D, rank=r)
    at_optimum(D, 7 * np.eye(shape[1]), patch, r)
    σ = np.linalg.svd(D, compute_uv=False)
    gap = (σ[r - 1] ** 2 - (σ[r] ** 2 if r < len(σ) else 0)) / σ[0] ** 2
    B, A = ref.eora(D, 7 * np.eye(shape[1]), rank=r)
    near(B @ A, patch.B @ patch.A, roundings=factorisation(*shape), magnitude=σ[0] / gap)


def test_property_3_no_error_no_adapter_and_scale_of_c_cancels() -> None:
    D, C = problem(1)
    for split in SPLITS:
        B, A = ref.eora(np.zeros_like(D), C, rank=3, split=split)
        assert not A.any()
        assert np.isfinite(B).all()
        one, other = (ref.eora(D, scale * C, rank=3, split=split) for scale in (1.0, 2.0**20))
        near(one.B @ one.A, other.B @ other.A, roundings=factorisation(12), magnitude=np.abs(D).max() * 100)
    B, A = ref.eora(D, np.zeros_like(C), rank=3)  # nothing was ever seen: any patch will do, finite it must be
    assert np.isfinite(B @ A).all()


@LAW
@given(seeds)
def test_property_4_equivariance(seed: int) -> None:
    D, C = problem(seed, (6, 5))
    g = rng(seed + 1)
    O = np.linalg.qr(g.standard_normal((6, 6)))[0]
    T = np.eye(5) + 0.2 * g.standard_normal((5, 5))  # x → x T, D → D T⁻ᵀ, C → Tᵀ C T
    s = ref.error_spectrum(D, C)
    condition = s[0] ** 2 / (s[1] ** 2 - s[2] ** 2)
    one, other = ref.eora(D, C, rank=2, split="left"), ref.eora(O @ D, C, rank=2, split="left")
    near(O @ one.B @ one.A, other.B @ other.A, roundings=factorisation(6), magnitude=np.linalg.norm(D) * condition)
    D2, C2 = np.linalg.solve(T, D.T).T, T.T @ C @ T
    magnitude = ref.objective(D, C) * np.linalg.cond(T) ** 2 * np.linalg.cond(C)
    near(
        left_over(D2, C2, ref.eora(D2, C2, rank=2)),
        left_over(D, C, ref.eora(D, C, rank=2)),
        roundings=factorisation(6),
        magnitude=magnitude,
    )


@LAW
@given(seeds, st.integers(1, 5))
def test_property_5_stationarity(seed: int, r: int) -> None:
    D, C = problem(seed, (6, 5))
    B, A = ref.eora(D, C, rank=r)
    s = ref.error_spectrum(D, C)
    gap = (s[r - 1] ** 2 - (s[r] ** 2 if r < 5 else 0)) / s[0] ** 2
    allowed = gamma(factorisation(6)) * np.linalg.cond(C) / gap
    assert max(ref.stationarity(D, C, B, A)) <= allowed


@LAW
@given(seeds, shapes)
def test_property_6_the_inverse_free_form_is_steps_1_to_5(seed: int, shape: tuple[int, int]) -> None:
    D, C = problem(seed, shape)
    r = max(1, min(shape) - 1)
    s = ref.error_spectrum(D, C)
    gap = (s[r - 1] ** 2 - (s[r] ** 2 if r < len(s) else 0)) / s[0] ** 2
    B, A = ref.eora(D, C, rank=r)
    L = np.linalg.eigvalsh(C)
    for policy in ("nvlabs", "truncate"):
        if policy == "truncate" and L[0] <= L[-1] * len(L) * 2.0**-23:
            continue  # drops an eigenvalue, on purpose
        B2, A2 = ref.eora_published(D, C, rank=r, policy=policy)  # type: ignore[arg-type]
        near(B @ A, B2 @ A2, roundings=factorisation(*shape), magnitude=np.linalg.norm(D) * np.linalg.cond(C) / gap)


def test_property_7_a_rare_and_huge_group_of_tokens_is_preserved() -> None:
    g = rng(0)
    common, rare = g.standard_normal((990, 16)), 100 * g.standard_normal((10, 3)) @ g.standard_normal((3, 16))
    C, C_rare = (x.T @ x for x in (np.concatenate([common, rare]), rare))
    D = g.standard_normal((16, 16))
    ours, svd = ref.eora(D, C, rank=3), ref.svd_patch(D, rank=3)
    assert left_over(D, C_rare, ours) < 0.01 * left_over(D, C_rare, svd)


def test_property_8_adapter_beside_the_layer_is_the_adapter_inside() -> None:
    g = rng(3)
    W, D = g.standard_normal((6, 9)), g.standard_normal((6, 9))
    x, C = g.standard_normal((5, 9)), psd(g, 9)
    B, A = ref.eora(D, C, rank=2)
    beside = x @ W.T + (x @ A.T) @ B.T
    magnitude = np.abs(x) @ (np.abs(W) + np.abs(B) @ np.abs(A)).T
    near(beside, x @ (W + B @ A).T, roundings=4 * 9, magnitude=magnitude)


# --- closed forms -----------------------------------------------------------------------------------------------------


@LAW
@given(seeds, st.integers(1, 6))
def test_form_1_3_any_square_root_gives_the_same_patch(seed: int, r: int) -> None:
    g = rng(seed)
    X, D = g.standard_normal((20, 6)), g.standard_normal((8, 6))
    C = X.T @ X
    L, Q = np.linalg.eigh(C)
    for S in (Q * np.sqrt(L), (Q * np.sqrt(L)) @ Q.T, np.linalg.cholesky(C), X.T):
        U, s, Vt = np.linalg.svd(D @ S, full_matrices=False)
        near(s[:6], ref.error_spectrum(D, C), roundings=factorisation(20), magnitude=s[0])
        BA = (U[:, :r] * s[:r]) @ Vt[:r] @ np.linalg.pinv(S)
        assert abs(ref.objective(D - BA, C) - ref.optimum(D, C, rank=r)) <= gamma(factorisation(20)) * np.linalg.cond(
            C
        ) * ref.objective(D, C)


@LAW
@given(seeds, shapes)
def test_e2_splits_have_the_published_scaling(seed: int, shape: tuple[int, int]) -> None:
    D, C = problem(seed, shape)
    r = min(shape)
    s = ref.error_spectrum(D, C)
    n = factorisation(*shape)
    B, A = ref.eora(D, C, rank=r, split="left")
    near(B.T @ B, np.eye(r), roundings=n, magnitude=1)
    near(A, B.T @ D, roundings=n, magnitude=np.linalg.norm(D))
    B, A = ref.eora(D, C, rank=r)
    near(np.diag(B.T @ B), s, roundings=n, magnitude=s[0] ** 2 / s[-1])  # √ of an eigenvalue of M
    near(np.diag(A @ C @ A.T), s, roundings=n, magnitude=s[0] ** 2 / s[-1] * np.linalg.cond(C))


def test_e2_balanced_factors_stay_finite_where_singular_values_vanish() -> None:
    D, C = problem(2)
    D[:, 3:] = 0  # rank 3
    B, A = ref.eora(D, C, rank=8)
    assert np.isfinite(B).all()
    assert np.isfinite(A).all()
    at_optimum(D, C, LowRank(B, A), 8)


def test_e3_repeated_singular_values_across_the_cut() -> None:
    """The subspace is not unique, the objective is."""
    D, C = np.eye(6), np.diag([4.0, 1.0, 1.0, 1.0, 1.0, 0.25])
    np.testing.assert_array_equal(ref.error_spectrum(D, C), [2, 1, 1, 1, 1, 0.5])
    for r in range(1, 7):
        patches = [ref.eora(D, C, rank=r), ref.eora_published(D, C, rank=r)]
        for patch in patches:
            at_optimum(D, C, patch, r)
    assert ref.optimum(D, C, rank=3) == 2.25


@pytest.mark.parametrize("spread", [6.0, 12.0])
def test_e3_huge_ranges_of_channel_scales(spread: float) -> None:
    D, C = problem(5, spread=spread)
    for r in (1, 4, 8):
        at_optimum(D, C, ref.eora(D, C, rank=r), r)
        certificate = ref.eora_certified(D, C, rank=r)
        assert certificate.lower_bound <= ref.optimum(D, C, rank=r) + slack(D, C)


# --- traps ------------------------------------------------------------------------------------------------------------


def test_trap_transposed_covariance() -> None:
    """C is in × in and multiplies D on the right; out × out, or D from the left, is another problem."""
    D, C = problem(4, (7, 5))
    with pytest.raises(SpecError, match=r"\[E-2\] c must have shape \(5, 5\), got \(7, 7\)"):
        ref.eora(D, np.eye(7), rank=2)
    D, C = problem(4, (6, 6))
    transposed = ref.eora(D.T, C, rank=2)
    wrong = LowRank(transposed.A.T, transposed.B.T)
    assert left_over(D, C, wrong) > 1.5 * ref.optimum(D, C, rank=2)


def test_trap_inverse_root_on_the_wrong_factor() -> None:
    """S⁻¹ belongs to A. On B, or on neither, the patch lives in the scaled space."""
    D, C = problem(6, (6, 6))
    L, Q = np.linalg.eigh(C)
    S, inverse = Q * np.sqrt(L), (Q / np.sqrt(L)).T
    U, s, Vt = np.linalg.svd(D @ S)
    good = LowRank(U[:, :2] * s[:2], Vt[:2] @ inverse)
    at_optimum(D, C, good, 2, allow=4 * np.linalg.cond(C))
    for wrong in (LowRank(inverse @ (U[:, :2] * s[:2]), Vt[:2]), LowRank(U[:, :2] * s[:2], Vt[:2])):
        assert left_over(D, C, wrong) > 1.5 * ref.optimum(D, C, rank=2)


def test_trap_float32_eigenvalues_of_a_rank_deficient_c() -> None:
    """Fewer tokens than channels, summed in float32: eigenvalues a little below 0 are normal and do no harm."""
    g = rng(7)
    X, D = g.standard_normal((10, 24)).astype(np.float32), g.standard_normal((16, 24))
    C = (X.T @ X).astype(np.float64)
    assert np.linalg.eigvalsh(C)[0] < 0
    exact = X.astype(np.float64).T @ X.astype(np.float64)
    for r in (1, 4, 10, 16):
        patches = [ref.eora(D, C, rank=r), ref.eora_published(D, C, rank=r, policy="truncate")]
        for patch in patches:
            assert np.isfinite(patch.B).all()
            assert np.isfinite(patch.A).all()
            excess = left_over(D, exact, patch) - ref.optimum(D, exact, rank=r)
            assert excess <= 24 * 2.0**-23 * ref.objective(D, np.trace(exact) * np.eye(24))  # float32's own error in C
    pinv = ref.eora_published(D, C, rank=4, policy="truncate")
    null = np.linalg.svd(X.astype(np.float64))[2][10:].T
    assert np.abs(pinv.B @ pinv.A @ null).max() < 2.0**-12 * np.abs(D @ null).max()  # 0 on null(C), the float32 one
    ours = ref.eora(D, C, rank=4)
    assert np.abs(ours.B @ ours.A @ null).max() > 0.1 * np.abs(D @ null).max()  # acts there too, with the same J


def test_trap_dead_and_duplicated_channels() -> None:
    g = rng(8)
    X, D = g.standard_normal((40, 6)), g.standard_normal((5, 6))
    X[:, 1] = 0
    X[:, 4] = X[:, 3]
    C = X.T @ X
    for r in (1, 3, 5):
        at_optimum(D, C, ref.eora(D, C, rank=r), r)
        at_optimum(D, C, ref.eora_published(D, C, rank=r), r, allow=24 * 2.0**-23 / gamma(1))


def test_trap_adapter_scaling_on_export_is_one() -> None:
    """B A is the patch itself; a loader that multiplies by alpha / r needs alpha = r."""
    D, C = problem(9)
    B, A = ref.eora(D, C, rank=4)
    assert ref.objective(D - 2 * B @ A, C) > 1.5 * left_over(D, C, LowRank(B, A))


def test_trap_recency_weighting_prefers_the_last_samples() -> None:
    """Under the published weighting the order of the calibration set decides whom the adapter serves."""
    g = rng(10)
    first, last = (g.standard_normal((32, 1, 8, 3)) @ g.standard_normal((3, 12)) for _ in range(2))
    D = g.standard_normal((12, 12))
    C_first = np.einsum("nbti,nbtj->ij", first, first)

    def served(samples: Array) -> float:
        patch = ref.eora(D, ref.recency_moment(list(samples), total=64), rank=3)
        return left_over(D, C_first, patch)

    assert served(np.concatenate([first, last])) > served(np.concatenate([last, first]))


def test_trap_float16_difference_is_another_error() -> None:
    g = rng(11)
    W = (1 + g.random((8, 8))).astype(np.float16)
    W_hat = (W.astype(np.float32) + 2e-3 * g.standard_normal((8, 8)).astype(np.float32)).astype(np.float32)
    right = W.astype(np.float64) - W_hat
    wrong = (W - W_hat.astype(np.float16)).astype(np.float64)
    C = psd(g, 8)
    assert left_over(right, C, ref.eora(wrong, C, rank=4)) > 1.05 * ref.optimum(right, C, rank=4)


# --- E-4 --------------------------------------------------------------------------------------------------------------


def test_e4_policies_on_eigenvalues_that_are_not_positive() -> None:
    D = rng(0).standard_normal((3, 3))
    negative = np.array([[1.0, 0, 0], [0, 1e-3, 1.1e-3], [0, 1.1e-3, 1e-3]])
    assert np.linalg.eigvalsh(negative)[0] < 0
    for policy in ("nvlabs", "truncate"):
        B, A = ref.eora_published(D, negative, rank=2, policy=policy)  # type: ignore[arg-type]
        assert np.isfinite(B @ A).all()
    with pytest.raises(SpecError, match=r"\[E-4\] c has no positive eigenvalue"):
        ref.eora_published(D, np.zeros((3, 3)), rank=1, policy="nvlabs")
    with pytest.raises(SpecError, match=r"\[E-4\] c has an eigenvalue that is exactly 0"):
        ref.eora_published(D, np.diag([1.0, 0.0, 1.0]), rank=1, policy="nvlabs")
    B, A = ref.eora_published(D, np.zeros((3, 3)), rank=1)
    assert not (B @ A).any()
    with pytest.raises(SpecError, match=r"\[E-4\] policy must be one of 'nvlabs', 'truncate'"):
        ref.eora_published(D, np.eye(3), rank=1, policy="raise")  # type: ignore[arg-type]


def test_e4_truncate_cuts_at_k_float32_epsilons_of_the_largest() -> None:
    D = np.eye(4)
    cutoff = 8.0 * 4 * 2.0**-23
    kept = ref.eora_published(D, np.diag([8.0, 4.0, 2 * cutoff, cutoff]), rank=4)
    near(np.diag(kept.B @ kept.A), [1, 1, 1, 0], roundings=factorisation(4))


def test_e4_nvlabs_repairs_with_the_smallest_positive_eigenvalue() -> None:
    """The repaired root is that of C with the negative eigenvalue replaced."""
    g = rng(1)
    Q = np.linalg.qr(g.standard_normal((3, 3)))[0]
    D = g.standard_normal((4, 3))
    bad, repaired = ((Q * L) @ Q.T for L in (np.array([-0.01, 0.5, 2.0]), np.array([0.5, 0.5, 2.0])))
    got, want = (ref.eora_published(D, (c + c.T) / 2, rank=1, policy="nvlabs") for c in (bad, repaired))
    near(got.B @ got.A, want.B @ want.A, roundings=factorisation(4), magnitude=np.linalg.norm(D) * 10)


# --- E-5 --------------------------------------------------------------------------------------------------------------


@LAW
@given(seeds, shapes, st.floats(0, 8), st.data())
def test_e5_the_bound_is_a_bound_and_is_met(
    seed: int, shape: tuple[int, int], spread: float, data: st.DataObject
) -> None:
    D, C = problem(seed, shape, spread=spread)
    r = data.draw(st.integers(1, min(shape)))
    got = ref.eora_certified(D, C, rank=r)
    best = ref.optimum(D, C, rank=r)
    assert got.method == "exact"
    assert 0 <= got.lower_bound <= best + slack(D, C)  # `best` is itself computed
    assert got.objective == left_over(D, C, LowRank(got.B, got.A))
    assert got.objective <= got.lower_bound * (1 + 1e-6) + 4 * slack(D, C)


def test_e5_bound_against_exact_arithmetic() -> None:
    """D and C of integers with a known answer: orthogonal rows, so the optimum is a sum of integers."""
    H = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], float)
    D = H * np.array([[5.0], [3.0], [2.0], [1.0]])
    for r, best in ((1, 4 * 14), (2, 4 * 5), (3, 4 * 1), (4, 0)):
        got = ref.eora_certified(D, np.eye(4), rank=r, split="left")
        assert got.lower_bound <= best
        assert abs(got.objective - best) <= 4 * slack(D, np.eye(4))


# --- E-6 --------------------------------------------------------------------------------------------------------------


def test_e6_a_patch_that_ignores_the_inputs_is_not_stationary() -> None:
    D, C = problem(0)
    B, A = ref.eora(D, C, rank=3)
    allowed = gamma(factorisation(12)) * np.linalg.cond(C)
    assert max(ref.stationarity(D, C, B, A)) < allowed
    B, A = ref.svd_patch(D, rank=3)
    left, right = ref.stationarity(D, C, B, A)
    assert left < allowed < right  # UᵀD is the best A for its U, but U is the wrong one
    assert ref.stationarity(D, C, B, 2 * A).left > 1e3 * allowed


def test_e6_degenerate_ratios() -> None:
    D, C = np.array([[1.0, 0.0]]), np.diag([1.0, 1.0])
    assert ref.stationarity(D, C, [[0.0]], [[0.0, 0.0]]) == (0.0, 0.0)
    got = ref.stationarity(np.zeros((1, 2)), C, [[1.0]], [[1.0, 0.0]])  # D C = 0 but a patch that does something
    assert got == (float("inf"), float("inf"))
    with pytest.raises(SpecError, match=r"\[E-6\] b \(2, 1\) times a \(1, 2\) is not a patch for d \(1, 2\)"):
        ref.stationarity(D, C, np.ones((2, 1)), np.ones((1, 2)))


# --- E-7 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
@pytest.mark.parametrize(
    ("group_size", "group_b", "group_a"), [(None, 4, 12), (4, 4, 4), (6, 4, 6), (5, 4, 12), (99, 4, 12)]
)
def test_e7_both_factors_are_ordinary_layers(scheme: str, group_size: int | None, group_b: int, group_a: int) -> None:
    D, C = problem(3)
    B, A = ref.eora(D, C, rank=4)
    got = ref.quantize_adapter(B, A, C, bits=4, scheme=scheme, group_size=group_size)  # type: ignore[arg-type]
    assert got.B.scale.shape == (8, 4 // group_b)
    assert got.A.scale.shape == (4, 12 // group_a)
    by_hand = ref.gptq(A, C, bits=4, scheme=scheme, group_size=None if group_a == 12 else group_a)  # type: ignore[arg-type]
    np.testing.assert_array_equal(got.A.codes, by_hand.codes)
    H = A @ C @ A.T  # the un-quantized A
    by_hand = ref.gptq(B, (H + H.T) / 2, bits=4, scheme=scheme, group_size=4 if group_size == 4 else None)  # type: ignore[arg-type]
    np.testing.assert_array_equal(got.B.codes, by_hand.codes)


def test_e7_rtn_is_worse_by_the_same_measure() -> None:
    D, C = problem(3, (32, 24), spread=1.0)
    B, A = ref.eora(D, C, rank=8)
    both = {m: ref.quantize_adapter(B, A, C, bits=3, method=m, group_size=8) for m in ("rtn", "gptq")}  # type: ignore[arg-type]
    for factor, w in (("A", A), ("B", B)):
        nearest = getattr(both["rtn"], factor)
        s, z = ref.fit_grid(w, bits=3, granularity="group", group_size=8)
        np.testing.assert_array_equal(nearest.codes, ref.quantize(w, s, z, bits=3))
        np.testing.assert_array_equal(nearest.group_index, np.arange(w.shape[1]) // 8)
    assert 0 < both["gptq"].A.loss < both["rtn"].A.loss
    # B sees A C Aᵀ = diag(s): uncorrelated inputs, so GPTQ has nothing to push errors onto
    np.testing.assert_array_equal(both["gptq"].B.codes, both["rtn"].B.codes)
    near(both["gptq"].B.loss, both["rtn"].B.loss, roundings=factorisation(32), magnitude=ref.objective(D, C))
    whole = ref.quantize_adapter(B, A, C, bits=3, method="rtn")
    assert whole.A.scale.shape == (8, 1)


def test_e7_refusals_and_an_adapter_of_nothing() -> None:
    with pytest.raises(SpecError, match=r"\[E-7\] b \(3, 2\) times a \(1, 4\) is not a patch"):
        ref.quantize_adapter(np.ones((3, 2)), np.ones((1, 4)), np.eye(4), bits=4)
    with pytest.raises(SpecError, match=r"\[E-7\] method must be one of 'rtn', 'gptq'"):
        ref.quantize_adapter(np.ones((3, 1)), np.ones((1, 4)), np.eye(4), bits=4, method="awq")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"\[E-7\] group_size must be at least 1, got 0"):
        ref.quantize_adapter(np.ones((3, 1)), np.ones((1, 4)), np.eye(4), bits=4, group_size=0)
    zero = ref.quantize_adapter(np.zeros((3, 2)), np.zeros((2, 4)), np.eye(4), bits=4)
    assert not zero.A.weight.any()
    assert not zero.B.weight.any()


# --- E-8 --------------------------------------------------------------------------------------------------------------


@LAW
@given(seeds, shapes, st.integers(1, 4))
def test_e8_prices_an_error_at_the_best_b(seed: int, shape: tuple[int, int], rows: int) -> None:
    """Against least squares for B, which never forms A C Aᵀ."""
    D, C = problem(seed, shape)
    A = rng(seed + 1).standard_normal((min(rows, shape[1]), shape[1]))
    S = np.linalg.cholesky(C)
    B = np.linalg.lstsq((A @ S).T, (D @ S).T, rcond=None)[0].T
    cond = float(np.linalg.cond(A @ S)) ** 2
    near(
        ref.objective(D, ref.residual_moment(C, A)),
        ref.objective(D - B @ A, C),
        roundings=factorisation(*shape),
        magnitude=cond * ref.objective(D, C),
    )


@LAW
@given(seeds, st.integers(2, 9), st.integers(1, 3))
def test_e8_only_the_row_space_counts(seed: int, k: int, rows: int) -> None:
    g = rng(seed)
    C, A = psd(g, k), g.standard_normal((min(rows, k), k))
    T = g.standard_normal((len(A) + 1, len(A)))  # mixes, and adds a dependent row
    cond = float(np.linalg.cond(A @ np.linalg.cholesky(C)) * np.linalg.cond(T)) ** 2
    H = ref.residual_moment(C, A)
    near(ref.residual_moment(C, T @ A), H, roundings=factorisation(k), magnitude=cond * np.trace(C))
    near(A @ H, np.zeros(A.shape), roundings=factorisation(k), magnitude=cond * np.abs(A) @ np.abs(C))
    assert np.linalg.eigvalsh(H)[0] >= -gamma(factorisation(k)) * cond * np.trace(C)
    assert np.linalg.eigvalsh(C - H)[0] >= -gamma(factorisation(k)) * cond * np.trace(C)


def test_e8_rows_of_a_patch_price_the_patch_itself() -> None:
    D, C = problem(0)
    near(
        ref.objective(D, ref.residual_moment(C, ref.eora(D, C, rank=3).A)),
        ref.optimum(D, C, rank=3),
        roundings=factorisation(12),
        magnitude=ref.objective(D, C) * float(np.linalg.cond(C)),
    )


def test_e8_eora_of_the_identity_leaves_the_tail_of_the_moment() -> None:
    """An error without structure, D = I, loses the leading eigenvectors of C."""
    C = psd(rng(3), 10)
    H = ref.residual_moment(C, ref.eora(np.eye(10), C, rank=4).A)
    near(
        np.linalg.eigvalsh(H),
        np.concatenate([np.zeros(4), np.linalg.eigvalsh(C)[:6]]),
        roundings=factorisation(10),
        magnitude=np.linalg.norm(C, 2),
    )


def test_e8_degenerate_rows() -> None:
    C = np.diag([4.0, 0.0, 1.0])
    np.testing.assert_array_equal(ref.residual_moment(C, np.zeros((2, 3))), C)
    np.testing.assert_array_equal(ref.residual_moment(C, [[0.0, 1.0, 0.0]]), C)  # serves a dead channel only
    H = ref.residual_moment(C, [[1.0, 5.0, 0.0], [1.0, -5.0, 0.0]])  # the same to every input
    np.testing.assert_array_equal(H > 0, np.diag([True, False, True]))
    assert H[2, 2] == 1
    assert H[0, 0] <= gamma(factorisation(3)) * 4
    with pytest.raises(SpecError, match=r"\[E-8\] c must have shape \(2, 2\), got \(3, 3\)"):
        ref.residual_moment(C, np.ones((1, 2)))
