"""Chapter L: laws of look-up tables, by exact cases, by brute force and over all INT8 codes."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

import lowbit.reference as ref
from lowbit.conformance import compare
from lowbit.conformance.suite.test_lut import knots
from lowbit.reference import lut
from lowbit.reference.errors import SpecError
from lowbit.reference.types import TABLE_FUNCTIONS, IntegerTable, Table

from .bounds import Array

NAMES = pytest.mark.parametrize("name", TABLE_FUNCTIONS)
KNOTS = {  # inner breakpoints of a sensible table of 8 pieces, exact in binary
    "gelu": (-3, -2.25, -1, -0.5, 0, 0.625, 2.75),
    "hswish": (-3, -2, -1.125, -0.125, 0.875, 1.875, 3),
    "silu": (-6, -3.5, -1.5, -0.5, 0.5, 1.5, 3.5),
    "exp": (-5.25, -3.5, -2.375, -2, -1.25, -0.625, -0.25),
    "reciprocal": (0.625, 0.78125, 0.96875, 1.1875, 1.375, 1.8125, 2.375),
    "rsqrt": (0.34375, 0.5, 0.65625, 0.875, 1.1875, 1.65625, 2.875),
    "sigmoid": (-5, -3, -1.5, 0, 1.5, 3, 5),
    "tanh": (-2.5, -1.5, -0.75, 0, 0.75, 1.5, 2.5),
}


def table(name: str) -> Table[Array]:
    return lut.chord_table(name, KNOTS[name])


def integers(name: str, bits: int) -> IntegerTable[Array]:
    return ref.integer_table(table(name), scale_bits=bits)


# -- the functions -----------------------------------------------------------------------------------------------------


@NAMES
def test_derivatives_are_those_of_the_functions(name: str) -> None:
    """Central differences in float64 inside the domain, corners left out."""
    f = lut.FUNCTIONS[name]
    x = np.linspace(f.domain[0] + 0.01, f.domain[1] - 0.01, 400)
    x = x[np.abs(np.abs(x) - 3) > 0.01]
    h = 2.0**-17
    found = (f.value(x + h) - f.value(x - h)) / (2 * h)
    assert np.abs(found - f.derivative(x)).max() < 1e-7  # h² f‴ / 6 plus u / h


def test_gelu_is_the_one_with_erf_and_hswish_has_its_corners() -> None:
    gelu = lut.FUNCTIONS["gelu"].value
    assert gelu(np.array([1.0]))[0] == pytest.approx(0.5 * (1 + math.erf(math.sqrt(0.5))), rel=1e-15)
    assert lut.FUNCTIONS["hswish"].derivative(np.array([-3.0, 3.0])).tolist() == [0, 1]


@NAMES
def test_the_setting_of_every_function_is_consistent(name: str) -> None:
    f = lut.FUNCTIONS[name]
    assert f.ends[0] <= f.domain[0]
    assert f.domain[1] <= f.ends[1]
    assert f.domain[0] <= f.knots[0] < f.knots[1] <= f.domain[1]
    assert np.isfinite(f.value(np.array(f.ends, float))).all()


# -- tables ------------------------------------------------------------------------------------------------------------


@NAMES
def test_l1_chords_meet_the_function_from_both_sides(name: str) -> None:
    f, p = lut.FUNCTIONS[name], np.array(KNOTS[name], float)
    knots = np.concatenate([[f.ends[0]], p, [f.ends[1]]])
    exact = ref.fit_chords(knots, f.value(knots))
    for tie in ("left", "right"):
        assert np.abs(ref.evaluate_table(p, exact, tie=tie) - f.value(p)).max() < 1e-11


@given(knots=knots(), a=st.integers(-9, 9), b=st.integers(-9, 9))
def test_l1_affine_functions_are_reproduced(knots: Array, a: int, b: int) -> None:
    """By any breakpoints; equal knots leave a dead piece, which only its own breakpoint could see."""
    distinct = np.unique(knots)
    if len(distinct) < 2:
        return
    found = ref.fit_chords(distinct, a * distinct / 8 + b)
    size = 1 + np.abs(distinct).max() + abs(b) / np.diff(distinct).min()
    assert np.abs(found.slopes - a / 8).max() <= compare.gamma(40, 2.0**-53) * size * (1 + abs(a))


@given(
    inner=st.lists(st.integers(-40, 40), max_size=8),
    a=st.integers(-99, 99),
    b=st.integers(-99, 99),
    third=st.booleans(),
)
def test_l1_l4_straight_lines_are_reproduced_up_to_rounding(inner: list[int], a: int, b: int, third: bool) -> None:
    """Whatever the breakpoints, equal ones too: within 1/128 for the slope and for the intercept, and the chords' own
    rounding, which grows with the ratio of the far sentinels to the narrowest piece."""
    p = np.sort(np.array(inner, float)) / (6 if third else 8)
    knots = np.concatenate([[-100.0], p, [100.0]])
    line = (a / 7, b / 7)
    x = np.concatenate([np.linspace(-20, 20, 81), p])
    exact = ref.fit_chords(knots, line[0] * knots + line[1])
    wide = compare.gamma(2**12, 2.0**-53) * (100 * abs(line[0]) + abs(line[1]))
    for tie in ("left", "right"):
        assert np.abs(ref.evaluate_table(x, exact, tie=tie) - (line[0] * x + line[1])).max() <= wide
        rounded = ref.evaluate_table(x, ref.round_table(exact), tie=tie)
        assert (np.abs(rounded - (line[0] * x + line[1])) <= wide + (np.abs(x) + 1) / 128).all()


@pytest.mark.parametrize("h", [0.25, 1.0])
def test_l1_l3_errors_of_a_parabola(h: float) -> None:
    """Chords leave h⁴ f″² / 120 on a piece of length h, least-squares lines h⁴ f″² / 720: six times less."""
    n = 4000
    knots = np.arange(5) * h
    x = (np.arange(4 * n) + 0.5) * h / n
    for table, factor in ((ref.fit_chords(knots, knots**2), 120), (ref.fit_segments(x, x**2, knots[1:-1]), 720)):
        mse = np.mean((ref.evaluate_table(x, table) - x**2) ** 2)
        assert mse == pytest.approx(h**4 * 4 / factor, rel=4 / n)  # sums at midpoints


@NAMES
def test_l4_fixed_point_is_within_half_a_unit_and_not_clipped(name: str) -> None:
    f, p = lut.FUNCTIONS[name], np.array(KNOTS[name], float)
    knots = np.concatenate([[f.ends[0]], p, [f.ends[1]]])
    exact, rounded = ref.fit_chords(knots, f.value(knots)), table(name)
    for a, b in ((exact.slopes, rounded.slopes), (exact.intercepts, rounded.intercepts)):
        assert np.array_equal(b * 64, np.rint(b * 64))
        assert np.abs(a - b).max() <= 1 / 128
    assert rounded.saturated == 0


def test_l5_tables_of_one_over_x_do_not_fit_eight_bits() -> None:
    """The storage that the paper counts with (a sign, an integer bit, six fraction bits) holds GELU, not 1/x."""
    saturated = {name: ref.round_table(table(name), bits=8).saturated for name in TABLE_FUNCTIONS}
    assert {name for name, count in saturated.items() if count} == {"reciprocal", "rsqrt"}
    assert ref.round_table(table("reciprocal"), fraction_bits=5, bits=8).saturated == 0


def test_l4_the_intercept_comes_from_the_unrounded_slope() -> None:
    line = ref.fit_chords([2.0, 3.0], [0.0, 1 / 128 + 2.0**-20])
    rounded = ref.round_table(line)
    assert (rounded.slopes * 64).tolist() == [1]
    assert (rounded.intercepts * 64).tolist() == [-1]  # −2k = −0.0156…, not −2/64


@pytest.mark.parametrize("bits", range(7))
@NAMES
def test_l6_breakpoints_move_by_half_a_code_at_most(name: str, bits: int) -> None:
    found, p = integers(name, bits), np.array(KNOTS[name], float)
    assert np.abs(found.breakpoints * 2.0**-bits - p).max() <= 2.0 ** -(bits + 1)
    assert np.array_equal(found.slopes, integers(name, 0).slopes)
    assert np.array_equal(found.intercepts, integers(name, 0).intercepts << bits)


def test_l3_least_squares_beats_chords_and_no_line_beats_it() -> None:
    f, p = lut.FUNCTIONS["gelu"], np.array(KNOTS["gelu"], float)
    x = np.arange(-4, 4, 0.01)
    y = f.value(x)
    best = ref.fit_segments(x, y, p)
    knots = np.concatenate([[-4.0], p, [4.0]])
    error = np.mean((ref.evaluate_table(x, best, tie="right") - y) ** 2)
    chords = np.mean((ref.evaluate_table(x, ref.fit_chords(knots, f.value(knots)), tie="right") - y) ** 2)
    assert error < chords / 2
    piece = np.searchsorted(p, x, side="right")
    for i in range(8):
        at = piece == i
        want = np.linalg.lstsq(np.stack([x[at], np.ones(at.sum())], 1), y[at], rcond=None)[0]
        assert np.allclose([best.slopes[i], best.intercepts[i]], want, rtol=1e-9, atol=1e-12)


@NAMES
def test_l1_the_order_of_breakpoints_does_not_matter(name: str) -> None:
    mixed = lut.chord_table(name, np.random.default_rng(1).permutation(KNOTS[name]))
    for a, b in zip(mixed, table(name), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("name", ["gelu", "hswish", "silu"])
def test_l1_far_sentinels_make_asymptotes(name: str) -> None:
    """Beyond the domain the function goes on as 0 and as x, to the resolution of the table."""
    x = np.array([-1000.0, -100.0, 100.0, 1000.0])
    assert np.abs(ref.evaluate_table(x, table(name)) - np.maximum(x, 0)).max() < 0.2
    assert table(name).slopes[[0, -1]].tolist() == [0, 1]


def test_silu_is_the_published_quotient_to_the_last_bit() -> None:
    """A table that is searched by another form of the same function is another one."""
    x = np.arange(-4, 4, 0.01)
    published = x / (1 + np.exp(-x))
    assert lut.FUNCTIONS["silu"].value(x).tobytes() == published.tobytes()
    assert (x * special.expit(x) != published).any()
    assert lut.FUNCTIONS["silu"].value(np.array([-1e4, 1e4])).tolist() == [0.0, 1e4]


def test_l1_exp_is_not_covered_below_its_sentinel() -> None:
    """The first chord keeps its slope: a steep one leaves exp far behind, so softmax clips codes first."""
    coarse = lut.chord_table("exp", [-1.0])
    assert ref.evaluate_table([-64.0], coarse)[0] < -0.5
    assert coarse.slopes[0] > 0


def test_l2_a_breakpoint_on_a_sentinel_is_a_dead_piece() -> None:
    """RSQRT's breakpoints may lie at 0.25, where its first chord begins."""
    found = lut.chord_table("rsqrt", [0.25, 0.5, 1.0])
    assert (found.slopes[0], found.intercepts[0]) == (0, 0)
    assert np.array_equal(found.slopes[1:], lut.chord_table("rsqrt", [0.5, 1.0]).slopes)


