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

EXAMPLES = 25  # of the quick profile
FULL = 200


def test_every_clause_has_a_mutant_and_a_check() -> None:
    assert set(by_clause()) == set(CLAUSES)
    assert {check.clause.id for check in checks()} == set(CLAUSES)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.clause}: {m.name}")
def test_the_named_clause_kills_the_mutant(mutant: Mutant) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # wrong code divides by zero
        # Hypothesis mixes constants of the modules loaded by the process into its examples, so what else ran decides
        # a few of them: a mutant that slips through the quick profile must die in the full one.
        assert killers(mutant, EXAMPLES) or killers(mutant, FULL), f"no check of {mutant.clause} fails"
