"""Chapter N: levels from a table, scales by blocks, their product, and LoftQ."""

from __future__ import annotations

import itertools
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lowbit.conformance import compare, strategies
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array
from lowbit.reference.types import LoftQ


class BlockInput(NamedTuple):
    """Arguments of ``quantize_blocks``."""

    x: Array  # any shape
    scale: Array  # (blocks,)
    levels: Array  # (L,)
    block_size: int


def block_count(size: int, block_size: int) -> int:
    """Blocks of a flattened array, the short one at the end included."""
    return -(-size // block_size)


@st.composite
def _block_shape(draw: st.DrawFn) -> tuple[tuple[int, ...], int]:
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple))
    size = int(np.prod(shape))
    return shape, draw(st.one_of(st.integers(1, 7), st.sampled_from([size, size + 3])))


@st.composite
def block_ties(draw: st.DrawFn) -> BlockInput:
    """x / s is exactly a level, a midpoint, or 1/8 beside one: s is an odd integer times a power of two."""
    shape, block_size = draw(_block_shape())
    levels = draw(strategies.sorted_levels())
    points = np.concatenate([levels, (levels[1:] + levels[:-1]) / 2])
    points = np.unique(np.concatenate([points, points - 0.125, points + 0.125]))
    size = int(np.prod(shape))
    scale = (2 * draw(strategies.integers((block_count(size, block_size),), 60)) + 1) * np.ldexp(
        1.0, draw(st.integers(-12, 4))
    )
    scale = np.abs(scale)
    picked = points[draw(arrays(np.int64, (size,), elements=st.integers(0, points.size - 1), fill=st.nothing()))]
    x = (picked * np.repeat(scale, block_size)[:size]).reshape(shape)
    dtype = draw(strategies.float_dtypes())
    return BlockInput(x.astype(dtype), scale.astype(dtype), levels.astype(dtype), block_size)


@st.composite
def block_inputs(draw: st.DrawFn) -> BlockInput:
    """General values, a third of them next to a midpoint; levels in the dtype of x or in float64; some scales 0."""
    shape, block_size = draw(_block_shape())
    dtype = draw(strategies.float_dtypes(half=True))
    levels = draw(strategies.sorted_levels()) / draw(st.sampled_from([7, 16, 23]))
    levels = levels.astype(draw(st.sampled_from(["float64", "float32"])))
    size = int(np.prod(shape))
    scale = np.abs(draw(strategies.integers((block_count(size, block_size),), 999))) / 701
    scale = scale.astype("float32" if dtype == "float16" else dtype)
    wide = np.repeat(scale, block_size)[:size].astype(np.float64)
    general = draw(strategies.integers((size,), 999)) / 500 * wide
    middles = np.concatenate([levels, (levels[1:] + levels[:-1]) / 2])
    near = middles[draw(arrays(np.int64, (size,), elements=st.integers(0, middles.size - 1), fill=st.nothing()))]
    close = (near * wide).astype(dtype)
    close = close + draw(arrays(np.int64, (size,), elements=st.integers(-2, 2))) * np.spacing(close)
    x = np.where(draw(arrays(np.bool_, (size,))), close, general)
    return BlockInput(x.astype(dtype).reshape(shape), scale, levels, block_size)


OFFSETS = st.sampled_from([0.9677083, 0.75, 0.99])
BLOCKS = st.sampled_from([3, 4, 64])
WIDENED = 10.0**-8  # what the published uniform quantizer adds to its range


def blocks_of(x: Array, block_size: int) -> list[Array]:
    """Consecutive values of the flattened array, the last block possibly short."""
    flat = x.ravel()
    return [flat[i : i + block_size] for i in range(0, flat.size, block_size)]


def spread(scale: Array, shape: tuple[int, ...], block_size: int) -> Array:
    """The scale of every value, in float64."""
    size = int(np.prod(shape))
    return np.repeat(np.asarray(scale, np.float64), block_size)[:size].reshape(shape)


@clause("N-1", tier="forward-error", bits=st.integers(2, 8), offset=OFFSETS)
def test_normal_float(kit: Kit, bits: int, offset: float) -> None:
    """Quantiles of evenly spaced probabilities, one level more above zero than below, divided by the largest."""
    found = kit.call("normal_float", bits=bits, offset=offset)
    half = 2 ** (bits - 1)
    above = [offset - i * (offset - 0.5) / half for i in range(half)]
    below = [offset - i * (offset - 0.5) / (half - 1) for i in range(half - 1)]
    normal = NormalDist()
    quantiles = np.sort([0.0, *(normal.inv_cdf(p) for p in above), *(-normal.inv_cdf(p) for p in below)])
    top = normal.inv_cdf(offset)
    slack = compare.quantile_slack(np.maximum(offset, 0.5), quantiles, kit.u(np.float32, result=found))
    kit.check(compare.forward(found, quantiles / top, slack / top, "levels"))
    kit.require(found[half - 1] == 0, f"the level below the middle is {found[half - 1]}, not 0")
    kit.require(found[0] == -1 and found[-1] == 1, f"the outermost levels are {found[0]} and {found[-1]}")


