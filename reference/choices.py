"""K: one choice for every module under a budget, when a choice is more than a rank.

Bits, group size, rank and the bits of factors are decided together, so module j has a list of options, each with a
price c_jo in bytes and a loss l_jo that adds up over modules, as the divergences of chapter F do:

    min Σ_j l_j,o(j)    subject to    Σ_j c_j,o(j) ≤ P                                                (K.10)

the multiple-choice knapsack. Options need no order and no convexity. With a price λ on a byte the modules part,

    Λ(λ) = Σ_j min_o (l_jo + λ c_jo) − λ P  ≤  every loss within the budget                           (K.11)

and its maximum is found by walking the lower convex hulls of all modules together, steepest step first, until a step
does not fit. What a choice loses against the price, l_jo + λ c_jo − min_o' (l_jo' + λ c_jo'), tells how little is left
to decide: an allocation better than one in hand has no option that loses more than that one loses against (K.11).
Deliberately not here: where the losses come from. Source: Sinha and Zoltners 1979 for (K.11) and the hulls; Pisinger
1995 for deciding the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from . import checks
from .checks import F64, Array
from .errors import SpecError
from .rank_budget import I64
from .types import ChoiceFrontier, Choices

__all__ = ["allocate_choices", "choice_frontier"]

STATES = 2**14
"""Partial allocations that are kept while the rest is decided: beyond, those that lose most against the price go."""

BRANCHES = 2
"""Modules of which every option is tried: an embedding and a head take as much as a hundred other modules."""

Step = tuple[float, int, int]
"""Loss saved per byte, module, option."""


def options(cost: npt.ArrayLike, loss: npt.ArrayLike, clause: str) -> tuple[I64, F64]:
    """Prices (J, O), integers ≥ 0, and losses (J, O) ≥ 0."""
    c = checks.integers(cost, "cost", clause, ndim=2)
    l = checks.finite(loss, "loss", clause, ndim=2)
    if c.shape != l.shape or c.shape[1] == 0 or (c < 0).any() or (l < 0).any():
        raise SpecError(
            clause,
            f"cost and loss must be >= 0 and hold at least one option a module, in one shape; got {c.shape} from "
            f"{c.min(initial=0)} and {l.shape} from {l.min(initial=0.0)}",
        )
    return c, l


def walk(c: I64, l: F64) -> list[int]:
    """Options of one module along its lower convex hull, from the cheapest to the one that loses least."""
    path = [int(np.lexsort((l, c))[0])]
    while True:
        dearer = np.flatnonzero((c > c[path[-1]]) & (l < l[path[-1]]))
        if dearer.size == 0:
            return path
        slope = (l[path[-1]] - l[dearer]) / (c[dearer] - c[path[-1]])
        steepest = dearer[slope == slope.max()]
        path.append(int(steepest[np.argmin(c[steepest])]))


def steps(c: I64, l: F64) -> list[Step]:
    """All steps along the hulls, (loss saved per byte, module, option), steepest first, equal ones by lower module."""
    found = []
    for j in range(len(c)):
        path = walk(c[j], l[j])
        found += [((l[j, a] - l[j, b]) / (c[j, b] - c[j, a]), j, b) for a, b in itertools.pairwise(path)]
    return sorted(found, key=lambda step: (-step[0], step[1]))  # stable: a module's steps stay in order


def choice_frontier(cost: npt.ArrayLike, loss: npt.ArrayLike, /) -> ChoiceFrontier[Array]:
    """Least loss against cost over all budgets, where choices may be mixed: the vertices of a convex curve.  [K-12]

    Shapes: cost (J, O) integers ≥ 0, loss (J, O) ≥ 0, O ≥ 1 → cost (S,) rising and loss (S,) falling, float64: from the
    cheapest choice everywhere to the least loss. No allocation lies below the curve, (K.11), and every vertex is one.
    Modules with fewer options repeat one.

    >>> frontier = choice_frontier([[1, 2, 3], [0, 1, 1]], [[9.0, 8.0, 1.0], [4.0, 3.0, 2.0]])
    >>> frontier.cost.tolist(), frontier.loss.tolist()      # 8 at the price of 2 lies above the line from 9 to 1
    ([1.0, 3.0, 4.0], [13.0, 5.0, 3.0])
    """
    c, l = options(cost, loss, "K-12")
    at = np.array([walk(*row)[0] for row in zip(c, l, strict=True)], np.int64)
    rows = np.arange(len(c))
    costs, losses = [float(c[rows, at].sum())], [float(l[rows, at].sum())]
    for _, j, o in steps(c, l):
        at[j] = o
        costs.append(float(c[rows, at].sum()))
        losses.append(float(l[rows, at].sum()))
    return ChoiceFrontier(np.array(costs), np.array(losses))


def allocate_choices(
    cost: npt.ArrayLike, loss: npt.ArrayLike, /, *, budget: int, tolerance: float = 1e-6
) -> Choices[Array]:
    """An option for every module: least loss within the budget, with a bound that nothing within it is below.  [K-13]

    Shapes: cost and loss (J, O) as in choice_frontier, budget ≥ Σ_j min_o c_jo → choice (J,) int32, its cost and loss,
    and lower_bound ≤ every loss within the budget. It ends when loss ≤ (1 + tolerance) · lower_bound. Where that would
    take more than 2¹⁴ partial allocations the gap is left and told: it is at most one step of one module.

    >>> found = allocate_choices([[1, 2, 4], [1, 2, 4]], [[9.0, 6.0, 1.0], [9.0, 5.0, 1.0]], budget=5)
    >>> found.choice.tolist(), found.cost, found.loss, found.lower_bound
    ([2, 0], 5, 10.0, 10.0)
    """
    c, l = options(cost, loss, "K-13")
    tolerance = checks.number(tolerance, "tolerance", "K-13", low=0.0)
    least = int(c.min(axis=1).sum()) if len(c) else 0
    budget = checks.whole(budget, "budget", "K-13", low=0)
    if budget < least:
        raise SpecError("K-13", f"budget {budget} is below {least}, the cost of the cheapest choices")
    ladder = steps(c, l)
    at, λ, largest = climb(c, l, budget, ladder, {})
    best, bound = float(l[np.arange(len(c)), at].sum()), relaxed(c, l, λ, budget, {})
    if best > (1 + tolerance) * bound:
        at, best, branched = branch(c, l, budget, ladder, {}, (at, λ, largest), best - bound, tolerance, BRANCHES)
        priced = l + λ * c
        lost, bound_ = priced - priced.min(axis=1, keepdims=True), max(bound, branched)
        if best > (1 + tolerance) * bound_:
            found, complete = decide(c, lost, best - bound, λ, budget)
            if found is not None and float(l[np.arange(len(c)), found].sum()) < best:
                at, best = found, float(l[np.arange(len(c)), found].sum())
            bound_ = best if complete else bound_
        bound = bound_
    return Choices(at.astype(np.int32), int(c[np.arange(len(c)), at].sum()), best, min(bound, best))


def climb(c: I64, l: F64, budget: int, ladder: Sequence[Step], fixed: Mapping[int, int]) -> tuple[I64, float, int]:
    """The steps that fit, steepest first; the price of a byte; the module of the largest step that did not fit, or −1.

    ``fixed`` modules have their option already and take no step.
    """
    at = np.lexsort((l, c), axis=1)[:, 0]  # where every walk begins
    at[list(fixed)] = list(fixed.values())
    room = budget - int(c[np.arange(len(c)), at].sum())
    λ, stopped, largest = 0.0, np.zeros(len(c), bool), (0, -1)
    for slope, j, o in ladder:
        if j in fixed:
            continue
        price = int(c[j, o] - c[j, at[j]])
        if not stopped[j] and price <= room:
            at[j], room = o, room - price
        else:  # the first gives the price of a byte; later steps of other modules may still fit
            largest = max(largest, (0 if stopped[j] else price, j))
            λ, stopped[j] = max(λ, slope), True
    return at, λ, largest[1]


def relaxed(c: I64, l: F64, λ: float, budget: int, fixed: Mapping[int, int]) -> float:
    """(K.11), where ``fixed`` modules have one option."""
    priced = l + λ * c
    least = priced.min(axis=1)
    least[list(fixed)] = priced[list(fixed), list(fixed.values())]
    return max(0.0, float(least.sum() - λ * budget))


def branch(
    c: I64,
    l: F64,
    budget: int,
    ladder: Sequence[Step],
    fixed: Mapping[int, int],
    found: tuple[I64, float, int],
    gap: float,
    tolerance: float,
    depth: int,
) -> tuple[I64, float, float]:
    """One module whose step is far larger than all others leaves a gap: with every option of it in turn, there is none.

    Returns the best choices, their loss, and what no choice is below.
    """
    at, λ, largest = found
    best = float(l[np.arange(len(c)), at].sum())
    if largest < 0 or depth == 0:
        return at, best, best - gap
    priced = l[largest] + λ * c[largest]
    others, bound = np.delete(c, [largest, *fixed], axis=0).min(axis=1).sum(), best
    spent = sum(int(c[j, o]) for j, o in fixed.items())
    for o in np.flatnonzero(priced - priced.min() <= gap * (1 + 1e-9)):
        if spent + int(c[largest, o]) + others > budget:
            continue
        deeper = {**fixed, largest: int(o)}
        inner = climb(c, l, budget, ladder, deeper)
        tried, loss = inner[0], float(l[np.arange(len(c)), inner[0]].sum())
        low = relaxed(c, l, inner[1], budget, deeper)
        if low < best and loss > (1 + tolerance) * low:
            tried, loss, low = branch(c, l, budget, ladder, deeper, inner, loss - low, tolerance, depth - 1)
        at, best = (tried, loss) if loss < best else (at, best)
        bound = min(bound, low)
    return at, best, min(bound, best)


def decide(c: I64, lost: F64, gap: float, λ: float, budget: int) -> tuple[I64 | None, bool]:
    """The best allocation whose choices together lose at most ``gap`` against the price, and whether none was dropped.

    Partial allocations as (cost, lost so far); of two with a rising cost the dearer must have the smaller loss,
    lost − λ cost. Modules of which one option is left are decided.
    """
    slack = gap * (1 + 1e-9) + 1e-15 * float(np.abs(lost).max(initial=0.0))
    allowed = [np.flatnonzero(row <= slack) for row in lost]
    at = np.array([o[0] for o in allowed], np.int64)
    open_ = [j for j, o in enumerate(allowed) if len(o) > 1]  # the core: all else is decided
    room = budget - sum(int(c[j, o[0]]) for j, o in enumerate(allowed) if len(o) == 1)
    spent, losing, complete = np.zeros(1, np.int64), np.zeros(1), True
    chosen = np.zeros((1, len(open_)), np.int64)
    for i, j in enumerate(open_):
        options_ = allowed[j]
        cost = (spent[:, None] + c[j, options_]).ravel()
        sums = (losing[:, None] + lost[j, options_]).ravel()
        after = sum(int(c[k, allowed[k]].min()) for k in open_[i + 1 :])
        fits = np.flatnonzero((sums <= slack) & (cost + after <= room))
        order = fits[np.lexsort((sums[fits], cost[fits]))]
        value = sums[order] - λ * cost[order]
        order = order[value < np.minimum.accumulate(np.concatenate([[np.inf], value[:-1]]))]
        if len(order) > STATES:
            least = np.argsort(sums[order], kind="stable")[:STATES]
            order, complete = order[np.sort(least)], False  # still by rising cost
        spent, losing = cost[order], sums[order]
        chosen = chosen[order // len(options_)]
        chosen[:, i] = options_[order % len(options_)]
    if len(spent) == 0:
        return None, complete
    at[open_] = chosen[int(np.argmin(losing - λ * spent))]
    return at, complete
