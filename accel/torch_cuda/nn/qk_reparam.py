"""Query-key reparameterisation (QKR) as a module; :mod:`lowbit.reference.qk_reparam` has the equations."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowbit.accel.common.oscillation import check_heads, check_range
from lowbit.accel.common.refusals import check_choice, check_matrix, check_whole
from lowbit.reference.types import BIASES, FROZEN_SPACES, Biases, FrozenSpace

from .. import operations as ops
from .autograd import applied, unless_overflown
from .statsq import statsq_values

__all__ = ["QKRAttention"]


class _Product(torch.autograd.Function):
    """The stacked product (O.17), its gradient for the latent weights by (O.19) and (O.20).

    Products of halves are answered in float32, for StatsQ to see them before they are rounded.
    """

    @staticmethod
    def forward(ctx: Any, w_q: Tensor, w_k: Tensor, layer: QKRAttention) -> Tensor:
        product = ops.qkr_weight(w_q, w_k, heads=layer.heads)
        ctx.options = {"heads": layer.heads, "freeze": layer.freeze}
        ctx.save_for_backward(w_q, w_k, layer.active(product))
        return product

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        w_q, w_k, active = ctx.saved_tensors
        return *unless_overflown(lambda: ops.qkr_grad(w_q, w_k, upstream[0], active, **ctx.options), w_q, w_k), None


class QKRAttention(nn.Module):
    """Self-attention in which the product of query and key weights is quantized, and both are trained.  [O-8, O-9]

    StatsQ takes the stacked product W_qᵀW_k, one scale per head and feature of the query, and the value weight. The
    straight-through gradient of the product goes to the latent query and key weights alone. What quantizes tensors of
    the forward pass is given as modules, such as :class:`~lowbit.nn.LearnedStep`, shape to shape. A key bias adds the
    same to every score of a query, so that there is none. Masks, dropout and the output projection are left to others.

    Attributes:
        w_q, w_k: parameters, (H·d, C), latent.
        w_v: parameter, (D, C), latent.
        b_q, b_v: parameters, (H·d,) and (D,), optional.
        boundary_range: of annealing in the space of products; None for none. May be set between steps.

    Args:
        width: C, of the input.
        heads: H.
        bits: of StatsQ on product and value weight, 1 to 16; None leaves both as they are.
        head_width: d; None for C / H.
        value_width: D, which H divides; None for C.
        bias: whether there are biases.
        biases: "kept", or "dropped" to ignore ``b_q``, as the published conversion does.
        boundary_range: of the mask, 0 to ½ in steps of the grid.
        freeze: "product", frozen products pass no gradient; "none", they do, as in the published code.
        input, keys, attention, value: modules on x (B, N, C), keys (B, N·H, C), the softmax (B, H, N, N) and values
            (B, N, D); None for nothing.
        device, dtype: of the parameters.

    Raises:
        SpecError: O-1, O-6, O-8 and O-9 for shapes and options.
    """

    w_q: nn.Parameter
    w_k: nn.Parameter
    w_v: nn.Parameter
    b_q: nn.Parameter | None
    b_v: nn.Parameter | None

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        bits: int | None = None,
        head_width: int | None = None,
        value_width: int | None = None,
        bias: bool = True,
        biases: Biases = "kept",
        boundary_range: float | None = None,
        freeze: FrozenSpace = "product",
        input: nn.Module | None = None,
        keys: nn.Module | None = None,
        attention: nn.Module | None = None,
        value: nn.Module | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_whole("O-8", "heads", heads, 1)
        rows, out = heads * head_width if head_width is not None else width, value_width or width
        check_heads("O-8", "w_q and w_k", rows, heads)
        check_heads("O-9", "w_v", out, heads)
        if bits is not None:
            check_whole("O-1", "bits", bits, 1, 16)
        if boundary_range is not None:
            check_range("O-6", boundary_range)
        check_choice("O-9", "biases", biases, BIASES)
        check_choice("O-8", "freeze", freeze, FROZEN_SPACES)
        self.width, self.heads, self.bits, self.boundary_range = width, heads, bits, boundary_range
        self.biases: Biases = biases
        self.freeze: FrozenSpace = freeze
        for name, size in (("w_q", rows), ("w_k", rows), ("w_v", out)):
            weight = torch.empty((size, width), device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(nn.init.kaiming_uniform_(weight, a=math.sqrt(5))))
        for name, size in (("b_q", rows), ("b_v", out)):
            zeros = nn.Parameter(torch.zeros(size, device=device, dtype=dtype)) if bias else None
            self.register_parameter(name, zeros)
        self.input, self.keys, self.attention, self.value = (
            nn.Identity() if m is None else m for m in (input, keys, attention, value)
        )

    @classmethod
    def from_linears(cls, query: nn.Linear, key: nn.Linear, value: nn.Linear, /, *, heads: int, **options: Any) -> Self:
        """A layer with copies of the weights of three projections, and of the biases of query and value.

        Without quantizers it computes the attention that they are of; the bias of ``key`` changes none.
        """
        weight, biased = query.weight, query.bias is not None or value.bias is not None
        check_heads("O-8", "w_q and w_k", query.out_features, heads)
        check_matrix("O-8", "w_k", key.weight.shape, tuple(weight.shape))
        check_matrix("O-9", "w_v", value.weight.shape, (None, query.in_features))
        shape = {"head_width": query.out_features // heads, "value_width": value.out_features}
        where = {"device": weight.device, "dtype": weight.dtype}
        layer = cls(query.in_features, heads, **{"bias": biased, **shape, **where, **options})
        given = {"w_q": weight, "w_k": key.weight, "w_v": value.weight, "b_q": query.bias, "b_v": value.bias}
        with torch.no_grad():
            for name, source in given.items():
                if source is not None:
                    getattr(layer, name).copy_(source)
        return layer

    def active(self, product: Tensor) -> Tensor | None:
        """What annealing still trains of a product (H·C, C); None for all."""
        if self.boundary_range is None or self.bits is None:
            return None
        return ops.cga_mask(product, bits=self.bits, boundary_range=self.boundary_range)

    def product(self) -> Tensor:
        """The quantized product (H·C, C), float32 at least, with a gradient for ``w_q`` and ``w_k``."""
        product = applied(_Product, self.w_q, self.w_k, self)
        return product if self.bits is None else statsq_values(product, self.bits)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) → (B, N, D), dtype of ``x``, or that of autocast where it is on."""
        (B, N, C), H = x.shape, self.heads
        seen = self.input(x)
        keys = self.keys((seen @ self.product().to(seen.dtype).mT).reshape(B, N * H, C)).reshape(B, N, H, C)
        scores = seen[:, None] @ keys.permute(0, 2, 3, 1)
        d = self.w_q.shape[0] // H
        if self.b_q is not None and self.biases == "kept":
            along = self.b_q.reshape(H, 1, d) @ self.w_k.reshape(H, d, C)  # (H, 1, C): c of (O.22)
            scores = scores + along.to(seen.dtype) @ seen[:, None].mT
        attention = self.attention(torch.softmax(scores / math.sqrt(max(d, 1)), -1).to(seen.dtype))
        weight = self.w_v if self.bits is None else statsq_values(self.w_v, self.bits)
        values = self.value(functional.linear(seen, weight, self.b_v))
        context: Tensor = attention @ values.reshape(B, N, H, values.shape[-1] // H).transpose(1, 2)
        return context.transpose(1, 2).flatten(2)

    def extra_repr(self) -> str:
        return (
            f"width={self.width}, heads={self.heads}, bits={self.bits}, biases={self.biases}, "
            f"boundary_range={self.boundary_range}, freeze={self.freeze}"
        )
