"""compressed-tensors ``pack-quantized``: what transformers and vLLM load, written and read without the library.

Per module (ecosystem names, ``w`` = ``weight``):

=====================  ==================================  ==========================================================
tensor                 shape                               content
=====================  ==================================  ==========================================================
``w_packed``           int32 (m, ceil(k·bits/32))          codes in 0..2^bits−1, dense layout [Q-6] along k
``w_scale``            float (m, G)                        grid step of each group
``w_shape``            int64 (2,)                          (m, k)
``w_zero_point``       int32 (ceil(m·bits/32), G)          asymmetric only: codes 0..2^bits−1, dense, packed along m
``w_g_idx``            int32 (k,)                          only when a column's group is not ``j // group_size``
=====================  ==================================  ==========================================================

The library speaks of signed values and stores value + 2^(bits−1); a symmetric code c ∈ −2^(bits−1).. is stored so,
and an asymmetric code 0.. is stored as it is, which is the same number.

Releases before 0.16 packed ``32 // bits`` codes per word. The two layouts are equal at 1, 2, 4 and 8 bits and differ
at 3, 5, 6 and 7; a reader tells them apart by the number of packed columns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lowbit.formats.dtypes import FLOATS
from lowbit.formats.errors import CheckpointError, UnreadError
from lowbit.formats.patterns import matches

from .packing import dense_words, pack_dense, padded_words, unpack_dense, unpack_padded
from .protocol import PackedWeight, WeightScheme
from .settings import require_weights_alone

__all__ = [
    "PACKED",
    "PARTS",
    "TRANSPOSED_KEY",
    "CompressedTensors",
    "dequantize_module",
    "mixed_config",
    "module_parts",
    "pack_module",
    "quantization_config",
    "unpack_module",
]

PACKED = ".weight_packed"
PARTS = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
TRANSPOSED_KEY = "lowbit.transposed"
"""Metadata entry of a safetensors file: comma-separated modules whose dense weight is (in, out), as in GPT-2."""

BITS = (2, 3, 4, 5, 6, 8)
_WORD = 32
SYMMETRIC = frozenset({"symmetric", "symmetric-full", "symmetric-gptq"})

Array = torch.Tensor | npt.NDArray[Any]


def _tensor(x: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x)) if isinstance(x, np.ndarray) else x.detach().cpu()


def _codes(x: Array) -> npt.NDArray[np.int32]:
    return _tensor(x).to(torch.int32).contiguous().numpy()


def module_parts(
    shape: tuple[int, int], scheme: WeightScheme, scale_dtype: torch.dtype
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of every tensor that :func:`pack_module` makes of a weight (m, k), by the last part of its name.

    Groups are runs of columns here: there is no ``weight_g_idx``.
    """
    m, k = shape
    groups = k // scheme.group_size if scheme.group_size else 1
    parts: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "weight_packed": (torch.int32, (m, dense_words(k, scheme.bits))),
        "weight_scale": (scale_dtype, (m, groups)),
        "weight_shape": (torch.int64, (2,)),
    }
    if scheme.scheme not in SYMMETRIC:
        parts["weight_zero_point"] = (torch.int32, (dense_words(m, scheme.bits), groups))
    return parts


