"""Chapter S: learned step sizes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lowbit.conformance import compare, strategies
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array


class LearnedStepInput(NamedTuple):
    """Arguments of the operations with a learned step."""

    x: Array
    grad: Array  # the shape of x
    step: Array
    offset: Array | None
    options: dict[str, Any]

    @property
    def arrays(self) -> tuple[Array | None, ...]:
        """Arguments of the forward pass."""
        return self.x, self.step, self.offset


@st.composite
def learned_step_inputs(draw: st.DrawFn) -> LearnedStepInput:
    """Values inside the range and far outside it; one step, or one per index of an axis; with and without a floor."""
    dtype = draw(strategies.float_dtypes(half=True))
    x = np.clip(draw(strategies.matrices(rows=(1, 4), columns=(1, 12))), -6e4, 6e4).astype(dtype)
    if x.shape[1] % 2 == 0 and draw(st.booleans()):
        x = x.reshape(len(x), 2, -1)
    axis = draw(st.sampled_from([None, None, *range(-x.ndim, x.ndim)]))
    n = 1 if axis is None else x.shape[axis]
    numbers = arrays(np.int64, (n,), elements=st.integers(1, 99), fill=st.nothing())
    unit = draw(st.sampled_from([1 / 8, 1 / 3, 4.0]))
    step = (draw(numbers) * unit).astype(dtype)
    offset = ((draw(numbers) - 50) * unit).astype(dtype) if draw(st.booleans()) else None
    signed = draw(st.booleans())
    options = {
        "bits": draw(st.integers(2 if signed else 1, 8)),
        "signed": signed,
        "axis": axis,
        "epsilon": draw(st.sampled_from([*strategies.STEP_FLOORS, 2 * float(step[0])])),
    }
    grad = np.asarray(draw(strategies.integers(x.shape, 99)) / 32, dtype)
    return LearnedStepInput(x, grad, step, offset, options)


def code_bounds(bits: int, signed: bool) -> tuple[int, int]:
    """The first and the last code."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def spread(values: Array | None, x: Array, axis: int | None) -> Array:
    """Steps or offsets in float64, shaped to broadcast; None is 0."""
    if values is None:
        return np.zeros((1,) * x.ndim)
    shape = [1] * x.ndim
    if axis is not None:
        shape[axis] = -1
    return values.astype(np.float64).reshape(shape)


def other_axes(x: Array, axis: int | None) -> tuple[int, ...]:
    """Axes over which a step is shared."""
    return tuple(i for i in range(x.ndim) if axis is None or i != axis % x.ndim)


def quotient(case: LearnedStepInput, u: float) -> tuple[Array, Array, Array, Array]:
    """(step, offset, v, band of v): difference and quotient round once each, and so may epsilon."""
    x, axis = case.x, case.options["axis"]
    step = np.maximum(spread(case.step, x, axis), case.options["epsilon"])
    offset = spread(case.offset, x, axis)
    v = (x.astype(np.float64) - offset) / step
    return step, offset, v, compare.tie_band(v, u, 3)


def wide(case: LearnedStepInput) -> tuple[Array, ...]:
    """Arrays that decide the precision of the work."""
    return tuple(a for a in (case.x, case.step, case.offset) if a is not None)


RULES = ("mean", "mean-doubled", "deviation", "min-max")


@clause("S-1", tier="forward-error", case=learned_step_inputs(), rule=list(RULES))
def test_first_steps(kit: Kit, case: LearnedStepInput, rule: str) -> None:
    """Steps and offsets of any input."""
    check_first_step(kit, case, rule)


@clause("S-1", tier="forward-error", dtype=strategies.FLOATS, signed=st.booleans())
def test_first_steps_by_every_rule(kit: Kit, dtype: str, signed: bool) -> None:
    """Three rows whose means, deviations and ranges differ."""
    x = np.array([[1, -3, 2, 7], [-1, -2, -2, -9], [4, 4, 4, 4]], dtype)
    for rule in RULES:
        check_first_step(kit, LearnedStepInput(x, x, x[:, 0], None, {"bits": 3, "signed": signed, "axis": 0}), rule)


