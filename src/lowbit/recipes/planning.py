"""The work of a plan: moments of inputs and gradients, block by block, and the table that they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lowbit.compression.choices import linear_losses, row_losses
from lowbit.compression.decision import KEPT, as_row, offered
from lowbit.compression.method import Method
from lowbit.compression.record import PLAN_PARTS, make_plan, model_facts
from lowbit.compression.setting import DENSE, Setting
from lowbit.compression.sizes import bytes_16, model_name, module_bytes, shipped_bytes
from lowbit.compression.statistics import OuterStatistics, collect_statistics, read_gradients, read_outer
from lowbit.data.text import TokenRows
from lowbit.models.inventory import Inventory
from lowbit.models.machine import thread_count
from lowbit.report.plan import render_plan, require_plan
from lowbit.runs.clock import Clock
from lowbit.runs.errors import RecipeError
from lowbit.runs.events import OnEvent, Step
from lowbit.runs.files import write_json
from lowbit.runs.folder import RunFolder

from .decide import RECORD, chosen, table_of, told
from .inputs import Job, one_kind_of_error, open_job, tokens_of
from .options import CompressOptions

__all__ = ["Moments", "decided", "make_plan_folder"]

_SCHEMA = "lowbit.plan/1"
_LAST = "plan.html"

_DIGITS, _PADDING = 64, 8  # bytes of a header by which offsets of a module, and the end of a file, may differ

# Options that change neither a statistic nor the table.
_LATER = (
    *("bits", "size", "bits_per_weight", "max_kl", "keep", "bits_of", "sparsity", "pruner", "rank", "rounds"),
    *("adapter_bits", "adapter_aware", "spectrum", "evaluate", "evaluate_tokens", "evaluate_skip", "evaluate_length"),
)


def make_plan_folder(options: CompressOptions, tell: OnEvent) -> dict[str, Any]:
    """Plan the model of ``options`` into ``options.out``; the record."""
    with thread_count(options.threads) as threads, one_kind_of_error():
        job = open_job(options, tell)
        tell(Step(f"hashing the files of {Path(options.model).name}"))
        inputs = job.checkpoint.fingerprint()
        tell(Step(f"tokenizing {Path(options.calibration).name}"))
        rows, _ = tokens_of(replace(options, evaluate=None), job.checkpoint.tokenizer())
        return _planned(options, job, rows, inputs, options.out, tell, threads, Clock())


def _planned(
    options: CompressOptions,
    job: Job,
    rows: TokenRows,
    inputs: Mapping[str, str],
    out: Path,
    tell: OnEvent,
    threads: int,
    clock: Clock,
) -> dict[str, Any]:
    """The record of the plan in the directory ``out``: the one that is there, or a new one.

    Raises:
        RecipeError: the plan there is of another model, text or method.
    """
    decoder, arrays = job.decoder, job.arrays
    inventory = decoder.inventory
    # Rounding is judged as it is without an adapter: what the spectrum of its error is taken of.
    method = replace(job.method, adapter_aware=False, damping=job.method.adapter_damping, sparsity=None)
    method.check(inventory)
    if any(linear.experts for linears in inventory.linears for linear in linears):
        raise RecipeError(
            f"{inventory.source}: it is not decided yet what the experts of a mixture get; give --bits and --rank"
        )
    folder = RunFolder(out, record=RECORD, last=_LAST)
    with folder.held():
        finished = folder.finished()
        signature = {name: value for name, value in options.signature().items() if name not in _LATER}
        signature |= {"model": model_name(options.model), "compensate": method.patches, "damping": method.damping}
        plan = make_plan(signature, inputs, rows, None, decoder, arrays, threads)
        plan |= {"schema": _SCHEMA}
        if finished:
            record = folder.reuse(plan, PLAN_PARTS)
            require_plan(record, str(out / RECORD))
            return record
        journal = folder.begin(plan)
        settings = offered(_group_sizes(method), adapters=method.patches)

        def visit(index: int, moments: Mapping[str, tuple[Any, Any]]) -> list[dict[str, Any]]:
            found = []
            for linear in inventory.linears[index]:
                if linear.name not in moments:
                    continue
                name = inventory.path(index, linear.name)
                w = decoder.weights.linear(index, linear)
                with clock("table"):
                    kl = linear_losses(method, arrays, name, linear, w, *moments[linear.name], settings)
                sizes = [module_bytes(inventory, method, name, setting) for setting in settings]
                found.append(_row(name, index, linear.shape, sizes, kl))
            return found

        outer = collect_statistics(
            decoder, rows.ids, arrays, folder, journal, seed=options.seed, tell=tell, visit=visit, clock=clock
        )
        modules = [row for line in journal.lines for row in line.get("visit", ())]
        modules.sort(key=lambda row: row["block"])  # blocks were visited from the last
        with clock("table"):
            modules += _outer_rows(job, method, outer, settings)
        record = {
            **{part: plan[part] for part in ("schema", "versions", "options", "inputs", "calibration", "machine")},
            "model": model_facts(decoder, method),
            "settings": [as_row(setting) for setting in settings],
            "modules": modules,
            "fixed_bytes": _fixed_bytes(inventory, method, modules, settings),
            "bytes_given": job.checkpoint.weight_bytes(),
            "bytes_16": bytes_16(inventory),
        }
        inside = f"{folder.work.name}/"
        files = [item for line in journal.lines for item in line["files"].items()]
        written = {name: sha for name, sha in files if not name.startswith(inside)}
        written[RECORD] = write_json(out / RECORD, record, scratch=folder.work)
        folder.complete(written, render_plan(record).encode())
        return record


def _group_sizes(method: Method) -> list[int | None]:
    """That of the method, a smaller and a larger one."""
    own = method.group_size
    return [None] if own is None else [own, *([own // 2] if own % 2 == 0 and own > 16 else []), 2 * own]


def _row(
    name: str, block: int | None, shape: tuple[int, int], sizes: list[int], kl: list[float | None]
) -> dict[str, Any]:
    known = [None if loss is None else size for size, loss in zip(sizes, kl, strict=True)]
    return {"name": name, "block": block, "shape": list(shape), "bytes": known, "kl": kl}


def decided(
    options: CompressOptions,
    job: Job,
    rows: TokenRows,
    inputs: Mapping[str, str],
    out: Path,
    tell: OnEvent,
    threads: int,
    clock: Clock,
) -> tuple[Method, dict[str, Any], Moments]:
    """The method that ``options`` decide by the plan in ``out``, what a record says of it, and its moments."""
    record = _planned(options, job, rows, inputs, out, tell, threads, clock)
    decision = chosen(table_of(record, options), options)
    assert decision is not None
    inventory = job.decoder.inventory
    rest = dict.fromkeys(inventory.named, KEPT)  # layers that no token of the text reaches
    method = replace(job.method, settings=rest | decision.settings)
    return method, told(record, decision), Moments(out, inventory)


def _fixed_bytes(
    inventory: Inventory, method: Method, modules: Sequence[Mapping[str, Any]], settings: Sequence[Setting]
) -> int:
    """Bytes of the files that no setting changes, and at least as much for headers as any choice of settings needs."""
    most: dict[str, Setting] = dict.fromkeys(inventory.named, KEPT)
    for row in modules:  # the most tensors that a module can have, and the largest of those
        possible = [setting for setting, size in zip(settings, row["bytes"], strict=True) if size is not None]
        most[row["name"]] = max(possible, key=lambda s: (s.bits < DENSE, s.rank > 0, s.factor_bits < DENSE, s.bits))
    chosen = sum(module_bytes(inventory, method, row["name"], most[row["name"]]) for row in modules)
    slack = _DIGITS * len(modules) + _PADDING * (len(inventory.blocks) + 2)
    return shipped_bytes(inventory, replace(method, settings=most)) - chosen + slack


def _outer_rows(job: Job, method: Method, outer: OuterStatistics, settings: list[Setting]) -> list[dict[str, Any]]:
    """Embedding and head, which is one entry where they share their values."""
    inventory = job.decoder.inventory
    found = []
    for name, uses in _uses(inventory, outer).items():
        kl = row_losses(method, job.arrays, job.decoder.weights.read(f"{name}.weight"), uses, settings)
        sizes = [module_bytes(inventory, method, name, setting) for setting in settings]
        found.append(_row(name, None, inventory.outer_modules[name], sizes, kl))
    return found


def _uses(inventory: Inventory, outer: OuterStatistics) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Module outside the blocks → weights of its rows and a second moment, float64, for each use of its values."""
    paths = {id(module): name for name, module in inventory.model.named_modules()}
    # What a few thousand tokens of text lack, the model itself says.
    often = (outer.counts / outer.counts.sum() + outer.probability) / 2
    uses: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for module, rows, moment in (
        (inventory.model.get_input_embeddings(), often, outer.embedding),
        (inventory.model.get_output_embeddings(), outer.probability, outer.head),
    ):
        home = inventory.where.get(f"{paths.get(id(module))}.weight", "").removesuffix(".weight")
        if home in inventory.outer_modules and moment is not None:
            uses.setdefault(home, []).append((rows, moment.to(torch.float64)))
    return uses


class Moments:
    """What a compression weighs errors with, out of the directory of a plan; nothing where there is none."""

    def __init__(self, folder: Path | None, inventory: Inventory) -> None:
        self._folder = folder
        self._inventory = inventory

    def outputs(self, name: str) -> torch.Tensor | None:
        """Of the gradients at the outputs of a layer, float32 (m, m); None where it got none."""
        if self._folder is None:
            return None
        block = int(name[len(self._inventory.block_prefix) + 1 :].partition(".")[0])
        file = read_gradients(self._folder, block)
        return file.read(name) if name in file.entries else None

    def rows(self, name: str) -> torch.Tensor | None:
        """What errors of the rows of an embedding or a head are weighed with, (k, k), summed over its uses."""
        if self._folder is None:
            return None
        uses = _uses(self._inventory, read_outer(self._folder)).get(name)
        return None if uses is None else torch.stack([moment for _, moment in uses]).sum(0)