@pytest.mark.parametrize("tie", ["left", "right"])
@NAMES
def test_l2_equal_breakpoints_and_minus_zero_do_no_harm(name: str, tie: Any) -> None:
    """As shipped tables have them: the dead piece is never reached, whatever the code, and −0 is 0."""
    p, q = np.array(KNOTS[name], float), np.arange(-128, 128)
    once, twice = table(name), lut.chord_table(name, np.concatenate([p, p[2:5]]))
    for bits in (0, 3, 6):
        one, other = (ref.integer_table(t, scale_bits=bits) for t in (once, twice))
        assert len(other.slopes) == len(one.slopes) + 3
        assert np.array_equal(ref.evaluate_codes(q, one, tie=tie), ref.evaluate_codes(q, other, tie=tie))
    zero, minus = (Table(np.array([sign * 0.0]), np.array([1.0, 2.0]), np.array([0.5, -0.5])) for sign in (1, -1))
    for x in (0.0, -0.0):
        assert ref.evaluate_table(x, zero, tie=tie) == ref.evaluate_table(x, minus, tie=tie)
    for one, other in zip(ref.integer_table(zero, scale_bits=4), ref.integer_table(minus, scale_bits=4), strict=True):
        assert np.array_equal(one, other)


# -- evaluation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tie", ["left", "right"])
@NAMES
def test_l10_floats_and_integers_agree_at_every_code_and_scale(name: str, tie: Any) -> None:
    """All 256 codes at b = 0 … 6, and the float operator S (K q + B / S) of the authors, bit for bit."""
    q = np.arange(-128, 128)
    for bits in range(7):
        whole = integers(name, bits)
        a = ref.evaluate_codes(q, whole, tie=tie)
        real = Table(whole.breakpoints * 2.0**-bits, table(name).slopes, table(name).intercepts)
        assert np.array_equal(ref.evaluate_table(q * 2.0**-bits, real, tie=tie), a * 2.0 ** -(6 + bits))
        i = np.searchsorted(whole.breakpoints, q, side=tie)
        scale = np.float32(2.0**-bits)
        y = (
            real.slopes.astype(np.float32)[i] * q.astype(np.float32) + real.intercepts.astype(np.float32)[i] / scale
        ) * scale
        assert np.array_equal(y.astype(np.float64), a * 2.0 ** -(6 + bits))


