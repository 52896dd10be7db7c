"""Chapter H: Hadamard transforms as products with small tables, rotations in float64, quantized activations.

A table of order 2^t is the Kronecker product of smaller ones, so a transform is a few matrix products with tables of
at most 64 rows: little arithmetic beyond the butterflies', and all of it in the library's fastest routine.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lowbit.accel.common import hadamard
from lowbit.accel.common.philox import check_seed
from lowbit.accel.common.refusals import check_matrix, check_square
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

from . import philox, policy, triton, uniform
from .arrays import as_numbers, as_weights, operation, refuse_nan, row_chunks, working_dtype

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

_WIDEST = 64  # rows of a table of powers of two: beyond, two products are cheaper than one


# --- Hadamard


def _split(order: int) -> tuple[int, int]:
    """(K, 2^t) of an order, K the product of all other factors."""
    parts = hadamard.factors(order)
    twos = parts[-1] if parts[-1] & (parts[-1] - 1) == 0 else 1
    return order // twos, twos


def _transformable(op: str, facts: Mapping[str, Any], /) -> Literal[True] | str:
    """Whether a row fits the registers of a program, and its table a product of float32."""
    if facts.get("dtype") == torch.float64:
        return "Hadamard transforms of float64 are matrix products: torch serves them"
    order = facts.get("order")
    if order is not None:
        odd, twos = _split(order)
        if odd > 64 or order > 1 << 15:
            return f"a row of {order} = {odd} x {twos} is too large for one program: torch serves it"
    return True


triton.KERNELS.update(hadamard_transform=_transformable)


@functools.lru_cache(maxsize=64)
def _table(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The table of a factor as a tensor; made outside of inference mode so that every later call may use it."""
    with torch.inference_mode(False):
        return torch.from_numpy(hadamard.table(n).copy()).to(device=device, dtype=dtype)


