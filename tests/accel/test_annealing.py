"""Tracking and annealing in place find, bit for bit, what the operations find."""

from __future__ import annotations

import copy
import importlib.util
import pickle
from typing import Any

import numpy as np
import pytest

import lowbit
from lowbit.reference.errors import SpecError

if importlib.util.find_spec("numba") is None:
    pytest.skip("needs numba", allow_module_level=True)

from lowbit.accel.numba_cpu.annealing import AnnealedAdamW, OscillationTracker

ops: Any = lowbit.load("numba")
MOMENTUM = 0.1


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit."""
    return bool(a.shape == b.shape and a.tobytes() == b.astype(a.dtype).tobytes())


def check(found: Any, state: Any, active: Any) -> None:
    """State of an object against that of the operations."""
    assert (found.codes == state.codes).all()
    assert (found.direction == state.direction).all()
    assert same(found.frequency, state.frequency)
    assert same(found.active, active)


def problem(shape: tuple[int, int], dtype: Any) -> tuple[Any, Any]:
    """A weight with a row of zeros, and a generator for gradients."""
    rng = np.random.default_rng(1)
    w = rng.standard_normal(shape).astype(dtype)
    w[:1] = 0
    return w, rng


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "bits, shape, width",
    [(1, (5, 70), 0.1), (2, (7, 300), 0.01), (3, (3, 64), 0.5), (9, (4, 33), 0.2), (2, (0, 4), 0.1)],
)
def test_an_annealed_step_is_four_operations(dtype: Any, bits: int, shape: tuple[int, int], width: float) -> None:
    w, rng = problem(shape, dtype)
    options = {"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-6, "decay": 0.05}
    found = AnnealedAdamW(w.copy(), bits=bits, lr=0.02, boundary_range=width, momentum=MOMENTUM, **options)
    first, second = np.zeros_like(w), np.zeros_like(w)
    state = ops.start_oscillation(ops.statsq(w, bits=bits).codes)._replace(frequency=np.zeros_like(w))
    turns = moved = kept = 0
    for step in range(1, 31):
        active = ops.cga_mask(w, bits=bits, boundary_range=width)
        check(found, state, active)
        grad = rng.standard_normal(shape).astype(dtype)
        after = ops.cga_step(w, grad, first, second, active, step=step, lr=0.02, **options)
        before, (w, first, second) = w, after
        state = ops.track_oscillation(ops.statsq(w, bits=bits).codes, *state, momentum=MOMENTUM)
        found.step(grad)
        assert same(found.weight, w)
        assert same(found.first, first)
        assert same(found.second, second)
        moved, kept = moved + int((w != before).sum()), kept + int((w == before).sum())
        turns = int(state.total.sum())
    assert w.size == 0 or (turns > 0 and moved > 0 and kept > 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("width", [0.0, 0.125, 0.25, 0.5])
def test_edges_and_ties_are_those_of_the_operations(dtype: Any, bits: int, width: float) -> None:
    """Eighths of a step with a scale that is a power of two: thresholds are hit, and so are both ends of the range.

    A step of 1/8 for every weight at once, from a gradient of one sign without momentum, keeps them on the grid.
    """
    n = 2 ** (bits - 1)
    v = np.concatenate([np.arange(-8 * n - 8, 8 * n + 9) / 8, np.zeros(60), [22 * n - 9]])
    w = np.stack([v, -v, np.zeros_like(v)]).astype(dtype)
    assert (ops.statsq(w, bits=bits).scale[:2] == n).all()
    active = ops.cga_mask(w, bits=bits, boundary_range=width)
    state = ops.start_oscillation(ops.statsq(w, bits=bits).codes)
    annealed = AnnealedAdamW(w.copy(), bits=bits, lr=0.125, boundary_range=width, beta1=0.0, epsilon=0.0)
    tracker = OscillationTracker(w.copy(), bits=bits, boundary_range=width)
    for found in (annealed, tracker):
        assert (found.active == active).all()
        assert (found.codes == state.codes).all()
    assert (active[:2] == (np.abs(w[:2] - np.clip(np.rint(w[:2]), 1 - n, n - 1)) <= width)).all()
    annealed.step(np.ones_like(w))
    assert (annealed.weight[~active] == w[~active]).all()
    after = ops.statsq(annealed.weight, bits=bits)
    assert (annealed.codes == after.codes).all()
    assert (annealed.active == ops.cga_mask(annealed.weight, bits=bits, boundary_range=width)).all()


@pytest.mark.parametrize("width", [None, 0.02, 0.3])
def test_any_optimizer_is_tracked_and_held(width: float | None) -> None:
    """A parameter of torch, momentum and decay, and many pieces."""
    torch = pytest.importorskip("torch")
    w, rng = problem((301, 700), np.float32)
    parameter = torch.nn.Parameter(torch.from_numpy(w.copy()))
    view = parameter.detach().numpy()
    optimizer = torch.optim.SGD([parameter], lr=0.05, momentum=0.9, weight_decay=0.1)
    tracker = OscillationTracker(view, bits=2, boundary_range=width, momentum=MOMENTUM)
    state = ops.start_oscillation(ops.statsq(w, bits=2).codes)
    active = np.ones(w.shape, np.bool_)
    for _ in range(12):
        if width is not None:
            active = ops.cga_mask(w, bits=2, boundary_range=width)
        check(tracker, state, active)
        parameter.grad = torch.from_numpy(rng.standard_normal(w.shape, dtype=np.float32))
        optimizer.step()
        w = np.where(active, view, w)
        tracker.step()
        assert same(view, w)
        state = ops.track_oscillation(ops.statsq(w, bits=2).codes, *state, momentum=MOMENTUM)
    assert state.total.any()
    assert width is None or not active.all()


def test_threads_change_nothing() -> None:
    from lowbit.accel.numba_cpu._jit import limited_to

    w, rng = problem((301, 700), np.float32)
    grads = rng.standard_normal((3, *w.shape), dtype=np.float32)
    found = []
    for threads in (1, 2):
        annealed = AnnealedAdamW(w.copy(), bits=2, lr=0.01, boundary_range=0.1)
        with limited_to(threads):
            for grad in grads:
                annealed.step(grad)
        found.append((annealed.weight, annealed.frequency, annealed.active))
    assert all(same(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_train_their_own_weight(copied: Any) -> None:
    """A copy that kept a view of the old weight would train nothing, and say nothing."""
    w, rng = problem((6, 70), np.float32)
    grads = rng.standard_normal((4, *w.shape), dtype=np.float32)
    annealed = AnnealedAdamW(w, bits=2, lr=0.05, boundary_range=0.2)
    annealed.step(grads[0])
    before, other = w.copy(), copied(annealed)
    other.step(grads[1])
    assert same(w, before)
    annealed.step(grads[1])
    assert not same(w, before)
    for name in ("weight", "first", "second", "codes", "frequency", "active"):
        assert same(getattr(other, name), getattr(annealed, name))
    tracker = OscillationTracker(w, bits=2, boundary_range=0.0)
    other, before = copied(tracker), w.copy()
    other.weight += 1
    other.step()
    assert same(other.weight[1:], before[1:])
    assert same(w, before)


@pytest.mark.parametrize("where", ["gradient", "weight"])
def test_a_step_that_is_refused_has_changed_nothing(where: str) -> None:
    w, rng = problem((6, 70), np.float32)
    annealed = AnnealedAdamW(w, bits=2, lr=0.05, boundary_range=None)
    grad = rng.standard_normal(w.shape, dtype=np.float32)
    annealed.step(grad)
    (grad if where == "gradient" else w)[2, 3] = np.inf
    before = copy.deepcopy(annealed)
    with pytest.raises(SpecError, match=rf"\[A-4\] {where[:4]}.*\(2, 3\)"):
        annealed.step(grad)
    for name in ("weight", "first", "second", "codes", "frequency", "active"):
        assert same(getattr(annealed, name), getattr(before, name))
    assert annealed.steps == 1


def test_what_cannot_be_trained_in_place_is_refused() -> None:
    w = np.ones((2, 4), np.float32)
    frozen = w.copy()
    frozen.flags.writeable = False
    for bad in (w.astype(np.float16), w.astype(">f4"), w.T, frozen, w[0], w[None]):
        with pytest.raises(SpecError, match="O-4"):
            OscillationTracker(bad, bits=2)
    with pytest.raises(SpecError, match="O-4"):
        OscillationTracker(w, bits=17)
    with pytest.raises(SpecError, match="O-4"):
        OscillationTracker(w, bits=2, momentum=0.0)
    with pytest.raises(SpecError, match="O-6"):
        OscillationTracker(w, bits=2, boundary_range=0.6)
    with pytest.raises(SpecError, match="O-7"):
        AnnealedAdamW(w, bits=2, lr=-1.0)
    annealed = AnnealedAdamW(w, bits=2, lr=0.1, boundary_range=None)
    with pytest.raises(SpecError, match="O-7"):
        annealed.step(w[:1])
    annealed.lr = float("inf")
    with pytest.raises(SpecError, match="O-7"):
        annealed.step(w)
    annealed.lr = 0.1
    assert annealed.steps == 0
    with pytest.raises(SpecError, match="A-4"):
        annealed.step(np.full_like(w, np.nan))
    with pytest.raises(SpecError, match="A-4"):
        OscillationTracker(np.array([[1.0, np.inf]]), bits=2)