def pack_module(
    name: str,
    codes: Array,
    scale: Array,
    zero_point: Array | None,
    *,
    bits: int,
    scheme: str,
    group_index: Array | None = None,
) -> dict[str, torch.Tensor]:
    """Tensors of one module, keyed by their full names.

    Args:
        name: module path, such as ``model.layers.0.mlp.up_proj``.
        codes: int32 (m, k): 0..2^bits−1 for ``"asymmetric"``, −2^(bits−1)..2^(bits−1)−1 for a symmetric scheme.
        scale: (m, G) float32, float16 or bfloat16; stored as given.
        zero_point: int32 (m, G) in 0..2^bits−1; may be None (or zeros) for a symmetric scheme.
        bits: 2, 3, 4, 5, 6 or 8.
        scheme: a scheme of clause Q-1.
        group_index: int (k,), the group of each column; None for contiguous groups.

    Raises:
        CheckpointError: shapes that do not fit, or codes or zero points outside what ``bits`` can hold.
    """
    if bits not in BITS:
        raise CheckpointError(f"{name}: pack-quantized is written at {', '.join(map(str, BITS))} bits, not {bits}")
    symmetric = scheme in SYMMETRIC
    if not symmetric and scheme != "asymmetric":
        raise CheckpointError(f"{name}: unknown scheme {scheme!r}")
    values = _codes(codes)
    steps = _tensor(scale)
    if values.ndim != 2 or steps.ndim != 2 or steps.shape[0] != values.shape[0]:
        raise CheckpointError(f"{name}: codes {values.shape} and scale {tuple(steps.shape)} are not (m, k) and (m, G)")
    if steps.dtype not in FLOATS.values():
        raise CheckpointError(f"{name}: scale has type {steps.dtype}; float32, float16 or bfloat16 can be stored")
    m, k = values.shape
    groups = int(steps.shape[1])
    if groups == 0 or k % groups:
        raise CheckpointError(f"{name}: {groups} groups do not divide {k} columns")
    stored = _shift(name, "codes", values, bits, symmetric)
    tensors = {
        f"{name}.weight_packed": torch.from_numpy(pack_dense(stored, bits)),
        f"{name}.weight_scale": steps.contiguous(),
        f"{name}.weight_shape": torch.tensor([m, k], dtype=torch.int64),
    }
    if not symmetric:
        if zero_point is None:
            raise CheckpointError(f"{name}: an asymmetric grid needs its zero points")
        zeros = _codes(zero_point)
        if zeros.shape != (m, groups):
            raise CheckpointError(f"{name}: zero_point {zeros.shape} does not match scale {(m, groups)}")
        zeros = _shift(name, "zero_point", zeros, bits, symmetric=False)
        tensors[f"{name}.weight_zero_point"] = torch.from_numpy(np.ascontiguousarray(pack_dense(zeros.T, bits).T))
    if group_index is not None:
        index = _codes(group_index)
        if index.shape != (k,) or (k and not 0 <= index.min() <= index.max() < groups):
            raise CheckpointError(f"{name}: group_index {index.shape} must hold {k} groups in 0..{groups - 1}")
        if not np.array_equal(index, np.arange(k) // (k // groups)):
            tensors[f"{name}.weight_g_idx"] = torch.from_numpy(index)
    return tensors


def _shift(name: str, what: str, values: npt.NDArray[np.int32], bits: int, symmetric: bool) -> npt.NDArray[np.int32]:
    stored = values + np.int32(1 << (bits - 1)) if symmetric else values
    if stored.size and (stored.min() < 0 or stored.max() >= 1 << bits):
        low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if symmetric else (0, (1 << bits) - 1)
        raise CheckpointError(
            f"{name}: {what} lie in {int(values.min())}..{int(values.max())}, {bits} bits hold {low}..{high}"
        )
    return stored


def quantization_config(
    *, bits: int, scheme: str, group_size: int | None, ignore: list[str], act_order: bool
) -> dict[str, Any]:
    """The ``quantization_config`` entry of ``config.json``.

    Args:
        bits: code width.
        scheme: a scheme of clause Q-1.
        group_size: columns per group, or None (or 0) for one group per row.
        ignore: paths of linear modules that stay dense, such as ``lm_head``.
        act_order: columns were quantized in order of importance, with groups over original columns. (Groups over
            the permuted order need ``weight_g_idx``, which compressed-tensors 0.20 no longer loads.)
    """
    return _config([_group(WeightScheme(bits, scheme, group_size), ["Linear"], act_order)], ignore)


def mixed_config(
    groups: Collection[tuple[WeightScheme, Collection[str]]], *, ignore: list[str], act_order: bool
) -> dict[str, Any]:
    """The ``quantization_config`` entry of a model whose modules are quantized in several ways.

    The group of most bits comes first: with ``dequantize=True`` transformers takes the first one without experts for
    every module, and a weight of fewer bits then gives too few codes, which it refuses aloud. (Of rows of fewer than
    B / (B - b) times 32 columns the last words may hold enough of them.) In any other order it would read wrong weights
    without a word.

    Args:
        groups: how a weight is stored, and names of the modules that have it, ``re:`` patterns too; experts apart.
        ignore: paths of linear modules that stay dense.
        act_order: see :func:`quantization_config`.
    """
    order = sorted(groups, key=lambda group: (-group[0].bits, group[0].group_size or 0, sorted(group[1])))
    return _config([_group(scheme, sorted(targets), act_order) for scheme, targets in order], ignore)


def _group(scheme: WeightScheme, targets: list[str], act_order: bool) -> dict[str, Any]:
    weights: dict[str, Any] = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.scheme in SYMMETRIC,
        "strategy": "group" if scheme.group_size else "channel",
        "group_size": scheme.group_size or None,
        "dynamic": False,
        "observer": "minmax",
        "observer_kwargs": {},
        "block_structure": None,
        "actorder": "weight" if act_order else None,
    }
    return {"targets": targets, "weights": weights, "input_activations": None, "output_activations": None}


