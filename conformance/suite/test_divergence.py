"""Chapter F: divergence at the output. Patches are judged by what they leave of it, labels by their distribution."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from lowbit.conformance import compare, laws, strategies
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array
from lowbit.conformance.suite.test_eigenspace import check_moments, gap
from lowbit.conformance.suite.test_low_rank import check_shapes

U64 = compare.unit_roundoff("float64")
DAMPINGS = (0.0, 0.125, 1.0)


class OutputProblem(NamedTuple):
    """An error, the second moments of its inputs and of the gradients at its outputs, and what is asked of a patch."""

    d: Array  # (m, k)
    c: Array  # (k, k)
    g: Array  # (m, m)
    rank: int
    damping: float


class Weighted(NamedTuple):
    """The problem of chapter E that an output problem is."""

    root: Array  # float64 (p, m): RᵀR is the damped g
    d: Array  # float64 (m, k): R d, with rows of zeros
    kappa: float  # condition of what counts of the damped g


def damped(g: Array, damping: float) -> Array:
    """g + damping · mean of its diagonal, float64."""
    wide = g.astype(np.float64)
    return np.asarray(wide + damping * np.diag(wide).mean() * np.eye(len(wide)))


def weighted(problem: OutputProblem) -> Weighted:
    """By eigenvectors: exact zeros are left out, and :func:`decided` sees to it that nothing is near the cut."""
    d, g = problem.d.astype(np.float64), damped(problem.g, problem.damping)
    values, vectors = np.linalg.eigh(g)
    kept = values > 2.0**-30 * max(values[-1], 0.0)
    root = np.sqrt(values[kept])[:, None] * vectors[:, kept].T
    whole = np.zeros_like(d)
    whole[: len(root)] = root @ d
    return Weighted(root, whole, float(values[kept][-1] / values[kept][0]) if kept.any() else 1.0)


def decided(problem: OutputProblem) -> bool:
    """Whether every direction of outputs counts or does not beyond the doubt that rounding in float32 leaves."""
    values = np.linalg.eigvalsh(damped(problem.g, problem.damping))
    share = values / max(values[-1], 2.0**-1000)
    return not bool(((share > 2.0**-40) & (share < 2.0**-10)).any())


@st.composite
def output_problems(draw: st.DrawFn) -> OutputProblem:
    """Problems of chapter E with gradients that are white, uneven, correlated, of few tokens, or of dead outputs."""
    d, c, rank = draw(strategies.patch_problems())
    m, dtype = len(d), d.dtype
    kind = draw(st.sampled_from(["dead", "few tokens", "correlated", "white", "uneven", "dead"]))
    if kind == "white":
        g = np.eye(m)
    elif kind == "uneven":
        g = np.diag(np.ldexp(1.0, draw(st.lists(st.integers(-3, 4), min_size=m, max_size=m))))
    else:
        tokens = draw(st.integers(1, m)) if kind == "few tokens" else 2 * m + 2
        y = draw(strategies.integers((tokens, m), 5)).astype(np.float64)
        if kind == "dead":
            y[:, draw(st.integers(0, m - 1)) :: draw(st.integers(1, m))] = 0.0
        g = y.T @ y
    scale = draw(st.sampled_from([1.0, 2.0**-14]))
    problem = OutputProblem(d, c, strategies.symmetric(g * scale, dtype.name), rank, draw(st.sampled_from(DAMPINGS)))
    return problem


PROBLEMS = output_problems().filter(decided)


@clause("F-1", tier="forward-error", problem=output_problems())
def test_divergence(kit: Kit, problem: OutputProblem) -> None:
    """½ tr(G D C Dᵀ): three products of sums in any order."""
    d, c, g = (x.astype(np.float64) for x in problem[:3])
    m, k = d.shape
    found = kit.call("divergence", problem.d, problem.c, problem.g)
    size = float(np.sum((np.abs(g) @ np.abs(d) @ np.abs(c)) * np.abs(d))) / 2
    n = m + k + m * k + 4
    allowed = (compare.gamma(n, kit.u(*problem[:3])) + compare.gamma(n, U64)) * size + kit.tiny(n)
    kit.check(compare.forward(found, float(np.sum((g @ d @ c) * d)) / 2, allowed, "divergence"))


def allowance(kit: Kit, problem: OutputProblem, seen: Weighted, rank: int, result: Array) -> float:
    """Rounding of the weighted problem, of the root, and of the way back through its inverse."""
    u = kit.u(*problem[:3], result=result)
    return (1 + seen.kappa) * gap(seen.d, problem.c, rank, u)


@clause("F-1a", tier="exact", dtype=strategies.WIDE_FLOATS, k=st.integers(3, 12))
def test_what_is_no_second_moment_has_no_divergence(kit: Kit, dtype: str, k: int) -> None:
    """Of the inputs or of the outputs: a certificate for either would be false."""
    d = np.eye(k, dtype=dtype)
    low: dict[str, dict[str, Any]] = {"divergence": {}, "divergence_spectrum": {}, "divergence_patch": {"rank": 1}}
    for op, options in low.items():
        check_moments(kit, op, lambda c: [d, c, d], k, dtype, "F", **options)
        check_moments(kit, op, lambda g: [d, d, g], k, dtype, "F", **options)


@clause("F-2", tier="forward-error", problem=PROBLEMS)
def test_spectrum(kit: Kit, problem: OutputProblem) -> None:
    """min(m, k) values, descending, not negative, whose squares are half the eigenvalues of R D C (R D)ᵀ."""
    d, c, g, _, damping = problem
    found = kit.call("divergence_spectrum", d, c, g, damping=damping)
    kit.require(found.shape == (min(d.shape),), f"spectrum has shape {found.shape}, expected {(min(d.shape),)}")
    kit.require(bool(np.all(found >= 0)), "a singular value is negative")
    kit.require(bool(np.all(np.diff(found) <= 0)), "the spectrum does not descend")
    seen = weighted(problem)
    expected = laws.squared_spectrum(seen.d, c) / 2
    u = kit.u(d, c, g, result=found)
    allowed = allowance(kit, problem, seen, 1, found) + compare.gamma(6, u) * expected
    kit.check(compare.forward(found.astype(np.float64) ** 2, expected, allowed, "squared singular values"))


def patched(kit: Kit, problem: OutputProblem, tolerance: float = strategies.TOLERANCES[0]) -> Any:
    """The call, with the warning of a loud fall-through allowed."""
    d, c, g, rank, damping = problem
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = kit.call("divergence_patch", d, c, g, rank=rank, damping=damping, tolerance=tolerance)
    check_shapes(kit, found, d, rank)
    return found


def reached_by(problem: OutputProblem, seen: Weighted, b: Array, a: Array) -> float:
    """½ tr(G_λ E C Eᵀ) of E = D − BA, in float64."""
    error = seen.root @ (problem.d.astype(np.float64) - b.astype(np.float64) @ a.astype(np.float64))
    return float(np.sum((error @ problem.c.astype(np.float64)) * error)) / 2


@clause("F-3", tier="certificate", problem=PROBLEMS)
def test_patch_reaches_the_optimum(kit: Kit, problem: OutputProblem) -> None:
    """Outputs weighed by gradients, few of them, none of them: only what is left of the divergence counts."""
    found, seen = patched(kit, problem, 0.0), weighted(problem)
    reached = reached_by(problem, seen, found.B, found.A)
    best = laws.optimum(seen.d, problem.c, problem.rank) / 2
    kit.check(compare.certificate(reached, best, allowance(kit, problem, seen, problem.rank, found.B)))


@clause("F-3a", tier="certificate", problem=PROBLEMS, tolerance=strategies.TOLERANCES)
def test_bound_and_objective(kit: Kit, problem: OutputProblem, tolerance: float) -> None:
    """The bound is below the optimum, the objective that of the factors and within the tolerance of the bound."""
    found, seen = patched(kit, problem, tolerance), weighted(problem)
    kit.require(found.method in ("exact", "krylov"), f"unknown method {found.method!r}")
    allowed = allowance(kit, problem, seen, min(problem.d.shape), found.B)
    best = laws.optimum(seen.d, problem.c, problem.rank) / 2
    kit.check(compare.certificate(found.lower_bound, best, allowed, "lower bound"))
    reached = reached_by(problem, seen, found.B, found.A)
    for one, other, what in ((found.objective, reached, "told"), (reached, found.objective, "reached")):
        kit.check(compare.certificate(one, other, allowed, f"objective {what}"))
    ceiling = (1 + tolerance) * found.lower_bound
    kit.check(compare.certificate(reached, ceiling, allowed, "objective above the certified ceiling"))


@clause("F-3b", tier="exact", dtype=strategies.WIDE_FLOATS, dead=st.integers(0, 3), blind=st.integers(0, 2))
def test_directions_that_tell_nothing(kit: Kit, dtype: str, dead: int, blind: int) -> None:
    """Diagonal moments with a zero each and no damping: no patch for the dead output, all of what is seen elsewhere."""
    d = np.diag([1.0, 2.0, 4.0, 8.0])[:, :3] + np.eye(4)[:, [1, 2, 0]] * 2.0
    g, c = np.diag([1.0, 4.0, 16.0, 64.0]), np.diag([1.0, 4.0, 16.0])
    g[dead, dead], c[blind, blind] = 0.0, 0.0
    found = kit.call(
        "divergence_patch", d.astype(dtype), c.astype(dtype), g.astype(dtype), rank=3, damping=0.0, tolerance=0.0
    )
    kit.require(bool(np.all(np.isfinite(found.B)) and np.all(np.isfinite(found.A))), "the patch is not finite")
    product = found.B.astype(np.float64) @ found.A.astype(np.float64)
    kit.check(compare.exact(product[dead], np.zeros(3), "patch of the output that nothing depends on"))
    seen = np.delete(np.arange(3), blind)
    alive = np.delete(np.arange(4), dead)
    slip = compare.gamma(64, kit.u(d.astype(dtype), result=found.B)) * 64 * np.abs(d).max()
    kit.check(
        compare.forward(product[np.ix_(alive, seen)], d[np.ix_(alive, seen)], slip, "patch of inputs that are seen")
    )


@st.composite
def distributions(draw: st.DrawFn) -> Array:
    """Logits of a few positions: even, peaked, with tokens that cannot come, and of one token."""
    dtype = draw(strategies.float_dtypes())
    rows, size = draw(st.integers(1, 40)), draw(st.sampled_from([1, 2, 3, 7, 50]))
    logits = draw(strategies.integers((rows, size), 12)).astype(np.float64) / 4
    if draw(st.booleans()):
        logits[:, draw(st.integers(0, size - 1))] -= 1000.0
    return logits.astype(dtype)


FIRST = st.sampled_from([0, 1, 77, 2**31 - 20, 2**32 - 64])


@clause("F-4", tier="tie-band", logits=distributions(), seed=strategies.seeds(), first=FIRST)
def test_labels(kit: Kit, logits: Array, seed: int, first: int) -> None:
    """The least label at which the summed distribution exceeds the uniform of its position, up to rounding."""
    found = kit.call("draw_labels", logits, seed=seed, first=first)
    wide = logits.astype(np.float64)
    rows, size = wide.shape
    kit.require(found.shape == (rows,), f"labels have shape {found.shape}, expected {(rows,)}")
    kit.require(bool(np.all((found >= 0) & (found < size))), "a label is outside the vocabulary")
    counters = np.zeros((rows, 4), np.int64)
    counters[:, 0], counters[:, 3] = first + np.arange(rows), 8
    draws = kit.spec.philox_uniform(counters, seed=seed)
    u = draws[:, 0] + draws[:, 1] * 2.0**-24
    shares = np.exp(wide - wide.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    ends = np.cumsum(shares, 1)
    at = np.arange(rows)
    end, start = ends[at, found], ends[at, found] - shares[at, found]
    kit.require(bool(np.all(shares[at, found] > 0)), "a label that has no probability")
    slip = compare.gamma(2 * size + 8, kit.u(logits)) + compare.gamma(2 * size + 8, U64)
    outside = np.maximum(np.maximum(start - u, u - end), 0.0)
    kit.check(
        compare.forward(outside, np.zeros(rows), np.full(rows, slip), "distance of the uniform from the label's share")
    )


@clause("F-4a", tier="exact", logits=distributions(), seed=strategies.seeds(), cut=st.integers(0, 40))
def test_labels_do_not_depend_on_grouping(kit: Kit, logits: Array, seed: int, cut: int) -> None:
    """Positions in two calls, the second from where the first ended."""
    cut = min(cut, len(logits))
    whole = kit.call("draw_labels", logits, seed=seed, first=5)
    parts = [
        kit.call("draw_labels", logits[rows], seed=seed, first=5 + start)
        for rows, start in ((slice(None, cut), 0), (slice(cut, None), cut))
    ]
    kit.check(compare.exact(np.concatenate(parts), whole, "labels drawn in two calls"))
