"""Bad input, each with the message a user reads."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import byte_tokenizer, save_tiny

from lowbit.formats.checkpoint import weights_hash
from lowbit.recipes.compress import compress
from lowbit.recipes.evaluate import evaluate
from lowbit.recipes.options import CompressOptions, EvalOptions, parse_options
from lowbit.runs.errors import RecipeError

Make = Callable[..., CompressOptions]


@pytest.fixture
def broken(tiny: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """``broken(edit)``: a copy of the tiny LLaMA whose tensors went through ``edit``."""

    def make(edit: Callable[[dict[str, torch.Tensor]], None]) -> Path:
        folder = tmp_path / "broken"
        shutil.copytree(tiny("llama"), folder)
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


def refusal(options: CompressOptions) -> str:
    """The message, and proof that nothing was left behind."""
    with pytest.raises(RecipeError) as caught:
        compress(options)
    assert not options.out.exists()
    return str(caught.value)


def test_missing_tensor(options: Make, broken: Callable[..., Path]) -> None:
    folder = broken(lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    assert refusal(options(model=str(folder))) == (
        f"{folder} lacks the tensor model.layers.1.mlp.up_proj.weight that LlamaForCausalLM needs: "
        "the checkpoint is incomplete, transformers would fill it with random numbers"
    )


def test_wrong_shape(options: Make, broken: Callable[..., Path]) -> None:
    def cut(tensors: dict[str, torch.Tensor]) -> None:
        name = "model.layers.0.self_attn.o_proj.weight"
        tensors[name] = tensors[name][:-1].clone()

    folder = broken(cut)
    assert refusal(options(model=str(folder))) == (
        f"{folder}: tensor model.layers.0.self_attn.o_proj.weight has shape (31, 32), "
        "but its configuration needs (32, 32)"
    )


def test_truncated_file(options: Make, tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(tiny("llama"), folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    message = refusal(options(model=str(folder)))
    assert message.startswith(f"{file}: ")
    assert "truncated" in message


def test_missing_shard(options: Make, tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    shutil.copytree(tiny("llama"), folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00002.safetensors")}
    index["weight_map"]["lm_head.weight"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refusal(options(model=str(folder))) == (
        f"{folder}/model-00002-of-00002.safetensors: missing shard; model.safetensors.index.json lists it, "
        "so download or copy it again"
    )


def test_no_such_model(options: Make, tmp_path: Path) -> None:
    assert refusal(options(model=str(tmp_path / "nothing" / "here"))) == (
        f"{tmp_path}/nothing/here: no such file or directory"
    )


def test_nan_in_a_weight(options: Make, broken: Callable[..., Path]) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = float("nan")

    folder = broken(spoil)
    with pytest.raises(RecipeError) as caught:
        compress(options(model=str(folder)))
    assert str(caught.value) == (
        f"{folder}: tensor model.layers.1.mlp.down_proj.weight holds NaN or infinite values, first at (3, 5)"
    )


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_infinite_activations(options: Make, broken: Callable[..., Path], backend: str) -> None:
    """Finite weights, products beyond float32: the module and the sample are named."""

    def blow_up(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.gate_proj.weight"] *= 1e30
        tensors["model.layers.1.mlp.up_proj.weight"] *= 1e30

    folder = broken(blow_up)
    with pytest.raises(RecipeError) as caught:
        compress(options(model=str(folder), backend=backend))
    assert str(caught.value) == (
        "the inputs of model.layers.1.mlp.down_proj are NaN or infinite in calibration sample 0"
    )


def test_group_size_that_does_not_divide(options: Make) -> None:
    assert refusal(options(group_size=24)) == (
        "group size 24 does not divide the 32 input columns of model.layers.0.self_attn.q_proj: "
        "choose a divisor, or 0 for one scale per row"
    )


def test_rank_above_the_dimension(options: Make) -> None:
    assert refusal(options(rank=17)) == (
        "rank 17 is above the smaller dimension 16 of model.layers.0.self_attn.k_proj (16 x 32)"
    )


def test_empty_calibration(options: Make, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    assert refusal(options(calibration=str(empty))) == f"calibration text {empty} is empty"


def test_too_few_tokens(options: Make, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("only these few words")
    assert refusal(options(calibration=str(short))) == (
        f"calibration text {short} gives 20 tokens, but 3 x 24 = 72 are needed: "
        "take fewer or shorter samples, or a longer text"
    )


def test_samples_longer_than_the_positions(options: Make) -> None:
    assert refusal(options(length=200)) == (
        "samples of 200 tokens, but LlamaForCausalLM here reads at most 128: lower the length"
    )


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_not_a_decoder(options: Make, tmp_path: Path, kind: str) -> None:
    from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

    folder = tmp_path / kind
    if kind == "bert":
        BertForMaskedLM(
            BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=264)
        ).save_pretrained(folder)
        name = "BertForMaskedLM"
    else:
        T5ForConditionalGeneration(
            T5Config(d_model=32, num_layers=2, num_heads=4, d_ff=32, d_kv=8, vocab_size=264)
        ).save_pretrained(folder)
        name = "T5ForConditionalGeneration"
    byte_tokenizer().save_pretrained(folder)
    assert refusal(options(model=str(folder))) == (
        f"{folder}: architecture {name} is not a decoder-only language model (…ForCausalLM) of transformers"
    )


def test_tokenizer_of_another_model(options: Make, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "small", vocab_size=100, bos_token_id=1, eos_token_id=1, pad_token_id=1)
    with pytest.raises(RecipeError) as caught:
        compress(options(model=str(folder)))
    assert re.fullmatch(
        rf"{folder}: the tokenizer gives token \d+, but the model knows 100: "
        "tokenizer and model do not belong together",
        str(caught.value),
    )


def test_unknown_backend(options: Make) -> None:
    assert refusal(options(backend="abacus")).startswith("no backend 'abacus': neither a registered name")


def test_unknown_device(options: Make) -> None:
    assert refusal(options(device="warp")).startswith("device 'warp' cannot be used here: ")


def test_adapter_of_another_base(options: Make, tmp_path: Path, text: Path) -> None:
    one = compress(options(out=tmp_path / "one", bits=3))
    other = compress(options(out=tmp_path / "other", bits=4))
    with pytest.raises(RecipeError) as caught:
        evaluate(EvalOptions(path=str(one.out), adapter=other.out / "adapter", text=str(text), length=24))
    assert str(caught.value) == (
        f"adapter {other.out / 'adapter'} was made for the base {weights_hash(other.out)[:16]}, "
        f"but {one.out} is {weights_hash(one.out)[:16]}; use the directory it was made with"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 7}, "option bits: input should be 2, 3, 4, 5, 6, 8 or 16, got 7"),
        ({"bits": 16}, "bits 16 keeps the weights dense: choose fewer bits or add sparsity 2:4"),
        ({"group_size": -2}, "option group_size: input should be greater than or equal to -1, got -2"),
        ({"rank": 0}, "option rank: input should be greater than or equal to 1, got 0"),
        ({"sparsity": "1:4"}, "option sparsity: input should be '2:4', got '1:4'"),
        ({"act_order": True}, "act_order belongs to quantizer gptq"),
        (
            {"act_order": True, "quantizer": "gptq", "static_groups": False},
            "act_order needs static_groups: otherwise the groups are not runs of columns",
        ),
        (
            {"act_order": True, "quantizer": "gptq", "sparsity": "2:4"},
            "act_order is not available for joint SparseGPT pruning and quantization",
        ),
        ({"compensate": "none", "adapter_bits": 4}, "adapter_bits needs a compensation"),
        (
            {"compensate": "svd", "quantizer": "gptq", "adapter_aware": True},
            "adapter_aware needs the adapter of compensate eora",
        ),
        (
            {"adapter_aware": True},
            "adapter_aware concerns quantizer gptq and sparsity: rtn alone weighs no errors",
        ),
        ({"colour": "red"}, "unknown option colour"),
        (
            {"samples": "many"},
            "option samples: input should be a valid integer, unable to parse string as an integer, got 'many'",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_options(options: Make, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        options(**fields)
    assert str(caught.value) == message


def test_several_wrong_options_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_options(CompressOptions, model="m", bits=7, rank=0)
    assert str(caught.value) == (
        "option out is required\n"
        "option bits: input should be 2, 3, 4, 5, 6, 8 or 16, got 7\n"
        "option rank: input should be greater than or equal to 1, got 0"
    )
