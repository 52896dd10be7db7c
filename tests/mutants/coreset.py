"""Wrong backends of chapter X: coresets."""

from __future__ import annotations

from . import edit

OTHER = "other = np.where(np.arange(x.shape[1]) == y[:, None], 0.0, e / e.sum(axis=1, keepdims=True))"
SCORE = "np.sqrt(other.sum(axis=1) ** 2 + (other**2).sum(axis=1))"
DIFFERENCE = "np.linalg.norm(e / e.sum(axis=1, keepdims=True) - np.eye(x.shape[1])[y], axis=1)"

edit(
    "X-1",
    "logits instead of probabilities",
    "coreset",
    "error_vector_score",
    ("e = exponentials(x)\n    other", "e = x + 1e-9\n    other"),
)
edit("X-1", "1-norm", "coreset", "error_vector_score", (SCORE, "2 * other.sum(axis=1)"))
edit("X-1", "no maximum", "coreset", "error_vector_score", ("x - x.max(axis=-1, keepdims=True, initial=-np.inf)", "x"))
edit("X-1", "the label's own probability alone", "coreset", "error_vector_score", (SCORE, "other.sum(axis=1)"))
edit("X-1", "labels from 1", "coreset", "error_vector_score", ("== y[:, None], 0.0, e", "== y[:, None] - 1, 0.0, e"))
edit("X-1a", "one minus the probability", "coreset", "error_vector_score", (SCORE, DIFFERENCE))
edit(
    "X-1a",
    "norm in half precision",
    "coreset",
    "error_vector_score",
    (SCORE, "np.sqrt((other.astype(np.float16).sum(axis=1) ** 2 + (other**2).sum(axis=1)))"),
)
edit(
    "X-1b",
    "maximum of the batch",
    "coreset",
    "error_vector_score",
    ("x.max(axis=-1, keepdims=True, initial=-np.inf)", "x.max(initial=-np.inf)"),
)
edit(
    "X-1b",
    "standardised by the batch",
    "coreset",
    "disagreement_score",
    (
        "e, f = exponentials(x), exponentials(t)",
        "e, f = exponentials(x - x.mean(axis=0)), exponentials(t - t.mean(axis=0))",
    ),
)
edit(
    "X-1b",
    "divided by the batch",
    "coreset",
    "acs_score",
    ("β * error_norm(x, y) +", "β * error_norm(x, y) / len(x) +"),
)
edit(
    "X-1b",
    "EL2N standardised by the batch",
    "coreset",
    "el2n_score",
    (
        "np.mean([error_norm(run, y) for run in x], axis=0)",
        "np.mean([error_norm(r / (1 + r.std()), y) for r in x], axis=0)",
    ),
)
edit(
    "X-1b",
    "GraNd of centred features",
    "coreset",
    "grand_score",
    ("np.sqrt(float(bias) + (h**2).sum(axis=1))", "np.sqrt(float(bias) + ((h - h.mean(axis=0)) ** 2).sum(axis=1))"),
)
edit(
    "X-2",
    "distance of logits",
    "coreset",
    "disagreement_score",
    ("gap = e / e.sum(axis=1, keepdims=True) - f / f.sum(axis=1, keepdims=True)", "gap = x - t"),
)
edit("X-2", "the square", "coreset", "disagreement_score", ("np.sqrt((gap**2).sum(axis=1))", "(gap**2).sum(axis=1)"))
edit(
    "X-2",
    "largest difference",
    "coreset",
    "disagreement_score",
    ("np.sqrt((gap**2).sum(axis=1))", "np.abs(gap).max(axis=1, initial=0.0)"),
)
edit(
    "X-2a",
    "divergence instead of distance",
    "coreset",
    "disagreement_score",
    ("np.sqrt((gap**2).sum(axis=1))", "np.sqrt((gap**2).sum(axis=1) + 2.0**-60)"),
)
edit(
    "X-2a",
    "an epsilon in the reference's sum",
    "coreset",
    "disagreement_score",
    ("f / f.sum(axis=1, keepdims=True)", "f / (f.sum(axis=1, keepdims=True) + 1e-12)"),
)
edit(
    "X-2b",
    "twice the error",
    "coreset",
    "error_vector_score",
    (SCORE, "2 * " + SCORE),
)
edit(
    "X-2b",
    "half the distance",
    "coreset",
    "disagreement_score",
    ("np.sqrt((gap**2).sum(axis=1))", "np.sqrt((gap**2).sum(axis=1)) / 2"),
)
edit(
    "X-3",
    "the published cosine for the paper's",
    "coreset",
    "acs_score",
    ('"paper": math.sin(math.pi / 2 * (1 - t)),', '"paper": math.sin(math.pi / 2 * (1 - t)) ** 2,'),
)
edit(
    "X-3",
    "the published swap of names",
    "coreset",
    "acs_score",
    ('"error-vector": 1.0,', '"error-vector": 0.0,'),
    ('"disagreement": 0.0,', '"disagreement": 1.0,'),
)
edit(
    "X-3",
    "epochs counted from 1",
    "coreset",
    "acs_score",
    ("t = epoch / epochs", "t = min(epoch + 1, epochs) / epochs"),
)
edit("X-3", "square and root exchanged", "coreset", "acs_score", ('"sqrt": 1 - math.sqrt(t)', '"sqrt": 1 - t * t'))
edit(
    "X-3a",
    "a cosine that does not end at 0",
    "coreset",
    "acs_score",
    ('"paper": math.sin(math.pi / 2 * (1 - t)),', '"paper": math.cos(math.pi / 2 * t),'),
)
edit(
    "X-3a",
    "weights the wrong way round",
    "coreset",
    "acs_score",
    ("β * error_norm(x, y) + (1 - β)", "(1 - β) * error_norm(x, y) + β"),
)
edit("X-4", "worst first", "coreset", "select_coreset", ("][: round(S * len(m))]", "][: round(S * len(m))][::-1]"))
edit(
    "X-4",
    "the other end",
    "coreset",
    "select_coreset",
    ('-s if keep == "largest" else s', 's if keep == "largest" else -s'),
)
edit(
    "X-4",
    "in the order of the data",
    "coreset",
    "select_coreset",
    (
        'm[np.argsort(descending[m], kind="stable")][: round(S * len(m))] for',
        'np.sort(m[np.argsort(descending[m], kind="stable")][: round(S * len(m))]) for',
    ),
)
edit("X-4a", "global whatever the labels", "coreset", "select_coreset", ("if labels is None:", "if True:"))
edit(
    "X-4a",
    "positions within the class",
    "coreset",
    "select_coreset",
    ("best = [m[np.argsort(", "best = [every[np.argsort("),
)
edit(
    "X-4a",
    "as many of every class",
    "coreset",
    "select_coreset",
    ("round(S * len(m))] for", "round(S * len(s) / len(members))] for"),
)
edit(
    "X-4a",
    "classes from the last to the first",
    "coreset",
    "select_coreset",
    ("for c in np.unique(y)]\n    best", "for c in np.unique(y)[::-1]]\n    best"),
)
edit(
    "X-4b",
    "a reversed ascending sort",
    "coreset",
    "select_coreset",
    ('m[np.argsort(descending[m], kind="stable")]', 'm[np.argsort(-descending[m], kind="stable")[::-1]]'),
)
edit("X-4b", "an unstable sort", "coreset", "select_coreset", ('kind="stable"', 'kind="heapsort"'))
edit(
    "X-4b",
    "zeros by their sign",
    "coreset",
    "select_coreset",
    ("descending = -s", "s = np.where(s == 0, np.copysign(1e-30, s), s)\n    descending = -s"),
)
edit("X-4c", "half away from zero", "coreset", "select_coreset", ("round(S * len(m))", "math.floor(S * len(m) + 0.5)"))
edit("X-4c", "rounds down", "coreset", "select_coreset", ("round(S * len(m))", "int(S * len(m))"))
edit("X-4c", "at least one of a class", "coreset", "select_coreset", ("round(S * len(m))", "max(1, round(S * len(m)))"))
edit("X-5", "the first model alone", "coreset", "el2n_score", ("for run in x]", "for run in x[:1]]"))
edit("X-5", "logits of the mean model", "coreset", "el2n_score", ("for run in x]", "for run in [x.mean(axis=0)]]"))
edit(
    "X-5",
    "a sum over models",
    "coreset",
    "el2n_score",
    ("np.mean([error_norm(run, y) for run in x], axis=0)", "np.sum([error_norm(run, y) for run in x], axis=0)"),
)
edit("X-5a", "softmax all the same", "coreset", "el2n_score", ('if outputs == "softmax":', "if True:"))
edit("X-5a", "without the label", "coreset", "el2n_score", ("x - np.eye(x.shape[2])[y]", "x"))
edit("X-6", "forgets the bias", "coreset", "grand_score", ("np.sqrt(float(bias) +", "np.sqrt("))
edit("X-6", "always a bias", "coreset", "grand_score", ("np.sqrt(float(bias) +", "np.sqrt(1 +"))
edit(
    "X-6",
    "a sum of norms",
    "coreset",
    "grand_score",
    ("np.sqrt(float(bias) + (h**2).sum(axis=1))", "(float(bias) + np.sqrt((h**2).sum(axis=1)))"),
)
edit(
    "X-6",
    "divided by the samples",
    "coreset",
    "grand_score",
    ("        return np.asarray(score)\n    b =", "        return np.asarray(score / len(x))\n    b ="),
)
edit("X-6a", "a full last batch", "coreset", "grand_score", ("np.minimum(b, len(x) - start)", "b"))
edit("X-6a", "per sample whatever the batch", "coreset", "grand_score", ("if batch_size is None:", "if True:"))
edit("X-7", "counts what was learnt", "coreset", "forgetting_score", ("c[:-1] & ~c[1:]", "~c[:-1] & c[1:]"))
edit("X-7", "counts wrong epochs", "coreset", "forgetting_score", ("(c[:-1] & ~c[1:])", "(~c)"))
edit(
    "X-7", "never learnt is never forgotten", "coreset", "forgetting_score", ('if never_learnt == "most":', "if False:")
)
edit("X-7", "the option has no effect", "coreset", "forgetting_score", ('if never_learnt == "most":', "if True:"))
edit("X-7", "last epoch left out", "coreset", "forgetting_score", ("(c[:-1] & ~c[1:])", "(c[:-2] & ~c[1:-1])"))
edit("X-8", "one centre for all", "coreset", "moderate_score", ("members = y == c\n", "members = y >= 0\n"))
edit(
    "X-8",
    "against the mean distance",
    "coreset",
    "moderate_score",
    ("np.median(d) if against", "np.mean(d) if against"),
)
edit(
    "X-8",
    "the distance itself",
    "coreset",
    "moderate_score",
    ('if against == "nothing" or', 'if against == "median" or'),
)
edit(
    "X-8",
    "squared distances",
    "coreset",
    "moderate_score",
    ("np.linalg.norm(z[members] - middle, axis=1)", "((z[members] - middle) ** 2).sum(axis=1)"),
)
edit(
    "X-8a",
    "the mean for the median",
    "coreset",
    "moderate_score",
    ('np.mean if center == "mean" else np.median', "np.mean"),
)
edit(
    "X-8a",
    "the lower of two middle values",
    "coreset",
    "moderate_score",
    ("ordinary[members] = np.median(d[members])", "ordinary[members] = np.sort(d[members])[(members.sum() - 1) // 2]"),
)
edit(
    "X-8a",
    "the median of all for that of the class",
    "coreset",
    "moderate_score",
    ('if against == "median" else ordinary', "if True else ordinary"),
)
edit(
    "X-9",
    "one-sided divergence",
    "coreset",
    "contextual_diversity",
    ("((a - b[j]) * (log_a - log_b[j])).sum(axis=1) / 2", "(a * (log_a - log_b[j])).sum(axis=1)"),
)
edit(
    "X-9",
    "without the half",
    "coreset",
    "contextual_diversity",
    ("(log_a - log_b[j])).sum(axis=1) / 2", "(log_a - log_b[j])).sum(axis=1)"),
)
edit("X-9", "transposed", "coreset", "contextual_diversity", (".T.copy()", ".reshape(len(a), len(b))"))
edit(
    "X-9",
    "epsilon on one side",
    "coreset",
    "contextual_diversity",
    ('distributions(q, "q", "X-9", epsilon)', 'distributions(q, "q", "X-9", epsilon) - epsilon'),
)
edit(
    "X-9a",
    "zeros give NaN, as published",
    "coreset",
    "contextual_diversity",
    ("bad = (a < 0) | (a + ε <= 0)", "bad = a < 0"),
)
edit(
    "X-9a",
    "zeros are quietly made small",
    "coreset",
    "contextual_diversity",
    (
        "    a = checks.finite(p, name, clause, ndim=2)\n    ε",
        "    a = np.maximum(checks.finite(p, name, clause, ndim=2), 1e-12)\n    ε",
    ),
)
edit(
    "X-10",
    "nearest first",
    "coreset",
    "k_center",
    ("s = int(np.argmax(nearest))", "s = int(np.argmin(np.where(nearest < 0, np.inf, nearest)))"),
)
edit(
    "X-10",
    "distance to the last centre only",
    "coreset",
    "k_center",
    ("nearest = np.minimum(nearest, distance(s))", "nearest = np.where(nearest < 0, nearest, distance(s))"),
)
edit(
    "X-10",
    "distance to the first centre only",
    "coreset",
    "k_center",
    ("np.min([distance(j) for j in start], axis=0)", "distance(int(start[0]))"),
)
edit(
    "X-10",
    "Euclidean whatever the metric",
    "coreset",
    "k_center",
    ('        if metric == "euclidean":\n', "        if True:\n"),
)
edit(
    "X-10",
    "budget with the given centres",
    "coreset",
    "k_center",
    (
        "for _ in range(count):\n        s = int(np.argmax(nearest))",
        "for _ in range(count - len(start)):\n        s = int(np.argmax(nearest))",
    ),
)
edit(
    "X-10a",
    "ties to the higher index",
    "coreset",
    "k_center",
    ("int(np.argmax(nearest))", "len(nearest) - 1 - int(np.argmax(nearest[::-1]))"),
)
edit("X-10a", "takes a sample twice", "coreset", "k_center", ("        nearest[s] = -np.inf\n", ""))
edit("X-11", "nearest to the mean", "coreset", "herding", ("rest = rest + a.mean(axis=0)", "rest = a.mean(axis=0)"))
edit(
    "X-11",
    "farthest",
    "coreset",
    "herding",
    ("((rest - a) ** 2).sum(axis=1), np.inf)", "-((rest - a) ** 2).sum(axis=1), np.inf)"),
)
edit("X-11", "with replacement", "coreset", "herding", ("np.where(free, ", "np.where(True, "))
edit("X-11", "forgets what it took", "coreset", "herding", ("rest, free[s] = rest - a[s], False", "free[s] = False"))
edit(
    "X-11a",
    "ties to the higher index",
    "coreset",
    "herding",
    (
        "s = int(np.argmin(np.where(free, ((rest - a) ** 2).sum(axis=1), np.inf)))",
        "s = len(a) - 1 - int(np.argmin(np.where(free, ((rest - a) ** 2).sum(axis=1), np.inf)[::-1]))",
    ),
)
edit("X-11a", "1-norm", "coreset", "herding", ("((rest - a) ** 2)", "np.abs(rest - a)"))
edit("X-12", "one word", "coreset", "random_score", ("w[:, 0] << np.uint64(32) | w[:, 1]", "w[:, 0] << np.uint64(32)"))
edit("X-12", "address from the end", "coreset", "random_score", ("np.arange(n), index", "np.arange(n)[::-1], index"))
edit(
    "X-12",
    "words the other way round",
    "coreset",
    "random_score",
    ("w[:, 0] << np.uint64(32) | w[:, 1]", "w[:, 1] << np.uint64(32) | w[:, 0]"),
)
edit(
    "X-12",
    "selections are alike",
    "coreset",
    "random_score",
    ("np.arange(n), index, Purpose", "np.arange(n), 0, Purpose"),
)
