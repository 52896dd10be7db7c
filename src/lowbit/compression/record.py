"""The record of a compression, ``lowbit.json``: no time, no date, no place, so that equal runs give equal bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowbit.data.text import TokenRows
from lowbit.formats.configs import empty_model
from lowbit.formats.consumers import peft_refusal, unpacked_alone
from lowbit.formats.dtypes import name_of
from lowbit.models.decoder import Decoder
from lowbit.models.inventory import Inventory
from lowbit.models.machine import arithmetic
from lowbit.runs.plan import versions

from .arrays import Arrays
from .method import Method
from .output import shipped_files
from .setting import DENSE
from .shards import Shards
from .sizes import bytes_16

__all__ = ["PLAN_PARTS", "make_plan", "make_record", "model_facts"]

_SCHEMA = "lowbit.compress/1"

PLAN_PARTS = ("options", "inputs", "calibration", "evaluation")
"""Parts of a plan that decide a result on any machine, with any version."""


def make_plan(
    options: Mapping[str, Any],
    inputs: Mapping[str, str],
    rows: TokenRows,
    windows: TokenRows | None,
    decoder: Decoder,
    arrays: Arrays,
    threads: int,
) -> dict[str, Any]:
    """Everything that decides the bytes of the result.

    Args:
        options: what the user chose, JSON-ready, with the name of the model.
        inputs: fingerprint of the model's files.
        rows: calibration text.
        windows: evaluation text.
        decoder: what runs the model.
        arrays: of the backend that computes.
        threads: of torch.
    """
    evaluation = None
    if windows is not None:
        evaluation = {
            "source": windows.source,
            "windows": int(windows.ids.shape[0]),
            "sha256": windows.sha256,
            "special_tokens": list(windows.leading),
        }
    return {
        "schema": _SCHEMA,
        "versions": versions(),
        "options": dict(options),
        "inputs": dict(inputs),
        "calibration": {
            "source": rows.source,
            "samples": int(rows.ids.shape[0]),
            "length": int(rows.ids.shape[1]),
            "tokens": int(rows.ids.size),
            "sha256": rows.sha256,
            "special_tokens": list(rows.leading),
        },
        "evaluation": evaluation,
        "machine": {
            "threads": threads,
            "backend": arrays.backend.name,
            "device": str(arrays.backend.device),
            "forward_device": str(decoder.weights.device),
            "attention": decoder.inventory.attention,
            **arithmetic(decoder.weights.device),
        },
    }


def model_facts(decoder: Decoder, method: Method) -> dict[str, Any]:
    """What a record says of the model that was given."""
    inventory = decoder.inventory
    return {
        "architecture": inventory.name,
        "blocks": len(inventory.blocks),
        "parameters": inventory.parameters(),
        "hidden_size": getattr(inventory.checkpoint.config, "hidden_size", None),
        "dtype": name_of(method.storage),
        "quantization": inventory.checkpoint.quantization,
        "forward_dtype": name_of(decoder.weights.dtype),
    }


def make_record(
    plan: Mapping[str, Any],
    decoder: Decoder,
    method: Method,
    shards: Shards,
    perplexity: Mapping[str, Any] | None,
    adapter: Sequence[Path],
) -> dict[str, Any]:
    """Content of ``lowbit.json``; its JSON Schema is in :mod:`lowbit.report.schema`.

    Bytes given are those of the weight files that were opened, bytes shipped those of the shards and of those files of
    the ``adapter`` that ship: all as they lie on the disk, headers included.
    """
    inventory = decoder.inventory
    lines = shards.lines
    modules = [module for line in lines[1:] for module in line["modules"]]
    coded = [*modules, *shards.outer_modules]
    parts = {part: sum(int(module["bytes"][part]) for module in coded) for part in _PARTS}
    parts["adapter"] = sum(int(module["bytes"]["adapter"]) for module in modules)
    stored = sum(int(line["bytes"]) for line in lines)
    parts["other"] = stored - parts["packed"] - parts["scales"] - parts["zero_points"]
    before, after = inventory.values() * method.storage.itemsize, stored + parts["adapter"]
    files = shards.file_bytes() + sum(path.stat().st_size for path in shipped_files(adapter))
    factors = sum(int(module["bytes"].get("adapter_packed", module["bytes"]["adapter"])) for module in modules)
    return {
        "schema": _SCHEMA,
        "versions": plan["versions"],
        "seed": plan["options"]["seed"],
        "options": plan["options"],
        "inputs": plan["inputs"],
        "machine": plan["machine"],
        "model": {
            **model_facts(decoder, method),
            "kept": [kept for line in lines[1:] for kept in line["kept"]],
            "remarks": list(method.remarks(inventory)),
        },
        "modules": modules,
        **({"outer": shards.outer_modules} if shards.outer_modules else {}),
        "totals": {
            "bytes": parts,
            "bytes_before": before,
            "bytes_after": after,
            "ratio": before / after,
            "bytes_given": inventory.checkpoint.weight_bytes(),
            "bytes_16": bytes_16(inventory),
            "bytes_shipped": files,
            "shipped": parts | {"adapter": factors, "headers": files - stored - factors},
        },
        "perplexity": perplexity,
        "calibration": plan["calibration"],
        "evaluation": plan["evaluation"],
        "loads_with": _loads_with(method, inventory, [module["name"] for module in modules], adapter),
    }


_PARTS = ("packed", "scales", "zero_points")


def _loads_with(
    method: Method, inventory: Inventory, modules: Sequence[str], adapter: Sequence[Path]
) -> dict[str, Any]:
    """How transformers reads the files, if it does.

    It keeps packed what it can (``plain``), unpacks everything by one scheme as it loads (``dequantize``), or is given
    tensors that lowbit read (``state_dict``).
    """
    packed = method.packs(inventory)
    own = {name: method.of(name) for name in (*modules, *method.outer(inventory))}
    dense = {name for name, linear in inventory.named.items() if not linear.packable}
    coded = {name: one for name, one in own.items() if one.bits < DENSE and name not in dense}
    layers = {(one.bits, one.group_size) for name, one in coded.items() if not _experts(inventory, name)}
    why = None
    if not packed:
        left = all(one.bits == DENSE for one in own.values())
        why = f"bits {DENSE}" if left else "weights laid out as (in, out), which no reader has packed"
    elif method.scheme == "asymmetric":
        why = "asymmetric: the default path of transformers refuses packed zero points"
    else:
        why = unpacked_alone(type(inventory.model), inventory.checkpoint.config, list(coded))
    way = "plain" if why is None or not packed else "dequantize" if len(layers) < 2 else "state_dict"
    if way == "state_dict":
        why = f"{why}, and with dequantize=True it reads every module by one scheme, of which there are {len(layers)}"
    empty = empty_model(type(inventory.model), inventory.checkpoint.config, inventory.source)
    return {
        "format": "pack-quantized" if packed else "dense",
        "way": way,
        "dequantize": way == "dequantize",
        "schemes": len(layers),
        "transformers": _CALLS[way],
        "why": why or "symmetric",
        "peft_refuses": (peft_refusal(empty, adapter[0].parent) or None) if adapter else None,
    }


_CALLS = {
    "plain": "from_pretrained",
    "dequantize": "from_pretrained with quantization_config=CompressedTensorsConfig(dequantize=True)",
    "state_dict": "from_pretrained(None, config=..., state_dict=...) with tensors that lowbit reads",
}


def _experts(inventory: Inventory, name: str) -> bool:
    return name in inventory.named and inventory.named[name].experts > 0
