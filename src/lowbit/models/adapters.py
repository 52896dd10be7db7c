"""Adapters of a model: read from a directory, and given to the blocks that they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowbit.formats.checkpoint import weights_hash
from lowbit.formats.factors import holds_factors, read_factors
from lowbit.formats.peft import UNBOUND, read_adapter, require_base
from lowbit.runs.errors import RecipeError
from lowbit.runs.events import Note, OnEvent

from .inventory import Inventory
from .weights import Factors

__all__ = ["adapter_factors", "split_factors"]


def adapter_factors(path: str | Path, adapter: str | Path | None, tell: OnEvent | None = None) -> Factors:
    """Factors of an adapter directory, PEFT's or packed, after checking that it was made for the base at ``path``.

    Of one that does not say for which base it was made, shapes are all that can be compared; ``tell`` hears of it.
    """
    if adapter is None:
        return {}
    loaded = read_factors(adapter) if holds_factors(adapter) else read_adapter(adapter)
    if loaded.base_hash is not None:
        require_base(loaded, weights_hash(path), adapter_path=adapter, base_path=path)
    elif tell is not None:
        tell(Note(f"{adapter} is {UNBOUND}: only its shapes are compared with the model's"))
    return loaded.factors


def split_factors(inventory: Inventory, factors: Factors, source: str) -> list[dict[str, Any]]:
    """Adapters by block, each checked against the shape of its module.

    Raises:
        RecipeError: a module that the model lacks, or factors of other shapes.
    """
    by_block: list[dict[str, Any]] = [{} for _ in inventory.blocks]
    for index, linears in enumerate(inventory.linears):
        for linear in linears:
            path = inventory.path(index, linear.name)
            if path in factors:
                b, a = factors[path]
                expected = (*linear.shape, *([linear.experts] * 2 if linear.experts else []))
                if (b.shape[-2], a.shape[-1], *b.shape[:-2], *a.shape[:-2]) != expected:
                    stack = f"{linear.experts} times " if linear.experts else ""
                    raise RecipeError(
                        f"the adapter of {path} has B {tuple(b.shape)} and A {tuple(a.shape)}, "
                        f"but the module in {source} is {stack}{linear.shape}: it belongs to another model"
                    )
                by_block[index][path] = (b, a)
    unknown = set(factors) - {path for block in by_block for path in block}
    if unknown:
        raise RecipeError(f"the adapter names {min(unknown)}, which is no linear layer in the blocks of {source}")
    return by_block
