"""One safetensors file, read without mapping it into memory and written with the same bytes every time.

The format is eight bytes of header length, a JSON header and the raw tensors. Ordinary reads are used instead of a
memory map because mapped pages count as resident memory for as long as the map lives: a 3 GB checkpoint read tensor
by tensor would still show 3 GB at its peak. The header is checked against the file's length when the file is opened,
so that a truncated download is found before any work, and against itself: tensors lie one behind the other, without
overlaps and holes, as the format asks.

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
from typing import Any, BinaryIO, NamedTuple, Protocol, TypeGuard

import torch

from lowbit.runs.files import replacing, writing

from .dtypes import SAFETENSORS
from .errors import CheckpointError, UnreadError
from .files import JSON_LIMIT, Identity, opened, parse_json

__all__ = ["Announced", "SafetensorsFile", "TensorEntry", "TensorSource", "file_size", "raw", "write_tensors"]

_LENGTH_BYTES = 8
_NAMES = {dtype: name for name, dtype in SAFETENSORS.items()}


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
        identity: of the file that was opened; no other is read.

    Raises:
        CheckpointError: missing, truncated or malformed file (tensors that overlap, leave bytes unused or do not
            fit their own shape among them), or a tensor type that torch does not have.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with opened(path) as file:
            self.identity = Identity.of(file.fileno())
            size = self.identity.size
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if length > JSON_LIMIT and _LENGTH_BYTES + length <= size:
                raise CheckpointError(f"{path}: a header of {length} bytes, the format allows {JSON_LIMIT}")
            raw = b"".join(_read(file, length)) if _LENGTH_BYTES + length <= size else b""
        if size < _LENGTH_BYTES or not raw:
            raise CheckpointError(
                f"{path}: truncated or not a safetensors file: {size} bytes do not hold its header; download it again"
            )
        header = parse_json(raw, f"{path}: not a safetensors file: its header", unique=True)
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise CheckpointError(
                f"{path}: the __metadata__ of its header are not pairs of strings; the file is damaged"
            )
        self.metadata: dict[str, str] = metadata
        base = _LENGTH_BYTES + length
        self.entries = {name: _entry(path, name, told, base, size) for name, told in header.items()}
        end = base
        for name, entry in sorted(self.entries.items(), key=lambda item: (item[1].start, item[1].nbytes)):
            if entry.start != end:
                what = "overlaps the one before it" if entry.start < end else f"leaves {entry.start - end} bytes unused"
                raise CheckpointError(f"{path}: tensor {name} {what}; the file is damaged")
            end += entry.nbytes
        if end != size:
            raise CheckpointError(f"{path}: {size - end} bytes behind its last tensor; the file is damaged")

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """One tensor in its stored dtype, in memory of its own.

        Args:
            name: a key of :attr:`entries`.
            rows: ``(start, stop)`` along the first axis, or None for all of it.

        Raises:
            CheckpointError: the file was replaced or changed since it was opened.
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
            with opened(self.path) as file:
                self.identity.require(self.path, file.fileno())
                file.seek(start)
                done = 0
                while done < nbytes:
                    step = file.readinto(view[done:])  # type: ignore[attr-defined]
                    if not step:
                        raise CheckpointError(f"{self.path}: truncated while tensor {name} was read")
                    done += step
        return buffer.view(entry.dtype).reshape(shape)


def _read(file: BinaryIO, length: int) -> Iterator[bytes]:
    """The next ``length`` bytes: an unbuffered file may give fewer at a time."""
    while length and (piece := file.read(length)):
        yield piece
        length -= len(piece)


def _entry(path: Path, name: str, told: Any, base: int, size: int) -> TensorEntry:
    """What the header says of one tensor, if it can be true of a file of ``size`` bytes."""
    fields = told if isinstance(told, dict) else {}
    dtype_name, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (isinstance(dtype_name, str) and _counts(shape) and _counts(offsets) and len(offsets) == 2):
        raise CheckpointError(
            f"{path}: not a safetensors file: the header must give tensor {name} a dtype, a shape and two data_offsets"
        )
    if dtype_name not in SAFETENSORS:
        raise UnreadError(f"{path}: tensor {name} has type {dtype_name}, which lowbit does not read")
    dtype = SAFETENSORS[dtype_name]
    (first, last), nbytes = offsets, math.prod(shape) * dtype.itemsize
    if last - first != nbytes or math.prod(max(n, 1) for n in shape) >= 1 << 62:
        raise CheckpointError(
            f"{path}: tensor {name} of shape {tuple(shape)} and type {dtype_name} should take "
            f"{nbytes} bytes, its header says {last - first}; the file is damaged"
        )
    if base + last > size:
        raise CheckpointError(
            f"{path}: truncated: tensor {name} ends at byte {base + last}, the file has {size}; download it again"
        )
    return TensorEntry(dtype, tuple(shape), base + first, nbytes)


def _counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) <= 64 and all(type(n) is int and 0 <= n < 1 << 62 for n in value)


class Announced(Protocol):
    """A tensor of which only its place in a file is known."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int: ...


class TensorSource(NamedTuple):
    """A tensor that will be written: its place in the file is known before its values are in memory."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]
    rows: Callable[[], Iterable[torch.Tensor]] | None = None
    """The same values in runs of rows, for a tensor that should not be whole in memory."""

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
    sources = {n: t if isinstance(t, TensorSource) else TensorSource.of(t) for n, t in tensors.items()}
    if (name := next((n for n, t in sources.items() if t.dtype not in _NAMES), None)) is not None:
        raise ValueError(f"{path}: tensor {name} has type {sources[name].dtype}, which safetensors does not hold")
    head, order = _head(sources, metadata)
    hasher = hashlib.sha256()
    with writing(path), replacing(path, scratch) as file:
        for piece in _pieces(head, order, sources):
            hasher.update(piece)
            file.write(piece)
    return hasher.hexdigest()


def file_size(
    tensors: Mapping[str, Announced], *, metadata: Mapping[str, str] = MappingProxyType({"format": "pt"})
) -> int:
    """Bytes of the file that :func:`write_tensors` writes, header included, from types and shapes alone."""
    return len(_head(tensors, metadata)[0]) + sum(tensor.nbytes for tensor in tensors.values())


def _head(tensors: Mapping[str, Announced], metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """Length and header, and the order of the tensors behind them."""
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in order:
        tensor = tensors[name]
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % _LENGTH_BYTES)
    return len(raw).to_bytes(_LENGTH_BYTES, "little") + raw, order


def raw(tensor: torch.Tensor) -> Any:
    """The bytes of a contiguous tensor on the CPU, without a copy.

    A dimension of length one may have any stride and the tensor still counts as contiguous, so strides are set anew.
    """
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy().data


def _pieces(head: bytes, order: Iterable[str], tensors: Mapping[str, TensorSource]) -> Iterator[Any]:
    yield head
    for name in order:
        source, height = tensors[name], 0
        for piece in [source.read()] if source.rows is None else source.rows():
            tensor = piece.detach().cpu().contiguous()
            height += len(tensor) if source.shape else 0
            expected = source.shape if source.rows is None else (len(tensor), *source.shape[1:])
            if tensor.dtype != source.dtype or tuple(tensor.shape) != expected:
                raise RuntimeError(f"{name} changed between its announcement and its values")
            if tensor.numel():
                yield raw(tensor)
        if source.shape and height != source.shape[0]:
            raise RuntimeError(f"{name} changed between its announcement and its values")
