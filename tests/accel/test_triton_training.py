"""Kernels of the training-side chapters: against torch and the kit in the interpreter, and compiled for CUDA."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

FOLDER = Path(__file__).resolve().parent

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def run(*words: str | Path, interpret: bool, strict: bool = True) -> str:
    """Output of a Python of its own, because triton decides when a kernel is defined whether to interpret it."""
    environment = {**os.environ, "TRITON_INTERPRET": str(int(interpret)), "OMP_NUM_THREADS": "1"}
    flags = ["-W", "error"] if strict else []
    command = [sys.executable, *flags, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout.strip()


@pytest.mark.parametrize("chapter", ["T", "S", "O", "L", "W", "X"])
def test_kernels_compute_what_torch_computes(chapter: str) -> None:
    """Sizes beside the blocks, halves, strided and empty inputs, and what is refused."""
    assert run(FOLDER / "triton_cases.py", chapter, interpret=True) == "compared 1"


KIT = {
    "T": ("T",),
    "S": ("S-2", "S-3", "S-4", "S-5", "S-6"),
    "O": ("O-1", "O-2", "O-3", "O-4"),
    "L": ("L-8", "L-9", "L-10", "L-11"),
    "W": ("W-5",),
    "X": ("X-1", "X-2", "X-3"),
    "A": ("A",),
}


@pytest.mark.parametrize("chapter", KIT)
def test_the_kit_finds_nothing(chapter: str, tmp_path: Path) -> None:
    """Clauses of the operations that have kernels, and the contract that all of them keep."""
    record = tmp_path / "record.json"
    clauses = [word for clause in KIT[chapter] for word in ("--clause", clause)]
    words = ("-m", "lowbit", "conform", "torch", "--option", "kernels=triton", *clauses, "--json", record)
    run(*words, interpret=True, strict=False)
    found = {c["id"]: c["status"] for c in json.loads(record.read_text())["clauses"]}
    assert found
    assert set(found.values()) == {"pass"}, found


def ptxas() -> bool:
    """Whether there is an assembler for CUDA: triton's own, or one that is installed."""
    spec = importlib.util.find_spec("triton")
    own = Path(spec.origin).parent / "backends/nvidia/bin/ptxas" if spec is not None and spec.origin else Path()
    return own.is_file() or shutil.which("ptxas") is not None


@pytest.mark.skipif(not ptxas(), reason="no ptxas: this triton does not bring one")
def test_every_kernel_compiles_for_cuda() -> None:
    """All kernels, those of the other chapters too, as they are launched; for capability 9.0 one variant of each."""
    assert run(FOLDER / "triton_launches.py", "80", "90", interpret=False).startswith("compiled ")
