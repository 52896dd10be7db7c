"""Vectors of chapter Q: uniform grids."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import compare, laws, rules, strategies
from .inputs import NARROW, SPEC, U32, Array, Options, Table, clear, eighths, first_draws, generator, hard_scales, suite

SUM = 4
"""Roundings of a grid: clip, clip, difference, division."""


def build(table: Table) -> None:
    table.recorded("Q-1", "test_codes_fill_their_range", "both ends and beyond", dtype=NARROW)
    _grids(table)
    _stored(table)
    _codes(table)
    _searches(table)
    zeros = np.zeros((2, 8), np.float32)
    for scheme in ("asymmetric", "symmetric", "symmetric-full"):
        for bits in (2, 3, 4, 8):
            options: Options = {"bits": bits, "scheme": scheme}
            found = SPEC.fit_grid(zeros, **options)
            expect = [rules.forward("scale", found.scale, found.scale, 1), rules.exact("zero_point", found.zero_point)]
            table.call("Q-8", f"all zero, {scheme}, {bits} bits", [zeros], *expect, **options)
    table.recorded("Q-8", "test_constant_groups_fall_back_to_a_range_with_zero", "constant groups", dtype=NARROW)


def _fitted(table: Table, clause: str, x: Array, about: str, **options: Any) -> None:
    """Ranges that hold zero."""
    found = SPEC.fit_grid(x, **options)
    size = options.get("group_size") or x.shape[1]
    groups = x.reshape(len(x), -1, size).astype(np.float64)
    lo, hi = np.minimum(groups.min(axis=-1), 0), np.maximum(groups.max(axis=-1), 0)
    expect = [rules.forward("scale", found.scale, found.scale, SUM)]
    if options.get("scheme", "asymmetric") == "asymmetric":
        low = -lo * options.get("clip_ratio", 1.0) / found.scale
        ratio = np.where((lo == 0) & (hi == 0), 0.0, low)
        expect.append(rules.codes("zero_point", found.zero_point, ratio, SUM + 2))
    else:
        expect.append(rules.exact("zero_point", found.zero_point))
    table.call(clause, about, [x], *expect, **options)


def _grids(table: Table) -> None:
    options: Options
    x = first_draws().x
    _fitted(table, "Q-2", x, "rows, the last all zero", bits=3)
    _fitted(table, "Q-2", x, "groups of 4", bits=4, granularity="group", group_size=4)
    _fitted(table, "Q-2", x, "clipped", bits=8, clip_ratio=0.75)
    for s in strategies.SCHEMES[1:]:
        for b in (2, 4):
            _fitted(table, "Q-2a", x, s, bits=b, scheme=s)
    apart = np.array([[1, 2.5, 7, 3], [-1, -4, -2, -9], [0.5, 0.25, 0, 6]], np.float32)
    options = {"bits": 4, "include_zero": False}
    found = SPEC.fit_grid(apart, **options)
    ratio = -apart.min(axis=1, keepdims=True).astype(np.float64) / found.scale
    reach = (np.abs(apart.min(axis=1)) + np.abs(apart.max(axis=1)))[:, None] / 15
    expect = [rules.forward("scale", found.scale, reach, SUM), rules.codes("zero_point", found.zero_point, ratio, 10)]
    table.call("Q-2", "ranges without zero", [apart], *expect, **options)
    for scheme in strategies.SCHEMES[1:]:
        _fitted(table, "Q-2a", apart, f"values on one side of zero, {scheme}", bits=4, scheme=scheme)
    x = eighths("Q-2b", 4, 6)  # with one bit a scale is a range, of zeros 2: both are exact
    x[0], x[1, 3:], x[2, 1] = 0, 0, -0.0
    for shaped in (x, x.reshape(4, 2, 3)):
        for granularity, size in (("group", 1), ("group", 3), ("row", None), ("token", None), ("tensor", None)):
            if shaped.ndim == 3 and granularity == "row":
                continue
            options = {"bits": 1, "granularity": granularity, "group_size": size}
            about = f"{granularity} of {size}, {shaped.ndim} axes"
            table.exactly("Q-2b", about, [shaped], "scale", "zero_point", **options)


def _stored(table: Table) -> None:
    options: Options
    rows = generator("Q-2c").standard_normal((6, 5)).astype(np.float32)
    rows[4], rows[5] = 0, [2.0**-40, 0, 0, -(2.0**-40), 0]
    lo = np.minimum(rows.min(axis=1, keepdims=True), 0).astype(np.float64)
    for kind in ("float16", "bfloat16"):
        for scheme in ("asymmetric", "symmetric"):
            options = {"bits": 8, "scheme": scheme, "scale_dtype": kind}
            found, exact = SPEC.fit_grid(rows, **options), SPEC.fit_grid(rows, bits=8, scheme=scheme).scale
            slack = compare.gamma(4, U32) * exact + compare.tiny(2, "float32")
            low, high = (laws.round_to(kind, exact + side * slack) for side in (-1, 1))
            if np.any(low != high):
                raise ValueError(f"Q-2c: a scale lies next to a tie of {kind}")
            ratio = np.where(np.any(rows, axis=1, keepdims=True), -lo / found.scale, found.zero_point)
            zero = (
                clear("zero_point", found.zero_point)
                if scheme == "symmetric"
                else rules.codes("zero_point", found.zero_point, ratio, 1)
            )
            table.call("Q-2c", f"{kind}, {scheme}", [rows], rules.interval("scale", low, high), zero, **options)
    few = np.array([[0.25, -0.125], [3.0, -500.0], [0.0, -0.0]], np.float32)
    lo, dead = np.minimum(few.min(axis=1, keepdims=True), 0).astype(np.float64), ~np.any(few, axis=1, keepdims=True)
    for scheme in strategies.SCHEMES:
        for clip in (1.0, 0.5):
            options = {"bits": 4, "scheme": scheme, "range_floor": 1.5, "clip_ratio": clip}
            found = SPEC.fit_grid(few, **options)
            ratio = np.where(dead, 0.0, -lo * clip / found.scale)
            zero = (
                rules.codes("zero_point", found.zero_point, ratio, 6)
                if scheme == "asymmetric"
                else clear("zero_point", found.zero_point)
            )
            expect = [rules.forward("scale", found.scale, found.scale, 4), zero]
            table.call("Q-2d", f"below and above the floor, {scheme}, clip {clip}", [few], *expect, **options)


def _codes(table: Table) -> None:
    options: Options
    drawn = first_draws()
    general, steps, points = drawn.general, drawn.steps, drawn.points
    codes = SPEC.quantize(general, steps, points, bits=4)
    ratio = general.astype(np.float64) / np.repeat(steps.astype(np.float64), 4, axis=1)
    table.call("Q-3", "general", [general, steps, points], rules.codes("", codes, ratio, 1), bits=4)
    scale, zero = (np.array([[3.0, 5.0], [7.0, 11.0]]) / 16).astype(np.float32), np.array([[2, 9], [0, 15]], np.int32)
    wide = np.repeat(scale, 6, axis=1)
    tied = (np.arange(-12, 12).reshape(2, 12) / 2 * wide).astype(np.float32)
    for scheme, z in (("asymmetric", zero), ("symmetric", zero * 0)):
        table.exactly("Q-3a", f"x / s is a multiple of 1/2, {scheme}", [tied, scale, z], bits=4, scheme=scheme)
    hard = hard_scales()
    off, none = (hard * (np.arange(-31, 32, 2)[None] / 2)).astype(np.float32), np.zeros(hard.shape, np.int32)
    options, about = {"bits": 5, "scheme": "symmetric"}, "ties whose product with a reciprocal is off"
    table.exactly("Q-3a", about, [off, hard, none], **options)
    tied = (np.tile(np.arange(-6, 6) / 2, (2, 1)) * wide).astype(np.float32)
    held = SPEC.quantize(tied, scale, zero, bits=4)
    shared = SPEC.quantize(tied, scale[:1], zero[:1], bits=4)
    ratio = tied.astype(np.float64) / wide[:1].astype(np.float64)
    restored = rules.exact("", SPEC.dequantize(held, scale, zero).astype(np.float32))
    table.exactly("Q-3b", "two groups of six, ties", [tied, scale, zero], op="quantize", bits=4)
    about = "one row of scales for both"
    table.call("Q-3b", about, [tied, scale[:1], zero[:1]], rules.codes("", shared, ratio, 1), op="quantize", bits=4)
    table.call("Q-3b", "their values", [held, scale, zero], restored, op="dequantize")
    values = SPEC.dequantize(codes, steps, points)
    table.call("Q-4", "general", [codes, steps, points], rules.forward("", values, np.abs(values), 1))


def _searches(table: Table) -> None:
    options: Options
    grid_error = suite("uniform").grid_error
    x = generator("Q-5").standard_t(3, (6, 12)).astype(np.float32)
    x[5] = [1, -1] * 6
    for scheme, norm in (("asymmetric", 2.4), ("symmetric-full", 1.0)):
        options = {"bits": 3, "scheme": scheme, "norm": norm, "grid": 20, "max_shrink": 0.75}
        costs = []
        for step in range(15):
            own = SPEC.fit_grid(x, bits=3, scheme=scheme, clip_ratio=1 - step / 20)
            s, z = own.scale[..., 0], own.zero_point[..., 0]
            costs.append(grid_error(x.astype(np.float64), s, z, bits=3, scheme=scheme, norm=norm)[:, None])
        found = SPEC.clip_search(x, **options)
        reach = np.abs(x.astype(np.float64)).max(axis=1, keepdims=True) + found.scale * 8
        slack = compare.gamma(12 + 8, U32) * (1 + norm) * 12 * reach**norm + compare.tiny(12, NARROW)
        rule = rules.candidate("step", np.arange(15, dtype=np.int32), np.array(costs), slack / compare.gamma(1, U32), 1)
        table.call("Q-5", f"{scheme}, norm {norm}", [x], rule, **options)
    table.exactly("Q-5a", "all zero", [np.zeros((2, 8), np.float32)], "step", bits=4)
