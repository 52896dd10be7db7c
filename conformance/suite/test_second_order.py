"""Chapter G: GPTQ, SparseGPT and Wanda.

A backend in float32 may round a weight to the other neighbour and everything after it then differs, so results are
never compared with the specification's. They are replayed: given the values a backend chose for the columns before,
eq. (K.1) says what each weight was when it was rounded, and the code must be the rounding of that.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from lowbit.conformance import compare, laws, strategies
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array, WeightProblem

SCHEMES = st.sampled_from(["asymmetric", "symmetric", "symmetric-full"])
DAMPING = 0.01
BITS = st.sampled_from([2, 3, 4, 8])


class Replay(NamedTuple):
    """A result replayed in float64; everything is in processing order."""

    order: Array  # (k,), original column at each position
    w: Array  # (m, k), dead columns zero
    q: Array  # (m, k), what the backend returned
    damped: laws.Damped
    hessian: Array  # (k, k)
    u: float

    def at(self, start: int) -> laws.Updated:
        """Weights just before position ``start``."""
        return laws.updated(self.w, self.q, self.hessian, start, kappa=self.damped.kappa, u=self.u)


def replay(kit: Kit, problem: WeightProblem, weight: Array, *, act_order: bool = False) -> Replay:
    """Prepare the replay of a result whose de-quantized weight is ``weight``."""
    w = problem.w.astype(np.float64)
    damped = laws.damped(problem.h, problem.damping)
    w[:, damped.dead] = 0.0
    order = laws.processing_order(damped.diagonal, act_order)
    hessian = damped.matrix[np.ix_(order, order)]
    u = kit.u(problem.w, problem.h, result=weight)
    return Replay(order, w[:, order], weight.astype(np.float64)[:, order], damped, hessian, u)


def check_rounding(kit: Kit, run: Replay, result: Any, *, bits: int, scheme: str, pruned: Array | None = None) -> None:
    """Every code is clip(round(w / s) + z) of the replayed weight, inside the band that rounding allows."""
    low, high = laws.code_range(bits, scheme)
    for position, column in enumerate(run.order):
        before = run.at(position)
        group = result.group_index[column]
        scale, zero = result.scale[:, group].astype(np.float64), result.zero_point[:, group]
        weight = before.weight[:, 0] if pruned is None else np.where(pruned[:, column], 0.0, before.weight[:, 0])
        ratio = weight / scale
        band = compare.tie_band(ratio, run.u, 2) + before.error[:, 0] / scale
        expected = np.clip(np.rint(ratio) + zero, low, high).astype(np.int32)
        kit.check(compare.codes(result.codes[:, column], expected, ratio, band, f"codes of column {column}"))


def check_scales(kit: Kit, result: Any, group: int, values: Array, error: Array, u: float, **grid: Any) -> None:
    """Scale and zero point of one group are those of ``values`` (m, g), which may be off by ``error``."""
    scale, zero = result.scale[:, group].astype(np.float64), result.zero_point[:, group]
    found = kit.spec.fit_grid(values, **grid)
    off = error.max(axis=1)
    lo, hi = np.minimum(values.min(axis=1), 0.0), np.maximum(values.max(axis=1), 0.0)
    levels = 2 ** grid["bits"] - 1
    unit = 2 ** (grid["bits"] - 1) - 1 if grid["scheme"] == "symmetric" else levels
    span = hi - lo if grid["scheme"] == "asymmetric" else 2 * np.maximum(hi, -lo)
    clear = span > 2 * off  # else the group may be all zero, or not, by rounding
    allowed = (2 * off + compare.gamma(4, u) * span) / unit + kit.tiny(2)
    kit.check(
        compare.forward(
            np.where(clear, scale, 0.0), np.where(clear, found.scale[:, 0], 0.0), allowed, f"scale of group {group}"
        )
    )
    if grid["scheme"] == "asymmetric":
        ratio = -lo / scale
        band = compare.tie_band(ratio, u, 2) + off / scale
        expected = np.where(clear, np.rint(ratio), zero)
        kit.check(compare.codes(zero, expected, ratio, band, f"zero point of group {group}"))
    else:
        kit.check(compare.exact(zero, np.zeros_like(zero), f"zero point of group {group}"))


# -- G-1 ---------------------------------------------------------------------------------------------------------------


@clause("G-1", tier="forward-error", problem=strategies.weight_problems(multiple=1))
def test_factor_of_the_damped_inverse(kit: Kit, problem: WeightProblem) -> None:
    """Uᵀ U H̃ = I, U upper triangular with a positive diagonal."""
    found = kit.call("inverse_cholesky", problem.h, damping=problem.damping)
    factor = found.factor.astype(np.float64)
    k = factor.shape[0]
    kit.require(factor.shape == problem.h.shape, f"factor has shape {factor.shape}")
    kit.check(compare.exact(np.tril(factor, -1), np.zeros_like(factor), "below the diagonal of the factor"))
    kit.require(bool(np.all(np.diag(factor) > 0)), "the diagonal of the factor is not positive")
    damped = laws.damped(problem.h, problem.damping)
    inverse = np.linalg.inv(damped.matrix)
    error = compare.inverse_sensitivity(k, damped.kappa, kit.u(problem.h, result=found.factor))
    allowed = error * np.linalg.norm(inverse)  # normwise: an inverse has no small relative error entry by entry
    kit.check(compare.forward(factor.T @ factor, inverse, allowed, "UᵀU"))


@clause("G-1a", tier="exact", problem=strategies.weight_problems(multiple=1))
def test_dead_columns_are_found(kit: Kit, problem: WeightProblem) -> None:
    """dead marks the zeros of the diagonal; a dead column is decoupled in the factor and gets a finite pivot."""
    found = kit.call("inverse_cholesky", problem.h, damping=problem.damping)
    dead = np.diag(problem.h) == 0
    kit.check(compare.exact(found.dead, dead, "dead"))
    kit.require(found.dead.dtype == np.bool_, f"dead has dtype {found.dead.dtype}, expected bool")
    kit.require(bool(np.all(np.isfinite(found.factor))), "the factor is not finite")
    off = found.factor - np.diag(np.diag(found.factor))
    kit.check(compare.exact(off[dead], np.zeros_like(off[dead]), "row of a dead column"))


@clause("G-1a", tier="exact", dtype=strategies.WIDE_FLOATS)
def test_damping_uses_the_mean_after_the_repair(kit: Kit, dtype: str) -> None:
    """diag(0, 3, 0, 0) becomes diag(1, 3, 1, 1) before its mean, 3/2, is taken: with damping 2 dead pivots are 1/2."""
    h = np.diag([0.0, 3.0, 0.0, 0.0]).astype(dtype)
    factor = kit.call("inverse_cholesky", h, damping=2.0).factor  # damp = 3: pivots 1/2 and 6^(−1/2)
    kit.check(compare.exact(np.diag(factor)[[0, 2, 3]], [0.5, 0.5, 0.5], "pivots of dead columns"))


# -- G-2 ---------------------------------------------------------------------------------------------------------------


@clause("G-2", tier="tie-band", problem=strategies.weight_problems(), bits=BITS, scheme=SCHEMES)
def test_codes_are_roundings_of_updated_weights(kit: Kit, problem: WeightProblem, bits: int, scheme: str) -> None:
    """Row grids come from the un-updated weight, codes from the replayed one; blocking is invisible."""
    for block in (3, 128):
        result = kit.call(
            "gptq", problem.w, problem.h, bits=bits, scheme=scheme, damping=problem.damping, block_size=block
        )
        run = replay(kit, problem, result.weight)
        kit.require(result.scale.shape == (problem.w.shape[0], 1), f"scale has shape {result.scale.shape}")
        kit.check(compare.exact(result.group_index, np.zeros(problem.w.shape[1]), "group_index"))
        none = np.zeros(problem.w.shape)
        check_scales(kit, result, 0, problem.w.astype(np.float64), none, run.u, bits=bits, scheme=scheme)
        check_rounding(kit, run, result, bits=bits, scheme=scheme)


@clause("G-2", tier="tie-band", problem=strategies.weight_problems(), bits=BITS, scheme=SCHEMES)
def test_uncorrelated_inputs_give_plain_rounding(kit: Kit, problem: WeightProblem, bits: int, scheme: str) -> None:
    """With a diagonal Hessian nothing is passed on, and GPTQ is rounding to nearest."""
    h = np.diag(np.diag(problem.h) + 1).astype(problem.h.dtype)
    result = kit.call("gptq", problem.w, h, bits=bits, scheme=scheme, act_order=True)
    ratio = problem.w.astype(np.float64) / result.scale
    low, high = laws.code_range(bits, scheme)
    expected = np.clip(np.rint(ratio) + result.zero_point, low, high).astype(np.int32)
    band = compare.tie_band(ratio, kit.u(problem.w, result=result.weight), 2)
    kit.check(compare.codes(result.codes, expected, ratio, band))


@clause("G-2a", tier="forward-error", problem=strategies.weight_problems(), bits=BITS, act_order=st.booleans())
def test_loss_is_half_the_quadratic_form(kit: Kit, problem: WeightProblem, bits: int, act_order: bool) -> None:
    """Σ (w − q)² / (2 U_ii²) = ½ tr[(W − Q) H̃ (W − Q)ᵀ], for whatever Q a backend returns."""
    result = kit.call("gptq", problem.w, problem.h, bits=bits, damping=problem.damping, act_order=act_order)
    run = replay(kit, problem, result.weight, act_order=act_order)
    value, _ = laws.quadratic_loss(run.w - run.q, run.hessian)
    allowed = loss_bound(kit, run)
    kit.check(compare.forward(float(result.loss), value, allowed, "loss"))


def loss_bound(kit: Kit, run: Replay) -> float:
    """Error of Σ e²/2: the replayed weights are off by ``error``, the pivots by the sensitivity of the inverse."""
    total, k = 0.0, run.order.size
    ε = compare.inverse_sensitivity(k, run.damped.kappa, run.u)
    for position in range(k):
        before = run.at(position)
        miss, off = (
            np.abs(before.weight[:, 0] - run.q[:, position]),
            before.error[:, 0] + run.u * np.abs(before.weight[:, 0]),
        )
        total += float(np.sum(2 * miss * off + off**2 + (ε + compare.gamma(k + 4, run.u)) * miss**2) / before.pivot[0])
    return total + kit.tiny(k)


@clause("G-2b", tier="forward-error", problem=strategies.weight_problems(), bits=BITS, scheme=SCHEMES)
def test_weight_is_what_the_codes_stand_for(kit: Kit, problem: WeightProblem, bits: int, scheme: str) -> None:
    """weight = scale[group_index] · (codes − zero_point[group_index]), codes inside their range."""
    result = kit.call("gptq", problem.w, problem.h, bits=bits, scheme=scheme, group_size=4, act_order=True, damping=0.1)
    check_weight(kit, result, problem, bits=bits, scheme=scheme)


def check_weight(kit: Kit, result: Any, problem: WeightProblem, *, bits: int, scheme: str) -> None:
    """The four code arrays agree with the weight array."""
    low, high = laws.code_range(bits, scheme)
    kit.require(bool(np.all((result.codes >= low) & (result.codes <= high))), "a code is outside its range")
    scale, zero = result.scale[:, result.group_index], result.zero_point[:, result.group_index]
    expected = scale.astype(np.float64) * (result.codes - zero)
    allowed = compare.gamma(1, kit.u(problem.w, result=result.weight)) * np.abs(expected) + kit.tiny()
    kit.check(compare.forward(result.weight, expected, allowed, "weight"))


@clause("G-2c", tier="tie-band", problem=strategies.weight_problems(), bits=BITS, dead=st.integers(0, 3))
def test_dead_columns_become_zero(kit: Kit, problem: WeightProblem, bits: int, dead: int) -> None:
    """A column without input has weight 0 and passes nothing on; the row grid was fit before it was zeroed."""
    h = problem.h.copy()
    h[dead, :] = h[:, dead] = 0
    w = problem.w.copy()
    w[:, dead] = 2 * np.abs(w).max() + 1  # would set every scale
    changed = WeightProblem(w, h, problem.damping)
    result = kit.call("gptq", w, h, bits=bits, damping=problem.damping)
    kit.check(compare.exact(result.weight[:, dead], np.zeros(w.shape[0]), f"weight of dead column {dead}"))
    run = replay(kit, changed, result.weight)
    none = np.zeros(w.shape)
    check_scales(kit, result, 0, w.astype(np.float64), none, run.u, bits=bits, scheme="asymmetric")
    check_rounding(kit, run, result, bits=bits, scheme="asymmetric")


# -- G-3, G-4 ----------------------------------------------------------------------------------------------------------


@clause(
    "G-3", tier="exact", diagonal=st.lists(st.integers(0, 4), min_size=2, max_size=12), dtype=strategies.WIDE_FLOATS
)
def test_order_of_columns(kit: Kit, diagonal: list[int], dtype: str) -> None:
    """With groups of one column, group_index *is* the order of work: by descending diagonal, ties and all."""
    k = len(diagonal)
    h = np.diag(diagonal).astype(dtype)
    w = np.linspace(-1.0, 1.0, k)[None].astype(dtype)
    expected = np.empty(k, np.int64)
    expected[laws.processing_order(laws.damped(h, 0.0).diagonal, True)] = np.arange(k)
    result = kit.call("gptq", w, h, bits=4, group_size=1, act_order=True)
    kit.check(compare.exact(result.group_index, expected, "group_index in act-order"))
    plain = kit.call("gptq", w, h, bits=4, group_size=1)
    kit.check(compare.exact(plain.group_index, np.arange(k), "group_index"))


@clause("G-3b", tier="tie-band", problem=strategies.weight_problems(), bits=[3, 4])
def test_act_order_replays(kit: Kit, problem: WeightProblem, bits: int) -> None:
    """Codes are the roundings of the weights updated in that order, groups are runs of visited columns."""
    result = kit.call(
        "gptq", problem.w, problem.h, bits=bits, group_size=4, act_order=True, damping=problem.damping, block_size=128
    )
    run = replay(kit, problem, result.weight, act_order=True)
    visited = np.empty(run.order.size, np.int64)
    visited[run.order] = np.arange(run.order.size) // 4
    kit.check(compare.exact(result.group_index, visited, "group_index"))
    check_rounding(kit, run, result, bits=bits, scheme="asymmetric")
    check_groups(kit, run, result, group_size=4, bits=bits, scheme="asymmetric")


def check_groups(
    kit: Kit, run: Replay, result: Any, *, group_size: int, bits: int, scheme: str, block_size: int | None = None
) -> None:
    """Dynamic groups: each grid is that of the weights as they stood at the start of the group, or of its block."""
    for group, start in enumerate(range(0, run.order.size, group_size)):
        seen = start if block_size is None else start // block_size * block_size
        before = run.at(seen)
        part = slice(start - seen, start - seen + group_size)
        check_scales(kit, result, group, before.weight[:, part], before.error[:, part], run.u, bits=bits, scheme=scheme)


@clause("G-3a", tier="tie-band", problem=strategies.weight_problems(), act_order=st.booleans(), scheme=SCHEMES)
def test_static_groups(kit: Kit, problem: WeightProblem, act_order: bool, scheme: str) -> None:
    """Groups are runs of original columns, their grids those of the un-updated weight with dead columns zeroed."""
    options: dict[str, Any] = {"bits": 3, "scheme": scheme, "group_size": 4, "damping": problem.damping}
    result = kit.call("gptq", problem.w, problem.h, **options, static_groups=True, act_order=act_order)
    run = replay(kit, problem, result.weight, act_order=act_order)
    k = problem.w.shape[1]
    kit.check(compare.exact(result.group_index, np.arange(k) // 4, "group_index of static groups"))
    original = np.empty_like(run.w)
    original[:, run.order] = run.w
    none = np.zeros((run.w.shape[0], 4))
    for group in range(k // 4):
        part = original[:, 4 * group : 4 * group + 4]
        check_scales(kit, result, group, part, none, run.u, bits=3, scheme=scheme)
    check_rounding(kit, run, result, bits=3, scheme=scheme)


@clause("G-4", tier="tie-band", problem=strategies.weight_problems(), bits=BITS, scheme=SCHEMES)
def test_group_scales(kit: Kit, problem: WeightProblem, bits: int, scheme: str) -> None:
    """`current` sees every update before the group, `block` only those of earlier blocks; codes follow either."""
    common: dict[str, Any] = {
        "bits": bits,
        "scheme": scheme,
        "group_size": 2,
        "damping": problem.damping,
        "block_size": 4,
    }
    for source in ("current", "block"):
        result = kit.call("gptq", problem.w, problem.h, **common, group_scales=source)
        run = replay(kit, problem, result.weight)
        kit.check(compare.exact(result.group_index, np.arange(run.order.size) // 2, "group_index"))
        block = 4 if source == "block" else None
        check_groups(kit, run, result, group_size=2, bits=bits, scheme=scheme, block_size=block)
        check_rounding(kit, run, result, bits=bits, scheme=scheme)


@clause("G-4a", tier="tie-band", problem=strategies.weight_problems(), scheme=SCHEMES)
def test_clip_search_gives_the_row_grid(kit: Kit, problem: WeightProblem, scheme: str) -> None:
    """Scale and zero point are, byte for byte, what the backend's own clip search (clause Q-5) finds; codes follow."""
    result = kit.call("gptq", problem.w, problem.h, bits=3, scheme=scheme, clip_search=True, damping=problem.damping)
    own = kit.call("clip_search", problem.w, bits=3, scheme=scheme)
    u = kit.u(problem.w, result=result.scale)
    allowed = compare.gamma(2, u) * own.scale  # the one division may be written out twice
    kit.check(compare.forward(result.scale, own.scale.astype(np.float64), allowed, "clipped scale"))
    kit.check(compare.exact(result.zero_point, own.zero_point, "clipped zero_point"))
    check_rounding(kit, replay(kit, problem, result.weight), result, bits=3, scheme=scheme)


