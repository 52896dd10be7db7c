"""What holds for every module of ``lowbit.nn``: it is saved, copied, moved, cast, compiled and retraced."""

from __future__ import annotations

import copy
import doctest
import importlib.util
import io
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import lowbit.nn  # noqa: E402
from lowbit import reference  # noqa: E402
from lowbit.nn import (  # noqa: E402
    BCQLinear,
    DoRALinear,
    FakeMinMax,
    FakeTernary,
    LearnedStep,
    LowRankLinear,
    QKRAttention,
    QuantLinear,
    RotatedLinear,
    ScaleTunedLinear,
    StatsQLinear,
    TableActivation,
)
from lowbit.reference import lut  # noqa: E402
from lowbit.reference.types import IntegerTable  # noqa: E402

Replace = Callable[[nn.Linear], nn.Module]


class Case(NamedTuple):
    """One module: how it is made empty, of any device, and how with what it would hold in the middle of training."""

    empty: Callable[[], nn.Module]
    filled: Callable[[], nn.Module]
    trains: frozenset[str] = frozenset()
    replace: Replace | None = None  # what takes the place of a linear layer, and computes nearly the same
    shape: tuple[int, ...] = (6, 16)
    near: float = 4.0  # error in half precision, in units of its roundoff: more where codes depend on products


def linear() -> nn.Linear:
    return nn.Linear(16, 12)


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def trained(module: Any) -> Any:
    """Factors and magnitudes that have left their start."""
    with torch.no_grad():
        module.B.normal_()
        module.magnitude.mul_(torch.rand(12) + 0.5)
    return module


def quantized(layer: nn.Linear) -> QuantLinear:
    return QuantLinear.from_linear(layer, bits=3, scheme="symmetric", group_size=8)


def codes(layer: nn.Linear) -> BCQLinear:
    return BCQLinear.from_linear(layer, bits=2, group_size=8, offset=True)


def no_codes() -> BCQLinear:
    return BCQLinear(16, 12, bits=2, groups=2, offset=True, bias=True)


def scales_trained(layer: Any) -> nn.Module:
    layer.scale.requires_grad_()
    return layer  # type: ignore[no-any-return]


def table(fill: bool) -> TableActivation:
    found = reference.integer_table(lut.chord_table("gelu", (-3.0, -1.0, 0.0, 1.5, 3.0)), scale_bits=4)
    make = torch.from_numpy if fill else lambda a: torch.zeros(a.shape, dtype=torch.int32)
    fields = [make(np.asarray(a)) for a in found[:3]]
    return TableActivation("gelu", IntegerTable(fields[0], fields[1], fields[2], 4 if fill else 3, 6))


def step(fill: bool) -> LearnedStep:
    layer = LearnedStep(3, axis=-1, steps=16, offset=True, rule="min-max", count="features")
    if fill:
        layer.initialise(torch.randn(64, 16))
    return layer


def attention(fill: bool, **options: Any) -> QKRAttention:
    keys = LearnedStep(4, axis=1, steps=2 * 5)
    layer = QKRAttention(16, 2, bits=3, keys=keys, value_width=12, boundary_range=0.2, **options)
    if fill:
        keys.initialise(torch.randn(3, 10, 16))
        for bias in (layer.b_q, layer.b_v):
            assert bias is not None
            nn.init.normal_(bias)
    return layer


