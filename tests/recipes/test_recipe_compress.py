"""End to end on tiny models: what is written is what was computed, for every architecture and for every reader."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import contents, save_tiny

from lowbit.compression.readme import readme
from lowbit.formats.checkpoint import open_checkpoint
from lowbit.formats.packed.compressed_tensors import unpack_module
from lowbit.formats.peft import read_adapter
from lowbit.formats.safetensors_file import SafetensorsFile
from lowbit.models.adapters import split_factors
from lowbit.models.decoder import Decoder
from lowbit.models.taps import collect_inputs
from lowbit.recipes.compress import compress
from lowbit.recipes.options import CompressOptions
from lowbit.report.schema import load_schema, problems
from lowbit.runs.errors import RecipeError
from lowbit.runs.events import BlockDone, Event, Finished, ModuleDone, Note, Started, Step

Make = Callable[..., CompressOptions]

# Logits of the tiny models stay below 32 and are sums of a few hundred products in float32, u = 2^-24: the bound that
# the project promises for an adapter served by PEFT.
PEFT_LOGITS = 1e-5

KINDS = ("llama", "qwen2", "qwen3", "mistral", "phi", "opt", "gpt2", "gemma3_text")


def load(out: Path, record: dict[str, Any]) -> Any:
    """The directory through transformers, as its README says."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    extra = (
        {"quantization_config": CompressedTensorsConfig(dequantize=True)} if record["loads_with"]["dequantize"] else {}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries; what matters here is what they load
        return AutoModelForCausalLM.from_pretrained(out, dtype="auto", **extra).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_transformers_loads_the_directory_to_the_last_bit(options: Make, kind: str, symmetric: bool) -> None:
    result = compress(options(kind, symmetric=symmetric))
    checkpoint = open_checkpoint(result.out)
    model = load(result.out, result.record)
    ids = torch.arange(40, 60)[None]
    with torch.no_grad():
        ours = model(input_ids=ids).logits  # also unpacks what is unpacked on use
    state = model.state_dict()
    for module in result.record["modules"]:
        weight = checkpoint.read(module["name"] + ".weight")
        assert torch.equal(state[module["name"] + ".weight"], weight), module["name"]
    dense = open_checkpoint(options(kind).model)
    for name in set(checkpoint.names()) - {module["name"] + ".weight" for module in result.record["modules"]}:
        assert torch.equal(checkpoint.read(name), dense.read(name)), name
    assert torch.isfinite(ours).all()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_peft_gives_the_logits_of_our_own_sum(options: Make, kind: str) -> None:
    from peft import PeftModel

    result = compress(options(kind))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(load(result.out, result.record), result.out / "adapter")
    decoder = Decoder(open_checkpoint(result.out))
    factors = split_factors(decoder.inventory, read_adapter(result.out / "adapter").factors, "out")
    ids = torch.arange(40, 70)[None]
    with torch.no_grad(), decoder.weights.whole(factors) as whole:
        ours = whole(input_ids=ids).logits
        theirs = model(input_ids=ids).logits
        with model.disable_adapter():
            bare = model(input_ids=ids).logits
    assert float((ours - theirs).abs().max()) <= PEFT_LOGITS
    assert float((bare - theirs).abs().max()) > 100 * PEFT_LOGITS  # the adapter does something


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_those_of_transformers(tiny: Callable[..., Path], kind: str) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny(kind)
    decoder = Decoder(open_checkpoint(folder))
    ids = np.arange(30, 54)
    with decoder.weights.outer(head=False):
        (sample,) = decoder.embed([ids])
    for index in range(len(decoder.inventory.blocks)):
        with decoder.weights.block(index):
            decoder.advance(index, [sample])
    with decoder.weights.outer(head=True):
        pieces = [decoder.logits(sample, start, min(start + 7, len(ids))) for start in range(0, len(ids), 7)]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(input_ids=torch.as_tensor(ids)[None]).logits[0]
    # The same float32 operations in pieces of seven rows: sums over at most 64 terms may be ordered otherwise.
    torch.testing.assert_close(torch.cat(pieces), expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": 2, "group_size": 0},
        {"bits": 8, "symmetric": True, "compensate": "none"},
        {"bits": 4, "quantizer": "gptq"},
        {"bits": 5},
        {"bits": 6, "quantizer": "gptq", "symmetric": True},
        {"bits": 4, "quantizer": "gptq", "act_order": False},
        {"bits": 3, "quantizer": "gptq", "static_groups": False, "compensate": "svd"},
        {"bits": 3, "clip_search": True, "compensate": "act-svd"},
        {"bits": 3, "adapter_bits": 4},
        {"bits": 2, "rounds": 3},
        {"bits": 4, "sparsity": "2:4"},
        {"bits": 4, "sparsity": "2:4", "quantizer": "gptq"},
        {"bits": 4, "sparsity": "2:4", "pruner": "wanda"},
        {"bits": 4, "sparsity": "2:4", "pruner": "wanda", "quantizer": "gptq", "symmetric": True},
        {"bits": 16, "sparsity": "2:4"},
        {"bits": 2, "quantizer": "gptq", "rounds": 2},
        {"bits": 3, "quantizer": "gptq", "adapter_aware": False},
        {"bits": 4, "dtype": "bfloat16"},
        {"bits": 4, "dtype": "float16", "sampling": "random", "seed": 7},
    ],
    ids=lambda changes: " ".join(f"{key}={value}" for key, value in changes.items()),
)
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_every_option_gives_a_directory_that_loads(options: Make, backend: str, changes: dict[str, Any]) -> None:
    chosen = options(backend=backend, **changes)
    result = compress(chosen)
    record = result.record
    assert json.loads((result.out / "lowbit.json").read_text()) == record
    model = load(result.out, record)
    checkpoint = open_checkpoint(result.out)
    for module in record["modules"]:
        weight = checkpoint.read(module["name"] + ".weight")
        if chosen.sparsity:
            tuples = (weight == 0).reshape(weight.shape[0], -1, 4).sum(-1)
            assert int(tuples.min()) >= 2, module["name"]
        if chosen.compensate == "eora" and not chosen.adapter_bits:
            assert module["relative_error_after"] <= module["relative_error_before"]
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=torch.arange(20)[None]).logits).all()
    assert (result.out / "adapter").exists() == (chosen.compensate != "none")
    assert not (result.out / ".lowbit").exists()


