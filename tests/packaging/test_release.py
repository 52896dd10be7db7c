"""Releases: notes from the changelog, checks before commits, and a workflow that can be trusted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import release_notes
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
CHANGELOG = """# Changelog

## [Unreleased]

## [0.2.0] - 2027-01-01

Opening.

### Fixed

- a bug
  on two lines

### Removed

- a name

## [0.1.0]

### Added

- all of it
"""


def test_notes_are_one_section_with_what_breaks_first() -> None:
    assert release_notes.notes(CHANGELOG, "0.2.0") == (
        "Opening.\n\n### Removed\n\n- a name\n\n### Fixed\n\n- a bug\n  on two lines\n"
    )
    assert release_notes.notes(CHANGELOG, "0.1.0") == "### Added\n\n- all of it\n"


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("## [0.1.0]", "## [0.0.1]", "no section for 0.1.0; it has Unreleased, 0.2.0, 0.0.1"),
        ("### Added", "### News", "group 'News' is none of"),
        ("- all of it", "### Added\n\n- twice", "a group stands twice"),
        ("- all of it", "", "group 'Added' has no entry"),
    ],
)
def test_a_section_that_is_wrong_is_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        release_notes.notes(CHANGELOG.replace(old, new), "0.1.0")


def test_another_version_than_that_of_the_package_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert release_notes.main(["99.0.0"]) == 1
    assert "not the version" in capsys.readouterr().err


def test_every_section_of_the_changelog_can_become_notes() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert sections
    for version in sections:
        assert release_notes.notes(text, version)


def load(name: str) -> Any:
    """A YAML file."""
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_hooks_run_the_commands_of_the_makefile_with_the_tools_of_the_environment() -> None:
    (repo,) = load(".pre-commit-config.yaml")["repos"]
    assert repo["repo"] == "local"
    assert {hook["language"] for hook in repo["hooks"]} == {"system"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"^lint: .*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    linted = {" ".join(line.split()[:-1]).replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()}
    entries = [hook["entry"].removesuffix(" --force-exclude") for hook in repo["hooks"]]
    assert set(entries) == {*linted, "make types"}


def test_the_workflow_pins_actions_by_digest_and_gives_each_job_no_more_than_it_needs() -> None:
    workflow = load(".github/workflows/publish.yml")
    assert workflow["permissions"] == {}
    jobs = workflow["jobs"]
    used = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
    assert used
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action) for action in used)
    assert {job for job in jobs if "id-token" in jobs[job]["permissions"]} == {"publish"}
    assert jobs["publish"]["needs"] == "build"
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    commands = "\n".join(step.get("run", "") for step in jobs["build"]["steps"])
    asked = re.findall(r"^make (\S+)", commands, re.MULTILINE)
    assert {"test", "test-extras", "lock-check"} <= set(asked) <= set(targets)
