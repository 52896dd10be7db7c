"""Chapter D: DoRA. Bounds follow the norm: its error, relative to c, is that of everything that is divided by it.

Backends may form V = W + s B A or expand the squared norm (2.6) in float64; the bound of the first covers the second.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lowbit.conformance import compare, strategies
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array

SCALINGS = (1.0, 2.0, 0.5, -1.0, 2.3094010767585034)  # the last is 4 / √3, an rsLoRA's


class DoraProblem(NamedTuple):
    """A DoRA layer in layout "linear"."""

    w: Array  # (m, k)
    b: Array  # (m, r)
    a: Array  # (r, k)
    magnitude: Array  # (m,)
    scaling: float


@st.composite
def dora_problems(
    draw: st.DrawFn, *, cancelling: bool = True, zero_rows: bool = False, half: bool = False
) -> DoraProblem:
    """Layers as they are at the start, later on, with negative and zero magnitudes, of rank 0.

    With ``cancelling`` also such where B A has almost erased W; with ``zero_rows`` also rows without direction.
    """
    dtype = draw(strategies.float_dtypes(half=half))
    m, k, r = draw(st.integers(1, 6)), draw(st.integers(1, 12)), draw(st.integers(0, 3))
    unit, scaling = draw(st.sampled_from(strategies.UNITS)), draw(st.sampled_from(SCALINGS))
    w = draw(strategies.integers((m, k), 999)) * unit
    b, a = (
        draw(strategies.integers((m, r), 99)) * unit,
        draw(strategies.integers((r, k), 99)) * draw(st.sampled_from([1.0, 0.1])),
    )
    magnitude = draw(strategies.integers((m,), 99)) * unit
    kinds = ["general", "general", "start", "range", "dead columns"] + (["zero row"] if zero_rows else [])
    match draw(st.sampled_from([*kinds, "cancelling", "cancelling"] if cancelling else kinds)):
        case "start":
            b, magnitude = 0 * b, np.linalg.norm(w, axis=1)
        case "zero row":
            i = draw(st.integers(0, m - 1))
            w[i], b[i] = 0.0, 0.0
        case "range":
            shift = np.ldexp(1.0, draw(arrays(np.int64, (m, 1), elements=st.integers(-20, 4))))
            w, b = w * shift, b * shift
        case "dead columns":
            dead = draw(arrays(np.bool_, (k,)))
            w[:, dead], a[:, dead] = 0.0, 0.0
        case "cancelling":
            b, a = b.astype(dtype), a.astype(dtype)
            w = w * draw(st.sampled_from(strategies.LEFT_OVER)) - scaling * (
                b.astype(np.float64) @ a.astype(np.float64)
            )
        case _:
            pass
    limit = 6e4 if dtype == "float16" else np.inf
    w, b, a = (np.clip(x, -limit, limit).astype(dtype) for x in (w, b, a))
    if not zero_rows:  # nor such whose direction is rounding, in the precision of the least precise backend
        update = scaling * (b.astype(np.float64) @ a.astype(np.float64))
        bulk = np.linalg.norm(np.abs(w) + abs(scaling) * np.abs(b.astype(np.float64)) @ np.abs(a), axis=1)
        lost = np.linalg.norm(w + update, axis=1) <= compare.gamma(64, compare.unit_roundoff("float32")) * bulk
        w[lost], b[lost] = unit, 0.0
    return DoraProblem(w, b, a, np.clip(magnitude, -limit, limit).astype(dtype), scaling)


U64 = compare.unit_roundoff("float64")
LAYOUTS = st.sampled_from(["linear", "linear", "transposed", "conv"])


class Exact(NamedTuple):
    """The layer in float64, and what rounding with unit u may do to it. Rows are outputs."""

    w: Array  # (m, k)
    b: Array  # (m, r), times the scaling
    a: Array  # (r, k)
    v: Array  # (m, k), W + s B A
    bulk: Array  # (m, k), |W| + |s| |B| |A|: the size of what is added up in V
    c: Array  # (m,)
    off: Array  # (m,), bound on the error of c, absolute
    slip: Array  # (m,), the same for a quotient by c, relative; infinite where c is not determined
    g: Array  # (m,), m / c and 1 where c = 0
    u: float


def exact(p: DoraProblem, u: float) -> Exact:
    """V is summed with γ_{r+3} relative to its bulk; the norm of a row of k adds γ_{k+4}."""
    w, b, a, m = (x.astype(np.float64) for x in p[:4])
    b = p.scaling * b
    v, bulk = w + b @ a, np.abs(w) + np.abs(b) @ np.abs(a)
    c, r, k = np.linalg.norm(v, axis=1), len(a), w.shape[1]
    off = compare.gamma(r + 3, u) * np.linalg.norm(bulk, axis=1) + compare.gamma(k + 4, u) * c + Kit.tiny(k)
    with np.errstate(divide="ignore", invalid="ignore"):
        slip = np.where(bulk.any(axis=1), compare.quotient_gap(off / c), 0.0)
    g = np.divide(m, c, out=np.ones_like(c), where=c > 0)
    return Exact(w, b, a, v, bulk, c, off, slip, g, u)


def unit(kit: Kit, p: DoraProblem) -> float:
    """Unit roundoff of a backend on this layer."""
    return kit.u(*p[:4])


def column(x: Array) -> Array:
    """(m,) → (m, 1)."""
    return np.asarray(x)[:, None]


def weight_error(e: Exact) -> Array:
    """Allowed error of W' = g V: that of V, then of the quotient and the product; nothing is known where c is not."""
    sums, quotient = compare.gamma(len(e.a) + 6, e.u) * e.bulk, column(e.slip) * e.bulk
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(column(e.slip)), np.inf, np.abs(column(e.g)) * (sums + quotient)) + Kit.tiny(3)


