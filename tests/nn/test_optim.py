"""Annealing of torch parameters finds, bit for bit, what the operations find; and it is an optimizer like any other."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

import lowbit  # noqa: E402
from lowbit.nn import AnnealedAdamW, OscillationTracker  # noqa: E402
from lowbit.reference.errors import SpecError  # noqa: E402

ops: Any = lowbit.load("torch")
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
OPTIONS: dict[str, Any] = {"lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.05, "momentum": 0.1}


def problem(*shape: int, dtype: Any = torch.float32) -> tuple[nn.Parameter, Any]:
    """A weight with a row of zeros, and a generator for gradients."""
    made = torch.Generator().manual_seed(1)
    w = torch.randn(shape, generator=made)
    w[:1] = 0
    return nn.Parameter(w.to(dtype)), made


def steps(optimizer: Any, count: int, made: Any) -> None:
    """Gradients of one generator for all parameters."""
    for _ in range(count):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=made).to(p.dtype)
        optimizer.step()


def tracked(w: Tensor, bits: int) -> Any:
    """State of the tracker at the start, in working precision."""
    found = ops.statsq(w, bits=bits)
    return ops.start_oscillation(found.codes)._replace(frequency=torch.zeros_like(found.values))


def check(found: dict[str, Any], state: Any) -> None:
    """State of an optimizer against that of the operations."""
    assert torch.equal(found["codes"].int(), state.codes)
    assert torch.equal(found["direction"].int(), state.direction)
    assert torch.equal(found["frequency"], state.frequency)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "bits, shape, width",
    [
        (1, (5, 70), 0.1),
        (2, (7, 300), 0.01),
        (3, (3, 64), 0.5),
        (9, (4, 33), 0.2),
        (2, (301, 700), 0.05),
        (2, (0, 4), 0.1),
    ],
)
def test_an_annealed_step_is_four_operations(dtype: Any, bits: int, shape: tuple[int, int], width: float) -> None:
    p, made = problem(*shape, dtype=dtype)
    optimizer = AnnealedAdamW([p], bits=bits, boundary_range=width, **OPTIONS)
    w = p.detach().clone()
    state = tracked(w, bits)
    first = second = torch.zeros_like(state.frequency)
    turns = moved = kept = 0
    for step in range(1, 21 if p.numel() < 10000 else 6):
        active, before = ops.cga_mask(w, bits=bits, boundary_range=width), w
        steps(optimizer, 1, made)
        assert p.grad is not None
        rates = {"lr": 0.02, "beta1": 0.8, "beta2": 0.9, "epsilon": 1e-6, "decay": 0.05}
        found = ops.cga_step(w, p.grad, first, second, active, step=step, **rates)
        w, first, second = found.weight.to(dtype), found.first, found.second
        state = ops.track_oscillation(ops.statsq(w, bits=bits).codes, *state, momentum=0.1)
        assert torch.equal(p, w)
        assert optimizer.state[p]["step"] == step
        assert torch.equal(optimizer.state[p]["first"], first)
        assert torch.equal(optimizer.state[p]["second"], second)
        check(optimizer.state[p], state)
        assert torch.equal(w[~active], before[~active])
        moved, kept, turns = moved + int((w != before).sum()), kept + int((w == before).sum()), int(state.total.sum())
    assert p.numel() == 0 or (turns > 0 and moved > 0 and kept > 0)


@pytest.mark.parametrize("width", [None, 0.02, 0.3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_optimizer_is_tracked_and_held(width: float | None, dtype: Any) -> None:
    p, made = problem(31, 700, dtype=dtype)
    optimizer = torch.optim.SGD([p], lr=0.05, momentum=0.9, weight_decay=0.1)
    tracker = OscillationTracker([p], bits=2, boundary_range=width, momentum=0.1)
    w = p.detach().clone()
    state, active = tracked(w, 2), torch.ones_like(w, dtype=torch.bool)
    for _ in range(12):
        if width is not None:
            active = ops.cga_mask(w, bits=2, boundary_range=width)
            assert torch.equal(tracker.state[p]["active"], active)
        check(tracker.state[p], state)
        steps(optimizer, 1, made)
        w = torch.where(active, p.detach(), w)
        tracker.step()
        assert torch.equal(p, w)
        state = ops.track_oscillation(ops.statsq(w, bits=2).codes, *state, momentum=0.1)
    assert state.total.any()
    assert width is None or not active.all()


@pytest.mark.parametrize("dtype", DTYPES[:2])  # torch's moments of a bfloat16 weight are bfloat16
def test_without_bits_it_is_adamw_for_any_shape(dtype: Any) -> None:
    shapes = [(5,), (), (2, 3, 4), (4, 5)]
    mine, theirs = (
        [problem(*s, dtype=dtype)[0] if s else nn.Parameter(torch.tensor(0.5, dtype=dtype)) for s in shapes]
        for _ in "12"
    )
    options: dict[str, Any] = {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1}
    one = AnnealedAdamW(mine, bits=None, **options)
    two = torch.optim.AdamW(theirs, **options)
    for optimizer in (one, two):
        steps(optimizer, 10, torch.Generator().manual_seed(3))
    for p, q in zip(mine, theirs, strict=True):
        tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {}
        torch.testing.assert_close(p, q, **tolerance)
        assert set(one.state[p]) == {"step", "first", "second"}


def saved(x: Any) -> Any:
    memory = io.BytesIO()
    torch.save(x, memory)
    memory.seek(0)
    return torch.load(memory, weights_only=False)


KINDS: dict[str, Callable[[nn.Parameter], Any]] = {
    "AnnealedAdamW": lambda p: AnnealedAdamW([p], bits=9, boundary_range=0.1, **OPTIONS),
    "OscillationTracker": lambda p: OscillationTracker([p], bits=9, boundary_range=0.1, momentum=0.1),
}


def go_on(optimizer: Any, made: Any) -> Tensor:
    """Some more steps; a tracker's weights are moved by hand."""
    (p,) = optimizer.param_groups[0]["params"]
    for _ in range(3):
        noise = torch.randn(p.shape, generator=made).to(p.dtype)
        if isinstance(optimizer, OscillationTracker):
            p.data.add_(0.1 * noise)
        p.grad = noise
        optimizer.step()
    return p.detach()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), saved], ids=["deepcopy", "pickle", "save"]
)
def test_copies_train_their_own_weight(kind: str, copied: Callable[[Any], Any], dtype: Any) -> None:
    p, made = problem(6, 40, dtype=dtype)
    optimizer = KINDS[kind](p)
    go_on(optimizer, made)
    before, other = p.detach().clone(), copied(optimizer)
    moved = go_on(other, torch.Generator().manual_seed(5))
    assert torch.equal(p, before)
    assert not torch.equal(moved, before)
    assert torch.equal(go_on(optimizer, torch.Generator().manual_seed(5)), moved)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_from_a_state_dict(kind: str, dtype: Any) -> None:
    """Codes of 9 bits are more than bfloat16 holds, and torch casts state to the parameter's dtype."""
    p, made = problem(6, 40, dtype=dtype)
    optimizer = KINDS[kind](p)
    go_on(optimizer, made)
    q = nn.Parameter(p.detach().clone())
    other = KINDS[kind](q)
    other.load_state_dict(saved(optimizer.state_dict()))
    for name, x in optimizer.state[p].items():
        y = other.state[q][name]
        assert type(x) is type(y)
        assert x == y if not isinstance(x, Tensor) else (x.dtype == y.dtype and torch.equal(x, y))
    assert torch.equal(
        go_on(other, torch.Generator().manual_seed(5)), go_on(optimizer, torch.Generator().manual_seed(5))
    )
    assert optimizer.state[p]["codes"].data_ptr() != other.state[q]["codes"].data_ptr()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["gradient", "weight"])
