"""Chapter R: rounding to integers and to levels."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from lowbit.conformance import compare, strategies
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array


@clause("R-1", tier="exact", x=strategies.dyadic())
def test_rounds_half_to_even(kit: Kit, x: Array) -> None:
    """On multiples of 1/8 every quotient and remainder is exact, so only the rule decides."""
    kit.check(compare.exact(kit.call("round_half_even", x), np.rint(x), "rounded"))


@clause("R-1", tier="exact")
def test_rounding_passes_large_and_non_finite_values_through(kit: Kit) -> None:
    """Values beyond 2^p are integers already; NaN and infinities are not refused here; quarters from −10 to 10."""
    ladder = (np.arange(-40, 41) / 4).astype(np.float32)
    kit.check(compare.exact(kit.call("round_half_even", ladder), np.rint(ladder), "rounded quarters"))
    for dtype, bits in (("float32", 24), ("float64", 53)):
        huge = np.array([2.0**bits + 2, -(2.0**bits) - 2, 2.0 ** (bits - 1) - 1.5, np.inf, -np.inf, np.nan], dtype)
        kit.check(compare.exact(kit.call("round_half_even", huge), np.rint(huge), "rounded"))


@clause("R-2", tier="exact", x=strategies.dyadic(), bounds=st.tuples(st.integers(-260, 260), st.integers(-260, 260)))
def test_round_clip_rounds_then_saturates(kit: Kit, x: Array, bounds: tuple[int, int]) -> None:
    """Ties included; the bounds are integers, so clipping first would change nothing else."""
    low, high = min(bounds), max(bounds)
    codes = kit.call("round_clip", x, low=low, high=high)
    kit.require(codes.dtype == np.int32, f"codes have dtype {codes.dtype}, expected int32")
    kit.check(compare.exact(codes, np.clip(np.rint(x), low, high), "codes"))


@clause("R-2", tier="exact")
def test_round_clip_saturates_infinities_and_refuses_nan(kit: Kit) -> None:
    """±inf become the bounds; a NaN has no code."""
    x = np.array([np.inf, -np.inf, 3.5, -1e30, 1e30], np.float32)
    kit.check(compare.exact(kit.call("round_clip", x, low=-8, high=7), [7, -8, 4, -8, 7], "codes"))
    ladder = (np.arange(-40, 41) / 4).astype(np.float32)
    expected = np.clip(np.rint(ladder), -8, 7)
    kit.check(compare.exact(kit.call("round_clip", ladder, low=-8, high=7), expected, "codes of quarters"))
    kit.refused("round_clip", np.array([0.0, np.nan], np.float32), low=-8, high=7, clauses=("R-2", "A-4"))


@clause("R-3", tier="tie-band", x=strategies.matrices(columns=(1, 16)), levels=strategies.sorted_levels())
def test_nearest_level(kit: Kit, x: Array, levels: Array) -> None:
    """The index differs from the specification's only where x lies within rounding of a midpoint.

    Next to every midpoint of two levels stand values one part in 2^2, 2^4, ... 2^20 above and below it.
    """
    levels = (levels / 3).astype(x.dtype)
    middles = (levels[:-1].astype(np.float64) + levels[1:]) / 2
    nearby = [middles * (1 + side * 2.0**-power) for power in range(2, 21, 2) for side in (-1, 1)]
    x = np.concatenate([x.ravel(), *nearby]).astype(x.dtype)
    index = kit.call("nearest_level", x, levels)
    expected = kit.spec.nearest_level(x, levels)
    kit.require(index.dtype == np.int32, f"indices have dtype {index.dtype}, expected int32")
    kit.require(index.shape == expected.shape, f"indices have shape {index.shape}, expected {expected.shape}")
    kit.require(bool(np.all((index >= 0) & (index < levels.size))), "an index is outside the levels")
    exact = levels.astype(np.float64)
    near, chosen = exact[expected], exact[index]
    band = compare.level_band(near, chosen, kit.u(x))
    distance = np.abs(x - (near + chosen) / 2)  # from the midpoint between the two candidates
    kit.check(compare.choice(np.where(index == expected, 0.0, distance), 0.0, band, "distance from the midpoint"))


@clause("R-3a", tier="exact", levels=strategies.sorted_levels(), dtype=strategies.FLOATS)
def test_midpoints_go_to_the_lower_level(kit: Kit, levels: Array, dtype: str) -> None:
    """Levels are multiples of 1/4 and inputs of 1/8: midpoints and neighbours are exact in every format."""
    levels = levels.astype(dtype)
    middles = (levels[:-1] + levels[1:]) / 2
    x = np.concatenate([levels, middles, middles - 0.125, middles + 0.125, [-100.0, 100.0]]).astype(dtype)
    kit.check(compare.exact(kit.call("nearest_level", x, levels), kit.spec.nearest_level(x, levels), "index"))
