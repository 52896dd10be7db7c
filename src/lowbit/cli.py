"""Sub-commands of ``lowbit``; each imports what it needs when it runs, so that ``lowbit --help`` needs typer alone."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

import lowbit
from lowbit.console import Console, share, write_json

__all__ = ["app", "run"]

app = typer.Typer(
    name="lowbit",
    help="Low-bit compression and adaptation of neural networks: specified, checked, usable on real models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_BAD_INPUT = 2
_INTERRUPTED = 130

Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
Device = Annotated[str, typer.Option(help="Torch device: cpu, cuda, cuda:1 ...")]
Dtype = Annotated[str, typer.Option(help="auto (the model's own), float32, bfloat16 or float16.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; all by default.")]
TextField = Annotated[str, typer.Option(help="Field of JSONL and parquet records.")]


def _missing(name: str) -> str:
    """Hint for a package that a sub-command needs."""
    package = name.partition(".")[0]
    extra = {
        "numba": "numba",
        "llvmlite": "numba",
        "hypothesis": "conformance",
        "pytest": "conformance",
        "jinja2": "report",
        "markupsafe": "report",
    }
    return f"this command needs {package}: pip install 'lowbit[{extra.get(package, 'hf')}]'"


def _save(path: Path | None, record: Mapping[str, Any]) -> None:
    if path is not None:
        write_json(path, record)


@app.command()
def compress(
    model: Annotated[str, typer.Argument(help="Local directory, hub id or GGUF file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output directory.")],
    bits: Annotated[int, typer.Option(help="2, 3, 4 or 8; 16 only prunes.")] = 3,
    group_size: Annotated[int, typer.Option(help="Columns per scale; 0 for one scale per row.")] = 64,
    symmetric: Annotated[bool, typer.Option(help="Symmetric codes: transformers loads them as they are.")] = False,
    quantizer: Annotated[str, typer.Option(help="rtn or gptq.")] = "rtn",
    act_order: Annotated[
        bool | None,
        typer.Option(help="GPTQ: columns by falling importance; with static groups if not said.", show_default="auto"),
    ] = None,
    static_groups: Annotated[bool, typer.Option(help="GPTQ: all group scales from the original weights.")] = True,
    clip_search: Annotated[
        bool | None,
        typer.Option(
            help="Search the clipping ratio of every group; where EoRA follows if not said.", show_default="auto"
        ),
    ] = None,
    adapter_aware: Annotated[
        bool | None,
        typer.Option(
            help="GPTQ and pruning spare what the adapter restores; where EoRA follows if not said.",
            show_default="auto",
        ),
    ] = None,
    damping: Annotated[
        float | None,
        typer.Option(
            help="GPTQ: share of the mean Hessian diagonal; 0.01, or 0.1 where it knows the adapter, if not said.",
            show_default="auto",
        ),
    ] = None,
    sparsity: Annotated[str | None, typer.Option(help="2:4.")] = None,
    pruner: Annotated[str, typer.Option(help="sparsegpt or wanda.")] = "sparsegpt",
    compensate: Annotated[str, typer.Option(help="eora, svd, act-svd or none.")] = "eora",
    rank: Annotated[int, typer.Option(help="Rank of the adapter.")] = 32,
    rounds: Annotated[int, typer.Option(help="Alternations of quantizing and compensating.")] = 1,
    adapter_bits: Annotated[int | None, typer.Option(help="Quantize the adapter: 3, 4 or 8.")] = None,
    calibration: Annotated[
        str, typer.Option(metavar="SOURCE", help="Text, JSONL or parquet file, hub dataset, or python-docs.")
    ] = "python-docs",
    text_field: TextField = "text",
    samples: Annotated[int, typer.Option(help="Calibration samples.")] = 32,
    length: Annotated[int, typer.Option(help="Tokens per sample.")] = 1024,
    sampling: Annotated[str, typer.Option(help="first or random.")] = "first",
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    device: Device = "cpu",
    backend: Annotated[str, typer.Option(help="torch, numba, reference or an import path.")] = "torch",
    dtype: Dtype = "auto",
    threads: Threads = None,
    spectrum: Annotated[bool, typer.Option(help="Record the error spectrum of every layer.")] = True,
    evaluate: Annotated[str | None, typer.Option(metavar="SOURCE", help="Text to measure perplexity on.")] = None,
    evaluate_tokens: Annotated[int, typer.Option(help="Tokens to measure on.")] = 16384,
    evaluate_skip: Annotated[int, typer.Option(help="Tokens to skip first; negative counts from the end.")] = 0,
    evaluate_length: Annotated[int, typer.Option(help="Tokens per window.")] = 1024,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Compress a language model; run the same command again to continue after an interruption."""
    from lowbit.recipes.compress import compress as work
    from lowbit.recipes.options import CompressOptions, parse_options

    fields = {key: value for key, value in locals().items() if key in CompressOptions.model_fields}
    options = parse_options(CompressOptions, **fields)
    console = Console(quiet=quiet)
    console.say(f"reading {Path(model).name}")
    with console.watch():
        result = work(options, console.on_event)
    console.answer(summary(result.record, str(result.out)))
    run_facts = {
        "out": str(result.out),
        "seconds": result.seconds,
        "peak_memory": result.peak_memory,
        "timings": result.timings,
        "already_done": result.already_done,
    }
    _save(json, {**result.record, "run": run_facts})


