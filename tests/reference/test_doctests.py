"""The examples in the docstrings are part of the specification."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import lowbit
import lowbit.reference as ref
from lowbit.reference.protocol import operations

MODULES = ["lowbit.reference", *(f"lowbit.reference.{m.name}" for m in pkgutil.iter_modules(ref.__path__))]


@pytest.mark.parametrize("module", MODULES)
def test_doctests(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert result.failed == 0


def test_every_operation_of_the_contract_is_here_in_reading_order_with_clause_and_example() -> None:
    assert tuple(ref.__all__) == operations()
    for name in ref.__all__:
        doc = getattr(ref, name).__doc__
        assert doc
        assert "[" in doc.splitlines()[0], f"{name} names no clause in its first line"
        assert ">>>" in doc, f"{name} has no example"
        assert "Shapes:" in doc, f"{name} gives no shapes"


def test_the_module_is_a_backend_of_this_spec_version() -> None:
    backend = lowbit.load("reference")
    assert backend is ref
    assert (ref.name, ref.compute_dtype, ref.device) == ("reference", "float64", "cpu")
    assert ref.SPEC_VERSION == lowbit.SPEC_VERSION
    x = ref.round_half_even([0.5])
    assert ref.to_numpy(ref.asarray(x)) is x
