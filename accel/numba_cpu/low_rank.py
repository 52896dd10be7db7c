"""C-4, C-5: rank-r patches of a compression error. The rules are those of :mod:`lowbit.reference.low_rank`.

Only r singular vectors are wanted, so float32 errors of large layers go through the r leading eigenvectors of the
smaller Gram matrix in float64: its squared condition costs digits that float32 data does not have. float64 errors,
and small ones, take the SVD itself.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from lowbit.accel.common.low_rank import check_patch
from lowbit.accel.common.refusals import check_matrix
from lowbit.reference.errors import SpecError
from lowbit.reference.types import LowRank, Split

from ._arrays import Array, fixed, refuse_bad, weights, working_dtype
from .moments import gram

__all__ = ["scaled_svd_patch", "svd_patch"]

_DIRECT = 512  # up to this smaller side the SVD itself is as fast


def truncated(d: Array, rank: int, split: str, *, exact: bool) -> LowRank[Array]:
    """The r largest singular triplets of a float64 matrix as two factors; ``exact`` keeps all digits of float64."""
    m, k = d.shape
    if exact or min(m, k) <= _DIRECT:
        u, s, vt = scipy.linalg.svd(d, full_matrices=False, check_finite=False)
        u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    else:
        tall = m > k
        moment, _ = gram(d if tall else np.ascontiguousarray(d.T), "C-4", "d")
        side = min(m, k)
        _, vectors = scipy.linalg.eigh(
            moment, subset_by_index=[side - rank, side - 1], overwrite_a=True, check_finite=False
        )
        vectors = vectors[:, ::-1]
        other = d @ vectors if tall else vectors.T @ d  # U σ or σ Vᵀ
        s = np.linalg.norm(other, axis=0 if tall else 1)
        unit = np.where(s > 0, s, 1.0)
        u, vt = (other / unit, vectors.T) if tall else (vectors, other / unit[:, None])
    if split == "left":
        return LowRank(u * s, vt)
    root = np.sqrt(s)
    return LowRank(u * root, root[:, None] * vt)


def svd_patch(d: Array, /, *, rank: int, split: Split = "balanced") -> LowRank[Array]:
    """Best rank-r patch for weights that see white inputs.  [C-4]"""
    given = weights("C-4", "d", d)
    check_patch("C-4", given.shape, rank, split)
    dtype = working_dtype(given)
    source = fixed(given, dtype)
    refuse_bad("C-4", "d", source)
    b, a = truncated(source.astype(np.float64), rank, split, exact=dtype == np.float64)
    return LowRank(b.astype(dtype), a.astype(dtype))


def scaled_svd_patch(d: Array, channel_scale: Array, /, *, rank: int, split: Split = "balanced") -> LowRank[Array]:
    """svd_r(D diag(a)) diag(a)⁻¹; a channel with a = 0 is left alone.  [C-5]"""
    given = weights("C-5", "d", d)
    check_patch("C-5", given.shape, rank, split)
    scale = weights("C-5", "channel_scale", channel_scale)
    check_matrix("C-5", "channel_scale", scale.shape, (given.shape[1],))
    dtype = working_dtype(given)
    source = fixed(given, dtype)
    refuse_bad("C-5", "d", source)
    refuse_bad("C-5", "channel_scale", fixed(scale, working_dtype(scale)))
    if (scale < 0).any():
        raise SpecError("C-5", f"channel_scale must be >= 0, got {scale.min()}")
    weight = scale.astype(np.float64)
    b, a = truncated(source * weight, rank, split, exact=dtype == np.float64)
    a = np.divide(a, weight, out=np.zeros_like(a), where=weight > 0)
    return LowRank(b.astype(dtype), a.astype(dtype))
