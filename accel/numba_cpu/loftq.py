"""N-7: LoftQ. The rules are those of :mod:`lowbit.reference.loftq`.

Everything between the turns stays in float64, also for float32 weights: one long product and one decomposition per
turn cost more than its width, and no error builds up from turn to turn.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lowbit.accel.common.codebook import check_loftq
from lowbit.reference.types import CodebookQuantizer, Iterate, LoftQ, LowRank

from ._arrays import Array, fixed, refuse_bad, weights, working_dtype
from .codebook import codes_of, normal_float, scales_of, values_of
from .low_rank import truncated

__all__ = ["loftq"]

_WIDENED = 1e-8  # what the published uniform quantizer adds to its range


def _blocks(rest: Array, bits: int, size: int, dtype: Any) -> tuple[Array, Array, Array, Array]:
    """Value, codes, scale and offset of NormalFloat blocks; the scale is rounded to ``dtype`` before the codes."""
    levels = normal_float(bits=bits)
    scale: Array = scales_of(rest, size, "N-7").astype(dtype)
    codes = codes_of(rest, size, fixed(scale, np.float64), levels, "N-7")
    return values_of(codes, size, fixed(scale, np.float64), levels, 0.0, "N-7"), codes, scale, np.zeros_like(scale)


def _uniform(rest: Array, bits: int, dtype: Any) -> tuple[Array, Array, Array, Array]:
    """Value, codes, scale and offset of one grid over mean ± 2 deviations."""
    spread = 2 * float(rest.std(ddof=1)) if rest.size > 1 else 0.0
    middle = float(rest.mean())
    low = max(middle - spread, float(rest.min()))
    high = min(middle + spread, float(rest.max()))
    if high < low:  # a constant, whose mean was rounded
        low = high = middle
    offset: Array = np.array([low]).astype(dtype)
    step: Array = np.array([(high - low + _WIDENED) / (2**bits - 1)]).astype(dtype)
    codes = np.rint((np.clip(rest, low, high) - low) / float(step[0]))
    np.clip(codes, 0, 2**bits - 1, out=codes)
    return float(offset[0]) + float(step[0]) * codes, codes.astype(np.int32), step, offset


def loftq(
    w: Array,
    /,
    *,
    rank: int,
    bits: int = 4,
    quantizer: CodebookQuantizer = "normal-float",
    block_size: int = 64,
    iterations: int = 5,
    keep: Iterate = "best",
    scaling: float = 1.0,
) -> LoftQ[Array]:
    """W ≈ Ŵ + scaling · B A, quantized and patched by turns.  [N-7]"""
    given = weights("N-7", "w", w)
    check_loftq(given.shape, rank, bits, quantizer, block_size, iterations, keep, scaling)
    dtype = working_dtype(given)
    refuse_bad("N-7", "w", fixed(given, dtype))
    exact = fixed(given, np.float64)

    def turn(rest: Array) -> tuple[tuple[Array, Array, Array, Array], LowRank[Array], Array, float]:
        found = _blocks(rest, bits, block_size, dtype) if quantizer == "normal-float" else _uniform(rest, bits, dtype)
        left = exact - found[0]
        factors = truncated(left, rank, "balanced", exact=dtype == np.float64)
        patch = factors.B @ factors.A
        return found, factors, patch, float(np.linalg.norm(left - patch))

    kept, pair, patch, error = turn(exact)
    step, errors = 1, [error]
    for number in range(2, iterations + 1):
        found, factors, patch, error = turn(fixed(exact - patch))
        if keep == "last" or error < min(errors):
            kept, pair, step = found, factors, number
        errors.append(error)
    value, codes, scale, offset = kept
    return LoftQ(
        value.astype(dtype), codes, scale, offset, (pair.B / scaling).astype(dtype), pair.A.astype(dtype),
        np.array(errors).astype(dtype), step,
    )  # fmt: skip
