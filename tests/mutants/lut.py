"""Wrong backends of chapter L: look-up tables."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowbit import reference

from . import edit, replace

INTEGERS = "evaluate_codes table_softmax table_layer_norm verify_table"

edit(
    "L-1",
    "intercept from a rounded slope",
    "lut",
    "fit_chords",
    ("v[:-1] - a[:-1] * k)", "v[:-1] - a[:-1] * np.rint(64 * k) / 64)"),
)
edit("L-1", "intercept at the right end", "lut", "fit_chords", ("v[:-1] - a[:-1] * k)", "v[1:] - a[:-1] * k)"))
edit("L-1", "outer knots counted as breakpoints", "lut", "fit_chords", ("Table(a[1:-1], k, b)", "Table(a[:-2], k, b)"))
edit(
    "L-2",
    "divides by the width of a dead piece",
    "lut",
    "fit_chords",
    ("k = np.where(dead, 0.0, np.diff(v) / np.where(dead, 1.0, width))", "k = np.diff(v) / (width + 1e-30)"),
    ("b = np.where(dead, 0.0, v[:-1] - a[:-1] * k)", "b = v[:-1] - a[:-1] * k"),
)
edit(
    "L-2",
    "a dead piece keeps the level",
    "lut",
    "fit_chords",
    ("b = np.where(dead, 0.0, v[:-1] - a[:-1] * k)", "b = v[:-1] - a[:-1] * k"),
)
edit("L-3", "a line through the origin", "lut", "fit_segments", ("b[i] = yi.mean() - k[i] * xi.mean()", "b[i] = 0.0"))
edit(
    "L-3",
    "the chord of the outer samples",
    "lut",
    "fit_segments",
    (
        "k[i] = dx @ (yi - yi.mean()) / spread if spread else 0.0",
        "k[i] = (yi[-1] - yi[0]) / (xi[-1] - xi[0]) if xi[-1] != xi[0] else 0.0",
    ),
)
edit(
    "L-3",
    "the other tie rule",
    "lut",
    "fit_segments",
    (
        "piece = np.searchsorted(p, xs, side=tie)",
        "piece = np.searchsorted(p, xs, side='left' if tie == 'right' else 'right')",
    ),
)
edit(
    "L-4",
    "rounds half up",
    "lut",
    "round_table",
    ("np.rint(np.stack([k, b]) * 2.0**f)", "np.floor(np.stack([k, b]) * 2.0**f + 0.5)"),
)
edit(
    "L-4",
    "rounds breakpoints too",
    "lut",
    "round_table",
    ("return Table(p, K, B,", "return Table(np.rint(p * 2.0**f) / 2.0**f, K, B,"),
)
edit(
    "L-4",
    "truncates",
    "lut",
    "round_table",
    ("np.rint(np.stack([k, b]) * 2.0**f)", "np.trunc(np.stack([k, b]) * 2.0**f)"),
)
edit(
    "L-5",
    "clips to 8 bits unasked",
    "lut",
    "round_table",
    ("        held = codes\n", "        held = np.clip(codes, -128, 127)\n"),
)
edit(
    "L-5",
    "wraps around",
    "lut",
    "round_table",
    ("held = np.clip(codes, -(2 ** (w - 1)), 2 ** (w - 1) - 1)", "held = (codes + 2 ** (w - 1)) % 2**w - 2 ** (w - 1)"),
)
edit("L-5", "reports nothing", "lut", "round_table", ("int((held != codes).sum())", "0"))
edit(
    "L-5",
    "a symmetric range",
    "lut",
    "round_table",
    ("-(2 ** (w - 1)), 2 ** (w - 1) - 1)", "-(2 ** (w - 1)) + 1, 2 ** (w - 1) - 1)"),
)
edit("L-6", "rounds breakpoints down", "lut", "integer_table", ("np.rint(p * 2.0**c), k", "np.floor(p * 2.0**c), k"))
edit("L-6", "intercepts do not shift", "lut", "integer_table", ("b * 2.0 ** (f + c)", "b * 2.0**f"))
edit("L-6", "slopes shift too", "lut", "integer_table", ("k * 2.0**f, b", "k * 2.0 ** (f + c), b"))
edit(
    "L-7",
    "the piece before",
    "lut",
    "evaluate_table",
    ("return np.asarray(k[i] * a + b[i])  # (L.5)", "return np.asarray(k[i - 1] * a + b[i])"),
)
edit(
    "L-7",
    "in half precision",
    "lut",
    "evaluate_table",
    (
        "return np.asarray(k[i] * a + b[i])  # (L.5)",
        "return np.asarray(k.astype(np.float16)[i] * a + b[i], np.float64)",
    ),
)
edit(
    "L-7",
    "relative to the breakpoint",
    "lut",
    "evaluate_table",
    ("k[i] * a + b[i])  # (L.5)", "k[i] * (a - np.append(p, 0.0)[i]) + b[i])"),
)
edit("L-8", "ties always to the right", "lut", "evaluate_table evaluate_codes", ("side=tie)", "side='right')"))
edit("L-8", "ties always to the left", "lut", "evaluate_table evaluate_codes", ("side=tie)", "side='left')"))
edit(
    "L-8",
    "the authors' split: floats right, integers left",
    "lut",
    "evaluate_table evaluate_codes",
    (
        "i = np.searchsorted(p, a, side=tie)\n    return np.asarray(k[i] * a + b[i])  # (L.5)",
        "i = np.searchsorted(p, a, side='right')\n    return np.asarray(k[i] * a + b[i])",
    ),
)
edit(
    "L-8",
    "rounds breakpoints to the precision of x",
    "lut",
    "evaluate_table",
    (
        "i = np.searchsorted(p, a, side=tie)\n    return np.asarray(k[i] * a + b[i])  # (L.5)",
        "i = np.searchsorted(p.astype(np.float32), a, side=tie)\n    return np.asarray(k[i] * a + b[i])",
    ),
)
edit(
    "L-9",
    "saturates the product to 16 bits",
    "lut",
    "evaluate_codes",
    ("np.asarray(k[i] * q + b[i])  # (L.6)", "np.asarray(np.clip(k[i] * q, -32768, 32767) + b[i])"),
)
edit(
    "L-9",
    "int8 codes are unsigned",
    "lut",
    "evaluate_codes",
    (
        'a = checks.integers(q, "q", "L-9")',
        'a = checks.integers(q, "q", "L-9"); a = a & 255 if np.asarray(q).dtype == np.int8 else a',
    ),
)
edit(
    "L-9",
    "the last piece is never reached",
    "lut",
    "evaluate_codes",
    ("i = np.searchsorted(p, q, side=tie)", "i = np.minimum(np.searchsorted(p, q, side=tie), max(len(p) - 1, 0))"),
)
edit(
    "L-10",
    "a float table with rounded intercepts",
    "lut",
    "evaluate_table",
    ("return np.asarray(k[i] * a + b[i])  # (L.5)", "return np.asarray(k[i] * a + np.rint(64 * b[i]) / 64)"),
)
edit(
    "L-10",
    "half precision in between",
    "lut",
    "evaluate_table",
    (
        "return np.asarray(k[i] * a + b[i])  # (L.5)",
        "return np.asarray((k[i] * a + b[i]).astype(np.float16), np.float64)",
    ),
)
edit("L-11", "the first entry belongs to code 0", "lut", "lookup_codes", ("e[at - low]", "e[at % max(len(e), 1)]"))
edit(
    "L-11",
    "clamps codes that have no entry",
    "lut",
    "lookup_codes",
    (
        "if at.size and (int(at.min()) < low or int(at.max()) >= low + len(e)):",
        "at = np.clip(at, low, low + len(e) - 1)\n    if False:",
    ),
)
edit(
    "L-12",
    "adds half and shifts",
    "lut",
    "requantize_codes",
    ("up = (rest > half) | ((rest == half) & (quotient & 1 == 1))", "up = rest >= half"),
)
edit("L-12", "shifts only", "lut", "requantize_codes", ("quotient + up, a << left", "quotient, a << left"))
edit(
    "L-12",
    "divides towards zero",
    "lut",
    "requantize_codes",
    ("np.clip(shift_round(given, s), low, high)", "np.clip(np.trunc(given / 2.0**s), low, high)"),
)
edit(
    "L-13",
    "the slope of tanh-GELU",
    "lut",
    "table_gradient",
    (
        "lambda x: 0.5 * (1 + special.erf(x / np.sqrt(2.0))) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)",
        "lambda x: special.expit(1.702 * x) * (1 + 1.702 * x * special.expit(-1.702 * x))",
    ),
)
edit(
    "L-13",
    "corners of hswish inside",
    "lut",
    "table_gradient",
    ("np.where(x <= -3, 0.0, np.where(x >= 3, 1.0,", "np.where(x < -3, 0.0, np.where(x > 3, 1.0,"),
)
edit("L-13", "forgets the scale of the codes", "lut", "table_gradient", ("g * (S * slope)", "g * slope"))
edit(
    "L-13",
    "the scale's gradient without the codes",
    "lut",
    "table_gradient",
    ("np.sum(g * (a * slope))", "np.sum(g * slope)"),
)
edit(
    "L-14",
    "no range below the base",
    "lut",
    "evaluate_ranges",
    ("k = -((2 - np.frexp(a)[1]) // step)", "k = np.maximum(-((2 - np.frexp(a)[1]) // step), 0)"),
)
edit(
    "L-14",
    "reciprocal root scaled like the reciprocal",
    "lut",
    "evaluate_ranges",
    ("(3, 3) if function", "(3, 3) if True or function"),
)
edit(
    "L-15",
    "odd exponents",
    "lut",
    "evaluate_ranges",
    ("else (4, 2)", "else (3, 1.5)"),
    ("np.ldexp(value, -back * k)", "value * 2.0 ** (-back * k)"),
)
edit(
    "L-15",
    "a range up to 8",
    "lut",
    "evaluate_ranges",
    ("k = -((2 - np.frexp(a)[1]) // step)", "k = -((3 - np.frexp(a)[1]) // step)"),
)
edit("L-16", "forgets the maximum", "lut", "table_softmax", ("a - a.max(axis=-1, keepdims=True), floor", "a, floor"))
edit(
    "L-16",
    "does not clip far logits",
    "lut",
    "table_softmax",
    ("np.maximum(a - a.max(axis=-1, keepdims=True), floor)", "a - a.max(axis=-1, keepdims=True)"),
    ('-floor, "L-16"', 'int(np.abs(d).max(initial=0)), "L-16"'),
)
edit(
    "L-16",
    "the sum is truncated, not rounded",
    "lut",
    "table_softmax",
    (
        "z = shift_round(E, scale + 3 * k - reciprocal.scale_bits)",
        "s = scale + 3 * k - reciprocal.scale_bits; z = (E << np.maximum(-s, 0)) >> np.maximum(s, 0)",
    ),
)
edit("L-16", "one wraps to a code that INT8 lacks", "lut", "table_softmax", ("0, 2**o - 1)  # (L.14)", "0, 2**o)"))
edit(
    "L-17",
    "rounds the mean to a code",
    "lut",
    "table_layer_norm",
    (
        "d = n * a - a.sum(axis=-1, keepdims=True)",
        "d = n * (a - np.rint(a.mean(axis=-1, keepdims=True)).astype(np.int64))",
    ),
)
edit(
    "L-17",
    "odd exponents",
    "lut",
    "table_layer_norm",
    ("k = np.maximum(-((2 - bit_length(V // n)) // 4), 0)", "k = np.maximum(-((1 - bit_length(V // n)) // 4), 0)"),
)
edit(
    "L-17",
    "the unbiased variance",
    "lut",
    "table_layer_norm",
    ("n << np.maximum(4 * k - c, 0)", "max(n - 1, 1) << np.maximum(4 * k - c, 0)"),
)
edit(
    "L-17",
    "a constant row divides by the table's end",
    "lut",
    "table_layer_norm",
    ("np.where(V == 0, 0, scaled_product(d, r,", "np.where(V == 0, 1, scaled_product(d, r,"),
)
edit(
    "L-18",
    "the root of the mean",
    "lut",
    "verify_table",
    ("float(np.mean(error * error))", "float(np.sqrt(np.mean(error * error)))"),
)
edit("L-18", "signed errors", "lut", "verify_table", ("error = np.abs(y - v)", "error = y - v"))
edit(
    "L-18",
    "the position instead of the code",
    "lut",
    "verify_table",
    ("float(error[worst]), low + worst", "float(error[worst]), worst"),
)
edit(
    "L-18",
    "the last of the largest errors",
    "lut",
    "verify_table",
    ("worst = int(error.argmax())", "worst = len(error) - 1 - int(error[::-1].argmax())"),
)
edit(
    "L-19",
    "a level piece counts as a turn",
    "lut",
    "verify_table",
    ("np.sign(np.diff(v)) < 0).sum()", "np.sign(np.diff(v)) <= 0).sum()"),
)
edit(
    "L-19",
    "zero counts as a sign",
    "lut",
    "verify_table",
    ("(np.sign(y) * np.sign(v) < 0).sum()", "(np.sign(y) != np.sign(v)).sum()"),
)


@replace("L-12", "saturates symmetrically")
def requantize_codes(a: Any, /, *, shift: int, low: int = -128, high: int = 127) -> Any:
    """−127 … 127, as some accelerators do."""
    return np.maximum(reference.requantize_codes(a, shift=shift, low=low, high=high), -high)
