"""L: look-up tables. The rules are those of :mod:`lowbit.reference.lut`.

Codes of 8 bits have 256 values: the pieces are evaluated once for each, and the array itself costs one load and one
store per code. Where entries have 8 bits too, two neighbouring codes are looked up at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

from lowbit.accel.common.lut import check_table, check_tie
from lowbit.accel.common.refusals import check_choice, check_number, check_whole
from lowbit.reference.errors import SpecError
from lowbit.reference.types import (
    TABLE_FUNCTIONS,
    IntegerTable,
    Table,
    TableFunction,
    TableGradient,
    TableReport,
    TableTie,
)

from ._arrays import Array, finite_weights, fixed, integers, working_dtype
from ._jit import by_pieces, kernel

__all__ = [
    "evaluate_codes",
    "evaluate_ranges",
    "evaluate_table",
    "fit_chords",
    "fit_segments",
    "integer_table",
    "lookup_codes",
    "requantize_codes",
    "round_table",
    "table_gradient",
    "table_layer_norm",
    "table_softmax",
    "verify_table",
]

_INT32 = 2**31 - 1
_BITS = 24
_CODES = np.arange(-128, 128)
_PAIRS = 1 << 20  # codes from which on a table of pairs pays


def _float_table(table: Table[Array], clause: str) -> tuple[Array, Array, Array]:
    p, k, b = (
        fixed(finite_weights(clause, f"table.{name}", getattr(table, name)), np.float64)
        for name in ("breakpoints", "slopes", "intercepts")
    )
    check_table(clause, p.shape, k.shape, b.shape, bool((p.ravel()[1:] >= p.ravel()[:-1]).all()))
    return p, k, b


def _integer_table(table: IntegerTable[Array], clause: str) -> tuple[Array, Array, Array]:
    p, k, b = (
        fixed(integers(clause, f"table.{name}", getattr(table, name)), np.int64)
        for name in ("breakpoints", "slopes", "intercepts")
    )
    check_table(clause, p.shape, k.shape, b.shape, bool((p.ravel()[1:] >= p.ravel()[:-1]).all()))
    check_whole(clause, "scale_bits", table.scale_bits, 0, _BITS)
    check_whole(clause, "fraction_bits", table.fraction_bits, 0, _BITS)
    return p, k, b


def _fits(k: Array, b: Array, largest: int) -> bool:
    return int(np.abs(k).max()) * largest + int(np.abs(b).max()) <= _INT32


def _limit(clause: str, k: Array, b: Array, largest: int) -> None:
    if not _fits(k, b, largest):
        raise SpecError(clause, f"values at codes up to {largest} would leave int32")


# -- tables ------------------------------------------------------------------------------------------------------------


def _ascending(clause: str, name: str, values: Array) -> None:
    if (values[1:] < values[:-1]).any():
        raise SpecError(clause, f"{name} must ascend")


def _vectors(clause: str, x: Any, y: Any, names: tuple[str, str]) -> tuple[Array, Array]:
    a = finite_weights(clause, names[0], x, (None,)).astype(np.float64)
    b = finite_weights(clause, names[1], y, (None,)).astype(np.float64)
    if a.size != b.size:
        raise SpecError(clause, f"{names[0]} and {names[1]} must have one length, got {a.size} and {b.size}")
    return a, b


def fit_chords(knots: Array, values: Array, /) -> Table[Array]:
    """Table of the chords between the points (knot, value).  [L-1, L-2]"""
    a, v = _vectors("L-1", knots, values, ("knots", "values"))
    if a.size < 2:
        raise SpecError("L-1", f"a table needs at least 2 knots, got {a.size}")
    _ascending("L-1", "inner knots", a[1:-1])
    slopes, intercepts = np.zeros(a.size - 1), np.zeros(a.size - 1)
    for i in np.flatnonzero(a[1:] != a[:-1]):
        slopes[i] = (v[i + 1] - v[i]) / (a[i + 1] - a[i])
        intercepts[i] = v[i] - a[i] * slopes[i]
    return Table(a[1:-1].copy(), slopes, intercepts)


def fit_segments(x: Array, y: Array, breakpoints: Array, /, *, tie: TableTie = "right") -> Table[Array]:
    """Table of the least-squares lines through the samples of every piece.  [L-3]"""
    xs, ys = _vectors("L-3", x, y, ("x", "y"))
    p = finite_weights("L-3", "breakpoints", breakpoints, (None,)).astype(np.float64)
    _ascending("L-3", "breakpoints", p)
    check_tie(tie)
    piece, n = np.searchsorted(p, xs, side=tie), p.size + 1
    count = np.maximum(np.bincount(piece, minlength=n), 1)
    first = np.zeros(n)
    first[piece[::-1]] = xs[::-1]
    dx = xs - first[piece]  # relative to a sample of the piece: 0 for all of them where x does not vary
    mean_x, mean_y = (np.bincount(piece, a, minlength=n) / count for a in (dx, ys))
    varies = np.bincount(piece, dx != 0, minlength=n) > 0
    cx = np.where(varies[piece], dx - mean_x[piece], 0.0)
    square = np.bincount(piece, cx * cx, minlength=n)
    slope = np.bincount(piece, cx * (ys - mean_y[piece]), minlength=n) / np.where(square > 0, square, 1.0)
    return Table(p, slope, mean_y - slope * (mean_x + first))


def round_table(table: Table[Array], /, *, fraction_bits: int = 6, bits: int | None = None) -> Table[Array]:
    """Slopes and intercepts in fixed point, clipped only when ``bits`` are given.  [L-4, L-5]"""
    p, k, b = _float_table(table, "L-4")
    unit = 2.0 ** check_whole("L-4", "fraction_bits", fraction_bits, 0, _BITS)
    wanted = np.rint(np.concatenate((k, b)) * unit)
    codes = wanted
    if bits is not None:
        half = 2.0 ** (check_whole("L-5", "bits", bits, 2, 32) - 1)
        codes = np.minimum(np.maximum(wanted, -half), half - 1)
    slopes, intercepts = np.split(codes / unit, 2)
    return Table(p.copy(), slopes, intercepts, int(np.count_nonzero(codes != wanted)))


def integer_table(table: Table[Array], /, *, scale_bits: int, fraction_bits: int = 6) -> IntegerTable[Array]:
    """The table for codes of scale 2⁻ᵇ.  [L-6]"""
    p, k, b = _float_table(table, "L-6")
    c = check_whole("L-6", "scale_bits", scale_bits, 0, _BITS)
    f = check_whole("L-6", "fraction_bits", fraction_bits, 0, _BITS)
    parts = []
    for name, wide, power in (("breakpoints", p, c), ("slopes", k, f), ("intercepts", b, f)):
        scaled = np.ldexp(wide, power)
        whole = np.rint(scaled)
        if name != "breakpoints" and (whole != scaled).any():
            bad = wide[whole != scaled][0]
            raise SpecError("L-6", f"{name} must be multiples of 2^-{f}, got {bad}; call round_table first")
        if name == "intercepts":
            whole = np.ldexp(whole, c)
        if (np.abs(whole) > _INT32).any():
            raise SpecError("L-6", f"{name} would leave int32")
        parts.append(whole.astype(np.int32))
    return IntegerTable(parts[0], parts[1], parts[2], c, f)


# -- evaluation --------------------------------------------------------------------------------------------------------


@kernel
def _line(x: Any, p: Any, k: Any, b: Any, right: bool) -> Any:
    """k x + b of the piece of x, counted, as a table has few; in the type of the table."""
    piece = 0
    for j in range(p.size):
        piece += p[j] < x or (right and p[j] == x)
    return k[piece] * x + b[piece]


@kernel
def _values(x: Any, p: Any, k: Any, b: Any, right: bool, out: Any) -> None:
    """In float64: breakpoints are compared as they are."""
    for i in range(x.size):
        out[i] = _line(np.float64(x[i]), p, k, b, right)


@kernel
def _integer_values(q: Any, p: Any, k: Any, b: Any, right: bool, out: Any) -> None:
    for i in range(q.size):
        out[i] = np.int32(_line(np.int64(q[i]), p, k, b, right))


@kernel
def _gather(index: Any, entries: Any, out: Any) -> None:
    """Unsigned indices: no test for negative ones."""
    for i in range(index.size):
        out[i] = entries[index[i]]


@kernel
def _shifted(a: Any, shift: int, low: Any, high: Any, out: Any) -> None:
    half = np.int64(1) << max(shift - 1, 0)
    for i in range(a.size):
        wide = np.int64(a[i])
        if shift:
            wide = (wide + half - 1 + ((wide >> shift) & 1)) >> shift  # half − 1 more, and 1 more where that is odd
        out[i] = np.int32(min(max(wide, low), high))


def _spread(size: int, width: int, task: Callable[[slice], object]) -> None:
    by_pieces((size, width), task, elements=1 << 20)


def evaluate_table(x: Array, table: Table[Array], /, *, tie: TableTie = "left") -> Array:
    """Value of the table, in the precision of x.  [L-7, L-8]"""
    p, k, b = _float_table(table, "L-7")
    given = finite_weights("L-7", "x", x)
    check_tie(tie)
    flat = fixed(given, working_dtype(given)).reshape(-1)
    out = np.empty(flat.size, flat.dtype)
    _spread(flat.size, 1, lambda at: _values(flat[at], p, k, b, tie == "right", out[at]))
    return out.reshape(given.shape)


def _code_array(clause: str, name: str, q: Any) -> Array:
    """int8 as it is, everything else as int32; contiguous and read-only."""
    if isinstance(q, np.ndarray) and q.dtype == np.int8:
        return fixed(q)
    return integers(clause, name, q)


def _all_codes(p: Array, k: Array, b: Array, tie: str) -> Array:
    piece = np.searchsorted(p, _CODES, side="right" if tie == "right" else "left")
    return (k[piece] * _CODES + b[piece]).astype(np.int32)


def _by_bytes(q: Array, entries: Array) -> Array:
    """Entries, one for each of the codes −128 … 127, at int8 codes."""
    index = q.reshape(-1).view(np.uint8)
    table = np.roll(entries, 128)  # by the byte: 0 … 127, then −128 … −1
    out = np.empty(index.size, entries.dtype)
    if entries.itemsize == 1 and index.size >= _PAIRS and sys.byteorder == "little":
        low, high = np.meshgrid(table.view(np.uint8), table.view(np.uint8))
        pairs = low.astype(np.uint16) | (high.astype(np.uint16) << np.uint16(8))
        even = index.size // 2 * 2
        wide, result = index[:even].view(np.uint16), out[:even].view(np.uint16)
        flat = pairs.reshape(-1)
        _spread(wide.size, 1, lambda at: _gather(wide[at], flat, result[at]))
        _gather(index[even:], table, out[even:])
    else:
        _spread(index.size, 1, lambda at: _gather(index[at], table, out[at]))
    return out.reshape(q.shape)


def evaluate_codes(q: Array, table: IntegerTable[Array], /, *, tie: TableTie = "left") -> Array:
    """Value of the table for integer codes, in integers.  [L-9]"""
    p, k, b = _integer_table(table, "L-9")
    codes = _code_array("L-9", "q", q)
    check_tie(tie)
    if codes.size and not (codes.dtype == np.int8 and _fits(k, b, 128)):  # then no code needs a look
        _limit("L-9", k, b, max(-int(codes.min()), int(codes.max()), 0))
    if codes.dtype == np.int8:
        return _by_bytes(codes, _all_codes(p, k, b, tie))
    out = np.empty(codes.size, np.int32)
    flat = codes.reshape(-1)
    _spread(flat.size, 1, lambda at: _integer_values(flat[at], p, k, b, tie == "right", out[at]))
    return out.reshape(codes.shape)


def lookup_codes(q: Array, entries: Array, /, *, low: int = -128) -> Array:
    """One entry for every code.  [L-11]"""
    codes = _code_array("L-11", "q", q)
    if isinstance(entries, np.ndarray) and entries.dtype.kind in "iu":
        e = fixed(entries)
    else:
        e = finite_weights("L-11", "entries", entries)
        e = fixed(e, working_dtype(e))
    if e.ndim != 1:
        raise SpecError("L-11", f"entries must be a vector, got shape {e.shape}")
    first = check_whole("L-11", "low", low, -(2**31))
    if codes.dtype == np.int8 and first == -128 and e.size == 256:
        return _by_bytes(codes, e)
    if codes.size and (int(codes.min()) < first or int(codes.max()) >= first + e.size):
        reach = f"{first}..{first + e.size - 1}"
        raise SpecError("L-11", f"codes must lie in {reach}, got {codes.min()}..{codes.max()}")
    return np.asarray(e[codes.astype(np.int64) - first])


def requantize_codes(a: Array, /, *, shift: int, low: int = -128, high: int = 127) -> Array:
    """Accumulators divided by 2^shift, half to even, and clipped.  [L-12]"""
    s = check_whole("L-12", "shift", shift, 0, 31)
    least = check_whole("L-12", "low", low, -(2**31))
    most = check_whole("L-12", "high", high, least)
    codes = integers("L-12", "a", a)
    if codes.size and int(codes.min()) < -_INT32:
        raise SpecError("L-12", f"accumulators must be above -2^31, got {codes.min()}")
    flat = codes.reshape(-1)
    out = np.empty(flat.size, np.int32)
    _spread(flat.size, 1, lambda at: _shifted(flat[at], s, least, most, out[at]))
    return out.reshape(codes.shape)


# -- gradients ---------------------------------------------------------------------------------------------------------


def _derivative(function: str, x: Array) -> Array:
    """f′(x), in the precision of x."""
    one = x.dtype.type(1)
    if function == "gelu":
        return np.asarray(special.ndtr(x) + x * np.exp(-x * x / 2) * one / np.sqrt(2 * np.pi * one))
    if function == "hswish":
        return np.select([x <= -3, x >= 3], [0 * x, 0 * x + 1], x / 3 + one / 2)
    if function == "exp":
        return np.asarray(np.exp(x))
    if function == "reciprocal":
        return np.asarray(-one / (x * x))
    if function == "rsqrt":
        return np.asarray(-one / (2 * x * np.sqrt(x)))
    if function == "tanh":
        return np.asarray(one / np.cosh(np.clip(x, -40, 40)) ** 2)
    s, t = special.expit(x), special.expit(-x)
    return np.asarray(s * t if function == "sigmoid" else s + x * s * t)


def table_gradient(grad: Array, q: Array, /, *, scale: float, function: TableFunction) -> TableGradient[Array]:
    """Gradients through a deployed table: those of the function.  [L-13]"""
    g = finite_weights("L-13", "grad", grad)
    codes = integers("L-13", "q", q)
    if g.shape != codes.shape:
        raise SpecError("L-13", f"grad {g.shape} and q {codes.shape} must agree in shape")
    s = check_number("L-13", "scale", scale)
    if s <= 0:
        raise SpecError("L-13", f"scale must be above 0, got {s}")
    check_choice("L-13", "function", function, TABLE_FUNCTIONS)
    if function in ("reciprocal", "rsqrt") and codes.size and int(codes.min()) <= 0:
        raise SpecError("L-13", f"{function} needs codes above 0, got {codes.min()}")
    dtype = working_dtype(g)
    slope = _derivative(function, codes * s)  # float64: S q itself is then no worse than a float32 slope
    wide = g * slope
    return TableGradient(np.asarray(wide * s).astype(dtype), np.asarray(np.sum(wide * codes)).astype(dtype))


# -- ranges and compositions -------------------------------------------------------------------------------------------


def evaluate_ranges(x: Array, table: Table[Array], /, *, function: TableFunction, tie: TableTie = "left") -> Array:
    """1/x or 1/√x for every x > 0 from a table of one base interval.  [L-14, L-15]"""
    check_choice("L-14", "function", function, ("reciprocal", "rsqrt"))
    given = finite_weights("L-14", "x", x)
    if given.size and not given.min() > 0:
        raise SpecError("L-14", f"x must be above 0, got {given.min()}")
    a = given.astype(working_dtype(given))
    exponent = np.frexp(a)[1]  # x < 2^exponent, half of it at least
    if function == "reciprocal":
        k = exponent // 3
        return np.asarray(np.ldexp(evaluate_table(np.ldexp(a, -3 * k), table, tie=tie), -3 * k))
    k = (exponent + 1) // 4
    return np.asarray(np.ldexp(evaluate_table(np.ldexp(a, -4 * k), table, tie=tie), -2 * k))


@kernel
def _rounded(a: Any, shift: Any) -> Any:
    """a · 2^−shift, half to even, for abs(a) < 2^62."""
    if shift <= 0:
        return a << -shift
    if shift > 62:
        return np.int64(0)
    return (a + (np.int64(1) << (shift - 1)) - 1 + ((a >> shift) & 1)) >> shift


@kernel
def _held(product: Any, shift: Any, low: Any, high: Any) -> Any:
    """The rounded product within its limits; a product shifted to the left is limited first, so that it fits."""
    if shift < 0:
        product = min(max(product, min(low, -1)), max(high, 1))
    return np.int32(min(max(_rounded(product, shift), low), high))


@kernel
def _digits(a: Any) -> Any:
    n = np.int64(0)
    while a > 0:
        a >>= 1
        n += 1
    return n


@kernel
def _softmax(
    q: Any, steps: Any, ep: Any, ek: Any, eb: Any, scale: int, rp: Any, rk: Any, rb: Any, base: int, o: int,
    right: bool, e: Any, out: Any,
) -> None:  # fmt: skip
    """Rows of logits; ``steps`` are the scale bits of both tables, ``e`` is room for one row."""
    floor = np.int64(-16) << steps[0]
    for t in range(q.shape[0]):
        top = np.int64(q[t, 0])
        for j in range(q.shape[1]):
            top = max(top, np.int64(q[t, j]))
        total = np.int64(0)
        for j in range(q.shape[1]):
            e[j] = max(_line(max(np.int64(q[t, j]) - top, floor), ep, ek, eb, right), 0)
            total += e[j]
        k = (_digits(total) - scale) // 3  # the least with total < 2^(2 + scale + 3k)
        z = min(_rounded(total, scale + 3 * k - steps[1]), np.int64(4) << steps[1])
        r = _line(z, rp, rk, rb, right)
        for j in range(q.shape[1]):
            out[t, j] = _held(e[j] * r, scale + base + 3 * k - o, 0, (np.int64(1) << o) - 1)


@kernel
def _layer_norm(q: Any, p: Any, k: Any, b: Any, c: int, base: int, o: int, right: bool, out: Any) -> None:
    n = np.int64(q.shape[1])
    for t in range(q.shape[0]):
        total = np.int64(0)
        for j in range(n):
            total += np.int64(q[t, j])
        square = np.int64(0)
        for j in range(n):
            d = n * np.int64(q[t, j]) - total
            square += d * d
        if square == 0:
            out[t] = 0
            continue
        m = (_digits(square // n) + 1) // 4  # the least with square / n < 2^(2 + 4m)
        over, under = square, n
        if c > 4 * m:
            over <<= c - 4 * m
        else:
            under <<= 4 * m - c
        z = over // under
        rest = over - z * under
        if 2 * rest > under or (2 * rest == under and z % 2 == 1):
            z += 1
        r = _line(z, p, k, b, right)
        for j in range(n):
            out[t, j] = _held((n * np.int64(q[t, j]) - total) * r, base + 2 * m - o, -128, 127)


def _rows(clause: str, q: Any) -> Array:
    codes = integers(clause, "q", q)
    if not codes.ndim or not codes.shape[-1]:
        raise SpecError(clause, f"q needs at least one entry in its last axis, got shape {codes.shape}")
    return codes


def table_softmax(
    q: Array,
    exp: IntegerTable[Array],
    reciprocal: IntegerTable[Array],
    /,
    *,
    out_bits: int = 7,
    tie: TableTie = "left",
) -> Array:
    """Softmax of integer logits over the last axis, in integers.  [L-16]"""
    codes = _rows("L-16", q)
    if codes.shape[-1] > 2**24:
        raise SpecError("L-16", f"at most 2^24 logits to a row, got {codes.shape[-1]}")
    if codes.size and max(-int(codes.min()), int(codes.max())) > 2**24:
        raise SpecError("L-16", f"logits must lie in -2^24..2^24, got {codes.min()}..{codes.max()}")
    o = check_whole("L-16", "out_bits", out_bits, 0, 16)
    first, second = _integer_table(exp, "L-16"), _integer_table(reciprocal, "L-16")
    check_tie(tie)
    _limit("L-16", *first[1:], 16 << exp.scale_bits)
    _limit("L-16", *second[1:], 4 << reciprocal.scale_bits)
    scale, base = exp.scale_bits + exp.fraction_bits, reciprocal.scale_bits + reciprocal.fraction_bits
    steps = np.array([exp.scale_bits, reciprocal.scale_bits])
    rows = codes.reshape(-1, codes.shape[-1])
    out = np.empty(rows.shape, np.int32)

    def work(at: slice) -> None:
        room = np.empty(rows.shape[1], np.int64)
        _softmax(rows[at], steps, *first, scale, *second, base, o, tie == "right", room, out[at])

    _spread(rows.shape[0], rows.shape[1], work)
    return out.reshape(codes.shape)


def table_layer_norm(q: Array, rsqrt: IntegerTable[Array], /, *, out_bits: int = 5, tie: TableTie = "left") -> Array:
    """Layer norm of integer codes over the last axis, in integers, without gain and bias.  [L-17]"""
    codes = _rows("L-17", q)
    n = codes.shape[-1]
    largest = max(-int(codes.min()), int(codes.max())) if codes.size else 0
    if 4 * n**3 * largest**2 >= 2**60:
        raise SpecError("L-17", f"the variance of {n} features of up to {largest} would leave int64")
    o = check_whole("L-17", "out_bits", out_bits, 0, 16)
    p, k, b = _integer_table(rsqrt, "L-17")
    check_tie(tie)
    _limit("L-17", k, b, 4 << rsqrt.scale_bits)
    rows = codes.reshape(-1, n)
    out = np.empty(rows.shape, np.int32)
    c, base, right = rsqrt.scale_bits, rsqrt.scale_bits + rsqrt.fraction_bits, tie == "right"
    _spread(rows.shape[0], n, lambda at: _layer_norm(rows[at], p, k, b, c, base, o, right, out[at]))
    return out.reshape(codes.shape)


# -- verification ------------------------------------------------------------------------------------------------------


def verify_table(
    table: IntegerTable[Array], values: Array, /, *, low: int = -128, tie: TableTie = "left"
) -> TableReport:
    """A table against exact values, at every code.  [L-18, L-19]"""
    v = finite_weights("L-18", "values", values, (None,)).astype(np.float64)
    first = check_whole("L-18", "low", low, -_INT32, _INT32 - v.size)
    codes = np.arange(first, first + v.size, dtype=np.int32)
    y = np.ldexp(evaluate_codes(codes, table, tie=tie).astype(np.float64), -table.fraction_bits - table.scale_bits)
    if not v.size:
        return TableReport(0.0, 0.0, first, 0, 0)
    error = np.abs(y - v)
    at = int(np.argmax(error))
    down, falls = y[1:] < y[:-1], v[1:] < v[:-1]
    turned = (down & (v[1:] > v[:-1])) | ((y[1:] > y[:-1]) & falls)
    signs = ((y < 0) & (v > 0)) | ((y > 0) & (v < 0))
    mse = float(error @ error) / v.size
    return TableReport(mse, float(error[at]), first + at, int(turned.sum()), int(signs.sum()))
