"""What a run found: JSON for machines, Markdown for a repository, one self-contained HTML page for people.

A record has the keys of ``lowbit.conformance/1``::

    {schema, spec, suite, backend, device, profile, clauses: [{id, tier, level, status, margin, note}]}

``status`` is pass, fail, xfail, unsupported or not implemented. ``margin`` is the largest observed error ÷ allowed
bound of any check of the clause, null when nothing was measured or when the bound was left without measure (an exact
comparison that failed).
"""

from __future__ import annotations

import html
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from .clauses import CLAUSES, ClauseError, chapters

__all__ = [
    "SCHEMA",
    "ClauseResult",
    "Result",
    "Run",
    "combine",
    "read_xfails",
    "to_html",
    "to_json",
    "to_markdown",
    "to_text",
    "write",
]

SCHEMA = "lowbit.conformance/1"

ClauseStatus: TypeAlias = Literal["pass", "fail", "xfail", "unsupported", "not implemented"]

_ABSENT = re.compile(r"(?:no|without) (\w+(?:, \w+)*)")  # the note of a clause whose operations a backend lacks

MARKS: Mapping[str, str] = {"pass": "✓", "fail": "✗", "xfail": "x", "unsupported": "–", "not implemented": "·"}


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one check, whoever ran it."""

    clause: str
    check: str
    status: str  # pass, fail, unsupported, not implemented
    margin: float | None
    note: str


@dataclass(frozen=True, slots=True)
class ClauseResult:
    """What became of one clause: the worst of its checks."""

    id: str
    tier: str
    level: str
    status: ClauseStatus
    margin: float | None
    note: str


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run."""

    spec: int
    suite: str
    backend: str
    device: str
    profile: str
    clauses: Sequence[ClauseResult]

    @property
    def ok(self) -> bool:
        """Whether no clause failed."""
        return all(c.status != "fail" for c in self.clauses)

    def counts(self) -> dict[str, int]:
        """Number of clauses by status, in the order of :data:`MARKS`, without the absent ones."""
        return {s: n for s in MARKS if (n := sum(c.status == s for c in self.clauses))}


def read_xfails(path: Path) -> dict[str, str]:
    """Expected failures: lines ``Q-3  # reason``; empty lines and lines that are only a comment are skipped.

    Raises:
        ClauseError: a missing reason, an unknown clause, or a clause named twice, with the line.
    """
    expected: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        word, _, reason = (part.strip() for part in line.partition("#"))
        if not word:
            continue
        if word not in CLAUSES:
            raise ClauseError(f"{path}:{number}: no clause {word!r}; clauses are {', '.join(CLAUSES)}")
        if not reason:
            raise ClauseError(f"{path}:{number}: {word} needs a reason, as in '{word}  # why it fails'")
        if word in expected:
            raise ClauseError(f"{path}:{number}: {word} is named twice")
        expected[word] = reason
    return expected


def combine(results: Iterable[Result], clauses: Iterable[str], xfails: Mapping[str, str]) -> list[ClauseResult]:
    """One result per clause: a failure outweighs everything, then a pass; an expected failure must fail.

    Args:
        results: outcomes of single checks, any order.
        clauses: ids that were asked for, in reading order.
        xfails: clause → reason.
    """
    by_clause: dict[str, list[Result]] = {}
    for result in results:
        by_clause.setdefault(result.clause, []).append(result)
    table = []
    for identifier in clauses:
        entry = CLAUSES[identifier]
        own = by_clause.get(identifier, [])
        status, note = _verdict(own)
        margins = [r.margin for r in own if r.margin is not None]
        margin = max(margins, default=None)
        if identifier in xfails:
            reason = xfails[identifier]
            if status == "fail":
                status, note = "xfail", f"expected: {reason}"
            elif status == "pass":
                status, note = "fail", f"listed as an expected failure ({reason}) but passes: take it off the list"
            else:
                note = "; ".join(filter(None, [note, f"listed as an expected failure ({reason}) but never ran"]))
        table.append(ClauseResult(identifier, entry.tier, entry.level, status, margin, note))
    return table


def _verdict(own: Sequence[Result]) -> tuple[ClauseStatus, str]:
    failed = [r for r in own if r.status == "fail"]
    if failed:
        return "fail", "\n\n".join(f"{r.check}: {r.note}" for r in failed)
    others = [r for r in own if r.status != "pass"]
    notes = "; ".join(dict.fromkeys(r.note for r in own if r.note))
    if any(r.status == "pass" for r in own):
        partly = [f"{r.check} {r.status}" for r in others]
        return "pass", "; ".join(filter(None, [notes, *partly]))
    if any(r.status == "unsupported" for r in own):
        return "unsupported", notes
    return "not implemented", notes or "no check ran"


