"""Chapter N: blocks of a codebook, and the options of LoftQ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

from lowbit.reference.errors import SpecError
from lowbit.reference.types import CodebookQuantizer, Iterate

from .refusals import check_block_size, check_either, check_matrix

__all__ = ["check_codebook_product", "check_loftq", "check_scales"]


def check_scales(clause: str, shape: Sequence[int], size: int, block_size: int) -> None:
    """Refuse scales of another number than that of the blocks of ``size`` values."""
    wanted = -(-size // block_size)
    if tuple(shape) != (wanted,):
        raise SpecError(
            clause, f"{size} values in blocks of {block_size} have scales of shape ({wanted},), got {tuple(shape)}"
        )


def check_codebook_product(
    x: Sequence[int], words: Sequence[int], scale: Sequence[int], bits: int, block_size: int
) -> None:
    """Refuse shapes of clause N-6 that do not fit together."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise SpecError("N-6", f"bits must be in 1..8, got {bits!r}")
    check_block_size("N-6", block_size)
    check_matrix("N-6", "x", x, (None, None))
    check_matrix("N-6", "words", words, (None, -(-x[1] * bits // 32)))
    check_scales("N-6", scale, words[0] * x[1], block_size)


def check_loftq(
    shape: Sequence[int], rank: int, bits: int, quantizer: str, block_size: int, iterations: int, keep: str,
    scaling: float,
) -> None:  # fmt: skip
    """Refuse what clause N-7 refuses."""
    check_matrix("N-7", "w", shape, (None, None))
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= min(shape):
        raise SpecError("N-7", f"rank must be between 1 and {min(shape)} for shape {tuple(shape)}, got {rank!r}")
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise SpecError("N-7", f"bits must be in 2..8, got {bits!r}")
    check_block_size("N-7", block_size)
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise SpecError("N-7", f"iterations must be a positive integer, got {iterations!r}")
    check_either("N-7", "quantizer", quantizer, get_args(CodebookQuantizer))
    check_either("N-7", "keep", keep, get_args(Iterate))
    if isinstance(scaling, bool) or not (math.isfinite(scaling) and scaling > 0):
        raise SpecError("N-7", f"scaling must be finite and above 0, got {scaling!r}")
