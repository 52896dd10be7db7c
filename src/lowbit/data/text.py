"""Text in, rows of token ids out: what calibrates a language model and what it is measured on.

Documents are joined by an empty line and tokenized in one go without special tokens, so that the rows are the running
text cut into equal pieces.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lowbit.runs.errors import RecipeError

from .records import Record, read_records

__all__ = ["TokenRows", "load_rows", "read_documents"]

_SEPARATOR = "\n\n"


class TokenRows(NamedTuple):
    """Rows of token ids and where they came from."""

    ids: npt.NDArray[np.int64]  # (samples, length)
    sha256: str  # of the ids' bytes: what was really used
    source: str  # name of the source, without folders


def read_documents(source: str, *, field: str = "text") -> Iterator[str]:
    """The documents of a source, in order: the texts themselves, or field ``field`` of its records.

    Raises:
        RecipeError: as :func:`~lowbit.data.records.read_records`, and a record without ``field``.
    """
    return (_text_of(record, field) for record in read_records(source, fields=[field]))


def _text_of(record: Record, field: str) -> str:
    place, value = record
    if isinstance(value, str):
        return value
    if not isinstance(value, dict) or not isinstance(value.get(field), str):
        has = ", ".join(sorted(value)) if isinstance(value, dict) else type(value).__name__
        raise RecipeError(f"{place}: no text field {field!r} (it has: {has or 'nothing'}); choose another text_field")
    return str(value[field])


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
    """Token ids of ``samples`` rows of ``length``, with their hash and the short name of the source.

    Args:
        source: see :mod:`lowbit.data.records`.
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
