"""Wrong backends of chapter H: rotation."""

# ruff: noqa: E501  (edits quote lines of source, and their replacements, whole)
from __future__ import annotations

from typing import Any

import numpy as np

from lowbit import reference

from . import edit, half_away, low_precision, replace, wrap

MATRIX = "hadamard_matrix hadamard_transform random_hadamard"

edit("H-1", "Paley I without the skew sign", "rotation", MATRIX, ("J[1:, 0] = -1", "J[1:, 0] = 1"))
edit(
    "H-1",
    "character of the transposed difference",
    "rotation",
    MATRIX,
    ("J[1:, 1:] = χ[difference]", "J[1:, 1:] = χ[difference.T]"),
)
edit("H-1", "Paley II with the other second block", "rotation", MATRIX, ("[[1, -1], [-1, -1]]", "[[1, 1], [-1, 1]]"))
edit(
    "H-1", "integers modulo q in place of GF(q)", "rotation", MATRIX, ("p, e = prime_power(q) or (q, 1)", "p, e = q, 1")
)
edit(
    "H-1",
    "circulants without the back-identity",
    "rotation",
    MATRIX,
    ("B, C, D = B[:, ::-1], C[:, ::-1], D[:, ::-1]", "B, C, D = B, C, D"),
)
edit(
    "H-1",
    "power of two in the slower index",
    "rotation",
    MATRIX,
    ("H = np.kron(H, table_of(n))", "H = np.kron(table_of(n), H)"),
)
edit(
    "H-1",
    "another construction first",
    "rotation",
    MATRIX,
    (
        "if prime_power(n - 1):\n        return paley(n - 1)",
        "if n % 8 == 4 and n > 20 and prime_power(n // 2 - 1):\n        return paley(n // 2 - 1)\n    if prime_power(n - 1):\n        return paley(n - 1)",
    ),
)
edit(
    "H-1a",
    "a matrix of ones for what is unknown",
    "rotation",
    MATRIX,
    ("found = factors(order)", "found = factors(order) or (2,)"),
)
edit(
    "H-1a",
    "answers an order of 0",
    "rotation",
    MATRIX,
    ('"H-1", low=1)\n    found = factors(order)', '"H-1", low=-9)\n    found = factors(order) if order > 0 else (1,)'),
)

edit("H-2", "not normalised", "rotation", "hadamard_transform", ("/ math.sqrt(size)  # (H.5)", ""))
edit(
    "H-2",
    "normalised by the whole axis",
    "rotation",
    "hadamard_transform",
    ("/ math.sqrt(size)  # (H.5)", "/ math.sqrt(max(a.shape[-1], 1))"),
)
edit(
    "H-2",
    "the transpose",
    "rotation",
    "hadamard_transform",
    ("((T.T if transpose else T) @ parts)", "((T if transpose else T.T) @ parts)"),
)
edit(
    "H-2",
    "ignores the block size",
    "rotation",
    "hadamard_transform",
    ("size = a.shape[-1] if block_size is None else", "size = a.shape[-1] if True else"),
)
edit(
    "H-2",
    "one round of butterflies is missing",
    "rotation",
    "hadamard_transform",
    ("return butterfly(x, n.bit_length() - 1)", "return butterfly(x, max(n.bit_length() - 2, 0))"),
)
edit(
    "H-2",
    "the table does not see the butterflies",
    "rotation",
    "hadamard_transform",
    ("parts = multiply(parts, tuple(rest), transpose)", "pass"),
)
edit(
    "H-2a",
    "sequency order",
    "rotation",
    "hadamard_transform",
    ("[a + b, a - b], axis=1)", "[a + b, (a - b)[..., ::-1]], axis=1)"),
)
edit("H-2a", "b - a", "rotation", "hadamard_transform", ("a - b]", "b - a]"))
edit(
    "H-2b",
    "the transpose of the table",
    "rotation",
    "kronecker_transform",
    (
        "((T.T if transpose else T) @ parts).reshape(a.shape) / math.sqrt(n)",
        "((T if transpose else T.T) @ parts).reshape(a.shape) / math.sqrt(n)",
    ),
)
edit(
    "H-2b",
    "the table in the faster index",
    "rotation",
    "kronecker_transform",
    ("a.reshape(*a.shape[:-1], K, n // K)", "np.swapaxes(a.reshape(*a.shape[:-1], n // K, K), -1, -2)"),
)
edit(
    "H-2b",
    "its own table",
    "rotation",
    "kronecker_transform",
    ("parts = butterfly(", "T = hadamard_matrix(order=K)\n    parts = butterfly("),
)

