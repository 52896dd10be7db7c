"""Chapter C: the tree along which moments are summed, for any arrays. A backend brings its sum of two."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lowbit.reference.errors import SpecError
from lowbit.reference.types import MomentNode, SecondMoment

__all__ = ["in_order", "merged", "total"]

Array = Any  # of whatever backend
Node = MomentNode[Array]
Add = Callable[[Array, Array], Array]


def _first(node: Node) -> int:
    return node.index << node.level


def in_order(nodes: Iterable[Node], overlap: str) -> list[Node]:
    """Nodes by first leaf; refuses different widths, and overlaps in the words given."""
    ordered = sorted(nodes, key=_first)
    for before, after in itertools.pairwise(ordered):
        if before.sum.shape != after.sum.shape:
            raise SpecError("C-2", f"nodes of different widths: {tuple(before.sum.shape)} and {tuple(after.sum.shape)}")
        if _first(after) < (before.index + 1) << before.level:
            raise SpecError("C-2", f"leaf {_first(after)} {overlap}")
    return ordered


def _joined(left: Node, right: Node, add: Add) -> Node:
    both = add(left.sum, right.sum), add(left.magnitude, right.magnitude)
    return MomentNode(right.level + 1, right.index // 2, *both, left.tokens + right.tokens)


def merged(ordered: Iterable[Node], add: Add) -> tuple[Node, ...]:
    """Siblings added as soon as both are there: every node is the sum of its two halves, left + right."""
    done: list[Node] = []
    for node in ordered:
        while done and done[-1].level == node.level and done[-1].index == node.index - 1 and node.index % 2:
            node = _joined(done.pop(), node, add)
        done.append(node)
    return tuple(done)


def total(nodes: Sequence[Node], add: Add) -> SecondMoment[Array]:
    """Means over all tokens of merged nodes, the rest of the tree with missing siblings let through."""
    left, level = list(nodes), 0
    tokens = sum(node.tokens for node in left)
    if tokens == 0:
        raise SpecError("C-2", "a moment set without tokens has no mean")
    while len(left) > 1:  # level by level: a node whose sibling is absent moves up as it is
        raised: list[Node] = []
        for node in left:
            if node.level > level:
                raised.append(node)
            elif raised and raised[-1].level == level + 1 and raised[-1].index == node.index // 2:
                raised[-1] = _joined(raised[-1], node, add)
            else:
                raised.append(node._replace(level=level + 1, index=node.index // 2))
        left, level = raised, level + 1
    return SecondMoment(left[0].sum / tokens, left[0].magnitude / tokens, tokens)
