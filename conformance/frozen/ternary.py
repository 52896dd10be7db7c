"""Vectors of chapter T: ternary and min-max quantizers."""

from __future__ import annotations

import numpy as np

from .. import rules
from .inputs import SPEC, Array, Options, Table, clear, eighths, fractions, settled, steady, suite

HALF: Options = {"granularity": "row", "threshold": 0.5}


def build(table: Table) -> None:
    x = eighths("T-1", 3, 8)
    x[1, :4] = 0
    steady(lambda v: SPEC.twn_code(v, granularity="row").codes, x, "T-1")
    y = x.copy()
    y[0] = 0
    _codes(table, x, y)
    _values(table, x)
    _uniform(table, x)
    _min_max(table, x)
    grad, edge = np.arange(1, 7, dtype=np.float32), np.array([-2.5, -2.25, 0, 2.25, 2.5, 9], np.float32)
    table.exactly("T-5", "values at the clip", [grad, edge], clip=2.5)
    near_clip = suite("ternary").FakeQuantInput(np.array([0.5, -0.0, 3], np.float32), {})
    table.recorded("T-5", "test_gradients_pass_inside", "next to clips that no format holds", case=near_clip)


def _eighths() -> Array:
    """Rows of eight with a clear threshold, a tie with it, zeros, equal magnitudes."""
    x = np.array(
        [[1, -3, 4, 0, 2, 2, 2, 2], [9, 1, -1, 8, -30, 2, 0, 3], [0] * 8, [-5, 5, 5, -5, 5, 5, -5, 5]], np.float32
    )
    return x / np.float32(8)


def _codes(table: Table, x: Array, y: Array) -> None:
    tensor: Options = {"granularity": "tensor", "threshold": 0.5}
    general = settled("T-1", fractions(24, 7, 3, 8), lambda v: SPEC.twn_code(v, **tensor).codes)
    for clause, about, v, options, count, codes in (
        ("T-1", "rows, zeros among them", x, {"granularity": "row"}, 8, clear),
        ("T-1", "a tensor, threshold 0.5", general, tensor, 24, clear),
        ("T-1a", "half the mean of the first row is an entry of it", _eighths(), HALF, 8, rules.exact),
    ):
        found = SPEC.twn_code(v, **options)
        expect = [codes("codes", found.codes), rules.forward("scale", found.scale, found.scale, count + 4)]
        table.call(clause, about, [v], *expect, op="twn_code", **options)
    none = np.zeros((2, 4), np.float32)
    none[1] = -0.0
    for op, options in suite("ternary").QUANTIZERS:
        own = {**options, "granularity": "row"}
        table.call("T-1b", f"zeros of both signs, {options}", [none], rules.exact("", none), op=op, **options, clip=0.5)
        table.call("T-1b", f"a row of zeros above others, {options}", [y], rules.exact("0", y[0]), op=op, **own)
    about, fields = "a row of zeros above others", ("codes.0", "scale.0")
    table.exactly("T-1b", about, [y], *fields, op="twn_code", granularity="row")


def _values(table: Table, x: Array) -> None:
    given = _eighths()
    near = settled("T-2", fractions(24, 7, 3, 8), lambda v: np.sign(SPEC.twn(v, **HALF)))
    for about, v, options, count in (
        ("by rows", given, {"granularity": "row"}, 8),
        ("clip of 2.5", given, {"granularity": "tensor", "clip": 2.5}, given.size),
        ("threshold 0.5", near, HALF, 8),
    ):
        found = SPEC.twn(v, **options)
        table.call("T-2", about, [v], rules.forward("", found, np.abs(found), count + 4), **options)
    for op, options in suite("ternary").QUANTIZERS:
        for one, many, v, chosen in (("row", "rows", x, (0, 1, 2)), ("matrix", "matrices", x.reshape(3, 2, 4), (0, 2))):
            n, own = len(table["T-2a"]), {**options, "granularity": one}
            table.call("T-2a", f"all {many}, {options}", [v], op=op, **own)
            for i in chosen:
                rule = rules.same("0", n, str(i))
                table.call("T-2a", f"{one} {i} alone, {options}", [v[i : i + 1]], rule, op=op, **own)
        for granularity in ("row", "tensor"):
            n, own, about = len(table["T-2b"]), {**options, "granularity": granularity}, f"{options}, {granularity}"
            table.call("T-2b", f"clipped before, {about}", [np.clip(3 * x, -2.5, 2.5)], op=op, **own)
            table.call("T-2b", f"clipped inside, {about}", [3 * x], rules.same("", n), op=op, **own, clip=2.5)


