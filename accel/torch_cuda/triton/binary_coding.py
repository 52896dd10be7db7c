"""Kernel of chapter B: a product with bit planes, the words of a row shared between programs."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false
# (Triton reads annotations of kernels as its own types)

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import cdiv, next_power_of_2

__all__ = ["bcq_product"]


@triton.jit
def _bcq_product(
    x, planes, scale, offset, y, k, m, size, words, share,
    BITS: tl.constexpr, SHIFTED: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y[part, token, row] = sum over this part's words, groups and planes of scale * sum of +-x, plus offsets."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2)
    inside = row < m
    line = tl.arange(0, 32)
    total = tl.zeros((BLOCK,), dtype=y.dtype.element_ty)
    for word in range(part * share, tl.minimum(part * share + share, words)):
        if ALIGNED:  # a word lies in one group: one scale per plane and row
            column = word * 32 + line
            value = tl.load(x + token * k + column, mask=column < k, other=0.0)
            group = (word * 32) // size
            if SHIFTED:
                shift = tl.load(offset + group * m + row, mask=inside, other=0.0)
                total += shift * tl.sum(value, axis=0)
            for plane in tl.static_range(BITS):
                place = (word * BITS + plane) * m
                keys = tl.load(planes + place + row, mask=inside, other=0)
                bit = (keys[None, :] >> line[:, None]) & 1
                signed = tl.where(bit != 0, value[:, None], -value[:, None])
                alpha = tl.load(scale + (group * BITS + plane) * m + row, mask=inside, other=0.0)
                total += alpha * tl.sum(signed, axis=0)
        else:  # a group of any length: column by column
            for bit in range(tl.minimum(32, k - word * 32)):
                value = tl.load(x + token * k + word * 32 + bit)
                group = (word * 32 + bit) // size
                if SHIFTED:
                    total += tl.load(offset + group * m + row, mask=inside, other=0.0) * value
                for plane in tl.static_range(BITS):
                    place = (word * BITS + plane) * m
                    keys = tl.load(planes + place + row, mask=inside, other=0)
                    alpha = tl.load(scale + (group * BITS + plane) * m + row, mask=inside, other=0.0)
                    total += tl.where(((keys >> bit) & 1) != 0, alpha, -alpha) * value
    tokens = tl.num_programs(1)
    tl.store(y + (part.to(tl.int64) * tokens + token) * m + row, total, mask=inside)


def bcq_product(x: Tensor, planes: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """y = x Wᵀ of checked arguments; see :func:`lowbit.accel.torch_cuda.bcq_product`.

    The words of a row are shared between programs, so that a single token fills the device; their sums are added in
    one fixed order.
    """
    (tokens, k), (groups, bits, m) = x.shape, scale.shape
    if 0 in (tokens, k, m):
        return torch.zeros((tokens, m), dtype=x.dtype, device=x.device)
    size, words = k // groups, planes.shape[0]
    share = max(1, cdiv(words, 16))
    parts = cdiv(words, share)
    block = min(64, next_power_of_2(m))
    y = torch.empty((parts, tokens, m), dtype=x.dtype, device=x.device)
    shift = scale if offset is None else offset.contiguous()
    kernel: Any = _bcq_product
    kernel[(cdiv(m, block), tokens, parts)](
        x.contiguous(), planes.contiguous(), scale.contiguous(), shift, y, k, m, size, words, share,
        BITS=bits, SHIFTED=offset is not None, ALIGNED=size % 32 == 0, BLOCK=block, enable_fp_fusion=True,
    )  # fmt: skip
    return y.sum(0)
