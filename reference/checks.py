"""Argument checks: how every operation of the specification refuses.  [A-1, A-3, A-4]

``A-1``  Inputs are never written: every array is copied to float64 (or int64) on entry.
``A-2``  Non-contiguous and zero-size arrays are ordinary inputs.
``A-3``  A wrong shape, type or parameter is a :class:`SpecError` with the clause of the operation, before any work.
``A-4``  NaN and infinities are refused with the argument's name and the first position.

float16, bfloat16 and float32 values are exact in float64, so the specification computes on *the same numbers* as
any backend. Deliberately not here: silent repairs. Nothing is clamped, reshaped or converted to make a call pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import SpecError

F64: TypeAlias = npt.NDArray[np.float64]
I32: TypeAlias = npt.NDArray[np.int32]
Array: TypeAlias = npt.NDArray[Any]  # one result holds floats, codes and masks
Bool: TypeAlias = npt.NDArray[np.bool_]

SYMMETRY = 2.0**-12
"""Largest accepted |C − Cᵀ| / max|C|: half the digits of float32, so that a product summed in float32 in two
different orders passes and a matrix that is not symmetric by meaning does not."""


def plain(x: npt.ArrayLike, name: str, clause: str) -> Array:
    """An array that computes as one: matrices multiply otherwise, and the mask of a masked one is lost.  [A-3b]"""
    if isinstance(x, np.matrix | np.ma.MaskedArray):
        raise SpecError(clause, f"{name} must be a plain array, got {type(x).__module__}.{type(x).__qualname__}")
    try:
        return np.asarray(x)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged sequences; tensors of a graph or of a GPU
        raise SpecError(clause, f"{name} is not an array: {error}") from error


def real(x: npt.ArrayLike, name: str, clause: str, *, ndim: int | None = None) -> F64:
    """A fresh float64 copy of any real array; values are not looked at.  [A-1, A-3]"""
    given = plain(x, name, clause)
    if given.dtype.kind not in "fiub" and given.dtype.name != "bfloat16":
        raise SpecError(clause, f"{name} must hold real numbers, got dtype {given.dtype}")
    if ndim is not None and given.ndim != ndim:
        raise SpecError(clause, f"{name} must have {ndim} dimensions, got shape {given.shape}")
    return np.array(given, dtype=np.float64, order="C")


def finite(x: npt.ArrayLike, name: str, clause: str, *, ndim: int | None = None) -> F64:
    """A fresh float64 copy without NaN and infinities.  [A-1, A-3, A-4]

    >>> finite([[1.0, 2.0], [3.0, float("nan")]], "w", "G-2")
    Traceback (most recent call last):
    lowbit.reference.errors.SpecError: [A-4] w holds nan at (1, 1)
    """
    a = real(x, name, clause, ndim=ndim)
    bad = ~np.isfinite(a)
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise SpecError("A-4", f"{name} holds {a[at]} at {at}")
    return a


def integers(x: npt.ArrayLike, name: str, clause: str, *, ndim: int | None = None) -> npt.NDArray[np.int64]:
    """A fresh int64 copy of an integer array; an empty list, which NumPy reads as float, passes too.  [A-1, A-3]"""
    given = plain(x, name, clause)
    if given.dtype.kind not in "iu" and given.size:
        raise SpecError(clause, f"{name} must hold integers, got dtype {given.dtype}")
    if ndim is not None and given.ndim != ndim:
        raise SpecError(clause, f"{name} must have {ndim} dimensions, got shape {given.shape}")
    return np.array(given, dtype=np.int64, order="C")


def whole(value: int, name: str, clause: str, *, low: int, high: int | None = None) -> int:
    """An integer parameter in [low, high] as Python's, NumPy's too; ``True`` and ``2.0`` are not integers.  [A-3a]"""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise SpecError(clause, f"{name} must be an integer, got {value!r}")
    if value < low or (high is not None and value > high):
        wanted = f"at least {low}" if high is None else f"in {low}..{high}"
        raise SpecError(clause, f"{name} must be {wanted}, got {value}")
    return int(value)


def flag(value: bool, name: str, clause: str) -> bool:
    """True or False, or NumPy's of either; 1 and 0 are not."""
    if not isinstance(value, bool | np.bool_):
        raise SpecError(clause, f"{name} must be True or False, got {value!r}")
    return bool(value)


def number(value: float, name: str, clause: str, *, low: float, high: float = math.inf, above: bool = False) -> float:
    """A finite real parameter in [low, high], or in (low, high] with ``above``."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise SpecError(clause, f"{name} must be a number, got {value!r}")
    if not math.isfinite(value) or value > high or value < low or (above and value == low):
        upper = "" if math.isinf(high) else f" and at most {high}"
        raise SpecError(clause, f"{name} must be {'above' if above else 'at least'} {low}{upper}, got {value}")
    return float(value)


def choice(value: Any, options: Sequence[Any], name: str, clause: str) -> None:
    """One of a few named options."""
    if value not in options:
        raise SpecError(clause, f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")


def second_moment(c: npt.ArrayLike, k: int | None, name: str, clause: str) -> F64:
    """A (k, k) symmetric matrix with a diagonal ≥ 0, such as XᵀX; returns (C + Cᵀ)/2. With k None: any square one.

    Refuses what cannot be a second moment by what costs nothing; :func:`definite` goes on where a result would be false
    for any other matrix. A statistic summed in float32 has eigenvalues a little below 0, and each operation says what
    it does with them.
    """
    a = finite(c, name, clause, ndim=2)
    k = len(a) if k is None else k
    if a.shape != (k, k):
        raise SpecError(clause, f"{name} must have shape {(k, k)}, got {a.shape}")
    if k and np.abs(a - a.T).max() > SYMMETRY * np.abs(a).max():
        raise SpecError(clause, f"{name} must be symmetric, largest |{name} - {name}ᵀ| is {np.abs(a - a.T).max():.3g}")
    if (np.diag(a) < 0).any():
        j = int(np.flatnonzero(np.diag(a) < 0)[0])
        raise SpecError(clause, f"{name} must have a diagonal >= 0, got {a[j, j]} at ({j}, {j})")
    return np.asarray((a + a.T) / 2)


INDEFINITE = 2.0**-8
"""Share of ‖C‖_F down to which an eigenvalue below 0 is rounding: that of a moment in bfloat16, ‖ΔC‖_F ≤ 2⁻⁸ ‖C‖_F."""


def definite(C: F64, name: str, clause: str) -> F64:
    """The symmetric matrix, refused where an eigenvalue is further below 0 than rounding explains."""
    least = float(np.linalg.eigvalsh(C).min(initial=0.0))
    if least < -INDEFINITE * np.linalg.norm(C):
        raise SpecError(clause, f"{name} must be positive semi-definite, it has an eigenvalue of {least:.3g}")
    return C


def rank(value: int, shape: tuple[int, ...], clause: str) -> int:
    """A rank with 1 ≤ r ≤ min(m, k)."""
    return whole(value, f"rank of a patch for shape {shape}", clause, low=1, high=min(shape))
