"""PEFT's ``loftq_init`` as a backend.

PEFT moves the weight to a GPU and refuses to run without one; here its own source runs with the device changed to the
CPU, nothing else. It returns the restored weight and the factors of the last iterate: scales and codes are read off
that weight, errors are those of shorter runs.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import numpy as np
import torch
from peft.utils import loftq_utils
from torch import Tensor

from lowbit.reference.errors import Unsupported
from lowbit.reference.types import LoftQ

from .bitsandbytes_nf4 import asarray, table, to_numpy

__all__ = ["asarray", "compute_dtype", "device", "loftq", "name", "to_numpy"]

name, compute_dtype, device = "peft-loftq", "float32", "cpu"


@functools.cache
def on_cpu() -> Any:
    """``loftq_init`` with "cpu" where it says "cuda"."""
    source = inspect.getsource(loftq_utils.loftq_init)
    if source.count('"cuda"') != 1:
        raise AssertionError("loftq_init no longer names its device as it did: bring the adapter up to date")
    namespace: dict[str, Any] = dict(vars(loftq_utils))
    exec(compile(source.replace('"cuda"', '"cpu"'), "<loftq_init on the CPU>", "exec"), namespace)
    return namespace["loftq_init"]


def loftq(
    w: Tensor,
    /,
    *,
    rank: int,
    bits: int = 4,
    quantizer: str = "normal-float",
    block_size: int = 64,
    iterations: int = 5,
    keep: str = "best",
    scaling: float = 1.0,
) -> LoftQ[Tensor]:
    """The last iterate of NF4 in blocks of 64."""
    if (bits, quantizer, block_size) != (4, "normal-float", 64):
        raise Unsupported("PEFT has NF4 in blocks of 64 only")
    if scaling != 1 or (keep != "last" and iterations > 1):
        raise Unsupported("PEFT keeps the last iterate, and leaves the scaling to the caller")
    if w.dtype == torch.float64:
        raise Unsupported("PEFT computes in float32")
    counts = range(1, iterations + 1) or [iterations]  # PEFT itself refuses 0
    iterates = [on_cpu()(w.contiguous(), bits, rank, count) for count in counts]
    errors = [float(torch.linalg.norm(w.float() - weight.float() - b @ a)) for weight, a, b in iterates]
    weight, a, b = iterates[-1]
    flat = torch.cat([weight.reshape(-1), weight.new_zeros(-weight.numel() % 64)]).reshape(-1, 64)
    scale = flat.abs().amax(dim=1)
    ratio = flat / torch.where(scale > 0, scale, 1.0)[:, None]
    codes = (ratio[..., None] - table("nf4")).abs().argmin(dim=-1).reshape(-1)[: weight.numel()]
    return LoftQ(
        weight, codes.reshape(w.shape).to(torch.int32), scale, torch.zeros_like(scale), b, a,
        torch.tensor(np.array(errors), dtype=torch.float32), iterations,
    )  # fmt: skip
