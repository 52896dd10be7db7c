"""One small, valid call of every operation for the tests of the Numba backend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.reference.types import DecoderBlock, IntegerTable, Table

Array = npt.NDArray[Any]


def weights(m: int, k: int, *, dtype: str = "float64", seed: int = 0) -> Array:
    """Gaussian weights whose rows differ in scale."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((m, k)) * np.exp(rng.standard_normal((m, 1)))).astype(dtype)


def moment(k: int, *, dtype: str = "float64", seed: int = 1, dead: tuple[int, ...] = ()) -> Array:
    """Second moment of correlated inputs of different scale; the columns in ``dead`` are always 0."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2 * k + 1, k)) * np.exp(rng.standard_normal(k))
    x += 0.5 * x[:, :1]
    x[:, list(dead)] = 0
    return np.asarray(x.T @ x).astype(dtype)


def calls(backend: Any, dtype: str) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Operation → (arrays, options), in the order of the contract."""
    w, h = weights(5, 16, dtype=dtype), moment(16, dtype=dtype, dead=(3,))
    x = weights(7, 16, dtype=dtype, seed=2)
    grid = backend.fit_grid(w, bits=4)
    codes = backend.quantize(w, *grid, bits=4)
    scale = grid.scale.astype(dtype)
    b, a = w[:, :3], x[:3]
    left, right = backend.moment_leaf(x, index=0), backend.moment_leaf(x[:4], index=1)
    levels = np.sort(w[0, :7])
    p, k, c = (np.array(t, dtype) for t in ([0.5, 2.0], [0.25, 1.0, 0.5], [0.0, -1.0, 0.75]))
    lines, counts = Table(p, k, c), [(n * np.ldexp(1.0, b)).astype(np.int32) for n, b in ((p, 2), (k, 6), (c, 8))]
    whole = IntegerTable(counts[0], counts[1], counts[2], 2, 6)
    per_row = np.abs(w[:, 0]) + w.dtype.type(0.5)
    table = backend.normal_float(bits=4)
    blocks = backend.block_scale(w, block_size=20)
    binary = backend.bcq(w, bits=2, group_size=8, offset=True)
    planes = backend.bcq_pack(*binary)
    spectra, each = -np.sort(-np.abs(x), axis=1), np.abs(x[:, 0])
    market = tuple(np.array(row, np.int32) for row in ([1, 2, 3, 1, 2, 3, 1], [0, 0, 2, 0, 0, 0, 2], [16, 4] * 3 + [8]))
    shapes, group = np.array([[4, 9], [3, 8]], np.int32), np.array([0, 1, 0, 2, 2, 1, 0], np.int32)
    now = np.array([3, 4, 2, 1, 1, 0, 2], np.int32)
    addresses = np.arange(24).reshape(6, 4)
    signs = np.array([[1, 1], [-1, 1]], dtype)
    block = DecoderBlock(w[0], w, w, w, w.T.copy(), w[0], w[:4], w[1:], w[:4].T.copy(), None, w[1], None)
    alpha = np.abs(w[:, :4].reshape(5, 2, 2))
    on = backend.trainable_scales(alpha)
    search = (
        np.array([-4.0, -1.0, 1.0, 4.0], dtype),
        np.array([0.0, -0.25, 0.75, 4.0], dtype),
        np.array([-2.0, 0.0, 1.0, 2.0], dtype),
        np.array([0.0, 0.0, 1.0, 2.0], dtype),
        np.array([[0, 1, 2, 4]], np.int32),
    )
    features = w[:3, :4].reshape(2, 3, 2).copy(), x[:3, :4].reshape(2, 3, 2).copy()
    scores = w[:4].reshape(2, 2, 4, 4), x[:4].reshape(2, 2, 4, 4)
    picked = np.array([1, 0, 3, 1, 2], np.int32)
    return {
        "philox_words": ((addresses,), {"seed": 1}),
        "philox_uniform": ((addresses,), {"seed": 1}),
        "philox_integers": ((addresses,), {"seed": 1, "bound": 7}),
        "philox_normal": ((addresses,), {"seed": 1}),
        "round_half_even": ((w,), {}),
        "round_clip": ((w,), {"low": -2, "high": 1}),
        "nearest_level": ((w, levels), {}),
        "fit_grid": ((w,), {"bits": 3, "granularity": "group", "group_size": 4}),
        "clip_search": ((w,), {"bits": 3}),
        "quantize": ((w, scale, grid.zero_point), {"bits": 4}),
        "dequantize": ((codes, scale, grid.zero_point), {}),
        "pack": ((codes,), {"bits": 4}),
        "unpack": ((backend.pack(codes, bits=4),), {"bits": 4, "length": 16}),
        "normal_float": ((), {"bits": 4}),
        "dynamic_float": ((), {"bits": 8}),
        "block_scale": ((w,), {"block_size": 12}),
        "quantize_blocks": ((w, blocks, levels), {"block_size": 20}),
        "dequantize_blocks": ((codes, blocks, table), {"block_size": 20}),
        "quantize_scale": ((blocks, levels), {"block_size": 3}),
        "dequantize_scale": ((codes[0], blocks[:2], blocks[2:3].reshape(()), table), {"block_size": 8}),
        "codebook_matmul": ((x, backend.pack(codes, bits=4), blocks, table), {"bits": 4, "block_size": 20}),
        "twn_code": ((w,), {"granularity": "row"}),
        "twn": ((w,), {"clip": 1.0}),
        "clamped_uniform": ((w,), {"granularity": "row"}),
        "min_max": ((w,), {"scheme": "asymmetric"}),
        "straight_through": ((w, w[::-1].copy()), {"clip": 1.0}),
        "lsq_init": ((w,), {"bits": 4, "axis": 0}),
        "lsq_code": ((w, per_row), {"bits": 4, "axis": 0}),
        "lsq": ((w, per_row, w[:, 0].copy()), {"bits": 4, "axis": 0}),
        "lsq_gradient": ((w, w, np.abs(w[0]) + w.dtype.type(0.5), w[0].copy()), {"bits": 2, "axis": 1}),
        "statsq": ((w,), {"bits": 3}),
        "statsq_grad": ((w, x[:5].copy()), {"bits": 3, "path": "scale"}),
        "start_oscillation": ((codes,), {}),
        "track_oscillation": (
            (codes, codes[::-1].copy(), codes % 3 - 1, np.abs(w), codes, x[:5].copy(), w > 0, codes // 2),
            {"threshold": 0.5},
        ),
        "boundary_statistics": ((w, x[:5].copy(), x[2:].copy()), {"bits": 2, "boundary_range": 0.25}),
        "cga_mask": ((w,), {"bits": 2, "boundary_range": 0.25}),
        "cga_step": ((w, x[:5].copy(), x[2:].copy(), w * w, w > 0), {"step": 2, "lr": 0.1, "decay": 0.1}),
        "qkr_weight": ((w[:4], x[:4]), {"heads": 2}),
        "qkr_grad": ((w[:4], x[:4], np.tile(h, (2, 1)), np.tile(h, (2, 1)) > 0), {"heads": 2}),
        "qkr_attention": (
            (x[:6].reshape(2, 3, 16), w[:4], x[:4], x[3:], w[0, :4].copy(), w[1, :4].copy()),
            {"heads": 2},
        ),
        "bcq": ((w,), {"bits": 2, "group_size": 8}),
        "bcq_refit": ((w, codes & 7), {"bits": 3, "offset": True}),
        "bcq_assign": ((w, binary.scale, binary.offset), {}),
        "bcq_weight": (tuple(binary), {}),
        "bcq_from_grid": ((codes, scale, grid.zero_point), {"bits": 4}),
        "bcq_pack": (tuple(binary), {}),
        "bcq_unpack": (tuple(planes), {"length": 16}),
        "lookup_tables": ((w,), {"width": 4}),
        "bcq_product": ((w, *planes), {}),
        "trainable_scales": ((alpha,), {"train": "largest"}),
        "scale_grad": ((w, codes), {"bits": 4, "group_size": 8}),
        "scale_grad_tokens": ((x, x[:, :5].copy(), codes), {"bits": 4}),
        "tune_step": ((alpha, alpha - 1, alpha, alpha, alpha, on), {"step": 1, "lr": 0.1}),
        "fit_scales": ((w, h, codes % 4, alpha, on), {}),
        "row_bits": ((codes[0],), {"clusters": 3}),
        "allocate_bits": ((w[:, :3] ** 2, np.tile(np.arange(1, 4, dtype=np.int32), (5, 1))), {"budget": 9}),
        "project_rows": ((w, np.array([1, 2, 3, 4, 8], np.int32)), {}),
        "inverse_cholesky": ((h,), {}),
        "gptq": ((w, h), {"bits": 3, "group_size": 8}),
        "sparsegpt": ((w, h), {"bits": 4}),
        "wanda": ((w, np.diagonal(h).copy()), {}),
        "moment_leaf": ((x,), {"index": 3}),
        "moment_merge": ((left, right), {}),
        "moment_total": (((*left, *right),), {}),
        "recency_moment": (([x[None, :4], x[None, 4:]],), {"total": 2}),
        "svd_patch": ((w,), {"rank": 2}),
        "scaled_svd_patch": ((w, np.abs(x[0])), {"rank": 2}),
        "loftq": ((w,), {"rank": 2, "bits": 2, "iterations": 2}),
        "objective": ((w, h), {}),
        "eora": ((w, h), {"rank": 2}),
        "error_spectrum": ((w, h), {}),
        "optimum": ((w, h), {"rank": 2}),
        "eora_published": ((w, h), {"rank": 2}),
        "eora_certified": ((w, h), {"rank": 2}),
        "stationarity": ((w, h, b, a), {}),
        "quantize_adapter": ((b, a, h), {"bits": 4}),
        "residual_moment": ((h, a), {}),
        "explained_error": ((spectra,), {}),
        "residual_damage": ((spectra, each), {}),
        "subspace_overlap": ((w, w + w[::-1] / 8, h), {"rank": 3}),
        "gradient_importance": ((x,), {}),
        "loss_importance": ((each, spectra), {"base": 0.25}),
        "rank_cost": ((shapes,), {"bits": 3}),
        "allocate_greedy": ((spectra, each, *market), {"budget": 30}),
        "threshold_ranks": ((spectra, *market[1:]), {"threshold": 0.75}),
        "allocate_threshold": ((spectra, *market), {"budget": 30, "multiple": 2}),
        "allocate_proportional": ((each, *market), {"budget": 30, "leftover": "fill"}),
        "allocation_objective": ((spectra, each, now), {}),
        "allocation_bound": ((spectra, each, *market), {"budget": 30}),
        "pool_modules": ((spectra, each, *market, group), {}),
        "reallocate_ranks": ((spectra, spectra[:, 2:] / 4, each, *market, now), {"budget": 30, "step": 1}),
        "nest_patch": ((b, a, h), {}),
        "dora_magnitude": ((w,), {}),
        "dora_norm": ((w, b, a), {"scaling": 2.0}),
        "factored_norm": ((w, 9 * per_row, b, a), {"scaling": 0.5}),
        "dora_weight": ((w, b, a, per_row), {"scaling": 2.0}),
        "dora_forward": ((w, w, w, per_row, b, a, per_row), {"scaling": 2.0}),
        "dora_gradient": ((w, w, b, a, per_row), {"scaling": 2.0, "detach": False}),
        "dora_merge": ((w, b, a, per_row), {"scaling": 2.0}),
        "dora_unmerge": ((w, b, a, per_row), {"scaling": 2.0}),
        "dvora_factors": ((b, a, per_row, per_row[:3]), {}),
        "dvora_gradient": ((b, a, b, a), {}),
        "decomposition_change": ((w, w + 1), {}),
        "dora_to_lora": ((w, b, a, per_row), {"scaling": 2.0, "rank": 2}),
        "hadamard_matrix": ((), {"order": 12}),
        "hadamard_transform": ((w,), {}),
        "kronecker_transform": ((w, signs), {}),
        "random_hadamard": ((), {"order": 12, "seed": 1}),
        "orthogonal_factor": ((h,), {}),
        "random_orthogonal": ((), {"order": 6, "seed": 1}),
        "fuse_norm": ((w, w[0]), {}),
        "rotate_inputs": ((w, h), {}),
        "rotate_outputs": ((w.T.copy(), h), {}),
        "rotate_block": ((block, h, None), {}),
        "rotate_ends": ((w, w[0], None, h), {"centre": True}),
        "outlier_measures": ((w,), {}),
        "quantize_activations": ((w,), {"bits": 4}),
        "activation_clip": ((w,), {"bits": 4}),
        "fit_chords": ((levels, levels), {}),
        "fit_segments": ((x[0], w[0], levels), {}),
        "round_table": ((lines,), {"bits": 8}),
        "integer_table": ((lines,), {"scale_bits": 3}),
        "evaluate_table": ((w, lines), {}),
        "evaluate_codes": ((codes, whole), {}),
        "lookup_codes": ((codes, w[0]), {"low": 0}),
        "requantize_codes": ((codes,), {"shift": 1}),
        "table_gradient": ((w, codes), {"scale": 0.5, "function": "silu"}),
        "evaluate_ranges": ((np.abs(w) + 1, lines), {"function": "reciprocal"}),
        "table_softmax": ((codes, whole, whole), {}),
        "table_layer_norm": ((codes, whole), {}),
        "verify_table": ((whole, w[0]), {"low": -8}),
        "genome_fitness": ((w,), {"function": "gelu"}),
        "genetic_search": ((), {"function": "gelu", "entries": 4, "generations": 2, "population": 5}),
        "knot_grid": ((), {"function": "exp", "fraction_bits": 1}),
        "search_problem": ((search[0],), {"function": "gelu", "scale_bits": (0, 2)}),
        "optimal_search": (search, {"entries": 3}),
        "optimality_bound": ((*search, search[0].reshape(1, 4) * search[0].reshape(4, 1)), {}),
        "table_objective": ((*search[2:], search[0][:3], search[1][:3]), {}),
        "error_vector_score": ((w, picked), {}),
        "disagreement_score": ((w, w + 1), {}),
        "acs_score": ((w, 2 * w, picked), {"epoch": 3, "epochs": 9}),
        "select_coreset": ((w[:, 0], picked), {"fraction": 0.5}),
        "el2n_score": ((np.stack([w, 2 * w]), picked), {}),
        "grand_score": ((w, w[:, :7], picked), {"batch_size": 2}),
        "forgetting_score": ((w > 0,), {}),
        "moderate_score": ((w, picked // 2), {"center": "median", "against": "class-median"}),
        "contextual_diversity": ((np.abs(w), np.abs(x)), {"epsilon": 0.125}),
        "k_center": ((w, picked[:1]), {"count": 2}),
        "herding": ((w,), {"count": 3}),
        "random_score": ((), {"size": 7, "seed": 1}),
        "logit_loss": ((w, x[:5].copy()), {"temperature": 2.0}),
        "token_loss": ((*features, np.array([[0, -100, 1], [1, 0, 1]], np.int32)), {"ignored": "skip"}),
        "feature_loss": ((*features, np.array([3, 1], np.int32)), {}),
        "score_loss": (scores, {"causal": True}),
        "attention_map_loss": ((*scores, np.array([1, 4], np.int32)), {}),
        "ranking_loss": ((scores[0][0], scores[1][0]), {}),
        "cover_length": ((scores[0][0], scores[1][0]), {"top": 2}),
        "attention_range": ((w,), {}),
        "attention_norms": ((scores[0][0], x[:4], w[:4], w[0, :4].copy(), x[:, :4].copy()), {}),
        "power_eigenvalues": ((h, w), {"iterations": 5}),
    }


def arrays(value: Any) -> Iterator[Array]:
    """Every array inside nested tuples and lists."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from arrays(part)


def mapped(value: Any, change: Any) -> Any:
    """The same nesting with every array changed."""
    if isinstance(value, np.ndarray):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(part, change) for part in value))
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(part, change) for part in value)
    return value
