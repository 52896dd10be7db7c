"""Wrong backends of chapter T: ternary and min-max fake quantizers."""

from __future__ import annotations

from . import edit

TWN = "twn_code twn"
ALL = "twn_code twn clamped_uniform min_max"
MEAN = "return np.asarray((a * chosen).sum(axis=over, keepdims=True) / np.maximum(count, 1))"

for clause in ("T-1", "T-2"):
    edit(
        clause,
        "threshold of the largest magnitude",
        "ternary",
        TWN,
        (
            "Δ = t * mean_where(a, np.ones(X.shape, np.bool_), over)",
            "Δ = t * a.max(axis=over, keepdims=True, initial=0.0)",
        ),
    )
    edit(
        clause,
        "scale is the mean of all",
        "ternary",
        TWN,
        ("np.int32), mean_where(a, I, over))", "np.int32), mean_where(a, I | True, over))"),
    )
    edit(clause, "ignores the threshold given", "ternary", TWN, ("Δ = t *", "Δ = 0.7 *"))
    edit(
        clause,
        "root mean square for the mean",
        "ternary",
        TWN,
        ("np.int32), mean_where(a, I, over))", "np.int32), np.sqrt(mean_where(a**2, I, over)))"),
    )
edit("T-1", "codes of 0 and 1", "ternary", TWN, ("(np.sign(X) * I)", "(np.sign(X) ** 2 * I)"))
edit("T-1a", "not strict", "ternary", TWN, ("I = a > Δ", "I = a >= Δ"))
edit("T-1a", "values not strict, though codes are", "ternary", "twn", ("I = a > Δ", "I = a >= Δ"))
edit("T-1b", "divides zero by zero", "ternary", ALL, (MEAN, MEAN.replace("np.maximum(count, 1)", "count")))
edit("T-1b", "largest magnitude divides", "ternary", ALL, ("np.where(r > 0, r, 1))", "r)"))
edit("T-1b", "no level at zero", "ternary", "twn", ("code.scale * code.codes", "code.scale * code.codes + 2.0**-40"))
edit("T-2", "scale without sign", "ternary", TWN, ("code.scale * code.codes)", "code.scale * np.abs(code.codes))"))
edit("T-2a", "statistics of the whole tensor", "ternary", ALL, ("found = AXES[granularity]", "found = AXES['tensor']"))
edit("T-2a", "a row for a matrix", "ternary", ALL, ('"matrix": (-2, -1)', '"matrix": (-3, -2, -1)'))
edit(
    "T-2b",
    "clips what it has quantized",
    "ternary",
    TWN,
    ('X = clipped(x, clip, "T-1")', 'X = clipped(x, None, "T-1")'),
    (
        "return np.asarray(code.scale * code.codes)",
        "return np.clip(code.scale * code.codes, -(clip or np.inf), clip or np.inf)",
    ),
)
edit("T-2b", "forgets the clip", "ternary", ALL, ("return np.clip(X, -c, c)", "return X"))
edit(
    "T-3",
    "threshold of ternary weights",
    "ternary",
    "clamped_uniform",
    ("mean_where(a, a > m, over)", "mean_where(a, a > 0.7 * m, over)"),
)
edit("T-3", "2^b steps", "ternary", "clamped_uniform", ("δ = 2 * α / (2**bits - 1)", "δ = 2 * α / 2**bits"))
edit(
    "T-3",
    "no clamp",
    "ternary",
    "clamped_uniform",
    ("np.rint(np.clip(X, -α, α) /", "np.rint(X /"),
    ("k = np.where(a >= AT_THE_MEAN * α, np.sign(X) * last, k)", "pass"),
    ("np.clip(k, -last, last)", "k"),
)
edit(
    "T-3",
    "divides by a sum of nothing",
    "ternary",
    "clamped_uniform",
    (MEAN, MEAN.replace("np.maximum(count, 1)", "count")),
)
edit("T-3a", "bounded in both", "ternary", "clamped_uniform", ('if outermost == "bounded" else last', ""))
edit(
    "T-3a",
    "tie to the odd code",
    "ternary",
    "clamped_uniform",
    ("np.sign(X) * last, k)", "np.sign(X) * (last - 1), k)"),
)
edit(
    "T-3a",
    "bounded at 2^(b-1)",
    "ternary",
    "clamped_uniform",
    ('last - 1 if outermost == "bounded" else last', "last"),
)
edit("T-3a", "at the rounded mean", "ternary", "clamped_uniform", ("AT_THE_MEAN * α", "α"))
CODE = "k = np.rint(np.clip(X, -α, α) / np.where(δ > 0, δ, 1))"
edit(
    "T-3b",
    "halves away from zero",
    "ternary",
    "clamped_uniform",
    (CODE, "k = np.clip(X, -α, α) / np.where(δ > 0, δ, 1); k = np.copysign(np.floor(np.abs(k) + 0.5), k)"),
)
edit(
    "T-3b",
    "halves up",
    "ternary",
    "clamped_uniform",
    (CODE, "k = np.floor(np.clip(X, -α, α) / np.where(δ > 0, δ, 1) + 0.5)"),
)
edit(
    "T-3b",
    "multiplies by the reciprocal",
    "ternary",
    "clamped_uniform",
    ("δ = 2 * α / (2**bits - 1)", "δ = 2 * α * np.float64(np.float32(1) / np.float32(2**bits - 1))"),
)
edit("T-4", "2^b intervals", "ternary", "min_max", ("hi - lo + ε, 2**bits - 1", "hi - lo + ε, 2**bits"))
edit(
    "T-4",
    "range from zero",
    "ternary",
    "min_max",
    ("r, n = hi - lo + ε", "lo = np.minimum(lo, 0); hi = np.maximum(hi, 0); r, n = hi - lo + ε"),
)
edit(
    "T-4",
    "forgets epsilon",
    "ternary",
    "min_max",
    ("hi - lo + ε", "hi - lo"),
    ("np.maximum(hi, -lo) + ε", "np.maximum(hi, -lo)"),
)
edit("T-4", "floors", "ternary", "min_max", ("k = np.rint(n * (X - lo)", "k = np.floor(n * (X - lo)"))
edit(
    "T-4a",
    "halves away from zero",
    "ternary",
    "min_max",
    (
        "k = np.rint(n * (X - lo) / np.where(r > 0, r, 1))",
        "k = n * (X - lo) / np.where(r > 0, r, 1); k = np.copysign(np.floor(np.abs(k) + 0.5), k)",
    ),
)
edit(
    "T-4a",
    "halves up above the smallest value",
    "ternary",
    "min_max",
    (
        "k = np.rint(n * (X - lo) / np.where(r > 0, r, 1))",
        "k = n * (X - lo) / np.where(r > 0, r, 1); k = np.rint(k) if scheme == 'symmetric' else np.floor(k + 0.5)",
    ),
)
edit(
    "T-4a",
    "rounds the values, not their distances from the smallest",
    "ternary",
    "min_max",
    (
        "k = np.rint(n * (X - lo) / np.where(r > 0, r, 1))",
        "s = np.where(r > 0, r, 1) / n; k = np.rint(X / s) - np.rint(lo / s)",
    ),
)
edit(
    "T-4a",
    "divides by the factor it multiplied with",
    "ternary",
    "min_max",
    ("lo + r * (k / n)", "lo + k / (n / np.where(r > 0, r, 1)).astype(np.float32).astype(np.float64)"),
)
edit("T-5", "passes at the clip", "ternary", "straight_through", ("np.abs(X) < c", "np.abs(X) <= c"))
edit("T-5", "the clip in float32", "ternary", "straight_through", ("np.abs(X) < c", "np.abs(X) < float(np.float32(c))"))
edit(
    "T-5",
    "gradient of tanh",
    "ternary",
    "straight_through",
    ("np.where(np.abs(X) < c, D, 0.0)", "D * np.maximum(1 - (X / c) ** 2, 0)"),
)
