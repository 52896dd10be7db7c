"""Second moments of inputs and gradients: those of autograd on the whole model, block by block and resumable."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_models import contents

import lowbit
from lowbit.compression.arrays import Arrays
from lowbit.compression.statistics import OuterStatistics, collect_statistics, read_gradients
from lowbit.formats.checkpoint import open_checkpoint
from lowbit.models.decoder import Decoder
from lowbit.models.policy import Unsupported
from lowbit.runs.clock import Clock
from lowbit.runs.errors import RecipeError
from lowbit.runs.folder import RunFolder

SAMPLES, LENGTH, SEED = 3, 24, 5
TOKENS = np.random.default_rng(0).integers(0, 256, (SAMPLES, LENGTH))


def collect(
    model: Path, out: Path, *, backend: str = "torch", tokens: Any = TOKENS, seed: int = SEED
) -> tuple[OuterStatistics, dict[str, tuple[torch.Tensor, torch.Tensor]], list[int]]:
    """What lies outside the blocks, C and G of every layer by full name, and the order of blocks."""
    decoder = Decoder(open_checkpoint(model))
    arrays = Arrays.load(backend, device="cpu", threads=None)
    folder = RunFolder(out, record="plan.json", last="last.json")
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    order: list[int] = []

    def visit(index: int, moments: Any) -> Any:
        order.append(index)
        for name, (c, g) in moments.items():
            found[decoder.inventory.path(index, name)] = (arrays.take(c), arrays.take(g))
        return {"layers": sorted(moments)}

    with folder.held():
        journal = folder.begin({"seed": seed})
        outer = collect_statistics(
            decoder, tokens, arrays, folder, journal, seed=seed, tell=lambda _: None, visit=visit, clock=Clock()
        )
    return outer, found, order


def whole_model(model: Path, seed: int = SEED) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Any]:
    """Sums of x xᵀ and g gᵀ by module, by autograd on the model that transformers loads."""
    net: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    net.requires_grad_(False)
    reference: Any = lowbit.load("reference")
    seen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def hook(name: str) -> Callable[[Any, Any, torch.Tensor], torch.Tensor]:
        def see(_: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            output = output if output.requires_grad else output.requires_grad_()
            output.retain_grad()
            seen.setdefault(name, []).append((args[0].detach(), output))
            return output

        return see

    kinds = (torch.nn.Linear, torch.nn.Embedding, transformers.pytorch_utils.Conv1D)
    for name, module in net.named_modules():
        if isinstance(module, kinds):
            module.register_forward_hook(hook(name))
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}
    probability: Any = 0
    for number, row in enumerate(torch.as_tensor(TOKENS)):
        seen.clear()
        logits = net(input_ids=row[None], use_cache=False).logits[0]
        labels = reference.draw_labels(logits.detach().numpy(), seed=seed, first=number * LENGTH)
        loss = torch.nn.functional.cross_entropy(logits, torch.as_tensor(labels).long(), reduction="sum")
        torch.autograd.backward(loss)
        probability = probability + logits.detach().double().softmax(-1).sum(0)
        for name, calls in seen.items():
            for x, y in calls:
                if x.is_floating_point():
                    x = x.reshape(-1, x.shape[-1]).double()
                    inputs[name] = inputs.get(name, 0) + x.T @ x
                if y.grad is not None:
                    g = y.grad.reshape(-1, y.shape[-1]).double()
                    outputs[name] = outputs.get(name, 0) + g.T @ g
    return inputs, outputs, (net, probability / TOKENS.size)


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return float((found.double() - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "gemma3_text"])
def test_moments_are_those_of_the_whole_model(tiny: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    model = tiny(kind)
    outer, found, order = collect(model, tmp_path / "out")
    inputs, outputs, (net, probability) = whole_model(model)
    assert order == [1, 0]
    assert len(found) == {"llama": 14, "gpt2": 8, "opt": 12, "gemma3_text": 14}[kind]
    for name, (c, g) in found.items():
        assert close(c * TOKENS.size, inputs[name]), name
        assert close(g * TOKENS.size, outputs[name]), name
    assert torch.allclose(outer.probability, probability, rtol=1e-5)
    assert outer.counts.tolist() == np.bincount(TOKENS.reshape(-1), minlength=264).tolist()
    assert outer.head is not None
    assert close(outer.head * TOKENS.size, inputs["lm_head"])
    name, embedding = next((n, m) for n, m in net.named_modules() if m is net.get_input_embeddings())
    scale = float(getattr(embedding, "embed_scale", 1.0))  # of the rows that are looked up
    assert close(outer.embedding * TOKENS.size, outputs[name] * scale**2)
    stored = read_gradients(tmp_path / "out", 1)
    assert {name: stored.read(name).tolist() for name in stored.entries} == {
        name: g.tolist() for name, (_, g) in found.items() if name in stored.entries
    }
    assert len(stored.entries) == len(found) // 2


def test_the_moments_predict_the_divergence_of_a_small_error(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Half of tr(G D C Dᵀ), added up over all layers and averaged over labels, against the divergence itself."""
    model = tiny()
    net: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    moments = [collect(model, tmp_path / str(seed), seed=seed)[1] for seed in range(16)]
    torch.manual_seed(0)
    errors = {name: 1e-3 * torch.randn_like(net.get_submodule(name).weight) for name in moments[0]}
    predicted = sum(
        float((g @ errors[name] @ c * errors[name]).sum()) / 2 for found in moments for name, (c, g) in found.items()
    ) / len(moments)
    rows = torch.as_tensor(TOKENS)
    with torch.no_grad():
        before = net(input_ids=rows).logits.double().log_softmax(-1)
        for name, error in errors.items():
            net.get_submodule(name).weight += error
        after = net(input_ids=rows).logits.double().log_softmax(-1)
    measured = float((before.exp() * (before - after)).sum(-1).mean())
    assert predicted == pytest.approx(measured, rel=0.2)


