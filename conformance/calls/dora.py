"""Calls of chapter D, magnitude and direction apart."""

from __future__ import annotations

import numpy as np

from .given import Call, Empty, Given, Wrong, f32, floats, nan, ones


def ordinary(given: Given) -> list[Call]:
    w, d, b, a, per_row = given.w, given.d, given.b, given.a, given.per_row
    return [
        Call("dora_magnitude", (w,), {}),
        Call("dora_magnitude", (w.reshape(4, 2, 4),), {"layout": "conv"}),
        Call("dora_norm", (w, b, a), {"scaling": 2.0}),
        Call("factored_norm", (w, 100 * per_row, b, a), {"scaling": 0.5}),
        Call("dora_weight", (w, b, a, per_row), {"scaling": 2.0}),
        Call(
            "dora_weight",
            (w.reshape(4, 2, 4), b.reshape(4, 2, 1), a.reshape(2, 2, 4), per_row),
            {"scaling": 2.0, "layout": "conv"},
        ),
        Call("dora_forward", (d, d * (d > 0), w, per_row, b, a, per_row), {"scaling": 2.0}),
        Call("dora_gradient", (d, w, b, a, per_row), {"scaling": 2.0}),
        Call("dora_gradient", (d.T, w.T, b, a, per_row), {"scaling": 2.0, "detach": False, "layout": "transposed"}),
        Call("dora_merge", (w, b, a, per_row), {"scaling": 2.0}),
        Call("dora_unmerge", (w, b, a, per_row), {"scaling": 2.0}),
        Call("dvora_factors", (b, a, per_row, per_row[:2]), {}),
        Call("dvora_gradient", (b, a, b[::-1], a[::-1]), {}),
        Call("decomposition_change", (w, d), {}),
        Call("dora_to_lora", (w, b, a, per_row), {"scaling": 2.0, "rank": 2}),
    ]


def empty() -> list[Empty]:
    eye = np.eye(4, dtype=f32)
    return [
        Empty("dora_magnitude", (floats(0, 4),), {}, (0,)),
        Empty("dora_magnitude", (floats(2, 0),), {}, [0, 0]),
        Empty("dora_norm", (eye, floats(4, 0), floats(0, 4)), {"scaling": 1.0}, [1] * 4),
        Empty("dora_weight", (floats(2, 0), ones(2, 1), floats(1, 0), ones(2)), {"scaling": 1.0}, (2, 0)),
        Empty("dora_forward", (*[floats(0, 4)] * 2, eye, ones(4), eye, eye, ones(4)), {"scaling": 1.0}, (0, 4)),
        Empty(
            "dora_gradient",
            (eye, eye, floats(4, 0), floats(0, 4), ones(4)),
            {"scaling": 1.0},
            {"B": (4, 0), "A": (0, 4), "magnitude": [1] * 4},
        ),
        Empty(
            "dora_merge",
            (floats(0, 4), floats(0, 1), floats(1, 4), floats(0)),
            {"scaling": 1.0},
            {"weight": (0, 4), "factor": (0,)},
        ),
        Empty("decomposition_change", (floats(0, 4),) * 2, {}, {"magnitude": 0, "direction": 0}),
    ]


def wrong() -> list[Wrong]:
    w, vector, b, a = ones(4, 8), ones(8), ones(4, 2), ones(2, 8)
    return [
        Wrong("dora_magnitude", (vector,), {}),
        Wrong("dora_magnitude", (w,), {"layout": "rows"}, ("rows",)),
        Wrong("dora_magnitude", (w,), {"layout": "conv"}),
        Wrong("dora_norm", (w, a.T, a), {"scaling": 1.0}),
        Wrong("dora_norm", (w, b, a), {"scaling": nan}),
        Wrong("dora_norm", (w, b, a), {"scaling": 1.0, "layout": "transposed"}),
        Wrong("factored_norm", (w, vector, b, a), {"scaling": 1.0}),
        Wrong("factored_norm", (w, -vector[:4], b, a), {"scaling": 1.0}),
        Wrong("dora_weight", (w, b, a, vector), {"scaling": 1.0}),
        Wrong("dora_weight", (w, b, ones(3, 8), vector[:4]), {"scaling": 1.0}),
        Wrong("dora_forward", (w, w[:3], w, vector[:4], b, a, vector[:4]), {"scaling": 1.0}),
        Wrong("dora_forward", (b, b, w, vector[:4], b, a, vector[:4]), {"scaling": 1.0}, ("8",)),
        Wrong("dora_forward", (w, w, w, vector, b, a, vector[:4]), {"scaling": 1.0}),
        Wrong("dora_forward", (w, w, w, vector[:4], b, a, vector[:4]), {"scaling": 1.0, "layout": "conv"}, ("conv",)),
        Wrong("dora_gradient", (w[:3], w, b, a, vector[:4]), {"scaling": 1.0}),
        Wrong("dora_gradient", (w, w, b, a, vector[:4]), {"scaling": 1.0, "detach": 1}),
        Wrong("dora_merge", (w, b, a, vector), {"scaling": 1.0}),
        Wrong("dora_unmerge", (w, b, a, vector), {"scaling": 1.0}),
        Wrong("dora_unmerge", (w, b, a, np.array([1, 1, 0, 1], f32)), {"scaling": 1.0}, ("2",)),
        Wrong("dvora_factors", (b, a, vector[:4], vector), {}),
        Wrong("dvora_factors", (b, ones(3, 8), vector[:4], vector[:3]), {}),
        Wrong("dvora_gradient", (b, a, b, b), {}),
        Wrong("decomposition_change", (w, b), {}),
        Wrong("dora_to_lora", (w, b, a, vector[:4]), {"scaling": 1.0, "rank": 5}, ("5", "4")),
        Wrong("dora_to_lora", (w, b, a, vector[:4]), {"scaling": 1.0, "rank": 0}),
    ]
