"""Chapter D: what follows from the equations of DoRA, whatever the code that computes them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lowbit.reference as ref
from lowbit.reference.errors import SpecError
from lowbit.reference.types import DoraLayout

from .bounds import LAW, Array, factorisation, near


class Layer(NamedTuple):
    w: Array  # (m, k)
    b: Array  # (m, r)
    a: Array  # (r, k)
    m: Array  # (m,)
    s: float

    @property
    def adapter(self) -> tuple[Array, Array, Array]:
        return self.w, self.b, self.a

    @property
    def update(self) -> Array:
        return self.s * (self.b @ self.a)

    @property
    def bulk(self) -> Array:
        """What roundings are relative to: |W| + |s| |B| |A|."""
        return np.asarray(np.abs(self.w) + abs(self.s) * np.abs(self.b) @ np.abs(self.a))


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    m, k, r = draw(st.integers(1, 7)), draw(st.integers(1, 9)), draw(st.integers(0, 4))
    g = np.random.default_rng(draw(st.integers(0, 10**6)))
    w, b, a = g.standard_normal((m, k)), g.standard_normal((m, r)), g.standard_normal((r, k))
    return Layer(w, b, a, g.standard_normal(m), draw(st.sampled_from([1.0, 2.0, 0.25, -1.5, 4 / math.sqrt(3)])))


N = 200  # roundings: more than any chain of these sizes, far below an error of method


def stored(p: Layer, layout: DoraLayout) -> tuple[Array, Array, Array]:
    """The layer's arrays in another layout."""
    if layout == "transposed":
        return p.w.T, p.b, p.a
    m, k = p.w.shape
    return p.w.reshape(m, k, 1, 1), p.b.reshape(m, -1, 1, 1), p.a.reshape(-1, k, 1, 1)


# --- weight and norm --------------------------------------------------------------------------------------------------


@LAW
@given(layers())
def test_d1_d4_nothing_changes_at_the_start(p: Layer) -> None:
    """B = 0 and m = ‖W‖: the quotient is 1 and W' = W, to the last bit."""
    m, zero = ref.dora_magnitude(p.w), np.zeros_like(p.b)
    assert ref.dora_norm(p.w, zero, p.a, scaling=p.s).tobytes() == m.tobytes()
    assert ref.dora_weight(p.w, zero, p.a, m, scaling=p.s).tobytes() == p.w.tobytes()


@LAW
@given(layers())
def test_d4_rows_have_the_norm_that_m_says_and_the_direction_of_v(p: Layer) -> None:
    found = ref.dora_weight(*p.adapter, p.m, scaling=p.s)
    near(np.linalg.norm(found, axis=1), np.abs(p.m), roundings=N)
    V = p.w + p.update
    cosine = (found * V).sum(axis=1) / (np.linalg.norm(V, axis=1) * p.m)
    near(cosine, np.ones(len(V)), roundings=N)


@LAW
@given(layers(), st.sampled_from([0.125, 3.0, 1e6]))
def test_d4_only_the_direction_of_v_counts(p: Layer, t: float) -> None:
    one = ref.dora_weight(*p.adapter, p.m, scaling=p.s)
    other = ref.dora_weight(t * p.w, t * p.b, p.a, p.m, scaling=p.s)
    near(other, one, roundings=N, magnitude=amplified(p))


def amplified(p: Layer) -> Array:
    """Size of |g| (|W| + |s B A|), with the error of c: what a relative rounding of the inputs does to W'."""
    c = np.linalg.norm(p.w + p.update, axis=1)
    bulk = np.linalg.norm(p.bulk, axis=1)
    return np.asarray((np.abs(p.m) / c * (1 + bulk / c))[:, None] * bulk[:, None])


