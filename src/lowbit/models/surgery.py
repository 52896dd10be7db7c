"""Changing a model in place: the values of one parameter, a patch beside a linear layer, another forward."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

__all__ = ["add_patch", "aligned", "patched", "put", "replaced_forwards"]


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Values on a 64-byte boundary: elsewhere a matrix library may sum in another order."""
    return (
        tensor
        if tensor.data_ptr() % 64 == 0 and tensor.is_contiguous()
        else tensor.clone(memory_format=torch.contiguous_format)
    )


def put(model: nn.Module, name: str, tensor: torch.Tensor | None) -> None:
    """Set a parameter or buffer by its full name; None takes its values away."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    is_parameter = leaf in module._parameters
    if tensor is None:
        old = module._parameters[leaf] if is_parameter else module._buffers[leaf]
        assert old is not None
        tensor = torch.empty_like(old, device="meta")
    if is_parameter:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[leaf] = tensor


def add_patch(linear: nn.Module, b: torch.Tensor, a: torch.Tensor, device: torch.device, dtype: torch.dtype) -> Any:
    """Let ``linear`` compute ``W x + B (A x)``, B (out, r), A (r, in); returns the handle whose ``remove`` ends it."""
    b_t = b.to(device=device, dtype=dtype).T.contiguous()
    a_t = a.to(device=device, dtype=dtype).T.contiguous()

    def hook(_: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        patch: torch.Tensor = (args[0] @ a_t) @ b_t
        return output + patch

    return linear.register_forward_hook(hook)


def patched(stack: torch.Tensor, b: torch.Tensor, a: torch.Tensor, *, transposed: bool) -> torch.Tensor:
    """Weights (experts, out, in) plus B A, expert by expert, B (experts, out, r), A (experts, r, in), in their type.

    ``transposed``: the weights are (experts, in, out).
    """
    b, a = b.to(stack), a.to(stack)
    return torch.baddbmm(stack, a.mT, b.mT) if transposed else torch.baddbmm(stack, b, a)


@contextlib.contextmanager
def replaced_forwards(modules: Sequence[nn.Module], make: Callable[[int], Callable[..., Any]]) -> Iterator[None]:
    """The forward of module number ``index`` replaced by ``make(index)`` while the block runs."""
    try:
        for index, module in enumerate(modules):
            module.__dict__["forward"] = make(index)
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)
