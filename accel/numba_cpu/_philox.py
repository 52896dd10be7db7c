"""One block of Philox4x32-10 as a function of kernels: whoever draws at an address inside a loop calls it there."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._jit import kernel

__all__ = ["draw", "key"]


def key(seed: int) -> tuple[np.uint32, np.uint32]:
    """The two words of a checked seed, low word first."""
    return np.uint32(seed & 0xFFFFFFFF), np.uint32(seed >> 32)


@kernel
def draw(c0: int, c1: int, c2: int, c3: int, k0: int, k1: int) -> Any:
    """(w0, w1, w2, w3), uint32, of the counter (c0, c1, c2, c3) under the key (k0, k1).  [P-1]"""
    x0, x1, x2, x3 = np.uint32(c0), np.uint32(c1), np.uint32(c2), np.uint32(c3)
    a, b = np.uint32(k0), np.uint32(k1)
    for _ in range(10):
        even = np.uint64(x0) * np.uint64(0xD2511F53)
        odd = np.uint64(x2) * np.uint64(0xCD9E8D57)
        x0 = np.uint32(odd >> np.uint64(32)) ^ x1 ^ a
        x1 = np.uint32(odd)
        x2 = np.uint32(even >> np.uint64(32)) ^ x3 ^ b
        x3 = np.uint32(even)
        a = np.uint32(a + np.uint32(0x9E3779B9))
        b = np.uint32(b + np.uint32(0xBB67AE85))
    return np.uint32(x0), np.uint32(x1), np.uint32(x2), np.uint32(x3)
