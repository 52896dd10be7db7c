"""Calls of chapter K, choices under a budget."""

from __future__ import annotations

import numpy as np

from .given import Call, Empty, Given, Wrong, floats, integers, nan, ones

FLOAT64 = ("choice_frontier",)


def ordinary(given: Given) -> list[Call]:
    cost = np.array([[1, 3, 4, 9], [2, 2, 5, 6], [0, 7, 8, 8]], np.int32)
    loss = np.array([[9, 4.5, 4, 0.25], [3, 2, 1.75, 0], [8, 7, 1, 1]], given.dtype)
    return [
        Call("choice_frontier", (cost, loss), {}),
        Call("allocate_choices", (cost, loss), {"budget": 15}),
        Call("allocate_choices", (cost, loss), {"budget": 11, "tolerance": 0.0}),
    ]


def empty() -> list[Empty]:
    nobody = integers(0, 3), floats(0, 3)
    return [
        Empty("choice_frontier", nobody, {}, [[0.0], [0.0]]),
        Empty("allocate_choices", nobody, {"budget": 0}, {"choice": (0,), "cost": 0, "loss": 0.0}),
    ]


def wrong() -> list[Wrong]:
    cost, loss = np.ones((2, 3), np.int32), ones(2, 3)
    return [
        Wrong("choice_frontier", (cost, ones(3, 2)), {}),
        Wrong("choice_frontier", (integers(2, 0), floats(2, 0)), {}),
        Wrong("choice_frontier", (-cost, loss), {}, ("-1",)),
        Wrong("choice_frontier", (cost, -loss), {}, ("-1",)),
        Wrong("choice_frontier", (loss, loss), {}),
        Wrong("choice_frontier", (cost[0], loss[0]), {}),
        Wrong("allocate_choices", (cost, np.asarray(loss[:, :2])), {"budget": 9}),
        Wrong("allocate_choices", (cost, loss), {"budget": 1}, ("1", "2")),
        Wrong("allocate_choices", (cost, loss), {"budget": -1}, ("-1",)),
        Wrong("allocate_choices", (cost, loss), {"budget": 9, "tolerance": nan}, ("nan",)),
    ]
