"""Chapter W: diagnostics against their definitions, and power iteration against a full decomposition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lowbit.reference as ref
from lowbit.reference.errors import SpecError

from .bounds import Array, near

OPS: Any = ref  # options that no type allows


def maps(seed: int, *shape: int) -> Array:
    e = np.exp(np.random.default_rng(seed).standard_normal(shape))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def test_w6_published_ranges_count_pairs_by_their_ends() -> None:
    """Twice, but once with the first or the last key: the sum of both counts, taken apart."""
    s, t = maps(0, 2, 6, 6), maps(1, 2, 6, 6)
    inner = ref.ranking_loss(s, t, pairs="once")
    published = ref.ranking_loss(s, t)
    edges = np.zeros(2)
    for h, r in np.ndindex(2, 6):
        for i in range(6):
            for j in range(i + 1, 6):
                if i == 0 or j == 5:
                    edges[h] += max(0.0, -(s[h, r, i] - s[h, r, j]) * np.sign(t[h, r, i] - t[h, r, j]))
    near(published, 2 * inner - edges, roundings=2000, magnitude=9.0)
    assert not ref.ranking_loss(t, t).any()
    assert not ref.ranking_loss(t**2, t).any()  # same order


def test_w6_w7_are_invariant_to_what_keeps_the_order() -> None:
    s, t = maps(0, 2, 7, 7), maps(1, 2, 7, 7)
    assert np.array_equal(ref.cover_length(s, t), ref.cover_length(s**2, np.sqrt(t)))
    near(ref.ranking_loss(s, t), ref.ranking_loss(s, t**3), roundings=99)


def test_w7_least_value_and_the_last_row() -> None:
    """Equal maps cover k keys in k places; without the last row (n − 1)/n of it."""
    t = maps(0, 3, 8, 8)
    near(ref.cover_length(t, t, top=5, rows="all"), np.full(3, 4 / 8), roundings=9)
    near(ref.cover_length(t, t, top=5), np.full(3, 4 / 8 * 7 / 8), roundings=9)
    assert not ref.cover_length(np.zeros((2, 0, 0)), np.zeros((2, 0, 0))).any()


@pytest.mark.parametrize("n, top", [(1, 1), (5, 5), (8, 5), (8, 1), (8, 8)])
def test_w7_bounds(n: int, top: int) -> None:
    """From (k − 1)/n · (n − 1)/n, where orders agree, to ((n − 1)/n)², where the student's is the reverse."""
    s, t = maps(0, 3, n, n), maps(1, 3, n, n)
    least, most = (top - 1) * (n - 1) / n**2, ((n - 1) / n) ** 2
    for student in (s, t, -t):
        found = ref.cover_length(student, t, top=top)
        assert (found >= least * (1 - 2.0**-40)).all()
        assert (found <= most * (1 + 2.0**-40)).all()
    near(ref.cover_length(t, t, top=top), np.full(3, least), roundings=99)
    near(ref.cover_length(-t, t, top=top), np.full(3, most), roundings=99)


def test_w8_per_token() -> None:
    found = ref.attention_range([[3.0, -1.0, 2.0], [0.0, 0.0, 0.0]])
    assert (found.low.tolist(), found.high.tolist()) == ([-1.0, 0.0], [3.0, 0.0])


def test_w9_parts_add_up_to_the_output() -> None:
    """Σ_h Σ_k α f is what the layer puts out; a key that nobody sees has no weighted norm."""
    g = np.random.default_rng(0)
    α, x, v, b, o = maps(0, 3, 5, 5), *(g.standard_normal(s) for s in ((5, 4), (6, 4), (6,), (7, 6)))
    found = ref.attention_norms(α, x, v, b, o)
    values = (x @ v.T + b).reshape(5, 3, 2)
    for h in range(3):
        f = values[:, h] @ o[:, 2 * h : 2 * h + 2].T
        near(found.value[h], np.linalg.norm(f, axis=1), roundings=99, magnitude=9.0)
        parts = np.linalg.norm(α[h][..., None] * f, axis=-1)  # query by key
        near(found.weighted[h], parts.mean(axis=0), roundings=99, magnitude=9.0)
    near(found.probability.sum(axis=1), np.ones(3), roundings=99)
    unseen = α.copy()
    unseen[:, :, 2] = 0
    assert not ref.attention_norms(unseen, x, v, b, o).weighted[:, 2].any()


def spread(seed: int, spectrum: list[float]) -> tuple[Array, Array]:
    """A symmetric matrix with known eigenvalues, and starts."""
    g = np.random.default_rng(seed)
    n = len(spectrum)
    q = np.linalg.qr(g.standard_normal((n, n)))[0]
    return q @ np.diag(spectrum) @ q.T, g.standard_normal((3, n))


