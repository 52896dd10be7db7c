"""Chapter O, StatsQ: levels, thresholds and ties, what its clipping costs, and both gradients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import lowbit.reference as ref
from lowbit.reference.errors import SpecError

from .bounds import Array

RNG = np.random.default_rng(20240301)
W = RNG.standard_normal((6, 40))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8, 16])
def test_o1_levels_are_symmetric_without_a_zero(bits: int) -> None:
    found = ref.statsq(W, bits=bits)
    n = 2 ** (bits - 1)
    assert found.codes.dtype == np.int32
    assert found.codes.min() >= -n
    assert found.codes.max() <= n - 1
    levels = found.values / found.scale * n
    np.testing.assert_allclose(levels, found.codes + 0.5, rtol=1e-12)
    assert np.abs(found.values).max() <= (found.scale * (1 - 1 / (2 * n))).max() * (1 + 1e-12)


@pytest.mark.parametrize("bits", [1, 2, 3, 5])
def test_o1_every_weight_takes_the_nearest_level(bits: int) -> None:
    """Brute force over all levels; nearest and clipped are the same thing on levels evenly spaced."""
    found = ref.statsq(W, bits=bits)
    n = 2 ** (bits - 1)
    levels = found.scale[..., None] * (np.arange(-n, n) + 0.5) / n
    best = np.abs(W[..., None] - levels).argmin(axis=-1) - n
    np.testing.assert_array_equal(found.codes, best)


def test_o1_scale_is_twice_the_mean_magnitude() -> None:
    np.testing.assert_allclose(ref.statsq(W, bits=2).scale[:, 0], 2 * np.abs(W).mean(axis=1), rtol=1e-14)


def test_o1_stacks_share_a_scale_along_their_middle_axis() -> None:
    x = RNG.standard_normal((3, 5, 8))
    found = ref.statsq(x, bits=2)
    assert found.scale.shape == (1, 5, 1)
    np.testing.assert_allclose(found.scale[0, :, 0], 2 * np.abs(x).mean(axis=(0, 2)), rtol=1e-14)
    four = x[None]
    assert ref.statsq(four, bits=2).scale.shape == (1, 1, 5, 1)
    np.testing.assert_array_equal(ref.statsq(four, bits=2).codes[0], found.codes)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_o1c_exact_thresholds_go_either_way(bits: int) -> None:
    """v = n W / α at every integer: half to even sends 0 up, 1 down, 2 up."""
    n = 2 ** (bits - 1)
    v = np.arange(-n, n + 1.0)
    found = ref.statsq(np.append(v, 0.0)[None], bits=bits)  # 2 n (n + 1) / (2 n + 2) = n
    assert found.scale[0, 0] == n
    expected = [int(np.clip(t if t % 2 == 0 else t - 1, -n, n - 1)) for t in v.astype(int)]
    assert found.codes[0, : v.size].tolist() == expected


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    arrays(np.int64, (3, 7), elements=st.integers(-50, 50), fill=st.nothing()),
    st.integers(1, 6),
    st.sampled_from([0.25, 8.0, 1024.0]),
)
def test_o1_laws(values: Array, bits: int, c: float) -> None:
    """Scale equivariance, permutations, and oddness away from ties."""
    w = values / 8
    found = ref.statsq(w, bits=bits)
    np.testing.assert_array_equal(ref.statsq(c * w, bits=bits).values, c * found.values)
    np.testing.assert_array_equal(ref.statsq(w[::-1], bits=bits).codes, found.codes[::-1])
    n = 2 ** (bits - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        v = np.where(found.scale > 0, n * w / found.scale, 0.0)
    tie = (v == np.round(v)) & (np.abs(v) < n)
    odd = -1 - ref.statsq(-w, bits=bits).codes
    assert (odd == found.codes)[~tie].all()


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    arrays(np.int64, (2, 3, 5), elements=st.integers(-50, 50), fill=st.nothing()),
    st.integers(1, 8),
    st.permutations(range(3)),
)
def test_o1_laws_row_by_row(values: Array, bits: int, order: list[int]) -> None:
    """Every row has its own factor and its own bound ±α(1 − 1/2n); rows in any order; a stack's rows span the stack."""
    factors = np.array([0.25, 8.0, 512.0])[:, None]
    for w in (values[0] / 8, values / 8):
        found = ref.statsq(w, bits=bits)
        assert (np.abs(found.values) <= found.scale * (1 - 0.5**bits) * (1 + 2.0**-50)).all()
        scaled = ref.statsq(factors * w, bits=bits)
        np.testing.assert_array_equal(scaled.codes, found.codes)
        np.testing.assert_array_equal(scaled.values, factors * found.values)
        moved = ref.statsq(w[..., order, :], bits=bits)
        np.testing.assert_array_equal(moved.values, found.values[..., order, :])


