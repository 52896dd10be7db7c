"""Calls of chapter Q, uniform grids and packing."""

from __future__ import annotations

import numpy as np

from .given import Call, Empty, Given, Wrong, f32, floats, i32, integers, nan, ones


def ordinary(given: Given) -> list[Call]:
    w, scale, zero, codes, words = given.w, given.scale, given.zero, given.codes, given.words
    return [
        Call("fit_grid", (w,), {"bits": 4}),
        Call("fit_grid", (w,), {"bits": 3, "scheme": "symmetric", "granularity": "group", "group_size": 4}),
        Call("fit_grid", (w,), {"bits": 8, "granularity": "tensor", "scale_dtype": "float16"}),
        Call("clip_search", (w,), {"bits": 3, "grid": 20}),
        Call("clip_search", (w,), {"bits": 3, "granularity": "group", "group_size": 4}),
        Call("quantize", (w, scale, zero), {"bits": 4}),
        Call("dequantize", (codes, scale, zero), {}),
        Call("pack", (codes,), {"bits": 4}),
        Call("pack", (codes,), {"bits": 5, "layout": "padded"}),
        Call("unpack", (words,), {"bits": 3, "length": 20}),
        Call("unpack", (words,), {"bits": 3, "length": 20, "layout": "padded"}),
    ]


def empty() -> list[Empty]:
    return [
        Empty("fit_grid", (floats(0, 4),), {"bits": 4}, {"scale": (0, 1), "zero_point": (0, 1)}),
        Empty("fit_grid", (floats(2, 0),), {"bits": 4}, {"zero_point": [[8], [8]]}),
        Empty("fit_grid", (np.array(3.0, f32),), {"bits": 4, "granularity": "tensor"}, {"scale": ()}),
        Empty("clip_search", (floats(0, 4),), {"bits": 4}, {"step": (0, 1)}),
        Empty("quantize", (floats(0, 4), ones(0, 2), integers(0, 2)), {"bits": 4}, (0, 4)),
        Empty("quantize", (floats(2, 0), ones(2, 1), integers(2, 1)), {"bits": 4}, (2, 0)),
        Empty("dequantize", (integers(0, 4), ones(0, 2), integers(0, 2)), {}, (0, 4)),
        Empty("pack", (integers(0, 5),), {"bits": 7}, (0, 2)),
        Empty("pack", (integers(2, 0),), {"bits": 7}, (2, 0)),
        Empty("unpack", (integers(0, 2),), {"bits": 7, "length": 5}, (0, 5)),
        Empty("unpack", (integers(2, 0),), {"bits": 7, "length": 0}, (2, 0)),
        Empty("fit_grid", (floats(0, 0),), {"bits": 4, "include_zero": False}, {"scale": (0, 1)}),
        Empty("fit_grid", (floats(0, 0),), {"bits": 4, "granularity": "tensor"}, {"scale": (1, 1)}),
        Empty("fit_grid", (floats(3, 0),), {"bits": 4, "granularity": "group", "group_size": 4}, {"scale": (3, 0)}),
        Empty("clip_search", (floats(3, 0),), {"bits": 4}, {"scale": (3, 1)}),
        Empty("unpack", (integers(0, 2),), {"bits": 3, "length": 20}, (0, 20)),
    ]


def wrong() -> list[Wrong]:
    w, cube, one, none = ones(4, 8), ones(2, 2, 8), ones(4, 1), integers(4, 1)
    codes, words = np.ones((4, 8), i32), np.ones((4, 1), i32)
    return [
        Wrong("fit_grid", (w,), {"bits": 4, "granularity": "group", "group_size": 3}, ("3", "8")),
        Wrong("fit_grid", (w,), {"bits": 4, "granularity": "group", "group_size": 0}),
        Wrong("fit_grid", (w,), {"bits": 4, "granularity": "group"}),
        Wrong("fit_grid", (w,), {"bits": 4, "granularity": "row", "group_size": 4}),
        Wrong("fit_grid", (w,), {"bits": 4, "granularity": "column"}, ("column",)),
        Wrong("fit_grid", (cube,), {"bits": 4, "granularity": "row"}),
        Wrong("fit_grid", (w,), {"bits": 4, "clip_ratio": 0.0}),
        Wrong("fit_grid", (w,), {"bits": 4, "clip_ratio": 1.5}, ("1.5",)),
        Wrong("fit_grid", (w,), {"bits": 4, "clip_ratio": nan}),
        Wrong("fit_grid", (w,), {"bits": 4, "range_floor": -1.0}),
        Wrong("fit_grid", (w,), {"bits": 4, "scale_dtype": "int8"}, ("int8",)),
        Wrong("clip_search", (w,), {"bits": 4, "grid": 0}),
        Wrong("clip_search", (w,), {"bits": 4, "granularity": "group", "group_size": 5}, ("5", "8")),
        Wrong("quantize", (w, ones(4, 3), integers(4, 3)), {"bits": 4}, ("3", "8")),
        Wrong("quantize", (w, ones(3, 1), integers(3, 1)), {"bits": 4}),
        Wrong("quantize", (w, one, integers(4, 2)), {"bits": 4}),
        Wrong("quantize", (w, floats(4, 1), none), {"bits": 4}),
        Wrong("dequantize", (codes, ones(4, 3), integers(4, 3)), {}),
        Wrong("pack", (codes[0],), {"bits": 4}),
        Wrong("pack", (codes,), {"bits": 0}),
        Wrong("pack", (codes,), {"bits": 9}, ("9",)),
        Wrong("pack", (codes,), {"bits": 4, "layout": "sparse"}, ("sparse",)),
        Wrong("unpack", (words,), {"bits": 4, "length": 9}),
        Wrong("unpack", (words,), {"bits": 4, "length": -1}),
    ]
