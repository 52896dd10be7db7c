"""X: coresets. The rules are those of :mod:`lowbit.reference.coreset`.

Logits are read once: a row is brought into the first cache by the search for its maximum (or before, while the row in
front of it computes), its exponentials go to a scratch row, and everything else is sums over that. All sums have 32
interleaved lanes whatever the machine, so a score does not depend on threads, blocks or vector width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lowbit.accel.common.coreset import (
    acs_blend,
    check_centres,
    check_class_logits,
    check_label_range,
    check_layer,
    check_words,
    class_budget,
)
from lowbit.accel.common.philox import check_seed
from lowbit.accel.common.refusals import check_matrix, check_number, check_whole
from lowbit.reference.errors import SpecError
from lowbit.reference.types import AcsSchedule, Center, Kept, Metric, ModerateReference, NeverLearnt, Outputs, Purpose

from ._arrays import Array, finite_weights, fixed, integers, numbers, refuse_found, weights, working_dtype
from ._jit import collected, kernel, pieces
from ._philox import draw, key
from ._vector import SOFT_LANES, exp_lanes, extremes, gap_squares, power_sums

__all__ = [
    "acs_score",
    "contextual_diversity",
    "disagreement_score",
    "el2n_score",
    "error_vector_score",
    "forgetting_score",
    "grand_score",
    "herding",
    "k_center",
    "moderate_score",
    "random_score",
    "select_coreset",
]

_SAMPLE = int(Purpose.SAMPLE)


@kernel
def _exponentials(row: Any, out: Any) -> Any:
    """e^(x − max x) into ``out``; False for a row with −∞. A NaN makes itself a NaN, and +∞ as well: ∞ − ∞."""
    top, least = extremes(row)
    exp_lanes(row, top, out)
    return least != -np.inf


@kernel
def _scores(x: Any, t: Any, y: Any, blend: float, out: Any) -> int:
    """blend · EVS + (1 − blend) · DS by row; without labels no EVS, without t no DS. 1 or 2: x or t is not finite."""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    β, rest = x.dtype.type(blend), x.dtype.type(1.0 - blend)
    width = -(-x.shape[1] // SOFT_LANES) * SOFT_LANES
    e, f = np.zeros(width, x.dtype), np.zeros(width, x.dtype)
    for i in range(len(x)):
        fine = _exponentials(x[i], e)
        score = zero
        if t.size:
            total, _ = power_sums(e)
            if not fine or np.isnan(total):
                return 1
            fine = _exponentials(t[i], f)
            theirs, _ = power_sums(f)
            if not fine or np.isnan(theirs):
                return 2
            score = rest * (np.sqrt(gap_squares(e, f, total / theirs)) / total)
        if y.size:
            own = e[y[i]]
            e[y[i]] = zero
            others, squares = power_sums(e)
            total = others + own
            if not fine or np.isnan(total):
                return 1
            norm = np.sqrt(others * others + squares)
            if others < 1e-12:  # squares may have left the range: those of the others' shares have not
                norm = others  # below 1e-35 the reciprocal would leave it too; the score is 0 to within the range
                if others > 1e-35:
                    e *= one / others
                    _, squares = power_sums(e)
                    norm *= np.sqrt(one + squares)
            score += β * (norm / total)
        out[i] = score
    return 0


def _logits(clause: str, name: str, x: Any, like: Array | None = None) -> Array:
    given = weights(clause, name, x)
    check_class_logits(clause, name, given.shape)
    if like is not None:
        check_matrix(clause, name, given.shape, like.shape)
    return given


def _labels(clause: str, y: Any, n: int, classes: int | None) -> Array:
    found = integers(clause, "labels", y)
    check_matrix(clause, "labels", found.shape, (n,))
    if found.size:
        check_label_range(clause, int(found.min()), int(found.max()), classes)
    return found


def _score(clause: str, x: Array, t: Array | None, y: Array | None, blend: float) -> Array:
    """Checked arguments through the kernel, in pieces that are converted on the way when they are halves."""
    dtype = working_dtype(x, x if t is None else t)
    out = np.empty(len(x), dtype)
    no_rows, no_labels = np.zeros((0, x.shape[1]), dtype), np.zeros(0, np.int32)
    parts = pieces(len(x), x.shape[1], elements=1 << 21)

    def work(start: int, stop: int) -> int:
        rows = slice(start, stop)
        reference, labels = no_rows if t is None else t[rows], no_labels if y is None else y[rows]
        return _scores(fixed(x[rows], dtype), fixed(reference, dtype), fixed(labels), blend, out[rows])

    outcome = collected(parts, work)
    if 1 in outcome:
        refuse_found(clause, "logits", x)
    if 2 in outcome and t is not None:
        refuse_found(clause, "reference", t)
    return out


def error_vector_score(logits: Array, labels: Array, /) -> Array:
    """Distance of the predicted distribution from the label.  [X-1]"""
    x = _logits("X-1", "logits", logits)
    return _score("X-1", x, None, _labels("X-1", labels, *x.shape), 1.0)


def disagreement_score(logits: Array, reference: Array, /) -> Array:
    """Distance between the distributions of two models.  [X-2]"""
    x = _logits("X-2", "logits", logits)
    return _score("X-2", x, _logits("X-2", "reference", reference, x), None, 0.0)


def acs_score(
    logits: Array, reference: Array, labels: Array, /, *, epoch: float, epochs: int, schedule: AcsSchedule = "paper"
) -> Array:
    """The adaptive mix of both scores, in one pass.  [X-3]"""
    x = _logits("X-3", "logits", logits)
    t = _logits("X-3", "reference", reference, x)
    y = _labels("X-3", labels, *x.shape)
    return _score("X-3", x, t, y, acs_blend(epoch, epochs, schedule))


def select_coreset(scores: Array, labels: Array | None = None, /, *, fraction: float, keep: Kept = "largest") -> Array:
    """Indices of the best samples, over all of them or in every class.  [X-4]

    The k-th best value is found by partition; what is better is sorted, and of what equals it the first are taken.
    """
    s = finite_weights("X-4", "scores", numbers("X-4", "scores", scores), (None,))
    check_number("X-4", "fraction", fraction, 0, 1)
    check_words("X-4", keep=keep)
    cost = np.negative(s, dtype=working_dtype(s)) if keep == "largest" else s.astype(working_dtype(s))
    if labels is None:
        return _best(cost, class_budget(fraction, len(cost))).astype(np.int32)
    y = _labels("X-4", labels, len(s), None)
    order = np.argsort(y, kind="stable")
    edges = np.flatnonzero(np.diff(y[order], prepend=-1))
    parts = [
        members[_best(cost[members], class_budget(fraction, len(members)))]
        for members in np.split(order, edges[1:])
        if len(members)
    ]
    return np.concatenate([order[:0], *parts]).astype(np.int32)


def _best(cost: Array, count: int) -> Array:
    """Positions of the ``count`` smallest, ascending, equal ones by position."""
    if count == 0:
        return np.zeros(0, np.int64)
    limit = np.partition(cost, count - 1)[count - 1]
    below = np.flatnonzero(cost < limit)
    level = np.flatnonzero(cost == limit)[: count - len(below)]
    return np.concatenate([below[np.argsort(cost[below], kind="stable")], level])


@kernel
def _raw_distance(x: Any, y: Any, out: Any) -> None:
    for i in range(len(x)):
        total = 0.0
        for c in range(x.shape[1]):
            gap = np.float64(x[i, c]) - (1.0 if c == y[i] else 0.0)
            total += gap * gap
        out[i] = np.sqrt(total)


def el2n_score(logits: Array, labels: Array, /, *, outputs: Outputs = "softmax") -> Array:
    """The error-vector score, averaged over models.  [X-5]"""
    x = weights("X-5", "logits", logits)
    check_class_logits("X-5", "logits", x.shape, 3)
    y = _labels("X-5", labels, *x.shape[1:])
    check_words("X-5", outputs=outputs)
    x = finite_weights("X-5", "logits", x)
    total = np.zeros(x.shape[1])
    for run in x:
        if outputs == "softmax":
            total += _score("X-5", run, None, y, 1.0)
        else:
            out = np.empty(len(run))
            _raw_distance(fixed(run, working_dtype(x)), y, out)
            total += out
    return np.asarray((total / len(x)).astype(working_dtype(x)))


@kernel
def _squares(h: Any, out: Any) -> None:
    for i in range(len(h)):
        total = 0.0
        for j in range(h.shape[1]):
            total += np.float64(h[i, j]) * np.float64(h[i, j])
        out[i] = total


def grand_score(
    logits: Array, features: Array, labels: Array, /, *, bias: bool = True, batch_size: int | None = None
) -> Array:
    """Norm of the gradient of the last layer, in closed form.  [X-6]"""
    x = _logits("X-6", "logits", logits)
    y = _labels("X-6", labels, *x.shape)
    batch_size = check_layer(bias, batch_size)
    h = finite_weights("X-6", "features", features, (len(x), None))
    norms = np.empty(len(h))
    _squares(fixed(h, working_dtype(h)), norms)
    score = _score("X-6", x, None, y, 1.0) * np.sqrt(norms + bias)
    if batch_size is not None:
        left = len(x) - np.arange(len(x)) // batch_size * batch_size
        score = score / np.minimum(left, batch_size)
    return np.asarray(score.astype(working_dtype(x, h)))


@kernel
def _forgotten(correct: Any, out: Any, ever: Any) -> None:
    for t in range(len(correct)):
        for i in range(correct.shape[1]):
            ever[i] |= correct[t, i]
            if t:
                out[i] += correct[t - 1, i] & ~correct[t, i]


def forgetting_score(correct: Array, /, *, never_learnt: NeverLearnt = "most") -> Array:
    """How often a sample was learnt and then forgotten.  [X-7]"""
    if not isinstance(correct, np.ndarray) or correct.dtype != np.bool_ or correct.ndim != 2:
        kind = getattr(correct, "dtype", type(correct).__name__)
        raise SpecError("X-7", f"correct must be a bool array (epochs, samples), got {kind}")
    check_words("X-7", never_learnt=never_learnt)
    out, ever = np.zeros(correct.shape[1], np.int32), np.zeros(correct.shape[1], np.bool_)
    _forgotten(fixed(correct), out, ever)
    if never_learnt == "most":
        out[~ever] = len(correct)
    return out


@kernel
def _distances(z: Any, middle: Any, start: Any, order: Any, out: Any) -> None:
    for c in range(len(middle)):
        for r in range(start[c], start[c + 1]):
            i = order[r]
            total = 0.0
            for j in range(z.shape[1]):
                gap = np.float64(z[i, j]) - middle[c, j]
                total += gap * gap
            out[i] = np.sqrt(total)


@kernel
def _means(z: Any, start: Any, order: Any, out: Any) -> None:
    for c in range(len(out)):
        for r in range(start[c], start[c + 1]):
            for j in range(z.shape[1]):
                out[c, j] += np.float64(z[order[r], j])
        for j in range(z.shape[1]):
            out[c, j] /= start[c + 1] - start[c]


def moderate_score(
    features: Array, labels: Array, /, *, center: Center = "mean", against: ModerateReference = "median"
) -> Array:
    """How far a sample's distance from its class is from the median distance.  [X-8]"""
    z = finite_weights("X-8", "features", features, (None, None))
    y = _labels("X-8", labels, len(z), None)
    check_words("X-8", center=center, against=against)
    dtype = working_dtype(z)
    z = fixed(z, dtype)
    order = np.argsort(y, kind="stable")
    start = np.append(np.flatnonzero(np.diff(y[order], prepend=-1)), len(z))
    middle, d = np.zeros((len(start) - 1, z.shape[1])), np.zeros(len(z))
    if center == "mean":
        _means(z, start, order, middle)
    else:
        for c in range(len(middle)):
            middle[c] = np.median(z[order[start[c] : start[c + 1]]].astype(np.float64), axis=0)
    _distances(z, middle, start, order, d)
    if against == "median" and len(z):
        d = np.abs(d - np.median(d))
    elif against == "class-median":
        for c in range(len(middle)):
            members = order[start[c] : start[c + 1]]
            d[members] = np.abs(d[members] - np.median(d[members]))
    return d.astype(dtype)


