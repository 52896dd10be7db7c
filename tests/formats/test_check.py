"""The consumer check: what passes, and the reason for every refusal; PEFT is asked where it can answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowbit.formats.check import CONSUMERS, check_directory, record, report_lines
from lowbit.formats.errors import CheckpointError, UnreadError
from lowbit.formats.packed.packing import pack_padded
from lowbit.formats.peft import CONFIG, WEIGHTS, write_adapter

from .conftest import tiny_model
from .test_compressed_tensors import compress
from .test_peft import factors

Write = Callable[..., Path]


def verdicts(folder: Path) -> dict[str, tuple[bool, str]]:
    return {v.consumer: (v.passed, "; ".join(v.reasons)) for v in check_directory(folder)[1]}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "adapter", factors(tiny_model()), base_model="base", base_hash="00")
    return tmp_path / "adapter"


def change(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | fields))


def test_our_adapters_pass_where_scales_agree(adapter: Path, tmp_path: Path) -> None:
    found = verdicts(adapter)
    assert {name for name, (passed, _) in found.items() if passed} == {"peft", "transformers", "vllm", "gptqmodel"}
    assert "pad all ranks to one, or write adapter.lora.alpha = 0" in found["llama.cpp"][1]
    write_adapter(tmp_path / "even", factors(tiny_model(), ranks=(4,)), base_model="base", base_hash="00")
    assert all(passed for passed, _ in verdicts(tmp_path / "even").values())


def test_scales_that_only_peft_reads(adapter: Path) -> None:
    change(adapter, alpha_pattern={})
    found = verdicts(adapter)
    assert found["peft"][0]
    assert "layers would be silently wrong; fold the scales into lora_B" in found["vllm"][1]
    assert "GPTQModel adds the product unscaled" in found["gptqmodel"][1]


@pytest.mark.parametrize(
    "fields, consumer, reason",
    [
        ({"use_dora": True}, "vllm", "use_dora is refused"),
        ({"use_dora": True}, "llama.cpp", "DoRA has no GGUF form"),
        ({"fan_in_fan_out": True}, "llama.cpp", "its converter turns the factors of GPT-2 round"),
        ({"lora_alpha": None}, "peft", "is missing, and its factors are scaled by lora_alpha"),
        ({"modules_to_save": ["lm_head"]}, "vllm", "modules_to_save = ['lm_head'] is refused"),
        ({"bias": "all"}, "vllm", "bias = 'all' is refused"),
        ({"lora_bias": True}, "vllm", "lora_bias = True is more than a low-rank sum; vllm does not look at lora_bias"),
        ({"init_lora_weights": "pissa"}, "vllm", "changes the weights of the base when the adapter is loaded; vllm"),
        ({"target_parameters": ["x"]}, "llama.cpp", "llama.cpp does not look at target_parameters"),
        ({"use_dora": True}, "gptqmodel", "gptqmodel does not look at use_dora"),
        ({"r": None}, "vllm", "r is missing, which vLLM requires"),
        ({"r": 1000, "lora_alpha": 1000}, "vllm", "r = 1000 is above 512, the largest --max-lora-rank"),
        ({"rank_pattern": {}}, "peft", "but r and rank_pattern say 5"),
        ({"target_modules": ["q_proj"]}, "peft", "is not in target_modules: they would be ignored"),
        ({"peft_type": "IA3"}, "peft", "peft_type is 'IA3', not 'LORA'"),
    ],
)
def test_each_refusal_has_its_reason(fields: dict[str, Any], consumer: str, reason: str, adapter: Path) -> None:
    change(adapter, **fields)
    passed, reasons = verdicts(adapter)[consumer]
    assert not passed
    assert reason in reasons


def test_peft_agrees_about_ranks_that_contradict_the_tensors(adapter: Path) -> None:
    from peft import PeftModel

    PeftModel.from_pretrained(tiny_model(), str(adapter))
    change(adapter, rank_pattern={})
    assert not verdicts(adapter)["peft"][0]
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(tiny_model(), str(adapter))


def test_surplus_and_torn_tensors(adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)
    name = next(iter(sorted(tensors)))
    save_file({k: v for k, v in tensors.items() if k != name} | {"extra": torch.ones(1)}, adapter / WEIGHTS)
    found = verdicts(adapter)
    assert not any(passed for passed, _ in found.values())
    assert "do not fit together" in found["peft"][1]
    assert "tensor extra is refused as an unsupported LoRA weight" in found["vllm"][1]
    (adapter / WEIGHTS).write_bytes(b"short")
    assert all("truncated or not a safetensors file" in reason for _, reason in verdicts(adapter).values())


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric-full"])
def test_our_models_pass_with_their_conditions(scheme: str, llama: Any, write_model: Write) -> None:
    folder = write_model(llama)
    compress(llama, folder, 4, scheme, torch.float32, 32)
    kind, found = check_directory(folder, ["transformers", "vllm", "peft"])
    assert kind == "model"
    assert all(verdict.passed for verdict in found)
    assert any("dequantize=True" in note for note in found[0].notes) == (scheme == "asymmetric")
    text = "\n".join(report_lines(folder, kind, found))
    assert "transformers  pass" in text
    assert record(folder, kind, found)["schema"] == "lowbit.check/1"
    assert json.loads(json.dumps(record(folder, kind, found)))["passed"] is True


def test_a_dense_model_passes(llama: Any, write_model: Write) -> None:
    found = verdicts(write_model(llama))
    assert {name for name, (passed, _) in found.items() if passed} == set(CONSUMERS) - {"llama.cpp"}


def test_models_that_would_not_load(llama: Any, write_model: Write) -> None:
    folder = write_model(llama)
    compress(llama, folder, 3, "asymmetric", torch.float32, 32)
    path = folder / "model.safetensors"
    whole = load_file(path)
    module = "model.layers.0.mlp.up_proj"

    def reasons(tensors: dict[str, torch.Tensor]) -> str:
        save_file(tensors, path, {"format": "pt"})
        return verdicts(folder)["transformers"][1]

    assert reasons(whole) == ""
    without = {k: v for k, v in whole.items() if k != "model.norm.weight"}
    assert reasons(without) == "no tensor model.norm.weight"
    padded = torch.from_numpy(pack_padded(torch.zeros(96, 64, dtype=torch.int32).numpy(), 3))
    assert "is in the old layout of 32 // bits codes per word" in reasons(whole | {f"{module}.weight_packed": padded})
    assert "weight_zero_point (9, 3) should be (9, 2)" in reasons(
        whole | {f"{module}.weight_zero_point": torch.zeros(9, 3, dtype=torch.int32)}
    )
    assert "shape (95, 64), the model (96, 64)" in reasons(whole | {f"{module}.weight_shape": torch.tensor([95, 64])})
    dense = {k: v for k, v in whole.items() if not k.startswith(module + ".")}
    dense |= {f"{module}.weight": torch.zeros(96, 64)}
    save_file(dense, path, {"format": "pt"})
    assert f"module {module} is a quantization target but is stored dense" in verdicts(folder)["transformers"][1]
    assert "pack all of them or none" in verdicts(folder)["vllm"][1]
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["actorder"] = "group"
    (folder / "config.json").write_text(json.dumps(config))
    assert "actorder 'group' was removed from compressed-tensors" in verdicts(folder)["transformers"][1]
    path.write_bytes(path.read_bytes()[:-5])
    assert all("truncated" in reason for _, reason in verdicts(folder).values())


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "bitsandbytes"])
def test_what_lowbit_does_not_read_gets_no_verdict(method: str, llama: Any, write_model: Write) -> None:
    folder = write_model(llama)
    config = json.loads((folder / "config.json").read_text())
    extra = {"bits": 4} if method in ("gptq", "awq") else {}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": method} | extra}))
    with pytest.raises(UnreadError) as info:
        check_directory(folder)
    assert f"already quantized by {method}, which lowbit does not read" in str(info.value)
    assert "That is a limit of lowbit: other programs may load it" in str(info.value)


def test_an_encoder_gets_no_verdict(write_model: Write) -> None:
    from transformers import BertConfig, BertForMaskedLM

    model = BertForMaskedLM(BertConfig(vocab_size=96, hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(UnreadError, match="is not a decoder-only language model"):
        check_directory(write_model(model))


RECURRENT = {
    "mamba2": {"hidden_size": 64, "num_heads": 8, "head_dim": 16, "n_groups": 1, "state_size": 16},
    "recurrent_gemma": {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "lru_width": 64},
    "gpt_bigcode": {"n_embd": 64, "n_head": 4},
    "bloom": {"hidden_size": 64, "n_head": 4},
}


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
@pytest.mark.parametrize("kind", sorted(RECURRENT))
def test_the_way_to_load_packed_codes_is_the_one_that_works(kind: str, write_model: Write) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, CompressedTensorsConfig

    layers = "n_layer" if kind in ("gpt_bigcode", "bloom") else "num_hidden_layers"
    config = AutoConfig.for_model(kind, vocab_size=96, **{layers: 3}, **RECURRENT[kind])
    folder = write_model(tiny_model(config=config))
    compress(tiny_model(config=config), folder, 4, "symmetric-full", torch.float32, None, every=True)
    transformers = check_directory(folder, ["transformers"])[1][0]
    assert transformers.passed
    needs = any("dequantize=True" in note for note in transformers.notes)
    if needs:
        with pytest.raises(AttributeError):
            AutoModelForCausalLM.from_pretrained(folder)
        AutoModelForCausalLM.from_pretrained(folder, quantization_config=CompressedTensorsConfig(dequantize=True))
    else:
        AutoModelForCausalLM.from_pretrained(folder)
    assert needs == (kind != "bloom")


def test_peft_is_not_promised_what_it_refuses(write_model: Write) -> None:
    from peft import PeftModel
    from transformers import AutoConfig

    config = AutoConfig.for_model("mamba", hidden_size=32, num_hidden_layers=1, vocab_size=96)
    model = tiny_model(config=config)
    folder = write_model(model) / "adapter"
    write_adapter(folder, factors(model), base_model="base", base_hash="00")
    assert "PEFT refuses the adapter: [PEFT:PeftType.LORA] Module 'out_proj'" in verdicts(folder)["peft"][1]
    with pytest.raises(ValueError, match="incompatible with Mamba-based models"):
        PeftModel.from_pretrained(model, str(folder))
    model = tiny_model(config=config)
    write_adapter(folder, factors(model, suffix=("in_proj", "x_proj")), base_model="base", base_hash="00")
    assert verdicts(folder)["peft"][0]
    PeftModel.from_pretrained(model, str(folder))


def test_an_adapter_without_a_fingerprint_is_said_to_fit_any_base(adapter: Path) -> None:
    def noted() -> set[str]:
        return {v.consumer for v in check_directory(adapter)[1] if any("not bound to a base" in n for n in v.notes)}

    assert not noted()
    save_file(load_file(adapter / WEIGHTS), adapter / WEIGHTS)  # as PEFT writes it
    assert noted() == {"peft", "transformers"}


def test_vllm_follows_an_index_that_transformers_leaves_alone(write_model: Write) -> None:
    model = tiny_model()
    folder = write_model(model)

    def verdict(file: str) -> tuple[bool, str]:
        named = dict.fromkeys(load_file(folder / "model.safetensors"), file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": named}))
        found = verdicts(folder)
        assert found["transformers"][0]
        return found["vllm"]

    assert verdict("model.safetensors") == (True, "")
    assert verdict("model-00001-of-00001.safetensors") == (
        False,
        "vLLM takes model-00001-of-00001.safetensors, which the index names, and transformers model.safetensors: "
        "remove what does not belong here",
    )


DENSE = [
    f"model.layers.{at}.{name}_proj" for at in ("0.mlp", "1.mlp.shared_experts") for name in ("down", "gate", "up")
]


@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning", "ignore:The following:RuntimeWarning")
@pytest.mark.parametrize("by_parameter", [(), DENSE])
def test_factors_that_peft_takes_for_those_of_experts(by_parameter: list[str], write_model: Write) -> None:
    """Of these types PEFT turns the target gate_proj into the stack of experts, wherever a gate_proj is."""
    from peft import PeftModel
    from transformers import AutoConfig

    sizes = dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 16)
    config = AutoConfig.for_model(
        "deepseek_v3", vocab_size=96, hidden_size=32, intermediate_size=64, moe_intermediate_size=32,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2,
        n_group=1, topk_group=1, first_k_dense_replace=1, **sizes,
    )  # fmt: skip
    model = tiny_model(config=config)
    folder = write_model(model) / "adapter"
    patches = factors(model, ranks=(4,))
    assert set(DENSE) < set(patches)
    write_adapter(folder, patches, base_model="base", base_hash="00", by_parameter=by_parameter)
    loaded: Any = PeftModel.from_pretrained(model, str(folder)).base_model.model
    left = [name for name in patches if not hasattr(loaded.get_submodule(name), "lora_A")]
    assert sorted(left) == ([] if by_parameter else DENSE)
    assert not left or f"PEFT leaves out the factors of {', '.join(DENSE)}" in verdicts(folder)["peft"][1]
    assert verdicts(folder)["peft"][0] == verdicts(folder)["transformers"][0] == (not left)


def test_what_peft_would_do_with_the_base_is_said_to_be_untried(adapter: Path, write_model: Write) -> None:
    def noted(folder: Path) -> bool:
        return any("not tried whether PEFT" in note for note in check_directory(folder, ["peft"])[1][0].notes)

    assert noted(adapter)
    inside = adapter.rename(write_model(tiny_model()) / "adapter")
    assert not noted(inside)
    change(inside, target_modules="(.*_proj)+")
    assert noted(inside)


def test_places_that_are_neither(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither adapter_config\.json nor config\.json"):
        check_directory(tmp_path)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="a file, and check reads directories"):
        check_directory(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match="no such directory"):
        check_directory(tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"unknown consumer 'tensorrt'; known: peft, transformers, vllm"):
        check_directory(tmp_path, ["tensorrt"])
