"""Chapter X: scores of samples, and selection by scores and by distances."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lowbit.conformance import compare, strategies
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array

SCHEDULES = ("paper", "cosine", "linear", "quadratic", "sqrt", "half", "error-vector", "disagreement")
FRACTIONS = st.one_of(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 1.0]), st.integers(0, 40).map(lambda k: k / 40))


@st.composite
def logits(draw: st.DrawFn, *, half: bool = True) -> tuple[Array, Array, Array]:
    """Logits of two models and labels: near each other or not, repeated rows, constant ones, up to 40 classes."""
    x = draw(strategies.matrices(rows=(1, 6), columns=(1, 40), dtype="float64"))
    x = np.clip(x / draw(st.sampled_from([8, 64, 512])), -3e4, 3e4)
    t = x + draw(st.sampled_from([0.0, 0.125, 8.0])) * draw(strategies.integers(x.shape, 9))
    y = draw(arrays(np.int32, len(x), elements=st.integers(0, x.shape[1] - 1), fill=st.nothing()))
    dtype = draw(strategies.float_dtypes(half=half))
    return x.astype(dtype), t.astype(dtype), y


def softmax(x: Array) -> Array:
    """Probabilities in float64."""
    e = np.exp(x.astype(np.float64) - x.astype(np.float64).max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def relative(x: Array, u: float) -> Array:
    """Relative error of a backend's probabilities, row by row."""
    spread = x.astype(np.float64).max(axis=-1) - x.astype(np.float64).min(axis=-1)
    return compare.softmax_error(spread, x.shape[-1], u)


def error_allowed(kit: Kit, x: Array, score: Array, u: float) -> Array:
    """Error of an error-vector score: that of two sums of probabilities, and of what is done with them.

    Exponentials that underflow are lost: 8 of the smallest numbers for each covers a library that gives up at e⁻⁸⁶.
    """
    classes = x.shape[-1]
    underflow = math.sqrt(kit.tiny(2 * classes))  # of the squares
    return np.asarray((2 * relative(x, u) + compare.gamma(2 * classes + 8, u)) * score + underflow)


def gap_allowed(kit: Kit, x: Array, t: Array, score: Array, u: float) -> Array:
    """Error of a disagreement score: the probabilities' errors do not cancel when the probabilities do."""
    norms = [np.linalg.norm(softmax(a), axis=1) * relative(a, u) for a in (x, t)]
    return np.asarray(norms[0] + norms[1] + compare.gamma(x.shape[1] + 8, u) * score + kit.tiny(8 * x.shape[1]))


@clause("X-1", tier="forward-error", case=logits())
def test_error_vector_score(kit: Kit, case: tuple[Array, Array, Array]) -> None:
    """‖softmax − one-hot‖ of logits of any size, labels unlikely or certain."""
    x, _, y = case
    found = kit.call("error_vector_score", x, y)
    want = kit.spec.error_vector_score(x, y)
    kit.check(compare.forward(found, want, error_allowed(kit, x, want, kit.u(x, result=found)), "score"))


@clause("X-1", tier="forward-error", dtype=strategies.FLOATS, top=[90, 800, 30000])
def test_large_logits(kit: Kit, dtype: str, top: int) -> None:
    """Beyond the range of the exponential, of either sign: certain and right, certain and wrong, undecided."""
    x = np.array([[top, 0, -top], [top, 0, -top], [top, top, top], [-top, -top, -top]], dtype)
    found = kit.call("error_vector_score", x, np.array([0, 2, 1, 0], np.int32))
    want = np.array([0, math.sqrt(2), math.sqrt(2 / 3), math.sqrt(2 / 3)])
    kit.check(compare.forward(found, want, error_allowed(kit, x, want, kit.u(x, result=found)), "score"))


@clause("X-1a", tier="forward-error", dtype=strategies.FLOATS, gap=st.integers(8, 60), classes=st.integers(2, 40))
def test_confident_samples(kit: Kit, dtype: str, gap: int, classes: int) -> None:
    """The right class ahead by up to 60: the score is the others' share, which a difference from 1 would lose."""
    x, y = np.zeros((2, classes), dtype), np.array([0, classes - 1], np.int32)
    x[0, 0] = x[1, -1] = gap
    x[1, 0] = 1
    found = kit.call("error_vector_score", x, y)
    others = np.exp(np.where(np.arange(classes) == y[:, None], -np.inf, x.astype(np.float64) - gap))
    share = others / (1 + others.sum(axis=1, keepdims=True))
    want = np.hypot(share.sum(axis=1), np.linalg.norm(share, axis=1))
    kit.check(compare.forward(found, want, error_allowed(kit, x, want, kit.u(x, result=found)), "score"))


