"""Chapter P: laws of addressed randomness."""

from __future__ import annotations

import math

import numpy as np
import pytest

import lowbit.reference as ref
from lowbit.conformance import compare
from lowbit.reference.errors import SpecError
from lowbit.reference.types import Purpose

N = 1 << 14
FAILURES = 2.0**-40  # chance that a right generator fails one of these tests; the draws are fixed, so it never will


def block(purpose: int = Purpose.SAMPLE, n: int = N) -> np.ndarray:
    """n addresses that differ in one word."""
    counters = np.zeros((n, 4), np.int64)
    counters[:, 2], counters[:, 3] = np.arange(n), purpose
    return counters


def by_hand(counter: tuple[int, ...], seed: int) -> list[int]:
    """Philox4x32-10 in Python integers."""
    c, k = list(counter), [seed % 2**32, seed // 2**32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b // 2**32 ^ c[1] ^ k[0], b % 2**32, a // 2**32 ^ c[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1, 0x0123456789ABCDEF])
def test_p1_words_of_exact_arithmetic(seed: int) -> None:
    random = np.random.default_rng(seed)
    counters = random.integers(0, 2**32, (50, 4))
    words = ref.philox_words(counters, seed=seed)
    assert words.dtype == np.int32
    expected = [by_hand(tuple(int(w) for w in c), seed) for c in counters]
    assert np.array_equal(words.view(np.uint32), np.array(expected, np.uint64).astype(np.uint32))


def test_p1_purposes_and_neighbours_share_nothing() -> None:
    words = [ref.philox_words(block(p), seed=7) for p in (Purpose.SIGNS, Purpose.HAAR)]
    everything = np.concatenate([w.ravel() for w in words])
    # of 2^17 words of 32 bits, two are expected to be equal by chance; hundreds would be a pattern
    assert len(everything) - len(np.unique(everything)) < 20
    assert len(set(Purpose)) == len({int(p) for p in Purpose})


@pytest.mark.parametrize("bit", range(32))
def test_p1_every_bit_is_fair(bit: int) -> None:
    words = ref.philox_words(block(), seed=3).view(np.uint32)
    ones = int(((words >> np.uint32(bit)) & np.uint32(1)).sum())
    assert compare.frequency(ones, words.size, 0.5, FAILURES).ok


def test_p2_uniforms_fill_the_interval() -> None:
    u = ref.philox_uniform(block(), seed=5).ravel()
    assert u.min() >= 0
    assert u.max() <= 1 - 2.0**-24
    assert np.array_equal(u.astype(np.float32).astype(np.float64), u)  # exact in float32
    for edge in (0.1, 0.25, 0.5, 0.9):
        assert compare.frequency(int((u < edge).sum()), u.size, edge, FAILURES).ok


@pytest.mark.parametrize("bound", [1, 2, 3, 7, 2**31])
def test_p3_integers_are_fair(bound: int) -> None:
    i = ref.philox_integers(block(), seed=11, bound=bound).ravel().astype(np.int64)
    assert i.min() >= 0
    assert i.max() < bound
    if bound < 100:
        for value in range(bound):
            assert compare.frequency(int((i == value).sum()), i.size, 1 / bound, FAILURES).ok
    words = ref.philox_words(block(), seed=11).view(np.uint32).ravel()
    assert i.tolist() == [(int(w) * bound) >> 32 for w in words]


def test_p4_normals_have_the_normal_distribution() -> None:
    z = ref.philox_normal(block(), seed=13)
    for edge in (-2.0, -1.0, 0.0, 0.5, 1.5):
        share = 0.5 * math.erfc(-edge / math.sqrt(2))
        assert compare.frequency(int((z < edge).sum()), z.size, share, FAILURES).ok
    quadrants = (z[:, 0] > 0) & (z[:, 1] > 0)  # the two of a pair are independent
    assert compare.frequency(int(quadrants.sum()), len(z), 0.25, FAILURES).ok
    assert np.abs(z).max() < 6.8


def test_p4_the_smallest_word_is_finite() -> None:
    assert math.sqrt(-2 * math.log(2.0**-33)) < 6.8


@pytest.mark.parametrize(
    "counters, seed, message",
    [
        (np.zeros((2, 3), int), 1, "four words"),
        (np.array(3), 1, "four words"),
        (np.array([0, 0, 0, -1]), 1, "-1"),
        (np.array([0, 0, 0, 2**32]), 1, "4294967296"),
        (np.zeros(4), 1, "integers"),
        (np.zeros(4, int), -1, "seed"),
        (np.zeros(4, int), 2**64, "seed"),
        (np.zeros(4, int), 1.0, "seed"),
    ],
)
def test_p1_refusals(counters: np.ndarray, seed: int, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        ref.philox_words(counters, seed=seed)
    assert caught.value.clause == "P-1"


@pytest.mark.parametrize("bound", [0, -1, 2**31 + 1, 2.0])
def test_p3_refusals(bound: int) -> None:
    with pytest.raises(SpecError, match="bound"):
        ref.philox_integers(np.zeros(4, int), seed=1, bound=bound)
