"""Attention-map loss of a whole model with its gradient, from the scores of both networks.

The shape is BERT-base on sentences of up to 128 tokens, mean length 74: 16 x 12 heads x 128 x 128, 12 layers. The
baseline is the published formulation in torch: both maps by softmax, a mask filled sentence by sentence in Python, two
masked cross-entropies of clamped maps, backward by autograd. Beside it stands what a careful user would write in torch:
log softmax, one weighted expression.

The gate compares losses and gradients with float64. Memory is that of the result, one gradient of the student's
scores, and what a contender needs beyond it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import Case
from torch import Tensor

from lowbit.accel import numba_cpu
from lowbit.accel.torch_cuda import distill
from lowbit.nn import attention_map_loss

FLOOR = 1e-8
LOSS, GRADIENT = 1e-5, 1e-5  # accepted, relative: of the loss, and of a gradient to the largest entry


def problem(layers: int, batch: int, heads: int, n: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Scores of both networks with the additive mask, and lengths."""
    made = torch.Generator().manual_seed(0)
    lengths = torch.linspace(20, n, batch).round().long()  # 74 on average for n = 128
    masked = (torch.arange(n) >= lengths[:, None])[:, None, None] * -10000.0

    def scores() -> list[Tensor]:
        return [2 * torch.randn(batch, heads, n, n, generator=made) + masked for _ in range(layers)]

    teacher = scores()
    student = [t + 0.3 * s.clamp(min=-30.0) for s, t in zip(scores(), teacher, strict=True)]
    return [s.requires_grad_() for s in student], teacher, lengths


def backward(student: list[Tensor], loss: Tensor) -> tuple[float, list[Tensor]]:
    """Loss and gradients by autograd."""
    return loss.item(), list(torch.autograd.grad(loss, student))


def published(student: list[Tensor], teacher: list[Tensor], lengths: Tensor) -> tuple[float, list[Tensor]]:
    """Maps, a mask filled in Python, cross-entropy minus entropy."""
    batch, heads, n, _ = student[0].shape
    total = student[0].new_zeros(())
    for s, t in zip(student, teacher, strict=True):
        mask = torch.zeros(batch, heads, n, n)
        for b, length in enumerate(lengths.tolist()):
            mask[b, :, :length, :length] = 1.0
        p, q = (x.softmax(-1).clamp(min=FLOOR) for x in (t, s))
        cross = (-mask * p * q.log()).sum((-1, -2)) / lengths[:, None]
        own = (-mask * p * p.log()).sum((-1, -2)) / lengths[:, None]
        total = total + (cross.mean() - own.mean())
    return backward(student, total)


def expression(student: list[Tensor], teacher: list[Tensor], lengths: Tensor) -> tuple[float, list[Tensor]]:
    """Log softmax and one sum with weights made once."""
    batch, heads, n, _ = student[0].shape
    valid = torch.arange(n) < lengths[:, None]
    weight = (valid[:, None, :, None] & valid[:, None, None]) / (batch * heads * lengths[:, None, None, None])
    low = float(np.log(FLOOR))
    total = student[0].new_zeros(())
    for s, t in zip(student, teacher, strict=True):
        log_p, log_q = (x.log_softmax(-1).clamp(min=low) for x in (t, s))
        total = total + (weight * log_p.exp() * (log_p - log_q)).sum()
    return backward(student, total)


def closed_form(student: list[Tensor], teacher: list[Tensor], lengths: Tensor) -> tuple[float, list[Tensor]]:
    """Losses whose backward pass is the closed form."""
    total = student[0].new_zeros(())
    for s, t in zip(student, teacher, strict=True):
        total = total + attention_map_loss(s, t, lengths)
    return backward(student, total)


def operation(student: list[Tensor], teacher: list[Tensor], lengths: Tensor) -> tuple[float, list[Tensor]]:
    """The operation itself on torch."""
    found = [distill.attention_map_loss(s, t, lengths) for s, t in zip(student, teacher, strict=True)]
    return sum(f.loss for f in found), [f.gradient for f in found]


def fused(student: list[Any], teacher: list[Any], lengths: Any) -> tuple[float, list[Any]]:
    """The operation on Numba."""
    found = [numba_cpu.attention_map_loss(s, t, lengths) for s, t in zip(student, teacher, strict=True)]
    return sum(f.loss for f in found), [f.gradient for f in found]


def gate(student: list[Tensor], teacher: list[Tensor], lengths: Tensor, results: dict[str, Any]) -> dict[str, float]:
    """Distance to float64, layer by layer."""
    exact = [
        distill.attention_map_loss(s.detach().double(), t.double(), lengths)
        for s, t in zip(student, teacher, strict=True)
    ]
    loss = sum(e.loss for e in exact)
    figures: dict[str, float] = {}
    for name, (found, gradients) in results.items():
        figures[f"{name}: loss error"] = off = abs(found - loss) / loss
        assert off <= LOSS, f"{name}: the loss is off by {off:.1e}"
        worst = max(
            float((torch.as_tensor(g).double() - e.gradient).abs().max() / e.gradient.abs().max())
            for g, e in zip(gradients, exact, strict=True)
        )
        figures[f"{name}: gradient error"] = worst
        assert worst <= GRADIENT, f"{name}: a gradient is off by {worst:.1e}"
    return figures


def cases(*, quick: bool) -> Iterator[Case]:
    """BERT-base; ``quick`` takes two layers of four sentences."""
    layers, batch = (2, 4) if quick else (12, 16)
    student, teacher, lengths = problem(layers, batch, 12, 128)
    arrays = ([s.detach().numpy() for s in student], [t.numpy() for t in teacher], lengths.numpy())
    contenders: dict[str, Callable[[], Any]] = {
        "torch, as published": partial(published, student, teacher, lengths),
        "torch, one expression": partial(expression, student, teacher, lengths),
        "lowbit torch, autograd": partial(closed_form, student, teacher, lengths),
        "lowbit torch": partial(operation, student, teacher, lengths),
        "lowbit numba": partial(fused, *arrays),
    }
    yield Case(
        name=f"attention-map loss and gradient, {layers} layers, {batch} x 12 x 128 x 128",
        baseline="torch, as published",
        contenders=contenders,
        gate=partial(gate, student, teacher, lengths),
        repeats=5,
        note=f"from scores; losses and gradients within {LOSS:g} of float64; mean length {lengths.double().mean():.0f}",
        memory=True,
    )
