"""What the quantizers of KD-QAT and TernaryBERT answer, and the first step of ACS, mimicked in words of our own.

The code is no package. Golden vectors of the code itself agree with the specification where nothing is divided by 0;
this mimic keeps what it does there, in float32, with NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lowbit.reference.errors import Unsupported

name, compute_dtype, device = "kd-qat-mimic", "float32", "cpu"


def asarray(x: Any, /) -> Any:
    """NumPy."""
    return np.array(x)


def to_numpy(x: Any, /) -> Any:
    """NumPy."""
    return np.asarray(x)


def clipped(x: Any, clip: float | None) -> Any:
    """The clip that stands before every quantizer; without one it is infinite."""
    if x.dtype != np.float32:
        raise Unsupported("the published models are float32")
    bound = np.float32(np.inf if clip is None else clip)
    return np.clip(x, -bound, bound)


def over(x: Any, granularity: str) -> Any:
    """Axes of the statistics."""
    return {"tensor": tuple(range(x.ndim)), "row": (-1,), "matrix": (-2, -1)}[granularity]


def large_mean(size: Any, mask: Any, axes: Any) -> Any:
    """Sum by number, whatever the number is."""
    with np.errstate(invalid="ignore"):
        return (size * mask).sum(axis=axes, keepdims=True) / mask.sum(axis=axes, keepdims=True).astype(np.float32)


def twn(x: Any, /, *, granularity: str = "tensor", threshold: float = 0.7, clip: float | None = None) -> Any:
    """Ternary values."""
    if threshold != 0.7:
        raise Unsupported("the threshold is 0.7")
    v = clipped(x, clip)
    axes, size = over(v, granularity), np.abs(v)
    mask = size > np.float32(0.7) * size.mean(axis=axes, keepdims=True)
    return large_mean(size, mask, axes) * np.sign(v) * mask


def clamped_uniform(
    x: Any, /, *, bits: int = 4, granularity: str = "tensor", clip: float | None = None, outermost: str = "published"
) -> Any:
    """The branch of 4 to 7 bits."""
    if outermost != "published":
        raise Unsupported("a tie makes one level more at each end")
    v = clipped(x, clip)
    axes, size = over(v, granularity), np.abs(v)
    α = large_mean(size, size > size.mean(axis=axes, keepdims=True), axes)
    with np.errstate(invalid="ignore"):
        step = 2 * α / np.float32(2**bits - 1)
        return np.rint(np.clip(v, -α, α) / step) * step


def min_max(
    x: Any, /, *, bits: int = 8, scheme: str = "symmetric", granularity: str = "tensor", clip: float | None = None,
    epsilon: float = 0.0,
) -> Any:  # fmt: skip
    """Times the inverse scale, and divided by it; the other scheme with its own epsilon."""
    v = clipped(x, clip)
    axes = over(v, granularity)
    if scheme == "symmetric":
        if epsilon:
            raise Unsupported("no epsilon")
        with np.errstate(divide="ignore", invalid="ignore"):
            s = np.float32(2 ** (bits - 1) - 1) / np.abs(v).max(axis=axes, keepdims=True)
            return np.rint(v * s) / s
    if epsilon != 1e-8:
        raise Unsupported("the epsilon is 1e-8")
    low = v.min(axis=axes, keepdims=True)
    reach, n = v.max(axis=axes, keepdims=True) - low + np.float32(1e-8), np.float32(2**bits - 1)
    return np.rint((v - low) / reach * n) / n * reach + low


def straight_through(grad: Any, x: Any, /, *, clip: float | None) -> Any:
    """The gradient, cleared at and beyond the clip."""
    if grad.dtype != np.float32:
        raise Unsupported("the published models are float32")
    bound = np.float32(np.inf if clip is None else clip)
    return np.where((x >= bound) | (x <= -bound), np.float32(0), grad)