def test_w10_the_largest_magnitudes_then_the_other_end() -> None:
    h, start = spread(0, [9.0, -5.0, 3.0, 1.0, 0.5, 0.1])
    found = ref.power_eigenvalues(h, start, stop="residual", tolerance=1e-9, iterations=500)
    assert np.abs(found.value - [9, -5, 3]).max() < 1e-7
    assert (
        np.abs(found.value - [9, -5, 3]) <= found.residual + 1e-13
    ).all()  # (W.19), up to the eigensolver's rounding
    other = ref.power_eigenvalues(h, start[:1], stop="residual", tolerance=1e-9, iterations=500, shift=9.0)
    assert abs(other.value[0] + 5) < 1e-6
    near(found.vector @ found.vector.T, np.eye(3), roundings=2000, magnitude=1.0)


def test_w10_a_function_is_as_good_as_a_matrix() -> None:
    h, start = spread(1, [4.0, -3.0, 1.0, 0.5])
    one, other = (ref.power_eigenvalues(x, start) for x in (h, lambda v: h @ v))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_w10_the_published_rule_stops_early_and_the_certificate_says_so() -> None:
    """Two eigenvalues 1e-4 apart: the value has settled, the vector has not."""
    h, start = spread(2, [1.0, 0.9, 0.89, 0.1])
    quick = ref.power_eigenvalues(h, start[:1], tolerance=0.05)
    assert quick.steps[0] < 15
    assert quick.residual[0] > 0.01
    sure = ref.power_eigenvalues(h, start[:1], stop="residual", tolerance=1e-3)
    assert sure.residual[0] <= 1e-3 * abs(sure.value[0])


def test_w10_an_operator_of_low_rank() -> None:
    """Beyond its rank values are 0, and the vectors stay orthogonal."""
    h = np.zeros((4, 4))
    h[0, 0] = 2.0
    found = ref.power_eigenvalues(
        h, [[3.0, 1.0, 1.0, 1.0], [1.0, 5.0, 0.0, 0.0]], iterations=200, stop="residual", tolerance=0.0
    )
    assert abs(found.value[0] - 2) < 1e-12
    assert abs(found.value[1]) < 1e-12
    near(found.vector @ found.vector.T, np.eye(2), roundings=2000, magnitude=1.0)
    u = np.array([0.1, 0.7, 0.3])  # what is left of the second product is rounding, along u
    found = ref.power_eigenvalues(
        np.outer(u, u), [[1.0, 0.2, 0.0], [0.0, 1.0, 0.0]], iterations=50, stop="residual", tolerance=0.0
    )
    assert np.abs(found.value - [u @ u, 0]).max() < 1e-15
    assert found.steps[1] < 50


def test_w10_nothing_to_find() -> None:
    assert ref.power_eigenvalues(np.zeros((3, 3)), [[1.0, 2.0, 3.0]]).steps.tolist() == [1]
    assert ref.power_eigenvalues(np.zeros((0, 0)), np.zeros((0, 0))).value.shape == (0,)


@pytest.mark.parametrize(
    ("operator", "start", "word"),
    [
        (np.eye(3), np.ones((4, 3)), "4 starts for 3"),
        (np.eye(3), np.zeros((1, 3)), "start 0 is zero"),
        (np.eye(3), [[1.0, 2.0, 0.0], [2.0, 4.0, 0.0]], "start 1 lies in the span"),
        (np.triu(np.ones((3, 3))), np.ones((1, 3)), "symmetric"),
        (np.eye(2), np.ones((1, 3)), "shape"),
        (lambda v: v[:2], np.ones((1, 3)), "answer shape"),
    ],
)
def test_w10_refusals(operator: Any, start: Any, word: str) -> None:
    with pytest.raises(SpecError, match=word) as refused:
        ref.power_eigenvalues(operator, start)
    assert refused.value.clause == "W-10"


@pytest.mark.parametrize(
    ("call", "clause"),
    [
        (lambda: OPS.ranking_loss(np.ones((2, 3, 3)), np.ones((2, 3, 4))), "W-6"),
        (lambda: OPS.ranking_loss(np.ones((2, 3, 3)), np.ones((2, 3, 3)), pairs="all"), "W-6"),
        (lambda: OPS.cover_length(np.ones((2, 3, 3)), np.ones((2, 3, 3))), "W-7"),
        (lambda: OPS.cover_length(np.ones((2, 3, 3)), np.ones((2, 3, 3)), top=2, rows="first"), "W-7"),
        (lambda: OPS.attention_range(np.ones((2, 0))), "W-8"),
        (
            lambda: OPS.attention_norms(np.ones((2, 3, 3)), np.ones((3, 4)), np.ones((5, 4)), None, np.ones((2, 5))),
            "W-9",
        ),
        (
            lambda: OPS.attention_norms(np.ones((2, 3, 3)), np.ones((2, 4)), np.ones((4, 4)), None, np.ones((2, 4))),
            "W-9",
        ),
        (lambda: OPS.power_eigenvalues(np.eye(2), np.eye(2), stop="soon"), "W-10"),
    ],
)
def test_w_refusals(call: Any, clause: str) -> None:
    with pytest.raises(SpecError) as refused:
        call()
    assert refused.value.clause == clause