# -- G-5 ---------------------------------------------------------------------------------------------------------------


def check_mask(kit: Kit, run: Replay, mask: Array, *, keep: int, of: int) -> None:
    """In every tuple the pruned saliencies W² / U² are the smallest, inside the band that rounding allows."""
    k = run.order.size
    counts = mask.reshape(mask.shape[0], -1, of).sum(axis=2)
    kit.check(compare.exact(counts, np.full(counts.shape, of - keep), "pruned weights of a tuple"))
    ε = compare.inverse_sensitivity(k, run.damped.kappa, run.u)
    for start in range(0, k, of):
        before = run.at(start)
        weight, off = before.weight[:, :of], before.error[:, :of]
        score = weight**2 / before.pivot[:of]
        band = (2 * np.abs(weight) * off + off**2) / before.pivot[:of] + (ε + compare.gamma(4, run.u)) * score
        check_smallest(kit, score, band, mask[:, start : start + of], f"saliency pruned in tuple {start}")


def check_smallest(kit: Kit, score: Array, band: Array, mask: Array, what: str) -> None:
    """Along the last axis no masked score exceeds an unmasked one by more than the two bands."""
    pair = mask[..., :, None] & ~mask[..., None, :]
    out, kept = (np.where(pair, s, 0.0) for s in (score[..., :, None], score[..., None, :]))
    kit.check(compare.choice(out, kept, band[..., :, None] + band[..., None, :] + kit.tiny(), what))