def test_stored_errors_are_those_of_the_stored_numbers(options: Make) -> None:
    """The objective in the record, recomputed from the files and fresh statistics of the first block."""
    chosen = options()
    result = compress(chosen)
    dense, stored = open_checkpoint(chosen.model), open_checkpoint(result.out)
    decoder = Decoder(dense)
    from lowbit.data.text import load_rows

    rows = load_rows(chosen.calibration, dense.tokenizer(), samples=3, length=24).ids
    inputs: dict[str, list[torch.Tensor]] = {}
    with decoder.weights.outer(head=False):
        samples = decoder.embed(list(rows))
    with decoder.weights.block(0):
        groups, _ = collect_inputs(
            decoder, 0, samples, lambda name, _, x: inputs.setdefault(name, []).append(x.double())
        )
    assert groups["self_attn.k_proj"] == groups["self_attn.v_proj"] == "self_attn.q_proj"
    assert groups["mlp.up_proj"] == "mlp.gate_proj"
    factors = read_adapter(result.out / "adapter").factors
    for module in result.record["modules"]:
        if module["block"] != 0:
            continue
        x = torch.cat(inputs[groups[module["name"].removeprefix("model.layers.0.")]])
        d = dense.read(module["name"] + ".weight").double() - stored.read(module["name"] + ".weight").double()
        b, a = (factor.double() for factor in factors[module["name"]])
        for patch, field in ((torch.zeros_like(d), "objective_uncompensated"), (b @ a, "objective_compensated")):
            exact = float(((d - patch) @ x.T).square().sum()) / len(x)
            assert math.isclose(module[field], exact, rel_tol=1e-5), (module["name"], field)
        assert module["optimum_lower_bound"] <= module["objective_compensated"] * (1 + 1e-6)


def test_codes_of_the_files_are_round_to_nearest(options: Make) -> None:
    """Asymmetric RTN straight from its definition, against the packed tensors."""
    chosen = options(bits=3, clip_search=False)
    result = compress(chosen)
    shard = SafetensorsFile(result.out / "model-00002-of-00003.safetensors")
    name = "model.layers.0.mlp.up_proj"
    parts = {key: shard.read(key) for key in shard.entries if key.startswith(name + ".")}
    codes, scale, zero, *_ = unpack_module(parts, bits=3, scheme="asymmetric")
    w = open_checkpoint(chosen.model).read(name + ".weight").double().reshape(64, -1, 16)
    s, z = scale.double()[..., None], zero.double()[..., None]
    assert torch.equal((w / s).round().add(z).clamp(0, 7), codes.double().reshape(w.shape))
    step = (w.amax(-1).clamp(min=0) - w.amin(-1).clamp(max=0)) / 7
    assert torch.equal(step.float(), scale)


