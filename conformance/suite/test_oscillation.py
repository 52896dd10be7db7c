"""Chapter O: StatsQ, weights that oscillate, annealing, and attention through the query-key product."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from lowbit.conformance import compare, strategies
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array
from lowbit.reference.types import Oscillation, QkrQuantizers

BITS = st.integers(1, 6)
RANGES = st.sampled_from([0.0, 0.125, 0.25, 0.5])


@st.composite
def any_weights(draw: st.DrawFn) -> Array:
    """Matrices and stacks of general, dead and repeated rows, in every precision."""
    w = np.clip(draw(strategies.matrices(columns=(1, 10))), -6e4, 6e4)
    w = np.stack([w, w[::-1]]) if draw(st.booleans()) else w
    return w.astype(draw(strategies.float_dtypes(half=True)))


@st.composite
def even_rows(draw: st.DrawFn) -> Array:
    """Eighths with one more column that makes every scale a power of two: nothing rounds, and ties are many.

    Matrices, and stacks of two that share their scales.
    """
    m, k = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    flat = draw(st.lists(st.integers(-24, 24), min_size=m * k, max_size=m * k))
    rows = np.array(flat).reshape(m, k) / 8
    total = np.abs(rows).sum(axis=1)
    alpha = np.exp2(np.ceil(np.log2(np.maximum(2 * total / (k + 1), 0.25))))
    last = alpha * (k + 1) / 2 - total
    sign = draw(st.sampled_from([1.0, -1.0]))
    whole = np.append(rows, sign * last[:, None], axis=1)
    whole = np.stack([whole, -whole[:, ::-1]]) if draw(st.booleans()) else whole
    return np.asarray(whole, draw(strategies.float_dtypes(half=True)))


class Grid(NamedTuple):
    """What (O.1) to (O.3) make of a weight, in float64."""

    alpha: Array
    v: Array  # weights in steps
    codes: Array
    n: int
    shared: int  # weights that share a scale


def statistics(w: Array, bits: int) -> Grid:
    """The equations, with the sign of a tie decided by parity instead of by a rounding."""
    x, n = w.astype(np.float64), 2 ** (bits - 1)
    axes = tuple(a for a in range(x.ndim) if a != x.ndim - 2)
    alpha = 2 * np.abs(x).mean(axis=axes, keepdims=True)
    v = np.divide(n * x, alpha, out=np.zeros_like(x), where=alpha > 0)
    below = np.floor(v)
    k = np.where((v == below) & (below % 2 != 0), below - 1, below)
    return Grid(alpha, v, np.clip(k, -n, n - 1).astype(np.int64), n, x.size // x.shape[-2])


def step_band(grid: Grid, u: float) -> Array:
    """Error of a weight in steps: the sum behind α, doubling, mean, product, quotient, and the half taken off."""
    return compare.tie_band(np.abs(grid.v) + 1, u, grid.shared + 5)


@clause("O-1", tier="tie-band", w=any_weights(), bits=BITS)
def test_codes(kit: Kit, w: Array, bits: int) -> None:
    """The nearest of 2^bits levels; int32."""
    found, grid = kit.call("statsq", w, bits=bits), statistics(w, bits)
    kit.require(found.codes.dtype == np.int32, f"codes have dtype {found.codes.dtype}, expected int32")
    u = kit.u(w, result=found.values)
    kit.check(compare.codes(found.codes, grid.codes, grid.v - 0.5, step_band(grid, u)))


@clause("O-1a", tier="forward-error", w=any_weights(), bits=BITS)
def test_scale(kit: Kit, w: Array, bits: int) -> None:
    """Twice the mean magnitude over all axes but the last but one, summed in float32 at least."""
    found, grid = kit.call("statsq", w, bits=bits), statistics(w, bits)
    allowed = compare.gamma(grid.shared + 3, kit.u(w, result=found.scale)) * grid.alpha + kit.tiny(grid.shared)
    kit.check(compare.forward(found.scale, grid.alpha, allowed, "scale"))


@clause("O-1b", tier="forward-error", w=any_weights(), bits=BITS)
def test_values(kit: Kit, w: Array, bits: int) -> None:
    """Half a step above the code, times the scale that was found."""
    found, n = kit.call("statsq", w, bits=bits), 2 ** (bits - 1)
    expected = found.scale.astype(np.float64) * (found.codes + 0.5) / n
    allowed = compare.gamma(3, kit.u(w, result=found.values)) * np.abs(expected) + kit.tiny(3)
    kit.check(compare.forward(found.values, expected, allowed, "values"))


@clause("O-1c", tier="exact", w=even_rows(), bits=BITS)
def test_thresholds_that_are_hit(kit: Kit, w: Array, bits: int) -> None:
    """Half to even: 0 goes up, one step down, two up."""
    found, grid = kit.call("statsq", w, bits=bits), statistics(w, bits)
    kit.check(compare.exact(found.scale, grid.alpha, "scale"))
    kit.check(compare.exact(found.codes, grid.codes, "codes"))


@clause("O-2", tier="exact", dtype=strategies.FLOATS, bits=st.integers(1, 8), unit=st.integers(-2, 3))
def test_no_more_levels_than_bits_allow(kit: Kit, dtype: str, bits: int, unit: int) -> None:
    """Weights at and beyond the clipping point, in every precision: 1 - 1e-6 is 1 in half precision, and with one bit
    the lower clip rounds away from its level."""
    w = (np.array([[8, -8, 0.5, -0.5, 1, -1, 0, 2], [3, -3, 3, -3, 3, -3, 3, -3]]) * 2.0**unit).astype(dtype)
    w[1, :4] = w[1, :4] / 3 * np.array([1, 1, 5, 5], dtype)  # ±α/2 and, beyond it, ±5α/6 …
    w[1, 4:] = w[1, 4:] / 3 * np.array([2, 2, 2, 4], dtype)  # … with some at α exactly
    found, n = kit.call("statsq", w, bits=bits), 2 ** (bits - 1)
    kit.require(found.codes.max() <= n - 1, f"code {found.codes.max()}: {bits} bits end at {n - 1}")
    kit.require(found.codes.min() >= -n, f"code {found.codes.min()}: {bits} bits begin at {-n}")
    kit.check(compare.exact(found.codes[0, :2], np.array([n - 1, -n]), "codes beyond the clipping point"))


@clause("O-2a", tier="exact", dtype=strategies.FLOATS, bits=BITS, rows=st.integers(1, 3))
def test_rows_of_zeros(kit: Kit, dtype: str, bits: int, rows: int) -> None:
    """Zeros, not NaN; ordinary rows beside them are quantized as ever."""
    w = np.zeros((2 * rows, 4), dtype)
    w[::2] = [1, -1, 1, -1]
    found = kit.call("statsq", w, bits=bits)
    for name in found._fields:
        kit.check(compare.exact(getattr(found, name)[1::2], np.zeros_like(getattr(found, name)[1::2]), name))
    kit.require(bool(np.isfinite(found.values).all()), "values are not finite")
    kit.require(bool((found.values[::2] != 0).all()), "an ordinary row became zero")


@st.composite
def slopes(draw: st.DrawFn, rows: st.SearchStrategy[Array]) -> tuple[Array, Array]:
    """A weight and a gradient of eighths."""
    w = draw(rows)
    flat = draw(st.lists(st.integers(-40, 40), min_size=w.size, max_size=w.size))
    return w, (np.array(flat).reshape(w.shape) / 8).astype(w.dtype)


@clause("O-3", tier="exact", case=slopes(any_weights()), bits=BITS)
def test_straight_through_gradient(kit: Kit, case: tuple[Array, Array], bits: int) -> None:
    """As it came, for clipped weights too, and nothing through the scale."""
    found = kit.call("statsq_grad", *case, bits=bits)
    kit.check(compare.exact(found, case[1], "gradient"))


@clause("O-3a", tier="forward-error", case=slopes(even_rows()), bits=BITS)
def test_gradient_through_the_scale(kit: Kit, case: tuple[Array, Array], bits: int) -> None:
    """The derivative of the values where codes are constant: every weight that shares a scale moves it alike."""
    (w, g), grid = case, statistics(case[0], bits)
    found = kit.call("statsq_grad", w, g, bits=bits, path="scale")
    terms = g * (grid.codes + 0.5) / grid.n
    axes = tuple(a for a in range(w.ndim) if a != w.ndim - 2)
    pull, size = (2 * f(terms).sum(axis=axes, keepdims=True) / grid.shared for f in (np.positive, np.abs))
    allowed = compare.gamma(grid.shared + 4, kit.u(w, result=found)) * size + kit.tiny(grid.shared)
    expected = np.sign(w.astype(np.float64)) * pull
    kit.check(compare.forward(found, expected, np.broadcast_to(allowed, w.shape), "gradient"))


# -- oscillations ------------------------------------------------------------------------------------------------------


class Weight:
    """One weight's tracker, in plain numbers."""

    def __init__(self, code: int) -> None:
        self.code, self.last, self.frequency, self.total = code, 0, 0.0, 0
        self.average, self.frozen, self.target = float(code), False, 0

    def step(self, code: int, m: float, threshold: float | None, freeze_to: str, targets: str) -> None:
        k = self.target if self.frozen else code
        went = (self.code > k) - (self.code < k)
        turned = went * self.last < 0
        self.frequency = m * turned + (1 - m) * self.frequency
        self.total += turned
        self.last = went or self.last
        if threshold is not None and self.frequency > threshold:
            if not self.frozen or targets == "rewritten":
                self.target = round(self.average) if freeze_to == "average" else k  # Python rounds half to even
            self.frozen = True
        self.average = m * k + (1 - m) * self.average
        self.code = k

    def state(self) -> tuple[float, ...]:
        """In the order of :class:`Oscillation`."""
        return (self.code, self.last, self.frequency, self.total, self.average, self.frozen, self.target)


