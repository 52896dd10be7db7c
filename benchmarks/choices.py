"""One option for every module within a budget of bytes: the library's backends against HiGHS and a hull in Python.

The exact peer is SciPy's ``milp``, which is HiGHS, on the multiple-choice knapsack as it is written; it proves its
optimum to the same tolerance. The peer of the frontier is a lower convex hull per module, and one sort of all steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import scipy.optimize
import scipy.sparse
import torch
from harness import Case

import lowbit

TOLERANCE = 1e-6


def model(modules: int, options: int) -> tuple[np.ndarray, np.ndarray]:
    """Bytes and losses of modules over two decades of size: what more bits cost, and what they lose."""
    rng = np.random.default_rng(0)
    size = rng.integers(1_000, 200_000, (modules, 1))
    cost = size * np.arange(2, 2 + options) + rng.integers(0, 1000, (modules, options))
    loss = rng.lognormal(sigma=1.5, size=(modules, 1)) * 4.0 ** -np.arange(options)
    return cost.astype(np.int64), (loss * rng.uniform(0.7, 1.3, (modules, options))).astype(np.float32)


def by_milp(cost: np.ndarray, loss: np.ndarray, *, budget: int) -> np.ndarray:
    """A binary variable for every option."""
    modules, options = cost.shape
    one = scipy.sparse.kron(scipy.sparse.eye(modules), np.ones((1, options)))
    found = scipy.optimize.milp(
        loss.astype(np.float64).ravel(),
        integrality=np.ones(cost.size, np.int64),
        bounds=scipy.optimize.Bounds(0, 1),
        constraints=[
            scipy.optimize.LinearConstraint(one, 1, 1),
            scipy.optimize.LinearConstraint(cost.reshape(1, -1) / budget, -np.inf, 1.0),
        ],
        options={"mip_rel_gap": TOLERANCE},
    )
    chosen: np.ndarray = np.argmax(np.reshape(np.asarray(found.x), (modules, options)), axis=1)
    return chosen


def by_hulls(cost: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower hulls by a monotone chain, in plain Python."""
    steps, first, start = [], 0.0, 0.0
    for prices, losses in zip(cost.tolist(), loss.astype(np.float64).tolist(), strict=True):
        chain: list[tuple[int, float]] = []
        for x, y in sorted(zip(prices, losses, strict=True)):
            if chain and y >= chain[-1][1]:
                continue
            while len(chain) > 1:
                (x0, y0), (x1, y1) = chain[-2:]
                if (y1 - y0) * (x - x1) < (y - y1) * (x1 - x0):
                    break
                chain.pop()
            chain.append((x, y))
        first, start = first + chain[0][0], start + chain[0][1]
        steps += [((y0 - y1) / (x1 - x0), x1 - x0, y0 - y1) for (x0, y0), (x1, y1) in itertools.pairwise(chain)]
    steps.sort(key=lambda step: -step[0])
    bought, saved = np.array([step[1] for step in steps]), np.array([step[2] for step in steps])
    return np.concatenate([[first], first + np.cumsum(bought)]), np.concatenate([[start], start - np.cumsum(saved)])


def gate_choices(results: dict[str, Any], *, cost: np.ndarray, loss: np.ndarray, budget: int) -> dict[str, float]:
    """All within the budget and as good as HiGHS; bounds below what it found."""
    rows, figures = np.arange(len(cost)), {}
    lost = {}
    for name, found in results.items():
        at = np.asarray(getattr(found, "choice", found))
        spent = int(cost[rows, at].sum())
        assert spent <= budget, f"{name}: {spent} spent of {budget}"
        lost[name] = float(loss[rows, at].astype(np.float64).sum())
        bound = float(getattr(found, "lower_bound", 0.0))
        assert bound <= lost["HiGHS"] * (1 + 1e-12), f"{name}: a bound of {bound} above {lost['HiGHS']}"
        assert lost[name] <= lost["HiGHS"] * (1 + 2 * TOLERANCE), f"{name}: loses {lost[name]}, HiGHS {lost['HiGHS']}"
        figures[f"{name}: above HiGHS"] = lost[name] / lost["HiGHS"] - 1
    return figures


def gate_frontier(results: dict[str, Any]) -> dict[str, float]:
    """The same vertices."""
    best, gaps = results["hulls, Python"], {}
    for name, found in results.items():
        assert len(found[0]) == len(best[0]), f"{name}: {len(found[0])} vertices of {len(best[0])}"
        gap = max(float(np.abs(np.asarray(x) - y).max() / y.max()) for x, y in zip(found, best, strict=True))
        assert gap <= 1e-9, f"{name}: off by {gap}"
        gaps[name] = gap
    return gaps


def cases(*, quick: bool) -> Iterator[Case]:
    """Modules of one large language model, and of about forty at once for the frontier."""
    modules = 50 if quick else 280
    cost, loss = model(modules, 7)
    budget = int(cost.min(axis=1).sum() + cost.max(axis=1).sum()) // 2
    numba, own = lowbit.load("numba"), lowbit.load("torch")
    yield Case(
        name=f"choices, {modules} modules of 7 options",
        baseline="HiGHS",
        contenders={
            "HiGHS": partial(by_milp, cost, loss, budget=budget),
            "numba": partial(numba.allocate_choices, cost, loss, budget=budget, tolerance=TOLERANCE),
            "torch": partial(
                own.allocate_choices, torch.from_numpy(cost), torch.from_numpy(loss), budget=budget, tolerance=TOLERANCE
            ),
        },
        gate=partial(gate_choices, cost=cost, loss=loss, budget=budget),
        repeats=5,
        note="All three prove their optimum to a millionth.",
    )
    cost, loss = model(1_000 if quick else 10_000, 7)
    yield Case(
        name=f"frontier, {len(cost)} modules of 7 options",
        baseline="hulls, Python",
        contenders={
            "hulls, Python": partial(by_hulls, cost, loss),
            "numba": partial(numba.choice_frontier, cost, loss),
            "torch": partial(own.choice_frontier, torch.from_numpy(cost), torch.from_numpy(loss)),
        },
        gate=gate_frontier,
        repeats=5,
    )
