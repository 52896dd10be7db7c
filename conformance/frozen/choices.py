"""Vectors of chapter K: choices under a budget."""

from __future__ import annotations

import numpy as np

from .. import rules
from .inputs import SPEC, Table, suite


def build(table: Table) -> None:
    chapter = suite("choices")
    bumpy = np.array([[1, 2, 3, 7], [0, 1, 1, 9], [2, 2, 5, 6]], np.int32)
    losses = np.array([[9, 8, 1, 1], [4, 3, 2, 0], [3, 2.5, 1.75, 1.75]], np.float32)
    frontier = SPEC.choice_frontier(bumpy, losses)
    expect = [rules.exact("cost", frontier.cost), rules.exact("loss", frontier.loss)]
    table.call("K-12", "options off the hull, dominated, of equal price", [bumpy, losses], *expect)
    for budget in range(3, 23):
        found = SPEC.allocate_choices(bumpy, losses, budget=budget, tolerance=0.0)
        expect = [
            rules.exact("loss", np.float64(found.loss)),
            rules.exact("lower_bound", np.float64(found.loss)),
        ]
        table.call("K-13", f"budget {budget}", [bumpy, losses], *expect, budget=budget, tolerance=0.0)
    for seed in (1, 2):
        market = chapter.crowd(seed, 40, 6)
        found = SPEC.allocate_choices(market.cost, market.loss, budget=market.budget, tolerance=0.0)
        split = float(np.interp(market.budget, *SPEC.choice_frontier(market.cost, market.loss)))
        size = float(market.loss.astype(np.float64).max(1).sum())
        expect = [
            rules.certificate("loss", found.loss * 1.001, size, 200),
            rules.certificate("lower_bound", found.loss, size, 200),
            rules.certificate("lower_bound", split, size, 200, least=True),
            rules.certificate("loss", found.loss, size, 200, least=True),  # below it lies nothing within the budget
        ]
        arrays = [market.cost, market.loss]
        table.call("K-13a", f"forty modules, seed {seed}", arrays, *expect, budget=market.budget, tolerance=2.0**-10)
