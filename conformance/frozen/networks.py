"""Vectors of chapters X and W: coresets, distillation and diagnostics."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from .. import compare, rules, strategies
from ..recording import Draws
from .inputs import NARROW, SPEC, U32, Array, Options, Table, call, eighths, generator, near, recorded, suite

__all__ = ["coresets", "diagnostics", "distillation"]


def coresets(table: Table) -> None:
    options: Options
    coreset = suite("coreset")
    x, t = eighths("X-x", 5, 4), eighths("X-t", 5, 4)
    x[1], t[1] = [90, 0, -90, 0], [-90, 0, 90, -0.0]
    x[2], t[3] = 0, x[3]
    x[4] = x[4] / np.float32(3)
    y = np.array([0, 2, 1, 3, 0], np.int32)
    sample = (x, t, y)
    recorded(
        table,
        "X-1a",
        "test_confident_samples",
        *(
            (f"{g} ahead of {c} classes", {"dtype": NARROW, "gap": g, "classes": c})
            for g, c in ((8, 2), (25, 10), (60, 3))
        ),
    )
    table["X-1b"] = []
    more = [np.concatenate([v, v[[0, 4]] / np.float32(3)]) for v in sample[:2]]
    batch, other, label = *more, np.append(y, [1, 3]).astype(np.int32)
    for op, arrays, options in (
        ("error_vector_score", [batch, label], {}),
        ("disagreement_score", [batch, other], {}),
        ("acs_score", [batch, other, label], {"epoch": 1, "epochs": 3}),
    ):
        n = len(table["X-1b"])
        table["X-1b"].append(call(op, "all samples", arrays, options, []))
        for rows in ([0], [4, 1], [3, 2], [6, 5]):
            few = [v[rows] for v in arrays]
            expect = [rules.same(str(i), n, str(row)) for i, row in enumerate(rows)]
            table["X-1b"].append(call(op, f"samples {rows}", few, options, expect))
    recorded(
        table, "X-2a", "test_equal_outputs", *((f"shifted by {s}", {"case": sample, "shift": s}) for s in (7, -64))
    )
    table["X-2b"] = []
    one = np.full(5, np.sqrt(2))
    kit = coreset.Kit(SimpleNamespace(compute_dtype=NARROW))
    for op, arrays, allowed in (
        ("error_vector_score", [x, y], coreset.error_allowed(kit, x, one, U32)),
        ("disagreement_score", [x, t], coreset.gap_allowed(kit, x, t, one, U32)),
    ):
        size = allowed / compare.gamma(1, U32)
        table["X-2b"].append(
            call(
                op,
                "certain and wrong, undecided, equal",
                arrays,
                {},
                [rules.certificate("", one, size, 1), rules.certificate("", np.zeros(5), 0, 1, least=True)],
            )
        )
    apart = np.abs(SPEC.error_vector_score(x, y) - SPEC.error_vector_score(t, y))
    table["X-2b"][-1]["expect"].append(rules.certificate("", apart, size, 1, least=True))
    recorded(table, "X-3a", "test_ends_of_the_schedule", ("five samples", {"case": sample, "epochs": 40}))
    table["X-4"], table["X-4c"] = [], []
    scores = (generator("X-4").permutation(11) - 4).astype(np.float32)
    for keep in ("largest", "smallest"):
        for fraction in (0.0, 0.25, 0.5, 1.0):
            options = {"fraction": fraction, "keep": keep}
            found = SPEC.select_coreset(scores, None, **options)
            table["X-4"].append(
                call("select_coreset", f"{keep} {fraction}", [scores, None], options, [rules.exact("", found)])
            )
    equal = np.array([1, -1, 0, -0.0, 1, 0, 1, -0.0, 2, -1], np.float32)
    recorded(
        table,
        "X-4b",
        "test_equal_scores",
        *(
            (f"zeros of both signs, {k} {f}", {"case": (equal, np.zeros(10, np.int32)), "fraction": f, "keep": k})
            for f in (0.5, 0.7)
            for k in ("largest", "smallest")
        ),
    )
    for n, fraction in ((5, 0.5), (7, 0.5), (10, 0.25), (10, 0.05), (3, 0.35)):
        found = SPEC.select_coreset(np.arange(n, dtype=np.float32), None, fraction=fraction)
        table["X-4c"].append(
            call(
                "select_coreset",
                f"{fraction} of {n}",
                [np.arange(n, dtype=np.float32), None],
                {"fraction": fraction},
                [rules.exact("", found)],
            )
        )
    ones = np.arange(4, dtype=np.int32)
    table["X-4c"].append(
        call(
            "select_coreset",
            "half of classes of one",
            [np.zeros(4, np.float32), ones],
            {"fraction": 0.5},
            [rules.exact("", np.zeros(0, np.int32))],
        )
    )
    recorded(table, "X-5", "test_el2n", ("three models", {"case": sample}))
    recorded(table, "X-5a", "test_el2n_of_raw_logits", ("two models", {"case": sample}))
    features = generator("X-6").integers(-20, 21, (5, 3))
    features[4] = 0
    recorded(
        table,
        "X-6",
        "test_grand_is_the_outer_product",
        *((f"bias {b}, features of 0", {"case": sample, "data": Draws(3, features), "bias": b}) for b in (True, False)),
    )
    recorded(
        table,
        "X-6a",
        "test_grand_of_a_batch_mean",
        *((f"batches of {b}", {"case": sample, "batch": b}) for b in (2, 8)),
    )
    z, labels = eighths("X-8", 8, 3), np.array([0, 7, 0, 1, 7, 0, 7, 7], np.int32)
    recorded(table, "X-8", "test_moderate", ("a class of one, one of four", {"case": (z, labels)}))
    recorded(
        table,
        "X-8a",
        "test_moderate_variants",
        *(
            (f"{c}, {a}", {"case": (z, labels), "center": c, "against": a})
            for c in ("mean", "median")
            for a in ("median", "class-median", "nothing")
        ),
    )
    p = np.array([[1, 1, 2, 4], [8, 0.25, 0.25, 0.5], [2, 2, 2, 2], [1, 1, 2, 4]], np.float32) / np.float32(8)
    p[1] = p[1] / p[1].sum()
    recorded(
        table,
        "X-9",
        "test_contextual_diversity",
        *((f"epsilon {e}, equal rows", {"p": p, "data": Draws(1), "epsilon": e}) for e in (0.0, 0.25)),
        skip=("definition",),
    )
    holed = p.copy()
    holed[2] = [0.5, 0, 0.5, 0]
    table["X-9a"] = [
        call(
            "contextual_diversity",
            "rows from themselves",
            [p, p],
            {},
            [rules.exact(f"{i}.{i}", np.float64(0)) for i in range(4)],
        ),
        call(
            "contextual_diversity",
            "zeros with an epsilon",
            [holed, holed],
            {"epsilon": 0.125},
            [rules.exact(f"{i}.{i}", np.float64(0)) for i in range(4)],
        ),
    ]


def distillation(table: Table) -> None:
    pair = suite("distill").Pair
    lengths, labels = np.array([4, 2, 1], np.int32), np.array([[0, 4, 4, -100], [-100] * 4, [2, -100, 1, 3]], np.int32)
    student, teacher = eighths("W-1s", 4, 5), eighths("W-1t", 4, 5)
    student[1] = teacher[1]  # equal
    student[2], student[3, 4], teacher[0, 1] = 0, -150, -40
    logits = pair(student, teacher, lengths, labels)
    for clause, test in (("W-1", "test_soft_cross_entropy"), ("W-1a", "test_divergence")):
        recorded(
            table,
            clause,
            test,
            *(
                (f"equal, constant and far logits, temperature {t}", {"pair": logits, "temperature": t})
                for t in (1.0, 3.0)
            ),
        )
    student, teacher = eighths("W-2s", 3, 4, 5), eighths("W-2t", 3, 4, 5)
    student[0, 1], teacher[0, 2, 4], student[2, 0, 0], teacher[2, 2] = teacher[0, 1], -60, -0.0, 0
    tokens = pair(student, teacher, lengths, labels)
    recorded(
        table,
        "W-2",
        "test_token_weights",
        *(
            (
                f"{ignored}, temperature {t}, a sequence without labels",
                {"pair": tokens, "temperature": t, "ignored": ignored},
            )
            for ignored, t in (("weigh", 10.0), ("weigh", 0.5), ("skip", 10.0))
        ),
    )
    recorded(table, "W-2a", "test_skipped_tokens", ("tokens without a label", {"pair": tokens}))
    recorded(
        table,
        "W-3",
        "test_mean_square",
        *((f"padding counted: {p}", {"pair": tokens, "padded": p}) for p in (True, False)),
    )
    recorded(table, "W-3a", "test_features_of_padding", ("padded sequences", {"pair": tokens}))
    student, teacher = eighths("W-4s", 3, 2, 4, 4, limit=40), eighths("W-4t", 3, 2, 4, 4, limit=40)
    student[0, 0], teacher[0, 1], student[1, 0, 0] = teacher[0, 0], 0, [-1, 2, -0.0, 0]
    teacher[1, 0, 0], student[1, 1, :, 0], teacher[0, 0, :, 3] = [-1, 2, 0, -1], -150, -40
    scores = pair(student, teacher, lengths, labels)
    for clause, test, floors in (
        ("W-4", "test_scores_above_the_floor", (-1.0, 0.0)),
        ("W-4a", "test_causal_scores", (-100.0, 2.0)),
    ):
        recorded(table, clause, test, *((f"floor {f}, scores on it", {"pair": scores, "floor": f}) for f in floors))
    recorded(table, "W-5", "test_divergence_of_maps", ("padded, masses below the floor", {"pair": scores}))
    recorded(table, "W-5a", "test_maps_of_padding", ("padded, masses below the floor", {"pair": scores}))
    recorded(
        table, "W-5b", "test_floor_of_the_maps", *((f"floor {f}", {"pair": scores, "floor": f}) for f in (0.1, 0.01))
    )


def diagnostics(table: Table) -> None:
    random = generator("W-6")
    few, many = (
        [random.integers(0, top, (2, 4, 4)).astype(np.float32) / np.float32(128) for _ in range(2)] for top in (3, 99)
    )
    recorded(
        table,
        "W-6",
        "test_misordered_pairs",
        *(
            (f"{about}, {p}", {"maps": tuple(m), "pairs": p})
            for about, m in (("ties", few), ("general", many))
            for p in ("published", "once")
        ),
    )
    recorded(
        table,
        "W-7",
        "test_cover_length",
        *(
            (f"top {t}, rows {r}", {"maps": tuple(many), "data": Draws(t, r)})
            for t in (1, 2, 4)
            for r in ("published", "all")
        ),
    )
    table["W-7a"] = []
    for top in (1, 2, 3):
        found = SPEC.cover_length(*few, top=top, rows="all")
        table["W-7a"].append(
            call(
                "cover_length",
                f"ties, top {top}",
                few,
                {"top": top, "rows": "all"},
                [rules.exact("", found.astype(np.float32))],
            )
        )
    x = np.array([[1, -3, 0.1], [-0.0, 0, -0.0], [2, 2, 2], [-1, -7, -1]], np.float32)
    recorded(table, "W-8", "test_ranges", ("equal features, zeros of both signs", {"x": x}))
    maps, w_v, w_o = np.abs(eighths("W-9m", 2, 3, 3)), eighths("W-9v", 4, 5), eighths("W-9o", 3, 4)
    tokens = eighths("W-9x", 3, 5)
    tokens[1], maps[0, :, 2] = 0, 0
    for about, bias in (("without a bias", None), ("with a bias", eighths("W-9b", 4))):
        recorded(
            table,
            "W-9",
            "test_norms",
            (f"{about}, a token of zeros, one not attended to", {"layer": (maps, tokens, w_v, bias, w_o)}),
        )
    _eigenvalues(table)


def _eigenvalues(table: Table) -> None:
    options: Options
    diagnostics = suite("diagnostics")
    random = generator("W-10")
    values = random.integers(-40, 41, (5, 5)) / 8
    matrix = (np.triu(values) + np.triu(values, 1).T).astype(np.float32)
    start = (random.integers(1, 30, (2, 5)) + 100 * np.eye(2, 5)).astype(np.float32)
    table["W-10"] = []
    for shift, stop in ((0.0, "change"), (-20.0, "residual")):
        options = {"iterations": 1, "shift": shift, "stop": stop}
        found = SPEC.power_eigenvalues(matrix, start, **options)
        allowed = diagnostics.product_error(matrix, U32) + compare.gamma(5 + 8, U32) * abs(shift)
        # unit vectors are off by their own orthogonality, which moves a quotient as far as it moves the product
        moved = 2 * compare.orthogonality(5, U32) * float(np.linalg.norm(matrix.astype(np.float64)))
        drift = compare.orthogonality(5, U32) + compare.tiny(1, NARROW)
        table["W-10"].append(
            call(
                "power_eigenvalues",
                f"one step, shift {shift}",
                [matrix, start],
                options,
                [
                    near("value", found.value, np.full(2, allowed + moved)),
                    near("residual", found.residual, np.full(2, 2 * allowed + moved)),
                    near("vector @ vector.T", np.eye(2), drift),
                    near("vector", found.vector, np.full((2, 5), drift)),
                ],
            )
        )
    recorded(
        table,
        "W-10a",
        "test_power_steps",
        *((f"{s} steps", {"dtype": NARROW, "steps": s, "seed": 1}) for s in (1, 2, 5)),
    )
    table["W-10b"] = []
    close = np.diag([4, 4, 3.984375, -1, 0.5]).astype(np.float32) / np.float32(16)
    runs: list[tuple[str, Array, Options]] = [
        ("general", matrix, {"iterations": 300, "stop": "residual", "tolerance": strategies.TOLERANCES[1]}),
        ("two equal values and a close one, stopped early", close, {"iterations": 3}),
        ("shifted up", matrix, {"iterations": 300, "shift": 15.0}),
        ("shifted down", matrix, {"iterations": 300, "shift": -15.0}),
    ]
    for about, given, options in runs:
        spectrum = np.linalg.eigvalsh(given.astype(np.float64))
        slack = diagnostics.product_error(given, U32) + compare.gamma(5 + 8, U32) * abs(options.get("shift", 0.0))
        slack = 2 * (slack + compare.weyl(float(np.abs(spectrum).max()), 5, U32)) + compare.tiny(1, NARROW)
        table["W-10b"].append(
            call(
                "power_eigenvalues",
                about,
                [given, start],
                options,
                [rules.enclosure("value", "residual", spectrum, np.full(2, slack / compare.gamma(1, U32)), 1)],
            )
        )
        farthest = spectrum[np.argsort(-np.abs(spectrum - options.get("shift", 0.0)))][:1]
        if options["iterations"] == 300:  # enough for the first, the farthest from the shift
            table["W-10b"].append(
                call(
                    "power_eigenvalues",
                    f"{about}, the first alone",
                    [given, start[:1]],
                    options,
                    [rules.enclosure("value", "residual", farthest, np.full(1, slack / compare.gamma(1, U32)), 1)],
                )
            )
    recorded(table, "W-10c", "test_when_to_stop", ("two values", {}))