@LAW
@given(layers())
def test_d2_the_scaling_is_inside_the_norm(p: Layer) -> None:
    bulk = np.linalg.norm(p.bulk, axis=1)
    near(
        ref.dora_norm(*p.adapter, scaling=p.s),
        np.linalg.norm(p.w + p.update, axis=1),
        roundings=N,
        magnitude=bulk,
    )
    near(
        ref.dora_norm(*p.adapter, scaling=p.s),
        ref.dora_norm(p.w, p.s * p.b, p.a, scaling=1.0),
        roundings=N,
        magnitude=bulk,
    )


@LAW
@given(layers())
def test_d3_factored_norm_is_the_norm(p: Layer) -> None:
    """Squares are compared: (2.6) is a sum of squares, and its errors are relative to ‖W‖²."""
    square = (p.w**2).sum(axis=1)
    found = ref.factored_norm(p.w, square, p.b, p.a, scaling=p.s)
    bulk = (p.bulk**2).sum(axis=1)
    near(found**2, ref.dora_norm(*p.adapter, scaling=p.s) ** 2, roundings=N, magnitude=bulk)


def cancelling(m: int = 512, k: int = 2048, r: int = 16) -> tuple[Array, Array, Array]:
    """float32 numbers with W + BA a ten-thousandth of W: training that has almost erased a row."""
    g = np.random.default_rng(0)
    b, a = g.standard_normal((m, r)).astype(np.float32), g.standard_normal((r, k)).astype(np.float32)
    w = (1e-4 * g.standard_normal((m, k)) - b.astype(np.float64) @ a).astype(np.float32)
    return w, b, a


def test_d3_cancellation_needs_float64() -> None:
    """In float32 a third of the squared norms comes out negative and the rest is noise; in float64 it holds."""
    w, b, a = cancelling()
    wide, truth = w.astype(np.float64), ref.dora_norm(w, b, a, scaling=1.0)
    square = np.square(w).sum(axis=1) + 2 * (b * (w @ a.T)).sum(axis=1) + (b @ (a @ a.T) * b).sum(axis=1)
    assert square.dtype == np.float32
    assert 0.2 < (square < 0).mean() < 0.5
    worst = np.abs(np.sqrt(np.maximum(square, 0)) / truth - 1).max()
    assert worst > 1
    found = ref.factored_norm(w, (wide**2).sum(axis=1), b, a, scaling=1.0)
    bulk = (wide**2).sum(axis=1) / truth**2  # 10⁸: how much an error of c² grows
    near(found / truth, np.ones(len(w)), roundings=2 * w.shape[1], magnitude=bulk)
    assert np.abs(found / truth - 1).max() < 2.0**-16 < worst
    # ... and where nothing cancels, float32 would do
    mild = ref.factored_norm(w, (wide**2).sum(axis=1), 1e-3 * b, a, scaling=1.0)
    near(mild, ref.dora_norm(w, 1e-3 * b, a, scaling=1.0), roundings=N)


def test_d3_a_negative_square_is_clamped() -> None:
    """Rows that cancel altogether: rounding may leave −ε, never NaN."""
    g = np.random.default_rng(1)
    b, a = g.standard_normal((400, 3)), g.standard_normal((3, 50))
    w = -(b @ a)
    square = (w**2).sum(axis=1)
    raw = square + 2 * (b * (w @ a.T)).sum(axis=1) + (b @ (a @ a.T) * b).sum(axis=1)
    assert (raw < 0).any()
    found = ref.factored_norm(w, square, b, a, scaling=1.0)
    assert np.isfinite(found).all()
    assert (found <= 1e-7 * np.sqrt(square)).all()


