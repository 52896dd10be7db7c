"""P: random numbers by address. The rules are those of :mod:`lowbit.reference.philox`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lowbit.accel.common.philox import check_bound, check_counters, check_seed
from lowbit.reference.errors import SpecError

from ._arrays import Array, fixed
from ._jit import by_pieces, kernel
from ._philox import draw, key

__all__ = ["philox_integers", "philox_normal", "philox_uniform", "philox_words"]


@kernel
def _words(counters: Any, k0: int, k1: int, out: Any) -> None:
    for i in range(len(counters)):
        a, b, c, d = draw(counters[i, 0], counters[i, 1], counters[i, 2], counters[i, 3], k0, k1)
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = np.int32(a), np.int32(b), np.int32(c), np.int32(d)


@kernel
def _uniform(counters: Any, k0: int, k1: int, out: Any) -> None:
    for i in range(len(counters)):
        words = draw(counters[i, 0], counters[i, 1], counters[i, 2], counters[i, 3], k0, k1)
        for j in range(4):
            out[i, j] = np.float64(words[j] >> np.uint32(8)) * 2.0**-24


@kernel
def _integers(counters: Any, k0: int, k1: int, bound: int, out: Any) -> None:
    for i in range(len(counters)):
        words = draw(counters[i, 0], counters[i, 1], counters[i, 2], counters[i, 3], k0, k1)
        for j in range(4):
            out[i, j] = np.int32((np.uint64(words[j]) * np.uint64(bound)) >> np.uint64(32))


@kernel
def _normal(counters: Any, k0: int, k1: int, out: Any) -> None:
    for i in range(len(counters)):
        words = draw(counters[i, 0], counters[i, 1], counters[i, 2], counters[i, 3], k0, k1)
        for j in range(0, 4, 2):
            radius = math.sqrt(-2.0 * math.log((np.float64(words[j]) + 0.5) * 2.0**-32))
            angle = 2.0 * math.pi * (np.float64(words[j + 1]) * 2.0**-32)
            out[i, j] = radius * math.cos(angle)
            out[i, j + 1] = radius * math.sin(angle)


def _run(counters: Array, seed: int, dtype: Any, work: Callable[..., None], *extra: Any) -> Array:
    """Checked counters through a kernel, rows of four at a time."""
    if not isinstance(counters, np.ndarray) or counters.dtype.kind not in "iu":
        kind = counters.dtype if isinstance(counters, np.ndarray) else type(counters).__name__
        raise SpecError("P-1", f"counters must be a NumPy array of integers, got {kind}")
    check_counters(counters.shape)
    check_seed(seed)
    if counters.size and (int(counters.min()) < 0 or int(counters.max()) >= 2**32):
        raise SpecError("P-1", f"words of a counter lie in 0..2^32 - 1, got {counters.min()}..{counters.max()}")
    rows = fixed(counters, np.uint32).reshape(-1, 4)
    out = np.empty(counters.shape, dtype)
    result = out.reshape(-1, 4)
    k0, k1 = key(int(seed))
    by_pieces(rows.shape, lambda p: work(rows[p], k0, k1, *extra, result[p]), elements=1 << 16)
    return out


def philox_words(counters: Array, /, *, seed: int) -> Array:
    """Four random words for every address.  [P-1]"""
    return _run(counters, seed, np.int32, _words)


def philox_uniform(counters: Array, /, *, seed: int) -> Array:
    """Multiples of 2⁻²⁴ in [0, 1), float64; arguments as in :func:`philox_words`.  [P-2]"""
    return _run(counters, seed, np.float64, _uniform)


def philox_integers(counters: Array, /, *, seed: int, bound: int) -> Array:
    """Integers in 0 … bound − 1, int32, 1 ≤ bound ≤ 2³¹; arguments as in :func:`philox_words`.  [P-3]"""
    check_bound(bound)
    return _run(counters, seed, np.int32, _integers, int(bound))


def philox_normal(counters: Array, /, *, seed: int) -> Array:
    """Standard normal numbers, float64; arguments as in :func:`philox_words`.  [P-4]"""
    return _run(counters, seed, np.float64, _normal)
