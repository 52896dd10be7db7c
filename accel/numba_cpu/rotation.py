"""H: Hadamard transforms, rotations, quantized activations. The rules are those of :mod:`lowbit.reference.rotation`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lowbit.accel.common import hadamard
from lowbit.accel.common.philox import check_seed
from lowbit.accel.common.refusals import check_square
from lowbit.accel.common.rotation import block_shapes, check_fields, check_rotations, rotated
from lowbit.reference.errors import SpecError
from lowbit.reference.types import (
    ActivationClip,
    DecoderBlock,
    DecoderEnds,
    OutlierMeasures,
    Purpose,
    QuantizedActivations,
    Scheme,
)

from ._arrays import Array, finite_weights, fixed, numbers, refuse_bad, weights, working_dtype
from ._hadamard import BYTES
from ._jit import by_pieces, kernel
from ._transform import outer, refuse_unless_finite, stage, transform
from .philox import philox_normal, philox_words
from .uniform import dequantize, fit_grid, quantize

__all__ = [
    "activation_clip",
    "fuse_norm",
    "hadamard_matrix",
    "hadamard_transform",
    "kronecker_transform",
    "orthogonal_factor",
    "outlier_measures",
    "quantize_activations",
    "random_hadamard",
    "random_orthogonal",
    "rotate_block",
    "rotate_ends",
    "rotate_inputs",
    "rotate_outputs",
]

# --- Hadamard


def hadamard_matrix(*, order: int) -> Array:
    """The ±1 matrix of an order, int32.  [H-1]"""
    made = np.ones((1, 1), np.int32)
    for n in hadamard.factors(order):
        made = np.kron(made, hadamard.table(n).astype(np.int32))
    return made


def hadamard_transform(x: Array, /, *, block_size: int | None = None, transpose: bool = False) -> Array:
    """Normalised Hadamard transform of the last axis.  [H-2]"""
    given = weights("H-2", "x", x)
    size = hadamard.check_block(given.shape, block_size)
    return transform(given, hadamard.factors(size), bool(transpose))


def kronecker_transform(x: Array, table: Array, /, *, transpose: bool = False) -> Array:
    """The transform with a table of the caller's, (T ⊗ H) x / √n.  [H-2b]"""
    given, signs = weights("H-2", "x", x), numbers("H-2", "table", table)
    refuse_bad("H-2", "table", fixed(signs, working_dtype(signs)))
    hadamard.check_table(signs.astype(np.float64), given.shape)
    source = fixed(given, working_dtype(given))
    out = np.empty_like(source)
    if not out.size:
        return out
    order, n = len(signs), source.shape[-1]
    twos = n // order
    scale = 1 / math.sqrt(n)
    flat, result = source.reshape(-1), out.reshape(-1)
    part = np.asarray(signs if transpose else signs.T, source.dtype)
    lanes = BYTES // source.itemsize
    table_by_columns = fixed(np.ascontiguousarray(part).reshape(-1))
    if twos >= lanes and order % 4 == 0:
        finite = stage(flat, result, table_by_columns, order, twos, scale)
    elif twos >= lanes:  # orders 1 and 2
        finite = stage(flat, result, None, 1, twos, scale)
        finite = outer(fixed(result.copy()), result, table_by_columns, order, twos) and finite
    else:
        dense = np.kron(part, hadamard.table(twos).astype(source.dtype))
        finite = stage(flat, result, fixed(dense.reshape(-1)), n, 1, scale)
    if not finite:
        refuse_unless_finite(source)
    return out


# --- random rotations


def random_hadamard(*, order: int, seed: int, index: int = 0) -> Array:
    """Hadamard rotation with random signs, float64.  [H-3]"""
    matrix = hadamard_matrix(order=order)
    hadamard.check_index(index)
    check_seed(seed)
    words = philox_words(hadamard.addresses(1, order, index, Purpose.SIGNS), seed=seed).reshape(-1)[:order]
    value = 1 / math.sqrt(order)
    return np.where((words < 0)[:, None] ^ (matrix.T < 0), -value, value)


def orthogonal_factor(z: Array, /) -> Array:
    """Q of z = Q R with a positive diagonal of R, in float64.  [H-4]"""
    given = weights("H-4", "z", z)
    check_square("H-4", "z", given.shape)
    refuse_bad("H-4", "z", fixed(given, working_dtype(given)))
    return _haar(np.ascontiguousarray(given, np.float64))


def _haar(z: Array) -> Array:
    q, r = np.linalg.qr(z)
    q *= np.where(np.einsum("jj->j", r) < 0, -1.0, 1.0)
    q += 0.0
    return np.asarray(q)


