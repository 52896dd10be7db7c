"""Chapter M: bits per row by frequency, bits per block by sensitivity, and the projection while retraining."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit.accel.common.binary_coding import check_binary
from lowbit.accel.common.mixed_precision import check_allocation, cluster_counts
from lowbit.accel.common.refusals import check_matrix
from lowbit.reference.errors import SpecError
from lowbit.reference.types import BinaryMethod, BitAllocation

from .arrays import as_integers, as_weights, operation, refuse_nan, row_chunks, working_dtype
from .binary_coding import bcq, bcq_weight

__all__ = ["allocate_bits", "project_rows", "row_bits"]


@operation
def row_bits(counts: Tensor, /, *, clusters: int, ratio: int = 1) -> Tensor:
    """Bits for every row of an embedding, by how often its word occurs; ties go by id.  [M-1]"""
    counts = as_integers("M-1", "counts", counts)
    check_matrix("M-1", "counts", counts.shape, (None,))
    sizes = cluster_counts("M-1", counts.shape[0], clusters, ratio)
    if counts.numel() and int(counts.min()) < 0:
        j = int((counts < 0).to(torch.uint8).argmax())
        raise SpecError("M-1", f"counts must be >= 0, got {int(counts[j])} at {j}")
    order = torch.sort(counts, descending=True, stable=True).indices
    repeats = torch.tensor(sizes, device=counts.device)
    ranked = torch.arange(clusters, 0, -1, dtype=torch.int32, device=counts.device).repeat_interleave(repeats)
    return torch.empty_like(ranked).scatter_(0, order, ranked)


def hull_steps(errors: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Steps of all hulls, a round for every block at once: slope, from, to, each (rounds, n); slope 0 is no step."""
    n, widths = errors.shape
    here = torch.zeros(n, dtype=torch.int64, device=errors.device)
    last = torch.full((n,), torch.inf, dtype=torch.float64, device=errors.device)
    index = torch.arange(widths, device=errors.device)
    slopes, starts, stops = [], [], []
    for _ in range(widths - 1):
        gain = errors.gather(1, here[:, None]) - errors
        cost = (sizes - sizes.gather(1, here[:, None])).to(torch.float64)
        later = index > here[:, None]
        slope = torch.where(later, gain / torch.where(later, cost, 1.0), -torch.inf)
        steepest = slope.amax(1)
        nearest = torch.where(slope == steepest[:, None], index, widths).amin(1)
        climbs = steepest > 0
        last = torch.where(climbs, torch.minimum(last, steepest), last)
        slopes.append(torch.where(climbs, last, 0.0))
        starts.append(here)
        here = torch.where(climbs, nearest, here)
        stops.append(here)
    if not slopes:
        empty = here.new_empty((0, n))
        return empty.to(torch.float64), empty, empty
    return torch.stack(slopes), torch.stack(starts), torch.stack(stops)


@operation
def allocate_bits(errors: Tensor, sizes: Tensor, /, *, budget: int) -> BitAllocation[Tensor]:
    """Bits for every block by steepest descent of the error per size, with a lower bound.  [M-2]

    Hulls and their order are found on the device. The walk down the sorted steps is sequential and takes place on the
    host: whole runs of steps that fit by a sum and a search, and the few that do not one by one.
    """
    errors = as_weights("M-2", "errors", errors)
    sizes = as_integers("M-2", "sizes", sizes, like=errors)
    check_allocation("M-2", errors.shape, sizes.shape, budget)
    refuse_nan("M-2", "errors", errors)
    e, s = errors.to(torch.float64), sizes.to(torch.int64)
    n, widths = s.shape
    falling = torch.diff(s, dim=1, prepend=s.new_zeros((n, 1))) <= 0
    if bool(falling.any()):
        j, q = divmod(int(falling.reshape(-1).to(torch.uint8).argmax()), widths)
        raise SpecError("M-2", f"sizes must be positive and ascend along each row, got {int(s[j, q])} at ({j}, {q})")
    least = int(s[:, 0].sum())
    if budget < least:
        raise SpecError("M-2", f"budget {budget} is below the {least} that 1 bit everywhere takes")
    slope, start, stop = (t.mT.reshape(-1) for t in hull_steps(e, s))  # block by block, steepest first
    real = (slope > 0).nonzero()[:, 0]
    order = real[torch.sort(slope[real], descending=True, stable=True).indices]
    block = order // max(widths - 1, 1)
    rounds = (block, start[order], stop[order])
    cost = s[block, rounds[2]] - s[block, rounds[1]]
    level, spent, bound = _descend(e, s, cost, slope[order], rounds, budget - least)
    error = float(e.gather(1, level[:, None]).sum())
    size = least + spent
    return BitAllocation((level + 1).to(torch.int32), size, error, error if bound is None else bound)


