"""How kernels are compiled, and how their work is shared between threads.

Kernels are plain loops compiled with the GIL released; a small pool of Python threads runs them on *fixed* pieces of
the work, handed out one by one. Results are therefore independent of the number of threads, and there is no
process-wide threading layer that a fork, another library or a nested call could upset. Numba's own parallel loops
would take several times longer to compile for the same speed.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import config, njit, types
from numba.extending import intrinsic

__all__ = [
    "as_float",
    "as_int",
    "by_pieces",
    "claim",
    "collected",
    "default_threads",
    "from_key",
    "kernel",
    "limited_to",
    "order_key",
    "pieces",
    "primitive",
    "share",
    "share_claims",
    "threads",
]

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")

_SHARED = tuple(
    sorted((p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in Path(__file__).resolve().parent.glob("_*.py"))
)

_NO_CACHE = (
    "Numba finds no folder for machine code, neither beside lowbit nor in the user's cache: kernels are compiled "
    "anew in every process. Set NUMBA_CACHE_DIR to a folder that can be written to."
)
_cached = True  # until Numba finds no place


def kernel(function: F) -> F:
    """Compile on first use for the argument types seen, keep the machine code on disk, release the GIL.

    Division by zero follows IEEE 754 (no branch per element), and no fast-math flag is set: every operation rounds
    where it is written, and a division stays a division.
    """
    global _cached
    try:
        compiled: Any = njit(nogil=True, cache=_cached, error_model="numpy")(function)
    except RuntimeError as error:  # of Numba, which looks for a folder that it can write to
        if "no locator available" not in str(error):
            raise
        _cached = False
        warnings.warn(_NO_CACHE, stacklevel=2)
        return kernel(function)
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


@primitive
def claim(typingctx: Any, counter: Any) -> Any:
    """The value of ``counter[0]``, int64, which grows by one: no two threads get the same number."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), codegen


def default_threads() -> int:
    """Threads used when nothing else is said: ``NUMBA_NUM_THREADS``, else the CPUs this process may use."""
    return int(vars(config)["NUMBA_NUM_THREADS"])


_limit: ContextVar[int | None] = ContextVar("lowbit_numba_threads", default=None)

_WATCH = 100e-6  # seconds for which a finished caller looks before it sleeps: waking it costs about half of that


class _Job:
    """One call of ``work``, taken by whoever comes first: a worker, or the caller who then drops it."""

    __slots__ = ("_taken", "reply", "work")

    def __init__(self, work: Callable[[], object]) -> None:
        self.work, self._taken = work, itertools.count()
        self.reply: SimpleQueue[BaseException | None] = SimpleQueue()

    def take(self) -> bool:
        return next(self._taken) == 0

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:  # the caller raises it
            self.reply.put(error)
        else:
            self.reply.put(None)

    def outcome(self) -> BaseException | None:
        limit = time.perf_counter() + _WATCH
        while self.reply.empty() and time.perf_counter() < limit:
            time.sleep(0)
        return self.reply.get()


class _Workers:
    """Threads that wait for jobs. An executor of the standard library spends about 50 µs more per job."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._lock, self._count = threading.Lock(), 0

    def _serve(self) -> None:
        while True:
            job = self._jobs.get()
            if job.take():
                job.run()
            del job  # or its arrays would live until the next one comes

    def start(self, work: Callable[[], object], copies: int) -> list[_Job]:
        with self._lock:
            for number in range(self._count, min(copies, _MOST)):
                threading.Thread(target=self._serve, name=f"lowbit-numba_{number}", daemon=True).start()
                self._count += 1
        jobs = [_Job(work) for _ in range(copies)]
        for job in jobs:
            self._jobs.put(job)
        return jobs


_MOST = 256  # threads, whatever the machine
_workers = _Workers()


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


def _forget_workers() -> None:
    global _workers
    _workers = _Workers()  # a forked child has none of the parent's threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)


def share(count: int, task: Callable[[int], object]) -> None:
    """Call ``task(0) … task(count − 1)``, each once, on up to :func:`threads` threads; the caller's is one of them."""
    helpers = min(threads(), count) - 1
    numbers = itertools.count()

    def drain() -> None:
        for number in iter(numbers.__next__, None):
            if number >= count:
                return
            task(number)

    _on_all(helpers, drain)


def collected(parts: Sequence[tuple[Any, ...]], task: Callable[..., R]) -> list[R]:
    """What ``task`` answers to each of some arguments, in their order; each called once, as by :func:`share`."""
    found: list[Any] = [None] * len(parts)

    def work(i: int) -> None:
        found[i] = task(*parts[i])

    share(len(parts), work)
    return found


def share_claims(count: int, task: Callable[[npt.NDArray[np.int64]], object]) -> None:
    """As :func:`share` for a kernel that takes its pieces itself, by :func:`claim` from the counter it is given.

    One call of Python per thread and not one per piece: what products of a fraction of a millisecond need.
    """
    counter = np.zeros(1, np.int64)
    _on_all(min(threads(), count) - 1, lambda: task(counter))


def _on_all(helpers: int, work: Callable[[], object]) -> None:
    """``work()`` here and on ``helpers`` other threads; back when all are done."""
    if helpers < 1:
        work()
        return
    jobs = _workers.start(work, helpers)
    try:
        work()
    finally:  # wait for every job that runs, so that no thread still writes when the caller goes on
        errors = [error for job in jobs if not job.take() and (error := job.outcome()) is not None]
    for error in errors:
        raise error


def pieces(rows: int, width: int, *, elements: int = 1 << 18) -> list[tuple[int, int]]:
    """Row ranges of about ``elements`` values each: a function of the shape alone."""
    step = max(1, elements // max(width, 1))
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def by_pieces(shape: tuple[int, ...], task: Callable[[slice], R], *, elements: int = 1 << 18) -> list[R]:
    """What ``task`` says of every one of the :func:`pieces` of (rows, width), which threads share."""
    parts = pieces(*shape, elements=elements)
    return collected(parts, lambda start, stop: task(slice(start, stop)))