def random_orthogonal(*, order: int, seed: int, index: int = 0) -> Array:
    """Haar distributed rotation, float64.  [H-4a]"""
    if isinstance(order, bool) or not isinstance(order, int) or order < 1:
        raise SpecError("H-4", f"order must be a positive integer, got {order!r}")
    hadamard.check_index(index)
    normals = philox_normal(hadamard.addresses(order, order, index, Purpose.HAAR), seed=seed)
    return _haar(normals.reshape(order, -1)[:, :order])


# --- weights


def fuse_norm(w: Array, gain: Array, /) -> Array:
    """W diag(g): a norm's gain taken into the layer that reads it.  [H-5]"""
    given = finite_weights("H-5", "w", w, (None, None))
    g = finite_weights("H-5", "gain", gain, (given.shape[1],))
    return (given * g.astype(np.float64)).astype(working_dtype(given))


def _blocks(name: str, q: Array, axis: int, repeats: int) -> Array:
    """Rotations of an axis as float64 (1 or blocks, d, d); checked but for their values."""
    check_rotations(name, q.shape, axis, repeats)
    refuse_bad("H-6", name, fixed(q, working_dtype(q)))
    wide = np.ascontiguousarray(q, np.float64)
    return wide[None] if q.ndim == 2 else np.repeat(wide, repeats, axis=0)


