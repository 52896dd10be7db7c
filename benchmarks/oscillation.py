"""StatsQ forward and backward, and what annealing and tracking make of an optimizer step.

By hand StatsQ is a chain of elementwise operations with a straight-through line at its end; the wanted ratio is at
least 2. A whole step of annealing is the mask, AdamW under it, the codes and the tracker: the wanted cost is at most
1.2 steps of torch's AdamW, which is shown with its defaults and fused. It is taken in three ways: by operations that
give back fresh arrays, in place behind torch's optimizer, and in place with the optimizer inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import Case

import lowbit
from lowbit.accel.numba_cpu.annealing import AnnealedAdamW, OscillationTracker
from lowbit.conformance.compare import gamma, unit_roundoff
from lowbit.nn import StatsQLinear

BITS = 2
N = 2 ** (BITS - 1)
U = unit_roundoff("float32")
RATES: dict[str, float] = {"lr": 1e-5, "decay": 0.05}  # a rate of annealing: weights stay near their threshold
STEPS = 5  # taken before anything is timed


def by_hand(w: torch.Tensor, grad: torch.Tensor) -> tuple[Any, Any]:
    """Values and gradient, formulas written out."""
    leaf = w.detach().requires_grad_()
    scale = (2 * leaf.abs().mean(dim=1, keepdim=True)).detach()
    clipped = (leaf / scale).clamp(-1, 1 - 1e-6)
    values = scale * ((torch.round(clipped * N - 0.5) + 0.5) / N)
    y = values.detach() - leaf.detach() + leaf
    y.backward(grad)
    return y.detach(), leaf.grad


def by_layer(layer: StatsQLinear, grad: torch.Tensor) -> tuple[Any, Any]:
    """The layer's weight and its gradient."""
    layer.weight.grad = None
    values = layer.quantized_weight()
    values.backward(grad)
    return values.detach(), layer.weight.grad


def by_numba(ops: Any, w: np.ndarray, grad: np.ndarray) -> tuple[Any, Any]:
    """One call for each direction."""
    return ops.statsq(w, bits=BITS).values, ops.statsq_grad(w, grad, bits=BITS)


def gate_statsq(results: dict[str, Any], *, w: np.ndarray, grad: np.ndarray) -> dict[str, float]:
    """Clauses O-1 to O-3: the value of the nearest level, up to weights next to a threshold."""
    exact = w.astype(np.float64)
    scale = 2 * np.abs(exact).mean(axis=1, keepdims=True)
    v = N * exact / scale
    values = scale * (np.clip(np.floor(v), -N, N - 1) + 0.5) / N
    sure = np.abs(v - np.round(v)) > gamma(w.shape[1] + 5, U) * (np.abs(v) + 1)
    figures = {}
    for name, (found, slope) in results.items():
        off = float((np.abs(np.asarray(found, np.float64) - values) / scale)[sure].max())
        assert off <= gamma(w.shape[1] + 8, U), f"{name}: values are off by {off:.3g} of the scale"
        assert (np.asarray(slope) == grad).all(), f"{name}: wrong gradient"
        figures[f"{name}: error / scale"] = off
    return figures


def adamw(optimizer: torch.optim.Optimizer) -> None:
    """A step of torch's."""
    optimizer.step()


def torch_adamw(w: np.ndarray, slope: torch.Tensor, **options: Any) -> tuple[np.ndarray, torch.optim.Optimizer]:
    """A weight as NumPy sees it, and its optimizer."""
    parameter = torch.nn.Parameter(torch.from_numpy(w.copy()))
    parameter.grad = slope.clone()
    optimizer = torch.optim.AdamW([parameter], lr=RATES["lr"], weight_decay=RATES["decay"], **options)
    return parameter.detach().numpy(), optimizer


def annealed(ops: Any, w: np.ndarray, grad: np.ndarray, moments: tuple[np.ndarray, ...], state: Any) -> tuple[Any, ...]:
    """Mask, step, codes, tracker."""
    active = ops.cga_mask(w, bits=BITS)
    after = ops.cga_step(w, grad, *moments, active, step=3, **RATES)
    tracked = ops.track_oscillation(ops.statsq(after.weight, bits=BITS).codes, *state)
    return active, after, tracked


class Behind:
    """torch's AdamW, and the tracker after it."""

    def __init__(self, optimizer: torch.optim.Optimizer, tracker: OscillationTracker) -> None:
        self.optimizer, self.tracker = optimizer, tracker

    def __call__(self) -> tuple[np.ndarray, ...]:
        """One step: the old mask and what is new."""
        active = self.tracker.active
        self.optimizer.step()
        self.tracker.step()
        return self.tracker.weight, self.tracker.codes, active


