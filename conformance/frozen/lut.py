"""Vectors of chapter L: look-up tables."""

from __future__ import annotations

import numpy as np

from .. import rules
from ..recording import Draws
from ..rules import LookupTable
from .inputs import NARROW, SPEC, Table, suite

PARTS = ("breakpoints", "slopes", "intercepts")


def build(table: Table) -> None:
    _codes(table, _lines(table))


def _lines(table: Table) -> LookupTable:
    """Numbers that are exact everywhere: ties, dead pieces; returns a rounded table."""
    lut = suite("lut")
    knots = np.array([-4, -2, -1, -1, 0, 0.5, 2.5, 4.5])
    values = np.array([0, -0.5, -0.25, 0.75, 0, 0.328125, 2.453125, 4.515625])
    table.exactly("L-1", "two knots at -1 with different values", [knots, values], *PARTS)
    chords = SPEC.fit_chords(knots, values)
    exact = LookupTable(*chords[:3])
    knots, values = np.array([-2.0, -1, -1, 0, 0, 2]), np.array([1.0, 3, -2, 0.5, 0.5, 4])
    table.exactly("L-2", "two dead pieces, one of them with a jump", [knots, values], *PARTS)
    table.exactly("L-4", "ties at six fraction bits", [exact], *PARTS)
    ties = np.array([1, -1, 3, -3, 5]) / 128
    lines = lut.Table(np.array([-2.0, 0.31640625, 0.31640625, 1.125]), ties, 7 * ties[::-1])
    for f in (6, 0):
        table.recorded("L-4", "test_fixed_point", f"halves of the unit, {f} bits", table=lines, fraction_bits=f)
    table.exactly("L-5", "three fraction bits of four", [exact], *PARTS, "saturated", fraction_bits=3, bits=4)
    wide = LookupTable(np.array([0.0]), np.array([300.5, -300.25]), np.array([-7.5, 0.125]))
    for bits in (None, 8):
        options = {"fraction_bits": 2, "bits": bits}
        table.exactly("L-5", f"slopes of hundreds, {bits} bits", [wide], "slopes", "intercepts", "saturated", **options)
    rounded = LookupTable(*SPEC.round_table(chords)[:3])
    table.exactly("L-6", "a table for sixteenths", [rounded], *PARTS, scale_bits=4)
    down = lut.Table(np.array([-1.4375, -0.0625, 0.3125, 1.4375]), 2 * ties, 4 * ties)
    for b in (0, 2, 3):
        table.recorded("L-6", "test_scales", f"{b} bits", table=down, scale_bits=b, fraction_bits=7)
    lines = lut.Table(np.array([-1, -1, 0.5]), np.array([0.3, 0, -1.7, 2]), np.array([1.0, 5, 0.1, -0.0]))
    x = np.array([-3, -1, -0.75, 0.5, 0.625, -0.0, 9], np.float32)
    for t in ("left", "right"):
        table.recorded("L-7", "test_values", f"on breakpoints, tie {t}", table=lines, x=x, tie=t)
    codes = np.arange(-128, 128, dtype=np.int32)
    for tie in ("left", "right"):
        found = SPEC.evaluate_table(codes / 16, rounded, tie=tie).astype(np.float32)
        arrays = [(codes / 16).astype(np.float32), rounded]
        expect = [rules.exact("", found)]
        table.call("L-10", f"all codes as floats, tie {tie}", arrays, *expect, op="evaluate_table", tie=tie)
    return rounded


