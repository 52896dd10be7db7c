"""M: mixed precision. Bits per row by word frequency, bits per block by sensitivity, projection while retraining.

A translation model spends most of its bytes where they matter least: in the rows of rare words, and in blocks whose
error hardly shows. Rare rows and insensitive blocks therefore get fewer binary planes, and the model is retrained
with its weights thrown back onto the quantized set every few hundred steps.

Source: Chung et al. 2020, Extremely Low Bit Transformer Quantization for On-Device Neural Machine Translation (arXiv
2009.07453); Lee et al. 2018, DeepTwist (arXiv 1810.12823), for the projection. The rule for words and the bits per
block are reconstructions: they reproduce the published averages and the published size, see ``TRANSLATION_BITS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from . import checks
from .binary_coding import bcq, bcq_weight
from .checks import F64, I32, Array
from .errors import SpecError
from .scale_tuning import bcq_bits
from .types import BINARY_METHODS, BinaryMethod, BitAllocation

__all__ = [
    "TRANSLATION_BITS",
    "allocate_bits",
    "average_bits",
    "cluster_sizes",
    "project_rows",
    "projection_due",
    "row_bits",
    "translation_size",
]

TRANSLATION_BITS: Mapping[str, int] = MappingProxyType(
    {"encoder self": 3, "encoder ffn": 4, "decoder self": 2, "decoder cross": 3, "decoder ffn": 1}
)
"""Bits per type of block of the 2.6-bit translation model.

Inferred, not published in this form: an assignment of whole bits, one of several, for which encoder (3.67), decoder
(1.75) and total (2.55 with an embedding of 4 equal clusters) round to the published 3.7, 1.8 and 2.6, and for which
the size comes out at 11.7 times smaller where the paper says 11.8. That fits; it does not prove.
"""

MOST_BITS = 8


# -- words -------------------------------------------------------------------------------------------------------------


def cluster_sizes(rows: int, *, clusters: int, ratio: int) -> list[int]:
    """Rows in each cluster, the most frequent and smallest first.  [M-1]

        n_i = ⌊v rⁱ / Σ_j rʲ⌋  for i < b − 1,   n_{b−1} = v − Σ_{i<b−1} n_i                              (M.1)

    in integers. The paper gives the ratio 1 : r : … : r^{b−1}; that what is left over goes to the last cluster is ours.

    >>> cluster_sizes(32768, clusters=4, ratio=4), cluster_sizes(2, clusters=3, ratio=2)
    ([385, 1542, 6168, 24673], [0, 0, 2])
    """
    rows = checks.whole(rows, "rows", "M-1", low=0)
    b = checks.whole(clusters, "clusters", "M-1", low=1, high=MOST_BITS)
    r = checks.whole(ratio, "ratio", "M-1", low=1)
    share = [r**i for i in range(b)]
    sizes = [rows * s // sum(share) for s in share[:-1]]
    return [*sizes, rows - sum(sizes)]  # (M.1)


def average_bits(rows: int, *, clusters: int, ratio: int) -> float:
    """Mean bits of a row under :func:`row_bits`, about Σ (b − i) rⁱ / Σ rⁱ.

    >>> [round(average_bits(10**6, clusters=4, ratio=r), 3) for r in (1, 2, 4, 8)]
    [2.5, 1.733, 1.318, 1.142]
    """
    sizes = cluster_sizes(rows, clusters=clusters, ratio=ratio)
    return sum((clusters - i) * n for i, n in enumerate(sizes)) / max(rows, 1)


def row_bits(counts: npt.ArrayLike, /, *, clusters: int, ratio: int = 1) -> I32:
    """Bits for every row of an embedding, by how often its word occurs.  [M-1, M-1a]

    Words in descending order of count fall into the clusters of (M.1); cluster i gets b − i bits, so the rarest 1.
    Equal counts go by id, the lower one first.                                                        [M-1a]

    Shapes: counts (v,) integers ≥ 0 → int32 (v,), values 1 … b, b = clusters in 1 … 8, ratio ≥ 1.
    Count the *training* text after its segmentation into these very words. Markers of sentence begin, end and padding
    are part of almost every sentence: a corpus file does not contain them, so give them the count they deserve, or
    they get 1 bit. Where input and output embedding are one matrix, few bits also cost the softmax.
    Source: Chung et al. 2020, section 3.1. Deliberately not: splitting by embedding norm.

    >>> row_bits([5, 900, 5, 40, 5, 7], clusters=3).tolist()
    [2, 3, 1, 3, 1, 2]
    """
    n = checks.integers(counts, "counts", "M-1", ndim=1)
    if (n < 0).any():
        j = int(np.flatnonzero(n < 0)[0])
        raise SpecError("M-1", f"counts must be at least 0, got {n[j]} at {j}")
    sizes = cluster_sizes(len(n), clusters=clusters, ratio=ratio)
    bits: I32 = np.empty(len(n), np.int32)
    bits[np.argsort(-n, kind="stable")] = np.repeat(np.arange(clusters, 0, -1), sizes)
    return bits


# -- blocks ------------------------------------------------------------------------------------------------------------


def hull_steps(error: F64, size: npt.NDArray[np.int64]) -> list[tuple[float, int, int]]:
    """Steps (slope, from, to) along the lower convex hull of one block's (size, error), steepest first.  (M.3)"""
    steps: list[tuple[float, int, int]] = []
    here, last = 0, np.inf
    while here < len(error) - 1:
        slope = (error[here] - error[here + 1 :]) / (size[here + 1 :] - size[here])  # (M.3)
        best = int(np.argmax(slope))  # the nearest of equal slopes
        if not slope[best] > 0:
            break
        last = min(last, float(slope[best]))  # points on one line: rounding must not turn their order
        steps.append((last, here, here + 1 + best))
        here += 1 + best
    return steps


