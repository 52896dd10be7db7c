"""Commands that work on a model: compress, eval, compare and demo."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.console import Console, estimated, share, size_change, table
from lowbit.recipes.options import CompareOptions, CompressOptions, EvalOptions, PlanOptions, parse_options
from lowbit.runs.events import Estimated

from ._parameters import answers, option_command, save

if TYPE_CHECKING:
    from lowbit.recipes.plan import PlanResult

__all__ = ["compare", "compress", "demo", "evaluate", "plan"]

_DEMO = {"out": Path("demo-out"), "samples": 16}
_DEMO_TEXT = {"evaluate": "python-docs", "evaluate_skip": -8192, "evaluate_tokens": 8192}


@option_command(CompressOptions, "model")
def compress(given: dict[str, Any], json: Path | None, quiet: bool) -> None:
    """Compress a language model; run the same command again to continue after an interruption."""
    options = parse_options(CompressOptions, **given)
    console = Console(quiet=quiet, answers=answers(json))
    _say_loading(console)
    from lowbit.recipes.compress import compress as work

    console.say(f"reading {Path(options.model).name}")
    with console.watch():
        result = work(options, console.on_event)
    if options.dry_run:
        if quiet:  # otherwise it was said among the events
            console.answer(estimated(Estimated(**{f.name: result.record[f.name] for f in fields(Estimated)})))
        save(json, result.record)
        return
    console.answer(_summary(result.record, str(result.out)))
    run_facts = {
        "out": str(result.out),
        "seconds": result.seconds,
        "peak_memory": result.peak_memory,
        "timings": result.timings,
        "already_done": result.already_done,
    }
    save(json, {**result.record, "run": run_facts})


def _say_loading(console: Console) -> None:
    """Importing them takes seconds, ten on a cold disk."""
    if "torch" not in sys.modules:
        console.say("loading torch and transformers")


def _summary(record: Mapping[str, Any], out: str) -> str:
    """The closing lines of ``compress``."""
    totals, modules = record["totals"], record["modules"]
    before = [m["relative_error_before"] for m in modules]
    after = [m["relative_error_after"] for m in modules if m["relative_error_after"] is not None]
    error = f"mean output error {share(sum(before) / len(before))}"
    if after:
        error += f", {share(sum(after) / len(after))} with the adapter"
    lines = [
        f"{out}: {totals['bytes_given']:,} bytes given, {totals['bytes_16']:,} in 16 bits, "
        f"{totals['bytes_shipped']:,} after ({size_change(totals['bytes_given'], totals['bytes_shipped'])}, "
        f"{totals['bytes_16'] / totals['bytes_shipped']:.2f} times against 16 bits); {error}"
    ]
    measured = record.get("perplexity")
    if measured:
        known = [
            f"{name} {measured[name]:.3f}"
            for name in ("base", "compressed", "compensated")
            if measured.get(name) is not None
        ]
        lines.append(f"perplexity: {', '.join(known)} ({measured['tokens']} tokens of {measured['source']})")
        distances = [
            f"{name} {_with_error(found['kl'], found['kl_error'])}"
            for name, found in (measured.get("against_base") or {}).items()
            if found is not None
        ]
        if distances:
            lines.append(f"KL from the original, nats per token: {', '.join(distances)}")
    lines.append(f"report: {out}/report.html; loads with: {record['loads_with']['transformers']}")
    return "\n".join(lines)


@option_command(
    PlanOptions,
    "model",
    names=(
        *("model", "out", "size", "bits_per_weight", "max_kl", "keep", "bits_of", "group_size", "symmetric"),
        *("quantizer", "clip_search", "compensate", "calibration", "text_field", "chat_template", "special_tokens"),
        *("samples", "length", "sampling", "seed", "device", "backend", "dtype", "threads"),
    ),
    unset={"out": "MODEL, if that is a plan"},
)
def plan(given: dict[str, Any], json: Path | None, quiet: bool) -> None:
    """What a model would lose at every size: statistics once, then any size in a second; MODEL may be a plan."""
    from lowbit.recipes.decide import is_plan
    from lowbit.recipes.plan import plan as work

    console = Console(quiet=quiet, answers=answers(json))
    model = Path(given.get("model", ""))
    if is_plan(model):
        given.setdefault("out", model)
    else:
        _say_loading(console)
        console.say(f"reading {model.name}")
    with console.watch():
        result = work(parse_options(PlanOptions, **given), console.on_event)
    console.answer(_frontier(result))
    save(json, {**result.record, "decision": result.settled})


def _frontier(result: PlanResult) -> str:
    """The closing lines of ``plan``: sizes from the smallest on, and what is decided."""
    table, record = result.table, result.record
    lines = [f"{result.out}: {record['bytes_given']:,} bytes given, {record['bytes_16']:,} in 16 bits", ""]
    lines.append(f"{'size':>12}  bits per weight  predicted KL per token")
    for size, kl in result.sizes(12):
        lines.append(f"{size / 1e6:>9.1f} MB  {8 * size / table.weights:>15.2f}  {kl:>22.4f}")
    if result.decision is not None:
        found = result.decision
        lines += [
            "",
            f"decided: {found.bytes:,} bytes, predicted KL {found.kl:.4f} per token (no choice below "
            f"{found.lower_bound:.4f})",
        ]
    return "\n".join(lines)


@option_command(EvalOptions, "path")
def evaluate(given: dict[str, Any], json: Path | None, quiet: bool) -> None:
    """Perplexity of a model, of a compressed directory, or of that with its adapter; and its distance from another."""
    options = parse_options(EvalOptions, **given)
    console = Console(quiet=quiet, answers=answers(json))
    _say_loading(console)
    from lowbit.recipes.evaluate import evaluate as work

    console.say(f"reading {Path(options.path).name}")
    with console.watch():
        result = work(options, console.on_event)
    perplexity = _with_error(result.perplexity, result.perplexity_error)
    lines = [f"perplexity {perplexity} on {result.tokens} tokens of {result.source}"]
    if options.against is not None and result.against is not None:
        kl, same = result.against
        lines.append(
            f"against {Path(options.against).name}: KL {_with_error(*kl)} nats per token, "
            f"same top token {_with_error(100 * same.value, _percent(same.error))} %"
        )
    console.answer("\n".join(lines))
    save(json, result.record(options))


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _with_error(value: float, error: float | None) -> str:
    """A mean with its standard error: four decimals, or as many digits where it is smaller than they show."""
    small = 0 < abs(value) < 0.001
    shown = f"{value:.4g}" if small else f"{value:.4f}"
    if error is None:
        return shown
    return f"{shown} ± {error:.2g}" if small else f"{shown} ± {error:.4f}"


@option_command(CompareOptions, "a", "b")
def compare(given: dict[str, Any], json: Path | None, quiet: bool) -> None:
    """Two models against their original, window by window: which is nearer, and by more than chance?"""
    options = parse_options(CompareOptions, **given)
    console = Console(quiet=quiet, answers=answers(json))
    _say_loading(console)
    from lowbit.recipes.compare import compare as work

    console.say(f"reading {', '.join(Path(each).name for each in (options.a, options.b, options.against))}")
    with console.watch():
        result = work(options, console.on_event)
    record = result.record(options)
    console.answer(_comparison(record))
    save(json, record)


def _comparison(record: Mapping[str, Any]) -> str:
    """The closing lines of ``compare``."""
    names = ("a", "b", "against")
    head = ("model", "perplexity", "KL, nats per token", "same top token, %")
    rows = []
    for label, side in zip(("A", "B", "original"), (record[name] for name in names), strict=True):
        cells = [_with_error(side["perplexity"], side["perplexity_error"]), "-", "-"]
        if "kl" in side:
            cells[1] = _with_error(side["kl"], side["kl_error"])
            cells[2] = _with_error(100 * side["agreement"], _percent(side["agreement_error"]))
        rows.append((f"{label}: {Path(side['path']).name}", *cells))
    lines = [table(head, rows)]
    for key, what in (("kl", "KL"), ("nll", "loss")):
        found = record["difference"][key]
        test = "the same in every window" if found["t"] is None else f"t = {found['t']:.2f}, p = {found['p']:.2g}"
        lines.append(f"{what} of A - B: {_with_error(found['value'], found['error'])} nats per token, {test}")
    lines.append(f"{record['windows']} windows, {record['tokens']} tokens of {record['text']['source']}")
    return "\n".join(lines)


@option_command(
    CompressOptions,
    "model",
    names=("model", "out", "bits", "rank", "quantizer", "samples", "device", "threads"),
    defaults=_DEMO,
    unset={"model": "SmolLM2-135M"},
)
def demo(given: dict[str, Any], json: Path | None, quiet: bool) -> None:
    """Compress SmolLM2-135M to 3 bits, measure it and let it speak; needs no network."""
    console = Console(quiet=quiet, answers=answers(json))
    _say_loading(console)
    from lowbit.demo import bundled_model
    from lowbit.demo import demo as work

    if "model" not in given:
        given["model"] = str(bundled_model())
    save(json, work(parse_options(CompressOptions, **given, **_DEMO_TEXT), console))
