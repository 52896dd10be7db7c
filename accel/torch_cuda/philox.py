"""P: random numbers by address, in int64 arithmetic, which every torch device has.

The rules are those of :mod:`lowbit.reference.philox`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowbit.accel.common.philox import check_bound, check_counters, check_seed
from lowbit.reference.errors import SpecError

from .arrays import as_integers, operation

__all__ = ["philox_integers", "philox_normal", "philox_uniform", "philox_words"]

_MASK = 0xFFFFFFFF


def _halves(x: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low word of x · multiplier, both below 2³²: the product itself would pass 2⁶³."""
    low = x * (multiplier & 0xFFFF)  # below 2^48
    high = x * (multiplier >> 16)  # below 2^48
    middle = low + ((high & 0xFFFF) << 16)  # below 2^49
    return (high >> 16) + (middle >> 32), middle & _MASK


def words(counters: Tensor, seed: int) -> Tensor:
    """Words of checked counters (..., 4), int64 in 0 … 2³² − 1, of the same shape and dtype.  [P-1]"""
    x0, x1, x2, x3 = counters.unbind(-1)
    k0, k1 = seed & _MASK, seed >> 32
    for _ in range(10):
        even_high, even_low = _halves(x0, 0xD2511F53)
        odd_high, odd_low = _halves(x2, 0xCD9E8D57)
        x0, x1, x2, x3 = odd_high ^ x1 ^ k0, odd_low, even_high ^ x3 ^ k1, even_low
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return torch.stack((x0, x1, x2, x3), dim=-1)


def _checked(counters: Tensor, seed: int) -> Tensor:
    counters = as_integers("P-1", "counters", counters)
    check_counters(tuple(counters.shape))
    check_seed(seed)
    counters = counters.to(torch.int64)
    if counters.numel():
        least, most = int(counters.min()), int(counters.max())
        if least < 0 or most > _MASK:
            raise SpecError("P-1", f"words of a counter lie in 0..2^32 - 1, got {least}..{most}")
    return words(counters, int(seed))


@operation
def philox_words(counters: Tensor, /, *, seed: int) -> Tensor:
    """Four random words for every address.  [P-1]"""
    found = _checked(counters, seed)
    return torch.where(found > 0x7FFFFFFF, found - 2**32, found).to(torch.int32)


@operation
def philox_uniform(counters: Tensor, /, *, seed: int) -> Tensor:
    """Multiples of 2⁻²⁴ in [0, 1), float64; arguments as in :func:`philox_words`.  [P-2]"""
    return (_checked(counters, seed) >> 8).to(torch.float64) * 2.0**-24


@operation
def philox_integers(counters: Tensor, /, *, seed: int, bound: int) -> Tensor:
    """Integers in 0 … bound − 1, int32, 1 ≤ bound ≤ 2³¹; arguments as in :func:`philox_words`.  [P-3]"""
    check_bound(bound)
    found = _checked(counters, seed)
    return ((found * int(bound)) >> 32).to(torch.int32)  # below 2^63


@operation
def philox_normal(counters: Tensor, /, *, seed: int) -> Tensor:
    """Standard normal numbers, float64; arguments as in :func:`philox_words`.  [P-4]"""
    found = _checked(counters, seed).to(torch.float64)
    pairs = found.reshape(*found.shape[:-1], 2, 2)
    radius = torch.sqrt(-2 * torch.log((pairs[..., 0] + 0.5) * 2.0**-32))
    angle = 2 * math.pi * (pairs[..., 1] * 2.0**-32)
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1).reshape(found.shape)