class Killed(BaseException):
    """The run ends here."""


def boundaries(patch: pytest.MonkeyPatch, at: int | None = None) -> list[str]:
    """Calls that change names or wait for the disk, as they come; the run ends before call number ``at``."""
    calls: list[str] = []

    def counting(name: str) -> Callable[..., Any]:
        function = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) == at:
                raise Killed
            return function(*args, **kwargs)

        return call

    for name in ("fsync", "replace", "unlink"):
        patch.setattr(os, name, counting(name))
    return calls


def kept(out: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(out).items() if not name.endswith(("holder.json", "lock"))}


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_that_was_killed_ends_with_the_same_bytes(tiny: Callable[..., Path], tmp_path: Path, step: int) -> None:
    """New directories killed everywhere, and one killed ever later; finished blocks are not computed again."""
    model = tiny()
    with pytest.MonkeyPatch.context() as patch:
        calls = boundaries(patch)
        assert collect(model, tmp_path / "whole")[2] == [1, 0]
    whole = kept(tmp_path / "whole")
    assert sorted(name for name in whole if "states" in name or "backward" in name) == []
    for at in range(2, len(calls), step):
        for out in (tmp_path / str(at), tmp_path / "again"):
            with pytest.MonkeyPatch.context() as patch:
                boundaries(patch, at if out.name != "again" else 2 * step)
                with contextlib.suppress(Killed):
                    collect(model, out)
        journal = tmp_path / str(at) / ".lowbit" / "journal.jsonl"
        done = journal.read_bytes().count(b'"visit"') if journal.exists() else 0
        assert collect(model, tmp_path / str(at))[2] == [1, 0][done:]
        assert kept(tmp_path / str(at)) == whole
    collect(model, tmp_path / "again")
    assert kept(tmp_path / "again") == whole


@pytest.mark.parametrize("name", ["gradients-00001.safetensors", "head.safetensors", "embedding.safetensors"])
def test_a_damaged_file_is_made_again(tiny: Callable[..., Path], tmp_path: Path, name: str) -> None:
    model, out = tiny(), tmp_path / "out"
    collect(model, out)
    whole = kept(out)
    (out / name).write_bytes(whole[name][:-1] + bytes([whole[name][-1] ^ 1]))
    collect(model, out)
    assert kept(out) == whole


def test_logits_that_are_not_finite_are_refused_with_their_sample(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = Decoder.logits

    def broken(self: Decoder, sample: Any, start: int, stop: int) -> torch.Tensor:
        return logits(self, sample, start, stop) * float("nan")

    monkeypatch.setattr(Decoder, "logits", broken)
    with pytest.raises(RecipeError, match="the logits are NaN or infinite in calibration sample 0"):
        collect(tiny(), tmp_path / "out")


def test_blocks_that_leave_tensors_for_others_are_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Gradients through keys and values that layers share would be missing."""
    with pytest.raises(Unsupported, match="block 0 leaves tensors for later ones"):
        collect(tiny("gemma3n_text"), tmp_path / "out")
