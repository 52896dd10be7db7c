"""L: searches of look-up tables on tensors. The rules are those of :mod:`lowbit.reference.lut_search`.

A generation is a dozen operations on the whole population; addressed draws are made on the device, those of the
published code on the host. The optimal search builds the costs of all pieces as one matrix and takes a step of the
dynamic programme as one minimum over it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lowbit.accel.common import lut_search as shared
from lowbit.accel.common.refusals import check_whole
from lowbit.reference.errors import SpecError
from lowbit.reference.types import (
    GeneticSearch,
    OptimalTable,
    SearchDraws,
    SearchFit,
    SearchObjective,
    SearchProblem,
    TableFunction,
)

from . import philox, policy
from .arrays import as_integers, as_weights, operation, refuse_nan

__all__ = [
    "genetic_search",
    "genome_fitness",
    "knot_grid",
    "optimal_search",
    "optimality_bound",
    "search_problem",
    "table_objective",
]

_VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: 0.5 * x * (1.0 + torch.erf(x / 2.0**0.5)),
    "hswish": lambda x: x * (x + 3.0).clamp(0.0, 6.0) / 6.0,
    "silu": lambda x: x / (1.0 + torch.exp(-x)),
    "exp": torch.exp,
    "reciprocal": torch.reciprocal,
    "rsqrt": lambda x: 1.0 / torch.sqrt(x),
    "sigmoid": lambda x: 1.0 / (1.0 + torch.exp(-x)),
    "tanh": torch.tanh,
}


def _tensor(x: shared.Array, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x)).to(device)


# --- fitness


class _Fitness:
    """Fitness (L.20) of sorted genomes, all at once."""

    def __init__(self, function: str, ends: tuple[float, float], fraction_bits: int, device: torch.device) -> None:
        x, y = shared.samples(function)
        self.x, self.y = _tensor(x, device), _tensor(y, device)
        self.function, self.scale = function, 2.0**fraction_bits
        self.ends = _tensor(np.array(ends), device)
        self.values = _tensor(shared.values(function, np.array(ends)), device)

    def lines(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Rounded slopes and intercepts (G, n) of sorted genomes."""
        one = p.new_ones((len(p), 1))
        a = torch.cat((one * self.ends[0], p, one * self.ends[1]), dim=1)
        v = torch.cat((one * self.values[0], _VALUES[self.function](p), one * self.values[1]), dim=1)
        width = a.diff(dim=1)
        k = torch.where(width == 0, 0.0, v.diff(dim=1) / torch.where(width == 0, 1.0, width))
        b = torch.where(width == 0, 0.0, v[:, :-1] - a[:, :-1] * k)
        return torch.round(k * self.scale) / self.scale, torch.round(b * self.scale) / self.scale

    def __call__(self, p: Tensor) -> Tensor:
        k, b = self.lines(p)
        x = self.x.expand(len(p), -1).contiguous()
        piece = torch.searchsorted(p.contiguous(), x, right=True)
        error = self.y - (k.gather(1, piece) * x + b.gather(1, piece))
        return error.square().mean(dim=1)


@operation
def genome_fitness(genomes: Tensor, /, *, function: TableFunction, fraction_bits: int = 6) -> Tensor:
    """Mean squared error of the tables that genomes stand for, as the published search has it.  [L-20]"""
    shared.check_function("L-20", function)
    given = as_weights("L-20", "genomes", genomes)
    if given.ndim != 2:
        raise SpecError("L-20", f"genomes must be a matrix, got shape {tuple(given.shape)}")
    refuse_nan("L-20", "genomes", given)
    check_whole("L-20", "fraction_bits", fraction_bits, 0, 24)
    made = _Fitness(function, shared.sentinels(function), fraction_bits, given.device)
    return made(given.to(torch.float64).sort(dim=1).values)


# --- the genetic search


class _Turn(NamedTuple):
    """All draws of one generation."""

    rivals: Tensor  # int64 (P, 3)
    cross: Tensor  # bool (P // 2, n − 1): genes to exchange
    mutates: Tensor  # bool (P, 1)
    uniform: Tensor  # (P, n − 1, L)
    step: Tensor  # (P, n − 1, L), read where the uniform is 0.9 or more


