"""Calls of chapter O, oscillation."""

from __future__ import annotations

import numpy as np

from .given import Call, Empty, Given, Wrong, f32, floats, i32, integers, nan, ones

FLOAT32 = ("start_oscillation",)  # integers alone come in: float32, or the wider compute dtype


def ordinary(given: Given) -> list[Call]:
    w, d, h, codes = given.w, given.d, given.h, given.codes
    return [
        Call("statsq", (w,), {"bits": 2}),
        Call("statsq", (d.reshape(2, 2, 8),), {"bits": 3}),
        Call("statsq_grad", (w, d), {"bits": 2}),
        Call("statsq_grad", (w, d), {"bits": 2, "path": "scale"}),
        Call("start_oscillation", (codes,), {}),
        Call(
            "track_oscillation",
            (codes, codes[::-1].copy(), codes % 3 - 1, np.abs(w), codes, d, w > 0, codes // 2),
            {"momentum": 0.25, "threshold": 0.5},
        ),
        Call("boundary_statistics", (w, d, d + 1), {"bits": 2, "boundary_range": 0.25}),
        Call("cga_mask", (w,), {"bits": 2, "boundary_range": 0.25, "thresholds": "occupied"}),
        Call("cga_mask", (w,), {"bits": 2, "boundary_range": 0.25}),
        Call("cga_step", (w, d, d / 2, d * d, w > 0), {"step": 3, "lr": 0.125, "decay": 0.25}),
        Call("qkr_weight", (w, d), {"heads": 2}),
        Call("qkr_grad", (w, d, np.tile(h, (2, 1)), np.tile(h, (2, 1)) > 0), {"heads": 2}),
        Call("qkr_attention", (w.reshape(2, 2, 8), w, d, d + 1, w[:, 0].copy(), d[:, 1].copy()), {"heads": 2}),
    ]


def empty() -> list[Empty]:
    eye = np.eye(4, dtype=f32)
    return [
        Empty("statsq", (floats(0, 4),), {"bits": 2}, {"codes": (0, 4), "scale": (0, 1)}),
        Empty("statsq", (floats(3, 0),), {"bits": 2}, {"scale": [[0.0]] * 3}),
        Empty("statsq", (floats(0, 2, 4),), {"bits": 2}, {"scale": [[[0.0]] * 2]}),
        Empty("statsq_grad", (floats(0, 4), floats(0, 4)), {"bits": 2, "path": "scale"}, (0, 4)),
        Empty("start_oscillation", (integers(0, 3),), {}, {"average": (0, 3)}),
        Empty("start_oscillation", (np.array(7, i32),), {}, {"average": 7.0}),
        Empty(
            "track_oscillation",
            tuple(
                np.array(n, kind)
                for n, kind in zip((7, 6, 0, 0, 0, 6, 0, 0), (i32, i32, i32, f32, i32, f32, bool, i32), strict=True)
            ),
            {"momentum": 0.5},
            {"codes": 7, "average": 6.5},
        ),
        Empty(
            "track_oscillation",
            (*[integers(0)] * 3, floats(0), integers(0), floats(0), np.zeros(0, np.bool_), integers(0)),
            {},
            {"codes": (0,)},
        ),
        Empty(
            "boundary_statistics",
            (floats(0, 4),) * 3,
            {"bits": 2},
            {"near": 0, "share": 0, "flips": 0, "flips_elsewhere": 0},
        ),
        Empty("cga_mask", (floats(2, 0),), {"bits": 2, "thresholds": "occupied"}, (2, 0)),
        Empty(
            "cga_step", (*[floats(0, 4)] * 4, np.zeros((0, 4), np.bool_)), {"step": 1, "lr": 0.5}, {"weight": (0, 4)}
        ),
        Empty("qkr_weight", (floats(0, 4), floats(0, 4)), {"heads": 2}, [[0] * 4] * 8),
        Empty("qkr_grad", (floats(2, 0), floats(2, 0), floats(0, 0)), {"heads": 2}, {"q": (2, 0), "k": (2, 0)}),
        Empty("qkr_attention", (floats(2, 0, 4), eye[:4], eye[:4], eye[:2]), {"heads": 2}, (2, 0, 2)),
    ]


def wrong() -> list[Wrong]:
    w, cube, vector, codes = ones(4, 8), ones(2, 2, 8), ones(8), np.ones((4, 8), i32)
    tracked = (codes, codes, w, codes, w, w > 0, codes)
    return [
        Wrong("statsq", (w,), {"bits": 0}, ("0",)),
        Wrong("statsq", (w,), {"bits": 17}, ("17",)),
        Wrong("statsq", (w,), {"bits": 2.0}, ("2.0",)),
        Wrong("statsq", (vector,), {"bits": 2}),
        Wrong("statsq", (w,), {"bits": -1}, ("-1",)),
        Wrong("statsq_grad", (w, w[:, :4]), {"bits": 2}),
        Wrong("statsq_grad", (w, w), {"bits": 2, "path": "lsq"}, ("lsq",)),
        Wrong("start_oscillation", (w,), {}),
        Wrong("track_oscillation", (codes[:2], *tracked), {}),
        Wrong("track_oscillation", (codes, codes, codes + 1, *tracked[2:]), {}, ("2",)),
        Wrong("track_oscillation", (codes, *tracked[:5], codes, codes), {}),
        Wrong("track_oscillation", (codes, *tracked), {"momentum": 0.0}),
        Wrong("track_oscillation", (codes, *tracked), {"momentum": 1.5}, ("1.5",)),
        Wrong("track_oscillation", (codes, *tracked), {"threshold": -0.5}, ("-0.5",)),
        Wrong("track_oscillation", (codes, *tracked), {"freeze_to": "last"}, ("last",)),
        Wrong("track_oscillation", (codes, *tracked), {"targets": "free"}, ("free",)),
        Wrong("boundary_statistics", (w, w[:1], w), {"bits": 2}),
        Wrong("boundary_statistics", (w, w, w), {"bits": 2, "boundary_range": nan}),
        Wrong("cga_mask", (w,), {"bits": 2, "boundary_range": 0.75}, ("0.75",)),
        Wrong("cga_mask", (w,), {"bits": 2, "boundary_range": -0.1}),
        Wrong("cga_mask", (w,), {"bits": 2, "thresholds": "some"}, ("some",)),
        Wrong("cga_mask", (vector,), {"bits": 2}),
        Wrong("cga_step", (w, w, w, w, codes), {"step": 1, "lr": 0.1}),
        Wrong("cga_step", (w, w[:1], w, w, w > 0), {"step": 1, "lr": 0.1}),
        Wrong("cga_step", (w, w, w, -w, w > 0), {"step": 1, "lr": 0.1}),
        Wrong("cga_step", (w, w, w, w, w > 0), {"step": 0, "lr": 0.1}, ("0",)),
        Wrong("cga_step", (w, w, w, w, w > 0), {"step": 1, "lr": nan}),
        Wrong("cga_step", (w, w, w, w, w > 0), {"step": 1, "lr": 0.1, "beta2": 1.0}),
        Wrong("qkr_weight", (w, w[:2]), {"heads": 2}),
        Wrong("qkr_weight", (w, w), {"heads": 3}, ("3", "4")),
        Wrong("qkr_weight", (w, w), {"heads": 0}, ("0",)),
        Wrong("qkr_grad", (w, w, w), {"heads": 2}),
        Wrong("qkr_grad", (w, w, ones(16, 8), ones(16, 8)), {"heads": 2}),
        Wrong("qkr_grad", (w, w, ones(16, 8)), {"heads": 2, "freeze": "all"}, ("all",)),
        Wrong("qkr_attention", (cube[..., :4], w, w, w), {"heads": 2}, ("4", "8")),
        Wrong("qkr_attention", (w, w, w, w), {"heads": 2}),
        Wrong("qkr_attention", (cube, w, w, w[:3]), {"heads": 2}, ("2", "3")),
        Wrong("qkr_attention", (cube, w, w, w, vector), {"heads": 2}),
        Wrong("qkr_attention", (cube, w, w, w), {"heads": 2, "biases": "some"}, ("some",)),
    ]
