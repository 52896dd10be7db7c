"""T: ternary weights and min-max fake quantizers, with straight-through gradients.

A fake quantizer answers values on a grid, as floats, and takes everything it needs from the tensor at hand. Statistics
are taken over the whole tensor, over the last axis ("row") or over the last two ("matrix", one attention map). All of
them clip first when asked to, and statistics are those of what is left:

    c(x) = min(max(x, −clip), clip)                                                                     (T.1)

    twn                w ≈ α sign(w) [|w| > Δ],  Δ = 0.7 mean|w|       the language models of TernaryBERT and KD-QAT
    clamped_uniform    the same idea with 4 bits ("TWN-MX" in the code of both)
    min_max            the 8-bit activations of both: symmetric, or from smallest to largest value

Nothing is trained but x itself: Δ, α and ranges count as constants in the backward pass, rounding as the identity, and
the clip keeps its own derivative (straight_through). A tensor or row of zeros is answered with zeros; the published
code divides 0 by 0 there and trains on NaN.

Sources: Li, Zhang and Liu 2016 (arXiv 1605.04711) for twn; Zhang et al. 2020, TernaryBERT (arXiv 2009.12812), and Kim
et al. 2022, KD-QAT (arXiv 2211.11014), with their code, for the rest. KD-QAT clips weights and activations at 2.5.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from . import checks
from .checks import F64, Array, Bool
from .errors import SpecError
from .types import MIN_MAX_SCHEMES, OUTERMOST, SHARINGS, MinMaxScheme, Outermost, Sharing, TernaryCode

__all__ = ["clamped_uniform", "min_max", "straight_through", "twn", "twn_code"]

AXES: dict[Sharing, tuple[int, ...] | None] = {"tensor": None, "row": (-1,), "matrix": (-2, -1)}


def clipped(x: npt.ArrayLike, clip: float | None, clause: str) -> F64:
    """Checked x, clipped when asked to.  (T.1)"""
    X = checks.finite(x, "x", clause)
    if clip is None:
        return X
    c = checks.number(clip, "clip", clause, low=0.0, above=True)
    return np.clip(X, -c, c)  # (T.1)


def axes(X: F64, granularity: Sharing, clause: str) -> tuple[int, ...]:
    """Axes over which statistics are shared; they stay in their shape with length 1."""
    checks.choice(granularity, SHARINGS, "granularity", clause)
    found = AXES[granularity]
    if found is None:
        return tuple(range(X.ndim))
    if X.ndim < len(found):
        raise SpecError(clause, f"x of shape {X.shape} has no {granularity!r}")
    return found


def mean_where(a: F64, chosen: Bool, over: tuple[int, ...]) -> F64:
    """Mean of the chosen values; 0 where none is."""
    count = chosen.sum(axis=over, keepdims=True)
    return np.asarray((a * chosen).sum(axis=over, keepdims=True) / np.maximum(count, 1))


def twn_code(
    x: npt.ArrayLike,
    /,
    *,
    granularity: Sharing = "tensor",
    threshold: float = 0.7,
    clip: float | None = None,
) -> TernaryCode[Array]:
    """Ternary code: signs of the large values and their mean magnitude.  [T-1, T-1a, T-1b]

        Δ = t mean|x|,   I = [|x| > Δ]                                                                  (T.2)
        α = Σ |x| I / Σ I,   code = sign(x) I                                                           (T.3)

    with t = threshold in [0, 1). The comparison is strict [T-1a], so a group of zeros has no member of I: α = 0, and
    its codes are 0 [T-1b]. Any other group has at least its largest value in I, since Δ is below the mean. A group of
    equal magnitudes is kept whole.

    Shapes: x any for "tensor", at least one axis for "row" and two for "matrix" → codes int32 of x's shape, scale
    float with shared axes of length 1.
    t = 0.7 is the paper's rule of thumb: for a normal weight it leaves 42.3 % zeros and a squared error of 19.2 %,
    for a Laplace one 50.3 % and 28.2 %. The best t and α for a given tensor would need a search over sorted |x|.

    >>> code = twn_code([[0.1, -1.0, 3.0, 0.0]])
    >>> code.codes.tolist(), code.scale.tolist()
    ([[0, -1, 1, 0]], [[2.0]])
    """
    t = checks.number(threshold, "threshold", "T-1", low=0.0)
    if t >= 1:
        raise SpecError("T-1", f"threshold must be below 1, got {threshold}")
    X = clipped(x, clip, "T-1")
    over = axes(X, granularity, "T-1")
    a = np.abs(X)
    Δ = t * mean_where(a, np.ones(X.shape, np.bool_), over)
    I = a > Δ  # (T.2)
    return TernaryCode((np.sign(X) * I).astype(np.int32), mean_where(a, I, over))  # (T.3)


def twn(
    x: npt.ArrayLike,
    /,
    *,
    granularity: Sharing = "tensor",
    threshold: float = 0.7,
    clip: float | None = None,
) -> F64:
    """Ternary values: the code times its scale.  [T-2]

        x̂ = α sign(x) I                                                                                 (T.4)

    Arguments as in :func:`twn_code`. Shapes: x → float, x's shape.
    Odd, and equivariant to a positive factor below the clip. Applied to its own result it returns it: magnitudes are
    then 0 or α, and 0.7 times their mean is below α.

    >>> twn([[0.1, -1.0, 3.0, 0.0]], clip=2.0).tolist()
    [[0.0, -1.5, 1.5, 0.0]]
    """
    code = twn_code(x, granularity=granularity, threshold=threshold, clip=clip)
    return np.asarray(code.scale * code.codes)  # (T.4)


AT_THE_MEAN = 1 - 2.0**-16
"""Share of α from which a magnitude counts as one at α: the rounding of a mean is far below that."""


def clamped_uniform(
    x: npt.ArrayLike,
    /,
    *,
    bits: int = 4,
    granularity: Sharing = "tensor",
    clip: float | None = None,
    outermost: Outermost = "published",
) -> F64:
    """A uniform grid between ± the mean of the large magnitudes.  [T-3, T-3a, T-3b]

        m = mean|x|,   α = Σ |x| [|x| > m] / Σ [|x| > m],   δ = 2α / (2^b − 1)                          (T.5)
        x̂ = δ round(min(max(x, −α), α) / δ)                                                             (T.6)

    Half to even, by division [T-3b]. At and beyond α the quotient is (2^b − 1)/2, a tie, and the rule makes it
    2^(b−1), so that the published quantizer has 2^b + 1 levels, the outer two at δ/2 beyond α, and 4 bits do not hold
    its codes. ``published`` is that rule, decided by |x| ≥ (1 − 2⁻¹⁶) α and not by the rounding of a division or of
    α, since a computed mean of equal magnitudes may lie above them [T-3a]; ``bounded`` ends the grid at
    ±(2^(b−1) − 1) δ.

    No magnitude of a constant group is above its mean, where the published code divides by 0: here α = m, as for any
    group without a member, and every value is at α. Zeros give zeros.

    Shapes: x as in :func:`twn_code`, bits in 2 … 8 → float, x's shape.
    Source: the 4 … 7-bit branch of KD-QAT's ``utils_quant.py``; the papers do not describe it.

    >>> clamped_uniform([[0.5, -2.0, 2.0, -4.0]], bits=2).tolist()
    [[0.0, -2.6666666666666665, 2.6666666666666665, -5.333333333333333]]
    >>> clamped_uniform([[0.5, -2.0, 2.0, -4.0]], bits=2, outermost="bounded").tolist()
    [[0.0, -2.6666666666666665, 2.6666666666666665, -2.6666666666666665]]
    """
    bits = checks.whole(bits, "bits", "T-3", low=2, high=8)
    checks.choice(outermost, OUTERMOST, "outermost", "T-3")
    X = clipped(x, clip, "T-3")
    over = axes(X, granularity, "T-3")
    a = np.abs(X)
    m = mean_where(a, np.ones(X.shape, np.bool_), over)
    α = np.maximum(mean_where(a, a > m, over), m)  # (T.5); the mean of what is above m is above m, or there is none
    δ = 2 * α / (2**bits - 1)
    k = np.rint(np.clip(X, -α, α) / np.where(δ > 0, δ, 1))  # (T.6)
    last = 2 ** (bits - 1)
    k = np.where(a >= AT_THE_MEAN * α, np.sign(X) * last, k)
    last = last - 1 if outermost == "bounded" else last
    return np.asarray(δ * np.clip(k, -last, last))


def min_max(
    x: npt.ArrayLike,
    /,
    *,
    bits: int = 8,
    scheme: MinMaxScheme = "symmetric",
    granularity: Sharing = "tensor",
    clip: float | None = None,
    epsilon: float = 0.0,
) -> F64:
    """The nearest of equally spaced values between the extremes.  [T-4, T-4a]

        symmetric    lo = 0,      r = max|x| + ε,        n = 2^(b−1) − 1                                (T.7)
        asymmetric   lo = min x,  r = max x − lo + ε,    n = 2^b − 1                                    (T.8)
        x̂ = lo + r (round(n (x − lo) / r) / n)                                                          (T.9)

    In the symmetric scheme the largest magnitude comes back to the last bit [T-4a], and the error is at most r / 2n.
    With r = 0 every value is lo. The published symmetric code rounds n/r first, then the product; the published
    asymmetric one has ε = 10⁻⁸, which vanishes next to the range in float32 and not in float64: an x in the middle of
    the range is then a tie in one and none in the other. Hence the default ε = 0. It is meant to be small: it moves
    the far end of the range away from its value.

    Shapes: x as in :func:`twn_code`, bits 2 … 8, or from 1 for asymmetric → float, x's shape. n r must be finite.
    Unlike Q's asymmetric grid, lo itself is a level, and 0 need not be one.

    >>> min_max([[-2.0, 0.7, 127.0]]).tolist(), min_max([[1.0, 2.2, 4.0]], bits=2, scheme="asymmetric").tolist()
    ([[-2.0, 1.0, 127.0]], [[1.0, 2.0, 4.0]])
    """
    checks.choice(scheme, MIN_MAX_SCHEMES, "scheme", "T-4")
    bits = checks.whole(bits, "bits", "T-4", low=2 if scheme == "symmetric" else 1, high=8)
    ε = checks.number(epsilon, "epsilon", "T-4", low=0.0)
    X = clipped(x, clip, "T-4")
    over = axes(X, granularity, "T-4")
    hi, lo = (f(X, axis=over, keepdims=True, initial=0.0) if X.size == 0 else f(X, axis=over, keepdims=True)
              for f in (np.max, np.min))  # fmt: skip
    with np.errstate(over="ignore"):
        if scheme == "symmetric":
            r, n, lo = np.maximum(hi, -lo) + ε, 2 ** (bits - 1) - 1, np.zeros_like(lo)  # (T.7)
        else:
            r, n = hi - lo + ε, 2**bits - 1  # (T.8)
        if not np.isfinite(n * r).all():
            raise SpecError("T-4", f"{n} times the range {r.max():.4g} overflows")
    k = np.rint(n * (X - lo) / np.where(r > 0, r, 1))
    return np.asarray(lo + r * (k / n))  # (T.9)


def straight_through(grad: npt.ArrayLike, x: npt.ArrayLike, /, *, clip: float | None) -> F64:
    """Gradient of any quantizer of this chapter with respect to its input.  [T-5]

        ∂L/∂x = ∂L/∂x̂ [−clip < x < clip]                                                               (T.10)

    The rounding counts as the identity, α, Δ and ranges as constants; at the clip itself the gradient is cut, as in
    the published code. Without a clip everything passes.

    Shapes: grad = ∂L/∂x̂ and x of one shape → float.

    >>> straight_through([1.0, 2.0, 3.0], [-2.5, 2.0, 9.0], clip=2.5).tolist()
    [0.0, 2.0, 0.0]
    """
    D, X = checks.finite(grad, "grad", "T-5"), checks.finite(x, "x", "T-5")
    if D.shape != X.shape:
        raise SpecError("T-5", f"grad {D.shape} and x {X.shape} must have one shape")
    if clip is None:
        return D
    c = checks.number(clip, "clip", "T-5", low=0.0, above=True)
    return np.where(np.abs(X) < c, D, 0.0)  # (T.10)
