"""The Numba backend's numbers, where it takes its own ways: against the specification, over all options.

The kit checks every clause by its tolerance. Here float64 data makes both sides agree in every code, so that blocking,
segment borders and lanes are compared without any tolerance, and float32 shows what its rounding is allowed to do.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

import lowbit
from lowbit.conformance import compare

from .numba_cases import moment, weights

numba_cpu: Any = lowbit.load("numba")
reference: Any = lowbit.load("reference")
U32, U64 = compare.unit_roundoff("float32"), compare.unit_roundoff("float64")


def close(observed: Any, expected: Any, n: int, u: float) -> bool:
    """Normwise agreement after n roundings."""
    return bool(np.abs(observed - expected).max(initial=0.0) <= compare.gamma(n, u) * np.abs(expected).max(initial=0.0))


def test_codes_are_divisions_not_products_with_a_reciprocal() -> None:
    scale = np.random.default_rng(0).uniform(0.01, 1, 4000).astype(np.float32)[:, None]
    x = ((np.arange(120, dtype=np.float32) + np.float32(0.5)) * scale).astype(np.float32)
    divided, multiplied = np.rint(x / scale), np.rint(x * (np.float32(1) / scale))
    assert (divided != multiplied).any()  # the data tells the two apart
    zero = np.zeros(scale.shape, np.int32)
    assert np.array_equal(numba_cpu.quantize(x, scale, zero, bits=8), divided)
    done = numba_cpu.gptq(x, np.eye(120, dtype=np.float32), bits=8)  # white inputs: the same rule, column by column
    rounded = np.rint(x / done.scale) + done.zero_point
    assert np.array_equal(done.codes, np.clip(rounded, 0, 255))


@pytest.mark.parametrize("dtype", ("float16", "float32", "float64"))
@pytest.mark.parametrize("scheme", ("asymmetric", "symmetric", "symmetric-full", "symmetric-gptq"))
def test_grids_are_those_of_the_specification_rounded_once(dtype: str, scheme: str) -> None:
    x = weights(6, 48, dtype=dtype)
    x[2], x[3], x[4] = 0, 3, np.abs(x[4])
    for granularity, zero, stored in itertools.product(
        ("tensor", "row", "token", "group"), (True, False), (None, "float32", "float16", "bfloat16")
    ):
        options: dict[str, Any] = {
            "bits": 4, "scheme": scheme, "granularity": granularity, "include_zero": zero, "scale_dtype": stored,
            "group_size": 16 if granularity == "group" else None, "clip_ratio": 0.9, "range_floor": 1e-5,
        }  # fmt: skip
        got, want = numba_cpu.fit_grid(x, **options), reference.fit_grid(x, **options)
        assert np.array_equal(got.scale, want.scale.astype(got.scale.dtype))
        assert np.array_equal(got.zero_point, want.zero_point)


def test_a_large_tensor_is_cut_without_a_trace() -> None:
    x = weights(300, 301, dtype="float32")
    x[-1, -1] = 1e3
    got, want = (b.fit_grid(x, bits=8, granularity="tensor") for b in (numba_cpu, reference))
    assert np.array_equal(got.scale, want.scale.astype(np.float32))
    assert np.array_equal(got.zero_point, want.zero_point)


def test_far_zero_points_are_exact() -> None:
    x = (1000 + weights(4, 32, dtype="float32") * np.float32(1e-3)).astype(np.float32)
    grid = numba_cpu.fit_grid(x, bits=8, include_zero=False)
    assert np.abs(grid.zero_point).max() > 2**17
    got = numba_cpu.quantize(x, *grid, bits=8)
    assert np.array_equal(got, np.clip(np.rint(x / grid.scale).astype(np.int64) + grid.zero_point, 0, 255))
    want = reference.dequantize(got, *grid).astype(np.float32)
    assert np.array_equal(numba_cpu.dequantize(got, *grid), want)


def test_scales_broadcast_as_the_specification_says() -> None:
    x = weights(6, 12, dtype="float32").reshape(2, 3, 12)
    for shape in ((1, 1, 1), (2, 1, 4), (1, 3, 12), (2, 3, 1)):
        s, z = np.full(shape, 0.25, np.float32), np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
        got = numba_cpu.quantize(x, s, z, bits=6)
        assert np.array_equal(got, reference.quantize(x, s, z, bits=6))
        assert np.array_equal(numba_cpu.dequantize(got, s, z), reference.dequantize(got, s, z))
    assert numba_cpu.quantize(np.array(0.6), np.array(0.5), np.array(1), bits=4) == 2


@pytest.mark.parametrize("levels", (1, 2, 16, 64, 65, 255, 300))
@pytest.mark.parametrize("dtype", ("float32", "float64"))
def test_nearest_levels_of_every_table_size(levels: int, dtype: str) -> None:
    rng = np.random.default_rng(levels)
    table = np.unique(rng.standard_normal(levels).astype(dtype))
    x = np.concatenate([rng.standard_normal(3000).astype(dtype), table, ((table[:-1] + table[1:]) / 2).astype(dtype)])
    assert np.array_equal(numba_cpu.nearest_level(x, table), reference.nearest_level(x, table))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("layout", ("dense", "padded"))
def test_packing_is_exact_at_every_length(bits: int, layout: str) -> None:
    rng = np.random.default_rng(bits)
    for k in (0, 1, 7, 31, 32, 33, 64, 100, 257):
        codes = rng.integers(0, 2**bits, (3, k)).astype(np.int32)
        words = numba_cpu.pack(codes, bits=bits, layout=layout)
        assert np.array_equal(words, reference.pack(codes, bits=bits, layout=layout))
        assert np.array_equal(numba_cpu.unpack(words, bits=bits, length=k, layout=layout), codes)


@pytest.mark.parametrize("norm", (1.0, 2.0, 2.4, 3.5))
def test_the_clip_search_finds_an_error_as_small(norm: float) -> None:
    x = weights(6, 300, dtype="float32")
    x[1] = 0
    for scheme in ("asymmetric", "symmetric"):
        got, want = (b.clip_search(x, bits=3, scheme=scheme, norm=norm) for b in (numba_cpu, reference))

        def error(found: Any) -> Any:
            q = reference.quantize(x, found.scale, found.zero_point, bits=3, scheme=scheme)  # noqa: B023
            return (np.abs(reference.dequantize(q, found.scale, found.zero_point) - x) ** norm).sum(axis=1)

        assert (error(got) <= error(want) * (1 + compare.gamma(300, U32)) + compare.tiny(300, "float32")).all()


@pytest.mark.parametrize("k", (1, 8, 191, 192, 193, 450))
@pytest.mark.parametrize("dtype", ("float32", "float64"))
def test_the_factor_across_block_borders(k: int, dtype: str) -> None:
    h = moment(k, dtype=dtype, dead=(0,) if k > 1 else ())
    factor, dead = numba_cpu.inverse_cholesky(h)
    want = reference.inverse_cholesky(h)
    u = U32 if dtype == "float32" else U64
    assert np.array_equal(dead, want.dead)
    assert np.array_equal(np.tril(factor, -1), np.zeros_like(factor))
    repaired = h.astype(np.float64) + np.diag(want.dead.astype(np.float64))
    repaired += 0.01 * np.diag(repaired).mean() * np.eye(k)
    assert close(factor, want.factor, k, u * np.linalg.cond(repaired) if dtype == "float64" else u)


SHAPES = ((5, 48), (60, 300), (800, 96))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("act_order, static", tuple(itertools.product((False, True), repeat=2)))
def test_gptq_is_the_specification_code_by_code(shape: tuple[int, int], act_order: bool, static: bool) -> None:
    m, k = shape
    w, h = weights(m, k), moment(k, dead=(3, 7))
    for group, mode, block in itertools.product((None, 4, 12, k // 2), ("current", "block"), (20, 128)):
        if mode == "current" and block != 128:
            continue
        options: dict[str, Any] = {
            "bits": 3, "group_size": group, "act_order": act_order, "static_groups": static, "group_scales": mode,
            "block_size": block,
        }  # fmt: skip
        got, want = numba_cpu.gptq(w, h, **options), reference.gptq(w, h, **options)
        assert np.array_equal(got.codes, want.codes), options
        assert np.array_equal(got.zero_point, want.zero_point)
        assert np.array_equal(got.group_index, want.group_index)
        assert close(got.weight, want.weight, k * k, U64)
        assert close(np.array(got.loss), np.array(want.loss), m * k * k, U64)


@pytest.mark.parametrize(
    "options",
    (
        {"scheme": "symmetric", "group_size": 12, "clip_search": True, "scale_dtype": "float16", "range_floor": 1e-5},
        {"scheme": "symmetric-full", "clip_search": True},
        {"scheme": "symmetric-gptq", "group_size": 150, "group_scales": "block", "block_size": 100},
        {"clip_search": True, "static_groups": True, "group_size": 30, "act_order": True},
    ),
)
def test_gptq_with_every_kind_of_grid(options: dict[str, Any]) -> None:
    w, h = weights(50, 300), moment(300)
    got, want = numba_cpu.gptq(w, h, bits=3, **options), reference.gptq(w, h, bits=3, **options)
    assert np.array_equal(got.codes, want.codes)
    assert np.array_equal(got.scale, want.scale) or close(got.scale, want.scale, 300, U64)


@pytest.mark.parametrize("pattern", ((2, 4), (1, 4), (4, 4), (1, 2), (3, 6)))
@pytest.mark.parametrize("bits", (None, 4))
def test_sparsegpt_is_the_specification_mask_by_mask(pattern: tuple[int, int], bits: int | None) -> None:
    keep, of = pattern
    for (m, k), group, mode in itertools.product(SHAPES, (None, 6, 12), ("current", "block")):
        if bits is None and (group or mode == "block"):
            continue
        w, h = weights(m, k), moment(k, dead=(3, 7))
        options: dict[str, Any] = {
            "keep": keep, "of": of, "bits": bits, "group_size": group, "group_scales": mode, "block_size": 24,
        }  # fmt: skip
        got, want = numba_cpu.sparsegpt(w, h, **options), reference.sparsegpt(w, h, **options)
        assert np.array_equal(got.mask, want.mask), options
        assert close(got.weight, want.weight, k * k, U64)
        if bits is not None:
            assert np.array_equal(got.codes, want.codes)
            assert not got.weight[got.mask].any()


def test_float32_gptq_loses_nothing_that_matters() -> None:
    """Inputs with six decades of spectrum: codes may differ where rounding decides, the objective may not."""
    rng = np.random.default_rng(5)
    k = 256
    basis = np.linalg.qr(rng.standard_normal((k, k)))[0]
    spectrum = np.logspace(0, -6, k)
    h = ((basis * spectrum) @ basis.T).astype(np.float32)
    h = (h + h.T) / 2
    w = weights(64, k, dtype="float32")
    got, want = (b.gptq(w, h, bits=3, group_size=32) for b in (numba_cpu, reference))
    same = (got.codes == want.codes).all(axis=1)
    assert same.mean() > 1 / 2  # whole rows agree; in the others one early tie changes what follows
    rounding = compare.gamma(k, U32) * np.sqrt(1 / 0.01)  # damping bounds the condition of the problem
    assert abs(got.loss - want.loss) <= want.loss * (rounding + (~same).mean())


@pytest.mark.parametrize("shape", ((0, 5), (1, 1), (7, 13), (129, 200), (300, 100)))
@pytest.mark.parametrize("dtype", ("float16", "float32", "float64"))
def test_moments_across_tile_borders(shape: tuple[int, int], dtype: str) -> None:
    x = weights(*shape, dtype=dtype)
    (got,), (want,) = numba_cpu.moment_leaf(x, index=3), reference.moment_leaf(x, index=3)
    u = U64 if dtype == "float64" else U32
    bound = compare.gamma(shape[0] + 1, u) * (np.abs(x.astype(np.float64)).T @ np.abs(x.astype(np.float64)))
    assert np.array_equal(got.sum, got.sum.T)
    assert (np.abs(got.sum - want.sum) <= bound).all()
    assert close(got.magnitude, want.magnitude, shape[0] + 1, U64)
    assert (got.level, got.index, got.tokens) == (0, 3, shape[0])


def test_moments_do_not_depend_on_the_order_of_merging() -> None:
    leaves = [
        numba_cpu.moment_leaf(weights(5, 9, dtype="float32", seed=i), index=i) for i in (0, 1, 2, 5, 6, 7, 11, 20)
    ]
    seen = set()
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(len(leaves))
        nodes: Any = ()
        for i in order:
            nodes = numba_cpu.moment_merge(nodes, leaves[i]) if seed % 2 else numba_cpu.moment_merge(leaves[i], nodes)
        total, want = numba_cpu.moment_total(nodes), reference.moment_total(nodes)
        assert np.array_equal(total.matrix, want.matrix)
        seen.add(total.matrix.tobytes() + total.magnitude.tobytes())
    assert len(seen) == 1


@pytest.mark.parametrize("shape", ((20, 30), (30, 20), (600, 620), (620, 600)))
def test_patches_from_the_gram_matrix_are_as_good_as_from_the_svd(shape: tuple[int, int]) -> None:
    d = weights(*shape, dtype="float32")
    scale = np.abs(weights(1, shape[1], dtype="float32"))[0]
    scale[3] = 0
    σ = np.linalg.svd(d.astype(np.float64) * scale, compute_uv=False)
    for split in ("balanced", "left"):
        b, a = numba_cpu.scaled_svd_patch(d, scale, rank=5, split=split)
        assert not a[:, 3].any()
        left = float(np.linalg.norm((d - b.astype(np.float64) @ a) * scale) ** 2)
        assert left <= (σ[5:] ** 2).sum() + compare.residual_gap(float(np.linalg.norm(d * scale)), max(shape), U32)


@pytest.mark.parametrize("method", ("gptq", "rtn"))
@pytest.mark.parametrize("group", (None, 16, 32))
def test_adapters_are_quantized_as_specified(method: str, group: int | None) -> None:
    b, a, c = weights(50, 16), weights(16, 64, seed=4), moment(64)
    got, want = (x.quantize_adapter(b, a, c, bits=4, method=method, group_size=group) for x in (numba_cpu, reference))
    for mine, theirs in zip(got, want, strict=True):
        assert np.array_equal(mine.codes, theirs.codes)
        assert np.array_equal(mine.group_index, theirs.group_index)
        assert close(np.array(mine.loss), np.array(theirs.loss), 64**2, U64)
