"""Text in, rows of token ids out: the one place where calibration and evaluation data come from.

A source is

* ``python-docs``: the documentation that ships with Python (``pydoc_data.topics``), which needs no download;
* a file: ``.jsonl`` or ``.ndjson`` (one object per line), ``.json`` (a list), ``.parquet``,
  anything else is plain text;
* a dataset of the Hugging Face hub through ``datasets``: ``owner/name[:configuration[:split]]``.

Documents are joined by an empty line and tokenized in one go without special tokens, so that the rows are the running
text cut into equal pieces.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lowbit._hints import hint
from lowbit.runs.errors import RecipeError

__all__ = ["TokenRows", "load_rows", "load_tokens", "read_documents"]

_SEPARATOR = "\n\n"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+){0,2}")


class TokenRows(NamedTuple):
    """Rows of token ids and where they came from."""

    ids: npt.NDArray[np.int64]  # (samples, length)
    sha256: str  # of the ids' bytes: what was really used
    source: str  # name of the source, without folders


def read_documents(source: str, *, field: str = "text") -> Iterator[str]:
    """The documents of a source, in order.

    Raises:
        RecipeError: nothing there, a record without ``field``, or a file that cannot be parsed; the message names
            the source and the record.
    """
    path = Path(source).expanduser()
    if source == "python-docs":
        yield from _python_docs()
    elif path.is_file():
        yield from _from_file(path, field)
    elif path.is_dir():
        raise RecipeError(f"{source} is a directory: name a text, JSONL, JSON or parquet file in it")
    elif _HUB_ID.fullmatch(source) and path.suffix.lower() not in {".txt", ".jsonl", ".json", ".parquet", ".md"}:
        yield from _from_hub(source, field)
    else:
        raise RecipeError(f"{source}: no such file, and not a hub dataset (owner/name) or python-docs")


def _python_docs() -> Iterator[str]:
    try:
        from pydoc_data.topics import topics  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise RecipeError(
            "python-docs: this Python comes without its documentation topics; name a text file instead"
        ) from None
    for name in sorted(topics):
        yield topics[name].strip()


def _from_file(path: Path, field: str) -> Iterator[str]:
    suffix = path.suffix.lower()
    try:
        if suffix in {".jsonl", ".ndjson"}:
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield _text_of(_parse(line, f"{path}, line {number}"), field, f"{path}, line {number}")
        elif suffix == ".json":
            records = _parse(path.read_text(encoding="utf-8"), str(path))
            if not isinstance(records, list):
                raise RecipeError(f"{path}: expected a JSON list of records, got {type(records).__name__}")
            for number, record in enumerate(records, 1):
                yield _text_of(record, field, f"{path}, record {number}")
        elif suffix == ".parquet":
            yield from _from_parquet(path, field)
        else:
            yield path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror or error}") from error


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise RecipeError(f"{place}: not JSON: {error}") from error


def _text_of(record: Any, field: str, place: str) -> str:
    if isinstance(record, str):
        return record
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        has = ", ".join(sorted(record)) if isinstance(record, dict) else type(record).__name__
        raise RecipeError(f"{place}: no text field {field!r} (it has: {has or 'nothing'}); choose another text_field")
    return str(record[field])


def _from_parquet(path: Path, field: str) -> Iterator[str]:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise RecipeError(f"{path}: parquet needs pyarrow: {hint('hf')}") from None
    try:
        file = pq.ParquetFile(path)
    except Exception as error:  # pyarrow has no common error class for a damaged file
        raise RecipeError(f"{path}: not a parquet file: {error}") from error
    if field not in file.schema_arrow.names:
        raise RecipeError(
            f"{path}: no column {field!r} (it has: {', '.join(file.schema_arrow.names)}); choose another text_field"
        )
    for batch in file.iter_batches(columns=[field]):
        for value in batch.column(0).to_pylist():
            if value is not None:
                yield str(value)


def _from_hub(source: str, field: str) -> Iterator[str]:
    try:
        import datasets
    except ImportError:
        raise RecipeError(f"{source}: no such file, and hub datasets need: {hint('hf')}") from None
    name, *rest = source.split(":")
    configuration = rest[0] if rest else None
    split = rest[1] if len(rest) > 1 else "train"
    try:
        records = iter(datasets.load_dataset(name, configuration, split=split, streaming=True))
    except Exception as error:  # the hub client raises many kinds: unknown name, no network, no permission
        raise RecipeError(
            f"{source}: no such file, and not available as a hub dataset: {_first_line(error)}"
        ) from error
    for number in range(1, 1 << 62):
        try:
            record = next(records)
        except StopIteration:
            return
        except Exception as error:
            raise RecipeError(f"{source}: reading record {number} failed: {_first_line(error)}") from error
        yield _text_of(record, field, f"{source}, record {number}")


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def load_tokens(
    source: str,
    tokenizer: Any,
    *,
    samples: int | None,
    length: int,
    seed: int | None = None,
    skip: int = 0,
    field: str = "text",
    purpose: str = "calibration",
) -> npt.NDArray[np.int64]:
    """Token ids of ``samples`` rows of ``length``, as int64 (samples, length).

    Args:
        source: see the module.
        tokenizer: a transformers tokenizer.
        samples: rows wanted; None takes every whole row there is (at least one).
        length: tokens per row.
        seed: None takes the first rows in order; a number draws rows at random places, the same ones every time.
        skip: tokens to leave out first; a negative number counts from the end of the text.
        field: text field of records.
        purpose: first word of the messages, "calibration" or "evaluation".

    Raises:
        RecipeError: no text, or fewer tokens than asked for.
    """
    return load_rows(
        source, tokenizer, samples=samples, length=length, seed=seed, skip=skip, field=field, purpose=purpose
    ).ids


def load_rows(
    source: str,
    tokenizer: Any,
    *,
    samples: int | None,
    length: int,
    seed: int | None = None,
    skip: int = 0,
    field: str = "text",
    purpose: str = "calibration",
) -> TokenRows:
    """As :func:`load_tokens`, with the hash of the ids and the short name of the source."""
    whole = samples is None or seed is not None or skip < 0
    wanted = None if whole or samples is None else skip + samples * length
    stream = _tokenize(source, tokenizer, field, wanted)
    if not len(stream):
        raise RecipeError(f"{purpose} text {source} is empty")
    if skip < 0:
        stream = stream[max(0, len(stream) + skip) :]
    else:
        stream = stream[skip:]
    have = len(stream) // length
    if have < (samples or 1):
        after = f" after skipping {skip}" if skip > 0 else f" in its last {-skip}" if skip < 0 else ""
        need = f"{samples} x {length} = {samples * length}" if samples else f"one row of {length}"
        raise RecipeError(
            f"{purpose} text {source} gives {len(stream)} tokens{after}, but {need} are needed: "
            "take fewer or shorter samples, or a longer text"
        )
    if seed is not None and samples is not None:
        # Starts drawn without replacement from all places where a row fits.
        places = np.random.default_rng(seed).permutation(len(stream) - length + 1)[:samples]
        if len(places) < samples:
            raise RecipeError(f"{purpose} text {source} has only {len(places)} places for rows of {length} tokens")
        ids = np.stack([stream[start : start + length] for start in places])
    else:
        count = samples or have
        ids = stream[: count * length].reshape(count, length).copy()
    named = source if not Path(source).expanduser().exists() else Path(source).name
    return TokenRows(ids, hashlib.sha256(np.ascontiguousarray(ids, dtype="<i8").tobytes()).hexdigest(), named)


def _tokenize(source: str, tokenizer: Any, field: str, wanted: int | None) -> npt.NDArray[np.int64]:
    """Ids of the joined documents; reads only as many documents as ``wanted`` tokens need."""
    documents: list[str] = []
    characters = 0
    target = 0 if wanted is None else 8 * wanted
    for document in read_documents(source, field=field):
        if not document.strip():
            continue
        documents.append(document)
        characters += len(document) + len(_SEPARATOR)
        if wanted is not None and characters >= target:
            ids = _encode(tokenizer, _SEPARATOR.join(documents))
            if len(ids) >= wanted:
                return ids
            target = characters + 8 * (wanted - len(ids))
    return _encode(tokenizer, _SEPARATOR.join(documents))


def _encode(tokenizer: Any, text: str) -> npt.NDArray[np.int64]:
    if not text:
        return np.zeros(0, dtype=np.int64)
    ids = tokenizer(text, add_special_tokens=False, verbose=False, return_attention_mask=False)["input_ids"]
    return np.asarray(ids, dtype=np.int64)