@clause("N-1", tier="forward-error")
def test_normal_float_keeps_the_published_constant(kit: Kit) -> None:
    """Without an offset, every width takes that of 4 bits."""
    for bits in range(2, 9):
        found, named = (kit.call("normal_float", bits=bits, **o) for o in ({}, {"offset": 0.9677083}))
        kit.check(compare.exact(found, named, f"{bits}-bit levels by default"))


@clause("N-1a", tier="forward-error", bits=st.integers(3, 8))
def test_dynamic_float(kit: Kit, bits: int) -> None:
    """Decade e has 2^e midpoints of equal steps, of both signs; and 0, and 1."""
    found = kit.call("dynamic_float", bits=bits)
    positive = []
    for e in range(bits - 1):
        edges = [0.1 + 0.9 * j / 2**e for j in range(2**e + 1)]
        positive += [(a + b) / 2 * 10.0 ** (e - bits + 2) for a, b in itertools.pairwise(edges)]
    levels = np.sort([*(-p for p in positive), 0.0, *positive, 1.0])
    allowed = compare.gamma(6, kit.u(np.float32, result=found)) * np.abs(levels)
    kit.check(compare.forward(found, levels, allowed, "levels"))


@clause("N-2", tier="exact", case=block_inputs())
def test_largest_magnitude_of_every_block(kit: Kit, case: BlockInput) -> None:
    """A maximum of magnitudes has no rounding."""
    found = kit.call("block_scale", case.x, block_size=case.block_size)
    expected = [np.abs(b.astype(np.float64)).max() for b in blocks_of(case.x, case.block_size)]
    kit.check(compare.exact(found, expected, "scale"))


@clause("N-2", tier="exact", dtype=strategies.FLOATS)
def test_block_of_64_by_default(kit: Kit, dtype: str) -> None:
    """The sign does not matter, and neither does where in the block the largest value stands."""
    for size in (1, 63, 64, 65, 200):
        x = np.arange(1, size + 1).astype(dtype)
        for shown in (x, -x, x[::-1]):
            found = kit.call("block_scale", shown)
            expected = [np.abs(b).max() for b in blocks_of(shown, 64)]
            kit.check(compare.exact(found, expected, f"scale of {size} values"))


@clause("N-2a", tier="exact", case=block_ties())
def test_blocks_of_the_flattened_array(kit: Kit, case: BlockInput) -> None:
    """Shapes do not matter: the answer for x is that for x in one row, and for its blocks one by one."""
    x, _, levels, size = case
    scale = kit.call("block_scale", x, block_size=size)
    codes = kit.call("quantize_blocks", x, case.scale, levels, block_size=size)
    values = kit.call("dequantize_blocks", codes, case.scale, levels, block_size=size)
    kit.require(codes.shape == x.shape == values.shape, f"codes {codes.shape}, values {values.shape} of {x.shape}")
    for i, block in enumerate(blocks_of(x, size)):
        own = case.scale[i : i + 1]
        alone = kit.call("quantize_blocks", block, own, levels, block_size=block.size)
        restored = kit.call("dequantize_blocks", alone, own, levels, block_size=block.size)
        at = slice(i * size, i * size + block.size)
        kit.check(compare.exact(scale[i], kit.call("block_scale", block, block_size=block.size)[0], f"scale {i}"))
        kit.check(compare.exact(codes.ravel()[at], alone, f"codes of block {i}"))
        kit.check(compare.exact(values.ravel()[at], restored, f"values of block {i}"))


@clause("N-2a", tier="exact", dtype=strategies.WIDE_FLOATS)
def test_rows_that_no_block_divides(kit: Kit, dtype: str) -> None:
    """Rows of 24 in blocks of 16 and of 64: powers of two, so that everything is exact."""
    random = np.random.default_rng(20240229)
    for rows, columns, size in ((5, 24, 16), (6, 24, 64), (3, 96, 64)):
        count = block_count(rows * columns, size)
        scale = np.ldexp(1.0, random.integers(-3, 4, count)).astype(dtype)
        levels = np.array([-1.0, -0.5, 0.0, 0.25, 1.0], dtype)
        codes = random.integers(0, 5, (rows, columns)).astype(np.int32)
        values = levels[codes] * spread(scale, codes.shape, size).astype(dtype)
        found = kit.call("dequantize_blocks", codes, scale, levels, block_size=size)
        kit.check(compare.exact(found, values, f"values of {rows} x {columns} in blocks of {size}"))
        kit.check(compare.exact(kit.call("quantize_blocks", values, scale, levels, block_size=size), codes, "codes"))
        ramp = np.arange(rows * columns).reshape(rows, columns).astype(dtype)
        largest = [block[-1] for block in blocks_of(ramp, size)]
        kit.check(compare.exact(kit.call("block_scale", ramp, block_size=size), largest, "scale of a ramp"))


