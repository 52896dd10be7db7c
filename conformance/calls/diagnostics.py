"""Calls of chapter W, diagnostics."""

from __future__ import annotations

import numpy as np

from .given import Call, Empty, Given, Wrong, f32, floats, nan, ones


def ordinary(given: Given) -> list[Call]:
    w, d, h, per_row, scores = given.w, given.d, given.h, given.per_row, given.scores
    return [
        Call("ranking_loss", (scores[0][0], scores[1][0]), {}),
        Call("cover_length", (scores[0][0], scores[1][0]), {"top": 2}),
        Call("attention_range", (w,), {}),
        Call("attention_norms", (scores[0][0], w, d, per_row, np.ascontiguousarray(w[:, :4])), {}),
        Call("power_eigenvalues", (h, w), {"iterations": 5}),
        Call("power_eigenvalues", (h, w[:1]), {"stop": "residual", "shift": 1.0}),
    ]


def empty() -> list[Empty]:
    eye = np.eye(4, dtype=f32)
    return [
        Empty("ranking_loss", (floats(0, 3, 3),) * 2, {}, (0,)),
        Empty("ranking_loss", (floats(2, 0, 0),) * 2, {}, [0, 0]),
        Empty("cover_length", (floats(2, 0, 0),) * 2, {}, [0, 0]),
        Empty("cover_length", (floats(0, 5, 5),) * 2, {}, (0,)),
        Empty("attention_range", (floats(0, 3),), {}, {"low": (0,), "high": (0,)}),
        Empty(
            "attention_norms",
            (floats(2, 0, 0), floats(0, 4), eye, None, eye),
            {},
            {"probability": (2, 0), "value": (2, 0), "weighted": (2, 0)},
        ),
        Empty("power_eigenvalues", (eye, floats(0, 4)), {}, {"value": (0,), "vector": (0, 4), "steps": (0,)}),
    ]


def wrong() -> list[Wrong]:
    w, cube, eye, vector = ones(4, 8), ones(2, 2, 8), np.eye(8, dtype=f32), ones(8)
    scores = ones(1, 2, 4, 4)
    return [
        Wrong("ranking_loss", (cube, cube), {}),
        Wrong("ranking_loss", (scores[0], scores[0, :1]), {}),
        Wrong("ranking_loss", (scores[0], scores[0]), {"pairs": "twice"}, ("twice",)),
        Wrong("cover_length", (cube, cube), {"top": 1}),
        Wrong("cover_length", (scores[0], scores[0]), {"top": 5}, ("5", "4")),
        Wrong("cover_length", (scores[0], scores[0]), {"top": 0}, ("0",)),
        Wrong("cover_length", (scores[0], scores[0]), {"top": 1, "rows": "last"}, ("last",)),
        Wrong("attention_range", (vector,), {}),
        Wrong("attention_range", (w[:, :0],), {}),
        Wrong("attention_norms", (scores[0], w, w, None, w), {}),
        Wrong("attention_norms", (scores[0], w, w[:3], None, w[:, :3]), {}, ("3", "2")),
        Wrong("attention_norms", (scores[0], w, w, vector, w[:, :4]), {}),
        Wrong("attention_norms", (scores[0], w[:3], w, None, w[:, :4]), {}),
        Wrong("power_eigenvalues", (eye, ones(9, 8)), {}, ("9", "8")),
        Wrong("power_eigenvalues", (eye[:4, :4], w), {}),
        Wrong("power_eigenvalues", (eye + np.triu(ones(8, 8)), w), {}),
        Wrong("power_eigenvalues", (eye, 0 * w), {}, ("0",)),
        Wrong("power_eigenvalues", (eye, w), {}, ("1",)),
        Wrong("power_eigenvalues", (eye, w[:1]), {"iterations": 0}, ("0",)),
        Wrong("power_eigenvalues", (eye, w[:1]), {"tolerance": -1.0}, ("-1",)),
        Wrong("power_eigenvalues", (eye, w[:1]), {"shift": nan}),
        Wrong("power_eigenvalues", (eye, w[:1]), {"stop": "never"}, ("never",)),
    ]