def _small(orders: tuple[int, ...]) -> tuple[int, ...]:
    """Factors with powers of two split into parts of at most 64."""
    parts: list[int] = []
    for n in orders:
        while n & (n - 1) == 0 and n > _WIDEST:
            bits = n.bit_length() - 1
            first = 1 << (bits // math.ceil(bits / (_WIDEST.bit_length() - 1)))
            parts.append(first)
            n //= first
        parts.append(n)
    return tuple(parts)


@operation
def hadamard_matrix(*, order: int) -> Tensor:
    """The ±1 matrix of an order, int32.  [H-1]"""
    made = torch.ones((1, 1), dtype=torch.int32, device=policy.device())
    for n in hadamard.factors(order):
        made = torch.kron(made, _table(n, torch.int32, made.device))
    return made


def _multiply(x: Tensor, tables: list[Tensor]) -> Tensor:
    """x (rows, n) times the Kronecker product of tables, last factor first."""
    rows, n = x.shape
    inner = 1
    for table in reversed(tables):
        k = len(table)
        if inner == 1:
            x = x.reshape(-1, k) @ table.mT
        else:
            x = table @ x.reshape(-1, k, inner)
        inner *= k
    return x.reshape(rows, n)


def _transformed(x: Tensor, size: int, tables: list[Tensor], name: str) -> Tensor:
    """Every run of ``size`` columns through the tables; NaN and infinities are noticed in the results.

    Every result is a signed sum of all inputs of its run, so that one look per run tells whether all are finite.
    """
    dtype = working_dtype(x)
    rows = x.reshape(-1, size)
    out = torch.empty(rows.shape, dtype=dtype, device=x.device)
    scale = 1 / math.sqrt(size)
    for part in row_chunks(len(rows), size, x.device):
        out[part] = _multiply(rows[part].to(dtype), tables).mul_(scale)
    if out.numel() and not bool(torch.isfinite(out[:, 0]).all()):
        refuse_nan("H-2", name, x)
    return out.reshape(x.shape)


def check_transform(x: Tensor, block_size: int | None) -> tuple[Tensor, int]:
    """Checked input of :func:`hadamard_transform` and the length of a run."""
    x = as_weights("H-2", "x", x)
    size = hadamard.check_block(tuple(x.shape), block_size)
    hadamard.factors(size)
    return x, size


def transform_checked(x: Tensor, size: int, transpose: bool) -> Tensor:
    """The transform of checked arguments by matrix products."""
    tables = [_table(n, working_dtype(x), x.device) for n in _small(hadamard.factors(size))]
    return _transformed(x, size, [t.mT for t in tables] if transpose else tables, "x")


def transform_by_kernel(x: Tensor, size: int, transpose: bool) -> Tensor:
    """The transform of checked arguments by the Triton kernel."""
    odd, twos = _split(size)
    matrix = torch.ones((1, 1), dtype=torch.float32, device=x.device)
    for n in hadamard.factors(size):
        if odd > 1 and n != twos:
            matrix = torch.kron(matrix, _table(n, torch.float32, x.device))
    out: Tensor = triton.launcher("rotation").hadamard_transform(x, matrix.mT if transpose else matrix, twos)
    if out.numel() and not bool(torch.isfinite(out.reshape(-1, size)[:, 0]).all()):
        refuse_nan("H-2", "x", x)
    return out


@operation
def hadamard_transform(x: Tensor, /, *, block_size: int | None = None, transpose: bool = False) -> Tensor:
    """Normalised Hadamard transform of the last axis.  [H-2]"""
    x, size = check_transform(x, block_size)
    serve = transform_by_kernel if policy.by_kernel("hadamard_transform", x, order=size) else transform_checked
    return serve(x, size, transpose)


def check_kronecker(x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Checked arguments of :func:`kronecker_transform`."""
    x = as_weights("H-2", "x", x)
    table = as_numbers("H-2", "table", table, like=x)
    refuse_nan("H-2", "table", table)
    hadamard.check_table(table.to("cpu", torch.float64).numpy(), tuple(x.shape))
    return x, table


def kronecker_checked(x: Tensor, table: Tensor, transpose: bool) -> Tensor:
    """The transform of checked arguments by matrix products."""
    dtype, n, k = working_dtype(x), x.shape[-1], len(table)
    first = table.to(dtype)
    rest = [_table(p, dtype, x.device) for p in _small((n // k,))]
    return _transformed(x, n, [first.mT if transpose else first, *rest], "x")


@operation
def kronecker_transform(x: Tensor, table: Tensor, /, *, transpose: bool = False) -> Tensor:
    """The transform with a table of the caller's, (T ⊗ H) x / √n.  [H-2b]"""
    return kronecker_checked(*check_kronecker(x, table), transpose)


# --- random rotations


def _addresses(rows: int, columns: int, index: int, purpose: Purpose) -> Tensor:
    return torch.from_numpy(hadamard.addresses(rows, columns, index, purpose)).to(policy.device())


@operation
def random_hadamard(*, order: int, seed: int, index: int = 0) -> Tensor:
    """Hadamard rotation with random signs, float64.  [H-3]"""
    matrix = hadamard_matrix(order=order)
    hadamard.check_index(index)
    check_seed(seed)
    words = philox.words(_addresses(1, order, index, Purpose.SIGNS), seed).reshape(-1)[:order]
    signs = 1 - 2 * (words >> 31)
    return (signs[:, None] * matrix.mT).to(torch.float64) / math.sqrt(order)


@operation
def orthogonal_factor(z: Tensor, /) -> Tensor:
    """Q of z = Q R with a positive diagonal of R, in float64.  [H-4]"""
    z = as_weights("H-4", "z", z)
    check_square("H-4", "z", tuple(z.shape))
    refuse_nan("H-4", "z", z)
    return _haar(z.to(torch.float64))


def _haar(z: Tensor) -> Tensor:
    q, r = torch.linalg.qr(z)
    made: Tensor = q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(q.dtype) + 0.0
    return made


@operation
def random_orthogonal(*, order: int, seed: int, index: int = 0) -> Tensor:
    """Haar distributed rotation, float64.  [H-4a]"""
    if isinstance(order, bool) or not isinstance(order, int) or order < 1:
        raise SpecError("H-4", f"order must be a positive integer, got {order!r}")
    hadamard.check_index(index)
    normals = philox.philox_normal(_addresses(order, order, index, Purpose.HAAR), seed=seed)
    return _haar(normals.reshape(order, -1)[:, :order])


# --- weights


def _fused(w: Tensor, gain: Tensor) -> Tensor:
    return w.to(torch.float64) * gain.to(torch.float64)


@operation
def fuse_norm(w: Tensor, gain: Tensor, /) -> Tensor:
    """W diag(g): a norm's gain taken into the layer that reads it.  [H-5]"""
    w = as_weights("H-5", "w", w)
    gain = as_weights("H-5", "gain", gain, like=w)
    check_matrix("H-5", "w", tuple(w.shape), (None, None))
    check_matrix("H-5", "gain", tuple(gain.shape), (w.shape[1],))
    refuse_nan("H-5", "w", w)
    refuse_nan("H-5", "gain", gain)
    return _fused(w, gain).to(working_dtype(w))


def _blocks(q: Tensor, axis: int, repeats: int, name: str = "q") -> Tensor:
    """Rotations of an axis as float64 (1 or blocks, d, d); checked but for their values."""
    check_rotations(name, q.shape, axis, repeats)
    q = q.to(torch.float64)
    return q[None] if q.ndim == 2 else q.repeat_interleave(repeats, dim=0)


def _inputs(w: Tensor, q: Tensor) -> Tensor:
    """W (Q_1 ⊕ …) in float64; one Q serves all blocks."""
    d = q.shape[-1]
    parts = w.to(torch.float64).reshape(len(w), w.shape[1] // d, d)
    return torch.matmul(parts.transpose(0, 1), q).transpose(0, 1).reshape(w.shape)


def _outputs(w: Tensor, q: Tensor) -> Tensor:
    d = q.shape[-1]
    parts = w.to(torch.float64).reshape(len(w) // d, d, w.shape[1])
    return torch.matmul(q.mT, parts).reshape(w.shape)


def _rotate(w: Tensor, q: Tensor, repeats: int, axis: int, move: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    w = as_weights("H-6", "w", w)
    q = as_weights("H-6", "q", q, like=w)
    check_matrix("H-6", "w", tuple(w.shape), (None, None))
    blocks = _blocks(q, w.shape[axis], repeats)
    refuse_nan("H-6", "w", w)
    refuse_nan("H-6", "q", q)
    return move(w, blocks).to(working_dtype(w))


@operation
def rotate_inputs(w: Tensor, q: Tensor, /, *, repeats: int = 1) -> Tensor:
    """W (Q_1 ⊕ … ⊕ Q_b), in float64, rounded once.  [H-6]"""
    return _rotate(w, q, repeats, 1, _inputs)


@operation
def rotate_outputs(w: Tensor, q: Tensor, /, *, repeats: int = 1) -> Tensor:
    """(Q_1 ⊕ … ⊕ Q_b)ᵀ W, in float64, rounded once; arguments as in :func:`rotate_inputs`, over rows.  [H-6a]"""
    return _rotate(w, q, repeats, 0, _outputs)


def _checked_block(block: DecoderBlock[Tensor]) -> DecoderBlock[Tensor]:
    check_fields(block)
    parts: list[Tensor | None] = []
    like: Tensor | None = None
    for name, a in zip(DecoderBlock._fields, block, strict=True):
        if a is None and name.endswith("_bias"):
            parts.append(None)
            continue
        like = as_weights("H-7", f"block.{name}", a, like=like)  # type: ignore[arg-type]
        parts.append(like)
    b: DecoderBlock[Tensor] = DecoderBlock(*parts)  # type: ignore[arg-type]
    shapes = block_shapes(b._asdict())
    for name, a in b._asdict().items():
        if a is not None:
            check_matrix("H-7", f"block.{name}", tuple(a.shape), shapes[name])
            refuse_nan("H-7", f"block.{name}", a)
    return b


def _square(r1: Tensor, d: int, like: Tensor) -> Tensor:
    r1 = as_weights("H-7", "r1", r1, like=like)
    check_square("H-7", "r1", tuple(r1.shape), d)
    refuse_nan("H-7", "r1", r1)
    return r1.to(torch.float64)[None]


@operation
def rotate_block(
    block: DecoderBlock[Tensor], r1: Tensor, r2: Tensor | None = None, /, *, online: bool = True
) -> DecoderBlock[Tensor]:
    """A decoder block with rotated residual stream, values and down projection, in float64, rounded once.  [H-7]"""
    b = _checked_block(block)
    q1 = _square(r1, b.q.shape[1], b.q)
    q2 = None
    if r2 is not None:
        r2 = as_weights("H-7", "r2", r2, like=b.q)
        if len(b.v) == 0 or b.o.shape[1] % len(b.v):
            raise SpecError("H-7", f"{b.o.shape[1]} query features are no multiple of {len(b.v)} value features")
        q2 = _blocks(r2, len(b.v), 1, "r2")
        refuse_nan("H-7", "r2", r2)
    if online:
        hadamard.factors(b.down.shape[1])
    gains = b.input_norm.to(torch.float64), b.post_norm.to(torch.float64)
    made = rotated(torch, b, gains, q1, q2, _inputs, _outputs)
    if online:
        made = made._replace(down=transform_checked(made.down, made.down.shape[1], False))
    return DecoderBlock(*(None if x is None else x.to(working_dtype(a)) for x, a in zip(made, b, strict=True)))  # type: ignore[arg-type]


@operation
def rotate_ends(
    embedding: Tensor, gain: Tensor, head: Tensor | None, r1: Tensor, /, *, centre: bool = False
) -> DecoderEnds[Tensor]:
    """Embedding E R1 and head W diag(g) R1, untied, in float64, rounded once.  [H-7a]"""
    embedding = as_weights("H-7", "embedding", embedding)
    gain = as_weights("H-7", "gain", gain, like=embedding)
    check_matrix("H-7", "embedding", tuple(embedding.shape), (None, None))
    d = embedding.shape[1]
    check_matrix("H-7", "gain", tuple(gain.shape), (d,))
    refuse_nan("H-7", "embedding", embedding)
    refuse_nan("H-7", "gain", gain)
    last = embedding
    if head is not None:
        last = as_weights("H-7", "head", head, like=embedding)
        check_matrix("H-7", "head", tuple(last.shape), (None, d))
        refuse_nan("H-7", "head", last)
    q = _square(r1, d, embedding)
    first = embedding.to(torch.float64)
    if centre:
        first = first - first.mean(dim=1, keepdim=True)
    return DecoderEnds(
        _inputs(first, q).to(working_dtype(embedding)), _inputs(_fused(last, gain), q).to(working_dtype(last))
    )


# --- activations


@operation
def outlier_measures(x: Tensor, /) -> OutlierMeasures[Tensor]:
    """Excess kurtosis and peak-to-rms of every token, computed in float64.  [H-8]"""
    x = as_weights("H-8", "x", x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise SpecError("H-8", f"x must have at least one entry per token, got shape {tuple(x.shape)}")
    refuse_nan("H-8", "x", x)
    dtype, k = working_dtype(x), x.shape[-1]
    rows = x.reshape(-1, k)
    kurtosis = torch.empty(len(rows), dtype=torch.float64, device=x.device)
    peak = torch.empty_like(kurtosis)
    for part in row_chunks(len(rows), k, x.device):
        v = rows[part].to(torch.float64)
        size = v.abs().amax(dim=-1, keepdim=True)
        v = v / torch.where(size > 0, size, 1.0)
        square = (v - v.mean(dim=-1, keepdim=True)).square_()
        level = (v == v[:, :1]).all(dim=-1)
        second = torch.where(level, 1.0, square.mean(dim=-1))
        kurtosis[part] = torch.where(level, 0.0, square.square().mean(dim=-1) / second**2 - 3)
        rms = v.square().mean(dim=-1).sqrt_()
        peak[part] = torch.where(rms > 0, 1 / rms, 0.0)
    shape = x.shape[:-1]
    return OutlierMeasures(kurtosis.reshape(shape).to(dtype), peak.reshape(shape).to(dtype))


@operation
def quantize_activations(
    x: Tensor,
    /,
    *,
    bits: int,
    scheme: Scheme = "symmetric",
    clip_ratio: float = 1.0,
    group_size: int | None = None,
) -> QuantizedActivations[Tensor]:
    """Codes, grids and values of activations, token by token.  [H-9]"""
    granularity = "token" if group_size is None else "group"
    scale, zero = uniform.fit_grid(
        x, bits=bits, scheme=scheme, granularity=granularity, group_size=group_size, clip_ratio=clip_ratio  # type: ignore[arg-type]
    )  # fmt: skip
    codes = uniform.quantize_checked(*uniform.check_quantize(x, scale, zero, bits, scheme), bits, scheme)
    values = uniform.dequantize_checked(*uniform.check_dequantize(codes, scale, zero))
    return QuantizedActivations(codes, scale, zero, values)


@operation
def activation_clip(
    x: Tensor,
    /,
    *,
    bits: int,
    scheme: Scheme = "symmetric",
    group_size: int | None = None,
    norm: float = 2.0,
    grid: int = 20,
    max_shrink: float = 0.5,
) -> ActivationClip[Tensor]:
    """The clipping ratio for all tokens with the least error, and the error of every candidate.  [H-10]"""
    steps = hadamard.check_clip(norm, grid, max_shrink)
    x = as_weights("H-10", "x", x)
    errors = torch.empty(steps, dtype=torch.float64, device=x.device)
    for i in range(steps):
        found = quantize_activations(x, bits=bits, scheme=scheme, clip_ratio=1 - i / grid, group_size=group_size)
        error = (found.values - x).abs_()
        error = error.square_() if norm == 2 else error.pow_(norm)
        errors[i] = error.sum(dtype=torch.float64)
    return ActivationClip(1 - int(errors.argmin()) / grid, errors)
