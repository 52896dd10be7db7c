"""Chapter X: coresets."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lowbit.reference as ref
from lowbit.reference.coreset import acs_weight, selection_overhead
from lowbit.reference.errors import SpecError
from lowbit.reference.types import ACS_SCHEDULES

from .bounds import LAW, Array, near

SEEDS = st.integers(0, 2**32 - 1)


def problem(seed: int, n: int = 12, classes: int = 5) -> tuple[Array, Array, Array]:
    """Logits of two models that mostly agree, and labels."""
    g = np.random.default_rng(seed)
    x = 3 * g.standard_normal((n, classes))
    return x, x + g.standard_normal((n, classes)), g.integers(0, classes, n)


def cross_entropy(x: Array, target: Array) -> Array:
    """−Σ target · log softmax(x), row by row."""
    top = x.max(axis=1, keepdims=True)
    return np.asarray(-(target * (x - top - np.log(np.exp(x - top).sum(axis=1, keepdims=True)))).sum(axis=1))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def central_differences(x: Array, target: Array) -> Array:
    """Norm of the gradient of the cross entropy with respect to the logits."""
    step, gradient = 2.0**-17, np.zeros_like(x)
    for c in range(x.shape[1]):
        move = step * (np.arange(x.shape[1]) == c)
        gradient[:, c] = (cross_entropy(x + move, target) - cross_entropy(x - move, target)) / (2 * step)
    return np.asarray(np.linalg.norm(gradient, axis=1))


# -- scores ------------------------------------------------------------------------------------------------------------


@LAW
@given(SEEDS)
def test_both_scores_are_norms_of_gradients(seed: int) -> None:
    x, t, y = problem(seed)
    # truncation h² f‴/6 and cancellation u f/h, both below 1e-9 for logits of this size
    np.testing.assert_allclose(ref.error_vector_score(x, y), central_differences(x, np.eye(5)[y]), atol=1e-8)
    np.testing.assert_allclose(ref.disagreement_score(x, t), central_differences(x, softmax(t)), atol=1e-8)


@LAW
@given(SEEDS, st.integers(2, 6), st.sampled_from([1.0, 8.0, 60.0]))
def test_disagreement_is_zero_where_outputs_agree_and_nowhere_else(seed: int, classes: int, sure: float) -> None:
    """Sure models included, whose large probability is 1 in both: the small ones still differ."""
    x, _, _ = problem(seed, classes=classes)
    x[:, 0] += sure
    c = np.random.default_rng(seed).integers(1, classes, 12)
    moved = x + 0.25 * (np.arange(classes) == c[:, None])
    assert (ref.disagreement_score(x, x) == 0).all()
    assert (ref.disagreement_score(x, moved) > 0).all()


@LAW
@given(SEEDS)
def test_every_score_of_probabilities_ignores_a_shift_of_the_logits(seed: int) -> None:
    """Logits in eighths, shifts that keep them exact: to the last bit, sample by sample."""
    g = np.random.default_rng(seed)
    x, t = (g.integers(-80, 80, (12, 5)) / 8 for _ in range(2))
    y, h = g.integers(0, 5, 12), g.standard_normal((12, 3))
    a, b = (g.integers(-64, 64, (12, 1)).astype(float) for _ in range(2))
    for found, expected in (
        (ref.error_vector_score(x + a, y), ref.error_vector_score(x, y)),
        (ref.disagreement_score(x + a, t + b), ref.disagreement_score(x, t)),
        (ref.acs_score(x + a, t + b, y, epoch=1, epochs=3), ref.acs_score(x, t, y, epoch=1, epochs=3)),
        (ref.el2n_score(np.stack([x + a, t + b]), y), ref.el2n_score(np.stack([x, t]), y)),
        (ref.grand_score(x + a, h, y), ref.grand_score(x, h, y)),
    ):
        np.testing.assert_array_equal(found, expected)


def test_exact_scores() -> None:
    uniform = np.zeros((1, 4))
    near(ref.error_vector_score(uniform, [2]), [math.sqrt(0.75**2 + 3 * 0.25**2)], roundings=8)
    assert ref.error_vector_score([[1000.0, 0.0]], [1]).tolist() == [math.sqrt(2)]
    assert ref.error_vector_score([[7.0]], [0]).tolist() == [0.0]
    near(ref.disagreement_score([[0.0, 800.0]], [[800.0, 0.0]]), [math.sqrt(2)], roundings=4)


@LAW
@given(SEEDS)
def test_two_classes_are_ordered_as_by_cross_entropy(seed: int) -> None:
    x, _, y = problem(seed, classes=2)
    score, p = ref.error_vector_score(x, y), softmax(x)[np.arange(12), y]
    near(score, math.sqrt(2) * (1 - p), roundings=40, magnitude=4.0)
    np.testing.assert_array_equal(np.argsort(score), np.argsort(cross_entropy(x, np.eye(2)[y])))


def test_with_three_classes_the_order_may_differ() -> None:
    p = np.array([[0.5, 0.5, 0.0], [0.49, 0.255, 0.255]])
    score = ref.error_vector_score(np.log(p + 1e-30), [0, 0])
    assert score[0] > score[1]  # although the cross entropy of the second is larger


def test_half_precision_logits_keep_confident_samples_apart() -> None:
    x = np.array([[0, 12], [0, 14], [0, 16]], np.float16)
    score = ref.error_vector_score(x, [1, 1, 1])
    assert (np.diff(score) < 0).all()
    assert (score > 0).all()


@pytest.mark.parametrize("schedule", ACS_SCHEDULES)
def test_schedules_start_and_end_exactly(schedule: str) -> None:
    ends = {"half": (0.5, 0.5), "error-vector": (1.0, 1.0), "disagreement": (0.0, 0.0)}.get(schedule, (1.0, 0.0))
    found = tuple(acs_weight(epoch=t, epochs=120, schedule=schedule) for t in (0, 120))  # type: ignore[arg-type]
    assert found == ends


def test_the_published_cosine_is_the_square_of_the_papers() -> None:
    for t in range(41):
        paper = acs_weight(epoch=t, epochs=40)
        near(paper, math.cos(math.pi * t / 80), roundings=4, magnitude=1.0)
        near(
            acs_weight(epoch=t, epochs=40, schedule="cosine"),
            (1 + math.cos(math.pi * t / 40)) / 2,
            roundings=8,
            magnitude=1.0,
        )
        near(acs_weight(epoch=t, epochs=40, schedule="cosine"), paper**2, roundings=4)


def test_overhead_of_the_published_setting() -> None:
    setting = {"interval": 10, "student": 1.8, "reference": 1.8}
    assert round(selection_overhead(fraction=0.1, teacher=7.8, **setting), 2) == 0.27
    assert round(selection_overhead(fraction=0.1, **setting), 2) == 0.67
    assert round(selection_overhead(fraction=0.5, teacher=7.8, **setting), 3) == 0.055
    for change in ({"fraction": 0.0}, {"fraction": 1.5}, {"interval": 0}, {"student": 0.0}, {"teacher": -1.0}):
        with pytest.raises(SpecError):
            selection_overhead(**{"fraction": 0.1, **setting, **change})  # type: ignore[arg-type]


def test_mislabelled_samples_come_first_by_error_vector_and_not_by_disagreement() -> None:
    """A model that is right and sure; a tenth of the labels are wrong."""
    g = np.random.default_rng(3)
    truth = g.integers(0, 10, 500)
    x = 8 * np.eye(10)[truth] + g.standard_normal((500, 10))
    t = 8 * np.eye(10)[truth] + g.standard_normal((500, 10))
    noisy = np.zeros(500, np.bool_)
    noisy[g.permutation(500)[:50]] = True
    y = np.where(noisy, (truth + 1) % 10, truth)
    first = ref.select_coreset(ref.error_vector_score(x, y), fraction=0.1)
    other = ref.select_coreset(ref.disagreement_score(x, t), fraction=0.1)
    assert noisy[first].all()
    assert noisy[other].sum() < 15


# -- selection by scores -----------------------------------------------------------------------------------------------


@LAW
@given(SEEDS, st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9, 1.0]))
def test_selection_follows_permutations(seed: int, fraction: float) -> None:
    x, t, y = problem(seed, n=30)
    order = np.random.default_rng(seed).permutation(30)
    for labels in (None, y):
        scores = ref.acs_score(x, t, y, epoch=3, epochs=9)
        plain = ref.select_coreset(scores, labels, fraction=fraction)
        moved = ref.select_coreset(scores[order], None if labels is None else labels[order], fraction=fraction)
        np.testing.assert_array_equal(order[moved], plain)
        sizes = [30] if labels is None else np.unique(y, return_counts=True)[1].tolist()
        assert len(plain) == sum(round(fraction * n) for n in sizes)
        assert len(set(plain.tolist())) == len(plain)
    assert sorted(ref.select_coreset(scores, y, fraction=1.0).tolist()) == list(range(30))


def test_balanced_and_global_budgets_differ() -> None:
    labels = [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(ref.select_coreset(np.arange(9.0), labels, fraction=0.5)) == 6
    assert len(ref.select_coreset(np.arange(9.0), fraction=0.5)) == 4
    assert ref.select_coreset([3.0, 2.0], [0, 1], fraction=0.5).tolist() == []


@LAW
@given(SEEDS, st.integers(1, 7))
def test_balanced_selection_is_the_best_of_all_balanced_subsets(seed: int, n: int) -> None:
    """Brute force: no subset with as many samples of every class has a larger sum, and of equal sums ours is first."""
    g = np.random.default_rng(seed)
    scores, labels = g.integers(-2, 3, n).astype(float), g.integers(0, 2, n)
    chosen = ref.select_coreset(scores, labels, fraction=0.5)
    counts = [int((labels[chosen] == c).sum()) for c in (0, 1)]
    rivals = [
        s for s in itertools.combinations(range(n), len(chosen))
        if [sum(labels[i] == c for i in s) for c in (0, 1)] == counts
    ]  # fmt: skip
    best = max(scores[list(s)].sum() for s in rivals)
    assert scores[chosen].sum() == best
    assert tuple(sorted(chosen.tolist())) == min(s for s in rivals if scores[list(s)].sum() == best)


def test_nan_scores_are_refused_and_not_picked_first() -> None:
    with pytest.raises(SpecError, match=r"\[A-4\] scores holds nan at \(1,\)"):
        ref.select_coreset([1.0, np.nan, 0.0], fraction=0.5)


@LAW
@given(SEEDS)
def test_el2n_is_the_mean_of_error_vectors_and_raw_logits_are_another_score(seed: int) -> None:
    x, t, y = problem(seed)
    near(
        ref.el2n_score(np.stack([x, t]), y),
        (ref.error_vector_score(x, y) + ref.error_vector_score(t, y)) / 2,
        roundings=3,
    )
    raw = ref.el2n_score(x[None], y, outputs="logits")
    near(raw, np.linalg.norm(x - np.eye(5)[y], axis=1), roundings=12)
    moved = ref.el2n_score(x[None] + 100, y, outputs="logits")
    assert (moved > 100).all()  # a shift of the logits, which changes no prediction


# -- baselines ---------------------------------------------------------------------------------------------------------


@LAW
@given(SEEDS, st.booleans())
def test_grand_is_the_norm_of_the_outer_product(seed: int, bias: bool) -> None:
    x, _, y = problem(seed)
    h = np.random.default_rng(seed).standard_normal((12, 7))
    error = softmax(x) - np.eye(5)[y]
    gradient = error[:, :, None] * np.concatenate([h, np.ones((12, int(bias)))], axis=1)[:, None, :]
    near(
        ref.grand_score(x, h, y, bias=bias),
        np.linalg.norm(gradient.reshape(12, -1), axis=1),
        roundings=200,
        magnitude=10.0,
    )


def test_grand_of_a_mean_favours_the_last_batch() -> None:
    x, h, y = np.zeros((7, 3)), np.ones((7, 2)), np.zeros(7, int)
    plain, divided = ref.grand_score(x, h, y), ref.grand_score(x, h, y, batch_size=3)
    near(plain / divided, [3, 3, 3, 3, 3, 3, 1], roundings=2)


@LAW
@given(SEEDS, st.integers(1, 9))
def test_forgetting_counts_what_a_loop_counts(seed: int, epochs: int) -> None:
    correct = np.random.default_rng(seed).random((epochs, 6)) < 0.5
    for rule in ("most", "zero"):
        found = ref.forgetting_score(correct, never_learnt=rule)
        for sample, events in zip(correct.T, found, strict=True):
            if sample.any():
                assert events == sum(a and not b for a, b in itertools.pairwise(sample.tolist()))
                assert events <= epochs // 2 < max(epochs, 2)
            else:
                assert events == (epochs if rule == "most" else 0)


def test_moderate_keeps_the_ordinary_and_the_published_variant_the_outliers() -> None:
    z = np.array([[0.0], [1.0], [2.0], [3.0], [20.0]])
    y = np.zeros(5, int)
    ours = ref.moderate_score(z, y)
    assert 4 not in ref.select_coreset(ours, y, fraction=0.6, keep="smallest")
    theirs = ref.moderate_score(z, y, center="median", against="nothing")
    assert ref.select_coreset(theirs, y, fraction=0.2).tolist() == [4]
    by_class = ref.moderate_score(z, [0, 0, 0, 1, 1], center="median", against="class-median")
    assert by_class.tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]


@LAW
@given(SEEDS)
def test_divergence_is_symmetric_and_not_negative(seed: int) -> None:
    p = softmax(problem(seed)[0])
    d = ref.contextual_diversity(p, p)
    assert (d >= 0).all()
    assert (np.diag(d) == 0).all()
    near(d, d.T, roundings=2)
    two_sided = (p[:, None] * np.log(p[:, None] / p) + p * np.log(p / p[:, None])).sum(axis=2) / 2
    near(d, two_sided, roundings=200, magnitude=10.0)
    assert (ref.contextual_diversity(p, p, epsilon=0.1) <= d + 1e-12).all()  # smoothing brings rows together


def test_a_softmax_in_half_precision_needs_an_epsilon() -> None:
    p = softmax(np.array([[0.0, 30.0], [30.0, 0.0]])).astype(np.float16)
    with pytest.raises(SpecError, match="X-9"):
        ref.contextual_diversity(p, p)
    assert np.isfinite(ref.contextual_diversity(p, p, epsilon=1e-4)).all()
    with pytest.raises(SpecError, match="same number of classes"):
        ref.contextual_diversity(np.ones((2, 3)), np.ones((2, 2)))


# -- selection by distances --------------------------------------------------------------------------------------------


@LAW
@given(SEEDS, st.integers(1, 3))
def test_k_center_is_within_twice_the_optimum(seed: int, count: int) -> None:
    """Brute force over all centres: Gonzalez' bound for the whole traversal, its first centre included."""
    x = np.random.default_rng(seed).standard_normal((8, 2))
    d = np.linalg.norm(x[:, None] - x, axis=2)
    chosen = ref.k_center(x, [0], count=count)
    radius = d[:, chosen].min(axis=1).max()
    best = min(d[:, list(s)].min(axis=1).max() for s in itertools.combinations(range(8), count + 1))
    assert radius <= 2 * best * (1 + 1e-12)
    # each centre by brute force from the definition
    for k in range(1, count + 1):
        nearest = d[:, chosen[:k]].min(axis=1)
        assert chosen[k] == int(np.argmax(nearest))


