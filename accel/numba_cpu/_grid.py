"""The grid of one group: scalar rules shared by the kernels of chapters Q and G.

Scales are worked out in float64, which is free next to reading a group, and rounded once to what they are stored in;
so scales and zero points do not depend on the precision of the data.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from lowbit.accel.common.uniform import check_bits, code_range
from lowbit.reference.errors import SpecError

from ._jit import from_key, kernel, order_key

__all__ = ["GridRule", "group_range", "plan", "refuse_overflow", "scale_and_zero"]

SYMMETRIC, FULL, PUBLISHED, ASYMMETRIC = 1, 2, 3, 0
_KINDS = {"asymmetric": ASYMMETRIC, "symmetric": SYMMETRIC, "symmetric-full": FULL, "symmetric-gptq": PUBLISHED}
# significant bits, largest value, smallest value of a stored scale
_STORED = {
    "float64": (53, np.finfo(np.float64).max, 2.0**-126),
    "float32": (24, float(np.finfo(np.float32).max), 2.0**-126),
    "float16": (11, 65504.0, 2.0**-14),
    "bfloat16": (8, (2.0 - 2.0**-7) * 2.0**127, 2.0**-126),
}


class GridRule(NamedTuple):
    """What :func:`scale_and_zero` needs to know besides the range of a group."""

    kind: int
    first: int  # first code
    last: int  # last code
    range_floor: float
    digits: int  # significant bits that the scale is rounded to
    most: float  # largest scale of its format
    least: float  # smallest normal scale of its format


def plan(bits: int, scheme: str, range_floor: float, scale_dtype: str | None, working: Any) -> GridRule:
    """Checked parameters of a grid for data of dtype ``working``.  [Q-1, Q-2]"""
    check_bits(bits, scheme)
    if not isinstance(range_floor, (int, float)) or not (math.isfinite(range_floor) and range_floor >= 0):
        raise SpecError("Q-2", f"range_floor must be finite and at least 0, got {range_floor!r}")
    if scale_dtype not in (None, "float32", "float16", "bfloat16"):
        raise SpecError("Q-2", f"scale_dtype must be None, float32, float16 or bfloat16, got {scale_dtype!r}")
    digits, most, least = _STORED[scale_dtype or "float64"]
    most = min(most, _STORED[np.dtype(working).name][1])
    first, last = code_range(bits, scheme)
    return GridRule(_KINDS[scheme], first, last, float(range_floor), digits, most, least)


def refuse_overflow(scale: float, rule: GridRule) -> None:
    """Raise the clause Q-2 error for a scale above the largest value of its format."""
    if scale > rule.most:
        raise SpecError("Q-2", f"a scale of {scale:.4g} overflows the largest value of its format, {rule.most:.4g}")


@kernel
def round_scale(scale: float, rule: GridRule) -> float:
    """``scale`` in its stored precision, half to even, at least the smallest normal; may exceed ``rule.most``."""
    if rule.digits < 53:
        mantissa, exponent = math.frexp(scale)
        scale = math.ldexp(np.rint(math.ldexp(mantissa, rule.digits)), exponent - rule.digits)
    return max(scale, rule.least)


@kernel
def scale_and_zero(lo: float, hi: float, ratio: float, include_zero: bool, rule: GridRule) -> Any:
    """(scale, zero point) of a group with values in lo … hi.  [Q-2, Q-8]"""
    n = float(rule.last - rule.first)
    lo0, hi0 = min(lo, 0.0), max(hi, 0.0)
    if rule.kind == ASYMMETRIC:
        lo0, hi0 = ratio * lo0, ratio * hi0
        if lo0 == 0.0 and hi0 == 0.0:
            scale, zero = round_scale(2.0 / n, rule), np.rint(n / 2.0)
        else:
            scale = round_scale((hi0 - lo0) / n, rule)
            zero = min(np.rint(-lo0 / scale), n)
        if not include_zero:
            lo1, hi1 = ratio * lo, ratio * hi
            narrow = round_scale((hi1 - lo1) / n, rule)
            if hi1 > lo1 and abs(lo1 / narrow) < 2147483647.0:
                scale, zero = narrow, np.rint(-lo1 / narrow)
                if hi1 >= 0.0:
                    zero = min(zero, n)
        return scale, np.int32(zero)
    most = max(-lo0, hi0, rule.range_floor)
    wide = ratio * most
    if rule.kind == SYMMETRIC:
        scale = 1.0 if most == 0.0 else wide / rule.last
    elif most == 0.0:
        scale = 2.0 / n
    else:
        scale = (2.0 * wide if rule.kind == FULL or lo0 < 0.0 else wide) / n
    return round_scale(scale, rule), np.int32(0)


@kernel
def group_range(group: Any) -> Any:
    """(least, greatest) of a 1-D group, of its own dtype; (0, 0) when empty.

    Floats are compared as integers of the same order, a reduction that is exact in any order and needs no
    fast-math flag to be done in vector registers. A NaN or an infinity always ends up as one of the two answers.
    """
    if group.size == 0:
        return group.dtype.type(0), group.dtype.type(0)
    low = high = order_key(group[0])
    for i in range(group.size):
        key = order_key(group[i])
        low = min(low, key)
        high = max(high, key)
    return from_key(low), from_key(high)
