"""Chapter R on torch tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lowbit  # noqa: E402
from lowbit import reference  # noqa: E402
from lowbit.reference.errors import SpecError  # noqa: E402

from .torch_cases import DTYPES, float64, poisoned, weights  # noqa: E402, F401

torch_cuda: Any = lowbit.load("torch")


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_go_to_the_even_integer(dtype: str) -> None:
    x = torch.arange(-41, 42).to(torch.float64).div(4).to(getattr(torch, dtype))
    assert np.array_equal(float64(torch_cuda.round_half_even(x)), reference.round_half_even(float64(x)))
    assert (
        torch_cuda.round_clip(x, low=-3, high=5).tolist() == reference.round_clip(float64(x), low=-3, high=5).tolist()
    )


def test_special_values() -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.5])
    rounded = torch_cuda.round_half_even(x)
    assert rounded.isnan().tolist() == [True, False, False, False]
    assert rounded[1:].tolist() == [torch.inf, -torch.inf, -0.0]
    assert torch.signbit(rounded[3])
    assert torch_cuda.round_clip(x[1:], low=-(2**31), high=2**31 - 1).tolist() == [2**31 - 1, -(2**31), 0]
    assert torch_cuda.round_clip(torch.tensor(1e9), low=0, high=2**24 + 1).item() == 2**24 + 1
    with pytest.raises(SpecError, match=r"^\[R-2\] x holds 1 NaN, the first at \(0,\)"):
        torch_cuda.round_clip(x, low=0, high=1)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    x = torch.ones(shape)
    assert torch_cuda.round_half_even(x).shape == shape
    assert torch_cuda.round_clip(x, low=0, high=1).shape == shape
    found = torch_cuda.nearest_level(x, torch.tensor([0.0, 2.0]))
    assert (found.shape, found.dtype) == (shape, torch.int32)
    assert (found == 0).all()


@pytest.mark.parametrize(("low", "high"), [(3, 2), (0, 2**31), (-(2**31) - 1, 0), (0.0, 1), (True, 2)])
def test_bad_bounds(low: int, high: int) -> None:
    with pytest.raises(SpecError, match=r"^\[R-2\]"):
        torch_cuda.round_clip(torch.ones(1), low=low, high=high)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nearest_level_agrees_with_the_definition(dtype: str) -> None:
    levels = weights(1, 9).sort().values
    x = torch.cat([weights(2, 300), (levels[1:] + levels[:-1]) / 2]).to(getattr(torch, dtype))
    assert torch_cuda.nearest_level(x, levels).tolist() == reference.nearest_level(float64(x), levels.numpy()).tolist()


def test_float32_values_beside_a_midpoint_that_float32_lacks() -> None:
    levels = torch.tensor([1.0, 1.0 + 2.0**-23])  # their midpoint lies between two float32 numbers
    x = torch.cat([levels, torch.nextafter(levels, torch.tensor(2.0))])
    assert torch_cuda.nearest_level(x, levels).tolist() == [0, 1, 1, 1]
    assert torch_cuda.nearest_level(-x, -levels.flip(0)).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([], "[R-3] levels must have shape (L,) with L >= 1, got (0,)"),
        ([0.0, 1.0, 1.0], "[R-3] levels must be strictly ascending, got 1.0 before 1.0"),
        ([0.0, float("inf")], "[A-4] levels holds 1 NaN or infinite values, the first at (1,)"),
    ],
)
def test_bad_levels(levels: list[float], message: str) -> None:
    with pytest.raises(SpecError) as raised:
        torch_cuda.nearest_level(torch.ones(2), torch.tensor(levels))
    assert str(raised.value).startswith(message)
