"""What makes a directory of shards one that other tools load: the adapter, the index, the configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from lowbit.formats.checkpoint import weights_hash
from lowbit.formats.dtypes import name_of
from lowbit.formats.packed import compressed_tensors
from lowbit.formats.peft import write_adapter
from lowbit.models.inventory import Inventory
from lowbit.runs.files import remove_tree, writing

from .method import Method
from .shards import Shards

__all__ = ["output_config", "output_index", "save_adapter"]


def save_adapter(out: Path, inventory: Inventory, shards: Shards, *, base_model: str) -> None:
    """``adapter/`` in the output directory ``out``, from the factors of every block; bound to the shards beside it."""
    folder = out / "adapter"
    remove_tree(folder)  # a killed run may have left half of it
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for index in range(len(inventory.blocks)):
        factors.update(shards.factors(index))
    every = [linear for linears in inventory.linears for linear in linears]
    transposed = all(linear.transposed for linear in every if not linear.experts)
    leaves = inventory.layout.merged()
    with writing(folder):
        write_adapter(
            folder,
            factors,
            base_model=base_model,
            base_hash=weights_hash(out),
            fan_in_fan_out=transposed,
            by_parameter={name for name in factors if name.rpartition(".")[2] in leaves and factors[name][0].ndim == 2},
        )


def output_index(shards: Shards) -> dict[str, Any]:
    """Content of ``model.safetensors.index.json``."""
    total = sum(int(line["bytes"]) for line in shards.lines)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(shards.weight_map().items()))}


# Which implementation computes is its runner's choice, and the name of a kernel on the hub would be code.
_RUNNER_KEYS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")


def output_config(inventory: Inventory, method: Method, shards: Shards) -> bytes:
    """Content of ``config.json``: the input's, key for key, with what was changed.

    Written again in the words of the installed transformers, it would lose settings for whoever reads the old ones.
    """
    config = inventory.checkpoint.config_json()
    config.pop("quantization_config", None)
    if inventory.name not in (config.get("architectures") or ()):
        config["architectures"] = [inventory.name]
    if inventory.untied:  # readers that know no better tie because the flag says so
        config["tie_word_embeddings"] = False
    stored = name_of(method.storage)
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        part |= {key: stored for key in ("torch_dtype", "dtype") if key in part}
        for key in _RUNNER_KEYS:
            part.pop(key, None)
    if not {"torch_dtype", "dtype"} & config.keys():
        config["torch_dtype"] = stored
    if method.packs(inventory):
        config["quantization_config"] = compressed_tensors.quantization_config(
            bits=method.bits,
            scheme=method.scheme,
            group_size=method.group_size,
            ignore=inventory.dense_linears(shards.solved),
            act_order=method.act_order,
        )
    return (json.dumps(config, indent=2) + "\n").encode()
