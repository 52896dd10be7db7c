"""Chapter E: EoRA. Patches are judged by the objective they reach, never by their factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from lowbit.conformance import compare, laws, strategies
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import PROFILES, Kit
from lowbit.conformance.strategies import Array, PatchProblem, WeightProblem
from lowbit.conformance.suite.test_low_rank import check_shapes
from lowbit.conformance.suite.test_second_order import check_groups, check_rounding, check_scales, check_weight, replay

LARGE_SPECTRA = ("equal blocks", "few directions", "scaled blocks")


class LargeProblem(NamedTuple):
    """A problem whose answer is known from small ones: D and C are block diagonal under a permutation."""

    problem: strategies.PatchProblem
    blocks: list[tuple[Array, Array]]  # float64 (d, c) of every block, the same numbers as in the whole


def large_problem(spectrum: str, dtype: str = "float32") -> LargeProblem:
    """A fixed problem of 1040 × 1027, where a solver has reason to iterate, of 13 blocks of 80 × 79.

    equal blocks: every value 13 times, and the cut between equal ones. few directions: fewer than the rank asked for.
    scaled blocks: powers of two apart, a long decay.
    """
    random = np.random.default_rng(20240229)
    count, m, k, rank = 13, 80, 79, 9
    d0 = (random.standard_normal((m, 40)) / np.arange(1, 41) ** 2) @ random.standard_normal((40, k))
    if spectrum == "few directions":
        d0 = random.integers(-3, 4, (m, 3)).astype(np.float64) @ random.integers(-3, 4, (3, k))
    tokens = random.standard_normal((2 * k, k)) * np.ldexp(1.0, random.integers(-3, 2, k))
    d0, c0 = d0.astype(dtype), strategies.symmetric(tokens.T @ tokens, dtype)
    factors = {
        "equal blocks": np.ones(count),
        "few directions": (np.arange(count) < 2).astype(np.float64),
        "scaled blocks": np.ldexp(1.0, -np.arange(count)),
    }[spectrum]
    d, c = np.zeros((count * m, count * k), dtype), np.zeros((count * k, count * k), dtype)
    for i, factor in enumerate(factors):  # powers of two: exact in every format
        d[i * m : (i + 1) * m, i * k : (i + 1) * k] = factor * d0
        c[i * k : (i + 1) * k, i * k : (i + 1) * k] = c0
    rows, columns = random.permutation(count * m), random.permutation(count * k)
    whole = strategies.PatchProblem(d[np.ix_(rows, columns)], c[np.ix_(columns, columns)], rank)
    return LargeProblem(whole, [(factor * d0.astype(np.float64), c0.astype(np.float64)) for factor in factors])


U64 = compare.unit_roundoff("float64")
SPLITS = st.sampled_from(["balanced", "left"])


def size_of(d: Array, c: Array) -> float:
    """The norm against which rounding of M = D C Dᵀ is small, whichever way a backend takes.

    Summing M entry by entry errs by γ·abs(D) abs(C) abs(D)ᵀ; going through the eigenvalues of C errs by p(n)·u·‖C‖₂
    in C.
    """
    left, moment = d.astype(np.float64), c.astype(np.float64)
    bulk = np.abs(left) @ np.abs(moment) @ np.abs(left).T
    return float(max(np.linalg.norm(bulk, 2), np.linalg.norm(left, 2) ** 2 * np.linalg.norm(moment, 2)))


def gap(d: Array, c: Array, rank: int, u: float) -> float:
    """Allowed excess over the optimum: the backend's rounding and that of this judge."""
    n, size = max(d.shape), size_of(d, c)
    return compare.gram_gap(size, rank, n, u) + compare.gram_gap(size, rank, n, U64) + Kit.tiny(d.size)


@clause("E-1", tier="forward-error", problem=strategies.patch_problems())
def test_objective(kit: Kit, problem: PatchProblem) -> None:
    """tr(D C Dᵀ): k products, k sums, then m·k more, in any order."""
    d, c = problem.d.astype(np.float64), problem.c.astype(np.float64)
    m, k = d.shape
    found = kit.call("objective", problem.d, problem.c)
    size = float(np.einsum("ij,jk,ik->", np.abs(d), np.abs(c), np.abs(d), optimize=True))
    n = k + m * k + 2
    allowed = (compare.gamma(n, kit.u(problem.d, problem.c)) + compare.gamma(n, U64)) * size + kit.tiny(n)
    kit.check(compare.forward(found, np.einsum("ij,jk,ik->", d, c, d, optimize=True), allowed, "objective"))


