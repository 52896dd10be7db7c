"""Chapter C, second half: patches by singular values."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from lowbit.conformance import compare, strategies
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array, PatchProblem
from lowbit.reference.types import LowRank

SPLITS = st.sampled_from(["balanced", "left"])


def check_shapes(kit: Kit, patch: LowRank[Array], d: Array, rank: int) -> None:
    """B (m, r), A (r, k), finite."""
    shapes, wanted = (patch.B.shape, patch.A.shape), ((d.shape[0], rank), (rank, d.shape[1]))
    kit.require(shapes == wanted, f"factors have shapes {shapes}, expected {wanted}")
    kit.require(bool(np.all(np.isfinite(patch.B)) and np.all(np.isfinite(patch.A))), "a factor is not finite")


def check_residual(
    kit: Kit, d: Array, patch: LowRank[Array], scale: Array, rank: int, amplification: float = 1.0
) -> None:
    """‖(D − BA) diag(scale)‖_F against the tail of the spectrum of D diag(scale)."""
    target = d.astype(np.float64) * scale
    product = patch.B.astype(np.float64) @ patch.A.astype(np.float64)
    reached = float(np.linalg.norm((d - product) * scale))
    tail = np.linalg.svd(target, compute_uv=False)[rank:]
    u = kit.u(d, result=patch.B)
    allowed = compare.residual_gap(float(np.linalg.norm(target)), max(d.shape), u, amplification)
    kit.check(compare.certificate(reached, float(np.linalg.norm(tail)), allowed + kit.tiny(d.size), "residual norm"))


@clause("C-4", tier="certificate", problem=strategies.patch_problems(), split=SPLITS)
def test_truncated_svd_is_optimal(kit: Kit, problem: PatchProblem, split: str) -> None:
    """‖D − BA‖ is the norm of the singular values left out; basis, signs and order are the backend's own."""
    patch = kit.call("svd_patch", problem.d, rank=problem.rank, split=split)
    check_shapes(kit, patch, problem.d, problem.rank)
    check_residual(kit, problem.d, patch, np.ones(problem.d.shape[1]), problem.rank)


@clause("C-4a", tier="forward-error", problem=strategies.patch_problems())
def test_split_of_the_singular_values(kit: Kit, problem: PatchProblem) -> None:
    """balanced: BᵀB and AAᵀ are both diag(σ_r); left: A Aᵀ is the identity and BᵀB is diag(σ_r²).

    Up to the order of the columns, which is descending; by Weyl each σ is determined, repeated or not.
    """
    d, rank = problem.d, problem.rank
    sigma = np.linalg.svd(d.astype(np.float64), compute_uv=False)
    for split in ("balanced", "left"):
        patch = kit.call("svd_patch", d, rank=rank, split=split)
        b, a = patch.B.astype(np.float64), patch.A.astype(np.float64)
        u = kit.u(d, result=patch.B)
        slip = compare.weyl(float(sigma[0]), 4 * max(d.shape), u) + kit.tiny(d.size)
        if split == "left":
            kit.check(compare.forward(a @ a.T, np.eye(rank), compare.gamma(4 * max(d.shape), u), "A Aᵀ"))
            kit.check(compare.forward(b.T @ b, np.diag(sigma[:rank] ** 2), 2 * slip * sigma[0] + slip**2, "BᵀB"))
        else:
            kit.check(compare.forward(b.T @ b, np.diag(sigma[:rank]), slip, "BᵀB"))
            kit.check(compare.forward(a @ a.T, np.diag(sigma[:rank]), slip, "A Aᵀ"))


@st.composite
def channel_scales(draw: st.DrawFn) -> tuple[PatchProblem, Array]:
    """A patch problem and a scale per channel, powers of two times small odd numbers, some of them zero."""
    problem = draw(strategies.patch_problems())
    k = problem.d.shape[1]
    odd = draw(st.lists(st.sampled_from([0, 1, 3, 5]), min_size=k, max_size=k))
    shift = draw(st.lists(st.integers(-5, 5), min_size=k, max_size=k))
    return problem, np.ldexp(np.array(odd, np.float64), shift).astype(problem.d.dtype)


@clause("C-5", tier="certificate", case=channel_scales(), split=SPLITS)
def test_scaled_svd_is_optimal_in_scaled_columns(kit: Kit, case: tuple[PatchProblem, Array], split: str) -> None:
    """‖(D − BA) diag(a)‖ is the tail of D diag(a): unscaling is by division, and hits A."""
    problem, scale = case
    patch = kit.call("scaled_svd_patch", problem.d, scale, rank=problem.rank, split=split)
    check_shapes(kit, patch, problem.d, problem.rank)
    check_residual(kit, problem.d, patch, scale.astype(np.float64), problem.rank)


@clause("C-5a", tier="exact", case=channel_scales(), split=SPLITS)
def test_channels_of_scale_zero_get_no_patch(kit: Kit, case: tuple[PatchProblem, Array], split: str) -> None:
    """Where the activations are never there, A has exact zeros instead of 0/0."""
    problem, scale = case
    patch = kit.call("scaled_svd_patch", problem.d, scale, rank=problem.rank, split=split)
    dead = scale == 0
    kit.check(compare.exact(patch.A[:, dead], np.zeros((problem.rank, int(dead.sum()))), "A in dead channels"))
