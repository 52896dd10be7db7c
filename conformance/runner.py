"""The suite in this process, without pytest: for mutants, for notebooks, for a backend that is still being written.

>>> from lowbit import reference
>>> {outcome.status for outcome in run(reference, ["Q-3a"], examples=5)}
{'pass'}
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator
from typing import Any

from .clauses import CLAUSES, Check, select
from .kit import PROFILES, Kit, Outcome

__all__ = ["checks", "run"]


def checks() -> list[Check]:
    """Every check of the suite, in reading order: files by their first clause."""
    place = {identifier: i for i, identifier in enumerate(CLAUSES)}
    files = []
    for info in pkgutil.iter_modules(importlib.import_module("lowbit.conformance.suite").__path__):
        module = importlib.import_module(f"lowbit.conformance.suite.{info.name}")
        files.append([test.__lowbit_check__ for test in vars(module).values() if hasattr(test, "__lowbit_check__")])
    files.sort(key=lambda own: min(place[check.clause.id] for check in own))
    return [check for own in files for check in own]


def run(
    backend: Any,
    clauses: Iterable[str] = (),
    *,
    examples: int = PROFILES["quick"],
    shrink: bool = False,
    seed: int | None = None,
) -> Iterator[Outcome]:
    """Outcomes of the checks of some clauses (all of them when none is named), one after the other."""
    wanted = set(select(clauses))
    for check in checks():
        if check.clause.id in wanted:
            yield Kit(backend, examples=examples, shrink=shrink, seed=seed).outcome(check)
