"""Fake quantizers, forward and backward, against the same formulas written out in torch.

By hand a quantizer is a chain of elementwise operations, each of which reads and writes the whole tensor, and for
learned steps autograd keeps most of them for the way back. Here it is one pass in each direction, and two more where
statistics are needed first. The wanted ratio is at least 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import Case

import lowbit
from lowbit.conformance.compare import gamma, unit_roundoff

CLIP = 2.5
BITS = 4
LOW, HIGH = -(2 ** (BITS - 1)), 2 ** (BITS - 1) - 1
U = unit_roundoff("float32")

Answers = tuple[Any, ...]


class Ternary(torch.autograd.Function):
    """TWN by hand, with the clip and the backward pass of TernaryBERT."""

    @staticmethod
    def forward(ctx: Any, w: torch.Tensor) -> torch.Tensor:
        """α sign(w) above the threshold."""
        ctx.save_for_backward(w)
        cut = w.clamp(-CLIP, CLIP)
        size = cut.abs()
        mask = size > 0.7 * size.mean()
        alpha = (size * mask).sum() / mask.sum()
        return alpha * cut.sign() * mask

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        """The gradient inside the clip."""
        (w,) = ctx.saved_tensors
        slope: torch.Tensor = grads[0] * (w.abs() < CLIP)
        return slope


def ternary_by_hand(w: torch.Tensor, grad: torch.Tensor) -> Answers:
    """Values, gradient."""
    leaf = w.detach().requires_grad_()
    y: torch.Tensor = Ternary.apply(leaf)  # type: ignore[no-untyped-call]
    y.backward(grad)
    return y.detach(), leaf.grad


def learned_step_by_hand(x: torch.Tensor, step: torch.Tensor, grad: torch.Tensor) -> Answers:
    """Values, gradients of x and of the steps of its rows: the formulation that published code shares."""
    leaf, s = x.detach().requires_grad_(), step.detach().requires_grad_()
    g = 1 / math.sqrt(x.shape[1] * HIGH)
    scaled = ((s - s * g).detach() + s * g)[:, None]
    v = (leaf / scaled).clamp(LOW, HIGH)
    v = (v.round() - v).detach() + v
    y = v * scaled
    y.backward(grad)
    return y.detach(), leaf.grad, s.grad


def ternary(backend: Any, w: Any, grad: Any) -> Answers:
    """The library's: one call for each direction."""
    return backend.twn(w, clip=CLIP), backend.straight_through(grad, w, clip=CLIP)


def learned_step(backend: Any, x: Any, step: Any, grad: Any) -> Answers:
    """The library's: one call for each direction."""
    found = backend.lsq_gradient(grad, x, step, bits=BITS, axis=0)
    return backend.lsq(x, step, bits=BITS, axis=0), found.x, found.step


def gate_ternary(results: dict[str, Any], *, w: np.ndarray, grad: np.ndarray) -> dict[str, float]:
    """Masks may differ where rounding decides; magnitudes are the mean of what was kept."""
    size = np.minimum(np.abs(w.astype(np.float64)), CLIP)
    cut = 0.7 * size.mean()
    band = gamma(w.size.bit_length() + 8, U) * cut  # sums are made by halves, pieces or lanes here, never one by one
    figures = {}
    for name, found in results.items():
        values, slope = (np.asarray(a) for a in found)
        mask = values != 0
        wrong = mask != (size > cut)
        assert (np.abs(size - cut)[wrong] <= band).all(), f"{name}: a value off the threshold is on its wrong side"
        mean = size[mask].mean()
        error = float(np.abs(np.abs(values[mask]) - mean).max() / mean)
        assert error <= gamma(w.size.bit_length() + 8, U), f"{name}: the scale is off by {error:.2g}"
        assert (slope == np.where(np.abs(w) < CLIP, grad, 0)).all(), f"{name}: wrong gradient"
        figures[f"{name}: error of the scale"] = error
    return figures


def gate_learned_step(
    results: dict[str, Any], *, x: np.ndarray, step: np.ndarray, grad: np.ndarray
) -> dict[str, float]:
    """Clauses S-3 to S-5: values, passing gradients and step gradients, up to quotients next to a tie or an end.

    By hand the step is taken apart and added up again, which rounds it twice more than division alone.
    """
    s, d = step.astype(np.float64)[:, None], grad.astype(np.float64)
    v = x / s
    inside = (v >= LOW) & (v <= HIGH)
    codes = np.rint(np.clip(v, LOW, HIGH))
    near = gamma(6, U) * np.abs(v)
    unsure = np.abs(v - np.floor(v) - 0.5) <= near
    at_end = (np.abs(v - LOW) <= near) | (np.abs(v - HIGH) <= near)
    terms = np.where(inside, codes - v, codes)
    g = 1 / math.sqrt(x.shape[1] * HIGH)
    exact = g * (d * terms).sum(axis=1)
    slack = gamma(x.shape[1] + 7, U) * np.abs(d * terms).sum(axis=1)
    slack = g * (slack + (np.abs(d) * (unsure - LOW * at_end + near * inside)).sum(axis=1))
    figures = {}
    for name, found in results.items():
        values, slopes, steps = (np.asarray(a, np.float64) for a in found)
        error = np.abs(values - s * codes)
        assert (error <= s * unsure + gamma(6, U) * np.abs(s * codes)).all(), f"{name}: wrong values"
        off = np.abs(slopes - np.where(inside, d, 0)) > gamma(3, U) * np.abs(d)  # by hand: times the step, and divided
        assert not (off & ~at_end).any(), f"{name}: wrong gradient of x"
        ratio = float((np.abs(steps - exact) / slack).max())
        assert ratio <= 1, f"{name}: gradient of a step off by {ratio:.3g} of its bound"
        figures[f"{name}: error of step gradients / bound"] = ratio
    return figures


def contenders(call: Callable[..., Answers], by_hand: Callable[..., Answers], *arrays: np.ndarray) -> dict[str, Any]:
    """The formulas by hand and both backends."""
    tensors = [torch.from_numpy(a) for a in arrays]
    return {
        "torch by hand": partial(by_hand, *tensors),
        "numba": partial(call, lowbit.load("numba"), *arrays),
        "torch": partial(call, lowbit.load("torch"), *tensors),
    }


def cases(*, quick: bool) -> Iterator[Case]:
    """One weight or activation of each kind."""
    rows, columns = (256, 512) if quick else (2048, 4096)
    rng = np.random.default_rng(0)
    x, grad = (rng.standard_normal((rows, columns), dtype=np.float32) for _ in range(2))
    yield Case(
        name=f"TWN of {rows} x {columns}, one scale, forward and backward",
        baseline="torch by hand",
        contenders=contenders(ternary, ternary_by_hand, x, grad),
        gate=partial(gate_ternary, w=x, grad=grad),
        memory=True,
    )
    step = lowbit.load("reference").lsq_init(x, bits=BITS, axis=0).step.astype(np.float32)
    yield Case(
        name=f"LSQ of {rows} x {columns}, {BITS} bits, a step per row, forward and backward",
        baseline="torch by hand",
        contenders=contenders(learned_step, learned_step_by_hand, x, step, grad),
        gate=partial(gate_learned_step, x=x, step=step, grad=grad),
        memory=True,
    )
