"""Chapter P: random numbers that have addresses."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lowbit.conformance import compare, strategies
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array

WORDS = st.one_of(st.integers(0, 9), st.integers(0, 2**32 - 1), st.sampled_from([2**31 - 1, 2**31, 2**32 - 1]))


@st.composite
def counters(draw: st.DrawFn) -> Array:
    """Addresses (..., 4), int64 or, where they fit, int32; words of all sizes, zero-size arrays too."""
    shape = (*draw(st.sampled_from([(), (1,), (5,), (2, 3), (0,)])), 4)
    values = draw(arrays(np.int64, shape, elements=WORDS, fill=st.nothing()))
    fits = values.size == 0 or int(values.max()) < 2**31
    return values.astype(np.int32) if fits and draw(st.booleans()) else values


KNOWN = (  # Random123, kat_vectors: counter, key (low word first), words
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, 0xFFFFFFFF_FFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0_A4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


@clause("P-1", tier="exact")
def test_known_answers(kit: Kit) -> None:
    """The three known answers that the authors of Philox publish, alone and in one array."""
    for counter, seed, words in KNOWN:
        expected = np.array(words, np.uint32).view(np.int32)
        for shape in ((4,), (1, 4), (2, 3, 4)):
            counters = np.broadcast_to(np.array(counter, np.int64), shape).copy()
            found = kit.call("philox_words", counters, seed=seed)
            kit.check(compare.exact(found, np.broadcast_to(expected, shape), f"words of seed {seed:#x}"))


@clause("P-1a", tier="exact", counters=counters(), seed=strategies.seeds())
def test_words_depend_on_seed_and_address_alone(kit: Kit, counters: Array, seed: int) -> None:
    """Every block is that of the specification, whatever else is asked for in the same call."""
    found = kit.call("philox_words", counters, seed=seed)
    kit.require(found.dtype == np.int32, f"words have dtype {found.dtype}, expected int32")
    kit.check(compare.exact(found, kit.spec.philox_words(counters, seed=seed), "words"))
    rows = counters.reshape(-1, 4)
    if len(rows):
        alone = kit.call("philox_words", rows[-1:], seed=seed)
        kit.check(compare.exact(alone[0], found.reshape(-1, 4)[-1], "words of one counter alone"))


@clause("P-2", tier="exact", counters=counters(), seed=strategies.seeds())
def test_uniforms(kit: Kit, counters: Array, seed: int) -> None:
    """Multiples of 2^-24 below 1, equal to the last bit."""
    found = kit.call("philox_uniform", counters, seed=seed)
    kit.check(compare.exact_bytes(found, kit.spec.philox_uniform(counters, seed=seed), "uniforms"))


@clause(
    "P-3",
    tier="exact",
    counters=counters(),
    seed=strategies.seeds(),
    bound=st.one_of(st.integers(1, 1000), st.sampled_from([2**16, 2**30, 2**31 - 1, 2**31])),
)
def test_bounded_integers(kit: Kit, counters: Array, seed: int, bound: int) -> None:
    """Inside the bound and equal; the bound one gives zeros."""
    found = kit.call("philox_integers", counters, seed=seed, bound=bound)
    kit.require(found.dtype == np.int32, f"integers have dtype {found.dtype}, expected int32")
    kit.check(compare.exact(found, kit.spec.philox_integers(counters, seed=seed, bound=bound), "integers"))


@clause("P-4", tier="forward-error", counters=counters(), seed=strategies.seeds())
def test_normals(kit: Kit, counters: Array, seed: int) -> None:
    """Float64 within the error of a library's logarithm, square root and cosine.

    The angle θ < 2π is rounded three times (π itself, and two products), which moves cos θ by up to 2π γ_3.
    """
    found = kit.call("philox_normal", counters, seed=seed)
    kit.require(found.dtype == np.float64, f"normals have dtype {found.dtype}, expected float64")
    expected = kit.spec.philox_normal(counters, seed=seed)
    u = compare.unit_roundoff("float64")
    pairs = expected.reshape(*expected.shape[:-1], 2, 2)
    radius = np.repeat(np.sqrt(np.sum(pairs**2, axis=-1)), 2, axis=-1)
    allowed = 2 * radius * (compare.elementary(3, u) + 2 * np.pi * compare.gamma(3, u))  # both sides may be off
    kit.check(compare.forward(found, expected, allowed, "normals"))
