"""mkdocs hook: what stands for every operation, read from the code.

A page asks for the table with ``<!-- status -->`` and for a number with ``{{ count: operations }}``, so that no page
holds a figure that a commit can make stale.
"""

from __future__ import annotations

import ast
import functools
import importlib
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lowbit
from lowbit import reference
from lowbit.conformance import vectors
from lowbit.conformance.clauses import CLAUSES, chapters
from lowbit.reference.protocol import operations

MARK = "<!-- status -->"
COUNT = re.compile(r"\{\{ count: (\w+) \}\}")
ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def mutants() -> Mapping[str, int]:
    """Clause → wrong backends that it kills. They are part of the tests, not of the package."""
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        found = importlib.import_module("mutants").by_clause()
    finally:
        sys.path.pop(0)
    return {clause: len(members) for clause, members in found.items()}


@functools.cache
def vectors_of() -> Counter[str]:
    """Operation → frozen cases that call it."""
    return Counter(case.get("op", record["op"]) for record in vectors.load() for case in record["cases"])


def _is_backend(node: ast.expr) -> bool:
    """``backend`` or ``self.backend``: the name that workflows give a loaded backend."""
    return (node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")) == "backend"


@functools.cache
def used_by_workflows() -> frozenset[str]:
    """Operations that a command calls: the attributes of ``backend`` in the sources of the workflows."""
    names: set[str] = set()
    linked = {"reference", "accel", "conformance"}
    folder = ROOT / "src" / "lowbit"
    for path in (p for p in folder.rglob("*.py") if not linked & set(p.relative_to(folder).parts)):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and _is_backend(node.value):
                names.add(node.attr)
    return frozenset(names & set(operations()))


@functools.cache
def backends() -> dict[str, Any]:
    """The fast backends by name."""
    return {name: lowbit.load(name) for name in ("numba", "torch")}


def has_kernel(op: str) -> bool:
    """Whether torch has a Triton kernel for an operation."""
    return op in importlib.import_module("lowbit.accel.torch_cuda.triton").KERNELS


def rows() -> Iterator[tuple[str, str, list[str]]]:
    """Chapter letter, operation and its cells, in reading order."""
    for op in operations():
        clauses = [clause for clause in CLAUSES.values() if op in clause.ops]
        letters = Counter(clause.chapter for clause in clauses)
        letter = max(letters, key=lambda chapter: letters[chapter], default="A")
        link = f"[`{op}`][{getattr(reference, op).__module__}.{op}]"
        marks = [callable(getattr(backend, op, None)) for backend in backends().values()]
        marks += [has_kernel(op)]
        cells = [
            link,
            ", ".join(clause.id for clause in clauses) or "chapter A",
            str(sum(mutants().get(clause.id, 0) for clause in clauses)),
            *("yes" if mark else "no" for mark in marks),
            str(vectors_of()[op] or "no"),
            "yes" if op in used_by_workflows() else "no",
        ]
        yield letter, op, cells


def table() -> str:
    """One Markdown table per chapter."""
    lines: list[str] = []
    shown = list(rows())
    for letter, title in chapters().items():
        chapter = [cells for of, _, cells in shown if of == letter]
        if not chapter:
            continue
        lines += [
            f"## {letter}, {title}",
            "",
            "| operation | clauses | mutants | numba | torch | Triton kernel | frozen vectors | used by a command |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *(f"| {' | '.join(cells)} |" for cells in chapter),
            "",
        ]
    return "\n".join(lines)


def counts() -> dict[str, int]:
    """Numbers that pages may quote."""
    files = [path for path in (ROOT / "reference").glob("*.py") if path.name != "__init__.py"]
    return {
        "operations": len(operations()),
        "clauses": len(CLAUSES),
        "mutants": sum(mutants().values()),
        "vectors": sum(vectors_of().values()),
        "kernels": sum(map(has_kernel, operations())),
        "workflow": len(used_by_workflows()),
        "files": len(files),
        "lines": sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files),
    }


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the table and the numbers where a page asks for them."""
    if MARK in markdown:
        markdown = markdown.replace(MARK, table())
    if COUNT.search(markdown):
        numbers = counts()
        markdown = COUNT.sub(lambda match: f"{numbers[match[1]]:,}", markdown)
    return markdown