@clause("N-2a", tier="exact", dtype=strategies.WIDE_FLOATS, shape=[(3, 96), (5, 32), (2, 200)])
def test_nf4_blocks_of_64_across_rows(kit: Kit, dtype: str, shape: tuple[int, int]) -> None:
    """The common case: shapes do not matter, so the values are those of the codes in one row."""
    random = np.random.default_rng(20240229)
    levels = np.asarray(kit.spec.normal_float(bits=4))
    codes = random.integers(0, 16, shape).astype(np.int32)
    scale = np.ldexp(1.0, random.integers(-3, 4, block_count(codes.size, 64))).astype(dtype)
    found = kit.call("dequantize_blocks", codes, scale, levels)
    flat = kit.call("dequantize_blocks", codes.reshape(1, -1), scale, levels)
    kit.check(compare.exact(found, flat.reshape(shape), f"values of {shape} in blocks of 64"))


def check_codes(kit: Kit, codes: Array, ratio: Array, slip: Array | float, levels: Array, u: float) -> None:
    """Nearest levels of a ratio that may be off by ``slip``."""
    exact = np.asarray(levels, np.float64)
    expected = kit.spec.nearest_level(np.clip(ratio, exact[0], exact[-1]), exact)
    kit.require(codes.dtype == np.int32, f"codes have dtype {codes.dtype}, expected int32")
    kit.require(codes.shape == expected.shape, f"codes have shape {codes.shape}, expected {expected.shape}")
    kit.require(bool(np.all((codes >= 0) & (codes < exact.size))), "a code has no level")
    near, chosen = exact[expected], exact[codes]
    distance = np.abs(ratio - (near + chosen) / 2)
    band = compare.level_band(near, chosen, u) + slip
    kit.check(compare.choice(np.where(codes == expected, 0.0, distance), 0.0, band, "distance from the midpoint"))


@clause("N-3", tier="tie-band", case=block_inputs())
def test_nearest_levels_of_scaled_blocks(kit: Kit, case: BlockInput) -> None:
    """One division is one rounding; elsewhere than next to a midpoint the codes are the specification's."""
    x, scale, levels, size = case
    codes = kit.call("quantize_blocks", x, scale, levels, block_size=size)
    wide = spread(scale, x.shape, size)
    ratio = np.divide(x.astype(np.float64), wide, out=np.zeros(x.shape), where=wide > 0)
    u = kit.u(x)
    check_codes(kit, codes, ratio, compare.gamma(1, u) * np.abs(ratio), levels, u)


@clause("N-3", tier="tie-band", dtype=strategies.FLOATS, bits=st.integers(2, 8))
def test_many_normal_values(kit: Kit, dtype: str, bits: int) -> None:
    """Blocks of 64 with NormalFloat levels, thousands of values."""
    x = np.random.default_rng(20240229).standard_normal((40, 112)).astype(dtype)
    levels = np.asarray(kit.spec.normal_float(bits=bits))
    scale = kit.spec.block_scale(x).astype("float64" if dtype == "float64" else "float32")
    codes = kit.call("quantize_blocks", x, scale, levels)
    ratio = x.astype(np.float64) / spread(scale, x.shape, 64)
    check_codes(kit, codes, ratio, compare.gamma(1, kit.u(x)) * np.abs(ratio), levels, kit.u(x))


@clause("N-3a", tier="exact", case=block_ties())
def test_midpoints_go_to_the_lower_level(kit: Kit, case: BlockInput) -> None:
    """x / s, the levels and their midpoints are exact in every format, so that only the rule decides."""
    codes = kit.call("quantize_blocks", case.x, case.scale, case.levels, block_size=case.block_size)
    expected = kit.spec.quantize_blocks(case.x, case.scale, case.levels, block_size=case.block_size)
    kit.check(compare.exact(codes, expected, "codes"))


@clause("N-3a", tier="exact", dtype=strategies.WIDE_FLOATS)
def test_division_is_not_a_multiplication(kit: Kit, dtype: str) -> None:
    """All midpoints of 32 levels over 60 odd scales: some reciprocal always lands above one."""
    levels = np.arange(-16, 16, dtype=dtype)
    middles = levels[:-1] + levels.dtype.type(0.5)
    for odd in range(3, 123, 2):
        scale = np.full(1, odd / 64, dtype)
        codes = kit.call("quantize_blocks", middles * scale, scale, levels, block_size=31)
        kit.check(compare.exact(codes, np.arange(31), f"codes at scale {odd}/64"))


