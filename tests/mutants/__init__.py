"""Deliberately wrong backends: each breaks one clause in a way that real code has broken it, and names that clause.

Most are the specification's own source with one line edited, so that everything else about them is right. A mutant that the named
clause does not kill is a hole in the conformance kit (tests/conformance/test_mutants.py).
"""

# ruff: noqa: E501  (edits quote lines of source, and their replacements, whole)
from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit import reference
from lowbit.reference.protocol import operations

Array = npt.NDArray[Any]
Ops = dict[str, Callable[..., Any]]


@dataclass(frozen=True)
class Mutant:
    """A wrong backend: operations of the specification, some of them replaced."""

    clause: str  # the clause that must kill it
    name: str
    ops: Callable[[], Ops] = field(repr=False)

    @property
    def flag(self) -> str:
        """Clause and name, as frozen vectors write them."""
        return f"{self.clause}/" + re.sub(r"\W+", "-", self.name.lower().replace("^", " to the ")).strip("-")

    def backend(self) -> SimpleNamespace:
        """The backend object."""
        members: dict[str, Any] = {op: getattr(reference, op) for op in operations()}
        members.update(asarray=reference.asarray, to_numpy=reference.to_numpy, device="cpu")
        return SimpleNamespace(**{**members, **self.ops()}, name=f"mutant {self.name}", compute_dtype="float64")


MUTANTS: list[Mutant] = []


def edited(module: str, *edits: tuple[str, str]) -> dict[str, Any]:
    """Namespace of a module of the specification after replacing text in its source; the text must be there."""
    original = importlib.import_module(f"lowbit.reference.{module}")
    source = inspect.getsource(original)
    for old, new in edits:
        if old not in source:
            raise AssertionError(f"lowbit.reference.{module} no longer has {old!r}: bring the mutant up to date")
        source = source.replace(old, new)
    namespace: dict[str, Any] = {"__name__": original.__name__, "__package__": "lowbit.reference"}
    exec(compile(source, f"<mutant of {module}>", "exec"), namespace)
    return namespace


def edit(clause: str, name: str, module: str, ops: str, *edits: tuple[str, str]) -> None:
    """Register a mutant made by editing source; ``ops`` are the operations taken from it, separated by blanks."""

    def build() -> Ops:
        namespace = edited(module, *edits)
        return {op: namespace[op] for op in ops.split()}

    MUTANTS.append(Mutant(clause, name, build))


def replace(clause: str, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a mutant whose operation of the function's name is replaced by the function."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        MUTANTS.append(Mutant(clause, name, lambda: {function.__name__: function}))
        return function

    return decorate


def wrap(clause: str, name: str, op: str, change: Callable[[Any], Any]) -> None:
    """Register a mutant that changes the result of an operation."""
    original = getattr(reference, op)
    MUTANTS.append(Mutant(clause, name, lambda: {op: lambda *a, **k: change(original(*a, **k))}))


def half_away(x: npt.ArrayLike) -> Array:
    """C's round()."""
    a = np.asarray(x, np.float64)
    return np.asarray(np.copysign(np.floor(np.abs(a) + 0.5), a))


def low_precision(x: npt.ArrayLike) -> Array:
    """A TF32 operand: 11 significand bits."""
    mantissa, exponent = np.frexp(np.asarray(x, np.float64))
    return np.asarray(np.ldexp(np.rint(np.ldexp(mantissa, 11)), exponent - 11))


def by_clause() -> dict[str, list[Mutant]]:
    """Mutants of every clause that has one."""
    table: dict[str, list[Mutant]] = {}
    for mutant in MUTANTS:
        table.setdefault(mutant.clause, []).append(mutant)
    return table


def killers(mutant: Mutant, examples: int) -> list[str]:
    """The first check of the mutant's clause that fails on it, or nothing."""
    from lowbit.conformance.kit import Kit
    from lowbit.conformance.runner import checks

    for check in checks():
        if check.clause.id == mutant.clause:
            outcome = Kit(mutant.backend(), examples=examples, shrink=False).outcome(check)
            if outcome.status == "fail":
                return [check.name]
    return []


# Every module of this folder registers the mutants of one chapter; the order is that of the file names.
for _file in sorted(Path(__file__).parent.glob("[!_]*.py")):
    importlib.import_module(f"{__name__}.{_file.stem}")
