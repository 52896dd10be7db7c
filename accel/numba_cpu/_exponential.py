"""An exponential that the compiler vectorises: exp of numbers that are not positive, as in every softmax.

2^k e^r with x = k ln 2 + r, abs(r) ≤ ln 2 / 2. In float32 e^r is its Taylor polynomial of degree 7 (remainder 5e-9 of
it), k comes from adding 1.5 · 2²³, and 2^k from shifting it into the exponent: no branch, no table, no call. Float64
calls the library. Below −87 the float32 result is 0, where the exact one is below the smallest normal number.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from lowbit.accel.numba_cpu._jit import as_float, as_int

__all__ = ["exponential"]

_PER_LN2 = np.float32(1 / math.log(2))
_MAGIC = np.float32(1.5 * 2**23)
_MAGIC_BITS = np.int32(_MAGIC.view(np.int32))
_LN2_HIGH = np.float32(0.693359375)  # 9 bits: k times it is exact
_LN2_LOW = np.float32(math.log(2) - 0.693359375)
_ONE, _ZERO, _LEAST = np.float32(1.0), np.float32(0.0), np.float32(-87.0)
_C2, _C3, _C4, _C5, _C6, _C7 = (np.float32(1 / math.factorial(i)) for i in range(2, 8))
_BIAS, _SHIFT = np.int32(127), np.int32(23)


def exponential(x: Any) -> Any:
    """e^x for x ≤ 0, in the precision of x."""
    return np.exp(x)


def _exponential(x: Any) -> Any:
    if x != types.float32:

        def double(x: Any) -> Any:
            return math.exp(x)

        return double

    def single(x: Any) -> Any:
        y = x if x > _LEAST else _LEAST
        shifted = y * _PER_LN2 + _MAGIC
        k = shifted - _MAGIC
        r = (y - k * _LN2_HIGH) - k * _LN2_LOW
        p = _C6 + r * _C7
        p = _C5 + r * p
        p = _C4 + r * p
        p = _C3 + r * p
        p = _C2 + r * p
        p = _ONE + r * p
        p = _ONE + r * p
        power = as_float(np.int32(((as_int(shifted) - _MAGIC_BITS) + _BIAS) << _SHIFT))
        return p * power if x >= _LEAST else _ZERO

    return single


overload(exponential)(_exponential)
