"""A decoder-only model of transformers, one decoder block in memory at a time.

The model is built on the meta device (no values), so nothing here knows an architecture by name:

* its decoder blocks are the longest list of like modules inside the base model;
* what a block is called with (rotary embeddings, masks, ...) is recorded by running the base model once with every
  block replaced by a recorder that returns its hidden state unchanged;
* logits are the model's own forward with the blocks replaced by the hidden state at hand, so that final norms,
  projections, soft caps and scalings are all the model's.

Hidden states are ``(1, length, hidden)``: one sample per forward pass, whatever the number of samples, so a result
never depends on how samples are grouped.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from lowbit.formats.checkpoint import Checkpoint
from lowbit.formats.dtypes import FLOATS
from lowbit.formats.errors import CheckpointError
from lowbit.models.policy import causal_class
from lowbit.runs.errors import RecipeError

__all__ = ["Decoder", "Factors", "Linear", "Reader", "check_device", "first_bad", "resolve_dtype", "storage_dtype"]

Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""Adapters of one block: full module path → (B (out, r), A (r, in)); the module computes W x + B (A x)."""

Reader = Callable[[str], torch.Tensor]
"""Full parameter name → its values."""


class Linear(NamedTuple):
    """One linear layer inside a block."""

    name: str  # path inside the block, such as "mlp.up_proj"
    shape: tuple[int, int]  # (out, in), whatever the layout
    transposed: bool  # stored (in, out), as the Conv1D of GPT-2


class _Stop(Exception):
    """Raised by a hook to leave a forward pass whose rest is not needed."""


class _Inputs:
    """Inputs of the layers of a block during one sample; ends the pass at call number ``calls``."""

    def __init__(self, calls: int | None) -> None:
        self.tensors: dict[str, list[torch.Tensor]] = {}
        self._left = calls

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        """Pre-forward hook of layer ``name``."""

        def see(_: nn.Module, args: tuple[Any, ...]) -> None:
            self.tensors.setdefault(name, []).append(args[0])
            if self._left is not None:
                self._left -= 1
                if self._left == 0:
                    raise _Stop

        return see


class _Call(NamedTuple):
    """How the model calls a block, beside the hidden state."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def storage_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Natural type of most values of a checkpoint; float32 when that is none of float32, bfloat16 and float16."""
    count: dict[torch.dtype, int] = {}
    for name in checkpoint.names():
        dtype = checkpoint.natural_dtype(name)
        if dtype in FLOATS.values():
            count[dtype] = count.get(dtype, 0) + math.prod(checkpoint.shape(name))
    return max(count, key=lambda dtype: count[dtype], default=torch.float32)


def resolve_dtype(storage: torch.dtype, device: str) -> torch.dtype:
    """Type in which forward passes run: the storage type, but float32 for float16 on a CPU, which has no fast path."""
    return torch.float32 if storage == torch.float16 and torch.device(device).type == "cpu" else storage


