"""Forward passes of a decoder-only model, one decoder block in memory at a time.

* What a block is called with (rotary embeddings, masks, ...) is recorded for every sample by running the base model
  with every block replaced by a stand-in that returns its hidden state unchanged, in the form that the block's own
  result has.
* Logits are the model's own forward with the blocks replaced by the hidden state at hand, so that final norms,
  projections, soft caps and scalings are all the model's.

One sample per forward pass, whatever the number of samples, so a result never depends on how samples are grouped.
Weights ask for no gradients, so a pass leaves no graph unless the hidden state asks for them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lowbit.formats.checkpoint import Checkpoint
from lowbit.formats.dtypes import FLOATS, name_of
from lowbit.runs.errors import RecipeError

from .inventory import Inventory
from .machine import resolve_dtype, storage_dtype
from .policy import Reason, Unsupported
from .surgery import replaced_forwards
from .weights import Weights

__all__ = ["Decoder", "Sample", "Stop"]


class Stop(Exception):
    """Raised inside a forward pass to leave it when its rest is not needed."""


_PLAIN = (torch.Tensor, torch.dtype, torch.device, bool, int, float, str, type(None))
"""What blocks may be called with, in containers: things in which a block cannot leave anything for another."""

_Call = tuple[tuple[Any, ...], dict[str, Any]]
"""How the model calls a block, beside the hidden state."""


@dataclass
class Sample:
    """One sample on its way through the blocks.

    Attributes:
        hidden: what enters the next block, (1, length, hidden) or of more dimensions.
        calls: what each block is called with besides; blocks may keep things for each other in its containers.
        axis: that of positions in ``hidden``.
    """

    hidden: torch.Tensor
    calls: list[_Call]
    axis: int

    @property
    def length(self) -> int:
        """Number of positions."""
        return self.hidden.shape[self.axis]

    def given(self) -> list[torch.Tensor]:
        """The tensors that blocks are called with besides, those that blocks left for each other among them."""
        return list(_tensors(self.calls))

    def fork(self) -> Sample:
        """A sample at the same place that goes its own way."""
        return Sample(self.hidden, _rebuilt(self.calls, self.calls, {}), self.axis)


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
        # Of every class of blocks, the type of its results and what they hold behind the hidden state.
        self._forms: dict[type, tuple[type, tuple[Any, ...]]] = {}

    def twin(self) -> Decoder:
        """Another one of the same model, with room for other weights."""
        return Decoder(self.inventory.checkpoint, dtype=name_of(self.storage), device=str(self.weights.device))

    @torch.no_grad()
    def embed(self, tokens: Sequence[Any]) -> list[Sample]:
        """The samples of token ids before the first block. Needs :meth:`Weights.outer`."""
        samples: list[Sample] = []
        vocabulary = self.inventory.model.get_input_embeddings().num_embeddings
        for ids in tokens:
            row = torch.as_tensor(ids, dtype=torch.long, device=self.weights.device).reshape(1, -1)
            if int(row.max()) >= vocabulary:
                raise RecipeError(
                    f"{self.inventory.source}: the tokenizer gives token {int(row.max())}, "
                    f"but the model knows {vocabulary}: tokenizer and model do not belong together"
                )
            hidden, calls, result = self._record(row, lambda _, at: at)
            if not samples:
                self._check_chain(row, hidden, calls, result)
            else:  # most of what blocks are called with is the same for all samples: it is kept once
                calls = _rebuilt(calls, samples[0].calls, {})
            samples.append(Sample(hidden, calls, 1 if hidden.shape[1] == row.shape[1] else -2))
        return samples

    def entering(self, ids: Any) -> torch.Tensor:
        """What enters the first block for one row of token ids. Needs :meth:`Weights.outer`."""
        row = torch.as_tensor(ids, dtype=torch.long, device=self.weights.device).reshape(1, -1)
        return self._record(row, lambda _, at: at)[0]

    def _record(
        self, row: torch.Tensor, answer: Callable[[int, torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, list[_Call], torch.Tensor]:
        """What enters the first block, the calls of all blocks, and the result of the base model.

        Instead of block ``index`` stands ``answer(index, hidden)``.
        """
        inventory = self.inventory
        calls: list[_Call | None] = [None] * len(inventory.blocks)
        seen: list[torch.Tensor] = []
        given: list[torch.Tensor] = []

        def recorder(index: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                hidden, call = _split(args, kwargs)
                where = f"seen at {inventory.block_prefix}.{index}"
                if calls[index] is not None or (given and given[-1] is not hidden):
                    raise self._refuse(Reason.BETWEEN, where)
                if row.shape[1] not in (hidden.shape[1], hidden.shape[-2]):
                    raise self._refuse(Reason.LENGTH, f"{row.shape[1]} tokens enter as {tuple(hidden.shape)}")
                rests = [tensor for _, rest in self._forms.values() for tensor in _tensors(rest)]
                if any(tensor is other for tensor in _tensors(call) for other in rests):
                    raise self._refuse(Reason.CARRIES, where)
                strange = next((leaf for leaf in _leaves(call) if not isinstance(leaf, _PLAIN)), None)
                if strange is not None:
                    raise self._refuse(Reason.CARRIES, f"{type(strange).__name__} {where}")
                calls[index] = call
                seen.append(hidden)
                given.append(answer(index, hidden))
                return self._in_form(index, given[-1], call)

            return forward

        try:
            with replaced_forwards(inventory.blocks, recorder):
                result = inventory.base(input_ids=row, use_cache=False)[0]
        except (TypeError, ValueError) as error:
            raise self._refuse(Reason.INPUTS, " ".join(str(error).split())[:200]) from error
        missing = [index for index, call in enumerate(calls) if call is None]
        if missing:
            raise self._refuse(Reason.SKIPS, f"{inventory.block_prefix}.{missing[0]} is not called")
        return seen[0].clone(), [call for call in calls if call is not None], result

    def _refuse(self, reason: Reason, detail: str) -> Unsupported:
        return Unsupported.of(reason, self.inventory.source, self.inventory.name, detail)

    def _check_chain(self, row: torch.Tensor, hidden: torch.Tensor, calls: list[_Call], result: torch.Tensor) -> None:
        """Refuse a model in which a block learns more of the others than the hidden state.

        With other results of all blocks but the last, and then with another text, neither what blocks are called with
        nor what follows the last one may change.
        """
        last = len(calls) - 1
        _, others, changed = self._record(row, lambda index, at: hidden if index == last else at.roll(1, -1))
        _, _, elsewhere = self._record(torch.zeros_like(row), lambda index, at: hidden if index == last else at)
        told = list(zip(_tensors(calls), _tensors(others), strict=True))
        if not (_equal(changed, result) and _equal(elsewhere, result) and all(_equal(a, b) for a, b in told)):
            raise self._refuse(Reason.CARRIES, "seen by changing the results of blocks")

    def _in_form(self, index: int, hidden: torch.Tensor, call: _Call) -> Any:
        """``hidden`` in the form of a block's result; the first of a class is run once to see what that is."""
        block = self.inventory.blocks[index]
        if type(block) not in self._forms:
            args, kwargs = _rebuilt(call, call, {})  # what it leaves in containers is not that of the pass to come
            with self.weights.block(index):
                result = type(block).forward(block, hidden, *args, **kwargs)
            several = type(result) in (tuple, list)
            first = result[0] if several else result
            if not isinstance(first, torch.Tensor) or first.shape != hidden.shape:
                found = tuple(first.shape) if isinstance(first, torch.Tensor) else type(first).__name__
                message = f"{type(block).__name__} takes {tuple(hidden.shape)} and gives {found}"
                raise self._refuse(Reason.OUTPUT, message)
            self._forms[type(block)] = (type(result), tuple(result[1:]) if several else ())
        form, rest = self._forms[type(block)]
        return form((hidden, *rest)) if form in (tuple, list) else hidden

    def run(self, index: int, sample: Sample) -> torch.Tensor:
        """Output of block ``index``, whose weights are in memory, for one sample."""
        call = sample.calls[index]
        result = self.inventory.blocks[index](sample.hidden, *call[0], **call[1])
        return result[0] if isinstance(result, (tuple, list)) else result  # type: ignore[no-any-return]

    @torch.no_grad()
    def advance(self, index: int, samples: Sequence[Sample]) -> None:
        """Take every sample through block ``index``, whose weights are in memory."""
        for sample in samples:
            sample.hidden = self.run(index, sample)

    def logits(self, sample: Sample, start: int, stop: int) -> torch.Tensor:
        """Logits (positions, vocabulary) at positions ``start`` to ``stop`` of a sample that left the last block.

        Needs :meth:`Weights.outer` with the head. Position by position, so a long sample can be served in pieces.
        """
        hidden = sample.hidden.narrow(sample.axis, start, stop - start)

        def passing(index: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                found, call = _split(args, kwargs)
                return self._in_form(index, hidden if index == 0 else found, call)

            return forward

        dummy = torch.zeros((1, stop - start), dtype=torch.long, device=self.weights.device)
        with replaced_forwards(self.inventory.blocks, passing):
            result: torch.Tensor = self.inventory.model(input_ids=dummy, use_cache=False).logits
        if result.shape[1] != stop - start:
            raise self._refuse(Reason.LENGTH, f"{result.shape[1]} logits for {stop - start} positions")
        return result[0]


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, _Call]:
    """The hidden state, and the rest of a call."""
    if args:
        return args[0], (args[1:], kwargs)
    rest = dict(kwargs)
    return rest.pop("hidden_states"), ((), rest)


