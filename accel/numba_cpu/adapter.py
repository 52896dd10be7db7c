"""E-7: both factors of a patch quantized as ordinary linear layers, as in :mod:`lowbit.reference.eigenspace`."""

from __future__ import annotations

from typing import get_args

import numpy as np

from lowbit.accel.common.eigenspace import check_definite
from lowbit.accel.common.refusals import check_damping, check_either, check_matrix
from lowbit.accel.common.uniform import check_bits
from lowbit.reference.errors import SpecError
from lowbit.reference.types import AdapterMethod, QuantizedAdapter, QuantizedWeight, ScaleDtype, Scheme

from ._arrays import Array, fixed, refuse_bad, weights, working_dtype
from .gptq import gptq, prepare, symmetric_moment
from .uniform import dequantize, fit_grid, quantize

__all__ = ["quantize_adapter"]


def _full(upper: Array) -> Array:
    """The symmetric matrix of an upper triangle."""
    return np.asarray(np.triu(upper) + np.triu(upper, 1).T)


def _nearest(
    w: Array, h: Array, *, bits: int, scheme: Scheme, group_size: int | None, damping: float,
    scale_dtype: ScaleDtype | None,
) -> QuantizedWeight[Array]:  # fmt: skip
    """Rounding to nearest, with the loss that GPTQ states: ½ tr[Δ (H + damp I) Δᵀ], dead columns left out."""
    grid = fit_grid(
        w, bits=bits, scheme=scheme, granularity="group" if group_size else "row", group_size=group_size,
        scale_dtype=scale_dtype,
    )  # fmt: skip
    codes = quantize(w, grid.scale, grid.zero_point, bits=bits, scheme=scheme)
    value = dequantize(codes, grid.scale, grid.zero_point)
    ready = prepare("E-7", h, w.shape[1], damping)
    Δ = np.where(ready.dead, 0.0, w.astype(np.float64) - value)
    loss = float(((Δ @ _full(ready.upper)) * Δ).sum() / 2)
    index = (np.arange(w.shape[1]) // (group_size or max(w.shape[1], 1))).astype(np.int32)
    return QuantizedWeight(codes, grid.scale, grid.zero_point, index, value, loss)


def quantize_adapter(
    b: Array,
    a: Array,
    c: Array,
    /,
    *,
    bits: int,
    method: AdapterMethod = "gptq",
    scheme: Scheme = "asymmetric",
    group_size: int | None = None,
    damping: float = 0.01,
    scale_dtype: ScaleDtype | None = None,
) -> QuantizedAdapter[Array]:
    """Quantize A with H = C and B with H = A C Aᵀ, A un-quantized: what x → A x → B (A x) sees.  [E-7]"""
    check_either("E-7", "method", method, get_args(AdapterMethod))
    check_bits(bits, scheme)
    check_damping("E-7", damping)
    if group_size is not None and (isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1):
        raise SpecError("E-7", f"group_size must be None or a positive integer, got {group_size!r}")
    left, right = weights("E-7", "b", b), weights("E-7", "a", a)
    check_matrix("E-7", "b", left.shape, (None, None))
    check_matrix("E-7", "a", right.shape, (None, None))
    if left.shape[1] != right.shape[0]:
        raise SpecError("E-7", f"b {left.shape} times a {right.shape} is not a patch")
    for name, factor in (("b", left), ("a", right)):
        refuse_bad("E-7", name, fixed(factor, working_dtype(factor)))
    moment = _full(symmetric_moment("E-7", "c", c, right.shape[1]))
    check_definite(np, "E-7", "c", moment)
    exact = right.astype(np.float64)
    seen = exact @ moment @ exact.T
    seen = (seen + seen.T) / 2

    def quantized(w: Array, h: Array) -> QuantizedWeight[Array]:
        n = w.shape[1]
        fits = group_size is not None and group_size <= n and n % group_size == 0
        run = gptq if method == "gptq" else _nearest
        return run(
            w, h, bits=bits, scheme=scheme, group_size=group_size if fits else None, damping=damping,
            scale_dtype=scale_dtype,
        )  # fmt: skip

    return QuantizedAdapter(B=quantized(left, seen), A=quantized(right, moment))
