"""Q: affine grids x ≈ s (code − z), per tensor, row, token or group, and the search for a clipping ratio.

Grouping is always along the last axis. Four schemes, because the literature means four things by two words:

===================  ==========================  ============================================  ==================
scheme               codes                       scale                                         published in
===================  ==========================  ============================================  ==================
``asymmetric``       0 … 2^b − 1                 (hi − lo) / (2^b − 1)                         GPTQ, QuaRot
``symmetric``        −2^(b−1) … 2^(b−1) − 1      max|x| / (2^(b−1) − 1)                        QuaRot, RoLoRA
``symmetric-full``   −2^(b−1) … 2^(b−1) − 1      2 max|x| / (2^b − 1)                          GPTQ ``--sym``
``symmetric-gptq``   −2^(b−1) … 2^(b−1) − 1      max|x| / (2^b − 1) without negative values    GPTQ ``--sym``, exactly
===================  ==========================  ============================================  ==================

GPTQ stores the last two as unsigned codes with z = 2^(b−1); these are the same codes minus z.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from . import checks
from .checks import F64, I32, Array
from .errors import SpecError
from .rounding import round_clip, round_half_even
from .types import GRANULARITIES, SCHEMES, ClippedGrid, Granularity, Grid, ScaleDtype, Scheme

__all__ = ["clip_search", "dequantize", "fit_grid", "quantize"]

SMALLEST = 2.0**-126  # the smallest normal float32, and bfloat16: no scale is below it


def code_range(bits: int, scheme: Scheme) -> tuple[int, int]:
    """First and last code.  [Q-1]  Asymmetric: 1 to 8 bits; symmetric: 2 to 8, since one signed bit has no 1."""
    checks.choice(scheme, SCHEMES, "scheme", "Q-1")
    bits = checks.whole(bits, f"bits of scheme {scheme!r}", "Q-1", low=1 if scheme == "asymmetric" else 2, high=8)
    return (0, 2**bits - 1) if scheme == "asymmetric" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def groups(x: F64, granularity: Granularity, group_size: int | None) -> F64:
    """x seen as (shape of the scale, values that share it).  [Q-2]

    "tensor" (1,)·ndim + (size,); "row", "token" (..., 1, k); "group" (..., k/g, g). An empty group reads as one 0.
    """
    checks.choice(granularity, GRANULARITIES, "granularity", "Q-2")
    if (group_size is None) != (granularity != "group"):
        raise SpecError("Q-2", f"group_size {group_size} does not go with granularity {granularity!r}")
    if granularity == "tensor":
        v = x.reshape((1,) * x.ndim + (x.size,))
    elif x.ndim == 0 or (granularity == "row" and x.ndim != 2):
        raise SpecError("Q-2", f"x of shape {x.shape} has no {granularity!r}")
    elif group_size is None:
        v = x[..., None, :]
    else:
        k = x.shape[-1]
        group_size = checks.whole(group_size, "group_size", "Q-2", low=1)
        if k % group_size:
            raise SpecError("Q-2", f"group size {group_size} does not divide axis length {k}")
        v = x.reshape(*x.shape[:-1], k // group_size, group_size)
    return v if v.shape[-1] else np.zeros((*v.shape[:-1], 1))


def round_scale(scale: F64, dtype: ScaleDtype | None) -> F64:
    """Scale rounded to nearest-even in the dtype it is stored in, at least its smallest normal.  [Q-2]

    Directly from float64, never through a third format: two roundings are not one.
    """
    checks.choice(dtype, (None, "float32", "float16", "bfloat16"), "scale_dtype", "Q-2")
    if dtype == "bfloat16":
        mantissa, exponent = np.frexp(scale)
        rounded = np.ldexp(np.rint(mantissa * 2**8), exponent - 8)  # 8 significant bits
        rounded = np.where(rounded < 2.0**128, rounded, np.inf)
    else:
        with np.errstate(over="ignore", under="ignore"):
            rounded = scale.astype(dtype or "float64").astype(np.float64)
    if not np.isfinite(rounded).all():
        raise SpecError("Q-2", f"a scale of {scale.max():.4g} overflows {dtype or 'float64'}")
    return np.asarray(np.maximum(rounded, 2.0**-14 if dtype == "float16" else SMALLEST))


def fit_grid(
    x: npt.ArrayLike,
    /,
    *,
    bits: int,
    scheme: Scheme = "asymmetric",
    granularity: Granularity = "row",
    group_size: int | None = None,
    clip_ratio: float = 1.0,
    include_zero: bool = True,
    range_floor: float = 0.0,
    scale_dtype: ScaleDtype | None = None,
) -> Grid[Array]:
    """Min-max grid of every group.  [Q-2, Q-8]

        lo = p min(x, 0),   hi = p max(x, 0)              without the 0 when include_zero is False     (Q.1)
        s = (hi − lo) / (2^b − 1),   z = round(−lo / s)   asymmetric                                   (Q.2)
        a = p max(range_floor, max|x|),   z = 0           the symmetric schemes                        (Q.3)
        s = a / (2^(b−1) − 1)                             symmetric                                    (Q.4)
        s = 2a / (2^b − 1)                                symmetric-full                               (Q.5)

    with p = clip_ratio in (0, 1]. ``symmetric-gptq`` is (Q.5) with a for 2a in groups without a negative value: the
    published code leaves their low end at 0, so they saturate at half their range. Kept to reproduce it, nothing else.

    Degenerate groups [Q-8]: an all-zero or empty group has lo, hi = −1, 1 in (Q.2), z = round((2^b − 1)/2), and
    s = 1 in (Q.4), 2 / (2^b − 1) in (Q.5); its values come back as exactly 0. Without the 0 in (Q.1), a constant
    group has hi = lo, where the published activation quantizer answers NaN: it falls back to the range with 0, and
    so does a group so narrow and so far from 0 that z leaves int32. No scale is below 2⁻¹²⁶.

    Shapes: x any for "tensor" and "token", (m, k) for "row", (..., k) with group_size | k for "group";
    scale float64 and zero_point int32: (1,)·ndim, (..., 1) or (..., k / group_size).
    s is rounded to scale_dtype first and z computed from the rounded s [Q-2c]. z lies in 0 … 2^b − 1 if the range holds
    0: an s that was rounded down would ask for 2^b, which has no code, and 0 would not come back as 0.
    Source: GPTQ ``Quantizer.find_params``; QuaRot ``quant_utils.py`` (range_floor is its ``clamp(min=1e-5)``, its
    groupwise activations are include_zero=False). Deliberately not: MSE-optimal grids (see clip_search), HQQ.

    >>> fit_grid([[-1.0, 2.0]], bits=2).zero_point.tolist(), fit_grid([[0.0, 0.0]], bits=4).zero_point.tolist()
    ([[1]], [[8]])
    >>> [fit_grid([[3.0, 7.0]], bits=4, scheme=s).scale.item() for s in ("symmetric", "symmetric-gptq")]
    [1.0, 0.4666666666666667]
    """
    first, last = code_range(bits, scheme)
    p = checks.number(clip_ratio, "clip_ratio", "Q-2", low=0.0, high=1.0, above=True)
    floor = checks.number(range_floor, "range_floor", "Q-2", low=0.0)
    v = groups(checks.finite(x, "x", "Q-2"), granularity, group_size)
    n = last - first  # 2^b − 1
    lo, hi = v.min(axis=-1), v.max(axis=-1)
    lo0, hi0 = np.minimum(lo, 0), np.maximum(hi, 0)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        if scheme == "asymmetric":
            lo0, hi0 = p * lo0, p * hi0  # (Q.1)
            empty = (lo0 == 0) & (hi0 == 0)
            lo0, hi0 = np.where(empty, -1.0, lo0), np.where(empty, 1.0, hi0)
            s = round_scale((hi0 - lo0) / n, scale_dtype)  # (Q.2)
            z = np.where(empty, round_half_even(n / 2), np.minimum(round_half_even(-lo0 / s), n))
            if not include_zero:
                lo, hi = p * lo, p * hi
                narrow = round_scale((hi - lo) / n, scale_dtype)
                apart = (hi > lo) & (np.abs(lo / narrow) < 2.0**31 - 1)  # else constant, or nearly: Q-8
                shifted = np.minimum(round_half_even(-lo / narrow), np.where(hi < 0, np.inf, n))
                s, z = np.where(apart, narrow, s), np.where(apart, shifted, z)
            return Grid(s, z.astype(np.int32))
        a = np.maximum(np.maximum(-lo0, hi0), floor)
        empty, a = a == 0, p * a  # (Q.3)
        if scheme == "symmetric":
            s = np.where(empty, 1.0, a / last)  # (Q.4), Q-8
        else:
            width = np.where(lo0 < 0, 2 * a, a) if scheme == "symmetric-gptq" else 2 * a
            s = np.where(empty, 2.0, width) / n  # (Q.5), Q-8
        zero: Array = np.zeros(s.shape, np.int32)
        return Grid(round_scale(s, scale_dtype), zero)


def spread(scale: F64, shape: tuple[int, ...], clause: str) -> F64:
    """Scales (or zero points) repeated over the columns that they cover: last axis G → k, k/G columns each.  [Q-3]"""
    if scale.ndim != len(shape):
        raise SpecError(clause, f"scale of shape {scale.shape} does not cover values of shape {shape}")
    if scale.ndim:
        k, g = shape[-1], scale.shape[-1]
        if k % g if g else k:
            raise SpecError(clause, f"{g} scales do not divide axis length {k}")
        scale = np.repeat(scale, k // g if g else 0, axis=-1)
    try:
        return np.asarray(np.broadcast_to(scale, shape))
    except ValueError as error:
        raise SpecError(clause, f"scale of shape {scale.shape} does not cover values of shape {shape}") from error


def affine(scale: npt.ArrayLike, zero_point: npt.ArrayLike, shape: tuple[int, ...], clause: str) -> tuple[F64, F64]:
    """Checked scale > 0 and integer zero point of the same shape, spread over values of the given shape."""
    s = checks.finite(scale, "scale", clause)
    z = checks.integers(zero_point, "zero_point", clause)
    if (s <= 0).any():
        raise SpecError(clause, f"scale must be above 0, got {s.min()}")
    if s.shape != z.shape:
        raise SpecError(clause, f"zero_point of shape {z.shape} must have the shape of scale, {s.shape}")
    return spread(s, shape, clause), spread(z.astype(np.float64), shape, clause)


def quantize(
    x: npt.ArrayLike, scale: npt.ArrayLike, zero_point: npt.ArrayLike, /, *, bits: int, scheme: Scheme = "asymmetric"
) -> I32:
    """Codes of x.  [Q-1, Q-3]

        code = clip(round(x / s) + z, first, last)                                                     (Q.6)

    Shapes: x (..., k), scale and zero_point with the same number of axes, broadcastable but for the last axis G,
    where each scale covers k/G consecutive columns → int32 (..., k). Divide: x · (1/s) rounds twice.

    >>> quantize([[0.5, 1.5, 2.5, 9.0]], [[1.0]], [[0]], bits=2).tolist()
    [[0, 2, 2, 3]]
    """
    first, last = code_range(bits, scheme)
    a = checks.finite(x, "x", "Q-3")
    s, z = affine(scale, zero_point, a.shape, "Q-3")
    with np.errstate(over="ignore"):
        return round_clip(round_half_even(a / s) + z, low=first, high=last)  # (Q.6)


def dequantize(codes: npt.ArrayLike, scale: npt.ArrayLike, zero_point: npt.ArrayLike, /) -> F64:
    """Values of codes.  [Q-4]

        x̂ = s (code − z)                                                                               (Q.7)

    Shapes: codes (..., k) integer, scale and zero_point as in quantize → float (..., k). code − z is exact, so the
    one rounding is that of the product.

    >>> dequantize([[0, 3, 15]], [[0.5]], [[3]]).tolist()
    [[-1.5, 0.0, 6.0]]
    """
    q = checks.integers(codes, "codes", "Q-4")
    s, z = affine(scale, zero_point, q.shape, "Q-4")
    return s * (q - z)  # (Q.7)


def clip_search(
    x: npt.ArrayLike,
    /,
    *,
    bits: int,
    scheme: Scheme = "asymmetric",
    granularity: Granularity = "row",
    group_size: int | None = None,
    norm: float = 2.4,
    grid: int = 100,
    max_shrink: float = 0.8,
    range_floor: float = 0.0,
    scale_dtype: ScaleDtype | None = None,
) -> ClippedGrid[Array]:
    """Grid of the clipping ratio with the least error, by trying them all.  [Q-5]

        p_i = 1 − i / grid,   i = 0 … ⌊max_shrink · grid⌋ − 1                                          (Q.8)
        i* = argmin_i Σ |x̂(p_i) − x|^norm over the group, the largest ratio among equals               (Q.9)

    Shapes: as fit_grid, and step int32 with i*. The zero point is recomputed for every ratio. A group that every
    ratio represents equally well (all zero) keeps step 0.
    Source: GPTQ ``find_params(mse=True)``, QuaRot and RoLoRA ``--w_clip`` (80 ratios 1.00 … 0.21).

    >>> clip_search([[0.0, 0.0], [0.2, 2.0]], bits=2).step.tolist()
    [[0], [0]]
    """
    norm = checks.number(norm, "norm", "Q-5", low=0.0, above=True)
    grid = checks.whole(grid, "grid", "Q-5", low=1)
    max_shrink = checks.number(max_shrink, "max_shrink", "Q-5", low=0.0, high=1.0)
    v = groups(checks.finite(x, "x", "Q-5"), granularity, group_size)
    scale: Array = np.ones(v.shape[:-1])
    zero_point: Array = np.zeros(v.shape[:-1], np.int32)
    step: Array = np.zeros(v.shape[:-1], np.int32)
    least = np.full(v.shape[:-1], np.inf)
    for i in range(max(1, math.floor(max_shrink * grid))):
        s, z = fit_grid(
            v, bits=bits, scheme=scheme, granularity="token", clip_ratio=1 - i / grid,  # (Q.8)
            range_floor=range_floor, scale_dtype=scale_dtype,
        )  # fmt: skip
        restored = dequantize(quantize(v, s, z, bits=bits, scheme=scheme), s, z)
        error = (np.abs(restored - v) ** norm).sum(axis=-1)
        better = error < least  # strict, so the larger ratio wins ties
        least = np.where(better, error, least)
        scale, zero_point = np.where(better, s[..., 0], scale), np.where(better, z[..., 0], zero_point)
        step[better] = i  # (Q.9)
    return ClippedGrid(scale, zero_point, step)
