"""What the kit says of SciPy's Hadamard matrix and QR, and of the package hadamard-transform, check by check."""

from __future__ import annotations

import importlib
import importlib.util
import warnings

import pytest

from lowbit.conformance.runner import run

from .published import agree

SCIPY = {
    "test_matrices_of_every_construction": "pass",  # the powers of two; other orders are unsupported
    "test_orders_without_a_matrix_are_refused": "fail",  # ValueError
    "test_transform": "pass",
    "test_transform_of_integers_is_exact": "pass",
    "test_orthogonal_factor": "fail",  # the signs of LAPACK
}
PACKAGE = {
    "test_transform": "pass",
    "test_transform_of_integers_is_exact": "pass",
    "test_inputs_are_not_written": "pass",
    "test_dtypes_of_results": "fail",  # float16 in, float16 out
    "test_wrong_arguments_are_refused": "fail",  # AssertionError
    "test_non_finite_values_are_refused": "fail",
}


def judge(module: str, clauses: list[str], expected: dict[str, str], heading: str) -> None:
    """The verdicts are the published ones, and nothing else fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backend = importlib.import_module(f"{__package__}.{module}")
        outcomes = list(run(backend, clauses))
    agree(heading, outcomes)
    found = {outcome.check.name: outcome.status for outcome in outcomes}
    assert {name: found[name] for name in expected} == expected
    assert {name for name, status in found.items() if status == "fail"} <= set(expected)


def test_scipy_hadamard() -> None:
    judge("scipy_hadamard", ["H"], SCIPY, "SciPy")


@pytest.mark.skipif(
    importlib.util.find_spec("hadamard_transform") is None, reason="not installed: pip install 'lowbit[foreign]'"
)
def test_hadamard_transform_package() -> None:
    pytest.importorskip("torch")
    judge("hadamard_package", ["H", "A"], PACKAGE, "hadamard-transform")
