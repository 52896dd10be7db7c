"""The modules: what they compute, what they save, and what they train."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import lowbit  # noqa: E402
from lowbit.nn import (  # noqa: E402
    BCQLinear,
    LowRankLinear,
    QuantLinear,
    RotatedLinear,
    ScaleTunedLinear,
    StatsQLinear,
)
from lowbit.reference.errors import SpecError  # noqa: E402

from .torch_cases import moment, poisoned, weights  # noqa: E402, F401

torch_cuda: Any = lowbit.load("torch")


def quantized(scheme: Any = "asymmetric", **options: Any) -> Any:
    w, h = weights(0, 12, 32, dtype="float32"), moment(1, 32, dtype="float32")
    return torch_cuda.gptq(w, h, bits=3, scheme=scheme, **options)


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric", "symmetric-full"])
@pytest.mark.parametrize("options", [{}, {"group_size": 8}, {"group_size": 8, "act_order": True}])
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_is_its_quantized_weight(scheme: Any, options: dict[str, Any], bias: bool) -> None:
    found = quantized(scheme, **options)
    offset = weights(2, 12, dtype="float32") if bias else None
    layer = QuantLinear.from_quantized(found, bits=3, scheme=scheme, bias=offset)
    x = weights(3, 2, 5, 32, dtype="float32")
    assert torch.equal(layer.weight(), found.weight)
    assert torch.equal(layer(x), functional.linear(x, found.weight, offset))
    assert layer.words.shape == (12, 3)
    assert (layer.group_index is not None) == options.get("act_order", False)
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_state_survives_a_round_trip() -> None:
    layer = QuantLinear.from_quantized(quantized(group_size=8), bits=3, bias=torch.ones(12))
    other = QuantLinear(32, 12, bits=3, groups=4, bias=True)
    assert set(layer.state_dict()) == {"words", "scale", "zero_point", "bias", "_extra_state"}
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight(), layer.weight())
    scattered = QuantLinear.from_quantized(quantized(group_size=8, act_order=True), bits=3)
    other = QuantLinear(32, 12, bits=3, groups=4, scattered=True)
    other.load_state_dict(scattered.state_dict())
    assert torch.equal(other.weight(), scattered.weight())
    assert list(layer.parameters()) == []
    assert "bits=3" in repr(layer)


def test_words_are_not_read_otherwise_than_they_were_written() -> None:
    """A width of 8 fits three bits and four, and codes of symmetric schemes are stored with an offset."""
    state = QuantLinear.from_linear(nn.Linear(8, 4), bits=3, scheme="symmetric").state_dict()
    for other in (QuantLinear(8, 4, bits=4, scheme="symmetric", bias=True), QuantLinear(8, 4, bits=3, bias=True)):
        with pytest.raises(SpecError, match=r"\[Q-6\] words of 3-bit codes with 4 added, for a layer of"):
            other.load_state_dict(state)
    QuantLinear(8, 4, bits=3, scheme="symmetric-full", bias=True).load_state_dict(state)  # read alike


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric", "symmetric-full"])
@pytest.mark.parametrize("size", [None, 8])
def test_a_layer_from_a_linear_one_is_rounded_to_nearest(scheme: Any, size: int | None) -> None:
    linear = nn.Linear(32, 12)
    w = linear.weight.detach()
    options: dict[str, Any] = {"granularity": "row"} if size is None else {"granularity": "group", "group_size": size}
    grid = torch_cuda.fit_grid(w, bits=4, scheme=scheme, **options)
    expected = torch_cuda.dequantize(torch_cuda.quantize(w, *grid, bits=4, scheme=scheme), *grid)
    layer = QuantLinear.from_linear(linear, bits=4, scheme=scheme, group_size=size)
    assert torch.equal(layer.weight(), expected)
    assert layer.bias is not None
    assert torch.equal(layer.bias, linear.bias)


def test_gradients_pass_through_to_the_input() -> None:
    layer = QuantLinear.from_quantized(quantized(), bits=3)
    x = weights(4, 5, 32, dtype="float32").requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, layer.weight().sum(0).expand(5, -1))


def test_a_patch_is_added_beside_any_layer() -> None:
    found = quantized()
    w = weights(0, 12, 32, dtype="float32")
    patch = torch_cuda.svd_patch(w - found.weight, rank=4)
    x = weights(5, 7, 32, dtype="float32")
    base = QuantLinear.from_quantized(found, bits=3)
    layer = LowRankLinear.from_patch(base, patch)
    assert torch.equal(layer(x), base(x) + functional.linear(functional.linear(x, patch.A), patch.B))
    assert torch.allclose(layer(x), x @ (found.weight + patch.B @ patch.A).mT, atol=1e-4)
    dense = LowRankLinear(nn.Linear(32, 12), patch.B, patch.A)
    assert set(dense.state_dict()) == {"B", "A", "base.weight", "base.bias"}
    layer(x).square().sum().backward()
    assert {name for name, p in layer.named_parameters() if p.grad is not None} == {"A", "B"}
    assert "rank=4" in repr(layer)
    # the factors are copies: training them leaves the patch alone
    with torch.no_grad():
        layer.B.zero_()
    assert patch.B.abs().sum() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: QuantLinear(8, 4, bits=9), "[Q-1]"),
        (lambda: QuantLinear(8, 4, bits=4, groups=3), "[Q-2] 3 groups do not divide axis length 8"),
        (
            lambda: LowRankLinear(nn.Identity(), torch.ones(4, 2), torch.ones(3, 8)),
            "[E-2] B (m, r) and A (r, k) must share r, got (4, 2) and (3, 8)",
        ),
        (
            lambda: LowRankLinear(nn.Linear(8, 5), torch.ones(4, 2), torch.ones(2, 8)),
            "[E-2] patch of shape (4, 8) does not fit a layer of shape (5, 8)",
        ),
    ],
)
def test_misfits_are_refused(call: Any, message: str) -> None:
    with pytest.raises(SpecError) as raised:
        call()
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("options", [{}, {"group_size": 8}, {"group_size": 8, "offset": True}, {"group_size": 12}])
@pytest.mark.parametrize("bias", [False, True])
def test_a_binary_layer_is_its_code(options: dict[str, Any], bias: bool) -> None:
    k = 36 if options.get("group_size") == 12 else 40
    w, x = weights(0, 12, k, dtype="float32"), weights(3, 2, 5, k, dtype="float32")
    code = torch_cuda.bcq(w, bits=3, **options)
    shift = weights(2, 12, dtype="float32") if bias else None
    layer = BCQLinear.from_code(code, bias=shift)
    dense = torch_cuda.bcq_weight(*code)
    torch.testing.assert_close(layer.weight(), dense)
    expected = functional.linear(x, dense, shift)
    for given in (x, x[:1, :1]):  # a dense product, and tables
        torch.testing.assert_close(layer(given), expected[: given.shape[0], : given.shape[1]])
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert layer.planes.shape == (2, 3, 12)
    assert not [p for p in layer.parameters() if p.requires_grad]
    other = BCQLinear(k, 12, bits=3, groups=code.scale.shape[1], offset=code.offset is not None, bias=bias)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(x), layer(x))
    assert "bits=3" in repr(layer)


def test_scales_of_a_binary_layer_can_be_trained() -> None:
    """dL/dα_i is the sum of dL/dŴ times b_i over the group; signs and inputs keep their places."""
    code = torch_cuda.bcq(weights(0, 6, 16), bits=2, group_size=8, offset=True)
    layer = BCQLinear.from_code(code)
    assert layer.offset is not None
    layer.scale.requires_grad_()
    layer.offset.requires_grad_()
    x, upstream = weights(1, 3, 16).requires_grad_(), weights(2, 3, 6)
    layer(x).backward(upstream)
    assert layer.scale.grad is not None
    gradient = upstream.T @ x.detach()  # of the weight, (out, in)
    for i in range(2):
        sign = 2.0 * ((code.codes >> i) & 1) - 1
        wanted = (gradient * sign).view(6, 2, 8).sum(-1).T
        torch.testing.assert_close(layer.scale.grad[:, i], wanted)
    torch.testing.assert_close(layer.offset.grad, gradient.view(6, 2, 8).sum(-1).T)
    torch.testing.assert_close(x.grad, upstream @ torch_cuda.bcq_weight(*code))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), x @ torch_cuda.bcq_weight(*code).T)


@pytest.mark.parametrize("size", [None, 8])
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_scale_tuning_trains_one_scale_per_group(size: int | None, offset: bool, bias: bool) -> None:
    """The same output and gradients as the binary layer under autograd, for plane 0 only; nothing else moves."""
    code = torch_cuda.bcq(weights(0, 6, 16), bits=3, group_size=size, offset=offset)
    shift = weights(3, 6) if bias else None
    plain, layer = BCQLinear.from_code(code, bias=shift), ScaleTunedLinear(BCQLinear.from_code(code, bias=shift))
    plain.scale.requires_grad_()
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["alpha"]
    frozen = {name: value.clone() for name, value in layer.base.state_dict().items()}
    upstream = weights(2, 2, 3, 6)
    one, two = (weights(1, 2, 3, 16).requires_grad_() for _ in range(2))
    for module, x in ((plain, one), (layer, two)):
        y = module(x)
        y.backward(upstream)
    torch.testing.assert_close(layer(two), plain(one))
    torch.testing.assert_close(two.grad, one.grad)
    assert layer.alpha.grad is not None
    assert plain.scale.grad is not None
    torch.testing.assert_close(layer.alpha.grad, plain.scale.grad[:, 0])
    with torch.no_grad():
        torch.testing.assert_close(layer(two), plain(one))
    torch.optim.AdamW(layer.parameters(), lr=0.1).step()
    assert all(torch.equal(value, frozen[name]) for name, value in layer.base.state_dict().items())
    assert not torch.equal(layer.alpha, layer.base.scale[:, 0])
    assert "trainable=" in repr(layer)
    low = ScaleTunedLinear(BCQLinear.from_code(code).bfloat16())
    assert low.alpha.dtype == torch.float32
    assert low(one.detach().bfloat16()).dtype == torch.bfloat16


def test_scale_tuning_ends_at_the_least_squares_fit() -> None:
    task, x = weights(0, 4, 16), weights(1, 200, 16)
    code = torch_cuda.bcq(task + weights(2, 4, 16) / 3, bits=2)
    layer = ScaleTunedLinear(BCQLinear.from_code(code))
    optimizer = torch.optim.SGD(layer.parameters(), lr=1 / 16)
    for _ in range(300):
        optimizer.zero_grad()
        ((layer(x) - x @ task.T) ** 2).sum().div(2 * len(x)).backward()
        optimizer.step()
    fitted = torch_cuda.fit_scales(task, x.T @ x, code.codes, code.scale, torch_cuda.trainable_scales(code.scale))
    torch.testing.assert_close(layer.alpha[0].detach(), fitted[:, 0, 0])


def test_binary_layers_refuse_what_does_not_fit() -> None:
    with pytest.raises(SpecError, match="3 groups do not divide axis length 16"):
        BCQLinear(16, 4, bits=2, groups=3)
    with pytest.raises(SpecError, match="bits must be 1 to 8, got 0"):
        BCQLinear(16, 4, bits=0)
    assert torch.isnan(BCQLinear(8, 2, bits=1)(torch.full((1, 8), torch.nan))).all()  # a layer passes NaN on


@pytest.mark.parametrize("width, block_size", [(32, None), (36, None), (40, 8), (24, None)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_rotated_layer_computes_what_the_plain_one_does(width: int, block_size: int | None, bias: bool) -> None:
    linear = nn.Linear(width, 5, bias=bias, dtype=torch.float64)
    layer = RotatedLinear.from_linear(linear, block_size=block_size)
    x, y = (weights(4, 2, 3, width).requires_grad_() for _ in range(2))
    plain, turned = linear(x), layer(y)
    torch.testing.assert_close(turned, plain)
    assert isinstance(layer.base, nn.Linear)
    assert not torch.allclose(layer.base(x), plain)  # without the transform it is another function
    upstream = weights(5, 2, 3, 5)
    plain.backward(upstream)
    turned.backward(upstream)
    torch.testing.assert_close(y.grad, x.grad)
    assert layer.base.weight.grad is not None


def test_a_rotated_layer_quantizes_behind_the_transform() -> None:
    linear = nn.Linear(32, 5)
    layer = RotatedLinear.from_linear(linear, activation_bits=4, clip_ratio=0.9)
    x = weights(6, 7, 32, dtype="float32")
    turned = torch_cuda.hadamard_transform(x)
    values = torch_cuda.quantize_activations(turned, bits=4, clip_ratio=0.9).values
    torch.testing.assert_close(layer(x), layer.base(values))
    learned = x.clone().requires_grad_()
    layer(learned).sum().backward()
    assert isinstance(layer.base, nn.Linear)
    straight = torch_cuda.hadamard_transform(layer.base.weight.sum(0), transpose=True)
    torch.testing.assert_close(learned.grad, straight.expand(7, 32))
    assert layer(x.bfloat16().float()).dtype == torch.float32
    assert "activation_bits=4" in repr(layer)


def test_a_rotated_layer_refuses_weights_of_another_width() -> None:
    linear = nn.Linear(32, 5)
    stored = RotatedLinear.from_linear(linear, block_size=8).state_dict()
    RotatedLinear(nn.Linear(32, 5), block_size=8).load_state_dict(stored)
    with pytest.raises(SpecError, match="weight rotated in blocks of 8"):
        RotatedLinear(nn.Linear(32, 5)).load_state_dict(stored)
    with pytest.raises(SpecError):
        RotatedLinear(linear, activation_bits=9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_statsq_linear_trains_its_latent_weight(dtype: Any, bits: int) -> None:
    """Values of the operation forward, the gradient of the quantized weight backward, clipped weights included."""
    torch.manual_seed(0)
    layer = StatsQLinear(12, 5, bits=bits).to(dtype)
    x = torch.randn(7, 12, dtype=dtype)
    values = lowbit.load("torch").statsq(layer.weight.detach(), bits=bits).values.to(dtype)
    y = layer(x)
    torch.testing.assert_close(y, torch.nn.functional.linear(x, values, layer.bias), rtol=0, atol=0)
    y.backward(torch.ones_like(y))
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    torch.testing.assert_close(layer.weight.grad, torch.ones_like(y).T @ x)
    with pytest.raises(SpecError, match="O-1"):
        StatsQLinear(4, 4, bits=17)
