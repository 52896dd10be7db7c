"""Calls of chapter N, codebooks."""

from __future__ import annotations

import numpy as np

from .given import Call, Empty, Given, Wrong, f32, floats, i32, integers, ones

FLOAT64 = ("normal_float", "dynamic_float")

CITES = {"codebook_matmul": "Q"}  # chapters whose rules the operation applies to its arguments


def ordinary(given: Given) -> list[Call]:
    w, d, scale, codes, words, levels = given.w, given.d, given.scale, given.codes, given.words, given.levels
    moment = given.moment
    blocks, packed = moment[:3].copy(), {"bits": 2, "block_size": 4}
    return [
        Call("normal_float", (), {"bits": 4}),
        Call("dynamic_float", (), {"bits": 8}),
        Call("block_scale", (w,), {"block_size": 12}),
        Call("block_scale", (w,), {}),
        Call("quantize_blocks", (w, blocks, levels), {"block_size": 12}),
        Call("dequantize_blocks", (codes % 4, blocks, levels), {"block_size": 12}),
        Call("quantize_scale", (moment, levels), {"block_size": 3}),
        Call("dequantize_scale", (codes[0] % 4, blocks, moment[:1].reshape(()), levels), {"block_size": 3}),
        Call("codebook_matmul", (d, words[:, 1:], scale[:2].ravel(), levels), packed),
        Call("loftq", (w,), {"rank": 2, "bits": 2, "block_size": 12, "iterations": 2}),
        Call("loftq", (w,), {"rank": 1, "bits": 3, "quantizer": "uniform", "scaling": 2.0}),
    ]


def empty() -> list[Empty]:
    return [
        Empty("block_scale", (floats(0, 4),), {}, (0,)),
        Empty("quantize_blocks", (floats(0, 3), floats(0), ones(1)), {}, (0, 3)),
        Empty("quantize_blocks", (np.array(3.0, f32), ones(1), np.arange(5, dtype=f32)), {}, ()),
        Empty("dequantize_blocks", (integers(3, 0), floats(0), ones(1)), {}, (3, 0)),
        Empty("quantize_scale", (floats(0), ones(1)), {}, {"codes": (0,), "scale": (0,), "offset": 0.0}),
        Empty("dequantize_scale", (integers(0), floats(0), np.array(2.0, f32), ones(1)), {}, (0,)),
        Empty(
            "codebook_matmul", (floats(0, 16), integers(3, 1), ones(1), np.arange(4, dtype=f32)), {"bits": 2}, (0, 3)
        ),
        Empty(
            "codebook_matmul",
            (floats(2, 0), integers(3, 0), floats(0), np.arange(4, dtype=f32)),
            {"bits": 2},
            [[0.0] * 3] * 2,
        ),
    ]


def wrong() -> list[Wrong]:
    w, vector, one, codes = ones(4, 8), ones(8), ones(4, 1), np.ones((4, 8), i32)
    words, ramp = np.ones((4, 1), i32), np.arange(4, dtype=f32)
    return [
        Wrong("normal_float", (), {"bits": 1}, ("1",)),
        Wrong("normal_float", (), {"bits": 9}, ("9",)),
        Wrong("normal_float", (), {"bits": 4, "offset": 1.0}),
        Wrong("normal_float", (), {"bits": 4, "offset": 0.5}),
        Wrong("dynamic_float", (), {"bits": 2}, ("2",)),
        Wrong("block_scale", (w,), {"block_size": 0}, ("0",)),
        Wrong("quantize_blocks", (w, ones(3), ramp), {"block_size": 8}, ("3", "4")),
        Wrong("quantize_blocks", (w, one, ramp), {"block_size": 8}),
        Wrong("quantize_blocks", (w, -ones(4), ramp), {"block_size": 8}),
        Wrong("quantize_blocks", (w, ones(4), ramp[::-1].copy()), {"block_size": 8}),
        Wrong("quantize_blocks", (w, ones(4), ramp[:0]), {"block_size": 8}),
        Wrong("dequantize_blocks", (codes, ones(3), ramp), {"block_size": 8}, ("3", "4")),
        Wrong("dequantize_blocks", (9 * codes, ones(4), ramp), {"block_size": 8}, ("9",)),
        Wrong("dequantize_blocks", (-codes, ones(4), ramp), {"block_size": 8}, ("-1",)),
        Wrong("quantize_scale", (w, ramp), {}),
        Wrong("quantize_scale", (vector, ramp), {"block_size": 0}),
        Wrong("dequantize_scale", (codes[0], ones(2), np.array(1.0, f32), ramp), {}, ("2", "1")),
        Wrong("dequantize_scale", (codes[0], ones(1), ones(2), ramp), {}),
        Wrong("codebook_matmul", (w, words, ones(1), ramp), {"bits": 3}, ("8", "4")),
        Wrong("codebook_matmul", (w, words, ones(2), ramp), {"bits": 2}, ("2", "1")),
        Wrong("codebook_matmul", (vector, words, ones(1), ramp), {"bits": 2}),
        Wrong("codebook_matmul", (ones(2, 40), words, ones(3), ramp), {"bits": 2}),
        Wrong("loftq", (w,), {"rank": 5}, ("5", "4")),
        Wrong("loftq", (vector,), {"rank": 1}),
        Wrong("loftq", (w,), {"rank": 1, "bits": 1}, ("1",)),
        Wrong("loftq", (w,), {"rank": 1, "iterations": 0}, ("0",)),
        Wrong("loftq", (w,), {"rank": 1, "block_size": 0}, ("0",)),
        Wrong("loftq", (w,), {"rank": 1, "quantizer": "int"}, ("int",)),
        Wrong("loftq", (w,), {"rank": 1, "keep": "first"}, ("first",)),
        Wrong("loftq", (w,), {"rank": 1, "scaling": 0.0}),
    ]
