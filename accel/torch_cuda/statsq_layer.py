"""StatsQ in training: a linear layer, its weight quantized on the way forward and passed through on the way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .arrays import full_precision
from .backend import TorchBackend
from .statsq import check_weight, quantized, quantized_by_kernel

__all__ = ["StatsQLinear"]

_OPS = TorchBackend()  # kernels="auto": Triton for weights that live on CUDA


class _StraightThrough(torch.autograd.Function):
    """Values of StatsQ; the gradient as it comes, and nothing saved for it."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, bits: int) -> Tensor:
        serve = quantized_by_kernel if _OPS.supports("statsq", device=w.device, dtype=w.dtype) is True else quantized
        with full_precision():
            values, _, _ = serve(check_weight("O-1", w, bits), 1 << (bits - 1), "O-1", with_codes=False)
        return values.to(w.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0], None


class StatsQLinear(nn.Linear):
    """``y = x Ŵᵀ + b`` with Ŵ the StatsQ values of a latent weight that is trained.  [O-1, O-3]

    Quantized in float32 at least, whatever the weight's dtype, and rounded to it once. The backward pass is the
    published straight-through estimate: the gradient of Ŵ is that of the weight, clipped weights included.

    Args:
        in_features, out_features, bias: as ``nn.Linear``.
        bits: 1 to 16.
    """

    def __init__(self, in_features: int, out_features: int, *, bits: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        check_weight("O-1", self.weight, bits)
        self.bits = bits

    def quantized_weight(self) -> Tensor:
        """Ŵ, (out, in), with a gradient for the weight."""
        values: Tensor = _StraightThrough.apply(self.weight, self.bits)  # type: ignore[no-untyped-call]
        return values

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) → (..., out)."""
        return functional.linear(input, self.quantized_weight(), self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}"