@clause("N-3b", tier="exact", dtype=strategies.FLOATS, size=[4, 5, 21, 64], bits=[4, 2, 0])
def test_blocks_of_zeros(kit: Kit, dtype: str, size: int, bits: int) -> None:
    """Also between ordinary blocks, as the short last one, and as the whole array; with levels without 0 too."""
    levels = np.asarray(kit.spec.normal_float(bits=bits)) if bits else np.array([-1.0, -0.25, 0.5, 1.0])
    for columns in (7, 64):
        x = np.zeros((3, columns), dtype)
        x[1, 2] = -3.0
        for shown in (x, np.zeros_like(x)):
            scale = kit.call("block_scale", shown, block_size=size)
            codes = kit.call("quantize_blocks", shown, scale, levels, block_size=size)
            values = kit.call("dequantize_blocks", codes, scale, levels, block_size=size)
            zero = [not b.any() for b in blocks_of(shown, size)]
            empty = spread(np.array(zero), x.shape, size) == 1
            kit.check(compare.exact(scale == 0, zero, "blocks of scale 0"))
            nearest = int(np.argmin(np.abs(levels)))
            kit.check(compare.exact(codes[empty], np.full(int(empty.sum()), nearest), "codes of zeros"))
            kit.check(compare.exact(values[empty], np.zeros(int(empty.sum())), "values of blocks of zeros"))
            kit.require(bool(np.isfinite(values).all()), "a value is not finite")


@clause("N-4", tier="forward-error", case=block_inputs())
def test_values_of_codes(kit: Kit, case: BlockInput) -> None:
    """A product of a level, which may be rounded first, and a scale; the sign of the scale counts."""
    _, scale, levels, size = case
    codes = (np.arange(case.x.size).reshape(case.x.shape) % levels.size).astype(np.int32)
    for signed in (scale, -scale):
        values = kit.call("dequantize_blocks", codes, signed, levels, block_size=size)
        expected = levels.astype(np.float64)[codes] * spread(signed, codes.shape, size)
        allowed = compare.gamma(2, kit.u(scale, result=values)) * np.abs(expected) + kit.tiny()
        kit.check(compare.forward(values, expected, allowed, "value"))


@clause("N-4", tier="forward-error", dtype=strategies.FLOATS, bits=st.integers(2, 8))
def test_values_of_normal_float_codes(kit: Kit, dtype: str, bits: int) -> None:
    """Levels in float64, as the table comes; blocks of 64 in rows."""
    random = np.random.default_rng(20240229)
    levels = np.asarray(kit.spec.normal_float(bits=bits))
    codes = random.integers(0, levels.size, (5, 128)).astype(np.int32)
    scale = (0.5 + random.random(10)).astype(dtype)
    values = kit.call("dequantize_blocks", codes, scale, levels)
    expected = levels[codes] * spread(scale, codes.shape, 64)
    allowed = compare.gamma(2, kit.u(scale, result=values)) * np.abs(expected) + kit.tiny()
    kit.check(compare.forward(values, expected, allowed, "value"))


@clause("N-5", tier="tie-band", case=block_inputs(), bits=st.integers(3, 8))
def test_double_quantization(kit: Kit, case: BlockInput, bits: int) -> None:
    """Mean, scales of the differences, codes of the quotients: each judged from what the backend returned before."""
    check_double(kit, case.scale, np.asarray(kit.spec.dynamic_float(bits=bits)), case.block_size)


@clause("N-5", tier="tie-band", dtype=strategies.WIDE_FLOATS, n=[1, 100, 256, 700])
def test_double_quantization_of_qlora(kit: Kit, dtype: str, n: int) -> None:
    """Scales of normal weights, 8 bits, blocks of 256."""
    scale = (2.5 + np.random.default_rng(n).standard_normal(n) / 4).astype(dtype)
    check_double(kit, scale, np.asarray(kit.spec.dynamic_float(bits=8)), 256)


def check_double(kit: Kit, scale: Array, levels: Array, size: int) -> None:
    """One double quantization, step by step."""
    n = scale.size
    found = kit.call("quantize_scale", scale, levels, block_size=size)
    u = kit.u(scale, result=found.scale)
    exact = scale.astype(np.float64)
    mean = exact.mean()
    kit.check(compare.forward(found.offset, mean, compare.gamma(n + 1, u) * np.abs(exact).mean(), "offset"))
    around = exact - float(found.offset)
    # the offset may have been rounded once more on its way out, which moves every difference by as much
    slip = compare.gamma(1, u) * (np.abs(around) + abs(mean))
    largest = np.array([np.abs(b).max() for b in blocks_of(around, size)])
    off = np.array([b.max() for b in blocks_of(slip, size)])
    kit.check(compare.forward(found.scale, largest, off + compare.gamma(1, u) * largest + kit.tiny(), "scale"))
    wide = spread(found.scale, around.shape, size)
    ratio = np.divide(around, wide, out=np.zeros(n), where=wide > 0)
    band = np.divide(slip, wide, out=np.zeros(n), where=wide > 0) + compare.gamma(1, u) * np.abs(ratio)
    check_codes(kit, found.codes, ratio, band, levels, u)


