"""Laws in plain float64 NumPy by which the suite judges results that may legitimately differ from the specification's.

The GPTQ laws never factorize the inverse: they use that fixing the first i columns of W at Q and minimising
tr[(W − Q) H̃ (W − Q)ᵀ] over the rest gives

    W'_{≥i} = W_{≥i} + (W − Q)_{<i} H̃_{<i,≥i} (H̃_{≥i,≥i})⁻¹                                                   (K.1)
    U_ii²   = [(H̃_{≥i,≥i})⁻¹]_{00}                                                                            (K.2)

with H̃ the damped Hessian, which is another road to the column updates and the pivots of the published algorithm.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from . import compare

F64: TypeAlias = npt.NDArray[np.float64]


def code_range(bits: int, scheme: str) -> tuple[int, int]:
    """Smallest and largest code: 0..2^b − 1, or −2^(b−1)..2^(b−1) − 1 for the symmetric schemes."""
    return (0, 2**bits - 1) if scheme == "asymmetric" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def expand(scale: npt.NDArray[Any], columns: int) -> npt.NDArray[Any]:
    """Scales (..., G) repeated over the k/G consecutive columns that each covers → (..., k)."""
    groups = scale.shape[-1]
    return np.repeat(scale, columns // groups, axis=-1) if groups else scale


def round_to(dtype: str, x: npt.ArrayLike) -> F64:
    """Rounded to nearest even in float32, float16 or bfloat16, not below the smallest normal number; overflow → inf."""
    values = np.asarray(x, np.float64)
    if dtype == "bfloat16":
        mantissa, exponent = np.frexp(values)
        rounded = np.ldexp(np.rint(np.ldexp(mantissa, 8)), exponent - 8)  # 8 significand bits; rint is half to even
        rounded = np.where(rounded >= np.ldexp(1.0, 128), np.inf, rounded)
    else:
        with np.errstate(over="ignore"):
            rounded = values.astype(dtype).astype(np.float64)
    return np.maximum(rounded, compare.smallest_normal(dtype))


# -- packing -----------------------------------------------------------------------------------------------------------


def bit_stream(codes: npt.NDArray[Any], bits: int) -> npt.NDArray[np.int32]:
    """Dense packing by long integers: a row is Σ_j code_j · 2^(j·bits), cut into 32-bit words, low word first."""
    n, k = codes.shape
    count = -(-k * bits // 32)
    words = np.zeros((n, count), np.uint32)
    for row in range(n):
        stream = sum(int(c) << (j * bits) for j, c in enumerate(codes[row]))
        words[row] = [(stream >> (32 * i)) & 0xFFFFFFFF for i in range(count)]
    return words.view(np.int32)


def padded_words(codes: npt.NDArray[Any], bits: int) -> npt.NDArray[np.int32]:
    """Padded packing: 32 // bits codes in each word, low bits first, the rest of the word zero."""
    n, k = codes.shape
    per = 32 // bits
    words = np.zeros((n, -(-k // per)), np.uint32)
    for row in range(n):
        for j, code in enumerate(codes[row]):
            words[row, j // per] |= np.uint32(int(code) << (j % per * bits))
    return words.view(np.int32)


# -- binary codes ------------------------------------------------------------------------------------------------------


def signs(codes: npt.NDArray[Any], bits: int) -> F64:
    """Planes (q, m, k) of codes (m, k): plane i is bit i, and 1 stands for +1."""
    return np.stack([np.where((codes.astype(np.int64) // 2**i) % 2 == 1, 1.0, -1.0) for i in range(bits)])


def coded_weight(codes: npt.NDArray[Any], scale: npt.NDArray[Any]) -> F64:
    """Σ_i α_i B_i (m, k) of codes (m, k) and scale (m, G, q)."""
    wide = np.repeat(np.moveaxis(scale.astype(np.float64), -1, 0), codes.shape[1] // scale.shape[1], axis=2)
    return np.asarray((wide * signs(codes, scale.shape[2])).sum(axis=0), np.float64)


def least_error(errors: npt.NDArray[Any], sizes: npt.NDArray[Any], budget: int) -> float:
    """Smallest summed error of all allocations within the budget, by trying every one."""
    totals: list[tuple[int, float]] = [(0, 0.0)]
    for cost, loss in zip(sizes.tolist(), errors.astype(np.float64).tolist(), strict=True):
        totals = [(s + c, e + x) for s, e in totals for c, x in zip(cost, loss, strict=True) if s + c <= budget]
    return min(e for _, e in totals)


# -- second-order compression ------------------------------------------------------------------------------------------


class Damped(NamedTuple):
    """A Hessian made safe to invert."""

    matrix: F64  # (k, k), H with H_jj = 1 in dead columns, plus damping · mean(diag) on the diagonal
    diagonal: F64  # (k,), of the repaired matrix before damping: it decides the act-order
    dead: npt.NDArray[np.bool_]  # (k,)
    kappa: float  # spectral condition number of ``matrix``


def damped(h: npt.NDArray[Any], damping: float) -> Damped:
    """Repair dead columns, then damp."""
    matrix = np.array(h, np.float64)
    diagonal = np.einsum("jj->j", matrix)  # a view: writes go through
    dead = diagonal == 0
    diagonal[dead] = 1.0
    repaired = diagonal.copy()
    diagonal += damping * (repaired.mean() if repaired.size else 0.0)
    kappa = float(np.linalg.cond(matrix)) if matrix.size else 1.0
    return Damped(matrix, repaired, dead, kappa)


def processing_order(diagonal: F64, act_order: bool) -> npt.NDArray[np.int64]:
    """Columns in the order of work: as they are, or by descending diagonal with ties by lower index."""
    k = diagonal.size
    return np.argsort(-diagonal, kind="stable") if act_order else np.arange(k)


class Updated(NamedTuple):
    """Weights as they stand before position i is worked on, by (K.1)."""

    weight: F64  # (m, k − i), positions i.. in processing order
    error: F64  # (m, k − i), bound on what rounding in a backend may have changed
    pivot: F64  # (k − i,), U_jj² of those positions, by (K.2)


def updated(w: F64, q: F64, hessian: F64, start: int, *, kappa: float, u: float) -> Updated:
    """Weights before position ``start``, given the values ``q`` chosen before it.

    ``w``, ``q`` (m, k) and ``hessian`` (k, k) are in processing order, dead columns of ``w`` already zero. The error
    bound is the first-order componentwise sensitivity of (K.1) to a relative perturbation ε = ``inverse_sensitivity``
    of H̃,

        ε · abs(E) (abs(P) abs(R) + abs(P R) abs(H̃_{≥i,≥i}) abs(R)),   E = W − Q,  P = H̃_{<i,≥i},  R = (H̃_{≥i,≥i})⁻¹,

    plus the rounding γ_k of the differences w − q that are propagated.
    """
    k = w.shape[1]
    error = (w - q)[:, :start]
    coupling, rest = hessian[:start, start:], hessian[start:, start:]
    inverse = np.linalg.inv(rest)
    gain = coupling @ inverse
    weight = w[:, start:] + error @ gain
    bend = np.abs(coupling) @ np.abs(inverse) + np.abs(gain) @ (np.abs(rest) @ np.abs(inverse))
    ε = compare.inverse_sensitivity(k, kappa, u)
    size = np.abs(w[:, :start]) + np.abs(error)
    bound = ε * (np.abs(error) @ bend) + compare.gamma(k, u) * (size @ np.abs(gain)) + u * np.abs(weight)
    pivot = np.array([1 / _schur(hessian, j) for j in range(start, k)])
    return Updated(weight, bound, pivot)


def _schur(hessian: F64, j: int) -> float:
    """1 / [(H̃_{≥j,≥j})⁻¹]_{00}: the Schur complement of everything after j in entry (j, j)."""
    tail = hessian[j + 1 :, j]
    if tail.size == 0:
        return float(hessian[j, j])
    return float(hessian[j, j] - tail @ np.linalg.solve(hessian[j + 1 :, j + 1 :], tail))


def quadratic_loss(error: F64, hessian: F64) -> tuple[float, float]:
    """½ tr[E H̃ Eᵀ] and the same with absolute values, the magnitude for a forward-error bound."""
    value = float(np.einsum("ij,jk,ik->", error, hessian, error, optimize=True)) / 2
    size = float(np.einsum("ij,jk,ik->", np.abs(error), np.abs(hessian), np.abs(error), optimize=True)) / 2
    return value, size


# -- low-rank patches --------------------------------------------------------------------------------------------------


def patch_objective(d: npt.NDArray[Any], c: npt.NDArray[Any], b: npt.NDArray[Any], a: npt.NDArray[Any]) -> float:
    """tr[(D − BA) C (D − BA)ᵀ] of the factors as stored, in float64."""
    residual = np.asarray(d, np.float64) - np.asarray(b, np.float64) @ np.asarray(a, np.float64)
    return float(np.einsum("ij,jk,ik->", residual, np.asarray(c, np.float64), residual, optimize=True))


def root(c: npt.NDArray[Any]) -> F64:
    """A square root S with S Sᵀ = C, negative eigenvalues of rounding size cut at zero."""
    values, vectors = np.linalg.eigh(np.asarray(c, np.float64))
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)), np.float64)


def squared_spectrum(d: npt.NDArray[Any], c: npt.NDArray[Any]) -> F64:
    """σᵢ² of D C^(1/2), descending, min(m, k) of them."""
    values = np.linalg.svd(np.asarray(d, np.float64) @ root(c), compute_uv=False)
    return np.asarray(values**2, np.float64)


def optimum(d: npt.NDArray[Any], c: npt.NDArray[Any], rank: int) -> float:
    """Smallest objective of any rank-r patch: Σ_{i>r} σᵢ²."""
    return float(np.sum(squared_spectrum(d, c)[rank:]))
