"""Chapter L's searches: laws, exact cases and brute force."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbit
import lowbit.reference as ref
from lowbit.conformance import calls, compare
from lowbit.reference import lut_search
from lowbit.reference.errors import SpecError
from lowbit.reference.lut import FUNCTIONS, chord_table, evaluate_table
from lowbit.reference.tables import TABLE_SEARCH
from lowbit.reference.types import TABLE_FUNCTIONS, SearchProblem, Table, TableFunction

numba: Any = lowbit.load("numba")
FAILURES = 2.0**-40  # chance that right draws fail a test of shares; they are fixed, so they never will
functions = pytest.mark.parametrize("function", TABLE_FUNCTIONS)


@functions
def test_settings_are_those_of_the_functions(function: TableFunction) -> None:
    """One setting stands twice: as data for every backend, and beside the function."""
    domain, knots, ends, (first, last), _, _ = TABLE_SEARCH[function]
    f = FUNCTIONS[function]
    assert (domain, knots, ends, tuple(range(first, last + 1))) == (f.domain, f.knots, f.ends, f.scale_bits)


def test_published_exceptions() -> None:
    assert lut_search.search_settings("gelu", 8, None) == ((-4, 4), [2, 3, 4, 5, 6], True)
    assert lut_search.search_settings("hswish", 16, None)[1] == [2, 3, 4, 5, 6]
    assert lut_search.search_settings("gelu", 16, None)[1] == list(range(7))
    assert lut_search.search_settings("exp", 16, None)[0] == (-6.5, 0)
    assert lut_search.search_settings("exp", 8, None)[0] == (-8, 0)
    assert lut_search.search_settings("reciprocal", 8, None)[1:] == ([0], False)
    assert lut_search.search_settings("gelu", 8, False)[1:] == ([0], False)


# -- the genetic search


@functions
def test_l20_fitness_is_that_of_the_table(function: TableFunction) -> None:
    """The same number from the functions of lut.py, and not negative."""
    low, high = FUNCTIONS[function].knots
    genomes = np.random.default_rng(1).uniform(low, high, (4, 7))
    x = np.arange(*FUNCTIONS[function].domain, 0.01)
    for genome, fitness in zip(genomes, ref.genome_fitness(genomes, function=function), strict=True):
        y = lut_search_table(function, genome, x)
        assert fitness == np.mean((FUNCTIONS[function].value(x) - y) ** 2) >= 0


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(TABLE_FUNCTIONS), st.data())
def test_l20a_any_order_of_genes_is_one_table(function: TableFunction, data: st.DataObject) -> None:
    """To the last bit, equal genes and genes on the ends of the range included."""
    low, high = FUNCTIONS[function].knots
    genes = [low + (high - low) * k / 12 for k in data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=9))]
    mixed = data.draw(st.permutations(genes))
    found = ref.genome_fitness([genes, mixed, sorted(genes)], function=function)
    assert found[0] == found[1] == found[2] >= 0


def lut_search_table(function: TableFunction, genome: Any, x: Any) -> Any:
    return evaluate_table(x, chord_table(function, genome), tie="right")


def test_sample_counts_are_the_published_ones() -> None:
    counts = {name: len(lut_search.fitness_samples(name)[0]) for name in TABLE_FUNCTIONS}
    assert (counts["gelu"], counts["exp"], counts["reciprocal"], counts["rsqrt"]) == (800, 800, 350, 375)


def test_a_gene_at_the_sentinel_is_a_dead_piece() -> None:
    """The range of 1/√x starts at its sentinel."""
    p, k, b = lut_search.genome_tables(np.array([[0.25, 1.0]]), "rsqrt", 6)
    assert (p[0, 0], k[0, 0], b[0, 0]) == (0.25, 0, 0)


@pytest.mark.parametrize("draws", ["addressed", "published"])
@functions
def test_l21_invariants_of_a_search(function: TableFunction, draws: Any) -> None:
    """Genomes ascend and stay in range; fitness and table belong together; K and B are multiples of 1/64."""
    r = ref.genetic_search(function=function, entries=6, generations=4, population=7, draws=draws, seed=5)
    low, high = FUNCTIONS[function].knots
    assert (np.diff(r.population, axis=1) >= 0).all()
    assert low <= r.population.min()
    assert r.population.max() <= high
    assert np.array_equal(r.fitness, ref.genome_fitness(r.population, function=function))
    assert r.best[-1] == r.fitness.min()
    assert len(r.best) == 5
    assert np.array_equal(r.breakpoints, r.population[np.argmin(r.fitness)])
    assert np.array_equal(r.slopes * 64, np.rint(r.slopes * 64))
    assert np.array_equal(r.intercepts * 64, np.rint(r.intercepts * 64))


@given(st.integers(3, 12), st.data())
def test_two_point_crossover_exchanges_one_run(genes: int, data: st.DataObject) -> None:
    """Never nothing and never both ends: between 1 and n − 1 genes, wherever the points fall."""
    first, second = data.draw(st.integers(1, genes)), data.draw(st.integers(1, genes - 1))
    low, high = lut_search.exchange(first, second)
    assert 1 <= low < high <= genes


def test_mutation_rounds_to_even_and_never_to_minus_zero() -> None:
    class Fixed:
        def uniform(self, *_: int) -> float:
            return 0.06  # the interval of j = 1

        def step(self, *_: int) -> float:
            raise AssertionError

    genome = np.array([0.25, 0.75, -0.2])
    lut_search.mutate(genome, Fixed(), (1, 0), [1], True, (-4.0, 4.0))  # type: ignore[arg-type]
    assert genome.tolist() == [0.0, 1.0, 0.0]
    assert not np.signbit(genome).any()


def test_mutation_steps_and_clamps() -> None:
    class Fixed:
        def uniform(self, *_: int) -> float:
            return 0.95

        def step(self, *_: int) -> float:
            return 3.0

    for rounding, grids, expected in ((True, [0, 1], 4.0), (False, [0], 3.5)):
        genome = np.array([0.5])
        lut_search.mutate(genome, Fixed(), (1, 0), grids, rounding, (-4.0, 4.0))  # type: ignore[arg-type]
        assert genome[0] == expected


@pytest.mark.parametrize("draws", [lut_search.AddressedDraws, lut_search.PublishedDraws])
def test_l21_draws_have_the_published_probabilities(draws: Any) -> None:
    """Crossover 0.7, mutation 0.2, tournaments of three with replacement over the whole population; points of a
    crossover in every place, with one to n − 1 genes of n between them. Each share within its binomial error."""
    n, population, genes = 3000, 8, 7
    source = draws(3, population, genes, (-4.0, 4.0))
    at = [(1 + i // population, i % population) for i in range(n)]
    cuts, mutates = [source.cut(*a) for a in at], [source.mutates(*a) for a in at]
    rivals = np.array([source.tournament(*a) for a in at])
    assert rivals.shape == (n, 3)
    shares = [(sum(c is not None for c in cuts), n, 0.7), (sum(mutates), n, 0.2)]
    shares += [(int((rivals == i).sum()), 3 * n, 1 / population) for i in range(population)]
    shares.append((int((rivals[:, 0] == rivals[:, 1]).sum()), n, 1 / population))
    found = [c for c in cuts if c is not None]
    assert all(1 <= low < high <= genes for low, high in found)
    assert {c[0] for c in found} == set(range(1, genes))
    assert {c[1] for c in found} == set(range(2, genes + 1))
    # the first point in 1 … n and the second in 1 … n − 1, so that each of the n (n − 1) / 2 runs is met twice
    shares += [(found.count(run), len(found), 2 / (genes * (genes - 1))) for run in sorted(set(found))]
    for count, trials, probability in shares:
        assert compare.frequency(count, trials, probability, FAILURES).ok


@pytest.mark.parametrize("entries, roundings, kicks", [(16, 0.35, 0.7), (8, 0.25, 0.5)])
def test_l21_roundings_and_steps_of_a_gene(entries: int, roundings: float, kicks: float) -> None:
    """GELU: seven grids, or five without the coarsest two; each rounds one gene in twenty and kicks one in ten."""
    span, grids, rounds = lut_search.search_settings("gelu", entries, None)
    assert rounds
    source, n, rounded, steps = lut_search.AddressedDraws(9, 50, 1, span), 4000, 0, 0
    for i in range(n):
        for j in grids:  # a gene off every grid, one grid at a time: it moves exactly when it is rounded
            genome, draws = np.array([1 / 3]), OneLevel(source, j - grids[0])
            lut_search.mutate(genome, draws, (1, i), [j], True, span)  # type: ignore[arg-type]
            rounded += bool(genome[0] != 1 / 3)
            steps += draws.steps
    assert compare.frequency(rounded, n * len(grids), roundings / len(grids), FAILURES).ok
    assert compare.frequency(steps, n * len(grids), kicks / len(grids), FAILURES).ok


class OneLevel:
    """Uniforms of one level, whatever level is asked for, and steps that are counted and not made."""

    def __init__(self, source: lut_search.AddressedDraws, level: int) -> None:
        self.source, self.level, self.steps = source, level, 0

    def uniform(self, generation: int, individual: int, gene: int, _: int) -> float:
        return self.source.uniform(generation, individual, gene, self.level)

    def step(self, *_: int) -> float:
        self.steps += 1
        return 0.0


PUBLISHED = [
    ("gelu", 8), ("gelu", 16), ("hswish", 16), ("silu", 8), ("exp", 8), ("exp", 16), ("reciprocal", 16), ("rsqrt", 8),
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PUBLISHED), st.sampled_from([None, True, False]), st.data())
def test_l21_any_mutation_stays_in_the_range_of_breakpoints(setting: Any, rounding: Any, data: st.DataObject) -> None:
    """Whatever is drawn, at every published setting: the range of the exponential at 16 entries is narrower."""
    span, grids, rounds = lut_search.search_settings(setting[0], setting[1], rounding)

    class Drawn:
        def uniform(self, *_: int) -> float:
            return data.draw(st.sampled_from([0.0, 0.06, 0.12, 0.2, 0.26, 0.31, 0.5, 0.9, 0.99]))

        def step(self, *_: int) -> float:
            return data.draw(st.floats(-9, 9, width=16))

    genome = np.array(data.draw(st.lists(st.floats(0, 1, width=16), min_size=3, max_size=3)))
    genome = span[0] + (span[1] - span[0]) * genome
    lut_search.mutate(genome, Drawn(), (1, 0), grids, rounds, span)  # type: ignore[arg-type]
    assert span[0] <= genome.min() <= genome.max() <= span[1]


@pytest.mark.parametrize("draws", ["addressed", "published"])
def test_l21_the_exponential_at_sixteen_entries_has_its_own_range(draws: Any) -> None:
    r = ref.genetic_search(function="exp", entries=16, generations=3, population=9, draws=draws, seed=1)
    assert r.population.shape == (9, 15)
    assert (np.diff(r.population, axis=1) >= 0).all()
    assert -6.5 <= r.population.min() <= r.population.max() <= 0


def test_l21_steps_have_the_published_deviation() -> None:
    draws = lut_search.AddressedDraws(7, 50, 1, (0.0, 1.0))
    steps = np.array([draws.step(1, i, 0, level) for i in range(500) for level in range(4)])
    assert abs(steps.std() - 0.2) < 0.02
    assert abs(steps.mean()) < 0.02
    assert np.array_equal(steps / 0.2 * 2**20, np.rint(steps / 0.2 * 2**20)) or np.ptp(steps) > 0


def test_nothing_keeps_the_best_genome() -> None:
    """The published search has no elite: its best fitness rises at times."""
    best = numba.genetic_search(function="hswish", entries=8, draws="published").best
    assert (np.diff(best) > 0).any()
    assert best[-1] > best.min()


# -- the optimal search


def brute_force(problem: SearchProblem[Any], entries: int, objective: Any, fit: Any, bits: Any) -> float:
    """Least objective over every choice of inner knots, by the objective of the finished table."""
    knots, values, x, y, cuts = problem
    data = lut_search.Samples(x, y, cuts, len(knots), "L-25")
    least = np.inf
    for inner in itertools.combinations_with_replacement(range(1, len(knots) - 1), entries - 1):
        path = [0, *inner, len(knots) - 1]
        lines = [
            lut_search.line((knots[i], values[i], knots[j], values[j]), data, data.between(i, j), fit, bits)
            for i, j in itertools.pairwise(path)
        ]
        own = np.ascontiguousarray(cuts[:, path])
        k, b = np.array(lines).T
        least = min(least, ref.table_objective(x, y, own, k, b, objective=objective))
    return float(least)


@pytest.mark.parametrize("objective", ["mse", "max"])
@pytest.mark.parametrize(("fit", "bits"), [("chord", 6), ("chord", None), ("least_squares", 6)])
@pytest.mark.parametrize("scales", [None, (0, 2)])
@functions
def test_l25_brute_force_finds_nothing_better(
    function: TableFunction, objective: Any, fit: Any, bits: Any, scales: Any
) -> None:
    low, high = FUNCTIONS[function].knots
    left, right = FUNCTIONS[function].ends
    knots = [left, *np.round(np.linspace(low, high, 7) * 8) / 8, right]
    if function == "reciprocal" and scales:
        scales = (2, 5)
    problem: Any = ref.search_problem(knots, function=function, scale_bits=scales)
    for entries in (1, 3, 4):
        found = ref.optimal_search(*problem, entries=entries, objective=objective, fit=fit, fraction_bits=bits)
        least = brute_force(problem, entries, objective, fit, bits)
        assert found.objective == pytest.approx(least, rel=1e-12, abs=1e-18)
        certified: Any = (*problem, found.potentials)
        bound = ref.optimality_bound(*certified, objective=objective, fit=fit, fraction_bits=bits)
        assert bound == pytest.approx(least, rel=1e-12, abs=1e-18)
        if not (entries == 1 and scales):
            own = numba.optimal_search(*problem, entries=entries, objective=objective, fit=fit, fraction_bits=bits)
            assert own.objective == pytest.approx(least, rel=1e-9, abs=1e-15)


def test_l25_optima_of_the_fine_grid() -> None:
    """On the grid of 1/64, chords: what dynamic programming gave when the method was studied, to three digits."""
    for function, entries, fitness, deployed in (
        ("gelu", 8, 6.12e-5, 9.94e-5),
        ("gelu", 16, 3.55e-6, 2.22e-5),
        ("hswish", 8, 2.51e-4, 2.76e-4),
        ("exp", 8, 1.43e-5, 3.34e-5),
    ):
        knots = numba.knot_grid(function=function)
        for scales, expected in ((None, fitness), (range(7), deployed)):
            problem = numba.search_problem(knots, function=function, scale_bits=scales)
            found = numba.optimal_search(*problem, entries=entries)
            assert found.objective == pytest.approx(expected, rel=5e-3)


@functions
def test_l25_the_optimum_is_never_worse_than_the_genetic_search(function: TableFunction) -> None:
    """Over the grid and the genetic table's own breakpoints, by construction; so its gap is a true one."""
    genetic = numba.genetic_search(function=function, entries=8, generations=60)
    grid = numba.knot_grid(function=function, fraction_bits=4)
    knots = np.concatenate([grid[:1], np.unique([*grid[1:-1], *genetic.breakpoints]), grid[-1:]])
    problem = numba.search_problem(knots, function=function)
    found = numba.optimal_search(*problem, entries=8)
    own = numba.search_problem(np.array([grid[0], *genetic.breakpoints, grid[-1]]), function=function)
    reached = numba.table_objective(own.x, own.y, own.cuts, genetic.slopes, genetic.intercepts)
    assert reached == pytest.approx(genetic.fitness.min(), rel=1e-12)
    bound = numba.optimality_bound(*problem, found.potentials)
    assert bound == pytest.approx(found.objective, rel=1e-7)
    assert found.objective <= reached


