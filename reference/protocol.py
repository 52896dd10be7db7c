"""The backend contract: one Protocol per chapter, satisfied by a plain module or any object.

Arrays are positional-only and of the backend's own type; options are keyword-only. A backend may leave out
operations ("not implemented" in a report); what it has must keep the clauses named in brackets. The normative text
of each operation is the docstring of the function of the same name in :mod:`lowbit.reference`.

Every operation: never writes to its inputs [A-1], accepts non-contiguous arrays [A-2], refuses bad arguments with
:class:`~lowbit.reference.errors.SpecError` before any work [A-3], and refuses NaN and infinities in weights,
errors and statistics naming the argument and the first position [A-4].

Floating results have the input's dtype, at least float32; codes are int32; masks are bool; moment nodes float64, and
so are random numbers and look-up tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy.typing as npt

from .types import (
    AcsSchedule,
    ActivationClip,
    AdapterMethod,
    AnnealedStep,
    AttentionNorms,
    Biases,
    BinaryCode,
    BinaryMethod,
    BitAllocation,
    BoundaryStatistics,
    Center,
    ClippedGrid,
    CodebookQuantizer,
    Compensation,
    DecoderBlock,
    DecoderEnds,
    DecompositionChange,
    Divergence,
    DoraGradient,
    DoraLayout,
    DoraMerged,
    DoubleScale,
    DvoraGradient,
    EigenPolicy,
    EigenStop,
    Eigenvalues,
    FreezeValue,
    FrozenSpace,
    GeneticSearch,
    GradientPath,
    Granularity,
    Grid,
    GroupScales,
    IgnoredTokens,
    IntegerTable,
    InverseFactor,
    Iterate,
    Kept,
    Leftover,
    LoftQ,
    LoraRefit,
    LossGradient,
    LowRank,
    LsqCount,
    LsqGradient,
    LsqInit,
    LsqStart,
    Metric,
    MinMaxScheme,
    ModerateReference,
    MomentNode,
    NeverLearnt,
    Normalisation,
    OptimalTable,
    Oscillation,
    Outermost,
    OutlierMeasures,
    Outputs,
    PackedBinary,
    PackLayout,
    PairRule,
    ProductMethod,
    Pruned,
    QkrGradient,
    QkrQuantizers,
    QuantizedActivations,
    QuantizedAdapter,
    QuantizedWeight,
    RankPool,
    RowRule,
    ScaleDtype,
    ScaleNorm,
    Scheme,
    SearchDraws,
    SearchFit,
    SearchObjective,
    SearchProblem,
    SecondMoment,
    Sharing,
    SparseWeight,
    Split,
    Stationarity,
    StatsCode,
    Table,
    TableFunction,
    TableGradient,
    TableReport,
    TableTie,
    Targets,
    TernaryCode,
    Thresholds,
    TokenRange,
    Trained,
    TunedScales,
)

Arr = TypeVar("Arr")


@runtime_checkable
class Backend(Protocol[Arr]):
    """What every backend says of itself; everything else is optional, chapter by chapter."""

    name: str  # short name for reports
    compute_dtype: str  # "float64" or "float32": the precision of sums when inputs are float32
    device: str  # "cpu", "cuda", ... for reports

    def asarray(self, x: npt.NDArray[Any], /) -> Arr:
        """NumPy → own array on the backend's device, same dtype and values."""
        ...

    def to_numpy(self, x: Arr, /) -> npt.NDArray[Any]:
        """Own array → NumPy, same dtype and values."""
        ...


class PhiloxOps(Protocol[Arr]):
    """Chapter P: counters (..., 4) → one value per word, a function of seed and address alone."""

    def philox_words(self, counters: Arr, /, *, seed: int) -> Arr: ...  # P-1 → int32 with the bits of the words
    def philox_uniform(self, counters: Arr, /, *, seed: int) -> Arr: ...  # P-2 → float64
    def philox_integers(self, counters: Arr, /, *, seed: int, bound: int) -> Arr: ...  # P-3 → int32
    def philox_normal(self, counters: Arr, /, *, seed: int) -> Arr: ...  # P-4 → float64


class RoundingOps(Protocol[Arr]):
    """Chapter R."""

    def round_half_even(self, x: Arr, /) -> Arr: ...  # R-1, any shape
    def round_clip(self, x: Arr, /, *, low: int, high: int) -> Arr: ...  # R-2 → int32
    def nearest_level(self, x: Arr, levels: Arr, /) -> Arr: ...  # R-3 → int32 index into levels (L,), ascending


