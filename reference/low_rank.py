"""C, continued: rank-r patches W ≈ Ŵ + B A of a compression error D = W − Ŵ that ignore the inputs, or only scale.

D is formed in float32 or better, by the caller: a difference taken in float16 is already the wrong D.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from . import checks
from .checks import F64, Array
from .errors import SpecError
from .types import LowRank, Split

__all__ = ["scaled_svd_patch", "svd_patch"]


def truncated(D: F64, r: int, split: Split) -> LowRank[Array]:
    """The r largest singular triplets as two factors."""
    U, σ, Vt = np.linalg.svd(D, full_matrices=False)  # (C.5)
    U, σ, Vt = U[:, :r], σ[:r], Vt[:r]
    if split == "left":
        return LowRank(U * σ, Vt)  # (C.6)
    return LowRank(U * np.sqrt(σ), np.sqrt(σ)[:, None] * Vt)  # (C.7)


def svd_patch(d: npt.ArrayLike, /, *, rank: int, split: Split = "balanced") -> LowRank[Array]:
    """Best rank-r patch for weights that see white inputs.  [C-4]

        D = U diag(σ) Vᵀ,  σ descending                                                                 (C.5)
        left:      B = U_r diag(σ_r),         A = V_rᵀ                                                  (C.6)
        balanced:  B = U_r diag(σ_r)^½,       A = diag(σ_r)^½ V_rᵀ                                      (C.7)

    Shapes: d (m, k) → B (m, r), A (r, k), 1 ≤ r ≤ min(m, k). Compare products: factors have free signs.
    Source: Yao et al. 2023, ZeroQuant-V2 (LoRC), with (C.6); NVlabs/EoRA ``llama_sequential_svd`` uses (C.7).

    >>> B, A = svd_patch([[3.0, 0.0], [0.0, 1.0]], rank=1)
    >>> np.round(B @ A, 12).tolist()
    [[3.0, 0.0], [0.0, 0.0]]
    """
    checks.choice(split, ("balanced", "left"), "split", "C-4")
    D = checks.finite(d, "d", "C-4", ndim=2)
    return truncated(D, checks.rank(rank, D.shape, "C-4"), split)


def scaled_svd_patch(
    d: npt.ArrayLike, channel_scale: npt.ArrayLike, /, *, rank: int, split: Split = "balanced"
) -> LowRank[Array]:
    """Patch that weighs each input channel: best when the channels are uncorrelated with E[x_j²] ∝ a_j².  [C-5]

        B A = svd_r(D diag(a)) diag(a)⁻¹,   A_:j = 0 where a_j = 0                                      (C.8)

    Shapes: d (m, k), channel_scale (k,) ≥ 0 → B (m, r), A (r, k). A common factor of a cancels.
    The usual a_j is the mean of |x_j| (moment_total().magnitude); the optimum for a diagonal moment is the root
    mean square. A channel that is always 0 makes the published matrix inverse raise; here the patch leaves it alone.
    Source: Act-S of Liu et al. 2024 (after ASVD and LQER); NVlabs/EoRA ``llama_sequential_activation``.

    >>> B, A = scaled_svd_patch([[3.0, 1.0], [0.0, 5.0]], [1.0, 0.0], rank=1)
    >>> np.round(B @ A, 12).tolist()
    [[3.0, 0.0], [0.0, 0.0]]
    """
    checks.choice(split, ("balanced", "left"), "split", "C-5")
    D = checks.finite(d, "d", "C-5", ndim=2)
    r = checks.rank(rank, D.shape, "C-5")
    a = checks.finite(channel_scale, "channel_scale", "C-5", ndim=1)
    if a.shape != (D.shape[1],):
        raise SpecError("C-5", f"channel_scale must have shape {(D.shape[1],)}, got {a.shape}")
    if (a < 0).any():
        raise SpecError("C-5", f"channel_scale must be >= 0, got {a.min()}")
    B, A = truncated(D * a, r, split)
    return LowRank(B, np.divide(A, a, out=np.zeros_like(A), where=a > 0))  # (C.8)
