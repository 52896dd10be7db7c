"""Vectors of chapter R: rounding."""

from __future__ import annotations

import numpy as np

from .. import compare
from .inputs import SPEC, U32, Table, clear


def build(table: Table) -> None:
    ties = (np.arange(-36, 37) / 8).astype(np.float32)
    table.exactly("R-1", "multiples of 1/8", [ties])
    table.recorded("R-1", "test_rounding_passes_large_and_non_finite_values_through", "integers already, NaN")
    bounded = np.concatenate([ties, [np.inf, -np.inf]]).astype(np.float32)
    far = np.array([np.inf, -np.inf, 3.5, -1e30, 1e30, -0.0], np.float32)
    table.exactly("R-2", "ties and infinities", [bounded], low=-3, high=2)
    table.exactly("R-2", "far beyond", [far], low=-8, high=7)
    levels = np.array([-1, -0.375, 0.25, 0.75, 2], np.float32) / np.float32(3)
    middles = (levels[1:].astype(np.float64) + levels[:-1]) / 2
    around = np.concatenate([middles * (1 + side * 2.0**-power) for power in (2, 8, 16, 19) for side in (-1, 1)])
    x = np.concatenate([levels, around, [-9, 9]]).astype(np.float32)
    left, right = levels[:-1].astype(np.float64), levels[1:].astype(np.float64)
    gap = np.abs(x[:, None] - (left + right) / 2) - compare.level_band(left, right, U32)
    if np.any(gap <= 0):
        raise ValueError("R-3: a value lies in the band of a midpoint")
    table.call("R-3", "next to midpoints, outside their bands", [x, levels], clear("", SPEC.nearest_level(x, levels)))
    levels = np.array([-1.0, -0.5, 0.25, 0.75, 2.0], np.float32)
    tied = np.concatenate([levels, (levels[1:] + levels[:-1]) / 2]).astype(np.float32)
    table.exactly("R-3a", "levels and midpoints", [tied, levels])
