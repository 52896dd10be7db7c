"""DoRA as a module for training, with a backward pass of its own; see :mod:`lowbit.reference.dora` for the equations.

What autograd would keep of y = g ∘ (x Wᵀ + s (x Aᵀ) Bᵀ) + bias is four arrays of the output's size and one of the
weight's. This keeps x, the hidden x Aᵀ and the output: without a bias y itself, which the next operation often keeps
anyway, since y / g gives the sum back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lowbit.reference.errors import SpecError, Unsupported
from lowbit.reference.types import LowRank

from . import backend, dora, triton
from .arrays import row_chunks

__all__ = ["DoRALinear"]

_OPS = backend.TorchBackend()  # kernels="auto": Triton for weights that live on CUDA


def _row_norms(w: Tensor, b: Tensor, a: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    """‖W_i + (B A)_i‖ in float64, and W Aᵀ; the scaling is in b, ‖W_i‖² in ``square``.  (2.6)

    W Aᵀ is taken in float32 (float64 for float64 weights), everything after it in float64. Where less than a quarter
    of what is added up remains that is not enough, and those rows are formed and summed in float64. On CUDA a kernel
    forms all rows in registers, so that nothing has to be decided on the host.
    """
    wide = torch.float64 if w.dtype == torch.float64 else torch.float32
    right = a.to(wide)
    if w.dtype == wide:
        product = w @ right.mT
    else:  # a strip at a time, so that the wide copy stays in cache
        product = torch.empty((w.shape[0], a.shape[0]), dtype=wide, device=w.device)
        for part in row_chunks(w.shape[0], w.shape[1], w.device):
            torch.mm(w[part].to(wide), right.mT, out=product[part])
    if _OPS.supports("dora_norm", device=w.device, dtype=w.dtype) is True:
        return _kernel_norms(w, b.to(wide), right), product
    left = b.to(torch.float64)
    bulk = square + (left @ (right @ right.mT).to(torch.float64) * left).sum(dim=1)
    found = bulk + 2 * (left * product).sum(dim=1)
    cancelled = found < bulk / 4
    if bool(cancelled.any()):
        rows = torch.addmm(w[cancelled].to(torch.float64), left[cancelled], a.to(torch.float64))
        found[cancelled] = rows.square().sum(dim=1)
    return found.sqrt(), product


def _scale_(x: Tensor, factor: Tensor) -> Tensor:
    """x ∘ factor in place. In half precision by x + x (factor − 1): a factor near 1 then loses nothing by rounding."""
    if x.dtype in (torch.float32, torch.float64):
        return x.mul_(factor.to(x.dtype))
    return x.addcmul_(x, (factor - 1).to(x.dtype))


def _kernel_norms(w: Tensor, b: Tensor, a: Tensor) -> Tensor:
    found: Tensor = triton.launcher().dora_norm(w, b, a)
    return found.to(torch.float64)


class _DoRA(torch.autograd.Function):
    """(x, W, B, A, m, bias, ‖W‖², s, detach, reuse, function that makes W where it is None) → y, for rows x (T, k)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor | None,
        b: Tensor,
        a: Tensor,
        magnitude: Tensor,
        bias: Tensor | None,
        square: Tensor,
        scaling: float,
        detach: bool,
        reuse_output: bool,
        again: Callable[[], Tensor],
    ) -> Tensor:
        weight = again() if w is None else w
        left, right = b.detach() * scaling, a.detach()
        c, product = _row_norms(weight, left, right, square)
        m = magnitude.detach().to(torch.float64)
        g = dora.quotient(m, c)
        hidden = x @ right.to(x.dtype).mT
        y = x @ weight.to(x.dtype).mT
        y.addmm_(hidden, left.to(x.dtype).mT)
        # dm needs the sum before the factor: y / g, unless a bias was added or a row erased (a GPU is not asked)
        reuse = reuse_output and bias is None and x.device.type == "cpu" and not bool((g == 0).any())
        inverse = torch.where(c > 0, 1 / torch.where(c > 0, g * c if reuse else c, 1.0), 0.0)
        if reuse:
            y = kept = _scale_(y, g)
        else:
            kept, y = y, _scale_(y.clone(), g)
            if bias is not None:
                y += bias.detach().to(y.dtype)
        ctx.save_for_backward(x, w, b, a, hidden, kept, g, c, inverse, None if detach else product)
        ctx.scaling, ctx.again = scaling, again
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, w, b, a, hidden, kept, g, c, inverse, product = ctx.saved_tensors
        grad: Tensor = grads[0]
        dtype, wide = x.dtype, b.dtype
        sums = torch.float64 if dtype == torch.float64 else torch.float32
        need_x, _, need_b, need_a, need_m, need_bias = ctx.needs_input_grad[:6]
        full = product is not None
        dx = db = da = dm = None
        if need_m or full:
            dm = (grad * kept).sum(dim=0, dtype=sums) * inverse
        scaled = _scale_(grad.clone(memory_format=torch.contiguous_format), g)
        left = (b * ctx.scaling).to(dtype)
        back = scaled @ left
        if need_b:
            db = (scaled.mT @ hidden).to(wide) * ctx.scaling
        if need_a:
            da = (back.mT @ x).to(a.dtype)
        weight = (ctx.again() if w is None else w) if need_x or full else None
        if need_x and weight is not None:
            dx = scaled @ weight.to(dtype)
            dx.addmm_(back, a.to(dtype))
        if full and weight is not None:  # less g dm v, with V = W + s B A
            along = (g * dm * torch.where(c > 0, 1 / torch.where(c > 0, c, 1.0), 0.0))[:, None].to(sums)
            wide_b, wide_a = b.to(sums) * ctx.scaling, a.to(sums)
            tilted = wide_b * along
            if need_b:
                db = db - (ctx.scaling * along * (product + wide_b @ (wide_a @ wide_a.mT))).to(wide)
            if need_a:
                da = da - (tilted.mT @ weight.to(sums) + (tilted.mT @ wide_b) @ wide_a).to(a.dtype)
        if dm is not None:
            dm = dm.to(wide)
        dbias = grad.sum(dim=0) if need_bias else None
        return dx, None, db, da, dm, dbias, None, None, None, None, None


