"""Chapter G: inverse Cholesky factor and GPTQ.

GPTQ is usually written with ``U``, ``inv(H + damp I) = Uᵀ U``: the error ``e = (w - q) / U_ii`` of column i is carried
to the columns behind it by ``w_j -= e U_ij``. Collecting the errors, ``W - Q = E U``, hence ``E = (W - Q) V`` with
``V = U⁻¹``, and ``V`` is upper triangular with ``H + damp I = V Vᵀ``. So columns b, when all before them are done,
follow without inverting H, from the residuals and a diagonal block of V::

    w_b = W_b + (W - Q)_{<b} V_{<b,b} U_bb        U_bb = (V_bb)⁻¹        U_ii = 1 / V_ii

``V`` is the Cholesky factor of H taken from the last column to the first. Inside a block the usual form is used. The
columns of W are rows here (transposed layout), so that one step touches contiguous memory; residuals ``W - Q`` replace
the weights already done. Columns are brought up to date as late as possible, by products: a block from all columns
before it, a group from the earlier ones of its block, a panel from the earlier ones of its group; only inside a panel
column by column.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lowbit.accel.common.gptq import check_gptq, check_group_scales
from lowbit.accel.common.refusals import check_damping, check_matrix, check_square
from lowbit.accel.common.uniform import code_range
from lowbit.reference.errors import SpecError
from lowbit.reference.types import GroupScales, InverseFactor, QuantizedWeight, ScaleDtype, Scheme

from .arrays import as_weights, operation, refuse_nan, transposed, working_dtype
from .uniform import Options, check_grid_options, grid_from_range, refuse_overflow, search_grid, value_range

__all__ = ["gptq", "inverse_cholesky"]

_PANEL = 32  # columns updated one by one; as rows of a transposed weight they stay in the second-level cache
_LEAF = 256  # below this size LAPACK's own kernels are as fast as products
_TILE = 256
_STRIP = 1024  # columns of a symmetric update done at once, so that only its upper triangle costs
SYMMETRY = 2.0**-12  # largest accepted abs(H - Hᵀ) / max abs(H): half the digits of float32


class Factor(NamedTuple):
    """The damped Hessian, factored."""

    v: Tensor  # float64, (k, k), upper triangular with H + damp I = V Vᵀ; in the given order
    dead: Tensor  # bool, (k,), original order


def check_moment(clause: str, name: str, c: Tensor, k: int | None, *, like: Tensor | None = None) -> Tensor:
    """Refuse what cannot be a second moment; return it symmetrised, as a float64 copy.

    Refused are a wrong shape, NaN and infinities, entries that differ from their mirror image by more than summation
    order explains, and a negative diagonal.
    """
    c = as_weights(clause, name, c, like=like)
    check_square(clause, name, c.shape, k)
    refuse_nan(clause, name, c)
    result = c.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    if c.numel() == 0:
        return result
    diagonal = result.diagonal()
    if bool((diagonal < 0).any()):
        at = int((diagonal < 0).to(torch.uint8).argmax())
        raise SpecError(clause, f"{name} must have a diagonal >= 0, got {float(diagonal[at])!r} at ({at}, {at})")
    source = c if c.dtype == torch.float32 else result
    tiles = [slice(i, i + _TILE) for i in range(0, c.shape[0], _TILE)]  # a transposed tile stays in cache
    skew = torch.zeros((), dtype=torch.float64, device=c.device)
    for i, rows in enumerate(tiles):
        for columns in tiles[: i + 1]:
            skew = torch.maximum(
                skew, (source[rows, columns] - source[columns, rows].mT).abs_().max().to(torch.float64)
            )
    if skew == 0:
        return result
    largest = max(abs(float(t)) for t in torch.aminmax(c))
    if float(skew) > SYMMETRY * largest:
        raise SpecError(
            clause, f"{name} must be symmetric, the largest difference from its transpose is {float(skew):.3g}"
        )
    for i, rows in enumerate(tiles):
        for columns in tiles[: i + 1]:
            mean = (result[rows, columns] + result[columns, rows].mT) / 2
            result[rows, columns] = mean
            result[columns, rows] = mean.mT
    return result


def repair(h: Tensor) -> Tensor:
    """Set zero diagonal entries of ``h`` to 1, in place; return where they were."""
    diagonal = h.diagonal()
    dead = diagonal == 0
    diagonal.masked_fill_(dead, 1.0)
    return dead


def damp(h: Tensor, damping: float) -> Tensor:
    """Add ``damping`` times its mean to the diagonal of a repaired ``h``, in place."""
    if h.shape[0]:
        h.diagonal().add_(damping * h.diagonal().mean())
    return h


def factor_hessian(clause: str, h: Tensor, damping: float) -> Tensor:
    """Upper V with ``h + damp I = V Vᵀ``; ``h`` is repaired, float64, and destroyed.  [G-1]"""
    info = cholesky_upper(damp(h, damping))
    if info:
        raise SpecError(
            clause,
            f"h is not positive definite with damping {damping!r}: the factorization stops at column "
            f"{h.shape[0] - info}; raise the damping",
        )
    return h


def cholesky_upper(a: Tensor) -> int:
    """Factor a symmetric matrix as ``V Vᵀ``, V upper triangular, in place; only its upper triangle is read.

    From the last columns to the first, in blocks: nearly all work is matrix products. Returns 0, or how many
    columns from the end the first non-positive pivot is.
    """
    k = a.shape[0]
    for stop in range(k, 0, -_LEAF):
        start = max(0, stop - _LEAF)
        corner = a[start:stop, start:stop]
        lower, status = torch.linalg.cholesky_ex(corner.flip(0, 1))  # reads what was the upper triangle
        info = int(status)
        if info:
            return k - stop + info
        corner.copy_(lower.flip(0, 1))
        if start:
            right = torch.linalg.solve_triangular(corner.mT, a[:start, start:stop], upper=False, left=False)
            a[:start, start:stop] = right
            for column in range(0, start, _STRIP):
                end = min(column + _STRIP, start)
                a[:end, column:end].addmm_(right[:end], right[column:end].mT, alpha=-1)
    a.triu_()
    return 0


def invert_upper(v: Tensor) -> Tensor:
    """Inverse of an upper triangular matrix by halves: nearly all work is products."""
    k = v.shape[0]
    if k <= _LEAF:
        eye = torch.eye(k, dtype=v.dtype, device=v.device)
        small: Tensor = torch.linalg.solve_triangular(v, eye, upper=True)
        return small
    half = k // 2
    result = torch.zeros_like(v)
    result[:half, :half] = invert_upper(v[:half, :half])
    result[half:, half:] = invert_upper(v[half:, half:])
    result[:half, half:] = -(result[:half, :half] @ (v[:half, half:] @ result[half:, half:]))
    return result


@operation
def inverse_cholesky(h: Tensor, /, *, damping: float = 0.01) -> InverseFactor[Tensor]:
    """Upper factor U of the damped inverse Hessian, ``inv(H + damp I) = Uᵀ U``.  [G-1]

    ``damp = damping * mean(diag H)`` after zero diagonal entries (dead columns) became 1. U is the inverse of the
    Cholesky factor taken from the last column to the first: no general inverse is formed. Computed in float64.
    """
    check_damping("G-1", damping)
    moment = check_moment("G-1", "h", h, None)
    dead = repair(moment)
    v = factor_hessian("G-1", moment, damping)
    return InverseFactor(factor=invert_upper(v).to(working_dtype(h)), dead=dead)


@dataclass(slots=True)
class Grids:
    """Grids of groups, found as the sweep reaches them; transposed: (G, m)."""

    options: Options
    search: bool
    scale: Tensor  # dtype of the work, (G, m)
    zero: Tensor  # the same dtype, whole numbers: within the code range, so exact

    def fit(self, group: int, rows: Tensor) -> None:
        """Fit the grid of ``group`` to its weights (size, m)."""
        if self.search:
            found = search_grid(rows.mT.contiguous(), self.options, norm=2.4, grid=100, max_shrink=0.8)
            scale, zero = found[0], found[1]
        else:
            scale, zero = grid_from_range(*value_range(rows, 0), 1.0, self.options)
        self.scale[group], self.zero[group] = scale, zero.to(self.zero.dtype)


def new_grids(
    w: Tensor,
    groups: int,
    *,
    bits: int,
    scheme: str,
    clip_search: bool,
    range_floor: float,
    scale_dtype: str | None,
) -> Grids:
    """Room for ``groups`` grids of the rows of ``w``."""
    dtype = working_dtype(w)
    options = Options(bits, scheme, range_floor, scale_dtype, dtype)
    room = torch.ones((2, groups, w.shape[0]), dtype=dtype, device=w.device)
    return Grids(options, clip_search, room[0], room[1].zero_())


class Plan(NamedTuple):
    """How a sweep goes over the columns, all in visited order."""

    block_size: int
    opens: int | None  # a dynamic group opens every so many columns
    from_block: bool  # its grid sees only the updates of earlier blocks
    group_of: list[int] | None  # grid of each column; None: no quantization
    keep: int  # of every `of` columns `keep` survive
    of: int


class Block(NamedTuple):
    """A finished block of columns, transposed."""

    columns: slice
    value: Tensor  # (b, m): the compressed weights
    level: Tensor | None  # (b, m): code - zero point, whole numbers
    mask: Tensor | None  # bool, (b, m): True = pruned


class Sweep:
    """One pass over the columns, shared by GPTQ and SparseGPT."""

    def __init__(self, rows: Tensor, v: Tensor, plan: Plan, grids: Grids | None) -> None:
        """``rows``: weights transposed, (k, m), visited order, overwritten by residuals; ``v``: float64, (k, k)."""
        self.rows, self.plan, self.grids = rows, plan, grids
        self.pivot = v.diagonal().clone()  # 1 / U_jj
        k = v.shape[0]
        self.inverses = [  # U_bb of every block
            invert_upper(v[i : i + plan.block_size, i : i + plan.block_size]) for i in range(0, k, plan.block_size)
        ]
        self.v = v.to(rows.dtype)  # upper triangular: products with it never meet its zeros
        self.loss = torch.zeros((), dtype=torch.float64, device=rows.device)
        self._settled = 0  # columns whose row holds the residual

    def current(self, start: int, stop: int, done: int) -> Tensor:
        """Weights of columns ``start:stop`` as updated by the columns before ``done <= start``."""
        if done == 0 or self.rows.numel() == 0:
            return self.rows[start:stop].clone()
        owed = self.v[:done, done:stop].mT @ self.rows[:done]
        # from the left, since rows are columns here: Xᵀ = (V_bbᵀ)⁻¹ (R V)ᵀ
        update: Tensor = torch.linalg.solve_triangular(self.v[done:stop, done:stop].mT, owed, upper=False)
        return self.rows[start:stop] + update[start - done :]

    def blocks(self) -> Iterator[Block]:
        """Run the pass; every block is handed out as it is finished."""
        k, m = self.rows.shape
        plan = self.plan
        # groups that do not hold whole tuples open in the middle of a panel and get their weights by a product of
        # their own; all others start a segment, whose columns are up to date when it begins
        aligned = plan.opens is not None and plan.opens % plan.of == 0
        panel = max(plan.of, _PANEL // plan.of * plan.of)
        for i1, inverse in zip(range(0, k, plan.block_size), self.inverses, strict=True):
            i2 = min(i1 + plan.block_size, k)
            tile = self.rows[i1:i2].clone()
            if i1 and m:
                owed = self.v[:i1, i1:i2].mT @ self.rows[:i1]
                tile.addmm_(inverse.mT.to(tile.dtype), owed)
            # d = w - q of column i enters column j as -d U_ij / U_ii
            share = (inverse * -self.pivot[i1:i2, None]).to(tile.dtype)
            block = Block(
                columns=slice(i1, i2),
                value=torch.empty_like(tile),
                level=torch.empty_like(tile) if plan.group_of is not None else None,
                mask=torch.zeros((i2 - i1, m), dtype=torch.bool, device=tile.device) if plan.keep < plan.of else None,
            )
            error = torch.empty_like(tile)
            cuts = [i1, i2]
            if aligned and plan.opens:
                cuts = sorted({i1, i2, *range(-(-i1 // plan.opens) * plan.opens, i2, plan.opens)})
            for s1, s2 in itertools.pairwise(cuts):
                opening = aligned and plan.opens is not None and s1 % plan.opens == 0
                if opening and plan.from_block:
                    self._open(s1, tile[s1 - i1 : s2 - i1], s2, i1, block)
                _pull(tile, error, share, s1 - i1, s2 - i1, 0)
                if opening and not plan.from_block:
                    self._open(s1, tile[s1 - i1 : s2 - i1], s2, s1, block)
                for p1 in range(s1, s2, panel):
                    p2 = min(p1 + panel, s2)
                    _pull(tile, error, share, p1 - i1, p2 - i1, s1 - i1)
                    self._panel(block, tile, error, share, p1, p2, aligned)
            self._settle(block, i2)
            # (w - q)² / (2 U_jj²) with w as updated when its turn came
            self.loss += error.to(torch.float64).mul_(self.pivot[i1:i2, None]).square_().sum() / 2
            yield block

    def _settle(self, block: Block, upto: int) -> None:
        """Replace weights by residuals up to a column of the block."""
        if upto > self._settled:
            origin = block.columns.start
            self.rows[self._settled : upto] -= block.value[self._settled - origin : upto - origin]
            self._settled = upto

    def _open(self, start: int, head: Tensor, ready: int, done: int, block: Block) -> None:
        """Fit the grid of the group that opens at ``start``; ``head`` holds its columns before ``ready``."""
        assert self.plan.opens is not None
        assert self.grids is not None
        stop = start + self.plan.opens
        if stop > ready:
            self._settle(block, done)
            head = torch.cat([head, self.current(ready, stop, done)])
        self.grids.fit(start // self.plan.opens, head)

    def _panel(self, block: Block, tile: Tensor, error: Tensor, share: Tensor, p1: int, p2: int, aligned: bool) -> None:
        """Columns ``p1:p2`` one by one. Each is up to date with everything before ``p1`` on entry."""
        plan, grids, origin = self.plan, self.grids, block.columns.start
        here = slice(p1 - origin, p2 - origin)
        weights, values, errors = tile[here].unbind(0), block.value[here].unbind(0), error[here].unbind(0)
        levels = block.level[here].unbind(0) if block.level is not None else ()
        masks = block.mask[here].unbind(0) if block.mask is not None else ()
        low, high = code_range(grids.options.bits, grids.options.scheme) if grids else (0, 0)
        opened, scale, bottom, top = -1, tile, tile, tile
        for j, weight, value, difference in zip(range(p1, p2), weights, values, errors, strict=True):
            i = j - origin
            if block.mask is not None and j % plan.of == 0:
                score = tile[i : i + plan.of].abs() * self.pivot[j : j + plan.of, None]
                block.mask[i : i + plan.of] = smallest(score, plan.of - plan.keep)
            if grids is not None and plan.group_of is not None:
                if plan.opens is not None and not aligned and j % plan.opens == 0:
                    self._open(j, tile[:0], j, origin if plan.from_block else j, block)
                group = plan.group_of[j]
                if group != opened:
                    opened, scale = group, grids.scale[group]
                    bottom, top = low - grids.zero[group], high - grids.zero[group]
                level = levels[j - p1]
                torch.div(weight, scale, out=level)
                torch.clamp(level.round_(), bottom, top, out=level)
                if masks:
                    level.masked_fill_(masks[j - p1], 0.0)
                torch.mul(level, scale, out=value)
            else:
                value.copy_(weight)
                if masks:
                    value.masked_fill_(masks[j - p1], 0.0)
            torch.sub(weight, value, out=difference)
            if j + 1 < p2:
                tile[i + 1 : p2 - origin].addr_(share[i, i + 1 : p2 - origin], difference)


def _pull(tile: Tensor, error: Tensor, share: Tensor, start: int, stop: int, first: int) -> None:
    """Update columns ``start:stop`` of a block by the errors of its columns ``first:start``."""
    if start > first and tile.numel():
        tile[start:stop].addmm_(share[first:start, start:stop].mT, error[first:start])


def smallest(score: Tensor, count: int) -> Tensor:
    """Where the ``count`` smallest of axis 0 are; among equals the lower index goes first."""
    size = score.shape[0]
    if size > 8:
        order = score.sort(dim=0, stable=True).indices[:count]
        return torch.zeros_like(score, dtype=torch.bool).scatter_(0, order, True)
    # rank by counting: cheaper than a sort for a few rows
    rank = torch.zeros(score.shape, dtype=torch.int8, device=score.device)
    for i in range(size):
        for j in range(i):
            earlier = score[j] <= score[i]
            rank[i] += earlier
            rank[j] += ~earlier
    return rank < count


@operation
def gptq(
    w: Tensor,
    h: Tensor,
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
) -> QuantizedWeight[Tensor]:
    """Quantize W column by column, carrying each error to the columns behind it.  [G-2, G-3, G-4]

    The module's docstring has the form that is computed. The factor is formed in float64, weights and residuals are
    kept in the dtype of ``w`` (at least float32).
    """
    w = as_weights("G-2", "w", w)
    check_matrix("G-2", "w", w.shape, (None, None))
    m, k = w.shape
    check_grid_options(bits, scheme, range_floor, scale_dtype)
    size = max(check_gptq("G-2", k, group_size, block_size), 1)
    check_group_scales("G-2", group_scales)
    check_damping("G-2", damping)
    refuse_nan("G-2", "w", w)
    moment = check_moment("G-2", "h", h, k, like=w)

    groups = 1 if group_size is None else k // size
    grids = new_grids(
        w, groups, bits=bits, scheme=scheme, clip_search=clip_search, range_floor=range_floor, scale_dtype=scale_dtype
    )
    rows = transposed(w.to(working_dtype(w)))
    if group_size is None:
        grids.fit(0, rows)  # before dead columns are zeroed
    dead = repair(moment)
    rows[dead] = 0.0
    if group_size is not None and static_groups:
        for group in range(groups):
            grids.fit(group, rows[group * size : (group + 1) * size])
    order = None
    group_index = torch.arange(k, dtype=torch.int32, device=w.device) // size
    if act_order:
        order = torch.sort(moment.diagonal(), descending=True, stable=True).indices
        moment, rows = moment[order][:, order], rows[order]
        if static_groups:
            visited = group_index[order]
        else:
            visited, group_index = group_index, torch.empty_like(group_index).index_copy_(0, order, group_index)
    else:
        visited = group_index
    v = factor_hessian("G-1", moment, damping)

    plan = Plan(
        block_size=block_size,
        opens=size if group_size is not None and not static_groups else None,
        from_block=group_scales == "block",
        group_of=visited.tolist(),
        keep=1,
        of=1,
    )
    sweep = Sweep(rows, v, plan, grids)
    del moment, v, rows  # what is large goes as soon as it may
    codes = torch.empty((k, m), dtype=torch.int32, device=w.device)
    weight = torch.empty_like(sweep.rows)
    for block in sweep.blocks():
        assert block.level is not None
        where = block.columns if order is None else order[block.columns]
        codes[where] = block.level.add_(grids.zero[visited[block.columns].long()]).to(torch.int32)
        weight[where] = block.value
    scale = grids.scale.mT.contiguous()
    refuse_overflow(scale, grids.options)
    loss = float(sweep.loss)
    del sweep
    codes = transposed(codes)
    weight = transposed(weight)
    return QuantizedWeight(
        codes=codes,
        scale=scale,
        zero_point=grids.zero.mT.to(torch.int32).contiguous(),
        group_index=group_index,
        weight=weight,
        loss=loss,
    )
