"""Calls of chapter T, ternary and min-max quantizers."""

from __future__ import annotations

import numpy as np

from .given import Call, Empty, Given, Wrong, f32, floats, nan, ones


def ordinary(given: Given) -> list[Call]:
    w, d = given.w, given.d
    return [
        Call("twn_code", (w,), {"granularity": "row", "clip": 1.5}),
        Call("twn_code", (w,), {"granularity": "row"}),
        Call("twn", (w,), {}),
        Call("twn", (w,), {"granularity": "row"}),
        Call("twn", (w,), {"clip": 1.0}),
        Call("clamped_uniform", (w,), {}),
        Call("clamped_uniform", (w,), {"granularity": "row", "outermost": "bounded", "clip": 1.5}),
        Call("min_max", (w,), {}),
        Call("min_max", (w,), {"bits": 3, "scheme": "asymmetric", "granularity": "matrix", "clip": 1.5}),
        Call("straight_through", (d, w), {"clip": 0.5}),
    ]


def empty() -> list[Empty]:
    return [
        Empty("twn_code", (floats(2, 0),), {"granularity": "row"}, {"codes": (2, 0), "scale": [[0.0], [0.0]]}),
        Empty("twn", (floats(0, 4),), {}, (0, 4)),
        Empty("twn", (np.array(3.0, f32),), {}, 3.0),
        Empty("clamped_uniform", (floats(0, 4),), {"granularity": "row"}, (0, 4)),
        Empty("min_max", (floats(2, 0),), {"granularity": "row", "scheme": "asymmetric"}, (2, 0)),
        Empty("min_max", (floats(0, 3, 4),), {"granularity": "matrix"}, (0, 3, 4)),
        Empty("straight_through", (floats(0, 4),) * 2, {"clip": 1.0}, (0, 4)),
    ]


def wrong() -> list[Wrong]:
    w, vector = ones(4, 8), ones(8)
    return [
        Wrong("twn_code", (w,), {"threshold": 1.0}, ("1.0",)),
        Wrong("twn_code", (w,), {"threshold": -0.5}, ("-0.5",)),
        Wrong("twn_code", (w,), {"granularity": "token"}, ("token",)),
        Wrong("twn_code", (w,), {"clip": 0.0}),
        Wrong("twn", (vector,), {"granularity": "matrix"}),
        Wrong("twn", (w,), {"clip": -2.5}, ("-2.5",)),
        Wrong("twn", (w,), {"clip": nan}),
        Wrong("clamped_uniform", (w,), {"bits": 1}, ("1",)),
        Wrong("clamped_uniform", (w,), {"bits": 9}, ("9",)),
        Wrong("clamped_uniform", (w,), {"outermost": "even"}, ("even",)),
        Wrong("clamped_uniform", (np.array(1.0, f32),), {"granularity": "row"}),
        Wrong("min_max", (w,), {"bits": 1}, ("1",)),
        Wrong("min_max", (w,), {"scheme": "full"}, ("full",)),
        Wrong("min_max", (w,), {"epsilon": -1.0}, ("-1",)),
        Wrong("min_max", (w,), {"granularity": "group"}, ("group",)),
        Wrong("straight_through", (w, w[:3]), {"clip": 1.0}),
        Wrong("straight_through", (w, w), {"clip": -1.0}, ("-1",)),
    ]
