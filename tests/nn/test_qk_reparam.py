"""QKRAttention: the attention of the specification, and the gradients of its latent weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import lowbit  # noqa: E402
from lowbit import reference  # noqa: E402
from lowbit.nn import LearnedStep, QKRAttention  # noqa: E402
from lowbit.reference.errors import SpecError  # noqa: E402
from lowbit.reference.types import QkrQuantizers  # noqa: E402

ops: Any = lowbit.load("torch")
HEADS, WIDTH, ROWS, VALUES = 3, 8, 6, 9


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linears(bias: bool = True) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    made = (nn.Linear(WIDTH, n, bias=bias, dtype=torch.float64) for n in (ROWS, ROWS, VALUES))
    query, key, value = made
    return query, key, value


def step(bits: int, axis: int | None, steps: int, start: Tensor, **options: Any) -> LearnedStep:
    layer = LearnedStep(bits, axis=axis, steps=steps, **options).double()
    layer.initialise(start)
    return layer


def quantizers() -> dict[str, nn.Module]:
    """The published ones: steps for input, keys (one per token and head), map and values."""
    return {
        "input": step(4, None, 1, draw(2, 5, WIDTH)),
        "keys": step(4, 1, 5 * HEADS, draw(2, 5 * HEADS, WIDTH)),
        "attention": step(4, None, 1, draw(2, 3, 5, 5).softmax(-1), signed=False),
        "value": step(4, None, 1, draw(2, 5, VALUES)),
    }


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("biases", ["kept", "dropped"])
@pytest.mark.parametrize("bits", [None, 2, 4])
@pytest.mark.parametrize("given", [False, True])
def test_forward_is_the_operation(bias: bool, biases: Any, bits: int | None, given: bool) -> None:
    parts = quantizers() if given else {}
    layer = QKRAttention.from_linears(*linears(bias), heads=HEADS, bits=bits, biases=biases, **parts)
    x = draw(2, 5, WIDTH, seed=1)
    with torch.no_grad():
        found = layer(x)

        def two(weight: Tensor) -> Tensor:
            return ops.statsq(weight, bits=bits).values

        statsq: dict[str, Callable[[Any], Any]] = {} if bits is None else {"product": two, "value_weight": two}
        weights = (layer.w_q, layer.w_k, layer.w_v, layer.b_q, layer.b_v)
        options: dict[str, Any] = {"heads": HEADS, "biases": biases}
        expected = ops.qkr_attention(x, *weights, **options, quantizers=QkrQuantizers(**statsq, **parts))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        if not given and bits is None:
            arrays = [None if w is None else w.numpy() for w in weights]
            exact = reference.qkr_attention(x.numpy(), *arrays, **options)  # type: ignore[arg-type]
            torch.testing.assert_close(found, torch.from_numpy(exact), rtol=1e-12, atol=1e-12)


def test_without_quantizers_it_is_the_attention_of_the_linear_layers() -> None:
    query, key, value = linears()
    x = draw(2, 5, WIDTH, seed=1)
    q, k, v = (f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in (query, key, value))
    plain = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    layer = QKRAttention.from_linears(query, key, value, heads=HEADS)
    torch.testing.assert_close(layer(x), plain, rtol=1e-12, atol=1e-12)
    dropped = QKRAttention.from_linears(query, key, value, heads=HEADS, biases="dropped")
    assert not torch.allclose(dropped(x), plain, atol=1e-6)
    # and so are its gradients
    upstream = draw(*plain.shape, seed=2)
    plain.backward(upstream)
    layer(x).backward(upstream)
    pairs = ((layer.w_q, query.weight), (layer.w_k, key.weight), (layer.w_v, value.weight), (layer.b_q, query.bias))
    for mine, theirs in pairs:
        assert mine is not None
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-12)
    assert key.bias.grad is not None
    assert key.bias.grad.abs().max() < 1e-12  # why there is no key bias


@pytest.mark.parametrize("freeze", ["product", "none"])
@pytest.mark.parametrize("width", [None, 0.1])
def test_latent_weights_get_the_gradient_of_the_quantized_product(freeze: Any, width: float | None) -> None:
    layer = QKRAttention.from_linears(*linears(False), heads=HEADS, bits=2, boundary_range=width, freeze=freeze)
    product = layer.product()
    latent = ops.qkr_weight(layer.w_q, layer.w_k, heads=HEADS)
    assert torch.equal(product, ops.statsq(latent, bits=2).values)
    grad = draw(*product.shape, seed=3)
    product.backward(grad)
    active = None if width is None else ops.cga_mask(latent, bits=2, boundary_range=width)
    wanted = ops.qkr_grad(layer.w_q, layer.w_k, grad, active, heads=HEADS, freeze=freeze)
    assert torch.equal(layer.w_q.grad, wanted.q)
    assert torch.equal(layer.w_k.grad, wanted.k)
    plain = ops.qkr_grad(layer.w_q, layer.w_k, grad, heads=HEADS)
    assert torch.equal(wanted.q, plain.q) == (width is None or freeze == "none")
    # annealing may begin later
    layer.boundary_range = 0.0
    layer.zero_grad()
    layer.product().backward(grad)
    assert layer.w_q.grad is not None
    assert bool(layer.w_q.grad.any()) == (freeze == "none")


def test_training_lowers_the_error_of_a_quantized_block() -> None:
    query, key, value = linears()
    x = draw(16, 5, WIDTH, seed=1)
    with torch.no_grad():
        wanted = QKRAttention.from_linears(query, key, value, heads=HEADS)(x)
    layer = QKRAttention.from_linears(query, key, value, heads=HEADS, bits=3)
    optimizer = torch.optim.Adam(layer.parameters(), lr=3e-4)
    errors = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (layer(x) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert min(errors) < 0.8 * errors[0]


def test_misfits_are_refused() -> None:
    wrong: list[tuple[str, Callable[[], object]]] = [
        ("O-8", lambda: QKRAttention(8, 3)),
        ("O-8", lambda: QKRAttention(8, 0)),
        ("O-9", lambda: QKRAttention(8, 2, value_width=7)),
        ("O-1", lambda: QKRAttention(8, 2, bits=17)),
        ("O-6", lambda: QKRAttention(8, 2, bits=2, boundary_range=0.6)),
        ("O-8", lambda: QKRAttention(8, 2, freeze="all")),  # type: ignore[arg-type]
        ("O-9", lambda: QKRAttention(8, 2, biases="some")),  # type: ignore[arg-type]
        ("O-8", lambda: QKRAttention.from_linears(nn.Linear(8, 6), nn.Linear(8, 9), nn.Linear(8, 6), heads=3)),
        ("O-8", lambda: QKRAttention.from_linears(nn.Linear(8, 6), nn.Linear(4, 6), nn.Linear(8, 6), heads=3)),
        ("O-8", lambda: QKRAttention.from_linears(nn.Linear(8, 7), nn.Linear(8, 7), nn.Linear(8, 6), heads=3)),
    ]
    for clause, make in wrong:
        with pytest.raises(SpecError, match=rf"\[{clause}\]"):
            make()