@clause(
    "G-5",
    tier="tie-band",
    problem=strategies.weight_problems(),
    pattern=[(2, 4), (1, 4), (1, 2), (4, 4)],
    block=[4, 8, 128],
)
def test_sparsegpt_prunes_and_updates(kit: Kit, problem: WeightProblem, pattern: tuple[int, int], block: int) -> None:
    """The mask is that of the replayed saliencies, pruned weights are 0, survivors are the updated weights."""
    keep, of = pattern
    result = kit.call("sparsegpt", problem.w, problem.h, keep=keep, of=of, damping=problem.damping, block_size=block)
    kit.require(result.codes is None and result.scale is None, "codes without bits")
    run = replay(kit, problem, result.weight)
    kit.check(compare.exact(result.weight[result.mask], np.zeros(result.mask.sum()), "pruned weights"))
    check_mask(kit, run, result.mask, keep=keep, of=of)
    for position in range(run.order.size):
        before, alive = run.at(position), ~result.mask[:, position]
        kit.check(
            compare.forward(
                result.weight[alive, position],
                before.weight[alive, 0],
                before.error[alive, 0] + run.u * np.abs(before.weight[alive, 0]) + kit.tiny(),
                f"surviving weights of column {position}",
            )
        )
    value, _ = laws.quadratic_loss(run.w - run.q, run.hessian)
    kit.check(compare.forward(float(result.loss), value, loss_bound(kit, run), "loss"))


