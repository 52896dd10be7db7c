"""O: tracking and annealing in place, for training loops.

The operations of :mod:`.oscillation` give back fresh arrays for all of the state, most of it 32 bits wide. The objects
of this module own theirs: codes and directions of a byte each, a mask, and frequencies. They write into it and into the
weight, row after row in the cache, and find bit for bit what the operations find.

Weights are C-contiguous NumPy arrays. A parameter of torch on the CPU is one as ``parameter.detach().numpy()``, without
a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lowbit.accel.common.oscillation import check_momentum, check_range
from lowbit.accel.common.refusals import check_whole
from lowbit.accel.common.scale_tuning import check_tuning
from lowbit.reference.errors import SpecError

from ._arrays import Array, fixed, refuse_bad, refuse_found, weights
from ._jit import collected, kernel, pieces
from .statsq import _scales

__all__ = ["AnnealedAdamW", "OscillationTracker"]

CHUNK = 64  # weights that are skipped together where none is active
FEW = 4  # active ones that are moved one by one


@kernel
def _hold(w: Any, held: Any, active: Any, start: int, stop: int) -> None:
    """What is not active goes back to ``held``; ``held`` follows what is. Rows start … stop − 1."""
    for r in range(start, stop):
        new, old, on = w[0, r], held[r], active[r]
        for j in range(new.size):
            new[j] = new[j] if on[j] else old[j]
        for j in range(new.size):
            old[j] = new[j]


@kernel
def _moved(a: Any, g: Any, first: Any, second: Any, rates: Any) -> Any:
    """One active weight after (O.15) and (O.16), in float64."""
    lr, beta1, beta2, epsilon, decay, bias1, bias2 = rates
    slope, old = np.float64(g), np.float64(a)
    mean = beta1 * np.float64(first) + (1.0 - beta1) * slope
    square = beta2 * np.float64(second) + (1.0 - beta2) * slope * slope
    below = np.sqrt(square / bias2) + epsilon
    move = mean / bias1 / below if below != 0.0 else 0.0  # NaN goes on to the weight, where it is found
    return old - lr * (move + decay * old)


@kernel
def _move(x: Any, slope: Any, m: Any, v: Any, on: Any, rates: Any) -> None:
    """A few weights in place: one by one where few are active, else all, of which the active are kept."""
    count = np.int32(0)
    for j in range(x.size):
        count += np.int32(on[j])
    if count > FEW:
        for j in range(x.size):
            new = type(x[j])(_moved(x[j], slope[j], m[j], v[j], rates))
            x[j] = new if on[j] else x[j]
    elif count > 0:
        for j in range(x.size):
            if on[j]:
                x[j] = _moved(x[j], slope[j], m[j], v[j], rates)


@kernel
def _adamw(w: Any, grad: Any, first: Any, second: Any, active: Any, rates: Any, start: int, stop: int) -> None:
    """(O.14) to (O.16) in place for the rows start … stop − 1."""
    beta1, beta2 = rates[1], rates[2]
    for r in range(start, stop):
        x, slope, m, v, on = w[0, r], grad[r], first[r], second[r], active[r]
        for at in range(0, x.size, CHUNK):
            to = at + CHUNK
            _move(x[at:to], slope[at:to], m[at:to], v[at:to], on[at:to], rates)
        for j in range(x.size):
            g = np.float64(slope[j]) if on[j] else 0.0
            m[j] = beta1 * np.float64(m[j]) + (1.0 - beta1) * g
            v[j] = beta2 * np.float64(v[j]) + (1.0 - beta2) * g * g


@kernel
def _observe(w: Any, grid: Any, rates: Any, mask: bool, start: int, stop: int, state: Any) -> Any:
    """Scales, codes, tracker and mask of the rows start … stop − 1 in place; True if a weight is not finite."""
    alpha, codes, direction, frequency, active = state
    n, half, width = grid
    m, rest = rates
    low, high, none = -n, n - type(n)(1), m * 0
    bad, found = False, np.empty(w.shape[2], w.dtype)
    for r in range(start, stop):
        bad |= _scales(w, r, r + 1, alpha)
        x, code, turn, often, near = w[0, r], codes[r], direction[r], frequency[r], active[r]
        a = alpha[r]
        unit = a if a > 0.0 else type(n)(1)  # a row of zeros: code 0, and weights on the threshold 0
        shift = half if a > 0.0 else none
        for j in range(x.size):  # two loops, as compilers give up on too many arrays at once
            v = x[j] / unit * n
            found[j] = min(max(np.rint(v - shift), low), high)
            if mask:
                near[j] = abs(v - min(max(np.rint(v), low + type(n)(1)), high)) <= width
        for j in range(x.size):
            k, before, went = found[j], type(n)(code[j]), type(n)(turn[j])
            d = type(n)(before > k) - type(n)(before < k)
            often[j] = rest * often[j] + (m if d * went == -1.0 else none)
            code[j] = np.int32(k)
            turn[j] = np.int32(d if d != 0.0 else went)
    return bad


class _InPlace:
    """A weight with the state of its tracker and its mask."""

    def __init__(self, weight: Array, bits: int, boundary_range: float | None, momentum: float) -> None:
        check_whole("O-4", "bits", bits, 1, 16)
        check_momentum(momentum)
        width = 0.0 if boundary_range is None else check_range("O-6", boundary_range)
        w = weights("O-4", "weight", weight)
        fits = w is weight and w.flags.c_contiguous and w.flags.writeable  # not in another byte order: that is a copy
        if w.ndim != 2 or w.dtype not in (np.float32, np.float64) or not fits:
            raise SpecError(
                "O-4",
                "weight must be a C-contiguous, writeable matrix of float32 or float64 in native byte order, got "
                f"{weight.dtype}",
            )
        kind = w.dtype.type
        self.weight, self.bits, self.boundary_range, self.momentum = w, bits, boundary_range, momentum
        self.codes: Array = np.zeros(w.shape, np.int8 if bits <= 8 else np.int16)
        self.direction: Array = np.zeros(w.shape, np.int8)
        self.frequency: Array = np.zeros(w.shape, w.dtype)
        self.active: Array = np.ones(w.shape, np.bool_)
        self._scale: Array = np.zeros(w.shape[0], w.dtype)
        self._grid = (kind(1 << (bits - 1)), kind(0.5), kind(width))
        self._rates = (kind(momentum), kind(1 - momentum))
        self._walk(None)
        self.direction.fill(0)  # the first codes are no change
        self.frequency.fill(0)

    @property
    def _rows(self) -> Array:
        """The weight as statsq takes it; made anew, since a view would not follow a copy of the object."""
        return self.weight[np.newaxis]

    def _walk(self, before: Callable[[int, int], object] | None) -> None:
        """``before`` of some rows, then what the tracker makes of them, on all threads."""
        parts = pieces(*self.weight.shape, elements=1 << 16)
        state = (self._scale, self.codes, self.direction, self.frequency, self.active)
        rows, mask = self._rows, self.boundary_range is not None

        def work(start: int, stop: int) -> bool:
            if before is not None:
                before(start, stop)
            return bool(_observe(rows, self._grid, self._rates, mask, start, stop, state))

        if any(collected(parts, work)):
            refuse_found("O-4", "weight", self.weight)


class OscillationTracker(_InPlace):
    """Tracks a weight that any optimizer trains, and holds what annealing has frozen.  [O-4, O-6]

    Call :meth:`step` after each step of the optimizer. With a boundary range, weights that are not ``active`` are then
    brought back to the last bit, whatever momentum and weight decay made of them, before codes are computed and the
    next mask is found. It does not touch gradients: an optimizer with moments goes on gathering them for frozen weights
    unless ``grad`` is multiplied by ``active`` before its step.

    Attributes:
        codes: of StatsQ, int8, or int16 from 9 bits on.
        direction, frequency: as in :func:`~lowbit.accel.numba_cpu.track_oscillation`, int8 and the weight's dtype.
        active: bool, what the next step may move; all without a boundary range.

    Args:
        weight: (m, k), float32 or float64, C-contiguous; written to.
        bits: 1 to 16.
        boundary_range: of the mask, 0 to ½ in steps of the grid; None for no annealing.
        momentum: of the frequency, above 0, at most 1.

    Raises:
        SpecError: O-4 and O-6 for parameters, A-4 for a weight with NaN or infinities, which an optimizer has left.
    """

    def __init__(
        self, weight: Array, *, bits: int, boundary_range: float | None = None, momentum: float = 0.01
    ) -> None:
        super().__init__(weight, bits, boundary_range, momentum)
        self._held = None if boundary_range is None else self.weight.copy()

    def step(self) -> None:
        """Brings frozen weights back and follows the others."""
        held = self._held
        self._walk(None if held is None else lambda *rows: _hold(self._rows, held, self.active, *rows))


class AnnealedAdamW(_InPlace):
    """AdamW under the mask of annealing, with the tracker, in one pass.  [O-4, O-6, O-7]

    Each step is ``cga_step`` under ``active``, then ``statsq``, ``track_oscillation`` and the next ``cga_mask``.

    Attributes:
        first, second: moments, as the weight.
        lr, beta1, beta2, epsilon, decay: may be set between steps.
        steps: how many were taken.
        codes, direction, frequency, active: as in :class:`OscillationTracker`.

    Args:
        weight, bits, boundary_range, momentum: as for :class:`OscillationTracker`.
        lr, beta1, beta2, epsilon, decay: of AdamW.

    Raises:
        SpecError: O-4, O-6 and O-7 for parameters, A-4 for NaN or infinities in weight or gradient; nothing has changed
            then. A-4 too when a step has overflowed, which leaves what it made.
    """

    def __init__(
        self,
        weight: Array,
        *,
        bits: int,
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        decay: float = 0.0,
        boundary_range: float | None = 0.005,
        momentum: float = 0.01,
    ) -> None:
        check_tuning("O-7", step=1, lr=lr, beta1=beta1, beta2=beta2, epsilon=epsilon, decay=decay)
        super().__init__(weight, bits, boundary_range, momentum)
        self.lr, self.beta1, self.beta2, self.epsilon, self.decay = lr, beta1, beta2, epsilon, decay
        self.first: Array = np.zeros_like(self.weight)
        self.second: Array = np.zeros_like(self.weight)
        self.steps = 0

    def step(self, grad: Array) -> None:
        """One step down a gradient (m, k), which is not written to."""
        slope = weights("O-7", "grad", grad)
        if slope.shape != self.weight.shape:
            raise SpecError("O-7", f"grad {slope.shape} must have the shape of the weight, {self.weight.shape}")
        slope = fixed(slope, self.weight.dtype)
        refuse_bad("O-7", "grad", slope)
        refuse_bad("O-7", "weight", self.weight)
        t = self.steps + 1
        options = {name: getattr(self, name) for name in ("lr", "beta1", "beta2", "epsilon", "decay")}
        check_tuning("O-7", step=t, **options)
        rates = tuple(float(x) for x in (*options.values(), 1 - self.beta1**t, 1 - self.beta2**t))
        moments = (self.first, self.second)
        self._walk(lambda *rows: _adamw(self._rows, slope, *moments, self.active, rates, *rows))
        self.steps = t
