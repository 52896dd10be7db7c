"""What the kernels of several chapters share: rounding, checked loads, and the size of a tile."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false
# (Triton reads annotations of kernels as its own types)

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = [
    "INTERPRETED",
    "TILE",
    "cdiv",
    "finite_or_zero",
    "flags",
    "launch",
    "next_power_of_2",
    "not_above",
    "round_half_even",
    "tiling",
]

TILE = 4096  # values of a program that holds its tile in registers


@triton.jit
def round_half_even(x):
    floor = tl.floor(x)
    fraction = x - floor
    odd = (floor - 2.0 * tl.floor(floor * 0.5)) != 0.0
    return tl.where((fraction > 0.5) | ((fraction == 0.5) & odd), floor + 1.0, floor)


INTERPRETED = not isinstance(round_half_even, triton.runtime.JITFunction)
"""True when the kernels run on CPU tensors in Triton's interpreter."""


@triton.jit
def finite_or_zero(place, inside):
    """float32 values at ``place``, 0 outside and for what is not finite, and which of them are not.

    The refusal of clause A-4 comes after the launch, from those marks: no pass over the memory of its own.
    """
    x = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    good = tl.abs(x) < float("inf")  # false for NaN
    return tl.where(good, x, 0.0), (good == 0).to(tl.int32)


@triton.jit
def not_above(x):
    """The largest float32 that is not above a float64 x ≥ 0: a > x says the same of both."""
    near = x.to(tl.float32)
    below = (near.to(tl.int32, bitcast=True) - 1).to(tl.float32, bitcast=True)
    return tl.where(near.to(tl.float64) > x, below, near)


def cdiv(n: int, size: int) -> int:
    """Parts of ``size`` that cover n. Triton's own has a type that only its compiler knows."""
    return -(-n // size)


def next_power_of_2(n: int) -> int:
    """The least power of 2 that is at least n >= 1."""
    return 1 << (n - 1).bit_length()


def tiling(width: int, most: int = TILE) -> tuple[int, int]:
    """Rows and columns of a tile: as many whole rows as make half of ``most``, or a run of ``most`` columns of one.

    Functions of the width alone: how many rows there are must not change the order of a sum over one.
    """
    block = min(most, next_power_of_2(max(width, 1)))
    return max(1, most // 2 // block), block


def warps(values: int) -> int:
    """Warps for a tile of so many values, 16 to a thread."""
    return min(16, max(1, values // 512))


def launch(kernel: Any, programs: int, *args: Any, **constants: Any) -> None:
    """Run a kernel that rounds wherever it is written to: no product is fused with a sum; warps by the tile."""
    if "num_warps" not in constants:
        constants["num_warps"] = warps(constants.get("ROWS", 1) * constants["BLOCK"])
    kernel[(programs,)](*args, **constants, enable_fp_fusion=False)


def flags(count: int, like: Tensor) -> Tensor:
    """One mark per program."""
    return torch.empty(count, dtype=torch.int32, device=like.device)
