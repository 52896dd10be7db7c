"""Chapter M: bits by word frequency and by sensitivity, and the projection while retraining."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lowbit.conformance import compare, laws, strategies
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array
from lowbit.reference.types import BitAllocation


class Allocation(NamedTuple):
    """Errors and sizes of a few blocks at 1 … Q bits, and a budget."""

    errors: Array  # (n, Q)
    sizes: Array  # int32, (n, Q)
    budget: int


@st.composite
def allocations(draw: st.DrawFn, *, convex: bool = False, whole: bool = False) -> Allocation:
    """So few blocks that every allocation can be tried. ``convex``: falling gains, steps of one size for all blocks.

    ``whole``: integers, so that sums and comparisons of slopes are exact or far apart. Convex errors are integers times
    a power of two: rounded, they would be convex no more, and a hull may skip what only its rounding has bent.
    """
    dtype = draw(strategies.float_dtypes())
    n, widths = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    gains = draw(arrays(np.int64, (n, widths), elements=st.integers(0 if convex else -9, 40), fill=st.nothing()))
    if convex:
        gains = np.sort(gains, axis=1)
        sizes = np.tile(draw(st.integers(1, 9)) * np.arange(1, widths + 1), (n, 1))
    else:
        sizes = np.cumsum(draw(arrays(np.int64, (n, widths), elements=st.integers(1, 9), fill=st.nothing())), axis=1)
    units = (2.0**-6, 1.0, 2.0**3) if convex else (1.0,) if whole else strategies.UNITS
    errors = np.cumsum(gains, axis=1)[:, ::-1] * draw(st.sampled_from(units))
    low, high = int(sizes[:, 0].sum()), int(sizes[:, -1].sum())
    return Allocation(errors.astype(dtype), sizes.astype(np.int32), draw(st.integers(low, high + 2)))


COUNTS = st.integers(0, 40).flatmap(lambda v: arrays(np.int32, (v,), elements=st.integers(0, 6), fill=st.nothing()))


def by_rank(order: list[int], clusters: int, ratio: int) -> Array:
    """Bits of the words of a list in descending order of frequency."""
    bits, start, v = np.full(len(order), 1, np.int32), 0, len(order)
    for i in range(clusters - 1):
        stop = start + v * ratio**i // sum(ratio**j for j in range(clusters))
        bits[order[start:stop]] = clusters - i
        start = stop
    return bits


@clause("M-1", tier="exact", v=st.integers(0, 60), clusters=st.integers(1, 8), ratio=st.integers(1, 9))
def test_clusters_of_words(kit: Kit, v: int, clusters: int, ratio: int) -> None:
    """Different counts in an order that is no order of ids; floors, and what is left goes to the rarest words."""
    order = sorted(range(v), key=lambda j: (j * 17) % max(v, 1) * 1000 + j)
    counts: Array = np.zeros(v, np.int32)
    counts[order] = 3 * np.arange(v, 0, -1)
    found = kit.call("row_bits", counts, clusters=clusters, ratio=ratio)
    kit.check(compare.exact(found, by_rank(order, clusters, ratio), "bits"))


@clause("M-1", tier="exact", dtype=["int32", "int64"])
def test_large_vocabularies(kit: Kit, dtype: str) -> None:
    """Integer arithmetic: floors of exact quotients at 32768 words, and counts beyond float32."""
    v = 32768
    counts = np.asarray(np.arange(v, 0, -1) + 2**30, dtype)
    for clusters, ratio in ((4, 1), (4, 2), (4, 4), (3, 8), (8, 9)):
        found = kit.call("row_bits", counts, clusters=clusters, ratio=ratio)
        kit.check(compare.exact(found, by_rank(list(range(v)), clusters, ratio), f"bits of {clusters} clusters"))


@clause("M-1a", tier="exact", counts=COUNTS, clusters=st.integers(1, 4), ratio=st.integers(1, 3))
def test_equally_frequent_words_go_by_id(kit: Kit, counts: Array, clusters: int, ratio: int) -> None:
    """Few different counts, so that most borders of clusters split a tie."""
    order = sorted(range(len(counts)), key=lambda j: (-int(counts[j]), j))
    found = kit.call("row_bits", counts, clusters=clusters, ratio=ratio)
    kit.check(compare.exact(found, by_rank(order, clusters, ratio), "bits"))


@clause("M-1a", tier="exact", clusters=st.integers(2, 4))
def test_many_words_of_equal_frequency(kit: Kit, clusters: int) -> None:
    """Thousands of ties: sorting that is not stable shows."""
    counts = np.asarray((np.arange(6000) * 7919) % 3, np.int32)
    order = sorted(range(len(counts)), key=lambda j: (-int(counts[j]), j))
    found = kit.call("row_bits", counts, clusters=clusters)
    kit.check(compare.exact(found, by_rank(order, clusters, 1), "bits"))


def allocate(kit: Kit, case: Allocation) -> BitAllocation[Array]:
    """The backend's answer, within the budget and honest about its size and error."""
    found: BitAllocation[Array] = kit.call("allocate_bits", case.errors, case.sizes, budget=case.budget)
    n, widths = case.errors.shape
    kit.require(bool(np.all((found.bits >= 1) & (found.bits <= widths))), f"bits {found.bits} are not in 1..{widths}")
    rows = np.arange(n), found.bits - 1
    size, error = int(case.sizes[rows].sum()), case.errors.astype(np.float64)[rows]
    kit.require(int(found.size) == size, f"size is {found.size}, the blocks take {size}")
    kit.require(size <= case.budget, f"size {size} is above the budget {case.budget}")
    allowed = compare.gamma(n, kit.u(case.errors)) * np.abs(error).sum() + kit.tiny()
    kit.check(compare.forward(float(found.error), float(error.sum()), allowed, "error"))
    return found


