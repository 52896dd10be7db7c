"""Chapter O: query-key reparameterisation. The rules are those of :mod:`lowbit.reference.qk_reparam`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lowbit.accel.common.oscillation import check_attention, check_heads, check_words
from lowbit.reference.types import Biases, FrozenSpace, QkrGradient, QkrQuantizers

from .arrays import finite_weights, operation, working_dtype
from .oscillation import check_boolean

__all__ = ["qkr_attention", "qkr_grad", "qkr_weight"]


def projections(clause: str, w_q: Tensor, w_k: Tensor, heads: int, *, like: Tensor | None) -> tuple[Tensor, Tensor]:
    """Checked query and key weights."""
    q = finite_weights(clause, "w_q", w_q, (None, None), like=like)
    k = finite_weights(clause, "w_k", w_k, tuple(q.shape), like=q)
    check_heads(clause, "w_q and w_k", q.shape[0], heads)
    return q, k


def by_head(x: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """(H·d, C) as (H, d, C)."""
    return x.to(dtype).reshape(heads, x.shape[0] // heads, x.shape[1])


def stacked_product(q: Tensor, k: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """(H·C, C)."""
    product = by_head(q, heads, dtype).mT @ by_head(k, heads, dtype)
    return product.reshape(heads * q.shape[1], q.shape[1])


@operation
def qkr_weight(w_q: Tensor, w_k: Tensor, /, *, heads: int) -> Tensor:
    """The stacked product of query and key weights.  [O-8]"""
    q, k = projections("O-8", w_q, w_k, heads, like=None)
    return stacked_product(q, k, heads, working_dtype(q, k))


@operation
def qkr_grad(
    w_q: Tensor,
    w_k: Tensor,
    grad: Tensor,
    active: Tensor | None = None,
    /,
    *,
    heads: int,
    freeze: FrozenSpace = "product",
) -> QkrGradient[Tensor]:
    """Gradients of the latent query and key weights from that of the product.  [O-8a, O-8b]"""
    check_words("O-8", freeze=freeze)
    q, k = projections("O-8", w_q, w_k, heads, like=None)
    C = q.shape[1]
    g = finite_weights("O-8", "grad", grad, (heads * C, C), like=q)
    dtype = working_dtype(q, k, g)
    g = g.to(dtype)
    if active is not None:
        on = check_boolean("O-8", "active", active, g.shape, like=q)
        if freeze == "product":
            g = torch.where(on, g, 0.0)
    g = g.reshape(heads, C, C)
    to_q, to_k = by_head(k, heads, dtype) @ g.mT, by_head(q, heads, dtype) @ g
    return QkrGradient(to_q.reshape(q.shape), to_k.reshape(k.shape))


def passed(quantizer: Callable[[Any], Any] | None, x: Tensor, name: str) -> Tensor:
    """What a quantizer makes of a tensor."""
    if quantizer is None:
        return x
    y = finite_weights("O-9", f"the result of quantizer {name!r}", quantizer(x), tuple(x.shape), like=x)
    return y.to(working_dtype(x, y))


def times(x: Tensor, y: Tensor) -> Tensor:
    """A product in the wider type of both: a quantizer may answer in another one than it was given."""
    dtype = working_dtype(x, y)
    return x.to(dtype) @ y.to(dtype)


@operation
def qkr_attention(
    x: Tensor,
    w_q: Tensor,
    w_k: Tensor,
    w_v: Tensor,
    b_q: Tensor | None = None,
    b_v: Tensor | None = None,
    /,
    *,
    heads: int,
    biases: Biases = "kept",
    quantizers: QkrQuantizers | None = None,
) -> Tensor:
    """Self-attention by the product of query and key weights.  [O-9]

    Without a quantizer on product or keys, queries and keys are multiplied on their own: d numbers each, instead of C.
    """
    check_words("O-9", biases=biases)
    x = finite_weights("O-9", "x", x, (None, None, None))
    q, k = projections("O-9", w_q, w_k, heads, like=x)
    value = finite_weights("O-9", "w_v", w_v, (None, None), like=x)
    check_attention("O-9", x.shape, q.shape, value.shape, heads)
    shift = None if b_q is None else finite_weights("O-9", "b_q", b_q, (q.shape[0],), like=x)
    offset = None if b_v is None else finite_weights("O-9", "b_v", b_v, (value.shape[0],), like=x)
    dtype = working_dtype(x, q, k, value, *(b for b in (shift, offset) if b is not None))
    Q = QkrQuantizers() if quantizers is None else quantizers
    (B, N, C), D = x.shape, value.shape[0]
    d = q.shape[0] // heads
    seen = passed(Q.input, x.to(dtype), "input")
    bias = None if shift is None or biases == "dropped" else shift.to(dtype).reshape(heads, 1, d)
    if Q.product is None and Q.keys is None:
        left = times(seen, q.mT).reshape(B, N, heads, d).transpose(1, 2)
        right = times(seen, k.mT).reshape(B, N, heads, d).permute(0, 2, 3, 1)
        scores = times(left if bias is None else left + bias, right)
    else:
        product = passed(Q.product, stacked_product(q, k, heads, dtype), "product")
        keys = passed(Q.keys, times(seen, product.mT).reshape(B, N * heads, C), "keys")
        scores = times(seen[:, None], keys.reshape(B, N, heads, C).permute(0, 2, 3, 1))
        if bias is not None:
            scores = scores + times(bias @ by_head(k, heads, dtype), seen[:, None].mT)
    attention = passed(Q.attention, torch.softmax(scores * (1 / math.sqrt(max(d, 1))), -1), "attention")
    weight = passed(Q.value_weight, value.to(dtype), "value_weight")
    projected = times(seen, weight.mT)
    values = passed(Q.value, projected if offset is None else projected + offset.to(dtype), "value")
    context = times(attention, values.reshape(B, N, heads, D // heads).transpose(1, 2))
    return context.transpose(1, 2).reshape(B, N, D)
