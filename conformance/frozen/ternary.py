"""Vectors of chapter T: ternary and min-max quantizers."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import rules
from .inputs import SPEC, Array, Options, Table, call, clear, eighths, exactly, recorded, settled, steady, suite

__all__ = ["build"]

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
    table["T-5"] = [exactly("straight_through", "values at the clip", [grad, edge], {"clip": 2.5})]
    near_clip = suite("ternary").FakeQuantInput(np.array([0.5, -0.0, 3], np.float32), {})
    recorded(table, "T-5", "test_gradients_pass_inside", ("next to clips that no format holds", {"case": near_clip}))


def _eighths() -> Array:
    """Rows of eight with a clear threshold, a tie with it, zeros, equal magnitudes."""
    x = np.array(
        [[1, -3, 4, 0, 2, 2, 2, 2], [9, 1, -1, 8, -30, 2, 0, 3], [0] * 8, [-5, 5, 5, -5, 5, 5, -5, 5]], np.float32
    )
    return x / np.float32(8)


def _codes(table: Table, x: Array, y: Array) -> None:
    tensor: Options = {"granularity": "tensor", "threshold": 0.5}
    general = settled(
        "T-1",
        lambda r: r.integers(-24, 25, (3, 8)).astype(np.float32) / np.float32(7),
        lambda v: SPEC.twn_code(v, **tensor).codes,
    )
    for clause, about, v, options, count, codes in (
        ("T-1", "rows, zeros among them", x, {"granularity": "row"}, 8, clear),
        ("T-1", "a tensor, threshold 0.5", general, tensor, 24, clear),
        ("T-1a", "half the mean of the first row is an entry of it", _eighths(), HALF, 8, rules.exact),
    ):
        found = SPEC.twn_code(v, **options)
        expect = [codes("codes", found.codes), rules.forward("scale", found.scale, found.scale, count + 4)]
        table[clause].append(call("twn_code", about, [v], options, expect))
    none = np.zeros((2, 4), np.float32)
    none[1] = -0.0
    for op, options in suite("ternary").QUANTIZERS:
        own = {**options, "granularity": "row"}
        table["T-1b"] += [
            call(op, f"zeros of both signs, {options}", [none], {**options, "clip": 0.5}, [rules.exact("", none)]),
            call(op, f"a row of zeros above others, {options}", [y], own, [rules.exact("0", y[0])]),
        ]
    about, fields = "a row of zeros above others", ("codes.0", "scale.0")
    table["T-1b"].append(exactly("twn_code", about, [y], {"granularity": "row"}, *fields))


def _values(table: Table, x: Array) -> None:
    given = _eighths()
    near = settled(
        "T-2",
        lambda r: r.integers(-24, 25, (3, 8)).astype(np.float32) / np.float32(7),
        lambda v: np.sign(SPEC.twn(v, **HALF)),
    )
    options: Options
    for about, v, options, count in (
        ("by rows", given, {"granularity": "row"}, 8),
        ("clip of 2.5", given, {"granularity": "tensor", "clip": 2.5}, given.size),
        ("threshold 0.5", near, HALF, 8),
    ):
        found = SPEC.twn(v, **options)
        table["T-2"].append(call("twn", about, [v], options, [rules.forward("", found, np.abs(found), count + 4)]))
    for op, options in suite("ternary").QUANTIZERS:
        own: Options = {**options, "granularity": "row"}
        n = len(table["T-2a"])
        table["T-2a"] += [call(op, f"all rows, {options}", [x], own, [])] + [
            call(op, f"row {i} alone, {options}", [x[i : i + 1]], own, [rules.same("0", n, str(i))]) for i in range(3)
        ]
        n, stack = len(table["T-2a"]), x.reshape(3, 2, 4)
        matrix: dict[str, Any] = {**options, "granularity": "matrix"}
        table["T-2a"] += [call(op, f"all matrices, {options}", [stack], matrix, [])] + [
            call(op, f"matrix {i} alone, {options}", [stack[i : i + 1]], matrix, [rules.same("0", n, str(i))])
            for i in (0, 2)
        ]
        for granularity in ("row", "tensor"):
            n = len(table["T-2b"])
            table["T-2b"] += [
                call(
                    op,
                    f"clipped before, {options}, {granularity}",
                    [np.clip(3 * x, -2.5, 2.5)],
                    {**options, "granularity": granularity},
                    [],
                ),
                call(
                    op,
                    f"clipped inside, {options}, {granularity}",
                    [3 * x],
                    {**options, "granularity": granularity, "clip": 2.5},
                    [rules.same("", n)],
                ),
            ]


def _uniform(table: Table, x: Array) -> None:
    options: Options
    outer = np.array([[0, 5, -5, 5, 0, 5], [3, -3, 3, 3, -3, 3]], np.float32)
    for outermost in ("published", "bounded"):
        options = {"bits": 3, "granularity": "row", "outermost": outermost}
        found = SPEC.clamped_uniform(x, **options)
        given = settled(
            "T-3", lambda r: r.integers(-24, 25, (3, 8)).astype(np.float32) / np.float32(8), _uniform_codes, options
        )
        found = SPEC.clamped_uniform(given, **options)
        table["T-3"].append(
            call("clamped_uniform", outermost, [given], options, [rules.forward("", found, np.abs(found), 2 * 8 + 8)])
        )
        level = np.array([[3, -3, 3, 3]], np.float32)
        found = SPEC.clamped_uniform(level, **options)
        table["T-3"].append(
            call(
                "clamped_uniform",
                f"equal magnitudes, {outermost}",
                [level],
                options,
                [rules.forward("", found, np.abs(found), 2 * 4 + 8)],
            )
        )
        found = SPEC.clamped_uniform(outer, **options)
        table["T-3a"].append(
            call(
                "clamped_uniform",
                f"magnitudes at the outermost level and zeros, {outermost}",
                [outer],
                options,
                [rules.forward("", found, np.abs(found), 8 + 8)],
            )
        )
    for bits in (3, 4):
        large = (np.array([1, -1, 1, 1, -1, 1]) * ((2**bits - 1) / 2)).astype(np.float32)
        ties = np.stack([[0.5, -0.5, 1.5, -1.5, 0.0, 1.0], [2.5, -2.5, 0.5, -1.5, -1.0, 2.0]]).astype(np.float32)
        given = np.concatenate([ties, np.stack([large, -large])], axis=1)
        for outermost in ("published", "bounded"):
            options = {"bits": bits, "granularity": "row", "outermost": outermost}
            found = SPEC.clamped_uniform(given, **options)
            about = f"half steps, {bits} bits, {outermost}"
            table["T-3b"].append(call("clamped_uniform", about, [given], options, [rules.exact("", found)]))


def _min_max(table: Table, x: Array) -> None:
    inputs, wide = suite("ternary").FakeQuantInput, x.reshape(3, 2, 4)
    recorded(
        table,
        "T-4",
        "test_min_max_values",
        *(
            (
                f"{scheme}, {granularity}, epsilon {epsilon}",
                {
                    "case": inputs(wide, {"granularity": granularity, "clip": 2.5}),
                    "bits": 3,
                    "scheme": scheme,
                    "epsilon": epsilon,
                },
            )
            for scheme, epsilon in (("symmetric", 0.0), ("asymmetric", 0.125))
            for granularity in ("row", "matrix", "tensor")
        ),
    )
    halves = np.concatenate([np.arange(-254, 255, 3)[None] / 2, [[127]]], axis=1).astype(np.float32)
    found = SPEC.min_max(halves)
    expect = [rules.forward("", found, np.abs(found), 2)]
    table["T-4a"] = [call("min_max", "halves up to 127", [halves], {}, expect)]


def _uniform_codes(x: Array, options: Options) -> Array:
    """Codes of a clamped uniform quantizer of three bits."""
    step = np.array([_alpha(row) for row in x])[:, None] * 2 / 7
    return np.asarray(np.rint(SPEC.clamped_uniform(x, **options) / step))


def _alpha(row: Array) -> float:
    """Mean of the magnitudes above the mean magnitude."""
    a = np.abs(row.astype(np.float64))
    return float(a[a > a.mean()].mean())
