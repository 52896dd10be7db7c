"""O: StatsQ. The rules are those of :mod:`lowbit.reference.statsq`.

A piece of rows is read twice, the second time from the cache: once for the magnitudes behind the scales, in lanes, and
once for codes and values.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lowbit.accel.common.oscillation import check_steps, check_words
from lowbit.accel.common.refusals import check_whole
from lowbit.reference.errors import SpecError
from lowbit.reference.types import GradientPath, StatsCode

from ._arrays import Array, fixed, refuse_found, refuse_marked, weights, working_dtype
from ._jit import as_float, as_int, collected, kernel, pieces
from ._vector import LANES, lane_sum

__all__ = ["statsq", "statsq_grad"]

CHUNK = 256  # magnitudes that are summed in the precision of the data; chunks are added in float64, in order


@kernel
def _scales(x: Any, start: int, stop: int, out: Any) -> Any:
    """Twice the mean magnitude of x[:, r, :], x (s, m, k), for the rows start … stop − 1; True if any is not finite."""
    buffer = np.empty(CHUNK, x.dtype)
    found, count = False, max(x.shape[0] * x.shape[2], 1)
    for r in range(start, stop):
        total = 0.0
        for s in range(x.shape[0]):
            row = x[s, r]
            for at in range(0, row.size, CHUNK):
                values = row[at : at + CHUNK]
                size = buffer[: values.size]
                for j in range(values.size):
                    found |= values[j] - values[j] != 0.0
                    key = as_int(values[j])
                    size[j] = as_float(type(key)(key & ~(type(key)(1) << (8 * x.itemsize - 1))))
                total += np.float64(lane_sum(size))
                for j in range(size.size // LANES * LANES, size.size):
                    total += np.float64(size[j])
        out[r] = 2.0 * (total / count)
    return found


@kernel
def _quantize(x: Any, alpha: Any, n: Any, half: Any, start: int, stop: int, values: Any, codes: Any) -> None:
    """(O.2) and (O.3) for the rows start … stop − 1; n and ½ are of the precision of x."""
    low, high = -n, n - type(n)(1)
    for r in range(start, stop):
        a = alpha[r]
        step = a / n
        for s in range(x.shape[0]):
            row, value, code = x[s, r], values[s, r], codes[s, r]
            if not a > 0.0:
                for j in range(row.size):
                    value[j], code[j] = 0.0, 0
                continue
            for j in range(row.size):
                k = min(max(np.rint(row[j] / a * n - half), low), high)
                value[j] = (k + half) * step
                code[j] = np.int32(k)


@kernel
def _copy(w: Any, g: Any, out: Any) -> Any:
    """A copy of g; whether w, and whether g, holds what is not finite."""
    bad_w, bad_g = False, False
    for j in range(g.size):
        bad_w |= w[j] - w[j] != 0.0
        bad_g |= g[j] - g[j] != 0.0
        out[j] = g[j]
    return bad_w, bad_g


def stacked(clause: str, name: str, w: Any, bits: int) -> tuple[Array, Array, int]:
    """Checked weight as itself and as (s, m, k) in working precision, and n = 2^(bits − 1)."""
    check_whole(clause, "bits", bits, 1, 16)
    given = weights(clause, name, w)
    check_steps(clause, given.shape)
    m, k = given.shape[-2:]
    lead = int(np.prod(given.shape[:-2]))
    return given, fixed(given, working_dtype(given)).reshape(lead, m, k), 1 << (bits - 1)


def row_scales(clause: str, given: Array, x: Array) -> Array:
    """The scales (m,) of a weight as it was given, and as (s, m, k)."""
    alpha = np.empty(x.shape[1], x.dtype)
    parts = pieces(x.shape[1], x.shape[0] * x.shape[2])
    if any(collected(parts, lambda start, stop: bool(_scales(x, start, stop, alpha)))):
        refuse_found(clause, "w", given)
    return alpha


def statsq(w: Array, /, *, bits: int) -> StatsCode[Array]:
    """Quantize a weight to 2^bits levels around zero, the step from its mean magnitude.  [O-1, O-2]"""
    given, x, n = stacked("O-1", "w", w, bits)
    alpha = np.empty(x.shape[1], x.dtype)
    values, codes = np.empty(x.shape, x.dtype), np.empty(x.shape, np.int32)
    parts = pieces(x.shape[1], x.shape[0] * x.shape[2], elements=1 << 17)

    def work(start: int, stop: int) -> bool:
        bad = bool(_scales(x, start, stop, alpha))
        _quantize(x, alpha, x.dtype.type(n), x.dtype.type(0.5), start, stop, values, codes)
        return bad

    if any(collected(parts, work)):
        refuse_found("O-1", "w", given)
    shape = given.shape
    return StatsCode(values.reshape(shape), codes.reshape(shape), alpha.reshape(*(1,) * (len(shape) - 2), -1, 1))


def statsq_grad(w: Array, grad: Array, /, *, bits: int, path: GradientPath = "straight-through") -> Array:
    """Gradient for w from that for its quantized values.  [O-3, O-3a]"""
    check_words("O-3", path=path)
    given, x, n = stacked("O-3", "w", w, bits)
    slope = weights("O-3", "grad", grad)
    if slope.shape != given.shape:
        raise SpecError("O-3", f"grad {slope.shape} must have the shape of w, {given.shape}")
    dtype = working_dtype(given, slope)
    g = fixed(slope, dtype)
    out = np.empty(g.shape, dtype)
    flat_w, flat_g, flat_out = x.reshape(-1), g.reshape(-1), out.reshape(-1)

    def work(start: int, stop: int) -> Any:
        return _copy(flat_w[start:stop], flat_g[start:stop], flat_out[start:stop])

    refuse_marked("O-3", collected(pieces(flat_g.size, 1), work), w=given, grad=slope)
    if path == "straight-through":
        return out
    codes = statsq(given, bits=bits).codes.reshape(x.shape)
    pull = (g.reshape(x.shape) * ((codes + dtype(0.5)) / dtype(n))).sum(axis=(0, 2), keepdims=True)
    pull *= dtype(2) / dtype(max(x.shape[0] * x.shape[2], 1))
    np.multiply(np.sign(x), pull, out=out.reshape(x.shape))
    return out
