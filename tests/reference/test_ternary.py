"""Chapter T: laws, exact cases and traps of ternary and min-max quantizers."""

from __future__ import annotations

import math
from itertools import product
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import lowbit.reference as ref
from lowbit.reference.errors import SpecError
from lowbit.reference.types import MIN_MAX_SCHEMES, OUTERMOST, SHARINGS, MinMaxScheme, Outermost, Sharing

from .bounds import LAW, Array, near

g = np.random.default_rng(0)
X = g.standard_normal((3, 4, 6))
VALUES = arrays(np.float64, (3, 8), elements=st.integers(-99, 99).map(lambda n: n / 7))
QUANTIZERS: list[tuple[Any, dict[str, Any]]] = [
    (ref.twn, {}),
    (ref.clamped_uniform, {}),
    (ref.clamped_uniform, {"bits": 3, "outermost": "bounded"}),
    (ref.min_max, {}),
    (ref.min_max, {"bits": 3, "scheme": "asymmetric"}),
    (ref.min_max, {"bits": 3, "scheme": "asymmetric", "epsilon": 1e-8}),
]
quantizers = pytest.mark.parametrize("quantizer, options", QUANTIZERS)


def by_group(x: Array, granularity: str, function: Any) -> Array:
    """The same as if every group were an array of its own."""
    if granularity == "tensor":
        return np.asarray(function(x))
    axes = 1 if granularity == "row" else 2
    flat = x.reshape(-1, *x.shape[x.ndim - axes :])
    return np.stack([function(part) for part in flat]).reshape(x.shape)


def test_the_named_options_are_those_of_the_types() -> None:
    assert get_args(Sharing) == SHARINGS
    assert get_args(MinMaxScheme) == MIN_MAX_SCHEMES
    assert get_args(Outermost) == OUTERMOST


# -- T-1, T-2


@LAW
@given(VALUES, st.sampled_from([0.0, 0.5, 0.7]))
def test_t1_against_a_loop(x: Array, t: float) -> None:
    code = ref.twn_code(x, granularity="row", threshold=t)
    for row, codes, α in zip(x, code.codes, code.scale[:, 0], strict=True):
        delta = t * (np.abs(row).sum() / 8)
        large = [abs(v) for v in row if abs(v) > delta]
        assert codes.tolist() == [math.copysign(1, v) if abs(v) > delta else 0 for v in row]
        near(α, math.fsum(large) / len(large) if large else 0.0, roundings=16)
    assert (ref.twn(x, granularity="row", threshold=t) == code.scale * code.codes).all()


def test_t1a_the_comparison_is_strict() -> None:
    """Half the mean of (1, 3, 4, 0) is 1."""
    assert ref.twn_code([1.0, -3.0, 4.0, 0.0], threshold=0.5).codes.tolist() == [0, -1, 1, 0]


def test_t1_equal_magnitudes_are_kept_whole() -> None:
    x = np.array([[0.1, -0.1, 0.1], [5.0, 5.0, -5.0]])
    code = ref.twn_code(x, granularity="row")
    assert (code.codes == np.sign(x)).all()
    near(code.scale[:, 0], [0.1, 5.0], roundings=4)


def test_t1_normal_and_laplace_weights() -> None:
    """Zeros, scale and squared error of a million weights against the integrals, within what chance allows.

    The standard deviation of a mean of n squares of a Laplace variable is √20/√n; seven of them.
    """
    n = 1 << 20
    normal, uniform = g.standard_normal(n), g.random(n) - 0.5
    laplace = -np.sign(uniform) * np.log(1 - 2 * np.abs(uniform))
    for x, zeros, scale, error in ((normal, 0.4234, 1.1844, 0.1916), (laplace, 1 - math.exp(-0.7), 1.7, 0.2820)):
        code = ref.twn_code(x)
        chance = 7 * math.sqrt(20 / n) + 1e-4  # and the four digits of the figures above
        assert abs((code.codes == 0).mean() - zeros) < chance
        assert abs(float(code.scale[0]) - scale) < chance
        assert abs(np.mean((x - code.scale * code.codes) ** 2) / np.mean(x**2) - error) < chance


