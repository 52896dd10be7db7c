"""Chapter N: levels, blocks, double quantization, the packed product, LoftQ. Laws, exact cases and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

import lowbit.reference as ref
from lowbit.reference.errors import SpecError
from lowbit.reference.types import DoubleScale, Iterate

from .bounds import LAW, Array, factorisation, near

NF4 = ref.normal_float(bits=4)
seeds = st.integers(0, 10**6)


def weight(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


# -- N-1: levels -------------------------------------------------------------------------------------------------------


def test_n1_published_tables() -> None:
    """NF4 of QLoRA to the seven digits it is printed with; NF2 and NF3 of LoftQ."""
    nf4 = [-1, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0]
    nf4 += [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1]
    nf3 = [-1, -0.4786, -0.2171, 0, 0.1609, 0.3379, 0.5626, 1]
    for bits, table, digits in ((4, nf4, 7), (3, nf3, 4), (2, [-1, 0, 0.3379, 1], 4)):
        assert np.abs(ref.normal_float(bits=bits) - table).max() < 1.1 * 10.0**-digits


@pytest.mark.parametrize("bits", range(2, 9))
def test_n1_levels_are_ordered_hold_zero_and_end_at_one(bits: int) -> None:
    levels = ref.normal_float(bits=bits)
    half = 2 ** (bits - 1)
    assert levels.shape == (2 * half,)
    assert (np.diff(levels) > 0).all()
    assert (levels[0], levels[half - 1], levels[-1]) == (-1, 0, 1)
    assert (levels > 0).sum() == half
    # probabilities of neighbours above 0 are equally far apart
    steps = np.diff(norm.cdf(levels[half - 1 :] * norm.ppf(0.9677083)))
    near(steps, np.full(half, (0.9677083 - 0.5) / half), roundings=20, magnitude=1.0)


def test_n1_the_constant_is_that_of_sixteen_levels() -> None:
    """½ ((1 − 1/32) + (1 − 1/30)) is 0.96770833…; the published one stops after seven digits."""
    exact = ((1 - 1 / 32) + (1 - 1 / 30)) / 2
    assert 0 < exact - 0.9677083 < 4e-8
    assert np.abs(ref.normal_float(bits=4, offset=exact) - NF4).max() < 1e-6


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"bits": 1}, "bits must be in 2..8, got 1"),
        ({"bits": 9}, "bits must be in 2..8, got 9"),
        ({"bits": 4, "offset": 0.5}, "offset must be above 0.5"),
        ({"bits": 4, "offset": 1.0}, "offset must be below 1"),
        ({"bits": 4, "offset": float("nan")}, "offset must be above 0.5"),
    ],
)
def test_n1_refusals(options: dict[str, float], why: str) -> None:
    with pytest.raises(SpecError, match=why):
        ref.normal_float(**options)  # type: ignore[arg-type]


def test_n1a_dynamic_levels() -> None:
    """Six decades and a seventh with one level each side; 127 of either sign, 0 and 1."""
    levels = ref.dynamic_float(bits=8)
    assert levels.shape == (256,)
    assert (np.diff(levels) > 0).all()
    assert ((levels < 0).sum(), levels[127], levels[-1]) == (127, 0, 1)
    near(levels[:127], -levels[128:255][::-1], roundings=0)
    near(levels[128], 0.55e-6, roundings=4)
    near(levels[-2], 1 - 0.9 / 128, roundings=4)
    for e in range(7):
        assert ((levels > 10.0 ** (e - 7)) & (levels < 10.0 ** (e - 6))).sum() == 2**e
    with pytest.raises(SpecError, match=r"\[N-1a\] bits must be in 3..8, got 2"):
        ref.dynamic_float(bits=2)


# -- N-2 … N-4: blocks -------------------------------------------------------------------------------------------------


@LAW
@given(seeds, st.tuples(st.integers(1, 6), st.integers(1, 9)), st.integers(1, 20))
def test_n2_n4_by_brute_force(seed: int, shape: tuple[int, int], block_size: int) -> None:
    """Scale: the maximum over a Python loop. Code: the first of the smallest distances. Value: the product."""
    x = weight(seed, *shape)
    levels = np.unique(np.random.default_rng(seed).uniform(-1, 1, 5))
    scale = ref.block_scale(x, block_size=block_size)
    codes = ref.quantize_blocks(x, scale, levels, block_size=block_size)
    values = ref.dequantize_blocks(codes, scale, levels, block_size=block_size)
    for i, v in enumerate(x.ravel()):
        s = max(abs(u) for u in x.ravel()[i // block_size * block_size :][:block_size])
        assert scale[i // block_size] == s
        distances = [abs(v / s - l) for l in levels]
        assert codes.ravel()[i] == distances.index(min(distances))
        assert values.ravel()[i] == s * levels[codes.ravel()[i]]


def test_n3_midpoints_go_down_and_the_ends_saturate() -> None:
    levels = np.array([-1.0, -0.5, 0.0, 0.25, 1.0])
    x = np.array([-9.0, -0.75, -0.7499999, -0.25, 0.125, 0.625, 0.6250001, 9.0])
    assert ref.quantize_blocks(x, [1.0], levels).tolist() == [0, 0, 1, 1, 2, 3, 4, 4]
    assert ref.quantize_blocks(3 * x, [3.0], levels).tolist() == [0, 0, 1, 1, 2, 3, 4, 4]


def test_n3_a_reciprocal_is_another_rule() -> None:
    """x · (1/s) lands above the midpoint where x / s is on it."""
    levels, missed = np.arange(-16.0, 16.0), 0
    for scale in np.arange(3, 123, 2) / 64:
        middles = (levels[:-1] + 0.5) * scale
        assert ref.quantize_blocks(middles, [scale], levels).tolist() == list(range(31))
        missed += ref.nearest_level(middles * (1 / scale), levels).tolist() != list(range(31))
    assert missed > 0


def test_n3b_zeros_stay_zeros_and_so_does_a_tiny_scale() -> None:
    """LoftQ divides by the maximum: 0 / 0. A subnormal scale makes a quotient overflow, which saturates."""
    for levels in (NF4, np.array([-1.0, 0.25, 1.0])):
        x = np.zeros((2, 5))
        x[1] = 1.0
        scale = ref.block_scale(x, block_size=5)
        codes = ref.quantize_blocks(x, scale, levels, block_size=5)
        assert (ref.dequantize_blocks(codes, scale, levels, block_size=5) == x).all()
    assert ref.quantize_blocks([1.0, -1.0], [5e-324], NF4).tolist() == [15, 0]


def test_n2a_a_block_goes_on_in_the_next_row() -> None:
    """Rows of 5, blocks of 3: the published CPU dequantization takes the first scale of a row for all of its start."""
    x = np.arange(10.0).reshape(2, 5)
    scale = ref.block_scale(x, block_size=3)
    assert scale.tolist() == [2.0, 5.0, 8.0, 9.0]
    assert ref.dequantize_blocks(np.ones((2, 5), int), scale, [0.0, 1.0], block_size=3).tolist() == [
        [2.0, 2.0, 2.0, 5.0, 5.0],
        [5.0, 8.0, 8.0, 8.0, 9.0],
    ]


@LAW
@given(seeds, st.integers(2, 8))
def test_n4_error_is_half_a_gap_times_the_scale(seed: int, bits: int) -> None:
    levels, x = ref.normal_float(bits=bits), weight(seed, 4, 32)
    scale = ref.block_scale(x, block_size=16)
    codes = ref.quantize_blocks(x, scale, levels, block_size=16)
    error = np.abs(ref.dequantize_blocks(codes, scale, levels, block_size=16) - x).reshape(-1, 16)
    half = np.diff(levels).max() / 2
    near(np.maximum(error, half * scale[:, None]), np.broadcast_to(half * scale[:, None], error.shape), roundings=4)


def test_n4_gaussian_error_falls_with_the_width() -> None:
    """Mean squared error of standard normal weights in blocks of 64; 4 bits is the 0.0085 that others measure too."""
    x = weight(0, 512, 512)
    errors = []
    for bits in (2, 3, 4, 5):
        levels = ref.normal_float(bits=bits)
        scale = ref.block_scale(x)
        codes = ref.quantize_blocks(x, scale, levels)
        errors.append(((ref.dequantize_blocks(codes, scale, levels) - x) ** 2).mean())
    assert 0.0083 < errors[2] < 0.0087
    assert errors[0] > 4 * errors[1] > 12 * errors[2]


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda: ref.block_scale([1.0], block_size=0), r"\[N-2\] block_size must be at least 1, got 0"),
        (lambda: ref.quantize_blocks([1.0], [1.0, 1.0], NF4), r"\[N-3\] 1 values in blocks of 64 have 1 scales, got 2"),
        (lambda: ref.quantize_blocks([1.0], [-1.0], NF4), r"\[N-3\] scale must be >= 0, got -1.0"),
        (lambda: ref.quantize_blocks([1.0], [1.0], []), r"\[N-3\] levels must hold at least one level"),
        (
            lambda: ref.quantize_blocks([1.0], [1.0], [0.0, 1.0, 1.0]),
            r"\[N-3\] levels must ascend .* 1.0 before 1.0 at 1",
        ),
        (lambda: ref.dequantize_blocks([0, 16], [1.0], NF4), r"\[N-4\] code 16 at \(1,\) has no level among 16"),
        (lambda: ref.dequantize_blocks([[-1]], [1.0], NF4), r"\[N-4\] code -1 at \(0, 0\) has no level"),
        (lambda: ref.dequantize_blocks([0.0], [1.0], NF4), r"\[N-4\] codes must hold integers"),
    ],
)
def test_n2_n4_refusals(call: object, why: str) -> None:
    with pytest.raises(SpecError, match=why):
        call()  # type: ignore[operator]


# -- N-5: double quantization ------------------------------------------------------------------------------------------


def restore(found: DoubleScale[Array], levels: Array) -> Array:
    return ref.dequantize_scale(found.codes, found.scale, found.offset, levels)


@LAW
@given(seeds, st.integers(1, 300))
def test_n5_round_trip_is_within_half_a_gap(seed: int, n: int) -> None:
    levels = ref.dynamic_float(bits=8)
    scale = np.abs(weight(seed, n)) + 0.5
    found = ref.quantize_scale(scale, levels)
    assert found.codes.shape == (n,)
    assert found.scale.shape == (-(-n // 256),)
    near(found.offset, scale.mean(), roundings=n)
    restored = restore(found, levels)
    gap = max(np.diff(levels).max() / 2, 1 + levels[0])  # half a step, or from the lowest level to −1, which is none
    assert (np.abs(restored - scale) <= gap * np.repeat(found.scale, 256)[:n] * (1 + 1e-12)).all()


def test_n5_costs_little_and_saves_most_of_the_scales() -> None:
    """NF4 in blocks of 64: the error of the weights grows by less than one part in a thousand."""
    x = weight(0, 256, 512)
    scale = ref.block_scale(x)
    codes = ref.quantize_blocks(x, scale, NF4)
    dynamic = ref.dynamic_float(bits=8)
    twice = restore(ref.quantize_scale(scale, dynamic), dynamic)
    once = ((ref.dequantize_blocks(codes, scale, NF4) - x) ** 2).mean()
    again = ((ref.dequantize_blocks(codes, twice, NF4) - x) ** 2).mean()
    assert 0 <= again - once < 1e-3 * once


def test_n5_equal_scales_come_back_exactly_and_a_scale_may_turn_negative() -> None:
    levels = ref.dynamic_float(bits=8)
    equal = ref.quantize_scale(np.full(7, 0.375), levels)
    assert (restore(equal, levels) == 0.375).all()
    assert (equal.scale == 0).all()
    few = ref.dynamic_float(bits=3)
    found = ref.quantize_scale([0.0, 1.0, 1.0, 2.0], few)
    assert found.offset == 1
    assert restore(found, few)[0] == 1 - 0.775  # there is no −1
    empty = ref.quantize_scale([], levels)
    assert (empty.codes.size, empty.scale.size, float(empty.offset)) == (0, 0, 0.0)
    values = ref.dequantize_blocks([[15, 7]], [-0.25], NF4)  # a negative scale is used as it is
    assert values.tolist() == [[-0.25, 0.0]]


# -- N-6: the product --------------------------------------------------------------------------------------------------


@LAW
@given(seeds, st.integers(1, 8), st.integers(1, 40), st.integers(1, 20))
def test_n6_is_the_product_with_the_dequantized_weight(seed: int, bits: int, k: int, block_size: int) -> None:
    g = np.random.default_rng(seed)
    x, codes = g.standard_normal((2, k)), g.integers(0, 2**bits, (3, k))
    levels = np.sort(g.standard_normal(2**bits))
    scale = g.random(-(-3 * k // block_size))
    w = ref.dequantize_blocks(codes, scale, levels, block_size=block_size)
    y = ref.codebook_matmul(x, ref.pack(codes, bits=bits), scale, levels, bits=bits, block_size=block_size)
    near(y, x @ w.T, roundings=k + 2, magnitude=np.abs(x) @ np.abs(w).T)


def test_n6_refusals() -> None:
    x, words = np.ones((1, 8)), np.zeros((2, 1), int)
    with pytest.raises(SpecError, match=r"\[N-6\] 4 bits need 16 levels, got 3"):
        ref.codebook_matmul(x, words, [1.0], [0.0, 1.0, 2.0], bits=4)
    with pytest.raises(SpecError, match=r"\[Q-6\] 8 codes of 4 bits take 1 words, got 2"):
        ref.codebook_matmul(x, np.zeros((2, 2), int), [1.0], NF4, bits=4)
    with pytest.raises(SpecError, match=r"\[N-6\] 16 values in blocks of 64 have 1 scales, got 2"):
        ref.codebook_matmul(x, words, [1.0, 1.0], NF4, bits=4)
    with pytest.raises(SpecError, match=r"\[N-6\] bits must be in 1..8, got 0"):
        ref.codebook_matmul(x, words, [1.0], NF4, bits=0)


# -- N-7: LoftQ --------------------------------------------------------------------------------------------------------


@LAW
@given(seeds, st.tuples(st.integers(2, 8), st.integers(2, 24)), st.integers(2, 4), st.data())
def test_n7_is_the_published_loop(seed: int, shape: tuple[int, int], bits: int, data: st.DataObject) -> None:
    """Written again from the operations: quantize the rest, patch the error."""
    w, rank = weight(seed, *shape), data.draw(st.integers(1, min(shape)))
    levels, patch = ref.normal_float(bits=bits), np.zeros(shape)
    errors, iterates = [], []
    for _ in range(4):
        scale = ref.block_scale(w - patch, block_size=16)
        codes = ref.quantize_blocks(w - patch, scale, levels, block_size=16)
        q = ref.dequantize_blocks(codes, scale, levels, block_size=16)
        B, A = ref.svd_patch(w - q, rank=rank)
        patch = B @ A
        errors.append(np.linalg.norm(w - q - patch))
        iterates.append((codes, patch))
    options = {"rank": rank, "bits": bits, "block_size": 16, "iterations": 4}
    keeps: tuple[Iterate, Iterate] = ("best", "last")
    for keep in keeps:
        found = ref.loftq(w, keep=keep, **options)  # type: ignore[arg-type]
        t = 3 if keep == "last" else int(np.argmin(errors))
        assert found.step == t + 1
        assert (found.errors == errors).all()
        assert (found.codes == iterates[t][0]).all()
        near(found.B @ found.A, iterates[t][1], roundings=factorisation(*shape), magnitude=np.abs(w).max())
        assert (found.weight == ref.dequantize_blocks(found.codes, found.scale, levels, block_size=16)).all()
        assert not found.offset.any()


@LAW
@given(seeds, st.integers(2, 4))
def test_n7_the_patch_never_hurts_and_the_best_is_never_above_plain_quantization(seed: int, bits: int) -> None:
    w = weight(seed, 8, 24)
    found = ref.loftq(w, rank=2, bits=bits, block_size=16, iterations=6)
    plain = ref.loftq(w, rank=2, bits=bits, block_size=16, iterations=1)
    quantized = np.linalg.norm(w - plain.weight)
    assert plain.errors[0] <= quantized * (1 + 1e-12)
    assert found.errors[found.step - 1] == found.errors.min() <= plain.errors[0]


def test_n7_more_iterations_can_be_worse() -> None:
    """Two bits, the usual block: the error rises from the second or third iterate on, so the last is not the best."""
    rises = 0
    for seed in range(20):
        errors = ref.loftq(weight(seed, 12, 32), rank=4, bits=2, iterations=6, keep="last").errors
        rises += bool(errors[-1] > errors.min())
    assert rises >= 10


def test_n7c_scaling_belongs_to_the_start() -> None:
    """α = 16 and r = 4 multiply the patch by 4: without the division the start is another model."""
    w = weight(0, 8, 16)
    plain, scaled = (ref.loftq(w, rank=4, bits=2, scaling=c) for c in (1.0, 4.0))
    near(4 * scaled.B @ scaled.A, plain.B @ plain.A, roundings=4, magnitude=np.abs(w).max())
    assert (scaled.A == plain.A).all()
    assert np.linalg.norm(w - plain.weight - 4 * plain.B @ plain.A) > 2 * plain.errors.min()


def test_n7d_uniform_quantizer_by_hand() -> None:
    """Values −2 … 2 and an outlier: the range ends at mean + 2 deviations, one grid of four values."""
    w = np.array([[-2.0, -1.0, 0.0, 1.0], [2.0, 0.0, 0.0, 100.0]])
    found = ref.loftq(w, rank=1, bits=2, quantizer="uniform", iterations=1)
    top = w.mean() + 2 * w.std(ddof=1)
    near(found.scale, [(top + 2 + 1e-8) / 3], roundings=8)
    near(found.offset, [-2.0], roundings=0)
    assert found.codes.tolist() == [[0, 0, 0, 0], [0, 0, 0, 3]]
    near(found.weight, found.offset + found.scale * found.codes, roundings=2, magnitude=100.0)


def test_n7d_a_constant_and_a_single_value() -> None:
    """No deviation: LoftQ's own float32 code divides 0 by 0 for large constants."""
    assert (ref.loftq(np.full((2, 3), 5.0), rank=1, quantizer="uniform").weight == 5.0).all()
    assert ref.loftq([[3.0]], rank=1, bits=2, quantizer="uniform", iterations=2).weight == 3.0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"rank": 0}, "rank of a patch for shape"),
        ({"rank": 4}, "rank of a patch for shape"),
        ({"rank": 1, "bits": 1}, "bits must be in 2..8, got 1"),
        ({"rank": 1, "block_size": 0}, "block_size must be at least 1"),
        ({"rank": 1, "iterations": 0}, "iterations must be at least 1"),
        ({"rank": 1, "quantizer": "int8"}, "quantizer must be one of 'normal-float', 'uniform', got 'int8'"),
        ({"rank": 1, "keep": "first"}, "keep must be one of 'best', 'last', got 'first'"),
        ({"rank": 1, "scaling": 0.0}, "scaling must be above 0"),
    ],
)
def test_n7_refusals(options: dict[str, object], why: str) -> None:
    with pytest.raises(SpecError, match=why):
        ref.loftq(np.ones((3, 5)), **options)  # type: ignore[arg-type]
