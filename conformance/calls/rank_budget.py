"""Calls of chapter K, ranks under a budget."""

from __future__ import annotations

import numpy as np

from .given import Call, Empty, Given, Wrong, f32, floats, i32, integers, nan, ones


def ordinary(given: Given) -> list[Call]:
    w, d, h, b, a = given.w, given.d, given.h, given.b, given.a
    spectra = np.array([[4.0, 2.0, 1.0, 0.5], [3.0, 3.0, 0.25, 0.0], [5.0, 1.0, 1.0, 1.0]], given.dtype)
    left = np.array([[0.75, 0.5], [1.5, 1.0], [0.25, 0.0]], given.dtype)
    each = np.array([1.5, 0.75, 2.0], given.dtype)
    cost, low, high, now = (np.array(x, np.int32) for x in ([3, 2, 4], [0, 1, 0], [4, 3, 4], [2, 2, 1]))
    shapes, group = np.array([[4, 9], [3, 8]], np.int32), np.array([0, 1, 0], np.int32)
    return [
        Call("explained_error", (spectra,), {}),
        Call("residual_damage", (spectra, each), {}),
        Call("subspace_overlap", (w, w + d / 4, h), {"rank": 3}),
        Call("gradient_importance", (w,), {}),
        Call("loss_importance", (each, spectra), {"base": 0.5}),
        Call("rank_cost", (shapes,), {}),
        Call("rank_cost", (shapes,), {"bits": 4}),
        Call("allocate_greedy", (spectra, each, cost, low, high), {"budget": 17}),
        Call("allocate_greedy", (spectra, each, cost, low, high), {"budget": 17, "leftover": "fill"}),
        Call("threshold_ranks", (spectra, low, high), {"threshold": 0.9}),
        Call("allocate_threshold", (spectra, cost, low, high), {"budget": 17}),
        Call("allocate_threshold", (spectra, cost, low, high - 1), {"budget": 17, "multiple": 2, "leftover": "fill"}),
        Call("allocate_proportional", (each, cost, low, high), {"budget": 17}),
        Call("allocate_proportional", (each, cost, low, high), {"budget": 17, "leftover": "fill"}),
        Call("allocation_objective", (spectra, each, now), {}),
        Call("allocation_bound", (spectra, each, cost, low, high), {"budget": 17}),
        Call("pool_modules", (spectra, each, cost, low, high, group), {}),
        Call("reallocate_ranks", (spectra, left, each, cost, low, high, now), {"budget": 17, "step": 1}),
        Call("nest_patch", (b, a, h), {}),
    ]


def empty() -> list[Empty]:
    eye, nobody = np.eye(4, dtype=f32), tuple(integers(0) for _ in range(3))
    two = np.ones(2, i32), integers(2), integers(2)
    return [
        Empty("explained_error", (floats(2, 0),), {}, [[1.0], [1.0]]),
        Empty("residual_damage", (floats(0, 4), floats(0)), {}, (0, 5)),
        Empty("gradient_importance", (floats(0, 4),), {}, 0.0),
        Empty("loss_importance", (ones(2), floats(2, 0)), {"base": 0.0}, [0.0, 0.0]),
        Empty("rank_cost", (integers(0, 2),), {}, (0,)),
        Empty("allocate_greedy", (floats(0, 4), floats(0), *nobody), {"budget": 1}, (0,)),
        Empty("allocate_greedy", (floats(2, 0), ones(2), *two), {"budget": 1}, [0, 0]),
        Empty("threshold_ranks", (floats(0, 4), *nobody[1:]), {"threshold": 0.5}, (0,)),
        Empty("allocate_threshold", (floats(0, 4), *nobody), {"budget": 1}, (0,)),
        Empty("allocate_proportional", (floats(0), *nobody), {"budget": 1}, (0,)),
        Empty("allocation_objective", (floats(0, 4), floats(0), nobody[0]), {}, 0.0),
        Empty("allocation_bound", (floats(0, 4), floats(0), *nobody), {"budget": 1}, 0.0),
        Empty("pool_modules", (floats(0, 4), floats(0), *nobody, nobody[0]), {}, {"spectra": (0, 4), "cost": (0,)}),
        Empty(
            "reallocate_ranks", (floats(2, 0), floats(2, 3), ones(2), *two, two[1]), {"budget": 1, "step": 1}, [0, 0]
        ),
        Empty("nest_patch", (floats(3, 0), floats(0, 4), eye), {}, {"B": (3, 0), "A": (0, 4)}),
    ]


