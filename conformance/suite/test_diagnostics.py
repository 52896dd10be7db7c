"""Chapter W: order of attention, ranges and norms, and power iteration with its certificate."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from lowbit.conformance import compare, strategies
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array

SEPARATED = 0.9  # ratio of magnitudes up to which some hundred power steps tell them apart


@st.composite
def map_pairs(draw: st.DrawFn, *, ties: bool) -> tuple[Array, Array]:
    """Two (H, n, n): ties draw few values, of which a row has many alike."""
    heads, n = draw(st.integers(1, 3)), draw(st.integers(1, 7))
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    levels = 4 if ties else 99
    dtype = draw(strategies.float_dtypes(half=True))
    student, teacher = (random.integers(0, levels, (heads, n, n)) / 128 for _ in range(2))
    return student.astype(dtype), teacher.astype(dtype)


@clause("W-6", tier="forward-error", maps=map_pairs(ties=True), pairs=["published", "once"])
def test_misordered_pairs(kit: Kit, maps: tuple[Array, Array], pairs: str) -> None:
    """One by one; a pair that is equal in the teacher costs nothing."""
    found = kit.call("ranking_loss", *maps, pairs=pairs)
    student, teacher = (m.astype(np.float64) for m in maps)
    n = student.shape[1]
    expected = np.zeros(len(student))
    for h, r in np.ndindex(student.shape[:2]):
        for i, j in np.ndindex(n, n):
            if (i < j) if pairs == "once" else (i < n - 1 and j > 0):
                order = np.sign(teacher[h, r, i] - teacher[h, r, j])
                expected[h] += max(0.0, float(-(student[h, r, i] - student[h, r, j]) * order))
    u = kit.u(maps[0], result=found)
    kit.check(compare.forward(found, expected, compare.gamma(n**3 + 4, u) * expected, "ranking loss"))


def places(row: Array) -> list[int]:
    """Keys in descending order, equal ones by index."""
    return sorted(range(len(row)), key=lambda j: (-float(row[j]), j))


def covered(student: Array, teacher: Array, top: int, rows: int) -> Array:
    """By sorting."""
    n = student.shape[1]
    total = [
        sum(max(places(student[h, r]).index(j) for j in places(teacher[h, r])[:top]) for r in range(rows))
        for h in range(len(student))
    ]
    return np.asarray(np.array(total) / n**2)


@clause("W-7", tier="forward-error", maps=map_pairs(ties=False), data=st.data())
def test_cover_length(kit: Kit, maps: tuple[Array, Array], data: Any) -> None:
    """With and without the last row; the divisor is n in both."""
    n = maps[0].shape[1]
    top, rows = data.draw(st.integers(1, n)), data.draw(st.sampled_from(["published", "all"]))
    found = kit.call("cover_length", *maps, top=top, rows=rows)
    expected = covered(*maps, top, n if rows == "all" else n - 1)
    u = kit.u(maps[0], result=found)
    kit.check(compare.forward(found, expected, compare.gamma(n + 4, u) * expected, "cover length"))


@clause("W-7a", tier="exact", maps=map_pairs(ties=True), data=st.data())
def test_ties_of_the_cover(kit: Kit, maps: tuple[Array, Array], data: Any) -> None:
    """Many equal values in both networks; sums of places come out as integers."""
    n = maps[0].shape[1]
    top = data.draw(st.integers(1, n))
    found = kit.call("cover_length", *maps, top=top, rows="all")
    kit.check(compare.exact(np.rint(found * n**2), np.rint(covered(*maps, top, n) * n**2), "places"))


@clause("W-8", tier="exact", x=strategies.matrices())
def test_ranges(kit: Kit, x: Array) -> None:
    """Row by row."""
    found = kit.call("attention_range", x)
    kit.check(compare.exact(found.low, np.array([min(row) for row in x.tolist()]), "low"))
    kit.check(compare.exact(found.high, np.array([max(row) for row in x.tolist()]), "high"))


@st.composite
def layers(draw: st.DrawFn) -> tuple[Array, Array, Array, Array | None, Array]:
    """Maps, inputs and weights of a small attention layer, with and without a bias."""
    heads, n, d, width, m = (draw(st.integers(1, 4)) for _ in range(5))
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    dtype = draw(strategies.float_dtypes(half=True))

    def numbers(*shape: int) -> Array:
        return (random.integers(-20, 21, shape) / 16).astype(dtype)

    maps = np.abs(numbers(heads, n, n))
    bias = numbers(heads * width) if draw(st.booleans()) else None
    return maps, numbers(n, d), numbers(heads * width, d), bias, numbers(m, heads * width)


@clause("W-9", tier="forward-error", layer=layers())
def test_norms(kit: Kit, layer: tuple[Array, Array, Array, Array | None, Array]) -> None:
    """Head by head and token by token; every query's share is weighed, not only the mean."""
    found = kit.call("attention_norms", *layer)
    maps, x, w_v, w_o = (layer[i].astype(np.float64) for i in (0, 1, 2, 4))  # type: ignore[union-attr]
    bias = np.zeros(len(w_v)) if layer[3] is None else layer[3].astype(np.float64)
    heads, n = maps.shape[:2]
    width, u = len(w_v) // heads, kit.u(layer[0], result=found.value)
    terms = x.shape[1] + width + len(w_o) + 8
    value, weighted, slack = (np.zeros((heads, n)) for _ in range(3))
    for h, k in np.ndindex(heads, n):
        own = slice(h * width, (h + 1) * width)
        f = w_o[:, own] @ (w_v[own] @ x[k] + bias[own])
        bulk = np.abs(w_o[:, own]) @ (np.abs(w_v[own]) @ np.abs(x[k]) + np.abs(bias[own]))
        value[h, k], slack[h, k] = np.linalg.norm(f), compare.gamma(terms, u) * np.linalg.norm(bulk)
        weighted[h, k] = np.mean([np.linalg.norm(maps[h, i, k] * f) for i in range(n)])
    seen = maps.mean(axis=1)
    kit.check(compare.forward(found.probability, seen, compare.gamma(n + 2, u) * seen, "probability"))
    kit.check(compare.forward(found.value, value, 2 * slack + kit.tiny(terms), "value"))
    allowed = seen * 2 * slack + compare.gamma(n + 4, u) * weighted + kit.tiny(terms)
    kit.check(compare.forward(found.weighted, weighted, allowed, "weighted"))