@pytest.mark.parametrize("layout", ["transposed", "conv"])
@LAW
@given(p=layers())
def test_layouts_are_storage(layout: DoraLayout, p: Layer) -> None:
    w, b, a = stored(p, layout)
    options: Any = {"scaling": p.s, "layout": layout}
    plain: Any = {"scaling": p.s}

    def back(x: Array) -> Array:
        return np.asarray(x.T if layout == "transposed" else x.reshape(p.w.shape))

    assert np.array_equal(ref.dora_magnitude(w, layout=layout), ref.dora_magnitude(p.w))
    bulk = np.linalg.norm(p.bulk, axis=1)
    near(ref.dora_norm(w, b, a, **options), ref.dora_norm(*p.adapter, **plain), roundings=N, magnitude=bulk)
    size = amplified(p)
    found, wanted = ref.dora_merge(w, b, a, p.m, **options), ref.dora_merge(*p.adapter, p.m, **plain)
    assert found.weight.shape == w.shape
    near(back(found.weight), wanted.weight, roundings=N, magnitude=size)
    near(back(ref.dora_weight(w, b, a, p.m, **options)), wanted.weight, roundings=N, magnitude=size)
    lost = np.abs(p.w).max() + p.bulk.max() * (1 + np.abs(1 / wanted.factor)).max() * size.max()
    near(back(ref.dora_unmerge(found.weight, b, a, found.factor, **options)), p.w, roundings=N, magnitude=lost)
    G = np.cos(np.arange(p.w.size)).reshape(p.w.shape)
    stored_gradient = G.T if layout == "transposed" else G.reshape(w.shape)
    one = ref.dora_gradient(stored_gradient, w, b, a, p.m, **options)
    other = ref.dora_gradient(G, *p.adapter, p.m, **plain)
    scale = 1 + np.abs(size).max() * (np.abs(p.a).sum() + np.abs(p.b).sum()) * abs(p.s) * 10
    assert (one.B.shape, one.A.shape) == (b.shape, a.shape)
    for x, y in zip(one, other, strict=True):
        near(x.reshape(y.shape), y, roundings=N, magnitude=scale * (1 + size.max()))


def test_d1_a_convolution_has_a_magnitude_per_output_channel_and_an_embedding_one_per_feature() -> None:
    kernel = np.arange(24.0).reshape(2, 3, 2, 2)
    near(ref.dora_magnitude(kernel, layout="conv"), np.sqrt((kernel**2).sum(axis=(1, 2, 3))), roundings=30)
    table = np.arange(12.0).reshape(4, 3)  # 4 tokens, 3 features
    near(ref.dora_magnitude(table, layout="transposed"), np.sqrt((table**2).sum(axis=0)), roundings=30)


@LAW
@given(layers())
def test_d4_rank_0_trains_the_magnitude_alone(p: Layer) -> None:
    b, a = np.zeros((len(p.w), 0)), np.zeros((0, p.w.shape[1]))
    expected = (p.m / np.linalg.norm(p.w, axis=1))[:, None] * p.w
    near(ref.dora_weight(p.w, b, a, p.m, scaling=p.s), expected, roundings=N)
    found = ref.dora_gradient(np.ones_like(p.w), p.w, b, a, p.m, scaling=p.s)
    assert (found.B.shape, found.A.shape) == (b.shape, a.shape)


def test_d1_a_magnitude_costs_one_number_per_output() -> None:
    """LLaMA-7B, rank 32 on q, k, v, up and down: 56.1 million numbers with LoRA, 57.0 with DoRA."""
    d, f = 4096, 11008
    shapes = [(d, d)] * 3 + [(f, d), (d, f)]
    factors = 32 * 32 * int(ref.rank_cost(shapes).sum())  # layers times rank
    magnitudes = 32 * sum(len(ref.dora_magnitude(np.ones((m, 1)))) for m, _ in shapes)
    assert (round(factors / 1e6, 1), round((factors + magnitudes) / 1e6, 1)) == (56.1, 57.0)


# --- zero rows --------------------------------------------------------------------------------------------------------


def zero_row() -> Layer:
    g = np.random.default_rng(3)
    w, b, a = g.standard_normal((4, 5)), g.standard_normal((4, 2)), g.standard_normal((2, 5))
    w[1], b[1] = 0, 0
    return Layer(w, b, a, ref.dora_magnitude(w), 2.0)


