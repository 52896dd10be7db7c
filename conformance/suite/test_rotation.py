"""Chapter H: Hadamard transforms, rotations moved into weights, quantized activations."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lowbit.conformance import compare, strategies
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array
from lowbit.reference.types import DecoderBlock, Purpose

HADAMARD_ORDERS = (
    1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60, 64, 68, 72, 76, 80, 84, 88, 92, 96, 100, 104, 108,
    112, 116, 120, 124, 128, 144, 148, 156, 168, 172, 184, 244, 256, 260, 340, 344,
)  # fmt: skip
"""Every construction: Sylvester, both of Paley over prime fields and GF(9), GF(25), GF(27), GF(121), GF(169), GF(343),
four circulants, and products."""


@st.composite
def hadamard_inputs(draw: st.DrawFn) -> tuple[Array, int | None]:
    """Tokens whose width has a matrix, or is a few blocks of one; block size or None."""
    size = draw(st.sampled_from([1, 2, 4, 8, 12, 16, 20, 28, 32, 36, 48, 64, 80, 96, 128, 144, 192, 256, 288, 512]))
    blocks = draw(st.sampled_from([None, None, 1, 3]))
    shape = (*draw(st.sampled_from([(), (1,), (3,), (2, 5)])), size * (blocks or 1))
    seed, unit = draw(st.integers(0, 2**16)), draw(st.sampled_from(strategies.UNITS))
    x = np.random.default_rng(seed).integers(-99, 100, shape) * unit
    if draw(st.booleans()):  # an outlier feature
        x[..., draw(st.integers(0, shape[-1] - 1))] *= 512
    return np.clip(x, -6e4, 6e4).astype(draw(strategies.float_dtypes(half=True))), None if blocks is None else size


@st.composite
def table_inputs(draw: st.DrawFn) -> tuple[Array, Array]:
    """Tokens and a table with permuted, negated rows and columns: in general not symmetric."""
    from lowbit import reference

    order = draw(st.sampled_from([1, 2, 4, 12, 20, 28]))
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    table = reference.hadamard_matrix(order=order)[random.permutation(order)][:, random.permutation(order)]
    table = table * random.choice([-1, 1], order) * random.choice([-1, 1], (order, 1))
    n = order * 2 ** draw(st.integers(0, 6))
    dtype = draw(strategies.float_dtypes(half=True))
    x = (random.integers(-99, 100, (draw(st.integers(1, 6)), n)) / 8).astype(dtype)
    return x, table.astype(dtype)


@st.composite
def square_matrices(draw: st.DrawFn) -> Array:
    """(n, n): general, negative diagonal, singular, of huge range over columns."""
    n = draw(st.integers(1, 9))
    z = draw(strategies.integers((n, n), 99)) * draw(st.sampled_from(strategies.UNITS))
    kind = draw(st.sampled_from(["general", "general", "negative", "singular", "range"]))
    if kind == "negative":
        z = z - 300 * np.eye(n)
    elif kind == "singular":
        z[:, -1] = z[:, 0]
    elif kind == "range":
        z = z * np.ldexp(1.0, draw(arrays(np.int64, (n,), elements=st.integers(-12, 6))))
    return z.astype(draw(strategies.float_dtypes()))


class RotationProblem(NamedTuple):
    """A weight whose inputs are rotated in blocks."""

    w: Array  # (m, k)
    q: Array  # (d, d) or (b, d, d)
    repeats: int


def _orthogonal(draw: st.DrawFn, *shape: int) -> Array:
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    return np.linalg.qr(random.standard_normal(shape))[0]


@st.composite
def rotation_problems(draw: st.DrawFn) -> RotationProblem:
    """One rotation of the whole axis, one for every block, or one per block with repeats; w may be a half."""
    d, blocks, repeats = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    q = _orthogonal(draw, d, d) if draw(st.booleans()) else _orthogonal(draw, blocks, d, d)
    w = draw(strategies.integers((draw(st.integers(1, 4)), d * blocks * repeats), 999)) * draw(
        st.sampled_from(strategies.UNITS)
    )
    w = np.clip(w, -6e4, 6e4).astype(draw(strategies.float_dtypes(half=True)))
    return RotationProblem(w, q.astype(draw(strategies.float_dtypes())), repeats)


class BlockProblem(NamedTuple):
    """A decoder block and its rotations."""

    block: Any  # DecoderBlock of arrays
    r1: Array
    r2: Array | None


@st.composite
def block_problems(draw: st.DrawFn) -> BlockProblem:
    """Grouped queries, biases or none, one R2 or one per key-value head or none."""
    from lowbit.reference.types import DecoderBlock

    kv, share, width = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    d, f = draw(st.integers(2, 6)), draw(st.sampled_from([1, 2, 4, 8, 12]))
    dtype = draw(strategies.float_dtypes())
    random = np.random.default_rng(draw(st.integers(0, 2**16)))

    def weight(*shape: int) -> Array:
        return (random.integers(-99, 100, shape) / 37).astype(dtype)

    values, queries = kv * width, kv * share * width
    biases = (weight(values), weight(d), weight(d)) if draw(st.booleans()) else (None, None, None)
    block: Any = DecoderBlock(
        weight(d), weight(queries, d), weight(values, d), weight(values, d), weight(d, queries), weight(d),
        weight(f, d), weight(f, d), weight(d, f), *biases,
    )  # fmt: skip
    r2 = [None, _orthogonal(draw, width, width), _orthogonal(draw, kv, width, width)][draw(st.integers(0, 2))]
    return BlockProblem(block, _orthogonal(draw, d, d).astype(dtype), None if r2 is None else r2.astype(dtype))


@st.composite
def end_problems(draw: st.DrawFn) -> tuple[Array, Array, Array | None, Array]:
    """Embedding, gain, head (None: tied), R1; means of embedding rows that are far from 0."""
    d, words = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    dtype = draw(strategies.float_dtypes())
    embedding = (draw(strategies.integers((words, d), 99)) + 50) / 37
    gain = draw(strategies.integers((d,), 99)) / 41
    head = (draw(strategies.integers((words, d), 99)) / 53).astype(dtype) if draw(st.booleans()) else None
    return embedding.astype(dtype), gain.astype(dtype), head, _orthogonal(draw, d, d).astype(dtype)


@st.composite
def tokens(draw: st.DrawFn) -> Array:
    """Activations (T, k): one-hot, flat, constant, all-zero and general tokens, outlier features."""
    k = draw(st.integers(1, 12))
    rows = []
    for kind in draw(
        st.lists(st.sampled_from(["general", "general", "hot", "flat", "level", "zero"]), min_size=1, max_size=6)
    ):
        row = draw(strategies.integers((k,), 99)) / 37
        if kind == "hot":
            row = np.where(np.arange(k) == draw(st.integers(0, k - 1)), 7.0, 0.0)
        elif kind == "flat":
            row = np.where(row < 0, -0.1, 0.1)
        elif kind in ("level", "zero"):
            row = np.full(k, 0.1 if kind == "level" else 0.0)
        rows.append(row)
    x = np.array(rows)
    x[:, 0] *= draw(st.sampled_from([1.0, 1.0, 64.0]))
    return x.astype(draw(strategies.float_dtypes()))


U64 = compare.unit_roundoff("float64")


def rounded_once(kit: Kit, expected: Array, spread: Array | float, roundings: int, result: Array) -> Array:
    """Bound for what is computed in float64 and rounded to the result's format: γ_n · spread, and one rounding."""
    last = compare.unit_roundoff(result.dtype.name)
    return compare.gamma(roundings, U64) * np.asarray(spread) + last * np.abs(expected) + kit.tiny()


