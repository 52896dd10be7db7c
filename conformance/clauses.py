"""The numbered clauses of the specification, and the decorator that ties a test to one of them.

A clause has an id (``Q-3``; a letter refines it, ``Q-3a``), a tier of comparison, a level and the operations it
needs. Ids never change their meaning within one ``SPEC_VERSION``. The normative text of a clause is the docstring of
the operation in :mod:`lowbit.reference`; the title here says in one line what is checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from .compare import Tier

__all__ = ["CLAUSES", "Check", "Clause", "ClauseError", "Level", "base_id", "chapters", "clause", "select"]

Level: TypeAlias = Literal["core", "full"]


def chapters() -> dict[str, str]:
    """Letter and title of every chapter, in reading order, from the contract."""
    from lowbit.reference import protocol  # not above: frozen vectors are judged without the specification

    return {**protocol.CHAPTERS, "A": "the contract itself"}


class ClauseError(ValueError):
    """An id that no clause has, or a test that contradicts the registry."""


@dataclass(frozen=True, slots=True)
class Clause:
    """One numbered rule of the specification."""

    id: str  # "Q-3a": chapter letter, number, refinement
    title: str  # what is checked, in one line
    level: Level  # core: every backend that has the operations; full: also the published variants and corner cases
    tier: Tier  # how results are compared
    ops: tuple[str, ...] = ()  # operations without which the clause is "not implemented"; empty: whatever there is

    @property
    def chapter(self) -> str:
        """Letter of the chapter, a key of :func:`chapters`."""
        return self.id[0]


_BLOCKS = "block_scale quantize_blocks dequantize_blocks"
_SCORES = "error_vector_score disagreement_score"
_FRONTIER = "choice_frontier"
_SPECTRUM = "divergence_spectrum"
_TRACKING = "start_oscillation track_oscillation"

_TABLE: tuple[tuple[str, str, Level, Tier, str], ...] = (  # operations as words
    # -- P
    ("P-1", "Philox4x32-10 gives its known answers", "core", "exact", "philox_words"),
    ("P-1a", "words are a function of seed and address, of any shape", "core", "exact", "philox_words"),
    ("P-2", "uniforms are the high 24 bits of the words", "core", "exact", "philox_uniform"),
    ("P-3", "bounded integers are the high half of a product", "core", "exact", "philox_integers"),
    ("P-4", "normals are the Box-Muller transform of the words", "core", "forward-error", "philox_normal"),
    # -- R
    ("R-1", "rounds half to even, on any shape", "core", "exact", "round_half_even"),
    ("R-2", "rounds and saturates into int32, infinities included", "core", "exact", "round_clip"),
    ("R-3", "finds the nearest level", "core", "tie-band", "nearest_level"),
    ("R-3a", "an exact midpoint goes to the lower level", "core", "exact", "nearest_level"),
    # -- Q
    ("Q-1", "codes use the whole range of a width and a scheme, and no more", "core", "exact", "quantize"),
    ("Q-2", "asymmetric grid: scale and zero point", "core", "forward-error", "fit_grid"),
    ("Q-2a", "symmetric grids: the three conventions", "core", "forward-error", "fit_grid"),
    ("Q-2b", "a scale depends on its own tensor, row, token or group only", "core", "exact", "fit_grid"),
    ("Q-2c", "the scale is rounded into scale_dtype before the zero point", "full", "tie-band", "fit_grid"),
    ("Q-2d", "the range floor acts before the clip ratio", "full", "forward-error", "fit_grid"),
    ("Q-3", "codes differ only inside the tie band", "core", "tie-band", "quantize"),
    ("Q-3a", "ties of x / s go to the even code, by division", "core", "exact", "quantize"),
    ("Q-3b", "each scale covers its own consecutive columns", "core", "exact", "quantize dequantize"),
    ("Q-4", "dequantized value is scale times (code minus zero point)", "core", "forward-error", "dequantize"),
    ("Q-5", "clip search finds the smallest error of its candidates", "full", "certificate", "clip_search"),
    ("Q-5a", "equal errors: the larger clip ratio wins", "full", "exact", "clip_search"),
    ("Q-6", "dense packing: one bit stream, little end first", "core", "exact", "pack unpack"),
    ("Q-7", "padded packing: 32 // bits codes in a word", "full", "exact", "pack unpack"),
    ("Q-8", "degenerate groups have a usable grid and zeros stay zero", "core", "exact", "fit_grid"),
    # -- N
    ("N-1", "NormalFloat levels are the quantiles of the formula", "core", "forward-error", "normal_float"),
    ("N-1a", "dynamic levels are those of the formula", "full", "forward-error", "dynamic_float"),
    ("N-2", "a block's scale is its largest magnitude", "core", "exact", "block_scale"),
    ("N-2a", "blocks run over the flattened array, across rows, and the last may be short", "core", "exact", _BLOCKS),
    ("N-3", "codes differ only inside the band of a midpoint", "core", "tie-band", "quantize_blocks"),
    ("N-3a", "midpoints go to the lower level, by division", "core", "exact", "quantize_blocks"),
    ("N-3b", "a block of zeros has scale 0, a code, and comes back as zeros", "core", "exact", _BLOCKS),
    ("N-4", "a value is its level times its block's scale", "core", "forward-error", "dequantize_blocks"),
    ("N-5", "scales are quantized around their mean", "full", "tie-band", "quantize_scale"),
    ("N-5a", "scales are restored around their mean", "full", "forward-error", "dequantize_scale"),
    ("N-6", "the packed product is that of the dequantized weight", "core", "forward-error", "codebook_matmul"),
    ("N-6a", "the packed product at every width, blocks across rows", "full", "forward-error", "codebook_matmul"),
    ("N-7", "LoftQ quantizes what the patch before leaves", "core", "tie-band", "loftq"),
    ("N-7a", "LoftQ's patch is the best for its weight", "core", "certificate", "loftq"),
    ("N-7b", "LoftQ tells the errors and keeps the smallest", "core", "forward-error", "loftq"),
    ("N-7c", "the scaling of the adapter divides B", "full", "forward-error", "loftq"),
    ("N-7d", "LoftQ with the published uniform quantizer", "full", "tie-band", "loftq"),
    # -- T
    ("T-1", "ternary codes: large values and their mean magnitude", "core", "tie-band", "twn_code"),
    ("T-1a", "a magnitude equal to the threshold is not above it", "core", "exact", "twn_code"),
    ("T-1b", "zeros are answered with zeros", "core", "exact", ""),
    ("T-2", "ternary values are scale times code", "core", "tie-band", "twn"),
    ("T-2a", "statistics are those of the own tensor, row or matrix", "core", "exact", ""),
    ("T-2b", "the clip acts before the statistics", "core", "exact", ""),
    ("T-3", "clamped uniform: levels of the mean large magnitude", "core", "tie-band", "clamped_uniform"),
    ("T-3a", "the outermost level, published and bounded", "core", "forward-error", "clamped_uniform"),
    ("T-3b", "ties inside the clamped grid go to the even code", "core", "exact", "clamped_uniform"),
    ("T-4", "min-max values are the nearest of equally spaced ones", "core", "tie-band", "min_max"),
    ("T-4a", "ties go to the even code and extremes come back", "core", "exact", "min_max"),
    ("T-5", "gradients pass strictly inside the clip", "core", "exact", "straight_through"),
    # -- S
    ("S-1", "first steps and offsets: four published rules", "core", "forward-error", "lsq_init"),
    ("S-1a", "a group of zeros has the step 1", "core", "exact", "lsq_init"),
    ("S-2", "codes are clamped and rounded quotients", "core", "tie-band", "lsq_code"),
    ("S-2a", "ties of a quotient go to the even code", "core", "exact", "lsq_code"),
    ("S-2b", "a step at or below epsilon counts as epsilon", "core", "exact", "lsq"),
    ("S-2c", "a step serves its own index of the axis only", "core", "exact", "lsq lsq_gradient"),
    ("S-3", "values are codes times the step, plus the offset", "core", "tie-band", "lsq"),
    ("S-4", "gradients of inputs pass inside the range", "core", "tie-band", "lsq_gradient"),
    ("S-4a", "the ends of the range are inside", "core", "exact", "lsq_gradient"),
    ("S-5", "gradients of steps in closed form", "core", "forward-error", "lsq_gradient"),
    ("S-5a", "gradients are scaled by the count, as named", "core", "forward-error", "lsq_gradient"),
    ("S-5b", "gradients of steps pass through epsilon", "full", "exact", "lsq_gradient"),
    ("S-6", "gradients of offsets come from outside the range", "full", "forward-error", "lsq_gradient"),
    # -- O
    ("O-1", "StatsQ codes: the nearest of 2^bits levels", "core", "tie-band", "statsq"),
    ("O-1a", "its scale is twice the mean magnitude", "core", "forward-error", "statsq"),
    ("O-1b", "its values are half a step above the codes", "core", "forward-error", "statsq"),
    ("O-1c", "thresholds that are hit go half to even", "core", "exact", "statsq"),
    ("O-2", "no level beyond those of the width, in any precision", "core", "exact", "statsq"),
    ("O-2a", "a row of zeros stays zero", "core", "exact", "statsq"),
    ("O-3", "the straight-through gradient, clipped weights included", "core", "exact", "statsq_grad"),
    ("O-3a", "the gradient through the scale alone", "full", "forward-error", "statsq_grad"),
    ("O-4", "oscillations are changes against the last change", "core", "exact", _TRACKING),
    ("O-4a", "weights that oscillate too often freeze, for good", "core", "exact", _TRACKING),
    ("O-4b", "running means of oscillations and codes", "core", "forward-error", "track_oscillation"),
    ("O-5", "weights near a threshold, and their gradients", "full", "forward-error", "boundary_statistics"),
    ("O-6", "annealing trains what is near a threshold", "core", "tie-band", "cga_mask"),
    ("O-6a", "both ends are inside; which thresholds count", "full", "exact", "cga_mask"),
    ("O-7", "frozen weights stay to the last bit", "core", "exact", "cga_step"),
    ("O-7a", "active weights take a step of AdamW", "core", "forward-error", "cga_step"),
    ("O-8", "the query-key product, head by head", "core", "forward-error", "qkr_weight"),
    ("O-8a", "its gradient reaches the latent weights", "core", "forward-error", "qkr_grad"),
    ("O-8b", "freezing in product space, or not at all", "full", "forward-error", "qkr_grad"),
    ("O-9", "attention by the product is attention", "core", "forward-error", "qkr_attention"),
    ("O-9a", "the query bias, kept or dropped", "core", "forward-error", "qkr_attention"),
    ("O-9b", "quantizers act on the tensors of their names", "full", "forward-error", "qkr_attention"),
    # -- B
    ("B-1", "greedy: sign of the residual, mean of its magnitude", "core", "forward-error", "bcq"),
    ("B-1a", "the sign of zero is plus one, and zeros are scaled by zero", "core", "exact", "bcq"),
    ("B-1b", "a code depends on its own run of columns only", "core", "exact", "bcq"),
    ("B-2", "refined greedy solves all scales after every plane", "full", "forward-error", "bcq"),
    ("B-3", "a round assigns nearest levels, then solves the scales", "core", "forward-error", "bcq"),
    ("B-3a", "no round raises the error; scales end positive, descending", "core", "certificate", "bcq"),
    ("B-4", "scales of given codes solve the normal equations", "core", "forward-error", "bcq_refit"),
    ("B-4a", "dependent planes get the scales of least norm", "full", "forward-error", "bcq_refit"),
    ("B-5", "a code is that of the nearest level", "core", "tie-band", "bcq_assign"),
    ("B-5a", "a midpoint goes to the larger level", "core", "exact", "bcq_assign"),
    ("B-6", "a value is the signed sum of the scales", "core", "forward-error", "bcq_weight"),
    ("B-7", "a uniform grid becomes a binary code of the same codes", "core", "exact", "bcq_from_grid"),
    ("B-8", "planes hold one bit per weight, rows fastest", "core", "exact", "bcq_pack bcq_unpack"),
    ("B-9", "tables hold every signed sum", "full", "forward-error", "lookup_tables"),
    ("B-10", "the product is that of the weight", "core", "forward-error", "bcq_product"),
    ("B-10a", "bits beyond the columns are not looked at", "core", "exact", "bcq_product bcq_unpack"),
    # -- U
    ("U-1", "which scales train: first, largest, all", "core", "exact", "trainable_scales"),
    ("U-1a", "of equally large scales the lower plane trains", "full", "exact", "trainable_scales"),
    ("U-2", "gradient of a scale: signed sum over its group", "core", "forward-error", "scale_grad"),
    ("U-2a", "mean divides the gradient by the group size", "core", "forward-error", "scale_grad"),
    ("U-2b", "plane i is bit i, and 1 is +1", "core", "exact", "scale_grad"),
    ("U-3", "the same gradient from inputs and errors", "core", "forward-error", "scale_grad_tokens"),
    ("U-4", "AdamW on the scales, decaying to their start", "core", "forward-error", "tune_step"),
    ("U-4a", "frozen scales and their state stay to the last bit", "core", "exact", "tune_step"),
    ("U-5", "fitted scales make the output error stationary", "core", "forward-error", "fit_scales"),
    ("U-5a", "scales that do not train come back unchanged", "core", "exact", "fit_scales"),
    ("U-5b", "of all fits the nearest: equal planes share", "full", "forward-error", "fit_scales"),
    ("U-5c", "what is no second moment fits no scales", "core", "exact", "fit_scales"),
    # -- M
    ("M-1", "clusters of words by frequency, the largest to the rarest", "core", "exact", "row_bits"),
    ("M-1a", "equally frequent words go by id", "core", "exact", "row_bits"),
    ("M-2", "steepest steps first; one that does not fit is shortened", "core", "exact", "allocate_bits"),
    ("M-2a", "convex errors and equal steps reach the optimum", "core", "certificate", "allocate_bits"),
    ("M-2b", "equal slopes go to the lower block and the nearer width", "core", "exact", "allocate_bits"),
    ("M-2c", "the lower bound is below every allocation", "full", "certificate", "allocate_bits"),
    ("M-3", "each row is the greedy code of its own width", "core", "exact", "project_rows"),
    ("M-3a", "projected values of general rows", "core", "forward-error", "project_rows"),
    ("M-3b", "zeros of either sign are on the positive side", "core", "exact", "project_rows"),
    ("M-3c", "refined and alternating projections come closer", "full", "certificate", "project_rows"),
    # -- G
    ("G-1", "upper Cholesky factor of the damped inverse", "core", "forward-error", "inverse_cholesky"),
    ("G-1a", "dead columns are found and repaired", "core", "exact", "inverse_cholesky"),
    ("G-2", "each code is the rounding of the updated weight", "core", "tie-band", "gptq"),
    ("G-2a", "the loss is half the damped quadratic form", "core", "forward-error", "gptq"),
    ("G-2b", "the weight is what the codes stand for", "core", "forward-error", "gptq"),
    ("G-2c", "dead columns become zero and do not disturb the others", "core", "tie-band", "gptq"),
    ("G-3", "act-order goes by the descending diagonal, ties by lower index", "full", "exact", "gptq"),
    ("G-3a", "static groups keep the grids of the un-updated weight", "full", "tie-band", "gptq"),
    ("G-3b", "groups under act-order are runs of visited columns", "full", "tie-band", "gptq"),
    ("G-4", "group grids come from current or block-start weights, as asked", "full", "tie-band", "gptq"),
    ("G-4a", "the grid of a row may come from the clip search", "full", "tie-band", "gptq clip_search"),
    ("G-5", "SparseGPT prunes the smallest saliencies, then updates", "full", "tie-band", "sparsegpt"),
    ("G-5a", "SparseGPT prunes the lower index of equal saliencies", "full", "exact", "sparsegpt"),
    ("G-5b", "SparseGPT quantizes the survivors in the same pass", "full", "tie-band", "sparsegpt"),
    ("G-6", "Wanda prunes the smallest abs(w) times root moment", "core", "tie-band", "wanda"),
    ("G-6a", "Wanda prunes the lower index of equal scores", "core", "exact", "wanda"),
    # -- C
    ("C-1", "a leaf sums outer products and magnitudes", "core", "forward-error", "moment_leaf"),
    ("C-1a", "a leaf is float64 and exactly symmetric", "core", "exact", "moment_leaf"),
    ("C-2", "bytes of a merge do not depend on its order", "core", "exact", "moment_leaf moment_merge"),
    ("C-2a", "the total is the mean over all tokens", "core", "forward-error", "moment_leaf moment_merge moment_total"),
    ("C-2b", "overlapping and empty sets are refused", "core", "exact", "moment_leaf moment_merge"),
    ("C-3", "recency weighting as published", "full", "forward-error", "recency_moment"),
    ("C-4", "a truncated SVD is the best patch", "core", "certificate", "svd_patch"),
    ("C-4a", "the singular values are split as asked", "full", "forward-error", "svd_patch"),
    ("C-5", "the scaled SVD is the best patch in scaled columns", "full", "certificate", "scaled_svd_patch"),
    ("C-5a", "a channel of scale zero gets no patch", "full", "exact", "scaled_svd_patch"),
    # -- E
    ("E-1", "the objective is tr(D C Dᵀ)", "core", "forward-error", "objective"),
    ("E-1a", "what is no second moment has no objective and no optimum", "core", "exact", "objective optimum"),
    ("E-2", "EoRA reaches the optimum", "core", "certificate", "eora"),
    ("E-2a", "EoRA projects the error, off the range of C too", "full", "forward-error", "eora"),
    ("E-3", "the error spectrum, descending", "core", "forward-error", "error_spectrum"),
    ("E-3a", "the optimum is the tail of the squared spectrum", "core", "forward-error", "optimum"),
    ("E-4", "the published recipe reaches its optimum", "full", "certificate", "eora_published"),
    ("E-4a", "the published policy for negative eigenvalues", "full", "certificate", "eora_published"),
    ("E-4b", "an exact zero eigenvalue is refused or truncated", "full", "exact", "eora_published"),
    ("E-5", "the certified lower bound is below the optimum", "full", "certificate", "eora_certified"),
    ("E-5a", "the certified objective is honest and within tolerance", "full", "certificate", "eora_certified"),
    ("E-5b", "the certificate holds where solvers iterate", "full", "certificate", "eora_certified"),
    ("E-6", "stationarity residuals are those of the first-order conditions", "full", "forward-error", "stationarity"),
    ("E-7", "the adapter is quantized factor by factor", "full", "tie-band", "quantize_adapter"),
    ("E-8", "what a patch with its best B leaves of the moment", "full", "forward-error", "residual_moment"),
    ("E-8a", "it is symmetric and as dead as the moment, no more", "full", "exact", "residual_moment"),
    (
        "E-8b",
        "what is no second moment leaves nothing, and judges no patch",
        "core",
        "exact",
        "residual_moment quantize_adapter stationarity",
    ),
    # -- F
    ("F-1", "the divergence is half of tr(G D C Dᵀ)", "core", "forward-error", "divergence"),
    (
        "F-1a",
        "what is no second moment has no divergence",
        "core",
        "exact",
        "divergence divergence_spectrum divergence_patch",
    ),
    ("F-2", "its spectrum under damping, descending, as long as the smaller side", "core", "forward-error", _SPECTRUM),
    ("F-3", "the patch reaches the least divergence of its rank", "core", "certificate", "divergence_patch"),
    ("F-3a", "its bound is below the optimum, its objective honest", "full", "certificate", "divergence_patch"),
    ("F-3b", "outputs that nothing depends on get no patch, inputs never seen do", "full", "exact", "divergence_patch"),
    ("F-4", "labels follow the distribution, at their addresses", "core", "tie-band", "draw_labels"),
    ("F-4a", "a label does not depend on how positions are grouped", "full", "exact", "draw_labels"),
    # -- K
    ("K-1", "shares of a squared spectrum", "core", "forward-error", "explained_error"),
    ("K-1a", "damage relative to the output; x/0 and 0/0", "core", "forward-error", "residual_damage"),
    ("K-2", "overlap of leading output subspaces", "full", "forward-error", "subspace_overlap"),
    ("K-2a", "what is no second moment has no directions", "core", "exact", "subspace_overlap nest_patch"),
    ("K-3", "importance from output gradients", "full", "forward-error", "gradient_importance"),
    ("K-3a", "importance from measured losses", "full", "forward-error", "loss_importance"),
    ("K-4", "price of a rank in parameters and in bytes", "core", "exact", "rank_cost"),
    ("K-5", "greedy buys most error per price, and stops", "core", "tie-band", "allocate_greedy"),
    ("K-5a", "greedy: ties to the lower module; stop and fill", "core", "exact", "allocate_greedy"),
    ("K-5b", "no allocation that spends as little leaves less", "core", "certificate", "allocate_greedy"),
    ("K-6", "smallest rank that explains a share", "core", "tie-band", "threshold_ranks"),
    ("K-6a", "threshold buys by rising share", "core", "tie-band", "allocate_threshold"),
    ("K-6b", "threshold: ties to the lower module; stop and fill", "core", "exact", "allocate_threshold"),
    ("K-7", "proportional buys by rising factor", "core", "tie-band", "allocate_proportional"),
    ("K-7a", "proportional: ties to the lower module; stop and fill", "core", "exact", "allocate_proportional"),
    ("K-8", "weighted error that an allocation leaves", "core", "forward-error", "allocation_objective"),
    ("K-8a", "lower bound of all allocations", "full", "forward-error", "allocation_bound"),
    ("K-9", "modules that share a rank, as one module", "full", "forward-error", "pool_modules"),
    ("K-10", "re-allocation moves ranks by a step at most", "full", "exact", "reallocate_ranks"),
    ("K-11", "every prefix of a nested patch is the best of its rank", "full", "certificate", "nest_patch"),
    ("K-11a", "nesting changes no product; the split is as asked", "full", "forward-error", "nest_patch"),
    ("K-11b", "EoRA patches are nested", "full", "certificate", "eora"),
    ("K-12", "the frontier of all choices is convex and its vertices are choices", "core", "forward-error", _FRONTIER),
    ("K-13", "choices within the budget that lose least", "core", "certificate", "allocate_choices"),
    (
        "K-13a",
        "the bound of choices holds, and is near, where many modules are",
        "full",
        "certificate",
        "allocate_choices",
    ),
    # -- D
    ("D-1", "the magnitude is the norm of an output's weights", "core", "forward-error", "dora_magnitude"),
    ("D-2", "the norm is that of the updated row, cancellation included", "core", "forward-error", "dora_norm"),
    ("D-2a", "nothing changes at the start, to the last bit", "core", "exact", "dora_magnitude dora_norm"),
    ("D-3", "the factored norm is summed in float64", "full", "forward-error", "factored_norm"),
    ("D-4", "the weight has the magnitude asked for and the direction of V", "core", "forward-error", "dora_weight"),
    ("D-4a", "a zero row stays zero and disturbs no other", "core", "exact", "dora_weight"),
    ("D-5", "the base sees x, the update sees x after dropout", "core", "forward-error", "dora_forward"),
    ("D-5a", "the output of a zero row is its bias", "core", "forward-error", "dora_forward"),
    ("D-6", "the gradient with the norm detached", "core", "forward-error", "dora_gradient"),
    ("D-6a", "the full gradient, through the norm", "full", "forward-error", "dora_gradient"),
    ("D-6b", "a zero row learns through B, not through m", "core", "forward-error", "dora_gradient"),
    ("D-7", "unmerging undoes merging", "core", "forward-error", "dora_merge dora_unmerge"),
    ("D-7a", "an erased row cannot be unmerged", "full", "exact", "dora_unmerge"),
    ("D-8", "DVoRA scales the rows of both factors", "full", "forward-error", "dvora_factors dvora_gradient"),
    ("D-9", "changes of magnitude and direction", "full", "forward-error", "decomposition_change"),
    ("D-10", "the refit is the nearest patch, and its residual is told", "full", "certificate", "dora_to_lora"),
    # -- H
    ("H-1", "Hadamard matrices of every construction", "core", "exact", "hadamard_matrix"),
    ("H-1a", "orders without a construction are refused", "core", "exact", "hadamard_matrix"),
    ("H-2", "the transform is the product with the matrix", "core", "forward-error", "hadamard_transform"),
    ("H-2a", "the transform of integers of order 4^t is exact", "core", "exact", "hadamard_transform"),
    ("H-2b", "the transform takes other tables", "full", "forward-error", "kronecker_transform"),
    ("H-3", "random Hadamard rotations have addressed signs", "core", "exact", "random_hadamard"),
    ("H-4", "QR with a positive diagonal", "core", "forward-error", "orthogonal_factor"),
    ("H-4a", "Haar rotations are factors of addressed normals", "core", "forward-error", "random_orthogonal"),
    ("H-5", "a norm's gain moves into the columns", "core", "forward-error", "fuse_norm"),
    ("H-6", "inputs are rotated in float64, block by block", "core", "forward-error", "rotate_inputs"),
    ("H-6a", "outputs and biases are rotated by the transpose", "core", "forward-error", "rotate_outputs"),
    ("H-7", "R1, R2 per key-value head, and R4 in a block", "core", "forward-error", "rotate_block"),
    ("H-7a", "embedding and head are rotated apart", "core", "forward-error", "rotate_ends"),
    ("H-8", "excess kurtosis and peak of every token", "core", "forward-error", "outlier_measures"),
    ("H-9", "activations are quantized token by token", "core", "tie-band", "quantize_activations"),
    ("H-9a", "activation codes do not know the scale", "core", "exact", "quantize_activations"),
    ("H-10", "the clip ratio of activations has the least error", "full", "certificate", "activation_clip"),
    # -- L
    ("L-1", "chords meet the function at every knot", "core", "forward-error", "fit_chords"),
    ("L-2", "a dead piece is zero and disturbs no other", "core", "exact", "fit_chords"),
    ("L-3", "no straight line of a piece is nearer to its samples", "full", "certificate", "fit_segments"),
    ("L-4", "slopes and intercepts are rounded half to even, each alone", "core", "exact", "round_table"),
    ("L-5", "saturation is counted, and off unless asked for", "core", "exact", "round_table"),
    ("L-6", "a scale rounds breakpoints and shifts intercepts", "core", "exact", "integer_table"),
    ("L-7", "the value is that of the piece", "core", "forward-error", "evaluate_table"),
    ("L-8", "both rules for an input on a breakpoint", "core", "exact", "evaluate_table evaluate_codes"),
    ("L-9", "integer codes are evaluated in integers", "core", "exact", "evaluate_codes"),
    ("L-10", "integers and floats agree to the last bit", "core", "exact", "evaluate_table evaluate_codes"),
    ("L-11", "one entry per code", "core", "exact", "lookup_codes"),
    ("L-12", "accumulators are shifted half to even and clipped", "core", "exact", "requantize_codes"),
    ("L-13", "gradients are those of the function", "full", "forward-error", "table_gradient"),
    ("L-14", "1/x and 1/√x on every range", "full", "forward-error", "evaluate_ranges"),
    ("L-15", "ranges are a power of two apart, even for 1/√x", "full", "exact", "evaluate_ranges"),
    ("L-16", "softmax of codes in integers", "full", "exact", "table_softmax"),
    ("L-17", "layer norm of codes in integers", "full", "exact", "table_layer_norm"),
    ("L-18", "the error of a table at every code", "full", "forward-error", "verify_table"),
    ("L-19", "wrong turns and signs of a table are counted", "full", "exact", "verify_table"),
    # -- L, searches
    ("L-20", "fitness of a genome, as published", "core", "forward-error", "genome_fitness"),
    ("L-20a", "the order of genes does not matter", "core", "exact", "genome_fitness"),
    ("L-21", "a genetic search with addressed draws", "full", "trajectory", "genetic_search"),
    ("L-21a", "all 64 bits of a seed count", "full", "exact", "genetic_search"),
    ("L-22", "a genetic search with the published draws", "full", "trajectory", "genetic_search"),
    ("L-23", "the grid of knots", "core", "exact", "knot_grid"),
    ("L-24", "samples of a search, and their side of every knot", "core", "exact", "search_problem"),
    ("L-25", "no table on the knots is better", "core", "certificate", "optimal_search"),
    ("L-25a", "from two on, more entries are never worse", "core", "certificate", "optimal_search"),
    ("L-25b", "the lines are rounded chords of their knots", "core", "forward-error", "optimal_search"),
    ("L-26", "potentials prove the optimum", "full", "certificate", "optimal_search optimality_bound"),
    ("L-26a", "the bound of any potentials", "full", "forward-error", "optimality_bound"),
    ("L-27", "objective of any table", "core", "forward-error", "table_objective"),
    # -- X
    ("X-1", "error-vector score of any logits", "core", "forward-error", "error_vector_score"),
    ("X-1a", "confident samples keep their digits", "core", "forward-error", "error_vector_score"),
    ("X-1b", "a score depends on its own sample alone, to the last bit", "core", "exact", f"{_SCORES} acs_score"),
    ("X-2", "disagreement score of any logits", "core", "forward-error", "disagreement_score"),
    ("X-2a", "equal and shifted logits do not disagree at all", "core", "exact", "disagreement_score"),
    ("X-2b", "scores are at most the root of two and obey the triangle", "core", "certificate", _SCORES),
    ("X-3", "the mix of both scores under every schedule", "core", "forward-error", "acs_score"),
    ("X-3a", "ends of the schedule are one score alone", "core", "exact", f"acs_score {_SCORES}"),
    ("X-4", "the best samples of all, best first", "core", "exact", "select_coreset"),
    ("X-4a", "the best samples of every class, class after class", "core", "exact", "select_coreset"),
    ("X-4b", "equal scores go to the lower index", "core", "exact", "select_coreset"),
    ("X-4c", "budgets are rounded half to even", "core", "exact", "select_coreset"),
    ("X-5", "EL2N is the mean over models", "core", "forward-error", "el2n_score"),
    ("X-5a", "EL2N of raw logits, as published", "full", "forward-error", "el2n_score"),
    ("X-6", "GraNd is the norm of the outer product", "core", "forward-error", "grand_score"),
    ("X-6a", "GraNd of the mean over batches, as published", "full", "forward-error", "grand_score"),
    ("X-7", "forgetting events, and samples never learnt", "core", "exact", "forgetting_score"),
    ("X-8", "distance from the class against the median", "core", "forward-error", "moderate_score"),
    ("X-8a", "the other centre and the other references", "full", "forward-error", "moderate_score"),
    ("X-9", "symmetric divergence of all pairs", "core", "forward-error", "contextual_diversity"),
    ("X-9a", "zeros need an epsilon, equal rows are at 0", "core", "exact", "contextual_diversity"),
    ("X-10", "every new centre is the farthest", "core", "certificate", "k_center"),
    ("X-10a", "equally far samples go to the lower index", "core", "exact", "k_center"),
    ("X-11", "every new sample brings the mean nearest", "core", "certificate", "herding"),
    ("X-11a", "equally near samples go to the lower index", "core", "exact", "herding"),
    ("X-12", "scores by chance have addresses", "core", "exact", "random_score"),
    # -- W
    ("W-1", "soft cross-entropy of logits, mean over the batch", "core", "forward-error", "logit_loss"),
    ("W-1a", "the divergence lacks the teacher's entropy", "core", "forward-error", "logit_loss"),
    ("W-2", "the teacher's own loss weighs the tokens", "core", "forward-error", "token_loss"),
    ("W-2a", "skipped tokens are not read and get no gradient", "core", "exact", "token_loss"),
    ("W-3", "mean square difference, padding counted or not", "core", "forward-error", "feature_loss"),
    ("W-3a", "features beyond a length are not read", "core", "exact", "feature_loss"),
    ("W-4", "scores up to the floor are 0 in each network", "core", "forward-error", "score_loss"),
    ("W-4a", "causal scores are those up to the diagonal", "full", "forward-error", "score_loss"),
    ("W-5", "divergence of maps over valid rows and keys", "core", "forward-error", "attention_map_loss"),
    ("W-5a", "scores beyond a length are not read", "core", "exact", "attention_map_loss"),
    ("W-5b", "the floor cuts an entry's own term", "core", "forward-error", "attention_map_loss"),
    ("W-6", "pairs that the student orders otherwise", "full", "forward-error", "ranking_loss"),
    ("W-7", "places of the teacher's top keys in the student's order", "full", "forward-error", "cover_length"),
    ("W-7a", "equal probabilities are ordered by index", "full", "exact", "cover_length"),
    ("W-8", "least and largest feature of a token", "full", "exact", "attention_range"),
    ("W-9", "norms of transformed values, weighted by attention", "full", "forward-error", "attention_norms"),
    ("W-10", "value and residual are those of the vector", "full", "forward-error", "power_eigenvalues"),
    ("W-10a", "steps are those of the power iteration", "full", "forward-error", "power_eigenvalues"),
    ("W-10b", "an eigenvalue lies within the residual", "full", "certificate", "power_eigenvalues"),
    ("W-10c", "both rules to stop, and the count of steps", "full", "exact", "power_eigenvalues"),
    # -- A
    ("A-1", "inputs are never written", "core", "exact", ""),
    ("A-1a", "same call, same bytes; ambient random state is neither read nor moved", "core", "exact", ""),
    ("A-2", "strides are honoured", "core", "forward-error", ""),
    ("A-2a", "zero-size arrays are answered", "core", "exact", ""),
    ("A-2b", "results are arrays of the backend with the promised dtypes and fields", "core", "exact", ""),
    ("A-3", "wrong shapes and parameters are refused with SpecError", "core", "exact", ""),
    ("A-3a", "NumPy's integers, booleans and floats are the options that Python's are", "core", "exact", ""),
    ("A-3b", "matrices and masked arrays are refused", "core", "exact", ""),
    ("A-4", "NaN and infinity are refused, naming argument and position", "core", "exact", ""),
)

CLAUSES: dict[str, Clause] = {row[0]: Clause(*row[:4], tuple(row[4].split())) for row in _TABLE}
"""Every clause by id, in reading order."""


def base_id(identifier: str) -> str:
    """The id without its refinement: ``"Q-3a"`` → ``"Q-3"``."""
    return re.sub(r"[a-z]$", "", identifier)


def select(wanted: Iterable[str]) -> list[str]:
    """Ids meant by a list of ids, base ids (with their refinements) and chapter letters; all of them for an empty list.

    Raises:
        ClauseError: a word that names no clause.

    >>> select(["Q-3", "G-6a"])
    ['Q-3', 'Q-3a', 'Q-3b', 'G-6a']
    """
    wanted = list(wanted)
    chosen: set[str] = set()
    for word in wanted:
        found = [i for i in CLAUSES if word in (i, base_id(i), i[0])]
        if not found:
            raise ClauseError(f"no clause {word!r}; clauses are {', '.join(CLAUSES)}")
        chosen.update(found)
    return [i for i in CLAUSES if not wanted or i in chosen]


@dataclass(frozen=True, slots=True)
class Check:
    """One test of one clause: ``body(kit, **drawn)`` for every draw of ``inputs``, or once when there are none."""

    clause: Clause
    name: str
    body: Callable[..., None]
    inputs: dict[str, Any] = field(default_factory=dict)  # argument name → Hypothesis strategy, or values


class Runner(Protocol):
    """What runs a check; :class:`~lowbit.conformance.kit.Kit` in every suite."""

    def run(self, check: Check, /) -> object:
        """Run it over its examples and raise what fails."""
        ...


def clause(identifier: str, *, tier: Tier, **inputs: Any) -> Callable[[Callable[..., None]], Callable[[Runner], None]]:
    """Make a function ``f(kit, **drawn)`` a test of a clause.

    Args:
        identifier: id of the clause.
        tier: repeated from the registry, so that a reader of the test sees how it compares.
        inputs: Hypothesis strategies by argument name, or lists and tuples of which one item is drawn; the profile
            decides how many examples are drawn.

    Raises:
        ClauseError: unknown id, or another tier than the registry's.
    """
    if identifier not in CLAUSES:
        raise ClauseError(f"no clause {identifier!r}")
    entry = CLAUSES[identifier]
    if entry.tier != tier:
        raise ClauseError(f"clause {identifier} is in tier {entry.tier}, not {tier}")

    def decorate(body: Callable[..., None]) -> Callable[[Runner], None]:
        check = Check(entry, body.__name__, body, dict(inputs))

        def test(kit: Runner) -> None:
            __tracebackhide__ = True
            kit.run(check)

        test.__name__, test.__qualname__ = body.__name__, body.__qualname__
        test.__doc__, test.__module__ = body.__doc__, body.__module__
        test.__lowbit_check__ = check  # type: ignore[attr-defined]
        return test

    return decorate