def summary(record: Mapping[str, Any], out: str) -> str:
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


@app.command(name="eval")
def evaluate(
    path: Annotated[str, typer.Argument(help="Model directory, compressed directory, hub id or GGUF file.")],
    text: Annotated[str, typer.Option(metavar="SOURCE", help="Text, JSONL or parquet file, hub dataset, python-docs.")],
    adapter: Annotated[Path | None, typer.Option(help="PEFT directory made for this base.")] = None,
    skip_tokens: Annotated[int, typer.Option(help="Tokens to skip first; negative counts from the end.")] = 0,
    tokens: Annotated[int | None, typer.Option(help="At most this many tokens.")] = None,
    length: Annotated[int, typer.Option(help="Tokens per window.")] = 1024,
    text_field: TextField = "text",
    device: Device = "cpu",
    dtype: Dtype = "auto",
    threads: Threads = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Perplexity of a model, of a compressed directory, or of that with its adapter."""
    from lowbit.recipes.evaluate import evaluate as work
    from lowbit.recipes.options import EvalOptions, parse_options

    fields = {key: value for key, value in locals().items() if key in EvalOptions.model_fields}
    options = parse_options(EvalOptions, **fields)
    console = Console(quiet=quiet)
    with console.watch():
        result = work(options, console.on_event)
    console.answer(f"perplexity {result.perplexity:.4f} on {result.tokens} tokens of {result.source}")
    _save(json, result.record(options))


@app.command()
def demo(
    model: Annotated[
        str | None, typer.Argument(help="Directory, hub id or GGUF file; SmolLM2-135M by default.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Output directory.")] = Path("demo-out"),
    bits: Annotated[int, typer.Option(help="2, 3, 4 or 8.")] = 3,
    rank: Annotated[int, typer.Option(help="Rank of the adapter.")] = 32,
    quantizer: Annotated[str, typer.Option(help="rtn or gptq.")] = "rtn",
    samples: Annotated[int, typer.Option(help="Calibration samples of 1024 tokens.")] = 16,
    device: Device = "cpu",
    threads: Threads = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Compress SmolLM2-135M to 3 bits, measure it and let it speak; needs no network."""
    from lowbit.demo import bundled_model
    from lowbit.demo import demo as work
    from lowbit.recipes.options import CompressOptions, parse_options

    options = parse_options(
        CompressOptions,
        model=model or str(bundled_model()),
        out=out,
        bits=bits,
        rank=rank,
        quantizer=quantizer,
        samples=samples,
        device=device,
        threads=threads,
        evaluate="python-docs",
        evaluate_skip=-8192,
        evaluate_tokens=8192,
    )
    _save(json, work(options, Console(quiet=quiet)))


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="An adapter or a model directory.")],
    consumers: Annotated[
        str,
        typer.Option("--for", metavar="NAMES", help="Comma-separated: peft, transformers, vllm, llama.cpp, gptqmodel."),
    ] = "peft,transformers,vllm,llama.cpp,gptqmodel",
    json: Json = None,
) -> None:
    """Say which tools load a directory, and why not; exit status 1 if one does not."""
    from lowbit.formats.check import check_directory, record, report_lines

    names = [name.strip() for name in consumers.split(",") if name.strip()]
    kind, verdicts = check_directory(folder, names)
    typer.echo("\n".join(report_lines(folder, kind, verdicts)))
    _save(json, record(folder, kind, verdicts))
    if not all(verdict.passed for verdict in verdicts):
        raise typer.Exit(1)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def conform(context: typer.Context) -> None:
    """Check a backend against the specification: lowbit conform mypackage.backend"""
    from lowbit.conformance.cli import conform as work

    sub = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    sub.command(name="conform")(work)
    _exit(sub(args=context.args, prog_name="lowbit conform", standalone_mode=False))


