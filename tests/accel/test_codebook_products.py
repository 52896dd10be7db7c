"""Packed products and blocks of both fast backends where kernels change paths: edges, remainders, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import lowbit
from lowbit import reference as ref
from lowbit.reference.errors import SpecError

Array = npt.NDArray[Any]
NF4 = ref.normal_float(bits=4)
BACKENDS = ("numba", "torch")


def problem(tokens: int, m: int, k: int, size: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """Inputs, packed codes and scales in float32."""
    g = np.random.default_rng(seed)
    x, codes = g.standard_normal((tokens, k)), g.integers(0, 16, (m, k))
    scale = 0.5 + g.random(-(-m * k // size))
    return x.astype(np.float32), ref.pack(codes, bits=4), scale.astype(np.float32)


def product(name: str, x: Array, words: Array, scale: Array, size: int, levels: Array = NF4) -> Array:
    backend: Any = lowbit.load(name)
    own = [backend.asarray(a) for a in (x, words, scale, levels)]
    return np.asarray(backend.to_numpy(backend.codebook_matmul(*own, bits=4, block_size=size)))


def close(y: Array, x: Array, words: Array, scale: Array, size: int) -> None:
    """Within the rounding of k products in float32, of either order."""
    weight = ref.dequantize_blocks(ref.unpack(words, bits=4, length=x.shape[1]), scale, NF4, block_size=size)
    exact = x.astype(np.float64)
    allowed = (x.shape[1] + 4) * 2.0**-24 * (np.abs(exact) @ np.abs(weight).T) * 1.001
    assert y.dtype == np.float32
    assert (np.abs(y - exact @ weight.T) <= allowed).all()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 7, 12, 13, 16, 17, 32, 33, 48, 49, 97])
def test_every_number_of_tokens(name: str, tokens: int) -> None:
    """Dot products up to 12, then tiles of one, two and three vectors, with a rest."""
    pytest.importorskip(name)
    case = problem(tokens, 29, 320, 64)
    close(product(name, *case, 64), *case, 64)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("tokens", [1, 6, 20])
@pytest.mark.parametrize(("m", "k", "size"), [(1, 32, 32), (2, 256, 256), (3, 64, 64), (25, 96, 32), (7, 1024, 512)])
def test_rows_at_the_end_of_memory(name: str, tokens: int, m: int, k: int, size: int) -> None:
    """Kernels read whole vectors of words and four scales at a time: the last rows must not reach beyond."""
    pytest.importorskip(name)
    x, words, scale = problem(tokens, m, k, size)
    room = np.full(scale.size + 64, np.nan, np.float32)  # what lies behind would show
    room[: scale.size] = scale
    behind = np.full(words.size + 64, -1, np.int32)
    behind[: words.size] = words.ravel()
    inside = behind[: words.size].reshape(words.shape), room[: scale.size]
    close(product(name, x, *inside, size), x, words, scale, size)


def test_without_vector_look_ups_the_answer_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    from lowbit.accel.numba_cpu import codebook

    case = problem(3, 40, 256, 64)
    fast = product("numba", *case, 64)
    monkeypatch.setattr(codebook, "AVAILABLE", False)
    monkeypatch.setattr(codebook, "_TILE", 1 << 10)  # several tiles
    plain = product("numba", *case, 64)
    close(plain, *case, 64)
    assert np.abs(fast - plain).max() <= 1e-5 * np.abs(plain).max()


@pytest.mark.parametrize("name", BACKENDS)
def test_a_large_product_takes_the_wide_tables_and_agrees(name: str) -> None:
    pytest.importorskip(name)
    for size in (64, 96):
        case = problem(2, 520, 1056, size)
        close(product(name, *case, size), *case, size)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("tokens", [1, 20])
def test_bad_values_are_named(name: str, tokens: int) -> None:
    """Numba looks at the result first: a NaN anywhere reaches it."""
    pytest.importorskip(name)
    x, words, scale = problem(tokens, 5, 128, 64)
    for bad in (np.nan, np.inf, -np.inf):
        worse = scale.copy()
        worse[7] = bad
        with pytest.raises(SpecError, match=r"\[A-4\] scale holds 1 .* at \(7,\)"):
            product(name, x, words, worse, 64)
        worse = x.copy()
        worse[-1, 3] = bad
        with pytest.raises(SpecError, match=rf"\[A-4\] x holds 1 .* at \({tokens - 1}, 3\)"):
            product(name, worse, words, scale, 64)


@pytest.mark.parametrize("name", BACKENDS)
def test_an_overflow_is_not_a_refusal(name: str) -> None:
    pytest.importorskip(name)
    x, words, scale = problem(1, 5, 128, 64)
    y = product(name, np.full_like(x, 1e30), words, scale * np.float32(1e30), 64)
    assert not np.isfinite(y).all()


@pytest.mark.parametrize("name", BACKENDS)
def test_a_code_without_a_level_is_named(name: str) -> None:
    pytest.importorskip(name)
    backend: Any = lowbit.load(name)
    codes = np.zeros((3, 100), np.int32)
    codes[2, 50] = 16
    own = [backend.asarray(a) for a in (codes, np.ones(5, np.float32), NF4)]
    with pytest.raises(SpecError, match=r"\[N-4\] code 16"):
        backend.dequantize_blocks(*own)


@pytest.mark.parametrize("name", BACKENDS)
def test_scales_of_blocks_at_every_length(name: str) -> None:
    pytest.importorskip(name)
    backend: Any = lowbit.load(name)
    x = np.random.default_rng(0).standard_normal(200).astype(np.float32)
    for n in (1, 63, 64, 65, 200):
        for size in (1, 3, 64, 300):
            found = backend.to_numpy(backend.block_scale(backend.asarray(x[:n]), block_size=size))
            assert (found == ref.block_scale(x[:n], block_size=size)).all()


@pytest.mark.parametrize("name", BACKENDS)
def test_loftq_of_a_large_float32_weight_is_that_of_the_specification(name: str) -> None:
    """Above 512 the decomposition goes another way in Numba; errors agree to the digits that float32 has."""
    pytest.importorskip(name)
    backend: Any = lowbit.load(name)
    w = np.random.default_rng(0).standard_normal((520, 530)).astype(np.float32)
    found = backend.loftq(backend.asarray(w), rank=4, bits=3, iterations=2)
    expected = ref.loftq(w, rank=4, bits=3, iterations=2)
    assert found.step == expected.step
    errors = backend.to_numpy(found.errors)
    assert np.abs(errors - expected.errors).max() <= 1e-6 * expected.errors.max()
