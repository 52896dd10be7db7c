"""F: errors of layers in one unit, the Kullback-Leibler divergence that they cause at the model's output.

The output error of chapter E, tr(D C Dᵀ), weighs inputs and takes every output of every layer for equally important, so
it ranks patches of one layer and says nothing between layers. Here the outputs are weighed too. With g the gradient of
the summed loss of a sequence at the outputs of a layer, labels drawn from the model's own distribution, and
G = mean of g gᵀ, C = mean of x xᵀ over the tokens, the Fisher information of the layer's weight is, per token and with
inputs and gradients taken as independent, G ⊗ C. A weight error D then costs, to second order and per token,

    KL ≈ ½ vec(D)ᵀ (G ⊗ C) vec(D) = ½ tr[G D C Dᵀ]                                                  (F.1)

and the costs of layers add. G is accumulated as C is, by :func:`~lowbit.reference.moments.moment_leaf` of gradients, so
its sums are exactly associative too. It is read with a damping,

    G_λ = G + λ I,   λ = damping · mean(diag G)                                                       (F.2)

since what a few thousand tokens did not show is not known to be free. Deliberately not here: the gradients themselves
(a recipe), cross terms between layers, and labels of a text (that is the empirical Fisher, another matrix).
Source: Martens and Grosse 2015, K-FAC (arXiv 1503.05671), for the factors; Tseng et al. 2025, YAQA (arXiv 2505.22988),
for their use on a model's own divergence. The patch and its spectrum are EoRA of G_λ^½ D, not in a paper known
to us.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from . import checks
from .checks import F64, I32, Array
from .eigenspace import eora_certified, error_spectrum
from .errors import SpecError
from .philox import philox_uniform
from .types import Compensation, Purpose

__all__ = ["divergence", "divergence_patch", "divergence_spectrum", "draw_labels"]


def root(g: npt.ArrayLike, m: int, damping: float, clause: str) -> tuple[F64, F64]:
    """R (p, m) with RᵀR = G_λ on the outputs that count, and its pseudo-inverse (m, p).  (F.2), (F.3)

    Eigenvalues of G a little below 0 are rounding and count as 0. Without damping all up to γ_max · min(1, m 2⁻²³) do,
    and their directions drop out: a mean summed in float32 cannot tell them from 0.
    """
    G = checks.definite(checks.second_moment(g, m, "g", clause), "g", clause)
    damping = checks.number(damping, "damping", clause, low=0.0)
    γ, V = np.linalg.eigh(G)
    if damping == 0:
        γ = np.where(γ > γ.max(initial=0.0) * min(1.0, m * 2.0**-23), γ, 0.0)
    γ = np.maximum(γ, 0.0) + damping * np.trace(G) / max(m, 1)  # (F.2)
    kept = γ > 0
    s = np.sqrt(γ[kept])
    return s[:, None] * V[:, kept].T, V[:, kept] / s


def divergence(d: npt.ArrayLike, c: npt.ArrayLike, g: npt.ArrayLike, /) -> float:
    """½ tr(G D C Dᵀ): nats per token that the weight error d costs at the model's output.  [F-1]  (F.1)

    Shapes: d (m, k), c (k, k), g (m, m), means over tokens. No damping: this predicts, it does not decide. Rounding may
    leave it a little below 0.

    >>> divergence([[1.0, 2.0]], [[1.0, 0.0], [0.0, 10.0]], [[4.0]])
    82.0
    """
    D = checks.finite(d, "d", "F-1", ndim=2)
    C = checks.definite(checks.second_moment(c, D.shape[1], "c", "F-1"), "c", "F-1")
    G = checks.definite(checks.second_moment(g, D.shape[0], "g", "F-1"), "g", "F-1")
    return float(((G @ D @ C) * D).sum() / 2)


def divergence_spectrum(d: npt.ArrayLike, c: npt.ArrayLike, g: npt.ArrayLike, /, *, damping: float = 0.1) -> F64:
    """Singular values of R D C^½ / √2, descending: what each rank of a patch buys, in nats.  [F-2]

        R ᵀ R = G_λ,     Σ_{i>r} σ_i² = min over B, A of ½ tr[G_λ (D − BA) C (D − BA)ᵀ]                (F.3)

    Shapes: d (m, k), c (k, k), g (m, m), damping ≥ 0 → (min(m, k),). Values of layers compare, so one list of all σ²
    over their bytes allocates ranks.

    >>> divergence_spectrum([[1.0, 0.0], [0.0, 2.0]], np.eye(2), [[8.0, 0.0], [0.0, 0.5]], damping=0.0).tolist()
    [2.0, 1.0]
    """
    D = checks.finite(d, "d", "F-2", ndim=2)
    C = checks.definite(checks.second_moment(c, D.shape[1], "c", "F-2"), "c", "F-2")
    R, _ = root(g, D.shape[0], damping, "F-2")
    values = np.zeros(min(D.shape))
    found = error_spectrum(R @ D, C) / np.sqrt(2)  # (F.3)
    values[: len(found)] = found[: len(values)]
    return values


def divergence_patch(
    d: npt.ArrayLike,
    c: npt.ArrayLike,
    g: npt.ArrayLike,
    /,
    *,
    rank: int,
    damping: float = 0.1,
    tolerance: float = 1e-6,
) -> Compensation[Array]:
    """The rank-r patch that costs the model least, with a proof.  [F-3]

        BA = R⁺ U_r U_rᵀ R D,     U_r the r leading eigenvectors of (R D) C (R D)ᵀ                      (F.4)

    Shapes: d (m, k), c (k, k), g (m, m) → B (m, r), A (r, k), 1 ≤ r ≤ min(m, k); objective and lower bound in the unit
    of (F.1) for G_λ, as :func:`~lowbit.reference.eigenspace.eora_certified` means them. Any R with RᵀR = G_λ gives the
    same product. Where nothing tells outputs or inputs apart the two sides differ, on purpose: on null(G_λ), which only
    damping = 0 leaves, the patch is 0, since R⁺ is; on null(C) it continues the projection, as EoRA does.
    With G = I and damping = 0 this is EoRA, its objective halved.

    >>> found = divergence_patch([[1.0, 0.0], [0.0, 2.0]], np.eye(2), [[100.0, 0.0], [0.0, 1.0]], rank=1, damping=0.0)
    >>> np.round(found.B @ found.A, 12).tolist()    # EoRA would keep the 2
    [[1.0, 0.0], [0.0, 0.0]]
    """
    D = checks.finite(d, "d", "F-3", ndim=2)
    C = checks.definite(checks.second_moment(c, D.shape[1], "c", "F-3"), "c", "F-3")
    r = checks.rank(rank, D.shape, "F-3")
    R, inverse = root(g, D.shape[0], damping, "F-3")
    padded = np.zeros_like(D)  # as many rows as D, so that every rank of D is one of R D
    padded[: len(R)] = R @ D
    B, A, objective, bound, method = eora_certified(padded, C, rank=r, tolerance=tolerance)
    return Compensation(inverse @ B[: len(R)], A, objective / 2, bound / 2, method)  # (F.4)


def draw_labels(logits: npt.ArrayLike, /, *, seed: int, first: int = 0) -> I32:
    """A label for every position, drawn from the model's own distribution.  [F-4]

        y_t = least y with Σ_{i≤y} p_i > u_t,   p = softmax(logits_t),   u_t = u' + 2⁻²⁴ u''              (F.5)

    u' and u'' are the first two uniforms at the address (first + t, 0, 0, Purpose.LABEL), so a draw depends on the
    position alone and not on how positions are grouped. 48 bits, because a vocabulary has tokens rarer than 2⁻²⁴. A
    token of probability 0 is never drawn; where rounding leaves the sum below u_t, the last one with a probability is.

    Shapes: logits (T, V), V ≥ 1, finite; seed in 0 … 2⁶⁴ − 1, first ≥ 0 → int32 (T,).

    >>> draw_labels([[0.0, 800.0], [800.0, 0.0]], seed=0).tolist()
    [1, 0]
    """
    L = checks.finite(logits, "logits", "F-4", ndim=2)
    first = checks.whole(first, "first", "F-4", low=0, high=2**32 - max(len(L), 1))
    if L.shape[1] == 0:
        raise SpecError("F-4", f"logits of shape {L.shape} leave nothing to draw from")
    counters = np.zeros((len(L), 4), np.int64)
    counters[:, 0], counters[:, 3] = first + np.arange(len(L)), Purpose.LABEL
    u = philox_uniform(counters, seed=seed)
    p = np.exp(L - L.max(axis=1, keepdims=True))
    total = np.cumsum(p, axis=1)
    above = total > (u[:, 0] + u[:, 1] * 2.0**-24)[:, None] * total[:, -1:]  # (F.5)
    last = L.shape[1] - 1 - np.argmax(p[:, ::-1] > 0, axis=1)
    labels: I32 = np.where(above.any(axis=1), np.argmax(above, axis=1), last).astype(np.int32)
    return labels