@pytest.mark.parametrize(
    ("changes", "searched"),
    [
        ({}, True),
        ({"quantizer": "gptq"}, True),
        ({"sparsity": "2:4"}, True),
        ({"clip_search": False}, False),
        ({"compensate": "none"}, False),
        ({"compensate": "svd"}, False),
        ({"compensate": "svd", "clip_search": True}, True),
        ({"sparsity": "2:4", "quantizer": "gptq"}, False),  # one pass: there is no grid to search before it
        ({"sparsity": "2:4", "bits": 16}, False),
    ],
    ids=lambda value: " ".join(f"{key}={v}" for key, v in value.items()) if isinstance(value, dict) else "",
)
def test_clipping_is_searched_where_eora_follows(options: Make, changes: dict[str, Any], searched: bool) -> None:
    chosen = options(**changes)
    assert chosen.clips is searched
    assert chosen.signature()["clip_search"] is searched


@pytest.mark.parametrize(
    ("changes", "ordered"),
    [
        ({}, False),
        ({"quantizer": "gptq"}, True),
        ({"quantizer": "gptq", "static_groups": False}, False),
        ({"quantizer": "gptq", "act_order": False}, False),
        ({"quantizer": "gptq", "sparsity": "2:4"}, False),  # one pass from left to right
        ({"quantizer": "gptq", "sparsity": "2:4", "pruner": "wanda"}, True),
    ],
    ids=lambda value: " ".join(f"{key}={v}" for key, v in value.items()) if isinstance(value, dict) else "",
)
def test_columns_go_by_importance_where_groups_are_static(
    options: Make, changes: dict[str, Any], ordered: bool
) -> None:
    chosen = options(**changes)
    assert chosen.orders is ordered
    assert chosen.signature()["act_order"] is ordered


@pytest.mark.parametrize(
    ("changes", "aware"),
    [
        ({}, False),  # rounding to nearest weighs nothing
        ({"quantizer": "gptq"}, True),
        ({"quantizer": "gptq", "adapter_aware": False}, False),
        ({"quantizer": "gptq", "compensate": "svd"}, False),
        ({"quantizer": "gptq", "compensate": "none"}, False),
        ({"sparsity": "2:4", "bits": 16}, True),
        ({"sparsity": "2:4", "pruner": "wanda"}, True),
    ],
    ids=lambda value: " ".join(f"{key}={v}" for key, v in value.items()) if isinstance(value, dict) else "",
)
def test_compression_knows_the_adapter_where_eora_follows(options: Make, changes: dict[str, Any], aware: bool) -> None:
    chosen = options(**changes)
    assert chosen.aware is aware
    assert chosen.signature()["adapter_aware"] is aware


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_knowing_the_adapter_leaves_less_behind_it(options: Make, tmp_path: Path, backend: str) -> None:
    """More error than blind GPTQ before the adapter, less after it."""
    before, after = [], []
    for aware in (False, True):
        record = compress(
            options(out=tmp_path / str(aware), backend=backend, bits=3, quantizer="gptq", adapter_aware=aware)
        ).record
        before.append(sum(module["objective_uncompensated"] for module in record["modules"]))
        after.append(sum(module["objective_compensated"] for module in record["modules"]))
    assert before[1] > before[0]
    assert after[1] < after[0]


def test_the_default_is_what_it_says(options: Make, tmp_path: Path) -> None:
    """Left open, the search gives the bytes of the option that it stands for, and its record says which one."""
    for compensate, searched in (("eora", True), ("none", False)):
        files = []
        for clip_search in (None, searched, not searched):
            out = tmp_path / f"{compensate} {clip_search}"
            result = compress(options(out=out, compensate=compensate, clip_search=clip_search))
            files.append((out / "model-00002-of-00003.safetensors").read_bytes())
            assert result.record["options"]["clip_search"] is (searched if clip_search is None else clip_search)
        assert files[0] == files[1] != files[2]


def test_backends_agree(options: Make, tmp_path: Path) -> None:
    reference = compress(options(out=tmp_path / "a", quantizer="gptq")).record
    fast = compress(options(out=tmp_path / "b", quantizer="gptq", backend="torch")).record
    for left, right in zip(reference["modules"], fast["modules"], strict=True):
        # float32 against float64: codes at a tie may differ, errors hardly
        assert math.isclose(left["relative_error_after"], right["relative_error_after"], rel_tol=0.05), left["name"]