# -- Hadamard ----------------------------------------------------------------------------------------------------------


@clause("H-1", tier="exact", order=HADAMARD_ORDERS)
def test_matrices_of_every_construction(kit: Kit, order: int) -> None:
    """±1, orthogonal rows in integers, and the very matrix of the specification: others must be able to undo it."""
    found = kit.call("hadamard_matrix", order=order)
    kit.require(found.dtype == np.int32, f"the matrix has dtype {found.dtype}, expected int32")
    kit.require(found.shape == (order, order), f"the matrix has shape {found.shape}, expected {(order, order)}")
    kit.require(bool(np.all(np.abs(found) == 1)), "an entry is neither 1 nor -1")
    wide = found.astype(np.float64)  # integers, exact
    kit.require(bool(np.all(wide @ wide.T == order * np.eye(order))), f"rows of order {order} are not orthogonal")
    kit.check(compare.exact(found, kit.spec.hadamard_matrix(order=order), "matrix"))


@clause("H-1a", tier="exact", order=[-4, 0, 3, 6, 10, 14, 18, 30, 188, 428, 668, 4 * 107, 1.0, True])
def test_orders_without_a_matrix_are_refused(kit: Kit, order: Any) -> None:
    """Also by the transform, where the axis has such a length."""
    kit.refused("hadamard_matrix", order=order, clauses=("H-1",))
    if type(order) is int and order > 2 and kit.has("hadamard_transform"):
        kit.refused("hadamard_transform", np.ones((1, order), np.float32), clauses=("H-1", "H-2"))


