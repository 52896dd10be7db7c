"""Chapter H for any arrays: shapes of a decoder block and of rotations, and where in a block each rotation goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lowbit.reference.errors import SpecError
from lowbit.reference.types import DecoderBlock

__all__ = ["block_shapes", "check_fields", "check_rotations", "rotated"]

Array = Any  # of whatever backend
Product = Callable[[Array, Array], Array]


def check_rotations(name: str, shape: Sequence[int], axis: int, repeats: int) -> None:
    """Refuse rotations (d, d) or (b, d, d) that do not cover an axis of so many features."""
    if len(shape) not in (2, 3) or shape[-1] != shape[-2] or 0 in shape:
        raise SpecError("H-6", f"{name} must have shape (d, d) or (b, d, d), got {tuple(shape)}")
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise SpecError("H-6", f"repeats must be a positive integer, got {repeats!r}")
    step = repeats * shape[-1]
    if shape[0] * step != axis if len(shape) == 3 else axis % step:
        fault = f"{name} of shape {tuple(shape)}, repeated {repeats} times, does not cover {axis} features"
        raise SpecError("H-6", fault)


def check_fields(block: Sequence[Array | None]) -> None:
    """Refuse a tuple that is no decoder block."""
    names = DecoderBlock._fields
    if len(block) != len(names):
        raise SpecError("H-7", f"block must have the fields {', '.join(names)}")


def block_shapes(block: Mapping[str, Array]) -> dict[str, tuple[int | None, ...]]:
    """Shapes that the fields of a block must have, after some of them."""
    d = math.prod(block["input_norm"].shape)
    f, values = (block[name].shape[0] if block[name].ndim else 0 for name in ("gate", "v"))
    return {
        "input_norm": (d,), "q": (None, d), "k": (None, d), "v": (None, d), "o": (d, None), "post_norm": (d,),
        "gate": (f, d), "up": (f, d), "down": (d, f), "v_bias": (values,), "o_bias": (d,), "down_bias": (d,),
    }  # fmt: skip


def rotated(
    xp: Any, b: DecoderBlock[Array], gains: tuple[Array, Array], q1: Array, q2: Array | None, inputs: Product,
    outputs: Product,
) -> DecoderBlock[Array]:  # fmt: skip
    """A checked block with gains in float64 fused, all in float64: W Q by ``inputs``, Qᵀ W by ``outputs``."""
    g_in, g_post = gains
    q, k, v = (inputs(w * g_in, q1) for w in (b.q, b.k, b.v))
    gate, up = (inputs(w * g_post, q1) for w in (b.gate, b.up))
    o, down, v_bias = outputs(b.o, q1), outputs(b.down, q1), b.v_bias
    if q2 is not None:
        own = q2  # one for all heads, or one for the query heads of every value head
        if len(q2) > 1:
            heads, share, d = len(q2), b.o.shape[1] // len(b.v), q2.shape[-1]
            own = xp.broadcast_to(q2[:, None], (heads, share, d, d)).reshape(heads * share, d, d)
        v, o = outputs(v, q2), inputs(o, own)
        v_bias = None if v_bias is None else outputs(v_bias[:, None], q2)[:, 0]
    o_bias, down_bias = (None if x is None else outputs(x[:, None], q1)[:, 0] for x in (b.o_bias, b.down_bias))
    ones = xp.ones_like(g_in), xp.ones_like(g_post)
    return DecoderBlock(ones[0], q, k, v, o, ones[1], gate, up, down, v_bias, o_bias, down_bias)
