"""Chapter O: StatsQ, its codes, values and gradients. The rules are those of :mod:`lowbit.reference.statsq`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowbit.accel.common.oscillation import check_steps, check_words
from lowbit.accel.common.refusals import check_whole
from lowbit.reference.errors import SpecError
from lowbit.reference.types import GradientPath, StatsCode

from . import triton
from .arrays import as_weights, operation, refuse_nan, row_chunks, working_dtype
from .policy import by_kernel

__all__ = ["statsq", "statsq_grad"]

triton.KERNELS.update(dict.fromkeys(__all__, triton.narrow))


def check_weight(clause: str, w: Tensor, bits: int) -> Tensor:
    """Refuse a width and a shape that StatsQ has no meaning for."""
    check_whole(clause, "bits", bits, 1, 16)
    w = as_weights(clause, "w", w)
    check_steps(clause, w.shape)
    return w


def by_scale(x: Tensor) -> Tensor:
    """(..., m, k) as (m, everything that shares the scale)."""
    return x if x.ndim == 2 else x.movedim(-2, 0).reshape(x.shape[-2], x.numel() // max(x.shape[-2], 1))


def back(x: Tensor, shape: torch.Size) -> Tensor:
    """:func:`by_scale`, undone."""
    if len(shape) == 2:
        return x
    return x.reshape(shape[-2], *shape[:-2], shape[-1]).movedim(0, -2).contiguous()


def row_scales(clause: str, w: Tensor) -> Tensor:
    """Scales (m,) of a checked weight, in working precision."""
    rows, dtype = by_scale(w), working_dtype(w)
    out = torch.zeros(rows.shape[0], dtype=dtype, device=w.device)
    if rows.numel():
        for part in row_chunks(rows.shape[0], rows.shape[1], w.device):
            out[part] = rows[part].to(dtype).abs().sum(-1)
    if not bool(torch.isfinite(out).all()):
        refuse_nan(clause, "w", w)
    return out.div_(max(rows.shape[1], 1)).mul_(2)


def in_steps(rows: Tensor, alpha: Tensor, n: int) -> Tensor:
    """n w / α as a fresh tensor, 0 where α is."""
    return (rows.to(alpha.dtype) / torch.where(alpha > 0, alpha, 1)[:, None]).mul_(n)


def quantized(w: Tensor, n: int, clause: str, *, with_codes: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """Values, codes where they are wanted, and scales (m,) of a checked weight; chunk by chunk, in the cache."""
    rows, dtype = by_scale(w), working_dtype(w)
    values = torch.empty(rows.shape, dtype=dtype, device=w.device)
    codes = torch.empty(rows.shape, dtype=torch.int32, device=w.device) if with_codes else None
    alpha = torch.zeros(rows.shape[0], dtype=dtype, device=w.device)
    if rows.numel():
        for part in row_chunks(rows.shape[0], rows.shape[1], w.device):
            x = rows[part].to(dtype)
            a = x.abs().sum(-1).div_(rows.shape[1]).mul_(2)
            alpha[part] = a
            k = in_steps(x, a, n).sub_(0.5).round_().clamp_(-n, n - 1)
            if codes is not None:
                codes[part] = k
            torch.mul(k.add_(0.5), (a / n)[:, None], out=values[part])
    if not bool(torch.isfinite(alpha).all()):
        refuse_nan(clause, "w", w)
    return back(values, w.shape), None if codes is None else back(codes, w.shape), alpha


def quantized_by_kernel(w: Tensor, n: int, clause: str, *, with_codes: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """:func:`quantized` by a kernel."""
    if not w.numel():
        return quantized(w, n, clause, with_codes=with_codes)
    values, codes, alpha = triton.launcher("oscillation").statsq(by_scale(w).contiguous(), n, with_codes)
    if not bool(torch.isfinite(alpha).all()):
        refuse_nan(clause, "w", w)
    return back(values, w.shape), None if codes is None else back(codes, w.shape), alpha


@operation
def statsq(w: Tensor, /, *, bits: int) -> StatsCode[Tensor]:
    """Quantize a weight to 2^bits levels around zero, the step from its mean magnitude.  [O-1, O-2]"""
    w = check_weight("O-1", w, bits)
    serve = quantized_by_kernel if by_kernel("statsq", w) else quantized
    values, codes, alpha = serve(w, 1 << (bits - 1), "O-1", with_codes=True)
    assert codes is not None
    return StatsCode(values, codes, alpha.reshape(*(1,) * (w.ndim - 2), -1, 1))


@operation
def statsq_grad(w: Tensor, grad: Tensor, /, *, bits: int, path: GradientPath = "straight-through") -> Tensor:
    """Gradient for ``w`` from that for its quantized values.  [O-3, O-3a]"""
    check_words("O-3", path=path)
    w = check_weight("O-3", w, bits)
    grad = as_weights("O-3", "grad", grad, like=w)
    if grad.shape != w.shape:
        raise SpecError("O-3", f"grad {tuple(grad.shape)} must have the shape of w, {tuple(w.shape)}")
    n, through_scale = 1 << (bits - 1), path == "scale"

    def refuse() -> None:
        refuse_nan("O-3", "w", w)
        refuse_nan("O-3", "grad", grad)

    if w.numel() and by_kernel("statsq_grad", w, grad):
        if through_scale:
            rows, g = by_scale(w).contiguous(), by_scale(grad).contiguous()
            found, bad = triton.launcher("oscillation").statsq_pull(rows, g, n)
            out = back(found, w.shape)
        else:  # the gradient as it came is what passes inside no clip
            out, bad = triton.launcher("ternary").straight_through(grad.contiguous(), w.contiguous(), math.inf)
        if bool(bad.any()):
            refuse()
        return out
    refuse()
    dtype = working_dtype(w, grad)
    if not through_scale:
        return grad.to(dtype, copy=True)
    rows, g = by_scale(w), by_scale(grad)
    alpha = row_scales("O-3", w)
    k = in_steps(rows, alpha, n).sub_(0.5).round_().clamp_(-n, n - 1).to(dtype)
    pull = k.add_(0.5).div_(n).mul_(g).sum(-1, keepdim=True).mul_(2).div_(max(rows.shape[1], 1))
    return back(rows.to(dtype).sign() * pull, w.shape)
