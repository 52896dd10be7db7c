"""Calls of chapter R, rounding."""

from __future__ import annotations

import numpy as np

from .given import Call, Empty, Given, Wrong, f32, floats, ones


def ordinary(given: Given) -> list[Call]:
    w, levels = given.w, given.levels
    return [
        Call("round_half_even", (4 * w,), {}),
        Call("round_clip", (4 * w,), {"low": -3, "high": 3}),
        Call("nearest_level", (w, levels), {}),
    ]


def empty() -> list[Empty]:
    return [
        Empty("round_half_even", (floats(0, 3),), {}, (0, 3)),
        Empty("round_half_even", (np.array(2.5, f32),), {}, ()),
        Empty("round_clip", (floats(3, 0),), {"low": 0, "high": 1}, (3, 0)),
        Empty("nearest_level", (floats(0), floats(1)), {}, (0,)),
    ]


def wrong() -> list[Wrong]:
    w = ones(4, 8)
    return [
        Wrong("round_clip", (w,), {"low": 3, "high": 2}),
        Wrong("nearest_level", (w, np.array([1.0, 0.0], f32)), {}),
        Wrong("nearest_level", (w, np.array([1.0, 1.0], f32)), {}),
        Wrong("nearest_level", (w, floats(0)), {}),
        Wrong("nearest_level", (w, floats(2, 2)), {}),
    ]
