"""Vectors of chapter B: binary coding."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import compare, rules
from .inputs import NARROW, SPEC, U32, Array, Options, Table, clear, eighths, fractions, generator, near, settled, suite


def build(table: Table) -> None:
    zeros = np.array([[0, 4, -4, 0], [0, 0, 0, 0], [3, -3, 3, 3], [0, 0, -8, 0]], np.float32)
    for group in (None, 2):
        table.exactly("B-1a", "zeros", [zeros], "codes", "scale", bits=2, method="greedy", group_size=group)
    w = np.array([[4, -4, 12, -12, 4, 4, -12, -4], [1, 3, 5, 7, -1, -3, -5, -7]], np.float32)
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
        table.call("B-1", f"{bits} planes, groups of {g}, offset {offset}", [w], *expect, **options)
    dyadic = np.array([[0, 4, -4, 0, 1, -3, 3, 5], [2, -2, 2, 6, -0.0, 0, 0, 0]], np.float32)
    for size in (2, 4):
        options = {"bits": 2, "group_size": size, "method": "greedy"}
        table.exactly("B-1b", f"groups of {size}, one of zeros", [dyadic], "codes", "scale", **options)
    general = generator("B-2").integers(-99, 100, (3, 12)).astype(np.float32) / np.float32(16)
    for clause, method, more in (("B-2", "refined", {}), ("B-3", "alternating", {"rounds": 1})):
        for bits, offset in ((2, False), (2, True), (3, False)):
            options = {"bits": bits, "method": method, "offset": offset, **more}
            given = settled(clause, fractions(99, 16, 3, 12), _rounds, options)
            found = SPEC.bcq(given, **options)
            expect = [clear("codes", found.codes), *_solved(given, found, bits)]
            table.call(clause, f"{bits} planes, offset {offset}", [given], *expect, op="bcq", **options)
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
                expect = [rules.exact("codes", held), *_solved(general, found, 2)]
                table.call(clause, f"{about}, offset {offset}", [general, held], *expect, op="bcq_refit", **options)
    scale = np.array([[[0.5, 1.25]], [[-0.75, 0.25]], [[1, 1]]], np.float32)
    shift = np.array([[2.125], [-0.5], [-1]], np.float32)
    general = settled("B-5", fractions(99, 16, 3, 12), lambda v: SPEC.bcq_assign(v[:2], scale[:2], shift[:2]))
    arrays: list[Any] = [general[:2], scale[:2], shift[:2]]
    table.call("B-5", "two planes", arrays, clear("", SPEC.bcq_assign(*arrays)))
    three = np.array([[[1, 0.75, 0.625]], [[-0.25, 1, 0.5625]]], np.float32)
    middle = np.array([[0.0], [0.25]], np.float32)
    weights = settled("B-5", fractions(99, 37, 2, 12), lambda v: SPEC.bcq_assign(v, three, middle))
    table.call("B-5", "three planes", [weights, three, middle], clear("", SPEC.bcq_assign(weights, three, middle)))
    shape = suite("binary_coding").BinaryInput(codes, scale, shift, general, eighths("B-10a", 2, 12))
    table.recorded("B-10a", "test_spare_bits_are_not_looked_at", "with offsets", case=shape)
    table.recorded("B-10a", "test_spare_bits_are_not_looked_at", "without", case=shape._replace(offset=None))
    _products(table)


def _products(table: Table) -> None:
    """Decisions on dyadic numbers, which are exact in any precision, and products within their rounding."""
    random = np.random.default_rng(20240302)
    scale = random.integers(-9, 10, (3, 2, 3)).astype(np.float32) / 4
    scale[0, 0] = scale[0, 0, 0]  # equal levels
    offset = random.integers(-9, 10, (3, 2)).astype(np.float32) / 4
    halves = random.integers(-64, 65, (3, 24)).astype(np.float32) / 8
    codes = SPEC.bcq_assign(halves, scale, offset)
    table.exactly("B-5a", "midpoints and equal levels", [halves, scale, offset])
    reach = np.repeat(np.abs(scale).sum(axis=-1) + np.abs(offset), 12, axis=1)
    arrays: list[Any] = [codes, (scale / 3).astype(np.float32), (offset / 3).astype(np.float32)]
    table.call("B-6", "two groups", arrays, rules.forward("", SPEC.bcq_weight(*arrays), reach, 5))
    steps, zero = np.array([[0.25, 2.0], [1.0, 0.5]], np.float32), np.array([[3, 0], [7, -2]], np.int32)
    for scheme, first in (("asymmetric", 0), ("symmetric", -4)):
        held = random.integers(first, first + 8, (2, 6)).astype(np.int32)
        table.exactly("B-7", scheme, [held, steps, zero], "codes", "scale", "offset", bits=3, scheme=scheme)
    for m, groups, size, bits in ((3, 1, 5, 1), (2, 2, 16, 2), (5, 2, 35, 3), (17, 1, 64, 2)):
        k = groups * size
        held = random.integers(0, 2**bits, (m, k)).astype(np.int32)
        alpha = random.standard_normal((m, groups, bits)).astype(np.float32)
        shift = random.standard_normal((m, groups)).astype(np.float32)
        packed = SPEC.bcq_pack(held, alpha, shift)
        about = f"{m} rows of {groups} x {size} columns, {bits} planes"
        table.exactly("B-8", about, [held, alpha, shift], "planes", "scale", "offset", op="bcq_pack")
        x = random.standard_normal((2, k)).astype(np.float32)
        arrays = [x, packed.planes, packed.scale.astype(np.float32), packed.offset.astype(np.float32)]
        size_of = np.repeat(np.abs(alpha).sum(axis=-1) + np.abs(shift), size, axis=1).astype(np.float64)
        roundings = k + (groups + 1) * (bits + 1) + 34
        rule = rules.forward("", SPEC.bcq_product(*arrays), np.abs(x).astype(np.float64) @ size_of.T, roundings)
        for method in ("lookup", "dequantize"):
            table.call("B-10", f"{about}, {method}", arrays, rule, method=method)
    planes = suite("binary_coding").BinaryInput(
        generator("B-8").integers(0, 8, (2, 35)).astype(np.int32),
        eighths("B-8", 2, 1, 3),
        np.array([[0.5], [-1]], np.float32),
        eighths("B-8", 2, 35),
        eighths("B-8", 1, 35),
    )
    table.recorded("B-8", "test_planes", "and back", case=planes)
    table.recorded("B-8", "test_planes", "and back, no offset", case=planes._replace(offset=None))
    x = random.standard_normal((2, 7)).astype(np.float32)
    padded = np.zeros((2, 8))
    padded[:, :7] = np.abs(x)
    bulk = padded.reshape(2, 2, 4).sum(axis=-1, keepdims=True)
    for half in (False, True):
        options = {"width": 4, "half": half}
        expect = [rules.forward("", SPEC.lookup_tables(x, **options), bulk, 9)]
        table.call("B-9", "the last of eight inputs is none", [x], *expect, **options)


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
