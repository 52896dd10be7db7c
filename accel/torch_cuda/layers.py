"""Modules around compressed weights: packed grids or binary codes, a low-rank patch, a transform before a layer."""

from __future__ import annotations

from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowbit.accel.common.binary_coding import check_planes
from lowbit.accel.common.uniform import check_bits
from lowbit.reference.errors import SpecError
from lowbit.reference.types import BinaryCode, LowRank, QuantizedWeight, Scheme

from . import operations as _OPS
from .binary_coding import dense_weight
from .dora_layer import DoRALinear
from .fake_quant_layers import FakeMinMax, FakeTernary, LearnedStep
from .packing import word_count
from .scale_layer import ScaleTunedLinear
from .statsq_layer import StatsQLinear
from .table_layer import TableActivation

__all__ = [
    "BCQLinear",
    "DoRALinear",
    "FakeMinMax",
    "FakeTernary",
    "LearnedStep",
    "LowRankLinear",
    "QuantLinear",
    "RotatedLinear",
    "ScaleTunedLinear",
    "StatsQLinear",
    "TableActivation",
]


class QuantLinear(nn.Module):
    """``y = x Ŵᵀ + b`` with Ŵ = scale · (code − zero_point) kept as packed codes; the forward pass dequantizes.

    Everything is a buffer, in the state dict and not trained.

    Attributes:
        words: int32, (out, ceil(in * bits / 32)), dense layout of Q-6. Codes of symmetric schemes are stored with
            2**(bits-1) added, so that they are unsigned.
        scale: float, (out, G).
        zero_point: int32, (out, G); 0 for symmetric schemes.
        group_index: int32, (in,), only for grids whose groups are not runs of consecutive columns (act-order).
        bias: float, (out,), optional.

    The product is computed in the dtype of ``x``; weights are dequantized in the dtype of ``scale`` (at least
    float32) and rounded to it once. Gradients flow to ``x``, not to the weight.

    Args:
        in_features, out_features: k and m.
        bits: 1 to 8, symmetric schemes from 2.
        scheme: code range; see :func:`~lowbit.accel.torch_cuda.quantize`.
        groups: G, which divides ``in_features`` unless ``scattered``.
        scattered: columns are assigned to groups by ``group_index``.
        bias: whether there is a bias.
        scale_dtype: dtype of ``scale``.
        device: where the buffers live.
    """

    words: Tensor
    scale: Tensor
    zero_point: Tensor
    group_index: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: int,
        scheme: Scheme = "asymmetric",
        groups: int = 1,
        scattered: bool = False,
        bias: bool = False,
        scale_dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_bits(bits, scheme)
        if groups < 1 or (not scattered and in_features % groups):
            raise SpecError("Q-2", f"{groups} groups do not divide axis length {in_features}")
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.scheme = bits, scheme
        self.offset = 0 if scheme == "asymmetric" else 2 ** (bits - 1)
        width = word_count(in_features, bits, "dense")
        grid = (out_features, groups)
        self.register_buffer("words", torch.zeros((out_features, width), dtype=torch.int32, device=device))
        self.register_buffer("scale", torch.ones(grid, dtype=scale_dtype, device=device))
        self.register_buffer("zero_point", torch.zeros(grid, dtype=torch.int32, device=device))
        index = torch.zeros(in_features, dtype=torch.int32, device=device) if scattered else None
        self.register_buffer("group_index", index)
        self.register_buffer("bias", torch.zeros(out_features, dtype=scale_dtype, device=device) if bias else None)

    @classmethod
    def from_quantized(
        cls, weight: QuantizedWeight[Tensor], *, bits: int, scheme: Scheme = "asymmetric", bias: Tensor | None = None
    ) -> Self:
        """A layer that holds the result of GPTQ (or of fit_grid and quantize put in the same tuple)."""
        m, k = weight.codes.shape
        groups = weight.scale.shape[1]
        index = weight.group_index
        runs = torch.arange(k, device=index.device, dtype=index.dtype) // max(k // groups if groups else 1, 1)
        scattered = k % max(groups, 1) != 0 or not torch.equal(index, runs)
        layer = cls(
            k,
            m,
            bits=bits,
            scheme=scheme,
            groups=groups,
            scattered=scattered,
            bias=bias is not None,
            scale_dtype=weight.scale.dtype,
            device=weight.codes.device,
        )
        layer.words = _OPS.pack(weight.codes + layer.offset, bits=bits)
        layer.scale, layer.zero_point = weight.scale.clone(), weight.zero_point.clone()
        if scattered:
            layer.group_index = index.clone()
        if bias is not None:
            layer.bias = bias.detach().clone()
        return layer

    def weight(self) -> Tensor:
        """Ŵ, (out, in), dtype of ``scale`` but at least float32."""
        scale, zero = self.scale, self.zero_point
        if self.group_index is not None:
            columns = self.group_index.long()
            scale, zero = scale[:, columns], zero[:, columns]
        return _OPS.dequantize_packed(
            self.words, scale, zero, bits=self.bits, length=self.in_features, offset=self.offset
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) → (..., out), dtype of ``x``."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, self.weight().to(x.dtype), bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}, "
            f"scheme={self.scheme!r}, groups={self.scale.shape[1]}, bias={self.bias is not None}"
        )


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
        """A layer that holds the result of :func:`~lowbit.accel.torch_cuda.bcq`, or of an imported uniform grid."""
        m, k = code.codes.shape
        packed = _OPS.bcq_pack(code.codes, code.scale, code.offset)
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

    def weight(self) -> Tensor:
        """Ŵ, (out, in), dtype of ``scale``; differentiable in scale and offset."""
        return dense_weight(self.planes, self.scale, self.offset, self.in_features).t()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) → (..., out), dtype of ``x``."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        learned = any(p is not None and p.requires_grad for p in (self.scale, self.offset)) or x.requires_grad
        if torch.is_grad_enabled() and learned:
            return functional.linear(x, self.weight().to(x.dtype), bias)
        dtype = torch.promote_types(torch.promote_types(x.dtype, self.scale.dtype), torch.float32)
        offset = None if self.offset is None else self.offset.detach().to(dtype)
        rows = x.detach().reshape(-1, self.in_features).to(dtype)
        y = _OPS.bcq_product_checked(rows, self.planes, self.scale.detach().to(dtype), offset)
        y = y.to(x.dtype).view(*x.shape[:-1], self.out_features)
        return y if bias is None else y + bias

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}, "
            f"groups={self.scale.shape[0]}, offset={self.offset is not None}, bias={self.bias is not None}"
        )


