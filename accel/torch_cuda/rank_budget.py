"""Chapter K on torch tensors: ranks under a budget. The rules are those of :mod:`lowbit.reference.rank_budget`.

A rule gives every unit of ranks a time at which it is due, in float64 and in the specification's order of operations.
Times rise along a module, so what is due by a given time is one batched binary search, and the time at which the
budget ends is bracketed by bisection over the bits of a float64. The few units in the bracket are sorted, stably, so
that equal ones are bought from the lower module on. "fill" repeats that for the modules that are still affordable.
"""

from __future__ import annotations

import math
import struct

import torch
from torch import Tensor

from lowbit.accel.common.eigenspace import check_definite, check_moment
from lowbit.accel.common.low_rank import check_budget, check_patch
from lowbit.accel.common.refusals import check_choice, check_matrix, check_number, check_square, check_whole
from lowbit.reference.errors import SpecError, Unsupported
from lowbit.reference.types import Leftover, LowRank, Normalisation, RankPool, Split

from .arrays import as_integers, as_weights, operation, refuse_nan, working_dtype
from .eigenspace import _balance, _eigen

__all__ = [
    "allocate_greedy",
    "allocate_proportional",
    "allocate_threshold",
    "allocation_bound",
    "allocation_objective",
    "explained_error",
    "gradient_importance",
    "loss_importance",
    "nest_patch",
    "pool_modules",
    "rank_cost",
    "reallocate_ranks",
    "residual_damage",
    "subspace_overlap",
    "threshold_ranks",
]

I32_MAX = 2**31 - 1
_INF = 2047 << 52  # bits of infinity
_SORTED = 2**16  # units that are sorted rather than bisected further
_MOST = 2**46  # largest sum that is spent: int64 holds it for a hundred thousand modules


# --- arguments -------------------------------------------------------------------------------------------------------


