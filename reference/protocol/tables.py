"""Protocols of look-up tables: how they are made, evaluated and searched for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..types import (
    Arr,
    GeneticSearch,
    IntegerTable,
    OptimalTable,
    SearchDraws,
    SearchFit,
    SearchObjective,
    SearchProblem,
    Table,
    TableFunction,
    TableGradient,
    TableReport,
    TableTie,
)
from .chapters import chapter

__all__ = ["LutSearchOps", "TableOps"]


@chapter("L", "look-up tables")
class TableOps(Protocol[Arr]):
    """Chapter L: look-up tables; tables and reports are float64 or integers whatever the inputs are."""

    def fit_chords(self, knots: Arr, values: Arr, /) -> Table[Arr]: ...  # L-1
    def fit_segments(self, x: Arr, y: Arr, breakpoints: Arr, /, *, tie: TableTie = "right") -> Table[Arr]: ...  # L-3
    def round_table(
        self, table: Table[Arr], /, *, fraction_bits: int = 6, bits: int | None = None
    ) -> Table[Arr]: ...  # L-4
    def integer_table(
        self, table: Table[Arr], /, *, scale_bits: int, fraction_bits: int = 6
    ) -> IntegerTable[Arr]: ...  # L-6
    def evaluate_table(self, x: Arr, table: Table[Arr], /, *, tie: TableTie = "left") -> Arr: ...  # L-7, dtype of x
    def evaluate_codes(self, q: Arr, table: IntegerTable[Arr], /, *, tie: TableTie = "left") -> Arr: ...  # L-9
    def lookup_codes(self, q: Arr, entries: Arr, /, *, low: int = -128) -> Arr: ...  # L-11, dtype of the entries
    def requantize_codes(self, a: Arr, /, *, shift: int, low: int = -128, high: int = 127) -> Arr: ...  # L-12
    def table_gradient(
        self, grad: Arr, q: Arr, /, *, scale: float, function: TableFunction
    ) -> TableGradient[Arr]: ...  # L-13
    def evaluate_ranges(
        self, x: Arr, table: Table[Arr], /, *, function: TableFunction, tie: TableTie = "left"
    ) -> Arr: ...  # L-14, dtype of x
    def table_softmax(
        self,
        q: Arr,
        exp: IntegerTable[Arr],
        reciprocal: IntegerTable[Arr],
        /,
        *,
        out_bits: int = 7,
        tie: TableTie = "left",
    ) -> Arr: ...  # L-16
    def table_layer_norm(
        self, q: Arr, rsqrt: IntegerTable[Arr], /, *, out_bits: int = 5, tie: TableTie = "left"
    ) -> Arr: ...  # L-17
    def verify_table(
        self, table: IntegerTable[Arr], values: Arr, /, *, low: int = -128, tie: TableTie = "left"
    ) -> TableReport: ...  # L-18


@chapter("L")
class LutSearchOps(Protocol[Arr]):
    """Chapter L: searches of look-up tables. Float results are float64 whatever the arguments."""

    def genome_fitness(self, genomes: Arr, /, *, function: TableFunction, fraction_bits: int = 6) -> Arr: ...  # L-20
    def genetic_search(
        self,
        *,
        function: TableFunction,
        entries: int,
        seed: int = 42,
        draws: SearchDraws = "addressed",
        rounding: bool | None = None,
        generations: int = 500,
        population: int = 50,
    ) -> GeneticSearch[Arr]: ...  # L-21, L-22
    def knot_grid(self, *, function: TableFunction, fraction_bits: int = 6) -> Arr: ...  # L-23 → (M,)
    def search_problem(
        self, knots: Arr, /, *, function: TableFunction, scale_bits: Sequence[int] | None = None
    ) -> SearchProblem[Arr]: ...  # L-24
    def optimal_search(
        self,
        knots: Arr,
        values: Arr,
        x: Arr,
        y: Arr,
        cuts: Arr,
        /,
        *,
        entries: int,
        objective: SearchObjective = "mse",
        fit: SearchFit = "chord",
        fraction_bits: int | None = 6,
    ) -> OptimalTable[Arr]: ...  # L-25
    def optimality_bound(
        self,
        knots: Arr,
        values: Arr,
        x: Arr,
        y: Arr,
        cuts: Arr,
        potentials: Arr,
        /,
        *,
        objective: SearchObjective = "mse",
        fit: SearchFit = "chord",
        fraction_bits: int | None = 6,
    ) -> float: ...  # L-26
    def table_objective(
        self, x: Arr, y: Arr, cuts: Arr, slopes: Arr, intercepts: Arr, /, *, objective: SearchObjective = "mse"
    ) -> float: ...  # L-27