def test_same_inputs_same_bytes(options: Make, tmp_path: Path, text: Path) -> None:
    evaluated = {"evaluate": str(text), "evaluate_tokens": 48, "evaluate_length": 24}
    first = compress(options(out=tmp_path / "one", **evaluated))
    second = compress(options(out=tmp_path / "another name", **evaluated))
    assert contents(first.out) == contents(second.out)
    everything = b"".join(contents(first.out).values())
    assert str(tmp_path).encode() not in everything


def test_sequential_calibration_sees_the_compressed_model(options: Make, tmp_path: Path) -> None:
    """Statistics of block 1 come from the compensated block 0, so another rank there changes block 1's input norms."""
    low = compress(options(out=tmp_path / "a", bits=2, rank=1)).record["modules"]
    high = compress(options(out=tmp_path / "b", bits=2, rank=16)).record["modules"]
    norms = [
        [module["weight_norm"] for module in modules if module["name"].endswith("q_proj")] for modules in (low, high)
    ]
    assert norms[0][0] == norms[1][0]
    assert norms[0][1] != norms[1][1]


def test_more_rounds_are_never_worse(options: Make, tmp_path: Path) -> None:
    once = compress(options(out=tmp_path / "a", bits=2, rank=8)).record["modules"]
    often = compress(options(out=tmp_path / "b", bits=2, rank=8, rounds=5)).record["modules"]
    first_block = [(a, b) for a, b in zip(once, often, strict=True) if a["block"] == 0]
    assert all(b["objective_compensated"] <= a["objective_compensated"] for a, b in first_block)
    assert any(b["objective_compensated"] < a["objective_compensated"] for a, b in first_block)


def test_record_and_events(options: Make, text: Path) -> None:
    events: list[Event] = []
    result = compress(
        options(evaluate=str(text), evaluate_tokens=48, evaluate_length=24, evaluate_skip=-48), events.append
    )
    record = result.record
    assert record["schema"] == "lowbit.compress/1"
    assert not list(problems(record, load_schema()))
    assert set(record["perplexity"]) == {"base", "compressed", "compensated", "tokens", "source", "against_base"}
    assert record["perplexity"]["tokens"] == 2 * 23
    assert record["calibration"]["tokens"] == 3 * 24
    assert len(record["modules"]) == 2 * 7
    module = record["modules"][0]
    assert len(module["spectrum"]) == 32
    assert module["spectrum"] == sorted(module["spectrum"], reverse=True)
    assert set(module["energy"]) == {"1", "2", "4", "8", "16", "32"}
    tensors = sum(
        math.prod(entry.shape) * entry.dtype.itemsize
        for path in result.out.glob("*.safetensors")
        for entry in SafetensorsFile(path).entries.values()
    )
    totals = record["totals"]
    assert tensors == sum(totals["bytes"].values()) - totals["bytes"]["adapter"]
    assert totals["bytes_after"] == tensors + totals["bytes"]["adapter"]
    shipped = [*result.out.glob("*.safetensors"), *(result.out / "adapter").iterdir()]
    assert totals["bytes_shipped"] == sum(totals["shipped"].values()) == sum(path.stat().st_size for path in shipped)
    assert totals["bytes_given"] == (Path(options().model) / "model.safetensors").stat().st_size
    assert totals["bytes_16"] == 2 * record["model"]["parameters"]
    assert totals["ratio"] == totals["bytes_before"] / totals["bytes_after"]
    steps = [event.what.split()[0] for event in events if isinstance(event, Step)]
    assert steps == ["hashing", "tokenizing"]
    assert isinstance(events[len(steps)], Started)
    assert isinstance(events[-1], Finished)
    assert 0 < events[-1].evaluation == result.timings["evaluate"] < events[-1].seconds
    assert [event.index for event in events if isinstance(event, BlockDone)] == [0, 1]
    assert [event.name for event in events if isinstance(event, ModuleDone)][:2] == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.k_proj",
    ]
    assert all(json.loads(json.dumps(event.as_dict()))["event"] == type(event).__name__ for event in events)
    assert set(result.timings) >= {"read", "forward", "statistics", "quantize", "compensate", "write", "other"}


