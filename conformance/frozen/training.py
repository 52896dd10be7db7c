"""Vectors of chapters O, B, U and M: oscillation, binary codes, their scales, and mixed precision."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import compare, laws, rules, strategies
from ..recording import Draws
from .inputs import (
    NARROW,
    SPEC,
    U32,
    Array,
    Options,
    Table,
    call,
    clear,
    eighths,
    generator,
    near,
    recorded,
    settled,
    suite,
)

__all__ = ["binary", "mixed", "oscillation", "scales"]


EVEN = np.array([[1, -1, 2.25, 3.75], [0, 4, 2, -2], [8, -8, -0.0, 0], [0.5, -0.5, 7.5, -7.5]], np.float32)
"""Rows whose scales are powers of two: nothing rounds."""


def oscillation(table: Table) -> None:
    w = generator("O").integers(-99, 100, (3, 6)).astype(np.float32) / np.float32(17)
    w[1, :3], w[2] = [0, -0.0, 6], 0
    for clause, test in (("O-1", "test_codes"), ("O-1a", "test_scale")):
        recorded(
            table,
            clause,
            test,
            *((f"{bits} bits, a row of zeros", {"w": w, "bits": bits}) for bits in (1, 3)),
            ("a stack of two", {"w": np.stack([w, w[::-1]]), "bits": 4}),
        )
    recorded(table, "O-1b", "test_values", *((f"{b} bits, exact scales", {"w": EVEN, "bits": b}) for b in (1, 2, 3, 4)))
    g = eighths("O-3a", 4, 4)
    still = g * (generator("O-5").random((4, 4)) < 0.6)
    recorded(
        table,
        "O-3a",
        "test_gradient_through_the_scale",
        *((f"{b} bits", {"case": (EVEN, g), "bits": b}) for b in (1, 2, 3)),
    )
    states = [(1, 0, -1), (0, 1, 1), (2, 2, 1), (-1, 0, 1), (0, 0, 0), (-3, 3, 1)]
    recorded(
        table,
        "O-4b",
        "test_running_means",
        *(
            (
                f"momentum {m}",
                {
                    "codes": states,
                    "momentum": m,
                    "dtype": NARROW,
                    "data": Draws([0, 16, 3, 5, 0, 8], [16, 0, 7, 2, 0, 1]),
                },
            )
            for m in (0.01, 0.3)
        ),
    )
    recorded(
        table,
        "O-5",
        "test_boundary_statistics",
        *(
            (
                f"{thresholds}, range {width}",
                {"case": (EVEN, still), "bits": 2, "width": width, "thresholds": thresholds},
            )
            for thresholds in ("all", "occupied")
            for width in (0.0, 0.25)
        ),
    )
    recorded(
        table,
        "O-6",
        "test_mask",
        *(
            (f"{thresholds}, {bits} bits", {"w": w, "bits": bits, "width": 0.1, "thresholds": thresholds})
            for thresholds in ("all", "occupied")
            for bits in (1, 3)
        ),
    )
    arrays = (eighths("O-7a", 2, 5), eighths("O-7aa", 2, 5), eighths("O-7ab", 2, 5), np.abs(eighths("O-7ac", 2, 5)))
    on = np.array([[1, 1, 0, 1, 0], [0, 1, 1, 0, 1]], np.bool_)
    adam = {"step": 2, "lr": 0.1, "beta1": 0.9, "beta2": 0.95, "epsilon": 0.125, "decay": 0.1}
    recorded(table, "O-7a", "test_active_weights", ("active and frozen", {"case": ((*arrays, on), adam)}))
    recorded(table, "O-7a", "test_a_weight_without_gradient_stays", ("0 / 0", {"dtype": NARROW, "step": 1}))
    layers = suite("oscillation").Layer
    shapes = ((2, 3, 4), (4, 4), (4, 4), (6, 4), (4,), (6,))
    layer = layers(*(eighths(f"O-8{i}", *shape, limit=12) for i, shape in enumerate(shapes)), 2)
    layer.x[1, 2] = 0
    grad, mask = eighths("O-8g", 8, 4), generator("O-8m").random((8, 4)) < 0.5
    recorded(table, "O-8a", "test_product_gradient", ("two heads", {"case": (layer, grad, mask)}))
    recorded(table, "O-9", "test_attention", ("two heads, a token of zeros", {"layer": layer}))
    recorded(table, "O-9a", "test_query_bias", *((b, {"layer": layer, "biases": b}) for b in ("kept", "dropped")))


def binary(table: Table) -> None:
    options: Options
    w = np.array([[4, -4, 12, -12, 4, 4, -12, -4], [1, 3, 5, 7, -1, -3, -5, -7]], np.float32)
    table["B-1"], table["B-1b"] = [], []
    for bits, group, offset in ((2, None, False), (3, 4, False), (2, 4, True)):
        options = {"bits": bits, "group_size": group, "method": "greedy", "offset": offset}
        found = SPEC.bcq(w, **options)
        g, size = group or 8, np.abs(w).reshape(2, -1, group or 8).mean(axis=2)
        reach = (
            (size + (np.abs(found.offset) if offset else 0))[..., None] + np.cumsum(found.scale, axis=2) - found.scale
        )
        rounds = 2 * g + bits + 4
        expect = [clear("codes", found.codes), rules.forward("scale", found.scale, reach, rounds)]
        if offset:
            expect.append(rules.forward("offset", found.offset, size, g + 1))
        table["B-1"].append(call("bcq", f"{bits} planes, groups of {g}, offset {offset}", [w], options, expect))
    dyadic = np.array([[0, 4, -4, 0, 1, -3, 3, 5], [2, -2, 2, 6, -0.0, 0, 0, 0]], np.float32)
    for size in (2, 4):
        options = {"bits": 2, "group_size": size, "method": "greedy"}
        found = SPEC.bcq(dyadic, **options)
        expect = [rules.exact("codes", found.codes), rules.exact("scale", found.scale)]
        table["B-1b"].append(call("bcq", f"groups of {size}, one of zeros", [dyadic], options, expect))
    general = generator("B-2").integers(-99, 100, (3, 12)).astype(np.float32) / np.float32(16)
    table["B-2"], table["B-3"] = [], []
    for clause, method, more in (("B-2", "refined", {}), ("B-3", "alternating", {"rounds": 1})):
        for bits, offset in ((2, False), (2, True), (3, False)):
            options = {"bits": bits, "method": method, "offset": offset, **more}
            given = settled(
                clause,
                lambda r: r.integers(-99, 100, (3, 12)).astype(np.float32) / np.float32(16),
                _rounds,
                options,
            )
            found = SPEC.bcq(given, **options)
            table[clause].append(
                call(
                    "bcq",
                    f"{bits} planes, offset {offset}",
                    [given],
                    options,
                    [clear("codes", found.codes), *_solved(given, found, bits)],
                )
            )
    table["B-4"], table["B-4a"] = [], []
    codes = generator("B-4").integers(0, 4, (3, 12)).astype(np.int32)
    equal, opposite = (np.where(codes & 1, one, other).astype(np.int32) for one, other in ((3, 0), (1, 2)))
    for clause, planes in (
        ("B-4", (("any codes", codes),)),
        ("B-4a", (("equal planes", equal), ("opposite planes", opposite))),
    ):
        for about, held in planes:
            for offset in (False, True):
                options = {"bits": 2, "offset": offset}
                found = SPEC.bcq_refit(general, held, **options)
                table[clause].append(
                    call(
                        "bcq_refit",
                        f"{about}, offset {offset}",
                        [general, held],
                        options,
                        [rules.exact("codes", held), *_solved(general, found, 2)],
                    )
                )
    scale = np.array([[[0.5, 1.25]], [[-0.75, 0.25]], [[1, 1]]], np.float32)
    shift = np.array([[2.125], [-0.5], [-1]], np.float32)
    general = settled(
        "B-5",
        lambda r: r.integers(-99, 100, (3, 12)).astype(np.float32) / np.float32(16),
        lambda v: SPEC.bcq_assign(v[:2], scale[:2], shift[:2]),
    )
    arrays: list[Any] = [general[:2], scale[:2], shift[:2]]
    table["B-5"] = [call("bcq_assign", "two planes", arrays, {}, [clear("", SPEC.bcq_assign(*arrays))])]
    three = np.array([[[1, 0.75, 0.625]], [[-0.25, 1, 0.5625]]], np.float32)
    middle = np.array([[0.0], [0.25]], np.float32)
    weights = settled(
        "B-5",
        lambda r: r.integers(-99, 100, (2, 12)).astype(np.float32) / np.float32(37),
        lambda v: SPEC.bcq_assign(v, three, middle),
    )
    table["B-5"].append(
        call(
            "bcq_assign",
            "three planes",
            [weights, three, middle],
            {},
            [clear("", SPEC.bcq_assign(weights, three, middle))],
        )
    )
    shape = strategies.BinaryInput(codes, scale, shift, general, eighths("B-10a", 2, 12))
    recorded(
        table,
        "B-10a",
        "test_spare_bits_are_not_looked_at",
        ("with offsets", {"case": shape}),
        ("without", {"case": shape._replace(offset=None)}),
    )


def _rounds(w: Array, options: Options) -> Array:
    """Codes, if the round after the last one would still change them."""
    codes = np.asarray(SPEC.bcq(w, **options).codes)
    if "rounds" in options and np.array_equal(codes, SPEC.bcq(w, **{**options, "rounds": options["rounds"] + 1}).codes):
        raise ValueError("B-3: one round more changes nothing")
    return codes


def _solved(w: Array, found: Any, bits: int) -> list[dict[str, Any]]:
    """Scales (and offsets) of a least-squares fit within the error of its normal equations."""
    binary = suite("binary_coding")
    with_offset = found.offset is not None
    error = []
    for row, codes in zip(w.astype(np.float64), np.asarray(found.codes), strict=True):
        A = binary.with_ones(binary.plus_minus(codes, bits), with_offset)
        error.append(binary.solve(row, A, U32).error)
    off = np.array(error)[:, None, None] + U32 * np.abs(found.scale) + compare.tiny(w.shape[1], NARROW)
    expect = [near("scale", found.scale, off)]
    if with_offset:
        expect.append(near("offset", found.offset, off[:, :, 0] + U32 * np.abs(found.offset)))
    return expect


def scales(table: Table) -> None:
    recorded(
        table,
        "U-1a",
        "test_the_lower_of_equal_planes_trains",
        *((f"{bits} planes", {"dtype": NARROW, "bits": bits}) for bits in (2, 4)),
    )
    recorded(table, "U-2b", "test_planes_are_bits", *((f"{b} planes", {"dtype": NARROW, "bits": b}) for b in (1, 3, 5)))
    recorded(
        table,
        "U-5b",
        "test_the_nearest_fit",
        *(
            (f"{b} planes, {g} groups, the last dead", {"dtype": NARROW, "bits": b, "groups": g})
            for b, g in ((2, 1), (3, 2))
        ),
    )
    w, c = eighths("U-5a", 3, 4), np.diag([1.0, 2, 4, 8]).astype(np.float32)
    codes = generator("U-5a").integers(0, 4, (3, 4)).astype(np.int32)
    scale = np.array([[[0.3, 0.7]], [[0.1, 0.9]], [[0.2, 0.2]]], np.float32)
    mask = np.array([[[True, True]], [[False, False]], [[True, False]]])
    table["U-5a"] = [
        call(
            "fit_scales",
            "a row that does not train, and half a row",
            [w, c, codes, scale, mask],
            {},
            [rules.exact("1", scale[1]), rules.exact("2.0.1", scale[2, 0, 1])],
        )
    ]


def mixed(table: Table) -> None:
    recorded(
        table,
        "M-1",
        "test_clusters_of_words",
        *(
            (f"{v} words, {b} clusters, ratio {r}", {"v": v, "clusters": b, "ratio": r})
            for v, b, r in ((0, 2, 1), (1, 4, 1), (37, 4, 2), (60, 3, 9))
        ),
    )
    allocation = strategies.Allocation
    sizes = np.tile(np.arange(1, 5, dtype=np.int32) * 2, (3, 1))
    convex = np.array([[40, 12, 5, 3], [9, 5, 2, 1], [30, 30, 30, 30]], np.float32)
    recorded(
        table,
        "M-2a",
        "test_convex_errors_reach_the_optimum",
        *((f"budget {b}", {"case": allocation(convex, sizes, b)}) for b in (6, 11, 14, 24)),
    )
    recorded(
        table,
        "M-2b",
        "test_equal_slopes",
        ("errors on one line", {"dtype": NARROW, "blocks": 3, "widths": 3}),
        skip=("error",),
    )
    recorded(
        table,
        "M-2b",
        "test_points_on_one_line_keep_their_order",
        ("0.1, -2.3, -4.7", {"dtype": "float64"}),
        skip=("error",),
    )
    table["M-2c"] = []
    bent = np.array([[100, 0, -1], [5, 4, 3.5], [9, 8, 1]], np.float32) / np.float32(7)
    dear = np.array([[1, 9, 10], [1, 2, 3], [2, 4, 7]], np.int32)
    short = np.array([[55, 45, 15, 10], [46, 41, 7, 7], [28, 25, 22, 4]], np.float32)  # greedy does not reach the best
    wide = np.array([[4, 7, 10, 12], [3, 6, 11, 15], [4, 7, 9, 11]], np.int32)
    for errors, price, budget in (
        (bent, dear, 4),
        (bent, dear, 7),
        (bent, dear, 13),
        (bent, dear, 20),
        (short, wide, 23),
    ):
        found = SPEC.allocate_bits(errors, price, budget=budget)
        size = 2 * float(np.abs(errors.astype(np.float64)).sum())
        best, n = laws.least_error(errors, price, budget), errors.size + 4
        expect = [
            rules.certificate("lower_bound", best, size, n),
            rules.certificate("lower_bound", found.lower_bound, size, n, least=True),
        ]
        table["M-2c"].append(
            call(
                "allocate_bits", f"steps that do not fit, budget {budget}", [errors, price], {"budget": budget}, expect
            )
        )
    w = generator("M-3a").integers(-99, 100, (4, 10)).astype(np.float32) / np.float32(16)
    w[3] = 0
    recorded(
        table,
        "M-3a",
        "test_projection_of_general_rows",
        ("1 to 4 bits, a row of zeros", {"w": w, "data": Draws([1, 2, 4, 3])}),
    )
    recorded(
        table,
        "M-3b",
        "test_sign_of_zero",
        *(
            (f"{bits} bits, negative zeros {n}", {"dtype": NARROW, "negative": n, "bits": bits})
            for bits in (1, 2)
            for n in (False, True)
        ),
    )
