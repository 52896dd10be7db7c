"""Vectors of chapter C: low-rank patches."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import compare, laws, rules
from .inputs import NARROW, U32, Array, Table, first_draws, near, rank_three


def build(table: Table) -> None:
    drawn = first_draws()
    d, channel = drawn.d, drawn.channel
    wide, unitary = d.astype(np.float64), np.eye(8)
    tail, norm = float(np.sum(np.linalg.svd(wide, compute_uv=False)[2:] ** 2)), float(np.sum(wide**2))
    plain = [rules.objective(d, unitary, tail, norm)]
    for s in ("balanced", "left"):
        table.call("C-4", s, [d], *plain, rank=2, split=s)
    squared = np.diag(channel.astype(np.float64) ** 2)
    scaled = [rules.objective(d, squared, laws.optimum(d, squared, 2), norm * float(np.max(squared)), 4)]
    table.call("C-5", "scaled channels", [d, channel], *scaled, rank=2)
    d = rank_three()
    sigma = np.linalg.svd(d.astype(np.float64), compute_uv=False)
    slip = compare.weyl(float(sigma[0]), 4 * 6, U32) + compare.tiny(d.size, NARROW)
    for split in ("balanced", "left"):
        grams: tuple[tuple[str, Array, Any], ...] = (
            ("B.T @ B", np.diag(sigma[:2]), slip),
            ("A @ A.T", np.diag(sigma[:2]), slip),
        )
        if split == "left":
            wide = 2 * slip * sigma[0] + slip**2
            grams = (("B.T @ B", np.diag(sigma[:2] ** 2), wide), ("A @ A.T", np.eye(2), compare.gamma(4 * 6, U32)))
        table.call("C-4a", split, [d], *[near(*g) for g in grams], rank=2, split=split)
    channel = np.array([1, 0, 4, 0.5, 3, 0], np.float32)
    for split in ("balanced", "left"):
        about, options = f"two channels of scale 0, {split}", {"rank": 2, "split": split}
        table.exactly("C-5a", about, [d, channel], "A.T.1", "A.T.5", **options)
