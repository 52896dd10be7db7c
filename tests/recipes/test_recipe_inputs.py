"""What is read is what transformers reads, what is written keeps the input's own words, and nothing changes between."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_recipe_compress import load
from test_recipe_evaluate import SAME_LIKELIHOOD, plain_nll
from tiny_models import save_tiny, tiny_config

from lowbit.data.text import load_rows
from lowbit.formats.checkpoint import open_checkpoint
from lowbit.formats.configs import portable_json
from lowbit.formats.errors import CheckpointError
from lowbit.recipes.compress import compress
from lowbit.recipes.evaluate import evaluate
from lowbit.recipes.options import CompressOptions, EvalOptions
from lowbit.runs.errors import RecipeError
from lowbit.runs.events import BlockDone, Event, Note

Make = Callable[..., CompressOptions]

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def same_as_transformers(folder: Path, text: Path) -> float:
    """The perplexity that lowbit and transformers agree on."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = load_rows(str(text), AutoTokenizer.from_pretrained(folder), samples=3, length=32).ids
    expected = plain_nll(AutoModelForCausalLM.from_pretrained(folder), rows)
    found = evaluate(EvalOptions(path=str(folder), text=str(text), tokens=96, length=32))
    assert math.isclose(found.nll / found.tokens, expected, rel_tol=SAME_LIKELIHOOD)
    return found.perplexity


# ---- which file holds a weight --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "opt"])
def test_a_head_of_its_own_under_a_flag_that_ties(kind: str, options: Make, text: Path, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", kind, tie_word_embeddings=True, word_embed_proj_dim=32)
    tied = same_as_transformers(folder, text)
    weights = load_file(folder / "model.safetensors")
    embedding = next(value for name, value in weights.items() if "embed_tokens" in name or "wte" in name)
    weights["lm_head.weight"] = embedding + torch.randn(embedding.shape)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert same_as_transformers(folder, text) != tied
    result = compress(options(model=str(folder), bits=4, symmetric=True))
    assert json.loads((result.out / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(load(result.out, result.record).lm_head.weight, weights["lm_head.weight"])


def test_a_copy_of_the_embedding_stays_tied(options: Make, text: Path, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", "qwen2", tie_word_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    same_as_transformers(folder, text)
    out = compress(options(model=str(folder), bits=4)).out
    assert "lm_head.weight" not in open_checkpoint(out).names()


def sharded(folder: Path) -> Path:
    """The model of ``folder`` again, in several files with an index."""
    from transformers import AutoModelForCausalLM

    out = folder.with_name("sharded")
    shutil.copytree(folder, out)
    (out / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(out, max_shard_size="60KB")
    assert (out / "model.safetensors.index.json").exists()
    return out


def test_an_index_beside_a_single_file_is_left_alone(text: Path, tmp_path: Path) -> None:
    old = sharded(save_tiny(tmp_path / "old", seed=1))
    new = save_tiny(tmp_path / "new", seed=2)
    shutil.copy(new / "model.safetensors", old)
    assert same_as_transformers(old, text) == same_as_transformers(new, text)
    assert "model.safetensors.index.json" not in open_checkpoint(old).fingerprint()


def test_what_a_shard_holds_and_the_index_forgets_is_read(text: Path, tmp_path: Path) -> None:
    folder = sharded(save_tiny(tmp_path / "m", seed=3))
    index = folder / "model.safetensors.index.json"
    listing = json.loads(index.read_text())
    shards = list(listing["weight_map"].values())
    del listing["weight_map"][next(name for name, file in listing["weight_map"].items() if shards.count(file) > 1)]
    index.write_text(json.dumps(listing))
    same_as_transformers(folder, text)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_name_in_two_files_names_both(indexed: bool, tmp_path: Path) -> None:
    folder = sharded(save_tiny(tmp_path / "m"))
    first, second = sorted(path.name for path in folder.glob("*.safetensors"))[:2]
    weights = load_file(folder / second)
    name, value = next(iter(load_file(folder / first).items()))
    save_file(weights | {name: value + 1}, folder / second, {"format": "pt"})
    if not indexed:
        (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=f"{name} stands in {first} and in {second}"):
        open_checkpoint(folder)


# ---- the output's config.json ---------------------------------------------------------------------------------------


def test_config_json_is_the_inputs(options: Make, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"], config["dtype"]
    scaling = {**LLAMA3, "original_max_position_embeddings": 64}
    config = {
        "my_key": {"a": [1, None]},
        "torch_dtype": "float32",
        "rope_theta": 500000.0,
        "rope_scaling": scaling,
    } | config
    config |= {"transformers_version": "4.43.0", "auto_map": {"AutoConfig": "x.X"}, "Z": math.inf}
    (folder / "config.json").write_text(json.dumps(config))
    written = json.loads((compress(options(model=str(folder), bits=4)).out / "config.json").read_text())
    assert written.pop("quantization_config")["quant_method"] == "compressed-tensors"
    assert list(written.items()) == list(config.items())


@pytest.mark.parametrize("key", ["torch_dtype", "dtype", None])
def test_the_stored_type_is_told_in_the_inputs_word(key: str | None, options: Make, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config | ({key: "float32"} if key else {})))
    result = compress(options(model=str(folder), bits=4, dtype="bfloat16"))
    written = json.loads((result.out / "config.json").read_text())
    assert {k: v for k, v in written.items() if "dtype" in k} == {key or "torch_dtype": "bfloat16"}
    assert load(result.out, result.record).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("llama", {"rope_parameters": {**LLAMA3, "rope_theta": 5e5, "original_max_position_embeddings": 64}}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1234.0}, "dtype": "bfloat16"}),
        (
            "phi",
            {
                "rope_parameters": {
                    "rope_type": "linear",
                    "factor": 2.0,
                    "rope_theta": 1e4,
                    "partial_rotary_factor": 0.5,
                }
            },
        ),
        (
            "gemma3_text",
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
                }
            },
        ),
        ("gpt2", {}),
    ],
)
def test_a_configuration_of_no_file_is_told_in_both_dialects(kind: str, changes: dict[str, Any]) -> None:
    from transformers import AutoConfig

    config = tiny_config(kind, **changes)
    found = portable_json(config)
    assert AutoConfig.for_model(**json.loads(json.dumps(found))).to_dict() == config.to_dict()
    rope = changes.get("rope_parameters", {})
    whole = rope.get("full_attention", rope)
    assert found.get("rope_theta") == whole.get("rope_theta")
    assert found.get("rope_scaling", {}).get("factor") == whole.get("factor")
    assert found.get("partial_rotary_factor") == whole.get("partial_rotary_factor")
    assert found.get("rope_local_base_freq") == rope.get("sliding_attention", {}).get("rope_theta")
    assert found.get("torch_dtype") == changes.get("dtype")