def _config(groups: list[dict[str, Any]], ignore: list[str]) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {f"group_{number}": group for number, group in enumerate(groups)},
        "ignore": list(ignore),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


class CompressedTensors:
    """The packed modules of a model, from a ``quantization_config`` of any writer.

    See :class:`~lowbit.formats.packed.protocol.PackedFormat`.

    Raises:
        CheckpointError: a format other than pack-quantized, weights that are not integers, or more than weights.
    """

    def __init__(self, config: Mapping[str, Any], source: str) -> None:
        self.config = config
        self.source = source
        require_weights_alone(config, source)
        style = config.get("format", "pack-quantized")
        self._groups: list[tuple[str, WeightScheme]] = []
        for group in dict(config.get("config_groups") or {}).values():
            args = group.get("weights")
            own = group.get("format") or style
            if own != "pack-quantized" or args is None or str(args.get("type", "int")) != "int":
                raise UnreadError(f"{source}: compressed-tensors format {own!r} is not read, only 'pack-quantized'")
            size = args.get("group_size")
            scheme = WeightScheme(
                bits=args["num_bits"],
                scheme="symmetric" if args.get("symmetric", True) else "asymmetric",
                group_size=size if size and size > 0 else None,
            )
            self._groups += [(str(target), scheme) for target in group.get("targets", ["Linear"])]
        self._named = dict(reversed(self._groups))
        if not self._groups:
            raise CheckpointError(f"{source}: quantization_config names no group of weights")

    def scheme(self, module: str) -> WeightScheme:
        """Scheme of a packed module: its name wins over a ``re:`` pattern, and that over a class such as ``Linear``."""
        if module in self._named:
            return self._named[module]
        for target, scheme in self._groups:
            if target.startswith("re:") and matches(target[3:], module):
                return scheme
        classes = {target: scheme for target, scheme in self._named.items() if target[:1].isupper()}
        if len(set(classes.values())) > 1:
            raise UnreadError(
                f"{self.source}: module {module} is named by no group of quantization_config, those of the classes "
                f"{' and '.join(sorted(classes))} differ, and lowbit does not know its class"
            )
        for scheme in classes.values():
            return scheme
        raise CheckpointError(f"{self.source}: module {module} is packed, but no group of quantization_config names it")

    def reaches(self, module: str, kinds: Collection[str]) -> bool:
        """See the protocol."""
        if module in self._named or not self._named.keys().isdisjoint(kinds):
            return True
        return any(target.startswith("re:") and matches(target[3:], module) for target in self._named)

    def holds(self, names: Collection[str]) -> dict[str, tuple[str, ...]]:
        """See the protocol: modules with a tensor ``….weight_packed``."""
        found = [name.removesuffix(PACKED) for name in names if name.endswith(PACKED)]
        return {module: tuple(part for p in PARTS if (part := f"{module}.{p}") in names) for module in found}

    def scale_of(self, module: str) -> str:
        """See the protocol."""
        return f"{module}.weight_scale"

    def shape(self, module: str, read: Callable[[str], torch.Tensor]) -> tuple[int, int]:
        """See the protocol."""
        return _lengths(read(f"{module}.weight_shape"))

    def unpack(self, module: str, tensors: Mapping[str, torch.Tensor]) -> PackedWeight:
        """See the protocol."""
        scheme = self._whole(module, tensors)
        return unpack_module(tensors, bits=scheme.bits, scheme=scheme.scheme)

    def dequantize(self, module: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See the protocol."""
        scheme = self._whole(module, tensors)
        return dequantize_module(tensors, bits=scheme.bits, scheme=scheme.scheme)

    def _whole(self, module: str, tensors: Mapping[str, torch.Tensor]) -> WeightScheme:
        for part in PARTS[1:3]:
            if f"{module}.{part}" not in tensors:
                raise CheckpointError(f"{self.source}: module {module} is packed but lacks {part}")
        return self.scheme(module)

    def pack(self, module: str, weight: PackedWeight) -> dict[str, torch.Tensor]:
        """See the protocol."""
        codes, scale, zero_point, group_index, bits, scheme = weight
        return pack_module(module, codes, scale, zero_point, bits=bits, scheme=scheme, group_index=group_index)


def _lengths(stored: torch.Tensor) -> tuple[int, int]:
    """(m, k) out of a ``weight_shape``."""
    if stored.dtype.is_floating_point or stored.numel() != 2 or int(stored.min()) < 0:
        raise CheckpointError(f"weight_shape must hold two lengths, got {stored.tolist()!r:.80}")
    m, k = (int(n) for n in stored.reshape(-1))
    return m, k


def _layout(words: torch.Tensor, bits: int, length: int, what: str) -> frozenset[str]:
    """Layouts whose size fits; both do for a few short lengths."""
    if words.dtype != torch.int32 or words.ndim != 2:
        raise CheckpointError(f"{what} must be int32 and two-dimensional, got {words.dtype} {tuple(words.shape)}")
    sizes = {"dense": dense_words(length, bits), "padded": padded_words(length, bits)}
    fitting = frozenset(layout for layout, size in sizes.items() if size == words.shape[1])
    if not fitting:
        raise CheckpointError(
            f"{what} has {words.shape[1]} words per line; {length} codes of {bits} bits take {sizes['dense']} "
            f"(dense) or {sizes['padded']} (padded): wrong bits or a damaged file"
        )
    return fitting


def _unpack(words: torch.Tensor, bits: int, length: int, layout: str) -> npt.NDArray[np.int32]:
    unpack = unpack_dense if layout == "dense" else unpack_padded
    return unpack(words.contiguous().numpy(), bits, length)


def unpack_module(tensors: Mapping[str, torch.Tensor], *, bits: int, scheme: str) -> PackedWeight:
    """Inverse of :func:`pack_module`, for both packing layouts.

    Args:
        tensors: the module's parts; keys may carry the module path or not.
        bits: 1 to 8.
        scheme: ``"asymmetric"`` or any symmetric one.

    Raises:
        CheckpointError: a missing part, or sizes that fit no layout.
    """
    parts = {key.rpartition(".")[2]: value for key, value in tensors.items()}
    missing = [part for part in PARTS[:3] if part not in parts]
    if scheme not in SYMMETRIC and "weight_zero_point" not in parts:
        missing.append("weight_zero_point")
    if missing:
        raise CheckpointError(f"packed module lacks {', '.join(missing)}")
    m, k = _lengths(parts["weight_shape"])
    scale = parts["weight_scale"]
    if scale.ndim == 1:  # one scale per row, as some writers store it
        scale = scale.unsqueeze(1)
    packed = parts["weight_packed"]
    if (
        packed.ndim != 2
        or scale.ndim != 2
        or packed.shape[0] != m
        or scale.shape[0] != m
        or scale.shape[1] == 0
        or k % scale.shape[1]
    ):
        raise CheckpointError(
            f"weight_packed {tuple(packed.shape)}, weight_scale {tuple(scale.shape)} do not fit weight_shape ({m}, {k})"
        )
    fitting = _layout(packed, bits, k, "weight_packed")
    stored = None if scheme in SYMMETRIC else parts["weight_zero_point"].T
    if stored is not None:
        fitting &= _layout(stored, bits, m, "weight_zero_point")
        if not fitting:
            raise CheckpointError("weight_packed and weight_zero_point are packed in two different layouts")
    layout = "dense" if "dense" in fitting else "padded"  # where the sizes cannot tell, what is written today
    codes = _unpack(packed, bits, k, layout)
    if stored is None:
        codes -= np.int32(1 << (bits - 1))
        zeros = torch.zeros(tuple(scale.shape), dtype=torch.int32)
    else:
        zeros = torch.from_numpy(np.ascontiguousarray(_unpack(stored, bits, m, layout).T))
        if zeros.shape != scale.shape:
            raise CheckpointError(
                f"weight_zero_point {tuple(zeros.shape)} does not fit weight_scale {tuple(scale.shape)}"
            )
    index = parts.get("weight_g_idx")
    if index is not None and (
        tuple(index.shape) != (k,) or (k and not 0 <= index.min() <= index.max() < scale.shape[1])
    ):
        raise CheckpointError(f"weight_g_idx must hold {k} groups in 0..{scale.shape[1] - 1}")
    return PackedWeight(torch.from_numpy(codes), scale, zeros, index, bits, scheme)


_VALUES = 1 << 22  # that are unpacked at once: a code takes four bytes, and more than once, before it is a weight


def dequantize_module(tensors: Mapping[str, torch.Tensor], *, bits: int, scheme: str) -> torch.Tensor:
    """Dense weight (m, k) of a module's parts in the type of the scales, bit-equal to the library's.

    A few rows at a time, so that an embedding takes little more memory than its result.
    """
    parts = {name.rpartition(".")[2]: tensor for name, tensor in tensors.items()}
    pieces = list(_pieces(parts, bits))
    if len(pieces) < 2:
        return unpack_module(tensors, bits=bits, scheme=scheme).dequantize()
    m, k = _lengths(parts["weight_shape"])
    weight = torch.empty((m, k), dtype=parts["weight_scale"].dtype)
    for start, piece in pieces:
        rows = unpack_module(piece, bits=bits, scheme=scheme).dequantize()
        weight[start : start + len(rows)] = rows
    return weight


def _pieces(parts: Mapping[str, torch.Tensor], bits: int) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    """First row and parts of runs of rows; nothing where the parts do not fit, or zero points fill no whole words."""
    if missing := [part for part in PARTS[:3] if part not in parts]:
        raise CheckpointError(f"packed module lacks {', '.join(missing)}")
    m, k = _lengths(parts["weight_shape"])
    packed, scale, zeros = parts["weight_packed"], parts["weight_scale"], parts.get("weight_zero_point")
    if packed.shape != (m, dense_words(k, bits)) or scale.shape[:1] != (m,) or not scale.numel():
        return
    if zeros is not None and zeros.shape[:1] != (dense_words(m, bits),):
        return
    step = max(1, _VALUES // max(k, 1) // _WORD) * _WORD  # so many rows have zero points of whole words
    for start in range(0, m, step):
        stop = min(start + step, m)
        piece = dict(parts) | {
            "weight_packed": packed[start:stop],
            "weight_scale": scale[start:stop],
            "weight_shape": torch.tensor([stop - start, k], dtype=torch.int64),
        }
        if zeros is not None:
            first = start * bits // _WORD
            piece["weight_zero_point"] = zeros[first : first + dense_words(stop - start, bits)]
        yield start, piece
