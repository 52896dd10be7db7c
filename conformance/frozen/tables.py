"""Vectors of chapter L: look-up tables and their searches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from .. import compare, rules
from ..recording import Draws
from .inputs import NARROW, SPEC, U64, Array, Case, Options, Table, call, near_wide, recorded, suite

__all__ = ["searches", "tables"]


def tables(table: Table) -> None:
    lut = suite("lut")
    knots, values = np.array([-2.0, -1, -1, 0, 0, 2]), np.array([1.0, 3, -2, 0.5, 0.5, 4])
    found = SPEC.fit_chords(knots, values)
    parts = ("breakpoints", "slopes", "intercepts")
    table["L-2"] = [
        call(
            "fit_chords",
            "two dead pieces, one of them with a jump",
            [knots, values],
            {},
            [rules.exact(f, getattr(found, f)) for f in parts],
        )
    ]
    lines = lut.Table(np.array([-1, -1, 0.5]), np.array([0.3, 0, -1.7, 2]), np.array([1.0, 5, 0.1, -0.0]))
    x = np.array([-3, -1, -0.75, 0.5, 0.625, -0.0, 9], np.float32)
    recorded(
        table,
        "L-7",
        "test_values",
        *((f"on breakpoints, tie {t}", {"table": lines, "x": x, "tie": t}) for t in ("left", "right")),
    )
    integers = lut.integer_table((-5, -5, 0, 127), (3, 9, -2, 0, 1), (7, 100, -4, 12, -9), 4, 6)
    recorded(
        table,
        "L-8",
        "test_ties",
        *(
            (f"{about} repeated breakpoints", {"table": integers, "offset": o})
            for about, o in (("left of", -1), ("on", 0), ("right of", 1))
        ),
    )
    entries, q = np.arange(4, dtype=np.float32) / 8 - np.float32(0.25), np.array([[-2, 1], [0, -1]], np.int32)
    table["L-11"] = [
        call("lookup_codes", "codes from -2 on", [q, entries], {"low": -2}, [rules.exact("", entries[q + 2])]),
        call(
            "lookup_codes",
            "all codes of int8",
            [lut.CODES.astype(np.int8), np.arange(256, dtype=np.int32)[::-1].copy()],
            {},
            [rules.exact("", np.arange(256, dtype=np.int32)[::-1])],
        ),
    ]
    for function in ("hswish", "exp", "gelu", "rsqrt"):
        positive, top = function in ("reciprocal", "rsqrt"), 0 if function == "exp" else 127
        given = np.array([1 if positive else -128, 3, 12, 64, 127], np.int32).clip(None, top)
        slopes = np.array([8, -8, 0, 3, 5], np.int64)
        recorded(
            table,
            "L-13",
            "test_gradients",
            (
                function,
                {"function": function, "bits": 2, "odd": False, "dtype": NARROW, "data": _GradientDraws(given, slopes)},
            ),
        )
    recorded(
        table,
        "L-14",
        "test_ranges",
        *(
            (
                f"{f}, tie {t}",
                {
                    "function": f,
                    "x": np.array([1, 3, 5, 9, 33, 255, 1023, 2**20]),
                    "shift": -8,
                    "dtype": NARROW,
                    "tie": t,
                },
            )
            for f in ("reciprocal", "rsqrt")
            for t in ("left", "right")
        ),
    )
    table["L-15"] = []
    for function, step in (("reciprocal", 3), ("rsqrt", 4)):
        base = (np.array([1, 2, 16, 17, 64, 100, 127]) / 32).astype(np.float32)
        for k in (-5, -1, 0, 1, 4):
            far = base * np.float32(2.0 ** (step * k))
            lines = lut.base_table(function)
            found = SPEC.evaluate_ranges(far, lines, function=function).astype(np.float32)
            stored = rules.LookupTable(*lines)
            table["L-15"].append(
                call(
                    "evaluate_ranges",
                    f"{function}, {k} ranges further",
                    [far, stored],
                    {"function": function},
                    [rules.exact("", found)],
                )
            )
    recorded(
        table,
        "L-18",
        "test_errors",
        *(
            (f"codes from {low}, tie {t}", {"table": integers, "low": low, "tie": t})
            for low, t in ((-128, "left"), (100, "right"))
        ),
        skip=("worst",),
    )
    at, flat, one = (np.array(v, np.int32) for v in ([0], [0, 0], [1, 1]))
    level = rules.LookupTable(at, flat, one)
    table["L-18"].append(
        call(
            "verify_table",
            "the first of two largest errors",
            [level, np.array([1.0, 3, 1, -1])],
            {"low": -2},
            [rules.exact("worst", -1), rules.exact("max_error", 2.0)],
        )
    )


class _GradientDraws(Draws):
    """What the test of table gradients asks for: codes, then upstream gradients."""

    def __init__(self, codes: Array, slopes: Array) -> None:
        super().__init__(codes, slopes)


def searches(table: Table) -> None:
    options: Options
    search = suite("lut_search")
    recorded(
        table,
        "L-20",
        "test_fitness",
        *(
            (
                f"{f}, equal genes, ends of the grid",
                {"function": f, "genes": 4, "data": Draws([[3, 3, 90, 60], [0, 20, 20, 20], [25, 1, 40, 9]])},
            )
            for f in ("gelu", "exp", "rsqrt")
        ),
    )
    recorded(
        table,
        "L-20a",
        "test_order_of_genes",
        *(
            (f, {"function": f, "data": Draws([[90, 3, 60, 3, 12], [5, 80, 7, 41, 5]])})
            for f in ("hswish", "reciprocal")
        ),
    )
    kit = SimpleNamespace(spec=SPEC)
    for clause, draws in (("L-21", "addressed"), ("L-22", "published")):
        table[clause] = []
        for function, entries, rounding, population in (
            ("gelu", 4, None, 5),
            ("exp", 3, True, 4),
            ("tanh", 5, False, 6),
        ):
            table[clause] += _course(
                search,
                kit,
                {
                    "function": function,
                    "entries": entries,
                    "rounding": rounding,
                    "population": population,
                    "draws": draws,
                },
            )
    recorded(
        table, "L-21a", "test_seeds_of_64_bits", *((f"seed {s}", {"seed": s}) for s in (0, 2**32, 2**63, 2**64 - 1))
    )
    recorded(
        table,
        "L-23",
        "test_grid",
        *(
            (f"{f}, {b} bits", {"function": f, "fraction_bits": b})
            for f in ("gelu", "exp", "reciprocal", "rsqrt")
            for b in (0, 3)
        ),
    )
    recorded(
        table,
        "L-24",
        "test_problem",
        *(
            (f"{f}, scales {s}", {"function": f, "scales": s, "data": Draws(1)})
            for f, s in (("gelu", [3, 0]), ("rsqrt", [2]), ("exp", [5]))
        ),
    )
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
    recorded(
        table,
        "L-25",
        "test_optimum",
        *((f"{about}, {n} entries", {"case": c, "entries": n}) for about, c in cases for n in (1, 3, 5)),
        skip=("objective of the returned",),
    )
    recorded(
        table,
        "L-25a",
        "test_more_entries",
        *((f"{about}, 3 and 4 entries", {"case": c, "entries": 3}) for about, c in cases),
    )
    recorded(
        table,
        "L-25a",
        "test_more_entries",
        *((f"{about}, more entries than knots", {"case": c, "entries": 6}) for about, c in cases[:1]),
    )
    wild = np.array([1.4375, 0.5625, 0.0625, -0.9375, -0.75, -1.875, -1.75])  # a second breakpoint can only spoil it
    one_view = np.array(cuts[:1], np.int32)
    aim = np.interp(views[0], knots[[0, 2, 6]], wild[[0, 2, 6]])
    spoilt = search.Fit((knots, wild, views[0], aim, one_view), cases[0][1].options, size)
    recorded(table, "L-25a", "test_more_entries", ("one breakpoint is best", {"case": spoilt, "entries": 2}))
    recorded(
        table,
        "L-27",
        "test_objective_of_any_table",
        *(
            (
                f"{about}, a breakpoint twice",
                {"case": c, "entries": 4, "data": Draws([2, 2, 4], [3, 0, -9, 16], [1, 32, 0, -5])},
            )
            for about, c in cases[::2]
        ),
    )
    potentials = (np.arange(3 * len(knots)) * 7 % 13 + 5).tolist()
    recorded(
        table,
        "L-26a",
        "test_bound_of_any_potentials",
        *((about, {"case": c, "entries": 2, "data": Draws(potentials)}) for about, c in cases),
        skip=("bound is",),
    )
    table["L-26"], table["L-25b"] = [], []
    for about, case in cases:
        found = SPEC.optimal_search(*case.arrays, entries=3, **case.options)
        allowed, at = search.slack(case, 3 + 2) / compare.gamma(1, U64), len(table["L-26"])
        table["L-26"].append(
            call(
                "optimal_search",
                f"3 entries, {about}",
                case.arrays,
                {**case.options, "entries": 3},
                [rules.certificate("objective", found.objective, allowed, 1)],
            )
        )
        table["L-26"].append(
            call(
                "optimality_bound",
                f"its potentials, {about}",
                [*case.arrays, rules.earlier(at, "potentials")],
                case.options,
                [rules.certificate("", found.objective, allowed, 1, least=True)],
            )
        )
    bent = np.array([0, 24, -8, 30, -20, 16, -9]) / 16  # with every knot a breakpoint nothing is left to choose
    for about, case in cases[:3]:
        exact = search.Fit((knots, bent, x, np.interp(x, knots, bent), case.arrays[4]), case.options, 2 * size)
        recorded(table, "L-25b", "test_lines", (f"every knot, {about}", {"case": exact, "entries": 6}))


def _course(search: Any, kit: Any, options: Options) -> list[Case]:
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
        made = []
        for t, (run, error) in enumerate(zip(runs, errors, strict=True)):
            step = int(np.argmin(near[: max(t, 1)]))
            size = errors[step] / compare.gamma(1, U64)
            expect = [
                {
                    **rules.trajectory(run.population, runs[step].fitness, float(run.best[-1]), size, 1),
                    "precision": "float64",
                },
                near_wide("fitness", run.fitness, error),
            ]
            made.append(
                call(
                    "genetic_search", f"{options['function']}, {t} generations", [], {**given, "generations": t}, expect
                )
            )
        return made
    raise ValueError(f"no seed is clear for {options}")
