"""The adapter of one layer, as a file will hold it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from lowbit.formats.factors import Coded, FactorForm, pack_factors, unpack_factors
from lowbit.models.weights import stored_as

from .arrays import Arrays
from .method import Method

__all__ = ["DAMPING", "Patch", "best_patch", "code_factors", "compensate"]

DAMPING = 0.1
"""Of the moment of gradients, share of its mean diagonal, wherever a patch is weighed with it."""


class Patch(NamedTuple):
    """Factors as stored, and what the solver said of them."""

    b: torch.Tensor  # (m, r), storage dtype
    a: torch.Tensor  # (r, k), storage dtype
    lower_bound: float | None
    method: str
    packed: dict[str, torch.Tensor] | None  # the same factors as codes, when those are asked for

    @property
    def product(self) -> torch.Tensor:
        """B A in float32, (m, k)."""
        return self.b.to(torch.float32) @ self.a.to(torch.float32)


def best_patch(arrays: Arrays, error: Any, c: Any, g: Any, *, rank: int, tolerance: float = 1e-6) -> Any:
    """The patch that leaves least of an error, at the layer's output or, where ``g`` is known, at the model's."""
    if g is None:
        return arrays.backend.eora_certified(error, c, rank=rank, tolerance=tolerance)
    return arrays.backend.divergence_patch(error, c, g, rank=rank, damping=DAMPING, tolerance=tolerance)


def compensate(method: Method, arrays: Arrays, d: torch.Tensor, c: Any, g: Any, magnitude: torch.Tensor) -> Patch:
    """Factors for the error ``d`` (m, k), rounded to the type they are stored in.

    Args:
        method: how.
        arrays: of the backend that computes.
        d: error of the weight, float32 (m, k).
        c: second moment of the inputs, an array (k, k).
        g: second moment of the gradients at the outputs, an array (m, m), or None.
        magnitude: mean absolute input by column, float32 (k,).
    """
    backend = arrays.backend
    error = arrays.give(d)
    bound: float | None = None
    solver: str = method.compensate
    if method.compensate == "eora":
        solution = best_patch(arrays, error, c, g, rank=method.rank)
        b, a, bound, solver = solution.B, solution.A, float(solution.lower_bound), str(solution.method)
    elif method.compensate == "svd":
        b, a = backend.svd_patch(error, rank=method.rank)
    else:
        b, a = backend.scaled_svd_patch(error, arrays.give(magnitude), rank=method.rank)
    if method.adapter_bits is not None:
        packed = code_factors(method, arrays, b, a, c)
        form = FactorForm((b.shape[0], a.shape[1]), method.rank, method.adapter_bits, method.group_size)
        b, a = unpack_factors(packed, form)
        return Patch(b, stored_as(method.storage, a, "a factor of its adapter"), bound, solver, packed)
    stored = [
        stored_as(method.storage, arrays.take(factor), "a factor of its adapter").contiguous() for factor in (b, a)
    ]
    return Patch(stored[0], stored[1], bound, solver, None)


def code_factors(method: Method, arrays: Arrays, b: Any, a: Any, c: Any) -> dict[str, torch.Tensor]:
    """Factors as codes of ``method.adapter_bits``: the tensors of :func:`~lowbit.formats.factors.pack_factors`.

    A is an ordinary layer with inputs of second moment ``c``, rounded by GPTQ. B sees A C Aᵀ, which is diagonal for
    the factors of EoRA, and a diagonal weighs columns: every value is rounded to nearest [E-7], on the grids of Bᵀ.
    For a patch of chapter F, whose A C Aᵀ need not be diagonal, that is an approximation.
    """
    backend, bits = arrays.backend, method.adapter_bits
    across = arrays.give(arrays.take(b).T.contiguous())

    def group(columns: int) -> int | None:
        return method.group_size if method.group_size and columns % method.group_size == 0 else None

    first = backend.gptq(
        a,
        c,
        bits=bits,
        scheme="asymmetric",
        group_size=group(int(a.shape[1])),
        clip_search=method.clip_search,
        damping=method.adapter_damping,
        scale_dtype=method.scale_dtype,
    )
    fit = backend.clip_search if method.clip_search else backend.fit_grid
    size = group(int(across.shape[1]))
    grid = fit(
        across,
        bits=bits,
        scheme="asymmetric",
        granularity="group" if size else "row",
        group_size=size,
        scale_dtype=method.scale_dtype,
    )
    codes = backend.quantize(across, grid.scale, grid.zero_point, bits=bits, scheme="asymmetric")
    found = [
        Coded(arrays.take(code), _scales(method, arrays.take(scale)), arrays.take(zero))
        for code, scale, zero in ((first.codes, first.scale, first.zero_point), (codes, grid.scale, grid.zero_point))
    ]
    return pack_factors(found[0], found[1], int(bits or 0))


def _scales(method: Method, scale: torch.Tensor) -> torch.Tensor:
    return stored_as(method.storage, scale, "a scale of its adapter")
