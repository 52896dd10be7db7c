"""Chapter L's searches against the authors' code: pieces of its trainer, short searches, and the shipped tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lowbit
import lowbit.reference as ref
from lowbit.reference import lut_search
from lowbit.reference.tables import TABLE_SEARCH
from lowbit.reference.types import TableFunction

from .golden import load, manifest

TRAINER: dict[str, tuple[TableFunction, int]] = {
    "gelu_8": ("gelu", 8),
    "exp_16": ("exp", 16),
    "reci_8_norm": ("reciprocal", 8),
    "sqrt_reci_8_norm": ("rsqrt", 8),
}
SHORT: dict[str, TableFunction] = {"gelu_8": "gelu", "reci_8_norm": "reciprocal"}
SHIPPED: list[tuple[TableFunction, int]] = [("gelu", 8), ("hswish", 8), ("exp", 16)]


def test_every_golden_file_of_the_chapter_is_covered(shared: Path) -> None:
    there = {f.removesuffix(".npz") for f in manifest(shared) if f.startswith(("gqalut_ga_", "gqalut_trainer_"))}
    assert there == {*(f"gqalut_trainer_{f}" for f in TRAINER), *(f"gqalut_ga_{f}" for f in SHORT)}


@pytest.mark.parametrize("file", TRAINER)
def test_l20_fitness_of_the_trainer(shared: Path, file: str) -> None:
    """K, B and fitness to the last bit: the same operations in the same order."""
    v, (function, _) = load(shared, f"gqalut_trainer_{file}"), TRAINER[file]
    p, k, b = lut_search.genome_tables(v["genomes"], function, 6)
    assert np.array_equal(p, v["sorted"])
    assert np.array_equal(k, v["K"])
    assert np.array_equal(b, v["B"])
    assert np.array_equal(ref.genome_fitness(v["genomes"], function=function), v["fitness"])


@pytest.mark.parametrize("file", TRAINER)
def test_l22_draws_mutation_and_crossover_of_the_trainer(shared: Path, file: str) -> None:
    v, (function, entries) = load(shared, f"gqalut_trainer_{file}"), TRAINER[file]
    genes, seed = entries - 1, v.parameters["seed"]
    span, grids, rounds = lut_search.search_settings(function, entries, None)
    assert (list(span), rounds) == (v.parameters["sp_range"], v.parameters["mutate"])
    first = lut_search.PublishedDraws(seed, 50, genes, span)
    assert np.array_equal([first.initial(i) for i in range(50)], v["initial_population"])
    draws = lut_search.PublishedDraws(seed + 5, 50, genes, span)
    for given, expected in zip(v["mutation_in"], v["mutation_out"], strict=True):
        genome = given.copy()
        lut_search.mutate(genome, draws, (1, 0), grids, rounds, span)
        assert np.array_equal(genome, expected)
    python = lut_search.PublishedDraws(seed + 7, 50, genes, span).python
    for pair, expected in enumerate(v["crossover_out"]):
        cut = slice(*lut_search.exchange(python.randint(1, genes), python.randint(1, genes - 1)))
        both = v["genomes"][2 * pair : 2 * pair + 2].copy()
        both[:, cut] = both[::-1, cut].copy()
        assert np.array_equal(both, expected)


@pytest.fixture(params=["reference", "numba"])
def backend(request: pytest.FixtureRequest) -> Any:
    """The specification, and the backend that is fast enough to be used for it."""
    return lowbit.load(request.param)


@pytest.mark.parametrize("file", SHORT)
def test_l22_short_searches(shared: Path, file: str, backend: Any) -> None:
    v = load(shared, f"gqalut_ga_{file}")
    found = backend.genetic_search(
        function=SHORT[file], entries=8, seed=v.parameters["seed"], draws="published", generations=25
    )
    assert np.array_equal(found.breakpoints, v["split_points"][1:-1])
    assert np.array_equal(found.slopes, v["slopes"])
    assert np.array_equal(found.intercepts, v["intercepts"])
    assert found.fitness.min() == v.parameters["best_fitness"]


@pytest.mark.parametrize(("function", "entries"), SHIPPED)
def test_l22_shipped_tables_bit_for_bit(shared: Path, function: TableFunction, entries: int, backend: Any) -> None:
    """Seed 42 and 500 generations: every number of the shipped files, signs of zeros included."""
    text = (shared / "golden" / f"{function}_pwl_{entries - 1}.json").read_text(encoding="utf-8")
    shipped = json.loads(text)[function]
    found = backend.genetic_search(function=function, entries=entries, draws="published")
    assert sorted(map(int, shipped)) == list(range(*np.add(TABLE_SEARCH[function][3], (0, 1))))
    for bit, table in shipped.items():
        scale = 2.0 ** int(bit)
        for own, expected in (
            (np.round(found.breakpoints * scale) / scale, table["breakpoints"]),
            (found.slopes, table["slopes"]),
            (found.intercepts, table["intercepts"]),
        ):
            assert own.tobytes() == np.array(expected, np.float64).tobytes()
