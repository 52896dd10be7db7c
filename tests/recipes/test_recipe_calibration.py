"""Where token rows come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import byte_tokenizer

from lowbit.data.text import load_rows, read_documents
from lowbit.runs.errors import RecipeError


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


def write(path: Path, kind: str, documents: list[str]) -> Path:
    """The same documents in each format."""
    if kind == "txt":
        path.write_text("\n\n".join(documents))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"text": document, "id": 1}) + "\n" for document in documents))
    elif kind == "json":
        path.write_text(json.dumps([{"text": document} for document in documents]))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"text": documents, "id": list(range(len(documents)))}), path)
    return path


DOCUMENTS = ["first document, some words", "second one", "third: a little longer than the others, surely"]


@pytest.mark.parametrize("kind", ["txt", "jsonl", "json", "parquet"])
def test_formats_agree(tmp_path: Path, tokenizer: Any, kind: str) -> None:
    path = write(tmp_path / f"data.{kind}", kind, DOCUMENTS)
    rows = load_rows(str(path), tokenizer, samples=4, length=20).ids
    expected = tokenizer("\n\n".join(DOCUMENTS), add_special_tokens=False)["input_ids"][:80]
    assert rows.dtype == np.int64
    assert rows.shape == (4, 20)
    assert rows.reshape(-1).tolist() == expected


def test_python_docs_is_the_same_everywhere(tokenizer: Any) -> None:
    rows = load_rows("python-docs", tokenizer, samples=3, length=50)
    assert rows.source == "python-docs"
    assert rows.sha256 == load_rows("python-docs", tokenizer, samples=3, length=50).sha256
    names = list(read_documents("python-docs"))
    assert len(names) > 50


def test_random_rows_depend_on_the_seed_alone(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path / "data.txt", "txt", DOCUMENTS)
    stream = tokenizer("\n\n".join(DOCUMENTS), add_special_tokens=False)["input_ids"]
    first = load_rows(str(path), tokenizer, samples=5, length=10, seed=3).ids
    assert np.array_equal(first, load_rows(str(path), tokenizer, samples=5, length=10, seed=3).ids)
    assert not np.array_equal(first, load_rows(str(path), tokenizer, samples=5, length=10, seed=4).ids)
    windows = {tuple(stream[start : start + 10]) for start in range(len(stream) - 9)}
    assert all(tuple(row) in windows for row in first.tolist())


def test_skip(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path / "data.txt", "txt", DOCUMENTS)
    stream = tokenizer("\n\n".join(DOCUMENTS), add_special_tokens=False)["input_ids"]
    assert load_rows(str(path), tokenizer, samples=1, length=10, skip=5).ids.tolist() == [stream[5:15]]
    assert load_rows(str(path), tokenizer, samples=2, length=10, skip=-20).ids.tolist() == [
        stream[-20:-10],
        stream[-10:],
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            '{"body": "x"}\n',
            "{path}, line 1: no text field 'text' (it has: body); choose another text_field",
        ),
        ("a.jsonl", '{"text": "x"}\nnot json\n', "{path}, line 2: not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("a.json", '{"text": "x"}', "{path}: expected a JSON list of records, got dict"),
        ("a.parquet", "PAR0", None),
        ("a.txt", b"\xff\xfe\x00", "{path}: not UTF-8 text (invalid start byte at byte 0)"),
    ],
)
def test_bad_files(tmp_path: Path, tokenizer: Any, name: str, content: str | bytes, message: str | None) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(RecipeError) as caught:
        load_rows(str(path), tokenizer, samples=1, length=10)
    if message is None:
        assert str(caught.value).startswith(f"{path}: not a parquet file: ")
    else:
        assert str(caught.value) == message.format(path=path)


def test_unknown_source(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_rows("nowhere.txt", tokenizer, samples=1, length=10)
    assert str(caught.value) == "nowhere.txt: no such file, and not a hub dataset (owner/name) or python-docs"
    with pytest.raises(RecipeError, match="is a directory: name a text"):
        load_rows(str(tmp_path), tokenizer, samples=1, length=10)


def test_hub_dataset(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of `datasets`, with a stand-in for the network."""
    import datasets

    asked: list[Any] = []

    def load_dataset(name: str, configuration: str | None, **options: Any) -> Any:
        asked.append((name, configuration, options))
        if name == "owner/gone":
            raise FileNotFoundError("no such dataset\nmore lines")
        return [{"text": document} for document in DOCUMENTS]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = load_rows("owner/name:config:validation", tokenizer, samples=2, length=10).ids
    assert rows.shape == (2, 10)
    assert asked == [("owner/name", "config", {"split": "validation", "streaming": True})]
    with pytest.raises(RecipeError) as caught:
        load_rows("owner/gone", tokenizer, samples=1, length=10)
    assert str(caught.value) == "owner/gone: no such file, and not available as a hub dataset: no such dataset"
