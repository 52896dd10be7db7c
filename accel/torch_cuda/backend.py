"""The Torch backend as an object: a device for new arrays and a choice of kernels, and every operation."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lowbit.accel.common.uniform import code_range
from lowbit.reference.types import (
    AcsSchedule,
    DoraLayout,
    FreezeValue,
    GeneticSearch,
    GradientPath,
    IntegerTable,
    LossGradient,
    LsqCount,
    LsqGradient,
    MinMaxScheme,
    Oscillation,
    Outermost,
    PackLayout,
    ProductMethod,
    Scheme,
    SearchDraws,
    Sharing,
    StatsCode,
    TableFunction,
    TableTie,
    Targets,
    TernaryCode,
)

from . import (
    adapter,
    arrays,
    binary_coding,
    codebook,
    coreset,
    diagnostics,
    distill,
    dora,
    eigenspace,
    learned_step,
    low_rank,
    lut,
    lut_search,
    mixed_precision,
    moments,
    oscillation,
    packing,
    philox,
    qk_reparam,
    rank_budget,
    rotation,
    rounding,
    scale_tuning,
    sparsity,
    ternary,
    triton,
    uniform,
)
from .arrays import operation, working_dtype
from .gptq import gptq, inverse_cholesky
from .loftq import loftq
from .statsq import check_grad, check_weight, code_of, grad_by_kernel, grad_checked, quantized, quantized_by_kernel
from .statsq import statsq as statsq_code
from .statsq import statsq_grad as statsq_gradient

__all__ = ["Kernels", "TorchBackend", "configure"]

Kernels = Literal["auto", "torch", "triton"]


class TorchBackend:
    """The operations of the contract on torch tensors of any device.

    Results live on the device of the arguments. Halves are computed in float32 and answered in float32; float64 is
    computed in float64. Nothing is recorded for autograd, autocast is off inside an operation, and float32 products
    use neither TF32 nor bfloat16 whatever the process allows.

    Attributes:
        name: ``"torch"``.
        compute_dtype: ``"float32"``: the precision of sums when inputs are float32.
        device: where :meth:`asarray` puts arrays.
        kernels: ``"auto"``, Triton on CUDA tensors where :meth:`supports` allows; ``"torch"``, never; ``"triton"``,
            wherever a kernel exists, on CPU tensors too under Triton's interpreter.
    """

    name: str = "torch"
    compute_dtype: str = "float32"

    def __init__(self, device: str = "cpu", kernels: Kernels = "auto") -> None:
        self.device = device
        self.kernels = kernels

    def __repr__(self) -> str:
        return f"TorchBackend(device={self.device!r}, kernels={self.kernels!r})"

    def asarray(self, x: npt.NDArray[Any], /) -> Tensor:
        """NumPy → tensor on the backend's device, same dtype and values; shares memory on a CPU where torch can.

        ``ml_dtypes.bfloat16`` arrays become torch.bfloat16.
        """
        x = np.asarray(x)
        if x.dtype.name == "bfloat16":
            return torch.from_numpy(x.view(np.uint16).copy()).view(torch.bfloat16).to(self.device)
        if not x.flags.writeable or any(s < 0 for s in x.strides) or not x.dtype.isnative:
            x = np.array(x, dtype=x.dtype.newbyteorder("="), order="C")
        return torch.from_numpy(x).to(self.device)

    to_numpy = staticmethod(arrays.to_numpy)

    def supports(self, op: str, /, **facts: Any) -> Literal[True] | str:
        """True when a Triton kernel would serve ``op``, else the reason why torch does.

        Args:
            op: name of an operation.
            facts: ``device`` (default: the backend's), ``dtype`` of the values, and others that a kernel asks for.
        """
        if self.kernels == "torch":
            return "kernels='torch' was asked for"
        device = torch.device(facts.setdefault("device", self.device))
        if self.kernels == "auto" and op in triton.KERNELS and device.type != "cuda":
            return f"kernels='auto' uses Triton on cuda only, not on {device.type}"
        return triton.supports(op, **facts)

    def _by_kernel(self, op: str, *values: Tensor, **facts: Any) -> bool:
        """Whether a Triton kernel serves these values, by their widest dtype."""
        dtype = torch.float64 if any(v.dtype == torch.float64 for v in values) else values[0].dtype
        return self.supports(op, device=values[0].device, dtype=dtype, **facts) is True

    # --- P
    philox_words = staticmethod(philox.philox_words)
    philox_uniform = staticmethod(philox.philox_uniform)
    philox_integers = staticmethod(philox.philox_integers)
    philox_normal = staticmethod(philox.philox_normal)

    # --- R
    round_half_even = staticmethod(rounding.round_half_even)
    round_clip = staticmethod(rounding.round_clip)
    nearest_level = staticmethod(rounding.nearest_level)

    # --- Q
    fit_grid = staticmethod(uniform.fit_grid)
    clip_search = staticmethod(uniform.clip_search)

    @operation
    def quantize(
        self, x: Tensor, scale: Tensor, zero_point: Tensor, /, *, bits: int, scheme: Scheme = "asymmetric"
    ) -> Tensor:
        x, scale, zero_point = uniform.check_quantize(x, scale, zero_point, bits, scheme)
        if self.supports("quantize", device=x.device, dtype=x.dtype) is True:
            codes: Tensor = triton.launcher().quantize(x, scale, zero_point, *code_range(bits, scheme))
            return codes
        return uniform.quantize_checked(x, scale, zero_point, bits, scheme)

    @operation
    def dequantize(self, codes: Tensor, scale: Tensor, zero_point: Tensor, /) -> Tensor:
        codes, scale, zero_point = uniform.check_dequantize(codes, scale, zero_point)
        if self.supports("dequantize", device=codes.device, dtype=scale.dtype) is True:
            values: Tensor = triton.launcher().dequantize(codes, scale, zero_point, working_dtype(scale))
            return values
        return uniform.dequantize_checked(codes, scale, zero_point)

    @operation
    def pack(self, codes: Tensor, /, *, bits: int, layout: PackLayout = "dense") -> Tensor:
        codes = packing.check_pack(codes, bits, layout)
        if self.supports("pack", device=codes.device) is True:
            width = packing.word_count(codes.shape[1], bits, layout)
            words: Tensor = triton.launcher().pack(codes, bits, layout == "padded", width)
            return words
        return packing.pack_checked(codes, bits, layout)

    @operation
    def unpack(self, words: Tensor, /, *, bits: int, length: int, layout: PackLayout = "dense") -> Tensor:
        words = packing.check_unpack(words, bits, length, layout)
        if self.supports("unpack", device=words.device) is True:
            codes: Tensor = triton.launcher().unpack(words, bits, layout == "padded", length)
            return codes
        return packing.unpack_checked(words, bits, length, layout)

    @operation
    def dequantize_packed(
        self,
        words: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        /,
        *,
        bits: int,
        length: int,
        layout: PackLayout = "dense",
        offset: int = 0,
    ) -> Tensor:
        words, scale, zero_point = packing.check_dequantize_packed(
            words, scale, zero_point, bits=bits, length=length, layout=layout
        )
        if self.supports("dequantize_packed", device=words.device, dtype=scale.dtype) is True:
            values: Tensor = triton.launcher().dequantize_packed(
                words, scale, zero_point, bits, layout == "padded", length, offset, working_dtype(scale)
            )
            return values
        return packing.dequantize_packed_checked(words, scale, zero_point, bits, length, layout, offset)

    quantize.__doc__ = uniform.quantize.__doc__
    dequantize.__doc__ = uniform.dequantize.__doc__
    pack.__doc__ = packing.pack.__doc__
    unpack.__doc__ = packing.unpack.__doc__
    dequantize_packed.__doc__ = packing.dequantize_packed.__doc__

    # --- N
    def normal_float(self, *, bits: int, offset: float = 0.9677083) -> Tensor:
        return codebook.normal_float(bits=bits, offset=offset, device=self.device)

    def dynamic_float(self, *, bits: int) -> Tensor:
        return codebook.dynamic_float(bits=bits, device=self.device)

    block_scale = staticmethod(codebook.block_scale)
    quantize_blocks = staticmethod(codebook.quantize_blocks)
    dequantize_blocks = staticmethod(codebook.dequantize_blocks)
    quantize_scale = staticmethod(codebook.quantize_scale)
    dequantize_scale = staticmethod(codebook.dequantize_scale)

    @operation
    def codebook_matmul(
        self, x: Tensor, words: Tensor, scale: Tensor, levels: Tensor, /, *, bits: int, block_size: int = 64
    ) -> Tensor:
        x, words, scale, levels = codebook.check_product(x, words, scale, levels, bits, block_size)
        narrow = working_dtype(x, scale) == torch.float32
        if narrow and self.supports("codebook_matmul", device=x.device, dtype=x.dtype) is True:
            y: Tensor = triton.launcher().codebook_matmul(x, words, scale, levels, bits, block_size)
            return y
        return codebook.product_checked(x, words, scale, levels, bits, block_size)

    normal_float.__doc__ = codebook.normal_float.__doc__
    dynamic_float.__doc__ = codebook.dynamic_float.__doc__
    codebook_matmul.__doc__ = codebook.codebook_matmul.__doc__

    loftq = staticmethod(loftq)

    # --- T
    @operation
    def twn_code(
        self, x: Tensor, /, *, granularity: Sharing = "tensor", threshold: float = 0.7, clip: float | None = None
    ) -> TernaryCode[Tensor]:
        given, t = ternary.check_ternary(x, granularity, threshold, clip)
        by_kernel = self._by_kernel("twn_code", given.x)
        return (ternary.twn_code_by_kernel if by_kernel else ternary.twn_code_checked)(given, t)

    @operation
    def twn(
        self, x: Tensor, /, *, granularity: Sharing = "tensor", threshold: float = 0.7, clip: float | None = None
    ) -> Tensor:
        given, t = ternary.check_ternary(x, granularity, threshold, clip)
        return (ternary.twn_by_kernel if self._by_kernel("twn", given.x) else ternary.twn_checked)(given, t)

    @operation
    def clamped_uniform(
        self,
        x: Tensor,
        /,
        *,
        bits: int = 4,
        granularity: Sharing = "tensor",
        clip: float | None = None,
        outermost: Outermost = "published",
    ) -> Tensor:
        given, b, ends = ternary.check_clamped(x, bits, granularity, clip, outermost)
        by_kernel = self._by_kernel("clamped_uniform", given.x)
        return (ternary.clamped_by_kernel if by_kernel else ternary.clamped_checked)(given, b, ends)

    @operation
    def min_max(
        self,
        x: Tensor,
        /,
        *,
        bits: int = 8,
        scheme: MinMaxScheme = "symmetric",
        granularity: Sharing = "tensor",
        clip: float | None = None,
        epsilon: float = 0.0,
    ) -> Tensor:
        given = ternary.check_min_max(x, bits, scheme, granularity, clip, epsilon)
        by_kernel = self._by_kernel("min_max", given.groups.x)
        return (ternary.min_max_by_kernel if by_kernel else ternary.min_max_checked)(given)

    @operation
    def straight_through(self, grad: Tensor, x: Tensor, /, *, clip: float | None) -> Tensor:
        given = ternary.check_passed(grad, x, clip)
        by_kernel = self._by_kernel("straight_through", given.grad, given.x)
        return (ternary.straight_through_by_kernel if by_kernel else ternary.straight_through_checked)(given)

    twn_code.__doc__ = ternary.twn_code.__doc__
    twn.__doc__ = ternary.twn.__doc__
    clamped_uniform.__doc__ = ternary.clamped_uniform.__doc__
    min_max.__doc__ = ternary.min_max.__doc__
    straight_through.__doc__ = ternary.straight_through.__doc__

    # --- S
    lsq_init = staticmethod(learned_step.lsq_init)

    @operation
    def lsq_code(
        self,
        x: Tensor,
        step: Tensor,
        offset: Tensor | None = None,
        /,
        *,
        bits: int,
        signed: bool = True,
        axis: int | None = None,
        epsilon: float = 0.0,
    ) -> Tensor:
        q = learned_step.plan("S-2", x, step, offset, bits, signed, axis, epsilon)
        if self._by_kernel("lsq_code", q.given, q.step):
            return learned_step.by_kernel(q, "S-2", codes=True)
        return learned_step.codes_checked(q)

    @operation
    def lsq(
        self,
        x: Tensor,
        step: Tensor,
        offset: Tensor | None = None,
        /,
        *,
        bits: int,
        signed: bool = True,
        axis: int | None = None,
        epsilon: float = 0.0,
    ) -> Tensor:
        q = learned_step.plan("S-3", x, step, offset, bits, signed, axis, epsilon)
        if self._by_kernel("lsq", q.given, q.step):
            return learned_step.by_kernel(q, "S-3", codes=False)
        return learned_step.values_checked(q)

    @operation
    def lsq_gradient(
        self,
        grad: Tensor,
        x: Tensor,
        step: Tensor,
        offset: Tensor | None = None,
        /,
        *,
        bits: int,
        signed: bool = True,
        axis: int | None = None,
        epsilon: float = 0.0,
        count: LsqCount = "elements",
    ) -> LsqGradient[Tensor]:
        given = learned_step.plan_gradient(grad, x, step, offset, bits, signed, axis, epsilon, count)
        by_kernel = self._by_kernel("lsq_gradient", given[0].given, given[0].step)
        return (learned_step.gradient_by_kernel if by_kernel else learned_step.gradient_checked)(*given)

    lsq_code.__doc__ = learned_step.lsq_code.__doc__
    lsq.__doc__ = learned_step.lsq.__doc__
    lsq_gradient.__doc__ = learned_step.lsq_gradient.__doc__

    # --- O
    @operation
    def statsq(self, w: Tensor, /, *, bits: int) -> StatsCode[Tensor]:
        w = check_weight("O-1", w, bits)
        serve = quantized_by_kernel if self._by_kernel("statsq", w) else quantized
        return code_of(w, serve(w, 1 << (bits - 1), "O-1", with_codes=True))

    @operation
    def statsq_grad(self, w: Tensor, grad: Tensor, /, *, bits: int, path: GradientPath = "straight-through") -> Tensor:
        given = check_grad(w, grad, bits, path)
        by_kernel = self._by_kernel("statsq_grad", *given[:2])
        return (grad_by_kernel if by_kernel else grad_checked)(*given)

    start_oscillation = staticmethod(oscillation.start_oscillation)

    @operation
    def track_oscillation(
        self,
        codes: Tensor,
        previous: Tensor,
        direction: Tensor,
        frequency: Tensor,
        total: Tensor,
        average: Tensor,
        frozen: Tensor,
        target: Tensor,
        /,
        *,
        momentum: float = 0.01,
        threshold: float | None = None,
        freeze_to: FreezeValue = "average",
        targets: Targets = "held",
    ) -> Oscillation[Tensor]:
        state = (previous, direction, frequency, total, average, frozen, target)
        given = oscillation.check_step(codes, state, momentum, threshold, freeze_to, targets)
        by_kernel = self._by_kernel("track_oscillation", given.frequency, given.average)
        return (oscillation.tracked_by_kernel if by_kernel else oscillation.tracked)(given)

    statsq.__doc__ = statsq_code.__doc__
    statsq_grad.__doc__ = statsq_gradient.__doc__
    track_oscillation.__doc__ = oscillation.track_oscillation.__doc__

    boundary_statistics = staticmethod(oscillation.boundary_statistics)
    cga_mask = staticmethod(oscillation.cga_mask)
    cga_step = staticmethod(oscillation.cga_step)
    qkr_weight = staticmethod(qk_reparam.qkr_weight)
    qkr_grad = staticmethod(qk_reparam.qkr_grad)
    qkr_attention = staticmethod(qk_reparam.qkr_attention)

    # --- B
    bcq = staticmethod(binary_coding.bcq)
    bcq_refit = staticmethod(binary_coding.bcq_refit)
    bcq_assign = staticmethod(binary_coding.bcq_assign)
    bcq_weight = staticmethod(binary_coding.bcq_weight)
    bcq_from_grid = staticmethod(binary_coding.bcq_from_grid)
    bcq_pack = staticmethod(binary_coding.bcq_pack)
    bcq_unpack = staticmethod(binary_coding.bcq_unpack)
    lookup_tables = staticmethod(binary_coding.lookup_tables)

    @operation
    def bcq_product(
        self, x: Tensor, planes: Tensor, scale: Tensor, offset: Tensor | None, /, *, method: ProductMethod = "auto"
    ) -> Tensor:
        return self.bcq_product_checked(*binary_coding.check_product(x, planes, scale, offset, method), method=method)

    def bcq_product_checked(
        self, x: Tensor, planes: Tensor, scale: Tensor, offset: Tensor | None, /, *, method: ProductMethod = "auto"
    ) -> Tensor:
        """The product of arguments that are known to fit and share a dtype; layers call it, NaN passes through it."""
        if method != "dequantize" and self.supports("bcq_product", device=x.device, dtype=x.dtype) is True:
            y: Tensor = triton.launcher().bcq_product(x, planes, scale, offset)
            return y
        return binary_coding.product_checked(x, planes, scale, offset, method)

    bcq_product.__doc__ = binary_coding.bcq_product.__doc__
    # --- U
    trainable_scales = staticmethod(scale_tuning.trainable_scales)
    scale_grad = staticmethod(scale_tuning.scale_grad)
    scale_grad_tokens = staticmethod(scale_tuning.scale_grad_tokens)
    tune_step = staticmethod(scale_tuning.tune_step)
    fit_scales = staticmethod(scale_tuning.fit_scales)

    # --- M
    row_bits = staticmethod(mixed_precision.row_bits)
    allocate_bits = staticmethod(mixed_precision.allocate_bits)
    project_rows = staticmethod(mixed_precision.project_rows)

    # --- G
    inverse_cholesky = staticmethod(inverse_cholesky)
    gptq = staticmethod(gptq)
    sparsegpt = staticmethod(sparsity.sparsegpt)
    wanda = staticmethod(sparsity.wanda)

    # --- C
    moment_leaf = staticmethod(moments.moment_leaf)
    moment_merge = staticmethod(moments.moment_merge)
    moment_total = staticmethod(moments.moment_total)
    recency_moment = staticmethod(moments.recency_moment)
    svd_patch = staticmethod(low_rank.svd_patch)
    scaled_svd_patch = staticmethod(low_rank.scaled_svd_patch)

    # --- E
    objective = staticmethod(operation(eigenspace.objective))
    eora = staticmethod(operation(eigenspace.eora))
    error_spectrum = staticmethod(operation(eigenspace.error_spectrum))
    optimum = staticmethod(operation(eigenspace.optimum))
    eora_published = staticmethod(operation(eigenspace.eora_published))
    eora_certified = staticmethod(operation(eigenspace.eora_certified))
    stationarity = staticmethod(operation(eigenspace.stationarity))
    quantize_adapter = staticmethod(adapter.quantize_adapter)
    residual_moment = staticmethod(operation(eigenspace.residual_moment))

    # --- K
    explained_error = staticmethod(rank_budget.explained_error)
    residual_damage = staticmethod(rank_budget.residual_damage)
    subspace_overlap = staticmethod(rank_budget.subspace_overlap)
    gradient_importance = staticmethod(rank_budget.gradient_importance)
    loss_importance = staticmethod(rank_budget.loss_importance)
    rank_cost = staticmethod(rank_budget.rank_cost)
    allocate_greedy = staticmethod(rank_budget.allocate_greedy)
    threshold_ranks = staticmethod(rank_budget.threshold_ranks)
    allocate_threshold = staticmethod(rank_budget.allocate_threshold)
    allocate_proportional = staticmethod(rank_budget.allocate_proportional)
    allocation_objective = staticmethod(rank_budget.allocation_objective)
    allocation_bound = staticmethod(rank_budget.allocation_bound)
    pool_modules = staticmethod(rank_budget.pool_modules)
    reallocate_ranks = staticmethod(rank_budget.reallocate_ranks)
    nest_patch = staticmethod(rank_budget.nest_patch)
    # --- D

    @operation
    def dora_magnitude(self, w: Tensor, /, *, layout: DoraLayout = "linear") -> Tensor:
        return self._norms(dora.check_weight("D-1", w, layout))

    @operation
    def dora_norm(self, w: Tensor, b: Tensor, a: Tensor, /, *, scaling: float, layout: DoraLayout = "linear") -> Tensor:
        return self._norms(dora.check_factors("D-2", w, b, a, scaling, layout))

    def _norms(self, given: dora.Update) -> Tensor:
        """Norms of the updated rows; one kernel for both operations, so that they agree where B is 0."""
        if self.supports("dora_norm", device=given.w.device, dtype=given.w.dtype) is True:
            found: Tensor = triton.launcher().dora_norm(*given)
            return found
        return dora.norms(given)

    dora_magnitude.__doc__ = dora.dora_magnitude.__doc__
    dora_norm.__doc__ = dora.dora_norm.__doc__
    factored_norm = staticmethod(dora.factored_norm)
    dora_weight = staticmethod(dora.dora_weight)
    dora_forward = staticmethod(dora.dora_forward)
    dora_gradient = staticmethod(dora.dora_gradient)
    dora_merge = staticmethod(dora.dora_merge)
    dora_unmerge = staticmethod(dora.dora_unmerge)
    dvora_factors = staticmethod(dora.dvora_factors)
    dvora_gradient = staticmethod(dora.dvora_gradient)
    decomposition_change = staticmethod(dora.decomposition_change)
    dora_to_lora = staticmethod(dora.dora_to_lora)

    # --- H
    @operation
    def hadamard_matrix(self, *, order: int) -> Tensor:
        """The ±1 matrix of an order, int32.  [H-1]

        Raises:
            SpecError: H-1, an order without a construction.
        """
        return rotation.hadamard_matrix(order, torch.device(self.device))

    @operation
    def hadamard_transform(self, x: Tensor, /, *, block_size: int | None = None, transpose: bool = False) -> Tensor:
        x, size = rotation.check_transform(x, block_size)
        if self.supports("hadamard_transform", device=x.device, dtype=x.dtype, order=size) is True:
            return rotation.transform_by_kernel(x, size, transpose)
        return rotation.transform_checked(x, size, transpose)

    @operation
    def random_hadamard(self, *, order: int, seed: int, index: int = 0) -> Tensor:
        """Hadamard rotation with random signs, float64.  [H-3]"""
        return rotation.random_hadamard(order, seed, index, torch.device(self.device))

    @operation
    def random_orthogonal(self, *, order: int, seed: int, index: int = 0) -> Tensor:
        """Haar distributed rotation, float64.  [H-4a]"""
        return rotation.random_orthogonal(order, seed, index, torch.device(self.device))

    hadamard_transform.__doc__ = rotation.hadamard_transform.__doc__
    kronecker_transform = staticmethod(rotation.kronecker_transform)
    orthogonal_factor = staticmethod(rotation.orthogonal_factor)
    fuse_norm = staticmethod(rotation.fuse_norm)
    rotate_inputs = staticmethod(rotation.rotate_inputs)
    rotate_outputs = staticmethod(rotation.rotate_outputs)
    rotate_block = staticmethod(rotation.rotate_block)
    rotate_ends = staticmethod(rotation.rotate_ends)
    outlier_measures = staticmethod(rotation.outlier_measures)
    quantize_activations = staticmethod(rotation.quantize_activations)
    activation_clip = staticmethod(rotation.activation_clip)

    # --- L
    fit_chords = staticmethod(lut.fit_chords)
    fit_segments = staticmethod(lut.fit_segments)
    round_table = staticmethod(lut.round_table)
    integer_table = staticmethod(lut.integer_table)
    evaluate_table = staticmethod(lut.evaluate_table)

    @operation
    def evaluate_codes(self, q: Tensor, table: IntegerTable[Tensor], /, *, tie: TableTie = "left") -> Tensor:
        given = lut.check_evaluate(q, table, tie)
        by_kernel = self.supports("evaluate_codes", device=given[0].device) is True
        return (lut.evaluated_by_kernel if by_kernel else lut.evaluated)(*given)

    @operation
    def lookup_codes(self, q: Tensor, entries: Tensor, /, *, low: int = -128) -> Tensor:
        given = lut.check_lookup(q, entries, low)
        by_kernel = self.supports("lookup_codes", device=given[0].device) is True
        return (lut.looked_up_by_kernel if by_kernel else lut.looked_up)(*given)

    evaluate_codes.__doc__ = lut.evaluate_codes.__doc__
    lookup_codes.__doc__ = lut.lookup_codes.__doc__
    requantize_codes = staticmethod(lut.requantize_codes)
    table_gradient = staticmethod(lut.table_gradient)
    evaluate_ranges = staticmethod(lut.evaluate_ranges)
    table_softmax = staticmethod(lut.table_softmax)
    table_layer_norm = staticmethod(lut.table_layer_norm)
    verify_table = staticmethod(lut.verify_table)
    genome_fitness = staticmethod(lut_search.genome_fitness)

    @operation
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
    ) -> GeneticSearch[Tensor]:
        """The published genetic search of a table, with addressed or with the published random numbers.  [L-21, L-22]

        Raises:
            SpecError: L-21.
        """
        return lut_search.genetic_search(
            torch.device(self.device), function, entries, seed, draws, rounding, generations, population
        )

    @operation
    def knot_grid(self, *, function: TableFunction, fraction_bits: int = 6) -> Tensor:
        """Multiples of 2^−f in the published range of breakpoints, between the two sentinels, float64.  [L-23]"""
        return lut_search.knot_grid(torch.device(self.device), function, fraction_bits)

    search_problem = staticmethod(lut_search.search_problem)
    optimal_search = staticmethod(lut_search.optimal_search)
    optimality_bound = staticmethod(lut_search.optimality_bound)
    table_objective = staticmethod(lut_search.table_objective)

    # --- X
    @operation
    def error_vector_score(self, logits: Tensor, labels: Tensor, /) -> Tensor:
        given = coreset.check_error_vector(logits, labels)
        by_kernel = self._by_kernel("error_vector_score", given.x)
        return (coreset.scored_by_kernel if by_kernel else coreset.scored)(given)

    @operation
    def disagreement_score(self, logits: Tensor, reference: Tensor, /) -> Tensor:
        given = coreset.check_disagreement(logits, reference)
        by_kernel = self._by_kernel("disagreement_score", logits, reference)
        return (coreset.scored_by_kernel if by_kernel else coreset.scored)(given)

    @operation
    def acs_score(
        self,
        logits: Tensor,
        reference: Tensor,
        labels: Tensor,
        /,
        *,
        epoch: float,
        epochs: int,
        schedule: AcsSchedule = "paper",
    ) -> Tensor:
        given = coreset.check_acs(logits, reference, labels, epoch, epochs, schedule)
        by_kernel = self._by_kernel("acs_score", logits, reference)
        return (coreset.scored_by_kernel if by_kernel else coreset.scored)(given)

    error_vector_score.__doc__ = coreset.error_vector_score.__doc__
    disagreement_score.__doc__ = coreset.disagreement_score.__doc__
    acs_score.__doc__ = coreset.acs_score.__doc__
    select_coreset = staticmethod(coreset.select_coreset)
    el2n_score = staticmethod(coreset.el2n_score)
    grand_score = staticmethod(coreset.grand_score)
    forgetting_score = staticmethod(coreset.forgetting_score)
    moderate_score = staticmethod(coreset.moderate_score)
    contextual_diversity = staticmethod(coreset.contextual_diversity)
    k_center = staticmethod(coreset.k_center)
    herding = staticmethod(coreset.herding)

    @operation
    def random_score(self, *, size: int, seed: int, index: int = 0) -> Tensor:
        """A score by chance, float64.  [X-12]"""
        return coreset.random_score(size, seed, index, torch.device(self.device))

    # --- W
    logit_loss = staticmethod(distill.logit_loss)
    token_loss = staticmethod(distill.token_loss)
    feature_loss = staticmethod(distill.feature_loss)
    score_loss = staticmethod(distill.score_loss)

    @operation
    def attention_map_loss(
        self, student: Tensor, teacher: Tensor, lengths: Tensor, /, *, floor: float = 1e-8
    ) -> LossGradient[Tensor]:
        given = distill.check_map_loss(student, teacher, lengths, floor)
        by_kernel = self._by_kernel("attention_map_loss", student, teacher, width=student.shape[-1])
        return (distill.map_loss_by_kernel if by_kernel else distill.map_loss)(given)

    attention_map_loss.__doc__ = distill.attention_map_loss.__doc__
    ranking_loss = staticmethod(diagnostics.ranking_loss)
    cover_length = staticmethod(diagnostics.cover_length)
    attention_range = staticmethod(diagnostics.attention_range)
    attention_norms = staticmethod(diagnostics.attention_norms)
    power_eigenvalues = staticmethod(diagnostics.power_eigenvalues)


def configure(device: str = "cpu", kernels: Kernels = "auto") -> TorchBackend:
    """The backend on another device, or with another choice of kernels.

    Args:
        device: a torch device, such as ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; it must hold float64.
        kernels: see :class:`TorchBackend`.

    Raises:
        ValueError: the device is unknown or cannot be used here, or ``kernels="triton"`` cannot run on it.
    """
    if kernels not in get_args(Kernels):
        raise ValueError(f"kernels must be one of {', '.join(get_args(Kernels))}, got {kernels!r}")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"unknown device {device!r}: {str(error).splitlines()[0]}") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} is not available: torch {torch.__version__} finds no CUDA GPU here")
    try:
        torch.ones((), dtype=torch.float64, device=place).item()
    except (RuntimeError, TypeError, NotImplementedError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    backend = TorchBackend(str(place), kernels)
    if kernels == "triton":
        reason = backend.supports("quantize")
        if reason is not True:
            raise ValueError(f"kernels='triton' cannot be used on {device!r}: {reason}")
    return backend