@clause("H-2", tier="forward-error", case=hadamard_inputs(), transpose=st.booleans())
def test_transform(kit: Kit, case: tuple[Array, int | None], transpose: bool) -> None:
    """The product with the matrix, on whole axes and on blocks, within the rounding of sums in any order."""
    x, block_size = case
    size = block_size or x.shape[-1]
    matrix = kit.spec.hadamard_matrix(order=size).astype(np.float64)
    found = kit.call("hadamard_transform", x, block_size=block_size, transpose=transpose)
    blocks = x.astype(np.float64).reshape(*x.shape[:-1], -1, size)
    expected = (blocks @ (matrix if transpose else matrix.T) / np.sqrt(size)).reshape(x.shape)
    total = np.broadcast_to(np.abs(blocks).sum(axis=-1, keepdims=True) / np.sqrt(size), blocks.shape).reshape(x.shape)
    allowed = compare.gamma(size + 4, kit.u(x, result=found)) * total + kit.tiny(size)
    kit.check(compare.forward(found, expected, allowed, "transform"))


@clause("H-2a", tier="exact", power=st.integers(0, 4), seed=st.integers(0, 999), dtype=strategies.FLOATS)
def test_transform_of_integers_is_exact(kit: Kit, power: int, seed: int, dtype: str) -> None:
    """Orders 4^t divide by 2^t: sums of small integers, and one-hot tokens, come out without a rounding."""
    n = 4**power
    x = np.random.default_rng(seed).integers(-9, 10, (3, n)).astype(dtype)
    x[0] = 0
    x[0, seed % n] = 2**power
    found = kit.call("hadamard_transform", x)
    matrix = kit.spec.hadamard_matrix(order=n)
    kit.check(compare.exact(found, x.astype(np.float64) @ matrix.T / 2**power, "transform"))
    kit.require(bool(np.all(np.abs(found[0]) == 1)), "a one-hot token is not flat")