def test_k_center_goes_on_when_only_copies_are_left() -> None:
    assert ref.k_center(np.zeros((4, 2)), [2], count=3).tolist() == [2, 0, 1, 3]
    p = np.full((3, 2), 0.5)
    assert ref.k_center(p, [1], count=2, metric="symmetric-kl").tolist() == [1, 0, 2]


@LAW
@given(SEEDS, st.integers(1, 6))
def test_herding_brings_the_mean_as_near_as_one_sample_can(seed: int, count: int) -> None:
    x = np.random.default_rng(seed).standard_normal((7, 3))
    chosen = ref.herding(x, count=count).tolist()
    for t in range(count):
        gaps = {
            i: np.linalg.norm(x.mean(axis=0) - x[[*chosen[:t], i]].mean(axis=0))
            for i in range(7)
            if i not in chosen[:t]
        }
        assert gaps[chosen[t]] <= min(gaps.values()) * (1 + 1e-9)
    assert sorted(ref.herding(x, count=7).tolist()) == list(range(7))


def test_herding_of_unit_vectors_is_welling_s_inner_product() -> None:
    x = np.random.default_rng(5).standard_normal((30, 4))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    weight, chosen = np.zeros(4), []
    for _ in range(10):
        weight += x.mean(axis=0)
        gain = x @ weight
        gain[chosen] = -np.inf
        chosen.append(int(np.argmax(gain)))
        weight -= x[chosen[-1]]
    assert ref.herding(x, count=10).tolist() == chosen


