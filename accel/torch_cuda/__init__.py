"""The Torch backend: every operation of the contract on torch tensors of any device.

>>> import lowbit, numpy as np
>>> torch_backend = lowbit.load("torch")
>>> torch_backend.round_half_even(torch_backend.asarray(np.array([0.5, 1.5, -0.5]))).tolist()
[0.0, 2.0, -0.0]

The module itself is the backend on the CPU; :func:`configure` gives it another device or choice of kernels.
"""

from __future__ import annotations

from .backend import TorchBackend, configure

_cpu = TorchBackend()

name = _cpu.name
compute_dtype = _cpu.compute_dtype
device = _cpu.device
asarray = _cpu.asarray
to_numpy = _cpu.to_numpy
supports = _cpu.supports

philox_words = _cpu.philox_words
philox_uniform = _cpu.philox_uniform
philox_integers = _cpu.philox_integers
philox_normal = _cpu.philox_normal

round_half_even = _cpu.round_half_even
round_clip = _cpu.round_clip
nearest_level = _cpu.nearest_level

fit_grid = _cpu.fit_grid
clip_search = _cpu.clip_search
quantize = _cpu.quantize
dequantize = _cpu.dequantize
pack = _cpu.pack
unpack = _cpu.unpack
dequantize_packed = _cpu.dequantize_packed

normal_float = _cpu.normal_float
dynamic_float = _cpu.dynamic_float
block_scale = _cpu.block_scale
quantize_blocks = _cpu.quantize_blocks
dequantize_blocks = _cpu.dequantize_blocks
quantize_scale = _cpu.quantize_scale
dequantize_scale = _cpu.dequantize_scale
codebook_matmul = _cpu.codebook_matmul
loftq = _cpu.loftq

twn_code = _cpu.twn_code
twn = _cpu.twn
clamped_uniform = _cpu.clamped_uniform
min_max = _cpu.min_max
straight_through = _cpu.straight_through
statsq = _cpu.statsq
statsq_grad = _cpu.statsq_grad
start_oscillation = _cpu.start_oscillation
track_oscillation = _cpu.track_oscillation
boundary_statistics = _cpu.boundary_statistics
cga_mask = _cpu.cga_mask
cga_step = _cpu.cga_step
qkr_weight = _cpu.qkr_weight
qkr_grad = _cpu.qkr_grad
qkr_attention = _cpu.qkr_attention

lsq_init = _cpu.lsq_init
lsq_code = _cpu.lsq_code
lsq = _cpu.lsq
lsq_gradient = _cpu.lsq_gradient

bcq = _cpu.bcq
bcq_refit = _cpu.bcq_refit
bcq_assign = _cpu.bcq_assign
bcq_weight = _cpu.bcq_weight
bcq_from_grid = _cpu.bcq_from_grid
bcq_pack = _cpu.bcq_pack
bcq_unpack = _cpu.bcq_unpack
lookup_tables = _cpu.lookup_tables
bcq_product = _cpu.bcq_product
trainable_scales = _cpu.trainable_scales
scale_grad = _cpu.scale_grad
scale_grad_tokens = _cpu.scale_grad_tokens
tune_step = _cpu.tune_step
fit_scales = _cpu.fit_scales

row_bits = _cpu.row_bits
allocate_bits = _cpu.allocate_bits
project_rows = _cpu.project_rows

inverse_cholesky = _cpu.inverse_cholesky
gptq = _cpu.gptq
sparsegpt = _cpu.sparsegpt
wanda = _cpu.wanda

moment_leaf = _cpu.moment_leaf
moment_merge = _cpu.moment_merge
moment_total = _cpu.moment_total
recency_moment = _cpu.recency_moment
svd_patch = _cpu.svd_patch
scaled_svd_patch = _cpu.scaled_svd_patch

objective = _cpu.objective
eora = _cpu.eora
error_spectrum = _cpu.error_spectrum
optimum = _cpu.optimum
eora_published = _cpu.eora_published
eora_certified = _cpu.eora_certified
stationarity = _cpu.stationarity
quantize_adapter = _cpu.quantize_adapter
residual_moment = _cpu.residual_moment
dora_magnitude = _cpu.dora_magnitude
dora_norm = _cpu.dora_norm
factored_norm = _cpu.factored_norm
dora_weight = _cpu.dora_weight
dora_forward = _cpu.dora_forward
dora_gradient = _cpu.dora_gradient
dora_merge = _cpu.dora_merge
dora_unmerge = _cpu.dora_unmerge
dvora_factors = _cpu.dvora_factors
dvora_gradient = _cpu.dvora_gradient
decomposition_change = _cpu.decomposition_change
dora_to_lora = _cpu.dora_to_lora