edit("H-3", "signs on the columns", "rotation", "random_hadamard", ("[:, None] * H.T", "[None] * H.T"))
edit("H-3", "the matrix, not its transpose", "rotation", "random_hadamard", ("* H.T / math", "* H / math"))
edit(
    "H-3",
    "float32 root",
    "rotation",
    "random_hadamard",
    ("/ math.sqrt(order)", "* np.float64(np.float32(1 / np.sqrt(np.float32(order))))"),
)
edit("H-3", "lowest bit of the words", "rotation", "random_hadamard", ("np.where(words < 0", "np.where(words & 1"))
edit("H-3", "ignores the index", "rotation", "random_hadamard", ("addresses((order,), index", "addresses((order,), 0"))
edit(
    "H-4",
    "signs of LAPACK",
    "rotation",
    "orthogonal_factor random_orthogonal",
    ("np.where(np.diag(R) < 0, -1.0, 1.0)", "1.0"),
)
edit(
    "H-4",
    "sign of 0 is 0",
    "rotation",
    "orthogonal_factor random_orthogonal",
    ("np.where(np.diag(R) < 0, -1.0, 1.0)", "np.where(np.abs(np.diag(R)) < 1e-9, 0.0, np.sign(np.diag(R)))"),
)
edit(
    "H-4",
    "signs on the rows",
    "rotation",
    "orthogonal_factor",
    (
        "np.asarray(Q * np.where(np.diag(R) < 0, -1.0, 1.0) + 0.0)",
        "np.asarray(Q * np.where(np.diag(R) < 0, -1.0, 1.0)[:, None] + 0.0)",
    ),
)
wrap("H-4", "in float32", "orthogonal_factor", lambda q: q.astype(np.float32).astype(np.float64))
edit(
    "H-4a",
    "signs of LAPACK in random rotations",
    "rotation",
    "random_orthogonal",
    ("np.where(np.diag(R) < 0, -1.0, 1.0)", "1.0"),
)
edit("H-4a", "the purpose of the signs", "rotation", "random_orthogonal", ("Purpose.HAAR", "Purpose.SIGNS"))
edit(
    "H-4a",
    "normals by columns",
    "rotation",
    "random_orthogonal",
    ("normals.reshape(order, -1)[:, :order]", "normals.reshape(order, -1)[:, :order].T"),
)

edit(
    "H-5",
    "gain on the rows",
    "rotation",
    "fuse_norm",
    ("return a * g  # (H.11)", "return np.resize(g, len(a))[:, None] * a"),
)
edit(
    "H-5",
    "divides by the gain",
    "rotation",
    "fuse_norm",
    ("return a * g  # (H.11)", "return a / np.where(g == 0, 1, g)"),
)
edit("H-6", "the transpose", "rotation", "rotate_inputs", ('"mbi,bij->mbj"', '"mbi,bji->mbj"'))
edit(
    "H-6",
    "repeats in turn",
    "rotation",
    "rotate_inputs",
    ("np.repeat(Q, repeats, axis=0)", "np.tile(Q, (repeats, 1, 1))"),
)
edit(
    "H-6",
    "rotates in half precision",
    "rotation",
    "rotate_inputs",
    ("a.reshape(len(a), *Q.shape[:2]), Q)", "a.reshape(len(a), *Q.shape[:2]), Q.astype(np.float16).astype(float))"),
)


@replace("H-6", "rotates in float32")
def rotate_inputs(w: Any, q: Any, /, *, repeats: int = 1) -> Any:
    """Exact enough for one layer, and orthogonal to seven digits only."""
    made = reference.rotate_inputs(low_precision(w), q, repeats=repeats)
    return made.astype(np.float32).astype(np.float64)


edit("H-6a", "forgets the transpose", "rotation", "rotate_outputs", ('"bij,bim->bjm"', '"bij,bjm->bim"'))
edit(
    "H-6a",
    "the first rotation for every block",
    "rotation",
    "rotate_outputs",
    ('np.einsum("bij,bim->bjm", Q,', 'np.einsum("bij,bim->bjm", Q[:1] + 0 * Q,'),
)
edit(
    "H-7",
    "forgets the gains",
    "rotation",
    "rotate_block",
    ("rotate_inputs(fuse_norm(w, b.input_norm), R1)", "rotate_inputs(w, R1)"),
)
edit(
    "H-7",
    "leaves the gains where they were",
    "rotation",
    "rotate_block",
    ("DecoderBlock(one, q, k, v, o, one,", "DecoderBlock(b.input_norm, q, k, v, o, b.post_norm,"),
)
edit(
    "H-7",
    "forgets the bias of o",
    "rotation",
    "rotate_block",
    ("for x in (b.o_bias, b.down_bias))", "for x in (None, b.down_bias))"),
    ("v_bias, o_bias, down_bias)", "v_bias, b.o_bias, down_bias)"),
)
edit(
    "H-7",
    "forgets the bias of v",
    "rotation",
    "rotate_block",
    ("v_bias = None if v_bias is None else rotate_outputs(v_bias[:, None], R2)[:, 0]", "pass"),
)
edit(
    "H-7",
    "R2 of the wrong heads",
    "rotation",
    "rotate_block",
    (
        "rotate_inputs(o, R2, repeats=o.shape[1] // len(v))",
        "rotate_inputs(o, R2 if R2.ndim == 2 else np.tile(R2, (o.shape[1] // len(v), 1, 1)))",
    ),
)
edit("H-7", "forgets the fold of the online transform", "rotation", "rotate_block", ("if online:", "if False:"))
edit("H-7", "always folds the online transform", "rotation", "rotate_block", ("if online:", "if True:"))
edit(
    "H-7",
    "folds the transform into the outputs",
    "rotation",
    "rotate_block",
    ("down = hadamard_transform(down)", "down = hadamard_transform(down, transpose=True)"),
)
edit(
    "H-7",
    "rotates the wrong norm into gate",
    "rotation",
    "rotate_block",
    ("fuse_norm(w, b.post_norm)", "fuse_norm(w, b.input_norm)"),
)
edit(
    "H-7a",
    "the gain in a tied embedding",
    "rotation",
    "rotate_ends",
    ("DecoderEnds(rotate_inputs(E, R1),", "DecoderEnds(rotate_inputs(E if head is not None else E * g, R1),"),
)
edit(
    "H-7a",
    "no gain in a tied head",
    "rotation",
    "rotate_ends",
    ("rotate_inputs(fuse_norm(W, g), R1)", "rotate_inputs(fuse_norm(W, g) if head is not None else W, R1)"),
)
edit("H-7a", "centres unconditionally", "rotation", "rotate_ends", ("if centre:", "if True:"))
edit(
    "H-7a",
    "centres the tied head too",
    "rotation",
    "rotate_ends",
    (
        "E = E - E.mean(axis=1, keepdims=True)",
        "E = E - E.mean(axis=1, keepdims=True)\n        W = E if head is None else W",
    ),
)
edit(
    "H-7a",
    "centres the columns",
    "rotation",
    "rotate_ends",
    ("E.mean(axis=1, keepdims=True)", "E.mean(axis=0, keepdims=True)"),
)

