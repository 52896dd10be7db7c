"""Chapter B: binary codes, their planes, and the product by tables.

A fit of signs is a chain of decisions that rounding may turn, so results of two backends are not compared with each
other. Every decision is judged by itself, from what the backend decided before it.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from lowbit.conformance import compare, strategies
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array


class BinaryInput(NamedTuple):
    """A binary code and what goes with it."""

    codes: Array  # int32 (m, k)
    scale: Array  # (m, G, q)
    offset: Array | None  # (m, G)
    w: Array  # (m, k), on midpoints of levels now and then
    x: Array  # (t, k)


@st.composite
def binary_inputs(draw: st.DrawFn, *, dyadic: bool = False) -> BinaryInput:
    """Codes of 1 to 4 planes with scales of any sign, equal and zero ones among them, in groups of any length.

    With ``dyadic`` scales are multiples of 1/4 and weights of 1/8, so that levels and midpoints are exact.
    """
    m, groups, size = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 40))
    bits, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    dtype = draw(strategies.float_dtypes())
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))  # long rows: shrinking them would say nothing
    unit = 0.25 if dyadic else draw(st.sampled_from(strategies.UNITS))
    scale = draw(strategies.integers((m, groups, bits), 9)) * unit
    offset = draw(strategies.integers((m, groups), 9)) * unit if draw(st.booleans()) else None
    codes = random.integers(0, 2**bits, (m, groups * size)).astype(np.int32)
    w = random.integers(-80, 81, (m, groups * size)) * (unit / 2)
    x = random.integers(-99, 100, (tokens, groups * size)) * (
        1.0 if dyadic else draw(st.sampled_from(strategies.UNITS))
    )
    shift = None if offset is None else offset.astype(dtype)
    return BinaryInput(codes, scale.astype(dtype), shift, w.astype(dtype), x.astype(dtype))


@st.composite
def binary_weights(draw: st.DrawFn) -> tuple[Array, int | None]:
    """Weights and a group size: general, sparse, constant, ±c, zero, of few values, and of very different sizes."""
    m, groups, size = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 12))
    w = (draw(strategies.integers((m, groups * size), 999)) * draw(st.sampled_from(strategies.UNITS))).astype(
        np.float64
    )
    match draw(
        st.sampled_from(["general", "general", "general", "sparse", "constant", "signs", "zero", "few", "tiny"])
    ):
        case "sparse":
            w[:, 1:] = 0.0
        case "constant":
            w[:] = w[:, :1]
        case "signs":
            w[:] = np.where(w < 0, -1.0, 1.0) * np.abs(w[:, :1])
        case "zero":
            w[0] = 0.0
        case "few":
            w[:] = np.sign(w) * 3 + (np.abs(w) > 400)
        case "tiny":
            w = np.ldexp(w, -60)
        case _:
            pass
    whole = groups == 1 and draw(st.booleans())
    return w.astype(draw(strategies.float_dtypes(half=False))), None if whole else size


WEIGHTS = binary_weights()
BITS = st.integers(1, 4)


class Fit(NamedTuple):
    """A backend's code in float64, group by group."""

    v: Array  # (n, g)
    b: Array  # (n, g, q), ±1
    alpha: Array  # (n, q)
    o: Array  # (n,), 0 without an offset
    u: float


def plus_minus(codes: Array, bits: int) -> Array:
    """Bits of codes as signs, (..., q)."""
    return np.where((codes[..., None] >> np.arange(bits)) & 1, 1.0, -1.0)


def levels(alpha: Array, o: Array) -> Array:
    """Values of all codes, (..., 2^q), in float64."""
    bits = alpha.shape[-1]
    table = plus_minus(np.arange(2**bits), bits)
    return np.asarray(alpha.astype(np.float64) @ table.T + o.astype(np.float64)[..., None])


