"""Vectors of chapter K: ranks under a budget."""

from __future__ import annotations

import numpy as np

from .. import compare, laws, rules
from .inputs import (
    NARROW,
    SPEC,
    U32,
    U64,
    Array,
    Table,
    clear,
    eighths,
    generator,
    hessian,
    near,
    rank_three,
    settled,
    six_inputs,
    suite,
)


def build(table: Table) -> None:
    _integers(table)
    _importance(table)
    _purchases(table)
    _patches(table)


def _integers(table: Table) -> None:
    """Every decision is exact, in any precision."""
    spectra = np.array([[5, 4, 2, 1], [5, 4, 2, 1], [3, 3, 3, 3], [0, 0, 0, 0], [5, 0, 0, 0]], np.float32)
    importance, sensitivity = np.array([1, 1, 2, 1, 0.5], np.float32), np.array([3, 3, 1, 0, 1.5], np.float32)
    low, high = np.array([0, 0, 1, 0, 0], np.int32), np.array([4, 4, 4, 4, 3], np.int32)
    first, second = np.array([2, 2, 3, 1, 4], np.int32), np.array([5, 5, 7, 2, 1], np.int32)  # costs
    shares = SPEC.explained_error(spectra)
    table.call("K-1", "one without error", [spectra], rules.forward("", shares, shares, 11))
    shapes = np.array([[4096, 4096], [11008, 4096], [3, 5]], np.int32)
    for bits in (None, 16, 3):
        table.exactly("K-4", f"{bits} bits" if bits else "parameters", [shapes], bits=bits)
    left = SPEC.allocation_objective(spectra, importance, low)
    table.call("K-8", "lower bounds", [spectra, importance, low], rules.forward("", left, left, 23))
    market = [spectra, importance, first, low, high]
    total = SPEC.allocation_objective(spectra, importance, 0 * low)
    expect = [rules.forward("", SPEC.allocation_bound(*market, budget=12), total, 60)]
    table.call("K-8a", "cut", market, *expect, budget=12)
    for clause, op, goods in (
        ("K-5a", "allocate_greedy", [spectra, importance]),
        ("K-6b", "allocate_threshold", [spectra]),
        ("K-7a", "allocate_proportional", [sensitivity]),
    ):
        for budget in (3, 8, 9, 12, 17, 22, 99):
            for multiple, leftover in ((1, "stop"), (1, "fill"), (2, "stop")):
                options = {"budget": budget + 3 * multiple, "multiple": multiple, "leftover": leftover}
                about = f"budget {options['budget']}, multiples of {multiple}, {leftover}"
                table.exactly(clause, about, [*goods, first, low, high], op=op, **options)
        arrays, pairs = [*goods, second, low, high], Table()
        for budget in range(8, 60):
            for then in ("stop", "fill"):
                pairs.exactly(clause, f"budget {budget}, {then}", arrays, op=op, budget=budget, leftover=then)
        pair = zip(pairs[clause][::2], pairs[clause][1::2], strict=True)
        table[clause] += [case for p in [p for p in pair if p[0]["expect"] != p[1]["expect"]][:3] for case in p]
    problem = suite("rank_budget").RankProblem(spectra, importance, second, low, high, 31, 2)
    steep = problem._replace(
        spectra=np.ldexp(np.float32(1), -9 * np.arange(4)).astype(np.float32) * np.ones((5, 1), np.float32)
    )
    for h in (False, True):
        table.recorded(
            "K-8",
            "test_allocation_objective",
            f"small tails, highest {h}",
            problem=steep._replace(low=np.full(5, 2, np.int32), high=np.full(5, 3, np.int32)),
            high=h,
        )
    table.recorded("K-8a", "test_allocation_bound", "units of two", problem=problem)
    rest, now = np.array([[4, 1], [1, 0], [3, 2], [0, 0], [4, 4]], np.float32), np.array([2, 2, 2, 0, 1], np.int32)
    for step, hysteresis in ((0, 0.0), (1, 0.0), (1, 1.0), (4, 0.0)):
        options = {"budget": 18, "step": step, "hysteresis": hysteresis}
        arrays = [spectra, rest, importance, first, low, high, now]
        table.exactly("K-10", f"step {step}, hysteresis {hysteresis}", arrays, **options)
    for hysteresis in (0.0, 0.5, 1.0, 3.0):
        options = {"budget": 36, "step": 2, "hysteresis": hysteresis}
        arrays = [rest, spectra, importance, second, low, high, now]
        table.exactly("K-10", f"hysteresis {hysteresis}", arrays, **options)


def _importance(table: Table) -> None:
    make = suite("rank_budget").RankProblem
    spectra = np.array([[5, 4, 2, 1], [5, 4, 2, 1], [3, 3, 3, 3], [0, 0, 0, 0], [7, 0, 0, 0]], np.float32)
    spectra = spectra / np.float32(7)
    importance = np.array([1, 3, 2, 1, 0], np.float32)
    cost, low, high = (np.array(v, np.int32) for v in ([2, 2, 3, 1, 4], [0, 0, 1, 0, 0], [4, 4, 4, 4, 3]))
    problem = make(spectra, importance, cost, low, high, 12, 1)
    for dark in (False, True):
        table.recorded("K-1a", "test_residual_damage", f"no energy at all: {dark}", problem=problem, dark=dark)
    table.recorded("K-3", "test_gradient_importance", "eighths", gradient=eighths("K-3", 3, 5))
    about = "a loss below the base, a module without error"
    table.recorded("K-3a", "test_loss_importance", about, problem=problem, base=24)
    for t in (0.0, 0.25, 0.5, 0.9, 1.0):
        table.recorded("K-6", "test_threshold_ranks", f"threshold {t}", problem=problem, threshold=t)
    for e in (0, 3, 8):
        table.recorded("K-6", "test_threshold_is_met_by_equality", f"{e} eighths", problem=problem, eighths=e)


