"""H: rotations that leave a network's function alone and take the outliers out of its activations.

An orthogonal matrix can be moved through a linear layer and its inverse into the next, W x = (W R)(Rᵀ x). A Hadamard
matrix is an orthogonal one that spreads every entry over all of them, and multiplies by additions.

R1  between blocks: the residual stream h becomes h R1; possible once the gains of the norms are in the weights.
R2  within a head, between value and output projection; with grouped queries every key-value head has one.
R4  before the down projection: the weight takes Hᵀ, the activation is transformed while the network runs ("online").

Deliberately left out: R3 (queries and keys after the position embedding), which only a quantized key cache needs, and
rotations that are trained (SpinQuant).
Source: Huang et al. 2024, RoLoRA; Ashkboos et al. 2024, QuaRot; Liu et al. 2024, SpinQuant.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from . import checks
from .checks import F64, I32, Array
from .errors import SpecError
from .philox import philox_normal, philox_words
from .tables import CIRCULANTS
from .types import (
    ActivationClip,
    DecoderBlock,
    DecoderEnds,
    OutlierMeasures,
    Purpose,
    QuantizedActivations,
    Scheme,
)  # fmt: skip
from .uniform import dequantize, fit_grid, quantize

__all__ = [
    "activation_clip", "fuse_norm", "hadamard_matrix", "hadamard_transform", "kronecker_transform",
    "orthogonal_factor", "outlier_measures", "quantize_activations", "random_hadamard", "random_orthogonal",
    "rotate_block", "rotate_ends", "rotate_inputs", "rotate_outputs",
]  # fmt: skip

LARGEST = 1024  # no construction but Sylvester's reaches this order: a table costs its order in additions per entry


# --- Hadamard matrices


def prime_power(q: int) -> tuple[int, int] | None:
    """(p, e) with q = p^e and p prime, or None."""
    p = next((p for p in range(2, math.isqrt(q) + 1) if q % p == 0), q)
    e = 1
    while p**e < q:
        e += 1
    return (p, e) if q > 1 and p**e == q else None


def field(q: int) -> tuple[I32, I32]:
    """Differences and quadratic character of GF(q): index of a_i − a_j (q, q), χ (q,).  [H-1]

    Element i of GF(p^e) is the polynomial whose coefficients are the digits of i in base p, lowest first, modulo the
    first monic irreducible polynomial of degree e, in the order of the same numbering. χ(0) = 0, χ of a square is 1,
    of anything else −1.
    """
    p, e = prime_power(q) or (q, 1)
    digits = np.arange(q)[:, None] // p ** np.arange(e) % p  # (q, e), lowest first
    products = np.zeros((q, q, 2 * e - 1), np.int64)
    for i in range(e):
        products[:, :, i : i + e] += digits[:, None, i, None] * digits[None]

    def reduced(lower: int) -> npt.NDArray[np.int64]:  # every product modulo x^e + (polynomial of that index)
        table = products.copy()
        for degree in range(2 * e - 2, e - 1, -1):
            table[..., degree - e : degree] -= table[..., degree, None] * digits[lower]
        return table[..., :e] % p

    modulus = next(i for i in range(q) if reduced(i)[1:, 1:].any(axis=-1).all())  # no zero divisors: irreducible
    squares = reduced(modulus)[np.arange(q), np.arange(q)]
    weight = p ** np.arange(e)
    χ = np.full(q, -1, np.int32)
    χ[squares @ weight] = 1
    χ[0] = 0
    return ((digits[:, None] - digits[None]) % p @ weight).astype(np.int32), χ


def paley(q: int) -> I32:
    """Paley's first construction (order q + 1, q ≡ 3 mod 4) or second (order 2(q + 1), q ≡ 1 mod 4).  [H-1]"""
    difference, χ = field(q)
    J = np.zeros((q + 1, q + 1), np.int32)
    J[1:, 1:] = χ[difference]
    J[0, 1:] = 1
    if q % 4 == 3:
        J[1:, 0] = -1
        return J + np.eye(q + 1, dtype=np.int32)  # (H.1)
    J[1:, 0] = 1
    plus, minus = np.array([[1, 1], [1, -1]], np.int32), np.array([[1, -1], [-1, -1]], np.int32)
    return np.kron(J, plus) + np.kron(np.eye(q + 1, dtype=np.int32), minus)  # (H.2)


