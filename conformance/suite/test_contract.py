"""Chapter A: what holds for every operation, whatever it computes."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lowbit.conformance import compare
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array
from lowbit.reference.errors import Unsupported
from lowbit.reference.protocol import operations
from lowbit.reference.types import DecoderBlock, IntegerTable, MomentNode, Table


class Call(NamedTuple):
    """An ordinary call of one operation."""

    op: str
    names: tuple[str, ...]  # of the positional arguments, as in the protocol
    arrays: tuple[Any, ...]  # NumPy; a list or tuple of arrays where the operation takes a sequence
    options: dict[str, Any]


def ordinary_calls(dtype: str = "float32") -> list[Call]:
    """One or two well-conditioned calls of every operation, in reading order; inputs are fresh arrays every time."""
    draw = np.random.default_rng(20240229)
    w, d = (draw.standard_normal((4, 8)).astype(dtype) for _ in range(2))
    x = draw.standard_normal((20, 8))
    h = (x.T @ x + 20 * np.eye(8)).astype(dtype)
    h = np.asarray(np.triu(h) + np.triu(h, 1).T)
    b, a = draw.standard_normal((4, 2)).astype(dtype), draw.standard_normal((2, 8)).astype(dtype)
    scale = (0.1 + draw.random((4, 2))).astype(dtype)
    zero = draw.integers(0, 15, (4, 2)).astype(np.int32)
    codes = draw.integers(0, 16, (4, 8)).astype(np.int32)
    words = np.array([[0x12345678, 0x0BCDEF01], [7, -1]], np.int32)
    levels = np.array([-1.0, -0.25, 0.5, 2.0], dtype)
    moment = (0.5 + draw.random(8)).astype(dtype)
    per_row = (0.5 + draw.random(4)).astype(dtype)
    bits = draw.integers(0, 4, (4, 8)).astype(np.int32)
    binary = (0.1 + draw.random((4, 2, 2))).astype(dtype)
    shift = draw.standard_normal((4, 2)).astype(dtype)
    planes = draw.integers(0, 256, (1, 2, 4)).astype(np.int32)
    swapped = np.ascontiguousarray(binary.transpose(1, 2, 0))
    train, steps = np.arange(16).reshape(4, 2, 2) % 3 > 0, np.arange(1, 9, dtype=np.int32) * np.ones((4, 1), np.int32)

    def node(index: int) -> MomentNode[Array]:
        leaf = draw.integers(-9, 9, (3, 4)).astype(np.float64)
        return MomentNode(0, index, leaf.T @ leaf, np.abs(leaf).sum(axis=0), 3)

    nodes = tuple(node(i) for i in (0, 2, 5))
    blocks, packed = moment[:3].copy(), {"bits": 2, "block_size": 4}
    batches = [draw.standard_normal((n, 3, 4)).astype(dtype) for n in (1, 2)]
    turn = np.linalg.qr(draw.standard_normal((8, 8)))[0].astype(dtype)
    half = np.linalg.qr(draw.standard_normal((2, 2)))[0].astype(dtype)
    vector = draw.standard_normal(8).astype(dtype)
    block: DecoderBlock[Array] = DecoderBlock(
        vector, d, w[:2], w[2:], w.T, vector, w, d, d.T, vector[:2], vector, vector
    )  # d = 8 features, two heads of 2 that share one key-value head
    addresses = draw.integers(0, 2**32, (5, 4))
    spectra = np.array([[4.0, 2.0, 1.0, 0.5], [3.0, 3.0, 0.25, 0.0], [5.0, 1.0, 1.0, 1.0]], dtype)
    left = np.array([[0.75, 0.5], [1.5, 1.0], [0.25, 0.0]], dtype)
    each = np.array([1.5, 0.75, 2.0], dtype)
    cost, low, high, now = (np.array(x, np.int32) for x in ([3, 2, 4], [0, 1, 0], [4, 3, 4], [2, 2, 1]))
    shapes, group = np.array([[4, 9], [3, 8]], np.int32), np.array([0, 1, 0], np.int32)
    names, chance = np.array([3, 0, 2, 3], np.int32), (0.125 + np.abs(w)).astype(dtype)
    market = ("spectra", "importance", "cost", "low", "high")
    lines: Table[Array] = Table(np.array([-1.0, 0.5]), np.array([0.0, 0.25, 1.0]), np.array([0.0, 0.25, -0.125]))
    ends = np.array([-2.0, -0.5, 1.0, 4.0], dtype)
    exp, div, root = (small_table(*lists) for lists in SMALL_TABLES)
    genomes = np.array([[0.5, -1.0, 2.0], [3.0, 0.25, -0.5]], dtype)
    knots, heights = np.array([-4.0, -1.0, 0.0, 1.0, 4.0], dtype), np.array([0.0, -0.25, 0.0, 0.75, 4.0], dtype)
    points, cuts = np.arange(-3, 4).astype(dtype), np.array([[0, 2, 3, 4, 7]], np.int32)
    targets, samples = np.maximum(points, 0), ("knots", "values", "x", "y", "cuts")
    pair = tuple(draw.standard_normal((3, 4, 5)).astype(dtype) for _ in range(2))
    scores = tuple(draw.standard_normal((3, 2, 4, 4)).astype(dtype) for _ in range(2))
    lengths, labels = (
        np.array([2, 4, 1], np.int32),
        np.array([[0, -100, 4, 2], [1, 1, 3, 0], [2, 2, -100, 4]], np.int32),
    )
    return [
        Call("philox_words", ("counters",), (addresses,), {"seed": 2**40 + 3}),
        Call("philox_uniform", ("counters",), (addresses,), {"seed": 1}),
        Call("philox_integers", ("counters",), (addresses,), {"seed": 1, "bound": 10}),
        Call("philox_normal", ("counters",), (addresses,), {"seed": 1}),
        Call("round_half_even", ("x",), (4 * w,), {}),
        Call("round_clip", ("x",), (4 * w,), {"low": -3, "high": 3}),
        Call("nearest_level", ("x", "levels"), (w, levels), {}),
        Call("fit_grid", ("x",), (w,), {"bits": 4}),
        Call("fit_grid", ("x",), (w,), {"bits": 3, "scheme": "symmetric", "granularity": "group", "group_size": 4}),
        Call("fit_grid", ("x",), (w,), {"bits": 8, "granularity": "tensor", "scale_dtype": "float16"}),
        Call("clip_search", ("x",), (w,), {"bits": 3, "grid": 20}),
        Call("quantize", ("x", "scale", "zero_point"), (w, scale, zero), {"bits": 4}),
        Call("dequantize", ("codes", "scale", "zero_point"), (codes, scale, zero), {}),
        Call("pack", ("codes",), (codes,), {"bits": 4}),
        Call("pack", ("codes",), (codes,), {"bits": 5, "layout": "padded"}),
        Call("unpack", ("words",), (words,), {"bits": 3, "length": 20}),
        Call("unpack", ("words",), (words,), {"bits": 3, "length": 20, "layout": "padded"}),
        Call("normal_float", (), (), {"bits": 4}),
        Call("dynamic_float", (), (), {"bits": 8}),
        Call("block_scale", ("x",), (w,), {"block_size": 12}),
        Call("block_scale", ("x",), (w,), {}),
        Call("quantize_blocks", ("x", "scale", "levels"), (w, blocks, levels), {"block_size": 12}),
        Call("dequantize_blocks", ("codes", "scale", "levels"), (codes % 4, blocks, levels), {"block_size": 12}),
        Call("quantize_scale", ("scale", "levels"), (moment, levels), {"block_size": 3}),
        Call(
            "dequantize_scale",
            ("codes", "scale", "offset", "levels"),
            (codes[0] % 4, blocks, moment[:1].reshape(()), levels),
            {"block_size": 3},
        ),
        Call(
            "codebook_matmul", ("x", "words", "scale", "levels"), (d, words[:, 1:], scale[:2].ravel(), levels), packed
        ),
        Call("twn_code", ("x",), (w,), {"granularity": "row", "clip": 1.5}),
        Call("twn", ("x",), (w,), {}),
        Call("twn", ("x",), (w,), {"granularity": "row"}),
        Call("clamped_uniform", ("x",), (w,), {}),
        Call("clamped_uniform", ("x",), (w,), {"granularity": "row", "outermost": "bounded", "clip": 1.5}),
        Call("min_max", ("x",), (w,), {}),
        Call("min_max", ("x",), (w,), {"bits": 3, "scheme": "asymmetric", "granularity": "matrix", "clip": 1.5}),
        Call("straight_through", ("grad", "x"), (d, w), {"clip": 0.5}),
        Call("lsq_init", ("x",), (w,), {"bits": 4}),
        Call("lsq_init", ("x",), (w,), {"bits": 3, "axis": 0, "signed": False, "rule": "min-max"}),
        Call("lsq_init", ("x",), (w,), {"bits": 3, "axis": -1, "rule": "deviation"}),
        Call("lsq_code", ("x", "step", "offset"), (w, per_row, shift[:, 0].copy()), {"bits": 3, "axis": 0}),
        Call("lsq", ("x", "step"), (w, per_row[:1].copy()), {"bits": 3}),
        Call("lsq", ("x", "step", "offset"), (w, moment, vector), {"bits": 3, "axis": 1, "epsilon": 0.75}),
        Call("lsq_gradient", ("grad", "x", "step"), (d, w, per_row), {"bits": 3, "axis": 0}),
        Call(
            "lsq_gradient",
            ("grad", "x", "step", "offset"),
            (d, w, moment, vector),
            {"bits": 2, "axis": 1, "count": "features"},
        ),
        Call("statsq", ("w",), (w,), {"bits": 2}),
        Call("statsq", ("w",), (d.reshape(2, 2, 8),), {"bits": 3}),
        Call("statsq_grad", ("w", "grad"), (w, d), {"bits": 2}),
        Call("statsq_grad", ("w", "grad"), (w, d), {"bits": 2, "path": "scale"}),
        Call("start_oscillation", ("codes",), (codes,), {}),
        Call(
            "track_oscillation",
            ("codes", "previous", "direction", "frequency", "total", "average", "frozen", "target"),
            (codes, codes[::-1].copy(), codes % 3 - 1, np.abs(w), codes, d, w > 0, codes // 2),
            {"momentum": 0.25, "threshold": 0.5},
        ),
        Call("boundary_statistics", ("w", "grad", "previous"), (w, d, d + 1), {"bits": 2, "boundary_range": 0.25}),
        Call("cga_mask", ("w",), (w,), {"bits": 2, "boundary_range": 0.25, "thresholds": "occupied"}),
        Call(
            "cga_step",
            ("w", "grad", "first", "second", "active"),
            (w, d, d / 2, d * d, w > 0),
            {"step": 3, "lr": 0.125, "decay": 0.25},
        ),
        Call("qkr_weight", ("w_q", "w_k"), (w, d), {"heads": 2}),
        Call(
            "qkr_grad",
            ("w_q", "w_k", "grad", "active"),
            (w, d, np.tile(h, (2, 1)), np.tile(h, (2, 1)) > 0),
            {"heads": 2},
        ),
        Call(
            "qkr_attention",
            ("x", "w_q", "w_k", "w_v", "b_q", "b_v"),
            (w.reshape(2, 2, 8), w, d, d + 1, w[:, 0].copy(), d[:, 1].copy()),
            {"heads": 2},
        ),
        Call("bcq", ("w",), (w,), {"bits": 2}),
        Call("bcq", ("w",), (w,), {"bits": 3, "group_size": 4, "method": "refined", "offset": True}),
        Call("bcq", ("w",), (w,), {"bits": 2, "method": "greedy"}),
        Call("bcq_refit", ("w", "codes"), (w, bits), {"bits": 2, "group_size": 4, "offset": True}),
        Call("bcq_assign", ("w", "scale", "offset"), (w, binary, shift), {}),
        Call("bcq_assign", ("w", "scale", "offset"), (w, binary, None), {}),
        Call("bcq_weight", ("codes", "scale", "offset"), (bits, binary, shift), {}),
        Call("bcq_from_grid", ("codes", "scale", "zero_point"), (codes, scale, zero), {"bits": 4}),
        Call("bcq_pack", ("codes", "scale", "offset"), (bits, binary, shift), {}),
        Call("bcq_unpack", ("planes", "scale", "offset"), (planes, swapped, shift.T.copy()), {"length": 8}),
        Call("lookup_tables", ("x",), (w,), {"width": 3}),
        Call("bcq_product", ("x", "planes", "scale", "offset"), (w, planes, swapped, shift.T.copy()), {}),
        Call("bcq_product", ("x", "planes", "scale", "offset"), (w, planes, swapped, None), {"method": "lookup"}),
        Call("bcq_product", ("x", "planes", "scale", "offset"), (d, planes, swapped, None), {"method": "dequantize"}),
        Call("trainable_scales", ("scale",), (binary,), {"train": "largest"}),
        Call("scale_grad", ("grad", "codes"), (d, bits), {"bits": 2, "group_size": 4}),
        Call("scale_grad", ("grad", "codes"), (d, codes), {"bits": 4, "norm": "mean"}),
        Call("scale_grad_tokens", ("x", "delta", "codes"), (w, d[:, ::2].copy(), bits), {"bits": 2, "group_size": 2}),
        Call(
            "tune_step",
            ("scale", "grad", "initial", "first", "second", "trainable"),
            (binary, binary - 1, binary + 1, binary / 2, binary * binary, train),
            {"step": 3, "lr": 0.125, "decay": 0.25},
        ),
        Call("fit_scales", ("w", "c", "codes", "scale", "trainable"), (w, h, bits, binary, train), {}),
        Call("row_bits", ("counts",), (codes.reshape(-1),), {"clusters": 3, "ratio": 2}),
        Call("allocate_bits", ("errors", "sizes"), (np.abs(w), steps), {"budget": 21}),
        Call("project_rows", ("w", "bits"), (w, np.array([1, 2, 4, 3], np.int32)), {}),
        Call("project_rows", ("w", "bits"), (w, np.array([1, 2, 2, 3], np.int32)), {"method": "alternating"}),
        Call("inverse_cholesky", ("h",), (h,), {}),
        Call("gptq", ("w", "h"), (w, h), {"bits": 3}),
        Call("gptq", ("w", "h"), (w, h), {"bits": 4, "group_size": 4, "act_order": True, "scheme": "symmetric-full"}),
        Call("sparsegpt", ("w", "h"), (w, h), {}),
        Call("sparsegpt", ("w", "h"), (w, h), {"bits": 4, "group_size": 4}),
        Call("wanda", ("w", "feature_moment"), (w, moment), {}),
        Call("moment_leaf", ("x",), (x.astype(dtype),), {"index": 3}),
        Call("moment_merge", ("left", "right"), (nodes, (node(1), node(7))), {}),
        Call("moment_total", ("nodes",), (nodes,), {}),
        Call("recency_moment", ("batches",), (batches,), {"total": 3}),
        Call("svd_patch", ("d",), (d,), {"rank": 2}),
        Call("scaled_svd_patch", ("d", "channel_scale"), (d, moment), {"rank": 2}),
        Call("loftq", ("w",), (w,), {"rank": 2, "bits": 2, "block_size": 12, "iterations": 2}),
        Call("loftq", ("w",), (w,), {"rank": 1, "bits": 3, "quantizer": "uniform", "scaling": 2.0}),
        Call("objective", ("d", "c"), (d, h), {}),
        Call("eora", ("d", "c"), (d, h), {"rank": 2}),
        Call("error_spectrum", ("d", "c"), (d, h), {}),
        Call("optimum", ("d", "c"), (d, h), {"rank": 2}),
        Call("eora_published", ("d", "c"), (d, h), {"rank": 2}),
        Call("eora_certified", ("d", "c"), (d, h), {"rank": 2}),
        Call("stationarity", ("d", "c", "b", "a"), (d, h, b, a), {}),
        Call("quantize_adapter", ("b", "a", "c"), (b, a, h), {"bits": 4}),
        Call("residual_moment", ("c", "a"), (h, a), {}),
        Call("explained_error", ("spectra",), (spectra,), {}),
        Call("residual_damage", ("spectra", "energy"), (spectra, each), {}),
        Call("subspace_overlap", ("w", "w_hat", "c"), (w, w + d / 4, h), {"rank": 3}),
        Call("gradient_importance", ("gradient",), (w,), {}),
        Call("loss_importance", ("losses", "spectra"), (each, spectra), {"base": 0.5}),
        Call("rank_cost", ("shapes",), (shapes,), {}),
        Call("rank_cost", ("shapes",), (shapes,), {"bits": 4}),
        Call("allocate_greedy", market, (spectra, each, cost, low, high), {"budget": 17}),
        Call("allocate_greedy", market, (spectra, each, cost, low, high), {"budget": 17, "leftover": "fill"}),
        Call("threshold_ranks", ("spectra", "low", "high"), (spectra, low, high), {"threshold": 0.9}),
        Call("allocate_threshold", ("spectra", *market[2:]), (spectra, cost, low, high), {"budget": 17}),
        Call("allocate_proportional", ("sensitivity", *market[2:]), (each, cost, low, high), {"budget": 17}),
        Call("allocation_objective", ("spectra", "importance", "ranks"), (spectra, each, now), {}),
        Call("allocation_bound", market, (spectra, each, cost, low, high), {"budget": 17}),
        Call("pool_modules", (*market, "group"), (spectra, each, cost, low, high, group), {}),
        Call(
            "reallocate_ranks",
            ("kept", "residual", *market[1:], "ranks"),
            (spectra, left, each, cost, low, high, now),
            {"budget": 17, "step": 1},
        ),
        Call("nest_patch", ("b", "a", "c"), (b, a, h), {}),
        Call("dora_magnitude", ("w",), (w,), {}),
        Call("dora_magnitude", ("w",), (w.reshape(4, 2, 4),), {"layout": "conv"}),
        Call("dora_norm", ("w", "b", "a"), (w, b, a), {"scaling": 2.0}),
        Call("factored_norm", ("w", "square_norm", "b", "a"), (w, 100 * per_row, b, a), {"scaling": 0.5}),
        Call("dora_weight", ("w", "b", "a", "magnitude"), (w, b, a, per_row), {"scaling": 2.0}),
        Call(
            "dora_weight",
            ("w", "b", "a", "magnitude"),
            (w.reshape(4, 2, 4), b.reshape(4, 2, 1), a.reshape(2, 2, 4), per_row),
            {"scaling": 2.0, "layout": "conv"},
        ),
        Call(
            "dora_forward",
            ("x", "dropped", "w", "bias", "b", "a", "magnitude"),
            (d, d * (d > 0), w, per_row, b, a, per_row),
            {"scaling": 2.0},
        ),
        Call("dora_gradient", ("grad", "w", "b", "a", "magnitude"), (d, w, b, a, per_row), {"scaling": 2.0}),
        Call(
            "dora_gradient",
            ("grad", "w", "b", "a", "magnitude"),
            (d.T, w.T, b, a, per_row),
            {"scaling": 2.0, "detach": False, "layout": "transposed"},
        ),
        Call("dora_merge", ("w", "b", "a", "magnitude"), (w, b, a, per_row), {"scaling": 2.0}),
        Call("dora_unmerge", ("merged", "b", "a", "factor"), (w, b, a, per_row), {"scaling": 2.0}),
        Call("dvora_factors", ("b", "a", "row_scale", "rank_scale"), (b, a, per_row, per_row[:2]), {}),
        Call("dvora_gradient", ("grad_b", "grad_a", "b", "a"), (b, a, b[::-1], a[::-1]), {}),
        Call("decomposition_change", ("w", "start"), (w, d), {}),
        Call("dora_to_lora", ("w", "b", "a", "magnitude"), (w, b, a, per_row), {"scaling": 2.0, "rank": 2}),
        Call("hadamard_matrix", (), (), {"order": 12}),
        Call("hadamard_transform", ("x",), (w,), {}),
        Call("hadamard_transform", ("x",), (x.astype(dtype).T,), {"block_size": 20, "transpose": True}),
        Call("kronecker_transform", ("x", "table"), (w, np.array([[1, 1], [-1, 1]], dtype)), {}),
        Call("random_hadamard", (), (), {"order": 12, "seed": 3, "index": 1}),
        Call("orthogonal_factor", ("z",), (h,), {}),
        Call("random_orthogonal", (), (), {"order": 6, "seed": 3}),
        Call("fuse_norm", ("w", "gain"), (w, moment), {}),
        Call("rotate_inputs", ("w", "q"), (w, turn), {}),
        Call("rotate_outputs", ("w", "q"), (w, half), {}),
        Call("rotate_block", ("block", "r1", "r2"), (block, turn, half), {}),
        Call("rotate_ends", ("embedding", "gain", "head", "r1"), (w, moment, d, turn), {}),
        Call("outlier_measures", ("x",), (w,), {}),
        Call("quantize_activations", ("x",), (w,), {"bits": 4}),
        Call("activation_clip", ("x",), (w,), {"bits": 4}),
        Call("fit_chords", ("knots", "values"), (ends, per_row), {}),
        Call("fit_segments", ("x", "y", "breakpoints"), (vector, moment, ends[1:3]), {}),
        Call("round_table", ("table",), (lines,), {"fraction_bits": 1, "bits": 2}),
        Call("integer_table", ("table",), (lines,), {"scale_bits": 2}),
        Call("evaluate_table", ("x", "table"), (w, lines), {}),
        Call("evaluate_codes", ("q", "table"), (codes, exp), {"tie": "right"}),
        Call("lookup_codes", ("q", "entries"), (codes % 4, ends), {"low": 0}),
        Call("lookup_codes", ("q", "entries"), (codes % 4 - 2, cost[[0, 1, 2, 0]]), {"low": -2}),
        Call("requantize_codes", ("a",), (9 * codes,), {"shift": 2}),
        Call("table_gradient", ("grad", "q"), (w, codes), {"scale": 0.25, "function": "gelu"}),
        Call("evaluate_ranges", ("x", "table"), (9 * moment, lines), {"function": "rsqrt"}),
        Call("table_softmax", ("q", "exp", "reciprocal"), (codes, exp, div), {}),
        Call("table_layer_norm", ("q", "rsqrt"), (codes, root), {}),
        Call("verify_table", ("table", "values"), (exp, np.exp(vector)), {"low": -8}),
        Call("genome_fitness", ("genomes",), (genomes,), {"function": "gelu"}),
        Call("genetic_search", (), (), {"function": "exp", "entries": 4, "seed": 3, "generations": 2, "population": 5}),
        Call("knot_grid", (), (), {"function": "rsqrt", "fraction_bits": 2}),
        Call("search_problem", ("knots",), (knots,), {"function": "gelu", "scale_bits": (1, 3)}),
        Call("optimal_search", samples, (knots, heights, points, targets, cuts), {"entries": 3}),
        Call(
            "optimality_bound",
            (*samples, "potentials"),
            (knots, heights, points, targets, cuts, np.ones((4, 5), dtype)),
            {"fit": "least_squares"},
        ),
        Call(
            "table_objective",
            ("x", "y", "cuts", "slopes", "intercepts"),
            (points, targets, cuts, knots[:4].copy(), heights[:4].copy()),
            {"objective": "max"},
        ),
        Call("error_vector_score", ("logits", "labels"), (w, names), {}),
        Call("disagreement_score", ("logits", "reference"), (w, d), {}),
        Call("acs_score", ("logits", "reference", "labels"), (w, d, names), {"epoch": 2, "epochs": 5}),
        Call("select_coreset", ("scores", "labels"), (per_row, names // 2), {"fraction": 0.5}),
        Call("select_coreset", ("scores", "labels"), (per_row, None), {"fraction": 0.5, "keep": "smallest"}),
        Call("el2n_score", ("logits", "labels"), (np.stack([w, d]), names), {}),
        Call("el2n_score", ("logits", "labels"), (w[None], names), {"outputs": "logits"}),
        Call("grand_score", ("logits", "features", "labels"), (w, d[:, :5].copy(), names), {"batch_size": 3}),
        Call("forgetting_score", ("correct",), (codes % 3 > 0,), {}),
        Call("moderate_score", ("features", "labels"), (w, names // 2), {}),
        Call("moderate_score", ("features", "labels"), (w, names // 2), {"center": "median", "against": "nothing"}),
        Call("contextual_diversity", ("p", "q"), (chance, chance[1:].copy()), {}),
        Call("k_center", ("x", "first"), (w, names[:1]), {"count": 2}),
        Call("k_center", ("x", "first"), (chance, names[:1]), {"count": 1, "metric": "symmetric-kl"}),
        Call("herding", ("x",), (w,), {"count": 3}),
        Call("random_score", (), (), {"size": 6, "seed": 3, "index": 1}),
        Call("logit_loss", ("student", "teacher"), (w, d), {}),
        Call("logit_loss", ("student", "teacher"), (w, d), {"temperature": 2.0, "divergence": "kl"}),
        Call("token_loss", ("student", "teacher", "labels"), (*pair, labels), {}),
        Call("token_loss", ("student", "teacher", "labels"), (*pair, labels), {"ignored": "skip"}),
        Call("feature_loss", ("student", "teacher", "lengths"), (*pair, lengths), {}),
        Call("feature_loss", ("student", "teacher", "lengths"), (*pair, None), {}),
        Call("score_loss", ("student", "teacher"), scores, {}),
        Call("score_loss", ("student", "teacher"), scores, {"causal": True, "floor": 0.0}),
        Call("attention_map_loss", ("student", "teacher", "lengths"), (*scores, lengths), {}),
        Call("ranking_loss", ("student", "teacher"), (scores[0][0], scores[1][0]), {}),
        Call("cover_length", ("student", "teacher"), (scores[0][0], scores[1][0]), {"top": 2}),
        Call("attention_range", ("x",), (w,), {}),
        Call(
            "attention_norms",
            ("maps", "x", "w_v", "b_v", "w_o"),
            (scores[0][0], w, d, per_row, np.ascontiguousarray(w[:, :4])),
            {},
        ),
        Call("power_eigenvalues", ("operator", "start"), (h, w), {"iterations": 5}),
        Call("power_eigenvalues", ("operator", "start"), (h, w[:1]), {"stop": "residual", "shift": 1.0}),
    ]


def small_table(breakpoints: Sequence[int], slopes: Sequence[int], intercepts: Sequence[int]) -> IntegerTable[Array]:
    """An integer table of scale 1/4 with three fraction bits."""
    p, k, b = (np.array(x, np.int32) for x in (breakpoints, slopes, intercepts))
    return IntegerTable(p, k, b, 2, 3)


SMALL_TABLES = (  # exp, 1/x and 1/√x in steps of 1/4 and 1/8: breakpoints, slopes, intercepts
    ((-12, -6, -3), (0, 1, 2, 6), (1, 13, 19, 31)),
    ((3, 5, 10), (-16, -7, -3, -1), (102, 75, 55, 35)),
    ((2, 4, 8), (-12, -8, -3, -1), (80, 72, 52, 36)),
)


def served(kit: Kit, calls: list[Call]) -> Iterator[Call]:
    """The calls of operations that the backend has."""
    for call in calls:
        if kit.has(call.op):
            yield call


def leaves(value: Any) -> Iterator[Any]:
    """Every array-like inside nested tuples, lists and named tuples."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    elif value is not None:
        yield value


