"""What the tables of inputs are written with: draws, rules from bounds, and decisions that are clear."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lowbit import reference

from .. import compare, rules
from ..recording import bounded, record

__all__ = [
    "NARROW",
    "SPEC",
    "U32",
    "U64",
    "Array",
    "Case",
    "Options",
    "Table",
    "call",
    "clear",
    "eighths",
    "generator",
    "near",
    "near_wide",
    "recorded",
    "settled",
    "steady",
    "suite",
]

Array = npt.NDArray[Any]
Case = rules.Case
Options: TypeAlias = dict[str, Any]
Table: TypeAlias = dict[str, list[Case]]
SPEC: Any = reference
U32, U64 = (compare.unit_roundoff(name) for name in ("float32", "float64"))
NARROW = "float32"


def suite(name: str) -> Any:
    """A module of the suite, for its types and its derivations."""
    return importlib.import_module(f"lowbit.conformance.suite.test_{name}")


def generator(clause: str) -> np.random.Generator:
    """Draws of one clause."""
    return np.random.default_rng([ord(letter) for letter in clause])


def call(op: str, about: str, arrays: Iterable[Any], options: Options, expect: list[dict[str, Any]]) -> Case:
    """A case that names its operation."""
    return {**rules.case(about, arrays, options, expect), "op": op}


def near(field: str, value: Any, allowed: Any, unit: float = U32) -> dict[str, Any]:
    """A forward rule from a bound that was computed for float32, or another precision."""
    return bounded(field, value, allowed, unit=unit)


def clear(field: str, value: Any) -> dict[str, Any]:
    """Codes whose ratios are far from ties."""
    return rules.codes(field, np.asarray(value), np.asarray(value, np.float64), 1)


def eighths(clause: str, *shape: int, limit: int = 24) -> Array:
    """Multiples of 1/8, float32."""
    return generator(clause).integers(-limit, limit + 1, shape).astype(np.float32) / np.float32(8)


def steady(answer: Callable[[Any], Any], given: Array, what: str) -> Any:
    """The decisions of an answer, which small changes of the input do not turn."""
    want = answer(given)
    for side in (-1, 1):
        for shift in (-1, 0, 1):
            got = answer((given * (1 + side * 2.0**-14) + shift * 2.0**-14 * (given != 0)).astype(given.dtype))
            if not np.array_equal(got, want):
                raise ValueError(f"{what}: decisions of this input are not clear")
    return want


def settled(clause: str, draw: Callable[[np.random.Generator], Array], answer: Callable[..., Any], *more: Any) -> Array:
    """The first draw for which the decisions of an answer, given what else it needs, are clear."""
    for attempt in range(999):
        given = draw(np.random.default_rng([*map(ord, clause), attempt]))
        try:
            steady(lambda v: answer(v, *more), given, clause)
        except ValueError:
            continue
        return given
    raise ValueError(f"{clause}: no draw is clear")


def recorded(
    table: Table,
    clause: str,
    test: str | Callable[..., None],
    *examples: tuple[str, dict[str, Any]],
    **how: Any,
) -> None:
    """Add the cases of a test to those of its clause."""
    cases = table.setdefault(clause, [])
    cases += record(clause, test, examples, after=len(cases), **how)


def near_wide(field: str, value: Any, allowed: Any) -> dict[str, Any]:
    """A forward rule of an operation that computes in float64 whatever it is given."""
    return bounded(field, value, allowed, unit=U64, precision="float64")