class UniformOps(Protocol[Arr]):
    """Chapter Q: affine grids along the last axis, and packing."""

    def fit_grid(
        self,
        x: Arr,
        /,
        *,
        bits: int,
        scheme: Scheme = "asymmetric",
        granularity: Granularity = "row",
        group_size: int | None = None,
        clip_ratio: float = 1.0,
        include_zero: bool = True,
        range_floor: float = 0.0,
        scale_dtype: ScaleDtype | None = None,
    ) -> Grid[Arr]: ...

    def clip_search(
        self,
        x: Arr,
        /,
        *,
        bits: int,
        scheme: Scheme = "asymmetric",
        granularity: Granularity = "row",
        group_size: int | None = None,
        norm: float = 2.4,
        grid: int = 100,
        max_shrink: float = 0.8,
        range_floor: float = 0.0,
        scale_dtype: ScaleDtype | None = None,
    ) -> ClippedGrid[Arr]: ...

    def quantize(
        self, x: Arr, scale: Arr, zero_point: Arr, /, *, bits: int, scheme: Scheme = "asymmetric"
    ) -> Arr: ...  # Q-3 → int32 codes; scale broadcasts by groups along the last axis

    def dequantize(self, codes: Arr, scale: Arr, zero_point: Arr, /) -> Arr: ...  # Q-4, dtype of scale

    def pack(self, codes: Arr, /, *, bits: int, layout: PackLayout = "dense") -> Arr: ...
    def unpack(self, words: Arr, /, *, bits: int, length: int, layout: PackLayout = "dense") -> Arr: ...


class CodebookOps(Protocol[Arr]):
    """Chapter N, first half: levels from a table, scales by blocks of the flattened array."""

    def normal_float(self, *, bits: int, offset: float = 0.9677083) -> Arr: ...  # N-1 → float64 (2^b,), ascending
    def dynamic_float(self, *, bits: int) -> Arr: ...  # N-1a → float64 (2^b,), ascending
    def block_scale(self, x: Arr, /, *, block_size: int = 64) -> Arr: ...  # N-2 → (⌈n/B⌉,)
    def quantize_blocks(
        self, x: Arr, scale: Arr, levels: Arr, /, *, block_size: int = 64
    ) -> Arr: ...  # N-3 → int32 index into levels (L,)
    def dequantize_blocks(
        self, codes: Arr, scale: Arr, levels: Arr, /, *, block_size: int = 64
    ) -> Arr: ...  # N-4, dtype of scale
    def quantize_scale(self, scale: Arr, levels: Arr, /, *, block_size: int = 256) -> DoubleScale[Arr]: ...  # N-5
    def dequantize_scale(
        self, codes: Arr, scale: Arr, offset: Arr, levels: Arr, /, *, block_size: int = 256
    ) -> Arr: ...  # N-5a
    def codebook_matmul(
        self, x: Arr, words: Arr, scale: Arr, levels: Arr, /, *, bits: int, block_size: int = 64
    ) -> Arr: ...  # N-6 → (T, m)


class TernaryOps(Protocol[Arr]):
    """Chapter T: ternary and min-max fake quantizers; statistics over all of x, its last axis or its last two."""

    def twn_code(
        self, x: Arr, /, *, granularity: Sharing = "tensor", threshold: float = 0.7, clip: float | None = None
    ) -> TernaryCode[Arr]: ...  # T-1

    def twn(
        self, x: Arr, /, *, granularity: Sharing = "tensor", threshold: float = 0.7, clip: float | None = None
    ) -> Arr: ...  # T-2, x's shape

    def clamped_uniform(
        self,
        x: Arr,
        /,
        *,
        bits: int = 4,
        granularity: Sharing = "tensor",
        clip: float | None = None,
        outermost: Outermost = "published",
    ) -> Arr: ...  # T-3, x's shape

    def min_max(
        self,
        x: Arr,
        /,
        *,
        bits: int = 8,
        scheme: MinMaxScheme = "symmetric",
        granularity: Sharing = "tensor",
        clip: float | None = None,
        epsilon: float = 0.0,
    ) -> Arr: ...  # T-4, x's shape

    def straight_through(self, grad: Arr, x: Arr, /, *, clip: float | None) -> Arr: ...  # T-5, x's shape


class LearnedStepOps(Protocol[Arr]):
    """Chapter S: LSQ; one step for all of x, or for every index of an axis; offset None for 0."""

    def lsq_init(
        self, x: Arr, /, *, bits: int, signed: bool = True, axis: int | None = None, rule: LsqInit = "mean"
    ) -> LsqStart[Arr]: ...  # S-1

    def lsq_code(
        self,
        x: Arr,
        step: Arr,
        offset: Arr | None = None,
        /,
        *,
        bits: int,
        signed: bool = True,
        axis: int | None = None,
        epsilon: float = 0.0,
    ) -> Arr: ...  # S-2 → int32, x's shape

    def lsq(
        self,
        x: Arr,
        step: Arr,
        offset: Arr | None = None,
        /,
        *,
        bits: int,
        signed: bool = True,
        axis: int | None = None,
        epsilon: float = 0.0,
    ) -> Arr: ...  # S-3, x's shape

    def lsq_gradient(
        self,
        grad: Arr,
        x: Arr,
        step: Arr,
        offset: Arr | None = None,
        /,
        *,
        bits: int,
        signed: bool = True,
        axis: int | None = None,
        epsilon: float = 0.0,
        count: LsqCount = "elements",
    ) -> LsqGradient[Arr]: ...  # S-4, S-5, S-6


