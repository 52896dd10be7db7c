"""W: distillation losses and their gradients. The rules are those of :mod:`lowbit.reference.distill`.

Every loss is one pass over its rows: both networks are read once, the gradient is written once, and there is no other
array of their size. A softmax row lives in five short buffers; its logarithm is never taken entry by entry, because
log softmax is x − max − log Σ. Rows and keys of padding are not touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lowbit.accel.common.distill import check_above_zero, check_labels, check_lengths, check_pair, check_scores
from lowbit.accel.common.refusals import check_choice, check_number
from lowbit.reference.errors import SpecError
from lowbit.reference.types import DIVERGENCES, IGNORED_TOKENS, Divergence, IgnoredTokens, LossGradient

from ._arrays import Array, fixed, integers, refuse_bad, weights, working_dtype
from ._exponential import exponential
from ._jit import collected, from_key, kernel, order_key, pieces
from ._vector import LANES, lane_sum

__all__ = ["attention_map_loss", "feature_loss", "logit_loss", "score_loss", "token_loss"]

STRIDE = 32  # rows are padded to this many entries, so that no loop over them has a remainder
TINY = 2.0**-1074
CHUNK = 1024  # squares that are summed in the precision of the data


@kernel
def _exponentials(x: Any, out: Any) -> Any:
    """out = e^(x − max x), zeros after the last; returns (max x, sum of out, not finite found)."""
    most, found = order_key(x[0]), False
    for j in range(x.size):
        key = order_key(x[j])
        most = key if key > most else most
        found |= x[j] - x[j] != 0.0
    top = from_key(most)
    if not found:
        for j in range(x.size):
            out[j] = exponential(x[j] - top)
    return top, np.float64(lane_sum(out)), found


@kernel
def _map_rows(
    student: Any,
    teacher: Any,
    lengths: Any,
    width: int,
    floor: Any,
    nothing: Any,
    norm: float,
    start: int,
    stop: int,
    out: Any,
    work: Any,
) -> Any:
    """Rows start … stop of scores (B · H · n, n); returns (Σ of loss terms / s_b, not finite found).

    ``width`` is H · n, ``norm`` 1 / (B H), a factor of the gradient alone, and ``nothing`` the least number there is: a
    row is padded with it, and has probability 0 and loss terms 0 there.
    """
    n = student.shape[1]
    total, bad = 0.0, False
    one, zero = floor / floor, floor - floor
    log_floor = type(one)(math.log(floor))
    for row in range(start, stop):
        s = lengths[row // width]
        if row % n >= s:
            continue
        size = (s + STRIDE - 1) // STRIDE * STRIDE
        x, t, q, p, terms = work[0, :size], work[1, :size], work[2, :size], work[3, :size], work[4, :size]
        for j in range(s):
            x[j], t[j] = student[row, j], teacher[row, j]
        for j in range(s, size):
            x[j], t[j] = nothing, nothing
        top_q, sum_q, bad_q = _exponentials(x, q)
        top_p, sum_p, bad_p = _exponentials(t, p)
        if bad_q or bad_p:
            bad = True
            continue
        log_q, log_p = type(one)(math.log(sum_q)), type(one)(math.log(sum_p))
        scale_q, scale_p = type(one)(1.0 / sum_q), type(one)(1.0 / sum_p)
        for j in range(size):
            own = (x[j] - top_q) - log_q
            aim = (t[j] - top_p) - log_p
            weight = p[j] * scale_p
            weight = weight if weight > floor else floor
            aim = aim if aim > log_floor else log_floor
            terms[j] = weight * (aim - (own if own > log_floor else log_floor))
            p[j] = weight if q[j] * scale_q >= floor else zero
        total += np.float64(lane_sum(terms)) / s
        mass = lane_sum(p) * scale_q
        share = type(one)(norm / s)
        for j in range(size):
            terms[j] = (q[j] * mass - p[j]) * share
        out[row, :s] = terms[:s]
    return total, bad


@kernel
def _soft_rows(student: Any, teacher: Any, factor: Any, weight: Any, entropy: bool, out: Any, work: Any) -> Any:
    """Σ_r weight_r · soft cross-entropy at inverse temperature ``factor``; the gradient weight_r · factor (Q − P)."""
    total, bad = 0.0, False
    count = student.shape[1]
    scaled, q, p, terms = work[0], work[1], work[2], work[3]
    for r in range(student.shape[0]):
        if weight[r] == 0.0:
            continue
        for j in range(count):
            scaled[j] = teacher[r, j] * factor
        aim, sum_p, bad_p = _exponentials(scaled[:count], p)
        log_p = math.log(sum_p)
        if entropy:
            for j in range(count):
                terms[j] = p[j] * (scaled[j] - aim)
            total += weight[r] * (np.float64(lane_sum(terms)) / sum_p - log_p)
        for j in range(count):
            scaled[j] = student[r, j] * factor
        top, sum_q, bad_q = _exponentials(scaled[:count], q)
        if bad_p or bad_q:
            bad = True
            continue
        for j in range(count):
            terms[j] = p[j] * (top - scaled[j])
        total += weight[r] * (np.float64(lane_sum(terms)) / sum_p + math.log(sum_q))
        a, b = type(factor)(weight[r] * factor / sum_q), type(factor)(weight[r] * factor / sum_p)
        for j in range(count):
            out[r, j] = q[j] * a - p[j] * b
    return total, bad


@kernel
def _label_costs(teacher: Any, labels: Any, out: Any, work: Any) -> Any:
    """−log softmax of the label, 0 where there is none."""
    bad = False
    for r in range(labels.size):
        if labels[r] >= 0:
            top, total, found = _exponentials(teacher[r], work)
            bad |= found
            out[r] = math.log(total) - (np.float64(teacher[r, labels[r]]) - np.float64(top))
        else:
            out[r] = 0.0
    return bad


@kernel
def _squares(student: Any, teacher: Any, factor: Any, out: Any, work: Any) -> Any:
    """Σ (S − T)², chunks added in float64; out = factor (S − T)."""
    total, bad = 0.0, False
    for start in range(0, student.size, work.size):
        stop = start + work.size
        s, t, grad = student[start:stop], teacher[start:stop], out[start:stop]
        if s.size < work.size:
            work[:] = 0.0
        for j in range(s.size):
            d = s[j] - t[j]
            bad |= (s[j] - s[j] != 0.0) | (t[j] - t[j] != 0.0)
            work[j] = d * d
            grad[j] = d * factor
        total += np.float64(lane_sum(work))
    return total, bad


@kernel
def _floored_rows(
    student: Any, teacher: Any, n: int, first: int, floor: Any, factor: Any, causal: bool, out: Any, work: Any
) -> Any:
    """Rows of scores: Σ of squared differences of floored entries; out = factor · difference where S > floor."""
    total, bad = 0.0, False
    zero = factor - factor
    for r in range(student.shape[0]):
        width = (first + r) % n + 1 if causal else n
        for j in range(n):
            bad |= (student[r, j] - student[r, j] != 0.0) | (teacher[r, j] - teacher[r, j] != 0.0)
        for j in range(width):
            s, t = student[r, j], teacher[r, j]
            d = (s if s > floor else zero) - (t if t > floor else zero)
            work[j] = d * d
            out[r, j] = d * factor if s > floor else zero
        for j in range(width, n):
            work[j] = zero
        total += np.float64(lane_sum(work))
    return total, bad


def _pair(clause: str, student: Any, teacher: Any) -> tuple[Array, Array]:
    return weights(clause, "student", student), weights(clause, "teacher", teacher)


def _padded(size: int) -> int:
    return -(-size // LANES) * LANES


def _refuse(clause: str, student: Array, teacher: Array) -> None:
    """Name the first bad entry that was read; views of what was read are passed."""
    refuse_bad(clause, "student", fixed(student, working_dtype(student)))
    refuse_bad(clause, "teacher", fixed(teacher, working_dtype(teacher)))


def _refuse_valid(clause: str, student: Array, teacher: Array, lengths: Array, tokens: int) -> None:
    """:func:`_refuse` of the valid part of a padded batch; positions are those of the whole."""
    inside = np.arange(student.shape[-2]) < lengths[:, None]
    valid = inside[:, None, :, None] & inside[:, None, None, :] if tokens == 2 else inside[..., None]
    _refuse(clause, np.where(valid, student, 0), np.where(valid, teacher, 0))


def _lengths(clause: str, lengths: Any, batch: int, longest: int) -> Array:
    s = integers(clause, "lengths", lengths)
    check_lengths(clause, s, batch, longest)
    return s


def _total(parts: list[tuple[int, int]], work: Callable[[int, int], Any], refuse: Callable[[], None]) -> float:
    """Sum of the losses that ``work`` finds in the parts; refuses when it finds what is not finite."""
    found = collected(parts, work)
    if any(bad for _, bad in found):
        refuse()
    return math.fsum(loss for loss, _ in found)


def attention_map_loss(
    student: Array, teacher: Array, lengths: Array, /, *, floor: float = 1e-8
) -> LossGradient[Array]:
    """Divergence of attention maps from scores, in one pass over the valid rows.  [W-5]"""
    least = check_above_zero("W-5", "floor", floor, 1.0)
    given = _pair("W-5", student, teacher)
    batch, heads, n, _ = shape = check_scores("W-5", given[0].shape, given[1].shape)
    s = _lengths("W-5", lengths, batch, n)
    dtype = working_dtype(*given)
    S, T = (fixed(a, dtype).reshape(batch * heads * n, n) for a in given)
    out = np.zeros(S.shape, dtype)
    if not out.size:
        return LossGradient(0.0, out.reshape(shape))
    limits = heads * n, dtype(least), dtype(np.finfo(dtype).min), 1 / (batch * heads)

    def work(start: int, stop: int) -> Any:
        return _map_rows(S, T, s, *limits, start, stop, out, np.empty((5, -(-n // STRIDE) * STRIDE), dtype))

    total = _total(pieces(len(S), n), work, lambda: _refuse_valid("W-5", *given, s, 2))
    return LossGradient(total / (batch * heads), out.reshape(shape))


def logit_loss(
    student: Array, teacher: Array, /, *, temperature: float = 1.0, divergence: Divergence = "cross-entropy"
) -> LossGradient[Array]:
    """Soft cross-entropy of logits, mean over the batch.  [W-1]"""
    check_choice("W-1", "divergence", divergence, DIVERGENCES)
    τ = check_above_zero("W-1", "temperature", temperature)
    given = _pair("W-1", student, teacher)
    batch, _ = check_pair("W-1", given[0].shape, given[1].shape, 2)
    weight = np.full(batch, τ * τ / max(batch, 1))
    return _soft("W-1", given, weight, 1 / τ, entropy=divergence == "kl")


def _soft(
    clause: str, given: tuple[Array, Array], weight: Array, factor: float, *, entropy: bool
) -> LossGradient[Array]:
    shape, dtype = given[0].shape, working_dtype(*given)
    S, T = (fixed(a, dtype).reshape(math.prod(shape[:-1]), shape[-1]) for a in given)
    out = np.zeros(S.shape, dtype)
    if not out.size:
        return LossGradient(0.0, out.reshape(shape))

    def work(start: int, stop: int) -> Any:
        rows, buffers = slice(start, stop), np.zeros((4, _padded(S.shape[1])), dtype)
        return _soft_rows(S[rows], T[rows], dtype(factor), weight[rows], entropy, out[rows], buffers)

    def refuse() -> None:
        used = weight.reshape(shape[:-1])[..., None] != 0
        _refuse(clause, np.where(used, given[0], 0), np.where(used, given[1], 0))

    return LossGradient(_total(pieces(len(S), S.shape[1]), work, refuse), out.reshape(shape))


def token_loss(
    student: Array,
    teacher: Array,
    labels: Array,
    /,
    *,
    temperature: float = 10.0,
    ignored: IgnoredTokens = "weigh",
) -> LossGradient[Array]:
    """Token-scaled logit distillation.  [W-2]"""
    check_choice("W-2", "ignored", ignored, IGNORED_TOKENS)
    τ = check_above_zero("W-2", "temperature", temperature)
    given = _pair("W-2", student, teacher)
    batch, n, vocabulary = check_pair("W-2", given[0].shape, given[1].shape, 3)
    label = integers("W-2", "labels", labels)
    has = check_labels("W-2", label, given[0].shape)
    if not given[0].size:
        return LossGradient(0.0, np.zeros(given[0].shape, working_dtype(*given)))
    teach = fixed(given[1], working_dtype(*given)).reshape(-1, vocabulary)
    cost, flat = np.empty(batch * n), fixed(label.reshape(-1))
    if _label_costs(teach, flat, cost, np.zeros(_padded(vocabulary), teach.dtype)):
        _refuse("W-2", given[0], np.where(has[..., None], given[1], 0))
    counted = has if ignored == "skip" else np.ones_like(has)
    c = np.where(counted, cost.reshape(batch, n), -np.inf)
    w = np.exp((c - c.max(axis=1, keepdims=True, initial=0.0)) / τ)
    total = w.sum(axis=1, keepdims=True)
    w = np.divide(w, total, out=np.zeros_like(w), where=total > 0)
    w = np.where(counted, np.maximum(w, TINY), 0.0)  # a weight that underflows still has its row checked
    return _soft("W-2", given, w.reshape(-1), 1.0, entropy=False)


def feature_loss(student: Array, teacher: Array, lengths: Array | None = None, /) -> LossGradient[Array]:
    """Mean square difference of features, over every element or over valid tokens.  [W-3]"""
    given = _pair("W-3", student, teacher)
    batch, n, d = shape = check_pair("W-3", given[0].shape, given[1].shape, 3)
    s = None if lengths is None else _lengths("W-3", lengths, batch, n)
    dtype = working_dtype(*given)
    S, T = (fixed(a, dtype).reshape(-1) for a in given)
    out = np.zeros(S.size, dtype)
    used = d * (batch * n if s is None else int(s.sum()))
    if not used:
        return LossGradient(0.0, out.reshape(shape))
    parts = [(0, S.size)] if s is None else [(b * n * d, (b * n + int(s[b])) * d) for b in range(batch)]
    runs = [(low + i, low + j) for low, high in parts for i, j in pieces(high - low, 1)]
    whole = np.full(batch, n, np.int32) if s is None else s

    def work(start: int, stop: int) -> Any:
        run = slice(start, stop)
        return _squares(S[run], T[run], dtype(2 / used), out[run], np.zeros(CHUNK, dtype))

    total = _total(runs, work, lambda: _refuse_valid("W-3", *given, whole, 1))
    return LossGradient(total / used, out.reshape(shape))


def score_loss(
    student: Array, teacher: Array, /, *, floor: float = -100.0, causal: bool = False
) -> LossGradient[Array]:
    """Mean square difference of scores, those at most ``floor`` set to 0 in each network.  [W-4]"""
    if not isinstance(causal, bool):
        raise SpecError("W-4", f"causal must be True or False, got {causal!r}")
    least = check_number("W-4", "floor", floor)
    given = _pair("W-4", student, teacher)
    batch, heads, n, _ = shape = check_scores("W-4", given[0].shape, given[1].shape)
    dtype = working_dtype(*given)
    S, T = (fixed(a, dtype).reshape(batch * heads * n, n) for a in given)
    out = np.zeros(S.shape, dtype)
    used = batch * heads * (n * (n + 1) // 2 if causal else n * n)
    if not used:
        return LossGradient(0.0, out.reshape(shape))
    limits = dtype(least), dtype(2 / used), causal

    def work(start: int, stop: int) -> Any:
        rows = slice(start, stop)
        return _floored_rows(S[rows], T[rows], n, start, *limits, out[rows], np.zeros(_padded(n), dtype))

    total = _total(pieces(len(S), n), work, lambda: _refuse("W-4", *given))
    return LossGradient(total / used, out.reshape(shape))
