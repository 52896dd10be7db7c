"""What to install, by where lowbit came from."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import lowbit
from lowbit._hints import hint


class Installed:
    """A distribution with, or without, a ``direct_url.json``."""

    def __init__(self, origin: dict[str, Any] | None) -> None:
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.origin is None else json.dumps(self.origin)


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, "pip install 'lowbit[hf]'"),
        ({"url": "file:///x/y.whl", "archive_info": {}}, "pip install 'lowbit[hf] @ file:///x/y.whl'"),
        ({"url": "file:///x/lowbit", "dir_info": {}}, "pip install 'lowbit[hf] @ file:///x/lowbit'"),
        ({"url": "https://x/y", "vcs_info": {"vcs": "git"}}, "pip install 'lowbit[hf] @ git+https://x/y'"),
        ({"url": "file:///x/my%20clone", "dir_info": {"editable": True}}, "pip install -e '/x/my clone[hf]'"),
    ],
)
def test_the_command_fits_the_installation(
    origin: dict[str, Any] | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "distributions", lambda name: [Installed(None), Installed(origin)])
    assert hint("hf") == expected


def test_in_a_clone_the_path_is_relative(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    origin = {"url": tmp_path.as_uri(), "dir_info": {"editable": True}}
    monkeypatch.setattr(metadata, "distributions", lambda name: [Installed(origin)])
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hint("numba") == "pip install -e '.[numba]'"
    monkeypatch.chdir(tmp_path / "docs")
    assert hint("numba") == "pip install -e '..[numba]'"


def test_a_backend_without_its_package_gives_the_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError("No module named 'llvmlite'", name="llvmlite")

    monkeypatch.setattr("lowbit.backends.importlib.import_module", absent)
    with pytest.raises(lowbit.BackendError) as caught:
        lowbit.load("numba")
    assert str(caught.value) == f"backend 'numba' needs llvmlite: {hint('numba')}"