def _positive(clause: str, name: str, p: Any, epsilon: float) -> tuple[Array, Array]:
    """The rows, and the rows plus ε in float64, all above 0."""
    given = finite_weights(clause, name, p, (None, None))
    check_number(clause, "epsilon", epsilon, 0)
    moved = given.astype(np.float64) + epsilon
    bad = np.argwhere((given < 0) | (moved <= 0))
    if len(bad):
        at = tuple(int(i) for i in bad[0])
        raise SpecError(clause, f"{name} holds {given[at]} at {at}; its logarithm needs numbers above 0")
    return given, moved


@kernel
def _divergence(a: Any, log_a: Any, b: Any, log_b: Any) -> float:
    total = 0.0
    for c in range(a.size):
        total += (a[c] - b[c]) * (log_a[c] - log_b[c])
    return 0.5 * total


@kernel
def _divergences(a: Any, log_a: Any, b: Any, log_b: Any, out: Any) -> None:
    for i in range(len(a)):
        for j in range(len(b)):
            out[i, j] = _divergence(a[i], log_a[i], b[j], log_b[j])


def contextual_diversity(p: Array, q: Array, /, *, epsilon: float = 0.0) -> Array:
    """Symmetric Kullback-Leibler divergence of all pairs of rows, in float64.  [X-9]"""
    p, a = _positive("X-9", "p", p, epsilon)
    q, b = _positive("X-9", "q", q, epsilon)
    check_matrix("X-9", "q", b.shape, (None, a.shape[1]))
    out = np.empty((len(a), len(b)), working_dtype(p, q))
    log_a, log_b = np.log(a), np.log(b)

    def work(start: int, stop: int) -> None:
        rows = slice(start, stop)
        _divergences(fixed(a[rows]), fixed(log_a[rows]), fixed(b), fixed(log_b), out[rows])

    collected(pieces(len(a), len(b) * max(a.shape[1], 1)), work)
    return out


