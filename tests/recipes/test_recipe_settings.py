"""Every module by a setting of its own: what is written, what reads it, and how many bytes it takes."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_recipe_compress import PEFT_LOGITS, load
from test_recipe_resume import _Boom, interrupt_after
from tiny_models import contents, save_tiny

from lowbit.compression import shards
from lowbit.compression.method import Method
from lowbit.compression.setting import Setting
from lowbit.compression.sizes import module_bytes, shipped_bytes
from lowbit.formats.check import check_directory
from lowbit.formats.checkpoint import SafetensorsCheckpoint, open_checkpoint
from lowbit.formats.errors import AdapterError
from lowbit.models.adapters import adapter_factors, split_factors
from lowbit.models.decoder import Decoder
from lowbit.models.inventory import Inventory
from lowbit.recipes import inputs as recipe
from lowbit.recipes.compress import CompressResult, compress
from lowbit.recipes.evaluate import evaluate
from lowbit.recipes.options import CompressOptions, EvalOptions
from lowbit.report.schema import load_schema, problems
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

    def run(options: CompressOptions, settings: dict[str, Setting], watch: Any = None) -> CompressResult:
        monkeypatch.setattr(recipe, "_method", lambda *given: replace(plain(*given), settings=settings))
        return compress(options, watch)

    return run


def method_of(options: CompressOptions, storage: torch.dtype, settings: dict[str, Setting]) -> Method:
    return replace(recipe._method(options, storage), settings=settings)


def weight_files(out: Path) -> int:
    """Bytes on disk of the shards and of the adapter that ships."""
    folder = out / "factors" if (out / "factors").exists() else out / "adapter"
    beside = list(folder.iterdir()) if folder.exists() else []
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


@pytest.mark.parametrize("kind", ["llama", "opt", "gemma3_text", "qwen3_moe", "mixtral"])
def test_transformers_loads_a_decision_to_the_last_bit(
    options: Make, decided: Callable[..., CompressResult], kind: str
) -> None:
    chosen = options(kind, symmetric=True)
    inventory, _ = inventory_of(chosen.model)
    result = decided(chosen, mixed(inventory))
    groups = json.loads((result.out / "config.json").read_text())["quantization_config"]["config_groups"]
    bits = [group["weights"]["num_bits"] for group in groups.values()]
    assert sorted(set(bits), reverse=True) == [8, 6, 5, 4, 3, 2]
    assert bits == sorted(bits, reverse=True)
    assert result.record["loads_with"]["way"] == "plain"
    model, stored = load(result.out, result.record), Decoder(open_checkpoint(result.out)).weights
    with torch.no_grad():
        model(input_ids=torch.arange(40, 60)[None])  # unpacks what is unpacked on use
    for name, value in model.state_dict().items():
        if not name.endswith(("_scale", "_shape")):  # what the library leaves where it has unpacked
            assert torch.equal(value, stored.read(name)), name


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


def test_a_decision_survives_interruptions_byte_for_byte(
    options: Make, decided: Callable[..., CompressResult], text: Path, tmp_path: Path
) -> None:
    measured: dict[str, Any] = {"evaluate": str(text), "evaluate_tokens": 48, "evaluate_length": 24}
    inventory, _ = inventory_of(options().model)
    settings = mixed(inventory) | {"model.embed_tokens": Setting(4, 16, 0, 16), "lm_head": Setting(8, None, 0, 16)}
    whole = decided(options(out=tmp_path / "whole", **measured), settings)
    for block in (0, 1):
        with pytest.raises(_Boom):
            decided(options(**measured), settings, interrupt_after(block))
    again = decided(options(**measured), settings)
    assert contents(again.out) == contents(whole.out)
    assert not list(problems(again.record, load_schema()))
    measures = again.record["perplexity"]
    evaluated = evaluate(EvalOptions(path=str(again.out), text=str(text), tokens=48, length=24))
    assert evaluated.perplexity == pytest.approx(measures["compressed"], rel=1e-6)
    patched = evaluate(
        EvalOptions(path=str(again.out), text=str(text), tokens=48, length=24, adapter=again.out / "factors")
    )
    assert patched.perplexity == pytest.approx(measures["compensated"], rel=1e-6)
    assert len({measures[name] for name in ("base", "compressed", "compensated")}) == 3


@pytest.mark.parametrize("kind, changes", [("llama", {}), ("qwen3_moe", {"symmetric": True}), ("gpt_oss", {})])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_factors_are_those_of_the_peft_directory(
    options: Make, kind: str, changes: dict[str, Any], dtype: str
) -> None:
    """To the last bit, so that an evaluation of either is one of both."""
    result = compress(options(kind, adapter_bits=4, dtype=dtype, **changes))
    packed, plain = (adapter_factors(result.out, result.out / folder) for folder in ("factors", "adapter"))
    assert packed.keys() == plain.keys()
    assert len(packed) == len(result.record["modules"])
    for name, (b, a) in packed.items():
        assert torch.equal(b, plain[name][0]), name
        assert torch.equal(a, plain[name][1]), name
    sizes = [sum(path.stat().st_size for path in (result.out / each).iterdir()) for each in ("factors", "adapter")]
    assert sizes[0] < sizes[1]
    totals = result.record["totals"]
    shards = sum(path.stat().st_size for path in result.out.glob("*.safetensors"))
    assert totals["bytes_shipped"] == shards + sizes[0]
    readme = (result.out / "README.md").read_text()
    assert "in `factors/`, which is what ships" in readme


def test_packed_factors_of_another_base_are_refused(options: Make, tmp_path: Path) -> None:
    first = compress(options(adapter_bits=4))
    other = compress(options(adapter_bits=4, bits=4, out=tmp_path / "other"))
    with pytest.raises(AdapterError, match="was made for the base"):
        adapter_factors(other.out, first.out / "factors")


FUSED = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"})


def joined(settings: dict[str, Setting]) -> dict[str, Setting]:
    """The same with one setting for layers that vLLM joins."""
    first: dict[tuple[str, int], Setting] = {}
    for name, setting in settings.items():
        parent, _, last = name.rpartition(".")
        family = next((number for number, names in enumerate(FUSED) if last in names), None)
        settings[name] = setting if family is None else first.setdefault((parent, family), setting)
    return settings


def said(folder: Path) -> dict[str, tuple[bool, str]]:
    return {v.consumer: (v.passed, "; ".join([*v.reasons, *v.notes])) for v in check_directory(folder)[1]}


def test_check_says_what_a_decision_asks_of_whom(options: Make, decided: Callable[..., CompressResult]) -> None:
    chosen = options(symmetric=True)
    inventory, _ = inventory_of(chosen.model)
    out = decided(chosen, mixed(inventory)).out
    found = said(out)
    assert {name for name, (passed, _) in found.items() if passed} == {"transformers", "peft"}
    assert "as it is, for dequantize=True reads every module by one scheme, and there are 6" in found["transformers"][1]
    assert "decompress_model(model), and the adapter" in found["peft"][1]
    assert "joins q_proj, k_proj, v_proj of model.layers.0.self_attn: give them one number" in found["vllm"][1]
    assert "joins gate_proj, up_proj of model.layers.0.mlp: give them one number" in found["vllm"][1]
    shutil.rmtree(out)
    found = said(decided(chosen, joined(mixed(inventory))).out)
    assert found["vllm"][0]


def test_check_refuses_what_no_way_of_transformers_reads(options: Make, decided: Callable[..., CompressResult]) -> None:
    chosen = options()
    inventory, _ = inventory_of(chosen.model)
    found = said(decided(chosen, mixed(inventory)).out)
    assert not found["transformers"][0]
    assert "asymmetric codes, and dequantize=True reads every module by one scheme, and there" in found["peft"][1]


def test_check_of_packed_embeddings(
    options: Make, tiny: Callable[..., Path], decided: Callable[..., CompressResult]
) -> None:
    chosen = options(model=str(tiny("llama", tie_word_embeddings=True)), compensate="none")
    inventory, _ = inventory_of(chosen.model)
    one = Setting(4, 16, 0, 16)
    out = decided(chosen, dict.fromkeys([*inventory.named, *inventory.outer_modules], one)).out
    found = said(out)
    assert found["transformers"][0]
    assert "dequantize=True" in found["transformers"][1]
    assert "vLLM reads model.embed_tokens without its zero points" in found["vllm"][1]
    assert "vLLM has no head that reads model.embed_tokens packed" in found["vllm"][1]
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["targets"] = ["Linear"]
    (out / "config.json").write_text(json.dumps(config))
    assert (
        "model.embed_tokens is packed but no target: loaders would make up its weight" in said(out)["transformers"][1]
    )


# ---- embedding and head ---------------------------------------------------------------------------------------------


def loaded_or_refused(out: Path) -> list[Any]:
    """What transformers makes of a directory in its two ways: a model, or nothing because it refused."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    found: list[Any] = []
    for extra in ({}, {"quantization_config": CompressedTensorsConfig(dequantize=True)}):
        try:
            model = AutoModelForCausalLM.from_pretrained(out, dtype="auto", **extra).eval()
            with torch.no_grad():
                model(input_ids=torch.arange(40, 60)[None])
        except (AttributeError, RuntimeError, KeyError, ValueError):
            continue
        found.append(model)
    return found


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", ["llama", "opt", "gemma3_text", "gpt2", "gpt_neox", "mixtral"])
@pytest.mark.parametrize("several", [False, True])
def test_transformers_loads_a_packed_embedding_rightly_or_not_at_all(
    options: Make,
    tiny: Callable[..., Path],
    decided: Callable[..., CompressResult],
    kind: str,
    symmetric: bool,
    several: bool,
) -> None:
    if kind == "mixtral" and not symmetric:
        pytest.skip("experts are stored symmetric")
    folder = str(tiny(kind, **({"hidden_size": 64} if kind == "mixtral" else {})))
    chosen = options(model=folder, symmetric=symmetric, compensate="none")
    inventory, storage = inventory_of(folder)
    assert inventory.outer_modules
    one = Setting(3, 16, 0, 16)
    settings = dict.fromkeys(inventory.named, one) | dict.fromkeys(
        inventory.outer_modules, Setting(8, 16, 0, 16) if several else one
    )
    expected = shipped_bytes(inventory, method_of(chosen, storage, settings))
    result = decided(chosen, settings)
    assert weight_files(result.out) == expected
    assert [module["name"] for module in result.record["outer"]] == list(inventory.outer_modules)
    stored, original = (Decoder(open_checkpoint(place)).weights for place in (result.out, folder))
    for name in inventory.outer_modules:
        difference = stored.read(f"{name}.weight") - original.read(f"{name}.weight")
        assert 0 < float(difference.abs().max()) < 0.4
    models = loaded_or_refused(result.out)
    assert bool(models) == (result.record["loads_with"]["way"] != "state_dict")
    for model in models:
        for name, value in model.state_dict().items():
            assert torch.equal(value, stored.read(name)), name


