"""Hostile and damaged inputs through the commands themselves: a status, one message, no traceback, no waiting."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowbit.cli import run
from lowbit.recipes.compress import compress
from lowbit.runs.files import digest

Edit = Callable[[Any], Any]

SHARD = "model-00002-of-00003.safetensors"
SCALE = "model.layers.0.mlp.up_proj.weight_scale"
OTHER = "model.layers.0.mlp.gate_proj.weight_scale"
ADAPTER, FACTORS = "adapter/adapter_config.json", "adapter/adapter_model.safetensors"
BOMB = r"(\w|\w\w|[a-z]|[._])*(?<=Q)"


@pytest.fixture(scope="module")
def packed(tiny: Callable[..., Path], text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lowbit.recipes.options import CompressOptions, parse_options

    out = tmp_path_factory.mktemp("packed") / "packed"
    fields = {"calibration": str(text), "samples": 2, "length": 16, "group_size": 16, "rank": 4}
    return compress(parse_options(CompressOptions, model=str(tiny()), out=out, backend="reference", **fields)).out


@pytest.fixture
def answer(packed: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``answer(command, path, edit)``: what the command says of a copy in which one file was edited."""

    def ask(command: str, path: str, edit: Edit, source: Path = packed) -> str:
        folder = tmp_path / "d"
        shutil.copytree(source, folder)
        edit(folder / path)
        words = {
            "eval": ["eval", str(folder), "--text", str(text), "--length", "16", "--tokens", "32", "-q"],
            "check": ["check", str(folder)],
            "check adapter": ["check", str(folder / "adapter")],
        }
        words["eval adapter"] = [*words["eval"], "--adapter", str(folder / "adapter")]
        capsys.readouterr()
        started = time.monotonic()
        status = run(words[command])
        shown = capsys.readouterr()
        assert time.monotonic() - started < 10
        assert status == (2 if command.startswith("eval") else 1), shown.out
        if status == 2:
            assert shown.err.startswith("error: ")
            assert len(shown.err.splitlines()) == 1
            assert len(shown.err) < 2000
        return shown.err + shown.out

    return ask


def config(**fields: Any) -> Edit:
    def edit(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return edit


def quantization(change: Edit) -> Edit:
    def edit(path: Path) -> None:
        found = json.loads(path.read_text())
        change(found["quantization_config"])
        path.write_text(json.dumps(found))

    return edit


def group(**fields: Any) -> Edit:
    return quantization(lambda q: q["config_groups"]["group_0"].update(fields))


def bits(value: Any) -> Edit:
    return quantization(lambda q: q["config_groups"]["group_0"]["weights"].update(num_bits=value))


def header(change: Edit) -> Edit:
    """Edits the header of a safetensors file; what ``change`` returns, if anything, takes its place as bytes."""

    def edit(path: Path) -> None:
        raw = path.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        found = json.loads(raw[8 : 8 + size])
        answer = change(found)
        text = answer if isinstance(answer, bytes) else json.dumps(found).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])

    return edit


def entry(**fields: Any) -> Edit:
    return header(lambda found: found[SCALE].update(fields))


def moved(found: Any) -> None:
    first, last = found[SCALE]["data_offsets"]
    found[SCALE]["data_offsets"] = [-256, -256 + last - first]


def rank_zero(found: Any) -> None:
    for name in found.keys() - {"__metadata__"}:
        rows, columns = found[name]["shape"]
        found[name]["shape"] = [0, columns] if "lora_A" in name else [rows, 0]
        found[name]["data_offsets"] = [0, 0]


def scalar(found: Any) -> None:
    name = next(name for name in found if "lora_B" in name)
    found[name] |= {"shape": [], "data_offsets": [found[name]["data_offsets"][0]] * 2}


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def write(content: bytes) -> Edit:
    return lambda path: path.write_bytes(content)


def twice(found: Any) -> bytes:
    return f"{json.dumps(found)[:-1]}, {json.dumps(SCALE)}: {json.dumps(found[OTHER])}}}".encode()