def _rebuilt(value: Any, like: Any, memo: dict[int, Any]) -> Any:
    """``value`` with containers of its own, and with the tensors of ``like`` where those are equal.

    What occurs more than once does so afterwards, by ``memo``: a dictionary that all blocks share stays one.
    """
    if id(value) in memo:
        return memo[id(value)]
    result = value
    if isinstance(value, torch.Tensor):
        if isinstance(like, torch.Tensor) and _equal(value, like):
            result = like
    elif isinstance(value, MutableMapping):
        result = memo[id(value)] = copy.copy(value)
        for key, item in value.items():
            result[key] = _rebuilt(item, like.get(key) if isinstance(like, MutableMapping) else None, memo)
    elif type(value) in (list, tuple):
        others = like if type(like) is type(value) and len(like) == len(value) else [None] * len(value)
        result = type(value)(_rebuilt(item, other, memo) for item, other in zip(value, others, strict=True))
    memo[id(value)] = result
    return result


def _equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    same = left.shape == right.shape and left.dtype == right.dtype
    return left is right or (same and bool(torch.equal(left, right)))


def _leaves(value: Any) -> Iterator[Any]:
    """What nested containers hold."""
    if isinstance(value, MutableMapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested containers."""
    return (leaf for leaf in _leaves(value) if isinstance(leaf, torch.Tensor))
