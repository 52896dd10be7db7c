"""Calls of chapter M, mixed precision."""

from __future__ import annotations

import numpy as np

from .given import Call, Empty, Given, Wrong, floats, i32, integers, ones


def ordinary(given: Given) -> list[Call]:
    w, codes = given.w, given.codes
    steps = np.arange(1, 9, dtype=np.int32) * np.ones((4, 1), np.int32)
    return [
        Call("row_bits", (codes.reshape(-1),), {"clusters": 3, "ratio": 2}),
        Call("allocate_bits", (np.abs(w), steps), {"budget": 21}),
        Call("project_rows", (w, np.array([1, 2, 4, 3], np.int32)), {}),
        Call("project_rows", (w, np.array([1, 2, 2, 3], np.int32)), {"method": "alternating"}),
    ]


def empty() -> list[Empty]:
    return [
        Empty("row_bits", (integers(0),), {"clusters": 3}, (0,)),
        Empty(
            "allocate_bits",
            (floats(0, 3), integers(0, 3)),
            {"budget": 0},
            {"bits": (0,), "size": 0, "error": 0.0, "lower_bound": 0.0},
        ),
        Empty("project_rows", (floats(0, 4), integers(0)), {}, (0, 4)),
        Empty("project_rows", (floats(2, 0), np.ones(2, i32)), {}, (2, 0)),
    ]


def wrong() -> list[Wrong]:
    w, vector, codes, words = ones(4, 8), ones(8), np.ones((4, 8), i32), np.ones((4, 1), i32)
    sizes = np.arange(1, 9, dtype=i32) * words
    return [
        Wrong("row_bits", (codes,), {"clusters": 2}),
        Wrong("row_bits", (-codes[0],), {"clusters": 2}, ("-1",)),
        Wrong("row_bits", (vector,), {"clusters": 2}),
        Wrong("row_bits", (codes[0],), {"clusters": 0}),
        Wrong("row_bits", (codes[0],), {"clusters": 9}, ("9",)),
        Wrong("row_bits", (codes[0],), {"clusters": 2, "ratio": 0}),
        Wrong("allocate_bits", (w, sizes), {"budget": 3}, ("3", "4")),
        Wrong("allocate_bits", (w, sizes[:, :7]), {"budget": 9}),
        Wrong("allocate_bits", (w, codes), {"budget": 9}),
        Wrong("allocate_bits", (w[:, :0], codes[:, :0]), {"budget": 9}),
        Wrong("allocate_bits", (w, w), {"budget": 9}),
        Wrong("project_rows", (w, np.ones(3, i32)), {}),
        Wrong("project_rows", (w, np.array([1, 2, 9, 1], i32)), {}, ("9",)),
        Wrong("project_rows", (w, np.array([1, 2, 0, 1], i32)), {}),
        Wrong("project_rows", (vector, np.ones(8, i32)), {}),
        Wrong("project_rows", (w, np.ones(4, i32)), {"method": "optimal"}, ("optimal",)),
        Wrong("project_rows", (w, np.ones(4, i32)), {"rounds": -1}, ("-1",)),
    ]