INDEX = "model.safetensors.index.json"
CASES: dict[str, tuple[str, str, Edit, str]] = {
    "shape is a number": ("eval", SHARD, entry(shape=5), "must give tensor"),
    "shape holds a string": ("eval", SHARD, entry(shape=["a", 2]), "must give tensor"),
    "negative offsets": ("eval", SHARD, header(moved), "must give tensor"),
    "offsets of three numbers": ("eval", SHARD, entry(data_offsets=[0, 1, 2]), "must give tensor"),
    "dtype is a list": ("eval", SHARD, entry(dtype=["F32"]), "must give tensor"),
    "negative shape": ("eval", SHARD, entry(shape=[-64, -2]), "must give tensor"),
    "boolean shape": ("eval", SHARD, entry(shape=[True, 64, 2]), "must give tensor"),
    "metadata is a list": ("eval", SHARD, header(lambda h: h.update(__metadata__=["a"])), "__metadata__"),
    "mark is a number": (
        "eval", SHARD, header(lambda h: h.update(__metadata__={"lowbit.transposed": 5})), "__metadata__",
    ),
    "nested header": ("eval", SHARD, header(lambda h: b"[" * 100_000 + b"]" * 100_000), "nested too deeply"),
    "same bytes": (
        "eval", SHARD, header(lambda h: h[SCALE].update(data_offsets=h[OTHER]["data_offsets"])), "overlaps",
    ),
    "name twice": ("eval", SHARD, header(twice), "stands twice"),
    "trailing bytes": (
        "eval", SHARD, lambda path: path.write_bytes(path.read_bytes() + b"x"), "behind its last tensor",
    ),
    "header too long": (
        "eval", SHARD, lambda path: (path.write_bytes((10**9).to_bytes(8, "little")), os.truncate(path, 10**9 + 8)),
        "the format allows",
    ),
    "nested index": ("eval", INDEX, write(b'{"weight_map":' + b"[" * 100_000), "nested too deeply"),
    "long file name": (
        "eval", INDEX, lambda path: path.write_text(json.dumps({"weight_map": {SCALE: "a" * 1000}})), "missing shard",
    ),
    "index names the folder": (
        "eval", INDEX, lambda path: path.write_text(json.dumps({"weight_map": {SCALE: ".."}})), "missing shard",
    ),
    "half a head": ("eval", "config.json", config(num_attention_heads=0.5), "configuration"),
    "negative width": ("eval", "config.json", config(hidden_size=-1), ""),
    "no heads": ("eval", "config.json", config(num_attention_heads=0), ""),
    "architectures 5": ("eval", "config.json", config(architectures=5), "architectures"),
    "evil activation": ("eval", "config.json", config(hidden_act="evil"), "evil"),
    "vocabulary 10^9": ("eval", "config.json", config(vocab_size=10**9), ""),
    "blocks 10^6": ("eval", "config.json", config(num_hidden_layers=10**6), "num_hidden_layers"),
    "blocks 20000": ("eval", "config.json", config(num_hidden_layers=20_000), "do not belong together"),
    "vocabulary 2^63": ("eval", "config.json", config(vocab_size=2**63), "vocab_size"),
    "head_dim 0": ("eval", "config.json", config(head_dim=0), ""),
    "rope_parameters 5": ("eval", "config.json", config(rope_parameters=5), "configuration"),
    "model_type of another library": ("eval", "config.json", config(model_type="timm_wrapper"), ""),
    "padding outside": ("eval", "config.json", config(pad_token_id=-939), ""),
    "nested configuration": ("eval", "config.json", write(b'{"a":' * 100_000), "nested too deeply"),
    "a list for a configuration": ("eval", "config.json", write(b"[]"), "not a JSON object"),
    "weights elsewhere": ("eval", "config.json", config(transformers_weights="x.safetensors"), "transformers_weights"),
    "groups a list": (
        "eval", "config.json", quantization(lambda q: q.update(config_groups=[1])), "is not of type dict",
    ),
    "no bits": (
        "eval", "config.json", quantization(lambda q: q["config_groups"]["group_0"]["weights"].pop("num_bits")),
        "num_bits",
    ),
    "bits 0": ("eval", "config.json", bits(0), "num_bits = 0 is no width"),
    "bits true": ("eval", "config.json", bits(True), "num_bits = True is no width"),
    "bits 4.0": ("eval", "config.json", bits(4.0), "num_bits = 4.0 is no width"),
    "bits 40": ("eval", "config.json", bits(40), "num_bits = 40 is no width"),
    "targets 5": ("eval", "config.json", group(targets=5), "is not of type list"),
    "targets re:(": ("eval", "config.json", group(targets=["re:("]), "regular expression"),
    "targets bomb": ("eval", "config.json", group(targets=[f"re:{BOMB}"]), "takes too long"),
    "quantization a string": ("eval", "config.json", config(quantization_config="x"), "not an object"),
    "configuration a fifo": ("eval", "config.json", fifo, "not a regular file"),
    "tokenizer a fifo": ("eval", "tokenizer.json", fifo, "not a regular file"),
    "weights a fifo": ("eval", SHARD, fifo, "not a regular file"),
    "check: ignore re:(": ("check", "config.json", quantization(lambda q: q.update(ignore=["re:("])), "regular expr"),
    "check adapter: alpha null": ("check adapter", ADAPTER, config(lora_alpha=None), "lora_alpha"),
    "check adapter: alpha text": ("check adapter", ADAPTER, config(lora_alpha="x"), "lora_alpha"),
    "check adapter: ranks a list": ("check adapter", ADAPTER, config(rank_pattern=[1]), "rank_pattern"),
    "check adapter: alphas (": ("check adapter", ADAPTER, config(alpha_pattern={"(": 1}), "regular expression"),
    "check adapter: targets null": ("check adapter", ADAPTER, config(target_modules=[None]), "target_modules"),
    "check adapter: targets (": ("check adapter", ADAPTER, config(target_modules="("), "regular expression"),
    "check adapter: targets 5": ("check adapter", ADAPTER, config(target_modules=5), "target_modules"),
    "check adapter: targets bomb": ("check adapter", ADAPTER, config(target_modules=BOMB), "takes too long"),
    "check adapter: ranks bomb": ("check adapter", ADAPTER, config(rank_pattern={BOMB: 4}), "takes too long"),
    "check adapter: r 10^400": ("check adapter", ADAPTER, config(r=10**400), "not a number"),
    "check adapter: rank 0": ("check adapter", FACTORS, header(rank_zero), ""),
    "check adapter: scalar": ("check adapter", FACTORS, header(scalar), ""),
    "eval adapter: alpha null": ("eval adapter", ADAPTER, config(lora_alpha=None), "lora_alpha"),
    "eval adapter: alphas (": ("eval adapter", ADAPTER, config(alpha_pattern={"(": 1}), "regular expression"),
    "eval adapter: nested": ("eval adapter", ADAPTER, write(b"[" * 100_000), "nested too deeply"),
    "eval adapter: a fifo": ("eval adapter", ADAPTER, fifo, "not a regular file"),
    "eval adapter: rank 0": ("eval adapter", FACTORS, header(rank_zero), ""),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_has_its_one_message(case: str, answer: Callable[..., str]) -> None:
    command, path, edit, expected = CASES[case]
    assert expected in answer(command, path, edit)


def compressing(tiny: Callable[..., Path], calibration: Path, out: Path) -> list[str]:
    words = ["compress", str(tiny()), "-o", str(out), "--calibration", str(calibration), "--samples", "2", "-q"]
    return [*words, "--length", "16", "--group-size", "16", "--rank", "4", "--backend", "reference"]


def damaged_parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table({"text": ["hello world " * 20] * 50}), file, compression="snappy")
    raw = bytearray(file.getvalue())
    for place in (60, 61, 100):
        raw[place] ^= 0xFF
    return bytes(raw)