@clause("H-2b", tier="forward-error", case=table_inputs(), transpose=st.booleans())
def test_transform_with_a_table(kit: Kit, case: tuple[Array, Array], transpose: bool) -> None:
    """Tables that are not symmetric, in the slower index; the power of two is Sylvester's."""
    x, table = case
    found = kit.call("kronecker_transform", x, table, transpose=transpose)
    n, order = x.shape[-1], len(table)
    signs = table.astype(np.float64)
    matrix = np.kron(signs.T if transpose else signs, kit.spec.hadamard_matrix(order=n // order))
    expected = x.astype(np.float64) @ matrix.T / np.sqrt(n)
    total = np.broadcast_to(np.abs(x.astype(np.float64)).sum(axis=-1, keepdims=True) / np.sqrt(n), x.shape)
    allowed = compare.gamma(n + 4, kit.u(x, result=found)) * total + kit.tiny(n)
    kit.check(compare.forward(found, expected, allowed, "transform"))


# -- random rotations --------------------------------------------------------------------------------------------------


@clause(
    "H-3", tier="exact", order=[1, 2, 4, 8, 12, 20, 28, 36, 64], seed=strategies.seeds(), index=[0, 1, 2, 2**32 - 1]
)
def test_random_hadamard(kit: Kit, order: int, seed: int, index: int) -> None:
    """±1/√n in float64 to the last bit, with the signs of the addresses."""
    found = kit.call("random_hadamard", order=order, seed=seed, index=index)
    kit.check(compare.exact_bytes(found, kit.spec.random_hadamard(order=order, seed=seed, index=index), "rotation"))


def check_factor(kit: Kit, q: Array, z: Array, *, slack: float = 0.0) -> None:
    """Q is orthogonal, and Qᵀ z is upper triangular with a diagonal that is not negative."""
    n = len(z)
    kit.require(q.dtype == np.float64, f"the factor has dtype {q.dtype}, expected float64")
    kit.require(q.shape == z.shape, f"the factor has shape {q.shape}, expected {z.shape}")
    bound = compare.orthogonality(n, U64)
    kit.check(compare.forward(q.T @ q, np.eye(n), bound, "QᵀQ"))
    size = float(np.linalg.norm(z)) * (bound + slack) + kit.tiny()
    r = q.T @ z
    kit.check(compare.forward(np.tril(r, -1), np.zeros((n, n)), size, "lower triangle of Qᵀz"))
    negative = np.minimum(np.diag(r), 0.0)
    kit.check(compare.forward(negative, np.zeros(n), size, "negative part of the diagonal of Qᵀz"))


@clause("H-4", tier="forward-error", z=square_matrices())
def test_orthogonal_factor(kit: Kit, z: Array) -> None:
    """Q of the QR decomposition with a positive diagonal; of singular matrices, anything orthogonal that fits."""
    check_factor(kit, kit.call("orthogonal_factor", z), z.astype(np.float64))


@clause("H-4a", tier="forward-error", order=[1, 2, 3, 5, 8, 13], seed=strategies.seeds(), index=[0, 1, 2**32 - 1])
def test_random_orthogonal(kit: Kit, order: int, seed: int, index: int) -> None:
    """The factor of the addressed normals, so the same rotation everywhere."""
    counters = np.zeros((order, -(-order // 4), 4), np.int64)
    counters[..., 0], counters[..., 3] = index, Purpose.HAAR
    counters[..., 1], counters[..., 2] = np.indices(counters.shape[:2])
    z = kit.spec.philox_normal(counters, seed=seed).reshape(order, -1)[:, :order]
    found = kit.call("random_orthogonal", order=order, seed=seed, index=index)
    check_factor(kit, found, z, slack=2 * np.pi * compare.elementary(4, U64))


# -- weights -----------------------------------------------------------------------------------------------------------


@clause("H-5", tier="forward-error", w=strategies.matrices(), data=st.data())
def test_fuse_norm(kit: Kit, w: Array, data: Any) -> None:
    """Columns times the gain, one rounding."""
    gains = data.draw(st.lists(st.integers(-99, 99), min_size=w.shape[1], max_size=w.shape[1]))
    gain = (np.array(gains) / 37).astype(w.dtype)
    found = kit.call("fuse_norm", w, gain)
    expected = w.astype(np.float64) * gain
    allowed = compare.gamma(1, kit.u(w, result=found)) * np.abs(expected) + kit.tiny()
    kit.check(compare.forward(found, expected, allowed, "weight"))


def block_diagonal(q: Array, features: int, repeats: int) -> Array:
    """The whole rotation of an axis."""
    d = q.shape[-1]
    parts = [q] * (features // d) if q.ndim == 2 else [part for part in q for _ in range(repeats)]
    whole = np.zeros((features, features))
    for i, part in enumerate(parts):
        whole[i * d : (i + 1) * d, i * d : (i + 1) * d] = part
    return whole


@clause("H-6", tier="forward-error", case=rotation_problems())
def test_rotate_inputs(kit: Kit, case: RotationProblem) -> None:
    """W times the block diagonal rotation, in float64 also for halves, rounded once."""
    w, q, repeats = case
    found = kit.call("rotate_inputs", w, q, repeats=repeats)
    whole = block_diagonal(q.astype(np.float64), w.shape[1], repeats)
    wide = w.astype(np.float64)
    expected, spread = wide @ whole, np.abs(wide) @ np.abs(whole)
    allowed = rounded_once(kit, expected, spread, 2 * len(whole), found)
    kit.check(compare.forward(found, expected, allowed, "weight"))


@clause("H-6a", tier="forward-error", case=rotation_problems())
def test_rotate_outputs(kit: Kit, case: RotationProblem) -> None:
    """The transposed block diagonal rotation times W; a bias is a matrix of one column."""
    w, q, repeats = case
    for weight in (w.T, w[:1].T):
        found = kit.call("rotate_outputs", weight, q, repeats=repeats)
        whole = block_diagonal(q.astype(np.float64), len(weight), repeats)
        wide = weight.astype(np.float64)
        expected, spread = whole.T @ wide, np.abs(whole.T) @ np.abs(wide)
        allowed = rounded_once(kit, expected, spread, 2 * len(whole), found)
        kit.check(compare.forward(found, expected, allowed, "weight"))


@clause("H-7", tier="forward-error", case=block_problems(), online=st.booleans())
def test_rotate_block(kit: Kit, case: BlockProblem, online: bool) -> None:
    """Every weight is what its equation says: readers, writers, values per key-value head, the transform of down."""
    block, r1, r2 = case
    found = kit.call("rotate_block", block, r1, r2, online=online)
    wide: Any = DecoderBlock(*(None if a is None else np.asarray(a, np.float64) for a in block))
    d, f = len(wide.input_norm), len(wide.gate)
    R1 = r1.astype(np.float64)
    R2 = np.eye(len(wide.v)) if r2 is None else block_diagonal(r2.astype(np.float64), len(wide.v), 1)
    R2o = np.eye(wide.o.shape[1])
    if r2 is not None:
        R2o = block_diagonal(r2.astype(np.float64), wide.o.shape[1], wide.o.shape[1] // len(wide.v))
    H = kit.spec.hadamard_matrix(order=f) / np.sqrt(f) if online else np.eye(f)
    g_in, g_post = wide.input_norm, wide.post_norm
    chains: dict[str, list[Array]] = {
        "q": [wide.q * g_in, R1], "k": [wide.k * g_in, R1], "v": [R2.T, wide.v * g_in, R1],
        "o": [R1.T, wide.o, R2o], "gate": [wide.gate * g_post, R1], "up": [wide.up * g_post, R1],
        "down": [R1.T, wide.down, H.T],
    }  # fmt: skip
    if wide.v_bias is not None and wide.o_bias is not None and wide.down_bias is not None:
        chains |= {"v_bias": [R2.T, wide.v_bias], "o_bias": [R1.T, wide.o_bias], "down_bias": [R1.T, wide.down_bias]}
    else:
        kit.require(found.v_bias is found.o_bias is found.down_bias is None, "a bias that was not there is there")
    for name in ("input_norm", "post_norm"):
        kit.check(compare.exact(getattr(found, name), np.ones(d), name))
    for name, chain in chains.items():
        expected, spread = chain[0], np.abs(chain[0])
        for factor in chain[1:]:
            expected, spread = expected @ factor, spread @ np.abs(factor)
        got = getattr(found, name)
        allowed = rounded_once(kit, expected, spread, 4 * (d + f + len(R2o)), got)
        kit.check(compare.forward(got, expected, allowed, name))


@clause("H-7a", tier="forward-error", case=end_problems(), centre=st.booleans())
def test_rotate_ends(kit: Kit, case: tuple[Array, Array, Array | None, Array], centre: bool) -> None:
    """The gain goes into the head alone; a tied head leaves the embedding; centring only where it is asked for."""
    embedding, gain, head, r1 = case
    found = kit.call("rotate_ends", embedding, gain, head, r1, centre=centre)
    R1, E = r1.astype(np.float64), embedding.astype(np.float64)
    W = (E if head is None else head.astype(np.float64)) * gain.astype(np.float64)
    size = np.abs(E) + np.abs(E).mean(axis=1, keepdims=True)
    if centre:
        E = E - E.mean(axis=1, keepdims=True)
    for name, a, spread in (("embedding", E, size @ np.abs(R1)), ("head", W, np.abs(W) @ np.abs(R1))):
        got = getattr(found, name)
        allowed = rounded_once(kit, a @ R1, spread, 3 * len(R1) + 4, got)
        kit.check(compare.forward(got, a @ R1, allowed, name))


# -- activations -------------------------------------------------------------------------------------------------------


@clause("H-8", tier="forward-error", x=tokens())
def test_outlier_measures(kit: Kit, x: Array) -> None:
    """Excess kurtosis and peak of every token, in float64.

    A deviation d = x − μ is known to e = γ_{k+2} max|x|; kurtosis K + 3 = mean d⁴ / (mean d²)² then moves by at most
    4 mean|d|³ e / m² + 4 (K + 3) mean|d| e / m with m = mean d², doubled for the terms of higher order.
    """
    found = kit.call("outlier_measures", x)
    wide = x.astype(np.float64)
    size = np.abs(wide).max(axis=-1, keepdims=True)
    v = wide / np.where(size > 0, size, 1.0)
    k = x.shape[-1]
    d = v - v.mean(axis=-1, keepdims=True)
    level = np.all(v == v[..., :1], axis=-1)
    second = np.where(level, 1.0, np.mean(d**2, axis=-1))
    raw = np.where(level, 3.0, np.mean(d**4, axis=-1) / second**2)
    e = compare.gamma(k + 4, U64)
    moved = 2 * e * (4 * np.mean(np.abs(d) ** 3, axis=-1) / second**2 + 4 * raw * np.mean(np.abs(d), axis=-1) / second)
    kurtosis = np.asarray(raw - 3)
    last = compare.unit_roundoff(found.kurtosis.dtype.name)
    allowed = np.where(level, 0.0, moved + compare.gamma(2 * k + 8, U64) * (raw + 3) + last * np.abs(kurtosis))
    kit.check(compare.forward(found.kurtosis, kurtosis, allowed, "kurtosis"))
    rms = np.sqrt(np.mean(v**2, axis=-1))
    peak = np.where(rms > 0, 1 / np.where(rms > 0, rms, 1.0), 0.0)
    kit.check(compare.forward(found.peak, peak, (compare.gamma(k + 6, U64) + last) * peak, "peak"))


@clause(
    "H-9",
    tier="tie-band",
    case=strategies.grid_inputs(schemes=("symmetric", "asymmetric"), half=False),
    clip_ratio=[1.0, 0.9, 0.5],
)
def test_activations_are_quantized_token_by_token(kit: Kit, case: strategies.GridInput, clip_ratio: float) -> None:
    """The grid of the token, the codes on that grid, and their values."""
    x = case.x if case.x.ndim else case.x[None]
    options = {"bits": max(case.options["bits"], 2), "scheme": case.options["scheme"]}
    size = case.options.get("group_size")
    found = kit.call("quantize_activations", x, **options, clip_ratio=clip_ratio, group_size=size)
    granularity = "token" if size is None else "group"
    own = kit.spec.fit_grid(x, **options, granularity=granularity, group_size=size, clip_ratio=clip_ratio)
    u = kit.u(x, result=found.scale)
    kit.check(compare.forward(found.scale, own.scale, compare.gamma(6, u) * own.scale, "scale"))
    kit.require(found.zero_point.shape == own.zero_point.shape, f"zero points have shape {found.zero_point.shape}")
    width = x.shape[-1] // own.scale.shape[-1]
    lowest = np.minimum(x.astype(np.float64).reshape(*own.scale.shape, width).min(axis=-1), 0.0) * clip_ratio
    ratio = -lowest / own.scale if options["scheme"] == "asymmetric" else own.zero_point.astype(np.float64)
    ratio = np.where(own.zero_point == np.rint(ratio), ratio, own.zero_point)  # an all-zero token has a fixed one
    kit.check(compare.codes(found.zero_point, own.zero_point, ratio, compare.tie_band(ratio, u, 6), "zero_point"))
    scale = found.scale.astype(np.float64)
    steps = x.astype(np.float64) / np.repeat(scale, width, axis=-1)
    codes = kit.spec.quantize(x, scale, found.zero_point, **options)
    kit.check(compare.codes(found.codes, codes, steps, compare.tie_band(steps, u, 2), "codes"))
    values = kit.spec.dequantize(found.codes, scale, found.zero_point)
    allowed = compare.gamma(2, kit.u(x, result=found.values)) * np.abs(values) + kit.tiny()
    kit.check(compare.forward(found.values, values, allowed, "values"))


@clause("H-9a", tier="exact", x=tokens(), power=st.integers(-8, 8), bits=st.integers(2, 8))
def test_activations_are_equivariant_token_by_token(kit: Kit, x: Array, power: int, bits: int) -> None:
    """Another power of two on one token: its codes stay, its scale follows, the other tokens do not notice."""
    x = np.vstack([x.reshape(-1, x.shape[-1]), np.zeros((1, x.shape[-1]), x.dtype)])
    x = np.where(np.abs(x) < 2.0**-60, 0, x).astype(x.dtype)  # far from underflow in every format
    factor = np.ones((len(x), 1))
    factor[0] = 2.0**power
    plain = kit.call("quantize_activations", x, bits=bits)
    other = kit.call("quantize_activations", (x * factor).astype(x.dtype), bits=bits)
    kit.check(compare.exact(other.codes, plain.codes, "codes"))
    alive = np.any(x != 0, axis=-1, keepdims=True)
    kit.check(compare.exact(other.scale, np.where(alive, plain.scale * factor, 1.0), "scale"))
    kit.require(not np.any(plain.values[-1]), "an all-zero token is not zero")
    kit.require(bool(np.all(np.isfinite(plain.values))), "a value is not finite")


@clause("H-10", tier="certificate", x=tokens(), bits=st.integers(2, 5), norm=[2.0, 1.0, 2.4], grid=[20, 10, 7])
def test_activation_clip(kit: Kit, x: Array, bits: int, norm: float, grid: int) -> None:
    """One ratio for all tokens whose error is the least, within rounding; every candidate's error is told.

    A value has γ_8 of error relative to the reach of its grid, and t^p moves by p t^(p−1) times that, t ≤ reach. A code
    at a tie may fall on either side, which leaves |x̂ − x| within the same bound.
    """
    found = kit.call("activation_clip", x, bits=bits, norm=norm, grid=grid)
    wide = x.astype(np.float64)
    reach = 3 * np.abs(wide).max(axis=-1, keepdims=True) + np.zeros(wide.shape)
    errors = []
    steps = max(1, int(0.5 * grid))
    for i in range(steps):
        made = kit.spec.quantize_activations(x, bits=bits, clip_ratio=1 - i / grid)
        errors.append(float(np.sum(np.abs(made.values - wide) ** norm)))
    u = kit.u(x)
    slack = float(np.sum(compare.gamma(8, u) * (1 + norm) * reach**norm)) + compare.gamma(wide.size + 8, u) * max(
        errors
    )
    slack += kit.tiny(wide.size)
    kit.check(compare.forward(found.errors, np.array(errors), slack, "errors"))
    position = (1 - found.ratio) * grid
    step = round(position)
    kit.require(0 <= step < steps and found.ratio == 1 - step / grid, f"ratio {found.ratio} is no candidate")
    kit.check(compare.certificate(errors[step], min(errors), 2 * slack, "error of the ratio"))
    kit.require(step == int(np.argmin(found.errors)), "the ratio is not the first of the smallest error that is told")
