"""``make check``: what a name stands for is read from the sources, completely."""

from __future__ import annotations

from pathlib import Path

import check
import pytest

from lowbit import reference
from lowbit.conformance.clauses import CLAUSES, chapters

ROOT = Path(__file__).resolve().parent.parent.parent


def test_letters_cover_every_clause_and_operation_once() -> None:
    targets = [check.target(letter) for letter in chapters()]
    assert sorted(c for t in targets for c in t.clauses) == sorted(CLAUSES)
    assert sorted(op for t in targets for op in t.operations) == sorted(reference.__all__)


def test_files_are_narrower_than_their_chapter() -> None:
    chapter, table, search = (check.target(name) for name in ("L", "lut", "lut_search"))
    assert set(chapter.clauses) == {*table.clauses, *search.clauses}
    assert not set(table.operations) & set(search.operations)
    assert check.target("gptq").clauses == check.target("second_order").clauses == check.target("G").clauses
    assert check.target("gptq").modules == ("gptq",)


def test_every_reference_test_of_a_chapter_is_reached() -> None:
    reached = {word for name in check.names() for job in check.jobs(check.target(name)) for word in job.arguments}
    of_no_chapter = {"test_cross_methods.py", "test_doctests.py", "test_golden.py"}
    for path in sorted((ROOT / "tests" / "reference").glob("test_*.py")):
        if path.name not in of_no_chapter:
            assert f"tests/reference/{path.name}" in reached


@pytest.mark.parametrize("name", check.names())
def test_every_chapter_has_something_to_run(name: str) -> None:
    what = check.target(name)
    assert what.clauses
    assert {job.title for job in check.jobs(what)} >= {"mutants", "suite on numba", "tests/accel", "tests/reference"}


def test_an_unknown_chapter_prints_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["eigenspce"]) == 2
    shown = capsys.readouterr().err
    assert "'eigenspce'" in shown
    assert all(f"{letter}  {title}" in shown for letter, title in chapters().items())
    assert "lut_search" in shown


def test_a_failing_job_is_shown_and_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing, passing = check.Job("bad", ("nowhere_at_all",)), check.Job("good", ("timeit", "-n1", "-r1", "pass"))
    monkeypatch.setattr(check, "jobs", lambda _: [failing, passing])
    assert check.main(["R"]) == 1
    assert "No module named nowhere_at_all" in capsys.readouterr().out
    monkeypatch.setattr(check, "jobs", lambda _: [passing])
    assert check.main(["R"]) == 0
