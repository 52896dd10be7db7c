"""The specification: what every method computes, in float64 NumPy and SciPy, one algorithm per file.

Reading order (the letter is the chapter, and the first part of every clause id):

1.  ``philox``         P  addressed randomness: words, uniforms, integers and normals
2.  ``rounding``       R  half to even, clipping, nearest level
3.  ``uniform``        Q  affine grids per tensor, row, token or group, and the search for a clipping ratio
4.  ``packing``        Q  codes of 1 to 8 bits in 32-bit words, dense and padded
5.  ``codebook``       N  NormalFloat and other levels, block scales, double quantization
6.  ``ternary``        T  ternary and min-max fake quantizers, straight-through gradients
7.  ``learned_step``   S  LSQ with every published granularity, count, floor and first step; gradients, offset
8.  ``statsq``         O  weights quantized by their own mean magnitude
9.  ``oscillation``    O  weights that go back and forth: frequency, freezing, annealing
10. ``qk_reparam``     O  the product of query and key weights as what is quantized
11. ``binary_coding``  B  binary codes: greedy, refined, alternating; packed planes, product by tables
12. ``scale_tuning``     U  AlphaTuning: gradient, update and least-squares fit of the scales of binary codes, sizes
13. ``mixed_precision``  M  bits per row by word frequency, bits per block by sensitivity, projection while retraining
14. ``gptq``           G  GPTQ
15. ``sparsity``       G  SparseGPT, alone or joint with quantization, and Wanda
16. ``moments``        C  second moments of activations, exactly associative
17. ``low_rank``       C  SVD and activation-scaled SVD patches
18. ``loftq``          N  LoftQ: quantization and a patch by turns
19. ``eigenspace``     E  EoRA: the best patch for the inputs that a layer sees
20. ``rank_budget``    K  ranks per module under a budget, and nested patches
21. ``dora``           D  DoRA: magnitude and direction apart
22. ``rotation``       H  Hadamard and Haar rotations, moved into weights; quantized activations
23. ``lut``            L  look-up tables: straight lines for non-linear functions, evaluated in integers
24. ``lut_search``     L  searches of look-up tables: the published genetic one, and the optimum with a certificate
25. ``coreset``        X  which samples to train on: error vectors, disagreement, ACS and its baselines
26. ``distill``        W  distillation losses of quantization-aware training, with their gradients
27. ``diagnostics``    W  order of attention, ranges, norms, and eigenvalues of the Hessian with a certificate

``tables`` holds constants found by search, ``types`` names the results, ``protocol`` is the contract of a backend,
``errors`` the two ways to refuse, ``checks`` the refusals themselves. The docstring of a function is the normative
text; clause ids stand in brackets.

This module is itself a backend, the slow one: it takes array-likes and answers in float64 NumPy arrays.

>>> import lowbit.reference as reference
>>> reference.quantize([[0.5, 1.5]], [[1.0]], [[0]], bits=2).tolist()
[[0, 2]]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .binary_coding import (
    bcq,
    bcq_assign,
    bcq_from_grid,
    bcq_pack,
    bcq_product,
    bcq_refit,
    bcq_unpack,
    bcq_weight,
    lookup_tables,
)
from .codebook import (
    block_scale,
    codebook_matmul,
    dequantize_blocks,
    dequantize_scale,
    dynamic_float,
    normal_float,
    quantize_blocks,
    quantize_scale,
)
from .coreset import (
    acs_score,
    contextual_diversity,
    disagreement_score,
    el2n_score,
    error_vector_score,
    forgetting_score,
    grand_score,
    herding,
    k_center,
    moderate_score,
    random_score,
    select_coreset,
)
from .diagnostics import attention_norms, attention_range, cover_length, power_eigenvalues, ranking_loss
from .distill import attention_map_loss, feature_loss, logit_loss, score_loss, token_loss
from .dora import (
    decomposition_change,
    dora_forward,
    dora_gradient,
    dora_magnitude,
    dora_merge,
    dora_norm,
    dora_to_lora,
    dora_unmerge,
    dora_weight,
    dvora_factors,
    dvora_gradient,
    factored_norm,
)
from .eigenspace import (
    eora,
    eora_certified,
    eora_published,
    error_spectrum,
    objective,
    optimum,
    quantize_adapter,
    residual_moment,
    stationarity,
)
from .gptq import gptq, inverse_cholesky
from .learned_step import lsq, lsq_code, lsq_gradient, lsq_init
from .loftq import loftq
from .low_rank import scaled_svd_patch, svd_patch
from .lut import (
    evaluate_codes,
    evaluate_ranges,
    evaluate_table,
    fit_chords,
    fit_segments,
    integer_table,
    lookup_codes,
    requantize_codes,
    round_table,
    table_gradient,
    table_layer_norm,
    table_softmax,
    verify_table,
)
from .lut_search import (
    genetic_search,
    genome_fitness,
    knot_grid,
    optimal_search,
    optimality_bound,
    search_problem,
    table_objective,
)
from .mixed_precision import allocate_bits, project_rows, row_bits
from .moments import moment_leaf, moment_merge, moment_total, recency_moment
from .oscillation import boundary_statistics, cga_mask, cga_step, start_oscillation, track_oscillation
from .packing import pack, unpack
from .philox import philox_integers, philox_normal, philox_uniform, philox_words
from .qk_reparam import qkr_attention, qkr_grad, qkr_weight
from .rank_budget import (
    allocate_greedy,
    allocate_proportional,
    allocate_threshold,
    allocation_bound,
    allocation_objective,
    explained_error,
    gradient_importance,
    loss_importance,
    nest_patch,
    pool_modules,
    rank_cost,
    reallocate_ranks,
    residual_damage,
    subspace_overlap,
    threshold_ranks,
)
from .rotation import (
    activation_clip,
    fuse_norm,
    hadamard_matrix,
    hadamard_transform,
    kronecker_transform,
    orthogonal_factor,
    outlier_measures,
    quantize_activations,
    random_hadamard,
    random_orthogonal,
    rotate_block,
    rotate_ends,
    rotate_inputs,
    rotate_outputs,
)
from .rounding import nearest_level, round_clip, round_half_even
from .scale_tuning import fit_scales, scale_grad, scale_grad_tokens, trainable_scales, tune_step
from .sparsity import sparsegpt, wanda
from .statsq import statsq, statsq_grad
from .ternary import clamped_uniform, min_max, straight_through, twn, twn_code
from .uniform import clip_search, dequantize, fit_grid, quantize

__all__ = [  # noqa: RUF022  in reading order
    "philox_words",
    "philox_uniform",
    "philox_integers",
    "philox_normal",
    "round_half_even",
    "round_clip",
    "nearest_level",
    "fit_grid",
    "clip_search",
    "quantize",
    "dequantize",
    "pack",
    "unpack",
    "normal_float",
    "dynamic_float",
    "block_scale",
    "quantize_blocks",
    "dequantize_blocks",
    "quantize_scale",
    "dequantize_scale",
    "codebook_matmul",
    "twn_code",
    "twn",
    "clamped_uniform",
    "min_max",
    "straight_through",
    "lsq_init",
    "lsq_code",
    "lsq",
    "lsq_gradient",
    "statsq",
    "statsq_grad",
    "start_oscillation",
    "track_oscillation",
    "boundary_statistics",
    "cga_mask",
    "cga_step",
    "qkr_weight",
    "qkr_grad",
    "qkr_attention",
    "bcq",
    "bcq_refit",
    "bcq_assign",
    "bcq_weight",
    "bcq_from_grid",
    "bcq_pack",
    "bcq_unpack",
    "lookup_tables",
    "bcq_product",
    "trainable_scales",
    "scale_grad",
    "scale_grad_tokens",
    "tune_step",
    "fit_scales",
    "row_bits",
    "allocate_bits",
    "project_rows",
    "inverse_cholesky",
    "gptq",
    "sparsegpt",
    "wanda",
    "moment_leaf",
    "moment_merge",
    "moment_total",
    "recency_moment",
    "svd_patch",
    "scaled_svd_patch",
    "loftq",
    "objective",
    "eora",
    "error_spectrum",
    "optimum",
    "eora_published",
    "eora_certified",
    "stationarity",
    "quantize_adapter",
    "residual_moment",
    "explained_error",
    "residual_damage",
    "subspace_overlap",
    "gradient_importance",
    "loss_importance",
    "rank_cost",
    "allocate_greedy",
    "threshold_ranks",
    "allocate_threshold",
    "allocate_proportional",
    "allocation_objective",
    "allocation_bound",
    "pool_modules",
    "reallocate_ranks",
    "nest_patch",
    "dora_magnitude",
    "dora_norm",
    "factored_norm",
    "dora_weight",
    "dora_forward",
    "dora_gradient",
    "dora_merge",
    "dora_unmerge",
    "dvora_factors",
    "dvora_gradient",
    "decomposition_change",
    "dora_to_lora",
    "hadamard_matrix",
    "hadamard_transform",
    "kronecker_transform",
    "random_hadamard",
    "orthogonal_factor",
    "random_orthogonal",
    "fuse_norm",
    "rotate_inputs",
    "rotate_outputs",
    "rotate_block",
    "rotate_ends",
    "outlier_measures",
    "quantize_activations",
    "activation_clip",
    "fit_chords",
    "fit_segments",
    "round_table",
    "integer_table",
    "evaluate_table",
    "evaluate_codes",
    "lookup_codes",
    "requantize_codes",
    "table_gradient",
    "evaluate_ranges",
    "table_softmax",
    "table_layer_norm",
    "verify_table",
    "genome_fitness",
    "genetic_search",
    "knot_grid",
    "search_problem",
    "optimal_search",
    "optimality_bound",
    "table_objective",
    "error_vector_score",
    "disagreement_score",
    "acs_score",
    "select_coreset",
    "el2n_score",
    "grand_score",
    "forgetting_score",
    "moderate_score",
    "contextual_diversity",
    "k_center",
    "herding",
    "random_score",
    "logit_loss",
    "token_loss",
    "feature_loss",
    "score_loss",
    "attention_map_loss",
    "ranking_loss",
    "cover_length",
    "attention_range",
    "attention_norms",
    "power_eigenvalues",
]

SPEC_VERSION = 1
"""Version of the specification; ``lowbit.SPEC_VERSION`` is the same number."""

name = "reference"
compute_dtype = "float64"
device = "cpu"


def asarray(x: npt.NDArray[Any], /) -> npt.NDArray[Any]:
    """NumPy to the backend's own array, which is NumPy."""
    return np.asarray(x)


def to_numpy(x: npt.NDArray[Any], /) -> npt.NDArray[Any]:
    """The backend's own array to NumPy."""
    return np.asarray(x)
