"""Adapter directories against PEFT itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowbit.formats.errors import AdapterError, CheckpointError
from lowbit.formats.peft import CONFIG, RULES, WEIGHTS, read_adapter, require_base, write_adapter

from .conftest import tiny_config, tiny_model

LOGITS = 1e-5  # the agreement that the project promises for adapter logits


def factors(model: Any, ranks: tuple[int, ...] = (2, 5, 3), suffix: tuple[str, ...] = ("_proj",)) -> dict[str, Any]:
    """Random factors of mixed rank for every module whose path ends so."""
    generator = torch.Generator().manual_seed(1)
    made = {}
    for name, module in model.named_modules():
        if name.endswith(suffix) and hasattr(module, "weight"):
            m, k = module.weight.shape if not hasattr(module, "nf") else module.weight.shape[::-1]
            r = ranks[len(made) % len(ranks)]
            made[name] = (torch.randn(m, r, generator=generator) / 8, torch.randn(r, k, generator=generator) / 8)
    return made


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(torch.arange(3, 43).reshape(2, 20)).logits
    return out


def with_sum(kind: str, patches: dict[str, Any]) -> Any:
    """The model with W + BA in its weights."""
    model = tiny_model(kind)
    with torch.no_grad():
        for name, (b, a) in patches.items():
            module = model.get_submodule(name)
            module.weight.add_((b @ a).T if hasattr(module, "nf") else b @ a)
    return model


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_peft_computes_the_sum_of_factors_of_mixed_rank(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    patches = factors(tiny_model(kind), suffix=("_proj", "c_attn", "c_fc"))
    write_adapter(tmp_path, patches, base_model="base", base_hash="00ff", fan_in_fan_out=kind == "gpt2")
    loaded: Any = PeftModel.from_pretrained(tiny_model(kind), str(tmp_path)).eval()
    scales = [layer.scaling["default"] for layer in loaded.modules() if hasattr(layer, "lora_A")]
    assert set(scales) == {1.0}
    assert len(scales) == len(patches)
    expected = logits(with_sum(kind, patches))
    assert (logits(loaded) - expected).abs().max() <= LOGITS
    assert (logits(tiny_model(kind)) - expected).abs().max() > 100 * LOGITS


def test_round_trip_is_exact_and_bytes_repeat(tmp_path: Path) -> None:
    patches = factors(tiny_model())
    write_adapter(tmp_path / "a", patches, base_model="base", base_hash="00ff")
    write_adapter(tmp_path / "b", dict(reversed(list(patches.items()))), base_model="base", base_hash="00ff")
    for name in (WEIGHTS, CONFIG):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    adapter = read_adapter(tmp_path / "a")
    assert adapter.base_hash == "00ff"
    assert adapter.config["r"] == adapter.config["lora_alpha"] == 5
    assert adapter.config["rank_pattern"] == adapter.config["alpha_pattern"]
    assert sorted(adapter.factors) == sorted(patches)
    for name, (b, a) in patches.items():
        assert torch.equal(adapter.factors[name][0], b)
        assert torch.equal(adapter.factors[name][1], a)


@pytest.mark.parametrize(
    "options",
    [
        {"lora_alpha": 16},
        {"lora_alpha": 16, "use_rslora": True},
        {"lora_alpha": 6, "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 7}},
        {"lora_alpha": 6, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3, "q_proj": 9}},
    ],
)
def test_scales_of_other_writers_are_folded(options: dict[str, Any], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM", **options
    )
    torch.manual_seed(3)
    theirs = get_peft_model(tiny_model(), config).eval()
    theirs.save_pretrained(str(tmp_path))
    adapter = read_adapter(tmp_path)
    assert adapter.base_hash is None
    assert len(adapter.factors) == 6
    assert (logits(with_sum("llama", adapter.factors)) - logits(theirs)).abs().max() <= LOGITS


def test_adapter_of_another_base_names_both(tmp_path: Path) -> None:
    write_adapter(tmp_path, factors(tiny_model()), base_model="base", base_hash="a" * 64)
    adapter = read_adapter(tmp_path)
    require_base(adapter, "a" * 64, adapter_path=tmp_path, base_path="base")
    with pytest.raises(AdapterError) as info:
        require_base(adapter, "b" * 64, adapter_path=tmp_path, base_path="other")
    assert str(info.value) == (
        f"adapter {tmp_path} was made for the base {'a' * 16}, but other is {'b' * 16}; "
        "use the directory it was made with"
    )


def test_more_than_a_low_rank_sum_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path, factors(tiny_model()), base_model="base", base_hash="")
    good = json.loads((tmp_path / CONFIG).read_text())
    for change, message in [
        ({"use_dora": True}, "use_dora = True is more than a low-rank sum; merge it into the model first"),
        ({"bias": "all"}, "bias = 'all' is more than a low-rank sum; merge it into the model first"),
        (
            {"modules_to_save": ["x"]},
            "modules_to_save = ['x'] is more than a low-rank sum; merge it into the model first",
        ),
        ({"peft_type": "IA3"}, "a IA3 adapter; only LoRA is a low-rank sum"),
    ]:
        (tmp_path / CONFIG).write_text(json.dumps(good | change))
        with pytest.raises(AdapterError) as info:
            read_adapter(tmp_path)
        assert str(info.value) == f"{tmp_path}: {message}"
    (tmp_path / CONFIG).write_text(json.dumps(good))
    tensors = load_file(tmp_path / WEIGHTS)
    name = next(iter(sorted(tensors)))
    save_file({k: v for k, v in tensors.items() if k != name}, tmp_path / WEIGHTS)
    with pytest.raises(AdapterError, match="has lora_B alone"):
        read_adapter(tmp_path)
    save_file(tensors | {"base_model.model.x.lora_magnitude_vector": torch.ones(3)}, tmp_path / WEIGHTS)
    with pytest.raises(AdapterError, match="is not a factor of a linear layer"):
        read_adapter(tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(AdapterError, match="a pickle, which lowbit does not open"):
        read_adapter(tmp_path)
    (tmp_path / CONFIG).unlink()
    with pytest.raises(AdapterError, match=r"no adapter_config\.json, so this is not an adapter directory"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": r".*layers\.1\..*\.(q|v)_proj"},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": 1},
        {"target_modules": ["q_proj", "k_proj", "v_proj"], "exclude_modules": ["k_proj"]},
    ],
)
def test_the_modules_are_those_that_peft_loads(options: dict[str, Any], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM", **options)
    torch.manual_seed(3)
    theirs = get_peft_model(tiny_model(), config).eval()
    theirs.save_pretrained(str(tmp_path))
    adapter = read_adapter(tmp_path)
    assert len(adapter.factors) == sum(hasattr(module, "lora_A") for module in theirs.modules())
    assert (logits(with_sum("llama", adapter.factors)) - logits(theirs)).abs().max() <= LOGITS
    config = json.loads((tmp_path / CONFIG).read_text())
    for named in targeted_elsewhere(config):
        (tmp_path / CONFIG).write_text(json.dumps(config | named))
        with pytest.raises(AdapterError, match="does not target, so that PEFT would leave them out"):
            read_adapter(tmp_path)


def targeted_elsewhere(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Changes after which PEFT would not load every factor of the file."""
    changes: list[dict[str, Any]] = [{"target_modules": ["k_proj"]}, {"target_modules": None}]
    changes += [{"exclude_modules": ["q_proj"]}, {"target_modules": r".*layers\.0\..*"}]
    return [*changes, *([{"layers_to_transform": [0]}] if config["layers_to_transform"] else [])]