@st.composite
def histories(draw: st.DrawFn) -> Array:
    """Codes of up to three weights over two to nine steps, some of them going back and forth all the time."""
    steps, count = draw(st.integers(2, 9)), draw(st.integers(1, 3))
    columns = []
    for _ in range(count):
        if draw(st.booleans()):
            columns.append([draw(st.integers(-2, 1)) + t % 2 for t in range(steps)])
        else:
            columns.append(draw(st.lists(st.integers(-2, 2), min_size=steps, max_size=steps)))
    return np.array(columns, np.int32).T.copy()


def follow(kit: Kit, codes: Array, fields: tuple[str, ...], **options: Any) -> None:
    """Every field after every step, exactly: means of dyadic momentum are exact in float32 for this many steps."""
    state = kit.call("start_oscillation", codes[0])
    weights = [Weight(int(c)) for c in codes[0]]
    kit.check(compare.exact(state.average, codes[0], "average at the start"))
    rule: dict[str, Any] = {"m": options["momentum"], "threshold": None, "freeze_to": "average", "targets": "held"}
    rule |= {name: value for name, value in options.items() if name != "momentum"}
    for t, row in enumerate(codes):
        state = kit.call("track_oscillation", row, *state, **options)
        for weight, code in zip(weights, row, strict=True):
            weight.step(int(code), **rule)
        expected = np.array([w.state() for w in weights]).T
        for name in fields:
            wanted = expected[Oscillation._fields.index(name)]
            kit.check(compare.exact(getattr(state, name), wanted, f"{name} after step {t + 1}"))


