"""G, continued: N:M sparsity, with an update of what remains (SparseGPT) and without (Wanda).

"keep : of" means that of every `of` consecutive input weights of a row `keep` survive; 2:4 is what sparse tensor
cores read. The literature's prune_n counts the pruned ones instead: prune_n = of − keep.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

from . import checks, uniform
from .checks import F64, Array, Bool
from .errors import SpecError
from .gptq import columns_per_scale, inverse_cholesky, row_grids
from .types import GroupScales, Pruned, ScaleDtype, Scheme, SparseWeight

__all__ = ["sparsegpt", "wanda"]


def smallest(score: F64, count: int) -> Bool:
    """Mask of the `count` smallest scores along the last axis; among equals the lower index goes first.  [G-5, G-6]

    >>> smallest(np.array([[1.0, 1.0, 1.0, 0.0]]), 2).tolist()
    [[True, False, False, True]]
    """
    mask = np.zeros(score.shape, np.bool_)
    np.put_along_axis(mask, np.argsort(score, axis=-1, kind="stable")[..., :count], True, axis=-1)
    return mask


def n_of_m(keep: int, of: int, k: int, clause: str) -> None:
    """1 ≤ keep ≤ of, and `of` divides the row length."""
    of = checks.whole(of, "of", clause, low=1)
    keep = checks.whole(keep, "keep", clause, low=1, high=of)
    if k % of:
        raise SpecError(clause, f"tuples of {of} do not divide axis length {k}")


def sparsegpt(
    w: npt.ArrayLike,
    h: npt.ArrayLike,
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
    """Prune to keep:of column by column, and quantize the survivors in the same pass when bits is given.  [G-5]

    With U of (G.3), for i = 0 … k − 1, each row of W on its own:

        P = the (of − keep) columns j of [i, i + of) with the smallest (w_j / U_jj)², when of | i       (G.9)
        q_i = 0 for i in P, else w_i, or quant(w_i) with bits                                           (G.10)
        (G.6), (G.7), (G.8) as in GPTQ

    Shapes: w (m, k), h (k, k), of | k → weight (m, k), mask bool (m, k) True = pruned, codes (m, k) etc. or None.

    Scores use the weights as updated so far, equal scores prune the lower index [G-5] (the published top-k leaves
    ties open). Dead columns are zeroed, so they are pruned first. Grids as in GPTQ: per row from the un-updated
    *dense* W, per group from W where the group opens. A pruned weight has code = zero_point and value exactly 0;
    a survivor that rounds to 0 is not in the mask. of must divide block_size, since the published code counts
    tuples from the start of a block; with that, only group_scales="block" depends on block_size.
    Source: Frantar and Alistarh 2023, algorithm 1 with the N:M mask of section 3.3 and the joint quantization of
    section 3.5; as published in NVlabs/EoRA ``sparsegpt.py``. Deliberately not: unstructured sparsity.

    >>> sparsegpt([[3.0, 1.0, 1.0, 2.0]], np.eye(4)).weight.tolist()
    [[3.0, 0.0, 0.0, 2.0]]
    """
    W = checks.finite(w, "w", "G-5", ndim=2)
    m, k = W.shape
    H = checks.second_moment(h, k, "h", "G-5")
    n_of_m(keep, of, k, "G-5")
    checks.choice(group_scales, ("current", "block"), "group_scales", "G-5")
    block_size = checks.whole(block_size, "block_size", "G-5", low=1)
    if block_size % of:
        raise SpecError("G-5", f"tuples of {of} do not divide block size {block_size}")
    if bits is None and group_size is not None:
        raise SpecError("G-5", f"group_size {group_size} without bits: there is nothing to scale")
    g = columns_per_scale(group_size, k, "G-5")
    find = partial(row_grids, bits=8 if bits is None else bits, scheme=scheme, scale_dtype=scale_dtype)

    grid = find(W)  # of the whole row; stays unless there are groups, unused without bits
    U, dead = inverse_cholesky(H, damping=damping)
    W[:, dead] = 0

    G = 1 if group_size is None else k // g
    scale: Array = np.repeat(grid.scale, G, axis=1)
    zero: Array = np.repeat(grid.zero_point, G, axis=1)
    codes: Array = np.zeros((m, k), np.int32)
    mask: Array = np.zeros((m, k), np.bool_)
    Q: Array = np.zeros((m, k))
    loss, seen = 0.0, W
    for i in range(k):
        if i % block_size == 0:
            seen = W.copy()
        if i % of == 0:
            j = slice(i, i + of)
            mask[:, j] = smallest((W[:, j] / np.diag(U)[j]) ** 2, of - keep)  # (G.9)
        q = np.where(mask[:, i], 0.0, W[:, i])[:, None]  # (G.10)
        if bits is not None:
            if group_size is not None and i % g == 0:
                grid = find((W if group_scales == "current" else seen)[:, i : i + g])  # (G.4)
            scale[:, [i // g]], zero[:, [i // g]] = grid.scale, grid.zero_point
            codes[:, [i]] = uniform.quantize(q, grid.scale, grid.zero_point, bits=bits, scheme=scheme)  # (G.5)
            q = uniform.dequantize(codes[:, [i]], grid.scale, grid.zero_point)
        Q[:, [i]] = q
        e = (W[:, i] - Q[:, i]) / U[i, i]  # (G.6)
        W[:, i:] -= np.outer(e, U[i, i:])  # (G.7)
        loss += float((e**2).sum() / 2)  # (G.8)
    if bits is None:
        return SparseWeight(Q, mask, None, None, None, None, loss)
    group_index: Array = (np.arange(k) // g).astype(np.int32)
    return SparseWeight(Q, mask, codes, scale, zero, group_index, loss)


def wanda(w: npt.ArrayLike, feature_moment: npt.ArrayLike, /, *, keep: int = 2, of: int = 4) -> Pruned[Array]:
    """Prune to keep:of by weight times input norm, without an update.  [G-6]

        score_ij = |w_ij| sqrt(a_j),   a_j = Σ_t x_tj², any positive multiple                           (G.11)
        the (of − keep) smallest scores of every `of` consecutive columns become 0                      (G.12)

    Shapes: w (m, k), feature_moment (k,) ≥ 0, of | k → weight (m, k), mask bool (m, k) True = pruned.
    Equal scores prune the lower index: the published code leaves it to top-k, which took the higher one on one CPU.
    Source: Sun et al. 2023, eq. 1; as published in NVlabs/EoRA ``llama_sequential_wanda``.

    >>> wanda([[1.0, -2.0, 1.0, 1.0]], [1.0, 0.0, 1.0, 1.0]).mask.tolist()
    [[True, True, False, False]]
    """
    W = checks.finite(w, "w", "G-6", ndim=2)
    m, k = W.shape
    n_of_m(keep, of, k, "G-6")
    a = checks.finite(feature_moment, "feature_moment", "G-6", ndim=1)
    if a.shape != (k,):
        raise SpecError("G-6", f"feature_moment must have shape {(k,)}, got {a.shape}")
    if (a < 0).any():
        raise SpecError("G-6", f"feature_moment must be >= 0, got {a.min()}")
    score = np.abs(W) * np.sqrt(a)  # (G.11)
    mask = smallest(score.reshape(m, k // of, of), of - keep).reshape(m, k)  # (G.12)
    return Pruned(np.where(mask, 0.0, W), mask)
