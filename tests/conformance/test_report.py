"""The record, the two pages, and the rules of expected failures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lowbit.conformance import report
from lowbit.conformance.clauses import CLAUSES, ClauseError, select
from lowbit.conformance.report import Result


def results() -> list[Result]:
    return [
        Result("Q-3", "a", "pass", 0.25, ""),
        Result("Q-3", "b", "pass", 0.5, ""),
        Result("Q-3a", "c", "fail", math.inf, "codes[0] is 3, expected 2\nlast call: quantize(<x|y>)"),
        Result("Q-4", "d", "unsupported", None, "no 8-bit unit"),
        Result("Q-5", "e", "not implemented", None, "no clip_search"),
        Result("G-2", "f", "pass", 0.0, ""),
        Result("G-2", "g", "unsupported", None, "no groups"),
    ]


def run(xfails: dict[str, str] | None = None) -> report.Run:
    clauses = report.combine(results(), ["Q-3", "Q-3a", "Q-4", "Q-5", "G-2", "E-1"], xfails or {})
    return report.Run(spec=1, suite="0", backend="npu <1>", device="npu:0", profile="quick", clauses=clauses)


def test_record_has_the_keys_of_its_schema() -> None:
    record = json.loads(report.to_json(run()))
    assert list(record) == ["schema", "spec", "suite", "backend", "device", "profile", "clauses"]
    assert record["schema"] == "lowbit.conformance/1"
    for entry in record["clauses"]:
        assert list(entry) == ["id", "tier", "level", "status", "margin", "note"]
        assert entry["tier"] == CLAUSES[entry["id"]].tier
        assert entry["level"] in ("core", "full")
    assert {e["id"]: e["status"] for e in record["clauses"]} == {
        "Q-3": "pass",
        "Q-3a": "fail",
        "Q-4": "unsupported",
        "Q-5": "not implemented",
        "G-2": "pass",
        "E-1": "not implemented",
    }
    by_id = {e["id"]: e for e in record["clauses"]}
    assert by_id["Q-3"]["margin"] == 0.5
    assert by_id["Q-3a"]["margin"] is None, "an exact comparison that failed has no measure"
    assert "unsupported" in by_id["G-2"]["note"]
    assert not run().ok


def test_expected_failures_are_strict() -> None:
    by_id = {c.id: c for c in run({"Q-3a": "no tie rule yet"}).clauses}
    assert by_id["Q-3a"].status == "xfail"
    assert "no tie rule yet" in by_id["Q-3a"].note
    assert run({"Q-3a": "no tie rule yet"}).ok
    by_id = {c.id: c for c in run({"Q-3a": "known", "Q-3": "once failed"}).clauses}
    assert by_id["Q-3"].status == "fail"
    assert "take it off the list" in by_id["Q-3"].note
    by_id = {c.id: c for c in run({"Q-5": "later"}).clauses}
    assert by_id["Q-5"].status == "not implemented"
    assert "never ran" in by_id["Q-5"].note


def test_xfail_file(tmp_path: Path) -> None:
    file = tmp_path / "known.txt"
    file.write_text("# rounding unit of revision A\n\nQ-3a  # half away\nG-2   # float16 update # and more\n")
    assert report.read_xfails(file) == {"Q-3a": "half away", "G-2": "float16 update # and more"}
    for text, message in (
        ("Z-9  # unknown", r"known.txt:1: no clause 'Z-9'"),
        ("Q-3", r"known.txt:1: Q-3 needs a reason"),
        ("Q-3  #  ", r"Q-3 needs a reason"),
        ("Q-3  # a\nQ-3  # b", r"known.txt:2: Q-3 is named twice"),
    ):
        file.write_text(text)
        with pytest.raises(ClauseError, match=message):
            report.read_xfails(file)


def test_pages_are_self_contained_and_escaped() -> None:
    page = report.to_html(run())
    assert "npu &lt;1&gt;" in page
    assert "quantize(&lt;x|y&gt;)" in page
    for outside in ("http:", "https:", "<script", "<link", "src="):
        assert outside not in page
    assert page.index("<h2>Failures</h2>") < page.index("<details><summary><b>")
    first, _, folded = page.partition("<details><summary><b>")
    assert (">Q-3a<" in first, ">Q-3<" in first) == (True, False)
    assert (">Q-3a<" in folded, ">Q-3<" in folded) == (True, True)
    assert page.count("<details><summary><b>") == 3, "one fold a chapter"
    assert "@media (max-width: 640px)" in page
    table = report.to_markdown(run())
    assert "| Q-3a |" in table
    assert "## Counter-examples" in table
    assert "quantize(<x|y>)" in table
    assert "✗ Q-3a" in report.to_text(run())


def test_what_is_missing_takes_a_line_a_chapter() -> None:
    def clause(identifier: str, status: Any, note: str = "") -> report.ClauseResult:
        return report.ClauseResult(identifier, "exact", "core", status, None, note)

    rows = [clause(i, "not implemented", "no philox_words, philox_normal") for i in ("P-1", "P-1a", "P-2")]
    rows += [clause("Q-1", "pass", "without fit_grid, pack, unpack, twn, statsq")]
    rows += [
        clause("Q-2", "not implemented", "no fit_grid"),
        clause("Q-2a", "not implemented", "without fit_grid, pack"),
    ]
    rows += [clause("Q-3", "fail", "off by one\nat length"), clause("Q-4", "unsupported", "no multiplier")]
    text = report.to_text(report.Run(1, "0", "partial", "cpu", "quick", rows))
    assert [" ".join(line.split()) for line in text.splitlines()[1:]] == [
        "· P not implemented: all 3 clauses",
        "✓ Q-1 exact pass codes use the whole range of a width and a scheme, and no more",
        "without 5 operations",
        "✗ Q-3 exact fail codes differ only inside the tie band",
        "off by one",
        "· Q 3 of 5 clauses: no fit_grid, pack; Q-4 unsupported: no multiplier",
        "1 pass, 1 fail, 1 unsupported, 5 not implemented",
    ]


def test_selection_of_clauses() -> None:
    assert select([]) == list(CLAUSES)
    assert select(["Q-3"]) == ["Q-3", "Q-3a", "Q-3b"]
    assert select(["Q-3a"]) == ["Q-3a"]
    assert set(select(["R"])) == {"R-1", "R-2", "R-3", "R-3a"}
    with pytest.raises(ClauseError, match="no clause 'Q-99'"):
        select(["Q-99"])
