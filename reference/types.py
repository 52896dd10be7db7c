"""Results of the specification: named tuples with the shape beside each field.

Symbols used in every shape: a weight is ``(m, k)`` = (out, in), inputs are rows ``(T, k)`` = (tokens, in),
``r`` is a rank and ``G`` the number of scales along the input axis (1 for a row, ``k / group_size`` for groups).
``Arr`` is the array type of whoever computes: NumPy for the reference and Numba, ``torch.Tensor`` for Torch.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar

Arr = TypeVar("Arr")

Scheme: TypeAlias = Literal["asymmetric", "symmetric", "symmetric-full", "symmetric-gptq"]
Granularity: TypeAlias = Literal["tensor", "row", "token", "group"]
PackLayout: TypeAlias = Literal["dense", "padded"]
ScaleDtype: TypeAlias = Literal["float32", "float16", "bfloat16"]
GroupScales: TypeAlias = Literal["current", "block"]
EigenPolicy: TypeAlias = Literal["nvlabs", "truncate"]
Split: TypeAlias = Literal["balanced", "left"]
AdapterMethod: TypeAlias = Literal["rtn", "gptq"]
Leftover: TypeAlias = Literal["stop", "fill"]
Normalisation: TypeAlias = Literal["mean", "sum"]
DoraLayout: TypeAlias = Literal["linear", "transposed", "conv"]
CodebookQuantizer: TypeAlias = Literal["normal-float", "uniform"]
Iterate: TypeAlias = Literal["best", "last"]
BinaryMethod: TypeAlias = Literal["greedy", "refined", "alternating"]
ProductMethod: TypeAlias = Literal["auto", "lookup", "dequantize"]
Trained: TypeAlias = Literal["first", "largest", "all"]
ScaleNorm: TypeAlias = Literal["sum", "mean"]
Sharing: TypeAlias = Literal["tensor", "row", "matrix"]
MinMaxScheme: TypeAlias = Literal["symmetric", "asymmetric"]
Outermost: TypeAlias = Literal["published", "bounded"]
LsqCount: TypeAlias = Literal["elements", "features", "unscaled"]
LsqInit: TypeAlias = Literal["mean", "mean-doubled", "deviation", "min-max"]
TableTie: TypeAlias = Literal["left", "right"]
SearchDraws: TypeAlias = Literal["addressed", "published"]
SearchFit: TypeAlias = Literal["chord", "least_squares"]
SearchObjective: TypeAlias = Literal["mse", "max"]
TableFunction: TypeAlias = Literal["gelu", "hswish", "silu", "exp", "reciprocal", "rsqrt", "sigmoid", "tanh"]
Divergence: TypeAlias = Literal["cross-entropy", "kl"]
IgnoredTokens: TypeAlias = Literal["weigh", "skip"]
AcsSchedule: TypeAlias = Literal[
    "paper", "cosine", "linear", "quadratic", "sqrt", "half", "error-vector", "disagreement"
]
Outputs: TypeAlias = Literal["softmax", "logits"]
Kept: TypeAlias = Literal["largest", "smallest"]
NeverLearnt: TypeAlias = Literal["most", "zero"]
Center: TypeAlias = Literal["mean", "median"]
ModerateReference: TypeAlias = Literal["median", "class-median", "nothing"]
Metric: TypeAlias = Literal["euclidean", "symmetric-kl"]
PairRule: TypeAlias = Literal["published", "once"]
RowRule: TypeAlias = Literal["published", "all"]
EigenStop: TypeAlias = Literal["change", "residual"]
GradientPath: TypeAlias = Literal["straight-through", "scale"]
FreezeValue: TypeAlias = Literal["average", "current"]
Targets: TypeAlias = Literal["held", "rewritten"]
Thresholds: TypeAlias = Literal["all", "occupied"]
FrozenSpace: TypeAlias = Literal["product", "none"]
Biases: TypeAlias = Literal["kept", "dropped"]

SCHEMES: tuple[Scheme, ...] = ("asymmetric", "symmetric", "symmetric-full", "symmetric-gptq")
GRANULARITIES: tuple[Granularity, ...] = ("tensor", "row", "token", "group")
BINARY_METHODS: tuple[BinaryMethod, ...] = ("greedy", "refined", "alternating")
PRODUCT_METHODS: tuple[ProductMethod, ...] = ("auto", "lookup", "dequantize")
TRAINED: tuple[Trained, ...] = ("first", "largest", "all")
SHARINGS: tuple[Sharing, ...] = ("tensor", "row", "matrix")
MIN_MAX_SCHEMES: tuple[MinMaxScheme, ...] = ("symmetric", "asymmetric")
OUTERMOST: tuple[Outermost, ...] = ("published", "bounded")
LSQ_COUNTS: tuple[LsqCount, ...] = ("elements", "features", "unscaled")
LSQ_INITS: tuple[LsqInit, ...] = ("mean", "mean-doubled", "deviation", "min-max")
TABLE_TIES: tuple[TableTie, ...] = ("left", "right")
SEARCH_DRAWS: tuple[SearchDraws, ...] = ("addressed", "published")
SEARCH_FITS: tuple[SearchFit, ...] = ("chord", "least_squares")
SEARCH_OBJECTIVES: tuple[SearchObjective, ...] = ("mse", "max")
TABLE_FUNCTIONS: tuple[TableFunction, ...] = (
    "gelu", "hswish", "silu", "exp", "reciprocal", "rsqrt", "sigmoid", "tanh"
)  # fmt: skip
DIVERGENCES: tuple[Divergence, ...] = ("cross-entropy", "kl")
IGNORED_TOKENS: tuple[IgnoredTokens, ...] = ("weigh", "skip")
ACS_SCHEDULES: tuple[AcsSchedule, ...] = (
    "paper", "cosine", "linear", "quadratic", "sqrt", "half", "error-vector", "disagreement"
)  # fmt: skip
OUTPUTS: tuple[Outputs, ...] = ("softmax", "logits")
KEPT: tuple[Kept, ...] = ("largest", "smallest")
NEVER_LEARNT: tuple[NeverLearnt, ...] = ("most", "zero")
CENTERS: tuple[Center, ...] = ("mean", "median")
MODERATE_REFERENCES: tuple[ModerateReference, ...] = ("median", "class-median", "nothing")
METRICS: tuple[Metric, ...] = ("euclidean", "symmetric-kl")
PAIRS: tuple[PairRule, ...] = ("published", "once")
ROWS: tuple[RowRule, ...] = ("published", "all")
STOPS: tuple[EigenStop, ...] = ("change", "residual")
GRADIENT_PATHS: tuple[GradientPath, ...] = ("straight-through", "scale")
FREEZE_VALUES: tuple[FreezeValue, ...] = ("average", "current")
TARGETS: tuple[Targets, ...] = ("held", "rewritten")
THRESHOLDS: tuple[Thresholds, ...] = ("all", "occupied")
FROZEN_SPACES: tuple[FrozenSpace, ...] = ("product", "none")
BIASES: tuple[Biases, ...] = ("kept", "dropped")


class Purpose(IntEnum):
    """Last word of a counter: what a draw is for. Methods that share a seed never share a draw.  [P-1]"""

    SIGNS = 1  # of a random Hadamard rotation
    HAAR = 2  # normals behind a random orthogonal matrix
    INITIAL = 3  # first population, first centre, initial factors
    SELECT = 4  # of a genetic search
    CROSS = 5
    MUTATE = 6
    SAMPLE = 7  # choice of items from a list
    LABEL = 8  # of a position, from a model's own distribution


class Grid(NamedTuple, Generic[Arr]):
    """Affine grid x ≈ scale · (code − zero_point)."""

    scale: Arr  # float, (1,)*ndim for "tensor", (..., 1) for "row" and "token", (..., G) for "group"; always > 0
    zero_point: Arr  # int32, same shape; 0 for every symmetric scheme


class ClippedGrid(NamedTuple, Generic[Arr]):
    """Grid found by a clip search."""

    scale: Arr  # float, as in Grid
    zero_point: Arr  # int32, as in Grid
    step: Arr  # int32, same shape: the chosen ratio is 1 − step / grid


class DoubleScale(NamedTuple, Generic[Arr]):
    """Block scales that are quantized themselves: s ≈ offset + scale · level."""

    codes: Arr  # int32, (n,): one per scale, an index into the levels
    scale: Arr  # float, (⌈n / block_size⌉,)
    offset: Arr  # float, (): the mean of the scales


class TernaryCode(NamedTuple, Generic[Arr]):
    """Ternary code x ≈ scale · code."""

    codes: Arr  # int32, x's shape: −1, 0 or 1
    scale: Arr  # float, x's shape with shared axes of length 1; ≥ 0


class LsqStart(NamedTuple, Generic[Arr]):
    """Where the training of a step begins."""

    step: Arr  # float, (1,), or (n,) for steps along an axis of length n; > 0
    offset: Arr  # float, same shape


class LsqGradient(NamedTuple, Generic[Arr]):
    """Gradients of a learned-step quantizer."""

    x: Arr  # float, x's shape
    step: Arr  # float, (1,) or (n,)
    offset: Arr | None  # float, as step, or None without an offset


class StatsCode(NamedTuple, Generic[Arr]):
    """A weight on the levels of StatsQ."""

    values: Arr  # float, (..., m, k): scale · (codes + ½) / 2^(bits − 1)
    codes: Arr  # int32, (..., m, k): −2^(bits − 1) … 2^(bits − 1) − 1
    scale: Arr  # float, (1, ..., m, 1): 2 · mean |w|, 0 where all are 0


class Oscillation(NamedTuple, Generic[Arr]):
    """What an oscillation tracker knows of every weight after a step; all of one shape."""

    codes: Arr  # int32: the codes to use, frozen ones at their target
    direction: Arr  # int32: sign of the last change, 1 downwards, −1 upwards, 0 before the first
    frequency: Arr  # float, 0 … 1: running mean of oscillations
    total: Arr  # int32: oscillations so far
    average: Arr  # float: running mean of codes
    frozen: Arr  # bool: codes are pinned from the next step on
    target: Arr  # int32: where to, 0 for what is not frozen


class BoundaryStatistics(NamedTuple):
    """Weights near a quantization threshold, and sign changes of gradients."""

    near: int  # weights within the boundary range
    share: float  # of all, 0 … 1
    flips: float  # 0 … 1: share of those near whose gradient changed sign
    flips_elsewhere: float  # 0 … 1: share of the others


class AnnealedStep(NamedTuple, Generic[Arr]):
    """A weight after a masked step of training, with the state of the optimizer; all of one shape."""

    weight: Arr  # float
    first: Arr  # float: running mean of the gradient
    second: Arr  # float: running mean of its square


class QkrGradient(NamedTuple, Generic[Arr]):
    """Gradients of the latent weights behind a query-key product."""

    q: Arr  # float, (H·d, C)
    k: Arr  # float, (H·d, C)


class QkrQuantizers(NamedTuple):
    """What quantizes each tensor of a reparameterised attention: array → array of its shape, None for the identity.

    They take and give the arrays of whoever computes.
    """

    input: Callable[[Any], Any] | None = None  # x, (B, N, C)
    product: Callable[[Any], Any] | None = None  # stacked query-key product, (H·C, C)
    keys: Callable[[Any], Any] | None = None  # (B, N·H, C), row m·H + h
    attention: Callable[[Any], Any] | None = None  # softmax output, (B, H, N, N)
    value_weight: Callable[[Any], Any] | None = None  # (D, C)
    value: Callable[[Any], Any] | None = None  # (B, N, D)


class QkrCost(NamedTuple):
    """Multiply-accumulates of one sequence."""

    projection: int  # plain: queries and keys
    scores: int  # plain
    qkr_projection: int  # keys by the product
    qkr_scores: int
    qkr_product: int  # once a step, not per sequence


class BinaryCode(NamedTuple, Generic[Arr]):
    """Binary code w ≈ offset + Σ_i scale_i · b_i, b_i = ±1."""

    codes: Arr  # int32, (m, k): bit i is set where b_i = +1
    scale: Arr  # float, (m, G, q)
    offset: Arr | None  # float, (m, G), or None for 0


class PackedBinary(NamedTuple, Generic[Arr]):
    """A binary code as the product reads it: rows of the weight run fastest."""

    planes: Arr  # int32, (⌈k/32⌉, q, m): bit j mod 32 of word ⌊j/32⌋ is set where b = +1 at column j
    scale: Arr  # float, (G, q, m)
    offset: Arr | None  # float, (G, m), or None for 0


class TunedScales(NamedTuple, Generic[Arr]):
    """Scales of binary codes after a step of training, with the state of the optimizer."""

    scale: Arr  # float, (m, G, q)
    first: Arr  # float, same shape: running mean of the gradient
    second: Arr  # float, same shape: running mean of its square


class TaskSize(NamedTuple):
    """What a model and a task of its own take when linear layers are binary-coded."""

    full: int  # bytes of the model in float32
    compressed: int  # bytes with coded linear layers, everything else float32
    trainable: int  # scales that a task trains
    task: int  # bytes of those scales: what is swapped with the task


class BitAllocation(NamedTuple, Generic[Arr]):
    """Bits per block under a budget; lower_bound ≤ optimum ≤ error."""

    bits: Arr  # int32, (n,), 1 … Q
    size: int  # Σ size of each block at its bits, ≤ budget
    error: float  # Σ error of each block at its bits
    lower_bound: float  # no allocation within the budget is below this


class InverseFactor(NamedTuple, Generic[Arr]):
    """Upper Cholesky factor of a damped inverse Hessian."""

    factor: Arr  # float, (k, k), upper triangular U with inv(H + damp·I) = Uᵀ U
    dead: Arr  # bool, (k,), True where H_jj = 0


class QuantizedWeight(NamedTuple, Generic[Arr]):
    """Result of GPTQ."""

    codes: Arr  # int32, (m, k), columns in the original order
    scale: Arr  # float, (m, G)
    zero_point: Arr  # int32, (m, G)
    group_index: Arr  # int32, (k,): column j uses scale[:, group_index[j]]
    weight: Arr  # float, (m, k): scale · (codes − zero_point)
    loss: float  # Σ (w − q)² / (2 U_ii²)


class Pruned(NamedTuple, Generic[Arr]):
    """Result of a pruning rule without quantization."""

    weight: Arr  # float, (m, k), zero where mask is True
    mask: Arr  # bool, (m, k), True = pruned


class SparseWeight(NamedTuple, Generic[Arr]):
    """Result of SparseGPT, alone or joint with quantization."""

    weight: Arr  # float, (m, k), zero where mask is True
    mask: Arr  # bool, (m, k), True = pruned
    codes: Arr | None  # int32, (m, k), or None when bits is None
    scale: Arr | None  # float, (m, G), or None
    zero_point: Arr | None  # int32, (m, G), or None
    group_index: Arr | None  # int32, (k,), or None
    loss: float  # Σ (w − q)² / (2 U_ii²)


class MomentNode(NamedTuple, Generic[Arr]):
    """One node of the fixed summation tree: leaves [index·2^level, (index+1)·2^level)."""

    level: int
    index: int  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleMethodOverride]
    sum: Arr  # float64, (k, k): Σ xᵀx over the node's tokens
    magnitude: Arr  # float64, (k,): Σ |x| over the node's tokens
    tokens: int


class SecondMoment(NamedTuple, Generic[Arr]):
    """Folded statistics of all leaves of a moment set."""

    matrix: Arr  # float64, (k, k): Σ xᵀx / tokens
    magnitude: Arr  # float64, (k,): Σ |x| / tokens
    tokens: int


class LowRank(NamedTuple, Generic[Arr]):
    """Rank-r patch Ŵ + B A."""

    B: Arr  # float, (m, r)
    A: Arr  # float, (r, k)


class LoftQ(NamedTuple, Generic[Arr]):
    """Quantized weight and patch of LoftQ: W ≈ weight + scaling · B A, weight = offset + scale · level."""

    weight: Arr  # float, (m, k)
    codes: Arr  # int32, (m, k)
    scale: Arr  # float, (blocks,), blocks of the flattened weight; (1,) for the uniform quantizer
    offset: Arr  # float, as scale; 0 for codebooks
    B: Arr  # float, (m, r)
    A: Arr  # float, (r, k)
    errors: Arr  # float, (T,): ‖W − weight − patch‖_F after every iteration
    step: int  # the iteration returned, 1 … T


class Compensation(NamedTuple, Generic[Arr]):
    """Rank-r patch with a certificate: lower_bound ≤ optimum ≤ objective ≤ (1 + tolerance) · lower_bound."""

    B: Arr  # float, (m, r)
    A: Arr  # float, (r, k)
    objective: float  # tr[(D − BA) C (D − BA)ᵀ], of the factors returned
    lower_bound: float  # no rank-r patch can be below this
    method: str  # "exact" or "krylov"


class Stationarity(NamedTuple):
    """Relative residuals of the first-order conditions of eq. (1.1); both 0 at the optimum."""

    left: float  # ‖Bᵀ (D − BA) C‖ / (‖B‖ ‖D C‖)
    right: float  # ‖(D − BA) C Aᵀ‖ / (‖A‖ ‖D C‖)


class ChoiceFrontier(NamedTuple, Generic[Arr]):
    """Vertices of the least loss against cost, choices mixed."""

    cost: Arr  # float64, (S,), rising
    loss: Arr  # float64, (S,), falling


class Choices(NamedTuple, Generic[Arr]):
    """An option for every module, within a budget."""

    choice: Arr  # int32, (J,)
    cost: int  # at most the budget
    loss: float
    lower_bound: float  # no choice within the budget loses less


class DecoderBlock(NamedTuple, Generic[Arr]):
    """Weights of one decoder block with RMSNorm, without what no rotation changes: biases of q, k, gate and up."""

    input_norm: Arr  # float, (d,): gain of the norm before q, k and v
    q: Arr  # float, (h·d_h, d)
    k: Arr  # float, (h_kv·d_h, d)
    v: Arr  # float, (h_kv·d_h, d)
    o: Arr  # float, (d, h·d_h)
    post_norm: Arr  # float, (d,): gain of the norm before gate and up
    gate: Arr  # float, (f, d)
    up: Arr  # float, (f, d)
    down: Arr  # float, (d, f)
    v_bias: Arr | None = None  # float, (h_kv·d_h,)
    o_bias: Arr | None = None  # float, (d,)
    down_bias: Arr | None = None  # float, (d,)


class DecoderEnds(NamedTuple, Generic[Arr]):
    """Embedding and output head of a decoder, untied."""

    embedding: Arr  # float, (V, d)
    head: Arr  # float, (V', d)


class OutlierMeasures(NamedTuple, Generic[Arr]):
    """Spread of every token."""

    kurtosis: Arr  # float, (...): excess kurtosis, 0 for a Gaussian
    peak: Arr  # float, (...): largest magnitude ÷ root mean square


class QuantizedActivations(NamedTuple, Generic[Arr]):
    """Codes and grids of activations, quantized token by token."""

    codes: Arr  # int32, (..., k)
    scale: Arr  # float, (..., G)
    zero_point: Arr  # int32, (..., G)
    values: Arr  # float, (..., k): scale · (codes − zero_point)


class ActivationClip(NamedTuple, Generic[Arr]):
    """A clipping ratio for all tokens, and the error of every candidate."""

    ratio: float
    errors: Arr  # float64, (N,), in the order of the candidates 1, 1 − 1/grid, …


class QuantizedAdapter(NamedTuple, Generic[Arr]):
    """Both factors of a patch, quantized as ordinary linear layers."""

    B: QuantizedWeight[Arr]  # over (m, r)
    A: QuantizedWeight[Arr]  # over (r, k)


class RankPool(NamedTuple, Generic[Arr]):
    """Groups of modules that share a rank, each as one module."""

    spectra: Arr  # float, (T, R), descending rows: (Σ_{j in group} importance_j · s_j²)^½
    cost: Arr  # int32, (T,): price of one rank of every member
    low: Arr  # int32, (T,)
    high: Arr  # int32, (T,)


class DoraGradient(NamedTuple, Generic[Arr]):
    """Gradients of the trained parts of a DoRA layer."""

    B: Arr  # float, as b
    A: Arr  # float, as a
    magnitude: Arr  # float, (m,)


class DoraMerged(NamedTuple, Generic[Arr]):
    """A merged weight and what undoes the merge."""

    weight: Arr  # float, as w: diag(factor) (W + s B A)
    factor: Arr  # float, (m,): m / c, 1 where c = 0


class DvoraGradient(NamedTuple, Generic[Arr]):
    """Gradients of the two trained vectors of DVoRA."""

    row_scale: Arr  # float, (m,)
    rank_scale: Arr  # float, (r,)


class DecompositionChange(NamedTuple):
    """Mean change of magnitude and direction over the outputs of a layer."""

    magnitude: float  # ΔM ≥ 0
    direction: float  # ΔD, 0 to 2


class LoraRefit(NamedTuple, Generic[Arr]):
    """The nearest LoRA of a DoRA update."""

    B: Arr  # float, (m, rank)
    A: Arr  # float, (rank, k)
    residual: float  # ‖ΔW − B A‖_F
    update: float  # ‖ΔW‖_F


class Table(NamedTuple, Generic[Arr]):
    """Piecewise-linear function: slopes[i] · x + intercepts[i] between breakpoints[i − 1] and breakpoints[i]."""

    breakpoints: Arr  # float64, (n − 1,), ascending, equal ones allowed
    slopes: Arr  # float64, (n,)
    intercepts: Arr  # float64, (n,)
    saturated: int = 0  # coefficients that fixed point could not hold and that were clipped


class IntegerTable(NamedTuple, Generic[Arr]):
    """A table for codes of scale 2^−b, coefficients with f fraction bits; its values have the scale 2^−(f+b)."""

    breakpoints: Arr  # int32, (n − 1,), ascending: round(2^b p)
    slopes: Arr  # int32, (n,): 2^f K
    intercepts: Arr  # int32, (n,): 2^(f+b) B
    scale_bits: int  # b
    fraction_bits: int  # f


class TableGradient(NamedTuple, Generic[Arr]):
    """Straight-through gradients of a deployed table: those of the function itself."""

    codes: Arr  # float, as the codes
    scale: Arr  # float, ()


class TableReport(NamedTuple):
    """Exhaustive comparison of a table with exact values, code by code."""

    mse: float
    max_error: float
    worst: int  # first code of the largest error
    turns: int  # neighbouring codes between which the table goes down and the function up, or the reverse
    signs: int  # codes at which the table is negative and the function positive, or the reverse


class SearchProblem(NamedTuple, Generic[Arr]):
    """What a search of a table over a grid of knots sees: the function at the knots, and samples between them.

    Samples come in V views, one for every scale, one after the other and ascending in each.
    """

    knots: Arr  # float64, (M,): a sentinel, breakpoints to choose from, ascending, a sentinel
    values: Arr  # float64, (M,): the function there
    x: Arr  # float64, (n,)
    y: Arr  # float64, (n,): the function at x
    cuts: Arr  # int32, (V, M): samples cuts[v, i] … cuts[v, j] − 1 of view v lie between the knots i and j


class OptimalTable(NamedTuple, Generic[Arr]):
    """The best table with breakpoints among the knots, and the proof."""

    breakpoints: Arr  # float64, (n − 1,), ascending, equal ones allowed
    slopes: Arr  # float64, (n,)
    intercepts: Arr  # float64, (n,)
    objective: float
    potentials: Arr  # float64, (n + 1, M): least objective up to each knot, 0 where no breakpoint may be


class GeneticSearch(NamedTuple, Generic[Arr]):
    """Result of a genetic search: the best table of the last generation, and that generation."""

    breakpoints: Arr  # float64, (n − 1,), ascending
    slopes: Arr  # float64, (n,)
    intercepts: Arr  # float64, (n,)
    population: Arr  # float64, (P, n − 1): genomes of the last generation, each ascending
    fitness: Arr  # float64, (P,)
    best: Arr  # float64, (G + 1,): least fitness of every generation; it may rise, as nothing keeps the best genome


class LossGradient(NamedTuple, Generic[Arr]):
    """A distillation loss and its gradient with respect to the student."""

    loss: float
    gradient: Arr  # float, as student


class TokenRange(NamedTuple, Generic[Arr]):
    """Least and largest feature of every token."""

    low: Arr  # float, (n,)
    high: Arr  # float, (n,)


class AttentionNorms(NamedTuple, Generic[Arr]):
    """What each head does with each token, means over queries."""

    probability: Arr  # float, (H, n)
    value: Arr  # float, (H, n): norm of the transformed value
    weighted: Arr  # float, (H, n): norm of what attention takes from it


class Eigenvalues(NamedTuple, Generic[Arr]):
    """Eigenvalues by power iteration; one of the operator lies within residual / ‖vector‖ of each value."""

    value: Arr  # float, (count,)
    residual: Arr  # float, (count,)
    vector: Arr  # float, (count, p), rows of norm 1
    steps: Arr  # int32, (count,)
