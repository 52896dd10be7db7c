"""Text in, rows of token ids out: what calibrates a language model and what it is measured on.

Documents are joined by an empty line and tokenized without special tokens, as if in one go, and the running text is cut
into equal pieces. What a tokenizer puts before a text (BOS, mostly) begins every row, since a row is what the model
sees as a text; what it puts behind one is left out, for a row ends in the middle. A row is ``length`` tokens with what
begins it, and what begins it is never predicted. Of those who measure perplexity, llama.cpp does the same; scripts that
follow GPTQ's have one BOS before the whole text, and lm-evaluation-harness one before each document.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from lowbit.runs.errors import RecipeError

from .records import Record, read_records

__all__ = ["TokenRows", "leading_tokens", "load_rows", "read_documents"]

_SEPARATOR = "\n\n"
_WINDOW = 1 << 17  # characters tokenized at a time
_SHARED = 1 << 11  # characters that a window shares with the one before: more than any token reaches

Render = Callable[[list[dict[str, Any]]], str]
"""Messages of a chat → their text."""


class TokenRows(NamedTuple):
    """Rows of token ids and where they came from."""

    ids: npt.NDArray[np.int64]  # (samples, length)
    sha256: str  # of the ids' bytes: what was really used
    source: str  # name of the source, without folders
    leading: tuple[int, ...] = ()  # the special tokens that begin every row

    @property
    def given(self) -> int:
        """Tokens of a row that are not predicted: the special ones, otherwise the first."""
        return max(1, len(self.leading))


def leading_tokens(tokenizer: Any, special_tokens: Literal["auto", "none"] = "auto") -> tuple[int, ...]:
    """What the tokenizer puts before a text: its BOS if it adds one; nothing with "none".

    Raises:
        RecipeError: a tokenizer that changes the text itself when it adds special tokens.
    """
    if special_tokens == "none":
        return ()
    plain, whole = _encode(tokenizer, "a"), _encode(tokenizer, "a", add_special_tokens=True)
    for start in range(len(whole) - len(plain) + 1):
        if np.array_equal(whole[start : start + len(plain)], plain):
            return tuple(whole[:start].tolist())
    raise RecipeError(
        "the tokenizer gives other tokens for a text when it adds special tokens, so that what stands before the text "
        "cannot be told; leave them out with special_tokens none"
    )


def read_documents(source: str, *, field: str = "text", render: Render | None = None) -> Iterator[str]:
    """The running text of a source, in order and in pieces: documents, with an empty line between them.

    Args:
        source: see :mod:`lowbit.data.records`.
        field: of records, where their text is; one that is null is passed over.
        render: makes a text of a list of messages.

    Raises:
        RecipeError: as :func:`~lowbit.data.records.read_records`, and a record without ``field``, or whose ``field``
            is no text.
    """
    between = ""
    for record in read_records(source, fields=[field]):
        text = _text_of(record, field, render)
        if record.continues:
            yield text
        elif text.strip():
            yield between + text
            between = _SEPARATOR


def _text_of(record: Record, field: str, render: Render | None) -> str:
    place, value, _ = record
    if isinstance(value, Mapping):
        if field not in value:
            has = ", ".join(map(str, sorted(value))) or "nothing"
            raise RecipeError(f"{place}: no text field {field!r} (it has: {has}); choose another text_field")
        value, place = value[field], f"{place}, field {field!r}"
    if value is None:
        return ""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise RecipeError(f"{place}: bytes that are not UTF-8 text; choose another text_field") from error
    if _is_chat(value):
        if render is None:
            raise RecipeError(f"{place}: a list of messages; chat_template makes the model's own text of them")
        try:
            value = render([{key: part for key, part in message.items() if part is not None} for message in value])
        except Exception as error:  # a template raises what it likes
            raise RecipeError(f"{place}: the chat template refuses it: {' '.join(str(error).split())}") from error
    if not isinstance(value, str):
        chats = ", or messages that have a role and a text as content each" if isinstance(value, list) else ""
        raise RecipeError(
            f"{place}: {type(value).__name__} where a text should be; "
            f"choose another text_field, or write texts there{chats}"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RecipeError(f"{place}: half of a surrogate pair, which is no character; repair the text") from None
    return value


def _is_chat(value: Any) -> bool:
    """Whether a value is what chat templates take: messages with a role and a text each."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in value)
        and all(isinstance(m.get("content"), str) for m in value)
    )


