"""Transforms of the widths of real models, which the kit leaves out for their size, on both backends."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

import lowbit
from lowbit import reference
from lowbit.conformance.compare import gamma, unit_roundoff
from lowbit.reference.errors import SpecError

BACKENDS = [name for name in ("numba", "torch") if importlib.util.find_spec(name)]
WIDTHS = {
    576: "a short table", 720: "a long table, short power of two", 2944: "a table of 92", 4096: "a power of two",
    8464: "two tables, no power of two", 11008: "a table of 172", 13824: "a table of 108", 14336: "a short table",
}  # fmt: skip


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_transforms_of_real_widths(name: str, width: int, dtype: str) -> None:
    backend: Any = lowbit.load(name)
    for tokens in (1, 5):
        x = np.random.default_rng(width).standard_normal((tokens, width)).astype(dtype)
        allowed = gamma(width + 4, unit_roundoff(dtype)) * np.abs(x).sum(axis=1, keepdims=True) / np.sqrt(width)
        for transpose in (False, True):
            found = backend.to_numpy(backend.hadamard_transform(backend.asarray(x), transpose=transpose))
            expected = reference.hadamard_transform(x, transpose=transpose)
            assert found.dtype == np.dtype(dtype)
            assert (np.abs(found - expected) <= allowed).all(), WIDTHS[width]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("order, twos", [(1, 64), (2, 64), (20, 64), (92, 32), (108, 1)])
def test_tables_of_the_caller(name: str, order: int, twos: int) -> None:
    backend: Any = lowbit.load(name)
    random = np.random.default_rng(order)
    table = reference.hadamard_matrix(order=order)[random.permutation(order)].astype(np.float32)
    x = random.standard_normal((3, order * twos)).astype(np.float32)
    allowed = gamma(order * twos + 4, unit_roundoff("float32")) * np.abs(x).sum(axis=1, keepdims=True)
    for transpose in (False, True):
        found = backend.kronecker_transform(backend.asarray(x), backend.asarray(table), transpose=transpose)
        expected = reference.kronecker_transform(x, table, transpose=transpose)
        assert (np.abs(backend.to_numpy(found) - expected) <= allowed / np.sqrt(order * twos)).all()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("width", [8, 64, 576, 11008])
def test_only_values_that_are_not_finite_are_refused(name: str, width: int) -> None:
    """A sum that leaves the range of float32 is an answer; a NaN anywhere in a token is found in one of its results."""
    backend: Any = lowbit.load(name)
    x = np.full((2, width), 3e38, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        assert not np.isfinite(backend.to_numpy(backend.hadamard_transform(backend.asarray(x)))).all()
    x = np.ones((3, width), np.float32)
    x[1, width - 2] = np.nan
    with pytest.raises(SpecError, match=rf"x holds 1 NaN or infinite values, the first at \(1, {width - 2}\)"):
        backend.hadamard_transform(backend.asarray(x))


@pytest.mark.skipif("numba" not in BACKENDS, reason="numba is not installed: pip install 'lowbit[numba]'")
@pytest.mark.parametrize("width", [576, 2944, 4096])
def test_the_number_of_threads_does_not_show(width: int) -> None:
    x = np.random.default_rng(1).standard_normal((1500, width)).astype(np.float32)
    found = [lowbit.load("numba", threads=n).hadamard_transform(x).tobytes() for n in (1, 2, 5)]
    assert found[0] == found[1] == found[2]