def snapshot(kit: Kit, value: Any) -> list[bytes]:
    """Bytes of everything inside a result or an argument; numbers and words by their text."""
    found = []
    for item in leaves(value):
        plain = isinstance(item, bool | int | float | str)
        found.append(repr(item).encode() if plain else np.ascontiguousarray(kit.numpy(item)).tobytes())
    return found


def attempt(kit: Kit, call: Call, arguments: Any) -> Any:
    """Result of the call, or None when the backend cannot serve it."""
    try:
        return getattr(kit.backend, call.op)(*arguments, **call.options)
    except Unsupported as refusal:
        kit.note_refusal(f"{call.op}: {refusal.reason}")
        return None


@clause("A-1", tier="exact")
def test_inputs_are_not_written(kit: Kit) -> None:
    """Bytes of every argument, before and after; also of the NumPy arrays that the backend's may share memory with."""
    for dtype in ("float32", "float64"):
        for call in served(kit, ordinary_calls(dtype)):
            own = kit.own(call.arrays)
            before, outside = snapshot(kit, own), [a.copy() for a in leaves(call.arrays) if isinstance(a, np.ndarray)]
            attempt(kit, call, own)
            kit.require(snapshot(kit, own) == before, f"{call.op}({call.options}) writes to an argument")
            inside = [a for a in leaves(call.arrays) if isinstance(a, np.ndarray)]
            same = all(np.array_equal(a, b) for a, b in zip(inside, outside, strict=True))
            kit.require(same, f"{call.op}({call.options}) writes to the array behind an argument")


def numpy_state() -> Any:
    """State of NumPy's global generator, as something that compares."""
    state: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    return [np.asarray(part).tobytes() for part in state[1:]]


def ambient() -> list[tuple[Callable[[int], Any], Callable[[], Any]]]:
    """Seed and state of every global generator in this process: Python's, NumPy's, Torch's if someone imported it."""
    sources: list[tuple[Callable[[int], Any], Callable[[], Any]]] = [
        (random.seed, random.getstate),
        (np.random.seed, numpy_state),
    ]
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_rng_state"):
        sources.append((torch.manual_seed, lambda: torch.get_rng_state().numpy().tobytes()))
    return sources


@clause("A-1a", tier="exact")
def test_no_ambient_state(kit: Kit) -> None:
    """Global generators stand where they stood, and other seeds in them change no byte of a result."""
    keep = random.getstate(), np.random.get_state(legacy=True)  # noqa: NPY002
    try:
        for call in served(kit, ordinary_calls()):
            results = []
            for seed in (1, 2):
                sources = ambient()
                for reseed, _ in sources:
                    reseed(seed)
                before = [state() for _, state in sources]
                results.append(snapshot(kit, attempt(kit, call, kit.own(call.arrays))))
                after = [state() for _, state in sources]
                kit.require(before == after, f"{call.op} draws from a global random generator")
            kit.require(results[0] == results[1], f"{call.op}({call.options}): the same call gives other bytes")
    finally:
        random.setstate(keep[0])
        np.random.set_state(keep[1])  # noqa: NPY002