@LAW
@given(VALUES)
def test_t2_idempotent_odd_and_equivariant(x: Array) -> None:
    once = ref.twn(x, granularity="row")
    twice = ref.twn(once, granularity="row")
    assert (np.sign(twice) == np.sign(once)).all()
    near(twice, once, roundings=16)
    assert (ref.twn(-x, granularity="row") == -once).all()
    assert (ref.twn(8 * x, granularity="row") == 8 * once).all()  # a power of two: no rounding
    assert (ref.twn(8 * x, granularity="row", clip=8 * 100.0) == 8 * once).all()


@LAW
@given(VALUES, st.sampled_from(SHARINGS), st.sampled_from([0.7, 1 / 3, 3.0]))
def test_t2_laws_of_every_sharing(x: Array, granularity: Sharing, c: float) -> None:
    """Twice is once; any factor, powers of two or not, below the clip, and none above it."""
    once = ref.twn(x, granularity=granularity)
    twice = ref.twn(once, granularity=granularity)
    assert (np.sign(twice) == np.sign(once)).all()
    near(twice, once, roundings=64)
    a = np.abs(x)
    mean = by_group(a, granularity, lambda part: np.full(part.shape, part.mean()))
    clear = (np.abs(a - 0.7 * mean) > 2.0**-40) | (a == 0)  # of the threshold, on whose side a factor may round
    if clear.all():
        near(ref.twn(c * x, granularity=granularity), c * once, roundings=64)
    far = ref.twn(np.where(x >= 0, 10.0, -10.0), granularity=granularity, clip=2.5)
    assert (far == np.where(x >= 0, 2.5, -2.5)).all()


# -- T-3


@pytest.mark.parametrize("bits", range(2, 9))
def test_t3a_the_outer_level_is_a_tie(bits: int) -> None:
    """|x| = (0, 1, 2, 5): mean 2, α = 5. The published grid passes α by half a step, the bounded one stops below."""
    x = np.array([0.0, 1.0, -2.0, 5.0])
    published = ref.clamped_uniform(x, bits=bits)
    assert published[3] == 10 / (2**bits - 1) * 2 ** (bits - 1) > 5
    assert ref.clamped_uniform(x, bits=bits, outermost="bounded")[3] == 10 / (2**bits - 1) * (2 ** (bits - 1) - 1) < 5


@LAW
@given(VALUES)
def test_t3_levels_and_error(x: Array) -> None:
    for outermost, last in (("published", 8), ("bounded", 7)):
        y = ref.clamped_uniform(x, granularity="row", outermost=outermost)  # type: ignore[arg-type]
        a = np.abs(x)
        m = a.mean(axis=1, keepdims=True)
        above = a > m
        α = np.where(above.any(axis=1, keepdims=True), (a * above).sum(axis=1, keepdims=True), m) / np.maximum(
            above.sum(axis=1, keepdims=True), 1
        )
        δ = np.where(α > 0, 2 * α / 15, 1)
        near(y / δ, np.rint(y / δ), roundings=64, magnitude=8)
        assert (np.abs(np.rint(y / δ)) <= last).all()
        inside = a < α
        assert (np.abs(y - x)[inside] <= (δ * 0.5 * (1 + 1e-12) + np.zeros_like(x))[inside]).all()


def test_t3_a_constant_group_has_its_own_magnitude() -> None:
    """Nothing is above the mean; δ = 2·3/15 and the outer level 8δ."""
    assert ref.clamped_uniform(np.full((2, 5), -3.0), granularity="row").tolist() == [[-3.2] * 5] * 2


# -- T-4


