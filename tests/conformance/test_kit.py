"""The kit about itself: hygiene, counter-examples, vectors, and the parts a report is made of."""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lowbit
from lowbit import reference
from lowbit.conformance import calls, hexfloat, vectors
from lowbit.conformance.clauses import CLAUSES, ClauseError, chapters, clause
from lowbit.conformance.judging import Judge, part
from lowbit.conformance.kit import Kit
from lowbit.conformance.recording import record
from lowbit.conformance.rules import Earlier
from lowbit.conformance.runner import run
from lowbit.reference.errors import Unsupported
from lowbit.reference.protocol import operations
from lowbit.reference.types import Table
from tests.mutants import by_clause

FOLDER = Path(__file__).resolve().parent.parent.parent / "conformance"
SOURCES = sorted(p for p in FOLDER.rglob("*.py"))
ALLOWED = {"lowbit", "hypothesis", "pytest", "numpy", "typer", "__future__"}


def backend(**ops: Any) -> SimpleNamespace:
    members: dict[str, Any] = {op: getattr(reference, op) for op in operations()}
    members.update(asarray=np.asarray, to_numpy=np.asarray, name="test", compute_dtype="float64", device="cpu")
    return SimpleNamespace(**{**members, **ops})


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_imports(path: Path) -> None:
    """NumPy, Hypothesis, pytest, typer, the root and the specification; never a backend."""
    import sys

    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        for name in names:
            top = name.split(".")[0]
            assert top in ALLOWED or top in sys.stdlib_module_names, f"{path.name} imports {name}"
            assert not name.startswith(("lowbit.accel", "lowbit.recipes", "lowbit.formats")), f"{path.name}: {name}"


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.name not in ("compare.py", "strategies.py")], ids=lambda p: p.name
)
def test_no_tolerance_outside_compare(path: Path) -> None:
    """No small literal, no allclose: a bound has a name and a derivation."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, float):
            assert node.value == 0 or abs(node.value) >= 0.01, f"{path.name}:{node.lineno} holds {node.value}"
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("allclose", "isclose", "approx", "assert_allclose"), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("name", ["compare", "clauses", "hexfloat", "options", "runner"])
def test_doctests(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"lowbit.conformance.{name}")).failed == 0


def test_registry() -> None:
    assert {c.chapter for c in CLAUSES.values()} == set(chapters())
    needed = {op for c in CLAUSES.values() for op in c.ops}
    assert needed == set(operations()) - {"moment_total"} | {"moment_total"}
    assert {call.op for call in calls.ordinary()} == set(operations()), "A-1 to A-4 need an ordinary call"
    assert {call.op for call in calls.wrong()} >= set(operations()) - {
        "round_half_even",  # takes any array
        "moment_merge",  # clause C-2b
        "moment_total",
    }
    with pytest.raises(ClauseError, match="no clause"):
        clause("Q-99", tier="exact")
    with pytest.raises(ClauseError, match="in tier tie-band"):
        clause("Q-3", tier="exact")


def test_hex_floats_lose_nothing() -> None:
    for array in (
        np.array([0.1, -0.0, np.inf, np.nan, 5e-324]),
        np.array([[0.1, 65504]], np.float16),
        np.array(2.5, np.float32),
        np.array([[1, -2]], np.int32),
        np.array([True, False]),
        np.zeros((0, 3), np.float32),
    ):
        back = hexfloat.decode(hexfloat.encode(array))
        assert back.dtype == array.dtype
        assert back.shape == array.shape
        assert back.tobytes() == array.tobytes()
    with pytest.raises(TypeError, match="only float, integer and bool"):
        hexfloat.encode(np.array(["a"]))
    assert "44 more" in hexfloat.describe(np.zeros(300))
    assert hexfloat.describe({"rank": 3, "w": [0.5]}) == "{rank=3, w=[0x1p-1]}"


def test_statuses_of_a_check() -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise Unsupported("no such unit")

    def partly(x: Any, scale: Any, zero_point: Any, /, *, bits: int, scheme: str = "asymmetric") -> Any:
        if bits > 4:
            raise Unsupported("4 bits at most")
        return reference.quantize(x, scale, zero_point, bits=bits, scheme=scheme)  # type: ignore[arg-type]

    (whole,) = (o for o in run(backend(dequantize=refuse), ["Q-4"], examples=5))
    assert (whole.status, whole.note, whole.margin) == ("unsupported", "no such unit", None)
    found = [o for o in run(backend(quantize=partly), ["Q-3"], examples=25) if o.check.clause.id == "Q-3"]
    assert found[0].status == "pass"
    assert "4 bits at most" in found[0].note
    without = backend()
    del without.quantize
    assert {o.status for o in run(without, ["Q-3"], examples=5)} == {"not implemented"}


def test_counter_example_is_shrunk() -> None:
    """The smallest input on which half-even and half-away differ has one entry that is not zero."""

    def half_away(x: Any, /) -> Any:
        return np.copysign(np.floor(np.abs(x) + 0.5), x)

    outcome = next(o for o in run(backend(round_half_even=half_away), ["R-1"], shrink=True) if o.status == "fail")
    assert outcome.margin == float("inf")
    assert "x = float32() [0x1p-1]" in outcome.note
    assert "last call: round_half_even(float32() [0x1p-1])" in outcome.note


def test_missing_fields_and_wrong_refusals_are_told() -> None:
    kit = Kit(backend(fit_grid=lambda x, **_: (1, 2)))
    with pytest.raises(AssertionError, match=r"without the field\(s\) scale, zero_point of Grid"):
        kit.call("fit_grid", np.ones((1, 2)), bits=4)
    kit = Kit(backend())
    with pytest.raises(AssertionError, match="answered ndarray instead of raising SpecError"):
        kit.refused("round_half_even", np.ones(1), clauses=("R",))
    with pytest.raises(AssertionError, match="cites clause 'Q-1', expected G"):
        kit.refused("fit_grid", np.ones((1, 2)), bits=9, clauses=("G",))
    with pytest.raises(AssertionError, match="does not say 'seventeen'"):
        kit.refused("fit_grid", np.ones((1, 2)), bits=9, clauses=("Q",), words=("seventeen",))


def test_frozen_vectors_agree_with_the_specification() -> None:
    results = vectors.check(reference)
    assert {r.status for r in results} == {"pass"}, [r for r in results if r.status != "pass"]
    assert len(results) == len(list(vectors.load())) > 30


@pytest.mark.parametrize("name", ["numba", "torch"])
def test_frozen_vectors_agree_with_the_fast_backends(name: str) -> None:
    """Vectors bring types of their own for tuples: a backend may ask for fields, not for a class."""
    pytest.importorskip(name)
    results = vectors.check(lowbit.load(name))
    assert {r.status for r in results} == {"pass"}, [r for r in results if r.status != "pass"]


def test_frozen_vectors_are_the_ones_that_would_be_written(tmp_path: Path) -> None:
    """Inputs and integers to the byte; floats may differ in the last digits between linear algebra libraries."""

    def bones(text: str) -> str:
        import json

        record = json.loads(text)
        for case in record["cases"]:
            for rule in case["expect"]:
                computed = [
                    "value",
                    "magnitude",
                    "ratio",
                    "roundings",
                    "optimum",
                    "norm",
                    "band",
                    "wide",
                    "low",
                    "high",
                ]
                computed += ["costs", "fitness", "objective", "spectrum", "z"]
                computed += ["d", "c"] if rule["rule"] == "residual" else []
                for key in computed:
                    if not (key == "value" and isinstance(rule.get(key), dict) and rule[key]["dtype"][0] in "ib"):
                        rule.pop(key, None)
        return json.dumps(record)

    for path in vectors.write(tmp_path):
        frozen = vectors.folder().joinpath(path.name).read_text(encoding="utf-8")
        assert bones(frozen) == bones(path.read_text(encoding="utf-8")), f"{path.name}: bump SPEC_VERSION to change it"


def test_every_clause_has_vectors_or_a_reason() -> None:
    """One or the other; a clause that has no vector is one of those that none can show."""
    shown = {record["clause"] for record in vectors.load()}
    assert shown.isdisjoint(vectors.WITHOUT)
    assert shown | set(vectors.WITHOUT) == set(CLAUSES)


def test_vectors_are_small() -> None:
    files = [f for f in vectors.folder().iterdir() if f.name.endswith(".json")]
    sizes = {f.name: len(f.read_bytes()) for f in files}
    assert sum(sizes.values()) < 3 * 2**19, "frozen vectors are to stay small"
    assert max(sizes.values()) < 2**16, max(sizes, key=lambda name: sizes[name])


@pytest.mark.parametrize("identifier", [i for i in CLAUSES if i not in vectors.WITHOUT])
def test_every_rule_can_fail(identifier: str) -> None:
    """The specification's own answer, changed where a rule looks, by more than its bound: every single rule notices."""
    spec = backend()
    for file in vectors.load([identifier]):
        earlier: list[Any] = []
        for case in file["cases"]:
            given = [vectors.argument(a) for a in case["arrays"]]
            given = [part(spec, earlier[a.case], a.field) if isinstance(a, Earlier) else a for a in given]
            result = getattr(spec, case.get("op", file["op"]))(*given, **case["options"])
            earlier.append(result)
            for rule in case["expect"]:
                judged = Judge(spec, given, result, earlier)
                assert all(c.ok for c in judged(rule)), (file["file"], case["about"], rule["field"])
                wrong = Spoiled(spec, given, result, earlier, rule)
                if rule["rule"] in ("objective", "residual") or wrong.part(rule["field"]).size:
                    bad = [c for c in wrong(rule) if not c.ok]
                    assert bad, f"{file['file']}, {case['about']}: nothing notices a wrong {rule['field'] or 'result'}"


