"""Fixtures of the recipes: a text, tiny models made once, quick options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_models import TEXT, save_tiny


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of a few thousand bytes."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny(kind)``: folder of a saved model, made once per session and kind."""
    made: dict[tuple[Any, ...], Path] = {}

    def make(kind: str = "llama", **changes: Any) -> Path:
        key = (kind, *sorted((name, str(value)) for name, value in changes.items()))
        if key not in made:
            made[key] = save_tiny(tmp_path_factory.mktemp(kind) / kind, kind, **changes)
        return made[key]

    return make


@pytest.fixture
def options(tiny: Callable[..., Path], text: Path, tmp_path: Path) -> Callable[..., Any]:
    """``options(**changes)``: quick settings on the tiny LLaMA, into ``tmp_path / "out"``."""
    from lowbit.recipes.options import CompressOptions, parse_options

    def make(kind: str = "llama", **changes: Any) -> CompressOptions:
        fields: dict[str, Any] = {
            "model": str(tiny(kind)) if "model" not in changes else changes["model"],
            "out": tmp_path / "out",
            "calibration": str(text),
            "samples": 3,
            "length": 24,
            "group_size": 16,
            "rank": 4,
            "backend": "reference",
        }
        return parse_options(CompressOptions, **(fields | changes))

    return make