@LAW
@given(VALUES, st.integers(2, 8))
def test_t4_errors_extremes_and_a_second_pass(x: Array, bits: int) -> None:
    y = ref.min_max(x, bits=bits, granularity="row")
    largest = np.abs(x).max(axis=1, keepdims=True)
    n = 2 ** (bits - 1) - 1
    assert (np.abs(y - x) <= largest / (2 * n) * (1 + 1e-12)).all()
    at = np.abs(x) == largest
    assert (y[at] == x[at]).all()  # T-4a
    near(ref.min_max(y, bits=bits, granularity="row"), y, roundings=4)
    assert (ref.min_max(-x, bits=bits, granularity="row") == -y).all()
    z = ref.min_max(x, bits=bits, scheme="asymmetric", granularity="row")
    reach = np.ptp(x, axis=1, keepdims=True)
    assert (np.abs(z - x) <= reach / (2 * (2**bits - 1)) + 64 * 2.0**-52 * largest).all()


def test_t4_epsilon_of_the_published_code_turns_a_tie() -> None:
    """The middle of −2.5 … 2.5 is 127.5 steps above −2.5, and just below that with an ε that does not vanish."""
    x = np.array([-2.5, 0.0, 2.5])
    without = ref.min_max(x, scheme="asymmetric")[1]
    assert without > 0 > ref.min_max(x, scheme="asymmetric", epsilon=1e-8)[1]


def test_t4_one_bit_and_constants() -> None:
    assert ref.min_max([-1.0, 0.2, 3.0], bits=1, scheme="asymmetric").tolist() == [-1.0, -1.0, 3.0]
    assert ref.min_max([4.0, 4.0], scheme="asymmetric").tolist() == [4.0, 4.0]
    near(ref.min_max([4.0, 4.0], scheme="asymmetric", epsilon=0.5), 4.0 + np.zeros(2), roundings=1)


def test_t4_a_range_that_overflows_is_refused() -> None:
    with pytest.raises(SpecError, match="T-4"):
        ref.min_max([-1e308, 1e308], scheme="asymmetric")


# -- every quantizer


@quantizers
def test_t1b_zeros_stay_zeros(quantizer: Any, options: dict[str, Any]) -> None:
    for shape in ((4,), (2, 3), (2, 0), (0, 3), ()):
        y = quantizer(np.zeros(shape), **options)
        assert y.shape == shape
        assert (y == 0).all()
    x = np.array([[0.0] * 4, [1.0, -2.0, 0.5, 4.0]])
    y = quantizer(x, granularity="row", **options)
    assert (y[0] == 0).all()
    assert (y[1] == quantizer(x[1], **options)).all()


@quantizers
@pytest.mark.parametrize("granularity", SHARINGS)
def test_statistics_are_those_of_the_group_alone(quantizer: Any, options: dict[str, Any], granularity: str) -> None:
    alone = by_group(X, granularity, lambda part: quantizer(part, **options))
    near(quantizer(X, granularity=granularity, **options), alone, roundings=64)


@quantizers
def test_the_clip_comes_first(quantizer: Any, options: dict[str, Any]) -> None:
    for granularity in SHARINGS:
        clipped = quantizer(np.clip(X, -0.8, 0.8), granularity=granularity, **options)
        assert (quantizer(X, granularity=granularity, clip=0.8, **options) == clipped).all()


# -- T-5


def smooth(x: Array, frozen: Array, clip: float) -> Array:
    """What the straight-through estimate differentiates: rounding and statistics are a constant difference."""
    return np.clip(x, -clip, clip) + frozen