@clause("G-5", tier="tie-band", dtype=strategies.WIDE_FLOATS, seed=st.integers(0, 999))
def test_saliency_weighs_by_the_pivot(kit: Kit, dtype: str, seed: int) -> None:
    """Inputs of very different power: the largest weights sit where they matter least."""
    random = np.random.default_rng(seed)
    power = random.permutation(np.ldexp(1.0, np.arange(8))).astype(dtype)
    w = ((1 + random.random((3, 8))) / power).astype(dtype)
    problem = WeightProblem(w, np.diag(power), DAMPING)
    result = kit.call("sparsegpt", w, problem.h, damping=DAMPING)
    check_mask(kit, replay(kit, problem, result.weight), result.mask, keep=2, of=4)


@clause(
    "G-5a", tier="exact", signs=st.lists(st.sampled_from([-1.0, 1.0]), min_size=8, max_size=8), keep=st.integers(1, 3)
)
def test_sparsegpt_ties_prune_the_lower_index(kit: Kit, signs: list[float], keep: int) -> None:
    """Equal weights on white inputs: every saliency of a tuple is the same number, the first of − keep go."""
    for dtype in ("float32", "float64"):
        w = np.array([signs], dtype)
        mask = kit.call("sparsegpt", w, np.eye(8, dtype=dtype), keep=keep, of=4).mask
        kit.require(mask.dtype == np.bool_, f"mask has dtype {mask.dtype}, expected bool")
        kit.check(compare.exact(mask, np.tile(np.arange(4) < 4 - keep, 2)[None], "mask of equal saliencies"))