@clause("O-4", tier="exact", codes=histories(), momentum=[0.5, 0.25, 1.0])
def test_oscillations_are_counted(kit: Kit, codes: Array, momentum: float) -> None:
    """A change against the last change, however long ago; the first change is none."""
    follow(kit, codes, ("codes", "direction", "total", "frequency", "frozen"), momentum=momentum)


@clause(
    "O-4a",
    tier="exact",
    codes=histories(),
    momentum=[0.5, 0.25],
    threshold=[0.5, 0.3, 0.25, 0.75],
    freeze_to=["average", "current"],
    targets=["held", "rewritten"],
)
def test_freezing(kit: Kit, codes: Array, momentum: float, threshold: float, freeze_to: str, targets: str) -> None:
    """Above the threshold only, for good, at the mean before the step or the code of the step."""
    options = {"momentum": momentum, "threshold": threshold, "freeze_to": freeze_to, "targets": targets}
    follow(kit, codes, ("codes", "frozen", "target", "average"), **options)


@clause(
    "O-4a",
    tier="exact",
    state=st.lists(
        st.tuples(*[st.integers(-2, 2)] * 2, st.integers(-1, 1), *[st.integers(0, 8)] * 2, st.booleans()),
        min_size=1,
        max_size=5,
    ),
    freeze_to=["average", "current"],
    targets=["held", "rewritten"],
)
def test_targets(kit: Kit, state: list[tuple[int, int, int, int, int, bool]], freeze_to: str, targets: str) -> None:
    """One step from any state, means of codes that are halves: half to even, and once or again and again."""
    codes, previous, direction, eighths, halves, frozen = (np.array(column) for column in zip(*state, strict=True))
    weights = []
    for j in range(len(state)):
        weight = Weight(int(previous[j]))
        weight.last, weight.frequency, weight.frozen = int(direction[j]), eighths[j] / 8, bool(frozen[j])
        weight.average, weight.target = halves[j] / 2 - 2, 3
        weight.step(int(codes[j]), 0.5, 0.25, freeze_to, targets)
        weights.append(weight)
    i32 = np.int32
    found = kit.call(
        "track_oscillation",
        codes.astype(i32),
        previous.astype(i32),
        direction.astype(i32),
        (eighths / 8).astype(np.float32),
        np.zeros(len(state), i32),
        (halves / 2 - 2).astype(np.float32),
        frozen,
        np.full(len(state), 3, i32),
        momentum=0.5,
        threshold=0.25,
        freeze_to=freeze_to,
        targets=targets,
    )
    for name, wanted in zip(Oscillation._fields, np.array([w.state() for w in weights]).T, strict=True):
        kit.check(compare.exact(getattr(found, name), wanted, name))


