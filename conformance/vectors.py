"""Frozen test vectors: inputs, options and expected results as JSON with hexadecimal floats, one file per clause.

For whoever has no Python: the format is described in ``vectors/v1/README.md``, and every bound can be computed from
what stands in the file. For whoever has: ``lowbit conform BACKEND --vectors-only`` needs neither Hypothesis nor the
specification. Files are frozen per ``SPEC_VERSION``; :mod:`lowbit.conformance.frozen` writes them.
"""

from __future__ import annotations

import json
import math
from collections import namedtuple
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from typing import Any, Literal, NamedTuple

import numpy as np

from .clauses import CLAUSES
from .hexfloat import decode
from .judging import Judge, part
from .report import Result
from .rules import Earlier, LookupTable, Node

__all__ = ["SCHEMA", "WITHOUT", "VectorError", "Verdict", "argument", "check", "folder", "load", "parse", "verdicts"]

SCHEMA = "lowbit.vectors/1"

WITHOUT = {
    "B-3a": "compares the results of several calls with each other, as errors that may not rise",
    "M-3c": "compares summed errors of two methods, which need not agree in any row",
    "U-5": "stationarity of whatever fit a backend returns; U-5b has a vector",
    "K-5b": "what no cheaper allocation may beat is what was bought; K-5a has a vector",
    "N-7b": "errors are those of a backend's own iterates",
    "N-7c": "relates two results whose factors have no sign of their own",
    "L-3": "judges the squared error of lines, which need not be unique",
    "X-10": "judged along a backend's own path; X-10a has a vector",
    "X-11": "judged along a backend's own path; X-11a has a vector",
    "O-9b": "takes functions",
    "E-5b": "needs a problem of megabytes",
    "C-2b": "is a refusal",
    "H-1a": "is a refusal",
    "D-7a": "is a refusal",
    "E-1a": "is a refusal",
    "E-8b": "is a refusal",
    "F-1a": "is a refusal",
    "K-2a": "is a refusal",
    "U-5c": "is a refusal",
    "A-1": "is about every operation",
    "A-1a": "is about every operation",
    "A-2": "is about every operation",
    "A-2a": "is about every operation",
    "A-2b": "is about every operation",
    "A-3": "is a refusal",
    "A-3a": "is about every operation",
    "A-3b": "is a refusal",
    "A-4": "is a refusal",
}
"""Clauses that no frozen vector can show, and why."""


def folder() -> Any:
    """Where the frozen files lie, also inside an installed wheel."""
    return resources.files("lowbit.conformance").joinpath("vectors", "v1")


def load(clauses: Iterable[str] = ()) -> Iterator[dict[str, Any]]:
    """Records of some clauses (all of them when none is named), in reading order."""
    wanted = list(clauses) or list(CLAUSES)
    for identifier in CLAUSES:
        file = folder().joinpath(f"{identifier}.json")
        if identifier in wanted and file.is_file():
            yield parse(file.read_bytes(), file.name)


class VectorError(ValueError):
    """A file of vectors cannot be read; the message names it and the first thing that is wrong."""


_CASE = {"about": str, "arrays": list, "options": dict, "expect": list}


def parse(raw: bytes, name: str) -> dict[str, Any]:
    """The record in a file of vectors, with every argument decoded once to see that it can be.

    Raises:
        VectorError: not JSON, another format, or a case without one of its parts.
    """
    try:
        record = json.loads(raw)
        if record["schema"] != SCHEMA:
            raise ValueError(f"schema {record['schema']!r}, expected {SCHEMA!r}")
        names = [record["clause"], record["op"]]
        for case in record["cases"]:
            for field, kind in _CASE.items():
                if not isinstance(case[field], kind):
                    raise TypeError(f"{field} is not a {kind.__name__}")
            names.append(case.get("op", record["op"]))
            for value in case["arrays"]:
                argument(value)
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a clause or an operation is not a name")
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, MemoryError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise VectorError(f"{name}: no vectors of this format ({reason})") from error
    return record  # type: ignore[no-any-return]


