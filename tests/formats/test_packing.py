"""The two packing layouts against the library that other tools load with, and against the definition in bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowbit.formats.packed.packing import (
    dense_words,
    pack_dense,
    pack_padded,
    padded_words,
    unpack_dense,
    unpack_padded,
)

LENGTHS = (0, 1, 5, 31, 32, 33, 64, 95, 128)


def bit_stream(codes: np.ndarray, bits: int) -> int:
    """The definition of the dense layout: code j occupies bits j·bits onward of one long number."""
    return sum(int(code) << (j * bits) for j, code in enumerate(codes))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("length", LENGTHS)
def test_dense_layout_is_one_bit_stream(bits: int, length: int) -> None:
    codes = np.random.default_rng(bits * 131 + length).integers(0, 1 << bits, (3, length), dtype=np.int32)
    words = pack_dense(codes, bits)
    assert words.dtype == np.int32
    assert words.shape == (3, dense_words(length, bits))
    for row, expected in zip(words.view(np.uint32), codes, strict=True):
        assert sum(int(word) << (32 * j) for j, word in enumerate(row)) == bit_stream(expected, bits)
    assert np.array_equal(unpack_dense(words, bits, length), codes)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("length", LENGTHS)
def test_padded_layout_keeps_whole_codes_in_a_word(bits: int, length: int) -> None:
    codes = np.random.default_rng(bits * 137 + length).integers(0, 1 << bits, (2, length), dtype=np.int32)
    words = pack_padded(codes, bits)
    assert words.shape == (2, padded_words(length, bits))
    per = 32 // bits
    for row, expected in zip(words.view(np.uint32), codes, strict=True):
        for j, word in enumerate(row):
            assert int(word) == bit_stream(expected[j * per : (j + 1) * per], bits)
    assert np.array_equal(unpack_padded(words, bits, length), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_layouts_agree_where_bits_divide_a_word(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (4, 96), dtype=np.int32)
    same = np.array_equal(pack_dense(codes, bits), pack_padded(codes, bits))
    assert same == (32 % bits == 0)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("length", [1, 32, 65, 96])
def test_dense_layout_is_that_of_compressed_tensors(bits: int, length: int) -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = np.random.default_rng(length).integers(0, 1 << bits, (5, length), dtype=np.int32)
    signed = torch.from_numpy(codes - (1 << (bits - 1))).to(torch.int8)
    assert np.array_equal(pack_dense(codes, bits), helpers.pack_to_int32(signed, bits).numpy())


def test_bits_outside_one_to_eight_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bits must lie in 1\.\.8, got 9"):
        pack_dense(np.zeros((1, 1), np.int32), 9)
