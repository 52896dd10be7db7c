"""Chapter E, last clause: both factors of a patch, quantized as two ordinary linear layers."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from lowbit.accel.common.eigenspace import check_definite
from lowbit.accel.common.refusals import check_damping, check_matrix
from lowbit.reference.errors import SpecError
from lowbit.reference.types import AdapterMethod, QuantizedAdapter, QuantizedWeight, ScaleDtype, Scheme

from .arrays import as_weights, operation, refuse_nan
from .gptq import check_moment, damp, gptq, repair
from .uniform import (
    check_dequantize,
    check_grid_options,
    check_quantize,
    dequantize_checked,
    fit_grid,
    quantize_checked,
)

__all__ = ["quantize_adapter"]


@operation
def quantize_adapter(
    b: Tensor,
    a: Tensor,
    c: Tensor,
    /,
    *,
    bits: int,
    method: AdapterMethod = "gptq",
    scheme: Scheme = "asymmetric",
    group_size: int | None = None,
    damping: float = 0.01,
    scale_dtype: ScaleDtype | None = None,
) -> QuantizedAdapter[Tensor]:
    """Quantize A with H = C and B with H = A C Aᵀ, A before quantization.  [E-7]"""
    if method not in get_args(AdapterMethod):
        raise SpecError("E-7", f"method must be 'rtn' or 'gptq', got {method!r}")
    b, a = as_weights("E-7", "b", b), as_weights("E-7", "a", a, like=b)
    check_matrix("E-7", "b", b.shape, (None, None))
    check_matrix("E-7", "a", a.shape, (b.shape[1], None))
    check_grid_options(bits, scheme, 0.0, scale_dtype)
    check_damping("E-7", damping)
    if group_size is not None and (isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1):
        raise SpecError("E-7", f"group_size must be a positive integer or None, got {group_size!r}")
    refuse_nan("E-7", "b", b)
    refuse_nan("E-7", "a", a)
    moment = check_moment("E-7", "c", c, a.shape[1], like=b)
    check_definite(torch, "E-7", "c", moment)
    wide = a.to(torch.float64)
    inner = wide @ moment @ wide.mT
    inner = (inner + inner.mT) / 2

    def factor(w: Tensor, h: Tensor) -> QuantizedWeight[Tensor]:
        size = w.shape[1]
        grouped = group_size is not None and group_size <= size and size % group_size == 0
        g = group_size if grouped else None
        if method == "gptq":
            return gptq(w, h, bits=bits, scheme=scheme, group_size=g, damping=damping, scale_dtype=scale_dtype)
        scale, zero = fit_grid(
            w,
            bits=bits,
            scheme=scheme,
            granularity="group" if grouped else "row",
            group_size=g,
            scale_dtype=scale_dtype,
        )
        codes = quantize_checked(*check_quantize(w, scale, zero, bits, scheme), bits, scheme)
        weight = dequantize_checked(*check_dequantize(codes, scale, zero))
        index = torch.arange(size, dtype=torch.int32, device=w.device) // (g or max(size, 1))
        return QuantizedWeight(codes, scale, zero, index, weight, _loss(w, weight, h, damping))

    return QuantizedAdapter(B=factor(b, inner), A=factor(a, moment))


def _loss(w: Tensor, q: Tensor, h: Tensor, damping: float) -> float:
    """½ tr[Δ (H + damp I) Δᵀ] with the columns of dead inputs left out."""
    h = h.clone()
    dead = repair(h)
    error = (w.to(torch.float64) - q.to(torch.float64)).masked_fill_(dead, 0.0)
    return float(((error @ damp(h, damping)) * error).sum() / 2)
