"""Every module by a setting of its own: what is written, what reads it, and how many bytes it takes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_recipe_compress import load

from lowbit.compression.method import Method
from lowbit.compression.setting import Setting
from lowbit.compression.sizes import module_bytes, shipped_bytes
from lowbit.formats.checkpoint import open_checkpoint
from lowbit.models.decoder import Decoder
from lowbit.models.inventory import Inventory
from lowbit.recipes import compress as recipe
from lowbit.recipes.compress import CompressResult, compress
from lowbit.recipes.options import CompressOptions
from lowbit.runs.errors import RecipeError

Make = Callable[..., CompressOptions]

CHOICES = (
    Setting(4, 16, 3, 4),
    Setting(3, 32, 0, 16),
    Setting(8, None, 2, 8),
    Setting(5, 16, 1, 3),
    Setting(6, 8, 4, 16),
    Setting(2, 16, 4, 4),
    Setting(16, None, 0, 16),
)


def inventory_of(folder: Path | str, dtype: str = "auto") -> tuple[Inventory, torch.dtype]:
    decoder = Decoder(open_checkpoint(folder), dtype=dtype)
    return decoder.inventory, decoder.storage


def mixed(inventory: Inventory, choices: tuple[Setting, ...] = CHOICES) -> dict[str, Setting]:
    """Every choice in turn; experts, which transformers reads by one scheme, all by the first."""
    turn = itertools.cycle(choices)
    return {
        name: replace(choices[0], rank=2) if linear.experts else next(turn) for name, linear in inventory.named.items()
    }


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> Callable[..., CompressResult]:
    """A run with a decision, and the method it ran by."""
    plain = recipe._method

    def run(options: CompressOptions, settings: dict[str, Setting]) -> CompressResult:
        monkeypatch.setattr(recipe, "_method", lambda *given: replace(plain(*given), settings=settings))
        return compress(options)

    return run


def method_of(options: CompressOptions, storage: torch.dtype, settings: dict[str, Setting]) -> Method:
    return replace(recipe._method(options, storage), settings=settings)


def weight_files(out: Path) -> int:
    """Bytes on disk of the shards and of the adapter that ships."""
    folder = out / "factors" if (out / "factors").exists() else out / "adapter"
    beside = [path for path in folder.iterdir()] if folder.exists() else []
    return sum(path.stat().st_size for path in [*out.glob("*.safetensors"), *beside])


@pytest.mark.parametrize("kind", ["llama", "opt", "gemma3_text", "qwen3_moe", "gpt_oss", "gpt2"])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_bytes_are_known_before_anything_is_computed(
    options: Make, decided: Callable[..., CompressResult], kind: str, dtype: str
) -> None:
    chosen = options(kind, symmetric=True, dtype=dtype)
    inventory, storage = inventory_of(chosen.model, dtype)
    settings = mixed(inventory)
    method = method_of(chosen, storage, settings)
    expected = shipped_bytes(inventory, method)
    result = decided(chosen, settings)
    assert weight_files(result.out) == expected
    for module in result.record["modules"]:
        setting = settings[module["name"]]
        stored = module["bytes"]["packed"] + module["bytes"]["scales"] + module["bytes"]["zero_points"]
        stored += module["bytes"].get("adapter_packed", module["bytes"]["adapter"])
        assert (module["bits"], module["rank"]) == (setting.bits, setting.rank)
        assert module_bytes(inventory, method, module["name"], setting) == stored, module["name"]


@pytest.mark.parametrize("changes", [{}, {"compensate": "none"}, {"adapter_bits": 4}, {"symmetric": True, "bits": 6}])
def test_bytes_of_uniform_results_are_known_too(options: Make, changes: dict[str, Any]) -> None:
    chosen = options(**changes)
    inventory, storage = inventory_of(chosen.model)
    assert weight_files(compress(chosen).out) == shipped_bytes(inventory, recipe._method(chosen, storage))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "opt", "gemma3_text"])
def test_transformers_loads_a_decision_to_the_last_bit(
    options: Make, decided: Callable[..., CompressResult], kind: str
) -> None:
    chosen = options(kind, symmetric=True)
    inventory, _ = inventory_of(chosen.model)
    result = decided(chosen, mixed(inventory))
    groups = json.loads((result.out / "config.json").read_text())["quantization_config"]["config_groups"]
    assert [group["weights"]["num_bits"] for group in groups.values()] == [8, 6, 5, 4, 3, 2]
    model, checkpoint = load(result.out, result.record), open_checkpoint(result.out)
    with torch.no_grad():
        model(input_ids=torch.arange(40, 60)[None])  # unpacks what is unpacked on use
    for name, value in model.state_dict().items():
        if name in checkpoint.names():
            assert torch.equal(value, checkpoint.read(name)), name


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s | {"model.layers.7.mlp.up_proj": CHOICES[0]}, "a setting for model.layers.7.mlp.up_proj, which"),
        (lambda s: dict(list(s.items())[1:]), "no setting for model.layers.0.self_attn.q_proj and 0 other"),
        (lambda s: s | {"lm_head": Setting(4, 16, 2, 4)}, "lm_head: an adapter of rank 2, but only layers of blocks"),
        (lambda s: s | {"lm_head": Setting(4, 24, 0, 16)}, "group size 24 does not divide the 32 input columns of lm_"),
        (
            lambda s: s | {"model.layers.1.mlp.up_proj": Setting(4, 16, 99, 16)},
            "rank 99 is above the smaller dimension 32 of model.layers.1.mlp.up_proj",
        ),
    ],
)
def test_settings_that_fit_no_model_are_refused(
    options: Make, decided: Callable[..., CompressResult], change: Callable[[Any], dict[str, Setting]], message: str
) -> None:
    chosen = options()
    inventory, _ = inventory_of(chosen.model)
    with pytest.raises(RecipeError) as info:
        decided(chosen, change(mixed(inventory)))
    assert message in str(info.value)
    assert not chosen.out.exists()


@pytest.mark.parametrize("fields", [(7, 16, 0, 16), (4, 0, 0, 16), (4, 16, -1, 16), (4, 16, 1, 5)])
def test_a_setting_that_no_file_holds_is_refused(fields: tuple[int, int, int, int]) -> None:
    with pytest.raises(RecipeError):
        Setting(*fields)