def strided(kit: Kit, array: Array, transposed: bool) -> Any:
    """The same numbers as a view: every second entry of a larger array full of other numbers, or a transpose."""
    if transposed and array.ndim == 2:
        return kit.own(np.ascontiguousarray(array.T)).T
    larger = np.full(tuple(2 * n for n in array.shape), 77, array.dtype)
    every_second = tuple(slice(None, None, 2) for _ in array.shape)
    larger[every_second] = array
    return kit.own(larger)[(*every_second, ...)]  # with the dots a 0-d view stays an array


def digest(call: Call, result: Any) -> list[Any]:
    """What of a result two runs must share: products of factors, everything else field by field."""
    if hasattr(result, "B") and call.op not in ("quantize_adapter", "dora_gradient"):
        return [result.B.astype(np.float64) @ result.A.astype(np.float64)]
    return list(leaves(result))


@clause("A-2", tier="forward-error")
def test_strides_are_honoured(kit: Kit) -> None:
    """Views give the result of their contiguous copies, up to the order of sums."""
    for call in served(kit, ordinary_calls()):
        plain = attempt(kit, call, kit.own(call.arrays))
        if plain is None:
            continue
        expected = digest(call, kit.convert(call.op, plain))
        for transposed in (False, True):

            def view(value: Any, flip: bool = transposed) -> Any:
                if isinstance(value, np.ndarray):
                    return strided(kit, value, flip)
                if isinstance(value, tuple) and hasattr(value, "_fields"):
                    return type(value)(*(view(v) for v in value))
                return type(value)(view(v) for v in value) if isinstance(value, list | tuple) else value

            found = digest(call, kit.convert(call.op, attempt(kit, call, tuple(view(a) for a in call.arrays))))
            for got, want in zip(found, expected, strict=True):
                what = f"{call.op}({call.options}) on {'transposed' if transposed else 'strided'} views"
                array = np.asarray(want)
                if array.dtype.kind == "f":
                    size = float(np.max(np.abs(array), initial=0.0))
                    allowed = compare.layout_slack(20, condition(call), kit.u(np.float32)) * size
                    kit.check(compare.forward(got, want, allowed + kit.tiny(20), what))
                else:
                    kit.check(compare.exact(got, want, what))


def condition(call: Call) -> float:
    """Condition number of what the call solves: of its second moment, squared where that is inverted and factorized."""
    squares = [np.linalg.cond(a) for a in leaves(call.arrays) if np.ndim(a) == 2 and a.shape[0] == a.shape[1] == 8]
    return float(max(squares, default=1.0)) ** 2