@clause(
    "G-5b",
    tier="tie-band",
    problem=strategies.weight_problems(),
    bits=BITS,
    scheme=SCHEMES,
    group_size=[None, 4, 2],
    source=["current", "block"],
)
def test_sparsegpt_quantizes_survivors(
    kit: Kit, problem: WeightProblem, bits: int, scheme: str, group_size: int | None, source: str
) -> None:
    """Grids come from the dense weight, codes from the replay, and a pruned weight has the code of zero."""
    result = kit.call(
        "sparsegpt", problem.w, problem.h, bits=bits, scheme=scheme, group_size=group_size, group_scales=source,
        damping=problem.damping, block_size=8,
    )  # fmt: skip
    run = replay(kit, problem, result.weight)
    check_weight(kit, result, problem, bits=bits, scheme=scheme)
    kit.check(compare.exact(result.weight[result.mask], np.zeros(result.mask.sum()), "pruned weights"))
    check_mask(kit, run, result.mask, keep=2, of=4)
    if group_size is None:
        dense, none = problem.w.astype(np.float64), np.zeros(problem.w.shape)
        check_scales(kit, result, 0, dense, none, run.u, bits=bits, scheme=scheme)
    else:
        block = 8 if source == "block" else None
        check_groups(kit, run, result, group_size=group_size, bits=bits, scheme=scheme, block_size=block)
    check_rounding(kit, run, result, bits=bits, scheme=scheme, pruned=result.mask)


