"""A test of the suite run on chosen inputs, and what it compared: cases of a vector with the clause's own bounds.

A bound of a vector is never written down twice. The body of a clause's test is called with inputs that are fixed, on
the specification, as if it computed in float32; every operation it calls becomes a case, and every comparison whose
observed side is a part of a result becomes a rule with the bound that the test allows.

What a test derives from a result before it compares is not recorded, and neither is what it requires in passing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import numpy.typing as npt

from lowbit import reference
from lowbit.reference.protocol import operations
from lowbit.reference.types import IntegerTable, Table

from . import compare, judging, rules
from .hexfloat import decode, encode
from .kit import Kit
from .runner import checks

__all__ = ["Draws", "bounded", "record"]


class Draws:
    """In place of ``st.data()``: answers that are fixed, one after the other."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def draw(self, strategy: Any, label: Any = None) -> Any:
        """The next answer, whatever is asked for."""
        del strategy, label
        return self.answers.pop(0)


class Call(NamedTuple):
    """One operation that a test called."""

    op: str
    arrays: tuple[Any, ...]
    options: dict[str, Any]
    result: Any
    rules: list[dict[str, Any]]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Arrays and numbers of a result by their path."""
    if isinstance(value, tuple):
        names = getattr(value, "_fields", None) or map(str, range(len(value)))
        for name, part in zip(names, value, strict=True):
            yield from _leaves(part, f"{path}.{name}" if path else name)
    elif isinstance(value, np.ndarray | float | int) and not isinstance(value, str):
        yield path, value


def _places(leaf: Any, path: str) -> Iterator[tuple[str, Any]]:
    """A leaf, its rows and, of a matrix, its columns."""
    yield path, leaf
    if isinstance(leaf, np.ndarray) and leaf.ndim:
        at = f"{path}." if path else ""
        yield from ((f"{at}{i}", row) for i, row in enumerate(leaf))
        if leaf.ndim == 2:
            yield from ((f"{at}T.{i}", column) for i, column in enumerate(leaf.T))


def _is_part(leaf: Any, seen: Any) -> bool:
    """The same memory, read in the same way."""
    if leaf is seen:
        return True
    if not (isinstance(leaf, np.ndarray) and isinstance(seen, np.ndarray)) or leaf.size == 0:
        return False
    one, other = leaf.__array_interface__, seen.__array_interface__
    return (one["data"], leaf.shape, leaf.strides) == (other["data"], seen.shape, seen.strides)


def _stored(value: Any) -> Any:
    """A copy of an argument, tables as those of the files."""
    if isinstance(value, Table):
        return rules.LookupTable(value.breakpoints.copy(), value.slopes.copy(), value.intercepts.copy())
    if isinstance(value, IntegerTable):
        p, k, b = (np.array(a) for a in value[:3])
        return rules.LookupTable(p, k, b, int(value.scale_bits), int(value.fraction_bits))
    return value.copy() if isinstance(value, np.ndarray) else value


def bounded(field: str, value: Any, allowed: Any, *, unit: float, **more: Any) -> dict[str, Any]:
    """A forward rule that allows what is said, in units of one rounding."""
    size = np.asarray(allowed, np.float64) / compare.gamma(1, unit)
    return {**rules.forward(field, value, 0, 1), "magnitude": rules.magnitude(size), **more}


def _parted(wide: dict[str, Any], narrow: dict[str, Any]) -> dict[str, Any]:
    """A bound a + u·b of double-precision work that is rounded once, from its values for both u."""
    units = [compare.gamma(1, compare.unit_roundoff(kind)) for kind in ("float64", "float32")]
    # float64 results of float32 inputs: the recorded magnitudes are in roundings of float32 in both cases
    high, low = (decode(rule["magnitude"]).astype(np.float64) * units[1] for rule in (wide, narrow))
    last = np.maximum(low - high, 0.0) / (units[1] - units[0])
    inner = np.maximum(high - last * units[0], 0.0) / units[0]
    return {**narrow, "magnitude": rules.magnitude(last), "wide": rules.magnitude(inner)}


class Scribe(Kit):
    """A kit that keeps what it is asked."""

    def __init__(self, *, narrow: bool, skip: tuple[str, ...]) -> None:
        members: dict[str, Any] = {op: getattr(reference, op) for op in operations()}
        super().__init__(
            SimpleNamespace(
                **members,
                asarray=np.asarray,
                to_numpy=self.plain,
                name="specification",
                compute_dtype="float32",
                device="cpu",
            )
        )
        self.narrow, self.skip = narrow, skip
        self.calls: list[Call] = []

    def plain(self, value: Any) -> npt.NDArray[Any]:
        """An array, in float32 where a backend in float32 would answer so."""
        array = np.asarray(value)
        return array.astype(np.float32) if self.narrow and array.dtype == np.float64 else array

    def call(self, op: str, /, *arrays: Any, **options: Any) -> Any:
        """Ask and keep."""
        given = tuple(_stored(a) for a in arrays)
        result = super().call(op, *arrays, **options)
        self.calls.append(Call(op, given, options, result, []))
        return result

    def unit(self, call: Call, leaf: Any) -> float:
        """Unit roundoff by which a reader of the files will judge."""
        return judging.unit(self.backend, list(call.arrays), np.asarray(leaf))

    def locate(self, seen: Any, *, by_value: bool = True) -> tuple[int, str, Any] | None:
        """(call, path, leaf) of a result, by its memory or, in the last call, by its value."""
        for number in reversed(range(len(self.calls))):
            for path, leaf in _leaves(self.calls[number].result):
                for where, part in _places(leaf, path):
                    if _is_part(part, seen):
                        return number, where, part
        if by_value and self.calls:
            value = np.asarray(seen)
            for path, leaf in _leaves(self.calls[-1].result):
                whole = np.asarray(leaf)
                if whole.shape == value.shape and np.array_equal(whole, value):
                    return len(self.calls) - 1, path, leaf
        return None

    def note(self, seen: Any, what: str, rule: Callable[[Call, str, Any], dict[str, Any] | None]) -> None:
        """Add a rule to the call whose result was looked at."""
        found = None if what.startswith(self.skip) else self.locate(seen)
        if found is not None:
            call = self.calls[found[0]]
            made = rule(call, found[1], found[2])
            if made is not None and made not in call.rules:
                call.rules.append(made)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While this lasts, comparisons are noted."""
        own: dict[str, Callable[..., compare.Comparison]] = {
            name: getattr(compare, name)
            for name in ("forward", "exact", "exact_bytes", "codes", "interval", "certificate")
        }

        def forward(observed: Any, expected: Any, allowed: Any, what: str = "result") -> compare.Comparison:
            self.note(
                observed,
                what,
                lambda call, path, leaf: bounded(path, np.asarray(expected), allowed, unit=self.unit(call, leaf)),
            )
            return own["forward"](observed, expected, allowed, what)

        def exact(observed: Any, expected: Any, what: str = "result", *, byte: bool = False) -> compare.Comparison:
            one, other = (self.locate(side, by_value=False) for side in (observed, expected))
            if one is not None and other is not None and one[0] < other[0] and not what.startswith(self.skip):
                self.calls[other[0]].rules.append(rules.same(other[1], *one[:2]))  # a case refers to one before it
                return own["exact_bytes" if byte else "exact"](observed, expected, what)

            def rule(call: Call, path: str, leaf: Any) -> dict[str, Any] | None:
                if other is not None:
                    return rules.same(path, *other[:2])
                value = np.asarray(expected)
                value = value.astype(np.asarray(leaf).dtype) if value.dtype != np.asarray(leaf).dtype else value
                narrow = self.unit(call, leaf) > compare.unit_roundoff("float64")
                if (
                    value.dtype.kind == "f"
                    and narrow
                    and not np.array_equal(value, value.astype(np.float32), equal_nan=True)
                ):
                    raise ValueError(f"{call.op}, {what}: {value} is not exact in float32")
                return {"field": path, "rule": "exact", "value": encode(value)}

            self.note(observed, what, rule)
            return own["exact_bytes" if byte else "exact"](observed, expected, what)

        def exact_bytes(observed: Any, expected: Any, what: str = "result") -> compare.Comparison:
            return exact(observed, expected, what, byte=True)

        def codes(observed: Any, expected: Any, ratio: Any, band: Any, what: str = "codes") -> compare.Comparison:
            def rule(call: Call, path: str, leaf: Any) -> dict[str, Any]:
                size = np.asarray(band, np.float64) / compare.gamma(1, self.unit(call, np.zeros(0, np.int32)))
                return {
                    **rules.codes(path, np.asarray(expected).astype(np.int32), ratio, 1),
                    "band": rules.magnitude(size),
                }

            self.note(observed, what, rule)
            return own["codes"](observed, expected, ratio, band, what)

        def interval(observed: Any, low: Any, high: Any, what: str = "result") -> compare.Comparison:
            self.note(observed, what, lambda call, path, leaf: rules.interval(path, low, high))
            return own["interval"](observed, low, high, what)

        def certificate(objective: Any, optimum: Any, allowed: Any, what: str = "objective") -> compare.Comparison:
            self.note(
                objective,
                what,
                lambda call, path, leaf: rules.certificate(
                    path, optimum, np.asarray(allowed) / compare.gamma(1, self.unit(call, leaf)), 1
                ),
            )
            return own["certificate"](objective, optimum, allowed, what)

        with mock.patch.multiple(
            compare,
            forward=forward,
            exact=exact,
            exact_bytes=exact_bytes,
            codes=codes,
            interval=interval,
            certificate=certificate,
        ):
            yield

    def cases(self, about: str, before: int) -> Iterator[dict[str, Any]]:
        """Calls with rules, and those that others refer to; ``before`` cases precede them in the file."""
        meant = {rule["case"] for call in self.calls for rule in call.rules if rule["rule"] == "same"}
        kept = [i for i, call in enumerate(self.calls) if call.rules or i in meant]
        place = {i: before + n for n, i in enumerate(kept)}
        for i in kept:
            call = self.calls[i]
            expect = [{**r, "case": place[r["case"]]} if r["rule"] == "same" else r for r in call.rules]
            yield {**rules.case(about, call.arrays, call.options, expect), "op": call.op}


