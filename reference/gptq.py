"""G: GPTQ, column-by-column quantization that pushes each rounding error onto the columns still to come.

H is (k, k), any second moment XᵀX of the inputs; the published code uses 2 XᵀX / n, of which only the loss knows.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_triangular

from . import checks, uniform
from .checks import F64, Array
from .errors import SpecError
from .types import Grid, GroupScales, InverseFactor, QuantizedWeight, ScaleDtype, Scheme

__all__ = ["gptq", "inverse_cholesky"]


def repaired(H: F64, damping: float) -> tuple[F64, npt.NDArray[np.bool_]]:
    """Damped Hessian and the dead columns.  [G-1]  (G.1), (G.2)"""
    dead = np.diag(H) == 0
    H = H + np.diag(dead.astype(np.float64))  # (G.1)
    return H + damping * (np.mean(np.diag(H)) if len(H) else 0.0) * np.eye(len(H)), dead  # (G.2)


def inverse_cholesky(h: npt.ArrayLike, /, *, damping: float = 0.01) -> InverseFactor[Array]:
    """Upper factor of the inverse of the damped Hessian.  [G-1]

        H_jj ← 1  where H_jj = 0                 a dead column: its input was never anything but 0       (G.1)
        H ← H + damping · mean(diag H) · I       the mean *after* the repair                             (G.2)
        H⁻¹ = Uᵀ U,  U upper triangular, U_ii > 0                                                        (G.3)

    Shapes: h (k, k) symmetric positive semi-definite → factor (k, k), dead bool (k,).
    The published code takes chol(inv(H)). Here H = R Rᵀ with R upper (Cholesky from the last row up), so U = R⁻¹:
    the same matrix without forming the inverse. A matrix that is not positive definite after damping is refused.
    Source: Frantar et al. 2022, GPTQ, section 3.3 step 3; as published in IST-DASLab/gptq and NVlabs/EoRA.

    >>> U, dead = inverse_cholesky([[4.0, 0.0], [0.0, 0.0]], damping=0.0)
    >>> U.tolist(), dead.tolist()
    ([[0.5, 0.0], [0.0, 1.0]], [False, True])
    """
    damping = checks.number(damping, "damping", "G-1", low=0.0)
    H = checks.second_moment(h, None, "h", "G-1")
    H, dead = repaired(H, damping)
    try:
        R = np.linalg.cholesky(H[::-1, ::-1])[::-1, ::-1]  # H = R Rᵀ
    except np.linalg.LinAlgError as error:
        raise SpecError("G-1", f"h is not positive definite with damping {damping}") from error
    return InverseFactor(np.triu(solve_triangular(R, np.eye(len(H)), lower=False)), dead)  # (G.3)


def row_grids(
    w: F64,
    *,
    bits: int,
    scheme: Scheme,
    scale_dtype: ScaleDtype | None,
    clip_search: bool = False,
    range_floor: float = 0.0,
) -> Grid[Array]:
    """One grid per row of whatever columns are given, (m, 1) each.  (G.4)"""
    find = uniform.clip_search if clip_search else uniform.fit_grid
    found = find(w, bits=bits, scheme=scheme, range_floor=range_floor, scale_dtype=scale_dtype)
    return Grid(found.scale, found.zero_point)


def columns_per_scale(group_size: int | None, k: int, clause: str) -> int:
    """Columns that share a scale: the group size, or the whole row."""
    if group_size is None:
        return max(k, 1)
    group_size = checks.whole(group_size, "group_size", clause, low=1)
    if k % group_size:
        raise SpecError("Q-2", f"group size {group_size} does not divide axis length {k}")
    return group_size


def quadratic_loss(w: F64, q: F64, h: F64, damping: float) -> float:
    """½ tr[(W − Q)(H + damp I)(W − Q)ᵀ], which equals (G.8) for what GPTQ returns, dead columns of W zeroed.  [G-3]"""
    H, dead = repaired(h, damping)
    Δ = np.where(dead, 0.0, w - q)
    return float(((Δ @ H) * Δ).sum() / 2)


def gptq(
    w: npt.ArrayLike,
    h: npt.ArrayLike,
    /,
    *,
    bits: int,
    scheme: Scheme = "asymmetric",
    group_size: int | None = None,
    act_order: bool = False,
    static_groups: bool = False,
    group_scales: GroupScales = "current",
    clip_search: bool = False,
    range_floor: float = 0.0,
    block_size: int = 128,
    damping: float = 0.01,
    scale_dtype: ScaleDtype | None = None,
) -> QuantizedWeight[Array]:
    """Quantize W column by column, minimising tr[(W − Q) H (W − Q)ᵀ] greedily.  [G-2, G-3, G-4]

    With U of (G.3), for i = 0 … k − 1, each row of W on its own:

        s, z = grid of the group, when i opens one                                                      (G.4)
        q_i = s (clip(round(w_i / s) + z) − z)                                                          (G.5)
        e_i = (w_i − q_i) / U_ii                                                                        (G.6)
        w_j ← w_j − e_i U_ij   for j ≥ i                                                                (G.7)
        loss = Σ e_i² / 2 = Σ (w_i − q_i)² / (2 U_ii²)                                                  (G.8)

    Shapes: w (m, k), h (k, k) → codes, weight (m, k), scale, zero_point (m, G), group_index (k,), loss.

    Which weights make a grid [G-2]: a whole row (group_size None) the un-updated W, *before* dead columns are
    zeroed; static groups the un-updated W, dead columns zeroed; otherwise W at the moment i opens the group:
    ``group_scales="current"`` sees every update of (G.7), ``"block"`` only those of earlier blocks of block_size
    columns. The paper means the first; the published code does the second (its lazy updates hide a block's own),
    which differs by up to a step. Nothing else depends on block_size.

    act_order [G-4]: columns by H_jj descending (dead ones count as 1), equal ones by index. Dynamic groups are
    then runs of *visited* columns, static groups runs of original ones; group_index says which, and everything
    returned is in the original order. clip_search uses Q-5 with its defaults.

    Source: Frantar et al. 2022, algorithm 1; options as published in IST-DASLab/gptq, NVlabs/EoRA ``gptq.py`` and
    HuangOwen/RoLoRA ``gptq_utils.py``. Deliberately not: blocking of (G.7), which is a matter of speed.

    >>> w, h = [[1.0, 0.4, 0.3]], np.eye(3)
    >>> gptq(w, h, bits=2, scheme="symmetric").codes.tolist()   # white inputs: rounding to nearest
    [[1, 0, 0]]
    >>> h[1, 2] = h[2, 1] = 0.9                                 # column 2 can make up for column 1
    >>> gptq(w, h, bits=2, scheme="symmetric").codes.tolist()
    [[1, 0, 1]]
    """
    W = checks.finite(w, "w", "G-2", ndim=2)
    m, k = W.shape
    H = checks.second_moment(h, k, "h", "G-2")
    checks.choice(group_scales, ("current", "block"), "group_scales", "G-2")
    block_size = checks.whole(block_size, "block_size", "G-2", low=1)
    g = columns_per_scale(group_size, k, "G-2")
    find = partial(
        row_grids, bits=bits, scheme=scheme, scale_dtype=scale_dtype, clip_search=clip_search, range_floor=range_floor
    )

    grid = find(W)  # of the whole row; stays unless there are groups
    dead = np.diag(H) == 0
    W[:, dead] = 0
    fixed = [find(W[:, j : j + g]) for j in range(0, k, g)] if static_groups else []
    order = np.argsort(-np.where(dead, 1.0, np.diag(H)), kind="stable") if act_order else np.arange(k)
    W = W[:, order]
    U = inverse_cholesky(H[np.ix_(order, order)], damping=damping).factor

    G = 1 if group_size is None else k // g
    scale: Array = np.repeat(grid.scale, G, axis=1)
    zero: Array = np.repeat(grid.zero_point, G, axis=1)
    codes: Array = np.zeros((m, k), np.int32)
    group_index: Array = np.zeros(k, np.int32)
    Q = np.zeros((m, k))
    loss, seen = 0.0, W
    for i, j in enumerate(order.tolist()):  # j: the original column visited at step i
        if i % block_size == 0:
            seen = W.copy()
        group = (j if static_groups else i) // g
        if static_groups and group_size is not None:
            grid = fixed[group]
        elif group_size is not None and i % g == 0:
            grid = find((W if group_scales == "current" else seen)[:, i : i + g])  # (G.4)
        scale[:, [group]], zero[:, [group]], group_index[j] = grid.scale, grid.zero_point, group
        codes[:, [j]] = uniform.quantize(W[:, [i]], grid.scale, grid.zero_point, bits=bits, scheme=scheme)  # (G.5)
        Q[:, [j]] = uniform.dequantize(codes[:, [j]], grid.scale, grid.zero_point)
        e = (W[:, i] - Q[:, j]) / U[i, i]  # (G.6)
        W[:, i:] -= np.outer(e, U[i, i:])  # (G.7)
        loss += float((e**2).sum() / 2)  # (G.8)
    return QuantizedWeight(codes, scale, zero, group_index, Q, loss)
