"""The Numba backend: every operation of the specification on the CPU, compiled to machine code on first use.

``lowbit.load("numba")`` returns this module, ``lowbit.load("numba", threads=4)`` the same operations limited to four
threads. Arrays are NumPy's. float32 (and float16) data is computed in float32, float64 data in float64. Results do not
depend on the number of threads, except in the last digits of operations that hand a decomposition to LAPACK: the
patches of chapters C and E, and products of chapter D.

Compiled code is kept beside the sources (or in Numba's cache folder when that is not writable), so only the first call
on a machine waits for the compiler. Where neither can be written to, a warning names ``NUMBA_CACHE_DIR``, and every
process compiles for itself.
"""

# ruff: noqa: F403

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.accel.common.door import refuse_unlike

from . import operations
from ._jit import default_threads, limited_to
from ._lookup import portable_kernels
from .operations import *

name = "numba"
compute_dtype = "float32"
device = "cpu"


def asarray(x: npt.NDArray[Any], /) -> npt.NDArray[Any]:
    """NumPy → the backend's own array, which is the same array."""
    refuse_unlike("x", x)
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
        kernels: "auto", or "portable" where no kernel may need instructions of its own.
    """

    def __init__(self, threads: int | None = None, kernels: str = "auto") -> None:
        if kernels not in ("auto", "portable"):
            raise ValueError(f"kernels must be 'auto' or 'portable', got {kernels!r}")
        if threads is not None and (
            isinstance(threads, bool) or not isinstance(threads, int | np.integer) or threads < 1
        ):
            raise ValueError(f"threads must be None or a positive integer, got {threads!r}")
        self.name, self.compute_dtype, self.device = name, compute_dtype, device
        self.threads = int(threads or default_threads())
        self.kernels = kernels

    asarray = staticmethod(asarray)
    to_numpy = staticmethod(to_numpy)

    def __getattr__(self, operation: str) -> Any:
        function = None if operation.startswith("_") else vars(operations).get(operation)
        if function is None:
            raise AttributeError(f"the numba backend has no {operation!r}")

        @functools.wraps(function)
        def run(*args: Any, **options: Any) -> Any:
            with limited_to(self.threads), portable_kernels(self.kernels == "portable"):
                return function(*args, **options)

        return run

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(name for name in vars(operations) if not name.startswith("_"))]

    def __repr__(self) -> str:
        return f"<lowbit numba backend, {self.threads} threads>"


def configure(threads: int | None = None, kernels: str = "auto") -> NumbaBackend:
    """The same operations, limited to ``threads`` threads (None: ``NUMBA_NUM_THREADS``, else the CPUs allowed).

    ``kernels="portable"`` keeps off the kernel of ``bcq_product`` that needs AVX-512, for measuring and testing the
    other one; :func:`product_path` tells which one runs. Nothing global changes: other callers keep their choice.
    """
    return NumbaBackend(threads, kernels)
