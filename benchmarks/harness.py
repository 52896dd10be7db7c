"""Side-by-side timings that refuse to time a wrong answer.

A topic is a module of this folder with ``def cases(*, quick: bool) -> Iterator[Case]``. For every case the runner

1. calls each contender once and hands all results to the case's *gate*, which raises ``AssertionError`` when one of
   them is wrong. A red gate ends the case: it is reported as failed and no time is taken;
2. times the contenders in turn, round after round, so that a busy moment of the machine hits all of them. The order
   rotates by one place each round, so that none always runs on the caches that another one left;
3. reports median, quartiles and minimum, and the ratio to the baseline as the median of the ratios within a round;
4. where the case asks, calls each contender once more and reports the peak of the resident memory above its start.

``main`` is what ``lowbit bench`` calls; ``python benchmarks/harness.py gptq`` does the same without it.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import ctypes
import gc
import importlib.util
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lowbit.console import save_record

__all__ = ["SCHEMA", "Case", "machine", "main", "peak_extra_bytes", "run", "run_case", "topics", "versions"]

SCHEMA = "lowbit.bench/1"
FOLDER = Path(__file__).resolve().parent

_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "sve")
_PACKAGES = ("lowbit", "numpy", "scipy", "numba", "torch", "triton")


@dataclass(frozen=True)
class Case:
    """One comparison: the same problem solved by several contenders.

    Attributes:
        name: unique within the topic, with the sizes that matter.
        baseline: the contender that all ratios refer to.
        contenders: what to time. A callable takes nothing and returns its result; it must not keep state between
            calls, and everything that is not to be timed (inputs, compilation options) is made before.
        gate: takes ``{contender: result}``, raises ``AssertionError`` when a result is wrong, and returns the figures
            that show how right they are, such as ``{"numba: relative error": 3e-8}``.
        repeats: rounds of timing.
        note: one sentence for the report.
        memory: also measure peak extra memory.
    """

    name: str
    baseline: str
    contenders: dict[str, Callable[[], Any]]
    gate: Callable[[dict[str, Any]], dict[str, float]]
    repeats: int = 5
    note: str = ""
    memory: bool = False

    def __post_init__(self) -> None:
        if self.baseline not in self.contenders:
            raise ValueError(f"case {self.name!r}: baseline {self.baseline!r} is not among the contenders")
        if self.repeats < 1:
            raise ValueError(f"case {self.name!r}: repeats must be at least 1, got {self.repeats}")


def run_case(case: Case, *, on_step: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Gate, time and (where asked) weigh one case; the record of it, see the module's docstring.

    A failed gate gives ``{"status": "failed", "message": ...}`` without a single time. Any other exception of a
    contender is a failure of the case too: something that does not run has no speed.
    """
    step = on_step or (lambda _: None)
    record: dict[str, Any] = {"name": case.name, "note": case.note, "baseline": case.baseline}
    try:
        results: dict[str, Any] = {}
        for name, call in case.contenders.items():
            step(f"{case.name}: checking {name}")
            results[name] = call()
        gate = {key: float(value) for key, value in case.gate(results).items()}
    except Exception as error:
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        return {**record, "status": "failed", "message": f"{kind}{error}" or "the gate gave no reason"}
    results.clear()

    seconds: dict[str, list[float]] = {name: [] for name in case.contenders}
    order = list(case.contenders)
    for round_ in range(case.repeats):
        step(f"{case.name}: round {round_ + 1} of {case.repeats}")
        for name in order:
            seconds[name].append(_timed(case.contenders[name]))
        order = order[1:] + order[:1]

    contenders: dict[str, dict[str, Any]] = {}
    base = np.asarray(seconds[case.baseline])
    for name, values in seconds.items():
        q1, median, q3 = (float(v) for v in np.quantile(values, (0.25, 0.5, 0.75)))
        contenders[name] = {
            "median": median,
            "q1": q1,
            "q3": q3,
            "min": min(values),
            "seconds": values,
            "speedup": float(np.median(base / np.asarray(values))),
        }
        if case.memory:
            step(f"{case.name}: memory of {name}")
            contenders[name]["peak_extra_bytes"] = peak_extra_bytes(case.contenders[name])
    return {**record, "status": "passed", "gate": gate, "repeats": case.repeats, "contenders": contenders}


def _timed(call: Callable[[], Any]) -> float:
    """Wall time of one call; a collection in the middle of it would be charged to the wrong contender."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        result = call()
        stop = time.perf_counter()
    finally:
        if enabled:
            gc.enable()
    del result  # freed after the clock is read
    return stop - start


def peak_extra_bytes(call: Callable[[], Any]) -> int:
    """Peak resident memory during one call, above what was resident before it; the result itself is included.

    On Linux the kernel keeps the peak (it is reset through ``/proc/self/clear_refs``), so nothing is missed between
    two samples and a call that never releases the interpreter lock is measured too. Elsewhere a thread samples.
    """
    gc.collect()
    _release_free_memory()
    before = _resident()
    if _reset_peak():
        result = call()
        peak = _status_field("VmHWM")
    else:
        peak, done = before, threading.Event()

        def sample() -> None:
            nonlocal peak
            while not done.wait(0.001):
                peak = max(peak, _resident())

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            result = call()
        finally:
            done.set()
            thread.join()
        peak = max(peak, _resident())
    del result
    return max(0, peak - before)


def _release_free_memory() -> None:
    """Give freed heap pages back first, else a call is served from them and looks as if it needed nothing."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # not glibc
        return


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status_field(field: str) -> int:
    """A size of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def _resident() -> int:
    if Path("/proc/self/status").exists():
        return _status_field("VmRSS")
    import psutil  # only where there is no /proc

    return int(psutil.Process().memory_info().rss)


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, its cores and vector units, threads in use. No name of the host."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = (part.strip() for part in line.partition(":"))
            if key == "model name":
                model = value
            elif key in ("flags", "Features"):
                flags = set(value.split())
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    info: dict[str, Any] = {
        "cpu": model,
        "architecture": platform.machine(),
        "system": platform.system(),
        "cores": cores,
        "flags": [flag for flag in _FLAGS if flag in flags],
        "threads": {},
    }
    if torch := sys.modules.get("torch"):
        info["threads"]["torch"] = torch.get_num_threads()
        info["accelerator"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    if numba := sys.modules.get("numba"):
        info["threads"]["numba"] = numba.get_num_threads()
    return info


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def topics() -> dict[str, Path]:
    """Topics of this folder: every module that defines ``cases``. Found without importing anything."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "cases" for node in tree.body):
            found[path.stem] = path
    return found


