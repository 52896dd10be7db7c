"""Exclusive use of an output directory."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import RecipeError
from .files import make_folder, write_json, writing

__all__ = ["holding"]

_PATIENCE = 0.5  # seconds: a holder that leaves removes the file, which looks like a held one for a moment


@contextlib.contextmanager
def holding(work: Path, *, owner_of: Path) -> Iterator[None]:
    """Exclusive use of ``owner_of`` by one process while the block runs, freed by the system however the process ends.

    Args:
        work: folder of the lock and of the name of its holder; made if need be.
        owner_of: what is held, for messages.

    Raises:
        RecipeError: another process holds it; the message says which.
    """
    make_folder(work)
    lock = FileLock(work / "lock", timeout=_PATIENCE)
    holder = work / "holder.json"
    with writing(lock.lock_file), contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock)
        except Timeout:
            raise RecipeError(f"{owner_of} is in use {_described(holder)}") from None
        held = stack.pop_all()
    with held:
        start = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(holder, {"pid": os.getpid(), "host": socket.gethostname(), "start": start})
        yield


def _described(holder: Path) -> str:
    try:
        fields = json.loads(holder.read_text(encoding="utf-8"))
        return f"by process {fields['pid']} on {fields['host']} since {fields['start']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "by another process"