@clause("X-1b", tier="exact", case=logits(), data=st.data())
def test_scores_do_not_depend_on_the_batch(kit: Kit, case: tuple[Array, Array, Array], data: st.DataObject) -> None:
    """Rows in another order, in two passes or alone give the same bits, EL2N and GraNd included."""
    x, t, y = case
    baselines: list[tuple[str, tuple[Array, ...], dict[str, Any]]] = [
        ("el2n_score", (x, y), {"outputs": "softmax"}),
        ("el2n_score", (x, y), {"outputs": "logits"}),
        ("grand_score", (x, t, y), {}),
    ]
    order = np.array(data.draw(st.permutations(range(len(x)))), np.int64)
    cut = data.draw(st.integers(0, len(x)))
    for op, inputs, options in (
        ("error_vector_score", (x, y), {}),
        ("disagreement_score", (x, t), {}),
        ("acs_score", (x, t, y), {"epoch": 1, "epochs": 3}),
        *(b for b in baselines if kit.has(b[0])),
    ):

        def score(rows: Any, op: str = op, inputs: Any = inputs, options: Any = options) -> Array:
            chosen = [a[rows] for a in inputs]
            if op == "el2n_score":
                chosen[0] = np.stack([chosen[0], chosen[0] / 2])  # two models
            return np.asarray(kit.call(op, *chosen, **options))

        with kit.part(op):
            whole = score(slice(None))
            parts = [score(order[rows]) for rows in (slice(cut), slice(cut, None))]
            kit.check(compare.exact_bytes(np.concatenate(parts), whole[order], f"{op} of permuted parts"))
            kit.check(compare.exact_bytes(score(slice(1)), whole[:1], f"{op} of one sample"))


@clause("X-1b", tier="exact", dtype=strategies.FLOATS)
def test_scores_of_a_large_batch(kit: Kit, dtype: str) -> None:
    """1000 classes, more rows than any one block holds, against rows 700 and 701 alone."""
    draw = np.random.default_rng(20230612)
    x, t = ((3 * draw.standard_normal((702, 1000))).astype(dtype) for _ in range(2))
    y = draw.integers(0, 1000, 702).astype(np.int32)
    whole = kit.call("acs_score", x, t, y, epoch=1, epochs=3)
    part = kit.call("acs_score", x[700:], t[700:], y[700:], epoch=1, epochs=3)
    kit.check(compare.exact_bytes(part, whole[700:], "scores of two samples"))
    if kit.has("grand_score"):
        whole, part = (kit.call("grand_score", x[rows], t[rows], y[rows]) for rows in (slice(None), slice(700, None)))
        kit.check(compare.exact_bytes(part, whole[700:], "GraNd of two samples"))


@clause("X-2", tier="forward-error", case=logits())
def test_disagreement_score(kit: Kit, case: tuple[Array, Array, Array]) -> None:
    """Distance of two softmaxes, near each other and far apart."""
    x, t, _ = case
    found = kit.call("disagreement_score", x, t)
    want = kit.spec.disagreement_score(x, t)
    kit.check(compare.forward(found, want, gap_allowed(kit, x, t, want, kit.u(x, t, result=found)), "score"))


@clause("X-2a", tier="exact", case=logits(), shift=st.integers(-64, 64))
def test_equal_outputs(kit: Kit, case: tuple[Array, Array, Array], shift: int) -> None:
    """The same logits: 0, not nearly 0. Logits on a grid of 1/8 shifted by an integer: the same distribution."""
    x, _, y = case
    zero = np.zeros(len(x))
    kit.check(compare.exact(kit.call("disagreement_score", x, x), zero, "score of a model and itself"))
    grid = (np.rint(np.clip(x.astype(np.float64), -90, 90) * 8) / 8).astype(x.dtype)
    moved = (grid + shift).astype(x.dtype)
    kit.check(compare.exact(kit.call("disagreement_score", grid, moved), zero, "score of shifted logits"))
    found = kit.call("error_vector_score", moved, y)
    kit.check(compare.exact(found, kit.call("error_vector_score", grid, y), "error vector of shifted logits"))


