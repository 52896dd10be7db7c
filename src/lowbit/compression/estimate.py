"""Time, memory and size of a compression before it begins.

The size follows from shapes, the memory from what is held together, and the time from operation counts times rates
that are measured here, in a moment: a layer is solved in miniature by the very method that is asked for, and the parts
of a forward pass run once. What a machine does beside this is not known, so the time is a range.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from lowbit.models.decoder import Decoder
from lowbit.models.linears import Linear
from lowbit.runs.clock import Clock, peak_memory
from lowbit.runs.events import Estimated

from .arrays import Arrays
from .layer import SPECTRUM_SIDE, LayerSolver
from .method import Method
from .moments import LEAF_TOKENS
from .sizes import shipped_bytes

__all__ = ["Work", "estimate"]

_SIDE = 512  # of the layer that is solved in miniature
_TOKENS = 1024  # that its statistics are of
_ROWS = 256  # tokens of a product in a forward pass
_RUNS, _PATIENCE = 5, 0.3  # of one kind of work, and the seconds after which there are no more
_DOUBT = 1.5  # the time is said to lie within this factor
_NORMS = 12.0  # passes over the hidden state in a block, beside products and attention
_GATES = 3.0  # the same over the widest state


class Work(NamedTuple):
    """What a run is made of beside the model."""

    samples: int
    length: int
    windows: int  # of the evaluation, 0 without one
    window: int  # tokens of one


class _Rates(NamedTuple):
    """Seconds for one unit of each kind of work."""

    solve: dict[str, float]  # kind of the solver's clock: by the counts of :func:`_counts`
    leaf: float  # token and squared column of a second moment
    product: float  # multiply-add of a forward pass
    elementwise: float  # value of the type of forward passes that is read and written
    attention: float  # token of a sample of the length at hand, one block
    logit: float  # logit of the evaluation
    read: float  # value out of the files


def estimate(decoder: Decoder, method: Method, arrays: Arrays, work: Work, *, elapsed: float) -> Estimated:
    """What the run will take, the ``elapsed`` seconds included.

    Args:
        decoder: the model, no weight of which need be in memory.
        method: what is done to its layers.
        arrays: of the backend that computes.
        work: calibration and evaluation.
        elapsed: seconds that went into opening the model already.
    """
    inventory = decoder.inventory
    rates = _measure(decoder, method, arrays, work)
    forward = _forward(decoder, rates, work.length)
    passes = work.samples * work.length * (2 - 1 / len(inventory.blocks)) * forward
    evaluated = 0.0
    if work.windows:
        variants = 3 if method.patches else 2
        head = _vocabulary(decoder) * rates.logit
        tokens = variants * work.windows * work.window
        evaluated = tokens * (_forward(decoder, rates, work.window) + head)
        evaluated += variants * inventory.values() * rates.read
    solved = sum(
        max(1, linear.experts)
        * sum(rates.solve[kind] * count for kind, count in _counts(method, *linear.shape).items())
        for linear in _linears(decoder)
    )
    tokens = work.samples * work.length
    summed = tokens * rates.leaf * sum(columns**2 for columns in _inputs(decoder))
    seconds = elapsed + passes + evaluated + solved + summed + 3 * inventory.values() * rates.read
    return Estimated(
        seconds_low=seconds / _DOUBT,
        seconds_high=seconds * _DOUBT,
        memory=_memory(decoder, method, work),
        bytes_given=inventory.checkpoint.weight_bytes(),
        bytes_shipped=shipped_bytes(inventory, method),
    )


def _linears(decoder: Decoder) -> Iterator[Linear]:
    return (linear for linears in decoder.inventory.linears for linear in linears)


def _text(decoder: Decoder) -> Any:
    return decoder.inventory.checkpoint.config.get_text_config(decoder=True)


def _hidden(decoder: Decoder) -> int:
    """Width of the states between blocks; embeddings may be narrower."""
    found = getattr(_text(decoder), "hidden_size", None)
    return found if isinstance(found, int) else int(decoder.inventory.model.get_input_embeddings().embedding_dim)


def _vocabulary(decoder: Decoder) -> int:
    return int(decoder.inventory.model.get_input_embeddings().num_embeddings)


def _inputs(decoder: Decoder) -> Iterator[int]:
    """Columns of the different inputs of all blocks.

    Layers of one width that stand together in one module see one input, but the last of a module, where it gives the
    hidden state, has an input of its own. What parallel parts of a block share is counted for each.
    """
    hidden = _hidden(decoder)
    for linears in decoder.inventory.linears:
        last = {linear.name.rpartition(".")[0]: linear.name for linear in linears}
        seen: set[tuple[str, int]] = set()
        for linear in linears:
            module, columns = linear.name.rpartition(".")[0], linear.shape[1]
            if (module, columns) not in seen or (linear.name == last[module] and linear.shape[0] == hidden):
                yield columns
            seen.add((module, columns))


def _counts(method: Method, m: int, k: int) -> dict[str, float]:
    """Operations by kind of work of the solver, up to a factor that the measurement has."""
    side = min(m, k)
    solve = float(m * k * k + 2 * side**3)
    weighs = method.quantizer == "gptq" or method.sparsity is not None
    return {
        "quantize": m * k * (1 + k / 2048) if weighs else float(m * k),
        "errors": float(m * k * k),
        "compensate": solve if method.compensate == "eora" else float(m * k * side),
        "spectrum": solve if side <= SPECTRUM_SIDE else 0.0,
    }


# ---- memory ---------------------------------------------------------------------------------------------------------


def _memory(decoder: Decoder, method: Method, work: Work) -> int:
    """Peak of the process: what it has taken by now and the largest of what is held together later."""
    inventory, item = decoder.inventory, decoder.weights.dtype.itemsize
    hidden, shapes = _hidden(decoder), inventory.layout.shapes
    states = (work.samples + 1) * work.length * hidden * item
    blocks = [
        sum(math.prod(shapes[inventory.where[name]]) for name in inventory.block_names(index)) * item
        for index in range(len(inventory.blocks))
    ]
    outer = [
        math.prod(shapes[name]) for name in {inventory.where[n] for n in inventory.where if not inventory.in_block(n)}
    ]
    widest = max(max(linear.shape) for linear in _linears(decoder))
    sample = work.length * (4 * hidden + 3 * widest) * item
    nodes = 1 + math.ceil(math.log2(max(1, work.samples * work.length / LEAF_TOKENS)) / 2)
    columns = list(_inputs(decoder))
    per_block = max(1, len(columns) // len(inventory.blocks))
    moments = 8 * nodes * sum(sorted((c * c for c in columns), reverse=True)[:per_block])
    leaf = 2 * LEAF_TOKENS * max(columns) * 4
    forward = states + max(blocks) + sample + moments + leaf
    wide = 8 if method.quantizer == "gptq" or method.sparsity else 4
    largest = max(
        6 * 4 * math.prod(linear.shape) + (2 * wide + 8) * linear.shape[1] ** 2 for linear in _linears(decoder)
    )
    solving = states + moments + largest + (max(blocks) if any(linear.experts for linear in _linears(decoder)) else 0)
    embedding = states + sum(outer) * item + max(outer) * 4
    held = [forward, solving, embedding]
    if work.windows:
        variants = 3 if method.patches else 2
        held.append(
            variants * work.windows * work.window * hidden * item
            + max(sum(outer) * item + 3 * 128 * _vocabulary(decoder) * 4 + max(outer) * 4, 2 * max(blocks))
        )
    return peak_memory() + max(held)


# ---- time -----------------------------------------------------------------------------------------------------------


def _forward(decoder: Decoder, rates: _Rates, length: int) -> float:
    """Seconds a token in all blocks."""
    chosen = getattr(_text(decoder), "num_experts_per_tok", None) or 1
    weights = sum(
        math.prod(linear.shape) * (min(chosen, linear.experts) if linear.experts else 1) for linear in _linears(decoder)
    )
    blocks = len(decoder.inventory.blocks)
    widest = max(max(linear.shape) for linear in _linears(decoder))
    passes = blocks * (_NORMS * _hidden(decoder) + _GATES * widest)
    return weights * rates.product + passes * rates.elementwise + blocks * rates.attention * length


def _measure(decoder: Decoder, method: Method, arrays: Arrays, work: Work) -> _Rates:
    """Rates of this machine as busy as it is now, from work of the model's shapes but no larger than a moment."""
    draw = torch.Generator().manual_seed(0)
    layers = sorted(_linears(decoder), key=lambda linear: math.prod(linear.shape))
    device, dtype, hidden = decoder.weights.device, decoder.weights.dtype, _hidden(decoder)
    solve, leaf = _miniature(method, arrays, layers[len(layers) // 2].shape, draw)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).to(device, dtype)

    large = [min(4 * _SIDE, side) for side in layers[-1].shape]
    state, weight = drawn(_ROWS, large[1]), drawn(*large)
    length = min(work.length, 1024)
    heads = int(getattr(_text(decoder), "num_attention_heads", 1) or 1)
    q = drawn(1, heads, length, max(1, hidden // heads))
    vocabulary, width = min(_vocabulary(decoder), 1 << 13), min(hidden, 2 * _SIDE)
    last, head, labels = drawn(16, width), drawn(vocabulary, width), torch.zeros(16, dtype=torch.long, device=device)

    def logits() -> torch.Tensor:
        found = functional.linear(last, head).to(torch.float32)
        return functional.cross_entropy(found, labels)

    index = next(index for index, linears in enumerate(decoder.inventory.linears) if linears)
    linear = min(decoder.inventory.linears[index], key=lambda linear: math.prod(linear.shape))
    name = decoder.inventory.path(index, linear.parameter)
    values = math.prod(linear.shape) * max(1, linear.experts)
    return _Rates(
        solve=solve,
        leaf=leaf,
        product=_seconds(device, lambda: functional.linear(state, weight)) / (_ROWS * math.prod(large)),
        elementwise=_seconds(device, lambda: functional.silu(state) * state) / (2 * state.numel()),
        attention=_seconds(device, lambda: functional.scaled_dot_product_attention(q, q, q, is_causal=True))
        / length**2,
        logit=_seconds(device, logits) / (16 * vocabulary) * hidden / width,
        read=_seconds(device, lambda: decoder.weights.read(name)) / values,
    )


def _miniature(
    method: Method, arrays: Arrays, shape: tuple[int, int], draw: torch.Generator
) -> tuple[dict[str, float], float]:
    """Seconds per count of each kind of work of the solver, and per token and squared column of a second moment."""
    m, k = (min(_SIDE, side) for side in shape)
    if method.group_size:
        k = max(1, k // method.group_size) * method.group_size
    x, w = torch.randn(_TOKENS, k, generator=draw), torch.randn(m, k, generator=draw) / math.sqrt(k)
    solver = LayerSolver(replace(method, rank=max(1, min(method.rank, m // 2, k // 2))), arrays, Clock())
    leaf = _seconds(torch.device("cpu"), lambda: arrays.backend.moment_leaf(arrays.give(x), index=0))
    moment = arrays.backend.moment_total(arrays.backend.moment_leaf(arrays.give(x), index=0))
    matrix = arrays.give(arrays.take(moment.matrix).to(arrays.moment_dtype))
    magnitude = arrays.take(moment.magnitude).to(torch.float32)
    counts = _counts(method, m, k)
    taken: list[dict[str, float]] = []

    def solved() -> None:
        clock = Clock()
        layer = Linear("", (m, k), transposed=False)
        replace(solver, clock=clock).solve("a layer in miniature", 0, layer, w, matrix, magnitude)
        taken.append(clock.timings())

    _seconds(torch.device("cpu"), solved)
    solve = {
        kind: statistics.median(times.get(kind, 0.0) for times in taken[1:]) / count if count else 0.0
        for kind, count in counts.items()
    }
    return solve, leaf / (_TOKENS * k * k)


@torch.no_grad()
def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Median of a few runs behind the first, in which things are compiled and opened."""
    work()
    taken: list[float] = []
    while len(taken) < _RUNS and sum(taken) < _PATIENCE:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)
