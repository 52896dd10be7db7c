"""The main job: a language model in, a compressed one with its adapter out, one decoder block in memory at a time.

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
import json
import math
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import lowbit
from lowbit.data.text import TokenRows, load_rows
from lowbit.formats import compressed_tensors
from lowbit.formats.checkpoint import Checkpoint, open_checkpoint, weights_hash
from lowbit.formats.errors import CheckpointError
from lowbit.formats.peft import write_adapter
from lowbit.formats.safetensors_file import SafetensorsFile
from lowbit.models.decoder import Decoder
from lowbit.models.inventory import Linear
from lowbit.models.likelihood import Likelihood, Variant, stream_likelihood
from lowbit.models.machine import check_device, thread_count
from lowbit.models.taps import collect_inputs
from lowbit.models.weights import Factors, Reader
from lowbit.reference.errors import SpecError
from lowbit.runs.errors import RecipeError
from lowbit.runs.events import BlockDone, BlockResumed, BlockStarted, Event, Finished, ModuleDone, Note, Started
from lowbit.runs.files import (
    TensorSource,
    digest,
    make_folder,
    remove_tree,
    sweep,
    write_bytes,
    write_json,
    write_tensors,
    writing,
)
from lowbit.runs.journal import Journal
from lowbit.runs.lock import Lock
from lowbit.runs.plan import differences

from .options import CompressOptions
from .readme import readme

__all__ = ["CompressResult", "compress"]

SCHEMA = "lowbit.compress/1"
WORK = ".lowbit"
RECORD = "lowbit.json"

_SPECTRUM = 256  # singular values kept in the record
_SPECTRUM_SIDE = 1024  # smaller side of the largest layer whose spectrum is computed: it costs a full eigensolve
_LEAF_TOKENS = 4096  # tokens of one product xᵀx: fewer, and adding up float64 sums costs more than the products
_ROUGHLY = 1e-3  # distance from the optimum at which the directions of an adapter to come are good enough
_SCALE_DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
_PACKAGES = ("numpy", "scipy", "torch", "transformers")


@dataclass(frozen=True)
class CompressResult:
    """What :func:`compress` did."""

    record: dict[str, Any]  # content of lowbit.json
    seconds: float
    peak_memory: int  # peak resident set of this process, bytes
    out: Path
    timings: dict[str, float] = field(default_factory=dict)  # seconds by kind of work
    already_done: bool = False  # an earlier run had finished: nothing was computed


class _Clock:
    """Seconds by kind of work; kinds do not overlap."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - started

    def move(self, source: str, target: str, seconds: float) -> None:
        """Book ``seconds`` of one kind on another."""
        self.seconds[source] -= seconds
        self.seconds[target] = self.seconds.get(target, 0.0) + seconds


class _Arrays:
    """Tensors to the arrays of a backend and back; nothing is copied when the backend's own arrays are tensors."""

    def __init__(self, backend: Any) -> None:
        probe = backend.asarray(np.zeros(1, dtype=np.float32))
        self._backend = backend
        self._device = probe.device if isinstance(probe, torch.Tensor) else None
        # A float64 second moment would make a float32 backend compute everything in float64.
        self.moment_dtype = torch.float64 if backend.compute_dtype == "float64" else torch.float32

    def give(self, tensor: torch.Tensor) -> Any:
        """Tensor → array. bfloat16 becomes float32, exactly, where arrays are NumPy's."""
        if self._device is not None:
            return tensor.to(self._device)
        tensor = tensor.detach().cpu()
        return self._backend.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())

    def take(self, array: Any) -> torch.Tensor:
        """Array → tensor on the CPU."""
        if isinstance(array, torch.Tensor):
            return array.detach().cpu()
        return torch.from_numpy(np.ascontiguousarray(self._backend.to_numpy(array)))


class _Stored(NamedTuple):
    """A compressed weight as it will lie in the file."""

    tensors: dict[str, torch.Tensor]  # full name → tensor
    weight: torch.Tensor  # float32 (m, k): what a reader of those tensors gets
    zeros: float  # share of weights that are exactly 0


class _Patch(NamedTuple):
    """Factors as stored, and what the solver said of them."""

    b: torch.Tensor  # (m, r), storage dtype
    a: torch.Tensor  # (r, k), storage dtype
    lower_bound: float | None
    method: str
    packed_bytes: int | None  # size at adapter_bits, when those are asked for