@clause("X-2b", tier="certificate", case=logits())
def test_bounds_and_triangle(kit: Kit, case: tuple[Array, Array, Array]) -> None:
    """0 ≤ EVS, DS ≤ √2 and |EVS − ‖p_T − y‖| ≤ DS."""
    x, t, y = case
    own, other = kit.call("error_vector_score", x, y), kit.call("error_vector_score", t, y)
    gap = kit.call("disagreement_score", x, t)
    u = kit.u(x, t, result=gap)
    one = np.full(len(x), math.sqrt(2))
    slack = [error_allowed(kit, a, one, u) for a in (x, t)]
    wide = gap_allowed(kit, x, t, one, u)
    for i in range(len(x)):
        for score, allowed, what in ((own[i], slack[0][i], "EVS"), (gap[i], wide[i], "DS")):
            kit.check(compare.certificate(float(score), math.sqrt(2), float(allowed), what))
            kit.require(score >= 0, f"{what} is {score}")
        allowed = float(slack[0][i] + slack[1][i] + wide[i])
        kit.check(compare.certificate(abs(float(own[i]) - float(other[i])), float(gap[i]), allowed, "difference"))


def mix(kit: Kit, case: tuple[Array, Array, Array], schedule: str, epoch: float, epochs: int) -> None:
    """One call against the definition."""
    x, t, y = case
    found = kit.call("acs_score", x, t, y, epoch=epoch, epochs=epochs, schedule=schedule)
    done = epoch / epochs
    β = {
        "paper": math.cos(math.pi * done / 2),
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "linear": 1 - done,
        "quadratic": 1 - done**2,
        "sqrt": 1 - math.sqrt(done),
        "half": 0.5,
        "error-vector": 1.0,
        "disagreement": 0.0,
    }[schedule]
    own, gap = kit.spec.error_vector_score(x, y), kit.spec.disagreement_score(x, t)
    u = kit.u(x, t, result=found)
    allowed = β * error_allowed(kit, x, own, u) + (1 - β) * gap_allowed(kit, x, t, gap, u)
    allowed = allowed + compare.gamma(24, u) * (own + gap)  # the weight, both products and the sum
    kit.check(compare.forward(found, β * own + (1 - β) * gap, allowed, f"mix at {epoch} of {epochs}"))


@clause(
    "X-3",
    tier="forward-error",
    case=logits(),
    schedule=SCHEDULES,
    epochs=st.integers(1, 200),
    part=st.floats(0, 1, width=16),
)
def test_mix(kit: Kit, case: tuple[Array, Array, Array], schedule: str, epochs: int, part: float) -> None:
    """The paper's schedule and the published code's, by name, at whole epochs and between them."""
    mix(kit, case, schedule, part * epochs, epochs)


@clause("X-3", tier="forward-error", dtype=strategies.FLOATS)
def test_every_schedule_within_the_training(kit: Kit, dtype: str) -> None:
    """Quarters of the training, where all schedules differ, of two models that disagree."""
    x = np.array([[2, 0, -1], [0, 0, 0], [1, 3, 2]], dtype)
    t = np.array([[0, 2, -1], [4, 0, 0], [1, 3, 1]], dtype)
    for schedule in SCHEDULES:
        for epoch in (0, 10, 20, 30, 40):
            mix(kit, (x, t, np.array([1, 0, 2], np.int32)), schedule, epoch, 40)


@clause("X-3a", tier="exact", case=logits(), epochs=st.integers(1, 200))
def test_ends_of_the_schedule(kit: Kit, case: tuple[Array, Array, Array], epochs: int) -> None:
    """At the start the error vectors alone, at the end the disagreement alone, to the last bit."""
    x, t, y = case
    for schedule in ("paper", "cosine", "linear", "quadratic", "sqrt"):
        for epoch, expected in (
            (0, kit.call("error_vector_score", x, y)),
            (epochs, kit.call("disagreement_score", x, t)),
        ):
            found = kit.call("acs_score", x, t, y, epoch=epoch, epochs=epochs, schedule=schedule)
            kit.check(compare.exact(found, expected, f"{schedule} at {epoch} of {epochs}"))


def best(scores: Array, members: list[int], fraction: float, keep: str) -> list[int]:
    """The best of some samples by plain sorting."""
    sign = -1.0 if keep == "largest" else 1.0
    ranked = sorted(members, key=lambda i: (sign * float(scores[i]), i))
    return ranked[: round(fraction * len(members))]


