"""Kernel of chapter N: a product with packed codes, which are looked up where they are used."""

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

from .common import cdiv
from .packing import unpacked

__all__ = ["codebook_matmul"]


@triton.jit
def _codebook_matmul(
    x, words, scale, levels, y, tokens, m, k, width, size, BITS: tl.constexpr, PADDED: tl.constexpr,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """y[t, i] = sum over j of x[t, j] s level: codes are looked up where they are used, sums stay in float32.

    DOT tiles go through the matrix units in full float32; one token at a time is a sum of products.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    total = tl.zeros((TOKENS, ROWS), dtype=tl.float32)
    place = tl.arange(0, COLUMNS)
    here = row.to(tl.int64)[:, None]
    for start in range(0, k, COLUMNS):
        column = start + place
        inside = (row < m)[:, None] & (column < k)[None, :]
        code = unpacked(words + here * width, column[None, :], inside, BITS, PADDED)
        s = tl.load(scale + (here * k + column[None, :]) // size, mask=inside, other=0.0)
        w = tl.load(levels + code) * s
        reach = (token < tokens)[:, None] & (column < k)[None, :]
        value = tl.load(x + token.to(tl.int64)[:, None] * k + column[None, :], mask=reach, other=0.0)
        if DOT:
            total = tl.dot(value, tl.trans(w), total, input_precision="ieee")
        else:
            total += tl.sum(value[:, None, :] * w[None, :, :], axis=2)
    kept = (token < tokens)[:, None] & (row < m)[None, :]
    tl.store(y + token.to(tl.int64)[:, None] * m + row[None, :], total, mask=kept)


def codebook_matmul(x: Tensor, words: Tensor, scale: Tensor, levels: Tensor, bits: int, block_size: int) -> Tensor:
    """Product of checked arguments in float32; see :func:`lowbit.accel.torch_cuda.codebook_matmul`."""
    (tokens, k), (m, width) = x.shape, words.shape
    y = torch.zeros((tokens, m), dtype=torch.float32, device=x.device)
    if min(tokens, k, m) == 0:
        return y
    x, scale = (a.to(torch.float32).contiguous() for a in (x, scale))
    dot = tokens >= 16
    rows, columns, together = (64, 32, 16 if tokens < 32 else 32) if dot else (16, 128, 1)
    grid = (cdiv(m, rows), cdiv(tokens, together))
    constants: dict[str, Any] = {"BITS": bits, "PADDED": False, "ROWS": rows, "TOKENS": together, "COLUMNS": columns}
    constants |= {"DOT": dot, "enable_fp_fusion": True}
    arrays = (x, words.contiguous(), scale, levels.to(torch.float32), y)
    _codebook_matmul[grid](*arrays, tokens, m, k, width, block_size, **constants)
    return y
