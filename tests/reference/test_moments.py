"""Chapter C: second moments. The point is bytes: no way of splitting the work may show."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lowbit.reference as ref
from lowbit.reference.errors import SpecError
from lowbit.reference.types import MomentNode

from .bounds import LAW, Array, near

Nodes = tuple[MomentNode[Any], ...]


def sequence(index: int, *, k: int = 3, tokens: int = 4) -> Array:
    return np.random.default_rng(index).standard_normal((tokens, k)) * 10.0 ** (index % 5)


def leaf(index: int) -> Nodes:
    return ref.moment_leaf(sequence(index), index=index)


def same_bytes(a: Nodes, b: Nodes) -> bool:
    return [(n.level, n.index, n.tokens, n.sum.tobytes(), n.magnitude.tobytes()) for n in a] == [
        (n.level, n.index, n.tokens, n.sum.tobytes(), n.magnitude.tobytes()) for n in b
    ]


def test_c1_leaf_is_the_gram_matrix_exactly_symmetric() -> None:
    X = sequence(7, k=17, tokens=50)
    (node,) = ref.moment_leaf(X, index=7)
    np.testing.assert_array_equal(node.sum, node.sum.T)
    near(node.sum, X.T @ X, roundings=50, magnitude=np.abs(X).T @ np.abs(X))
    near(node.magnitude, np.abs(X).sum(axis=0), roundings=50)
    assert (node.level, node.index, node.tokens, node.sum.dtype) == (0, 7, 50, np.float64)


def test_c1_an_empty_sequence_and_refusals() -> None:
    (node,) = ref.moment_leaf(np.zeros((0, 3)), index=0)
    assert node.tokens == 0
    assert not node.sum.any()
    with pytest.raises(SpecError, match=r"\[C-1\] index must be at least 0, got -1"):
        ref.moment_leaf(np.ones((2, 2)), index=-1)
    with pytest.raises(SpecError, match=r"\[C-1\] x must have 2 dimensions"):
        ref.moment_leaf(np.ones((2, 2, 2)), index=0)


@LAW
@given(st.data(), st.sets(st.integers(0, 40), min_size=1, max_size=16))
def test_c2_any_order_and_any_split_give_the_same_bytes(data: st.DataObject, leaves: set[int]) -> None:
    in_order: Nodes = ()
    for i in sorted(leaves):
        in_order = ref.moment_merge(in_order, leaf(i))
    pool: list[Nodes] = [leaf(i) for i in data.draw(st.permutations(sorted(leaves)))]
    while len(pool) > 1:  # merge any two, in any order: batches, processes, resumed runs
        a = pool.pop(data.draw(st.integers(0, len(pool) - 1)))
        b = pool.pop(data.draw(st.integers(0, len(pool) - 1)))
        pool.append(ref.moment_merge(a, b))
    assert same_bytes(pool[0], in_order)
    one, other = ref.moment_total(pool[0]), ref.moment_total(in_order[::-1])
    assert one.matrix.tobytes() == other.matrix.tobytes()
    assert one.magnitude.tobytes() == other.magnitude.tobytes()
    starts = [n.index << n.level for n in in_order]
    assert starts == sorted(starts)
    pairs = {(n.level, n.index ^ 1) for n in in_order} & {(n.level, n.index) for n in in_order}
    assert not pairs  # siblings have met


def test_c2_what_is_kept_is_one_node_per_bit_of_the_number_of_leaves() -> None:
    nodes: Nodes = ()
    for i in range(37):
        nodes = ref.moment_merge(nodes, ref.moment_leaf(np.ones((1, 1)), index=i))
        assert len(nodes) == (i + 1).bit_count()


def test_c2_a_running_sum_would_show_the_order() -> None:
    parts = [leaf(i)[0].sum for i in range(8)]
    assert sum(parts).tobytes() != sum(reversed(parts)).tobytes()  # type: ignore[union-attr]


def test_c2_tree_of_a_gap_passes_the_other_side_through() -> None:
    S = {i: leaf(i)[0].sum for i in (0, 1, 2, 5)}
    nodes: Nodes = ()
    for i in S:
        nodes = ref.moment_merge(nodes, leaf(i))
    assert [(n.level, n.index) for n in nodes] == [(1, 0), (0, 2), (0, 5)]
    total = ref.moment_total(nodes)
    np.testing.assert_array_equal(total.matrix, (((S[0] + S[1]) + S[2]) + S[5]) / 16)
    assert total.tokens == 16


@LAW
@given(st.sets(st.integers(0, 2**40), min_size=1, max_size=12))
def test_c2_total_is_the_mean_over_tokens_whatever_is_missing(leaves: set[int]) -> None:
    X = {i: np.random.default_rng(i % 97).integers(-3, 4, (2, 2)).astype(float) for i in leaves}  # exact sums
    nodes: Nodes = ()
    for i in leaves:
        nodes = ref.moment_merge(nodes, ref.moment_leaf(X[i], index=i))
    total = ref.moment_total(nodes)
    stacked = np.concatenate(list(X.values()))
    np.testing.assert_array_equal(total.matrix, stacked.T @ stacked / len(stacked))
    np.testing.assert_array_equal(total.magnitude, np.abs(stacked).sum(axis=0) / len(stacked))
    assert total.tokens == len(stacked)


def test_c2_refusals() -> None:
    both = ref.moment_merge(leaf(2), leaf(3))
    with pytest.raises(SpecError, match=r"\[C-2\] leaf 3 is in both sets"):
        ref.moment_merge(both, leaf(3))
    with pytest.raises(SpecError, match=r"\[C-2\] leaf 2 is in both sets"):
        ref.moment_merge(leaf(2), both)
    with pytest.raises(SpecError, match=r"\[C-2\] nodes of different widths: \(3, 3\) and \(2, 2\)"):
        ref.moment_merge(leaf(0), ref.moment_leaf(np.ones((1, 2)), index=1))
    for nothing in ((), ref.moment_leaf(np.zeros((0, 2)), index=0)):
        with pytest.raises(SpecError, match=r"\[C-2\] a moment set without tokens has no mean"):
            ref.moment_total(nothing)
    assert ref.moment_merge((), ()) == ()


def test_c2_merging_writes_to_neither_side() -> None:
    a, b = leaf(0), leaf(1)
    before = a[0].sum.tobytes(), b[0].sum.tobytes()
    merged = ref.moment_merge(a, b)
    merged[0].sum[:] = 0
    assert (a[0].sum.tobytes(), b[0].sum.tobytes()) == before


# --- C-3 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [1, 5, 64])
def test_c3_weights_are_the_published_ones(total: int) -> None:
    """Sample j of N weighs (N / (N + 1))^(N − 1 − j) / N, so the first is 0.37 of the last and order matters."""
    samples = [np.eye(total)[j].reshape(1, 1, total) for j in range(total)]  # sample j only feeds C_jj
    got = np.diag(ref.recency_moment(samples, total=total))
    want = [Fraction(total, total + 1) ** (total - 1 - j) / total for j in range(total)]
    near(got, [float(w) for w in want], roundings=4 * total)
    if total == 64:
        assert 0.37 < got[0] / got[-1] < 0.38
        assert 0.63 < got.sum() < 0.64


def test_c3_batches_decay_by_their_size_and_order_matters() -> None:
    X = [sequence(i).reshape(1, 4, 3) for i in range(3)]
    one = ref.recency_moment([np.concatenate(X[:2]), X[2]], total=3)
    want = sum(x[0].T @ x[0] for x in X[:2]) / 3 * 3 / 4 + X[2][0].T @ X[2][0] / 3
    near(one, want, roundings=20, magnitude=np.abs(want).max())
    assert not np.array_equal(one, ref.recency_moment(X, total=3))
    assert not np.array_equal(ref.recency_moment(X, total=3), ref.recency_moment(X[::-1], total=3))


def test_c3_differs_from_the_mean_of_the_paper_by_more_than_scale() -> None:
    X = [np.random.default_rng(i).standard_normal((1, 4, 3)) for i in range(4)]
    nodes: Nodes = ()
    for i, x in enumerate(X):
        nodes = ref.moment_merge(nodes, ref.moment_leaf(x[0], index=i))
    mean, recency = ref.moment_total(nodes).matrix, ref.recency_moment(X, total=4)
    ratio = recency / mean
    assert ratio.max() > 1.01 * ratio.min()


def test_c3_refusals() -> None:
    with pytest.raises(SpecError, match=r"\[C-3\] total must be at least 1, got 0"):
        ref.recency_moment([np.ones((1, 1, 1))], total=0)
    with pytest.raises(SpecError, match=r"\[C-3\] batches must be \(b, T, k\) of one k, got \[\]"):
        ref.recency_moment([], total=1)
    with pytest.raises(SpecError, match=r"\[C-3\] batches must be \(b, T, k\) of one k"):
        ref.recency_moment([np.ones((1, 1, 2)), np.ones((1, 1, 3))], total=2)
    with pytest.raises(SpecError, match=r"\[A-4\] batches\[1\] holds inf at \(0, 0, 0\)"):
        ref.recency_moment([np.ones((1, 1, 1)), np.full((1, 1, 1), np.inf)], total=2)
