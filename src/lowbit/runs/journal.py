"""The journal of a run: after each finished step one line is appended; a line that was cut or changed is dropped.

A line is the sha256 of a JSON object, a space and that object: what a disk has altered is found, not believed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import RecipeError
from .files import digest, open_own, sync_folder, write_bytes, writing

__all__ = ["Journal"]


class Journal:
    """Append-only record of finished work: one JSON object per line, each on disk before the next step begins."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        if path.exists():
            content = path.read_bytes()
            good = 0
            for raw in content.splitlines(keepends=True):
                line = _decoded(raw)
                if line is None:
                    break
                self.lines.append(line)
                good += len(raw)
            if good < len(content):
                self._cut(good)

    def _cut(self, size: int) -> None:
        with writing(self.path), open_own(self.path, "r+b") as file:
            file.truncate(size)
            os.fsync(file.fileno())

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line; when this returns, it survives a crash."""
        size = self.path.stat().st_size if self.path.exists() else 0
        with writing(self.path):
            try:
                with open_own(self.path, "ab") as file:
                    file.write(_encoded(line))
                    file.flush()
                    os.fsync(file.fileno())
                sync_folder(self.path.parent)
            except OSError:
                with contextlib.suppress(RecipeError, OSError):
                    self._cut(size)  # a full disk may have taken half of the line
                raise
        self.lines.append(dict(line))

    def keep(self, count: int) -> None:
        """Forget every line after the first ``count``."""
        write_bytes(self.path, b"".join(map(_encoded, self.lines[:count])))
        del self.lines[count:]

    def drop_unverified(self, folder: Path, step: Callable[[int], str]) -> str | None:
        """Forget every line from the first that is not what it should be: its files are made again.

        Args:
            folder: where the names under ``files`` of a line lie, each with its sha256.
            step: line number → the ``step`` expected there.

        Returns:
            The step to continue from, or None when every line holds.
        """
        for number, line in enumerate(self.lines):
            files = line.get("files", {})
            good = str(line.get("step")) == step(number) and all(
                (folder / name).is_file() and digest(folder / name) == sha for name, sha in files.items()
            )
            if not good:
                self.keep(number)
                return step(number)
        return None


def _encoded(line: Mapping[str, Any]) -> bytes:
    body = json.dumps(line, allow_nan=False).encode()
    return hashlib.sha256(body).hexdigest().encode() + b" " + body + b"\n"


def _decoded(raw: bytes) -> dict[str, Any] | None:
    """The object of a line that is whole and as it was written, or None."""
    checksum, _, body = raw.removesuffix(b"\n").partition(b" ")
    if not raw.endswith(b"\n") or hashlib.sha256(body).hexdigest().encode() != checksum:
        return None
    line: dict[str, Any] = json.loads(body)
    return line
