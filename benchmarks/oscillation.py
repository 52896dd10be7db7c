"""StatsQ forward and backward, and what annealing and tracking make of an optimizer step.

By hand StatsQ is a chain of elementwise operations with a straight-through line at its end; the wanted ratio is at
least 2. A whole step of annealing is the mask, AdamW under it, the codes and the tracker: the wanted cost is at most
1.2 steps of torch's AdamW, which is shown with its defaults and fused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import Case

import lowbit
from lowbit.accel.torch_cuda.layers import StatsQLinear
from lowbit.conformance.compare import gamma, unit_roundoff

BITS = 2
N = 2 ** (BITS - 1)
U = unit_roundoff("float32")
RATES: dict[str, float] = {"lr": 1e-3, "decay": 0.05}


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


def annealed(ops: Any, w: np.ndarray, grad: np.ndarray, moments: tuple[np.ndarray, ...], state: Any) -> tuple[Any, ...]:
    """Mask, step, codes, tracker."""
    active = ops.cga_mask(w, bits=BITS)
    after = ops.cga_step(w, grad, *moments, active, step=3, **RATES)
    tracked = ops.track_oscillation(ops.statsq(after.weight, bits=BITS).codes, *state)
    return active, after, tracked


def gate_step(results: dict[str, Any], *, w: np.ndarray) -> dict[str, float]:
    """Frozen weights to the last bit, the others moved; codes are those of the weights."""
    active, after, tracked = results["numba: annealed and tracked"]
    assert after.weight[~active].tobytes() == w[~active].tobytes(), "a frozen weight moved"
    assert (after.weight[active] != w[active]).all(), "an active weight stayed"
    assert (tracked.codes == lowbit.load("numba").statsq(after.weight, bits=BITS).codes).all(), "wrong codes"
    return {"share of active weights": float(active.mean())}


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
        parameter = torch.nn.Parameter(torch.from_numpy(w.copy()))
        parameter.grad = slope.clone()
        steps[name] = partial(adamw, torch.optim.AdamW([parameter], lr=1e-3, weight_decay=0.05, **options))
    codes = numba.statsq(w, bits=BITS).codes
    moments = (0.1 * grad, 0.001 * grad**2)
    call = partial(annealed, numba, w, grad, moments, numba.start_oscillation(codes))
    steps["numba: annealed and tracked"] = call
    yield Case(
        name=f"a step on {rows} x {columns} weights, annealed and tracked",
        baseline="AdamW of torch",
        contenders=steps,
        gate=partial(gate_step, w=w),
        repeats=15,
        note="torch's step neither masks nor tracks",
    )
