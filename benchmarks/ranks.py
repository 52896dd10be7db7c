"""Ranks under a budget for a model of many modules: the library's backends against sorting everything, and a heap.

The baseline is what one would write in torch, and what PEFT's EVA does to redistribute ranks: put the values of all
modules into one list, sort it, take the first. Here the list holds the error removed per price, costs differ, and the
purchase stops at the first unit that the budget does not cover. The heap is the textbook greedy in plain Python.
All of them compute clause K-5, so the ranks must be equal, ties included; no allocation is below the bound of K-8.
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

SHAPES = ((4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), (14336, 4096), (14336, 4096), (4096, 14336))


def model(modules: int, values: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Spectra with the shapes of a decoder block, over three decades of size and from steep to flat; some twice."""
    rng = np.random.default_rng(0)
    decay = rng.uniform(0.002, 0.08, (modules, 1))
    spectra = np.exp(-np.arange(values) * decay) * rng.lognormal(sigma=1.5, size=(modules, 1))
    spectra[modules // 2 :: 50] = spectra[0]  # ties
    shapes = np.array([SHAPES[j % 7] for j in range(modules)])
    cost, low, high = shapes.sum(axis=1), np.full(modules, 4), np.full(modules, values)
    importance = rng.lognormal(size=modules)
    whole = (x.astype(np.int32) for x in (cost, low, high))
    return spectra.astype(np.float32), importance.astype(np.float32), *whole  # type: ignore[return-value]


def by_sorting(
    spectra: torch.Tensor, importance: torch.Tensor, cost: torch.Tensor, low: torch.Tensor, high: torch.Tensor,
    *, budget: int,
) -> torch.Tensor:  # fmt: skip
    """All units in one sorted list, bought from its head."""
    modules, values = spectra.shape
    ratio = importance.double()[:, None] * spectra.double().square() / cost[:, None]
    position = torch.arange(values)
    offered = (position >= low[:, None]) & (position < high[:, None]) & (ratio > 0)
    owner = torch.arange(modules)[:, None].expand(-1, values)[offered]
    order = torch.sort(ratio[offered], descending=True, stable=True).indices
    spent = torch.cumsum(cost.long()[owner[order]], dim=0)
    fits = spent <= budget - int((cost.long() * low).sum())
    return (low + torch.bincount(owner[order[fits]], minlength=modules)).int()


def by_heap(
    spectra: np.ndarray, importance: np.ndarray, cost: np.ndarray, low: np.ndarray, high: np.ndarray, *, budget: int
) -> np.ndarray:
    """The best unit of every module in a heap; buy the best of all, put its successor in."""
    ratio = importance.astype(np.float64)[:, None] * spectra.astype(np.float64) ** 2 / cost[:, None]
    table, price, ranks, top = (x.tolist() for x in (ratio, cost, low, high))
    left = budget - sum(p * r for p, r in zip(price, ranks, strict=True))
    heap = [(-table[j][r], j) for j, r in enumerate(ranks) if r < top[j]]
    heapq.heapify(heap)
    while heap:
        gain, j = heap[0]
        if gain == 0 or price[j] > left:
            break
        ranks[j] += 1
        left -= price[j]
        if ranks[j] < top[j]:
            heapq.heapreplace(heap, (-table[j][ranks[j]], j))
        else:
            heapq.heappop(heap)
    return np.asarray(ranks, np.int32)


def gate(results: dict[str, Any], *, problem: tuple[Any, ...], budget: int) -> dict[str, float]:
    """Every rank equal, the budget kept, and the error left beside the bound and beside equal ranks."""
    spectra, importance, cost = problem[:3]
    base = np.asarray(next(iter(results.values())))
    for name, ranks in results.items():
        assert np.array_equal(np.asarray(ranks), base), f"{name}: {np.sum(np.asarray(ranks) != base)} ranks differ"
    spent = int(cost.astype(np.int64) @ base)
    assert spent <= budget, f"{spent} spent of {budget}"
    numba = lowbit.load("numba")
    left = numba.allocation_objective(spectra, importance, base)
    uniform = np.full(len(cost), budget // int(cost.astype(np.int64).sum()), np.int32)
    return {
        "error left / bound - 1": left / numba.allocation_bound(*problem, budget=budget) - 1,
        "error left / with equal ranks": left / numba.allocation_objective(spectra, importance, uniform),
        "share of the budget spent": spent / budget,
    }


def cases(*, quick: bool) -> Iterator[Case]:
    """Modules of about forty large language models at once; a tenth of them for the quick run."""
    modules, values = (1_000 if quick else 10_000), 256
    problem = model(modules, values)
    budget = 64 * int(problem[2].astype(np.int64).sum())
    tensors = [torch.from_numpy(x) for x in problem]
    numba, own = lowbit.load("numba"), lowbit.load("torch")
    yield Case(
        name=f"greedy, {modules} modules of {values} values, mean rank 64",
        baseline="one sorted list, torch",
        contenders={
            "one sorted list, torch": partial(by_sorting, *tensors, budget=budget),
            "heap, Python": partial(by_heap, *problem, budget=budget),
            "numba": partial(numba.allocate_greedy, *problem, budget=budget),
            "torch": partial(own.allocate_greedy, *tensors, budget=budget),
        },
        gate=partial(gate, problem=problem, budget=budget),
        repeats=5,
        note="Goal: under a second.",
        memory=True,
    )