@clause(
    "O-4b",
    tier="forward-error",
    codes=st.lists(st.tuples(*[st.integers(-3, 3)] * 2, st.integers(-1, 1)), min_size=1, max_size=6),
    momentum=[0.01, 0.1, 0.3],
    dtype=strategies.WIDE_FLOATS,
    data=st.data(),
)
def test_running_means(kit: Kit, codes: list[tuple[int, int, int]], momentum: float, dtype: str, data: Any) -> None:
    """One step from any state: two products with coefficients rounded once each, and a sum."""
    now, before, went = np.array(codes, np.int32).T.copy()
    size = now.size
    sixteenths = st.lists(st.integers(0, 16), min_size=size, max_size=size)
    f, mean = (np.array(data.draw(sixteenths)).astype(dtype) / np.array(16, dtype) for _ in range(2))
    no, zero = np.zeros(size, np.bool_), np.zeros(size, np.int32)
    found = kit.call("track_oscillation", now, before, went, f, zero, mean, no, zero, momentum=momentum)
    turned = (np.sign(before - now) * went < 0).astype(np.float64)
    for name, new, old in (("frequency", turned, f), ("average", now.astype(np.float64), mean)):
        old = old.astype(np.float64)
        allowed = compare.gamma(4, kit.u(f, result=getattr(found, name))) * (
            momentum * np.abs(new) + (1 - momentum) * np.abs(old)
        )
        expected = momentum * new + (1 - momentum) * old
        kit.check(compare.forward(getattr(found, name), expected, allowed + kit.tiny(3), name))


def inside(v: Array, codes: tuple[int, int], width: Array | float) -> Array:
    """Which weights are within ``width`` of a threshold between the two codes."""
    hit = np.zeros(v.shape, np.bool_)
    for t in range(codes[0] + 1, codes[1] + 1):
        hit |= np.abs(v - t) <= width
    return hit


def exact_mask(w: Array, bits: int, width: float, thresholds: str) -> Array:
    """The mask of rows in which nothing rounds."""
    grid = statistics(w, bits)
    occupied = (int(grid.codes.min()), int(grid.codes.max()))
    return inside(grid.v, occupied if thresholds == "occupied" else (-grid.n, grid.n - 1), width)


THRESHOLDS = st.sampled_from(["all", "occupied"])


@clause("O-5", tier="forward-error", case=slopes(even_rows()), bits=BITS, width=RANGES, thresholds=THRESHOLDS)
def test_boundary_statistics(kit: Kit, case: tuple[Array, Array], bits: int, width: float, thresholds: str) -> None:
    """Counts, each divided once; a gradient of 0 has not changed sign."""
    w, g = case
    before = np.roll(g, 1, axis=1)
    found = kit.call("boundary_statistics", w, g, before, bits=bits, boundary_range=width, thresholds=thresholds)
    near = exact_mask(w, bits, width, thresholds)
    flip = g.astype(np.float64) * before < 0
    kit.check(compare.exact(found.near, near.sum(), "near"))
    u = kit.u(np.float32)
    for name, part, whole in (
        ("share", near.sum(), near.size),
        ("flips", (flip & near).sum(), near.sum()),
        ("flips_elsewhere", (flip & ~near).sum(), (~near).sum()),
    ):
        expected = part / max(whole, 1)
        kit.check(compare.forward(getattr(found, name), expected, compare.gamma(1, u) * expected, name))


