"""Chapter K on NumPy arrays: ranks under a budget. The rules are those of :mod:`lowbit.reference.rank_budget`.

A rule gives every unit of ranks a priority that falls along a module, so what is bought at a given level is found by a
binary search per module, and the level by bisection over the bits of a float64. Each step of the bisection narrows the
searches of the next, so all of it looks at a few dozen units per module instead of sorting J·R. Priorities are computed
where they are looked at, in float64 and in the specification's order of operations, so ties are the specification's.
"""

from __future__ import annotations

from typing import Any, get_args

import numpy as np

from lowbit.accel.common.eigenspace import check_definite, check_moment
from lowbit.accel.common.low_rank import check_budget, check_patch
from lowbit.accel.common.refusals import check_choice, check_matrix, check_number, check_square, check_whole
from lowbit.reference.errors import SpecError
from lowbit.reference.types import Leftover, LowRank, Normalisation, RankPool, Split

from ._arrays import Array, fixed, integers, refuse_bad, refuse_found, weights, working_dtype
from ._jit import as_int, by_pieces, kernel
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
GAIN, SHARE, FACTOR = 0, 1, 2
_ONE = 1023 << 52  # bits of 1.0
_INF = 2047 << 52  # bits of infinity


# --- arguments -------------------------------------------------------------------------------------------------------


@kernel
def _fault(s: Any) -> Any:
    bad = False
    for i in range(s.shape[0]):
        before, total = np.inf, 0.0
        for j in range(s.shape[1]):
            v = np.float64(s[i, j])
            bad |= not (0.0 <= v <= before)
            before = v
            total += v * v
        bad |= total - total != 0.0
    return bad


def _spectra(clause: str, name: str, x: Any) -> Array:
    """Spectra (J, R) in the working precision: finite, not negative, descending, with finite squares."""
    given = weights(clause, name, x)
    check_matrix(clause, name, given.shape, (None, None))
    s = fixed(given, working_dtype(given))
    if any(by_pieces(s.shape, lambda p: _fault(s[p]))):
        if not np.isfinite(s).all():
            refuse_found(clause, name, s)
        for what, bad in (("be >= 0", s < 0), ("descend", np.diff(s, axis=1, prepend=np.inf) > 0)):
            if bad.any():
                j, i = (int(n) for n in np.argwhere(bad)[0])
                raise SpecError(clause, f"{name} must {what}, got {s[j, max(i - 1, 0) : i + 1]} in module {j}")
        raise SpecError(clause, f"the squares of {name} overflow float64")
    return s


def _each(clause: str, name: str, x: Any, modules: int, *, signed: bool = False) -> Array:
    """One number for every module, in float64."""
    given = weights(clause, name, x)
    check_matrix(clause, name, given.shape, (modules,))
    values = fixed(given, np.float64)
    refuse_bad(clause, name, values)
    if not signed and (values < 0).any():
        raise SpecError(clause, f"{name} must be >= 0, got {values.min()}")
    return values


def _whole(clause: str, name: str, x: Any, modules: int, least: int) -> Array:
    """One integer for every module, as int64."""
    given = integers(clause, name, x)
    check_matrix(clause, name, given.shape, (modules,))
    if (given < least).any():
        j = int(np.flatnonzero(given < least)[0])
        raise SpecError(clause, f"{name} must be at least {least}, got {given[j]} for module {j}")
    return given.astype(np.int64)