@clause("A-2a", tier="exact")
def test_zero_size_arrays(kit: Kit) -> None:
    """No rows, no columns, no tokens: empty results of the right shape, sums of nothing are zero."""
    f32, i32 = np.float32, np.int32
    eye = np.eye(4, dtype=f32)
    nobody = tuple(np.zeros(0, i32) for _ in range(3))  # cost, low and high of no module
    losses: list[tuple[str, tuple[Any, ...]]] = [
        ("logit_loss", (np.zeros((0, 4), f32),) * 2),
        ("logit_loss", (np.zeros((2, 0), f32),) * 2),
        ("token_loss", (*(np.zeros((0, 3, 4), f32),) * 2, np.zeros((0, 3), i32))),
        ("token_loss", (*(np.zeros((2, 0, 4), f32),) * 2, np.zeros((2, 0), i32))),
        ("feature_loss", (*(np.zeros((0, 3, 4), f32),) * 2, nobody[0])),
        ("feature_loss", (*(np.zeros((2, 3, 0), f32),) * 2, None)),
        ("score_loss", (np.zeros((2, 0, 3, 3), f32),) * 2),
        ("score_loss", (np.zeros((2, 1, 0, 0), f32),) * 2),
        ("attention_map_loss", (*(np.zeros((0, 2, 3, 3), f32),) * 2, nobody[0])),
        ("attention_map_loss", (*(np.zeros((2, 0, 3, 3), f32),) * 2, np.array([3, 1], i32))),
    ]
    two = np.ones(2, i32), np.zeros(2, i32), np.zeros(2, i32)
    flat: Table[Array] = Table(np.zeros(0), np.array([0.25]), np.array([1.0]))
    level: IntegerTable[Array] = IntegerTable(np.zeros(0, i32), np.array([1], i32), np.array([1], i32), 0, 0)
    table: list[tuple[str, tuple[Any, ...], dict[str, Any], Callable[[Any], Any], Any]] = [
        ("philox_words", (np.zeros((0, 4), i32),), {"seed": 1}, np.shape, (0, 4)),
        ("philox_uniform", (np.zeros((2, 0, 4), i32),), {"seed": 1}, np.shape, (2, 0, 4)),
        ("philox_integers", (np.zeros((0, 4), i32),), {"seed": 1, "bound": 3}, np.shape, (0, 4)),
        ("philox_normal", (np.zeros((0, 4), i32),), {"seed": 1}, np.shape, (0, 4)),
        ("round_half_even", (np.zeros((0, 3), f32),), {}, np.shape, (0, 3)),
        ("round_half_even", (np.array(2.5, f32),), {}, np.shape, ()),
        ("round_clip", (np.zeros((3, 0), f32),), {"low": 0, "high": 1}, np.shape, (3, 0)),
        ("nearest_level", (np.zeros(0, f32), np.zeros(1, f32)), {}, np.shape, (0,)),
        (
            "fit_grid",
            (np.zeros((0, 4), f32),),
            {"bits": 4},
            lambda r: (r.scale.shape, r.zero_point.shape),
            ((0, 1), (0, 1)),
        ),
        ("fit_grid", (np.zeros((2, 0), f32),), {"bits": 4}, lambda r: r.zero_point.tolist(), [[8], [8]]),
        ("fit_grid", (np.array(3.0, f32),), {"bits": 4, "granularity": "tensor"}, lambda r: r.scale.shape, ()),
        (
            "quantize",
            (np.zeros((0, 4), f32), np.ones((0, 2), f32), np.zeros((0, 2), i32)),
            {"bits": 4},
            np.shape,
            (0, 4),
        ),
        (
            "quantize",
            (np.zeros((2, 0), f32), np.ones((2, 1), f32), np.zeros((2, 1), i32)),
            {"bits": 4},
            np.shape,
            (2, 0),
        ),
        ("dequantize", (np.zeros((0, 4), i32), np.ones((0, 2), f32), np.zeros((0, 2), i32)), {}, np.shape, (0, 4)),
        ("clip_search", (np.zeros((0, 4), f32),), {"bits": 4}, lambda r: r.step.shape, (0, 1)),
        ("pack", (np.zeros((0, 5), i32),), {"bits": 7}, np.shape, (0, 2)),
        ("pack", (np.zeros((2, 0), i32),), {"bits": 7}, np.shape, (2, 0)),
        ("unpack", (np.zeros((0, 2), i32),), {"bits": 7, "length": 5}, np.shape, (0, 5)),
        ("unpack", (np.zeros((2, 0), i32),), {"bits": 7, "length": 0}, np.shape, (2, 0)),
        ("block_scale", (np.zeros((0, 4), f32),), {}, np.shape, (0,)),
        ("quantize_blocks", (np.zeros((0, 3), f32), np.zeros(0, f32), np.ones(1, f32)), {}, np.shape, (0, 3)),
        ("quantize_blocks", (np.array(3.0, f32), np.ones(1, f32), np.arange(5, dtype=f32)), {}, np.shape, ()),
        ("dequantize_blocks", (np.zeros((3, 0), i32), np.zeros(0, f32), np.ones(1, f32)), {}, np.shape, (3, 0)),
        (
            "quantize_scale",
            (np.zeros(0, f32), np.ones(1, f32)),
            {},
            lambda r: (r.codes.shape, r.scale.shape, float(r.offset)),
            ((0,), (0,), 0.0),
        ),
        (
            "dequantize_scale",
            (np.zeros(0, i32), np.zeros(0, f32), np.array(2.0, f32), np.ones(1, f32)),
            {},
            np.shape,
            (0,),
        ),
        (
            "codebook_matmul",
            (np.zeros((0, 16), f32), np.zeros((3, 1), i32), np.ones(1, f32), np.arange(4, dtype=f32)),
            {"bits": 2},
            np.shape,
            (0, 3),
        ),
        (
            "codebook_matmul",
            (np.zeros((2, 0), f32), np.zeros((3, 0), i32), np.zeros(0, f32), np.arange(4, dtype=f32)),
            {"bits": 2},
            lambda r: r.tolist(),
            [[0.0] * 3] * 2,
        ),
        ("statsq", (np.zeros((0, 4), f32),), {"bits": 2}, lambda r: (r.codes.shape, r.scale.shape), ((0, 4), (0, 1))),
        ("statsq", (np.zeros((3, 0), f32),), {"bits": 2}, lambda r: r.scale.tolist(), [[0.0]] * 3),
        ("statsq", (np.zeros((0, 2, 4), f32),), {"bits": 2}, lambda r: r.scale.tolist(), [[[0.0]] * 2]),
        ("statsq_grad", (np.zeros((0, 4), f32), np.zeros((0, 4), f32)), {"bits": 2, "path": "scale"}, np.shape, (0, 4)),
        ("start_oscillation", (np.zeros((0, 3), i32),), {}, lambda r: r.average.shape, (0, 3)),
        ("start_oscillation", (np.array(7, i32),), {}, lambda r: (r.average.shape, float(r.average)), ((), 7.0)),
        (
            "track_oscillation",
            (
                *[np.zeros(0, i32)] * 3,
                np.zeros(0, f32),
                np.zeros(0, i32),
                np.zeros(0, f32),
                np.zeros(0, np.bool_),
                np.zeros(0, i32),
            ),
            {},
            lambda r: r.codes.shape,
            (0,),
        ),
        ("cga_mask", (np.zeros((2, 0), f32),), {"bits": 2, "thresholds": "occupied"}, np.shape, (2, 0)),
        ("boundary_statistics", (np.zeros((0, 4), f32),) * 3, {"bits": 2}, tuple, (0, 0.0, 0.0, 0.0)),
        (
            "cga_step",
            (*[np.zeros((0, 4), f32)] * 4, np.zeros((0, 4), np.bool_)),
            {"step": 1, "lr": 0.5},
            lambda r: r.weight.shape,
            (0, 4),
        ),
        ("qkr_weight", (np.zeros((0, 4), f32), np.zeros((0, 4), f32)), {"heads": 2}, np.ndarray.tolist, [[0] * 4] * 8),
        (
            "qkr_grad",
            (np.zeros((2, 0), f32), np.zeros((2, 0), f32), np.zeros((0, 0), f32)),
            {"heads": 2},
            lambda r: (r.q.shape, r.k.shape),
            ((2, 0), (2, 0)),
        ),
        (
            "qkr_attention",
            (np.zeros((2, 0, 4), f32), eye[:4], eye[:4], eye[:2]),
            {"heads": 2},
            np.shape,
            (2, 0, 2),
        ),
        (
            "twn_code",
            (np.zeros((2, 0), f32),),
            {"granularity": "row"},
            lambda r: (r.codes.shape, r.scale.tolist()),
            ((2, 0), [[0.0], [0.0]]),
        ),
        ("twn", (np.zeros((0, 4), f32),), {}, np.shape, (0, 4)),
        ("twn", (np.array(3.0, f32),), {}, np.ndarray.tolist, 3.0),
        ("clamped_uniform", (np.zeros((0, 4), f32),), {"granularity": "row"}, np.shape, (0, 4)),
        ("min_max", (np.zeros((2, 0), f32),), {"granularity": "row", "scheme": "asymmetric"}, np.shape, (2, 0)),
        ("min_max", (np.zeros((0, 3, 4), f32),), {"granularity": "matrix"}, np.shape, (0, 3, 4)),
        ("straight_through", (np.zeros((0, 4), f32),) * 2, {"clip": 1.0}, np.shape, (0, 4)),
        ("lsq_init", (np.zeros((2, 0), f32),), {"bits": 3, "axis": 0}, lambda r: r.step.tolist(), [1.0, 1.0]),
        ("lsq_init", (np.zeros((2, 0), f32),), {"bits": 3, "axis": 1}, lambda r: r.step.shape, (0,)),
        ("lsq_code", (np.zeros((0, 4), f32), np.ones(1, f32)), {"bits": 3}, np.shape, (0, 4)),
        ("lsq", (np.zeros((2, 0), f32), np.ones(2, f32)), {"bits": 3, "axis": 0}, np.shape, (2, 0)),
        ("lsq", (np.array(0.75, f32), np.ones(1, f32)), {"bits": 3}, np.ndarray.tolist, 1.0),
        (
            "lsq_gradient",
            (np.zeros((0, 4), f32), np.zeros((0, 4), f32), np.ones(4, f32), np.ones(4, f32)),
            {"bits": 3, "axis": 1, "count": "features"},
            lambda r: (r.x.shape, r.step.tolist(), r.offset.tolist()),
            ((0, 4), [0.0] * 4, [0.0] * 4),
        ),
        (
            "bcq",
            (np.zeros((0, 4), f32),),
            {"bits": 2},
            lambda r: (r.codes.shape, r.scale.shape, r.offset),
            ((0, 4), (0, 1, 2), None),
        ),
        (
            "bcq",
            (np.zeros((2, 0), f32),),
            {"bits": 2, "offset": True},
            lambda r: (r.scale.tolist(), r.offset.tolist()),
            ([[[0.0, 0.0]]] * 2, [[0.0]] * 2),
        ),
        (
            "bcq_refit",
            (np.zeros((2, 0), f32), np.zeros((2, 0), i32)),
            {"bits": 1, "group_size": 4},
            lambda r: r.scale.shape,
            (2, 0, 1),
        ),
        ("bcq_assign", (np.zeros((0, 4), f32), np.ones((0, 2, 1), f32), None), {}, np.shape, (0, 4)),
        ("bcq_weight", (np.zeros((2, 0), i32), np.ones((2, 1, 1), f32), None), {}, np.shape, (2, 0)),
        (
            "bcq_from_grid",
            (np.zeros((0, 4), i32), np.ones((0, 2), f32), np.zeros((0, 2), i32)),
            {"bits": 3},
            lambda r: (r.scale.shape, r.offset.shape),
            ((0, 2, 3), (0, 2)),
        ),
        (
            "bcq_pack",
            (np.zeros((2, 0), i32), np.ones((2, 1, 3), f32), None),
            {},
            lambda r: (r.planes.shape, r.scale.shape),
            ((0, 3, 2), (1, 3, 2)),
        ),
        (
            "bcq_unpack",
            (np.zeros((1, 3, 0), i32), np.ones((2, 3, 0), f32), None),
            {"length": 8},
            lambda r: (r.codes.shape, r.scale.shape),
            ((0, 8), (0, 2, 3)),
        ),
        ("lookup_tables", (np.zeros((0, 5), f32),), {"width": 2}, np.shape, (0, 3, 4)),
        ("lookup_tables", (np.zeros((2, 0), f32),), {"width": 2}, np.shape, (2, 0, 4)),
        *(
            ("bcq_product", arrays, {"method": method}, np.ndarray.tolist, result)
            for method in ("auto", "lookup", "dequantize")
            for arrays, result in (
                ((np.zeros((0, 8), f32), np.zeros((1, 2, 3), i32), np.ones((1, 2, 3), f32), None), []),
                ((np.zeros((2, 0), f32), np.zeros((0, 2, 1), i32), np.ones((1, 2, 1), f32), None), [[0.0], [0.0]]),
                ((np.ones((2, 8), f32), np.zeros((1, 2, 0), i32), np.ones((1, 2, 0), f32), None), [[], []]),
            )
        ),
        ("trainable_scales", (np.zeros((0, 1, 2), f32),), {}, np.shape, (0, 1, 2)),
        ("scale_grad", (np.zeros((0, 4), f32), np.zeros((0, 4), i32)), {"bits": 2}, np.shape, (0, 1, 2)),
        ("scale_grad", (np.zeros((1, 0), f32), np.zeros((1, 0), i32)), {"bits": 2}, np.ndarray.tolist, [[[0, 0]]]),
        (
            "scale_grad",
            (np.zeros((2, 0), f32), np.zeros((2, 0), i32)),
            {"bits": 2, "group_size": 4, "norm": "mean"},
            np.shape,
            (2, 0, 2),
        ),
        (
            "scale_grad_tokens",
            (np.zeros((0, 4), f32), np.zeros((0, 2), f32), np.zeros((2, 4), i32)),
            {"bits": 1},
            np.ndarray.tolist,
            [[[0]], [[0]]],
        ),
        (
            "tune_step",
            (*[np.zeros((0, 1, 2), f32)] * 5, np.zeros((0, 1, 2), np.bool_)),
            {"step": 1, "lr": 0.5},
            lambda r: r.scale.shape,
            (0, 1, 2),
        ),
        (
            "fit_scales",
            (
                np.zeros((0, 4), f32),
                eye,
                np.zeros((0, 4), i32),
                np.zeros((0, 2, 1), f32),
                np.zeros((0, 2, 1), np.bool_),
            ),
            {},
            np.shape,
            (0, 2, 1),
        ),
        ("row_bits", (np.zeros(0, i32),), {"clusters": 3}, np.shape, (0,)),
        (
            "allocate_bits",
            (np.zeros((0, 3), f32), np.zeros((0, 3), i32)),
            {"budget": 0},
            lambda r: (r.bits.shape, int(r.size), float(r.error), float(r.lower_bound)),
            ((0,), 0, 0.0, 0.0),
        ),
        ("project_rows", (np.zeros((0, 4), f32), np.zeros(0, i32)), {}, np.shape, (0, 4)),
        ("project_rows", (np.zeros((2, 0), f32), np.ones(2, i32)), {}, np.shape, (2, 0)),
        ("gptq", (np.zeros((0, 4), f32), eye), {"bits": 4}, lambda r: (r.codes.shape, float(r.loss)), ((0, 4), 0.0)),
        ("sparsegpt", (np.zeros((0, 4), f32), eye), {}, lambda r: (r.mask.shape, float(r.loss)), ((0, 4), 0.0)),
        ("wanda", (np.zeros((0, 4), f32), np.ones(4, f32)), {}, lambda r: r.mask.shape, (0, 4)),
        (
            "moment_leaf",
            (np.zeros((0, 2), f32),),
            {"index": 1},
            lambda r: (r[0].sum.tolist(), int(r[0].tokens)),
            ([[0, 0]] * 2, 0),
        ),
        ("objective", (np.zeros((0, 4), f32), eye), {}, float, 0.0),
        ("explained_error", (np.zeros((2, 0), f32),), {}, lambda r: r.tolist(), [[1.0], [1.0]]),
        ("residual_damage", (np.zeros((0, 4), f32), np.zeros(0, f32)), {}, np.shape, (0, 5)),
        ("gradient_importance", (np.zeros((0, 4), f32),), {}, float, 0.0),
        ("loss_importance", (np.ones(2, f32), np.zeros((2, 0), f32)), {"base": 0.0}, lambda r: r.tolist(), [0.0, 0.0]),
        ("rank_cost", (np.zeros((0, 2), i32),), {}, np.shape, (0,)),
        ("allocate_greedy", (np.zeros((0, 4), f32), np.zeros(0, f32), *nobody), {"budget": 1}, np.shape, (0,)),
        (
            "allocate_greedy",
            (np.zeros((2, 0), f32), np.ones(2, f32), *two),
            {"budget": 1},
            lambda r: r.tolist(),
            [0, 0],
        ),
        ("threshold_ranks", (np.zeros((0, 4), f32), *nobody[1:]), {"threshold": 0.5}, np.shape, (0,)),
        ("allocate_threshold", (np.zeros((0, 4), f32), *nobody), {"budget": 1}, np.shape, (0,)),
        ("allocate_proportional", (np.zeros(0, f32), *nobody), {"budget": 1}, np.shape, (0,)),
        ("allocation_objective", (np.zeros((0, 4), f32), np.zeros(0, f32), nobody[0]), {}, float, 0.0),
        ("allocation_bound", (np.zeros((0, 4), f32), np.zeros(0, f32), *nobody), {"budget": 1}, float, 0.0),
        (
            "pool_modules",
            (np.zeros((0, 4), f32), np.zeros(0, f32), *nobody, nobody[0]),
            {},
            lambda r: (r.spectra.shape, r.cost.shape),
            ((0, 4), (0,)),
        ),
        (
            "reallocate_ranks",
            (np.zeros((2, 0), f32), np.zeros((2, 3), f32), np.ones(2, f32), *two, two[1]),
            {"budget": 1, "step": 1},
            lambda r: r.tolist(),
            [0, 0],
        ),
        (
            "nest_patch",
            (np.zeros((3, 0), f32), np.zeros((0, 4), f32), eye),
            {},
            lambda r: (r.B.shape, r.A.shape),
            ((3, 0), (0, 4)),
        ),
        ("dora_magnitude", (np.zeros((0, 4), f32),), {}, np.shape, (0,)),
        ("dora_magnitude", (np.zeros((2, 0), f32),), {}, np.ndarray.tolist, [0, 0]),
        (
            "dora_norm",
            (eye, np.zeros((4, 0), f32), np.zeros((0, 4), f32)),
            {"scaling": 1.0},
            np.ndarray.tolist,
            [1] * 4,
        ),
        (
            "dora_weight",
            (np.zeros((2, 0), f32), np.ones((2, 1), f32), np.zeros((1, 0), f32), np.ones(2, f32)),
            {"scaling": 1.0},
            np.shape,
            (2, 0),
        ),
        (
            "dora_forward",
            (*[np.zeros((0, 4), f32)] * 2, eye, np.ones(4, f32), eye, eye, np.ones(4, f32)),
            {"scaling": 1.0},
            np.shape,
            (0, 4),
        ),
        (
            "dora_gradient",
            (eye, eye, np.zeros((4, 0), f32), np.zeros((0, 4), f32), np.ones(4, f32)),
            {"scaling": 1.0},
            lambda r: (r.B.shape, r.A.shape, r.magnitude.tolist()),
            ((4, 0), (0, 4), [1] * 4),
        ),
        (
            "dora_merge",
            (np.zeros((0, 4), f32), np.zeros((0, 1), f32), np.zeros((1, 4), f32), np.zeros(0, f32)),
            {"scaling": 1.0},
            lambda r: (r.weight.shape, r.factor.shape),
            ((0, 4), (0,)),
        ),
        ("decomposition_change", (np.zeros((0, 4), f32),) * 2, {}, tuple, (0, 0)),
        ("hadamard_transform", (np.zeros((0, 12), f32),), {}, np.shape, (0, 12)),
        ("hadamard_transform", (np.zeros((2, 0), f32),), {"block_size": 4}, np.shape, (2, 0)),
        ("kronecker_transform", (np.zeros((0, 4), f32), np.ones((1, 1), f32)), {}, np.shape, (0, 4)),
        ("orthogonal_factor", (np.zeros((0, 0), f32),), {}, np.shape, (0, 0)),
        ("fuse_norm", (np.zeros((0, 4), f32), np.ones(4, f32)), {}, np.shape, (0, 4)),
        ("rotate_inputs", (np.zeros((0, 4), f32), eye), {}, np.shape, (0, 4)),
        ("rotate_outputs", (np.zeros((4, 0), f32), eye), {}, np.shape, (4, 0)),
        ("outlier_measures", (np.zeros((0, 4), f32),), {}, lambda r: r.peak.shape, (0,)),
        ("quantize_activations", (np.zeros((0, 4), f32),), {"bits": 4}, lambda r: r.values.shape, (0, 4)),
        ("activation_clip", (np.zeros((0, 4), f32),), {"bits": 4}, lambda r: float(r.ratio), 1.0),
        (
            "fit_chords",
            (np.zeros(2, f32), np.ones(2, f32)),
            {},
            lambda r: (r.breakpoints.shape, r.slopes.tolist()),
            ((0,), [0.0]),
        ),
        ("fit_segments", (np.zeros(0, f32),) * 3, {}, lambda r: r.intercepts.tolist(), [0.0]),
        ("evaluate_table", (np.zeros((2, 0), f32), flat), {}, np.shape, (2, 0)),
        ("evaluate_table", (np.array(2.0, f32), flat), {}, float, 1.5),
        ("evaluate_codes", (np.zeros((0, 3), i32), level), {}, np.shape, (0, 3)),
        ("evaluate_codes", (np.array(2, i32), level), {}, int, 3),
        ("lookup_codes", (np.zeros((0, 3), i32), np.zeros(0, f32)), {}, np.shape, (0, 3)),
        ("requantize_codes", (np.zeros((3, 0), i32),), {"shift": 1}, np.shape, (3, 0)),
        (
            "table_gradient",
            (np.zeros((0, 2), f32), np.zeros((0, 2), i32)),
            {"scale": 1.0, "function": "exp"},
            lambda r: (r.codes.shape, float(r.scale)),
            ((0, 2), 0.0),
        ),
        ("evaluate_ranges", (np.zeros(0, f32), flat), {"function": "rsqrt"}, np.shape, (0,)),
        ("table_softmax", (np.zeros((0, 3), i32), level, level), {}, np.shape, (0, 3)),
        ("table_layer_norm", (np.zeros((0, 3), i32), level), {}, np.shape, (0, 3)),
        ("verify_table", (level, np.zeros(0, f32)), {"low": 5}, tuple, (0.0, 0.0, 5, 0, 0)),
        ("genome_fitness", (np.zeros((0, 4), f32),), {"function": "exp"}, np.shape, (0,)),
        ("genome_fitness", (np.zeros((1, 0), f32),), {"function": "exp"}, np.shape, (1,)),
        ("error_vector_score", (np.zeros((0, 4), f32), np.zeros(0, i32)), {}, np.shape, (0,)),
        ("disagreement_score", (np.zeros((0, 4), f32),) * 2, {}, np.shape, (0,)),
        (
            "acs_score",
            (np.zeros((0, 4), f32), np.zeros((0, 4), f32), np.zeros(0, i32)),
            {"epoch": 1, "epochs": 2},
            np.shape,
            (0,),
        ),
        ("select_coreset", (np.zeros(0, f32), np.zeros(0, i32)), {"fraction": 1.0}, np.shape, (0,)),
        ("select_coreset", (np.zeros(0, f32), None), {"fraction": 1.0}, np.shape, (0,)),
        ("select_coreset", (np.zeros(3, f32), None), {"fraction": 0.0}, np.shape, (0,)),
        ("el2n_score", (np.zeros((2, 0, 4), f32), np.zeros(0, i32)), {}, np.shape, (0,)),
        ("grand_score", (np.zeros((0, 4), f32), np.zeros((0, 2), f32), np.zeros(0, i32)), {}, np.shape, (0,)),
        (
            "grand_score",
            (np.zeros((1, 1), f32), np.zeros((1, 0), f32), np.zeros(1, i32)),
            {},
            lambda r: r.tolist(),
            [0.0],
        ),
        ("forgetting_score", (np.zeros((3, 0), np.bool_),), {}, np.shape, (0,)),
        ("forgetting_score", (np.zeros((0, 2), np.bool_),), {}, lambda r: r.tolist(), [0, 0]),
        ("moderate_score", (np.zeros((0, 4), f32), np.zeros(0, i32)), {}, np.shape, (0,)),
        ("moderate_score", (np.zeros((2, 0), f32), np.zeros(2, i32)), {}, lambda r: r.tolist(), [0.0, 0.0]),
        ("contextual_diversity", (np.zeros((0, 4), f32), np.ones((3, 4), f32)), {}, np.shape, (0, 3)),
        ("contextual_diversity", (np.ones((3, 4), f32), np.zeros((0, 4), f32)), {}, np.shape, (3, 0)),
        ("k_center", (np.zeros((3, 0), f32), np.array([2], i32)), {"count": 2}, lambda r: r.tolist(), [2, 0, 1]),
        ("herding", (np.zeros((0, 4), f32),), {"count": 0}, np.shape, (0,)),
        ("herding", (np.zeros((3, 0), f32),), {"count": 2}, lambda r: r.tolist(), [0, 1]),
        ("random_score", (), {"size": 0, "seed": 1}, np.shape, (0,)),
        *(
            (op, arrays, {}, lambda r: (float(r.loss), r.gradient.shape), (0.0, arrays[0].shape))
            for op, arrays in losses
        ),
        ("ranking_loss", (np.zeros((0, 3, 3), f32),) * 2, {}, np.shape, (0,)),
        ("ranking_loss", (np.zeros((2, 0, 0), f32),) * 2, {}, np.ndarray.tolist, [0, 0]),
        ("cover_length", (np.zeros((2, 0, 0), f32),) * 2, {}, np.ndarray.tolist, [0, 0]),
        ("cover_length", (np.zeros((0, 5, 5), f32),) * 2, {}, np.shape, (0,)),
        ("attention_range", (np.zeros((0, 3), f32),), {}, lambda r: (r.low.shape, r.high.shape), ((0,), (0,))),
        (
            "attention_norms",
            (np.zeros((2, 0, 0), f32), np.zeros((0, 4), f32), eye, None, eye),
            {},
            lambda r: (r.probability.shape, r.value.shape, r.weighted.shape),
            ((2, 0),) * 3,
        ),
        (
            "power_eigenvalues",
            (eye, np.zeros((0, 4), f32)),
            {},
            lambda r: (r.value.shape, r.vector.shape, r.steps.shape),
            ((0,), (0, 4), (0,)),
        ),
    ]
    for op, arrays, options, look, expected in table:
        if kit.has(op):
            found = look(kit.call(op, *arrays, **options))
            kit.require(found == expected, f"{op}({options}) on zero-size arrays: {found}, expected {expected}")


WITHOUT_FLOATS = ("start_oscillation",)  # integers alone come in: float32, or the wider compute dtype

ALWAYS_FLOAT64 = (
    "moment_leaf", "moment_merge", "moment_total", "philox_uniform", "philox_normal", "random_hadamard",
    "orthogonal_factor", "random_orthogonal", "activation_clip", "normal_float",
    "dynamic_float", "fit_chords", "fit_segments", "round_table", "integer_table",
    "genome_fitness", "genetic_search", "knot_grid", "search_problem", "optimal_search",
    "random_score",
)  # fmt: skip
FLOATS = ("float16", "float32", "float64")


