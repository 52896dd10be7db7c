"""Chapter K: choices under a budget. Small problems are judged by trying everything, large ones by their bound."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from lowbit.conformance import compare, strategies
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array

U64 = compare.unit_roundoff("float64")


NOT_GREEDY = (3, 8, 11, 14, 15, 17)  # seeds of markets in which the steepest steps that fit are not the best


class Market(NamedTuple):
    """Options of a few modules, and how much room there is between the cheapest and the dearest."""

    cost: Array  # int32 (J, O)
    loss: Array  # (J, O)
    budget: int


@st.composite
def markets(draw: st.DrawFn) -> Market:
    """Options that are convex or not, dominated, of equal price, free, repeated, or equally good."""
    dtype = draw(strategies.float_dtypes())
    if draw(st.booleans()):  # rates and losses of different modules, where what fits decides as much as what pays
        random = np.random.default_rng(draw(st.one_of(st.sampled_from(NOT_GREEDY), st.integers(0, 2**16))))
        cost = np.sort(random.integers(1, 40, (5, 4)), axis=1).astype(np.int32)
        loss = np.floor(4096 * np.exp2(-cost / 10) * random.uniform(0.5, 1.5, cost.shape)) / 4
        return Market(cost, loss.astype(dtype), int(random.integers(cost.min(1).sum(), cost.max(1).sum())))
    modules, options = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    high = draw(st.sampled_from([3, 12, 1000]))
    cost = np.abs(draw(strategies.integers((modules, options), high))).astype(np.int32)
    loss = np.abs(draw(strategies.integers((modules, options), draw(st.sampled_from([4, 60]))))).astype(np.float64)
    least, most = int(cost.min(1).sum()), int(cost.max(1).sum())
    budget = draw(st.one_of(st.sampled_from([least, most]), st.integers(least, most + 1)))
    return Market(cost, (loss / 4).astype(dtype), budget)


def rounding(kit: Kit, market: Market) -> float:
    """Of sums of losses, in the backend's precision and in this judge's."""
    total = float(np.sum(market.loss.astype(np.float64).max(1)))
    n = 4 * len(market.loss) + 8
    return (compare.gamma(n, kit.u(market.loss)) + compare.gamma(n, U64)) * total + kit.tiny(n)


@clause("K-12", tier="forward-error", market=markets())
def test_frontier(kit: Kit, market: Market) -> None:
    """At every price of a byte the curve touches what modules choose by themselves; its ends are the extremes."""
    cost, loss = market.cost.astype(np.float64), market.loss.astype(np.float64)
    found = kit.call("choice_frontier", market.cost, market.loss)
    kit.require(found.cost.shape == found.loss.shape and found.cost.ndim == 1, "vertices of two lengths")
    kit.require(bool(np.all(np.diff(found.cost) > 0)), "costs do not rise")
    kit.require(bool(np.all(np.diff(found.loss) < 0)), "losses do not fall")
    kit.check(compare.exact(found.cost[:1], np.array([cost.min(1).sum()]), "cost of the cheapest choices"))
    slip = rounding(kit, market)
    kit.check(compare.forward(found.loss[-1], loss.min(1).sum(), slip, "least loss"))
    for price in (0.0, *np.ldexp(1.0, np.arange(-12, 10))):
        apart = float(np.sum((loss + price * cost).min(1)))
        touched = float(np.min(found.loss + price * found.cost))
        allowed = slip + compare.gamma(8, U64) * price * float(np.sum(cost.max(1)))
        kit.check(compare.forward(touched, apart, allowed, f"least loss at the price {price}"))


def checked(kit: Kit, market: Market, **options: Any) -> tuple[Any, float]:
    """The choices, which are within the budget and cost and lose what they say; and what they lose."""
    cost, loss, budget = market
    found = kit.call("allocate_choices", cost, loss, budget=budget, **options)
    modules, count = cost.shape
    kit.require(found.choice.shape == (modules,), f"choices have shape {found.choice.shape}, expected {(modules,)}")
    kit.require(bool(np.all((found.choice >= 0) & (found.choice < count))), "a choice that is no option")
    rows = np.arange(modules)
    spent = int(cost[rows, found.choice].astype(np.int64).sum())
    kit.require(spent <= budget, f"choices cost {spent}, the budget is {budget}")
    kit.require(found.cost == spent, f"choices cost {spent}, told was {found.cost}")
    lost = float(loss[rows, found.choice].astype(np.float64).sum())
    kit.check(compare.forward(found.loss, lost, rounding(kit, market), "loss told"))
    return found, lost


@clause("K-13", tier="certificate", market=markets())
def test_least_loss(kit: Kit, market: Market) -> None:
    """No allocation within the budget loses less, all of them tried; the bound is not above the best."""
    found, lost = checked(kit, market, tolerance=0.0)
    cost, loss, budget = market.cost.astype(np.int64), market.loss.astype(np.float64), market.budget
    rows = np.arange(len(cost))
    tried = np.array(list(itertools.product(range(cost.shape[1]), repeat=len(cost))))
    sums = loss[rows, tried].sum(1)
    best = float(sums[cost[rows, tried].sum(1) <= budget].min())
    slip = rounding(kit, market)
    kit.check(compare.certificate(lost, best, slip, "loss"))
    kit.check(compare.certificate(found.lower_bound, best, slip, "lower bound"))


def crowd(seed: int, modules: int, options: int) -> Market:
    """Rates and distortions of many modules, with bumps off their hulls."""
    random = np.random.default_rng(seed)
    sizes = random.integers(50, 5000, (modules, 1))
    rate = np.sort(random.integers(1, 64, (modules, options)), axis=1)
    loss = np.exp2(-rate / 8.0) * sizes * random.lognormal(0, 1, (modules, 1)) * random.lognormal(0, 0.2, rate.shape)
    cost = (rate * sizes).astype(np.int32)
    low, high = int(cost.min(1).sum()), int(cost.max(1).sum())
    return Market(cost, loss.astype(np.float32), low + (high - low) // (2 + seed % 5))


@clause("K-13a", tier="certificate", seed=st.integers(0, 2**16), tolerance=[0.0, *strategies.TOLERANCES])
def test_many_modules(kit: Kit, seed: int, tolerance: float) -> None:
    """The bound is not above what the prices of bytes say, and the loss within the tolerance or one step of it."""
    market = crowd(seed, 120, 12)
    found, lost = checked(kit, market, tolerance=tolerance)
    loss = market.loss.astype(np.float64)
    slip = rounding(kit, market)
    frontier = kit.spec.choice_frontier(market.cost, market.loss)
    split = float(np.interp(market.budget, frontier.cost, frontier.loss))  # choices mixed: a bound of everything
    kit.check(compare.certificate(found.lower_bound, lost, slip, "lower bound"))
    kit.check(compare.certificate(split, found.lower_bound, slip, "the bound of mixed choices"))
    step = float(np.max(loss.max(1) - loss.min(1)))
    kit.check(compare.certificate(lost, split + step, slip, "loss above the bound and a step"))
    if tolerance == max(strategies.TOLERANCES):
        kit.check(compare.certificate(lost, (1 + tolerance) * found.lower_bound, slip, "loss above its tolerance"))
    best = kit.spec.allocate_choices(market.cost, market.loss, budget=market.budget, tolerance=0.0)
    kit.check(compare.certificate(found.lower_bound, best.loss, slip, "lower bound above a better allocation"))
    kit.check(compare.certificate(lost, (1 + tolerance) * best.loss, slip, "loss above a better allocation"))
