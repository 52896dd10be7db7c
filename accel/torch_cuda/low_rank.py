"""Chapter C, second half: low-rank patches that ignore the activations, or only scale by them."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit.accel.common.low_rank import check_patch
from lowbit.accel.common.refusals import check_matrix
from lowbit.reference.errors import SpecError
from lowbit.reference.types import LowRank, Split

from .arrays import as_weights, operation, refuse_nan, working_dtype

__all__ = ["scaled_svd_patch", "svd_patch"]


def truncated_svd(d: Tensor, rank: int, split: str) -> LowRank[Tensor]:
    """Best rank-r patch of ``d``, its singular values shared by both factors or all in B."""
    u, s, vt = torch.linalg.svd(d, full_matrices=False)
    u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    if split == "left":
        return LowRank(B=u * s, A=vt.contiguous())
    root = s.sqrt()
    return LowRank(B=u * root, A=vt * root[:, None])


@operation
def svd_patch(d: Tensor, /, *, rank: int, split: Split = "balanced") -> LowRank[Tensor]:
    """Truncated singular value decomposition of a compression error, in float32 or better.  [C-4]"""
    d = as_weights("C-4", "d", d)
    check_patch("C-4", d.shape, rank, split)
    refuse_nan("C-4", "d", d)
    return truncated_svd(d.to(working_dtype(d)), rank, split)


@operation
def scaled_svd_patch(d: Tensor, channel_scale: Tensor, /, *, rank: int, split: Split = "balanced") -> LowRank[Tensor]:
    """Truncated SVD of ``d diag(a)``, brought back: ``A diag(a)⁻¹``, 0 where a channel's scale is 0.  [C-5]"""
    d = as_weights("C-5", "d", d)
    check_patch("C-5", d.shape, rank, split)
    a = as_weights("C-5", "channel_scale", channel_scale, like=d)
    check_matrix("C-5", "channel_scale", a.shape, (d.shape[1],))
    refuse_nan("C-5", "channel_scale", a)
    if not bool((a >= 0).all()):
        raise SpecError("C-5", f"channel_scale must be >= 0, the smallest is {float(a.min())!r}")
    refuse_nan("C-5", "d", d)
    dtype = working_dtype(d)
    a = a.to(dtype)
    found = truncated_svd(d.to(dtype) * a, rank, split)
    used = a > 0
    return LowRank(B=found.B, A=torch.where(used, found.A / torch.where(used, a, 1.0), 0.0))
