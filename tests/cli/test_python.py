"""The calls of the package itself: ``lowbit.compress`` and ``lowbit.evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lowbit
from lowbit.formats.errors import CheckpointError
from lowbit.formats.memory import MemoryCheckpoint
from lowbit.runs.errors import RecipeError
from lowbit.runs.events import Event, Finished


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def quick(workplace: Path) -> dict[str, Any]:
    """Options of a run that takes a second."""
    text = str(workplace / "text.txt")
    return {"calibration": text, "samples": 4, "length": 32, "group_size": 32, "rank": 4, "threads": 1}


def load(workplace: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = workplace / "model"
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_a_named_model_gives_the_bytes_of_the_command(
    compressed: Path, workplace: Path, quick: dict[str, Any], tmp_path: Path
) -> None:
    seen: list[Event] = []
    measured = {"evaluate": str(workplace / "text.txt"), "evaluate_tokens": 256, "evaluate_length": 32}
    result = lowbit.compress(workplace / "model", out=tmp_path / "out", on_event=seen.append, **quick, **measured)
    assert files(tmp_path / "out") == files(compressed)
    assert isinstance(seen[-1], Finished)
    found = lowbit.evaluate(tmp_path / "out", text=str(workplace / "text.txt"), tokens=256, length=32)
    assert found.perplexity == result.record["perplexity"]["compressed"]


@pytest.mark.parametrize("bits, dtype", [(3, "float32"), (4, "bfloat16")])
def test_a_model_in_memory_gives_the_bytes_of_its_saved_directory(
    workplace: Path, quick: dict[str, Any], tmp_path: Path, bits: int, dtype: str
) -> None:
    import torch

    model, tokenizer = load(workplace)
    model = model.to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    lowbit.compress(folder, out=tmp_path / "from-disk", bits=bits, **quick)
    lowbit.compress(model, tokenizer, out=tmp_path / "from-memory", bits=bits, **quick)
    disk, memory = files(tmp_path / "from-disk"), files(tmp_path / "from-memory")
    assert disk.keys() == memory.keys()
    assert {name for name in disk if disk[name] != memory[name]} == {"lowbit.json", "report.html", "SHA256SUMS"}
    records = [json.loads(found.pop("lowbit.json")) for found in (disk, memory)]
    inputs = [record.pop("inputs") for record in records]
    assert records[0] == records[1]  # the inputs alone differ: a weight file there, the tensors here
    weights = inputs[0].pop("model.safetensors"), inputs[1].pop("tensors")
    assert inputs[0] == inputs[1]
    assert weights[0] != weights[1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_fingerprint_follows_every_tensor(workplace: Path) -> None:
    model, tokenizer = load(workplace)
    first = MemoryCheckpoint(model, tokenizer).fingerprint()
    assert MemoryCheckpoint(*load(workplace)).fingerprint() == first
    model.model.norm.weight.data[3] += 1
    changed = MemoryCheckpoint(model, tokenizer).fingerprint()
    assert changed.pop("tensors") != first.pop("tensors")
    assert changed == first


def test_tied_weights_are_held_once_and_rows_are_read() -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    model: Any = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16, n_positions=8))
    checkpoint = MemoryCheckpoint(model, None)  # type: ignore[arg-type]
    assert "lm_head.weight" not in checkpoint.names()
    name = "transformer.wte.weight"
    rows = checkpoint.read(name, (3, 5))
    assert torch.equal(rows, model.state_dict()[name][3:5])
    rows += 1
    assert not torch.equal(rows, model.state_dict()[name][3:5])  # a copy
    with pytest.raises(CheckpointError, match="no tensor lm_head"):
        checkpoint.read("lm_head.weight")


def test_what_cannot_be_compressed_is_refused_before_any_work(workplace: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, BertConfig, BertModel

    model, tokenizer = load(workplace)
    out = tmp_path / "out"
    with pytest.raises(RecipeError, match="needs its tokenizer"):
        lowbit.compress(model, out=out)
    with pytest.raises(RecipeError, match="brings its own"):
        lowbit.compress(workplace / "model", tokenizer, out=out)
    with pytest.raises(RecipeError, match="unknown option colour"):
        lowbit.compress(model, tokenizer, out=out, colour="red")
    with pytest.raises(RecipeError, match="architecture BertModel is not a decoder-only"):
        lowbit.compress(BertModel(BertConfig(hidden_size=24, num_hidden_layers=1)), tokenizer, out=out)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(model.config)
    with pytest.raises(CheckpointError, match="is not in memory"):
        lowbit.compress(empty, tokenizer, out=out)
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(CheckpointError, match="already quantized"):
        lowbit.compress(model, tokenizer, out=out)
    assert not out.exists()
