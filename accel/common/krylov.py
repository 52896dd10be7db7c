"""The certified solve of chapter E for any arrays: block Krylov iteration on M = D C Dᵀ, and the bound that ends it.

A backend brings an :class:`Operator`: its products with D and C, its random numbers, its sum for J, and the few things
that NumPy and torch call by different names. What they name alike is written once, here.

Vectors are rows, so that every product with D or C reads them along memory. Block Krylov iteration on M = D C Dᵀ
from a seeded Gaussian block gives an orthonormal basis V; M V is formed once per block, in float32 (float64 for
float64 input), everything of basis size in float64. Three facts make the certificate:

(1) With T = V M Vᵀ, residual S = (I − VᵀV) M Vᵀ and β ≥ ‖(I − VᵀV) M (I − VᵀV)‖, in a basis that starts with V
        M  ≤  [[T, Sᵀ], [S, β I]]          (the difference has one block, β I − (...) ≥ 0)
    so the top r eigenvalues of that small matrix bound those of M. Only the last block of S is more than rounding.
(2) Rounding F of the computed M V is measured, not assumed: exact products would make V M Vᵀ symmetric, so its
    antisymmetric part is a sample of F, which then enters (1) beside S.
(3) β comes from p fresh Gaussian probes g: Σ ‖Hᑫ g‖² ≥ λ_max(H)²ᑫ χ²_p, so
        λ_max(H) ≤ (Σ ‖Hᑫ g‖² / x)^(1/2q)   except with probability P(χ²_p < x) = 1e-10.

The bound on the optimum is then J − (bound of (1) − Σ θ_i), with J = tr(E C Eᵀ) taken from E = D − B A itself: a
sum of squares, accurate relative to J where tr M − Σ θ_i would cancel.

Up to min(m, k) of about a thousand, or when a Krylov basis would fill the space, the exact solve in float64 is better
and :func:`worth` says so. When the bound cannot be brought to the tolerance (a spectrum flat to the end, an optimum
below rounding, a tolerance below the precision of the input), a RuntimeWarning says so and the exact solve follows. The
bound takes rounding errors of different products as independent.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lowbit.reference.types import Compensation, LowRank, Split

__all__ = [
    "EXACT_BELOW",
    "NARROW",
    "PROBES",
    "SEED",
    "WIDE",
    "Operator",
    "Stalled",
    "balance",
    "certified",
    "loud",
    "within",
    "worth",
]

Array = Any  # of whatever backend

U64 = 2.0**-53
U32 = 2.0**-24
EXACT_BELOW = 1000  # min(m, k) up to which the exact solve is used: faster there, and a Krylov basis may break down
FILL = 0.5  # of the space: the largest basis that is still a saving
OVERSAMPLE = 16
MULTIPLE = 16  # block sizes are multiples of this
SEED = 0x10B17
WIDE, NARROW = 1024, 256  # columns of the panels of E and of the strips of its Gram matrix
PROBES = 16
CHI2 = 0.43368156896587584  # P(χ² with 16 degrees of freedom < this) = 1e-10
POWERS = 8  # most applications spent on β
SAFETY = 2.0  # on the measured rounding of M V (a median over a block)


class Stalled(Exception):
    """The fast path cannot certify this problem; the message says why."""


def _power_of_two(x: Array) -> float:
    """2^-e with max|x| in [2^e, 2^(e+1)), or 1 for a zero matrix."""
    top = max(-float(x.min()), float(x.max()))
    return float(2.0 ** -math.floor(math.log2(top))) if top > 0 else 1.0


class Operator(ABC):
    """X → X M scaled by powers of two, for rows X (b, m), with products in the precision of d and c.

    Attributes:
        xp: the library of the arrays, numpy or torch.
        unit: rounding of a product.
        trace_error: relative error granted to J, of :meth:`residual`.
    """

    xp: ClassVar[Any]

    def __init__(self, d: Array, c: Array) -> None:
        self.d, self.c = d, c
        self.d_scale, self.c_scale = _power_of_two(d), _power_of_two(c)
        single = d.dtype == self.xp.float32
        self.unit, self.trace_error = (U32, 4 * U32) if single else (U64, 64 * U64)

    def wide(self, x: Array) -> Array:
        """In float64."""
        return self.cast(x, self.xp.float64)

    @property
    def one(self) -> float:
        """What 1 of the scaled operator is in the caller's units."""
        return 1.0 / (self.d_scale * self.d_scale) / self.c_scale

    @abstractmethod
    def __call__(self, rows: Array) -> Array:
        """rows M, in the precision of d."""

    @abstractmethod
    def start(self, block: int) -> Array:
        """Seeded Gaussian rows, float64 (block, m)."""

    @abstractmethod
    def probes(self) -> Array:
        """Fresh Gaussian rows, (PROBES, m) in the precision of d."""

    @abstractmethod
    def cast(self, x: Array, dtype: Any) -> Array:
        """In another precision; no copy without need."""

    @abstractmethod
    def zeros(self, *shape: int) -> Array:
        """Zeros in float64."""

    @abstractmethod
    def ascending(self, x: Array) -> Array:
        """Sorted along the last axis."""

    @abstractmethod
    def contiguous(self, x: Array) -> Array:
        """In row-major order."""

    @abstractmethod
    def residual(self, b: Array, a: Array, z: Array, theta: Array) -> float:
        """J = tr(E C Eᵀ) of E = D − B A, without the cancellation of ⟨EᵀE, C⟩ over the directions that A has removed.

        For any Z (r, k) and Θ > 0: J = tr(E C′ Eᵀ) + ‖Θ^{-1/2} Z Eᵀ‖² with C′ = C − Zᵀ Θ⁻¹ Z. With Z = U_rᵀ D C the
        eigenvalues of D C′ Dᵀ are those of M beyond the first r, so the terms of the sum are of the size of J, not of
        tr M; and Z Eᵀ is only the residual of the eigenvectors. Θ is that of the scaled operator.
        """