@clause("A-2b", tier="exact")
def test_dtypes_of_results(kit: Kit) -> None:
    """Floats keep the input's dtype but are float32 at least (or the wider compute dtype); codes int32, masks bool."""
    for dtype in FLOATS:
        for call in served(kit, ordinary_calls(dtype)):
            result = attempt(kit, call, kit.own(call.arrays))
            if result is None:
                continue
            wanted = np.result_type(dtype, np.float32)
            allowed = {wanted, np.result_type(wanted, kit.backend.compute_dtype)}
            if call.op in WITHOUT_FLOATS:
                allowed = {np.dtype(np.float32), np.result_type(np.float32, kit.backend.compute_dtype)}
            if call.op in ALWAYS_FLOAT64:
                allowed = {np.dtype(np.float64)}
            for name, value in named_leaves(kit.convert(call.op, result)):
                if not isinstance(value, np.ndarray):
                    continue
                kind = value.dtype.kind
                fine = (
                    value.dtype in allowed if kind == "f" else value.dtype in (np.dtype(np.int32), np.dtype(np.bool_))
                )
                kit.require(fine, f"{call.op} on {dtype}: {name or 'the result'} has dtype {value.dtype}")


def named_leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Arrays with the field that holds each."""
    fields = getattr(value, "_fields", None)
    if fields:
        for field, item in zip(fields, value, strict=True):
            yield from named_leaves(item, field)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from named_leaves(item, name)
    else:
        yield name, value


def wrong_calls() -> list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[str, ...]]]:
    """(operation, arguments, options, words that the message must contain) of calls that must be refused."""
    f32, i32, nan = np.float32, np.int32, float("nan")
    w, cube, eye = np.ones((4, 8), f32), np.ones((2, 2, 8), f32), np.eye(8, dtype=f32)
    vector, one, none = np.ones(8, f32), np.ones((4, 1), f32), np.zeros((4, 1), i32)
    codes, words = np.ones((4, 8), i32), np.ones((4, 1), i32)
    b, a, ramp = np.ones((4, 2), f32), np.ones((2, 8), f32), np.arange(4, dtype=f32)
    address, four = np.zeros((2, 4), np.int64), np.array([[0, 1, 2, 4]], i32)
    block: DecoderBlock[Array] = DecoderBlock(vector, w, w, w, w.T, vector, w, w, w.T)
    six, names = np.ones((6, 8), f32), np.array([3, 0, 2, 3], i32)
    tracked = (codes, codes, w, codes, w, w > 0, codes)
    alpha, on = np.ones((4, 2, 1), f32), np.ones((4, 2, 1), np.bool_)
    state, sizes = (alpha, alpha, alpha, alpha, alpha, on), np.arange(1, 9, dtype=i32) * words
    s, g, rising = np.array([[3, 1], [2, 2]], f32), np.ones(2, f32), np.array([[1, 1], [1, 2]], f32)
    cost, low, high = np.array([1, 2], i32), np.zeros(2, i32), np.full(2, 2, i32)
    lines: Table[Array] = Table(np.array([1.0]), np.array([0.25, 0.5]), np.array([0.0, -0.25]))
    level: IntegerTable[Array] = IntegerTable(np.zeros(0, i32), np.array([2], i32), np.array([1], i32), 0, 0)
    scores = np.ones((1, 2, 4, 4), f32)
    return [
        ("philox_words", (address[:, :3],), {"seed": 1}, ("3",)),
        ("philox_words", (address - 1,), {"seed": 1}, ("-1",)),
        ("philox_words", (address + 2**32,), {"seed": 1}, ()),
        ("philox_words", (address.astype(f32),), {"seed": 1}, ()),
        ("philox_words", (address,), {"seed": -1}, ("-1",)),
        ("philox_words", (address,), {"seed": 2**64}, ()),
        ("philox_words", (address,), {"seed": 1.5}, ("1.5",)),
        ("philox_uniform", (address[0, :0],), {"seed": 1}, ()),
        ("philox_integers", (address,), {"seed": 1, "bound": 0}, ("0",)),
        ("philox_integers", (address,), {"seed": 1, "bound": 2**31 + 1}, ()),
        ("philox_normal", (address,), {"seed": True}, ()),
        ("round_clip", (w,), {"low": 3, "high": 2}, ()),
        ("nearest_level", (w, np.array([1.0, 0.0], f32)), {}, ()),
        ("nearest_level", (w, np.array([1.0, 1.0], f32)), {}, ()),
        ("nearest_level", (w, np.zeros(0, f32)), {}, ()),
        ("nearest_level", (w, np.zeros((2, 2), f32)), {}, ()),
        ("fit_grid", (w,), {"bits": 4, "granularity": "group", "group_size": 3}, ("3", "8")),
        ("fit_grid", (w,), {"bits": 4, "granularity": "group", "group_size": 0}, ()),
        ("fit_grid", (w,), {"bits": 4, "granularity": "group"}, ()),
        ("fit_grid", (w,), {"bits": 4, "granularity": "row", "group_size": 4}, ()),
        ("fit_grid", (w,), {"bits": 4, "granularity": "column"}, ("column",)),
        ("fit_grid", (cube,), {"bits": 4, "granularity": "row"}, ()),
        ("fit_grid", (w,), {"bits": 4, "clip_ratio": 0.0}, ()),
        ("fit_grid", (w,), {"bits": 4, "clip_ratio": 1.5}, ("1.5",)),
        ("fit_grid", (w,), {"bits": 4, "clip_ratio": nan}, ()),
        ("fit_grid", (w,), {"bits": 4, "range_floor": -1.0}, ()),
        ("fit_grid", (w,), {"bits": 4, "scale_dtype": "int8"}, ("int8",)),
        ("clip_search", (w,), {"bits": 4, "grid": 0}, ()),
        ("clip_search", (w,), {"bits": 4, "granularity": "group", "group_size": 5}, ("5", "8")),
        ("quantize", (w, np.ones((4, 3), f32), np.zeros((4, 3), i32)), {"bits": 4}, ("3", "8")),
        ("quantize", (w, np.ones((3, 1), f32), np.zeros((3, 1), i32)), {"bits": 4}, ()),
        ("quantize", (w, one, np.zeros((4, 2), i32)), {"bits": 4}, ()),
        ("quantize", (w, np.zeros((4, 1), f32), none), {"bits": 4}, ()),
        ("dequantize", (codes, np.ones((4, 3), f32), np.zeros((4, 3), i32)), {}, ()),
        ("pack", (codes[0],), {"bits": 4}, ()),
        ("pack", (codes,), {"bits": 0}, ()),
        ("pack", (codes,), {"bits": 9}, ("9",)),
        ("pack", (codes,), {"bits": 4, "layout": "sparse"}, ("sparse",)),
        ("unpack", (words,), {"bits": 4, "length": 9}, ()),
        ("unpack", (words,), {"bits": 4, "length": -1}, ()),
        ("normal_float", (), {"bits": 1}, ("1",)),
        ("normal_float", (), {"bits": 9}, ("9",)),
        ("normal_float", (), {"bits": 4, "offset": 1.0}, ()),
        ("normal_float", (), {"bits": 4, "offset": 0.5}, ()),
        ("dynamic_float", (), {"bits": 2}, ("2",)),
        ("block_scale", (w,), {"block_size": 0}, ("0",)),
        ("quantize_blocks", (w, np.ones(3, f32), ramp), {"block_size": 8}, ("3", "4")),
        ("quantize_blocks", (w, one, ramp), {"block_size": 8}, ()),
        ("quantize_blocks", (w, -np.ones(4, f32), ramp), {"block_size": 8}, ()),
        ("quantize_blocks", (w, np.ones(4, f32), ramp[::-1].copy()), {"block_size": 8}, ()),
        ("quantize_blocks", (w, np.ones(4, f32), ramp[:0]), {"block_size": 8}, ()),
        ("dequantize_blocks", (codes, np.ones(3, f32), ramp), {"block_size": 8}, ("3", "4")),
        ("dequantize_blocks", (9 * codes, np.ones(4, f32), ramp), {"block_size": 8}, ("9",)),
        ("dequantize_blocks", (-codes, np.ones(4, f32), ramp), {"block_size": 8}, ("-1",)),
        ("quantize_scale", (w, ramp), {}, ()),
        ("quantize_scale", (vector, ramp), {"block_size": 0}, ()),
        ("dequantize_scale", (codes[0], np.ones(2, f32), np.array(1.0, f32), ramp), {}, ("2", "1")),
        ("dequantize_scale", (codes[0], np.ones(1, f32), np.ones(2, f32), ramp), {}, ()),
        ("codebook_matmul", (w, words, np.ones(1, f32), ramp), {"bits": 3}, ("8", "4")),
        ("codebook_matmul", (w, words, np.ones(2, f32), ramp), {"bits": 2}, ("2", "1")),
        ("codebook_matmul", (vector, words, np.ones(1, f32), ramp), {"bits": 2}, ()),
        ("codebook_matmul", (np.ones((2, 40), f32), words, np.ones(3, f32), ramp), {"bits": 2}, ()),
        ("twn_code", (w,), {"threshold": 1.0}, ("1.0",)),
        ("twn_code", (w,), {"threshold": -0.5}, ("-0.5",)),
        ("twn_code", (w,), {"granularity": "token"}, ("token",)),
        ("twn_code", (w,), {"clip": 0.0}, ()),
        ("twn", (vector,), {"granularity": "matrix"}, ()),
        ("twn", (w,), {"clip": -2.5}, ("-2.5",)),
        ("twn", (w,), {"clip": nan}, ()),
        ("clamped_uniform", (w,), {"bits": 1}, ("1",)),
        ("clamped_uniform", (w,), {"bits": 9}, ("9",)),
        ("clamped_uniform", (w,), {"outermost": "even"}, ("even",)),
        ("clamped_uniform", (np.array(1.0, f32),), {"granularity": "row"}, ()),
        ("min_max", (w,), {"bits": 1}, ("1",)),
        ("min_max", (w,), {"scheme": "full"}, ("full",)),
        ("min_max", (w,), {"epsilon": -1.0}, ("-1",)),
        ("min_max", (w,), {"granularity": "group"}, ("group",)),
        ("straight_through", (w, w[:3]), {"clip": 1.0}, ()),
        ("straight_through", (w, w), {"clip": -1.0}, ("-1",)),
        ("lsq_init", (w,), {"bits": 1}, ("1",)),
        ("lsq_init", (w,), {"bits": 9, "signed": False}, ("9",)),
        ("lsq_init", (w,), {"bits": 4, "axis": 2}, ("2",)),
        ("lsq_init", (w,), {"bits": 4, "rule": "maximum"}, ("maximum",)),
        ("lsq_code", (w, vector), {"bits": 4}, ()),
        ("lsq_code", (w, vector), {"bits": 4, "axis": 0}, ()),
        ("lsq_code", (w, one), {"bits": 4, "axis": 0}, ()),
        ("lsq_code", (w, vector, vector[:4]), {"bits": 4, "axis": 1}, ()),
        ("lsq", (w, 0 * vector), {"bits": 4, "axis": 1}, ()),
        ("lsq", (w, -vector), {"bits": 4, "axis": 1}, ("-1",)),
        ("lsq", (w, vector), {"bits": 4, "axis": 1, "epsilon": -1.0}, ("-1",)),
        ("lsq", (w, vector), {"bits": 4, "axis": 1, "signed": 1}, ()),
        ("lsq_gradient", (w[:3], w, vector), {"bits": 4, "axis": 1}, ()),
        ("lsq_gradient", (w, w, vector[:4]), {"bits": 4, "axis": 0, "count": "features"}, ()),
        ("lsq_gradient", (w, w, vector), {"bits": 4, "axis": 1, "count": "weights"}, ("weights",)),
        ("statsq", (w,), {"bits": 0}, ("0",)),
        ("statsq", (w,), {"bits": 17}, ("17",)),
        ("statsq", (w,), {"bits": 2.0}, ("2.0",)),
        ("statsq", (vector,), {"bits": 2}, ()),
        ("statsq", (w,), {"bits": -1}, ("-1",)),
        ("statsq_grad", (w, w[:, :4]), {"bits": 2}, ()),
        ("statsq_grad", (w, w), {"bits": 2, "path": "lsq"}, ("lsq",)),
        ("start_oscillation", (w,), {}, ()),
        ("track_oscillation", (codes[:2], *tracked), {}, ()),
        ("track_oscillation", (codes, codes, codes + 1, *tracked[2:]), {}, ("2",)),
        ("track_oscillation", (codes, *tracked[:5], codes, codes), {}, ()),
        ("track_oscillation", (codes, *tracked), {"momentum": 0.0}, ()),
        ("track_oscillation", (codes, *tracked), {"momentum": 1.5}, ("1.5",)),
        ("track_oscillation", (codes, *tracked), {"threshold": -0.5}, ("-0.5",)),
        ("track_oscillation", (codes, *tracked), {"freeze_to": "last"}, ("last",)),
        ("track_oscillation", (codes, *tracked), {"targets": "free"}, ("free",)),
        ("boundary_statistics", (w, w[:1], w), {"bits": 2}, ()),
        ("boundary_statistics", (w, w, w), {"bits": 2, "boundary_range": nan}, ()),
        ("cga_mask", (w,), {"bits": 2, "boundary_range": 0.75}, ("0.75",)),
        ("cga_mask", (w,), {"bits": 2, "boundary_range": -0.1}, ()),
        ("cga_mask", (w,), {"bits": 2, "thresholds": "some"}, ("some",)),
        ("cga_mask", (vector,), {"bits": 2}, ()),
        ("cga_step", (w, w, w, w, codes), {"step": 1, "lr": 0.1}, ()),
        ("cga_step", (w, w[:1], w, w, w > 0), {"step": 1, "lr": 0.1}, ()),
        ("cga_step", (w, w, w, -w, w > 0), {"step": 1, "lr": 0.1}, ()),
        ("cga_step", (w, w, w, w, w > 0), {"step": 0, "lr": 0.1}, ("0",)),
        ("cga_step", (w, w, w, w, w > 0), {"step": 1, "lr": nan}, ()),
        ("cga_step", (w, w, w, w, w > 0), {"step": 1, "lr": 0.1, "beta2": 1.0}, ()),
        ("qkr_weight", (w, w[:2]), {"heads": 2}, ()),
        ("qkr_weight", (w, w), {"heads": 3}, ("3", "4")),
        ("qkr_weight", (w, w), {"heads": 0}, ("0",)),
        ("qkr_grad", (w, w, w), {"heads": 2}, ()),
        ("qkr_grad", (w, w, np.ones((16, 8), f32), np.ones((16, 8), f32)), {"heads": 2}, ()),
        ("qkr_grad", (w, w, np.ones((16, 8), f32)), {"heads": 2, "freeze": "all"}, ("all",)),
        ("qkr_attention", (cube[..., :4], w, w, w), {"heads": 2}, ("4", "8")),
        ("qkr_attention", (w, w, w, w), {"heads": 2}, ()),
        ("qkr_attention", (cube, w, w, w[:3]), {"heads": 2}, ("2", "3")),
        ("qkr_attention", (cube, w, w, w, vector), {"heads": 2}, ()),
        ("qkr_attention", (cube, w, w, w), {"heads": 2, "biases": "some"}, ("some",)),
        ("bcq", (w,), {"bits": 0}, ()),
        ("bcq", (w,), {"bits": 9}, ("9",)),
        ("bcq", (vector,), {"bits": 2}, ()),
        ("bcq", (w,), {"bits": 2, "group_size": 3}, ("3", "8")),
        ("bcq", (w,), {"bits": 2, "group_size": 0}, ()),
        ("bcq", (w,), {"bits": 2, "method": "optimal"}, ("optimal",)),
        ("bcq", (w,), {"bits": 2, "rounds": -1}, ()),
        ("bcq_refit", (w, codes[:2]), {"bits": 2}, ()),
        ("bcq_refit", (w, 4 * codes), {"bits": 2}, ("4",)),
        ("bcq_refit", (w, codes), {"bits": 2, "group_size": 3}, ("3", "8")),
        ("bcq_assign", (w, np.ones((4, 3, 2), f32), None), {}, ()),
        ("bcq_assign", (w, np.ones((4, 2), f32), None), {}, ()),
        ("bcq_assign", (w, np.ones((4, 2, 1), f32), np.ones((4, 1), f32)), {}, ()),
        ("bcq_weight", (codes, np.ones((3, 1, 1), f32), None), {}, ()),
        ("bcq_weight", (2 * codes, np.ones((4, 1, 1), f32), None), {}, ("2",)),
        ("bcq_weight", (-codes, np.ones((4, 1, 1), f32), None), {}, ("-1",)),
        ("bcq_weight", (codes, np.ones((4, 1, 9), f32), None), {}, ("9",)),
        ("bcq_from_grid", (4 * codes, one, none), {"bits": 2}, ("4",)),
        ("bcq_from_grid", (codes, one, none), {"bits": 2, "scheme": "signed"}, ("signed",)),
        ("bcq_from_grid", (codes, np.ones((4, 3), f32), np.zeros((4, 3), i32)), {"bits": 2}, ("3", "8")),
        ("bcq_from_grid", (codes, 0 * one, none), {"bits": 2}, ()),
        ("bcq_pack", (4 * codes, np.ones((4, 1, 2), f32), None), {}, ("4",)),
        ("bcq_pack", (codes, np.ones((4, 1, 2), f32), np.ones(4, f32)), {}, ()),
        ("bcq_unpack", (np.ones((2, 1, 4), i32), np.ones((1, 1, 4), f32), None), {"length": 8}, ("8",)),
        ("bcq_unpack", (np.ones((1, 1, 4), i32), np.ones((1, 1, 4), f32), None), {"length": -1}, ()),
        ("bcq_unpack", (np.ones((1, 1, 4), i32), np.ones((3, 1, 4), f32), None), {"length": 8}, ()),
        ("lookup_tables", (w,), {"width": 0}, ()),
        ("lookup_tables", (w,), {"width": 17}, ("17",)),
        ("lookup_tables", (vector,), {}, ()),
        ("bcq_product", (w, np.ones((2, 1, 4), i32), np.ones((1, 1, 4), f32), None), {}, ("8",)),
        ("bcq_product", (w, np.ones((1, 1, 4), i32), np.ones((1, 2, 4), f32), None), {}, ()),
        ("bcq_product", (w, np.ones((1, 1, 4), i32), np.ones((1, 1, 4), f32), None), {"method": "fast"}, ("fast",)),
        ("bcq_product", (vector, np.ones((1, 1, 4), i32), np.ones((1, 1, 4), f32), None), {}, ()),
        ("trainable_scales", (w,), {}, ()),
        ("trainable_scales", (alpha,), {"train": "last"}, ("last",)),
        ("scale_grad", (w, codes[:3]), {"bits": 1}, ()),
        ("scale_grad", (w, codes), {"bits": 0}, ()),
        ("scale_grad", (w, codes), {"bits": 9}, ("9",)),
        ("scale_grad", (w, 2 * codes), {"bits": 1}, ("2",)),
        ("scale_grad", (w, -codes), {"bits": 1}, ("-1",)),
        ("scale_grad", (w, codes), {"bits": 1, "group_size": 3}, ("3", "8")),
        ("scale_grad", (w, codes), {"bits": 1, "group_size": 0}, ()),
        ("scale_grad", (w, codes), {"bits": 1, "norm": "rms"}, ("rms",)),
        ("scale_grad", (w, w), {"bits": 1}, ()),
        ("scale_grad_tokens", (np.ones((3, 8), f32), np.ones((2, 4), f32), codes), {"bits": 1}, ()),
        ("scale_grad_tokens", (np.ones((3, 8), f32), np.ones((3, 5), f32), codes), {"bits": 1}, ()),
        ("scale_grad_tokens", (w, np.ones((4, 4), f32), 2 * codes), {"bits": 1}, ("2",)),
        ("scale_grad_tokens", (w, np.ones((4, 4), f32), codes), {"bits": 1, "norm": "rms"}, ("rms",)),
        ("tune_step", (alpha, alpha[:3], *state[2:]), {"step": 1, "lr": 0.5}, ()),
        ("tune_step", (*state[:5], on[:3]), {"step": 1, "lr": 0.5}, ()),
        ("tune_step", (*state[:5], alpha), {"step": 1, "lr": 0.5}, ()),
        ("tune_step", (*state[:4], -alpha, on), {"step": 1, "lr": 0.5}, ("-1",)),
        ("tune_step", state, {"step": 0, "lr": 0.5}, ()),
        ("tune_step", state, {"step": 1, "lr": nan}, ()),
        ("tune_step", state, {"step": 1, "lr": 0.5, "beta1": 1.0}, ()),
        ("tune_step", state, {"step": 1, "lr": 0.5, "beta2": -0.5}, ("-0.5",)),
        ("tune_step", state, {"step": 1, "lr": 0.5, "epsilon": -1.0}, ()),
        ("tune_step", state, {"step": 1, "lr": 0.5, "decay": -1.0}, ()),
        ("fit_scales", (w, eye, codes[:3], alpha, on), {}, ()),
        ("fit_scales", (w, np.eye(4, dtype=f32), codes, alpha, on), {}, ()),
        ("fit_scales", (w, eye, codes, np.ones((4, 3, 1), f32), np.ones((4, 3, 1), np.bool_)), {}, ()),
        ("fit_scales", (w, eye, codes, alpha, on[:, :1]), {}, ()),
        ("fit_scales", (w, eye, codes, alpha, alpha), {}, ()),
        ("fit_scales", (w, eye, 2 * codes, alpha, on), {}, ("2",)),
        ("row_bits", (codes,), {"clusters": 2}, ()),
        ("row_bits", (-codes[0],), {"clusters": 2}, ("-1",)),
        ("row_bits", (vector,), {"clusters": 2}, ()),
        ("row_bits", (codes[0],), {"clusters": 0}, ()),
        ("row_bits", (codes[0],), {"clusters": 9}, ("9",)),
        ("row_bits", (codes[0],), {"clusters": 2, "ratio": 0}, ()),
        ("allocate_bits", (w, sizes), {"budget": 3}, ("3", "4")),
        ("allocate_bits", (w, sizes[:, :7]), {"budget": 9}, ()),
        ("allocate_bits", (w, codes), {"budget": 9}, ()),
        ("allocate_bits", (w[:, :0], codes[:, :0]), {"budget": 9}, ()),
        ("allocate_bits", (w, w), {"budget": 9}, ()),
        ("project_rows", (w, np.ones(3, i32)), {}, ()),
        ("project_rows", (w, np.array([1, 2, 9, 1], i32)), {}, ("9",)),
        ("project_rows", (w, np.array([1, 2, 0, 1], i32)), {}, ()),
        ("project_rows", (vector, np.ones(8, i32)), {}, ()),
        ("project_rows", (w, np.ones(4, i32)), {"method": "optimal"}, ("optimal",)),
        ("project_rows", (w, np.ones(4, i32)), {"rounds": -1}, ("-1",)),
        ("inverse_cholesky", (w,), {}, ()),
        ("inverse_cholesky", (eye,), {"damping": -0.1}, ()),
        ("inverse_cholesky", (eye,), {"damping": nan}, ()),
        ("gptq", (w, np.eye(4, dtype=f32)), {"bits": 4}, ()),
        ("gptq", (vector, eye), {"bits": 4}, ()),
        ("gptq", (w, eye), {"bits": 9}, ("9",)),
        ("gptq", (w, eye), {"bits": 4, "group_size": 3}, ("3", "8")),
        ("gptq", (w, eye), {"bits": 4, "block_size": 0}, ()),
        ("gptq", (w, eye), {"bits": 4, "group_scales": "stale"}, ("stale",)),
        ("sparsegpt", (w, eye), {"keep": 5, "of": 4}, ()),
        ("sparsegpt", (w, eye), {"keep": 0, "of": 4}, ()),
        ("sparsegpt", (w, eye), {"keep": 2, "of": 3}, ("3", "8")),
        ("sparsegpt", (w, eye), {"block_size": 6}, ()),
        ("sparsegpt", (w, np.eye(4, dtype=f32)), {}, ()),
        ("wanda", (w, np.ones(4, f32)), {}, ()),
        ("wanda", (w, -vector), {}, ()),
        ("wanda", (w, vector), {"keep": 2, "of": 3}, ("3", "8")),
        ("moment_leaf", (vector,), {"index": 0}, ()),
        ("moment_leaf", (w,), {"index": -1}, ()),
        ("recency_moment", ([cube],), {"total": 0}, ()),
        ("recency_moment", ([],), {"total": 1}, ()),
        ("recency_moment", ([cube, np.ones((1, 2, 3), f32)],), {"total": 2}, ()),
        ("svd_patch", (w,), {"rank": 0}, ()),
        ("svd_patch", (w,), {"rank": 5}, ("5", "4")),
        ("svd_patch", (vector,), {"rank": 1}, ()),
        ("svd_patch", (w,), {"rank": 1, "split": "right"}, ("right",)),
        ("scaled_svd_patch", (w, np.ones(4, f32)), {"rank": 1}, ()),
        ("scaled_svd_patch", (w, -vector), {"rank": 1}, ()),
        ("loftq", (w,), {"rank": 5}, ("5", "4")),
        ("loftq", (vector,), {"rank": 1}, ()),
        ("loftq", (w,), {"rank": 1, "bits": 1}, ("1",)),
        ("loftq", (w,), {"rank": 1, "iterations": 0}, ("0",)),
        ("loftq", (w,), {"rank": 1, "block_size": 0}, ("0",)),
        ("loftq", (w,), {"rank": 1, "quantizer": "int"}, ("int",)),
        ("loftq", (w,), {"rank": 1, "keep": "first"}, ("first",)),
        ("loftq", (w,), {"rank": 1, "scaling": 0.0}, ()),
        ("objective", (w, np.eye(4, dtype=f32)), {}, ()),
        ("objective", (vector, eye), {}, ()),
        ("eora", (w, eye), {"rank": 5}, ("5", "4")),
        ("eora", (w, np.eye(4, dtype=f32)), {"rank": 1}, ()),
        ("eora", (w, eye), {"rank": 1, "split": "right"}, ("right",)),
        ("error_spectrum", (w, vector), {}, ()),
        ("optimum", (w, eye), {"rank": 0}, ()),
        ("eora_published", (w, eye), {"rank": 1, "policy": "ignore"}, ("ignore",)),
        ("eora_certified", (w, eye), {"rank": 1, "tolerance": -1.0}, ()),
        ("eora_certified", (w, eye), {"rank": 9}, ("9",)),
        ("stationarity", (w, eye, b, np.ones((3, 8), f32)), {}, ()),
        ("stationarity", (w, eye, np.ones((3, 2), f32), a), {}, ()),
        ("quantize_adapter", (b, a, eye), {"bits": 4, "method": "awq"}, ("awq",)),
        ("quantize_adapter", (np.ones((4, 3), f32), a, eye), {"bits": 4}, ()),
        ("quantize_adapter", (b, a, np.eye(4, dtype=f32)), {"bits": 4}, ()),
        ("residual_moment", (eye, np.ones((2, 4), f32)), {}, ()),
        ("residual_moment", (np.triu(np.ones((8, 8), f32)), a), {}, ()),
        ("explained_error", (rising,), {}, ("descend",)),
        ("explained_error", (-s,), {}, ("-3",)),
        ("explained_error", (g,), {}, ()),
        ("residual_damage", (s, -g), {}, ("-1",)),
        ("residual_damage", (s, np.ones(3, f32)), {}, ()),
        ("subspace_overlap", (w, w[:3], eye), {"rank": 1}, ()),
        ("subspace_overlap", (w, w, np.eye(4, dtype=f32)), {"rank": 1}, ()),
        ("subspace_overlap", (w, w, eye), {"rank": 5}, ("5", "4")),
        ("gradient_importance", (w,), {"normalisation": "max"}, ("max",)),
        ("gradient_importance", (g,), {}, ()),
        ("loss_importance", (np.ones(3, f32), s), {"base": 0.0}, ()),
        ("loss_importance", (g, s), {"base": nan}, ()),
        ("rank_cost", (np.array([[4, 0]], i32),), {}, ("0",)),
        ("rank_cost", (np.array([[4, 1, 2]], i32),), {}, ("3",)),
        ("rank_cost", (np.array([[4, 1]], i32),), {"bits": 0}, ("0",)),
        ("rank_cost", (np.array([[2**31 - 1, 1]], i32),), {}, ("2147483648",)),
        ("allocate_greedy", (rising, g, cost, low, high), {"budget": 9}, ("descend",)),
        ("allocate_greedy", (s, -g, cost, low, high), {"budget": 9}, ("-1",)),
        ("allocate_greedy", (s, g, 0 * cost, low, high), {"budget": 9}, ("cost",)),
        ("allocate_greedy", (s, g, cost, low, high + 1), {"budget": 9}, ("3", "2")),
        ("allocate_greedy", (s, g, cost, high, low), {"budget": 9}, ("2", "0")),
        ("allocate_greedy", (s, g, cost, low + 1, high), {"budget": 2}, ("2", "3")),
        ("allocate_greedy", (s, g, cost, low + 1, low + 1), {"budget": 9, "multiple": 2}, ("2",)),
        ("allocate_greedy", (s, g, cost, low, high), {"budget": -1}, ("-1",)),
        ("allocate_greedy", (s, g, cost, low, high), {"budget": 9, "leftover": "spend"}, ("spend",)),
        ("threshold_ranks", (s, low, high), {"threshold": 1.5}, ("1.5",)),
        ("threshold_ranks", (s, low, high), {"threshold": 0.5, "multiple": 0}, ("0",)),
        ("allocate_threshold", (rising, cost, low, high), {"budget": 9}, ("descend",)),
        ("allocate_threshold", (s, cost[:1], low, high), {"budget": 9}, ()),
        ("allocate_proportional", (-g, cost, low, high), {"budget": 9}, ("-1",)),
        ("allocate_proportional", (g, cost, low + 1, high), {"budget": 2}, ("2", "3")),
        ("allocation_objective", (s, g, high + 1), {}, ("3", "2")),
        ("allocation_objective", (s, g, low - 1), {}, ("-1",)),
        ("allocation_bound", (s, g, cost, low + 1, high), {"budget": 2}, ("2", "3")),
        ("pool_modules", (s, g, cost, low, high, np.array([0, 2], i32)), {}, ("1",)),
        ("pool_modules", (s, g, cost, np.array([2, 0], i32), np.array([2, 1], i32), low), {}, ("2", "1")),
        ("reallocate_ranks", (s, s, g, cost, low, high, high + 1), {"budget": 9, "step": 1}, ("3",)),
        ("reallocate_ranks", (s, s, g, cost, low, high, high), {"budget": 2, "step": 1}, ("2", "3")),
        ("reallocate_ranks", (s, s, g, cost, low, high, high), {"budget": 9, "step": -1}, ("-1",)),
        ("reallocate_ranks", (s, s, g, cost, low, high, high), {"budget": 9, "step": 1, "hysteresis": -1.0}, ("-1",)),
        ("reallocate_ranks", (s, s[:1], g, cost, low, high, high), {"budget": 9, "step": 1}, ()),
        ("nest_patch", (b, np.ones((3, 8), f32), eye), {}, ()),
        ("nest_patch", (np.ones((1, 2), f32), a, eye), {}, ()),
        ("nest_patch", (b, a, np.eye(4, dtype=f32)), {}, ()),
        ("nest_patch", (b, a, eye), {"split": "right"}, ("right",)),
        ("dora_magnitude", (vector,), {}, ()),
        ("dora_magnitude", (w,), {"layout": "rows"}, ("rows",)),
        ("dora_magnitude", (w,), {"layout": "conv"}, ()),
        ("dora_norm", (w, a.T, a), {"scaling": 1.0}, ()),
        ("dora_norm", (w, b, a), {"scaling": nan}, ()),
        ("dora_norm", (w, b, a), {"scaling": 1.0, "layout": "transposed"}, ()),
        ("factored_norm", (w, vector, b, a), {"scaling": 1.0}, ()),
        ("factored_norm", (w, -vector[:4], b, a), {"scaling": 1.0}, ()),
        ("dora_weight", (w, b, a, vector), {"scaling": 1.0}, ()),
        ("dora_weight", (w, b, np.ones((3, 8), f32), vector[:4]), {"scaling": 1.0}, ()),
        ("dora_forward", (w, w[:3], w, vector[:4], b, a, vector[:4]), {"scaling": 1.0}, ()),
        ("dora_forward", (b, b, w, vector[:4], b, a, vector[:4]), {"scaling": 1.0}, ("8",)),
        ("dora_forward", (w, w, w, vector, b, a, vector[:4]), {"scaling": 1.0}, ()),
        ("dora_forward", (w, w, w, vector[:4], b, a, vector[:4]), {"scaling": 1.0, "layout": "conv"}, ("conv",)),
        ("dora_gradient", (w[:3], w, b, a, vector[:4]), {"scaling": 1.0}, ()),
        ("dora_gradient", (w, w, b, a, vector[:4]), {"scaling": 1.0, "detach": 1}, ()),
        ("dora_merge", (w, b, a, vector), {"scaling": 1.0}, ()),
        ("dora_unmerge", (w, b, a, vector), {"scaling": 1.0}, ()),
        ("dora_unmerge", (w, b, a, np.array([1, 1, 0, 1], f32)), {"scaling": 1.0}, ("2",)),
        ("dvora_factors", (b, a, vector[:4], vector), {}, ()),
        ("dvora_factors", (b, np.ones((3, 8), f32), vector[:4], vector[:3]), {}, ()),
        ("dvora_gradient", (b, a, b, b), {}, ()),
        ("decomposition_change", (w, b), {}, ()),
        ("dora_to_lora", (w, b, a, vector[:4]), {"scaling": 1.0, "rank": 5}, ("5", "4")),
        ("dora_to_lora", (w, b, a, vector[:4]), {"scaling": 1.0, "rank": 0}, ()),
        ("hadamard_matrix", (), {"order": 428}, ("428",)),
        ("hadamard_matrix", (), {"order": 0}, ("0",)),
        ("hadamard_transform", (np.ones((2, 6), f32),), {}, ("6",)),
        ("hadamard_transform", (w,), {"block_size": 3}, ("3",)),
        ("hadamard_transform", (w,), {"block_size": 16}, ("16", "8")),
        ("hadamard_transform", (np.array(1.0, f32),), {}, ()),
        ("kronecker_transform", (w, np.ones((2, 2), f32)), {}, ()),
        ("kronecker_transform", (w, 2 * np.ones((1, 1), f32)), {}, ()),
        ("kronecker_transform", (w[:, :6], np.array([[1, 1], [1, -1]], f32)), {}, ("6",)),
        ("random_hadamard", (), {"order": 6, "seed": 1}, ("6",)),
        ("random_hadamard", (), {"order": 4, "seed": -1}, ("-1",)),
        ("random_hadamard", (), {"order": 4, "seed": 1, "index": -1}, ("-1",)),
        ("orthogonal_factor", (w,), {}, ()),
        ("random_orthogonal", (), {"order": 0, "seed": 1}, ("0",)),
        ("random_orthogonal", (), {"order": 4, "seed": 1, "index": 2**32}, ()),
        ("fuse_norm", (w, np.ones(4, f32)), {}, ("4", "8")),
        ("rotate_inputs", (w, np.eye(3, dtype=f32)), {}, ("3", "8")),
        ("rotate_inputs", (w, np.ones((3, 2, 2), f32)), {}, ("3", "8")),
        ("rotate_inputs", (w, np.eye(8, dtype=f32)), {"repeats": 2}, ("2",)),
        ("rotate_inputs", (w, np.eye(8, dtype=f32)), {"repeats": 0}, ("0",)),
        ("rotate_outputs", (w, np.ones((4, 2), f32)), {}, ()),
        ("rotate_block", (block, np.eye(4, dtype=f32), None), {}, ("r1",)),
        ("rotate_block", (block._replace(up=w[:2]), eye, None), {}, ("up",)),
        (
            "rotate_block",
            (block._replace(gate=six, up=six, down=six.T), eye, None),
            {},
            ("6",),
        ),
        ("rotate_block", (block, eye, np.eye(3, dtype=f32)), {}, ("3",)),
        ("rotate_ends", (w, np.ones(4, f32), None, eye), {}, ()),
        ("rotate_ends", (w, vector, np.ones((4, 4), f32), eye), {}, ()),
        ("rotate_ends", (w, vector, None, np.eye(4, dtype=f32)), {}, ()),
        ("outlier_measures", (np.ones((3, 0), f32),), {}, ()),
        ("quantize_activations", (w,), {"bits": 1}, ("1",)),
        ("quantize_activations", (w,), {"bits": 4, "group_size": 3}, ("3", "8")),
        ("quantize_activations", (w,), {"bits": 4, "clip_ratio": 0.0}, ()),
        ("activation_clip", (w,), {"bits": 4, "grid": 0}, ("0",)),
        ("activation_clip", (w,), {"bits": 4, "norm": 0.0}, ()),
        ("activation_clip", (w,), {"bits": 4, "max_shrink": 1.5}, ("1.5",)),
        ("fit_chords", (ramp, ramp[:3]), {}, ("4", "3")),
        ("fit_chords", (ramp[:1], ramp[:1]), {}, ("1",)),
        ("fit_chords", (-ramp, ramp), {}, ()),
        ("fit_chords", (w, w), {}, ()),
        ("fit_segments", (ramp, ramp[:3], ramp), {}, ("4", "3")),
        ("fit_segments", (ramp, ramp, -ramp), {}, ()),
        ("fit_segments", (ramp, ramp, ramp), {"tie": "up"}, ("up",)),
        ("round_table", (lines._replace(slopes=np.ones(3)),), {}, ("3", "2")),
        ("round_table", (lines,), {"fraction_bits": -1}, ("-1",)),
        ("round_table", (lines,), {"fraction_bits": 25}, ("25",)),
        ("round_table", (lines,), {"bits": 1}, ("1",)),
        ("integer_table", (lines,), {"scale_bits": 2, "fraction_bits": 1}, ("0.25",)),
        ("integer_table", (lines,), {"scale_bits": -1}, ("-1",)),
        ("integer_table", (lines,), {"scale_bits": 24, "fraction_bits": 24}, ()),
        ("integer_table", (Table(np.array([1.0, 0.0]), np.ones(3), np.ones(3)),), {"scale_bits": 2}, ()),
        ("evaluate_table", (w, lines), {"tie": "both"}, ("both",)),
        ("evaluate_table", (w, lines._replace(intercepts=np.ones(3))), {}, ("3", "2")),
        ("evaluate_codes", (codes, level), {"tie": "both"}, ("both",)),
        ("evaluate_codes", (codes, level._replace(breakpoints=np.array([1], i32))), {}, ()),
        ("evaluate_codes", (2**30 * codes, level), {}, ()),
        ("evaluate_codes", (codes, level._replace(scale_bits=25)), {}, ("25",)),
        ("evaluate_codes", (codes, level._replace(fraction_bits=-1)), {}, ("-1",)),
        ("evaluate_codes", (w, level), {}, ()),
        ("lookup_codes", (codes, ramp), {}, ("-125",)),
        ("lookup_codes", (4 * codes, ramp), {"low": 0}, ("4",)),
        ("lookup_codes", (-codes, ramp), {"low": 0}, ("-1",)),
        ("lookup_codes", (codes, w), {"low": 0}, ()),
        ("requantize_codes", (codes,), {"shift": -1}, ("-1",)),
        ("requantize_codes", (codes,), {"shift": 32}, ("32",)),
        ("requantize_codes", (codes,), {"shift": 1, "low": 3, "high": 2}, ()),
        ("requantize_codes", (w,), {"shift": 1}, ()),
        ("table_gradient", (w, codes[:3]), {"scale": 1.0, "function": "gelu"}, ()),
        ("table_gradient", (w, codes), {"scale": 0.0, "function": "gelu"}, ()),
        ("table_gradient", (w, codes), {"scale": nan, "function": "gelu"}, ()),
        ("table_gradient", (w, codes), {"scale": 1.0, "function": "relu"}, ("relu",)),
        ("table_gradient", (w, 0 * codes), {"scale": 1.0, "function": "reciprocal"}, ("0",)),
        ("evaluate_ranges", (w, lines), {"function": "exp"}, ("exp",)),
        ("evaluate_ranges", (-w, lines), {"function": "rsqrt"}, ("-1",)),
        ("evaluate_ranges", (0 * w, lines), {"function": "reciprocal"}, ()),
        ("evaluate_ranges", (w, lines), {"function": "rsqrt", "tie": "both"}, ("both",)),
        ("table_softmax", (codes[:, :0], level, level), {}, ()),
        ("table_softmax", (2**25 * codes, level, level), {}, ()),
        ("table_softmax", (codes, level, level), {"out_bits": 17}, ("17",)),
        ("table_softmax", (codes, level, level), {"tie": "both"}, ("both",)),
        ("table_softmax", (codes, level._replace(slopes=np.array([2**30], i32)), level), {}, ()),
        ("table_layer_norm", (codes[:, :0], level), {}, ()),
        ("table_layer_norm", (2**28 * codes, level), {}, ()),
        ("table_layer_norm", (codes, level), {"out_bits": -1}, ("-1",)),
        ("table_layer_norm", (codes, level), {"tie": "both"}, ("both",)),
        ("verify_table", (level, w), {}, ()),
        ("verify_table", (level, vector), {"tie": "both"}, ("both",)),
        ("verify_table", (level, vector), {"low": 2**31}, ()),
        ("genome_fitness", (w,), {"function": "relu"}, ("relu",)),
        ("genome_fitness", (vector,), {"function": "gelu"}, ("8",)),
        ("genome_fitness", (w,), {"function": "gelu", "fraction_bits": -1}, ("-1",)),
        ("genetic_search", (), {"function": "relu", "entries": 8}, ("relu",)),
        ("genetic_search", (), {"function": "gelu", "entries": 2}, ("2",)),
        ("genetic_search", (), {"function": "gelu", "entries": 8, "seed": -1}, ("-1",)),
        ("genetic_search", (), {"function": "gelu", "entries": 8, "seed": 2**32, "draws": "published"}, ()),
        ("genetic_search", (), {"function": "gelu", "entries": 8, "draws": "random"}, ("random",)),
        ("genetic_search", (), {"function": "gelu", "entries": 8, "rounding": 2}, ("2",)),
        ("genetic_search", (), {"function": "gelu", "entries": 8, "generations": -1}, ("-1",)),
        ("genetic_search", (), {"function": "gelu", "entries": 8, "population": 1}, ("1",)),
        ("knot_grid", (), {"function": "relu"}, ("relu",)),
        ("knot_grid", (), {"function": "gelu", "fraction_bits": 13}, ("13",)),
        ("search_problem", (w,), {"function": "gelu"}, ("4",)),
        ("search_problem", (ramp[:1],), {"function": "gelu"}, ("1",)),
        ("search_problem", (-ramp,), {"function": "gelu"}, ("-2",)),
        ("search_problem", (ramp,), {"function": "gelu", "scale_bits": ()}, ()),
        ("search_problem", (ramp,), {"function": "gelu", "scale_bits": (13,)}, ("13",)),
        ("search_problem", (ramp,), {"function": "reciprocal", "scale_bits": (0, 9)}, ("9",)),
        ("optimal_search", (ramp, ramp, ramp, ramp, four), {"entries": 0}, ("0",)),
        ("optimal_search", (ramp[:2], ramp[:2], ramp, ramp, four[:, ::3].copy()), {"entries": 2}, ("2",)),
        ("optimal_search", (ramp, ramp[:3], ramp, ramp, four), {"entries": 2}, ("3", "4")),
        ("optimal_search", (-ramp, ramp, ramp, ramp, four), {"entries": 2}, ("-2",)),
        ("optimal_search", (ramp, ramp, -ramp, ramp, four), {"entries": 2}, ("-1",)),
        ("optimal_search", (ramp, ramp, ramp, ramp[:3], four), {"entries": 2}, ("3", "4")),
        ("optimal_search", (ramp, ramp, ramp, ramp, four[:, :3]), {"entries": 2}, ("3",)),
        ("optimal_search", (ramp, ramp, ramp, ramp, four + 1), {"entries": 2}, ()),
        ("optimal_search", (ramp, ramp, ramp, ramp, four[:, ::-1].copy()), {"entries": 2}, ()),
        (
            "optimal_search",
            (ramp, ramp, ramp, ramp, np.array([[0, 1, 2, 4], [4, 4, 4, 4]], i32)),
            {"entries": 2},
            ("1",),
        ),
        ("optimal_search", (ramp, ramp, ramp, ramp, four.astype(f32)), {"entries": 2}, ()),
        ("optimal_search", (ramp, ramp, ramp, ramp, four), {"entries": 2, "objective": "mae"}, ("mae",)),
        ("optimal_search", (ramp, ramp, ramp, ramp, four), {"entries": 2, "fit": "spline"}, ("spline",)),
        ("optimal_search", (ramp, ramp, ramp, ramp, four), {"entries": 2, "fraction_bits": 25}, ("25",)),
        ("optimality_bound", (ramp, ramp, ramp, ramp, four, np.ones((3, 3), f32)), {}, ("3",)),
        ("optimality_bound", (ramp, ramp, ramp, ramp, four, np.ones((1, 4), f32)), {}, ("1",)),
        ("table_objective", (ramp, ramp, four, ramp[:3], ramp[:2]), {}, ("3", "2")),
        ("table_objective", (ramp, ramp, four[:, :3], ramp[:3], ramp[:3]), {}, ("4", "3")),
        ("table_objective", (ramp, ramp, four, ramp[:0], ramp[:0]), {}, ()),
        ("table_objective", (ramp, ramp, four, ramp[:3], ramp[:3]), {"objective": "mae"}, ("mae",)),
        ("error_vector_score", (w, names[:3]), {}, ("3",)),
        ("error_vector_score", (w, names + 5), {}, ("8",)),
        ("error_vector_score", (w, -names), {}, ("-3",)),
        ("error_vector_score", (w, vector[:4]), {}, ()),
        ("error_vector_score", (w[:, :0], names), {}, ()),
        ("error_vector_score", (vector, names), {}, ()),
        ("disagreement_score", (w, w[:3]), {}, ()),
        ("disagreement_score", (w, vector), {}, ()),
        ("acs_score", (w, w, names), {"epoch": 5, "epochs": 4}, ("5",)),
        ("acs_score", (w, w, names), {"epoch": -1, "epochs": 4}, ("-1",)),
        ("acs_score", (w, w, names), {"epoch": 0, "epochs": 0}, ("0",)),
        ("acs_score", (w, w, names), {"epoch": 0, "epochs": 4, "schedule": "evonly"}, ("evonly",)),
        ("acs_score", (w, w[:, :4], names), {"epoch": 0, "epochs": 4}, ()),
        ("acs_score", (w, w, names + 5), {"epoch": 0, "epochs": 4}, ("8",)),
        ("select_coreset", (vector, names), {"fraction": 0.5}, ()),
        ("select_coreset", (w, None), {"fraction": 0.5}, ()),
        ("select_coreset", (vector[:4], -names), {"fraction": 0.5}, ("-3",)),
        ("select_coreset", (vector, None), {"fraction": 1.5}, ("1.5",)),
        ("select_coreset", (vector, None), {"fraction": -0.5}, ("-0.5",)),
        ("select_coreset", (vector, None), {"fraction": 0.5, "keep": "middle"}, ("middle",)),
        ("el2n_score", (w, names), {}, ()),
        ("el2n_score", (np.zeros((0, 4, 8), f32), names), {}, ()),
        ("el2n_score", (w[None], names + 5), {}, ("8",)),
        ("el2n_score", (w[None], names), {"outputs": "raw"}, ("raw",)),
        ("grand_score", (w, w[:3], names), {}, ("3",)),
        ("grand_score", (w, w, names), {"batch_size": 0}, ("0",)),
        ("grand_score", (w, w, names), {"bias": 1}, ("1",)),
        ("grand_score", (w, w, names + 5), {}, ("8",)),
        ("forgetting_score", (names.reshape(2, 2),), {}, ()),
        ("forgetting_score", (names > 0,), {}, ()),
        ("forgetting_score", (w > 0,), {"never_learnt": "infinite"}, ("infinite",)),
        ("moderate_score", (vector, names), {}, ()),
        ("moderate_score", (w, -names), {}, ("-3",)),
        ("moderate_score", (w, names), {"center": "mode"}, ("mode",)),
        ("moderate_score", (w, names), {"against": "mean"}, ("mean",)),
        ("contextual_diversity", (w * w, b * b), {}, ()),
        ("contextual_diversity", (w, -w), {}, ("q",)),
        ("contextual_diversity", (w * w, w * w), {"epsilon": -0.5}, ("-0.5",)),
        ("k_center", (w, names), {"count": 0}, ()),
        ("k_center", (w, names[:0]), {"count": 1}, ()),
        ("k_center", (w, np.array([4], i32)), {"count": 1}, ("4",)),
        ("k_center", (w, np.array([-1], i32)), {"count": 1}, ("-1",)),
        ("k_center", (w, names[:1]), {"count": 4}, ("4",)),
        ("k_center", (w, names[:1]), {"count": 1, "metric": "cosine"}, ("cosine",)),
        ("k_center", (-w * w - 1, names[:1]), {"count": 1, "metric": "symmetric-kl"}, ("x",)),
        ("herding", (w,), {"count": 5}, ("5",)),
        ("herding", (w,), {"count": -1}, ("-1",)),
        ("herding", (vector,), {"count": 1}, ()),
        ("random_score", (), {"size": -1, "seed": 1}, ("-1",)),
        ("random_score", (), {"size": 3, "seed": -1}, ("-1",)),
        ("random_score", (), {"size": 3, "seed": 1, "index": 2**32}, ()),
        ("logit_loss", (w, w[:3]), {}, ()),
        ("logit_loss", (vector, vector), {}, ()),
        ("logit_loss", (w, w), {"temperature": 0.0}, ()),
        ("logit_loss", (w, w), {"temperature": nan}, ()),
        ("logit_loss", (w, w), {"divergence": "js"}, ("js",)),
        ("token_loss", (cube, cube[:1], codes[:2, :2]), {}, ()),
        ("token_loss", (cube, cube, codes), {}, ()),
        ("token_loss", (cube, cube, 8 * codes[:2, :2]), {}, ("8",)),
        ("token_loss", (cube, cube, -codes[:2, :2]), {}, ("-1",)),
        ("token_loss", (cube, cube, w[:2, :2]), {}, ()),
        ("token_loss", (cube, cube, codes[:2, :2]), {"temperature": -1.0}, ("-1",)),
        ("token_loss", (cube, cube, codes[:2, :2]), {"ignored": "drop"}, ("drop",)),
        ("feature_loss", (cube, cube[:1], None), {}, ()),
        ("feature_loss", (w, w, None), {}, ()),
        ("feature_loss", (cube, cube, np.array([1, 3], i32)), {}, ("3",)),
        ("feature_loss", (cube, cube, np.array([1, 0], i32)), {}, ("0",)),
        ("feature_loss", (cube, cube, np.array([1], i32)), {}, ()),
        ("score_loss", (cube, cube), {}, ()),
        ("score_loss", (cube[None], cube[None]), {}, ()),
        ("score_loss", (scores, scores), {"floor": nan}, ()),
        ("score_loss", (scores, scores), {"causal": 1}, ("1",)),
        ("attention_map_loss", (cube[None], cube[None], np.array([2], i32)), {}, ()),
        ("attention_map_loss", (scores, scores[:, :1], np.array([2], i32)), {}, ()),
        ("attention_map_loss", (scores, scores, np.array([9], i32)), {}, ("9",)),
        ("attention_map_loss", (scores, scores, np.array([2, 2], i32)), {}, ()),
        ("attention_map_loss", (scores, scores, np.array([2], i32)), {"floor": 0.0}, ()),
        ("attention_map_loss", (scores, scores, np.array([2], i32)), {"floor": 2.0}, ("2",)),
        ("ranking_loss", (cube, cube), {}, ()),
        ("ranking_loss", (scores[0], scores[0, :1]), {}, ()),
        ("ranking_loss", (scores[0], scores[0]), {"pairs": "twice"}, ("twice",)),
        ("cover_length", (cube, cube), {"top": 1}, ()),
        ("cover_length", (scores[0], scores[0]), {"top": 5}, ("5", "4")),
        ("cover_length", (scores[0], scores[0]), {"top": 0}, ("0",)),
        ("cover_length", (scores[0], scores[0]), {"top": 1, "rows": "last"}, ("last",)),
        ("attention_range", (vector,), {}, ()),
        ("attention_range", (w[:, :0],), {}, ()),
        ("attention_norms", (scores[0], w, w, None, w), {}, ()),
        ("attention_norms", (scores[0], w, w[:3], None, w[:, :3]), {}, ("3", "2")),
        ("attention_norms", (scores[0], w, w, vector, w[:, :4]), {}, ()),
        ("attention_norms", (scores[0], w[:3], w, None, w[:, :4]), {}, ()),
        ("power_eigenvalues", (eye, np.ones((9, 8), f32)), {}, ("9", "8")),
        ("power_eigenvalues", (eye[:4, :4], w), {}, ()),
        ("power_eigenvalues", (eye + np.triu(np.ones((8, 8), f32)), w), {}, ()),
        ("power_eigenvalues", (eye, 0 * w), {}, ("0",)),
        ("power_eigenvalues", (eye, w), {}, ("1",)),
        ("power_eigenvalues", (eye, w[:1]), {"iterations": 0}, ("0",)),
        ("power_eigenvalues", (eye, w[:1]), {"tolerance": -1.0}, ("-1",)),
        ("power_eigenvalues", (eye, w[:1]), {"shift": nan}, ()),
        ("power_eigenvalues", (eye, w[:1]), {"stop": "never"}, ("never",)),
    ]


@clause("A-3", tier="exact")
def test_wrong_arguments_are_refused(kit: Kit) -> None:
    """SpecError of the operation's chapter, with the offending value where there is one."""
    chapters = {op: chapter for chapter, ops in CHAPTER_OPS.items() for op in ops}
    for op, arrays, options, words in wrong_calls():
        if kit.has(op):
            on_grids = op in CHECKED_AS_GRIDS
            allowed = (chapters[op], "Q", "A-3") if on_grids else (chapters[op], "A-3")
            if op.startswith("random_"):
                allowed = (*allowed, "P")
            if op == "quantize_adapter":
                allowed = (*allowed, "G")
            try:
                kit.refused(op, *arrays, clauses=allowed, words=words, **options)
            except Unsupported as refusal:
                kit.note_refusal(f"{op}: {refusal.reason}")


