"""Chapter B of the Numba backend where it takes its own ways: upper sums, two product kernels, tiles, threads."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

import lowbit
from lowbit.accel.numba_cpu import _lookup, configure
from lowbit.accel.numba_cpu.binary_coding import product_path
from lowbit.conformance import compare
from lowbit.reference.errors import SpecError

from .numba_cases import weights

numba_cpu: Any = lowbit.load("numba")
portable: Any = lowbit.load("numba", kernels="portable")
reference: Any = lowbit.load("reference")


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("options", [{}, {"group_size": 24}, {"offset": True}, {"method": "refined"}, {"rounds": 0}])
def test_codes_of_float64_weights_are_those_of_the_specification(bits: int, options: dict[str, Any]) -> None:
    w = weights(4, 96 if bits < 8 else 48)
    options = {"rounds": 3, **options}
    got, want = (b.bcq(w, bits=bits, **options) for b in (numba_cpu, reference))
    assert np.array_equal(got.codes, want.codes)
    np.testing.assert_allclose(got.scale, want.scale, rtol=1e-9, atol=1e-12)
    assert (got.offset is None) == (want.offset is None)


def test_long_rows_are_cut_into_chunks() -> None:
    w = np.random.default_rng(0).standard_normal((2, 9001))
    got, want = (b.bcq(w, bits=3, rounds=2) for b in (numba_cpu, reference))
    assert np.array_equal(got.codes, want.codes)
    single = numba_cpu.bcq(w.astype(np.float32), bits=3, rounds=15)
    error = ((reference.bcq_weight(*single) - w) ** 2).sum() / (w**2).sum()
    best = ((reference.bcq_weight(*reference.bcq(w, bits=3, rounds=15)) - w) ** 2).sum() / (w**2).sum()
    assert error < 1.001 * best


def test_singular_groups_take_the_eigenvectors() -> None:
    w = np.array([[1.0, 5.0, -2.0, 4.0]] * 3)
    codes = np.array([[7, 7, 0, 7], [1, 1, 6, 1], [3, 3, 3, 3]], np.int32)
    for offset in (False, True):
        got, want = (b.bcq_refit(w, codes, bits=3, offset=offset) for b in (numba_cpu, reference))
        np.testing.assert_allclose(got.scale, want.scale, atol=1e-12)


def test_extreme_weights_do_not_overflow() -> None:
    w = np.array([[3.0e38, -3.0e38, 1.0e38, 2.0e38], [1e-42, -3e-42, 2e-42, 1e-42]], np.float32)
    code = numba_cpu.bcq(w, bits=2)
    assert np.isfinite(code.scale).all()
    error = np.abs(reference.bcq_weight(*code) - w).max(axis=1)
    assert (error < 0.5 * np.abs(w).max(axis=1)).all()


@pytest.mark.parametrize("backend", [numba_cpu, portable], ids=["auto", "portable"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_products_of_every_shape(backend: Any, tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    for m, (groups, size), bits in itertools.product(
        (1, 15, 16, 33, 4100), ((1, 40), (2, 128), (3, 20), (5, 7), (1, 300)), (1, 3)
    ):
        if m == 4100 and size != 128:
            continue
        k = groups * size
        codes = rng.integers(0, 2**bits, (m, k)).astype(np.int32)
        scale, x = rng.standard_normal((m, groups, bits)), rng.standard_normal((tokens, k)).astype(np.float32)
        for offset in (None, rng.standard_normal((m, groups))):
            planes = reference.bcq_pack(codes, scale, offset)
            expected = reference.bcq_product(x, *planes, method="dequantize")
            reach = (
                np.abs(x).astype(np.float64)
                @ np.repeat(np.abs(scale).sum(-1) + (0 if offset is None else np.abs(offset)), size, axis=1).T
            )
            shift = None if planes.offset is None else planes.offset.astype(np.float32)
            found = backend.bcq_product(x, planes.planes, planes.scale.astype(np.float32), shift, method="lookup")
            allowed = compare.gamma(k + 4 * groups + 32, compare.unit_roundoff("float32")) * reach
            assert (np.abs(found - expected) <= allowed).all()


def test_the_path_is_told() -> None:
    fast = _lookup.has_permutes()
    assert product_path() == numba_cpu.product_path() == ("avx512" if fast else "portable")
    assert portable.product_path() == "portable"
    assert product_path(np.float64) == "portable"
    assert product_path(inputs=32, bits=3) == product_path(method="dequantize") == "dequantize"
    with pytest.raises(ValueError, match="kernels must be 'auto' or 'portable', got 'sse'"):
        configure(kernels="sse")


def test_threads_change_no_byte() -> None:
    w = np.random.default_rng(3).standard_normal((64, 1024)).astype(np.float32)
    x = np.random.default_rng(4).standard_normal((2, 1024)).astype(np.float32)
    results = []
    for threads in (1, 3):
        backend: Any = lowbit.load("numba", threads=threads)
        code = backend.bcq(w, bits=3, group_size=128)
        planes = backend.bcq_pack(*code)
        products = [backend.bcq_product(x, *planes, method=method) for method in ("lookup", "dequantize")]
        results.append([a.tobytes() for a in (code.codes, code.scale, planes.planes, *products)])
    assert results[0] == results[1]


def test_bad_values_are_named() -> None:
    w, scale = weights(3, 8), np.ones((3, 1, 2))
    planes = reference.bcq_pack(np.zeros((3, 8), np.int32), scale, None)
    bad = w.copy()
    bad[1, 5] = np.inf
    for call in (
        lambda: numba_cpu.bcq(bad, bits=2),
        lambda: numba_cpu.bcq_refit(bad, np.zeros((3, 8), np.int32), bits=2),
        lambda: numba_cpu.bcq_assign(bad, scale, None),
    ):
        with pytest.raises(SpecError, match=r"w holds 1 NaN or infinite values, the first at \(1, 5\)") as caught:
            call()
        assert caught.value.clause == "A-4"
    with pytest.raises(SpecError, match=r"x holds 1 NaN or infinite values, the first at \(1, 5\)"):
        numba_cpu.bcq_product(bad, *planes)
    with pytest.raises(SpecError, match=r"\[B-6\] code 4 at \(0, 1\) is outside 0..3"):
        numba_cpu.bcq_weight(np.array([[0, 4]], np.int32), scale[:1], None)
