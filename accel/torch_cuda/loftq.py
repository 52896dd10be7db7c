"""N-7: LoftQ. The rules are those of :mod:`lowbit.reference.loftq`.

Everything between the turns is float64, so that no error builds up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit.accel.common.codebook import check_loftq
from lowbit.reference.types import CodebookQuantizer, Iterate, LoftQ, LowRank

from .arrays import as_weights, operation, refuse_nan, working_dtype
from .codebook import largest, nearest, normal_levels, restored
from .low_rank import truncated_svd

__all__ = ["loftq"]

_WIDENED = 1e-8  # what the published uniform quantizer adds to its range


def _blocks(rest: Tensor, bits: int, block: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, codes, scale and offset of NormalFloat blocks; the scale is stored in ``dtype`` before the codes."""
    levels = normal_levels(bits).to(rest.device)
    scale = largest(rest, block).to(dtype)
    exact = scale.to(torch.float64)
    codes = nearest(rest, exact, levels, block)
    return restored(codes, exact, levels, block), codes, scale, torch.zeros_like(scale)


def _uniform(rest: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, codes, scale and offset of one grid over mean ± 2 deviations."""
    middle = rest.mean()
    spread = 2 * rest.std() if rest.numel() > 1 else torch.zeros_like(middle)
    clipped = rest.clamp(middle - spread, middle + spread)
    low, high = torch.aminmax(clipped)
    scale = ((high - low + _WIDENED) / (2**bits - 1)).to(dtype).reshape(1)
    offset = low.to(dtype).reshape(1)
    codes = torch.round((clipped - low) / scale.to(torch.float64)).clamp_(0, 2**bits - 1)
    return offset.to(torch.float64) + scale.to(torch.float64) * codes, codes.to(torch.int32), scale, offset


@operation
def loftq(
    w: Tensor,
    /,
    *,
    rank: int,
    bits: int = 4,
    quantizer: CodebookQuantizer = "normal-float",
    block_size: int = 64,
    iterations: int = 5,
    keep: Iterate = "best",
    scaling: float = 1.0,
) -> LoftQ[Tensor]:
    """W ≈ Ŵ + scaling · B A, quantized and patched by turns.  [N-7]"""
    w = as_weights("N-7", "w", w)
    check_loftq(w.shape, rank, bits, quantizer, block_size, iterations, keep, scaling)
    refuse_nan("N-7", "w", w)
    dtype, exact = working_dtype(w), w.to(torch.float64)

    def turn(rest: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], LowRank[Tensor], Tensor, float]:
        found = _blocks(rest, bits, block_size, dtype) if quantizer == "normal-float" else _uniform(rest, bits, dtype)
        left = exact - found[0]
        factors = truncated_svd(left, rank, "balanced")
        patch = factors.B @ factors.A
        return found, factors, patch, float(torch.linalg.norm(left - patch))

    kept, pair, patch, error = turn(exact)
    step, errors = 1, [error]
    for number in range(2, iterations + 1):
        found, factors, patch, error = turn(exact - patch)
        if keep == "last" or error < min(errors):
            kept, pair, step = found, factors, number
        errors.append(error)
    value, codes, scale, offset = kept
    return LoftQ(
        weight=value.to(dtype),
        codes=codes,
        scale=scale,
        offset=offset,
        B=(pair.B / scaling).to(dtype),
        A=pair.A.to(dtype),
        errors=torch.tensor(errors, dtype=dtype, device=w.device),
        step=step,
    )
