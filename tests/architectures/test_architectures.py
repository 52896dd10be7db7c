"""Ten architectures that stand for the kinds there are, the refusals, and what only some architectures have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lowbit.formats.checkpoint import SIDE_FILES, open_checkpoint
from lowbit.formats.safetensors_file import SafetensorsFile
from lowbit.models.decoder import Decoder
from lowbit.models.policy import Reason
from lowbit.recipes.compress import compress
from lowbit.recipes.options import CompressOptions, parse_options
from lowbit.runs.events import Event, Note

from .run import TOLERANCE, byte_tokenizer, compress_options, plain_perplexity, save_small, try_architecture
from .sizes import small_config

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers and PEFT, about sizes and names


def _compress(folder: Path, kind: str, *, dtype: Any = None, **changes: Any) -> tuple[dict[str, Any], list[Event]]:
    """The record and the events of a run on a small model in ``folder / "base"``."""
    if not (folder / "base").exists():
        save_small(folder / "base", small_config(kind), dtype=dtype)
    (folder / "text.txt").write_text("a text of no importance whatsoever\n" * 9, encoding="utf-8")
    options = compress_options(folder / "base", folder / "out", folder / "text.txt") | {"evaluate": None} | changes
    events: list[Event] = []
    return compress(parse_options(CompressOptions, **options), events.append).record, events


@pytest.mark.parametrize(
    "kind",
    [
        "gpt2",  # Conv1D
        "gpt_neox",  # renamed head
        "bloom",  # blocks return tuples
        "openai-gpt",  # blocks return lists
        "falcon",  # a Linear by descent
        "mixtral",  # experts fused on reading
        "qwen3_next",  # recurrent and attention layers, experts, gates
        "mamba",  # a weight that is used without its layer
        "gemma3n_text",  # layers that share keys and values, inputs that depend on the text
        "gemma3",  # a language tower beside one of images
    ],
)
def test_perplexities_are_those_of_plain_transformers(kind: str, tmp_path: Path) -> None:
    outcome = try_architecture(kind, tmp_path)
    assert outcome.reason is None, outcome.message
    assert outcome.layers > 0
    assert outcome.equal, outcome.perplexity


@pytest.mark.parametrize(
    "kind, reason",
    [
        ("bert", Reason.NOT_A_DECODER),
        ("xlm", Reason.CARRIES),
        ("inkling2_text", Reason.CARRIES),  # what follows the blocks reads the states between them
        ("glm_moe_dsa", Reason.CARRIES),
        ("xlnet", Reason.LENGTH),
        ("cpmant", Reason.LENGTH),
        ("blip", Reason.INPUTS),
        ("llama4_text", Reason.LAYOUT),
    ],
)
def test_refusals_name_the_reason(kind: str, reason: Reason, tmp_path: Path) -> None:
    outcome = try_architecture(kind, tmp_path)
    assert outcome.reason is reason, outcome
    if reason is not Reason.NOT_A_DECODER:
        assert reason.value in outcome.message


def test_the_tower_is_the_one_of_the_configuration(tmp_path: Path) -> None:
    """More layers for images than for text: the longest list is the wrong one."""
    config = small_config("gemma3")
    config.vision_config.num_hidden_layers = 4
    save_small(tmp_path / "base", config)
    inventory = Decoder(open_checkpoint(tmp_path / "base")).inventory
    assert inventory.block_prefix == "model.language_model.layers"
    assert len(inventory.blocks) == 2


def test_files_of_the_processor_travel(tmp_path: Path) -> None:
    save_small(tmp_path / "base", small_config("gemma3"))
    names = ("preprocessor_config.json", "processor_config.json", "chat_template.jinja")
    assert set(names) <= set(SIDE_FILES)
    for name in names:
        (tmp_path / "base" / name).write_text("{}", encoding="utf-8")
    _compress(tmp_path, "gemma3")
    assert all((tmp_path / "out" / name).read_text(encoding="utf-8") == "{}" for name in names)


def test_what_transformers_keeps_in_float32_is_stored_and_computed_in_it(tmp_path: Path) -> None:
    """As after loading in bfloat16: what the class asks for, and what it makes in float32 whatever the type."""
    _compress(tmp_path, "dots1", dtype=torch.bfloat16)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    expected = {name: value.dtype for name, value in theirs.state_dict().items()}
    wide = {name for name, dtype in expected.items() if dtype == torch.float32}
    assert wide
    decoder = Decoder(open_checkpoint(tmp_path / "base"))
    assert decoder.inventory.types == expected
    stored = {
        n: e.dtype for file in (tmp_path / "out").glob("model-*") for n, e in SafetensorsFile(file).entries.items()
    }
    assert {name for name, dtype in stored.items() if dtype == torch.float32} == wide


def test_float16_keeps_float32_in_files_although_a_cpu_computes_all_in_float32(tmp_path: Path) -> None:
    _compress(tmp_path, "dots1", dtype=torch.float16)
    stored = {
        n: e.dtype for file in (tmp_path / "out").glob("model-*") for n, e in SafetensorsFile(file).entries.items()
    }
    wide = {name for name, dtype in stored.items() if dtype == torch.float32}
    assert "model.layers.1.mlp.gate.e_score_correction_bias" in wide
    assert "model.embed_tokens.weight" not in wide


def test_tied_parameters_are_counted_once(tmp_path: Path) -> None:
    config = small_config("llama")
    config.tie_word_embeddings = True
    save_small(tmp_path / "base", config)
    record, _ = _compress(tmp_path, "llama")
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    assert record["model"]["parameters"] == sum(value.numel() for value in loaded.parameters())


def test_a_weight_that_is_used_without_its_layer_stays_and_is_named(tmp_path: Path) -> None:
    record, events = _compress(tmp_path, "mamba")
    assert {module["name"].rpartition(".")[2] for module in record["modules"]} == {"in_proj", "x_proj", "out_proj"}
    notes = [event.message for event in events if isinstance(event, Note)]
    assert any("mixer.dt_proj" in note and "left as it is" in note for note in notes)
    assert "backbone.layers.0.mixer.dt_proj.weight" in {kept["name"] for kept in record["model"]["kept"]}


def test_a_head_of_its_own_counts_although_the_configuration_ties_it(tmp_path: Path) -> None:
    config = small_config("llama")
    config.tie_word_embeddings = True
    save_small(tmp_path / "base", config)
    stored = load_file(tmp_path / "base" / "model.safetensors")
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].flip(0)
    save_file(stored, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    record, _ = _compress(tmp_path, "llama", evaluate=str(tmp_path / "text.txt"))
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    ids = byte_tokenizer()((tmp_path / "text.txt").read_text(encoding="utf-8"))["input_ids"]
    assert record["perplexity"]["base"] == pytest.approx(plain_perplexity(model, ids), rel=TOLERANCE)
    assert record["model"]["parameters"] == sum(value.numel() for value in model.parameters())


def test_parts_of_a_packed_weight_are_found_whatever_the_module_is_called(tmp_path: Path) -> None:
    """The loader of transformers takes a module that ends in ``weight`` for the weight itself: it stays dense."""
    inventory = _inventory(tmp_path, "qwen4_exp_text")
    names = {linear.name for linears in inventory.linears for linear in linears}
    assert "attn_hyper_connection.input_mix_weight_up" in names
    assert "attn_hyper_connection.block_inject_weight" not in names


def _inventory(folder: Path, kind: str) -> Any:
    save_small(folder / "base", small_config(kind))
    return Decoder(open_checkpoint(folder / "base")).inventory
