"""Calls of chapter G, second-order compression."""

from __future__ import annotations

import numpy as np

from .given import Call, Empty, Given, Wrong, f32, floats, nan, ones

CITES = {"gptq": "Q", "sparsegpt": "Q"}  # chapters whose rules the operation applies to its arguments


def ordinary(given: Given) -> list[Call]:
    w, h, moment = given.w, given.h, given.moment
    return [
        Call("inverse_cholesky", (h,), {}),
        Call("gptq", (w, h), {"bits": 3}),
        Call("gptq", (w, h), {"bits": 4, "group_size": 4, "act_order": True, "scheme": "symmetric-full"}),
        Call("sparsegpt", (w, h), {}),
        Call("sparsegpt", (w, h), {"bits": 4, "group_size": 4}),
        Call("wanda", (w, moment), {}),
    ]


def empty() -> list[Empty]:
    eye = np.eye(4, dtype=f32)
    return [
        Empty("gptq", (floats(0, 4), eye), {"bits": 4}, {"codes": (0, 4), "loss": 0.0}),
        Empty("sparsegpt", (floats(0, 4), eye), {}, {"mask": (0, 4), "loss": 0.0}),
        Empty("wanda", (floats(0, 4), ones(4)), {}, {"mask": (0, 4)}),
        Empty("inverse_cholesky", (floats(0, 0),), {}, {"factor": (0, 0)}),
    ]


def wrong() -> list[Wrong]:
    w, eye, vector = ones(4, 8), np.eye(8, dtype=f32), ones(8)
    return [
        Wrong("inverse_cholesky", (w,), {}),
        Wrong("inverse_cholesky", (eye,), {"damping": -0.1}),
        Wrong("inverse_cholesky", (eye,), {"damping": nan}),
        Wrong("gptq", (w, np.eye(4, dtype=f32)), {"bits": 4}),
        Wrong("gptq", (vector, eye), {"bits": 4}),
        Wrong("gptq", (w, eye), {"bits": 9}, ("9",)),
        Wrong("gptq", (w, eye), {"bits": 4, "group_size": 3}, ("3", "8")),
        Wrong("gptq", (w, eye), {"bits": 4, "block_size": 0}),
        Wrong("gptq", (w, eye), {"bits": 4, "group_scales": "stale"}, ("stale",)),
        Wrong("sparsegpt", (w, eye), {"keep": 5, "of": 4}),
        Wrong("sparsegpt", (w, eye), {"keep": 0, "of": 4}),
        Wrong("sparsegpt", (w, eye), {"keep": 2, "of": 3}, ("3", "8")),
        Wrong("sparsegpt", (w, eye), {"block_size": 6}),
        Wrong("sparsegpt", (w, np.eye(4, dtype=f32)), {}),
        Wrong("wanda", (w, ones(4)), {}),
        Wrong("wanda", (w, -vector), {}),
        Wrong("wanda", (w, vector), {"keep": 2, "of": 3}, ("3", "8")),
    ]
