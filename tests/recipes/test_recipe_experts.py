"""Mixtures of experts on tiny models: every expert for its own tokens, in files that transformers and PEFT read."""

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
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lowbit.compression.arrays import Arrays
from lowbit.compression.experts import _moments
from lowbit.formats.checkpoint import open_checkpoint
from lowbit.formats.errors import AdapterError
from lowbit.formats.peft import read_adapter
from lowbit.formats.safetensors_file import SafetensorsFile
from lowbit.formats.stacks import flatten, parameter_of, unflatten
from lowbit.models.adapters import split_factors
from lowbit.models.decoder import Decoder
from lowbit.models.taps import collect_inputs
from lowbit.recipes.compress import compress
from lowbit.recipes.options import CompressOptions
from lowbit.report.schema import load_schema, problems
from lowbit.runs.errors import RecipeError
from lowbit.runs.events import BlockResumed, Event, ModuleDone, Note, Started

Make = Callable[..., CompressOptions]

SPLIT = ("mixtral", "qwen2_moe", "qwen3_moe")  # one module an expert in files of the hub
FUSED = ("granitemoe", "gpt_oss")  # one parameter for all

# Logits of these models stay below 32 and are sums of some hundred products in float32, which transformers and PEFT
# add up in another order.
LOGITS = 1e-4


@pytest.fixture
def experts(options: Make) -> Make:
    """Quick settings for a kind of mixture."""

    def make(kind: str, **changes: Any) -> CompressOptions:
        return options(kind, **({"symmetric": True, "bits": 4, "backend": "torch"} | changes))

    return make


def load(out: Path, *, dequantize: bool) -> Any:
    """The directory through transformers, packed modules as they are or unpacked."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    extra = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_pretrained(out, dtype="auto", **extra).eval()


@pytest.mark.parametrize("kind", [*SPLIT, *FUSED])
def test_transformers_and_peft_compute_what_lowbit_does(experts: Make, kind: str) -> None:
    from peft import PeftModel

    result = compress(experts(kind))
    assert not list(problems(result.record, load_schema()))
    decoder = Decoder(open_checkpoint(result.out))
    factors = split_factors(decoder.inventory, read_adapter(result.out / "adapter").factors, "out")
    ids = torch.arange(40, 64)[None]
    with torch.no_grad():
        bare = load(result.out, dequantize=False)(input_ids=ids).logits
        model = load(result.out, dequantize=True)
        unpacked = model(input_ids=ids).logits
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            patched = PeftModel.from_pretrained(model, result.out / "adapter")(input_ids=ids).logits
        with decoder.weights.whole([{} for _ in factors]) as whole:
            torch.testing.assert_close(whole(input_ids=ids).logits, bare, atol=LOGITS, rtol=0)
            torch.testing.assert_close(whole(input_ids=ids).logits, unpacked, atol=LOGITS, rtol=0)
        with decoder.weights.whole(factors) as whole:
            torch.testing.assert_close(whole(input_ids=ids).logits, patched, atol=LOGITS, rtol=0)
    assert float((patched - bare).abs().max()) > 100 * LOGITS
    stacks = [path for block in factors for path, (b, _) in block.items() if b.ndim == 3]
    assert len(stacks) == 4


@pytest.mark.parametrize("kind", SPLIT)
def test_experts_are_packed_and_routers_stay(experts: Make, kind: str) -> None:
    chosen = experts(kind, compensate="none")
    result = compress(chosen)
    stored = {name: file for file in result.out.glob("*.safetensors") for name in SafetensorsFile(file).entries}
    dense = [name for name in stored if "experts." in name and name.endswith((".weight", "_proj"))]
    assert not dense
    assert sum(".experts." in name and name.endswith(".weight_packed") for name in stored) == 2 * 4 * 3
    before, after = open_checkpoint(chosen.model), open_checkpoint(result.out)
    gates = [name for name in before.names() if name.endswith("gate.weight")]
    assert gates
    for name in gates:
        assert torch.equal(before.read(name), after.read(name))
    config = json.loads((result.out / "config.json").read_text())["quantization_config"]
    assert [name for name in config["ignore"] if "shared_expert_gate" in name] == [
        f"model.layers.{index}.mlp.shared_expert_gate" for index in range(2) if kind == "qwen2_moe"
    ]
    assert result.record["model"]["remarks"] == []
    assert result.record["totals"]["ratio"] > 2


@pytest.mark.parametrize("kind", [*SPLIT, *FUSED])
def test_each_expert_is_better_with_its_adapter(experts: Make, kind: str) -> None:
    events: list[Event] = []
    result = compress(experts(kind, quantizer="gptq"), events.append)
    stacks = [module for module in result.record["modules"] if "experts" in module]
    assert [module["shape"][0] for module in stacks] == [4] * 4
    for module in stacks:
        pairs = zip(*(module["experts"][f"relative_error_{when}"] for when in ("before", "after")), strict=True)
        assert all(after < before for before, after in pairs)
        assert module["optimum_lower_bound"] <= module["objective_compensated"] * (1 + 1e-6)
    told = [event for event in events if isinstance(event, ModuleDone)]
    assert next(event for event in events if isinstance(event, Started)).modules == len(told)
    assert sum(".experts.3." in event.name for event in told) == 4
    assert f"its {len(told)} linear layers" in (result.out / "README.md").read_text(encoding="utf-8")


def test_what_cannot_be_packed_is_said_aloud_with_its_share(experts: Make) -> None:
    events: list[Event] = []
    result = compress(experts("granitemoe"), events.append)
    notes = [event.message for event in events if isinstance(event, Note)]
    remarks = result.record["model"]["remarks"]
    assert notes == remarks
    assert len(remarks) == 2
    stored = open_checkpoint(result.out)
    values = sum(math.prod(stored.shape(name)) for name in stored.names())
    for name, remark in zip(("gate_up_proj", "down_proj"), remarks, strict=True):
        size = sum(math.prod(m["shape"]) for m in result.record["modules"] if m["name"].endswith(f"experts.{name}"))
        assert f"experts.{name} of 2 blocks, {size / values:.1%} of all values, is stored dense" in remark
        assert remark in (result.out / "README.md").read_text(encoding="utf-8")
    for kept in result.record["model"]["kept"]:
        assert kept["name"].endswith("router.weight")
        assert math.isclose(kept["share"], math.prod(kept["shape"]) / values, abs_tol=1e-6)


class Linears(TorchFunctionMode):
    """Inputs of products with one matrix of a stack, by the stack's shape and the matrix's number."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: dict[tuple[tuple[int, ...], int], list[torch.Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear and args[1]._base is not None and args[1]._base.ndim == 3:
            key = tuple(args[1]._base.shape), args[1].storage_offset() // args[1].numel()
            self.inputs.setdefault(key, []).append(args[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "granitemoe"])