def test_l8_the_two_rules_differ_at_breakpoints_and_nowhere_else() -> None:
    q, whole = np.arange(-128, 128), integers("gelu", 3)
    left, right = (ref.evaluate_codes(q, whole, tie=tie) for tie in ("left", "right"))
    differs = np.flatnonzero(left != right) - 128
    assert len(differs)
    assert set(differs.tolist()) <= set(whole.breakpoints.tolist())


@given(a=st.integers(-(2**31) + 1, 2**31 - 1), shift=st.integers(0, 31))
def test_l12_rounding_shift_against_fractions(a: int, shift: int) -> None:
    assert ref.requantize_codes([a], shift=shift, low=-(2**31), high=2**31 - 1).tolist() == [
        round(Fraction(a, 2**shift))
    ]


@given(a=st.integers(-(2**61), 2**61), shift=st.integers(0, 90))
def test_long_shifts_round_to_nothing(a: int, shift: int) -> None:
    assert int(lut.shift_round(np.array(a), shift)) == round(Fraction(a, 2**shift))


def test_l11_l12_a_function_of_codes_is_256_entries() -> None:
    """HSWISH from INT8 to INT8, against the exact function rounded to the output scale."""
    entries = lut.activation_entries(integers("hswish", 4), out_bits=4)
    q = np.arange(-128, 128)
    exact = np.clip(np.rint(lut.FUNCTIONS["hswish"].value(q / 16) * 16), -128, 127)
    assert np.abs(ref.lookup_codes(q.astype(np.int8), entries) - exact).max() <= 1
    with pytest.raises(SpecError, match="shift must be"):
        lut.activation_entries(integers("hswish", 4), out_bits=11)