def load_rows(
    source: str,
    tokenizer: Any,
    *,
    samples: int | None,
    length: int,
    seed: int | None = None,
    skip: int = 0,
    field: str = "text",
    special_tokens: Literal["auto", "none"] = "auto",
    chat_template: bool = False,
    purpose: str = "calibration",
) -> TokenRows:
    """Token ids of ``samples`` rows of ``length``, with their hash and the short name of the source.

    Only as much is read and tokenized as the rows need; rows at random places and a negative ``skip`` need the number
    of tokens, and so the whole text, of which nothing but the ids is held.

    Args:
        source: see :mod:`lowbit.data.records`.
        tokenizer: a transformers tokenizer.
        samples: rows wanted; None takes every whole row there is (at least one).
        length: tokens per row, with those that begin it.
        seed: None takes the first rows in order; a number draws rows at random places, the same ones every time.
        skip: tokens to leave out first; a negative number counts from the end of the text.
        field: text field of records.
        special_tokens: "auto" begins rows as the tokenizer begins texts, "none" adds nothing.
        chat_template: make texts of lists of messages, with the tokenizer's template.
        purpose: first word of the messages, "calibration" or "evaluation".

    Raises:
        RecipeError: no text, or fewer tokens than asked for.
    """
    leading = leading_tokens(tokenizer, special_tokens)
    own = length - len(leading)  # tokens of a row that come from the text
    if own < 1:
        raise RecipeError(f"rows of {length} tokens have no room for text behind the tokenizer's {len(leading)}")
    render = _renderer(tokenizer) if chat_template else None
    wanted = skip + samples * length if samples is not None and seed is None and skip >= 0 else None
    stream = _take(_tokenize(read_documents(source, field=field, render=render), tokenizer), wanted)
    if not len(stream):
        raise RecipeError(f"{purpose} text {source} is empty")
    stream = stream[max(0, len(stream) + skip) :] if skip < 0 else stream[skip:]
    if seed is not None and samples is not None:
        # Starts drawn without replacement from all places where a row fits.
        drawn = np.random.default_rng(seed).permutation(max(0, len(stream) - own + 1))
        places = iter(drawn[:samples].tolist())
    else:
        places = None
    rows: list[npt.NDArray[np.int64]] = []
    at = 0
    while len(rows) != samples:
        at = at if places is None else next(places, len(stream))
        if tuple(stream[at : at + len(leading)]) == leading and at + len(leading) + own <= len(stream):
            at += len(leading)  # the text says itself what begins it, as chat templates do
        if at + own > len(stream):
            break
        rows.append(np.concatenate([np.asarray(leading, dtype=np.int64), stream[at : at + own]]))
        at += own
    if len(rows) < (samples or 1):
        after = f" after skipping {skip}" if skip > 0 else f" in its last {-skip}" if skip < 0 else ""
        need = f"{samples} x {own} = {samples * own}" if samples else f"one row of {own}"
        raise RecipeError(
            f"{purpose} text {source} gives {len(stream)} tokens{after}, but {need} are needed: "
            "take fewer or shorter samples, or a longer text"
        )
    ids = np.stack(rows)
    named = source if not os.path.exists(os.path.expanduser(source)) else Path(source).name
    digest = hashlib.sha256(np.ascontiguousarray(ids, dtype="<i8").tobytes()).hexdigest()
    return TokenRows(ids, digest, named, leading)


