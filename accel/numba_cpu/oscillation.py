"""O: oscillations and annealing. The rules are those of :mod:`lowbit.reference.oscillation`; each is one pass."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from lowbit.accel.common.oscillation import boundary_rates, check_range, check_tracking, check_words
from lowbit.accel.common.refusals import check_matrix
from lowbit.accel.common.scale_tuning import check_tuning
from lowbit.reference.errors import SpecError
from lowbit.reference.types import AnnealedStep, BoundaryStatistics, FreezeValue, Oscillation, Targets, Thresholds

from ._arrays import Array, finite_weights, fixed, integers, refuse_bad, weights, working_dtype
from ._jit import collected, kernel, pieces
from .statsq import row_scales, stacked, statsq

__all__ = ["boundary_statistics", "cga_mask", "cga_step", "start_oscillation", "track_oscillation"]


@kernel
def _track(given: Any, state: Any, rates: Any, limit: float, to_mean: bool, rewrite: bool, out: Any) -> None:
    """(O.6) to (O.10) element by element; momentum and its complement are of the precision of the means."""
    previous, direction, frequency, total, average, frozen, target = state
    codes, turned, often, count, mean, held, pinned = out
    m, rest = rates
    for j in range(given.size):
        k = target[j] if frozen[j] else given[j]
        d = np.int32(previous[j] > k) - np.int32(previous[j] < k)
        o = d * direction[j] == -1
        f = rest * frequency[j] + (m if o else m * 0)
        hit = np.float64(f) > limit
        goal = target[j]
        if hit and (rewrite or not frozen[j]):
            goal = np.int32(np.rint(average[j])) if to_mean else k
        codes[j] = k
        turned[j] = d if d != 0 else direction[j]
        often[j] = f
        count[j] = total[j] + np.int32(o)
        mean[j] = m * type(m)(k) + rest * average[j]
        held[j] = frozen[j] or hit
        pinned[j] = goal


@kernel
def _near(x: Any, alpha: Any, n: Any, width: Any, low: Any, high: Any, out: Any, start: int, stop: int) -> None:
    """Whether the nearest of the thresholds low … high is within ``width``, for the rows start … stop − 1."""
    for r in range(start, stop):
        a = alpha[r]
        for s in range(x.shape[0]):
            row, near = x[s, r], out[s, r]
            for j in range(row.size):
                v = row[j] / a * n if a > 0.0 else a
                near[j] = abs(v - min(max(np.rint(v), low), high)) <= width


@kernel
def _step(w: Any, grad: Any, first: Any, second: Any, active: Any, rates: Any, out: Any, m: Any, v: Any) -> None:
    """AdamW in float64, and the old weight where it is frozen."""
    lr, beta1, beta2, epsilon, decay, bias1, bias2 = rates
    for j in range(w.size):
        g = np.float64(grad[j]) if active[j] else 0.0
        mean = beta1 * np.float64(first[j]) + (1.0 - beta1) * g
        square = beta2 * np.float64(second[j]) + (1.0 - beta2) * g * g
        m[j], v[j] = mean, square
        below = np.sqrt(square / bias2) + epsilon
        move = mean / bias1 / below if below > 0.0 else 0.0
        a = np.float64(w[j])
        out[j] = a - lr * (move + decay * a) if active[j] else w[j]


def boolean(clause: str, name: str, x: Any, shape: tuple[int, ...]) -> Array:
    """A mask of a given shape."""
    if not isinstance(x, np.ndarray) or x.dtype != np.bool_ or x.shape != shape:
        got = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise SpecError(clause, f"{name} must be bool of shape {shape}, got {got}")
    return fixed(x)


def start_oscillation(codes: Array, /) -> Oscillation[Array]:
    """State of a tracker before its first step.  [O-4]"""
    k = integers("O-4", "codes", codes)
    zero = np.zeros(k.shape, np.int32)
    return Oscillation(
        np.array(k),
        zero,
        np.zeros(k.shape, np.float32),
        zero.copy(),
        k.astype(np.float32),
        np.zeros(k.shape, np.bool_),
        zero.copy(),
    )


def track_oscillation(
    codes: Array,
    previous: Array,
    direction: Array,
    frequency: Array,
    total: Array,
    average: Array,
    frozen: Array,
    target: Array,
    /,
    *,
    momentum: float = 0.01,
    threshold: float | None = None,
    freeze_to: FreezeValue = "average",
    targets: Targets = "held",
) -> Oscillation[Array]:
    """One step of the tracker: the codes to use, and the next state.  [O-4]"""
    limit = check_tracking(momentum, threshold, freeze_to, targets)
    named = {"codes": codes, "previous": previous, "direction": direction, "total": total, "target": target}
    whole = {name: integers("O-4", name, x) for name, x in named.items()}
    means = {"frequency": weights("O-4", "frequency", frequency), "average": weights("O-4", "average", average)}
    shape = whole["codes"].shape
    for name, x in {**whole, **means}.items():
        check_matrix("O-4", name, x.shape, shape)
    held = boolean("O-4", "frozen", frozen, shape)
    went = whole["direction"]
    if went.size and (went.min() < -1 or went.max() > 1):
        raise SpecError("O-4", f"direction must hold -1, 0 and 1, got {went.min()} to {went.max()}")
    dtype: Any = working_dtype(*means.values())
    for name, x in means.items():
        means[name] = fixed(x, dtype)
        refuse_bad("O-4", name, means[name])
    flat = [
        fixed(x.reshape(-1))
        for x in (
            whole["previous"], went, means["frequency"], whole["total"], means["average"], held, whole["target"]
        )
    ]  # fmt: skip
    given = fixed(whole["codes"].reshape(-1))
    kinds = (np.int32, np.int32, dtype, np.int32, dtype, np.bool_, np.int32)
    out = [np.empty(given.size, kind) for kind in kinds]
    how = (dtype(momentum), dtype(1 - momentum)), limit, freeze_to == "average", targets == "rewritten"

    def work(start: int, stop: int) -> None:
        state, into = (tuple(x[start:stop] for x in arrays) for arrays in (flat, out))
        _track(given[start:stop], state, *how, into)

    collected(pieces(given.size, 1), work)
    return Oscillation(*(x.reshape(shape) for x in out))


def near_mask(clause: str, w: Any, bits: int, boundary_range: float, thresholds: str) -> tuple[Array, Array]:
    """Checked w, and which of its weights are near a threshold."""
    check_words(clause, thresholds=thresholds)
    width = check_range(clause, boundary_range)
    given, x, n = stacked(clause, "w", w, bits)
    alpha = row_scales(clause, given, x)
    low, high = -n, n - 1
    if thresholds == "occupied" and x.size:
        codes = statsq(given, bits=bits).codes
        low, high = int(codes.min()), int(codes.max())
    out = np.zeros(x.shape, np.bool_)
    if high > low:
        kind = x.dtype.type
        task = partial(_near, x, alpha, kind(n), kind(width), kind(low + 1), kind(high), out)
        collected(pieces(x.shape[1], x.shape[0] * x.shape[2]), task)
    return given, out.reshape(given.shape)


def cga_mask(w: Array, /, *, bits: int, boundary_range: float = 0.005, thresholds: Thresholds = "all") -> Array:
    """Which weights confidence-guided annealing still trains.  [O-6]"""
    return near_mask("O-6", w, bits, boundary_range, thresholds)[1]


def boundary_statistics(
    w: Array,
    grad: Array,
    previous: Array,
    /,
    *,
    bits: int,
    boundary_range: float = 0.005,
    thresholds: Thresholds = "all",
) -> BoundaryStatistics:
    """Weights near a threshold, and how often gradients change sign there and elsewhere.  [O-5]"""
    given, near = near_mask("O-5", w, bits, boundary_range, thresholds)
    g, before = (finite_weights("O-5", name, x, given.shape) for name, x in (("grad", grad), ("previous", previous)))
    flip = ((g > 0) & (before < 0)) | ((g < 0) & (before > 0))
    count, turned, both = (int(np.count_nonzero(x)) for x in (near, flip, flip & near))
    return boundary_rates(count, turned, both, near.size)


def cga_step(
    w: Array,
    grad: Array,
    first: Array,
    second: Array,
    active: Array,
    /,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    decay: float = 0.0,
) -> AnnealedStep[Array]:
    """A step of AdamW under a mask: frozen weights come back to the last bit; arithmetic in float64.  [O-7]"""
    check_tuning("O-7", step=step, lr=lr, beta1=beta1, beta2=beta2, epsilon=epsilon, decay=decay)
    named = {"w": w, "grad": grad, "first": first, "second": second}
    given = {name: weights("O-7", name, x) for name, x in named.items()}
    shape = given["w"].shape
    for name, x in given.items():
        check_matrix("O-7", name, x.shape, shape)
    on = boolean("O-7", "active", active, shape)
    dtype = working_dtype(*given.values())
    flat = []
    for name, x in given.items():
        a = fixed(x, dtype)
        refuse_bad("O-7", name, a)
        flat.append(fixed(a.reshape(-1)))
    if flat[3].size and flat[3].min() < 0:
        raise SpecError("O-7", f"second must be >= 0, got {flat[3].min()}")
    rates = tuple(float(r) for r in (lr, beta1, beta2, epsilon, decay, 1 - beta1**step, 1 - beta2**step))
    out, mask = [np.empty(flat[0].size, dtype) for _ in range(3)], fixed(on.reshape(-1))

    def work(start: int, stop: int) -> None:
        old, g, m, v = (x[start:stop] for x in flat)
        new, mean, square = (x[start:stop] for x in out)
        _step(old, g, m, v, mask[start:stop], rates, new, mean, square)

    collected(pieces(mask.size, 1), work)
    return AnnealedStep(*(x.reshape(shape) for x in out))