@clause("M-2", tier="exact", case=allocations(whole=True))
def test_greedy_along_the_hulls(kit: Kit, case: Allocation) -> None:
    """Integers: slopes are equal or far apart, so the bits are determined, misfits and all."""
    found, expected = allocate(kit, case), kit.spec.allocate_bits(case.errors, case.sizes, budget=case.budget)
    kit.check(compare.exact(found.bits, expected.bits, "bits"))
    kit.check(compare.exact(float(found.error), expected.error, "error"))


@clause("M-2", tier="exact", dtype=strategies.WIDE_FLOATS)
def test_misfits_and_points_above_the_hull(kit: Kit, dtype: str) -> None:
    """A width that is never worth its size, one that is too dear for the budget, and errors that rise."""
    table = [
        ([[100, 0, -1], [5, 4, 3.5]], [[1, 9, 10], [1, 2, 3]], 5, [1, 3]),
        ([[10, 9.75, 0, 1]], [[1, 2, 3, 4]], 4, [3]),
        ([[10, 9.75, 0]], [[1, 2, 3]], 2, [2]),
        ([[10, 11, 0]], [[1, 2, 3]], 2, [1]),
        ([[10, 9, 9, 0]], [[1, 2, 3, 4]], 3, [2]),
        ([[1, 2, 3], [3, 2, 1]], [[1, 2, 3], [2, 4, 6]], 9, [1, 3]),
        ([[8, 4, 0], [7, 4, 1.5]], [[1, 2, 3], [1, 2, 3]], 4, [3, 1]),
    ]
    for errors, sizes, budget, bits in table:
        found = allocate(kit, Allocation(np.array(errors, dtype), np.array(sizes, np.int32), budget))
        kit.check(compare.exact(found.bits, bits, f"bits for {errors}, {sizes}, budget {budget}"))


@clause("M-2a", tier="certificate", case=allocations(convex=True))
def test_convex_errors_reach_the_optimum(kit: Kit, case: Allocation) -> None:
    """Falling gains and steps of one size: the best of all allocations, each of them tried."""
    found = allocate(kit, case)
    best = laws.least_error(case.errors, case.sizes, case.budget)
    n = case.errors.size
    slack = compare.gamma(n + 2, kit.u(case.errors)) * float(np.abs(case.errors.astype(np.float64)).sum()) + kit.tiny(n)
    kit.check(compare.certificate(float(found.error), best, slack, "error"))