def _codes(table: Table, rounded: LookupTable) -> None:
    """Integers, every INT8 code among them."""
    lut = suite("lut")
    integers = lut.integer_table((-5, -5, 0, 127), (3, 9, -2, 0, 1), (7, 100, -4, 12, -9), 4, 6)
    for about, o in (("left of", -1), ("on", 0), ("right of", 1)):
        table.recorded("L-8", "test_ties", f"{about} repeated breakpoints", table=integers, offset=o)
    codes, whole = lut.CODES.astype(np.int32), LookupTable(*SPEC.integer_table(rounded, scale_bits=4))
    steep = LookupTable(*lut.integer_table((-100, 0, 100), (300, -299, 7, 298), (-30000, 5, 0, 29999), 3, 5))
    q = np.array([-128, -127, -101, -100, -1, 0, 1, 100, 101, 127], np.int8)
    large = np.array([[-(2**22), -40000, 40000, 2**22]], np.int32)
    for about, given, lines in (("all codes", codes, whole), ("int8", q, steep), ("int32", large, steep)):
        for tie in ("left", "right"):
            table.exactly("L-9", f"{about}, tie {tie}", [given, lines], tie=tie)
    entries, q = np.arange(4, dtype=np.float32) / 8 - np.float32(0.25), np.array([[-2, 1], [0, -1]], np.int32)
    table.call("L-11", "codes from -2 on", [q, entries], rules.exact("", entries[q + 2]), low=-2)
    arrays = [lut.CODES.astype(np.int8), np.arange(256, dtype=np.int32)[::-1].copy()]
    table.call("L-11", "all codes of int8", arrays, rules.exact("", np.arange(256, dtype=np.int32)[::-1]))
    sums = np.array([6, -6, 2, -2, 10, -10, 1, -1, 2**31 - 1, 1 - 2**31], np.int32)
    for shift in (0, 1, 2, 25):
        table.exactly("L-12", f"shift {shift}", [sums], shift=shift)
    for function in ("hswish", "exp", "gelu", "rsqrt"):
        positive, top = function in ("reciprocal", "rsqrt"), 0 if function == "exp" else 127
        given = np.array([1 if positive else -128, 3, 12, 64, 127], np.int32).clip(None, top)
        slopes = np.array([8, -8, 0, 3, 5], np.int64)
        data = Draws(given, slopes)
        table.recorded(
            "L-13", "test_gradients", function, function=function, bits=2, odd=False, dtype=NARROW, data=data
        )
    for f in ("reciprocal", "rsqrt"):
        for t in ("left", "right"):
            x = np.array([1, 3, 5, 9, 33, 255, 1023, 2**20])
            table.recorded("L-14", "test_ranges", f"{f}, tie {t}", function=f, x=x, shift=-8, dtype=NARROW, tie=t)
    for function, step in (("reciprocal", 3), ("rsqrt", 4)):
        base = (np.array([1, 2, 16, 17, 64, 100, 127]) / 32).astype(np.float32)
        for k in (-5, -1, 0, 1, 4):
            far = base * np.float32(2.0 ** (step * k))
            lines = lut.base_table(function)
            found = SPEC.evaluate_ranges(far, lines, function=function).astype(np.float32)
            stored = rules.LookupTable(*lines)
            about = f"{function}, {k} ranges further"
            table.call("L-15", about, [far, stored], rules.exact("", found), function=function)
    logits = np.array([[0, 8, 16, 24], [-128, 127, 126, -128], [5, 5, 5, 5], [-9999, 0, -200, -1]], np.int32)
    *tables, root = (LookupTable(*t) for t in (lut.EXP, lut.RECIPROCAL, lut.RSQRT))
    for bits in (7, 8):
        table.exactly("L-16", "near, far and equal logits", [logits, *tables], out_bits=bits)
    odd = LookupTable(*lut.integer_table((-3,), (-2, 5), (40, 9), 1, 2))
    table.exactly("L-17", "a constant row, a large one", [logits, root])
    logits = np.array([[0, -300, -9999, 5], [9, 9, 9, 9]], np.int32)
    about = "far logits, one alone, tables that no one would deploy"
    for one in (logits, logits[:1, :1], logits[1:]):
        for two in (tables, [odd, odd]):
            table.exactly("L-16", about, [one, *two], out_bits=7)
    for one in (np.array([[1, 2, 2], [0, 0, 1], [-7, 100, 101]], np.int32), np.array([[3, 3, 4, 4, 5]], np.int32)):
        table.exactly("L-17", "means that are no codes", [one, root], out_bits=5)
    for low, t in ((-128, "left"), (100, "right")):
        about = f"codes from {low}, tie {t}"
        table.recorded("L-18", "test_errors", about, skip=("worst",), table=integers, low=low, tie=t)
    at, flat, one = (np.array(v, np.int32) for v in ([0], [0, 0], [1, 1]))
    level = rules.LookupTable(at, flat, one)
    expect = [rules.exact("worst", -1), rules.exact("max_error", 2.0)]
    table.call("L-18", "the first of two largest errors", [level, np.array([1.0, 3, 1, -1])], *expect, low=-2)
    counted = ("turns", "signs", "worst")
    level = LookupTable(*lut.integer_table((0,), (0, 3), (0, 0), 0, 0))
    values = np.array([0, -1, -1, 2, 0, 3, -2, -2]) / 2
    table.exactly("L-19", "all codes against the identity", [whole, codes / 16], *counted)
    table.exactly("L-19", "level pieces and zeros", [level, values], *counted, low=-4)
