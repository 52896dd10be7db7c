"""Fake quantizers as modules: the operations of chapters T and S with their gradients in a training graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

from lowbit.accel.common.learned_step import check_learned_step
from lowbit.accel.common.refusals import check_choice, check_whole
from lowbit.accel.common.ternary import check_clip
from lowbit.reference.errors import SpecError
from lowbit.reference.types import LSQ_COUNTS, LsqCount, LsqInit, MinMaxScheme, Sharing

from .. import operations as ops
from .autograd import applied, unless_overflown

__all__ = ["FakeMinMax", "FakeTernary", "LearnedStep"]


class _StraightThrough(torch.autograd.Function):
    """Values of a quantizer; gradients pass strictly inside its clip.  [T-5]"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, quantizer: FakeTernary | FakeMinMax) -> Tensor:
        ctx.clip = quantizer.clip
        ctx.save_for_backward(x)
        return quantizer.values(x).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        (grad,) = upstream
        if ctx.clip is not None:
            (grad,) = unless_overflown(lambda: (ops.straight_through(upstream[0], x, clip=ctx.clip),), x)
        return grad, None


class FakeTernary(nn.Module):
    """``x → twn(x)`` in training: ternary values forward, the straight-through gradient backward.  [T-2, T-5]

    Args:
        granularity: values that share a scale: "tensor", "row" or "matrix".
        threshold: factor of the mean magnitude.
        clip: bound of the values; None for none.
    """

    def __init__(self, granularity: Sharing = "tensor", threshold: float = 0.7, clip: float | None = None) -> None:
        super().__init__()
        check_clip("T-1", clip)
        self.granularity: Sharing = granularity
        self.threshold, self.clip = threshold, clip

    def values(self, x: Tensor) -> Tensor:
        """Ternary values, outside of any graph."""
        return ops.twn(x, granularity=self.granularity, threshold=self.threshold, clip=self.clip)

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype of ``x``; computed in float32 at least."""
        return applied(_StraightThrough, x, self)

    def extra_repr(self) -> str:
        return f"granularity={self.granularity}, threshold={self.threshold:g}, clip={self.clip}"


class FakeMinMax(nn.Module):
    """``x → min_max(x)`` in training, with the straight-through gradient.  [T-4, T-5]

    Args:
        bits: 2 to 8, or from 1 for "asymmetric".
        scheme: "symmetric" or "asymmetric".
        granularity: values that share a range: "tensor", "row" or "matrix".
        clip: bound of the values; None for none.
    """

    def __init__(
        self,
        bits: int = 8,
        scheme: MinMaxScheme = "symmetric",
        granularity: Sharing = "tensor",
        clip: float | None = None,
    ) -> None:
        super().__init__()
        check_clip("T-4", clip)
        self.scheme: MinMaxScheme = scheme
        self.granularity: Sharing = granularity
        self.bits, self.clip = bits, clip

    def values(self, x: Tensor) -> Tensor:
        """Values on the grid, outside of any graph."""
        return ops.min_max(x, bits=self.bits, scheme=self.scheme, granularity=self.granularity, clip=self.clip)

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype of ``x``; computed in float32 at least."""
        return applied(_StraightThrough, x, self)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, scheme={self.scheme}, granularity={self.granularity}, clip={self.clip}"


class _LearnedStep(torch.autograd.Function):
    """Values on the learned grid, with the closed-form gradients of (S.5) to (S.7)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, offset: Tensor | None, layer: LearnedStep) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x, step, offset)
        return ops.lsq(x, step, offset, **layer.options).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, step, offset = ctx.saved_tensors
        (grad,) = upstream
        options = {**ctx.layer.options, "count": ctx.layer.count}
        slopes = unless_overflown(lambda: ops.lsq_gradient(grad, x, step, offset, **options), x, step, offset)
        return *slopes, None


class LearnedStep(nn.Module):
    """LSQ as a module: a step, and an offset on request, that train with the network.  [S-1, S-3, S-4, S-5, S-6]

    The first batch in training mode sets the step, unless :meth:`initialise` has. Before that there is none: in
    evaluation mode the call is refused, where published layers answer with uninitialised memory. In a process group the
    first batch is that of rank 0, so every rank has to make the call, unless :meth:`initialise` came first.

    Attributes:
        step: parameter, float32, (steps,).
        offset: parameter, float32, (steps,), or None.
        ready: buffer, bool: whether the step has been set.

    Args:
        bits: 2 to 8, or from 1 when not signed.
        signed: codes around 0, or from 0.
        axis: one step for every index of it; None for one step.
        steps: length of the axis.
        offset: train an offset (LSQ+).
        epsilon: floor of the step; gradients pass through it.
        count: what the gradient of the step is scaled by: "elements", "features" or "unscaled".
        rule: of the first step: "mean", "mean-doubled", "deviation" or "min-max".
    """

    ready: Tensor
    step: Tensor
    offset: Tensor | None

    def __init__(
        self,
        bits: int,
        *,
        signed: bool = True,
        axis: int | None = None,
        steps: int = 1,
        offset: bool = False,
        epsilon: float = 1e-5,
        count: LsqCount = "elements",
        rule: LsqInit = "mean",
    ) -> None:
        super().__init__()
        check_learned_step("S-1", bits, signed, epsilon)
        check_choice("S-4", "count", count, LSQ_COUNTS)
        check_whole("S-1", "steps", steps, 1, 1 if axis is None else 2**31 - 1)
        self.options: dict[str, Any] = {"bits": bits, "signed": signed, "axis": axis, "epsilon": epsilon}
        self.count: LsqCount = count
        self.rule: LsqInit = rule
        self.step = nn.Parameter(torch.ones(steps, dtype=torch.float32))
        self.register_parameter("offset", nn.Parameter(torch.zeros(steps, dtype=torch.float32)) if offset else None)
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Set the step, and the offset, from a weight or a batch by the layer's rule."""
        options = {name: self.options[name] for name in ("bits", "signed", "axis")}
        start = ops.lsq_init(x, rule=self.rule, **options)
        if start.step.shape != self.step.shape:
            raise SpecError("S-1", f"x has {start.step.numel()} steps, the layer {self.step.numel()}")
        self.step.copy_(start.step)
        if self.offset is not None:
            self.offset.copy_(start.offset)
        self.ready.fill_(True)

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype of ``x``; computed in float32 at least."""
        if not self.ready:
            if not self.training:
                raise SpecError("S-1", "the step has not been set: initialise it, or train on a batch first")
            self.initialise(x)
            if distributed.is_available() and distributed.is_initialized():
                for start in self.parameters():
                    distributed.broadcast(start.detach(), src=0)
        return applied(_LearnedStep, x, self.step, self.offset, self)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.options.items())