@st.composite
def symmetric(draw: st.DrawFn) -> tuple[Array, Array]:
    """A symmetric matrix with eigenvalues of both signs, and general starts."""
    p = draw(st.integers(1, 8))
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    values = random.integers(-40, 41, (p, p)) / 8
    count = draw(st.integers(1, min(p, 3)))
    start = random.integers(1, 30, (count, p)) * random.choice([-1, 1], (count, p)) + 100 * np.eye(count, p)
    dtype = draw(strategies.float_dtypes())
    return (np.triu(values) + np.triu(values, 1).T).astype(dtype), start.astype(dtype)


def product_error(matrix: Array, u: float) -> float:
    """Bound on ‖H v‖'s rounding, and on that of a Rayleigh quotient, for unit vectors."""
    p = len(matrix)
    return compare.gamma(4 * p + 16, u) * float(np.linalg.norm(matrix.astype(np.float64)))


def called(kit: Kit, problem: tuple[Array, Array], matrix_free: bool, **options: Any) -> Any:
    """The call, with the matrix or with a function on arrays of the backend."""
    matrix, start = problem
    if not matrix_free:
        return kit.call("power_eigenvalues", matrix, start, **options)
    own = kit.backend.asarray(matrix)
    return kit.convert("power_eigenvalues", kit.backend.power_eigenvalues(lambda v: own @ v, kit.own(start), **options))


@clause(
    "W-10",
    tier="forward-error",
    problem=symmetric(),
    free=st.booleans(),
    stop=["change", "residual"],
    shift=[0.0, 3.0, -20.0],
)
def test_quotient_and_residual(kit: Kit, problem: tuple[Array, Array], free: bool, stop: str, shift: float) -> None:
    """However the iteration ended: unit vectors, orthogonal to each other, their quotients and residuals."""
    found = called(kit, problem, free, stop=stop, shift=shift, iterations=20)
    matrix, vectors = problem[0].astype(np.float64), found.vector.astype(np.float64)
    u = kit.u(problem[0], result=found.value)
    allowed = product_error(problem[0], u) + compare.gamma(len(matrix) + 8, u) * abs(shift)
    gram = vectors @ vectors.T
    drift = compare.orthogonality(len(matrix), u) + kit.tiny()
    kit.check(compare.forward(gram, np.eye(len(gram)), np.full(gram.shape, drift), "inner products"))
    products = vectors @ matrix
    quotient = (products * vectors).sum(axis=1)
    off = np.linalg.norm(products - quotient[:, None] * vectors, axis=1)
    kit.check(compare.forward(found.value, quotient, np.full(quotient.shape, allowed), "value"))
    kit.check(compare.forward(found.residual, off, np.full(off.shape, 2 * allowed), "residual"))


