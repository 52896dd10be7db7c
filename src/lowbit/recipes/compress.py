"""The main job: a language model in, a compressed one with its adapter out, one decoder block in memory at a time.

1. Open the model and refuse what cannot be done, before anything is written.
2. Take the output directory. A finished run of the same plan is done already, an unfinished one is continued.
3. Store what lies outside the blocks, then :func:`~lowbit.compression.blocks.compress_blocks`.
4. Measure the perplexity of the original, the compressed and the compensated model, if a text is given.
5. Write the record and what else belongs to the directory, last of all the file that makes it loadable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lowbit.compression.arrays import Arrays
from lowbit.compression.blocks import compress_blocks
from lowbit.compression.estimate import Work, estimate
from lowbit.compression.layer import LayerSolver
from lowbit.compression.method import Method
from lowbit.compression.output import output_config, output_index, save_adapter
from lowbit.compression.perplexity import measure_perplexity
from lowbit.compression.readme import readme
from lowbit.compression.record import PLAN_PARTS, make_plan, make_record
from lowbit.compression.shards import Shards
from lowbit.compression.sizes import model_name
from lowbit.data.text import TokenRows
from lowbit.formats.checkpoint import Checkpoint
from lowbit.models.decoder import Decoder
from lowbit.models.machine import thread_count
from lowbit.report import render
from lowbit.report.schema import require_record
from lowbit.runs.clock import Clock, peak_memory
from lowbit.runs.errors import RecipeError
from lowbit.runs.events import Estimated, Event, Finished, Note, OnEvent, Started, Step
from lowbit.runs.files import digest, make_folder, remove_tree, write_bytes, write_json, writing
from lowbit.runs.folder import RunFolder

from .decide import is_plan
from .inputs import one_kind_of_error, open_job, tokens_of
from .options import CompressOptions
from .planning import Moments, decided

__all__ = ["CompressResult", "compress"]

_RECORD, _LAST = "lowbit.json", "config.json"


@dataclass(frozen=True)
class CompressResult:
    """What :func:`compress` did."""

    record: dict[str, Any]  # content of lowbit.json
    seconds: float
    peak_memory: int  # peak resident set of this process, bytes
    out: Path
    timings: dict[str, float] = field(default_factory=dict)  # seconds by kind of work
    already_done: bool = False  # an earlier run had finished: nothing was computed


def compress(
    options: CompressOptions, on_event: Callable[[Event], None] | None = None, *, checkpoint: Checkpoint | None = None
) -> CompressResult:
    """Compress ``options.model`` into ``options.out``; continues an interrupted run of the same options.

    A ``checkpoint`` that is open already is taken in place of what ``options.model`` names.

    Writes, besides the checkpoint: ``adapter/`` (PEFT), ``lowbit.json``, ``report.html`` and a ``README.md`` that says
    how to load it. ``config.json`` comes last, so that a directory that loads is complete. With ``options.dry_run``
    nothing is written, and the record is the estimate of time, memory and size, schema ``lowbit.estimate/1``.

    Raises:
        RecipeError: anything that a user can put right; finished blocks stay, and the same command continues.
    """
    tell = on_event or (lambda _: None)
    clock = Clock()
    with thread_count(options.threads) as threads, one_kind_of_error():
        record, done = _compress(options, checkpoint, tell, threads, clock)
    if options.dry_run:
        return CompressResult(record, clock.elapsed(), peak_memory(), options.out, clock.timings())
    before, after = (record["totals"][f"bytes_{when}"] for when in ("given", "shipped"))
    timings = clock.timings()
    evaluation = timings.get("evaluate", 0.0)
    tell(Finished(str(options.out), clock.elapsed(), peak_memory(), before, after, done, evaluation))
    return CompressResult(record, clock.elapsed(), peak_memory(), options.out, timings, done)


def _compress(
    options: CompressOptions, checkpoint: Checkpoint | None, tell: OnEvent, threads: int, clock: Clock
) -> tuple[dict[str, Any], bool]:
    """The record, and whether an earlier run had written it."""
    with clock("read"):
        job = open_job(options, tell, checkpoint)
    checkpoint, decoder, arrays, method = job.checkpoint, job.decoder, job.arrays, job.method
    if options.evaluate is not None:
        decoder.inventory.check_length(options.evaluate_length)
    method.check(decoder.inventory)
    if options.dry_run:
        tell(Step(f"tokenizing {Path(options.calibration).name}"))
        rows, windows = tokens_of(options, checkpoint.tokenizer())
        if options.decides:
            if options.plan is None or not is_plan(options.plan):
                raise RecipeError("what a decision takes is known when there is a plan: make one, and give it as plan")
            method, _, _ = decided(options, job, rows, checkpoint.fingerprint(), options.plan, tell, threads, clock)
        expected = _estimate(options, decoder, method, arrays, rows, windows, clock)
        tell(expected)
        return {"schema": "lowbit.estimate/1", "model": model_name(options.model), **asdict(expected)}, False
    folder = RunFolder(options.out, record=_RECORD, last=_LAST)
    with folder.held(), one_kind_of_error():
        finished = folder.finished()
        with clock("read"):
            tell(Step(f"hashing the files of {Path(options.model).name}"))
            inputs = checkpoint.fingerprint()
            tell(Step(f"tokenizing {Path(options.calibration).name}"))
            rows, windows = tokens_of(options, checkpoint.tokenizer())
        asked = {"model": model_name(options.model), **options.signature()}
        plan = make_plan(asked, inputs, rows, windows, decoder, arrays, threads)
        if finished:
            record = folder.reuse(plan, PLAN_PARTS)
            require_record(record, str(options.out / _RECORD))
            return record, True
        journal = folder.begin(plan)
        decision, moments = None, Moments(None, decoder.inventory)
        if options.decides:
            beside = options.plan or folder.work / "plan"
            method, decision, moments = decided(options, job, rows, inputs, beside, tell, threads, clock)
        shards = Shards(folder, journal, decoder, method)
        shards.verify(tell)
        inventory = decoder.inventory
        layers = sum(linear.experts or 1 for linears in inventory.linears for linear in linears)
        blocks = len(inventory.blocks)
        tell(Started(options.model, str(options.out), blocks, layers, options.samples, options.length, shards.finished))
        for remark in method.remarks(inventory):
            tell(Note(remark))
        if not shards.finished:
            tell(_estimate(options, decoder, method, arrays, rows, windows, clock))
        with clock("write"):
            shards.write_outer(arrays, moments.rows)
        solver = LayerSolver(method, arrays, clock, moments.outputs)
        compress_blocks(decoder, rows.ids, solver, shards, tell)
        perplexity = None
        if windows is not None:
            with clock("evaluate"):
                perplexity = measure_perplexity(decoder, shards, method, windows, tell)
        with clock("write"):
            checkpoint.unchanged()
            adapter = save_adapter(folder.out, inventory, shards, base_model=asked["model"]) if method.patches else []
            record = make_record(plan, decoder, method, shards, perplexity, adapter)
            if decision is not None:
                record["decision"] = decision
            written = _write_rest(folder, checkpoint, shards, adapter, record)
            folder.complete(written, output_config(decoder.inventory, method, shards))
        return record, False


def _estimate(
    options: CompressOptions,
    decoder: Decoder,
    method: Method,
    arrays: Arrays,
    rows: TokenRows,
    windows: TokenRows | None,
    clock: Clock,
) -> Estimated:
    """What the run will take, with the seconds until now."""
    evaluated = (0, 0) if windows is None else windows.ids.shape
    with clock("estimate"):
        return estimate(decoder, method, arrays, Work(*rows.ids.shape, *evaluated), elapsed=clock.elapsed())


def _write_rest(
    folder: RunFolder,
    checkpoint: Checkpoint,
    shards: Shards,
    adapter: Sequence[Path],
    record: Mapping[str, Any],
) -> dict[str, str]:
    """Everything that is left but the last file; the digest of each file of the result, by name."""
    out, work = folder.out, folder.work
    written = shards.files() | {f"{path.parent.name}/{path.name}": digest(path) for path in adapter}
    side = work / "side"  # libraries write here: they would follow links, and never wait for the disk
    remove_tree(side)
    make_folder(side)
    with writing(side):
        checkpoint.save_side_files(side)
        for path in filter(Path.is_file, sorted(side.rglob("*"))):
            name = path.relative_to(side)
            make_folder((out / name).parent)
            written[name.as_posix()] = write_bytes(out / name, path.read_bytes(), scratch=work)
    written[_RECORD] = write_json(out / _RECORD, record, scratch=work)
    written["report.html"] = write_bytes(out / "report.html", render(record).encode(), scratch=work)
    written["README.md"] = write_bytes(out / "README.md", readme(record).encode(), scratch=work)
    index = "model.safetensors.index.json"
    written[index] = write_json(out / index, output_index(shards), scratch=work)
    return written