@clause("O-6", tier="tie-band", w=any_weights(), bits=BITS, width=strategies.BOUNDARY_RANGES, thresholds=THRESHOLDS)
def test_mask(kit: Kit, w: Array, bits: int, width: float, thresholds: str) -> None:
    """Within the range of a threshold; where rounding decides, either. Bool."""
    found, grid = kit.call("cga_mask", w, bits=bits, boundary_range=width, thresholds=thresholds), statistics(w, bits)
    kit.require(found.dtype == np.bool_, f"the mask has dtype {found.dtype}, expected bool")
    band = step_band(grid, kit.u(w))
    sure = maybe = (-grid.n, grid.n - 1)
    if thresholds == "occupied":
        lower, upper = (np.clip(np.floor(grid.v + d), -grid.n, grid.n - 1) for d in (-band, band))
        lower = np.where(np.floor(grid.v) == grid.v, np.minimum(lower, grid.codes), lower)
        sure, maybe = ((int(a.min()), int(b.max())) for a, b in ((upper, lower), (lower, upper)))
    low, high = inside(grid.v, sure, width - band), inside(grid.v, maybe, width + band)
    kit.check(compare.interval(found.astype(np.int32), low.astype(np.int32), high.astype(np.int32), "mask"))


@clause("O-6a", tier="exact", w=even_rows(), bits=BITS, width=RANGES, thresholds=THRESHOLDS)
def test_ends_of_the_range(kit: Kit, w: Array, bits: int, width: float, thresholds: str) -> None:
    """Both ends are inside; ``occupied`` looks at the extreme codes of the whole matrix, ``all`` at none."""
    found = kit.call("cga_mask", w, bits=bits, boundary_range=width, thresholds=thresholds)
    kit.check(compare.exact(found, exact_mask(w, bits, width, thresholds), f"mask of {thresholds!r}"))


