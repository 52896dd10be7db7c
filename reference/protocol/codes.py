"""Protocols of what turns numbers into codes: randomness, rounding, grids, codebooks, ternary and binary codes."""

from __future__ import annotations

from typing import Protocol

from ..types import (
    Arr,
    BinaryCode,
    BinaryMethod,
    BitAllocation,
    ClippedGrid,
    DoubleScale,
    Granularity,
    Grid,
    MinMaxScheme,
    Outermost,
    PackedBinary,
    PackLayout,
    ProductMethod,
    ScaleDtype,
    Scheme,
    Sharing,
    TernaryCode,
)
from .chapters import chapter

__all__ = ["BinaryOps", "CodebookOps", "MixedPrecisionOps", "PhiloxOps", "RoundingOps", "TernaryOps", "UniformOps"]


@chapter("P", "addressed randomness")
class PhiloxOps(Protocol[Arr]):
    """Chapter P: counters (..., 4) → one value per word, a function of seed and address alone."""

    def philox_words(self, counters: Arr, /, *, seed: int) -> Arr: ...  # P-1 → int32 with the bits of the words
    def philox_uniform(self, counters: Arr, /, *, seed: int) -> Arr: ...  # P-2 → float64
    def philox_integers(self, counters: Arr, /, *, seed: int, bound: int) -> Arr: ...  # P-3 → int32
    def philox_normal(self, counters: Arr, /, *, seed: int) -> Arr: ...  # P-4 → float64


@chapter("R", "rounding")
class RoundingOps(Protocol[Arr]):
    """Chapter R."""

    def round_half_even(self, x: Arr, /) -> Arr: ...  # R-1, any shape
    def round_clip(self, x: Arr, /, *, low: int, high: int) -> Arr: ...  # R-2 → int32
    def nearest_level(self, x: Arr, levels: Arr, /) -> Arr: ...  # R-3 → int32 index into levels (L,), ascending


@chapter("Q", "uniform grids and packing")
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


@chapter("N", "codebooks")
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


@chapter("T", "ternary and min-max quantizers")
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


@chapter("B", "binary coding")
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


@chapter("M", "mixed precision")
class MixedPrecisionOps(Protocol[Arr]):
    """Chapter M: bits by word frequency and by sensitivity."""

    def row_bits(self, counts: Arr, /, *, clusters: int, ratio: int = 1) -> Arr: ...  # M-1 → int32 (v,)
    def allocate_bits(self, errors: Arr, sizes: Arr, /, *, budget: int) -> BitAllocation[Arr]: ...  # M-2
    def project_rows(
        self, w: Arr, bits: Arr, /, *, method: BinaryMethod = "greedy", rounds: int = 15
    ) -> Arr: ...  # M-3 → (m, k)