class OscillationOps(Protocol[Arr]):
    """Chapter O: StatsQ, weights that oscillate, and query-key reparameterisation."""

    def statsq(self, w: Arr, /, *, bits: int) -> StatsCode[Arr]: ...  # O-1, O-2; w (..., m, k), one scale per m
    def statsq_grad(
        self, w: Arr, grad: Arr, /, *, bits: int, path: GradientPath = "straight-through"
    ) -> Arr: ...  # O-3, as w

    def start_oscillation(self, codes: Arr, /) -> Oscillation[Arr]: ...  # O-4, float32
    def track_oscillation(
        self,
        codes: Arr,
        previous: Arr,
        direction: Arr,
        frequency: Arr,
        total: Arr,
        average: Arr,
        frozen: Arr,
        target: Arr,
        /,
        *,
        momentum: float = 0.01,
        threshold: float | None = None,
        freeze_to: FreezeValue = "average",
        targets: Targets = "held",
    ) -> Oscillation[Arr]: ...  # O-4; the codes of this step, then the state of the last one

    def boundary_statistics(
        self,
        w: Arr,
        grad: Arr,
        previous: Arr,
        /,
        *,
        bits: int,
        boundary_range: float = 0.005,
        thresholds: Thresholds = "all",
    ) -> BoundaryStatistics: ...  # O-5

    def cga_mask(
        self, w: Arr, /, *, bits: int, boundary_range: float = 0.005, thresholds: Thresholds = "all"
    ) -> Arr: ...  # O-6 → bool as w

    def cga_step(
        self,
        w: Arr,
        grad: Arr,
        first: Arr,
        second: Arr,
        active: Arr,
        /,
        *,
        step: int,
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        decay: float = 0.0,
    ) -> AnnealedStep[Arr]: ...  # O-7

    def qkr_weight(self, w_q: Arr, w_k: Arr, /, *, heads: int) -> Arr: ...  # O-8, (H·d, C) twice → (H·C, C)
    def qkr_grad(
        self,
        w_q: Arr,
        w_k: Arr,
        grad: Arr,
        active: Arr | None = None,
        /,
        *,
        heads: int,
        freeze: FrozenSpace = "product",
    ) -> QkrGradient[Arr]: ...  # O-8a, O-8b

    def qkr_attention(
        self,
        x: Arr,
        w_q: Arr,
        w_k: Arr,
        w_v: Arr,
        b_q: Arr | None = None,
        b_v: Arr | None = None,
        /,
        *,
        heads: int,
        biases: Biases = "kept",
        quantizers: QkrQuantizers | None = None,
    ) -> Arr: ...  # O-9: x (B, N, C) → (B, N, D)


class BinaryOps(Protocol[Arr]):
    """Chapter B: binary codes w ≈ Σ ± scale, their packed planes, and the product that looks sums up."""

    def bcq(
        self,
        w: Arr,
        /,
        *,
        bits: int,
        group_size: int | None = None,
        method: BinaryMethod = "alternating",
        rounds: int = 15,
        offset: bool = False,
    ) -> BinaryCode[Arr]: ...  # B-1, B-2, B-3

    def bcq_refit(
        self, w: Arr, codes: Arr, /, *, bits: int, group_size: int | None = None, offset: bool = False
    ) -> BinaryCode[Arr]: ...  # B-4

    def bcq_assign(self, w: Arr, scale: Arr, offset: Arr | None, /) -> Arr: ...  # B-5 → int32 (m, k)
    def bcq_weight(self, codes: Arr, scale: Arr, offset: Arr | None, /) -> Arr: ...  # B-6 → (m, k), dtype of scale

    def bcq_from_grid(
        self, codes: Arr, scale: Arr, zero_point: Arr, /, *, bits: int, scheme: Scheme = "asymmetric"
    ) -> BinaryCode[Arr]: ...  # B-7

    def bcq_pack(self, codes: Arr, scale: Arr, offset: Arr | None, /) -> PackedBinary[Arr]: ...  # B-8
    def bcq_unpack(self, planes: Arr, scale: Arr, offset: Arr | None, /, *, length: int) -> BinaryCode[Arr]: ...  # B-8

    def lookup_tables(self, x: Arr, /, *, width: int = 8, half: bool = False) -> Arr: ...  # B-9

    def bcq_product(
        self, x: Arr, planes: Arr, scale: Arr, offset: Arr | None, /, *, method: ProductMethod = "auto"
    ) -> Arr: ...  # B-10: (t, k) → (t, m)


