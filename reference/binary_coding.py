"""B: binary-coding quantization, w ≈ Σ_i α_i b_i (+ o) with b_i ∈ {−1, +1}, and the product that looks sums up.

A group of g consecutive weights of a row shares q scales α and, in the offset form, one offset o. The signs of a
weight are the bits of one integer,

    code = Σ_i 2^i [b_i = +1],   value = o + Σ_i α_i (2 bit_i − 1)                                      (B.1)

so that a uniform grid is the special case α_i = s 2^(i−1) *with the same integers* (:func:`bcq_from_grid`).

Finding the code is combinatorial; here are the three methods in use: greedy and refined greedy (Guo et al. 2017,
"Network Sketching"), and alternating minimisation (Xu et al. 2018, "Alternating Multi-bit Quantization"). The product
is BiQGEMM (Jeon et al. 2020) and LUT-GEMM (Park et al. 2022). Deliberately not here: importance weights, and scales
that are trained (AlphaTuning).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import checks, uniform
from .checks import F64, I32, Array
from .errors import SpecError
from .types import BINARY_METHODS, PRODUCT_METHODS, BinaryCode, BinaryMethod, PackedBinary, ProductMethod, Scheme

__all__ = [
    "bcq",
    "bcq_assign",
    "bcq_from_grid",
    "bcq_pack",
    "bcq_product",
    "bcq_refit",
    "bcq_unpack",
    "bcq_weight",
    "lookup_tables",
]

MOST_BITS = 8
RANK_CUT = 2.0**-11
"""Eigenvalues of a Gram matrix of at most nine ±1 columns are 0 or above this, so its rank is decided, not guessed.

