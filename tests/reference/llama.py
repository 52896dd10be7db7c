"""A small decoder in float64 with the weights of rotate_block: RMSNorm, rotary positions, grouped queries, SwiGLU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lowbit.reference.types import DecoderBlock

Array = npt.NDArray[Any]
Change = Callable[[Array], Array]


class Decoder(NamedTuple):
    """Everything a forward pass needs."""

    embedding: Array
    blocks: Sequence[Any]  # DecoderBlock of arrays
    norm: Array
    head: Array
    heads: int
    theta: float = 1e4
    eps: float = 1e-5


def same(x: Array) -> Array:
    """No online transform, no quantizer."""
    return x


def rms_norm(x: Array, gain: Array, eps: float) -> Array:
    return np.asarray(x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * gain)


def rotary(x: Array, theta: float) -> Array:
    """x (B, T, h, d_h), half-split form."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[1])[:, None] / theta ** (np.arange(half) / half)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def forward(
    model: Decoder, ids: Array, *, down_input: Change = same, o_input: Change = same, inputs: Change = same
) -> Array:
    """Logits. ``down_input`` and ``o_input`` act before these layers, ``inputs`` on every input of a block's layers."""
    x = model.embedding[ids]
    batch, length, _ = x.shape
    for raw in model.blocks:
        b: DecoderBlock[Array] = DecoderBlock(*(None if a is None else np.asarray(a, np.float64) for a in raw))  # type: ignore[arg-type]
        width = len(b.q) // model.heads
        shared = len(b.q) // len(b.v)
        h = inputs(rms_norm(x, b.input_norm, model.eps))
        q, k, v = (np.reshape(h @ w.T, (batch, length, -1, width)) for w in (b.q, b.k, b.v))
        if b.v_bias is not None:
            v = v + b.v_bias.reshape(-1, width)
        q, k = rotary(q, model.theta), np.repeat(rotary(k, model.theta), shared, axis=2)
        v = np.repeat(v, shared, axis=2)
        scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(width)
        scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
        weight = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weight /= weight.sum(axis=-1, keepdims=True)
        mixed = np.einsum("bhts,bshd->bthd", weight, v).reshape(batch, length, -1)
        x = x + inputs(o_input(mixed)) @ b.o.T + (0 if b.o_bias is None else b.o_bias)
        h = inputs(rms_norm(x, b.post_norm, model.eps))
        gate = h @ b.gate.T
        active = gate / (1 + np.exp(-gate)) * (h @ b.up.T)
        x = x + inputs(down_input(active)) @ b.down.T + (0 if b.down_bias is None else b.down_bias)
    return np.asarray(rms_norm(x, model.norm, model.eps) @ model.head.T)


def random_decoder(
    rng: np.random.Generator, *, d: int = 12, f: int = 20, heads: int = 4, kv: int = 2, layers: int = 2,
    words: int = 17, bias: bool = False, tied: bool = False,
) -> Decoder:  # fmt: skip
    """A decoder with outlier features and gains that are not one."""
    width = d // heads if d // heads % 2 == 0 else 2
    embedding = rng.standard_normal((words, d)) * np.exp(rng.standard_normal(d))

    def weight(*shape: int) -> Array:
        return rng.standard_normal(shape) / np.sqrt(shape[-1])

    blocks = []
    for _ in range(layers):
        biases = (weight(kv * width), weight(d), weight(d)) if bias else (None, None, None)
        blocks.append(
            DecoderBlock(
                np.exp(rng.standard_normal(d) / 2), weight(heads * width, d), weight(kv * width, d),
                weight(kv * width, d), weight(d, heads * width), np.exp(rng.standard_normal(d) / 2), weight(f, d),
                weight(f, d), weight(d, f), *biases,
            )
        )  # fmt: skip
    return Decoder(
        embedding, blocks, np.exp(rng.standard_normal(d) / 2), embedding if tied else weight(words, d), heads
    )
