"""Wrong backends of chapter B: binary coding."""

# ruff: noqa: E501  (edits quote lines of source, and their replacements, whole)
from __future__ import annotations

from typing import Any

import numpy as np

from lowbit import reference

from . import Array, edit, replace, wrap

MODULE = "binary_coding"

edit(
    "B-1",
    "root mean square for the mean",
    MODULE,
    "bcq",
    ("np.abs(r).sum(axis=-1) / g", "np.sqrt((r * r).sum(axis=-1) / g)"),
)
edit("B-1", "sign of the weight for every plane", MODULE, "bcq", ("codes |= (r >= 0)", "codes |= (v >= 0)"))
edit("B-1", "ignores the offset", MODULE, "bcq", ("r = v - o[..., None]\n    codes", "r = v\n    codes"))
edit("B-1", "re-solves when asked for greedy", MODULE, "bcq", ("        if refined:", "        if True:"))
edit("B-1a", "sign of zero is minus one", MODULE, "bcq", ("(r >= 0).astype", "(r > 0).astype"))
edit(
    "B-1a",
    "divides by the sum of magnitudes of zeros",
    MODULE,
    "bcq",
    (
        "np.where(largest > 0, np.frexp(largest)[1] - 1, 0)",
        "np.where(largest > 0, np.frexp(largest)[1] - 1, 0 / largest)",
    ),
)
edit(
    "B-1b",
    "groups run down the rows",
    MODULE,
    "bcq",
    (
        "v = W.reshape(m, G, k // G if G else 0)\n    unit = exponent(v)\n    v = np.ldexp(v, -unit[..., None])\n    codes, alpha, o = greedy",
        "v = np.swapaxes(W.reshape(m, k // G if G else 0, G), 1, 2)\n    unit = exponent(v)\n    v = np.ldexp(v, -unit[..., None])\n    codes, alpha, o = greedy",
    ),
)
edit(
    "B-1b",
    "one scale for every group of a row",
    MODULE,
    "bcq",
    (
        "return result(codes.reshape(m, k), np.ldexp(alpha",
        "alpha = np.ones_like(alpha) * alpha.mean(axis=1, keepdims=True)\n    return result(codes.reshape(m, k), np.ldexp(alpha",
    ),
)
edit("B-2", "greedy scales", MODULE, "bcq", ('method == "refined"', "False"))
edit(
    "B-2",
    "solves the last scale only",
    MODULE,
    "bcq",
    ("alpha[..., : i + 1], o = least_squares(v, b, offset)", "alpha[..., i] = least_squares(v, b, offset)[0][..., i]"),
)
edit(
    "B-2",
    "keeps the greedy residual",
    MODULE,
    "bcq",
    (
        "r = v - o[..., None] - (b * alpha[..., None, : i + 1]).sum(axis=-1)",
        "r = r - (np.abs(r).sum(axis=-1) / g)[..., None] * b[..., i]",
    ),
)
edit("B-3", "one round too many", MODULE, "bcq", ("for _ in range(rounds):", "for _ in range(rounds + 1):"))
edit(
    "B-3",
    "skips the first half round",
    MODULE,
    "bcq",
    ("alpha, o = least_squares(v, signs(codes, q), offset)\n            before", "before"),
)
edit(
    "B-3",
    "keeps the scales of the last but one codes",
    MODULE,
    "bcq",
    (
        "alpha, o = least_squares(v, signs(codes, q), offset)\n        codes, alpha = canonical",
        "codes, alpha = canonical",
    ),
)
edit(
    "B-3",
    "assigns by truncation",
    MODULE,
    "bcq",
    ("(level[..., 1:] - level[..., :-1]) / 2", "(level[..., 1:] - level[..., :-1]) * 0.8"),
)
edit("B-3a", "leaves scales as they come", MODULE, "bcq", ("codes, alpha = canonical(codes, alpha)", "pass"))
edit(
    "B-3a",
    "takes magnitudes and forgets the planes",
    MODULE,
    "bcq",
    ("codes, alpha = canonical(codes, alpha)", "alpha = -np.sort(-np.abs(alpha), axis=-1)"),
)
edit("B-3a", "ascends", MODULE, "bcq", ("order = np.argsort(-alpha", "order = np.argsort(alpha"))
edit(
    "B-4",
    "a ridge in the normal equations",
    MODULE,
    "bcq_refit",
    ("1 / np.maximum(L, RANK_CUT)", "1 / (np.maximum(L, RANK_CUT) + 1e-3)"),
)
edit(
    "B-4",
    "scales of orthogonal planes",
    MODULE,
    "bcq_refit",
    (
        "inverse = np.where(L > RANK_CUT",
        "L = np.full_like(L, max(v.shape[-1], 1))\n    inverse = np.where(L > RANK_CUT",
    ),
)
edit(
    "B-4",
    "forgets the offset",
    MODULE,
    "bcq_refit",
    ("return (x[..., :-1], x[..., -1]) if offset", "return (x[..., :-1], 0 * x[..., -1]) if offset"),
)
edit(
    "B-4a",
    "inverts a singular matrix",
    MODULE,
    "bcq_refit",
    ("np.where(L > RANK_CUT, 1 / np.maximum(L, RANK_CUT), 0.0)", "1 / (L + 1e-13)"),
)


