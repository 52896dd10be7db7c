"""Protocols of what training needs: learned steps, oscillation, scales, DoRA, coresets, losses, diagnostics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..types import (
    AcsSchedule,
    AnnealedStep,
    Arr,
    AttentionNorms,
    Biases,
    BoundaryStatistics,
    Center,
    DecompositionChange,
    Divergence,
    DoraGradient,
    DoraLayout,
    DoraMerged,
    DvoraGradient,
    EigenStop,
    Eigenvalues,
    FreezeValue,
    FrozenSpace,
    GradientPath,
    IgnoredTokens,
    Kept,
    LoraRefit,
    LossGradient,
    LowRank,
    LsqCount,
    LsqGradient,
    LsqInit,
    LsqStart,
    Metric,
    ModerateReference,
    NeverLearnt,
    Oscillation,
    Outputs,
    PairRule,
    QkrGradient,
    QkrQuantizers,
    RowRule,
    ScaleNorm,
    StatsCode,
    Targets,
    Thresholds,
    TokenRange,
    Trained,
    TunedScales,
)
from .chapters import chapter

__all__ = ["CoresetOps", "DiagnosticOps", "DistillOps", "DoraOps", "LearnedStepOps", "OscillationOps", "ScaleTuningOps"]


@chapter("S", "learned steps")
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


@chapter("O", "oscillation")
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


@chapter("U", "scale tuning")
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


@chapter("D", "magnitude and direction apart")
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


@chapter("X", "coresets")
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


@chapter("W", "distillation")
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


@chapter("W")
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
