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

import numpy as np

from lowbit.reference import protocol

from .given import Array, Call, Empty, Given, Wrong, each, leaves

__all__ = [
    "Array",
    "Call",
    "Empty",
    "Wrong",
    "arguments",
    "cites",
    "each",
    "empty",
    "float32",
    "float64",
    "leaves",
    "named",
    "ordinary",
    "seen",
    "wrong",
]


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


def named(dtype: str = "float64") -> dict[str, Call]:
    """Ordinary calls by a name of their own; those of a second moment also with a channel that never sees anything.

    Floats have the dtype in every place, but for moments, which are float64 by definition.
    """
    found: dict[str, Call] = {}
    for call in ordinary():
        arrays = call.arrays
        if call.op not in ("moment_merge", "moment_total"):
            arrays = each(arrays, lambda x: x.astype(dtype) if x.dtype.kind == "f" else x)
        names = [call.op, *(f"{call.op}, call {n}" for n in range(2, 9))]
        name = next(n for n in names if n not in found)
        found[name] = call._replace(arrays=arrays)
        dead = tuple(_dead(n, x) for n, x in zip(arguments(call.op), arrays, strict=False))
        if any(a is not b for a, b in zip(dead, arrays, strict=True)):
            found[f"{name}, dead channel"] = call._replace(arrays=dead)
    return found


def _dead(argument: str, value: Any) -> Any:
    """A second moment of inputs, another square that may be singular, or a diagonal: without the fourth channel."""
    if argument not in ("h", "c", "z", "operator", "channel_scale", "feature_moment"):
        return value
    value = value.copy()
    for axis in range(value.ndim):
        np.moveaxis(value, axis, 0)[3] = 0
    return value


def empty() -> list[Empty]:
    """Empty calls, in the order of the contract."""
    return _sorted([call for module in _chapters() for call in module.empty()])


def wrong() -> list[Wrong]:
    """Calls that must be refused, in the order of the contract."""
    return _sorted([call for module in _chapters() for call in module.wrong()])


def seen(result: Any, like: Any) -> Any:
    """What of a result answers an expectation: parts if that is a dictionary, the shape if a tuple, else values."""
    if isinstance(like, dict):
        return {k: seen(getattr(result, k) if isinstance(k, str) else result[k], part) for k, part in like.items()}
    if isinstance(like, tuple):
        return np.shape(result)
    return None if result is None else np.asarray(result).tolist()


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
