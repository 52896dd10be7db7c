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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import RecipeError

__all__ = [
    "digest",
    "make_folder",
    "remove_tree",
    "replacing",
    "sweep",
    "sync_folder",
    "write_bytes",
    "write_json",
    "writing",
]


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


def digest(path: Path) -> str:
    """sha256 of a file's content in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_tree(folder: Path) -> None:
    """Remove a folder that may vanish meanwhile."""
    shutil.rmtree(folder, ignore_errors=True)