@settings(max_examples=20, deadline=None)
@given(st.integers(-8, 8), st.integers(-8, 8), st.integers(1, 5))
def test_affine_functions_are_reproduced(slope: int, shift: int, entries: int) -> None:
    """Coefficients that are multiples of 1/64 leave no error, whatever the knots."""
    knots = np.array([-5.0, -1.3, 0.1, 2.0, 5.0])
    x = np.linspace(-4, 4, 33)
    line = slope / 64, shift / 64
    cuts = np.searchsorted(x, knots)[None]
    found = ref.optimal_search(knots, line[0] * knots + line[1], x, line[0] * x + line[1], cuts, entries=entries)
    assert found.objective == pytest.approx(0, abs=1e-28)


def test_l24_ties_of_the_two_rules() -> None:
    """A sample on a knot: right in the fitness, left when deployed; deployed knots are rounded half to even."""
    fitness = ref.search_problem([-1e4, 0.0, 1e4], function="gelu")
    assert fitness.x[fitness.cuts[0, 1]] == pytest.approx(0, abs=1e-12) or fitness.x[fitness.cuts[0, 1]] > 0
    deployed = ref.search_problem([-1e4, 0.5, 1.5, 2.6, 1e4], function="gelu", scale_bits=[0])
    assert deployed.x.tolist() == list(range(-4, 5))
    assert deployed.cuts.tolist() == [[0, 5, 7, 8, 9]]  # 0.5 → 0, 1.5 → 2, 2.6 → 3; q equal to a knot is left of it