def goethals_seidel(m: int) -> I32:
    """Order 4m from four circulants.  [H-1]"""
    shift = (np.arange(m)[None] - np.arange(m)[:, None]) % m
    A, B, C, D = (np.array([1 if c == "+" else -1 for c in row], np.int32)[shift] for row in CIRCULANTS[m])
    B, C, D = B[:, ::-1], C[:, ::-1], D[:, ::-1]  # times the back-identity R
    Bt, Ct, Dt = (np.ascontiguousarray(X[:, ::-1].T[:, ::-1]) for X in (B, C, D))  # BᵀR, CᵀR, DᵀR
    return np.block([[A, B, C, D], [-B, A, Dt, -Ct], [-C, -Dt, A, Bt], [-D, Ct, -Bt, A]])  # (H.3)


def direct(n: int) -> bool:
    """Whether one of the constructions gives the order itself."""
    if n == 1:
        return True
    paley1 = n % 4 == 0 and prime_power(n - 1) is not None
    paley2 = n % 4 == 0 and n // 2 % 4 == 2 and prime_power(n // 2 - 1) is not None
    return n < LARGEST and (paley1 or paley2 or (n % 4 == 0 and n // 4 in CIRCULANTS))


def factors(order: int) -> tuple[int, ...] | None:
    """Orders whose Kronecker product gives the matrix of this order, the power of two last, or None.  [H-1]"""
    twos = (order & -order).bit_length() - 1
    for t in range(twos, -1, -1):
        if direct(order >> t):
            return tuple(f for f in (order >> t, 1 << t) if f > 1) or (1,)
    for first in range(12, order, 4):
        if order % first == 0 and first & (first - 1) and direct(first) and (rest := factors(order // first)):
            return (first, *rest)
    return None


def checked_factors(order: int) -> tuple[int, ...]:
    """The factors of an order, or a refusal."""
    order = checks.whole(order, "order of a Hadamard matrix", "H-1", low=1)
    found = factors(order)
    if found is None:
        raise SpecError(
            "H-1", f"no construction gives a Hadamard matrix of order {order}; take blocks of {order & -order}"
        )
    return found


def table_of(n: int) -> I32:
    """The matrix of one factor."""
    if n & (n - 1) == 0:
        H = np.ones((1, 1), np.int32)
        while len(H) < n:
            H = np.block([[H, H], [H, -H]])  # Sylvester
        return H
    if prime_power(n - 1):
        return paley(n - 1)
    return paley(n // 2 - 1) if n // 2 % 4 == 2 and prime_power(n // 2 - 1) else goethals_seidel(n // 4)


def hadamard_matrix(*, order: int) -> I32:
    """A matrix of ±1 with H Hᵀ = n I.  [H-1]

        I + [[0, 1ᵀ], [−1, J]],  J_ij = χ(a_i − a_j)                      Paley I,  n = q + 1             (H.1)
        C ⊗ [[1, 1], [1, −1]] + I ⊗ [[1, −1], [−1, −1]],  C = [[0, 1ᵀ], [1, J]]   Paley II,  n = 2(q + 1)  (H.2)
        [[A, BR, CR, DR], [−BR, A, DᵀR, −CᵀR], [−CR, −DᵀR, A, BᵀR], [−DR, CᵀR, −BᵀR, A]]   n = 4m         (H.3)
        H_K ⊗ H_{2^t},  H_{2n} = [[H_n, H_n], [H_n, −H_n]]                                                (H.4)

    with χ the quadratic character of GF(q), q a prime power ≡ 3 (I) or 1 (II) mod 4, R the back-identity and A … D
    the circulants of ``tables.CIRCULANTS``. Of the factorisations n = K 2^t the one with the smallest K < 1024 is
    taken, and the constructions are tried in the order (H.1), (H.2), (H.3); where no K will do, the smallest possible
    factor is split off: n = K_1 K_2 2^t. So the matrix of an order is unique, and two backends transform alike.

    Shapes: → int32 (n, n). The published tables (QuaRot, RoLoRA) are other matrices of the same orders: equal in what
    they do, not in their bits; ``kronecker_transform`` takes them.
    Source: Paley 1933; Williamson 1944; Goethals and Seidel 1967.

    >>> hadamard_matrix(order=4).tolist()
    [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    >>> hadamard_matrix(order=428)
    Traceback (most recent call last):
    lowbit.reference.errors.SpecError: [H-1] no construction gives a Hadamard matrix of order 428; take blocks of 4
    """
    H = np.ones((1, 1), np.int32)
    for n in checked_factors(order):
        H = np.kron(H, table_of(n))  # (H.4)
    return H


# --- the transform


def butterfly(x: F64, t: int) -> F64:
    """x (..., 2^t) times Sylvester's matrix, by t rounds of sums and differences.  [H-2]"""
    y = x
    for s in range(t):
        a, b = np.moveaxis(y.reshape(-1, 2, 1 << s), 1, 0)
        y = np.stack([a + b, a - b], axis=1)  # (H.6)
    return y.reshape(x.shape)


def multiply(x: F64, orders: tuple[int, ...], transpose: bool) -> F64:
    """x (..., Π orders) times the Kronecker product of the matrices of the orders."""
    n, *rest = orders
    if n & (n - 1) == 0:
        return butterfly(x, n.bit_length() - 1)
    T = table_of(n).astype(np.float64)
    parts = x.reshape(*x.shape[:-1], n, x.shape[-1] // n)
    if rest:
        parts = multiply(parts, tuple(rest), transpose)
    return ((T.T if transpose else T) @ parts).reshape(x.shape)


def hadamard_transform(x: npt.ArrayLike, /, *, block_size: int | None = None, transpose: bool = False) -> F64:
    """Normalised Hadamard transform of the last axis, without the matrix.  [H-2]

        y = H x / √n                                                                                      (H.5)
        H_{2^t}:  (a, b) ← (a + b, a − b)  at distances 1, 2, 4 … 2^(t−1)                                  (H.6)

    with the H of ``hadamard_matrix`` (its transpose with ``transpose``; the two differ where K > 1). With block_size
    every run of so many columns is transformed alone: the way for an axis whose length is no order.

    Shapes: x (..., n) → float (..., n); block_size divides n.

    >>> hadamard_transform([0.0, 8.0, 0.0, 0.0]).tolist()
    [4.0, -4.0, 4.0, -4.0]
    """
    a = checks.finite(x, "x", "H-2")
    if a.ndim == 0:
        raise SpecError("H-2", "x must have an axis to transform, got a 0-d array")
    size = a.shape[-1] if block_size is None else checks.whole(block_size, "block_size", "H-2", low=1)
    orders = checked_factors(size)
    if a.shape[-1] % size:
        raise SpecError("H-2", f"block size {size} does not divide axis length {a.shape[-1]}")
    blocks = a.reshape(-1, size)
    return multiply(blocks, orders, bool(transpose)).reshape(a.shape) / math.sqrt(size)  # (H.5)


def kronecker_transform(x: npt.ArrayLike, table: npt.ArrayLike, /, *, transpose: bool = False) -> F64:
    """The transform with a Hadamard matrix of the caller's: y = (T ⊗ H_{2^t}) x / √n.  [H-2b]

        y[a 2^t + b] = Σ_{c, d} T_ac (H_{2^t})_bd x[c 2^t + d] / √n                                       (H.7)

    Shapes: x (..., n), n = K 2^t, table (K, K) of ±1 with T Tᵀ = K I → float (..., n). With ``transpose`` Tᵀ stands
    for T. The published tables are not symmetric; QuaRot and RoLoRA apply the table itself to activations and weights
    alike, (T w)·(T x) = n w·x, where it does not matter.

    >>> kronecker_transform([1.0, 0.0, 0.0, 0.0], [[1, 1], [-1, 1]]).tolist()
    [0.5, 0.5, -0.5, -0.5]
    """
    a = checks.finite(x, "x", "H-2")
    T = checks.finite(table, "table", "H-2", ndim=2)
    K = len(T)
    if T.shape != (K, K) or K == 0 or (np.abs(T) != 1).any() or (K * np.eye(K) != T @ T.T).any():
        raise SpecError("H-2", f"table of shape {T.shape} must hold ±1 with orthogonal rows")
    n = a.shape[-1] if a.ndim else 0
    if n == 0 or n % K or (n // K) & (n // K - 1):
        raise SpecError("H-2", f"axis length {n} is not {K} times a power of two")
    parts = butterfly(a.reshape(*a.shape[:-1], K, n // K), (n // K).bit_length() - 1)
    return ((T.T if transpose else T) @ parts).reshape(a.shape) / math.sqrt(n)  # (H.7)


# --- random rotations


def addresses(shape: tuple[int, ...], index: int, purpose: Purpose) -> npt.NDArray[np.int64]:
    """Counters (index, row, column // 4, purpose) of the blocks of a matrix, or of a vector (row 0).  [H-3]"""
    rows, columns = shape if len(shape) == 2 else (1, *shape)
    counters = np.zeros((rows, -(-columns // 4), 4), np.int64)
    counters[..., 0], counters[..., 3] = index, purpose
    counters[..., 1], counters[..., 2] = np.indices(counters.shape[:2])
    return counters


def random_hadamard(*, order: int, seed: int, index: int = 0) -> F64:
    """Rotation with random signs, the j-th the top bit of word j of the addresses.  [H-3]

        Q = diag(s) Hᵀ / √n,   s_j = −1 where the top bit of word j mod 4 at (index, 0, ⌊j/4⌋, SIGNS) is set  (H.8)

    Shapes: → float64 (n, n). Row i is ± column i of H; applied as x Q it flips the signs of x and transforms them.
    ``index`` tells the rotations of one seed apart. Published code multiplies by a float32 1/√n, so that its Q is
    orthogonal to 3·10⁻⁸ only. Source: QuaRot ``random_hadamard_matrix``.

    >>> abs(random_hadamard(order=4, seed=1)).tolist() == [[0.5] * 4] * 4
    True
    """
    H = hadamard_matrix(order=order)
    index = checks.whole(index, "index", "H-3", low=0, high=2**32 - 1)
    words = philox_words(addresses((order,), index, Purpose.SIGNS), seed=seed).ravel()[:order]
    return np.where(words < 0, -1, 1)[:, None] * H.T / math.sqrt(order)  # (H.8): the top bit is the sign of an int32


def orthogonal_factor(z: npt.ArrayLike, /) -> F64:
    """Q of z = Q R with the diagonal of R positive.  [H-4]

        Q ← Q diag(sign R_ii)                                                                             (H.9)

    Shapes: z (n, n) → float64 (n, n). Unique for a regular z. Without the signs a Gaussian z gives matrices that are
    orthogonal and not Haar distributed. sign(0) is 1: a singular z has more than one answer, each orthogonal.
    Source: Mezzadri 2007.

    >>> orthogonal_factor([[0.0, 2.0], [-3.0, 0.0]]).tolist()
    [[0.0, 1.0], [-1.0, 0.0]]
    """
    a = checks.finite(z, "z", "H-4", ndim=2)
    if a.shape[0] != a.shape[1]:
        raise SpecError("H-4", f"z must be square, got shape {a.shape}")
    Q, R = np.linalg.qr(a)
    return np.asarray(Q * np.where(np.diag(R) < 0, -1.0, 1.0) + 0.0)  # (H.9); + 0.0 makes −0 a 0


def random_orthogonal(*, order: int, seed: int, index: int = 0) -> F64:
    """Haar distributed rotation.  [H-4a]

        Q of a Gaussian matrix, z_ij = normal j mod 4 at (index, i, ⌊j/4⌋, HAAR)                          (H.10)

    Shapes: → float64 (n, n). Its Gaussian matrix is addressed, so the result is a function of (order, seed, index).

    >>> Q = random_orthogonal(order=3, seed=1)
    >>> bool(abs(Q.T @ Q - np.eye(3)).max() < 1e-15)
    True
    """
    order = checks.whole(order, "order", "H-4", low=1)
    index = checks.whole(index, "index", "H-4", low=0, high=2**32 - 1)
    normals = philox_normal(addresses((order, order), index, Purpose.HAAR), seed=seed)
    return orthogonal_factor(normals.reshape(order, -1)[:, :order])  # (H.10)


# --- moving rotations into weights


def fuse_norm(w: npt.ArrayLike, gain: npt.ArrayLike, /) -> F64:
    """A norm's gain taken into the layer that reads it.  [H-5]

        W ← W diag(g),   g ← 1                                                                            (H.11)

    Shapes: w (m, k), gain (k,) → float (m, k). RMSNorm without its gain commutes with rotations, with it it does not:
    forgetting this step before R1 destroys the model.

    >>> fuse_norm([[1.0, 2.0]], [3.0, 0.5]).tolist()
    [[3.0, 1.0]]
    """
    a, g = checks.finite(w, "w", "H-5", ndim=2), checks.finite(gain, "gain", "H-5", ndim=1)
    if a.shape[1] != len(g):
        raise SpecError("H-5", f"gain of length {len(g)} does not fit w of shape {a.shape}")
    return a * g  # (H.11)


def rotations(q: npt.ArrayLike, axis: int, repeats: int) -> F64:
    """Rotations of the blocks of an axis as (blocks, d, d), each repeated.  [H-6]"""
    Q = checks.finite(q, "q", "H-6")
    if Q.ndim not in (2, 3) or Q.shape[-1] != Q.shape[-2] or Q.size == 0:
        raise SpecError("H-6", f"q must have shape (d, d) or (b, d, d), got {Q.shape}")
    repeats = checks.whole(repeats, "repeats", "H-6", low=1)
    d = Q.shape[-1]
    if Q.ndim == 2:
        blocks = np.broadcast_to(Q, (axis // d, d, d))
    else:
        blocks = np.repeat(Q, repeats, axis=0)
    if len(blocks) * d != axis or (Q.ndim == 2 and (axis // d) % repeats):
        raise SpecError("H-6", f"q of shape {Q.shape}, repeated {repeats} times, does not cover {axis} features")
    return blocks


def rotate_inputs(w: npt.ArrayLike, q: npt.ArrayLike, /, *, repeats: int = 1) -> F64:
    """Weight of a layer whose inputs are rotated.  [H-6]

        W ← W (Q_1 ⊕ … ⊕ Q_b)                                                                             (H.12)

    Shapes: w (m, k), q (d, d), used for every run of d columns, or (b, d, d), one for each, every one ``repeats`` times
    in a row → float (m, k). Grouped queries: the value heads have rotations (h_kv, d, d), and o_proj, which reads h
    heads, takes them with repeats = h / h_kv. Always computed in float64 and rounded once.

    >>> rotate_inputs([[1.0, 2.0, 3.0, 4.0]], [[0, 1], [1, 0]]).tolist()
    [[2.0, 1.0, 4.0, 3.0]]
    """
    a = checks.finite(w, "w", "H-6", ndim=2)
    Q = rotations(q, a.shape[1], repeats)
    return np.asarray(np.einsum("mbi,bij->mbj", a.reshape(len(a), *Q.shape[:2]), Q).reshape(a.shape))  # (H.12)


def rotate_outputs(w: npt.ArrayLike, q: npt.ArrayLike, /, *, repeats: int = 1) -> F64:
    """Weight (or, as a column, bias) of a layer whose outputs are to be rotated.  [H-6a]

        W ← (Q_1 ⊕ … ⊕ Q_b)ᵀ W                                                                            (H.13)

    Shapes: w (m, k), q (d, d) or (b, d, d) as in rotate_inputs, over the rows → float (m, k). A bias goes through as
    (m, 1): left behind, it is the classical way to lose invariance.

    >>> rotate_outputs([[1.0], [2.0]], [[0, -1], [1, 0]]).tolist()
    [[2.0], [-1.0]]
    """
    a = checks.finite(w, "w", "H-6", ndim=2)
    Q = rotations(q, a.shape[0], repeats)
    return np.asarray(np.einsum("bij,bim->bjm", Q, a.reshape(*Q.shape[:2], a.shape[1])).reshape(a.shape))  # (H.13)


def rotate_block(
    block: DecoderBlock[Array], r1: npt.ArrayLike, r2: npt.ArrayLike | None = None, /, *, online: bool = True
) -> DecoderBlock[Array]:
    """A decoder block with rotated residual stream, values and down projection.  [H-7]

        W_q, W_k, W_v ← W diag(g_in) R1,   W_gate, W_up ← W diag(g_post) R1,   g_in, g_post ← 1            (H.14)
        W_o, W_down ← R1ᵀ W,   b_o, b_down ← R1ᵀ b                                                         (H.15)
        W_v ← (I ⊗ R2)ᵀ W_v,   b_v ← (I ⊗ R2)ᵀ b_v,   W_o ← W_o (I ⊗ R2)           per key-value head      (H.16)
        W_down ← W_down Hᵀ / √f,   and while the network runs  a ← H a / √f  before it                     (H.17)

    Shapes: block as in DecoderBlock; r1 (d, d); r2 (d_h, d_h), or (h_kv, d_h, d_h), or None for no (H.16); (H.17) only
    with ``online``. A head of o_proj takes the R2 of its key-value head. Biases of q, k, gate and up are not touched
    by any of these. With every block and both ends rotated the network computes what it did, provided
    hadamard_transform is applied before down_proj.
    Source: RoLoRA ``rotate_model_r1r4`` (R1 and R4); SpinQuant (R2). RoLoRA's own code has no (H.16).

    >>> one = np.ones((2, 2))
    >>> b = DecoderBlock(np.ones(2), one, one, one, one, np.ones(2), one, one, one, None, None, None)
    >>> rotate_block(b, [[0, 1], [-1, 0]], online=False).down.tolist()
    [[-1.0, -1.0], [1.0, 1.0]]
    """
    b = checked_block(block)
    R1 = square(r1, b.q.shape[1], "r1")
    q, k, v = (rotate_inputs(fuse_norm(w, b.input_norm), R1) for w in (b.q, b.k, b.v))  # (H.14)
    gate, up = (rotate_inputs(fuse_norm(w, b.post_norm), R1) for w in (b.gate, b.up))
    o, down = rotate_outputs(b.o, R1), rotate_outputs(b.down, R1)  # (H.15)
    o_bias, down_bias = (None if x is None else rotate_outputs(x[:, None], R1)[:, 0] for x in (b.o_bias, b.down_bias))
    v_bias = b.v_bias
    if r2 is not None:
        if len(v) == 0 or o.shape[1] % len(v):
            raise SpecError("H-7", f"{o.shape[1]} query features are no multiple of {len(v)} value features")
        R2 = checks.finite(r2, "r2", "H-7")
        v, o = rotate_outputs(v, R2), rotate_inputs(o, R2, repeats=o.shape[1] // len(v))  # (H.16)
        v_bias = None if v_bias is None else rotate_outputs(v_bias[:, None], R2)[:, 0]
    if online:
        down = hadamard_transform(down)  # (H.17)
    one = np.ones(len(R1))
    return DecoderBlock(one, q, k, v, o, one, gate, up, down, v_bias, o_bias, down_bias)


def checked_block(block: DecoderBlock[Array]) -> DecoderBlock[F64]:
    """Copies of all arrays, of shapes that fit each other."""
    if len(block) != len(DecoderBlock._fields):
        raise SpecError("H-7", f"block must have the fields {', '.join(DecoderBlock._fields)}")
    parts: list[F64 | None] = []
    for name, a in zip(DecoderBlock._fields, block, strict=True):
        if a is None:
            if not name.endswith("_bias"):
                raise SpecError("H-7", f"block.{name} must be an array; only biases may be None")
            parts.append(None)
        else:
            ndim = 1 if name.endswith(("_norm", "_bias")) else 2
            parts.append(checks.finite(a, f"block.{name}", "H-7", ndim=ndim))
    b: DecoderBlock[F64] = DecoderBlock(*parts)  # type: ignore[arg-type]
    d, f = len(b.input_norm), len(b.gate)
    wanted = {
        "q": (len(b.q), d), "k": (len(b.k), d), "v": (len(b.v), d), "o": (d, b.o.shape[1]), "post_norm": (d,),
        "gate": (f, d), "up": (f, d), "down": (d, f), "v_bias": (len(b.v),), "o_bias": (d,), "down_bias": (d,),
    }  # fmt: skip
    for name, shape in wanted.items():
        part = getattr(b, name)
        if part is not None and part.shape != shape:
            raise SpecError("H-7", f"block.{name} must have shape {shape}, got {part.shape}")
    return b


def square(r: npt.ArrayLike, d: int, name: str) -> F64:
    """A (d, d) matrix."""
    a = checks.finite(r, name, "H-7", ndim=2)
    if a.shape != (d, d):
        raise SpecError("H-7", f"{name} must have shape {(d, d)}, got {a.shape}")
    return a


def rotate_ends(
    embedding: npt.ArrayLike,
    gain: npt.ArrayLike,
    head: npt.ArrayLike | None,
    r1: npt.ArrayLike,
    /,
    *,
    centre: bool = False,
) -> DecoderEnds[Array]:
    """Embedding and output head around rotated blocks.  [H-7a]

        E ← E R1,   W_head ← W_head diag(g) R1,   g ← 1                                                   (H.18)

    with g the gain of the last norm. A tied head (None) is the embedding as it was: it reads g and the embedding does
    not, so the two part here, and must be stored apart.

    Shapes: embedding (V, d), gain (d,), head (V', d) or None, r1 (d, d) → both float (V, d), (V', d).
    ``centre`` subtracts the mean of every row of E first, as QuaRot, SpinQuant and RoLoRA do for every model. That
    preserves the function of a network with LayerNorm; with RMSNorm it does not.

    >>> rotate_ends([[1.0, 2.0]], [2.0, 2.0], None, [[0, 1], [1, 0]])
    DecoderEnds(embedding=array([[2., 1.]]), head=array([[4., 2.]]))
    """
    E, g = checks.finite(embedding, "embedding", "H-7", ndim=2), checks.finite(gain, "gain", "H-7", ndim=1)
    W = E if head is None else checks.finite(head, "head", "H-7", ndim=2)
    R1 = square(r1, E.shape[1], "r1")
    if W.shape[1] != len(R1) or len(g) != len(R1):
        raise SpecError("H-7", f"gain {g.shape} and head {W.shape} must have {len(R1)} features, as the embedding has")
    if centre:
        E = E - E.mean(axis=1, keepdims=True)
    return DecoderEnds(rotate_inputs(E, R1), rotate_inputs(fuse_norm(W, g), R1))  # (H.18)


# --- activations


def outlier_measures(x: npt.ArrayLike, /) -> OutlierMeasures[Array]:
    """How far a token is from evenly spread.  [H-8]

        kurtosis = mean((x − μ)⁴) / mean((x − μ)²)² − 3,   μ = mean x        0 for a Gaussian             (H.19)
        peak = max|x| / √mean(x²)                      1 when flat, √k when one entry is all there is     (H.20)

    Shapes: x (..., k), k ≥ 1 → float (...) each. Computed in float64 whatever the input. A token of equal entries has
    kurtosis 0, an all-zero one peak 0. Source: RoLoRA's measure is the excess kurtosis (H.19).

    >>> measures = outlier_measures([[0.0, 0.0, 0.0, 8.0], [4.0, -4.0, 4.0, -4.0]])
    >>> measures.kurtosis.round(4).tolist(), measures.peak.tolist()
    ([-0.6667, -2.0], [2.0, 1.0])
    """
    a = checks.finite(x, "x", "H-8")
    if a.ndim == 0 or a.shape[-1] == 0:
        raise SpecError("H-8", f"x must have at least one entry per token, got shape {a.shape}")
    size = np.abs(a).max(axis=-1, keepdims=True)
    v = a / np.where(size > 0, size, 1.0)  # both measures do not know the scale; fourth powers would leave the range
    d = v - v.mean(axis=-1, keepdims=True)
    level = (v == v[..., :1]).all(axis=-1)
    second = np.where(level, 1.0, (d**2).mean(axis=-1))
    kurtosis = np.where(level, 0.0, (d**4).mean(axis=-1) / second**2 - 3)  # (H.19)
    rms = np.sqrt((v**2).mean(axis=-1))
    return OutlierMeasures(kurtosis, np.where(rms > 0, 1.0, 0.0) / np.where(rms > 0, rms, 1.0))  # (H.20)


def quantize_activations(
    x: npt.ArrayLike, /, *, bits: int, scheme: Scheme = "symmetric", clip_ratio: float = 1.0,
    group_size: int | None = None,
) -> QuantizedActivations[Array]:  # fmt: skip
    """Dynamic quantizer of activations: every token (or group in it) gets the grid of its own values.  [H-9]

        s, z = fit_grid of the token,   code = quantize(x, s, z),   x̂ = s (code − z)                      (H.21)

    Shapes: x (..., k) → codes int32 (..., k), scale and zero_point (..., G), values (..., k), as in fit_grid with
    granularity "token" or "group". Equivariant: s(a x) = a s(x) for a > 0, with the same codes. 0 is always in the
    range, so zeros stay zeros; published code leaves it out for groups.
    Source: QuaRot and RoLoRA ``ActQuantizer``; clip_ratio 1.0 in RoLoRA, 0.9 in QuaRot.

    >>> quantize_activations([[0.5, -7.0], [0.0, 0.0]], bits=4).codes.tolist()
    [[0, -7], [0, 0]]
    """
    a = checks.finite(x, "x", "H-9")
    s, z = fit_grid(
        a, bits=bits, scheme=scheme, granularity="token" if group_size is None else "group", group_size=group_size,
        clip_ratio=clip_ratio,
    )  # fmt: skip
    codes = quantize(a, s, z, bits=bits, scheme=scheme)
    return QuantizedActivations(codes, s, z, dequantize(codes, s, z))  # (H.21)


def activation_clip(
    x: npt.ArrayLike, /, *, bits: int, scheme: Scheme = "symmetric", group_size: int | None = None,
    norm: float = 2.0, grid: int = 20, max_shrink: float = 0.5,
) -> ActivationClip[Array]:  # fmt: skip
    """The one clipping ratio for all tokens with the least error on calibration data.  [H-10]

        p_i = 1 − i / grid,   i = 0 … ⌊max_shrink · grid⌋ − 1,   E_i = Σ |x̂(p_i) − x|^norm                (H.22)
        p = p_i of the smallest E_i, the largest ratio among equals                                       (H.23)

    Shapes: x (..., k) → ratio, errors float64 (N,). Weights have a ratio per row (clip_search, Q-5); an activation's
    grid is made while the network runs, so only a constant can be searched for.

    >>> activation_clip([[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0]], bits=2, grid=4).ratio
    0.75
    """
    norm = checks.number(norm, "norm", "H-10", low=0.0, above=True)
    grid = checks.whole(grid, "grid", "H-10", low=1)
    max_shrink = checks.number(max_shrink, "max_shrink", "H-10", low=0.0, high=1.0)
    a = checks.finite(x, "x", "H-10")
    errors = []
    for i in range(max(1, math.floor(max_shrink * grid))):
        found = quantize_activations(a, bits=bits, scheme=scheme, clip_ratio=1 - i / grid, group_size=group_size)
        errors.append(float((np.abs(found.values - a) ** norm).sum()))  # (H.22)
    return ActivationClip(1 - int(np.argmin(errors)) / grid, np.array(errors))  # (H.23)
