"""Chapter R. Random data cannot test a rounding rule, so ties are generated."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lowbit.reference as ref
from lowbit.reference.errors import SpecError

from .bounds import LAW

ties = st.integers(-(2**20), 2**20).map(lambda n: n / 8)  # every eighth number is a tie
anything = st.one_of(ties, st.floats(-1e300, 1e300))


@LAW
@given(st.lists(anything))
def test_r1_is_pythons_exact_half_even(x: list[float]) -> None:
    assert ref.round_half_even(x).tolist() == [float(round(Fraction(v))) for v in x]


def test_r1_any_shape_and_nothing_is_refused() -> None:
    assert ref.round_half_even(2.5).shape == ()
    assert ref.round_half_even(np.zeros((0, 3))).shape == (0, 3)
    got = ref.round_half_even([[math.nan, math.inf], [-math.inf, -0.5]])
    assert np.isnan(got[0, 0])
    assert got[0, 1] == math.inf
    assert got[1, 0] == -math.inf
    assert np.signbit(got[1, 1])


@LAW
@given(st.lists(ties), st.integers(-9, 9), st.integers(0, 9))
def test_r2_rounds_then_clips(x: list[float], low: int, width: int) -> None:
    got = ref.round_clip(x, low=low, high=low + width)
    assert got.dtype == np.int32
    assert got.tolist() == [min(max(round(Fraction(v)), low), low + width) for v in x]


def test_r2_saturates_at_int32_and_refuses_nan_and_an_empty_range() -> None:
    assert ref.round_clip([math.inf, 1e300, -1e300], low=-(2**31), high=2**31 - 1).tolist() == [
        2**31 - 1,
        2**31 - 1,
        -(2**31),
    ]
    with pytest.raises(SpecError, match=r"\[R-2\] x holds nan at \(1,\)"):
        ref.round_clip([0.0, math.nan], low=0, high=1)
    with pytest.raises(SpecError, match=r"\[R-2\] high must be in 3\.\."):
        ref.round_clip([0.0], low=3, high=2)


@LAW
@given(st.lists(ties, min_size=1, max_size=9, unique=True), st.lists(ties))
def test_r3_is_the_argmin_with_ties_to_the_lower_index(levels: list[float], x: list[float]) -> None:
    levels = sorted(levels)
    x += [(a + b) / 2 for a, b in itertools.pairwise(levels)]  # every midpoint
    want = [min(range(len(levels)), key=lambda i: (abs(Fraction(v) - Fraction(levels[i])), i)) for v in x]
    got = ref.nearest_level(x, levels)
    assert got.dtype == np.int32
    assert got.tolist() == want


def test_r3_refuses_levels_that_do_not_ascend() -> None:
    with pytest.raises(SpecError, match=r"\[R-3\] levels must ascend strictly, got 1.0 before 1.0 at 0"):
        ref.nearest_level([0.0], [1.0, 1.0])
    with pytest.raises(SpecError, match=r"\[R-3\] levels must hold at least one level"):
        ref.nearest_level([0.0], [])
    with pytest.raises(SpecError, match=r"\[R-3\] levels must have 1 dimensions, got shape \(1, 1\)"):
        ref.nearest_level([0.0], [[1.0]])
