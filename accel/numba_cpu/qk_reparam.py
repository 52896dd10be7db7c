"""O: query-key reparameterisation. The rules are those of :mod:`lowbit.reference.qk_reparam`.

Products are NumPy's. Without a quantizer between them queries and keys are multiplied on their own, d numbers each,
instead of C through the product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lowbit.accel.common.oscillation import check_attention, check_heads, check_words
from lowbit.accel.common.refusals import check_matrix
from lowbit.reference.types import Biases, FrozenSpace, QkrGradient, QkrQuantizers

from ._arrays import Array, finite_weights, fixed, working_dtype
from .oscillation import boolean

__all__ = ["qkr_attention", "qkr_grad", "qkr_weight"]


def _projections(clause: str, w_q: Any, w_k: Any, heads: int) -> tuple[Array, Array]:
    q = finite_weights(clause, "w_q", w_q, (None, None))
    k = finite_weights(clause, "w_k", w_k, q.shape)
    check_heads(clause, "w_q and w_k", q.shape[0], heads)
    return q, k


def _by_head(x: Array, heads: int, dtype: Any) -> Array:
    """(H·d, C) as (H, d, C)."""
    return fixed(x, dtype).reshape(heads, x.shape[0] // heads, x.shape[1])


def qkr_weight(w_q: Array, w_k: Array, /, *, heads: int) -> Array:
    """The stacked product of query and key weights.  [O-8]"""
    q, k = _projections("O-8", w_q, w_k, heads)
    return _product(q, k, heads, working_dtype(q, k))


def _product(q: Array, k: Array, heads: int, dtype: Any) -> Array:
    product = _by_head(q, heads, dtype).swapaxes(1, 2) @ _by_head(k, heads, dtype)
    return np.asarray(product.reshape(heads * q.shape[1], q.shape[1]))


def qkr_grad(
    w_q: Array,
    w_k: Array,
    grad: Array,
    active: Array | None = None,
    /,
    *,
    heads: int,
    freeze: FrozenSpace = "product",
) -> QkrGradient[Array]:
    """Gradients of the latent query and key weights from that of the product.  [O-8a, O-8b]"""
    check_words("O-8", freeze=freeze)
    q, k = _projections("O-8", w_q, w_k, heads)
    C = q.shape[1]
    slope = finite_weights("O-8", "grad", grad, (heads * C, C))
    on = None if active is None else boolean("O-8", "active", active, slope.shape)
    dtype = working_dtype(q, k, slope)
    g = fixed(slope, dtype)
    if on is not None and freeze == "product":
        g = np.where(on, g, dtype(0))
    g = g.reshape(heads, C, C)
    to_q, to_k = _by_head(k, heads, dtype) @ g.swapaxes(1, 2), _by_head(q, heads, dtype) @ g
    return QkrGradient(np.ascontiguousarray(to_q).reshape(q.shape), np.ascontiguousarray(to_k).reshape(k.shape))


def _passed(quantizer: Callable[[Any], Any] | None, x: Array, name: str) -> Array:
    if quantizer is None:
        return x
    y = finite_weights("O-9", f"the result of quantizer {name!r}", quantizer(x))
    check_matrix("O-9", f"the result of quantizer {name!r}", y.shape, x.shape)
    return fixed(y, working_dtype(x, y))


def qkr_attention(
    x: Array,
    w_q: Array,
    w_k: Array,
    w_v: Array,
    b_q: Array | None = None,
    b_v: Array | None = None,
    /,
    *,
    heads: int,
    biases: Biases = "kept",
    quantizers: QkrQuantizers | None = None,
) -> Array:
    """Self-attention by the product of query and key weights.  [O-9]"""
    check_words("O-9", biases=biases)
    tokens = finite_weights("O-9", "x", x, (None, None, None))
    q, k = _projections("O-9", w_q, w_k, heads)
    value = finite_weights("O-9", "w_v", w_v, (None, None))
    check_attention("O-9", tokens.shape, q.shape, value.shape, heads)
    used = [tokens, q, k, value]
    shift = None if b_q is None else finite_weights("O-9", "b_q", b_q, (q.shape[0],))
    offset = None if b_v is None else finite_weights("O-9", "b_v", b_v, (value.shape[0],))
    dtype: Any = working_dtype(*used, *(b for b in (shift, offset) if b is not None))
    Q = QkrQuantizers() if quantizers is None else quantizers
    (B, N, C), D = tokens.shape, value.shape[0]
    d = q.shape[0] // heads
    seen = _passed(Q.input, fixed(tokens, dtype), "input")
    bias = None if shift is None or biases == "dropped" else fixed(shift, dtype).reshape(heads, d)
    if Q.product is None and Q.keys is None:
        left = (seen @ fixed(q, dtype).T).reshape(B, N, heads, d).transpose(0, 2, 1, 3)
        right = (seen @ fixed(k, dtype).T).reshape(B, N, heads, d).transpose(0, 2, 3, 1)
        scores = (left if bias is None else left + bias[:, None]) @ right
    else:
        product = _passed(Q.product, _product(q, k, heads, dtype), "product")
        keys = _passed(Q.keys, (seen @ product.T).reshape(B, N * heads, C), "keys")
        scores = seen[:, None] @ keys.reshape(B, N, heads, C).transpose(0, 2, 3, 1)
        if bias is not None:
            scores += (bias[:, None] @ _by_head(k, heads, dtype)) @ seen[:, None].swapaxes(2, 3)
    scores *= dtype(1 / math.sqrt(max(d, 1)))
    if N:
        scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    attention = _passed(Q.attention, scores, "attention")
    projected = seen @ _passed(Q.value_weight, fixed(value, dtype), "value_weight").T
    if offset is not None:
        projected += fixed(offset, dtype)
    values = _passed(Q.value, projected, "value").reshape(B, N, heads, D // heads).transpose(0, 2, 1, 3)
    context = (attention @ values).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(context).reshape(B, N, D)
