"""mkdocs hook: the list of clauses, from the registry of the conformance kit.

A page asks for it with ``<!-- clauses -->``. Operations link to their normative text.
"""

from __future__ import annotations

from typing import Any

from lowbit import reference
from lowbit.conformance.clauses import CLAUSES, chapters

MARK = "<!-- clauses -->"


def table() -> str:
    """One Markdown table per chapter."""
    lines: list[str] = []
    for letter, title in chapters().items():
        clauses = [clause for clause in CLAUSES.values() if clause.chapter == letter]
        if not clauses:
            continue
        lines += [
            f"## {letter}, {title}",
            "",
            "| clause | rule | operations | tier | level |",
            "| --- | --- | --- | --- | --- |",
        ]
        for clause in clauses:
            links = ", ".join(f"[{op}][{getattr(reference, op).__module__}.{op}]" for op in clause.ops) or "all"
            rule = clause.title.replace("|", "\\|")
            anchor = "trajectory-and-statistical" if clause.tier in ("trajectory", "statistical") else clause.tier
            tier = f"[{clause.tier}](tolerances.md#{anchor})"
            lines.append(f"| **{clause.id}** | {rule} | {links} | {tier} | {clause.level} |")
        lines.append("")
    return "\n".join(lines)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the list where a page asks for it."""
    return markdown.replace(MARK, table()) if MARK in markdown else markdown
