"""Chapter Q, second half: packing of codes into 32-bit words."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lowbit.conformance import compare, laws
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array


@st.composite
def packed_codes(draw: st.DrawFn) -> tuple[Array, int]:
    """Unsigned codes (n, k) int32 and their width; k straddles word borders."""
    bits = draw(st.integers(1, 8))
    n, k = draw(st.integers(1, 3)), draw(st.integers(1, 40))
    return draw(arrays(np.int32, (n, k), elements=st.integers(0, 2**bits - 1), fill=st.nothing())), bits


@clause("Q-6", tier="exact", case=packed_codes())
def test_dense_words_are_one_bit_stream(kit: Kit, case: tuple[Array, int]) -> None:
    """Words equal those of a long integer, and unpacking returns the codes for this length."""
    codes, bits = case
    words = kit.call("pack", codes, bits=bits)
    kit.require(words.dtype == np.int32, f"words have dtype {words.dtype}, expected int32")
    kit.check(compare.exact(words, laws.bit_stream(codes, bits), "words"))
    kit.check(compare.exact(kit.call("unpack", words, bits=bits, length=codes.shape[1]), codes, "unpacked codes"))


@clause("Q-7", tier="exact", case=packed_codes())
def test_padded_words_hold_whole_codes(kit: Kit, case: tuple[Array, int]) -> None:
    """No code crosses a word; spare bits are zero."""
    codes, bits = case
    words = kit.call("pack", codes, bits=bits, layout="padded")
    kit.check(compare.exact(words, laws.padded_words(codes, bits), "words"))
    unpacked = kit.call("unpack", words, bits=bits, length=codes.shape[1], layout="padded")
    kit.check(compare.exact(unpacked, codes, "unpacked codes"))


def _every_length(kit: Kit, layout: str) -> None:
    for bits in range(1, 9):
        for length in range(67):
            codes = (np.arange(2 * length).reshape(2, length) * 37 + 11) % 2**bits
            words = kit.call("pack", codes.astype(np.int32), bits=bits, layout=layout)
            unpacked = kit.call("unpack", words, bits=bits, length=length, layout=layout)
            kit.check(compare.exact(unpacked, codes, f"{length} codes of {bits} bits"))


@clause("Q-6", tier="exact")
def test_dense_round_trip_of_every_width_and_length(kit: Kit) -> None:
    """Widths 1 to 8, lengths 0 to 66: every way to straddle two word borders, and the empty row."""
    _every_length(kit, "dense")


@clause("Q-7", tier="exact")
def test_padded_round_trip_of_every_width_and_length(kit: Kit) -> None:
    """Widths 1 to 8, lengths 0 to 66."""
    _every_length(kit, "padded")


@clause("Q-6", tier="exact", bits=st.integers(1, 7), layout=["dense", "padded"])
def test_codes_outside_the_width_are_refused(kit: Kit, bits: int, layout: str) -> None:
    """A code that needs another bit, or a negative one, would corrupt its neighbours."""
    for wrong in (2**bits, -1):
        codes = np.zeros((2, 5), np.int32)
        codes[1, 3] = wrong
        kit.refused("pack", codes, bits=bits, layout=layout, clauses=("Q",))
