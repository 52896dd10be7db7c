"""G-5, G-6: SparseGPT and Wanda. The rules are those of :mod:`lowbit.reference.sparsity`.

SparseGPT is the column loop of :mod:`.gptq` with a choice of columns to drop at the start of every tuple.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lowbit.accel.common.gptq import check_gptq, check_group_scales, check_n_of_m
from lowbit.accel.common.refusals import check_matrix
from lowbit.reference.errors import SpecError
from lowbit.reference.types import GroupScales, Pruned, ScaleDtype, Scheme, SparseWeight

from ._arrays import Array, fixed, refuse_bad, refuse_found, weights, working_dtype
from ._grid import plan
from ._jit import by_pieces, kernel
from .gptq import Rule, compress

__all__ = ["sparsegpt", "wanda"]


def sparsegpt(
    w: Array,
    h: Array,
    /,
    *,
    keep: int = 2,
    of: int = 4,
    bits: int | None = None,
    scheme: Scheme = "asymmetric",
    group_size: int | None = None,
    group_scales: GroupScales = "current",
    block_size: int = 128,
    damping: float = 0.01,
    scale_dtype: ScaleDtype | None = None,
) -> SparseWeight[Array]:
    """Prune to keep:of column by column, updating what remains; with bits the survivors are quantized too.  [G-5]"""
    given = weights("G-5", "w", w)
    check_matrix("G-5", "w", given.shape, (None, None))
    k = given.shape[1]
    check_n_of_m("G-5", k, keep, of)
    check_group_scales("G-5", group_scales)
    if bits is None and group_size is not None:
        raise SpecError("G-5", f"group_size {group_size} without bits: there is nothing to scale")
    group = check_gptq("G-5", k, group_size, block_size)
    if block_size % of:
        raise SpecError("G-5", f"tuples of {of} do not divide block size {block_size}")
    dtype = working_dtype(given)
    dynamic = group_size is not None
    width = 8 if bits is None else bits
    rule = Rule(
        plan(width, scheme, 0.0, scale_dtype, dtype), bits is not None, max(group, 1), dynamic,
        block_size if dynamic and group_scales == "block" else 0, False, keep, of,
    )  # fmt: skip
    return compress(
        "G-5", w, h, rule, damping=damping, act_order=False, static_groups=False, scheme=scheme, bits=width,
        range_floor=0.0, scale_dtype=scale_dtype, grouped=dynamic,
    )  # fmt: skip


@kernel
def _wanda(w: Any, norm: Any, keep: int, of: int, out: Any, mask: Any) -> Any:
    bad = False
    score = np.empty(of, norm.dtype)
    for i in range(w.shape[0]):
        for j0 in range(0, w.shape[1], of):
            row, kept, marks = w[i, j0 : j0 + of], out[i, j0 : j0 + of], mask[i, j0 : j0 + of]
            for j in range(of):
                bad |= row[j] - row[j] != 0.0
                score[j] = abs(np.float64(row[j])) * norm[j0 + j]
            for j in range(of):
                smaller = 0
                for l in range(of):
                    smaller += 1 if score[l] < score[j] or (score[l] == score[j] and l < j) else 0
                marks[j] = smaller < of - keep
                kept[j] = w.dtype.type(0) if marks[j] else row[j]
    return bad


def wanda(w: Array, feature_moment: Array, /, *, keep: int = 2, of: int = 4) -> Pruned[Array]:
    """Prune to keep:of by |w| · sqrt(feature moment), without an update; equal scores prune the lower index.  [G-6]"""
    given = weights("G-6", "w", w)
    check_matrix("G-6", "w", given.shape, (None, None))
    check_n_of_m("G-6", given.shape[1], keep, of)
    moment = weights("G-6", "feature_moment", feature_moment)
    check_matrix("G-6", "feature_moment", moment.shape, (given.shape[1],))
    refuse_bad("G-6", "feature_moment", fixed(moment, working_dtype(moment)))
    if (moment < 0).any():
        raise SpecError("G-6", f"feature_moment must be >= 0, got {moment.min()}")
    source = fixed(given, working_dtype(given))
    norm = fixed(np.sqrt(moment.astype(np.float64)))  # scores in float64: ties are then the ties of the specification
    out, mask = np.empty_like(source), np.empty(source.shape, np.bool_)
    if any(by_pieces(source.shape, lambda p: _wanda(source[p], norm, keep, of, out[p], mask[p]))):
        refuse_found("G-6", "w", source)
    return Pruned(out, mask)
