"""Triton kernels for hot paths on CUDA, one file a chapter, and the gate that says when they apply.

Importing this package does not import triton; the files of kernels do. The kernels run on CUDA tensors, and on CPU
tensors under Triton's interpreter, when ``TRITON_INTERPRET=1`` is set before triton is imported.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["KERNELS", "Gate", "anything", "launcher", "narrow", "supports"]

Gate = Callable[[str, Mapping[str, Any]], Literal[True] | str]
"""What a kernel asks of a call: from the name of the operation and the facts, True or the reason against."""

KERNELS: dict[str, Gate] = {}
"""Operations with a kernel; every chapter enters its own, since a table must be there where triton is not."""


def anything(op: str, facts: Mapping[str, Any], /) -> Literal[True]:
    """The gate of a kernel that takes values of any floating dtype."""
    return True


def narrow(op: str, facts: Mapping[str, Any], /) -> Literal[True] | str:
    """The gate of a kernel that computes in float32."""
    wide = facts.get("dtype") == torch.float64
    return f"the kernel of {op} computes in float32: torch serves float64" if wide else True


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
    return KERNELS[op](op, facts)


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _interpreted() -> bool:
    """Whether kernels of this process run in the interpreter, which triton decides when they are defined."""
    if os.environ.get("TRITON_INTERPRET", "0").lower() not in ("1", "true", "on", "yes", "y"):
        return False
    return bool(launcher("common").INTERPRETED)


def launcher(chapter: str) -> ModuleType:
    """The module that launches the kernels of a chapter; imports triton."""
    return importlib.import_module(f"{__name__}.{chapter}")
