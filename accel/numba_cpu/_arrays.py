"""Arrays at the door of every operation: dtype rules and refusals.

Kernels see C-contiguous arrays only, inputs as read-only views, so that each kernel is compiled once per precision and
the compiler itself rejects a kernel that would write to an input.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lowbit.accel.common.refusals import check_matrix, refuse_nonfinite
from lowbit.reference.errors import SpecError

from ._jit import collected, kernel, pieces

__all__ = [
    "Array",
    "fixed",
    "integers",
    "numbers",
    "refuse_bad",
    "refuse_found",
    "refuse_marked",
    "weights",
    "working_dtype",
]

Array: TypeAlias = npt.NDArray[Any]

_FLOATS = ("float16", "float32", "float64")


def working_dtype(*arrays: Array) -> Any:
    """Dtype an operation computes in and answers in: float64 when any argument is, else float32."""
    return np.float64 if any(a.dtype == np.float64 for a in arrays) else np.float32


def fixed(x: Array, dtype: Any = None) -> Array:
    """Read-only C-contiguous view, or a copy where the layout, byte order or dtype needs one."""
    view: Array = np.asarray(x, dtype=dtype, order="C").view()
    view.flags.writeable = False
    return view


def weights(clause: str, name: str, x: Any) -> Array:
    """A floating array in the machine's byte order; values are not looked at."""
    a = _array(clause, name, x)
    if a.dtype.name not in _FLOATS:
        raise SpecError(clause, f"{name} must be float16, float32 or float64, got {a.dtype}")
    return a if a.dtype.isnative else a.astype(a.dtype.newbyteorder("="))


def numbers(clause: str, name: str, x: Any) -> Array:
    """:func:`weights`, or the integers that another operation answers, in float64."""
    return weights(clause, name, _array(clause, name, x).astype(np.float64) if x.dtype.kind in "iu" else x)


def integers(clause: str, name: str, x: Any) -> Array:
    """An integer array that fits int32, as read-only int32."""
    a = _array(clause, name, x)
    if a.dtype.kind not in "iu":
        raise SpecError(clause, f"{name} must hold integers, got {a.dtype}")
    if a.dtype.itemsize >= 4 and a.dtype != np.int32 and a.size:
        least, most = int(a.min()), int(a.max())
        if least < -(2**31) or most >= 2**31:
            raise SpecError(clause, f"{name} must fit int32, got values in {least}..{most}")
    return fixed(a, np.int32)


def _array(clause: str, name: str, x: Any) -> Array:
    if not isinstance(x, np.ndarray):
        raise SpecError(clause, f"{name} must be a NumPy array, got {type(x).__name__}; convert it with asarray()")
    return x


@kernel
def _any_nonfinite(x: Any) -> Any:
    found = False
    for i in range(x.size):
        found |= x[i] - x[i] != 0.0  # NaN for NaN and infinities
    return found


def refuse_bad(clause: str, name: str, x: Array) -> None:
    """Raise the clause A-4 error when a float32 or float64 array holds a NaN or an infinity; one pass, no temporary."""
    flat = fixed(x.reshape(-1))
    if any(collected(pieces(flat.size, 1), lambda start, stop: bool(_any_nonfinite(flat[start:stop])))):
        refuse_found(clause, name, x)


def finite_weights(clause: str, name: str, x: Any, shape: tuple[int | None, ...] | None = None) -> Array:
    """:func:`weights` of a shape, without NaN and infinities; float16 is looked at in float32."""
    given = weights(clause, name, x)
    if shape is not None:
        check_matrix(clause, name, given.shape, shape)
    refuse_bad(clause, name, fixed(given, working_dtype(given)))
    return given


def refuse_marked(clause: str, marks: list[Any], **named: Array) -> None:
    """:func:`refuse_found` for the first of some arrays that one of the marks, a bool for each of them, is set for."""
    for (name, x), found in zip(named.items(), zip(*marks, strict=True), strict=False):
        if any(found):
            refuse_found(clause, name, x)


def refuse_found(clause: str, name: str, x: Array) -> None:
    """Raise the clause A-4 error for the NaN and infinite values that a kernel has noticed in ``x``."""
    bad = np.flatnonzero(~np.isfinite(x.reshape(-1)))
    position = np.unravel_index(int(bad[0]), x.shape) if x.ndim else ()
    refuse_nonfinite(clause, name, bad.size, tuple(int(i) for i in position))
