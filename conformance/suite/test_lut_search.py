"""Chapter L: searches of look-up tables."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from lowbit.conformance import compare, strategies
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array
from lowbit.reference.types import SEARCH_FITS, SEARCH_OBJECTIVES, TABLE_FUNCTIONS

U = compare.unit_roundoff("float64")  # searches compute in float64 whatever they are given

# -- genetic search


def functions() -> st.SearchStrategy[str]:
    """Names of functions."""
    return st.sampled_from(TABLE_FUNCTIONS)


def genomes_of(kit: Kit, function: str, draw: st.DataObject, genes: int) -> Array:
    """A few genomes in the range of a function: on coarse grids, on fine ones, some with equal genes."""
    knots = kit.spec.knot_grid(function=function, fraction_bits=6)[1:-1]
    index = draw.draw(st.lists(st.lists(st.integers(0, len(knots) - 1), min_size=genes, max_size=genes), max_size=4))
    return np.array([knots[row] for row in index], np.float64).reshape(-1, genes)


def chords(knots: Array, values: Array) -> tuple[Array, Array]:
    """Slopes and intercepts between points, 0 where two coincide."""
    width = np.diff(knots)
    k = np.where(width == 0, 0.0, np.diff(values) / np.where(width == 0, 1.0, width))
    return k, np.where(width == 0, 0.0, values[:-1] - knots[:-1] * k)


def fitness_error(kit: Kit, function: str, genomes: Array) -> Array:
    """Bound of the rounding of a fitness: n terms (|f| + |K x| + |B|)², each of a few roundings."""
    allowed = np.zeros(len(genomes))
    left, *_, right = kit.spec.knot_grid(function=function, fraction_bits=0)
    for g, genome in enumerate(genomes):
        knots = np.array([left, *np.sort(genome), right])
        problem = kit.spec.search_problem(knots, function=function)
        k, b = chords(knots, problem.values)
        size = np.abs(problem.y) + (np.abs(k).max() + 1) * np.abs(problem.x) + np.abs(b).max() + 1
        allowed[g] = compare.gamma(len(size) + 32, U) * np.mean(size**2)
    return allowed


@clause("L-20", tier="forward-error", function=functions(), genes=st.integers(1, 15), data=st.data())
def test_fitness(kit: Kit, function: str, genes: int, data: st.DataObject) -> None:
    """Sorted, chords to the sentinels, rounded, right tie, mean over the published samples."""
    genomes = genomes_of(kit, function, data, genes)
    found = kit.call("genome_fitness", genomes, function=function)
    kit.require(found.dtype == np.float64, f"fitness has dtype {found.dtype}, expected float64")
    expected = kit.spec.genome_fitness(genomes, function=function)
    kit.check(compare.forward(found, expected, fitness_error(kit, function, genomes), "fitness"))


@clause("L-20a", tier="exact", function=functions(), data=st.data())
def test_order_of_genes(kit: Kit, function: str, data: st.DataObject) -> None:
    """A genome in another order is the same table."""
    genomes = genomes_of(kit, function, data, 5)
    turned = np.ascontiguousarray(genomes[:, ::-1])
    found, other = (kit.call("genome_fitness", g, function=function) for g in (genomes, turned))
    kit.check(compare.exact(other, found, "fitness of the reversed genome"))


class Search(NamedTuple):
    """Options of a small genetic search."""

    function: str
    entries: int
    seed: int
    rounding: bool | None
    population: int


@st.composite
def searches(draw: st.DrawFn) -> Search:
    """Small populations, odd ones too."""
    rounding = draw(st.sampled_from([None, True, False]))
    return Search(draw(functions()), draw(st.integers(3, 9)), draw(st.integers(0, 2**32 - 1)), rounding,
                  draw(st.integers(2, 9)))  # fmt: skip


def follow(kit: Kit, case: Search, draws: str, steps: int) -> None:
    """Populations after 0, 1, … generations, and the table at the end."""
    options = case._asdict() | {"draws": draws}
    found = [kit.call("genetic_search", generations=t, **options) for t in range(steps + 1)]
    spec = [kit.spec.genetic_search(generations=t, **options) for t in range(steps + 1)]
    errors = [fitness_error(kit, case.function, s.population) for s in spec]
    gap = (float(found[-1].best[-1] - spec[-1].best[-1]), float(errors[-1].max()))
    observed, expected = ([r.population for r in results] for results in (found, spec))
    fitness = [spec[0].fitness, *(s.fitness for s in spec[:-1])]
    kit.check(compare.trajectory(observed, expected, fitness, [errors[0], *errors[:-1]], gap))
    last, want = found[-1], spec[-1]
    if np.array_equal(last.population, want.population):
        kit.check(compare.forward(last.fitness, want.fitness, errors[-1], "fitness of the last population"))
        kit.check(compare.forward(last.best, want.best, max(e.max() for e in errors), "course of the best fitness"))
        tied = np.abs(want.fitness - want.fitness.min()) <= 2 * errors[-1]
        if tied.sum() == 1:
            for name in ("breakpoints", "slopes", "intercepts"):
                kit.check(compare.exact(getattr(last, name), getattr(want, name), name))


@clause("L-21", tier="trajectory", case=searches())
def test_addressed_search(kit: Kit, case: Search) -> None:
    """The same genomes in every generation, whatever the order of the draws."""
    follow(kit, case, "addressed", 3)


@clause("L-21a", tier="exact", seed=strategies.seeds())
def test_seeds_of_64_bits(kit: Kit, seed: int) -> None:
    """The first population is a function of all 64 bits of the seed."""
    found = kit.call("genetic_search", function="tanh", entries=5, seed=seed, generations=0, population=3)
    spec = kit.spec.genetic_search(function="tanh", entries=5, seed=seed, generations=0, population=3)
    kit.check(compare.exact(found.population, spec.population, "first population"))


@clause("L-22", tier="trajectory", case=searches())
def test_published_draws(kit: Kit, case: Search) -> None:
    """The two generators of the published code, in its order."""
    follow(kit, case, "published", 3)


# -- optimal search


@clause("L-23", tier="exact", function=functions(), fraction_bits=st.integers(0, 7))
def test_grid(kit: Kit, function: str, fraction_bits: int) -> None:
    """Sentinels, and every multiple between, ends included."""
    found = kit.call("knot_grid", function=function, fraction_bits=fraction_bits)
    kit.check(compare.exact(found, kit.spec.knot_grid(function=function, fraction_bits=fraction_bits), "knots"))


@clause("L-24", tier="exact", function=functions(), scales=st.one_of(st.none(), st.lists(st.integers(0, 7), min_size=1,
        max_size=3)), data=st.data())  # fmt: skip
def test_problem(kit: Kit, function: str, scales: list[int] | None, data: st.DataObject) -> None:
    """Which samples count, and on which side of a knot each lies, ties by their rule."""
    knots = kit.spec.knot_grid(function=function, fraction_bits=data.draw(st.integers(0, 4)))
    found = kit.call("search_problem", knots, function=function, scale_bits=scales)
    spec = kit.spec.search_problem(knots, function=function, scale_bits=scales)
    kit.check(compare.exact(found.knots, spec.knots, "knots"))
    kit.check(compare.exact(found.cuts, spec.cuts, "cuts"))
    kit.check(compare.forward(found.x, spec.x, U * np.abs(spec.x), "samples"))
    for values, expected, at in ((found.values, spec.values, spec.knots), (found.y, spec.y, spec.x)):
        size = np.abs(expected) + np.abs(at) + 1
        kit.check(compare.forward(values, expected, 2 * compare.elementary(6, U) * size, "values of the function"))


class Fit(NamedTuple):
    """A small problem and the options of its search."""

    arrays: tuple[Array, ...]
    options: dict[str, Any]
    size: float  # bound of |y| + |K x| + |B|


@st.composite
def fits(draw: st.DrawFn, *, rounded: bool = True) -> Fit:
    """Knots and samples on dyadic grids, one to three views, all options."""
    quarters = draw(st.lists(st.integers(-16, 16), min_size=1, max_size=6, unique=True))
    inner = np.sort(np.array(quarters)) / 4.0
    knots = np.concatenate([[-5.0], inner, [5.0]])
    number = st.integers(-32, 32)
    values = np.array(draw(st.lists(number, min_size=len(knots), max_size=len(knots)))) / 16.0
    xs, cuts, start = [], [], 0
    for _ in range(draw(st.integers(1, 3))):
        x = np.sort(np.array(draw(st.lists(number, min_size=1, max_size=9)))) / 8.0
        at = np.searchsorted(x, knots, side=draw(st.sampled_from(["left", "right"])))
        at[0], at[-1] = 0, len(x)
        xs.append(x)
        cuts.append(at + start)
        start += len(x)
    x = np.concatenate(xs)
    y = np.array(draw(st.lists(number, min_size=len(x), max_size=len(x)))) / 16.0
    fit = draw(st.sampled_from(SEARCH_FITS))
    bits = draw(st.sampled_from([None, 0, 4])) if rounded and fit == "chord" else None
    options = {"objective": draw(st.sampled_from(SEARCH_OBJECTIVES)), "fit": fit, "fraction_bits": bits}
    slope = (np.ptp(values) + np.ptp(y)) * 8 + 1  # knots are 1/4 apart or more, samples 1/8
    return Fit((knots, values, x, y, np.array(cuts, np.int32)), options, float(4 + 10 * slope))


def slack(case: Fit, terms: int = 1) -> float:
    """What sums of rounded squares (or one distance) may be off, ``terms`` results together."""
    knots, _, x = case.arrays[:3]
    power = 2 if case.options["objective"] == "mse" else 1
    return terms * compare.gamma(16 * (len(x) + len(knots) + 4), U) * case.size**power


def own_cuts(case: Fit, breakpoints: Array) -> Array:
    """Columns of the cuts that belong to the breakpoints of a table."""
    knots, cuts = case.arrays[0], case.arrays[4]
    columns = [0, *(1 + np.searchsorted(knots[1:-1], breakpoints)), len(knots) - 1]
    return np.ascontiguousarray(cuts[:, columns])


@clause("L-25", tier="certificate", case=fits(), entries=st.integers(1, 5))
def test_optimum(kit: Kit, case: Fit, entries: int) -> None:
    """No table on the knots is better, and the reported objective is that of the table."""
    found = kit.call("optimal_search", *case.arrays, entries=entries, **case.options)
    spec = kit.spec.optimal_search(*case.arrays, entries=entries, **case.options)
    kit.check(compare.certificate(float(found.objective), spec.objective, slack(case), "objective"))
    known = np.isin(found.breakpoints, case.arrays[0][1:-1]).all() and len(found.breakpoints) == entries - 1
    kit.require(bool(known), f"breakpoints {found.breakpoints} are not {entries - 1} of the knots")
    _, _, x, y, _ = case.arrays
    cuts, objective = own_cuts(case, found.breakpoints), case.options["objective"]
    own = kit.spec.table_objective(x, y, cuts, found.slopes, found.intercepts, objective=objective)
    kit.check(compare.certificate(own, float(found.objective), slack(case), "objective of the returned table"))


@clause("L-25", tier="certificate", slope=st.integers(-9, 9), shift=st.integers(-3000, 3000),
        fit=SEARCH_FITS, entries=st.integers(1, 5))  # fmt: skip
def test_straight_lines(kit: Kit, slope: int, shift: int, fit: str, entries: int) -> None:
    """A straight line is met by every table without rounding; the error of that is a mean of squares, not below 0."""
    knots, x = np.array([-5.0, -1.3, 0.1, 2.0, 5.0]), np.linspace(-4.0, 4.0, 33)
    values, y = (slope / 3 * a + shift / 7 for a in (knots, x))
    cuts = np.array([[0, *np.searchsorted(x, knots[1:-1]), len(x)]], np.int32)
    options = {"objective": "mse", "fit": fit, "fraction_bits": None}
    case = Fit((knots, values, x, y, cuts), options, float(np.abs(y).max() + 8 * abs(slope) + 1))
    found = kit.call("optimal_search", *case.arrays, entries=entries, **options)
    kit.check(compare.certificate(float(found.objective), 0.0, slack(case), "objective of a straight line"))
    kit.require(float(found.objective) >= 0, f"a mean of squares is {float(found.objective)}")


@clause("L-25a", tier="certificate", case=fits(), entries=st.integers(2, 4))
def test_more_entries(kit: Kit, case: Fit, entries: int) -> None:
    """From two on, one entry more is never worse: a breakpoint that stands twice costs nothing."""
    few, more = (
        float(kit.call("optimal_search", *case.arrays, entries=n, **case.options).objective)
        for n in (entries, entries + 1)
    )
    kit.check(compare.certificate(more, few, 2 * slack(case), f"objective with {entries + 1} entries"))


@clause("L-25b", tier="forward-error", case=fits(), entries=st.integers(1, 5))
def test_lines(kit: Kit, case: Fit, entries: int) -> None:
    """Rounded coefficients are multiples of the unit within half of it of the chord; without rounding they are it."""
    options: dict[str, Any] = case.options | {"fit": "chord"}
    found = kit.call("optimal_search", *case.arrays, entries=entries, **options)
    knots, values = case.arrays[:2]
    at = np.concatenate([[0], 1 + np.searchsorted(knots[1:-1], found.breakpoints), [len(knots) - 1]])
    slopes, intercepts = chords(knots[at], values[at])
    bits = options["fraction_bits"]
    unit = 0.0 if bits is None else 2.0**-bits
    for name, own, want in (
        ("slopes", found.slopes, slopes), ("intercepts", found.intercepts, intercepts),
    ):  # fmt: skip
        if unit:
            kit.check(compare.exact(own, np.rint(own / unit) * unit, f"{name} as multiples of {unit}"))
        kit.check(compare.forward(own, want, unit / 2 + compare.gamma(8, U) * case.size, name))


@clause("L-26", tier="certificate", case=fits(), entries=st.integers(1, 5))
def test_certificate(kit: Kit, case: Fit, entries: int) -> None:
    """The potentials of a search prove its optimum, to the specification and to the backend."""
    found = kit.call("optimal_search", *case.arrays, entries=entries, **case.options)
    allowed = slack(case, entries + 2)
    for who, bound in (
        ("the specification", kit.spec.optimality_bound(*case.arrays, found.potentials, **case.options)),
        ("the backend", kit.call("optimality_bound", *case.arrays, found.potentials, **case.options)),
    ):
        kit.check(compare.certificate(float(found.objective), float(bound), allowed, f"objective, proved to {who}"))


@clause("L-26a", tier="forward-error", case=fits(), entries=st.integers(1, 4), data=st.data())
def test_bound_of_any_potentials(kit: Kit, case: Fit, entries: int, data: st.DataObject) -> None:
    """Whatever the potentials, the bound is that of the specification, and below the optimum."""
    m = len(case.arrays[0])
    number = st.lists(st.integers(-16, 48), min_size=m * (entries + 1), max_size=m * (entries + 1))
    potentials = np.array(data.draw(number)).reshape(entries + 1, m) / 16.0
    found = float(kit.call("optimality_bound", *case.arrays, potentials, **case.options))
    expected = kit.spec.optimality_bound(*case.arrays, potentials, **case.options)
    kit.check(compare.forward(found, expected, slack(case, entries + 2), "bound"))
    best = kit.spec.optimal_search(*case.arrays, entries=entries, **case.options).objective
    kit.check(compare.certificate(found, best, slack(case, entries + 2), "bound"))


@clause("L-27", tier="forward-error", case=fits(), entries=st.integers(1, 5), data=st.data())
def test_objective_of_any_table(kit: Kit, case: Fit, entries: int, data: st.DataObject) -> None:
    """Means of means, or the largest distance, of a table that nobody searched."""
    knots, _, x, y, _ = case.arrays
    inner = data.draw(st.lists(st.integers(1, len(knots) - 2), min_size=entries - 1, max_size=entries - 1))
    cuts = own_cuts(case, knots[np.sort(np.array(inner, np.int64))])
    lines = st.lists(st.integers(-32, 32), min_size=entries, max_size=entries)
    k, b = np.array(data.draw(lines)) / 8.0, np.array(data.draw(lines)) / 8.0
    objective = case.options["objective"]
    found = float(kit.call("table_objective", x, y, cuts, k, b, objective=objective))
    expected = kit.spec.table_objective(x, y, cuts, k, b, objective=objective)
    kit.check(compare.forward(found, expected, slack(case), "objective"))
