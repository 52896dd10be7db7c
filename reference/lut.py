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
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

from . import checks
from .checks import F64, I32, Array
from .errors import SpecError
from .types import TABLE_TIES, IntegerTable, Table, TableTie

__all__ = [
    "FUNCTIONS",
    "NamedFunction",
    "chord_table",
    "evaluate_codes",
    "evaluate_table",
    "fit_chords",
    "fit_segments",
    "integer_table",
    "round_table",
]

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
            lambda x: x * special.expit(x),
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
    p = checks.finite(table.breakpoints, "breakpoints", clause, ndim=1)
    k = checks.finite(table.slopes, "slopes", clause, ndim=1)
    b = checks.finite(table.intercepts, "intercepts", clause, ndim=1)
    if not len(k) == len(b) == len(p) + 1:
        raise SpecError(clause, f"{len(p)} breakpoints need {len(p) + 1} slopes and intercepts, got {len(k)}, {len(b)}")
    ascending(p, "breakpoints", clause)
    return p, k, b


def integer_arrays(
    table: IntegerTable[Array], clause: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Breakpoints, slopes and intercepts of an integer table that is one."""
    p = checks.integers(table.breakpoints, "breakpoints", clause, ndim=1)
    k = checks.integers(table.slopes, "slopes", clause, ndim=1)
    b = checks.integers(table.intercepts, "intercepts", clause, ndim=1)
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
    p, k, b = integer_arrays(table, "L-9")
    a = checks.integers(q, "q", "L-9")
    checks.choice(tie, TABLE_TIES, "tie", "L-8")
    if a.size and int(np.abs(k).max()) * int(np.abs(a).max()) + int(np.abs(b).max()) > INT32:
        raise SpecError("L-9", f"codes up to {np.abs(a).max()} take the table's values out of int32")
    i = np.searchsorted(p, a, side=tie)
    return np.asarray(k[i] * a + b[i]).astype(np.int32)  # (L.6)
