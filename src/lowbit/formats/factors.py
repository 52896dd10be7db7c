"""Factors of an adapter as codes: the directory ``factors/``, the same values as ``adapter/`` in fewer bytes.

``factors.json`` says the format, the fingerprint of the base and of every module its shape, rank, bits and group size;
``factors.safetensors`` holds, per module with B (m, r) and A (r, k), of a stack of e experts with e in front:

===============  ====================================  ===============================================================
tensor           shape                                 content
===============  ====================================  ===============================================================
``codes``        int32 (r, words of k and of m)        codes of A, then of Bᵀ, each row in the dense layout [Q-6]
``scale``        float (r, groups of k and of m)       grid steps of the same rows
``zero_point``   int32 (words of r, groups)            codes of the zero points, dense, packed along r
``A``, ``B``     float (r, k), (m, r)                  in place of the three at 16 bits
===============  ====================================  ===============================================================

Bᵀ and not B, because a row of Bᵀ is as long as a layer is high: it has groups, where a row of B has r values, and one
scale for so few would cost as much as their codes. A group size that does not divide a row leaves it one group.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lowbit.runs.files import make_folder, write_bytes

from .dtypes import FLOATS
from .errors import AdapterError, CheckpointError
from .files import read_json, refuse_strangers
from .packed.packing import dense_words, pack_dense, unpack_dense
from .packed.protocol import PackedWeight
from .peft import Adapter
from .safetensors_file import SafetensorsFile, write_tensors

__all__ = [
    "MANIFEST",
    "WEIGHTS",
    "Coded",
    "FactorForm",
    "factor_parts",
    "holds_factors",
    "manifest",
    "pack_factors",
    "read_factors",
    "unpack_factors",
    "write_factors",
]

MANIFEST, WEIGHTS = "factors.json", "factors.safetensors"
METADATA = {"format": "lowbit.factors", "version": "1"}

_SCHEMA = "lowbit.factors/1"
_BITS = (3, 4, 8, 16)
_LARGEST = 1 << 31
_SCHEME = "asymmetric"


class FactorForm(NamedTuple):
    """How the factors of one module are stored."""

    shape: tuple[int, int]  # (m, k) of the layer
    rank: int
    bits: int  # 16: in the type of storage
    group_size: int | None
    experts: int = 0  # layers of a stack; 0 for a module of its own

    def groups(self) -> tuple[int, int]:
        """Groups of a row of A, and of a row of Bᵀ."""
        m, k = self.shape
        whole = (n // self.group_size if self.group_size and n % self.group_size == 0 else 1 for n in (k, m))
        return next(whole), next(whole)


class Coded(NamedTuple):
    """A factor (rows, columns) as codes."""

    codes: torch.Tensor  # int32 (rows, columns)
    scale: torch.Tensor  # (rows, groups), in the type of storage
    zero_point: torch.Tensor  # int32 (rows, groups)


def factor_parts(form: FactorForm, dtype: torch.dtype) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of every tensor of one module, by the last part of its name."""
    (m, k), r, front = form.shape, form.rank, (form.experts,) if form.experts else ()
    if form.bits == 16:
        return {"A": (dtype, (*front, r, k)), "B": (dtype, (*front, m, r))}
    groups = sum(form.groups())
    return {
        "codes": (torch.int32, (*front, r, dense_words(k, form.bits) + dense_words(m, form.bits))),
        "scale": (dtype, (*front, r, groups)),
        "zero_point": (torch.int32, (*front, dense_words(r, form.bits), groups)),
    }


def pack_factors(a: Coded, transposed_b: Coded, bits: int) -> dict[str, torch.Tensor]:
    """Tensors of one layer by the last part of their names, from A (r, k) and Bᵀ (r, m)."""
    codes = [pack_dense(part.codes.numpy(), bits) for part in (a, transposed_b)]
    zeros = torch.cat([a.zero_point, transposed_b.zero_point], dim=1).to(torch.int32).numpy()
    return {
        "codes": torch.from_numpy(np.concatenate(codes, axis=1)),
        "scale": torch.cat([a.scale, transposed_b.scale], dim=1),
        "zero_point": torch.from_numpy(np.ascontiguousarray(pack_dense(np.ascontiguousarray(zeros.T), bits).T)),
    }


def unpack_factors(parts: Mapping[str, torch.Tensor], form: FactorForm) -> tuple[torch.Tensor, torch.Tensor]:
    """B (m, r) and A (r, k) in the type of the scales; of a stack with the experts in front.

    One rounding: a scale times a whole number, as every packed weight is read.
    """
    if form.bits == 16:
        return parts["B"], parts["A"]
    if form.experts:
        own = form._replace(experts=0)
        pairs = [unpack_factors({key: part[e] for key, part in parts.items()}, own) for e in range(form.experts)]
        return torch.stack([b for b, _ in pairs]), torch.stack([a for _, a in pairs])
    (m, k), bits, groups = form.shape, form.bits, form.groups()[0]
    words, border = parts["codes"].numpy(), dense_words(k, bits)
    zeros = torch.from_numpy(
        unpack_dense(np.ascontiguousarray(parts["zero_point"].numpy().T), bits, form.rank).T.copy()
    )

    def dense(packed: Any, length: int, of: slice) -> torch.Tensor:
        codes = torch.from_numpy(unpack_dense(np.ascontiguousarray(packed), bits, length))
        return PackedWeight(codes, parts["scale"][:, of], zeros[:, of], None, bits, _SCHEME).dequantize()

    a = dense(words[:, :border], k, slice(0, groups))
    return dense(words[:, border:], m, slice(groups, None)).T.contiguous(), a


