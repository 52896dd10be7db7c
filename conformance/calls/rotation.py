"""Calls of chapter H, rotation."""

from __future__ import annotations

import numpy as np

from lowbit.reference.types import DecoderBlock

from .given import Array, Call, Empty, Given, Wrong, f32, floats, i32, ones

FLOAT64 = ("random_hadamard", "orthogonal_factor", "random_orthogonal", "activation_clip")

CITES = {
    "quantize_activations": "Q",
    "activation_clip": "Q",
    "random_hadamard": "P",
    "random_orthogonal": "P",
}  # chapters whose rules the operation applies to its arguments


def ordinary(given: Given) -> list[Call]:
    w, d, x, h, moment, turn, half = given.w, given.d, given.x, given.h, given.moment, given.turn, given.half
    vector = given.vector
    block: DecoderBlock[Array] = DecoderBlock(
        vector, d, w[:2], w[2:], w.T, vector, w, d, d.T, vector[:2], vector, vector
    )
    return [
        Call("hadamard_matrix", (), {"order": 12}),
        Call("hadamard_transform", (w,), {}),
        Call("hadamard_transform", (x.astype(given.dtype).T,), {"block_size": 20, "transpose": True}),
        Call("kronecker_transform", (w, np.array([[1, 1], [-1, 1]], given.dtype)), {}),
        Call("kronecker_transform", (w, np.array([[1, 1], [1, -1]], i32)), {}),
        Call("random_hadamard", (), {"order": 12, "seed": 3, "index": 1}),
        Call("orthogonal_factor", (h,), {}),
        Call("random_orthogonal", (), {"order": 6, "seed": 3}),
        Call("fuse_norm", (w, moment), {}),
        Call("rotate_inputs", (w, turn), {}),
        Call("rotate_outputs", (w, half), {}),
        Call("rotate_block", (block, turn, half), {}),
        Call("rotate_block", (block._replace(v_bias=None, down_bias=None), turn, None), {}),
        Call("rotate_ends", (w, moment, d, turn), {}),
        Call("rotate_ends", (w, moment, None, turn), {"centre": True}),
        Call("outlier_measures", (w,), {}),
        Call("quantize_activations", (w,), {"bits": 4}),
        Call("activation_clip", (w,), {"bits": 4}),
    ]


def empty() -> list[Empty]:
    eye = np.eye(4, dtype=f32)
    return [
        Empty("hadamard_transform", (floats(0, 12),), {}, (0, 12)),
        Empty("hadamard_transform", (floats(2, 0),), {"block_size": 4}, (2, 0)),
        Empty("kronecker_transform", (floats(0, 4), ones(1, 1)), {}, (0, 4)),
        Empty("orthogonal_factor", (floats(0, 0),), {}, (0, 0)),
        Empty("fuse_norm", (floats(0, 4), ones(4)), {}, (0, 4)),
        Empty("rotate_inputs", (floats(0, 4), eye), {}, (0, 4)),
        Empty("rotate_outputs", (floats(4, 0), eye), {}, (4, 0)),
        Empty("outlier_measures", (floats(0, 4),), {}, {"peak": (0,)}),
        Empty("quantize_activations", (floats(0, 4),), {"bits": 4}, {"values": (0, 4)}),
        Empty("activation_clip", (floats(0, 4),), {"bits": 4}, {"ratio": 1.0}),
    ]


def wrong() -> list[Wrong]:
    w, eye, vector = ones(4, 8), np.eye(8, dtype=f32), ones(8)
    block: DecoderBlock[Array] = DecoderBlock(vector, w, w, w, w.T, vector, w, w, w.T)
    six = ones(6, 8)
    return [
        Wrong("hadamard_matrix", (), {"order": 428}, ("428",)),
        Wrong("hadamard_matrix", (), {"order": 0}, ("0",)),
        Wrong("hadamard_transform", (ones(2, 6),), {}, ("6",)),
        Wrong("hadamard_transform", (w,), {"block_size": 3}, ("3",)),
        Wrong("hadamard_transform", (w,), {"block_size": 16}, ("16", "8")),
        Wrong("hadamard_transform", (np.array(1.0, f32),), {}),
        Wrong("kronecker_transform", (w, ones(2, 2)), {}),
        Wrong("kronecker_transform", (w, 2 * ones(1, 1)), {}),
        Wrong("kronecker_transform", (w[:, :6], np.array([[1, 1], [1, -1]], f32)), {}, ("6",)),
        Wrong("random_hadamard", (), {"order": 6, "seed": 1}, ("6",)),
        Wrong("random_hadamard", (), {"order": 4, "seed": -1}, ("-1",)),
        Wrong("random_hadamard", (), {"order": 4, "seed": 1, "index": -1}, ("-1",)),
        Wrong("orthogonal_factor", (w,), {}),
        Wrong("random_orthogonal", (), {"order": 0, "seed": 1}, ("0",)),
        Wrong("random_orthogonal", (), {"order": 4, "seed": 1, "index": 2**32}),
        Wrong("fuse_norm", (w, ones(4)), {}, ("4", "8")),
        Wrong("rotate_inputs", (w, np.eye(3, dtype=f32)), {}, ("3", "8")),
        Wrong("rotate_inputs", (w, ones(3, 2, 2)), {}, ("3", "8")),
        Wrong("rotate_inputs", (w, np.eye(8, dtype=f32)), {"repeats": 2}, ("2",)),
        Wrong("rotate_inputs", (w, np.eye(8, dtype=f32)), {"repeats": 0}, ("0",)),
        Wrong("rotate_outputs", (w, ones(4, 2)), {}),
        Wrong("rotate_block", (block, np.eye(4, dtype=f32), None), {}, ("r1",)),
        Wrong("rotate_block", (block._replace(up=w[:2]), eye, None), {}, ("up",)),
        Wrong("rotate_block", (block._replace(gate=six, up=six, down=six.T), eye, None), {}, ("6",)),
        Wrong("rotate_block", (block, eye, np.eye(3, dtype=f32)), {}, ("3",)),
        Wrong("rotate_ends", (w, ones(4), None, eye), {}),
        Wrong("rotate_ends", (w, vector, ones(4, 4), eye), {}),
        Wrong("rotate_ends", (w, vector, None, np.eye(4, dtype=f32)), {}),
        Wrong("outlier_measures", (ones(3, 0),), {}),
        Wrong("quantize_activations", (w,), {"bits": 1}, ("1",)),
        Wrong("quantize_activations", (w,), {"bits": 4, "group_size": 3}, ("3", "8")),
        Wrong("quantize_activations", (w,), {"bits": 4, "clip_ratio": 0.0}),
        Wrong("activation_clip", (w,), {"bits": 4, "grid": 0}, ("0",)),
        Wrong("activation_clip", (w,), {"bits": 4, "norm": 0.0}),
        Wrong("activation_clip", (w,), {"bits": 4, "max_shrink": 1.5}, ("1.5",)),
    ]