def _descend(
    e: Tensor, s: Tensor, cost: Tensor, slope: Tensor, steps: tuple[Tensor, Tensor, Tensor], left: int
) -> tuple[Tensor, int, float | None]:
    """Levels, what they cost beyond 1 bit everywhere, and the lower bound if some step did not fit."""
    block, start, stop = steps
    level = torch.zeros(s.shape[0], dtype=torch.int64, device=s.device)
    fitting = int((torch.cumsum(cost, 0) <= left).sum())  # costs are positive: a run from the front
    # steps of a block follow each other, so its last one in the run says where it stands
    level.scatter_reduce_(0, block[:fitting], stop[:fitting], "amax")
    spent = int(cost[:fitting].sum())
    if fitting == cost.numel():
        return level, spent, None
    bound = float(e.gather(1, level[:, None]).sum()) - float(slope[fitting]) * (left - spent)
    rest = slice(fitting, None)
    table, errors = s.tolist(), e.tolist()
    levels, closed = level.tolist(), set()
    for j, a, b in zip(block[rest].tolist(), start[rest].tolist(), stop[rest].tolist(), strict=True):
        if j in closed:
            continue
        room = left - spent + table[j][a]
        if table[j][b] <= room:
            chosen = b
        else:
            closed.add(j)
            chosen = min((q for q in range(a, b) if table[j][q] <= room), key=lambda q: errors[j][q])
        spent += table[j][chosen] - table[j][a]
        levels[j] = chosen
    return torch.tensor(levels, dtype=torch.int64, device=s.device), spent, bound


@operation
def project_rows(w: Tensor, bits: Tensor, /, *, method: BinaryMethod = "greedy", rounds: int = 15) -> Tensor:
    """Every row replaced by its binary code of its own number of planes.  [M-3]"""
    w = as_weights("M-3", "w", w)
    check_matrix("M-3", "w", w.shape, (None, None))
    bits = as_integers("M-3", "bits", bits, like=w)
    check_matrix("M-3", "bits", bits.shape, (w.shape[0],))
    if bits.numel() and not 1 <= int(bits.min()) <= int(bits.max()) <= 8:
        j = int(((bits < 1) | (bits > 8)).to(torch.uint8).argmax())
        raise SpecError("M-3", f"bits must be between 1 and 8, got {int(bits[j])} at {j}")
    check_binary("M-3", method, rounds)
    refuse_nan("M-3", "w", w)
    dtype, k = working_dtype(w), w.shape[1]
    out = torch.zeros(w.shape, dtype=dtype, device=w.device)
    if out.numel() == 0:
        return out
    if method != "greedy":
        for b in torch.unique(bits).tolist():
            rows = bits == b
            code = bcq(w[rows].to(dtype), bits=b, method=method, rounds=rounds)
            out[rows] = bcq_weight(code.codes, code.scale, code.offset)
        return out
    for rows in row_chunks(w.shape[0], k, w.device):
        rest, total, planes = w[rows].to(dtype, copy=True), out[rows], bits[rows]
        for i in range(int(planes.max())):
            scale = rest.abs().sum(1, keepdim=True) / k
            scale = torch.where((planes > i)[:, None], scale, 0.0)
            step = torch.where(rest < 0, -scale, scale)
            rest -= step
            total += step
    return out
