"""constraints.txt: one pin for whatever is installed, none that nobody asked for; floors and versions stand once."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import lock
import pytest
from packaging.requirements import Requirement

import lowbit

ROOT = Path(__file__).resolve().parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = lock.pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))


def wanted(requirement: Requirement, extra: str = "") -> list[Requirement]:
    """What a requirement's own requirements are: of lowbit by pyproject.toml, of others as installed."""
    if lock.normal(requirement.name) == "lowbit":
        texts = [
            *PROJECT["dependencies"],
            *(r for e in requirement.extras for r in PROJECT["optional-dependencies"][e]),
        ]
        return [r for r in map(Requirement, texts) if r.marker is None or r.marker.evaluate()]
    found = map(Requirement, metadata.requires(requirement.name) or [])
    extras = [{"extra": e} for e in ("", *requirement.extras)]
    return [r for r in found if r.marker is None or any(r.marker.evaluate(e) for e in extras)]


def closure(text: str) -> dict[str, str]:
    """Name to installed version of everything that a requirement brings; what is not installed is left out."""
    todo, seen, found = [Requirement(text)], set(), {}
    while todo:
        requirement = todo.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        name = lock.normal(requirement.name)
        try:
            version = lowbit.__version__ if name == "lowbit" else metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # of an extra that this environment does without
        found[name] = version
        todo += wanted(requirement)
    return found


def test_whatever_is_installed_for_all_extras_is_pinned_to_its_version() -> None:
    installed = {n: v.partition("+")[0] for n, v in closure("lowbit[all,foreign,onnx]").items() if n != "lowbit"}
    assert {"torch", "numba", "ruff", "transformers"} <= set(installed)
    wrong = {name: (version, PINS.get(name)) for name, version in installed.items() if PINS.get(name) != version}
    assert not wrong, f"installed, pinned: {wrong}; run make install, or bring constraints.txt up to date"


def test_torch_gets_the_triton_that_its_linux_wheels_require() -> None:
    """torch 2.13.0 says triton==3.7.1 there; wheels for a CPU alone say nothing, so no installation shows a mistake."""
    assert (PINS["torch"], PINS["triton"]) == ("2.13.0", "3.7.1")


@pytest.mark.parametrize(
    "text, message",
    [("a==1\nA==2", "pinned twice: a"), ("a-b==1\na_B==1", "pinned twice: a-b"), ("a>=1", "not a pin")],
)
def test_a_name_stands_once_and_with_a_version(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lock.pins(text)


def test_lock_check_complains_of_what_is_missing_different_or_superfluous() -> None:
    resolved = {"3.11 linux-x86_64": {"a": "1", "b": "2"}, "3.12 macos-arm64": {"a": "1", "c": "3"}}
    lines, complaints = lock.report({"a": "1", "b": "9", "d": "4"}, resolved)
    assert lines == ["a==1", "b==2   not on macos-arm64", "c==3   not on linux-x86_64"]
    assert complaints == [
        "b: resolved to 2, pinned to 9",
        "c: resolved to 3, pinned to nothing",
        "d: pinned, and needed nowhere",
    ]


def test_a_floor_that_no_resolution_can_reach_is_named() -> None:
    assert lock.unreachable(["a>=1.0", "b>=2"], {"a": "1", "b": "2.1"}) == ["b>=2: the lowest that resolves is 2.1"]


def test_extras_name_nothing_that_the_core_or_their_own_extras_name() -> None:
    extras: dict[str, list[str]] = PROJECT["optional-dependencies"]

    def brought(extra: str) -> list[str]:
        own = [Requirement(r) for r in extras[extra]]
        inner = [e for r in own if r.name == "lowbit" for e in sorted(r.extras)]
        return [r.name for r in own if r.name != "lowbit"] + [n for e in inner for n in brought(e)]

    core = {Requirement(r).name for r in PROJECT["dependencies"]}
    assert core == {"numpy", "scipy", "typer"}
    for extra in extras:
        assert not core & set(brought(extra))
        own = list(map(Requirement, extras[extra]))
        above = {n for r in own if r.name == "lowbit" for e in r.extras for n in brought(e)}
        assert not above & {r.name for r in own}, extra


def test_the_version_stands_in_one_place() -> None:
    assert "version" in PROJECT["dynamic"]
    assert "version" not in PROJECT
    text = (ROOT / "src" / "lowbit" / "_version.py").read_text(encoding="utf-8")
    assert re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE) == [lowbit.__version__]
    assert metadata.version("lowbit") == lowbit.__version__


def test_the_pythons_of_the_lock_are_those_of_the_classifiers() -> None:
    named = [c.rpartition(" :: ")[2] for c in PROJECT["classifiers"] if ":: Python ::" in c]
    assert tuple(named) == lock.PYTHONS
