"""Regular expressions out of files, matched in bounded time.

Adapters and quantized models name their modules by patterns. ``(([a-z]+)+)+!`` is one of them too, and would take
longer than anybody waits: the package ``regex`` matches with a time limit. It writes out counted repetitions, so
``((a{999}){999}){999}`` would take all memory: their number is limited before.
"""

from __future__ import annotations

import functools
import math
import re
import time
import warnings

import regex

from .errors import CheckpointError

__all__ = ["matches"]

_LONGEST = 10_000  # characters of a pattern
_COUNTS = 10_000  # product of the counts of a pattern
_BUDGET = 1.0  # seconds that the slow matches of one pattern may take in all
_SLOW = 0.01  # seconds; an honest match takes a thousandth of it


def _bound(text: str) -> None:
    counts = [[int(n) for n in re.findall(r"\d{1,9}", braces)] for braces in re.findall(r"\{([\d, ]*)\}", text)]
    if len(text) > _LONGEST or math.prod(max([1, *count]) for count in counts) > _COUNTS:
        raise ValueError("too long, or repeated too often")
    if text.count("{") > len(counts):
        raise ValueError("a brace that counts nothing")


class _Pattern:
    def __init__(self, text: str) -> None:
        try:
            with warnings.catch_warnings(action="ignore"):
                re.compile(text)  # the dialect of those who write patterns; the other one has more
                _bound(text)
                self._compiled = regex.compile(text)
        except (re.error, regex.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
            raise CheckpointError(f"{text[:200]!r} cannot be used as a regular expression ({error})") from error
        self._text = text
        self._left = _BUDGET

    def matches(self, name: str, whole: bool) -> bool:
        started = time.monotonic()
        try:
            match = self._compiled.fullmatch if whole else self._compiled.match
            return match(name, timeout=max(self._left, _SLOW)) is not None
        except TimeoutError:
            raise CheckpointError(
                f"the regular expression {self._text[:200]!r} takes too long on {name[:200]!r}; write a simpler one"
            ) from None
        finally:
            took = time.monotonic() - started
            self._left -= took if took > _SLOW else 0.0


_compiled = functools.lru_cache(maxsize=256)(_Pattern)


def matches(pattern: object, name: str, *, whole: bool = False) -> bool:
    """Whether a pattern matches a module's name, from its first character (and to its last, if ``whole``).

    Raises:
        CheckpointError: not a pattern, or one that takes more than a few seconds.
    """
    if not isinstance(pattern, str):
        raise CheckpointError(f"{pattern!r} is not a regular expression but {type(pattern).__name__}")
    return _compiled(pattern).matches(name, whole)