DORA = frozenset({"A", "B", "magnitude"})
CASES: dict[str, Case] = {
    "QuantLinear": Case(
        lambda: QuantLinear(16, 12, bits=3, scheme="symmetric", groups=2, bias=True),
        lambda: quantized(linear()),
        replace=lambda layer: QuantLinear.from_linear(layer, bits=8),
    ),
    "LowRankLinear": Case(
        lambda: LowRankLinear(linear(), torch.zeros(12, 3), torch.zeros(3, 16)),
        lambda: LowRankLinear(linear(), torch.randn(12, 3), torch.randn(3, 16)),
        frozenset({"A", "B", "base.weight", "base.bias"}),
    ),
    "BCQLinear": Case(no_codes, lambda: codes(linear()), replace=lambda m: BCQLinear.from_linear(m, bits=6)),
    "BCQLinear, scales": Case(
        lambda: scales_trained(no_codes()), lambda: scales_trained(codes(linear())), frozenset({"scale"})
    ),
    "ScaleTunedLinear": Case(
        lambda: ScaleTunedLinear(no_codes()),
        lambda: ScaleTunedLinear(codes(linear())),
        frozenset({"alpha"}),
        lambda layer: ScaleTunedLinear.from_linear(layer, bits=6),
    ),
    "DoRALinear": Case(
        lambda: DoRALinear(frozen(linear()), 3, alpha=6),
        lambda: trained(DoRALinear(frozen(linear()), 3, alpha=6)),
        DORA,
        lambda layer: DoRALinear(layer, 3),
    ),
    "DoRALinear, QuantLinear": Case(
        lambda: DoRALinear(QuantLinear(16, 12, bits=3, scheme="symmetric", groups=2, bias=True), 3, detach=False),
        lambda: trained(DoRALinear(quantized(linear()), 3, detach=False)),
        DORA,
    ),
    "RotatedLinear": Case(
        lambda: RotatedLinear(linear(), block_size=8),
        lambda: RotatedLinear(linear(), block_size=8),
        frozenset({"base.weight", "base.bias"}),
        lambda layer: RotatedLinear.from_linear(layer, block_size=8),
    ),
    "RotatedLinear, 4 bits": Case(
        lambda: RotatedLinear(linear(), activation_bits=4),
        lambda: RotatedLinear(linear(), activation_bits=4),
        frozenset({"base.weight", "base.bias"}),
        near=64.0,
    ),
    "StatsQLinear": Case(
        lambda: StatsQLinear(16, 12, bits=2),
        lambda: StatsQLinear.from_linear(linear(), bits=2),
        frozenset({"weight", "bias"}),
        lambda layer: StatsQLinear.from_linear(layer, bits=8),
    ),
    "QKRAttention": Case(
        lambda: attention(False),
        lambda: attention(True),
        frozenset({"w_q", "w_k", "w_v", "b_q", "b_v", "keys.step"}),
        shape=(3, 5, 16),
        near=64.0,
    ),
    "FakeTernary": Case(lambda: FakeTernary("row", clip=1.5), lambda: FakeTernary("row", clip=1.5)),
    "FakeMinMax": Case(lambda: FakeMinMax(4, clip=1.5), lambda: FakeMinMax(4, clip=1.5)),
    "LearnedStep": Case(lambda: step(False), lambda: step(True), frozenset({"step", "offset"})),
    "TableActivation": Case(lambda: table(False), lambda: table(True)),
}
every = pytest.mark.parametrize("name", CASES)
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()


def draw(name: str, dtype: Any = torch.float32) -> Tensor:
    return torch.randn(CASES[name].shape).to(dtype).requires_grad_()


def run(module: nn.Module, x: Tensor, call: Callable[..., Any] | None = None) -> dict[str, Tensor]:
    """Output and every gradient, for an upstream gradient that is drawn."""
    module.zero_grad()
    x = x.detach().requires_grad_()
    y: Tensor = (module if call is None else call)(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype))
    slopes = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return {"y": y.detach(), "x": x.grad, **slopes}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        torch.testing.assert_close(found[name], want, rtol=0, atol=0, msg=name)


def close(found: dict[str, Tensor], expected: dict[str, Tensor], units: float, dtype: Any) -> None:
    """Within a number of roundoffs of a dtype, by the norm of each tensor."""
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        error = (found[name].double() - want.double()).norm() / want.double().norm()
        assert error <= units * torch.finfo(dtype).eps, (name, float(error / torch.finfo(dtype).eps))


