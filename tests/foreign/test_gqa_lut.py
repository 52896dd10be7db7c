"""What the kit says of a mimic of the published table code; docs/results/other-implementations.md tells it in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowbit import reference as ref
from lowbit.conformance.runner import run
from lowbit.reference.types import Table

from . import gqa_lut
from .published import agree, combined

CLAUSES = [f"L-{i}" for i in range(1, 20)]
VERDICT = {
    "L-1": "pass", "L-2": "pass", "L-3": "not implemented", "L-4": "pass", "L-5": "unsupported", "L-6": "pass",
    "L-7": "pass", "L-8": "fail", "L-9": "fail", "L-10": "fail", "L-13": "pass",
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes() -> list[Any]:
    """Outcomes of the clauses of tables; the searches are another part of the chapter."""
    return list(run(gqa_lut, CLAUSES))


def test_the_verdict(outcomes: list[Any]) -> None:
    assert combined(outcomes) == {clause: VERDICT.get(clause, "not implemented") for clause in CLAUSES}
    agree("GQA-LUT", outcomes)


def test_the_split_is_what_the_kit_sees(outcomes: list[Any]) -> None:
    notes = {outcome.check.clause.id: outcome.note for outcome in outcomes}
    assert "on breakpoints, tie" in notes["L-8"]
    assert "float values" in notes["L-10"]


@pytest.mark.parametrize(("key", "gap"), [(0, 0.125), (1, 0.0390625), (6, 0.0068359375)])
def test_what_the_split_costs_the_shipped_gelu_table(shared: Path, key: int, gap: float) -> None:
    """Search and operator on the same table: they differ on breakpoints only, at S = 1 by as much as 0.125."""
    stored = json.loads((shared / "golden" / "gelu_pwl_7.json").read_text(encoding="utf-8"))["gelu"][str(key)]
    p, k, b = (np.array(stored[part]) for part in ("breakpoints", "slopes", "intercepts"))
    table: Table[Any] = Table(p, k, b)
    q = np.arange(-128, 128)
    whole = ref.integer_table(table, scale_bits=key)
    deployed = gqa_lut.evaluate_codes(q, whole) * 2.0 ** -(6 + key)
    searched = gqa_lut.evaluate_table(q * 2.0**-key, table)
    differs = np.flatnonzero(deployed != searched)
    assert set((differs - 128).tolist()) <= set(whole.breakpoints.tolist())
    assert np.abs(deployed - searched).max() == pytest.approx(gap, rel=0.3)


def test_a_value_recovered_by_a_difference_is_lost() -> None:
    """f + (t − f) where exp is large: 0, and NaN where it overflows; the table says something else."""
    with np.errstate(over="ignore", invalid="ignore"):
        f = np.exp(np.array([20.0, 100.0], np.float32))
        found = gqa_lut.straight_through(np.array([1.25, 1.5]), f)
    assert found[0] == 0
    assert np.isnan(found[1])