def peak_memory() -> int:
    """Peak resident set size of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def compress(options: CompressOptions, on_event: Callable[[Event], None] | None = None) -> CompressResult:
    """Compress ``options.model`` into ``options.out``; continues an interrupted run of the same options.

    Writes, besides the checkpoint: ``adapter/`` (PEFT), ``lowbit.json``, ``report.html`` and a ``README.md`` that says
    how to load it. ``config.json`` comes last, so that a directory that loads is complete.

    Raises:
        RecipeError: anything that a user can put right; finished blocks stay, and the same command continues.
    """
    with thread_count(options.threads) as threads:
        try:
            return _Run(options, on_event or (lambda _: None), threads).execute()
        except CheckpointError as error:
            raise RecipeError(str(error)) from error


class _Run:
    """One call of :func:`compress`."""

    def __init__(self, options: CompressOptions, tell: Callable[[Event], None], threads: int) -> None:
        self.options = options
        self.tell = tell
        self.threads = threads
        self.clock = _Clock()
        self.started = time.perf_counter()
        self.out = options.out
        self.work = self.out / WORK

    # ---- the whole -----------------------------------------------------------------------------------------------

    def execute(self) -> CompressResult:
        options = self.options
        check_device(options.device)
        with self.clock("read"):
            self.checkpoint: Checkpoint = open_checkpoint(options.model)
            self.decoder = Decoder(self.checkpoint, dtype=options.dtype, device=options.device)
            self.storage = self.decoder.storage
        self._check_shapes()
        self.backend = self._load_backend()
        self.arrays = _Arrays(self.backend)
        fresh = not self.out.exists()
        make_folder(self.out)
        with Lock(self.work / "lock", owner_of=self.out):
            try:
                return self._locked()
            except BaseException:
                if not (self.work / "run.json").exists():  # nothing was begun: leave nothing behind
                    remove_tree(self.work)
                    if fresh:
                        with contextlib.suppress(OSError):
                            self.out.rmdir()
                raise

    def _locked(self) -> CompressResult:
        done = self.out / RECORD
        finished = done.is_file() and (self.out / "config.json").is_file() and not (self.work / "run.json").exists()
        strangers = [path.name for path in self.out.iterdir() if path.name != WORK]
        if strangers and not finished and not (self.work / "run.json").exists():
            raise RecipeError(
                f"{self.out} is not empty (it holds {sorted(strangers)[0]}) and holds no run of lowbit: "
                "choose an empty or new directory"
            )
        with self.clock("read"):
            self.inputs = self.checkpoint.fingerprint()
            tokenizer = self.checkpoint.tokenizer()
            self.rows, self.windows = self._tokens(tokenizer)
        plan = self._plan()
        if finished:
            return self._already_done(done, plan)
        self._begin(plan)
        for folder in (self.out, self.work):
            sweep(folder)
        self.journal = Journal(self.work / "journal.jsonl")
        self._drop_unverified()
        finished_blocks = self._finished_blocks()
        self.tell(
            Started(
                model=self.options.model,
                out=str(self.out),
                blocks=len(self.decoder.inventory.blocks),
                modules=sum(len(linears) for linears in self.decoder.inventory.linears),
                samples=self.options.samples,
                length=self.options.length,
                resumed_blocks=finished_blocks,
            )
        )
        self._write_outer()
        self._stream()
        perplexity = self._perplexity()
        return self._finish(perplexity)

    # ---- before any work -----------------------------------------------------------------------------------------

    def _check_shapes(self) -> None:
        """Everything that would fail at some module fails here, before anything is written."""
        options, decoder = self.options, self.decoder
        decoder.inventory.check_length(options.length)
        if options.evaluate is not None:
            decoder.inventory.check_length(options.evaluate_length)
        if not any(decoder.inventory.linears):
            raise RecipeError(f"{options.model}: the blocks of {decoder.inventory.name} hold no linear layers")
        for index, linears in enumerate(decoder.inventory.linears):
            for linear in linears:
                name = f"{decoder.inventory.block_prefix}.{index}.{linear.name}"
                m, k = linear.shape
                if options.bits < 16 and options.group_size and k % options.group_size:
                    raise RecipeError(
                        f"group size {options.group_size} does not divide the {k} input columns of {name}: "
                        "choose a divisor, or 0 for one scale per row"
                    )
                if options.compensate != "none" and options.rank > min(m, k):
                    raise RecipeError(
                        f"rank {options.rank} is above the smaller dimension {min(m, k)} of {name} ({m} x {k})"
                    )
                if options.sparsity and k % 4:
                    raise RecipeError(f"2:4 sparsity needs input columns divisible by 4, {name} has {k}")

    def _load_backend(self) -> Any:
        options = self.options
        settings: dict[str, Any] = {}
        if options.backend == "torch" and options.device != "cpu":
            settings["device"] = options.device
        if options.backend == "numba" and options.threads is not None:
            settings["threads"] = options.threads
        try:
            return lowbit.load(options.backend, **settings)
        except lowbit.BackendError as error:
            raise RecipeError(str(error)) from error

    def _tokens(self, tokenizer: Any) -> tuple[TokenRows, TokenRows | None]:
        options = self.options
        rows = load_rows(
            options.calibration,
            tokenizer,
            samples=options.samples,
            length=options.length,
            seed=options.seed if options.sampling == "random" else None,
            field=options.text_field,
        )
        if options.evaluate is None:
            return rows, None
        tokens = options.evaluate_tokens
        windows = load_rows(
            options.evaluate,
            tokenizer,
            samples=None if tokens is None else max(1, tokens // options.evaluate_length),
            length=options.evaluate_length,
            skip=options.evaluate_skip,
            field=options.text_field,
            purpose="evaluation",
        )
        return rows, windows

    def _plan(self) -> dict[str, Any]:
        """Everything that decides the bytes of the result; the same plan continues a run, another is refused."""
        rows, windows = self.rows, self.windows
        return {
            "schema": SCHEMA,
            "versions": _versions(),
            "options": {"model": _model_name(self.options.model), **self.options.signature()},
            "inputs": self.inputs,
            "calibration": {
                "source": rows.source,
                "samples": int(rows.ids.shape[0]),
                "length": int(rows.ids.shape[1]),
                "tokens": int(rows.ids.size),
                "sha256": rows.sha256,
            },
            "evaluation": None
            if windows is None
            else {"source": windows.source, "windows": int(windows.ids.shape[0]), "sha256": windows.sha256},
            "machine": {
                "threads": self.threads,
                "backend": self.backend.name,
                "device": str(self.backend.device),
                "forward_device": self.options.device,
                "attention": self.decoder.inventory.attention,
            },
        }

    def _begin(self, plan: Mapping[str, Any]) -> None:
        path = self.work / "run.json"
        if not path.exists():
            write_json(path, plan)
            return
        changed = _plan_differences(json.loads(path.read_text(encoding="utf-8")), plan)
        if changed:
            raise RecipeError(
                f"{self.out} holds an unfinished run with other settings:\n  "
                + "\n  ".join(changed)
                + "\nrepeat the old command to continue it, or choose another output directory"
            )

    def _already_done(self, path: Path, plan: Mapping[str, Any]) -> CompressResult:
        record = json.loads(path.read_text(encoding="utf-8"))
        parts = ("options", "inputs", "calibration", "evaluation")
        changed = _plan_differences({part: record[part] for part in parts}, {part: plan[part] for part in parts})
        if changed:
            raise RecipeError(
                f"{self.out} holds a finished run with other settings:\n  "
                + "\n  ".join(changed)
                + "\nchoose another output directory"
            )
        remove_tree(self.work)
        self._tell_finished(record, already_done=True)
        return self._result(record, already_done=True)

    # ---- journal -------------------------------------------------------------------------------------------------

    def _shard(self, number: int) -> str:
        """Name of a weight file: 0 holds what lies outside the blocks, 1.. the blocks."""
        return f"model-{number + 1:05d}-of-{len(self.decoder.inventory.blocks) + 1:05d}.safetensors"

    def _patch_file(self, index: int) -> Path:
        return self.work / f"adapter-{index:05d}.safetensors"

    def _drop_unverified(self) -> None:
        """Forget every journal line from the first whose files are gone or changed: they are made again."""
        for number, line in enumerate(self.journal.lines):
            expected = (
                "outer"
                if number == 0
                else "evaluated"
                if number > len(self.decoder.inventory.blocks)
                else str(number - 1)
            )
            files = line.get("files", {})
            good = str(line.get("step")) == expected and all(
                (self.out / name).is_file() and digest(self.out / name) == sha for name, sha in files.items()
            )
            if not good:
                self.tell(Note(f"file of step {expected} is missing or damaged: continuing from there"))
                self.journal.keep(number)
                return

    def _finished_blocks(self) -> int:
        return min(max(0, len(self.journal.lines) - 1), len(self.decoder.inventory.blocks))

    def _write_outer(self) -> None:
        """Embeddings, final norm and head, untouched but for their type."""
        if self.journal.lines:
            return
        tensors = {}
        for name in self.decoder.inventory.outer:
            stored = self.checkpoint.dtype(name)
            dtype = self.storage if stored.is_floating_point else stored
            tensors[name] = TensorSource(dtype, self.checkpoint.shape(name), self._reader_as(name, dtype))
        with self.clock("write"):
            sha = write_tensors(self.out / self._shard(0), tensors, scratch=self.work)
        self.journal.append(
            {
                "step": "outer",
                "files": {self._shard(0): sha},
                "names": sorted(tensors),
                "bytes": sum(source.nbytes for source in tensors.values()),
            }
        )

    def _reader_as(self, name: str, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
        return lambda: self.decoder.weights.read(name).to(dtype)

    # ---- blocks --------------------------------------------------------------------------------------------------

    def _stream(self) -> None:
        decoder = self.decoder
        total = len(decoder.inventory.blocks)
        finished = self._finished_blocks()
        if finished == total:
            return
        with self.clock("forward"), decoder.weights.outer(head=False):
            states = decoder.embed(list(self.rows.ids))
        for index in range(finished):
            started = time.perf_counter()
            self._advance(index, states)
            self.tell(BlockResumed(index, total, time.perf_counter() - started))
        seconds: list[float] = []
        for index in range(finished, total):
            started = time.perf_counter()
            self.tell(BlockStarted(index, total))
            moments, groups = self._collect(index, states)
            self._compress_block(index, moments, groups)
            if index + 1 < total:
                self._advance(index, states)
            seconds.append(time.perf_counter() - started)
            left = (total - index - 1) * sum(seconds) / len(seconds)
            self.tell(BlockDone(index, total, seconds[-1], peak_memory(), left))

    def _collect(self, index: int, states: list[torch.Tensor]) -> tuple[dict[str, Any], dict[str, str]]:
        """Second moments of the inputs of every group of layers, with the block's original weights.

        A leaf of the summation tree is a run of consecutive samples, as many as fit :data:`_LEAF_TOKENS`: which
        samples meet in a leaf depends on their numbers alone.
        """
        tile = max(1, _LEAF_TOKENS // self.options.length)
        nodes: dict[str, Any] = {}
        waiting: dict[str, list[tuple[int, torch.Tensor]]] = {}
        statistics = 0.0

        def flush(name: str) -> None:
            nonlocal statistics
            started = time.perf_counter()
            inputs = waiting.pop(name)
            x = inputs[0][1] if len(inputs) == 1 else torch.cat([x for _, x in inputs])
            if x.shape[0]:
                try:
                    leaf = self.backend.moment_leaf(self.arrays.give(x), index=inputs[0][0] // tile)
                except SpecError as error:
                    bad = next((sample for sample, x in inputs if not bool(torch.isfinite(x).all())), None)
                    if error.clause != "A-4" or bad is None:
                        raise
                    raise RecipeError(
                        f"the inputs of {self.decoder.inventory.block_prefix}.{index}.{name} are NaN or infinite "
                        f"in calibration sample {bad}"
                    ) from error
                nodes[name] = self.backend.moment_merge(nodes[name], leaf) if name in nodes else leaf
            statistics += time.perf_counter() - started

        def take(name: str, sample: int, x: torch.Tensor) -> None:
            if name in waiting and waiting[name][0][0] // tile != sample // tile:
                flush(name)
            waiting.setdefault(name, []).append((sample, x))
            if (sample + 1) % tile == 0:
                flush(name)

        with contextlib.ExitStack() as stack:
            with self.clock("read"):
                stack.enter_context(self.decoder.weights.block(index))
            with self.clock("forward"):
                groups = collect_inputs(self.decoder, index, states, take)
                for name in list(waiting):
                    flush(name)
        self.clock.move("forward", "statistics", statistics)
        return nodes, groups

    def _compress_block(self, index: int, nodes: dict[str, Any], groups: Mapping[str, str]) -> None:
        decoder = self.decoder
        prefix = f"{decoder.inventory.block_prefix}.{index}"
        tensors: dict[str, torch.Tensor] = {}
        patches: dict[str, torch.Tensor] = {}
        records: dict[str, dict[str, Any]] = {}
        for linear in decoder.inventory.linears[index]:
            if linear.name not in groups:
                raise RecipeError(f"no calibration token reaches {prefix}.{linear.name}: take more or other samples")
        for leader in dict.fromkeys(groups.values()):
            if leader not in nodes:
                raise RecipeError(f"no calibration token reaches {prefix}.{leader}: take more or other samples")
            with self.clock("statistics"):
                moment = self.backend.moment_total(nodes.pop(leader))
                matrix = self.arrays.give(self.arrays.take(moment.matrix).to(self.arrays.moment_dtype))
                magnitude = self.arrays.take(moment.magnitude).to(torch.float32)
                del moment
            for linear in decoder.inventory.linears[index]:
                if groups[linear.name] != leader:
                    continue
                started = time.perf_counter()
                name = f"{prefix}.{linear.name}"
                try:
                    stored, patch, record = self._compress_linear(index, linear, name, matrix, magnitude)
                except SpecError as error:
                    raise RecipeError(f"{name}: {error}") from error
                tensors.update(stored.tensors)
                if patch is not None:
                    patches[f"{name}.B"] = patch.b
                    patches[f"{name}.A"] = patch.a
                records[linear.name] = record
                self.tell(
                    ModuleDone(
                        name,
                        record["relative_error_before"],
                        record["relative_error_after"],
                        time.perf_counter() - started,
                    )
                )
            del matrix
        packed = {f"{prefix}.{linear.name}.weight" for linear in decoder.inventory.linears[index]}
        kept = []
        for name in decoder.inventory.block_names(index):
            if name not in packed:
                tensor = decoder.weights.read(name)
                tensors[name] = tensor.to(self.storage) if tensor.is_floating_point() else tensor
                if tensor.ndim > 1:
                    kept.append({"name": name, "shape": list(tensor.shape)})
        files = {}
        with self.clock("write"):
            shard = self._shard(index + 1)
            sources = {name: TensorSource.of(tensor) for name, tensor in tensors.items()}
            files[shard] = write_tensors(self.out / shard, sources, scratch=self.work)
            if patches:
                path = self._patch_file(index)
                sources = {name: TensorSource.of(tensor) for name, tensor in patches.items()}
                files[f"{WORK}/{path.name}"] = write_tensors(path, sources)
            self.journal.append(
                {
                    "step": index,
                    "files": files,
                    "names": sorted(tensors),
                    "bytes": sum(tensor.nbytes for tensor in tensors.values()),
                    "kept": kept,
                    "modules": [records[linear.name] for linear in decoder.inventory.linears[index]],
                }
            )

    def _advance(self, index: int, states: list[torch.Tensor]) -> None:
        """Hidden states behind block ``index`` with the weights and factors that were stored."""
        with contextlib.ExitStack() as stack:
            with self.clock("read"):
                stack.enter_context(self.decoder.weights.block(index, *self._stored_block(index)))
            with self.clock("forward"):
                for sample in range(len(states)):
                    states[sample] = self.decoder.run(index, states[sample])

    def _stored_block(self, index: int) -> tuple[Reader, Factors]:
        """Reader of the dense weights in a finished shard, and the factors stored beside it."""
        file = SafetensorsFile(self.out / self._shard(index + 1))
        bits, scheme = self.options.bits, self.options.scheme

        def read(name: str) -> torch.Tensor:
            module = name.removesuffix(".weight")
            if f"{module}{compressed_tensors.PACKED}" in file.entries:
                parts = [part for part in compressed_tensors.PARTS if f"{module}.{part}" in file.entries]
                tensors = {part: file.read(f"{module}.{part}") for part in parts}
                return compressed_tensors.dequantize_module(tensors, bits=bits, scheme=scheme)
            return file.read(name)

        return read, self._stored_factors(index)

    def _stored_factors(self, index: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        if self.options.compensate == "none":
            return {}
        file = SafetensorsFile(self._patch_file(index))
        names = [
            f"{self.decoder.inventory.block_prefix}.{index}.{linear.name}"
            for linear in self.decoder.inventory.linears[index]
        ]
        return {name: (file.read(f"{name}.B"), file.read(f"{name}.A")) for name in names}

    # ---- one layer -----------------------------------------------------------------------------------------------

    def _aim(self, name: str, linear: Linear, w: torch.Tensor, c: Any) -> Any:
        """Second moment that the compression of ``w`` works with: all of ``c``, or what the adapter will leave of it.

        Which directions the adapter will take is guessed from the error of a compression that knows nothing of the
        inputs.
        """
        if not self.options.aware:
            return c
        with self.clock("quantize"):
            plain = self._quantize(name, linear, w, None)
        with self.clock("compensate"):
            error = self.arrays.give(w - plain.weight)
            guess = self.backend.eora_certified(error, c, rank=self.options.rank, tolerance=_ROUGHLY)
            return self.backend.residual_moment(c, guess.A)

    def _compress_linear(
        self, index: int, linear: Linear, name: str, c: Any, magnitude: torch.Tensor
    ) -> tuple[_Stored, _Patch | None, dict[str, Any]]:
        """Quantize and compensate one layer; with ``rounds`` above 1 in turns, keeping the best stored pair.

        A round starts from the last adapter: from what its BA does not carry, or, where the compression knows of the
        adapter, from the directions that its A does not reach, with B left free.
        """
        options, arrays, clock = self.options, self.arrays, self.clock
        with clock("read"):
            w = self.decoder.weights.linear(index, linear)
        target, aim = w, self._aim(name, linear, w, c)
        best: tuple[float, float, _Stored, _Patch | None] | None = None
        for turn in range(options.rounds):
            with clock("quantize"):
                stored = self._quantize(name, linear, target, aim)
            d = w - stored.weight
            with clock("errors"):
                before = max(0.0, self.backend.objective(arrays.give(d), c))
            after, patch = before, None
            if options.compensate != "none":
                with clock("compensate"):
                    patch = self._compensate(d, c, magnitude)
                product = patch.b.to(torch.float32) @ patch.a.to(torch.float32)
                with clock("errors"):
                    after = max(0.0, self.backend.objective(arrays.give(d - product), c))
                if not options.aware:
                    target = w - product
                elif turn + 1 < options.rounds:
                    aim = self.backend.residual_moment(c, arrays.give(patch.a.to(torch.float32)))
            if best is None or after < best[0]:
                best = (after, before, stored, patch)
        assert best is not None
        after, before, stored, patch = best
        with clock("errors"):
            norm = max(0.0, self.backend.objective(arrays.give(w), c))
        spectrum: list[float] | None = None
        # Without a spectrum, the share that the chosen rank captured is still known from the objectives.
        energy = {str(options.rank): max(0.0, 1 - after / before)} if patch is not None and before > 0 else {}
        if options.spectrum and min(linear.shape) <= _SPECTRUM_SIDE:
            with clock("spectrum"):
                values = arrays.take(self.backend.error_spectrum(arrays.give(w - stored.weight), c))
            spectrum, energy = _spectrum(values.to(torch.float64), options.rank)
        record = {
            "name": name,
            "block": index,
            "shape": list(linear.shape),
            "bits": options.bits,
            "group_size": options.group_size,
            "method": self._method(patch),
            "rank": options.rank if patch is not None else 0,
            "sparsity": round(stored.zeros, 6) if options.sparsity else None,
            "objective_uncompensated": before,
            "objective_compensated": after if patch is not None else None,
            "optimum_lower_bound": patch.lower_bound if patch is not None else None,
            "relative_error_before": _ratio(before, norm),
            "relative_error_after": _ratio(after, norm) if patch is not None else None,
            "weight_norm": norm,
            "certificate": patch.method if patch is not None else None,
            "spectrum": spectrum,
            "energy": energy,
            "bytes": self._bytes(stored, patch),
        }
        return stored, patch, record

    def _method(self, patch: _Patch | None) -> str:
        options = self.options
        parts = []
        if options.sparsity:
            parts.append(f"{options.pruner} {options.sparsity}")
        if options.bits < 16:
            parts.append(options.quantizer)
        if patch is not None:
            parts.append(options.compensate)
        return " + ".join(parts)

    def _bytes(self, stored: _Stored, patch: _Patch | None) -> dict[str, int]:
        parts = {"packed": 0, "scales": 0, "zero_points": 0, "adapter": 0}
        kinds = {"weight_scale": "scales", "weight_zero_point": "zero_points"}
        for name, tensor in stored.tensors.items():
            parts[kinds.get(name.rpartition(".")[2], "packed")] += tensor.nbytes
        if patch is not None:
            parts["adapter"] = patch.b.nbytes + patch.a.nbytes
            if patch.packed_bytes is not None:
                parts["adapter_packed"] = patch.packed_bytes
        return parts

    def _quantize(self, name: str, linear: Linear, target: torch.Tensor, c: Any) -> _Stored:
        """Compressed form of ``target`` (m, k) float32 as the file will hold it.

        Without a second moment ``c`` weights are pruned by magnitude and rounded to nearest.
        """
        options, backend, arrays = self.options, self.backend, self.arrays
        if c is None:
            options = options.model_copy(update={"pruner": "wanda", "quantizer": "rtn", "act_order": None})
        w = arrays.give(target)
        scheme, scale_dtype = options.scheme, _SCALE_DTYPES[self.storage]
        mask: torch.Tensor | None = None
        if options.sparsity is not None:
            if options.pruner == "sparsegpt" and options.quantizer == "gptq":
                joint = backend.sparsegpt(
                    w,
                    c,
                    keep=2,
                    of=4,
                    bits=options.bits,
                    scheme=scheme,
                    group_size=options.group_size,
                    damping=options.damps,
                    scale_dtype=scale_dtype,
                )
                return self._pack(name, linear, joint.codes, joint.scale, joint.zero_point)
            if options.pruner == "sparsegpt":
                pruned = backend.sparsegpt(w, c, keep=2, of=4, damping=options.damps)
            else:
                k = target.shape[1]
                moments = torch.ones(k) if c is None else arrays.take(c).diagonal().clamp(min=0).contiguous()
                pruned = backend.wanda(w, arrays.give(moments), keep=2, of=4)
            dense = arrays.take(pruned.weight).to(torch.float32)
            if options.bits == 16:
                return self._dense(name, linear, dense)
            mask = arrays.take(pruned.mask)
            w = arrays.give(dense)
        if options.quantizer == "gptq":
            result = backend.gptq(
                w,
                c,
                bits=options.bits,
                scheme=scheme,
                group_size=options.group_size,
                act_order=options.orders,
                static_groups=options.static_groups,
                clip_search=options.clips,
                damping=options.damps,
                scale_dtype=scale_dtype,
            )
            codes, scale, zero_point = result.codes, result.scale, result.zero_point
        else:
            fit = backend.clip_search if options.clips else backend.fit_grid
            grid = fit(
                w,
                bits=options.bits,
                scheme=scheme,
                granularity="group" if options.group_size else "row",
                group_size=options.group_size,
                scale_dtype=scale_dtype,
            )
            scale, zero_point = grid.scale, grid.zero_point
            codes = backend.quantize(w, scale, zero_point, bits=options.bits, scheme=scheme)
        if mask is not None:  # a pruned weight stays exactly 0 whatever the quantizer moved there
            full = arrays.take(codes)
            zeros = arrays.take(zero_point)
            full = torch.where(mask, zeros.repeat_interleave(full.shape[1] // zeros.shape[1], dim=1), full)
            return self._pack(name, linear, full, scale, zero_point)
        return self._pack(name, linear, codes, scale, zero_point)

    def _pack(self, name: str, linear: Linear, codes: Any, scale: Any, zero_point: Any) -> _Stored:
        packed = compressed_tensors.pack_module(
            name,
            self.arrays.take(codes),
            self.arrays.take(scale).to(self.storage),
            self.arrays.take(zero_point),
            bits=self.options.bits,
            scheme=self.options.scheme,
        )
        weight = compressed_tensors.dequantize_module(packed, bits=self.options.bits, scheme=self.options.scheme)
        if linear.transposed:  # no other reader knows a packed Conv1D: such a weight is stored dequantized
            return self._dense(name, linear, weight.to(torch.float32))
        return _Stored(packed, weight.to(torch.float32), _zeros(weight))

    def _dense(self, name: str, linear: Linear, weight: torch.Tensor) -> _Stored:
        stored = weight.to(self.storage)
        layout = stored.T.contiguous() if linear.transposed else stored
        return _Stored({f"{name}.weight": layout}, stored.to(torch.float32), _zeros(stored))

    def _compensate(self, d: torch.Tensor, c: Any, magnitude: torch.Tensor) -> _Patch:
        """Factors for the error ``d`` (m, k), rounded to the type they are stored in."""
        options, backend, arrays = self.options, self.backend, self.arrays
        error = arrays.give(d)
        bound: float | None = None
        if options.compensate == "eora":
            solution = backend.eora_certified(error, c, rank=options.rank)
            b, a, bound, method = solution.B, solution.A, float(solution.lower_bound), str(solution.method)
        elif options.compensate == "svd":
            b, a = backend.svd_patch(error, rank=options.rank)
            method = "svd"
        else:
            b, a = backend.scaled_svd_patch(error, arrays.give(magnitude), rank=options.rank)
            method = "act-svd"
        packed: int | None = None
        if options.adapter_bits is not None:
            low = backend.quantize_adapter(
                b,
                a,
                c,
                bits=options.adapter_bits,
                group_size=options.group_size,
                damping=options.adapter_damps,
                scale_dtype=_SCALE_DTYPES[self.storage],
            )
            b, a = low.B.weight, low.A.weight
            packed = sum(self._packed_size(part, options.adapter_bits) for part in (low.B, low.A))
        return _Patch(
            arrays.take(b).to(self.storage).contiguous(),
            arrays.take(a).to(self.storage).contiguous(),
            bound,
            method,
            packed,
        )

    def _packed_size(self, part: Any, bits: int) -> int:
        """Bytes of a quantized factor: dense codes, scales in the storage type, zero points of ``bits``."""
        rows, columns = self.arrays.take(part.codes).shape
        scales = self.arrays.take(part.scale).numel()
        return -(-rows * columns * bits // 8) + scales * self.storage.itemsize + -(-scales * bits // 8)

    # ---- the end -------------------------------------------------------------------------------------------------

    def _perplexity(self) -> dict[str, Any] | None:
        """Perplexities of the original, the compressed and the compensated model, in one pass over the blocks."""
        if self.windows is None:
            return None
        for line in self.journal.lines[len(self.decoder.inventory.blocks) + 1 :]:
            if line.get("step") == "evaluated":
                return dict(line["perplexity"])
        variants = [
            Variant("base", lambda _: (None, None)),
            Variant("compressed", lambda index: (self._stored_block(index)[0], None)),
        ]
        if self.options.compensate != "none":
            variants.append(Variant("compensated", self._stored_block))
        with self.clock("evaluate"):
            measured: dict[str, Likelihood] = stream_likelihood(self.decoder, self.windows.ids, variants, self.tell)
        perplexity: dict[str, Any] = {
            name: measured[name].perplexity if name in measured else None
            for name in ("base", "compressed", "compensated")
        }
        perplexity["tokens"] = measured["base"].tokens
        perplexity["source"] = self.windows.source
        perplexity = {key: None if value == math.inf else value for key, value in perplexity.items()}
        self.journal.append({"step": "evaluated", "perplexity": perplexity})
        return perplexity

    def _finish(self, perplexity: dict[str, Any] | None) -> CompressResult:
        """Everything beside the weights; the files that make the directory loadable come last."""
        from lowbit.report import write_report

        with self.clock("write"):
            remove_tree(self.out / "adapter")  # a killed run may have left half of it
            lines = self.journal.lines[: len(self.decoder.inventory.blocks) + 1]
            if self.options.compensate != "none":
                self._write_adapter()
            with writing(self.out):
                self.checkpoint.save_side_files(self.out)
            record = self._record(lines, perplexity)
            write_json(self.out / RECORD, record, scratch=self.work)
            with writing(self.out / "report.html"):
                write_report(record, self.out / "report.html")
            write_bytes(self.out / "README.md", readme(record).encode(), scratch=self.work)
            write_json(self.out / "model.safetensors.index.json", self._index(lines), scratch=self.work)
            write_bytes(self.out / "config.json", self._config().encode(), scratch=self.work)
        # From here on the directory is complete; a crash while cleaning up leaves run.json, and the same command
        # comes back to this line.
        (self.work / "run.json").unlink()
        remove_tree(self.work)
        self._tell_finished(record, already_done=False)
        return self._result(record, already_done=False)

    def _index(self, lines: list[dict[str, Any]]) -> dict[str, Any]:
        weight_map: dict[str, str] = {}
        for number, line in enumerate(lines):
            for name in line["names"]:
                weight_map[name] = self._shard(number)
        total = sum(int(line["bytes"]) for line in lines)
        return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}

    def _write_adapter(self) -> None:
        factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for index in range(len(self.decoder.inventory.blocks)):
            factors.update(self._stored_factors(index))
        transposed = [linear.transposed for linears in self.decoder.inventory.linears for linear in linears]
        with writing(self.out / "adapter"):
            write_adapter(
                self.out / "adapter",
                factors,
                base_model=_model_name(self.options.model),
                base_hash=weights_hash(self.out),
                fan_in_fan_out=all(transposed),
            )

    @property
    def _packed(self) -> bool:
        """Whether the weights are stored as codes; otherwise the directory is an ordinary dense checkpoint."""
        return self.options.bits < 16 and not any(
            linear.transposed for linears in self.decoder.inventory.linears for linear in linears
        )

    def _config(self) -> str:
        config = json.loads(self.checkpoint.config.to_json_string(use_diff=True))
        config.pop("_name_or_path", None)
        config["architectures"] = [self.decoder.inventory.name]
        config["dtype"] = str(self.storage).removeprefix("torch.")
        if self._packed:
            config["quantization_config"] = compressed_tensors.quantization_config(
                bits=self.options.bits,
                scheme=self.options.scheme,
                group_size=self.options.group_size,
                ignore=self.decoder.inventory.outer_linears(),
                act_order=self.options.orders,
            )
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    def _record(self, lines: list[dict[str, Any]], perplexity: dict[str, Any] | None) -> dict[str, Any]:
        """Content of lowbit.json: no time, no date, no place, so that equal runs give equal bytes."""
        options, decoder = self.options, self.decoder
        modules = [module for line in lines[1:] for module in line["modules"]]
        parts = {"packed": 0, "scales": 0, "zero_points": 0, "adapter": 0}
        for module in modules:
            for part in parts:
                parts[part] += int(module["bytes"][part])
        stored = sum(int(line["bytes"]) for line in lines)
        parts["other"] = stored - parts["packed"] - parts["scales"] - parts["zero_points"]
        before = sum(
            math.prod(self.checkpoint.shape(name)) * self.storage.itemsize
            for name in [
                *decoder.inventory.outer,
                *(n for i in range(len(decoder.inventory.blocks)) for n in decoder.inventory.block_names(i)),
            ]
        )
        after = stored + parts["adapter"]
        config = self.checkpoint.config
        plan = self._plan()
        return {
            "schema": SCHEMA,
            "versions": plan["versions"],
            "seed": options.seed,
            "options": plan["options"],
            "inputs": plan["inputs"],
            "machine": plan["machine"],
            "model": {
                "architecture": decoder.inventory.name,
                "blocks": len(decoder.inventory.blocks),
                "parameters": decoder.inventory.parameters(),
                "hidden_size": getattr(config, "hidden_size", None),
                "dtype": str(self.storage).removeprefix("torch."),
                "forward_dtype": str(decoder.weights.dtype).removeprefix("torch."),
                "kept": [kept for line in lines[1:] for kept in line["kept"]],
            },
            "modules": modules,
            "totals": {
                "bytes": parts,
                "bytes_before": before,
                "bytes_after": after,
                "ratio": before / after,
            },
            "perplexity": perplexity,
            "calibration": plan["calibration"],
            "evaluation": plan["evaluation"],
            "loads_with": self._loads_with(),
        }

    def _loads_with(self) -> dict[str, Any]:
        dequantize = self._packed and not self.options.symmetric
        if not self._packed:
            why = "bits 16" if self.options.bits == 16 else "weights laid out as (in, out), which no reader has packed"
        elif dequantize:
            why = "asymmetric: the default path of transformers refuses packed zero points"
        else:
            why = "symmetric"
        return {
            "format": "pack-quantized" if self._packed else "dense",
            "dequantize": dequantize,
            "transformers": "from_pretrained"
            + (" with quantization_config=CompressedTensorsConfig(dequantize=True)" if dequantize else ""),
            "why": why,
        }

    def _tell_finished(self, record: Mapping[str, Any], *, already_done: bool) -> None:
        totals = record["totals"]
        self.tell(
            Finished(
                str(self.out),
                time.perf_counter() - self.started,
                peak_memory(),
                totals["bytes_before"],
                totals["bytes_after"],
                already_done,
            )
        )

    def _result(self, record: dict[str, Any], *, already_done: bool) -> CompressResult:
        seconds = time.perf_counter() - self.started
        timings = dict(self.clock.seconds)
        timings["other"] = max(0.0, seconds - sum(timings.values()))
        return CompressResult(record, seconds, peak_memory(), self.out, timings, already_done)


def _model_name(model: str) -> str:
    """Name without the folders of this machine."""
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else model


def _versions() -> dict[str, Any]:
    versions: dict[str, Any] = {
        "lowbit": lowbit.__version__,
        "spec": lowbit.SPEC_VERSION,
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        versions[package] = metadata.version(package)
    return versions


def _plan_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Differing fields of two plans, named by their part unless they are options."""
    lines: list[str] = []
    for part in sorted(before.keys() | now.keys()):
        old, new = before.get(part), now.get(part)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            label = "" if part == "options" else f"{part}."
            lines += [label + line for line in differences(old, new)]
        elif old != new:
            lines += differences({part: old}, {part: new})
    return lines


def _zeros(weight: torch.Tensor) -> float:
    return float((weight == 0).sum()) / max(1, weight.numel())


def _ratio(objective: float, norm: float) -> float:
    """Relative output error: the root of the ratio of two squared norms."""
    return math.sqrt(objective / norm) if norm > 0 else 0.0


def _spectrum(values: torch.Tensor, rank: int) -> tuple[list[float], dict[str, float]]:
    """The leading singular values, and the share of the squared sum that each of a few ranks captures."""
    squares = values.square()
    total = float(squares.sum())
    ranks = sorted({r for r in (1, 2, 4, 8, 16, 32, 64, 128, 256, rank) if r <= len(values)})
    energy = {str(r): float(squares[:r].sum()) / total if total > 0 else 1.0 for r in ranks}
    return [float(value) for value in values[:_SPECTRUM]], energy