def test_inputs_of_an_expert_are_those_of_transformers(tiny: Callable[..., Path], kind: str) -> None:
    from transformers import AutoModelForCausalLM

    folder, ids = tiny(kind), np.arange(30, 70)
    decoder = Decoder(open_checkpoint(folder))
    with decoder.weights.outer(head=False):
        samples = decoder.embed([ids[:20], ids[20:]])
    with decoder.weights.block(0):
        _, routed = collect_inputs(decoder, 0, samples, lambda *_: None)
        ours = {
            ((4, *linear.shape), expert): torch.cat(list(routed[linear.name].inputs(expert, down=linear.down)))
            for linear in decoder.inventory.linears[0]
            if linear.experts
            for expert in range(4)
        }
    model: Any = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager").eval()
    del model.get_decoder().layers[1:]
    with torch.no_grad(), Linears() as seen:
        for row in (ids[:20], ids[20:]):
            model(input_ids=torch.as_tensor(row)[None])
    assert ours.keys() >= seen.inputs.keys()
    for key, rows in ours.items():
        theirs = torch.cat(seen.inputs.get(key, [rows[:0]]))
        assert len(theirs) == len(rows)
        torch.testing.assert_close(rows.T @ rows, theirs.T @ theirs, rtol=1e-4, atol=1e-4)


def test_few_tokens_shrink_towards_the_mean() -> None:
    """C' = (n C + p C_mean) / (n + p), p an eighth of the columns, and the mean where there is no token."""
    draw = torch.Generator().manual_seed(0)
    every, own = torch.randn(50, 24, generator=draw), torch.randn(9, 24, generator=draw)
    for name in ("reference", "torch", "numba"):
        arrays = Arrays.load(name, device="cpu", threads=None)
        mean = arrays.backend.moment_total(arrays.backend.moment_leaf(arrays.give(every), index=0))
        mixed, count = _moments(arrays.backend, mean, iter([own[:4], own[4:]]), arrays)
        expected = (own.double().T @ own.double() + 3 * (every.double().T @ every.double()) / 50) / 12
        torch.testing.assert_close(arrays.take(mixed.matrix).double(), expected, rtol=1e-5, atol=1e-6)
        magnitude = (own.double().abs().sum(0) + 3 * every.double().abs().mean(0)) / 12
        torch.testing.assert_close(arrays.take(mixed.magnitude).double(), magnitude, rtol=1e-5, atol=1e-6)
        assert (mixed.tokens, count) == (12, 9)
        alone, none = _moments(arrays.backend, mean, iter([own[:0]]), arrays)
        torch.testing.assert_close(arrays.take(alone.matrix), arrays.take(mean.matrix), rtol=1e-6, atol=1e-7)
        assert none == 0