def _inputs(w: Array, q: Array) -> Array:
    """W (Q_1 ⊕ …) in float64; one Q serves all blocks."""
    d = q.shape[-1]
    if len(q) == 1 and d == w.shape[1]:
        return np.asarray(np.ascontiguousarray(w, np.float64) @ q[0])
    parts = np.ascontiguousarray(w, np.float64).reshape(len(w), w.shape[1] // d, d)
    return np.ascontiguousarray(np.swapaxes(np.swapaxes(parts, 0, 1) @ q, 0, 1)).reshape(w.shape)


def _outputs(w: Array, q: Array) -> Array:
    d = q.shape[-1]
    parts = np.ascontiguousarray(w, np.float64).reshape(len(w) // d, d, w.shape[1])
    return np.asarray((np.swapaxes(q, 1, 2) @ parts).reshape(w.shape))


def _rotate(w: Array, q: Array, repeats: int, axis: int, move: Callable[[Array, Array], Array]) -> Array:
    given, rotation = finite_weights("H-6", "w", w, (None, None)), weights("H-6", "q", q)
    return move(given, _blocks("q", rotation, given.shape[axis], repeats)).astype(working_dtype(given))


def rotate_inputs(w: Array, q: Array, /, *, repeats: int = 1) -> Array:
    """W (Q_1 ⊕ … ⊕ Q_b), in float64, rounded once.  [H-6]"""
    return _rotate(w, q, repeats, 1, _inputs)


def rotate_outputs(w: Array, q: Array, /, *, repeats: int = 1) -> Array:
    """(Q_1 ⊕ … ⊕ Q_b)ᵀ W, in float64, rounded once; arguments as in :func:`rotate_inputs`, over rows.  [H-6a]"""
    return _rotate(w, q, repeats, 0, _outputs)


def _checked_block(block: DecoderBlock[Array]) -> DecoderBlock[Array]:
    check_fields(block)
    given: dict[str, Any] = {
        name: None if a is None and name.endswith("_bias") else weights("H-7", f"block.{name}", a)
        for name, a in zip(DecoderBlock._fields, block, strict=True)
    }
    shapes = block_shapes(given)
    return DecoderBlock(
        *(None if a is None else finite_weights("H-7", f"block.{name}", a, shapes[name]) for name, a in given.items())  # type: ignore[arg-type]
    )


def _square(r1: Array, d: int) -> Array:
    given = weights("H-7", "r1", r1)
    check_square("H-7", "r1", given.shape, d)
    refuse_bad("H-7", "r1", fixed(given, working_dtype(given)))
    return np.ascontiguousarray(given, np.float64)[None]


def rotate_block(
    block: DecoderBlock[Array], r1: Array, r2: Array | None = None, /, *, online: bool = True
) -> DecoderBlock[Array]:
    """A decoder block with rotated residual stream, values and down projection, in float64, rounded once.  [H-7]"""
    b = _checked_block(block)
    q1 = _square(r1, b.q.shape[1])
    q2 = None
    if r2 is not None:
        second = weights("H-7", "r2", r2)
        if len(b.v) == 0 or b.o.shape[1] % len(b.v):
            raise SpecError("H-7", f"{b.o.shape[1]} query features are no multiple of {len(b.v)} value features")
        q2 = _blocks("r2", second, len(b.v), 1)
    orders = hadamard.factors(b.down.shape[1]) if online else (1,)
    g_in, g_post = b.input_norm.astype(np.float64), b.post_norm.astype(np.float64)
    made = rotated(np, b, (g_in, g_post), q1, q2, _inputs, _outputs)
    if online:
        made = made._replace(down=transform(made.down, orders, False))
    return DecoderBlock(
        *(None if x is None else x.astype(working_dtype(a)) for x, a in zip(made, b, strict=True))  # type: ignore[arg-type]
    )


def rotate_ends(
    embedding: Array, gain: Array, head: Array | None, r1: Array, /, *, centre: bool = False
) -> DecoderEnds[Array]:
    """Embedding E R1 and head W diag(g) R1, untied, in float64, rounded once.  [H-7a]"""
    first = finite_weights("H-7", "embedding", embedding, (None, None))
    d = first.shape[1]
    g = finite_weights("H-7", "gain", gain, (d,)).astype(np.float64)
    last = first if head is None else finite_weights("H-7", "head", head, (None, d))
    q = _square(r1, d)
    wide = np.array(first, np.float64, order="C")
    if centre:
        wide -= wide.mean(axis=1, keepdims=True)
    return DecoderEnds(_inputs(wide, q).astype(working_dtype(first)), _inputs(last * g, q).astype(working_dtype(last)))


# --- activations


@kernel
def _measures(x: Any, kurtosis: Any, peak: Any) -> None:
    """Both measures of every row of finite entries."""
    for r in range(len(x)):
        row = x[r]
        size, level = 0.0, True
        for i in range(row.size):
            size = max(size, abs(np.float64(row[i])))
            level &= row[i] == row[0]
        unit = size if size > 0.0 else 1.0  # fourth powers would leave the range
        mean = 0.0
        for i in range(row.size):
            mean += np.float64(row[i]) / unit
        mean /= row.size
        second, fourth, square = 0.0, 0.0, 0.0
        for i in range(row.size):
            value = np.float64(row[i]) / unit
            distance = (value - mean) * (value - mean)
            second += distance
            fourth += distance * distance
            square += value * value
        second /= row.size
        kurtosis[r] = 0.0 if level else fourth / row.size / (second * second) - 3.0
        peak[r] = 1.0 / math.sqrt(square / row.size) if size > 0.0 else 0.0


def outlier_measures(x: Array, /) -> OutlierMeasures[Array]:
    """Excess kurtosis and peak-to-rms of every token, computed in float64.  [H-8]"""
    given = weights("H-8", "x", x)
    if given.ndim == 0 or given.shape[-1] == 0:
        raise SpecError("H-8", f"x must have at least one entry per token, got shape {given.shape}")
    source = fixed(given, working_dtype(given))
    refuse_bad("H-8", "x", source)
    rows = source.reshape(-1, source.shape[-1])
    kurtosis, peak = np.empty(len(rows), source.dtype), np.empty(len(rows), source.dtype)
    by_pieces(rows.shape, lambda p: _measures(rows[p], kurtosis[p], peak[p]))
    return OutlierMeasures(kurtosis.reshape(given.shape[:-1]), peak.reshape(given.shape[:-1]))


def quantize_activations(
    x: Array,
    /,
    *,
    bits: int,
    scheme: Scheme = "symmetric",
    clip_ratio: float = 1.0,
    group_size: int | None = None,
) -> QuantizedActivations[Array]:
    """Codes, grids and values of activations, token by token.  [H-9]"""
    scale, zero = fit_grid(
        x, bits=bits, scheme=scheme, granularity="token" if group_size is None else "group", group_size=group_size,
        clip_ratio=clip_ratio,
    )  # fmt: skip
    codes = quantize(x, scale, zero, bits=bits, scheme=scheme)
    return QuantizedActivations(codes, scale, zero, dequantize(codes, scale, zero))


@kernel
def _error(x: Any, y: Any, norm: float) -> Any:
    total = 0.0
    for i in range(x.size):
        distance = abs(np.float64(y[i]) - np.float64(x[i]))
        total += distance * distance if norm == 2.0 else distance**norm
    return total


def _total_error(x: Array, y: Array, norm: float) -> Any:
    return np.array(by_pieces((x.size, 1), lambda p: _error(x[p], y[p], norm))).sum()


def activation_clip(
    x: Array,
    /,
    *,
    bits: int,
    scheme: Scheme = "symmetric",
    group_size: int | None = None,
    norm: float = 2.0,
    grid: int = 20,
    max_shrink: float = 0.5,
) -> ActivationClip[Array]:
    """The clipping ratio for all tokens with the least error, and the error of every candidate.  [H-10]"""
    steps = hadamard.check_clip(norm, grid, max_shrink)
    given = weights("H-10", "x", x)
    flat = fixed(given, working_dtype(given)).reshape(-1)
    errors = np.empty(steps)
    for step in range(steps):
        found = quantize_activations(given, bits=bits, scheme=scheme, clip_ratio=1 - step / grid, group_size=group_size)
        values = fixed(found.values).reshape(-1)
        errors[step] = _total_error(flat, values, float(norm))
    return ActivationClip(1 - int(np.argmin(errors)) / grid, errors)
