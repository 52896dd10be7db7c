"""Chapter X: coresets, on tensors of any device. The rules are those of :mod:`lowbit.reference.coreset`.

A score must not depend on how many samples are scored with it, to the last bit. On a CPU torch adds each row by itself
unless a row is long enough to be shared between threads; elsewhere it picks the order of a sum by the number of rows,
so there sums over classes are formed by halves, with elementwise additions.
"""

from __future__ import annotations

import torch
from torch import Tensor

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

from . import philox, policy, triton
from .arrays import (
    as_integers,
    as_numbers,
    as_weights,
    finite_weights,
    operation,
    refuse_nan,
    row_chunks,
    working_dtype,
)

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

triton.KERNELS.update(error_vector_score=triton.narrow, disagreement_score=triton.narrow, acs_score=triton.narrow)

_ONE_THREAD = 1 << 15  # length from which torch splits the sum of a single row


def _sum(x: Tensor) -> Tensor:
    """Sums of rows; the order of the additions is a function of the width alone."""
    if x.device.type == "cpu" and x.shape[1] < _ONE_THREAD and x.is_contiguous():
        return x.sum(1)
    while x.shape[1] > 1:
        half = (x.shape[1] + 1) // 2
        low, high = x[:, :half], x[:, half:]
        x = low + high if high.shape[1] == half else torch.cat((low[:, :-1] + high, low[:, -1:]), dim=1)
    return x[:, 0]


def _logits(clause: str, name: str, x: Tensor, like: Tensor | None = None) -> Tensor:
    x = as_weights(clause, name, x, like=like)
    check_class_logits(clause, name, x.shape)
    if like is not None:
        check_matrix(clause, name, x.shape, tuple(like.shape))
    return x


def _labels(clause: str, y: Tensor, like: Tensor, n: int, classes: int | None) -> Tensor:
    y = as_integers(clause, "labels", y, like=like)
    check_matrix(clause, "labels", y.shape, (n,))
    if y.numel():
        check_label_range(clause, int(y.min()), int(y.max()), classes)
    return y.to(torch.int64)


def _exponentials(x: Tensor, dtype: torch.dtype) -> Tensor:
    x = x.to(dtype)
    return torch.exp(x - x.amax(1, keepdim=True))


def _error_vector(e: Tensor, y: Tensor) -> Tensor:
    """EVS from exponentials: the share of the other classes, and how it is spread over them."""
    own = e.gather(1, y[:, None])[:, 0]
    rest = e.scatter(1, y[:, None], 0.0)
    others = _sum(rest)
    shares = rest / others.clamp_min(torch.finfo(e.dtype).tiny)[:, None]
    return others / (others + own) * torch.sqrt(1 + _sum(shares * shares))


_FAINT = 1e-12  # share of the other classes below which the square of one may leave the range


def _score_in_place(x: Tensor, t: Tensor | None, y: Tensor | None, blend: float, dtype: torch.dtype) -> Tensor:
    """:func:`_score` on a CPU: torch's softmax, whose rows are independent there, and sums over what it returns."""
    out = torch.zeros(x.shape[0], dtype=dtype)
    for rows in row_chunks(x.shape[0], x.shape[1], x.device, elements=1 << 18):
        p, score = torch.softmax(x[rows], 1, dtype=dtype), out[rows]
        if t is not None:
            gap = torch.softmax(t[rows], 1, dtype=dtype).sub_(p)
            torch.linalg.vector_norm(gap, dim=1, out=score).mul_(1 - blend)
        if y is not None:
            label = y[rows, None]
            others = p.scatter_(1, label, 0.0).sum(1)
            found = torch.linalg.vector_norm(p, dim=1).hypot_(others)
            if others.numel() and float(others.amin()) < _FAINT:
                faint = (others < _FAINT).nonzero()[:, 0]
                found[faint] = _error_vector(_exponentials(x[rows][faint], dtype), label[faint, 0])
            score.add_(found, alpha=blend)
    return out


