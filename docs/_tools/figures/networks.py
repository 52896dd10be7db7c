"""Figures of the chapters on coresets, distillation and diagnostics."""

from __future__ import annotations

import numpy as np
from canvas import Axes, svg

from lowbit import reference as ref
from lowbit.reference.coreset import acs_weight


def coreset() -> str:
    """X: mislabelled samples in an ACS coreset over the training, by schedule."""
    rng = np.random.default_rng(7)
    n, classes, epochs = 4000, 10, 40
    truth = rng.integers(0, classes, n)
    logits = rng.gamma(4, 1, n)[:, None] * np.eye(classes)[truth] + 0.7 * rng.standard_normal((n, classes))
    quantized = logits + 0.8 * rng.standard_normal((n, classes))
    wrong = rng.permutation(n) < n // 10
    labels = np.where(wrong, (truth + rng.integers(1, classes, n)) % classes, truth)
    own, gap = ref.error_vector_score(quantized, labels), ref.disagreement_score(quantized, logits)
    a = Axes((0, 1), (0, 1.02))
    a.frame(
        {v: f"{v:g}" for v in (0, 0.25, 0.5, 0.75, 1)},
        {v: f"{v:.0%}".replace("%", " %") for v in (0, 0.25, 0.5, 0.75, 1)},
        xlabel="training done, t / E", ylabel="mislabelled in the coreset",
    )  # fmt: skip
    times = np.linspace(0, 1, epochs + 1)
    for i, schedule in enumerate(("paper", "cosine", "linear")):
        shares = []
        for t in range(epochs + 1):
            weight = acs_weight(epoch=t, epochs=epochs, schedule=schedule)
            chosen = ref.select_coreset(weight * own + (1 - weight) * gap, labels, fraction=0.1)
            shares.append(float(wrong[chosen].mean()))
        a.curve(times, shares, i, dots=False)
    a.legend(["paper: cos(πt/2E)", "code: its square", "code: linear"], 90, 200, dots=False)
    return svg("Share of mislabelled samples in the coreset over the training, for three schedules.", 660, 320, a)


def distillation() -> str:
    """W: what an error of one half in one attention score costs, by the teacher's probability of that key."""
    n, share = 64, np.geomspace(1e-4, 0.6, 33).tolist()
    maps, scores = [], []
    for p in share:
        teacher = np.zeros((1, 1, n, n))
        teacher[..., 0] = np.log(p / (1 - p) * (n - 1))
        student = teacher.copy()
        student[..., 0] += 0.5
        maps.append(ref.attention_map_loss(student, teacher, [n]).loss)
        scores.append(ref.score_loss(student, teacher).loss)
    a = Axes((1e-4, 1), (1e-6, 1e-1), log_x=True, log_y=True)
    a.frame(
        {v: f"{v:g}" for v in (1e-4, 1e-3, 1e-2, 1e-1, 1)}, {v: f"{v:g}" for v in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)},
        xlabel="the teacher's attention to the key", ylabel="loss",
    )  # fmt: skip
    for i, values in enumerate((maps, scores)):
        a.curve(share, values, i, dots=False)
    a.legend(["attention map", "attention score"], 430, 200, dots=False)
    return svg("Loss of an error of one half in one score, against the teacher's attention to its key.", 660, 320, a)


def curvature() -> str:
    """W: both rules to stop a power iteration, and what the residual knows, by the distance of two eigenvalues."""
    n, gaps = 40, [0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01]
    rng = np.random.default_rng(3)
    q, start = np.linalg.qr(rng.standard_normal((n, n)))[0], rng.standard_normal((1, n))
    bound: list[float] = []
    error: list[float] = []
    for gap in gaps:
        spectrum = np.concatenate([[1.0, 1 - gap], np.linspace(-0.4, 0.4, n - 2)])
        found = ref.power_eigenvalues(q @ np.diag(spectrum) @ q.T, start)
        bound.append(float(found.residual[0]))
        error.append(abs(float(found.value[0]) - 1))
    a = Axes((0.01, 0.5), (1e-5, 1), log_x=True, log_y=True)
    a.frame(
        {v: f"{v:g}" for v in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)}, {10.0**e: f"{10.0**e:g}" for e in range(-5, 1)},
        xlabel="distance of the second eigenvalue from the first, which is 1", ylabel="error of the value",
    )  # fmt: skip
    for i, values in enumerate((bound, error)):
        a.curve(gaps, values, i)
    a.legend(["certificate", "true error"], 430, 40)
    return svg("Error of an eigenvalue under the published rule to stop, and the certificate.", 660, 320, a)
