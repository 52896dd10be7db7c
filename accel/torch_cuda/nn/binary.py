"""Linear layers of binary codes: one that serves them, and AlphaTuning, which trains one scale per row and group."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowbit.accel.common.binary_coding import check_planes
from lowbit.reference.errors import SpecError
from lowbit.reference.types import BinaryCode

from .. import operations as ops
from ..arrays import row_chunks
from ..binary_coding import bcq_unpack, dense_weight
from ..scale_tuning import signed_sums
from .autograd import applied, without_autocast

__all__ = ["BCQLinear", "ScaleTunedLinear"]


class BCQLinear(nn.Module):
    """``y = x Ŵᵀ + b`` with Ŵ = offset + Σ_i scale_i · b_i kept as packed bit planes.

    Without gradients the product is that of B-10: tables or a Triton kernel for few inputs, a dense product for many.
    With gradients the weight is dequantized for the call, and they flow to ``x`` and to whichever of scale and offset
    is set to be trained. The signs are never trained.

    Attributes:
        planes: buffer, int32, (ceil(in / 32), q, out); see B-8.
        scale: parameter, float, (G, q, out); plane 0 has the largest scale of an alternating fit. It and the others
            have ``requires_grad=False`` at first.
        offset: parameter, float, (G, out), optional.
        bias: parameter, float, (out,), optional.

    Args:
        in_features, out_features: k and m.
        bits: planes, 1 to 8.
        groups: G, which divides ``in_features``.
        offset, bias: whether there is one.
        dtype: of the parameters.
        device: where everything lives.
    """

    planes: Tensor
    scale: nn.Parameter
    offset: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: int,
        groups: int = 1,
        offset: bool = False,
        bias: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_planes("B-1", "bits", bits)
        if groups < 1 or in_features % groups:
            raise SpecError("B-1", f"{groups} groups do not divide axis length {in_features}")
        self.in_features, self.out_features, self.bits = in_features, out_features, bits

        def parameter(*shape: int, there: bool = True) -> nn.Parameter | None:
            value = torch.zeros(shape, dtype=dtype, device=device)
            return nn.Parameter(value, requires_grad=False) if there else None

        words = -(-in_features // 32)
        self.register_buffer("planes", torch.zeros((words, bits, out_features), dtype=torch.int32, device=device))
        self.register_parameter("scale", parameter(groups, bits, out_features))
        self.register_parameter("offset", parameter(groups, out_features, there=offset))
        self.register_parameter("bias", parameter(out_features, there=bias))

    @classmethod
    def from_code(cls, code: BinaryCode[Tensor], *, bias: Tensor | None = None) -> Self:
        """A layer of the result of :func:`~lowbit.reference.binary_coding.bcq`, or of an imported uniform grid."""
        m, k = code.codes.shape
        packed = ops.bcq_pack(code.codes, code.scale, code.offset)
        groups, bits, _ = packed.scale.shape
        layer = cls(
            k,
            m,
            bits=bits,
            groups=groups,
            offset=packed.offset is not None,
            bias=bias is not None,
            dtype=packed.scale.dtype,
            device=packed.planes.device,
        )
        layer.planes = packed.planes
        layer.scale.data = packed.scale
        if layer.offset is not None and packed.offset is not None:
            layer.offset.data = packed.offset
        if layer.bias is not None and bias is not None:
            layer.bias.data = bias.detach().clone()
        return layer

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, bits: int, **options: Any) -> Self:
        """A layer with the binary code of the weight of ``linear``; options are those of bcq."""
        return cls.from_code(ops.bcq(linear.weight.detach(), bits=bits, **options), bias=linear.bias)

    def weight(self) -> Tensor:
        """Ŵ, (out, in), dtype of ``scale``; differentiable in scale and offset."""
        return dense_weight(self.planes, self.scale, self.offset, self.in_features).t()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) → (..., out), dtype of ``x``, or that of autocast where it is on."""
        return without_autocast(x, self._apply_to)

    def _apply_to(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        learned = any(p is not None and p.requires_grad for p in (self.scale, self.offset)) or x.requires_grad
        if torch.is_grad_enabled() and learned:
            return functional.linear(x, self.weight().to(x.dtype), bias)
        dtype = torch.promote_types(torch.promote_types(x.dtype, self.scale.dtype), torch.float32)
        offset = None if self.offset is None else self.offset.detach().to(dtype)
        rows = x.detach().reshape(-1, self.in_features).to(dtype)
        y = ops.bcq_product_checked(rows, self.planes, self.scale.detach().to(dtype), offset)
        y = y.to(x.dtype).view(*x.shape[:-1], self.out_features)
        return y if bias is None else y + bias

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}, "
            f"groups={self.scale.shape[0]}, offset={self.offset is not None}, bias={self.bias is not None}"
        )


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

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, bits: int, **options: Any) -> Self:
        """A layer over the binary code of the weight of ``linear``; options are those of bcq."""
        return cls(BCQLinear.from_linear(linear, bits=bits, **options))

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
        """(..., in) → (..., out), dtype of ``x``, or that of autocast where it is on; computed in float32 at least."""
        return without_autocast(x, self._apply_to)

    def _apply_to(self, x: Tensor) -> Tensor:
        base = self.base
        dtype = torch.promote_types(torch.promote_types(x.dtype, self.alpha.dtype), torch.float32)
        rows, alpha = x.reshape(-1, base.in_features).to(dtype), self.alpha.to(dtype)
        if torch.is_grad_enabled() and (x.requires_grad or self.alpha.requires_grad):
            y = applied(_Product, rows, alpha, self)
        else:
            offset = None if base.offset is None else base.offset.detach().to(dtype)
            y = ops.bcq_product_checked(rows.detach(), base.planes, self.scale(alpha.detach()), offset)
        y = y.to(x.dtype).view(*x.shape[:-1], base.out_features)
        return y if base.bias is None else y + base.bias.to(x.dtype)

    def extra_repr(self) -> str:
        return f"trainable={self.alpha.numel()}"
