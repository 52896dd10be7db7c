"""Chapter W: distillation losses and their gradients, what a padded batch may not read, and where a floor cuts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from lowbit.conformance import compare, strategies
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array

IGNORED = -100
TEMPERATURES = st.sampled_from([1.0, 0.5, 3.0, 10.0])


class Pair(NamedTuple):
    """Student and teacher, and what says which entries count."""

    student: Array
    teacher: Array
    lengths: Array  # (B,)
    labels: Array  # (B, n), 0 … last axis − 1 or −100


@st.composite
def pairs(draw: st.DrawFn, kind: str) -> Pair:
    """Equal networks, constant rows, far scores, and general ones; sentences of every length."""
    batch, n, wide = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 7))
    shape = {"logits": (batch, wide), "tokens": (batch, n, wide), "scores": (batch, draw(st.integers(1, 3)), n, n)}[
        kind
    ]
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    unit, dtype = draw(st.sampled_from([1.0, 0.125, 1 / 3])), draw(strategies.float_dtypes(half=True))
    student, teacher = (random.integers(-20, 21, shape) * unit for _ in range(2))
    match draw(st.sampled_from(["general", "general", "equal", "constant", "far"])):
        case "equal":
            student = teacher.copy()
        case "constant":
            student = np.zeros(shape)
        case "far":
            student[..., -1] += draw(st.sampled_from([-40.0, 40.0, -150.0]))
        case _:
            pass
    lengths = random.integers(1, n + 1, batch).astype(np.int32)
    labels = random.integers(0, wide, (batch, n)).astype(np.int32)
    labels[random.random((batch, n)) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = IGNORED
    return Pair(student.astype(dtype), teacher.astype(dtype), lengths, labels)


def logarithms(x: Array) -> Array:
    """Log softmax over the last axis, in float64."""
    wide = x.astype(np.float64)
    return np.asarray(wide - np.logaddexp.reduce(wide, axis=-1, keepdims=True))


def check_soft(
    kit: Kit, found: Any, pair: Pair, weight: Array, temperature: float, *, entropy: bool, slack: Array | float = 0.0
) -> None:
    """Σ weight · (−Σ P log Q), and weight · (Q − P) / temperature; ``slack`` is the relative error of the weights."""
    u = kit.u(pair.student, result=found.gradient)
    s, t = (x.astype(np.float64) / temperature for x in (pair.student, pair.teacher))
    log_q, log_p = logarithms(s), logarithms(t)
    P, Q = np.exp(log_p), np.exp(log_q)
    gap_q, gap_p = (compare.log_softmax_gap(x, u) for x in (s, t))
    size = np.abs(log_q) + (np.abs(log_p) if entropy else 0.0)
    terms = P * (log_p - log_q) if entropy else -P * log_q
    off = P * (np.expm1(gap_p) * (size + gap_q) + gap_q + (gap_p if entropy else 0.0))
    rounded = compare.gamma(terms.size + 8, u) * P * size
    allowed = (weight * (off + rounded + slack * P * size).sum(axis=-1)).sum()
    expected = (weight * terms.sum(axis=-1)).sum()
    kit.check(compare.forward(found.loss, expected, allowed + kit.tiny(terms.size), "loss"))
    slope = weight[..., None] * (Q - P) / temperature
    reach = Q * np.expm1(gap_q) + P * np.expm1(gap_p) + (compare.gamma(8, u) + slack) * (P + Q)
    allowed = weight[..., None] / temperature * reach
    kit.check(compare.forward(found.gradient, slope, allowed + kit.tiny(terms.shape[-1]), "gradient"))


@clause("W-1", tier="forward-error", pair=pairs("logits"), temperature=TEMPERATURES)
def test_soft_cross_entropy(kit: Kit, pair: Pair, temperature: float) -> None:
    """Mean over the batch, times the square of the temperature; the entropy of the teacher stays in it."""
    found = kit.call("logit_loss", pair.student, pair.teacher, temperature=temperature)
    batch = len(pair.student)
    check_soft(kit, found, pair, np.full(batch, temperature**2 / batch), temperature, entropy=False)


@clause("W-1a", tier="forward-error", pair=pairs("logits"), temperature=TEMPERATURES)
def test_divergence(kit: Kit, pair: Pair, temperature: float) -> None:
    """Zero where the networks agree, with the gradient of the cross-entropy."""
    found = kit.call("logit_loss", pair.student, pair.teacher, temperature=temperature, divergence="kl")
    batch = len(pair.student)
    check_soft(kit, found, pair, np.full(batch, temperature**2 / batch), temperature, entropy=True)


def token_weights(pair: Pair, temperature: float, *, skip: bool, u: float) -> tuple[Array, Array]:
    """Weights (B, n) and their relative error: that of e^(c / τ), and of a sum and a quotient."""
    log_p, gap = logarithms(pair.teacher), compare.log_softmax_gap(pair.teacher, u)
    weight, slack = np.zeros(pair.labels.shape), np.zeros(pair.labels.shape)
    for b, row in enumerate(pair.labels):
        counted = [t for t, label in enumerate(row) if label != IGNORED or not skip]
        cost = np.array([0.0 if row[t] == IGNORED else -log_p[b, t, row[t]] for t in counted]) / temperature
        off = np.array([0.0 if row[t] == IGNORED else gap[b, t, row[t]] for t in counted]) / temperature
        if counted:
            size = np.exp(cost - cost.max())
            weight[b, counted] = size / size.sum()
            each = off + off.max() + compare.elementary(1, u) + compare.gamma(len(counted) + 8, u) * (1 + cost.max())
            slack[b, counted] = np.expm1(2 * each)
    return weight, slack


@clause("W-2", tier="forward-error", pair=pairs("tokens"), temperature=TEMPERATURES, ignored=["weigh", "skip"])
def test_token_weights(kit: Kit, pair: Pair, temperature: float, ignored: str) -> None:
    """A softmax over the tokens of each sequence; sequences are summed; a token without label costs nothing."""
    arrays = pair.student, pair.teacher, pair.labels
    found = kit.call("token_loss", *arrays, temperature=temperature, ignored=ignored)
    u = kit.u(pair.student, result=found.gradient)
    weight, slack = token_weights(pair, temperature, skip=ignored == "skip", u=u)
    check_soft(kit, found, pair, weight, 1.0, entropy=False, slack=slack[..., None])


def spoiled(x: Array, used: Array, bad: float) -> Array:
    """A copy with another number wherever nothing may be read."""
    copy = x.copy()
    copy[~np.broadcast_to(used, x.shape)] = bad
    return copy


def check_unread(kit: Kit, op: str, pair: Pair, last: Array, used: Array, **options: Any) -> None:
    """Other numbers, NaN among them, where nothing may be read: the same loss and gradient, and 0 there."""
    plain = kit.call(op, pair.student, pair.teacher, last, **options)
    for bad in (np.nan, np.inf, 64.0):
        student, teacher = (spoiled(x, used, bad) for x in (pair.student, pair.teacher))
        found = kit.call(op, student, teacher, last, **options)
        kit.check(compare.exact(found.loss, plain.loss, f"loss with {bad} in the padding"))
        kit.check(compare.exact(found.gradient, plain.gradient, f"gradient with {bad} in the padding"))
    beyond = plain.gradient[~np.broadcast_to(used, plain.gradient.shape)]
    kit.check(compare.exact(beyond, np.zeros(beyond.shape), "gradient of the padding"))


@clause("W-2a", tier="exact", pair=pairs("tokens"))
def test_skipped_tokens(kit: Kit, pair: Pair) -> None:
    """Logits without a label, in both networks."""
    check_unread(kit, "token_loss", pair, pair.labels, (pair.labels != IGNORED)[..., None], ignored="skip")


def inside(pair: Pair, n: int) -> Array:
    """(B, n): which tokens are valid."""
    return np.asarray(np.arange(n) < pair.lengths[:, None])


@clause("W-3", tier="forward-error", pair=pairs("tokens"), padded=st.booleans())
def test_mean_square(kit: Kit, pair: Pair, padded: bool) -> None:
    """Over every element when no lengths are given, over valid tokens when they are."""
    found = kit.call("feature_loss", pair.student, pair.teacher, None if padded else pair.lengths)
    used = np.broadcast_to(padded | inside(pair, pair.student.shape[1])[..., None], pair.student.shape)
    difference = np.where(used, pair.student.astype(np.float64) - pair.teacher.astype(np.float64), 0.0)
    u, count = kit.u(pair.student, result=found.gradient), int(used.sum())
    loss, slope = (difference**2).sum() / count, 2 * difference / count
    kit.check(compare.forward(found.loss, loss, compare.gamma(count + 5, u) * loss + kit.tiny(count), "loss"))
    kit.check(compare.forward(found.gradient, slope, compare.gamma(4, u) * np.abs(slope) + kit.tiny(), "gradient"))


@clause("W-3a", tier="exact", pair=pairs("tokens"))
def test_features_of_padding(kit: Kit, pair: Pair) -> None:
    """Whatever it holds."""
    check_unread(kit, "feature_loss", pair, pair.lengths, inside(pair, pair.student.shape[1])[..., None])


def check_scores(kit: Kit, pair: Pair, floor: float, *, causal: bool) -> None:
    """Squares of what is above the floor, in each network by its own scores."""
    found = kit.call("score_loss", pair.student, pair.teacher, floor=floor, causal=causal)
    s, t = (np.where(x.astype(np.float64) > floor, x.astype(np.float64), 0.0) for x in (pair.student, pair.teacher))
    n = s.shape[-1]
    used = np.broadcast_to(np.tril(np.ones((n, n), np.bool_)) if causal else np.ones((n, n), np.bool_), s.shape)
    difference, count = np.where(used, s - t, 0.0), int(used.sum())
    u = kit.u(pair.student, result=found.gradient)
    loss = (difference**2).sum() / count
    slope = np.where(pair.student.astype(np.float64) > floor, 2 * difference / count, 0.0)
    kit.check(compare.forward(found.loss, loss, compare.gamma(count + 5, u) * loss + kit.tiny(count), "loss"))
    kit.check(compare.forward(found.gradient, slope, compare.gamma(4, u) * np.abs(slope) + kit.tiny(), "gradient"))


FLOORS = st.sampled_from([-100.0, -1.0, 0.0, 2.0])  # values are multiples of a unit: many lie on these


@clause("W-4", tier="forward-error", pair=pairs("scores"), floor=FLOORS)
def test_scores_above_the_floor(kit: Kit, pair: Pair, floor: float) -> None:
    """The floor itself counts as masked; what only the student masks has a cost and no gradient."""
    check_scores(kit, pair, floor, causal=False)


@clause("W-4a", tier="forward-error", pair=pairs("scores"), floor=FLOORS)
def test_causal_scores(kit: Kit, pair: Pair, floor: float) -> None:
    """The mean is over the triangle."""
    check_scores(kit, pair, floor, causal=True)


def check_maps(kit: Kit, pair: Pair, floor: float) -> None:
    """Row by row; an entry of the student that lies within its own error of the floor may be on either side."""
    found = kit.call("attention_map_loss", pair.student, pair.teacher, pair.lengths, floor=floor)
    u = kit.u(pair.student, result=found.gradient)
    batch, heads = pair.student.shape[:2]
    loss, allowed = 0.0, kit.tiny(pair.student.size)
    slope, reach = np.zeros(pair.student.shape), np.full(pair.student.shape, kit.tiny(pair.student.shape[-1]))
    for b, length in enumerate(pair.lengths):
        block = (b, slice(None), slice(length), slice(length))
        s, t = pair.student[block], pair.teacher[block]
        log_q, log_p = logarithms(s), logarithms(t)
        gap_q, gap_p = (compare.log_softmax_gap(x, u) + compare.elementary(1, u) * abs(np.log(floor)) for x in (s, t))
        P, Q, share = np.maximum(np.exp(log_p), floor), np.exp(log_q), batch * heads * int(length)
        aim, own = np.log(P), np.maximum(log_q, np.log(floor))
        loss += float((P * (aim - own)).sum()) / share
        size = np.abs(aim - own)
        bulk = np.expm1(gap_p) * (size + gap_q + gap_p) + gap_q + gap_p
        bulk = bulk + compare.gamma(pair.student.size + 8, u) * (np.abs(aim) + np.abs(own))
        allowed += float((P * bulk).sum()) / share
        a = np.where(floor <= Q, P, 0.0)
        mass = a.sum(axis=-1, keepdims=True)
        slope[block] = (Q * mass - a) / share
        undecided = np.where(np.abs(log_q - np.log(floor)) <= gap_q, P, 0.0)
        flips = undecided + Q * undecided.sum(axis=-1, keepdims=True)
        moved = Q * (np.expm1(gap_q) * mass + (P * np.expm1(gap_p)).sum(axis=-1, keepdims=True)) + P * np.expm1(gap_p)
        reach[block] += (moved + flips + compare.gamma(int(length) + 8, u) * (Q * mass + P)) / share
    kit.check(compare.forward(found.loss, loss, allowed, "loss"))
    kit.check(compare.forward(found.gradient, slope, reach, "gradient"))


@clause("W-5", tier="forward-error", pair=pairs("scores"))
def test_divergence_of_maps(kit: Kit, pair: Pair) -> None:
    """Mean over rows of a sentence, then over heads and sentences; the softmax is over valid keys."""
    check_maps(kit, pair, strategies.PUBLISHED_FLOOR)


@clause("W-5a", tier="exact", pair=pairs("scores"))
def test_maps_of_padding(kit: Kit, pair: Pair) -> None:
    """Rows and keys beyond the lengths, whatever mask the scores carry."""
    valid = inside(pair, pair.student.shape[-1])
    check_unread(kit, "attention_map_loss", pair, pair.lengths, valid[:, None, :, None] & valid[:, None, None, :])


@clause("W-5b", tier="forward-error", pair=pairs("scores"), floor=[0.1, 0.01])
def test_floor_of_the_maps(kit: Kit, pair: Pair, floor: float) -> None:
    """Floors that many entries of both networks are below."""
    check_maps(kit, pair, floor)
