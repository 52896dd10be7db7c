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

from .. import dora, triton
from .. import operations as ops
from ..arrays import row_chunks
from ..policy import by_kernel
from .autograd import applied, without_autocast

__all__ = ["DoRALinear"]


def _square_norms(
    w: Tensor, cross: Tensor, b: Tensor, a: Tensor, square: Tensor, scaling: float
) -> tuple[Tensor, bool]:
    """‖W_i + s (B A)_i‖² in float64 by (2.6), from A Wᵀ (r, m) and ‖W_i‖²; and whether every row is clear of zero.

    A Wᵀ comes in the precision of the layer's own product, sums over the rank are taken in float32 or better and the
    rest in float64. Where less than a quarter of ‖W_i‖² remains, B A has cancelled digits of W: those rows are formed
    and summed in float64. That happens exactly when both have about the same norm, so ‖s B A‖ need not be looked at.
    """
    wide = torch.float64 if w.dtype == torch.float64 else torch.float32
    left, right = b.to(wide), a.to(wide)
    inner = torch.addmm(cross.to(wide).mT, left, right @ right.mT, alpha=scaling / 2)
    found = torch.add(square, (left * inner).sum(dim=1, dtype=torch.float64), alpha=2 * scaling)
    clear = found > square / 4
    if bool(clear.all()):
        return found, True
    poor = ~clear
    rows = torch.addmm(w[poor].to(torch.float64), left[poor].to(torch.float64), right.to(torch.float64), alpha=scaling)
    found[poor] = rows.square().sum(dim=1)
    return found, bool((found > 0).all())


def _row_squares(w: Tensor) -> Tensor:
    """‖W_i‖², each sum in float32 or better, as the products of the layer are, answered in float64."""
    wide = torch.promote_types(w.dtype, torch.float32)
    found = torch.empty(w.shape[0], dtype=torch.float64, device=w.device)
    for part in row_chunks(w.shape[0], w.shape[1], w.device):
        found[part] = w[part].to(wide).square().sum(dim=1)
    return found


