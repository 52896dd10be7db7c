"""StatsQ in training: a linear layer, its weight quantized on the way forward and passed through on the way back."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..arrays import full_precision
from ..policy import by_kernel
from ..statsq import check_weight, quantized, quantized_by_kernel
from .autograd import applied

__all__ = ["StatsQLinear", "statsq_values"]


class _StraightThrough(torch.autograd.Function):
    """Values of StatsQ; the gradient as it comes, and nothing saved for it."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, bits: int) -> Tensor:
        serve = quantized_by_kernel if by_kernel("statsq", w) else quantized
        with full_precision():
            values, _, _ = serve(check_weight("O-1", w, bits), 1 << (bits - 1), "O-1", with_codes=False)
        return values.to(w.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0], None


def statsq_values(w: Tensor, bits: int) -> Tensor:
    """StatsQ values of a latent weight (..., m, k), with the straight-through gradient.  [O-1, O-3]"""
    return applied(_StraightThrough, w, bits)


class StatsQLinear(nn.Linear):
    """``y = x Ŵᵀ + b`` with Ŵ the StatsQ values of a latent weight that is trained.  [O-1, O-3]

    Quantized in float32 at least, whatever the weight's dtype, and rounded to it once. The backward pass is the
    published straight-through estimate: the gradient of Ŵ is that of the weight, clipped weights included.

    Args:
        in_features, out_features, bias: as ``nn.Linear``.
        bits: 1 to 16.
        where: device and dtype, as ``nn.Linear``.
    """

    def __init__(self, in_features: int, out_features: int, *, bits: int, bias: bool = True, **where: Any) -> None:
        super().__init__(in_features, out_features, bias, **where)
        check_weight("O-1", self.weight, bits)
        self.bits = bits

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, bits: int) -> Self:
        """A layer whose latent weight is a copy of the one of ``linear``."""
        weight, bias = linear.weight, linear.bias is not None
        where: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        layer = cls(linear.in_features, linear.out_features, bits=bits, bias=bias, **where)
        layer.load_state_dict(linear.state_dict())
        return layer

    def quantized_weight(self) -> Tensor:
        """Ŵ, (out, in), with a gradient for the weight."""
        return statsq_values(self.weight, self.bits)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) → (..., out)."""
        return functional.linear(input, self.quantized_weight(), self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}"