CHECKED_AS_GRIDS = (
    "gptq", "sparsegpt", "quantize_adapter", "bcq_from_grid", "codebook_matmul", "quantize_activations",
    "activation_clip",
)  # fmt: skip
CHAPTER_OPS = {
    "P": ("philox_words", "philox_uniform", "philox_integers", "philox_normal"),
    "R": ("round_half_even", "round_clip", "nearest_level"),
    "Q": ("fit_grid", "clip_search", "quantize", "dequantize", "pack", "unpack"),
    "N": (
        "normal_float", "dynamic_float", "block_scale", "quantize_blocks", "dequantize_blocks", "quantize_scale",
        "dequantize_scale", "codebook_matmul", "loftq",
    ),
    "T": ("twn_code", "twn", "clamped_uniform", "min_max", "straight_through"),
    "S": ("lsq_init", "lsq_code", "lsq", "lsq_gradient"),
    "O": (
        "statsq", "statsq_grad", "start_oscillation", "track_oscillation", "boundary_statistics", "cga_mask",
        "cga_step", "qkr_weight", "qkr_grad", "qkr_attention",
    ),
    "B": (
        "bcq", "bcq_refit", "bcq_assign", "bcq_weight", "bcq_from_grid", "bcq_pack", "bcq_unpack", "lookup_tables",
        "bcq_product",
    ),
    "U": ("trainable_scales", "scale_grad", "scale_grad_tokens", "tune_step", "fit_scales"),
    "M": ("row_bits", "allocate_bits", "project_rows"),
    "G": ("inverse_cholesky", "gptq", "sparsegpt", "wanda"),
    "C": ("moment_leaf", "moment_merge", "moment_total", "recency_moment", "svd_patch", "scaled_svd_patch"),
    "E": (
        "objective", "eora", "error_spectrum", "optimum", "eora_published", "eora_certified", "stationarity",
        "quantize_adapter", "residual_moment",
    ),
    "K": (
        "explained_error", "residual_damage", "subspace_overlap", "gradient_importance", "loss_importance", "rank_cost",
        "allocate_greedy", "threshold_ranks", "allocate_threshold", "allocate_proportional", "allocation_objective",
        "allocation_bound", "pool_modules", "reallocate_ranks", "nest_patch",
    ),
    "D": (
        "dora_magnitude", "dora_norm", "factored_norm", "dora_weight", "dora_forward", "dora_gradient", "dora_merge",
        "dora_unmerge", "dvora_factors", "dvora_gradient", "decomposition_change", "dora_to_lora",
    ),
    "H": (
        "hadamard_matrix", "hadamard_transform", "kronecker_transform", "random_hadamard", "orthogonal_factor",
        "random_orthogonal", "fuse_norm", "rotate_inputs", "rotate_outputs", "rotate_block", "rotate_ends",
        "outlier_measures", "quantize_activations", "activation_clip",
    ),
    "L": (
        "fit_chords", "fit_segments", "round_table", "integer_table", "evaluate_table", "evaluate_codes",
        "lookup_codes", "requantize_codes", "table_gradient", "evaluate_ranges", "table_softmax", "table_layer_norm",
        "verify_table",
        "genome_fitness", "genetic_search", "knot_grid", "search_problem", "optimal_search", "optimality_bound",
        "table_objective",
    ),
    "X": (
        "error_vector_score", "disagreement_score", "acs_score", "select_coreset", "el2n_score", "grand_score",
        "forgetting_score", "moderate_score", "contextual_diversity", "k_center", "herding", "random_score",
    ),
    "W": (
        "logit_loss", "token_loss", "feature_loss", "score_loss", "attention_map_loss", "ranking_loss", "cover_length",
        "attention_range", "attention_norms", "power_eigenvalues",
    ),
}  # fmt: skip