def _score(x: Tensor, t: Tensor | None, y: Tensor | None, blend: float) -> Tensor:
    """blend · EVS + (1 − blend) · DS of checked arguments; without labels no EVS, without t no DS."""
    dtype = working_dtype(x) if t is None else working_dtype(x, t)
    if x.device.type == "cpu" and x.shape[1] < _ONE_THREAD:
        return _score_in_place(x, t, y, blend, dtype)
    out = torch.zeros(x.shape[0], dtype=dtype, device=x.device)
    for rows in row_chunks(x.shape[0], x.shape[1], x.device):
        e = _exponentials(x[rows], dtype)
        if t is not None:
            f = _exponentials(t[rows], dtype)
            gap = e / _sum(e)[:, None] - f / _sum(f)[:, None]
            out[rows] = (1 - blend) * torch.sqrt(_sum(gap * gap))
        if y is not None:
            out[rows] += blend * _error_vector(e, y[rows])
    return out


def _mixed(op: str, clause: str, x: Tensor, t: Tensor | None, y: Tensor | None, blend: float) -> Tensor:
    """X-1 to X-3 of arguments that fit together: :func:`_score`, or a kernel.

    A kernel computes no part without weight, so both ends of a schedule are exact.
    """

    def refuse() -> None:
        refuse_nan(clause, "logits", x)
        if t is not None:
            refuse_nan(clause, "reference", t)

    if not (x.numel() and policy.by_kernel(op, x, x if t is None else t)):
        refuse()
        return _score(x, t, y, blend)
    other = t
    if t is not None and blend == 1:
        refuse_nan(clause, "reference", t)
        other = None
    out: Tensor = triton.launcher("coreset").scores(
        x.contiguous(), None if other is None else other.contiguous(), None if blend == 0 else y, blend
    )
    if not bool(torch.isfinite(out).all()):
        refuse()
    return out


@operation
def error_vector_score(logits: Tensor, labels: Tensor, /) -> Tensor:
    """Distance of the predicted distribution from the label.  [X-1]"""
    x = _logits("X-1", "logits", logits)
    return _mixed("error_vector_score", "X-1", x, None, _labels("X-1", labels, x, *x.shape), 1.0)


@operation
def disagreement_score(logits: Tensor, reference: Tensor, /) -> Tensor:
    """Distance between the distributions of two models.  [X-2]"""
    x = _logits("X-2", "logits", logits)
    return _mixed("disagreement_score", "X-2", x, _logits("X-2", "reference", reference, x), None, 0.0)


@operation
def acs_score(
    logits: Tensor, reference: Tensor, labels: Tensor, /, *, epoch: float, epochs: int, schedule: AcsSchedule = "paper"
) -> Tensor:
    """The adaptive mix of both scores.  [X-3]"""
    x = _logits("X-3", "logits", logits)
    t = _logits("X-3", "reference", reference, x)
    y = _labels("X-3", labels, x, *x.shape)
    return _mixed("acs_score", "X-3", x, t, y, acs_blend(epoch, epochs, schedule))


@operation
def select_coreset(
    scores: Tensor, labels: Tensor | None = None, /, *, fraction: float, keep: Kept = "largest"
) -> Tensor:
    """Indices of the best samples, over all of them or in every class.  [X-4]"""
    s = as_numbers("X-4", "scores", scores)
    check_matrix("X-4", "scores", s.shape, (None,))
    y = None if labels is None else _labels("X-4", labels, s, s.shape[0], None)
    check_number("X-4", "fraction", fraction, 0, 1)
    check_words("X-4", keep=keep)
    refuse_nan("X-4", "scores", s)
    s = s.to(working_dtype(s)) + 0.0  # a radix sort would tell −0 from 0
    order = torch.sort(s, descending=keep == "largest", stable=True).indices
    if y is None:
        return order[: class_budget(fraction, s.shape[0])].to(torch.int32)
    order = order[torch.sort(y[order], stable=True).indices]  # by class, and by score within one
    counts = torch.unique_consecutive(y[order], return_counts=True)[1]
    start = torch.cumsum(counts, 0) - counts
    budget = torch.tensor([class_budget(fraction, c) for c in counts.tolist()], device=s.device, dtype=torch.int64)
    place = torch.arange(s.shape[0], device=s.device) - start.repeat_interleave(counts)
    return order[place < budget.repeat_interleave(counts)].to(torch.int32)


