"""Chapter Q, first half: affine grids, codes and the clip search."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lowbit.conformance import compare, laws, strategies
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array, GridInput
from lowbit.reference.types import Grid


class AffineInput(NamedTuple):
    """Arguments of ``quantize``."""

    x: Array  # (m, k)
    scale: Array  # (m, G)
    zero_point: Array  # int32, (m, G)
    bits: int
    scheme: str


@st.composite
def _affine_shape(draw: st.DrawFn) -> tuple[int, int, int, int, str, str]:
    m, groups, width = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    scheme = draw(st.sampled_from(strategies.SCHEMES))
    bits = draw(st.integers(1 if scheme == "asymmetric" else 2, 8))
    return m, groups, width, bits, scheme, draw(strategies.float_dtypes())


def _zero_points(draw: st.DrawFn, shape: tuple[int, int], bits: int, scheme: str) -> Array:
    top = 2**bits - 1
    values = draw(arrays(np.int64, shape, elements=st.integers(0, top))) if scheme == "asymmetric" else np.zeros(shape)
    return np.asarray(values, np.int32)


@st.composite
def affine_ties(draw: st.DrawFn) -> AffineInput:
    """x / s is exactly a multiple of 1/2, with s an odd integer times a power of two.

    x = (2n + 1)·s/2 is representable, so the quotient is exact in every IEEE format and only the rounding rule decides;
    the product x·(1/s) is not exact, and misses the tie.
    """
    m, groups, width, bits, scheme, dtype = draw(_affine_shape())
    odd = 2 * draw(arrays(np.int64, (m, groups), elements=st.integers(0, 60))) + 1
    scale = odd * np.ldexp(1.0, draw(st.integers(-12, 4)))
    halves = draw(strategies.integers((m, groups * width), 2 ** (bits + 1) + 3))
    x = halves / 2 * np.repeat(scale, width, axis=1)
    zero = _zero_points(draw, (m, groups), bits, scheme)
    return AffineInput(x.astype(dtype), scale.astype(dtype), zero, bits, scheme)


@st.composite
def affine_inputs(draw: st.DrawFn) -> AffineInput:
    """General x and scales; a third of the entries are pushed next to a tie by one unit in the last place or two."""
    m, groups, width, bits, scheme, dtype = draw(_affine_shape())
    scale = ((1 + np.abs(draw(strategies.integers((m, groups), 999)))) / 701).astype(dtype)
    wide = np.repeat(scale, width, axis=1)
    general = (draw(strategies.integers((m, groups * width), 999)) / 999 * 2**bits * wide).astype(dtype)
    halves = draw(strategies.integers((m, groups * width), 2**bits))
    close = ((halves + 0.5) * wide).astype(dtype)
    nudge = draw(arrays(np.int64, close.shape, elements=st.integers(-2, 2)))
    close = (close + nudge * np.spacing(close)).astype(dtype)
    x = np.where(draw(arrays(np.bool_, close.shape)), close, general)
    return AffineInput(x, scale, _zero_points(draw, (m, groups), bits, scheme), bits, scheme)


CLIPS = st.sampled_from([1.0, 0.9, 0.5])
LARGEST_ROW = 6e4  # a scale of it is a number of float16


def grouped(x: Array, options: dict[str, Any]) -> Array:
    """x in float64 as (shape of the scale, values of a group)."""
    x = x.astype(np.float64)
    match options["granularity"]:
        case "tensor":
            return x.reshape((1,) * x.ndim + (-1,))
        case "group":
            size = options["group_size"]
            return x.reshape(*x.shape[:-1], x.shape[-1] // size, size)
        case _:
            return x[..., None, :]


def check_grid(kit: Kit, case: GridInput, **more: Any) -> Grid[Array]:
    """Scale and zero point of the backend against the specification's, by counting roundings.

    Four of them: the clip ratio on both ends, their difference, the division. The zero point is judged from the
    backend's own scale, by a ratio with two more.
    """
    x, options = case.x, {**case.options, **more}
    found: Grid[Array] = kit.call("fit_grid", x, **options)
    expected = kit.spec.fit_grid(x, **options)
    values = grouped(x, options)
    levels = 2 ** options["bits"] - 1
    lo, hi = values.min(axis=-1), values.max(axis=-1)
    if options.get("include_zero", True):
        lo, hi = np.minimum(lo, 0.0), np.maximum(hi, 0.0)
    u = kit.u(x, result=found.scale)
    floor = 0.0 if options["scheme"] == "asymmetric" else options.get("range_floor", 0.0)
    size = np.maximum(np.maximum(np.abs(lo), np.abs(hi)), floor)
    unit = 2 ** (options["bits"] - 1) - 1 if options["scheme"] == "symmetric" else levels
    span = np.abs(lo) + np.abs(hi) if options["scheme"] == "asymmetric" else 2 * size
    allowed = compare.gamma(4, u) * np.where(size == 0, 2.0, span) / unit + kit.tiny(2)
    kit.check(compare.forward(found.scale, expected.scale, allowed, "scale"))
    if options["scheme"] == "asymmetric":
        low = np.where(size == 0, -1.0, lo * options.get("clip_ratio", 1.0))
        ratio = -low / found.scale.astype(np.float64)
        wanted = np.rint(ratio)
        wanted = np.where(size == 0, np.rint(levels / 2), wanted)
        exempt = np.abs(ratio) >= 2.0**31 - 1  # the specification falls back to the range with zero
        band = np.where(size == 0, 0.0, compare.tie_band(ratio, u, 2))
        safe = np.where(exempt, 0.0, ratio)
        chosen = np.where(exempt, 0, found.zero_point)
        kit.check(compare.codes(chosen, np.where(exempt, 0, wanted), safe, band, "zero_point"))
    else:
        kit.check(compare.exact(found.zero_point, np.zeros(expected.scale.shape), "zero_point"))
    return found


@clause("Q-1", tier="exact", dtype=strategies.WIDE_FLOATS)
def test_codes_fill_their_range(kit: Kit, dtype: str) -> None:
    """Saturated inputs reach both ends of every width and scheme, and one step inside them is not clipped."""
    for scheme in strategies.SCHEMES:
        for bits in range(1 if scheme == "asymmetric" else 2, 9):
            low, high = laws.code_range(bits, scheme)
            x = np.array([[low - 1000, low - 1, low, low + 1, high - 1, high, high + 1, high + 1000]], dtype)
            scale, zero = np.ones((1, 1), dtype), np.zeros((1, 1), np.int32)
            codes = kit.call("quantize", x, scale, zero, bits=bits, scheme=scheme)
            kit.require(codes.dtype == np.int32, f"codes have dtype {codes.dtype}, expected int32")
            kit.check(compare.exact(codes, np.clip(x, low, high), f"{bits}-bit {scheme} codes"))


@clause("Q-1", tier="exact")
def test_widths_and_schemes_outside_the_range_are_refused(kit: Kit) -> None:
    """Asymmetric grids have 1 to 8 bits, symmetric ones 2 to 8."""
    x, scale, zero = np.ones((1, 4), np.float32), np.ones((1, 1), np.float32), np.zeros((1, 1), np.int32)
    wrong = [("asymmetric", 0), ("asymmetric", 9), *((s, b) for s in strategies.SCHEMES[1:] for b in (1, 9))]
    for scheme, bits in [*wrong, ("signed", 4)]:
        kit.refused("quantize", x, scale, zero, bits=bits, scheme=scheme, clauses=("Q",))
        if kit.has("fit_grid"):
            kit.refused("fit_grid", x, bits=bits, scheme=scheme, clauses=("Q",))


@clause("Q-2", tier="forward-error", case=strategies.grid_inputs(schemes=("asymmetric",)), clip=CLIPS)
def test_asymmetric_grid(kit: Kit, case: GridInput, clip: float) -> None:
    """s = (hi − lo)/(2^b − 1) with zero inside the range, z = round(−lo/s)."""
    found = check_grid(kit, case, clip_ratio=clip)
    top = 2 ** case.options["bits"] - 1
    kit.require(bool(np.all((found.zero_point >= 0) & (found.zero_point <= top))), "a zero point is not a code")
    kit.require(found.zero_point.dtype == np.int32, f"zero points have dtype {found.zero_point.dtype}, expected int32")


@clause("Q-2", tier="forward-error", x=strategies.matrices(columns=(2, 12)), bits=st.integers(1, 8), clip=CLIPS)
def test_asymmetric_grid_without_zero(kit: Kit, x: Array, bits: int, clip: float) -> None:
    """``include_zero=False``: the range of the data, and a zero point that may leave the codes.

    Rows whose range is of the size of rounding are left out: they may or may not fall back, clause Q-8.
    """
    away = np.linspace(3.0, 7.0, x.shape[1], dtype=x.dtype)
    rows = np.concatenate([x, away[None], -away[None]])
    lo, hi = rows.min(axis=1).astype(np.float64), rows.max(axis=1).astype(np.float64)
    clear = hi - lo > compare.gamma(8, kit.u(x)) * (np.abs(lo) + np.abs(hi))
    options = {"bits": bits, "scheme": "asymmetric", "granularity": "row", "clip_ratio": clip}
    check_grid(kit, GridInput(rows[clear], options), include_zero=False)


@clause("Q-2a", tier="forward-error", case=strategies.grid_inputs(schemes=strategies.SCHEMES[1:]), clip=CLIPS)
def test_symmetric_grids(kit: Kit, case: GridInput, clip: float) -> None:
    """The absolute maximum over 2^(b−1) − 1, or twice it over 2^b − 1; zero points are zero."""
    check_grid(kit, case, clip_ratio=clip)


@clause("Q-2a", tier="forward-error", dtype=strategies.FLOATS)
def test_symmetric_grids_of_one_sided_rows(kit: Kit, dtype: str) -> None:
    """Rows without a negative value, without a positive one, with both and of zeros, in every scheme."""
    x = np.array([[0.5, 3.0], [-4.0, -1.0], [-1.0, 2.0], [0.0, 0.0]], dtype)
    for scheme in strategies.SCHEMES[1:]:
        check_grid(kit, GridInput(x, {"bits": 4, "scheme": scheme, "granularity": "row"}))


def groupings(x: Array) -> list[dict[str, Any]]:
    """Every way to group x, which is a matrix: each divisor of the row length, rows, tokens, the tensor."""
    k = x.shape[1]
    sizes = [g for g in range(1, k + 1) if k % g == 0]
    return [
        *({"granularity": "group", "group_size": size} for size in sizes),
        *({"granularity": name} for name in ("row", "token", "tensor")),
    ]


@clause(
    "Q-2b",
    tier="exact",
    x=strategies.matrices(columns=(2, 12), multiple=2),
    scheme=strategies.SCHEMES,
    bits=st.integers(2, 8),
)
def test_granularity(kit: Kit, x: Array, scheme: str, bits: int) -> None:
    """Shapes of the scales, and each equals the scale of its group alone; with three axes only the last is grouped."""
    for options in groupings(x):
        for shaped in (x, x.reshape(x.shape[0], 1, -1)):
            if shaped.ndim == 3 and options["granularity"] == "row":
                continue
            found = kit.call("fit_grid", shaped, bits=bits, scheme=scheme, **options)
            values = grouped(shaped, options)
            kit.require(
                found.scale.shape == values.shape[:-1] == found.zero_point.shape,
                f"scale {found.scale.shape}, zero_point {found.zero_point.shape}; expected {values.shape[:-1]}",
            )
            rows = values.reshape(-1, values.shape[-1]).astype(x.dtype)
            single = kit.call("fit_grid", rows, bits=bits, scheme=scheme)
            kit.check(compare.exact(found.scale.ravel(), single.scale.ravel(), f"scale of a group alone, {options}"))
            kit.check(compare.exact(found.zero_point.ravel(), single.zero_point.ravel(), "zero point of a group alone"))


@clause("Q-2c", tier="tie-band", x=strategies.matrices(columns=(2, 12)), scheme=strategies.SCHEMES)
def test_scale_dtype(kit: Kit, x: Array, scheme: str) -> None:
    """The scale is the exact one rounded once, up to the error of computing it; the zero point belongs to it."""
    x = np.clip(x, -LARGEST_ROW, LARGEST_ROW).astype(x.dtype)
    for scale_dtype in ("float16", "bfloat16", "float32"):
        for bits in (2, 4, 8):
            check_stored_scale(kit, x, bits=bits, scheme=scheme, scale_dtype=scale_dtype)


@clause("Q-2c", tier="tie-band", dtype=strategies.WIDE_FLOATS)
def test_scale_dtype_on_many_rows(kit: Kit, dtype: str) -> None:
    """Hundreds of ordinary rows: some zero points turn when the scale is rounded after them, or leave the codes.

    Those of rows without a positive value, where the scale is rounded down: −lo / s is then above 2^bits − 1.
    """
    x = np.random.default_rng(20240229).standard_normal((300, 6)).astype(dtype)
    x = np.concatenate([x, -np.abs(x)])
    for scale_dtype in ("float16", "bfloat16"):
        check_stored_scale(kit, x, bits=8, scheme="asymmetric", scale_dtype=scale_dtype)


def check_stored_scale(kit: Kit, x: Array, *, bits: int, scheme: str, scale_dtype: str) -> None:
    """Scales of rows in ``scale_dtype``, and zero points of those very scales."""
    found = kit.call("fit_grid", x, bits=bits, scheme=scheme, scale_dtype=scale_dtype)
    exact = kit.spec.fit_grid(x, bits=bits, scheme=scheme).scale
    slack = compare.gamma(4, kit.u(x, result=found.scale)) * exact + kit.tiny(2)
    low, high = (laws.round_to(scale_dtype, exact + side * slack) for side in (-1, 1))
    kit.check(compare.interval(found.scale, low, high, f"{scale_dtype} scale"))
    stored = laws.round_to(scale_dtype, found.scale)
    kit.check(compare.exact(found.scale, stored, f"scale as a value of {scale_dtype}"))
    if scheme == "asymmetric":
        lo, hi = np.minimum(x.min(axis=1, keepdims=True), 0.0), np.maximum(x.max(axis=1, keepdims=True), 0.0)
        zero = (lo == 0) & (hi == 0)
        ratio = np.where(zero, 0.0, -lo.astype(np.float64) / found.scale)
        band = compare.tie_band(ratio, kit.u(x, result=found.scale), 1)
        wanted = np.where(zero, found.zero_point, np.minimum(np.rint(ratio), 2**bits - 1))
        kit.require(
            bool((found.zero_point < 2**bits).all()), f"a zero point is beyond the codes: {found.zero_point.max()}"
        )
        kit.check(compare.codes(found.zero_point, wanted, ratio, band, f"zero_point of the {scale_dtype} scale"))


@clause("Q-2c", tier="tie-band", sign=[1.0, -1.0])
def test_scale_dtype_never_gives_zero_or_infinity(kit: Kit, sign: float) -> None:
    """Below the smallest normal number the scale becomes that number; above the largest it is refused."""
    tiny = np.full((1, 4), sign * 2.0**-40, np.float32)
    for scheme in strategies.SCHEMES:
        scale = kit.call("fit_grid", tiny, bits=4, scheme=scheme, scale_dtype="float16").scale
        kit.check(compare.exact(scale, [[compare.smallest_normal("float16")]], "smallest float16 scale"))
    kit.refused(
        "fit_grid", np.full((1, 4), sign * 2.0**24, np.float32), bits=2, scale_dtype="float16", clauses=("Q-2",)
    )


@clause(
    "Q-2d",
    tier="forward-error",
    case=strategies.grid_inputs(schemes=strategies.SCHEMES),
    floor=[2.0**-10, 1.0, 300.0],
    clip=CLIPS,
)
def test_range_floor(kit: Kit, case: GridInput, floor: float, clip: float) -> None:
    """max(abs max, floor) is what the clip ratio multiplies; asymmetric grids ignore the floor."""
    check_grid(kit, case, range_floor=floor, clip_ratio=clip)


@clause("Q-2d", tier="forward-error", dtype=strategies.FLOATS)
def test_range_floor_of_small_and_large_rows(kit: Kit, dtype: str) -> None:
    """One row below the floor, one above, one of zeros, for every scheme and clip ratio."""
    x = np.array([[0.25, -0.125], [3.0, -500.0], [0.0, 0.0]], dtype)
    for scheme in strategies.SCHEMES:
        for clip in (1.0, 0.9, 0.5):
            options = {"bits": 4, "scheme": scheme, "granularity": "row"}
            check_grid(kit, GridInput(x, options), range_floor=1.5, clip_ratio=clip)


@clause("Q-3", tier="tie-band", case=affine_inputs())
def test_codes_differ_only_inside_the_tie_band(kit: Kit, case: AffineInput) -> None:
    """One division is one rounding: elsewhere codes are equal, inside the band they differ by one at most."""
    x, scale, zero, bits, scheme = case
    codes = kit.call("quantize", x, scale, zero, bits=bits, scheme=scheme)
    expected = kit.spec.quantize(x, scale, zero, bits=bits, scheme=scheme)
    ratio = x.astype(np.float64) / laws.expand(scale.astype(np.float64), x.shape[1])
    kit.check(compare.codes(codes, expected, ratio, compare.tie_band(ratio, kit.u(x), 1)))


@clause("Q-3a", tier="exact", case=affine_ties())
def test_ties_go_to_the_even_code(kit: Kit, case: AffineInput) -> None:
    """x / s is exact: half-away rounding and x · (1/s) both show."""
    x, scale, zero, bits, scheme = case
    codes = kit.call("quantize", x, scale, zero, bits=bits, scheme=scheme)
    kit.check(compare.exact(codes, kit.spec.quantize(x, scale, zero, bits=bits, scheme=scheme), "codes"))


@clause("Q-3a", tier="exact", dtype=strategies.WIDE_FLOATS, bits=st.integers(2, 8))
def test_ties_with_odd_and_even_zero_points(kit: Kit, dtype: str, bits: int) -> None:
    """The quotient is rounded before the zero point is added: an odd one would turn every tie around."""
    top = 2**bits - 1
    zero = np.arange(min(top + 1, 8), dtype=np.int32)[:, None]
    halves = np.arange(-2 * top, 2 * top + 1, dtype=np.float64)[None] / 2
    x = np.repeat(halves / 4, len(zero), axis=0).astype(dtype)
    scale = np.full(zero.shape, 0.25, dtype)
    codes = kit.call("quantize", x, scale, zero, bits=bits)
    kit.check(compare.exact(codes, np.clip(np.rint(halves) + zero, 0, top), "codes of ties"))


@clause("Q-3a", tier="exact", dtype=strategies.WIDE_FLOATS)
def test_division_is_not_a_multiplication(kit: Kit, dtype: str) -> None:
    """A grid of ties n + 1/2 over 60 odd scales: some reciprocal always misses one."""
    for odd in range(3, 123, 2):
        scale, zero = np.full((1, 1), odd / 64, dtype), np.zeros((1, 1), np.int32)
        halves = np.arange(-255, 256, 2, dtype=np.float64)[None] / 2
        x = (halves * odd / 64).astype(dtype)
        codes = kit.call("quantize", x, scale, zero, bits=8, scheme="symmetric")
        kit.check(compare.exact(codes, np.clip(np.rint(halves), -128, 127), f"codes at scale {odd}/64"))


@clause("Q-3b", tier="exact", case=affine_ties())
def test_each_scale_covers_consecutive_columns(kit: Kit, case: AffineInput) -> None:
    """The codes and values of a group do not depend on the scales of the others; one scale may cover every row."""
    x, scale, zero, bits, scheme = case
    groups = scale.shape[1]
    width = x.shape[1] // groups
    codes = kit.call("quantize", x, scale, zero, bits=bits, scheme=scheme)
    values = kit.call("dequantize", codes, scale, zero)
    for g in range(groups):
        part, columns = slice(g, g + 1), slice(g * width, (g + 1) * width)
        own = kit.call("quantize", x[:, columns], scale[:, part], zero[:, part], bits=bits, scheme=scheme)
        kit.check(compare.exact(codes[:, columns], own, f"codes of group {g}"))
        single = kit.call("dequantize", own, scale[:, part], zero[:, part])
        kit.check(compare.exact(values[:, columns], single, f"values of group {g}"))
    shared = kit.call("quantize", x, scale[:1], zero[:1], bits=bits, scheme=scheme)
    spread = [np.repeat(a[:1], x.shape[0], axis=0) for a in (scale, zero)]
    kit.check(compare.exact(shared, kit.call("quantize", x, *spread, bits=bits, scheme=scheme), "codes of one scale"))


@clause("Q-4", tier="forward-error", case=affine_inputs())
def test_dequantized_values(kit: Kit, case: AffineInput) -> None:
    """The difference of two integers is exact and the product rounds once; the dtype is that of the scale."""
    _, scale, zero, bits, scheme = case
    low, high = laws.code_range(bits, scheme)
    columns = case.x.shape[1]
    codes = (np.arange(case.x.size).reshape(case.x.shape) * 7 % (high - low + 1) + low).astype(np.int32)
    values = kit.call("dequantize", codes, scale, zero)
    expected = laws.expand(scale.astype(np.float64), columns) * (codes - laws.expand(zero, columns))
    allowed = compare.gamma(1, kit.u(scale, result=values)) * np.abs(expected) + kit.tiny()
    kit.check(compare.forward(values, expected, allowed, "values"))
    at_zero = kit.call("dequantize", laws.expand(zero, columns).astype(np.int32), scale, zero)
    kit.check(compare.exact(at_zero, np.zeros(at_zero.shape), "value of the zero point"))


def zero_ratio(values: Array, scale: Array, *, scheme: str, clip: float) -> Array:
    """−lo / s before rounding; 0 for symmetric schemes, and for all-zero groups, whose zero point is a constant."""
    lo = np.minimum(values.min(axis=-1), 0.0) * clip
    return np.zeros(scale.shape) if scheme != "asymmetric" else -lo / scale


def grid_error(values: Array, scale: Array, zero: Array, *, bits: int, scheme: str, norm: float) -> Array:
    """Σ abs(x̂ − x)^norm over every group."""
    codes = Kit.spec.quantize(values, scale[..., None], zero[..., None], bits=bits, scheme=scheme)
    restored = Kit.spec.dequantize(codes, scale[..., None], zero[..., None])
    return np.asarray((np.abs(restored - values) ** norm).sum(axis=-1))


@clause("Q-5", tier="certificate", case=strategies.grid_inputs(half=False), norm=[2.4, 2.0, 1.0], grid=[100, 20, 7])
def test_clip_search_finds_the_least_error(kit: Kit, case: GridInput, norm: float, grid: int) -> None:
    """Whatever ratio a backend takes, its error is at most that of every candidate, up to rounding."""
    check_clip_search(kit, case.x, case.options, norm=norm, grid=grid)


@clause("Q-5", tier="certificate", dtype=strategies.WIDE_FLOATS, norm=[2.4, 1.0, 4.0])
def test_clip_search_on_outliers(kit: Kit, dtype: str, norm: float) -> None:
    """Rows with outliers, where the best ratio depends on the norm."""
    x = np.random.default_rng(20240229).standard_t(3, (40, 12)).astype(dtype)
    for scheme in ("asymmetric", "symmetric-full"):
        check_clip_search(kit, x, {"bits": 3, "scheme": scheme, "granularity": "row"}, norm=norm, grid=50)


def check_clip_search(kit: Kit, x: Array, options: dict[str, Any], *, norm: float, grid: int) -> None:
    """The error that a backend's grid has is the least one; its scale and zero point are those of the step it tells.

    Where −lo/s lies in its tie band a candidate has two admissible zero points, and the backend may have weighed the
    worse.
    """
    shrink = 0.75
    found = kit.call("clip_search", x, **options, norm=norm, grid=grid, max_shrink=shrink)
    values, u = grouped(x, options), kit.u(x, result=found.scale)
    shape = {"bits": options["bits"], "scheme": options["scheme"]}
    last = max(1, int(shrink * grid))
    kit.require(
        bool(np.all((found.step >= 0) & (found.step < last))), f"steps {found.step.tolist()} are not all candidates"
    )
    best = np.full(values.shape[:-1], np.inf)
    for step in range(last):
        ratio = 1 - step / grid
        own = kit.spec.fit_grid(values, **shape, granularity="token", clip_ratio=ratio)
        scale, zero = own.scale[..., 0], own.zero_point[..., 0]
        exact = zero_ratio(values, scale, scheme=options["scheme"], clip=ratio)
        band = compare.tie_band(exact, u, 6)
        below, above = (np.where(exact == 0, zero, np.rint(exact + side)).astype(np.int32) for side in (-band, band))
        worst = np.maximum(*(grid_error(values, scale, z, **shape, norm=norm) for z in (below, above)))
        best = np.minimum(best, worst)
        mine = found.step == step
        where = f"of step {step}"
        kit.check(compare.forward(found.scale[mine], scale[mine], compare.gamma(6, u) * scale[mine], f"scale {where}"))
        chosen = compare.codes(found.zero_point[mine], zero[mine], exact[mine], band[mine], f"zero_point {where}")
        kit.check(chosen)
    reached = grid_error(values, found.scale.astype(np.float64), found.zero_point, **shape, norm=norm)
    # a restored value has γ_8 of error relative to the reach of the grid, t^p moves by p·t^(p−1) times that, t ≤ reach
    reach = np.abs(values).max(axis=-1) + found.scale * 2 ** options["bits"]
    count = values.shape[-1]
    slack = compare.gamma(count + 8, u) * (1 + norm) * count * reach**norm + kit.tiny(count)
    for at in np.ndindex(best.shape):
        where = f"error of group {list(at)} at step {int(found.step[at])}"
        kit.check(compare.certificate(float(reached[at]), float(best[at]), float(slack[at]), where))


@clause("Q-5a", tier="exact", dtype=strategies.WIDE_FLOATS, scheme=strategies.SCHEMES)
def test_equal_errors_keep_the_larger_ratio(kit: Kit, dtype: str, scheme: str) -> None:
    """All-zero groups have the error 0 at every ratio: the first one, 1, must win."""
    x = np.zeros((2, 8), dtype)
    found = kit.call("clip_search", x, bits=4, scheme=scheme, granularity="group", group_size=4)
    kit.check(compare.exact(found.step, np.zeros((2, 2)), "step"))
    plain = kit.spec.fit_grid(x, bits=4, scheme=scheme, granularity="group", group_size=4)
    kit.check(compare.exact(found.scale, plain.scale.astype(found.scale.dtype), "scale"))
    kit.check(compare.exact(found.zero_point, plain.zero_point, "zero_point"))


@clause("Q-8", tier="exact", x=strategies.degenerate_groups())
def test_zeros_stay_zero(kit: Kit, x: Array) -> None:
    """All-zero rows get a positive finite scale and the prescribed zero point, and come back as exact zeros."""
    zero_rows = ~np.any(x, axis=1)
    for scheme in strategies.SCHEMES:
        for bits in (2, 3, 4, 8):
            for include_zero in (True, False):
                grid = kit.call("fit_grid", x, bits=bits, scheme=scheme, include_zero=include_zero)
                positive = np.isfinite(grid.scale) & (grid.scale > 0)
                kit.require(bool(np.all(positive)), f"{scheme} scale of a degenerate group: {grid.scale.min()}")
                expected = kit.spec.fit_grid(x, bits=bits, scheme=scheme, include_zero=include_zero)
                rounded = expected.scale.astype(grid.scale.dtype)
                kit.check(compare.exact(grid.scale[zero_rows], rounded[zero_rows], "scale of zeros"))
                zero = grid.zero_point[zero_rows]
                kit.check(compare.exact(zero, expected.zero_point[zero_rows], "zero point of zeros"))
                if kit.has("quantize", "dequantize") and x.dtype != np.float16:
                    codes = kit.call(
                        "quantize", x, grid.scale.astype(x.dtype), grid.zero_point, bits=bits, scheme=scheme
                    )
                    values = kit.call("dequantize", codes, grid.scale, grid.zero_point)
                    kit.check(compare.exact(values[zero_rows], np.zeros_like(x[zero_rows]), "zeros, restored"))


@clause("Q-8", tier="exact", dtype=strategies.WIDE_FLOATS)
def test_constant_groups_fall_back_to_a_range_with_zero(kit: Kit, dtype: str) -> None:
    """Without zero in the range a constant group has none: it gets the grid that it has with zero."""
    x = np.array([[5.0] * 4, [-3.0] * 4, [0.0] * 4], dtype)
    for bits in (1, 4, 8):
        without = kit.call("fit_grid", x, bits=bits, include_zero=False)
        with_zero = kit.call("fit_grid", x, bits=bits)
        kit.check(compare.exact(without.scale, with_zero.scale, "scale of a constant group"))
        kit.check(compare.exact(without.zero_point, with_zero.zero_point, "zero point of a constant group"))
