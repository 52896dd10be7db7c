"""Where token rows come from."""

from __future__ import annotations

import csv
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import byte_tokenizer, special_tokenizer

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
    elif kind in ("csv", "tsv"):
        with path.open("w", newline="") as file:
            csv.writer(file, delimiter="," if kind == "csv" else "\t").writerows(
                [("id", "text"), *enumerate(documents)]
            )
    else:
        write_columns(path, kind, documents)
    return path


def write_columns(path: Path, kind: str, values: list[Any], column: Any = None) -> Path:
    """A column ``text`` beside another one."""
    import pyarrow as pa
    import pyarrow.feather as feather
    import pyarrow.parquet as pq

    table = pa.table({"text": pa.array(values, column), "id": list(range(len(values)))})
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "feather":
        feather.write_feather(table, str(path))
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return path


DOCUMENTS = ['first document, "some" words', "second\none", "third: a little longer than the others, surely"]


@pytest.mark.parametrize("kind", ["txt", "jsonl", "json", "csv", "tsv", "parquet", "arrow", "feather"])
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
        ("a.jsonl", '{"text": ' + "[" * 100_000, "{path}, line 1: nested too deeply"),
        (
            "a.jsonl",
            '{"text": 5}\n',
            "{path}, line 1, field 'text': int where a text should be; choose another text_field, or write texts there",
        ),
        (
            "a.jsonl",
            '{"text": "\\ud83d"}\n',
            "{path}, line 1, field 'text': half of a surrogate pair, which is no character; repair the text",
        ),
        (
            "a.jsonl",
            '{"text": [{"role": "user", "content": "hi"}]}\n',
            "{path}, line 1, field 'text': a list of messages; chat_template makes the model's own text of them",
        ),
        (
            "a.csv",
            "id,text\n1,one, two\n",
            "{path}, line 2: 3 cells under a header of 2; quote cells that hold the delimiter",
        ),
        ("a.csv", 'text\n"open\n', "{path}, line 2: not CSV: unexpected end of data"),
        ("a.tsv", "id,text\n", "{path}: no column 'text' (it has: id,text); choose another text_field"),
        ("a.arrow", "ARROW1\0\0nothing", None),
        ("a.parquet", "PAR0", None),
        ("a.bin", "text\0text", "{path}: holds NUL characters, so it is no text but a binary file"),
        (
            "a.txt",
            b"\xff\xfe\x00",
            "{path}: not UTF-8 text (invalid start byte at byte 0): convert it, or unpack it first",
        ),
    ],
)
def test_bad_files(tmp_path: Path, tokenizer: Any, name: str, content: str | bytes, message: str | None) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(RecipeError) as caught:
        load_rows(str(path), tokenizer, samples=1, length=10)
    if message is None:
        assert str(caught.value).startswith(f"{path}: not a {path.suffix[1:]} file: ")
    else:
        assert str(caught.value) == message.format(path=path)