@pytest.mark.parametrize("magnitude", [0.0, 3.0, -1.0])
def test_d4_a_zero_row_stays_zero(magnitude: float) -> None:
    p = zero_row()
    p.m[1] = magnitude
    found = ref.dora_merge(*p.adapter, p.m, scaling=p.s)
    assert np.isfinite(found.weight).all()
    assert not found.weight[1].any()
    assert found.factor[1] == 1
    others = [0, 2, 3]
    alone = ref.dora_weight(p.w[others], p.b[others], p.a, p.m[others], scaling=p.s)
    near(found.weight[others], alone, roundings=N)


@pytest.mark.parametrize("detach", [True, False])
def test_d6_a_zero_row_learns_through_b(detach: bool) -> None:
    p = zero_row()
    G = np.random.default_rng(4).standard_normal(p.w.shape)
    found = ref.dora_gradient(G, *p.adapter, p.m, scaling=p.s, detach=detach)
    assert all(np.isfinite(part).all() for part in found)
    assert found.magnitude[1] == 0
    near(found.B[1], p.s * G[1] @ p.a.T, roundings=N, magnitude=10)
    assert found.B[1].any()


# --- gradients --------------------------------------------------------------------------------------------------------


def loss(G: Array, w: Array) -> float:
    """A loss whose gradient in W' is G at every point."""
    return float((G * w).sum())


def central(f: Any, x: Array, step: float = 1e-6) -> Array:
    """Central differences, entry by entry."""
    out = np.empty_like(x)
    for at in np.ndindex(*x.shape):
        hi, lo = x.copy(), x.copy()
        hi[at] += step
        lo[at] -= step
        out[at] = (f(hi) - f(lo)) / (2 * step)
    return out


def smooth_layer(seed: int) -> tuple[Layer, Array]:
    g = np.random.default_rng(seed)
    p = Layer(
        g.standard_normal((4, 6)), 0.3 * g.standard_normal((4, 2)), g.standard_normal((2, 6)), 1 + g.random(4), 0.5
    )
    return p, g.standard_normal((4, 6))


@pytest.mark.parametrize("seed", range(5))
def test_d6_full_gradient_is_the_derivative(seed: int) -> None:
    p, G = smooth_layer(seed)
    found = ref.dora_gradient(G, *p.adapter, p.m, scaling=p.s, detach=False)
    for part, f, x in (
        (found.B, lambda b: loss(G, ref.dora_weight(p.w, b, p.a, p.m, scaling=p.s)), p.b),
        (found.A, lambda a: loss(G, ref.dora_weight(p.w, p.b, a, p.m, scaling=p.s)), p.a),
        (found.magnitude, lambda m: loss(G, ref.dora_weight(*p.adapter, m, scaling=p.s)), p.m),
    ):
        assert np.abs(part - central(f, x)).max() < 1e-8


@pytest.mark.parametrize("seed", range(5))
def test_d6_detached_gradient_is_the_derivative_with_the_norm_frozen(seed: int) -> None:
    p, G = smooth_layer(seed)
    c = ref.dora_norm(*p.adapter, scaling=p.s)

    def frozen(b: Array, a: Array, m: Array) -> float:
        return loss(G, (m / c)[:, None] * (p.w + p.s * b @ a))

    found = ref.dora_gradient(G, *p.adapter, p.m, scaling=p.s)
    assert np.abs(found.B - central(lambda b: frozen(b, p.a, p.m), p.b)).max() < 1e-8
    assert np.abs(found.A - central(lambda a: frozen(p.b, a, p.m), p.a)).max() < 1e-8
    assert np.abs(found.magnitude - central(lambda m: frozen(p.b, p.a, m), p.m)).max() < 1e-8
    # the loss itself has another derivative, unless G happens to be orthogonal to V
    whole = central(lambda b: loss(G, ref.dora_weight(p.w, b, p.a, p.m, scaling=p.s)), p.b)
    assert np.abs(found.B - whole).max() > 1e-3
    full = ref.dora_gradient(G, *p.adapter, p.m, scaling=p.s, detach=False)
    assert np.array_equal(found.magnitude, full.magnitude)


