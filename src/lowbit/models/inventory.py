"""What a decoder-only model consists of: its blocks, their linear layers, and where a checkpoint keeps each tensor.

The model is built on the meta device (no values), so nothing here knows an architecture by name: its decoder blocks
are the list inside the language tower that is as long as the configuration says. What cannot be compressed is refused
here, before any work.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn

from lowbit.formats.checkpoint import Checkpoint
from lowbit.formats.errors import CheckpointError
from lowbit.formats.layout import Conversion, Layout
from lowbit.formats.limits import building
from lowbit.runs.errors import RecipeError

from .linears import Linear, find_linears
from .policy import Reason, Unsupported, causal_class

__all__ = ["Inventory"]

_COMPARED = 1 << 22  # values that are compared at once


class Inventory:
    """The model that ``transformers`` has for the configuration of ``checkpoint``, without values.

    Attributes:
        checkpoint: the files.
        source: what they were opened by, for messages.
        model: the model on the meta device.
        untied: parameters that share their values by the configuration, and do not by the files.
        base: its base model, without the head.
        name: class of the model, such as ``LlamaForCausalLM``.
        attention: the attention implementation that runs, ``sdpa`` or ``eager``.
        block_prefix: path of the list of blocks, such as ``model.layers``.
        blocks: the decoder blocks.
        linears: the linear layers of one block, in the order of its definition, for every block.
        named: the same by their full names.
        outer_modules: embedding, and head unless the two are tied, that can be packed: path → (rows, columns).
        layout: how parameters are made of the tensors of the files.
        where: parameter of the model → the one that is read for it; tied parameters share one.
        outer: the conversions of what serves no block alone: embeddings, final norm, untied head.
        inner: for every block, the conversions that make its own parameters.
        unbounded: tensors of the files that make buffers, which may hold infinities (limits of a clipping, say).
        types: parameter → type in which ``transformers`` computes with it when the model runs in ``dtype``.
        stored_types: the same for a model stored in ``storage``.

    Args:
        checkpoint: the files.
        dtype: type in which forward passes run.
        storage: type in which results are stored.

    Raises:
        RecipeError: an architecture that is not a decoder-only language model, a tensor that the file lacks, or one
            of another shape than the model's.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, storage: torch.dtype) -> None:
        self.checkpoint = checkpoint
        self.source = checkpoint.source
        self.model, self.attention = _build(checkpoint, dtype)
        self.base: nn.Module = self.model.base_model
        self.name = type(self.model).__name__
        self.types = _types(self.model, dtype)
        stored_as = self.model if storage == dtype else _build(checkpoint, storage)[0]
        self.stored_types = _types(stored_as, storage)
        self.block_prefix, self.blocks = _find_blocks(self.model, checkpoint)
        shapes = {name: tuple(checkpoint.shape(name)) for name in checkpoint.names()}
        try:
            self.layout = Layout(self.model, shapes, mapped=checkpoint.kind == "safetensors")
        except CheckpointError as error:
            raise RecipeError(f"{self.source}: {error}") from error
        self.untied = _untie(self.model, checkpoint, self.layout)
        self._parameters: int = sum(parameter.numel() for parameter in self.model.parameters())
        self.where = self._match()
        self._values = sum(math.prod(shapes[name]) for name in {n: None for c in self._used() for n in c.sources})
        self.inner, self.outer = self._place()
        buffers = {name for name, _ in self.model.named_buffers()}
        self.unbounded = {s for c in self._used() if buffers.issuperset(c.makes) for s in c.sources}
        self.linears = [self._linears(index) for index in range(len(self.blocks))]
        self.named = {self.path(i, linear.name): linear for i, linears in enumerate(self.linears) for linear in linears}
        self.outer_modules = dict(self._outer_modules())

    def _match(self) -> dict[str, str]:
        values = self.model.state_dict(keep_vars=True)
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or ()) - set(self.untied)
        families: dict[int, list[str]] = {}
        for name, value in values.items():
            families.setdefault(id(value), []).append(name)
        where: dict[str, str] = {}
        for family in families.values():
            found = [name for name in family if name in self.layout.of]
            if not found:
                unused = self.layout.unused
                known = f"; {unused[0]} and {len(unused) - 1} more of its tensors are part of none" if unused else ""
                raise RecipeError(
                    f"{self.source} lacks the tensor {family[0]} that {self.name} needs: "
                    f"the checkpoint is incomplete, transformers would fill it with random numbers{known}"
                )
            for name in found:
                expected, actual = tuple(values[name].shape), self.layout.shapes[name]
                if expected != actual:
                    made = "has" if self.layout.of[name].plain else f"gives {name}"
                    raise RecipeError(
                        f"{self.source}: tensor {self.layout.of[name].sources[0]} {made} shape {actual}, "
                        f"but its configuration needs {expected}"
                    )
            for name in family:  # like transformers, which ties what the file leaves open, or holds a copy of
                where[name] = name if name in found and name not in tied else found[0]
        return where

    def _used(self) -> list[Conversion]:
        """Every conversion that makes a parameter, once."""
        return list({id(c): c for c in (self.layout.of[name] for name in self.where.values())}.values())

    def _place(self) -> tuple[list[list[Conversion]], list[Conversion]]:
        """Conversions by the one block that they serve; what serves none or several lies outside the blocks."""
        users: dict[int, set[int | None]] = {}
        for name, read in self.where.items():
            users.setdefault(id(self.layout.of[read]), set()).add(self._block_of(name))
        inner: list[list[Conversion]] = [[] for _ in self.blocks]
        outer: list[Conversion] = []
        for conversion in self._used():
            found = users[id(conversion)]
            index = next(iter(found))
            if len(found) == 1 and index is not None:
                inner[index].append(conversion)
            else:
                outer.append(conversion)
        return inner, outer

    def _block_of(self, name: str) -> int | None:
        if not self.in_block(name):
            return None
        return int(name[len(self.block_prefix) + 1 :].partition(".")[0])

    def _linears(self, index: int) -> list[Linear]:
        """Linear layers whose weight belongs to this block alone and can be packed under a name of its own."""
        found: list[Linear] = []
        for linear in find_linears(self.model, self.path(index, "").removesuffix("."), self.blocks[index]):
            weight = self.where[self.path(index, linear.parameter)]
            if self.layout.of[weight] not in self.inner[index]:
                continue
            if linear.pieces or self.layout.home(weight, packed=not linear.experts) is not None:
                found.append(linear)
        return found

    def _outer_modules(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """What the tied head reads stands under the embedding's name, once."""
        paths = {id(module): name for name, module in self.model.named_modules()}
        for module in (self.model.get_input_embeddings(), self.model.get_output_embeddings()):
            name = paths.get(id(module), "")
            parameter = f"{name}.weight"
            if self.where.get(parameter) != parameter or self.layout.of[parameter] not in self.outer:
                continue
            if self.layout.of[parameter].plain and self.layout.home(parameter, packed=True) is not None:
                rows, columns = self.layout.shapes[parameter]
                yield name, (rows, columns)

    def home(self, parameter: str, *, packed: bool = False) -> str:
        """Name under which new values of a parameter are stored, so that transformers reads them back as they are."""
        found = self.layout.home(self.where[parameter], packed=packed)
        if found is None:
            raise Unsupported.of(Reason.LAYOUT, self.source, self.name, f"{parameter} is converted on reading")
        return found

    def unloadable(self) -> str | None:
        """Why transformers would not load this class with packed weights, whatever the names in the file."""
        from transformers.quantizers.base import MODULES_TO_PATCH_FOR_QUANTIZATION

        for name, module in self.model.named_modules():
            if type(module).__name__ in MODULES_TO_PATCH_FOR_QUANTIZATION:
                return f"transformers puts other modules in the place of {name} when weights are packed"
        return self.layout.unloadable()

    def in_block(self, name: str) -> bool:
        """Whether the full name of a module or parameter lies inside a block."""
        return name.startswith(self.block_prefix + ".")

    def path(self, index: int, name: str) -> str:
        """Full name of what block ``index`` calls ``name``."""
        return f"{self.block_prefix}.{index}.{name}"

    def block_names(self, index: int) -> list[str]:
        """Full names of the parameters and persistent buffers of block ``index``."""
        return [self.path(index, name) for name in self.blocks[index].state_dict(keep_vars=True)]

    def stored_type(self, conversion: Conversion) -> torch.dtype:
        """Type in which the tensors of a conversion are stored again when they are kept."""
        stored = self.checkpoint.dtype(conversion.sources[0])
        return self.stored_types[conversion.first] if stored.is_floating_point else stored

    def dense_linears(self, solved: Collection[str]) -> list[str]:
        """Paths of the linear modules that are not among the compressed ones."""
        modules = self.model.named_modules()
        return [name for name, module in modules if isinstance(module, nn.Linear) and name not in solved]

    def parameters(self) -> int:
        """Number of parameters, tied ones counted once: as they are before values come and go one by one."""
        return self._parameters

    def values(self) -> int:
        """Number of values that the checkpoint holds for the model, whatever their type."""
        return self._values

    def check_length(self, length: int) -> None:
        """Refuse samples longer than the model's learned positions."""
        limit = getattr(self.checkpoint.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if isinstance(limit, int) and 0 < limit < length:
            raise RecipeError(
                f"samples of {length} tokens, but {self.name} here reads at most {limit}: lower the length"
            )


def _build(checkpoint: Checkpoint, dtype: torch.dtype) -> tuple[Any, str]:
    """The model on the meta device, with real buffers, and the attention implementation it took."""
    from accelerate import init_empty_weights

    cls = causal_class(checkpoint.config, checkpoint.source)
    for attention in ("sdpa", "eager"):
        config = copy.deepcopy(checkpoint.config)  # building writes the type and the attention into it
        if cls.config_class is config.sub_configs.get("text_config"):
            config = config.get_text_config()
        try:
            with building(checkpoint), init_empty_weights(include_buffers=False):
                model = cls._from_config(config, attn_implementation=attention, dtype=dtype)
        except CheckpointError as error:
            if attention == "sdpa" and "attention" in str(error):
                continue
            raise Unsupported(Reason.NOT_BUILT, str(error)) from error
        model.eval()
        model.tie_weights()
        return model, attention
    raise AssertionError("unreachable")


def _untie(model: Any, checkpoint: Checkpoint, layout: Layout) -> list[str]:
    """Gives parameters of their own to those that the files hold with other values, as transformers does."""
    untied: list[str] = []
    for target, origin in dict(getattr(model, "all_tied_weights_keys", None) or {}).items():
        made = [layout.of[name] for name in (target, origin) if name in layout.of and layout.of[name].plain]
        if len(made) == 2 and not _equal(checkpoint, made[0].sources[0], made[1].sources[0]):
            module, _, leaf = target.rpartition(".")
            setattr(model.get_submodule(module), leaf, nn.Parameter(model.get_parameter(origin).clone()))
            untied.append(target)
    return untied


def _equal(checkpoint: Checkpoint, first: str, second: str) -> bool:
    """Whether two stored tensors hold the same values, a few rows in memory at a time."""
    shape = checkpoint.shape(first)
    if checkpoint.shape(second) != shape:
        return False
    rows, columns = shape[0], max(1, math.prod(shape[1:]))
    step = max(1, _COMPARED // columns)
    pieces = ((start, min(start + step, rows)) for start in range(0, rows, step))
    return all(torch.equal(checkpoint.read(first, piece), checkpoint.read(second, piece)) for piece in pieces)


def _types(model: Any, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Type of every parameter of a model that is loaded in ``dtype``: a class may ask for float32 for some."""
    from transformers.core_model_loading import build_glob_alternation

    plan = model._get_dtype_plan(dtype)
    wide, by_group, _ = build_glob_alternation(list(plan))
    types: dict[str, torch.dtype] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        match = wide.search(name) if plan else None
        types[name] = value.dtype if match is None else plan[by_group[str(match.lastgroup)]]
    return types


def _find_blocks(model: Any, checkpoint: Checkpoint) -> tuple[str, list[nn.Module]]:
    """The list of blocks of the language tower, with its path in the model.

    It stands in what the class calls its decoder, in no part with a configuration of another kind (an encoder of
    images), and is as long as the configuration says; where it says nothing that fits, the longest list.
    """
    text = checkpoint.config.get_text_config(decoder=True)
    towers = (model.get_decoder(), model.base_model)
    paths = {id(module): name for name, module in model.named_modules()}
    for tower in towers:
        found = [(paths[id(item)], item) for item in _lists(tower, (type(text), type(checkpoint.config)))]
        if found:
            break
    else:
        raise Unsupported.of(Reason.NO_BLOCKS, checkpoint.source, type(model).__name__)
    count = getattr(text, "num_hidden_layers", None)
    path, blocks = next((item for item in found if len(item[1]) == count), max(found, key=lambda item: len(item[1])))
    return path, list(blocks)


def _lists(module: nn.Module, kinds: tuple[type, ...]) -> Iterator[nn.ModuleList]:
    """The outermost lists of modules, in no part whose configuration is of none of ``kinds``."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            if len(child):
                yield child
        elif type(getattr(child, "config", None)) in (type(None), *kinds):
            yield from _lists(child, kinds)
