"""Wrong backends of chapter Q: uniform grids and packing."""

# ruff: noqa: E501  (edits quote lines of source, and their replacements, whole)
from __future__ import annotations

from . import edit

edit(
    "Q-1",
    "leaves out the lowest signed code",
    "uniform",
    "quantize",
    (
        'return (0, 2**bits - 1) if scheme == "asymmetric" else (-(2 ** (bits - 1)),',
        'return (0, 2**bits - 1) if scheme == "asymmetric" else (-(2 ** (bits - 1)) + 1,',
    ),
)
edit("Q-1", "accepts any width", "uniform", "quantize fit_grid", ("high=8)", "high=16)"))
edit("Q-1", "clips one code too high", "uniform", "quantize", ("low=first, high=last)", "low=first, high=last + 1)"))
edit(
    "Q-2",
    "divides the range by 2^b",
    "uniform",
    "fit_grid",
    ("s = round_scale((hi0 - lo0) / n", "s = round_scale((hi0 - lo0) / (n + 1)"),
)
edit("Q-2", "truncates the zero point", "uniform", "fit_grid", ("round_half_even(-lo0 / s)", "np.floor(-lo0 / s)"))
edit(
    "Q-2",
    "leaves zero out of the range",
    "uniform",
    "fit_grid",
    ("lo0, hi0 = np.minimum(lo, 0), np.maximum(hi, 0)", "lo0, hi0 = lo, np.where(hi > lo, hi, lo + 1)"),
)
edit("Q-2", "forgets the clip ratio of the low end", "uniform", "fit_grid", ("p * lo0, p * hi0", "lo0, p * hi0"))
edit("Q-2", "forces zero into every range", "uniform", "fit_grid", ("if not include_zero:", "if False:"))
edit(
    "Q-2a",
    "swaps the two symmetric conventions",
    "uniform",
    "fit_grid",
    ('if scheme == "symmetric":', 'if scheme == "symmetric-full":'),
)
edit(
    "Q-2a",
    "ignores the one-sided groups of the published scheme",
    "uniform",
    "fit_grid",
    ('np.where(lo0 < 0, 2 * a, a) if scheme == "symmetric-gptq" else 2 * a', "2 * a"),
)
edit(
    "Q-2a", "takes the maximum without the sign", "uniform", "fit_grid", ("np.maximum(-lo0, hi0)", "np.maximum(hi0, 0)")
)
edit(
    "Q-2a",
    "middle code as the zero point",
    "uniform",
    "fit_grid",
    ("np.zeros(s.shape, np.int32)", "np.full(s.shape, 2 ** (bits - 1), np.int32)"),
)
edit(
    "Q-2b",
    "interleaves the columns of groups",
    "uniform",
    "fit_grid",
    (
        "v = x.reshape(*x.shape[:-1], k // group_size, group_size)",
        "v = np.swapaxes(x.reshape(*x.shape[:-1], group_size, k // group_size), -1, -2)",
    ),
)
edit(
    "Q-2b",
    "one scale for the whole tensor per row",
    "uniform",
    "fit_grid",
    ("v = x[..., None, :]", "v = np.broadcast_to(x.ravel(), (*x.shape[:-1], 1, x.size))"),
)
edit(
    "Q-2c",
    "zero point from the scale before rounding",
    "uniform",
    "fit_grid",
    ("round_half_even(-lo0 / s)", "round_half_even(-lo0 / ((hi0 - lo0) / n))"),
)
edit(
    "Q-2c",
    "truncates the scale",
    "uniform",
    "fit_grid",
    ("np.rint(mantissa * 2**8)", "np.floor(mantissa * 2**8)"),
    (
        'scale.astype(dtype or "float64").astype(np.float64)',
        'np.where(scale.astype(dtype or "f8").astype("f8") > scale, np.nextafter(scale.astype(dtype or "f8"), np.zeros((), dtype or "f8")), scale.astype(dtype or "f8")).astype("f8")',
    ),
)
edit("Q-2c", "keeps subnormal scales", "uniform", "fit_grid", ("2.0**-14 if dtype", "2.0**-24 if dtype"))
edit(
    "Q-2c",
    "saturates an infinite scale",
    "uniform",
    "fit_grid",
    ("if not np.isfinite(rounded).all():", "rounded = np.minimum(rounded, 65504.0)\n    if False:"),
)
edit(
    "Q-2d",
    "floor after the clip ratio",
    "uniform",
    "fit_grid",
    ("a = np.maximum(np.maximum(-lo0, hi0), floor)", "a = np.maximum(np.maximum(-lo0, hi0), floor / p)"),
)
edit(
    "Q-2d",
    "floor ignored",
    "uniform",
    "fit_grid",
    ("np.maximum(np.maximum(-lo0, hi0), floor)", "np.maximum(-lo0, hi0)"),
)
edit(
    "Q-3",
    "divides in half precision",
    "uniform",
    "quantize",
    ("round_half_even(a / s)", "round_half_even((a / s).astype('f2').astype('f8'))"),
)
edit("Q-3", "truncates the quotient", "uniform", "quantize", ("round_half_even(a / s)", "np.trunc(a / s)"))
edit(
    "Q-3",
    "subtracts the zero point",
    "uniform",
    "quantize",
    ("round_half_even(a / s) + z", "round_half_even(a / s) - z"),
)
edit(
    "Q-3a",
    "ties away from zero",
    "uniform",
    "quantize",
    ("round_half_even(a / s)", "np.copysign(np.floor(abs(a / s) + 0.5), a)"),
)
edit(
    "Q-3a",
    "multiplies by the reciprocal",
    "uniform",
    "quantize",
    ("round_half_even(a / s)", "round_half_even(a * (1 / s))"),
)
edit(
    "Q-3a",
    "multiplies by the reciprocal in float32",
    "uniform",
    "quantize",
    ("round_half_even(a / s)", "round_half_even((a.astype('f4') * (np.float32(1) / s.astype('f4'))).astype('f8'))"),
)
edit(
    "Q-3a",
    "adds the zero point before rounding",
    "uniform",
    "quantize",
    ("round_half_even(a / s) + z", "round_half_even(a / s + z)"),
)
edit(
    "Q-3b",
    "scales taken in turns",
    "uniform",
    "quantize dequantize",
    ("np.repeat(scale, k // g if g else 0, axis=-1)", "np.tile(scale, k // g if g else 0)"),
)
edit("Q-4", "adds the zero point", "uniform", "dequantize", ("s * (q - z)", "s * (q + z)"))
edit(
    "Q-4",
    "subtracts after scaling, rounded twice in float32",
    "uniform",
    "dequantize",
    ("s * (q - z)", "((s * q).astype('f4') - (s * z).astype('f4')).astype('f8')"),
)
edit(
    "Q-4",
    "product in half precision",
    "uniform",
    "dequantize",
    ("s * (q - z)", "(s * (q - z)).astype('f2').astype('f8')"),
)
edit("Q-5", "squares whatever the norm", "uniform", "clip_search", ("** norm", "** 8"))
edit(
    "Q-5",
    "tries half of the ratios",
    "uniform",
    "clip_search",
    ("math.floor(max_shrink * grid)", "math.floor(max_shrink * grid / 4)"),
)
edit("Q-5", "tells the next step", "uniform", "clip_search", ("step[better] = i", "step[better] = i + 1"))
edit("Q-5", "keeps the last ratio", "uniform", "clip_search", ("better = error < least", "better = error < np.inf"))
edit("Q-5a", "smaller ratio wins ties", "uniform", "clip_search", ("error < least", "error <= least"))
edit("Q-6", "big end first", "packing", "pack", ('.view("<u4")', '.view(">u4")'))
edit(
    "Q-6",
    "high bits first inside a code",
    "packing",
    "pack",
    (">> np.arange(bits)) & 1", ">> np.arange(bits)[::-1]) & 1"),
)
edit(
    "Q-6",
    "unpack forgets the length",
    "packing",
    "unpack",
    ("value[:, :length]", "value"),
    ("w.shape[1] != wanted", "False"),
)
edit("Q-6", "lets a code spill", "packing", "pack", ("if outside.any():", "if False:"))
edit(
    "Q-7",
    "packs densely",
    "packing",
    "pack unpack",
    ('return (32, bits) if layout == "dense" else (32 // bits, 1)', "return (32, bits)"),
    ('if layout == "dense" else -(-length // values) * words', "if layout else 0"),
)
edit(
    "Q-7",
    "high codes first",
    "packing",
    "pack",
    (
        "stream[:, :, : values * bits] = bit.reshape(n, runs, values * bits)",
        "stream[:, :, : values * bits] = bit.reshape(n, runs, values, bits)[:, :, ::-1 if words == 1 else 1].reshape(n, runs, values * bits)",
    ),
)
edit("Q-8", "scale zero for zeros", "uniform", "fit_grid", ("s = np.where(empty, 1.0, a / last)", "s = a / last"))
edit(
    "Q-8",
    "zero point zero for zeros",
    "uniform",
    "fit_grid",
    ("np.where(empty, round_half_even(n / 2)", "np.where(empty, 0"),
)
edit("Q-8", "no fall-back for constants", "uniform", "fit_grid", ("apart = (hi > lo) &", "apart = (hi >= lo) &"))
