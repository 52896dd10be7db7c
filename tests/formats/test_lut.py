"""Table files: exact round trips, refusals that name what is wrong, and emitted sources that compute the same."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lowbit.reference as ref
from lowbit.formats.lut import (
    FORMAT,
    TableArtefact,
    TableFileError,
    build_artefact,
    emit_c_header,
    emit_hex_memory,
    emit_onnx,
    emit_verilog,
    entries,
    read_artefact,
    read_published,
    write_artefact,
)
from lowbit.reference import lut
from lowbit.reference.errors import SpecError
from lowbit.reference.types import TABLE_FUNCTIONS, Table

CODES = np.arange(-128, 128)
KNOTS = {
    "reciprocal": (0.625, 0.78125, 0.96875, 1.1875, 1.375, 1.8125, 2.375),
    "rsqrt": (0.34375, 0.5, 0.65625, 0.875, 1.1875, 1.65625, 2.875),
    "exp": (-5.25, -3.5, -2.375, -2, -1.25, -0.625, -0.25),
}


def artefact(function: Any = "gelu", tie: Any = "left") -> TableArtefact:
    knots = KNOTS.get(function, (-3, -2.26, -1, -0.5, 0.03, 0.625, 2.75))
    return build_artefact(function, lut.chord_table(function, knots), tie=tie, origin="a test: ±")


@pytest.mark.parametrize("function", TABLE_FUNCTIONS)
def test_an_artefact_is_read_back_to_the_last_bit_and_written_to_the_same_bytes(tmp_path: Path, function: str) -> None:
    first, again = tmp_path / "a.json", tmp_path / "b.json"
    write_artefact(first, artefact(function, "right"))
    found = read_artefact(first)
    write_artefact(again, found)
    assert first.read_bytes() == again.read_bytes()
    assert json.loads(first.read_text(encoding="utf-8"))["format"] == FORMAT == "lowbit.table/1"
    wanted = artefact(function, "right")
    assert found.reports == wanted.reports
    assert found.origin == wanted.origin
    for part in ("breakpoints", "slopes", "intercepts"):
        assert getattr(found.table, part).tobytes() == getattr(wanted.table, part).tobytes()


def change(*path: Any, to: Any) -> Any:
    """A function that replaces one value of a record; None removes it."""

    def apply(record: dict[str, Any]) -> None:
        *way, last = path
        inside: Any = record
        for key in way:
            inside = inside[key]
        if to is None:
            del inside[last]
        else:
            inside[last] = to

    return apply


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (change("format", to="lowbit.table/2"), "lowbit.table/2"),
        (change("function", to="relu"), "relu"),
        (change("tie", to="both"), "both"),
        (change("slopes", to=None), "slopes"),
        (change("slopes", 2, to="0.5"), "'0.5'"),
        (change("slopes", 2, to=True), "True"),
        (change("slopes", 2, to=0.3), "multiples"),
        (change("breakpoints", to=[1.0]), r"\[1, 8, 8\]"),
        (change("fraction_bits", to=None), "fraction_bits"),
        (change("fraction_bits", to="six"), "six"),
        (change("scales", "3", to=None), "scales"),
        (change("scales", "3", "slopes", 0, to=7), "slopes of scale 3"),
        (change("scales", "3", "report", "turns", to=99), "turns"),
        (change("scales", "3", "report", "mse", to=0.5), "mse"),
        (change("scales", "3", "report", to=None), "report"),
    ],
)
def test_an_artefact_that_contradicts_itself_is_refused(tmp_path: Path, edit: Any, words: str) -> None:
    path = tmp_path / "table.json"
    write_artefact(path, artefact())
    record = json.loads(path.read_text(encoding="utf-8"))
    edit(record)
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(TableFileError, match=words):
        read_artefact(path)


@pytest.mark.parametrize("text", ["", "[1]", "{", "\ud800".encode("utf-8", "surrogatepass")])
def test_other_files_are_refused(tmp_path: Path, text: Any) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for read in (read_artefact, read_published):
        with pytest.raises(TableFileError, match=r"table\.json"):
            read(path)
    with pytest.raises(TableFileError, match="absent"):
        read_published(tmp_path / "absent.json")


@pytest.mark.parametrize("file", ["gelu_pwl_7", "hswish_pwl_7", "exp_pwl_15"])
def test_published_files(shared: Path, file: str) -> None:
    function, tables = read_published(shared / "golden" / f"{file}.json")
    assert function == file.split("_")[0]
    assert [*tables] == list(range(7))
    whole = ref.integer_table(tables[4], scale_bits=4)
    assert np.array_equal(whole.breakpoints / 16, tables[4].breakpoints)
    made = build_artefact(function, tables[6], origin="published")
    assert made.reports[6].max_error < 0.05


def published(**scales: Any) -> dict[str, Any]:
    return {"reci": {"5": {"breakpoints": [1.0], "slopes": [-1.0, -0.5], "intercepts": [2.0, 1.5]}, **scales}}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({}, "0 functions"),
        ({"relu": {}}, "relu"),
        ({"gelu": {}}, "decimal bits"),
        ({"gelu": {"a": {}}}, "decimal bits"),
        ({"gelu": {"1": 3}}, "int"),
        ({"gelu": {"1": {"breakpoints": [0.25], "slopes": [1, 1], "intercepts": [0, 0]}}}, "multiples"),
        (published(**{"4": {"breakpoints": [1.0], "slopes": [-1.0, 0.5], "intercepts": [2.0, 1.5]}}), "under 4"),
        (published(**{"4": {"breakpoints": [1.0], "slopes": [-1.0, float("inf")], "intercepts": [2, 1]}}), "inf"),
    ],
)
def test_published_files_that_are_none(tmp_path: Path, record: Any, words: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(TableFileError, match=words):
        read_published(path)


def test_published_names_become_ours(tmp_path: Path) -> None:
    path = tmp_path / "reci_pwl_1.json"
    path.write_text(json.dumps(published()), encoding="utf-8")
    function, tables = read_published(path)
    assert function == "reciprocal"
    assert tables[5].intercepts.tolist() == [2.0, 1.5]


# -- sources -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tie", ["left", "right"])
def test_the_c_header_computes_the_integers_of_the_specification(tmp_path: Path, tie: Any) -> None:
    """Compiled without warnings, all scales, all codes."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    made = artefact("gelu", tie)
    (tmp_path / "gelu.h").write_text(emit_c_header(made, name="gelu"), encoding="utf-8")
    calls = "\n".join(f"int32_t at_{b}(int32_t q) {{ return gelu_b{b}(q); }}" for b in made.integers)
    (tmp_path / "gelu.c").write_text(f'#include "gelu.h"\n{calls}\n', encoding="utf-8")
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-shared", "-fPIC", "-o", "gelu.so"]
    subprocess.run([compiler, *flags, "gelu.c"], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    library = ctypes.CDLL(str(tmp_path / "gelu.so"))
    for b, whole in made.integers.items():
        found = [getattr(library, f"at_{b}")(int(q)) for q in CODES]
        assert found == ref.evaluate_codes(CODES, whole, tie=tie).tolist()


def test_verilog_and_memory_hold_the_entries() -> None:
    made = artefact("hswish")
    values = entries(made, scale_bits=4, out_bits=4)
    source = emit_verilog(made, scale_bits=4, out_bits=4)
    arms = re.findall(r"8'h([0-9a-f]{2}): y = 8'h([0-9a-f]{2});", source)
    assert len(arms) == len({code for code, _ in arms}) == 256
    for code, value in arms:
        q, y = (int(x, 16) - 256 * (int(x, 16) > 127) for x in (code, value))
        assert y == values[q + 128]
    assert source.startswith("// hswish")
    assert "module table_hswish (" in source
    memory = [int(line, 16) for line in emit_hex_memory(made, scale_bits=4, out_bits=4).split()]
    assert [memory[q & 255] for q in range(-128, 128)] == [int(v) & 255 for v in values]


def test_the_verilog_module_runs(tmp_path: Path) -> None:
    simulator = shutil.which("iverilog")
    if simulator is None:
        pytest.skip("no iverilog")
    made = artefact("gelu")
    bench = """
module bench; reg signed [7:0] q; wire signed [7:0] y; integer i; table_gelu dut (q, y);
initial begin for (i = -128; i < 128; i = i + 1) begin q = i; #1 $display("%0d", y); end $finish; end endmodule
"""
    (tmp_path / "t.v").write_text(emit_verilog(made, scale_bits=4, out_bits=4) + bench, encoding="utf-8")
    subprocess.run([simulator, "-o", "t", "t.v"], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    run = subprocess.run(["vvp", "t"], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60)
    assert [int(line) for line in run.stdout.split()] == entries(made, scale_bits=4, out_bits=4).tolist()


@pytest.mark.parametrize("function", ["gelu", "hswish", "exp"])
def test_the_onnx_model_agrees_with_the_tables_at_every_code(function: str) -> None:
    """By the reference evaluator of ONNX; inputs between codes are rounded half to even, beyond them clipped."""
    onnx = pytest.importorskip("onnx", reason="ONNX files need the package onnx")
    from onnx.reference import ReferenceEvaluator

    made = artefact(function)
    model = onnx.load_model_from_string(emit_onnx(made, scale_bits=4, out_bits=4))
    session = ReferenceEvaluator(model)
    x = np.concatenate([CODES / 16, (CODES + 0.5) / 16, [-99.0, 99.0]]).astype(np.float32)
    (y,) = session.run(None, {"x": x})
    q = np.clip(np.rint(x.astype(np.float64) * 16), -128, 127).astype(int)
    assert np.array_equal(y, entries(made, scale_bits=4, out_bits=4)[q + 128] / np.float32(16))


def test_onnx_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install .*\[onnx\]"):
        emit_onnx(artefact(), scale_bits=4, out_bits=4)


def test_refusals_of_the_emitters() -> None:
    with pytest.raises(SpecError, match="not 9"):
        entries(artefact(), scale_bits=9, out_bits=4)
    with pytest.raises(ValueError, match="identifier"):
        emit_c_header(artefact(), name="9 lives")
    with pytest.raises(SpecError, match="multiples"):
        build_artefact("gelu", Table(np.zeros(0), np.array([0.3]), np.zeros(1)))
