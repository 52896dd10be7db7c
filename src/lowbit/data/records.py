"""Where data come from: one record at a time, whatever a reader makes of it.

A source is

* ``python-docs``: the documentation that ships with Python (``pydoc_data.topics``), which needs no download;
* a file: ``.jsonl`` or ``.ndjson`` (one object per line), ``.json`` (a list), ``.csv`` or ``.tsv`` (with a header),
  ``.parquet``, ``.arrow`` or ``.feather``; anything else is plain text in UTF-8;
* a dataset of the Hugging Face hub through ``datasets``: ``owner/name[:configuration[:split]]``.

Only what is taken is read; a ``.json`` list alone is parsed whole.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lowbit._hints import hint
from lowbit.runs.errors import RecipeError

__all__ = ["Record", "read_records"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+){0,2}")
_LINES, _TABLES, _COLUMNS = {".jsonl", ".ndjson"}, {".csv": ",", ".tsv": "\t"}, {".parquet", ".arrow", ".feather"}
_FILES = {".txt", ".md", ".json", *_LINES, *_TABLES, *_COLUMNS}
_PIECE = 1 << 18  # characters of plain text at a time
_ROWS = 256  # of a columnar file at a time
_LONGEST_CELL = (1 << 31) - 1  # of a CSV file; the csv module's own limit is 128 KiB


class Record(NamedTuple):
    """One record of a source."""

    place: str  # source and number, for messages
    value: Any  # plain text, or what the source holds: mostly an object with named fields
    continues: bool = False  # a further piece of the plain text before it


def read_records(source: str, *, fields: Sequence[str]) -> Iterator[Record]:
    """The records of a source, in order; of a table with columns only ``fields`` are read.

    Raises:
        RecipeError: nothing there, a table without one of ``fields``, or a file that cannot be parsed; the message
            names the source and the record.
    """
    path = Path(os.path.expanduser(source))  # unlike that of Path, it leaves unknown users alone
    if source == "python-docs":
        yield from _python_docs()
    elif path.is_file():
        yield from _from_file(path, fields)
    elif path.is_dir():
        raise RecipeError(f"{source} is a directory: name a text, JSONL, JSON, CSV, parquet or arrow file in it")
    elif path.exists():
        raise RecipeError(f"{source} is no regular file: write its text into a file and name that")
    elif _HUB_ID.fullmatch(source) and path.suffix.lower() not in _FILES:
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
    if suffix in _COLUMNS:
        yield from _from_columns(path, fields)
        return
    try:
        with path.open("rb") as raw:
            text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="" if suffix in _TABLES else None)
            try:
                if suffix in _LINES:
                    yield from _from_lines(path, text)
                elif suffix == ".json":
                    yield from _from_list(path, text.read())
                elif suffix in _TABLES:
                    yield from _from_table(path, text, _TABLES[suffix], fields)
                else:
                    yield from _from_text(path, text)
            except UnicodeDecodeError as error:
                at = raw.tell() - len(error.object) + error.start
                raise RecipeError(
                    f"{path}: not UTF-8 text ({error.reason} at byte {at}): convert it, or unpack it first"
                ) from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror or error}") from error


def _from_text(path: Path, text: io.TextIOBase) -> Iterator[Record]:
    first = True
    while piece := text.read(_PIECE):
        if "\0" in piece:
            raise RecipeError(f"{path}: holds NUL characters, so it is no text but a binary file")
        yield Record(str(path), piece, continues=not first)
        first = False


def _from_lines(path: Path, lines: Iterable[str]) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{path}, line {number}"
            yield Record(place, _parse(line, place))


def _from_list(path: Path, text: str) -> Iterator[Record]:
    records = _parse(text, str(path))
    if not isinstance(records, list):
        raise RecipeError(f"{path}: expected a JSON list of records, got {type(records).__name__}")
    for number, record in enumerate(records, 1):
        yield Record(f"{path}, record {number}", record)


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise RecipeError(f"{place}: not JSON: {error}") from error
    except RecursionError:
        raise RecipeError(f"{place}: nested too deeply") from None


def _from_table(path: Path, lines: Iterable[str], delimiter: str, fields: Sequence[str]) -> Iterator[Record]:
    csv.field_size_limit(_LONGEST_CELL)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        names = next(rows, [])
        _require(path, fields, names)
        for row in rows:
            if len(row) not in (0, len(names)):
                raise RecipeError(
                    f"{path}, line {rows.line_num}: {len(row)} cells under a header of {len(names)}; "
                    "quote cells that hold the delimiter"
                )
            if row:
                yield Record(f"{path}, line {rows.line_num}", dict(zip(names, row, strict=True)))
    except csv.Error as error:
        raise RecipeError(f"{path}, line {rows.line_num}: not CSV: {error}") from error


def _from_columns(path: Path, fields: Sequence[str]) -> Iterator[Record]:
    kind = path.suffix.lower().lstrip(".")
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise RecipeError(f"{path}: {kind} needs pyarrow: {hint('hf')}") from None

    def batches() -> Iterator[Any]:
        if kind == "parquet":
            with pq.ParquetFile(path) as file:
                _require(path, fields, file.schema_arrow.names)
                yield from file.iter_batches(batch_size=_ROWS, columns=list(fields))
            return
        with pa.memory_map(str(path)) as mapped:
            ends = mapped.read(6) == b"ARROW1"  # else a stream, as ``datasets`` writes them
            mapped.seek(0)
            reader = pa.ipc.open_file(mapped) if ends else pa.ipc.open_stream(mapped)
            _require(path, fields, reader.schema.names)
            for batch in (reader.get_batch(n) for n in range(reader.num_record_batches)) if ends else reader:
                batch.validate(full=True)
                for start in range(0, batch.num_rows, _ROWS):
                    yield batch.select(list(fields)).slice(start, _ROWS)

    number = 0
    # pyarrow has no common error class for a damaged file
    for rows in _guarded((batch.to_pylist() for batch in batches()), f"{path}: not a {kind} file"):
        for row in rows:
            number += 1
            yield Record(f"{path}, record {number}", row)


def _require(path: Path, fields: Sequence[str], names: Sequence[str]) -> None:
    for field in fields:
        if names.count(field) != 1:
            many = "no column" if field not in names else "more than one column"
            raise RecipeError(f"{path}: {many} {field!r} (it has: {', '.join(names)}); choose another text_field")


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
    for number, record in enumerate(_guarded(records, f"{source}: reading failed"), 1):
        yield Record(f"{source}, record {number}", record)


def _guarded(items: Iterator[Any], what: str) -> Iterator[Any]:
    """The items; what a library raises instead of one becomes a :class:`RecipeError` that begins with ``what``."""
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except RecipeError:
            raise
        except Exception as error:
            raise RecipeError(f"{what}: {_first_line(error)}") from error
        yield item


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