def kernel(k: int) -> tuple[int, int, int]:
    """A way to see k inputs as channels and a kernel."""
    width = 3 if k % 3 == 0 else 1
    height = 2 if (k // width) % 2 == 0 else 1
    return k // (width * height), height, width


def fold(x: Array, layout: str) -> Array:
    """(m, k) as a layout stores it."""
    if layout == "conv":
        return x.reshape(len(x), *kernel(x.shape[1]))
    return np.ascontiguousarray(x.T) if layout == "transposed" else x


def unfold(x: Array, layout: str) -> Array:
    """Back to (m, k)."""
    return x.T if layout == "transposed" else x.reshape(len(x), int(np.prod(x.shape[1:])))


def stored(p: DoraProblem, layout: str) -> tuple[Array, Array, Array]:
    """w, b, a of a layer as a layout stores them."""
    if layout != "conv":
        return fold(p.w, layout), p.b, p.a
    return fold(p.w, layout), p.b.reshape(*p.b.shape, 1, 1), fold(p.a, layout) if len(p.a) else empty(p)


def empty(p: DoraProblem) -> Array:
    """No factors, for a convolution."""
    return np.zeros((0, *kernel(p.w.shape[1])), p.a.dtype)


def gradients(p: DoraProblem) -> st.SearchStrategy[Array]:
    """A gradient of W'."""
    return strategies.integers(p.w.shape, 99).map(lambda x: (x / 8).astype(p.w.dtype))


problems = dora_problems


@clause("D-1", tier="forward-error", problem=problems(zero_rows=True, half=True), layout=LAYOUTS)
def test_magnitude(kit: Kit, problem: DoraProblem, layout: str) -> None:
    """Norms of rows, which are rows, columns or channels of what is stored."""
    found = kit.call("dora_magnitude", fold(problem.w, layout), layout=layout)
    expected = np.linalg.norm(problem.w.astype(np.float64), axis=1)
    k, u = problem.w.shape[1], kit.u(problem.w)
    allowed = compare.gamma(k + 4, u) * expected + kit.tiny(k)
    kit.check(compare.forward(found, expected, allowed, f"magnitude ({layout})"))


@clause("D-2", tier="forward-error", problem=problems(zero_rows=True, half=True), layout=LAYOUTS)
def test_norm(kit: Kit, problem: DoraProblem, layout: str) -> None:
    """‖W + s B A‖ by rows, never less accurate than forming the row: (2.6) in float32 is, where B A erases W."""
    e = exact(problem, unit(kit, problem))
    found = kit.call("dora_norm", *stored(problem, layout), scaling=problem.scaling, layout=layout)
    kit.check(compare.forward(found, e.c, e.off, f"norm ({layout})"))


@clause("D-2a", tier="exact", problem=problems(cancelling=False, zero_rows=True, half=True), layout=LAYOUTS)
def test_nothing_changes_at_the_start(kit: Kit, problem: DoraProblem, layout: str) -> None:
    """With B = 0 the norm is the magnitude to start from, bit by bit, so that m / c is 1."""
    start = problem._replace(b=0 * problem.b)
    w, b, a = stored(start, layout)
    magnitude = kit.call("dora_magnitude", w, layout=layout)
    norm = kit.call("dora_norm", w, b, a, scaling=problem.scaling, layout=layout)
    kit.check(compare.exact(norm, magnitude, f"norm at the start ({layout})"))


@clause("D-3", tier="forward-error", problem=problems(zero_rows=True, half=True))
def test_factored_norm(kit: Kit, problem: DoraProblem) -> None:
    """An error ε of the squares, in float64 whatever the dtype, is ε / c of the norm, and √ε at worst."""
    e = exact(problem, unit(kit, problem))
    wide = problem.w.dtype == np.float64
    square = (e.w**2).sum(axis=1).astype(np.float64 if wide else np.float32)
    expected = square + 2 * (e.b * (e.w @ e.a.T)).sum(axis=1) + (e.b @ (e.a @ e.a.T) * e.b).sum(axis=1)
    root = np.sqrt(np.maximum(expected, 0))
    found = kit.call("factored_norm", problem.w, square, problem.b, problem.a, scaling=problem.scaling)
    n = 2 * e.w.shape[1] + 2 * len(e.a) + 8
    error = 2 * compare.gamma(n, U64) * (e.bulk**2).sum(axis=1)  # of the backend and of this judge
    allowed = compare.root_gap(error, root) + compare.gamma(2, e.u) * root + kit.tiny(1)
    kit.check(compare.forward(found, root, allowed, "norm"))


@clause("D-4", tier="forward-error", problem=problems(half=True), layout=LAYOUTS)
def test_weight(kit: Kit, problem: DoraProblem, layout: str) -> None:
    """W' = (m / c) V; where c is rounding itself, any finite row will do."""
    e = exact(problem, unit(kit, problem))
    found = kit.call("dora_weight", *stored(problem, layout), problem.magnitude, scaling=problem.scaling, layout=layout)
    kit.require(bool(np.all(np.isfinite(found))), "the weight is not finite")
    kit.check(compare.forward(found, fold(column(e.g) * e.v, layout), fold(weight_error(e), layout), f"W' ({layout})"))


@clause("D-4", tier="forward-error", problem=problems(cancelling=False))
def test_rows_have_the_norm_of_the_magnitude(kit: Kit, problem: DoraProblem) -> None:
    """‖W'_i‖ = |m_i|: the backend's own norm cancels, so its error does not count."""
    e = exact(problem, unit(kit, problem))
    found = kit.call("dora_weight", *problem[:4], scaling=problem.scaling).astype(np.float64)
    expected = np.where(e.c > 0, np.abs(problem.magnitude.astype(np.float64)), 0.0)
    error = weight_error(e)
    allowed = np.linalg.norm(error, axis=1) + compare.gamma(3, e.u) * expected
    kit.check(compare.forward(np.linalg.norm(found, axis=1), expected, allowed, "norm of the rows of W'"))


@clause("D-4a", tier="exact", problem=problems(cancelling=False), layout=LAYOUTS, row=st.integers(0, 5))
def test_zero_rows(kit: Kit, problem: DoraProblem, layout: str, row: int) -> None:
    """0 / 0 is not divided: the row of W' is zero, whatever its magnitude, and the others are as without it."""
    w, b = problem.w.copy(), problem.b.copy()
    row %= len(w)
    w[row], b[row] = 0.0, 0.0
    p = problem._replace(w=w, b=b)
    found = kit.call("dora_weight", *stored(p, layout), p.magnitude, scaling=p.scaling, layout=layout)
    kit.require(bool(np.all(np.isfinite(found))), "the weight is not finite")
    kit.check(compare.exact(unfold(found, layout)[row], np.zeros(w.shape[1]), f"zero row {row} ({layout})"))


@st.composite
def forward_cases(draw: st.DrawFn) -> tuple[DoraProblem, Array, Array, Array]:
    """A layer, inputs of one or more axes, the same after dropout of a half, a bias."""
    p = draw(dora_problems())
    shape = (*draw(st.sampled_from([(), (1,), (3,), (2, 2)])), p.w.shape[1])
    x = draw(strategies.integers(shape, 99)) / 8
    kept = draw(st.one_of(st.just(np.full(shape, 0.5)), arrays(np.bool_, shape)))  # 0.5: no dropout
    bias = draw(strategies.integers((len(p.w),), 9))
    dtype = p.w.dtype
    return p, x.astype(dtype), (2 * x * kept).astype(dtype), bias.astype(dtype)


@clause("D-5", tier="forward-error", case=forward_cases(), layout=["linear", "transposed"])
def test_forward(kit: Kit, case: tuple[DoraProblem, Array, Array, Array], layout: str) -> None:
    """(x − x̃) Wᵀ + x̃ W'ᵀ + bias, which is (2.3) in other words: the bias is not scaled, dropout hits the base term."""
    p, x, dropped, bias = case
    e = exact(p, kit.u(x, *p[:4]))
    found = kit.call(
        "dora_forward", x, dropped, fold(p.w, layout), bias, p.b, p.a, p.magnitude, scaling=p.scaling, layout=layout
    )
    kit.require(bool(np.all(np.isfinite(found))), "the output is not finite")
    X, Y, shift = (v.astype(np.float64) for v in (x, dropped, bias))
    expected = (X - Y) @ e.w.T + Y @ (column(e.g) * e.v).T + shift
    k, r = e.w.shape[1], len(e.a)
    base, update = (np.abs(X) + np.abs(Y)) @ np.abs(e.w).T + np.abs(shift), np.abs(e.g) * (np.abs(Y) @ e.bulk.T)
    n = k + r + 10
    sums = compare.gamma(n, e.u) * (base + 2 * update) + kit.tiny(n)
    with np.errstate(invalid="ignore"):
        allowed = np.where(np.isinf(e.slip), np.inf, sums + e.slip * update)
    kit.check(compare.forward(found, expected, allowed, f"output ({layout})"))


@clause("D-5a", tier="forward-error", case=forward_cases(), row=st.integers(0, 5))
def test_a_zero_row_gives_the_bias(kit: Kit, case: tuple[DoraProblem, Array, Array, Array], row: int) -> None:
    """And no other output notices: everything is finite."""
    p, x, dropped, bias = case
    w, b = p.w.copy(), p.b.copy()
    row %= len(w)
    w[row], b[row] = 0.0, 0.0
    found = kit.call("dora_forward", x, dropped, w, bias, b, p.a, p.magnitude, scaling=p.scaling)
    kit.require(bool(np.all(np.isfinite(found))), "the output is not finite")
    expected = np.broadcast_to(bias[row].astype(np.float64), found.shape[:-1])
    kit.check(compare.forward(found[..., row], expected, kit.tiny(1), f"output {row}"))


def check_gradient(kit: Kit, p: DoraProblem, layout: str, grad: Array, detach: bool) -> None:
    """(2.4) or (2.5), then (2.9); sizes are those of sums of absolute values."""
    e = exact(p, kit.u(grad, *p[:4]))
    found = kit.call(
        "dora_gradient", fold(grad, layout), *stored(p, layout), p.magnitude,
        scaling=p.scaling, detach=detach, layout=layout,
    )  # fmt: skip
    for part in found:
        kit.require(bool(np.all(np.isfinite(part))), "a gradient is not finite")
    G = grad.astype(np.float64)
    m, k = e.w.shape
    c = column(np.where(e.c > 0, e.c, 1.0))
    direction, size = e.v / c, e.bulk / c
    dm, dm_size = (G * direction).sum(axis=1), (np.abs(G) * size).sum(axis=1)
    dv = column(e.g) * (G if detach else G - column(dm) * direction)
    dv_size = np.abs(column(e.g)) * (np.abs(G) if detach else np.abs(G) + column(dm_size) * size)
    n, loss = m + 3 * k + 3 * len(e.a) + 16, 1 if detach else 4  # c enters once, or through g, v, dm and v again
    with np.errstate(invalid="ignore", over="ignore"):
        relative = compare.gamma(n, e.u) + loss * e.slip * (1 + e.slip) ** loss
        unknown = np.isinf(relative)
        error = np.where(column(unknown), 0.0, column(np.where(unknown, 0.0, relative)) * dv_size) + kit.tiny(n)
        dm_error = np.where(unknown, np.inf, np.where(unknown, 0.0, relative) * dm_size) + kit.tiny(n)
    wild = unknown[:, None]
    b_error = np.where(wild, np.inf, abs(p.scaling) * error @ np.abs(e.a).T)
    a_error = np.abs(e.b).T @ error + np.where(np.any(wild & (e.b != 0), axis=0), np.inf, 0.0)[:, None]
    shapes = tuple(x.shape for x in stored(p, layout)[1:])
    kit.require(tuple(x.shape for x in found[:2]) == shapes, f"gradients have shapes other than {shapes}")
    kit.check(compare.forward(found.B.reshape(p.b.shape), p.scaling * dv @ e.a.T, b_error + kit.tiny(n), "dB"))
    kit.check(compare.forward(found.A.reshape(p.a.shape), e.b.T @ dv, a_error + kit.tiny(n), "dA"))
    kit.check(compare.forward(found.magnitude, dm, dm_error, "dm"))


@st.composite
def gradient_cases(draw: st.DrawFn) -> tuple[DoraProblem, Array]:
    """A layer and a gradient of its weight."""
    p = draw(dora_problems())
    return p, draw(gradients(p))


@clause("D-6", tier="forward-error", case=gradient_cases(), layout=LAYOUTS)
def test_detached_gradient(kit: Kit, case: tuple[DoraProblem, Array], layout: str) -> None:
    """The norm is a constant of the backward pass."""
    check_gradient(kit, case[0], layout, case[1], True)


@clause("D-6a", tier="forward-error", case=gradient_cases(), layout=LAYOUTS)
def test_full_gradient(kit: Kit, case: tuple[DoraProblem, Array], layout: str) -> None:
    """The projection off the direction of V; dm is the same."""
    check_gradient(kit, case[0], layout, case[1], False)


@clause("D-6b", tier="forward-error", case=gradient_cases(), detach=st.booleans(), row=st.integers(0, 5))
def test_zero_rows_learn_through_b(kit: Kit, case: tuple[DoraProblem, Array], detach: bool, row: int) -> None:
    """dV_i = G_i and dm_i = 0, both finite, so that the row can leave zero."""
    p, grad = case
    w, b = p.w.copy(), p.b.copy()
    row %= len(w)
    w[row], b[row] = 0.0, 0.0
    found = kit.call("dora_gradient", grad, w, b, p.a, p.magnitude, scaling=p.scaling, detach=detach)
    kit.check(compare.exact(found.magnitude[row], np.array(0.0), "dm of a zero row"))
    G, A = grad[row].astype(np.float64), p.scaling * p.a.astype(np.float64)
    n = len(G) + 3
    allowed = compare.gamma(n, kit.u(grad, *p[:4])) * (np.abs(A) @ np.abs(G)) + kit.tiny(n)
    kit.check(compare.forward(found.B[row], A @ G, allowed, "dB of a zero row"))


@clause("D-7", tier="forward-error", problem=problems(half=True), layout=LAYOUTS)
def test_unmerge_undoes_merge(kit: Kit, problem: DoraProblem, layout: str) -> None:
    """However close c is to 0: the factor that multiplied divides. One rounding per step is lost, of W and of s B A."""
    p = problem._replace(magnitude=np.where(problem.magnitude == 0, 1, problem.magnitude).astype(problem.w.dtype))
    e = exact(p, unit(kit, p))
    w, b, a = stored(p, layout)
    options: dict[str, Any] = {"scaling": p.scaling, "layout": layout}
    merged = kit.call("dora_merge", w, b, a, p.magnitude, **options)
    with np.errstate(invalid="ignore"):
        allowed = np.where(np.isinf(e.slip), np.inf, np.abs(e.g) * (e.slip + compare.gamma(2, e.u))) + kit.tiny(1)
    kit.check(compare.forward(merged.factor, e.g, allowed, "factor"))
    kit.check(compare.forward(merged.weight, fold(column(e.g) * e.v, layout), fold(weight_error(e), layout), "weight"))
    dtype = merged.weight.dtype
    back = kit.call("dora_unmerge", merged.weight, b.astype(dtype), a.astype(dtype), merged.factor, **options)
    n = 2 * len(e.a) + 12
    lost = 2 * compare.gamma(n, e.u) * e.bulk + column(np.abs(1 / merged.factor.astype(np.float64))) * kit.tiny(n)
    kit.check(compare.forward(back, fold(e.w, layout), fold(lost, layout), f"unmerged ({layout})"))


@clause("D-7", tier="forward-error", problem=problems(cancelling=False))
def test_unmerge_uses_the_factor_that_it_is_given(kit: Kit, problem: DoraProblem) -> None:
    """diag(1 / g) W' − s B A, for any g: the norm cannot be found in a merged weight."""
    w, b, a, scaling = problem.w, problem.b, problem.a, problem.scaling
    factor = (1 + np.abs(problem.magnitude)).astype(w.dtype)
    e = exact(problem, unit(kit, problem))
    found = kit.call("dora_unmerge", w, b, a, factor, scaling=scaling)
    expected = e.w / column(factor.astype(np.float64)) - e.b @ e.a
    allowed = compare.gamma(len(e.a) + 4, e.u) * e.bulk + kit.tiny(3)
    kit.check(compare.forward(found, expected, allowed, "unmerged"))


@clause("D-7a", tier="exact", problem=problems(cancelling=False), row=st.integers(0, 5))
def test_an_erased_row_is_refused(kit: Kit, problem: DoraProblem, row: int) -> None:
    """A factor of 0 has no inverse; NaN would be an answer, and a wrong one."""
    factor = np.ones(len(problem.w), problem.w.dtype)
    row %= len(factor)
    factor[row] = 0
    kit.refused("dora_unmerge", *problem[:3], factor, clauses=("D-7",), scaling=problem.scaling)


@clause("D-8", tier="forward-error", case=gradient_cases())
def test_dvora(kit: Kit, case: tuple[DoraProblem, Array]) -> None:
    """diag(b) B and diag(d) A; and the chain rule back to b and d."""
    p, grad = case
    u = unit(kit, p)
    row, rank = p.magnitude, np.arange(-1, len(p.a) - 1).astype(p.w.dtype)
    found = kit.call("dvora_factors", p.b, p.a, row, rank)
    wide = [x.astype(np.float64) for x in (p.b, p.a, row, rank)]
    for got, want, what in ((found.B, column(wide[2]) * wide[0], "B"), (found.A, column(wide[3]) * wide[1], "A")):
        kit.check(compare.forward(got, want, compare.gamma(1, u) * np.abs(want) + kit.tiny(1), what))
    m, k = grad.shape
    grad_b, grad_a = np.resize(grad, p.b.shape), np.resize(grad[::-1], p.a.shape)
    back = kit.call("dvora_gradient", grad_b, grad_a, p.b, p.a)
    for got, left, right, what in (
        (back.row_scale, grad_b, wide[0], "gradient of the row scale"),
        (back.rank_scale, grad_a, wide[1], "gradient of the rank scale"),
    ):
        terms, n = left.astype(np.float64) * right, max(m, k) + 3
        allowed = compare.gamma(n, u) * np.abs(terms).sum(axis=1) + kit.tiny(n)
        kit.check(compare.forward(got, terms.sum(axis=1), allowed, what))


@clause("D-9", tier="forward-error", problem=problems(cancelling=False, zero_rows=True, half=True))
def test_decomposition_change(kit: Kit, problem: DoraProblem) -> None:
    """Means over rows of |Δ norm| and of 1 − cos; zero rows have a rule."""
    start = problem.w
    k, m = start.shape[1], len(start)
    other = np.where(np.arange(k) % 3 == 1, -start[:, ::-1], start)
    trained = np.where(column(np.arange(m) % 4 == 3), 0, other).astype(start.dtype)
    found = kit.call("decomposition_change", trained, start)
    w, s, u = trained.astype(np.float64), start.astype(np.float64), kit.u(start)
    p, q = np.linalg.norm(w, axis=1), np.linalg.norm(s, axis=1)
    both = (p > 0) & (q > 0)
    cosine = np.where((p == 0) & (q == 0), 1.0, 0.0)
    cosine[both] = ((w * s).sum(axis=1)[both]) / (p * q)[both]
    n = k + m + 10
    size = float((p + q).mean())
    kit.check(compare.forward(found.magnitude, np.abs(p - q).mean(), compare.gamma(n, u) * size + kit.tiny(n), "ΔM"))
    rule = 2 * compare.gamma(2 * n, u)  # a cosine and 1 are at most 1
    kit.check(compare.forward(found.direction, (1 - cosine).mean(), rule, "ΔD"))


@clause("D-10", tier="certificate", problem=problems(cancelling=False), rank=st.integers(1, 12))
def test_refit(kit: Kit, problem: DoraProblem, rank: int) -> None:
    """‖ΔW − BA‖ is the tail of the spectrum of W' − W; residual and update are what they are called."""
    e = exact(problem, unit(kit, problem))
    error = weight_error(e) + compare.gamma(1, e.u) * (np.abs(column(e.g)) * e.bulk + e.bulk)
    off = float(np.linalg.norm(error))
    if not np.isfinite(off):
        return  # a row of V is rounding: its update is not determined
    rank = min(rank, *e.w.shape)
    found = kit.call("dora_to_lora", *problem[:4], scaling=problem.scaling, rank=rank)
    shapes = (found.B.shape, found.A.shape)
    kit.require(shapes == ((len(e.w), rank), (rank, e.w.shape[1])), f"factors have shapes {shapes}")
    change = column(e.g) * e.v - e.w
    reached = float(np.linalg.norm(change - found.B.astype(np.float64) @ found.A.astype(np.float64)))
    tail = float(np.linalg.norm(np.linalg.svd(change, compute_uv=False)[rank:]))
    size = float(np.linalg.norm(change))
    allowed = compare.residual_gap(size + off, max(e.w.shape), e.u) + 2 * off + kit.tiny(e.w.size)
    kit.check(compare.certificate(reached, tail, allowed, "residual"))
    for told, true, what in ((found.residual, reached, "residual"), (found.update, size, "update")):
        kit.check(compare.certificate(abs(float(told) - true), 0.0, allowed, f"error of the {what} told"))