# -- ranges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, step, low", [("reciprocal", 3, 0.5), ("rsqrt", 4, 0.25)])
def test_l14_the_relative_error_is_that_of_the_base_interval_everywhere(name: Any, step: int, low: float) -> None:
    f = lut.FUNCTIONS[name]
    base = np.linspace(low, 4, 3000, endpoint=False)
    worst = np.abs(ref.evaluate_table(base, table(name)) / f.value(base) - 1).max()
    for k in range(-6, 7):
        x = base * 2.0 ** (step * k)
        relative = np.abs(ref.evaluate_ranges(x, table(name), function=name) / f.value(x) - 1).max()
        assert relative <= worst * (1 + 1e-9)
    assert worst < 0.07


def test_l15_an_odd_exponent_is_never_used() -> None:
    """√2 would enter: at 2, half way between two ranges of an odd step, the table of 2 itself is read."""
    found = ref.evaluate_ranges([2.0, 0.125, 32.0], table("rsqrt"), function="rsqrt")
    at_two = ref.evaluate_table([2.0], table("rsqrt"))[0]
    assert found.tolist() == [at_two, 4 * at_two, at_two / 4]


# -- compositions ------------------------------------------------------------------------------------------------------


def exact_softmax(q: Array, bits: int) -> Array:
    e = np.exp((q - q.max(axis=-1, keepdims=True)) * 2.0**-bits)
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def by_hand_softmax(q: list[int], bits: int, out_bits: int) -> list[int]:
    """The same formulas in Python integers and fractions."""
    exp, div = integers("exp", bits), integers("reciprocal", 5)

    def line(t: IntegerTable[Array], v: int) -> int:
        i = sum(int(p) < v for p in t.breakpoints)
        return int(t.slopes[i]) * v + int(t.intercepts[i])

    e = [max(line(exp, max(v - max(q), -16 * 2**bits)), 0) for v in q]
    k = 0
    while Fraction(sum(e), 2 ** (6 + bits)) >= 4 * 8**k:
        k += 1
    z = round(Fraction(sum(e), 2 ** (6 + bits)) * 32 / 8**k)
    r = line(div, z)
    scale = Fraction(2**out_bits, 2 ** (6 + bits) * 2**11 * 8**k)
    return [min(max(round(v * r * scale), 0), 2**out_bits - 1) for v in e]


