"""Hadamard tables for the fast backends: which factors an order has, and the matrix of each.

The matrices are those of clause H-1, made in another way than in the specification: squares of a finite field are the
even powers of a generator, irreducible polynomials are found by division, and every table is multiplied out before it
is used. Tables are small next to any transform and kept once made.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.reference.errors import SpecError
from lowbit.reference.tables import CIRCULANTS

__all__ = ["addresses", "check_block", "check_clip", "check_index", "check_table", "factors", "table"]

Table = npt.NDArray[np.int8]
Digits = tuple[int, ...]  # coefficients of a polynomial, lowest first

_LARGEST = 1024


def _power_of_prime(q: int) -> tuple[int, int] | None:
    """(p, e) with q = p^e, or None."""
    if q < 2:
        return None
    p, rest, e = 2, q, 0
    while p * p <= q and q % p:
        p += 1
    p = p if q % p == 0 else q
    while rest % p == 0:
        rest, e = rest // p, e + 1
    return (p, e) if rest == 1 else None


def _kind(n: int) -> str | None:
    """The construction of order n itself, in the order of preference of H-1."""
    if n == 1:
        return "sylvester"
    if n >= _LARGEST or n % 4:
        return None
    if _power_of_prime(n - 1):
        return "paley"
    if n % 8 == 4 and _power_of_prime(n // 2 - 1):
        return "double"
    return "circulants" if n // 4 in CIRCULANTS else None


@functools.cache
def factors(order: int) -> tuple[int, ...]:
    """Orders of the Kronecker factors, the power of two last.

    Raises:
        SpecError: H-1, not a positive integer, or an order that no construction gives.
    """
    if isinstance(order, bool) or not isinstance(order, int) or order < 1:
        raise SpecError("H-1", f"order of a Hadamard matrix must be a positive integer, got {order!r}")
    found = _split(order)
    if found is None:
        raise SpecError("H-1", f"no construction gives a Hadamard matrix of order {order}")
    return found


def _split(order: int) -> tuple[int, ...] | None:
    odd, twos = order, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for low in range(twos + 1):
        if _kind(odd << low):
            parts = (odd << low, 2 ** (twos - low))
            return tuple(p for p in parts if p != 1) or (1,)
    for first in range(12, order, 4):
        if order % first == 0 and first & (first - 1) and _kind(first):
            rest = _split(order // first)
            if rest:
                return (first, *rest)
    return None


@functools.cache
def table(n: int) -> Table:
    """The matrix of one factor, int8 (n, n), read-only."""
    kind = "sylvester" if n & (n - 1) == 0 else _kind(n)
    if kind == "sylvester":
        bits = np.arange(n, dtype=np.uint64)
        made = 1 - 2 * (np.bitwise_count(bits[:, None] & bits[None]).astype(np.int8) & 1)
    elif kind == "paley":
        made = _jacobsthal(n - 1, skew=True) + np.eye(n, dtype=np.int8)
    elif kind == "double":
        core = _jacobsthal(n // 2 - 1, skew=False)
        made = np.empty((n, n), np.int8)
        one = np.eye(n // 2, dtype=np.int8)
        made[0::2, 0::2], made[0::2, 1::2], made[1::2, 0::2], made[1::2, 1::2] = (
            core + one, core - one, core - one, -core - one,
        )  # fmt: skip
    else:
        made = _four_circulants(n // 4)
    wide = made.astype(np.float32)  # sums of n < 2^24 ones are exact
    if not np.array_equal(wide @ wide.T, n * np.eye(n, dtype=np.float32)):
        raise AssertionError(f"the table of order {n} is not a Hadamard matrix")
    result = np.ascontiguousarray(made, np.int8)
    result.flags.writeable = False
    return result


def _jacobsthal(q: int, *, skew: bool) -> Table:
    """χ(a_i − a_j) of GF(q) bordered by ones, the first column by −1 for the skew kind."""
    character = _character(q)
    p, e = _power_of_prime(q) or (q, 1)
    weight = p ** np.arange(e)
    digits = np.arange(q)[:, None] // weight % p
    difference = ((digits[:, None] - digits[None]) % p) @ weight
    made = np.zeros((q + 1, q + 1), np.int8)
    made[0, 1:], made[1:, 0] = 1, -1 if skew else 1
    made[1:, 1:] = character[difference]
    return made


def _character(q: int) -> Table:
    """χ of every element by its index: 1 for even powers of a generator, −1 for odd ones."""
    p, e = _power_of_prime(q) or (q, 1)
    modulus = _irreducible(p, e)
    elements = [tuple(i // p**j % p for j in range(e)) for i in range(q)]
    for generator in elements[1:]:
        χ = np.zeros(q, np.int8)
        power, sign, seen = elements[1], 1, 0
        while True:
            χ[sum(c * p**j for j, c in enumerate(power))] = sign
            power, sign, seen = _remainder(_product(power, generator), modulus, p), -sign, seen + 1
            if power == elements[1]:
                break
        if seen == q - 1:
            return χ
    raise AssertionError(f"GF({q}) has no generator")


def _product(a: Digits, b: Digits) -> Digits:
    made = [0] * (len(a) + len(b) - 1)
    for (i, x), (j, y) in itertools.product(enumerate(a), enumerate(b)):
        made[i + j] += x * y
    return tuple(made)


def _remainder(a: Digits, monic: Digits, p: int) -> Digits:
    """a modulo a monic polynomial, degree(monic) digits."""
    rest, degree = [c % p for c in a], len(monic) - 1
    for top in range(len(rest) - 1, degree - 1, -1):
        factor = rest[top]
        for j, c in enumerate(monic):
            rest[top - degree + j] = (rest[top - degree + j] - factor * c) % p
    return tuple(rest[:degree] + [0] * (degree - len(rest)))


def _monic(p: int, degree: int) -> list[Digits]:
    """All monic polynomials of a degree in the order of the index of their lower coefficients."""
    return [(*(i // p**j % p for j in range(degree)), 1) for i in range(p**degree)]


def _irreducible(p: int, e: int) -> Digits:
    """The first monic polynomial of degree e that no polynomial of degree ≤ e/2 divides."""
    small = [d for degree in range(1, e // 2 + 1) for d in _monic(p, degree)]
    return next(f for f in _monic(p, e) if all(any(_remainder(f, d, p)) for d in small))


def _four_circulants(m: int) -> Table:
    """The array of Goethals and Seidel, entry by entry: row i of a circulant is its first row moved by i."""
    rows = [np.array([1 if sign == "+" else -1 for sign in row], np.int8) for row in CIRCULANTS[m]]
    i, j = np.indices((m, m))
    a = rows[0][(j - i) % m]
    b, c, d = (row[(-1 - j - i) % m] for row in rows[1:])  # X R
    bt, ct, dt = (row[(i + j + 1) % m] for row in rows[1:])  # Xᵀ R
    return np.concatenate(
        [
            np.concatenate(parts, axis=1)
            for parts in ((a, b, c, d), (-b, a, dt, -ct), (-c, -dt, a, bt), (-d, ct, -bt, a))
        ]
    )


def check_block(shape: tuple[int, ...], block_size: int | None) -> int:
    """Length of the runs to transform; refuses what H-2 refuses but for the order itself."""
    if not shape:
        raise SpecError("H-2", "x must have an axis to transform, got a 0-d array")
    if block_size is None:
        return shape[-1]
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
        raise SpecError("H-2", f"block_size must be a positive integer, got {block_size!r}")
    if shape[-1] % block_size:
        raise SpecError("H-2", f"block size {block_size} does not divide axis length {shape[-1]}")
    return block_size


def check_table(made: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
    """Refuse a table that is no Hadamard matrix, or an axis that is not its order times a power of two."""
    k = len(made) if made.ndim else 0
    if made.shape != (k, k) or k == 0 or not bool(np.all(np.abs(made) == 1)):
        raise SpecError("H-2", f"table must be a square matrix of +1 and -1, got shape {made.shape}")
    if not np.array_equal(made @ made.T, k * np.eye(k)):
        raise SpecError("H-2", f"table of shape {made.shape} has rows that are not orthogonal")
    n = shape[-1] if shape else 0
    if n == 0 or n % k or (n // k) & (n // k - 1):
        raise SpecError("H-2", f"axis length {n} is not {k} times a power of two")


def check_clip(norm: float, grid: int, max_shrink: float) -> int:
    """Number of clipping ratios to try; refuses what H-10 refuses."""
    if isinstance(norm, bool) or not isinstance(norm, (int, float)) or not (math.isfinite(norm) and norm > 0):
        raise SpecError("H-10", f"norm must be finite and above 0, got {norm!r}")
    if isinstance(grid, bool) or not isinstance(grid, int) or grid < 1:
        raise SpecError("H-10", f"grid must be a positive integer, got {grid!r}")
    if isinstance(max_shrink, bool) or not isinstance(max_shrink, (int, float)) or not 0 <= max_shrink <= 1:
        raise SpecError("H-10", f"max_shrink must be in 0..1, got {max_shrink!r}")
    return max(1, math.floor(max_shrink * grid))


def check_index(index: int) -> None:
    """Refuse what is no word of a counter."""
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < 2**32:
        raise SpecError("H-3", f"index must be an integer in 0..2^32 - 1, got {index!r}")


def addresses(rows: int, columns: int, index: int, purpose: int) -> npt.NDArray[np.int64]:
    """Counters (rows, ⌈columns / 4⌉, 4) of the words of a matrix.  [H-3]"""
    blocks = math.ceil(columns / 4)
    counters = np.empty((rows, blocks, 4), np.int64)
    counters[..., 0], counters[..., 3] = index, purpose
    counters[..., 1], counters[..., 2] = np.arange(rows)[:, None], np.arange(blocks)
    return counters