Independent columns hold an invertible ±1 matrix M of order p. |det M| ≥ 2^(p−1) and Σσ² = p², so its least singular
value is at least 2^(p−1) ((p − 1)/p²)^((p−1)/2): its square falls to 5.9e-4 at p = 9 (eight planes and the offset),
and further rows only raise it.
"""


# --- groups, signs, levels --------------------------------------------------------------------------------------------


def group_count(k: int, group_size: int | None, clause: str) -> int:
    """Groups along an axis of length k: 1 for whole rows, else k / group_size.  [B-1]"""
    if group_size is None:
        return 1
    group_size = checks.whole(group_size, "group_size", clause, low=1)
    if k % group_size:
        raise SpecError(clause, f"group size {group_size} does not divide axis length {k}")
    return k // group_size


def signs(codes: npt.NDArray[Any], bits: int) -> F64:
    """b_i = 2 bit_i − 1: (..., g) → (..., g, q).  (B.1)"""
    return np.asarray(2.0 * ((codes[..., None] >> np.arange(bits)) & 1) - 1.0, np.float64)


def levels(alpha: F64, o: F64) -> F64:
    """Value of every code, (..., q) and (...) → (..., 2^q).  (B.1)"""
    q = alpha.shape[-1]
    return np.asarray(o[..., None] + (alpha[..., None, :] * signs(np.arange(2**q), q)).sum(axis=-1))


def nearest_code(v: F64, alpha: F64, o: F64) -> I32:
    """Code of the nearest level, by counting thresholds.  [B-5]  (B.6)

    Levels ascend, equal ones by code; w belongs right of a midpoint that it reaches.
    """
    level = levels(alpha, o)
    order = np.argsort(level, axis=-1, kind="stable")
    level = np.take_along_axis(level, order, axis=-1)
    midpoint = level[..., :-1] + (level[..., 1:] - level[..., :-1]) / 2
    place: I32 = np.zeros(v.shape, np.int32)
    for t in range(midpoint.shape[-1]):
        place += v >= midpoint[..., t, None]
    return np.take_along_axis(order, place, axis=-1).astype(np.int32)


def least_squares(v: F64, b: F64, offset: bool) -> tuple[F64, F64]:
    """Scales, and the offset if asked for, that fit v best on given signs; of least norm among equals.  [B-4]  (B.4)

    Shapes: v (..., g), b (..., g, q) → α (..., q), o (...). The Gram matrix holds integers: its rank is exact.
    """
    A = np.concatenate([b, np.ones((*b.shape[:-1], 1))], axis=-1) if offset else b
    L, Q = np.linalg.eigh(np.swapaxes(A, -1, -2) @ A)
    inverse = np.where(L > RANK_CUT, 1 / np.maximum(L, RANK_CUT), 0.0)
    rhs = (A * v[..., None]).sum(axis=-2)
    x = (Q @ (inverse * (np.swapaxes(Q, -1, -2) @ rhs[..., None])[..., 0])[..., None])[..., 0]  # (B.4)
    return (x[..., :-1], x[..., -1]) if offset else (x, np.zeros(x.shape[:-1]))


def greedy(v: F64, bits: int, offset: bool, refined: bool) -> tuple[I32, F64, F64]:
    """Planes one by one from the residual.  [B-1, B-2]  (B.2), (B.3), (B.5)"""
    g = max(v.shape[-1], 1)
    o = v.sum(axis=-1) / g if offset else np.zeros(v.shape[:-1])
    r = v - o[..., None]
    codes: I32 = np.zeros(v.shape, np.int32)
    alpha = np.zeros((*v.shape[:-1], bits))
    for i in range(bits):
        codes |= (r >= 0).astype(np.int32) << i  # (B.2), sign(0) = +1
        b = signs(codes, i + 1)
        alpha[..., i] = np.abs(r).sum(axis=-1) / g  # (B.3)
        if refined:
            alpha[..., : i + 1], o = least_squares(v, b, offset)  # (B.5)
            r = v - o[..., None] - (b * alpha[..., None, : i + 1]).sum(axis=-1)
        else:
            r = r - alpha[..., i, None] * b[..., i]
    return codes, alpha, o


def canonical(codes: I32, alpha: F64) -> tuple[I32, F64]:
    """The same values with scales ≥ 0 that descend: planes flipped and exchanged, equal scales left in order.  [B-3]"""
    negative = (alpha < 0) @ (1 << np.arange(alpha.shape[-1]))
    codes = codes ^ negative[..., None].astype(np.int32)
    alpha = np.abs(alpha)
    order = np.argsort(-alpha, axis=-1, kind="stable")
    renamed: I32 = np.zeros_like(codes)
    for i in range(alpha.shape[-1]):
        renamed |= ((codes >> order[..., i, None]) & 1).astype(np.int32) << i
    return renamed, np.take_along_axis(alpha, order, axis=-1)


# --- operations -------------------------------------------------------------------------------------------------------


def bcq(
    w: npt.ArrayLike,
    /,
    *,
    bits: int,
    group_size: int | None = None,
    method: BinaryMethod = "alternating",
    rounds: int = 15,
    offset: bool = False,
) -> BinaryCode[Array]:
    """Binary code of a weight.  [B-1, B-2, B-3]

        b_i = sign(r_{i−1}),   sign(0) = +1,   r_0 = w − o,   o = mean w or 0                            (B.2)
        α_i = mean |r_{i−1}|,   r_i = r_{i−1} − α_i b_i                       greedy                     (B.3)
        α_1 … α_i, o = least squares of w on b_1 … b_i                        refined, after every i     (B.5)
        rounds × [ α, o = least squares of w on B;  B = nearest levels ]      alternating, from the greedy B,
        then once more α, o = least squares of w on B                         so that the scales fit the codes

    with least squares (B.4) and nearest levels (B.6) as in :func:`bcq_refit` and :func:`bcq_assign`. Neither step of
    a round raises the error; the result is a local optimum. α_i of (B.3) *is* the least-squares scale of its step,
    ‖r_i‖² = ‖r_{i−1}‖² − g α_i², but scales need not descend, neither greedy nor refined. Those of "alternating" do,
    and are ≥ 0: planes are flipped and exchanged, which leaves every value as it is.

    Shapes: w (m, k); bits 1 to 8; a group is a row (G = 1), or group_size | k consecutive columns, never rows of a
    column → codes int32 (m, k), scale (m, G, q), offset (m, G) or None. A group is first divided by the power of two
    below its largest magnitude, so that the code of 2ⁿw is that of w.
    Source: Guo et al. 2017, alg. 1 and 2 ("greedy", "refined"); Xu et al. 2018, alg. 2, eq. 8 ("alternating").
    LUT-GEMM's example differs in four places: :func:`published_bcq`.

    >>> code = bcq([[-3.0, -1.0, 1.0, 3.0]], bits=2)
    >>> code.codes.tolist(), code.scale.tolist()
    ([[0, 2, 1, 3]], [[[2.0, 1.0]]])
    >>> bcq([[0.0, 4.0]], bits=1, method="greedy").codes.tolist()    # the sign of 0 is +1
    [[1, 1]]
    """
    q = checks.whole(bits, "bits", "B-1", low=1, high=MOST_BITS)
    checks.choice(method, BINARY_METHODS, "method", "B-1")
    rounds = checks.whole(rounds, "rounds", "B-3", low=0)
    checks.choice(offset, (False, True), "offset", "B-1")
    W = checks.finite(w, "w", "B-1", ndim=2)
    m, k = W.shape
    G = group_count(k, group_size, "B-1")
    v = W.reshape(m, G, k // G if G else 0)
    unit = exponent(v)
    v = np.ldexp(v, -unit[..., None])
    codes, alpha, o = greedy(v, q, offset, method == "refined")
    if method == "alternating":
        for _ in range(rounds):
            alpha, o = least_squares(v, signs(codes, q), offset)
            before, codes = codes, nearest_code(v, alpha, o)
            if (codes == before).all():  # a fixed point: further rounds change nothing
                break
        alpha, o = least_squares(v, signs(codes, q), offset)
        codes, alpha = canonical(codes, alpha)
    return result(codes.reshape(m, k), np.ldexp(alpha, unit[..., None]), np.ldexp(o, unit) if offset else None)


def exponent(v: F64) -> npt.NDArray[np.int64]:
    """e with 2^e ≤ max|v| < 2^(e+1) for every group, 0 for one of zeros."""
    largest = np.abs(v).max(axis=-1, initial=0.0)
    return np.where(largest > 0, np.frexp(largest)[1] - 1, 0)


def result(codes: I32, alpha: F64, o: F64 | None) -> BinaryCode[Array]:
    """The named tuple."""
    return BinaryCode(codes, alpha, o)


def bcq_refit(
    w: npt.ArrayLike, codes: npt.ArrayLike, /, *, bits: int, group_size: int | None = None, offset: bool = False
) -> BinaryCode[Array]:
    """Least-squares scales of given codes.  [B-4]

        α, o = argmin ‖w − B α − o 1‖²,   of least norm when planes depend on each other                 (B.4)

    Shapes: w (m, k), codes (m, k) integers 0 … 2^bits − 1 → the same codes, scale (m, G, q), offset (m, G) or None.
    Planes that coincide, or a plane that is constant beside an offset, are common in small groups, and the solver
    must not divide by their 0: BᵀB holds integers, so whether it is singular is known exactly (RANK_CUT). Scales may
    be negative and in any order.
    Source: Xu et al. 2018, eq. 8. LUT-GEMM's example takes q steps of conjugate gradients with 1e-6 in the
    denominators, which is not scale-free: weights near 1e-4 are fitted visibly worse there.

    >>> bcq_refit([[1.0, 5.0]], [[3, 3]], bits=2).scale.round(12).tolist()    # two equal planes share the mean
    [[[1.5, 1.5]]]
    """
    q = checks.whole(bits, "bits", "B-4", low=1, high=MOST_BITS)
    checks.choice(offset, (False, True), "offset", "B-4")
    W = checks.finite(w, "w", "B-4", ndim=2)
    C = code_matrix(codes, q, "B-4")
    if C.shape != W.shape:
        raise SpecError("B-4", f"codes of shape {C.shape} must have the shape of w, {W.shape}")
    m, k = W.shape
    G = group_count(k, group_size, "B-4")
    shape = (m, G, k // G if G else 0)
    v, c = W.reshape(shape), C.reshape(shape)
    unit = exponent(v)
    alpha, o = least_squares(np.ldexp(v, -unit[..., None]), signs(c, q), offset)
    return result(C, np.ldexp(alpha, unit[..., None]), np.ldexp(o, unit) if offset else None)


def bcq_assign(w: npt.ArrayLike, scale: npt.ArrayLike, offset: npt.ArrayLike | None, /) -> I32:
    """Codes of the nearest levels.  [B-5]

        v_0 ≤ v_1 ≤ … the 2^q levels o + Σ ± α_i, equal ones in the order of their codes
        code = code of v_p,   p = #{ j : w ≥ (v_j + v_{j+1}) / 2 }                                       (B.6)

    Shapes: w (m, k), scale (m, G, q), offset (m, G) or None, G | k → int32 (m, k). Scales of any sign and order. An
    exact midpoint goes to the larger level: with one plane this is sign(0) = +1. Of equal levels a weight that
    reaches them takes the largest code, one below them the smallest.
    Source: Xu et al. 2018, section 3 (a binary search there; LUT-GEMM's tree has the same tie).

    >>> bcq_assign([[-1.0, 0.0, 1.0]], [[[0.5, 0.5]]], None).tolist()    # levels -1, 0, 0, 1
    [[0, 2, 3]]
    """
    W = checks.finite(w, "w", "B-5", ndim=2)
    alpha, o = scales(scale, offset, W.shape, "B-5")
    m, G = o.shape
    v: F64 = W.reshape(m, G, W.shape[1] // G if G else 0)
    unit = np.maximum(exponent(v), exponent(np.concatenate([alpha, o[..., None]], axis=-1)))
    v, alpha, o = np.ldexp(v, -unit[..., None]), np.ldexp(alpha, -unit[..., None]), np.ldexp(o, -unit)
    return nearest_code(v, alpha, o).reshape(W.shape)


def bcq_weight(codes: npt.ArrayLike, scale: npt.ArrayLike, offset: npt.ArrayLike | None, /) -> F64:
    """Values of codes.  [B-6]  (B.1)

        ŵ = o + Σ_i α_i (2 bit_i − 1)

    Shapes: codes (m, k) integers 0 … 2^q − 1, scale (m, G, q), offset (m, G) or None, G | k → float (m, k).

    >>> bcq_weight([[0, 1, 2, 3]], [[[2.0, 0.5]]], [[10.0]]).tolist()
    [[7.5, 11.5, 8.5, 12.5]]
    """
    alpha, o = scales(scale, offset, np.shape(codes), "B-6")
    m, G, q = alpha.shape
    C = code_matrix(codes, q, "B-6")
    k = C.shape[1]
    value = levels(alpha, o)  # (m, G, 2^q)
    return np.take_along_axis(value, C.reshape(m, G, k // G if G else 0), axis=-1).reshape(m, k)


def bcq_from_grid(
    codes: npt.ArrayLike,
    scale: npt.ArrayLike,
    zero_point: npt.ArrayLike,
    /,
    *,
    bits: int,
    scheme: Scheme = "asymmetric",
) -> BinaryCode[Array]:
    """A uniform grid as a binary code, exactly.  [B-7]

        s (code − z) = o + Σ_i α_i (2 bit_i − 1),   bits of code − first                                 (B.7)
        α_i = s 2^(i−1), i = 0 … b − 1,   o = s ((2^b − 1)/2 + first − z)

    Shapes: codes (m, k) of :func:`quantize`, scale and zero_point (m, G) or (1, G) or (1, 1), G | k → codes int32
    (m, k), scale (m, G, b), offset (m, G). first is 0 for asymmetric codes and −2^(b−1) for symmetric ones. α is a
    shift of s; o is rounded once. Planes *ascend* here: plane b − 1 has the largest scale.
    Source: LUT-GEMM ``rtn_parameter.py``. Back to an integer zero point only if o/s + 1/2 is whole and α doubles.

    >>> code = bcq_from_grid([[0, 3]], [[1.0]], [[1]], bits=2)
    >>> code.codes.tolist(), code.scale.tolist(), code.offset.tolist()
    ([[0, 3]], [[[0.5, 1.0]]], [[0.5]])
    """
    first, last = uniform.code_range(bits, scheme)
    C = checks.integers(codes, "codes", "B-7", ndim=2)
    s, z = uniform.affine(scale, zero_point, C.shape, "B-7")  # spread over columns; refuses what does not fit
    refuse_outside(C, first, last, "B-7")
    m, k = C.shape
    G = np.shape(scale)[-1]
    if k:
        s, z = s[:, :: k // G], z[:, :: k // G]  # one of the columns that each covers
    else:
        s, z = (np.asarray(np.broadcast_to(np.asarray(a, np.float64), (m, G))) for a in (scale, zero_point))
    alpha = s[..., None] * 2.0 ** (np.arange(bits) - 1)
    o = s * ((last - first) / 2 + first - z)  # (B.7)
    return result((C - first).astype(np.int32), alpha, o)


def scales(scale: npt.ArrayLike, offset: npt.ArrayLike | None, shape: tuple[int, ...], clause: str) -> tuple[F64, F64]:
    """Checked scale (m, G, q) and offset (m, G), zeros for None, of values of the given shape."""
    alpha = checks.finite(scale, "scale", clause, ndim=3)
    m, G, q = alpha.shape
    q = checks.whole(q, "planes of scale", clause, low=1, high=MOST_BITS)
    o = np.zeros((m, G)) if offset is None else checks.finite(offset, "offset", clause, ndim=2)
    if o.shape != (m, G):
        raise SpecError(clause, f"offset of shape {o.shape} must have shape {(m, G)}")
    if len(shape) != 2 or shape[0] != m or (shape[1] % G if G else shape[1]):
        raise SpecError(clause, f"scale of shape {alpha.shape} does not cover values of shape {shape}")
    return alpha, o


def code_matrix(codes: npt.ArrayLike, q: int, clause: str) -> I32:
    """Checked codes (m, k) of q planes."""
    C = checks.integers(codes, "codes", clause, ndim=2)
    refuse_outside(C, 0, 2**q - 1, clause)
    return C.astype(np.int32)


def refuse_outside(codes: npt.NDArray[np.int64], first: int, last: int, clause: str) -> None:
    """Refuse a code outside first … last."""
    outside = (codes < first) | (codes > last)
    if outside.any():
        i, j = (int(n) for n in np.argwhere(outside)[0])
        raise SpecError(clause, f"code {codes[i, j]} at ({i}, {j}) is outside {first}..{last}")


# --- packed planes and the product ------------------------------------------------------------------------------------


def bcq_pack(codes: npt.ArrayLike, scale: npt.ArrayLike, offset: npt.ArrayLike | None, /) -> PackedBinary[Array]:
    """Bit planes of a code as the product reads them, output rows running fastest.  [B-8]

        bit j mod 32 of planes[⌊j / 32⌋, i, row] = bit i of codes[row, j]                                (B.8)

    Shapes: codes (m, k), scale (m, G, q), offset (m, G) or None → planes int32 (⌈k/32⌉, q, m), scale (G, q, m),
    offset (G, m) or None. 1 is +1; bits beyond k are 0. Neighbouring rows are neighbouring words, so that a vector
    register holds the same columns of many rows.
    Source: the layout of LUT-GEMM's kernel. Its example stores planes differently: :func:`published_pack`.

    >>> bcq_pack([[1, 2, 3]], [[[2.0, 1.0]]], None).planes.tolist()
    [[[5], [6]]]
    """
    alpha, o = scales(scale, offset, np.shape(codes), "B-8")
    m, _, q = alpha.shape
    C = code_matrix(codes, q, "B-8")
    words = -(-C.shape[1] // 32)
    padded = np.zeros((m, words * 32), np.int32)
    padded[:, : C.shape[1]] = C
    bit = (padded.reshape(m, words, 32)[:, :, None, :] >> np.arange(q)[:, None]) & 1  # (m, words, q, 32)
    packed = np.packbits(bit.astype(np.uint8), axis=-1, bitorder="little").view("<u4")[..., 0]  # (B.8)
    planes = np.ascontiguousarray(packed.transpose(1, 2, 0)).astype(np.uint32).view(np.int32)
    return PackedBinary(
        planes, np.ascontiguousarray(alpha.transpose(1, 2, 0)), None if offset is None else np.ascontiguousarray(o.T)
    )


def packed(
    planes: npt.ArrayLike, scale: npt.ArrayLike, offset: npt.ArrayLike | None, length: int, clause: str
) -> tuple[I32, F64, F64]:
    """Checked planes as codes (m, k), scale (m, G, q) and offset (m, G)."""
    length = checks.whole(length, "length", clause, low=0)
    P = checks.integers(planes, "planes", clause, ndim=3)
    alpha = checks.finite(scale, "scale", clause, ndim=3).transpose(2, 0, 1)
    o = None if offset is None else checks.finite(offset, "offset", clause, ndim=2).T
    alpha, o = scales(alpha, o, (P.shape[2], length), clause)
    m, _, q = alpha.shape
    words = -(-length // 32)
    if P.shape != (words, q, m):
        raise SpecError(clause, f"{length} columns take planes of shape {(words, q, m)}, got {P.shape}")
    stream = np.ascontiguousarray(P.transpose(2, 1, 0) & 0xFFFFFFFF).astype("<u4")  # (m, q, words)
    bit = np.unpackbits(stream.view(np.uint8), axis=-1, bitorder="little")[..., :length].astype(np.int32)
    return (bit << np.arange(q)[:, None]).sum(axis=1).astype(np.int32), alpha, o


def bcq_unpack(
    planes: npt.ArrayLike, scale: npt.ArrayLike, offset: npt.ArrayLike | None, /, *, length: int
) -> BinaryCode[Array]:
    """The code that was packed; bits beyond the length are not looked at.  [B-8]

    Shapes: planes (⌈length/32⌉, q, m), scale (G, q, m), offset (G, m) or None → codes int32 (m, length),
    scale (m, G, q), offset (m, G) or None.

    >>> bcq_unpack([[[5], [6]]], [[[2.0], [1.0]]], None, length=3).codes.tolist()
    [[1, 2, 3]]
    """
    codes, alpha, o = packed(planes, scale, offset, length, "B-8")
    return result(codes, np.ascontiguousarray(alpha), None if offset is None else np.ascontiguousarray(o))


def tables(chunk: npt.NDArray[Any], half: bool) -> npt.NDArray[Any]:
    """Signed sums of the last axis, (..., μ) → (..., 2^μ), or the first half, by dynamic programming.  (B.9)"""
    width = chunk.shape[-1]
    T = 0 - chunk[..., 0]
    for s in range(1, width):
        T = T - chunk[..., s]
    T = T[..., None]  # T[0] = −Σ x, in μ subtractions
    for s in range(width - half):
        T = np.concatenate([T, T + 2 * chunk[..., s, None]], axis=-1)  # (B.9)
    return T


def lookup_tables(x: npt.ArrayLike, /, *, width: int = 8, half: bool = False) -> F64:
    """All signed sums of every μ consecutive inputs.  [B-9]

        T[key] = Σ_s (2 bit_s(key) − 1) x_s                                                              (B.9)
        T[0] = −Σ x_s,   T[i] = T[i − 2^s] + 2 x_s   for 2^s ≤ i < 2^(s+1)
        T[2^μ − 1 − i] = −T[i]: half a table is enough                                                   (B.10)

    Shapes: x (t, k), width μ from 1 to 16 → (t, ⌈k/μ⌉, 2^μ), or (t, ⌈k/μ⌉, 2^(μ−1)) with half. Inputs beyond k
    are 0. 2^μ + μ − 1 additions per table, 2^(μ−1) + μ − 1 for half of it; sign by sign it would be μ 2^μ.
    Source: Jeon et al. 2020, BiQGEMM, algorithm 1.

    >>> lookup_tables([[1.0, 10.0]], width=2).tolist(), lookup_tables([[1.0, 10.0]], width=2, half=True).tolist()
    ([[[-11.0, -9.0, 9.0, 11.0]]], [[[-11.0, -9.0]]])
    """
    width = checks.whole(width, "width", "B-9", low=1, high=16)
    checks.choice(half, (False, True), "half", "B-9")
    return np.asarray(tables(chunked(checks.finite(x, "x", "B-9", ndim=2), width), half))


def chunked(x: npt.NDArray[Any], width: int) -> npt.NDArray[Any]:
    """(..., k) → (..., ⌈k/μ⌉, μ), padded with zeros."""
    k = x.shape[-1]
    chunks = -(-k // width)
    padded = np.zeros((*x.shape[:-1], chunks * width), x.dtype)
    padded[..., :k] = x
    return padded.reshape(*x.shape[:-1], chunks, width)


def product_by_tables(
    x: npt.NDArray[Any], codes: I32, alpha: npt.NDArray[Any], o: F64 | None, *, width: int = 8, half: bool = False
) -> npt.NDArray[Any]:
    """y = Σ_groups [ Σ_i α_i Σ_chunks T[key_i] + o Σ x ], where key_i are μ bits of plane i.  (B.11)

    Shapes: x (t, k), codes (m, k), alpha (m, G, q), o (m, G) or None → (t, m).
    """
    t, k = x.shape
    m, G, q = alpha.shape
    y = np.zeros((t, m), x.dtype)
    g = k // G if G else 0
    for j in range(G):
        columns = slice(j * g, (j + 1) * g)
        T = tables(chunked(x[:, columns], width), half)  # (t, chunks, entries)
        chunk = np.arange(T.shape[1])[:, None]
        for i in range(q):
            bit = chunked((codes[:, columns] >> i) & 1, width)  # (m, chunks, μ)
            key = (bit << np.arange(width)).sum(axis=-1).T  # (chunks, m)
            upper = key >= 2 ** (width - 1)
            found = T[:, chunk, np.where(upper, 2**width - 1 - key, key) if half else key]
            if half:
                found = np.where(upper, -found, found)  # (B.10)
            y = y + alpha[:, j, i] * found.sum(axis=1, initial=0)  # (B.11)
        if o is not None:
            y = y + o[:, j] * x[:, columns].sum(axis=1, keepdims=True)
    return y


def bcq_product(
    x: npt.ArrayLike,
    planes: npt.ArrayLike,
    scale: npt.ArrayLike,
    offset: npt.ArrayLike | None,
    /,
    *,
    method: ProductMethod = "auto",
) -> F64:
    """y = x Ŵᵀ from packed planes.  [B-10]

        y_row = Σ_groups [ Σ_i α_i (b_i · x) + o Σ x ],   b_i · x = Σ_chunks T[key]   "lookup"           (B.11)
        y = x Ŵᵀ, Ŵ by (B.1)                                                          "dequantize"

    Shapes: x (t, k), and of :func:`bcq_pack` planes (⌈k/32⌉, q, m), scale (G, q, m), offset (G, m) or None → (t, m).
    Bits beyond k are not looked at. Looking up takes additions only, and one multiplication per plane and group
    (:func:`lookup_cost`), so it wins for few rows of x; for many, dense products of the dequantized weight do.
    "auto" leaves the choice to the backend. The three differ in the order of sums alone. A group may have any length.
    Source: Park et al. 2022, LUT-GEMM, section 3; Jeon et al. 2020, BiQGEMM.

    >>> packed = bcq_pack([[0, 1, 2, 3]], [[[2.0, 0.5]]], None)
    >>> bcq_product([[1.0, 1.0, 1.0, 2.0]], *packed).tolist()
    [[2.5]]
    """
    checks.choice(method, PRODUCT_METHODS, "method", "B-10")
    X = checks.finite(x, "x", "B-10", ndim=2)
    codes, alpha, o = packed(planes, scale, offset, X.shape[1], "B-10")
    if method == "dequantize":
        return np.asarray(X @ bcq_weight(codes, alpha, o).T)
    return np.asarray(product_by_tables(X, codes, alpha, None if offset is None else o))


class LookupCost(NamedTuple):
    """Work of a product by tables; see :func:`lookup_cost`."""

    table_additions: int  # building the tables
    lookup_additions: int  # one per table entry that is read
    multiplications: int  # scales times sums, each added to the output
    dense_multiplications: int  # multiply-adds of the same product with a dense weight
    table_bytes: int  # float32 tables
    weight_bytes: int  # bit planes and float32 scales


def lookup_cost(
    rows: int, columns: int, /, *, bits: int, width: int = 8, group_size: int | None = None, batch: int = 1,
    half: bool = False,
) -> LookupCost:  # fmt: skip
    """Operations and bytes of one product by tables, without an offset.  (B.12)

        tables    t G ⌈g/μ⌉ (2^μ + μ − 1),  with half tables 2^(μ−1) + μ − 1
        lookups   t G ⌈g/μ⌉ q m                      multiplications   t G q m
        dense     t m k                              bytes   4 · 2^μ t G ⌈g/μ⌉  and  q m ⌈k/32⌉ 4 + 4 q m G

    for m rows, k columns, G groups of g = k/G, t inputs. Per plane it is about (2^μ + m) / (m μ) of the dense work:
    least near μ = 8 for a few thousand rows, and more than dense when m is small.
    Source: Jeon et al. 2020, eq. 9 and 10.

    >>> cost = lookup_cost(4096, 4096, bits=3)
    >>> cost.table_additions + cost.lookup_additions, cost.dense_multiplications
    (6426112, 16777216)
    """
    k = checks.whole(columns, "columns", "B-10", low=0)
    m = checks.whole(rows, "rows", "B-10", low=0)
    q = checks.whole(bits, "bits", "B-10", low=1, high=MOST_BITS)
    t = checks.whole(batch, "batch", "B-10", low=0)
    entries = 2 ** (checks.whole(width, "width", "B-10", low=1, high=16) - half)
    G = group_count(k, group_size, "B-10")
    chunks = G * -(-(k // G if G else 0) // width)
    return LookupCost(
        table_additions=t * chunks * (entries + width - 1),
        lookup_additions=t * chunks * q * m,
        multiplications=t * G * q * m,
        dense_multiplications=t * m * k,
        table_bytes=4 * entries * t * chunks,
        weight_bytes=4 * q * m * (-(-k // 32) + G),
    )


# --- what the published example does ----------------------------------------------------------------------------------


class PublishedCode(NamedTuple):
    """Result of :func:`published_bcq`."""

    B: Array  # int8, (m, G, g, q), −1, 0 or +1
    alpha: F64  # (m, G, q)
    weight: F64  # (m, k): Σ_i α_i b_i


def published_bcq(w: npt.ArrayLike, /, *, bits: int, group_size: int | None = None, rounds: int = 15) -> PublishedCode:
    """BCQ as LUT-GEMM's example computes it: kept to reproduce it, nothing else.

    Differences from :func:`bcq`: sign(0) = 0 in the greedy start; scales by q steps of conjugate gradients from the
    last ones, with 1e-6 added to both denominators; scales sorted by magnitude *before* the codes are found; and no
    least squares after the last codes. rounds = 0 is greedy there, 1 "refined" (which is one round, not
    (B.5)), and one plane is never refined.

    Shapes: w (m, k) → B int8 (m, G, g, q), alpha (m, G, q), weight (m, k).
    Source: naver-aics/lut-gemm ``examples/bcq.py``.

    >>> published_bcq([[0.0, 4.0]], bits=1).B.ravel().tolist()
    [0, 1]
    """
    q = checks.whole(bits, "bits", "B-1", low=1, high=MOST_BITS)
    W = checks.finite(w, "w", "B-1", ndim=2)
    m, k = W.shape
    G = group_count(k, group_size, "B-1")
    v = W.reshape(m, G, k // G if G else 0)
    r, B, alpha = v, np.zeros((*v.shape, q)), np.zeros((m, G, q))
    for i in range(q):
        B[..., i] = np.sign(r)
        alpha[..., i] = np.abs(r).mean(axis=-1)
        r = r - alpha[..., i, None] * B[..., i]
    for _ in range(rounds if q > 1 else 0):
        alpha = -np.sort(-np.abs(conjugate_gradients(v, B, alpha)), axis=-1)
        B = signs(nearest_code(v, alpha, np.zeros((m, G))), q)
    return PublishedCode(B.astype(np.int8), alpha, (B * alpha[..., None, :]).sum(axis=-1).reshape(m, k))


def conjugate_gradients(v: F64, B: F64, alpha: F64) -> F64:
    """q steps on BᵀB α = Bᵀv, from the scales given."""
    ε = 1e-6
    A, rhs = np.swapaxes(B, -1, -2) @ B, (B * v[..., None]).sum(axis=-2)
    x = alpha
    r = rhs - (A * x[..., None, :]).sum(axis=-1)
    p, ρ = r, (r * r).sum(axis=-1)
    for _ in range(alpha.shape[-1]):
        Ap = (A * p[..., None, :]).sum(axis=-1)
        step = ρ / ((p * Ap).sum(axis=-1) + ε)
        x, r = x + step[..., None] * p, r - step[..., None] * Ap
        before, ρ = ρ, (r * r).sum(axis=-1)
        p = r + (ρ / (before + ε))[..., None] * p
    return x


def published_pack(b: npt.ArrayLike, /) -> npt.NDArray[np.uint8]:
    """Signs as LUT-GEMM's example stores them: bit i of byte j is element i n/8 + j of the flat array.

    Shapes: b any shape of n elements ±1, 8 | n → uint8 (n/8,). The layout of its kernel is another: :func:`bcq_pack`.

    >>> published_pack([1, 1, -1, -1, -1, -1, -1, 1]).tolist()
    [131]
    """
    B = checks.integers(b, "b", "B-8").ravel()
    if not np.isin(B, (-1, 1)).all() or B.size % 8:
        raise SpecError("B-8", f"b must hold a multiple of 8 signs -1 and 1, got {B.size} values")
    return np.asarray(np.packbits((B > 0).reshape(8, -1), axis=0, bitorder="little")[0])


def published_unpack(packed: npt.ArrayLike, /, *, shape: tuple[int, ...]) -> npt.NDArray[np.int8]:
    """Inverse of :func:`published_pack`.

    >>> published_unpack([131], shape=(2, 4)).tolist()
    [[1, 1, -1, -1], [-1, -1, -1, 1]]
    """
    words = checks.integers(packed, "packed", "B-8", ndim=1)
    if words.size * 8 != int(np.prod(shape)):
        raise SpecError("B-8", f"{words.size} bytes hold {words.size * 8} signs, not {shape}")
    bit = np.unpackbits(words.astype(np.uint8)[None], axis=0, bitorder="little")
    return np.asarray(2 * bit.astype(np.int8) - 1).reshape(shape)
