"""What the kit says of a mimic of KD-QAT's quantizers; docs/results/other-implementations.md tells it in words."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lowbit.conformance.runner import run

from . import kd_qat
from .published import agree, combined

VERDICT = {
    "T-1": "not implemented", "T-1a": "not implemented", "T-1b": "fail", "T-2": "fail", "T-2a": "pass",
    "T-2b": "pass", "T-3": "fail", "T-3a": "fail", "T-3b": "unsupported",
    "T-4": "fail", "T-4a": "fail", "T-5": "fail",
}  # fmt: skip

RARE = ("T-2a", "T-3")
"""Clauses whose counter-examples are too rare for the quick profile to meet them every time."""


@pytest.fixture(scope="module")
def outcomes() -> list[Any]:
    """Outcomes of all clauses of the chapter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 0 / 0 is the point
        return list(run(kd_qat, ["T"]))


def test_the_verdict(outcomes: list[Any]) -> None:
    sure = [outcome for outcome in outcomes if outcome.check.clause.id not in RARE]
    assert combined(sure) == {clause: status for clause, status in VERDICT.items() if clause not in RARE}
    agree("KD-QAT", sure)


def test_what_falsifies_is_a_tensor_of_zeros(outcomes: list[Any]) -> None:
    notes = {outcome.check.clause.id: outcome.note for outcome in outcomes}
    assert "not finite" in notes["T-1b"]
    assert all("nan" in notes[clause] for clause in ("T-3a", "T-4", "T-4a"))


def test_with_zeros_for_nan_only_constants_are_left() -> None:
    """The same mimic, its NaN replaced: ternary and min-max values are then those of the specification."""

    def mended(operation: Any) -> Any:
        return lambda *arrays, **options: np.nan_to_num(operation(*arrays, **options))

    names = ("twn", "clamped_uniform", "min_max")
    backend = SimpleNamespace(
        **{op: mended(getattr(kd_qat, op)) for op in names},
        asarray=kd_qat.asarray, to_numpy=kd_qat.to_numpy, name="mended", compute_dtype="float32", device="cpu",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = combined(run(backend, ["T"]))
    # T-4a stays open: whether (m · 127/m) / (127/m) is m again depends on the m that is drawn.
    assert {clause: found[clause] for clause in ("T-2", "T-3a", "T-4")} == {
        "T-2": "pass",
        "T-3a": "fail",
        "T-4": "pass",
    }