@clause("E-1", tier="forward-error", seed=st.integers(0, 2**16), dtype=strategies.WIDE_FLOATS)
def test_objective_keeps_its_precision(kit: Kit, seed: int, dtype: str) -> None:
    """Full significands: a product in TF32 (11 bits) is off by thousands of float32 roundings in one entry."""
    random = np.random.default_rng(seed)
    d = random.standard_normal((1, 2)).astype(dtype)
    c = np.diag(1 + random.random(2)).astype(dtype)
    expected = float(np.sum(d.astype(np.float64) ** 2 * np.diag(c).astype(np.float64)))
    allowed = (compare.gamma(6, kit.u(d, c)) + compare.gamma(6, U64)) * expected
    kit.check(compare.forward(kit.call("objective", d, c), expected, allowed, "objective"))


def no_moments(k: int, dtype: str) -> dict[str, Array]:
    """Not symmetric, a negative diagonal, a negative eigenvalue behind a positive diagonal; k ≥ 3."""
    ones, eye = np.ones((k, k), dtype), np.eye(k, dtype=dtype)
    return {
        "symmetric": eye + np.triu(ones, 1),
        "diagonal": ones - 2 * np.diag(eye[-1]),
        "semi-definite": 3 * ones - 2 * eye,
    }


def check_moments(
    kit: Kit,
    op: str,
    arrays: Callable[[Array], Sequence[Array]],
    k: int,
    dtype: str,
    chapter: str = "E",
    **options: Any,
) -> None:
    """An operation refuses what is no second moment (k, k) among its ``arrays``; rounding may leave it indefinite."""
    if not kit.has(op):
        return
    for c in no_moments(k, dtype).values():
        with kit.part(op):
            kit.refused(op, *arrays(c), clauses=(chapter,), **options)
    rounded = np.ones((k, k), dtype) - np.ldexp(np.eye(k), -12).astype(dtype)  # of one token, its least eigenvalue
    with kit.part(op):
        kit.raw(op, *arrays(rounded), **options)


@clause("E-1a", tier="exact", dtype=strategies.WIDE_FLOATS, k=st.integers(3, 12))
def test_what_is_no_second_moment_is_refused(kit: Kit, dtype: str, k: int) -> None:
    """The objective alone knows an indefinite moment by what it makes of the error; the others have no optimum."""
    ones, eye = np.ones((k, k), dtype), np.eye(k, dtype=dtype)
    d = np.concatenate([eye, eye - ones / k])[: k + 2]
    falling = d[k:] - d[k:].mean(axis=1, keepdims=True)
    low: dict[str, dict[str, Any]] = {
        "optimum": {"rank": 1},
        "error_spectrum": {},
        "eora": {"rank": 1},
        "eora_certified": {"rank": 1},
    }
    wrong = no_moments(k, dtype)["semi-definite"]

    def judged(c: Array) -> list[Array]:
        return [falling if np.array_equal(c, wrong) else d, c]

    check_moments(kit, "objective", judged, k, dtype)
    for op, options in low.items():
        check_moments(kit, op, lambda c: [d, c], k, dtype, **options)


@clause("E-8b", tier="exact", dtype=strategies.WIDE_FLOATS, k=st.integers(3, 12))
def test_what_is_no_second_moment_judges_no_patch(kit: Kit, dtype: str, k: int) -> None:
    """Neither what a patch leaves, nor how it is rounded, nor whether it is the best."""
    d, b, a = (np.eye(*shape, dtype=dtype) for shape in ((4, k), (4, 2), (2, k)))
    check_moments(kit, "residual_moment", lambda c: [c, a], k, dtype)
    for method in ("rtn", "gptq"):
        check_moments(kit, "quantize_adapter", lambda c: [b, a, c], k, dtype, method=method, bits=4)
    check_moments(kit, "stationarity", lambda c: [d, c, b, a], k, dtype)


