"""The verdicts that docs/results/other-implementations.md publishes, read from its tables."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results" / "other-implementations.md"
STATUSES = ("fail", "pass", "unsupported", "not implemented")  # the first that a cell names is its verdict


def published(heading: str) -> dict[str, str]:
    """Clause → status in the section whose title begins with the heading; rows of a variant (in code) are left out."""
    (section,) = [s for s in PAGE.read_text(encoding="utf-8").split("\n## ") if s.startswith(heading)]
    found = {}
    for clauses, verdict in re.findall(r"^\| ([^|`]*) \| ([^|]*) \|", section, re.MULTILINE):
        for clause in re.findall(r"[A-Z]-[0-9]+[a-z]?", clauses):
            found[clause] = next(status for status in STATUSES if status in verdict)
    return found


def combined(outcomes: Iterable[Any]) -> dict[str, str]:
    """Clause → the worst that its checks say, and "unsupported" only when nothing could be judged."""
    found: dict[str, list[str]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.check.clause.id, []).append(outcome.status)
    return {clause: next(s for s in STATUSES if s in statuses) for clause, statuses in found.items()}


def agree(heading: str, outcomes: Iterable[Any]) -> None:
    """The page says of every clause that was run what the kit says."""
    said, page = combined(outcomes), published(heading)
    assert {clause: page.get(clause, "not on the page") for clause in said} == said