@clause("W-10a", tier="forward-error", dtype=strategies.WIDE_FLOATS, steps=st.integers(1, 6), seed=st.integers(0, 99))
def test_power_steps(kit: Kit, dtype: str, steps: int, seed: int) -> None:
    """Diagonal powers of two, whose powers are exact: the second vector is held orthogonal to the first, e_0."""
    random = np.random.default_rng(seed)
    values = np.array([16.0, -4.0, 2.0, 1.0, -0.5])
    first, second = np.eye(5)[0], random.integers(1, 9, 5).astype(np.float64)
    options = {"iterations": steps, "tolerance": 0.0, "stop": "residual"}
    found = kit.call("power_eigenvalues", np.diag(values).astype(dtype), np.array([first, second], dtype), **options)
    weight = np.where(np.arange(5) > 0, second**2 * values ** (2 * (steps - 1)), 0.0)
    expected = np.array([16.0, (weight * values).sum() / weight.sum()])
    u = kit.u(np.dtype(dtype), result=found.value)
    size = np.array([16.0, (weight * np.abs(values)).sum() / weight.sum() + np.abs(expected[1])])
    kit.check(compare.forward(found.value, expected, compare.gamma(8 * (steps + 2) * 5, u) * size, "value"))
    kit.check(compare.exact(found.steps, np.array([1, steps]), "steps"))


@clause("W-10b", tier="certificate", problem=symmetric(), shift=[0.0, 15.0, -15.0])
def test_eigenvalue_within_the_residual(kit: Kit, problem: tuple[Array, Array], shift: float) -> None:
    """Of the nearest eigenvalue; and a long iteration reaches the extreme one of the shifted spectrum, if it is one."""
    found = kit.call(
        "power_eigenvalues", *problem, iterations=300, stop="residual", tolerance=strategies.TOLERANCES[0], shift=shift
    )
    spectrum = np.linalg.eigvalsh(problem[0].astype(np.float64))
    u = kit.u(problem[0], result=found.value)
    slack = product_error(problem[0], u) + compare.gamma(len(spectrum) + 8, u) * abs(shift)
    slack += compare.weyl(float(np.abs(spectrum).max()), len(spectrum), u)
    for value, residual in zip(found.value.tolist(), found.residual.tolist(), strict=True):
        kit.check(compare.certificate(np.abs(spectrum - value).min(), residual, 2 * slack + kit.tiny(), "distance"))
    moved = np.sort(np.abs(spectrum - shift))[::-1]
    if len(moved) == 1 or moved[1] < moved[0] * SEPARATED:
        reached = abs(float(found.value[0]) - shift)
        kit.check(compare.certificate(moved[0], reached, 4 * slack + 2 * float(found.residual[0]), "extreme"))


@clause("W-10c", tier="exact")
def test_when_to_stop(kit: Kit) -> None:
    """The change rule needs two steps; the residual rule can do with one; the last step is counted."""
    matrix, start = np.diag([4.0, 1.0]).astype(np.float32), np.array([[1.0, 0.0]], np.float32)
    mixed = np.array([[1.0, 1.0]], np.float32)
    for rule, vector, tolerance, most, steps in (
        ("residual", start, 0.5, 9, 1),
        ("change", start, 0.5, 9, 2),
        ("change", start, 0.5, 1, 1),
        ("residual", mixed, 0.0, 4, 4),
        # quotients 5/2, 65/17 = 3.82, 1025/257 = 3.988: changes of 0.53 and 0.043 of the value before
        ("change", mixed, 0.5, 9, 3),
        ("change", mixed, 0.75, 9, 2),
        # residuals 1.5, 0.71, 0.19: 0.6, 0.18 and 0.047 of the value
        ("residual", mixed, 0.25, 9, 2),
        ("residual", mixed, 0.125, 9, 3),
    ):
        found = kit.call("power_eigenvalues", matrix, vector, iterations=most, tolerance=tolerance, stop=rule)
        kit.check(compare.exact(found.steps, np.array([steps]), f"steps of {rule} with {tolerance}"))
    found = kit.call("power_eigenvalues", np.zeros((2, 2), np.float32), mixed)
    kit.check(compare.exact(np.array([found.value[0], found.residual[0], found.steps[0]]), np.array([0, 0, 1]), "zero"))
