"""What a decoder-only model consists of: its blocks, their linear layers, and where a checkpoint keeps each tensor.

The model is built on the meta device (no values), so nothing here knows an architecture by name: its decoder blocks
are the longest list of like modules inside the base model. What cannot be compressed is refused here, before any work.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import nn

from lowbit.formats.checkpoint import Checkpoint
from lowbit.formats.errors import CheckpointError
from lowbit.formats.limits import building
from lowbit.runs.errors import RecipeError

from .policy import causal_class

__all__ = ["Inventory", "Linear"]

_COMPARED = 1 << 22  # values that are compared at once


class Linear(NamedTuple):
    """One linear layer inside a block."""

    name: str  # path inside the block, such as "mlp.up_proj"
    shape: tuple[int, int]  # (out, in), whatever the layout
    transposed: bool  # stored (in, out), as the Conv1D of GPT-2


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
        where: parameter of the model → name in the checkpoint; tied parameters share one.
        outer: names in the checkpoint outside the blocks (embeddings, final norm, untied head), each once.

    Raises:
        RecipeError: an architecture that is not a decoder-only language model, a tensor that the file lacks, or one
            of another shape than the model's.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        self.checkpoint = checkpoint
        self.source = checkpoint.source
        self.model, self.attention = _build(checkpoint, dtype)
        self.untied = _untie(self.model, checkpoint)
        self._parameters: int = sum(parameter.numel() for parameter in self.model.parameters())
        self.base: nn.Module = self.model.base_model
        self.name = type(self.model).__name__
        self.block_prefix, self.blocks = _find_blocks(self.model, self.base, checkpoint.source)
        self.linears = [_linears(block) for block in self.blocks]
        self.where, self.outer = self._match()

    def _match(self) -> tuple[dict[str, str], list[str]]:
        stored = set(self.checkpoint.names())
        values = self.model.state_dict(keep_vars=True)
        families: dict[int, list[str]] = {}
        for name, value in values.items():
            families.setdefault(id(value), []).append(name)
        where: dict[str, str] = {}
        outer: list[str] = []
        for family in families.values():
            found = next((name for name in family if name in stored), None)
            if found is None:
                raise RecipeError(
                    f"{self.source} lacks the tensor {family[0]} that {self.name} needs: "
                    "the checkpoint is incomplete, or written in a layout that this version does not read"
                )
            expected, actual = tuple(values[found].shape), tuple(self.checkpoint.shape(found))
            if expected != actual:
                raise RecipeError(
                    f"{self.source}: tensor {found} has shape {actual}, but its configuration needs {expected}"
                )
            for name in family:
                where[name] = found
            if not self.in_block(found):
                outer.append(found)
        return where, outer

    def in_block(self, name: str) -> bool:
        """Whether the full name of a module or parameter lies inside a block."""
        return name.startswith(self.block_prefix + ".")

    def path(self, index: int, name: str) -> str:
        """Full name of what block ``index`` calls ``name``."""
        return f"{self.block_prefix}.{index}.{name}"

    def block_names(self, index: int) -> list[str]:
        """Full names of the parameters and persistent buffers of block ``index``."""
        return [self.path(index, name) for name in self.blocks[index].state_dict(keep_vars=True)]

    def outer_linears(self) -> list[str]:
        """Paths of linear modules outside the blocks: they stay dense."""
        modules = self.model.named_modules()
        return [name for name, module in modules if isinstance(module, nn.Linear) and not self.in_block(name)]

    def parameters(self) -> int:
        """Number of parameters, tied ones counted once: as they are before values come and go one by one."""
        return self._parameters

    def values(self) -> int:
        """Number of values that the checkpoint holds for the model, whatever their type."""
        inside = (name for index in range(len(self.blocks)) for name in self.block_names(index))
        return sum(math.prod(self.checkpoint.shape(name)) for name in (*self.outer, *inside))

    def check_length(self, length: int) -> None:
        """Refuse samples longer than the model's learned positions."""
        limit = getattr(self.checkpoint.config, "max_position_embeddings", None)
        if isinstance(limit, int) and length > limit:
            raise RecipeError(
                f"samples of {length} tokens, but {self.name} here reads at most {limit}: lower the length"
            )


def _build(checkpoint: Checkpoint, dtype: torch.dtype) -> tuple[Any, str]:
    """The model on the meta device, with real buffers, and the attention implementation it took."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config = checkpoint.config
    try:
        causal_class(config, checkpoint.source)
    except CheckpointError as error:
        raise RecipeError(str(error)) from error
    for attention in ("sdpa", "eager"):
        try:
            with building(checkpoint), init_empty_weights(include_buffers=False):
                model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
        except CheckpointError as error:
            if attention == "sdpa" and "attention" in str(error):
                continue
            raise RecipeError(str(error)) from error
        model.eval()
        model.tie_weights()
        return model, attention
    raise AssertionError("unreachable")


def _untie(model: Any, checkpoint: Checkpoint) -> list[str]:
    """Gives parameters of their own to those that the files hold with other values, as transformers does."""
    stored = set(checkpoint.names())
    untied: list[str] = []
    for target, origin in dict(getattr(model, "all_tied_weights_keys", None) or {}).items():
        if {target, origin} <= stored and not _equal(checkpoint, target, origin):
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


def _find_blocks(model: Any, base: nn.Module, source: str) -> tuple[str, list[nn.Module]]:
    """The longest outermost list of like modules inside the base model, with its path in the model."""
    best: tuple[str, nn.ModuleList] | None = None
    found: list[str] = []
    prefix = f"{model.base_model_prefix}." if base is not model else ""
    for name, module in base.named_modules():
        if not isinstance(module, nn.ModuleList) or any(name.startswith(outer + ".") for outer in found):
            continue
        found.append(name)
        if len(module) and len({type(item) for item in module}) == 1 and (best is None or len(module) > len(best[1])):
            best = (prefix + name, module)
    if best is None:
        raise RecipeError(f"{source}: {type(model).__name__} has no list of decoder blocks")
    return best[0], list(best[1])


def _linears(block: nn.Module) -> list[Linear]:
    from transformers.pytorch_utils import Conv1D

    found: list[Linear] = []
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):
            found.append(Linear(name, (module.out_features, module.in_features), transposed=False))
        elif isinstance(module, Conv1D):
            rows, columns = module.weight.shape
            found.append(Linear(name, (int(columns), int(rows)), transposed=True))
    return found
