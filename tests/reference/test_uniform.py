"""Chapter Q: grids."""

from __future__ import annotations

import itertools
import struct
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import lowbit.reference as ref
from lowbit.reference.errors import SpecError
from lowbit.reference.types import SCHEMES, ScaleDtype, Scheme
from lowbit.reference.uniform import SMALLEST, code_range, round_scale, spread

from .bounds import LAW, Array, near

dyadic = st.integers(-512, 512).map(lambda n: n / 16)
matrices = hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 8)), elements=dyadic)
schemes = st.sampled_from(SCHEMES)
bit_widths = st.integers(2, 8)


def codes_of(x: npt.ArrayLike, *, bits: int, scheme: Scheme = "asymmetric", **options: Any) -> Array:
    """Codes on the min-max grid."""
    s, z = ref.fit_grid(x, bits=bits, scheme=scheme, **options)
    return ref.quantize(x, s, z, bits=bits, scheme=scheme)


def fake(x: npt.ArrayLike, *, bits: int, scheme: Scheme = "asymmetric", **options: Any) -> Array:
    """Fake quantization: codes and back."""
    s, z = ref.fit_grid(x, bits=bits, scheme=scheme, **options)
    return ref.dequantize(ref.quantize(x, s, z, bits=bits, scheme=scheme), s, z)


# --- the schemes --------------------------------------------------------------------------------------------


def test_q1_codes_and_bits_of_every_scheme() -> None:
    assert [code_range(b, "asymmetric") for b in (1, 4, 8)] == [(0, 1), (0, 15), (0, 255)]
    assert [code_range(b, "symmetric") for b in (2, 8)] == [(-2, 1), (-128, 127)]
    for bits, scheme in ((0, "asymmetric"), (9, "asymmetric"), (1, "symmetric"), (1, "symmetric-full")):
        with pytest.raises(SpecError, match=r"\[Q-1\] bits of scheme"):
            ref.fit_grid([[1.0]], bits=bits, scheme=scheme)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"\[Q-1\] scheme must be one of 'asymmetric'"):
        ref.fit_grid([[1.0]], bits=4, scheme="sym")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="bits of scheme 'asymmetric' must be an integer, got True"):
        ref.fit_grid([[1.0]], bits=True)
    with pytest.raises(SpecError, match=r"bits of scheme 'asymmetric' must be an integer, got 4\.0"):
        ref.fit_grid([[1.0]], bits=4.0)  # type: ignore[arg-type]


def test_q2_the_symmetric_conventions_differ() -> None:
    x = [[-7.5, 3.0]]
    scale = {s: ref.fit_grid(x, bits=4, scheme=s).scale.item() for s in SCHEMES}
    assert scale["symmetric"] == 7.5 / 7  # |x| at code 7: 15 of 16 codes
    assert scale["symmetric-full"] == scale["symmetric-gptq"] == 1.0  # ±|x| at ±7.5: all 16, none hits |x|
    assert scale["asymmetric"] == 10.5 / 15
    codes = {s: codes_of(x, bits=4, scheme=s).tolist() for s in SCHEMES}
    assert codes["symmetric"] == [[-7, 3]]
    assert codes["symmetric-full"] == [[-8, 3]]


def test_q2_symmetric_gptq_saturates_a_row_without_negative_values() -> None:
    x = [[1.0, 2.0, 15.0]]
    assert fake(np.array(x), bits=4, scheme="symmetric-gptq").max() == 7.0  # published: the low end stays 0
    assert fake(np.array(x), bits=4, scheme="symmetric-full").max() == 14.0


def test_q2_symmetric_reaches_its_lowest_code_only_with_clipping() -> None:
    x = [[-8.0, 8.0]]
    assert codes_of(x, bits=4, scheme="symmetric").min() == -7
    s, z = ref.fit_grid(x, bits=4, scheme="symmetric", clip_ratio=0.875)
    assert s.item() == 1.0
    assert ref.quantize(x, s, z, bits=4, scheme="symmetric").tolist() == [[-8, 7]]


@pytest.mark.parametrize(("low", "zero"), [(-0.5, 0), (-1.5, 2), (-2.5, 2), (-3.5, 4)])
def test_q2_half_integer_zero_point_goes_to_even(low: float, zero: int) -> None:
    s, z = ref.fit_grid([[low, low + 15.0]], bits=4)
    assert (s.item(), z.item()) == (1.0, zero)


