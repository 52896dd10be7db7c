"""M: bits by frequency and by sensitivity. The rules are those of :mod:`lowbit.reference.mixed_precision`.

Steps along all hulls are found in one pass over the table and sorted once, so ten thousand blocks take milliseconds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lowbit.accel.common.binary_coding import check_binary
from lowbit.accel.common.mixed_precision import check_allocation, cluster_counts
from lowbit.accel.common.refusals import check_matrix
from lowbit.reference.errors import SpecError
from lowbit.reference.types import BinaryMethod, BitAllocation

from ._arrays import Array, fixed, integers, refuse_bad, weights, working_dtype
from ._jit import by_pieces, kernel
from ._vector import LANES, lane_sum
from .binary_coding import bcq, bcq_weight

__all__ = ["allocate_bits", "project_rows", "row_bits"]

CHUNK = 256  # magnitudes that are summed in the precision of the data; chunks are added in float64, in order


@kernel
def _hulls(errors: Any, sizes: Any, slope: Any, block: Any, start: Any, stop: Any) -> int:
    """Steps of all blocks, block by block and steepest first; returns how many."""
    count = 0
    for j in range(errors.shape[0]):
        here, last = 0, np.inf
        while here < errors.shape[1] - 1:
            best, steepest = here, 0.0
            for q in range(here + 1, errors.shape[1]):
                s = (errors[j, here] - errors[j, q]) / np.float64(sizes[j, q] - sizes[j, here])
                if s > steepest:
                    best, steepest = q, s
            if best == here:
                break
            last = min(last, steepest)
            slope[count], block[count], start[count], stop[count] = last, j, here, best
            count += 1
            here = best
    return count


@kernel
def _climb(
    errors: Any, sizes: Any, order: Any, slope: Any, block: Any, start: Any, stop: Any, budget: int, level: Any
) -> Any:
    """Take the steps that fit, shorten the first of a block that does not; returns (spent, lower bound, any misfit)."""
    closed = np.zeros(level.size, np.bool_)
    spent, bound, missed = np.int64(0), 0.0, False
    for j in range(level.size):
        spent += sizes[j, 0]
    for t in order:
        j = block[t]
        cost = sizes[j, stop[t]] - sizes[j, start[t]]
        if not closed[j] and spent + cost <= budget:
            level[j] = stop[t]
            spent += cost
            continue
        if not missed:
            missed = True
            total = 0.0
            for i in range(level.size):
                total += errors[i, level[i]]
            bound = total - slope[t] * np.float64(budget - spent)
        if not closed[j]:
            closed[j] = True
            here, best = start[t], start[t]
            for q in range(here + 1, stop[t]):
                if spent + sizes[j, q] - sizes[j, here] <= budget and errors[j, q] < errors[j, best]:
                    best = q
            level[j] = best
            spent += sizes[j, best] - sizes[j, here]
    return spent, bound, missed


@kernel
def _greedy(w: Any, bits: Any, out: Any) -> None:
    k = w.shape[1]
    rest, magnitude = np.empty(k, w.dtype), np.empty(CHUNK, w.dtype)
    for r in range(w.shape[0]):
        row = out[r]
        for c in range(k):
            rest[c] = w[r, c]
            row[c] = 0.0
        for _ in range(bits[r]):
            total = 0.0
            for begin in range(0, k, CHUNK):
                values = rest[begin : begin + CHUNK]
                sizes = magnitude[: values.size]
                for j in range(values.size):
                    sizes[j] = abs(values[j])
                total += np.float64(lane_sum(sizes))
                for j in range(sizes.size // LANES * LANES, sizes.size):
                    total += np.float64(sizes[j])
            scale = w.dtype.type(total / k)
            for c in range(k):
                step = -scale if rest[c] < 0.0 else scale
                rest[c] -= step
                row[c] += step


def _counting(clause: str, name: str, x: Any) -> Array:
    """An integer array of any width as int64."""
    if not isinstance(x, np.ndarray):
        raise SpecError(clause, f"{name} must be a NumPy array, got {type(x).__name__}; convert it with asarray()")
    if x.dtype.kind not in "iu":
        raise SpecError(clause, f"{name} must hold integers, got {x.dtype}")
    if x.dtype.itemsize == 8 and x.dtype.kind == "u" and x.size and int(x.max()) >= 2**63:
        raise SpecError(clause, f"{name} must fit int64, got {x.max()}")
    return fixed(x, np.int64)


def row_bits(counts: Array, /, *, clusters: int, ratio: int = 1) -> Array:
    """Bits for every row of an embedding, by how often its word occurs.  [M-1]"""
    n = _counting("M-1", "counts", counts)
    check_matrix("M-1", "counts", n.shape, (None,))
    sizes = cluster_counts("M-1", n.size, clusters, ratio)
    if n.size and int(n.min()) < 0:
        j = int(np.flatnonzero(n < 0)[0])
        raise SpecError("M-1", f"counts must be >= 0, got {n[j]} at {j}")
    order = np.argsort(np.iinfo(np.int64).max - n, kind="stable")
    bits, begin = np.empty(n.size, np.int32), 0
    for cluster, size in enumerate(sizes):
        bits[order[begin : begin + size]] = clusters - cluster
        begin += size
    return bits


def allocate_bits(errors: Array, sizes: Array, /, *, budget: int) -> BitAllocation[Array]:
    """Bits for every block by steepest descent of the error per size, in float64, with a lower bound.  [M-2]"""
    given, s = weights("M-2", "errors", errors), _counting("M-2", "sizes", sizes)
    check_allocation("M-2", given.shape, s.shape, budget)
    e = fixed(given, np.float64)
    refuse_bad("M-2", "errors", e)
    n, widths = e.shape
    falling = np.argwhere(np.diff(s, axis=1, prepend=0) <= 0)
    if len(falling):
        j, q = (int(i) for i in falling[0])
        raise SpecError("M-2", f"sizes must be positive and ascend along each row, got {s[j, q]} at ({j}, {q})")
    least, most = int(s[:, 0].sum()), int(s[:, -1].sum())
    if budget < least:
        raise SpecError("M-2", f"budget {budget} is below the {least} that 1 bit everywhere takes")
    slope, (block, start, stop) = np.empty(n * widths), np.empty((3, n * widths), np.int64)
    count = int(_hulls(e, s, slope, block, start, stop))
    order = np.argsort(-slope[:count], kind="stable")  # equal slopes stay in the order of blocks
    level = np.zeros(n, np.int64)
    spent, bound, missed = _climb(e, s, order, slope, block, start, stop, min(budget, most), level)
    error = float(e[np.arange(n), level].sum())
    return BitAllocation((level + 1).astype(np.int32), int(spent), error, float(bound) if missed else error)


def project_rows(w: Array, bits: Array, /, *, method: BinaryMethod = "greedy", rounds: int = 15) -> Array:
    """Every row replaced by its binary code of its own number of planes.  [M-3]

    The greedy code has a kernel of its own, which keeps no planes.
    """
    given, q = weights("M-3", "w", w), integers("M-3", "bits", bits)
    check_matrix("M-3", "w", given.shape, (None, None))
    check_matrix("M-3", "bits", q.shape, (given.shape[0],))
    if q.size and (int(q.min()) < 1 or int(q.max()) > 8):
        j = int(np.flatnonzero((q < 1) | (q > 8))[0])
        raise SpecError("M-3", f"bits must be between 1 and 8, got {q[j]} at {j}")
    check_binary("M-3", method, rounds)
    source = fixed(given, working_dtype(given))
    refuse_bad("M-3", "w", source)
    out = np.empty(source.shape, source.dtype)
    if method != "greedy":
        for b in np.unique(q).tolist():
            code = bcq(source[q == b], bits=b, method=method, rounds=rounds)
            out[q == b] = bcq_weight(code.codes, code.scale, code.offset)
    elif out.size:
        by_pieces(source.shape, lambda p: _greedy(source[p], q[p], out[p]), elements=1 << 15)
    return out
