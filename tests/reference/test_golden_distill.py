"""Chapter W against the authors' training loop and analysis notebook, and against the coreset paper's soft loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import lowbit.reference as ref
from lowbit.reference.distill import total_loss

from .golden import Vector, load, manifest

LOSSES, ANALYSIS, SOFT = "kdqat_losses_a", "kdqat_exp1", "acs_kd_loss"


def test_every_golden_file_of_this_chapter_is_covered(shared: Path) -> None:
    words = ("distillation", "attention-map analysis")
    there = {
        f.removesuffix(".npz") for f, entry in manifest(shared).items() if any(w in entry["operation"] for w in words)
    }
    assert there == {LOSSES, ANALYSIS, SOFT}


def layers(v: Vector, name: str) -> range:
    return range(sum(key.startswith(f"s_{name}_") for key in v.arrays))


def test_w_the_training_loop(shared: Path) -> None:
    """Every loss and gradient of it; one score is so far off that the floor of the maps is active."""
    v = load(shared, LOSSES)
    prediction = ref.logit_loss(v["s_logits"], v["t_logits"])
    v.close(prediction.loss, v["loss_pred"], "loss_pred")
    v.close(prediction.gradient, v["grad_logits"], "grad_logits")
    losses: dict[str, list[float]] = {}
    for name, total, gradient in (
        ("rep", "loss_rep", "grad_rep"),
        ("context", "loss_context", None),
        ("attn_output", "loss_out", "grad_attn_output"),
        ("self_attn_output", "loss_saout", None),
    ):
        found = [ref.feature_loss(v[f"s_{name}_{i}"], v[f"t_{name}_{i}"]) for i in layers(v, name)]
        losses[name] = [f.loss for f in found]
        v.close(sum(losses[name]), v[total], total)
        if gradient:  # recomputed in double: the manifest states no tolerance of its own, that of the loss is as wide
            for i, f in enumerate(found):
                expected = v[f"{gradient}_{i}"]
                assert np.abs(f.gradient - expected).max() <= v.tolerances[total] * np.abs(expected).max()
    for name, total, gradient in (("map", "loss_map", "grad_map_scores"), ("score", "loss_score", "grad_score_scores")):
        found = []
        for i in layers(v, "scores"):
            s, t = v[f"s_scores_{i}"], v[f"t_scores_{i}"]
            found.append(ref.attention_map_loss(s, t, v["lengths"]) if name == "map" else ref.score_loss(s, t))
            v.close(found[-1].gradient, v[f"{gradient}_{i}"], f"{gradient}_{i}")
        losses[name] = [f.loss for f in found]
        v.close(sum(losses[name]), v[total], total)
    mixed = total_loss(
        prediction.loss, features=losses["rep"], maps=losses["map"], outputs=losses["attn_output"],
        map_weight=v.parameters["c_map"], output_weight=v.parameters["c_out"],
    )  # fmt: skip
    v.close(mixed, v["loss_total"], "loss_total")


def test_w1_the_soft_loss_of_the_coreset_paper(shared: Path) -> None:
    v = load(shared, SOFT)
    found = ref.logit_loss(v["student"], v["teacher"])
    v.close(found.loss, v["loss"], "loss")
    v.close(found.gradient, v["grad"], "grad")


def test_w6_w7_the_analysis_notebook(shared: Path) -> None:
    """Layer by layer, head by head; float32 maps whose differences are the same numbers here."""
    v = load(shared, ANALYSIS)
    s, t = (v[name].reshape(-1, *v[name].shape[-2:]) for name in ("s_probs", "t_probs"))
    v.close(ref.ranking_loss(s, t), v["ranking_loss"], "ranking_loss")
    v.close(ref.cover_length(s, t, top=v.parameters["top_k"]), v["cover_length_ratio"], "cover_length_ratio")
    assert np.abs(ref.ranking_loss(s, t, pairs="once") - v["ranking_loss"]).max() > 1e-3
    assert np.abs(ref.cover_length(s, t, rows="all") - v["cover_length_ratio"]).max() > 1e-3
