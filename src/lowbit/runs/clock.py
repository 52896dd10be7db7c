"""Where the time of a run went, and how much memory it took."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

__all__ = ["Clock", "peak_memory"]


class Clock:
    """Seconds by kind of work, since it was made; kinds do not overlap."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        """Book the time of a block on ``kind``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[kind] = self._seconds.get(kind, 0.0) + time.perf_counter() - started

    def move(self, source: str, target: str, seconds: float) -> None:
        """Book ``seconds`` of one kind on another."""
        self._seconds[source] -= seconds
        self._seconds[target] = self._seconds.get(target, 0.0) + seconds

    def elapsed(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._started

    def timings(self) -> dict[str, float]:
        """Seconds by kind; what no kind was told is ``other``."""
        return self._seconds | {"other": max(0.0, self.elapsed() - sum(self._seconds.values()))}


def peak_memory() -> int:
    """Peak resident set size of this process, in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