class ScaleTuningOps(Protocol[Arr]):
    """Chapter U: AlphaTuning. Codes (m, k) integers, plane i in bit i; scale (m, G, q)."""

    def trainable_scales(self, scale: Arr, /, *, train: Trained = "first") -> Arr: ...  # U-1 → bool (m, G, q)
    def scale_grad(
        self, grad: Arr, codes: Arr, /, *, bits: int, group_size: int | None = None, norm: ScaleNorm = "sum"
    ) -> Arr: ...  # U-2 → (m, G, q)
    def scale_grad_tokens(
        self, x: Arr, delta: Arr, codes: Arr, /, *, bits: int, group_size: int | None = None, norm: ScaleNorm = "sum"
    ) -> Arr: ...  # U-3 → (m, G, q)
    def tune_step(
        self,
        scale: Arr,
        grad: Arr,
        initial: Arr,
        first: Arr,
        second: Arr,
        trainable: Arr,
        /,
        *,
        step: int,
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        decay: float = 0.0,
    ) -> TunedScales[Arr]: ...  # U-4
    def fit_scales(self, w: Arr, c: Arr, codes: Arr, scale: Arr, trainable: Arr, /) -> Arr: ...  # U-5 → (m, G, q)


class MixedPrecisionOps(Protocol[Arr]):
    """Chapter M: bits by word frequency and by sensitivity."""

    def row_bits(self, counts: Arr, /, *, clusters: int, ratio: int = 1) -> Arr: ...  # M-1 → int32 (v,)
    def allocate_bits(self, errors: Arr, sizes: Arr, /, *, budget: int) -> BitAllocation[Arr]: ...  # M-2
    def project_rows(
        self, w: Arr, bits: Arr, /, *, method: BinaryMethod = "greedy", rounds: int = 15
    ) -> Arr: ...  # M-3 → (m, k)


class GptqOps(Protocol[Arr]):
    """Chapter G: second-order compression."""

    def inverse_cholesky(self, h: Arr, /, *, damping: float = 0.01) -> InverseFactor[Arr]: ...  # G-1

    def gptq(
        self,
        w: Arr,
        h: Arr,
        /,
        *,
        bits: int,
        scheme: Scheme = "asymmetric",
        group_size: int | None = None,
        act_order: bool = False,
        static_groups: bool = False,
        group_scales: GroupScales = "current",
        clip_search: bool = False,
        range_floor: float = 0.0,
        block_size: int = 128,
        damping: float = 0.01,
        scale_dtype: ScaleDtype | None = None,
    ) -> QuantizedWeight[Arr]: ...  # G-2, G-3, G-4

    def sparsegpt(
        self,
        w: Arr,
        h: Arr,
        /,
        *,
        keep: int = 2,
        of: int = 4,
        bits: int | None = None,
        scheme: Scheme = "asymmetric",
        group_size: int | None = None,
        group_scales: GroupScales = "current",
        block_size: int = 128,
        damping: float = 0.01,
        scale_dtype: ScaleDtype | None = None,
    ) -> SparseWeight[Arr]: ...  # G-5

    def wanda(self, w: Arr, feature_moment: Arr, /, *, keep: int = 2, of: int = 4) -> Pruned[Arr]: ...  # G-6


class MomentOps(Protocol[Arr]):
    """Chapter C, first half: second moments of activations, exactly associative."""

    def moment_leaf(self, x: Arr, /, *, index: int) -> tuple[MomentNode[Arr], ...]: ...  # C-1
    def moment_merge(
        self, left: Sequence[MomentNode[Arr]], right: Sequence[MomentNode[Arr]], /
    ) -> tuple[MomentNode[Arr], ...]: ...  # C-2
    def moment_total(self, nodes: Sequence[MomentNode[Arr]], /) -> SecondMoment[Arr]: ...  # C-2
    def recency_moment(self, batches: Sequence[Arr], /, *, total: int) -> Arr: ...  # C-3: (b, T, k) each → (k, k)


class LowRankOps(Protocol[Arr]):
    """Chapter C, second half: patches that ignore or only scale by the activations."""

    def svd_patch(self, d: Arr, /, *, rank: int, split: Split = "balanced") -> LowRank[Arr]: ...  # C-4
    def scaled_svd_patch(
        self, d: Arr, channel_scale: Arr, /, *, rank: int, split: Split = "balanced"
    ) -> LowRank[Arr]: ...  # C-5


class LoftqOps(Protocol[Arr]):
    """Chapter N, second half: quantization and a patch by turns."""

    def loftq(
        self,
        w: Arr,
        /,
        *,
        rank: int,
        bits: int = 4,
        quantizer: CodebookQuantizer = "normal-float",
        block_size: int = 64,
        iterations: int = 5,
        keep: Iterate = "best",
        scaling: float = 1.0,
    ) -> LoftQ[Arr]: ...  # N-7