explained_error = _cpu.explained_error
residual_damage = _cpu.residual_damage
subspace_overlap = _cpu.subspace_overlap
gradient_importance = _cpu.gradient_importance
loss_importance = _cpu.loss_importance
rank_cost = _cpu.rank_cost
allocate_greedy = _cpu.allocate_greedy
threshold_ranks = _cpu.threshold_ranks
allocate_threshold = _cpu.allocate_threshold
allocate_proportional = _cpu.allocate_proportional
allocation_objective = _cpu.allocation_objective
allocation_bound = _cpu.allocation_bound
pool_modules = _cpu.pool_modules
reallocate_ranks = _cpu.reallocate_ranks
nest_patch = _cpu.nest_patch

hadamard_matrix = _cpu.hadamard_matrix
hadamard_transform = _cpu.hadamard_transform
kronecker_transform = _cpu.kronecker_transform
random_hadamard = _cpu.random_hadamard
orthogonal_factor = _cpu.orthogonal_factor
random_orthogonal = _cpu.random_orthogonal
fuse_norm = _cpu.fuse_norm
rotate_inputs = _cpu.rotate_inputs
rotate_outputs = _cpu.rotate_outputs
rotate_block = _cpu.rotate_block
rotate_ends = _cpu.rotate_ends
outlier_measures = _cpu.outlier_measures
quantize_activations = _cpu.quantize_activations
activation_clip = _cpu.activation_clip
error_vector_score = _cpu.error_vector_score
disagreement_score = _cpu.disagreement_score
acs_score = _cpu.acs_score
select_coreset = _cpu.select_coreset
el2n_score = _cpu.el2n_score
grand_score = _cpu.grand_score
forgetting_score = _cpu.forgetting_score
moderate_score = _cpu.moderate_score
contextual_diversity = _cpu.contextual_diversity
k_center = _cpu.k_center
herding = _cpu.herding
random_score = _cpu.random_score

fit_chords = _cpu.fit_chords
fit_segments = _cpu.fit_segments
round_table = _cpu.round_table
integer_table = _cpu.integer_table
evaluate_table = _cpu.evaluate_table
evaluate_codes = _cpu.evaluate_codes
lookup_codes = _cpu.lookup_codes
requantize_codes = _cpu.requantize_codes
table_gradient = _cpu.table_gradient
evaluate_ranges = _cpu.evaluate_ranges
table_softmax = _cpu.table_softmax
table_layer_norm = _cpu.table_layer_norm
verify_table = _cpu.verify_table
genome_fitness = _cpu.genome_fitness
genetic_search = _cpu.genetic_search
knot_grid = _cpu.knot_grid
search_problem = _cpu.search_problem
optimal_search = _cpu.optimal_search
optimality_bound = _cpu.optimality_bound
table_objective = _cpu.table_objective
logit_loss = _cpu.logit_loss
token_loss = _cpu.token_loss
feature_loss = _cpu.feature_loss
score_loss = _cpu.score_loss
attention_map_loss = _cpu.attention_map_loss
ranking_loss = _cpu.ranking_loss
cover_length = _cpu.cover_length
attention_range = _cpu.attention_range
attention_norms = _cpu.attention_norms
power_eigenvalues = _cpu.power_eigenvalues

__all__ = [
    "TorchBackend",
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
    "clip_search",
    "codebook_matmul",
    "compute_dtype",
    "configure",
    "contextual_diversity",
    "cover_length",
    "decomposition_change",
    "dequantize",
    "dequantize_blocks",
    "dequantize_packed",
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
    "gptq",
    "gradient_importance",
    "grand_score",
    "hadamard_matrix",
    "hadamard_transform",
    "herding",
    "integer_table",
    "inverse_cholesky",
    "k_center",
    "kronecker_transform",
    "loftq",
    "logit_loss",
    "lookup_codes",
    "lookup_tables",
    "loss_importance",
    "moderate_score",
    "moment_leaf",
    "moment_merge",
    "moment_total",
    "name",
    "nearest_level",
    "nest_patch",
    "normal_float",
    "objective",
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
    "project_rows",
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
    "select_coreset",
    "sparsegpt",
    "stationarity",
    "subspace_overlap",
    "supports",
    "svd_patch",
    "table_gradient",
    "table_layer_norm",
    "table_softmax",
    "threshold_ranks",
    "to_numpy",
    "token_loss",
    "trainable_scales",
    "tune_step",
    "unpack",
    "verify_table",
    "wanda",
]