@clause("N-5", tier="tie-band", dtype=strategies.WIDE_FLOATS)
def test_double_quantization_of_many_scales(kit: Kit, dtype: str) -> None:
    """Exact numbers: integers with an integer mean, blocks of 256 by default, levels that are multiples of 1/4."""
    scale = np.random.default_rng(20240229).integers(0, 64, 600).astype(dtype)
    scale[-1] += np.ceil(scale.sum() / 600) * 600 - scale.sum()
    levels = np.array([-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0], dtype)
    found, expected = kit.call("quantize_scale", scale, levels), kit.spec.quantize_scale(scale, levels)
    kit.check(compare.exact(found.offset, expected.offset, "offset"))
    kit.check(compare.exact(found.scale, expected.scale, "scale"))
    ratio = (scale.astype(np.float64) - expected.offset) / spread(expected.scale, scale.shape, 256)
    check_codes(kit, found.codes, ratio, compare.gamma(1, kit.u(scale)) * np.abs(ratio), levels, kit.u(scale))


@clause("N-5a", tier="forward-error", case=block_inputs(), offset=[0.0, -1.5, 1 / 3])
def test_restored_scales(kit: Kit, case: BlockInput, offset: float) -> None:
    """A product and a sum."""
    check_restored(kit, case.scale, case.levels, case.x.size, case.block_size, offset)


@clause("N-5a", tier="forward-error", dtype=strategies.WIDE_FLOATS, offset=[0.0, 2.5])
def test_restored_scales_of_qlora(kit: Kit, dtype: str, offset: float) -> None:
    """All 256 levels, blocks of 256."""
    scale = np.array([0.75, 1.5, 0.1]).astype(dtype)
    check_restored(kit, scale, np.asarray(kit.spec.dynamic_float(bits=8)), 700, 256, offset)


def check_restored(kit: Kit, scale: Array, levels: Array, n: int, size: int, offset: float) -> None:
    """Scales of codes that run through all levels."""
    codes = (np.arange(n) % levels.size).astype(np.int32)
    base = np.array(offset, scale.dtype)
    found = kit.call("dequantize_scale", codes, scale, base, levels, block_size=size)
    part = levels.astype(np.float64)[codes] * spread(scale, (n,), size)
    allowed = compare.gamma(3, kit.u(scale, result=found)) * (np.abs(part) + abs(float(base))) + kit.tiny()
    kit.check(compare.forward(found, part + float(base), allowed, "scale"))


def check_product(kit: Kit, x: Array, codes: Array, scale: Array, levels: Array, bits: int, block_size: int) -> None:
    """x Ŵᵀ against float64: k products of a level and a scale, each rounded, summed in any order."""
    words = kit.spec.pack(codes, bits=bits)
    found = kit.call("codebook_matmul", x, words, scale, levels, bits=bits, block_size=block_size)
    weight = levels.astype(np.float64)[codes] * spread(scale, codes.shape, block_size)
    exact = x.astype(np.float64)
    size = np.abs(exact) @ np.abs(weight).T
    k = codes.shape[1]
    allowed = compare.gamma(k + 4, kit.u(x, scale, result=found)) * size + kit.tiny(k + 1)
    kit.check(compare.forward(found, exact @ weight.T, allowed, f"product of {x.shape} with {codes.shape}"))


@clause(
    "N-6",
    tier="forward-error",
    x=strategies.matrices(rows=(1, 9), columns=(1, 12)),
    bits=st.integers(1, 5),
    block_size=st.integers(1, 30),
    rows=st.integers(1, 6),
)
def test_packed_product(kit: Kit, x: Array, bits: int, block_size: int, rows: int) -> None:
    """Small shapes of every kind, any levels."""
    k = x.shape[1]
    codes = ((np.arange(rows * k) * 7 + 3) % 2**bits).reshape(rows, k).astype(np.int32)
    scale = (1 + np.arange(block_count(rows * k, block_size)) % 5).astype(x.dtype) / x.dtype.type(3)
    levels = ((np.arange(2**bits) - 1.25) * (1 / 3)).astype(x.dtype)
    check_product(kit, x, codes, scale, levels, bits, block_size)


WIDE = ((1, 64, 256, 64), (1, 3, 128, 64), (1, 70, 448, 32), (2, 5, 256, 128), (3, 33, 384, 64), (5, 4, 512, 256),
        (8, 40, 192, 64), (17, 65, 640, 128), (33, 7, 256, 64))  # fmt: skip
"""(T, m, k, block size) of products wide enough for vector kernels, with and without remainders."""


