"""``lowbit conform`` from outside: other folders, other people's modules, exit codes, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import lowbit
from lowbit.conformance.cli import conform as command

ROOT = Path(__file__).resolve().parent.parent.parent
OUTSIDE = '''
"""A backend that knows nothing of lowbit but its specification, loaded as somebody's object."""
import lowbit.reference as spec
from lowbit.reference.errors import Unsupported
from lowbit.reference.protocol import operations

class Loopback:
    name, compute_dtype, device = "loopback", "float64", "cpu"
    asarray, to_numpy = staticmethod(spec.asarray), staticmethod(spec.to_numpy)
    def __getattr__(self, op):
        if op in operations():
            return getattr(spec, op)
        raise AttributeError(op)

loopback = Loopback()

def half_away(x, scale, zero_point, /, *, bits, scheme="asymmetric"):
    import numpy as np
    codes = spec.quantize(x, scale, zero_point, bits=bits, scheme=scheme)
    if np.size(x) == 0:
        return codes
    s = np.repeat(scale, np.shape(x)[-1] // np.shape(scale)[-1], axis=-1)
    z = np.repeat(zero_point, np.shape(x)[-1] // np.shape(scale)[-1], axis=-1)
    low, high = (0, 2**bits - 1) if scheme == "asymmetric" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    r = np.asarray(x, float) / s
    return np.clip(np.copysign(np.floor(np.abs(r) + 0.5), r) + z, low, high).astype(np.int32)

def dequantize(codes, scale, zero_point, /):
    raise Unsupported("no multiplier")

class Partial:
    name, compute_dtype, device = "partial", "float64", "npu:0"
    asarray, to_numpy = staticmethod(spec.asarray), staticmethod(spec.to_numpy)
    quantize, dequantize = staticmethod(half_away), staticmethod(dequantize)

partial = Partial()
'''

VECTORS_ONLY = '''
"""A backend in plain NumPy, for a machine without the specification."""
import numpy as np

class Small:
    name, compute_dtype, device = "small", "float32", "cpu"
    asarray = to_numpy = staticmethod(np.asarray)
    @staticmethod
    def round_half_even(x, /):
        return np.rint(x)
    @staticmethod
    def round_clip(x, /, *, low, high):
        return np.clip(np.rint(x), low, high).astype(np.int32)
    @staticmethod
    def dequantize(codes, scale, zero_point, /):
        width = codes.shape[-1] // scale.shape[-1]
        return np.repeat(scale, width, -1) * (codes - np.repeat(zero_point, width, -1)).astype(scale.dtype)

small = Small()
broken = Small()
broken.round_half_even = lambda x: np.floor(np.asarray(x) + 0.5)
'''

BLOCK = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hypothesis", "pytest") or name.startswith("lowbit.reference"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
import typer
from lowbit.conformance.cli import conform
typer.run(conform)
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unrelated folder with two modules that are not ours."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "theirs.py").write_text(OUTSIDE)
    (folder / "tiny.py").write_text(VECTORS_ONLY)
    (folder / "conftest.py").write_text("raise RuntimeError('somebody else''s conftest was loaded')")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    return folder


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "140"}


def conform(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lowbit.conformance", *words]
    return subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=600)


def statuses(path: Path) -> dict[str, str]:
    return {c["id"]: c["status"] for c in json.loads(path.read_text())["clauses"]}


def test_loopback_passes_everything_and_leaves_nothing_behind(outside: Path) -> None:
    before = set(outside.iterdir())
    forms = [f"--{form}={outside / form}" for form in ("json", "markdown", "html")]
    done = conform(outside, "theirs:loopback", *forms)
    assert done.returncode == 0, done.stdout + done.stderr
    found = statuses(outside / "json")
    assert set(found.values()) == {"pass"}, {k: v for k, v in found.items() if v != "pass"}
    record = json.loads((outside / "json").read_text())
    assert (record["backend"], record["spec"], record["profile"]) == ("loopback", lowbit.SPEC_VERSION, "quick")
    assert "# Conformance of loopback" in (outside / "markdown").read_text()
    assert (outside / "html").read_text().startswith("<!doctype html>")
    assert {p.name for p in set(outside.iterdir()) - before} == {"json", "markdown", "html"}


def test_failures_are_shrunk_and_travel_as_hex(outside: Path) -> None:
    done = conform(outside, "theirs:partial", "--clause=Q", "--json=partial.json", "--html=partial.html")
    assert done.returncode == 1, done.stdout + done.stderr
    found = statuses(outside / "partial.json")
    assert found["Q-3a"] == "fail"
    assert found["Q-4"] == "unsupported"
    assert found["Q-2"] == "not implemented"
    assert found["Q-1"] == "pass"
    notes = {c["id"]: c["note"] for c in json.loads((outside / "partial.json").read_text())["clauses"]}
    assert notes["Q-4"] == "no multiplier"
    assert "no fit_grid" in notes["Q-2"]
    assert "float32(1, 1) [0x" in notes["Q-3a"], "the smallest failing input, in hex"
    assert "falsified by" in notes["Q-3a"]


def test_two_processes_report_what_one_does(outside: Path, tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    words = [
        "--pyargs",
        "lowbit.conformance.suite",
        "-p",
        "lowbit.conformance.plugin",
        "-c",
        str(tmp_path / "pytest.ini"),
    ]
    words += ["--rootdir", str(tmp_path), "--noconftest", "-q", "--lowbit-backend", "theirs:partial"]
    words += [f"--lowbit-clause={c}" for c in ("Q-1", "Q-2", "Q-3", "Q-4", "A-2a")]
    records = []
    for count in ("0", "2"):
        path = tmp_path / f"{count}.json"
        command = [sys.executable, "-m", "pytest", *words, "-n", count, "--lowbit-json", str(path)]
        done = subprocess.run(
            command, cwd=outside, env=environment(outside), capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 1, done.stdout + done.stderr
        records.append(path.read_text())
    assert records[0] == records[1]
    assert '"fail"' in records[0]


def test_expected_failures(outside: Path) -> None:
    (outside / "known.txt").write_text("Q-3a  # rounds half away from zero\n")
    done = conform(outside, "theirs:partial", "--clause=Q-3a", "--xfails=known.txt", "--json=x.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert statuses(outside / "x.json") == {"Q-3a": "xfail"}
    (outside / "known.txt").write_text("Q-1  # once failed\n")
    done = conform(outside, "theirs:partial", "--clause=Q-1", "--xfails=known.txt", "--json=x.json")
    assert done.returncode == 1
    assert statuses(outside / "x.json") == {"Q-1": "fail"}
    assert "take it off the list" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nobody.knows"], "no backend 'nobody.knows'"),
        (["reference", "--clause=Z-1"], "no clause 'Z-1'"),
        (["reference", "--option=threads"], "is not of the form name=value"),
        (["reference", "--option=threads=2"], "takes no options"),
        (["reference", "--xfails=missing.txt"], "missing.txt"),
        (["reference", "--vectors-only", "--clause=Z-1"], "no clause 'Z-1'"),
    ],
)
def test_wrong_calls_stop_with_one_line(words: list[str], message: str) -> None:
    app = typer.Typer()
    app.command()(command)
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 2
    assert message in found.output
    assert len(found.output.splitlines()) == 1


def test_a_module_of_the_current_folder_is_found(outside: Path) -> None:
    """As the console script: without the current folder on the path."""
    command = [sys.executable, "-P", "-m", "lowbit.conformance", "tiny:small", "--vectors-only", "--clause=R-1"]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=outside, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "small on cpu, profile vectors" in done.stdout


@pytest.mark.parametrize("module", [["-m", "lowbit", "conform"], ["-m", "lowbit.conformance"], None])
def test_a_registered_backend_does_not_come_from_the_current_folder(module: list[str] | None, tmp_path: Path) -> None:
    """Neither its dependencies, nor the command's, nor a package that registers the same name."""
    trap = f"open({str(tmp_path / 'ran')!r}, 'w').write(__name__)\nraise ImportError\n"
    for name in ("typer", "scipy", "jinja2", "evil"):
        (tmp_path / f"{name}.py").write_text(trap)
    claim = tmp_path / "evil-1.dist-info"
    claim.mkdir()
    (claim / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1\n")
    (claim / "entry_points.txt").write_text("[lowbit.backends]\nreference = evil\n")
    script = ["-P", "-c", "import sys; from lowbit.__main__ import main; main()", "conform"]
    words = ["reference", "--vectors-only", "--clause=R-1"]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *(module or script), *words],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "ran").exists()


def test_unknown_id_in_the_xfail_file_stops_the_run(outside: Path) -> None:
    (outside / "wrong.txt").write_text("Q-77  # no such clause\n")
    done = conform(outside, "reference", "--xfails=wrong.txt")
    assert done.returncode == 2
    assert "wrong.txt:1: no clause 'Q-77'" in done.stderr


def test_vectors_need_neither_hypothesis_nor_the_specification(outside: Path) -> None:
    def run(backend: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", BLOCK, backend, "--vectors-only", *words]
        return subprocess.run(
            command, cwd=outside, env=environment(outside), capture_output=True, text=True, timeout=120
        )

    done = run("tiny:small", "--json=v.json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = statuses(outside / "v.json")
    assert (found["R-1"], found["R-2"], found["Q-4"], found["E-2"]) == ("pass", "pass", "pass", "not implemented")
    done = run("tiny:broken", "--clause=R")
    assert done.returncode == 1
    assert "round_half_even, case 0 of R-1.json (multiples of 1/8)" in done.stdout


MISSING = """
import runpy, sys
absent = sys.argv[1].split(",")
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
sys.argv[:] = ["lowbit.conformance", *sys.argv[2:]]
runpy.run_module("lowbit.conformance", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("name", ["typer", "hypothesis", "pytest"])
def test_says_what_is_missing(outside: Path, name: str) -> None:
    command = [sys.executable, "-c", MISSING, name, "tiny:small", "--clause=R-1"]
    done = subprocess.run(command, cwd=outside, env=environment(outside), capture_output=True, text=True, timeout=120)
    assert done.returncode in (1, 2)
    assert re.search(rf"needs {name}: pip install .*\[conformance\]", done.stderr)
    assert len(done.stderr.splitlines()) == 1


def test_vectors_need_numpy_alone(outside: Path) -> None:
    command = [sys.executable, "-c", MISSING.split("sys.argv[:]")[0] + """
import tiny
from lowbit.conformance import vectors
print(*(result.status for result in vectors.check(tiny.small, ["R-1", "E-2"])), sep=", ")
""", "typer,rich,hypothesis,pytest,jinja2,scipy"]  # fmt: skip
    done = subprocess.run(command, cwd=outside, env=environment(outside), capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("pass, not implemented", "")


def test_runs_from_an_installed_copy(outside: Path, tmp_path: Path) -> None:
    """What a wheel installs: real folders, no repository around them; and no file is added to it."""
    site = tmp_path / "site-packages"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src" / "lowbit", site / "lowbit", symlinks=True, ignore=ignore)
    for part in ("reference", "accel", "conformance"):
        (site / "lowbit" / part).unlink(missing_ok=True)
        shutil.copytree(ROOT / part, site / "lowbit" / part, ignore=ignore)
    before = set(site.rglob("*"))
    env = {**environment(outside), "PYTHONPATH": f"{site}{os.pathsep}{outside}"}
    del env["PYTHONDONTWRITEBYTECODE"]
    where = [sys.executable, "-B", "-c", "import lowbit.conformance.suite as s; print(s.__file__)"]
    located = subprocess.run(where, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert str(site) in located.stdout
    command = [sys.executable, "-B", "-m", "lowbit.conformance", "theirs:loopback", "--clause=R", "--json=r.json"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(statuses(tmp_path / "r.json").values()) == {"pass"}
    assert set(site.rglob("*")) == before
