"""A linear layer that keeps packed codes, and a low-rank patch beside any layer."""

from __future__ import annotations

from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowbit.accel.common.uniform import check_bits
from lowbit.reference.errors import SpecError
from lowbit.reference.types import Granularity, LowRank, QuantizedWeight, Scheme

from .. import operations as ops
from ..arrays import working_dtype
from ..packing import word_count

__all__ = ["LowRankLinear", "QuantLinear"]


class QuantLinear(nn.Module):
    """``y = x Ŵᵀ + b`` with Ŵ = scale · (code − zero_point) kept as packed codes; the forward pass dequantizes.

    Everything is a buffer, in the state dict and not trained. The state dict says too how codes are to be read, their
    bits and what is added to them, and a layer made otherwise refuses it.

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
        scheme: code range; see :func:`~lowbit.reference.uniform.quantize`.
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
        layer.words = ops.pack(weight.codes + layer.offset, bits=bits)
        layer.scale, layer.zero_point = weight.scale.clone(), weight.zero_point.clone()
        if scattered:
            layer.group_index = index.clone()
        if bias is not None:
            layer.bias = bias.detach().clone()
        return layer

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, *, bits: int, scheme: Scheme = "asymmetric", group_size: int | None = None
    ) -> Self:
        """A layer with the weight of ``linear``, each number rounded to the nearest of its row's or group's grid."""
        w = linear.weight.detach()
        k = w.shape[1]
        granularity: Granularity = "row" if group_size is None else "group"
        grid = ops.fit_grid(w, bits=bits, scheme=scheme, granularity=granularity, group_size=group_size)
        codes = ops.quantize(w, grid.scale, grid.zero_point, bits=bits, scheme=scheme)
        index = torch.arange(k, device=w.device) // (group_size or max(k, 1))
        found = QuantizedWeight(codes, grid.scale, grid.zero_point, index, w, 0.0)
        return cls.from_quantized(found, bits=bits, scheme=scheme, bias=linear.bias)

    def get_extra_state(self) -> Tensor:
        """Bits, and what is added to a code: words mean nothing without them."""
        return torch.tensor([self.bits, self.offset], device="cpu")

    def set_extra_state(self, state: Any) -> None:
        """Refuse words that are to be read otherwise.

        Raises:
            SpecError: Q-6.
        """
        if state.tolist() != [self.bits, self.offset]:
            bits, offset = state.tolist()
            raise SpecError(
                "Q-6",
                f"words of {bits}-bit codes with {offset} added, for a layer of {self.bits} bits and {self.offset}",
            )

    def weight(self) -> Tensor:
        """Ŵ, (out, in), dtype of ``scale`` but at least float32."""
        scale, zero = self.scale, self.zero_point
        if scale.is_meta:
            return scale.new_empty((self.out_features, self.in_features), dtype=working_dtype(scale))
        if self.group_index is not None:
            columns = self.group_index.long()
            scale, zero = scale[:, columns], zero[:, columns]
        return ops.dequantize_packed(
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
        """A layer patched with the result of :func:`~lowbit.reference.eigenspace.eora` and its kin."""
        return cls(base, patch.B, patch.A)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) → (..., out); the patch is computed in the dtype of ``x``."""
        hidden = functional.linear(x, self.A.to(x.dtype))
        return cast(Tensor, self.base(x)) + functional.linear(hidden, self.B.to(x.dtype))

    def extra_repr(self) -> str:
        return f"rank={self.A.shape[0]}"
