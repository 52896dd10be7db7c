"""What makes a directory of shards one that other tools load: the adapter, the index, the configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lowbit.formats.checkpoint import weights_hash
from lowbit.formats.dtypes import name_of
from lowbit.formats.factors import FactorForm, unpack_factors, write_factors
from lowbit.formats.packed import compressed_tensors
from lowbit.formats.packed.protocol import WeightScheme
from lowbit.formats.peft import write_adapter
from lowbit.models.inventory import Inventory
from lowbit.runs.files import remove_tree, writing

from .contents import adapter_layout, scheme_of
from .method import Method
from .setting import DENSE
from .shards import Shards

__all__ = ["output_config", "output_index", "save_adapter", "shipped_files"]


def save_adapter(out: Path, inventory: Inventory, shards: Shards, *, base_model: str) -> list[Path]:
    """``adapter/`` in the output directory ``out``, from the factors of every block; bound to the shards beside it.

    ``factors/`` too where factors are stored as codes: the same values in fewer bytes.

    Returns:
        The files written.
    """
    base = weights_hash(out)
    stored: dict[str, tuple[FactorForm, dict[str, torch.Tensor]]] = {}
    for index in range(len(inventory.blocks)):
        stored.update(shards.stored_factors(index))
    folders = [out / "adapter", out / "factors"]
    for folder in folders:
        remove_tree(folder)  # a killed run may have left half of it
    with writing(folders[0]):
        write_adapter(
            folders[0],
            {name: unpack_factors(parts, form) for name, (form, parts) in stored.items()},
            base_model=base_model,
            base_hash=base,
            **adapter_layout(inventory, stored),
        )
    if any(form.bits < DENSE for form, _ in stored.values()):
        with writing(folders[1]):
            write_factors(folders[1], stored, base_hash=base)
    return [path for folder in folders if folder.exists() for path in sorted(folder.iterdir())]


def shipped_files(adapter: Sequence[Path]) -> list[Path]:
    """Those files of an adapter that a result ships: packed ones, where there are any, stand for the others."""
    return [path for path in adapter if path.parent.name == "factors"] or list(adapter)


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
        ignore = inventory.dense_linears(shards.packed)
        config["quantization_config"] = (
            compressed_tensors.mixed_config(
                _targets(inventory, method, shards), ignore=ignore, act_order=method.act_order
            )
            if method.settings
            else compressed_tensors.quantization_config(
                bits=method.bits,
                scheme=method.scheme,
                group_size=method.group_size,
                ignore=ignore,
                act_order=method.act_order,
            )
        )
    return (json.dumps(config, indent=2) + "\n").encode()


_EXPERTS = r"re:.*\.experts\.\d+\."
"""Layers of experts as files name them. By the word in a pattern transformers finds their scheme; there is one."""


def _targets(inventory: Inventory, method: Method, shards: Shards) -> list[tuple[WeightScheme, set[str]]]:
    """Packed modules by scheme: under the names of the model, which loaders match, and under those of the files."""
    found: dict[tuple[WeightScheme, bool], set[str]] = {}
    for name in shards.packed:
        linear = inventory.named.get(name)
        if linear is None or linear.packable:
            experts = linear is not None and linear.experts > 0
            names = {_EXPERTS} if experts else {name, _stored(inventory, name)}
            found.setdefault((scheme_of(method.of(name)), experts), set()).update(names)
    return [(scheme, names) for (scheme, _), names in found.items()]


def _stored(inventory: Inventory, module: str) -> str:
    return inventory.home(f"{module}.weight", packed=True).removesuffix(".weight")