def allocate_bits(errors: npt.ArrayLike, sizes: npt.ArrayLike, /, *, budget: int) -> BitAllocation[Array]:
    """Bits for every block so that the summed error is small and the summed size within a budget.  [M-2, M-2a … M-2c]

        min Σ_j e_j(q_j)   subject to   Σ_j s_j(q_j) ≤ S,   q_j in 1 … Q                                (M.2)
        slope of a step  = (e_j(q) − e_j(q′)) / (s_j(q′) − s_j(q)),   q′ > q                            (M.3)

    Every block starts at 1 bit and climbs the lower convex hull of its own points (s_j(q), e_j(q)): from q the next
    vertex is the q′ of steepest slope, the nearest of equals; a block stops where no slope is above 0. Steps of all
    blocks are taken from the steepest down, of equal slopes that of the lower block first [M-2b]. A step that no longer
    fits closes its block, after a shorter one: of the widths between its ends that fit, that of least error, if below
    the error at hand, the narrower of equals. The other blocks go on.

    With σ the slope of the first step that did not fit and (E, s) error and size before it, no allocation is below

        lower_bound = E − σ (S − s)                                                                     (M.4)

    the optimum of the linear relaxation (E when everything fits). So the greedy is *optimal* whenever it ends on the
    budget, and always when errors are convex and all steps cost the same: two bits for half the blocks and three for
    the others is no compromise then. In between it is off by less than one step, and ``lower_bound`` says by how much.

    Shapes: errors (n, Q) real, what block j costs at 1 … Q bits (a loss of BLEU, a squared output error: any unit
    that adds up); sizes (n, Q) integers ascending along each row, in any unit; budget in that unit, at least what
    1 bit everywhere takes → bits int32 (n,), size, error, lower_bound.
    Slopes are float64 whatever the input, one subtraction and one division, and never rise along a hull: of points on
    one line the later slope is lowered to the earlier, where rounding lifted it. Measure e_j with block j alone
    quantized and nothing retrained; that errors of blocks add up is an assumption of the method's.
    Source: Fox 1966, Discrete optimization via marginal analysis, for the greedy; Shoham and Gersho 1988 for the hull.

    >>> allocate_bits([[9.0, 4.0, 3.0], [8.0, 2.0, 0.5]], [[1, 2, 3], [1, 2, 3]], budget=4)
    BitAllocation(bits=array([2, 2], dtype=int32), size=4, error=6.0, lower_bound=6.0)
    """
    e = checks.finite(errors, "errors", "M-2", ndim=2)
    s = checks.integers(sizes, "sizes", "M-2", ndim=2)
    if e.shape != s.shape or e.shape[1] == 0:
        raise SpecError("M-2", f"errors {e.shape} and sizes {s.shape} must have one shape with at least one width")
    rising = np.diff(s, axis=1, prepend=0) > 0
    if not rising.all():
        j, q = (int(i) for i in np.argwhere(~rising)[0])
        raise SpecError("M-2", f"sizes must be above 0 and ascend along each row, got {s[j, q]} at ({j}, {q})")
    spent = int(s[:, 0].sum())
    budget = checks.whole(budget, "budget", "M-2", low=0)
    if budget < spent:
        raise SpecError("M-2", f"budget {budget} is below the {spent} that 1 bit everywhere takes")
    steps = [(-slope, j, a, b) for j in range(len(e)) for slope, a, b in hull_steps(e[j], s[j])]
    every = np.arange(len(e))
    level, closed, relaxed = np.zeros(len(e), np.int64), set(), None
    for downhill, j, a, b in sorted(steps, key=lambda step: step[:2]):  # stable: steps of a block stay in order
        cost = int(s[j, b] - s[j, a])
        if j not in closed and spent + cost <= budget:
            level[j], spent = b, spent + cost
            continue
        if relaxed is None:
            relaxed = float(e[every, level].sum()) + downhill * (budget - spent)  # (M.4)
        if j not in closed:
            between = [q for q in range(a, b) if spent + int(s[j, q] - s[j, a]) <= budget]
            q = min(between, key=lambda q: e[j, q])
            level[j], spent = q, spent + int(s[j, q] - s[j, a])
            closed.add(j)
    error = float(e[every, level].sum())
    return BitAllocation((level + 1).astype(np.int32), spent, error, error if relaxed is None else relaxed)


