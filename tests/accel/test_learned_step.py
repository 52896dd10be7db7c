"""Learned steps on arrays so large that the backends cut them, along every axis, and in half precision."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np
import pytest

import lowbit
from lowbit import reference
from lowbit.conformance.compare import gamma, unit_roundoff
from lowbit.reference.errors import SpecError

BACKENDS = [name for name in ("numba", "torch") if importlib.util.find_spec(name)]
backends = pytest.mark.parametrize("name", BACKENDS)
SHAPES: list[tuple[tuple[int, ...], int | None]] = [
    (((1 << 17) + 1003,), None),
    ((3, (1 << 17) + 1003), 0),
    ((70_001, 5), 1),
    ((9, 300, 70), 1),
    ((9, 300, 70), -1),
    ((300, 9, 1, 70), 0),
]


@backends
@pytest.mark.parametrize("shape, axis", SHAPES)
def test_arrays_of_many_pieces(name: str, shape: tuple[int, ...], axis: int | None) -> None:
    """float64, where quotients near a tie are too rare to meet."""
    backend: Any = lowbit.load(name)
    rng = np.random.default_rng(0)
    x, grad = rng.standard_normal(shape), rng.standard_normal(shape)
    n = 1 if axis is None else shape[axis]
    step, offset = rng.uniform(0.1, 0.5, n), rng.standard_normal(n) / 4
    options: dict[str, Any] = {"bits": 3, "axis": axis}
    own = [backend.asarray(a) for a in (grad, x, step, offset)]
    values = backend.to_numpy(backend.lsq(*own[1:], **options))
    u = unit_roundoff("float64")
    assert np.abs(values - reference.lsq(x, step, offset, **options)).max() <= gamma(4, u) * 4
    codes = backend.to_numpy(backend.lsq_code(*own[1:], **options))
    assert (codes == reference.lsq_code(x, step, offset, **options)).all()
    found = backend.lsq_gradient(*own, **options)
    expected = reference.lsq_gradient(grad, x, step, offset, **options)
    assert (backend.to_numpy(found.x) == expected.x).all()
    terms = x.size // n
    allowed = gamma(terms + 8, u) * 4 * np.abs(grad).sum() / math.sqrt(3 * terms)
    for got, want in ((found.step, expected.step), (found.offset, expected.offset)):
        assert want is not None
        assert np.abs(backend.to_numpy(got) - want).max() <= allowed


@backends
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_what_is_not_finite_is_found_in_any_piece(name: str, bad: float, axis: int | None) -> None:
    backend: Any = lowbit.load(name)
    x = np.zeros((2, 1 << 17), np.float32)
    spoiled = x.copy()
    spoiled[1, -1] = bad
    step = backend.asarray(np.ones(1 if axis is None else x.shape[axis], np.float32))
    plain, wrong = backend.asarray(x), backend.asarray(spoiled)
    where = r"\(1, 131071\)"
    with pytest.raises(SpecError, match=rf"\[A-4\] x .*{where}"):
        backend.lsq(wrong, step, bits=4, axis=axis)
    with pytest.raises(SpecError, match=rf"\[A-4\] x .*{where}"):
        backend.lsq_gradient(plain, wrong, step, bits=4, axis=axis)
    with pytest.raises(SpecError, match=rf"\[A-4\] grad .*{where}"):
        backend.lsq_gradient(wrong, plain, step, bits=4, axis=axis)


def test_bfloat16_is_computed_in_float32() -> None:
    torch = pytest.importorskip("torch")
    backend: Any = lowbit.load("torch")
    x, grad = (torch.from_numpy(np.random.default_rng(i).standard_normal((4, 64))).to(torch.bfloat16) for i in (1, 2))
    step = torch.full((4,), 0.375, dtype=torch.bfloat16)
    half = backend.lsq_gradient(grad, x, step, bits=4, axis=0)
    full = backend.lsq_gradient(grad.float(), x.float(), step.float(), bits=4, axis=0)
    assert half.x.dtype == torch.float32
    assert torch.equal(half.x, full.x)
    assert torch.equal(half.step, full.step)
    assert torch.equal(backend.lsq(x, step, bits=4, axis=0), backend.lsq(x.float(), step, bits=4, axis=0))
