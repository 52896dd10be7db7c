"""What the weight files of a result hold: names, types and shapes, known before any value is.

The writer of the files (:mod:`lowbit.compression.shards`) asks here, and so does the count of their bytes
(:mod:`lowbit.compression.sizes`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch

from lowbit.formats.factors import FactorForm
from lowbit.formats.layout import Conversion
from lowbit.formats.packed.compressed_tensors import module_parts
from lowbit.formats.packed.protocol import WeightScheme
from lowbit.models.inventory import Inventory
from lowbit.models.linears import Linear, Piece

from .method import Method
from .setting import DENSE

__all__ = [
    "Kept",
    "Place",
    "adapter_layout",
    "block_contents",
    "form_of",
    "kept",
    "outer_contents",
    "packs",
    "scheme_of",
    "stored_name",
]


class Place(NamedTuple):
    """Type and shape of one stored tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


class Kept(NamedTuple):
    """A tensor that is stored as it was, but for its type."""

    place: Place
    name: str  # of a tensor of the files, or of a parameter
    source: bool  # which of the two


def scheme_of(method: Method) -> WeightScheme:
    """How a weight is stored by the method of one module."""
    return WeightScheme(method.bits, method.scheme, method.group_size)


def packs(method: Method, linear: Linear) -> bool:
    """Whether a layer is stored as codes by its method."""
    return method.bits < DENSE and linear.packable


def kept(inventory: Inventory, method: Method, conversion: Conversion, parameters: Sequence[str]) -> dict[str, Kept]:
    """Those of the parameters that a conversion makes which are not compressed, by the names they are stored under.

    Names and layout stay those of the files, so that they are read back in the same way. In the layout of the class
    stand parameters whose fellows are compressed, and all that need an operation on weights in a packed output: the
    loader of transformers expects the inputs of such an operation packed all or none.
    """
    whole = len(parameters) == len(conversion.makes)
    packable = all(name.endswith(".weight") for name in conversion.sources)
    dtype = inventory.stored_type(conversion)
    if whole and (conversion.plain or not packable or not method.packs(inventory)):
        shapes = {name: tuple(inventory.checkpoint.shape(name)) for name in conversion.sources}
        return {name: Kept(Place(dtype, shape), name, True) for name, shape in shapes.items()}
    shapes = {name: inventory.layout.shapes[name] for name in parameters}
    return {inventory.home(name): Kept(Place(dtype, shape), name, False) for name, shape in shapes.items()}


def stored_name(inventory: Inventory, name: str, linear: Linear, tensor: str) -> str:
    """Name in the file of what the solution of the layer ``name`` calls ``tensor``."""
    if linear.pieces:
        return tensor
    parameter = name if linear.experts else f"{name}.weight"
    home = inventory.home(parameter, packed=not linear.experts)
    return home if tensor == parameter else home.removesuffix(".weight") + tensor.removeprefix(name)


def _solved(method: Method, name: str, linear: Linear) -> dict[str, Place]:
    """Tensors of a solved layer as its solution calls them."""
    m, k = linear.shape
    if packs(method, linear):
        pieces = linear.pieces or (Piece(name, 0, 0, m),)
        scheme = scheme_of(method)
        return {
            f"{piece.name}.{part}": Place(*place)
            for piece in pieces
            for part, place in module_parts((piece.stop - piece.start, k), scheme, method.storage).items()
        }
    if linear.pieces:
        shapes = {f"{piece.name}.weight": (piece.stop - piece.start, k) for piece in linear.pieces}
        return {key: Place(method.storage, shape) for key, shape in shapes.items()}
    shape = (k, m) if linear.transposed else (m, k)
    if linear.experts:
        return {name: Place(method.storage, (linear.experts, *shape))}
    return {f"{name}.weight": Place(method.storage, shape)}


def form_of(method: Method, linear: Linear) -> FactorForm:
    """How the factors of a layer are stored by its method."""
    return FactorForm(linear.shape, method.rank, method.adapter_bits or DENSE, method.group_size, linear.experts)


def adapter_layout(inventory: Inventory, names: Collection[str]) -> dict[str, Any]:
    """What :func:`~lowbit.formats.peft.write_adapter` must know of the modules that have factors."""
    every = [linear for linears in inventory.linears for linear in linears]
    leaves = inventory.layout.merged()
    return {
        "fan_in_fan_out": all(linear.transposed for linear in every if not linear.experts),
        "by_parameter": {
            name for name in names if name.rpartition(".")[2] in leaves and not inventory.named[name].experts
        },
    }


def block_contents(inventory: Inventory, method: Method, index: int) -> dict[str, Place]:
    """What the file of a block will hold when every layer of it is solved."""
    found: dict[str, Place] = {}
    solved = set()
    for linear in inventory.linears[index]:
        name = inventory.path(index, linear.name)
        solved.add(inventory.path(index, linear.parameter))
        for tensor, place in _solved(method.of(name), name, linear).items():
            found[stored_name(inventory, name, linear, tensor)] = place
    for conversion in inventory.inner[index]:
        if left := [name for name in conversion.makes if name not in solved]:
            found |= {home: one.place for home, one in kept(inventory, method, conversion, left).items()}
    return found


def outer_contents(inventory: Inventory, method: Method) -> dict[str, Place]:
    """What the file of all that lies outside the blocks will hold."""
    found: dict[str, Place] = {}
    packed = {f"{name}.weight": name for name in method.outer(inventory)}
    for conversion in inventory.outer:
        if (name := packed.get(conversion.first)) is not None:
            stem = inventory.home(conversion.first, packed=True).removesuffix(".weight")
            parts = module_parts(inventory.outer_modules[name], scheme_of(method.of(name)), method.storage)
            found |= {f"{stem}.{part}": Place(*place) for part, place in parts.items()}
        else:
            found |= {home: one.place for home, one in kept(inventory, method, conversion, conversion.makes).items()}
    return found
