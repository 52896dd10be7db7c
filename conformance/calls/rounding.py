"""Calls of chapter R, rounding."""

from __future__ import annotations

import numpy as np

from .given import Call, Empty, Given, Wrong, f32


def ordinary(given: Given) -> list[Call]:
    w, levels = given.w, given.levels
    return [
        Call("round_half_even", (4 * w,), {}),
        Call("round_clip", (4 * w,), {"low": -3, "high": 3}),
        Call("nearest_level", (w, levels), {}),
    ]


def empty() -> list[Empty]:
    return [
        Empty("round_half_even", (np.zeros((0, 3), f32),), {}, (0, 3)),
        Empty("round_half_even", (np.array(2.5, f32),), {}, ()),
        Empty("round_clip", (np.zeros((3, 0), f32),), {"low": 0, "high": 1}, (3, 0)),
        Empty("nearest_level", (np.zeros(0, f32), np.zeros(1, f32)), {}, (0,)),
    ]


def wrong() -> list[Wrong]:
    w = np.ones((4, 8), f32)
    return [
        Wrong("round_clip", (w,), {"low": 3, "high": 2}),
        Wrong("nearest_level", (w, np.array([1.0, 0.0], f32)), {}),
        Wrong("nearest_level", (w, np.array([1.0, 1.0], f32)), {}),
        Wrong("nearest_level", (w, np.zeros(0, f32)), {}),
        Wrong("nearest_level", (w, np.zeros((2, 2), f32)), {}),
    ]