def argument(value: Any) -> Any:
    """Encoded argument → NumPy, a list of them, a moment node, a look-up table or another record of arrays; or None."""
    if value is None:
        return None
    if isinstance(value, list):
        return [argument(v) for v in value]
    if "result" in value:
        return Earlier(**value["result"])
    if "record" in value:
        fields = {k: argument(v) for k, v in value["record"].items()}
        return namedtuple("Record", fields)(**fields)
    if "table" in value:
        found: dict[str, Any] = {k: v if isinstance(v, int) else decode(v) for k, v in value["table"].items()}
        return LookupTable(**found)
    if "node" in value:
        parts: list[Any] = [v if isinstance(v, int) else decode(v) for v in (value["node"][f] for f in Node._fields)]
        return Node(*parts)
    return decode(value)


def _own(backend: Any, value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return backend.asarray(value)
    if isinstance(value, Node):
        return Node(*(_own(backend, v) for v in value))
    if isinstance(value, LookupTable):
        return LookupTable(*(_own(backend, v) for v in value))
    if isinstance(value, tuple):
        return type(value)(*(_own(backend, v) for v in value))
    return [_own(backend, v) for v in value] if isinstance(value, list) else value


class Verdict(NamedTuple):
    """What became of a case."""

    status: Literal["pass", "fail", "unsupported"]
    margin: float  # the largest observed ÷ allowed; infinite for an error
    note: str


def verdicts(backend: Any, record: dict[str, Any]) -> Iterator[Verdict]:
    """Judge the cases of a file one after the other; the backend has the operations of all of them."""
    answers: list[Any] = []
    for number, case in enumerate(record["cases"]):
        operation = case.get("op", record["op"])
        (status, margin, note), answer = _judged(backend, operation, case, answers)
        answers.append(answer)
        yield Verdict(
            status, margin, f"{operation}, case {number} of {record['clause']}.json ({case['about']}): {note}"
        )


def _judged(backend: Any, operation: str, case: dict[str, Any], answers: Sequence[Any]) -> tuple[Verdict, Any]:
    """A case and its answer, None where there is none; ``answers`` are those of the cases before it."""
    inputs = [argument(a) for a in case["arrays"]]
    if any(answers[a.case] is None for a in inputs if isinstance(a, Earlier)):
        return Verdict("unsupported", 0.0, "a case before it is not supported"), None
    margin, wrong = 0.0, list[str]()
    try:
        inputs = [part(backend, answers[a.case], a.field) if isinstance(a, Earlier) else a for a in inputs]
        answer = getattr(backend, operation)(*(_own(backend, a) for a in inputs), **case["options"])
        judged = Judge(backend, inputs, answer, answers)
        for comparison in (c for rule in case["expect"] for c in judged(rule)):
            margin = max(margin, comparison.margin)
            wrong += [] if comparison.ok else [comparison.detail]
    except NotImplementedError as refusal:  # a backend's own, or Unsupported of the contract, which is one
        return Verdict("unsupported", 0.0, str(refusal)), None
    except Exception as error:
        return Verdict("fail", math.inf, f"{type(error).__name__}: {error}"), None
    return Verdict("fail" if wrong else "pass", margin, "; ".join(wrong[:1])), answer


def check(backend: Any, clauses: Iterable[str] = ()) -> list[Result]:
    """Run the frozen vectors of some clauses (all of them when none is named) against a backend."""
    results = []
    for record in load(clauses):
        identifier = record["clause"]
        name = f"vectors/{identifier}"
        operations = dict.fromkeys(case.get("op", record["op"]) for case in record["cases"])
        absent = [operation for operation in operations if not callable(getattr(backend, operation, None))]
        if absent:
            results.append(Result(identifier, name, "not implemented", None, f"no {', '.join(absent)}"))
        else:
            results.append(_summary(identifier, name, verdicts(backend, record)))
    return results


def _summary(identifier: str, name: str, found: Iterable[Verdict]) -> Result:
    """The first failure of a file, or how near the others came to one."""
    margin, answered, refused = 0.0, False, list[str]()
    for status, observed, note in found:
        if status == "fail":
            return Result(identifier, name, "fail", observed, note)
        margin, answered = max(margin, observed), answered or status == "pass"
        refused += [note] if status == "unsupported" else []
    if not answered:
        return Result(identifier, name, "unsupported", None, refused[0])
    return Result(identifier, name, "pass", margin, "; ".join(refused))
