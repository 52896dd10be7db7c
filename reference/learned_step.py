"""S: learned step sizes. One LSQ, of which the published ones are settings.

A fake quantizer whose step is trained together with the network: values are rounded to whole multiples of s, and s has
a gradient of its own,

    v = (x − β) / s,   x̂ = s round(min(max(v, −Q_n), Q_p)) + β                                          (S.1)

with β = 0 but for LSQ+. Codes are −2^(b−1) … 2^(b−1) − 1, or 0 … 2^b − 1 unsigned. What is published under the one
name differs in four places, each a parameter here:

=====================  =================  ================  ===========  ================
published in           one step per       count in (S.8)    epsilon      first step
=====================  =================  ================  ===========  ================
LSQ, weights           tensor             elements          0            mean
LSQ, activations       tensor             features          0            mean
LSQ+                   tensor             as LSQ            0            deviation, min-max
OFQ                    row or token       elements          1e-5         mean-doubled
ACS                    tensor             elements          0            mean
=====================  =================  ================  ===========  ================

"elements" is everything that shares the step, the batch included; "features" is one sample of it. OFQ's activations
have one step for every position of a sequence (axis −2), its values one for every channel (axis −1); ACS initialises
in training mode only, so that its first scoring pass runs on steps that nobody has set.

Sources: Esser et al. 2020, LSQ (arXiv 1902.08153); Bhalgat et al. 2020, LSQ+ (arXiv 2004.09576); Liu et al. 2023, OFQ
(arXiv 2302.02210) and Huang et al. 2024, ACS (arXiv 2306.07215) with their code.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from . import checks
from .checks import F64, I32, Array
from .errors import SpecError
from .types import LSQ_COUNTS, LSQ_INITS, LsqCount, LsqGradient, LsqInit, LsqStart

__all__ = ["lsq", "lsq_code", "lsq_gradient", "lsq_init"]


def code_bounds(bits: int, signed: bool, clause: str) -> tuple[int, int]:
    """Q_n and Q_p: codes are −Q_n … Q_p."""
    signed = checks.flag(signed, "signed", clause)
    bits = checks.whole(bits, "bits", clause, low=2 if signed else 1, high=8)
    return (2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def shared_axes(shape: tuple[int, ...], axis: int | None, clause: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Axes over which a step is shared, and the shape in which steps broadcast against x."""
    if axis is None:
        return tuple(range(len(shape))), (1,) * len(shape)
    kept = checks.whole(axis, "axis", clause, low=-len(shape), high=len(shape) - 1) % len(shape)
    return (
        tuple(i for i in range(len(shape)) if i != kept),
        tuple(n if i == kept else 1 for i, n in enumerate(shape)),
    )


def lsq_init(
    x: npt.ArrayLike,
    /,
    *,
    bits: int,
    signed: bool = True,
    axis: int | None = None,
    rule: LsqInit = "mean",
) -> LsqStart[Array]:
    """Step, and offset of LSQ+, from a first batch or a weight.  [S-1, S-1a]

        mean           s = 2 mean|x| / √Q_p                                                             (S.2)
        mean-doubled   the same when signed, twice that when unsigned                      OFQ
        deviation      s = max(|μ − 3σ|, |μ + 3σ|) / 2^(b−1)                               LSQ+, weights
        min-max        s = (max − min) / (Q_n + Q_p),   β = min + s Q_n                    LSQ+, activations

    over what shares the step; β = 0 but in min-max. Where the rule gives 0, for a group of zeros, the step is 1
    [S-1a]: any will do, but 0 would answer NaN.

    Shapes: x any → step and offset float, (1,), or (n,) for an axis of length n.
    LSQ+ goes on from min-max to the least squared error over the first batches, which is left to the caller. σ divides
    by the number of values; which of the two standard deviations the paper means is uncertain.

    >>> lsq_init([[1.0, -3.0], [0.0, 0.0]], bits=2, axis=0).step.tolist()
    [4.0, 1.0]
    """
    Qn, Qp = code_bounds(bits, signed, "S-1")
    checks.choice(rule, LSQ_INITS, "rule", "S-1")
    X = checks.finite(x, "x", "S-1")
    over, shape = shared_axes(X.shape, axis, "S-1")
    count = max(math.prod(X.shape[i] for i in over), 1)
    offset: F64 = np.zeros(shape)
    if rule in ("mean", "mean-doubled"):
        factor = 4 if rule == "mean-doubled" and not signed else 2
        s = factor * (np.abs(X).sum(axis=over, keepdims=True) / count) / math.sqrt(Qp)  # (S.2)
    elif rule == "deviation":
        μ = X.sum(axis=over, keepdims=True) / count
        σ = np.sqrt(((X - μ) ** 2).sum(axis=over, keepdims=True) / count)
        s = np.maximum(np.abs(μ - 3 * σ), np.abs(μ + 3 * σ)) / ((Qn + Qp + 1) / 2)
    elif X.size:
        low = X.min(axis=over, keepdims=True)
        s = (X.max(axis=over, keepdims=True) - low) / (Qn + Qp)
        offset = low + s * Qn
    else:
        s = np.zeros(shape)
    return LsqStart(np.where(s > 0, s, 1.0).reshape(-1), offset.reshape(-1))