@kernel
def _approach(a: Any, log_a: Any, centre: int, nearest: Any) -> None:
    """Distances to one more centre, kept where they are the smallest so far; the logarithms may be empty."""
    for i in range(len(a)):
        total = 0.0
        if log_a.size:
            total = _divergence(a[i], log_a[i], a[centre], log_a[centre])
        else:
            for j in range(a.shape[1]):
                gap = np.float64(a[i, j]) - np.float64(a[centre, j])
                total += gap * gap
        nearest[i] = min(nearest[i], total)


@kernel
def _farthest_first(a: Any, log_a: Any, chosen: Any, given: int, nearest: Any) -> None:
    for s in range(given):
        _approach(a, log_a, chosen[s], nearest)
    for s in range(given):
        nearest[chosen[s]] = -1.0
    for s in range(given, len(chosen)):
        best = 0
        for i in range(len(a)):
            if nearest[i] > nearest[best]:
                best = i
        chosen[s] = best
        _approach(a, log_a, best, nearest)
        nearest[best] = -1.0


def k_center(x: Array, first: Array, /, *, count: int, metric: Metric = "euclidean", epsilon: float = 0.0) -> Array:
    """Farthest-first traversal from the centres in ``first``; distances in float64.  [X-10]"""
    check_words("X-10", metric=metric)
    if metric == "euclidean":
        given = finite_weights("X-10", "x", x, (None, None))
        a, log_a = given.astype(working_dtype(given)), np.zeros((0, 0))
    else:
        a = _positive("X-10", "x", x, epsilon)[1]
        log_a = np.log(a)
    start = integers("X-10", "first", first)
    check_matrix("X-10", "first", start.shape, (None,))
    check_centres(start.tolist(), count, len(a))
    chosen = np.zeros(len(start) + count, np.int32)
    chosen[: len(start)] = start
    _farthest_first(fixed(a), fixed(log_a), chosen, len(start), np.full(len(a), np.inf))
    return chosen


