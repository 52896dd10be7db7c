"""O: StatsQ, a weight quantizer whose step is a statistic of the weights and not a parameter.

    α = 2 · mean |W|                          one for every index of axis −2, over all other axes        (O.1)
    k = clip(⌊n W / α − ½⌉, −n, n − 1)        n = 2^(bits − 1), half to even                             (O.2)
    Ŵ = α (k + ½) / n                                                                                    (O.3)

2^bits levels ±α/2n, ±3α/2n, …, symmetric and without a zero; the thresholds between them are the multiples of α/n. On
uniformly distributed weights every level is equally frequent: the most information that so many bits can carry.
Clipping is at 2 · mean |W| whatever the width, so on Gaussian weights the error stops falling at about 4 bits.

The published code clips W/α to [−1, 1 − 10⁻⁶] and then rounds. Clamping the *code*, as here, says the same in exact
arithmetic and stays right where that does not: in half precision 1 − 10⁻⁶ is 1, and weights of α and more land on a
level that does not exist; with one bit weights of −α and less fall below the lowest. Nothing is ever computed below
float32. A row of zeros, NaN there, has scale, codes and values 0 here.

Deliberately not here: a clipping point that is learned. Source: Liu et al. 2023, Oscillation-free
Quantization for low-bit Vision Transformers (OFQ, arXiv 2302.02210), and its published code; the clamp of the code,
the answer to rows of zeros and (O.5) are ours.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from . import checks
from .checks import F64, Array
from .errors import SpecError
from .rounding import round_half_even
from .types import GRADIENT_PATHS, GradientPath, StatsCode

__all__ = ["statsq", "statsq_grad"]

MOST_BITS = 16


def scaled(w: npt.ArrayLike, bits: int, clause: str) -> tuple[F64, F64, F64, int]:
    """Checked W, its scales α, the weights v = n W / α in steps of the grid (0 where α is), and n."""
    n = 2 ** (checks.whole(bits, "bits", clause, low=1, high=MOST_BITS) - 1)
    W = checks.finite(w, "w", clause)
    if W.ndim < 2:
        raise SpecError(clause, f"w must have 2 dimensions or more, got shape {W.shape}")
    others = tuple(axis for axis in range(W.ndim) if axis != W.ndim - 2)
    count = W.size // W.shape[-2] if W.size else 1
    α: F64 = 2 * np.abs(W).sum(axis=others, keepdims=True) / count  # (O.1)
    return W, α, np.divide(n * W, α, out=np.zeros_like(W), where=α > 0), n


def nearest_code(v: F64, n: int) -> F64:
    """(O.2) of weights in steps of the grid."""
    return np.asarray(np.clip(round_half_even(v - 0.5), -n, n - 1))


def statsq(w: npt.ArrayLike, /, *, bits: int) -> StatsCode[Array]:
    """Quantize a weight to 2^bits levels around zero, the step from its mean magnitude.  [O-1, O-1a, O-1b, O-1c, O-2]

    (O.1) to (O.3). Shapes: w (..., m, k), 2 axes or more → values as w, codes int32 as w in −n … n − 1, scale
    (1, ..., m, 1). A matrix has one scale per row; a stack (s, m, k) one per index of its *middle* axis, shared by the
    stack, as in the published code.

    Half to even makes thresholds that are hit exactly go either way: 0 to the level above, n W / α = 1 to the level
    below, 2 above [O-1c]. bits 1 … 16. A row of zeros gives zeros [O-2a].

    >>> found = statsq([[1.0, -1.0, 0.0, 6.0]], bits=2)
    >>> found.scale.tolist(), found.codes.tolist(), found.values.tolist()
    ([[4.0]], [[0, -1, 0, 1]], [[1.0, -1.0, 1.0, 3.0]])
    """
    _, α, v, n = scaled(w, bits, "O-1")
    k = nearest_code(v, n)  # (O.2)
    return StatsCode(values=α * (k + 0.5) / n, codes=k.astype(np.int32), scale=α)  # (O.3)


def statsq_grad(w: npt.ArrayLike, grad: npt.ArrayLike, /, *, bits: int, path: GradientPath = "straight-through") -> F64:
    """Gradient of the loss for W from that for Ŵ.  [O-3, O-3a]

        straight-through   G                                                                             (O.4)
        scale              (2 sign W / N) Σ G (k + ½) / n         sum over the N weights that share α     (O.5)

    Shapes: w (..., m, k), grad as w → as w.
    ``straight-through`` is the published estimate: rounding and clipping count as the identity, clipped weights
    included, and α is a constant. ``scale`` is the derivative of (O.3) itself wherever it has one: between two
    thresholds codes are constant and only α moves. It says how the values of *frozen* weights still move with the
    others of their row, and training by it alone would never change a code.

    >>> statsq_grad([[1.0, -3.0]], [[0.5, 0.25]], bits=1).tolist()
    [[0.5, 0.25]]
    >>> statsq_grad([[1.0, -3.0]], [[0.5, 0.25]], bits=1, path="scale").tolist()
    [[0.125, -0.125]]
    """
    checks.choice(path, GRADIENT_PATHS, "path", "O-3")
    W, α, v, n = scaled(w, bits, "O-3")
    G = checks.finite(grad, "grad", "O-3")
    if G.shape != W.shape:
        raise SpecError("O-3", f"grad {G.shape} must have the shape of w, {W.shape}")
    if path == "straight-through":
        return G  # (O.4)
    others = tuple(axis for axis in range(W.ndim) if axis != W.ndim - 2)
    pull = (G * (nearest_code(v, n) + 0.5) / n).sum(axis=others, keepdims=True)
    return np.asarray(2 * np.sign(W) * pull / max(W.size // α.size if α.size else 1, 1))  # (O.5)
