"""One rule for what a file of another program says: what can change the computation is applied or refused.

Every reader has a table of the keys it knows. Each has a rule: somebody applies it, it changes nothing whatever its
value, or it changes nothing at some values only. A key without a rule is refused, because nobody has looked at it.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from .errors import CheckpointError

__all__ = ["Rule", "absent", "applied", "harmless", "only", "require_known", "require_types", "unmet"]


class Rule(NamedTuple):
    """What becomes of one key."""

    reason: str  # by whom it is applied, why it is harmless, or what other values would do
    neutral: tuple[Any, ...] | None = None  # the values that change nothing; None where any value is in order
    kinds: tuple[type, ...] = ()  # types that whoever applies it can take


def applied(by: str, *kinds: type) -> Rule:
    """Any value of these types: ``by`` sees to it, and refuses what it cannot do."""
    return Rule(by, None, kinds)


def harmless(because: str) -> Rule:
    """Any value: it has no part in what the model computes."""
    return Rule(because)


def only(because: str, *neutral: Any) -> Rule:
    """These values change nothing; with another the sentence "KEY = VALUE ``because``" is true."""
    return Rule(because, neutral)


def absent(because: str) -> Rule:
    """As :func:`only`, for what must be switched off, empty or missing."""
    return only(because, None, False, "", [], {})


def unmet(settings: Mapping[str, Any], rules: Mapping[str, Rule], advice: str = "") -> dict[str, str]:
    """Settings that would change the computation and that nobody applies: key → a sentence about it.

    Args:
        settings: as the file has them.
        rules: those of its reader.
        advice: what to do about a key without a rule.
    """
    found: dict[str, str] = {}
    for key, value in settings.items():
        rule = rules.get(key)
        if rule is None:
            found[key] = f"{key} = {reprlib.repr(value)} is unknown here and may change what is computed{advice}"
        elif rule.neutral is not None and not any(_same(value, neutral) for neutral in rule.neutral):
            found[key] = f"{key} = {reprlib.repr(value)} {rule.reason}"
    return found


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b  # True and 1.0 are no 1


def require_known(
    settings: Mapping[str, Any],
    rules: Mapping[str, Rule],
    *,
    source: str,
    error: type[CheckpointError] = CheckpointError,
    advice: str = "; a newer version of lowbit may know it",
) -> None:
    """Refuse what :func:`unmet` finds.

    Args:
        settings: as the file has them.
        rules: those of its reader.
        source: the file, for messages.
        error: kind of the refusal.
        advice: what to do about a key without a rule.

    Raises:
        CheckpointError: or ``error``, with the key, its value and the reason.
    """
    for sentence in unmet(settings, rules, advice).values():
        raise error(f"{source}: {sentence}")


def require_types(
    settings: Mapping[str, Any],
    rules: Mapping[str, Rule],
    *,
    source: str,
    error: type[CheckpointError] = CheckpointError,
) -> None:
    """Refuse a value of another type than whoever applies it can take; null stands for a missing key.

    Raises:
        CheckpointError: or ``error``, with the key, its value and the types.
    """
    for key, rule in rules.items():
        value = settings.get(key)
        if rule.kinds and value is not None and type(value) not in rule.kinds:
            wanted = " or ".join(kind.__name__ for kind in rule.kinds)
            raise error(f"{source}: {key} = {reprlib.repr(value)} is not of type {wanted}")
