"""Chapter C, first half: second moments of activations, summed along a fixed tree.

A leaf is one sequence; leaves meet in the same pairs whatever the order of work, so the bytes of a total depend on
the set of leaves alone (and on how a leaf's own product is summed, which is up to the machine).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from lowbit.accel.common import moments as common
from lowbit.accel.common.refusals import check_matrix
from lowbit.reference.errors import SpecError
from lowbit.reference.types import MomentNode, SecondMoment

from .arrays import as_weights, full_precision, operation, refuse_nan, working_dtype

__all__ = ["moment_leaf", "moment_merge", "moment_total", "recency_moment"]

_STRIP = 192  # columns of the product at a time: only strips of the lower triangle are computed, mirrored in tiles


def gram(x: Tensor, work: Tensor | None = None) -> Tensor:
    """``xᵀ x`` as float64, exactly symmetric; products and sums in the working dtype of ``x``.

    ``work`` is ``x`` in that dtype, when the caller has it. bfloat16 values multiply exactly in float32, so CPU matrix
    units may take them as they are: sums stay in float32.
    """
    k = x.shape[1]
    if work is None:
        work = x.to(working_dtype(x))
    result = torch.empty((k, k), dtype=torch.float64, device=x.device)
    with full_precision(bfloat16_products=x.dtype == torch.bfloat16):
        for start in range(0, k, _STRIP):
            stop = min(start + _STRIP, k)
            strip = work[:, start:stop].mT @ work[:, :stop]
            result[start:stop, :start] = strip[:, :start]
            for tile in range(0, start, _STRIP):
                result[tile : tile + _STRIP, start:stop] = strip[:, tile : tile + _STRIP].mT
            corner = strip[:, start:].tril()
            result[start:stop, start:stop] = corner + corner.tril(-1).mT
    return result


@operation
def moment_leaf(x: Tensor, /, *, index: int) -> tuple[MomentNode[Tensor], ...]:
    """Statistics of one sequence as leaf ``index`` of the tree.  [C-1]

    The sum is exactly symmetric, accumulated in float32, in float64 for float64 inputs.
    """
    x = as_weights("C-1", "x", x)
    check_matrix("C-1", "x", x.shape, (None, None))
    if isinstance(index, bool) or not isinstance(index, int) or index < 0:
        raise SpecError("C-1", f"index must be a non-negative integer, got {index!r}")
    work = x.to(working_dtype(x))
    magnitude = work.abs().sum(0).to(torch.float64)
    if x.numel() and not bool(torch.isfinite(magnitude.sum())):
        refuse_nan("C-1", "x", x)
        magnitude = x.to(torch.float64).abs().sum(0)  # finite values whose float32 sum overflows
    return (MomentNode(level=0, index=index, sum=gram(x, work), magnitude=magnitude, tokens=x.shape[0]),)


@operation
def moment_merge(
    left: Sequence[MomentNode[Tensor]], right: Sequence[MomentNode[Tensor]], /
) -> tuple[MomentNode[Tensor], ...]:
    """Union of two disjoint sets of leaves; siblings are added as soon as both are there.  [C-2]"""
    nodes = (*left, *right)
    for node in nodes:
        if getattr(node, "_fields", None) != MomentNode._fields:  # frozen vectors bring a type of their own
            raise SpecError("C-2", f"moment sets hold MomentNode tuples, got {type(node).__name__}")
    return common.merged(common.in_order(nodes, "is counted twice"), operator.add)


@operation
def moment_total(nodes: Sequence[MomentNode[Tensor]], /) -> SecondMoment[Tensor]:
    """Mean second moment and mean magnitude over all tokens, summed along the tree.  [C-2]"""
    return common.total(moment_merge(nodes, ()), operator.add)


@operation
def recency_moment(batches: Sequence[Tensor], /, *, total: int) -> Tensor:
    """Second moment as the published hook weighs it: not a mean, the last batch counts most.  [C-3]

    ``C = C N / (N + b)`` and ``C = C + Σ xᵀx / N`` for each batch of b sequences, N = ``total``; C is float64.
    """
    if isinstance(total, bool) or not isinstance(total, int) or total < 1:
        raise SpecError("C-3", f"total must be a positive integer, got {total!r}")
    if not batches:
        raise SpecError("C-3", "batches must hold at least one (b, T, k) array")
    checked: list[Tensor] = []
    for i, batch in enumerate(batches):
        x = as_weights("C-3", f"batches[{i}]", batch, like=checked[0] if checked else None)
        check_matrix("C-3", f"batches[{i}]", x.shape, (None, None, checked[0].shape[2] if checked else None))
        refuse_nan("C-3", f"batches[{i}]", x)
        checked.append(x)
    k = checked[0].shape[2]
    moment = torch.zeros((k, k), dtype=torch.float64, device=checked[0].device)
    for x in checked:
        moment *= total / (total + x.shape[0])
        moment += gram(x.reshape(-1, k)) / total
    return moment.to(working_dtype(*checked))