def _uniform(table: Table, x: Array) -> None:
    outer = np.array([[0, 5, -5, 5, 0, 5], [3, -3, 3, 3, -3, 3]], np.float32)
    for outermost in ("published", "bounded"):
        options = {"bits": 3, "granularity": "row", "outermost": outermost}
        found = SPEC.clamped_uniform(x, **options)
        given = settled("T-3", fractions(24, 8, 3, 8), _uniform_codes, options)
        found = SPEC.clamped_uniform(given, **options)
        table.call("T-3", outermost, [given], rules.forward("", found, np.abs(found), 2 * 8 + 8), **options)
        level = np.array([[3, -3, 3, 3]], np.float32)
        found = SPEC.clamped_uniform(level, **options)
        about = f"equal magnitudes, {outermost}"
        table.call("T-3", about, [level], rules.forward("", found, np.abs(found), 2 * 4 + 8), **options)
        found = SPEC.clamped_uniform(outer, **options)
        about = f"magnitudes at the outermost level and zeros, {outermost}"
        table.call("T-3a", about, [outer], rules.forward("", found, np.abs(found), 8 + 8), **options)
    for bits in (3, 4):
        large = (np.array([1, -1, 1, 1, -1, 1]) * ((2**bits - 1) / 2)).astype(np.float32)
        ties = np.stack([[0.5, -0.5, 1.5, -1.5, 0.0, 1.0], [2.5, -2.5, 0.5, -1.5, -1.0, 2.0]]).astype(np.float32)
        given = np.concatenate([ties, np.stack([large, -large])], axis=1)
        for outermost in ("published", "bounded"):
            options = {"bits": bits, "granularity": "row", "outermost": outermost}
            found = SPEC.clamped_uniform(given, **options)
            table.call("T-3b", f"half steps, {bits} bits, {outermost}", [given], rules.exact("", found), **options)


def _min_max(table: Table, x: Array) -> None:
    inputs, wide = suite("ternary").FakeQuantInput, x.reshape(3, 2, 4)
    for scheme, epsilon in (("symmetric", 0.0), ("asymmetric", 0.125)):
        for granularity in ("row", "matrix", "tensor"):
            about, case = (
                f"{scheme}, {granularity}, epsilon {epsilon}",
                inputs(wide, {"granularity": granularity, "clip": 2.5}),
            )
            table.recorded("T-4", "test_min_max_values", about, case=case, bits=3, scheme=scheme, epsilon=epsilon)
    halves = np.concatenate([np.arange(-254, 255, 3)[None] / 2, [[127]]], axis=1).astype(np.float32)
    found = SPEC.min_max(halves)
    table.call("T-4a", "halves up to 127", [halves], rules.forward("", found, np.abs(found), 2))


def _uniform_codes(x: Array, options: Options) -> Array:
    """Codes of a clamped uniform quantizer of three bits."""
    step = np.array([_alpha(row) for row in x])[:, None] * 2 / 7
    return np.asarray(np.rint(SPEC.clamped_uniform(x, **options) / step))


def _alpha(row: Array) -> float:
    """Mean of the magnitudes above the mean magnitude."""
    a = np.abs(row.astype(np.float64))
    return float(a[a > a.mean()].mean())