def _renderer(tokenizer: Any) -> Render:
    """The tokenizer's chat template.

    Raises:
        RecipeError: there is none.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise RecipeError("chat_template: the model's tokenizer has none; write texts in place of messages")
    return lambda messages: str(tokenizer.apply_chat_template(messages, tokenize=False))


def _take(parts: Iterator[npt.NDArray[np.int64]], wanted: int | None) -> npt.NDArray[np.int64]:
    """The parts in a row, no more of them than ``wanted`` tokens need."""
    taken, have = [np.zeros(0, dtype=np.int64)], 0
    for part in parts:
        taken.append(part)
        have += len(part)
        if wanted is not None and have >= wanted:
            break
    return np.concatenate(taken)


def _tokenize(documents: Iterator[str], tokenizer: Any) -> Iterator[npt.NDArray[np.int64]]:
    """Ids of the joined documents, as one call of the tokenizer for all of them gives them, a window at a time.

    How a tokenizer cuts a place depends on the text around it and never on text far away. Each window therefore begins
    inside the one before, and takes over in the middle of what they share, if both cut all around there into the same
    tokens; if they do not (a long run without words), the window before is taken again, twice as long. The ids so
    depend on no size of a window.
    """
    pieces = (text[start : start + _WINDOW] for text in documents for start in range(0, len(text), _WINDOW))
    if not getattr(tokenizer, "is_fast", False):
        yield from _tokenize_without_offsets(pieces, tokenizer)
        return
    text, size, begin = _filled("", pieces, 2 * _WINDOW), _WINDOW, 0
    window = _encode_at(tokenizer, text[:size], 0)
    while len(text) > size:
        edge = size - _SHARED
        following = _encode_at(tokenizer, text[edge : edge + _WINDOW], edge)
        cut = _meeting(text, window, following, edge)
        if cut is None:
            size *= 2
            text = _filled(text, pieces, size + _WINDOW)
            window = _encode_at(tokenizer, text[:size], 0)
            continue
        ids, starts = window
        yield ids[(starts >= begin) & (starts < cut)]
        window, begin, size = (following[0], following[1] - edge), cut - edge, _WINDOW
        text = _filled(text[edge:], pieces, 2 * _WINDOW)
    ids, starts = window
    yield ids[starts >= begin]


Window = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Ids, and where in the text each token starts."""


def _meeting(text: str, window: Window, following: Window, edge: int) -> int | None:
    """Where ``following`` takes over from ``window``: where white space begins or ends, inside of what they share.

    Not elsewhere: in a long run without any, two windows may agree by chance and both be wrong.
    """
    low, high = edge + _SHARED // 4, edge + 3 * _SHARED // 4
    one, two = (
        [part[(starts >= low) & (starts < high)] for part in (ids, starts)] for ids, starts in (window, following)
    )
    if not all(map(np.array_equal, one, two)):
        return None
    return next((at for at in one[1].tolist() if text[at - 1].isspace() != text[at].isspace()), None)


def _tokenize_without_offsets(pieces: Iterator[str], tokenizer: Any) -> Iterator[npt.NDArray[np.int64]]:
    """The same from longer and longer beginnings of the text: what two of them agree on."""
    text, size, done = _filled("", pieces, 2 * _WINDOW), _WINDOW, 0
    before = np.zeros(0, dtype=np.int64)
    while len(text) > size:
        ids = _encode(tokenizer, text[:size])
        both = min(len(before), len(ids))
        differ = np.flatnonzero(before[:both] != ids[:both])
        agreed = int(differ[0]) if len(differ) else both
        yield ids[done:agreed]
        before, done, size = ids, max(done, agreed), 2 * size
        text = _filled(text, pieces, 2 * size)
    yield _encode(tokenizer, text)[done:]


def _filled(text: str, pieces: Iterator[str], least: int) -> str:
    """The text with more pieces behind it, until it has at least so many characters or no more follow."""
    parts, have = [text], len(text)
    while have < least and (piece := next(pieces, None)) is not None:
        parts.append(piece)
        have += len(piece)
    return "".join(parts)


def _encode_at(tokenizer: Any, text: str, at: int) -> Window:
    """Ids of a text that begins at character ``at``, and where each starts."""
    found = tokenizer(
        text, add_special_tokens=False, verbose=False, return_attention_mask=False, return_offsets_mapping=True
    )
    starts = np.asarray([start for start, _ in found["offset_mapping"]], dtype=np.int64)
    return np.asarray(found["input_ids"], dtype=np.int64), starts + at


def _encode(tokenizer: Any, text: str, *, add_special_tokens: bool = False) -> npt.NDArray[np.int64]:
    found = tokenizer(text, add_special_tokens=add_special_tokens, verbose=False, return_attention_mask=False)
    return np.asarray(found["input_ids"], dtype=np.int64)