@LAW
@given(matrices, schemes, bit_widths)
def test_q2_grid_laws(x: Array, scheme: Scheme, bits: int) -> None:
    s, z = ref.fit_grid(x, bits=bits, scheme=scheme)
    first, last = code_range(bits, scheme)
    assert (s > 0).all()
    assert z.dtype == np.int32
    assert ((z >= first) & (z <= last)).all()  # 0 is a code
    assert ref.dequantize(ref.quantize(np.zeros_like(x), s, z, bits=bits, scheme=scheme), s, z).any() == 0
    if scheme in ("asymmetric", "symmetric"):  # the others clip: full by half a step, gptq by half the range
        assert (np.abs(fake(x, bits=bits, scheme=scheme) - x) <= s * (0.5 + (scheme == "asymmetric") / 2)).all()
    if scheme == "symmetric":
        np.testing.assert_array_equal(fake(-x, bits=bits, scheme=scheme), -fake(x, bits=bits, scheme=scheme))
    np.testing.assert_array_equal(
        fake(4 * x, bits=bits, scheme=scheme)[x.any(axis=1)], 4 * fake(x, bits=bits, scheme=scheme)[x.any(axis=1)]
    )


@LAW
@given(matrices, schemes, bit_widths)
def test_q3_codes_come_back(x: Array, scheme: Scheme, bits: int) -> None:
    s, z = ref.fit_grid(x, bits=bits, scheme=scheme)
    codes = ref.quantize(x, s, z, bits=bits, scheme=scheme)
    np.testing.assert_array_equal(ref.quantize(ref.dequantize(codes, s, z), s, z, bits=bits, scheme=scheme), codes)


def test_q2_clip_ratio_scales_the_range_and_floor_comes_before_it() -> None:
    s, z = ref.fit_grid([[-4.0, 11.0]], bits=4, clip_ratio=0.5)
    assert (s.item(), z.item()) == (0.5, 4)
    floor = ref.fit_grid([[0.0, 1e-9]], bits=4, scheme="symmetric", range_floor=7.0, clip_ratio=0.5)
    assert floor.scale.item() == 0.5
    assert ref.fit_grid([[0.0, 15.0]], bits=4, range_floor=100.0).scale.item() == 1.0  # nothing for asymmetric
    for bad in (0.0, 1.5, float("nan")):
        with pytest.raises(SpecError, match=r"\[Q-2\] clip_ratio must be above 0.0 and at most 1.0"):
            ref.fit_grid([[1.0]], bits=4, clip_ratio=bad)
    with pytest.raises(SpecError, match=r"\[Q-2\] range_floor must be at least 0.0"):
        ref.fit_grid([[1.0]], bits=4, range_floor=-1.0)
    with pytest.raises(SpecError, match=r"\[Q-2\] clip_ratio must be a number, got 'half'"):
        ref.fit_grid([[1.0]], bits=4, clip_ratio="half")  # type: ignore[arg-type]


def test_q1_granularities() -> None:
    x = np.arange(24.0).reshape(2, 12) - 5
    shapes = {g: ref.fit_grid(x, bits=4, granularity=g).scale.shape for g in ("tensor", "row", "token")}  # type: ignore[arg-type]
    assert shapes == {"tensor": (1, 1), "row": (2, 1), "token": (2, 1)}
    s, z = ref.fit_grid(x, bits=4, granularity="group", group_size=4)
    assert s.shape == z.shape == (2, 3)
    as_rows = ref.fit_grid(x.reshape(6, 4), bits=4)
    np.testing.assert_array_equal(s.reshape(6, 1), as_rows.scale)
    np.testing.assert_array_equal(ref.quantize(x, s, z, bits=4).reshape(6, 4), codes_of(x.reshape(6, 4), bits=4))
    cube = x.reshape(2, 3, 4)
    assert ref.fit_grid(cube, bits=4, granularity="token").scale.shape == (2, 3, 1)
    assert ref.fit_grid(cube, bits=4, granularity="group", group_size=2).scale.shape == (2, 3, 2)
    assert ref.fit_grid(cube, bits=4, granularity="tensor").scale.shape == (1, 1, 1)
    assert ref.fit_grid(3.0, bits=4, granularity="tensor").scale.shape == ()


