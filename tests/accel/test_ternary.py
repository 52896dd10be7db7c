"""Fake quantizers of chapter T on groups so large that the backends cut them, and in half precision."""

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
backends = pytest.mark.parametrize("name", BACKENDS)
LARGE = 3 * (1 << 18) + 77
OPERATIONS: list[tuple[str, dict[str, Any]]] = [
    ("twn", {}),
    ("twn", {"clip": 2.0}),
    ("clamped_uniform", {"outermost": "bounded"}),
    ("min_max", {}),
    ("min_max", {"scheme": "asymmetric", "clip": 2.0}),
]


@backends
@pytest.mark.parametrize("op, options", OPERATIONS)
def test_one_group_of_many_pieces(name: str, op: str, options: dict[str, Any]) -> None:
    """float64, where ties are too rare to meet; two groups and one, both longer than a piece."""
    backend: Any = lowbit.load(name)
    x = np.random.default_rng(0).standard_normal((2, LARGE))
    for granularity in ("tensor", "row"):
        found = backend.to_numpy(getattr(backend, op)(backend.asarray(x), granularity=granularity, **options))
        expected = getattr(reference, op)(x, granularity=granularity, **options)
        assert np.abs(found - expected).max() <= gamma(2 * LARGE, unit_roundoff("float64")) * 16


@backends
def test_codes_of_a_large_group(name: str) -> None:
    backend: Any = lowbit.load(name)
    x = np.random.default_rng(1).standard_normal(LARGE)
    found, expected = backend.twn_code(backend.asarray(x)), reference.twn_code(x)
    assert (backend.to_numpy(found.codes) == expected.codes).all()
    assert abs(backend.to_numpy(found.scale) - expected.scale) <= gamma(LARGE, unit_roundoff("float64")) * 2


@backends
@pytest.mark.parametrize("op", ["twn", "twn_code", "clamped_uniform", "min_max"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found_in_any_piece(name: str, op: str, bad: float) -> None:
    backend: Any = lowbit.load(name)
    x = np.zeros(LARGE, np.float32)
    x[-1] = bad
    with pytest.raises(SpecError, match=rf"\[A-4\].*\({LARGE - 1},\)"):
        getattr(backend, op)(backend.asarray(x), clip=2.5)


@backends
def test_a_range_that_float32_does_not_hold(name: str) -> None:
    backend: Any = lowbit.load(name)
    x = backend.asarray(np.array([-3e38, 3e38], np.float32))
    with pytest.raises(SpecError, match="T-4"):
        backend.min_max(x, scheme="asymmetric")
    wide = backend.asarray(np.array([-3e38, 3e38]))
    assert backend.to_numpy(backend.min_max(wide)).tolist() == [-3e38, 3e38]


def test_bfloat16_is_computed_in_float32() -> None:
    """Its values are float32 values: the results are those of the same numbers in float32."""
    torch = pytest.importorskip("torch")
    backend: Any = lowbit.load("torch")
    x = torch.from_numpy(np.random.default_rng(2).standard_normal((4, 64))).to(torch.bfloat16)
    for op, options in OPERATIONS:
        half, full = (getattr(backend, op)(v, granularity="row", **options) for v in (x, x.float()))
        assert half.dtype == torch.float32
        assert torch.equal(half, full)
    assert torch.equal(backend.straight_through(x, x, clip=0.7), backend.straight_through(x.float(), x, clip=0.7))
