"""Arrays as text that loses no bit: C99 hexadecimal floats, so that a failing input or a frozen vector travels.

Every language with ``strtod`` reads the format: ``0x1.8p+1`` is 1.5 · 2¹ = 3. ``nan``, ``inf`` and ``-inf`` stand as
words.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["decode", "describe", "encode", "hexadecimal"]

_INLINE_ITEMS = 256  # a longer array is cut in a printed counter-example; frozen vectors are never cut


def hexadecimal(value: float) -> str:
    """A float without the zeros at the end of its fraction, which ``float.hex`` writes out.

    >>> hexadecimal(1.5), hexadecimal(2.0), hexadecimal(float("-inf"))
    ('0x1.8p+0', '0x1p+1', '-inf')
    """
    fraction, mark, exponent = float(value).hex().partition("p")
    return (fraction.rstrip("0").rstrip(".") if "." in fraction else fraction) + mark + exponent


def encode(array: npt.ArrayLike) -> dict[str, Any]:
    """Array of any shape as ``{"dtype", "shape", "data"}`` with row-major data: hex strings, integers or 0/1.

    >>> encode(np.float32([[1.5, -0.0]]))
    {'dtype': 'float32', 'shape': [1, 2], 'data': ['0x1.8p+0', '-0x0p+0']}
    """
    values = np.asarray(array)
    if values.dtype.kind == "f":
        data: list[Any] = [hexadecimal(v) for v in values.ravel()]
    elif values.dtype.kind in "iub":
        data = [int(v) for v in values.ravel()]
    else:
        raise TypeError(f"only float, integer and bool arrays travel, got {values.dtype}")
    return {"dtype": values.dtype.name, "shape": list(values.shape), "data": data}


def decode(record: dict[str, Any]) -> npt.NDArray[Any]:
    """Inverse of :func:`encode`: the same dtype, shape and bits.

    >>> decode({"dtype": "float16", "shape": [2], "data": ["0x1p-1", "inf"]})
    array([0.5, inf], dtype=float16)
    """
    dtype = np.dtype(record["dtype"])
    data = [float.fromhex(v) for v in record["data"]] if dtype.kind == "f" else record["data"]
    return np.array(data, dtype=dtype).reshape(record["shape"])


def describe(value: Any) -> str:
    """One-line text of an argument for a counter-example: arrays in hex with dtype and shape, the rest by ``repr``."""
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        shown = encode(array.ravel()[:_INLINE_ITEMS])["data"]
        cut = f", ... {array.size - _INLINE_ITEMS} more" if array.size > _INLINE_ITEMS else ""
        return f"{array.dtype.name}{array.shape} [{', '.join(str(v) for v in shown)}{cut}]"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return f"{type(value).__name__}({', '.join(f'{k}={describe(v)}' for k, v in fields.items())})"
    names = getattr(value, "_fields", None)
    if names and isinstance(value, tuple):
        pairs = zip(names, value, strict=True)
        return f"{type(value).__name__}({', '.join(f'{k}={describe(v)}' for k, v in pairs)})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}={describe(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(describe(v) for v in value) + "]"
    if isinstance(value, float):
        return hexadecimal(value)
    return repr(value)