@pytest.mark.parametrize(
    "fields, message",
    [
        *(
            ({key: value}, f"{key} = {value!r} is more than a low-rank sum; merge it into the model first")
            for key, value in {
                "alora_invocation_tokens": [3, 4],
                "trainable_token_indices": [1],
                "lora_bias": True,
                "use_qalora": True,
                "layer_replication": [[0, 2]],
                "arrow_config": {"top_k": 3},
            }.items()
        ),
        *(
            ({"init_lora_weights": value}, f"init_lora_weights = {value!r} changes the weights of the base when the ")
            for value in ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga")
        ),
        ({"lora_alpha": None}, "is missing, and its factors are scaled by lora_alpha / r"),
        ({"lora_alpha": "16"}, "lora_alpha = '16' is not of type int or float"),
        ({"lora_alpha": float("nan")}, "lora_alpha or alpha_pattern holds nan, not a number"),
        ({"alpha_pattern": [4]}, "alpha_pattern = [4] is not of type dict"),
        ({"alpha_pattern": {"(": 4}}, "cannot be used as a regular expression"),
        ({"r": 3}, "have rank 5, but r and rank_pattern say 3"),
        ({"use_warp": True}, "use_warp = True is unknown here and may change what is computed; merge the adapter"),
    ],
)
def test_a_setting_is_applied_or_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_adapter(tmp_path, factors(tiny_model(), ranks=(5,)), base_model="base", base_hash="")
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | fields))
    with pytest.raises(AdapterError) as info:
        read_adapter(tmp_path)
    assert message in str(info.value)


def test_a_missing_alpha_is_not_guessed(tmp_path: Path) -> None:
    write_adapter(tmp_path, factors(tiny_model()), base_model="base", base_hash="")
    config = json.loads((tmp_path / CONFIG).read_text())
    del config["lora_alpha"]
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(AdapterError, match="write the number that the adapter was trained with"):
        read_adapter(tmp_path)


def test_every_setting_of_the_installed_peft_has_a_rule() -> None:
    from dataclasses import fields

    from peft import LoraConfig

    assert {field.name for field in fields(LoraConfig)} <= set(RULES)


def test_bad_factors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="at least one module"):
        write_adapter(tmp_path, {}, base_model="b", base_hash="")
    with pytest.raises(AdapterError, match=r"x: B \(4, 2\) and A \(3, 4\) are not"):
        write_adapter(tmp_path, {"x": (torch.ones(4, 2), torch.ones(3, 4))}, base_model="b", base_hash="")
    with pytest.raises(AdapterError, match=r"x: factors of type torch\.float64"):
        write_adapter(tmp_path, {"x": (torch.ones(4, 2).double(), torch.ones(2, 4))}, base_model="b", base_hash="")


def test_a_model_in_memory_with_an_adapter_is_refused() -> None:
    from peft import LoraConfig, get_peft_model

    from lowbit.formats.memory import MemoryCheckpoint

    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    wrapped, injected = get_peft_model(tiny_model(), config), tiny_model()
    injected.add_adapter(config)
    for model in (wrapped, injected):
        with pytest.raises(CheckpointError, match="carries an adapter; merge it first"):
            MemoryCheckpoint(model, None)  # type: ignore[arg-type]


def test_tiny_config_has_two_blocks() -> None:
    assert tiny_config().num_hidden_layers == 2