class Spoiled(Judge):
    """A judge that is shown another answer than the one that was given."""

    def __init__(self, backend: Any, inputs: list[Any], result: Any, earlier: list[Any], rule: dict[str, Any]) -> None:
        super().__init__(backend, inputs, result, earlier)
        self.rule = rule

    def part(self, path: str) -> Any:
        """What stands there, and much more; less where more is no fault; other signs, other codes."""
        true = part(self.backend, self.result, path)
        if self.rule["rule"] in ("objective", "residual"):
            return 64 * true + 1
        if path not in (self.rule["field"], "best") or true.dtype.kind == "b":
            return ~true if true.dtype.kind == "b" else true
        if true.dtype.kind in "iu":
            return true + 2
        bound = float(self.allowed(self.rule).max()) if "magnitude" in self.rule else 0.0
        far = 1 + 4 * np.abs(true[np.isfinite(true)]).max(initial=0.0) + (4 * bound if np.isfinite(bound) else 0.0)
        if self.rule["rule"] == "certificate":
            far = far + np.abs(hexfloat.decode(self.rule["optimum"])).max()
        return np.where(np.isfinite(true), true - far if self.rule.get("least") else true + far, 0.0)

    def allowed(self, rule: dict[str, Any], path: str | None = None) -> Any:
        """Bounds are those of the true answer."""
        given = "B" if rule["rule"] == "residual" else "best" if rule["rule"] == "trajectory" else None
        return Judge(self.backend, self.inputs, self.result, self.earlier).allowed(rule, path or given)


