"""Calls of chapter U, scale tuning."""

from __future__ import annotations

import numpy as np

from .given import Call, Empty, Given, Wrong, f32, floats, i32, integers, nan, ones


def ordinary(given: Given) -> list[Call]:
    w, d, h, codes, bits, binary = given.w, given.d, given.h, given.codes, given.bits, given.binary
    train = np.arange(16).reshape(4, 2, 2) % 3 > 0
    return [
        Call("trainable_scales", (binary,), {"train": "largest"}),
        Call("scale_grad", (d, bits), {"bits": 2, "group_size": 4}),
        Call("scale_grad", (d, codes), {"bits": 4, "norm": "mean"}),
        Call("scale_grad_tokens", (w, d[:, ::2].copy(), bits), {"bits": 2, "group_size": 2}),
        Call("scale_grad_tokens", (w, d[:, ::2].copy(), bits), {"bits": 2, "norm": "mean"}),
        Call(
            "tune_step",
            (binary, binary - 1, binary + 1, binary / 2, binary * binary, train),
            {"step": 3, "lr": 0.125, "decay": 0.25},
        ),
        Call("fit_scales", (w, h, bits, binary, train), {}),
    ]


def empty() -> list[Empty]:
    eye = np.eye(4, dtype=f32)
    return [
        Empty("trainable_scales", (floats(0, 1, 2),), {}, (0, 1, 2)),
        Empty("scale_grad", (floats(0, 4), integers(0, 4)), {"bits": 2}, (0, 1, 2)),
        Empty("scale_grad", (floats(1, 0), integers(1, 0)), {"bits": 2}, [[[0, 0]]]),
        Empty("scale_grad", (floats(2, 0), integers(2, 0)), {"bits": 2, "group_size": 4, "norm": "mean"}, (2, 0, 2)),
        Empty("scale_grad_tokens", (floats(0, 4), floats(0, 2), integers(2, 4)), {"bits": 1}, [[[0]], [[0]]]),
        Empty(
            "tune_step",
            (*[floats(0, 1, 2)] * 5, np.zeros((0, 1, 2), np.bool_)),
            {"step": 1, "lr": 0.5},
            {"scale": (0, 1, 2)},
        ),
        Empty(
            "fit_scales",
            (floats(0, 4), eye, integers(0, 4), floats(0, 2, 1), np.zeros((0, 2, 1), np.bool_)),
            {},
            (0, 2, 1),
        ),
    ]


def wrong() -> list[Wrong]:
    w, eye, codes = ones(4, 8), np.eye(8, dtype=f32), np.ones((4, 8), i32)
    alpha, on = ones(4, 2, 1), np.ones((4, 2, 1), np.bool_)
    state = (alpha, alpha, alpha, alpha, alpha, on)
    return [
        Wrong("trainable_scales", (w,), {}),
        Wrong("trainable_scales", (alpha,), {"train": "last"}, ("last",)),
        Wrong("scale_grad", (w, codes[:3]), {"bits": 1}),
        Wrong("scale_grad", (w, codes), {"bits": 0}),
        Wrong("scale_grad", (w, codes), {"bits": 9}, ("9",)),
        Wrong("scale_grad", (w, 2 * codes), {"bits": 1}, ("2",)),
        Wrong("scale_grad", (w, -codes), {"bits": 1}, ("-1",)),
        Wrong("scale_grad", (w, codes), {"bits": 1, "group_size": 3}, ("3", "8")),
        Wrong("scale_grad", (w, codes), {"bits": 1, "group_size": 0}),
        Wrong("scale_grad", (w, codes), {"bits": 1, "norm": "rms"}, ("rms",)),
        Wrong("scale_grad", (w, w), {"bits": 1}),
        Wrong("scale_grad_tokens", (ones(3, 8), ones(2, 4), codes), {"bits": 1}),
        Wrong("scale_grad_tokens", (ones(3, 8), ones(3, 5), codes), {"bits": 1}),
        Wrong("scale_grad_tokens", (w, ones(4, 4), 2 * codes), {"bits": 1}, ("2",)),
        Wrong("scale_grad_tokens", (w, ones(4, 4), codes), {"bits": 1, "norm": "rms"}, ("rms",)),
        Wrong("tune_step", (alpha, alpha[:3], *state[2:]), {"step": 1, "lr": 0.5}),
        Wrong("tune_step", (*state[:5], on[:3]), {"step": 1, "lr": 0.5}),
        Wrong("tune_step", (*state[:5], alpha), {"step": 1, "lr": 0.5}),
        Wrong("tune_step", (*state[:4], -alpha, on), {"step": 1, "lr": 0.5}, ("-1",)),
        Wrong("tune_step", state, {"step": 0, "lr": 0.5}),
        Wrong("tune_step", state, {"step": 1, "lr": nan}),
        Wrong("tune_step", state, {"step": 1, "lr": 0.5, "beta1": 1.0}),
        Wrong("tune_step", state, {"step": 1, "lr": 0.5, "beta2": -0.5}, ("-0.5",)),
        Wrong("tune_step", state, {"step": 1, "lr": 0.5, "epsilon": -1.0}),
        Wrong("tune_step", state, {"step": 1, "lr": 0.5, "decay": -1.0}),
        Wrong("fit_scales", (w, eye, codes[:3], alpha, on), {}),
        Wrong("fit_scales", (w, np.eye(4, dtype=f32), codes, alpha, on), {}),
        Wrong("fit_scales", (w, eye, codes, ones(4, 3, 1), np.ones((4, 3, 1), np.bool_)), {}),
        Wrong("fit_scales", (w, eye, codes, alpha, on[:, :1]), {}),
        Wrong("fit_scales", (w, eye, codes, alpha, alpha), {}),
        Wrong("fit_scales", (w, eye, 2 * codes, alpha, on), {}, ("2",)),
    ]
