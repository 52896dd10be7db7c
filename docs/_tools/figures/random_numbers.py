"""Figures of the chapters on addressed randomness."""

from __future__ import annotations

import numpy as np
from canvas import Axes, svg

from lowbit import reference as ref
from lowbit.reference.types import Purpose


def philox() -> str:
    """P: pairs of uniforms at consecutive addresses, and the avalanche round by round."""
    n = 4096
    counters = np.zeros((n, 4), np.int64)
    counters[:, 2], counters[:, 3] = np.arange(n), Purpose.SAMPLE
    u = ref.philox_uniform(counters, seed=1)
    left = Axes((0, 1), (0, 1), box=(48, 24, 230, 230))
    left.frame({v: f"{v:g}" for v in (0, 0.5, 1)}, {v: f"{v:g}" for v in (0, 0.5, 1)})
    left.parts += [left.mark(left.px(a), left.py(b), 0, size=0.8) for a, b in u[:, :2]]
    right = Axes((1, 10), (0, 18), box=(370, 24, 270, 230))
    right.frame(
        {v: str(v) for v in range(1, 11)}, {v: str(v) for v in (0, 4, 8, 12, 16)},
        xlabel="rounds", ylabel="bits changed",
    )  # fmt: skip
    changed = []
    for rounds in range(1, 11):
        plain, flips = mixed(counters[:64], rounds), []
        for bit in range(32):
            other = counters[:64].copy()
            other[:, 2] ^= 1 << bit
            flips.append(np.bitwise_count(plain[:, 0] ^ mixed(other, rounds)[:, 0]).mean())
        changed.append(float(np.mean(flips)))
    right.curve(range(1, 11), changed, 1)
    return svg(
        "Pairs of uniforms fill the square; one flipped bit of an address flips half of a word.", 660, 300, left, right
    )


def mixed(counters: np.ndarray, rounds: int) -> np.ndarray:
    """Words after fewer rounds than the specification takes."""
    x0, x1, x2, x3 = (counters[:, i].astype(np.uint64) for i in range(4))
    k0, k1, word = 1, 0, np.uint64(32)
    for _ in range(rounds):
        p0, p1 = x0 * np.uint64(0xD2511F53), x2 * np.uint64(0xCD9E8D57)
        low = np.uint64(2**32 - 1)
        x0, x1, x2, x3 = (p1 >> word) ^ x1 ^ np.uint64(k0), p1 & low, (p0 >> word) ^ x3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return np.stack([x0, x1, x2, x3], axis=1)
