"""GELU of INT8 codes by a table of eight lines, against a memory copy and against torch's exact GELU in float32.

Three ways to store the result: float32 values, the integer accumulators, and INT8 codes of an output scale. A copy of
as many results is the floor of each; torch's gather from the same 256 entries is what one would write by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import Case

import lowbit
from lowbit.reference import lut

BITS = 4  # codes of scale 1/16
KNOTS = (-3.0, -2.25, -1.0, -0.5, 0.0, 0.625, 2.75)


def gathered(q: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """Indexing as it is written in torch: codes become indices of 32 bits."""
    return entries.index_select(0, q.to(torch.int32).add_(128))


def by_comparison(q: np.ndarray, table: Any) -> np.ndarray:
    """Accumulators of every code in Python integers, shared with nobody."""
    lines = list(zip(table.slopes.tolist(), table.intercepts.tolist(), strict=True))
    found = []
    for code in range(-128, 128):
        slope, intercept = lines[sum(p < code for p in table.breakpoints.tolist())]
        found.append(slope * code + intercept)
    return np.array(found)[q.astype(np.int64) + 128]


def gate(
    results: dict[str, Any], *, q: np.ndarray, copied: np.ndarray, exact: np.ndarray, unit: float, error: float
) -> dict[str, float]:
    """Every table equals the integers worked out above to the last bit; the exact function is as near as reported."""
    figures: dict[str, float] = {}
    few = np.arange(0, len(q), max(1, len(q) // 65536))
    for name, result in results.items():
        y = np.asarray(result)
        if name == "memory copy":
            assert np.array_equal(y, copied), "the copy is not one"
        elif name.startswith("torch GELU"):
            gelu = lut.FUNCTIONS["gelu"].value(q[few] * 2.0**-BITS)
            size = 1 + np.abs(q[few] * 2.0**-BITS)
            assert np.all(np.abs(y[few] - gelu) <= 8 * 2.0**-24 * size), f"{name} is not GELU"
            inside = np.abs(q[few] * 2.0**-BITS) <= 4
            off = np.abs(exact[few] * unit - gelu)[inside].max()
            assert off <= error, f"the table is off by {off:.3g}, {error:.3g} was reported"
            figures["table: largest error inside [-4, 4]"] = float(off)
        else:
            expected = np.asarray(exact * (unit if y.dtype.kind == "f" else 1), y.dtype)
            differ = int(np.count_nonzero(y != expected))
            assert not differ, f"{name}: {differ} entries differ"
            figures[f"{name}: entries that differ"] = differ
    return figures


def cases(*, quick: bool) -> Iterator[Case]:
    """16 million codes (quick: one million)."""
    n = 1 << (20 if quick else 24)
    numba, torch_ = lowbit.load("numba"), lowbit.load("torch")
    rounded = lut.chord_table("gelu", KNOTS)
    table = numba.integer_table(rounded, scale_bits=BITS)
    error = lut.table_report("gelu", rounded)[BITS].max_error
    unit = 2.0 ** -(table.fraction_bits + BITS)
    q = np.random.default_rng(0).integers(-128, 128, n, np.int8)
    accumulators = by_comparison(q, table)
    every = np.arange(-128, 128, dtype=np.int8)
    floats = (numba.evaluate_codes(every, table) * np.float32(unit)).astype(np.float32)
    bytes_ = numba.requantize_codes(numba.evaluate_codes(every, table), shift=table.fraction_bits).astype(np.int8)
    tensor, x = torch.from_numpy(q), torch.from_numpy(q.astype(np.float32) * np.float32(2.0**-BITS))
    shared = {"q": q, "exact": accumulators, "unit": unit, "error": error}

    def contenders(copied: np.ndarray, entries: np.ndarray) -> dict[str, Callable[[], Any]]:
        ours = torch.from_numpy(entries)
        return {
            "memory copy": copied.copy,
            "lowbit numba": partial(numba.lookup_codes, q, entries),
            "lowbit torch": partial(torch_.lookup_codes, tensor, ours),
            "gather in torch": partial(gathered, tensor, ours),
        }

    repeats, million = (3 if quick else 7), f"{n >> 20} Mi codes"
    values = x.numpy()
    yield Case(
        name=f"{million} to float32 values",
        baseline="memory copy",
        contenders={**contenders(values, floats), "torch GELU, float32": partial(torch.nn.functional.gelu, x)},
        gate=partial(gate, copied=values, **shared),
        repeats=repeats,
        note="Speed-up 0.67 means one and a half times the copy of the float32 results.",
    )
    whole = accumulators.astype(np.int32)
    yield Case(
        name=f"{million} to int32 accumulators",
        baseline="memory copy",
        contenders={
            "memory copy": whole.copy,
            "lowbit numba": partial(numba.evaluate_codes, q, table),
            "gather in torch": partial(gathered, tensor, torch.from_numpy(numba.evaluate_codes(every, table))),
        },
        gate=partial(gate, copied=whole, **shared),
        repeats=repeats,
        note="The pieces of the table are found in this call.",
    )
    codes = bytes_[q.astype(np.int64) + 128]
    yield Case(
        name=f"{million} to INT8 codes",
        baseline="memory copy",
        contenders=contenders(codes, bytes_),
        gate=partial(gate, copied=codes, **{**shared, "exact": requantized(accumulators, table.fraction_bits)}),
        repeats=repeats,
        note="A copy moves a quarter of the bytes here, so that the look-up itself shows.",
    )


def requantized(a: np.ndarray, shift: int) -> np.ndarray:
    """a / 2^shift, half to even, in INT8."""
    return np.clip(np.rint(a / 2.0**shift), -128, 127)
