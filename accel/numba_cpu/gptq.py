"""G-1 … G-4: the inverse factor and GPTQ. The rules are those of :mod:`lowbit.reference.gptq`.

Why no inverse is formed. With H + damp I = R Rᵀ, R upper, and total errors δ_j = w⁰_j − q_j, the loss is
½ Σ_i (Σ_{j≤i} δ_j R_ji)², so the weights that a segment s of columns starts from, given what came before it, are

    W̃_s = W⁰_s + (Σ_{j<s} δ_j R_js) U_ss,      U_ss = R_ss⁻¹                               (left-looking)

the same numbers as the running update w_j ← w_j − e_i U_ij with U = R⁻¹, of which only the small diagonal blocks are
needed. So the whole method is one Cholesky factor, and then rows of W are independent of each other: a task takes one
panel of rows, as wide as a register tile, from the first column to the last, with rows in the vector lanes.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from lowbit.accel.common.gptq import check_gptq, check_group_scales
from lowbit.accel.common.refusals import check_damping, check_matrix, check_square
from lowbit.reference.errors import SpecError
from lowbit.reference.types import GroupScales, InverseFactor, QuantizedWeight, ScaleDtype, Scheme, SparseWeight

from . import uniform
from ._arrays import Array, fixed, refuse_bad, weights, working_dtype
from ._grid import GridRule, plan, refuse_overflow, scale_and_zero
from ._jit import kernel, share
from ._product import (
    columns_per_tile,
    factor_upper,
    invert_small,
    invert_upper,
    pack_straight,
    panels,
)
from ._vector import DEPTH, MR, NR32, NR64, multiply_tile

__all__ = ["gptq", "inverse_cholesky"]

_SYMMETRY = 2.0**-12  # largest |H − Hᵀ| / max|H| that rounding explains: half the digits of float32
_SEGMENT = 128  # columns between two products with everything before them
_INNER = 32  # columns between two products within a segment
_TILE = 64


@kernel
def _symmetrise(h: Any, order: Any, i0: int, i1: int, out: Any, findings: Any) -> None:
    """Upper triangle of (H + Hᵀ)/2, rows and columns in the given order; findings: max|H|, max|H − Hᵀ|, finite."""
    k = h.shape[0]
    most = gap = 0.0
    bad = False
    for j0 in range(i0, k, _TILE):
        j1 = min(j0 + _TILE, k)
        for i in range(i0, i1):
            a = order[i]
            for j in range(max(i, j0), j1):
                b = order[j]
                x, y = np.float64(h[a, b]), np.float64(h[b, a])
                bad |= (x - x != 0.0) | (y - y != 0.0)
                most = max(most, abs(x), abs(y))
                gap = max(gap, abs(x - y))
                out[i, j] = 0.5 * x + 0.5 * y
    findings[0], findings[1], findings[2] = most, gap, 1.0 if bad else 0.0


class Hessian(NamedTuple):
    """Damped Hessian, ready to be factored."""

    upper: Array  # (k, k) float64, only the upper triangle is meaningful
    order: Array  # (k,) int64, the column visited at each step
    dead: Array  # (k,) bool, original order


def symmetric_moment(clause: str, name: str, c: Array, k: int | None, order: Array | None = None) -> Array:
    """(C + Cᵀ)/2 in float64, rows and columns in the given order, only its upper triangle; refuses what is no moment.

    Raises:
        SpecError: ``clause``, not (k, k), not symmetric or a negative diagonal; A-4 for NaN and infinities.
    """
    given = weights(clause, name, c)
    check_square(clause, name, given.shape, k)
    size = given.shape[0]
    source = fixed(given, working_dtype(given))
    order = fixed(np.arange(size) if order is None else order, np.int64)
    upper: Array = np.empty((size, size))
    tiles = [(i, min(i + _TILE, size)) for i in range(0, size, _TILE)]
    findings = np.zeros((len(tiles), 3))
    share(len(tiles), lambda t: _symmetrise(source, order, *tiles[t], upper, findings[t]))
    if findings[:, 2].any():
        refuse_bad(clause, name, source)
    most, gap = findings[:, 0].max(initial=0.0), findings[:, 1].max(initial=0.0)
    if gap > _SYMMETRY * most:
        raise SpecError(clause, f"{name} must be symmetric, largest |{name} - {name}ᵀ| is {gap:.3g}")
    diagonal = source.diagonal()
    if (diagonal < 0).any():
        j = int(np.flatnonzero(diagonal < 0)[0])
        raise SpecError(clause, f"{name} must have a diagonal >= 0, got {diagonal[j]} at ({j}, {j})")
    return upper


def prepare(clause: str, h: Array, k: int | None, damping: float, *, act_order: bool = False) -> Hessian:
    """Checked, repaired, damped and ordered Hessian in float64.  [G-1, G-4]

    Raises:
        SpecError: not square, not symmetric, a negative diagonal, a bad damping; A-4 for NaN and infinities.
    """
    check_damping(clause, damping)
    h = weights(clause, "h", h)
    check_square(clause, "h", h.shape, k)
    diagonal = h.diagonal().astype(np.float64)
    dead = diagonal == 0
    repaired = np.where(dead, 1.0, diagonal)
    order = np.argsort(-repaired, kind="stable") if act_order else np.arange(diagonal.size)
    upper = symmetric_moment(clause, "h", h, k, order)
    if diagonal.size:
        upper.flat[:: diagonal.size + 1] = (repaired + damping * repaired.mean())[order]
    return Hessian(upper, fixed(order, np.int64), dead)


def inverse_cholesky(h: Array, /, *, damping: float = 0.01) -> InverseFactor[Array]:
    """Upper U with inv(H + damp I) = Uᵀ U, in float64.  [G-1]"""
    h = weights("G-1", "h", h)
    ready = prepare("G-1", h, None, damping)
    factor_upper(ready.upper, "G-1", f"h is not positive definite with damping {damping}")
    return InverseFactor(invert_upper(ready.upper, working_dtype(h)), ready.dead)


class Plan(NamedTuple):
    """Where the column loop stops, and what the kernel needs to know; positions are visited columns."""

    segments: Array  # (n + 1,) int64, segment borders
    inner: Array  # (n_inner + 1,) int64, borders of the inner blocks, a refinement of segments
    r_start: Array  # (n,) int64, packed R above each segment
    u_start: Array  # (n,) int64, packed U_ss of each segment


class Rule(NamedTuple):
    """Options of the column loop, as numbers."""

    grid: GridRule
    quantized: bool
    group: int  # columns per scale
    dynamic: bool  # grids are found on the way, from updated weights
    lazy: int  # block size when grids see only the updates of earlier blocks, else 0
    search: bool
    keep: int
    of: int  # 0: nothing is pruned


@kernel
def _fit_groups(
    current: Any, s0: int, start: int, stop: int, group: int, nr: int, rule: Rule, scales: Any, zeros: Any, buffer: Any
) -> float:
    """Grids of the groups that open in start … stop − 1, of every row of the panel, from ``current``; largest scale."""
    most = 0.0
    values = buffer[uniform.CHUNK :]
    first = (start + group - 1) // group
    for g in range(first, (stop + group - 1) // group):
        c0 = g * group - s0
        lows, highs = np.empty(nr, current.dtype), np.empty(nr, current.dtype)
        opening = current[c0 * nr : c0 * nr + nr]
        for r in range(nr):
            lows[r] = highs[r] = opening[r]
        for c in range(c0 + 1, c0 + group):
            column = current[c * nr : c * nr + nr]
            for r in range(nr):
                lows[r] = min(lows[r], column[r])
                highs[r] = max(highs[r], column[r])
        for r in range(nr):
            low, high = np.float64(lows[r]), np.float64(highs[r])
            if rule.search:
                for c in range(group):
                    values[c] = current[(c0 + c) * nr + r]
                s, z, _, largest = uniform.best_clipping(
                    values[:group], low, high, 2.4, 100, 80, rule.grid, buffer[: uniform.CHUNK]
                )
                most = max(most, largest)
            else:
                s, z = scale_and_zero(low, high, 1.0, True, rule.grid)
                most = max(most, s)
            scales[g * nr + r] = s
            zeros[g * nr + r] = z
    return most


@kernel
def _prune(current: Any, s0: int, c0: int, nr: int, inverse: Any, keep: int, of: int, masks: Any) -> None:
    """Marks the of − keep smallest |w / U_jj| of a tuple; among equals the lower index.  (G.9)"""
    for j in range(of):
        for r in range(nr):
            score, smaller = abs(current[(c0 + j) * nr + r]) / inverse[s0 + c0 + j], 0
            for l in range(of):
                other = abs(current[(c0 + l) * nr + r]) / inverse[s0 + c0 + l]
                smaller += 1 if other < score or (other == score and l < j) else 0
            masks[(c0 + j) * nr + r] = smaller < of - keep


# Small kernels with few array views each: in a long one the compiler no longer sees that views need no reference count.


@kernel
def _add_tile(tile: Any, t0: int, out: Any, o0: int, count: int) -> None:
    target, part = out[o0 : o0 + count], tile[t0 : t0 + count]
    for l in range(count):
        target[l] += part[l]


@kernel
def _subtract_tile(tile: Any, t0: int, out: Any, o0: int, count: int) -> None:
    target, part = out[o0 : o0 + count], tile[t0 : t0 + count]
    for l in range(count):
        target[l] -= part[l]


@kernel
def _load(w: Any, row0: int, rows: int, order: Any, dead: Any, s0: int, size: int, out: Any) -> None:
    """Columns s0 … of the panel, rows in the lanes; dead columns are 0."""
    nr = NR32 if w.itemsize == 4 else NR64
    for row in range(rows):
        source = w[row0 + row]
        for c in range(size):
            j = order[s0 + c]
            out[c * nr + row] = w.dtype.type(0) if dead[j] else source[j]


@kernel
def _store(found: Any, s0: int, b0: int, b1: int, order: Any, row0: int, rows: int, nr: int, out: Any) -> None:
    """Columns b0 … b1 − 1 of a segment to their places in a row-major result."""
    for row in range(rows):
        target = out[row0 + row]
        for c in range(b0, b1):
            target[order[s0 + c]] = found[c * nr + row]


@kernel
def _quantize_column(
    current: Any, i: int, scales: Any, zeros: Any, g: int, grid: GridRule, pruned: Any, code: Any, value: Any
) -> None:
    """Codes and values of one column; where ``pruned`` is True the value is exactly 0.  (G.5), (G.10)"""
    nr = NR32 if current.itemsize == 4 else NR64
    x, q, c = current[i * nr : i * nr + nr], value[i * nr : i * nr + nr], code[i * nr : i * nr + nr]
    s, z = scales[g * nr : g * nr + nr], zeros[g * nr : g * nr + nr]
    first, last = current.dtype.type(grid.first), current.dtype.type(grid.last)
    for row in range(nr):
        level = min(max(np.rint(x[row] / s[row]) + z[row], first), last)
        c[row] = np.int32(level)
        q[row] = s[row] * (level - z[row])
    if pruned.size:
        mark = pruned[i * nr : i * nr + nr]
        for row in range(nr):
            if mark[row]:
                c[row] = np.int32(min(max(z[row], first), last))
                q[row] = s[row] * (min(max(z[row], first), last) - z[row])


@kernel
def _keep_column(current: Any, i: int, pruned: Any, value: Any) -> None:
    """Values of one column that is only pruned."""
    nr = NR32 if current.itemsize == 4 else NR64
    for row in range(i * nr, i * nr + nr):
        value[row] = current.dtype.type(0) if pruned[row] else current[row]


@kernel
def _close_column(
    current: Any, value: Any, original: Any, i: int, pivot: Any, errors: Any, delta: Any, at: int, total: Any
) -> None:
    """e = (w − q) / U_ii, the loss, and δ = w⁰ − q.  (G.6), (G.8)"""
    nr = NR32 if current.itemsize == 4 else NR64
    x, q, e = current[i * nr : i * nr + nr], value[i * nr : i * nr + nr], errors[i * nr : i * nr + nr]
    for row in range(nr):
        e[row] = (x[row] - q[row]) / pivot
    for row in range(nr):
        total[row] += np.float64(e[row]) * np.float64(e[row])
    start, difference = original[i * nr : i * nr + nr], delta[at * nr : at * nr + nr]
    for row in range(nr):
        difference[row] = start[row] - q[row]


@kernel
def _push_error(u: Any, u0: int, size: int, i: int, stop: int, errors: Any, current: Any) -> None:
    """w_c −= e_i U_ic for the columns i < c < stop of an inner block.  (G.7)"""
    nr = NR32 if current.itemsize == 4 else NR64
    e = errors[i * nr : i * nr + nr]
    for c in range(i + 1, stop):
        factor = u[u0 + (c // MR) * MR * size + i * MR + c % MR]
        later = current[c * nr : c * nr + nr]
        for row in range(nr):
            later[row] -= e[row] * factor


@kernel
def _add_past(r: Any, r0: int, s0: int, p: int, size: int, delta: Any, tile: Any, sums: Any) -> None:
    """Σ δ_j R_js over one stretch p … p + DEPTH of the columns before a segment."""
    nr = NR32 if sums.itemsize == 4 else NR64
    depth = min(DEPTH, s0 - p)
    start = r0 + p * ((size + MR - 1) // MR * MR)
    for c in range(0, size, MR):
        multiply_tile(depth, r, start + c * depth, delta, p * nr, tile)
        _add_tile(tile, 0, sums, c * nr, MR * nr)


@kernel
def _open_segment(u: Any, u0: int, size: int, past: bool, original: Any, sums: Any, tile: Any, current: Any) -> None:
    """W̃_s = W⁰_s + (Σ δ_j R_js) U_ss; clears the sums."""
    nr = NR32 if current.itemsize == 4 else NR64
    for l in range(size * nr):
        current[l] = original[l]
    if not past:
        return
    for c in range(0, size, MR):
        stop = min(size, c + MR)
        for p in range(0, stop, DEPTH):
            multiply_tile(min(DEPTH, stop - p), u, u0 + c * size + p * MR, sums, p * nr, tile)
            _add_tile(tile, 0, current, c * nr, (stop - c) * nr)
    for l in range(sums.size):
        sums[l] = 0


@kernel
def _close_block(u: Any, u0: int, size: int, b0: int, b1: int, errors: Any, tile: Any, current: Any) -> None:
    """What an inner block b0 … b1 − 1 owes to the rest of its segment.  (G.7)"""
    nr = NR32 if current.itemsize == 4 else NR64
    for c in range(b1 // MR * MR, size, MR):
        for p in range(b0, b1, DEPTH):
            multiply_tile(min(DEPTH, b1 - p), u, u0 + c * size + p * MR, errors, p * nr, tile)
            low = max(c, b1)
            _subtract_tile(tile, (low - c) * nr, current, low * nr, (min(c + MR, size) - low) * nr)


@kernel
def _spread(given: Any, row0: int, rows: int, nr: int, out: Any) -> None:
    for row in range(rows):
        for g in range(given.shape[1]):
            out[g * nr + row] = given[row0 + row, g]


@kernel
def _gather(lanes: Any, row0: int, rows: int, nr: int, out: Any) -> None:
    for row in range(rows):
        for g in range(out.shape[1]):
            out[row0 + row, g] = lanes[g * nr + row]


@kernel
def _run_columns(
    block: int, s0: int, size: int, u: Any, u0: int, diagonal: Any, steps: Plan, rule: Rule, group_of: Any,
    current: Any, original: Any, delta: Any, errors: Any, values: Any, found: Any, masks: Any, scales: Any, zeros: Any,
    tile: Any, buffer: Any, total: Any, order: Any, row0: int, rows: int, codes: Any, weight: Any, mask: Any,
) -> Any:  # fmt: skip
    """The columns of one segment for one panel; returns the next inner block and the largest scale met."""
    nr = NR32 if current.itemsize == 4 else NR64
    most = 0.0
    while block < steps.inner.size - 1 and steps.inner[block] < s0 + size:
        b0, b1 = steps.inner[block] - s0, steps.inner[block + 1] - s0
        for i in range(b0, b1):
            at = s0 + i
            if rule.dynamic and at % (rule.lazy or rule.group) == 0:
                stop = min(at + rule.lazy, steps.segments[-1]) if rule.lazy else at + 1
                most = max(most, _fit_groups(current, s0, at, stop, rule.group, nr, rule, scales, zeros, buffer))
            if rule.of and at % rule.of == 0:
                _prune(current, s0, i, nr, diagonal, rule.keep, rule.of, masks)
            if rule.quantized:
                _quantize_column(current, i, scales, zeros, group_of[at], rule.grid, masks, found, values)
            else:
                _keep_column(current, i, masks, values)
            _close_column(current, values, original, i, diagonal[at], errors, delta, at, total)
            _push_error(u, u0, size, i, b1, errors, current)
        _close_block(u, u0, size, b0, b1, errors, tile, current)
        _store(values, s0, b0, b1, order, row0, rows, nr, weight)
        if rule.quantized:
            _store(found, s0, b0, b1, order, row0, rows, nr, codes)
        if rule.of:
            _store(masks, s0, b0, b1, order, row0, rows, nr, mask)
        block += 1
    return block, most


@kernel
def _run_panels(
    w: Any, row0: int, count: int, order: Any, dead: Any, r: Any, u: Any, diagonal: Any, steps: Plan, rule: Rule,
    group_of: Any, given_scale: Any, given_zero: Any, codes: Any, weight: Any, mask: Any, scale: Any, zero: Any,
    loss: Any,
) -> float:  # fmt: skip
    """Algorithm of chapter G for ``count`` panels of rows from row0 on; returns the largest scale met."""
    k = w.shape[1]
    nr = NR32 if w.itemsize == 4 else NR64  # known to the compiler, which unrolls every loop over lanes
    longest = 0
    for n in range(steps.segments.size - 1):
        longest = max(longest, steps.segments[n + 1] - steps.segments[n])
    wide = (longest + MR - 1) // MR * MR * nr
    dtype = w.dtype
    delta = np.empty((count, k * nr), dtype)  # total errors w⁰ − q, one row of nr lanes per visited column
    original, sums = np.zeros((count, wide), dtype), np.zeros((count, wide), dtype)
    current, errors, values = np.empty(wide, dtype), np.empty(wide, dtype), np.empty(wide, dtype)
    found, masks = np.zeros(wide, np.int32), np.zeros(wide if rule.of else 0, np.bool_)
    tile = np.empty(MR * nr, dtype)
    groups = scale.shape[1]
    scales, zeros = np.ones((count, groups * nr), dtype), np.zeros((count, groups * nr), dtype)
    buffer = np.empty(uniform.CHUNK + (rule.group if rule.search else 1), dtype)
    total = np.zeros((count, nr))
    most = 0.0
    if rule.quantized and not rule.dynamic:
        for q in range(count):
            first = row0 + q * nr
            _spread(given_scale, first, min(nr, w.shape[0] - first), nr, scales[q])
            _spread(given_zero, first, min(nr, w.shape[0] - first), nr, zeros[q])
    block = 0
    for n in range(steps.segments.size - 1):
        s0, u0 = steps.segments[n], steps.u_start[n]
        size = steps.segments[n + 1] - s0
        for p in range(0, s0, DEPTH):
            for q in range(count):
                _add_past(r, steps.r_start[n], s0, p, size, delta[q], tile, sums[q])
        following = block
        for q in range(count):
            first = row0 + q * nr
            rows = min(nr, w.shape[0] - first)
            _load(w, first, rows, order, dead, s0, size, original[q])
            _open_segment(u, u0, size, s0 > 0, original[q], sums[q], tile, current)
            following, largest = _run_columns(
                block, s0, size, u, u0, diagonal, steps, rule, group_of, current, original[q], delta[q], errors,
                values, found, masks, scales[q], zeros[q], tile, buffer, total[q], order, first, rows, codes, weight,
                mask,
            )  # fmt: skip
            most = max(most, largest)
        block = following
    for q in range(count):
        first = row0 + q * nr
        rows = min(nr, w.shape[0] - first)
        if rule.quantized:
            _gather(scales[q], first, rows, nr, scale)
            _gather(zeros[q], first, rows, nr, zero)
        for row in range(rows):
            loss[first + row] = 0.5 * total[q, row]
    return most


def _plan(k: int, rule: Rule) -> tuple[list[int], list[int]]:
    """Borders of segments and of inner blocks.

    A segment never cuts a group, a tuple, or a block whose grids are found at its start; an inner block starts where a
    group does and never cuts a tuple, or else spans its segment, in which every column is up to date at every step.
    """
    unit = math.lcm(rule.group, rule.lazy or 1) if rule.dynamic else 1
    unit = math.lcm(unit, rule.of or 1)
    length = max(unit, unit * (_SEGMENT // unit))
    segments = [*range(0, k, length), k] if k else [0]
    inner: list[int] = []
    for s0, s1 in itertools.pairwise(segments):
        borders = set(range(s0, s1, _INNER))
        if rule.dynamic:
            borders.update(range(s0, s1, rule.lazy or rule.group))
        if rule.of and any(b % rule.of for b in borders):
            borders = {s0}
        inner += sorted(borders)
    return segments, [*inner, k]


def compress(
    clause: str, w: Array, h: Array, rule: Rule, *, damping: float, act_order: bool, static_groups: bool,
    scheme: Scheme, bits: int, range_floor: float, scale_dtype: ScaleDtype | None, grouped: bool,
) -> SparseWeight[Array]:  # fmt: skip
    """The column loop for checked options; both methods of the chapter read their result from here."""
    given = weights(clause, "w", w)
    m, k = given.shape
    dtype = working_dtype(given)
    source = fixed(given, dtype)
    refuse_bad(clause, "w", source)
    ready = prepare(clause, h, k, damping, act_order=act_order)
    groups = k // rule.group if rule.group and grouped else 1
    scale, zero = np.empty((m, groups), dtype), np.empty((m, groups), np.int32)
    given_scale, given_zero = fixed(np.empty((0, 0), dtype)), fixed(np.empty((0, 0), np.int32))
    if rule.quantized and not rule.dynamic:
        basis = source
        if grouped and ready.dead.any():
            basis = fixed(np.where(ready.dead, source.dtype.type(0), source))
        find = uniform.clip_search if rule.search else uniform.fit_grid
        found = find(
            basis, bits=bits, scheme=scheme, granularity="group" if grouped else "row",
            group_size=rule.group if grouped else None, range_floor=range_floor, scale_dtype=scale_dtype,
        )  # fmt: skip
        given_scale, given_zero = fixed(np.asarray(found.scale)), fixed(np.asarray(found.zero_point))

    upper = ready.upper
    factor_upper(upper, clause, f"h is not positive definite with damping {damping}")
    segments, inner = _plan(k, rule)
    nr = columns_per_tile(dtype)
    lengths = [b - a for a, b in itertools.pairwise(segments)]
    wide = [panels(n, MR) * MR for n in lengths]
    r_start = np.cumsum([0, *(n * s for n, s in zip(wide, segments, strict=False))]).astype(np.int64)
    u_start = np.cumsum([0, *(n * s for n, s in zip(wide, lengths, strict=True))]).astype(np.int64)
    r, u = np.empty(int(r_start[-1]), dtype), np.empty(int(u_start[-1]), dtype)
    diagonal = np.empty(k, dtype)

    def pack(t: int) -> None:
        n = len(lengths) - 1 - t
        s0, size = segments[n], lengths[n]
        for p in range(0, s0, DEPTH):
            pack_straight(upper, p, min(DEPTH, s0 - p), s0, size, MR, r, int(r_start[n]) + p * wide[n])
        block = invert_small(upper, s0, size)
        pack_straight(block, 0, size, 0, size, MR, u, int(u_start[n]))
        diagonal[s0 : s0 + size] = block.diagonal()

    share(len(lengths), pack)
    codes = np.empty((m, k) if rule.quantized else (0, 0), np.int32)
    weight = np.empty((m, k), dtype)
    mask = np.empty((m, k) if rule.of else (0, 0), np.bool_)
    loss = np.zeros(m)
    positions = np.asarray(ready.order) if static_groups else np.arange(k)
    group_of = positions // rule.group if grouped else np.zeros(k, np.int64)
    group_of = fixed(group_of.astype(np.int64))
    borders = fixed(np.asarray(segments, np.int64)), fixed(np.asarray(inner, np.int64))
    steps = Plan(*borders, fixed(r_start), fixed(u_start))
    dead = fixed(ready.dead)
    r, u, diagonal = fixed(r), fixed(u), fixed(diagonal)
    count = 2 if panels(m, nr) >= 16 else 1  # panels that a task takes through R together
    most = np.zeros(panels(m, nr * count))

    def run(t: int) -> None:
        row0 = t * nr * count
        most[t] = _run_panels(
            source, row0, min(count, panels(m - row0, nr)), ready.order, dead, r, u, diagonal, steps, rule, group_of,
            given_scale, given_zero, codes, weight, mask, scale, zero, loss,
        )  # fmt: skip

    share(most.size if k else 0, run)
    if most.max(initial=0.0) > rule.grid.most:
        refuse_overflow(float(most.max()), rule.grid)
    if k == 0 and rule.quantized:
        scale, zero = np.array(given_scale), np.array(given_zero)
    group_index = np.empty(k, np.int32)
    group_index[ready.order] = group_of
    if not rule.quantized:
        return SparseWeight(weight, mask, None, None, None, None, float(loss.sum()))
    return SparseWeight(weight, mask, codes, scale, zero, group_index, float(loss.sum()))


def gptq(
    w: Array,
    h: Array,
    /,
    *,
    bits: int,
    scheme: Scheme = "asymmetric",
    group_size: int | None = None,
    act_order: bool = False,
    static_groups: bool = False,
    group_scales: GroupScales = "current",
    clip_search: bool = False,
    range_floor: float = 0.0,
    block_size: int = 128,
    damping: float = 0.01,
    scale_dtype: ScaleDtype | None = None,
) -> QuantizedWeight[Array]:
    """Quantize W column by column, pushing each rounding error onto the columns still to come.  [G-2, G-3, G-4]"""
    given = weights("G-2", "w", w)
    check_matrix("G-2", "w", given.shape, (None, None))
    k = given.shape[1]
    check_group_scales("G-2", group_scales)
    group = check_gptq("G-2", k, group_size, block_size)
    dtype = working_dtype(given)
    dynamic = group_size is not None and not static_groups
    rule = Rule(
        plan(bits, scheme, range_floor, scale_dtype, dtype), True, max(group, 1), dynamic,
        block_size if dynamic and group_scales == "block" else 0, bool(clip_search), 0, 0,
    )  # fmt: skip
    done: Any = compress(
        "G-2", w, h, rule, damping=damping, act_order=act_order, static_groups=static_groups, scheme=scheme, bits=bits,
        range_floor=range_floor, scale_dtype=scale_dtype, grouped=group_size is not None,
    )  # fmt: skip
    return QuantizedWeight(done.codes, done.scale, done.zero_point, done.group_index, done.weight, done.loss)