@LAW
@given(layers())
def test_d6_the_two_agree_where_the_gradient_is_orthogonal_to_v(p: Layer) -> None:
    """... and the full one is orthogonal to V always: B = I reads dV off."""
    m, k = p.w.shape
    V = p.w + p.update
    c = np.linalg.norm(V, axis=1)
    G = np.sin(np.arange(m * k) + 1.0).reshape(m, k)
    whole = ref.dora_gradient(G, V, np.zeros((m, k)), np.eye(k), p.m, scaling=1.0, detach=False).B  # dV itself
    size = (np.abs(p.m) * np.linalg.norm(G, axis=1))[:, None]
    near((whole * V).sum(axis=1) / c, np.zeros(m), roundings=N, magnitude=size[:, 0])
    tangent = G - ((G * V).sum(axis=1) / c**2)[:, None] * V
    simple = ref.dora_gradient(tangent, V, np.zeros((m, k)), np.eye(k), p.m, scaling=1.0).B
    near(simple, whole, roundings=N, magnitude=4 * size / c[:, None])


# --- forward ----------------------------------------------------------------------------------------------------------


@LAW
@given(layers(), st.integers(0, 4))
def test_d5_without_dropout_it_is_the_merged_layer(p: Layer, tokens: int) -> None:
    g = np.random.default_rng(5)
    x, bias = g.standard_normal((tokens, 2, p.w.shape[1])), g.standard_normal(len(p.w))
    merged = ref.dora_weight(*p.adapter, p.m, scaling=p.s)
    found = ref.dora_forward(x, x, p.w, bias, p.b, p.a, p.m, scaling=p.s)
    c = np.linalg.norm(p.w + p.update, axis=1)
    bulk = np.linalg.norm(p.bulk, axis=1)
    size = np.linalg.norm(x, axis=-1)[..., None] * (np.abs(p.m) / c * (1 + bulk / c) + 2) * bulk + np.abs(bias)
    near(found, x @ merged.T + bias, roundings=N, magnitude=size)
    transposed = ref.dora_forward(x, x, p.w.T, bias, p.b, p.a, p.m, scaling=p.s, layout="transposed")
    near(transposed, found, roundings=N, magnitude=size)


def test_d5_dropout_reaches_the_base_term_and_leaves_the_base_alone() -> None:
    rng = np.random.default_rng(6)
    w, b, a = rng.standard_normal((3, 5)), rng.standard_normal((3, 2)), rng.standard_normal((2, 5))
    p = Layer(w, b, a, rng.random(3) + 1, 2.0)
    x, bias = rng.standard_normal((4, 5)), rng.standard_normal(3)
    dropped = x * np.array([0, 2, 0, 2, 2.0])
    found = ref.dora_forward(x, dropped, p.w, bias, p.b, p.a, p.m, scaling=p.s)
    merged = ref.dora_weight(*p.adapter, p.m, scaling=p.s)
    near(found, (x - dropped) @ p.w.T + dropped @ merged.T + bias, roundings=N, magnitude=30)
    g = p.m / ref.dora_norm(*p.adapter, scaling=p.s)
    reused = x @ p.w.T + bias + (g - 1) * (x @ p.w.T) + g * p.s * (dropped @ p.a.T @ p.b.T)
    assert np.abs(found - reused).max() > 0.1
    # everything dropped: the frozen layer, bias not scaled
    near(ref.dora_forward(x, 0 * x, p.w, bias, p.b, p.a, p.m, scaling=p.s), x @ p.w.T + bias, roundings=N, magnitude=30)
    assert np.array_equal(ref.dora_forward(0 * x, 0 * x, p.w, bias, p.b, p.a, p.m, scaling=p.s), np.tile(bias, (4, 1)))


