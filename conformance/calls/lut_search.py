"""Calls of chapter L, searches of look-up tables."""

from __future__ import annotations

import numpy as np

from .given import Call, Empty, Given, Wrong, f32, floats, i32, ones

FLOAT64 = ("genome_fitness", "genetic_search", "knot_grid", "search_problem", "optimal_search")


def ordinary(given: Given) -> list[Call]:
    genomes = np.array([[0.5, -1.0, 2.0], [3.0, 0.25, -0.5]], given.dtype)
    knots = np.array([-4.0, -1.0, 0.0, 1.0, 4.0], given.dtype)
    heights, points = np.array([0.0, -0.25, 0.0, 0.75, 4.0], given.dtype), np.arange(-3, 4).astype(given.dtype)
    cuts, targets = np.array([[0, 2, 3, 4, 7]], np.int32), np.maximum(points, 0)
    return [
        Call("genome_fitness", (genomes,), {"function": "gelu"}),
        Call("genetic_search", (), {"function": "exp", "entries": 4, "seed": 3, "generations": 2, "population": 5}),
        Call("genetic_search", (), {"function": "gelu", "entries": 4, "generations": 1, "population": 4}),
        Call("knot_grid", (), {"function": "rsqrt", "fraction_bits": 2}),
        Call("knot_grid", (), {"function": "exp", "fraction_bits": 1}),
        Call("search_problem", (knots,), {"function": "gelu", "scale_bits": (1, 3)}),
        Call("search_problem", (knots,), {"function": "gelu"}),
        Call("optimal_search", (knots, heights, points, targets, cuts), {"entries": 3}),
        Call(
            "optimality_bound",
            (knots, heights, points, targets, cuts, np.ones((4, 5), given.dtype)),
            {"fit": "least_squares"},
        ),
        Call("optimality_bound", (knots, heights, points, targets, cuts, np.ones((4, 5), given.dtype)), {}),
        Call("table_objective", (points, targets, cuts, knots[:4].copy(), heights[:4].copy()), {"objective": "max"}),
        Call("table_objective", (points, targets, cuts, knots[:4].copy(), heights[:4].copy()), {}),
    ]


def empty() -> list[Empty]:
    return [
        Empty("genome_fitness", (floats(0, 4),), {"function": "exp"}, (0,)),
        Empty("genome_fitness", (floats(1, 0),), {"function": "exp"}, (1,)),
    ]


def wrong() -> list[Wrong]:
    w, vector, ramp = ones(4, 8), ones(8), np.arange(4, dtype=f32)
    four = np.array([[0, 1, 2, 4]], i32)
    return [
        Wrong("genome_fitness", (w,), {"function": "relu"}, ("relu",)),
        Wrong("genome_fitness", (vector,), {"function": "gelu"}, ("8",)),
        Wrong("genome_fitness", (w,), {"function": "gelu", "fraction_bits": -1}, ("-1",)),
        Wrong("genetic_search", (), {"function": "relu", "entries": 8}, ("relu",)),
        Wrong("genetic_search", (), {"function": "gelu", "entries": 2}, ("2",)),
        Wrong("genetic_search", (), {"function": "gelu", "entries": 8, "seed": -1}, ("-1",)),
        Wrong("genetic_search", (), {"function": "gelu", "entries": 8, "seed": 2**32, "draws": "published"}),
        Wrong("genetic_search", (), {"function": "gelu", "entries": 8, "draws": "random"}, ("random",)),
        Wrong("genetic_search", (), {"function": "gelu", "entries": 8, "rounding": 2}, ("2",)),
        Wrong("genetic_search", (), {"function": "gelu", "entries": 8, "generations": -1}, ("-1",)),
        Wrong("genetic_search", (), {"function": "gelu", "entries": 8, "population": 1}, ("1",)),
        Wrong("knot_grid", (), {"function": "relu"}, ("relu",)),
        Wrong("knot_grid", (), {"function": "gelu", "fraction_bits": 13}, ("13",)),
        Wrong("search_problem", (w,), {"function": "gelu"}, ("4",)),
        Wrong("search_problem", (ramp[:1],), {"function": "gelu"}, ("1",)),
        Wrong("search_problem", (-ramp,), {"function": "gelu"}, ("-2",)),
        Wrong("search_problem", (ramp,), {"function": "gelu", "scale_bits": ()}),
        Wrong("search_problem", (ramp,), {"function": "gelu", "scale_bits": (13,)}, ("13",)),
        Wrong("search_problem", (ramp,), {"function": "reciprocal", "scale_bits": (0, 9)}, ("9",)),
        Wrong("optimal_search", (ramp, ramp, ramp, ramp, four), {"entries": 0}, ("0",)),
        Wrong("optimal_search", (ramp[:2], ramp[:2], ramp, ramp, four[:, ::3].copy()), {"entries": 2}, ("2",)),
        Wrong("optimal_search", (ramp, ramp[:3], ramp, ramp, four), {"entries": 2}, ("3", "4")),
        Wrong("optimal_search", (-ramp, ramp, ramp, ramp, four), {"entries": 2}, ("-2",)),
        Wrong("optimal_search", (ramp, ramp, -ramp, ramp, four), {"entries": 2}, ("-1",)),
        Wrong("optimal_search", (ramp, ramp, ramp, ramp[:3], four), {"entries": 2}, ("3", "4")),
        Wrong("optimal_search", (ramp, ramp, ramp, ramp, four[:, :3]), {"entries": 2}, ("3",)),
        Wrong("optimal_search", (ramp, ramp, ramp, ramp, four + 1), {"entries": 2}),
        Wrong("optimal_search", (ramp, ramp, ramp, ramp, four[:, ::-1].copy()), {"entries": 2}),
        Wrong(
            "optimal_search",
            (ramp, ramp, ramp, ramp, np.array([[0, 1, 2, 4], [4, 4, 4, 4]], i32)),
            {"entries": 2},
            ("1",),
        ),
        Wrong("optimal_search", (ramp, ramp, ramp, ramp, four.astype(f32)), {"entries": 2}),
        Wrong("optimal_search", (ramp, ramp, ramp, ramp, four), {"entries": 2, "objective": "mae"}, ("mae",)),
        Wrong("optimal_search", (ramp, ramp, ramp, ramp, four), {"entries": 2, "fit": "spline"}, ("spline",)),
        Wrong("optimal_search", (ramp, ramp, ramp, ramp, four), {"entries": 2, "fraction_bits": 25}, ("25",)),
        Wrong("optimality_bound", (ramp, ramp, ramp, ramp, four, ones(3, 3)), {}, ("3",)),
        Wrong("optimality_bound", (ramp, ramp, ramp, ramp, four, ones(1, 4)), {}, ("1",)),
        Wrong("table_objective", (ramp, ramp, four, ramp[:3], ramp[:2]), {}, ("3", "2")),
        Wrong("table_objective", (ramp, ramp, four[:, :3], ramp[:3], ramp[:3]), {}, ("4", "3")),
        Wrong("table_objective", (ramp, ramp, four, ramp[:0], ramp[:0]), {}),
        Wrong("table_objective", (ramp, ramp, four, ramp[:3], ramp[:3]), {"objective": "mae"}, ("mae",)),
    ]
