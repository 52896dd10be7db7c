"""Frozen vectors: they are what the specification says, every rule of them can fail, and their flags are true."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lowbit
from lowbit import reference
from lowbit.conformance import frozen, hexfloat, vectors
from lowbit.conformance.clauses import CLAUSES, chapters
from lowbit.conformance.judging import Judge, part
from lowbit.conformance.recording import record
from lowbit.conformance.rules import Earlier
from lowbit.reference.errors import Unsupported
from lowbit.reference.types import Table
from tests.mutants import MUTANTS, Mutant

FILES = list(vectors.load())


def backend(**ops: Any) -> SimpleNamespace:
    """The specification with other operations."""
    return Mutant("", "test", lambda: ops).backend()


def test_frozen_vectors_agree_with_the_specification() -> None:
    results = vectors.check(reference)
    assert {r.status for r in results} == {"pass"}, [r for r in results if r.status != "pass"]
    assert len(results) == len(FILES) > 30


@pytest.mark.parametrize("name", ["numba", "torch"])
def test_frozen_vectors_agree_with_the_fast_backends(name: str) -> None:
    """Vectors bring types of their own for tuples: a backend may ask for fields, not for a class."""
    pytest.importorskip(name)
    results = vectors.check(lowbit.load(name))
    assert {r.status for r in results} == {"pass"}, [r for r in results if r.status != "pass"]


COMPUTED = {"value", "magnitude", "ratio", "roundings", "optimum", "norm", "band", "wide", "low", "high", "costs"}
COMPUTED |= {"fitness", "objective", "spectrum", "z"}
"""Floats of a rule, which differ in their last digits between linear algebra libraries."""


def bones(case: dict[str, Any]) -> dict[str, Any]:
    """A case without its flags and without what linear algebra computed."""

    def kept(rule: dict[str, Any], key: str) -> bool:
        integers = key == "value" and isinstance(rule[key], dict) and rule[key]["dtype"][0] in "ib"
        return integers or key not in COMPUTED | ({"d", "c"} if rule["rule"] == "residual" else set())

    expect = [{k: v for k, v in rule.items() if kept(rule, k)} for rule in case["expect"]]
    return {**{k: v for k, v in case.items() if k != "flags"}, "expect": expect}


def test_frozen_vectors_are_the_ones_that_would_be_written() -> None:
    """Inputs and integers of every case, and the whole of every head."""
    for new, old in zip(frozen.records(), FILES, strict=True):
        new = json.loads(json.dumps(new))
        assert {**new, "cases": None} == {**old, "cases": None}
        for one, other in zip(new["cases"], old["cases"], strict=True):
            assert bones(one) == bones(other), f"{old['clause']}, {other['about']}: bump SPEC_VERSION to change it"


def test_files_keep_to_their_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="not installed: pip install 'lowbit[dev]'")
    schema = json.loads(vectors.folder().joinpath("schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for file in [*FILES, notes()]:
        wrong = [f"{e.json_path}: {e.message}" for e in validator.iter_errors(file)]
        assert not wrong, f"{file.get('clause', 'notes')}: {wrong[0]}"
    broken = {**FILES[0], "cases": [{**FILES[0]["cases"][0], "expect": [{"field": "", "rule": "exact"}]}]}
    assert not validator.is_valid(broken), "a rule without its value"
    assert not validator.is_valid({**FILES[0], "more": 1})


def notes() -> dict[str, Any]:
    """What the flags mean."""
    record: dict[str, Any] = json.loads(vectors.folder().joinpath("notes.json").read_text(encoding="utf-8"))
    return record


def test_every_flag_has_a_note() -> None:
    flags = {flag for file in FILES for case in file["cases"] for flag in case["flags"]}
    assert flags == set(notes()["notes"])
    known = {m.flag: m for m in MUTANTS}
    assert len(known) == len(MUTANTS), "two mutants of one clause have one name"
    for flag, note in notes()["notes"].items():
        mutant, title = known[flag], CLAUSES[note["clause"]].title
        assert note == {"clause": mutant.clause, "right": title, "mistake": mutant.name}


@pytest.mark.parametrize("chapter", chapters())
def test_a_mistake_is_caught_by_the_cases_that_name_it_and_by_no_other(chapter: str) -> None:
    """Every mutant of the chapter on every file that calls what it breaks; machines may differ between failing and
    failing clearly."""
    named = {
        (flag, file["clause"], i)
        for file in FILES
        for i, case in enumerate(file["cases"])
        for flag in case["flags"]
        if flag[0] == chapter
    }
    failed, clear = set(), set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # wrong code divides by zero
        for mutant in (m for m in MUTANTS if m.clause[0] == chapter):
            for clause, i, margin in frozen.caught(mutant, FILES):
                failed |= {(mutant.flag, clause, i)} if margin > 1 else set()
                clear |= {(mutant.flag, clause, i)} if margin > 2 * frozen.CLEAR else set()
    assert clear <= named <= failed, sorted(clear - named) + sorted(named - failed)


def test_every_clause_has_vectors_or_a_reason() -> None:
    """One or the other; a clause that has no vector is one of those that none can show."""
    shown = {file["clause"] for file in FILES}
    assert shown.isdisjoint(vectors.WITHOUT)
    assert shown | set(vectors.WITHOUT) == set(CLAUSES)


def test_vectors_are_small() -> None:
    sizes = {c: len(vectors.folder().joinpath(f"{c}.json").read_bytes()) for c in CLAUSES if c not in vectors.WITHOUT}
    assert sum(sizes.values()) < 3 * 2**19, "frozen vectors are to stay small"
    assert max(sizes.values()) < 2**16, max(sizes, key=lambda name: sizes[name])


@pytest.mark.parametrize("identifier", [i for i in CLAUSES if i not in vectors.WITHOUT])
def test_every_rule_can_fail(identifier: str) -> None:
    """The specification's own answer, changed where a rule looks, by more than its bound: every single rule notices."""
    spec = backend()
    (file,) = vectors.load([identifier])
    earlier: list[Any] = []
    for case in file["cases"]:
        given = [vectors.argument(a) for a in case["arrays"]]
        given = [part(spec, earlier[a.case], a.field) if isinstance(a, Earlier) else a for a in given]
        result = getattr(spec, case.get("op", file["op"]))(*given, **case["options"])
        earlier.append(result)
        for rule in case["expect"]:
            judged = Judge(spec, given, result, earlier)
            assert all(c.ok for c in judged(rule)), (case["about"], rule["field"])
            wrong = Spoiled(spec, given, result, earlier, rule)
            if rule["rule"] in ("objective", "residual") or wrong.part(rule["field"]).size:
                bad = [c for c in wrong(rule) if not c.ok]
                assert bad, f"{case['about']}: nothing notices a wrong {rule['field'] or 'result'}"


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


def test_every_file_catches_a_mistake_about_its_clause() -> None:
    """One mutant of the clause at least; that flags are true is tested above."""
    for file in FILES:
        own = [flag for case in file["cases"] for flag in case["flags"] if flag.split("/")[0] == file["clause"]]
        assert own or file["clause"] in REFUSALS, f"no case of {file['clause']}.json notices a mutant of the clause"


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


def test_exact_codes_are_not_asked_at_the_end_of_a_full_grid() -> None:
    """There w / s is (2^b − 1)/2 for a scale that is rounded: below 0 the code is anybody's, above it is clipped."""
    for found in vectors.load(["G-2"]):
        for case in found["cases"]:
            if case["options"].get("scheme") == "symmetric-full":
                w = hexfloat.decode(case["arrays"][0])
                assert (w.max(axis=1) > -w.min(axis=1)).all()
