"""The package hadamard-transform as a backend: rows of a power of two in torch. Nothing is repaired."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowbit.reference.errors import Unsupported

name, compute_dtype, device = "hadamard-transform", "float32", "cpu"
package: Any = importlib.import_module("hadamard_transform")


def asarray(x: Any, /) -> Tensor:
    """NumPy to torch, a copy."""
    return torch.from_numpy(np.array(x))


def to_numpy(x: Tensor, /) -> Any:
    """Torch to NumPy."""
    return x.detach().numpy()


def hadamard_transform(x: Tensor, /, *, block_size: int | None = None, transpose: bool = False) -> Tensor:
    """Its transform, symmetric and its own transpose, on a vector or a batch of them."""
    size = x.shape[-1] if x.ndim else 1
    if block_size is not None:
        raise Unsupported("hadamard-transform has no blocks")
    if x.ndim not in (1, 2):
        raise Unsupported("hadamard-transform has vectors and batches of them only")
    if size and size % 4 == 0 and size & (size - 1):
        raise Unsupported("hadamard-transform has powers of two only")
    found: Tensor = package.hadamard_transform(x)
    return found