def _purchases(table: Table) -> None:
    weights, prices = np.array([1, 2, 0.7, 0.3], np.float32), np.array([2, 3, 2, 1], np.int32)
    least, most = np.zeros(4, np.int32), np.full(4, 6, np.int32)
    purchases = [(0, 1), (5, 1), (11, 1), (17, 1), (24, 2), (31, 2), (18, 3), (36, 3), (99, 1)]

    def falling(random: np.random.Generator) -> Array:
        return np.asarray(-np.sort(-random.integers(1, 99, (4, 6)), axis=1), np.float32) / np.float32(7)

    for clause, op, rest in (
        ("K-5", "allocate_greedy", [weights, prices, least, most]),
        ("K-6a", "allocate_threshold", [prices, least, most]),
        ("K-7", "allocate_proportional", [prices, least, most]),
    ):

        def bought(v: Array, op: str = op, rest: list[Array] = rest) -> Array:
            return np.array(
                [getattr(SPEC, op)(v, *rest, budget=budget, multiple=multiple) for budget, multiple in purchases]
            )

        first = settled(
            clause,
            falling if clause != "K-7" else lambda r: r.integers(1, 99, 4).astype(np.float32) / np.float32(40),
            bought,
        )
        for (budget, multiple), found in zip(purchases, bought(first).astype(np.int32), strict=True):
            about = f"budget {budget}, multiples of {multiple}"
            table.call(clause, about, [first, *rest], clear("", found), op=op, budget=budget, multiple=multiple)


def _patches(table: Table) -> None:
    w = generator("K-2").integers(-9, 10, (4, 6)).astype(np.float32)
    w_hat, c = np.round(w / 2).astype(np.float32), hessian("K-2", 6, 10)
    ranks = suite("rank_budget")
    (left, turned), (right, turned_hat) = ranks.leading(w, c, U32), ranks.leading(w_hat, c, U32)
    expected = [float(np.sum((left[:, :r].T @ right[:, :r]) ** 2)) / r for r in (1, 2, 3, 4)]
    allowed = [float(turned[r - 1] + turned_hat[r - 1]) + ranks.both(2 * 4 + r + 2, U32) for r in (1, 2, 3, 4)]
    table.call("K-2", "halved and rounded", [w, w_hat, c], near("", np.array(expected), np.array(allowed)), rank=4)
    pooled = np.array([[8, 4, 0, 0], [6, 3, 0, 0], [5, 1, 0, 0]], np.float32)
    arrays = [
        pooled,
        np.array([1, 1, 4], np.float32),
        *(np.array(v, np.int32) for v in ([2, 3, 5], [0, 1, 0], [3, 4, 2])),
    ]
    group = np.array([0, 0, 1], np.int32)
    found = SPEC.pool_modules(*arrays, group)
    expect = [
        rules.forward("spectra", found.spectra, found.spectra, 3 + 4),
        *(rules.exact(name, getattr(found, name)) for name in ("cost", "low", "high")),
    ]
    table.call("K-9", "two of three share a rank", [*arrays, group], *expect)
    b, a, moment = eighths("K-11b", 5, 3), eighths("K-11a", 3, 6), hessian("K-11", 6, 10)
    product = b.astype(np.float64) @ a.astype(np.float64)
    norm = ranks.nested_size(b, a, moment)
    best = [{**rules.objective(product, moment, laws.optimum(product, moment, r), norm), "rank": r} for r in (1, 2, 3)]
    for split in ("balanced", "left"):
        table.call("K-11", split, [b, a, moment], *best, split=split)
    size = float(np.linalg.norm(b.astype(np.float64)) * np.linalg.norm(a.astype(np.float64)))
    allowed_product = (
        compare.residual_gap(size, 12, U32) + compare.residual_gap(size, 12, U64) + compare.tiny(30, NARROW)
    )
    squares, slip = laws.squared_spectrum(product, moment)[:3], compare.gamma(4 * 6, U32)
    off = compare.gram_gap(norm, 1, 12, U32) + compare.gram_gap(norm, 1, 12, U64)
    grams = {
        "left": near("B.T @ B", np.eye(3), slip),
        "balanced": near("B.T @ B", np.diag(np.sqrt(squares)), (off + 4 * slip * squares[0]) / np.sqrt(squares[-1])),
    }
    for split in ("balanced", "left"):
        table.call("K-11a", split, [b, a, moment], near("B @ A", product, allowed_product), grams[split], split=split)
    d = rank_three()
    for about, c in six_inputs().items():
        norm = float(np.sum(d.astype(np.float64) ** 2) * np.linalg.norm(np.abs(c.astype(np.float64)), 2))
        best = [{**rules.objective(d, c, laws.optimum(d, c, r), norm), "rank": r} for r in (1, 2, 3)]
        table.call("K-11b", about, [d, c], *best, rank=3)