def test_an_expert_without_a_token_is_compressed_too(experts: Make, tmp_path: Path) -> None:
    """Its router row is 0 between two of opposite sign, so that it never scores highest."""
    from transformers import AutoModelForCausalLM

    folder = save_tiny(tmp_path / "model", "qwen3_moe", num_experts_per_tok=1)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight[1] = -layer.mlp.gate.weight[0]
            layer.mlp.gate.weight[2:] = 0
    model.save_pretrained(folder)
    result = compress(experts("qwen3_moe", model=str(folder), quantizer="gptq"))
    for module in result.record["modules"]:
        if "experts" in module:
            tokens = module["experts"]["tokens"]
            assert tokens[2:] == [0, 0]
            assert sum(tokens) == 3 * 24
            after, before = (module["experts"][f"relative_error_{when}"] for when in ("after", "before"))
            assert 0 < after[3] < before[3] < 0.5
    assert torch.isfinite(load(result.out, dequantize=True)(input_ids=torch.arange(30, 60)[None]).logits).all()


def test_pruned_experts_are_stored_as_the_hub_has_them(experts: Make) -> None:
    result = compress(experts("mixtral", bits=16, sparsity="2:4", compensate="none", symmetric=False))
    model = load(result.out, dequantize=False)
    stack = model.state_dict()["model.layers.0.mlp.experts.gate_up_proj"]
    assert int((stack.reshape(-1, 4) == 0).sum(-1).min()) >= 2
    names = open_checkpoint(result.out).names()
    assert "model.layers.1.block_sparse_moe.experts.3.w2.weight" in names
    assert not [name for name in names if name.endswith("_proj")]


def test_zero_points_of_experts_are_refused_with_the_remedy(experts: Make) -> None:
    with pytest.raises(RecipeError, match=r"mlp\.experts\.gate_up_proj: .*no zero points: choose symmetric codes"):
        compress(experts("qwen3_moe", symmetric=False))


def test_experts_that_transformers_rebuilds_are_refused(experts: Make, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "llama4_text")
    with pytest.raises(RecipeError, match=r"puts other modules in the place of .*experts when weights are packed"):
        compress(experts("llama", model=str(folder)))
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("transposed", [False, True])
def test_factors_are_laid_out_as_peft_reads_them(transposed: bool) -> None:
    """The change of a square parameter, where a wrong order of axes would fit."""
    from peft import LoraConfig, get_peft_model

    class Experts(torch.nn.Module):
        is_transposed = transposed

        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj = torch.nn.Parameter(torch.zeros(3, 8, 8))
            self.down_proj = torch.nn.Parameter(torch.zeros(3, 8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([self.gate_up_proj, self.down_proj])

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = Experts()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.experts(x)  # type: ignore[no-any-return]

    draw = torch.Generator().manual_seed(0)
    names = ("experts.gate_up_proj", "experts.down_proj")
    factors = {n: (torch.randn(3, 8, 2, generator=draw), torch.randn(3, 2, 8, generator=draw)) for n in names}
    plain, modules, parameters = flatten(factors, ())
    assert (modules, parameters) == ([], sorted(names))
    for wrapper, (b, a) in plain.items():
        name = parameter_of(wrapper, parameters)
        b3, a3 = unflatten(name, 2, b, a)
        assert torch.equal(b3, factors[name][0])
        assert torch.equal(a3, factors[name][1])
    with pytest.raises(AdapterError, match="lowbit can tell apart"):
        parameter_of("other", parameters)
    with pytest.raises(AdapterError, match="no multiple of the rank 4"):
        unflatten("experts.down_proj", 4, *plain["experts"])
    model = get_peft_model(Model(), LoraConfig(r=2, lora_alpha=2, target_modules=[], target_parameters=parameters))
    state = {f"base_model.model.{w}.lora_{key}.default.weight": f for w, pair in plain.items() for key, f in
             zip("BA", pair, strict=True)}  # fmt: skip
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    with torch.no_grad():
        changes = model(torch.zeros(1))
    for name, change in zip(names, changes, strict=True):
        product = factors[name][0] @ factors[name][1]
        torch.testing.assert_close(change, product.mT if transposed else product)


def test_interrupted_and_continued_it_is_the_same(experts: Make, text: Path, tmp_path: Path) -> None:
    def options(name: str) -> CompressOptions:
        return experts("qwen3_moe", out=tmp_path / name, evaluate=str(text), evaluate_tokens=24, evaluate_length=24)

    def stop(event: Event) -> None:
        if isinstance(event, ModuleDone) and event.name.startswith("model.layers.1.mlp.experts.2"):
            raise KeyboardInterrupt

    compress(options("plain"))
    with pytest.raises(KeyboardInterrupt):
        compress(options("stopped"), stop)
    assert not (tmp_path / "stopped" / "config.json").exists()
    events: list[Event] = []
    compress(options("stopped"), events.append)
    assert any(isinstance(event, BlockResumed) for event in events)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "plain")
