"""An operation is added to a copy of the tree: what CONTRIBUTING lists is all that it takes, and no more than 12 files.

The operation is ``m * ceil(x / m)``. Its edits stand here as insertions; afterwards the tests of the copy, the clause
on every backend, its calls in the contract suite and its mutant must say what they say of any other operation.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")
pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parent.parent
MOST = 12
COPIED = (
    "reference", "accel", "conformance", "src", "tests", "docs", "pyproject.toml", "README.md", "CONTRIBUTING.md",
)  # fmt: skip

NAMED = ('"round_half_even"]', '"round_up", ')  # in the list of what a file exports

# file → (text that is there once, text that goes before it)
EDITS: dict[str, tuple[tuple[str, str], ...]] = {
    "reference/rounding.py": (
        NAMED,
        (
            "def nearest_level(",
            '''def round_up(x: npt.ArrayLike, /, *, multiple: int = 1) -> F64:
    """Smallest multiple that is not below.  [R-4]

    Shapes: any.

    >>> round_up([0.5, 4.0, 4.5], multiple=4).tolist()
    [4.0, 4.0, 8.0]
    """
    m = checks.whole(multiple, "multiple", "R-4", low=1)
    return np.ceil(checks.finite(x, "x", "R-4") / m) * m


''',
        ),
    ),
    "reference/protocol/codes.py": (
        (
            "    def nearest_level(",
            "    def round_up(self, x: Arr, /, *, multiple: int = 1) -> Arr: ...  # R-4, as x\n",
        ),
    ),
    "conformance/clauses.py": (
        (
            '    ("R-3a",',
            '    ("R-4", "the smallest multiple not below", "core", "exact", "round_up"),\n',
        ),
    ),
    "conformance/suite/test_rounding.py": (
        (
            '@clause("R-3", ',
            '''@clause("R-4", tier="exact", x=strategies.dyadic())
def test_rounds_up(kit: Kit, x: Array) -> None:
    """Halves of multiples of 1/8 are exact, so only the direction decides."""
    kit.check(compare.exact(kit.call("round_up", x, multiple=2), 2 * np.ceil(x / 2), "rounded up"))


''',
        ),
    ),
    "conformance/calls/rounding.py": (
        ('        Call("nearest_level",', '        Call("round_up", (w,), {"multiple": 4}),\n'),
        ('        Empty("nearest_level",', '        Empty("round_up", (floats(0, 3),), {}, (0, 3)),\n'),
        (
            '        Wrong("nearest_level", (w, floats(0)',
            '        Wrong("round_up", (w,), {"multiple": 0}, ("0",)),\n',
        ),
    ),
    "tests/mutants/rounding.py": (
        ('edit(\n    "R-3",', 'edit("R-4", "rounds down", "rounding", "round_up", ("np.ceil", "np.floor"))\n'),
    ),
    "accel/numba_cpu/rounding.py": (
        NAMED,
        (
            "def nearest_level(",
            '''def round_up(x: Array, /, *, multiple: int = 1) -> Array:
    """Smallest multiple that is not below.  [R-4]"""
    if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
        raise SpecError("R-4", f"multiple must be an integer of at least 1, got {multiple!r}")
    given = weights("R-4", "x", x)
    source = fixed(given, working_dtype(given))
    refuse_bad("R-4", "x", source)
    return np.asarray(np.ceil(source / multiple) * multiple, source.dtype)


''',
        ),
    ),
    "accel/torch_cuda/rounding.py": (
        NAMED,
        (
            "@operation\ndef nearest_level(",
            '''@operation
def round_up(x: Tensor, /, *, multiple: int = 1) -> Tensor:
    """Smallest multiple that is not below.  [R-4]"""
    if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
        raise SpecError("R-4", f"multiple must be an integer of at least 1, got {multiple!r}")
    x = as_weights("R-4", "x", x)
    refuse_nan("R-4", "x", x)
    return torch.ceil(x.to(working_dtype(x)) / multiple) * multiple


''',
        ),
    ),
    "conformance/frozen/rounding.py": (
        (
            '    table.exactly("R-3a",',
            '    table.exactly("R-4", "either side of multiples", [ties], multiple=2)\n',
        ),
    ),
    "docs/chapters/rounding.md": (("## Traps", "::: lowbit.reference.rounding.round_up\n\n"),),
}

WRITTEN = ("conformance/vectors/v1/R-4.json", "conformance/vectors/v1/notes.json")  # from the inputs and the mutants

CONFORM = """
import json, shutil, tempfile
from pathlib import Path
from types import SimpleNamespace
import lowbit, lowbit.reference
from lowbit.conformance import frozen, vectors
from lowbit.conformance.runner import run
from tests.mutants import by_clause, killers

assert lowbit.__file__.startswith(FOLDER), lowbit.__file__
for name in ("reference", "numba", "torch"):
    backend = lowbit.load(name)
    about = {n: getattr(backend, n) for n in ("name", "compute_dtype", "device", "asarray", "to_numpy")}
    alone = SimpleNamespace(round_up=backend.round_up, **about)
    found = {o.check.clause.id: o.status for o in run(alone, ["R-4", "A"])}
    assert len(found) == 10 and set(found.values()) == {"pass"}, (name, found)
(mutant,) = by_clause()["R-4"]
assert killers(mutant, 25) == ["test_rounds_up"]
with tempfile.TemporaryDirectory() as made:
    frozen.write(Path(made), [mutant])
    shutil.copy(Path(made, "R-4.json"), Path(FOLDER, "conformance/vectors/v1"))
    assert list(json.loads(Path(made, "notes.json").read_text())["notes"]) == ["R-4/rounds-down"]
for name in ("reference", "numba", "torch"):
    (found,) = vectors.check(lowbit.load(name), ["R-4"])
    assert found.status == "pass", found
"""


def shapes() -> list[str]:
    """The files that CONTRIBUTING names under its heading, as regular expressions."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("### An operation")[1].split("\n## ")[0]
    rows = re.findall(r"^\| \d+ \| `([^`]+)`", text, re.MULTILINE)
    return [re.sub(r"<\w+>", r"[\\w-]+", re.escape(row).replace(r"\<", "<").replace(r"\>", ">")) for row in rows]


def test_what_contributing_lists_is_enough(tmp_path: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, tmp_path / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, tmp_path / name)
    for path, edits in EDITS.items():
        text = (tmp_path / path).read_text(encoding="utf-8")
        for there, before in edits:
            assert text.count(there) == 1, f"{path} has {text.count(there)} of {there!r}"
            text = text.replace(there, before + there)
        (tmp_path / path).write_text(text, encoding="utf-8")
    touched = [*EDITS, *WRITTEN]
    listed = shapes()
    assert len(touched) <= MOST
    assert len(listed) <= MOST
    assert not [path for path in touched if not any(re.fullmatch(shape, path) for shape in listed)]

    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'src'}{os.pathsep}{tmp_path}"}
    tests = [
        "tests/test_layout.py", "tests/test_docs.py", "tests/reference/test_contract.py",
        "tests/accel/test_numba_backend.py", "tests/accel/test_torch_backend.py", "tests/conformance/test_kit.py",
        "tests/conformance/test_mutants.py",
    ]  # fmt: skip
    wanted = "round_up or R-4 or registry or every_operation or every_clause_has_a_mutant or export or on_one_chapter"
    for words in (
        ["-c", f"FOLDER = {str(tmp_path)!r}\n{CONFORM}"],
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", f"({wanted}) and not vectors", *tests],
    ):
        run = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
            timeout=600,
        )  # fmt: skip
        assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    assert "passed" in run.stdout
