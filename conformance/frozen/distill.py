"""Vectors of chapter W: distillation."""

from __future__ import annotations

import numpy as np

from .inputs import Table, eighths, suite


def build(table: Table) -> None:
    pair = suite("distill").Pair
    lengths, labels = np.array([4, 2, 1], np.int32), np.array([[0, 4, 4, -100], [-100] * 4, [2, -100, 1, 3]], np.int32)
    student, teacher = eighths("W-1s", 4, 5), eighths("W-1t", 4, 5)
    student[1] = teacher[1]  # equal
    student[2], student[3, 4], teacher[0, 1] = 0, -150, -40
    logits = pair(student, teacher, lengths, labels)
    for clause, test in (("W-1", "test_soft_cross_entropy"), ("W-1a", "test_divergence")):
        for t in (1.0, 3.0):
            table.recorded(clause, test, f"equal, constant and far logits, temperature {t}", pair=logits, temperature=t)
    student, teacher = eighths("W-2s", 3, 4, 5), eighths("W-2t", 3, 4, 5)
    student[0, 1], teacher[0, 2, 4], student[2, 0, 0], teacher[2, 2] = teacher[0, 1], -60, -0.0, 0
    tokens = pair(student, teacher, lengths, labels)
    for ignored, t in (("weigh", 10.0), ("weigh", 0.5), ("skip", 10.0)):
        about = f"{ignored}, temperature {t}, a sequence without labels"
        table.recorded("W-2", "test_token_weights", about, pair=tokens, temperature=t, ignored=ignored)
    table.recorded("W-2a", "test_skipped_tokens", "tokens without a label", pair=tokens)
    for p in (True, False):
        table.recorded("W-3", "test_mean_square", f"padding counted: {p}", pair=tokens, padded=p)
    table.recorded("W-3a", "test_features_of_padding", "padded sequences", pair=tokens)
    student, teacher = eighths("W-4s", 3, 2, 4, 4, limit=40), eighths("W-4t", 3, 2, 4, 4, limit=40)
    student[0, 0], teacher[0, 1], student[1, 0, 0] = teacher[0, 0], 0, [-1, 2, -0.0, 0]
    teacher[1, 0, 0], student[1, 1, :, 0], teacher[0, 0, :, 3] = [-1, 2, 0, -1], -150, -40
    scores = pair(student, teacher, lengths, labels)
    for clause, test, floors in (
        ("W-4", "test_scores_above_the_floor", (-1.0, 0.0)),
        ("W-4a", "test_causal_scores", (-100.0, 2.0)),
    ):
        for f in floors:
            table.recorded(clause, test, f"floor {f}, scores on it", pair=scores, floor=f)
    table.recorded("W-5", "test_divergence_of_maps", "padded, masses below the floor", pair=scores)
    table.recorded("W-5a", "test_maps_of_padding", "padded, masses below the floor", pair=scores)
    for f in (0.1, 0.01):
        table.recorded("W-5b", "test_floor_of_the_maps", f"floor {f}", pair=scores, floor=f)
