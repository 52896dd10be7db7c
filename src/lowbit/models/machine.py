"""Where and in what torch computes: devices, threads, types."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from threadpoolctl import threadpool_info, threadpool_limits

from lowbit.formats.checkpoint import Checkpoint
from lowbit.formats.dtypes import FLOATS
from lowbit.runs.errors import RecipeError

__all__ = ["arithmetic", "check_device", "resolve_dtype", "storage_dtype", "thread_count"]


def storage_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Natural type of most values of a checkpoint; float32 when that is none of float32, bfloat16 and float16."""
    count: dict[torch.dtype, int] = {}
    for name in checkpoint.names():
        dtype = checkpoint.natural_dtype(name)
        if dtype in FLOATS.values():
            count[dtype] = count.get(dtype, 0) + math.prod(checkpoint.shape(name))
    return max(count, key=lambda dtype: count[dtype], default=torch.float32)


def resolve_dtype(storage: torch.dtype, device: str) -> torch.dtype:
    """Type in which forward passes run: the storage type, but float32 for float16 on a CPU, which has no fast path."""
    return torch.float32 if storage == torch.float16 and torch.device(device).type == "cpu" else storage


def check_device(device: str) -> None:
    """Refuse a device that torch does not know or does not have here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RecipeError(f"device {device!r} cannot be used here: {reason}") from error


@contextlib.contextmanager
def thread_count(threads: int | None) -> Iterator[int]:
    """Number of threads of torch and of BLAS while the block runs; the caller's choices are restored after it."""
    before = torch.get_num_threads()
    count = threads or before
    try:
        torch.set_num_threads(count)
        with threadpool_limits(count, user_api="blas"):
            yield count
    finally:
        torch.set_num_threads(before)


def arithmetic(device: torch.device) -> dict[str, Any]:
    """What the last digits of a product depend on, beside threads and versions: kernels are chosen by processor."""
    blas = {
        f"{pool['internal_api']} {pool.get('architecture')}" for pool in threadpool_info() if pool["user_api"] == "blas"
    }
    found = {"vector_units": torch.backends.cpu.get_cpu_capability(), "blas": sorted(blas)}
    return found | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})