def _units(clause: str, low: Array, high: Array, modules: int, columns: int, multiple: int) -> tuple[Array, Array, int]:
    """Fewest and most units of every module."""
    low, high = _whole(clause, "low", low, modules, 0), _whole(clause, "high", high, modules, 0)
    mu = check_whole(clause, "multiple", multiple, 1)
    if (high > columns).any():
        j = int(np.flatnonzero(high > columns)[0])
        raise SpecError(clause, f"module {j} may have rank {high[j]}, but its spectrum holds {columns} values")
    first, last = -(-low // mu), high // mu
    if (first > last).any():
        j = int(np.flatnonzero(first > last)[0])
        raise SpecError(clause, f"no multiple of {mu} lies in {low[j]}..{high[j]}, the ranks of module {j}")
    return first, last, mu


def _answer(*given: Array) -> Any:
    """Dtype of a result: the working precision of arguments in any byte order."""
    return np.float64 if any(x.dtype.itemsize == 8 for x in given) else np.float32


# --- the market ------------------------------------------------------------------------------------------------------


@kernel
def _priority(rule: int, a: Any, g: Any, c: Any, held: Any, factor: float, mu: int, j: int, t: int) -> Any:
    """Integer that is larger the earlier unit t of module j is due, 0: never; it does not rise with t."""
    if rule == GAIN:
        gain = 0.0
        for i in range(t * mu, t * mu + mu):
            v = np.float64(a[j, i])
            gain += v * v
        gain *= g[j]
        if t < held[j]:
            gain *= factor
        ratio = gain / c[j]
        return as_int(ratio) if ratio > 0.0 else 0
    if rule == SHARE:
        done = a[j, t * mu]
        return _ONE - as_int(done) if done < 1.0 else 0
    return _INF - as_int((t + 0.5) * mu / g[j]) if g[j] > 0.0 else 0


@kernel
def _buy_above(
    rule: int, a: Any, g: Any, c: Any, held: Any, factor: float, mu: int, first: Any, price: Any,
    few: Any, many: Any, level: int, left: int, n: Any,
) -> Any:  # fmt: skip
    """Units of priority ``level`` or more, known to lie in few..many, into n; what is left, below 0 when overdrawn."""
    for j in range(first.size):
        low, high = few[j], many[j]
        while low < high:
            middle = (low + high) >> 1
            if _priority(rule, a, g, c, held, factor, mu, j, middle) >= level:
                low = middle + 1
            else:
                high = middle
        n[j] = low
        if left >= 0:  # once overdrawn, how far does not matter and might overflow
            left -= price[j] * (low - first[j])
    return left


@kernel
def _auction(
    rule: int, a: Any, g: Any, c: Any, held: Any, factor: float, mu: int, first: Any, last: Any, price: Any,
    left: int, fill: bool, n: Any,
) -> Any:  # fmt: skip
    """Units of every module into n, bought by falling priority, ties by the lower module; what is left of ``left``.

    With ``fill``, modules whose next unit is not covered drop out (what is left only shrinks) and the rest goes on.
    """
    few, many = np.empty_like(n), np.empty_like(n)
    while True:
        few[:], many[:] = first, last
        low, high = 1, _INF + 1  # nothing is due above the bits of infinity
        while low < high:
            middle = low + ((high - low) >> 1)
            if _buy_above(rule, a, g, c, held, factor, mu, first, price, few, many, middle, left, n) >= 0:
                high = middle
                few[:] = n
            else:
                low = middle + 1
                many[:] = n
        left = _buy_above(rule, a, g, c, held, factor, mu, first, price, few, many, low, left, n)
        if low == 1:
            return left  # everything that gains something
        blocked = False
        for j in range(first.size):  # the budget ends among the units of priority low - 1
            while not blocked and n[j] < last[j] and _priority(rule, a, g, c, held, factor, mu, j, n[j]) == low - 1:
                if price[j] > left:
                    blocked = True
                else:
                    n[j] += 1
                    left -= price[j]
        if not fill:
            return left
        for j in range(first.size):
            first[j] = n[j]
            if price[j] > left:
                last[j] = n[j]


def _market(
    clause: str, rule: int, a: Array, g: Array, cost: Array, first: Array, last: Array, mu: int, budget: int,
    leftover: str, held: Array | None = None, factor: float = 1.0,
) -> tuple[Array, int]:  # fmt: skip
    """Ranks (J,) int64 and what is left of the budget."""
    total = check_budget(clause, budget, leftover)
    price = cost * mu
    spent = sum(int(p) * int(n) for p, n in zip(price, first, strict=True))
    if spent > total:
        raise SpecError(clause, f"budget {total} is below {spent}, the cost of the smallest ranks")
    if rule == GAIN and a.size and a.shape[1] >= mu:
        with np.errstate(over="ignore"):
            most = g * np.square(a[:, :mu], dtype=np.float64).sum(axis=1)
        if not np.isfinite(most).all():
            raise SpecError(clause, "importance times squared spectrum overflows float64")
    n = np.empty(first.size, np.int64)
    none = np.zeros(first.size, np.int64) if held is None else held
    room = total - spent
    last = np.minimum(last, first + room // price + 1)  # one unit more than it can pay: the purchase stops there
    left = _auction(
        rule, fixed(a), fixed(g), cost.astype(np.float64), none, factor, mu, first.copy(), last, price, room,
        leftover == "fill", n,
    )  # fmt: skip
    return n * mu, int(left)


# --- what a rank buys, and what it costs -----------------------------------------------------------------------------


@kernel
def _shares(s: Any, out: Any) -> None:
    for i in range(s.shape[0]):
        total = 0.0
        out[i, 0] = 0.0
        for j in range(s.shape[1]):
            v = np.float64(s[i, j])
            total += v * v
            out[i, j + 1] = total
        for j in range(s.shape[1] + 1):
            out[i, j] = out[i, j] / total if total > 0.0 else 1.0


@kernel
def _tails(s: Any, out: Any) -> None:
    for i in range(s.shape[0]):
        total = 0.0
        out[i, s.shape[1]] = 0.0
        for j in range(s.shape[1] - 1, -1, -1):
            v = np.float64(s[i, j])
            total += v * v
            out[i, j] = total


def _by_rows(function: Any, s: Array) -> Array:
    """A kernel's (J, R + 1) float64 table of spectra (J, R)."""
    out = np.empty((s.shape[0], s.shape[1] + 1), np.float64)
    by_pieces(out.shape, lambda p: function(s[p], out[p]))
    return out


def explained_error(spectra: Array, /) -> Array:
    """Share of the error that r leading directions explain, r = 0..R; 1 where there is no error.  [K-1]"""
    s = _spectra("K-1", "spectra", spectra)
    return _by_rows(_shares, s).astype(s.dtype, copy=False)


def residual_damage(spectra: Array, energy: Array, /) -> Array:
    """Output error left by rank r relative to the output's energy, r = 0..R; 0/0 is 0, x/0 is inf.  [K-1]"""
    s = _spectra("K-1", "spectra", spectra)
    below = _each("K-1", "energy", energy, s.shape[0])[:, None]
    tail = _by_rows(_tails, s)
    damage = np.divide(tail, below, out=np.where(tail > 0, np.inf, 0.0), where=below > 0)
    return damage.astype(_answer(spectra, energy), copy=False)


def subspace_overlap(w: Array, w_hat: Array, c: Array, /, *, rank: int) -> Array:
    """Overlap φ(1)..φ(rank) of the leading output directions of a weight and its compressed form.  [K-2]

    The directions are eigenvectors of W C Wᵀ, found on the smaller side of W.
    """
    given = [weights("K-2", name, x) for name, x in (("w", w), ("w_hat", w_hat), ("c", c))]
    check_patch("K-2", given[0].shape, rank, "balanced")
    check_matrix("K-2", "w_hat", given[1].shape, given[0].shape)
    check_square("K-2", "c", given[2].shape, given[0].shape[1])
    wide = []
    for name, x in zip(("w", "w_hat", "c"), given, strict=True):
        x = fixed(x, np.float64)
        refuse_bad("K-2", name, x)
        wide.append(x)
    check_moment("K-2", wide[2])
    check_definite(np, "K-2", "c", wide[2])
    left, right = (_eigen(x, wide[2], rank)[1] for x in wide[:2])
    overlap = np.cumsum(np.cumsum((left.T @ right) ** 2, axis=0), axis=1)
    shares = np.minimum(np.diagonal(overlap) / np.arange(1, rank + 1), 1.0)
    return shares.astype(working_dtype(*given), copy=False)


@kernel
def _sum_of_squares(x: Any) -> Any:
    total = 0.0
    for i in range(x.size):
        v = np.float64(x[i])
        total += v * v
    return total


def gradient_importance(gradient: Array, /, *, normalisation: Normalisation = "mean") -> float:
    """Mean or sum of the squared gradient of the loss with respect to a module's output.  [K-3]"""
    check_choice("K-3", "normalisation", normalisation, get_args(Normalisation))
    given = weights("K-3", "gradient", gradient)
    check_matrix("K-3", "gradient", given.shape, (None, None))
    flat = fixed(given, working_dtype(given)).reshape(-1)
    refuse_bad("K-3", "gradient", fixed(given, working_dtype(given)))
    total = float(np.array(by_pieces((flat.size, 1), lambda p: _sum_of_squares(flat[p]), elements=1 << 16)).sum())
    return total / max(flat.size, 1) if normalisation == "mean" else total


def loss_importance(losses: Array, spectra: Array, /, *, base: float) -> Array:
    """(loss − base)⁺ / Σ s²: importance that turns the error of a module into its measured loss.  [K-3]"""
    at = check_number("K-3", "base", base)
    s = _spectra("K-3", "spectra", spectra)
    rise = np.maximum(_each("K-3", "losses", losses, s.shape[0], signed=True) - at, 0.0)
    total = _by_rows(_tails, s)[:, 0]
    importance = np.divide(rise, total, out=np.zeros_like(rise), where=total > 0)
    return importance.astype(_answer(losses, spectra), copy=False)


def rank_cost(shapes: Array, /, *, bits: int | None = None) -> Array:
    """Parameters of one rank, m + k, or its bytes at ``bits`` per number, rounded up for each factor.  [K-4]"""
    given = integers("K-4", "shapes", shapes)
    check_matrix("K-4", "shapes", given.shape, (None, 2))
    if (given < 1).any():
        raise SpecError("K-4", f"shapes must be at least 1, got {int(given.min())}")
    each = given.astype(np.int64)
    if bits is not None:
        each = (each * check_whole("K-4", "bits", bits, 1, 64) + 7) >> 3
    cost = each[:, 0] + each[:, 1]
    if (cost > I32_MAX).any():
        raise SpecError("K-4", f"the cost of a rank must fit int32, got {int(cost.max())}")
    return cost.astype(np.int32)


# --- the three rules -------------------------------------------------------------------------------------------------


def _goods(
    clause: str, spectra: Array, importance: Array, cost: Array, low: Array, high: Array, multiple: int
) -> tuple[Array, Array, Array, Array, Array, int]:
    """Checked arguments of Rule A."""
    s = _spectra(clause, "spectra", spectra)
    modules = s.shape[0]
    g = _each(clause, "importance", importance, modules)
    c = _whole(clause, "cost", cost, modules, 1)
    return s, g, c, *_units(clause, low, high, modules, s.shape[1], multiple)


def allocate_greedy(
    spectra: Array,
    importance: Array,
    cost: Array,
    low: Array,
    high: Array,
    /,
    *,
    budget: int,
    multiple: int = 1,
    leftover: Leftover = "stop",
) -> Array:
    """Rule A: units that remove most weighted error per price, until the budget ends.  [K-5]"""
    s, g, c, first, last, mu = _goods("K-5", spectra, importance, cost, low, high, multiple)
    return _market("K-5", GAIN, s, g, c, first, last, mu, budget, leftover)[0].astype(np.int32)


def threshold_ranks(spectra: Array, low: Array, high: Array, /, *, threshold: float, multiple: int = 1) -> Array:
    """Rule B at a given share: the smallest multiple within the bounds that explains it.  [K-6]"""
    at = check_number("K-6", "threshold", threshold, 0.0, 1.0)
    s = _spectra("K-6", "spectra", spectra)
    first, last, mu = _units("K-6", low, high, s.shape[0], s.shape[1], multiple)
    missing = np.count_nonzero(_by_rows(_shares, s)[:, ::mu] < at, axis=1)
    return np.asarray(np.clip(missing, first, last) * mu, np.int32)


def allocate_threshold(
    spectra: Array,
    cost: Array,
    low: Array,
    high: Array,
    /,
    *,
    budget: int,
    multiple: int = 1,
    leftover: Leftover = "stop",
) -> Array:
    """Rule B: units by rising share explained before them, until the budget ends.  [K-6]"""
    s, g, c, first, last, mu = _goods("K-6", spectra, np.ones(len(spectra)), cost, low, high, multiple)
    return _market("K-6", SHARE, _by_rows(_shares, s), g, c, first, last, mu, budget, leftover)[0].astype(np.int32)


def allocate_proportional(
    sensitivity: Array,
    cost: Array,
    low: Array,
    high: Array,
    /,
    *,
    budget: int,
    multiple: int = 1,
    leftover: Leftover = "stop",
) -> Array:
    """Rule C: ranks proportional to a sensitivity, with the largest factor that the budget covers.  [K-7]"""
    given = weights("K-7", "sensitivity", sensitivity)
    check_matrix("K-7", "sensitivity", given.shape, (None,))
    sigma = _each("K-7", "sensitivity", given, given.shape[0])
    c = _whole("K-7", "cost", cost, sigma.size, 1)
    first, last, mu = _units("K-7", low, high, sigma.size, I32_MAX, multiple)
    nothing = np.zeros((1, 1))
    return _market("K-7", FACTOR, nothing, sigma, c, first, last, mu, budget, leftover)[0].astype(np.int32)


# --- judging and sharing ---------------------------------------------------------------------------------------------


@kernel
def _error_left(s: Any, g: Any, ranks: Any) -> Any:
    total = 0.0
    for j in range(s.shape[0]):
        tail = 0.0
        for i in range(s.shape[1] - 1, ranks[j] - 1, -1):
            v = np.float64(s[j, i])
            tail += v * v
        total += g[j] * tail
    return total


def allocation_objective(spectra: Array, importance: Array, ranks: Array, /) -> float:
    """Weighted error that an allocation leaves.  [K-8]"""
    s = _spectra("K-8", "spectra", spectra)
    g = _each("K-8", "importance", importance, s.shape[0])
    r = _whole("K-8", "ranks", ranks, s.shape[0], 0)
    if (r > s.shape[1]).any():
        j = int(np.flatnonzero(r > s.shape[1])[0])
        raise SpecError("K-8", f"module {j} has rank {r[j]}, but its spectrum holds {s.shape[1]} values")
    return float(_error_left(s, g, r))


def allocation_bound(
    spectra: Array,
    importance: Array,
    cost: Array,
    low: Array,
    high: Array,
    /,
    *,
    budget: int,
    multiple: int = 1,
) -> float:
    """No allocation within bounds and budget leaves less: the optimum with units that may be split.  [K-8]"""
    s, g, c, first, last, mu = _goods("K-8", spectra, importance, cost, low, high, multiple)
    ranks, left = _market("K-8", GAIN, s, g, c, first, last, mu, budget, "stop")
    waiting = np.flatnonzero(ranks < last * mu)
    best = 0.0
    if waiting.size:
        columns = ranks[waiting, None] + np.arange(mu)
        gain = np.square(s[waiting[:, None], columns], dtype=np.float64).sum(axis=1) * g[waiting]
        best = float((gain / (c[waiting] * mu)).max())
    return max(0.0, float(_error_left(s, g, ranks)) - left * best)


@kernel
def _pool(s: Any, g: Any, group: Any, out: Any) -> None:
    for j in range(s.shape[0]):
        for i in range(s.shape[1]):
            v = np.float64(s[j, i])
            out[group[j], i] += g[j] * (v * v)


def pool_modules(
    spectra: Array, importance: Array, cost: Array, low: Array, high: Array, group: Array, /
) -> RankPool[Array]:
    """Modules that share a rank as one: squares weighted and added, costs added, bounds intersected.  [K-9]"""
    s, g, c, first, last, _ = _goods("K-9", spectra, importance, cost, low, high, 1)
    member = _whole("K-9", "group", group, s.shape[0], 0)
    groups = int(member.max()) + 1 if member.size else 0
    seen = np.unique(member)
    if seen.size != groups:
        gap = int(np.flatnonzero(seen != np.arange(seen.size))[0])
        raise SpecError("K-9", f"groups must be numbered without a gap, group {gap} has no module")
    total = np.zeros((groups, s.shape[1]))
    _pool(s, g, member, total)
    if not np.isfinite(total).all():
        raise SpecError("K-9", "importance times squared spectrum overflows float64")
    price, bottom, top = np.zeros(groups, np.int64), np.zeros(groups, np.int64), np.full(groups, I32_MAX, np.int64)
    np.add.at(price, member, c)
    np.maximum.at(bottom, member, first)
    np.minimum.at(top, member, last)
    if (price > I32_MAX).any():
        raise SpecError("K-9", f"the cost of a group must fit int32, got {int(price.max())}")
    if (bottom > top).any():
        t = int(np.flatnonzero(bottom > top)[0])
        raise SpecError("K-9", f"group {t} has no rank in common: largest low {bottom[t]}, smallest high {top[t]}")
    whole = (x.astype(np.int32) for x in (price, bottom, top))
    return RankPool(np.sqrt(total).astype(_answer(spectra, importance), copy=False), *whole)


# --- during training, and truncation ---------------------------------------------------------------------------------


def reallocate_ranks(
    kept: Array,
    residual: Array,
    importance: Array,
    cost: Array,
    low: Array,
    high: Array,
    ranks: Array,
    /,
    *,
    budget: int,
    step: int,
    multiple: int = 1,
    hysteresis: float = 0.0,
) -> Array:
    """Rule A on what adapters hold and what they leave, merged, within ``step`` of the present ranks.  [K-10]"""
    parts = [_spectra("K-10", name, x) for name, x in (("kept", kept), ("residual", residual))]
    modules = parts[0].shape[0]
    check_matrix("K-10", "residual", parts[1].shape, (modules, None))
    g = _each("K-10", "importance", importance, modules)
    c = _whole("K-10", "cost", cost, modules, 1)
    bottom, top, now = (
        _whole("K-10", name, x, modules, 0) for name, x in (("low", low), ("high", high), ("ranks", ranks))
    )
    if ((now < bottom) | (now > top)).any():
        j = int(np.flatnonzero((now < bottom) | (now > top))[0])
        raise SpecError("K-10", f"module {j} has rank {now[j]}, outside {bottom[j]}..{top[j]}")
    factor = 1 + check_number("K-10", "hysteresis", hysteresis, 0.0)
    by = check_whole("K-10", "step", step, 0)
    merged = np.concatenate(parts, axis=1, dtype=np.float64)
    merged.sort(axis=1)
    near, far = np.maximum(bottom, now - by), np.minimum(top, now + by)
    first, last, mu = _units("K-10", near, far, modules, merged.shape[1], multiple)
    held = now // mu
    found, _ = _market("K-10", GAIN, merged[:, ::-1], g, c, first, last, mu, budget, "stop", held, factor)
    return found.astype(np.int32)


def nest_patch(b: Array, a: Array, c: Array, /, *, split: Split = "balanced") -> LowRank[Array]:
    """The same patch with directions in order of what they do, so that every prefix is the best of its rank.  [K-11]

    One QR of B and one eigenproblem of order R, in float64.
    """
    check_choice("K-11", "split", split, get_args(Split))
    given = [weights("K-11", name, x) for name, x in (("b", b), ("a", a), ("c", c))]
    check_matrix("K-11", "b", given[0].shape, (None, None))
    check_matrix("K-11", "a", given[1].shape, (given[0].shape[1], None))
    check_square("K-11", "c", given[2].shape, given[1].shape[1])
    (m, rank), k = given[0].shape, given[1].shape[1]
    if rank > min(m, k):
        raise SpecError("K-11", f"b {(m, rank)} times a {(rank, k)} has more directions than its product can have")
    wide = []
    for name, x in zip(("b", "a", "c"), given, strict=True):
        x = fixed(x, np.float64)
        refuse_bad("K-11", name, x)
        wide.append(x)
    left, right, moment = wide
    check_moment("K-11", moment)
    check_definite(np, "K-11", "c", moment)
    q, r = np.linalg.qr(left)
    core = r @ (right @ moment @ right.T) @ r.T
    values, y = np.linalg.eigh((core + core.T) / 2)
    values, y = values[::-1], y[:, ::-1]
    columns, rows = q @ y, (y.T @ r) @ right
    if split == "balanced" and rank:
        scale = _balance(np.maximum(values, 0.0), max(m, k))
        columns, rows = columns * scale, rows / scale[:, None]
    dtype = working_dtype(given[0], given[1])
    return LowRank(B=columns.astype(dtype), A=rows.astype(dtype))