# -- writing -----------------------------------------------------------------------------------------------------------


def to_json(run: Run) -> str:
    """The record as JSON; a margin without measure is null."""
    record = {"schema": SCHEMA, **asdict(run)}
    for c in record["clauses"]:
        c["margin"] = c["margin"] if c["margin"] is not None and math.isfinite(c["margin"]) else None
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"


def _margin(value: float | None) -> str:
    if value is None:
        return ""
    return "∞" if math.isinf(value) else f"{value:.2g}"


def _summary(run: Run) -> str:
    return ", ".join(f"{n} {status}" for status, n in run.counts().items())


def _first_line(note: str) -> str:
    return note.splitlines()[0] if note else ""


def to_text(run: Run) -> str:
    """Plain lines for a terminal: one per judged clause, one per chapter for all that is missing, then the summary."""
    lines = [f"{run.backend} on {run.device}, profile {run.profile}, specification {run.spec}, suite {run.suite}"]
    for letter, group in itertools.groupby(run.clauses, key=lambda c: c.id[0]):
        own = list(group)
        missing = [c for c in own if c.status in ("unsupported", "not implemented")]
        for c in own:
            if c not in missing:
                note = f"\n{'':12}{_brief(c.note)}" if c.note else ""
                title = CLAUSES[c.id].title
                lines.append(
                    f"{MARKS[c.status]} {c.id:<5} {c.tier:<14} {c.status:<15} {_margin(c.margin):>8}  {title}{note}"
                )
        if missing:
            lines.append(f"{MARKS['not implemented']} {letter:<5} {_missing(missing, len(own))}")
    return "\n".join([*lines, _summary(run)])


def _missing(missing: Sequence[ClauseResult], of: int) -> str:
    """What keeps clauses of a chapter from being judged: absent operations, then reasons of their own."""
    absent: dict[str, None] = {}
    reasons = []
    for c in missing:
        if c.status == "not implemented" and (names := _ABSENT.fullmatch(c.note)):
            absent |= dict.fromkeys(names[1].split(", "))
        else:
            reasons.append(f"{c.id} {c.status}: {_brief(c.note)}")
    if len(missing) == of and not reasons:
        return f"not implemented: all {of} clauses"
    return f"{len(missing)} of {of} clauses: " + "; ".join([f"no {', '.join(absent)}"] * bool(absent) + reasons)


def _brief(note: str) -> str:
    """The first line of a note; a long list of absent operations, which the chapters name, as their number."""
    head, word, names = _first_line(note).partition("without ")
    count = names.count(",") + 1
    return f"{head}{word}{names}" if count < 4 else f"{head}{word}{count} operations"


def to_markdown(run: Run) -> str:
    """A page with one table per chapter and the counter-examples below."""
    lines = [
        f"# Conformance of {run.backend}",
        "",
        f"Specification {run.spec}, suite {run.suite}, device {run.device}, profile {run.profile}: {_summary(run)}.",
        "Margin is the largest observed error ÷ allowed bound.",
    ]
    for letter, title in chapters().items():
        own = [c for c in run.clauses if c.id[0] == letter]
        if not own:
            continue
        lines += ["", f"## {letter}: {title}", "", "| clause | what | tier | level | status | margin | note |"]
        lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
        for c in own:
            note = _first_line(c.note).replace("|", "\\|")
            what = CLAUSES[c.id].title.replace("|", "\\|")
            cells = (c.id, what, c.tier, c.level, f"{MARKS[c.status]} {c.status}", _margin(c.margin), note)
            lines.append(f"| {' | '.join(cells)} |")
    failures = [c for c in run.clauses if c.status == "fail"]
    if failures:
        lines += ["", "## Counter-examples"]
        for c in failures:
            lines += ["", f"### {c.id}", "", "```", c.note, "```"]
    return "\n".join(lines) + "\n"


_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #667085; --line: #e3e6ec; --paper: #fff;
  --pass: #12805c; --fail: #c4320a; --xfail: #b54708; --other: #667085; --bar: #93b5f5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #2c3442; --paper: #12161d;
  --pass: #47cd9a; --fail: #f97066; --xfail: #fdb022; --other: #98a2b3; --bar: #3b5b9a; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; }