def test_q2_refusals_of_granularity() -> None:
    with pytest.raises(SpecError, match=r"\[Q-2\] group size 5 does not divide axis length 12"):
        ref.fit_grid(np.ones((2, 12)), bits=4, granularity="group", group_size=5)
    with pytest.raises(SpecError, match=r"\[Q-2\] group_size 4 does not go with granularity 'row'"):
        ref.fit_grid(np.ones((2, 12)), bits=4, group_size=4)
    with pytest.raises(SpecError, match=r"\[Q-2\] group_size None does not go with granularity 'group'"):
        ref.fit_grid(np.ones((2, 12)), bits=4, granularity="group")
    with pytest.raises(SpecError, match=r"\[Q-2\] x of shape \(2, 3, 4\) has no 'row'"):
        ref.fit_grid(np.ones((2, 3, 4)), bits=4)
    with pytest.raises(SpecError, match=r"\[Q-2\] x of shape \(\) has no 'token'"):
        ref.fit_grid(1.0, bits=4, granularity="token")


# --- degenerate groups -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
def test_q8_all_zero_asymmetric_group_has_the_range_of_one(bits: int) -> None:
    n = 2**bits - 1
    s, z = ref.fit_grid(np.zeros((1, 3)), bits=bits, clip_ratio=0.5)  # the default range is not clipped
    assert s.item() == 2 / n
    assert z.item() == round(Fraction(n, 2))
    assert not fake(np.zeros((1, 3)), bits=bits).any()


def test_q8_all_zero_symmetric_groups() -> None:
    scale = {s: ref.fit_grid(np.zeros((1, 3)), bits=4, scheme=s).scale.item() for s in SCHEMES[1:]}
    assert scale == {"symmetric": 1.0, "symmetric-full": 2 / 15, "symmetric-gptq": 2 / 15}
    floored = {s: ref.fit_grid(np.zeros((1, 3)), bits=4, scheme=s, range_floor=1.0).scale.item() for s in SCHEMES[1:]}
    assert floored == {"symmetric": 1 / 7, "symmetric-full": 2 / 15, "symmetric-gptq": 1 / 15}


def test_q8_constant_group_without_zero_in_the_range_is_a_number() -> None:
    """The published groupwise activation quantizer has scale 0 and answers NaN."""
    for value in (2.5, -2.5):
        x = np.full((1, 4), value)
        np.testing.assert_array_equal(fake(x, bits=4, include_zero=False), fake(x, bits=4))
        near(fake(x, bits=4, include_zero=False), x, roundings=2)
    assert not fake(np.zeros((1, 4)), bits=4, include_zero=False).any()


def test_q2_without_zero_in_the_range_the_zero_point_leaves_the_codes() -> None:
    s, z = ref.fit_grid([[10.0, 25.0]], bits=4, include_zero=False)
    assert (s.item(), z.item()) == (1.0, -10)
    assert ref.quantize([[10.0, 25.0]], s, z, bits=4).tolist() == [[0, 15]]


def test_q8_a_group_so_narrow_that_z_leaves_int32_includes_zero() -> None:
    x = np.array([[1.0, 1.0 + 2.0**-40]])
    s, z = ref.fit_grid(x, bits=8, include_zero=False)
    assert z.item() == 0
    assert s.item() == x.max() / 255


def test_q8_no_scale_is_below_the_smallest_normal_float32() -> None:
    for scheme in SCHEMES:
        for include in (True, False):
            s, z = ref.fit_grid([[5e-324, 1e-323]], bits=4, scheme=scheme, include_zero=include)
            assert s.item() == SMALLEST
            assert z.item() == 0


def test_q2_a_scale_that_overflows_is_refused() -> None:
    with pytest.raises(SpecError, match=r"\[Q-2\] a scale of inf overflows float64"):
        ref.fit_grid([[-1.7e308, 1.7e308]], bits=4)
    for dtype in ("float32", "float16", "bfloat16"):
        with pytest.raises(SpecError, match=rf"\[Q-2\] a scale of 1e\+40 overflows {dtype}"):
            ref.fit_grid([[15e40]], bits=4, scale_dtype=dtype)  # type: ignore[arg-type]


