"""Chapter T: ternary and min-max fake quantizers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lowbit.conformance import compare, strategies
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array


class FakeQuantInput(NamedTuple):
    """Argument of a fake quantizer, and where its statistics come from."""

    x: Array
    options: dict[str, Any]


@st.composite
def fake_quant_inputs(draw: st.DrawFn) -> FakeQuantInput:
    """Two or three axes, every sharing of statistics, clips that every format holds exactly."""
    x = np.clip(draw(strategies.matrices(columns=(1, 12))), -6e4, 6e4).astype(draw(strategies.float_dtypes(half=True)))
    if x.shape[1] % 2 == 0 and draw(st.booleans()):
        x = x.reshape(len(x), 2, -1)
    options = {
        "granularity": draw(st.sampled_from(["tensor", "row", "matrix"])),
        "clip": draw(st.sampled_from([None, None, 2.5, 0.25])),
    }
    return FakeQuantInput(x, options)


QUANTIZERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("twn", {}),
    ("clamped_uniform", {"bits": 4}),
    ("clamped_uniform", {"bits": 3, "outermost": "bounded"}),
    ("min_max", {"bits": 8}),
    ("min_max", {"bits": 3, "scheme": "asymmetric"}),
)


def shared_axes(x: Array, granularity: str) -> tuple[int, ...]:
    """Axes whose values share their statistics."""
    return {"tensor": tuple(range(x.ndim)), "row": (-1,), "matrix": (-2, -1)}[granularity]


def clipped(x: Array, clip: float | None) -> Array:
    """The clipped values in float64."""
    values = x.astype(np.float64)
    return values if clip is None else np.clip(values, -clip, clip)


def judge_ternary(kit: Kit, case: FakeQuantInput, threshold: float, found: Array, scale: Array | None) -> None:
    """Codes (with their scale) or values (None): the mask inside the band of the threshold, and its own mean.

    A mean of n magnitudes takes n roundings, its product with the threshold, itself rounded, two more.
    """
    X = clipped(case.x, case.options["clip"])
    over = shared_axes(X, case.options["granularity"])
    n = int(np.prod([X.shape[a] for a in over]))
    a = np.abs(X)
    cut = threshold * a.mean(axis=over, keepdims=True)
    u = kit.u(case.x)
    band = compare.gamma(n + 4, u) * cut + kit.tiny(n)
    mask = found != 0
    at_most, at_least = (a > cut - band) & (a > 0), a > cut + band
    kit.check(compare.interval(mask, at_least, at_most, "codes that are not 0"))
    kit.require(bool(np.all(np.sign(found)[mask] == np.sign(X)[mask])), "a code has the wrong sign")
    count = mask.sum(axis=over, keepdims=True)
    mean = (a * mask).sum(axis=over, keepdims=True) / np.maximum(count, 1)
    allowed = compare.gamma(n + 4, kit.u(case.x, result=found if scale is None else scale)) * mean + kit.tiny(n)
    if scale is None:
        kit.check(compare.forward(np.abs(found), mask * mean, allowed, "magnitude"))
    else:
        kit.check(compare.forward(scale, mean, allowed, "scale"))
        kit.require(bool(np.all(np.abs(found) <= 1)), "a code is not -1, 0 or 1")


@clause("T-1", tier="tie-band", case=fake_quant_inputs(), threshold=[0.7, 0.7, 0.5, 0.0])
def test_ternary_codes(kit: Kit, case: FakeQuantInput, threshold: float) -> None:
    """Codes differ only where a magnitude lies in the band of the threshold; scales are means of what is kept."""
    found = kit.call("twn_code", case.x, threshold=threshold, **case.options)
    kit.require(found.codes.dtype == np.int32, f"codes have dtype {found.codes.dtype}, expected int32")
    judge_ternary(kit, case, threshold, found.codes, found.scale)


@clause("T-1a", tier="exact", x=strategies.integers((3, 8), 16), dtype=strategies.FLOATS)
def test_a_tie_with_the_threshold_is_zero(kit: Kit, x: Array, dtype: str) -> None:
    """Rows of eight multiples of 1/8 and half their mean: every step is exact, so equality is equality."""
    x = (x / 8).astype(dtype)
    x[0] = np.array([1, -3, 4, 0, 2, 2, 2, 2]) / 8  # the mean is 2/8: the first entry is a tie
    options = {"granularity": "row", "threshold": 0.5}
    expected = kit.spec.twn_code(x, **options).codes
    kit.check(compare.exact(kit.call("twn_code", x, **options).codes, expected, "codes"))
    if kit.has("twn"):
        kit.check(compare.exact(np.sign(kit.call("twn", x, **options)), expected, "signs of values"))


@clause("T-1b", tier="exact", x=strategies.degenerate_groups())
def test_zeros_stay_zero(kit: Kit, x: Array) -> None:
    """Rows of zeros are answered with zeros, the other rows with finite numbers, with and without a clip."""
    x = x.copy()
    x[0] = 0.0
    zero = ~np.any(x, axis=1)
    for op, options in QUANTIZERS:
        if kit.has(op):
            with kit.part(op):
                for clip in (None, 0.5):
                    found = kit.call(op, x, granularity="row", clip=clip, **options)
                    kit.require(bool(np.isfinite(found).all()), f"{op}({options}) answers a number that is not finite")
                    kit.check(compare.exact(found[zero], np.zeros_like(found[zero]), f"{op}({options}) of zeros"))
                    alone = kit.call(op, np.zeros_like(x), clip=clip, **options)
                    kit.check(compare.exact(alone, np.zeros_like(alone), f"{op}({options}) of a tensor of zeros"))
    if kit.has("twn_code"):
        code = kit.call("twn_code", x, granularity="row")
        kit.check(compare.exact(code.scale[zero], np.zeros_like(code.scale[zero]), "scale of zeros"))
        kit.check(compare.exact(code.codes[zero], np.zeros_like(code.codes[zero]), "codes of zeros"))


@clause("T-2", tier="tie-band", case=fake_quant_inputs(), threshold=[0.7, 0.7, 0.5, 0.0])
def test_ternary_values(kit: Kit, case: FakeQuantInput, threshold: float) -> None:
    """Values are 0 or ± the mean of the magnitudes that are kept."""
    found = kit.call("twn", case.x, threshold=threshold, **case.options)
    judge_ternary(kit, case, threshold, found, None)


@clause("T-2a", tier="exact", case=fake_quant_inputs())
def test_statistics_are_local(kit: Kit, case: FakeQuantInput) -> None:
    """A row or matrix alone gives the bytes that it gives among others."""
    x = case.x
    granularity = "matrix" if x.ndim == 3 else "row"
    for op, options in QUANTIZERS:
        if kit.has(op):
            with kit.part(op):
                together = kit.call(op, x, granularity=granularity, clip=case.options["clip"], **options)
                apart = [kit.call(op, x[i : i + 1], granularity=granularity, clip=case.options["clip"], **options)
                         for i in range(len(x))]  # fmt: skip
                kit.check(compare.exact_bytes(together, np.concatenate(apart), f"{op}({options}) by {granularity}"))


@clause("T-2a", tier="exact", dtype=strategies.FLOATS)
def test_statistics_of_matrices_are_local(kit: Kit, dtype: str) -> None:
    """Matrices and rows of very different sizes, each alone and among the others."""
    x = (np.arange(24).reshape(2, 3, 4) % 7 - 3.0).astype(dtype) * np.array([1, 64], dtype)[:, None, None]
    for op, options in QUANTIZERS:
        if kit.has(op):
            with kit.part(op):
                for granularity in ("matrix", "row"):
                    together = kit.call(op, x, granularity=granularity, **options)
                    apart = [kit.call(op, x[i : i + 1], granularity=granularity, **options) for i in range(len(x))]
                    what = f"{op}({options}) by {granularity}"
                    kit.check(compare.exact_bytes(together, np.concatenate(apart), what))


@clause("T-2b", tier="exact", case=fake_quant_inputs(), clip=[0.25, 2.5, 64.0])
def test_the_clip_comes_first(kit: Kit, case: FakeQuantInput, clip: float) -> None:
    """Clipping inside and before the call give the same bytes; clips are exact in every format."""
    bound = case.x.dtype.type(clip)
    before = np.clip(case.x, -bound, bound)
    granularity = case.options["granularity"]
    for op, options in QUANTIZERS:
        if kit.has(op):
            with kit.part(op):
                inside = kit.call(op, case.x, granularity=granularity, clip=clip, **options)
                outside = kit.call(op, before, granularity=granularity, **options)
                kit.check(compare.exact_bytes(inside, outside, f"{op}({options}) with a clip of {clip}"))


AT_THE_MEAN = 1 - 2.0**-16  # share of α from which a magnitude is at α


@clause("T-3", tier="tie-band", case=fake_quant_inputs(), bits=st.integers(2, 8), outermost=["published", "bounded"])
def test_clamped_uniform_values(kit: Kit, case: FakeQuantInput, bits: int, outermost: str) -> None:
    """Whole multiples of the step; the nearest to the clamped value outside the tie band.

    Groups in which a magnitude lies so near the mean that rounding decides whether it counts have no determined step
    and are left out, unless the step does not depend on it, and so are magnitudes so near to the place where they
    count as at α. α takes n + 2 roundings, the step one more, a quotient or product by it another.
    """
    X = clipped(case.x, case.options["clip"])
    over = shared_axes(X, case.options["granularity"])
    n = int(np.prod([X.shape[a] for a in over]))
    a = np.abs(X)
    u = kit.u(case.x)
    m = a.mean(axis=over, keepdims=True)
    band = compare.gamma(n + 2, u) * m
    choices = []
    for mask in (m - band < a, m + band < a):
        count = mask.sum(axis=over, keepdims=True)
        choices.append(np.where(count > 0, (a * mask).sum(axis=over, keepdims=True) / np.maximum(count, 1), m))
    α = choices[1]
    determined = np.broadcast_to(np.abs(choices[0] - α) <= compare.gamma(n + 2, u) * α, X.shape)
    found = kit.call("clamped_uniform", case.x, bits=bits, outermost=outermost, **case.options)
    step = np.where(α > 0, 2 * α / (2**bits - 1), 1.0)
    ratio = np.clip(X, -α, α) / step
    last = 2 ** (bits - 1) - (1 if outermost == "bounded" else 0)
    at = a - AT_THE_MEAN * α
    expected = np.clip(np.where(at >= 0, np.sign(X) * 2 ** (bits - 1), np.rint(ratio)), -last, last)
    codes = np.rint(found.astype(np.float64) / step)
    where = determined & (a > 0) & (np.abs(at) > compare.gamma(n + 4, u) * α)
    kit.check(
        compare.codes(
            codes[where], expected[where], ratio[where], compare.tie_band(ratio, u, 2 * n + 8)[where], "codes"
        )
    )
    kit.require(bool(np.all(np.abs(codes[where]) <= last)), f"a code lies beyond {last}")
    allowed = compare.gamma(2 * n + 8, kit.u(case.x, result=found)) * np.abs(codes * step) + kit.tiny(n)
    kit.check(compare.forward(found[where], (codes * step)[where], allowed[where], "values"))


@clause("T-3a", tier="forward-error", dtype=strategies.FLOATS, bits=st.integers(2, 8))
def test_the_outermost_level(kit: Kit, dtype: str, bits: int) -> None:
    """Magnitudes at and beyond α: 2^(b-1) steps as published, one less when bounded. Everything but the step is exact.

    The mean of (0, 1, 2, 5) is 2, so that 5 alone is above it; of (0, 0, 4, 4, 1, 3, 2, 2) it is 2, and 4, 4, 3 above
    it have the mean 11/3; a row of equal magnitudes has that one, whatever their sum and its quotient are rounded to.
    """
    rows = np.array([[0, 1, -2, 5, 0, 1, 2, -5], [0, 0, 4, -4, 1, 3, 2, 2], [3, -3, 3, 3, -3, 3, 3, 3]], np.float64)
    α = np.array([[5.0], [11 / 3], [3.0]])
    for outermost, last in (("published", 2 ** (bits - 1)), ("bounded", 2 ** (bits - 1) - 1)):
        found = kit.call("clamped_uniform", rows.astype(dtype), bits=bits, granularity="row", outermost=outermost)
        outer = np.abs(rows) >= α
        expected = np.sign(rows) * last * (2 * α / (2**bits - 1))
        allowed = compare.gamma(8 + 8, kit.u(np.dtype(dtype), result=found)) * np.abs(expected)
        kit.check(compare.forward(found[outer], expected[outer], allowed[outer], f"outermost level, {outermost}"))
        for n in range(3, 80, 4):
            level = np.asarray(n / 7, dtype)
            row = level * np.where(np.arange(n) % 3, 1, -1).astype(dtype)
            found = kit.call("clamped_uniform", row[None], bits=bits, granularity="row", outermost=outermost)
            expected = row[None].astype(np.float64) * last * (2 / (2**bits - 1))
            allowed = compare.gamma(2 * n + 8, kit.u(np.dtype(dtype), result=found)) * np.abs(expected)
            kit.check(compare.forward(found, expected, allowed, f"{n} equal magnitudes, {outermost}"))


@clause("T-3b", tier="exact", x=strategies.integers((3, 8), 254), dtype=strategies.FLOATS, bits=st.integers(2, 8))
def test_ties_inside_the_clamped_grid(kit: Kit, x: Array, dtype: str, bits: int) -> None:
    """Half of every row is ±(2^bits − 1)/2, the other half multiples of 1/2 below half of that, and so below the mean.

    The large half alone is above the mean, which makes the step 1 exactly; nothing rounds but the codes.
    """
    α = (2**bits - 1) / 2
    inner = np.sign(x) * (np.abs(x) % (int(α) + 1)) / 2
    outer = np.where(x % 2, 1.0, -1.0)
    rows = np.concatenate([inner, α * outer], axis=1).astype(dtype)
    for outermost, last in (("published", 2 ** (bits - 1)), ("bounded", 2 ** (bits - 1) - 1)):
        found = kit.call("clamped_uniform", rows, bits=bits, granularity="row", outermost=outermost)
        kit.check(compare.exact(found[:, :8], np.rint(inner), f"values of ties, {outermost}"))
        kit.check(compare.exact(found[:, 8:], last * outer, f"outermost values, {outermost}"))


@clause(
    "T-4",
    tier="tie-band",
    case=fake_quant_inputs(),
    bits=st.integers(2, 8),
    scheme=["symmetric", "asymmetric"],
    epsilon=strategies.EPSILONS,
)
def test_min_max_values(kit: Kit, case: FakeQuantInput, bits: int, scheme: str, epsilon: float) -> None:
    """Between the values of the smallest and the largest code that rounding may have given.

    x - lo, n times it, the range (two sums) and the quotient: five roundings; the value adds a quotient, a product
    and a sum.
    """
    X = clipped(case.x, case.options["clip"])
    over = shared_axes(X, case.options["granularity"])
    low, high = X.min(axis=over, keepdims=True), X.max(axis=over, keepdims=True)
    if scheme == "symmetric":
        low, reach, n = 0 * low, np.maximum(high, -low) + epsilon, 2 ** (bits - 1) - 1
    else:
        reach, n = high - low + epsilon, 2**bits - 1
    found = kit.call("min_max", case.x, bits=bits, scheme=scheme, epsilon=epsilon, **case.options)
    ratio = n * (X - low) / np.where(reach > 0, reach, 1)
    band = compare.tie_band(ratio, kit.u(case.x), 5)
    first, last = (low + reach * (np.rint(ratio + side) / n) for side in (-band, band))
    slack = compare.gamma(6, kit.u(case.x, result=found)) * (np.abs(low) + np.abs(first) + reach) + kit.tiny(4)
    kit.check(compare.interval(found.astype(np.float64), first - slack, last + slack, "values"))


@clause("T-4a", tier="exact", x=arrays(np.int64, (4, 6), elements=st.integers(0, 510), fill=st.nothing()),
        dtype=strategies.FLOATS)  # fmt: skip
def test_ties_above_the_smallest_value(kit: Kit, x: Array, dtype: str) -> None:
    """Asymmetric codes count from the smallest value: with that at -3 and a step of 1, -2.5 goes to -3."""
    for bits in (1, 2, 3, 5, 8):
        halves = x % (2 ** (bits + 1) - 1) / 2
        halves[:, :2] = [0, 2**bits - 1]
        found = kit.call("min_max", (halves - 3).astype(dtype), bits=bits, scheme="asymmetric", granularity="row")
        close = np.abs(found - (np.rint(halves) - 3)) < np.float64(1) / 2  # the values are codes, rounded
        kit.require(bool(close.all()), f"a tie does not go to the even code with {bits} bits")


@clause("T-4a", tier="exact", x=strategies.integers((4, 6), 254),
        dtype=strategies.FLOATS)  # fmt: skip
def test_ties_and_extremes(kit: Kit, x: Array, dtype: str) -> None:
    """Halves of every width: codes are rounded half to even; of any tensor the largest magnitude comes back."""
    for bits in (8, 2, 3, 5):
        top = 2 ** (bits - 1) - 1
        halves = np.sign(x) * (np.abs(x) % (2 * top + 1)) / 2
        halves[:, 0] = top
        found = kit.call("min_max", halves.astype(dtype), bits=bits, granularity="row")
        close = np.abs(found - np.rint(halves)) < np.float64(1) / 2  # the values are codes, rounded
        kit.require(bool(close.all()), f"a tie does not go to the even code with {bits} bits")
    general = (x / 3).astype(dtype)
    for granularity in ("row", "tensor"):
        found = kit.call("min_max", general, granularity=granularity)
        largest = np.abs(general).max(axis=1 if granularity == "row" else None, keepdims=True)
        at = np.abs(general) == largest
        kit.check(compare.exact(found[at], general[at].astype(found.dtype), "largest magnitude"))


@clause("T-5", tier="exact", case=fake_quant_inputs())
def test_gradients_pass_inside(kit: Kit, case: FakeQuantInput) -> None:
    """Unchanged strictly inside the clip, 0 at it and beyond, whatever the format makes of the clip itself.

    float32 and float16 round 0.7 to different sides, and 0.1 as well.
    """
    for clip in (None, 2.5, 0.7, 0.1):
        x = np.array(case.x).reshape(-1)
        if clip is not None:
            near = np.asarray(clip, x.dtype)
            away, below = np.nextafter(near, x.dtype.type(9)), np.nextafter(near, x.dtype.type(0))
            x = np.concatenate([x, [near, -near, away, -away, below, -below]]).astype(x.dtype)
        grad = (np.arange(1, x.size + 1) / 8).astype(x.dtype)
        found = kit.call("straight_through", grad, x, clip=clip)
        kit.check(compare.exact(found, kit.spec.straight_through(grad, x, clip=clip), f"gradient with clip {clip}"))
