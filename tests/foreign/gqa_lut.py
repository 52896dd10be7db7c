"""A mimic of the published table code as a backend of chapter L: written from its description, no line of it is theirs.

The search sends an input on a breakpoint to the right piece, the deployed operator to the left one; neither has an
option for it, so the name of a rule is not looked at. The operator computes in float32. Nothing is mended.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special

from lowbit.reference.errors import Unsupported
from lowbit.reference.types import IntegerTable, Table, TableGradient

name, compute_dtype, device = "gqa-lut-mimic", "float32", "cpu"


def asarray(x: Any, /) -> Any:
    """NumPy, a copy."""
    return np.array(x)


def to_numpy(x: Any, /) -> Any:
    """NumPy."""
    return np.asarray(x)


def fit_chords(knots: Any, values: Any, /) -> Any:
    """Chords one by one; a piece between equal knots is 0."""
    lines = []
    for left, right, low, high in zip(knots[:-1], knots[1:], values[:-1], values[1:], strict=True):
        slope = 0.0 if left == right else (high - low) / (right - left)
        lines.append((slope, 0.0 if left == right else low - left * slope))
    k, b = np.array(lines, np.float64).T
    return Table(np.array(knots[1:-1], np.float64), k.copy(), b.copy())


def round_table(table: Any, /, *, fraction_bits: int = 6, bits: int | None = None) -> Any:
    """Rounded, never clipped."""
    if bits is not None:
        raise Unsupported("coefficients are never saturated")
    unit = 2.0**fraction_bits
    return Table(table.breakpoints, np.round(table.slopes * unit) / unit, np.round(table.intercepts * unit) / unit)


def integer_table(table: Any, /, *, scale_bits: int, fraction_bits: int = 6) -> Any:
    """Rounded breakpoints under a key, the same coefficients for all."""
    codes = np.round(table.breakpoints * 2**scale_bits).astype(np.int32)
    k, b = (np.asarray(c * 2**fraction_bits).astype(np.int32) for c in (table.slopes, table.intercepts))
    return IntegerTable(codes, k, b << scale_bits, scale_bits, fraction_bits)


def evaluate_table(x: Any, table: Any, /, *, tie: str = "left") -> Any:
    """As the fitness of the search does: x ≥ p belongs to the right."""
    i = np.digitize(x, table.breakpoints)
    y = table.slopes[i] * x + table.intercepts[i]
    return np.asarray(y, np.result_type(x, np.float32))


def evaluate_codes(q: Any, table: Any, /, *, tie: str = "left") -> Any:
    """As the deployed operator does, in float32: q ≤ p belongs to the left."""
    scale, unit = np.float32(2.0**-table.scale_bits), np.float32(2.0**-table.fraction_bits)
    k = table.slopes.astype(np.float32) * unit
    b = table.intercepts.astype(np.float32) * (unit * scale)
    codes = q.astype(np.float32)
    i = np.searchsorted(table.breakpoints.astype(np.float32), codes, side="left")
    y = (k[i] * codes + b[i] / scale) * scale
    return np.asarray(y / (unit * scale)).astype(np.int32)


def table_gradient(grad: Any, q: Any, /, *, scale: float, function: str) -> Any:
    """The exact derivative, in the precision of the gradient."""
    dtype = np.result_type(grad, np.float32)
    x = (q * scale).astype(np.float64)
    if function == "gelu":
        slope = special.ndtr(x) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    elif function == "hswish":
        slope = np.where(x <= -3, 0.0, np.where(x >= 3, 1.0, x / 3 + 0.5))
    elif function == "exp":
        slope = np.exp(x)
    elif function == "sigmoid":
        slope = special.expit(x) * special.expit(-x)
    else:
        raise Unsupported("the operator knows gelu, hswish, sigmoid and exp")
    wide = grad * slope
    return TableGradient(np.asarray(wide * scale, dtype), np.asarray(np.sum(wide * q), dtype))


def straight_through(value: Any, function: Any, /) -> Any:
    """The forward pass of training, f + (t − f) in float32, with the second term a constant."""
    t, f = np.asarray(value, np.float32), np.asarray(function, np.float32)
    return (t - f) + f