@clause("E-2", tier="certificate", problem=strategies.patch_problems(), split=SPLITS)
def test_eora_reaches_the_optimum(kit: Kit, problem: PatchProblem, split: str) -> None:
    """Singular moments, repeated values across the cut and huge ranges included: only the objective counts."""
    d, c, rank = problem
    patch = kit.call("eora", d, c, rank=rank, split=split)
    check_shapes(kit, patch, d, rank)
    reached = laws.patch_objective(d, c, patch.B, patch.A)
    allowed = gap(d, c, rank, kit.u(d, c, result=patch.B))
    kit.check(compare.certificate(reached, laws.optimum(d, c, rank), allowed))


@clause("E-2a", tier="forward-error", problem=strategies.patch_problems())
def test_eora_is_a_projection_of_the_error(kit: Kit, problem: PatchProblem) -> None:
    """BA = U_r U_rᵀ D with orthonormal U_r, so B_i A_i = u_i u_iᵀ D also where C is singular; the split is as asked.

    left: B is U_r itself. balanced: ‖B_i‖⁴ = σᵢ², judged like eigenvalues of D C Dᵀ.
    """
    d, c, rank = problem
    wide = d.astype(np.float64)
    squares = laws.squared_spectrum(d, c)
    for split in ("left", "balanced"):
        patch = kit.call("eora", d, c, rank=rank, split=split)
        b, a = patch.B.astype(np.float64), patch.A.astype(np.float64)
        u = kit.u(d, c, result=patch.B)
        norms = np.linalg.norm(b, axis=0)
        kit.require(bool(np.all(norms > 0)), "a column of B is zero")
        basis = b / norms
        slip = compare.gamma(4 * max(d.shape), u)
        kit.check(compare.forward(basis.T @ basis, np.eye(rank), slip, f"Gram matrix of the columns of B ({split})"))
        for i in range(rank):
            direction = basis[:, i : i + 1]
            allowed = 2 * slip * np.abs(direction) @ (np.abs(direction).T @ np.abs(wide)) + kit.tiny(d.size)
            expected = direction @ (direction.T @ wide)
            kit.check(compare.forward(b[:, i : i + 1] @ a[i : i + 1], expected, allowed, f"patch {i} ({split})"))
        if split == "left":
            kit.check(compare.forward(norms, np.ones(rank), slip, "norms of the columns of B"))
        else:
            off = gap(d, c, 1, u)
            clear = squares[:rank] > 2 * off  # below, a factor of one is taken
            expected = np.where(clear, squares[:rank], norms**4)
            kit.check(compare.forward(norms**4, expected, off + 4 * slip * squares[:rank], "fourth power of the norms"))


@clause("E-3", tier="forward-error", problem=strategies.patch_problems())
def test_error_spectrum(kit: Kit, problem: PatchProblem) -> None:
    """min(m, k) values, descending, not negative; their squares are eigenvalues of D C Dᵀ within its rounding (Weyl).

    The squares are what C determines: a relative change u of C moves σ² by u·‖D‖²‖C‖, however small σ is.
    """
    d, c, _ = problem
    found = kit.call("error_spectrum", d, c)
    expected = laws.squared_spectrum(d, c)
    kit.require(found.shape == expected.shape, f"spectrum has shape {found.shape}, expected {expected.shape}")
    kit.require(bool(np.all(found >= 0)), "a singular value is negative")
    kit.require(bool(np.all(np.diff(found) <= 0)), "the spectrum does not descend")
    allowed = gap(d, c, 1, kit.u(d, c, result=found)) + compare.gamma(4, kit.u(d, c, result=found)) * expected
    kit.check(compare.forward(found.astype(np.float64) ** 2, expected, allowed, "squared singular values"))


@clause("E-3a", tier="forward-error", problem=strategies.patch_problems())
def test_optimum_is_the_tail(kit: Kit, problem: PatchProblem) -> None:
    """Σ_{i>r} σᵢ² for every rank up to the full one, where it is zero."""
    d, c, _ = problem
    for rank in range(1, min(d.shape) + 1):
        found = kit.call("optimum", d, c, rank=rank)
        allowed = gap(d, c, min(d.shape), kit.u(d, c))
        kit.check(compare.forward(found, laws.optimum(d, c, rank), allowed, f"optimum of rank {rank}"))
        kit.require(found >= -allowed, f"optimum of rank {rank} is negative: {found}")


