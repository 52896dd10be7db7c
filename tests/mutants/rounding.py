"""Wrong backends of chapter R: rounding."""

from __future__ import annotations

from . import edit

edit(
    "R-1",
    "rounds half away from zero",
    "rounding",
    "round_half_even",
    (
        'return np.asarray(np.rint(checks.real(x, "x", "R-1")))',
        'x = checks.real(x, "x", "R-1"); return np.asarray(np.copysign(np.floor(abs(x) + 0.5), x))',
    ),
)
edit(
    "R-1",
    "rounds half up",
    "rounding",
    "round_half_even",
    ('np.rint(checks.real(x, "x", "R-1"))', 'np.floor(checks.real(x, "x", "R-1") + 0.5)'),
)
edit(
    "R-1",
    "adds and subtracts 1.5 * 2^23 in float32",
    "rounding",
    "round_half_even",
    (
        'np.rint(checks.real(x, "x", "R-1"))',
        '((checks.real(x, "x", "R-1").astype("f4") + np.float32(2**23 * 1.5)) - np.float32(2**23 * 1.5))',
    ),
)
edit(
    "R-2", "clips one code too low", "rounding", "round_clip", ("np.rint(a), low, high)", "np.rint(a), low, high - 1)")
)
edit(
    "R-2",
    "rounds half away before clipping",
    "rounding",
    "round_clip",
    ("np.rint(a), low", "np.copysign(np.floor(abs(a) + 0.5), a), low"),
)
edit(
    "R-2",
    "turns NaN into a code",
    "rounding",
    "round_clip",
    ("np.isnan(a).any()", "False"),
    ("np.rint(a)", "np.rint(np.nan_to_num(a))"),
)
edit("R-2", "truncates", "rounding", "round_clip", ("np.rint(a)", "np.trunc(a)"))
edit(
    "R-3",
    "midpoints in half precision",
    "rounding",
    "nearest_level",
    ("midpoint = l[:-1] + (l[1:] - l[:-1]) / 2", "midpoint = ((l[:-1] + l[1:]) / 2).astype('f2').astype('f8')"),
)
edit("R-3", "takes the next level below", "rounding", "nearest_level", ("midpoint, a, side", "l[1:], a, side"))
edit("R-3a", "tie to the higher index", "rounding", "nearest_level", ('side="left"', 'side="right"'))
