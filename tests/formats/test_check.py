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
from lowbit.formats.errors import CheckpointError
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
        ({"modules_to_save": ["lm_head"]}, "vllm", "modules_to_save = ['lm_head'] is refused"),
        ({"bias": "all"}, "vllm", "bias = 'all' is refused"),
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


def test_places_that_are_neither(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither adapter_config\.json nor config\.json"):
        check_directory(tmp_path)
    with pytest.raises(CheckpointError, match="no such directory"):
        check_directory(tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"unknown consumer 'tensorrt'; known: peft, transformers, vllm"):
        check_directory(tmp_path, ["tensorrt"])