# --- merge ------------------------------------------------------------------------------------------------------------


@LAW
@given(layers())
def test_d7_unmerge_undoes_merge(p: Layer) -> None:
    """However small c is: the same factor multiplies and divides."""
    weight, factor = ref.dora_merge(*p.adapter, p.m, scaling=p.s)
    assert np.array_equal(weight, ref.dora_weight(*p.adapter, p.m, scaling=p.s))
    near(ref.dora_unmerge(weight, p.b, p.a, factor, scaling=p.s), p.w, roundings=N, magnitude=p.bulk)


def test_d7_the_norm_cannot_be_found_in_the_merged_weight() -> None:
    p, _ = smooth_layer(0)
    weight, factor = ref.dora_merge(*p.adapter, p.m, scaling=p.s)
    again = p.m / ref.dora_norm(weight - p.update, p.b, p.a, scaling=p.s)
    assert np.abs(ref.dora_unmerge(weight, p.b, p.a, again, scaling=p.s) - p.w).max() > 0.1
    assert np.abs(again - factor).max() > 0.1


def test_d7_the_order_of_merges_counts() -> None:
    one, other = smooth_layer(0)[0], smooth_layer(1)[0]

    def merged(w: Array, p: Layer) -> Array:
        return ref.dora_weight(w, p.b, p.a, p.m, scaling=p.s)

    assert np.abs(merged(merged(one.w, one), other) - merged(merged(one.w, other), one)).max() > 0.1


def test_d7_an_erased_row_is_refused() -> None:
    p, _ = smooth_layer(0)
    p.m[2] = 0
    weight, factor = ref.dora_merge(*p.adapter, p.m, scaling=p.s)
    with pytest.raises(SpecError, match=r"\[D-7\] factor is 0 in row 2: the merge has erased that row"):
        ref.dora_unmerge(weight, p.b, p.a, factor, scaling=p.s)


# --- quantized base, DVoRA, analysis, refit ---------------------------------------------------------------------------


def test_qdora_starts_at_the_quantized_model_and_its_merge_is_rounded_once_more() -> None:
    g = np.random.default_rng(7)
    w = g.standard_normal((8, 32))
    options: Any = {"bits": 4}
    grid: Any = ref.fit_grid(w, granularity="group", group_size=8, **options)
    base = ref.dequantize(ref.quantize(w, *grid, **options), *grid)
    b, a = g.standard_normal((8, 2)), g.standard_normal((2, 32))
    m = ref.dora_magnitude(base)
    assert np.array_equal(ref.dora_weight(base, 0 * b, a, m, scaling=1.0), base)
    wrong = ref.dora_weight(base, 0 * b, a, ref.dora_magnitude(w), scaling=1.0)  # the norm of what is not there
    assert np.abs(wrong - base).max() > 1e-3
    merged = ref.dora_weight(base, b, a, m, scaling=1.0)
    again: Any = ref.fit_grid(merged, granularity="group", group_size=8, **options)
    stored = ref.dequantize(ref.quantize(merged, *again, **options), *again)
    error = np.abs(stored - merged).reshape(8, 4, 8)
    assert error.max() > 0
    assert (error <= again.scale[..., None] / 2 * (1 + 1e-12)).all()


