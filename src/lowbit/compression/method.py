"""How layers are compressed: every choice made, nothing left open."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from lowbit.formats.dtypes import name_of
from lowbit.models.inventory import Inventory
from lowbit.models.policy import Reason, Unsupported
from lowbit.runs.errors import RecipeError

__all__ = ["Method"]

_LARGE = 0.01  # share of the values of a model from which a user is told that a parameter does not shrink


@dataclass(frozen=True)
class Method:
    """One way to compress a linear layer and to compensate for what was lost."""

    bits: int  # of the codes; 16 stores the weights dense
    scheme: Literal["asymmetric", "symmetric-full"]
    group_size: int | None  # columns per scale, None: one scale per row
    quantizer: Literal["rtn", "gptq"]
    act_order: bool
    static_groups: bool
    clip_search: bool  # of the grid, where one is fitted before the codes
    damping: float  # share of the mean diagonal of a Hessian
    sparsity: Literal["2:4"] | None
    pruner: Literal["sparsegpt", "wanda"]
    compensate: Literal["eora", "svd", "act-svd", "none"]
    rank: int
    rounds: int  # alternations of compressing and compensating
    adapter_aware: bool  # the compression spares what the adapter will restore
    adapter_bits: int | None
    adapter_damping: float  # the same where all of a second moment counts
    spectrum: bool  # record the error spectrum
    storage: torch.dtype  # of scales, dense weights and factors

    @property
    def scale_dtype(self) -> str:
        """Name of the type of scales."""
        return name_of(self.storage)

    @property
    def joint(self) -> bool:
        """Pruned and quantized in one pass, by SparseGPT."""
        return self.sparsity is not None and self.quantizer == "gptq" and self.pruner == "sparsegpt"

    @property
    def patches(self) -> bool:
        """Whether an adapter is made."""
        return self.compensate != "none"

    def blind(self) -> Method:
        """The same without a second moment: weights are pruned by magnitude and rounded to nearest."""
        return replace(self, pruner="wanda", quantizer="rtn", act_order=False)

    def packs(self, inventory: Inventory) -> bool:
        """Whether the weights are stored as codes; otherwise the result is an ordinary dense checkpoint."""
        return self.bits < 16 and any(linear.packable for linears in inventory.linears for linear in linears)

    def label(self, *, patched: bool) -> str:
        """What was done to a layer, such as ``sparsegpt 2:4 + rtn + eora``."""
        parts = [
            *([f"{self.pruner} {self.sparsity}"] if self.sparsity else []),
            *([self.quantizer] if self.bits < 16 else []),
            *([self.compensate] if patched else []),
        ]
        return " + ".join(parts)

    def remarks(self, inventory: Inventory) -> Iterator[str]:
        """What a user should know of the result before any work is done: what does not shrink."""
        if self.bits == 16:
            yield (
                "2:4 sparsity alone makes no file smaller: the weights are stored dense, zeros included; "
                "fewer bits would shrink it"
            )
        sizes: dict[tuple[str, str], list[int]] = {}
        for index, linears in enumerate(inventory.linears):
            solved = {inventory.path(index, linear.parameter): linear for linear in linears}
            for name in inventory.block_names(index):
                if name not in solved:
                    why = "stays as it is"
                elif self.bits < 16 and not solved[name].packable:
                    why = "is stored dense with the values of its codes, as no reader knows it packed"
                else:
                    continue
                place = name.removeprefix(inventory.path(index, ""))
                sizes.setdefault((place, why), []).append(math.prod(inventory.layout.shapes[inventory.where[name]]))
        for (place, why), counts in sizes.items():
            share = sum(counts) / inventory.values()
            if share > _LARGE:
                yield f"{place} of {len(counts)} blocks, {share:.1%} of all values, {why}"

    def check(self, inventory: Inventory) -> None:
        """Everything that would fail at some layer fails here, before anything is written.

        Raises:
            RecipeError: a layer whose shape does not fit, by its full name.
        """
        if not any(inventory.linears):
            raise Unsupported.of(Reason.NO_LINEARS, inventory.source, inventory.name)
        if self.packs(inventory) and (detail := inventory.unloadable()):
            raise Unsupported.of(Reason.LAYOUT, inventory.source, inventory.name, detail)
        for index, linears in enumerate(inventory.linears):
            for linear in linears:
                name = inventory.path(index, linear.name)
                m, k = linear.shape
                if self.bits < 16 and linear.pieces and self.scheme == "asymmetric":
                    raise RecipeError(
                        f"{name}: readers of packed experts, transformers and vLLM, know no zero points: "
                        "choose symmetric codes"
                    )
                if self.bits < 16 and self.group_size and k % self.group_size:
                    raise RecipeError(
                        f"group size {self.group_size} does not divide the {k} input columns of {name}: "
                        "choose a divisor, or 0 for one scale per row"
                    )
                if self.patches and self.rank > min(m, k):
                    raise RecipeError(
                        f"rank {self.rank} is above the smaller dimension {min(m, k)} of {name} ({m} x {k})"
                    )
                if self.sparsity and k % 4:
                    raise RecipeError(f"2:4 sparsity needs input columns divisible by 4, {name} has {k}")
