"""How kernels are compiled, and how their work is shared between threads.

Kernels are plain loops compiled with the GIL released; a small pool of Python threads runs them on *fixed* pieces of
the work, handed out one by one. Results are therefore independent of the number of threads, and there is no
process-wide threading layer that a fork, another library or a nested call could upset. Numba's own parallel loops
would take several times longer to compile for the same speed.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from llvmlite import ir
from numba import config, njit, types
from numba.extending import intrinsic

__all__ = [
    "as_float",
    "as_int",
    "default_threads",
    "from_key",
    "kernel",
    "limited_to",
    "order_key",
    "pieces",
    "primitive",
    "share",
    "threads",
]

F = TypeVar("F", bound=Callable[..., Any])

_SHARED = tuple(
    sorted((p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in Path(__file__).resolve().parent.glob("_*.py"))
)


def kernel(function: F) -> F:
    """Compile on first use for the argument types seen, keep the machine code on disk, release the GIL.

    Division by zero follows IEEE 754 (no branch per element), and no fast-math flag is set: every operation rounds
    where it is written, and a division stays a division.
    """
    compiled: Any = njit(nogil=True, cache=True, error_model="numpy")(function)
    # Numba notices a change of the file that holds a kernel, not of the helpers it calls: add theirs to the stamp.
    index = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if index is not None and hasattr(index, "_source_stamp"):
        index._source_stamp = (index._source_stamp, _SHARED)
    typed: F = compiled
    return typed


def primitive(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of kernels that emits its own machine instructions; kernels call it without the typing context."""
    emitted: Callable[..., Any] = intrinsic(function)
    return emitted


def _bitcast(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    target: ir.Type = context.get_value_type(signature.return_type)
    return builder.bitcast(args[0], target)


def _flip_negative(builder: Any, bits: Any) -> Any:
    """All bits but the sign inverted where the sign is set: IEEE 754 order ↔ integer order, its own inverse."""
    sign = builder.ashr(bits, ir.Constant(bits.type, bits.type.width - 1))
    return builder.xor(bits, builder.lshr(sign, ir.Constant(bits.type, 1)))


@primitive
def as_int(typingctx: Any, value: Any) -> Any:
    """Bits of a float32 as int32, or of a float64 as int64."""
    return (types.int32 if value == types.float32 else types.int64)(value), _bitcast


@primitive
def as_float(typingctx: Any, value: Any) -> Any:
    """Float32 with the bits of an int32, or float64 with those of an int64."""
    return (types.float32 if value == types.int32 else types.float64)(value), _bitcast


@primitive
def order_key(typingctx: Any, value: Any) -> Any:
    """Integer that compares as the float does; a NaN lies beyond the infinity of its sign."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _flip_negative(builder, _bitcast(context, builder, signature, args))

    return (types.int32 if value == types.float32 else types.int64)(value), codegen


@primitive
def from_key(typingctx: Any, key: Any) -> Any:
    """The float of an :func:`order_key`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _bitcast(context, builder, signature, [_flip_negative(builder, args[0])])

    return (types.float32 if key == types.int32 else types.float64)(key), codegen


def default_threads() -> int:
    """Threads used when nothing else is said: ``NUMBA_NUM_THREADS``, else the CPUs this process may use."""
    return int(vars(config)["NUMBA_NUM_THREADS"])


_limit: ContextVar[int | None] = ContextVar("lowbit_numba_threads", default=None)
_pool: ThreadPoolExecutor | None = None


def threads() -> int:
    """Threads that the running operation may use."""
    return _limit.get() or default_threads()


@contextmanager
def limited_to(count: int | None) -> Iterator[None]:
    """Run the operations inside with at most ``count`` threads."""
    token = _limit.set(count)
    try:
        yield
    finally:
        _limit.reset(token)


def _forget_pool() -> None:
    global _pool
    _pool = None  # a forked child has none of the parent's threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def share(count: int, task: Callable[[int], object]) -> None:
    """Call ``task(0) … task(count − 1)``, each once, on up to :func:`threads` threads; the caller's is one of them."""
    global _pool
    helpers = min(threads(), count) - 1
    numbers = itertools.count()

    def drain() -> None:
        for number in iter(numbers.__next__, None):
            if number >= count:
                return
            task(number)

    if helpers < 1:
        drain()
        return
    if _pool is None:
        _pool = ThreadPoolExecutor(max_workers=256, thread_name_prefix="lowbit-numba")
    waiting: list[Future[None]] = [_pool.submit(drain) for _ in range(helpers)]
    try:
        drain()
    finally:
        outcomes = [future for future in waiting if not future.cancel()]
        for future in outcomes:
            future.exception()  # wait for it, so that no thread still writes when the caller goes on
    for future in outcomes:
        future.result()


def pieces(rows: int, width: int, *, elements: int = 1 << 18) -> list[tuple[int, int]]:
    """Row ranges of about ``elements`` values each: a function of the shape alone."""
    step = max(1, elements // max(width, 1))
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]
