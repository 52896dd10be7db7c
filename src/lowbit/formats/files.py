"""Files that nobody should trust: opened only if they are plain, parsed only if they are small, noticed if they change.

A name in a model directory may be a pipe that never ends, a device, a link to somebody's key, or JSON that is deeper
than the stack. Every reader of this package opens its files here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from .errors import CheckpointError

__all__ = ["JSON_LIMIT", "Identity", "opened", "parse_json", "read_json", "refuse_strangers", "sha256"]

JSON_LIMIT = 100_000_000
"""Bytes of JSON that are parsed at most: the limit of a safetensors header, which is the largest of them."""


_DEEPEST = 50  # containers in each other


class Identity(NamedTuple):
    """What tells a file from the one that takes its name, or from itself after a change."""

    device: int
    inode: int
    size: int
    changed: int  # nanoseconds

    @classmethod
    def of(cls, file: Path | int) -> Identity:
        """The identity of a path or of an open file; raises :class:`OSError` as the system says it."""
        found = os.stat(file)
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

    def require(self, path: Path, file: int | None = None) -> None:
        """Refuse ``path``, open as ``file``, if it is another file by now or was written to.

        Raises:
            CheckpointError: it is, or it is gone.
        """
        try:
            same = Identity.of(path if file is None else file) == self
        except OSError:
            same = False
        if not same:
            raise CheckpointError(
                f"{path}: replaced or changed since it was opened; leave the model alone while it is in use, "
                "and run the same command again"
            )


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file, unbuffered, for reading; never waits for one that is not.

    Raises:
        CheckpointError: no file, no permission, a pipe, a device or a directory.
    """
    try:
        # Without the flag, opening a pipe waits for its writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; download or copy it again") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise CheckpointError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{path}: not a regular file but a pipe, a device or a directory; put the file there")
    with open(descriptor, "rb", buffering=0) as file:
        yield file


def sha256(path: Path, identity: Identity) -> str:
    """sha256 in hex of the file that ``path`` was when it had this identity.

    Raises:
        CheckpointError: as :func:`opened`, and another file by now.
    """
    with opened(path) as file:
        identity.require(path, file.fileno())
        found = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        identity.require(path, file.fileno())
    return found


def read_json(path: Path, *, unique: bool = False) -> dict[str, Any]:
    """The JSON object in a file; see :func:`parse_json`.

    Raises:
        CheckpointError: as :func:`opened` and :func:`parse_json`.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > JSON_LIMIT:
            raise CheckpointError(f"{path}: {size} bytes of JSON, at most {JSON_LIMIT} are read")
        raw = file.read(JSON_LIMIT)
    return parse_json(raw, str(path), unique=unique)


def parse_json(raw: bytes, where: str, *, unique: bool = False) -> dict[str, Any]:
    """The JSON object in ``raw``.

    Args:
        raw: UTF-8.
        where: first words of a message.
        unique: refuse a name that stands twice, of which readers take different ones.

    Raises:
        CheckpointError: not JSON, not an object, nested too deeply, or a name twice.
    """

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        names = dict(found)
        if len(names) < len(found):
            twice = next(name for number, (name, _) in enumerate(found) if name in dict(found[:number]))
            raise CheckpointError(f"{where}: the name {twice!r} stands twice; the file is damaged")
        return names

    try:
        value = json.loads(raw, object_pairs_hook=pairs if unique else None)
        if b"\\ud" in raw.lower():  # half a surrogate pair can be escaped, but neither printed nor written again
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise CheckpointError(f"{where} is nested too deeply to be read") from None
    except CheckpointError:
        raise
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        raise CheckpointError(f"{where} is not valid JSON" + (f" in line {line}" if line > 1 else "")) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is not a JSON object but {type(value).__name__}")
    level: list[Any] = [value]
    for _ in range(_DEEPEST):  # what parsers of some Pythons let through is still too deep for whoever walks it
        level = [item for one in level for item in _items(one)]
    if level:
        raise CheckpointError(f"{where} is nested too deeply to be read")
    return value


def _items(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def refuse_strangers(folder: Path, *, home: Path | None = None) -> None:
    """Refuse a directory in which a name stands for something that is no file of it.

    A link may lead to a file of the directory itself, or, in a snapshot of the hub's cache, into the blobs of its own
    repository. Through any other, a copy of the directory would hold somebody else's file.

    Args:
        folder: the directory; nothing is refused where there is none.
        home: the model directory that it is a part of.

    Raises:
        CheckpointError: such a link, a pipe or a device.
    """
    home = (home or folder).resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        if path.is_symlink():
            target = Path(os.path.realpath(path))
            if target.parent not in (home, blobs):
                raise CheckpointError(
                    f"{path}: a link that leaves its directory, to {target}; put the file itself there"
                )
        if not path.is_file() and not path.is_dir():
            raise CheckpointError(f"{path}: not a regular file but a pipe, a device or a broken link; take it away")
