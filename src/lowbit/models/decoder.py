"""Forward passes of a decoder-only model, one decoder block in memory at a time.

* What a block is called with (rotary embeddings, masks, ...) is recorded by running the base model once with every
  block replaced by a recorder that returns its hidden state unchanged.
* Logits are the model's own forward with the blocks replaced by the hidden state at hand, so that final norms,
  projections, soft caps and scalings are all the model's.

Hidden states are ``(1, length, hidden)``: one sample per forward pass, whatever the number of samples, so a result
never depends on how samples are grouped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from lowbit.formats.checkpoint import Checkpoint
from lowbit.formats.dtypes import FLOATS
from lowbit.runs.errors import RecipeError

from .inventory import Inventory
from .machine import resolve_dtype, storage_dtype
from .surgery import replaced_forwards
from .weights import Weights

__all__ = ["Decoder", "Stop"]


class Stop(Exception):
    """Raised inside a forward pass to leave it when its rest is not needed."""


class _Call(NamedTuple):
    """How the model calls a block, beside the hidden state."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Decoder:
    """Streams the blocks of ``checkpoint`` through the model that ``transformers`` has for its configuration.

    Attributes:
        inventory: what the model consists of.
        weights: its values in and out.
        storage: type in which results are stored.

    Raises:
        RecipeError: see :class:`~lowbit.models.inventory.Inventory`.
    """

    def __init__(self, checkpoint: Checkpoint, *, dtype: str = "auto", device: str = "cpu") -> None:
        self.storage = storage_dtype(checkpoint) if dtype == "auto" else FLOATS[dtype]
        compute = resolve_dtype(self.storage, device)
        self.inventory = Inventory(checkpoint, compute, self.storage)
        self.weights = Weights(self.inventory, torch.device(device), compute)
        self._calls: list[_Call] = []
        self._call_length = -1

    @torch.no_grad()
    def embed(self, tokens: Sequence[Any]) -> list[torch.Tensor]:
        """Hidden states that enter the first block, (1, length, hidden) per sample of token ids.

        Needs :meth:`Weights.outer`. Records how the model calls its blocks at this length.
        """
        hidden: list[torch.Tensor] = []
        vocabulary = self.inventory.model.get_input_embeddings().num_embeddings
        for sample, ids in enumerate(tokens):
            row = torch.as_tensor(ids, dtype=torch.long, device=self.weights.device).reshape(1, -1)
            if int(row.max()) >= vocabulary:
                raise RecipeError(
                    f"{self.inventory.source}: the tokenizer gives token {int(row.max())}, "
                    f"but the model knows {vocabulary}: tokenizer and model do not belong together"
                )
            if sample == 0:
                hidden.append(self._record(row))
            else:
                hidden.append(self._first_input(row, sample))
        return hidden

    def _record(self, row: torch.Tensor) -> torch.Tensor:
        inventory = self.inventory
        calls: list[_Call | None] = [None] * len(inventory.blocks)
        seen: list[torch.Tensor] = []

        def recorder(index: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
                hidden, rest = _split(args, kwargs)
                if calls[index] is not None or (seen and seen[-1] is not hidden):
                    raise RecipeError(
                        f"{inventory.source}: {inventory.name} does work between its blocks or repeats one; "
                        "such architectures are not supported"
                    )
                calls[index] = rest
                seen.append(hidden)
                return hidden

            return forward

        with replaced_forwards(inventory.blocks, recorder):
            inventory.base(input_ids=row, use_cache=False)
        missing = [index for index, call in enumerate(calls) if call is None]
        if missing:
            raise RecipeError(
                f"{inventory.source}: {inventory.name} does not call block {missing[0]} of {inventory.block_prefix}"
            )
        self._calls = [call for call in calls if call is not None]
        self._call_length = row.shape[1]
        return seen[0].clone()

    def _first_input(self, row: torch.Tensor, sample: int) -> torch.Tensor:
        caught: list[tuple[torch.Tensor, _Call]] = []

        def recorder(_: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
                caught.append(_split(args, kwargs))
                raise Stop

            return forward

        with replaced_forwards(self.inventory.blocks, recorder), contextlib.suppress(Stop):
            self.inventory.base(input_ids=row, use_cache=False)
        hidden, call = caught[0]
        if not _same(call, self._calls[0]):
            raise RecipeError(
                f"{self.inventory.source}: what {self.inventory.name} passes to its blocks depends on the text "
                f"(sample {sample}); such architectures are not supported"
            )
        return hidden.clone()

    @torch.no_grad()
    def run(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """Output of block ``index``, whose weights are in memory, for one sample."""
        if hidden.shape[1] != self._call_length:
            raise RuntimeError(f"blocks were recorded at length {self._call_length}, got {hidden.shape[1]}")
        call = self._calls[index]
        result = self.inventory.blocks[index](hidden, *call.args, **call.kwargs)
        return result[0] if isinstance(result, tuple) else result  # type: ignore[no-any-return]

    def advance(self, index: int, states: list[torch.Tensor]) -> None:
        """Replace every sample's hidden state by the output of block ``index``, whose weights are in memory."""
        for sample, hidden in enumerate(states):
            states[sample] = self.run(index, hidden)

    @torch.no_grad()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (positions, vocabulary) of hidden states (1, positions, hidden) that left the last block.

        Needs :meth:`Weights.outer` with the head. Position by position, so a long sample can be served in pieces.
        """

        def passing(index: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
                return hidden if index == 0 else _split(args, kwargs)[0]

            return forward

        dummy = torch.zeros((1, hidden.shape[1]), dtype=torch.long, device=self.weights.device)
        with replaced_forwards(self.inventory.blocks, passing):
            result: torch.Tensor = self.inventory.model(input_ids=dummy, use_cache=False).logits
        return result[0]


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, _Call]:
    """The hidden state, and the rest of a call."""
    if args:
        return args[0], _Call(args[1:], kwargs)
    rest = dict(kwargs)
    return rest.pop("hidden_states"), _Call((), rest)


def _same(left: Any, right: Any) -> bool:
    """Equality of nested arguments, tensors by value."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left is right or (left.shape == right.shape and bool(torch.equal(left, right)))
    if isinstance(left, (tuple, list)) and isinstance(right, (tuple, list)):
        return len(left) == len(right) and all(_same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    return type(left) is type(right)
