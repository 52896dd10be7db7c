"""C: second moments of activations, as a fixed tree of sums, so that no way of splitting the work shows in a bit.

Floating addition is not associative, so "add the batches" depends on batching, on the number of processes and on
where a run was resumed. Here every sequence is a leaf with an index, and leaves are added along one binary tree:

    level 2        (2, 0)                    node (l, j) covers leaves j 2^l … (j + 1) 2^l − 1
    level 1    (1, 0)   (1, 1)               two nodes with the same parent are added as soon as both are there
    leaves     0    1   2    3               a set of leaves has one set of nodes, whoever met first

What is kept is a few matrices (one per bit of the number of leaves), not one per leaf.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from . import checks
from .checks import F64, Array
from .errors import SpecError
from .types import MomentNode, SecondMoment

__all__ = ["moment_leaf", "moment_merge", "moment_total", "recency_moment"]


def gram(X: F64) -> F64:
    """XᵀX, exactly symmetric: the upper triangle, mirrored."""
    S = X.T @ X
    return np.asarray(np.triu(S) + np.triu(S, 1).T)


def moment_leaf(x: npt.ArrayLike, /, *, index: int) -> tuple[MomentNode[Array], ...]:
    """The moments of one sequence, as leaf `index` of the tree.  [C-1]

        S = Σ_t x_t x_tᵀ = XᵀX,   a = Σ_t |x_t|                                                         (C.1)

    Shapes: x (T, k), rows are tokens; index ≥ 0 → one node of level 0: sum (k, k), magnitude (k,), tokens T.
    Source: Liu et al. 2024, EoRA, the covariance of the inputs.

    >>> (node,) = moment_leaf([[1.0, -2.0]], index=7)
    >>> node.sum.tolist(), node.magnitude.tolist(), (node.level, node.index, node.tokens)
    ([[1.0, -2.0], [-2.0, 4.0]], [1.0, 2.0], (0, 7, 1))
    """
    index = checks.whole(index, "index", "C-1", low=0)
    X = checks.finite(x, "x", "C-1", ndim=2)
    return (MomentNode(0, index, gram(X), np.abs(X).sum(axis=0), len(X)),)  # (C.1)


def add(left: MomentNode[Array], right: MomentNode[Array], level: int, index: int) -> MomentNode[Array]:
    """The parent of two nodes: one rounding per entry, left + right.  [C-2]"""
    return MomentNode(
        level, index, left.sum + right.sum, left.magnitude + right.magnitude, left.tokens + right.tokens
    )  # (C.2)


def moment_merge(
    left: Sequence[MomentNode[Array]], right: Sequence[MomentNode[Array]], /
) -> tuple[MomentNode[Array], ...]:
    """The nodes of the union of two disjoint sets of leaves.  [C-2]

        (l + 1, j) = (l, 2j) + (l, 2j + 1)     whenever both are there                                  (C.2)

    Shapes: any number of nodes of the same k → nodes sorted by first leaf, no two of them siblings. Associative and
    commutative to the last bit. A leaf in both sets is refused: it would be counted twice.

    >>> a, b = moment_leaf([[1.0]], index=0), moment_leaf([[2.0]], index=1)
    >>> [(n.level, n.index, n.sum.item()) for n in moment_merge(b, a)]
    [(1, 0, 5.0)]
    """
    merged: list[MomentNode[Array]] = []
    for node in sorted((*left, *right), key=lambda n: n.index << n.level):
        level, index, tokens = (checks.whole(n, "a node's number", "C-2", low=0) for n in (node[:2] + node[4:]))
        node = node._replace(level=level, index=index, tokens=tokens)
        if merged and merged[0].sum.shape != node.sum.shape:
            raise SpecError("C-2", f"nodes of different widths: {merged[0].sum.shape} and {node.sum.shape}")
        if merged and node.index << node.level < (merged[-1].index + 1) << merged[-1].level:
            raise SpecError("C-2", f"leaf {node.index << node.level} is in both sets")
        merged.append(node)
        while len(merged) > 1 and merged[-1].level == merged[-2].level and merged[-2].index ^ 1 == merged[-1].index:
            second, first = merged.pop(), merged.pop()
            merged.append(add(first, second, first.level + 1, first.index // 2))  # (C.2)
    return tuple(merged)


def fold(nodes: Sequence[MomentNode[Array]], level: int, index: int) -> MomentNode[Array]:
    """Sum of nodes below (level, index); an absent half passes the other through.  (C.3)"""
    if len(nodes) == 1:
        return nodes[0]
    middle = (2 * index + 1) << (level - 1)
    sides = [[n for n in nodes if n.index << n.level < middle], [n for n in nodes if n.index << n.level >= middle]]
    halves = [fold(side, level - 1, 2 * index + i) for i, side in enumerate(sides) if side]
    return halves[0] if len(halves) == 1 else add(halves[0], halves[1], level, index)


def moment_total(nodes: Sequence[MomentNode[Array]], /) -> SecondMoment[Array]:
    """Mean second moment and mean magnitude over all tokens.  [C-2]

        C = (Σ S) / T,   a = (Σ a) / T,   summed along the tree over [0, 2^L)                           (C.3)

    Shapes: nodes of a moment set → matrix (k, k), magnitude (k,), tokens. Leaves may be missing (an odd number, a
    range of another process). A set without tokens has no mean and is refused.

    >>> moment_total(moment_leaf([[1.0], [3.0]], index=5)).matrix.item()
    5.0
    """
    merged = moment_merge(nodes, ())
    tokens = sum(n.tokens for n in merged)
    if tokens == 0:
        raise SpecError("C-2", "a moment set without tokens has no mean")
    last = merged[-1]
    levels = (((last.index + 1) << last.level) - 1).bit_length()
    root = fold(merged, levels, 0)
    return SecondMoment(root.sum / tokens, root.magnitude / tokens, tokens)  # (C.3)


def recency_moment(batches: Sequence[npt.ArrayLike], /, *, total: int) -> F64:
    """Second moment as the published hook weighs it: the last batch most.  [C-3]

        C ← C N / (N + b),   C ← C + Σ_b xᵀx / N        for each batch of b sequences                   (C.4)

    Shapes: batches of (b, T, k) in order, total = N ≥ 1 (all sequences of the run) → (k, k).
    This is *not* a mean: with b = 1 sequence j of N has weight (N / (N + 1))^(N−1−j) / N, so the first weighs 0.37
    of the last and the order of calibration data matters. The paper's definition is the mean (moment_total); this is
    the code (NVlabs/EoRA ``eora.py``, copied by GPTQModel), kept to reproduce it.

    >>> recency_moment([[[[1.0]]], [[[1.0]]]], total=2).item()   # 1/2 · 2/3 + 1/2
    0.8333333333333333
    """
    total = checks.whole(total, "total", "C-3", low=1)
    X = [checks.finite(batch, f"batches[{i}]", "C-3", ndim=3) for i, batch in enumerate(batches)]
    if not X or any(x.shape[2] != X[0].shape[2] for x in X):
        raise SpecError("C-3", f"batches must be (b, T, k) of one k, got {[x.shape for x in X]}")
    C = np.zeros((X[0].shape[2],) * 2)
    for x in X:
        C = C * total / (total + len(x))  # (C.4)
        C = C + gram(x.reshape(-1, x.shape[2])) / total
    return C
