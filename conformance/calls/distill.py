"""Calls of chapter W, distillation."""

from __future__ import annotations

from typing import Any

import numpy as np

from .given import Call, Empty, Given, Wrong, f32, i32, integers, nan, ones


def ordinary(given: Given) -> list[Call]:
    w, d, pair, scores = given.w, given.d, given.pair, given.scores
    lengths = np.array([2, 4, 1], np.int32)
    labels = np.array([[0, -100, 4, 2], [1, 1, 3, 0], [2, 2, -100, 4]], np.int32)
    return [
        Call("logit_loss", (w, d), {}),
        Call("logit_loss", (w, d), {"temperature": 2.0, "divergence": "kl"}),
        Call("token_loss", (*pair, labels), {}),
        Call("token_loss", (*pair, labels), {"ignored": "skip"}),
        Call("feature_loss", (*pair, lengths), {}),
        Call("feature_loss", (*pair, None), {}),
        Call("score_loss", scores, {}),
        Call("score_loss", scores, {"causal": True, "floor": 0.0}),
        Call("attention_map_loss", (*scores, lengths), {}),
    ]


def empty() -> list[Empty]:
    nobody, one = integers(0), np.array([3, 1], i32)
    losses: list[tuple[str, tuple[int, ...], tuple[Any, ...]]] = [  # operation, shape of both networks, what follows
        ("logit_loss", (0, 4), ()),
        ("logit_loss", (2, 0), ()),
        ("token_loss", (0, 3, 4), (integers(0, 3),)),
        ("token_loss", (2, 0, 4), (integers(2, 0),)),
        ("feature_loss", (0, 3, 4), (nobody,)),
        ("feature_loss", (2, 3, 0), (None,)),
        ("score_loss", (2, 0, 3, 3), ()),
        ("score_loss", (2, 1, 0, 0), ()),
        ("attention_map_loss", (0, 2, 3, 3), (nobody,)),
        ("attention_map_loss", (2, 0, 3, 3), (one,)),
    ]
    return [
        Empty(op, (np.zeros(shape, f32), np.zeros(shape, f32), *more), {}, {"loss": 0.0, "gradient": shape})
        for op, shape, more in losses
    ]


def wrong() -> list[Wrong]:
    w, cube, vector, codes = ones(4, 8), ones(2, 2, 8), ones(8), np.ones((4, 8), i32)
    scores = ones(1, 2, 4, 4)
    return [
        Wrong("logit_loss", (w, w[:3]), {}),
        Wrong("logit_loss", (vector, vector), {}),
        Wrong("logit_loss", (w, w), {"temperature": 0.0}),
        Wrong("logit_loss", (w, w), {"temperature": nan}),
        Wrong("logit_loss", (w, w), {"divergence": "js"}, ("js",)),
        Wrong("token_loss", (cube, cube[:1], codes[:2, :2]), {}),
        Wrong("token_loss", (cube, cube, codes), {}),
        Wrong("token_loss", (cube, cube, 8 * codes[:2, :2]), {}, ("8",)),
        Wrong("token_loss", (cube, cube, -codes[:2, :2]), {}, ("-1",)),
        Wrong("token_loss", (cube, cube, w[:2, :2]), {}),
        Wrong("token_loss", (cube, cube, codes[:2, :2]), {"temperature": -1.0}, ("-1",)),
        Wrong("token_loss", (cube, cube, codes[:2, :2]), {"ignored": "drop"}, ("drop",)),
        Wrong("feature_loss", (cube, cube[:1], None), {}),
        Wrong("feature_loss", (w, w, None), {}),
        Wrong("feature_loss", (cube, cube, np.array([1, 3], i32)), {}, ("3",)),
        Wrong("feature_loss", (cube, cube, np.array([1, 0], i32)), {}, ("0",)),
        Wrong("feature_loss", (cube, cube, np.array([1], i32)), {}),
        Wrong("score_loss", (cube, cube), {}),
        Wrong("score_loss", (cube[None], cube[None]), {}),
        Wrong("score_loss", (scores, scores), {"floor": nan}),
        Wrong("score_loss", (scores, scores), {"causal": 1}, ("1",)),
        Wrong("attention_map_loss", (cube[None], cube[None], np.array([2], i32)), {}),
        Wrong("attention_map_loss", (scores, scores[:, :1], np.array([2], i32)), {}),
        Wrong("attention_map_loss", (scores, scores, np.array([9], i32)), {}, ("9",)),
        Wrong("attention_map_loss", (scores, scores, np.array([2, 2], i32)), {}),
        Wrong("attention_map_loss", (scores, scores, np.array([2], i32)), {"floor": 0.0}),
        Wrong("attention_map_loss", (scores, scores, np.array([2], i32)), {"floor": 2.0}, ("2",)),
    ]