def test_random_scores_are_uniform_and_addressed() -> None:
    u = ref.random_score(size=20000, seed=11)
    assert len(np.unique(u)) == 20000
    assert ((u >= 0) & (u < 1)).all()
    # Hoeffding: each tenth holds its share within 2.2 % of all, except with probability 1e-8
    assert np.abs(np.histogram(u, 10, (0, 1))[0] / 20000 - 0.1).max() < 0.022
    np.testing.assert_array_equal(ref.random_score(size=10, seed=11), u[:10])
    assert not np.intersect1d(u, ref.random_score(size=20000, seed=11, index=1)).size
    halves = ref.select_coreset(u, np.arange(20000) % 2, fraction=0.25)
    assert np.bincount(halves % 2).tolist() == [2500, 2500]


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "arrays", "options", "words"),
    [
        ("error_vector_score", (np.ones((2, 3)), [0, 3]), {}, "got 3 at 1"),
        ("error_vector_score", (np.ones((2, 3)), [0]), {}, "2 samples"),
        ("error_vector_score", (np.ones((2, 0)), [0, 0]), {}, "at least one class"),
        ("disagreement_score", (np.ones((2, 3)), np.ones((2, 2))), {}, "shape of logits"),
        ("acs_score", (np.ones((1, 2)), np.ones((1, 2)), [0]), {"epoch": 3, "epochs": 2}, "epoch"),
        ("select_coreset", (np.ones(2), [0, -1]), {"fraction": 0.5}, "got -1 at 1"),
        ("select_coreset", (np.ones(2),), {"fraction": 2.0}, "fraction"),
        ("el2n_score", (np.ones((0, 2, 3)), [0, 0]), {}, "at least one model"),
        ("grand_score", (np.ones((2, 3)), np.ones((1, 3)), [0, 0]), {}, "one row for each"),
        ("grand_score", (np.ones((1, 3)), np.ones((1, 3)), [0]), {"bias": 0}, "bias"),
        ("forgetting_score", (np.ones((2, 3)),), {}, "bool"),
        ("moderate_score", (np.ones((2, 3)), [0, 0]), {"center": "mode"}, "center"),
        ("contextual_diversity", (-np.ones((2, 3)), np.ones((2, 3))), {"epsilon": 0.5}, "got -1.0"),
        ("k_center", (np.ones((2, 3)), []), {"count": 1}, "at least one"),
        ("k_center", (np.ones((2, 3)), [0, 0]), {"count": 0}, "different"),
        ("k_center", (np.ones((2, 3)), [0]), {"count": 2}, "count"),
        ("herding", (np.ones((2, 3)),), {"count": 3}, "count"),
        ("random_score", (), {"size": -1, "seed": 0}, "size"),
    ],
)
def test_refusals(op: str, arrays: tuple[Array, ...], options: dict[str, object], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        getattr(ref, op)(*arrays, **options)