# --- scale_dtype ------------------------------------------------------------------------------------------------------


def representable(dtype: ScaleDtype, start: float) -> list[float]:
    """Every value of the dtype in an interval of two binades from start, from its own bit patterns."""
    if dtype == "float16":
        first = int(np.array(start, np.float16).view(np.uint16))
        return [float(np.array(i, np.uint16).view(np.float16)) for i in range(first, first + 2049)]
    first = struct.unpack("<I", struct.pack("<f", start))[0] >> 16
    return [struct.unpack("<f", struct.pack("<I", i << 16))[0] for i in range(first, first + 257)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_q2_scale_dtype_rounds_to_nearest_even_once(dtype: ScaleDtype) -> None:
    levels = representable(dtype, 0.5)
    for i, (a, b) in enumerate(itertools.pairwise(levels)):
        middle = (a + b) / 2
        up = np.nextafter(middle, 2)  # one float64 ulp above a tie: through float32 it would be a tie
        got = round_scale(np.array([a, np.nextafter(middle, 0), middle, up]), dtype)
        assert got.tolist() == [a, a, a if i % 2 == 0 else b, b]


def test_q2_scale_dtype_lifts_a_small_scale_to_the_smallest_normal() -> None:
    got = {d: ref.fit_grid([[1e-300]], bits=4, scale_dtype=d).scale.item() for d in ("float32", "float16", "bfloat16")}  # type: ignore[arg-type]
    assert got == {"float32": 2.0**-126, "float16": 2.0**-14, "bfloat16": 2.0**-126}
    with pytest.raises(SpecError, match=r"\[Q-2\] scale_dtype must be one of None, 'float32'"):
        ref.fit_grid([[1.0]], bits=4, scale_dtype="float64")  # type: ignore[arg-type]


def test_q2_zero_point_comes_from_the_rounded_scale() -> None:
    found = False
    for low in np.linspace(-30.0, -1.0, 4000):
        x = [[low, 120.0]]
        s, z = ref.fit_grid(x, bits=8, scale_dtype="bfloat16")
        assert z.item() == round(Fraction(-float(low)) / Fraction(s.item()))
        found |= z.item() != ref.fit_grid(x, bits=8).zero_point.item()
    assert found


# --- Q-3, Q-4 ---------------------------------------------------------------------------------------------------------


def test_q3_divides_and_never_multiplies_by_a_reciprocal() -> None:
    differs = 0
    for s in range(3, 100, 2):
        n = np.arange(-8, 8)
        x = (n + 0.5) * s  # exact ties of x / s
        got = ref.quantize(x[None], [[float(s)]], [[0]], bits=5, scheme="symmetric")[0]
        assert got.tolist() == [round(Fraction(2 * int(i) + 1, 2)) for i in n]
        differs += int((np.rint(x * (1 / s)) != got).sum())
    assert differs > 0


def test_q3_scales_cover_consecutive_columns_and_broadcast_elsewhere() -> None:
    x = np.ones((2, 6))
    s = np.array([[1.0, 0.5, 0.25]])
    z = np.zeros((1, 3), int)
    assert ref.quantize(x, s, z, bits=4).tolist() == [[1, 1, 2, 2, 4, 4]] * 2
    assert spread(np.zeros((2, 0)), (2, 0), "Q-3").shape == (2, 0)
    assert spread(np.array(2.0), (), "Q-3").item() == 2.0


@pytest.mark.parametrize(
    ("x", "s", "z", "message"),
    [
        (np.ones((2, 6)), np.ones((2, 4)), np.zeros((2, 4), int), "4 scales do not divide axis length 6"),
        (np.ones((2, 6)), np.ones((2, 0)), np.zeros((2, 0), int), "0 scales do not divide axis length 6"),
        (np.ones((2, 6)), np.ones(6), np.zeros(6, int), r"scale of shape \(6,\) does not cover values of shape"),
        (np.ones((2, 6)), np.ones((3, 1)), np.zeros((3, 1), int), r"scale of shape \(3, 6\) does not cover"),
        (np.ones((2, 6)), np.ones((2, 1)), np.zeros((1, 1), int), r"zero_point of shape \(1, 1\) must have the shape"),
        (np.ones((2, 6)), np.zeros((2, 1)), np.zeros((2, 1), int), "scale must be above 0, got 0.0"),
        (np.ones((2, 6)), np.ones((2, 1)), np.zeros((2, 1)), "zero_point must hold integers, got dtype float64"),
    ],
)
def test_q3_refusals(x: Array, s: Array, z: Array, message: str) -> None:
    with pytest.raises(SpecError, match=rf"\[Q-3\] {message}"):
        ref.quantize(x, s, z, bits=4)


def test_q4_refuses_codes_that_are_not_integers() -> None:
    with pytest.raises(SpecError, match=r"\[Q-4\] codes must hold integers, got dtype float64"):
        ref.dequantize([[1.0]], [[1.0]], [[0]])


def test_q3_huge_quotients_saturate() -> None:
    assert ref.quantize([[1e308, -1e308]], [[SMALLEST]], [[0]], bits=4).tolist() == [[15, 0]]


# --- Q-5 --------------------------------------------------------------------------------------------------------------


@LAW
@given(matrices, schemes, bit_widths, st.sampled_from([1.0, 2.0, 2.4]))
def test_q5_finds_the_least_error_and_the_larger_ratio_among_equals(
    x: Array, scheme: Scheme, bits: int, norm: float
) -> None:
    got = ref.clip_search(x, bits=bits, scheme=scheme, norm=norm, grid=20)
    errors = []
    for i in range(16):
        s, z = ref.fit_grid(x, bits=bits, scheme=scheme, clip_ratio=1 - i / 20)
        y = ref.dequantize(ref.quantize(x, s, z, bits=bits, scheme=scheme), s, z)
        errors.append((np.abs(y - x) ** norm).sum(axis=1))
    best = np.argmin(errors, axis=0)  # the first, so the larger ratio
    np.testing.assert_array_equal(got.step[:, 0], best)
    for row, i in enumerate(best):
        s, z = ref.fit_grid(x[row : row + 1], bits=bits, scheme=scheme, clip_ratio=1 - int(i) / 20)
        assert (got.scale[row, 0], got.zero_point[row, 0]) == (s.item(), z.item())


def test_q5_recomputes_the_zero_point_for_every_ratio() -> None:
    x = np.array([[-1.0, *np.linspace(0.0, 0.02, 40), 6.0]])
    s, z, step = ref.clip_search(x, bits=2, norm=0.5)
    assert step.item() > 0
    p = 1 - step.item() / 100
    assert z.item() == round(Fraction(p) / Fraction(s.item()))


def test_q5_groups_and_single_ratio() -> None:
    x = np.random.default_rng(0).standard_normal((3, 8))
    got = ref.clip_search(x, bits=3, granularity="group", group_size=4)
    rows = ref.clip_search(x.reshape(6, 4), bits=3)
    assert all(np.array_equal(a.reshape(6, 1), b) for a, b in zip(got, rows, strict=True))
    one = ref.clip_search(x, bits=3, max_shrink=0.0)  # no ratio but 1 is left
    assert not one.step.any()
    np.testing.assert_array_equal(one.scale, ref.fit_grid(x, bits=3).scale)
    with pytest.raises(SpecError, match=r"\[Q-5\] grid must be at least 1, got 0"):
        ref.clip_search(x, bits=3, grid=0)
    with pytest.raises(SpecError, match=r"\[Q-5\] norm must be above 0.0, got 0"):
        ref.clip_search(x, bits=3, norm=0)


def test_q2c_a_zero_point_is_a_code_of_its_width() -> None:
    """A scale rounded down asks for 2^bits, and 0 would come back as minus one step."""
    x = -np.abs(np.random.default_rng(0).standard_normal((400, 5)))
    x[:, 0] = 0.0
    scale, zero = ref.fit_grid(x, bits=8, scale_dtype="bfloat16")
    assert (np.rint(-x.min(axis=1, keepdims=True) / scale) > 255).any()
    assert zero.max() == 255
    assert not ref.dequantize(ref.quantize(x, scale, zero, bits=8), scale, zero)[:, 0].any()