def test_l24_samples_of_a_deployed_scale() -> None:
    assert len(ref.search_problem([-1e4, 1e4], function="gelu", scale_bits=[6]).x) == 256  # int8 binds, not the range
    assert len(ref.search_problem([0.25, 4.0], function="rsqrt", scale_bits=[0]).x) == 4


def test_table_of_a_search_is_a_table() -> None:
    """What the search returns is evaluated as it was scored."""
    found = ref.genetic_search(function="tanh", entries=4, generations=2, population=6)
    table: Table[Any] = Table(found.breakpoints, found.slopes, found.intercepts)
    x, y = lut_search.fitness_samples("tanh")
    assert np.mean((y - evaluate_table(x, table, tie="right")) ** 2) == found.fitness.min()


def test_refusals() -> None:
    """Every wrong call of the kit, with a clause of this chapter."""
    wrong = [call for call in calls.wrong() if call.op in lut_search.__all__]
    assert {call.op for call in wrong} == set(lut_search.__all__)
    for op, arrays, options, _ in wrong:
        with pytest.raises(SpecError) as refusal:
            getattr(ref, op)(*arrays, **options)
        assert refusal.value.clause.startswith("L-")


@functions
def test_l23_grid_lies_between_the_sentinels(function: TableFunction) -> None:
    """Multiples of the unit in the range of breakpoints, ends included: the published ranges are multiples of 1/8."""
    grid, (low, high) = ref.knot_grid(function=function, fraction_bits=3), FUNCTIONS[function].knots
    assert (grid[0], grid[-1]) == FUNCTIONS[function].ends
    assert np.array_equal(grid[1:-1], np.arange(low, high + 0.0625, 0.125))
