"""Dense values out of the weight files of finished steps: the numbers that later steps compute with."""

from __future__ import annotations

from pathlib import Path

import torch

from lowbit.formats.packed import compressed_tensors
from lowbit.formats.safetensors_file import SafetensorsFile
from lowbit.models.decoder import Decoder

from .method import Method

__all__ = ["read_block", "read_outer"]


def read_outer(decoder: Decoder, method: Method, path: Path, name: str) -> torch.Tensor:
    """A parameter outside the blocks: out of the file at ``path`` if it is stored there as codes."""
    module = decoder.inventory.where[name].removesuffix(".weight")
    if module not in method.outer(decoder.inventory):
        return decoder.weights.read(name)
    stem = decoder.inventory.home(f"{module}.weight", packed=True).removesuffix(".weight")
    return _unpacked(SafetensorsFile(path), stem, method.of(module))


def read_block(decoder: Decoder, method: Method, file: SafetensorsFile, index: int, name: str) -> torch.Tensor:
    """The parameter ``name`` of block ``index``, whose ``file`` is finished."""
    inventory = decoder.inventory
    pieces = {inventory.path(index, linear.name): linear.pieces for linear in inventory.linears[index]}
    name = inventory.where[name]
    own = method.of(name.removesuffix(".weight"))
    if pieces.get(name):
        parts = [_weight(file, piece.name, own) for piece in pieces[name]]
        return torch.cat(parts).view(inventory.layout.shapes[name])
    for home in inventory.layout.names(name):
        module = home.removesuffix(".weight")
        if f"{module}{compressed_tensors.PACKED}" in file.entries:
            return _weight(file, module, own)
        if home in file.entries:
            return file.read(home)
    if inventory.layout.of[name].sources[0] in file.entries:
        return decoder.weights.convert(name, file.read)
    return decoder.weights.read(name)  # it serves several blocks: the outer file has it


def _weight(file: SafetensorsFile, module: str, own: Method) -> torch.Tensor:
    if f"{module}{compressed_tensors.PACKED}" in file.entries:
        return _unpacked(file, module, own)
    return file.read(f"{module}.weight")


def _unpacked(file: SafetensorsFile, module: str, own: Method) -> torch.Tensor:
    parts = [part for part in compressed_tensors.PARTS if f"{module}.{part}" in file.entries]
    tensors = {part: file.read(f"{module}.{part}") for part in parts}
    return compressed_tensors.dequantize_module(tensors, bits=own.bits, scheme=own.scheme)
