"""Calls of chapter L, look-up tables."""

from __future__ import annotations

import numpy as np

from lowbit.reference.types import IntegerTable, Table

from .given import Array, Call, Empty, Given, Wrong, f32, floats, i32, integers, nan, ones

FLOAT64 = ("fit_chords", "fit_segments", "round_table")


def ordinary(given: Given) -> list[Call]:
    w, codes, moment, per_row, vector = given.w, given.codes, given.moment, given.per_row, given.vector
    lines: Table[Array] = Table(np.array([-1.0, 0.5]), np.array([0.0, 0.25, 1.0]), np.array([0.0, 0.25, -0.125]))
    ends = np.array([-2.0, -0.5, 1.0, 4.0], given.dtype)
    exp, div, root = (  # exp, 1/x and 1/√x in steps of 1/4 and 1/8: breakpoints, slopes, intercepts
        IntegerTable(np.array(p, i32), np.array(k, i32), np.array(b, i32), 2, 3)
        for p, k, b in (
            ((-12, -6, -3), (0, 1, 2, 6), (1, 13, 19, 31)),
            ((3, 5, 10), (-16, -7, -3, -1), (102, 75, 55, 35)),
            ((2, 4, 8), (-12, -8, -3, -1), (80, 72, 52, 36)),
        )
    )
    return [
        Call("fit_chords", (ends, per_row), {}),
        Call("fit_segments", (vector, moment, ends[1:3]), {}),
        Call("round_table", (lines,), {"fraction_bits": 1, "bits": 2}),
        Call("integer_table", (lines,), {"scale_bits": 2}),
        Call("evaluate_table", (w, lines), {}),
        Call("evaluate_codes", (codes, exp), {"tie": "right"}),
        Call("evaluate_codes", (codes, exp), {}),
        Call("lookup_codes", (codes % 4, ends), {"low": 0}),
        Call("lookup_codes", (codes % 4 - 2, np.array([3, 2, 4, 3], np.int32)), {"low": -2}),
        Call("requantize_codes", (9 * codes,), {"shift": 2}),
        Call("table_gradient", (w, codes), {"scale": 0.25, "function": "gelu"}),
        Call("table_gradient", (w, codes), {"scale": 0.5, "function": "silu"}),
        Call("table_gradient", (w, codes), {"scale": 0.25, "function": "tanh"}),
        Call("evaluate_ranges", (9 * moment, lines), {"function": "rsqrt"}),
        Call("evaluate_ranges", (abs(w) + 1, lines), {"function": "reciprocal"}),
        Call("table_softmax", (codes, exp, div), {}),
        Call("table_layer_norm", (codes, root), {}),
        Call("verify_table", (exp, np.exp(vector)), {"low": -8}),
    ]


def empty() -> list[Empty]:
    flat: Table[Array] = Table(np.zeros(0), np.array([0.25]), np.array([1.0]))
    level: IntegerTable[Array] = IntegerTable(integers(0), np.array([1], i32), np.array([1], i32), 0, 0)
    return [
        Empty("fit_chords", (floats(2), ones(2)), {}, {"breakpoints": (0,), "slopes": [0.0]}),
        Empty("fit_segments", (floats(0),) * 3, {}, {"intercepts": [0.0]}),
        Empty("evaluate_table", (floats(2, 0), flat), {}, (2, 0)),
        Empty("evaluate_table", (np.array(2.0, f32), flat), {}, 1.5),
        Empty("evaluate_codes", (integers(0, 3), level), {}, (0, 3)),
        Empty("evaluate_codes", (np.array(2, i32), level), {}, 3),
        Empty("lookup_codes", (integers(0, 3), floats(0)), {}, (0, 3)),
        Empty("requantize_codes", (integers(3, 0),), {"shift": 1}, (3, 0)),
        Empty(
            "table_gradient",
            (floats(0, 2), integers(0, 2)),
            {"scale": 1.0, "function": "exp"},
            {"codes": (0, 2), "scale": 0.0},
        ),
        Empty("evaluate_ranges", (floats(0), flat), {"function": "rsqrt"}, (0,)),
        Empty("table_softmax", (integers(0, 3), level, level), {}, (0, 3)),
        Empty("table_layer_norm", (integers(0, 3), level), {}, (0, 3)),
        Empty(
            "verify_table",
            (level, floats(0)),
            {"low": 5},
            {"mse": 0, "max_error": 0, "worst": 5, "turns": 0, "signs": 0},
        ),
    ]


