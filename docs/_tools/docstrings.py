"""griffe extension: docstrings as Markdown.

They are written to be read in an editor, and some of their habits need help on a page: doctests stand bare, which
Markdown takes for nested quotations; equations are numbered at the right edge of a wide line; *Shapes* and *Source*
begin lines of a paragraph; arguments that belong together share one line; the shape of a field is a comment behind it,
and what an option means stands in its annotation.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

LABELS = ("Shapes:", "Source:")
_ROLE = re.compile(r":(?:func|class|mod|meth|data|attr|exc):`~?([^`]+)`")
_NUMBER = re.compile(r"^(?P<equation>    .*?\S)\s{2,}(?P<number>\([A-Z]?\.?\d+(?:\.\d+)?\)(?:, \([A-Z]\.\d+\))*)$")
_TOGETHER = re.compile(r"^( +)(\w+(?:, \w+)+): (.*)$")
_COMMENT = re.compile(r"  # (?!noqa|type:|pragma|fmt:)(.+)$")


def fenced(text: str) -> str:
    r"""Doctests as code blocks.

    >>> fenced("Sum.\n\n>>> 1 + 1\n2\n\nEnd.").split("\n")
    ['Sum.', '', '```pycon', '>>> 1 + 1', '2', '```', '', 'End.']
    """
    out: list[str] = []
    example = False
    for line in [*text.splitlines(), ""]:
        if line.startswith(">>>") and not example:
            out += ["```pycon"] if out and not out[-1] else ["", "```pycon"]
            example = True
        elif example and not line.strip():
            out.append("```")
            example = False
        out.append(line)
    return "\n".join(out).rstrip("\n")


def labelled(text: str) -> str:
    r"""A paragraph with a bold label for every line that begins with one.

    >>> labelled("Shapes: x any.\nSource: a book.").split("\n")
    ['**Shapes:** x any.', '', '**Source:** a book.']
    """
    out: list[str] = []
    for line in text.splitlines():
        label = next((label for label in LABELS if line.startswith(label)), None)
        if label:
            out += [""] if out and out[-1] else []
            line = f"**{label}**{line.removeprefix(label)}"
        out.append(line)
    return "\n".join(out)


def numbered(text: str) -> str:
    r"""Equation numbers right behind the longest equation of their block, so that they need no scrolling.

    >>> numbered("    a = b            (Q.1)\n    cc = dd          (Q.2)").split("\n")
    ['    a = b     (Q.1)', '    cc = dd   (Q.2)']
    """
    out: list[str] = []
    block: list[str] = []

    def close() -> None:
        matches = [_NUMBER.match(line) for line in block]
        width = max((len(m["equation"]) if m else len(line) for m, line in zip(matches, block, strict=True)), default=0)
        for m, line in zip(matches, block, strict=True):
            out.append(f"{m['equation']:<{width + 3}}{m['number']}" if m else line)
        block.clear()

    for line in text.splitlines():
        if line.startswith("    "):
            block.append(line)
        else:
            close()
            out.append(line)
    close()
    return "\n".join(out)


def apart(text: str) -> str:
    r"""Arguments that share one description, each with its own.

    >>> apart("Args:\n    a, b: two\n        numbers\n    c: one").split("\n")[1:]
    ['    a: two', '        numbers', '    b: two', '        numbers', '    c: one']
    """
    out: list[str] = []
    lines, i, inside = text.splitlines(), 0, False
    while i < len(lines):
        line = lines[i]
        i += 1
        if line and not line.startswith(" "):
            inside = line in ("Args:", "Attributes:")
        match = _TOGETHER.match(line) if inside else None
        if not match:
            out.append(line)
            continue
        more = []
        while i < len(lines) and lines[i].startswith(match[1] + " "):
            more.append(lines[i])
            i += 1
        for name in match[2].split(", "):
            out += [f"{match[1]}{name}: {match[3]}", *more]
    return "\n".join(out)


def to_markdown(text: str) -> str:
    """All of the above, and Sphinx roles as plain code."""
    return fenced(labelled(numbered(apart(_ROLE.sub(r"`\1`", text)))))


def comment(obj: griffe.Object) -> str | None:
    """The comment behind the last line of a definition."""
    found = _COMMENT.search(obj.lines[-1]) if obj.lines else None
    return found[1].replace("*", "\\*") if found else None


def told(field: griffe.Object) -> str | None:
    """What the annotation of an option says, with its default."""
    annotation = getattr(field, "annotation", None)
    for node in ast.walk(ast.parse(str(annotation or "None"), mode="eval")):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Told":
            default = getattr(field, "value", None)
            given = node.args[0]
            if isinstance(given, ast.Name):  # a text that several options share
                given = ast.parse(str(field.module[given.id].value), mode="eval").body
            text = str(ast.literal_eval(given)).replace("*", "\\*")
            return f"{text} Default `{default}`." if default is not None else text
    return None


class Docstrings(griffe.Extension):
    """Applies :func:`to_markdown`, and takes comments behind fields and one-line methods as their docstrings."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once per object, before its docstring is parsed."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)
        elif obj.is_function and obj.parent and obj.parent.is_class and (text := comment(obj)):
            obj.docstring = griffe.Docstring(text, parent=obj)

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Fields become one list in the docstring of their class, unless it has such a list."""
        if cls.docstring is None or "Attributes:" in cls.docstring.value:
            return
        fields = [m for m in cls.members.values() if m.kind is griffe.Kind.ATTRIBUTE and not m.docstring]
        lines = [f"    {field.name}: {text}" for field in fields if (text := told(field) or comment(field))]
        if lines:
            cls.docstring.value += "\n\nAttributes:\n" + "\n".join(lines)
