"""A model's parameters out of a file's tensors: the values that transformers loads, whatever the names and layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lowbit.formats.checkpoint import open_checkpoint
from lowbit.formats.configs import decoder_class
from lowbit.formats.errors import CheckpointError
from lowbit.formats.layout import Layout

_COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
_TEXT = _COMMON | {"head_dim": 8, "sliding_window": 8}
_CHANGES: dict[str, dict[str, Any]] = {
    "gpt_neox": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "hidden_size": None, "num_key_value_heads": None},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": _EXPERTS | {"shared_expert_intermediate_size": 32},
    "olmoe": _EXPERTS,
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_next": _EXPERTS
    | {
        "num_hidden_layers": 4,
        "shared_expert_intermediate_size": 16,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "gemma3": {
        "text_config": _TEXT,
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "mm_tokens_per_image": 4,
        **dict.fromkeys(_COMMON),
    },
}


def _bare(name: str) -> str:
    return name.removeprefix("transformer.")


def _old_head(name: str) -> str:
    return name.replace("lm_head.", "embed_out.")


def _as_is(name: str) -> str:
    return name


def _save(folder: Path, kind: str, rename: Callable[[str], str] = _as_is, **save: Any) -> Path:
    changes = {key: value for key, value in (_COMMON | _CHANGES[kind]).items() if value is not None}
    config = transformers.AutoConfig.for_model(kind, **changes)
    torch.manual_seed(0)
    cls = decoder_class(config)
    assert cls is not None
    cls._from_config(config).save_pretrained(folder, **save)
    stored = {rename(name): value for name, value in load_file(folder / "model.safetensors").items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("hub_layout", [True, False], ids=["hub", "class"])
@pytest.mark.parametrize(
    "kind, rename",
    [
        ("gpt_neox", _old_head),
        ("gpt2", _bare),
        *((kind, _as_is) for kind in ("mixtral", "qwen2_moe", "olmoe", "granitemoe", "qwen3_next", "gemma3")),
    ],
)
def test_parameters_are_those_that_transformers_loads(
    kind: str, rename: Callable[[str], str], hub_layout: bool, tmp_path: Path
) -> None:
    folder = _save(tmp_path, kind, rename, save_original_format=hub_layout)
    checkpoint: Any = open_checkpoint(folder)
    cls = decoder_class(checkpoint.config)
    assert cls is not None
    loaded = cls.from_pretrained(folder)
    layout = Layout(loaded, {name: checkpoint.shape(name) for name in checkpoint.names()})
    state = loaded.state_dict()
    assert set(state) - set(layout.of) <= set(loaded.all_tied_weights_keys)
    for name, conversion in layout.of.items():
        assert torch.equal(conversion.convert(checkpoint.read)[name], state[name]), name
        assert layout.shapes[name] == tuple(state[name].shape)
    assert layout.unused == []


def test_new_values_are_stored_where_they_are_read_back(tmp_path: Path) -> None:
    """Under the name in the file if that is one tensor, else under the name of the class."""
    folder = _save(tmp_path, "qwen2_moe")
    checkpoint: Any = open_checkpoint(folder)
    model = transformers.Qwen2MoeForCausalLM(checkpoint.config)
    layout = Layout(model, {name: checkpoint.shape(name) for name in checkpoint.names()})
    for name in layout.of:
        home = layout.home(name)
        assert home is not None
        assert layout.rename(home) == (name, None)
    experts = "model.layers.0.mlp.experts.gate_up_proj"
    assert len(layout.of[experts].sources) == 8
    assert layout.home(experts) == experts


def test_two_tensors_for_one_parameter_are_refused_by_name(tmp_path: Path) -> None:
    folder = _save(tmp_path, "gpt_neox")
    stored = load_file(folder / "model.safetensors")
    stored["lm_head.weight"] = stored["embed_out.weight"] + 1
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    checkpoint: Any = open_checkpoint(folder)
    model = transformers.GPTNeoXForCausalLM(checkpoint.config)
    with pytest.raises(CheckpointError, match=r"embed_out.weight and lm_head.weight are two tensors for one parameter"):
        Layout(model, {name: checkpoint.shape(name) for name in checkpoint.names()})


def test_experts_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    folder = _save(tmp_path, "mixtral")
    stored = load_file(folder / "model.safetensors")
    name = next(name for name in stored if ".experts.1.w2" in name)
    stored[name] = stored[name][:-1].clone()
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    checkpoint: Any = open_checkpoint(folder)
    model = transformers.MixtralForCausalLM(checkpoint.config)
    with pytest.raises(
        CheckpointError, match=r"experts.down_proj cannot be made of tensor .* and 3 more: stack expects"
    ):
        Layout(model, {name: checkpoint.shape(name) for name in checkpoint.names()})