@pytest.mark.parametrize("bits", range(1, 17))
def test_o1c_zeros_of_either_sign_go_up(bits: int) -> None:
    found = ref.statsq([[0.0, -0.0, 2.0, -2.0]], bits=bits)
    assert found.codes[0, :2].tolist() == [0, 0]
    assert found.values[0, :2].tolist() == [2.0 / 2**bits] * 2


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_o2_no_level_is_added_in_any_precision(dtype: str, bits: int) -> None:
    """1 - 1e-6 is 1 in float16: a clip before rounding would let the largest weights through to code n."""
    w = np.array([[8, -8, 0.5, -0.5, 1, -1, 0, 2]], dtype)
    found = ref.statsq(w, bits=bits)
    n = 2 ** (bits - 1)
    assert (found.codes.min(), found.codes.max()) == (-n, n - 1)


def test_o2a_rows_of_zeros() -> None:
    found = ref.statsq([[0.0, 0.0], [1.0, -1.0]], bits=2)
    assert found.scale.tolist() == [[0], [2]]
    assert found.codes[0].tolist() == [0, 0]
    assert found.values[0].tolist() == [0, 0]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 0, 3)])
def test_empty(shape: tuple[int, ...]) -> None:
    found = ref.statsq(np.zeros(shape), bits=2)
    assert found.values.shape == found.codes.shape == shape
    assert found.scale.shape == (*(1,) * (len(shape) - 2), shape[-2], 1)
    assert not found.scale.any()
    assert ref.statsq_grad(np.zeros(shape), np.zeros(shape), bits=2, path="scale").shape == shape


def test_o1_occupation_and_error() -> None:
    """Uniform weights fill all levels equally; the error of Gaussian ones stops falling as clipping takes over."""
    x = (np.arange(2**14) + 0.5) / 2**13 - 1
    for bits in (2, 3, 4):
        found = ref.statsq(x[None], bits=bits)
        assert set(np.bincount(found.codes[0] + 2 ** (bits - 1)).tolist()) == {2**14 >> bits}
        assert ((found.values - x) ** 2).mean() / (x**2).mean() == pytest.approx(4.0**-bits, rel=1e-3)
    g = np.random.default_rng(1).standard_normal((1, 400_000))
    errors = [((ref.statsq(g, bits=b).values - g) ** 2).mean() / (g**2).mean() for b in (2, 3, 4, 8)]
    np.testing.assert_allclose(errors[:3], [0.138, 0.071, 0.049], atol=2e-3)
    assert errors[3] > 0.9 * errors[2] * 0.8  # 16 times as many levels, hardly less error


def test_o1_entropy_of_the_levels() -> None:
    """A million draws, figures to the digits given: bits of entropy at three widths, and errors of Laplace weights."""
    n, rng = 1 << 20, np.random.default_rng(5)
    for w, expected in (
        (rng.standard_normal((1, n)), (1.984, 2.979, 3.948)),
        (rng.laplace(size=(1, n)), (1.949, 2.909, 3.847)),
    ):
        for bits, entropy in zip((2, 3, 4), expected, strict=True):
            share = np.bincount(ref.statsq(w, bits=bits).codes[0] + 2 ** (bits - 1)) / n
            assert share.size == 2**bits
            assert -(share * np.log2(share)).sum() == pytest.approx(entropy, abs=2e-3)
    errors = [((ref.statsq(w, bits=b).values - w) ** 2).mean() / (w**2).mean() for b in (2, 3, 4)]
    np.testing.assert_allclose(errors, [0.257, 0.183, 0.156], atol=4e-3)


def test_affine_deployment() -> None:
    """Half a step of offset is one more row sum per token: Ŵ x = α/n (Σ k x + ½ Σ x)."""
    x = RNG.standard_normal((5, 40))
    found = ref.statsq(W, bits=3)
    integer = x @ found.codes.T + 0.5 * x.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(integer * found.scale[:, 0] / 4, x @ found.values.T, rtol=1e-10, atol=1e-12)


# -- gradients ---------------------------------------------------------------------------------------------------------


def away_from_thresholds(bits: int) -> Array:
    """Weights at least an eighth of a step from every threshold and none near 0, so that no code changes nearby."""
    n = 2 ** (bits - 1)
    w = RNG.standard_normal((3, 12))
    for _ in range(50):
        v = n * w / ref.statsq(w, bits=bits).scale
        close = np.abs(v - np.clip(np.round(v), 1 - n, n - 1)) < 0.1
        if not close.any():
            return w
        w = np.where(close, w + 0.05 * RNG.standard_normal(w.shape), w)
    raise AssertionError("no weights away from thresholds were found")


