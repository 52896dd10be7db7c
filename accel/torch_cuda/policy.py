"""What a running operation goes by: where arrays made from nothing live, and whether kernels serve it.

A backend object sets both for the length of each of its operations. They are a context variable, so that threads,
tasks and other objects keep their own; where nothing is set, arrays live on the CPU and kernels serve CUDA tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

from . import triton

__all__ = ["Kernels", "Policy", "by_kernel", "device", "under"]

P = ParamSpec("P")
R = TypeVar("R")

Kernels = Literal["auto", "torch", "triton"]


class Policy:
    """A device and a choice of kernels.

    Attributes:
        device: of arrays that are made from nothing.
        kernels: ``"auto"``, Triton on CUDA tensors where :meth:`supports` allows; ``"torch"``, never; ``"triton"``,
            wherever a kernel exists, on CPU tensors too under Triton's interpreter.
    """

    def __init__(self, device: str = "cpu", kernels: Kernels = "auto") -> None:
        self.device = device
        self.kernels = kernels

    def supports(self, op: str, /, **facts: Any) -> Literal[True] | str:
        """True when a Triton kernel would serve ``op``, else the reason why torch does.

        Args:
            op: name of an operation.
            facts: ``device`` (default: the backend's), ``dtype`` of the values, and others that a kernel asks for.
        """
        if self.kernels == "torch":
            return "kernels='torch' was asked for"
        device = torch.device(facts.setdefault("device", self.device))
        if self.kernels == "auto" and op in triton.KERNELS and device.type != "cuda":
            return f"kernels='auto' uses Triton on cuda only, not on {device.type}"
        return triton.supports(op, **facts)


_current: ContextVar[Policy] = ContextVar("lowbit_torch_policy", default=Policy())  # noqa: B039 (nobody changes it)


def device() -> torch.device:
    """Where the running operation puts an array that it makes from nothing."""
    return torch.device(_current.get().device)


def by_kernel(op: str, *values: Tensor, **facts: Any) -> bool:
    """Whether a Triton kernel serves these values, by the device of the first and the widest floating dtype."""
    policy, place = _current.get(), values[0].device
    if policy.kernels == "torch" or (policy.kernels == "auto" and place.type != "cuda"):
        return False  # what supports() says too; a reason that nobody reads is not put together
    floats = [v.dtype for v in values if v.is_floating_point()]
    if floats:
        facts["dtype"] = torch.float64 if torch.float64 in floats else floats[0]
    return policy.supports(op, device=place, **facts) is True


def under(policy: Policy, function: Callable[P, R]) -> Callable[P, R]:
    """The function, run under a policy."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        token = _current.set(policy)
        try:
            return function(*args, **kwargs)
        finally:
            _current.reset(token)

    return run
