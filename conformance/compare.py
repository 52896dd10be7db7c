"""Six ways to compare a backend with the specification, and the derivation of every tolerance in use.

No other file of the kit holds a tolerance. A comparison returns its ``margin``, observed error ÷ allowed bound: at
most 1 passes, and a margin that always stays far below 1 says that a bound may be tightened.

| tier | rule |
| --- | --- |
| exact | equal values (or bytes); the margin is 0 or infinite |
| tie-band | integers equal, except where the real number that was rounded lies within its own error of a tie |
| forward-error | abs(error) ≤ a bound from counting roundings |
| certificate | the objective reached is within a bound of the optimum, whatever basis or order a backend chose |
| trajectory | bit-equal steps up to the first decision that rounding may have turned, then only the outcome |
| statistical | a frequency within the deviation that chance exceeds with a stated, tiny probability |

Notation: u is the unit roundoff (2⁻²⁴ for float32), γ_n = n·u / (1 − n·u) [Higham, Accuracy and Stability, §3.1].
Only NumPy is imported, so that frozen vectors can be checked without the specification.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from .hexfloat import hexadecimal

Tier: TypeAlias = Literal["exact", "tie-band", "forward-error", "certificate", "trajectory", "statistical"]
TIERS: tuple[Tier, ...] = ("exact", "tie-band", "forward-error", "certificate", "trajectory", "statistical")

F64: TypeAlias = npt.NDArray[np.float64]

_PRECISION = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}  # significand bits, the hidden one included
_MIN_EXPONENT = {"float16": -14, "bfloat16": -126, "float32": -126, "float64": -1022}  # of the smallest normal


# -- bounds ------------------------------------------------------------------------------------------------------------


def unit_roundoff(dtype: str) -> float:
    """u = 2⁻ᵖ for a significand of p bits: the largest relative error of one rounding to nearest.

    >>> unit_roundoff("float32") == 2.0**-24
    True
    """
    return math.ldexp(1.0, -_PRECISION[dtype])


def smallest_normal(dtype: str) -> float:
    """Smallest positive normal number of a format, for which the relative error bound u still holds."""
    return math.ldexp(1.0, _MIN_EXPONENT[dtype])


def tiny(n: int, dtype: str) -> float:
    """Absolute error that n operations may add by underflow.

    A result below the smallest normal number ν is off by at most ν·u with gradual underflow, and by at most ν when the
    machine flushes to zero, as GPUs and vectorised CPU code do. The kit allows the second: n·ν.
    """
    return n * smallest_normal(dtype)


def gamma(n: int, u: float) -> float:
    """γ_n = n·u / (1 − n·u): relative error bound after n roundings, in any order [Higham §3.1, eq. 3.4].

    A sum of n products in any association satisfies abs(err) ≤ γ_n Σ abs(aᵢ bᵢ); a fused multiply-add only lowers it.
    For n·u ≥ 1/2 the bound says nothing and infinity is returned.

    >>> gamma(1, 2.0**-24) > 2.0**-24
    True
    """
    return n * u / (1 - n * u) if 2 * n * u < 1 else math.inf


def tie_band(r: npt.ArrayLike, u: float, roundings: int) -> F64:
    """Half-width of the band around a half-integer in which a rounded ratio may fall on either side.

    A ratio r that took k roundings is computed as r(1 + θ), abs(θ) ≤ γ_k, so its rounding to an integer may differ from
    that of r only if r lies within γ_k·abs(r) of a half-integer, and then by one.
    """
    return gamma(roundings, u) * np.abs(np.asarray(r, np.float64))


def orthogonality(n: int, u: float) -> float:
    """Backward error of a Householder QR decomposition of order n, relative to the norm: n·γ_{8n}.

    Higham's theorem 19.4 gives √n·γ_{cn} for every column with a small constant c; n·γ_{8n} covers ‖QᵀQ − I‖ and the
    triangle that is left below the diagonal alike, the sign of a column being exact.
    """
    return n * gamma(8 * n, u)


def elementary(n: int, u: float) -> float:
    """Relative error of n calls of a library's exp, log, sin, cos or square root in a row: γ_{4n}.

    No standard bounds these functions; libraries in use state at most two units in the last place (glibc, libdevice,
    SVML's high-accuracy variants), 4u, for arguments of moderate size.
    """
    return gamma(4 * n, u)


def softmax_error(spread: npt.ArrayLike, classes: int, u: float) -> F64:
    """Relative error of the probabilities of a softmax over ``classes`` logits within ``spread`` of their maximum.

    e^(x − max) inherits u·spread from the difference, as much from the argument's reduction, once for the product
    with log₂ e and once for that constant, and the library's four roundings; the sum has as many roundings as terms,
    of which none cancels, and inherits the worst of their errors; a quotient: twice 3·spread + 4, classes and 2 more.
    """
    rounds = 2 * (3 * np.asarray(spread, np.float64) + 4) + classes + 2
    return np.asarray(rounds * u / (1 - np.minimum(rounds * u, 0.5)))


def level_band(left: npt.ArrayLike, right: npt.ArrayLike, u: float) -> F64:
    """Half-width of the band around the midpoint (left + right)/2 of two levels.

    The sum is rounded once, the halving is exact, and a backend that compares distances x − left and right − x rounds
    each of those once: an error of at most γ_2 (abs(left) + abs(right)) in the place where the decision flips.
    """
    return gamma(2, u) * (np.abs(np.asarray(left, np.float64)) + np.abs(np.asarray(right, np.float64)))


def quantile_slack(p: npt.ArrayLike, x: npt.ArrayLike, u: float) -> F64:
    """Error of a normal quantile x = Φ⁻¹(p) whose probability took three roundings, and whose value took four.

    dx/dp = 1/φ(x), so a relative error γ_3 of p moves x by γ_3·p/φ(x). The four roundings of the value are those of
    the quantile itself (1), of the largest one by which it is divided (2, its own condition being below that of x)
    and of the quotient (1).
    """
    v = np.asarray(x, np.float64)
    density = np.exp(-(v**2) / 2) / math.sqrt(2 * math.pi)
    return np.asarray(gamma(3, u) * np.asarray(p, np.float64) / density + gamma(4, u) * np.abs(v))


def deviation_slack(n: int, largest: float, u: float) -> float:
    """Error of mean ± 2σ of n values below ``largest`` in magnitude.

    The mean is a sum and a quotient: γ_{n+1}·largest. Each of the differences from it is off by that and one rounding
    more, at most γ_{n+3}·2·largest; the root of their mean square moves no more than the largest of them, and sum,
    quotient and root add γ_{n+2} of a σ ≤ 2·largest. Twice σ plus the mean: γ_{2n+6}·(1 + 4 + 4)·largest, any order.
    """
    return 9 * gamma(2 * n + 6, u) * largest


def weyl(sigma1: float, n: int, u: float) -> float:
    """Largest error of a computed singular value: abs(Δσᵢ) ≤ ‖ΔM‖₂ ≤ p(n)·u·σ₁ [Weyl; Golub & Van Loan §8.6].

    A backward stable decomposition is exact for M + ΔM with ‖ΔM‖₂ ≤ p(n)·u·‖M‖₂; p(n) = n, the longest sum of
    roundings in one entry, is the modest growth that the LAPACK Users' Guide (§4.9) recommends, and an iteration
    leaves what it neglects. Both sides of a comparison may be off.
    """
    return (gamma(max(n, 1), u) + neglected(n, u)) * sigma1


def davis_kahan(gap: float, n: int, u: float) -> float:
    """Bound on the distance of two spectral projectors: ‖sin Θ‖₂ ≤ ‖ΔM‖₂ / gap, with gap relative to ‖M‖₂.

    Meaningful only while the gap exceeds the perturbation 2·p(n)·u; otherwise subspaces are not determined by the data
    and infinity is returned: then only certificates may be compared.
    """
    perturbation = 2 * gamma(max(n, 1), u)
    return perturbation / gap if gap > 2 * perturbation else math.inf


def gram_gap(norm: float, rank: int, n: int, u: float) -> float:
    """How far a rank-r patch found from the Gram matrix M = D C Dᵀ may lie above the optimum of eq. (E.1).

    Let Ũ be the leading r-dimensional eigenspace of M + ΔM. For any orthonormal basis U of r columns tr(Uᵀ(M + ΔM)U)
    differs from tr(UᵀMU) by at most r·‖ΔM‖₂, so J(Ũ) − J* = Σλᵢ − tr(ŨᵀMŨ) ≤ 2r·‖ΔM‖₂. Forming M takes two products
    of length ≤ n, its decomposition p(n) = n more, the two factors two roundings and their product r: ‖ΔM‖₂ ≤
    γ_{3n+r+2} · norm, with ``norm`` ≥ ‖abs(D) abs(C) abs(D)ᵀ‖₂ and ‖D‖₂² ‖C‖₂ supplied by the caller. The rounding of
    B and A enters to second order only, since (D − BA)CAᵀ = 0 and Bᵀ(D − BA)C = 0 at the optimum.
    """
    return 2 * rank * gamma(3 * n + rank + 2, u) * norm


def root_gap(error: npt.ArrayLike, root: npt.ArrayLike) -> F64:
    """How far √(a + e) is from √a = ``root`` when abs(e) ≤ ``error``: at most e/√a, and never more than √e."""
    e, r = np.asarray(error, np.float64), np.asarray(root, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(e == 0, 0.0, np.minimum(e / r, np.sqrt(e)))


def quotient_gap(relative: npt.ArrayLike) -> F64:
    """Relative error of x / c when c is off by δ = ``relative``: δ / (1 − δ), and no bound at all from δ = 1 on."""
    δ = np.asarray(relative, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(δ < 1, δ / (1 - δ), math.inf)


def stored_gap(residual: float, product: float, n: int, u: float) -> float:
    """How far the objective of stored factors may lie above what was certified for the exact ones, at large sizes.

    Telling J sums products of the residual E = D − BA of length ≤ n: γ_n · ``residual``, ``residual`` = tr(abs(E)
    abs(C) abs(E)ᵀ). Rounding the factors moves BA by at most γ_{n+4} abs(B) abs(A), to first order along directions
    in which J is stationary, so by γ²_{n+4} · ``product``, ``product`` = tr(P abs(C) Pᵀ) with P = abs(B) abs(A).
    """
    return gamma(n, u) * residual + gamma(n + 4, u) ** 2 * product


def neglected(n: int, u: float) -> float:
    """What an iterative SVD of order n leaves off the diagonal, relative to ‖D‖₂: √(n − 1) max(10, min(100, u^−⅛)) u.

    LAPACK's DBDSQR and DLASDQ, behind every driver, take each of the n − 1 entries beside the diagonal for 0 once it is
    below that multiple of u (TOLMUL there) relative to the singular values: 99 u in double precision, 10 u in single.
    """
    return math.sqrt(max(n - 1, 0)) * max(10.0, min(100.0, math.pow(u, -0.125))) * u


def residual_gap(norm: float, n: int, u: float, amplification: float = 1.0) -> float:
    """How far ‖D − BA‖_F may exceed its optimum after a backward stable truncated SVD: at most 2·‖ΔD‖_F.

    The computed patch is optimal for D + ΔD: ‖D − X‖ ≤ ‖D + ΔD − X‖ + ‖ΔD‖ ≤ opt(D + ΔD) + ‖ΔD‖ ≤ opt(D) + 2‖ΔD‖. The
    decomposition contributes γ_{2n}‖D‖_F and what it neglects, storing and multiplying the two factors γ_{n+4}. A
    patch that is computed in scaled coordinates D·S and mapped back by S⁻¹ carries ``amplification`` = κ(S).
    """
    return 2 * (gamma(3 * n + 4, u) + neglected(n, u)) * norm * amplification


def inverse_sensitivity(k: int, kappa: float, u: float) -> float:
    """Relative perturbation of a damped Hessian that explains the errors of Cholesky(inverse(H)).

    The inverse by way of a Cholesky factor has relative error of order k·u·κ(H) [Higham §14.4], the second
    factorization adds γ_{k+1}, and the k column updates γ_k: altogether γ_{4k}·κ(H) relative to the entries of H.
    """
    return gamma(4 * max(k, 1), u) * kappa


GRAM_RANK = 2.0**-11
"""Eigenvalues of AᵀA for a matrix A of at most nine ±1 columns are 0 or above this.

Independent columns hold an invertible ±1 matrix of order p with abs(det) ≥ 2^(p−1) and Σσ² = p², hence a smallest
squared singular value of at least 4^(p−1) ((p − 1)/p²)^(p−1) ≥ 5.9e-4; further rows only raise it.
"""


def normal_equations(g: int, p: int, u: float) -> float:
    """Relative residual of the normal equations Aᵀ(v − Ax) = 0 of a ±1 matrix A (g, p), as a backend leaves it.

    Aᵀv takes g roundings, the p × p solve is backward stable with growth p² on entries of size g, storing x takes
    one rounding and A x in the residual p more: γ_{g+2p²+p+2}, relative to Σ abs(v) + g Σ abs(x).
    """
    return gamma(g + 2 * p * p + p + 2, u)


def normal_solution(g: int, p: int, inverse_norm: float, kappa: float, magnitude: npt.ArrayLike, u: float) -> F64:
    """Error of the least-squares scales themselves: ‖(AᵀA)⁺‖ times the error of Aᵀv, and of the solve.

    ``magnitude`` = Σ abs(v). Aᵀv is off by γ_g Σ abs(v) in each of p entries, the solve by γ_{2p²} κ relative to a
    solution of norm ≤ ‖(AᵀA)⁺‖ √p Σ abs(v).
    """
    scale = inverse_norm * math.sqrt(p) * np.asarray(magnitude, np.float64)
    return np.asarray((gamma(g + 1, u) + gamma(2 * p * p + 1, u) * kappa) * scale)


def score_band(scores: npt.ArrayLike, u: float, roundings: int) -> F64:
    """Error of a pruning score that took k roundings: γ_k · score (scores are products of non-negative factors)."""
    return gamma(roundings, u) * np.abs(np.asarray(scores, np.float64))


def layout_slack(n: int, kappa: float, u: float) -> float:
    """Relative difference of two runs of one algorithm on the same numbers in another memory layout.

    Strides may change the order of every sum of length ≤ n (γ_n each side, for at most eight products in a row), and a
    solve multiplies that by the condition number κ of what is solved: 2·γ_{8n}·κ.
    """
    return 2 * gamma(8 * max(n, 1), u) * kappa


def log_softmax_gap(x: npt.ArrayLike, u: float) -> F64:
    """Error of log softmax over the last axis of n numbers, entry by entry: γ_{n+16} (1 + abs(x) + max abs(x) + log n).

    A temperature and the subtraction of the maximum round numbers up to 2 max abs(x); e^x turns that absolute error
    into a relative one, weighed by the terms themselves, and adds its own γ_4; the sum adds γ_n, the logarithm γ_4 of
    at most log n, and the last subtraction one rounding of the result. The relative error of the softmax is e^gap − 1.
    """
    values = np.abs(np.asarray(x, np.float64))
    n = values.shape[-1]
    size = 1 + values + values.max(axis=-1, keepdims=True, initial=0.0) + math.log(max(n, 1))
    return np.asarray(gamma(n + 16, u) * size, np.float64)


def softmax_gap(error: npt.ArrayLike, n: int, u: float) -> F64:
    """Relative error of a softmax over n scores that are each off by at most ``error``: e^(2δ) − 1, and what it rounds.

    A numerator moves by e^δ and the sum below it by no more the other way. Exponential, sum of n terms and quotient
    round on their own: the error of a library's exponential twice, γ_{n+1}.
    """
    gap = np.expm1(2 * np.asarray(error, np.float64))
    return np.asarray(gap + 2 * elementary(1, u) + gamma(n + 1, u))


def hoeffding(n: int, failures: float) -> float:
    """Deviation of a frequency over n independent draws that chance exceeds with probability at most ``failures``.

    P(abs(p̂ − p) ≥ t) ≤ 2·exp(−2nt²) [Hoeffding 1963, theorem 2], solved for t.
    """
    return math.sqrt(math.log(2 / failures) / (2 * n)) if n else math.inf


# -- comparisons -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comparison:
    """Outcome of one comparison; ``margin`` ≤ 1 passes."""

    tier: Tier
    margin: float  # observed ÷ allowed
    detail: str  # where it is worst, with both values

    @property
    def ok(self) -> bool:
        """Whether the observed error is within the allowed one."""
        return self.margin <= 1


def _same_shape(tier: Tier, observed: npt.NDArray[Any], expected: npt.NDArray[Any], what: str) -> Comparison | None:
    if observed.shape == expected.shape:
        return None
    return Comparison(tier, math.inf, f"{what} has shape {observed.shape}, expected {expected.shape}")


def _worst(tier: Tier, ratio: F64, observed: npt.NDArray[Any], expected: npt.NDArray[Any], what: str) -> Comparison:
    """Largest of a non-empty field of ratios, with its position; NaN counts as infinite."""
    if ratio.size == 0:
        return Comparison(tier, 0.0, f"{what} is empty")
    ratio = np.where(np.isnan(ratio), math.inf, ratio)
    at = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    margin = float(ratio[at])
    got, want = observed[at].item(), expected[at].item()
    shown = f"{got!r}, expected {want!r}"
    if isinstance(got, float):
        shown += f" (hex {hexadecimal(got)}, {hexadecimal(want)})"
    position = tuple(int(i) for i in at)
    return Comparison(tier, margin, f"{what}{list(position) if position else ''} is {shown}, margin {margin:.3g}")


def exact(observed: npt.ArrayLike, expected: npt.ArrayLike, what: str = "result") -> Comparison:
    """Tier exact: equal shapes and values. NaN equals NaN; the sign of zero and the dtype are not looked at."""
    got, want = np.asarray(observed), np.asarray(expected)
    wrong = _same_shape("exact", got, want, what)
    if wrong:
        return wrong
    same = np.asarray(got == want)
    if got.dtype.kind == "f" and want.dtype.kind == "f":
        same = same | (np.isnan(got) & np.isnan(want))
    return _worst("exact", np.where(same, 0.0, math.inf), got, want, what)


def exact_bytes(observed: npt.NDArray[Any], expected: npt.NDArray[Any], what: str = "result") -> Comparison:
    """Tier exact, to the last bit: dtype, shape and bytes."""
    if observed.dtype != expected.dtype:
        return Comparison("exact", math.inf, f"{what} has dtype {observed.dtype}, expected {expected.dtype}")
    wrong = _same_shape("exact", observed, expected, what)
    if wrong or observed.tobytes() == expected.tobytes():
        return wrong or Comparison("exact", 0.0, f"{what} agrees in every byte")
    return Comparison("exact", math.inf, f"{what} differs in bytes; {exact(observed, expected, what).detail}")


def codes(
    observed: npt.ArrayLike, expected: npt.ArrayLike, ratio: npt.ArrayLike, band: npt.ArrayLike, what: str = "codes"
) -> Comparison:
    """Tier tie-band: integers that came from rounding ``ratio``, which may be off by ``band``.

    Where the two integers differ they may differ by one, and the distance of ``ratio`` from the nearest half-integer ÷
    ``band`` is the margin. All arguments broadcast to the shape of the codes.
    """
    got, want = np.asarray(observed), np.asarray(expected)
    wrong = _same_shape("tie-band", got, want, what)
    if wrong:
        return wrong
    r = np.broadcast_to(np.asarray(ratio, np.float64), want.shape)
    width = np.broadcast_to(np.asarray(band, np.float64), want.shape)
    difference = np.abs(got.astype(np.int64) - want.astype(np.int64))
    distance = np.abs(r - np.floor(r) - 0.5)
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = np.where(distance == 0, 0.0, distance / width)
    return _worst(
        "tie-band", np.where(difference == 0, 0.0, np.where(difference > 1, math.inf, needed)), got, want, what
    )


def interval(observed: npt.ArrayLike, low: npt.ArrayLike, high: npt.ArrayLike, what: str = "result") -> Comparison:
    """Tier tie-band for a monotone rounding: the result lies between the roundings of both ends of an interval."""
    got, lower, upper = np.asarray(observed), np.asarray(low), np.asarray(high)
    wrong = _same_shape("tie-band", got, lower, what)
    if wrong:
        return wrong
    inside = (got >= lower) & (got <= upper)
    return _worst("tie-band", np.where(inside, 0.0, math.inf), got, np.where(got < lower, lower, upper), what)


def choice(chosen: npt.ArrayLike, rejected: npt.ArrayLike, band: npt.ArrayLike, what: str = "choice") -> Comparison:
    """Tier tie-band for a minimum: the value chosen may exceed a rejected one by no more than ``band``.

    ``chosen`` and ``rejected`` broadcast against each other; the margin is max(chosen − rejected, 0) ÷ band.
    """
    got, other = np.broadcast_arrays(np.asarray(chosen, np.float64), np.asarray(rejected, np.float64))
    excess = np.maximum(got - other, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(excess == 0, 0.0, excess / np.broadcast_to(np.asarray(band, np.float64), excess.shape))
    return _worst("tie-band", ratio, got, other, what)


def forward(
    observed: npt.ArrayLike, expected: npt.ArrayLike, allowed: npt.ArrayLike, what: str = "result"
) -> Comparison:
    """Tier forward-error: abs(observed − expected) ≤ allowed, element by element; equal infinities agree."""
    got, want = np.asarray(observed), np.asarray(expected)
    wrong = _same_shape("forward-error", got, want, what)
    if wrong:
        return wrong
    bound = np.broadcast_to(np.asarray(allowed, np.float64), want.shape)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        error = np.abs(got.astype(np.float64) - want.astype(np.float64))
        ratio = np.where((got == want) | (error == 0), 0.0, error / bound)
    return _worst("forward-error", ratio, got, want, what)


def certificate(objective: float, optimum: float, allowed: float, what: str = "objective") -> Comparison:
    """Tier certificate: objective ≤ optimum + allowed. Being below the optimum is no fault; not being a number is."""
    excess = float(objective) - float(optimum)
    if math.isnan(excess):
        margin = math.inf
    elif excess <= 0:
        margin = 0.0
    else:
        margin = excess / allowed if allowed > 0 else math.inf
    detail = f"{what} is {float(objective)!r}, optimum {float(optimum)!r}, allowed excess {float(allowed):.3g}"
    return Comparison("certificate", margin, f"{detail}, margin {margin:.3g}")


def trajectory(
    observed: Sequence[npt.NDArray[Any]],
    expected: Sequence[npt.NDArray[Any]],
    fitness: Sequence[npt.NDArray[Any]],
    fitness_error: Sequence[npt.NDArray[Any]],
    final_gap: tuple[float, float],
) -> Comparison:
    """Tier trajectory: states bit-equal step by step, up to the first decision that rounding may have turned.

    ``observed[t]`` and ``expected[t]`` are the populations (individuals first) after step t, ``fitness[t]`` the
    specification's values (individuals,) before step t, ``fitness_error[t]`` the bound on each. At the first step
    that differs, two individuals must have fitness values closer than the sum of their bounds (the margin is the
    smallest such distance ÷ bound), and from there only the final objective counts: ``final_gap`` = (observed −
    expected objective, allowed).
    """
    if len(observed) != len(expected):
        return Comparison("trajectory", math.inf, f"{len(observed)} steps, expected {len(expected)}")
    for step, (got, want) in enumerate(zip(observed, expected, strict=True)):
        if exact_bytes(got, want).ok:
            continue
        order = np.argsort(fitness[step], kind="stable")
        values = np.asarray(fitness[step], np.float64)[order]
        errors = np.asarray(fitness_error[step], np.float64)[order]
        gaps, bounds = np.diff(values), errors[1:] + errors[:-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(gaps == 0, 0.0, gaps / bounds)
        nearest = float(ratio.min()) if ratio.size else math.inf
        excess, allowed = final_gap
        outcome = certificate(excess, 0.0, allowed).margin
        where = f"first difference at step {step}, nearest decision at {nearest:.3g} of its error bound"
        return Comparison("trajectory", max(nearest, outcome), f"{where}, final objective margin {outcome:.3g}")
    return Comparison("trajectory", 0.0, f"{len(expected)} steps agree in every byte")


def frequency(count: int, n: int, probability: float, failures: float, what: str = "frequency") -> Comparison:
    """Tier statistical: count/n against ``probability``, allowed deviation from :func:`hoeffding`."""
    observed = count / n if n else 0.0
    allowed = hoeffding(n, failures)
    margin = abs(observed - probability) / allowed
    return Comparison("statistical", margin, f"{what} is {observed!r}, expected {probability!r} ± {allowed:.3g}")