def in_place(annealed: AnnealedAdamW, grads: tuple[np.ndarray, ...]) -> AnnealedAdamW:
    """One step; gradients push there and back, as around a threshold."""
    annealed.step(grads[annealed.steps % 2])
    return annealed


def replayed(w: np.ndarray, grads: tuple[np.ndarray, ...], steps: int) -> tuple[Any, ...]:
    """The same steps by operations: weight, state of the tracker, next mask."""
    ops: Any = lowbit.load("numba")
    first, second = np.zeros_like(w), np.zeros_like(w)
    state = ops.start_oscillation(ops.statsq(w, bits=BITS).codes)
    for step in range(steps):
        active = ops.cga_mask(w, bits=BITS)
        w, first, second = ops.cga_step(w, grads[step % 2], first, second, active, step=step + 1, **RATES)
        state = ops.track_oscillation(ops.statsq(w, bits=BITS).codes, *state)
    return w, state, ops.cga_mask(w, bits=BITS)


def gate_step(results: dict[str, Any], *, w: np.ndarray, grads: tuple[np.ndarray, ...]) -> dict[str, float]:
    """Frozen weights to the last bit, the others moved; codes are those of the weights; in place as by operations."""
    ops = lowbit.load("numba")
    active, after, tracked = results["numba: annealed and tracked"]
    assert after.weight[~active].tobytes() == w[~active].tobytes(), "a frozen weight moved"
    assert (after.weight[active] != w[active]).all(), "an active weight stayed"
    assert (tracked.codes == ops.statsq(after.weight, bits=BITS).codes).all(), "wrong codes"
    found = results["numba: AnnealedAdamW"]
    weight, state, mask = replayed(w, grads, found.steps)
    assert found.weight.tobytes() == weight.tobytes(), "in place: another weight"
    assert (found.codes == state.codes).all(), "in place: other codes"
    assert (found.direction == state.direction).all(), "in place: other directions"
    assert found.frequency.tobytes() == state.frequency.tobytes(), "in place: another frequency"
    assert (found.active == mask).all(), "in place: another mask"
    behind, codes, _ = results["AdamW of torch, OscillationTracker behind it"]
    still = ~ops.cga_mask(w, bits=BITS)
    assert (codes == ops.statsq(behind, bits=BITS).codes).all(), "behind torch: wrong codes"
    held = float((behind == w)[still].mean())
    assert held > 0.99, f"behind torch: only {held:.3f} of the frozen weights were held"
    return {"share of active weights": float(active.mean()), "share after some steps": float(mask.mean())}


def cases(*, quick: bool) -> Iterator[Case]:
    """One weight."""
    rows, columns = (256, 512) if quick else (2048, 2048)
    rng = np.random.default_rng(0)
    w, grad = (0.02 * rng.standard_normal((rows, columns), dtype=np.float32) for _ in range(2))
    numba = lowbit.load("numba")
    layer = StatsQLinear(columns, rows, bits=BITS, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(w))
    slope = torch.from_numpy(grad)
    yield Case(
        name=f"StatsQ of {rows} x {columns}, {BITS} bits, forward and backward",
        baseline="torch by hand",
        contenders={
            "torch by hand": partial(by_hand, torch.from_numpy(w), slope),
            "numba": partial(by_numba, numba, w, grad),
            "torch: StatsQLinear": partial(by_layer, layer, slope),
        },
        gate=partial(gate_statsq, w=w, grad=grad),
        repeats=15,
    )
    steps: dict[str, Callable[[], Any]] = {}
    for name, options in (("AdamW of torch", {}), ("AdamW of torch, fused", {"fused": True})):
        steps[name] = partial(adamw, torch_adamw(w, slope, **options)[1])
    codes = numba.statsq(w, bits=BITS).codes
    moments = (0.1 * grad, 0.001 * grad**2)
    call = partial(annealed, numba, w, grad, moments, numba.start_oscillation(codes))
    steps["numba: annealed and tracked"] = call
    for name, options in (("AdamW of torch", {}), ("AdamW of torch, fused", {"fused": True})):
        view, optimizer = torch_adamw(w, slope, **options)
        steps[f"{name}, OscillationTracker behind it"] = Behind(
            optimizer, OscillationTracker(view, bits=BITS, boundary_range=0.005)
        )
    grads = (grad, -grad)
    own = AnnealedAdamW(w.copy(), bits=BITS, **RATES)
    for _ in range(STEPS):
        in_place(own, grads)
    steps["numba: AnnealedAdamW"] = partial(in_place, own, grads)
    yield Case(
        name=f"a step on {rows} x {columns} weights, annealed and tracked",
        baseline="AdamW of torch",
        contenders=steps,
        gate=partial(gate_step, w=w, grads=grads),
        repeats=15,
        note="torch's step neither masks nor tracks",
    )
