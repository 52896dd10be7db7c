"""Files that appear whole or not at all, and digests of what they hold.

A file appears under its final name only when it is complete and on disk: temporary name, fsync, rename, fsync of the
folder. What a killed process leaves behind has one name, ``.NAME.PID.part``, and one broom, :func:`sweep`.

A rename replaces a symbolic link and never follows one: whatever lies in an output directory, nothing outside is
written. Only where a person named the file is it written through, by :func:`write_through`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import RecipeError

__all__ = [
    "digest",
    "json_bytes",
    "make_folder",
    "open_own",
    "remove_tree",
    "replacing",
    "sweep",
    "sync_folder",
    "write_bytes",
    "write_json",
    "write_through",
    "writing",
]


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
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
        temporary.unlink(missing_ok=True)  # of a dead process that had our number, or planted: never written through
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def open_own(path: Path, mode: str) -> BinaryIO:
    """Open a file of an output directory that is changed in place; a symbolic link there is an :class:`OSError`."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)

    return open(path, mode, opener=opener)  # type: ignore[return-value]


def sync_folder(folder: Path) -> None:
    """Put the names in ``folder`` on disk, where that can be done: Windows opens no folder, some systems sync none."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in ``folder``; nobody else may be writing there."""
    for path in folder.glob(".*.part"):
        path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Create ``folder`` with its parents, on disk; raises :class:`RecipeError` when that is impossible."""
    with writing(folder):
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for path in reversed(new):
            sync_folder(path.parent)


def write_bytes(path: Path, content: bytes, *, scratch: Path | None = None) -> str:
    """Write ``content`` atomically; returns its sha256 in hex."""
    with writing(path), replacing(path, scratch) as file:
        file.write(content)
    return hashlib.sha256(content).hexdigest()


def json_bytes(value: Any) -> bytes:
    """Indented JSON that depends on the value alone; half a character, as a file name may hold, as its escape."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode(errors="backslashreplace")


def write_json(path: Path, value: Any, *, scratch: Path | None = None) -> str:
    """Write ``value`` as :func:`json_bytes`, atomically; returns the sha256 of the file in hex."""
    return write_bytes(path, json_bytes(value), scratch=scratch)


def write_through(path: Path, content: bytes) -> None:
    """Write where a person said: ``-`` is standard output; a link, a pipe or a device is written to and stays.

    Raises:
        RecipeError: the system refuses.
    """
    with writing(path):
        if str(path) == "-":
            sys.stdout.flush()
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
        elif path.is_symlink() or (path.exists() and not path.is_file()):
            with open(path, "wb") as file:
                file.write(content)
        else:
            make_folder(path.parent)
            write_bytes(path, content)


def digest(path: Path) -> str:
    """sha256 of a file's content in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_tree(folder: Path) -> None:
    """Remove a folder that may vanish meanwhile."""
    shutil.rmtree(folder, ignore_errors=True)
