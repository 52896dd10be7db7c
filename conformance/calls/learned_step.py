"""Calls of chapter S, learned steps."""

from __future__ import annotations

import numpy as np

from .given import Call, Empty, Given, Wrong, f32, floats, ones


def ordinary(given: Given) -> list[Call]:
    w, d, moment, per_row, shift, vector = given.w, given.d, given.moment, given.per_row, given.shift, given.vector
    return [
        Call("lsq_init", (w,), {"bits": 4}),
        Call("lsq_init", (w,), {"bits": 3, "axis": 0, "signed": False, "rule": "min-max"}),
        Call("lsq_init", (w,), {"bits": 3, "axis": -1, "rule": "deviation"}),
        Call("lsq_code", (w, per_row, shift[:, 0].copy()), {"bits": 3, "axis": 0}),
        Call("lsq_code", (w, per_row), {"bits": 4, "axis": 0}),
        Call("lsq", (w, per_row[:1].copy()), {"bits": 3}),
        Call("lsq", (w, moment, vector), {"bits": 3, "axis": 1, "epsilon": 0.75}),
        Call("lsq_gradient", (d, w, per_row), {"bits": 3, "axis": 0}),
        Call("lsq_gradient", (d, w, moment, vector), {"bits": 2, "axis": 1, "count": "features"}),
    ]


def empty() -> list[Empty]:
    return [
        Empty("lsq_init", (floats(2, 0),), {"bits": 3, "axis": 0}, {"step": [1.0, 1.0]}),
        Empty("lsq_init", (floats(2, 0),), {"bits": 3, "axis": 1}, {"step": (0,)}),
        Empty("lsq_code", (floats(0, 4), ones(1)), {"bits": 3}, (0, 4)),
        Empty("lsq", (floats(2, 0), ones(2)), {"bits": 3, "axis": 0}, (2, 0)),
        Empty("lsq", (np.array(0.75, f32), ones(1)), {"bits": 3}, 1.0),
        Empty(
            "lsq_gradient",
            (floats(0, 4), floats(0, 4), ones(4), ones(4)),
            {"bits": 3, "axis": 1, "count": "features"},
            {"x": (0, 4), "step": [0.0] * 4, "offset": [0.0] * 4},
        ),
    ]


def wrong() -> list[Wrong]:
    w, vector, one = ones(4, 8), ones(8), ones(4, 1)
    return [
        Wrong("lsq_init", (w,), {"bits": 1}, ("1",)),
        Wrong("lsq_init", (w,), {"bits": 9, "signed": False}, ("9",)),
        Wrong("lsq_init", (w,), {"bits": 4, "axis": 2}, ("2",)),
        Wrong("lsq_init", (w,), {"bits": 4, "rule": "maximum"}, ("maximum",)),
        Wrong("lsq_code", (w, vector), {"bits": 4}),
        Wrong("lsq_code", (w, vector), {"bits": 4, "axis": 0}),
        Wrong("lsq_code", (w, one), {"bits": 4, "axis": 0}),
        Wrong("lsq_code", (w, vector, vector[:4]), {"bits": 4, "axis": 1}),
        Wrong("lsq", (w, 0 * vector), {"bits": 4, "axis": 1}),
        Wrong("lsq", (w, -vector), {"bits": 4, "axis": 1}, ("-1",)),
        Wrong("lsq", (w, vector), {"bits": 4, "axis": 1, "epsilon": -1.0}, ("-1",)),
        Wrong("lsq", (w, vector), {"bits": 4, "axis": 1, "signed": 1}),
        Wrong("lsq_gradient", (w[:3], w, vector), {"bits": 4, "axis": 1}),
        Wrong("lsq_gradient", (w, w, vector[:4]), {"bits": 4, "axis": 0, "count": "features"}),
        Wrong("lsq_gradient", (w, w, vector), {"bits": 4, "axis": 1, "count": "weights"}, ("weights",)),
    ]
