"""Options of a backend, as written on a command line."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any

__all__ = ["parse_options"]


def parse_options(words: Iterable[str]) -> dict[str, Any]:
    """Words ``name=value`` as a dictionary: values that are Python literals as such, the others as text.

    Raises:
        ValueError: a word without ``=`` or without a name.

    >>> parse_options(["kernels=triton", "threads=2", "strict=True"])
    {'kernels': 'triton', 'threads': 2, 'strict': True}
    """
    options: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"option {word!r} is not of the form name=value")
        try:
            options[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[name] = text
    return options
