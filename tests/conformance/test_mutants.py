"""Every clause has a wrong backend that it kills; one that survives is a hole in the kit."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest

from lowbit.conformance.clauses import CLAUSES
from lowbit.conformance.runner import checks

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from mutants import MUTANTS, Mutant, by_clause, killers  # pyright: ignore[reportImplicitRelativeImport]

EXAMPLES = 25  # of the quick profile: a mutant that only the full one kills would pass on most machines


def test_every_clause_has_a_mutant_and_a_check() -> None:
    assert set(by_clause()) == set(CLAUSES)
    assert {check.clause.id for check in checks()} == set(CLAUSES)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.clause}: {m.name}")
def test_the_named_clause_kills_the_mutant(mutant: Mutant) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # wrong code divides by zero
        assert killers(mutant, EXAMPLES), f"no check of {mutant.clause} fails"