h2 { font-size: 1.1rem; margin-top: 2rem; }
p { color: var(--soft); margin: .2rem 0; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; }
td.id { font-variant-numeric: tabular-nums; font-weight: 600; }
.status { white-space: nowrap; font-weight: 600; }
.pass { color: var(--pass); }
.fail { color: var(--fail); }
.xfail { color: var(--xfail); }
.unsupported, .not { color: var(--other); }
.gauge { width: 9rem; height: .6rem; background: var(--line); border-radius: .3rem; display: inline-block; }
.gauge { overflow: hidden; }
.gauge i { display: block; height: 100%; background: var(--bar); }
.over i { background: var(--fail); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; margin: .3rem 0; }
small { color: var(--soft); }
summary { cursor: pointer; padding: .4rem 0; color: var(--soft); }
summary b { color: var(--ink); }
ul.tally { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; }
ul.tally b { font-size: 1.4rem; display: block; }
@media (max-width: 640px) {
  thead { display: none; }
  tr { display: flex; flex-wrap: wrap; gap: 0 .8rem; padding: .5rem 0; border-bottom: 1px solid var(--line); }
  td { padding: 0; border: 0; }
  td.what { flex: 1 0 calc(100% - 4rem); overflow-wrap: anywhere; }
  td.margin { flex: 1 0 100%; }
}
"""

_DECADES = 6  # the gauge spans 10⁻⁶ … 1 in equal decades


def _gauge(margin: float | None) -> str:
    if margin is None:
        return ""
    if margin == 0:
        return "<small>0</small>"
    share = 1.0 if margin >= 1 else max(0.0, 1 + math.log10(margin) / _DECADES)
    over = " over" if margin > 1 else ""
    return f'<span class="gauge{over}"><i style="width:{100 * share:.0f}%"></i></span> <small>{_margin(margin)}</small>'


def _rows(results: Sequence[ClauseResult]) -> Iterator[str]:
    """A table of clauses; on a narrow screen a row becomes a block."""
    heads = ("clause", "what", "tier", "level", "status", "margin")
    yield f"<table><thead><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead><tbody>"
    for c in results:
        note = f"<pre>{html.escape(c.note)}</pre>" if c.note else ""
        if c.status == "fail":
            note = f"<details open><summary>counter-example</summary>{note}</details>"
        kind, mark = c.status.split()[0], f"{MARKS[c.status]} {c.status}"
        yield f'<tr><td class="id">{c.id}</td><td class="what">{html.escape(CLAUSES[c.id].title)}{note}</td>'
        yield f"<td>{c.tier}</td><td>{c.level}</td>"
        yield f'<td class="status {kind}">{mark}</td><td class="margin">{_gauge(c.margin)}</td></tr>'
    yield "</tbody></table>"


def to_html(run: Run) -> str:
    """One page without scripts and without anything from elsewhere: failures first, then the chapters, folded.

    Margins are on a logarithmic gauge.
    """
    cells = html.escape
    tally = "".join(
        f'<li class="{status.split()[0]}"><b>{n}</b>{cells(status)}</li>' for status, n in run.counts().items()
    )
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>Conformance of {cells(run.backend)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>Conformance of {cells(run.backend)}</h1>",
        f"<p>Specification {run.spec}, suite {cells(run.suite)}, device {cells(run.device)}, ",
        f"profile {cells(run.profile)}</p>",
        f'<ul class="tally">{tally}</ul>',
        f"<p>Margin: largest observed error ÷ allowed bound; the gauge spans {_DECADES} decades and is full at 1.</p>",
    ]
    if failures := [c for c in run.clauses if c.status == "fail"]:
        parts += ["<h2>Failures</h2>", *_rows(failures)]
    for letter, title in chapters().items():
        own = [c for c in run.clauses if c.id[0] == letter]
        if own:
            counted = _summary(replace(run, clauses=own))
            parts.append(f"<details><summary><b>{letter}: {cells(title)}</b> {counted}</summary>")
            parts += [*_rows(own), "</details>"]
    parts.append("</body></html>")
    return "\n".join(parts) + "\n"


def write(run: Run, *, json_path: Path | None, markdown_path: Path | None, html_path: Path | None) -> None:
    """Write the asked-for forms, making folders as needed."""
    for path, text in ((json_path, to_json), (markdown_path, to_markdown), (html_path, to_html)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text(run), encoding="utf-8")