class EigenspaceOps(Protocol[Arr]):
    """Chapter E: EoRA."""

    def objective(self, d: Arr, c: Arr, /) -> float: ...  # E-1
    def eora(self, d: Arr, c: Arr, /, *, rank: int, split: Split = "balanced") -> LowRank[Arr]: ...  # E-2
    def error_spectrum(self, d: Arr, c: Arr, /) -> Arr: ...  # E-3 → (min(m, k),), descending
    def optimum(self, d: Arr, c: Arr, /, *, rank: int) -> float: ...  # E-3
    def eora_published(
        self, d: Arr, c: Arr, /, *, rank: int, policy: EigenPolicy = "truncate"
    ) -> LowRank[Arr]: ...  # E-4
    def eora_certified(
        self, d: Arr, c: Arr, /, *, rank: int, tolerance: float = 1e-6, split: Split = "balanced"
    ) -> Compensation[Arr]: ...  # E-5
    def stationarity(self, d: Arr, c: Arr, b: Arr, a: Arr, /) -> Stationarity: ...  # E-6
    def quantize_adapter(
        self,
        b: Arr,
        a: Arr,
        c: Arr,
        /,
        *,
        bits: int,
        method: AdapterMethod = "gptq",
        scheme: Scheme = "asymmetric",
        group_size: int | None = None,
        damping: float = 0.01,
        scale_dtype: ScaleDtype | None = None,
    ) -> QuantizedAdapter[Arr]: ...  # E-7
    def residual_moment(self, c: Arr, a: Arr, /) -> Arr: ...  # E-8 → (k, k)


class RankBudgetOps(Protocol[Arr]):
    """Chapter K: ranks under a budget. ``ranks``, ``cost``, ``low``, ``high`` and ``group`` are integers (J,)."""

    def explained_error(self, spectra: Arr, /) -> Arr: ...  # K-1 → (J, R + 1)
    def residual_damage(self, spectra: Arr, energy: Arr, /) -> Arr: ...  # K-1 → (J, R + 1)
    def subspace_overlap(self, w: Arr, w_hat: Arr, c: Arr, /, *, rank: int) -> Arr: ...  # K-2 → (rank,)
    def gradient_importance(self, gradient: Arr, /, *, normalisation: Normalisation = "mean") -> float: ...  # K-3
    def loss_importance(self, losses: Arr, spectra: Arr, /, *, base: float) -> Arr: ...  # K-3 → (J,)
    def rank_cost(self, shapes: Arr, /, *, bits: int | None = None) -> Arr: ...  # K-4 → int32 (J,)
    def allocate_greedy(
        self,
        spectra: Arr,
        importance: Arr,
        cost: Arr,
        low: Arr,
        high: Arr,
        /,
        *,
        budget: int,
        multiple: int = 1,
        leftover: Leftover = "stop",
    ) -> Arr: ...  # K-5 → int32 (J,)
    def threshold_ranks(
        self, spectra: Arr, low: Arr, high: Arr, /, *, threshold: float, multiple: int = 1
    ) -> Arr: ...  # K-6 → int32 (J,)
    def allocate_threshold(
        self,
        spectra: Arr,
        cost: Arr,
        low: Arr,
        high: Arr,
        /,
        *,
        budget: int,
        multiple: int = 1,
        leftover: Leftover = "stop",
    ) -> Arr: ...  # K-6 → int32 (J,)
    def allocate_proportional(
        self,
        sensitivity: Arr,
        cost: Arr,
        low: Arr,
        high: Arr,
        /,
        *,
        budget: int,
        multiple: int = 1,
        leftover: Leftover = "stop",
    ) -> Arr: ...  # K-7 → int32 (J,)
    def allocation_objective(self, spectra: Arr, importance: Arr, ranks: Arr, /) -> float: ...  # K-8
    def allocation_bound(
        self, spectra: Arr, importance: Arr, cost: Arr, low: Arr, high: Arr, /, *, budget: int, multiple: int = 1
    ) -> float: ...  # K-8
    def pool_modules(
        self, spectra: Arr, importance: Arr, cost: Arr, low: Arr, high: Arr, group: Arr, /
    ) -> RankPool[Arr]: ...  # K-9
    def reallocate_ranks(
        self,
        kept: Arr,
        residual: Arr,
        importance: Arr,
        cost: Arr,
        low: Arr,
        high: Arr,
        ranks: Arr,
        /,
        *,
        budget: int,
        step: int,
        multiple: int = 1,
        hysteresis: float = 0.0,
    ) -> Arr: ...  # K-10 → int32 (J,)
    def nest_patch(self, b: Arr, a: Arr, c: Arr, /, *, split: Split = "balanced") -> LowRank[Arr]: ...  # K-11


