"""Figures of the chapters on look-up tables."""

from __future__ import annotations

import itertools

import numpy as np
from canvas import COLOURS, DASHES, Axes, svg

from lowbit import reference as ref
from lowbit.reference import lut
from lowbit.reference.types import TABLE_TIES


def tables() -> str:
    """L: eight lines for GELU, and the largest error at every scale under both tie rules."""
    knots = np.array([-3.0, -2.25, -1.0, -0.5, 0.0, 0.625, 2.75])
    table = lut.chord_table("gelu", knots)
    f = lut.FUNCTIONS["gelu"].value
    a = Axes((-4.0, 4.0), (-0.6, 4.0), box=(44, 20, 250, 240))
    a.frame({v: str(v) for v in (-4, -2, 0, 2, 4)}, {v: str(v) for v in (0, 1, 2, 3, 4)}, xlabel="x")
    fine = np.linspace(-4, 4, 161)
    a.curve(fine, f(fine), 0, dots=False)
    edges = np.concatenate([[-4.0], knots, [4.0]])
    for lo, hi in itertools.pairwise(edges):
        ends = ref.evaluate_table([lo, hi - 2.0**-20], table, tie="right")
        a.line([(a.px(lo), a.py(ends[0])), (a.px(hi), a.py(ends[1]))], stroke=COLOURS[1], width=2, dash=DASHES[1])
    a.parts += [a.mark(a.px(p), a.py(float(f(p))), 1) for p in knots]
    a.legend(["GELU", "8 lines"], 64, 40, dots=False)
    b = Axes((0.0, 6.0), (0.005, 0.2), box=(390, 20, 250, 240), log_y=True)
    b.frame(
        {v: str(v) for v in range(7)},
        {v: f"{v:g}" for v in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)},
        xlabel="b, codes of scale 2⁻ᵇ",
        ylabel="largest error of all codes",
    )
    for i, tie in enumerate(TABLE_TIES):
        report = lut.table_report("gelu", table, tie=tie)
        b.curve([*report], [r.max_error for r in report.values()], i)
    b.legend(["tie to the left", "tie to the right"], 480, 36)
    return svg(
        "Eight straight lines for GELU, and the largest error at every scale under both tie rules.", 660, 310, a, b
    )


def table_search() -> str:
    """L: the published search of a GELU table of 8 entries, three seeds, and the optimum on a grid."""
    generations = 120
    grid = ref.knot_grid(function="gelu", fraction_bits=3)
    problem = ref.search_problem(grid, function="gelu")
    optimal = ref.optimal_search(*problem, entries=8)
    a = Axes((0, generations), (5e-5, 5e-3), box=(64, 16, 250, 230), log_y=True)
    a.frame(
        {v: str(v) for v in (0, 40, 80, 120)}, {v: f"{v:g}" for v in (1e-4, 3e-4, 1e-3, 3e-3)},
        xlabel="generation", ylabel="mean squared error",
    )  # fmt: skip
    b = Axes((-4, 4), (-0.03, 0.03), box=(400, 16, 240, 230))
    b.frame(
        {v: str(v) for v in (-4, -2, 0, 2, 4)}, {v: f"{v:g}" for v in (-0.03, 0, 0.03)},
        xlabel="x", ylabel="error of the table",
    )  # fmt: skip
    for series, seed in enumerate((42, 1)):
        found = ref.genetic_search(function="gelu", entries=8, seed=seed, draws="published", generations=generations)
        a.curve(range(0, generations + 1, 4), found.best[::4].tolist(), series, dots=False)
        if seed == 42:
            genetic = found
    a.curve([0, generations], [optimal.objective] * 2, 2, dots=False)
    a.legend(["seed 42", "seed 1", "optimum"], 190, 30, dots=False)
    x, y = problem.x[::4], problem.y[::4]
    for series, table in ((0, genetic), (2, optimal)):
        piece = np.searchsorted(table.breakpoints, x, side="right")
        b.curve(x.tolist(), (table.slopes[piece] * x + table.intercepts[piece] - y).tolist(), series, dots=False)
    return svg("Best error of two genetic searches by generation, and the optimum; errors along x.", 660, 300, a, b)
