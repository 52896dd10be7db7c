"""Triton kernels for hot paths on CUDA, and the gate that says when they apply.

Importing this package does not import triton. The kernels run on CUDA tensors, and on CPU tensors under Triton's
interpreter, when ``TRITON_INTERPRET=1`` is set before triton is imported.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from typing import TYPE_CHECKING, Any, Literal

import torch

from lowbit.accel.common.hadamard import factors

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["KERNELS", "launcher", "split", "supports"]

KERNELS = (
    "quantize",
    "dequantize",
    "pack",
    "unpack",
    "dequantize_packed",
    "dora_norm",
    "bcq_product",
    "codebook_matmul",
    "hadamard_transform",
    "twn_code",
    "twn",
    "clamped_uniform",
    "min_max",
    "straight_through",
    "lsq_code",
    "lsq",
    "lsq_gradient",
    "statsq",
    "statsq_grad",
    "track_oscillation",
    "evaluate_codes",
    "lookup_codes",
    "attention_map_loss",
    "error_vector_score",
    "disagreement_score",
    "acs_score",
)
"""Operations with a kernel."""

NARROW = frozenset(
    (
        "twn_code",
        "twn",
        "clamped_uniform",
        "min_max",
        "straight_through",
        "lsq_code",
        "lsq",
        "lsq_gradient",
        "statsq",
        "statsq_grad",
        "track_oscillation",
        "attention_map_loss",
        "error_vector_score",
        "disagreement_score",
        "acs_score",
    )
)
"""Of these, operations whose kernels compute in float32."""

WIDEST_MAP = 16384
"""Keys of an attention map whose rows fit the registers of a program."""


def supports(op: str, /, **facts: Any) -> Literal[True] | str:
    """True when a Triton kernel can serve an operation, else the reason why the torch path does.

    Free of side effects apart from importing triton when it is installed.

    Args:
        op: name of an operation, such as ``"quantize"``.
        facts: what is known of the call: ``device`` (name or torch.device), ``dtype`` (of the values), ``order`` (of
            a Hadamard transform), ``width`` (keys of an attention map).
    """
    if op not in KERNELS:
        return f"{op} has no Triton kernel: torch serves it"
    if not _installed():
        return "triton is not installed: torch serves every operation"
    device = facts.get("device")
    if device is not None:
        kind = torch.device(device).type
        if kind not in ("cuda", "cpu"):
            return f"Triton kernels run on cuda, not on {kind}"
        if kind == "cpu" and not _interpreted():
            return "Triton kernels run on cpu only in its interpreter: set TRITON_INTERPRET=1 before triton is imported"
    dtype = facts.get("dtype")
    if dtype is not None and dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return f"no Triton kernel for values of {dtype}"
    if dtype == torch.float64 and op in NARROW:
        return f"the kernel of {op} computes in float32: torch serves float64"
    if op == "attention_map_loss" and facts.get("width", 0) > WIDEST_MAP:
        return f"a row of {facts['width']} keys is too large for one program: torch serves it"
    if op == "hadamard_transform":
        return _transformable(dtype, facts.get("order"))
    return True


def _transformable(dtype: torch.dtype | None, order: int | None) -> Literal[True] | str:
    """Whether a row fits the registers of a program, and its table a product of float32."""
    if dtype == torch.float64:
        return "Hadamard transforms of float64 are matrix products: torch serves them"
    if order is not None:
        odd, twos = split(order)
        if odd > 64 or order > 1 << 15:
            return f"a row of {order} = {odd} x {twos} is too large for one program: torch serves it"
    return True


def split(order: int) -> tuple[int, int]:
    """(K, 2^t) of an order, K the product of all other factors."""
    parts = factors(order)
    twos = parts[-1] if parts[-1] & (parts[-1] - 1) == 0 else 1
    return order // twos, twos


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _interpreted() -> bool:
    """Whether kernels of this process run in the interpreter, which triton decides when they are defined."""
    if os.environ.get("TRITON_INTERPRET", "0").lower() not in ("1", "true", "on", "yes", "y"):
        return False
    return bool(launcher().INTERPRETED)


def launcher() -> ModuleType:
    """The module that launches the kernels; imports triton."""
    return importlib.import_module("lowbit.accel.torch_cuda.triton.kernels")
