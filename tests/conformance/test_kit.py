"""The kit about itself: hygiene, counter-examples, and the parts a report is made of."""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lowbit import reference
from lowbit.conformance import calls, hexfloat
from lowbit.conformance.clauses import CLAUSES, ClauseError, chapters, clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.runner import run
from lowbit.reference.errors import SpecError, Unsupported
from lowbit.reference.protocol import operations

FOLDER = Path(__file__).resolve().parent.parent.parent / "conformance"
SOURCES = sorted(p for p in FOLDER.rglob("*.py"))
ALLOWED = {"lowbit", "hypothesis", "pytest", "numpy", "typer", "__future__"}


def backend(**ops: Any) -> SimpleNamespace:
    members: dict[str, Any] = {op: getattr(reference, op) for op in operations()}
    members.update(asarray=reference.asarray, to_numpy=np.asarray, name="test", compute_dtype="float64", device="cpu")
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


def test_a_part_that_is_unsupported_hides_no_other() -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise Unsupported("no such unit")

    def flat(x: Any, /) -> Any:
        return np.atleast_1d(reference.round_half_even(x))

    (found,) = run(backend(pack=refuse, round_half_even=flat), ["A-2a"])
    assert found.status == "fail"
    (found,) = run(backend(pack=refuse), ["A-2a"])
    assert (found.status, found.note) == ("pass", "unsupported: pack: no such unit")
    only = SimpleNamespace(
        name="only", compute_dtype="float64", device="cpu", pack=refuse,
        asarray=reference.asarray, to_numpy=reference.to_numpy,
    )  # fmt: skip
    (found,) = run(only, ["A-2a"])
    assert found.status == "unsupported"


def test_a_backend_without_half_precision_is_judged_on_the_others() -> None:
    def asarray(x: Any, /) -> Any:
        if x.dtype == np.float16:
            raise Unsupported("no half precision")
        return reference.asarray(x)

    (found,) = run(backend(asarray=asarray), ["A-2b"])
    assert found.status == "pass"
    assert "gptq of float16: no half precision" in found.note
    wrong = backend(asarray=asarray, quantize=lambda *a, **k: reference.quantize(*a, **k).astype(np.int64))
    (found,) = run(wrong, ["A-2b"])
    assert found.status == "fail"


def curt(op: str) -> Any:
    """An operation that refuses rightly and says nothing."""

    def call(*arrays: Any, **options: Any) -> Any:
        try:
            return getattr(reference, op)(*arrays, **options)
        except SpecError as error:
            raise SpecError(error.clause, "bad value") from error

    return call


def test_all_words_that_are_missing_are_named_at_once() -> None:
    found, *_ = run(backend(wanda=curt("wanda"), pack=curt("pack")), ["A-3"])
    assert found.status == "fail"
    assert found.note.count("does not say") == 3
    assert "last call" not in found.note  # it was another one
    assert "wanda:" in found.note
    assert "pack:" in found.note


def test_a_clause_of_numbers_is_not_red_for_wording() -> None:
    named = {op: curt(op) for op in ("pack", "dora_unmerge", "lookup_codes", "contextual_diversity", "objective")}
    found = list(run(backend(**named), ["Q-6", "Q-7", "D-7", "L-11", "X-9", "E-1"], examples=5))
    assert {outcome.status for outcome in found} == {"pass"}
