"""Chapter S: laws, exact cases and traps of the learned-step quantizers."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import lowbit.reference as ref
from lowbit.reference.errors import SpecError
from lowbit.reference.types import LSQ_COUNTS, LSQ_INITS, LsqCount, LsqInit

from .bounds import LAW, Array, near

g = np.random.default_rng(0)
X = g.standard_normal((3, 4, 6))
D = g.standard_normal((3, 4, 6))
VALUES = arrays(np.float64, (3, 8), elements=st.integers(-999, 999).map(lambda n: n / 70))
AXES = (None, 0, 1, 2, -1)
WIDTHS = [(2, True), (4, True), (8, True), (1, False), (3, False), (8, False)]


def steps(axis: int | None, x: Array = X) -> Array:
    """Different steps, one for every index of the axis."""
    return np.linspace(0.3, 0.9, 1 if axis is None else x.shape[axis])


def broadcast(s: Array, axis: int | None, ndim: int = 3) -> Array:
    """Steps shaped to multiply x."""
    return s.reshape([-1 if axis is not None and i == axis % ndim else 1 for i in range(ndim)])


def test_the_named_options_are_those_of_the_types() -> None:
    assert get_args(LsqCount) == LSQ_COUNTS
    assert get_args(LsqInit) == LSQ_INITS


# -- S-1


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("bits, signed", WIDTHS)
def test_s1_first_steps_against_one_group_at_a_time(axis: int | None, bits: int, signed: bool) -> None:
    groups = [X.ravel()] if axis is None else list(np.moveaxis(X, axis, 0).reshape(X.shape[axis], -1))
    top = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    found: dict[LsqInit, Any] = {
        rule: ref.lsq_init(X, bits=bits, signed=signed, axis=axis, rule=rule) for rule in LSQ_INITS
    }
    for i, v in enumerate(groups):
        mean, spread = v.mean(), v.std()
        near(found["mean"].step[i], 2 * np.abs(v).mean() / math.sqrt(top), roundings=200)
        doubled = 2 if signed else 4
        near(found["mean-doubled"].step[i], doubled * np.abs(v).mean() / math.sqrt(top), roundings=200)
        reach = max(abs(mean - 3 * spread), abs(mean + 3 * spread))
        near(found["deviation"].step[i], reach / 2 ** (bits - 1), roundings=400)
        step, offset = found["min-max"].step[i], found["min-max"].offset[i]
        low, high = (-(top + 1), top) if signed else (0, top)
        near([offset + step * low, offset + step * high], [v.min(), v.max()], roundings=16, magnitude=8.0)
    assert all((found[rule].offset == 0).all() for rule in LSQ_INITS if rule != "min-max")


@pytest.mark.parametrize("rule", LSQ_INITS)
def test_s1a_zeros_have_a_step(rule: LsqInit) -> None:
    x = np.array([[0.0, 0.0], [1.0, 2.0]])
    start = ref.lsq_init(x, bits=4, axis=0, rule=rule)
    assert start.step[0] == 1
    assert (start.step > 0).all()
    assert (ref.lsq(x, start.step, bits=4, axis=0)[0] == 0).all()
    assert ref.lsq_init(np.zeros((0, 3)), bits=4, axis=1, rule=rule).step.tolist() == [1, 1, 1]
    assert ref.lsq_init(np.zeros((2, 0)), bits=4, rule=rule).step.tolist() == [1]


# -- S-2, S-3


@LAW
@given(VALUES, st.sampled_from(WIDTHS), st.sampled_from([None, 0, 1]))
def test_s2_s3_against_a_loop(x: Array, width: tuple[int, bool], axis: int | None) -> None:
    bits, signed = width
    s = steps(axis, x)
    β = s - 0.5
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    codes = ref.lsq_code(x, s, β, bits=bits, signed=signed, axis=axis)
    values = ref.lsq(x, s, β, bits=bits, signed=signed, axis=axis)
    for (i, j), v in np.ndenumerate(x):
        k = 0 if axis is None else (i, j)[axis]
        code = min(max(round((v - β[k]) / s[k]), low), high)  # Python rounds half to even
        assert codes[i, j] == code
        assert values[i, j] == s[k] * code + β[k]


def test_s2a_ties_go_to_the_even_code_by_division() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5]) * 0.75
    assert ref.lsq_code(x, [0.75], bits=4).tolist() == [0, 2, 2, 0, -2, -2]
    odd = np.arange(-31, 32, 2) * 0.1 / 2
    assert (ref.lsq_code(odd, [0.1], bits=8) == np.rint(odd / 0.1)).all()


def test_s2_saturates_far_outside() -> None:
    assert ref.lsq_code([-1e308, 1e308], [1e-300], bits=3).tolist() == [-4, 3]


def test_s2b_the_floor_of_the_step() -> None:
    x = np.array([0.3, -0.7, 1.6])
    for s in (0.25, 0.1, 0.0, -3.0):
        assert (ref.lsq(x, [s], bits=3, epsilon=0.25) == ref.lsq(x, [0.25], bits=3)).all()
    with pytest.raises(SpecError, match="S-3"):
        ref.lsq(x, [0.0], bits=3)


@LAW
@given(VALUES)
def test_s3_idempotent_and_equivariant(x: Array) -> None:
    once = ref.lsq(x, [0.5], bits=4)
    assert (ref.lsq(once, [0.5], bits=4) == once).all()
    assert (ref.lsq(4 * x, [2.0], bits=4) == 4 * once).all()
    inside = (x >= -4) & (x <= 3.5)
    assert (np.abs(once - x)[inside] <= 0.25).all()


def test_learnable_biases_around_it_are_an_offset_per_channel() -> None:
    """OFQ's x + b1 → LSQ → + b2 with b2 = −b1 is an offset of −b1, where both are per channel."""
    b, s = g.standard_normal(6), steps(-1)
    around = ref.lsq(X + b, s, bits=3, axis=-1) - b
    near(around, ref.lsq(X, s, -b, bits=3, axis=-1), roundings=4, magnitude=8.0)