def test_a_step_is_atomic(bad: float, where: str) -> None:
    """The last of two parameters is spoiled: the first has not moved either."""
    (p, made), q = problem(4, 8), problem(3, 5)[0]
    optimizer = AnnealedAdamW([p, q], bits=2, boundary_range=None, **OPTIONS)
    steps(optimizer, 2, made)
    for x in (p, q):
        x.grad = torch.ones_like(x)
    spoiled: Any = q.grad if where == "gradient" else q.data
    spoiled[1, 2] = bad
    weights, state = [x.detach().clone() for x in (p, q)], copy.deepcopy(optimizer.state_dict())
    with pytest.raises(SpecError, match=r"\[A-4\] .* \(1, 2\)"):
        optimizer.step()
    for x, before in zip((p, q), weights, strict=True):
        torch.testing.assert_close(x.detach(), before, rtol=0, atol=0, equal_nan=True)
    for number, values in optimizer.state_dict()["state"].items():
        for name, x in values.items():
            before = state["state"][number][name]
            assert torch.equal(x, before) if isinstance(x, Tensor) else x == before
    tracker = OscillationTracker([p], bits=2)
    codes = tracker.state[p]["codes"].clone()
    p.data[0, 0] = bad
    with pytest.raises(SpecError, match="A-4"):
        tracker.step()
    assert torch.equal(tracker.state[p]["codes"], codes)