@given(q=st.lists(st.integers(-128, 127), min_size=1, max_size=12), bits=st.integers(0, 6), o=st.sampled_from([7, 8]))
def test_l16_softmax_by_exact_arithmetic(q: list[int], bits: int, o: int) -> None:
    found = ref.table_softmax(q, integers("exp", bits), integers("reciprocal", 5), out_bits=o)
    assert found.tolist() == by_hand_softmax(q, bits, o)


@pytest.mark.parametrize("n", [2, 16, 64])
def test_l16_softmax_is_near_the_exact_one(n: int) -> None:
    q = np.random.default_rng(n).integers(-60, 60, (200, n))
    found = ref.table_softmax(q, integers("exp", 4), integers("reciprocal", 5)) / 128
    assert np.abs(found - exact_softmax(q, 4)).max() < 0.06
    assert np.abs(found.sum(axis=-1) - 1).max() < 0.3


def test_l16_tables_of_nothing_give_zeros() -> None:
    none = IntegerTable(np.zeros(0, int), np.array([0]), np.array([-5]), 2, 3)
    assert ref.table_softmax([1, 2, 3], none, none).tolist() == [0, 0, 0]


def test_l16_a_clip_keeps_far_logits_out() -> None:
    """Below −16 the first chord of exp would go on: a steep one would turn the weakest logit into the strongest."""
    steep = integers("exp", 0)._replace(slopes=integers("exp", 0).slopes - 64)
    far = ref.table_softmax([0, -300], steep, integers("reciprocal", 5))
    assert far.tolist() == ref.table_softmax([0, -16], steep, integers("reciprocal", 5)).tolist()


@given(q=st.lists(st.integers(-128, 127), min_size=2, max_size=16))
def test_l17_layer_norm_by_exact_arithmetic(q: list[int]) -> None:
    t, n = integers("rsqrt", 5), len(q)
    found = ref.table_layer_norm(q, t).tolist()
    d = [n * v - sum(q) for v in q]
    v = Fraction(sum(x * x for x in d), n)
    if not v:
        assert found == [0] * n
        return
    k = 0
    while v >= 4 * 16**k:
        k += 1
    z = round(v * 32 / 16**k)
    i = sum(int(p) < z for p in t.breakpoints)
    r = int(t.slopes[i]) * z + int(t.intercepts[i])
    assert found == [min(max(round(x * r * Fraction(32, 2**11 * 4**k)), -128), 127) for x in d]


