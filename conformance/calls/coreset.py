"""Calls of chapter X, coresets."""

from __future__ import annotations

import numpy as np

from .given import Call, Empty, Given, Wrong, floats, i32, integers, ones

FLOAT64 = ("random_score",)

CITES = {"random_score": "P"}  # chapters whose rules the operation applies to its arguments


def ordinary(given: Given) -> list[Call]:
    w, d, codes, per_row = given.w, given.d, given.codes, given.per_row
    names, chance = np.array([3, 0, 2, 3], np.int32), (0.125 + np.abs(w)).astype(given.dtype)
    return [
        Call("error_vector_score", (w, names), {}),
        Call("disagreement_score", (w, d), {}),
        Call("acs_score", (w, d, names), {"epoch": 2, "epochs": 5}),
        Call("select_coreset", (per_row, names // 2), {"fraction": 0.5}),
        Call("select_coreset", (per_row, None), {"fraction": 0.5, "keep": "smallest"}),
        Call("select_coreset", (names // 2, None), {"fraction": 0.5}),
        Call("el2n_score", (np.stack([w, d]), names), {}),
        Call("el2n_score", (w[None], names), {"outputs": "logits"}),
        Call("grand_score", (w, d[:, :5].copy(), names), {"batch_size": 3}),
        Call("grand_score", (w, d, names), {}),
        Call("forgetting_score", (codes % 3 > 0,), {}),
        Call("moderate_score", (w, names // 2), {}),
        Call("moderate_score", (w, names // 2), {"center": "median", "against": "nothing"}),
        Call("moderate_score", (w, names // 2), {"against": "class-median"}),
        Call("contextual_diversity", (chance, chance[1:].copy()), {}),
        Call("k_center", (w, names[:1]), {"count": 2}),
        Call("k_center", (chance, names[:1]), {"count": 1, "metric": "symmetric-kl"}),
        Call("herding", (w,), {"count": 3}),
        Call("random_score", (), {"size": 6, "seed": 3, "index": 1}),
    ]


def empty() -> list[Empty]:
    return [
        Empty("error_vector_score", (floats(0, 4), integers(0)), {}, (0,)),
        Empty("disagreement_score", (floats(0, 4),) * 2, {}, (0,)),
        Empty("acs_score", (floats(0, 4), floats(0, 4), integers(0)), {"epoch": 1, "epochs": 2}, (0,)),
        Empty("select_coreset", (floats(0), integers(0)), {"fraction": 1.0}, (0,)),
        Empty("select_coreset", (floats(0), None), {"fraction": 1.0}, (0,)),
        Empty("select_coreset", (floats(3), None), {"fraction": 0.0}, (0,)),
        Empty("el2n_score", (floats(2, 0, 4), integers(0)), {}, (0,)),
        Empty("grand_score", (floats(0, 4), floats(0, 2), integers(0)), {}, (0,)),
        Empty("grand_score", (floats(1, 1), floats(1, 0), integers(1)), {}, [0.0]),
        Empty("forgetting_score", (np.zeros((3, 0), np.bool_),), {}, (0,)),
        Empty("forgetting_score", (np.zeros((0, 2), np.bool_),), {}, [0, 0]),
        Empty("moderate_score", (floats(0, 4), integers(0)), {}, (0,)),
        Empty("moderate_score", (floats(2, 0), integers(2)), {}, [0.0, 0.0]),
        Empty("contextual_diversity", (floats(0, 4), ones(3, 4)), {}, (0, 3)),
        Empty("contextual_diversity", (ones(3, 4), floats(0, 4)), {}, (3, 0)),
        Empty("k_center", (floats(3, 0), np.array([2], i32)), {"count": 2}, [2, 0, 1]),
        Empty("herding", (floats(0, 4),), {"count": 0}, (0,)),
        Empty("herding", (floats(3, 0),), {"count": 2}, [0, 1]),
        Empty("random_score", (), {"size": 0, "seed": 1}, (0,)),
    ]


def wrong() -> list[Wrong]:
    w, vector, b, names = ones(4, 8), ones(8), ones(4, 2), np.array([3, 0, 2, 3], i32)
    return [
        Wrong("error_vector_score", (w, names[:3]), {}, ("3",)),
        Wrong("error_vector_score", (w, names + 5), {}, ("8",)),
        Wrong("error_vector_score", (w, -names), {}, ("-3",)),
        Wrong("error_vector_score", (w, vector[:4]), {}),
        Wrong("error_vector_score", (w[:, :0], names), {}),
        Wrong("error_vector_score", (vector, names), {}),
        Wrong("disagreement_score", (w, w[:3]), {}),
        Wrong("disagreement_score", (w, vector), {}),
        Wrong("acs_score", (w, w, names), {"epoch": 5, "epochs": 4}, ("5",)),
        Wrong("acs_score", (w, w, names), {"epoch": -1, "epochs": 4}, ("-1",)),
        Wrong("acs_score", (w, w, names), {"epoch": 0, "epochs": 0}, ("0",)),
        Wrong("acs_score", (w, w, names), {"epoch": 0, "epochs": 4, "schedule": "evonly"}, ("evonly",)),
        Wrong("acs_score", (w, w[:, :4], names), {"epoch": 0, "epochs": 4}),
        Wrong("acs_score", (w, w, names + 5), {"epoch": 0, "epochs": 4}, ("8",)),
        Wrong("select_coreset", (vector, names), {"fraction": 0.5}),
        Wrong("select_coreset", (w, None), {"fraction": 0.5}),
        Wrong("select_coreset", (vector[:4], -names), {"fraction": 0.5}, ("-3",)),
        Wrong("select_coreset", (vector, None), {"fraction": 1.5}, ("1.5",)),
        Wrong("select_coreset", (vector, None), {"fraction": -0.5}, ("-0.5",)),
        Wrong("select_coreset", (vector, None), {"fraction": 0.5, "keep": "middle"}, ("middle",)),
        Wrong("el2n_score", (w, names), {}),
        Wrong("el2n_score", (floats(0, 4, 8), names), {}),
        Wrong("el2n_score", (w[None], names + 5), {}, ("8",)),
        Wrong("el2n_score", (w[None], names), {"outputs": "raw"}, ("raw",)),
        Wrong("grand_score", (w, w[:3], names), {}, ("3",)),
        Wrong("grand_score", (w, w, names), {"batch_size": 0}, ("0",)),
        Wrong("grand_score", (w, w, names), {"bias": 1}, ("1",)),
        Wrong("grand_score", (w, w, names + 5), {}, ("8",)),
        Wrong("forgetting_score", (names.reshape(2, 2),), {}),
        Wrong("forgetting_score", (names > 0,), {}),
        Wrong("forgetting_score", (w > 0,), {"never_learnt": "infinite"}, ("infinite",)),
        Wrong("moderate_score", (vector, names), {}),
        Wrong("moderate_score", (w, -names), {}, ("-3",)),
        Wrong("moderate_score", (w, names), {"center": "mode"}, ("mode",)),
        Wrong("moderate_score", (w, names), {"against": "mean"}, ("mean",)),
        Wrong("contextual_diversity", (w * w, b * b), {}),
        Wrong("contextual_diversity", (w, -w), {}, ("q",)),
        Wrong("contextual_diversity", (w * w, w * w), {"epsilon": -0.5}, ("-0.5",)),
        Wrong("k_center", (w, names), {"count": 0}),
        Wrong("k_center", (w, names[:0]), {"count": 1}),
        Wrong("k_center", (w, np.array([4], i32)), {"count": 1}, ("4",)),
        Wrong("k_center", (w, np.array([-1], i32)), {"count": 1}, ("-1",)),
        Wrong("k_center", (w, names[:1]), {"count": 4}, ("4",)),
        Wrong("k_center", (w, names[:1]), {"count": 1, "metric": "cosine"}, ("cosine",)),
        Wrong("k_center", (-w * w - 1, names[:1]), {"count": 1, "metric": "symmetric-kl"}, ("x",)),
        Wrong("herding", (w,), {"count": 5}, ("5",)),
        Wrong("herding", (w,), {"count": -1}, ("-1",)),
        Wrong("herding", (vector,), {"count": 1}),
        Wrong("random_score", (), {"size": -1, "seed": 1}, ("-1",)),
        Wrong("random_score", (), {"size": 3, "seed": -1}, ("-1",)),
        Wrong("random_score", (), {"size": 3, "seed": 1, "index": 2**32}),
    ]