def test_what_is_held_may_have_become_anything() -> None:
    p, _ = problem(4, 8)
    tracker = OscillationTracker([p], bits=2, boundary_range=0.0)
    assert not tracker.state[p]["active"][1:].any()
    before = p.detach().clone()
    p.data[2] = torch.nan
    tracker.step()
    assert torch.equal(p, before)


def test_groups_schedules_closures_and_scalers() -> None:
    """Annealing that starts late, a schedule of rates, biases beside weights, and a scaler that leaves steps out."""
    torch.manual_seed(0)
    net = nn.Linear(8, 4)
    groups = [{"params": [net.weight]}, {"params": [net.bias], "bits": None}]
    optimizer = AnnealedAdamW(groups, bits=2, lr=0.1, boundary_range=None)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20)
    x, y = torch.randn(32, 8), torch.randn(32, 4)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        return loss

    def train() -> list[float]:
        found = []
        for _ in range(5):
            found.append(optimizer.step(closure).item())
            schedule.step()
        return found

    first = train()
    optimizer.param_groups[0]["boundary_range"] = 0.0
    held, bias = net.weight.detach().clone(), net.bias.detach().clone()
    assert train()[0] < first[0]
    assert torch.equal(net.weight, held)
    assert not torch.equal(net.bias, bias)
    assert optimizer.param_groups[0]["momentum"] == 0.01  # that of the frequency is no business of a schedule
    scaler, before = torch.amp.GradScaler("cpu", init_scale=2.0**100), net.bias.detach().clone()
    optimizer.zero_grad()
    scaler.scale((1e10 * net(x)).square().mean()).backward()
    scaler.step(optimizer)
    assert torch.equal(net.bias, before)


def test_what_cannot_be_trained_is_refused() -> None:
    p = nn.Parameter(torch.ones(2, 4))
    wrong: list[tuple[str, Callable[[], object]]] = [
        ("O-4", lambda: OscillationTracker([nn.Parameter(torch.ones(4))], bits=2)),
        ("O-4", lambda: AnnealedAdamW([nn.Parameter(torch.ones(2, 2, 2))], bits=2, lr=0.1)),
        ("O-4", lambda: OscillationTracker([p], bits=17)),
        ("O-4", lambda: OscillationTracker([{"params": [p], "bits": None}], bits=2)),
        ("O-4", lambda: OscillationTracker([p], bits=2, momentum=0.0)),
        ("O-6", lambda: OscillationTracker([p], bits=2, boundary_range=0.6)),
        ("O-6", lambda: AnnealedAdamW([p], bits=None, lr=0.1, boundary_range=0.6)),
        ("O-7", lambda: AnnealedAdamW([p], bits=2, lr=-1.0)),
        ("O-7", lambda: AnnealedAdamW([p], bits=2, lr=0.1, betas=(0.9, 1.0))),
        ("A-4", lambda: OscillationTracker([nn.Parameter(torch.full((1, 2), torch.inf))], bits=2)),
    ]
    for clause, make in wrong:
        with pytest.raises(SpecError, match=rf"\[{clause}\]"):
            make()
    optimizer = AnnealedAdamW([p], bits=2, lr=0.1)
    with pytest.raises(SpecError, match=r"\[O-4\]"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(4))]})
    assert len(optimizer.param_groups) == 1
    p.grad = torch.ones_like(p)
    optimizer.param_groups[0]["lr"] = float("inf")
    with pytest.raises(SpecError, match=r"\[O-7\]"):
        optimizer.step()
    assert not optimizer.state[p]
