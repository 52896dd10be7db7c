"""What every setting would cost a module in nats: the table that a decision is made from.

Three widths are rounded for it, and the divergence of each error (chapter F of the specification) is what that width
costs; every further bit divides a uniform grid's error by what it divides its squared step by. Group sizes are compared
by rounding to nearest. The spectrum of the error says which share of it every rank leaves, and what the rounding of the
factors adds is the error of a uniform grid again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from lowbit.models.linears import Linear

from .arrays import Arrays
from .compensate import DAMPING
from .method import Method
from .quantize import quantize
from .setting import DENSE, Setting

__all__ = ["linear_losses", "row_losses"]

_ROUNDED = 4  # bits up to which a width is rounded: clipping, which the law of the step does not know, matters there
_SHAPED = 3  # bits up to which an error has a spectrum of its own: beyond, that of this width
_GROUPED = 3  # bits at which group sizes are compared
_OFTEN, _SAMPLE = 2048, 16  # rows of an embedding that are all looked at, by importance; one in so many of the rest
_GROUP_RANGE = 4.8  # mean range of 64 standard normal numbers: what a grid of a group of a factor has to span

Cost = Callable[[Method, bool], float]
"""Nats that rounding by a method costs a module; whether it is the method asked for, or a stand-in."""


def linear_losses(
    method: Method,
    arrays: Arrays,
    name: str,
    linear: Linear,
    w: torch.Tensor,
    c: Any,
    g: Any,
    settings: Sequence[Setting],
) -> list[float | None]:
    """Nats per token that a layer costs under each of ``settings``; None where a setting does not fit its shape.

    Args:
        method: how weights are rounded.
        arrays: of the backend that computes.
        name: full name of the layer.
        linear: its layout.
        w: weight, float32 (m, k).
        c: second moment of its inputs, an array (k, k).
        g: second moment of the gradients at its outputs, an array (m, m).
        settings: what is offered.
    """
    backend, left = arrays.backend, dict[int, torch.Tensor]()
    most = min(linear.shape) // 2
    ranked = any(setting.rank for setting in settings)

    def cost(own: Method, exact: bool) -> float:
        error = arrays.give(w - quantize(own, arrays, name, linear, w, c).weight)
        if ranked and exact and (own.bits <= _SHAPED or not left):
            left[own.bits] = _left(arrays.take(backend.divergence_spectrum(error, c, g, damping=DAMPING)))
        return max(0.0, float(backend.divergence(error, c, g)))

    if not linear.packable:  # stored dense whatever its codes are
        return [0.0 if setting.bits == DENSE and setting.rank == 0 else None for setting in settings]
    costs = _costs(method, linear.shape[1], cost, settings)

    def loss(setting: Setting) -> float | None:
        found = costs.get((setting.bits, setting.group_size))
        if found is None or setting.rank == 0:
            return found
        if setting.bits == DENSE or setting.rank > most:
            return None
        rest = float(left[min(left, key=lambda bits: abs(bits - setting.bits))][setting.rank])
        return found * (rest + (1 - rest) * _rounding(setting.factor_bits))

    return [loss(setting) for setting in settings]


def row_losses(
    method: Method,
    arrays: Arrays,
    weight: torch.Tensor,
    uses: Sequence[tuple[torch.Tensor, torch.Tensor]],
    settings: Sequence[Setting],
) -> list[float | None]:
    """The same for embedding and head, whose rows count one by one: ½ Σ_v p_v d_v M d_vᵀ, summed over their uses.

    As the head, p is the mean probability of a token and M the moment of its inputs: the softmax's own information is
    diag(p) − p pᵀ, of which the second part is left out, so this is never too small. As the embedding, p is how often
    a token occurs and M the moment of the gradients there. Of the rows that count least, only a sample is rounded.

    Args:
        weight: (V, k), of any float type.
        uses: (p, M) of every use, float64 (V,) and (k, k).
    """
    order = torch.stack([p for p, _ in uses]).sum(0).argsort(descending=True, stable=True)
    rows = torch.cat([order[:_OFTEN], order[_OFTEN::_SAMPLE]])
    times = torch.ones(len(rows), dtype=torch.float64)
    times[_OFTEN:] = max(0, len(order) - _OFTEN) / max(1, len(rows) - _OFTEN)
    w = weight[rows].to(torch.float32).contiguous()
    part = Linear("", (len(rows), w.shape[1]), transposed=False)
    moment = arrays.give(sum(m for _, m in uses).to(arrays.moment_dtype))  # type: ignore[union-attr]

    def cost(own: Method, exact: bool) -> float:
        d = (w - quantize(own, arrays, "", part, w, moment).weight).to(torch.float64)
        return sum(float(((d @ m) * d).sum(1) @ (p[rows] * times)) / 2 for p, m in uses)

    costs = _costs(method, w.shape[1], cost, settings)
    return [costs.get((setting.bits, setting.group_size)) if setting.rank == 0 else None for setting in settings]


def _costs(
    method: Method, columns: int, cost: Cost, settings: Sequence[Setting]
) -> dict[tuple[int, int | None], float]:
    """Nats by bits and group size, of those that fit."""
    fit = [size for size in dict.fromkeys(s.group_size for s in settings) if not size or columns % size == 0]
    fit.sort(key=lambda size: size != method.group_size)  # what everything is rounded with, if it fits
    widths = sorted({setting.bits for setting in settings if setting.bits < DENSE})
    found: dict[tuple[int, int | None], float] = {(DENSE, size): 0.0 for size in [*fit, None]}
    if not fit or not widths:
        return found
    plain = replace(method.blind(), bits=_GROUPED, clip_search=False)
    coarse = {size: cost(replace(plain, group_size=size), False) for size in fit} if len(fit) > 1 else {}
    rounded = [bits for bits in widths if bits <= _ROUNDED] or widths[:1]
    for bits in widths:
        if bits in rounded:
            base = cost(replace(method, bits=bits, group_size=fit[0]), True)
        else:
            base = found[rounded[-1], fit[0]] * ((2 ** rounded[-1] - 1) / (2**bits - 1)) ** 2
        for size in fit:
            ratio = coarse[size] / coarse[fit[0]] if coarse and coarse[fit[0]] > 0 else 1.0
            found[bits, size] = base * ratio
    return found


def _left(values: torch.Tensor) -> torch.Tensor:
    """Singular values, descending → share of their squared sum behind the first 0, 1, ... of them."""
    squares = values.to(torch.float64).square()
    tails = torch.cat([squares, squares.new_zeros(1)]).flip(0).cumsum(0).flip(0)
    return tails / tails[0] if float(tails[0]) > 0 else torch.zeros_like(tails)


def _rounding(bits: int) -> float:
    """Relative squared error of B A when both factors are rounded to ``bits``: twice a step squared over twelve."""
    return 0.0 if bits == DENSE else float(2 * (_GROUP_RANGE / (2**bits - 1)) ** 2 / 12)
