"""One safetensors file, read without mapping it into memory and written with the same bytes every time.

The format is eight bytes of header length, a JSON header and the raw tensors. Ordinary reads are used instead of a
memory map because mapped pages count as resident memory for as long as the map lives: a 3 GB checkpoint read tensor
by tensor would still show 3 GB at its peak. The header is checked against the file's length when the file is opened,
so that a truncated download is found before any work.

The library's own writer orders the header's metadata by a hash that differs from process to process, so two equal
files with two metadata entries differ in bytes; the writer here sorts everything.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .errors import CheckpointError

__all__ = ["SafetensorsFile", "TensorEntry", "atomic_write", "read_all", "write_safetensors"]

_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LENGTH_BYTES = 8


class TensorEntry(NamedTuple):
    """Where one tensor lies."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # first byte in the file
    nbytes: int


class SafetensorsFile:
    """Header and lazy reader of one file.

    Attributes:
        path: the file.
        entries: tensor name → :class:`TensorEntry`, in the order of the header.
        metadata: the header's own string pairs.

    Raises:
        CheckpointError: missing, truncated or malformed file, or a tensor type that torch does not have.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
                raw = file.read(length) if _LENGTH_BYTES + length <= size else b""
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file; download or copy it beside its index") from None
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
        if size < _LENGTH_BYTES or not raw:
            raise CheckpointError(
                f"{path}: truncated or not a safetensors file: {size} bytes do not hold its header; download it again"
            )
        try:
            header: Any = json.loads(raw)
            metadata = header.pop("__metadata__", {})
            items: list[tuple[str, str, list[int], list[int]]] = [
                (name, entry["dtype"], entry["shape"], entry["data_offsets"]) for name, entry in header.items()
            ]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path}: not a safetensors file: its header is not valid JSON") from error
        self.metadata: dict[str, str] = dict(metadata or {})
        self.entries: dict[str, TensorEntry] = {}
        base = _LENGTH_BYTES + length
        for name, dtype_name, shape, (first, last) in items:
            if dtype_name not in _DTYPES:
                raise CheckpointError(f"{path}: tensor {name} has type {dtype_name}, which lowbit does not read")
            dtype = _DTYPES[dtype_name]
            if last - first != math.prod(shape) * dtype.itemsize:
                raise CheckpointError(
                    f"{path}: tensor {name} of shape {tuple(shape)} and type {dtype_name} should take "
                    f"{math.prod(shape) * dtype.itemsize} bytes, its header says {last - first}; the file is damaged"
                )
            if base + last > size:
                raise CheckpointError(
                    f"{path}: truncated: tensor {name} ends at byte {base + last}, the file has {size}; "
                    "download it again"
                )
            self.entries[name] = TensorEntry(dtype, tuple(shape), base + first, last - first)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """One tensor in its stored dtype, in memory of its own.

        Args:
            name: a key of :attr:`entries`.
            rows: ``(start, stop)`` along the first axis, or None for all of it.

        Raises:
            CheckpointError: the file became shorter since it was opened.
        """
        entry = self.entries[name]
        shape, start, nbytes = entry.shape, entry.start, entry.nbytes
        if rows is not None:
            first, last = rows
            if not shape or not 0 <= first <= last <= shape[0]:
                raise IndexError(f"rows {first}:{last} of {name} with shape {shape}")
            row = nbytes // shape[0] if shape[0] else 0
            shape, start, nbytes = (last - first, *shape[1:]), start + first * row, (last - first) * row
        buffer = torch.empty(nbytes, dtype=torch.uint8)
        if nbytes:
            view = buffer.numpy().data
            with self.path.open("rb", buffering=0) as file:
                file.seek(start)
                done = 0
                while done < nbytes:
                    step = file.readinto(view[done:])
                    if not step:
                        raise CheckpointError(f"{self.path}: truncated while tensor {name} was read")
                    done += step
        return buffer.view(entry.dtype).reshape(shape)


def read_all(path: Path) -> tuple[Mapping[str, torch.Tensor], dict[str, str]]:
    """Every tensor of a small file, and its metadata."""
    file = SafetensorsFile(path)
    return {name: file.read(name) for name in file.entries}, file.metadata


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a temporary neighbour, flushed to disk, then renamed.

    Raises:
        OSError: as the system says it (full disk, no permission); the temporary file is removed first.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors whole or not at all; equal input gives equal bytes.

    Tensors lie widest type first and then by name, as the library orders them, so each is aligned to its own type;
    the file is written one tensor at a time.

    Raises:
        ValueError: a tensor type that the format does not have.
        OSError: as the system says it; nothing is left behind.
    """
    names = {dtype: name for name, dtype in _DTYPES.items()}
    for name, tensor in tensors.items():
        if tensor.dtype not in names:
            raise ValueError(f"{path}: tensor {name} has type {tensor.dtype}, which safetensors does not hold")
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in order:
        tensor = tensors[name]
        nbytes = tensor.numel() * tensor.dtype.itemsize
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + nbytes],
        }
        offset += nbytes
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % _LENGTH_BYTES)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(len(raw).to_bytes(_LENGTH_BYTES, "little") + raw)
            for name in order:
                flat = tensors[name].detach().cpu().contiguous().reshape(-1)
                if flat.numel():
                    file.write(flat.view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
