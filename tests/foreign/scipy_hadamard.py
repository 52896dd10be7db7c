"""SciPy as a backend of chapter H: ``linalg.hadamard``, the product with it, and Q of ``linalg.qr``; nothing mended."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg

from lowbit.reference.errors import Unsupported

name, compute_dtype, device = "scipy-hadamard", "float64", "cpu"


def asarray(x: Any, /) -> Any:
    """NumPy, a copy."""
    return np.array(x)


def to_numpy(x: Any, /) -> Any:
    """NumPy."""
    return np.asarray(x)


def hadamard_matrix(*, order: int) -> Any:
    """Sylvester's matrix of a power of two; the check of the argument is SciPy's."""
    if type(order) is int and order > 0 and order % 4 == 0 and order & (order - 1):
        raise Unsupported("scipy.linalg.hadamard has powers of two only")
    return scipy.linalg.hadamard(order, dtype=np.int32)


def hadamard_transform(x: Any, /, *, block_size: int | None = None, transpose: bool = False) -> Any:
    """The product with the matrix over √n."""
    size = x.shape[-1] if block_size is None else block_size
    matrix = hadamard_matrix(order=size)  # symmetric, its own transpose
    wide = x.astype(np.result_type(x, np.float64))
    return (wide.reshape(*x.shape[:-1], x.shape[-1] // size, size) @ matrix / np.sqrt(size)).reshape(x.shape)


def orthogonal_factor(z: Any, /) -> Any:
    """Q as LAPACK gives it."""
    return scipy.linalg.qr(z.astype(np.float64))[0]
