"""What the tests of the Torch backend share: poisoned memory, and inputs of every operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from lowbit.reference.types import DecoderBlock, IntegerTable, Table  # noqa: E402

HALVES = ("float16", "bfloat16")
DTYPES = (*HALVES, "float32", "float64")


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is full of NaN (integers: of a wild value), so that reading it before writing shows."""

    def poison(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **kwargs: Any) -> Tensor:
            x = make(*args, **kwargs)
            if x.device.type != "meta":
                x.fill_(torch.nan if x.is_floating_point() else x.dtype != torch.bool and torch.iinfo(x.dtype).min)
            return x

        return made

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))


def weights(seed: int, *shape: int, dtype: str = "float64") -> Tensor:
    """Gaussian numbers."""
    x = np.random.default_rng(seed).normal(size=shape)
    return torch.from_numpy(np.asarray(x)).to(getattr(torch, dtype))


def moment(seed: int, k: int, *, dead: tuple[int, ...] = (), dtype: str = "float64") -> Tensor:
    """A second moment of inputs with widely different and correlated channels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3 * k, k)) @ (np.eye(k) + 0.3 * rng.normal(size=(k, k))) * np.exp(rng.normal(size=k))
    x[:, list(dead)] = 0.0
    return torch.from_numpy(x.T @ x).to(getattr(torch, dtype))


def calls(backend: Any, dtype: str) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments for one call of every operation, in one dtype."""
    w, c = weights(0, 6, 16, dtype=dtype), moment(1, 16, dead=(3,), dtype=dtype)
    scale, zero = backend.fit_grid(w, bits=4)
    codes = backend.quantize(w, scale, zero, bits=4)
    b, a = weights(2, 6, 3, dtype=dtype), weights(3, 3, 16, dtype=dtype)
    nodes = backend.moment_leaf(w, index=0)
    p, k, d = (torch.tensor(t, dtype=w.dtype) for t in ([0.5, 2.0], [0.25, 1.0, 0.5], [0.0, -1.0, 0.75]))
    lines, counts = Table(p, k, d), [(n * 2.0**by).to(torch.int32) for n, by in ((p, 2), (k, 6), (d, 8))]
    whole = IntegerTable(counts[0], counts[1], counts[2], 2, 6)
    table, blocks = backend.normal_float(bits=4), backend.block_scale(w, block_size=20)
    binary = backend.bcq(w, bits=2, group_size=8, offset=True)
    planes = backend.bcq_pack(*binary)
    batches = (weights(4, 2, 5, 4, dtype=dtype), weights(5, 1, 3, 4, dtype=dtype))
    per_row = w[:, 0].abs() + 0.5
    spectra, each = w.abs().sort(dim=1, descending=True).values, w[:, 0].abs()
    market = tuple(
        torch.tensor(row, dtype=torch.int32) for row in ([1, 2, 3, 1, 2, 3], [0, 0, 2, 0, 0, 0], [16, 4, 16, 4, 16, 8])
    )
    shapes, group = (torch.tensor(rows, dtype=torch.int32) for rows in ([[4, 9], [3, 8]], [0, 1, 0, 2, 2, 1]))
    now = torch.tensor([3, 4, 2, 1, 1, 0], dtype=torch.int32)
    addresses = torch.arange(24).reshape(6, 4)
    signs = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]).to(w.dtype)
    block = DecoderBlock(w[0], w, w, w, w.T.clone(), w[0], w[:4], w[1:5], w[:4].T.clone(), None, w[1], None)
    alpha = weights(6, 6, 2, 2, dtype=dtype).abs()
    on = backend.trainable_scales(alpha)
    features = weights(7, 2, 3, 2, dtype=dtype), weights(8, 2, 3, 2, dtype=dtype)
    scores = weights(9, 2, 2, 4, 4, dtype=dtype), weights(10, 2, 2, 4, 4, dtype=dtype)
    sizes = torch.arange(1, 4, dtype=torch.int32).repeat(6, 1)
    search = (
        torch.tensor([-4.0, -1.0, 1.0, 4.0], dtype=w.dtype),
        torch.tensor([0.0, -0.25, 0.75, 4.0], dtype=w.dtype),
        torch.tensor([-2.0, 0.0, 1.0, 2.0], dtype=w.dtype),
        torch.tensor([0.0, 0.0, 1.0, 2.0], dtype=w.dtype),
        torch.tensor([[0, 1, 2, 4]], dtype=torch.int32),
    )
    picked = torch.tensor([1, 0, 3, 1, 2, 1], dtype=torch.int32)
    return {
        "philox_words": ((addresses,), {"seed": 1}),
        "philox_uniform": ((addresses,), {"seed": 1}),
        "philox_integers": ((addresses,), {"seed": 1, "bound": 7}),
        "philox_normal": ((addresses,), {"seed": 1}),
        "round_half_even": ((w,), {}),
        "round_clip": ((w,), {"low": -2, "high": 1}),
        "nearest_level": ((w, torch.tensor([-1.0, 0.0, 0.5]).to(w.dtype)), {}),
        "fit_grid": ((w,), {"bits": 3}),
        "clip_search": ((w,), {"bits": 3, "granularity": "group", "group_size": 8}),
        "quantize": ((w, scale, zero), {"bits": 4}),
        "dequantize": ((codes, scale, zero), {}),
        "pack": ((codes,), {"bits": 4}),
        "unpack": ((backend.pack(codes, bits=4),), {"bits": 4, "length": 16}),
        "normal_float": ((), {"bits": 4}),
        "dynamic_float": ((), {"bits": 8}),
        "block_scale": ((w,), {"block_size": 12}),
        "quantize_blocks": ((w, blocks, table), {"block_size": 20}),
        "dequantize_blocks": ((codes, blocks, table), {"block_size": 20}),
        "quantize_scale": ((blocks, table), {"block_size": 3}),
        "dequantize_scale": ((codes[0], blocks[:2], blocks[2], table), {"block_size": 8}),
        "codebook_matmul": ((w, backend.pack(codes, bits=4), blocks, table), {"bits": 4, "block_size": 20}),
        "twn_code": ((w,), {"granularity": "row"}),
        "twn": ((w,), {"clip": 1.0}),
        "clamped_uniform": ((w,), {"granularity": "row"}),
        "min_max": ((w,), {"scheme": "asymmetric"}),
        "straight_through": ((w, w.flip(0)), {"clip": 1.0}),
        "lsq_init": ((w,), {"bits": 4, "axis": 0}),
        "lsq_code": ((w, per_row), {"bits": 4, "axis": 0}),
        "lsq": ((w, per_row, w[:, 0].clone()), {"bits": 4, "axis": 0}),
        "lsq_gradient": ((w, w, w[0].abs() + 0.5, w[0].clone()), {"bits": 2, "axis": 1}),
        "statsq": ((w,), {"bits": 3}),
        "statsq_grad": ((w, w + 1), {"bits": 3, "path": "scale"}),
        "start_oscillation": ((codes,), {}),
        "track_oscillation": (
            (codes, codes.flip(0), codes % 3 - 1, w.abs(), codes, w, w > 0, codes // 2),
            {"threshold": 0.5},
        ),
        "boundary_statistics": ((w, w + 1, w - 1), {"bits": 2, "boundary_range": 0.25}),
        "cga_mask": ((w,), {"bits": 2, "boundary_range": 0.25}),
        "cga_step": ((w, w + 1, w - 1, w.square(), w > 0), {"step": 2, "lr": 0.1, "decay": 0.1}),
        "qkr_weight": ((w, w + 1), {"heads": 2}),
        "qkr_grad": ((w, w + 1, c.repeat(2, 1), c.repeat(2, 1) > 0), {"heads": 2}),
        "qkr_attention": ((a[None], w, w + 1, w - 1, w[:, 0].clone(), w[:, 1].clone()), {"heads": 2}),
        "bcq": ((w,), {"bits": 2, "group_size": 8}),
        "bcq_refit": ((w, codes & 7), {"bits": 3, "offset": True}),
        "bcq_assign": ((w, binary.scale, binary.offset), {}),
        "bcq_weight": (tuple(binary), {}),
        "bcq_from_grid": ((codes, scale, zero), {"bits": 4}),
        "bcq_pack": (tuple(binary), {}),
        "bcq_unpack": (tuple(planes), {"length": 16}),
        "lookup_tables": ((w,), {"width": 4}),
        "bcq_product": ((w, *planes), {}),
        "trainable_scales": ((alpha,), {"train": "largest"}),
        "scale_grad": ((w, codes), {"bits": 4, "group_size": 8}),
        "scale_grad_tokens": ((a, weights(7, 3, 6, dtype=dtype), codes), {"bits": 4}),
        "tune_step": ((alpha, alpha - 1, alpha, alpha, alpha, on), {"step": 1, "lr": 0.1}),
        "fit_scales": ((w, c, codes % 4, alpha, on), {}),
        "row_bits": ((codes[0],), {"clusters": 3}),
        "allocate_bits": ((w[:, :3].square(), sizes), {"budget": 9}),
        "project_rows": ((w, torch.tensor([1, 2, 3, 4, 8, 1])), {}),
        "inverse_cholesky": ((c,), {}),
        "gptq": ((w, c), {"bits": 3, "group_size": 8, "act_order": True}),
        "sparsegpt": ((w, c), {"bits": 4}),
        "wanda": ((w, c.diagonal().clone()), {}),
        "moment_leaf": ((w,), {"index": 5}),
        "moment_merge": ((nodes, backend.moment_leaf(w, index=1)), {}),
        "moment_total": ((nodes,), {}),
        "recency_moment": ((batches,), {"total": 4}),
        "svd_patch": ((w,), {"rank": 2}),
        "scaled_svd_patch": ((w, c.diagonal().sqrt()), {"rank": 2}),
        "loftq": ((w,), {"rank": 2, "bits": 2, "iterations": 2}),
        "objective": ((w, c), {}),
        "eora": ((w, c), {"rank": 2}),
        "error_spectrum": ((w, c), {}),
        "optimum": ((w, c), {"rank": 2}),
        "eora_published": ((w, c), {"rank": 2}),
        "eora_certified": ((w, c), {"rank": 2}),
        "stationarity": ((w, c, b, a), {}),
        "quantize_adapter": ((b, a, c), {"bits": 4}),
        "residual_moment": ((c, a), {}),
        "explained_error": ((spectra,), {}),
        "residual_damage": ((spectra, each), {}),
        "subspace_overlap": ((w, w + w.flip(0) / 8, c), {"rank": 3}),
        "gradient_importance": ((w,), {}),
        "loss_importance": ((each, spectra), {"base": 0.25}),
        "rank_cost": ((shapes,), {"bits": 3}),
        "allocate_greedy": ((spectra, each, *market), {"budget": 30}),
        "threshold_ranks": ((spectra, *market[1:]), {"threshold": 0.75}),
        "allocate_threshold": ((spectra, *market), {"budget": 30, "multiple": 2}),
        "allocate_proportional": ((each, *market), {"budget": 30, "leftover": "fill"}),
        "allocation_objective": ((spectra, each, now), {}),
        "allocation_bound": ((spectra, each, *market), {"budget": 30}),
        "pool_modules": ((spectra, each, *market, group), {}),
        "reallocate_ranks": ((spectra, spectra[:, 2:] / 4, each, *market, now), {"budget": 30, "step": 1}),
        "nest_patch": ((b, a, c), {}),
        "dora_magnitude": ((w,), {}),
        "dora_norm": ((w, b, a), {"scaling": 2.0}),
        "factored_norm": ((w, 9 * per_row, b, a), {"scaling": 0.5}),
        "dora_weight": ((w, b, a, per_row), {"scaling": 2.0}),
        "dora_forward": ((w, w, w, per_row, b, a, per_row), {"scaling": 2.0}),
        "dora_gradient": ((w, w, b, a, per_row), {"scaling": 2.0, "detach": False}),
        "dora_merge": ((w, b, a, per_row), {"scaling": 2.0}),
        "dora_unmerge": ((w, b, a, per_row), {"scaling": 2.0}),
        "dvora_factors": ((b, a, per_row, per_row[:3]), {}),
        "dvora_gradient": ((b, a, b, a), {}),
        "decomposition_change": ((w, w + 1), {}),
        "dora_to_lora": ((w, b, a, per_row), {"scaling": 2.0, "rank": 2}),
        "hadamard_matrix": ((), {"order": 12}),
        "hadamard_transform": ((w,), {}),
        "kronecker_transform": ((w, signs), {}),
        "random_hadamard": ((), {"order": 12, "seed": 1}),
        "orthogonal_factor": ((c,), {}),
        "random_orthogonal": ((), {"order": 6, "seed": 1}),
        "fuse_norm": ((w, w[0]), {}),
        "rotate_inputs": ((w, c), {}),
        "rotate_outputs": ((w.T.clone(), c), {}),
        "rotate_block": ((block, c, None), {}),
        "rotate_ends": ((w, w[0], None, c), {"centre": True}),
        "outlier_measures": ((w,), {}),
        "quantize_activations": ((w,), {"bits": 4}),
        "activation_clip": ((w,), {"bits": 4}),
        "fit_chords": ((w[0].sort().values, w[1]), {}),
        "fit_segments": ((w[1], w[0], w[2, :3].sort().values), {}),
        "round_table": ((lines,), {"bits": 8}),
        "integer_table": ((lines,), {"scale_bits": 3}),
        "evaluate_table": ((w, lines), {}),
        "evaluate_codes": ((codes, whole), {}),
        "lookup_codes": ((codes, w[0]), {"low": 0}),
        "requantize_codes": ((codes,), {"shift": 1}),
        "table_gradient": ((w, codes), {"scale": 0.5, "function": "silu"}),
        "evaluate_ranges": ((w.abs() + 1, lines), {"function": "reciprocal"}),
        "table_softmax": ((codes, whole, whole), {}),
        "table_layer_norm": ((codes, whole), {}),
        "verify_table": ((whole, w[0]), {"low": -8}),
        "genome_fitness": ((w,), {"function": "gelu"}),
        "genetic_search": ((), {"function": "gelu", "entries": 4, "generations": 2, "population": 5}),
        "knot_grid": ((), {"function": "exp", "fraction_bits": 1}),
        "search_problem": ((search[0],), {"function": "gelu", "scale_bits": (0, 2)}),
        "optimal_search": (search, {"entries": 3}),
        "optimality_bound": ((*search, search[0].reshape(1, 4) * search[0].reshape(4, 1)), {}),
        "table_objective": ((*search[2:], search[0][:3], search[1][:3]), {}),
        "error_vector_score": ((w, picked), {}),
        "disagreement_score": ((w, w + 1), {}),
        "acs_score": ((w, 2 * w, picked), {"epoch": 3, "epochs": 9}),
        "select_coreset": ((w[:, 0], picked), {"fraction": 0.5}),
        "el2n_score": ((torch.stack([w, 2 * w]), picked), {}),
        "grand_score": ((w, w[:, :7], picked), {"batch_size": 2}),
        "forgetting_score": ((w > 0,), {}),
        "moderate_score": ((w, picked // 2), {"center": "median", "against": "class-median"}),
        "contextual_diversity": ((w.abs(), w[:2].abs()), {"epsilon": 0.125}),
        "k_center": ((w, picked[:1]), {"count": 2}),
        "herding": ((w,), {"count": 3}),
        "random_score": ((), {"size": 7, "seed": 1}),
        "logit_loss": ((w, w.flip(0)), {"temperature": 2.0}),
        "token_loss": ((*features, torch.tensor([[0, -100, 1], [1, 0, 1]])), {"ignored": "skip"}),
        "feature_loss": ((*features, torch.tensor([3, 1])), {}),
        "score_loss": (scores, {"causal": True}),
        "attention_map_loss": ((*scores, torch.tensor([1, 4])), {}),
        "ranking_loss": ((scores[0][0], scores[1][0]), {}),
        "cover_length": ((scores[0][0], scores[1][0]), {"top": 2}),
        "attention_range": ((w,), {}),
        "attention_norms": ((scores[0][0], w[:4], w[:4], w[0, :4].clone(), w[:, :4].clone()), {}),
        "power_eigenvalues": ((c, w), {"iterations": 5}),
    }


def tensors(value: Any) -> list[Tensor]:
    """Every tensor in nested tuples and lists."""
    if isinstance(value, Tensor):
        return [value]
    return [t for item in value for t in tensors(item)] if isinstance(value, (tuple, list)) else []


def float64(x: Tensor) -> npt.NDArray[np.float64]:
    """The same numbers in NumPy's float64."""
    return np.asarray(x.to(torch.float64).numpy())
