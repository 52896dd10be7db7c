"""Chapter C, first half: second moments of activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lowbit.conformance import compare, strategies
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array


@st.composite
def activations(draw: st.DrawFn, *, features: tuple[int, int] = (1, 8), half: bool = False) -> Array:
    """Tokens (T, k): outlier features, dead features, few tokens."""
    k, tokens = draw(st.integers(*features)), draw(st.integers(1, 24))
    x = draw(strategies.integers((tokens, k), 99)) * draw(st.sampled_from(strategies.UNITS))
    if draw(st.booleans()):
        x = x * np.ldexp(1.0, draw(arrays(np.int64, (k,), elements=st.sampled_from([-6, 0, 0, 5]))))
    if draw(st.booleans()):
        x[:, draw(arrays(np.bool_, (k,)))] = 0.0
    return np.clip(x, -6e4, 6e4).astype(draw(strategies.float_dtypes(half=half)))


@clause("C-1", tier="forward-error", x=activations(half=True), index=st.integers(0, 40))
def test_leaf_sums_outer_products(kit: Kit, x: Array, index: int) -> None:
    """Σ xᵀx and Σ abs(x), each a sum of T terms in at least the compute dtype."""
    nodes = kit.call("moment_leaf", x, index=index)
    kit.require(len(nodes) == 1, f"{len(nodes)} nodes for one leaf")
    (node,) = nodes
    place = (int(node.level), int(node.index), int(node.tokens))
    kit.require(
        place == (0, index, x.shape[0]), f"(level, index, tokens) is {place}, expected {(0, index, x.shape[0])}"
    )
    wide, u = x.astype(np.float64), kit.u(x)
    sizes = np.abs(wide)
    tokens = x.shape[0]
    allowed = (compare.gamma(tokens, u) + compare.gamma(tokens, compare.unit_roundoff("float64"))) * (sizes.T @ sizes)
    kit.check(compare.forward(node.sum, wide.T @ wide, allowed + kit.tiny(tokens), "sum"))
    allowed = (compare.gamma(tokens, u) + compare.gamma(tokens, compare.unit_roundoff("float64"))) * sizes.sum(axis=0)
    kit.check(compare.forward(node.magnitude, sizes.sum(axis=0), allowed + kit.tiny(tokens), "magnitude"))


@clause("C-1", tier="forward-error", seed=st.integers(0, 2**16), dtype=strategies.WIDE_FLOATS)
def test_leaf_keeps_its_precision_on_long_sums(kit: Kit, seed: int, dtype: str) -> None:
    """300 tokens with full significands: products in TF32 or float16 lose the digits that the bound demands."""
    x = np.random.default_rng(seed).standard_normal((300, 6)).astype(dtype)
    (node,) = kit.call("moment_leaf", x, index=0)
    wide = x.astype(np.float64)
    n = compare.gamma(len(x), kit.u(x)) + compare.gamma(len(x), compare.unit_roundoff("float64"))
    kit.check(compare.forward(node.sum, wide.T @ wide, n * (np.abs(wide).T @ np.abs(wide)), "sum"))


@clause("C-1a", tier="exact", x=activations())
def test_leaf_is_float64_and_symmetric(kit: Kit, x: Array) -> None:
    """One triangle is mirrored, so that Σ equals its transpose in every bit."""
    (node,) = kit.call("moment_leaf", x, index=0)
    kit.require(node.sum.dtype == np.float64, f"sum has dtype {node.sum.dtype}, expected float64")
    kit.require(node.magnitude.dtype == np.float64, f"magnitude has dtype {node.magnitude.dtype}, expected float64")
    kit.check(compare.exact_bytes(np.ascontiguousarray(node.sum.T), np.ascontiguousarray(node.sum), "transposed sum"))


Nodes = Sequence[Any]


def same_nodes(kit: Kit, found: Nodes, expected: Nodes, what: str) -> None:
    """Two moment sets agree in every byte."""
    places = [[(int(n.level), int(n.index), int(n.tokens)) for n in nodes] for nodes in (found, expected)]
    kit.require(places[0] == places[1], f"{what}: nodes {places[0]}, expected {places[1]}")
    for a, b in zip(found, expected, strict=True):
        kit.check(compare.exact_bytes(np.ascontiguousarray(a.sum), np.ascontiguousarray(b.sum), f"{what}: sum"))
        kit.check(compare.exact_bytes(a.magnitude, b.magnitude, f"{what}: magnitude"))


@st.composite
def leaf_sets(draw: st.DrawFn) -> tuple[list[int], int, list[int], list[int]]:
    """Leaves (distinct indices), a seed for their content, and two orders of merging them."""
    leaves = draw(st.lists(st.integers(0, 14), min_size=2, max_size=9, unique=True))
    positions = list(range(len(leaves)))
    return leaves, draw(st.integers(0, 999)), draw(st.permutations(positions)), draw(st.permutations(positions))


def content(leaf: int, seed: int) -> Array:
    """Activations of one leaf: values whose sums depend on their order."""
    random = np.random.default_rng([seed, leaf])
    return np.asarray(random.standard_normal((3, 3)) * 10.0 ** random.integers(-4, 5, (3, 1)), np.float64)


@clause("C-2", tier="exact", case=leaf_sets())
def test_merging_is_associative_and_commutative(kit: Kit, case: tuple[list[int], int, list[int], list[int]]) -> None:
    """One by one in any order, or by halves: the same bytes; siblings are summed left + right in float64."""
    leaves, seed, first, second = case
    single = [kit.raw("moment_leaf", content(leaf, seed), index=leaf) for leaf in leaves]
    merge = kit.backend.moment_merge

    def one_by_one(order: list[int]) -> Any:
        nodes: Any = ()
        for position in order:
            nodes = merge(nodes, single[position])
        return kit.convert("moment_merge", nodes)

    expected = one_by_one(first)
    same_nodes(kit, one_by_one(second), expected, "another order")
    middle = len(leaves) // 2
    halves: list[Any] = []
    for part in (second[:middle], second[middle:]):
        nodes: Any = ()
        for position in part:
            nodes = merge(single[position], nodes)
        halves.append(nodes)
    same_nodes(kit, kit.convert("moment_merge", merge(halves[1], halves[0])), expected, "two halves")
    same_nodes(kit, expected, tree([kit.convert("moment_leaf", s)[0] for s in single]), "the fixed tree")


def tree(nodes: list[Any]) -> list[Any]:
    """The same in plain NumPy: siblings become their parent, left + right, until none are left."""
    known = {(int(n.level), int(n.index)): n for n in nodes}
    for level in range(8):
        for lower, index in sorted(k for k in known if k[0] == level):
            if index % 2 == 0 and (lower, index + 1) in known:
                a, b = known.pop((lower, index)), known.pop((lower, index + 1))
                parent = a._replace(
                    level=level + 1, index=index // 2, sum=a.sum + b.sum, magnitude=a.magnitude + b.magnitude,
                    tokens=a.tokens + b.tokens,
                )  # fmt: skip
                known[level + 1, index // 2] = parent
    return [known[k] for k in sorted(known, key=lambda k: k[1] << k[0])]


@clause("C-2a", tier="forward-error", case=leaf_sets())
def test_total_is_the_mean_over_tokens(kit: Kit, case: tuple[list[int], int, list[int], list[int]]) -> None:
    """Whatever leaves there are, gaps included; and the total does not depend on the order either."""
    leaves, seed, first, second = case
    totals = []
    for order in (first, second):
        nodes: Any = ()
        for position in order:
            leaf = kit.raw("moment_leaf", content(leaves[position], seed), index=leaves[position])
            nodes = kit.backend.moment_merge(nodes, leaf)
        totals.append(kit.convert("moment_total", kit.backend.moment_total(nodes)))
    kit.check(compare.exact_bytes(totals[0].matrix, totals[1].matrix, "matrix in another order"))
    x = np.concatenate([content(leaf, seed) for leaf in leaves])
    kit.require(int(totals[0].tokens) == len(x), f"{totals[0].tokens} tokens, expected {len(x)}")
    bound = compare.gamma(2 * len(x) + 2, compare.unit_roundoff("float64"))
    sizes = np.abs(x)
    kit.check(compare.forward(totals[0].matrix, x.T @ x / len(x), bound * (sizes.T @ sizes) / len(x), "matrix"))
    mean = sizes.mean(axis=0)
    kit.check(compare.forward(totals[0].magnitude, mean, bound * mean, "magnitude"))


@clause("C-2b", tier="exact", leaves=st.lists(st.integers(0, 7), min_size=1, max_size=5, unique=True), data=st.data())
def test_overlapping_leaves_are_refused(kit: Kit, leaves: list[int], data: Any) -> None:
    """A leaf counted twice would bias the mean, also where it hides inside a merged node."""
    nodes: Any = ()
    for leaf in leaves:
        nodes = kit.backend.moment_merge(nodes, kit.raw("moment_leaf", content(leaf, 0), index=leaf))
    again = kit.raw("moment_leaf", content(1, 1), index=data.draw(st.sampled_from(leaves)))
    kit.refused("moment_merge", nodes, again, clauses=("C",))
    if kit.has("moment_total"):
        kit.refused("moment_total", (), clauses=("C",))


@st.composite
def batch_lists(draw: st.DrawFn) -> list[Array]:
    """1 to 4 batches (b, T, 3) of float32 or float64."""
    dtype = draw(strategies.float_dtypes())
    shapes = [(draw(st.integers(1, 3)), 2, 3) for _ in range(draw(st.integers(1, 4)))]
    elements = st.integers(-50, 50)
    return [np.array(draw(st.lists(elements, min_size=b * t * k, max_size=b * t * k)), dtype).reshape(b, t, k) / 7
            for b, t, k in shapes]  # fmt: skip


@clause("C-3", tier="forward-error", batches=batch_lists(), extra=st.integers(0, 5))
def test_recency_weights(kit: Kit, batches: list[Array], extra: int) -> None:
    """Batch i weighs Π_{j>i} N/(N + b_j) / N: the last ones count most."""
    batches = [b.astype(batches[0].dtype) for b in batches]
    total = sum(len(b) for b in batches) + extra
    found = kit.call("recency_moment", batches, total=total)
    expected, size, weight = np.zeros((3, 3)), np.zeros((3, 3)), 1 / total
    for batch in reversed(batches):
        rows = batch.reshape(-1, 3).astype(np.float64)
        expected, size = expected + weight * rows.T @ rows, size + weight * np.abs(rows).T @ np.abs(rows)
        weight *= total / (total + len(batch))
    roundings = sum(b.shape[0] * b.shape[1] for b in batches) + 4 * len(batches)
    u = kit.u(*batches, result=found)
    allowed = (compare.gamma(roundings, u) + compare.gamma(roundings, compare.unit_roundoff("float64"))) * size
    kit.check(compare.forward(found, expected, allowed + kit.tiny(roundings), "moment"))
