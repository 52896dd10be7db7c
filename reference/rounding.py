"""R: rounding to integers, clipping, and the nearest of a list of levels.

Rounding is IEEE 754 round-half-to-even everywhere: ``torch.round``, ``np.rint`` and C ``rint`` agree on it, C
``round`` does not. Random data cannot tell the difference, only ties can.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from . import checks
from .checks import F64, I32
from .errors import SpecError

__all__ = ["nearest_level", "round_clip", "round_half_even"]

INT32 = (-(2**31), 2**31 - 1)


def round_half_even(x: npt.ArrayLike, /) -> F64:
    """Nearest integer, ties to the even one.  [R-1]

        round(x) = n,  |x − n| ≤ 1/2,  n even when |x − n| = 1/2                    (R.1)

    Shapes: any, 0-d and empty included. NaN and ±inf pass through: the only operation that does not refuse them.
    Source: IEEE 754-2019, roundTiesToEven.

    >>> round_half_even([0.5, 1.5, 2.5, -0.5]).tolist()
    [0.0, 2.0, 2.0, -0.0]
    """
    return np.asarray(np.rint(checks.real(x, "x", "R-1")))  # (R.1)


def round_clip(x: npt.ArrayLike, /, *, low: int, high: int) -> I32:
    """Round, then clip to [low, high].  [R-2]

        clip(round(x), low, high)                                                   (R.2)

    Shapes: any → int32. ±inf saturate, NaN is refused. Round first: −8.5 on [−8, 7] gives −8 either way, but
    clipping to fractional bounds first would not.

    >>> round_clip([6.5, 7.5, -8.5, float("-inf")], low=-8, high=7).tolist()
    [6, 7, -8, -8]
    """
    low = checks.whole(low, "low", "R-2", low=INT32[0], high=INT32[1])
    high = checks.whole(high, "high", "R-2", low=low, high=INT32[1])
    a = checks.real(x, "x", "R-2")
    if np.isnan(a).any():
        at = tuple(int(i) for i in np.argwhere(np.isnan(a))[0])
        raise SpecError("R-2", f"x holds nan at {at}, which has no integer")
    return np.asarray(np.clip(np.rint(a), low, high), np.int32)  # (R.2)


def nearest_level(x: npt.ArrayLike, levels: npt.ArrayLike, /) -> I32:
    """Index of the nearest level; an exact midpoint goes to the lower index.  [R-3]

        argmin_i |x − l_i| = #{ i : x > (l_i + l_{i+1}) / 2 }                       (R.3)

    Shapes: x any, levels (L,), L ≥ 1, strictly ascending → int32 of x's shape.
    The comparison x ≤ midpoint *is* the definition; distances are not subtracted, so that no rounding enters but
    that of the midpoint. Lower precision may differ where x is within rounding of a midpoint.

    >>> nearest_level([-9.0, 0.5, 0.75, 9.0], [0.0, 1.0, 2.0]).tolist()
    [0, 0, 1, 2]
    """
    a = checks.finite(x, "x", "R-3")
    l = checks.finite(levels, "levels", "R-3", ndim=1)
    if l.size == 0:
        raise SpecError("R-3", "levels must hold at least one level")
    if (np.diff(l) <= 0).any():
        i = int(np.flatnonzero(np.diff(l) <= 0)[0])
        raise SpecError("R-3", f"levels must ascend strictly, got {l[i]} before {l[i + 1]} at {i}")
    midpoint = l[:-1] + (l[1:] - l[:-1]) / 2
    return np.asarray(np.searchsorted(midpoint, a, side="left"), np.int32)  # (R.3)
