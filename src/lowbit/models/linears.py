"""The linear layers of a block: modules of their own, and those that a mixture of experts keeps in one parameter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

__all__ = ["Linear", "Piece", "find_linears"]

_GATE = re.compile(r"(?:.*_)?(?:gate|router)")


class Piece(NamedTuple):
    """Rows of one expert's layer that checkpoints on the hub hold as a module of their own."""

    name: str  # such as "model.layers.0.mlp.experts.3.up_proj"
    expert: int
    start: int
    stop: int


class Linear(NamedTuple):
    """One parameter of a block that is a linear layer, or a stack of them with one layer an expert."""

    name: str  # path inside the block: "mlp.up_proj", or of a stack the parameter's own, "mlp.experts.down_proj"
    shape: tuple[int, int]  # (out, in) of a layer, whatever the layout
    transposed: bool  # stored (in, out), as the Conv1D of GPT-2 and the experts of GPT-OSS
    experts: int = 0  # layers in the stack; 0 for a module of its own
    pieces: tuple[Piece, ...] = ()  # of a stack, by expert and row; none where checkpoints hold the parameter whole

    @property
    def parameter(self) -> str:
        """Path of the weight inside the block."""
        return self.name if self.experts else f"{self.name}.weight"

    @property
    def down(self) -> bool:
        """Whether a stack holds the last layer of every expert, not the first."""
        return self.name.endswith(".down_proj")

    @property
    def packable(self) -> bool:
        """Whether other readers know the layer packed: a module with its weight as (out, in)."""
        return bool(self.pieces) if self.experts else not self.transposed


def _mixtures(block: nn.Module) -> dict[str, Any]:
    """Experts modules inside a block that share the interface of ``transformers``, by their path.

    Such a module is called with hidden states (tokens, hidden), the experts that each token goes to (tokens, n) and
    their weights. It has two parameters (experts, out, in), or (experts, in, out) where it ``is_transposed``:
    ``gate_up_proj``, or ``up_proj`` where it has no gate, and ``down_proj``.
    """
    return {
        name: module
        for name, module in block.named_modules()
        if hasattr(module, "_apply_gate") and hasattr(module, "is_transposed")
    }


def find_linears(model: Any, path: str, block: nn.Module) -> list[Linear]:
    """What can be compressed in the block at ``path``, in the order of its definition.

    What decides where a token goes is left out: the layers of a module named gate or router beside experts.
    """
    from transformers.pytorch_utils import Conv1D

    found: list[Linear] = []
    stacked = _mixtures(block)
    beside = {name.rpartition(".")[0] for name, module in block.named_modules() if _holds_stacks(module)}
    for name, module in block.named_modules():
        if name in stacked:
            found += _stacks(model, path, name, module)
        elif any(_gates(name, parent) for parent in beside):
            continue
        elif isinstance(module, Conv1D) or (isinstance(module, nn.Linear) and _is_linear(module)):
            rows, columns = module.weight.shape
            transposed = isinstance(module, Conv1D)
            shape = (columns, rows) if transposed else (rows, columns)
            found.append(Linear(name, (int(shape[0]), int(shape[1])), transposed))
    return found


def _is_linear(module: nn.Linear) -> bool:
    """Whether a module that is a Linear by descent computes W x + b; a router may compute more."""
    if type(module).forward is nn.Linear.forward:
        return True
    x, w = torch.tensor([[0.5, -1.0], [2.0, 0.25]]), torch.tensor([[1.0, 3.0], [-2.0, 0.5], [0.0, 1.5]])
    values = {"weight": w} | ({} if module.bias is None else {"bias": torch.zeros(3)})
    try:
        result = torch.func.functional_call(module, values, (x,))
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return False
    return isinstance(result, torch.Tensor) and torch.equal(result, x @ w.T)


def _holds_stacks(module: nn.Module) -> bool:
    own = module.parameters(recurse=False)
    return not isinstance(module, nn.Conv1d) and any(value.ndim == 3 and value.shape[0] > 1 for value in own)


def _gates(name: str, parent: str) -> bool:
    """Whether a layer belongs to a gate or router that stands in the module ``parent``."""
    prefix = f"{parent}." if parent else ""
    return name.startswith(prefix) and bool(_GATE.fullmatch(name.removeprefix(prefix).partition(".")[0]))


def _stacks(model: Any, path: str, name: str, module: Any) -> Iterator[Linear]:
    for parameter in ("gate_up_proj" if module.has_gate else "up_proj", "down_proj"):
        experts, out, inputs = getattr(module, parameter).shape
        if module.is_transposed:
            out, inputs = inputs, out
        pieces = () if module.is_transposed else _pieces(model, f"{path}.{name}.{parameter}", experts, out)
        yield Linear(f"{name}.{parameter}", (out, inputs), module.is_transposed, experts, pieces)


def _pieces(model: Any, parameter: str, experts: int, out: int) -> tuple[Piece, ...]:
    """The modules that ``transformers`` splits a stack into when it writes it for the hub.

    Found by letting it split the numbers of the rows.
    """
    from transformers.core_model_loading import revert_weight_conversion

    rows = torch.arange(experts * out, dtype=torch.int32).view(experts, out, 1)
    found: list[Piece] = []
    for name, numbers in revert_weight_conversion(model, {parameter: rows}).items():
        if numbers.ndim != 2 or not name.endswith(".weight"):
            return ()
        expert, start = divmod(int(numbers[0, 0]), out)
        found.append(Piece(name.removesuffix(".weight"), expert, start, start + len(numbers)))
        if not torch.equal(numbers, rows[expert, start : start + len(numbers)]):
            return ()
    return tuple(sorted(found, key=lambda piece: (piece.expert, piece.start)))
