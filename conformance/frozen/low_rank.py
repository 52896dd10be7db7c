"""Vectors of chapter C: low-rank patches."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import compare, laws, rules
from .inputs import NARROW, U32, Array, Table, call, exactly, first_draws, near, rank_three

__all__ = ["build"]


def build(table: Table) -> None:
    drawn = first_draws()
    d, channel = drawn.d, drawn.channel
    wide, unitary = d.astype(np.float64), np.eye(8)
    tail, norm = float(np.sum(np.linalg.svd(wide, compute_uv=False)[2:] ** 2)), float(np.sum(wide**2))
    plain = [rules.objective(d, unitary, tail, norm)]
    table["C-4"] = [call("svd_patch", s, [d], {"rank": 2, "split": s}, plain) for s in ("balanced", "left")]
    squared = np.diag(channel.astype(np.float64) ** 2)
    scaled = [rules.objective(d, squared, laws.optimum(d, squared, 2), norm * float(np.max(squared)), 4)]
    table["C-5"] = [call("scaled_svd_patch", "scaled channels", [d, channel], {"rank": 2}, scaled)]
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
        table["C-4a"].append(call("svd_patch", split, [d], {"rank": 2, "split": split}, [near(*g) for g in grams]))
    channel = np.array([1, 0, 4, 0.5, 3, 0], np.float32)
    for split in ("balanced", "left"):
        about, options = f"two channels of scale 0, {split}", {"rank": 2, "split": split}
        table["C-5a"].append(exactly("scaled_svd_patch", about, [d, channel], options, "A.T.1", "A.T.5"))