@app.command()
def bench(
    topic: Annotated[str | None, typer.Argument(help="One topic; all by default.")] = None,
    quick: Annotated[bool, typer.Option(help="Small shapes, few repeats.")] = False,
    json: Json = None,
) -> None:
    """Run the benchmarks of a checkout: correctness first, then medians with quartiles."""
    folder = _benchmarks()
    if folder is None:
        raise _Refusal("lowbit bench runs in a checkout of the project: no benchmarks/ folder was found")
    sys.path.insert(0, str(folder))
    import importlib

    harness = importlib.import_module("harness")
    _exit(harness.main(topic, quick, json))


def _benchmarks() -> Path | None:
    """The checkout's benchmarks: beside the sources of an editable install, else in the working directory."""
    for root in (Path(lowbit.__file__).resolve().parents[2], Path.cwd()):
        if (root / "benchmarks" / "harness.py").is_file():
            return root / "benchmarks"
    return None


@app.command()
def info(json: Json = None) -> None:
    """Versions, backends and devices."""
    backends: dict[str, str] = {}
    for name in lowbit.available():
        try:
            backends[name] = f"{lowbit.load(name).compute_dtype} on {lowbit.load(name).device}"
        except (ImportError, AttributeError) as error:
            backends[name] = f"not available: {error}"
    packages = {}
    for name in (
        "numpy",
        "scipy",
        "numba",
        "torch",
        "transformers",
        "safetensors",
        "gguf",
        "peft",
        "compressed-tensors",
    ):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = "not installed"
    record = {
        "schema": "lowbit.info/1",
        "lowbit": lowbit.__version__,
        "spec": lowbit.SPEC_VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "backends": backends,
        "packages": packages,
    }
    lines = [f"lowbit {lowbit.__version__}, specification {lowbit.SPEC_VERSION}"]
    lines.append(f"Python {record['python']} on {record['platform']}, {record['cpus']} CPUs")
    lines += [f"backend {name:<12} {state}" for name, state in backends.items()]
    lines += [f"{name:<20} {version}" for name, version in packages.items()]
    typer.echo("\n".join(lines))
    _save(json, record)


class _Refusal(Exception):
    """Bad input that no recipe has seen."""


def _exit(code: Any) -> None:
    if isinstance(code, int) and code:
        raise typer.Exit(code)


def _refusals() -> tuple[type[BaseException], ...]:
    """Errors whose message is for the person at the terminal; only modules that a command has loaded can raise them."""
    names = {
        "lowbit.runs.errors": "RecipeError",
        "lowbit.formats.errors": "CheckpointError",
        "lowbit.reference.errors": "SpecError",
    }
    loaded = [getattr(sys.modules[module], name) for module, name in names.items() if module in sys.modules]
    return (*loaded, lowbit.BackendError, _Refusal)


def run(arguments: list[str] | None = None, command: Callable[..., Any] = app) -> int:
    """Run the command line and return its exit status; expected errors become one message on standard error."""
    try:
        result = command(args=arguments, prog_name="lowbit", standalone_mode=False)
        status = result if isinstance(result, int) else 0
    except KeyboardInterrupt:
        status = _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left: nothing more to flush
        status = 1
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith("lowbit"):
            raise
        print(_missing(error.name), file=sys.stderr)
        status = 1
    except Exception as error:
        status = _report(error)
    if status == _INTERRUPTED:
        words = sys.argv[1:] if arguments is None else arguments
        resumes = words[:1] in (["compress"], ["demo"])
        print(
            "interrupted" + (": the same command continues after the last finished block" if resumes else ""),
            file=sys.stderr,
        )
    return status


def _report(error: Exception) -> int:
    """Print an expected error and return its exit status; anything else is a defect and keeps its traceback."""
    show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if type(error).__name__ == "Abort":
        return _INTERRUPTED
    if isinstance(code, int):  # typer's own: a usage error shows itself, Exit carries a status
        if show is not None:
            show()
        return code
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror}", file=sys.stderr)
        return _BAD_INPUT
    if isinstance(error, _refusals()):
        print(f"error: {error}", file=sys.stderr)
        return _BAD_INPUT
    raise error
