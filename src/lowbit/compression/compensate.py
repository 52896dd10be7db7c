"""The adapter of one layer, as a file will hold it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from lowbit.models.weights import stored_as

from .arrays import Arrays
from .method import Method

__all__ = ["Patch", "compensate"]


class Patch(NamedTuple):
    """Factors as stored, and what the solver said of them."""

    b: torch.Tensor  # (m, r), storage dtype
    a: torch.Tensor  # (r, k), storage dtype
    lower_bound: float | None
    method: str
    packed_bytes: int | None  # size at adapter_bits, when those are asked for

    @property
    def product(self) -> torch.Tensor:
        """B A in float32, (m, k)."""
        return self.b.to(torch.float32) @ self.a.to(torch.float32)


def compensate(method: Method, arrays: Arrays, d: torch.Tensor, c: Any, magnitude: torch.Tensor) -> Patch:
    """Factors for the error ``d`` (m, k), rounded to the type they are stored in.

    Args:
        method: how.
        arrays: of the backend that computes.
        d: error of the weight, float32 (m, k).
        c: second moment of the inputs, an array (k, k).
        magnitude: mean absolute input by column, float32 (k,).
    """
    backend = arrays.backend
    error = arrays.give(d)
    bound: float | None = None
    solver: str = method.compensate
    if method.compensate == "eora":
        solution = backend.eora_certified(error, c, rank=method.rank)
        b, a, bound, solver = solution.B, solution.A, float(solution.lower_bound), str(solution.method)
    elif method.compensate == "svd":
        b, a = backend.svd_patch(error, rank=method.rank)
    else:
        b, a = backend.scaled_svd_patch(error, arrays.give(magnitude), rank=method.rank)
    packed: int | None = None
    if method.adapter_bits is not None:
        low = backend.quantize_adapter(
            b,
            a,
            c,
            bits=method.adapter_bits,
            group_size=method.group_size,
            damping=method.adapter_damping,
            scale_dtype=method.scale_dtype,
        )
        b, a = low.B.weight, low.A.weight
        packed = sum(_packed_size(method, arrays, part, method.adapter_bits) for part in (low.B, low.A))
    stored = [
        stored_as(method.storage, arrays.take(factor), "a factor of its adapter").contiguous() for factor in (b, a)
    ]
    return Patch(stored[0], stored[1], bound, solver, packed)


def _packed_size(method: Method, arrays: Arrays, part: Any, bits: int) -> int:
    """Bytes of a quantized factor: dense codes, scales in the storage type, zero points of ``bits``."""
    rows, columns = arrays.take(part.codes).shape
    scales = arrays.take(part.scale).numel()
    return -(-rows * columns * bits // 8) + scales * method.storage.itemsize + -(-scales * bits // 8)
