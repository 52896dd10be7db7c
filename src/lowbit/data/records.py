"""Where data come from: one record at a time, whatever a reader makes of it.

A source is

* ``python-docs``: the documentation that ships with Python (``pydoc_data.topics``), which needs no download;
* a file: ``.jsonl`` or ``.ndjson`` (one object per line), ``.json`` (a list), ``.parquet``,
  anything else is plain text;
* a dataset of the Hugging Face hub through ``datasets``: ``owner/name[:configuration[:split]]``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lowbit._hints import hint
from lowbit.runs.errors import RecipeError

__all__ = ["Record", "read_records"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+){0,2}")


class Record(NamedTuple):
    """One record of a source."""

    place: str  # source and number, for messages
    value: Any  # plain text, or what the source holds: mostly an object with named fields


def read_records(source: str, *, fields: Sequence[str]) -> Iterator[Record]:
    """The records of a source, in order; of a table with columns only ``fields`` are read, as text.

    Raises:
        RecipeError: nothing there, a table without one of ``fields``, or a file that cannot be parsed; the message
            names the source and the record.
    """
    path = Path(source).expanduser()
    if source == "python-docs":
        yield from _python_docs()
    elif path.is_file():
        yield from _from_file(path, fields)
    elif path.is_dir():
        raise RecipeError(f"{source} is a directory: name a text, JSONL, JSON or parquet file in it")
    elif _HUB_ID.fullmatch(source) and path.suffix.lower() not in {".txt", ".jsonl", ".json", ".parquet", ".md"}:
        yield from _from_hub(source)
    else:
        raise RecipeError(f"{source}: no such file, and not a hub dataset (owner/name) or python-docs")


def _python_docs() -> Iterator[Record]:
    try:
        from pydoc_data.topics import topics  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise RecipeError(
            "python-docs: this Python comes without its documentation topics; name a text file instead"
        ) from None
    for name in sorted(topics):
        yield Record(f"python-docs, {name}", topics[name].strip())


def _from_file(path: Path, fields: Sequence[str]) -> Iterator[Record]:
    suffix = path.suffix.lower()
    try:
        if suffix in {".jsonl", ".ndjson"}:
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        place = f"{path}, line {number}"
                        yield Record(place, _parse(line, place))
        elif suffix == ".json":
            records = _parse(path.read_text(encoding="utf-8"), str(path))
            if not isinstance(records, list):
                raise RecipeError(f"{path}: expected a JSON list of records, got {type(records).__name__}")
            for number, record in enumerate(records, 1):
                yield Record(f"{path}, record {number}", record)
        elif suffix == ".parquet":
            yield from _from_parquet(path, fields)
        else:
            yield Record(str(path), path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror or error}") from error


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{place}: not JSON: {error}") from error


def _from_parquet(path: Path, fields: Sequence[str]) -> Iterator[Record]:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise RecipeError(f"{path}: parquet needs pyarrow: {hint('hf')}") from None
    try:
        file = pq.ParquetFile(path)
    except Exception as error:  # pyarrow has no common error class for a damaged file
        raise RecipeError(f"{path}: not a parquet file: {error}") from error
    names = file.schema_arrow.names
    for field in fields:
        if field not in names:
            raise RecipeError(f"{path}: no column {field!r} (it has: {', '.join(names)}); choose another text_field")
    number = 0
    batches = file.iter_batches(columns=list(fields))
    while True:
        try:
            rows = next(batches).to_pylist()
        except StopIteration:
            return
        except Exception as error:
            raise RecipeError(f"{path}: damaged behind record {number}: {error}") from error
        for row in rows:
            number += 1
            if None not in row.values():
                yield Record(f"{path}, record {number}", {name: str(value) for name, value in row.items()})


def _from_hub(source: str) -> Iterator[Record]:
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
        yield Record(f"{source}, record {number}", record)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
