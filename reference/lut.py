"""L: look-up tables. Non-linear functions as a few straight lines, evaluated in integers.

A table of n entries cuts the axis at n − 1 breakpoints and holds a slope and an intercept per piece. For an input
x = S q with S = 2⁻ᵇ the value K x + B is S (K q + B / S): slopes do not know the scale, intercepts shift by b bits and
breakpoints are scaled and rounded. With K and B in fixed point all of it is integer arithmetic, and exact.

Source: Dong et al. 2024, Genetic Quantization-Aware Approximation for Non-Linear Operations in Transformers
(GQA-LUT, arXiv 2403.19591), and the authors' code, which sends an input that equals a breakpoint to the right piece
while it searches and to the left piece when deployed; here both are named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import special

from . import checks
from .checks import F64, I32, Array
from .errors import SpecError
from .types import (
    TABLE_FUNCTIONS,
    TABLE_TIES,
    IntegerTable,
    Table,
    TableFunction,
    TableGradient,
    TableReport,
    TableTie,
)

__all__ = [
    "FUNCTIONS",
    "NamedFunction",
    "activation_entries",
    "chord_table",
    "evaluate_codes",
    "evaluate_ranges",
    "evaluate_table",
    "fit_chords",
    "fit_segments",
    "integer_table",
    "lookup_codes",
    "published_scale_bits",
    "requantize_codes",
    "round_table",
    "table_gradient",
    "table_layer_norm",
    "table_report",
    "table_softmax",
    "verify_table",
]

I64: TypeAlias = npt.NDArray[np.int64]

INT32 = 2**31 - 1
MOST_BITS = 24  # fraction bits and scale bits
FAR = 1e4  # sentinel of a function that goes on as a straight line


class NamedFunction(NamedTuple):
    """A function worth a table, and the published setting of its search."""

    value: Callable[[F64], F64]
    derivative: Callable[[F64], F64]
    domain: tuple[float, float]  # inputs that count
    knots: tuple[float, float]  # where breakpoints may lie
    ends: tuple[float, float]  # sentinels: outer ends of the first and the last chord
    scale_bits: tuple[int, ...]  # the b for which breakpoints are rounded
    published: bool  # whether all of this is the authors' setting


def hswish_derivative(x: F64) -> F64:
    """0 at −3 and 1 at +3, as published: the corner belongs to the outer piece."""
    return np.where(x <= -3, 0.0, np.where(x >= 3, 1.0, (2 * x + 3) / 6))


def silu(x: F64) -> F64:
    """x / (1 + e^−x), as the published search writes it: not the same bits as x times a sigmoid."""
    with np.errstate(over="ignore"):  # far below 0, where the quotient is −0
        return np.asarray(x / (1 + np.exp(-x)))


FUNCTIONS: Mapping[str, NamedFunction] = MappingProxyType(
    {
        "gelu": NamedFunction(
            lambda x: 0.5 * x * (1 + special.erf(x / np.sqrt(2.0))),
            lambda x: 0.5 * (1 + special.erf(x / np.sqrt(2.0))) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi),
            (-4, 4), (-4, 4), (-FAR, FAR), tuple(range(7)), True,
        ),
        "hswish": NamedFunction(
            lambda x: x * np.clip(x + 3, 0, 6) / 6,
            hswish_derivative,
            (-4, 4), (-4, 4), (-FAR, FAR), tuple(range(7)), True,
        ),
        "silu": NamedFunction(
            silu,
            lambda x: special.expit(x) * (1 + x * special.expit(-x)),
            (-4, 4), (-4, 4), (-FAR, FAR), tuple(range(7)), True,
        ),
        "exp": NamedFunction(np.exp, np.exp, (-8, 0), (-8, 0), (-16, 0), tuple(range(7)), True),
        "reciprocal": NamedFunction(
            lambda x: 1 / x, lambda x: -1 / (x * x), (0.5, 4), (0.625, 3.875), (0.5, 4), (5,), True
        ),
        "rsqrt": NamedFunction(
            lambda x: 1 / np.sqrt(x), lambda x: -0.5 / (x * np.sqrt(x)), (0.25, 4), (0.25, 3.875), (0.25, 4),
            tuple(range(6)), True,
        ),
        "sigmoid": NamedFunction(
            special.expit, lambda x: special.expit(x) * special.expit(-x), (-8, 8), (-8, 8), (-FAR, FAR),
            tuple(range(7)), False,
        ),
        "tanh": NamedFunction(
            np.tanh, lambda x: 1 - np.tanh(x) ** 2, (-4, 4), (-4, 4), (-FAR, FAR), tuple(range(7)), False
        ),
    }
)  # fmt: skip
"""Functions by name: exact value and derivative, and where the published search looks.

