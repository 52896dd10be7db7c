"""What makes a run survive anything: a lock, atomic writes, a journal and fingerprints.

A file appears under its final name only when it is complete and on disk (temporary name, fsync, rename, fsync of the
folder). After each decoder block one line is appended to the journal; a line that was cut short is dropped on the next
start, and so is everything after a file whose content no longer matches its line.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .errors import RecipeError

__all__ = [
    "Journal",
    "Lock",
    "TensorSource",
    "differences",
    "digest",
    "make_folder",
    "remove_tree",
    "write_bytes",
    "write_json",
    "write_tensors",
    "writing",
]

_CHUNK = 1 << 22

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


def _failure(path: Path, error: OSError) -> RecipeError:
    """An operating-system error in words, with what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RecipeError(
            f"no space left while writing {path}: free some space and run the same command again, "
            "finished blocks are kept"
        )
    return RecipeError(f"cannot write {path}: {error.strerror or error}")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals into a :class:`RecipeError` that names ``path``."""
    try:
        yield
    except OSError as error:
        raise _failure(path, error) from error


@contextlib.contextmanager
def _replacing(path: Path, scratch: Path | None) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes ``path`` when the block ends without an error, and vanishes otherwise."""
    temporary = (scratch or path.parent) / f".{path.name}.partial"
    try:
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _failure(path, error) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create ``folder`` with its parents; raises :class:`RecipeError` when that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _failure(folder, error) from error


def write_bytes(path: Path, content: bytes, *, scratch: Path | None = None) -> str:
    """Write ``content`` atomically; returns its sha256 in hex."""
    with _replacing(path, scratch) as file:
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
    with _replacing(path, scratch) as file:
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
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_CHUNK):
            hasher.update(piece)
    return hasher.hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lines ``field: old -> new`` for every field that differs."""
    missing = object()
    lines = []
    for field in sorted(before.keys() | now.keys()):
        old, new = before.get(field, missing), now.get(field, missing)
        if old != new:
            show = ["absent" if value is missing else json.dumps(value, sort_keys=True) for value in (old, new)]
            lines.append(f"{field}: {show[0]} -> {show[1]}")
    return lines


class Lock:
    """Exclusive use of an output directory by one process, freed by the kernel however the process ends."""

    def __init__(self, path: Path, *, owner_of: Path) -> None:
        self.path = path
        self.owner_of = owner_of
        self._file: Any = None

    def acquire(self) -> None:
        """Take the lock or raise :class:`RecipeError` saying who holds it."""
        while True:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                file = open(self.path, "a+b")  # noqa: SIM115 - kept open as long as the lock is held
            except FileNotFoundError:
                continue  # the holder removed the folder between the two calls: try again
            except OSError as error:
                raise _failure(self.path, error) from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                holder = file.read().decode(errors="replace")
                file.close()
                raise RecipeError(f"{self.owner_of} is in use {_describe(holder)}") from None
            with contextlib.suppress(FileNotFoundError):
                # The previous holder may have removed the file that we opened: then the lock protects nothing.
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
                    break
            file.close()
        me = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "start": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        try:
            file.truncate(0)
            file.write(json.dumps(me).encode())
            file.flush()
        except OSError as error:
            file.close()
            raise _failure(self.path, error) from error
        self._file = file

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _describe(holder: str) -> str:
    try:
        fields = json.loads(holder)
        return f"by process {fields['pid']} on {fields['host']} since {fields['start']}"
    except (ValueError, KeyError, TypeError):
        return "by another process"


class Journal:
    """Append-only record of finished work: one JSON object per line, each on disk before the next step begins."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        if path.exists():
            content = path.read_bytes()
            good = 0
            for raw in content.splitlines(keepends=True):
                try:
                    line = json.loads(raw)
                except ValueError:
                    break
                if not raw.endswith(b"\n") or not isinstance(line, dict):
                    break
                self.lines.append(line)
                good += len(raw)
            if good < len(content):
                self._cut(good)

    def _cut(self, size: int) -> None:
        try:
            with open(self.path, "r+b") as file:
                file.truncate(size)
                os.fsync(file.fileno())
        except OSError as error:
            raise _failure(self.path, error) from error

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line; when this returns, it survives a crash."""
        raw = json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            try:
                with open(self.path, "ab") as file:
                    file.write(raw)
                    file.flush()
                    os.fsync(file.fileno())
                _sync_folder(self.path.parent)
            except OSError:
                with contextlib.suppress(RecipeError, OSError):
                    self._cut(size)  # a full disk may have taken half of the line
                raise
        except OSError as error:
            raise _failure(self.path, error) from error
        self.lines.append(dict(line))

    def keep(self, count: int) -> None:
        """Forget every line after the first ``count``."""
        text = b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in self.lines[:count])
        write_bytes(self.path, text)
        del self.lines[count:]


def remove_tree(folder: Path) -> None:
    """Remove a folder that may vanish meanwhile."""
    shutil.rmtree(folder, ignore_errors=True)
