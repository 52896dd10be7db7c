"""Chapter O: the query-key product, its gradient, and attention through it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lowbit.reference as ref
from lowbit.reference.errors import SpecError
from lowbit.reference.qk_reparam import qkr_cost
from lowbit.reference.types import QkrQuantizers

from .bounds import Array

RNG = np.random.default_rng(20240303)
B, N, C, H, D = 2, 5, 6, 3, 9
X = RNG.standard_normal((B, N, C))
WQ, WK, WV = RNG.standard_normal((C, C)), RNG.standard_normal((C, C)), RNG.standard_normal((D, C))
BQ, BK, BV = RNG.standard_normal(C), RNG.standard_normal(C), RNG.standard_normal(D)


def plain_attention(q_bias: Array, k_bias: Array) -> Array:
    """Attention head by head, query by query."""
    out = np.zeros((B, N, D))
    d, e = C // H, D // H
    for b in range(B):
        q, k, v = X[b] @ WQ.T + q_bias, X[b] @ WK.T + k_bias, X[b] @ WV.T + BV
        for h in range(H):
            s = q[:, h * d : h * d + d] @ k[:, h * d : h * d + d].T / np.sqrt(d)
            p = np.exp(s - s.max(axis=1, keepdims=True))
            out[b, :, h * e : h * e + e] = p / p.sum(axis=1, keepdims=True) @ v[:, h * e : h * e + e]
    return out


def test_o8_product_of_heads() -> None:
    found = ref.qkr_weight(WQ, WK, heads=H)
    assert found.shape == (H * C, C)
    for h in range(H):
        rows = slice(2 * h, 2 * h + 2)
        np.testing.assert_allclose(found[h * C : h * C + C], WQ[rows].T @ WK[rows], rtol=1e-13)


def test_o9_without_quantizers_it_is_plain_attention() -> None:
    np.testing.assert_allclose(
        ref.qkr_attention(X, WQ, WK, WV, BQ, BV, heads=H), plain_attention(BQ, 0 * BK), rtol=1e-11, atol=1e-12
    )


def test_o9a_biases() -> None:
    """A key bias adds the same to every key; a query bias does not, and dropping it changes the model."""
    whole = plain_attention(BQ, BK)
    kept = ref.qkr_attention(X, WQ, WK, WV, BQ, BV, heads=H)
    dropped = ref.qkr_attention(X, WQ, WK, WV, BQ, BV, heads=H, biases="dropped")
    np.testing.assert_allclose(kept, whole, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(dropped, plain_attention(0 * BQ, BK), rtol=1e-11, atol=1e-12)
    np.testing.assert_array_equal(dropped, ref.qkr_attention(X, WQ, WK, WV, None, BV, heads=H))
    assert np.abs(dropped - whole).max() > 1e-2


def test_o9_one_token_attends_to_itself() -> None:
    found = ref.qkr_attention(X[:, :1], WQ, WK, WV, BQ, BV, heads=H)
    np.testing.assert_allclose(found, X[:, :1] @ WV.T + BV, rtol=1e-12)


def test_o9_large_scores_do_not_overflow() -> None:
    assert np.isfinite(ref.qkr_attention(1e3 * X, WQ, WK, WV, heads=H)).all()


def test_o9b_an_offset_after_the_keys_changes_nothing() -> None:
    """It adds x̂_n · b^h to every key of a query: the softmax is blind to that, so its gradient is 0."""
    shift = np.tile(RNG.standard_normal((H, C)), (N, 1))
    plain = ref.qkr_attention(X, WQ, WK, WV, heads=H)
    moved = ref.qkr_attention(X, WQ, WK, WV, heads=H, quantizers=QkrQuantizers(keys=lambda u: u + shift))
    np.testing.assert_allclose(moved, plain, rtol=1e-11, atol=1e-12)


def test_o9b_quantizers_see_what_the_equations_say() -> None:
    seen: dict[str, Array] = {}

    def note(name: str) -> Any:
        def quantizer(a: Array) -> Array:
            seen[name] = a
            return np.round(8 * a) / 8

        return quantizer

    quantizers = QkrQuantizers(*(note(name) for name in QkrQuantizers._fields))
    found = ref.qkr_attention(X, WQ, WK, WV, BQ, BV, heads=H, quantizers=quantizers)
    given = {name: np.round(8 * a) / 8 for name, a in seen.items()}
    np.testing.assert_array_equal(seen["input"], X)
    np.testing.assert_array_equal(seen["value_weight"], WV)
    np.testing.assert_array_equal(seen["product"], ref.qkr_weight(WQ, WK, heads=H))
    x, d = given["input"], C // H
    for b, m, h in np.ndindex(B, N, H):
        np.testing.assert_allclose(
            seen["keys"][b, m * H + h], given["product"][h * C : h * C + C] @ x[b, m], rtol=1e-12, atol=1e-13
        )
    for b, h, n in np.ndindex(B, H, N):
        shift = WK[d * h : d * h + d].T @ BQ[d * h : d * h + d]
        s = np.array([x[b, n] @ given["keys"][b, m * H + h] + x[b, m] @ shift for m in range(N)]) / np.sqrt(d)
        p = np.exp(s - s.max())
        np.testing.assert_allclose(seen["attention"][b, h, n], p / p.sum(), rtol=1e-11)
    np.testing.assert_allclose(seen["value"], x @ given["value_weight"].T + BV, rtol=1e-12)
    context = np.einsum("bhnm,bmhe->bnhe", given["attention"], given["value"].reshape(B, N, H, D // H))
    np.testing.assert_allclose(found, context.reshape(B, N, D), rtol=1e-12, atol=1e-14)


def test_o8a_gradient_by_central_differences() -> None:
    G, step = RNG.standard_normal((H * C, C)), 1e-6
    found = ref.qkr_grad(WQ, WK, G, heads=H)
    for which, slope in ((0, found.q), (1, found.k)):
        for at in np.ndindex(C, C):
            e = np.zeros((2, C, C))
            e[which][at] = step
            up = (G * ref.qkr_weight(WQ + e[0], WK + e[1], heads=H)).sum()
            down = (G * ref.qkr_weight(WQ - e[0], WK - e[1], heads=H)).sum()
            assert (up - down) / (2 * step) == pytest.approx(slope[at], rel=1e-6, abs=1e-7)


def test_o8a_gradient_of_autograd_through_statsq() -> None:
    """The straight-through gradient of the quantized product reaches the latent weights, no quantized one in it."""
    torch = pytest.importorskip("torch")
    q, k = (torch.tensor(w, requires_grad=True) for w in (WQ, WK))
    product = torch.einsum("hdi,hdj->hij", q.view(H, -1, C), k.view(H, -1, C)).reshape(H * C, C)
    values = torch.tensor(ref.statsq(product.detach().numpy(), bits=2).values)
    quantized = product + (values - product).detach()
    G = RNG.standard_normal((H * C, C))
    (quantized * torch.tensor(G)).sum().backward()
    found = ref.qkr_grad(WQ, WK, ref.statsq_grad(product.detach().numpy(), G, bits=2), heads=H)
    np.testing.assert_allclose(found.q, q.grad.numpy(), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(found.k, k.grad.numpy(), rtol=1e-11, atol=1e-12)


def test_o8b_annealing_in_product_space_and_not() -> None:
    G = RNG.standard_normal((H * C, C))
    active = ref.cga_mask(ref.qkr_weight(WQ, WK, heads=H), bits=2, boundary_range=0.2)
    assert 0 < active.sum() < active.size
    frozen = ref.qkr_grad(WQ, WK, G, active, heads=H)
    masked = ref.qkr_grad(WQ, WK, np.where(active, G, 0.0), heads=H)
    np.testing.assert_array_equal(frozen.q, masked.q)
    np.testing.assert_array_equal(frozen.k, masked.k)
    code = ref.qkr_grad(WQ, WK, G, active, heads=H, freeze="none")
    np.testing.assert_array_equal(code.q, ref.qkr_grad(WQ, WK, G, heads=H).q)
    nothing = ref.qkr_grad(WQ, WK, G, np.zeros_like(active), heads=H)
    assert not nothing.q.any()
    assert not nothing.k.any()


def test_cost() -> None:
    cost = qkr_cost(197, 384, 6)
    assert cost == (2 * 197 * 384**2, 197**2 * 384, 6 * 197 * 384**2, 6 * 197**2 * 384, 384**3)
    with pytest.raises(SpecError, match="5 heads"):
        qkr_cost(197, 384, 5)


@pytest.mark.parametrize(
    ("call", "clause", "words"),
    [
        (lambda: ref.qkr_weight(WQ, WK[:, :3], heads=H), "O-8", "one shape"),
        (lambda: ref.qkr_weight(WQ, WK, heads=4), "O-8", "4 heads"),
        (lambda: ref.qkr_weight(WQ, WK, heads=0), "O-8", "heads"),
        (lambda: ref.qkr_grad(WQ, WK, WQ, heads=H), "O-8", "(18, 6)"),
        (lambda: ref.qkr_grad(WQ, WK, np.ones((18, 6)), np.ones((18, 6)), heads=H), "O-8", "active"),
        (lambda: ref.qkr_grad(WQ, WK, np.ones((18, 6)), heads=H, freeze="all"), "O-8", "all"),  # type: ignore[arg-type]
        (lambda: ref.qkr_attention(X[..., :4], WQ, WK, WV, heads=H), "O-9", "width 4"),
        (lambda: ref.qkr_attention(X, WQ, WK, WV[:4], heads=H), "O-9", "w_v"),
        (lambda: ref.qkr_attention(X, WQ, WK, WV, BV, heads=H), "O-9", "b_q"),
        (lambda: ref.qkr_attention(X, WQ, WK, WV, heads=H, biases="some"), "O-9", "some"),  # type: ignore[arg-type]
        (
            lambda: ref.qkr_attention(X, WQ, WK, WV, heads=H, quantizers=QkrQuantizers(value=lambda v: v[:1])),
            "O-9",
            "'value'",
        ),
    ],
)
def test_refusals(call: Any, clause: str, words: str) -> None:
    with pytest.raises(SpecError, match=f"\\[{clause}\\]") as error:
        call()
    assert words in str(error.value)
