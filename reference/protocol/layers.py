"""Protocols of the compression of a layer: second-order methods, moments, patches, ranks, rotations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..types import (
    ActivationClip,
    AdapterMethod,
    Arr,
    ChoiceFrontier,
    Choices,
    CodebookQuantizer,
    Compensation,
    DecoderBlock,
    DecoderEnds,
    EigenPolicy,
    GroupScales,
    InverseFactor,
    Iterate,
    Leftover,
    LoftQ,
    LowRank,
    MomentNode,
    Normalisation,
    OutlierMeasures,
    Pruned,
    QuantizedActivations,
    QuantizedAdapter,
    QuantizedWeight,
    RankPool,
    ScaleDtype,
    Scheme,
    SecondMoment,
    SparseWeight,
    Split,
    Stationarity,
)
from .chapters import chapter

__all__ = [
    "ChoiceOps",
    "DivergenceOps",
    "EigenspaceOps",
    "GptqOps",
    "LoftqOps",
    "LowRankOps",
    "MomentOps",
    "RankBudgetOps",
    "RotationOps",
]


@chapter("G", "second-order compression")
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


@chapter("C", "second moments and low-rank patches")
class MomentOps(Protocol[Arr]):
    """Chapter C, first half: second moments of activations, exactly associative."""

    def moment_leaf(self, x: Arr, /, *, index: int) -> tuple[MomentNode[Arr], ...]: ...  # C-1
    def moment_merge(
        self, left: Sequence[MomentNode[Arr]], right: Sequence[MomentNode[Arr]], /
    ) -> tuple[MomentNode[Arr], ...]: ...  # C-2
    def moment_total(self, nodes: Sequence[MomentNode[Arr]], /) -> SecondMoment[Arr]: ...  # C-2
    def recency_moment(self, batches: Sequence[Arr], /, *, total: int) -> Arr: ...  # C-3: (b, T, k) each → (k, k)


@chapter("C")
class LowRankOps(Protocol[Arr]):
    """Chapter C, second half: patches that ignore or only scale by the activations."""

    def svd_patch(self, d: Arr, /, *, rank: int, split: Split = "balanced") -> LowRank[Arr]: ...  # C-4
    def scaled_svd_patch(
        self, d: Arr, channel_scale: Arr, /, *, rank: int, split: Split = "balanced"
    ) -> LowRank[Arr]: ...  # C-5


@chapter("N")
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


@chapter("E", "eigenspace compensation")
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


@chapter("F", "divergence of the output")
class DivergenceOps(Protocol[Arr]):
    """Chapter F: what errors of layers cost at the model's output. ``g`` is a second moment of gradients, (m, m)."""

    def divergence(self, d: Arr, c: Arr, g: Arr, /) -> float: ...  # F-1
    def divergence_spectrum(self, d: Arr, c: Arr, g: Arr, /, *, damping: float = 0.1) -> Arr: ...  # F-2 → (min(m, k),)
    def divergence_patch(
        self, d: Arr, c: Arr, g: Arr, /, *, rank: int, damping: float = 0.1, tolerance: float = 1e-6
    ) -> Compensation[Arr]: ...  # F-3
    def draw_labels(self, logits: Arr, /, *, seed: int, first: int = 0) -> Arr: ...  # F-4 → int32 (T,)


@chapter("K", "ranks under a budget")
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


@chapter("K")
class ChoiceOps(Protocol[Arr]):
    """Chapter K: choices under a budget. ``cost`` holds integers (J, O), ``loss`` floats (J, O)."""

    def choice_frontier(self, cost: Arr, loss: Arr, /) -> ChoiceFrontier[Arr]: ...  # K-12 → float64
    def allocate_choices(
        self, cost: Arr, loss: Arr, /, *, budget: int, tolerance: float = 1e-6
    ) -> Choices[Arr]: ...  # K-13


@chapter("H", "rotation")
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