REFUSALS = {"X-9a"}
"""Clauses whose mutants all answer where a refusal is due: a vector has no refusals."""


@pytest.mark.parametrize("identifier", [i for i in CLAUSES if i not in vectors.WITHOUT])
def test_vectors_kill_mutants(identifier: str) -> None:
    """Of the wrong backends of every clause the vectors alone catch one at least; of all of them nearly all."""
    with np.errstate(all="ignore"):
        caught = [
            any(result.status == "fail" for result in vectors.check(mutant.backend(), [identifier]))
            for mutant in by_clause()[identifier]
        ]
    assert any(caught) or identifier in REFUSALS, f"none of {len(caught)} mutants is noticed"


def test_vectors_refer_to_results() -> None:
    """An argument may be an earlier result; one that was refused refuses what needs it."""
    assert vectors.check(backend(), ["L-26"])[0].status == "pass"

    def refuse(*_: Any, **__: Any) -> Any:
        raise Unsupported("no search")

    (found,) = vectors.check(backend(optimal_search=refuse), ["L-26"])
    assert found.status == "unsupported"
    (found,) = vectors.check(backend(optimal_search=None), ["L-26"])
    assert (found.status, found.note) == ("not implemented", "no optimal_search")


def test_bounds_of_vectors_are_those_of_the_suite() -> None:
    """Recording compares with what the test of the clause compares with, and leaves out what it derives."""
    x = np.array([[1.0, -3.0]], np.float32)
    (case,) = record("W-8", "test_ranges", [("one token", {"x": x})])
    assert [(rule["field"], rule["rule"]) for rule in case["expect"]] == [("low", "exact"), ("high", "exact")]
    with pytest.raises(ValueError, match="nothing that"):
        record(
            "L-5",
            "test_saturation",
            [("derived", {"table": Table(x[0, :1], x[0], x[0]), "fraction_bits": 1, "bits": 8})],
        )


def test_vectors_catch_wrong_backends() -> None:
    def reciprocal(x: Any, scale: Any, zero_point: Any, /, *, bits: int, scheme: Any = "asymmetric") -> Any:
        ratio = np.asarray(x) * (1 / np.asarray(scale)).repeat(x.shape[-1] // scale.shape[-1], -1)
        return reference.quantize(ratio, np.ones_like(scale), zero_point, bits=bits, scheme=scheme)

    (found,) = vectors.check(backend(quantize=reciprocal), ["Q-3a"])
    assert found.status == "fail"
    (found,) = vectors.check(backend(eora=lambda d, c, **k: reference.svd_patch(d, **k)), ["E-2"])
    assert found.status == "fail"
    (found,) = vectors.check(SimpleNamespace(name="empty"), ["E-2"])
    assert found.status == "not implemented"
