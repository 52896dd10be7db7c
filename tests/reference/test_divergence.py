"""Chapter F against what it estimates: divergences of a model whose distribution is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from lowbit import reference as ref

VOCABULARY, WIDTH, TOKENS = 7, 5, 400


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


class Model:
    """Softmax regression on inputs of one kind, so that gradients and inputs are nearly independent."""

    def __init__(self, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.random = random
        self.w = random.standard_normal((VOCABULARY, WIDTH)) * 0.1
        self.bias = random.standard_normal(VOCABULARY)
        self.x = random.standard_normal((TOKENS, WIDTH)) * random.lognormal(size=WIDTH)
        self.p = softmax(self.x @ self.w.T + self.bias)
        self.c = ref.moment_total(ref.moment_leaf(self.x, index=0)).matrix
        # Expectation over labels: the covariance of a one-hot draw.
        self.g = np.mean([np.diag(p) - np.outer(p, p) for p in self.p], axis=0)

    def divergence(self, d: np.ndarray) -> float:
        q = softmax(self.x @ (self.w + d).T + self.bias)
        return float(np.mean(np.sum(self.p * np.log(self.p / q), axis=1)))


def test_a_small_error_costs_what_is_predicted() -> None:
    model = Model()
    ratios = []
    for _ in range(20):
        d = model.random.standard_normal(model.w.shape) * 1e-3
        ratios.append(ref.divergence(d, model.c, model.g) / model.divergence(d))
    assert np.median(ratios) == pytest.approx(1, abs=0.1)
    assert 0.7 < min(ratios) < max(ratios) < 1.4


def test_gradients_of_drawn_labels_have_the_fisher_moment() -> None:
    model = Model()
    logits = model.x @ model.w.T + model.bias
    nodes = ref.moment_leaf(np.zeros((0, VOCABULARY)), index=0)
    for draw in range(200):
        labels = ref.draw_labels(logits, seed=3, first=draw * TOKENS)
        gradients = model.p - np.eye(VOCABULARY)[labels]
        nodes = ref.moment_merge(nodes, ref.moment_leaf(gradients, index=draw + 1))
    found = ref.moment_total(nodes).matrix
    assert np.abs(found - model.g).max() < 0.02 * np.abs(model.g).max()


def test_a_label_comes_as_often_as_its_probability() -> None:
    logits = np.log([[0.5, 0.25, 0.125, 0.125]])
    labels = ref.draw_labels(np.repeat(logits, 40_000, axis=0), seed=1)
    counts = np.bincount(labels, minlength=4)
    deviation = (counts - 40_000 * np.exp(logits[0])) / np.sqrt(40_000 * np.exp(logits[0]))
    assert np.abs(deviation).max() < 4


def test_the_patch_beats_eora_where_outputs_matter_unevenly() -> None:
    model = Model()
    d = model.random.standard_normal(model.w.shape) * 1e-3
    g = np.diag(np.geomspace(1, 1e-4, VOCABULARY))
    own = ref.divergence_patch(d, model.c, g, rank=2, damping=1e-3)
    eora = ref.eora(d, model.c, rank=2)
    left, other = (ref.divergence(d - b @ a, model.c, g) for b, a in ((own.B, own.A), (eora.B, eora.A)))
    assert left < 0.7 * other
    tail = ref.divergence_spectrum(d, model.c, g, damping=1e-3)[2:]
    assert own.objective == pytest.approx(np.sum(tail**2), rel=1e-9)


def test_white_outputs_give_eora() -> None:
    random = np.random.default_rng(5)
    d, x = random.standard_normal((6, 9)), random.standard_normal((40, 9))
    found = ref.divergence_patch(d, x.T @ x, np.eye(6), rank=2, damping=0.0)
    b, a = ref.eora(d, x.T @ x, rank=2)
    np.testing.assert_allclose(found.B @ found.A, b @ a, atol=1e-12)


def test_any_root_of_the_gradients_gives_the_same_patch() -> None:
    random = np.random.default_rng(6)
    d, x, y = (random.standard_normal(shape) for shape in ((6, 9), (40, 9), (50, 6)))
    g = y.T @ y / 50
    found = ref.divergence_patch(d, x.T @ x, g, rank=3, damping=0.25)
    upper = np.linalg.cholesky(g + 0.25 * np.trace(g) / 6 * np.eye(6)).T
    b, a = ref.eora(upper @ d, x.T @ x, rank=3)
    np.testing.assert_allclose(found.B @ found.A, np.linalg.solve(upper, b @ a), atol=1e-10)


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_without_gradients_nothing_is_known_and_nothing_patched(damping: float) -> None:
    d = np.arange(12.0).reshape(3, 4)
    found = ref.divergence_patch(d, np.eye(4), np.zeros((3, 3)), rank=2, damping=damping)
    assert found.objective == found.lower_bound == 0
    np.testing.assert_array_equal(found.B, 0)