def _exchanged(first: Tensor, second: Tensor, happens: Tensor, genes: int) -> Tensor:
    """Genes between the two points of every crossover."""
    over = second >= first
    low, high = torch.where(over, first, second), torch.where(over, second + 1, first)
    gene = torch.arange(genes, device=first.device)
    return (gene >= low[:, None]) & (gene < high[:, None]) & happens[:, None]


def _unit(words: Tensor) -> Tensor:
    return (words >> 8).to(torch.float64) * 2.0**-24


def _addressed(plan: shared.Plan, seed: int, size: int, generations: int, device: torch.device) -> Iterator[_Turn]:
    def words(t: int, who: Tensor, slots: Tensor, purpose: int) -> Tensor:
        """(who, slots, 4) words."""
        counter = torch.empty((len(who), len(slots), 4), dtype=torch.int64, device=device)
        counter[..., 0], counter[..., 1], counter[..., 2], counter[..., 3] = t, who[:, None], slots, purpose
        return philox.words(counter, seed)

    everyone, levels = torch.arange(size, device=device), len(plan.grids)
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    genes = torch.arange(plan.genes, device=device)[:, None]
    blocks = (1 + 64 * genes + torch.arange(-(-levels // 4), device=device)).reshape(-1)
    steps = (33 + 64 * genes + torch.arange(levels, device=device)).reshape(-1)
    for t in range(1, generations + 1):
        rivals = (words(t, everyone, zero, 4)[:, 0, :3] * size) >> 32
        cross = words(t, everyone[: size // 2], zero, 5)[:, 0]
        first, second = 1 + ((cross[:, 1] * plan.genes) >> 32), 1 + ((cross[:, 2] * (plan.genes - 1)) >> 32)
        mutates = _unit(words(t, everyone, zero, 6)[:, 0, :1]) < 0.2
        uniform = _unit(words(t, everyone, blocks, 6)).reshape(size, plan.genes, -1)[..., :levels]
        pair = words(t, everyone, steps, 6).to(torch.float64).reshape(size, plan.genes, levels, 4) * 2.0**-32
        normal = torch.sqrt(-2 * torch.log(pair[..., 0] + 2.0**-33)) * torch.cos(2 * torch.pi * pair[..., 1])
        step = 0.2 * (torch.round(normal * 2.0**20) * 2.0**-20)
        yield _Turn(rivals, _exchanged(first, second, _unit(cross[:, 0]) < 0.7, plan.genes), mutates, uniform, step)


def _published(
    plan: shared.Plan, seed: int, size: int, generations: int, legacy: np.random.RandomState, device: torch.device
) -> Iterator[_Turn]:
    python = random.Random(seed)
    for _ in range(generations):
        rivals = torch.tensor([[python.randrange(size) for _ in range(3)] for _ in range(size)])
        happens, points = [], []
        for _ in range(size // 2):
            happens.append(python.random() < 0.7)
            points.append([1 + python.randrange(b) for b in (plan.genes, plan.genes - 1)] if happens[-1] else [1, 1])
        mutates = torch.tensor([[python.random() < 0.2] for _ in range(size)])
        uniform, step = np.zeros((2, size, plan.genes, len(plan.grids)))
        for i in torch.nonzero(mutates[:, 0])[:, 0].tolist():
            for at in np.ndindex(plan.genes, len(plan.grids)):
                uniform[(i, *at)] = u = legacy.random_sample()
                if u >= 0.9:
                    step[(i, *at)] = legacy.normal(0, 0.2)
        first, second = torch.tensor(points, dtype=torch.int64).reshape(-1, 2).unbind(1)
        cross = _exchanged(first, second, torch.tensor(happens, dtype=torch.bool), plan.genes)
        made = _Turn(rivals, cross, mutates, torch.from_numpy(uniform), torch.from_numpy(step))
        yield _Turn(*(part.to(device) for part in made))


def _mutated(genome: Tensor, turn: _Turn, plan: shared.Plan) -> Tensor:
    """Every genome after its mutation, whether it mutates or not."""
    gene = genome
    for level, j in enumerate(plan.grids):
        u = turn.uniform[..., level]
        kicked = torch.where(u >= 0.9, gene + turn.step[..., level], gene)
        if plan.rounds:
            near = (torch.round(gene * 2.0**j) / 2.0**j + 0.0).clamp(*plan.span)
            kicked = torch.where((u >= 0.05 * j) & (u < 0.05 * (j + 1)), near, kicked)
        gene = kicked
    return gene.clamp(*plan.span)


@operation
def genetic_search(
    *,
    function: TableFunction,
    entries: int,
    seed: int = 42,
    draws: SearchDraws = "addressed",
    rounding: bool | None = None,
    generations: int = 500,
    population: int = 50,
) -> GeneticSearch[Tensor]:
    """The published genetic search of a table, with addressed or with the published random numbers.  [L-21, L-22]"""
    plan = shared.check_plan(function, entries, seed, draws, rounding, generations, population)
    device = policy.device()
    low, high = plan.span
    if draws == "published":
        legacy = np.random.RandomState(seed)
        genomes = _tensor(legacy.uniform(low, high, (population, plan.genes)), device)
        turns = _published(plan, seed, population, generations, legacy, device)
    else:
        counter = torch.zeros((population, plan.genes, 4), dtype=torch.int64, device=device)
        counter[..., 1] = torch.arange(population, device=device)[:, None]
        counter[..., 2], counter[..., 3] = torch.arange(plan.genes, device=device), 3
        genomes = low + (high - low) * _unit(philox.words(counter, seed)[..., 0])
        turns = _addressed(plan, seed, population, generations, device)
    evaluate = _Fitness(function, plan.ends, 6, device)
    genomes = genomes.sort(dim=1).values
    fitness = evaluate(genomes)
    best = [fitness.min()]
    even = population - population % 2
    for turn in turns:
        first, second, third = turn.rivals.unbind(1)
        first = torch.where(fitness[second] < fitness[first], second, first)
        first = torch.where(fitness[third] < fitness[first], third, first)
        genomes = genomes[first]
        pairs = genomes[:even].reshape(-1, 2, plan.genes)
        genomes[:even] = torch.where(turn.cross[:, None], pairs.flip(1), pairs).reshape(even, -1)
        genomes = torch.where(turn.mutates, _mutated(genomes, turn, plan), genomes).sort(dim=1).values
        fitness = evaluate(genomes)
        best.append(fitness.min())
    winner = int(torch.nonzero(fitness == best[-1])[0, 0])
    p = genomes[winner : winner + 1]
    k, b = evaluate.lines(p)
    return GeneticSearch(p[0].clone(), k[0], b[0], genomes, fitness, torch.stack(best))


# --- the optimal search


@operation
def knot_grid(*, function: TableFunction, fraction_bits: int = 6) -> Tensor:
    """Multiples of 2^−f in the published range of breakpoints, between the two sentinels, float64.  [L-23]"""
    return _tensor(shared.grid(function, fraction_bits), policy.device())


@operation
def search_problem(
    knots: Tensor, /, *, function: TableFunction, scale_bits: Sequence[int] | None = None
) -> SearchProblem[Tensor]:
    """The samples that a search is to fit, and where the knots fall among them.  [L-24]"""
    given = as_weights("L-24", "knots", knots)
    refuse_nan("L-24", "knots", given)
    made = shared.problem(given.to("cpu", torch.float64).numpy(), function, scale_bits)
    return SearchProblem(*(_tensor(part, given.device) for part in made))


class _Samples:
    """Checked samples: their weights, and the gap between two knots in which each lies."""

    def __init__(self, clause: str, x: Tensor, y: Tensor, cuts: Tensor, columns: int) -> None:
        x, y = as_weights(clause, "x", x), as_weights(clause, "y", y, like=x)
        refuse_nan(clause, "x", x)
        refuse_nan(clause, "y", y)
        self.x, self.y = x.to(torch.float64), y.to(torch.float64)
        bounds = as_integers(clause, "cuts", cuts, like=x).to(torch.int64)
        weight = shared.check_cuts(clause, self.x.cpu().numpy(), self.y.cpu().numpy(), bounds.cpu().numpy(), columns)
        sizes = bounds[:, -1] - bounds[:, 0]
        self.weight = torch.repeat_interleave(_tensor(weight, x.device), sizes)
        at = torch.arange(len(self.x), device=x.device)
        gaps = [torch.searchsorted(row.contiguous(), at[int(row[0]) : int(row[-1])], right=True) for row in bounds]
        self.gap = torch.cat(gaps)  # g: between the knots g − 1 and g


class _Searched:
    """Checked arguments of an optimal search, and the costs of all pieces."""

    def __init__(
        self, clause: str, given: tuple[Tensor, ...], objective: str, fit: str, fraction_bits: int | None
    ) -> None:
        shared.check_objective(clause, objective, fit, fraction_bits)
        knots = as_weights(clause, "knots", given[0])
        values = as_weights(clause, "values", given[1], like=knots)
        refuse_nan(clause, "knots", knots)
        refuse_nan(clause, "values", values)
        shared.check_knots(clause, knots.to("cpu", torch.float64).numpy())
        if values.shape != knots.shape:
            raise SpecError(clause, f"{len(knots)} knots need as many values, got shape {tuple(values.shape)}")
        self.a, self.v, self.m = knots.to(torch.float64), values.to(torch.float64), len(knots)
        self.data = _Samples(clause, given[2], given[3], given[4], self.m)
        self.far = objective == "max"
        w, x, y = self.data.weight, self.data.x, self.data.y
        binned = x.new_zeros((6, self.m)).index_add_(
            1, self.data.gap, torch.stack((w, w * x, w * y, w * x * x, w * x * y, w * y * y))
        )
        sums = binned.cumsum(1)
        self.between = sums[:, None, :] - sums[:, :, None]  # (6, M, M): samples between the knots i and j
        self.k, self.b = self._lines(fit == "least_squares", fraction_bits)
        self.cost = self._farthest() if self.far else self._squares()
        self.cost.masked_fill_(torch.ones_like(self.cost, dtype=torch.bool).tril(-1), torch.inf)  # i ≤ j

    def _lines(self, squares: bool, fraction_bits: int | None) -> tuple[Tensor, Tensor]:
        if squares:
            s1, sx, sy, xx, xy, _ = self.between
            some = s1 > 0
            total = torch.where(some, s1, 1.0)
            mx, my = sx / total, sy / total
            least, most = (self._extreme(sign) * sign for sign in (1.0, -1.0))
            wide = some & (least < most)
            spread = torch.where(wide, xx - total * mx * mx, 1.0)
            k = torch.where(wide, (xy - total * mx * my) / spread, 0.0)
            b = torch.where(some, my - k * mx, 0.0)
        else:
            width = self.a[None, :] - self.a[:, None]
            k = torch.where(width == 0, 0.0, (self.v[None, :] - self.v[:, None]) / torch.where(width == 0, 1.0, width))
            b = torch.where(width == 0, 0.0, self.v[:, None] - self.a[:, None] * k)
        if fraction_bits is None:
            return k, b
        unit = 2.0**fraction_bits
        return torch.round(k * unit) / unit, torch.round(b * unit) / unit

    def _extreme(self, sign: float) -> Tensor:
        """Least sign · x between the knots i and j, (M, M)."""
        low = self.a.new_full((self.m,), torch.inf)
        low.scatter_reduce_(0, self.data.gap, self.data.x * sign, "amin")
        rows = torch.where(torch.ones((self.m, self.m), dtype=torch.bool, device=low.device).triu(1), low, torch.inf)
        found: Tensor = rows.cummin(dim=1).values
        return found

    def _squares(self) -> Tensor:
        s1, sx, sy, xx, xy, yy = self.between
        k, b = self.k, self.b
        made: Tensor = (yy - k * (2 * xy - k * xx - 2 * b * sx) - b * (2 * sy - b * s1)).clamp_min(0.0)
        return made

    def _farthest(self) -> Tensor:
        x, y, gap = self.data.x, self.data.y, self.data.gap
        made, knot = torch.zeros_like(self.k), torch.arange(self.m, device=x.device)[:, None]
        for i in range(self.m):
            error = (y - (self.k[i, :, None] * x + self.b[i, :, None])).abs()
            made[i] = torch.where((gap > i) & (gap <= knot), error, 0.0).amax(dim=1)
        return made

    def reach(self, u: Tensor, s: int) -> Tensor:
        """min over i of u(i) ⊕ c(i, j) for every j, and the least i that attains it: rows of a pair."""
        rows = slice(0, 1) if s == 1 else slice(1, self.m - 1)
        before = u[rows, None]
        found = (torch.maximum(before, self.cost[rows]) if self.far else before + self.cost[rows]).min(dim=0)
        return torch.stack((found.values, (found.indices + rows.start).to(torch.float64)))

    def places(self, s: int, n: int) -> slice:
        return slice(self.m - 1, self.m) if s == n else slice(1, self.m - 1)


@operation
def optimal_search(
    knots: Tensor,
    values: Tensor,
    x: Tensor,
    y: Tensor,
    cuts: Tensor,
    /,
    *,
    entries: int,
    objective: SearchObjective = "mse",
    fit: SearchFit = "chord",
    fraction_bits: int | None = 6,
) -> OptimalTable[Tensor]:
    """The best table whose breakpoints are knots, by dynamic programming.  [L-25]"""
    given = _Searched("L-25", (knots, values, x, y, cuts), objective, fit, fraction_bits)
    n = shared.check_entries(entries, given.m)
    u, origin = given.a.new_zeros((n + 1, given.m)), given.a.new_zeros((n + 1, given.m))
    for s in range(1, n + 1):
        where = given.places(s, n)
        u[s, where], origin[s, where] = given.reach(u[s - 1], s)[:, where]
    back, path = origin.to(torch.int64).tolist(), [given.m - 1]
    for s in range(n, 0, -1):
        path.append(back[s][path[-1]])
    path.reverse()
    i, j = (torch.tensor(part, device=u.device) for part in (path[:-1], path[1:]))
    k, b = given.k[i, j], given.b[i, j]
    reached = _objective(given.data, torch.searchsorted(j, given.data.gap), k, b, given.far)
    return OptimalTable(given.a[i[1:]], k, b, reached, u)


@operation
def optimality_bound(
    knots: Tensor,
    values: Tensor,
    x: Tensor,
    y: Tensor,
    cuts: Tensor,
    potentials: Tensor,
    /,
    *,
    objective: SearchObjective = "mse",
    fit: SearchFit = "chord",
    fraction_bits: int | None = 6,
) -> float:
    """Lower bound of the objective of every table on the knots, proved by potentials.  [L-26]"""
    given = _Searched("L-26", (knots, values, x, y, cuts), objective, fit, fraction_bits)
    u = as_weights("L-26", "potentials", potentials, like=knots)
    shared.check_potentials(tuple(u.shape), given.m)
    refuse_nan("L-26", "potentials", u)
    u = u.to(torch.float64)
    n, excess = len(u) - 1, u[0, 0].clamp_min(0.0)
    for s in range(1, n + 1):
        where = given.places(s, n)
        excess = excess + (u[s] - given.reach(u[s - 1], s)[0])[where].max().clamp_min(0.0)
    return float(u[-1, -1] - excess)


def _objective(data: _Samples, piece: Tensor, k: Tensor, b: Tensor, far: bool) -> float:
    error = data.y - (k[piece] * data.x + b[piece])
    return float(error.abs().max() if far else (data.weight * error.square()).sum())


@operation
def table_objective(
    x: Tensor, y: Tensor, cuts: Tensor, slopes: Tensor, intercepts: Tensor, /, *, objective: SearchObjective = "mse"
) -> float:
    """Objective of any table, whoever made it.  [L-27]"""
    shared.check_objective("L-27", objective)
    k = as_weights("L-27", "slopes", slopes, like=x)
    b = as_weights("L-27", "intercepts", intercepts, like=x)
    refuse_nan("L-27", "slopes", k)
    refuse_nan("L-27", "intercepts", b)
    if k.ndim != 1 or k.shape != b.shape or not len(k):
        raise SpecError(
            "L-27", f"slopes and intercepts must have one length, got {tuple(k.shape)} and {tuple(b.shape)}"
        )
    data = _Samples("L-27", x, y, cuts, len(k) + 1)
    return _objective(data, data.gap - 1, k.to(torch.float64), b.to(torch.float64), objective == "max")
