"""Fake quantizers as modules: their graphs against autograd, their dtypes, and a step that nobody has set."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import lowbit  # noqa: E402
from lowbit.nn import FakeMinMax, FakeTernary, LearnedStep  # noqa: E402
from lowbit.reference.errors import SpecError  # noqa: E402

BACKEND: Any = lowbit.load("torch")


def draw(*shape: int, seed: int = 0, dtype: Any = torch.float64) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("clip", [None, 0.8])
@pytest.mark.parametrize("kind", ["ternary", "min-max"])
def test_straight_through_graphs(kind: str, clip: float | None, dtype: Any) -> None:
    layer = FakeTernary("row", clip=clip) if kind == "ternary" else FakeMinMax(4, "asymmetric", "row", clip=clip)
    x = draw(4, 16, dtype=dtype).requires_grad_()
    grad = draw(4, 16, seed=1, dtype=dtype)
    y = layer(x)
    y.backward(grad)
    options: dict[str, Any] = {} if kind == "ternary" else {"bits": 4, "scheme": "asymmetric"}
    operation = BACKEND.twn if kind == "ternary" else BACKEND.min_max
    assert y.dtype == x.grad.dtype == dtype
    assert torch.equal(y, operation(x, granularity="row", clip=clip, **options).to(dtype))
    inside = torch.ones_like(x, dtype=torch.bool) if clip is None else x.abs().double() < clip
    assert torch.equal(x.grad, grad * inside)


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("offset", [False, True])
def test_learned_steps_against_autograd(axis: int | None, offset: bool) -> None:
    """The published chain of operations with detached rounding errors, on numbers without ties, in float64 inputs."""
    x = draw(3, 5, 7).requires_grad_()
    n = 1 if axis is None else x.shape[axis]
    layer: Any = LearnedStep(
        3, axis=axis, steps=n, offset=offset, rule="min-max" if offset else "mean", count="unscaled"
    )
    y = layer(x)
    grad = draw(3, 5, 7, seed=1)
    y.backward(grad)
    shape = [n if axis is not None and i == axis % 3 else 1 for i in range(3)]
    leaves = [t.detach().double().requires_grad_() for t in (x, layer.step, layer.step * 0)]
    if offset:
        leaves[2] = layer.offset.detach().double().requires_grad_()
    tx, ts, tb = leaves[0], leaves[1].reshape(shape), leaves[2].reshape(shape)
    v = ((tx - tb) / ts).clamp(-4, 3)
    expected = ts * (v + (v.round() - v).detach()) + tb
    expected.backward(grad)
    torch.testing.assert_close(y, expected)
    found = [x.grad, layer.step.grad.double()] + ([layer.offset.grad.double()] if offset else [])
    for got, want in zip(found, leaves, strict=False):
        torch.testing.assert_close(got, want.grad, rtol=1e-6, atol=1e-5)


def test_a_step_that_nobody_set_is_refused_and_the_first_batch_sets_it() -> None:
    layer = LearnedStep(4).eval()
    with pytest.raises(SpecError, match="not been set"):
        layer(draw(4, 8))
    layer.train()(draw(4, 8))
    first = layer.step.detach().clone()
    assert bool(layer.ready)
    assert torch.equal(first.double(), BACKEND.lsq_init(draw(4, 8), bits=4).step.float().double())
    layer(draw(4, 8, seed=3))
    assert torch.equal(layer.step.detach(), first)
    again = LearnedStep(4).eval()
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(draw(2, 2)), layer(draw(2, 2)))


RANKS = """
import os, sys
import torch
from torch import distributed, nn
from lowbit.nn import LearnedStep

rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
torch.manual_seed(0)
made = torch.Generator().manual_seed(rank)
own = LearnedStep(4)
if rank == 0:
    own.initialise(torch.ones(4))  # waits for nobody
net = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(8, 8), LearnedStep(4, offset=True, rule="min-max")))
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
for _ in range(3):
    optimizer.zero_grad()
    net(torch.randn(16, 8, generator=made) * (1 + 3 * rank)).square().mean().backward()
    optimizer.step()
print(*(p.double().sum().item().hex() for p in net.parameters()))
"""


def test_ranks_start_from_one_batch(tmp_path: Path) -> None:
    """The first batch of each rank is another; steps that start apart stay apart, since gradients are shared."""
    command = [sys.executable, "-c", RANKS]
    runs = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    found = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert found[0].split()
    assert found[0] == found[1]


def test_half_precision_keeps_its_dtype_and_steps_stay_float32() -> None:
    layer: Any = LearnedStep(4, signed=False, axis=0, steps=4, rule="mean-doubled")
    x = draw(4, 8, dtype=torch.bfloat16).abs().requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16
    assert layer.step.dtype == layer.step.grad.dtype == torch.float32


def test_training_the_step_lowers_the_error() -> None:
    w = draw(8, 64, dtype=torch.float32)
    layer = LearnedStep(3, axis=0, steps=8, count="unscaled")
    errors = []
    optimizer = torch.optim.SGD(layer.parameters(), lr=2e-3)
    for _ in range(40):
        loss = (layer(w) - w).square().sum()
        errors.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert errors[-1] < 0.9 * errors[0]


def test_wrong_settings_are_refused() -> None:
    wrong: list[dict[str, Any]] = [
        {"bits": 1},
        {"bits": 4, "steps": 3},
        {"bits": 4, "count": "weights"},
        {"bits": 4, "epsilon": -1.0},
    ]
    for options in wrong:
        with pytest.raises(SpecError):
            LearnedStep(**options)
    with pytest.raises(SpecError, match="x has 5 steps, the layer 4"):
        LearnedStep(4, axis=0, steps=4)(draw(5, 2))
    for clip in (0.0, -1.0):
        with pytest.raises(SpecError):
            FakeTernary(clip=clip)
        with pytest.raises(SpecError):
            FakeMinMax(clip=clip)
