"""Where methods meet: one chapter's prediction tested on another chapter's result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lowbit.reference as ref
from lowbit.reference.types import BinaryMethod, LowRank

from .bounds import LAW, Array, factorisation, near, psd

seeds = st.integers(0, 10**6)


def coded(w: Array, *, bits: int, method: BinaryMethod = "alternating") -> Array:
    """The weight that a binary code stands for."""
    code = ref.bcq(w, bits=bits, method=method)
    return ref.bcq_weight(code.codes, code.scale, code.offset)


# --- E on B: compensation of a binary code ----------------------------------------------------------------------------


@LAW
@given(seeds, st.integers(1, 3), st.integers(1, 4))
def test_eora_of_the_error_of_a_binary_code(seed: int, bits: int, rank: int) -> None:
    """W ≈ Σ α B + B A: the patch leaves the tail of the spectrum, so it never hurts and more ranks never hurt."""
    g = np.random.default_rng(seed)
    w, C = g.standard_normal((6, 12)), psd(g, 12)
    D = w - coded(w, bits=bits)
    alone = ref.objective(D, C)
    B, A = ref.eora(D, C, rank=rank)
    left = ref.objective(D - B @ A, C)
    near(left, ref.optimum(D, C, rank=rank), roundings=factorisation(12), magnitude=alone)
    assert left < alone
    more = ref.eora(D, C, rank=rank + 1)
    assert ref.objective(D - more.B @ more.A, C) <= left * (1 + 2.0**-30) + alone * 2.0**-40


# --- D on N and E: DoRA around a compensated, quantized base ----------------------------------------------------------


@LAW
@given(seeds)
def test_dora_of_a_compensated_base_starts_where_eora_ends(seed: int) -> None:
    """m = ‖Q + B A‖ by rows: step 0 is Q + B A to the last bit. With the magnitude of Q alone it is another model."""
    g = np.random.default_rng(seed)
    w, C = g.standard_normal((8, 64)), psd(g, 64)
    scale, levels = ref.block_scale(w), ref.normal_float(bits=2)
    base = ref.dequantize_blocks(ref.quantize_blocks(w, scale, levels), scale, levels)
    B, A = ref.eora(w - base, C, rank=3)
    m = ref.dora_norm(base, B, A, scaling=1.0)
    start = ref.dora_weight(base, B, A, m, scaling=1.0)
    assert np.array_equal(start, base + B @ A)
    near(
        ref.objective(w - start, C), ref.optimum(w - base, C, rank=3), roundings=factorisation(64),
        magnitude=ref.objective(w - base, C),
    )  # fmt: skip
    wrong = ref.dora_weight(base, B, A, ref.dora_magnitude(base), scaling=1.0)
    assert np.abs(wrong - start).max() > 1e-3


# --- B and U on H: codes of rotated weights ---------------------------------------------------------------------------

ANCHORS: dict[tuple[BinaryMethod, int], float] = {
    ("greedy", 1): 1 - 2 / np.pi, ("greedy", 2): 0.1310, ("greedy", 3): 0.0588, ("greedy", 4): 0.0332,
    ("alternating", 2): 0.1179, ("alternating", 3): 0.0371,
}  # fmt: skip
"""Relative squared errors of the codes of a Gaussian population."""


@pytest.mark.parametrize("method, bits", ANCHORS)
def test_a_rotation_makes_the_gaussian_errors_predictions(method: BinaryMethod, bits: int) -> None:
    """Columns of very different size: mixtures before, Gaussian rows of one size behind a random Hadamard rotation."""
    g = np.random.default_rng(0)
    w = g.standard_normal((48, 1024)) * np.exp(0.75 * g.standard_normal(1024))
    turned = ref.rotate_inputs(w, ref.random_hadamard(order=1024, seed=1))

    def relative(v: Array) -> float:
        return float(((coded(v, bits=bits, method=method) - v) ** 2).sum() / (v**2).sum())

    expected = ANCHORS[method, bits]
    assert abs(relative(turned) - expected) < 0.04 * expected
    assert relative(w) > 1.2 * expected


@LAW
@given(seeds, st.integers(1, 3))
def test_scales_are_tuned_in_the_rotated_basis_as_in_any_other(seed: int, bits: int) -> None:
    """x Ŵᵀ = (x R)(Ŵ R)ᵀ: the error of a rotated code is that of its weight rotated back, before tuning and after."""
    g = np.random.default_rng(seed)
    w, C, R = g.standard_normal((3, 16)), psd(g, 16), ref.random_hadamard(order=16, seed=seed)
    turned, seen = ref.rotate_inputs(w, R), R.T @ C @ R
    code = ref.bcq(turned, bits=bits, method="greedy")
    tuned = ref.fit_scales(turned, seen, code.codes, code.scale, ref.trainable_scales(code.scale))
    errors = []
    for scale in (code.scale, tuned):
        made = ref.bcq_weight(code.codes, scale, None)
        errors.append(ref.objective(turned - made, seen))
        back = ref.rotate_inputs(made, R.T)
        near(ref.objective(w - back, C), errors[-1], roundings=factorisation(16), magnitude=ref.objective(w, C))
    assert errors[1] <= errors[0] * (1 + 2.0**-40)


# --- K on E: what an allocation promises is what patches leave --------------------------------------------------------


@LAW
@given(seeds, st.integers(0, 12))
def test_the_objective_of_an_allocation_is_the_error_that_its_patches_leave(seed: int, ranks: int) -> None:
    g = np.random.default_rng(seed)
    modules = [(g.standard_normal((6, 8)) * 2.0 ** g.integers(-2, 3), psd(g, 8)) for _ in range(3)]
    S = np.stack([ref.error_spectrum(D, C) for D, C in modules])
    importance = g.integers(1, 5, 3).astype(float)
    cost = ref.rank_cost([[6, 8]] * 3)
    chosen = ref.allocate_greedy(S, importance, cost, [0] * 3, [6] * 3, budget=14 * ranks)
    left = 0.0
    for (D, C), weight, rank in zip(modules, importance, chosen.tolist(), strict=True):
        patch = ref.eora(D, C, rank=rank) if rank else None
        left += weight * ref.objective(D if patch is None else D - patch.B @ patch.A, C)
    whole = ref.allocation_objective(S, importance, [0] * 3)
    near(ref.allocation_objective(S, importance, chosen), left, roundings=factorisation(8), magnitude=whole)


def test_ranks_follow_inputs_that_drift() -> None:
    """Re-allocation during training: drop what is worth least of what is held, add the best of what is left.

    The second moments change twice. Ranks that move by two at a time end where an allocation made from nothing would
    put them, give or take one, and the adapters leave less than half of what adapters leave that stayed as they were.
    """
    g = np.random.default_rng(4)
    J, m, k, uniform = 5, 10, 14, 4
    errors = [g.standard_normal((m, k)) * 2.0 ** g.integers(-1, 2) for _ in range(J)]
    low, high, ones = np.zeros(J, int), np.full(J, 10), np.ones(J)
    cost = ref.rank_cost([[m, k]] * J)
    P = int(cost.sum()) * uniform
    moments = [[psd(g, k) * 2.0 ** g.integers(-1, 2) for _ in range(J)] for _ in range(3)]
    patches: list[LowRank[Any]] = [ref.eora(D, C, rank=uniform) for D, C in zip(errors, moments[0], strict=True)]
    stayed = [B @ A for B, A in patches]
    ranks = np.full(J, uniform)

    def spectrum(D: Array, C: Array) -> Array:
        return np.sqrt(np.linalg.eigvalsh(D @ C @ D.T)[::-1].clip(0))

    for C in [c for c in moments[1:] for _ in range(3)]:
        made = [B @ A for B, A in patches]
        kept = np.stack([spectrum(p, c) for p, c in zip(made, C, strict=True)])
        left = np.stack([spectrum(D - p, c) for D, p, c in zip(errors, made, C, strict=True)])
        now = ref.reallocate_ranks(kept, left, ones, cost, low, high, ranks, budget=P, step=2)
        assert int(cost @ now) <= P
        assert (np.abs(now - ranks) <= 2).all()
        for j, r in enumerate(now.tolist()):
            old = patches[j]
            B, A = ref.nest_patch(old.B, old.A, C[j])
            if r < ranks[j]:
                patches[j] = LowRank(B[:, :r], A[:r])
            elif r > ranks[j]:
                more = ref.eora(errors[j] - B @ A, C[j], rank=r - int(ranks[j]))
                patches[j] = LowRank(np.concatenate([B, more.B], axis=1), np.concatenate([A, more.A]))
        ranks = now

    def total(products: list[Array]) -> float:
        return sum(ref.objective(D - p, c) for D, p, c in zip(errors, products, moments[-1], strict=True))

    S = np.stack([ref.error_spectrum(D, c) for D, c in zip(errors, moments[-1], strict=True)])
    fresh = ref.allocate_greedy(S, ones, cost, low, high, budget=P)
    best = ref.allocation_objective(S, ones, fresh)
    moved = total([B @ A for B, A in patches])
    assert (np.abs(ranks - fresh) <= 1).all()
    assert best <= moved < 0.5 * total(stayed)


# --- E on H: compensation does not see a rotation ---------------------------------------------------------------------


@LAW
@given(seeds, st.integers(1, 4))
def test_eora_of_rotated_inputs_is_the_rotated_patch(seed: int, rank: int) -> None:
    """D → D R, C → Rᵀ C R: B stays, A → A R, and what is left is the same."""
    g = np.random.default_rng(seed)
    D, C, R = g.standard_normal((5, 12)), psd(g, 12), ref.random_orthogonal(order=12, seed=seed)
    s = ref.error_spectrum(D, C)
    one, other = ref.eora(D, C, rank=rank), ref.eora(D @ R, R.T @ C @ R, rank=rank)
    gap = 1 - (s[rank] / s[rank - 1]) ** 2
    size = np.linalg.norm(D) / gap * (s[0] / s[rank - 1]) ** 2
    near(one.B @ one.A @ R, other.B @ other.A, roundings=factorisation(12), magnitude=size)
    near(
        ref.objective(D - one.B @ one.A, C), ref.objective(D @ R - other.B @ other.A, R.T @ C @ R),
        roundings=factorisation(12), magnitude=ref.objective(D, C),
    )  # fmt: skip