class Scaled(NamedTuple):
    """Checked arguments of (S.1), steps and offsets shaped to broadcast."""

    x: F64
    v: F64  # (x − β) / s
    step: F64  # max(s, ε)
    offset: F64
    low: int  # −Q_n
    high: int  # Q_p
    over: tuple[int, ...]  # axes that share a step


def scaled(
    x: npt.ArrayLike, step: npt.ArrayLike, offset: npt.ArrayLike | None, bits: int, signed: bool, axis: int | None,
    epsilon: float, clause: str,
) -> Scaled:  # fmt: skip
    """v of (S.1)."""
    Qn, Qp = code_bounds(bits, signed, clause)
    ε = checks.number(epsilon, "epsilon", clause, low=0.0)
    X, s = checks.finite(x, "x", clause), checks.finite(step, "step", clause, ndim=1)
    over, shape = shared_axes(X.shape, axis, clause)
    β = np.zeros(s.shape) if offset is None else checks.finite(offset, "offset", clause, ndim=1)
    for name, given in (("step", s), ("offset", β)):
        if given.size != math.prod(shape):
            raise SpecError(clause, f"{name} of shape {given.shape} does not fit x {X.shape} with axis {axis}")
    if ε == 0 and (s <= 0).any():
        raise SpecError(clause, f"step must be above 0, or epsilon, got {s.min()}")
    s, β = np.maximum(s, ε).reshape(shape), β.reshape(shape)
    with np.errstate(over="ignore"):
        return Scaled(X, (X - β) / s, s, β, -Qn, Qp, over)


def lsq_code(
    x: npt.ArrayLike,
    step: npt.ArrayLike,
    offset: npt.ArrayLike | None = None,
    /,
    *,
    bits: int,
    signed: bool = True,
    axis: int | None = None,
    epsilon: float = 0.0,
) -> I32:
    """Integer codes: what is stored, and what oscillation is counted on.  [S-2, S-2a, S-2b]

        code = round(min(max(v, −Q_n), Q_p)),   v = (x − β) / max(s, ε)                                 (S.3)

    Half to even [S-2a], by division. A step at or below ε counts as ε [S-2b]; with ε = 0 it must be above 0.

    Shapes: x any; step and offset (1,), or (n,) for an axis of length n; None for an offset of 0 → int32, x's shape.

    >>> lsq_code([0.25, 0.75, -9.0, 9.0], [0.5], bits=3).tolist()
    [0, 2, -4, 3]
    """
    q = scaled(x, step, offset, bits, signed, axis, epsilon, "S-2")
    return np.asarray(np.rint(np.clip(q.v, q.low, q.high)), np.int32)  # (S.3)