def wrong() -> list[Wrong]:
    w, eye, b, a = ones(4, 8), np.eye(8, dtype=f32), ones(4, 2), ones(2, 8)
    s, g, rising = np.array([[3, 1], [2, 2]], f32), ones(2), np.array([[1, 1], [1, 2]], f32)
    cost, low, high = np.array([1, 2], i32), integers(2), np.full(2, 2, i32)
    return [
        Wrong("explained_error", (rising,), {}, ("descend",)),
        Wrong("explained_error", (-s,), {}, ("-3",)),
        Wrong("explained_error", (g,), {}),
        Wrong("residual_damage", (s, -g), {}, ("-1",)),
        Wrong("residual_damage", (s, ones(3)), {}),
        Wrong("subspace_overlap", (w, w[:3], eye), {"rank": 1}),
        Wrong("subspace_overlap", (w, w, np.eye(4, dtype=f32)), {"rank": 1}),
        Wrong("subspace_overlap", (w, w, eye), {"rank": 5}, ("5", "4")),
        Wrong("gradient_importance", (w,), {"normalisation": "max"}, ("max",)),
        Wrong("gradient_importance", (g,), {}),
        Wrong("loss_importance", (ones(3), s), {"base": 0.0}),
        Wrong("loss_importance", (g, s), {"base": nan}),
        Wrong("rank_cost", (np.array([[4, 0]], i32),), {}, ("0",)),
        Wrong("rank_cost", (np.array([[4, 1, 2]], i32),), {}, ("3",)),
        Wrong("rank_cost", (np.array([[4, 1]], i32),), {"bits": 0}, ("0",)),
        Wrong("rank_cost", (np.array([[2**31 - 1, 1]], i32),), {}, ("2147483648",)),
        Wrong("allocate_greedy", (rising, g, cost, low, high), {"budget": 9}, ("descend",)),
        Wrong("allocate_greedy", (s, -g, cost, low, high), {"budget": 9}, ("-1",)),
        Wrong("allocate_greedy", (s, g, 0 * cost, low, high), {"budget": 9}, ("cost",)),
        Wrong("allocate_greedy", (s, g, cost, low, high + 1), {"budget": 9}, ("3", "2")),
        Wrong("allocate_greedy", (s, g, cost, high, low), {"budget": 9}, ("2", "0")),
        Wrong("allocate_greedy", (s, g, cost, low + 1, high), {"budget": 2}, ("2", "3")),
        Wrong("allocate_greedy", (s, g, cost, low + 1, low + 1), {"budget": 9, "multiple": 2}, ("2",)),
        Wrong("allocate_greedy", (s, g, cost, low, high), {"budget": -1}, ("-1",)),
        Wrong("allocate_greedy", (s, g, cost, low, high), {"budget": 9, "leftover": "spend"}, ("spend",)),
        Wrong("threshold_ranks", (s, low, high), {"threshold": 1.5}, ("1.5",)),
        Wrong("threshold_ranks", (s, low, high), {"threshold": 0.5, "multiple": 0}, ("0",)),
        Wrong("allocate_threshold", (rising, cost, low, high), {"budget": 9}, ("descend",)),
        Wrong("allocate_threshold", (s, cost[:1], low, high), {"budget": 9}),
        Wrong("allocate_proportional", (-g, cost, low, high), {"budget": 9}, ("-1",)),
        Wrong("allocate_proportional", (g, cost, low + 1, high), {"budget": 2}, ("2", "3")),
        Wrong("allocation_objective", (s, g, high + 1), {}, ("3", "2")),
        Wrong("allocation_objective", (s, g, low - 1), {}, ("-1",)),
        Wrong("allocation_bound", (s, g, cost, low + 1, high), {"budget": 2}, ("2", "3")),
        Wrong("pool_modules", (s, g, cost, low, high, np.array([0, 2], i32)), {}, ("1",)),
        Wrong("pool_modules", (s, g, cost, np.array([2, 0], i32), np.array([2, 1], i32), low), {}, ("2", "1")),
        Wrong("reallocate_ranks", (s, s, g, cost, low, high, high + 1), {"budget": 9, "step": 1}, ("3",)),
        Wrong("reallocate_ranks", (s, s, g, cost, low, high, high), {"budget": 2, "step": 1}, ("2", "3")),
        Wrong("reallocate_ranks", (s, s, g, cost, low, high, high), {"budget": 9, "step": -1}, ("-1",)),
        Wrong(
            "reallocate_ranks", (s, s, g, cost, low, high, high), {"budget": 9, "step": 1, "hysteresis": -1.0}, ("-1",)
        ),
        Wrong("reallocate_ranks", (s, s[:1], g, cost, low, high, high), {"budget": 9, "step": 1}),
        Wrong("nest_patch", (b, ones(3, 8), eye), {}),
        Wrong("nest_patch", (ones(1, 2), a, eye), {}),
        Wrong("nest_patch", (b, a, np.eye(4, dtype=f32)), {}),
        Wrong("nest_patch", (b, a, eye), {"split": "right"}, ("right",)),
    ]
