"""The mark that says of a protocol which chapter it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["chapter", "chapter_of"]

_C = TypeVar("_C", bound=type)
_CHAPTERS: dict[type, tuple[str, str]] = {}


def chapter(letter: str, title: str = "") -> Callable[[_C], _C]:
    """Mark a protocol as one of a chapter; the first of them in reading order says its title."""

    def mark(protocol: _C) -> _C:
        _CHAPTERS[protocol] = letter, title
        return protocol

    return mark


def chapter_of(protocol: type) -> tuple[str, str]:
    """Letter and title of the mark."""
    return _CHAPTERS[protocol]