def _scaled(x: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    """x ∘ factor, rounded once: in half precision the factor itself stays in float32."""
    wide = factor.to(torch.promote_types(x.dtype, torch.float32))
    return torch.mul(x, wide, out=torch.empty_like(x) if out is None else out)


def _inverse(x: Tensor) -> Tensor:
    """1 / x, and 0 where x is 0."""
    used = x != 0
    return torch.where(used, 1 / torch.where(used, x, 1.0), 0.0)


class _DoRA(torch.autograd.Function):
    """(x, W, B, A, m, bias, s, detach, reuse, function that makes W where it is None) → y, for rows x (T, k)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor | None,
        b: Tensor,
        a: Tensor,
        magnitude: Tensor,
        bias: Tensor | None,
        scaling: float,
        detach: bool,
        reuse_output: bool,
        again: Callable[[], Tensor],
    ) -> Tensor:
        weight = again() if w is None else w
        dtype, tokens, cpu = x.dtype, x.shape[0], x.device.type == "cpu"
        left, right, product = b.to(dtype), a.to(dtype), weight.to(dtype).mT
        if cpu:  # one pass over W gives x Wᵀ and A Wᵀ
            both = torch.cat((x, right)) @ product
            y, cross = both[:tokens], both[tokens:]
            squares, nonzero = _square_norms(weight, cross, b, a, _row_squares(weight), scaling)
            c = squares.sqrt_()
        else:  # a kernel forms the rows in registers, and nothing is decided on the host
            y, cross, nonzero = x @ product, a.new_empty(0), False
            c = _norms(weight, b * scaling, a)
        hidden = (x @ right.mT).mul_(scaling)
        y.addmm_(hidden, left.mT)
        g = magnitude / c if nonzero else dora.quotient(magnitude.to(torch.float64), c)
        # dm needs the sum before the factor: y / g, unless a bias was added or a row erased (a GPU is not asked)
        reuse = reuse_output and cpu and bias is None and bool(g.all())
        if reuse:
            y = kept = _scaled(y, g, out=y)
        else:
            kept, y = y, _scaled(y, g)
            if bias is not None:
                y += bias.to(dtype)
        ctx.save_for_backward(x, w, b, a, magnitude, hidden, kept, g, None if reuse and detach else c)
        ctx.scaling, ctx.again, ctx.reuse, ctx.detach = scaling, again, reuse, detach
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, w, b, a, magnitude, hidden, kept, g, c = ctx.saved_tensors
        grad: Tensor = grads[0]
        dtype, scaling = x.dtype, ctx.scaling
        need_x, _, need_b, need_a, need_m, need_bias = ctx.needs_input_grad[:6]
        full = not ctx.detach
        dx = db = da = dm = None
        if need_m or full:
            sums = (grad * kept).sum(dim=0, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
            dm = sums / magnitude if ctx.reuse else sums * _inverse(c)  # y / (g c) = y / m
        scaled = _scaled(grad, g)
        back = (scaled @ b.to(dtype)).mul_(scaling)
        if need_b:
            db = (scaled.mT @ hidden).to(b.dtype)
        if need_a:
            da = (back.mT @ x).to(a.dtype)
        weight = (ctx.again() if w is None else w) if need_x or full else None
        if need_x and weight is not None:
            dx = scaled @ weight.to(dtype)
            dx.addmm_(back, a.to(dtype))
        if full and weight is not None and dm is not None:  # less g dm v, with V = W + s B A
            wide = torch.promote_types(b.dtype, torch.float32)
            along = (g * dm * _inverse(c))[:, None].to(wide)
            left, right, rows = b.to(wide) * scaling, a.to(wide), weight.to(wide)
            tilted = left * along
            if db is not None:
                db -= (scaling * along * (rows @ right.mT + left @ (right @ right.mT))).to(b.dtype)
            if da is not None:
                da -= (tilted.mT @ rows + (tilted.mT @ left) @ right).to(a.dtype)
        dm = None if dm is None else dm.to(magnitude.dtype)
        dbias = grad.sum(dim=0) if need_bias else None
        return dx, None, db, da, dm, dbias, None, None, None, None


def _norms(w: Tensor, b: Tensor, a: Tensor) -> Tensor:
    """‖W_i + (B A)_i‖ in float64 away from the CPU: the fused kernel where there is one."""
    if by_kernel("dora_norm", w):
        found: Tensor = triton.launcher("dora").dora_norm(w, b, a)
        return found.to(torch.float64)
    wide = torch.float64 if w.dtype == torch.float64 else torch.float32
    return dora.norms(dora.Update(w.to(wide), b.to(torch.float64), a.to(wide))).to(torch.float64)


def _unmerged(layer: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """A state dict of a merged layer holds its weight as it was, as nothing in there could say that it is merged."""
    if isinstance(layer, DoRALinear) and layer.kept is not None:
        state[f"{prefix}base.weight"] = layer.kept


def _served(base: nn.Module, transposed: bool) -> str | None:
    """Why a base computes something else than x Wᵀ + bias with the weight that it shows; None where it does that."""
    weight = getattr(base, "weight", None)
    if isinstance(base, nn.Linear):
        same = type(base).forward is nn.Linear.forward
        return None if same else "its forward pass is not that of nn.Linear, and may use another weight than it shows"
    if isinstance(weight, Tensor):
        return None if transposed and weight.ndim == 2 else "its weight is not that of a linear layer (out, in)"
    return None if callable(weight) else "it has no weight (out, in)"


class DoRALinear(nn.Module):
    """``y = (m / c) ∘ (x Wᵀ + s (x Aᵀ) Bᵀ) + bias``, c the norms of the rows of W + s B A, computed anew every time.

    Only A, B and the magnitude are trained; freeze the base (its weight gets no gradient in any case). The norm is a
    constant of the backward pass unless ``detach=False``. A row of zeros is left alone, not divided by. Products with
    the factors are taken in the dtype of ``x``, the norm in float32 and float64; A, B and m may be wider than the base.
    A state dict holds the weight unmerged, whether the layer is merged or not, and a layer that one is loaded into is
    not merged.

    Args:
        base: ``nn.Linear``; a layer that stores (in, out), such as transformers' ``Conv1D``; or one whose ``weight()``
            makes the weight, such as :class:`~lowbit.nn.QuantLinear` (QDoRA): the magnitude starts from the
            dequantized weight, and each step dequantizes.
        rank: r, 0 to train the magnitude alone.
        alpha: s = alpha / r.
        rank_stabilised: s = alpha / sqrt(r).
        dropout: of the input of the update, in training.
        detach: take the norm as a constant.
        transposed: whether the base stores (in, out).
        reuse_output: keep the output instead of another array of its size, where there is no bias. Set it to False in
            front of an operation that works in place, which autograd refuses otherwise.
        dtype: of A, B and m; None for the base's, at least float32.

    Attributes:
        A: parameter, (r, in), Kaiming-uniform.
        B: parameter, (out, r), zero.
        magnitude: parameter, (out,), the norms of the base's rows.
        kept: the base's weight while the layer is merged, else None.

    Raises:
        SpecError: D-4 and D-5 for options.
        Unsupported: the base does not compute x Wᵀ + bias with the weight that it shows.
    """

    kept: Tensor | None

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
        if (reason := _served(base, transposed)) is not None:
            raise Unsupported(f"a {type(base).__name__} cannot be the base of a DoRALinear: {reason}")
        self.base, self.rank, self.dropout, self.detach = base, rank, float(dropout), detach
        self.transposed, self.reuse_output = transposed, reuse_output
        self.scaling = float(rank if alpha is None else alpha) / (math.sqrt(rank) if rank_stabilised else rank or 1)
        self.register_buffer("kept", None, persistent=False)
        self.register_state_dict_post_hook(_unmerged)  # type: ignore[no-untyped-call]
        w = self._weight()
        wide = dtype or torch.promote_types(w.dtype, torch.float32)
        self.A = nn.Parameter(torch.empty((rank, w.shape[1]), dtype=wide, device=w.device))
        self.B = nn.Parameter(torch.zeros((w.shape[0], rank), dtype=wide, device=w.device))
        if rank:
            nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.magnitude = nn.Parameter(_row_squares(w).sqrt().to(wide))

    @property
    def merged(self) -> bool:
        """Whether the base holds W' for its weight."""
        return self.kept is not None

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
        if self._packed:
            with torch.no_grad():
                w = cast("Callable[[], Tensor]", self.base.weight)()
        else:
            w = cast(Tensor, self.base.weight).detach()
        return w.mT if self.transposed else w

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        if f"{prefix}base.weight" in state_dict:
            self.kept = None
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) → (..., out), in the dtype of ``x``, or that of autocast where it is on."""
        return without_autocast(x, self._apply_to)

    def _apply_to(self, x: Tensor) -> Tensor:
        w, bias = self._weight(), self.bias
        if self.merged:
            return functional.linear(x, w.to(x.dtype), None if bias is None else bias.to(x.dtype))
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        seen = functional.dropout(rows, self.dropout, self.training) if self.dropout else rows
        y = applied(
            _DoRA, seen, None if self._packed else w, self.B, self.A, self.magnitude, bias,
            self.scaling, self.detach, self.reuse_output, self._weight,
        )  # fmt: skip
        if seen is not rows:  # what dropout took from the update, the base still sees
            y = y + functional.linear(rows - seen, w.to(x.dtype))
        return y.reshape(*x.shape[:-1], w.shape[0])

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """W' = diag(m / c) (W + s B A), (out, in), dense, in the dtype of the factors; the layer is left as it is."""
        w = self._weight()
        return ops.dora_weight(w.to(self.A.dtype), self.B, self.A, self.magnitude, scaling=self.scaling)

    @torch.no_grad()
    def merge(self) -> Self:
        """Put W' in the place of the base's weight; the weight is kept, so that :meth:`unmerge` is exact.

        Raises:
            Unsupported: the base is quantized: W' would have to be rounded onto a grid. Quantize merged_weight().
        """
        if self._packed:
            raise Unsupported("a quantized base cannot take a merged weight: quantize merged_weight() instead")
        if not self.merged:
            weight, found = cast(Tensor, self.base.weight), self.merged_weight()
            self.kept = weight.detach().clone()
            weight.copy_(found.mT if self.transposed else found)
        return self

    @torch.no_grad()
    def unmerge(self) -> Self:
        """The base's weight back, bit by bit."""
        if self.kept is not None:
            cast(Tensor, self.base.weight).copy_(self.kept)
            self.kept = None
        return self

    @torch.no_grad()
    def to_lora(self, rank: int) -> tuple[LowRank[Tensor], float]:
        """The nearest LoRA of a rank, and the share of the update that it leaves; 0 where there is none.  [D-10]"""
        w = self._weight().to(self.A.dtype)
        found = ops.dora_to_lora(w, self.B, self.A, self.magnitude, scaling=self.scaling, rank=rank)
        return LowRank(found.B, found.A), found.residual / found.update if found.update else 0.0

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scaling={self.scaling:g}, dropout={self.dropout:g}, detach={self.detach}"
