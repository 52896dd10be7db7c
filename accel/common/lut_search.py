"""Searches of look-up tables, shared by the fast backends: published settings, problems, and argument checks.

Problems are a few hundred numbers and are made in NumPy once; what takes time is each backend's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import erf

from lowbit.reference.errors import SpecError
from lowbit.reference.tables import TABLE_SEARCH
from lowbit.reference.types import SEARCH_DRAWS, SEARCH_FITS, SEARCH_OBJECTIVES

from .refusals import check_choice, check_whole

__all__ = [
    "FUNCTIONS",
    "Plan",
    "Problem",
    "check_ascending",
    "check_cuts",
    "check_entries",
    "check_function",
    "check_knots",
    "check_objective",
    "check_plan",
    "check_potentials",
    "grid",
    "problem",
    "samples",
    "sentinels",
    "values",
]

Array = npt.NDArray[Any]

FUNCTIONS = tuple(TABLE_SEARCH)

_VALUES: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: 0.5 * x * (1.0 + erf(x / math.sqrt(2.0))),
    "hswish": lambda x: x * np.minimum(np.maximum(x + 3.0, 0.0), 6.0) / 6.0,
    "silu": lambda x: x / (1.0 + np.exp(-x)),
    "exp": np.exp,
    "reciprocal": np.reciprocal,
    "rsqrt": lambda x: np.reciprocal(np.sqrt(x)),
    "sigmoid": lambda x: 1.0 / (1.0 + np.exp(-x)),
    "tanh": np.tanh,
}


class Plan(NamedTuple):
    """What a genetic search needs to know before it starts."""

    span: tuple[float, float]
    ends: tuple[float, float]
    grids: tuple[int, ...]
    rounds: bool
    genes: int


class Problem(NamedTuple):
    """Fields of a SearchProblem as NumPy arrays."""

    knots: Array
    values: Array
    x: Array
    y: Array
    cuts: Array


def check_function(clause: str, function: str) -> None:
    """Refuse a function without a setting."""
    check_choice(clause, "function", function, FUNCTIONS)


def values(function: str, x: Array) -> Array:
    """The function at float64 points; far sentinels may overflow an exponential on the way to a limit."""
    with np.errstate(over="ignore"):
        return np.asarray(_VALUES[function](x))


def samples(function: str) -> tuple[Array, Array]:
    """Inputs of the published fitness, and the function there."""
    low, high = TABLE_SEARCH[function][0]
    x = np.arange(low, high, 0.01)
    return x, values(function, x)


def sentinels(function: str) -> tuple[float, float]:
    """First and last knot of every table of the function: two float64, far outside its span where that has no end."""
    return TABLE_SEARCH[function][2]


def check_plan(
    function: str, entries: int, seed: int, draws: str, rounding: bool | None, generations: int, population: int
) -> Plan:
    """Checked options of a genetic search, published ones filled in.  [L-21]"""
    check_function("L-21", function)
    check_whole("L-21", "entries", entries, 3, 256)
    check_choice("L-21", "draws", draws, SEARCH_DRAWS)
    check_whole("L-21", "seed", seed, 0, 2**32 - 1 if draws == "published" else 2**64 - 1)
    if rounding is not None and not isinstance(rounding, bool):
        raise SpecError("L-21", f"rounding must be None, False or True, got {rounding!r}")
    check_whole("L-21", "generations", generations, 0)
    check_whole("L-21", "population", population, 2)
    _, span, ends, bits, published, skipped = TABLE_SEARCH[function]
    if function == "exp" and entries == 16:
        span = (-6.5, 0.0)
    rounds = published if rounding is None else rounding
    grids = tuple(range(bits[0] + skipped.get(entries, 0), bits[1] + 1)) if rounds else (0,)
    return Plan(span, ends, grids, rounds, entries - 1)


def grid(function: str, fraction_bits: int) -> Array:
    """Knots between the sentinels.  [L-23]"""
    check_function("L-23", function)
    unit = 2.0 ** -check_whole("L-23", "fraction_bits", fraction_bits, 0, 12)
    _, (low, high), (left, right), _, _, _ = TABLE_SEARCH[function]
    codes = np.arange(math.ceil(low / unit), math.floor(high / unit) + 1)
    return np.array([left, *(codes * unit), right])


def check_ascending(clause: str, name: str, a: Array) -> None:
    """Refuse an array that descends anywhere."""
    falls = np.flatnonzero(a[1:] < a[:-1])
    if falls.size:
        i = int(falls[0])
        raise SpecError(clause, f"{name} must ascend, got {a[i]} before {a[i + 1]} at {i}")


def check_knots(clause: str, knots: Array) -> None:
    """Two sentinels, and inner knots that ascend."""
    if knots.ndim != 1 or len(knots) < 2:
        raise SpecError(clause, f"knots must be two numbers or more, got shape {knots.shape}")
    check_ascending(clause, "inner knots", knots[1:-1])


def problem(knots: Array, function: str, scale_bits: Sequence[int] | None) -> Problem:
    """Samples and cuts for checked finite knots, float64.  [L-24]"""
    check_function("L-24", function)
    check_knots("L-24", knots)
    low, high = TABLE_SEARCH[function][0]
    xs, cuts, start = [], [], 0
    if scale_bits is not None and not len(scale_bits):
        raise SpecError("L-24", "scale_bits holds no scale")
    for bit in [None] if scale_bits is None else scale_bits:
        if bit is None:
            x = samples(function)[0]
            at = np.searchsorted(x, knots, side="left")
        else:
            unit = 2.0 ** -check_whole("L-24", "scale_bits", bit, 0, 12)
            codes = np.arange(-128, 128)
            codes = codes[(codes * unit >= low) & (codes * unit <= high)]
            if not codes.size:
                raise SpecError("L-24", f"no code of scale bit {bit} lies in {(low, high)}")
            x = codes * unit
            at = np.searchsorted(codes, np.rint(knots / unit), side="right")
        at[0], at[-1] = 0, x.size
        xs.append(x)
        cuts.append(at + start)
        start += x.size
    x = np.concatenate(xs)
    return Problem(knots.copy(), values(function, knots), x, values(function, x), np.array(cuts, np.int32))


def check_objective(clause: str, objective: str, fit: str = "chord", fraction_bits: int | None = None) -> None:
    """Refuse unknown options of an optimal search."""
    check_choice(clause, "objective", objective, SEARCH_OBJECTIVES)
    check_choice(clause, "fit", fit, SEARCH_FITS)
    if fraction_bits is not None:
        check_whole(clause, "fraction_bits", fraction_bits, 0, 24)


def check_cuts(clause: str, x: Array, y: Array, cuts: Array, columns: int) -> Array:
    """Weight of a sample of each view, float64 (V,); samples and cuts must fit."""
    if x.ndim != 1 or y.shape != x.shape:
        raise SpecError(clause, f"x and y must be vectors of one length, got shapes {x.shape} and {y.shape}")
    if cuts.ndim != 2 or cuts.shape[1] != columns or not len(cuts):
        raise SpecError(clause, f"cuts must have {columns} columns and a row, got shape {cuts.shape}")
    first, last = cuts[:, 0], cuts[:, -1]
    joined = first[0] == 0 and last[-1] == x.size and np.array_equal(first[1:], last[:-1])
    if not joined or (cuts[:, 1:] < cuts[:, :-1]).any():
        raise SpecError(clause, f"cuts must ascend from 0 to {x.size}, each view from the end of the one before")
    sizes = (last - first).astype(np.int64)
    if (sizes == 0).any():
        raise SpecError(clause, f"view {int(np.flatnonzero(sizes == 0)[0])} has no samples")
    for view in range(len(cuts)):
        check_ascending(clause, f"x of view {view}", x[first[view] : last[view]])
    return 1.0 / (len(cuts) * sizes)


def check_entries(entries: int, knots: int) -> int:
    """Number of pieces of a table on so many knots."""
    n = check_whole("L-25", "entries", entries, 1, 256)
    if n > 1 and knots == 2:
        raise SpecError("L-25", f"{n} entries need an inner knot")
    return n


def check_potentials(shape: Sequence[int], knots: int) -> None:
    """Refuse potentials that are not those of a table on so many knots."""
    if len(shape) != 2 or shape[1] != knots or shape[0] < 2 or (shape[0] > 2 and knots == 2):
        raise SpecError("L-26", f"potentials must have 2 rows or more of {knots} knots, got shape {tuple(shape)}")
