"""Vectors of chapter L: searches for look-up tables."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from .. import compare, rules
from ..recording import Draws
from .inputs import SPEC, U64, Options, Table, near_wide, suite


def build(table: Table) -> None:
    search = suite("lut_search")
    for f in ("gelu", "exp", "rsqrt"):
        data = Draws([[3, 3, 90, 60], [0, 20, 20, 20], [25, 1, 40, 9]])
        table.recorded("L-20", "test_fitness", f"{f}, equal genes, ends of the grid", function=f, genes=4, data=data)
    for f in ("hswish", "reciprocal"):
        table.recorded(
            "L-20a", "test_order_of_genes", f, function=f, data=Draws([[90, 3, 60, 3, 12], [5, 80, 7, 41, 5]])
        )
    kit = SimpleNamespace(spec=SPEC)
    for clause, draws in (("L-21", "addressed"), ("L-22", "published")):
        for f, n, rounding, many in (("gelu", 4, None, 5), ("exp", 3, True, 4), ("tanh", 5, False, 6)):
            options = {"function": f, "entries": n, "rounding": rounding, "population": many, "draws": draws}
            _course(table, clause, search, kit, options)
    for seed in (0, 2**32, 2**63, 2**64 - 1):
        table.recorded("L-21a", "test_seeds_of_64_bits", f"seed {seed}", seed=seed)
    for f in ("gelu", "exp", "reciprocal", "rsqrt"):
        for b in (0, 3):
            table.recorded("L-23", "test_grid", f"{f}, {b} bits", function=f, fraction_bits=b)
    for f, s in (("gelu", [3, 0]), ("rsqrt", [2]), ("exp", [5])):
        table.recorded("L-24", "test_problem", f"{f}, scales {s}", function=f, scales=s, data=Draws(1))
    inner = [-1.5, -1, 0, 0.25, 2]
    knots = np.array([-5, *inner, 5])
    values = np.array([0, -8, 3, 0, 11, 20, 32]) / 16
    views, cuts = [np.array([-4, -1.5, -1, -1, 0, 0.25, 0.25, 3]), np.array([-1, -0.0, 0.25, 2, 4.5])], []
    for start, xs, side in ((0, views[0], "left"), (8, views[1], "right")):
        at = np.searchsorted(xs, knots, side=side)  # type: ignore[call-overload]
        at[0], at[-1] = 0, len(xs)
        cuts.append(at + start)
    x = np.concatenate(views)
    y = np.array([0, -8, -3, 3, 0, 9, 12, 24, 5, 0, 11, 22, 30]) / 16
    size = float(4 + 10 * ((np.ptp(values) + np.ptp(y)) * 8 + 1))  # of |y| + |K x| + |B|: knots are 1/4 apart or more
    cases = []
    for objective, fit, bits in (
        ("mse", "chord", 4),
        ("mse", "chord", None),
        ("max", "chord", 0),
        ("mse", "least_squares", None),
        ("max", "least_squares", None),
    ):
        options = {"objective": objective, "fit": fit, "fraction_bits": bits}
        cases.append(
            (
                f"{objective}, {fit}, {bits} bits",
                search.Fit((knots, values, x, y, np.array(cuts, np.int32)), options, size),
            )
        )
    for about, c in cases:
        for n in (1, 3, 5):
            table.recorded(
                "L-25", "test_optimum", f"{about}, {n} entries", skip=("objective of the returned",), case=c, entries=n
            )
    for about, c in cases:
        table.recorded("L-25a", "test_more_entries", f"{about}, 3 and 4 entries", case=c, entries=3)
    for about, c in cases[:1]:
        table.recorded("L-25a", "test_more_entries", f"{about}, more entries than knots", case=c, entries=6)
    wild = np.array([1.4375, 0.5625, 0.0625, -0.9375, -0.75, -1.875, -1.75])  # a second breakpoint can only spoil it
    one_view = np.array(cuts[:1], np.int32)
    aim = np.interp(views[0], knots[[0, 2, 6]], wild[[0, 2, 6]])
    spoilt = search.Fit((knots, wild, views[0], aim, one_view), cases[0][1].options, size)
    table.recorded("L-25a", "test_more_entries", "one breakpoint is best", case=spoilt, entries=2)
    for about, c in cases[::2]:
        table.recorded(
            "L-27",
            "test_objective_of_any_table",
            f"{about}, a breakpoint twice",
            case=c,
            entries=4,
            data=Draws([2, 2, 4], [3, 0, -9, 16], [1, 32, 0, -5]),
        )
    potentials = (np.arange(3 * len(knots)) * 7 % 13 + 5).tolist()
    for about, c in cases:
        skip = ("bound is",)
        table.recorded(
            "L-26a", "test_bound_of_any_potentials", about, skip=skip, case=c, entries=2, data=Draws(potentials)
        )
    for about, case in cases:
        found = SPEC.optimal_search(*case.arrays, entries=3, **case.options)
        allowed, at = search.slack(case, 3 + 2) / compare.gamma(1, U64), len(table["L-26"])
        rule = rules.certificate("objective", found.objective, allowed, 1)
        table.call("L-26", f"3 entries, {about}", case.arrays, rule, op="optimal_search", **case.options, entries=3)
        expect, arrays = (
            rules.certificate("", found.objective, allowed, 1, least=True),
            [*case.arrays, rules.earlier(at, "potentials")],
        )
        table.call("L-26", f"its potentials, {about}", arrays, expect, op="optimality_bound", **case.options)
    bent = np.array([0, 24, -8, 30, -20, 16, -9]) / 16  # with every knot a breakpoint nothing is left to choose
    for about, case in cases[:3]:
        exact = search.Fit((knots, bent, x, np.interp(x, knots, bent), case.arrays[4]), case.options, 2 * size)
        table.recorded("L-25b", "test_lines", f"every knot, {about}", case=exact, entries=6)


def _course(table: Table, clause: str, search: Any, kit: Any, options: Options) -> None:
    """Populations after 0 to 3 generations, with the first seed for which no decision is near."""
    for seed in range(10**9, 10**9 + 400):
        given = {**options, "seed": seed}
        runs = [SPEC.genetic_search(generations=t, **given) for t in range(4)]
        errors = [search.fitness_error(kit, options["function"], run.population) for run in runs]
        near = []
        for run, error in zip(runs[:3], errors[:3], strict=True):
            order = np.argsort(run.fitness, kind="stable")
            near.append(float(np.min(np.diff(run.fitness[order]) / (2 * (error[order][1:] + error[order][:-1])))))
        if min(near) <= 1:
            continue
        for t, (run, error) in enumerate(zip(runs, errors, strict=True)):
            step = int(np.argmin(near[: max(t, 1)]))
            size = errors[step] / compare.gamma(1, U64)
            course = rules.trajectory(run.population, runs[step].fitness, float(run.best[-1]), size, 1)
            expect = [{**course, "precision": "float64"}, near_wide("fitness", run.fitness, error)]
            table.call(clause, f"{given['function']}, {t} generations", [], *expect, **given, generations=t)
        return
    raise ValueError(f"no seed is clear for {options}")
