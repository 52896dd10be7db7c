"""Vectors of chapters P, R, Q, N, T and S: randomness, rounding, grids, codebooks and fake quantizers."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import compare, laws, rules, strategies
from .inputs import (
    NARROW,
    SPEC,
    U32,
    Array,
    Case,
    Options,
    Table,
    call,
    clear,
    eighths,
    generator,
    near,
    recorded,
    settled,
    steady,
    suite,
)

__all__ = ["codebooks", "grids", "random", "steps", "ternary"]


def random(table: Table) -> None:
    high = 2**32 - 1
    words = np.array([[[0, 0, 0, 0], [high] * 4], [[1, 2, 3, 7], [2**31 - 1, 2**31, 0, high]]], np.int64)
    recorded(
        table,
        "P-1a",
        "test_words_depend_on_seed_and_address_alone",
        ("two by two addresses", {"counters": words, "seed": 2**64 - 1}),
        ("int32, a seed whose high word counts", {"counters": words[:, :1].clip(0, 9).astype(np.int32), "seed": 2**32}),
        ("one address without an axis", {"counters": words[1, 1], "seed": 0}),
    )


def grids(table: Table) -> None:
    options: Options
    levels = np.array([-1, -0.375, 0.25, 0.75, 2], np.float32) / np.float32(3)
    middles = (levels[1:].astype(np.float64) + levels[:-1]) / 2
    around = np.concatenate([middles * (1 + side * 2.0**-power) for power in (2, 8, 16, 19) for side in (-1, 1)])
    x = np.concatenate([levels, around, [-9, 9]]).astype(np.float32)
    index = SPEC.nearest_level(x, levels)
    left, right = levels[:-1].astype(np.float64), levels[1:].astype(np.float64)
    gap = np.abs(x[:, None] - (left + right) / 2) - compare.level_band(left, right, U32)
    if np.any(gap <= 0):
        raise ValueError("R-3: a value lies in the band of a midpoint")
    table["R-3"] = [
        call("nearest_level", "next to midpoints, outside their bands", [x, levels], {}, [clear("", index)])
    ]
    recorded(table, "Q-1", "test_codes_fill_their_range", ("both ends and beyond", {"dtype": NARROW}))
    table["Q-2b"] = []
    x = eighths("Q-2b", 4, 6)  # with one bit a scale is a range, of zeros 2: both are exact
    x[0], x[1, 3:], x[2, 1] = 0, 0, -0.0
    for shaped in (x, x.reshape(4, 2, 3)):
        for granularity, size in (("group", 1), ("group", 3), ("row", None), ("token", None), ("tensor", None)):
            if shaped.ndim == 3 and granularity == "row":
                continue
            options = {"bits": 1, "granularity": granularity, "group_size": size}
            found = SPEC.fit_grid(shaped, **options)
            table["Q-2b"].append(
                call(
                    "fit_grid",
                    f"{granularity} of {size}, {shaped.ndim} axes",
                    [shaped],
                    options,
                    [rules.exact(name, getattr(found, name)) for name in ("scale", "zero_point")],
                )
            )
    table["Q-2c"] = []
    rows = generator("Q-2c").standard_normal((6, 5)).astype(np.float32)
    rows[4], rows[5] = 0, [2.0**-40, 0, 0, -(2.0**-40), 0]
    for kind in ("float16", "bfloat16"):
        for scheme in ("asymmetric", "symmetric"):
            options = {"bits": 8, "scheme": scheme, "scale_dtype": kind}
            found, exact = SPEC.fit_grid(rows, **options), SPEC.fit_grid(rows, bits=8, scheme=scheme).scale
            slack = compare.gamma(4, U32) * exact + compare.tiny(2, "float32")
            low, high = (laws.round_to(kind, exact + side * slack) for side in (-1, 1))
            if np.any(low != high):
                raise ValueError(f"Q-2c: a scale lies next to a tie of {kind}")
            lo = np.minimum(rows.min(axis=1, keepdims=True), 0)
            ratio = np.where(
                np.any(rows, axis=1, keepdims=True), -lo.astype(np.float64) / found.scale, found.zero_point
            )
            zero = (
                clear("zero_point", found.zero_point)
                if scheme == "symmetric"
                else rules.codes("zero_point", found.zero_point, ratio, 1)
            )
            expect = [rules.interval("scale", low, high), zero]
            table["Q-2c"].append(call("fit_grid", f"{kind}, {scheme}", [rows], options, expect))
    table["Q-2d"] = []
    few = np.array([[0.25, -0.125], [3.0, -500.0], [0.0, -0.0]], np.float32)
    for scheme in strategies.SCHEMES:
        for clip in (1.0, 0.5):
            options = {"bits": 4, "scheme": scheme, "range_floor": 1.5, "clip_ratio": clip}
            found = SPEC.fit_grid(few, **options)
            expect = [rules.forward("scale", found.scale, found.scale, 4)]
            lo, zero = (
                np.minimum(few.min(axis=1, keepdims=True), 0).astype(np.float64),
                ~np.any(few, axis=1, keepdims=True),
            )
            ratio = np.where(zero, 0.0, -lo * clip / found.scale)
            expect.append(
                rules.codes("zero_point", found.zero_point, ratio, 6)
                if scheme == "asymmetric"
                else clear("zero_point", found.zero_point)
            )
            table["Q-2d"].append(
                call("fit_grid", f"below and above the floor, {scheme}, clip {clip}", [few], options, expect)
            )
    scale = (np.array([[3.0, 5.0], [7.0, 11.0]]) / 16).astype(np.float32)
    zeros = np.array([[2, 9], [0, 15]], np.int32)
    halves = np.tile(np.arange(-6, 6) / 2, (2, 1))
    tied = (halves * np.repeat(scale, 6, axis=1)).astype(np.float32)
    codes = SPEC.quantize(tied, scale, zeros, bits=4)
    shared = SPEC.quantize(tied, scale[:1], zeros[:1], bits=4)
    table["Q-3b"] = [
        call("quantize", "two groups of six, ties", [tied, scale, zeros], {"bits": 4}, [rules.exact("", codes)]),
        call(
            "quantize",
            "one row of scales for both",
            [tied, scale[:1], zeros[:1]],
            {"bits": 4},
            [rules.codes("", shared, tied.astype(np.float64) / np.repeat(scale[:1].astype(np.float64), 6, axis=1), 1)],
        ),
        call(
            "dequantize",
            "their values",
            [codes, scale, zeros],
            {},
            [rules.exact("", SPEC.dequantize(codes, scale, zeros).astype(np.float32))],
        ),
    ]
    table["Q-5"] = []
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
        table["Q-5"].append(call("clip_search", f"{scheme}, norm {norm}", [x], options, [rule]))


def codebooks(table: Table) -> None:
    options: Options
    dyadic, size = np.array([-1.0, -0.5, 0.0, 0.25, 1.0], np.float32), {"block_size": 16}
    scale = np.ldexp(np.float32(1), generator("N-2a").integers(-3, 4, 5)).astype(np.float32)
    codes = generator("N-2a").integers(0, 5, (3, 24)).astype(np.int32)
    values = dyadic[codes] * np.repeat(scale, 16)[:72].reshape(3, 24)
    largest = SPEC.block_scale(values, **size)
    table["N-2a"] = [
        call("dequantize_blocks", "72 values in blocks of 16", [codes, scale, dyadic], size, [rules.exact("", values)]),
        call("quantize_blocks", "72 values in blocks of 16", [values, scale, dyadic], size, [rules.exact("", codes)]),
        call(
            "block_scale",
            "72 values in blocks of 16",
            [values],
            size,
            [rules.exact("", largest)],
        ),
    ]
    levels = SPEC.normal_float(bits=4).astype(np.float32)
    middles = (levels[1:].astype(np.float64) + levels[:-1]) / 2
    values = np.concatenate([levels, *(middles * (1 + s * 2.0**-12) for s in (-1, 1)), [-1, 1]])
    scale = np.array([0.7, 1.3, 0.1], np.float32)
    x = (values * np.repeat(scale, 16)).astype(np.float32)[:48].reshape(2, 24)
    codes = SPEC.quantize_blocks(x, scale, levels, block_size=16)
    again = SPEC.quantize_blocks(
        (values[:48] * np.repeat(scale, 16)).astype(np.float64).reshape(2, 24), scale, levels, block_size=16
    )
    if not np.array_equal(codes, again):
        raise ValueError("N-3: a value lies in the band of a midpoint")
    options = {"block_size": 16}
    table["N-3"] = [
        call(
            "quantize_blocks",
            "next to midpoints of NF4, blocks across rows",
            [x, scale, levels],
            options,
            [clear("", codes)],
        )
    ]
    x = np.zeros((3, 7), np.float32)
    x[1, 2], x[2, 0] = -3, -0.0
    scale = SPEC.block_scale(x, block_size=5).astype(np.float32)
    codes = SPEC.quantize_blocks(x, scale, levels, block_size=5)
    back = SPEC.dequantize_blocks(codes, scale, levels, block_size=5).astype(np.float32)
    few = np.array([-1, -0.25, 0.5, 1], np.float32)
    table["N-3b"] = [
        call("block_scale", "zeros of both signs around one block", [x], {"block_size": 5}, [rules.exact("", scale)]),
        call("quantize_blocks", "NF4", [x, scale, levels], {"block_size": 5}, [rules.exact("", codes)]),
        call("dequantize_blocks", "NF4", [codes, scale, levels], {"block_size": 5}, [rules.exact("", back)]),
        call(
            "quantize_blocks",
            "levels without 0",
            [x, scale, few],
            {"block_size": 5},
            [rules.exact("", SPEC.quantize_blocks(x, scale, few, block_size=5))],
        ),
    ]
    scale = generator("N-5").integers(0, 64, 24).astype(np.float32)
    scale[-1] += np.ceil(scale.sum() / 24) * 24 - scale.sum()
    steps = np.array([-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0], np.float32)
    found = SPEC.quantize_scale(scale, steps, block_size=10)
    ratio = (scale.astype(np.float64) - found.offset) / np.repeat(found.scale, 10)[:24]
    middles = (steps[1:] + steps[:-1]).astype(np.float64) / 2
    if np.min(np.abs(ratio[:, None] - middles)) < 2.0**-12:
        raise ValueError("N-5: a quotient lies next to a midpoint")
    table["N-5"] = [
        call(
            "quantize_scale",
            "integers with an integer mean",
            [scale, steps],
            {"block_size": 10},
            [
                near("offset", found.offset, compare.gamma(25, U32) * float(np.mean(scale))),
                rules.forward("scale", found.scale, found.scale, 1),
                clear("codes", found.codes),
            ],
        )
    ]
    few = ((np.arange(32) - 11.25) / 23).astype(np.float32)
    held, strength = generator("N-6a").integers(0, 32, (3, 24)).astype(np.int32), np.array([0.7, 1.9, 0.4], np.float32)
    recorded(
        table,
        "N-6a",
        suite("codebook").check_product,
        (
            "5 bits, codes across words, blocks across rows",
            {"x": eighths("N-6a", 2, 24), "codes": held, "scale": strength, "levels": few, "bits": 5, "block_size": 32},
        ),
    )
    w = eighths("N-7", 4, 12)
    w[2] = 0
    options = {"rank": 2, "bits": 2, "block_size": 8, "iterations": 1}
    first = SPEC.loftq(w, **options)
    steady(lambda v: SPEC.loftq(v, **options).codes, w, "N-7")
    block = np.repeat(first.scale, 8).reshape(4, 12)
    table["N-7"] = [
        call(
            "loftq",
            "the first iterate, a row of zeros",
            [w],
            options,
            [
                rules.forward("scale", first.scale, first.scale, 1),
                clear("codes", first.codes),
                near(
                    "weight", first.weight, compare.gamma(3, U32) * np.abs(first.weight) + compare.gamma(4, U32) * block
                ),
            ],
        )
    ]
    target = w.astype(np.float64) - first.weight
    tail = float(np.linalg.norm(np.linalg.svd(target, compute_uv=False)[2:]))
    formed = 2 * compare.gamma(4, U32) * float(np.linalg.norm(np.abs(w) + np.abs(first.weight)))
    # the weight that a backend stores is off by its own error, which moves the target as much
    moved = float(np.linalg.norm(compare.gamma(3, U32) * np.abs(first.weight) + compare.gamma(4, U32) * block))
    allowed = compare.residual_gap(float(np.linalg.norm(target)), 12, U32) + formed + 2 * moved
    table["N-7a"] = [
        call(
            "loftq",
            "the first iterate, a row of zeros",
            [w],
            options,
            [rules.residual(target, np.eye(12), tail, allowed / compare.gamma(1, U32), 1)],
        )
    ]
    later = {**options, "iterations": 2, "keep": "last"}
    w = settled(
        "N-7",
        lambda r: r.integers(-24, 25, (4, 12)).astype(np.float32) / np.float32(8),
        lambda v: SPEC.loftq(v, **later).codes,
    )
    table["N-7"].append(call("loftq", "the second iterate", [w], later, [clear("codes", SPEC.loftq(w, **later).codes)]))
    recorded(table, "N-7d", "test_uniform_quantizer_of_a_constant_weight", ("a constant weight", {}))

    def outlying(random: np.random.Generator) -> Array:
        w = random.integers(-24, 25, (3, 6)).astype(np.float32) / np.float32(8)
        w[0, 0] = 9
        return w

    uniform = {"rank": 1, "bits": 3, "quantizer": "uniform", "iterations": 1}
    w = settled("N-7d", outlying, lambda v: SPEC.loftq(v, **uniform).codes)
    found = SPEC.loftq(w, **uniform)
    slack = compare.deviation_slack(w.size, 9.0, U32)
    values, error = np.abs(found.offset) + found.scale * found.codes, slack + 7 * 3 * slack / 7
    table["N-7d"].append(
        call(
            "loftq",
            "a weight beyond two deviations",
            [w],
            uniform,
            [
                near("offset", found.offset, [slack]),
                near("scale", found.scale, [3 * slack / 7]),
                clear("codes", found.codes),
                near("weight", found.weight, error + compare.gamma(4, U32) * values),
            ],
        )
    )


def ternary(table: Table) -> None:
    options: Options
    ops: tuple[tuple[str, dict[str, Any]], ...] = suite("ternary").QUANTIZERS
    x = eighths("T-1", 3, 8)
    x[1, :4] = 0
    code = SPEC.twn_code(x, granularity="row")
    steady(lambda v: SPEC.twn_code(v, granularity="row").codes, x, "T-1")
    table["T-1"] = [
        call(
            "twn_code",
            "rows, zeros among them",
            [x],
            {"granularity": "row"},
            [clear("codes", code.codes), rules.forward("scale", code.scale, code.scale, 8 + 4)],
        )
    ]
    half: dict[str, Any] = {"granularity": "tensor", "threshold": 0.5}
    general = settled(
        "T-1",
        lambda r: r.integers(-24, 25, (3, 8)).astype(np.float32) / np.float32(7),
        lambda v: SPEC.twn_code(v, **half).codes,
    )
    code = SPEC.twn_code(general, **half)
    table["T-1"].append(
        call(
            "twn_code",
            "a tensor, threshold 0.5",
            [general],
            half,
            [clear("codes", code.codes), rules.forward("scale", code.scale, code.scale, 24 + 4)],
        )
    )
    y, none = x.copy(), np.zeros((2, 4), np.float32)
    y[0], none[1] = 0, -0.0
    table["T-1b"], table["T-2a"], table["T-2b"] = [], [], []
    for op, options in ops:
        own: dict[str, Any] = {**options, "granularity": "row"}
        table["T-1b"] += [
            call(op, f"zeros of both signs, {options}", [none], {**options, "clip": 0.5}, [rules.exact("", none)]),
            call(op, f"a row of zeros above others, {options}", [y], own, [rules.exact("0", y[0])]),
        ]
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
    code = SPEC.twn_code(y, granularity="row")
    table["T-1b"].append(
        call(
            "twn_code",
            "a row of zeros above others",
            [y],
            {"granularity": "row"},
            [rules.exact("codes.0", code.codes[0]), rules.exact("scale.0", code.scale[0])],
        )
    )
    table["T-3"], table["T-3a"] = [], []
    outer = np.array([[0, 5, -5, 5, 0, 5], [3, -3, 3, 3, -3, 3]], np.float32)
    for outermost in ("published", "bounded"):
        options = {"bits": 3, "granularity": "row", "outermost": outermost}
        found = SPEC.clamped_uniform(x, **options)
        given = settled(
            "T-3",
            lambda r: r.integers(-24, 25, (3, 8)).astype(np.float32) / np.float32(8),
            _uniform_codes,
            options,
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
    table["T-3b"] = []
    for bits in (3, 4):
        large = (np.array([1, -1, 1, 1, -1, 1]) * ((2**bits - 1) / 2)).astype(np.float32)
        ties = np.stack([[0.5, -0.5, 1.5, -1.5, 0.0, 1.0], [2.5, -2.5, 0.5, -1.5, -1.0, 2.0]]).astype(np.float32)
        given = np.concatenate([ties, np.stack([large, -large])], axis=1)
        for outermost in ("published", "bounded"):
            options = {"bits": bits, "granularity": "row", "outermost": outermost}
            found = SPEC.clamped_uniform(given, **options)
            about = f"half steps, {bits} bits, {outermost}"
            table["T-3b"].append(call("clamped_uniform", about, [given], options, [rules.exact("", found)]))
    inputs = suite("ternary").FakeQuantInput
    wide = x.reshape(3, 2, 4)
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


def _uniform_codes(x: Array, options: Options) -> Array:
    """Codes of a clamped uniform quantizer of three bits."""
    step = np.array([_alpha(row) for row in x])[:, None] * 2 / 7
    return np.asarray(np.rint(SPEC.clamped_uniform(x, **options) / step))


def _alpha(row: Array) -> float:
    """Mean of the magnitudes above the mean magnitude."""
    a = np.abs(row.astype(np.float64))
    return float(a[a > a.mean()].mean())


def steps(table: Table) -> None:
    random = generator("S")
    x = eighths("S-1a", 4, 6)
    x[0], x[2] = 0, -0.0
    table["S-1a"] = []
    for rule in ("mean", "mean-doubled", "deviation", "min-max"):
        found = SPEC.lsq_init(x, bits=3, axis=0, rule=rule)
        table["S-1a"].append(
            call(
                "lsq_init",
                f"rows of zeros of both signs, {rule}",
                [x],
                {"bits": 3, "axis": 0, "rule": rule},
                [rules.exact(f"step.{i}", found.step[i]) for i in (0, 2)],
            )
        )
    general, grad = (random.integers(-99, 100, (3, 8)).astype(np.float32) / np.float32(17) for _ in range(2))
    general[1, :3] = [0, -0.0, 99]
    step, offset = np.array([0.3, 1.7, 0.9], np.float32), np.array([0.4, -2.2, 0], np.float32)
    held: dict[str, Any] = {"bits": 3, "signed": True, "axis": 0, "epsilon": 0.0}
    make = strategies.LearnedStepInput
    with_offset, without = make(general, grad, step, offset, held), make(general, grad, step, None, held)
    unsigned = make(general, grad, step[:1], None, {"bits": 2, "signed": False, "axis": None, "epsilon": 0.5})
    both = [("signed, offsets", with_offset), ("unsigned, one step, raised to epsilon", unsigned)]
    recorded(table, "S-2", "test_codes", *((about, {"case": one}) for about, one in both))
    recorded(
        table, "S-2b", "test_the_floor_of_the_step", *((about, {"case": one, "epsilon": 0.5}) for about, one in both)
    )
    recorded(table, "S-3", "test_values", *((about, {"case": one}) for about, one in both))
    low, high = -4, 3
    v = (general.astype(np.float64) - offset[:, None]) / step[:, None]
    if np.min(np.abs(v - low)) < 2.0**-12 or np.min(np.abs(v - high)) < 2.0**-12:
        raise ValueError("S-4: a quotient lies next to an end")
    passed = np.where((v >= low) & (v <= high), grad, np.float32(0))
    table["S-4"] = [
        call(
            "lsq_gradient",
            "inside and outside",
            [grad, general, step, offset],
            held,
            [rules.interval("x", passed, passed)],
        )
    ]
    recorded(table, "S-5", "test_step_gradients", *((about, {"case": one}) for about, one in both))
    recorded(
        table,
        "S-5a",
        "test_counts",
        ("elements", {"case": without, "count": "elements"}),
        ("features", {"case": unsigned, "count": "features"}),
    )
    recorded(
        table,
        "S-5b",
        "test_gradients_pass_through_the_floor",
        ("offsets", {"case": with_offset, "epsilon": 4.0}),
        ("one step", {"case": unsigned, "epsilon": 0.5}),
    )
    recorded(table, "S-6", "test_offset_gradients", ("offsets", {"case": with_offset}))
    apart: list[Case] = []
    arrays = [general, step, offset]
    apart.append(call("lsq", "all rows", arrays, held, []))
    apart.append(call("lsq_gradient", "all rows", [grad, *arrays], held, []))
    for i in range(3):
        own = slice(i, i + 1)
        alone = [general[own], step[own], offset[own]]
        apart.append(call("lsq", f"row {i} alone", alone, held, [rules.same("0", 0, str(i))]))
        apart.append(
            call("lsq_gradient", f"row {i} alone", [grad[own], *alone], held, [rules.same("x.0", 1, f"x.{i}")])
        )
    table["S-2c"] = apart
