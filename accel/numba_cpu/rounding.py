"""R: rounding, clipping, nearest level. The rules are those of :mod:`lowbit.reference.rounding`."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowbit.reference.errors import SpecError

from ._arrays import Array, fixed, refuse_bad, refuse_found, weights, working_dtype
from ._jit import as_int, by_pieces, kernel

__all__ = ["nearest_level", "round_clip", "round_half_even"]

_LINEAR = 64  # up to this many levels, counting midpoints in vector registers beats a binary search


@kernel
def _round(x: Any, out: Any) -> None:
    for i in range(x.size):
        out[i] = np.rint(x[i])


@kernel
def _round_clip(x: Any, low: float, high: float, out: Any) -> Any:
    nan = False
    for i in range(x.size):
        nan |= x[i] != x[i]
        # float64 holds every int32 bound and every float32, so that nothing is rounded twice
        out[i] = np.int32(min(max(np.float64(np.rint(x[i])), low), high))
    return nan


@kernel
def count_midpoints(x: Any, midpoints: Any, out: Any) -> None:
    for start in range(0, x.size, 1024):
        values, counts = x[start : start + 1024], out[start : start + 1024]
        for i in range(counts.size):
            counts[i] = 0
        for j in range(midpoints.size):
            middle = midpoints[j]
            for i in range(values.size):
                counts[i] += np.int32(values[i] > middle)


@kernel
def search_midpoints(x: Any, midpoints: Any, out: Any) -> None:
    place = np.empty(256, np.uint32)
    for start in range(0, x.size, 256):  # 2^p − 1 midpoints: every value takes the same p steps, none branches
        values, counts = x[start : start + 256], out[start : start + 256]
        places = place[: values.size]
        for i in range(values.size):
            places[i] = 0
        step = np.uint32((midpoints.size + 1) >> 1)
        while step:
            for i in range(values.size):
                below = midpoints[places[i] + step - np.uint32(1)] - values[i]  # its sign bit is the answer
                places[i] += step & np.uint32(as_int(below) >> (8 * x.itemsize - 1))
            step >>= np.uint32(1)
        for i in range(values.size):
            counts[i] = np.int32(places[i])


def level_table(clause: str, levels: Array) -> Array:
    """Levels in float64, refused unless they are a finite, strictly ascending vector."""
    given = weights(clause, "levels", levels)
    if given.ndim != 1 or given.size == 0:
        raise SpecError(clause, f"levels must be 1-D with at least one level, got shape {given.shape}")
    exact = given.astype(np.float64)
    if not np.isfinite(exact).all():
        refuse_found(clause, "levels", given)
    falls = np.flatnonzero(np.diff(exact) <= 0)
    if falls.size:
        i = int(falls[0])
        raise SpecError(clause, f"levels must ascend strictly, got {exact[i]} before {exact[i + 1]} at {i}")
    return exact


def midpoints_of(levels: Array, dtype: Any) -> tuple[Any, Array]:
    """The kernel that finds the nearest of these float64 levels, and its table of midpoints in ``dtype``.

    A midpoint becomes the largest value of the precision that is not above it: comparing with that is comparing with
    the midpoint itself.
    """
    middle = levels[:-1] + (levels[1:] - levels[:-1]) / 2
    with np.errstate(over="ignore"):
        rounded = middle.astype(dtype)
    midpoints = np.where(rounded > middle, np.nextafter(rounded, rounded.dtype.type(-np.inf)), rounded)
    if levels.size <= _LINEAR:
        return count_midpoints, fixed(midpoints)
    padded = np.full(2 ** int(midpoints.size).bit_length() - 1, np.inf, dtype)
    padded[: midpoints.size] = midpoints
    return search_midpoints, fixed(padded)


def round_half_even(x: Array, /) -> Array:
    """Nearest integer, ties to the even one; NaN and infinities pass through.  [R-1]"""
    given = weights("R-1", "x", x)
    source = fixed(given, working_dtype(given))
    out = np.empty_like(source)
    flat, result = source.reshape(-1), out.reshape(-1)
    by_pieces((flat.size, 1), lambda p: _round(flat[p], result[p]))
    return out


def round_clip(x: Array, /, *, low: int, high: int) -> Array:
    """clip(round(x), low, high); infinities saturate, NaN is refused.  [R-2]"""
    for name, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise SpecError("R-2", f"{name} must be an integer, got {value!r}")
    if not -(2**31) <= low <= high < 2**31:
        raise SpecError("R-2", f"low..high must be a range of int32, got {low}..{high}")
    given = weights("R-2", "x", x)
    source = fixed(given, working_dtype(given))
    out = np.empty(source.shape, np.int32)
    flat, result = source.reshape(-1), out.reshape(-1)
    if any(by_pieces((flat.size, 1), lambda p: _round_clip(flat[p], float(low), float(high), result[p]))):
        bad = np.flatnonzero(np.isnan(flat))
        position = tuple(int(i) for i in np.unravel_index(int(bad[0]), source.shape)) if source.ndim else ()
        raise SpecError("R-2", f"x holds {bad.size} NaN, the first at {position}")
    return out


def nearest_level(x: Array, levels: Array, /) -> Array:
    """Index of the nearest level; an exact midpoint goes to the lower index.  [R-3]"""
    given = weights("R-3", "x", x)
    exact = level_table("R-3", levels)
    source = fixed(given, working_dtype(given))
    refuse_bad("R-3", "x", source)
    find, midpoints = midpoints_of(exact, source.dtype)
    out = np.empty(source.shape, np.int32)
    flat, result = source.reshape(-1), out.reshape(-1)
    by_pieces((flat.size, 1), lambda p: find(flat[p], midpoints, result[p]))
    return out
