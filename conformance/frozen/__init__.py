"""Frozen vectors are written here, a file for every chapter of the suite; to read them takes none of this.

Inputs are small and chosen: ties, padded rows, masses below a floor, dead pieces, repeated breakpoints, zeros of both
signs. Where decisions count they are clear in float32, or nothing rounds at all. Bounds are recorded from the tests of
their clauses wherever a test compares what a vector can hold. Every draw has a generator of its own, so that a new
vector moves no other.

Every case carries the flags of the mistakes that it catches. They are found out, not claimed: wrong backends, each
with one mistake, are judged by the case. ``python -m tests.mutants FOLDER`` writes the files, with the mutants of the
project's tests.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lowbit import SPEC_VERSION

from .. import vectors
from ..clauses import CLAUSES
from .inputs import Table

__all__ = ["CLEAR", "Mistake", "build", "caught", "records", "write"]

CLEAR = 2.0
"""A mistake is caught by a case whose bounds for float32 it exceeds this many times: on every machine, that is."""


class Mistake(Protocol):
    """A wrong backend and what is wrong with it: a flag for files, the clause that is broken, and how, in words."""

    @property
    def flag(self) -> str: ...

    @property
    def clause(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def ops(self) -> Callable[[], dict[str, Callable[..., Any]]]: ...

    def backend(self) -> Any: ...


def build() -> dict[str, list[dict[str, Any]]]:
    """Clause → cases, in reading order."""
    table = Table()
    for info in pkgutil.iter_modules(__path__):
        if info.name != "inputs":
            importlib.import_module(f".{info.name}", __name__).build(table)
    return {clause: table[clause] for clause in CLAUSES if clause in table}


def records() -> Iterator[dict[str, Any]]:
    """The files, without flags."""
    for clause, cases in build().items():
        op = cases[0]["op"]
        cases = [{k: v for k, v in case.items() if (k, v) != ("op", op)} for case in cases]
        title = CLAUSES[clause].title
        yield {
            "schema": vectors.SCHEMA,
            "spec": SPEC_VERSION,
            "clause": clause,
            "title": title,
            "op": op,
            "cases": cases,
        }


def caught(mistake: Mistake, files: Iterable[dict[str, Any]]) -> Iterator[tuple[str, int, float]]:
    """Clause, number and margin of the cases of files that call what is wrong, judged by the bounds for float32."""
    wrong, backend = set(mistake.ops()), mistake.backend()
    backend.compute_dtype = "float32"
    for record in files:
        if wrong & {case.get("op", record["op"]) for case in record["cases"]}:
            with np.errstate(all="ignore"):
                for i, verdict in enumerate(vectors.verdicts(backend, record)):
                    yield record["clause"], i, verdict.margin


def write(target: Path, mistakes: Iterable[Mistake]) -> list[Path]:
    """Write the files of this specification version, with flags, and ``notes.json``, which explains them."""
    target.mkdir(parents=True, exist_ok=True)
    files, notes = list(records()), {}
    flags = {(record["clause"], i): list[str]() for record in files for i in range(len(record["cases"]))}
    for mistake in mistakes:
        for clause, i, margin in caught(mistake, files):
            if margin > CLEAR:
                flags[clause, i].append(mistake.flag)
                right = CLAUSES[mistake.clause].title
                notes[mistake.flag] = {"clause": mistake.clause, "right": right, "mistake": mistake.name}
    written = []
    for record in files:
        name = record["clause"]
        cases = [{"about": c["about"], "flags": flags[name, i], **c} for i, c in enumerate(record["cases"])]
        written.append(_lines(target / f"{name}.json", {**record, "cases": cases}, "cases"))
    head = {"schema": vectors.SCHEMA, "spec": SPEC_VERSION}
    written.append(_lines(target / "notes.json", {**head, "notes": dict(sorted(notes.items()))}, "notes"))
    return written


def _lines(path: Path, record: dict[str, Any], name: str) -> Path:
    """A record as JSON, the last of its fields with a line for every item."""

    def text(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    items, (start, end) = record[name], "{}" if isinstance(record[name], dict) else "[]"
    lines = [f"{text(k)}:{text(v)}" for k, v in items.items()] if start == "{" else [text(v) for v in items]
    head = text({k: v for k, v in record.items() if k != name})[:-1]
    path.write_text(f"{head},{text(name)}:{start}\n" + ",\n".join(lines) + f"\n{end}}}\n", encoding="utf-8")
    return path