@st.composite
def annealing_states(draw: st.DrawFn) -> tuple[tuple[Array, ...], dict[str, Any]]:
    """Arrays and options of one step; numbers are eighths, so that nothing but the update rounds."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    dtype, size = draw(strategies.float_dtypes()), int(np.prod(shape))

    def eighths(low: int, high: int) -> Array:
        drawn = draw(st.lists(st.integers(low, high), min_size=size, max_size=size))
        return (np.array(drawn).reshape(shape) / 8).astype(dtype)

    w, grad, first = (eighths(-40, 40) for _ in range(3))
    options = {
        "step": draw(st.integers(1, 5)),
        "lr": draw(st.sampled_from([0.5, 0.1, 0.02])),
        "beta1": draw(st.sampled_from([0.9, 0.5, 0.0])),
        "beta2": draw(st.sampled_from([0.999, 0.95])),
        "epsilon": draw(st.sampled_from([0.0, 0.125])),
        "decay": draw(st.sampled_from([0.0, 0.1, 0.5])),
    }
    return (w, grad, first, eighths(0, 40), eighths(0, 2) > 0), options


@clause("O-7", tier="exact", case=annealing_states())
def test_frozen_weights(kit: Kit, case: tuple[tuple[Array, ...], dict[str, Any]]) -> None:
    """In every bit, whatever momentum and weight decay would do."""
    arrays, options = case
    found, frozen = kit.call("cga_step", *arrays, **options), ~arrays[4]
    kit.check(compare.exact(found.weight[frozen], arrays[0][frozen], "frozen weights"))


@clause("O-7a", tier="forward-error", case=annealing_states())
def test_active_weights(kit: Kit, case: tuple[tuple[Array, ...], dict[str, Any]]) -> None:
    """AdamW for what is active; moments of the rest fade, as with a gradient of 0.

    Three roundings in the first moment, five in the second; the quotient adds nine and the update four.
    """
    arrays, options = case
    found = kit.call("cga_step", *arrays, **options)
    w, grad, first, second = (a.astype(np.float64) for a in arrays[:4])
    on, u = arrays[4], kit.u(arrays[0], result=found.weight)
    grad = np.where(on, grad, 0.0)
    b1, b2, t, lr = options["beta1"], options["beta2"], options["step"], options["lr"]
    mean, size = b1 * first + (1 - b1) * grad, b1 * np.abs(first) + (1 - b1) * np.abs(grad)
    square = b2 * second + (1 - b2) * grad**2
    below = np.sqrt(square / (1 - b2**t)) + options["epsilon"]
    safe = np.where(below > 0, below, 1.0)
    move, most = (np.where(below > 0, a / (1 - b1**t) / safe, 0.0) for a in (mean, size))
    moved = w - lr * (move + options["decay"] * w)
    reach = np.abs(w) + lr * (most + options["decay"] * np.abs(w))
    for name, new, allowed in (
        ("first", mean, compare.gamma(3, u) * size),
        ("second", square, compare.gamma(5, u) * square),
        ("weight", np.where(on, moved, w), compare.gamma(16, u) * reach),
    ):
        kit.check(compare.forward(getattr(found, name), new, allowed + kit.tiny(16), name))


@clause("O-7a", tier="forward-error", dtype=strategies.WIDE_FLOATS, step=st.integers(1, 3))
def test_a_weight_without_gradient_stays(kit: Kit, dtype: str, step: int) -> None:
    """No gradient, now or before, and no epsilon: 0 / 0 is no movement, and decay still acts."""
    w, zero = np.array([[1.5, -2.0]], dtype), np.zeros((1, 2), dtype)
    for decay in (0.0, 0.5):
        found = kit.call(
            "cga_step", w, zero, zero, zero, np.ones((1, 2), np.bool_), step=step, lr=0.5, epsilon=0.0, decay=decay
        )
        allowed = compare.gamma(4, kit.u(w, result=found.weight)) * np.abs(w)
        kit.check(compare.forward(found.weight, w * (1 - 0.5 * decay), allowed, "weight"))


# -- the query-key product ---------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """An attention layer in small integers times a unit."""

    x: Array  # (B, N, C)
    w_q: Array  # (H·d, C)
    w_k: Array
    w_v: Array  # (H·e, C)
    b_q: Array  # (H·d,)
    b_v: Array
    heads: int


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """One or two sequences, one to three heads; some layers without bias, tokens of zero among the others."""
    B, N, C, H, d, e = (draw(st.integers(1, top)) for top in (2, 4, 4, 3, 2, 2))
    unit, dtype = draw(st.sampled_from([0.25, 0.1, 1 / 3])), draw(strategies.float_dtypes(half=True))

    def entries(*shape: int) -> Array:
        size = int(np.prod(shape))
        flat = draw(st.lists(st.integers(-6, 6), min_size=size, max_size=size))
        return (np.array(flat).reshape(shape) * unit).astype(dtype)

    shapes = ((B, N, C), (H * d, C), (H * d, C), (H * e, C), (H * d,), (H * e,))
    x, q, k, v, b_q, b_v = (entries(*s) for s in shapes)
    return Layer(x, q, k, v, b_q, b_v, H)


def by_head(w: Array, heads: int) -> Array:
    """(H·d, C) as float64 (H, d, C)."""
    return w.astype(np.float64).reshape(heads, -1, w.shape[1])


def product_of(w_q: Array, w_k: Array, heads: int) -> Array:
    """(O.17), head by head."""
    pairs = zip(by_head(w_q, heads), by_head(w_k, heads), strict=True)
    return np.concatenate([q.T @ k for q, k in pairs])


@clause("O-8", tier="forward-error", layer=layers())
def test_product(kit: Kit, layer: Layer) -> None:
    """Head after head, rows of the query's features."""
    found = kit.call("qkr_weight", layer.w_q, layer.w_k, heads=layer.heads)
    d = len(layer.w_q) // layer.heads
    size = product_of(np.abs(layer.w_q), np.abs(layer.w_k), layer.heads)
    allowed = compare.gamma(d, kit.u(layer.w_q, result=found)) * size + kit.tiny(d)
    kit.check(compare.forward(found, product_of(layer.w_q, layer.w_k, layer.heads), allowed, "product"))


@st.composite
def product_slopes(draw: st.DrawFn) -> tuple[Layer, Array, Array]:
    """A layer, a gradient of its product, and a mask over it."""
    layer = draw(layers())
    C = layer.x.shape[2]
    size = layer.heads * C * C
    flat = draw(st.lists(st.integers(-40, 40), min_size=size, max_size=size))
    on = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    shape = (layer.heads * C, C)
    return layer, (np.array(flat).reshape(shape) / 8).astype(layer.x.dtype), np.array(on).reshape(shape)


