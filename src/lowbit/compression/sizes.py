"""Bytes of a result before anything of it is computed: names, shapes and types say them exactly."""

from __future__ import annotations

from pathlib import Path

import torch

from lowbit.formats import factors, peft
from lowbit.formats.packed.compressed_tensors import module_parts
from lowbit.formats.packed.protocol import WeightScheme
from lowbit.formats.safetensors_file import TensorSource, file_size
from lowbit.models.inventory import Inventory

from .contents import Place, adapter_layout, block_contents, form_of, outer_contents
from .method import Method
from .setting import DENSE, Setting

__all__ = ["bytes_16", "model_name", "module_bytes", "shipped_bytes"]

_HASH = "0" * 64  # as long as every fingerprint


def model_name(model: str) -> str:
    """Name without the folders of this machine."""
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else model


def module_bytes(inventory: Inventory, method: Method, name: str, setting: Setting) -> int:
    """Bytes of the stored tensors of one module, its factors as they are shipped included; no headers.

    Args:
        inventory: the model.
        method: scheme and type of storage.
        name: a linear layer of a block, or an entry of ``inventory.outer_modules``.
        setting: what is chosen for it.
    """
    item, linear = method.storage.itemsize, inventory.named.get(name)
    m, k = inventory.outer_modules[name] if linear is None else linear.shape
    layers = max(1, linear.experts) if linear is not None else 1
    if setting.bits == DENSE or (linear is not None and not linear.packable):
        total = layers * m * k * item
    else:
        scheme = WeightScheme(setting.bits, method.scheme, setting.group_size)
        rows = [piece.stop - piece.start for piece in linear.pieces] if linear is not None and linear.pieces else [m]
        heights = {height: rows.count(height) for height in set(rows)}
        total = sum(
            count * sum(Place(*part).nbytes for part in module_parts((height, k), scheme, method.storage).values())
            for height, count in heights.items()
        )
    if setting.rank and linear is not None and method.compensate != "none":
        form = factors.FactorForm((m, k), setting.rank, setting.factor_bits, setting.group_size)
        parts = factors.factor_parts(form, method.storage).values()
        total += layers * sum(Place(*part).nbytes for part in parts)
    return total


def shipped_bytes(inventory: Inventory, method: Method) -> int:
    """Size of all weight files that a result of ``method`` ships, headers and padding included.

    Those are the shards and ``factors/``, or ``adapter/`` where no factor is packed; configuration, tokenizer, record
    and report are not counted. Exact if calibration reaches every layer: one that no token reaches is kept dense.
    """
    total = file_size(outer_contents(inventory, method))
    total += sum(file_size(block_contents(inventory, method, index)) for index in range(len(inventory.blocks)))
    forms = {name: form_of(own, linear) for name, linear in inventory.named.items() if (own := method.of(name)).patches}
    if not forms:
        return total
    if method.packs_factors(inventory):
        parts = {name: factors.factor_parts(form, method.storage) for name, form in forms.items()}
        tensors = {f"{name}.{key}": Place(*part) for name, every in parts.items() for key, part in every.items()}
        return total + file_size(tensors, metadata=factors.METADATA) + len(factors.manifest(forms, _HASH))

    def empty(form: factors.FactorForm, key: str) -> torch.Tensor:
        dtype, shape = factors.factor_parts(form, method.storage)[key]
        return torch.empty(shape, dtype=dtype, device="meta")

    plain, config = peft.adapter_files(
        {name: (empty(form, "B"), empty(form, "A")) for name, form in forms.items()},
        base_model=model_name(inventory.source),
        **adapter_layout(inventory, forms),
    )
    sources = {name: TensorSource.of(tensor) for name, tensor in plain.items()}
    return total + file_size(sources, metadata=peft.adapter_metadata(_HASH)) + len(config)


def bytes_16(inventory: Inventory) -> int:
    """All values of the model in 16 bits each."""
    return inventory.values() * 2