def wrong() -> list[Wrong]:
    w, vector, codes, ramp = ones(4, 8), ones(8), np.ones((4, 8), i32), np.arange(4, dtype=f32)
    lines: Table[Array] = Table(np.array([1.0]), np.array([0.25, 0.5]), np.array([0.0, -0.25]))
    level: IntegerTable[Array] = IntegerTable(integers(0), np.array([2], i32), np.array([1], i32), 0, 0)
    return [
        Wrong("fit_chords", (ramp, ramp[:3]), {}, ("4", "3")),
        Wrong("fit_chords", (ramp[:1], ramp[:1]), {}, ("1",)),
        Wrong("fit_chords", (-ramp, ramp), {}),
        Wrong("fit_chords", (w, w), {}),
        Wrong("fit_segments", (ramp, ramp[:3], ramp), {}, ("4", "3")),
        Wrong("fit_segments", (ramp, ramp, -ramp), {}),
        Wrong("fit_segments", (ramp, ramp, ramp), {"tie": "up"}, ("up",)),
        Wrong("round_table", (lines._replace(slopes=np.ones(3)),), {}, ("3", "2")),
        Wrong("round_table", (lines,), {"fraction_bits": -1}, ("-1",)),
        Wrong("round_table", (lines,), {"fraction_bits": 25}, ("25",)),
        Wrong("round_table", (lines,), {"bits": 1}, ("1",)),
        Wrong("integer_table", (lines,), {"scale_bits": 2, "fraction_bits": 1}, ("0.25",)),
        Wrong("integer_table", (lines,), {"scale_bits": -1}, ("-1",)),
        Wrong("integer_table", (lines,), {"scale_bits": 24, "fraction_bits": 24}),
        Wrong("integer_table", (Table(np.array([1.0, 0.0]), np.ones(3), np.ones(3)),), {"scale_bits": 2}),
        Wrong("evaluate_table", (w, lines), {"tie": "both"}, ("both",)),
        Wrong("evaluate_table", (w, lines._replace(intercepts=np.ones(3))), {}, ("3", "2")),
        Wrong("evaluate_codes", (codes, level), {"tie": "both"}, ("both",)),
        Wrong("evaluate_codes", (codes, level._replace(breakpoints=np.array([1], i32))), {}),
        Wrong("evaluate_codes", (2**30 * codes, level), {}),
        Wrong("evaluate_codes", (codes, level._replace(scale_bits=25)), {}, ("25",)),
        Wrong("evaluate_codes", (codes, level._replace(fraction_bits=-1)), {}, ("-1",)),
        Wrong("evaluate_codes", (w, level), {}),
        Wrong("lookup_codes", (codes, ramp), {}, ("-125",)),
        Wrong("lookup_codes", (4 * codes, ramp), {"low": 0}, ("4",)),
        Wrong("lookup_codes", (-codes, ramp), {"low": 0}, ("-1",)),
        Wrong("lookup_codes", (codes, w), {"low": 0}),
        Wrong("requantize_codes", (codes,), {"shift": -1}, ("-1",)),
        Wrong("requantize_codes", (codes,), {"shift": 32}, ("32",)),
        Wrong("requantize_codes", (codes,), {"shift": 1, "low": 3, "high": 2}),
        Wrong("requantize_codes", (w,), {"shift": 1}),
        Wrong("table_gradient", (w, codes[:3]), {"scale": 1.0, "function": "gelu"}),
        Wrong("table_gradient", (w, codes), {"scale": 0.0, "function": "gelu"}),
        Wrong("table_gradient", (w, codes), {"scale": nan, "function": "gelu"}),
        Wrong("table_gradient", (w, codes), {"scale": 1.0, "function": "relu"}, ("relu",)),
        Wrong("table_gradient", (w, 0 * codes), {"scale": 1.0, "function": "reciprocal"}, ("0",)),
        Wrong("evaluate_ranges", (w, lines), {"function": "exp"}, ("exp",)),
        Wrong("evaluate_ranges", (-w, lines), {"function": "rsqrt"}, ("-1",)),
        Wrong("evaluate_ranges", (0 * w, lines), {"function": "reciprocal"}),
        Wrong("evaluate_ranges", (w, lines), {"function": "rsqrt", "tie": "both"}, ("both",)),
        Wrong("table_softmax", (codes[:, :0], level, level), {}),
        Wrong("table_softmax", (2**25 * codes, level, level), {}),
        Wrong("table_softmax", (codes, level, level), {"out_bits": 17}, ("17",)),
        Wrong("table_softmax", (codes, level, level), {"tie": "both"}, ("both",)),
        Wrong("table_softmax", (codes, level._replace(slopes=np.array([2**30], i32)), level), {}),
        Wrong("table_layer_norm", (codes[:, :0], level), {}),
        Wrong("table_layer_norm", (2**28 * codes, level), {}),
        Wrong("table_layer_norm", (codes, level), {"out_bits": -1}, ("-1",)),
        Wrong("table_layer_norm", (codes, level), {"tie": "both"}, ("both",)),
        Wrong("verify_table", (level, w), {}),
        Wrong("verify_table", (level, vector), {"tie": "both"}, ("both",)),
        Wrong("verify_table", (level, vector), {"low": 2**31}),
    ]
