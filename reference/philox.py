"""P: addressed randomness. A random number is a function of a seed and an address, never "the next number".

Philox4x32-10 turns a counter of four 32-bit words and a key of two into four words that pass for random. A method
writes *what a draw is for* into the counter, (generation, individual, gene, purpose) for instance, so that its result
depends neither on the order of the draws nor on the number of threads, and two methods never share a draw. The last
word of a counter is by convention a :class:`~lowbit.reference.types.Purpose`.

Every operation takes counters (..., 4), integers in 0 … 2^32 − 1, and answers (..., 4): one value for every word of
the block. Words travel as int32 of the same 32 bits, as packed codes do.

Deliberately left out: a stream with a position. Whoever wants one counts in a word of the counter.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from . import checks
from .checks import F64, I32
from .errors import SpecError

__all__ = ["philox_integers", "philox_normal", "philox_uniform", "philox_words"]

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # what a round adds to the two words of the key
ROUNDS = 10
LOW = 2**32 - 1


def block(counters: npt.ArrayLike, seed: int) -> npt.NDArray[np.uint64]:
    """The four words of every counter as uint64, checked arguments.  [P-1]"""
    given = checks.integers(counters, "counters", "P-1")
    if given.ndim == 0 or given.shape[-1] != 4:
        raise SpecError("P-1", f"counters must have four words in their last axis, got shape {given.shape}")
    if ((given < 0) | (given > LOW)).any():
        raise SpecError("P-1", f"words of a counter lie in 0..{LOW}, got {given.min()}..{given.max()}")
    seed = checks.whole(seed, "seed", "P-1", low=0, high=2**64 - 1)
    x0, x1, x2, x3 = np.moveaxis(given.astype(np.uint64), -1, 0)
    k0, k1 = seed & LOW, seed >> 32
    for _ in range(ROUNDS):
        p0, p1 = np.uint64(MULTIPLIERS[0]) * x0, np.uint64(MULTIPLIERS[1]) * x2  # 64 bits hold every product
        high0, low0, high1, low1 = p0 >> np.uint64(32), p0 & np.uint64(LOW), p1 >> np.uint64(32), p1 & np.uint64(LOW)
        x0, x1, x2, x3 = high1 ^ x1 ^ np.uint64(k0), low1, high0 ^ x3 ^ np.uint64(k1), low0  # (P.1)
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW  # (P.2)
    return np.stack([x0, x1, x2, x3], axis=-1)


def philox_words(counters: npt.ArrayLike, /, *, seed: int) -> I32:
    """Four random words for every address.  [P-1]

        (x0, x1, x2, x3) ← (hi(M1 x2) ⊕ x1 ⊕ k0,  lo(M1 x2),  hi(M0 x0) ⊕ x3 ⊕ k1,  lo(M0 x0))       (P.1)
        (k0, k1) ← (k0 + 0x9E3779B9, k1 + 0xBB67AE85) mod 2^32                                       (P.2)

    ten times, with M0 = 0xD2511F53, M1 = 0xCD9E8D57 and hi, lo the halves of a 64-bit product. The key is the seed:
    k0 its low and k1 its high word.

    Shapes: counters (..., 4) integers in 0 … 2^32 − 1, seed in 0 … 2^64 − 1 → int32 (..., 4), the words' bits.
    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 5.3; known answers of Random123.

    >>> [hex(word & 0xFFFFFFFF) for word in philox_words([0, 0, 0, 0], seed=0).tolist()]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    return block(counters, seed).astype(np.uint32).view(np.int32)


def philox_uniform(counters: npt.ArrayLike, /, *, seed: int) -> F64:
    """Numbers in [0, 1), multiples of 2⁻²⁴.  [P-2]

        u = ⌊word / 2^8⌋ · 2⁻²⁴                                                                      (P.3)

    Shapes: counters (..., 4), seed as in philox_words → float64 (..., 4). Every value is exact in float32 too, and
    the largest is 1 − 2⁻²⁴: a uniform made of all 32 bits would round to 1 in float32.

    >>> bool(philox_uniform([0, 0, 0, 0], seed=0).max() < 1)
    True
    """
    return (block(counters, seed) >> np.uint64(8)).astype(np.float64) * 2.0**-24  # (P.3)


def philox_integers(counters: npt.ArrayLike, /, *, seed: int, bound: int) -> I32:
    """Integers in 0 … bound − 1.  [P-3]

        i = ⌊word · bound / 2^32⌋                                                                    (P.4)

    Shapes: counters (..., 4), seed as in philox_words, 1 ≤ bound ≤ 2^31 → int32 (..., 4). The high half of a product,
    not a remainder: the low bits do not decide, and no value is more than bound / 2^32 more likely than another.

    >>> philox_integers([0, 0, 0, 0], seed=0, bound=10).tolist()
    [3, 8, 7, 6]
    """
    bound = checks.whole(bound, "bound", "P-3", low=1, high=2**31)
    return ((block(counters, seed) * np.uint64(bound)) >> np.uint64(32)).astype(np.int32)  # (P.4)


def philox_normal(counters: npt.ArrayLike, /, *, seed: int) -> F64:
    """Standard normal numbers.  [P-4]

        r = √(−2 ln((w_a + ½) 2⁻³²)),   (z_a, z_b) = r (cos 2π w_b 2⁻³², sin 2π w_b 2⁻³²)            (P.5)

    for the words (a, b) = (0, 1) and (2, 3) of every block, in float64.

    Shapes: counters (..., 4), seed as in philox_words → float64 (..., 4). The half keeps the logarithm finite;
    |z| ≤ 6.7. Source: Box and Muller 1958.

    >>> philox_normal([0, 0, 0, 0], seed=0).round(4).tolist()
    [0.9911, -0.9247, -0.6176, -0.4821]
    """
    w = block(counters, seed).astype(np.float64) * 2.0**-32
    r = np.sqrt(-2 * np.log(w[..., 0::2] + 2.0**-33))
    θ = 2 * np.pi * w[..., 1::2]
    return np.stack([r * np.cos(θ), r * np.sin(θ)], axis=-1).reshape(w.shape)  # (P.5)