def record(
    identifier: str,
    test: str | Callable[..., None],
    examples: Iterable[tuple[str, dict[str, Any]]],
    *,
    narrow: bool = False,
    skip: tuple[str, ...] = (),
    after: int = 0,
) -> list[dict[str, Any]]:
    """Cases of one test of a clause on inputs that are chosen.

    Args:
        identifier: the clause.
        test: name of its test, or what it calls: a function of a kit and of what is drawn.
        examples: words and the drawn arguments of each.
        narrow: float64 results of the specification count as float32 ones, where bounds follow the type of a result.
        skip: beginnings of comparisons that are left out, because they follow from a backend's own results.
        after: how many cases the file has already.
    """
    body = test
    if isinstance(test, str):
        (body,) = (c.body for c in checks() if c.clause.id == identifier and c.name == test)
    assert callable(body)
    found: list[dict[str, Any]] = []
    for about, drawn in examples:
        scribes = [Scribe(narrow=kind, skip=skip) for kind in ((False, True) if narrow else (False,))]
        for scribe in scribes:
            with scribe.listening():
                body(scribe, **drawn)
        made = list(scribes[0].cases(about, after + len(found)))
        if narrow:
            for wide, slim in zip(made, scribes[1].cases(about, after + len(found)), strict=True):
                twins = {rule["field"]: rule for rule in wide["expect"] if rule["rule"] == "forward"}
                wide["expect"] = [
                    _parted(twins[r["field"]], r) if r["rule"] == "forward" else r for r in slim["expect"]
                ]
        if not made:
            raise ValueError(f"{identifier}: nothing that {test} compares is a part of a result ({about})")
        found += made
    return found