def check_first_step(kit: Kit, case: LearnedStepInput, rule: str) -> None:
    """Means of n magnitudes: n + 4 roundings. Deviations move with the largest magnitude, ranges with their ends.

    A difference from a mean that is off by γ_{n+1}·largest is off by γ_{n+3}·2·largest, the root of the mean square
    no more; thrice that and the mean: γ_{2n+8}·8·largest covers both.
    """
    options = {k: v for k, v in case.options.items() if k != "epsilon"}
    found = kit.call("lsq_init", case.x, rule=rule, **options)
    expected = kit.spec.lsq_init(case.x, rule=rule, **options)
    over = other_axes(case.x, options["axis"])
    n = math.prod(case.x.shape[i] for i in over)
    u = kit.u(case.x, result=found.step)
    low, _ = code_bounds(options["bits"], options["signed"])
    largest = np.abs(case.x.astype(np.float64)).max(axis=over, initial=0.0).reshape(-1)
    if rule == "deviation":
        allowed = compare.gamma(2 * n + 8, u) * 8 * largest / 2 ** (options["bits"] - 1)
    elif rule == "min-max":
        allowed = compare.gamma(3, u) * expected.step
    else:
        allowed = compare.gamma(n + 4, u) * expected.step
    kit.check(compare.forward(found.step, expected.step, allowed + kit.tiny(n), "step"))
    reach = np.abs(expected.offset) + 2 * expected.step * -low
    kit.check(compare.forward(found.offset, expected.offset, compare.gamma(5, u) * reach, "offset"))


@clause("S-1a", tier="exact", x=strategies.degenerate_groups(), bits=st.integers(2, 8), signed=st.booleans())
def test_zeros_have_the_step_one(kit: Kit, x: Array, bits: int, signed: bool) -> None:
    """Rows of zeros get the step 1 under every rule, all others a positive one, and no value becomes NaN."""
    x = x.copy()
    x[0] = 0.0
    zero = ~np.any(x, axis=1)
    for rule in RULES:
        found = kit.call("lsq_init", x, bits=bits, signed=signed, axis=0, rule=rule)
        kit.check(compare.exact(found.step[zero], np.ones(int(zero.sum())), f"step of zeros by {rule!r}"))
        kit.require(bool(np.all(np.isfinite(found.step) & (found.step > 0))), f"a step by {rule!r} is not positive")


@clause("S-2", tier="tie-band", case=learned_step_inputs())
def test_codes(kit: Kit, case: LearnedStepInput) -> None:
    """Nearest codes of clamped quotients, but for quotients in the band of a tie."""
    low, high = code_bounds(case.options["bits"], case.options["signed"])
    found = kit.call("lsq_code", *case.arrays, **case.options)
    kit.require(found.dtype == np.int32, f"codes have dtype {found.dtype}, expected int32")
    _, _, v, band = quotient(case, kit.u(*wide(case)))
    kit.check(compare.codes(found, np.rint(np.clip(v, low, high)), v, band, "codes"))


@clause(
    "S-2a",
    tier="exact",
    x=strategies.integers((3, 6), 40),
    dtype=strategies.FLOATS,
    bits=st.integers(2, 6),
    signed=st.booleans(),
)
def test_ties(kit: Kit, x: Array, dtype: str, bits: int, signed: bool) -> None:
    """Quotients are multiples of 1/2: exact everywhere, half to even. The third step is no power of two.

    Values and the gradient of the step round on their own, and are held to the same codes.
    """
    step = np.array([0.5, 2.0, 0.75])
    values = (x / 2 * step[:, None] + 0.25).astype(dtype)
    offset = np.full(3, 0.25)
    options: dict[str, Any] = {"bits": bits, "signed": signed, "axis": 0}
    found = kit.call("lsq_code", values, step.astype(dtype), offset.astype(dtype), **options)
    low, high = code_bounds(bits, signed)
    codes = np.clip(np.rint(x / 2), low, high)
    kit.check(compare.exact(found, codes, "codes"))
    given = values, step.astype(dtype), offset.astype(dtype)
    if kit.has("lsq"):
        kit.check(compare.exact(kit.call("lsq", *given, **options), codes * step[:, None] + 0.25, "values"))
    if kit.has("lsq_gradient"):
        grad = np.arange(x.size).reshape(x.shape) % 7 - 3.0
        found = kit.call("lsq_gradient", grad.astype(dtype), *given, count="unscaled", **options)
        inside = (x / 2 >= low) & (x / 2 <= high)
        slope = grad * np.where(inside, codes - x / 2, codes)
        kit.check(compare.exact(found.step, slope.sum(axis=1), "gradient of the step"))


@clause("S-2b", tier="exact", case=learned_step_inputs(), epsilon=[0.5, 4.0])
def test_the_floor_of_the_step(kit: Kit, case: LearnedStepInput, epsilon: float) -> None:
    """Steps that are small, 0 or negative give the bytes of a step equal to epsilon."""
    options = {**case.options, "epsilon": epsilon}
    floor = np.full_like(case.step, epsilon)
    expected = kit.call("lsq", case.x, floor, case.offset, **options)
    for below in (floor / 2, floor * 0, -case.step):
        found = kit.call("lsq", case.x, below, case.offset, **options)
        kit.check(compare.exact_bytes(found, expected, f"values with steps down to {below.min()}"))