@clause("M-2b", tier="exact", dtype=strategies.WIDE_FLOATS, blocks=st.integers(1, 4), widths=st.integers(2, 4))
def test_equal_slopes(kit: Kit, dtype: str, blocks: int, widths: int) -> None:
    """Errors on one line, the same for every block: bits are bought one by one, block after block."""
    errors = np.tile(np.arange(widths, 0, -1.0), (blocks, 1)).astype(dtype)
    sizes = np.tile(np.arange(1, widths + 1, dtype=np.int32), (blocks, 1))
    for extra in range(blocks * (widths - 1) + 1):
        found = allocate(kit, Allocation(errors, sizes, blocks + extra))
        expected = [1 + min(max(extra - j * (widths - 1), 0), widths - 1) for j in range(blocks)]
        kit.check(compare.exact(found.bits, expected, f"bits with {extra} steps"))


@clause("M-2b", tier="exact", dtype=st.just("float64"))
def test_points_on_one_line_keep_their_order(kit: Kit, dtype: str) -> None:
    """0.1, −2.3, −4.7: rounding makes the second slope the larger one; taken first, it would skip a width."""
    errors, sizes = np.array([[0.1, -2.3, -4.7]] * 2, dtype), np.array([[1, 2, 3]] * 2, np.int32)
    for budget, bits in ((2, [1, 1]), (3, [2, 1]), (4, [3, 1]), (5, [3, 2]), (6, [3, 3])):
        kit.check(compare.exact(allocate(kit, Allocation(errors, sizes, budget)).bits, bits, "bits"))


@clause("M-2c", tier="certificate", case=allocations())
def test_lower_bound_of_any_allocation(kit: Kit, case: Allocation) -> None:
    """The relaxation is below the best of all allocations, and above the error by less than the step that misfits."""
    found = allocate(kit, case)
    errors = case.errors.astype(np.float64)
    best = laws.least_error(errors, case.sizes, case.budget)
    n = errors.size
    slack = compare.gamma(n + 4, kit.u(case.errors)) * 2 * float(np.abs(errors).sum()) + kit.tiny(n)
    kit.check(compare.certificate(float(found.lower_bound), best, slack, "lower bound"))
    step = float((errors.max(axis=1) - errors.min(axis=1)).max())
    kit.check(compare.certificate(float(found.error), float(found.lower_bound) + step, slack, "error"))
    expected = kit.spec.allocate_bits(case.errors, case.sizes, budget=case.budget).lower_bound
    kit.check(compare.certificate(expected, float(found.lower_bound), slack, "the specification's lower bound"))


@st.composite
def dyadic_rows(draw: st.DrawFn) -> tuple[Array, Array]:
    """Rows of 1, 2, 4, 8 or 16 small integers: means, and all that greedy makes of them, are exact in float32."""
    m, k = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 4, 8, 16]))
    w = draw(strategies.integers((m, k), 9))
    bits = draw(arrays(np.int32, (m,), elements=st.integers(1, 3), fill=st.nothing()))
    return w.astype(draw(strategies.float_dtypes(half=True))), bits


def greedy(row: Array, bits: int) -> Array:
    """Greedy binary code of one row."""
    rest, total = row.astype(np.float64), np.zeros(row.shape)
    for _ in range(bits):
        step = np.abs(rest).sum() / rest.size * np.where(rest < 0, -1.0, 1.0)
        rest, total = rest - step, total + step
    return total


@clause("M-3", tier="exact", case=dyadic_rows())
def test_rows_of_different_widths(kit: Kit, case: tuple[Array, Array]) -> None:
    """Every row by its own bits and by nothing else, residuals of exactly zero included."""
    w, bits = case
    found = kit.call("project_rows", w, bits)
    kit.check(compare.exact(found, [greedy(row, q) for row, q in zip(w, bits, strict=True)], "projected rows"))