GELU is the one with erf, not that with tanh. The authors' search has no sigmoid and no tanh; their ranges are ours.
"""


# -- checks ------------------------------------------------------------------------------------------------------------


def ascending(a: Array, name: str, clause: str) -> None:
    """Refuse an array that descends anywhere."""
    if (np.diff(a) < 0).any():
        i = int(np.flatnonzero(np.diff(a) < 0)[0])
        raise SpecError(clause, f"{name} must ascend, got {a[i]} before {a[i + 1]} at {i}")


def table_arrays(table: Table[Array], clause: str) -> tuple[F64, F64, F64]:
    """Breakpoints, slopes and intercepts of a table that is one."""
    p = checks.finite(table.breakpoints, "table.breakpoints", clause, ndim=1)
    k = checks.finite(table.slopes, "table.slopes", clause, ndim=1)
    b = checks.finite(table.intercepts, "table.intercepts", clause, ndim=1)
    if not len(k) == len(b) == len(p) + 1:
        raise SpecError(clause, f"{len(p)} breakpoints need {len(p) + 1} slopes and intercepts, got {len(k)}, {len(b)}")
    ascending(p, "breakpoints", clause)
    return p, k, b


def integer_arrays(table: IntegerTable[Array], clause: str) -> tuple[I64, I64, I64]:
    """Breakpoints, slopes and intercepts of an integer table that is one."""
    p = checks.integers(table.breakpoints, "table.breakpoints", clause, ndim=1)
    k = checks.integers(table.slopes, "table.slopes", clause, ndim=1)
    b = checks.integers(table.intercepts, "table.intercepts", clause, ndim=1)
    if not len(k) == len(b) == len(p) + 1:
        raise SpecError(clause, f"{len(p)} breakpoints need {len(p) + 1} slopes and intercepts, got {len(k)}, {len(b)}")
    ascending(p, "breakpoints", clause)
    checks.whole(table.scale_bits, "scale_bits", clause, low=0, high=MOST_BITS)
    checks.whole(table.fraction_bits, "fraction_bits", clause, low=0, high=MOST_BITS)
    return p, k, b


# -- tables from breakpoints -------------------------------------------------------------------------------------------


def fit_chords(knots: npt.ArrayLike, values: npt.ArrayLike, /) -> Table[Array]:
    """Table of the chords between the points (knot, value).  [L-1, L-2]

        k_i = (v_{i+1} − v_i) / (a_{i+1} − a_i),   b_i = v_i − a_i k_i                                   (L.1)

    and k_i = b_i = 0 for a dead piece, a_{i+1} = a_i.                                                  [L-2]

    Shapes: knots and values (n + 1,), n ≥ 1 → breakpoints (n − 1,), slopes and intercepts (n,). The inner knots are
    the breakpoints and ascend. The outermost two are ends of chords only: the outer pieces go on beyond them, and one
    may lie on the other side of its neighbour, as a line does not know the order of two points. Far sentinels (±10⁴
    for GELU) make the outer chords the asymptotes once they are rounded.
    Source: Dong et al. 2024, code: gqa_lut_trainer.py, calculate_coeff_bias.

    >>> fit_chords([0.0, 1.0, 1.0, 3.0], [0.0, 2.0, 2.0, 0.0])
    Table(breakpoints=array([1., 1.]), slopes=array([ 2.,  0., -1.]), intercepts=array([0., 0., 3.]), saturated=0)
    """
    a = checks.finite(knots, "knots", "L-1", ndim=1)
    v = checks.finite(values, "values", "L-1", ndim=1)
    if len(a) < 2 or len(a) != len(v):
        raise SpecError("L-1", f"a table needs 2 knots or more and as many values, got {len(a)} and {len(v)}")
    ascending(a[1:-1], "inner knots", "L-1")
    width = np.diff(a)
    dead = width == 0
    k = np.where(dead, 0.0, np.diff(v) / np.where(dead, 1.0, width))
    b = np.where(dead, 0.0, v[:-1] - a[:-1] * k)  # (L.1)
    return Table(a[1:-1], k, b)


def fit_segments(
    x: npt.ArrayLike, y: npt.ArrayLike, breakpoints: npt.ArrayLike, /, *, tie: TableTie = "right"
) -> Table[Array]:
    """Table of the least-squares lines through the samples of every piece.  [L-3]

        k_i = Σ (x − x̄)(y − ȳ) / Σ (x − x̄)²,   b_i = ȳ − k_i x̄   over the samples of piece i              (L.2)

    A piece whose samples all lie at one x gets the level ȳ, a piece without samples 0 and 0.

    Shapes: x, y (N,), breakpoints (n − 1,) ascending → Table of n pieces. The pieces do not meet at the breakpoints;
    in exchange the squared error at the samples is the least that straight lines can reach.

    >>> fit_segments([0.0, 1.0, 2.0, 3.0], [0.0, 2.0, 5.0, 5.0], [1.5])
    Table(breakpoints=array([1.5]), slopes=array([2., 0.]), intercepts=array([0., 5.]), saturated=0)
    """
    xs = checks.finite(x, "x", "L-3", ndim=1)
    ys = checks.finite(y, "y", "L-3", ndim=1)
    if len(xs) != len(ys):
        raise SpecError("L-3", f"x and y must have one length, got {len(xs)} and {len(ys)}")
    p = checks.finite(breakpoints, "breakpoints", "L-3", ndim=1)
    ascending(p, "breakpoints", "L-3")
    checks.choice(tie, TABLE_TIES, "tie", "L-3")
    piece = np.searchsorted(p, xs, side=tie)
    k, b = np.zeros(len(p) + 1), np.zeros(len(p) + 1)
    for i in np.unique(piece):
        xi, yi = xs[piece == i], ys[piece == i]
        dx = xi - xi.mean()
        spread = float(dx @ dx) if np.ptp(xi) else 0.0
        k[i] = dx @ (yi - yi.mean()) / spread if spread else 0.0
        b[i] = yi.mean() - k[i] * xi.mean()  # (L.2)
    return Table(p, k, b)


def round_table(table: Table[Array], /, *, fraction_bits: int = 6, bits: int | None = None) -> Table[Array]:
    """Slopes and intercepts in fixed point.  [L-4, L-5]

        K = round(2^f k) / 2^f,   B = round(2^f b) / 2^f                                                 (L.3)

    half to even, each on its own: b comes from the slope before it was rounded. With ``bits`` w, 2^f K and 2^f B are
    clipped to −2^(w−1) … 2^(w−1) − 1 and ``saturated`` counts those that changed; without, nothing is clipped, as in
    the authors' code, where slopes of 1/x reach −3.3 and do not fit the 8 bits that the paper stores.      [L-5]

    Shapes: a Table of n pieces → the same shapes; breakpoints as they are. 0 ≤ f ≤ 24, 2 ≤ w ≤ 32.

    >>> round_table(Table(np.array([]), np.array([-3.27]), np.array([0.0078125])), bits=8)
    Table(breakpoints=array([], dtype=float64), slopes=array([-2.]), intercepts=array([0.]), saturated=1)
    """
    p, k, b = table_arrays(table, "L-4")
    f = checks.whole(fraction_bits, "fraction_bits", "L-4", low=0, high=MOST_BITS)
    codes = np.rint(np.stack([k, b]) * 2.0**f)
    if bits is not None:
        w = checks.whole(bits, "bits", "L-5", low=2, high=32)
        held = np.clip(codes, -(2 ** (w - 1)), 2 ** (w - 1) - 1)
    else:
        held = codes
    K, B = held / 2.0**f  # (L.3)
    return Table(p, K, B, int((held != codes).sum()))


def chord_table(function: str, breakpoints: npt.ArrayLike, /, *, fraction_bits: int = 6) -> Table[Array]:
    """The published table of a function for given inner breakpoints: chords to the sentinels, rounded, not clipped.

    Breakpoints in any order; the table has them ascending, as the search sorts every genome.

    >>> chord_table("hswish", [3.0, -3.0]).slopes.tolist()
    [0.0, 0.5, 1.0]
    """
    checks.choice(function, tuple(FUNCTIONS), "function", "L-1")
    f = FUNCTIONS[function]
    p = np.sort(checks.finite(breakpoints, "breakpoints", "L-1", ndim=1))
    knots = np.concatenate([[f.ends[0]], p, [f.ends[1]]])
    return round_table(fit_chords(knots, f.value(knots)), fraction_bits=fraction_bits)


def integer_table(table: Table[Array], /, *, scale_bits: int, fraction_bits: int = 6) -> IntegerTable[Array]:
    """The table for codes q of scale S = 2⁻ᵇ.  [L-6]

        p̃ = round(2^b p),   K̃ = 2^f K,   B̃ = 2^(f+b) B                                                  (L.4)

    Shapes: a Table of n pieces → int32 (n − 1,), (n,), (n,). Only the breakpoints are rounded, half to even: slopes and
    intercepts must be multiples of 2^−f already, and everything must fit int32.
    Coefficients stay those of the unrounded breakpoints, as published; to fit them anew to p̃ would be better.

    >>> integer_table(Table(np.array([-0.625, 2.5]), np.array([0.0, 0.5, 1.0]), np.array([0.0, 0.25, -1.0])),
    ...     scale_bits=2)
    IntegerTable(breakpoints=array([-2, 10], dtype=int32), slopes=array([ 0, 32, 64], dtype=int32), \
intercepts=array([   0,   64, -256], dtype=int32), scale_bits=2, fraction_bits=6)
    """
    p, k, b = table_arrays(table, "L-6")
    c = checks.whole(scale_bits, "scale_bits", "L-6", low=0, high=MOST_BITS)
    f = checks.whole(fraction_bits, "fraction_bits", "L-6", low=0, high=MOST_BITS)
    for name, value in (("slopes", k), ("intercepts", b)):
        if (value * 2.0**f != np.rint(value * 2.0**f)).any():
            i = int(np.flatnonzero(value * 2.0**f != np.rint(value * 2.0**f))[0])
            raise SpecError("L-6", f"{name} must be multiples of 2^-{f}, got {value[i]} at {i}: round_table first")
    parts = np.rint(p * 2.0**c), k * 2.0**f, b * 2.0 ** (f + c)  # (L.4)
    for name, part in zip(("breakpoints", "slopes", "intercepts"), parts, strict=True):
        if (np.abs(part) > INT32).any():
            raise SpecError("L-6", f"{name} leave int32 at scale_bits {c} and fraction_bits {f}")
    codes = [part.astype(np.int32) for part in parts]
    return IntegerTable(codes[0], codes[1], codes[2], c, f)


# -- evaluation --------------------------------------------------------------------------------------------------------


def evaluate_table(x: npt.ArrayLike, table: Table[Array], /, *, tie: TableTie = "left") -> F64:
    """Value of the table.  [L-7, L-8]

        y = K_i x + B_i,   i = #{ j : p_j < x }  (left)   or   #{ j : p_j ≤ x }  (right)                 (L.5)

    Shapes: x any → float of x's shape. An x that equals a breakpoint belongs to the piece on its left, as in the
    authors' deployed operator, or on its right, as in their search. Comparisons are exact: x and p are not rounded to
    a common precision before.                                                                          [L-8]

    >>> table = Table(np.array([1.0]), np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    >>> evaluate_table([1.0], table).tolist(), evaluate_table([1.0], table, tie="right").tolist()
    ([0.0], [2.0])
    """
    p, k, b = table_arrays(table, "L-7")
    a = checks.finite(x, "x", "L-7")
    checks.choice(tie, TABLE_TIES, "tie", "L-8")
    i = np.searchsorted(p, a, side=tie)
    return np.asarray(k[i] * a + b[i])  # (L.5)


def evaluate_codes(q: npt.ArrayLike, table: IntegerTable[Array], /, *, tie: TableTie = "left") -> I32:
    """Value of the table for integer codes, in integers.  [L-9, L-10]

        a = K̃_i q + B̃_i,   i as in (L.5) with p̃;   y = 2^−(f+b) a                                        (L.6)

    which is (L.5) at x = 2⁻ᵇ q and breakpoints 2⁻ᵇ p̃ to the last bit.                                   [L-10]

    Shapes: q integers of any shape → int32. Refused when max|K̃| max|q| + max|B̃| leaves int32.
    Hardware: comparators, a selection, one multiplication of 8 by 8 bits, one addition.

    >>> table = IntegerTable(np.array([2]), np.array([0, 64]), np.array([0, -128]), 1, 6)
    >>> evaluate_codes([1, 2, 3], table).tolist(), evaluate_codes([2], table, tie="right").tolist()
    ([0, 0, 64], [0])
    """
    a = checks.integers(q, "q", "L-9")
    return line_values(a, table, tie, int(np.abs(a).max(initial=0)), "L-9").astype(np.int32)


def line_values(q: I64, table: IntegerTable[Array], tie: TableTie, largest: int, clause: str) -> I64:
    """(L.6) for checked codes of magnitude up to ``largest``."""
    p, k, b = integer_arrays(table, clause)
    checks.choice(tie, TABLE_TIES, "tie", "L-8")
    if int(np.abs(k).max()) * largest + int(np.abs(b).max()) > INT32:
        raise SpecError(clause, f"codes up to {largest} take the table's values out of int32")
    i = np.searchsorted(p, q, side=tie)
    return np.asarray(k[i] * q + b[i])  # (L.6)


def shift_round(a: I64, shift: I64 | int) -> I64:
    """a · 2^−shift for |a| < 2^62, half to even, in integers; shift may be negative, and an array."""
    right, left = np.clip(shift, 0, 63), np.maximum(np.negative(shift), 0)
    quotient = a >> right
    rest, half = a - (quotient << right), np.int64(1) << np.maximum(right - 1, 0)
    up = (rest > half) | ((rest == half) & (quotient & 1 == 1))
    return np.asarray(np.where(right > 0, quotient + up, a << left))


def requantize_codes(a: npt.ArrayLike, /, *, shift: int, low: int = -128, high: int = 127) -> I32:
    """Accumulators brought to an output scale that is 2^shift times theirs.  [L-12]

        y = clip(round(a / 2^shift), low, high)                                                          (L.7)

    half to even, in integers: a hardware shifter that only adds half before it drops bits rounds ties up.

    Shapes: a integers in int32 of any shape → int32. 0 ≤ shift ≤ 31.

    >>> requantize_codes([2, 6, -2, -6, 600], shift=2).tolist()
    [0, 2, 0, -2, 127]
    """
    s = checks.whole(shift, "shift", "L-12", low=0, high=31)
    low = checks.whole(low, "low", "L-12", low=-INT32 - 1, high=INT32)
    high = checks.whole(high, "high", "L-12", low=low, high=INT32)
    given = checks.integers(a, "a", "L-12")
    if given.size and int(np.abs(given).max()) > INT32:
        raise SpecError("L-12", f"accumulators must fit int32, got {given.flat[int(np.abs(given).argmax())]}")
    return np.clip(shift_round(given, s), low, high).astype(np.int32)  # (L.7)


def lookup_codes(q: npt.ArrayLike, entries: npt.ArrayLike, /, *, low: int = -128) -> Array:
    """One entry for every code.  [L-11]

        y = entries[q − low]                                                                             (L.8)

    Shapes: q integers of any shape in low … low + N − 1, entries (N,) → q's shape, integers of the entries' type or
    floats. With the
    256 values of :func:`evaluate_codes` or :func:`requantize_codes` this is the table for INT8 at one load per code.

    >>> lookup_codes([[-1, 1]], [10, 20, 30], low=-1).tolist()
    [[10, 30]]
    """
    at = checks.integers(q, "q", "L-11")
    e = np.asarray(entries)
    if e.dtype.kind not in "iu":
        e = checks.finite(e, "entries", "L-11")
    if e.ndim != 1:
        raise SpecError("L-11", f"entries must have 1 dimension, got shape {e.shape}")
    low = checks.whole(low, "low", "L-11", low=-INT32 - 1, high=INT32)
    if at.size and (int(at.min()) < low or int(at.max()) >= low + len(e)):
        raise SpecError("L-11", f"codes must lie in {low}..{low + len(e) - 1}, got {at.min()}..{at.max()}")
    return np.asarray(e[at - low])  # (L.8)


def activation_entries(
    table: IntegerTable[Array], /, *, out_bits: int, low: int = -128, high: int = 127, tie: TableTie = "left"
) -> I32:
    """The INT8 → INT8 function as 256 entries: every code evaluated and brought to the output scale 2^−out_bits.

    >>> hswish = integer_table(chord_table("hswish", [-3, -2, -1, 0, 1, 2, 3]), scale_bits=4)
    >>> activation_entries(hswish, out_bits=4)[[0, 80, 128, 144, 255]].tolist()
    [0, 0, 0, 11, 127]
    """
    shift = table.fraction_bits + table.scale_bits - checks.whole(out_bits, "out_bits", "L-12", low=0, high=MOST_BITS)
    values = evaluate_codes(np.arange(-128, 128), table, tie=tie)
    return requantize_codes(values, shift=checks.whole(shift, "shift", "L-12", low=0, high=31), low=low, high=high)


def table_gradient(
    grad: npt.ArrayLike, q: npt.ArrayLike, /, *, scale: float, function: TableFunction
) -> TableGradient[Array]:
    """Gradients through a deployed table, straight through to the function.  [L-13]

        ∂/∂q = g · S f′(S q),   ∂/∂S = Σ g · q f′(S q)                                                   (L.9)

    Forward is the table, backward the exact derivative, not the slope of a piece; the table itself gets no gradient.
    hswish′ is 0 at −3 and 1 at +3.

    Shapes: grad and q of one shape, q integers; S > 0 → grad's shape and a 0-d number. Codes of 1/x and 1/√x are > 0.
    Source: Dong et al. 2024, code: gqa_lut_op.py. Its forward pass is f + (table − f), which in float32 loses the
    table where f is large and is NaN where f overflows; the value of :func:`evaluate_codes` is meant.

    >>> table_gradient([1.0, 1.0], [-6, 6], scale=0.5, function="hswish").codes.tolist()
    [0.0, 0.5]
    """
    g = checks.finite(grad, "grad", "L-13")
    a = checks.integers(q, "q", "L-13")
    if g.shape != a.shape:
        raise SpecError("L-13", f"grad {g.shape} and q {a.shape} must have one shape")
    S = checks.number(scale, "scale", "L-13", low=0, above=True)
    checks.choice(function, TABLE_FUNCTIONS, "function", "L-13")
    if function in ("reciprocal", "rsqrt") and (a <= 0).any():
        raise SpecError("L-13", f"codes of {function} must be above 0, got {a.min()}")
    slope = FUNCTIONS[function].derivative(np.asarray(S * a, np.float64))
    return TableGradient(g * (S * slope), np.asarray(np.sum(g * (a * slope))))  # (L.9)


# -- multiple ranges ---------------------------------------------------------------------------------------------------


def evaluate_ranges(
    x: npt.ArrayLike, table: Table[Array], /, *, function: TableFunction, tie: TableTie = "left"
) -> F64:
    """1/x or 1/√x for every x > 0 from a table of one base interval.  [L-14, L-15]

        1/x   = 2^−3k t(2^−3k x),   2^−3k x in [0.5, 4)                                                  (L.10)
        1/√x  = 2^−2k t(2^−4k x),   2^−4k x in [0.25, 4)                                                 (L.11)

    with k of either sign. Powers of two are exact, so the relative error is that of the base interval for every k; an
    odd exponent would need a factor √2.                                                                [L-15]

    Shapes: x any, all > 0 → float of x's shape. The published method starts at the base interval and goes up only; how
    many ranges it keeps is not known to us.
    Source: Dong et al. 2024, multi-range input scaling; no code was published, this follows from its ranges.

    >>> table = chord_table("rsqrt", [0.5, 1.0, 2.0])
    >>> (evaluate_ranges([16.0, 64.0], table, function="rsqrt") / evaluate_table([1.0, 0.25], table)).tolist()
    [0.25, 0.0625]
    """
    checks.choice(function, ("reciprocal", "rsqrt"), "function", "L-14")
    a = checks.finite(x, "x", "L-14")
    if (a <= 0).any():
        at = tuple(int(i) for i in np.argwhere(a <= 0)[0])
        raise SpecError("L-14", f"x must be above 0, got {a[at]} at {at}")
    step, back = (3, 3) if function == "reciprocal" else (4, 2)
    k = -((2 - np.frexp(a)[1]) // step)  # the least with 2^(−step k) x < 4
    value = evaluate_table(np.ldexp(a, -step * k), table, tie=tie)
    return np.asarray(np.ldexp(value, -back * k))  # (L.10, L.11)


# -- compositions ------------------------------------------------------------------------------------------------------


def bit_length(a: I64) -> I64:
    """Digits of a ≥ 0 in base 2."""
    return np.asarray(np.sum(a[..., None] >> np.arange(62) > 0, axis=-1), np.int64)


def scaled_product(a: I64, b: I64, shift: I64, low: int, high: int) -> I32:
    """clip(round(a b 2^−shift), low, high) without leaving int64 where the shift goes left."""
    product = a * b
    held = np.where(shift < 0, np.clip(product, min(low, -1), max(high, 1)), product)  # beyond is clipped anyway
    return np.clip(shift_round(held, np.broadcast_to(shift, held.shape)), low, high).astype(np.int32)


def table_softmax(
    q: npt.ArrayLike,
    exp: IntegerTable[Array],
    reciprocal: IntegerTable[Array],
    /,
    *,
    out_bits: int = 7,
    tie: TableTie = "left",
) -> I32:
    """Softmax of integer logits over the last axis, in integers.  [L-16]

        d = max(q − max q, −16 · 2^b),   e = max(exp table(d), 0),   E = Σ e                             (L.12)
        k = least integer with E 2^−(f+b) 2^−3k < 4,   z = round(E 2^(c − f − b − 3k))                    (L.13)
        y = clip(round(e · r · 2^(o − (f+b) − (g+c) − 3k)), 0, 2^o − 1),   r = reciprocal table(z)        (L.14)

    where the exp table has scale 2^−b and f fraction bits, the reciprocal table 2^−c and g, and y the scale 2^−o.
    Roundings are half to even. Logits have the scale of the exp table; only their differences matter.

    Shapes: q integers (..., n), n ≥ 1, −2^24 … 2^24 → int32 (..., n); 0 ≤ o ≤ 16, n ≤ 2^24.
    The clip of d stands because below −16 the last chord of exp keeps its slope. A row of e = 0 gives zeros, which no
    sensible table produces. The 1 − 2^−o at the top is the price of o bits without a sign.
    Source: Dong et al. 2024: maximum, exp table, sum, division table, product; the widths are ours.

    >>> exp = integer_table(chord_table("exp", [-6, -4, -3, -2, -1.5, -1, -0.5]), scale_bits=4)
    >>> div = integer_table(chord_table("reciprocal", [0.625, 0.75, 1, 1.25, 1.5, 2, 3]), scale_bits=5)
    >>> table_softmax([0, 16, 32], exp, div).tolist()
    [13, 31, 86]
    """
    a = checks.integers(q, "q", "L-16")
    if a.ndim == 0 or a.shape[-1] == 0 or a.shape[-1] > 2**24:
        raise SpecError("L-16", f"q must have 1 to 2^24 logits in its last axis, got shape {a.shape}")
    if a.size and int(np.abs(a).max()) > 2**24:
        raise SpecError("L-16", f"logits must lie in -2^24..2^24, got {a.min()}..{a.max()}")
    o = checks.whole(out_bits, "out_bits", "L-16", low=0, high=16)
    integer_arrays(exp, "L-16")
    integer_arrays(reciprocal, "L-16")
    scale, base = exp.fraction_bits + exp.scale_bits, reciprocal.fraction_bits + reciprocal.scale_bits
    floor = -16 * 2**exp.scale_bits
    d = np.maximum(a - a.max(axis=-1, keepdims=True), floor)
    e = np.maximum(line_values(d, exp, tie, -floor, "L-16"), 0)
    E = e.sum(axis=-1, keepdims=True)  # (L.12)
    k = -((2 + scale - bit_length(E)) // 3)
    z = shift_round(E, scale + 3 * k - reciprocal.scale_bits)  # (L.13)
    z = np.minimum(z, 4 * 2**reciprocal.scale_bits)
    r = line_values(z, reciprocal, tie, 4 * 2**reciprocal.scale_bits, "L-16")
    return scaled_product(e, r, scale + base + 3 * k - o, 0, 2**o - 1)  # (L.14)


def table_layer_norm(
    q: npt.ArrayLike, rsqrt: IntegerTable[Array], /, *, out_bits: int = 5, tie: TableTie = "left"
) -> I32:
    """Layer norm of integer codes over the last axis, in integers, without gain and bias.  [L-17]

        d = n q − Σ q,   V = Σ d²,   d / √(V / n) = (q − mean) / std                                     (L.15)
        k = least integer with V/n 2^−4k < 4,   z = round(V/n 2^(c − 4k))                                (L.16)
        y = clip(round(d · r · 2^(o − (g+c) − 2k)), −128, 127),   r = rsqrt table(z)                     (L.17)

    where the table has scale 2^−c and g fraction bits, and y the scale 2^−o. Nothing is rounded before the table: the
    mean is not brought to a code first, as I-BERT does. Roundings are half to even. A constant row gives zeros, and
    there is no epsilon: V/n ≥ n − 1 otherwise. The scale of q drops out.

    Shapes: q integers (..., n), n ≥ 1, 4 n³ max|q|² < 2^60 → int32 (..., n); 0 ≤ o ≤ 16.
    Source: Dong et al. 2024: variance, table of 1/√x, product; the widths are ours.

    >>> table = integer_table(chord_table("rsqrt", [0.375, 0.5, 0.75, 1, 1.5, 2, 3]), scale_bits=5)
    >>> table_layer_norm([[0, 10, 20, 30], [7, 7, 7, 7]], table).tolist()
    [[-43, -14, 14, 43], [0, 0, 0, 0]]
    """
    a = checks.integers(q, "q", "L-17")
    if a.ndim == 0 or a.shape[-1] == 0:
        raise SpecError("L-17", f"q must have 1 feature or more in its last axis, got shape {a.shape}")
    n = a.shape[-1]
    if 4 * n**3 * int(np.abs(a).max(initial=0)) ** 2 >= 2**60:
        raise SpecError("L-17", f"{n} features of up to {np.abs(a).max()} take the variance out of int64")
    o = checks.whole(out_bits, "out_bits", "L-17", low=0, high=16)
    integer_arrays(rsqrt, "L-17")
    c, base = rsqrt.scale_bits, rsqrt.fraction_bits + rsqrt.scale_bits
    d = n * a - a.sum(axis=-1, keepdims=True)
    V = np.sum(d * d, axis=-1, keepdims=True)  # (L.15)
    k = np.maximum(-((2 - bit_length(V // n)) // 4), 0)
    over, under = V << np.maximum(c - 4 * k, 0), n << np.maximum(4 * k - c, 0)
    z, rest = over // under, over % under
    z = z + ((2 * rest > under) | ((2 * rest == under) & (z % 2 == 1)))  # (L.16)
    r = line_values(z, rsqrt, tie, 4 * 2**c, "L-17")
    return np.where(V == 0, 0, scaled_product(d, r, base + 2 * k - o, -128, 127)).astype(np.int32)  # (L.17)


# -- exhaustive verification -------------------------------------------------------------------------------------------


def verify_table(
    table: IntegerTable[Array], values: npt.ArrayLike, /, *, low: int = -128, tie: TableTie = "left"
) -> TableReport:
    """A table against exact values, at every code.  [L-18, L-19]

        y_q = 2^−(f+b) a_q,   mse = mean (y_q − v_q)²,   max error = max |y_q − v_q|                     (L.18)
        turns = #{ (y_{q+1} − y_q)(v_{q+1} − v_q) < 0 },   signs = #{ y_q v_q < 0 }                      (L.19)

    Shapes: values (N,), v at the codes low … low + N − 1 → TableReport. N = 0 gives zeros and the code ``low``.
    What is counted is a contradiction: a table that stays level where the function moves, or is 0 where it is not,
    has neither turned nor changed its sign.                                                            [L-19]

    >>> step = IntegerTable(np.array([0]), np.array([0, 0]), np.array([0, 64]), 0, 6)
    >>> verify_table(step, [-1.0, 0.25, 1.0, 0.5], low=-1)
    TableReport(mse=0.328125, max_error=1.0, worst=-1, turns=0, signs=0)
    """
    v = checks.finite(values, "values", "L-18", ndim=1)
    low = checks.whole(low, "low", "L-18", low=-INT32, high=INT32 - len(v))
    codes = np.arange(low, low + len(v))
    y = evaluate_codes(codes, table, tie=tie) * 2.0 ** -(table.fraction_bits + table.scale_bits)
    if not len(v):
        return TableReport(0.0, 0.0, low, 0, 0)
    error = np.abs(y - v)
    worst = int(error.argmax())
    turns = int((np.sign(np.diff(y)) * np.sign(np.diff(v)) < 0).sum())
    signs = int((np.sign(y) * np.sign(v) < 0).sum())
    return TableReport(float(np.mean(error * error)), float(error[worst]), low + worst, turns, signs)


def table_report(
    function: TableFunction, table: Table[Array], /, *, fraction_bits: int = 6, tie: TableTie = "left"
) -> dict[int, TableReport]:
    """Exhaustive verification at every scale of a function: all INT8 codes whose input lies in the closed domain.

    >>> report = table_report("reciprocal", chord_table("reciprocal", [0.625, 0.75, 1, 1.25, 1.5, 2, 3]))
    >>> {b: round(r.max_error, 4) for b, r in report.items()}
    {5: 0.0262}
    """
    checks.choice(function, TABLE_FUNCTIONS, "function", "L-18")
    f = FUNCTIONS[function]
    found = {}
    for b in f.scale_bits:
        low, high = (max(-128, int(np.ceil(f.domain[0] * 2**b))), min(127, int(np.floor(f.domain[1] * 2**b))))
        values = f.value(np.asarray(np.arange(low, high + 1) * 2.0**-b, np.float64))
        deployed = integer_table(table, scale_bits=b, fraction_bits=fraction_bits)
        found[b] = verify_table(deployed, values, low=low, tie=tie)
    return found


def published_scale_bits(scale: float) -> int:
    """The b whose breakpoints the authors' operator takes for any scale: −log₂ S truncated towards 0, in 0 … 6.

    A scale that is no power of two silently gets a neighbour's breakpoints; lowbit deploys powers of two only.

    >>> [published_scale_bits(s) for s in (4.0, 0.3, 0.25, 2.0**-9)]
    [0, 1, 2, 6]
    """
    S = checks.number(scale, "scale", "L-6", low=0, above=True)
    return min(max(-int(np.log2(S)), 0), 6)
