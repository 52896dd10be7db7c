"""Scale tuning and allocation: the library's backends against what one would write by hand.

The gradient of the scales is what a training step adds to the forward and backward products. By hand it comes from
autograd, through a weight that is put together from its planes in every step; here it is a signed sum. The allocation
of bits is compared with a heap of steps in plain Python.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import Case

import lowbit

GROUP = 128
BITS = 3


def by_autograd(x: torch.Tensor, delta: torch.Tensor, signs: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Gradient (m, G, q) through Ŵ = Σ ± scale, signs (m, G, g, q) held as float32."""
    leaf = scale.detach().requires_grad_()
    weight = (signs * leaf[:, :, None]).sum(-1).flatten(1)
    (x @ weight.T).backward(delta)
    assert leaf.grad is not None
    return leaf.grad


def gate_gradient(results: dict[str, Any], *, x: np.ndarray, delta: np.ndarray, signs: np.ndarray) -> dict[str, float]:
    """Against float64, relative to the sum of magnitudes of every entry: γ_n with n the terms of a sum."""
    m, groups, g, _ = signs.shape
    slope = (delta.astype(np.float64).T @ x.astype(np.float64)).reshape(m, groups, g)
    reach = (np.abs(delta.astype(np.float64)).T @ np.abs(x.astype(np.float64))).reshape(m, groups, g).sum(-1)
    exact = np.einsum("rgc,rgci->rgi", slope, signs.astype(np.float64))
    figures = {}
    allowed = (len(x) + g + 2) * 2.0**-24
    for name, found in results.items():
        worst = float((np.abs(np.asarray(found, np.float64) - exact) / reach[..., None]).max())
        assert worst <= allowed, f"{name}: error {worst:.3g} of the terms, allowed {allowed:.3g}"
        figures[f"{name}: error / terms"] = worst
    return figures


def by_heap(errors: np.ndarray, sizes: np.ndarray, budget: int) -> tuple[list[int], float]:
    """Convex errors: a heap that holds the next bit of every block; stops at the first one that does not fit."""
    level, spent = [0] * len(errors), int(sizes[:, 0].sum())
    table, cost = errors.tolist(), sizes.tolist()
    heap = [
        (-(row[0] - row[1]) / (size[1] - size[0]), j) for j, (row, size) in enumerate(zip(table, cost, strict=True))
    ]
    heapq.heapify(heap)
    while heap:
        _, j = heapq.heappop(heap)
        q = level[j]
        spent += cost[j][q + 1] - cost[j][q]
        if spent > budget:
            break
        level[j] = q + 1
        if q + 2 < len(table[j]):
            slope = (table[j][q + 1] - table[j][q + 2]) / (cost[j][q + 2] - cost[j][q + 1])
            heapq.heappush(heap, (-slope, j))
    return level, sum(row[q] for row, q in zip(table, level, strict=True))


def gate_allocation(results: dict[str, Any], *, budget: int) -> dict[str, float]:
    """Within the budget, not above the heap's error, and within the bound of each other."""
    _, plain = results["heap in Python"]
    figures = {}
    for name, found in results.items():
        if name == "heap in Python":
            continue
        assert found.size <= budget, f"{name}: {found.size} above {budget}"
        assert found.error <= plain * (1 + 2.0**-30), f"{name}: error {found.error} above the heap's {plain}"
        assert found.lower_bound <= found.error * (1 + 2.0**-30), f"{name}: bound above the error"
        figures[f"{name}: error / lower bound - 1"] = found.error / found.lower_bound - 1
    return figures


def cases(*, quick: bool) -> Iterator[Case]:
    """One layer's gradient, for 256 tokens; bits for ten thousand blocks."""
    size, tokens = (512, 32) if quick else (2048, 256)
    rng = np.random.default_rng(0)
    numba, torch_ = lowbit.load("numba"), lowbit.load("torch")
    codes = rng.integers(0, 2**BITS, (size, size)).astype(np.int32)
    scale = rng.random((size, size // GROUP, BITS), dtype=np.float32)
    x, delta = (rng.standard_normal((tokens, size), dtype=np.float32) for _ in range(2))
    signs = (2 * (codes[..., None] >> np.arange(BITS) & 1) - 1).astype(np.float32)
    signs = signs.reshape(size, size // GROUP, GROUP, BITS)
    own = [torch_.asarray(a) for a in (x, delta, codes)]
    options = {"bits": BITS, "group_size": GROUP}
    yield Case(
        name=f"gradient of the scales, {size} x {size}, {BITS} bits, {tokens} tokens",
        baseline="torch autograd",
        contenders={
            "torch autograd": partial(by_autograd, *(torch.from_numpy(a) for a in (x, delta, signs, scale))),
            "numba": partial(numba.scale_grad_tokens, x, delta, codes, **options),
            "torch": partial(torch_.scale_grad_tokens, *own, **options),
        },
        gate=partial(gate_gradient, x=x, delta=delta, signs=signs),
        note="autograd also makes the forward product; its signs are held as float32, ours are bits of an integer",
        memory=True,
    )
    blocks = 1000 if quick else 10_000
    gains = -np.sort(-rng.lognormal(sigma=2.0, size=(blocks, 1)) * rng.random((blocks, 8)), axis=1)
    errors = np.cumsum(gains[:, ::-1], axis=1)[:, ::-1].copy()
    sizes = rng.integers(1, 50, (blocks, 1)) * np.arange(1, 9)
    budget = int(sizes[:, 2].sum())
    tensors = [torch_.asarray(a) for a in (errors, sizes)]
    yield Case(
        name=f"bits for {blocks} blocks of 1 to 8 bits, 3 bits on average",
        baseline="heap in Python",
        contenders={
            "heap in Python": partial(by_heap, errors, sizes, budget),
            "numba": partial(numba.allocate_bits, errors, sizes, budget=budget),
            "torch": partial(torch_.allocate_bits, *tensors, budget=budget),
        },
        gate=partial(gate_allocation, budget=budget),
    )