@clause("S-2c", tier="exact", case=learned_step_inputs())
def test_steps_are_local(kit: Kit, case: LearnedStepInput) -> None:
    """A slice along the axis, with its own step, gives the values and input gradients that it gives among others."""
    axis = case.options["axis"]
    if axis is None:
        return
    values = kit.call("lsq", *case.arrays, **case.options)
    slopes = kit.call("lsq_gradient", case.grad, *case.arrays, **case.options).x
    for i in range(case.x.shape[axis]):
        own = slice(i, i + 1)
        x, grad = (np.take(a, range(i, i + 1), axis=axis) for a in (case.x, case.grad))
        arrays_ = (x, case.step[own], None if case.offset is None else case.offset[own])
        found = kit.call("lsq", *arrays_, **case.options)
        kit.check(compare.exact(found, np.take(values, range(i, i + 1), axis=axis), f"values of index {i}"))
        found = kit.call("lsq_gradient", grad, *arrays_, **case.options).x
        kit.check(compare.exact(found, np.take(slopes, range(i, i + 1), axis=axis), f"gradients of index {i}"))


@clause("S-3", tier="tie-band", case=learned_step_inputs())
def test_values(kit: Kit, case: LearnedStepInput) -> None:
    """Between the values of the smallest and the largest code that rounding may have given; product and sum round."""
    low, high = code_bounds(case.options["bits"], case.options["signed"])
    found = kit.call("lsq", *case.arrays, **case.options)
    step, offset, v, band = quotient(case, kit.u(*wide(case)))
    first, last = (step * np.clip(np.rint(v + side), low, high) for side in (-band, band))
    reach = np.maximum(np.abs(first), np.abs(last)) + np.abs(offset)
    slack = compare.gamma(3, kit.u(*wide(case), result=found)) * reach + kit.tiny(2)
    kit.check(compare.interval(found.astype(np.float64), first + offset - slack, last + offset + slack, "values"))


@clause("S-3", tier="tie-band", dtype=strategies.FLOATS)
def test_values_of_steps_below_the_floor(kit: Kit, dtype: str) -> None:
    """Multiples of ε = 4 for a step of 1, of the step of 8; nothing rounds but the codes."""
    x, step = np.array([[3, 10, -7, 1], [3, 10, -7, 1]], dtype), np.array([1, 8], dtype)
    found = kit.call("lsq", x, step, None, bits=3, axis=0, epsilon=4.0)
    wanted = np.array([[4, 8, -8, 0], [0, 8, -8, 0]], found.dtype)
    kit.check(compare.interval(found, wanted, wanted, "values"))


@clause("S-4", tier="tie-band", case=learned_step_inputs())
def test_input_gradients(kit: Kit, case: LearnedStepInput) -> None:
    """The upstream gradient inside the range, 0 outside, but for quotients in the band of its ends."""
    low, high = code_bounds(case.options["bits"], case.options["signed"])
    found = kit.call("lsq_gradient", case.grad, *case.arrays, **case.options).x
    _, _, v, band = quotient(case, kit.u(case.grad, *wide(case)))
    there = case.grad != 0
    passed = found != 0
    surely, possibly = ((v - side >= low) & (v + side <= high) & there for side in (band, -band))
    kit.check(compare.interval(passed, surely, possibly, "entries that pass"))
    kit.check(compare.exact(found[passed], case.grad[passed].astype(found.dtype), "gradients that pass"))


@clause("S-4a", tier="exact", dtype=strategies.FLOATS, bits=st.integers(2, 6), signed=st.booleans())
def test_the_ends_are_inside(kit: Kit, dtype: str, bits: int, signed: bool) -> None:
    """Quotients at the ends, a quarter and a whole step beyond, and one inside; powers of two keep all sums exact."""
    low, high = code_bounds(bits, signed)
    v = np.array([low, high, low - 0.25, high + 0.25, low - 1, high + 1, low + 0.75])
    grad = np.array([1, 2, 4, 8, 16, 32, 64.0])
    arrays_ = (grad.astype(dtype), (v / 2).astype(dtype), np.full(1, 0.5, dtype), np.zeros(1, dtype))
    found = kit.call("lsq_gradient", *arrays_, bits=bits, signed=signed, count="unscaled")
    kit.check(compare.exact(found.x, grad * [1, 1, 0, 0, 0, 0, 1], "gradient of x"))
    kit.check(
        compare.exact(found.step, np.array([(4 + 16) * low + (8 + 32) * high + 64 * 0.25]), "gradient of the step")
    )
    kit.check(compare.exact(found.offset, np.array([4 + 16 + 8 + 32.0]), "gradient of the offset"))


