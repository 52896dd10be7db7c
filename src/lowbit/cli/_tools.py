"""Commands that look at directories and at the installation: check, bench and info."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

import lowbit
from lowbit.console import show

from ._exits import Refusal
from ._parameters import Json, answers, place, save

__all__ = ["bench", "check", "info"]


def check(
    folder: Annotated[Path, typer.Argument(help="An adapter or a model directory.", parser=place)],
    consumers: Annotated[
        str,
        typer.Option("--for", metavar="NAMES", help="Comma-separated: peft, transformers, vllm, llama.cpp, gptqmodel."),
    ] = "peft,transformers,vllm,llama.cpp,gptqmodel",
    json: Json = None,
) -> None:
    """Say which tools load a directory, and why not; exit status 1 if one does not."""
    from lowbit.formats.check import check_directory, record, report_lines

    names = [name.strip().lower() for name in consumers.split(",") if name.strip()]
    kind, verdicts = check_directory(folder, names)
    show("\n".join(report_lines(folder, kind, verdicts)), answers(json))
    save(json, record(folder, kind, verdicts))
    if not all(verdict.passed for verdict in verdicts):
        raise typer.Exit(1)


def bench(
    topic: Annotated[str | None, typer.Argument(help="One topic; all by default.")] = None,
    quick: Annotated[bool, typer.Option(help="Small shapes, few repeats.")] = False,
    json: Json = None,
) -> None:
    """Run the benchmarks of a checkout: correctness first, then medians with quartiles."""
    folder = _benchmarks()
    if folder is None:
        raise Refusal("lowbit bench runs in a checkout of the project: no benchmarks/ folder was found")
    sys.path.insert(0, str(folder))
    import importlib

    harness = importlib.import_module("harness")
    raise typer.Exit(harness.main(topic, quick, json))


def _benchmarks() -> Path | None:
    """The checkout's benchmarks: beside the sources of an editable install, else in the working directory."""
    for root in (Path(lowbit.__file__).resolve().parents[2], Path.cwd()):
        if (root / "benchmarks" / "harness.py").is_file():
            return root / "benchmarks"
    return None


def info(json: Json = None) -> None:
    """Versions, backends and devices."""
    backends: dict[str, str] = {}
    for name in lowbit.available():
        try:
            backend = lowbit.load(name)
            backends[name] = f"{backend.compute_dtype} on {backend.device}"
        except Exception as error:  # this command is for finding out what is wrong: nothing may stop it
            backends[name] = f"not available: {' '.join(str(error).split()) or type(error).__name__}"
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
    show("\n".join(lines), answers(json))
    save(json, record)