def _block(rank: int) -> int:
    """Rows of a Krylov block: the rank and some more, so that the last wanted vectors converge too."""
    return -(-(rank + OVERSAMPLE) // MULTIPLE) * MULTIPLE


def worth(shape: Sequence[int], rank: int) -> bool:
    """Whether the fast path is worth its while."""
    small = int(min(shape))
    return small > EXACT_BELOW and 4 * _block(rank) <= FILL * small


def loud(name: str, shape: Sequence[int], rank: int, stalled: Stalled) -> None:
    """Say that the exact solve has to follow, and why."""
    warnings.warn(
        f"{name}: no fast certificate for shape {tuple(shape)}, rank {rank}: {stalled}; solving exactly instead",
        RuntimeWarning,
        stacklevel=3,
    )


def balance(xp: Any, values: Array, size: int) -> Array:
    """sqrt of the singular values sqrt(λ), and 1 where λ is zero up to rounding; shape of ``values``."""
    floor = max(float(values.max()), 0.0) * size * U64 if values.shape[0] else 0.0
    return xp.where(values > floor, values.clip(0), 1.0) ** 0.25


def _lengths(xp: Any, rows: Array) -> Array:
    return xp.linalg.norm(rows, None, 1)  # by place: the axis has two names


def _orthonormal(xp: Any, rows: Array, size: Array | float, unit: float) -> Array:
    """Orthonormal basis of the span of ``rows`` (b, m), float64; directions within rounding of ``size`` are left out.

    Gram eigenvectors twice: stable for any rank, unlike a Cholesky factor. Rows below rounding of what they were
    before projection (``size``, (b,)) hold no information and are dropped, which is how a breakdown ends the basis.
    """
    rows = rows[_lengths(xp, rows) > size * (4 * unit)]
    for tolerance in (1e-10, 1e-2):
        if rows.shape[0]:
            rows = rows / _lengths(xp, rows)[:, None]
            values, vectors = xp.linalg.eigh(rows @ rows.T)
            keep = values > tolerance * values[-1]
            rows = (vectors[:, keep] / xp.sqrt(values[keep])).T @ rows
    return rows


class _Krylov:
    """Growing orthonormal basis V (rows), T = V M Vᵀ, the residual of the last block, and measured rounding."""

    def __init__(self, op: Operator, start: Array) -> None:
        self.op, self.xp = op, op.xp
        self._store = op.zeros(8 * start.shape[0], start.shape[1])
        self._take(start, 0)
        self.t = op.zeros(0, 0)
        self.noise = op.zeros(0)  # (K,): squared norm of the rounding F per basis row
        self.next = op.zeros(0, 0)  # residual rows of the last block
        self.size = self.noise
        self.last = 0

    def _take(self, rows: Array, known: int) -> None:
        """V is the first ``known`` rows and these, (K, m), orthonormal in float64; rounding it for products is in F."""
        count = known + rows.shape[0]
        if count > self._store.shape[0]:
            self._store = self.xp.concatenate((self._store, self.xp.empty_like(self._store)))
        self._store[known:count] = rows
        self.v = self._store[:count]

    def extend(self) -> None:
        """Apply M to the newest block and take it into T."""
        known, op = self.t.shape[0], self.op
        w = op.wide(op(self.v[known:]))
        size = _lengths(self.xp, w)
        if not math.isfinite(float(size.sum())):
            raise Stalled("the products overflow the working precision")
        cross = self.v @ w.T  # (K, b)
        self.next = w - cross.T @ self.v
        square = cross[known:]
        b, m = square.shape[0], w.shape[1]
        # E skew_ij² = (φ_i² + φ_j²)/m for independent rounding of norm φ_i in row i. The median over j of such a
        # squared normal variable is 0.4549 of its mean, and not moved by the few rows that are much larger.
        skew = op.ascending((square - square.T) ** 2)
        phi = skew[:, min((b + 1) // 2, b - 1)] * (m / 0.4549)  # entry 0 of a sorted row is the diagonal
        self.noise = self.xp.concatenate((self.noise, self.xp.maximum(phi, (0.5 * op.unit * size) ** 2)))
        grown = op.zeros(known + b, known + b)
        grown[:known, :known] = self.t
        grown[:known, known:] = cross[:known]
        grown[known:, :known] = cross[:known].T
        grown[known:, known:] = (square + square.T) / 2
        self.t = grown
        self.size = size
        self.last = b

    def advance(self) -> bool:
        """Orthonormalise the residual into a new block; False when nothing is left of it (an invariant subspace)."""
        # A short residual is less orthogonal to V than float64 allows, by the factor that it is shorter than the
        # product it came from; the second projection is of unit rows, and what it leaves is rounding.
        rows = _orthonormal(self.xp, self.next, self.size, self.op.unit)
        rows = _orthonormal(self.xp, rows - (rows @ self.v.T) @ self.v, 0.0, self.op.unit)
        # What deflation left out counts with the rounding of that block, all of it in every row: its rows may be alike.
        left = self.next - (self.next @ rows.T) @ rows
        self.noise[-self.last :] += (left**2).sum()
        if rows.shape[0] == 0:
            self.next = self.next[:0]
            return False
        self._take(rows, self.v.shape[0])
        return True


class _Ritz:
    """Ritz values (descending) and vectors of a Krylov basis, with what the bound (1) needs."""

    def __init__(self, space: _Krylov) -> None:
        self.op, xp = space.op, space.xp
        values, vectors = xp.linalg.eigh(space.t)
        self.values = xp.flip(values, (0,))
        self.y = xp.flip(vectors, (1,))  # (K, K), columns
        rest = space.next
        gram_values, gram_vectors = xp.linalg.eigh(rest @ rest.T)
        root = xp.sqrt(gram_values.clip(0))[:, None] * gram_vectors.T  # (b, b)
        self.s = root @ self.y[self.y.shape[0] - rest.shape[0] :]
        self.phi = SAFETY * xp.sqrt(space.noise @ self.y**2)  # (K,): norm of F per Ritz vector

    def outlook(self, rank: int, beta: float, dimension: int) -> tuple[float, float]:
        """The shares of residual and of rounding in what `excess` bounds, each alone and to second order; no bound."""
        gap = (self.values[:rank] - beta).clip(1e-300)
        with np.errstate(over="ignore"):
            residual = float(((self.s[:, :rank] ** 2).sum(0) / gap).sum())
        return residual, self._rounding(rank, beta, dimension, 1.0)

    def excess(self, rank: int, beta: float, dimension: int, weight: float) -> float:
        """Bound on (Σ of the top r eigenvalues of M) − (Σ of the top r Rayleigh quotients)."""
        # The sum of the top r eigenvalues is convex: (1) is p times a matrix with 1/p of the residual alone plus 1 − p
        # times one with 1/(1 − p) of the rounding alone, for any 0 < p < 1 (``weight``).
        xp, count, b = self.op.xp, self.values.shape[0], self.s.shape[0]
        small = xp.diag(xp.concatenate((self.values, self.op.zeros(b) + beta)))
        small[count:, :count] = self.s / weight
        small[:count, count:] = self.s.T / weight
        residual = self._gain(xp.linalg.eigvalsh(small), rank, beta, dimension) * weight
        return residual + self._rounding(rank, beta, dimension, 1 - weight)

    def _gain(self, bounds: Array, rank: int, beta: float, dimension: int) -> float:
        """Top r sum of ``bounds`` and the β of the dimensions outside the basis, less that of the Ritz values."""
        xp = self.op.xp
        outside = self.op.zeros(min(rank, max(dimension - self.values.shape[0], 0))) + beta
        largest = xp.flip(self.op.ascending(xp.concatenate((bounds, outside))), (0,))[:rank]
        return max(float(largest.sum() - self.values[:rank].sum()), 0.0)

    def _rounding(self, rank: int, beta: float, dimension: int, weight: float) -> float:
        xp, values = self.op.xp, self.values
        count: int = values.shape[0]
        # (2): rows of F are the rounding errors of different products, so F Fᵀ ≤ (1 + sqrt(K/m))² diag(φ²), as for
        # independent rows of length m; then the small matrix falls apart into 2 x 2 ones.
        phi = (1 + math.sqrt(count / dimension)) / weight * self.phi
        bounds = (values + beta) / 2 + xp.hypot((values - beta) / 2, phi)
        rounding = self._gain(bounds, rank, beta, dimension) * weight
        # Between a kept and a dropped Ritz vector: a pair with gap g and coupling ν gains at most min(ν, ν²/g).
        nu = xp.maximum(self.phi[:rank, None], self.phi[None, rank:]) / math.sqrt(dimension)
        gap = (values[:rank, None] - values[None, rank:]).clip(0)
        pairs = xp.where(gap > nu, nu * (nu / xp.maximum(gap, nu.clip(1e-300))), nu)
        return rounding + float(pairs.sum()) + U64 * count * float(values[:rank].sum())


def _outer_norm(op: Operator, space: _Krylov, enough: float) -> float:
    """Upper bound of ‖(I − VᵀV) M (I − VᵀV)‖ by fresh probes (3); stops as soon as it is below ``enough``."""
    v, g = op.cast(space.v, op.d.dtype), op.probes()
    log_scale, best = 0.0, math.inf
    g = g - (g @ v.T) @ v
    for power in range(1, POWERS + 1):
        g = op(g)
        for _ in range(2):
            g = g - (g @ v.T) @ v
        square = float((g**2).sum(dtype=op.xp.float64))
        if square == 0:
            return 0.0
        bound = math.exp((log_scale + math.log(square / CHI2)) / (2 * power))
        best = min(best, bound * (1 + 64 * U32))
        if best <= enough:
            break
        g = g / math.sqrt(square)
        log_scale += math.log(square)
    return best


class _Solved(NamedTuple):
    """Leading invariant subspace of the scaled operator, within ``excess`` of the best in the sum of eigenvalues."""

    u: Array  # (r, m) rows, working precision
    theta: Array  # (r,) Rayleigh quotients, float64, scaled
    excess: float  # scaled


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _solve(op: Operator, rank: int, tolerance: float) -> _Solved:
    """Block Krylov until (1) to (3) leave at most two thirds of the tolerance; raises `Stalled` when they cannot."""
    (m, k), dtype = op.d.shape, op.d.dtype
    if tolerance < 4 * op.trace_error:
        raise Stalled(f"tolerance {tolerance:g} is below what {_name(dtype)} products can certify")
    block = _block(rank)
    limit = int(FILL * min(m, k))
    space = _Krylov(op, _orthonormal(op.xp, op.start(block), 0.0, U64))
    restarts = 0
    exhausted = False
    while True:
        if not exhausted:
            space.extend()
        count = space.t.shape[0]
        if count >= 3 * block or restarts or exhausted or count + block > limit:
            ritz = _Ritz(space)
            # The part of the optimum inside the basis is a lower bound of it; aim at two thirds of the tolerance.
            allowed = 0.65 * tolerance * float(ritz.values[rank:].clip(0).sum())
            # A cheap look with a guess of β, before the real one and the real bound are paid for.
            residual, rounding = ritz.outlook(rank, float(ritz.values[min(count, block) - 1]), m)
            if (math.sqrt(residual) + math.sqrt(rounding)) ** 2 <= allowed:
                beta = _outer_norm(op, space, 0.9 * float(ritz.values[rank - 1]))
                # The best weight to second order.
                weight = math.sqrt(residual) / max(math.sqrt(residual) + math.sqrt(rounding), 1e-300)
                excess = ritz.excess(rank, beta, m, min(max(weight, 0.1), 0.9))
                if excess <= allowed:
                    break
            if rounding > allowed and residual < 0.1 * allowed:
                # Rounding of a basis row is that of its largest Ritz component; Ritz vectors as first block grade it.
                if restarts:
                    share = rounding / max(2 * allowed, 1e-300)
                    raise Stalled(f"{_name(dtype)} rounding alone takes {share:.1e} of the tolerance")
                restarts += 1
                exhausted = False
                space = _Krylov(op, ritz.y[:, :block].T @ space.v)
                continue
        if exhausted:
            raise Stalled(f"the Krylov space is exhausted at {count} dimensions")
        if count + block > limit:
            raise Stalled(f"the basis would exceed half of the space ({limit} of {min(m, k)} dimensions)")
        exhausted = not space.advance()
    return _Solved(op.cast(ritz.y[:, :rank].T @ space.v, dtype), ritz.values[:rank], excess)


def _patch(op: Operator, solved: _Solved, split: Split) -> tuple[LowRank[Array], Array]:
    """Factors of the wanted split, and Uᵀ D before scaling."""
    u, theta, _ = solved
    plain = u @ op.d
    if split == "left":
        return LowRank(B=op.contiguous(u.T), A=plain), plain
    scale = op.cast(balance(op.xp, theta, max(op.d.shape)) * op.one**0.25, op.d.dtype)
    return LowRank(B=op.contiguous(u.T * scale), A=plain / scale[:, None]), plain


def certified(op: Operator, rank: int, tolerance: float, split: Split) -> Compensation[Array]:
    """The fast path with its numbers; raises `Stalled` when it cannot certify the tolerance."""
    solved = _solve(op, rank, tolerance)
    (b, a), plain = _patch(op, solved, split)
    z = (plain * op.d_scale) @ op.c  # (r, k)
    found = op.residual(b, a, z, solved.theta)
    excess = solved.excess * op.one
    # J of the factors as they are, against J as computed: 4u for the sum of m·k² products, whose rounding averages
    # out; and the rounding δ of E = D − B A, whose first-order share 2⟨δ, E C⟩ is of the order u·sqrt(J tr M / m).
    total = found + float(solved.theta.sum()) * op.one
    spread = 8 * op.unit * math.sqrt(max(found, 0.0) * total / min(op.d.shape))
    lower = found * (1 - op.trace_error) - spread - excess
    if not found <= lower * (1 + tolerance):
        raise Stalled(f"the bound leaves a gap of {(found - lower) / max(found, 1e-300):.1e} of the objective")
    return Compensation(B=b, A=a, objective=found, lower_bound=lower, method="krylov")


def within(op: Operator, rank: int, tolerance: float, split: Split) -> LowRank[Array]:
    """Factors whose J is within the tolerance, without J itself; raises `Stalled` as :func:`certified` does.

    J(BA) ≤ (1 + tolerance)·optimum needs no J: the distance to the optimum is bounded by itself, and the trailing
    Ritz values bound the optimum from below.
    """
    return _patch(op, _solve(op, rank, tolerance), split)[0]