@pytest.mark.parametrize(
    "name, content",
    [("a.jsonl", b'{"text":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"), ("a.parquet", None)],
)
def test_calibration_text(
    name: str,
    content: bytes | None,
    tiny: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / name).write_bytes(damaged_parquet() if content is None else content)
    assert run(compressing(tiny, tmp_path / name, tmp_path / "out")) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("content", ["{", "", "{}", "[]", '{"schema": "lowbit.compress/1"}', "[" * 100_000])
def test_record_of_a_finished_run(
    content: str,
    packed: Path,
    tiny: Callable[..., Path],
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(packed, tmp_path / "out")
    (tmp_path / "out" / "lowbit.json").write_text(content)
    assert run(compressing(tiny, text, tmp_path / "out")) == 2
    assert "choose another output directory" in capsys.readouterr().err


def test_record_that_lacks_a_part(
    packed: Path, tiny: Callable[..., Path], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(packed, tmp_path / "out")
    assert run(compressing(tiny, text, tmp_path / "out")) == 0
    record = json.loads((tmp_path / "out" / "lowbit.json").read_text())
    del record["totals"]
    (tmp_path / "out" / "lowbit.json").write_text(json.dumps(record))
    sums = tmp_path / "out" / "SHA256SUMS"
    told = re.sub(r"^\w+(?=  lowbit\.json$)", digest(tmp_path / "out" / "lowbit.json"), sums.read_text(), flags=re.M)
    sums.write_text(told)
    assert run(compressing(tiny, text, tmp_path / "out")) == 2
    assert "lacks totals" in capsys.readouterr().err