def check_published(kit: Kit, problem: PatchProblem, policy: str, repaired: Array) -> None:
    """The published patch is optimal for the moment it repaired; going through S⁻¹ costs κ(S)."""
    d, rank = problem.d, problem.rank
    patch = kit.call("eora_published", d, problem.c, rank=rank, policy=policy)
    check_shapes(kit, patch, d, rank)
    root = laws.root(repaired)
    values = np.linalg.eigvalsh(repaired)
    kept = values[values > 0]
    kappa = float(np.sqrt(kept[-1] / kept[0])) if kept.size else 1.0
    residual = (d - patch.B.astype(np.float64) @ patch.A.astype(np.float64)) @ root
    tail = np.linalg.svd(d.astype(np.float64) @ root, compute_uv=False)[rank:]
    norm = float(np.linalg.norm(d.astype(np.float64)) * np.linalg.norm(root, 2))
    u = kit.u(d, problem.c, result=patch.B)
    allowed = compare.residual_gap(norm, 2 * max(d.shape), u, kappa) + kit.tiny(d.size)
    reached, best = float(np.linalg.norm(residual)), float(np.linalg.norm(tail))
    kit.check(compare.certificate(reached, best, allowed, f"residual norm ({policy})"))


@clause("E-4", tier="certificate", problem=strategies.patch_problems(singular=False))
def test_published_recipe(kit: Kit, problem: PatchProblem) -> None:
    """On a well-conditioned moment nothing is repaired, and both policies reach the optimum."""
    for policy in ("truncate", "nvlabs"):
        check_published(kit, problem, policy, problem.c.astype(np.float64))


@st.composite
def indefinite(draw: st.DrawFn) -> tuple[PatchProblem, Array]:
    """A moment with one eigenvalue below zero, and what the published policy makes of it."""
    dtype = draw(strategies.float_dtypes())
    k, m = draw(st.integers(2, 6)), draw(st.integers(1, 6))
    d = np.array(draw(st.lists(st.integers(-9, 9), min_size=m * k, max_size=m * k)), dtype).reshape(m, k)
    # eigenvalues 9, -1, 4, 4, ... of a block [[4, 5], [5, 4]] and a diagonal: exact in every format
    c = 4 * np.eye(k)
    c[0, 1] = c[1, 0] = 5
    repaired = 4 * np.eye(k)
    smallest = 4.0 if k > 2 else 9.0  # the smallest positive eigenvalue replaces -1
    repaired[:2, :2] = np.array([[9 + smallest, 9 - smallest], [9 - smallest, 9 + smallest]]) / 2
    return PatchProblem(d, c.astype(dtype), draw(st.integers(1, min(m, k)))), repaired


@clause("E-4a", tier="certificate", case=indefinite())
def test_negative_eigenvalues_become_the_smallest_positive(kit: Kit, case: tuple[PatchProblem, Array]) -> None:
    """Policy nvlabs: the patch is optimal for the repaired moment."""
    problem, repaired = case
    check_published(kit, problem, "nvlabs", repaired)


@clause("E-4b", tier="exact", dtype=strategies.WIDE_FLOATS, dead=st.integers(0, 3), rank=st.integers(1, 3))
def test_exact_zero_eigenvalue(kit: Kit, dtype: str, dead: int, rank: int) -> None:
    """A diagonal moment with a zero: nvlabs refuses where the published code answers NaN, truncate leaves it alone."""
    d = (np.arange(12).reshape(3, 4) % 5 - 2).astype(dtype)
    diagonal = np.array([1.0, 2.0, 3.0, 5.0])
    diagonal[dead] = 0.0
    c = np.diag(diagonal).astype(dtype)
    kit.refused("eora_published", d, c, rank=rank, policy="nvlabs", clauses=("E",))
    kit.refused("eora_published", d, np.zeros_like(c), rank=rank, policy="nvlabs", clauses=("E",))
    patch = kit.call("eora_published", d, c, rank=rank, policy="truncate")
    kit.require(bool(np.all(np.isfinite(patch.A))), "the truncated patch is not finite")
    kit.check(compare.exact(patch.A[:, dead], np.zeros(rank), "A in the truncated channel"))


