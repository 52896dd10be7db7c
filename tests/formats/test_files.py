"""Files that nobody should trust: links, pipes, devices, deep JSON, patterns that never end."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import pytest

from lowbit.formats.checkpoint import open_checkpoint
from lowbit.formats.errors import CheckpointError
from lowbit.formats.files import opened, read_json, refuse_strangers
from lowbit.formats.gguf_header import check_header
from lowbit.formats.patterns import matches

from .test_gguf import write_gguf

needs_links = pytest.mark.skipif(os.name == "nt", reason="links and pipes need a POSIX system")


@needs_links
def test_a_link_that_leaves_its_directory(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (tmp_path / "id_rsa").write_text("secret")
    (model / "vocab.json").symlink_to("../id_rsa")
    with pytest.raises(CheckpointError, match=r"vocab\.json: a link that leaves its directory, to .*id_rsa"):
        refuse_strangers(model)
    (model / "vocab.json").unlink()
    (model / "deep").mkdir()
    (model / "deep" / "x").write_text("")
    for target in ("deep/x", "/etc/hostname", "../model/../id_rsa", "loop", "/dev/zero", ".."):
        (model / "loop").symlink_to(target)
        with pytest.raises(CheckpointError, match="loop: "):
            refuse_strangers(model)
        (model / "loop").unlink()
    (model / "a.json").write_text("{}")
    (model / "b.json").symlink_to("a.json")
    refuse_strangers(model)


@needs_links
def test_a_snapshot_of_the_hubs_cache(tmp_path: Path) -> None:
    repository = tmp_path / "models--a--b"
    snapshot, blobs = repository / "snapshots" / "0123", repository / "blobs"
    other = tmp_path / "models--c--d" / "blobs"
    for folder in (snapshot, blobs, other):
        folder.mkdir(parents=True)
    (blobs / "e3b0").write_text("{}")
    (other / "e3b0").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/e3b0")
    refuse_strangers(snapshot)
    (tmp_path / "model").symlink_to(snapshot)
    refuse_strangers(tmp_path / "model")
    (snapshot / "vocab.json").symlink_to("../../../models--c--d/blobs/e3b0")
    with pytest.raises(CheckpointError, match="leaves its directory"):
        refuse_strangers(snapshot)


@needs_links
def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "pipe", tmp_path / "folder", Path("/dev/zero"), tmp_path / "none", tmp_path / "a\0b"):
        with pytest.raises(CheckpointError), opened(path):
            pass
        with pytest.raises(CheckpointError):
            check_header(path)
    with pytest.raises(CheckpointError, match="pipe: not a regular file but a pipe"):
        refuse_strangers(tmp_path)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested too deeply"),
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b'{"a": "\\ud800"}', "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b'{\n"a": 1,\n}', "in line 3"),
        (b"[]", "is not a JSON object but list"),
        (b"1" * 5000, "is not valid JSON"),
    ],
)
def test_json(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        read_json(tmp_path / "x.json", unique=True)


def test_json_is_not_read_when_it_is_huge(tmp_path: Path) -> None:
    (tmp_path / "x.json").touch()
    os.truncate(tmp_path / "x.json", 10**12)
    with pytest.raises(CheckpointError, match="at most 100000000 are read"):
        read_json(tmp_path / "x.json")


NAME = "model.layers.0.self_attn.q_proj" * 3


@pytest.mark.parametrize(
    "pattern",
    [r"(\w|\w\w|[a-z]|[.])*(?<=Q)", "(a{9999}){9999}", "(", "a{e}", "(?V1)[[a]--[b]]", "(?:" * 3000 + ")" * 3000, 5],
)
def test_patterns_that_never_end_or_are_none(pattern: object) -> None:
    started = time.monotonic()
    for _ in range(100):
        with pytest.raises(CheckpointError, match="regular expression"):
            matches(pattern, NAME)
    assert time.monotonic() - started < 10


def test_patterns_that_people_write() -> None:
    name = "model.layers.10.self_attn.q_proj"
    assert matches(r".*\.layers\.\d{1,3}\.(self_attn|mlp)\.(q|k|v)_proj", name, whole=True)
    assert matches(r"^(?!.*vision).*_proj$", name)
    assert matches(r"model\.layers", name)
    assert not matches(r"model\.layers", name, whole=True)
    assert not matches("q_proj", name)


# ---- GGUF -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(path)
    return path.read_bytes()


HUGE = 1 << 60


@pytest.mark.parametrize(
    "after, skip, layout, value, reason",
    [
        (b"GGUF", 4, "<Q", HUGE, "tensors and"),
        (b"GGUF", 12, "<Q", HUGE, "metadata entries in"),
        (b"GGUF", 20, "<Q", HUGE, "a name of"),
        (b"general.architecture", 4, "<Q", HUGE, "are left"),
        (b"general.architecture", 0, "<I", 99, "unknown type 99"),
        (b"tokenizer.ggml.tokens", 4, "<I", 9, "an array of the type 9"),
        (b"tokenizer.ggml.tokens", 8, "<Q", HUGE, "strings at byte"),
        (b"tokenizer.ggml.token_type", 8, "<Q", HUGE, "are left"),
        (b"llama.block_count", 4, "<I", 10**6, "llama.block_count is larger than"),
        (b"llama.context_length", 4, "<I", 2**31, "llama.context_length is larger than"),
        (b"token_embd.weight", 0, "<I", 2**31, "axes"),
        (b"token_embd.weight", 4, "<Q", HUGE, "longer than the file"),
    ],
)
def test_a_count_larger_than_the_file(
    after: bytes, skip: int, layout: str, value: int, reason: str, gguf_file: bytes, tmp_path: Path
) -> None:
    raw = bytearray(gguf_file)
    struct.pack_into(layout, raw, raw.index(after) + len(after) + skip, value)
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=reason):
        open_checkpoint(path)
    assert time.monotonic() - started < 5


def test_a_name_twice(gguf_file: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_file.replace(b"blk.1.ffn_up", b"blk.0.ffn_up"))
    with pytest.raises(CheckpointError, match=r"the tensor 'blk\.0\.ffn_up\.weight' stands twice"):
        open_checkpoint(path)
