"""Coreset scores and selection against what the published implementations answered.

Their names are kept in quotes: ``evonly`` is our "disagreement", ``dsonly`` our "error-vector".
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import lowbit.reference as ref
from lowbit.reference.types import AcsSchedule

from .golden import load, manifest

FILES = [
    "acs_main", "acs_ties", "acs_schedules", "acs_kd_loss", "el2n_official", "grand_official", "forgetting", "kcenter",
    "moderate_official",
]  # fmt: skip
PUBLISHED: dict[str, AcsSchedule] = {
    "linear": "linear",
    "cosine": "cosine",
    "quadratic": "quadratic",
    "sqrt": "sqrt",
    "evonly": "disagreement",
    "dsonly": "error-vector",
    "other": "half",
}


def test_every_golden_file_of_the_chapter_is_covered(shared: Path) -> None:
    there = {file.removesuffix(".npz") for file in manifest(shared)}
    prefixes = ("acs_", "el2n_", "grand_", "moderate_", "forgetting", "kcenter")
    found = {name for name in there if name.startswith(prefixes) and not name.startswith("acs_lsq_")}
    assert found == set(FILES)


@pytest.mark.parametrize("file", ["acs_main", "acs_schedules"])
def test_scores_and_selections_under_every_schedule(shared: Path, file: str) -> None:
    v = load(shared, file)
    x, t, y = v["q_logits"], v["fp_logits"], v["labels"]
    if "evs" in v.arrays:
        np.testing.assert_allclose(ref.error_vector_score(x, y), v["evs"], rtol=0, atol=1e-14)
        np.testing.assert_allclose(ref.disagreement_score(x, t), v["ds"], rtol=0, atol=1e-14)
    cases = [key.removeprefix("scores_").split("_") for key in v.arrays if key.startswith("scores_")]
    assert cases
    for schedule, epoch, kind in cases:
        name = f"{schedule}_{epoch}_{kind}"
        scores = ref.acs_score(
            x, t, y, epoch=int(epoch[1:]), epochs=v.parameters["total_epochs"], schedule=PUBLISHED[schedule]
        )
        v.close(scores, v[f"scores_{name}"], f"scores_{name}")
        labels = y if kind == "balanced" else None
        chosen = ref.select_coreset(scores, labels, fraction=v.parameters["fraction"])
        np.testing.assert_array_equal(chosen, v[f"indices_{name}"])


def test_tied_scores_select_the_same_scores_and_by_our_rule_the_first_samples(shared: Path) -> None:
    v = load(shared, "acs_ties")
    y, p = v["labels"], v.parameters
    scores = ref.acs_score(
        v["q_logits"], v["fp_logits"], y, epoch=p["epoch"], epochs=p["total_epochs"], schedule=p["schedule"]
    )
    chosen = ref.select_coreset(scores, y, fraction=p["fraction"])
    assert len(chosen) == len(v["indices"])
    # their order among equals is that of an unstable sort: only the scores are defined
    v.close(scores[chosen], v["scores"][v["indices"]], "scores of the selected samples")
    for c in np.unique(y):
        own = chosen[y[chosen] == c]
        for value in np.unique(scores[own]):
            members = np.flatnonzero((y == c) & (scores == value))
            taken = own[scores[own] == value]
            np.testing.assert_array_equal(taken, members[: len(taken)])


def test_disagreement_is_the_gradient_of_the_distillation_loss(shared: Path) -> None:
    v = load(shared, "acs_kd_loss")
    student, teacher = v["student"].astype(np.float64), v["teacher"].astype(np.float64)
    log_p = student - student.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    target = np.exp(teacher - teacher.max(axis=1, keepdims=True))
    target /= target.sum(axis=1, keepdims=True)
    v.close(-(target * log_p).sum(axis=1).mean(), v["loss"], "loss")
    v.close((np.exp(log_p) - target) / len(student), v["grad"], "grad")
    norms = np.linalg.norm(v["grad"], axis=1) * len(student)  # a batch mean
    v.close(ref.disagreement_score(student, teacher), norms, "grad")


def test_el2n_as_published_takes_logits(shared: Path) -> None:
    v = load(shared, "el2n_official")
    v.close(ref.el2n_score(v["logits"][None], v["labels"], outputs="logits"), v["scores"], "scores")


def test_grand_as_published_is_divided_by_the_batch(shared: Path) -> None:
    v = load(shared, "grand_official")
    h, y, count = v["features"].astype(np.float64), v["labels"], v["batch_count"]
    x = h @ v["W"].T.astype(np.float64) + v["b"]
    v.close(ref.grand_score(x, h, y, batch_size=v.parameters["selection_batch"]), v["scores"], "scores")
    v.close(ref.grand_score(x, h, y), v["scores"] * count, "scores*batch_count")


def test_forgetting_as_published_has_zero_for_the_never_learnt(shared: Path) -> None:
    v = load(shared, "forgetting")
    np.testing.assert_array_equal(ref.forgetting_score(v["correct"], never_learnt="zero"), v["events"])


def test_k_center_by_both_distances(shared: Path) -> None:
    v = load(shared, "kcenter")
    p = v["probs"]
    v.close(ref.contextual_diversity(p, p), v["sym_kl"], "sym_kl")
    budget = v.parameters["budget"]
    by_divergence = ref.k_center(p, v["first"], count=budget, metric="symmetric-kl")
    np.testing.assert_array_equal(np.sort(by_divergence), v["selected_sym_kl"])
    np.testing.assert_array_equal(np.sort(ref.k_center(p, v["first"], count=budget)), v["selected_euclid"])


def test_moderate_as_published_keeps_the_outliers(shared: Path) -> None:
    v = load(shared, "moderate_official")
    scores = ref.moderate_score(v["features"], v["labels"], center="median", against="nothing")
    v.close(scores, v["scores"], "scores")
    chosen = ref.select_coreset(scores, v["labels"], fraction=v.parameters["fraction"])
    np.testing.assert_array_equal(chosen, v["indices"])