@kernel
def _herd(a: Any, mean: Any, rest: Any, free: Any, out: Any) -> None:
    for s in range(len(out)):
        for j in range(len(rest)):
            rest[j] += mean[j]
        best, least = -1, np.inf
        for i in range(len(a)):
            if free[i]:
                total = 0.0
                for j in range(len(rest)):
                    gap = rest[j] - np.float64(a[i, j])
                    total += gap * gap
                if best < 0 or total < least:
                    best, least = i, total
        for j in range(len(rest)):
            rest[j] -= np.float64(a[best, j])
        free[best] = False
        out[s] = best


def herding(x: Array, /, *, count: int) -> Array:
    """Samples whose mean follows the mean of all; distances in float64.  [X-11]"""
    given = finite_weights("X-11", "x", x, (None, None))
    check_whole("X-11", "count", count, 0, len(given))
    out = np.zeros(count, np.int32)
    if count:
        a = fixed(given, working_dtype(given))
        mean = a.mean(axis=0, dtype=np.float64)
        _herd(a, mean, np.zeros(a.shape[1]), np.ones(len(a), np.bool_), out)
    return out


@kernel
def _chance(index: int, k0: Any, k1: Any, out: Any) -> None:
    for i in range(len(out)):
        high, low, _, _ = draw(i, 0, index, _SAMPLE, k0, k1)
        word = np.uint64(high) << np.uint64(32) | np.uint64(low)
        out[i] = np.float64(word >> np.uint64(11)) * 2.0**-53


def random_score(*, size: int, seed: int, index: int = 0) -> Array:
    """A score by chance, the same for a sample whoever else is there.  [X-12]"""
    check_whole("X-12", "size", size, 0)
    check_whole("X-12", "index", index, 0, 2**32 - 1)
    check_seed(seed)
    out = np.empty(size)
    _chance(index, *key(seed), out)
    return out
