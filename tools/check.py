"""The inner loop: everything that concerns one chapter of the specification, in half a minute.

``make check CHAPTER=eigenspace`` runs this. A chapter is named by its letter, by a file of ``reference/`` or by one of
the conformance suite. Its reference tests and doctests run, its clauses on the three backends (quick profile), the
mutants of these clauses, and whatever in ``tests/accel`` names its files or operations. What belongs to it is read
from the sources, so there is no list to keep. Triton's interpreter takes minutes and stays with ``make test``.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lowbit import reference
from lowbit.conformance.clauses import chapters

__all__ = ["Job", "Target", "jobs", "main", "names", "target"]

ROOT = Path(__file__).resolve().parent.parent
BACKENDS = ("reference", "numba", "torch")
NOTHING_COLLECTED = 5
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")} | {"NUMBA_NUM_THREADS": "2"}


@dataclass(frozen=True)
class Target:
    """What one name stands for."""

    modules: tuple[str, ...]  # files of reference/
    suites: tuple[str, ...]  # files of the conformance suite
    clauses: tuple[str, ...]  # ids that the suite checks
    operations: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """One process."""

    title: str
    arguments: tuple[str, ...]  # of python -m


@functools.cache
def _modules() -> dict[str, str]:
    """File of the specification → letter of the chapter whose clauses its docstrings cite most."""
    found = {}
    for path in sorted((ROOT / "reference").glob("*.py")):
        cited = Counter(re.findall(r"\[([A-Z])-\d", path.read_text(encoding="utf-8")))
        if cited:
            found[path.stem] = cited.most_common(1)[0][0]
    return found


@functools.cache
def _suites() -> dict[str, tuple[str, ...]]:
    """File of the suite → ids of the clauses that it checks."""
    found = {}
    for path in sorted((ROOT / "conformance" / "suite").glob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        found[path.stem.removeprefix("test_")] = tuple(re.findall(r'^@clause\(\s*"([A-Z]-\w+)"', text, re.MULTILINE))
    return found


def names() -> list[str]:
    """Everything that :func:`target` understands."""
    tested = {p.stem.removeprefix("test_") for p in (ROOT / "tests" / "reference").glob("test_*.py")}
    return [*chapters(), *sorted((set(_modules()) & tested) | set(_suites()))]


def target(name: str) -> Target:
    """The files, clauses and operations of a letter, or of a file name and, for what has no such file, of its chapter.

    Raises:
        KeyError: an unknown name.
    """
    if name not in names():
        raise KeyError(name)
    modules, suites = _modules(), _suites()
    letter = name if name in chapters() else modules.get(name) or suites[name][0][0]
    files = [name] if name in modules else [m for m, chapter in modules.items() if chapter == letter]
    checked = [name] if name in suites else [s for s, ids in suites.items() if letter in {c[0] for c in ids}]
    clauses = dict.fromkeys(c for suite in checked for c in suites[suite] if c[0] == letter)
    homes = {op: getattr(reference, op).__module__.rpartition(".")[2] for op in reference.__all__}
    operations = (op for op, home in homes.items() if home in files)
    return Target(tuple(files), tuple(checked), tuple(clauses), tuple(operations))


def jobs(what: Target) -> list[Job]:
    """The processes, longest first."""
    pytest = ("pytest", "-q", "--no-header", "-p", "no:cacheprovider", "-m", "not slow")
    words = " or ".join(dict.fromkeys((*what.modules, *what.operations)))
    accel = Job("tests/accel", (*pytest, "tests/accel", "--ignore-glob=*triton*", "-k", words))
    chosen = tuple(f"--clause={c}" for c in what.clauses)
    suites = [Job(f"suite on {b}", ("lowbit", "conform", b, *chosen)) for b in reversed(BACKENDS)]
    killed = " or ".join(f"[{c}:" for c in what.clauses)
    mutants = Job("mutants", (*pytest, "tests/conformance/test_mutants.py", "-k", killed))
    tests = [f"tests/reference/test_doctests.py::test_doctests[lowbit.reference.{m}]" for m in what.modules]
    for pattern in ("test_{}.py", "test_golden_{}.py"):
        paths = [f"tests/reference/{pattern.format(m)}" for m in dict.fromkeys((*what.modules, *what.suites))]
        tests += [path for path in paths if (ROOT / path).exists()]
    return [accel, *suites, mutants, Job("tests/reference", (*pytest, *tests))]


def _run(job: Job) -> tuple[Job, int, str, float]:
    start = time.perf_counter()
    environment = {**os.environ, **ONE_THREAD, "TOKENIZERS_PARALLELISM": "false"}
    run = subprocess.run(
        [sys.executable, "-m", *job.arguments], cwd=ROOT, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return job, 0 if run.returncode == NOTHING_COLLECTED else run.returncode, run.stdout, time.perf_counter() - start


def main(words: Sequence[str] | None = None) -> int:
    """Exit status 0 when all is well, 1 when something failed, 2 for a name that is no chapter."""
    parser = argparse.ArgumentParser(prog="make check CHAPTER=…", description=__doc__)
    parser.add_argument("chapter", nargs="?", default="", help="letter, file of reference/, or file of the suite")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time (2)")
    options = parser.parse_args(words)
    try:
        what = target(options.chapter)
    except KeyError:
        letters = "\n".join(f"  {letter}  {title}" for letter, title in chapters().items())
        files = ", ".join(n for n in names() if n not in chapters())
        print(f"no chapter {options.chapter!r}: CHAPTER is one of\n{letters}\nor of\n  {files}", file=sys.stderr)
        return 2
    start, failed = time.perf_counter(), False
    with ThreadPoolExecutor(options.workers) as pool:
        for job, status, output, seconds in pool.map(_run, jobs(what)):
            if status:
                failed = True
                print(f"{output}\n--- {job.title} failed: python -m {' '.join(job.arguments)}")
            last = re.findall(r"^\W*(\d+ (?:passed|failed|deselected).*?) in [\d.]+s", output, re.MULTILINE)
            print(f"{job.title:20} {seconds:5.1f} s  {last[-1] if last else output.strip()[-80:]}", flush=True)
    print(f"{'all' if not failed else 'FAILED':20} {time.perf_counter() - start:5.1f} s")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