def _load(topic: str, path: Path) -> ModuleType:
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    # Topics say `from harness import Case`: that must be this module, however it was loaded itself.
    sys.modules.setdefault("harness", sys.modules[__name__])
    spec = importlib.util.spec_from_file_location(f"lowbit_bench_{topic}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(
    chosen: Mapping[str, Path], *, quick: bool, on_case: Callable[[str, dict[str, Any]], None] | None = None,
    on_step: Callable[[str], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run topics and return the record ``lowbit.bench/1``.

    Args:
        chosen: topic → file, a part of :func:`topics`.
        quick: small problems and few rounds: proof that everything runs, not figures to publish.
        on_case: called with topic and record when a case is done.
        on_step: called with a line of progress.
    """
    records = []
    for topic, path in chosen.items():
        stream: Iterable[Case] = _load(topic, path).cases(quick=quick)
        for case in stream:
            record = {"topic": topic, **run_case(case, on_step=on_step)}
            records.append(record)
            if on_case:
                on_case(topic, record)
    return {"schema": SCHEMA, "quick": quick, "machine": machine(), "versions": versions(), "cases": records}


def _duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} µs"


def _rows(record: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, c in record["contenders"].items():
        extra = c.get("peak_extra_bytes")
        yield (
            name + (" (baseline)" if name == record["baseline"] else ""),
            _duration(c["median"]),
            f"{_duration(c['q1'])} to {_duration(c['q3'])}",
            _duration(c["min"]),
            f"{c['speedup']:.2f} x",
            "" if extra is None else f"{extra / 2**20:.0f} MiB",
        )


_HEADINGS = ("contender", "median", "quartiles", "min", "speed-up", "extra memory")


def _print_case(topic: str, record: Mapping[str, Any]) -> None:
    """A table per case: with rich where it is installed and someone looks, else aligned text."""
    title = f"{topic}: {record['name']}"
    if record["status"] != "passed":
        print(f"\n{title}\n  GATE RED, not timed: {record['message']}")
        return
    rows = list(_rows(record))
    gate = ", ".join(f"{key} {value:.3g}" for key, value in record["gate"].items())
    footer = [f"  gate green: {gate}" if gate else "  gate green"] + ([f"  {record['note']}"] if record["note"] else [])
    if sys.stdout.isatty() and importlib.util.find_spec("rich") is not None:
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title, title_justify="left")
        for i, heading in enumerate(_HEADINGS):
            table.add_column(heading, justify="right" if i else "left")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
    else:
        widths = [max(len(row[i]) for row in [_HEADINGS, *rows]) for i in range(len(_HEADINGS))]
        print(f"\n{title}")
        for row in [_HEADINGS, *rows]:
            cells = [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
            print("  " + "  ".join(cells).rstrip())
    print("\n".join(footer), flush=True)


def main(topic: str | None = None, quick: bool = False, json: Path | str | None = None) -> int:
    """Run one topic or all of them, print a table per case and write the record.

    Args:
        topic: a name from :func:`topics`; None for all.
        quick: small problems, few rounds.
        json: where to write the record ``lowbit.bench/1``; None for nowhere.

    Returns:
        0 when every gate is green, 1 when one is red, 2 for an unknown topic.
    """
    known = topics()
    if topic is not None and topic not in known:
        print(f"no benchmark {topic!r}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    chosen = known if topic is None else {topic: known[topic]}

    def progress(line: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)

    def show(name: str, record: Mapping[str, Any]) -> None:
        progress("")
        _print_case(name, record)

    with contextlib.redirect_stdout(sys.stderr if str(json) == "-" else sys.stdout):
        record = run(chosen, quick=quick, on_case=show, on_step=progress)
        info = record["machine"]
        threads = ", ".join(f"{n} {name} threads" for name, n in info["threads"].items())
        print(f"\n{info['cpu']}, {info['cores']} cores" + (f", {threads}" if threads else ""))
        print(", ".join(f"{name} {version}" for name, version in record["versions"].items()))
        if quick:
            print("quick run: small problems, not figures to publish")
    if json is not None:
        save_record(Path(json), record)
    return 1 if any(case["status"] != "passed" for case in record["cases"]) else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topic", nargs="?", help=f"one of {', '.join(topics())}; all when left out")
    parser.add_argument("--quick", action="store_true", help="small problems, few rounds")
    parser.add_argument("--json", type=Path, help="write the record here")
    options = parser.parse_args()
    sys.exit(main(options.topic, options.quick, options.json))