@pytest.mark.parametrize(
    "kind, symmetric, compensate, dequantize",
    [
        ("llama", False, "eora", True),  # PEFT needs dense weights beneath its layers
        ("llama", False, "none", True),  # asymmetric codes
        ("llama", True, "eora", True),
        ("llama", True, "none", False),
        ("gpt_bigcode", True, "none", True),  # its class touches the weights of packed layers while it loads
    ],
)
def test_the_readme_says_how_to_load(
    options: Make, kind: str, symmetric: bool, compensate: str, dequantize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python block of the written README runs."""
    result = compress(options(kind, symmetric=symmetric, compensate=compensate))
    readme = (result.out / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    assert ("dequantize=True" in code) is dequantize
    monkeypatch.chdir(result.out)
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(code, names)
    assert names["tokenizer"]("abc")["input_ids"]
    assert names["model"](input_ids=torch.arange(8)[None]).logits.shape == (1, 8, 264)


def test_the_readme_promises_no_adapter_that_peft_leaves_out(options: Make, tmp_path: Path) -> None:
    """PEFT renames these layers once more than their class does, and drops what it then finds no place for."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    assert "PeftModel" in readme(compress(options(symmetric=True)).record)
    out = compress(options("laguna", symmetric=True, out=tmp_path / "laguna")).out
    text = (out / "README.md").read_text()
    shared = [f"model.layers.1.mlp.shared_experts.{name}_proj" for name in ("down", "gate", "up")]
    assert "PeftModel" not in text
    assert f"PEFT leaves out the factors of {', '.join(shared)}: the one here is for `lowbit`." in text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = CompressedTensorsConfig(dequantize=True)
        model: Any = AutoModelForCausalLM.from_pretrained(out, quantization_config=config)
        model = PeftModel.from_pretrained(model, out / "adapter").base_model.model
    stored = read_adapter(out / "adapter").factors
    for name, module in model.named_modules():
        if name in stored and stored[name][0].ndim == 2:
            assert torch.equal(module.lora_B["default"].weight, stored[name][0]) is (name not in shared)


def test_every_chat_template_travels_and_is_an_input(options: Make, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = save_tiny(tmp_path / "model", "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(folder)
    name = "additional_chat_templates/tool_use.jinja"
    result = compress(options(model=str(folder)))
    assert (result.out / name).read_bytes() == (folder / name).read_bytes()
    assert AutoTokenizer.from_pretrained(result.out).chat_template == tokenizer.chat_template
    assert name in result.record["inputs"]
    assert f"  {name}\n" in (result.out / "SHA256SUMS").read_text()
    (folder / name).write_text("{{ other }}")
    with pytest.raises(RecipeError, match=rf"inputs\.{name}: other content"):
        compress(options(model=str(folder)))
    (tmp_path / "secret").write_text("s")
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(RecipeError, match="a link that leaves its directory"):
        compress(options(model=str(folder), out=tmp_path / "linked"))


@pytest.mark.parametrize(("quantizer", "aware"), [("gptq", None), ("gptq", False), ("rtn", None)])
def test_the_readme_says_which_weights_need_their_adapter(options: Make, quantizer: str, aware: bool | None) -> None:
    result = compress(options(quantizer=quantizer, adapter_aware=aware))
    told = "compressed for use with the adapter" in (result.out / "README.md").read_text()
    assert told is (quantizer == "gptq" and aware is None)


def test_gpt2_is_stored_dense_and_says_so(options: Make) -> None:
    result = compress(options("gpt2"))
    assert result.record["loads_with"]["format"] == "dense"
    assert "stored dense" in (result.out / "README.md").read_text()
    assert "quantization_config" not in json.loads((result.out / "config.json").read_text())
    assert json.loads((result.out / "adapter" / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    # dense, but every group still holds at most 2^3 values
    weight = open_checkpoint(result.out).read("transformer.h.0.mlp.c_fc.weight").T
    assert max(len(group.unique()) for row in weight for group in row.reshape(-1, 16)) <= 8


def test_a_compressed_directory_can_be_compressed_again(options: Make, tmp_path: Path) -> None:
    first = compress(options(out=tmp_path / "a", bits=4, compensate="none"))
    second = compress(options(out=tmp_path / "b", model=str(first.out), bits=4, compensate="none"))
    assert second.record["modules"][0]["relative_error_before"] < 1e-6


def test_pruning_alone_says_that_nothing_shrinks(options: Make) -> None:
    events: list[Event] = []
    result = compress(options(sparsity="2:4", bits=16), events.append)
    assert any(isinstance(event, Note) and "no file smaller" in event.message for event in events)
    assert "no file smaller" in (result.out / "README.md").read_text(encoding="utf-8")


def test_an_adapter_of_all_directions_is_said_aloud(options: Make) -> None:
    """Three tokens and rank four: GPTQ has no direction left to spare, and weighs errors as without an adapter."""
    events: list[Event] = []
    compress(options(quantizer="gptq", samples=1, length=3, backend="torch"), events.append)
    notes = [event.message for event in events if isinstance(event, Note)]
    assert len(notes) == 2
    assert all("lower rank" in note and "self_attn.q_proj" in note for note in notes)
