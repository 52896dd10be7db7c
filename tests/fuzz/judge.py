"""One input: a reader returned, raised what it may raise, or did neither in time."""

from __future__ import annotations

import contextlib
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

from .mutations import Draw
from .readers import Reader

__all__ = ["SECONDS", "Workplace", "little_memory"]

SECONDS = 10.0  # generous: the machine may be busy; an honest answer takes milliseconds
_MEMORY = 2 << 30


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Two GiB more than now, where the system can refuse more."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class Workplace:
    """A folder with the valid files of a reader, one of which is replaced for every input."""

    def __init__(self, reader: Reader, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        reader.seed(folder)
        self._reader = reader
        self._folder = folder
        self._target = folder / reader.target
        self._valid = self._target.read_bytes()
        if reader.valid:
            reader.read(folder)

    def damaged(self, data: bytes) -> bytes:
        """The file that stands for a string of bytes."""
        return self._reader.mutate(self._valid, Draw(data))

    def fault(self, content: bytes) -> str | None:
        """What is wrong with the way in which the reader takes ``content``, or None."""
        self._target.unlink(
            missing_ok=True
        )  # a file cut to nothing is flushed to disk by some systems, a new one is not
        self._target.write_bytes(content)
        started = time.monotonic()
        try:
            with warnings.catch_warnings(action="ignore"):
                self._reader.read(self._folder)
        except self._reader.errors as error:
            if not str(error).strip():
                return f"{type(error).__name__} without a word"
        except BaseException:
            return traceback.format_exc()
        took = time.monotonic() - started
        return f"{took:.1f} s" if took > SECONDS else None