@quantizers
@pytest.mark.parametrize("granularity", SHARINGS)
def test_t5_gradient_is_that_of_central_differences_and_of_autograd(
    quantizer: Any, options: dict[str, Any], granularity: str
) -> None:
    """No x within 2^-12 of the clip, so that both sides of a difference lie on one side of it."""
    clip, h = 0.9, 2.0**-12
    x = np.where(np.abs(np.abs(X) - clip) < 2 * h, 0.5, X)
    grad = g.standard_normal(x.shape)
    found = ref.straight_through(grad, x, clip=clip)
    frozen = quantizer(x, granularity=granularity, clip=clip, **options) - np.clip(x, -clip, clip)
    slope = (smooth(x + h, frozen, clip) - smooth(x - h, frozen, clip)) / (2 * h)  # each value sees its own x only
    near(found, grad * slope, roundings=1 << 14, magnitude=np.abs(grad))
    torch = pytest.importorskip("torch")
    leaf = torch.from_numpy(x.copy()).requires_grad_()
    cut = leaf.clamp(-clip, clip)
    y = cut + (torch.from_numpy(quantizer(x, granularity=granularity, clip=clip, **options)) - cut).detach()
    y.backward(torch.from_numpy(grad))
    assert (leaf.grad.numpy() == found).all()


def test_t5_the_edge_is_cut_and_without_a_clip_all_passes() -> None:
    x = np.array([-2.5, np.nextafter(-2.5, 0), 0.0, np.nextafter(2.5, 0), 2.5])
    assert ref.straight_through(np.ones(5), x, clip=2.5).tolist() == [0, 1, 1, 1, 0]
    assert ref.straight_through(np.ones(5), x, clip=None).tolist() == [1] * 5


# -- refusals


WRONG: list[tuple[Any, tuple[Any, ...], dict[str, Any], str]] = [
    (ref.twn_code, (X,), {"threshold": 1.0}, "T-1"),
    (ref.twn_code, (X,), {"threshold": -0.1}, "T-1"),
    (ref.twn_code, (X,), {"granularity": "group"}, "T-1"),
    (ref.twn_code, (3.0,), {"granularity": "row"}, "T-1"),
    (ref.twn_code, (X[0, 0],), {"granularity": "matrix"}, "T-1"),
    (ref.twn, (X,), {"clip": 0.0}, "T-1"),
    (ref.clamped_uniform, (X,), {"bits": 1}, "T-3"),
    (ref.clamped_uniform, (X,), {"outermost": "even"}, "T-3"),
    (ref.min_max, (X,), {"bits": 1}, "T-4"),
    (ref.min_max, (X,), {"bits": 9, "scheme": "asymmetric"}, "T-4"),
    (ref.min_max, (X,), {"scheme": "full"}, "T-4"),
    (ref.min_max, (X,), {"epsilon": -1.0}, "T-4"),
    (ref.straight_through, (X, X[0]), {"clip": 1.0}, "T-5"),
    (ref.straight_through, (X, X), {"clip": -1.0}, "T-5"),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_refusals(number: int) -> None:
    operation, arguments, options, clause = WRONG[number]
    with pytest.raises(SpecError) as caught:
        operation(*arguments, **options)
    assert caught.value.clause == clause


def test_scales_keep_the_axes_they_share() -> None:
    shapes = {s: ref.twn_code(X, granularity=s).scale.shape for s in SHARINGS}
    assert shapes == {"tensor": (1, 1, 1), "row": (3, 4, 1), "matrix": (3, 1, 1)}
    for (quantizer, options), s in product(QUANTIZERS, SHARINGS):
        assert quantizer(X, granularity=s, **options).shape == X.shape


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_t3_every_value_of_a_constant_group_is_at_alpha(dtype: Any) -> None:
    """Whatever the sum of equal magnitudes and its quotient are rounded to; also where others lie below them."""
    draw = np.random.default_rng(0)
    for n in range(1, 80):
        for level in draw.uniform(0.01, 3, 5).astype(dtype):
            x = np.full((1, n), level, dtype) * np.where(np.arange(n) % 2, 1, -1)
            found = ref.clamped_uniform(x, granularity="row")
            assert np.allclose(found, np.sign(x) * 16 / 15 * float(level), rtol=1e-9, atol=0)
            found = ref.clamped_uniform(np.concatenate([x, x * 0.25], axis=1), granularity="row")
            assert np.allclose(np.abs(found[:, :n]), 16 / 15 * float(level), rtol=1e-9, atol=0)