def lsq(
    x: npt.ArrayLike,
    step: npt.ArrayLike,
    offset: npt.ArrayLike | None = None,
    /,
    *,
    bits: int,
    signed: bool = True,
    axis: int | None = None,
    epsilon: float = 0.0,
) -> F64:
    """Values on the learned grid: the forward pass.  [S-3]

        x̂ = max(s, ε) code + β                                                                          (S.4)

    Arguments as in :func:`lsq_code`. Shapes: x → float, x's shape.

    >>> lsq([[0.3, -2.0], [0.3, -2.0]], [0.5, 1.0], bits=2, axis=0).tolist()
    [[0.5, -1.0], [0.0, -2.0]]
    """
    q = scaled(x, step, offset, bits, signed, axis, epsilon, "S-3")
    return np.asarray(q.step * np.rint(np.clip(q.v, q.low, q.high)) + q.offset)  # (S.4)


def lsq_gradient(
    grad: npt.ArrayLike,
    x: npt.ArrayLike,
    step: npt.ArrayLike,
    offset: npt.ArrayLike | None = None,
    /,
    *,
    bits: int,
    signed: bool = True,
    axis: int | None = None,
    epsilon: float = 0.0,
    count: LsqCount = "elements",
) -> LsqGradient[Array]:
    """The backward pass: gradients of input, step and offset in closed form.  [S-4, S-5, S-5a, S-5b, S-6]

        ∂L/∂x = ∂L/∂x̂ [−Q_n ≤ v ≤ Q_p]                                                                 (S.5)
        ∂L/∂s = g Σ ∂L/∂x̂ · { round(v) − v inside;  −Q_n below;  Q_p above }                            (S.6)
        ∂L/∂β = g Σ ∂L/∂x̂ [v < −Q_n or v > Q_p]                                                        (S.7)
        g = 1 / √(N Q_p)                                                                                (S.8)

    The ends of the range are inside: there a clamp has the derivative 1. (S.6) is the derivative of s (clamp(v) + r)
    with the rounding error r held fixed, the straight-through estimate. It passes through ε: a step below ε still has
    a gradient, and can grow [S-5b].

    N by ``count`` [S-5a]: "elements", all that share the step; "features", those of one index of axis 0, the batch;
    "unscaled" has g = 1, the derivative itself. N is 1 at least.

    Shapes: grad = ∂L/∂x̂ and x of one shape; step and offset as in :func:`lsq_code` → x of x's shape, step and offset
    of step's, offset None without one.
    That (S.7) is scaled by g as the step is, is how LSQ+ is implemented where we looked; its paper gives the
    derivative alone.

    >>> found = lsq_gradient([1.0, 1.0, 2.0], [0.4, 9.0, -9.0], [1.0], bits=2, count="unscaled")
    >>> found.x.tolist(), found.step.round(6).tolist()
    ([1.0, 0.0, 0.0], [-3.4])
    """
    checks.choice(count, LSQ_COUNTS, "count", "S-4")
    q = scaled(x, step, offset, bits, signed, axis, epsilon, "S-4")
    D = checks.finite(grad, "grad", "S-4")
    if D.shape != q.x.shape:
        raise SpecError("S-4", f"grad {D.shape} and x {q.x.shape} must have one shape")
    if count == "features" and (q.x.ndim == 0 or 0 not in q.over):
        raise SpecError("S-4", f"count 'features' needs a batch on axis 0, x is {q.x.shape} and axis {axis}")
    inside = (q.v >= q.low) & (q.v <= q.high)
    slope = np.where(inside, np.rint(q.v) - q.v, np.clip(q.v, q.low, q.high))
    N = math.prod(q.x.shape[i] for i in q.over if count == "elements" or i > 0)
    g = 1.0 if count == "unscaled" else 1 / math.sqrt(max(N, 1) * q.high)  # (S.8)
    return LsqGradient(
        D * inside,  # (S.5)
        g * (D * slope).sum(axis=q.over).reshape(-1),  # (S.6)
        None if offset is None else g * (D * ~inside).sum(axis=q.over).reshape(-1),  # (S.7)
    )
