"""Wrong backends of chapter N: codebooks and LoftQ."""

# ruff: noqa: E501  (edits quote lines of source, and their replacements, whole)
from __future__ import annotations

from typing import Any

import numpy as np

from lowbit import reference

from . import MUTANTS, Mutant, edit, replace, wrap

edit(
    "N-1",
    "as many levels below as above",
    "codebook",
    "normal_float",
    ("np.linspace(o, 0.5, h)[:-1]", "np.linspace(o, 0.5, h + 1)[:-2]"),
)
edit("N-1", "not divided by the largest", "codebook", "normal_float", (" / ndtri(o)", ""))
edit(
    "N-1",
    "levels in half precision",
    "codebook",
    "normal_float",
    (" / ndtri(o)", " / ndtri(o)).astype('f2').astype('f8')"),
    ("return np.sort(np.concatenate([above", "return (np.sort(np.concatenate([above"),
)
edit(
    "N-1",
    "an offset of its own for every width",
    "codebook",
    "normal_float",
    (
        "    h = 2 ** (bits - 1)\n",
        "    h = 2 ** (bits - 1)\n    o = 1 - (0.5 ** (bits + 1) + 0.5 / (2**bits - 1)) / 2 if o == NF_OFFSET else o\n",
    ),
)
edit(
    "N-1",
    "ignores the offset",
    "codebook",
    "normal_float",
    ("    h = 2 ** (bits - 1)\n", "    h, o = 2 ** (bits - 1), NF_OFFSET\n"),
)
edit(
    "N-1a",
    "levels at the edges of the steps",
    "codebook",
    "dynamic_float",
    ("(np.arange(2**e) + 0.5)", "(np.arange(2**e) + 1.0)"),
)
edit(
    "N-1a",
    "a decade too high",
    "codebook",
    "dynamic_float",
    ("(e - bits + 2)", "(e - bits + 3)"),
    ("[1.0]]", "[10.0]]"),
)

edit(
    "N-2",
    "largest value without the sign",
    "codebook",
    "block_scale",
    ('a = np.abs(checks.finite(x, "x", "N-2").ravel())', 'a = checks.finite(x, "x", "N-2").ravel()'),
)
edit(
    "N-2",
    "root mean square",
    "codebook",
    "block_scale",
    (".max(axis=1, initial=0.0)", ".__pow__(2).mean(axis=1) ** 0.5"),
)
wrap("N-2", "scales in half precision", "block_scale", lambda s: np.asarray(s).astype(np.float16).astype(np.float64))


def by_rows(x: Any) -> Any:
    """Rows side by side in the order of the columns: what a transposed copy flattens to."""
    a = np.asarray(x)
    return a.T if a.ndim == 2 else a


@replace("N-2a", "flattens by columns")
def block_scale(x: Any, /, *, block_size: int = 64) -> Any:
    """Fortran order."""
    return reference.block_scale(by_rows(x), block_size=block_size)