def check_product_gradient(kit: Kit, layer: Layer, grad: Array, used: Array, *mask: Array, **options: str) -> None:
    """dW_q^h = W_k^h G^hᵀ and dW_k^h = W_q^h G^h with the gradient that is used."""
    found = kit.call("qkr_grad", layer.w_q, layer.w_k, grad, *mask, heads=layer.heads, **options)
    C = layer.x.shape[2]
    g = used.astype(np.float64).reshape(layer.heads, C, C)
    for name, other, turned in (("q", layer.w_k, np.swapaxes(g, 1, 2)), ("k", layer.w_q, g)):
        w = by_head(other, layer.heads)
        expected, size = (np.concatenate(list(f(w) @ f(turned))) for f in (np.positive, np.abs))
        got = getattr(found, name)
        allowed = compare.gamma(C, kit.u(grad, result=got)) * size + kit.tiny(C)
        kit.check(compare.forward(got, expected, allowed, f"gradient of {name}"))


@clause("O-8a", tier="forward-error", case=product_slopes())
def test_product_gradient(kit: Kit, case: tuple[Layer, Array, Array]) -> None:
    """To the latent weights, with the other latent weight."""
    layer, grad, _ = case
    check_product_gradient(kit, layer, grad, grad)


@clause("O-8b", tier="forward-error", case=product_slopes(), freeze=["product", "none"])
def test_frozen_products(kit: Kit, case: tuple[Layer, Array, Array], freeze: str) -> None:
    """``product``: frozen products pass nothing. ``none``: the mask is not looked at, as in the published code."""
    layer, grad, on = case
    used = np.where(on, grad, np.zeros_like(grad)) if freeze == "product" else grad
    check_product_gradient(kit, layer, grad, used, on, freeze=freeze)


class Parts(NamedTuple):
    """What attention computes, and the size of the terms that were summed for it."""

    scores: Array  # (B, H, N, N)
    score_size: Array
    map: Array
    values: Array  # (B, N, D)
    value_size: Array


def parts(layer: Layer, x: Array, product: Array, keys: Array | None, w_v: Array, *, biased: bool) -> Parts:
    """(O.22) from given tensors, in float64."""
    H, (B, N, C) = layer.heads, x.shape
    d = len(layer.w_q) // H
    x, w = x.astype(np.float64), product.astype(np.float64).reshape(H, C, C)
    out = []
    for f in (np.positive, np.abs):
        u = np.einsum("hij,bmj->bmhi", f(w), f(x)) if keys is None else f(keys.astype(np.float64)).reshape(B, N, H, C)
        score = np.einsum("bni,bmhi->bhnm", f(x), u)
        if biased:
            shift = np.einsum("hdi,hd->hi", f(by_head(layer.w_k, H)), f(layer.b_q.astype(np.float64)).reshape(H, d))
            score = score + np.einsum("hi,bmi->bhm", shift, f(x))[:, :, None]
        out.append(score / np.sqrt(d))
    e = np.exp(out[0] - out[0].max(axis=-1, keepdims=True))
    values, size = (f(x) @ f(w_v.astype(np.float64)).T + f(layer.b_v.astype(np.float64)) for f in (np.positive, np.abs))
    return Parts(out[0], out[1], e / e.sum(axis=-1, keepdims=True), values, size)


