"""How layers are compressed: every choice made, nothing left open."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from lowbit.formats.dtypes import name_of
from lowbit.models.inventory import Inventory
from lowbit.models.linears import Linear
from lowbit.models.policy import Reason, Unsupported
from lowbit.runs.errors import RecipeError

from .setting import DENSE, Setting

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
    settings: Mapping[str, Setting] = field(default_factory=dict, hash=False)
    """Full module name → what was decided for it; empty: the fields above hold for every linear layer of the blocks.
    Embedding and head are packed where an entry says so."""

    def of(self, name: str) -> Method:
        """The method of one module: its own setting, if there is one, in place of the fields above."""
        setting = self.settings.get(name)
        if setting is None:
            return replace(self, settings={}) if self.settings else self
        changes: dict[str, Any] = {"bits": setting.bits, "group_size": setting.group_size, "settings": {}}
        if setting.rank and self.compensate != "none":
            bits = None if setting.factor_bits == DENSE else setting.factor_bits
            return replace(self, **changes, rank=setting.rank, adapter_bits=bits)
        # What an adapter would have restored counts again, and so does the share of the mean for all directions.
        damping = self.adapter_damping if self.adapter_aware else self.damping
        return replace(self, **changes, compensate="none", adapter_aware=False, rounds=1, damping=damping)

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
        """Whether an adapter is made, of one module at least."""
        return self.compensate != "none" and (not self.settings or any(s.rank for s in self.settings.values()))

    def blind(self) -> Method:
        """The same without a second moment: weights are pruned by magnitude and rounded to nearest."""
        return replace(self, pruner="wanda", quantizer="rtn", act_order=False)

    def packs(self, inventory: Inventory) -> bool:
        """Whether weights are stored as codes; otherwise the result is an ordinary dense checkpoint."""
        return any(self.of(name).bits < DENSE for name, linear in inventory.named.items() if linear.packable) or bool(
            self.outer(inventory)
        )

    def packs_factors(self, inventory: Inventory) -> bool:
        """Whether factors are stored as codes, of one layer at least."""
        return any((own := self.of(name)).patches and own.adapter_bits is not None for name in inventory.named)

    def outer(self, inventory: Inventory) -> dict[str, Setting]:
        """Modules outside the blocks that are stored as codes: name → setting."""
        return {
            name: setting
            for name, setting in self.settings.items()
            if name in inventory.outer_modules and setting.bits < DENSE
        }

    def label(self, *, patched: bool) -> str:
        """What was done to a layer, such as ``sparsegpt 2:4 + rtn + eora``."""
        parts = [
            *([f"{self.pruner} {self.sparsity}"] if self.sparsity else []),
            *([self.quantizer] if self.bits < DENSE else []),
            *([self.compensate] if patched else []),
        ]
        return " + ".join(parts) or "dense"

    def remarks(self, inventory: Inventory) -> Iterator[str]:
        """What a user should know of the result before any work is done: what does not shrink."""
        if self.bits == DENSE and not self.settings:
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
                elif not solved[name].packable and self.of(inventory.path(index, solved[name].name)).bits < DENSE:
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
        for name, linear in inventory.named.items():
            self.of(name)._check_layer(name, linear)
        self._check_settings(inventory)

    def _check_layer(self, name: str, linear: Linear) -> None:
        m, k = linear.shape
        if self.bits < DENSE and linear.pieces and self.scheme == "asymmetric":
            raise RecipeError(
                f"{name}: readers of packed experts, transformers and vLLM, know no zero points: choose symmetric codes"
            )
        _require_divisor(name, self.group_size if self.bits < DENSE else None, k)
        if self.patches and self.rank > min(m, k):
            raise RecipeError(f"rank {self.rank} is above the smaller dimension {min(m, k)} of {name} ({m} x {k})")
        if self.sparsity and k % 4:
            raise RecipeError(f"2:4 sparsity needs input columns divisible by 4, {name} has {k}")

    def _check_settings(self, inventory: Inventory) -> None:
        """Settings name what there is, all of it, and nothing that a file cannot hold."""
        if not self.settings:
            return
        known = {*inventory.named, *inventory.outer_modules}
        if unknown := sorted(set(self.settings) - known):
            raise RecipeError(
                f"a setting for {unknown[0]}, which is no module of {inventory.source} that can be packed"
            )
        if missing := [name for name in inventory.named if name not in self.settings]:
            raise RecipeError(f"no setting for {missing[0]} and {len(missing) - 1} other layers")
        for name, (_, columns) in inventory.outer_modules.items():
            setting = self.settings.get(name)
            if setting is not None and setting.rank:
                raise RecipeError(f"{name}: an adapter of rank {setting.rank}, but only layers of blocks have adapters")
            if setting is not None and setting.bits < DENSE:
                _require_divisor(name, setting.group_size, columns)
        stacks = [name for name, linear in inventory.named.items() if linear.pieces]
        forms = {(setting.bits, setting.group_size): name for name in stacks if (setting := self.settings[name])}
        if len(forms) > 1:
            first, second = list(forms.values())[:2]
            raise RecipeError(
                f"{first} and {second} have settings of different bits or groups, but transformers reads the experts "
                "of a model by one scheme: give all of them one"
            )


def _require_divisor(name: str, group_size: int | None, columns: int) -> None:
    if group_size and columns % group_size:
        raise RecipeError(
            f"group size {group_size} does not divide the {columns} input columns of {name}: "
            "choose a divisor, or 0 for one scale per row"
        )