# -- S-4, S-5, S-6


def clear_of_ties(x: Array, s: Array, β: Array, low: int, high: int) -> Array:
    """x moved so that no v is within 1/16 of a tie or of an end of the range."""
    v = (x - β) / s
    v = np.where(np.abs(v - np.rint(v)) > 0.4375, np.rint(v), v)
    for end in (low, high):
        v = np.where(np.abs(v - end) < 0.0625, end + np.where(v < end, -0.125, 0.125), v)
    return v * s + β


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("bits, signed", WIDTHS)
@pytest.mark.parametrize("with_offset", [True, False])
def test_s4_s6_gradients_are_those_of_central_differences_and_of_autograd(
    axis: int | None, bits: int, signed: bool, with_offset: bool
) -> None:
    """With the rounding error held where it is, x̂ is piecewise smooth in x, s and β; no step crosses a kink.

    Inside, x̂ is s (v + r) + β = x + r s: linear, so that central differences have no error but rounding,
    u / h relative to values of magnitude 2^8.
    """
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    s = steps(axis)
    β = (s - 0.5) if with_offset else np.zeros_like(s)
    S, B = broadcast(s, axis), broadcast(β, axis)
    x = clear_of_ties(X, S, B, low, high)
    v = np.clip((x - B) / S, low, high)
    r = np.rint(v) - v

    def smooth(x: Array, s: Array, β: Array) -> Array:
        return broadcast(s, axis) * (np.clip((x - broadcast(β, axis)) / broadcast(s, axis), low, high) + r) + broadcast(
            β, axis
        )

    found: Any = ref.lsq_gradient(
        D, x, s, β if with_offset else None, bits=bits, signed=signed, axis=axis, count="unscaled"
    )  # fmt: skip
    h = 2.0**-14
    exact: dict[str, Any] = {"roundings": 64 * 2**14, "magnitude": 2.0**10}
    near(found.x, D * (smooth(x + h, s, β) - smooth(x - h, s, β)) / (2 * h), **exact)
    for i in range(s.size):
        e = h * (np.arange(s.size) == i)
        near(found.step[i], np.sum(D * (smooth(x, s + e, β) - smooth(x, s - e, β))) / (2 * h), **exact)
        if with_offset:
            near(found.offset[i], np.sum(D * (smooth(x, s, β + e) - smooth(x, s, β - e))) / (2 * h), **exact)
    assert (found.offset is not None) == with_offset

    torch = pytest.importorskip("torch")
    leaves = [torch.from_numpy(np.array(a)).requires_grad_() for a in (x, s, β)]
    tx, ts, tb = leaves[0], *(t.reshape(S.shape) for t in leaves[1:])
    tv = ((tx - tb) / ts).clamp(low, high)
    (ts * (tv + (tv.round() - tv).detach()) + tb).backward(torch.from_numpy(D))
    near(found.x, leaves[0].grad.numpy(), roundings=16, magnitude=8.0)
    near(found.step, leaves[1].grad.numpy(), roundings=256, magnitude=2.0**10)
    if with_offset:
        near(found.offset, leaves[2].grad.numpy(), roundings=256, magnitude=2.0**10)