def context_of(attention: Array, values: Array, heads: int) -> Array:
    """(O.23), heads side by side."""
    B, N, D = values.shape
    split = values.astype(np.float64).reshape(B, N, heads, D // heads)
    return np.asarray(np.einsum("bhnm,bmhe->bnhe", attention.astype(np.float64), split)).reshape(B, N, D)


def check_attention(kit: Kit, layer: Layer, biases: str) -> None:
    """The context, with the error that scores, softmax, values and the last sum may have."""
    arrays = layer[:6]
    found = kit.call("qkr_attention", *arrays, heads=layer.heads, biases=biases)
    whole = product_of(layer.w_q, layer.w_k, layer.heads)
    p = parts(layer, layer.x, whole, None, layer.w_v, biased=biases == "kept")
    # absolute values pass through every product: the size of scores from those of weights
    size = layer._replace(w_q=np.abs(layer.w_q), w_k=np.abs(layer.w_k))
    reach = parts(size, layer.x, product_of(size.w_q, size.w_k, layer.heads), None, layer.w_v, biased=True).score_size
    (_, N, C), d = layer.x.shape, len(layer.w_q) // layer.heads
    u = kit.u(layer.x, result=found)
    slack = compare.softmax_gap(compare.gamma(2 * C + d + 4, u) * reach.max(axis=-1), N, u)
    rounded = compare.gamma(C + N + 2, u) * p.map + slack[..., None] * p.map
    allowed = context_of(rounded, p.value_size, layer.heads) + kit.tiny(N * C)
    kit.check(compare.forward(found, context_of(p.map, p.values, layer.heads), allowed, "context"))


@clause("O-9", tier="forward-error", layer=layers())
def test_attention(kit: Kit, layer: Layer) -> None:
    """Without quantizers it is plain attention, however it is computed."""
    check_attention(kit, layer._replace(b_q=np.zeros_like(layer.b_q)), "kept")


@clause("O-9a", tier="forward-error", layer=layers(), biases=["kept", "dropped"])
def test_query_bias(kit: Kit, layer: Layer, biases: str) -> None:
    """Kept, it adds to the scores of keys; dropped, it is not looked at."""
    check_attention(kit, layer, biases)


@clause("O-9a", tier="forward-error", dtype=strategies.FLOATS, sign=[1, -1])
def test_a_large_query_bias(kit: Kit, dtype: str, sign: int) -> None:
    """Heads of four rows, so that what is divided by their root, and what is not, can be told apart."""
    C, H, d, N = 3, 2, 4, 5
    rows = np.arange(H * d * C).reshape(H * d, C)
    arrays = (
        (np.arange(N * C).reshape(1, N, C) * 7 % 11 - 5) / 8,
        (rows * 5 % 13 - 6) / 8,
        (rows * 3 % 7 - 3) / 4,
        (rows * 11 % 17 - 8) / 4,
        sign * (np.arange(H * d) - 3.0) / 2,
        np.arange(H * d) / 8,
    )
    x, q, k, v, b_q, b_v = (a.astype(dtype) for a in arrays)
    layer = Layer(x, q, k, v, b_q, b_v, H)
    for biases in ("kept", "dropped"):
        check_attention(kit, layer, biases)


@clause("O-9b", tier="forward-error", layer=layers())
def test_quantizers(kit: Kit, layer: Layer) -> None:
    """Each sees the tensor of its name, made of what the ones before it answered: eighths, here."""
    seen: dict[str, Array] = {}
    given: dict[str, Array] = {}

    def recorder(name: str) -> Any:
        def quantizer(a: Any) -> Any:
            seen[name] = kit.numpy(a)
            given[name] = np.round(8 * seen[name]) / seen[name].dtype.type(8)
            return kit.own(given[name])

        return quantizer

    names = QkrQuantizers._fields
    found = kit.call(
        "qkr_attention", *layer[:6], heads=layer.heads, quantizers=QkrQuantizers(*(recorder(name) for name in names))
    )
    unseen = [name for name in names if name not in seen]
    kit.require(not unseen, f"no tensor reached the quantizer of {', '.join(unseen)}")
    H, (B, N, C) = layer.heads, layer.x.shape
    u = kit.u(layer.x, result=found)
    kit.check(compare.exact(seen["input"], layer.x, "input"))
    kit.check(compare.exact(seen["value_weight"], layer.w_v, "value weight"))
    d = len(layer.w_q) // H
    size = product_of(np.abs(layer.w_q), np.abs(layer.w_k), H)
    allowed = compare.gamma(d, u) * size + kit.tiny(d)
    kit.check(compare.forward(seen["product"], product_of(layer.w_q, layer.w_k, H), allowed, "product"))
    w, x = given["product"].astype(np.float64).reshape(H, C, C), given["input"].astype(np.float64)
    keys, reach = (np.einsum("hij,bmj->bmhi", f(w), f(x)).reshape(B, N * H, C) for f in (np.positive, np.abs))
    kit.check(compare.forward(seen["keys"], keys, compare.gamma(C, u) * reach + kit.tiny(C), "keys"))
    p = parts(layer, given["input"], given["product"], given["keys"], given["value_weight"], biased=True)
    slack = compare.softmax_gap(compare.gamma(2 * C + d + 4, u) * p.score_size.max(axis=-1), N, u)
    kit.check(compare.forward(seen["attention"], p.map, slack[..., None] * p.map + kit.tiny(N), "attention"))
    allowed = compare.gamma(C + 1, u) * p.value_size + kit.tiny(C)
    kit.check(compare.forward(seen["value"], p.values, allowed, "value"))
    context, size = (context_of(f(given["attention"]), f(given["value"]), H) for f in (np.positive, np.abs))
    kit.check(compare.forward(found, context, compare.gamma(N, u) * size + kit.tiny(N), "context"))