def translation_size(
    *,
    vocabulary: int = 32768,
    width: int = 512,
    hidden: int = 2048,
    layers: int = 6,
    bits: Mapping[str, int] = TRANSLATION_BITS,
    clusters: int = 4,
    ratio: int = 1,
) -> tuple[int, int]:
    """Bytes of an encoder-decoder Transformer, in float32 and quantized.

    Weights take q bits each and one float32 scale per plane and row; biases and layer norms stay float32. The
    embedding is shared between both inputs and the output, positions are computed.
    The defaults are Transformer base as published: 11.7 times smaller, where the paper says 11.8.

    >>> full, small = translation_size()
    >>> full, small, round(full / small, 1)
    (243662848, 20819968, 11.7)
    """
    d, f = width, hidden
    attention, ffn = [(d, d)] * 4, [(f, d), (d, f)]
    blocks = {
        "encoder self": attention, "encoder ffn": ffn,
        "decoder self": attention, "decoder cross": attention, "decoder ffn": ffn,
    }  # fmt: skip
    if set(bits) != set(blocks):
        raise SpecError("A-3", f"bits must be given for {', '.join(blocks)}, got {', '.join(bits)}")
    biases = sum(rows for shapes in blocks.values() for rows, _ in shapes)
    plain = 32 * layers * (biases + 5 * 2 * d)  # two norms in an encoder layer, three in a decoder layer
    weights = layers * sum(rows * columns for shapes in blocks.values() for rows, columns in shapes)
    small = layers * sum(bcq_bits(*shape, bits=bits[name]) for name, shapes in blocks.items() for shape in shapes)
    for i, rows in enumerate(cluster_sizes(vocabulary, clusters=clusters, ratio=ratio)):
        small += bcq_bits(rows, d, bits=clusters - i)
    return (32 * (weights + vocabulary * d) + plain) // 8, -(-(small + plain) // 8)