def _spectra(clause: str, name: str, x: Tensor, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Spectra (J, R) as given, and their squares in float64: finite, not negative, descending."""
    x = as_weights(clause, name, x, like=like)
    check_matrix(clause, name, x.shape, (None, None))
    refuse_nan(clause, name, x)
    # What descends to a last value that is not negative has no negative value.
    for what, bad in (("descend", x[:, 1:] > x[:, :-1]), ("be >= 0", x[:, -1:] < 0)):
        if bool(bad.any()):
            j, i = (int(n) for n in bad.nonzero()[0])
            shown = x[j, i : i + 2] if what == "descend" else x[j, -1:]
            raise SpecError(clause, f"{name} must {what}, got {shown.tolist()} in module {j}")
    wide = x.to(torch.float64)
    squares = wide * wide
    if x.dtype == torch.float64 and not bool(torch.isfinite(squares.sum(dim=1)).all()):
        raise SpecError(clause, f"the squares of {name} overflow float64")
    return x, squares


def _each(clause: str, name: str, x: Tensor, like: Tensor, *, signed: bool = False) -> Tensor:
    """One number for every module, in float64."""
    x = as_weights(clause, name, x, like=like)
    check_matrix(clause, name, x.shape, (like.shape[0],))
    refuse_nan(clause, name, x)
    if not signed and bool((x < 0).any()):
        raise SpecError(clause, f"{name} must be >= 0, got {float(x.min())}")
    return x.to(torch.float64) + 0.0  # no negative zero: bits are compared


def _whole(clause: str, name: str, x: Tensor, like: Tensor, least: int) -> Tensor:
    """One integer for every module, as int64."""
    x = as_integers(clause, name, x, like=like).to(torch.int64)
    check_matrix(clause, name, x.shape, (like.shape[0],))
    bad = (x < least) | (x > I32_MAX)
    if bool(bad.any()):
        j = int(bad.nonzero()[0])
        raise SpecError(clause, f"{name} must be in {least}..{I32_MAX}, got {int(x[j])} for module {j}")
    return x


def _units(
    clause: str, low: Tensor, high: Tensor, like: Tensor, columns: int, multiple: int
) -> tuple[Tensor, Tensor, int]:
    """Fewest and most units of every module."""
    low, high = _whole(clause, "low", low, like, 0), _whole(clause, "high", high, like, 0)
    mu = check_whole(clause, "multiple", multiple, 1)
    if bool((high > columns).any()):
        j = int((high > columns).nonzero()[0])
        raise SpecError(clause, f"module {j} may have rank {int(high[j])}, but its spectrum holds {columns} values")
    first, last = (low + (mu - 1)) // mu, high // mu
    if bool((first > last).any()):
        j = int((first > last).nonzero()[0])
        raise SpecError(clause, f"no multiple of {mu} lies in {int(low[j])}..{int(high[j])}, the ranks of module {j}")
    return first, last, mu


# --- the market ------------------------------------------------------------------------------------------------------


class _Table:
    """Times (J, T) at which units are due, as bits of float64, rising along each row; infinity: never."""

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys.contiguous()

    def due(self, bits: int, first: Tensor, last: Tensor) -> Tensor:
        """Units of each module, within its bounds, that are due at the time of these bits or before."""
        level = torch.full((self.keys.shape[0], 1), bits, dtype=torch.int64, device=self.keys.device)
        count = torch.searchsorted(self.keys, level, right=True)[:, 0]
        return torch.minimum(torch.maximum(count, first), last)

    def at(self, module: Tensor, unit: Tensor) -> Tensor:
        """Times of some units, as bits."""
        return self.keys[module, unit]


class _Factor:
    """Times (t + 1/2) μ / σ of Rule C, in closed form: bounds may be far above what is bought."""

    def __init__(self, sigma: Tensor, mu: int) -> None:
        self.sigma, self.mu = sigma, mu

    def due(self, bits: int, first: Tensor, last: Tensor) -> Tensor:
        """As :meth:`_Table.due`."""
        at = struct.unpack("<d", struct.pack("<q", bits))[0]
        low, high = first.double(), last.double()
        count = torch.minimum(torch.maximum(torch.floor(at * self.sigma / self.mu + 0.5), low), high)
        for _ in range(2):  # the estimate may be off by the rounding of its own division
            count += ((count < high) & ((count + 0.5) * self.mu / self.sigma <= at)).double()
        for _ in range(2):
            count -= ((count > low) & ((count - 0.5) * self.mu / self.sigma > at)).double()
        return count.to(torch.int64)

    def at(self, module: Tensor, unit: Tensor) -> Tensor:
        """As :meth:`_Table.at`."""
        return ((unit.double() + 0.5) * self.mu / self.sigma[module]).view(torch.int64)


def _market(
    clause: str, times: _Table | _Factor, cost: Tensor, first: Tensor, last: Tensor, mu: int, budget: int, leftover: str
) -> tuple[Tensor, int]:
    """Ranks (J,) int64 and what is left of the budget."""
    total = check_budget(clause, budget, leftover)
    price = cost * mu
    spent = int((price * first).sum())
    if spent > total:
        raise SpecError(clause, f"budget {total} is below {spent}, the cost of the smallest ranks")
    beyond = max(total - spent - _MOST, 0)
    if beyond and float((price.double() * (last - first)).sum()) > _MOST:
        raise Unsupported(f"more than {_MOST} to spend: give costs in a larger unit")
    left = total - spent - beyond
    while True:
        # One unit more than a module could pay alone: there the purchase stops.
        n, left, ended = _buy(times, price, first, torch.minimum(last, first + left // price + 1), left)
        if not ended or leftover == "stop":
            return n * mu, left + beyond
        # Modules whose next unit is not covered drop out, for what is left only shrinks; the rest goes on.
        first, last = n, torch.where(price > left, n, last)


def _buy(times: _Table | _Factor, price: Tensor, first: Tensor, last: Tensor, room: int) -> tuple[Tensor, int, bool]:
    """Units by rising time, ties by the lower module, to the first that is not covered; whether there was one."""

    def left_after(n: Tensor) -> int:
        return room - int((price * (n - first)).clamp_max(room + 1).sum())

    low, high = -1, _INF - 1  # before time 0 nothing is due, at the largest finite time everything that gains something
    few, many = first, times.due(high, first, last)
    left = left_after(many)
    if left >= 0:
        return many, left, False
    while high - low > 1 and int((many - few).sum()) > _SORTED:
        middle = (low + high) // 2
        n = times.due(middle, few, many)
        if left_after(n) >= 0:
            low, few = middle, n
        else:
            high, many = middle, n
    left = left_after(few)
    between = many - few
    module = torch.repeat_interleave(torch.arange(len(few), device=few.device), between)
    unit = torch.arange(len(module), device=few.device) - torch.repeat_interleave(between.cumsum(0) - between, between)
    module = module[torch.argsort(times.at(module, few[module] + unit), stable=True)]
    spent = torch.cumsum(price[module], dim=0)
    count = int(torch.searchsorted(spent, left, right=True))
    bought = torch.bincount(module[:count], minlength=len(few))
    return few + bought, left - (int(spent[count - 1]) if count else 0), True


# --- what a rank buys, and what it costs -----------------------------------------------------------------------------


def _shares(squares: Tensor) -> Tensor:
    """ρ (J, R + 1)."""
    sums = torch.nn.functional.pad(torch.cumsum(squares, dim=1), (1, 0))
    total = sums[:, -1:]
    return torch.where(total > 0, sums / torch.where(total > 0, total, 1.0), 1.0)


def _tails(squares: Tensor) -> Tensor:
    """Σ_{i>r} s² for r = 0..R."""
    return torch.nn.functional.pad(torch.cumsum(squares.flip(1), dim=1).flip(1), (0, 1))


@operation
def explained_error(spectra: Tensor, /) -> Tensor:
    """Share of the error that r leading directions explain, r = 0..R; 1 where there is no error.  [K-1]"""
    spectra, squares = _spectra("K-1", "spectra", spectra)
    return _shares(squares).to(working_dtype(spectra))


@operation
def residual_damage(spectra: Tensor, energy: Tensor, /) -> Tensor:
    """Output error left by rank r relative to the output's energy, r = 0..R; 0/0 is 0, x/0 is inf.  [K-1]"""
    spectra, squares = _spectra("K-1", "spectra", spectra)
    below = _each("K-1", "energy", energy, spectra)[:, None]
    tail = _tails(squares)
    return torch.where(tail > 0, tail / below, 0.0).to(working_dtype(spectra, energy))


@operation
def subspace_overlap(w: Tensor, w_hat: Tensor, c: Tensor, /, *, rank: int) -> Tensor:
    """Overlap φ(1)..φ(rank) of the leading output directions of a weight and its compressed form.  [K-2]

    The directions are eigenvectors of W C Wᵀ, found on the smaller side of W.
    """
    w = as_weights("K-2", "w", w)
    w_hat, c = as_weights("K-2", "w_hat", w_hat, like=w), as_weights("K-2", "c", c, like=w)
    check_patch("K-2", w.shape, rank, "balanced")
    check_matrix("K-2", "w_hat", w_hat.shape, tuple(w.shape))
    check_square("K-2", "c", c.shape, w.shape[1])
    for name, x in (("w", w), ("w_hat", w_hat), ("c", c)):
        refuse_nan("K-2", name, x)
    check_moment("K-2", c)
    check_definite(torch, "K-2", "c", c.to(torch.float64))
    left, right = (_eigen(x, c, rank)[1] for x in (w, w_hat))
    overlap = (left.T @ right).square().cumsum(0).cumsum(1).diagonal()
    count = torch.arange(1, rank + 1, dtype=torch.float64, device=w.device)
    return (overlap / count).clamp_max(1.0).to(working_dtype(w, w_hat, c))


@operation
def gradient_importance(gradient: Tensor, /, *, normalisation: Normalisation = "mean") -> float:
    """Mean or sum of the squared gradient of the loss with respect to a module's output.  [K-3]"""
    check_choice("K-3", "normalisation", normalisation, ("mean", "sum"))
    gradient = as_weights("K-3", "gradient", gradient)
    check_matrix("K-3", "gradient", gradient.shape, (None, None))
    refuse_nan("K-3", "gradient", gradient)
    total = 0.0
    for part in torch.split(gradient, 1 << 12):
        total += float(part.to(torch.float64).square().sum())
    return total / max(gradient.numel(), 1) if normalisation == "mean" else total


@operation
def loss_importance(losses: Tensor, spectra: Tensor, /, *, base: float) -> Tensor:
    """(loss − base)⁺ / Σ s²: importance that turns the error of a module into its measured loss.  [K-3]"""
    at = check_number("K-3", "base", base)
    spectra, squares = _spectra("K-3", "spectra", spectra)
    rise = (_each("K-3", "losses", losses, spectra, signed=True) - at).clamp_min(0.0)
    total = squares.sum(dim=1)
    return torch.where(total > 0, rise / torch.where(total > 0, total, 1.0), 0.0).to(working_dtype(losses, spectra))


@operation
def rank_cost(shapes: Tensor, /, *, bits: int | None = None) -> Tensor:
    """Parameters of one rank, m + k, or its bytes at ``bits`` per number, rounded up for each factor.  [K-4]"""
    shapes = as_integers("K-4", "shapes", shapes).to(torch.int64)
    check_matrix("K-4", "shapes", shapes.shape, (None, 2))
    bad = (shapes < 1) | (shapes > I32_MAX)
    if bool(bad.any()):
        raise SpecError("K-4", f"shapes must be in 1..{I32_MAX}, got {int(shapes[bad][0])}")
    if bits is not None:
        shapes = (shapes * check_whole("K-4", "bits", bits, 1, 64) + 7) >> 3
    cost = shapes.sum(dim=1)
    if bool((cost > I32_MAX).any()):
        raise SpecError("K-4", f"the cost of a rank must fit int32, got {int(cost.max())}")
    return cost.to(torch.int32)


# --- the three rules -------------------------------------------------------------------------------------------------


def _goods(
    clause: str, squares: Tensor, cost: Tensor, low: Tensor, high: Tensor, multiple: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Checked cost and units of modules with these spectra."""
    c = _whole(clause, "cost", cost, squares, 1)
    return c, *_units(clause, low, high, squares, squares.shape[1], multiple)


def _gains(clause: str, squares: Tensor, importance: Tensor, mu: int) -> Tensor:
    """Weighted error that each unit removes, (J, R // μ), summed from the first value of a unit on."""
    count = squares.shape[1] // mu
    gain = squares[:, ::mu][:, :count]
    for i in range(1, mu):
        gain = gain + squares[:, i::mu][:, :count]
    gain = gain * importance[:, None]
    if not bool(torch.isfinite(gain[:, :1]).all()):
        raise SpecError(clause, "importance times squared spectrum overflows float64")
    return gain


def _by_ratio(ratio: Tensor) -> _Table:
    """Times that rise as the error removed per price falls: the complement of its bits, infinity where it is 0."""
    return _Table(_INF - ratio.contiguous().view(torch.int64))


@operation
def allocate_greedy(
    spectra: Tensor,
    importance: Tensor,
    cost: Tensor,
    low: Tensor,
    high: Tensor,
    /,
    *,
    budget: int,
    multiple: int = 1,
    leftover: Leftover = "stop",
) -> Tensor:
    """Rule A: units that remove most weighted error per price, until the budget ends.  [K-5]"""
    spectra, squares = _spectra("K-5", "spectra", spectra)
    g = _each("K-5", "importance", importance, spectra)
    c, first, last, mu = _goods("K-5", squares, cost, low, high, multiple)
    times = _by_ratio(_gains("K-5", squares, g, mu) / c[:, None])
    return _market("K-5", times, c, first, last, mu, budget, leftover)[0].to(torch.int32)


@operation
def threshold_ranks(spectra: Tensor, low: Tensor, high: Tensor, /, *, threshold: float, multiple: int = 1) -> Tensor:
    """Rule B at a given share: the smallest multiple within the bounds that explains it.  [K-6]"""
    at = check_number("K-6", "threshold", threshold, 0.0, 1.0)
    spectra, squares = _spectra("K-6", "spectra", spectra)
    first, last, mu = _units("K-6", low, high, spectra, spectra.shape[1], multiple)
    missing = (_shares(squares)[:, ::mu] < at).sum(dim=1)
    return (torch.minimum(torch.maximum(missing, first), last) * mu).to(torch.int32)


@operation
def allocate_threshold(
    spectra: Tensor,
    cost: Tensor,
    low: Tensor,
    high: Tensor,
    /,
    *,
    budget: int,
    multiple: int = 1,
    leftover: Leftover = "stop",
) -> Tensor:
    """Rule B: units by rising share explained before them, until the budget ends.  [K-6]"""
    spectra, squares = _spectra("K-6", "spectra", spectra)
    c, first, last, mu = _goods("K-6", squares, cost, low, high, multiple)
    shares = _shares(squares)[:, ::mu]
    times = _Table(torch.where(shares < 1, shares, math.inf).view(torch.int64))  # floats >= 0 compare as their bits
    return _market("K-6", times, c, first, last, mu, budget, leftover)[0].to(torch.int32)


@operation
def allocate_proportional(
    sensitivity: Tensor,
    cost: Tensor,
    low: Tensor,
    high: Tensor,
    /,
    *,
    budget: int,
    multiple: int = 1,
    leftover: Leftover = "stop",
) -> Tensor:
    """Rule C: ranks proportional to a sensitivity, with the largest factor that the budget covers.  [K-7]"""
    given = as_weights("K-7", "sensitivity", sensitivity)
    check_matrix("K-7", "sensitivity", given.shape, (None,))
    sigma = _each("K-7", "sensitivity", given, given)
    c = _whole("K-7", "cost", cost, given, 1)
    first, last, mu = _units("K-7", low, high, given, I32_MAX, multiple)
    found, _ = _market("K-7", _Factor(sigma, mu), c, first, last, mu, budget, leftover)
    return found.to(torch.int32)


# --- judging and sharing ---------------------------------------------------------------------------------------------


def _error_left(squares: Tensor, importance: Tensor, ranks: Tensor) -> float:
    """Σ_j g_j Σ_{i>r_j} s²."""
    beyond = torch.arange(squares.shape[1], device=squares.device) >= ranks[:, None]
    return float((torch.where(beyond, squares, 0.0).sum(dim=1) * importance).sum())


@operation
def allocation_objective(spectra: Tensor, importance: Tensor, ranks: Tensor, /) -> float:
    """Weighted error that an allocation leaves.  [K-8]"""
    spectra, squares = _spectra("K-8", "spectra", spectra)
    g = _each("K-8", "importance", importance, spectra)
    r = _whole("K-8", "ranks", ranks, spectra, 0)
    if bool((r > spectra.shape[1]).any()):
        j = int((r > spectra.shape[1]).nonzero()[0])
        raise SpecError("K-8", f"module {j} has rank {int(r[j])}, but its spectrum holds {spectra.shape[1]} values")
    return _error_left(squares, g, r)


@operation
def allocation_bound(
    spectra: Tensor,
    importance: Tensor,
    cost: Tensor,
    low: Tensor,
    high: Tensor,
    /,
    *,
    budget: int,
    multiple: int = 1,
) -> float:
    """No allocation within bounds and budget leaves less: the optimum with units that may be split.  [K-8]"""
    spectra, squares = _spectra("K-8", "spectra", spectra)
    g = _each("K-8", "importance", importance, spectra)
    c, first, last, mu = _goods("K-8", squares, cost, low, high, multiple)
    ratio = _gains("K-8", squares, g, mu) / c[:, None]
    ranks, left = _market("K-8", _by_ratio(ratio), c, first, last, mu, budget, "stop")
    waiting = (ranks < last * mu).nonzero()[:, 0]
    best = float(ratio[waiting, ranks[waiting] // mu].max()) / mu if len(waiting) else 0.0
    return max(0.0, _error_left(squares, g, ranks) - left * best)


@operation
def pool_modules(
    spectra: Tensor, importance: Tensor, cost: Tensor, low: Tensor, high: Tensor, group: Tensor, /
) -> RankPool[Tensor]:
    """Modules that share a rank as one: squares weighted and added, costs added, bounds intersected.  [K-9]"""
    spectra, squares = _spectra("K-9", "spectra", spectra)
    g = _each("K-9", "importance", importance, spectra)
    c, first, last, _ = _goods("K-9", squares, cost, low, high, 1)
    member = _whole("K-9", "group", group, spectra, 0)
    seen = torch.unique(member)
    gaps = (seen != torch.arange(len(seen), device=seen.device)).nonzero()
    if len(gaps):
        raise SpecError("K-9", f"groups must be numbered without a gap, group {int(gaps[0])} has no module")
    # One module after the other, on the host: additions to one row in any order would differ in their last bits.
    order = torch.argsort(member, stable=True)
    sizes = torch.bincount(member, minlength=len(seen)).tolist()
    weighted = (squares * g[:, None])[order]
    empty = weighted.new_zeros((0, squares.shape[1]))
    total = torch.cat([empty, *(part.sum(dim=0, keepdim=True) for part in torch.split(weighted, sizes))])
    if not bool(torch.isfinite(total).all()):
        raise SpecError("K-9", "importance times squared spectrum overflows float64")
    price = torch.zeros(len(seen), dtype=torch.int64, device=seen.device).index_add(0, member, c)
    bottom = torch.zeros_like(price).scatter_reduce(0, member, first, "amax")
    top = torch.full_like(price, I32_MAX).scatter_reduce(0, member, last, "amin")
    if bool((price > I32_MAX).any()):
        raise SpecError("K-9", f"the cost of a group must fit int32, got {int(price.max())}")
    if bool((bottom > top).any()):
        t = int((bottom > top).nonzero()[0])
        raise SpecError(
            "K-9", f"group {t} has no rank in common: largest low {int(bottom[t])}, smallest high {int(top[t])}"
        )
    whole = (x.to(torch.int32) for x in (price, bottom, top))
    return RankPool(total.sqrt().to(working_dtype(spectra, importance)), *whole)


# --- during training, and truncation ---------------------------------------------------------------------------------


@operation
def reallocate_ranks(
    kept: Tensor,
    residual: Tensor,
    importance: Tensor,
    cost: Tensor,
    low: Tensor,
    high: Tensor,
    ranks: Tensor,
    /,
    *,
    budget: int,
    step: int,
    multiple: int = 1,
    hysteresis: float = 0.0,
) -> Tensor:
    """Rule A on what adapters hold and what they leave, merged, within ``step`` of the present ranks.  [K-10]"""
    kept, ours = _spectra("K-10", "kept", kept)
    residual, theirs = _spectra("K-10", "residual", residual, like=kept)
    check_matrix("K-10", "residual", residual.shape, (kept.shape[0], None))
    g = _each("K-10", "importance", importance, kept)
    c = _whole("K-10", "cost", cost, kept, 1)
    bottom, top, now = (
        _whole("K-10", name, x, kept, 0) for name, x in (("low", low), ("high", high), ("ranks", ranks))
    )
    outside = (now < bottom) | (now > top)
    if bool(outside.any()):
        j = int(outside.nonzero()[0])
        raise SpecError("K-10", f"module {j} has rank {int(now[j])}, outside {int(bottom[j])}..{int(top[j])}")
    more = check_number("K-10", "hysteresis", hysteresis, 0.0)
    by = check_whole("K-10", "step", step, 0)
    merged = torch.cat([ours, theirs], dim=1).sort(dim=1, descending=True).values  # squares, in the order of values
    near, far = torch.maximum(bottom, now - by), torch.minimum(top, now + by)
    first, last, mu = _units("K-10", near, far, kept, merged.shape[1], multiple)
    gain = _gains("K-10", merged, g, mu)
    held = torch.arange(gain.shape[1], device=gain.device) < (now // mu)[:, None]
    ratio = torch.where(held, gain * (1 + more), gain) / c[:, None]
    return _market("K-10", _by_ratio(ratio), c, first, last, mu, budget, "stop")[0].to(torch.int32)


@operation
def nest_patch(b: Tensor, a: Tensor, c: Tensor, /, *, split: Split = "balanced") -> LowRank[Tensor]:
    """The same patch with directions in order of what they do, so that every prefix is the best of its rank.  [K-11]

    One QR of B and one eigenproblem of order R, in float64.
    """
    check_choice("K-11", "split", split, ("balanced", "left"))
    b = as_weights("K-11", "b", b)
    a, c = as_weights("K-11", "a", a, like=b), as_weights("K-11", "c", c, like=b)
    check_matrix("K-11", "b", b.shape, (None, None))
    check_matrix("K-11", "a", a.shape, (b.shape[1], None))
    check_square("K-11", "c", c.shape, a.shape[1])
    (m, rank), k = b.shape, a.shape[1]
    if rank > min(m, k):
        raise SpecError("K-11", f"b {(m, rank)} times a {(rank, k)} has more directions than its product can have")
    for name, x in (("b", b), ("a", a), ("c", c)):
        refuse_nan("K-11", name, x)
    check_moment("K-11", c)
    moment = c.to(torch.float64)
    check_definite(torch, "K-11", "c", moment)
    dtype = working_dtype(b, a)
    right = a.to(torch.float64)
    q, r = torch.linalg.qr(b.to(torch.float64))
    core = r @ (right @ moment @ right.T) @ r.T
    values, y = torch.linalg.eigh((core + core.T) / 2)
    values, y = values.flip(0), y.flip(1)
    columns, rows = q @ y, (y.T @ r) @ right
    if split == "balanced" and rank:
        scale = _balance(values, max(m, k))
        columns, rows = columns * scale, rows / scale[:, None]
    return LowRank(B=columns.to(dtype), A=rows.to(dtype))
