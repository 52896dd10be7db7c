"""Files that appear whole or not at all, and digests of what they hold.

A file appears under its final name only when it is complete and on disk: temporary name, fsync, rename, fsync of the
folder. What a killed process leaves behind has one name, ``.NAME.PID.part``, and one broom, :func:`sweep`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .errors import RecipeError

__all__ = [
    "TensorSource",
    "digest",
    "make_folder",
    "remove_tree",
    "replacing",
    "sweep",
    "sync_folder",
    "write_bytes",
    "write_json",
    "write_tensors",
    "writing",
]

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals into a :class:`RecipeError` that names ``path`` and says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RecipeError(
                f"no space left while writing {path}: free some space and run the same command again, "
                "finished blocks are kept"
            ) from error
        raise RecipeError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def replacing(path: Path, scratch: Path | None = None) -> Iterator[BinaryIO]:
    """A temporary file, in ``scratch`` or beside ``path``, that becomes ``path`` when the block ends without an error.

    Raises:
        OSError: as the system says it (full disk, no permission); the temporary file is removed first.
    """
    temporary = (scratch or path.parent) / f".{path.name}.{os.getpid()}.part"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def sync_folder(folder: Path) -> None:
    """Put the names in ``folder`` on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in ``folder``; nobody else may be writing there."""
    for path in folder.glob(".*.part"):
        path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Create ``folder`` with its parents; raises :class:`RecipeError` when that is impossible."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def write_bytes(path: Path, content: bytes, *, scratch: Path | None = None) -> str:
    """Write ``content`` atomically; returns its sha256 in hex."""
    with writing(path), replacing(path, scratch) as file:
        file.write(content)
    return hashlib.sha256(content).hexdigest()


def write_json(path: Path, value: Any, *, scratch: Path | None = None) -> str:
    """Write ``value`` as indented JSON, atomically; the bytes depend on the value alone."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return write_bytes(path, text.encode(), scratch=scratch)


class TensorSource:
    """A tensor that will be written: its place in the file is known before its values are in memory."""

    def __init__(self, dtype: torch.dtype, shape: tuple[int, ...], read: Any) -> None:
        self.dtype = dtype
        self.shape = shape
        self.read = read

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSource:
        """The source of a tensor that is in memory already."""
        return cls(tensor.dtype, tuple(tensor.shape), lambda: tensor)

    @property
    def nbytes(self) -> int:
        """Size of the values in the file."""
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        return size


def write_tensors(path: Path, tensors: Mapping[str, TensorSource], *, scratch: Path | None = None) -> str:
    """Write a safetensors file atomically, holding one tensor in memory at a time; returns the sha256 of the file.

    Larger item sizes come first (every tensor is aligned to its items), then names in order: same tensors, same bytes.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        source = tensors[name]
        header[name] = {
            "dtype": _NAMES[source.dtype],
            "shape": list(source.shape),
            "data_offsets": [offset, offset + source.nbytes],
        }
        offset += source.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    hasher = hashlib.sha256()
    with writing(path), replacing(path, scratch) as file:
        for piece in _pieces(struct.pack("<Q", len(text)) + text, order, tensors):
            hasher.update(piece)
            file.write(piece)
    return hasher.hexdigest()


def _pieces(head: bytes, order: Iterable[str], tensors: Mapping[str, TensorSource]) -> Iterator[Any]:
    yield head
    for name in order:
        tensor = tensors[name].read().detach().to("cpu").contiguous()
        if tensor.dtype != tensors[name].dtype or tuple(tensor.shape) != tensors[name].shape:
            raise RuntimeError(f"{name} changed between its announcement and its values")
        if tensor.numel():
            yield memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def digest(path: Path) -> str:
    """sha256 of a file's content in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_tree(folder: Path) -> None:
    """Remove a folder that may vanish meanwhile."""
    shutil.rmtree(folder, ignore_errors=True)