@replace("N-2a", "a block ends with its row")
def dequantize_blocks(codes: Any, scale: Any, levels: Any, /, *, block_size: int = 64) -> Any:
    """The published CPU kernel: wrong where a block goes on in the next row."""
    q = np.asarray(codes)
    right = reference.dequantize_blocks(q, scale, levels, block_size=block_size)
    if q.ndim < 2 or q.shape[-1] % block_size == 0 or not q.size:
        return right
    per_row = -(-q.shape[-1] // block_size)
    rows = np.arange(q.size) // q.shape[-1]
    blocks = np.minimum(rows * per_row + np.arange(q.size) % q.shape[-1] // block_size, np.size(scale) - 1)
    return (np.asarray(scale)[blocks] * np.asarray(levels)[q.ravel()]).reshape(q.shape)


edit(
    "N-2a",
    "drops the short last block",
    "codebook",
    "block_scale",
    ("return -(-size // checks", "return max(1, size // checks"),
    ("padded[: a.size] = a", "padded[: a.size] = a[: padded.size]"),
)

QUOTIENT = "ratio = np.divide(a, s, out=np.zeros_like(a), where=s > 0)"
edit(
    "N-3",
    "divides in half precision",
    "codebook",
    "quantize_blocks",
    (QUOTIENT, QUOTIENT + ".astype('f2').astype('f8')"),
)
edit("N-3", "levels without the scale", "codebook", "quantize_blocks", (QUOTIENT, "ratio = a"))
edit(
    "N-3",
    "level below instead of the nearest",
    "codebook",
    "quantize_blocks",
    (
        "nearest_level(np.clip(ratio, l[0], l[-1]), l)",
        "np.clip(np.searchsorted(l, ratio, side='right') - 1, 0, l.size - 1).astype(np.int32)",
    ),
)
edit(
    "N-3a",
    "ties to the higher level",
    "codebook",
    "quantize_blocks",
    (
        "nearest_level(np.clip(ratio, l[0], l[-1]), l)",
        "np.searchsorted(l[:-1] + (l[1:] - l[:-1]) / 2, ratio, side='right').astype(np.int32)",
    ),
)
edit(
    "N-3a",
    "multiplies by the reciprocal",
    "codebook",
    "quantize_blocks",
    (QUOTIENT, "ratio = a * np.divide(1.0, s, out=np.zeros_like(s), where=s > 0)"),
)
edit(
    "N-3a",
    "multiplies by the reciprocal in float32",
    "codebook",
    "quantize_blocks",
    (
        QUOTIENT,
        "ratio = (a.astype('f4') * np.divide(np.float32(1), s.astype('f4'), out=np.zeros(s.shape, 'f4'), where=s > 0)).astype('f8')",
    ),
)
edit(
    "N-3b",
    "divides zeros by zero",
    "codebook",
    "quantize_blocks",
    (QUOTIENT, "ratio = a / s"),
    ("np.clip(ratio, l[0], l[-1])", "np.nan_to_num(ratio, nan=-1e9)"),
)
edit(
    "N-3b",
    "scale 1 for a block of zeros",
    "codebook",
    "block_scale",
    (
        "return np.asarray(padded.reshape(blocks, block_size).max(axis=1, initial=0.0))",
        "s = padded.reshape(blocks, block_size).max(axis=1, initial=0.0)\n    return np.where(s > 0, s, 1.0)",
    ),
)
edit(
    "N-4",
    "the sign of the scale is lost",
    "codebook",
    "dequantize_blocks",
    ('"N-4") * looked_up', '"N-4").__abs__() * looked_up'),
)
edit(
    "N-4",
    "levels in half precision",
    "codebook",
    "dequantize_blocks",
    ('looked_up(q, l, "N-4")', 'looked_up(q, l, "N-4").astype("f2").astype("f8")'),
)

edit("N-5", "no offset", "codebook", "quantize_scale", ("s.mean() if blocks else 0.0", "0.0 * s.sum()"))
edit(
    "N-5", "the largest scale as the offset", "codebook", "quantize_scale", ("s.mean() if blocks", "s.max() if blocks")
)
edit(
    "N-5",
    "codes of the scales, not of the differences",
    "codebook",
    "quantize_scale",
    ("quantize_blocks(around, second, l", "quantize_blocks(s, second, l"),
)
edit(
    "N-5",
    "one scale for all",
    "codebook",
    "quantize_scale",
    (
        "second = block_scale(around, block_size=block_size)",
        "second = np.full(blocks, np.abs(around).max(initial=0.0))",
    ),
)
edit("N-5a", "forgets the offset", "codebook", "dequantize_scale", ("return o + spread", "return spread"))
edit(
    "N-5a",
    "scales the offset",
    "codebook",
    "dequantize_scale",
    (
        'return o + spread(scale, q.shape, block_size, "N-5a") * looked_up',
        'return spread(scale, q.shape, block_size, "N-5a") * (o + looked_up',
    ),
    ('looked_up(q, l, "N-5a")', 'looked_up(q, l, "N-5a"))'),
)

edit(
    "N-6",
    "high bits first",
    "codebook",
    "codebook_matmul",
    (
        "q = unpack(words, bits=bits, length=a.shape[1])",
        "q = unpack(words, bits=bits, length=a.shape[1])\n    q = q[:, ::-1]",
    ),
)
edit(
    "N-6",
    "products in half precision",
    "codebook",
    "codebook_matmul",
    (
        '(spread(scale, q.shape, block_size, "N-6") * l[q]).T',
        '(spread(scale, q.shape, block_size, "N-6") * l[q]).T.astype("f2").astype("f8")',
    ),
)
edit(
    "N-6",
    "inputs in half precision",
    "codebook",
    "codebook_matmul",
    ("return a @ (spread", 'return a.astype("f2").astype("f8") @ (spread'),
)


@replace("N-6a", "blocks that start anew in every row")
def codebook_matmul(x: Any, words: Any, scale: Any, levels: Any, /, *, bits: int, block_size: int = 64) -> Any:
    """Right while blocks divide the rows."""
    a = np.asarray(x, np.float64)
    result = reference.codebook_matmul(x, words, scale, levels, bits=bits, block_size=block_size)
    if a.shape[1] % block_size == 0 or not a.shape[1]:
        return result
    q = reference.unpack(words, bits=bits, length=a.shape[1])
    return a @ dequantize_blocks(q, scale, levels, block_size=block_size).T


def four_bits(x: Any, words: Any, scale: Any, levels: Any, /, *, bits: int, block_size: int = 64) -> Any:
    """Codes above 15 wrap."""
    a = np.asarray(x, np.float64)
    if bits <= 4:
        return reference.codebook_matmul(x, words, scale, levels, bits=bits, block_size=block_size)
    q = reference.unpack(words, bits=bits, length=a.shape[1]) % 16
    return a @ reference.dequantize_blocks(q, scale, levels, block_size=block_size).T


edit("N-7", "adds the patch instead of taking it away", "loftq", "loftq", ("rest = W - patch", "rest = W + patch"))
edit("N-7", "quantizes the weight in every turn", "loftq", "loftq", ("rest = W - patch", "rest = W"))
MUTANTS.append(Mutant("N-6a", "four bits whatever is said", lambda: {"codebook_matmul": four_bits}))

edit(
    "N-7",
    "levels of 4 bits whatever is said",
    "loftq",
    "loftq",
    ("levels = codebook.normal_float(bits=bits)", "levels = codebook.normal_float(bits=4)"),
)
edit(
    "N-7a",
    "patches the weight, not the error",
    "loftq",
    "loftq",
    ('truncated(W - q.value, r, "balanced")', 'truncated(W, r, "balanced")'),
)
edit(
    "N-7a",
    "one rank too few",
    "loftq",
    "loftq",
    (
        'truncated(W - q.value, r, "balanced")',
        'truncated(W - q.value, r, "balanced")\n        B = B * (np.arange(r) < max(r - 1, 1))',
    ),
    ("B, A = truncated", "B, A = truncated"),
)
edit("N-7b", "returns the last iterate as the best", "loftq", "loftq", ('if keep == "last" or', "if True or"))
edit(
    "N-7b",
    "errors before the patch",
    "loftq",
    "loftq",
    ("np.linalg.norm(W - q.value - B @ A)", "np.linalg.norm(W - q.value)"),
)
edit(
    "N-7b",
    "squared errors",
    "loftq",
    "loftq",
    ("float(np.linalg.norm(W - q.value - B @ A))", "float(np.linalg.norm(W - q.value - B @ A)) ** 2"),
)
edit("N-7b", "the last of equal errors", "loftq", "loftq", ("error < min(", "error <= min("))
edit("N-7b", "step counted from 0", "loftq", "loftq", ("np.array(errors), step)", "np.array(errors), step - 1)"))
edit("N-7c", "scaling ignored", "loftq", "loftq", ("B / c, A", "B, A"))
edit("N-7c", "multiplied by the scaling", "loftq", "loftq", ("B / c, A", "B * c, A"))
edit(
    "N-7c",
    "scaling shared by both factors",
    "loftq",
    "loftq",
    ("B / c, A", "B / c**0.5, A / c**0.5"),
)
edit(
    "N-7d",
    "clipped to three deviations",
    "loftq",
    "loftq",
    ("x.mean() - 2 * σ, x.mean() + 2 * σ", "x.mean() - 3 * σ, x.mean() + 3 * σ"),
)
edit("N-7d", "deviation over n", "loftq", "loftq", ("ddof=1", "ddof=0"))
edit("N-7d", "symmetric around 0", "loftq", "loftq", ("lo = clipped.min()", "lo = -abs(clipped).max()"))
edit("N-7d", "divides zero by zero for a constant", "loftq", "loftq", (" + 1e-8)", ")"))