def values(codes: Array, scale: Array, offset: Array | None) -> Array:
    """Values of codes (m, k) in float64."""
    m, groups, _ = scale.shape
    o = np.zeros((m, groups)) if offset is None else offset
    parts = codes.reshape(m, groups, codes.shape[1] // groups)
    return np.asarray(np.take_along_axis(levels(scale, o), parts, axis=-1).reshape(codes.shape))


def size_of(scale: Array, offset: Array | None, columns: int) -> Array:
    """Σ abs(scale) + abs(offset) spread over the columns (m, k)."""
    reach = np.abs(scale).astype(np.float64).sum(axis=-1)
    if offset is not None:
        reach = reach + np.abs(offset)
    return np.repeat(reach, columns // scale.shape[1], axis=1)


def fitted(kit: Kit, w: Array, result: Any, bits: int, offset: bool) -> Fit:
    """The result of a fit, its shapes and dtypes checked."""
    m, k = w.shape
    groups = result.scale.shape[1]
    kit.require(result.codes.shape == (m, k) and result.codes.dtype == np.int32, "codes must be int32 (m, k)")
    kit.require(result.scale.shape == (m, groups, bits), f"scale has shape {result.scale.shape}, expected (m, G, q)")
    kit.require((result.offset is not None) == offset, "there is an offset when one is asked for, else None")
    inside = bool(((result.codes >= 0) & (result.codes < 2**bits)).all())
    kit.require(inside, f"a code is outside 0..{2**bits - 1}")
    codes = result.codes.reshape(m * groups, k // groups)
    o = np.zeros(m * groups) if result.offset is None else result.offset.astype(np.float64).reshape(-1)
    alpha = result.scale.astype(np.float64).reshape(-1, bits)
    u = kit.u(w, result=result.scale)
    return Fit(w.astype(np.float64).reshape(codes.shape), plus_minus(codes, bits), alpha, o, u)


class Solved(NamedTuple):
    """Least-squares solution in float64 and how far a backend's may be from it."""

    x: Array  # (p,)
    error: float
    kappa: float
    null: Array  # projector on the null space of AᵀA (p, p)


def solve(v: Array, A: Array, u: float) -> Solved:
    """Solution of least norm; the rank of the Gram matrix of signs is never in doubt."""
    gram = A.T @ A
    values_, vectors = np.linalg.eigh(gram)
    live = values_ > compare.GRAM_RANK
    inverse = (vectors[:, live] / values_[live]) @ vectors[:, live].T
    kappa = float(values_[live].max() / values_[live].min()) if live.any() else 1.0
    norm = float(1 / values_[live].min()) if live.any() else 0.0
    error = compare.normal_solution(len(v), A.shape[1], norm, kappa, np.abs(v).sum(), u)
    return Solved(inverse @ (A.T @ v), float(error), kappa, vectors[:, ~live] @ vectors[:, ~live].T)


def with_ones(b: Array, offset: bool) -> Array:
    """The columns of the fit: planes, and a constant one."""
    return np.concatenate([b, np.ones((len(b), 1))], axis=1) if offset else b


def judge_signs(kit: Kit, residual: Array, b: Array, band: Array | float, what: str) -> None:
    """Sign of the residual, +1 for 0, except within its error."""
    wrong = (residual >= 0) != (b > 0)
    needed = np.where(wrong, np.abs(residual), 0.0)
    kit.check(compare.forward(needed, np.zeros(residual.shape), band, what))


@clause("B-1", tier="forward-error", case=WEIGHTS, bits=BITS, offset=st.booleans())
def test_greedy(kit: Kit, case: tuple[Array, int | None], bits: int, offset: bool) -> None:
    """Every plane and its scale from the planes and scales before it."""
    w, group = case
    found = kit.call("bcq", w, bits=bits, group_size=group, method="greedy", offset=offset)
    v, b, alpha, o, u = fitted(kit, w, found, bits, offset)
    g = v.shape[1]
    mean = np.abs(v).mean(axis=1)
    if offset:
        kit.check(compare.forward(o, v.mean(axis=1), compare.gamma(g + 1, u) * mean + kit.tiny(g), "offset"))
    residual = v - o[:, None]
    reach = np.abs(v) + np.abs(o)[:, None]
    for i in range(bits):
        reach = reach + (alpha[:, i - 1, None] if i else 0.0)
        judge_signs(kit, residual, b[..., i], compare.gamma(g + i + 3, u) * reach + kit.tiny(g), f"signs of plane {i}")
        allowed = compare.gamma(2 * g + i + 4, u) * reach.mean(axis=1) + kit.tiny(g)
        kit.check(compare.forward(alpha[:, i], np.abs(residual).mean(axis=1), allowed, f"scale {i}"))
        residual = residual - alpha[:, i, None] * b[..., i]


@clause("B-1a", tier="exact", dtype=strategies.FLOATS)
def test_the_sign_of_zero(kit: Kit, dtype: str) -> None:
    """Zeros among other weights, a group of zeros, and a residual that vanishes."""
    w = np.array([[0, 4, -4, 0], [0, 0, 0, 0], [3, -3, 3, 3], [0, 0, -8, 0]], dtype)
    found = kit.call("bcq", w, bits=2, method="greedy")
    kit.check(compare.exact(found.codes, [[1, 3, 0, 1], [3, 3, 3, 3], [3, 2, 3, 3], [1, 1, 0, 1]], "codes"))
    kit.check(compare.exact(found.scale[:, 0], [[2, 2], [0, 0], [3, 0], [2, 3]], "scale"))
    for method in ("refined", "alternating"):
        other = kit.call("bcq", np.zeros((2, 3), dtype), bits=3, method=method, offset=True)
        kit.check(compare.exact(other.scale, np.zeros((2, 1, 3)), f"{method}: scales of zeros"))
        kit.check(compare.exact(other.offset, np.zeros((2, 1)), f"{method}: offset of zeros"))


@clause("B-1b", tier="exact", x=strategies.matrices(columns=(2, 12), multiple=2), bits=BITS)
def test_groups_are_runs_of_columns(kit: Kit, x: Array, bits: int) -> None:
    """Each group gets the code that it gets as a row of its own, for every divisor of the row length."""
    m, k = x.shape
    for size in (s for s in range(1, k + 1) if k % s == 0):
        for method in ("greedy", "refined", "alternating"):
            found = kit.call("bcq", x, bits=bits, group_size=size, method=method)
            alone = kit.call("bcq", x.reshape(m * k // size, size), bits=bits, method=method)
            kit.check(compare.exact(found.codes.reshape(alone.codes.shape), alone.codes, f"{method}: codes"))
            wanted = alone.scale.reshape(m, k // size, bits)
            kit.check(compare.exact(found.scale, wanted, f"{method}: scale of groups of {size}"))


@clause("B-2", tier="forward-error", case=WEIGHTS, bits=BITS, offset=st.booleans())
def test_refined_greedy(kit: Kit, case: tuple[Array, int | None], bits: int, offset: bool) -> None:
    """Plane i + 1 is the sign of what the least squares on planes 1 … i leave; the scales are those of all planes."""
    w, group = case
    found = kit.call("bcq", w, bits=bits, group_size=group, method="refined", offset=offset)
    fit = fitted(kit, w, found, bits, offset)
    for v, b, alpha, o in zip(fit.v, fit.b, fit.alpha, fit.o, strict=True):
        residual = v - (v.mean() if offset else 0.0)
        band = compare.gamma(len(v) + 2, fit.u) * (np.abs(v) + np.abs(v).mean()) + kit.tiny(len(v))
        solved = solve(v, with_ones(b, offset), fit.u)
        for i in range(bits):
            judge_signs(kit, residual, b[:, i], band, f"signs of plane {i}")
            A = with_ones(b[:, : i + 1], offset)
            solved = solve(v, A, fit.u)
            residual = v - A @ solved.x
            reach = np.abs(v) + np.abs(solved.x).sum()
            band = len(solved.x) * solved.error + compare.gamma(2 * i + 6, fit.u) * reach + kit.tiny(len(v))
        x = np.append(alpha, o) if offset else alpha
        kit.check(compare.forward(x, solved.x, solved.error + fit.u * np.abs(solved.x) + kit.tiny(len(v)), "scales"))


@clause("B-3", tier="forward-error", case=WEIGHTS, bits=BITS, rounds=st.integers(0, 3), offset=st.booleans())
def test_a_round_assigns_then_solves(
    kit: Kit, case: tuple[Array, int | None], bits: int, rounds: int, offset: bool
) -> None:
    """Values after a round are the least squares of the partition that the scales before it make.

    Groups in which a weight lies within rounding of a midpoint, or two levels coincide, may go either way.
    """
    w, group = case
    options: dict[str, Any] = {"bits": bits, "group_size": group, "offset": offset}
    now = fitted(kit, w, kit.call("bcq", w, rounds=rounds, **options), bits, offset)
    later = fitted(kit, w, kit.call("bcq", w, rounds=rounds + 1, **options), bits, offset)
    start = fitted(kit, w, kit.call("bcq", w, method="greedy", **options), bits, offset)
    for n, v in enumerate(now.v):
        if rounds == 0:
            solved = solve(v, with_ones(start.b[n], offset), now.u)
            check_values(kit, now, n, with_ones(start.b[n], offset) @ solved.x, solved, "values before the first round")
        level = np.sort(levels(now.alpha[n], now.o[n]))
        solved = solve(v, with_ones(now.b[n], offset), now.u)
        reach = np.abs(now.alpha[n]).sum() + abs(now.o[n])
        band = (bits + 2) * solved.error + compare.gamma(bits + 4, now.u) * (2 * reach + np.abs(v)) + kit.tiny(8)
        apart = np.diff(level).min() > 2 * float(np.max(band))
        middle = (level[1:] + level[:-1]) / 2
        if apart and bool((np.abs(v[:, None] - middle).min(axis=1) > band).all()):
            nearest = np.abs(v[:, None] - levels(now.alpha[n], now.o[n])).argmin(axis=1)
            A = with_ones(plus_minus(nearest, bits), offset)
            solved = solve(v, A, now.u)
            check_values(kit, later, n, A @ solved.x, solved, "values after the round")


def check_values(kit: Kit, fit: Fit, n: int, expected: Array, solved: Solved, what: str) -> None:
    """Values of group n, which do not depend on how planes are named."""
    got = fit.b[n] @ fit.alpha[n] + fit.o[n]
    reach = float(np.abs(solved.x).sum())
    allowed = len(solved.x) * solved.error + compare.gamma(len(solved.x) + 2, fit.u) * reach + kit.tiny(8)
    kit.check(compare.forward(got, expected, allowed, what))


@clause("B-3", tier="forward-error", dtype=strategies.WIDE_FLOATS, bits=st.integers(2, 4))
def test_rounds_on_many_weights(kit: Kit, dtype: str, bits: int) -> None:
    """Ordinary weights, where every round moves codes."""
    w = np.random.default_rng(20240229).standard_normal((6, 64)).astype(dtype)
    for rounds in range(4):
        body = test_a_round_assigns_then_solves.__lowbit_check__.body  # type: ignore[attr-defined]
        body(kit, (w, 32), bits, rounds, False)


@clause("B-3a", tier="certificate", case=WEIGHTS, bits=BITS, offset=st.booleans())
def test_rounds_never_raise_the_error(kit: Kit, case: tuple[Array, int | None], bits: int, offset: bool) -> None:
    """Σ (w − ŵ)² from the greedy code on, and the order of the scales."""
    w, group = case
    options: dict[str, Any] = {"bits": bits, "group_size": group, "offset": offset}
    results = [kit.call("bcq", w, method="greedy", **options)]
    results += [kit.call("bcq", w, rounds=n, **options) for n in (0, 1, 2, 15)]
    fits = [fitted(kit, w, result, bits, offset) for result in results]
    errors = [((f.v - (f.b @ f.alpha[..., None])[..., 0] - f.o[:, None]) ** 2).sum(axis=1) for f in fits]
    for n, v in enumerate(fits[0].v):
        kappa = max(solve(v, with_ones(f.b[n], offset), f.u).kappa for f in fits)
        allowed = compare.gamma(8 * len(v) + 8 * bits, fits[0].u) * kappa * float(v @ v) + kit.tiny(len(v)) ** 2
        for before, after in itertools.pairwise(errors):
            kit.check(compare.certificate(float(after[n]), float(before[n]), allowed, "squared error after a round"))
    for fit in fits[1:]:
        kit.require(bool((fit.alpha >= 0).all()), "a scale is negative")
        kit.require(bool((np.diff(fit.alpha, axis=1) <= 0).all()), "scales do not descend")


def refit_inputs(case: tuple[Array, int | None], bits: int, seed: int) -> tuple[Array, Array, int | None]:
    """Weights and any codes for them: random, equal planes, opposite planes, constant planes."""
    w, group = case
    random = np.random.default_rng(seed)
    codes = random.integers(0, 2**bits, w.shape).astype(np.int32)
    match seed % 4:
        case 0:
            codes = np.where(codes & 1, 2**bits - 1, 0).astype(np.int32)
        case 1:
            codes = np.where(codes & 1, 1, 2**bits - 2).astype(np.int32)
        case 2:
            codes |= np.int32(1)
        case _:
            pass
    return w, codes, group


@clause("B-4", tier="forward-error", case=WEIGHTS, bits=BITS, seed=st.integers(0, 99), offset=st.booleans())
def test_scales_solve_the_normal_equations(
    kit: Kit, case: tuple[Array, int | None], bits: int, seed: int, offset: bool
) -> None:
    """Bᵀ(w − Bα − o) = 0, and the codes come back as they were."""
    w, codes, group = refit_inputs(case, bits, seed)
    found = kit.call("bcq_refit", w, codes, bits=bits, group_size=group, offset=offset)
    fit = fitted(kit, w, found, bits, offset)
    kit.check(compare.exact(found.codes, codes, "codes"))
    for v, b, alpha, o in zip(fit.v, fit.b, fit.alpha, fit.o, strict=True):
        A, x = with_ones(b, offset), np.append(alpha, o) if offset else alpha
        size = np.abs(v).sum() + len(v) * np.abs(x).sum()
        allowed = compare.normal_equations(len(v), len(x), fit.u) * size + kit.tiny(len(v))
        kit.check(compare.forward(A.T @ (v - A @ x), np.zeros(len(x)), allowed, "normal equations"))


@clause(
    "B-4a", tier="forward-error", case=WEIGHTS, bits=st.integers(2, 4), seed=st.integers(0, 99), offset=st.booleans()
)
def test_dependent_planes(kit: Kit, case: tuple[Array, int | None], bits: int, seed: int, offset: bool) -> None:
    """Nothing of the solution lies in the null space of the planes."""
    w, codes, group = refit_inputs(case, bits, seed)
    fit = fitted(kit, w, kit.call("bcq_refit", w, codes, bits=bits, group_size=group, offset=offset), bits, offset)
    for v, b, alpha, o in zip(fit.v, fit.b, fit.alpha, fit.o, strict=True):
        A, x = with_ones(b, offset), np.append(alpha, o) if offset else alpha
        solved = solve(v, A, fit.u)
        allowed = solved.error + fit.u * np.abs(x).sum() + kit.tiny(len(v))
        kit.check(compare.forward(solved.null @ x, np.zeros(len(x)), allowed, "part of the scales without effect"))


@clause("B-5", tier="tie-band", case=binary_inputs())
def test_codes_are_those_of_the_nearest_levels(kit: Kit, case: BinaryInput) -> None:
    """No level is nearer than the one taken, up to the rounding of levels and midpoints."""
    codes = kit.call("bcq_assign", case.w, case.scale, case.offset)
    m, groups, bits = case.scale.shape
    inside = codes.dtype == np.int32 and bool(((codes >= 0) & (codes < 2**bits)).all())
    kit.require(inside, f"codes must be int32 in 0..{2**bits - 1}")
    o = np.zeros((m, groups)) if case.offset is None else case.offset
    table = np.repeat(levels(case.scale, o), case.w.shape[1] // groups, axis=1)  # (m, k, 2^q)
    distance = np.abs(case.w.astype(np.float64)[..., None] - table)
    chosen = np.take_along_axis(distance, codes[..., None], axis=-1)[..., 0]
    reach = size_of(case.scale, case.offset, case.w.shape[1])
    band = 2 * compare.gamma(bits + 3, kit.u(case.w, case.scale)) * (2 * reach + np.abs(case.w)) + kit.tiny(8)
    kit.check(compare.choice(chosen, distance.min(axis=-1), band, "distance to the level taken"))


@clause("B-5a", tier="exact", case=binary_inputs(dyadic=True))
def test_midpoints_go_to_the_larger_level(kit: Kit, case: BinaryInput) -> None:
    """Levels and midpoints are exact: codes equal, those of equal levels too."""
    codes = kit.call("bcq_assign", case.w, case.scale, case.offset)
    kit.check(compare.exact(codes, kit.spec.bcq_assign(case.w, case.scale, case.offset), "codes"))


@clause("B-6", tier="forward-error", case=binary_inputs())
def test_values(kit: Kit, case: BinaryInput) -> None:
    """o + Σ ± α, every group with its own scales."""
    found = kit.call("bcq_weight", case.codes, case.scale, case.offset)
    expected = values(case.codes, case.scale, case.offset)
    reach = size_of(case.scale, case.offset, case.codes.shape[1])
    allowed = compare.gamma(case.scale.shape[2] + 2, kit.u(case.scale, result=found)) * reach + kit.tiny(8)
    kit.check(compare.forward(found, expected, allowed, "values"))


@clause("B-7", tier="exact", x=strategies.matrices(columns=(2, 12), multiple=2), bits=st.integers(1, 8))
def test_uniform_grids(kit: Kit, x: Array, bits: int) -> None:
    """Codes keep their bits, scales are the grid's times powers of two; with dyadic scales values are equal too."""
    for scheme in strategies.SCHEMES:
        if bits == 1 and scheme != "asymmetric":
            continue
        for options in ({}, {"granularity": "group", "group_size": 2}, {"granularity": "tensor"}):
            grid = kit.spec.fit_grid(x, bits=bits, scheme=scheme, **options)
            scale = np.ldexp(1.0, np.clip(np.frexp(grid.scale)[1], -99, 99)).astype(x.dtype)
            codes = kit.spec.quantize(x, scale, grid.zero_point, bits=bits, scheme=scheme)
            found = kit.call("bcq_from_grid", codes, scale, grid.zero_point, bits=bits, scheme=scheme)
            expected = kit.spec.bcq_from_grid(codes, scale, grid.zero_point, bits=bits, scheme=scheme)
            kit.require(found.codes.dtype == np.int32, f"codes have dtype {found.codes.dtype}, expected int32")
            kit.check(compare.exact(found.codes, expected.codes, f"{scheme}: codes"))
            kit.check(compare.exact(found.scale, expected.scale, f"{scheme}: scale"))
            kit.check(compare.exact(found.offset, expected.offset, f"{scheme}: offset"))
            direct = kit.spec.dequantize(codes, scale, grid.zero_point)
            kit.check(compare.exact(values(found.codes, found.scale, found.offset), direct, f"{scheme}: values"))


def plane_words(codes: Array, bits: int) -> Array:
    """Planes by long integers: Σ_j bit_j 2^j of a row, cut into 32-bit words."""
    m, k = codes.shape
    words = np.zeros((-(-k // 32), bits, m), np.uint32)
    for i in range(bits):
        for row in range(m):
            stream = sum((int(c) >> i & 1) << j for j, c in enumerate(codes[row]))
            words[:, i, row] = [(stream >> (32 * n)) & 0xFFFFFFFF for n in range(len(words))]
    return words.view(np.int32)


@clause("B-8", tier="exact", case=binary_inputs())
def test_planes(kit: Kit, case: BinaryInput) -> None:
    """Words, scales and offsets with rows last, and back."""
    packed = kit.call("bcq_pack", case.codes, case.scale, case.offset)
    kit.require(packed.planes.dtype == np.int32, f"planes have dtype {packed.planes.dtype}, expected int32")
    kit.check(compare.exact(packed.planes, plane_words(case.codes, case.scale.shape[2]), "planes"))
    kit.check(compare.exact(packed.scale, case.scale.transpose(1, 2, 0), "scale"))
    back = kit.call("bcq_unpack", *packed, length=case.codes.shape[1])
    kit.check(compare.exact(back.codes, case.codes, "unpacked codes"))
    kit.check(compare.exact(back.scale, case.scale, "unpacked scale"))
    kit.require(
        (packed.offset is None) == (back.offset is None) == (case.offset is None), "an offset appears or is lost"
    )
    if case.offset is not None:
        kit.check(compare.exact(packed.offset, case.offset.T, "offset"))
        kit.check(compare.exact(back.offset, case.offset, "unpacked offset"))


@clause("B-8", tier="exact")
def test_round_trip_of_every_length(kit: Kit) -> None:
    """1, 3 and 8 planes, rows of 0 to 66 columns: every way to end inside a word."""
    for bits in (1, 3, 8):
        scale = np.ones((2, 1, bits), np.float32)
        for length in range(67):
            codes = ((np.arange(2 * length).reshape(2, length) * 37 + 11) % 2**bits).astype(np.int32)
            packed = kit.call("bcq_pack", codes, scale, None)
            back = kit.call("bcq_unpack", *packed, length=length)
            kit.check(compare.exact(back.codes, codes, f"{length} codes of {bits} planes"))


@clause(
    "B-9", tier="forward-error", x=strategies.matrices(columns=(1, 20)), width=st.integers(1, 9), half=st.booleans()
)
def test_tables(kit: Kit, x: Array, width: int, half: bool) -> None:
    """Every signed sum of every chunk; half a table is the first half."""
    found = kit.call("lookup_tables", x, width=width, half=half)
    t, k = x.shape
    chunks = -(-k // width)
    padded = np.zeros((t, chunks * width))
    padded[:, :k] = x
    parts = padded.reshape(t, chunks, width)
    entries = 2 ** (width - half)
    expected = parts @ plus_minus(np.arange(entries), width).T
    size = np.abs(parts).sum(axis=-1, keepdims=True)
    allowed = compare.gamma(2 * width + 1, kit.u(x, result=found)) * size + kit.tiny(width)
    kit.check(compare.forward(found, expected, np.broadcast_to(allowed, expected.shape), "tables"))


def check_product(kit: Kit, case: BinaryInput, found: Array, what: str) -> None:
    """x Ŵᵀ with a bound that counts table, chunks, groups and scales."""
    expected = case.x.astype(np.float64) @ values(case.codes, case.scale, case.offset).T
    k, (_, groups, bits) = case.x.shape[1], case.scale.shape
    reach = np.abs(case.x).astype(np.float64) @ size_of(case.scale, case.offset, k).T
    roundings = k + (groups + 1) * (bits + 1) + 2 * 16 + 2  # tables are at most 16 wide
    allowed = compare.gamma(roundings, kit.u(case.x, case.scale, result=found)) * reach + kit.tiny(roundings)
    kit.check(compare.forward(found, expected, allowed, what))


@clause("B-10", tier="forward-error", case=binary_inputs())
def test_product(kit: Kit, case: BinaryInput) -> None:
    """Every method, one input and several, groups of any length."""
    packed = kit.spec.bcq_pack(case.codes, case.scale, case.offset)
    offset = None if packed.offset is None else packed.offset.astype(case.x.dtype)
    for method in ("auto", "lookup", "dequantize"):
        scale = packed.scale.astype(case.x.dtype)
        found = kit.call("bcq_product", case.x, packed.planes, scale, offset, method=method)
        check_product(kit, case, found, f"product, method {method!r}")


@clause("B-10", tier="forward-error", dtype=strategies.WIDE_FLOATS)
def test_product_of_ordinary_layers(kit: Kit, dtype: str) -> None:
    """Sizes at which a backend tiles: rows and columns that are no multiple of anything, 1 to 9 inputs."""
    random = np.random.default_rng(20240229)
    for m, groups, size, bits, tokens in (
        (67, 1, 300, 3, 1),
        (33, 3, 128, 2, 9),
        (130, 7, 20, 4, 2),
        (16, 2, 96, 1, 5),
    ):
        k = groups * size
        codes = random.integers(0, 2**bits, (m, k)).astype(np.int32)
        scale, offset = (
            random.random((m, groups, bits)).astype(dtype),
            random.standard_normal((m, groups)).astype(dtype),
        )
        x = random.standard_normal((tokens, k)).astype(dtype)
        for shift in (None, offset):
            packed = kit.spec.bcq_pack(codes, scale, shift)
            o = None if packed.offset is None else packed.offset.astype(dtype)
            for method in ("auto", "lookup", "dequantize"):
                found = kit.call("bcq_product", x, packed.planes, packed.scale.astype(dtype), o, method=method)
                check_product(kit, BinaryInput(codes, scale, shift, x, x), found, f"{m} x {k}, method {method!r}")


@clause("B-10a", tier="exact", case=binary_inputs())
def test_spare_bits_are_not_looked_at(kit: Kit, case: BinaryInput) -> None:
    """Ones beyond the last column change nothing."""
    packed = kit.spec.bcq_pack(case.codes, case.scale, case.offset)
    k = case.codes.shape[1]
    if k % 32 == 0:
        return
    planes = packed.planes.copy()
    planes[-1] |= np.array(~((1 << k % 32) - 1) & 0xFFFFFFFF, np.uint32).view(np.int32)
    scale = packed.scale.astype(case.x.dtype)
    offset = None if packed.offset is None else packed.offset.astype(case.x.dtype)
    back = kit.call("bcq_unpack", planes, scale, offset, length=k)
    kit.check(compare.exact(back.codes, case.codes, "unpacked codes"))
    for method in ("auto", "lookup", "dequantize"):
        plain = kit.call("bcq_product", case.x, packed.planes, scale, offset, method=method)
        noisy = kit.call("bcq_product", case.x, planes, scale, offset, method=method)
        kit.check(compare.exact(noisy, plain, f"product, method {method!r}"))
