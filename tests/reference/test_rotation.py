"""Chapter H: laws of Hadamard matrices, rotations and dynamic quantizers."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lowbit.reference as ref
from lowbit.conformance import compare
from lowbit.reference.errors import SpecError
from lowbit.reference.tables import CIRCULANTS
from lowbit.reference.types import DecoderBlock

from .bounds import LAW, Array, near
from .llama import Decoder, forward, random_decoder, same

rotation: Any = importlib.import_module("lowbit.reference.rotation")

UNKNOWN = [
    188, 236, 268, 324, 356, 376, 404, 412, 428, 436, 452, 472, 476, 508, 532, 536, 596, 604, 612, 652, 668, 712, 716,
    732, 756, 764, 772, 808, 836, 852, 856, 872, 876, 892, 904, 932, 940, 944, 952, 956, 964, 980, 988, 996, 1004, 1012,
    1016,
]  # fmt: skip
"""Orders below 1024 that neither Paley nor the four circulants at hand give (matrices of most are known)."""
INVARIANT = 1e-10  # of logits of order 1, in float64; the property asked for by the method


def is_hadamard(H: Array) -> bool:
    """Exact: float32 holds every sum of fewer than 2^24 ones."""
    wide = H.astype(np.float32)
    return bool((np.abs(H) == 1).all() and (wide @ wide.T == len(H) * np.eye(len(H), dtype=np.float32)).all())


def haar(rng: np.random.Generator, *shape: int) -> Array:
    return np.linalg.qr(rng.standard_normal(shape))[0]


# --- matrices


@pytest.mark.parametrize("first", range(4, 1025, 128))
def test_h1_every_order_below_1024_is_a_verified_matrix_or_refused(first: int) -> None:
    for order in range(first, min(first + 128, 1025), 4):
        if order in UNKNOWN:
            with pytest.raises(SpecError, match=str(order)):
                ref.hadamard_matrix(order=order)
        else:
            H = ref.hadamard_matrix(order=order)
            assert H.shape == (order, order)
            assert is_hadamard(H), order


@pytest.mark.parametrize("order", [1, 2, 2048, 2064])
def test_h1_small_and_large_orders(order: int) -> None:
    assert is_hadamard(ref.hadamard_matrix(order=order))


@pytest.mark.parametrize(
    "order, expected",
    [
        (1, (1,)), (64, (64,)), (576, (36, 16)), (720, (180, 4)), (8464, (92, 92)), (10944, (684, 16)),
        (11008, (172, 64)), (13824, (108, 128)), (14336, (28, 512)), (18944, (148, 128)), (29568, (924, 32)),
        (13696, None), (6, None), (92 * 92 * 92 * 2, (92, 92, 92, 2)),
    ],
)  # fmt: skip
def test_h1_factors_of_the_orders_of_real_models(order: int, expected: tuple[int, ...] | None) -> None:
    """SmolLM2 576, Qwen2 10944 and 18944 and 29568, LLaMA2 11008 and 13824, LLaMA3 14336; 13696 has none."""
    assert rotation.factors(order) == expected


def test_h1_tables_of_circulants_hold_what_they_promise() -> None:
    for m, rows in CIRCULANTS.items():
        spectra = [np.fft.fft([1.0 if c == "+" else -1.0 for c in row]) for row in rows]
        assert all(len(row) == m for row in rows)
        assert np.allclose(sum(np.abs(s) ** 2 for s in spectra), 4 * m)
        assert 4 * m < 1024
    for m in (23, 29, 43):  # Williamson's kind: symmetric
        assert all(row[1:] == row[:0:-1] for row in CIRCULANTS[m])


@pytest.mark.parametrize("q", [3, 5, 7, 9, 13, 25, 27, 49, 81, 121, 125, 343])
def test_h1_quadratic_character_of_every_kind_of_field(q: int) -> None:
    difference, χ = rotation.field(q)
    assert χ[0] == 0
    assert (χ[1:] == 1).sum() == (χ[1:] == -1).sum() == (q - 1) // 2
    assert χ[difference[0, 1]] == (1 if q % 4 == 1 else -1)  # χ(−1)
    J = χ[difference].astype(np.int64)
    assert (q * np.eye(q) - 1 == J @ J.T).all()


def test_h1_prime_powers() -> None:
    found = [q for q in range(60) if rotation.prime_power(q)]
    assert found[:16] == [2, 3, 4, 5, 7, 8, 9, 11, 13, 16, 17, 19, 23, 25, 27, 29]
    assert rotation.prime_power(343) == (7, 3)


# --- the transform


@pytest.mark.parametrize("n", [1, 2, 4, 12, 28, 36, 64, 96, 144, 172, 576, 720])
@pytest.mark.parametrize("transpose", [False, True])
def test_h2_transform_is_the_product_and_its_own_inverse(n: int, transpose: bool) -> None:
    rng = np.random.default_rng(n)
    x = rng.standard_normal((3, n))
    H = ref.hadamard_matrix(order=n)
    y = ref.hadamard_transform(x, transpose=transpose)
    total = np.abs(x).sum(axis=1, keepdims=True) / math.sqrt(n)
    near(y, x @ (H if transpose else H.T) / math.sqrt(n), roundings=2 * n + 8, magnitude=total)
    near(ref.hadamard_transform(y, transpose=not transpose), x, roundings=4 * n + 16, magnitude=math.sqrt(n) * total)
    near((y**2).sum(axis=1), (x**2).sum(axis=1), roundings=4 * n + 16, magnitude=n * (x**2).sum(axis=1))


def test_h2_blocks_serve_lengths_without_a_matrix() -> None:
    x = np.random.default_rng(0).standard_normal((2, 13696))  # 428 · 32
    with pytest.raises(SpecError, match="13696"):
        ref.hadamard_transform(x)
    y = ref.hadamard_transform(x, block_size=128)
    whole = np.concatenate([ref.hadamard_transform(x[:, i : i + 128]) for i in range(0, 13696, 128)], axis=1)
    assert np.array_equal(y, whole)


@pytest.mark.parametrize("n", [16, 36, 576])
def test_h2_a_one_hot_token_becomes_flat_and_its_kurtosis_falls(n: int) -> None:
    x = np.zeros((1, n))
    x[0, n // 3] = 5.0
    y = ref.hadamard_transform(x)
    assert np.allclose(np.abs(y), 5 / math.sqrt(n), rtol=1e-15)
    before, after = ref.outlier_measures(x), ref.outlier_measures(y)
    assert before.kurtosis[0] == pytest.approx(n - 5 + 1 / (n - 1))  # fourth moment of one entry among n
    assert after.kurtosis[0] < 0
    assert before.peak[0] == pytest.approx(math.sqrt(n))
    assert after.peak[0] == pytest.approx(1.0)


def test_h2b_any_table_cancels_between_activation_and_weight() -> None:
    """(T w)·(T x) = n w·x whether the table is symmetric or not."""
    rng = np.random.default_rng(3)
    T = ref.hadamard_matrix(order=12)[rng.permutation(12)]
    assert not np.array_equal(T, T.T)
    w, x = rng.standard_normal((5, 48)), rng.standard_normal((7, 48))
    turned = ref.kronecker_transform(x, T) @ ref.kronecker_transform(w, T).T
    near(turned, x @ w.T, roundings=4 * 48, magnitude=np.linalg.norm(x) * np.linalg.norm(w))
    assert not np.allclose(ref.kronecker_transform(x, T) @ ref.kronecker_transform(w, T, transpose=True).T, x @ w.T)


def test_h2b_the_specifications_own_table_gives_its_transform() -> None:
    x = np.random.default_rng(4).standard_normal((3, 96))
    near(
        ref.kronecker_transform(x, ref.hadamard_matrix(order=12)), ref.hadamard_transform(x), roundings=200,
        magnitude=np.abs(x).sum(),
    )  # fmt: skip


# --- random rotations


@pytest.mark.parametrize("order", [1, 2, 12, 40, 64, 172])
def test_h3_random_hadamard_is_a_signed_transform(order: int) -> None:
    Q = ref.random_hadamard(order=order, seed=5)
    near(Q.T @ Q, np.eye(order), roundings=4 * order + 4, magnitude=1.0)
    s = np.sign(Q @ np.ones(order) * 0 + (Q * ref.hadamard_matrix(order=order).T).sum(axis=1))
    assert set(s.tolist()) <= {1.0, -1.0}
    x = np.random.default_rng(0).standard_normal((2, order))
    near(
        x @ Q, ref.hadamard_transform(x * s, transpose=False), roundings=4 * order + 8,
        magnitude=np.abs(x).sum(axis=1, keepdims=True),
    )  # fmt: skip


def test_h3_rotations_of_other_seeds_and_indices_differ() -> None:
    made = [ref.random_hadamard(order=64, seed=s, index=i) for s, i in ((1, 0), (1, 1), (2, 0), (2**32 + 1, 0))]
    assert len({m.tobytes() for m in made}) == 4
    signs = np.concatenate([np.sign(ref.random_hadamard(order=1024, seed=9, index=i)[:, 0]) for i in range(4)])
    # column 0 of H is all ones in Sylvester's matrix, so these are the signs themselves
    assert compare.frequency(int((signs > 0).sum()), len(signs), 0.5, 2.0**-40).ok


def test_h4_haar_statistics_need_the_sign_correction() -> None:
    """E tr Q = 0 and E Q_11 = 0 under Haar; plain LAPACK factors have a diagonal of one sign."""
    traces = [np.trace(ref.random_orthogonal(order=3, seed=1, index=i)) for i in range(400)]
    assert abs(np.mean(traces)) < 5 / math.sqrt(400)  # the trace has variance 1
    firsts = np.array([ref.random_orthogonal(order=3, seed=2, index=i)[0, 0] for i in range(400)])
    assert compare.frequency(int((firsts > 0).sum()), 400, 0.5, 2.0**-30).ok


def test_h4_a_singular_matrix_has_an_orthogonal_factor() -> None:
    Q = ref.orthogonal_factor(np.zeros((4, 4)))
    assert np.array_equal(Q.T @ Q, np.eye(4))
    assert ref.orthogonal_factor(np.zeros((0, 0))).shape == (0, 0)


def test_h4_factor_of_a_factor_is_itself() -> None:
    Q = ref.random_orthogonal(order=6, seed=3)
    near(ref.orthogonal_factor(Q), Q, roundings=200, magnitude=1.0)


# --- invariance of a network


def rotated(
    model: Decoder, r1: Array, r2s: list[Array | None], *, online: bool, centre: bool = False, tied: bool = False
) -> Decoder:
    """A decoder with every block and both ends rotated."""
    blocks = [ref.rotate_block(b, r1, r2, online=online) for b, r2 in zip(model.blocks, r2s, strict=True)]
    ends = ref.rotate_ends(model.embedding, model.norm, None if tied else model.head, r1, centre=centre)
    return model._replace(embedding=ends.embedding, head=ends.head, blocks=blocks, norm=np.ones_like(model.norm))


CASES = [
    (bias, tied, use_r2, online)
    for bias in (False, True)
    for tied in (False, True)
    for use_r2 in ("none", "one", "per head")
    for online in (False, True)
]


@pytest.mark.parametrize("bias, tied, use_r2, online", CASES)
def test_h7_the_rotated_network_computes_the_same(bias: bool, tied: bool, use_r2: str, online: bool) -> None:
    rng = np.random.default_rng(11)
    model = random_decoder(rng, bias=bias, tied=tied)
    width, kv = len(model.blocks[0].q) // model.heads, 2
    r1 = ref.random_hadamard(order=12, seed=1) if online else ref.random_orthogonal(order=12, seed=1)
    r2s: list[Array | None] = [None] * len(model.blocks)
    if use_r2 != "none":
        r2s = [haar(rng, *([kv] if use_r2 == "per head" else []), width, width) for _ in model.blocks]
    ids = rng.integers(0, 17, (2, 5))
    turned = rotated(model, r1, r2s, online=online, tied=tied)
    logits = forward(model, ids)
    found = forward(turned, ids, down_input=ref.hadamard_transform if online else same)
    assert np.abs(found - logits).max() <= INVARIANT * np.abs(logits).max()
    if online:  # the trap: without the online transform the network is destroyed
        assert np.abs(forward(turned, ids) - logits).max() > 0.1 * np.abs(logits).max()


@pytest.mark.parametrize("part", ["R1", "R2", "R4"])
@pytest.mark.parametrize("tied", [False, True])
def test_h7_every_rotation_alone_keeps_the_function(part: str, tied: bool) -> None:
    """With biases and grouped queries; R1 = I leaves the fusion of the gains to do."""
    rng = np.random.default_rng(21)
    model = random_decoder(rng, bias=True, tied=tied)
    width, kv, ids = len(model.blocks[0].q) // model.heads, 2, rng.integers(0, 17, (2, 5))
    r1 = ref.random_orthogonal(order=12, seed=4) if part == "R1" else np.eye(12)
    r2s: list[Array | None] = [haar(rng, kv, width, width) if part == "R2" else None for _ in model.blocks]
    turned = rotated(model, r1, r2s, online=part == "R4", tied=tied)
    logits = forward(model, ids)
    found = forward(turned, ids, down_input=ref.hadamard_transform if part == "R4" else same)
    assert np.abs(found - logits).max() <= INVARIANT * np.abs(logits).max()
    one = np.ones(12)
    plain = [
        b._replace(
            q=b.q * b.input_norm, k=b.k * b.input_norm, v=b.v * b.input_norm, input_norm=one,
            gate=b.gate * b.post_norm, up=b.up * b.post_norm, post_norm=one,
        )
        for b in model.blocks
    ]  # fmt: skip
    changed = {
        name for fused, block in zip(plain, turned.blocks, strict=True) for name in block._fields
        if getattr(fused, name) is not None and not np.array_equal(getattr(fused, name), getattr(block, name))
    }  # fmt: skip
    assert changed == {
        "R1": {"q", "k", "v", "o", "gate", "up", "down", "o_bias", "down_bias"}, "R2": {"v", "v_bias", "o"},
        "R4": {"down"},
    }[part]  # fmt: skip


def test_h7_forgetting_the_gains_or_a_bias_destroys_the_function() -> None:
    rng = np.random.default_rng(12)
    model = random_decoder(rng, bias=True)
    r1, ids = haar(rng, 12, 12), rng.integers(0, 17, (2, 5))
    logits = forward(model, ids)
    plain = rotated(model, r1, [None, None], online=False)
    broken = [
        plain._replace(blocks=[b._replace(o_bias=o.o_bias) for b, o in zip(plain.blocks, model.blocks, strict=True)]),
        plain._replace(head=model.head @ r1),
        plain._replace(blocks=[b._replace(gate=o.gate @ r1) for b, o in zip(plain.blocks, model.blocks, strict=True)]),
    ]
    assert np.abs(forward(plain, ids) - logits).max() <= INVARIANT * np.abs(logits).max()
    for wrong in broken:
        assert np.abs(forward(wrong, ids) - logits).max() > 1e-3 * np.abs(logits).max()


def test_h7a_centring_is_not_harmless_with_rms_norm() -> None:
    rng = np.random.default_rng(13)
    model = random_decoder(rng)
    ids, r1 = rng.integers(0, 17, (2, 5)), haar(rng, 12, 12)
    centred = forward(rotated(model, r1, [None, None], online=False, centre=True), ids)
    logits = forward(model, ids)
    assert np.abs(centred - logits).max() > 0.01 * np.abs(logits).max()
    same_as = forward(model._replace(embedding=model.embedding - model.embedding.mean(axis=1, keepdims=True)), ids)
    assert np.abs(centred - same_as).max() <= INVARIANT * np.abs(same_as).max()


def test_h6_rotating_there_and_back_recovers_the_weight() -> None:
    rng = np.random.default_rng(14)
    w = rng.standard_normal((5, 12))
    for q, repeats in ((haar(rng, 12, 12), 1), (haar(rng, 3, 3), 1), (haar(rng, 2, 3, 3), 2)):
        there = ref.rotate_inputs(w, q, repeats=repeats)
        near(
            ref.rotate_inputs(there, np.swapaxes(q, -1, -2), repeats=repeats), w, roundings=60,
            magnitude=np.linalg.norm(w),
        )  # fmt: skip
        near(
            ref.rotate_outputs(w.T, q, repeats=repeats), there.T, roundings=60, magnitude=np.linalg.norm(w)
        )  # (W Q)ᵀ = Qᵀ Wᵀ


def test_lora_before_and_after_the_rotation_span_the_same_functions() -> None:
    """R1ᵀ (W + B A) = R1ᵀ W + (R1ᵀ B) A, and (W + B A) R1 = W R1 + B (A R1); so too with the fused gain."""
    rng = np.random.default_rng(15)
    w, B, A = rng.standard_normal((8, 6)), rng.standard_normal((8, 2)), rng.standard_normal((2, 6))
    r_out, r_in, g = haar(rng, 8, 8), haar(rng, 6, 6), rng.standard_normal(6)
    size = np.linalg.norm(w) + np.linalg.norm(B) * np.linalg.norm(A)
    near(
        ref.rotate_outputs(w + B @ A, r_out), ref.rotate_outputs(w, r_out) + ref.rotate_outputs(B, r_out) @ A,
        roundings=60, magnitude=size,
    )  # fmt: skip
    near(
        ref.rotate_inputs(ref.fuse_norm(w + B @ A, g), r_in),
        ref.rotate_inputs(ref.fuse_norm(w, g), r_in) + B @ ref.rotate_inputs(ref.fuse_norm(A, g), r_in),
        roundings=60, magnitude=size * np.abs(g).max(),
    )  # fmt: skip


def test_gradient_descent_on_rotated_factors_takes_the_same_path() -> None:
    """One step of plain gradient descent on (B, A) and on (B, A R) with rotated inputs: equal products."""
    rng = np.random.default_rng(16)
    w, x, y = rng.standard_normal((4, 6)), rng.standard_normal((9, 6)), rng.standard_normal((9, 4))
    B, A, R = rng.standard_normal((4, 2)), rng.standard_normal((2, 6)), haar(rng, 6, 6)

    def step(w: Array, x: Array, B: Array, A: Array) -> Array:
        G = (x @ (w + B @ A).T - y).T @ x  # gradient of half the squared error by the weight
        return (B - 0.01 * G @ A.T) @ (A - 0.01 * B.T @ G)

    near(
        step(w @ R, x @ R, B, A @ R), step(w, x, B, A) @ R, roundings=400,
        magnitude=np.abs(step(w, x, B, A)).max() * 10,
    )  # fmt: skip


# --- activations


def test_h8_measures_of_known_tokens() -> None:
    x = np.array([[1.0, -1.0, 1.0, -1.0], [0.1, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, 0.0], [1e300, 0.0, 0.0, 0.0]])
    found = ref.outlier_measures(x)
    assert found.kurtosis[:3].tolist() == [-2.0, 0.0, 0.0]
    assert found.peak.tolist() == [1.0, 1.0, 0.0, 2.0]
    gaussian = np.random.default_rng(0).standard_normal((1, 200_000))
    assert abs(ref.outlier_measures(gaussian).kurtosis[0]) < 6 * math.sqrt(24 / 200_000)


def test_h9_rotation_lowers_the_error_of_quantized_outlier_activations() -> None:
    rng = np.random.default_rng(17)
    x = rng.standard_normal((64, 64))
    x[:, 5] *= 60
    y = ref.hadamard_transform(x)

    def error(a: Array) -> float:
        return float(((ref.quantize_activations(a, bits=4).values - a) ** 2).mean())

    assert error(y) < error(x) / 3
    assert ref.outlier_measures(y).peak.mean() < ref.outlier_measures(x).peak.mean() / 2


@LAW
@given(seed=st.integers(0, 999), bits=st.integers(2, 8), scheme=st.sampled_from(["symmetric", "asymmetric"]))
def test_h9_quantizing_twice_changes_nothing(seed: int, bits: int, scheme: Any) -> None:
    """Dyadic tokens whose largest magnitude is on the grid; then x̂ has the grid of x."""
    rng = np.random.default_rng(seed)
    last = 2 ** (bits - 1) - 1 if scheme == "symmetric" else 2**bits - 1
    low = -last if scheme == "symmetric" else 0
    codes = rng.integers(low, last + 1, (3, 9))
    codes[:, 0] = last
    if scheme == "asymmetric":
        codes[:, 1] = 0
    x = codes * 2.0 ** rng.integers(-4, 5, (3, 1))
    once = ref.quantize_activations(x, bits=bits, scheme=scheme)
    assert np.array_equal(once.values, x)
    twice = ref.quantize_activations(once.values, bits=bits, scheme=scheme)
    assert np.array_equal(twice.codes, once.codes)


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_h9_a_longer_token_has_the_same_codes(scheme: Any) -> None:
    """q(a x) = a q(x) for any a > 0: away from ties the codes are the same, and scale and values follow."""
    x = np.random.default_rng(22).standard_normal((20, 33))
    plain = ref.quantize_activations(x, bits=4, scheme=scheme)
    steps = x / plain.scale
    assert np.abs(steps - np.floor(steps) - 0.5).min() > 1e-9  # no entry is at a tie
    for a in (1e-3, 0.7, 3.0, 1e5):
        found = ref.quantize_activations(a * x, bits=4, scheme=scheme)
        assert np.array_equal(found.codes, plain.codes)
        assert np.array_equal(found.zero_point, plain.zero_point)
        near(found.scale, a * plain.scale, roundings=8)
        near(found.values, a * plain.values, roundings=9)


def test_h9_minus_eight_needs_a_clip() -> None:
    """absmax maps to 7, so the code −8 of a symmetric 4-bit grid is used with a clip ratio below 1 only."""
    x = np.random.default_rng(18).standard_normal((100, 32))
    assert ref.quantize_activations(x, bits=4).codes.min() == -7
    assert ref.quantize_activations(x, bits=4, clip_ratio=0.8).codes.min() == -8


def test_h9_merging_before_quantizing_is_quantizing_the_merged_weight() -> None:
    rng = np.random.default_rng(19)
    w, B, A = rng.standard_normal((6, 8)), rng.standard_normal((6, 2)), rng.standard_normal((2, 8))
    merged = w + B @ A
    grid: Any = ref.fit_grid(merged, bits=4, scheme="symmetric")
    assert np.array_equal(
        ref.quantize(merged, *grid, bits=4, scheme="symmetric"), ref.quantize_activations(merged, bits=4).codes
    )


def test_h10_search_finds_the_ratio_of_a_brute_force() -> None:
    rng = np.random.default_rng(20)
    x = rng.standard_t(3, (50, 16))
    found = ref.activation_clip(x, bits=3, grid=50, max_shrink=0.8, norm=2.4)
    errors = []
    for i in range(40):
        clip = 1 - i / 50
        s = np.abs(x).max(axis=1, keepdims=True) * clip / 3
        errors.append((np.abs(np.clip(np.rint(x / s), -4, 3) * s - x) ** 2.4).sum())
    assert found.ratio == 1 - int(np.argmin(errors)) / 50
    near(found.errors, errors, roundings=5000)
    assert found.ratio < 1
    assert ref.activation_clip(np.zeros((2, 3)), bits=4).ratio == 1.0


# --- refusals

W, EYE = np.ones((4, 6)), np.eye(6)
BLOCK: DecoderBlock[Array] = DecoderBlock(np.ones(6), W, W, W, W.T, np.ones(6), W, W, W.T)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: ref.hadamard_matrix(order=3), "order 3"),
        (lambda: ref.hadamard_matrix(order=0), "at least 1"),
        (lambda: ref.hadamard_matrix(order=True), "integer"),
        (lambda: ref.hadamard_transform(1.0), "axis"),
        (lambda: ref.hadamard_transform(W, block_size=4), "does not divide"),
        (lambda: ref.kronecker_transform(W, np.ones((2, 2))), "orthogonal"),
        (lambda: ref.kronecker_transform(W, np.ones((0, 0))), "orthogonal"),
        (lambda: ref.kronecker_transform(W, [[2.0]]), "orthogonal"),
        (lambda: ref.kronecker_transform(W, [[1.0]]), "power of two"),
        (lambda: ref.kronecker_transform(1.0, [[1.0]]), "axis length 0"),
        (lambda: ref.random_hadamard(order=4, seed=1, index=-1), "index"),
        (lambda: ref.orthogonal_factor(W), "square"),
        (lambda: ref.random_orthogonal(order=0, seed=1), "order"),
        (lambda: ref.random_orthogonal(order=2, seed=1, index=2**32), "index"),
        (lambda: ref.fuse_norm(W, np.ones(4)), "gain"),
        (lambda: ref.rotate_inputs(W, np.ones((2, 3))), "shape"),
        (lambda: ref.rotate_inputs(W, np.ones((0, 0))), "shape"),
        (lambda: ref.rotate_inputs(W, np.eye(4)), "cover"),
        (lambda: ref.rotate_inputs(W, np.eye(3), repeats=3), "cover"),
        (lambda: ref.rotate_outputs(W, np.ones((3, 2, 2))), "cover"),
        (lambda: ref.rotate_block(BLOCK[:5], EYE), "fields"),  # type: ignore[arg-type]
        (lambda: ref.rotate_block(BLOCK._replace(k=np.ones((4, 5))), EYE), "block.k"),
        (lambda: ref.rotate_block(BLOCK._replace(o_bias=np.ones(5)), EYE), "block.o_bias"),
        (lambda: ref.rotate_block(BLOCK._replace(q=None), EYE), "block.q must be"),  # type: ignore[arg-type]
        (lambda: ref.rotate_block(BLOCK, np.eye(5)), "r1"),
        (lambda: ref.rotate_block(BLOCK._replace(v=np.ones((3, 6))), EYE, np.eye(3)), "multiple"),
        (lambda: ref.rotate_block(BLOCK._replace(gate=W[:3], up=W[:3], down=W[:3].T), EYE), "order 3"),
        (lambda: ref.rotate_ends(W, np.ones(5), None, EYE), "features"),
        (lambda: ref.rotate_ends(W, np.ones(6), np.ones((4, 5)), EYE), "features"),
        (lambda: ref.rotate_ends(W, np.ones(6), None, np.eye(5)), "r1"),
        (lambda: ref.outlier_measures(1.0), "entry"),
        (lambda: ref.outlier_measures(np.ones((2, 0))), "entry"),
        (lambda: ref.activation_clip(W, bits=4, norm=0.0), "norm"),
        (lambda: ref.activation_clip(W, bits=4, grid=0), "grid"),
        (lambda: ref.activation_clip(W, bits=4, max_shrink=2.0), "max_shrink"),
    ],
)  # fmt: skip
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        call()