class DoraOps(Protocol[Arr]):
    """Chapter D: DoRA; arrays in the order of eq. (2.3), stored as ``layout`` says."""

    def dora_magnitude(self, w: Arr, /, *, layout: DoraLayout = "linear") -> Arr: ...  # D-1 → (m,)
    def dora_norm(
        self, w: Arr, b: Arr, a: Arr, /, *, scaling: float, layout: DoraLayout = "linear"
    ) -> Arr: ...  # D-2 → (m,)
    def factored_norm(self, w: Arr, square_norm: Arr, b: Arr, a: Arr, /, *, scaling: float) -> Arr: ...  # D-3 → (m,)

    def dora_weight(
        self, w: Arr, b: Arr, a: Arr, magnitude: Arr, /, *, scaling: float, layout: DoraLayout = "linear"
    ) -> Arr: ...  # D-4 → as w

    def dora_forward(
        self,
        x: Arr,
        dropped: Arr,
        w: Arr,
        bias: Arr,
        b: Arr,
        a: Arr,
        magnitude: Arr,
        /,
        *,
        scaling: float,
        layout: DoraLayout = "linear",
    ) -> Arr: ...  # D-5 → (..., m)

    def dora_gradient(
        self,
        grad: Arr,
        w: Arr,
        b: Arr,
        a: Arr,
        magnitude: Arr,
        /,
        *,
        scaling: float,
        detach: bool = True,
        layout: DoraLayout = "linear",
    ) -> DoraGradient[Arr]: ...  # D-6

    def dora_merge(
        self, w: Arr, b: Arr, a: Arr, magnitude: Arr, /, *, scaling: float, layout: DoraLayout = "linear"
    ) -> DoraMerged[Arr]: ...  # D-7

    def dora_unmerge(
        self, merged: Arr, b: Arr, a: Arr, factor: Arr, /, *, scaling: float, layout: DoraLayout = "linear"
    ) -> Arr: ...  # D-7 → as merged

    def dvora_factors(self, b: Arr, a: Arr, row_scale: Arr, rank_scale: Arr, /) -> LowRank[Arr]: ...  # D-8
    def dvora_gradient(self, grad_b: Arr, grad_a: Arr, b: Arr, a: Arr, /) -> DvoraGradient[Arr]: ...  # D-8
    def decomposition_change(self, w: Arr, start: Arr, /) -> DecompositionChange: ...  # D-9
    def dora_to_lora(
        self, w: Arr, b: Arr, a: Arr, magnitude: Arr, /, *, scaling: float, rank: int
    ) -> LoraRefit[Arr]: ...  # D-10


class RotationOps(Protocol[Arr]):
    """Chapter H: Hadamard transforms and rotations; operations without an array answer on the backend's device."""

    def hadamard_matrix(self, *, order: int) -> Arr: ...  # H-1 → int32 (n, n)
    def hadamard_transform(
        self, x: Arr, /, *, block_size: int | None = None, transpose: bool = False
    ) -> Arr: ...  # H-2, last axis
    def kronecker_transform(self, x: Arr, table: Arr, /, *, transpose: bool = False) -> Arr: ...  # H-2b
    def random_hadamard(self, *, order: int, seed: int, index: int = 0) -> Arr: ...  # H-3 → float64
    def orthogonal_factor(self, z: Arr, /) -> Arr: ...  # H-4 → float64
    def random_orthogonal(self, *, order: int, seed: int, index: int = 0) -> Arr: ...  # H-4a → float64
    def fuse_norm(self, w: Arr, gain: Arr, /) -> Arr: ...  # H-5
    def rotate_inputs(self, w: Arr, q: Arr, /, *, repeats: int = 1) -> Arr: ...  # H-6, dtype of w
    def rotate_outputs(self, w: Arr, q: Arr, /, *, repeats: int = 1) -> Arr: ...  # H-6a, dtype of w
    def rotate_block(
        self, block: DecoderBlock[Arr], r1: Arr, r2: Arr | None = None, /, *, online: bool = True
    ) -> DecoderBlock[Arr]: ...  # H-7
    def rotate_ends(
        self, embedding: Arr, gain: Arr, head: Arr | None, r1: Arr, /, *, centre: bool = False
    ) -> DecoderEnds[Arr]: ...  # H-7a
    def outlier_measures(self, x: Arr, /) -> OutlierMeasures[Arr]: ...  # H-8
    def quantize_activations(
        self,
        x: Arr,
        /,
        *,
        bits: int,
        scheme: Scheme = "symmetric",
        clip_ratio: float = 1.0,
        group_size: int | None = None,
    ) -> QuantizedActivations[Arr]: ...  # H-9
    def activation_clip(
        self,
        x: Arr,
        /,
        *,
        bits: int,
        scheme: Scheme = "symmetric",
        group_size: int | None = None,
        norm: float = 2.0,
        grid: int = 20,
        max_shrink: float = 0.5,
    ) -> ActivationClip[Arr]: ...  # H-10


