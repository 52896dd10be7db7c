"""A layer behind the online Hadamard transform."""

from __future__ import annotations

from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from lowbit.accel.common.uniform import check_bits
from lowbit.reference.errors import SpecError
from lowbit.reference.types import Scheme

from .. import operations as ops
from .autograd import applied, unless_overflown

__all__ = ["RotatedLinear"]


class _Transform(torch.autograd.Function):
    """The Hadamard transform with its gradient, which is the transposed transform."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block_size: int | None) -> Tensor:
        ctx.block_size = block_size
        return ops.hadamard_transform(x, block_size=block_size).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        size = ctx.block_size
        return *unless_overflown(lambda: (ops.hadamard_transform(grad, block_size=size, transpose=True),), grad), None


class RotatedLinear(nn.Module):
    """``y = base(Q(H x / √n))``: a layer behind the online transform of R4, its inputs quantized where asked for.

    The weight of the base must have been rotated alike: :meth:`from_linear` does it, and so does rotate_block for a
    whole block. Without its transform such a layer computes noise and raises no error, which is why both are one module
    here, and why the width of the transform is part of the state dict. Gradients flow through the transform, and
    straight through the quantizer. Adapters inside ``base`` see rotated inputs, as in RoLoRA.

    Args:
        base: any module from (..., in) to (..., out).
        block_size: columns that are transformed together; None for all of them.
        activation_bits: None for no quantizer, else the dynamic one of H-9, token by token.
        scheme: of the quantizer.
        clip_ratio: of the quantizer.
    """

    def __init__(
        self,
        base: nn.Module,
        *,
        block_size: int | None = None,
        activation_bits: int | None = None,
        scheme: Scheme = "symmetric",
        clip_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        if activation_bits is not None:
            check_bits(activation_bits, scheme)
        self.base, self.block_size = base, block_size
        self.activation_bits, self.clip_ratio = activation_bits, clip_ratio
        self.scheme: Scheme = scheme

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, block_size: int | None = None, **options: Any) -> Self:
        """The layer that computes what ``linear`` does, its weight rotated in float64 and rounded once."""
        weight = linear.weight.detach()
        base = nn.Linear(
            linear.in_features, linear.out_features, linear.bias is not None, device=weight.device, dtype=weight.dtype
        )
        with torch.no_grad():
            base.weight.copy_(ops.hadamard_transform(weight.to(torch.float64), block_size=block_size))
            if linear.bias is not None:
                base.bias.copy_(linear.bias)
        return cls(base, block_size=block_size, **options)

    def get_extra_state(self) -> Tensor:
        """The width of the transform, 0 for all columns: a weight and its transform belong together."""
        return torch.tensor(self.block_size or 0, device="cpu")

    def set_extra_state(self, state: Any) -> None:
        """Refuse a weight that was rotated otherwise.

        Raises:
            SpecError: H-2.
        """
        if int(state) != (self.block_size or 0):
            raise SpecError("H-2", f"weight rotated in blocks of {int(state)}, layer made for {self.block_size or 0}")

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) → (..., out)."""
        turned = applied(_Transform, x, self.block_size)
        if self.activation_bits is not None:
            found = ops.quantize_activations(
                turned, bits=self.activation_bits, scheme=self.scheme, clip_ratio=self.clip_ratio
            )
            turned = turned + (found.values.to(turned.dtype) - turned).detach()
        return cast(Tensor, self.base(turned))

    def extra_repr(self) -> str:
        return f"block_size={self.block_size}, activation_bits={self.activation_bits}"
