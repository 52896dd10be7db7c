"""Look-up tables as files: the published JSON, an artefact of our own, and sources for C, Verilog and ONNX.

An artefact is one function with its coefficients, its integer tables for every scale, and what exhaustive verification
says of each. It is JSON, format ``lowbit.table/1``: numbers are integers or multiples of a power of two, so reading it
back gives the same bits, and writing it again the same bytes. The emitters write text and need nothing installed;
ONNX needs the package ``onnx`` (``pip install "lowbit[onnx]"``).

Tables are evaluated by the specification, loaded by name; nothing here computes a method.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit._hints import hint
from lowbit.backends import load
from lowbit.reference.errors import SpecError
from lowbit.reference.types import (
    TABLE_FUNCTIONS,
    TABLE_TIES,
    IntegerTable,
    Table,
    TableFunction,
    TableReport,
    TableTie,
)

__all__ = [
    "FORMAT",
    "TableArtefact",
    "TableFileError",
    "build_artefact",
    "emit_c_header",
    "emit_hex_memory",
    "emit_onnx",
    "emit_verilog",
    "entries",
    "read_artefact",
    "read_published",
    "write_artefact",
]

FORMAT = "lowbit.table/1"

Array = npt.NDArray[Any]
_PUBLISHED_NAMES: Mapping[str, TableFunction] = {"reci": "reciprocal", "sqrt_reci": "rsqrt"}
_PARTS = ("breakpoints", "slopes", "intercepts")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class TableFileError(ValueError):
    """A table file cannot be read; the message names the file, what is wrong in it, and what was expected."""


@dataclass(frozen=True)
class TableArtefact:
    """A table of one function with everything that deployment and review need.

    Attributes:
        function: name of the function.
        fraction_bits: of slopes and intercepts.
        tie: to which piece a code on a breakpoint belongs.
        table: breakpoints as found, coefficients in fixed point, how many of them were clipped.
        integers: the integer table of every scale, by its bits b.
        reports: exhaustive verification over the INT8 codes inside the domain, by b.
        origin: how the table was found, in words.
    """

    function: TableFunction
    fraction_bits: int
    tie: TableTie
    table: Table[Array]
    integers: dict[int, IntegerTable[Array]]
    reports: dict[int, TableReport]
    origin: str = ""


def build_artefact(
    function: TableFunction,
    table: Table[Array],
    *,
    fraction_bits: int = 6,
    tie: TableTie = "left",
    origin: str = "",
) -> TableArtefact:
    """The artefact of a rounded table: integer tables at every scale of the function, each verified code by code.

    Raises:
        SpecError: L-6 when coefficients are no multiples of 2^-fraction_bits, L-8, L-18.
    """
    spec: Any = load("reference")  # with its chapters
    reports = spec.lut.table_report(function, table, fraction_bits=fraction_bits, tie=tie)
    integers = {b: spec.integer_table(table, scale_bits=b, fraction_bits=fraction_bits) for b in reports}
    return TableArtefact(function, fraction_bits, tie, table, integers, reports, origin)


# -- JSON --------------------------------------------------------------------------------------------------------------


def _lists(table: Table[Array] | IntegerTable[Array]) -> dict[str, list[Any]]:
    return {part: np.asarray(getattr(table, part)).tolist() for part in _PARTS}


def write_artefact(path: str | Path, artefact: TableArtefact) -> None:
    """Write an artefact as JSON: sorted, one line per array, the same bytes for the same artefact."""
    record = {
        "format": FORMAT,
        "function": artefact.function,
        "origin": artefact.origin,
        "fraction_bits": artefact.fraction_bits,
        "tie": artefact.tie,
        "saturated": artefact.table.saturated,
        **_lists(artefact.table),
        "scales": {
            str(b): {**_lists(whole), "report": artefact.reports[b]._asdict()}
            for b, whole in sorted(artefact.integers.items())
        },
    }
    text = json.dumps(record, indent=1, ensure_ascii=False)
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda found: "[" + " ".join(found[1].split()) + "]", text)
    Path(path).write_text(text + "\n", encoding="utf-8", newline="\n")


def _load(path: str | Path) -> dict[str, Any]:
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TableFileError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(record, dict):
        raise TableFileError(f"{path} holds {type(record).__name__}, expected an object")
    return record


def _numbers(path: str | Path, where: str, record: Mapping[str, Any], kind: type) -> list[Array]:
    """The three arrays of a table, finite numbers (or integers) only."""
    found = []
    if not isinstance(record, Mapping):
        raise TableFileError(f"{path}: {where} holds {type(record).__name__}, expected an object")
    for part in _PARTS:
        values = record.get(part)
        if not isinstance(values, list):
            raise TableFileError(f"{path}: {where} has no list {part!r}")
        for value in values:
            number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
            if not number or not abs(value) < (1 << 31):
                raise TableFileError(f"{path}: {part} of {where} holds {value!r}")
        found.append(np.array(values, np.int32 if kind is int else np.float64))
    if not len(found[0]) + 1 == len(found[1]) == len(found[2]):
        raise TableFileError(f"{path}: {where} has {[len(part) for part in found]} entries, expected n - 1, n and n")
    return found


def read_artefact(path: str | Path) -> TableArtefact:
    """Read an artefact and prove it: integer tables and reports are computed again and must be those of the file.

    Raises:
        TableFileError: not JSON, another format, a missing part, or a part that contradicts another.
    """
    record = _load(path)
    if record.get("format") != FORMAT:
        raise TableFileError(f"{path} is of format {record.get('format')!r}, this reader knows {FORMAT!r}")
    function, tie = record.get("function"), record.get("tie")
    if function not in TABLE_FUNCTIONS:
        raise TableFileError(f"{path} is of function {function!r}, one of {', '.join(TABLE_FUNCTIONS)} is known")
    if tie not in TABLE_TIES:
        raise TableFileError(f"{path} has the tie rule {tie!r}, one of {', '.join(TABLE_TIES)} is known")
    p, k, b = _numbers(path, "the table", record, float)
    try:
        table: Table[Array] = Table(p, k, b, int(record["saturated"]))
        proven = build_artefact(
            function, table, fraction_bits=record["fraction_bits"], tie=tie, origin=str(record["origin"])
        )
        scales = dict(record["scales"])
    except (ArithmeticError, KeyError, TypeError, ValueError, SpecError) as error:
        raise TableFileError(f"{path} is incomplete or contradicts itself: {error}") from error
    if set(scales) != {str(bits) for bits in proven.integers}:
        raise TableFileError(f"{path} has the scales {sorted(scales)}, a table of {function} has {[*proven.integers]}")
    for bits, whole in proven.integers.items():
        where = f"scale {bits}"
        stored = _numbers(path, where, scales[str(bits)], int)
        for part, found in zip(_PARTS, stored, strict=True):
            if not np.array_equal(found, getattr(whole, part)):
                raise TableFileError(f"{path}: {part} of {where} are not those of the table")
        report = scales[str(bits)].get("report")
        told = proven.reports[bits]._asdict()
        if not isinstance(report, dict) or set(report) != set(told):
            raise TableFileError(f"{path}: {where} has no complete report")
        for name, value in told.items():
            stored_value = report[name]
            numbers = isinstance(value, float) and isinstance(stored_value, float)
            near = numbers and math.isclose(stored_value, value, rel_tol=1e-9)
            if not near and stored_value != value:  # errors are those of another processor's exp and erf
                raise TableFileError(f"{path}: the report of {where} says {name} {report[name]!r}, it is {value!r}")
    return proven


def read_published(path: str | Path) -> tuple[TableFunction, dict[int, Table[Array]]]:
    """Read a JSON of GQA-LUT, ``{function: {b: {breakpoints, slopes, intercepts}}}``: the function and its tables by b.

    Breakpoints are those rounded for each b; the unrounded ones are not in the file. Slopes and intercepts must be the
    same under every b, as the deployed operator assumes.

    Raises:
        TableFileError: not JSON, more than one function, an unknown one, or coefficients that depend on b.
    """
    record = _load(path)
    if len(record) != 1:
        raise TableFileError(f"{path} holds {len(record)} functions, a published file holds one")
    ((name, scales),) = record.items()
    function = _PUBLISHED_NAMES.get(name, name)
    if function not in TABLE_FUNCTIONS:
        raise TableFileError(f"{path} is of function {name!r}, one of {', '.join(TABLE_FUNCTIONS)} is known")
    if not isinstance(scales, dict) or not scales or not all(re.fullmatch(r"\d+", key) for key in scales):
        raise TableFileError(f"{path}: tables of {name} must stand under their decimal bits")
    tables: dict[int, Table[Array]] = {}
    for key, entry in scales.items():
        if not isinstance(entry, dict):
            raise TableFileError(f"{path}: {name} {key} holds {type(entry).__name__}, expected an object")
        p, k, b = _numbers(path, f"{name} {key}", entry, float)
        tables[int(key)] = Table(p, k, b)
    first = next(iter(tables.values()))
    for bits, table in tables.items():
        same = np.array_equal(table.slopes, first.slopes) and np.array_equal(table.intercepts, first.intercepts)
        if not same:
            raise TableFileError(f"{path}: coefficients under {bits} are not those under the other scales")
        if not np.array_equal(table.breakpoints * 2.0**bits, np.rint(table.breakpoints * 2.0**bits)):
            raise TableFileError(f"{path}: breakpoints under {bits} are no multiples of 2^-{bits}")
    return function, dict(sorted(tables.items()))


# -- sources -----------------------------------------------------------------------------------------------------------


def entries(artefact: TableArtefact, *, scale_bits: int, out_bits: int) -> npt.NDArray[np.int8]:
    """The function from INT8 to INT8 at one scale: 256 codes of scale 2^-out_bits, for the codes −128 … 127."""
    spec: Any = load("reference")  # with its chapters
    found = spec.lut.activation_entries(_at(artefact, scale_bits), out_bits=out_bits, tie=artefact.tie)
    return np.asarray(found, np.int8)


def _at(artefact: TableArtefact, scale_bits: int) -> IntegerTable[Array]:
    if scale_bits not in artefact.integers:
        raise SpecError("L-6", f"the artefact has the scales {[*artefact.integers]}, not {scale_bits}")
    return artefact.integers[scale_bits]


def _name(given: str | None, artefact: TableArtefact) -> str:
    name = given or f"table_{artefact.function}"
    if not _IDENTIFIER.match(name):
        raise ValueError(f"name must be an identifier, got {name!r}")
    return name


def _rows(values: Sequence[int], per_row: int = 12) -> str:
    lines = [", ".join(map(str, values[i : i + per_row])) for i in range(0, len(values), per_row)]
    return ",\n    ".join(lines)


def emit_c_header(artefact: TableArtefact, *, name: str | None = None) -> str:
    """A C99 header: the integer tables of every scale, and an inline function per scale that evaluates one code.

    ``NAME_bB(q)`` answers the accumulator, an int32_t of scale 2^-(f+B), as :func:`lowbit.reference.evaluate_codes`
    does. Only integer comparisons, one multiplication and one addition are used.
    """
    name = _name(name, artefact)
    compare = "<" if artefact.tie == "left" else "<="
    f = artefact.fraction_bits
    parts = [
        f"/* {artefact.function} as a piecewise-linear table, {len(artefact.table.slopes)} entries, format {FORMAT}.",
        f" * Codes q of scale 2^-b, slopes with {f} fraction bits, results of scale 2^-({f} + b);",
        f" * a code on a breakpoint belongs to the piece on its {artefact.tie}. */",
        f"#ifndef {name.upper()}_H",
        f"#define {name.upper()}_H",
        "#include <stdint.h>",
        "",
    ]
    for b, whole in artefact.integers.items():
        n = len(whole.slopes)
        report = artefact.reports[b]
        parts += [
            f"/* b = {b}: largest error {report.max_error:.6g} at q = {report.worst}, mean square {report.mse:.6g} */",
            f"static const int32_t {name}_b{b}_slopes[{n}] = {{\n    {_rows(whole.slopes.tolist())}\n}};",
            f"static const int32_t {name}_b{b}_intercepts[{n}] = {{\n    {_rows(whole.intercepts.tolist())}\n}};",
            f"static inline int32_t {name}_b{b}(int32_t q)",
            "{",
            "    int i = 0;",
            *(f"    i += {p} {compare} q;" for p in whole.breakpoints.tolist()),
            f"    return {name}_b{b}_slopes[i] * q + {name}_b{b}_intercepts[i];",
            "}",
            "",
        ]
    return "\n".join([*parts, f"#endif /* {name.upper()}_H */", ""])


def emit_verilog(artefact: TableArtefact, *, scale_bits: int, out_bits: int, name: str | None = None) -> str:
    """A combinational Verilog module, a ``case`` over all 256 codes: INT8 in, INT8 of scale 2^-out_bits out."""
    name = _name(name, artefact)
    values = entries(artefact, scale_bits=scale_bits, out_bits=out_bits)
    lines = [
        f"// {artefact.function}: codes of scale 2^-{scale_bits} to codes of scale 2^-{out_bits}, format {FORMAT}",
        f"module {name} (input wire signed [7:0] q, output reg signed [7:0] y);",
        "  always @* begin",
        "    case (q)",
    ]
    for code, value in zip(range(-128, 128), values.tolist(), strict=True):
        lines.append(f"      8'h{code & 255:02x}: y = 8'h{value & 255:02x};")
    return "\n".join([*lines, "      default: y = 8'hxx;", "    endcase", "  end", "endmodule", ""])


def emit_hex_memory(artefact: TableArtefact, *, scale_bits: int, out_bits: int) -> str:
    """The same 256 bytes for ``$readmemh``: line i holds the result of the code whose eight bits are i."""
    values = entries(artefact, scale_bits=scale_bits, out_bits=out_bits)
    return "".join(f"{int(v) & 255:02x}\n" for v in np.roll(values, 128))


def emit_onnx(
    artefact: TableArtefact, *, scale_bits: int, out_bits: int, shape: Sequence[int | str] = ("n",), opset: int = 19
) -> bytes:
    """An ONNX model, float in and float out: QuantizeLinear, Gather from 256 entries, DequantizeLinear.

    The two quantizers have the scales 2^-scale_bits and 2^-out_bits, so a runtime that fuses them with their
    neighbours is left with one look-up per code. ``shape`` is that of both ends: lengths, or names of free ones.

    Raises:
        ImportError: ``onnx`` is not installed.
    """
    try:
        from onnx import TensorProto, checker, helper, numpy_helper
    except ImportError as error:
        raise ImportError(f"ONNX files need the package onnx: {hint('onnx')}") from error
    constants = {
        "in_scale": np.array(2.0**-scale_bits, np.float32),
        "out_scale": np.array(2.0**-out_bits, np.float32),
        "zero": np.array(0, np.int8),
        "offset": np.array(128, np.int32),
        "entries": entries(artefact, scale_bits=scale_bits, out_bits=out_bits),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "in_scale", "zero"], ["q"]),
        helper.make_node("Cast", ["q"], ["wide"], to=TensorProto.INT32),
        helper.make_node("Add", ["wide", "offset"], ["index"]),
        helper.make_node("Gather", ["entries", "index"], ["code"], axis=0),
        helper.make_node("DequantizeLinear", ["code", "out_scale", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        _name(None, artefact),
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*shape])],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], producer_name="lowbit")
    model.ir_version = 9
    checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