@clause("M-3a", tier="forward-error", w=strategies.matrices(columns=(1, 24)), data=st.data())
def test_projection_of_general_rows(kit: Kit, w: Array, data: st.DataObject) -> None:
    """Up to rounding, wherever no residual is so small that rounding may turn its sign.

    A mean of k magnitudes takes k roundings and inherits the mean error of the residuals; a residual inherits its own,
    and adds that of the scale and one rounding. A row is left out from the first plane with an undecided sign.
    """
    bits = np.array(data.draw(st.lists(st.integers(1, 8), min_size=len(w), max_size=len(w))), np.int32)
    found = kit.call("project_rows", w, bits)
    u = kit.u(w, result=found)
    for row in range(len(w)):
        rest, k = w[row].astype(np.float64), w.shape[1]
        error, total = np.zeros(k), np.zeros(k)
        bound, reach = np.zeros(k), np.zeros(k)
        decided = True
        for _ in range(int(bits[row])):
            decided = decided and bool(np.all((np.abs(rest) > error) | ((rest == 0) & (error == 0))))
            scale = np.abs(rest).sum() / k
            slip = compare.gamma(k + 1, u) * (scale + error.mean()) + error.mean() + kit.tiny(k)
            step = np.where(rest < 0, -scale, scale)
            bound, reach, total = bound + slip, reach + scale, total + step
            error = error + slip + u * (np.abs(rest) + scale + error)
            rest = rest - step
        if decided:
            allowed = bound + compare.gamma(int(bits[row]), u) * reach + kit.tiny(8)
            kit.check(compare.forward(found[row], total, allowed, f"row {row} at {bits[row]} bits"))


@clause("M-3b", tier="exact", dtype=strategies.FLOATS, negative=st.booleans(), bits=st.integers(1, 3))
def test_sign_of_zero(kit: Kit, dtype: str, negative: bool, bits: int) -> None:
    """A zero, of the weight or left by a plane, is +: a code without a sign would be no code."""
    zero = -0.0 if negative else 0.0
    w = np.array([[zero, 4, zero, -4], [zero] * 4, [2, -2, 2, -2], [3, -1, 1, -3]], dtype)
    found = kit.call("project_rows", w, np.full(4, bits, np.int32))
    kit.check(compare.exact(found, [greedy(row, bits) for row in w], "projected rows"))


@clause("M-3c", tier="certificate", dtype=strategies.WIDE_FLOATS, method=["refined", "alternating"])
def test_better_codes_for_the_last_projection(kit: Kit, dtype: str, method: str) -> None:
    """Few values per row, no row of an alternating code farther off than its greedy one, and most of the gain there.

    Local optima need not agree row by row; their sum must be nearer to that of the specification than to greedy's.
    """
    w = np.random.default_rng(20240302).standard_normal((24, 96)).astype(dtype)
    bits = np.repeat(np.array([2, 3, 4], np.int32), 8)
    found = {m: kit.call("project_rows", w, bits, method=m) for m in ("greedy", method)}
    spec = kit.spec.project_rows(w, bits, method=method)
    values = w.astype(np.float64)
    plain, better, best = (((values - p) ** 2).sum(axis=1) for p in (found["greedy"], found[method], spec))
    slack = compare.gamma(8 * w.shape[1], kit.u(w, result=found[method])) * (values**2).sum(axis=1)
    for row in range(len(w)):
        count = len(np.unique(found[method][row]))
        kit.require(count <= 2 ** int(bits[row]), f"row {row} holds {count} values at {bits[row]} bits")
        if method == "alternating":
            kit.check(compare.certificate(float(better[row]), float(plain[row]), float(slack[row]), f"error of {row}"))
    halfway = float(plain.sum() + best.sum()) / 2
    kit.check(compare.certificate(float(better.sum()), halfway, float(slack.sum()), f"summed error of {method}"))
