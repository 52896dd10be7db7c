"""AlphaTuning as a module: a binary-coded layer in which one scale per row and group is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import backend
from .arrays import row_chunks
from .binary_coding import bcq_unpack, dense_weight
from .scale_tuning import signed_sums

if TYPE_CHECKING:
    from .layers import BCQLinear

__all__ = ["ScaleTunedLinear"]

_OPS = backend.TorchBackend()


class _Product(torch.autograd.Function):
    """y = x Ŵᵀ with the gradient of the first scales by (U.6), the gradient of the weight only in panels of rows.

    Nothing but x is saved; the weight is put together again for the gradient of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, layer: ScaleTunedLinear) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x, alpha)
        return x @ layer.dense(alpha)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, alpha = ctx.saved_tensors
        (delta,) = upstream
        to_x, to_alpha = ctx.needs_input_grad[:2]
        slope = delta @ ctx.layer.dense(alpha).t() if to_x else None
        return slope, ctx.layer.first_slopes(x, delta) if to_alpha else None, None


class ScaleTunedLinear(nn.Module):
    """``y = x Ŵᵀ + b`` in which the scale of plane 0 is a parameter and everything else is frozen.  [U-1, U-3]

    The one parameter is what a task owns: save it, and load another to change the task. It starts as the scale of the
    base, which stays as it was: the α⁰ that weight decay should pull to, if any.

    Attributes:
        alpha: parameter, float32 or wider, (G, out).

    Args:
        base: a binary-coded layer; its parameters are frozen.
    """

    def __init__(self, base: BCQLinear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        first = base.scale.detach()[:, 0]
        self.alpha = nn.Parameter(first.to(torch.promote_types(first.dtype, torch.float32), copy=True))

    def scale(self, alpha: Tensor | None = None) -> Tensor:
        """Scales (G, q, out) of the task."""
        first = self.alpha if alpha is None else alpha
        return torch.cat([first[:, None], self.base.scale.detach()[:, 1:].to(first.dtype)], dim=1)

    def dense(self, alpha: Tensor) -> Tensor:
        """Ŵᵀ, (in, out), outside of any graph."""
        offset = None if self.base.offset is None else self.base.offset.detach().to(alpha.dtype)
        return dense_weight(self.base.planes, self.scale(alpha.detach()), offset, self.base.in_features)

    def first_slopes(self, x: Tensor, delta: Tensor) -> Tensor:
        """∂L/∂α, (G, out): signed sums of δᵀx with the signs of plane 0."""
        groups, k = self.alpha.shape[0], self.base.in_features
        planes, scale = self.base.planes[:, :1].contiguous(), self.base.scale.detach()[:, :1].contiguous()
        codes = bcq_unpack(planes, scale, None, length=k).codes
        slopes = torch.empty((self.base.out_features, groups), dtype=x.dtype, device=x.device)
        for rows in row_chunks(self.base.out_features, k, x.device, elements=1 << 22):
            slopes[rows] = signed_sums(delta.t()[rows] @ x, codes[rows], groups, 1)[..., 0]
        return slopes.t()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) → (..., out), dtype of ``x``."""
        base = self.base
        dtype = torch.promote_types(x.dtype, self.alpha.dtype)
        rows, alpha = x.reshape(-1, base.in_features).to(dtype), self.alpha.to(dtype)
        if torch.is_grad_enabled() and (x.requires_grad or self.alpha.requires_grad):
            y: Tensor = _Product.apply(rows, alpha, self)  # type: ignore[no-untyped-call]
        else:
            offset = None if base.offset is None else base.offset.detach().to(dtype)
            y = _OPS.bcq_product_checked(rows.detach(), base.planes, self.scale(alpha.detach()), offset)
        y = y.to(x.dtype).view(*x.shape[:-1], base.out_features)
        return y if base.bias is None else y + base.bias.to(x.dtype)

    def extra_repr(self) -> str:
        return f"trainable={self.alpha.numel()}"