def test_an_embedding_is_coded_a_few_rows_at_a_time(
    options: Make, decided: Callable[..., CompressResult], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Never whole in memory, and the pieces are those of one quantization."""
    inventory, _ = inventory_of(options().model)
    settings = dict.fromkeys([*inventory.named, *inventory.outer_modules], Setting(3, 16, 0, 16))
    whole = decided(options(out=tmp_path / "whole", compensate="none"), settings)
    read, asked = SafetensorsCheckpoint.read, dict[str, set[Any]]()

    def watched(self: SafetensorsCheckpoint, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        asked.setdefault(name, set()).add(rows)
        return read(self, name, rows)

    monkeypatch.setattr(shards, "_ROWS_VALUES", 100 * 32)
    monkeypatch.setattr(SafetensorsCheckpoint, "read", watched)
    pieces = decided(options(compensate="none"), settings)
    assert contents(pieces.out) == contents(whole.out)
    assert asked["model.embed_tokens.weight"] == asked["lm_head.weight"] == {(0, 96), (96, 192), (192, 264)}
    kept = [decided(options(compensate="none", dtype="float16", out=tmp_path / "kept"), {})]
    assert asked["lm_head.weight"] >= {(0, 100), (100, 200), (200, 264)}
    monkeypatch.undo()
    kept.append(compress(options(compensate="none", dtype="float16", out=tmp_path / "at once")))
    assert contents(kept[0].out) == contents(kept[1].out)


def test_values_that_no_grid_takes_are_named(
    options: Make, decided: Callable[..., CompressResult], tmp_path: Path
) -> None:
    model = save_tiny(tmp_path / "m")
    tensors = load_file(model / "model.safetensors")
    tensors["model.embed_tokens.weight"][200, 3] = torch.inf
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    inventory, _ = inventory_of(model)
    with pytest.raises(RecipeError, match=r"tensor model\.embed_tokens\.weight holds NaN .* first at \(200, 3\)"):
        decided(
            options(model=str(model)),
            mixed(inventory) | {"model.embed_tokens": Setting(4, 16, 0, 16)},
        )


def test_a_decision_on_a_gguf_file_counts_against_its_bytes(
    options: Make, decided: Callable[..., CompressResult], tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf")
    from tests.formats.test_gguf import write_gguf

    write_gguf(tmp_path / "m.gguf", quantized=gguf.GGMLQuantizationType.Q8_0)
    chosen = options(model=str(tmp_path / "m.gguf"), symmetric=True)
    inventory, storage = inventory_of(chosen.model)
    settings = mixed(inventory) | dict.fromkeys(inventory.outer_modules, Setting(4, 16, 0, 16))
    expected = shipped_bytes(inventory, method_of(chosen, storage, settings))
    result = decided(chosen, settings)
    totals = result.record["totals"]
    assert totals["bytes_given"] == (tmp_path / "m.gguf").stat().st_size
    assert totals["bytes_shipped"] == expected == weight_files(result.out)
    assert totals["bytes_16"] == 2 * inventory.values()
    assert (
        f"{totals['bytes_given']:,} bytes given ({totals['bytes_16']:,} in 16 bits)"
        in (result.out / "README.md").read_text()
    )


def test_a_decision_can_be_compressed_again(
    options: Make, decided: Callable[..., CompressResult], tmp_path: Path
) -> None:
    first_options = options(symmetric=True, compensate="none", out=tmp_path / "first")
    inventory, _ = inventory_of(first_options.model)
    settings = mixed(inventory) | dict.fromkeys(inventory.outer_modules, Setting(6, 16, 0, 16))
    first = decided(first_options, settings)
    again = options(model=str(first.out), symmetric=True, compensate="none")
    inventory, storage = inventory_of(again.model)
    smaller = dict.fromkeys([*inventory.named, *inventory.outer_modules], Setting(3, 16, 0, 16))
    expected = shipped_bytes(inventory, method_of(again, storage, smaller))
    assert weight_files(decided(again, smaller).out) == expected < weight_files(first.out)


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys:RuntimeWarning")
@pytest.mark.parametrize(
    "kind, outer, sentence",
    [
        ("qwen3_moe", {"model.embed_tokens": Setting(8, 16, 0, 16)}, "`transformers` alone does not read these files"),
        (
            "gemma3_text",
            {},
            "Not with `dequantize=True`, which reads every module by one of the 6 schemes. PEFT needs the weights",
        ),
        (
            "gemma3_text",
            {"model.embed_tokens": Setting(6, 16, 0, 16)},
            "`transformers` alone does not read these files",
        ),
    ],
)
def test_code_of_the_readme_loads_the_model(
    options: Make,
    decided: Callable[..., CompressResult],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    outer: dict[str, Setting],
    sentence: str,
) -> None:
    chosen = options(kind, symmetric=True)
    inventory, _ = inventory_of(chosen.model)
    result = decided(chosen, mixed(inventory) | outer)
    text = (result.out / "README.md").read_text()
    assert sentence in text
    monkeypatch.chdir(result.out)
    scope: dict[str, Any] = {}
    exec(text.partition("```python\n")[2].partition("```")[0], scope)
    decoder = Decoder(open_checkpoint(result.out))
    factors = split_factors(decoder.inventory, adapter_factors(result.out, result.out / "factors"), "out")
    ids = torch.arange(40, 70)[None]
    with torch.no_grad(), decoder.weights.whole(factors) as whole:
        ours = whole(input_ids=ids).logits
        theirs = scope["model"].eval()(input_ids=ids).logits
    assert float((ours - theirs).abs().max()) <= PEFT_LOGITS