def check_device(device: str) -> None:
    """Refuse a device that torch does not know or does not have here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RecipeError(f"device {device!r} cannot be used here: {reason}") from error


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


class Decoder:
    """Streams the blocks of ``checkpoint`` through the model that ``transformers`` has for its configuration.

    Attributes:
        name: class of the model, such as ``LlamaForCausalLM``.
        blocks: number of decoder blocks.
        block_prefix: path of the list of blocks, such as ``model.layers``.
        linears: the linear layers of one block, in the order of its definition, for every block.
        attention: the attention implementation that runs, ``sdpa`` or ``eager``.
        storage: type in which results are stored.
        dtype: type in which forward passes run.

    Raises:
        RecipeError: an architecture that is not a decoder-only language model, a tensor that the file lacks, or one
            of another shape than the model's.
    """

    def __init__(self, checkpoint: Checkpoint, *, dtype: str = "auto", device: str = "cpu") -> None:
        self.checkpoint = checkpoint
        self.device = torch.device(device)
        self.storage = storage_dtype(checkpoint) if dtype == "auto" else FLOATS[dtype]
        self.dtype = resolve_dtype(self.storage, device)
        self.model, self.attention = _build(checkpoint, self.dtype)
        self.base: nn.Module = self.model.base_model
        self.name = type(self.model).__name__
        self.block_prefix, self._blocks = _find_blocks(self.model, self.base, checkpoint.source)
        self.blocks = len(self._blocks)
        self.linears = [_linears(block) for block in self._blocks]
        self._where, self._outer = self._match()
        self._calls: list[_Call] = []
        self._call_length = -1

    # ---- names ---------------------------------------------------------------------------------------------------

    def _match(self) -> tuple[dict[str, str], list[str]]:
        """Model parameter → checkpoint name, every one present and of the right shape; and the names outside blocks."""
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
                    f"{self.checkpoint.source} lacks the tensor {family[0]} that {self.name} needs: "
                    "the checkpoint is incomplete, or written in a layout that this version does not read"
                )
            expected, actual = tuple(values[found].shape), tuple(self.checkpoint.shape(found))
            if expected != actual:
                raise RecipeError(
                    f"{self.checkpoint.source}: tensor {found} has shape {actual}, "
                    f"but its configuration needs {expected}"
                )
            for name in family:
                where[name] = found
            if not found.startswith(self.block_prefix + "."):
                outer.append(found)
        return where, outer

    @property
    def outer_names(self) -> list[str]:
        """Parameters outside the blocks (embeddings, final norm, untied head), each stored once."""
        return list(self._outer)

    def block_names(self, index: int) -> list[str]:
        """Full names of the parameters and persistent buffers of block ``index``."""
        return [f"{self.block_prefix}.{index}.{name}" for name in self._blocks[index].state_dict(keep_vars=True)]

    def outer_linears(self) -> list[str]:
        """Paths of linear modules outside the blocks: they stay dense."""
        inside = self.block_prefix + "."
        return [
            name
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and not name.startswith(inside)
        ]

    def parameters(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def check_length(self, length: int) -> None:
        """Refuse samples longer than the model's learned positions."""
        limit = getattr(self.checkpoint.config, "max_position_embeddings", None)
        if isinstance(limit, int) and length > limit:
            raise RecipeError(
                f"samples of {length} tokens, but {self.name} here reads at most {limit}: lower the length"
            )

    # ---- weights in and out --------------------------------------------------------------------------------------

    def read(self, name: str) -> torch.Tensor:
        """One parameter as the checkpoint stores it, checked for NaN and infinities."""
        try:
            tensor = self.checkpoint.read(self._where.get(name, name))
        except CheckpointError as error:
            raise RecipeError(str(error)) from error
        bad = first_bad(tensor)
        if bad is not None:
            raise RecipeError(f"{self.checkpoint.source}: tensor {name} holds NaN or infinite values, first at {bad}")
        return tensor

    def linear_weight(self, index: int, linear: Linear) -> torch.Tensor:
        """Original weight of a linear layer of block ``index``: float32 (out, in)."""
        weight = self.read(f"{self.block_prefix}.{index}.{linear.name}.weight")
        weight = weight.to(torch.float32)
        return weight.T.contiguous() if linear.transposed else _aligned(weight)

    def _put(self, name: str, tensor: torch.Tensor | None) -> None:
        """Set a parameter or buffer by its full name; None takes its values away."""
        path, _, leaf = name.rpartition(".")
        module = self.model.get_submodule(path)
        is_parameter = leaf in module._parameters
        old = module._parameters[leaf] if is_parameter else module._buffers[leaf]
        assert old is not None
        if tensor is None:
            tensor = torch.empty_like(old, device="meta")
        else:
            dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
            tensor = _aligned(tensor.to(device=self.device, dtype=dtype))
        if is_parameter:
            module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[leaf] = tensor

    @contextlib.contextmanager
    def outer(self, *, head: bool) -> Iterator[None]:
        """Holds the parameters outside the blocks; without ``head`` only those of the base model."""
        inside = set(self.base.state_dict(keep_vars=True))
        prefix = self.model.base_model_prefix + "."
        put: list[str] = []
        held: dict[str, torch.Tensor] = {}
        try:
            for name, source in self._where.items():
                if name.startswith(self.block_prefix + "."):
                    continue
                if not head and name.removeprefix(prefix) not in inside:
                    continue
                if source not in held:
                    held[source] = _aligned(self.read(source).to(device=self.device, dtype=self.dtype))
                put.append(name)
                self._put(name, held[source])
            held.clear()
            yield
        finally:
            for name in put:
                self._put(name, None)

    @contextlib.contextmanager
    def block(self, index: int, read: Reader | None = None, factors: Factors | None = None) -> Iterator[nn.Module]:
        """Holds the weights of block ``index``, from ``read`` or the checkpoint, with adapters kept apart.

        An adapter is not added into its weight: the module computes ``W x + B (A x)`` as its users will.
        """
        module = self._blocks[index]
        hooks: list[Any] = []
        names = self.block_names(index)
        try:
            for name in names:
                self._put(name, (read or self.read)(name))
            for path, (b, a) in (factors or {}).items():
                target = self.model.get_submodule(path)
                hooks.append(target.register_forward_hook(_add_patch(b, a, self.device, self.dtype)))
            yield module
        finally:
            for hook in hooks:
                hook.remove()
            for name in names:
                self._put(name, None)
            _return_memory()

    @contextlib.contextmanager
    def whole(self, factors: Sequence[Factors]) -> Iterator[Any]:
        """Holds the whole model at once, for generation; ``factors`` by block."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.outer(head=True))
            for index in range(self.blocks):
                stack.enter_context(self.block(index, factors=factors[index]))
            yield self.model

    # ---- forward passes ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def embed(self, tokens: Sequence[Any]) -> list[torch.Tensor]:
        """Hidden states that enter the first block, (1, length, hidden) per sample of token ids.

        Needs :meth:`outer`. Records how the model calls its blocks at this length.
        """
        hidden: list[torch.Tensor] = []
        vocabulary = self.model.get_input_embeddings().num_embeddings
        for sample, ids in enumerate(tokens):
            row = torch.as_tensor(ids, dtype=torch.long, device=self.device).reshape(1, -1)
            if int(row.max()) >= vocabulary:
                raise RecipeError(
                    f"{self.checkpoint.source}: the tokenizer gives token {int(row.max())}, "
                    f"but the model knows {vocabulary}: tokenizer and model do not belong together"
                )
            if sample == 0:
                hidden.append(self._record(row))
            else:
                hidden.append(self._first_input(row, sample))
        return hidden

    def _record(self, row: torch.Tensor) -> torch.Tensor:
        calls: list[_Call | None] = [None] * self.blocks
        seen: list[torch.Tensor] = []

        def recorder(index: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
                hidden, rest = _split(args, kwargs)
                if calls[index] is not None or (seen and seen[-1] is not hidden):
                    raise RecipeError(
                        f"{self.checkpoint.source}: {self.name} does work between its blocks or repeats one; "
                        "such architectures are not supported"
                    )
                calls[index] = rest
                seen.append(hidden)
                return hidden

            return forward

        with self._replaced(recorder):
            self.base(input_ids=row, use_cache=False)
        missing = [index for index, call in enumerate(calls) if call is None]
        if missing:
            raise RecipeError(
                f"{self.checkpoint.source}: {self.name} does not call block {missing[0]} of {self.block_prefix}"
            )
        self._calls = [call for call in calls if call is not None]
        self._call_length = row.shape[1]
        return seen[0].clone()

    def _first_input(self, row: torch.Tensor, sample: int) -> torch.Tensor:
        caught: list[tuple[torch.Tensor, _Call]] = []

        def recorder(_: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
                caught.append(_split(args, kwargs))
                raise _Stop

            return forward

        with self._replaced(recorder), contextlib.suppress(_Stop):
            self.base(input_ids=row, use_cache=False)
        hidden, call = caught[0]
        if not _same(call, self._calls[0]):
            raise RecipeError(
                f"{self.checkpoint.source}: what {self.name} passes to its blocks depends on the text "
                f"(sample {sample}); such architectures are not supported"
            )
        return hidden.clone()

    @torch.no_grad()
    def run(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """Output of block ``index``, whose weights are in memory, for one sample."""
        if hidden.shape[1] != self._call_length:
            raise RuntimeError(f"blocks were recorded at length {self._call_length}, got {hidden.shape[1]}")
        call = self._calls[index]
        result = self._blocks[index](hidden, *call.args, **call.kwargs)
        return result[0] if isinstance(result, tuple) else result  # type: ignore[no-any-return]

    @torch.no_grad()
    def collect(
        self,
        index: int,
        states: Sequence[torch.Tensor],
        take: Callable[[str, int, torch.Tensor], None],
    ) -> dict[str, str]:
        """Run block ``index`` over every sample up to the input of its last linear layer.

        ``take(leader, sample, x)`` receives the inputs ``x`` (tokens, in) of every group of linear layers that see the
        same tensor (q, k, v; gate, up), once per sample, under the name of the first of the group.

        Returns:
            Linear layer → leader of its group. A layer that no sample reached is missing.
        """
        block = self._blocks[index]
        names = [linear.name for linear in self.linears[index]]
        leader: dict[str, str] = {}
        calls: int | None = None  # of a sample, when every layer is called once: a pass may end at the last one
        for sample, state in enumerate(states):
            seen = _Inputs(calls)
            hooks = [block.get_submodule(name).register_forward_pre_hook(seen.hook(name)) for name in names]
            try:
                with contextlib.suppress(_Stop):
                    self.run(index, state)
            finally:
                for handle in hooks:
                    handle.remove()
            if sample == 0 and all(len(seen.tensors.get(name, ())) == 1 for name in names):
                calls = len(names)
            self._share(index, sample, seen.tensors, leader)
            for name, tensors in seen.tensors.items():
                if leader[name] == name:
                    rows = [tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]
                    take(name, sample, rows[0] if len(rows) == 1 else torch.cat(rows))
        return leader

    def _share(self, index: int, sample: int, inputs: Mapping[str, list[torch.Tensor]], leader: dict[str, str]) -> None:
        """Group the layers of one sample by the identity of their inputs, and check that groups never change."""
        for name, tensors in inputs.items():
            if name not in leader:
                leader[name] = next(
                    (
                        other
                        for other, theirs in inputs.items()
                        if leader.get(other) == other
                        and len(theirs) == len(tensors)
                        and all(a is b for a, b in zip(theirs, tensors, strict=True))
                    ),
                    name,
                )
            elif leader[name] != name:
                theirs = inputs.get(leader[name], [])
                if len(theirs) != len(tensors) or any(a is not b for a, b in zip(theirs, tensors, strict=True)):
                    path = f"{self.block_prefix}.{index}"
                    raise RecipeError(
                        f"{path}.{name} shares its input with {path}.{leader[name]} in one sample, "
                        f"but not in sample {sample}; such architectures are not supported"
                    )

    @torch.no_grad()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (positions, vocabulary) of hidden states (1, positions, hidden) that left the last block.

        Needs :meth:`outer` with the head. Position by position, so a long sample can be served in pieces.
        """

        def passing(index: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
                return hidden if index == 0 else _split(args, kwargs)[0]

            return forward

        dummy = torch.zeros((1, hidden.shape[1]), dtype=torch.long, device=self.device)
        with self._replaced(passing):
            result: torch.Tensor = self.model(input_ids=dummy, use_cache=False).logits
        return result[0]

    @contextlib.contextmanager
    def _replaced(self, make: Callable[[int], Callable[..., Any]]) -> Iterator[None]:
        """Every block's forward replaced by ``make(index)``."""
        try:
            for index, block in enumerate(self._blocks):
                block.__dict__["forward"] = make(index)
            yield
        finally:
            for block in self._blocks:
                block.__dict__.pop("forward", None)


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


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Values on a 64-byte boundary: elsewhere a matrix library may sum in another order."""
    return (
        tensor
        if tensor.data_ptr() % 64 == 0 and tensor.is_contiguous()
        else tensor.clone(memory_format=torch.contiguous_format)
    )


def _add_patch(b: torch.Tensor, a: torch.Tensor, device: torch.device, dtype: torch.dtype) -> Any:
    b_t = b.to(device=device, dtype=dtype).T.contiguous()
    a_t = a.to(device=device, dtype=dtype).T.contiguous()

    def hook(_: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        patch: torch.Tensor = (args[0] @ a_t) @ b_t
        return output + patch

    return hook


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
            with init_empty_weights(include_buffers=False):
                model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
        except ValueError as error:
            if attention == "sdpa" and "attention" in str(error):
                continue
            raise RecipeError(f"{checkpoint.source}: transformers cannot build this model: {error}") from error
        model.eval()
        model.tie_weights()
        return model, attention
    raise AssertionError("unreachable")


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