# ---- inputs that change, or were results ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("replaced", [True, False])
def test_an_input_that_changes_during_the_run_is_noticed(
    name: str, replaced: bool, options: Make, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "m")

    def meddle(event: Event) -> None:
        if isinstance(event, BlockDone) and event.index == 1:
            path = folder / name
            if replaced:
                shutil.copy(path, tmp_path / "copy")
                os.replace(tmp_path / "copy", path)
            else:
                os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns + 1))

    with pytest.raises(RecipeError, match=f"{name}: replaced or changed since it was opened"):
        compress(options(model=str(folder)), meddle)
    assert not (tmp_path / "out" / "config.json").exists()


def test_compressing_what_was_compressed_is_said_and_recorded(options: Make, tmp_path: Path) -> None:
    first = compress(options(out=tmp_path / "a", bits=4, compensate="none")).out
    events: list[Event] = []
    record = compress(options(out=tmp_path / "b", model=str(first), bits=4, compensate="none"), events.append).record
    assert any(isinstance(event, Note) and "was compressed before" in event.message for event in events)
    assert record["model"]["quantization"]["quant_method"] == "compressed-tensors"


def test_an_adapter_is_not_left_out(options: Make, tmp_path: Path) -> None:
    first = compress(options(out=tmp_path / "a", bits=4)).out
    with pytest.raises(RecipeError, match=r"adapter in .* would be left out"):
        compress(options(out=tmp_path / "b", model=str(first), bits=4))
    folder = save_tiny(tmp_path / "m")
    shutil.copy(first / "adapter" / "adapter_config.json", folder)
    with pytest.raises(CheckpointError, match=r"config\.json and adapter_config\.json in one directory"):
        open_checkpoint(folder)


@pytest.mark.skipif(os.name == "nt", reason="links need a POSIX system")
def test_a_link_to_somebody_elses_file_is_not_copied(options: Make, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    (tmp_path / "id_rsa").write_text("secret")
    (folder / "vocab.json").symlink_to("../id_rsa")
    with pytest.raises(RecipeError, match=r"vocab\.json: a link that leaves its directory"):
        compress(options(model=str(folder)))
    assert not (tmp_path / "out").exists()