def _first_planes(w: Any, codes: Any, /, **options: Any) -> Any:
    """Pivoting instead of the least norm: a plane equal to an earlier one gets 0."""
    found = reference.bcq_refit(w, codes, **options)
    q, C = options["bits"], np.asarray(codes)
    groups = found.scale.shape[1]
    for i in range(q):
        for j in range(i):
            for row in range(C.shape[0]):
                for g, part in enumerate(np.split(C[row], groups)):
                    if ((part >> i & 1) == (part >> j & 1)).all():
                        found.scale[row, g, j] += found.scale[row, g, i]
                        found.scale[row, g, i] = 0
    return found


_first_planes.__name__ = "bcq_refit"
replace("B-4a", "gives the second of two equal planes nothing")(_first_planes)

edit(
    "B-5",
    "rounds the plane of the largest scale alone",
    MODULE,
    "bcq_assign",
    ("(level[..., 1:] - level[..., :-1]) / 2", "(level[..., 1:] - level[..., :-1]) * 0.7"),
)
edit(
    "B-5",
    "does not sort the levels",
    MODULE,
    "bcq_assign",
    (
        'order = np.argsort(level, axis=-1, kind="stable")',
        "order = np.broadcast_to(np.arange(level.shape[-1]), level.shape)",
    ),
)
edit("B-5", "leaves out the offset", MODULE, "bcq_assign", ("np.asarray(o[..., None] + (alpha", "np.asarray((alpha"))
edit(
    "B-5a",
    "a midpoint goes to the smaller level",
    MODULE,
    "bcq_assign",
    ("place += v >= midpoint", "place += v > midpoint"),
)
edit(
    "B-6",
    "bits zero and one",
    MODULE,
    "bcq_weight",
    (
        "np.asarray(2.0 * ((codes[..., None] >> np.arange(bits)) & 1) - 1.0, np.float64)",
        "np.asarray(1.0 * ((codes[..., None] >> np.arange(bits)) & 1), np.float64)",
    ),
)
edit(
    "B-6",
    "planes in reverse",
    MODULE,
    "bcq_weight",
    (">> np.arange(bits)) & 1) - 1.0", ">> np.arange(bits)[::-1]) & 1) - 1.0"),
)
edit(
    "B-6",
    "subtracts the offset",
    MODULE,
    "bcq_weight",
    ("np.asarray(o[..., None] + (alpha", "np.asarray(-o[..., None] + (alpha"),
)
edit("B-7", "scales not halved", MODULE, "bcq_from_grid", ("2.0 ** (np.arange(bits) - 1)", "2.0 ** np.arange(bits)"))
edit(
    "B-7",
    "signed codes without their first",
    MODULE,
    "bcq_from_grid",
    ("(last - first) / 2 + first - z", "(last - first) / 2 - z"),
)
edit(
    "B-7",
    "integer half of the range",
    MODULE,
    "bcq_from_grid",
    ("(last - first) / 2 + first", "(last - first) // 2 + first"),
)
edit(
    "B-8",
    "rows slowest",
    MODULE,
    "bcq_pack bcq_unpack",
    ("np.ascontiguousarray(packed.transpose(1, 2, 0))", "np.ascontiguousarray(packed.transpose(1, 2, 0)[..., ::-1])"),
)
edit(
    "B-8",
    "high bits first",
    MODULE,
    "bcq_pack",
    ('axis=-1, bitorder="little").view("<u4")', 'axis=-1, bitorder="big").view("<u4")'),
)
edit(
    "B-8",
    "minus one is one",
    MODULE,
    "bcq_pack",
    (">> np.arange(q)[:, None]) & 1  #", ">> np.arange(q)[:, None]) & 1 ^ 1  #"),
)
edit("B-8", "loses the offset", MODULE, "bcq_unpack", ("None if offset is None else np.ascontiguousarray(o))", "None)"))
edit("B-9", "forgets to double", MODULE, "lookup_tables", ("T + 2 * chunk", "T + chunk"))
edit(
    "B-9",
    "the upper half",
    MODULE,
    "lookup_tables",
    (
        'return np.asarray(tables(chunked(checks.finite(x, "x", "B-9", ndim=2), width), half))',
        'T = tables(chunked(checks.finite(x, "x", "B-9", ndim=2), width), False)\n    return np.asarray(T[..., T.shape[-1] // 2 :] if half else T)',
    ),
)
edit(
    "B-9",
    "first input in the highest bit",
    MODULE,
    "lookup_tables",
    ("chunked(checks.finite(x", "np.flip(chunked(checks.finite(x"),
    (", width), half))", ", width), -1), half))"),
)
edit(
    "B-10",
    "half tables without the sign",
    MODULE,
    "bcq_product",
    ("None if offset is None else o))", "None if offset is None else o, half=True))"),
    ("np.where(upper, -found, found)", "found"),
)
edit("B-10", "one group for all", MODULE, "bcq_product", ("y = y + alpha[:, j, i]", "y = y + alpha[:, 0, i]"))
edit(
    "B-10",
    "offset without the sum of inputs",
    MODULE,
    "bcq_product",
    ("o[:, j] * x[:, columns].sum(axis=1, keepdims=True)", "o[:, j]"),
    ("return np.asarray(X @", "return np.asarray(0 * X.sum() + X @"),
)
edit(
    "B-10a",
    "pads by what lies there",
    MODULE,
    "bcq_product bcq_unpack",
    (
        "(bit << np.arange(q)[:, None]).sum(axis=1)",
        "(bit << np.arange(q)[:, None]).sum(axis=1) ^ (P[-1:, :, :].transpose(2, 1, 0).sum(axis=1) < 0 if length % 32 else 0)",
    ),
)


@replace("B-10", "product in half precision")
def bcq_product(x: Any, planes: Any, scale: Any, offset: Any, /, **options: Any) -> Array:
    """Table entries in float16."""
    return reference.bcq_product(np.asarray(x).astype(np.float16), planes, scale, offset, **options)


@replace("B-10a", "reads a whole last word")
def bcq_unpack(planes: Any, scale: Any, offset: Any, /, *, length: int) -> Any:
    """A spare bit that is set spills into the first column."""
    found = reference.bcq_unpack(planes, scale, offset, length=length)
    if length % 32:
        found.codes[:, 0] ^= np.asarray(planes)[-1, 0] < 0
    return found


wrap("B-8", "codes as unsigned planes", "bcq_pack", lambda p: p._replace(planes=p.planes.astype(np.int64)))
