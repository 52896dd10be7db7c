"""Vectors of chapter N: codebooks."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import compare, rules
from .inputs import SPEC, U32, Array, Table, clear, eighths, generator, hard_scales, near, settled, steady, suite


def build(table: Table) -> None:
    _levels_and_products(table)
    _blocks(table)
    _scales(table)
    _loftq(table)


def _levels_and_products(table: Table) -> None:
    random = np.random.default_rng(20240301)
    names = {bits: SPEC.normal_float(bits=bits) for bits in (2, 3, 4, 8)}
    slack = 32  # roundings of a quantile and its probability, in units of the largest level
    for bits, found in names.items():
        table.call("N-1", f"{bits} bits", [], rules.forward("", found, 1, slack), bits=bits)
    for b, o in ((3, 0.75), (4, 0.99)):
        table.recorded("N-1", "test_normal_float", f"{b} bits, offset {o}", bits=b, offset=o)
    dynamic = {bits: SPEC.dynamic_float(bits=bits) for bits in (3, 8)}
    for bits, found in dynamic.items():
        table.call("N-1a", f"{bits} bits", [], rules.forward("", found, np.abs(found), 6), bits=bits)
    x = random.standard_normal((3, 10)).astype(np.float32)
    x.ravel()[8:16] = 0
    size = {"block_size": 8}
    expect = [rules.exact("", SPEC.block_scale(x, **size).astype(np.float32))]
    table.call("N-2", "blocks cross rows, one is zero", [x], *expect, **size)
    codes = random.integers(0, 16, (3, 10)).astype(np.int32)
    arrays: list[Any] = [codes, SPEC.block_scale(x, **size).astype(np.float32), names[4]]
    values = SPEC.dequantize_blocks(*arrays, **size)
    table.call("N-4", "NF4", arrays, rules.forward("", values, np.abs(values), 2), **size)
    blocks = suite("codebook").BlockInput(
        eighths("N-4", 2, 5), np.array([0.3, 0, 1.7], np.float32), np.array([-1, -0.3, 0, 0.7], np.float32), 4
    )
    table.recorded("N-4", "test_values_of_codes", "scales of both signs and 0", case=blocks)
    offset, few = np.array(1.25, np.float32), random.integers(0, 256, 20).astype(np.int32)
    second = (0.5 + random.random(3)).astype(np.float32)
    arrays = [few, second, offset, dynamic[8]]
    restored = SPEC.dequantize_scale(*arrays, **size)
    table.call("N-5a", "around 1.25", arrays, rules.forward("", restored, np.abs(restored - 1.25) + 1.25, 3), **size)
    for bits, k, block, about in ((4, 128, 64, "blocks in rows"), (2, 24, 16, "blocks across rows"), (3, 20, 7, "odd")):
        codes = random.integers(0, 2**bits, (3, k)).astype(np.int32)
        scales = (0.5 + random.random(-(-3 * k // block))).astype(np.float32)
        inputs = random.standard_normal((2, k)).astype(np.float32)
        options = {"bits": bits, "block_size": block}
        arrays = [inputs, SPEC.pack(codes, bits=bits), scales, names[bits]]
        weight = SPEC.dequantize_blocks(codes, scales, names[bits], block_size=block)
        reach = np.abs(inputs.astype(np.float64)) @ np.abs(weight).T
        expect = [rules.forward("", SPEC.codebook_matmul(*arrays, **options), reach, k + 4)]
        table.call("N-6", f"{bits} bits, {about}", arrays, *expect, **options)
    few = ((np.arange(32) - 11.25) / 23).astype(np.float32)
    held, strength = generator("N-6a").integers(0, 32, (3, 24)).astype(np.int32), np.array([0.7, 1.9, 0.4], np.float32)
    table.recorded(
        "N-6a",
        suite("codebook").check_product,
        "5 bits, codes across words, blocks across rows",
        x=eighths("N-6a", 2, 24),
        codes=held,
        scale=strength,
        levels=few,
        bits=5,
        block_size=32,
    )


def _blocks(table: Table) -> None:
    dyadic, size = np.array([-1.0, -0.5, 0.0, 0.25, 1.0], np.float32), {"block_size": 16}
    scale = np.ldexp(np.float32(1), generator("N-2a").integers(-3, 4, 5)).astype(np.float32)
    codes = generator("N-2a").integers(0, 5, (3, 24)).astype(np.int32)
    values = dyadic[codes] * np.repeat(scale, 16)[:72].reshape(3, 24)
    about = "72 values in blocks of 16"
    table.call("N-2a", about, [codes, scale, dyadic], rules.exact("", values), op="dequantize_blocks", **size)
    table.call("N-2a", about, [values, scale, dyadic], rules.exact("", codes), op="quantize_blocks", **size)
    table.exactly("N-2a", about, [values], op="block_scale", **size)
    levels = SPEC.normal_float(bits=4).astype(np.float32)
    middles = (levels[1:].astype(np.float64) + levels[:-1]) / 2
    values = np.concatenate([levels, *(middles * (1 + s * 2.0**-12) for s in (-1, 1)), [-1, 1]])
    scale = np.array([0.7, 1.3, 0.1], np.float32)
    exact = (values[:48] * np.repeat(scale, 16)).reshape(2, 24)
    x = exact.astype(np.float32)
    codes = SPEC.quantize_blocks(x, scale, levels, **size)
    if not np.array_equal(codes, SPEC.quantize_blocks(exact, scale, levels, **size)):
        raise ValueError("N-3: a value lies in the band of a midpoint")
    table.call("N-3", "next to midpoints of NF4, blocks across rows", [x, scale, levels], clear("", codes), **size)
    grid = (np.array([-4, -3, -1, 0, 1, 2, 4]) / 4).astype(np.float32)
    points = np.concatenate([grid, (grid[1:] + grid[:-1]) / 2, grid + 0.125]).astype(np.float32)[:20]
    odd = hard_scales().ravel()[:5]
    tied = (points * np.repeat(odd, 4)).reshape(2, 10).astype(np.float32)
    about = "levels, midpoints and their neighbours, times scales whose reciprocals are not exact"
    table.exactly("N-3a", about, [tied, odd, grid], block_size=4)
    x, size = np.zeros((3, 7), np.float32), {"block_size": 5}
    x[1, 2], x[2, 0] = -3, -0.0
    scale = SPEC.block_scale(x, **size).astype(np.float32)
    codes = SPEC.quantize_blocks(x, scale, levels, **size)
    back = SPEC.dequantize_blocks(codes, scale, levels, **size).astype(np.float32)
    few = np.array([-1, -0.25, 0.5, 1], np.float32)
    table.call("N-3b", "zeros of both signs around one block", [x], rules.exact("", scale), op="block_scale", **size)
    table.call("N-3b", "NF4", [x, scale, levels], rules.exact("", codes), op="quantize_blocks", **size)
    table.call("N-3b", "NF4", [codes, scale, levels], rules.exact("", back), op="dequantize_blocks", **size)
    table.exactly("N-3b", "levels without 0", [x, scale, few], op="quantize_blocks", **size)


def _scales(table: Table) -> None:
    scale = generator("N-5").integers(0, 64, 24).astype(np.float32)
    scale[-1] += np.ceil(scale.sum() / 24) * 24 - scale.sum()
    steps = np.array([-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0], np.float32)
    found = SPEC.quantize_scale(scale, steps, block_size=10)
    ratio = (scale.astype(np.float64) - found.offset) / np.repeat(found.scale, 10)[:24]
    middles = (steps[1:] + steps[:-1]).astype(np.float64) / 2
    if np.min(np.abs(ratio[:, None] - middles)) < 2.0**-12:
        raise ValueError("N-5: a quotient lies next to a midpoint")
    expect = [
        near("offset", found.offset, compare.gamma(25, U32) * float(np.mean(scale))),
        rules.forward("scale", found.scale, found.scale, 1),
        clear("codes", found.codes),
    ]
    table.call("N-5", "integers with an integer mean", [scale, steps], *expect, block_size=10)


def _loftq(table: Table) -> None:
    w = eighths("N-7", 4, 12)
    w[2] = 0
    options = {"rank": 2, "bits": 2, "block_size": 8, "iterations": 1}
    first = SPEC.loftq(w, **options)
    steady(lambda v: SPEC.loftq(v, **options).codes, w, "N-7")
    block = np.repeat(first.scale, 8).reshape(4, 12)
    expect = [
        rules.forward("scale", first.scale, first.scale, 1),
        clear("codes", first.codes),
        near("weight", first.weight, compare.gamma(3, U32) * np.abs(first.weight) + compare.gamma(4, U32) * block),
    ]
    table.call("N-7", "the first iterate, a row of zeros", [w], *expect, **options)
    target = w.astype(np.float64) - first.weight
    tail = float(np.linalg.norm(np.linalg.svd(target, compute_uv=False)[2:]))
    formed = 2 * compare.gamma(4, U32) * float(np.linalg.norm(np.abs(w) + np.abs(first.weight)))
    # the weight that a backend stores is off by its own error, which moves the target as much
    moved = float(np.linalg.norm(compare.gamma(3, U32) * np.abs(first.weight) + compare.gamma(4, U32) * block))
    allowed = compare.residual_gap(float(np.linalg.norm(target)), 12, U32) + formed + 2 * moved
    rule = rules.residual(target, np.eye(12), tail, allowed / compare.gamma(1, U32), 1)
    table.call("N-7a", "the first iterate, a row of zeros", [w], rule, **options)
    later = {**options, "iterations": 2, "keep": "last"}
    w = settled(
        "N-7",
        lambda r: r.integers(-24, 25, (4, 12)).astype(np.float32) / np.float32(8),
        lambda v: SPEC.loftq(v, **later).codes,
    )
    table.call("N-7", "the second iterate", [w], clear("codes", SPEC.loftq(w, **later).codes), **later)
    table.recorded("N-7d", "test_uniform_quantizer_of_a_constant_weight", "a constant weight")

    def outlying(random: np.random.Generator) -> Array:
        w = random.integers(-24, 25, (3, 6)).astype(np.float32) / np.float32(8)
        w[0, 0] = 9
        return w

    uniform = {"rank": 1, "bits": 3, "quantizer": "uniform", "iterations": 1}
    w = settled("N-7d", outlying, lambda v: SPEC.loftq(v, **uniform).codes)
    found = SPEC.loftq(w, **uniform)
    slack = compare.deviation_slack(w.size, 9.0, U32)
    values, error = np.abs(found.offset) + found.scale * found.codes, slack + 7 * 3 * slack / 7
    expect = [
        near("offset", found.offset, [slack]),
        near("scale", found.scale, [3 * slack / 7]),
        clear("codes", found.codes),
        near("weight", found.weight, error + compare.gamma(4, U32) * values),
    ]
    table.call("N-7d", "a weight beyond two deviations", [w], *expect, **uniform)