@LAW
@given(layers())
def test_d8_dvora_is_dora_with_scaled_factors(p: Layer) -> None:
    m, r = p.b.shape
    g = np.random.default_rng(8)
    row, rank, G = g.standard_normal(m), g.standard_normal(r), g.standard_normal(p.w.shape)
    B, A = ref.dvora_factors(p.b, p.a, row, rank)
    near(B @ A, np.diag(row) @ p.b @ np.diag(rank) @ p.a, roundings=N, magnitude=50)
    start: Any = ref.dvora_factors(p.b, p.a, 0 * row, rank)
    magnitude = ref.dora_magnitude(p.w)
    assert np.array_equal(ref.dora_weight(p.w, start.B, start.A, magnitude, scaling=1.0), p.w)
    c = ref.dora_norm(p.w, B, A, scaling=1.0)

    def frozen(row: Array, rank: Array) -> float:
        B, A = ref.dvora_factors(p.b, p.a, row, rank)
        return loss(G, (p.m / c)[:, None] * (p.w + B @ A))

    inner = ref.dora_gradient(G, p.w, B, A, p.m, scaling=1.0)
    found = ref.dvora_gradient(inner.B, inner.A, p.b, p.a)
    size = 1 + (np.abs(p.m) / c).max() * np.abs(G).sum() * (1 + np.abs(p.b).sum()) * (1 + np.abs(p.a).sum())
    assert np.abs(found.row_scale - central(lambda v: frozen(v, rank), row)).max(initial=0) < 1e-7 * size
    assert np.abs(found.rank_scale - central(lambda v: frozen(row, v), rank)).max(initial=0) < 1e-7 * size


def test_d9_known_changes() -> None:
    g = np.random.default_rng(9)
    w = g.standard_normal((5, 7))
    longer = ref.decomposition_change(3 * w, w)
    near(longer.magnitude, 2 * np.linalg.norm(w, axis=1).mean(), roundings=N)
    near(longer.direction, 0, roundings=N, magnitude=1)
    near(ref.decomposition_change(-w, w).direction, 2, roundings=N)
    assert ref.decomposition_change(-w, w).magnitude == 0
    turned = np.linalg.qr(g.standard_normal((7, 7)))[0]
    near(ref.decomposition_change(w @ turned, w).magnitude, 0, roundings=N, magnitude=10)
    zero = np.zeros((1, 3))
    assert ref.decomposition_change(zero, zero) == (0, 0)
    assert ref.decomposition_change(np.eye(1, 3), zero) == (1, 1)
    assert ref.decomposition_change(np.zeros((0, 3)), np.zeros((0, 3))) == (0, 0)


def test_d9_dora_can_move_the_magnitude_alone_and_the_direction_alone() -> None:
    p, _ = smooth_layer(2)
    m = ref.dora_magnitude(p.w)
    alone = ref.decomposition_change(ref.dora_weight(p.w, 0 * p.b, p.a, 2 * m, scaling=p.s), p.w)
    near(alone.direction, 0, roundings=N, magnitude=1)
    near(alone.magnitude, m.mean(), roundings=N)
    turn = ref.decomposition_change(ref.dora_weight(*p.adapter, m, scaling=p.s), p.w)
    near(turn.magnitude, 0, roundings=N, magnitude=10)
    assert turn.direction > 0.01


@LAW
@given(layers(), st.data())
def test_d10_the_refit_is_eckart_young(p: Layer, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, min(p.w.shape)))
    change = ref.dora_weight(*p.adapter, p.m, scaling=p.s) - p.w
    σ = np.linalg.svd(change, compute_uv=False)
    found = ref.dora_to_lora(*p.adapter, p.m, scaling=p.s, rank=rank)
    n = factorisation(*p.w.shape)
    near(found.update, np.linalg.norm(σ), roundings=n)
    near(found.residual, np.linalg.norm(σ[rank:]), roundings=n, magnitude=found.update)
    near(np.linalg.norm(change - found.B @ found.A), found.residual, roundings=n, magnitude=found.update)