def test_l17_layer_norm_is_near_the_exact_one_and_knows_no_scale() -> None:
    q = np.random.default_rng(0).integers(-128, 128, (100, 64))
    found = ref.table_layer_norm(q, integers("rsqrt", 5)) / 32
    exact = (q - q.mean(axis=-1, keepdims=True)) / q.std(axis=-1, keepdims=True)
    assert np.abs(found - exact).max() < 0.07
    assert np.abs(ref.table_layer_norm(16 * q, integers("rsqrt", 5)) / 32 - found).max() == 0  # an even exponent


def test_l17_the_rounded_mean_of_i_bert_is_a_bias_here_avoided() -> None:
    """Codes 0, 0, 1: the mean 1/3 rounds to 0, and the normalized codes would not sum to 0."""
    found = ref.table_layer_norm([0, 0, 1], integers("rsqrt", 5))
    assert abs(int(found.sum())) <= 1


# -- verification ------------------------------------------------------------------------------------------------------


@NAMES
def test_l18_exhaustive_report(name: Any) -> None:
    """Every scale of the function; largest errors of sensible tables are a few hundredths."""
    report = lut.table_report(name, table(name))
    assert tuple(report) == lut.FUNCTIONS[name].scale_bits
    assert all(0 <= r.mse <= r.max_error**2 for r in report.values())
    assert min(r.max_error for r in report.values()) < 0.1


def test_l18_no_codes_are_no_errors() -> None:
    assert ref.verify_table(integers("gelu", 3), [], low=7) == (0.0, 0.0, 7, 0, 0)


def test_l19_turns_and_signs_of_a_bad_table() -> None:
    zigzag = IntegerTable(np.array([0]), np.array([1, -1]), np.array([0, 0]), 0, 0)
    found = ref.verify_table(zigzag, [-2.0, -1.0, 0.0, 1.0, 2.0], low=-2)
    assert (found.turns, found.signs, found.max_error, found.worst) == (2, 2, 4.0, 2)


# -- gradients ---------------------------------------------------------------------------------------------------------


@NAMES
def test_l13_gradients_are_central_differences_of_the_function(name: Any) -> None:
    f, s, h = lut.FUNCTIONS[name], 2.0**-5, 2.0**-20
    low, high = (round(end / s) for end in f.domain)
    q = np.linspace(low + 1, high - 1, 40).astype(int)
    q = q[np.abs(np.abs(q * s) - 3) > 0.1]
    g = np.cos(np.arange(len(q)))
    found = ref.table_gradient(g, q, scale=s, function=name)
    codes = g * (f.value(s * (q + h)) - f.value(s * (q - h))) / (2 * h)
    step = np.sum(g * (f.value((s + h * s) * q) - f.value((s - h * s) * q))) / (2 * h * s)
    assert np.allclose(found.codes, codes, atol=1e-8, rtol=0)
    assert np.allclose(found.scale, step, atol=1e-5, rtol=1e-7)


