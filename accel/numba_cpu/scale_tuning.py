"""U: the scales of binary codes. The rules are those of :mod:`lowbit.reference.scale_tuning`.

A sign is one bit, so a signed sum costs an exclusive or per weight and plane, not a product, and the planes are never
written out except for the normal equations of :func:`fit_scales`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lowbit.accel.common.binary_coding import binary_groups, check_planes
from lowbit.accel.common.eigenspace import check_definite
from lowbit.accel.common.refusals import check_matrix
from lowbit.accel.common.scale_tuning import check_norm, check_train, check_tuning
from lowbit.reference.errors import SpecError
from lowbit.reference.types import ScaleNorm, Trained, TunedScales

from ._arrays import Array, fixed, integers, refuse_bad, refuse_found, weights, working_dtype
from ._jit import as_float, as_int, by_pieces, kernel, share
from ._vector import LANES, lane_sum
from .binary_coding import refuse_codes
from .gptq import symmetric_moment

__all__ = ["fit_scales", "scale_grad", "scale_grad_tokens", "trainable_scales", "tune_step"]

CHUNK = 256  # signed values that are summed in the precision of the data; chunks are added in float64, in order
PANEL = 1 << 20  # elements of a weight gradient, or of a plane in float64, that exist at one time
RESOLVED = 2.0**-40  # eigenvalues of the normal equations this far below the largest are 0


@kernel
def _largest(scale: Any, out: Any) -> None:
    for g in range(scale.shape[0]):
        best = 0
        for i in range(1, scale.shape[1]):
            if abs(scale[g, i]) > abs(scale[g, best]):
                best = i
        out[g, best] = True


@kernel
def _signed_sums(x: Any, codes: Any, groups: int, divisor: float, out: Any) -> Any:
    """Σ ±x over every group and plane; returns (not finite found, all bits seen)."""
    bits = out.shape[2]
    width = x.shape[1] // groups if groups else 0
    shift = 8 * x.itemsize - 1
    buffer = np.empty(CHUNK, x.dtype)
    found, seen = False, np.int32(0)
    for r in range(x.shape[0]):
        for g in range(groups):
            for start in range(g * width, (g + 1) * width, CHUNK):
                stop = min(start + CHUNK, (g + 1) * width)
                values, picked, signed = x[r, start:stop], codes[r, start:stop], buffer[: stop - start]
                for j in range(values.size):
                    found |= values[j] - values[j] != 0.0
                    seen |= picked[j]
                for i in range(bits):
                    for j in range(values.size):
                        key = as_int(values[j])
                        minus = type(key)(((picked[j] >> i) & 1) ^ 1)
                        signed[j] = as_float(type(key)(key ^ (minus << shift)))
                    total = np.float64(lane_sum(signed))
                    for j in range(signed.size // LANES * LANES, signed.size):
                        total += np.float64(signed[j])
                    out[r, g, i] += total
            for i in range(bits):
                out[r, g, i] /= divisor
    return found, seen


@kernel
def _adam(
    scale: Any, grad: Any, initial: Any, first: Any, second: Any, on: Any, rates: Any, out: Any, m: Any, v: Any
) -> None:
    lr, beta1, beta2, epsilon, decay, bias1, bias2 = rates
    for j in range(scale.size):
        if not on[j]:
            out[j], m[j], v[j] = scale[j], first[j], second[j]
            continue
        g = np.float64(grad[j])
        mean = beta1 * np.float64(first[j]) + (1.0 - beta1) * g
        square = beta2 * np.float64(second[j]) + (1.0 - beta2) * g * g
        below = np.sqrt(square / bias2) + epsilon
        move = mean / bias1 / below if below > 0.0 else 0.0
        a = np.float64(scale[j])
        out[j] = a - lr * (move + decay * (a - np.float64(initial[j])))
        m[j], v[j] = mean, square


@kernel
def _spread(codes: Any, scale: Any, w: Any, signs: Any, error: Any) -> None:
    """Planes as ±1 (q, rows, k) and W − Ŵ, in float64."""
    bits, groups = scale.shape[2], scale.shape[1]
    width = w.shape[1] // groups if groups else 0
    for r in range(w.shape[0]):
        for c in range(w.shape[1]):
            code, rest = codes[r, c], np.float64(w[r, c])
            for i in range(bits):
                sign = 2.0 * np.float64((code >> i) & 1) - 1.0
                signs[i, r, c] = sign
                rest -= sign * np.float64(scale[r, c // width, i])
            error[r, c] = rest


@kernel
def _grouped_products(y: Any, signs: Any, groups: int, out: Any) -> None:
    """out[r, γ] = Σ over group γ of y ∘ sign."""
    width = y.shape[1] // groups if groups else 0
    for r in range(y.shape[0]):
        for g in range(groups):
            total = 0.0
            for c in range(g * width, (g + 1) * width):
                total += y[r, c] * signs[r, c]
            out[r, g] = total


def _codes(clause: str, codes: Any, shape: tuple[int, ...], name: str) -> Array:
    q = integers(clause, "codes", codes)
    if q.shape != shape:
        raise SpecError(clause, f"codes of shape {q.shape} must have the shape of {name}, {shape}")
    return q


def _matrix(clause: str, name: str, x: Any) -> Array:
    a = weights(clause, name, x)
    check_matrix(clause, name, a.shape, (None, None))
    return a


def _mask(clause: str, trainable: Any, shape: tuple[int, ...]) -> Array:
    if not isinstance(trainable, np.ndarray) or trainable.dtype != np.bool_ or trainable.shape != shape:
        got = f"{trainable.dtype} {trainable.shape}" if isinstance(trainable, np.ndarray) else type(trainable).__name__
        raise SpecError(clause, f"trainable must be bool of shape {shape}, got {got}")
    return fixed(trainable)


def trainable_scales(scale: Array, /, *, train: Trained = "first") -> Array:
    """Which scales train.  [U-1]"""
    check_train("U-1", train)
    given = weights("U-1", "scale", scale)
    check_matrix("U-1", "scale", given.shape, (None, None, None))
    source = fixed(given, working_dtype(given))
    refuse_bad("U-1", "scale", source)
    out = np.full(source.shape, train == "all")
    if train == "first":
        out[..., :1] = True
    elif train == "largest" and source.shape[2]:
        _largest(source.reshape(-1, source.shape[2]), out.reshape(-1, source.shape[2]))
    return out


def scale_grad(
    grad: Array, codes: Array, /, *, bits: int, group_size: int | None = None, norm: ScaleNorm = "sum"
) -> Array:
    """Gradient of every scale from that of the weight: signed sums over groups.  [U-2]"""
    check_norm("U-2", norm)
    given = _matrix("U-2", "grad", grad)
    check_planes("U-2", "bits", bits)
    groups = binary_groups("U-2", given.shape[1], group_size)
    q = _codes("U-2", codes, given.shape, "grad")
    dtype = working_dtype(given)
    source = fixed(given, dtype)
    m, k = source.shape
    sums: Array = np.zeros((m, groups, bits))
    divisor = float(max(k // max(groups, 1), 1)) if norm == "mean" else 1.0
    found = by_pieces((m, max(k, groups * bits)), lambda p: _signed_sums(source[p], q[p], groups, divisor, sums[p]))
    if any(bad for bad, _ in found):
        refuse_found("U-2", "grad", source)
    if any(seen >> bits for _, seen in found):
        refuse_codes("U-2", q, 0, 2**bits - 1)
    return sums.astype(dtype)


def scale_grad_tokens(
    x: Array, delta: Array, codes: Array, /, *, bits: int, group_size: int | None = None, norm: ScaleNorm = "sum"
) -> Array:
    """Gradient of every scale from inputs and output gradients, δᵀx formed in panels of rows.  [U-3]"""
    check_norm("U-3", norm)
    given, slope = _matrix("U-3", "x", x), _matrix("U-3", "delta", delta)
    (tokens, k), m = given.shape, slope.shape[1]
    check_matrix("U-3", "delta", slope.shape, (tokens, None))
    check_planes("U-3", "bits", bits)
    groups = binary_groups("U-3", k, group_size)
    q = _codes("U-3", codes, (m, k), "the weight")
    dtype = working_dtype(given, slope)
    source, δ = fixed(given, dtype), fixed(slope, dtype)
    refuse_bad("U-3", "x", source)
    refuse_bad("U-3", "delta", δ)
    refuse_codes("U-3", q, 0, 2**bits - 1)
    out: Array = np.empty((m, groups, bits), dtype)
    step = max(1, PANEL // max(k, 1))
    for start in range(0, m, step):
        rows = slice(start, min(start + step, m))
        panel = np.ascontiguousarray(δ[:, rows].T) @ source
        out[rows] = scale_grad(panel, q[rows], bits=bits, group_size=group_size, norm=norm)
    return out


def tune_step(
    scale: Array,
    grad: Array,
    initial: Array,
    first: Array,
    second: Array,
    trainable: Array,
    /,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    decay: float = 0.0,
) -> TunedScales[Array]:
    """A step of AdamW on the scales that train, decaying towards their start, in float64.  [U-4]"""
    check_tuning("U-4", step=step, lr=lr, beta1=beta1, beta2=beta2, epsilon=epsilon, decay=decay)
    given = {"scale": scale, "grad": grad, "initial": initial, "first": first, "second": second}
    named = {name: weights("U-4", name, x) for name, x in given.items()}
    check_matrix("U-4", "scale", named["scale"].shape, (None, None, None))
    shape = named["scale"].shape
    for name, x in named.items():
        check_matrix("U-4", name, x.shape, shape)
    on = _mask("U-4", trainable, shape)
    dtype = working_dtype(*named.values())
    flat = []
    for name, x in named.items():
        a = fixed(x, dtype)
        refuse_bad("U-4", name, a)
        flat.append(a.reshape(-1))
    if flat[4].size and flat[4].min() < 0:
        raise SpecError("U-4", f"second must be >= 0, got {flat[4].min()}")
    rates = tuple(float(r) for r in (lr, beta1, beta2, epsilon, decay, 1 - beta1**step, 1 - beta2**step))
    out, m, v = (np.empty(shape, dtype) for _ in range(3))
    α, g, start, mean, square = flat
    _adam(α, g, start, mean, square, on.reshape(-1), rates, out.reshape(-1), m.reshape(-1), v.reshape(-1))
    return TunedScales(out, m, v)


def fit_scales(w: Array, c: Array, codes: Array, scale: Array, trainable: Array, /) -> Array:
    """Scales of least output error tr[(W − Ŵ) C (W − Ŵ)ᵀ], the nearest to the given ones.  [U-5]

    All rows of a panel share the products of their planes with C; the normal equations of each row are then solved
    through their eigenvalues, in float64.
    """
    given = _matrix("U-5", "w", w)
    start = weights("U-5", "scale", scale)
    check_matrix("U-5", "scale", start.shape, (given.shape[0], None, None))
    (m, k), (_, groups, bits) = given.shape, start.shape
    if k % groups if groups else k:
        raise SpecError("U-5", f"{groups} scales do not divide axis length {k}")
    check_planes("U-5", "planes of scale", bits)
    q, on = _codes("U-5", codes, given.shape, "w"), _mask("U-5", trainable, start.shape)
    dtype = working_dtype(given, start)
    source, α = fixed(given, dtype), fixed(start, dtype)
    refuse_bad("U-5", "w", source)
    refuse_bad("U-5", "scale", α)
    upper = symmetric_moment("U-5", "c", c, k)
    moment = np.triu(upper) + np.triu(upper, 1).T
    check_definite(np, "U-5", "c", moment)
    refuse_codes("U-5", q, 0, 2**bits - 1)
    out = np.array(α)
    used = np.flatnonzero(on.any(axis=(0, 1)))
    count, width = len(used) * groups, k // groups if groups else 0
    if count == 0 or m == 0 or k == 0:
        return out
    step = max(1, PANEL // max(k * bits, count * count))
    panels = [slice(r, min(r + step, m)) for r in range(0, m, step)]

    def solve(t: int) -> None:
        rows = panels[t]
        n = rows.stop - rows.start
        signs, error = np.empty((bits, n, k)), np.empty((n, k))
        _spread(q[rows], α[rows], source[rows], signs, error)
        normal, right = np.empty((n, len(used), groups, len(used), groups)), np.empty((n, len(used), groups))
        pulled, product = error @ moment, np.empty((n, groups))
        for a, plane in enumerate(used):
            _grouped_products(pulled, signs[plane], groups, product)
            right[:, a] = product
            for g in range(groups):
                columns = slice(g * width, (g + 1) * width)
                y = signs[plane][:, columns] @ moment[columns]
                for b, other in enumerate(used):
                    _grouped_products(y, signs[other], groups, product)
                    normal[:, a, g, b] = product
        mask = np.moveaxis(on[rows][..., used], 2, 1).reshape(n, count)
        equations = normal.reshape(n, count, count) * mask[:, :, None] * mask[:, None, :]
        equations = (equations + np.swapaxes(equations, 1, 2)) / 2
        value, vector = np.linalg.eigh(equations)
        kept = value > RESOLVED * np.maximum(value[:, -1:], 0.0)
        inside = np.einsum("rij,ri->rj", vector, right.reshape(n, count) * mask)
        inside = np.divide(inside, value, out=np.zeros_like(inside), where=kept)
        change = (np.einsum("rij,rj->ri", vector, inside) * mask).reshape(n, len(used), groups)
        fitted = out[rows]
        fitted[..., used] = np.where(
            on[rows][..., used], α[rows][..., used] + np.moveaxis(change, 1, 2), fitted[..., used]
        )

    share(len(panels), solve)
    return out
