"""Chapter Q: packing, against Python's integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lowbit.reference as ref
from lowbit.reference.errors import SpecError
from lowbit.reference.packing import word_count
from lowbit.reference.types import PackLayout

from .bounds import LAW

LAYOUTS: tuple[PackLayout, ...] = ("dense", "padded")


@LAW
@given(st.data(), st.integers(1, 8), st.integers(0, 3), st.integers(0, 70), st.sampled_from(LAYOUTS))
def test_q6_q7_words_are_one_integer_little_end_first(
    data: st.DataObject, bits: int, n: int, k: int, layout: PackLayout
) -> None:
    rows = data.draw(st.lists(st.lists(st.integers(0, 2**bits - 1), min_size=k, max_size=k), min_size=n, max_size=n))
    codes = np.array(rows, dtype=np.int32).reshape(n, k)
    words = ref.pack(codes, bits=bits, layout=layout)
    assert words.dtype == np.int32
    assert words.shape == (n, word_count(k, bits=bits, layout=layout))
    per_word = 32 // bits
    for row, word in zip(rows, words.tolist(), strict=True):
        at = [j * bits if layout == "dense" else j // per_word * 32 + j % per_word * bits for j in range(k)]
        want = sum(value << shift for value, shift in zip(row, at, strict=True))
        assert sum((w % 2**32) << (32 * i) for i, w in enumerate(word)) == want  # unused bits are 0
    np.testing.assert_array_equal(ref.unpack(words, bits=bits, length=k, layout=layout), codes)


def test_q6_q7_three_bits_have_two_layouts() -> None:
    codes = [[7] * 11]
    dense, padded = (ref.pack(codes, bits=3, layout=layout).view(np.uint32).tolist() for layout in LAYOUTS)
    assert dense == [[0xFFFFFFFF, 0x1]]  # value 10 crosses the border
    assert padded == [[0x3FFFFFFF, 0x7]]  # two bits of every word stay 0
    assert [word_count(4096, bits=3, layout=layout) for layout in LAYOUTS] == [384, 410]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_q6_q7_layouts_agree_where_bits_divide_a_word(bits: int) -> None:
    codes = np.random.default_rng(0).integers(0, 2**bits, (3, 37))
    dense, padded = (ref.pack(codes, bits=bits, layout=layout) for layout in LAYOUTS)
    np.testing.assert_array_equal(dense, padded)


def test_q6_q7_refusals() -> None:
    with pytest.raises(SpecError, match=r"\[Q-6\] code 8 at \(0, 1\) is outside 0\.\.7"):
        ref.pack([[0, 8]], bits=3)
    with pytest.raises(SpecError, match=r"\[Q-7\] code -1 at \(0, 0\) is outside 0\.\.7"):
        ref.pack([[-1]], bits=3, layout="padded")
    with pytest.raises(SpecError, match=r"\[Q-6\] codes must have 2 dimensions, got shape \(1,\)"):
        ref.pack([1], bits=3)
    with pytest.raises(SpecError, match=r"\[Q-6\] 11 codes of 3 bits take 2 words, got 1"):
        ref.unpack([[0]], bits=3, length=11)
    with pytest.raises(SpecError, match=r"\[Q-6\] bits must be in 1\.\.8, got 9"):
        ref.pack([[0]], bits=9)
    with pytest.raises(SpecError, match=r"\[Q-6\] layout must be one of 'dense', 'padded'"):
        ref.pack([[0]], bits=3, layout="sparse")  # type: ignore[arg-type]