@NAMES
def test_l13_gradients_are_those_of_autograd(name: Any) -> None:
    """The functions written in torch, the scale a leaf; corners of hswish left out."""
    torch = pytest.importorskip("torch")
    functions: dict[str, Any] = {
        "gelu": torch.nn.functional.gelu,
        "hswish": torch.nn.functional.hardswish,
        "silu": torch.nn.functional.silu,
        "exp": torch.exp,
        "reciprocal": torch.reciprocal,
        "rsqrt": torch.rsqrt,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }
    q = np.arange(1, 128) if name in ("reciprocal", "rsqrt") else np.arange(-128, 1 if name == "exp" else 128)
    for scale in (2.0**-5, 0.3):
        q = q[np.abs(q * scale) != 3]
        g = np.sin(np.arange(len(q)))
        codes, s = torch.tensor(q.astype(float), requires_grad=True), torch.tensor(scale, dtype=torch.float64)
        s.requires_grad_()
        (functions[name](s * codes) * torch.tensor(g)).sum().backward()
        found = ref.table_gradient(g, q, scale=scale, function=name)
        size = np.abs(ref.table_gradient(np.ones(len(q)), q, scale=scale, function=name).codes) + scale
        assert (np.abs(found.codes - codes.grad.numpy()) <= compare.gamma(2**14, 2.0**-53) * size).all()
        total = float(np.sum(np.abs(g * q) * size)) / scale
        assert abs(float(found.scale) - float(s.grad)) <= compare.gamma(2**14, 2.0**-53) * total


# -- refusals ----------------------------------------------------------------------------------------------------------

ONE = IntegerTable(np.zeros(0, int), np.array([2]), np.array([1]), 0, 0)
LINE = Table(np.array([1.0]), np.array([0.25, 0.5]), np.array([0.0, -0.25]))
REFUSALS: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("fit_chords", ([1.0], [1.0]), {}, "L-1"),
    ("fit_chords", ([0.0, 2.0, 1.0, 3.0], [0.0] * 4), {}, "L-1"),
    ("fit_segments", ([1.0], [1.0, 2.0], []), {}, "L-3"),
    ("fit_segments", ([1.0], [1.0], [2.0, 1.0]), {}, "L-3"),
    ("round_table", (LINE._replace(slopes=[1.0]),), {}, "L-4"),
    ("round_table", (LINE,), {"bits": 33}, "L-5"),
    ("integer_table", (LINE,), {"scale_bits": 1, "fraction_bits": 1}, "L-6"),
    ("integer_table", (LINE,), {"scale_bits": 24, "fraction_bits": 24}, "L-6"),
    ("evaluate_table", ([1.0], LINE), {"tie": "up"}, "L-8"),
    ("evaluate_codes", ([1], ONE._replace(slopes=[1, 2])), {}, "L-9"),
    ("evaluate_codes", ([2**30], ONE), {}, "L-9"),
    ("lookup_codes", ([3], [1, 2]), {"low": 0}, "L-11"),
    ("lookup_codes", ([0], [[1, 2]]), {"low": 0}, "L-11"),
    ("requantize_codes", ([2**31],), {"shift": 1}, "L-12"),
    ("table_gradient", ([1.0], [1, 2]), {"scale": 1.0, "function": "gelu"}, "L-13"),
    ("table_gradient", ([1.0], [0]), {"scale": 1.0, "function": "rsqrt"}, "L-13"),
    ("evaluate_ranges", ([0.0], LINE), {"function": "rsqrt"}, "L-14"),
    ("table_softmax", (3, ONE, ONE), {}, "L-16"),
    ("table_softmax", ([2**25], ONE, ONE), {}, "L-16"),
    ("table_softmax", ([0], ONE._replace(slopes=[2**30]), ONE), {}, "L-16"),
    ("table_layer_norm", (3, ONE), {}, "L-17"),
    ("table_layer_norm", ([2**29, 0], ONE), {}, "L-17"),
    ("verify_table", (ONE, [[1.0]]), {}, "L-18"),
]


@pytest.mark.parametrize("op, arrays, options, clause", REFUSALS)
def test_refusals(op: str, arrays: tuple[Any, ...], options: dict[str, Any], clause: str) -> None:
    with pytest.raises(SpecError) as refused:
        getattr(ref, op)(*arrays, **options)
    assert refused.value.clause == clause


def test_helpers_refuse_too() -> None:
    with pytest.raises(SpecError, match="relu"):
        lut.chord_table("relu", [0.0])
    with pytest.raises(SpecError, match="relu"):
        lut.table_report("relu", LINE)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="scale"):
        lut.published_scale_bits(0.0)