def test_unknown_source(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_rows("nowhere.txt", tokenizer, samples=1, length=10)
    assert str(caught.value) == "nowhere.txt: no such file, and not a hub dataset (owner/name) or python-docs"
    with pytest.raises(RecipeError, match=r"^~nobody-here/x\.txt: no such file"):
        load_rows("~nobody-here/x.txt", tokenizer, samples=1, length=10)
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


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_columns_hold_text_or_are_refused(tmp_path: Path, kind: str) -> None:
    import pyarrow as pa

    path = tmp_path / f"a.{kind}"
    for values, column in (
        ([b"one", None, "zwölf".encode()], pa.binary()),
        (["one", None, "zwölf"], pa.large_string()),
        (["one", "", "zwölf"], pa.dictionary(pa.int8(), pa.string())),
    ):
        write_columns(path, kind, values, column)
        assert "".join(read_documents(str(path))) == "one\n\nzwölf"
    for values, what in (
        ([1, 2], "int"),
        ([0.5], "float"),
        ([True], "bool"),
        ([["a"], ["b"]], "list"),
        ([{"a": 1}], "dict"),
    ):
        write_columns(path, kind, values)
        with pytest.raises(RecipeError) as caught:
            list(read_documents(str(path)))
        assert str(caught.value).startswith(f"{path}, record 1, field 'text': {what} where a text should be; ")
    write_columns(path, kind, [b"\xff"], pa.binary())
    with pytest.raises(RecipeError, match="record 1, field 'text': bytes that are not UTF-8 text"):
        list(read_documents(str(path)))


def test_a_damaged_page_is_refused(tmp_path: Path) -> None:
    path = write_columns(tmp_path / "a.parquet", "parquet", ["hello world " * 20] * 50)
    data = bytearray(path.read_bytes())
    for place in (20, 21, 60, 61, 100):
        data[place] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(RecipeError, match="not a parquet file"):
        list(read_documents(str(path)))


def test_null_is_no_document_and_a_byte_order_mark_is_no_text(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"text": "one"}\n{"text": null}\n{"text": "two"}\n')
    assert "".join(read_documents(str(path))) == "one\n\ntwo"
    path.write_text('{"text": null}\n')
    with pytest.raises(RecipeError, match="is empty"):
        load_rows(str(path), tokenizer, samples=1, length=4)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    with pytest.raises(RecipeError) as caught:
        list(read_documents(str(pipe)))
    assert str(caught.value) == f"{pipe} is no regular file: write its text into a file and name that"


CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_messages_become_text_by_the_models_template(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        path.write_text(json.dumps({"text": CHAT}) + "\n" + json.dumps({"text": CHAT}))
    else:
        write_columns(path, kind, [CHAT, CHAT])
    tokenizer = byte_tokenizer()
    with pytest.raises(RecipeError, match="chat_template: the model's tokenizer has none"):
        load_rows(str(path), tokenizer, samples=1, length=10, chat_template=True)
    tokenizer.chat_template = TEMPLATE
    one = "[user] Hi\n[assistant] Hello\n"
    expected = tokenizer(f"<s>{one}\n\n<s>{one}", add_special_tokens=False)["input_ids"]
    rows = load_rows(str(path), tokenizer, samples=None, length=len(expected), chat_template=True)
    assert rows.ids.tolist() == [expected]
    tokenizer.chat_template = "{{ raise_exception('no system here') }}"
    with pytest.raises(RecipeError, match=r"1, field 'text': the chat template refuses it: .*no system here"):
        load_rows(str(path), tokenizer, samples=1, length=10, chat_template=True)


@pytest.mark.parametrize("wrong", [[{"role": "user", "content": 5}], [{"from": "human", "value": "x"}], [], ["a"]])
def test_what_is_no_list_of_messages_never_reaches_a_template(tmp_path: Path, wrong: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": wrong}))
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    with pytest.raises(RecipeError, match=r"list where a text should be; .* messages that have a role and a text"):
        load_rows(str(path), tokenizer, samples=1, length=2, chat_template=True)


# ---- special tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("single", "leading"), [("<s> $A", 1), ("<s> $A <pad>", 1), ("<pad> <s> $A", 2), ("$A <s>", 0)]
)
def test_rows_begin_as_the_tokenizer_begins_a_text(tmp_path: Path, single: str, leading: int) -> None:
    path = write(tmp_path / "data.txt", "txt", DOCUMENTS)
    tokenizer = special_tokenizer(single)
    stream = tokenizer(path.read_text(), add_special_tokens=False)["input_ids"]
    special = tokenizer("")["input_ids"][:leading]
    own = 10 - leading
    rows = load_rows(str(path), tokenizer, samples=3, length=10)
    assert rows.leading == tuple(special)
    assert rows.ids.tolist() == [special + stream[i * own : (i + 1) * own] for i in range(3)]
    everything = load_rows(str(path), tokenizer, samples=None, length=10).ids
    assert everything.shape == (len(stream) // own, 10)
    end = load_rows(str(path), tokenizer, samples=1, length=10, skip=-own).ids
    assert end.tolist() == [special + stream[-own:]]
    windows = {tuple(special + stream[start : start + own]) for start in range(len(stream) - own + 1)}
    drawn = load_rows(str(path), tokenizer, samples=5, length=10, seed=1).ids
    assert {tuple(row) for row in drawn.tolist()} <= windows
    bare = load_rows(str(path), tokenizer, samples=3, length=10, special_tokens="none")
    assert (bare.leading, bare.ids.reshape(-1).tolist()) == ((), stream[:30])


def test_a_text_that_brings_its_own_beginning_gets_no_second(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("<s>abcdefg<s>hi")
    tokenizer = special_tokenizer("<s> $A")
    rows = load_rows(str(path), tokenizer, samples=None, length=4).ids
    assert [tokenizer.decode(row) for row in rows] == ["<s>abc", "<s>def", "<s>g<s>h"]


def test_a_tokenizer_that_changes_the_text_is_refused(tmp_path: Path) -> None:
    class Odd:
        def __call__(self, text: str, *, add_special_tokens: bool, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [ord(c) + add_special_tokens for c in text]}

    with pytest.raises(RecipeError, match="leave them out with special_tokens none"):
        load_rows("python-docs", Odd(), samples=1, length=10)
    assert load_rows("python-docs", Odd(), samples=2, length=10, special_tokens="none").ids.shape == (2, 10)


# ---- long texts -----------------------------------------------------------------------------------------------------


def trained(kind: str) -> Any:
    """Byte-level BPE with a word splitter, BPE over the whole text as SentencePiece has it, and Unigram."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = list(read_documents("python-docs"))[:40]
    special = ["<unk>"]
    if kind == "bytes":
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer: Any = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    elif kind == "whole":
        raw = Tokenizer(models.BPE(unk_token="<unk>"))
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
        words = [word for text in words for word in text.split()]
    else:
        raw = Tokenizer(models.Unigram())
        raw.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    raw.train_from_iterator(words, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")


class WithoutOffsets:
    """A tokenizer in Python, which tells no offsets."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: str, **options: Any) -> Any:
        assert "return_offsets_mapping" not in options
        return self._tokenizer(text, **options)


@pytest.mark.parametrize("kind", ["bytes", "whole", "unigram", "slow"])
def test_tokens_depend_on_no_size_of_a_window(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import lowbit.data.text as module

    tokenizer = trained("bytes" if kind == "slow" else kind)
    docs = "".join(read_documents("python-docs"))
    hard = docs[:6000] + "don't" * 300 + " " * 700 + "é漢🙂" * 200 + "a" * 900 + "\n" * 500 + docs[6000:14000]
    expected = tokenizer(hard, add_special_tokens=False)["input_ids"]
    for window, shared in ((700, 200), (1500, 300), (5000, 1000)):
        monkeypatch.setattr(module, "_WINDOW", window)
        monkeypatch.setattr(module, "_SHARED", shared)
        pieces = iter([hard[:99], hard[99:7000], hard[7000:]])
        parts = list(module._tokenize(pieces, WithoutOffsets(tokenizer) if kind == "slow" else tokenizer))
        assert np.concatenate(parts).tolist() == expected
        assert len(parts) > 2


def test_a_long_text_costs_what_the_tokens_need(tmp_path: Path) -> None:
    """Of 20 MB that are needed for 1000 tokens, one window is tokenized; of all of it, one window at a time."""
    asked: list[int] = []

    class Counting(WithoutOffsets):
        is_fast = True

        def __call__(self, text: str, **options: Any) -> Any:
            asked.append(len(text))
            return self._tokenizer(text, **options)

    for name, line in (("a.txt", DOCUMENTS[2]), ("a.jsonl", json.dumps({"text": DOCUMENTS[2]}))):
        path = tmp_path / name
        path.write_text(f"{line}\n" * (20_000_000 // len(line)))
        asked.clear()
        tracemalloc.start()
        load_rows(str(path), Counting(byte_tokenizer()), samples=4, length=250)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sum(asked) < 1_000_000
        assert peak < 100_000_000
