"""The values of a model, as much of them in memory as is needed at a time: one block, what lies outside, or all."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lowbit.formats.dtypes import name_of
from lowbit.formats.errors import CheckpointError
from lowbit.runs.errors import RecipeError

from .inventory import Inventory
from .linears import Linear
from .surgery import add_patch, aligned, patched, put

__all__ = ["Factors", "Reader", "Weights", "first_bad", "stored_as"]

Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""Adapters of one block: full module path → (B (out, r), A (r, in)); the module computes W x + B (A x).

Of a stack: full name of the parameter → (B (experts, out, r), A (experts, r, in))."""

Reader = Callable[[str], torch.Tensor]
"""Full parameter name → its values."""


def first_bad(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """Position of the first NaN or infinity, or None."""
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
        return None
    flat = int(torch.nonzero(~torch.isfinite(tensor.reshape(-1)))[0])
    position: list[int] = []
    for length in reversed(tensor.shape):
        position.append(flat % length)
        flat //= length
    return tuple(reversed(position))


def stored_as(dtype: torch.dtype, tensor: torch.Tensor, what: str, *, row: int = 0) -> torch.Tensor:
    """Finite values in the type that they are stored in; ``row`` is the number of the first one, of a run of rows.

    Raises:
        RecipeError: one of them is too large for the type, which would make it an infinity; ``what`` names them.
    """
    stored = tensor.to(dtype)
    bad = first_bad(stored)
    if bad is not None:
        place = (bad[0] + row, *bad[1:]) if bad else bad
        raise RecipeError(
            f"{what} holds {float(tensor[bad]):.6g} at {place}, which {name_of(dtype)} cannot hold: choose "
            f"--dtype {'bfloat16 or float32' if dtype == torch.float16 else 'float32'}"
        )
    return stored


class Weights:
    """Values of a checkpoint in and out of the model of its ``inventory``.

    Attributes:
        device: where forward passes run.
        dtype: type in which they run.
    """

    def __init__(self, inventory: Inventory, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self._inventory = inventory
        self._model: nn.Module = inventory.model

    def read(self, name: str) -> torch.Tensor:
        """One parameter as transformers would load it, without a change of type."""
        return self.convert(name, self.source)

    def convert(self, name: str, read: Reader) -> torch.Tensor:
        """One parameter out of the tensors of the files, or of others that ``read`` gives in their place."""
        name = self._inventory.where[name]
        return self._inventory.layout.of[name].convert(read)[name]

    def source(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """One tensor as the files hold it, or rows of it, checked for NaN and infinities."""
        try:
            tensor = self._inventory.checkpoint.read(name, rows)
        except CheckpointError as error:
            raise RecipeError(str(error)) from error
        bad = None if name in self._inventory.unbounded else first_bad(tensor)
        if bad is not None:
            first = (bad[0] + rows[0], *bad[1:]) if rows else bad
            raise RecipeError(f"{self._inventory.source}: tensor {name} holds NaN or infinite values, first at {first}")
        return tensor

    def rows(self, name: str, step: int) -> Iterator[torch.Tensor]:
        """A parameter that is one tensor of the files, ``step`` rows in memory at a time where they allow it."""
        name = self._inventory.where[name]
        source, (height, *_) = self._inventory.layout.of[name].sources[0], self._inventory.layout.shapes[name]
        checkpoint = self._inventory.checkpoint
        whole = None if checkpoint.kind == "safetensors" and checkpoint.quantization is None else self.source(source)
        for start in range(0, height, step):
            stop = min(start + step, height)
            yield whole[start:stop] if whole is not None else self.source(source, (start, stop))

    def linear(self, index: int, linear: Linear) -> torch.Tensor:
        """Original weight of a linear layer of block ``index``: float32 (out, in)."""
        return self._upright(linear, self.read(self._inventory.path(index, linear.parameter)))

    def experts(self, index: int, linear: Linear) -> Iterator[torch.Tensor]:
        """Original weights of a stack of block ``index``, expert by expert: float32 (out, in)."""
        for weight in self.read(self._inventory.path(index, linear.parameter)):
            yield self._upright(linear, weight)

    def _upright(self, linear: Linear, weight: torch.Tensor) -> torch.Tensor:
        weight = weight.to(torch.float32)
        return weight.T.contiguous() if linear.transposed else aligned(weight)

    def _placed(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        dtype = self._inventory.types[name] if tensor.is_floating_point() else tensor.dtype
        return aligned(tensor.to(device=self.device, dtype=dtype))

    @contextlib.contextmanager
    def outer(self, *, head: bool, read: Reader | None = None) -> Iterator[None]:
        """Holds the parameters outside the blocks, from ``read`` or the checkpoint; without ``head`` those of the base.

        The base is the model without its head.
        """
        inside = set(self._inventory.base.state_dict(keep_vars=True))
        prefix = self._inventory.model.base_model_prefix + "."
        put_in: list[str] = []
        held: dict[str, torch.Tensor] = {}  # tied parameters share their values
        try:
            for name, source in self._inventory.where.items():
                if self._inventory.in_block(name) or (not head and name.removeprefix(prefix) not in inside):
                    continue
                if source not in held:
                    held[source] = self._placed(source, (read or self.read)(source))
                put_in.append(name)
                put(self._model, name, held[source])
            held.clear()
            yield
        finally:
            for name in put_in:
                put(self._model, name, None)

    @contextlib.contextmanager
    def block(self, index: int, read: Reader | None = None, factors: Factors | None = None) -> Iterator[None]:
        """Holds the weights of block ``index``, from ``read`` or the checkpoint, with adapters kept apart.

        An adapter is not added into its weight: the module computes ``W x + B (A x)`` as its users will. Factors of a
        stack are added, as PEFT does whenever it runs one.
        """
        hooks: list[Any] = []
        names = self._inventory.block_names(index)
        stacks = {
            self._inventory.path(index, item.name): item for item in self._inventory.linears[index] if item.experts
        }
        try:
            for name in names:
                tensor = self._placed(name, (read or self.read)(name))
                if name in stacks and factors and name in factors:
                    tensor = patched(tensor, *factors[name], transposed=stacks[name].transposed)
                put(self._model, name, tensor)
            for path, (b, a) in (factors or {}).items():
                if path not in stacks:
                    hooks.append(add_patch(self._model.get_submodule(path), b, a, self.device, self.dtype))
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for name in names:
                put(self._model, name, None)
            _return_memory()

    @contextlib.contextmanager
    def whole(self, factors: Sequence[Factors]) -> Iterator[Any]:
        """Holds the whole model at once, for generation; ``factors`` by block."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.outer(head=True))
            for index in range(len(self._inventory.blocks)):
                stack.enter_context(self.block(index, factors=factors[index]))
            yield self._model


@functools.cache
def _trimmer() -> Callable[[int], int]:
    """The C library's ``malloc_trim`` where there is one (glibc); elsewhere nothing is done."""
    try:
        trim: Any = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return lambda _: 0
    return trim  # type: ignore[no-any-return]


def _return_memory() -> None:
    """Give freed pages back to the system.

    Tensors of one block are freed around those that stay (hidden states), and the C library keeps such holes: without
    this the resident set grows by more than half a block with every block.
    """
    _trimmer()(0)
