"""The compressed form of one weight, as a file will hold it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from lowbit.formats.packed import compressed_tensors
from lowbit.models.linears import Linear, Piece
from lowbit.models.weights import stored_as

from .arrays import Arrays
from .method import Method
from .setting import DENSE

__all__ = ["OUTER_ROWS", "Stored", "quantize", "quantize_outer"]

OUTER_ROWS = 32


class Stored(NamedTuple):
    """A compressed weight as it will lie in the file."""

    tensors: dict[str, torch.Tensor]  # full name → tensor
    weight: torch.Tensor  # float32 (m, k): what a reader of those tensors gets
    zeros: float  # share of weights that are exactly 0

    @classmethod
    def of(cls, tensors: dict[str, torch.Tensor], weight: torch.Tensor) -> Stored:
        """From the tensors and the weight that they stand for."""
        return cls(tensors, weight.to(torch.float32), float((weight == 0).sum()) / max(1, weight.numel()))


def quantize(method: Method, arrays: Arrays, name: str, linear: Linear, target: torch.Tensor, c: Any) -> Stored:
    """Compressed form of ``target`` (m, k) float32, for inputs with the second moment ``c`` (k, k) or None."""
    if c is None:
        method = method.blind()
    if method.bits == DENSE and method.sparsity is None:
        return _dense(method, name, linear, target)
    w = arrays.give(target)
    if method.joint:
        joint = arrays.backend.sparsegpt(
            w,
            c,
            keep=2,
            of=4,
            bits=method.bits,
            scheme=method.scheme,
            group_size=method.group_size,
            damping=method.damping,
            scale_dtype=method.scale_dtype,
        )
        return _pack(method, arrays, name, linear, joint.codes, joint.scale, joint.zero_point)
    mask: torch.Tensor | None = None
    if method.sparsity is not None:
        pruned = _prune(method, arrays, w, target.shape[1], c)
        dense = arrays.take(pruned.weight).to(torch.float32)
        if method.bits == DENSE:
            return _dense(method, name, linear, dense)
        mask = arrays.take(pruned.mask)
        w = arrays.give(dense)
    codes, scale, zero_point = _round(method, arrays, w, c)
    if mask is not None:  # a pruned weight stays exactly 0 whatever the quantizer moved there
        full = arrays.take(codes)
        zeros = arrays.take(zero_point)
        codes = torch.where(mask, zeros.repeat_interleave(full.shape[1] // zeros.shape[1], dim=1), full)
    return _pack(method, arrays, name, linear, codes, scale, zero_point)


def quantize_outer(
    method: Method, arrays: Arrays, rows: Iterable[torch.Tensor], moment: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Codes of an embedding or a head (m, k), which comes in ``rows``: tensors by the last part of their names.

    On grids whose clipping is searched: weighed with ``moment`` if the method does, otherwise to nearest. All pieces
    but the last have a multiple of :data:`OUTER_ROWS` rows, so that the zero points of each fill whole words.

    Args:
        method: that of the module.
        arrays: of the backend that computes.
        rows: pieces (…, k) of the weight, from the first row to the last.
        moment: what errors are weighed with, (k, k): of the inputs of a head, of the gradients behind an embedding.
    """
    parts: dict[str, list[torch.Tensor]] = {}
    own = replace(method if moment is not None else method.blind(), clip_search=True)
    c = None if moment is None else arrays.give(moment.to(arrays.moment_dtype))
    for piece in rows:
        w = arrays.give(piece.to(torch.float32).contiguous())
        codes, scale, zero_point = (arrays.take(part) for part in _round(own, arrays, w, c))
        packed = compressed_tensors.pack_module(
            "", codes, stored_as(method.storage, scale, "a scale"), zero_point, bits=method.bits, scheme=method.scheme
        )
        for name, tensor in packed.items():
            parts.setdefault(name.removeprefix("."), []).append(tensor)
    shapes = parts.pop("weight_shape")
    height = sum(int(shape[0]) for shape in shapes)
    joined = {name: torch.cat(tensors) for name, tensors in parts.items()}
    return joined | {"weight_shape": torch.tensor([height, int(shapes[0][1])], dtype=torch.int64)}


def _prune(method: Method, arrays: Arrays, w: Any, k: int, c: Any) -> Any:
    """Two of every four weights of ``w`` (m, k) kept; by magnitude where nothing is known of the inputs."""
    if method.pruner == "sparsegpt":
        return arrays.backend.sparsegpt(w, c, keep=2, of=4, damping=method.damping)
    energy = torch.ones(k) if c is None else arrays.take(c).diagonal().clamp(min=0).contiguous()
    return arrays.backend.wanda(w, arrays.give(energy), keep=2, of=4)


def _round(method: Method, arrays: Arrays, w: Any, c: Any) -> tuple[Any, Any, Any]:
    """Codes, scales and zero points of ``w``."""
    backend = arrays.backend
    if method.quantizer == "gptq":
        result = backend.gptq(
            w,
            c,
            bits=method.bits,
            scheme=method.scheme,
            group_size=method.group_size,
            act_order=method.act_order,
            static_groups=method.static_groups,
            clip_search=method.clip_search,
            damping=method.damping,
            scale_dtype=method.scale_dtype,
        )
        return result.codes, result.scale, result.zero_point
    fit = backend.clip_search if method.clip_search else backend.fit_grid
    grid = fit(
        w,
        bits=method.bits,
        scheme=method.scheme,
        granularity="group" if method.group_size else "row",
        group_size=method.group_size,
        scale_dtype=method.scale_dtype,
    )
    codes = backend.quantize(w, grid.scale, grid.zero_point, bits=method.bits, scheme=method.scheme)
    return codes, grid.scale, grid.zero_point


def _pack(method: Method, arrays: Arrays, name: str, linear: Linear, codes: Any, scale: Any, zero_point: Any) -> Stored:
    parts = arrays.take(codes), arrays.take(scale).to(method.storage), arrays.take(zero_point)
    tensors: dict[str, torch.Tensor] = {}
    weights: list[torch.Tensor] = []
    for piece in linear.pieces or (Piece(name, 0, 0, linear.shape[0]),):
        rows = (part[piece.start : piece.stop] for part in parts)
        packed = compressed_tensors.pack_module(piece.name, *rows, bits=method.bits, scheme=method.scheme)
        weights.append(compressed_tensors.dequantize_module(packed, bits=method.bits, scheme=method.scheme))
        tensors |= packed
    weight = stored_as(method.storage, torch.cat(weights), "its weight, as a reader unpacks it,")
    if not linear.packable:  # no other reader knows it packed: such a weight is stored dequantized
        return _dense(method, name, linear, weight.to(torch.float32))
    return Stored.of(tensors, weight)


def _dense(method: Method, name: str, linear: Linear, weight: torch.Tensor) -> Stored:
    stored = stored_as(method.storage, weight, "its weight")
    layout = stored.T.contiguous() if linear.transposed else stored
    pieces = linear.pieces or (Piece(name, 0, 0, len(layout)),)
    return Stored.of({f"{piece.name}.weight": layout[piece.start : piece.stop] for piece in pieces}, stored)
