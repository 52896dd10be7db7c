"""Exclusive use of an output directory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .errors import RecipeError
from .files import writing

__all__ = ["Lock"]


class Lock:
    """Exclusive use of an output directory by one process, freed by the kernel however the process ends."""

    def __init__(self, path: Path, *, owner_of: Path) -> None:
        self.path = path
        self.owner_of = owner_of
        self._file: Any = None

    def acquire(self) -> None:
        """Take the lock or raise :class:`RecipeError` saying who holds it."""
        while True:
            with writing(self.path):
                try:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    file = open(self.path, "a+b")  # noqa: SIM115 - kept open as long as the lock is held
                except FileNotFoundError:
                    continue  # the holder removed the folder between the two calls: try again
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
            with writing(self.path):
                file.truncate(0)
                file.write(json.dumps(me).encode())
                file.flush()
        except RecipeError:
            file.close()
            raise
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