class DoRALinear(nn.Module):
    """``y = (m / c) ∘ (x Wᵀ + s (x Aᵀ) Bᵀ) + bias``, c the norms of the rows of W + s B A, computed anew every time.

    Only A, B and the magnitude are trained; freeze the base (its weight gets no gradient in any case). The norm is a
    constant of the backward pass unless ``detach=False``. A row of zeros is left alone, not divided by. Products with
    the factors are taken in the dtype of ``x``, the norm in float32 and float64; A, B and m may be wider than the base.

    Args:
        base: ``nn.Linear``; a layer that stores (in, out), such as transformers' ``Conv1D``; or a
            :class:`~lowbit.accel.torch_cuda.layers.QuantLinear` (QDoRA): the magnitude starts from the dequantized
            weight, and each step dequantizes.
        rank: r, 0 to train the magnitude alone.
        alpha: s = alpha / r.
        rank_stabilised: s = alpha / sqrt(r).
        dropout: of the input of the update, in training.
        detach: take the norm as a constant.
        transposed: whether the base stores (in, out).
        reuse_output: keep the output instead of another array of its size, where there is no bias. Set it to False in
            front of an operation that works in place, which autograd refuses otherwise.
        dtype: of A, B and m; None for the base's, at least float32.

    Parameters:
        A: (r, in), Kaiming-uniform.
        B: (out, r), zero.
        magnitude: (out,), the norms of the base's rows.
    """

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        *,
        alpha: float | None = None,
        rank_stabilised: bool = False,
        dropout: float = 0.0,
        detach: bool = True,
        transposed: bool = False,
        reuse_output: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 0:
            raise SpecError("D-4", f"rank must be a whole number, at least 0, got {rank!r}")
        if not 0 <= dropout < 1:
            raise SpecError("D-5", f"dropout must be at least 0 and below 1, got {dropout!r}")
        self.base, self.rank, self.dropout, self.detach = base, rank, float(dropout), detach
        self.transposed, self.reuse_output = transposed, reuse_output
        self.scaling = float(rank if alpha is None else alpha) / (math.sqrt(rank) if rank_stabilised else rank or 1)
        self.merged = False
        self._kept: Tensor | None = None  # the base weight of a merged layer
        self._square: tuple[Any, Tensor] | None = None
        w = self._weight()
        wide = dtype or torch.promote_types(w.dtype, torch.float32)
        self.A = nn.Parameter(torch.empty((rank, w.shape[1]), dtype=wide, device=w.device))
        self.B = nn.Parameter(torch.zeros((w.shape[0], rank), dtype=wide, device=w.device))
        if rank:
            nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.magnitude = nn.Parameter(self._squares(w).sqrt().to(wide))

    @property
    def bias(self) -> Tensor | None:
        """The base's bias, which is not scaled."""
        return cast("Tensor | None", getattr(self.base, "bias", None))

    @property
    def _packed(self) -> bool:
        """Whether the base has no weight of its own, only what it is made from."""
        return not isinstance(self.base.weight, Tensor)

    def _weight(self) -> Tensor:
        """The base's weight (out, in), without a graph; dequantized where it is packed."""
        with torch.no_grad():
            w = cast("Callable[[], Tensor]", self.base.weight)() if self._packed else cast(Tensor, self.base.weight)
            return w.detach().mT if self.transposed else w.detach()

    def _squares(self, w: Tensor) -> Tensor:
        """‖W_i‖² in float64, computed once per weight."""
        source = cast(Tensor, getattr(self.base, "words", None) if self._packed else self.base.weight)
        key = (source.data_ptr(), source._version, source.device, source.dtype)
        if self._square is None or self._square[0] != key:
            with torch.no_grad():
                found = torch.empty(w.shape[0], dtype=torch.float64, device=w.device)
                for part in row_chunks(w.shape[0], w.shape[1], w.device):
                    found[part] = w[part].to(torch.float64).square().sum(dim=1)
            self._square = (key, found)
        return self._square[1]

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) → (..., out), in the dtype of ``x``, or that of autocast where it is on."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        with torch.autocast(x.device.type, enabled=False):
            w = self._weight()
            if self.merged:
                return functional.linear(x, w.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
            rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
            seen = functional.dropout(rows, self.dropout, self.training) if self.dropout else rows
            y: Tensor = _DoRA.apply(  # type: ignore[no-untyped-call]
                seen, None if self._packed else w, self.B, self.A, self.magnitude, self.bias, self._squares(w),
                self.scaling, self.detach, self.reuse_output, self._weight,
            )  # fmt: skip
            if seen is not rows:  # what dropout took from the update, the base still sees
                y = y + functional.linear(rows - seen, w.to(x.dtype))
            return y.reshape(*x.shape[:-1], w.shape[0])

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """W' = diag(m / c) (W + s B A), (out, in), dense, in the dtype of the factors; the layer is left as it is."""
        w = self._weight()
        return _OPS.dora_weight(w.to(self.A.dtype), self.B, self.A, self.magnitude, scaling=self.scaling)

    @torch.no_grad()
    def merge(self) -> Self:
        """Put W' in the place of the base's weight; the weight is kept, so that :meth:`unmerge` is exact.

        Raises:
            Unsupported: the base is quantized: W' would have to be rounded onto a grid. Quantize merged_weight().
        """
        if self._packed:
            raise Unsupported("a quantized base cannot take a merged weight: quantize merged_weight() instead")
        if not self.merged:
            weight = cast(Tensor, self.base.weight)
            found = self.merged_weight()
            self._kept = weight.detach().clone()
            weight.copy_(found.mT if self.transposed else found)
            self.merged = True
        return self

    @torch.no_grad()
    def unmerge(self) -> Self:
        """The base's weight back, bit by bit."""
        if self.merged:
            cast(Tensor, self.base.weight).copy_(cast(Tensor, self._kept))
            self._kept, self.merged = None, False
        return self

    @torch.no_grad()
    def to_lora(self, rank: int) -> tuple[LowRank[Tensor], float]:
        """The nearest LoRA of a rank, and the share of the update that it leaves; 0 where there is none.  [D-10]"""
        w = self._weight().to(self.A.dtype)
        found = _OPS.dora_to_lora(w, self.B, self.A, self.magnitude, scaling=self.scaling, rank=rank)
        return LowRank(found.B, found.A), found.residual / found.update if found.update else 0.0

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scaling={self.scaling:g}, dropout={self.dropout:g}, detach={self.detach}"
