"""Vectors of chapter X: coresets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from .. import compare, rules
from ..recording import Draws
from .inputs import NARROW, SPEC, U32, Table, eighths, generator, suite


def build(table: Table) -> None:
    x, t = eighths("X-x", 5, 4), eighths("X-t", 5, 4)
    x[1], t[1] = [90, 0, -90, 0], [-90, 0, 90, -0.0]
    x[2], t[3] = 0, x[3]
    x[4] = x[4] / np.float32(3)
    sample = (x, t, np.array([0, 2, 1, 3, 0], np.int32))
    random = np.random.default_rng(20230612)
    _scores(table, random)
    _of_samples(table, *sample)
    _selection(table, random)
    _gradients(table, sample)
    _geometry(table, random)
    for seed in (0, 2**64 - 1):
        table.exactly("X-12", f"seed {seed}", [], size=5, seed=seed, index=3)


def _scores(table: Table, random: np.random.Generator) -> None:
    """Of eight samples with five classes."""
    coreset = suite("coreset")
    x, t = (random.integers(-24, 25, (8, 5)).astype(np.float32) / 8 for _ in range(2))
    y = random.integers(0, 5, 8).astype(np.int32)
    roundings = 2 * (3 * 6 + 4) + 5 + 2  # of probabilities whose logits lie within 6 of the largest
    own, gap = SPEC.error_vector_score(x, y), SPEC.disagreement_score(x, t)
    twos = np.full(8, 2.0)  # at least the sum of the norms of both distributions
    table.call("X-1", "eighths", [x, y], rules.forward("", own, own, 2 * roundings + 18))
    for top in (90, 30000):
        table.recorded("X-1", "test_large_logits", f"logits of {top}", dtype=NARROW, top=top)
    table.call("X-2", "eighths", [x, t], rules.forward("", gap, twos, roundings + 13))
    for schedule in ("paper", "cosine", "linear"):
        options = {"epoch": 10, "epochs": 40, "schedule": schedule}
        mixed = SPEC.acs_score(x, t, y, **options)
        expect = [rules.forward("", mixed, own + twos + gap, 2 * roundings + 24)]
        table.call("X-3", schedule, [x, t, y], *expect, **options)
    x, t = np.array([[2, 0, -1], [1, 3, 2]], np.float32), np.array([[0, 2, -1], [1, 3, 1]], np.float32)
    for s in ("quadratic", "sqrt", "half", "error-vector", "disagreement"):
        case = (x, t, np.array([1, 2], np.int32))
        table.recorded("X-3", coreset.mix, f"{s} at 10 of 40", case=case, schedule=s, epoch=10, epochs=40)


def _of_samples(table: Table, x: Any, t: Any, y: Any) -> None:
    coreset, sample = suite("coreset"), (x, t, y)
    for g, c in ((8, 2), (25, 10), (60, 3)):
        table.recorded("X-1a", "test_confident_samples", f"{g} ahead of {c} classes", dtype=NARROW, gap=g, classes=c)
    more = [np.concatenate([v, v[[0, 4]] / np.float32(3)]) for v in sample[:2]]
    batch, other, label = *more, np.append(y, [1, 3]).astype(np.int32)
    for op, arrays, options in (
        ("error_vector_score", [batch, label], {}),
        ("disagreement_score", [batch, other], {}),
        ("acs_score", [batch, other, label], {"epoch": 1, "epochs": 3}),
    ):
        n = len(table["X-1b"])
        table.call("X-1b", "all samples", arrays, op=op, **options)
        for rows in ([0], [4, 1], [3, 2], [6, 5]):
            few = [v[rows] for v in arrays]
            expect = [rules.same(str(i), n, str(row)) for i, row in enumerate(rows)]
            table.call("X-1b", f"samples {rows}", few, *expect, op=op, **options)
    for s in (7, -64):
        table.recorded("X-2a", "test_equal_outputs", f"shifted by {s}", case=sample, shift=s)
    one = np.full(5, np.sqrt(2))
    kit = coreset.Kit(SimpleNamespace(compute_dtype=NARROW))
    for op, arrays, allowed in (
        ("error_vector_score", [x, y], coreset.error_allowed(kit, x, one, U32)),
        ("disagreement_score", [x, t], coreset.gap_allowed(kit, x, t, one, U32)),
    ):
        size = allowed / compare.gamma(1, U32)
        expect = [rules.certificate("", one, size, 1), rules.certificate("", np.zeros(5), 0, 1, least=True)]
        table.call("X-2b", "certain and wrong, undecided, equal", arrays, *expect, op=op)
    apart = np.abs(SPEC.error_vector_score(x, y) - SPEC.error_vector_score(t, y))
    table["X-2b"][-1]["expect"].append(rules.certificate("", apart, size, 1, least=True))
    table.recorded("X-3a", "test_ends_of_the_schedule", "five samples", case=sample, epochs=40)


def _selection(table: Table, random: np.random.Generator) -> None:
    scores = (generator("X-4").permutation(11) - 4).astype(np.float32)
    for keep in ("largest", "smallest"):
        for fraction in (0.0, 0.25, 0.5, 1.0):
            table.exactly("X-4", f"{keep} {fraction}", [scores, None], fraction=fraction, keep=keep)
    scores = random.integers(-2, 3, 24).astype(np.float32)
    labels = random.integers(0, 4, 24).astype(np.int32)
    for fraction in (0.0, 0.25, 0.5, 1.0):
        table.exactly("X-4a", f"fraction {fraction}", [scores, labels], fraction=fraction)
    equal = np.array([1, -1, 0, -0.0, 1, 0, 1, -0.0, 2, -1], np.float32)
    for f in (0.5, 0.7):
        for k in ("largest", "smallest"):
            about = f"zeros of both signs, {k} {f}"
            table.recorded("X-4b", "test_equal_scores", about, case=(equal, np.zeros(10, np.int32)), fraction=f, keep=k)
    for n, fraction in ((5, 0.5), (7, 0.5), (10, 0.25), (10, 0.05), (3, 0.35)):
        table.exactly("X-4c", f"{fraction} of {n}", [np.arange(n, dtype=np.float32), None], fraction=fraction)
    ones = np.arange(4, dtype=np.int32)
    about = "half of classes of one"
    table.call("X-4c", about, [np.zeros(4, np.float32), ones], rules.exact("", np.zeros(0, np.int32)), fraction=0.5)


def _gradients(table: Table, sample: tuple[Any, ...]) -> None:
    table.recorded("X-5", "test_el2n", "three models", case=sample)
    table.recorded("X-5a", "test_el2n_of_raw_logits", "two models", case=sample)
    features = generator("X-6").integers(-20, 21, (5, 3))
    features[4] = 0
    for b in (True, False):
        about = f"bias {b}, features of 0"
        table.recorded("X-6", "test_grand_is_the_outer_product", about, case=sample, data=Draws(3, features), bias=b)
    for n in (2, 8):
        table.recorded("X-6a", "test_grand_of_a_batch_mean", f"batches of {n}", case=sample, batch=n)


def _geometry(table: Table, random: np.random.Generator) -> None:
    correct = random.random((7, 9)) < 0.5
    correct[:, 4] = False
    for rule in ("most", "zero"):
        table.exactly("X-7", rule, [correct], never_learnt=rule)
    z, labels = eighths("X-8", 8, 3), np.array([0, 7, 0, 1, 7, 0, 7, 7], np.int32)
    table.recorded("X-8", "test_moderate", "a class of one, one of four", case=(z, labels))
    for c in ("mean", "median"):
        for a in ("median", "class-median", "nothing"):
            table.recorded("X-8a", "test_moderate_variants", f"{c}, {a}", case=(z, labels), center=c, against=a)
    p = np.array([[1, 1, 2, 4], [8, 0.25, 0.25, 0.5], [2, 2, 2, 2], [1, 1, 2, 4]], np.float32) / np.float32(8)
    p[1] = p[1] / p[1].sum()
    for e in (0.0, 0.25):
        about = f"epsilon {e}, equal rows"
        table.recorded("X-9", "test_contextual_diversity", about, skip=("definition",), p=p, data=Draws(1), epsilon=e)
    holed = p.copy()
    holed[2] = [0.5, 0, 0.5, 0]
    table.call("X-9a", "rows from themselves", [p, p], *(rules.exact(f"{i}.{i}", np.float64(0)) for i in range(4)))
    expect = [rules.exact(f"{i}.{i}", np.float64(0)) for i in range(4)]
    table.call("X-9a", "zeros with an epsilon", [holed, holed], *expect, epsilon=0.125)
    points = random.integers(-2, 3, (16, 2)).astype(np.float32)
    first = np.array([5], np.int32)
    table.exactly("X-10a", "a lattice", [points, first], count=9)
    table.exactly("X-11a", "a lattice", [points], count=9)
    cross = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1], [1, 0], [-1, 0], [0, 0]], np.float32)
    square = np.array([[2, 1], [-2, -1], [1, 2], [-1, -2], [2, -2], [-2, 2], [0, 1], [0, -1]], np.float32)
    first = np.array([3], np.int32)
    for about, points in (("points twice", cross), ("a lattice", square)):
        about, n = f"all of {about}", len(points)
        table.exactly("X-10a", about, [points, first], count=n - 1)
        table.exactly("X-11a", about, [points], count=n)
