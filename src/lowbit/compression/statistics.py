"""Second moments of inputs and gradients of every linear layer, block by block from the last to the first.

1. Forward: what enters every block goes to a file, in the original model.
2. At the end labels are drawn from the model's own distribution, and the loss is taken back through the head.
3. Backward: every block is computed again, now with a graph, sample by sample. What its linear layers got gives C, the
   gradients at their outputs give G; then its files are removed but for G.
4. The gradient that reaches the embedding is all that its rows need.

Every step is one line of the journal, with the digests of its files and what the caller made of a block's moments. A
step reads what the one before it wrote or holds the same values, so a run that was killed ends with the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lowbit.formats.safetensors_file import SafetensorsFile, write_tensors
from lowbit.models.decoder import Decoder, Sample
from lowbit.models.gradients import block_gradients, embedding_gradient, head_gradient
from lowbit.models.policy import Reason, Unsupported
from lowbit.models.surgery import aligned
from lowbit.reference.errors import SpecError
from lowbit.runs.clock import Clock, peak_memory
from lowbit.runs.errors import RecipeError
from lowbit.runs.events import BlockDone, BlockResumed, BlockStarted, Note, OnEvent, Step
from lowbit.runs.files import digest, writing
from lowbit.runs.folder import RunFolder
from lowbit.runs.journal import Journal

from .arrays import Arrays
from .moments import MomentTrees

__all__ = ["Moments", "OuterStatistics", "Visit", "collect_statistics", "read_gradients", "read_outer"]

Moments = Mapping[str, tuple[Any, Any]]
"""Linear layer of a block → arrays C (in, in) and G (out, out)."""

Visit = Callable[[int, Moments], Any]
"""What to make of the moments of block ``index``: something that JSON holds."""

_HEAD, _EMBEDDING = "head.safetensors", "embedding.safetensors"


class OuterStatistics(NamedTuple):
    """What the embedding and the head are judged by, over all tokens of the text."""

    probability: torch.Tensor  # float64 (vocabulary,): mean probability of every token
    counts: torch.Tensor  # int64 (vocabulary,): of every token in the text
    head: torch.Tensor | None  # float32 (in, in): second moment of the head's inputs; None where it is no module
    embedding: torch.Tensor  # float32 (width, width): second moment of gradients by the rows looked up


def collect_statistics(
    decoder: Decoder,
    tokens: Any,
    arrays: Arrays,
    folder: RunFolder,
    journal: Journal,
    *,
    seed: int,
    tell: OnEvent,
    visit: Visit,
    clock: Clock,
) -> OuterStatistics:
    """Statistics of a model on ``tokens`` (samples, length); continues where ``journal`` ends.

    ``visit(index, moments)`` is called for every block, the last first. C is the mean over the tokens that reach the
    layer. G sums over those too, but is a mean over all tokens of the text, so that ½ tr(G D C Dᵀ) of every layer is in
    nats per token of the text. Layers that no token reaches, and stacks of experts, are left out.

    Leaves in ``folder.out`` a file of G for every block, float32 by full name of the layer, ``head.safetensors`` and
    ``embedding.safetensors``; and in the journal a line ``{"step": index, "visit": ...}`` for every block.

    Raises:
        RecipeError: logits or gradients that are not finite, a block that autograd cannot follow, or one that leaves
            tensors for later blocks (keys and values shared between layers).
    """
    steps = _Steps(folder, journal, len(decoder.inventory.blocks))
    steps.verify(tell)
    if not steps.complete:
        with clock("forward"), decoder.weights.outer(head=False):
            samples = decoder.embed(list(tokens))
        length = samples[0].length
        _forward(decoder, samples, steps, tell, clock)
        _head(decoder, samples, torch.as_tensor(tokens), arrays, steps, seed, tell, clock)
        for sample in samples:  # from here on read when needed
            sample.hidden = sample.hidden.new_empty(0)
        gradients = list(steps.read(steps.backward(steps.left), decoder))
        total = len(decoder.inventory.blocks)
        for index in range(total - 1, steps.left - 1, -1):
            tell(BlockResumed(total - 1 - index, total, 0.0))
        seconds: list[float] = []
        for index in range(steps.left - 1, -1, -1):
            started = time.perf_counter()
            tell(BlockStarted(total - 1 - index, total))
            _block(decoder, index, samples, gradients, length, arrays, steps, visit, tell, clock)
            seconds.append(time.perf_counter() - started)
            tell(BlockDone(total - 1 - index, total, seconds[-1], peak_memory(), index * sum(seconds) / len(seconds)))
        _embedding(decoder, tokens, gradients, length, arrays, steps, clock)
    return read_outer(folder.out)


def read_outer(folder: Path) -> OuterStatistics:
    """What :func:`collect_statistics` left in ``folder`` about the embedding and the head."""
    head, embedding = SafetensorsFile(folder / _HEAD), SafetensorsFile(folder / _EMBEDDING)
    inputs = head.read("inputs") if "inputs" in head.entries else None
    return OuterStatistics(head.read("probability"), head.read("counts"), inputs, embedding.read("gradients"))


def read_gradients(folder: Path, index: int) -> SafetensorsFile:
    """G of the linear layers of block ``index``, by their full names, as :func:`collect_statistics` left them."""
    return SafetensorsFile(folder / _gradients(index))


def _gradients(index: int) -> str:
    return f"gradients-{index:05d}.safetensors"


class _Steps:
    """The journal: what enters block 0, 1, ..., what leaves the last; the head; blocks from the last; the embedding."""

    def __init__(self, folder: RunFolder, journal: Journal, blocks: int) -> None:
        self._folder = folder
        self._journal = journal
        self._blocks = blocks
        self._work = folder.work.relative_to(folder.out).as_posix()
        self._names = [f"before {index}" for index in range(blocks)]
        self._names += ["behind", "head", *map(str, reversed(range(blocks))), "embedding"]

    # ---- how far it is ---------------------------------------------------------------------------------------------

    @property
    def _done(self) -> int:
        return min(len(self._journal.lines), len(self._names))

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self._done == len(self._names)

    @property
    def states(self) -> int:
        """Number of the steps of the forward pass that are done, at most one more than blocks."""
        return min(self._done, self._blocks + 1)

    @property
    def head(self) -> bool:
        """Whether the head is done."""
        return self._done > self._blocks + 1

    @property
    def left(self) -> int:
        """Number of blocks that the backward pass has not done."""
        return self._blocks - min(self._blocks, max(0, self._done - self._blocks - 2))

    def _needed(self) -> set[str]:
        """Files that what is left to do, or the result, needs."""
        if self.complete:
            work: set[str] = set()
        elif self.head:
            work = {self.state(index) for index in range(self.left)} | {self.backward(self.left)}
        else:
            work = {self.state(index) for index in range(self.states)}
        done = self._journal.lines[: self._done]
        return {name for line in done for name in line["files"] if name in work or not name.startswith(self._work)}

    def verify(self, tell: OnEvent) -> None:
        """Forget every step from the first whose files are needed and gone or changed."""
        good: set[str] = set()
        while True:
            needed, damaged = self._needed(), None
            for number, line in enumerate(self._journal.lines[: self._done]):
                files = {name: sha for name, sha in line["files"].items() if name in needed and name not in good}
                good |= {name for name, sha in files.items() if _holds(self._folder.out / name, sha)}
                if str(line["step"]) != self._names[number] or not good.issuperset(files):
                    damaged = number
                    break
            if damaged is None:
                break
            tell(Note(f"file of step {self._names[damaged]} is missing or damaged: continuing from there"))
            self._journal.keep(damaged)
        self._sweep()

    def _sweep(self) -> None:
        needed = self._needed()
        for line in self._journal.lines[: self._done]:
            for name in line["files"]:
                if name not in needed:
                    with writing(self._folder.out / name):
                        (self._folder.out / name).unlink(missing_ok=True)

    # ---- files -----------------------------------------------------------------------------------------------------

    def state(self, index: int) -> str:
        """File of what enters block ``index``, or of what leaves the last one."""
        return f"{self._work}/states-{index:05d}.safetensors"

    def backward(self, index: int) -> str:
        """File of the gradients at the same place."""
        return f"{self._work}/backward-{index:05d}.safetensors"

    def append(self, files: Mapping[str, Mapping[str, torch.Tensor]], **more: Any) -> None:
        """The next step is done: write its files, then its line; then remove what is not needed any more."""
        out, work = self._folder.out, self._folder.work
        digests = {name: write_tensors(out / name, tensors, scratch=work) for name, tensors in files.items()}
        name = self._names[self._done]
        self._journal.append({"step": int(name) if name.isdecimal() else name, "files": digests, **more})
        self._sweep()

    def read(self, name: str, decoder: Decoder) -> Iterator[torch.Tensor]:
        """The tensors of all samples."""
        file = SafetensorsFile(self._folder.out / name)
        for sample in range(len(file.entries)):
            yield file.read(str(sample)).to(decoder.weights.device)


def _holds(path: Path, sha: str) -> bool:
    return path.is_file() and digest(path) == sha


def _by_sample(tensors: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {str(sample): tensor for sample, tensor in enumerate(tensors)}


def _forward(decoder: Decoder, samples: list[Sample], steps: _Steps, tell: OnEvent, clock: Clock) -> None:
    """What enters every block, and what leaves the last; afterwards ``samples`` stand there unless the head is done."""
    if steps.head:
        return
    done, blocks = steps.states, len(decoder.inventory.blocks)
    if done:
        for sample, hidden in zip(samples, steps.read(steps.state(done - 1), decoder), strict=True):
            sample.hidden = hidden
    given = samples[0].given()
    if done <= blocks:
        tell(Step(f"forward pass through {blocks} blocks"))
    for index in range(done, blocks + 1):
        if index:
            with decoder.weights.block(index - 1), clock("forward"):
                decoder.advance(index - 1, samples)
            found = samples[0].given()
            if len(found) != len(given) or any(a is not b for a, b in zip(found, given, strict=True)):
                detail = f"block {index - 1} leaves tensors for later ones, a way that gradients are not taken"
                raise Unsupported.of(Reason.CARRIES, decoder.inventory.source, decoder.inventory.name, detail)
        for sample in samples:
            sample.hidden = aligned(sample.hidden)  # as it is when it is read back
        with clock("write"):
            steps.append({steps.state(index): _by_sample([sample.hidden for sample in samples])})


def _head(
    decoder: Decoder,
    samples: list[Sample],
    tokens: torch.Tensor,
    arrays: Arrays,
    steps: _Steps,
    seed: int,
    tell: OnEvent,
    clock: Clock,
) -> None:
    if steps.head:
        return
    tell(Step("labels of the model's own"))
    trees = MomentTrees(arrays, "the inputs of the ", samples[0].length)
    gradients: list[torch.Tensor] = []
    probability: torch.Tensor | float = 0.0
    with clock("backward"), decoder.weights.outer(head=True):
        for number, sample in enumerate(samples):

            def draw(logits: torch.Tensor, start: int, first: int = number * samples[0].length) -> torch.Tensor:
                return arrays.take(arrays.backend.draw_labels(arrays.give(logits), seed=seed, first=first + start))

            try:
                found = head_gradient(decoder, sample, draw)
            except SpecError as error:
                if error.clause != "A-4":
                    raise
                raise RecipeError(f"the logits are NaN or infinite in calibration sample {number}") from error
            gradients.append(found.gradient.contiguous())
            probability = probability + found.probability
            if found.inputs is not None:
                trees.take("head", number, found.inputs)
        trees.finish()
    clock.move("backward", "statistics", trees.seconds)
    assert isinstance(probability, torch.Tensor)
    counts = torch.bincount(tokens.reshape(-1), minlength=len(probability))
    head = {"probability": probability.cpu() / tokens.numel(), "counts": counts}
    if trees.nodes:
        head["inputs"] = _mean(arrays, trees.nodes.pop("head"), tokens.numel())
    with clock("write"):
        steps.append({_HEAD: head, steps.backward(steps.left): _by_sample(gradients)})


def _block(
    decoder: Decoder,
    index: int,
    samples: list[Sample],
    gradients: list[torch.Tensor],
    length: int,
    arrays: Arrays,
    steps: _Steps,
    visit: Visit,
    tell: OnEvent,
    clock: Clock,
) -> None:
    """One block of the backward pass; ``gradients`` stand behind it before, and before it afterwards."""
    path = decoder.inventory.path(index, "")
    inputs = MomentTrees(arrays, f"the inputs of {path}", length)
    outputs = MomentTrees(arrays, f"the gradients at the outputs of {path}", length)
    states = steps.read(steps.state(index), decoder)
    standing = (replace(sample, hidden=hidden) for sample, hidden in zip(samples, states, strict=True))
    with decoder.weights.block(index), clock("backward"):
        groups = block_gradients(decoder, index, standing, gradients, inputs.take, outputs.take)
        inputs.finish()
        outputs.finish()
    clock.move("backward", "statistics", inputs.seconds + outputs.seconds)
    moments: dict[str, tuple[Any, Any]] = {}
    found: dict[str, torch.Tensor] = {}
    with clock("statistics"):
        means = {
            name: arrays.give(arrays.take(arrays.backend.moment_total(inputs.nodes.pop(name)).matrix).to(kind))
            for kind in [arrays.moment_dtype]
            for name in list(inputs.nodes)
        }
        for linear in decoder.inventory.linears[index]:
            if linear.name in outputs.nodes:
                total = _mean(arrays, outputs.nodes.pop(linear.name), length * len(samples), arrays.moment_dtype)
                found[path + linear.name] = total.to(torch.float32)
                moments[linear.name] = (means[groups[linear.name]], arrays.give(total))
    if unseen := [linear.name for linear in decoder.inventory.linears[index] if linear.name not in moments]:
        tell(Note(f"block {index}: no statistics of {', '.join(unseen)}"))
    table = visit(index, moments)
    del moments, means
    with clock("write"):
        steps.append({_gradients(index): found, steps.backward(index): _by_sample(gradients)}, visit=table)


def _embedding(
    decoder: Decoder,
    tokens: Any,
    gradients: list[torch.Tensor],
    length: int,
    arrays: Arrays,
    steps: _Steps,
    clock: Clock,
) -> None:
    trees = MomentTrees(arrays, "the gradients by the rows of the ", length)
    with clock("backward"), decoder.weights.outer(head=False):
        for sample, gradient in enumerate(gradients):
            trees.take("embedding", sample, embedding_gradient(decoder, tokens[sample], gradient))
        trees.finish()
    clock.move("backward", "statistics", trees.seconds)
    with clock("write"):
        steps.append({_EMBEDDING: {"gradients": _mean(arrays, trees.nodes["embedding"], len(tokens) * length)}})


def _mean(arrays: Arrays, nodes: Any, tokens: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Sum of a tree as a mean over ``tokens``, however many vectors it has."""
    total = arrays.backend.moment_total(nodes)
    matrix = arrays.take(total.matrix)
    return (matrix if total.tokens == tokens else matrix * (total.tokens / tokens)).to(dtype)
