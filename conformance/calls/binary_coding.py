"""Calls of chapter B, binary coding."""

from __future__ import annotations

import numpy as np

from .given import Call, Empty, Given, Wrong, floats, i32, integers, ones

CITES = {"bcq_from_grid": "Q"}  # chapters whose rules the operation applies to its arguments


def ordinary(given: Given) -> list[Call]:
    w, d, scale, zero, codes, bits = given.w, given.d, given.scale, given.zero, given.codes, given.bits
    binary, shift, planes = given.binary, given.shift, given.planes
    swapped = np.ascontiguousarray(binary.transpose(1, 2, 0))
    return [
        Call("bcq", (w,), {"bits": 2}),
        Call("bcq", (w,), {"bits": 3, "group_size": 4, "method": "refined", "offset": True}),
        Call("bcq", (w,), {"bits": 2, "method": "greedy"}),
        Call("bcq_refit", (w, bits), {"bits": 2, "group_size": 4, "offset": True}),
        Call("bcq_refit", (w, bits), {"bits": 2}),
        Call("bcq_assign", (w, binary, shift), {}),
        Call("bcq_assign", (w, binary, None), {}),
        Call("bcq_weight", (bits, binary, shift), {}),
        Call("bcq_from_grid", (codes, scale, zero), {"bits": 4}),
        Call("bcq_pack", (bits, binary, shift), {}),
        Call("bcq_unpack", (planes, swapped, shift.T.copy()), {"length": 8}),
        Call("lookup_tables", (w,), {"width": 3}),
        Call("bcq_product", (w, planes, swapped, shift.T.copy()), {}),
        Call("bcq_product", (w, planes, swapped, None), {"method": "lookup"}),
        Call("bcq_product", (d, planes, swapped, None), {"method": "dequantize"}),
    ]


def empty() -> list[Empty]:
    return [
        Empty("bcq", (floats(0, 4),), {"bits": 2}, {"codes": (0, 4), "scale": (0, 1, 2), "offset": None}),
        Empty(
            "bcq", (floats(2, 0),), {"bits": 2, "offset": True}, {"scale": [[[0.0, 0.0]]] * 2, "offset": [[0.0]] * 2}
        ),
        Empty("bcq_refit", (floats(2, 0), integers(2, 0)), {"bits": 1, "group_size": 4}, {"scale": (2, 0, 1)}),
        Empty("bcq_assign", (floats(0, 4), ones(0, 2, 1), None), {}, (0, 4)),
        Empty("bcq_weight", (integers(2, 0), ones(2, 1, 1), None), {}, (2, 0)),
        Empty(
            "bcq_from_grid",
            (integers(0, 4), ones(0, 2), integers(0, 2)),
            {"bits": 3},
            {"scale": (0, 2, 3), "offset": (0, 2)},
        ),
        Empty("bcq_pack", (integers(2, 0), ones(2, 1, 3), None), {}, {"planes": (0, 3, 2), "scale": (1, 3, 2)}),
        Empty(
            "bcq_unpack", (integers(1, 3, 0), ones(2, 3, 0), None), {"length": 8}, {"codes": (0, 8), "scale": (0, 2, 3)}
        ),
        Empty("lookup_tables", (floats(0, 5),), {"width": 2}, (0, 3, 4)),
        Empty("lookup_tables", (floats(2, 0),), {"width": 2}, (2, 0, 4)),
        *(
            Empty("bcq_product", arrays, {"method": method}, result)
            for method in ("auto", "lookup", "dequantize")
            for arrays, result in (
                ((floats(0, 8), integers(1, 2, 3), ones(1, 2, 3), None), []),
                ((floats(2, 0), integers(0, 2, 1), ones(1, 2, 1), None), [[0.0], [0.0]]),
                ((ones(2, 8), integers(1, 2, 0), ones(1, 2, 0), None), [[], []]),
            )
        ),
    ]


def wrong() -> list[Wrong]:
    w, vector, one, none = ones(4, 8), ones(8), ones(4, 1), integers(4, 1)
    codes = np.ones((4, 8), i32)
    return [
        Wrong("bcq", (w,), {"bits": 0}),
        Wrong("bcq", (w,), {"bits": 9}, ("9",)),
        Wrong("bcq", (vector,), {"bits": 2}),
        Wrong("bcq", (w,), {"bits": 2, "group_size": 3}, ("3", "8")),
        Wrong("bcq", (w,), {"bits": 2, "group_size": 0}),
        Wrong("bcq", (w,), {"bits": 2, "method": "optimal"}, ("optimal",)),
        Wrong("bcq", (w,), {"bits": 2, "rounds": -1}),
        Wrong("bcq_refit", (w, codes[:2]), {"bits": 2}),
        Wrong("bcq_refit", (w, 4 * codes), {"bits": 2}, ("4",)),
        Wrong("bcq_refit", (w, codes), {"bits": 2, "group_size": 3}, ("3", "8")),
        Wrong("bcq_assign", (w, ones(4, 3, 2), None), {}),
        Wrong("bcq_assign", (w, ones(4, 2), None), {}),
        Wrong("bcq_assign", (w, ones(4, 2, 1), ones(4, 1)), {}),
        Wrong("bcq_weight", (codes, ones(3, 1, 1), None), {}),
        Wrong("bcq_weight", (2 * codes, ones(4, 1, 1), None), {}, ("2",)),
        Wrong("bcq_weight", (-codes, ones(4, 1, 1), None), {}, ("-1",)),
        Wrong("bcq_weight", (codes, ones(4, 1, 9), None), {}, ("9",)),
        Wrong("bcq_from_grid", (4 * codes, one, none), {"bits": 2}, ("4",)),
        Wrong("bcq_from_grid", (codes, one, none), {"bits": 2, "scheme": "signed"}, ("signed",)),
        Wrong("bcq_from_grid", (codes, ones(4, 3), integers(4, 3)), {"bits": 2}, ("3", "8")),
        Wrong("bcq_from_grid", (codes, 0 * one, none), {"bits": 2}),
        Wrong("bcq_pack", (4 * codes, ones(4, 1, 2), None), {}, ("4",)),
        Wrong("bcq_pack", (codes, ones(4, 1, 2), ones(4)), {}),
        Wrong("bcq_unpack", (np.ones((2, 1, 4), i32), ones(1, 1, 4), None), {"length": 8}, ("8",)),
        Wrong("bcq_unpack", (np.ones((1, 1, 4), i32), ones(1, 1, 4), None), {"length": -1}),
        Wrong("bcq_unpack", (np.ones((1, 1, 4), i32), ones(3, 1, 4), None), {"length": 8}),
        Wrong("lookup_tables", (w,), {"width": 0}),
        Wrong("lookup_tables", (w,), {"width": 17}, ("17",)),
        Wrong("lookup_tables", (vector,), {}),
        Wrong("bcq_product", (w, np.ones((2, 1, 4), i32), ones(1, 1, 4), None), {}, ("8",)),
        Wrong("bcq_product", (w, np.ones((1, 1, 4), i32), ones(1, 2, 4), None), {}),
        Wrong("bcq_product", (w, np.ones((1, 1, 4), i32), ones(1, 1, 4), None), {"method": "fast"}, ("fast",)),
        Wrong("bcq_product", (vector, np.ones((1, 1, 4), i32), ones(1, 1, 4), None), {}),
    ]