@clause("N-6", tier="forward-error", dtype=strategies.FLOATS, shape=WIDE)
def test_packed_product_of_4_bits(kit: Kit, dtype: str, shape: tuple[int, int, int, int]) -> None:
    """NF4 at the shapes that kernels are made for: one token, a few, many; blocks of 32 to 256 in rows."""
    random = np.random.default_rng(20240229)
    levels = np.asarray(kit.spec.normal_float(bits=4))
    tokens, m, k, size = shape
    x = random.standard_normal((tokens, k)).astype(dtype)
    codes = random.integers(0, 16, (m, k)).astype(np.int32)
    scale = (0.5 + random.random(m * k // size)).astype(dtype)
    check_product(kit, x, codes, scale, levels, 4, size)


@clause("N-6a", tier="forward-error", bits=st.integers(1, 8), dtype=strategies.WIDE_FLOATS)
def test_packed_product_across_rows(kit: Kit, bits: int, dtype: str) -> None:
    """Row lengths that no block divides, and codes that cross words."""
    random = np.random.default_rng(bits)
    for tokens, m, k, size in ((1, 4, 96, 64), (2, 3, 200, 64), (9, 5, 72, 48), (1, 2, 40, 64)):
        x = random.standard_normal((tokens, k)).astype(dtype)
        codes = random.integers(0, 2**bits, (m, k)).astype(np.int32)
        scale = (0.5 + random.random(block_count(m * k, size))).astype(dtype)
        levels = np.sort(random.standard_normal(2**bits))
        check_product(kit, x, codes, scale, levels, bits, size)


# -- LoftQ -------------------------------------------------------------------------------------------------------------

Factors = tuple[Array, Array]


def patch_of(w: Array, found: LoftQ[Array] | None, scaling: float) -> Factors:
    """scaling · B A and scaling · |B| |A| in float64; zeros before the first iteration."""
    if found is None:
        return np.zeros(w.shape), np.zeros(w.shape)
    b, a = found.B.astype(np.float64), found.A.astype(np.float64)
    return scaling * (b @ a), scaling * (np.abs(b) @ np.abs(a))


def iterates(kit: Kit, w: Array, count: int, **options: Any) -> list[LoftQ[Array]]:
    """Results after 1, 2, … iterations."""
    return [kit.call("loftq", w, iterations=t + 1, keep="last", **options) for t in range(count)]


@st.composite
def loftq_inputs(draw: st.DrawFn) -> tuple[Array, dict[str, Any]]:
    """A weight of at least 2 × 2 and options of LoftQ."""
    w = draw(strategies.matrices(rows=(2, 6), columns=(2, 12)))
    options = {"rank": draw(st.integers(1, min(w.shape))), "bits": draw(st.integers(2, 4)), "block_size": draw(BLOCKS)}
    return w, options


def check_quantized(
    kit: Kit, w: Array, before: LoftQ[Array] | None, found: LoftQ[Array], options: dict[str, Any], scaling: float = 1.0
) -> None:
    """Scale, codes and weight of one iterate are NormalFloat blocks of what the patch before left."""
    u, size, r = kit.u(w, result=found.weight), options["block_size"], options["rank"]
    patch, bulk = patch_of(w, before, scaling)
    rest = w.astype(np.float64) - patch
    # stored factors are rounded and multiplied: r + 4; the difference and its own rounding: 2
    slip = compare.gamma(r + 4, u) * bulk + compare.gamma(2, u) * (np.abs(w) + np.abs(patch))
    largest = np.array([np.abs(b).max() for b in blocks_of(rest, size)])
    off = np.array([b.max() for b in blocks_of(slip, size)])
    kit.check(compare.forward(found.scale, largest, off + compare.gamma(1, u) * largest + kit.tiny(), "scale"))
    wide = spread(found.scale, w.shape, size)
    ratio = np.divide(rest, wide, out=np.zeros(w.shape), where=wide > 0)
    band = np.divide(slip, wide, out=np.zeros(w.shape), where=wide > 0) + compare.gamma(1, u) * np.abs(ratio)
    levels = np.asarray(kit.spec.normal_float(bits=options["bits"]))
    check_codes(kit, found.codes, ratio, band + compare.gamma(4, u), levels, u)
    value = levels[found.codes] * wide
    allowed = compare.gamma(3, u) * np.abs(value) + compare.gamma(4, u) * wide + kit.tiny()
    kit.check(compare.forward(found.weight, value, allowed, "weight"))
    kit.check(compare.exact(found.offset, np.zeros(found.scale.shape), "offset"))


@clause("N-7", tier="tie-band", case=loftq_inputs())
def test_loftq_quantizes_what_the_patch_leaves(kit: Kit, case: tuple[Array, dict[str, Any]]) -> None:
    """Iterate by iterate, from the backend's own factors of the one before; the first sees W itself."""
    w, options = case
    before = None
    for found in iterates(kit, w, 3, **options):
        check_quantized(kit, w, before, found, options)
        before = found


LARGER = st.sampled_from([(40, 128), (96, 80)])
"""Blocks of 64 in rows, and across them."""


def larger(shape: tuple[int, int], dtype: str) -> Array:
    """A normal weight of ordinary size."""
    return np.random.default_rng(20240229).standard_normal(shape).astype(dtype)


@clause("N-7", tier="tie-band", dtype=strategies.WIDE_FLOATS, shape=LARGER)
def test_loftq_of_a_larger_weight(kit: Kit, dtype: str, shape: tuple[int, int]) -> None:
    """Four bits in blocks of 64, as PEFT does it."""
    w, options = larger(shape, dtype), {"rank": 8, "bits": 4, "block_size": 64}
    first, second = iterates(kit, w, 2, **options)
    check_quantized(kit, w, None, first, options)
    check_quantized(kit, w, first, second, options)


def check_patch(kit: Kit, w: Array, found: LoftQ[Array], rank: int, scaling: float) -> None:
    """The patch reaches the tail of the spectrum of W − weight."""
    shapes, wanted = (found.B.shape, found.A.shape), ((w.shape[0], rank), (rank, w.shape[1]))
    kit.require(shapes == wanted, f"factors have shapes {shapes}, expected {wanted}")
    exact, weight = w.astype(np.float64), found.weight.astype(np.float64)
    target = exact - weight
    reached = float(np.linalg.norm(target - patch_of(w, found, scaling)[0]))
    tail = float(np.linalg.norm(np.linalg.svd(target, compute_uv=False)[rank:]))
    u = kit.u(w, result=found.B)
    formed = 2 * compare.gamma(4, u) * float(np.linalg.norm(np.abs(exact) + np.abs(weight)))
    allowed = compare.residual_gap(float(np.linalg.norm(target)), max(w.shape), u) + formed + kit.tiny(w.size)
    kit.check(compare.certificate(reached, tail, allowed, "residual norm"))


@clause("N-7a", tier="certificate", case=loftq_inputs())
def test_loftq_patches_what_the_quantizer_leaves(kit: Kit, case: tuple[Array, dict[str, Any]]) -> None:
    """‖W − Ŵ − BA‖ is the norm of the singular values left out, in every iteration."""
    w, options = case
    for found in iterates(kit, w, 2, **options):
        check_patch(kit, w, found, options["rank"], 1.0)


@clause("N-7a", tier="certificate", dtype=strategies.WIDE_FLOATS, shape=LARGER)
def test_loftq_patches_a_larger_weight(kit: Kit, dtype: str, shape: tuple[int, int]) -> None:
    """The same law at an ordinary size."""
    w = larger(shape, dtype)
    for found in iterates(kit, w, 2, rank=8, bits=4, block_size=64):
        check_patch(kit, w, found, 8, 1.0)


def check_errors(kit: Kit, w: Array, run: list[LoftQ[Array]], rank: int) -> None:
    """errors[t − 1] of the last of these runs is that of run t."""
    last = run[-1]
    u = kit.u(w, result=last.errors)
    for t, found in enumerate(run):
        kit.require(found.step == t + 1, f"step is {found.step}, expected {t + 1}")
        patch, bulk = patch_of(w, found, 1.0)
        exact, weight = w.astype(np.float64), found.weight.astype(np.float64)
        error = float(np.linalg.norm(exact - weight - patch))
        size = float(np.linalg.norm(np.abs(exact) + np.abs(weight) + bulk))
        # rounded factors and their product, stored weight, two differences; the norm of w.size squares
        allowed = compare.gamma(rank + 8, u) * size + compare.gamma(w.size + 2, u) * error + kit.tiny(w.size)
        kit.check(compare.forward(last.errors[t], error, allowed, f"error of iterate {t + 1}"))


@clause("N-7b", tier="forward-error", dtype=strategies.WIDE_FLOATS, shape=LARGER)
def test_loftq_tells_the_errors_of_a_larger_weight(kit: Kit, dtype: str, shape: tuple[int, int]) -> None:
    """Three iterates, the last returned."""
    w = larger(shape, dtype)
    check_errors(kit, w, iterates(kit, w, 3, rank=8, bits=4, block_size=64), 8)


@clause("N-7b", tier="forward-error", dtype=strategies.WIDE_FLOATS)
def test_loftq_by_default(kit: Kit, dtype: str) -> None:
    """Four bits, NormalFloat, blocks of 64, the best of five iterations, scaling 1."""
    w = larger((40, 128), dtype)
    found = kit.call("loftq", w, rank=8)
    named = {"bits": 4, "quantizer": "normal-float", "block_size": 64, "iterations": 5, "keep": "best", "scaling": 1.0}
    other = kit.call("loftq", w, rank=8, **named)
    kit.check(compare.exact(found.codes, other.codes, "codes by default"))
    kit.check(compare.exact(found.errors, other.errors, "errors by default"))
    kit.require(found.errors.shape == (5,), f"errors have shape {found.errors.shape}, expected (5,)")


@clause("N-7b", tier="forward-error", case=loftq_inputs())
def test_loftq_tells_the_error_and_keeps_the_best(kit: Kit, case: tuple[Array, dict[str, Any]]) -> None:
    """errors[t − 1] is that of iterate t; "best" is the iterate of the least, "last" the last."""
    w, options = case
    run = iterates(kit, w, 4, **options)
    best = kit.call("loftq", w, iterations=4, **options)
    last = run[-1]
    check_errors(kit, w, run, options["rank"])
    least = float(np.min(best.errors))
    kit.require(best.errors[best.step - 1] == least, f"step {best.step} is not the least of {best.errors.tolist()}")
    kit.check(compare.exact(best.errors, last.errors, "errors"))
    kit.check(compare.exact(best.codes, run[best.step - 1].codes, "codes of the best iterate"))


@clause("N-7b", tier="forward-error", dtype=strategies.WIDE_FLOATS)
def test_loftq_keeps_the_first_of_equal_errors(kit: Kit, dtype: str) -> None:
    """Zeros: every iterate is exact. Two bits on a fixed weight: the third iterate is worse than the second."""
    found = kit.call("loftq", np.zeros((4, 6), dtype), rank=2, bits=2, iterations=3)
    kit.check(compare.exact(found.errors, np.zeros(3), "errors of zeros"))
    kit.require(found.step == 1, f"step is {found.step}, the first of equal errors is 1")
    w = np.random.default_rng(3).standard_normal((12, 32)).astype(dtype)
    found = kit.call("loftq", w, rank=4, bits=2, iterations=8)
    expected = kit.spec.loftq(w, rank=4, bits=2, iterations=8)
    kit.require(1 < expected.step < 8, "this weight no longer shows it")
    kit.require(found.step == expected.step, f"step is {found.step}, expected {expected.step}")


@clause("N-7c", tier="forward-error", case=loftq_inputs(), scaling=[0.25, 2.0, 3.0])
def test_scaling_divides_b(kit: Kit, case: tuple[Array, dict[str, Any]], scaling: float) -> None:
    """Codes, A and errors as without it; B divided, so that weight + scaling · B A is the same start."""
    w, options = case
    plain, found = (kit.call("loftq", w, iterations=2, scaling=c, **options) for c in (1.0, scaling))
    kit.check(compare.exact(found.codes, plain.codes, "codes"))
    kit.check(compare.exact(found.errors, plain.errors, "errors"))
    (patch, bulk), (scaled, _) = patch_of(w, plain, 1.0), patch_of(w, found, scaling)
    kit.check(compare.forward(scaled, patch, compare.gamma(6, kit.u(w, result=found.B)) * bulk + kit.tiny(6), "patch"))
    size = np.abs(plain.B.astype(np.float64)) / scaling
    allowed = compare.gamma(4, kit.u(w, result=found.B)) * size + kit.tiny()
    kit.check(compare.forward(np.abs(found.B), size, allowed, "B"))


@clause("N-7d", tier="tie-band", dtype=strategies.WIDE_FLOATS, bits=st.integers(2, 4))
def test_loftq_with_the_uniform_quantizer(kit: Kit, dtype: str, bits: int) -> None:
    """Clipped to mean ± 2σ (n − 1), one grid from end to end; the second iterate sees what the patch left."""
    random = np.random.default_rng(20240229)
    for shape in ((2, 3), (9, 14), (40, 30)):
        w = (random.standard_normal(shape) + 0.25).astype(dtype)
        w[0, 0] = 9.0  # beyond two deviations
        before, options = None, {"rank": 2, "bits": bits, "quantizer": "uniform"}
        for found in iterates(kit, w, 2, **options):
            u, top = kit.u(w, result=found.weight), 2**bits - 1
            patch, bulk = patch_of(w, before, 1.0)
            rest = w.astype(np.float64) - patch
            slip = compare.gamma(6, u) * bulk + compare.gamma(2, u) * (np.abs(w) + np.abs(patch))
            largest = float(np.abs(rest).max())
            slack = compare.deviation_slack(w.size, largest, u) + 4 * float(slip.max())
            low, high = (rest.mean() + side * 2 * rest.std(ddof=1) for side in (-1, 1))
            low, high = max(low, rest.min()), min(high, rest.max())
            kit.require(found.scale.shape == (1,) == found.offset.shape, "one grid for the tensor")
            kit.check(compare.forward(found.offset, [low], slack, "offset"))
            kit.check(compare.forward(found.scale, [(high - low + WIDENED) / top], 3 * slack / top, "scale"))
            scale, offset = float(found.scale[0]), float(found.offset[0])
            ratio = np.clip((rest - offset) / scale, 0, top)
            band = (slip + 2 * slack) / scale + compare.gamma(2, u) * (np.abs(rest) + abs(offset)) / scale
            kit.check(compare.codes(found.codes, np.rint(ratio), ratio, band))
            value = offset + scale * found.codes
            allowed = compare.gamma(4, u) * (abs(offset) + scale * found.codes)
            kit.check(compare.forward(found.weight, value, allowed, "weight"))
            check_patch(kit, w, found, 2, 1.0)
            before = found


@clause("N-7d", tier="tie-band")
def test_uniform_quantizer_of_a_constant_weight(kit: Kit) -> None:
    """No range and no deviation: the constant comes back instead of 0 / 0."""
    for value in (0.0, 1024.0):
        found = kit.call("loftq", np.full((3, 4), value, np.float32), rank=1, bits=2, quantizer="uniform")
        allowed = compare.gamma(4, kit.u(np.float32)) * np.full((3, 4), value)
        kit.check(compare.forward(found.weight, np.full((3, 4), value), allowed, "weight"))
