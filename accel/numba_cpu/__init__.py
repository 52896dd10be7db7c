"""The Numba backend: every operation of the specification on the CPU, compiled to machine code on first use.

``lowbit.load("numba")`` returns this module, ``lowbit.load("numba", threads=4)`` the same operations limited to four
threads. Arrays are NumPy's. float32 (and float16) data is computed in float32, float64 data in float64. Results do not
depend on the number of threads, except in the last digits of operations that hand a decomposition to LAPACK: the
patches of chapters C and E, and products of chapter D.

Compiled code is kept beside the sources (or in Numba's cache folder when that is not writable), so only the first call
on a machine waits for the compiler.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.reference.protocol import operations

from ._jit import default_threads, limited_to
from .adapter import quantize_adapter
from .dora import (
    decomposition_change,
    dora_forward,
    dora_gradient,
    dora_magnitude,
    dora_merge,
    dora_norm,
    dora_to_lora,
    dora_unmerge,
    dora_weight,
    dvora_factors,
    dvora_gradient,
    factored_norm,
)
from .eigenspace import (
    eora,
    eora_certified,
    eora_published,
    error_spectrum,
    objective,
    optimum,
    stationarity,
)
from .gptq import gptq, inverse_cholesky
from .low_rank import scaled_svd_patch, svd_patch
from .moments import moment_leaf, moment_merge, moment_total, recency_moment
from .packing import pack, unpack
from .philox import philox_integers, philox_normal, philox_uniform, philox_words
from .rank_budget import (
    allocate_greedy,
    allocate_proportional,
    allocate_threshold,
    allocation_bound,
    allocation_objective,
    explained_error,
    gradient_importance,
    loss_importance,
    nest_patch,
    pool_modules,
    rank_cost,
    reallocate_ranks,
    residual_damage,
    subspace_overlap,
    threshold_ranks,
)
from .rounding import nearest_level, round_clip, round_half_even
from .sparsity import sparsegpt, wanda
from .uniform import clip_search, dequantize, fit_grid, quantize

__all__ = [
    "NumbaBackend",
    "allocate_greedy",
    "allocate_proportional",
    "allocate_threshold",
    "allocation_bound",
    "allocation_objective",
    "asarray",
    "clip_search",
    "compute_dtype",
    "configure",
    "decomposition_change",
    "dequantize",
    "device",
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
    "eora",
    "eora_certified",
    "eora_published",
    "error_spectrum",
    "explained_error",
    "factored_norm",
    "fit_grid",
    "gptq",
    "gradient_importance",
    "inverse_cholesky",
    "loss_importance",
    "moment_leaf",
    "moment_merge",
    "moment_total",
    "name",
    "nearest_level",
    "nest_patch",
    "objective",
    "optimum",
    "pack",
    "philox_integers",
    "philox_normal",
    "philox_uniform",
    "philox_words",
    "pool_modules",
    "quantize",
    "quantize_adapter",
    "rank_cost",
    "reallocate_ranks",
    "recency_moment",
    "residual_damage",
    "round_clip",
    "round_half_even",
    "scaled_svd_patch",
    "sparsegpt",
    "stationarity",
    "subspace_overlap",
    "svd_patch",
    "threshold_ranks",
    "to_numpy",
    "unpack",
    "wanda",
]

name = "numba"
compute_dtype = "float32"
device = "cpu"


def asarray(x: npt.NDArray[Any], /) -> npt.NDArray[Any]:
    """NumPy → the backend's own array, which is the same array."""
    return np.asarray(x)


def to_numpy(x: npt.NDArray[Any], /) -> npt.NDArray[Any]:
    """The backend's own array → NumPy, which is the same array."""
    return np.asarray(x)


class NumbaBackend:
    """The operations of this module, run on at most ``threads`` threads; made by :func:`configure`.

    Attributes:
        name: "numba".
        compute_dtype: "float32", the precision of sums when inputs are float32.
        device: "cpu".
        threads: largest number of threads an operation uses.
    """

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise ValueError(f"threads must be None or a positive integer, got {threads!r}")
        self.name, self.compute_dtype, self.device = name, compute_dtype, device
        self.threads = threads or default_threads()

    asarray = staticmethod(asarray)
    to_numpy = staticmethod(to_numpy)

    def __getattr__(self, operation: str) -> Any:
        if operation not in operations():
            raise AttributeError(f"the numba backend has no {operation!r}")
        function = globals()[operation]

        @functools.wraps(function)
        def run(*args: Any, **options: Any) -> Any:
            with limited_to(self.threads):
                return function(*args, **options)

        return run

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *operations()]

    def __repr__(self) -> str:
        return f"<lowbit numba backend, {self.threads} threads>"


def configure(threads: int | None = None) -> NumbaBackend:
    """The same operations, limited to ``threads`` threads (None: ``NUMBA_NUM_THREADS``, else the CPUs allowed).

    Nothing global changes: other callers keep their own limit.
    """
    return NumbaBackend(threads)