@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("path", ["straight-through", "scale"])
def test_o3_gradients_are_central_differences(bits: int, path: str) -> None:
    """``scale`` of (O.3) itself; ``straight-through`` of the function in which what rounding and clipping took away is
    held as a constant, which is what the estimate says."""
    w, G, h = away_from_thresholds(bits), RNG.standard_normal((3, 12)), 1e-6
    lost = ref.statsq(w, bits=bits).values - w

    def loss(x: Array) -> float:
        return float((G * (ref.statsq(x, bits=bits).values if path == "scale" else x + lost)).sum())

    found = ref.statsq_grad(w, G, bits=bits, path=path)  # type: ignore[arg-type]
    for at in np.ndindex(w.shape):
        step = np.zeros(w.shape)
        step[at] = h
        assert (loss(w + step) - loss(w - step)) / (2 * h) == pytest.approx(found[at], rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 2, 3, 2)])
def test_o3a_gradients_of_stacks_are_central_differences(shape: tuple[int, ...], bits: int) -> None:
    """A scale is shared along the last axis but one, so that every weight of the stack moves it."""
    n, h = 2 ** (bits - 1), 1e-6
    candidates = (np.random.default_rng(seed).standard_normal(shape) for seed in range(9999))

    def clear(w: Array) -> bool:  # of thresholds, and of 0, where |W| has a corner
        v = n * w / ref.statsq(w, bits=bits).scale
        return bool(np.abs(v - np.clip(np.round(v), 1 - n, n - 1)).min() > 1e-2)

    w = next(filter(clear, candidates))
    G = RNG.standard_normal(shape)
    found = ref.statsq_grad(w, G, bits=bits, path="scale")
    for at in np.ndindex(shape):
        step = np.zeros(shape)
        step[at] = h
        up, down = (float((G * ref.statsq(w + s, bits=bits).values).sum()) for s in (step, -step))
        assert (up - down) / (2 * h) == pytest.approx(found[at], rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_o3_gradients_are_those_of_autograd(bits: int) -> None:
    torch = pytest.importorskip("torch")
    w, G, n = away_from_thresholds(bits), RNG.standard_normal((3, 12)), 2 ** (bits - 1)

    def values(x: object, alpha: object, straight: bool) -> object:
        k = torch.clamp(torch.round(n * x / alpha - 0.5), -n, n - 1)  # its gradient is 0
        y = alpha * (k + 0.5) / n
        return x + (y - x).detach() if straight else y

    for path in ("straight-through", "scale"):
        leaf = torch.tensor(w, requires_grad=True)
        alpha = 2 * leaf.abs().mean(dim=1, keepdim=True)
        straight = path == "straight-through"
        y = values(leaf, alpha.detach() if straight else alpha, straight)
        (y * torch.tensor(G)).sum().backward()  # type: ignore[attr-defined]
        found = ref.statsq_grad(w, G, bits=bits, path=path)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, leaf.grad.numpy(), rtol=1e-12, atol=1e-13)


def test_o3_clipped_weights_learn_too() -> None:
    w, G = np.array([[9.0, 0.1, -0.1, 0.1]]), np.array([[3.0, 1.0, 1.0, 1.0]])
    assert ref.statsq(w, bits=2).values[0, 0] < 9
    np.testing.assert_array_equal(ref.statsq_grad(w, G, bits=2), G)


def test_o3a_weights_of_zero_do_not_move_the_scale() -> None:
    found = ref.statsq_grad([[0.0, 0.0], [0.0, 2.0]], np.ones((2, 2)), bits=2, path="scale")
    assert found[0].tolist() == [0, 0]
    assert found[1, 0] == 0
    assert found[1, 1] != 0


@pytest.mark.parametrize(
    ("call", "clause", "words"),
    [
        (lambda: ref.statsq(W, bits=0), "O-1", "1..16"),
        (lambda: ref.statsq(W, bits=17), "O-1", "17"),
        (lambda: ref.statsq(W, bits=2.0), "O-1", "2.0"),  # type: ignore[arg-type]
        (lambda: ref.statsq(W[0], bits=2), "O-1", "2 dimensions"),
        (lambda: ref.statsq_grad(W, W[:1], bits=2), "O-3", "(6, 40)"),
        (lambda: ref.statsq_grad(W, W, bits=2, path="lsq"), "O-3", "lsq"),  # type: ignore[arg-type]
    ],
)
def test_refusals(call: object, clause: str, words: str) -> None:
    with pytest.raises(SpecError, match=f"\\[{clause}\\]") as error:
        call()  # type: ignore[operator]
    assert words in str(error.value)
