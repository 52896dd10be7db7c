"""N, continued: LoftQ, quantization and a low-rank patch found by turns.

Deliberately not here: the loop over layers, and any claim that more iterations are better. They need not be: the
quantizer's scales move with what is quantized, so the error may rise again, and the result is judged by it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from . import checks, codebook
from .checks import F64, I32, Array
from .low_rank import truncated
from .types import CodebookQuantizer, Iterate, LoftQ

__all__ = ["loftq"]


class Coded(NamedTuple):
    """A quantized weight: ŵ = offset + scale · level."""

    value: F64  # (m, k)
    codes: I32  # (m, k)
    scale: Array  # (blocks,)
    offset: Array  # (blocks,)


def normal_float_blocks(x: F64, bits: int, block_size: int) -> Coded:
    """NormalFloat in flat blocks.  [N-3, N-4]"""
    levels = codebook.normal_float(bits=bits)
    s = codebook.block_scale(x, block_size=block_size)
    c = codebook.quantize_blocks(x, s, levels, block_size=block_size)
    return Coded(codebook.dequantize_blocks(c, s, levels, block_size=block_size), c, s, np.zeros_like(s))


def clipped_uniform(x: F64, bits: int) -> Coded:
    """The published uniform quantizer: one grid for the tensor, after clipping to mean ± 2 deviations.  [N-7d]

    lo, hi = range of clip(x, mean − 2σ, mean + 2σ),   s = (hi − lo + 10⁻⁸) / (2^b − 1),   ŵ = lo + s round((x − lo)/s)
    """
    σ = x.std(ddof=1) if x.size > 1 else 0.0
    clipped = np.clip(x, x.mean() - 2 * σ, x.mean() + 2 * σ)
    lo = clipped.min()
    s = (clipped.max() - lo + 1e-8) / (2**bits - 1)
    c = np.rint((clipped - lo) / s)
    return Coded(lo + s * c, c.astype(np.int32), np.array([s]), np.array([lo]))


def loftq(
    w: npt.ArrayLike,
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
    """W ≈ Ŵ + scaling · B A, by turns: quantize what the patch leaves, patch what the quantizer leaves.  [N-7]

        B₀ A₀ = 0
        Ŵ_t = q(W − B_{t−1} A_{t−1})                                                                 (N.9)
        B_t A_t = svd_r(W − Ŵ_t),   σ^½ in either factor                                             (N.10)
        e_t = ‖W − Ŵ_t − B_t A_t‖_F,   t = 1 … T                                                     (N.11)

    Shapes: w (m, k) → weight, codes (m, k), scale and offset (blocks,), B (m, r), A (r, k), errors (T,), step.
    ``keep``: "best" returns the iterate with the least e_t, the first among equals, "last" the published e_T.
    ``quantizer``: "normal-float" in flat blocks of ``block_size`` (N.1), or "uniform", one grid for the tensor after
    clipping to two deviations (then block_size is not looked at).
    ``scaling`` is the α / r with which the adapter will be used: B is divided by it, so that training starts at Ŵ_t +
    B_t A_t. The published code leaves it out, and starts elsewhere when α ≠ r.
    (N.10) never raises the error for the Ŵ_t at hand, so e_1 is at most that of plain quantization; (N.9) may.
    Source: Li et al. 2023, LoftQ, algorithm 1, with yxli2123/LoftQ for both quantizers; PEFT ``loftq_init`` is
    "normal-float", 4 bits, with one iteration by default.

    >>> found = loftq([[1.0, 0.5], [0.25, 1.0]], rank=1, bits=2, iterations=3)
    >>> int(found.step), bool((found.errors[found.step - 1] <= found.errors).all())
    (1, True)
    """
    W = checks.finite(w, "w", "N-7", ndim=2)
    r = checks.rank(rank, W.shape, "N-7")
    bits = checks.whole(bits, "bits", "N-7", low=2, high=8)
    block_size = checks.whole(block_size, "block_size", "N-7", low=1)
    iterations = checks.whole(iterations, "iterations", "N-7", low=1)
    checks.choice(quantizer, ("normal-float", "uniform"), "quantizer", "N-7")
    checks.choice(keep, ("best", "last"), "keep", "N-7")
    c = checks.number(scaling, "scaling", "N-7", low=0.0, above=True)

    def turn(patch: F64) -> tuple[Coded, F64, F64, float]:
        rest = W - patch
        q = normal_float_blocks(rest, bits, block_size) if quantizer == "normal-float" else clipped_uniform(rest, bits)
        B, A = truncated(W - q.value, r, "balanced")  # (N.9), (N.10)
        return q, B, A, float(np.linalg.norm(W - q.value - B @ A))  # (N.11)

    q, B, A, error = turn(np.zeros_like(W))
    kept, errors = (q, B, A, 1), [error]
    for t in range(2, iterations + 1):
        q, B, A, error = turn(B @ A)
        if keep == "last" or error < min(errors):
            kept = (q, B, A, t)
        errors.append(error)
    q, B, A, step = kept
    return LoftQ(q.value, q.codes, q.scale, q.offset, B / c, A, np.array(errors), step)
