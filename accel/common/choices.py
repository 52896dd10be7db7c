"""Chapter K, choices: the multiple-choice knapsack on NumPy arrays, for whatever backend.

A few thousand modules with a few dozen options are too little for a device: tensors come to the CPU and go back. All
hulls are walked at once, a step of every module at a time; the budget ends in the sorted steps; what the price of a
byte leaves open is decided by partial allocations that remember where they came from.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lowbit.reference.errors import SpecError
from lowbit.reference.types import Choices

from .refusals import check_number, check_whole

__all__ = ["Array", "check_options", "frontier", "solve"]

Array = npt.NDArray[Any]

_STATES = 2**14  # partial allocations that are kept
_BRANCHES = 2  # modules of which every option is tried


def check_options(clause: str, cost: Array, loss: Array) -> tuple[Array, Array]:
    """Prices in int64 and losses in float64, (J, O) each.

    Raises:
        SpecError: two shapes, no option, or numbers below 0.
    """
    if cost.ndim != 2 or cost.shape != loss.shape or cost.shape[1] == 0:
        raise SpecError(
            clause, f"cost and loss must have one shape (modules, options >= 1), got {cost.shape} and {loss.shape}"
        )
    for name, x in (("cost", cost), ("loss", loss)):
        if x.size and x.min() < 0:
            raise SpecError(clause, f"{name} must be >= 0, got {x.min()}")
    return cost.astype(np.int64), loss.astype(np.float64)


class _Hulls(NamedTuple):
    start: Array  # option of every module with the least cost, of those the least loss
    slope: Array  # of every step, falling: loss saved per byte
    module: Array
    option: Array


def _hulls(c: Array, l: Array) -> _Hulls:
    rows = np.arange(len(c))
    start = np.where(c == c.min(axis=1, keepdims=True), l, np.inf).argmin(axis=1)
    at, slopes, modules, options = start.copy(), [], [], []
    walking = rows
    while walking.size:
        cost, loss = c[walking], l[walking]
        here = at[walking, None]
        price = cost - np.take_along_axis(cost, here, 1)
        saved = np.take_along_axis(loss, here, 1) - loss
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = np.where((price > 0) & (saved > 0), saved / price, -1.0)
        steepest = slope.max(axis=1, keepdims=True)
        next_ = np.where(slope == steepest, price, np.iinfo(np.int64).max).argmin(axis=1)  # of equal ones the nearest
        on = steepest[:, 0] > 0
        walking = walking[on]
        at[walking] = next_[on]
        slopes.append(steepest[on, 0])
        modules.append(walking)
        options.append(next_[on])
    slope, module, option = (np.concatenate([*x, x[0][:0]]) if x else np.zeros(0) for x in (slopes, modules, options))
    order = np.lexsort((module, -slope))  # stable, so the steps of a module stay in order
    return _Hulls(start, slope[order], module[order].astype(np.int64), option[order].astype(np.int64))


def frontier(c: Array, l: Array) -> tuple[Array, Array]:
    """Cost and loss of the vertices, float64."""
    hulls = _hulls(c, l)
    rows, at = np.arange(len(c)), hulls.start.copy()
    costs, losses = [int(c[rows, at].sum())], [float(l[rows, at].sum())]
    for j, o in zip(hulls.module.tolist(), hulls.option.tolist(), strict=True):
        costs.append(costs[-1] + int(c[j, o] - c[j, at[j]]))
        losses.append(losses[-1] + float(l[j, o] - l[j, at[j]]))
        at[j] = o
    return np.array(costs, np.float64), np.array(losses, np.float64)


def solve(clause: str, c: Array, l: Array, budget: int, tolerance: float) -> Choices[Array]:
    """The best choices within the budget, and their bound."""
    check_number(clause, "tolerance", tolerance, 0.0)
    check_whole(clause, "budget", budget, 0, 2**63 - 1)
    least = int(c.min(axis=1).sum()) if len(c) else 0
    if budget < least:
        raise SpecError(clause, f"budget {budget} is below {least}, the cost of the cheapest choices")
    market = _Market(c, l, budget, _hulls(c, l))
    first = market.climb({})
    at, best, bound, byte = first.at, first.loss, first.bound, first.byte
    if best > (1 + tolerance) * bound:
        at, best, branched = market.branch({}, first, tolerance, _BRANCHES)
        gap, bound = best - bound, max(bound, branched)
        if best > (1 + tolerance) * bound:
            priced = l + byte * c
            found, complete = _decide(c, priced - priced.min(axis=1, keepdims=True), gap, byte, budget)
            if found is not None and (better := market.loss(found)) < best:
                at, best = found, better
            if complete:
                bound = best
    return Choices(at.astype(np.int32), int(c[np.arange(len(c)), at].sum()), best, min(bound, best))


class _Climb(NamedTuple):
    at: Array
    loss: float
    bound: float  # that no choice is below
    byte: float  # its price
    blocked: int  # module of the largest step that did not fit, or -1


class _Market(NamedTuple):
    c: Array
    l: Array
    budget: int
    hulls: _Hulls

    def loss(self, at: Array) -> float:
        return float(self.l[np.arange(len(at)), at].sum())

    def climb(self, fixed: dict[int, int]) -> _Climb:
        """The steps that fit, steepest first, where ``fixed`` modules have their option already."""
        rows, keys, values = np.arange(len(self.c)), list(fixed), list(fixed.values())
        at = self.hulls.start.copy()
        at[keys] = values
        room, byte, largest = self.budget - int(self.c[rows, at].sum()), 0.0, (0, -1)
        stopped: set[int] = set()
        steps = zip(self.hulls.slope.tolist(), self.hulls.module.tolist(), self.hulls.option.tolist(), strict=True)
        for slope, j, o in steps:
            if j in fixed:
                continue
            if j not in stopped:
                price = int(self.c[j, o] - self.c[j, at[j]])
                if price <= room:
                    at[j], room = o, room - price
                    continue
                largest = max(largest, (price, j))
                stopped.add(j)
            byte = max(byte, slope)
        priced = self.l + byte * self.c
        least = priced.min(axis=1)
        least[keys] = priced[keys, values]
        bound = max(0.0, float(least.sum() - byte * self.budget))
        return _Climb(at, self.loss(at), bound, byte, largest[1])

    def branch(self, fixed: dict[int, int], found: _Climb, tolerance: float, depth: int) -> tuple[Array, float, float]:
        """The best choices with every option of the module that blocks in turn, their loss and a bound."""
        at, best, j = found.at, found.loss, found.blocked
        if j < 0 or depth == 0:
            return at, best, found.bound
        priced = self.l[j] + found.byte * self.c[j]
        spent = sum(int(self.c[i, o]) for i, o in fixed.items())
        others = int(np.delete(self.c, [j, *fixed], axis=0).min(axis=1).sum())
        bound = best
        for o in np.flatnonzero(priced - priced.min() <= (best - found.bound) * (1 + 1e-9)).tolist():
            if spent + int(self.c[j, o]) + others > self.budget:
                continue
            deeper = {**fixed, j: o}
            inner = self.climb(deeper)
            tried, loss, low = inner.at, inner.loss, inner.bound
            if low < best and loss > (1 + tolerance) * low:
                tried, loss, low = self.branch(deeper, inner, tolerance, depth - 1)
            if loss < best:
                at, best = tried, loss
            bound = min(bound, low)
        return at, best, min(bound, best)


def _decide(c: Array, lost: Array, gap: float, byte: float, budget: int) -> tuple[Array | None, bool]:
    """The best allocation whose choices lose at most ``gap`` against the price, and whether none was dropped."""
    slack = gap * (1 + 1e-9) + 1e-15 * float(lost.max(initial=0.0))
    allowed = lost <= slack
    at = lost.argmin(axis=1)
    core = np.flatnonzero(allowed.sum(axis=1) > 1)
    # Modules with much to lose first: they cut most partial allocations.
    core = core[np.argsort(-np.where(allowed[core], lost[core], 0.0).max(axis=1), kind="stable")]
    room = budget - int(c[np.arange(len(c)), at].sum() - c[core, at[core]].sum())
    floor = np.where(allowed[core], c[core], np.iinfo(np.int64).max).min(axis=1, initial=np.iinfo(np.int64).max)
    after = np.concatenate([floor[::-1].cumsum()[::-1][1:], [0]])[: len(core)]
    spent, losing, complete = np.zeros(1, np.int64), np.zeros(1), True
    trail: list[tuple[Array, Array]] = []
    for j, later in zip(core.tolist(), after.tolist(), strict=True):
        mine = np.flatnonzero(allowed[j])
        cost = (spent[:, None] + c[j, mine]).ravel()
        sums = (losing[:, None] + lost[j, mine]).ravel()
        kept = np.flatnonzero((sums <= slack) & (cost <= room - later))
        kept = kept[np.lexsort((sums[kept], cost[kept]))]
        value = sums[kept] - byte * cost[kept]
        kept = kept[value < np.minimum.accumulate(np.concatenate([[np.inf], value]))[:-1]]
        if len(kept) > _STATES:
            cheap = np.sort(np.argsort(sums[kept], kind="stable")[:_STATES])  # still by rising cost
            kept, complete = kept[cheap], False
        if len(kept) == 0:
            return None, complete
        spent, losing = cost[kept], sums[kept]
        trail.append((kept // len(mine), mine[kept % len(mine)]))
    state = int(np.argmin(losing - byte * spent))
    for j, (origin, option) in zip(core[::-1].tolist(), trail[::-1], strict=True):
        at[j] = option[state]
        state = int(origin[state])
    return at, complete
