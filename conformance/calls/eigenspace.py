"""Calls of chapter E, eigenspace compensation."""

from __future__ import annotations

import numpy as np

from .given import Call, Empty, Given, Wrong, f32, floats, ones

CITES = {"quantize_adapter": "QG"}  # chapters whose rules the operation applies to its arguments


def ordinary(given: Given) -> list[Call]:
    d, h, b, a = given.d, given.h, given.b, given.a
    return [
        Call("objective", (d, h), {}),
        Call("eora", (d, h), {"rank": 2}),
        Call("error_spectrum", (d, h), {}),
        Call("optimum", (d, h), {"rank": 2}),
        Call("eora_published", (d, h), {"rank": 2}),
        Call("eora_certified", (d, h), {"rank": 2}),
        Call("stationarity", (d, h, b, a), {}),
        Call("quantize_adapter", (b, a, h), {"bits": 4}),
        Call("residual_moment", (h, a), {}),
    ]


def empty() -> list[Empty]:
    eye = np.eye(4, dtype=f32)
    return [
        Empty("objective", (floats(0, 4), eye), {}, 0.0),
        Empty("error_spectrum", (floats(0, 4), eye), {}, (0,)),
        Empty("error_spectrum", (floats(3, 0), floats(0, 0)), {}, (0,)),
        Empty("residual_moment", (eye, floats(0, 4)), {}, (4, 4)),
        Empty("residual_moment", (floats(0, 0), floats(2, 0)), {}, (0, 0)),
    ]


def wrong() -> list[Wrong]:
    w, eye, vector, b = ones(4, 8), np.eye(8, dtype=f32), ones(8), ones(4, 2)
    a = ones(2, 8)
    return [
        Wrong("objective", (w, np.eye(4, dtype=f32)), {}),
        Wrong("objective", (vector, eye), {}),
        Wrong("eora", (w, eye), {"rank": 5}, ("5", "4")),
        Wrong("eora", (w, np.eye(4, dtype=f32)), {"rank": 1}),
        Wrong("eora", (w, eye), {"rank": 1, "split": "right"}, ("right",)),
        Wrong("error_spectrum", (w, vector), {}),
        Wrong("optimum", (w, eye), {"rank": 0}),
        Wrong("eora_published", (w, eye), {"rank": 1, "policy": "ignore"}, ("ignore",)),
        Wrong("eora_certified", (w, eye), {"rank": 1, "tolerance": -1.0}),
        Wrong("eora_certified", (w, eye), {"rank": 9}, ("9",)),
        Wrong("stationarity", (w, eye, b, ones(3, 8)), {}),
        Wrong("stationarity", (w, eye, ones(3, 2), a), {}),
        Wrong("quantize_adapter", (b, a, eye), {"bits": 4, "method": "awq"}, ("awq",)),
        Wrong("quantize_adapter", (ones(4, 3), a, eye), {"bits": 4}),
        Wrong("quantize_adapter", (b, a, np.eye(4, dtype=f32)), {"bits": 4}),
        Wrong("residual_moment", (eye, ones(2, 4)), {}),
        Wrong("residual_moment", (np.triu(ones(8, 8)), a), {}),
    ]
