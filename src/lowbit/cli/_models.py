"""Commands that work on a model: compress, eval and demo."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from lowbit.console import Console, estimated, share
from lowbit.recipes.options import CompressOptions, EvalOptions, parse_options
from lowbit.runs.events import Estimated

from ._parameters import answers, option_command, save

__all__ = ["compress", "demo", "evaluate"]

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
        f"{out}: {totals['bytes_before']:,} bytes before, {totals['bytes_after']:,} after "
        f"({totals['ratio']:.2f} times smaller); {error}"
    ]
    measured = record.get("perplexity")
    if measured:
        known = [
            f"{name} {measured[name]:.3f}"
            for name in ("base", "compressed", "compensated")
            if measured.get(name) is not None
        ]
        lines.append(f"perplexity: {', '.join(known)} ({measured['tokens']} tokens of {measured['source']})")
    lines.append(f"report: {out}/report.html; loads with: {record['loads_with']['transformers']}")
    return "\n".join(lines)


@option_command(EvalOptions, "path")
def evaluate(given: dict[str, Any], json: Path | None, quiet: bool) -> None:
    """Perplexity of a model, of a compressed directory, or of that with its adapter."""
    options = parse_options(EvalOptions, **given)
    console = Console(quiet=quiet, answers=answers(json))
    _say_loading(console)
    from lowbit.recipes.evaluate import evaluate as work

    console.say(f"reading {Path(options.path).name}")
    with console.watch():
        result = work(options, console.on_event)
    console.answer(f"perplexity {result.perplexity:.4f} on {result.tokens} tokens of {result.source}")
    save(json, result.record(options))


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
