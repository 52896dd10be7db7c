"""One linear layer: weight, inputs and method in; tensors to store, adapter and measures out. No file is touched.

With several rounds, compression and compensation take turns and the best stored pair is kept. A round starts from the
last adapter: from what its BA does not carry, or, where the compression knows of the adapter, from the directions that
its A does not reach, with B left free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from lowbit.models.linears import Linear
from lowbit.runs.clock import Clock

from .arrays import Arrays
from .compensate import Patch, best_patch, compensate
from .method import Method
from .quantize import Stored, quantize

__all__ = ["SPECTRUM_SIDE", "LayerSolver", "Solution", "part_bytes"]

_SPECTRUM = 256  # singular values kept in the record
SPECTRUM_SIDE = 1024  # smaller side of the largest layer whose spectrum is computed: it costs a full eigensolve
_ROUGHLY = 1e-3  # distance from the optimum at which the directions of an adapter to come are good enough
_NOTHING = 2.0**-16  # share of an input's energy that is rounding: the entries of a float32 moment carry 2^-24


class Solution(NamedTuple):
    """A solved layer."""

    tensors: dict[str, torch.Tensor]  # the compressed weight as stored, by full name
    factors: tuple[torch.Tensor, torch.Tensor] | None  # B (m, r) and A (r, k) as stored
    measures: dict[str, Any]  # of the record
    full_rank: bool  # the adapter was to know of all directions of the inputs, so the compression was not told of it
    coded: dict[str, torch.Tensor] | None = None  # the factors as codes, where those are asked for

    @property
    def parts(self) -> dict[str, torch.Tensor]:
        """Tensors of the adapter that ship, by the last part of their names; none without one."""
        if self.coded is not None or self.factors is None:
            return self.coded or {}
        return {"B": self.factors[0], "A": self.factors[1]}


class _Aim(NamedTuple):
    """What the errors of a compression are weighed with."""

    moment: Any  # second moment, an array (k, k)
    damping: float


class _Round(NamedTuple):
    before: float  # squared output error of the compressed layer
    after: float  # the same with its adapter
    cost: float  # what the rounds are compared by: that error, or the nats that it costs at the model's output
    stored: Stored
    patch: Patch | None


@dataclass(frozen=True)
class LayerSolver:
    """Solves layers, one at a time, by one method on one backend.

    Attributes:
        outputs: full name of a layer → second moment of the gradients at its outputs, float32 (m, m), where one is
            known: then what an error costs at the model's output decides, and not its size.
    """

    method: Method
    arrays: Arrays
    clock: Clock
    outputs: Callable[[str], torch.Tensor | None] = lambda _: None

    def solve(
        self, name: str, block: int, linear: Linear, w: torch.Tensor, c: Any, magnitude: torch.Tensor
    ) -> Solution:
        """Compress and compensate one layer.

        Args:
            name: full name of the layer.
            block: number of its block, for the record.
            linear: its place and layout.
            w: weight, float32 (m, k).
            c: second moment of its inputs, an array (k, k).
            magnitude: mean absolute input by column, float32 (k,).

        Raises:
            SpecError: what the backend refuses.
        """
        if self.method.settings:
            return replace(self, method=self.method.of(name)).solve(name, block, linear, w, c, magnitude)
        moment = self.outputs(name)
        g = None if moment is None else self.arrays.give(moment)
        best, full_rank = self._best_round(name, linear, w, c, g, magnitude)
        with self.clock("errors"):
            norm = self._error(w, c)
        method, (before, after, cost, stored, patch) = self.method, best
        spectrum: list[float] | None = None
        # Without a spectrum, the share that the chosen rank captured is still known from the objectives.
        energy = {str(method.rank): max(0.0, 1 - after / before)} if patch is not None and before > 0 else {}
        if method.spectrum and min(linear.shape) <= SPECTRUM_SIDE:
            with self.clock("spectrum"):
                error = self.arrays.give(w - stored.weight)
                values = self.arrays.take(self.arrays.backend.error_spectrum(error, c))
            spectrum, energy = _spectrum(values.to(torch.float64), method.rank)
        measures = {
            "name": name,
            "block": block,
            "shape": list(linear.shape),
            "bits": method.bits,
            "group_size": method.group_size,
            "method": method.label(patched=patch is not None),
            "rank": method.rank if patch is not None else 0,
            "sparsity": round(stored.zeros, 6) if method.sparsity else None,
            "objective_uncompensated": before,
            "objective_compensated": after if patch is not None else None,
            "optimum_lower_bound": patch.lower_bound if patch is not None and g is None else None,
            "relative_error_before": _ratio(before, norm),
            "relative_error_after": _ratio(after, norm) if patch is not None else None,
            "weight_norm": norm,
            "certificate": patch.method if patch is not None else None,
            "spectrum": spectrum,
            "energy": energy,
            "bytes": _bytes(stored, patch),
        }
        if g is not None:
            measures["kl"] = cost
        return Solution(
            stored.tensors,
            None if patch is None else (patch.b, patch.a),
            measures,
            full_rank,
            None if patch is None else patch.packed,
        )

    def _best_round(
        self, name: str, linear: Linear, w: torch.Tensor, c: Any, g: Any, magnitude: torch.Tensor
    ) -> tuple[_Round, bool]:
        """The best of all rounds, and whether an adapter left nothing to weigh errors with."""
        method, arrays, clock = self.method, self.arrays, self.clock
        whole = _Aim(c, method.adapter_damping)
        target, aim = w, self._aim(name, linear, w, whole, g)
        full_rank = method.adapter_aware and aim is whole
        best: _Round | None = None
        for turn in range(method.rounds):
            with clock("quantize"):
                stored = quantize(replace(method, damping=aim.damping), arrays, name, linear, target, aim.moment)
            d = w - stored.weight
            with clock("errors"):
                before = self._error(d, c)
            after, patch, left = before, None, d
            if method.patches:
                with clock("compensate"):
                    patch = compensate(method, arrays, d, c, g, magnitude)
                product = patch.product
                left = d - product
                with clock("errors"):
                    after = self._error(left, c)
                if not method.adapter_aware:
                    target = w - product
                elif turn + 1 < method.rounds:
                    aim = self._behind(whole, arrays.give(patch.a.to(torch.float32)))
            cost = after
            if g is not None:
                with clock("errors"):
                    cost = max(0.0, float(arrays.backend.divergence(arrays.give(left), c, g)))
            if best is None or cost < best.cost:
                best = _Round(before, after, cost, stored, patch)
        assert best is not None
        return best, full_rank

    def _aim(self, name: str, linear: Linear, w: torch.Tensor, whole: _Aim, g: Any) -> _Aim:
        """What the compression of ``w`` works with: the ``whole`` moment, or what the adapter will leave of it.

        Which directions the adapter will take is guessed from the error of a compression that knows nothing of the
        inputs.
        """
        if not self.method.adapter_aware:
            return whole
        with self.clock("quantize"):
            plain = quantize(self.method, self.arrays, name, linear, w, None)
        with self.clock("compensate"):
            error, rank = self.arrays.give(w - plain.weight), self.method.rank
            guess = best_patch(self.arrays, error, whole.moment, g, rank=rank, tolerance=_ROUGHLY)
            return self._behind(whole, guess.A)

    def _behind(self, whole: _Aim, a: Any) -> _Aim:
        """What an adapter with rows ``a`` leaves of a moment; all of it again where that is rounding alone.

        An adapter whose rank reaches that of the inputs restores any error on them, so it prefers none: other inputs
        decide, and for those the whole moment is the best guess.
        """
        left = self.arrays.backend.residual_moment(whole.moment, a)
        energy, before = (self.arrays.take(moment).diagonal() for moment in (left, whole.moment))
        return whole if bool((energy <= _NOTHING * before).all()) else _Aim(left, self.method.damping)

    def _error(self, d: torch.Tensor, c: Any) -> float:
        """Squared output error of the weight error ``d``."""
        return max(0.0, float(self.arrays.backend.objective(self.arrays.give(d), c)))


def _ratio(objective: float, norm: float) -> float:
    """Relative output error: the root of the ratio of two squared norms."""
    return math.sqrt(objective / norm) if norm > 0 else 0.0


def _spectrum(values: torch.Tensor, rank: int) -> tuple[list[float], dict[str, float]]:
    """The leading singular values, and the share of the squared sum that each of a few ranks captures."""
    squares = values.square()
    total = float(squares.sum())
    ranks = sorted({r for r in (1, 2, 4, 8, 16, 32, 64, 128, 256, rank) if r <= len(values)})
    energy = {str(r): float(squares[:r].sum()) / total if total > 0 else 1.0 for r in ranks}
    return [float(value) for value in values[:_SPECTRUM]], energy


def part_bytes(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Sizes of the parts of a stored weight."""
    parts = {"packed": 0, "scales": 0, "zero_points": 0}
    kinds = {"weight_scale": "scales", "weight_zero_point": "zero_points"}
    for name, tensor in tensors.items():
        parts[kinds.get(name.rpartition(".")[2], "packed")] += tensor.nbytes
    return parts


def _bytes(stored: Stored, patch: Patch | None) -> dict[str, int]:
    """Sizes of the parts of a layer."""
    parts = part_bytes(stored.tensors) | {"adapter": 0}
    if patch is not None:
        parts["adapter"] = patch.b.nbytes + patch.a.nbytes
        if patch.packed is not None:
            parts["adapter_packed"] = sum(part.nbytes for part in patch.packed.values())
    return parts
