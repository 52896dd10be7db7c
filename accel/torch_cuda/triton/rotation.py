"""Kernel of chapter H: one program transforms a run of (K, 2^t) entries that stays in registers.

The table goes first, as a product in full float32 precision; then t rounds of butterflies along the power of two,
(a, b) → (a + b, a − b). Both commute, since they work on different axes.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import next_power_of_2

__all__ = ["hadamard_transform"]


@triton.jit
def _transform(
    x, table, y, scale, K: tl.constexpr, TWOS: tl.constexpr, T: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr
):
    """y = (T ⊗ H) x · scale for one run; the table is padded with zeros to ROWS × ROWS, columns to WIDE."""
    base = tl.program_id(0).to(tl.int64) * (K * TWOS)
    k, j = tl.arange(0, ROWS), tl.arange(0, WIDE)
    place = k[:, None] * TWOS + j[None, :]
    inside = (k[:, None] < K) & (j[None, :] < TWOS)
    values = tl.load(x + base + place, mask=inside, other=0.0).to(tl.float32)
    if K > 1:
        signs = tl.load(table + k[:, None] * ROWS + k[None, :])
        values = tl.dot(signs, values, input_precision="ieee")
    values = values * scale
    for s in tl.static_range(T):
        pairs = tl.reshape(values, (ROWS * (WIDE >> (s + 1)), 2, 1 << s))
        a, b = tl.split(tl.permute(pairs, (0, 2, 1)))
        values = tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 2, 1)), (ROWS, WIDE))
    tl.store(y + base + place, values, mask=inside)


def hadamard_transform(x: Tensor, table: Tensor, twos: int) -> Tensor:
    """Normalised transform of runs of K·twos entries of a checked ``x``, (K, K) ``table`` of ±1; float32."""
    k = len(table)
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    if not out.numel():
        return out
    rows = 1 if k == 1 else max(16, next_power_of_2(k))  # a product needs 16 rows and 16 columns
    wide = twos if k == 1 else max(16, twos)
    padded = torch.zeros((rows, rows), dtype=torch.float32, device=x.device)
    padded[:k, :k] = table
    launch: Any = _transform[(out.numel() // (k * twos),)]
    launch(
        x.contiguous(), padded, out, 1 / math.sqrt(k * twos),
        K=k, TWOS=twos, T=twos.bit_length() - 1, ROWS=rows, WIDE=wide, num_warps=min(16, max(1, rows * wide // 512)),
        enable_fp_fusion=True,
    )  # fmt: skip
    return out
