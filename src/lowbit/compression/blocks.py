"""The loop over the blocks.

For every block, in order (the order of work of EoRA's authors):

1. collect the inputs of all its linear layers while the block has its original weights and the hidden states come
   from the compressed and compensated blocks before it;
2. compress every layer, Ŵ, and compensate what was lost, B A ≈ W − Ŵ, for the inputs collected;
3. write Ŵ, packed, and B, A; then one line of the journal;
4. run the block again *from what was written*, Ŵ + B A, which gives the hidden states for the next block.

Step 4 reads the stored values, so the numbers used are the numbers stored, and a run that was killed continues with
the same hidden states: it repeats step 4 for the finished blocks and computes nothing else twice.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import torch

from lowbit.models.decoder import Decoder, Sample
from lowbit.reference.errors import SpecError
from lowbit.runs.clock import peak_memory
from lowbit.runs.errors import RecipeError
from lowbit.runs.events import BlockDone, BlockResumed, BlockStarted, ModuleDone, Note, OnEvent

from .experts import solve_experts
from .layer import LayerSolver, Solution
from .moments import BlockMoments, collect_moments
from .shards import Shards

__all__ = ["compress_blocks"]


def compress_blocks(decoder: Decoder, tokens: Any, solver: LayerSolver, shards: Shards, tell: OnEvent) -> None:
    """Compress every block that ``shards`` lacks, calibrated on ``tokens`` (samples, length).

    Raises:
        RecipeError: a layer that cannot be compressed, by name; finished blocks stay.
    """
    total, finished, clock = len(decoder.inventory.blocks), shards.finished, solver.clock
    if finished == total:
        return
    with clock("forward"), decoder.weights.outer(head=False, read=shards.outer):
        samples = decoder.embed(list(tokens))
    for index in range(finished):
        started = time.perf_counter()
        _advance(decoder, index, solver, shards, samples)
        tell(BlockResumed(index, total, time.perf_counter() - started))
    seconds: list[float] = []
    for index in range(finished, total):
        started = time.perf_counter()
        tell(BlockStarted(index, total))
        with contextlib.ExitStack() as stack:
            with clock("read"):
                stack.enter_context(decoder.weights.block(index))
            moments = collect_moments(decoder, index, samples, solver.arrays, clock)
            if not moments.routed:  # an expert's first layer makes the inputs of its last
                stack.close()
            unseen = [linear.name for linear in decoder.inventory.linears[index] if linear.name not in moments.groups]
            if unseen:
                names = ", ".join(unseen[:5]) + (f" and {len(unseen) - 5} more" if len(unseen) > 5 else "")
                tell(
                    Note(f"block {index}: no token reaches {names}, or the block uses the weight alone: left as it is")
                )
            solutions = _solve_block(decoder, index, solver, moments, tell)
        with clock("write"):
            shards.write_block(index, solutions)
        del solutions
        if index + 1 < total:
            _advance(decoder, index, solver, shards, samples)
        seconds.append(time.perf_counter() - started)
        left = (total - index - 1) * sum(seconds) / len(seconds)
        tell(BlockDone(index, total, seconds[-1], peak_memory(), left))


def _solve_block(
    decoder: Decoder, index: int, solver: LayerSolver, moments: BlockMoments, tell: OnEvent
) -> dict[str, Solution]:
    """Solve the layers of a block, group by group; a group's statistics are freed before the next one's are summed."""
    arrays, clock = solver.arrays, solver.clock
    solutions: dict[str, Solution] = {}
    weights = sum(math.prod(linear.shape) * max(linear.experts, 1) for linear in decoder.inventory.linears[index])
    started = time.perf_counter()

    def done(name: str, solution: Solution) -> None:
        nonlocal started
        before, after = (solution.measures[f"relative_error_{when}"] for when in ("before", "after"))
        share = math.prod(solution.measures["shape"]) / weights
        tell(ModuleDone(name, before, after, time.perf_counter() - started, share))
        started = time.perf_counter()

    stacks = {linear.name: linear for linear in decoder.inventory.linears[index] if linear.experts}
    for leader in dict.fromkeys(moments.groups.values()):
        with clock("statistics"):
            total = arrays.backend.moment_total(moments.nodes.pop(leader))
        if leader in stacks:
            with _named(decoder.inventory.path(index, leader)):
                solutions[leader] = solve_experts(
                    decoder, index, stacks[leader], total, moments.routed[leader], solver, done
                )
            continue
        with clock("statistics"):
            matrix = arrays.give(arrays.take(total.matrix).to(arrays.moment_dtype))
            magnitude = arrays.take(total.magnitude).to(torch.float32)
            del total
        for linear in decoder.inventory.linears[index]:
            if moments.groups.get(linear.name) != leader:
                continue
            started = time.perf_counter()
            name = decoder.inventory.path(index, linear.name)
            with clock("read"):
                w = decoder.weights.linear(index, linear)
            with _named(name):
                solutions[linear.name] = solver.solve(name, index, linear, w, matrix, magnitude)
            del w
            done(name, solutions[linear.name])
        del matrix
    if full := [name for name, solution in solutions.items() if solution.full_rank]:
        ranks = sorted({int(solutions[name].measures["rank"]) for name in full})
        tell(
            Note(
                f"block {index}: rank {' or '.join(map(str, ranks))} is all directions that the calibration inputs of "
                f"{', '.join(full)} have, so errors were weighed there as without an adapter; take more calibration "
                "samples or a lower rank"
            )
        )
    return solutions


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """What a backend or the type of a result refuses, under the name of the layer."""
    try:
        yield
    except (SpecError, RecipeError) as error:
        remedy = ": choose another --dtype" if "overflows" in str(error) else ""
        raise RecipeError(f"{name}: {error}{remedy}") from error


def _advance(decoder: Decoder, index: int, solver: LayerSolver, shards: Shards, samples: list[Sample]) -> None:
    """Samples behind block ``index`` with the weights and factors that were stored."""
    with contextlib.ExitStack() as stack:
        with solver.clock("read"):
            stack.enter_context(decoder.weights.block(index, *shards.block(index)))
        with solver.clock("forward"):
            decoder.advance(index, samples)
