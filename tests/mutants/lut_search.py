"""Wrong backends of chapter L: searches of look-up tables."""

# ruff: noqa: E501  (edits quote lines of source, and their replacements, whole)
from __future__ import annotations

from . import edit

FITNESS = "genome_fitness genetic_search"
OPTIMAL = "optimal_search"
BOUND = "optimality_bound"

edit(
    "L-20",
    "left tie",
    "lut_search",
    FITNESS,
    ('i = np.searchsorted(p, x, side="right")', 'i = np.searchsorted(p, x, side="left")'),
)
edit(
    "L-20",
    "intercept from the rounded slope",
    "lut_search",
    FITNESS,
    ("v[:, :-1] - a[:, :-1] * k)", "v[:, :-1] - a[:, :-1] * np.rint(k * 64) / 64)"),
)
edit(
    "L-20",
    "slopes are not rounded",
    "lut_search",
    FITNESS,
    ("return p, np.rint(k * 2.0**fraction_bits) / 2.0**fraction_bits,", "return p, k,"),
)
edit(
    "L-20",
    "last sample included",
    "lut_search",
    FITNESS,
    (
        "np.arange(*FUNCTIONS[function].domain, 0.01)",
        "np.arange(FUNCTIONS[function].domain[0], FUNCTIONS[function].domain[1] + 0.005, 0.01)",
    ),
)
edit("L-20", "sum instead of mean", "lut_search", FITNESS, ("found[g] = np.mean(", "found[g] = np.sum("))
edit(
    "L-20a",
    "genomes are not sorted",
    "lut_search",
    "genome_fitness",
    ("p = np.sort(genomes, axis=1)", "p = np.array(genomes)"),
)
edit(
    "L-25",
    "squares multiplied out, which cancel to less than nothing",
    "lut_search",
    OPTIMAL,
    (
        "else self.weight[at] @ e**2)",
        "else (lambda w, x, y: w @ y**2 - k * (2 * (w @ (x * y)) - k * (w @ x**2) - 2 * b * (w @ x)) - b * (2 * (w @ y) - b * w.sum()))(self.weight[at], self.x[at], self.y[at]))",
    ),
)
edit("L-21", "tournament of two", "lut_search", "genetic_search", ("[:TOURNAMENT]\n", "[:2]\n"))
edit(
    "L-21",
    "keeps the best genome",
    "lut_search",
    "genetic_search",
    (
        "winners = rivals[np.arange(size), np.argmin(fitness[rivals], axis=1)]",
        "winners = rivals[np.arange(size), np.argmin(fitness[rivals], axis=1)]\n        winners[0] = np.argmin(fitness)",
    ),
)
edit(
    "L-21",
    "one uniform for every gene",
    "lut_search",
    "genetic_search",
    (
        "[generation, individual, 1 + 64 * gene + level // 4, Purpose.MUTATE]",
        "[generation, individual, 1 + 64 * gene, Purpose.MUTATE]",
    ),
    ("[level % 4])", "[0])"),
)
edit(
    "L-21",
    "steps of the full deviation",
    "lut_search",
    "genetic_search",
    ("return STEP * float(np.rint(", "return float(np.rint("),
)
edit("L-21", "no clamp", "lut_search", "genetic_search", ("        genome[g] = np.clip(genome[g], *span)\n", ""))
edit(
    "L-21a",
    "seeds of 32 bits",
    "lut_search",
    "genetic_search",
    ("(seed, size, n - 1, span)", "(seed & 0xFFFFFFFF, size, n - 1, span)"),
)
edit(
    "L-22",
    "initial population from Python's generator",
    "lut_search",
    "genetic_search",
    ("self.numpy.uniform(*self.span)", "self.python.uniform(*self.span)"),
)
edit(
    "L-22",
    "second point drawn like the first",
    "lut_search",
    "genetic_search",
    ("self.python.randint(1, self.genes - 1)", "self.python.randint(1, self.genes)"),
)
edit(
    "L-22",
    "genomes are not sorted between generations",
    "lut_search",
    "genetic_search",
    ("genomes[touched] = np.sort(genomes[touched], axis=1)", "pass"),
)
edit(
    "L-23",
    "without the upper end",
    "lut_search",
    "knot_grid",
    ("np.floor(high * 2.0**f) + 1)", "np.floor(high * 2.0**f))"),
)
edit("L-23", "starts below the range", "lut_search", "knot_grid", ("np.ceil(low * 2.0**f)", "np.floor(low * 2.0**f)"))
edit(
    "L-24",
    "deployed ties to the right",
    "lut_search",
    "search_problem",
    ('np.rint(a * s), side="right")', 'np.rint(a * s), side="left")'),
)
edit(
    "L-24",
    "knots are not rounded to the scale",
    "lut_search",
    "search_problem",
    ("np.searchsorted(q, np.rint(a * s)", "np.searchsorted(q, a * s"),
)
edit(
    "L-24",
    "codes beyond int8",
    "lut_search",
    "search_problem",
    (
        "np.arange(max(-128, np.ceil(low * s)), min(127, np.floor(high * s)) + 1)",
        "np.arange(np.ceil(low * s), np.floor(high * s) + 1)",
    ),
)
edit("L-25", "greedy: the nearest knot first", "lut_search", OPTIMAL, ("least = int(np.argmin(reach))", "least = 0"))
edit(
    "L-25",
    "weights of samples, not of views",
    "lut_search",
    "optimal_search table_objective optimality_bound",
    ("np.repeat(1.0 / (len(sizes) * sizes), sizes)", "np.full(n, 1.0 / n)"),
)
edit(
    "L-25",
    "largest error as a sum",
    "lut_search",
    "optimal_search optimality_bound",
    ('return np.maximum(left, right) if objective == "max" else left + right', "return left + right"),
)
edit(
    "L-25a",
    "every piece must hold a knot",
    "lut_search",
    OPTIMAL,
    (
        "before = [i for i in where[s - 1] if i <= j]",
        "before = [i for i in where[s - 1] if i < j] or [i for i in where[s - 1] if i <= j]",
    ),
)
edit(
    "L-25b",
    "rounds to a coarser unit",
    "lut_search",
    OPTIMAL,
    (
        "return float(np.rint(k * 2.0**bits) / 2.0**bits), float(",
        "return float(np.floor(k * 2.0**bits) / 2.0**bits), float(",
    ),
)
edit(
    "L-25b",
    "forgets the intercept's rounding",
    "lut_search",
    OPTIMAL,
    ("float(np.rint(b * 2.0**bits) / 2.0**bits)", "b"),
)
edit(
    "L-26",
    "potentials of the last step only",
    "lut_search",
    OPTIMAL,
    ("float(D[n, m - 1]), D)", "float(D[n, m - 1]), D * (np.arange(n + 1)[:, None] == n))"),
)
edit("L-26a", "does not check the promises", "lut_search", BOUND, ("bound -= max(0.0, *excess)", "bound -= 0.0"))
edit(
    "L-26a",
    "forgets the start",
    "lut_search",
    BOUND,
    ("float(u[-1, -1]) - max(0.0, float(u[0, 0]))", "float(u[-1, -1])"),
)
edit(
    "L-27",
    "mean over all samples",
    "lut_search",
    "table_objective",
    ("np.repeat(1.0 / (len(sizes) * sizes), sizes)", "np.full(n, 1.0 / n)"),
)
edit("L-27", "root of the mean", "lut_search", "table_objective", ("else sum(parts))", "else sum(parts) ** 0.5)"))
