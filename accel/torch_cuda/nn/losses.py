"""Distillation losses for autograd: the closed-form gradient of an operation is its backward pass.

Each loss is a 0-d tensor that can be added to others and sent backward. The graph holds one buffer, the gradient, made
together with the loss; nothing else of the forward pass is kept.

>>> import torch
>>> from lowbit.nn import logit_loss
>>> student = torch.zeros(1, 2, requires_grad=True)
>>> logit_loss(student, torch.tensor([[3.0, 3.0]])).backward()
>>> student.grad.tolist()
[[0.0, 0.0]]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lowbit.reference.types import Divergence, IgnoredTokens, LossGradient

from .. import operations as ops
from .autograd import applied

__all__ = ["attention_map_loss", "feature_loss", "logit_loss", "score_loss", "token_loss"]


class _ClosedForm(torch.autograd.Function):
    """A loss whose gradient is known when it is."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, compute: Callable[[Tensor], LossGradient[Tensor]]) -> Tensor:
        found = compute(student.detach())
        ctx.gradient, ctx.dtype = found.gradient, student.dtype
        return found.gradient.new_tensor(found.loss)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        if ctx.gradient is None:
            raise RuntimeError("this loss was sent backward before, and its only gradient was used up")
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(upstream[0]).to(ctx.dtype), None


def _loss(student: Tensor, compute: Callable[[Tensor], LossGradient[Tensor]]) -> Tensor:
    return applied(_ClosedForm, student, compute)


def logit_loss(
    student: Tensor, teacher: Tensor, /, *, temperature: float = 1.0, divergence: Divergence = "cross-entropy"
) -> Tensor:
    """Soft cross-entropy of logits (B, C).  [W-1]"""
    options: Any = {"temperature": temperature, "divergence": divergence}
    return _loss(student, lambda s: ops.logit_loss(s, teacher, **options))


def token_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    /,
    *,
    temperature: float = 10.0,
    ignored: IgnoredTokens = "weigh",
) -> Tensor:
    """Token-scaled logit distillation of logits (B, n, V) that predict labels (B, n).  [W-2]"""
    options: Any = {"temperature": temperature, "ignored": ignored}
    return _loss(student, lambda s: ops.token_loss(s, teacher, labels, **options))


def feature_loss(student: Tensor, teacher: Tensor, lengths: Tensor | None = None, /) -> Tensor:
    """Mean square difference of features (B, n, d).  [W-3]"""
    return _loss(student, lambda s: ops.feature_loss(s, teacher, lengths))


def score_loss(student: Tensor, teacher: Tensor, /, *, floor: float = -100.0, causal: bool = False) -> Tensor:
    """Mean square difference of scores (B, H, n, n).  [W-4]"""
    return _loss(student, lambda s: ops.score_loss(s, teacher, floor=floor, causal=causal))


def attention_map_loss(student: Tensor, teacher: Tensor, lengths: Tensor, /, *, floor: float = 1e-8) -> Tensor:
    """Divergence of attention maps from scores (B, H, n, n).  [W-5]"""
    return _loss(student, lambda s: ops.attention_map_loss(s, teacher, lengths, floor=floor))
