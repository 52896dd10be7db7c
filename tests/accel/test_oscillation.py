"""Chapter O on torch tensors of half precision: what bfloat16 holds is computed as the same numbers in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lowbit  # noqa: E402
import lowbit.reference as ref  # noqa: E402
from lowbit.conformance.compare import gamma, unit_roundoff  # noqa: E402

BACKEND: Any = lowbit.load("torch")
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def draw(*shape: int, dtype: Any, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_same(low: Any, wide: Any) -> None:
    """Results of half precision inputs and of the same numbers in float32, field by field."""
    for a, b in zip(low, wide, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@HALVES
@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_o2_weights_at_and_beyond_the_clipping_point(dtype: Any, bits: int) -> None:
    """1 − 10⁻⁶ is 1 in both formats: a clip before rounding would give the code n."""
    w = torch.tensor([[8, -8, 0.5, -0.5, 1, -1, 0, 2]], dtype=dtype)
    found, n = BACKEND.statsq(w, bits=bits), 2 ** (bits - 1)
    assert (int(found.codes.min()), int(found.codes.max())) == (-n, n - 1)
    assert_same(found, BACKEND.statsq(w.float(), bits=bits))


@HALVES
@pytest.mark.parametrize("shape", [(7, 40), (2, 5, 12)])
def test_o1_o3_o6_half_precision_is_computed_in_float32(dtype: Any, shape: tuple[int, ...]) -> None:
    w, g = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1)
    w[..., :2, :] *= 300  # a scale whose sum has no room in the digits of bfloat16
    for bits in (1, 2, 4):
        found = BACKEND.statsq(w, bits=bits)
        assert_same(found, BACKEND.statsq(w.float(), bits=bits))
        expected = ref.statsq(w.double().numpy(), bits=bits)
        assert np.abs(found.scale.numpy() / expected.scale - 1).max() <= gamma(w.numel(), unit_roundoff("float32"))
        for path in ("straight-through", "scale"):
            pair = [BACKEND.statsq_grad(*a, bits=bits, path=path) for a in ((w, g), (w.float(), g.float()))]
            assert_same(pair[:1], pair[1:])
        masks = [BACKEND.cga_mask(x, bits=bits, boundary_range=0.1) for x in (w, w.float())]
        assert torch.equal(*masks)
        assert 0 < int(masks[0].sum()) < masks[0].numel()


@HALVES
def test_o8_the_query_key_product_of_half_precision(dtype: Any) -> None:
    q, k = (draw(6, 8, dtype=dtype, seed=s) for s in (0, 1))
    grad = draw(16, 8, dtype=dtype, seed=2)
    found, wide = (BACKEND.qkr_weight(a, b, heads=2) for a, b in ((q, k), (q.float(), k.float())))
    assert_same([found], [wide])
    assert_same(BACKEND.qkr_grad(q, k, grad, heads=2), BACKEND.qkr_grad(q.float(), k.float(), grad.float(), heads=2))


def test_o4_a_tracker_keeps_no_graph_alive() -> None:
    """Codes of a weight that is trained, step after step: nothing in the state asks for a gradient."""
    w = draw(4, 16, dtype=torch.float32).requires_grad_()
    state = BACKEND.start_oscillation(BACKEND.statsq(w, bits=2).codes)
    for seed in range(3):
        moved = w + draw(4, 16, dtype=w.dtype, seed=seed)
        state = BACKEND.track_oscillation(BACKEND.statsq(moved, bits=2).codes, *state)
    assert not any(field.requires_grad for field in state)
    assert int(state.total.sum()) > 0
