"""X: coresets. Which part of the data to train on: scores per sample, and selection by scores or by distances.

Quantization-aware training on the samples that matter costs a tenth of the whole. ACS scores a sample by two gradients
with respect to the logits of the quantized model: p − y, that of the cross entropy, and p − p_T, that of distillation
from the full-precision model. Early in training the first decides, late the second. The baselines it is compared with
are here too: EL2N, GraNd, Forgetting, Moderate, Contextual Diversity with k-center, herding, and chance.

A score depends on its own sample alone: never on a batch, on the order of the data or on how a pass is split. Ties go
to the lower index, and NaN, which sorts as the best sample of all in the published code, is refused.

Source: Huang et al. 2024, Efficient and Robust Quantization-aware Training via Adaptive Coreset Selection (arXiv
2306.07215). Its code differs from the paper in places; every difference has a name here, and the default is the paper.
Deliberately left out: Glister, which is a training run with a validation set and not a function of arrays.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from . import checks
from .checks import F64, I32
from .errors import SpecError
from .philox import philox_words
from .types import (
    ACS_SCHEDULES,
    CENTERS,
    KEPT,
    METRICS,
    MODERATE_REFERENCES,
    NEVER_LEARNT,
    OUTPUTS,
    AcsSchedule,
    Center,
    Kept,
    Metric,
    ModerateReference,
    NeverLearnt,
    Outputs,
    Purpose,
)

__all__ = [
    "acs_score",
    "acs_weight",
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
    "selection_overhead",
]


def class_logits(x: npt.ArrayLike, name: str, clause: str, ndim: int = 2) -> F64:
    """Finite logits with at least one class in the last axis."""
    a = checks.finite(x, name, clause, ndim=ndim)
    if a.shape[-1] == 0:
        raise SpecError(clause, f"{name} must have at least one class, got shape {a.shape}")
    return a


def class_labels(y: npt.ArrayLike, n: int, classes: int | None, clause: str) -> npt.NDArray[np.int64]:
    """One label per sample, in 0 … classes − 1; with classes None, any that are not negative."""
    a = checks.integers(y, "labels", clause, ndim=1)
    if len(a) != n:
        raise SpecError(clause, f"labels must have one entry for each of {n} samples, got {a.shape}")
    bad = (a < 0) | (a >= (np.inf if classes is None else classes))
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise SpecError(clause, f"labels must name one of {classes or 'the'} classes, got {a[i]} at {i}")
    return a


def exponentials(x: F64) -> F64:
    """e^(x_c − max x), so that no logit overflows; rows are samples."""
    return np.asarray(np.exp(x - x.max(axis=-1, keepdims=True, initial=-np.inf)))


# -- scores of ACS -----------------------------------------------------------------------------------------------------


def error_vector_score(logits: npt.ArrayLike, labels: npt.ArrayLike, /) -> F64:
    """Distance of the predicted distribution from the label.  [X-1, X-1a, X-1b]

        p = softmax(x),   EVS = ‖p − y‖₂ = √( (Σ_{c≠y} p_c)² + Σ_{c≠y} p_c² )                            (X.1)

    in [0, √2]: the norm of the gradient of the cross entropy with respect to the logits.

    Shapes: logits (n, C), C ≥ 1, labels (n,) integers in 0 … C − 1 → float (n,).
    1 − p_y is formed as the sum of the others [X-1a]: of a sample that the model is sure of, the difference would keep
    no digit, and in half precision neither would the norm. A backend may square as (X.1) is written: what is below
    2⁻⁶³, the root of the smallest normal float32, may come back as 0. With two classes the order is that of the cross
    entropy, EVS = √2 (1 − p_y); with more it need not be. Mislabelled samples come first.
    Source: Huang et al. 2024, section 3.2; Paul et al. 2021 for the score of a single model.

    >>> error_vector_score([[0.0, 0.0], [0.0, 40.0]], [0, 1]).tolist()
    [0.7071067811865476, 6.008080205598815e-18]
    """
    x = class_logits(logits, "logits", "X-1")
    y = class_labels(labels, len(x), x.shape[1], "X-1")
    return error_norm(x, y)


def error_norm(x: F64, y: npt.NDArray[np.int64]) -> F64:
    """(X.1) of checked arguments."""
    e = exponentials(x)
    other = np.where(np.arange(x.shape[1]) == y[:, None], 0.0, e / e.sum(axis=1, keepdims=True))
    return np.asarray(np.sqrt(other.sum(axis=1) ** 2 + (other**2).sum(axis=1)))  # (X.1)


def disagreement_score(logits: npt.ArrayLike, reference: npt.ArrayLike, /) -> F64:
    """Distance between the distributions of two models.  [X-2, X-2a, X-2b]

        DS = ‖softmax(x) − softmax(x_T)‖₂                                                                (X.2)

    in [0, √2], and exactly 0 where both models give the same logits: the norm of the gradient of the soft cross
    entropy −Σ p_T ln p with respect to the logits. It bounds what a label can say about the other model,
    |EVS − ‖p_T − y‖| ≤ DS [X-2b].

    Shapes: logits (n, C), reference (n, C) → float (n,).
    The reference is the *same architecture* in full precision, not the teacher of the training; scored without
    augmentation it never changes and need be computed only once. Both models must be in evaluation mode.
    Source: Huang et al. 2024, section 3.2.

    >>> disagreement_score([[0.0, 1.0], [5.0, -5.0]], [[7.0, 8.0], [-5.0, 5.0]]).round(4).tolist()
    [0.0, 1.4141]
    """
    x = class_logits(logits, "logits", "X-2")
    return disagreement_norm(x, same_shape(reference, x, "X-2"))


def same_shape(reference: npt.ArrayLike, x: F64, clause: str) -> F64:
    """Logits of the other model."""
    t = checks.finite(reference, "reference", clause, ndim=2)
    if t.shape != x.shape:
        raise SpecError(clause, f"reference {t.shape} must have the shape of logits {x.shape}")
    return t


def disagreement_norm(x: F64, t: F64) -> F64:
    """(X.2) of checked arguments."""
    e, f = exponentials(x), exponentials(t)
    gap = e / e.sum(axis=1, keepdims=True) - f / f.sum(axis=1, keepdims=True)
    return np.asarray(np.sqrt((gap**2).sum(axis=1)))  # (X.2)


def acs_weight(*, epoch: float, epochs: int, schedule: AcsSchedule = "paper") -> float:
    """Weight β of the error-vector score at epoch t of E; the disagreement score gets 1 − β.  [X-3]

    | schedule | β |
    | --- | --- |
    | ``paper`` | cos(πt / 2E) = sin(π(E − t) / 2E), whose ends are exactly 1 and 0 |
    | ``cosine`` | (1 + cos(πt / E)) / 2, the published code's cosine: the square of the paper's |
    | ``linear`` | 1 − t / E, the published code's default |
    | ``quadratic`` | 1 − (t / E)² |
    | ``sqrt`` | 1 − √(t / E) |
    | ``half`` | 1/2, what the published code does for any name that it does not know |
    | ``error-vector`` | 1; the published code calls this ``dsonly`` |
    | ``disagreement`` | 0; the published code calls this ``evonly`` |

    t is the epoch of the selection, counted from 0.

    >>> [round(acs_weight(epoch=t, epochs=4), 3) for t in range(5)]
    [1.0, 0.924, 0.707, 0.383, 0.0]
    >>> [round(acs_weight(epoch=t, epochs=4, schedule="cosine"), 3) for t in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    epochs = checks.whole(epochs, "epochs", "X-3", low=1)
    epoch = checks.number(epoch, "epoch", "X-3", low=0, high=epochs)
    checks.choice(schedule, ACS_SCHEDULES, "schedule", "X-3")
    t = epoch / epochs
    return {
        "paper": math.sin(math.pi / 2 * (1 - t)),
        "cosine": math.sin(math.pi / 2 * (1 - t)) ** 2,
        "linear": 1 - t,
        "quadratic": 1 - t * t,
        "sqrt": 1 - math.sqrt(t),
        "half": 0.5,
        "error-vector": 1.0,
        "disagreement": 0.0,
    }[schedule]


def acs_score(
    logits: npt.ArrayLike,
    reference: npt.ArrayLike,
    labels: npt.ArrayLike,
    /,
    *,
    epoch: float,
    epochs: int,
    schedule: AcsSchedule = "paper",
) -> F64:
    """The adaptive mix of both scores.  [X-3, X-3a]

        ACS = β EVS + (1 − β) DS,   β = acs_weight(t, E)                                                 (X.3)

    Shapes: logits (n, C), reference (n, C), labels (n,); epoch t in 0 … E, epochs E ≥ 1 → float (n,).
    At both ends of the paper's schedule it is one of the two scores exactly [X-3a].
    Source: Huang et al. 2024, section 3.3.

    >>> acs_score([[0.0, 0.0]], [[2.0, 0.0]], [0], epoch=0, epochs=10).round(4).tolist()
    [0.7071]
    """
    x = class_logits(logits, "logits", "X-3")
    t = same_shape(reference, x, "X-3")
    y = class_labels(labels, len(x), x.shape[1], "X-3")
    β = acs_weight(epoch=epoch, epochs=epochs, schedule=schedule)
    return np.asarray(β * error_norm(x, y) + (1 - β) * disagreement_norm(x, t))  # (X.3)


def selection_overhead(
    *, fraction: float, interval: int, student: float, reference: float, teacher: float = 0.0
) -> float:
    """Cost of scoring all samples, relative to the training between two selections.

        (F_s + F_r) / (R S (3 F_s + F_t))                                                                (X.4)

    with F the cost of a forward pass and training counted as three. Ours, from counting passes; ResNet-18 scored
    against itself and distilled from ResNet-101 on a tenth of the data costs 27 % more than the training alone.

    >>> round(selection_overhead(fraction=0.1, interval=10, student=1.8, reference=1.8, teacher=7.8), 2)
    0.27
    """
    interval = checks.whole(interval, "interval", "A-3", low=1)
    fraction = checks.number(fraction, "fraction", "A-3", low=0, high=1, above=True)
    student = checks.number(student, "student", "A-3", low=0, above=True)
    for name, value in (("reference", reference), ("teacher", teacher)):
        value = checks.number(value, name, "A-3", low=0)
    return (student + reference) / (interval * fraction * (3 * student + teacher))  # (X.4)


# -- selection by scores -----------------------------------------------------------------------------------------------


def select_coreset(
    scores: npt.ArrayLike, labels: npt.ArrayLike | None = None, /, *, fraction: float, keep: Kept = "largest"
) -> I32:
    """Indices of the best samples, over all of them or in every class.  [X-4, X-4a … X-4c]

        k = round(S n), or round(S n_c) in every class c that occurs, in ascending order                 (X.5)

    with round half to even, of the product in float64 [X-4c]. Indices come best first, class after class; samples of
    equal score come in ascending order [X-4b], zeros of either sign being equal.

    Shapes: scores (n,), labels None or (n,) integers ≥ 0, fraction S in [0, 1] → int32 (k,) or (Σ_c k_c,).
    Σ_c round(S n_c) may differ from round(S n), and a class of one sample gets none below S = 1/2. The published code
    balances classes unless told not to; the paper's text, as far as known to us, does not.
    Its order among equal scores is that of a reversed unstable sort: which of them it takes is undefined.

    >>> select_coreset([0.5, 0.9, 0.5, 0.5], fraction=0.5).tolist()
    [1, 0]
    >>> select_coreset([0.5, 0.9, 0.5, 0.8], [7, 3, 7, 3], fraction=0.5).tolist()
    [1, 0]
    """
    s = checks.finite(scores, "scores", "X-4", ndim=1)
    S = checks.number(fraction, "fraction", "X-4", low=0, high=1)
    checks.choice(keep, KEPT, "keep", "X-4")
    descending = -s if keep == "largest" else s
    every = np.arange(len(s))
    if labels is None:
        members = [every]
    else:
        y = class_labels(labels, len(s), None, "X-4")
        members = [every[y == c] for c in np.unique(y)]
    best = [m[np.argsort(descending[m], kind="stable")][: round(S * len(m))] for m in members]  # (X.5)
    return np.concatenate([every[:0], *best]).astype(np.int32)


# -- scores of the baselines -------------------------------------------------------------------------------------------


def el2n_score(logits: npt.ArrayLike, labels: npt.ArrayLike, /, *, outputs: Outputs = "softmax") -> F64:
    """EL2N: the error-vector score, averaged over models.  [X-5, X-5a]

        EL2N = mean_r ‖softmax(x_r) − y‖₂                                                                (X.6)

    Shapes: logits (R, n, C), R ≥ 1 models early in their training, labels (n,) → float (n,).
    ``outputs="logits"`` leaves out the softmax, as the published code of ACS does [X-5a]; that score is neither bounded
    nor indifferent to a shift of the logits.
    Source: Paul et al. 2021, Deep Learning on a Data Diet, definition 2.

    >>> el2n_score([[[3.0, 4.0]]], [0], outputs="logits").round(4).tolist()
    [4.4721]
    """
    x = class_logits(logits, "logits", "X-5", ndim=3)
    if len(x) == 0:
        raise SpecError("X-5", "logits must hold at least one model, got none")
    y = class_labels(labels, x.shape[1], x.shape[2], "X-5")
    checks.choice(outputs, OUTPUTS, "outputs", "X-5")
    if outputs == "softmax":
        return np.asarray(np.mean([error_norm(run, y) for run in x], axis=0))  # (X.6)
    return np.asarray(np.mean(np.linalg.norm(x - np.eye(x.shape[2])[y], axis=2), axis=0))


def grand_score(
    logits: npt.ArrayLike,
    features: npt.ArrayLike,
    labels: npt.ArrayLike,
    /,
    *,
    bias: bool = True,
    batch_size: int | None = None,
) -> F64:
    """GraNd of the last layer: the norm of its gradient, in closed form.  [X-6, X-6a]

        ∂ℓ/∂W = (p − y) hᵀ,  ∂ℓ/∂b = p − y   ⇒   GraNd = ‖p − y‖ √(1 + ‖h‖²)                             (X.7)

    without the 1 for a layer that has no bias.

    Shapes: logits (n, C), features (n, d) the inputs h of the last layer, labels (n,) → float (n,).
    With ``batch_size`` b every score is divided by the number of samples in its batch, n in b, b, … and what is left:
    the published code differentiates the *mean* over a batch [X-6a]. Samples of a smaller last batch score higher
    then; it is the one score here that depends on a batch, and only when asked to.
    Source: Paul et al. 2021, definition 1.

    >>> grand_score([[0.0, 0.0]], [[3.0, 4.0]], [0]).round(4).tolist()
    [3.6056]
    """
    x = class_logits(logits, "logits", "X-6")
    h = checks.finite(features, "features", "X-6", ndim=2)
    if len(h) != len(x):
        raise SpecError("X-6", f"features {h.shape} must have one row for each of {len(x)} samples")
    y = class_labels(labels, len(x), x.shape[1], "X-6")
    bias = checks.flag(bias, "bias", "X-6")
    score = error_norm(x, y) * np.sqrt(float(bias) + (h**2).sum(axis=1))  # (X.7)
    if batch_size is None:
        return np.asarray(score)
    b = checks.whole(batch_size, "batch_size", "X-6", low=1)
    start = np.arange(len(x)) // b * b
    return np.asarray(score / np.minimum(b, len(x) - start))


def forgetting_score(correct: npt.ArrayLike, /, *, never_learnt: NeverLearnt = "most") -> I32:
    """How often a sample was learnt and then forgotten.  [X-7]

        #{t : correct at t, wrong at t + 1}                                                              (X.8)

    Shapes: correct (E, n) bool, epochs by samples → int32 (n,).
    A sample that was never correct counts as the most forgotten, E, above every count that can be reached; with
    ``never_learnt="zero"`` it has 0, as in the published code of ACS, which so ranks the hardest with the easiest.
    Source: Toneva et al. 2019, An Empirical Study of Example Forgetting, section 3, which takes infinity for them.

    >>> forgetting_score([[True, False], [False, False], [True, False], [False, False]]).tolist()
    [2, 4]
    """
    c = np.array(correct)
    if c.ndim != 2 or c.dtype != np.bool_:
        raise SpecError("X-7", f"correct must be bool (epochs, samples), got {c.dtype} {c.shape}")
    checks.choice(never_learnt, NEVER_LEARNT, "never_learnt", "X-7")
    events = (c[:-1] & ~c[1:]).sum(axis=0)  # (X.8)
    if never_learnt == "most":
        events = np.where(c.any(axis=0), events, len(c))
    return np.asarray(events, np.int32)


def moderate_score(
    features: npt.ArrayLike,
    labels: npt.ArrayLike,
    /,
    *,
    center: Center = "mean",
    against: ModerateReference = "median",
) -> F64:
    """How far a sample is from being ordinary: its distance from its class, against the median distance.  [X-8, X-8a]

        d_i = ‖z_i − z̄_{y_i}‖₂,   score = |d_i − median_j d_j|                                           (X.9)

    with z̄ the mean of the class. The coreset is what scores *smallest*, ``keep="smallest"``.

    Shapes: features (n, d), labels (n,) integers ≥ 0 → float (n,).
    ``center="median"`` takes the median of the class, coordinate by coordinate; ``against="class-median"`` the median
    distance of the class, a reading of ours for balanced selection, and ``against="nothing"`` the distance itself. The
    published code of ACS is median, nothing, on logits, and keeps the *largest*: outliers [X-8a].
    Source: Xia et al. 2023, Moderate Coreset, section 3.

    >>> moderate_score([[0.0], [1.0], [5.0]], [0, 0, 0]).tolist()
    [0.0, 1.0, 1.0]
    >>> moderate_score([[0.0], [1.0], [5.0]], [0, 0, 0], center="median", against="nothing").tolist()
    [1.0, 0.0, 4.0]
    """
    z = checks.finite(features, "features", "X-8", ndim=2)
    y = class_labels(labels, len(z), None, "X-8")
    checks.choice(center, CENTERS, "center", "X-8")
    checks.choice(against, MODERATE_REFERENCES, "against", "X-8")
    d, ordinary = np.zeros(len(z)), np.zeros(len(z))
    for c in np.unique(y):
        members = y == c
        middle = (np.mean if center == "mean" else np.median)(z[members], axis=0)
        d[members] = np.linalg.norm(z[members] - middle, axis=1)
        ordinary[members] = np.median(d[members])
    if against == "nothing" or len(z) == 0:
        return d
    return np.asarray(np.abs(d - (np.median(d) if against == "median" else ordinary)))  # (X.9)


def random_score(*, size: int, seed: int, index: int = 0) -> F64:
    """A score by chance: the baseline that is hard to beat.  [X-12]

        u_i = ⌊(2³² w₀ + w₁) / 2¹¹⌋ 2⁻⁵³,   (w₀, w₁, …) = philox at (i, 0, index, SAMPLE)                (X.14)

    The largest of them are a sample without replacement, in every class if asked for, by :func:`select_coreset`.

    Shapes: size n ≥ 0, seed in 0 … 2^64 − 1, index in 0 … 2³² − 1, the number of the selection → float64 (n,).
    A sample keeps its score when others join. 53 bits: with 24, a million samples would share scores, and ties go to
    the lower index.

    >>> random_score(size=3, seed=0).round(4).tolist() == random_score(size=5, seed=0)[:3].round(4).tolist()
    True
    """
    n = checks.whole(size, "size", "X-12", low=0, high=2**31 - 1)
    index = checks.whole(index, "index", "X-12", low=0, high=2**32 - 1)
    address = np.zeros((n, 4), np.int64)
    address[:, 0], address[:, 2], address[:, 3] = np.arange(n), index, Purpose.SAMPLE
    w = philox_words(address, seed=seed).view(np.uint32).astype(np.uint64)
    return ((w[:, 0] << np.uint64(32) | w[:, 1]) >> np.uint64(11)).astype(np.float64) * 2.0**-53  # (X.14)


# -- selection by distances --------------------------------------------------------------------------------------------


def distributions(p: npt.ArrayLike, name: str, clause: str, epsilon: float) -> F64:
    """Rows of numbers ≥ 0, plus ε; what is left must be above 0 for its logarithm."""
    a = checks.finite(p, name, clause, ndim=2)
    ε = checks.number(epsilon, "epsilon", clause, low=0)
    bad = (a < 0) | (a + ε <= 0)
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise SpecError(clause, f"{name} must be above 0, or not below it with an epsilon, got {a[at]} at {at}")
    return a + ε


def contextual_diversity(p: npt.ArrayLike, q: npt.ArrayLike, /, *, epsilon: float = 0.0) -> F64:
    """Symmetric Kullback-Leibler divergence of all pairs of rows.  [X-9, X-9a]

        D_ij = ½ Σ_c (a_c ln(a_c / b_c) + b_c ln(b_c / a_c)) = ½ Σ_c (a_c − b_c)(ln a_c − ln b_c),
        a = p_i + ε,   b = q_j + ε                                                                       (X.10)

    Shapes: p (n, C), q (m, C), probabilities → float (n, m). The second form has no negative term: D ≥ 0, and exactly
    0 for equal rows.
    Zeros are refused without an ε [X-9a]: the published code, which has none, answers NaN for them, and a softmax in
    half precision is full of them. Rows need not sum to 1.
    Source: Agarwal et al. 2020, Contextual Diversity for Active Learning, eq. 2.

    >>> contextual_diversity([[0.5, 0.5]], [[0.5, 0.5], [0.25, 0.75]]).round(4).tolist()
    [[0.0, 0.1373]]
    """
    a = distributions(p, "p", "X-9", epsilon)
    b = distributions(q, "q", "X-9", epsilon)
    if a.shape[1] != b.shape[1]:
        raise SpecError("X-9", f"p {a.shape} and q {b.shape} must have the same number of classes")
    log_a, log_b = np.log(a), np.log(b)
    columns = [((a - b[j]) * (log_a - log_b[j])).sum(axis=1) / 2 for j in range(len(b))]  # (X.10)
    return np.array(columns).reshape(len(b), len(a)).T.copy()


def k_center(
    x: npt.ArrayLike, first: npt.ArrayLike, /, *, count: int, metric: Metric = "euclidean", epsilon: float = 0.0
) -> I32:
    """Farthest-first traversal: every new centre is the sample farthest from all centres so far.  [X-10, X-10a]

        s_t = argmax_{i ∉ S} min_{j ∈ S} D(x_i, x_j)                                                     (X.11)

    with D the squared Euclidean distance, summed from differences, or (X.10) for ``symmetric-kl``, which is Contextual
    Diversity. Of equal distances the lower index wins [X-10a].

    Shapes: x (n, d), first (f,) different indices, f ≥ 1, count in 0 … n − f → int32 (f + count,), in the order of
    selection, ``first`` in front. ``count`` is added to what is there, as in the published code, which returns the
    same set in ascending order. The largest distance left is at most twice the best possible for as many centres.
    Source: Gonzalez 1985; Sener and Savarese 2018 for coresets.

    >>> k_center([[0.0], [1.0], [9.0], [4.0]], [0], count=2).tolist()
    [0, 2, 3]
    """
    checks.choice(metric, METRICS, "metric", "X-10")
    a = distributions(x, "x", "X-10", epsilon) if metric == "symmetric-kl" else checks.finite(x, "x", "X-10", ndim=2)
    start = checks.integers(first, "first", "X-10", ndim=1)
    n = len(a)
    if len(start) == 0 or len(np.unique(start)) != len(start) or ((start < 0) | (start >= n)).any():
        raise SpecError("X-10", f"first must hold different indices below {n}, at least one, got {start.tolist()}")
    count = checks.whole(count, "count", "X-10", low=0, high=n - len(start))

    def distance(j: int) -> F64:
        if metric == "euclidean":
            return np.asarray(((a - a[j]) ** 2).sum(axis=1))
        return np.asarray(((a - a[j]) * (np.log(a) - np.log(a[j]))).sum(axis=1) / 2)

    nearest = np.min([distance(j) for j in start], axis=0)
    nearest[start] = -np.inf
    chosen = start.tolist()
    for _ in range(count):
        s = int(np.argmax(nearest))  # (X.11); the first of equals
        nearest = np.minimum(nearest, distance(s))
        nearest[s] = -np.inf
        chosen.append(s)
    return np.array(chosen, np.int32)


def herding(x: npt.ArrayLike, /, *, count: int) -> I32:
    """Samples whose mean follows the mean of all.  [X-11, X-11a]

        s_t = argmin_{i ∉ S} ‖t μ − Σ_{j ∈ S} x_j − x_i‖₂,   μ = mean x,   t = |S| + 1                   (X.12)

    which is the sample that brings the mean of the first t nearest to μ. Of equals the lower index wins [X-11a].

    Shapes: x (n, d), count in 0 … n → int32 (count,), in the order of selection.
    Deliberately without replacement; Welling's inner product picks the same samples where all have one norm.
    Source: Welling 2009, Herding dynamical weights to learn; Rebuffi et al. 2017, iCaRL, algorithm 4, for this form.

    >>> herding([[0.0], [4.0], [2.5], [1.5]], count=3).tolist()
    [2, 3, 0]
    """
    a = checks.finite(x, "x", "X-11", ndim=2)
    count = checks.whole(count, "count", "X-11", low=0, high=len(a))
    chosen: list[int] = []
    rest, free = np.zeros(a.shape[1]), np.ones(len(a), np.bool_)
    for _ in range(count):
        rest = rest + a.mean(axis=0)
        s = int(np.argmin(np.where(free, ((rest - a) ** 2).sum(axis=1), np.inf)))  # (X.12); the first of equals
        rest, free[s] = rest - a[s], False
        chosen.append(s)
    return np.array(chosen, np.int32)