def test_every_module_is_here() -> None:
    modules = {
        n for n in lowbit.nn.__all__ if isinstance(v := getattr(lowbit.nn, n), type) and issubclass(v, nn.Module)
    }
    assert modules == {name.split(",")[0] for name in CASES}


def test_examples_of_the_docstrings() -> None:
    for module in (lowbit.nn, sys.modules[lowbit.nn.logit_loss.__module__]):
        found = doctest.testmod(module)
        assert found.attempted
        assert not found.failed


@every
def test_what_trains_and_what_it_says_of_itself(name: str) -> None:
    module = CASES[name].filled()
    found = run(module, draw(name))
    assert (
        found.keys() - {"x", "y"} == CASES[name].trains == {n for n, p in module.named_parameters() if p.requires_grad}
    )
    assert all(g.isfinite().all() and g.any() for g in found.values())
    assert module.extra_repr()
    assert module.extra_repr() in repr(module)


@every
def test_the_state_dict_is_all_of_the_state(name: str) -> None:
    module, other, x = CASES[name].filled(), CASES[name].empty(), draw(name)
    stored = io.BytesIO()
    torch.save(module.state_dict(), stored)
    stored.seek(0)
    assert str(other.load_state_dict(torch.load(stored, weights_only=True))) == "<All keys matched successfully>"
    same(run(other, x), run(module, x))
    named = {id(t) for t in (*module.parameters(), *module.buffers())}
    for part in module.modules():  # no tensor lives beside parameters and buffers
        assert not [k for k, v in vars(part).items() if isinstance(v, Tensor) and id(v) not in named]


@every
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_equal_and_live_their_own_life(name: str, copied: Callable[[nn.Module], nn.Module]) -> None:
    module, x = CASES[name].filled(), draw(name)
    before = run(module, x)  # whatever a forward pass might leave behind is copied too
    other = copied(module)
    same(run(other, x), before)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(3)
    same(run(module, x), before)
    assert not CASES[name].trains or not torch.equal(run(other, x)["y"], before["y"])


@every
def test_every_tensor_moves(name: str) -> None:
    module, x = CASES[name].filled(), draw(name)
    expected = run(module, x)
    for device in ("meta", *(["cuda"] if torch.cuda.is_available() else [])):
        moved = copy.deepcopy(module).to(device)
        assert {t.device.type for t in (*moved.parameters(), *moved.buffers())} <= {device}
        if device == "cuda":
            found = run(moved, x.detach().cuda())
            close({k: v.cpu() for k, v in found.items()}, expected, 4 * CASES[name].near, torch.float32)
            same(run(moved.cpu(), x), expected)


@every
@pytest.mark.parametrize("dtype", [torch.float64, *HALVES])
def test_every_dtype_is_served(name: str, dtype: Any) -> None:
    """As the same numbers in float32 are, or better; dtypes stay what they are."""
    module, x = CASES[name].filled().to(dtype), draw(name, dtype)
    found = run(module, x)
    assert all(g.dtype == dtype for g in found.values())
    wide = run(module.float(), x.detach().float())
    close(found, wide, CASES[name].near, torch.float32 if dtype == torch.float64 else dtype)


@every
@pytest.mark.parametrize("dtype", HALVES)
def test_autocast(name: str, dtype: Any) -> None:
    """Outputs as those of a linear layer, or of the dtype that came in; parameters and their gradients stay float32."""
    module, x = CASES[name].filled(), draw(name)
    plain = run(module, x)

    def call(given: Tensor) -> Any:
        with torch.autocast("cpu", dtype=dtype):
            return module(given)

    found = run(module, x, call)
    linear_like = "Linear" in name or "Attention" in name
    assert found.pop("y").dtype == (dtype if linear_like else torch.float32)
    assert all(g.dtype == torch.float32 for g in found.values())
    plain.pop("y")
    close(found, plain, 2 * CASES[name].near, dtype)


