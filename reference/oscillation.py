"""O: weights that go back and forth between two levels: how often, which ones, and how to keep them still.

A latent weight that sits on a threshold changes its code with every little step. What follows measures that
(a running frequency per weight), finds the weights at risk (those within a *boundary range* of a threshold), and stops
it in two ways: by pinning the codes of weights that oscillate too often, or by confidence-guided annealing (CGA), which
after training freezes everything *but* the weights near a threshold.

Codes are those of StatsQ, or any others. Distances are in steps of the StatsQ grid: v = n W / α, thresholds at the
integers −n + 1 … n − 1. Deliberately not here: the learning rate and the length of the annealing, which are a recipe's.
Sources: Nagel et al. 2022, Overcoming Oscillations in Quantization-Aware Training (arXiv 2203.11086), for
frequency and freezing; Liu et al. 2023, OFQ (arXiv 2302.02210), for boundary range and CGA.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from . import checks
from .checks import F64, Array, Bool
from .errors import SpecError
from .rounding import round_half_even
from .statsq import nearest_code, scaled
from .types import (
    FREEZE_VALUES,
    TARGETS,
    THRESHOLDS,
    AnnealedStep,
    BoundaryStatistics,
    FreezeValue,
    Oscillation,
    Targets,
    Thresholds,
)

__all__ = ["boundary_statistics", "cga_mask", "cga_step", "start_oscillation", "track_oscillation"]


def boolean(x: npt.ArrayLike, name: str, shape: tuple[int, ...], clause: str) -> Bool:
    """A mask of a given shape; an empty list, which NumPy reads as float, passes too."""
    a = np.array(x)
    if (a.dtype != np.bool_ and a.size) or a.shape != shape:
        raise SpecError(clause, f"{name} must be bool of shape {shape}, got {a.dtype} {a.shape}")
    return a.astype(np.bool_)


def start_oscillation(codes: npt.ArrayLike, /) -> Oscillation[Array]:
    """State of a tracker before its first step: these codes, no direction, nothing frozen.  [O-4]

    Shapes: codes integers (...) → all fields (...). The running mean of codes starts at them.
    The published tracker starts at the codes of its first call, so that this call compares them with themselves: start
    here with the same codes that are then tracked.

    >>> start_oscillation([3, -1]).average.tolist()
    [3.0, -1.0]
    """
    k = checks.integers(codes, "codes", "O-4")
    i, f = np.zeros(k.shape, np.int32), np.zeros(k.shape)
    return Oscillation(k.astype(np.int32), i, f, i.copy(), k.astype(np.float64), np.zeros(k.shape, np.bool_), i.copy())


def track_oscillation(
    codes: npt.ArrayLike,
    previous: npt.ArrayLike,
    direction: npt.ArrayLike,
    frequency: npt.ArrayLike,
    total: npt.ArrayLike,
    average: npt.ArrayLike,
    frozen: npt.ArrayLike,
    target: npt.ArrayLike,
    /,
    *,
    momentum: float = 0.01,
    threshold: float | None = None,
    freeze_to: FreezeValue = "average",
    targets: Targets = "held",
) -> Oscillation[Array]:
    """One step of the tracker: the codes to use, and the state that the next step takes.  [O-4, O-4a, O-4b]

        k ← target where frozen, else the given code                                                     (O.6)
        d = sign(previous − k),   o = 1 where d · direction = −1, else 0                                 (O.7)
        frequency ← m o + (1 − m) frequency,   total ← total + o                                         (O.8)
        direction ← d where d ≠ 0
        where frequency > threshold:  frozen,  target ← ⌊average⌉, half to even, or k                    (O.9)
        average ← m k + (1 − m) average                                                                  (O.10)

    An oscillation is a change against the last change, however long ago. The target is the mean *before* this step's
    code came in (``freeze_to="average"``), or the code of this step ("current"). A weight that is frozen now gets its
    target from the next step on, and stays frozen. With threshold None nothing is ever frozen.

    targets
        held       a target is written once, when the weight freezes: frozen for good, as the paper has it
        rewritten  it is written again on every step that finds the frequency above the threshold, as in the published
                   code. A mean close to a half may then cross it with every step: with m = ½ a frozen weight can go
                   on oscillating between two targets, which keeps its frequency up.

    Shapes: codes and the seven fields of the state, all (...), → :class:`Oscillation`; the call is
    ``track_oscillation(codes, *state)``. Frequencies in 0 … 1, 0 < m ≤ 1, threshold ≥ 0: two to three times m at least,
    say the authors, or a single oscillation freezes.

    >>> state = start_oscillation([0])
    >>> for code in (1, 0, 0, 1):
    ...     state = track_oscillation([code], *state, momentum=0.5)
    >>> state.total.tolist(), state.frequency.tolist(), state.direction.tolist()
    ([2], [0.625], [-1])
    """
    checks.choice(freeze_to, FREEZE_VALUES, "freeze_to", "O-4")
    checks.choice(targets, TARGETS, "targets", "O-4")
    m = checks.number(momentum, "momentum", "O-4", low=0.0, high=1.0, above=True)
    limit = math.inf if threshold is None else checks.number(threshold, "threshold", "O-4", low=0.0)
    given = {"codes": codes, "previous": previous, "direction": direction, "total": total, "target": target}
    whole = {name: checks.integers(x, name, "O-4") for name, x in given.items()}
    means = {n: checks.finite(x, n, "O-4") for n, x in (("frequency", frequency), ("average", average))}
    shape = whole["codes"].shape
    for name, a in {**whole, **means}.items():
        if a.shape != shape:
            raise SpecError("O-4", f"{name} of shape {a.shape} must have the shape of codes, {shape}")
    held, went = boolean(frozen, "frozen", shape, "O-4"), whole["direction"]
    if np.abs(went).max(initial=0) > 1:
        raise SpecError("O-4", f"direction must hold -1, 0 and 1, got {went.min()} to {went.max()}")
    k = np.where(held, whole["target"], whole["codes"])  # (O.6)
    d = np.sign(whole["previous"] - k)
    o = d * went == -1  # (O.7)
    f = m * o + (1 - m) * means["frequency"]  # (O.8)
    often = f > limit
    written = often & ~held if targets == "held" else often
    mean = means["average"]
    pinned = round_half_even(mean) if freeze_to == "average" else k
    return Oscillation(
        codes=k.astype(np.int32),
        direction=np.where(d != 0, d, went).astype(np.int32),
        frequency=np.asarray(f),
        total=np.asarray(whole["total"] + o, np.int32),
        average=np.asarray(m * k + (1 - m) * mean),  # (O.10)
        frozen=np.asarray(held | often),  # (O.9)
        target=np.where(written, pinned, whole["target"]).astype(np.int32),
    )


def window(boundary_range: float, clause: str) -> float:
    """A boundary range in steps of the grid: from ½ on the windows of two thresholds meet."""
    return checks.number(boundary_range, "boundary_range", clause, low=0.0, high=0.5)


def within(w: npt.ArrayLike, bits: int, boundary_range: float, thresholds: Thresholds, clause: str) -> Bool:
    """Which weights are within the boundary range of a threshold."""
    checks.choice(thresholds, THRESHOLDS, "thresholds", clause)
    r = window(boundary_range, clause)
    _, _, v, n = scaled(w, bits, clause)
    k = nearest_code(v, n)
    low, high = (-n, n - 1) if thresholds == "all" or not k.size else (int(k.min()), int(k.max()))
    found = np.zeros(v.shape, np.bool_)
    for t in range(low + 1, high + 1):
        found |= np.abs(v - t) <= r  # (O.11)
    return found


def cga_mask(w: npt.ArrayLike, /, *, bits: int, boundary_range: float = 0.005, thresholds: Thresholds = "all") -> Bool:
    """Which weights confidence-guided annealing still trains.  [O-6, O-6a]

        active where |n W / α − t| ≤ BR for a threshold t                                                (O.11)

    thresholds
        all        the 2^bits − 1 inner ones, −n + 1 … n − 1: the paper's text, and the code's mask in product space
        occupied   those between the smallest and the largest code found anywhere in w: the code's mask for weights.
                   An extreme code that no weight takes removes its threshold, so that a mask depends on other rows.

    Shapes: w (..., m, k) → bool as w. 0 ≤ BR ≤ ½, in steps of the grid, both ends included; the authors use 0.005.
    BR = 0 leaves exact hits, 0 among them, BR = ½ all but the outer halves of the outermost steps. For Gaussian weights
    and 2 bits about 1.6 · BR of all are active; after training it is more, which is the point of the method.

    >>> cga_mask([[1.0, -1.0, 2.25, 3.75]], bits=2, boundary_range=0.125).tolist()
    [[False, False, True, False]]
    """
    return within(w, bits, boundary_range, thresholds, "O-6")


def boundary_statistics(
    w: npt.ArrayLike,
    grad: npt.ArrayLike,
    previous: npt.ArrayLike,
    /,
    *,
    bits: int,
    boundary_range: float = 0.005,
    thresholds: Thresholds = "all",
) -> BoundaryStatistics:
    """How many weights are near a threshold, and how often their gradients change sign.  [O-5]

        share = |near| / |W|                                                                             (O.12)
        flips = the part of near with g · g_previous < 0,   flips_elsewhere = that of the others         (O.13)

    Shapes: w (..., m, k); grad and previous, of this step and the one before, as w → numbers. A part of nothing is 0.
    Sign changes near a threshold mean that the straight-through gradient pushes a weight across and back.

    >>> boundary_statistics([[1.0, -1.0, 2.25, 3.75]], [[1, 1, 1, 1]], [[1, -1, -1, 1]], bits=2, boundary_range=0.125)
    BoundaryStatistics(near=1, share=0.25, flips=1.0, flips_elsewhere=0.3333333333333333)
    """
    at = within(w, bits, boundary_range, thresholds, "O-5")
    g, before = checks.finite(grad, "grad", "O-5"), checks.finite(previous, "previous", "O-5")
    if g.shape != at.shape or before.shape != at.shape:
        raise SpecError("O-5", f"grad {g.shape} and previous {before.shape} must have the shape of w, {at.shape}")
    flip = np.sign(g) * np.sign(before) == -1
    count = int(at.sum())
    return BoundaryStatistics(
        near=count,
        share=count / max(at.size, 1),  # (O.12)
        flips=int((flip & at).sum()) / max(count, 1),  # (O.13)
        flips_elsewhere=int((flip & ~at).sum()) / max(at.size - count, 1),
    )


def cga_step(
    w: npt.ArrayLike,
    grad: npt.ArrayLike,
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    active: npt.ArrayLike,
    /,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    decay: float = 0.0,
) -> AnnealedStep[Array]:
    """One step of AdamW under a mask: what is not active comes back to the last bit.  [O-7, O-7a]

        g ← g where active, else 0                                                                       (O.14)
        first ← β₁ first + (1 − β₁) g,   second ← β₂ second + (1 − β₂) g²                                (O.15)
        w ← w − lr ( (first / (1 − β₁ᵗ)) / (√(second / (1 − β₂ᵗ)) + ε) + λ w )   where active             (O.16)

    with t = step ≥ 1, λ = decay and 0 / 0 no movement. A zeroed gradient alone does not freeze: momentum of earlier
    steps and weight decay go on moving the weight. The published code lets them, and then writes the old weight back,
    as (O.16) does; the moments of frozen weights fade all the same. What is frozen is the latent weight: its code
    may still change with the scale of its row, and its value does.

    Shapes: w, grad, first, second float and active bool, all (...) → weight, first, second. w belongs in float32 or
    wider.

    >>> cga_step([1.0, 1.0], [2.0, 2.0], [1, 1], [1, 1], [True, False], step=1, lr=0.5, decay=0.5).weight.tolist()[1]
    1.0
    """
    given = {"w": w, "grad": grad, "first": first, "second": second}
    W, g, m, v = (checks.finite(a, name, "O-7") for name, a in given.items())
    for name, a in (("grad", g), ("first", m), ("second", v)):
        if a.shape != W.shape:
            raise SpecError("O-7", f"{name} of shape {a.shape} must have the shape of w, {W.shape}")
    on = boolean(active, "active", W.shape, "O-7")
    if (v < 0).any():
        raise SpecError("O-7", f"second must be at least 0, got {v.min()}")
    t = checks.whole(step, "step", "O-7", low=1)
    η, λ = checks.number(lr, "lr", "O-7", low=0.0), checks.number(decay, "decay", "O-7", low=0.0)
    β1, β2 = (checks.number(b, n, "O-7", low=0.0) for b, n in ((beta1, "beta1"), (beta2, "beta2")))
    if max(β1, β2) >= 1:
        raise SpecError("O-7", f"beta1 and beta2 must be below 1, got {beta1} and {beta2}")
    ε = checks.number(epsilon, "epsilon", "O-7", low=0.0)
    g = np.where(on, g, 0.0)  # (O.14)
    m, v = β1 * m + (1 - β1) * g, β2 * v + (1 - β2) * g**2  # (O.15)
    top, below = m / (1 - β1**t), np.sqrt(v / (1 - β2**t)) + ε
    move: F64 = np.divide(top, below, out=np.zeros_like(top), where=below > 0)
    return AnnealedStep(np.where(on, W - η * (move + λ * W), W), m, v)  # (O.16)
