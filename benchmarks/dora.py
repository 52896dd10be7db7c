"""One training step, forward and backward, of a model with the shape of SmolLM2-135M: LoRA and DoRA of PEFT, and ours.

1 × 256 tokens, rank 16, every linear layer of every block, no dropout, random weights (nothing is downloaded), B random
so that all gradients are at work. The baseline is PEFT's *LoRA*: what a magnitude costs is the question. A call does
what a training loop does: parameters change between two steps, so no norm can be reused.

The gate compares gradients: in float32 with PEFT's DoRA, in bfloat16 with those of the same layer in float32, where
ours may not be further away than PEFT's. It also weighs what autograd keeps, each storage once, parameters left out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from harness import Case
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from lowbit.nn import DoRALinear

RANK, TOKENS = 16, 256
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EQUAL = 1e-5  # float32 gradients of ours and PEFT's DoRA, relative to the largest entry of each tensor
BYTES = 1.45  # kept for the backward pass, relative to LoRA, in float32


def network(layers: int, dtype: torch.dtype) -> nn.Module:
    """The architecture of SmolLM2-135M with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    frozen: nn.Module = model.to(dtype).requires_grad_(False)
    return frozen


def with_peft(base: nn.Module, *, dora: bool) -> nn.Module:
    """PEFT's layers around the weights of ``base``, which are shared."""
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(TARGETS), use_dora=dora)
    return get_peft_model(shared(base), config)  # type: ignore[arg-type]


def shared(base: nn.Module) -> nn.Module:
    """A copy of the modules with the same parameters."""
    return copy.deepcopy(base, {id(p): p for p in base.parameters()})


def with_lowbit(base: nn.Module) -> nn.Module:
    """Our layers around the same weights."""
    model = shared(base)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if name in TARGETS and isinstance(child, nn.Linear):
                setattr(parent, name, DoRALinear(child, RANK, alpha=2 * RANK))
    return model


def factors(model: nn.Module) -> list[tuple[Tensor, ...]]:
    """A, B and, where there is one, m of every adapted layer, in the order of the model."""
    found: list[tuple[Tensor, ...]] = []
    for module in model.modules():
        if isinstance(module, DoRALinear):
            found.append((module.A, module.B, module.magnitude))
        elif hasattr(module, "lora_A") and hasattr(module, "lora_magnitude_vector"):
            adapter: Any = module
            parts = [adapter.lora_A["default"].weight, adapter.lora_B["default"].weight]
            found.append((*parts, *(v.weight for v in adapter.lora_magnitude_vector.values())))
    return found


def fill(model: nn.Module, spread: float = 0.01) -> nn.Module:
    """The same random A, B in every model, and a magnitude that has moved."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for a, b, *rest in factors(model):
            a.copy_(torch.randn(a.shape, generator=generator) / a.shape[1] ** 0.5)
            b.copy_(spread * torch.randn(b.shape, generator=generator))
            stretch = 1 + 0.05 * torch.rand(len(b), generator=generator)
            for m in rest:
                m.mul_(stretch)
    return model


def step(model: nn.Module, tokens: Tensor) -> list[tuple[Tensor, ...]]:
    """Gradients of one step."""
    for part in factors(model):
        for p in part:
            p.grad = None
            p.data.add_(0)
    model(input_ids=tokens, labels=tokens).loss.backward()
    return [tuple(p.grad for p in part if p.grad is not None) for part in factors(model)]


def kept_bytes(model: nn.Module, tokens: Tensor) -> int:
    """What the graph of a forward pass keeps, each storage once, without parameters."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def weigh(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda x: x):
        loss = model(input_ids=tokens, labels=tokens).loss
    del loss
    return sum(seen.values())


def distance(one: list[tuple[Tensor, ...]], other: list[tuple[Tensor, ...]]) -> float:
    """Largest difference over all tensors, each relative to its largest entry."""
    pairs = [(x, y) for p, q in zip(one, other, strict=True) for x, y in zip(p, q, strict=True)]
    return max(float((x.double() - y.double()).abs().max() / y.double().abs().max()) for x, y in pairs)


def angle(one: list[tuple[Tensor, ...]], other: list[tuple[Tensor, ...]]) -> float:
    """Relative Frobenius distance of all gradients together."""
    pairs = [(x, y) for p, q in zip(one, other, strict=True) for x, y in zip(p, q, strict=True)]
    square = sum(float((x.double() - y.double()).square().sum()) for x, y in pairs)
    return float((square / sum(float(y.double().square().sum()) for _, y in pairs)) ** 0.5)


def gate(
    models: dict[str, nn.Module], tokens: Tensor, truth: list[tuple[Tensor, ...]] | None, results: dict[str, Any]
) -> dict[str, float]:
    """Gradients and kept bytes."""
    kept = {name: kept_bytes(model, tokens) for name, model in models.items()}
    figures = {f"{name}: bytes kept": kept[name] / kept["PEFT LoRA"] for name in models}
    if truth is None:
        figures["lowbit DoRA: gradient error"] = off = distance(results["lowbit DoRA"], results["PEFT DoRA"])
        assert off <= EQUAL, f"lowbit DoRA: gradients are {off:.1e} from PEFT's"
        ratio = figures["lowbit DoRA: bytes kept"]
        assert ratio <= BYTES, f"lowbit DoRA: keeps {ratio:.2f} times the bytes of LoRA"
    else:
        for name in ("PEFT DoRA", "lowbit DoRA"):
            figures[f"{name}: gradient error"] = angle(results[name], truth)
        off, theirs = figures["lowbit DoRA: gradient error"], figures["PEFT DoRA: gradient error"]
        assert off <= 1.1 * theirs, f"lowbit DoRA: gradients are {off:.2e} from float32, PEFT's {theirs:.2e}"
    return figures


def cases(*, quick: bool) -> Iterator[Case]:
    """float32 and bfloat16; ``quick`` takes 2 blocks instead of 30."""
    layers = 2 if quick else 30
    tokens = torch.randint(0, 49152, (1, TOKENS), generator=torch.Generator().manual_seed(2))
    for dtype in (torch.float32, torch.bfloat16):
        base = network(layers, dtype)
        models = {
            "PEFT LoRA": fill(with_peft(base, dora=False)),
            "PEFT DoRA": fill(with_peft(base, dora=True)),
            "lowbit DoRA": fill(with_lowbit(base)),
        }
        truth = None
        if dtype != torch.float32:
            exact = fill(with_lowbit(copy.deepcopy(base).float()))
            with torch.no_grad():  # the magnitudes of the half-precision model
                for part, own in zip(factors(exact), factors(models["lowbit DoRA"]), strict=True):
                    part[2].copy_(own[2])
            truth = step(exact, tokens)
        yield Case(
            name=f"step {str(dtype).removeprefix('torch.')} {layers} blocks 1x{TOKENS} rank {RANK}",
            baseline="PEFT LoRA",
            contenders={name: partial(step, model, tokens) for name, model in models.items()},
            gate=partial(gate, models, tokens, truth),
            repeats=7,
            note=f"float32 gradients within {EQUAL:g} of PEFT's DoRA, bfloat16 ones as close to float32 as PEFT's",
        )
