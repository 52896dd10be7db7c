"""Calls of every operation: ordinary, empty and wrong ones, a file per chapter.

They stand here once. The contract suite (chapter A) judges every backend by them; the tests of the specification and of
the backends that come with it change them in their own ways: other dtypes, layouts, dead channels, memory full of NaN.

Every other file of this folder has

    ordinary(given)  one or two well-conditioned calls of each operation of the chapter
    empty()          calls without rows, columns or tokens, and what they answer
    wrong()          calls that must be refused, and what the refusal must say

and, where the rules of the contract leave a choice,

    FLOAT64          operations that answer in float64 whatever comes in
    FLOAT32          operations that get no floats and answer in float32
    CITES            operation → letters of other chapters whose clauses its refusals may cite
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from types import ModuleType
from typing import Any

from lowbit.reference import protocol

from .given import Call, Empty, Given, Wrong

__all__ = ["Call", "Empty", "Wrong", "arguments", "cites", "empty", "float32", "float64", "ordinary", "wrong"]


@cache
def _chapters() -> tuple[ModuleType, ...]:
    found = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    return tuple(module for module in found if hasattr(module, "ordinary"))


def _sorted(calls: list[Any]) -> list[Any]:
    place = {op: i for i, op in enumerate(protocol.operations())}
    return sorted(calls, key=lambda call: place[call.op])


def ordinary(dtype: str = "float32") -> list[Call]:
    """Ordinary calls of every operation, in the order of the contract; the arrays are fresh every time."""
    given = Given(dtype)
    return _sorted([call for module in _chapters() for call in module.ordinary(given)])


def empty() -> list[Empty]:
    """Empty calls, in the order of the contract."""
    return _sorted([call for module in _chapters() for call in module.empty()])


def wrong() -> list[Wrong]:
    """Calls that must be refused, in the order of the contract."""
    return _sorted([call for module in _chapters() for call in module.wrong()])


def arguments(op: str) -> tuple[str, ...]:
    """Names of the positional arguments of an operation, from its protocol."""
    parameters = inspect.signature(protocol.declarations()[op]).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_ONLY)[1:]


@cache
def float64() -> frozenset[str]:
    """Operations that answer in float64 whatever comes in."""
    return frozenset(op for module in _chapters() for op in getattr(module, "FLOAT64", ()))


@cache
def float32() -> frozenset[str]:
    """Operations that get no floats and answer in float32, or in a wider compute dtype."""
    return frozenset(op for module in _chapters() for op in getattr(module, "FLOAT32", ()))


def cites(op: str) -> str:
    """Letters of the chapters whose clauses a refusal of an operation may cite: its own, and whose rules it applies."""
    others = (getattr(module, "CITES", {}).get(op, "") for module in _chapters())
    return protocol.letter(op) + "".join(others)
