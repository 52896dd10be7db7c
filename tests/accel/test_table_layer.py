"""TableActivation: values of the integers, gradients of the function."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lowbit.reference as ref  # noqa: E402
from lowbit.nn import TableActivation  # noqa: E402
from lowbit.reference import lut  # noqa: E402
from lowbit.reference.errors import SpecError  # noqa: E402
from lowbit.reference.types import IntegerTable  # noqa: E402

KNOTS = {"gelu": (-3.0, -2.25, -1.0, -0.5, 0.0, 0.625, 2.75), "reciprocal": (0.625, 0.78125, 1.1875, 1.8125)}


def layer(function: Any = "gelu", tie: Any = "left", bits: int = 4) -> Any:
    whole = ref.integer_table(lut.chord_table(function, KNOTS[function]), scale_bits=bits)
    p, k, b = (torch.from_numpy(np.asarray(x)) for x in whole[:3])
    return TableActivation(function, IntegerTable(p, k, b, bits, 6), tie), whole


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("tie", ["left", "right"])
def test_values_are_those_of_the_integers(tie: Any, dtype: str) -> None:
    module, whole = layer("gelu", tie)
    q = np.arange(-128, 128)
    x = torch.from_numpy(q / 16).to(getattr(torch, dtype))
    y = module(x)
    assert y.dtype == x.dtype
    expected = torch.from_numpy(ref.evaluate_codes(q, whole, tie=tie) * 2.0**-10).to(x.dtype)
    assert torch.equal(y, expected)


def test_inputs_between_codes_round_half_to_even_and_are_clipped_at_the_ends() -> None:
    module, _ = layer()
    x = torch.tensor([0.5, 1.5, 2.5, -99 * 16, 99 * 16]) / 16
    assert module.codes(x)[0].tolist() == [0, 2, 2, -128, 127]
    assert module.codes(x)[1].tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("function, bits", [("gelu", 4), ("reciprocal", 5)])
def test_gradients_are_those_of_the_function_at_the_code(function: Any, bits: int) -> None:
    module, _ = layer(function, bits=bits)
    x = torch.tensor([0.5, 0.75, 1.01, 3.0, 99.0], requires_grad=True)
    module(x).sum().backward()
    at = np.rint(x.detach().numpy().astype(float) * 2**bits) / 2**bits
    slope = lut.FUNCTIONS[function].derivative(at)
    slope[-1] = 0  # clipped
    assert np.abs(x.grad.numpy() - slope).max() < 1e-6


def test_the_table_is_saved_and_not_trained() -> None:
    module, _ = layer()
    assert list(module.parameters()) == []
    other, _ = layer()
    other.slopes.zero_()
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.slopes, module.slopes)
    coarse, _ = layer(bits=3)
    coarse.load_state_dict(module.state_dict())  # the scale of a table comes with it
    x = torch.linspace(-3, 3, 50)
    assert torch.equal(coarse(x), module(x))
    with pytest.raises(SpecError, match=r"\[L-13\] a table of gelu, for an activation of tanh"):
        TableActivation("tanh", module.table).load_state_dict(module.state_dict())
    assert "gelu, entries=8, scale=2**-4" in repr(module)


def test_values_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(SpecError, match=r"x holds 1 NaN .* at \(1,\)"):
        layer()[0](torch.tensor([0.0, torch.nan]))


def test_what_is_no_table_is_refused() -> None:
    one = torch.ones(1, dtype=torch.int32)
    with pytest.raises(SpecError, match="pieces"):
        TableActivation("gelu", IntegerTable(one, one, one, 4, 6))
    with pytest.raises(SpecError, match="relu"):
        TableActivation("relu", IntegerTable(one[:0], one, one, 4, 6))  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="tie"):
        TableActivation("gelu", IntegerTable(one[:0], one, one, 4, 6), "up")  # type: ignore[arg-type]
