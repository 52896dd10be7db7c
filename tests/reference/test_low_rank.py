"""Chapter C: patches that ignore the inputs or only scale by them. Products are compared, never factors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lowbit.reference as ref
from lowbit.reference.errors import SpecError
from lowbit.reference.types import Split

from .bounds import LAW, Array, factorisation, near

SPLITS: tuple[Split, ...] = ("balanced", "left")
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def error(seed: int, shape: tuple[int, int]) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


@LAW
@given(st.integers(0, 10**6), shapes, st.data())
def test_c4_is_eckart_young(seed: int, shape: tuple[int, int], data: st.DataObject) -> None:
    D = error(seed, shape)
    r = data.draw(st.integers(1, min(shape)))
    σ = np.linalg.svd(D, compute_uv=False)
    for split in SPLITS:
        B, A = ref.svd_patch(D, rank=r, split=split)
        assert (B.shape, A.shape) == ((shape[0], r), (r, shape[1]))
        near(((D - B @ A) ** 2).sum(), (σ[r:] ** 2).sum(), roundings=factorisation(*shape), magnitude=(σ**2).sum())


@LAW
@given(st.integers(0, 10**6), shapes)
def test_c4_splits(seed: int, shape: tuple[int, int]) -> None:
    D, r = error(seed, shape), min(shape)
    σ, n = np.linalg.svd(D, compute_uv=False), factorisation(*shape)
    B, A = ref.svd_patch(D, rank=r)
    near(B.T @ B, np.diag(σ), roundings=n, magnitude=σ[0])
    near(A @ A.T, np.diag(σ), roundings=n, magnitude=σ[0])
    B, A = ref.svd_patch(D, rank=r, split="left")
    near(B.T @ B, np.diag(σ**2), roundings=n, magnitude=σ[0] ** 2)
    near(A @ A.T, np.eye(r), roundings=n, magnitude=1)


def test_c4_nothing_to_patch() -> None:
    B, A = ref.svd_patch(np.zeros((3, 4)), rank=2)
    assert not (B @ A).any()


@pytest.mark.parametrize(("shape", "rank"), [((3, 4), 0), ((3, 4), 4), ((0, 4), 1), ((3, 4), 1.0)])
def test_c4_c5_refuse_a_rank_outside_the_shape(shape: tuple[int, int], rank: int) -> None:
    with pytest.raises(SpecError, match=r"\[C-4\] rank of a patch for shape"):
        ref.svd_patch(np.ones(shape), rank=rank)
    with pytest.raises(SpecError, match=r"\[C-5\] rank of a patch for shape"):
        ref.scaled_svd_patch(np.ones(shape), np.ones(shape[1]), rank=rank)


@LAW
@given(st.integers(0, 10**6), shapes)
def test_c5_equal_scales_are_svd_and_a_common_factor_cancels(seed: int, shape: tuple[int, int]) -> None:
    D, r = error(seed, shape), min(shape)
    for split in SPLITS:
        plain = ref.svd_patch(D, rank=max(1, r - 1), split=split)
        scaled = ref.scaled_svd_patch(D, np.full(shape[1], 4.0), rank=max(1, r - 1), split=split)
        gap = np.linalg.svd(D, compute_uv=False)
        condition = gap[0] / (gap[-2] - gap[-1]) if r > 1 else 1
        near(
            scaled.B @ scaled.A,
            plain.B @ plain.A,
            roundings=factorisation(*shape),
            magnitude=gap[0] * max(condition, 1),
        )


def test_c5_is_best_for_uncorrelated_channels() -> None:
    """a_j the root mean square, C diagonal with C_jj = a_j²: nothing of rank r is below it."""
    g = np.random.default_rng(0)
    D, a = g.standard_normal((8, 12)), 10.0 ** g.uniform(-2, 2, 12)
    C = np.diag(a**2)
    for r in (1, 3, 8):
        B, A = ref.scaled_svd_patch(D, a, rank=r)
        best = ref.optimum(D, C, rank=r)
        near(ref.objective(D - B @ A, C), best, roundings=factorisation(12), magnitude=ref.objective(D, C))


def test_c5_a_dead_channel_is_left_alone() -> None:
    """The published inverse of diag(a) raises."""
    D, a = error(1, (5, 6)), np.array([1.0, 0.0, 2.0, 0.0, 3.0, 1.0])
    B, A = ref.scaled_svd_patch(D, a, rank=4)
    assert not A[:, a == 0].any()
    near(B @ A[:, a > 0], D[:, a > 0], roundings=factorisation(6), magnitude=np.abs(D).max() * a.max())
    B, A = ref.scaled_svd_patch(D, np.zeros(6), rank=2)
    assert not A.any()


def test_c5_refusals() -> None:
    D = np.ones((3, 4))
    with pytest.raises(SpecError, match=r"\[C-5\] channel_scale must have shape \(4,\), got \(3,\)"):
        ref.scaled_svd_patch(D, np.ones(3), rank=1)
    with pytest.raises(SpecError, match=r"\[C-5\] channel_scale must be >= 0, got -1.0"):
        ref.scaled_svd_patch(D, -np.ones(4), rank=1)
    with pytest.raises(SpecError, match=r"\[C-5\] split must be one of 'balanced', 'left', got 'right'"):
        ref.scaled_svd_patch(D, np.ones(4), rank=1, split="right")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"\[C-4\] split must be one of"):
        ref.svd_patch(D, rank=1, split="right")  # type: ignore[arg-type]