# -- G-6 ---------------------------------------------------------------------------------------------------------------

PATTERNS = st.sampled_from([(2, 4), (1, 4), (3, 4), (1, 2), (2, 2)])


@clause("G-6", tier="tie-band", w=strategies.matrices(columns=(4, 12), multiple=4), pattern=PATTERNS, data=st.data())
def test_wanda_prunes_the_smallest_scores(kit: Kit, w: Array, pattern: tuple[int, int], data: Any) -> None:
    """abs(w)·sqrt(moment): two roundings; survivors keep their values."""
    keep, of = pattern
    moment = np.array(data.draw(st.lists(st.integers(0, 99), min_size=w.shape[1], max_size=w.shape[1])), w.dtype)
    result = kit.call("wanda", w, moment, keep=keep, of=of)
    tuples = result.mask.reshape(w.shape[0], -1, of)
    counts = tuples.sum(axis=2)
    kit.check(compare.exact(counts, np.full(counts.shape, of - keep), "pruned weights of a tuple"))
    kit.check(compare.exact(result.weight, np.where(result.mask, 0.0, w), "weight"))
    score = (np.abs(w.astype(np.float64)) * np.sqrt(moment.astype(np.float64))).reshape(tuples.shape)
    check_smallest(kit, score, compare.score_band(score, kit.u(w), 2), tuples, "score pruned")


@clause("G-6a", tier="exact", data=st.data(), pattern=PATTERNS, dtype=strategies.WIDE_FLOATS)
def test_wanda_ties_prune_the_lower_index(kit: Kit, data: Any, pattern: tuple[int, int], dtype: str) -> None:
    """Weights ±1, ±2 and moments 1, 4: scores are 1, 2 or 4 exactly, and mostly tied."""
    keep, of = pattern
    w = np.array(
        [data.draw(st.lists(st.sampled_from([-2, -1, 1, 2]), min_size=8, max_size=8)) for _ in range(2)], dtype
    )
    moment = np.array(data.draw(st.lists(st.sampled_from([1, 4]), min_size=8, max_size=8)), dtype)
    result = kit.call("wanda", w, moment, keep=keep, of=of)
    kit.check(compare.exact(result.mask, kit.spec.wanda(w, moment, keep=keep, of=of).mask, "mask of tied scores"))