# -- retraining --------------------------------------------------------------------------------------------------------


def projection_due(step: int, *, period: int, total: int) -> bool:
    """Whether weights are projected after this step: every `period` steps, and after the last.

    Steps are counted from 1. Period 1 is projected gradient descent, in which a step shorter than half the gap
    between two levels is undone; a period beyond `total` is quantization after training.

    >>> [t for t in range(1, 11) if projection_due(t, period=4, total=10)]
    [4, 8, 10]
    """
    total = checks.whole(total, "total", "A-3", low=1)
    step = checks.whole(step, "step", "A-3", low=1, high=total)
    return step % checks.whole(period, "period", "A-3", low=1) == 0 or step == total


def project_rows(w: npt.ArrayLike, bits: npt.ArrayLike, /, *, method: BinaryMethod = "greedy", rounds: int = 15) -> F64:
    """Every row replaced by its binary code of its own number of planes.  [M-3, M-3a … M-3c]

        r₀ = w;   b_i = sign(r_{i−1}),   α_i = mean|r_{i−1}|,   r_i = r_{i−1} − α_i b_i;   ŵ = w − r_q     (M.5)

    with sign(0) = +1, for ``greedy``; ``refined`` and ``alternating`` are those of :func:`bcq`, row by row [M-3c].
    After it a row of q bits holds at most 2^q different values. Between projections training goes on in full
    precision, without straight-through gradients and with everything else unchanged. Greedy is meant for the
    projections on the way, for its speed, and alternating for the last one.

    Shapes: w (m, k), bits (m,) integers 1 … 8 → float (m, k). A row of no columns has nothing to project.
    ŵ is summed from the planes, Σ_i α_i b_i in order, not formed as a difference.
    Projecting again may move a row: greedy need not find its own planes back when scales are close, and alternating,
    which starts from greedy, then ends elsewhere too. Where scales are far enough apart it returns to the same values.
    Source: Chung et al. 2020, section 3.3; Guo et al. 2017 for the greedy code. The period of the published runs is
    not known to us; a thousand or two steps is the order of magnitude.

    >>> project_rows([[1.0, -3.0, 2.0, -2.0], [1.0, -3.0, 2.0, -2.0]], [1, 2]).tolist()
    [[2.0, -2.0, 2.0, -2.0], [1.5, -2.5, 2.5, -1.5]]
    """
    W = checks.finite(w, "w", "M-3", ndim=2)
    q = checks.integers(bits, "bits", "M-3", ndim=1)
    if len(q) != len(W):
        raise SpecError("M-3", f"bits must have one entry per row of w {W.shape}, got {q.shape}")
    if ((q < 1) | (q > MOST_BITS)).any():
        j = int(np.flatnonzero((q < 1) | (q > MOST_BITS))[0])
        raise SpecError("M-3", f"bits must be in 1..{MOST_BITS}, got {q[j]} at {j}")
    checks.choice(method, BINARY_METHODS, "method", "M-3")
    rounds = checks.whole(rounds, "rounds", "M-3", low=0)
    r, w_hat = W.copy(), np.zeros_like(W)
    if method != "greedy":
        for b in np.unique(q).tolist():
            code = bcq(W[q == b], bits=b, method=method, rounds=rounds)
            w_hat[q == b] = bcq_weight(code.codes, code.scale, code.offset)
        return w_hat
    for i in range(int(q.max(initial=0))):
        on = (q > i)[:, None]
        α = np.abs(r).sum(axis=1, keepdims=True) / max(W.shape[1], 1)
        plane = np.where(on, np.where(r < 0, -α, α), 0.0)
        r, w_hat = r - plane, w_hat + plane  # (M.5)
    return w_hat