@st.composite
def hard_problems(draw: st.DrawFn) -> PatchProblem:
    """Spectra on which an iterative solver goes wrong: flat heads, tiny gaps, steep decay, more rank than there is."""
    dtype = draw(strategies.float_dtypes())
    m, k = draw(st.sampled_from([(24, 40), (40, 24), (33, 33), (5, 48), (48, 5)]))
    kind = draw(st.sampled_from(["flat", "steep", "step", "noise", "low rank"]))
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    n = min(m, k)
    rank = draw(st.sampled_from([1, 2, n // 2, n - 1, n])) or 1
    index = np.arange(n)
    spectrum = {
        "flat": np.ones(n),
        "steep": np.ldexp(1.0, -index),
        "step": np.where(index < max(rank, 1), 4.0, 1.0) + index / 2**20,
        "noise": 1 + random.random(n),
        "low rank": np.where(index < n // 3, 1.0, 0.0),
    }[kind]
    left, _ = np.linalg.qr(random.standard_normal((m, n)))
    right, _ = np.linalg.qr(random.standard_normal((k, n)))
    x = random.standard_normal((2 * k, k)) * np.ldexp(1.0, random.integers(-4, 3, k))
    identity = draw(st.booleans())
    c = np.eye(k) if identity else x.T @ x
    upper = np.triu(c.astype(dtype))
    return PatchProblem(((left * spectrum) @ right.T).astype(dtype), upper + np.triu(upper, 1).T, rank)


ANY = st.one_of(strategies.patch_problems(), hard_problems())


@clause("E-5", tier="certificate", problem=ANY, split=SPLITS, tolerance=[*strategies.TOLERANCES, 0.0])
def test_lower_bound_is_a_lower_bound(kit: Kit, problem: PatchProblem, split: str, tolerance: float) -> None:
    """No patch is below it: allowed is only what this judge's own float64 optimum may be off."""
    d, c, rank = problem
    found = certified(kit, problem, split, tolerance)
    allowed = compare.gram_gap(size_of(d, c), rank, max(d.shape), U64) + kit.tiny(d.size)
    kit.check(compare.certificate(found.lower_bound, laws.optimum(d, c, rank), allowed, "lower bound"))


def certified(kit: Kit, problem: PatchProblem, split: str, tolerance: float) -> Any:
    """The call, with the warning of a loud fall-through allowed."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return kit.call("eora_certified", problem.d, problem.c, rank=problem.rank, tolerance=tolerance, split=split)


@clause("E-5a", tier="certificate", problem=ANY, split=SPLITS, tolerance=strategies.TOLERANCES)
def test_certified_objective_is_honest(kit: Kit, problem: PatchProblem, split: str, tolerance: float) -> None:
    """The objective told is that of the factors, and at most (1 + tolerance) · lower bound, each up to rounding."""
    d, c, rank = problem
    found = certified(kit, problem, split, tolerance)
    check_shapes(kit, found, d, rank)
    kit.require(found.method in ("exact", "krylov"), f"unknown method {found.method!r}")
    u = kit.u(d, c, result=found.B)
    reached = laws.patch_objective(d, c, found.B, found.A)
    allowed = gap(d, c, rank, u)
    for one, other, what in ((found.objective, reached, "told"), (reached, found.objective, "reached")):
        kit.check(compare.certificate(one, other, allowed, f"objective {what}"))
    ceiling = (1 + tolerance) * found.lower_bound
    whole = gap(d, c, min(d.shape), u)  # a bound may subtract the rounding of the whole trace
    kit.check(compare.certificate(reached, ceiling, whole, "objective above the certified ceiling"))


def stored(d: Array, c: Array, patch: Any, u: float) -> float:
    """Allowance for a patch whose factors and objective were rounded, see ``compare.stored_gap``."""
    b, a, moment = (x.astype(np.float64) for x in (patch.B, patch.A, np.abs(c)))
    residual, product = np.abs(d - b @ a), np.abs(b) @ np.abs(a)
    miss, bulk = (float(np.sum((x @ moment) * x)) for x in (residual, product))
    return compare.stored_gap(miss, bulk, max(d.shape), u)


@clause("E-5b", tier="certificate")
def test_certificate_at_sizes_where_solvers_iterate(kit: Kit) -> None:
    """1040 × 1027, values 13 times repeated across the cut, or too few directions: bound and objective are both true.

    The quick profile takes the first of the three spectra only.
    """
    spectra = LARGE_SPECTRA if kit.examples > PROFILES["quick"] else LARGE_SPECTRA[:1]
    for spectrum in spectra:
        (d, c, rank), blocks = large_problem(spectrum)
        found = certified(kit, PatchProblem(d, c, rank), "left", strategies.TOLERANCES[0])
        check_shapes(kit, found, d, rank)
        squares = np.sort(np.concatenate([laws.squared_spectrum(*block) for block in blocks]))
        size, n = max(size_of(*block) for block in blocks), max(blocks[0][0].shape)
        judge = compare.gram_gap(size, len(squares), n, U64) + kit.tiny(d.size)
        best = float(np.sum(squares[:-rank]))
        kit.check(compare.certificate(found.lower_bound, best, judge, f"lower bound ({spectrum})"))
        reached = laws.patch_objective(d, c, found.B, found.A)
        allowed = judge + stored(d, c, found, kit.u(d, c, result=found.B))
        ceiling = (1 + strategies.TOLERANCES[0]) * found.lower_bound
        kit.check(compare.certificate(reached, ceiling, allowed, f"objective above the certified ceiling ({spectrum})"))


@clause("E-6", tier="forward-error", problem=strategies.patch_problems(), best=st.booleans(), seed=st.integers(0, 999))
def test_stationarity(kit: Kit, problem: PatchProblem, best: bool, seed: int) -> None:
    """The two relative residuals, at the specification's optimum (where they vanish) and at a random patch."""
    d, c, rank = problem
    if best:
        b, a = (f.astype(d.dtype) for f in kit.spec.eora(d, c, rank=rank))
    else:
        random = np.random.default_rng(seed)
        b, a = (random.integers(-4, 5, s).astype(d.dtype) for s in ((d.shape[0], rank), (rank, d.shape[1])))
    found = kit.call("stationarity", d, c, b, a)
    wide = [x.astype(np.float64) for x in (d, c, b, a)]
    residual = wide[0] - wide[2] @ wide[3]
    size = np.abs(wide[0]) + np.abs(wide[2]) @ np.abs(wide[3])
    reach = np.linalg.norm(wide[0] @ wide[1])
    n = 3 * max(*d.shape, rank) + 8
    rounding = compare.gamma(n, kit.u(d, c, b, a)) + compare.gamma(n, U64)
    terms = (
        ("left", found.left, wide[2].T @ (residual @ wide[1]), np.abs(wide[2]).T @ (size @ np.abs(wide[1])), wide[2]),
        ("right", found.right, residual @ wide[1] @ wide[3].T, size @ np.abs(wide[1]) @ np.abs(wide[3]).T, wide[3]),
    )
    for side, value, vector, bulk, factor in terms:
        below = float(np.linalg.norm(factor) * reach)
        if below <= rounding * float(np.linalg.norm(factor)) * float(np.linalg.norm(np.abs(wide[0]) @ np.abs(wide[1]))):
            continue  # 0/0 up to rounding
        expected = float(np.linalg.norm(vector)) / below
        loss = float(np.linalg.norm(np.abs(wide[0]) @ np.abs(wide[1])) / reach)  # D C may cancel in the denominator too
        allowed = rounding * (float(np.linalg.norm(bulk)) / below + expected * (2 + loss))
        kit.check(compare.forward(float(value), expected, allowed + kit.tiny(), f"{side} residual"))


@st.composite
def adapters(draw: st.DrawFn) -> tuple[Array, Array, Array]:
    """b (m, r), a (r, k), c (k, k)."""
    problem = draw(strategies.weight_problems(multiple=4, largest=8))
    rank, m = draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 4))
    dtype, k = problem.w.dtype, problem.w.shape[1]
    b, a = (
        np.array(draw(st.lists(st.integers(-99, 99), min_size=n * o, max_size=n * o)), dtype).reshape(n, o) / 32
        for n, o in ((m, rank), (rank, k))
    )
    return b.astype(dtype), a.astype(dtype), problem.h


@clause(
    "E-7",
    tier="tie-band",
    case=adapters(),
    bits=[3, 4, 8],
    group_size=[None, 2, 4, 3, 64],
    method=["gptq", "rtn"],
    scheme=["asymmetric", "symmetric-full"],
)
def test_quantized_adapter(
    kit: Kit, case: tuple[Array, Array, Array], bits: int, group_size: int | None, method: str, scheme: str
) -> None:
    """A is quantized on C, B on A C Aᵀ of the un-quantized A; a group size that does not fit means whole rows."""
    b, a, c = case
    damping = 0.1
    options: dict[str, Any] = {"bits": bits, "method": method, "scheme": scheme, "group_size": group_size}
    found = kit.call("quantize_adapter", b, a, c, **options, damping=damping)
    wide = a.astype(np.float64)
    second = wide @ c.astype(np.float64) @ wide.T
    for name, factor, weight, hessian in (
        ("A", found.A, a, c.astype(np.float64)),
        ("B", found.B, b, (second + second.T) / 2),
    ):
        k = weight.shape[1]
        fits = group_size is not None and k % group_size == 0 and group_size <= k
        size = group_size if group_size is not None and fits else k
        problem = WeightProblem(weight, hessian.astype(np.float64), damping)
        kit.require(factor.scale.shape == (weight.shape[0], k // size), f"scale of {name}: shape {factor.scale.shape}")
        kit.check(compare.exact(factor.group_index, np.arange(k) // size, f"group_index of {name}"))
        check_weight(kit, factor, problem, bits=bits, scheme=scheme)
        if method == "rtn":
            for group in range(k // size):
                part = weight[:, group * size : (group + 1) * size].astype(np.float64)
                u = kit.u(weight, result=factor.weight)
                check_scales(kit, factor, group, part, np.zeros(part.shape), u, bits=bits, scheme=scheme)
            ratio = weight / factor.scale[:, factor.group_index].astype(np.float64)
            low, high = laws.code_range(bits, scheme)
            expected = np.clip(np.rint(ratio) + factor.zero_point[:, factor.group_index], low, high).astype(np.int32)
            band = compare.tie_band(ratio, kit.u(weight, result=factor.weight), 2)
            kit.check(compare.codes(factor.codes, expected, ratio, band, f"codes of {name}"))
            continue
        run = replay(kit, problem, factor.weight)
        run = run._replace(u=kit.u(weight, result=factor.weight))
        if name == "B":  # its Hessian was summed in the backend's precision: k more roundings
            run = run._replace(u=compare.gamma(2 * c.shape[0] + 2, run.u))
        if not fits:  # one grid per row, of the weight before dead columns are zeroed
            dense = weight.astype(np.float64)
            check_scales(kit, factor, 0, dense, np.zeros(dense.shape), run.u, bits=bits, scheme=scheme)
        else:
            check_groups(kit, run, factor, group_size=size, bits=bits, scheme=scheme)
        check_rounding(kit, run, factor, bits=bits, scheme=scheme)


class Reach(NamedTuple):
    """A second moment and the rows of a patch."""

    c: Array  # (k, k)
    a: Array  # (r, k)


@st.composite
def reaches(draw: st.DrawFn) -> Reach:
    """Moments as of patches, and rows in general, dependent, without energy, and of single channels."""
    d, c, rank = draw(strategies.patch_problems())
    k = c.shape[0]
    entries = st.lists(st.integers(-9, 9), min_size=rank * k, max_size=rank * k)
    a = np.array(draw(entries), np.float64).reshape(rank, k) * draw(st.sampled_from(strategies.UNITS))
    match draw(st.sampled_from(["general", "general", "channels", "repeated", "patch"])):
        case "channels":  # an uncorrelated channel is then restored in full
            a = np.eye(k)[draw(st.permutations(range(k)))][:rank] * 3.0
            if draw(st.booleans()):
                c = np.diag(np.diag(c))
        case "repeated":
            a = np.concatenate([a, a[:1] * -4.0, 0.0 * a[:1]])
        case "patch":
            a = d[:rank].astype(np.float64)
        case _:
            pass
    return Reach(c, a.astype(c.dtype))


def directions(reach: Reach) -> tuple[Array, Array, Array]:
    """Rows with energy, scaled to energy 1, and the eigenvalues and eigenvectors of their A C Aᵀ."""
    c, a = (x.astype(np.float64) for x in reach)
    seen = shares(reach) > 2.0**-40
    rows = a[seen] / np.sqrt(((a[seen] @ c) * a[seen]).sum(1))[:, None]
    values, vectors = np.linalg.eigh(rows @ c @ rows.T)
    return rows, values, vectors


def shares(reach: Reach) -> Array:
    """Energy of every row, relative to the sum of the sizes of its terms."""
    c, a = (x.astype(np.float64) for x in reach)
    energy, bulk = ((a @ c) * a).sum(1), ((np.abs(a) @ np.abs(c)) * np.abs(a)).sum(1)
    return np.asarray(np.divide(energy, bulk, out=np.zeros_like(energy), where=bulk > 0))


def decided(reach: Reach) -> bool:
    """Whether rows have energy or none, and are dependent or not, beyond the doubt that rounding leaves."""
    share = shares(reach)
    if ((share > 2.0**-46) & (share < 2.0**-12)).any():
        return False
    values = directions(reach)[1]
    return not ((values > 2.0**-36) & (values < 2.0**-14)).any()


@clause("E-8", tier="forward-error", reach=reaches().filter(decided))
def test_residual_moment(kit: Kit, reach: Reach) -> None:
    """S (I − P) Sᵀ, C = S Sᵀ and P the projection on the rows of A S: errors are priced after the best B.

    A C Aᵀ is normalised, R, and inverted on its range. With w the columns of abs(A) abs(C), g those of A C:
    rounding moves A C by γ w, R by γ abs(A) abs(C) abs(A)ᵀ, and R⁺ by its square times that.
    """
    c, a = (x.astype(np.float64) for x in reach)
    k = c.shape[0]
    found = kit.call("residual_moment", reach.c, reach.a)
    kit.require(found.shape == (k, k), f"shape {found.shape}, expected {(k, k)}")
    rows, values, vectors = directions(reach)
    kept = values > 2.0**-30
    span = np.linalg.qr((vectors[:, kept].T @ rows @ laws.root(c)).T)[0]
    rest = laws.root(c) - laws.root(c) @ span @ span.T
    w = np.linalg.norm(np.abs(rows) @ np.abs(c), axis=0)
    g = np.linalg.norm(rows @ c, axis=0)
    steep = 1 / values[kept].min() if kept.any() else 0.0
    spread = float(np.linalg.norm(np.abs(rows) @ np.abs(c) @ np.abs(rows).T))
    bound = np.abs(c) + steep * (np.outer(w, g) + np.outer(g, w)) + steep**2 * spread * np.outer(g, g)
    bound += np.sqrt(np.outer(np.diag(c), np.diag(c))) + np.linalg.norm(c, 2)  # of the judge's root
    n = 8 * (k + len(a)) + 16
    rounding = compare.gamma(n, kit.u(reach.c, reach.a)) + compare.gamma(n, U64)
    kit.check(compare.forward(found, rest @ rest.T, rounding * bound + kit.tiny(n), "residual moment"))


@clause("E-8a", tier="exact", reach=reaches())
def test_residual_moment_keeps_channels_alive(kit: Kit, reach: Reach) -> None:
    """Exactly symmetric; a channel that the patch restores in full keeps a diagonal above 0, only dead ones have 0."""
    found = kit.call("residual_moment", reach.c, reach.a)
    kit.check(compare.exact(found, found.T, "its transpose"))
    kit.check(compare.exact(found.diagonal() > 0, reach.c.diagonal() > 0, "channels alive"))
    kit.check(compare.exact(found.diagonal() < 0, np.zeros(len(found), bool), "negative diagonal"))
