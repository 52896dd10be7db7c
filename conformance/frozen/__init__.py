"""Inputs of frozen vectors whose bounds are recorded from the tests of their clauses, and the few that are not.

Inputs are small and chosen: ties, padded rows, masses below a floor, dead pieces, repeated breakpoints, zeros of both
signs. Where decisions count they are clear in float32, or nothing rounds at all. Every draw has a generator of its own,
so that a new vector moves no other. Everything here needs the specification and the suite; to read the files takes
neither.
"""

from __future__ import annotations

from . import additions, compression, networks, quantizers, tables, training
from .inputs import Case, Table

__all__ = ["additions", "build"]


def build() -> dict[str, tuple[str, list[Case]]]:
    """Clause → (operation, cases)."""
    table: Table = {}
    for chapter in (
        quantizers.random,
        quantizers.grids,
        quantizers.codebooks,
        quantizers.ternary,
        quantizers.steps,
        training.oscillation,
        training.binary,
        training.scales,
        training.mixed,
        compression.second_order,
        compression.low_rank,
        compression.ranks,
        compression.dora,
        compression.rotation,
        tables.tables,
        tables.searches,
        networks.coresets,
        networks.distillation,
        networks.diagnostics,
    ):
        chapter(table)
    return {clause: (cases[0]["op"], cases) for clause, cases in table.items()}