@st.composite
def scored(draw: st.DrawFn) -> tuple[Array, Array]:
    """Scores, many of them equal, zeros of both signs among them, and labels with gaps between the classes."""
    n = draw(st.integers(0, 40))
    values = draw(strategies.integers(n, 3))
    scores = (values * draw(st.sampled_from([1.0, 0.125, 1000.0]))).astype(draw(strategies.float_dtypes(half=True)))
    if draw(st.booleans()):
        scores[values == 0] *= -1  # minus zero
        scores[: n // 2] = np.abs(scores[: n // 2])
    labels = draw(arrays(np.int32, n, elements=st.sampled_from([0, 1, 2, 5, 900]), fill=st.nothing()))
    return scores, labels


@clause("X-4", tier="exact", n=st.integers(0, 60), data=st.data(), fraction=FRACTIONS)
def test_global_selection(kit: Kit, n: int, data: st.DataObject, fraction: float) -> None:
    """Different scores: the best of them, in descending or ascending order."""
    scores = (np.array(data.draw(st.permutations(range(n))), np.float64) - n / 3).astype("float32")
    for keep in ("largest", "smallest"):
        found = kit.call("select_coreset", scores, None, fraction=fraction, keep=keep)
        kit.require(found.dtype == np.int32, f"indices have dtype {found.dtype}")
        kit.check(compare.exact(found, np.array(best(scores, list(range(n)), fraction, keep), int), "indices"))


@clause("X-4a", tier="exact", case=scored(), fraction=FRACTIONS, keep=["largest", "smallest"])
def test_balanced_selection(kit: Kit, case: tuple[Array, Array], fraction: float, keep: str) -> None:
    """Each class by itself, classes in ascending order, those without samples left out."""
    scores, labels = case
    found = kit.call("select_coreset", scores, labels, fraction=fraction, keep=keep)
    expected: list[int] = []
    for c in sorted(set(labels.tolist())):
        expected += best(scores, np.flatnonzero(labels == c).tolist(), fraction, keep)
    kit.check(compare.exact(found, np.array(expected, int), "indices"))


@clause("X-4b", tier="exact", case=scored(), fraction=FRACTIONS, keep=["largest", "smallest"])
def test_equal_scores(kit: Kit, case: tuple[Array, Array], fraction: float, keep: str) -> None:
    """Few different scores: among equals the first are taken, in their order."""
    scores, _ = case
    found = kit.call("select_coreset", scores, None, fraction=fraction, keep=keep)
    expected = best(scores, list(range(len(scores))), fraction, keep)
    kit.check(compare.exact(found, np.array(expected, int), "indices"))


@clause("X-4b", tier="exact", dtype=strategies.FLOATS)
def test_many_equal_scores(kit: Kit, dtype: str) -> None:
    """Beyond the length at which sorting algorithms change: 5000 samples with three scores."""
    scores = (np.arange(5000) * 7 % 3).astype(dtype)
    found = kit.call("select_coreset", scores, None, fraction=0.5)
    kit.check(compare.exact(found, np.array(best(scores, list(range(5000)), 0.5, "largest")), "indices"))


@clause("X-4c", tier="exact", n=st.integers(0, 50), twentieths=st.integers(0, 20))
def test_budgets(kit: Kit, n: int, twentieths: int) -> None:
    """Half to even of the product, in every class; a class of one has none below a half and none at it."""
    fraction = twentieths / 20
    found = kit.call("select_coreset", np.arange(n, dtype=np.float32), None, fraction=fraction)
    product = np.float64(fraction) * n
    kit.require(len(found) == int(np.rint(product)), f"{len(found)} of {n} samples at fraction {fraction}")
    alone = kit.call("select_coreset", np.zeros(n, np.float32), np.arange(n, dtype=np.int32), fraction=fraction)
    kit.require(len(alone) == (n if fraction > 0.5 else 0), f"{len(alone)} classes of one at fraction {fraction}")


@clause("X-5", tier="forward-error", case=logits())
def test_el2n(kit: Kit, case: tuple[Array, Array, Array]) -> None:
    """Three models that differ: the mean of their scores, and of one the score itself."""
    x, t, y = case
    models = np.stack([x, t, t])
    found = kit.call("el2n_score", models, y)
    u = kit.u(x, result=found)
    each = [kit.spec.error_vector_score(m, y) for m in models]
    allowed = sum(error_allowed(kit, m, s, u) for m, s in zip(models, each, strict=True)) / 3
    want = np.mean(each, axis=0)
    kit.check(compare.forward(found, want, allowed + compare.gamma(4, u) * want, "score"))
    single = kit.call("el2n_score", x[None], y)
    kit.check(compare.forward(single, each[0], error_allowed(kit, x, each[0], u) * 2, "score of one model"))


@clause("X-5a", tier="forward-error", case=logits())
def test_el2n_of_raw_logits(kit: Kit, case: tuple[Array, Array, Array]) -> None:
    """‖x − y‖ without a softmax, which a shift of the logits changes."""
    x, t, y = case
    found = kit.call("el2n_score", np.stack([x, t]), y, outputs="logits")
    hot = np.eye(x.shape[1])[y]
    want = (np.linalg.norm(x.astype(np.float64) - hot, axis=1) + np.linalg.norm(t.astype(np.float64) - hot, axis=1)) / 2
    allowed = compare.gamma(x.shape[1] + 8, kit.u(x, result=found)) * want + kit.tiny()
    kit.check(compare.forward(found, want, allowed, "score"))


def gradients(x: Array, h: Array, y: Array, bias: bool) -> Array:
    """Norms of the last layer's gradients, the outer products written out."""
    error = softmax(x) - np.eye(x.shape[1])[y]
    inputs = np.concatenate([h.astype(np.float64), np.full((len(h), int(bias)), 1.0)], axis=1)
    outer = error[:, :, None] * inputs[:, None, :]
    return np.asarray(np.sqrt((outer**2).sum(axis=(1, 2))))


def grand_allowed(kit: Kit, x: Array, h: Array, want: Array, u: float) -> Array:
    """Error of the closed form, and of the outer product in float64, whose 1 − p_y is a difference."""
    norm = 1 + np.linalg.norm(h.astype(np.float64), axis=1)
    wide = compare.unit_roundoff("float64")
    exact = (relative(x, wide) + compare.gamma(x.shape[1] + 8, wide)) * 2 * norm
    return np.asarray(error_allowed(kit, x, want, u) + compare.gamma(h.shape[1] + 8, u) * want + exact + kit.tiny(9))


@clause("X-6", tier="forward-error", case=logits(), data=st.data(), bias=st.booleans())
def test_grand_is_the_outer_product(
    kit: Kit, case: tuple[Array, Array, Array], data: st.DataObject, bias: bool
) -> None:
    """The closed form against the materialised gradient of weight and bias."""
    x, _, y = case
    d = data.draw(st.integers(1, 6))
    h = data.draw(strategies.integers((len(x), d), 20)).astype(x.dtype) / 8
    h = h.astype(x.dtype)
    found = kit.call("grand_score", x, h, y, bias=bias)
    want = gradients(x, h, y, bias)
    kit.check(compare.forward(found, want, grand_allowed(kit, x, h, want, kit.u(x, h, result=found)), "score"))


@clause("X-6a", tier="forward-error", case=logits(), batch=st.integers(1, 8))
def test_grand_of_a_batch_mean(kit: Kit, case: tuple[Array, Array, Array], batch: int) -> None:
    """Divided by the samples of the own batch, of which the last one may have fewer."""
    x, t, y = case
    found = kit.call("grand_score", x, t, y, batch_size=batch)
    sizes = np.array([min(batch, len(x) - i // batch * batch) for i in range(len(x))])
    want = gradients(x, t, y, True) / sizes
    allowed = grand_allowed(kit, x, t, want, kit.u(x, t, result=found))
    kit.check(compare.forward(found, want, allowed, "score"))


@clause(
    "X-7",
    tier="exact",
    correct=st.tuples(st.integers(0, 9), st.integers(0, 9)).flatmap(lambda shape: arrays(np.bool_, shape)),
)
def test_forgetting(kit: Kit, correct: Array) -> None:
    """Transitions counted one by one; never learnt is the most forgotten, or by name the least."""
    epochs, n = correct.shape
    events = [sum(bool(a and not b) for a, b in pairwise(c)) for c in correct.T]
    for rule, absent in (("most", epochs), ("zero", 0)):
        want = [e if c.any() else absent for e, c in zip(events, correct.T, strict=True)]
        found = kit.call("forgetting_score", correct, never_learnt=rule)
        kit.require(found.dtype == np.int32, f"events have dtype {found.dtype}")
        kit.check(compare.exact(found, np.array(want, np.int64).reshape(n), f"events, never_learnt={rule}"))


@st.composite
def labelled(draw: st.DrawFn) -> tuple[Array, Array]:
    """Features with labels, classes of one sample and classes of an even number among them."""
    z = draw(strategies.matrices(rows=(1, 9), columns=(1, 6)))
    return z, draw(arrays(np.int32, len(z), elements=st.sampled_from([0, 1, 7]), fill=st.nothing()))


def moderate(kit: Kit, z: Array, y: Array, center: str, against: str) -> None:
    """One call against the definition.

    A mean of m values is off by γ_{m+1} times the largest, a difference by a rounding more; a norm moves by at most
    √d times that. A median moves no more than the worst of what it is taken of.
    """
    found = kit.call("moderate_score", z, y, center=center, against=against)
    values, d = z.astype(np.float64), np.zeros(len(z))
    for c in np.unique(y):
        middle = (np.mean if center == "mean" else np.median)(values[y == c], axis=0)
        d[y == c] = np.linalg.norm(values[y == c] - middle, axis=1)
    want = d.copy()
    if against == "median":
        want = np.abs(d - np.median(d))
    if against == "class-median":
        for c in np.unique(y):
            want[y == c] = np.abs(d[y == c] - np.median(d[y == c]))
    u = kit.u(z, result=found)
    n, width = z.shape
    error = math.sqrt(width) * compare.gamma(n + 4, u) * float(np.abs(values).max()) * 2
    error += compare.gamma(width + 6, u) * float(d.max())
    kit.check(compare.forward(found, want, np.full(n, 2 * error + kit.tiny(width + 2)), f"{center}, {against}"))


@clause("X-8", tier="forward-error", case=labelled())
def test_moderate(kit: Kit, case: tuple[Array, Array]) -> None:
    """Class means, distances, and their distance from the median of them all."""
    moderate(kit, *case, center="mean", against="median")


@clause(
    "X-8a",
    tier="forward-error",
    case=labelled(),
    center=["mean", "median"],
    against=["median", "class-median", "nothing"],
)
def test_moderate_variants(kit: Kit, case: tuple[Array, Array], center: str, against: str) -> None:
    """Median centres, medians of classes, and the bare distance of the published code."""
    moderate(kit, *case, center=center, against=against)


@st.composite
def distributions(draw: st.DrawFn, *, rows: tuple[int, int] = (1, 8)) -> Array:
    """Positive rows, peaked ones and equal ones among them."""
    shape = draw(st.integers(*rows)), draw(st.integers(1, 6))
    counts = draw(arrays(np.int64, shape, elements=st.integers(1, 60), fill=st.nothing()))
    values = counts.astype(np.float64) ** draw(st.integers(1, 3))
    return np.asarray(values / values.sum(axis=1, keepdims=True), draw(strategies.float_dtypes()))


def divergence_allowed(a: Array, b: Array, u: float) -> Array:
    """Error of ½ Σ (a − b)(ln a − ln b): adding ε rounds a and b, which moves difference and logarithms."""
    gap, reach = np.abs(a - b), np.abs(np.log(a)) + np.abs(np.log(b))
    rounds = compare.gamma(a.shape[-1] + 6, u)
    terms = (rounds * gap + u * (a + b)) * np.abs(np.log(a) - np.log(b))
    terms = terms + (gap + u * (a + b)) * (compare.elementary(1, u) * reach + compare.gamma(4, u) * (1 + reach))
    return np.asarray(terms.sum(axis=-1))


@clause("X-9", tier="forward-error", p=distributions(), data=st.data(), epsilon=strategies.SMOOTHINGS)
def test_contextual_diversity(kit: Kit, p: Array, data: st.DataObject, epsilon: float) -> None:
    """All pairs against the two-sided sum of the definition."""
    q = p[:, ::-1][data.draw(st.integers(0, len(p) - 1)) :].copy()
    found = kit.call("contextual_diversity", p, q, epsilon=epsilon)
    a, b = (p.astype(np.float64) + epsilon)[:, None], (q.astype(np.float64) + epsilon)[None]
    want = ((a - b) * (np.log(a) - np.log(b))).sum(axis=2) / 2
    twosided = (a * np.log(a / b) + b * np.log(b / a)).sum(axis=2) / 2
    wide = compare.unit_roundoff("float64")
    kit.check(
        compare.forward(want, twosided, divergence_allowed(a, b, wide) + 8 * wide * (a + b).sum(axis=2), "definition")
    )
    allowed = divergence_allowed(a, b, kit.u(p, q, result=found)) + kit.tiny(8)
    kit.check(compare.forward(found, want, allowed, "divergence"))


@clause("X-9a", tier="exact", p=distributions(), data=st.data())
def test_zeros_and_equal_rows(kit: Kit, p: Array, data: st.DataObject) -> None:
    """A zero is refused, an ε makes it a number; a row is at 0 from itself, and nothing is below."""
    i, c = data.draw(st.integers(0, len(p) - 1)), data.draw(st.integers(0, p.shape[1] - 1))
    found = kit.call("contextual_diversity", p, p)
    kit.check(compare.exact(np.diag(found), np.zeros(len(p)), "distance of rows from themselves"))
    kit.require(bool((found >= 0).all()), f"a negative divergence: {found.min()}")
    holed = p.copy()
    holed[i, c] = 0
    kit.refused("contextual_diversity", holed, p, clauses=("X-9",))
    kit.refused("contextual_diversity", p, holed, clauses=("X-9",))
    smooth = kit.call("contextual_diversity", holed, p, epsilon=0.125)
    kit.require(bool(np.isfinite(smooth).all()), "an epsilon leaves infinities")


def distances(x: Array, metric: str, epsilon: float) -> Array:
    """Distances of all pairs in float64."""
    a = x.astype(np.float64)
    if metric == "euclidean":
        return np.asarray(((a[:, None] - a[None]) ** 2).sum(axis=2))
    a = a + epsilon
    return np.asarray(((a[:, None] - a[None]) * (np.log(a)[:, None] - np.log(a)[None])).sum(axis=2) / 2)


def farthest(kit: Kit, x: Array, first: list[int], count: int, metric: str, epsilon: float) -> None:
    """Follow the backend's own path: at every step what it took is as far as the farthest, up to rounding."""
    options: dict[str, Any] = {"count": count, "metric": metric, "epsilon": epsilon}
    found = kit.call("k_center", x, np.array(first, np.int32), **options).tolist()
    kit.require(found[: len(first)] == first, f"{found} does not begin with {first}")
    kit.require(len(set(found)) == len(found) == len(first) + count, f"{found} are not {count} more samples")
    d, u = distances(x, metric, epsilon), kit.u(x)
    if metric == "euclidean":
        slack = 2 * compare.gamma(x.shape[1] + 4, u) * float(d.max())
    else:
        a = x.astype(np.float64) + epsilon
        slack = 2 * float(divergence_allowed(a[:, None], a[None], u).max())
    for k in range(len(first), len(found)):
        nearest = d[:, found[:k]].min(axis=1)
        free = [i for i in range(len(x)) if i not in found[:k]]
        kit.check(
            compare.certificate(-float(nearest[found[k]]), -float(nearest[free].max()), slack + kit.tiny(9), "distance")
        )


@clause("X-10", tier="certificate", x=strategies.matrices(rows=(1, 10), columns=(1, 5)), data=st.data())
def test_farthest_first(kit: Kit, x: Array, data: st.DataObject) -> None:
    """Euclidean, from one or more centres to all samples."""
    first = data.draw(st.lists(st.integers(0, len(x) - 1), min_size=1, max_size=3, unique=True))
    farthest(kit, x, first, data.draw(st.integers(0, len(x) - len(first))), "euclidean", 0.0)


@clause("X-10", tier="certificate", p=distributions(), data=st.data(), epsilon=strategies.SMOOTHINGS[:2])
def test_farthest_first_by_divergence(kit: Kit, p: Array, data: st.DataObject, epsilon: float) -> None:
    """Contextual Diversity; its order differs from the Euclidean one wherever a class is nearly ruled out."""
    first = [data.draw(st.integers(0, len(p) - 1))]
    farthest(kit, p, first, data.draw(st.integers(0, len(p) - 1)), "symmetric-kl", epsilon)


@st.composite
def lattice(draw: st.DrawFn, *, powers: bool = False) -> Array:
    """Points with small integer coordinates: distances and, for a power of two of them, means are exact."""
    n = draw(st.sampled_from([1, 2, 4, 8, 16])) if powers else draw(st.integers(1, 14))
    points = draw(strategies.integers((n, draw(st.integers(1, 3))), 2))
    return points.astype(draw(strategies.float_dtypes(half=True)))


@clause("X-10a", tier="exact", x=lattice(), data=st.data())
def test_equally_far(kit: Kit, x: Array, data: st.DataObject) -> None:
    """Points on a lattice, some of them twice: of equals the lower index, and nothing is taken twice."""
    first = np.array([data.draw(st.integers(0, len(x) - 1))], np.int32)
    found = kit.call("k_center", x, first, count=len(x) - 1)
    chosen, d = first.tolist(), distances(x, "euclidean", 0.0)
    while len(chosen) < len(x):
        nearest = d[:, chosen].min(axis=1)
        chosen.append(min((i for i in range(len(x)) if i not in chosen), key=lambda i: (-nearest[i], i)))
    kit.check(compare.exact(found, chosen, "centres"))


@clause("X-10a", tier="exact", rows=st.lists(st.integers(0, 2), min_size=1, max_size=12), dtype=strategies.WIDE_FLOATS)
def test_equally_far_by_divergence(kit: Kit, rows: list[int], dtype: str) -> None:
    """Copies of three distributions, no two of them equally far: of each the first copy, then the rest in order."""
    p = np.array([[0.75, 0.125, 0.125], [0.125, 0.625, 0.25], [0.0625, 0.0625, 0.875]], dtype)[rows]
    found = kit.call("k_center", p, np.zeros(1, np.int32), count=len(p) - 1, metric="symmetric-kl")
    d, chosen = distances(p[np.array([rows.index(r) for r in rows])], "symmetric-kl", 0.0), [0]
    while len(chosen) < len(p):
        nearest = d[:, chosen].min(axis=1)
        chosen.append(min((i for i in range(len(p)) if i not in chosen), key=lambda i: (-nearest[i], i)))
    kit.check(compare.exact(found, chosen, "centres"))


@clause("X-11", tier="certificate", x=strategies.matrices(rows=(1, 10), columns=(1, 5)), data=st.data())
def test_herding(kit: Kit, x: Array, data: st.DataObject) -> None:
    """Along the backend's own path every sample is as good as the best one, up to rounding.

    The residual t μ − Σ x is a sum of at most 2t + n terms, each at most the largest magnitude; its squared distance
    from a sample sums d squares of at most (2t + 1) times that.
    """
    count = data.draw(st.integers(0, len(x)))
    found = kit.call("herding", x, count=count).tolist()
    kit.require(len(set(found)) == len(found) == count, f"{found} are not {count} samples")
    a, reach = x.astype(np.float64), float(np.abs(x.astype(np.float64)).max())
    rest = np.zeros(x.shape[1])
    for t, chosen in enumerate(found, start=1):
        rest = rest + a.mean(axis=0)
        cost = ((rest - a) ** 2).sum(axis=1)
        least = min(cost[i] for i in range(len(x)) if i not in found[: t - 1])
        size = x.shape[1] * ((2 * t + 1) * reach) ** 2
        slack = compare.gamma(2 * (2 * t + len(x) + x.shape[1] + 4), kit.u(x)) * size + kit.tiny(9)
        kit.check(compare.certificate(float(cost[chosen]), float(least), 2 * slack, f"cost of sample {t}"))
        rest = rest - a[chosen]


@clause("X-11a", tier="exact", x=lattice(powers=True))
def test_equally_near(kit: Kit, x: Array) -> None:
    """Points on a lattice: of equals the lower index, until all are taken."""
    found = kit.call("herding", x, count=len(x))
    a = x.astype(np.float64)
    chosen: list[int] = []
    for t in range(1, len(x) + 1):
        rest = t * a.mean(axis=0) - a[chosen].sum(axis=0)
        free = [i for i in range(len(x)) if i not in chosen]
        chosen.append(min(free, key=lambda i: (float(((rest - a[i]) ** 2).sum()), i)))
    kit.check(compare.exact(found, chosen, "samples"))


@clause("X-12", tier="exact", size=st.integers(0, 50), seed=strategies.seeds(), index=st.integers(0, 2**32 - 1))
def test_scores_by_chance(kit: Kit, size: int, seed: int, index: int) -> None:
    """53 bits at the sample's own address: equal bytes, and the same for a sample when others join."""
    found = kit.call("random_score", size=size, seed=seed, index=index)
    address = np.array([[i, 0, index, 7] for i in range(size)], np.int64).reshape(size, 4)
    words = kit.spec.philox_words(address, seed=seed).view(np.uint32).astype(np.uint64)
    bits = (words[:, 0] << np.uint64(32) | words[:, 1]) >> np.uint64(11)
    kit.check(compare.exact_bytes(found, bits.astype(np.float64) * 2.0**-53, "scores"))
    more = kit.call("random_score", size=size + 3, seed=seed, index=index)
    kit.check(compare.exact_bytes(more[:size].copy(), found, "scores of a larger set"))