def test_d10_a_dora_that_kept_its_norms_is_a_lora() -> None:
    """g = 1 in every row: the update is s B A, of rank r, and the refit is exact."""
    p, _ = smooth_layer(3)
    m = ref.dora_norm(*p.adapter, scaling=p.s)
    found = ref.dora_to_lora(*p.adapter, m, scaling=p.s, rank=2)
    near(found.B @ found.A, p.update, roundings=factorisation(6), magnitude=np.linalg.norm(p.update))
    assert ref.dora_to_lora(*p.adapter, 1.1 * m, scaling=p.s, rank=2).residual > 0.01


# --- refusals ---------------------------------------------------------------------------------------------------------

W, B, A, M = np.ones((3, 4)), np.ones((3, 2)), np.ones((2, 4)), np.ones(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ref.dora_magnitude(W, layout="rows"), "[D-1] layout must be one of"),  # type: ignore[arg-type]
        (lambda: ref.dora_magnitude(M), "[D-1] w must have 2 dimensions, got shape (3,)"),
        (lambda: ref.dora_magnitude(W, layout="conv"), "[D-1] w of a convolution must have 3 dimensions or more"),
        (lambda: ref.dora_norm(W, A, B, scaling=1.0), "[D-2] b (2, 4) times a (3, 2) is no update of w (3, 4)"),
        (lambda: ref.dora_norm(W, B, A, scaling=1.0, layout="transposed"), "[D-2] b (3, 2) times a (2, 4)"),
        (lambda: ref.dora_norm(W, B, A, scaling=math.nan), "[D-2] scaling must be at least -inf, got nan"),
        (lambda: ref.dora_norm(W[..., None], B, A, scaling=1.0, layout="conv"), "[D-2] b must have 3 dimensions"),
        (lambda: ref.factored_norm(W, M[:2], B, A, scaling=1.0), "[D-3] square_norm must have shape (3,), got (2,)"),
        (lambda: ref.factored_norm(W, -M, B, A, scaling=1.0), "[D-3] square_norm must be >= 0, got -1.0"),
        (lambda: ref.dora_weight(W, B, A, M[:2], scaling=1.0), "[D-4] magnitude must have shape (3,), got (2,)"),
        (
            lambda: ref.dora_forward(W, W, W, M, B, A, M, scaling=1.0, layout="conv"),
            "[D-5] layout 'conv' has no matrix product",
        ),
        (lambda: ref.dora_forward(W, W[:2], W, M, B, A, M, scaling=1.0), "[D-5] x (3, 4) and dropped (2, 4) must be"),
        (lambda: ref.dora_forward(1.0, 1.0, W, M, B, A, M, scaling=1.0), "[D-5] x () and dropped () must be equal"),
        (lambda: ref.dora_forward(W, W, W, W, B, A, M, scaling=1.0), "[D-5] bias must have 1 dimensions"),
        (lambda: ref.dora_gradient(A, W, B, A, M, scaling=1.0), "[D-6] grad must have shape (3, 4), got (2, 4)"),
        (lambda: ref.dora_gradient(W, W, B, A, M, scaling=1.0, detach=1), "[D-6] detach must be True or False, got 1"),  # type: ignore[arg-type]
        (lambda: ref.dora_unmerge(W, B, A, M[:1], scaling=1.0), "[D-7] factor must have shape (3,), got (1,)"),
        (lambda: ref.dvora_factors(B, B, M, M), "[D-8] b (3, 2) times a (3, 2) is not an update"),
        (lambda: ref.dvora_factors(B, A, M, M), "[D-8] rank_scale must have shape (2,), got (3,)"),
        (lambda: ref.dvora_gradient(A, A, B, A), "[D-8] grad_b, grad_a, b, a must be (m, r), (r, k), (m, r), (r, k)"),
        (lambda: ref.decomposition_change(W, B), "[D-9] w and start must have one shape, got (3, 4) and (3, 2)"),
        (lambda: ref.dora_to_lora(W, B, A, M, scaling=1.0, rank=4), "[D-10] rank of a patch for shape (3, 4)"),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(SpecError) as refused:
        call()
    assert str(refused.value).startswith(message)