def test_s4_the_ends_of_the_range_are_inside() -> None:
    """v = −4, −4 − u, 3, 3 + u at 3 bits."""
    v = np.array([-4.0, np.nextafter(-4, -9), 3.0, np.nextafter(3, 9)])
    found = ref.lsq_gradient(np.ones(4), v, [1.0], [0.0], bits=3, count="unscaled")
    assert found.x.tolist() == [1, 0, 1, 0]
    assert found.step.tolist() == [0 - 4 + 0 + 3]
    assert found.offset is not None
    assert found.offset.tolist() == [2]


@pytest.mark.parametrize("axis", [None, 1, 2, -1])
def test_s5a_counts(axis: int | None) -> None:
    plain = ref.lsq_gradient(D, X, steps(axis), bits=3, axis=axis, count="unscaled").step
    elements = X.size // (1 if axis is None else X.shape[axis])
    for count, n in (("elements", elements), ("features", elements // 3)):
        found = ref.lsq_gradient(D, X, steps(axis), bits=3, axis=axis, count=count)  # type: ignore[arg-type]
        near(found.step, plain / math.sqrt(3 * n), roundings=8)
        assert (found.x == ref.lsq_gradient(D, X, steps(axis), bits=3, axis=axis).x).all()


def test_s5a_a_batch_of_steps_has_no_features() -> None:
    for x, axis in ((X, 0), (X, -3), (np.array(1.0), None)):
        s = np.ones(1 if axis is None else x.shape[axis])
        with pytest.raises(SpecError, match="features"):
            ref.lsq_gradient(x, x, s, bits=3, axis=axis, count="features")


def test_s5b_the_gradient_passes_through_the_floor() -> None:
    small = ref.lsq_gradient(D, X, [1e-9], bits=3, epsilon=0.25)
    at = ref.lsq_gradient(D, X, [0.25], bits=3)
    assert (small.step == at.step).all()
    assert small.step[0] != 0


def test_gradients_of_nothing_are_zero() -> None:
    for count in LSQ_COUNTS:
        found = ref.lsq_gradient(np.zeros((2, 0)), np.zeros((2, 0)), [1.0], [0.0], bits=3, count=count)
        assert (found.x.shape, found.step.tolist()) == ((2, 0), [0.0])


# -- refusals


@pytest.mark.parametrize("operation", [ref.lsq_code, ref.lsq, lambda x, *a, **k: ref.lsq_gradient(x, x, *a, **k)])
@pytest.mark.parametrize(
    "arguments, options",
    [
        (([0.5, 0.5],), {}),
        (([0.5] * 3,), {"axis": 1}),
        (([0.5] * 4, [0.0]), {"axis": 1}),
        (([[0.5]],), {}),
        (([0.0],), {}),
        (([-1.0],), {}),
        (([0.5],), {"bits": 1}),
        (([0.5],), {"bits": 9, "signed": False}),
        (([0.5],), {"signed": 1}),
        (([0.5],), {"axis": 3}),
        (([0.5],), {"axis": 0.0}),
        (([0.5],), {"epsilon": -1.0}),
    ],
)
def test_refusals(operation: Any, arguments: Any, options: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"\[S-[234]\]"):
        operation(X, *arguments, **{"bits": 3, **options})


def test_other_refusals() -> None:
    with pytest.raises(SpecError, match="S-1"):
        ref.lsq_init(X, bits=4, rule="maximum")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="S-4"):
        ref.lsq_gradient(X[0], X, [1.0], bits=4)
    with pytest.raises(SpecError, match="S-4"):
        ref.lsq_gradient(X, X, [1.0], bits=4, count="weights")  # type: ignore[arg-type]
