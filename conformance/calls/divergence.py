"""Calls of chapter F, divergence of the output."""

from __future__ import annotations

import numpy as np

from .given import Call, Empty, Given, Wrong, f32, floats, nan, ones

CITES = {"divergence_patch": "E", "draw_labels": "P"}  # chapters whose rules the operation applies to its arguments


def ordinary(given: Given) -> list[Call]:
    d, h = given.d, given.h
    g = np.asarray(h[:4, :4])
    logits = given.w * 2
    return [
        Call("divergence", (d, h, g), {}),
        Call("divergence_spectrum", (d, h, g), {}),
        Call("divergence_patch", (d, h, g), {"rank": 2}),
        Call("divergence_patch", (d, h, g), {"rank": 2, "damping": 0.0}),
        Call("draw_labels", (logits,), {"seed": 5, "first": 3}),
    ]


def empty() -> list[Empty]:
    eye, small = np.eye(4, dtype=f32), np.eye(3, dtype=f32)
    return [
        Empty("divergence", (floats(0, 4), eye, floats(0, 0)), {}, 0.0),
        Empty("divergence", (floats(3, 0), floats(0, 0), small), {}, 0.0),
        Empty("divergence_spectrum", (floats(0, 4), eye, floats(0, 0)), {}, (0,)),
        Empty("divergence_spectrum", (floats(3, 0), floats(0, 0), small), {}, (0,)),
        Empty("draw_labels", (floats(0, 4),), {"seed": 0}, (0,)),
    ]


def wrong() -> list[Wrong]:
    w, eye, small, vector = ones(4, 8), np.eye(8, dtype=f32), np.eye(4, dtype=f32), ones(8)
    return [
        Wrong("divergence", (w, eye, eye), {}),
        Wrong("divergence", (w, small, small), {}),
        Wrong("divergence", (vector, eye, small), {}),
        Wrong("divergence", (w, eye, np.triu(ones(4, 4))), {}),
        Wrong("divergence_spectrum", (w, eye, eye), {}),
        Wrong("divergence_spectrum", (w, eye, small), {"damping": -0.5}, ("-0.5",)),
        Wrong("divergence_patch", (w, eye, small), {"rank": 5}, ("5", "4")),
        Wrong("divergence_patch", (w, eye, small), {"rank": 0}),
        Wrong("divergence_patch", (w, eye, small), {"rank": 1, "damping": nan}, ("nan",)),
        Wrong("divergence_patch", (w, eye, small), {"rank": 1, "tolerance": -1.0}),
        Wrong("divergence_patch", (w, eye, -small), {"rank": 1}),
        Wrong("draw_labels", (vector,), {"seed": 0}),
        Wrong("draw_labels", (floats(3, 0),), {"seed": 0}),
        Wrong("draw_labels", (w,), {"seed": -1}, ("-1",)),
        Wrong("draw_labels", (w,), {"seed": 0, "first": -2}, ("-2",)),
        Wrong("draw_labels", (w,), {"seed": 0, "first": 2**32 - 2}),
    ]
