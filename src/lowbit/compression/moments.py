"""Second moments of the inputs of a block's layers, in trees whose sums do not depend on the order of work."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch

from lowbit.models.decoder import Decoder, Sample
from lowbit.models.experts import Routed
from lowbit.models.taps import collect_inputs
from lowbit.reference.errors import SpecError
from lowbit.runs.clock import Clock
from lowbit.runs.errors import RecipeError

from .arrays import Arrays

__all__ = ["LEAF_TOKENS", "BlockMoments", "MomentTrees", "collect_moments"]

LEAF_TOKENS = 4096  # tokens of one product xᵀx: fewer, and adding up float64 sums costs more than the products


class BlockMoments(NamedTuple):
    """Statistics of one block."""

    nodes: dict[str, Any]  # leader of a group of layers with one input → root of its summation tree
    groups: dict[str, str]  # linear layer → leader; those that no token reaches are missing
    routed: dict[str, Routed]  # stack → where the tokens of its experts went


class MomentTrees:
    """Sums that grow sample by sample, of what ``what`` says before the name of a layer.

    A leaf of a tree is a run of consecutive samples, as many as fit :data:`LEAF_TOKENS`: which samples meet in a leaf
    depends on their numbers alone.
    """

    def __init__(self, arrays: Arrays, what: str, length: int) -> None:
        self.nodes: dict[str, Any] = {}
        self.seconds = 0.0
        self._arrays = arrays
        self._what = what
        self._tile = max(1, LEAF_TOKENS // length)
        self._waiting: dict[str, list[tuple[int, torch.Tensor]]] = {}

    def take(self, name: str, sample: int, x: torch.Tensor) -> None:
        """Vectors ``x`` (tokens, width) of one sample, in the order of samples."""
        if name in self._waiting and self._waiting[name][0][0] // self._tile != sample // self._tile:
            self._add(name)
        self._waiting.setdefault(name, []).append((sample, x))
        if (sample + 1) % self._tile == 0:
            self._add(name)

    def finish(self) -> None:
        """No more samples."""
        for name in list(self._waiting):
            self._add(name)

    def _add(self, name: str) -> None:
        started = time.perf_counter()
        inputs = self._waiting.pop(name)
        x = inputs[0][1] if len(inputs) == 1 else torch.cat([x for _, x in inputs])
        if x.shape[0]:
            backend = self._arrays.backend
            try:
                leaf = backend.moment_leaf(self._arrays.give(x), index=inputs[0][0] // self._tile)
            except SpecError as error:
                bad = next((sample for sample, x in inputs if not bool(torch.isfinite(x).all())), None)
                if error.clause != "A-4" or bad is None:
                    raise
                raise RecipeError(f"{self._what}{name} are NaN or infinite in calibration sample {bad}") from error
            self.nodes[name] = backend.moment_merge(self.nodes[name], leaf) if name in self.nodes else leaf
        self.seconds += time.perf_counter() - started


def collect_moments(decoder: Decoder, index: int, samples: list[Sample], arrays: Arrays, clock: Clock) -> BlockMoments:
    """Statistics of every group of layers of block ``index``, whose weights are in memory, over all samples.

    Raises:
        RecipeError: inputs that are not finite.
    """
    inventory = decoder.inventory
    trees = MomentTrees(arrays, f"the inputs of {inventory.path(index, '')}", samples[0].length)
    with clock("forward"):
        groups, routed = collect_inputs(decoder, index, samples, trees.take)
        trees.finish()
    clock.move("forward", "statistics", trees.seconds)
    groups = {name: leader for name, leader in groups.items() if leader in trees.nodes}
    return BlockMoments(trees.nodes, groups, routed)
