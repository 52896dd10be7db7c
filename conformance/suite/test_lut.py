"""Chapter L: look-up tables, their evaluation in floats and in integers, and what is made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lowbit.conformance import compare, strategies
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array
from lowbit.reference.types import TABLE_FUNCTIONS, TABLE_TIES, IntegerTable, Table, TableFunction, TableTie


@st.composite
def knots(draw: st.DrawFn, *, most: int = 9) -> Array:
    """2 to 10 ascending numbers, some equal: multiples of a unit that is dyadic or not."""
    count = draw(st.integers(2, most + 1))
    values = np.sort(draw(strategies.integers((count,), 64)))
    return np.asarray(values * draw(st.sampled_from(strategies.UNITS)))


@st.composite
def piecewise_tables(draw: st.DrawFn, *, unit: float | None = None) -> Table[Array]:
    """Tables of 1 to 9 pieces that need not meet, breakpoints sometimes equal; coefficients are multiples of a unit."""
    p = draw(knots()) if unit is None else draw(knots()) * unit
    inner = np.asarray(p[1:-1])
    step = draw(st.sampled_from(strategies.UNITS)) if unit is None else unit
    k, b = (draw(strategies.integers((len(inner) + 1,), limit)) * step for limit in (300, 999))
    return Table(inner, np.asarray(k, np.float64), np.asarray(b, np.float64))


@st.composite
def integer_tables(draw: st.DrawFn) -> IntegerTable[Array]:
    """Integer tables of 1 to 9 pieces for 8-bit codes; breakpoints lie among the codes, at their ends and beyond."""
    n = draw(st.integers(1, 9))
    edges = st.one_of(st.integers(-140, 140), st.sampled_from([-129, -128, 0, 127, 128]))
    p = np.sort(draw(arrays(np.int32, (n - 1,), elements=edges, fill=st.nothing())))
    k, b = (draw(strategies.integers((n,), limit)).astype(np.int32) for limit in (300, 30000))
    return IntegerTable(p, k, b, draw(st.integers(0, 7)), draw(st.integers(0, 8)))


U64 = compare.unit_roundoff("float64")
TIES = st.sampled_from(TABLE_TIES)
CODES = np.arange(-128, 128, dtype=np.int32)
EVERY = np.array([0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89], np.int32)


def integer_table(
    breakpoints: tuple[int, ...], slopes: tuple[int, ...], intercepts: tuple[int, ...], b: int, f: int
) -> IntegerTable[Array]:
    """int32 arrays of a literal table."""
    p, k, c = (np.array(x, np.int32) for x in (breakpoints, slopes, intercepts))
    return IntegerTable(p, k, c, b, f)


# Chords of eight pieces with six fraction bits: exp in eighths, 1/x and 1/√x in steps of 1/32.
EXP = integer_table(
    (-42, -28, -19, -16, -10, -5, -2), (0, 1, 4, 7, 12, 24, 43, 57), (2, 26, 112, 170, 244, 376, 482, 512), 3, 6
)
RECIPROCAL = integer_table(
    (20, 25, 31, 38, 44, 58, 76),
    (-205, -131, -84, -56, -39, -25, -15, -7),
    (7373, 5888, 4710, 3830, 3200, 2560, 1984, 1280),
    5, 6,
)  # fmt: skip
RSQRT = integer_table(
    (11, 16, 21, 28, 38, 53, 92),
    (-198, -115, -72, -47, -31, -19, -11, -5),
    (5680, 4760, 4090, 3560, 3110, 2640, 2190, 1640),
    5, 6,
)  # fmt: skip


def on_grid(table: IntegerTable[Array]) -> Table[Array]:
    """The same table in floats, for inputs 2^−b q."""
    b, f = table.scale_bits, table.fraction_bits
    return Table(table.breakpoints * 2.0**-b, table.slopes * 2.0**-f, table.intercepts * 2.0 ** -(f + b))


def require_integers(kit: Kit, found: Array, what: str) -> None:
    kit.require(found.dtype == np.int32, f"{what} have dtype {found.dtype}, expected int32")


# -- tables from breakpoints -------------------------------------------------------------------------------------------


@clause("L-1", tier="forward-error", knots=knots(), data=st.data())
def test_chords(kit: Kit, knots: Array, data: st.DataObject) -> None:
    """The line of every piece passes through both its ends, and the breakpoints are the inner knots."""
    values = data.draw(arrays(np.int64, knots.shape, elements=st.integers(-99, 99))) / 7
    table = kit.call("fit_chords", knots, values)
    kit.check(compare.exact(table.breakpoints, knots[1:-1], "breakpoints"))
    want = kit.spec.fit_chords(knots, values)
    size = np.abs(values).max() + np.abs(knots).max() * np.abs(want.slopes)
    alive = np.diff(knots) > 0
    for i, ends in enumerate((knots[:-1], knots[1:])):
        at = ends[alive] * table.slopes[alive] + table.intercepts[alive]
        allowed = compare.gamma(8, U64) * 2 * size[alive] + kit.tiny()
        kit.check(compare.forward(at, values[i : len(values) - 1 + i][alive], allowed, "value at a knot"))


@clause("L-2", tier="exact", knots=knots(), at=st.integers(0, 9))
def test_dead_pieces(kit: Kit, knots: Array, at: int) -> None:
    """Two equal knots, also with different values: slope and intercept 0, and the neighbours as if it were absent."""
    distinct = np.unique(knots)
    i = at % len(distinct)
    twice = np.insert(distinct, i, distinct[i])
    values = np.arange(len(twice)) - 3.0
    table = kit.call("fit_chords", twice, values)
    kit.require(table.slopes[i] == 0 and table.intercepts[i] == 0, f"piece {i} between equal knots is not 0")
    kit.require(bool(np.isfinite(table.slopes).all() and np.isfinite(table.intercepts).all()), "a piece is not finite")
    if i:
        before = kit.call("fit_chords", twice[: i + 1], values[: i + 1])
        kit.check(compare.exact(table.slopes[:i], before.slopes, "slopes before the dead piece"))
        kit.check(compare.exact(table.intercepts[:i], before.intercepts, "intercepts before the dead piece"))


@clause(
    "L-3",
    tier="certificate",
    x=strategies.integers(st.integers(0, 24), 16),
    cuts=st.lists(st.integers(-16, 16), max_size=3).map(sorted),
    unit=(1.0, 0.125, 1 / 3),
    tie=TIES,
)
def test_least_squares(kit: Kit, x: Array, cuts: list[int], unit: float, tie: TableTie) -> None:
    """The squared error of every piece is that of the best line; empty and narrow pieces are level."""
    xs, ys = x * unit, np.cos(3.0 * x) + x
    p = np.array(cuts, np.float64) * unit
    table = kit.call("fit_segments", xs, ys, p, tie=tie)
    want = kit.spec.fit_segments(xs, ys, p, tie=tie)
    kit.check(compare.exact(table.breakpoints, p, "breakpoints"))
    piece = np.searchsorted(p, xs, side=tie)
    for i in range(len(p) + 1):
        xi, yi = xs[piece == i], ys[piece == i]
        if len(np.unique(xi)) < 2:
            kit.require(table.slopes[i] == 0, f"piece {i} has fewer than two different samples and the slope is not 0")
        if not len(xi):
            kit.require(table.intercepts[i] == 0, f"piece {i} has no samples and its intercept is not 0")
        size = np.abs(yi) + np.abs(want.slopes[i] * xi) + np.abs(want.intercepts[i])
        errors = [float(np.sum((yi - t.slopes[i] * xi - t.intercepts[i]) ** 2)) for t in (table, want)]
        allowed = compare.gamma(8 * max(len(xi), 1), U64) * float(np.sum(size**2))
        kit.check(compare.certificate(errors[0], errors[1], allowed, f"squared error of piece {i}"))


HALVES = piecewise_tables(unit=2.0**-7)  # multiples of 1/128: every second one a tie at six fraction bits


@clause("L-4", tier="exact", table=HALVES, fraction_bits=st.integers(0, 8))
def test_fixed_point(kit: Kit, table: Table[Array], fraction_bits: int) -> None:
    """Slopes and intercepts at ties go to the even code; breakpoints stay."""
    found = kit.call("round_table", table, fraction_bits=fraction_bits)
    unit = 2.0**fraction_bits
    kit.check(compare.exact(found.slopes, np.rint(table.slopes * unit) / unit, "slopes"))
    kit.check(compare.exact(found.intercepts, np.rint(table.intercepts * unit) / unit, "intercepts"))
    kit.check(compare.exact(found.breakpoints, table.breakpoints, "breakpoints"))


@clause("L-5", tier="exact", table=HALVES, fraction_bits=st.integers(0, 8), bits=st.integers(2, 12))
def test_saturation(kit: Kit, table: Table[Array], fraction_bits: int, bits: int) -> None:
    """Codes outside the format are clipped and counted; without a format nothing is."""
    unit = 2.0**fraction_bits
    codes = np.rint(np.stack([table.slopes, table.intercepts]) * unit)
    held = np.clip(codes, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    found = kit.call("round_table", table, fraction_bits=fraction_bits, bits=bits)
    kit.check(compare.exact(np.stack([found.slopes, found.intercepts]), held / unit, "coefficients"))
    count = int((held != codes).sum())
    kit.require(int(found.saturated) == count, f"{found.saturated} coefficients reported as clipped, {count} were")
    free = kit.call("round_table", table, fraction_bits=fraction_bits)
    kit.check(compare.exact(np.stack([free.slopes, free.intercepts]), codes / unit, "coefficients without a format"))
    kit.require(int(free.saturated) == 0, f"{free.saturated} coefficients reported as clipped without a format")


@clause("L-6", tier="exact", table=HALVES, scale_bits=st.integers(0, 8), fraction_bits=st.integers(7, 9))
def test_scales(kit: Kit, table: Table[Array], scale_bits: int, fraction_bits: int) -> None:
    """Breakpoints to the nearest code, ties to even; slopes do not know the scale, intercepts shift by b bits."""
    found = kit.call("integer_table", table, scale_bits=scale_bits, fraction_bits=fraction_bits)
    kit.check(compare.exact(found.breakpoints, np.rint(table.breakpoints * 2.0**scale_bits), "breakpoints"))
    kit.check(compare.exact(found.slopes, table.slopes * 2.0**fraction_bits, "slopes"))
    kit.check(compare.exact(found.intercepts, table.intercepts * 2.0 ** (fraction_bits + scale_bits), "intercepts"))
    for name in ("breakpoints", "slopes", "intercepts"):
        require_integers(kit, getattr(found, name), name)
    bits = int(found.scale_bits), int(found.fraction_bits)
    kit.require(bits == (scale_bits, fraction_bits), f"the table says {bits} bits")


# -- evaluation --------------------------------------------------------------------------------------------------------


@clause("L-7", tier="forward-error", table=piecewise_tables(), x=strategies.dyadic(limit=800), tie=TIES)
def test_values(kit: Kit, table: Table[Array], x: Array, tie: TableTie) -> None:
    """Slope and intercept of the right piece, in the precision of x."""
    found = kit.call("evaluate_table", x, table, tie=tie)
    wide = x.astype(np.float64)
    i = np.searchsorted(table.breakpoints, wide, side=tie)
    size = np.abs(table.slopes[i] * wide) + np.abs(table.intercepts[i])
    allowed = compare.gamma(3, kit.u(x, result=found)) * size + kit.tiny()
    kit.check(compare.forward(found, kit.spec.evaluate_table(x, table, tie=tie), allowed, "values"))


@clause("L-8", tier="exact", table=integer_tables(), offset=st.integers(-1, 1))
def test_ties(kit: Kit, table: IntegerTable[Array], offset: int) -> None:
    """An input on a breakpoint, and those next to it: left of it with "left", right of it with "right"."""
    q = (table.breakpoints + offset).astype(np.int32)
    for tie in TABLE_TIES:
        i = np.array([(table.breakpoints < v if tie == "left" else table.breakpoints <= v).sum() for v in q], int)
        expected = table.slopes[i].astype(np.int64) * q + table.intercepts[i]
        found = kit.call("evaluate_codes", q, table, tie=tie)
        kit.check(compare.exact(found, expected, f"codes on breakpoints, tie {tie}"))
        real = on_grid(table)
        values = kit.call("evaluate_table", (q * 2.0**-table.scale_bits).astype(np.float32), real, tie=tie)
        unit = 2.0 ** -(table.fraction_bits + table.scale_bits)
        kit.check(compare.exact(values, expected * unit, f"inputs on breakpoints, tie {tie}"))
    near = Table(np.array([1.0 + 2.0**-30]), np.array([0.0, 0.0]), np.array([1.0, 2.0]))
    found = kit.call("evaluate_table", np.ones(1, np.float32), near, tie="right")
    kit.check(compare.exact(found, np.ones(1), "x just left of a breakpoint that float32 cannot hold"))


@clause("L-9", tier="exact", table=integer_tables(), tie=TIES, dtype=["int8", "int32"])
def test_integer_values(kit: Kit, table: IntegerTable[Array], tie: TableTie, dtype: str) -> None:
    """All 256 codes at once, as int8 and as int32, and large codes one by one."""
    found = kit.call("evaluate_codes", CODES.astype(dtype), table, tie=tie)
    require_integers(kit, found, "values")
    kit.check(compare.exact(found, kit.spec.evaluate_codes(CODES, table, tie=tie), "values of all codes"))
    large = np.array([[-(2**22), -40000, 40000, 2**22]], np.int32)
    found = kit.call("evaluate_codes", large, table, tie=tie)
    kit.check(compare.exact(found, kit.spec.evaluate_codes(large, table, tie=tie), "values of large codes"))


@clause("L-10", tier="exact", table=integer_tables(), tie=TIES, dtype=["float32", "float64"])
def test_integers_are_the_floats(kit: Kit, table: IntegerTable[Array], tie: TableTie, dtype: str) -> None:
    """Every INT8 code: the float value at 2^−b q is 2^−(f+b) times the integer, to the last bit."""
    x = (CODES * 2.0**-table.scale_bits).astype(dtype)
    values = kit.call("evaluate_table", x, on_grid(table), tie=tie)
    whole = kit.call("evaluate_codes", CODES, table, tie=tie)
    unit = 2.0 ** -(table.fraction_bits + table.scale_bits)
    kit.check(compare.exact(values.astype(np.float64), whole * unit, "float values"))


@clause("L-11", tier="exact", low=st.integers(-130, 3), data=st.data())
def test_lookup(kit: Kit, low: int, data: st.DataObject) -> None:
    """The entry of the code, for entries of several types, one code alone and all codes; others are refused."""
    count = data.draw(st.sampled_from([1, 2, 16, 256]))
    kind = data.draw(st.sampled_from(["int32", "int8", "float32", "float64"]))
    entries = ((np.arange(count) * 37) % 251 - 125).astype(kind)
    q = data.draw(arrays(np.int32, st.sampled_from([(), (7,), (2, 3)]), elements=st.integers(low, low + count - 1)))
    found = kit.call("lookup_codes", q, entries, low=low)
    same = found.dtype == entries.dtype or (kind == "float32" and found.dtype == np.dtype(kit.compute_dtype(kind)))
    kit.require(same, f"entries of {kind} give {found.dtype}")
    kit.check(compare.exact(found, entries[q - low], "entries"))
    beyond = np.array([low, low + count], np.int32)
    kit.refused("lookup_codes", beyond, entries, low=low, clauses=("L-11",))
    if count == 256 and low == -128:
        found = kit.call("lookup_codes", np.tile(CODES.astype(np.int8), 5), entries)
        kit.check(compare.exact(found, np.tile(entries, 5), "entries of all codes"))


@clause(
    "L-12",
    tier="exact",
    a=arrays(
        np.int32,
        st.sampled_from([(40,), (3, 4)]),
        elements=st.one_of(st.integers(-99, 99), st.integers(-(2**31) + 1, 2**31 - 1)),
        fill=st.nothing(),
    ),
    shift=st.integers(0, 31),
    limits=[(-128, 127), (0, 255), (-8, 7), (-(2**31), 2**31 - 1)],
)
def test_requantization(kit: Kit, a: Array, shift: int, limits: tuple[int, int]) -> None:
    """Division by a power of two, ties to the even code, both ends of the range."""
    for given, by in ((a, shift), (a, 1), (a, 2)):
        found = kit.call("requantize_codes", given, shift=by, low=limits[0], high=limits[1])
        require_integers(kit, found, "codes")
        kit.check(compare.exact(found, np.clip(np.rint(given * 2.0**-by), *limits), f"codes at shift {by}"))


@clause(
    "L-13",
    tier="forward-error",
    function=TABLE_FUNCTIONS,
    bits=st.integers(0, 6),
    odd=st.booleans(),
    dtype=strategies.FLOATS,
    data=st.data(),
)
def test_gradients(kit: Kit, function: TableFunction, bits: int, odd: bool, dtype: str, data: st.DataObject) -> None:
    """Straight through to the exact derivative, corners of hswish included; the scale's gradient sums all codes.

    The argument S q is rounded once and passes through up to three functions; the relative condition of the
    derivative is at most (1 + |x|)², with |x| ≤ 128 capped where exp(−x²/2) has vanished.
    """
    scale = 0.3 if odd else 2.0**-bits
    positive = function in ("reciprocal", "rsqrt")
    top = 127 if function != "exp" else 0
    corners = np.array([-12, 12, -11, 11], np.int32)  # hswish has corners at -3 and 3
    slopes = kit.call("table_gradient", np.ones(4, dtype), corners, scale=0.25, function="hswish").codes
    at = np.array([0, 1, -2.5 / 6, 8.5 / 6]) / 4
    kit.check(compare.forward(slopes, at, compare.gamma(6, kit.u(np.ones(1, dtype), result=slopes)), "hswish'"))
    q = data.draw(arrays(np.int32, (6,), elements=st.integers(1 if positive else -128, top), fill=st.nothing()))
    g = np.asarray((np.arange(len(q)) - 2) / 8, dtype)
    found = kit.call("table_gradient", g, q, scale=scale, function=function)
    want = kit.spec.table_gradient(g, q, scale=scale, function=function)
    x = np.abs(scale * q)
    condition = (1 + np.minimum(x, 16)) ** 2
    u = kit.u(g, result=np.asarray(found.codes))
    slope = kit.spec.table_gradient(np.ones(len(q)), q, scale=scale, function=function).codes / scale
    error = compare.elementary(4, u) * (1 + np.abs(slope)) * condition
    kit.check(compare.forward(found.codes, want.codes, np.abs(g) * scale * error + kit.tiny(), "gradient of the codes"))
    total = float(np.sum(np.abs(g * q) * (error + compare.gamma(len(q) + 2, u) * np.abs(slope))))
    kit.check(compare.forward(found.scale, want.scale, total + kit.tiny(len(q)), "gradient of the scale"))


# -- several ranges ----------------------------------------------------------------------------------------------------

RANGES = st.sampled_from(["reciprocal", "rsqrt"])


def base_table(function: str) -> Table[Array]:
    return on_grid(RECIPROCAL if function == "reciprocal" else RSQRT)


@clause(
    "L-14",
    tier="forward-error",
    function=RANGES,
    x=arrays(np.int64, (8,), elements=st.integers(1, 2**20), fill=st.nothing()),
    shift=st.integers(-30, 30),
    dtype=strategies.WIDE_FLOATS,
    tie=TIES,
)
def test_ranges(kit: Kit, function: Any, x: Array, shift: int, dtype: str, tie: TableTie) -> None:
    """Any positive input, powers of two and ends of ranges among them; not a number of no range is refused."""
    a = np.concatenate([x * 2.0**shift, 2.0 ** np.arange(-8, 9), [4 - 2.0**-20, 0.5 - 2.0**-20]]).astype(dtype)
    table = base_table(function)
    found = kit.call("evaluate_ranges", a, table, function=function, tie=tie)
    want = kit.spec.evaluate_ranges(a, table, function=function, tie=tie)
    scale = 1 / a.astype(np.float64) if function == "reciprocal" else a.astype(np.float64) ** -0.5
    size = 4 * np.abs(table.intercepts).max() * scale  # terms of the line: in the base interval 1/x and 1/√x are ≥ 1/4
    allowed = compare.gamma(3, kit.u(a, result=found)) * size + kit.tiny()
    kit.check(compare.forward(found, want, allowed, f"{function}"))


@clause(
    "L-15",
    tier="exact",
    function=RANGES,
    x=arrays(np.int64, (8,), elements=st.integers(1, 127), fill=st.nothing()),
    k=st.integers(-5, 5),
)
def test_ranges_are_powers_of_two(kit: Kit, function: Any, x: Array, k: int) -> None:
    """8 x or 16 x gives exactly 1/8 or 1/4 of the value at x, from the base interval outwards in both directions."""
    step, back = (3, 3) if function == "reciprocal" else (4, 2)
    table, a = base_table(function), (x / 32).astype(np.float32)
    one = kit.call("evaluate_ranges", a, table, function=function)
    far = kit.call("evaluate_ranges", a * np.float32(2.0 ** (step * k)), table, function=function)
    kit.check(compare.exact(far, one * 2.0 ** (-back * k), f"{function} {k} ranges further"))
    low = 0.5 if function == "reciprocal" else 0.25
    base = a[(a >= low) & (a < 4)]
    inside = kit.call("evaluate_ranges", base, table, function=function)
    kit.check(compare.exact(inside, kit.call("evaluate_table", base, table), "the base interval"))


# -- compositions ------------------------------------------------------------------------------------------------------

LOGITS = arrays(
    np.int32,
    st.tuples(st.integers(1, 3), st.integers(1, 9)),
    elements=st.one_of(st.integers(-128, 127), st.integers(-(2**23), 2**23)),
    fill=st.nothing(),
)


@clause("L-16", tier="exact", q=LOGITS, out_bits=[7, 8, 4, 0, 16], tie=TIES, any_table=st.booleans())
def test_softmax(kit: Kit, q: Array, out_bits: int, tie: TableTie, any_table: bool) -> None:
    """Equal to the last bit, for small and far logits, many equal ones, and tables that no one would deploy."""
    odd = integer_table((-3,), (-2, 5), (40, 9), 1, 2)
    exp, div = (odd, odd) if any_table else (EXP, RECIPROCAL)
    found = kit.call("table_softmax", q, exp, div, out_bits=out_bits, tie=tie)
    require_integers(kit, found, "probabilities")
    kit.check(compare.exact(found, kit.spec.table_softmax(q, exp, div, out_bits=out_bits, tie=tie), "probabilities"))
    shifted = kit.call("table_softmax", q - 5, exp, div, out_bits=out_bits, tie=tie)
    kit.check(compare.exact(shifted, found, "probabilities of shifted logits"))
    for n in (1, 2, 40, 1000):
        level = np.full((1, n), 9, np.int32)
        found = kit.call("table_softmax", level, exp, div, out_bits=out_bits, tie=tie)
        want = kit.spec.table_softmax(level, exp, div, out_bits=out_bits, tie=tie)
        kit.check(compare.exact(found, want, f"probabilities of {n} equal logits"))


@clause(
    "L-17",
    tier="exact",
    q=arrays(
        np.int32,
        st.tuples(st.integers(1, 3), st.integers(1, 9)),
        elements=st.one_of(st.integers(-128, 127), st.integers(-3, 3), st.integers(-(2**20), 2**20)),
        fill=st.nothing(),
    ),
    out_bits=[5, 4, 0, 16],
    tie=TIES,
    any_table=st.booleans(),
)
def test_layer_norm(kit: Kit, q: Array, out_bits: int, tie: TableTie, any_table: bool) -> None:
    """Equal to the last bit; constant rows give zeros; a shift of all codes changes nothing."""
    odd = integer_table((3,), (-2, 5), (40, 9), 1, 2)
    table = odd if any_table else RSQRT
    found = kit.call("table_layer_norm", q, table, out_bits=out_bits, tie=tie)
    require_integers(kit, found, "normalized codes")
    kit.check(compare.exact(found, kit.spec.table_layer_norm(q, table, out_bits=out_bits, tie=tie), "normalized codes"))
    shifted = kit.call("table_layer_norm", q - 7, table, out_bits=out_bits, tie=tie)
    kit.check(compare.exact(shifted, found, "normalized codes of shifted codes"))
    flat = kit.call("table_layer_norm", np.full((2, 5), 77, np.int32), table, out_bits=out_bits, tie=tie)
    kit.check(compare.exact(flat, np.zeros((2, 5), np.int32), "a constant row"))
    wide = np.tile(EVERY, (1, 60))
    found = kit.call("table_layer_norm", wide, table, out_bits=out_bits, tie=tie)
    kit.check(compare.exact(found, kit.spec.table_layer_norm(wide, table, out_bits=out_bits, tie=tie), "660 features"))


# -- verification ------------------------------------------------------------------------------------------------------


@clause("L-18", tier="forward-error", table=integer_tables(), low=st.integers(-128, 120), tie=TIES)
def test_errors(kit: Kit, table: IntegerTable[Array], low: int, tie: TableTie) -> None:
    """Mean squared and largest error over all codes, and the first code of the largest."""
    values = 3 * np.cos(np.arange(low, 128) / 9.0) + np.arange(low, 128)
    found = kit.call("verify_table", table, values, low=low, tie=tie)
    want = kit.spec.verify_table(table, values, low=low, tie=tie)
    n = len(values)
    kit.check(compare.forward(found.mse, want.mse, compare.gamma(n + 4, U64) * want.mse + kit.tiny(), "mse"))
    kit.check(compare.forward(found.max_error, want.max_error, compare.gamma(2, U64) * want.max_error, "max error"))
    unit = 2.0 ** -(table.fraction_bits + table.scale_bits)
    y = kit.spec.evaluate_codes(np.arange(low, 128), table, tie=tie) * unit
    at = int(found.worst) - low
    kit.require(0 <= at < n, f"the worst code is {found.worst}, outside {low}..127")
    kit.check(compare.forward(abs(y[at] - values[at]), want.max_error, compare.gamma(2, U64) * want.max_error, "worst"))
    mirrored = integer_table((0,), (0, 0), (1, 1), 0, 0)
    found = kit.call("verify_table", mirrored, np.array([1.0, 3.0, 1.0, -1.0]), low=-2)
    kit.require(int(found.worst) == -1, f"of two largest errors the later one, at {found.worst}, is named")


@clause(
    "L-19",
    tier="exact",
    table=integer_tables(),
    values=strategies.integers(st.integers(0, 40), 3),
    low=st.integers(-128, 80),
)
def test_turns_and_signs(kit: Kit, table: IntegerTable[Array], values: Array, low: int) -> None:
    """Contradictions only: a level piece has not turned, and zero has no sign."""
    y = kit.spec.evaluate_codes(np.arange(low, low + len(values)), table)
    found = kit.call("verify_table", table, values / 2, low=low)
    turns = sum(
        bool((y[i + 1] > y[i]) & (v < u) | (y[i + 1] < y[i]) & (v > u)) for i, (u, v) in enumerate(pairs(values))
    )
    signs = sum(bool((a > 0 > v) | (a < 0 < v)) for a, v in zip(y.tolist(), values.tolist(), strict=True))
    kit.require(int(found.turns) == turns, f"{found.turns} wrong turns, there are {turns}")
    kit.require(int(found.signs) == signs, f"{found.signs} wrong signs, there are {signs}")


def pairs(values: Array) -> list[tuple[int, int]]:
    """Neighbours."""
    return list(zip(values[:-1].tolist(), values[1:].tolist(), strict=True))
