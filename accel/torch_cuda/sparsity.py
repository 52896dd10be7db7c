"""Chapter G, continued: N:M sparsity, with an update of what remains (SparseGPT) and without (Wanda)."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit.accel.common.gptq import check_gptq, check_group_scales, check_n_of_m
from lowbit.accel.common.refusals import check_damping, check_matrix
from lowbit.accel.common.uniform import check_bits
from lowbit.reference.errors import SpecError
from lowbit.reference.types import GroupScales, Pruned, ScaleDtype, Scheme, SparseWeight

from .arrays import as_weights, operation, refuse_nan, row_chunks, transposed, working_dtype
from .gptq import Plan, Sweep, check_moment, factor_hessian, new_grids, repair, smallest
from .uniform import check_grid_options, refuse_overflow

__all__ = ["sparsegpt", "wanda"]


@operation
def sparsegpt(
    w: Tensor,
    h: Tensor,
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
) -> SparseWeight[Tensor]:
    """Prune to keep:of column by column, and quantize the survivors in the same pass.  [G-5]

    At every tuple of ``of`` columns the ``of - keep`` smallest ``(w / U_jj)²`` of each row go, the lower index first
    among equals, with w as updated so far. Comparing ``abs(w) / U_jj`` orders them alike and cannot underflow.
    """
    w = as_weights("G-5", "w", w)
    check_matrix("G-5", "w", w.shape, (None, None))
    m, k = w.shape
    check_n_of_m("G-5", k, keep, of)
    if bits is not None:
        check_bits(bits, scheme)
    elif group_size is not None:
        raise SpecError("G-5", f"group_size {group_size} without bits: there is nothing to scale")
    check_grid_options(8 if bits is None else bits, scheme, 0.0, scale_dtype)
    size = max(check_gptq("G-5", k, group_size, block_size), 1)
    if block_size % of:
        raise SpecError("G-5", f"tuples of {of} do not divide block size {block_size}")
    check_group_scales("G-5", group_scales)
    check_damping("G-5", damping)
    refuse_nan("G-5", "w", w)
    moment = check_moment("G-5", "h", h, k, like=w)

    groups = 1 if group_size is None else k // size
    rows = transposed(w.to(working_dtype(w)))
    grids = None
    if bits is not None:
        grids = new_grids(
            w, groups, bits=bits, scheme=scheme, clip_search=False, range_floor=0.0, scale_dtype=scale_dtype
        )
        if group_size is None:
            grids.fit(0, rows)  # dense, before dead columns are zeroed
    rows[repair(moment)] = 0.0
    v = factor_hessian("G-1", moment, damping)
    group_index = torch.arange(k, dtype=torch.int32, device=w.device) // size

    plan = Plan(
        block_size=block_size,
        opens=size if group_size is not None else None,
        from_block=group_scales == "block",
        group_of=group_index.tolist() if grids is not None else None,
        keep=keep,
        of=of,
    )
    sweep = Sweep(rows, v, plan, grids)
    del moment, v, rows  # what is large goes as soon as it may
    weight = torch.empty_like(sweep.rows)
    mask = torch.zeros((k, m), dtype=torch.bool, device=w.device)
    codes = torch.empty((k, m), dtype=torch.int32, device=w.device)
    for block in sweep.blocks():
        weight[block.columns] = block.value
        if block.mask is not None:
            mask[block.columns] = block.mask
        if grids is not None and block.level is not None:
            zero = grids.zero[group_index[block.columns].long()]
            codes[block.columns] = block.level.add_(zero).to(torch.int32)
    loss = float(sweep.loss)
    del sweep
    weight = transposed(weight)
    mask = transposed(mask)
    if grids is None:
        return SparseWeight(weight, mask, None, None, None, None, loss)
    scale = grids.scale.mT.contiguous()
    refuse_overflow(scale, grids.options)
    zero = grids.zero.mT.to(torch.int32).contiguous()
    return SparseWeight(weight, mask, transposed(codes), scale, zero, group_index, loss)


@operation
def wanda(w: Tensor, feature_moment: Tensor, /, *, keep: int = 2, of: int = 4) -> Pruned[Tensor]:
    """Prune to keep:of by ``abs(w) * sqrt(feature_moment)``, without an update.  [G-6]

    Among equal scores the lower index is pruned first. Scores are compared in float64, so that float32 weights meet
    no ties of rounding.
    """
    w = as_weights("G-6", "w", w)
    check_matrix("G-6", "w", w.shape, (None, None))
    m, k = w.shape
    check_n_of_m("G-6", k, keep, of)
    feature_moment = as_weights("G-6", "feature_moment", feature_moment, like=w)
    check_matrix("G-6", "feature_moment", feature_moment.shape, (k,))
    refuse_nan("G-6", "w", w)
    refuse_nan("G-6", "feature_moment", feature_moment)
    if k and bool((feature_moment < 0).any()):
        raise SpecError("G-6", f"feature_moment must be >= 0, the smallest is {float(feature_moment.min())!r}")
    root = feature_moment.to(torch.float64).sqrt()
    mask = torch.zeros((m, k), dtype=torch.bool, device=w.device)
    for rows in row_chunks(m, k, w.device):
        if k:
            score = (w[rows].abs().to(torch.float64) * root).reshape(-1, k // of, of)
            found = smallest(score.movedim(-1, 0).contiguous(), of - keep)
            mask[rows] = found.movedim(0, -1).flatten(-2)
    return Pruned(weight=w.to(working_dtype(w)).masked_fill(mask, 0.0), mask=mask)