@clause("A-4", tier="exact")
def test_non_finite_values_are_refused(kit: Kit) -> None:
    """A NaN or an infinity in any float argument: SpecError that says which argument and where."""
    for dtype in ("float32", "float64"):
        for call in served(kit, ordinary_calls(dtype)):
            if call.op in ("round_half_even", "round_clip", "moment_merge", "moment_total"):
                continue  # R-1 and R-2 have their own rule; moments were checked leaf by leaf
            for position, name in enumerate(call.names):
                for value in (np.nan, np.inf, -np.inf):
                    arrays = list(call.arrays)
                    poisoned, where = poison(arrays[position], value)
                    if poisoned is None:
                        continue
                    arrays[position] = poisoned
                    try:
                        kit.refused(call.op, *arrays, clauses=("A-4",), words=(name, where), **call.options)
                    except Unsupported as refusal:
                        kit.note_refusal(f"{call.op}: {refusal.reason}")


def poison(value: Any, bad: float) -> tuple[Any, str]:
    """A copy with one bad entry and the text of its position; (None, "") for integers."""
    if isinstance(value, list):
        spoiled, where = poison(value[-1], bad)
        return [*value[:-1], spoiled], where
    if hasattr(value, "_fields"):
        last = [field for field in value._fields if isinstance(getattr(value, field), np.ndarray)][-1]
        spoiled, where = poison(getattr(value, last), bad)
        return (None, "") if spoiled is None else (value._replace(**{last: spoiled}), where)
    if value is None or value.dtype.kind != "f":
        return None, ""
    copy = value.copy()
    at = tuple(n - 1 if i else n // 2 for i, n in enumerate(copy.shape))
    copy[at] = bad
    if copy.ndim == 2 and copy.shape[0] == copy.shape[1] == 8:
        copy[at[::-1]] = bad  # a second moment stays symmetric; the first bad entry in reading order is named
        at = min(at, at[::-1])
    return copy, str(at)


def covered_operations() -> set[str]:
    """Operations that :func:`ordinary_calls` exercises; the kit's own tests compare them with the protocol."""
    return {call.op for call in ordinary_calls()} & set(operations())