class LowRankLinear(nn.Module):
    """``y = base(x) + (x Aᵀ) Bᵀ``: a layer with a rank-r patch beside it, never merged.

    The base may be any module from (..., in) to (..., out): a dense linear layer, a :class:`QuantLinear`. Only B and
    A are parameters of this module's own; freeze the base to train the patch. There is no alpha / r factor: the patch
    is B A, as EoRA returns it.

    Attributes:
        B: parameter, (out, r).
        A: parameter, (r, in).

    Args:
        base: the layer to patch.
        B: (out, r).
        A: (r, in).
    """

    def __init__(self, base: nn.Module, B: Tensor, A: Tensor) -> None:
        super().__init__()
        if B.ndim != 2 or A.ndim != 2 or B.shape[1] != A.shape[0]:
            raise SpecError("E-2", f"B (m, r) and A (r, k) must share r, got {tuple(B.shape)} and {tuple(A.shape)}")
        shape = (getattr(base, "out_features", B.shape[0]), getattr(base, "in_features", A.shape[1]))
        if shape != (B.shape[0], A.shape[1]):
            raise SpecError("E-2", f"patch of shape {(B.shape[0], A.shape[1])} does not fit a layer of shape {shape}")
        self.base = base
        self.B = nn.Parameter(B.detach().clone())
        self.A = nn.Parameter(A.detach().clone())

    @classmethod
    def from_patch(cls, base: nn.Module, patch: LowRank[Tensor]) -> Self:
        """A layer patched with the result of :func:`~lowbit.accel.torch_cuda.eora` and its kin."""
        return cls(base, patch.B, patch.A)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) → (..., out); the patch is computed in the dtype of ``x``."""
        hidden = functional.linear(x, self.A.to(x.dtype))
        return cast(Tensor, self.base(x)) + functional.linear(hidden, self.B.to(x.dtype))

    def extra_repr(self) -> str:
        return f"rank={self.A.shape[0]}"


class _Transform(torch.autograd.Function):
    """The Hadamard transform with its gradient, which is the transposed transform."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block_size: int | None) -> Tensor:
        ctx.block_size = block_size
        return _OPS.hadamard_transform(x, block_size=block_size).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        return _OPS.hadamard_transform(grad, block_size=ctx.block_size, transpose=True).to(grad.dtype), None


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
            base.weight.copy_(_OPS.hadamard_transform(weight.to(torch.float64), block_size=block_size))
            if linear.bias is not None:
                base.bias.copy_(linear.bias)
        return cls(base, block_size=block_size, **options)

    def get_extra_state(self) -> Tensor:
        """The width of the transform, 0 for all columns: a weight and its transform belong together."""
        return torch.tensor(self.block_size or 0)

    def set_extra_state(self, state: Any) -> None:
        """Refuse a weight that was rotated otherwise.

        Raises:
            SpecError: H-2.
        """
        if int(state) != (self.block_size or 0):
            raise SpecError("H-2", f"weight rotated in blocks of {int(state)}, layer made for {self.block_size or 0}")

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) → (..., out)."""
        turned: Tensor = _Transform.apply(x, self.block_size)  # type: ignore[no-untyped-call]
        if self.activation_bits is not None:
            found = _OPS.quantize_activations(
                turned, bits=self.activation_bits, scheme=self.scheme, clip_ratio=self.clip_ratio
            )
            turned = turned + (found.values.to(turned.dtype) - turned).detach()
        return cast(Tensor, self.base(turned))

    def extra_repr(self) -> str:
        return f"block_size={self.block_size}, activation_bits={self.activation_bits}"
