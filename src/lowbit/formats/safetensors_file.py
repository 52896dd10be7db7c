"""One safetensors file, read without mapping it into memory and written with the same bytes every time.

The format is eight bytes of header length, a JSON header and the raw tensors. Ordinary reads are used instead of a
memory map because mapped pages count as resident memory for as long as the map lives: a 3 GB checkpoint read tensor
by tensor would still show 3 GB at its peak. The header is checked against the file's length when the file is opened,
so that a truncated download is found before any work.

The library's own writer orders the header's metadata by a hash that differs from process to process, so two equal
files with two metadata entries differ in bytes; the writer here sorts everything.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from lowbit.runs.files import replacing, writing

from .dtypes import SAFETENSORS
from .errors import CheckpointError

__all__ = ["SafetensorsFile", "TensorEntry", "TensorSource", "raw", "write_tensors"]

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
            if dtype_name not in SAFETENSORS:
                raise CheckpointError(f"{path}: tensor {name} has type {dtype_name}, which lowbit does not read")
            dtype = SAFETENSORS[dtype_name]
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


class TensorSource(NamedTuple):
    """A tensor that will be written: its place in the file is known before its values are in memory."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSource:
        """The source of a tensor that is in memory already."""
        return cls(tensor.dtype, tuple(tensor.shape), lambda: tensor)

    @property
    def nbytes(self) -> int:
        """Size of the values in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(
    path: Path,
    tensors: Mapping[str, TensorSource | torch.Tensor],
    *,
    metadata: Mapping[str, str] = MappingProxyType({"format": "pt"}),
    scratch: Path | None = None,
) -> str:
    """Write tensors whole or not at all, one in memory at a time; equal input gives equal bytes.

    Tensors lie widest type first and then by name, as the library orders them, so each is aligned to its own type.

    Args:
        path: the file.
        tensors: what it will hold, by name; in memory, or to be read when its turn comes.
        metadata: the header's own string pairs; what ``transformers`` wants to see, if not said.
        scratch: where the temporary file lies, beside ``path`` if not said.

    Returns:
        sha256 of the file in hex.

    Raises:
        ValueError: a tensor type that the format does not have.
        RecipeError: the system refuses (full disk, no permission); nothing is left behind.
    """
    names = {dtype: name for name, dtype in SAFETENSORS.items()}
    sources = {n: t if isinstance(t, TensorSource) else TensorSource.of(t) for n, t in tensors.items()}
    for name, source in sources.items():
        if source.dtype not in names:
            raise ValueError(f"{path}: tensor {name} has type {source.dtype}, which safetensors does not hold")
    order = sorted(sources, key=lambda name: (-sources[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in order:
        source = sources[name]
        header[name] = {
            "dtype": names[source.dtype],
            "shape": list(source.shape),
            "data_offsets": [offset, offset + source.nbytes],
        }
        offset += source.nbytes
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % _LENGTH_BYTES)
    hasher = hashlib.sha256()
    with writing(path), replacing(path, scratch) as file:
        for piece in _pieces(len(raw).to_bytes(_LENGTH_BYTES, "little") + raw, order, sources):
            hasher.update(piece)
            file.write(piece)
    return hasher.hexdigest()


def raw(tensor: torch.Tensor) -> Any:
    """The bytes of a contiguous tensor on the CPU, without a copy.

    A dimension of length one may have any stride and the tensor still counts as contiguous, so strides are set anew.
    """
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy().data


def _pieces(head: bytes, order: Iterable[str], tensors: Mapping[str, TensorSource]) -> Iterator[Any]:
    yield head
    for name in order:
        tensor = tensors[name].read().detach().cpu().contiguous()
        if tensor.dtype != tensors[name].dtype or tuple(tensor.shape) != tensors[name].shape:
            raise RuntimeError(f"{name} changed between its announcement and its values")
        if tensor.numel():
            yield raw(tensor)