class TableOps(Protocol[Arr]):
    """Chapter L: look-up tables; tables and reports are float64 or integers whatever the inputs are."""

    def fit_chords(self, knots: Arr, values: Arr, /) -> Table[Arr]: ...  # L-1
    def fit_segments(self, x: Arr, y: Arr, breakpoints: Arr, /, *, tie: TableTie = "right") -> Table[Arr]: ...  # L-3
    def round_table(
        self, table: Table[Arr], /, *, fraction_bits: int = 6, bits: int | None = None
    ) -> Table[Arr]: ...  # L-4
    def integer_table(
        self, table: Table[Arr], /, *, scale_bits: int, fraction_bits: int = 6
    ) -> IntegerTable[Arr]: ...  # L-6
    def evaluate_table(self, x: Arr, table: Table[Arr], /, *, tie: TableTie = "left") -> Arr: ...  # L-7, dtype of x
    def evaluate_codes(self, q: Arr, table: IntegerTable[Arr], /, *, tie: TableTie = "left") -> Arr: ...  # L-9
    def lookup_codes(self, q: Arr, entries: Arr, /, *, low: int = -128) -> Arr: ...  # L-11, dtype of the entries
    def requantize_codes(self, a: Arr, /, *, shift: int, low: int = -128, high: int = 127) -> Arr: ...  # L-12
    def table_gradient(
        self, grad: Arr, q: Arr, /, *, scale: float, function: TableFunction
    ) -> TableGradient[Arr]: ...  # L-13
    def evaluate_ranges(
        self, x: Arr, table: Table[Arr], /, *, function: TableFunction, tie: TableTie = "left"
    ) -> Arr: ...  # L-14, dtype of x
    def table_softmax(
        self,
        q: Arr,
        exp: IntegerTable[Arr],
        reciprocal: IntegerTable[Arr],
        /,
        *,
        out_bits: int = 7,
        tie: TableTie = "left",
    ) -> Arr: ...  # L-16
    def table_layer_norm(
        self, q: Arr, rsqrt: IntegerTable[Arr], /, *, out_bits: int = 5, tie: TableTie = "left"
    ) -> Arr: ...  # L-17
    def verify_table(
        self, table: IntegerTable[Arr], values: Arr, /, *, low: int = -128, tie: TableTie = "left"
    ) -> TableReport: ...  # L-18


class LutSearchOps(Protocol[Arr]):
    """Chapter L: searches of look-up tables. Float results are float64 whatever the arguments."""

    def genome_fitness(self, genomes: Arr, /, *, function: TableFunction, fraction_bits: int = 6) -> Arr: ...  # L-20
    def genetic_search(
        self,
        *,
        function: TableFunction,
        entries: int,
        seed: int = 42,
        draws: SearchDraws = "addressed",
        rounding: bool | None = None,
        generations: int = 500,
        population: int = 50,
    ) -> GeneticSearch[Arr]: ...  # L-21, L-22
    def knot_grid(self, *, function: TableFunction, fraction_bits: int = 6) -> Arr: ...  # L-23 → (M,)
    def search_problem(
        self, knots: Arr, /, *, function: TableFunction, scale_bits: Sequence[int] | None = None
    ) -> SearchProblem[Arr]: ...  # L-24
    def optimal_search(
        self,
        knots: Arr,
        values: Arr,
        x: Arr,
        y: Arr,
        cuts: Arr,
        /,
        *,
        entries: int,
        objective: SearchObjective = "mse",
        fit: SearchFit = "chord",
        fraction_bits: int | None = 6,
    ) -> OptimalTable[Arr]: ...  # L-25
    def optimality_bound(
        self,
        knots: Arr,
        values: Arr,
        x: Arr,
        y: Arr,
        cuts: Arr,
        potentials: Arr,
        /,
        *,
        objective: SearchObjective = "mse",
        fit: SearchFit = "chord",
        fraction_bits: int | None = 6,
    ) -> float: ...  # L-26
    def table_objective(
        self, x: Arr, y: Arr, cuts: Arr, slopes: Arr, intercepts: Arr, /, *, objective: SearchObjective = "mse"
    ) -> float: ...  # L-27