edit("H-8", "kurtosis that is not excess", "rotation", "outlier_measures", ("/ second**2 - 3)", "/ second**2)"))
edit("H-8", "forgets the mean", "rotation", "outlier_measures", ("d = v - v.mean(axis=-1, keepdims=True)", "d = v"))
edit(
    "H-8",
    "sample variance",
    "rotation",
    "outlier_measures",
    ("(d**2).mean(axis=-1))", "(d**2).sum(axis=-1) / max(d.shape[-1] - 1, 1))"),
)
edit(
    "H-8",
    "peak of the signed values",
    "rotation",
    "outlier_measures",
    ("size = np.abs(a).max(axis=-1, keepdims=True)", "size = np.maximum(a.max(axis=-1, keepdims=True), 1e-9)"),
)
edit(
    "H-8",
    "rounding noise of equal entries",
    "rotation",
    "outlier_measures",
    ("level = (v == v[..., :1]).all(axis=-1)", "level = np.zeros(v.shape[:-1], bool)"),
)
wrap(
    "H-8", "in half precision", "outlier_measures", lambda m: type(m)(*(x.astype(np.float16).astype(float) for x in m))
)
edit(
    "H-9",
    "one grid for the tensor",
    "rotation",
    "quantize_activations",
    (
        "s, z = fit_grid(",
        "s, z = (np.broadcast_to(p, (*a.shape[:-1], 1)) for p in fit_grid(a.reshape(1, -1), bits=bits, scheme=scheme, granularity='token', clip_ratio=clip_ratio))\n    _ = fit_grid(",
    ),
)
edit("H-9", "forgets the clip ratio", "rotation", "quantize_activations", ("clip_ratio=clip_ratio,", "clip_ratio=1.0,"))
edit(
    "H-9",
    "values without the zero point",
    "rotation",
    "quantize_activations",
    ("dequantize(codes, s, z))", "dequantize(codes, s, 0 * z))"),
)
edit(
    "H-9",
    "tokens in place of groups",
    "rotation",
    "quantize_activations",
    ('"token" if group_size is None else "group"', '"token"'),
    ("group_size=group_size,", "group_size=None,"),
)
edit(
    "H-9a",
    "a floor under the scale",
    "rotation",
    "quantize_activations",
    ("codes = quantize(a, s, z", "s = np.maximum(s, 0.01)\n    codes = quantize(a, s, z"),
)


@replace("H-9a", "NaN on an all-zero token")
def quantize_activations(x: Any, /, **options: Any) -> Any:
    """0 divided by a scale of 0."""
    found = reference.quantize_activations(x, **options)
    dead = ~np.any(np.asarray(x) != 0, axis=-1, keepdims=True)
    return found._replace(values=np.where(dead, np.nan, found.values))


edit(
    "H-10",
    "the smallest ratio among equals, or the last",
    "rotation",
    "activation_clip",
    ("int(np.argmin(errors))", "len(errors) - 1 - int(np.argmin(errors[::-1]))"),
)
edit("H-10", "the largest error", "rotation", "activation_clip", ("np.argmin(errors)", "np.argmax(errors)"))
edit("H-10", "squares whatever the norm", "rotation", "activation_clip", ("- a) ** norm).sum()", "- a) ** 2).sum()"))
edit("H-10", "never looks", "rotation", "activation_clip", ("1 - int(np.argmin(errors)) / grid", "1.0"))
wrap("H-10", "tells errors of another scale", "activation_clip", lambda c: c._replace(errors=half_away(c.errors)))
