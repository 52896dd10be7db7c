"""A backend under examination: asked in NumPy, and judged by comparisons whose margins are kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

from lowbit import reference
from lowbit.reference.errors import SpecError, Unsupported
from lowbit.reference.protocol import declarations

from . import compare
from .calls import each
from .clauses import base_id
from .hexfloat import describe

__all__ = ["ConformanceFailure", "Subject", "result_kind"]


class ConformanceFailure(AssertionError):
    """A backend does not keep a clause."""


@cache
def result_kind(op: str) -> Any:
    """What the contract says that an operation returns: a named tuple, a tuple of them, a number or an array."""
    return get_type_hints(declarations()[op])["return"]


@cache
def _field_kinds(named: type) -> dict[str, Any]:
    return get_type_hints(named)


@dataclass
class Subject:
    """One backend, what it was asked last, and how near its answers came to their bounds."""

    backend: Any
    margin: float | None = field(default=None, kw_only=True)  # largest observed ÷ allowed of the comparisons so far
    _last_call: str = field(default="", kw_only=True)
    _absent: set[str] = field(default_factory=set, kw_only=True)
    _partly: list[str] = field(default_factory=list, kw_only=True)

    spec: ClassVar[Any] = reference  # the specification, float64 NumPy; options are checked by it, not by types

    # -- talking to the backend ----------------------------------------------------------------------------------------

    def has(self, *ops: str) -> bool:
        """Whether the backend has all of these operations; those it lacks are remembered for the note."""
        absent = [op for op in ops if not callable(getattr(self.backend, op, None))]
        self._absent.update(absent)
        return not absent

    def own(self, value: Any) -> Any:
        """NumPy arrays (also inside lists, tuples and named tuples) as arrays of the backend."""
        return each(value, self.backend.asarray)

    def numpy(self, value: Any) -> npt.NDArray[Any]:
        """Array of the backend → NumPy."""
        return np.asarray(self.backend.to_numpy(value))

    def raw(self, op: str, /, *arrays: Any, **options: Any) -> Any:
        """Call an operation with NumPy arguments and return its own arrays; the call is kept for a counter-example."""
        shown = [describe(a) for a in arrays] + [f"{k}={v!r}" for k, v in options.items()]
        self._last_call = f"{op}({', '.join(shown)})"
        return getattr(self.backend, op)(*(self.own(a) for a in arrays), **options)

    def call(self, op: str, /, *arrays: Any, **options: Any) -> Any:
        """Call an operation with NumPy arguments; results come back as NumPy, named tuples as those of the contract."""
        return self.convert(op, self.raw(op, *arrays, **options))

    def convert(self, op: str, result: Any) -> Any:
        """Result of ``op`` in NumPy, checked to have the fields of the contract."""
        kind = result_kind(op)
        return float(result) if kind is float else self._converted(kind, result, op)

    def _converted(self, kind: Any, value: Any, op: str) -> Any:
        if isinstance(kind, TypeVar):
            return self.numpy(value)
        named = get_origin(kind) or kind
        if named is tuple:  # of any length, all of one kind
            return tuple(self._converted(get_args(kind)[0], part, op) for part in value)
        if hasattr(named, "_fields"):
            absent = [f for f in named._fields if not hasattr(value, f)]
            if absent:
                has = f"{type(value).__name__} without the field(s) {', '.join(absent)} of {named.__name__}"
                self.fail(f"{op} returned {has}")
            kinds = _field_kinds(named)
            return named(*(self._converted(kinds[f], getattr(value, f), op) for f in named._fields))
        return value if value is None or isinstance(value, bool | int | float | str) else self.numpy(value)

    # -- precision -----------------------------------------------------------------------------------------------------

    def compute_dtype(self, dtype: npt.DTypeLike) -> str:
        """Precision that the backend promises for inputs of ``dtype``: its own, or float64 for float64 inputs."""
        return "float64" if np.dtype(dtype) == np.float64 else str(self.backend.compute_dtype)

    def u(self, *arrays: npt.NDArray[Any] | npt.DTypeLike, result: npt.NDArray[Any] | None = None) -> float:
        """Unit roundoff for inputs like these, not finer than that of ``result``, which is rounded once more."""
        dtypes = [a.dtype if isinstance(a, np.ndarray) else np.dtype(a) for a in arrays]
        widest = np.result_type(*dtypes)
        unit = compare.unit_roundoff(self.compute_dtype(widest))
        if result is not None and result.dtype.kind == "f":
            unit = max(unit, compare.unit_roundoff(result.dtype.name))
        return unit

    @staticmethod
    def tiny(n: int = 1) -> float:
        """Allowed underflow of n operations: results are float32 at least, so the float32 format sets it."""
        return compare.tiny(n, "float32")

    # -- verdicts ------------------------------------------------------------------------------------------------------

    def check(self, comparison: compare.Comparison) -> None:
        """Record the margin of a comparison and fail if it is above 1."""
        __tracebackhide__ = True
        self.margin = max(self.margin or 0.0, comparison.margin)
        if not comparison.ok:
            self.fail(comparison.detail)

    def fail(self, message: str) -> NoReturn:
        """Fail the clause."""
        __tracebackhide__ = True
        self.margin = math.inf if self.margin is None or self.margin <= 1 else self.margin
        raise ConformanceFailure(message)

    def require(self, condition: bool | np.bool_, message: str) -> None:
        """Tier exact: a statement that must be true."""
        self.margin = max(self.margin or 0.0, 0.0)
        if not condition:
            self.fail(message)

    def require_none(self, wrong: Sequence[str]) -> None:
        """Tier exact: nothing may be wrong; the messages are of several calls, of which the last says nothing."""
        __tracebackhide__ = True
        self._last_call = ""
        self.require(not wrong, "\n".join(wrong))

    def refused(
        self, op: str, /, *arrays: Any, clauses: Sequence[str], words: Sequence[str] = (), **options: Any
    ) -> None:
        """The call must raise SpecError that cites one of ``clauses`` and contains ``words``."""
        try:
            result = self.raw(op, *arrays, **options)
        except SpecError as error:
            cited = str(getattr(error, "clause", ""))
            self.require(
                any(cited == c or base_id(cited) == c or cited[:1] == c for c in clauses),
                f"{op}: SpecError cites clause {cited!r}, expected {' or '.join(clauses)}: {error}",
            )
            lacking = [w for w in words if w not in str(error)]
            self.require(not lacking, f"{op}: the message {str(error)!r} does not say {', '.join(map(repr, lacking))}")
        except Unsupported:
            raise
        except Exception as error:
            self.fail(f"{op}: raised {type(error).__name__} ({error}) instead of SpecError")
        else:
            self.fail(f"{op}: answered {type(result).__name__} instead of raising SpecError")

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """A part of a check: where the backend cannot serve it, that is remembered, and the rest goes on."""
        __tracebackhide__ = True
        try:
            yield
        except Unsupported as refusal:
            self._partly.append(f"{what}: {refusal.reason}")