class CoresetOps(Protocol[Arr]):
    """Chapter X: scores of samples, and selection by scores or distances; indices are int32."""

    def error_vector_score(self, logits: Arr, labels: Arr, /) -> Arr: ...  # X-1 → (n,)
    def disagreement_score(self, logits: Arr, reference: Arr, /) -> Arr: ...
    def acs_score(
        self,
        logits: Arr,
        reference: Arr,
        labels: Arr,
        /,
        *,
        epoch: float,
        epochs: int,
        schedule: AcsSchedule = "paper",
    ) -> Arr: ...
    def select_coreset(
        self, scores: Arr, labels: Arr | None = None, /, *, fraction: float, keep: Kept = "largest"
    ) -> Arr: ...  # X-4 → int32
    def el2n_score(self, logits: Arr, labels: Arr, /, *, outputs: Outputs = "softmax") -> Arr: ...
    def grand_score(
        self, logits: Arr, features: Arr, labels: Arr, /, *, bias: bool = True, batch_size: int | None = None
    ) -> Arr: ...
    def forgetting_score(self, correct: Arr, /, *, never_learnt: NeverLearnt = "most") -> Arr: ...  # X-7 → int32
    def moderate_score(
        self, features: Arr, labels: Arr, /, *, center: Center = "mean", against: ModerateReference = "median"
    ) -> Arr: ...
    def contextual_diversity(self, p: Arr, q: Arr, /, *, epsilon: float = 0.0) -> Arr: ...  # X-9 → (n, m)
    def k_center(
        self, x: Arr, first: Arr, /, *, count: int, metric: Metric = "euclidean", epsilon: float = 0.0
    ) -> Arr: ...  # X-10 → int32
    def herding(self, x: Arr, /, *, count: int) -> Arr: ...  # X-11 → int32
    def random_score(self, *, size: int, seed: int, index: int = 0) -> Arr: ...  # X-12 → float64


class DistillOps(Protocol[Arr]):
    """Chapter W: distillation losses with their gradients. lengths (B,) integers."""

    def logit_loss(
        self, student: Arr, teacher: Arr, /, *, temperature: float = 1.0, divergence: Divergence = "cross-entropy"
    ) -> LossGradient[Arr]: ...  # W-1, (B, C)
    def token_loss(
        self,
        student: Arr,
        teacher: Arr,
        labels: Arr,
        /,
        *,
        temperature: float = 10.0,
        ignored: IgnoredTokens = "weigh",
    ) -> LossGradient[Arr]: ...  # W-2, (B, n, V)
    def feature_loss(
        self, student: Arr, teacher: Arr, lengths: Arr | None = None, /
    ) -> LossGradient[Arr]: ...  # W-3, (B, n, d)
    def score_loss(
        self, student: Arr, teacher: Arr, /, *, floor: float = -100.0, causal: bool = False
    ) -> LossGradient[Arr]: ...  # W-4, (B, H, n, n)
    def attention_map_loss(
        self, student: Arr, teacher: Arr, lengths: Arr, /, *, floor: float = 1e-8
    ) -> LossGradient[Arr]: ...  # W-5, (B, H, n, n)


class DiagnosticOps(Protocol[Arr]):
    """Chapter W: what quantization did to attention and to the loss surface."""

    def ranking_loss(
        self, student: Arr, teacher: Arr, /, *, pairs: PairRule = "published"
    ) -> Arr: ...  # W-6, maps (H, n, n) → (H,)
    def cover_length(
        self, student: Arr, teacher: Arr, /, *, top: int = 5, rows: RowRule = "published"
    ) -> Arr: ...  # W-7, maps (H, n, n) → (H,)
    def attention_range(self, x: Arr, /) -> TokenRange[Arr]: ...  # W-8, (n, d)
    def attention_norms(
        self, maps: Arr, x: Arr, w_v: Arr, b_v: Arr | None, w_o: Arr, /
    ) -> AttentionNorms[Arr]: ...  # W-9
    def power_eigenvalues(
        self,
        operator: Arr | Callable[[Arr], Arr],
        start: Arr,
        /,
        *,
        iterations: int = 100,
        tolerance: float = 1e-3,
        stop: EigenStop = "change",
        shift: float = 0.0,
    ) -> Eigenvalues[Arr]: ...  # W-10, start (count, p)


PROTOCOLS: tuple[type, ...] = (
    PhiloxOps,
    RoundingOps,
    UniformOps,
    CodebookOps,
    TernaryOps,
    LearnedStepOps,
    OscillationOps,
    BinaryOps,
    ScaleTuningOps,
    MixedPrecisionOps,
    GptqOps,
    MomentOps,
    LowRankOps,
    LoftqOps,
    EigenspaceOps,
    RankBudgetOps,
    DoraOps,
    RotationOps,
    TableOps,
    LutSearchOps,
    CoresetOps,
    DistillOps,
    DiagnosticOps,
)


@cache
def operations() -> tuple[str, ...]:
    """Names of every operation of the contract, in reading order."""
    return tuple(name for proto in PROTOCOLS for name in vars(proto) if not name.startswith("_"))


__all__ = [
    "PROTOCOLS",
    "Backend",
    "BinaryOps",
    "CodebookOps",
    "CoresetOps",
    "DiagnosticOps",
    "DistillOps",
    "DoraOps",
    "EigenspaceOps",
    "GptqOps",
    "LearnedStepOps",
    "LoftqOps",
    "LowRankOps",
    "LutSearchOps",
    "MixedPrecisionOps",
    "MomentOps",
    "OscillationOps",
    "PhiloxOps",
    "RankBudgetOps",
    "RotationOps",
    "RoundingOps",
    "ScaleTuningOps",
    "TableOps",
    "TernaryOps",
    "UniformOps",
    "operations",
]
