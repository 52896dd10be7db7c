"""L: look-up tables with tensor operations; a list of 256 entries for codes of 8 bits.

The rules are those of :mod:`lowbit.reference.lut`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

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

from . import triton
from .arrays import as_integers, as_weights, operation, refuse_nan, row_chunks, working_dtype
from .policy import by_kernel

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

triton.KERNELS.update(evaluate_codes=triton.anything, lookup_codes=triton.anything)

_INT32 = 2**31 - 1
_BITS = 24


def _finite(clause: str, name: str, x: Tensor, like: Tensor | None = None) -> Tensor:
    x = as_weights(clause, name, x, like=like)
    refuse_nan(clause, name, x)
    return x


def _vector(clause: str, name: str, x: Tensor, like: Tensor | None = None) -> Tensor:
    x = _finite(clause, name, x, like)
    if x.dim() != 1:
        raise SpecError(clause, f"{name} must be a vector, got shape {tuple(x.shape)}")
    return x.to(torch.float64)


def _rising(x: Tensor) -> bool:
    return x.dim() != 1 or bool((x[1:] >= x[:-1]).all())


def _float_table(clause: str, table: Table[Tensor], like: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    p = _finite(clause, "table.breakpoints", table.breakpoints, like).to(torch.float64)
    k = _finite(clause, "table.slopes", table.slopes, p).to(torch.float64)
    b = _finite(clause, "table.intercepts", table.intercepts, p).to(torch.float64)
    check_table(clause, tuple(p.shape), tuple(k.shape), tuple(b.shape), _rising(p))
    return p, k, b


def _integers(clause: str, name: str, x: Tensor, like: Tensor | None = None) -> Tensor:
    """Integers that fit int32, in int64."""
    x = as_integers(clause, name, x, like=like)
    if x.dtype == torch.int64 and x.numel() and int(x.abs().max()) > 2**31:
        raise SpecError(clause, f"{name} must fit int32, got values in {int(x.min())}..{int(x.max())}")
    return x.to(torch.int64)


def _integer_table(
    clause: str, table: IntegerTable[Tensor], like: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    p = _integers(clause, "table.breakpoints", table.breakpoints, like)
    k = _integers(clause, "table.slopes", table.slopes, p)
    b = _integers(clause, "table.intercepts", table.intercepts, p)
    check_table(clause, tuple(p.shape), tuple(k.shape), tuple(b.shape), _rising(p))
    check_whole(clause, "scale_bits", table.scale_bits, 0, _BITS)
    check_whole(clause, "fraction_bits", table.fraction_bits, 0, _BITS)
    return p, k, b


def _largest(q: Tensor) -> int:
    return max(-int(q.min()), int(q.max()), 0) if q.numel() else 0


def _fits(k: Tensor, b: Tensor, largest: int) -> bool:
    return int(k.abs().max()) * largest + int(b.abs().max()) <= _INT32


def _limit(clause: str, k: Tensor, b: Tensor, largest: int) -> None:
    if not _fits(k, b, largest):
        raise SpecError(clause, f"values at codes up to {largest} would leave int32")


def _lines(x: Tensor, p: Tensor, k: Tensor, b: Tensor, tie: str) -> Tensor:
    """k x + b of the piece of every x, in the type of the table."""
    piece = torch.searchsorted(p.contiguous(), x.contiguous(), right=tie == "right")
    return torch.addcmul(b[piece], k[piece], x) if x.dtype == torch.int64 else k[piece] * x + b[piece]


# -- tables ------------------------------------------------------------------------------------------------------------


@operation
def fit_chords(knots: Tensor, values: Tensor, /) -> Table[Tensor]:
    """Table of the chords between the points (knot, value).  [L-1, L-2]"""
    a = _vector("L-1", "knots", knots)
    v = _vector("L-1", "values", values, a)
    if a.numel() < 2 or a.numel() != v.numel():
        raise SpecError("L-1", f"knots and values must be 2 or more and as many, got {a.numel()} and {v.numel()}")
    if not _rising(a[1:-1]):
        raise SpecError("L-1", "inner knots must ascend")
    width = a.diff()
    alive = width != 0
    k = (v.diff() / width.masked_fill(~alive, 1.0)).masked_fill(~alive, 0.0)
    b = (v[:-1] - a[:-1] * k).masked_fill(~alive, 0.0)
    return Table(a[1:-1].clone(), k, b)


@operation
def fit_segments(x: Tensor, y: Tensor, breakpoints: Tensor, /, *, tie: TableTie = "right") -> Table[Tensor]:
    """Table of the least-squares lines through the samples of every piece.  [L-3]"""
    xs = _vector("L-3", "x", x)
    ys = _vector("L-3", "y", y, xs)
    p = _vector("L-3", "breakpoints", breakpoints, xs)
    if xs.numel() != ys.numel():
        raise SpecError("L-3", f"x and y must have one length, got {xs.numel()} and {ys.numel()}")
    if not _rising(p):
        raise SpecError("L-3", "breakpoints must ascend")
    check_tie(tie)
    n = p.numel() + 1
    piece = torch.searchsorted(p.contiguous(), xs.contiguous(), right=tie == "right")
    k, b = torch.zeros(n, dtype=torch.float64, device=xs.device), torch.zeros(n, dtype=torch.float64, device=xs.device)
    for i in sorted(set(piece.tolist())):  # a handful: one pass each, with no order of additions left open
        xi, yi = xs[piece == i], ys[piece == i]
        centre, level = xi.mean(), yi.mean()
        if bool((xi != xi[0]).any()):
            dx = xi - centre
            k[i] = (dx * (yi - level)).sum() / (dx * dx).sum()
        b[i] = level - k[i] * centre
    return Table(p.clone(), k, b)


@operation
def round_table(table: Table[Tensor], /, *, fraction_bits: int = 6, bits: int | None = None) -> Table[Tensor]:
    """Slopes and intercepts in fixed point, clipped only when ``bits`` are given.  [L-4, L-5]"""
    p, k, b = _float_table("L-4", table)
    unit = 2.0 ** check_whole("L-4", "fraction_bits", fraction_bits, 0, _BITS)
    codes = (torch.stack((k, b)) * unit).round()
    held = codes
    if bits is not None:
        half = 2.0 ** (check_whole("L-5", "bits", bits, 2, 32) - 1)
        held = codes.clamp(-half, half - 1)
    slopes, intercepts = held / unit
    return Table(p.clone(), slopes.clone(), intercepts.clone(), int((held != codes).sum()))


@operation
def integer_table(table: Table[Tensor], /, *, scale_bits: int, fraction_bits: int = 6) -> IntegerTable[Tensor]:
    """The table for codes of scale 2⁻ᵇ.  [L-6]"""
    p, k, b = _float_table("L-6", table)
    c = check_whole("L-6", "scale_bits", scale_bits, 0, _BITS)
    f = check_whole("L-6", "fraction_bits", fraction_bits, 0, _BITS)
    slopes, intercepts = k * 2.0**f, b * 2.0**f
    for name, given, scaled in (("slopes", k, slopes), ("intercepts", b, intercepts)):
        bad = scaled != scaled.round()
        if bool(bad.any()):
            raise SpecError("L-6", f"{name} must be multiples of 2^-{f}, got {float(given[bad][0])}")
    parts = (p * 2.0**c).round(), slopes, intercepts * 2.0**c
    for name, part in zip(("breakpoints", "slopes", "intercepts"), parts, strict=True):
        if part.numel() and float(part.abs().max()) > _INT32:
            raise SpecError("L-6", f"{name} would leave int32")
    codes = [part.to(torch.int32) for part in parts]
    return IntegerTable(codes[0], codes[1], codes[2], c, f)


# -- evaluation --------------------------------------------------------------------------------------------------------


@operation
def evaluate_table(x: Tensor, table: Table[Tensor], /, *, tie: TableTie = "left") -> Tensor:
    """Value of the table, in the precision of x.  [L-7, L-8]"""
    given = _finite("L-7", "x", x)
    p, k, b = _float_table("L-7", table, given)
    check_tie(tie)
    flat = given.reshape(-1)
    out = torch.empty(flat.shape, dtype=working_dtype(given), device=given.device)
    for at in row_chunks(flat.numel(), 1, given.device):
        out[at] = _lines(flat[at].to(torch.float64), p, k, b, tie).to(out.dtype)
    return out.reshape(given.shape)


def _picked(q: Tensor, entries: Tensor, low: int) -> Tensor:
    """entries[q − low] for checked codes, without 64-bit indices."""
    index = q.to(torch.int32, copy=True).sub_(low).reshape(-1)
    return entries.index_select(0, index).reshape(q.shape)


@operation
def evaluate_codes(q: Tensor, table: IntegerTable[Tensor], /, *, tie: TableTie = "left") -> Tensor:
    """Value of the table for integer codes, in integers.  [L-9]"""
    given = check_evaluate(q, table, tie)
    return (evaluated_by_kernel if by_kernel("evaluate_codes", given[0]) else evaluated)(*given)


Lines = tuple[Tensor, Tensor, Tensor]


def check_evaluate(q: Tensor, table: IntegerTable[Tensor], tie: str) -> tuple[Tensor, Lines, TableTie]:
    """Codes and an int64 table that evaluates them within int32."""
    codes = as_integers("L-9", "q", q)
    p, k, b = _integer_table("L-9", table, codes)
    check_tie(tie)
    if codes.numel() and not (codes.dtype == torch.int8 and _fits(k, b, 128)):
        _limit("L-9", k, b, _largest(codes))
    return codes, (p, k, b), "right" if tie == "right" else "left"


def evaluated(codes: Tensor, table: Lines, tie: TableTie) -> Tensor:
    """L-9 in torch."""
    if codes.dtype == torch.int8:
        every = torch.arange(-128, 128, device=codes.device)
        return _picked(codes, _lines(every, *table, tie).to(torch.int32), -128)
    flat = codes.reshape(-1)
    out = torch.empty(flat.shape, dtype=torch.int32, device=codes.device)
    for at in row_chunks(flat.numel(), 1, codes.device):
        out[at] = _lines(flat[at].to(torch.int64), *table, tie).to(torch.int32)
    return out.reshape(codes.shape)


def evaluated_by_kernel(codes: Tensor, table: Lines, tie: TableTie) -> Tensor:
    """L-9 by a kernel."""
    out: Tensor = triton.launcher("lut").evaluate_codes(codes.contiguous(), *table, tie == "right")
    return out


@operation
def lookup_codes(q: Tensor, entries: Tensor, /, *, low: int = -128) -> Tensor:
    """One entry for every code.  [L-11]"""
    given = check_lookup(q, entries, low)
    return (looked_up_by_kernel if by_kernel("lookup_codes", given[0]) else looked_up)(*given)


def check_lookup(q: Tensor, entries: Tensor, low: int) -> tuple[Tensor, Tensor, int]:
    """Codes that all have an entry, and the entries as they are answered."""
    codes = as_integers("L-11", "q", q)
    if isinstance(entries, Tensor) and not entries.is_floating_point():
        e = as_integers("L-11", "entries", entries, like=codes)
    else:
        e = _finite("L-11", "entries", entries, codes)
        e = e.to(working_dtype(e))
    if e.dim() != 1:
        raise SpecError("L-11", f"entries must be a vector, got shape {tuple(e.shape)}")
    first = check_whole("L-11", "low", low, -(2**31))
    if codes.numel() and not (codes.dtype == torch.int8 and first == -128 and e.numel() == 256):
        least, most = int(codes.min()), int(codes.max())
        if least < first or most >= first + e.numel():
            raise SpecError("L-11", f"codes must lie in {first}..{first + e.numel() - 1}, got {least}..{most}")
    return codes, e, first


def looked_up(codes: Tensor, entries: Tensor, low: int) -> Tensor:
    """L-11 in torch."""
    if codes.dtype == torch.int64:
        return _picked(codes - low, entries, 0)
    return _picked(codes, entries, low)


def looked_up_by_kernel(codes: Tensor, entries: Tensor, low: int) -> Tensor:
    """L-11 by a kernel."""
    out: Tensor = triton.launcher("lut").lookup_codes(codes.contiguous(), entries, low)
    return out


def _shifted(a: Tensor, shift: Tensor | int) -> Tensor:
    """a · 2^−shift, half to even, in int64, for abs(a) < 2^62 and shifts of either sign."""
    s = torch.as_tensor(shift, dtype=torch.int64, device=a.device)
    right, left = s.clamp(1, 62), (-s).clamp(min=0)
    rounded = (a + (torch.ones_like(right) << (right - 1)) - 1 + ((a >> right) & 1)) >> right
    return torch.where(s > 62, 0, torch.where(s > 0, rounded, a << left))


@operation
def requantize_codes(a: Tensor, /, *, shift: int, low: int = -128, high: int = 127) -> Tensor:
    """Accumulators divided by 2^shift, half to even, and clipped.  [L-12]"""
    s = check_whole("L-12", "shift", shift, 0, 31)
    least = check_whole("L-12", "low", low, -(2**31))
    most = check_whole("L-12", "high", high, least)
    codes = _integers("L-12", "a", a)
    if codes.numel() and int(codes.min()) < -_INT32:
        raise SpecError("L-12", f"accumulators must be above -2^31, got {int(codes.min())}")
    return _shifted(codes, s).clamp(least, most).to(torch.int32)


# -- gradients ---------------------------------------------------------------------------------------------------------


def _derivative(function: str, x: Tensor) -> Tensor:
    """f′(x)."""
    if function == "gelu":
        below: Tensor = torch.special.ndtr(x)
        return below + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    if function == "hswish":
        inner = torch.where(x < 3, (2 * x + 3) / 6, torch.ones_like(x))
        return torch.where(x > -3, inner, torch.zeros_like(x))
    if function == "exp":
        return torch.exp(x)
    if function == "reciprocal":
        return -1 / x.square()
    if function == "rsqrt":
        return -0.5 * x.rsqrt() / x
    if function == "tanh":
        return 4 * torch.sigmoid(2 * x) * torch.sigmoid(-2 * x)
    s, t = torch.sigmoid(x), torch.sigmoid(-x)
    return s * t if function == "sigmoid" else s + x * s * t


@operation
def table_gradient(grad: Tensor, q: Tensor, /, *, scale: float, function: TableFunction) -> TableGradient[Tensor]:
    """Gradients through a deployed table: those of the function.  [L-13]"""
    g = _finite("L-13", "grad", grad)
    codes = _integers("L-13", "q", q, g)
    if g.shape != codes.shape:
        raise SpecError("L-13", f"grad {tuple(g.shape)} and q {tuple(codes.shape)} must agree in shape")
    s = check_number("L-13", "scale", scale)
    if s <= 0:
        raise SpecError("L-13", f"scale must be above 0, got {s}")
    check_choice("L-13", "function", function, TABLE_FUNCTIONS)
    if function in ("reciprocal", "rsqrt") and codes.numel() and int(codes.min()) <= 0:
        raise SpecError("L-13", f"{function} needs codes above 0, got {int(codes.min())}")
    dtype = working_dtype(g)
    wide = g.to(torch.float64) * _derivative(function, codes.to(torch.float64) * s)
    return TableGradient((wide * s).to(dtype), (wide * codes).sum().to(dtype))


# -- ranges and compositions -------------------------------------------------------------------------------------------


@operation
def evaluate_ranges(x: Tensor, table: Table[Tensor], /, *, function: TableFunction, tie: TableTie = "left") -> Tensor:
    """1/x or 1/√x for every x > 0 from a table of one base interval.  [L-14, L-15]"""
    check_choice("L-14", "function", function, ("reciprocal", "rsqrt"))
    given = _finite("L-14", "x", x)
    p, k, b = _float_table("L-14", table, given)
    check_tie(tie)
    if given.numel() and float(given.min()) <= 0:
        raise SpecError("L-14", f"x must be above 0, got {float(given.min())}")
    a = given.to(torch.float64)
    exponent = torch.frexp(a).exponent
    step, back = (3, 3) if function == "reciprocal" else (4, 2)
    ranges = torch.div(exponent + step - 3, step, rounding_mode="floor")
    value = _lines(torch.ldexp(a, -step * ranges), p, k, b, tie)
    result: Tensor = torch.ldexp(value, -back * ranges)
    return result.to(working_dtype(given))


def _digits(a: Tensor) -> Tensor:
    """Digits in base 2 of numbers from 0 up to 2^62; exact, as no logarithm is taken."""
    n = torch.zeros_like(a)
    for step in (32, 16, 8, 4, 2, 1):
        large = a >> step > 0
        n, a = torch.where(large, n + step, n), torch.where(large, a >> step, a)
    return n + (a > 0)


def _held(product: Tensor, shift: Tensor, low: int, high: int) -> Tensor:
    """Rounded products within their limits; those shifted to the left are limited before, so that they fit."""
    limited = torch.where(shift < 0, product.clamp(min(low, -1), max(high, 1)), product)
    return _shifted(limited, shift).clamp(low, high).to(torch.int32)


def _rows(clause: str, q: Tensor) -> Tensor:
    codes = _integers(clause, "q", q)
    if not codes.dim() or not codes.shape[-1]:
        raise SpecError(clause, f"q needs at least one entry in its last axis, got shape {tuple(codes.shape)}")
    return codes


@operation
def table_softmax(
    q: Tensor,
    exp: IntegerTable[Tensor],
    reciprocal: IntegerTable[Tensor],
    /,
    *,
    out_bits: int = 7,
    tie: TableTie = "left",
) -> Tensor:
    """Softmax of integer logits over the last axis, in integers.  [L-16]"""
    codes = _rows("L-16", q)
    if codes.shape[-1] > 2**24:
        raise SpecError("L-16", f"at most 2^24 logits to a row, got {codes.shape[-1]}")
    if _largest(codes) > 2**24:
        raise SpecError("L-16", f"logits must lie in -2^24..2^24, got {int(codes.min())}..{int(codes.max())}")
    o = check_whole("L-16", "out_bits", out_bits, 0, 16)
    first, second = _integer_table("L-16", exp, codes), _integer_table("L-16", reciprocal, codes)
    check_tie(tie)
    _limit("L-16", *first[1:], 16 << exp.scale_bits)
    _limit("L-16", *second[1:], 4 << reciprocal.scale_bits)
    scale, base = exp.scale_bits + exp.fraction_bits, reciprocal.scale_bits + reciprocal.fraction_bits
    d = (codes - codes.amax(dim=-1, keepdim=True)).clamp(min=-16 << exp.scale_bits)
    e = _lines(d, *first, tie).clamp(min=0)
    total = e.sum(dim=-1, keepdim=True)
    k = torch.div(_digits(total) - scale, 3, rounding_mode="floor")
    z = _shifted(total, scale + 3 * k - reciprocal.scale_bits).clamp(max=4 << reciprocal.scale_bits)
    return _held(e * _lines(z, *second, tie), scale + base + 3 * k - o, 0, 2**o - 1)


@operation
def table_layer_norm(q: Tensor, rsqrt: IntegerTable[Tensor], /, *, out_bits: int = 5, tie: TableTie = "left") -> Tensor:
    """Layer norm of integer codes over the last axis, in integers, without gain and bias.  [L-17]"""
    codes = _rows("L-17", q)
    n = codes.shape[-1]
    if 4 * n**3 * _largest(codes) ** 2 >= 2**60:
        raise SpecError("L-17", f"the variance of {n} features of up to {_largest(codes)} would leave int64")
    o = check_whole("L-17", "out_bits", out_bits, 0, 16)
    p, k, b = _integer_table("L-17", rsqrt, codes)
    check_tie(tie)
    _limit("L-17", k, b, 4 << rsqrt.scale_bits)
    c, base = rsqrt.scale_bits, rsqrt.scale_bits + rsqrt.fraction_bits
    d = n * codes - codes.sum(dim=-1, keepdim=True)
    square = (d * d).sum(dim=-1, keepdim=True)
    whole = torch.div(square, n, rounding_mode="floor")
    ranges = torch.div(_digits(whole) + 1, 4, rounding_mode="floor")
    over = square << (c - 4 * ranges).clamp(min=0)
    under = torch.full_like(over, n) << (4 * ranges - c).clamp(min=0)
    z = torch.div(over, under, rounding_mode="floor")
    rest = 2 * (over - z * under)
    z = z + ((rest > under) | ((rest == under) & (z % 2 == 1))).to(torch.int64)
    normal = _held(d * _lines(z, p, k, b, tie), base + 2 * ranges - o, -128, 127)
    return normal.masked_fill(square == 0, 0)


# -- verification ------------------------------------------------------------------------------------------------------


@operation
def verify_table(
    table: IntegerTable[Tensor], values: Tensor, /, *, low: int = -128, tie: TableTie = "left"
) -> TableReport:
    """A table against exact values, at every code.  [L-18, L-19]"""
    v = _vector("L-18", "values", values)
    first = check_whole("L-18", "low", low, -_INT32, _INT32 - v.numel())
    codes = torch.arange(first, first + v.numel(), dtype=torch.int32, device=v.device)
    unit = 2.0 ** -(table.fraction_bits + table.scale_bits)
    y = evaluated(*check_evaluate(codes, table, tie)).to(torch.float64) * unit
    if not v.numel():
        return TableReport(0.0, 0.0, first, 0, 0)
    error = (y - v).abs()
    largest = error.max()
    worst = int((error == largest).nonzero()[0])  # argmax leaves open which of several it names
    turns = int((y.diff().sign() * v.diff().sign() < 0).sum())
    signs = int((y.sign() * v.sign() < 0).sum())
    return TableReport(float(error.square().mean()), float(largest), first + worst, turns, signs)
