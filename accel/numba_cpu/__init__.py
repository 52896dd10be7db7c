"""The Numba backend: every operation of the specification on the CPU, compiled to machine code on first use.

``lowbit.load("numba")`` returns this module, ``lowbit.load("numba", threads=4)`` the same operations limited to four
threads. Arrays are NumPy's. float32 (and float16) data is computed in float32, float64 data in float64. Results do not
depend on the number of threads, except in the last digits of operations that hand a decomposition to LAPACK: the
patches of chapters C and E, and products of chapter D.

Compiled code is kept beside the sources (or in Numba's cache folder when that is not writable), so only the first call
on a machine waits for the compiler. Where neither can be written to, a warning names ``NUMBA_CACHE_DIR``, and every
process compiles for itself.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.reference.protocol import operations

from ._jit import default_threads, limited_to
from ._lookup import portable_kernels
from .adapter import quantize_adapter
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
    product_path,
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

__all__ = [
    "NumbaBackend",
    "acs_score",
    "activation_clip",
    "allocate_bits",
    "allocate_greedy",
    "allocate_proportional",
    "allocate_threshold",
    "allocation_bound",
    "allocation_objective",
    "asarray",
    "attention_map_loss",
    "attention_norms",
    "attention_range",
    "bcq",
    "bcq_assign",
    "bcq_from_grid",
    "bcq_pack",
    "bcq_product",
    "bcq_refit",
    "bcq_unpack",
    "bcq_weight",
    "block_scale",
    "boundary_statistics",
    "cga_mask",
    "cga_step",
    "clamped_uniform",
    "clip_search",
    "codebook_matmul",
    "compute_dtype",
    "configure",
    "contextual_diversity",
    "cover_length",
    "decomposition_change",
    "dequantize",
    "dequantize_blocks",
    "dequantize_scale",
    "device",
    "disagreement_score",
    "dora_forward",
    "dora_gradient",
    "dora_magnitude",
    "dora_merge",
    "dora_norm",
    "dora_to_lora",
    "dora_unmerge",
    "dora_weight",
    "dvora_factors",
    "dvora_gradient",
    "dynamic_float",
    "el2n_score",
    "eora",
    "eora_certified",
    "eora_published",
    "error_spectrum",
    "error_vector_score",
    "evaluate_codes",
    "evaluate_ranges",
    "evaluate_table",
    "explained_error",
    "factored_norm",
    "feature_loss",
    "fit_chords",
    "fit_grid",
    "fit_scales",
    "fit_segments",
    "forgetting_score",
    "fuse_norm",
    "genetic_search",
    "genome_fitness",
    "gptq",
    "gradient_importance",
    "grand_score",
    "hadamard_matrix",
    "hadamard_transform",
    "herding",
    "integer_table",
    "inverse_cholesky",
    "k_center",
    "knot_grid",
    "kronecker_transform",
    "loftq",
    "logit_loss",
    "lookup_codes",
    "lookup_tables",
    "loss_importance",
    "lsq",
    "lsq_code",
    "lsq_gradient",
    "lsq_init",
    "min_max",
    "moderate_score",
    "moment_leaf",
    "moment_merge",
    "moment_total",
    "name",
    "nearest_level",
    "nest_patch",
    "normal_float",
    "objective",
    "optimal_search",
    "optimality_bound",
    "optimum",
    "orthogonal_factor",
    "outlier_measures",
    "pack",
    "philox_integers",
    "philox_normal",
    "philox_uniform",
    "philox_words",
    "pool_modules",
    "power_eigenvalues",
    "product_path",
    "project_rows",
    "qkr_attention",
    "qkr_grad",
    "qkr_weight",
    "quantize",
    "quantize_activations",
    "quantize_adapter",
    "quantize_blocks",
    "quantize_scale",
    "random_hadamard",
    "random_orthogonal",
    "random_score",
    "rank_cost",
    "ranking_loss",
    "reallocate_ranks",
    "recency_moment",
    "requantize_codes",
    "residual_damage",
    "residual_moment",
    "rotate_block",
    "rotate_ends",
    "rotate_inputs",
    "rotate_outputs",
    "round_clip",
    "round_half_even",
    "round_table",
    "row_bits",
    "scale_grad",
    "scale_grad_tokens",
    "scaled_svd_patch",
    "score_loss",
    "search_problem",
    "select_coreset",
    "sparsegpt",
    "start_oscillation",
    "stationarity",
    "statsq",
    "statsq_grad",
    "straight_through",
    "subspace_overlap",
    "svd_patch",
    "table_gradient",
    "table_layer_norm",
    "table_objective",
    "table_softmax",
    "threshold_ranks",
    "to_numpy",
    "token_loss",
    "track_oscillation",
    "trainable_scales",
    "tune_step",
    "twn",
    "twn_code",
    "unpack",
    "verify_table",
    "wanda",
]

name = "numba"
compute_dtype = "float32"
device = "cpu"


def asarray(x: npt.NDArray[Any], /) -> npt.NDArray[Any]:
    """NumPy → the backend's own array, which is the same array."""
    return np.asarray(x)


def to_numpy(x: npt.NDArray[Any], /) -> npt.NDArray[Any]:
    """The backend's own array → NumPy, which is the same array."""
    return np.asarray(x)


class NumbaBackend:
    """The operations of this module, run on at most ``threads`` threads; made by :func:`configure`.

    Attributes:
        name: "numba".
        compute_dtype: "float32", the precision of sums when inputs are float32.
        device: "cpu".
        threads: largest number of threads an operation uses.
        kernels: "auto", or "portable" where no kernel may need instructions of its own.
    """

    def __init__(self, threads: int | None = None, kernels: str = "auto") -> None:
        if kernels not in ("auto", "portable"):
            raise ValueError(f"kernels must be 'auto' or 'portable', got {kernels!r}")
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise ValueError(f"threads must be None or a positive integer, got {threads!r}")
        self.name, self.compute_dtype, self.device = name, compute_dtype, device
        self.threads = threads or default_threads()
        self.kernels = kernels

    asarray = staticmethod(asarray)
    to_numpy = staticmethod(to_numpy)

    def __getattr__(self, operation: str) -> Any:
        if operation not in (*operations(), "product_path"):
            raise AttributeError(f"the numba backend has no {operation!r}")
        function = globals()[operation]

        @functools.wraps(function)
        def run(*args: Any, **options: Any) -> Any:
            with limited_to(self.threads), portable_kernels(self.kernels == "portable"):
                return function(*args, **options)

        return run

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *operations()]

    def __repr__(self) -> str:
        return f"<lowbit numba backend, {self.threads} threads>"


def configure(threads: int | None = None, kernels: str = "auto") -> NumbaBackend:
    """The same operations, limited to ``threads`` threads (None: ``NUMBA_NUM_THREADS``, else the CPUs allowed).

    ``kernels="portable"`` keeps off the kernel of ``bcq_product`` that needs AVX-512, for measuring and testing the
    other one; :func:`product_path` tells which one runs. Nothing global changes: other callers keep their choice.
    """
    return NumbaBackend(threads, kernels)