@operation
def el2n_score(logits: Tensor, labels: Tensor, /, *, outputs: Outputs = "softmax") -> Tensor:
    """The error-vector score, averaged over models.  [X-5]"""
    x = as_weights("X-5", "logits", logits)
    check_class_logits("X-5", "logits", x.shape, 3)
    y = _labels("X-5", labels, x, *x.shape[1:])
    check_words("X-5", outputs=outputs)
    refuse_nan("X-5", "logits", x)
    total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    for run in x:
        if outputs == "softmax":
            total += _score(run, None, y, 1.0)
            continue
        for rows in row_chunks(run.shape[0], run.shape[1], x.device):
            part = run[rows].to(torch.float64)
            total[rows] += torch.linalg.vector_norm(part - torch.nn.functional.one_hot(y[rows], part.shape[1]), dim=1)
    return (total / x.shape[0]).to(working_dtype(x))


@operation
def grand_score(
    logits: Tensor, features: Tensor, labels: Tensor, /, *, bias: bool = True, batch_size: int | None = None
) -> Tensor:
    """Norm of the gradient of the last layer, in closed form.  [X-6]"""
    x = _logits("X-6", "logits", logits)
    h = as_weights("X-6", "features", features, like=x)
    check_matrix("X-6", "features", h.shape, (x.shape[0], None))
    y = _labels("X-6", labels, x, *x.shape)
    batch_size = check_layer(bias, batch_size)
    refuse_nan("X-6", "logits", x)
    refuse_nan("X-6", "features", h)
    norms = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
    for rows in row_chunks(h.shape[0], h.shape[1], h.device):
        norms[rows] = h[rows].to(torch.float64).square().sum(1)
    score = _score(x, None, y, 1.0) * torch.sqrt(norms + bias)
    if batch_size is not None:
        index = torch.arange(x.shape[0], device=x.device)
        score = score / (x.shape[0] - index // batch_size * batch_size).clamp_max(batch_size)
    return score.to(working_dtype(x, h))


@operation
def forgetting_score(correct: Tensor, /, *, never_learnt: NeverLearnt = "most") -> Tensor:
    """How often a sample was learnt and then forgotten.  [X-7]"""
    if not isinstance(correct, Tensor) or correct.dtype != torch.bool or correct.ndim != 2:
        raise SpecError(
            "X-7", f"correct must be a bool tensor (epochs, samples), got {getattr(correct, 'dtype', None)}"
        )
    check_words("X-7", never_learnt=never_learnt)
    events = (correct[:-1] & ~correct[1:]).sum(0, dtype=torch.int32)
    if never_learnt == "most":
        events = events.masked_fill(~correct.any(0), correct.shape[0])
    return events


def _median(x: Tensor) -> Tensor:
    """Median over the first axis, the mean of both middle values of an even number."""
    ranked, n = x.sort(0).values, x.shape[0]
    return (ranked[(n - 1) // 2] + ranked[n // 2]) / 2


@operation
def moderate_score(
    features: Tensor, labels: Tensor, /, *, center: Center = "mean", against: ModerateReference = "median"
) -> Tensor:
    """How far a sample's distance from its class is from the median distance.  [X-8]"""
    z = as_weights("X-8", "features", features)
    check_matrix("X-8", "features", z.shape, (None, None))
    y = _labels("X-8", labels, z, z.shape[0], None)
    check_words("X-8", center=center, against=against)
    refuse_nan("X-8", "features", z)
    d = torch.zeros(z.shape[0], dtype=torch.float64, device=z.device)
    score = torch.zeros_like(d)
    order = torch.sort(y, stable=True).indices
    counts = torch.unique_consecutive(y[order], return_counts=True)[1].tolist()
    for members in torch.split(order, counts):
        own = z[members].to(torch.float64)
        middle = own.mean(0) if center == "mean" else _median(own)
        d[members] = torch.linalg.vector_norm(own - middle, dim=1)
        if against == "class-median":
            score[members] = (d[members] - _median(d[members])).abs()
    if against == "nothing":
        score = d
    elif against == "median" and d.numel():
        score = (d - _median(d)).abs()
    return score.to(working_dtype(z))


def _positive(clause: str, name: str, p: Tensor, epsilon: float, like: Tensor | None = None) -> Tensor:
    """Rows plus ε in float64, all above 0."""
    p = as_weights(clause, name, p, like=like)
    check_matrix(clause, name, p.shape, (None, None))
    check_number(clause, "epsilon", epsilon, 0)
    refuse_nan(clause, name, p)
    moved = p.to(torch.float64) + epsilon
    bad = (p < 0) | (moved <= 0)
    if bool(bad.any()):
        at = tuple(int(i) for i in bad.nonzero()[0])
        raise SpecError(clause, f"{name} holds {float(p[at])} at {at}; its logarithm needs numbers above 0")
    return moved


@operation
def contextual_diversity(p: Tensor, q: Tensor, /, *, epsilon: float = 0.0) -> Tensor:
    """Symmetric Kullback-Leibler divergence of all pairs of rows, in float64.  [X-9]"""
    a, b = _positive("X-9", "p", p, epsilon), _positive("X-9", "q", q, epsilon, like=p)
    check_matrix("X-9", "q", b.shape, (None, a.shape[1]))
    log_a, log_b = a.log(), b.log()
    out = torch.empty((a.shape[0], b.shape[0]), dtype=working_dtype(p, q), device=a.device)
    for rows in row_chunks(a.shape[0], b.numel(), a.device):
        gap = (a[rows, None] - b) * (log_a[rows, None] - log_b)
        out[rows] = gap.sum(2) / 2
    return out


@operation
def k_center(x: Tensor, first: Tensor, /, *, count: int, metric: Metric = "euclidean", epsilon: float = 0.0) -> Tensor:
    """Farthest-first traversal from the centres in ``first``; distances in float64.  [X-10]"""
    check_words("X-10", metric=metric)
    if metric == "euclidean":
        a, log_a = finite_weights("X-10", "x", x, (None, None)), None
    else:
        a = _positive("X-10", "x", x, epsilon)
        log_a = a.log()
    start = as_integers("X-10", "first", first, like=a)
    check_matrix("X-10", "first", start.shape, (None,))
    chosen = start.tolist()
    check_centres(chosen, count, a.shape[0])
    nearest = torch.full((a.shape[0],), torch.inf, dtype=torch.float64, device=a.device)

    def approach(centre: int) -> None:
        for rows in row_chunks(a.shape[0], a.shape[1], a.device):
            gap = a[rows].to(torch.float64) - a[centre].to(torch.float64)
            product = gap * gap if log_a is None else gap * (log_a[rows] - log_a[centre]) / 2
            nearest[rows] = torch.minimum(nearest[rows], product.sum(1))

    for centre in chosen:
        approach(centre)
    nearest[chosen] = -1.0
    for _ in range(count):
        best = int((nearest == nearest.max()).to(torch.uint8).argmax())  # the first of equals
        approach(best)
        nearest[best] = -1.0
        chosen.append(best)
    return torch.tensor(chosen, dtype=torch.int32, device=a.device)


@operation
def herding(x: Tensor, /, *, count: int) -> Tensor:
    """Samples whose mean follows the mean of all; distances in float64.  [X-11]"""
    a = as_weights("X-11", "x", x)
    check_matrix("X-11", "x", a.shape, (None, None))
    check_whole("X-11", "count", count, 0, a.shape[0])
    refuse_nan("X-11", "x", a)
    mean = a.sum(0, dtype=torch.float64) / max(a.shape[0], 1)
    rest = torch.zeros(a.shape[1], dtype=torch.float64, device=a.device)
    distance = torch.empty(a.shape[0], dtype=torch.float64, device=a.device)
    chosen: list[int] = []
    for _ in range(count):
        rest = rest + mean
        for rows in row_chunks(a.shape[0], a.shape[1], a.device):
            distance[rows] = (rest - a[rows].to(torch.float64)).square().sum(1)
        distance[chosen] = torch.inf
        best = int((distance == distance.min()).to(torch.uint8).argmax())  # the first of equals
        rest = rest - a[best].to(torch.float64)
        chosen.append(best)
    return torch.tensor(chosen, dtype=torch.int32, device=a.device)


@operation
def random_score(*, size: int, seed: int, index: int = 0) -> Tensor:
    """A score by chance, float64.  [X-12]"""
    check_whole("X-12", "size", size, 0)
    check_whole("X-12", "index", index, 0, 2**32 - 1)
    check_seed(seed)
    address = torch.zeros((size, 4), dtype=torch.int64, device=policy.device())
    address[:, 0] = torch.arange(size, device=address.device)
    address[:, 2], address[:, 3] = index, int(Purpose.SAMPLE)
    w = philox.words(address, seed)
    return ((w[:, 0] << 21) + (w[:, 1] >> 11)).to(torch.float64) * 2.0**-53  # 53 bits: below 2^53, exact
