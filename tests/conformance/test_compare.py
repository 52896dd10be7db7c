"""The six tiers, each with what it must pass and what it must fail."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lowbit.conformance import compare

U = compare.unit_roundoff("float32")


def test_bounds_are_what_their_derivations_say() -> None:
    assert compare.unit_roundoff("bfloat16") == 2.0**-8
    assert compare.gamma(1, U) == U / (1 - U)
    assert compare.gamma(2**23, U) == math.inf
    assert compare.tie_band(-8.0, U, 1) == 8 * compare.gamma(1, U)
    assert compare.davis_kahan(gap=0.0, n=8, u=U) == math.inf
    assert compare.davis_kahan(gap=0.5, n=8, u=U) == pytest.approx(4 * compare.gamma(8, U))
    assert compare.smallest_normal("float32") == np.finfo(np.float32).tiny
    assert compare.smallest_normal("float16") == np.finfo(np.float16).tiny
    assert compare.hoeffding(0, 0.5) == math.inf


def test_a_sum_stays_inside_gamma_and_uses_a_visible_part_of_it() -> None:
    random = np.random.default_rng(5)
    x = random.standard_normal(4096).astype(np.float32)
    total = np.float32(0)
    for value in x:
        total += value
    found = compare.forward(total, x.astype(np.float64).sum(), compare.gamma(4096, U) * np.abs(x).sum(dtype=np.float64))
    assert found.ok
    assert 1e-5 < found.margin < 1


def test_exact() -> None:
    assert compare.exact([1, 2], [1, 2]).ok
    assert compare.exact([np.nan], [np.nan]).ok
    assert compare.exact([-0.0], [0.0]).ok
    wrong = compare.exact([[1.0, 2.0]], [[1.0, 2.5]], "weights")
    assert not wrong.ok
    assert "weights[0, 1]" in wrong.detail
    assert "0x1.4p+1" in wrong.detail
    assert not compare.exact([1, 2], [[1, 2]]).ok
    assert compare.exact(np.zeros((0, 3)), np.zeros((0, 3))).margin == 0


def test_exact_bytes_sees_the_sign_of_zero_and_the_dtype() -> None:
    assert not compare.exact_bytes(np.array([-0.0]), np.array([0.0])).ok
    assert not compare.exact_bytes(np.array([1.0], np.float32), np.array([1.0])).ok
    assert not compare.exact_bytes(np.zeros(2), np.zeros(3)).ok
    assert compare.exact_bytes(np.arange(3), np.arange(3)).ok


def test_tie_band_permits_one_code_and_only_near_a_tie() -> None:
    ratio = np.array([2.5 + 1e-8, 2.5 + 1e-3, 7.0])
    band = compare.tie_band(ratio, U, 1)
    assert compare.codes([3, 3, 7], [3, 3, 7], ratio, band).margin == 0
    near = compare.codes([2, 3, 7], [3, 3, 7], ratio, band)
    assert near.ok
    assert near.margin > 0
    assert not compare.codes([3, 2, 7], [3, 3, 7], ratio, band).ok
    assert not compare.codes([1, 3, 7], [3, 3, 7], ratio, band).ok, "two codes apart"
    assert not compare.codes([3, 3], [3, 3, 7], ratio, band).ok
    assert compare.codes([2], [3], [2.5], [0.0]).ok, "an exact tie of a ratio that is not exactly known"


def test_interval_and_choice() -> None:
    assert compare.interval([2.0], [1.5], [2.5]).ok
    assert not compare.interval([3.0], [1.5], [2.5]).ok
    assert compare.choice([1.0], [2.0], 0.0).margin == 0
    assert compare.choice([1.5], [1.0], 1.0).margin == 0.5
    assert not compare.choice([3.0], [1.0], 1.0).ok


def test_forward_counts_nan_as_a_violation_and_equal_infinities_as_none() -> None:
    assert compare.forward([np.inf], [np.inf], [0.0]).ok
    assert not compare.forward([np.nan], [1.0], [1.0]).ok
    assert not compare.forward([1.0], [np.nan], [1.0]).ok
    assert compare.forward([1.25], [1.0], [0.5]).margin == 0.5


def test_certificate() -> None:
    assert compare.certificate(1.0, 1.0, 0.0).ok
    assert compare.certificate(0.5, 1.0, 0.0).ok, "below the optimum is no fault"
    assert not compare.certificate(1.1, 1.0, 0.0).ok
    assert compare.certificate(1.1, 1.0, 0.2).margin == pytest.approx(0.5)
    assert not compare.certificate(math.nan, 1.0, 1.0).ok


def population(*rows: list[int]) -> npt.NDArray[Any]:
    return np.array(rows)


def test_trajectory_forgives_only_a_decision_within_its_error() -> None:
    same = [population([1, 2], [3, 4])] * 2
    other = [same[0], population([1, 2], [9, 9])]
    close, far = [np.array([1.0, 1.0 + 1e-9])] * 2, [np.array([1.0, 2.0])] * 2
    error = [np.full(2, 1e-8)] * 2
    assert compare.trajectory(same, same, far, error, (9.0, 0.1)).margin == 0, "no difference: the end is not asked"
    forgiven = compare.trajectory(other, same, close, error, (0.05, 0.1))
    assert forgiven.ok
    assert "step 1" in forgiven.detail
    assert not compare.trajectory(other, same, far, error, (0.0, 0.1)).ok
    assert not compare.trajectory(other, same, close, error, (0.2, 0.1)).ok, "the end is worse than allowed"
    assert not compare.trajectory(same, same[:1], far, error, (0.0, 0.1)).ok


def test_frequency_allows_chance_and_no_more() -> None:
    random = np.random.default_rng(11)
    heads = int((random.random(100_000) < 0.3).sum())
    assert compare.frequency(heads, 100_000, 0.3, failures=2.0**-40).ok
    assert not compare.frequency(heads, 100_000, 0.33, failures=2.0**-40).ok


def test_what_an_svd_neglects_is_allowed_for() -> None:
    """One large entry among small ones: LAPACK takes what lies 99 roundings below it for 0, beyond γ_{3n+4}."""
    d = np.array([[0.0, 1, 1, 1315], [0, 0, 0, 0], [1, 1, 0, 0], [-1, 0, 0, 0]])
    u, s, vt = np.linalg.svd(d)
    left = np.linalg.norm(d - (u * s) @ vt)
    norm, unit = float(np.linalg.norm(d)), compare.unit_roundoff("float64")
    assert compare.residual_gap(norm, 4, unit) > left
    assert 8e-15 * norm < compare.residual_gap(norm, 4, unit) < 1e-13 * norm
    assert compare.neglected(1, unit) == 0
    assert compare.neglected(2, compare.unit_roundoff("float32")) == 10 * 2.0**-24