def manifest(forms: Mapping[str, FactorForm], base_hash: str) -> bytes:
    """Content of ``factors.json``."""
    modules = {
        name: {
            "shape": list(form.shape),
            "rank": form.rank,
            "bits": form.bits,
            "group_size": form.group_size,
            **({"experts": form.experts} if form.experts else {}),
        }
        for name, form in sorted(forms.items())
    }
    found = {"schema": _SCHEMA, "base_hash": base_hash, "modules": modules}
    return (json.dumps(found, separators=(",", ":")) + "\n").encode()  # it counts among the bytes that are saved


def write_factors(
    folder: Path, factors: Mapping[str, tuple[FactorForm, Mapping[str, torch.Tensor]]], *, base_hash: str
) -> None:
    """Write the directory: module → how it is stored, and its tensors. Each file appears whole or not at all.

    Raises:
        RecipeError: the system refuses to write.
    """
    make_folder(folder)
    tensors = {f"{name}.{key}": part for name, (_, parts) in factors.items() for key, part in parts.items()}
    write_tensors(folder / WEIGHTS, tensors, metadata=METADATA)
    write_bytes(folder / MANIFEST, manifest({name: form for name, (form, _) in factors.items()}, base_hash))


def holds_factors(folder: str | Path) -> bool:
    """Whether a directory is one of these."""
    return os.path.lexists(Path(folder) / MANIFEST)


def read_factors(folder: str | Path) -> Adapter:
    """Read the directory as plain factors, bit for bit those of the PEFT directory beside it.

    Raises:
        AdapterError: missing or damaged files, or tensors that are not what ``factors.json`` says.
    """
    path = Path(folder)
    try:
        refuse_strangers(path)
        found = read_json(path / MANIFEST, unique=True)
        forms = _forms(found, path / MANIFEST)
        file = SafetensorsFile(path / WEIGHTS)
        if file.metadata != METADATA:
            raise AdapterError(f"{path / WEIGHTS}: not the factors of version {METADATA['version']} that are read here")
        factors = {name: unpack_factors(_parts(file, name, form), form) for name, form in forms.items()}
        surplus = set(file.entries) - {f"{name}.{key}" for name, form in forms.items() for key in _keys(form)}
        if surplus:
            raise AdapterError(f"{path / WEIGHTS}: tensor {min(surplus)}, of which {MANIFEST} says nothing")
    except AdapterError:
        raise
    except CheckpointError as error:
        raise AdapterError(str(error)) from error
    return Adapter(factors, found["base_hash"], found)


def _keys(form: FactorForm) -> tuple[str, ...]:
    return tuple(factor_parts(form, torch.float32))


def _parts(file: SafetensorsFile, name: str, form: FactorForm) -> dict[str, torch.Tensor]:
    float_part = "A" if form.bits == 16 else "scale"
    entry = file.entries.get(f"{name}.{float_part}")
    dtype = torch.float32 if entry is None else entry.dtype
    if dtype not in FLOATS.values():
        raise AdapterError(f"{file.path}: {name}.{float_part} has type {dtype}; float32, float16 or bfloat16 are read")
    for key, expected in factor_parts(form, dtype).items():
        entry = file.entries.get(f"{name}.{key}")
        if entry is None or (entry.dtype, entry.shape) != expected:
            what = "is missing" if entry is None else f"is {entry.dtype} {entry.shape}"
            raise AdapterError(f"{file.path}: {name}.{key} {what}, {MANIFEST} asks for {expected[0]} {expected[1]}")
    return {key: file.read(f"{name}.{key}") for key in _keys(form)}


def _forms(found: Mapping[str, Any], path: Path) -> dict[str, FactorForm]:
    if set(found) != {"schema", "base_hash", "modules"} or found["schema"] != _SCHEMA:
        raise AdapterError(f"{path}: not {_SCHEMA}, the version that is read here")
    modules, base = found["modules"], found["base_hash"]
    if not isinstance(base, str) or not isinstance(modules, dict) or not modules:
        raise AdapterError(f"{path}: needs the fingerprint of a base and at least one module")
    return {name: _form(told, f"{path}: {name}") for name, told in modules.items()}


def _form(told: Any, place: str) -> FactorForm:
    fields = told if isinstance(told, dict) else {}
    shape, rank, bits, group = (fields.get(key) for key in ("shape", "rank", "bits", "group_size"))
    experts = fields.get("experts", 1)
    numbers = [*shape, rank, experts] if isinstance(shape, list) and len(shape) == 2 else [0]
    whole = all(type(n) is int and 0 < n < _LARGEST for n in (*numbers, 1 if group is None else group))
    known = {"shape", "rank", "bits", "group_size"} <= set(fields) <= {"shape", "rank", "bits", "group_size", "experts"}
    if not known or not whole or type(bits) is not int or bits not in _BITS or math.prod(numbers) >= 1 << 62:
        raise AdapterError(f"{place}: no form of factors but {str(told)[:120]!r}")
    assert isinstance(shape, list)
    return FactorForm((shape[0], shape[1]), numbers[2], bits, group, fields.get("experts", 0))