def judge_sums(kit: Kit, case: LearnedStepInput, count: str, found: Any) -> None:
    """Gradients of step and offset against float64.

    Where v lies in the band of a tie, round(v) − v may be off by 1; where it lies in the band of an end, inside and
    outside may be mixed up, which costs up to the larger end. Elsewhere a term is off by the band itself. Sums of n
    terms of two factors, and g with a product, a root, a quotient and the product with it: γ_{n+7}.
    """
    low, high = code_bounds(case.options["bits"], case.options["signed"])
    u = kit.u(case.grad, *wide(case))
    _, _, v, band = quotient(case, u)
    over = other_axes(case.x, case.options["axis"])
    n = math.prod(case.x.shape[i] for i in over)
    batch = case.x.shape[0] if count == "features" else 1
    g = 1.0 if count == "unscaled" else 1 / math.sqrt(max(n // batch, 1) * high)
    grad = case.grad.astype(np.float64)
    inside = (v >= low) & (v <= high)
    slope = np.where(inside, np.rint(v) - v, np.clip(v, low, high))
    at_tie = inside & (np.abs(v - np.floor(v) - 0.5) <= band)
    at_end = (np.abs(v - low) <= band) | (np.abs(v - high) <= band)
    unsure = np.where(inside, band, 0.0) + at_tie + at_end * float(max(-low, high))
    rounding = compare.gamma(n + 7, kit.u(case.grad, *wide(case), result=found.step))
    for name, values, terms, loose in (
        ("step", found.step, slope, unsure),
        ("offset", found.offset, (~inside).astype(np.float64), at_end.astype(np.float64)),
    ):
        if values is None:
            kit.require(case.offset is None, "no gradient of an offset that was given")
            continue
        expected = g * (grad * terms).sum(axis=over).reshape(-1)
        reach = (np.abs(grad * terms)).sum(axis=over) * rounding + (np.abs(grad) * loose).sum(axis=over) * (
            1 + rounding
        )
        kit.check(compare.forward(values, expected, g * reach.reshape(-1) + kit.tiny(n), f"gradient of the {name}"))


@clause("S-5", tier="forward-error", case=learned_step_inputs())
def test_step_gradients(kit: Kit, case: LearnedStepInput) -> None:
    """Rounding error inside the range, its ends outside; without the scaling."""
    case = case._replace(offset=None)
    found = kit.call("lsq_gradient", case.grad, *case.arrays, count="unscaled", **case.options)
    kit.require(found.offset is None, "a gradient of an offset that was not given")
    judge_sums(kit, case, "unscaled", found)


@clause("S-5a", tier="forward-error", case=learned_step_inputs(), count=["elements", "features"])
def test_counts(kit: Kit, case: LearnedStepInput, count: str) -> None:
    """Everything that shares a step, or what one index of the batch holds of it."""
    axis = case.options["axis"]
    if count == "features" and (axis is not None and axis % case.x.ndim == 0):
        count = "elements"
    case = case._replace(offset=None)
    judge_sums(kit, case, count, kit.call("lsq_gradient", case.grad, *case.arrays, count=count, **case.options))


@clause("S-5b", tier="exact", case=learned_step_inputs(), epsilon=[0.5, 4.0])
def test_gradients_pass_through_the_floor(kit: Kit, case: LearnedStepInput, epsilon: float) -> None:
    """Gradients of a step below epsilon are those of a step equal to it, to the last bit."""
    options = {**case.options, "epsilon": epsilon}
    floor = np.full_like(case.step, epsilon)
    expected = kit.call("lsq_gradient", case.grad, case.x, floor, case.offset, **options)
    found = kit.call("lsq_gradient", case.grad, case.x, floor / 4, case.offset, **options)
    kit.check(compare.exact_bytes(found.x, expected.x, "gradient of x"))
    kit.check(compare.exact_bytes(found.step, expected.step, "gradient of the step"))


@clause("S-6", tier="forward-error", case=learned_step_inputs())
def test_offset_gradients(kit: Kit, case: LearnedStepInput) -> None:
    """With an offset: gradients of it and of the step, scaled alike."""
    if case.offset is None:
        case = case._replace(offset=-case.step)
    judge_sums(kit, case, "elements", kit.call("lsq_gradient", case.grad, *case.arrays, **case.options))