@every
def test_an_overflow_reaches_the_parameters_and_a_grad_scaler(name: str) -> None:
    module, x = CASES[name].filled(), draw(name)
    y = module(x)
    y.backward(torch.full_like(y, torch.inf))
    slopes = [x.grad, *(p.grad for p in module.parameters() if p.grad is not None)]
    assert all(g is not None and not g.isfinite().all() for g in slopes)
    net = nn.ModuleList([nn.Linear(16, 16), module])
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    before = copy.deepcopy(net[0].state_dict())
    for _ in range(30):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = 10 * net[1](net[0](x.detach())).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() < 2.0**24  # overflows were seen, steps were left out, and then some were taken
    assert not torch.equal(before["weight"], net[0].weight)
    assert all(p.isfinite().all() for p in net.parameters())


@every
@pytest.mark.filterwarnings("ignore:.*grad attribute of a Tensor that is not a leaf:UserWarning")  # dynamo looks at it
def test_compiled(name: str) -> None:
    module, x = CASES[name].filled(), draw(name)
    expected = run(module, x)
    same(run(module, x, torch.compile(module, backend="eager")), expected)


@every
def test_made_on_meta_and_filled_later(name: str) -> None:
    module, x = CASES[name].filled(), draw(name)
    with torch.device("meta"):
        other = CASES[name].empty()
    assert {t.device.type for t in (*other.parameters(), *other.buffers())} <= {"meta"}
    other.to_empty(device="cpu").load_state_dict(module.state_dict())
    same(run(other, x), run(module, x))
    with torch.device("meta"):
        other = CASES[name].empty()
    other.load_state_dict(module.state_dict(), assign=True)
    assert torch.equal(other(x), module(x))


@every
def test_a_checkpointed_pass_has_the_same_gradients(name: str) -> None:
    module, x = CASES[name].filled(), draw(name)
    same(run(module, x, lambda given: checkpoint(module, given, use_reentrant=False)), run(module, x))


@every
def test_inference_mode(name: str) -> None:
    with torch.inference_mode():
        module = CASES[name].filled()
        x = draw(name)
        assert torch.equal(module(x), module(x))
        state = {k: v.clone() for k, v in module.state_dict().items()}
    other = frozen(CASES[name].empty())
    other.load_state_dict(state, assign=True)
    with torch.no_grad():
        assert torch.equal(other(x), module(x))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.replace])
def test_a_linear_layer_is_replaced(name: str) -> None:
    replace = CASES[name].replace
    assert replace is not None
    for bias in (True, False):
        layer, x = nn.Linear(16, 12, bias=bias), torch.randn(50, 16)
        y, before = layer(x), copy.deepcopy(layer.state_dict())
        module = replace(layer)
        assert (module(x) - y).norm() <= 0.05 * y.norm()
        assert module.state_dict().keys() >= ({"base.bias"} if hasattr(module, "base") else {"bias"}) or not bias
        assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
        half = nn.Linear(16, 12, bias=bias).bfloat16()
        assert replace(half)(x.bfloat16()).dtype == torch.bfloat16


@every
@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers: the extra hf")
def test_saved_and_loaded_by_transformers(name: str, tmp_path: Path) -> None:
    import transformers

    class Config(transformers.PretrainedConfig):
        model_type = "lowbit-test"

    class Model(transformers.PreTrainedModel):
        config_class = Config

        def __init__(self, config: Any, part: nn.Module | None = None) -> None:
            super().__init__(config)
            self.part = part or CASES[name].empty()
            self.own = nn.Linear(1, 1)  # transformers asks for the dtype of a parameter
            self.post_init()

        def _init_weights(self, module: nn.Module) -> None:
            pass

        def forward(self, x: Tensor) -> Any:
            return self.part(x)

    x = draw(name)
    model = Model(Config(), CASES[name].filled())
    model.save_pretrained(tmp_path)
    loaded: Any = Model.from_pretrained(tmp_path, output_loading_info=True)
    other, notes = loaded
    assert not any(notes.values()), notes
    found, expected = run(other, x), run(model, x)
    same({key: found[key] for key in expected}, expected)  # transformers unfreezes what it loads
