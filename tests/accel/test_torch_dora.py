"""DoRALinear and the fused norm: what they compute, what they keep, and what a kernel makes of it."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

import lowbit  # noqa: E402
import lowbit.reference as ref  # noqa: E402
from lowbit.nn import BCQLinear, DoRALinear, LowRankLinear, QuantLinear, RotatedLinear, StatsQLinear  # noqa: E402
from lowbit.reference.errors import SpecError, Unsupported  # noqa: E402

from .torch_cases import float64, poisoned, weights  # noqa: E402, F401

torch_cuda: Any = lowbit.load("torch")


def layer(seed: int = 0, *, bias: bool = False, dtype: Any = torch.float64, **options: Any) -> Any:
    """A layer in the middle of training."""
    torch.manual_seed(seed)
    found: Any = DoRALinear(nn.Linear(12, 7, bias=bias).to(dtype), 3, alpha=6, **options)
    with torch.no_grad():
        found.B.normal_()
        found.magnitude.mul_(torch.rand(7) + 0.5)
    return found


def expected_gradients(module: Any, x: Tensor, grad: Tensor, detach: bool) -> Any:
    """Those of the specification, from G = (dL/dy)ᵀ x."""
    G = float64(grad.reshape(-1, 7).mT @ x.reshape(-1, 12))
    arrays = (float64(t.detach()) for t in (module._weight(), module.B, module.A, module.magnitude))
    return ref.dora_gradient(G, *arrays, scaling=module.scaling, detach=detach)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("reuse_output", [True, False])
def test_forward_and_backward_are_the_specification(
    detach: bool, bias: bool, transposed: bool, reuse_output: bool
) -> None:
    module = layer(bias=bias, detach=detach, reuse_output=reuse_output)
    if transposed:  # the same numbers, stored (in, out)
        with torch.no_grad():
            module.base.weight = nn.Parameter(module.base.weight.mT.contiguous())
        module.transposed = True
    x, grad = weights(1, 2, 5, 12).requires_grad_(), weights(2, 2, 5, 7)
    y = module(x)
    y.backward(grad)
    w, b, a, m = (float64(t.detach()) for t in (module._weight(), module.B, module.A, module.magnitude))
    merged = ref.dora_weight(w, b, a, m, scaling=module.scaling)
    shift = float64(module.bias.detach()) if module.bias is not None else np.zeros(7)
    np.testing.assert_allclose(float64(y.detach()), float64(x.detach()) @ merged.T + shift, rtol=1e-12, atol=1e-12)
    assert x.grad is not None
    np.testing.assert_allclose(float64(x.grad), float64(grad) @ merged, rtol=1e-12, atol=1e-12)
    wanted = expected_gradients(module, x.detach(), grad, detach)
    for found, want in ((module.B, wanted.B), (module.A, wanted.A), (module.magnitude, wanted.magnitude)):
        assert found.grad is not None
        np.testing.assert_allclose(float64(found.grad), want, rtol=1e-12, atol=1e-12)
    if module.bias is not None:
        assert module.bias.grad is not None
        np.testing.assert_allclose(float64(module.bias.grad), float64(grad).sum(axis=(0, 1)), rtol=1e-12)


def test_full_gradient_is_the_derivative() -> None:
    """Central differences by torch itself; the detached one would fail."""
    module, x = layer(detach=False), weights(1, 5, 12).requires_grad_()

    def run(b: Tensor, a: Tensor, m: Tensor, given: Tensor) -> Tensor:
        replaced = {"B": b, "A": a, "magnitude": m}
        out: Tensor = torch.func.functional_call(module, replaced, (given,))
        return out

    assert torch.autograd.gradcheck(run, (module.B, module.A, module.magnitude, x))
    module.detach = True
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(run, (module.B, module.A, module.magnitude, x))


def test_nothing_changes_at_the_start() -> None:
    for dtype, slack in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        base = nn.Linear(64, 32).to(dtype)
        module = DoRALinear(base, 4)
        x = weights(1, 9, 64, dtype="float32").to(dtype)
        assert module.A.dtype == torch.float32
        assert torch.allclose(module(x), base(x), atol=slack)
        assert module(x).dtype == dtype
    assert not module.B.any()
    assert module.A.any()
    assert "rank=4, scaling=1" in repr(module)


def test_dropout_leaves_the_base_alone() -> None:
    """y = (x − x̃) Wᵀ + x̃ W'ᵀ + bias with the mask that was drawn; in evaluation there is none."""
    module, x = layer(bias=True, dropout=0.5), weights(1, 64, 12)
    torch.manual_seed(3)
    mask = nn.functional.dropout(torch.ones_like(x), 0.5)
    torch.manual_seed(3)
    given = x.clone().requires_grad_()
    y = module(given)
    assert module.bias is not None
    arrays = [float64(t.detach()) for t in (module._weight(), module.bias, module.B, module.A, module.magnitude)]
    wanted = ref.dora_forward(float64(x), float64(x * mask), *arrays, scaling=module.scaling)
    np.testing.assert_allclose(float64(y.detach()), wanted, rtol=1e-11, atol=1e-11)
    y.sum().backward()
    dropped = float64(mask) * (np.ones((1, 7)) @ float64(module.merged_weight()))
    kept = (1 - float64(mask)) * (np.ones((1, 7)) @ arrays[0])
    assert given.grad is not None
    np.testing.assert_allclose(float64(given.grad), dropped + kept, rtol=1e-11, atol=1e-11)
    module.eval()
    assert torch.equal(module(x), module(x))


@pytest.mark.parametrize("magnitude", [0.0, 2.0])
@pytest.mark.parametrize("detach", [True, False])
def test_zero_rows_are_finite_and_can_learn(magnitude: float, detach: bool) -> None:
    module = layer(detach=detach)
    with torch.no_grad():
        module.base.weight[2] = 0
        module.B[2] = 0
        module.magnitude[2] = magnitude
        module.magnitude[4] = 0  # an erased row with a direction: its magnitude must be able to come back
    x, grad = weights(1, 5, 12), weights(2, 5, 7)
    y = module(x)
    y.backward(grad)
    assert not y[:, [2, 4]].any()
    wanted = expected_gradients(module, x, grad, detach)
    for found, want in ((module.B, wanted.B), (module.A, wanted.A), (module.magnitude, wanted.magnitude)):
        assert found.grad is not None
        np.testing.assert_allclose(float64(found.grad), want, rtol=1e-11, atol=1e-11)
    assert module.B.grad is not None
    assert module.B.grad[2].any()
    assert module.magnitude.grad is not None
    assert module.magnitude.grad[4] != 0


def test_rows_that_almost_cancel_keep_their_precision() -> None:
    """float32 weights that BA has nearly erased: (2.6) in float32 would be noise there."""
    g = torch.Generator().manual_seed(0)
    module: Any = DoRALinear(nn.Linear(512, 64, bias=False), 4)
    with torch.no_grad():
        module.A.copy_(torch.randn(4, 512, generator=g))
        module.B.copy_(torch.randn(64, 4, generator=g))
        erased = 1e-4 * torch.randn(64, 512, generator=g) - module.B @ module.A
        module.base.weight.copy_(torch.where(torch.arange(64)[:, None] < 32, erased, module.base.weight))
    from lowbit.accel.torch_cuda.nn.dora import _norms, _square_norms

    for dtype in (torch.float32, torch.bfloat16):
        w, b, a = module._weight().to(dtype), module.B.detach(), module.A.detach()
        exact = ref.dora_norm(*(float64(t) for t in (w, b, a)), scaling=1.0)
        cross = a.to(dtype) @ w.mT
        found, nonzero = _square_norms(w, cross, b, a, w.double().square().sum(1), 1.0)
        assert nonzero
        np.testing.assert_allclose(float64(found.sqrt())[:32], exact[:32], rtol=1e-12)  # formed anew, in float64
        np.testing.assert_allclose(float64(found.sqrt()), exact, rtol=2e-6 if dtype == torch.float32 else 2e-2)
        np.testing.assert_allclose(float64(_norms(w, b, a)), exact, rtol=2e-6)  # as on other devices


def exact(module: Any, x: Tensor) -> Any:
    """What the specification answers for the state that a layer has."""
    w, b, a, m = (float64(t.detach()) for t in (module._weight(), module.B, module.A, module.magnitude))
    y = float64(x) @ ref.dora_weight(w, b, a, m, scaling=module.scaling).T
    return y if module.bias is None else y + float64(module.bias.detach())


CHANGES: dict[str, Any] = {
    "in place": lambda weight: weight.detach().mul_(2),
    "data": lambda weight: weight.data.mul_(2),
    "another": lambda weight: setattr(weight, "data", weight.data * 3),
    "numpy": lambda weight: np.multiply(weight.detach().numpy(), 3, out=weight.detach().numpy()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_norms_follow_the_weight(change: str) -> None:
    """Whoever edits it: training code, a checkpoint that is loaded, PEFT's merge, an array that shares its memory."""
    module, x = layer(), weights(1, 5, 12)
    before = module(x)
    CHANGES[change](module.base.weight)
    np.testing.assert_allclose(float64(module(x).detach()), exact(module, x), rtol=1e-11, atol=1e-11)
    assert not torch.allclose(module(x), before)
    halved = copy.deepcopy(module).to(torch.float32)
    assert torch.allclose(halved(x.float()).double(), module(x), atol=1e-5)


def test_the_norms_follow_the_scale_of_a_quantized_base() -> None:
    base = QuantLinear.from_linear(nn.Linear(12, 7), bits=4)
    module, x = DoRALinear(base, 3), weights(1, 5, 12, dtype="float32")
    module(x)
    base.scale.mul_(2)
    np.testing.assert_allclose(float64(module(x).detach()), exact(module, x), rtol=1e-5, atol=1e-5)
    base.load_state_dict({**base.state_dict(), "scale": 3 * base.scale})
    np.testing.assert_allclose(float64(module(x).detach()), exact(module, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor", [1.0, 0.5, 0.1, 0.01, 0.001])
def test_small_factors_keep_their_precision_in_half(dtype: Any, factor: float) -> None:
    """x + x (g − 1) loses what a small g leaves; the error is that of one rounding, whatever the factor."""
    module, x = layer(dtype=dtype), weights(1, 16, 12).to(dtype)
    with torch.no_grad():
        module.magnitude.mul_(factor)
    y, grad = module(x), weights(2, 16, 7).to(dtype)
    y.backward(grad)
    want, roundoff = exact(module, x), torch.finfo(dtype).eps
    assert np.linalg.norm(float64(y.detach()) - want) <= 2 * roundoff * np.linalg.norm(want)
    G = float64(grad).T @ float64(x)
    arrays = [float64(t.detach()) for t in (module._weight(), module.B, module.A, module.magnitude)]
    slopes = ref.dora_gradient(G, *arrays, scaling=module.scaling, detach=True)
    for found, wanted in ((module.magnitude.grad, slopes.magnitude), (module.A.grad, slopes.A)):
        assert np.linalg.norm(float64(found) - wanted) <= 4 * roundoff * np.linalg.norm(wanted)


def test_a_state_dict_holds_the_weight_unmerged() -> None:
    """A layer that it is loaded into computes the same, whether either is merged."""
    module, x = layer(bias=True), weights(1, 5, 12)
    y, weight = module(x), module.base.weight.detach().clone()
    state = module.merge().state_dict()
    assert state.keys() == layer(1, bias=True).state_dict().keys()
    assert torch.equal(state["base.weight"], weight)
    for other in (layer(1, bias=True), layer(1, bias=True).merge(), nn.Sequential(layer(1, bias=True).merge())):
        prefix = "0." if isinstance(other, nn.Sequential) else ""
        other.load_state_dict({prefix + key: value for key, value in state.items()})
        torch.testing.assert_close(other(x), y, rtol=1e-12, atol=1e-12)
    factors = {key: value for key, value in state.items() if not key.startswith("base.")}
    module.load_state_dict(factors, strict=False)
    assert module.merged
    copied = copy.deepcopy(module)
    assert torch.equal(copied.unmerge().base.weight, weight)
    assert module.merged
    assert module.to(torch.float32).unmerge().base.weight.dtype == torch.float32
    assert torch.equal(module.base.weight, weight.float())


BASES: dict[str, Any] = {
    "StatsQLinear": lambda: StatsQLinear(12, 7, bits=2),
    "LowRankLinear": lambda: LowRankLinear(nn.Linear(12, 7), torch.ones(7, 1), torch.ones(1, 12)),
    "DoRALinear": lambda: DoRALinear(nn.Linear(12, 7), 2),
    "RotatedLinear": lambda: RotatedLinear(nn.Linear(12, 7)),
    "Conv1d": lambda: nn.Conv1d(12, 7, 1),
    "Embedding": lambda: nn.Embedding(12, 7),
}


@pytest.mark.parametrize("base", BASES)
def test_bases_that_compute_something_else_are_refused_by_name(base: str) -> None:
    with pytest.raises(Unsupported, match=f"a {base} cannot be the base of a DoRALinear: its|a {base} .*: it has no"):
        DoRALinear(BASES[base](), 2)


def test_whatever_makes_its_weight_can_be_a_base() -> None:
    base = BCQLinear.from_linear(nn.Linear(12, 7), bits=3)
    module, x = DoRALinear(base, 2), weights(1, 5, 12, dtype="float32")
    torch.testing.assert_close(module(x), base(x), rtol=1e-5, atol=1e-5)


def test_merging_is_exact_both_ways() -> None:
    for transposed in (False, True):
        module, x = layer(bias=True), weights(1, 5, 12)
        if transposed:
            module.base.weight = nn.Parameter(module.base.weight.detach().mT.contiguous())
            module.transposed = True
        plain, stored = module(x), module.base.weight.detach().clone()
        module.merge().merge()
        assert module.merged
        assert torch.allclose(module(x), plain)
        assert not torch.equal(module.base.weight, stored)
        module.unmerge().unmerge()
        assert torch.equal(module.base.weight, stored)
        assert torch.equal(module(x), plain)


def test_quantized_base() -> None:
    """QDoRA: the magnitude is that of the dequantized weight, so that step 0 is the quantized model."""
    w = weights(0, 8, 32, dtype="float32")
    grid = torch_cuda.fit_grid(w, bits=4, granularity="group", group_size=8)
    packed: Any = QuantLinear(32, 8, bits=4, groups=4, bias=True)
    packed.words = torch_cuda.pack(torch_cuda.quantize(w, *grid, bits=4), bits=4)
    packed.scale, packed.zero_point, packed.bias = grid.scale, grid.zero_point, torch.ones(8)
    module: Any = DoRALinear(packed, 2)
    x = weights(1, 6, 32, dtype="float32")
    assert torch.allclose(module(x), packed(x), atol=1e-5)
    assert not torch.allclose(module.magnitude.detach(), w.norm(dim=1))
    dense: Any = DoRALinear(nn.Linear(32, 8), 2)
    with torch.no_grad():
        module.B.normal_()
        dense.base.weight.copy_(packed.weight())
        dense.base.bias.copy_(packed.bias)
        for name in ("A", "B", "magnitude"):
            getattr(dense, name).copy_(getattr(module, name))
    for one in (module, dense):
        one.requires_grad_(True)
        one(x).square().sum().backward()
    for name in ("A", "B", "magnitude"):
        assert torch.allclose(getattr(module, name).grad, getattr(dense, name).grad, rtol=1e-4, atol=1e-4)
    with pytest.raises(Unsupported, match="quantize merged_weight"):
        module.merge()
    assert module.merged_weight().shape == (8, 32)


def test_the_nearest_lora() -> None:
    module = layer()
    patch, left = module.to_lora(7)
    assert left < 1e-12
    assert torch.allclose(module.base.weight + patch.B @ patch.A, module.merged_weight())
    assert 0 < module.to_lora(2)[1] < 1
    start: Any = DoRALinear(nn.Linear(5, 4), 1)
    assert start.to_lora(1)[1] == 0


def test_rank_0_and_autocast() -> None:
    module: Any = DoRALinear(nn.Linear(12, 7, bias=False), 0)
    x = weights(1, 5, 12, dtype="float32")
    module(x).sum().backward()
    assert module.magnitude.grad is not None
    assert torch.allclose(module.magnitude.grad, (x @ module.base.weight.mT).sum(0) / module.magnitude, rtol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(x).dtype == torch.bfloat16
    empty = module(torch.zeros(0, 12))
    assert empty.shape == (0, 7)
    stable: Any = DoRALinear(nn.Linear(4, 4), 4, alpha=8, rank_stabilised=True)
    assert stable.scaling == 4


def test_the_output_is_kept_instead_of_a_copy() -> None:
    """Saved for backward: x, the hidden vector and y. Nothing of the weight's size but the weight itself."""
    base = nn.Linear(256, 128, bias=False).requires_grad_(False)
    module: Any = DoRALinear(base, 4)
    x = torch.randn(32, 256)
    kept: dict[int, int] = {}

    def weigh(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda t: t):
        y = module(x)
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    loose = {p: n for p, n in kept.items() if p not in own}
    assert y.untyped_storage().data_ptr() in loose
    vectors = 3 * 8 * 128  # g, c and the inverse in float64
    assert sum(loose.values()) <= 4 * (x.numel() + y.numel() + 32 * 4) + vectors
    # in place after the layer: refused by autograd, unless the layer was told
    with pytest.raises(RuntimeError, match=r"(?i)in-?place"):
        module(x).relu_().sum().backward()
    told: Any = DoRALinear(base, 4, reuse_output=False)
    told(x).relu_().sum().backward()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DoRALinear(nn.Linear(4, 4), -1), "[D-4] rank must be a whole number, at least 0, got -1"),
        (lambda: DoRALinear(nn.Linear(4, 4), 1, dropout=1.0), "[D-5] dropout must be at least 0 and below 1, got 1.0"),
    ],
)
def test_misfits_are_refused(call: Any, message: str) -> None:
    with pytest.raises(SpecError) as raised:
        call()
    assert str(raised.value) == message


needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

INTERPRET = """
import numpy as np
import torch
import lowbit
from lowbit import reference

kernels = lowbit.load("torch", kernels="triton")
assert kernels.supports("dora_norm", dtype=torch.bfloat16) is True
random = np.random.default_rng(0)
for m, k, r in ((1, 1, 1), (7, 40, 3), (5, 300, 0), (9, 513, 16), (0, 8, 2), (3, 0, 1)):
    for dtype, slack in ((torch.float32, 1e-7), (torch.float64, 1e-15), (torch.bfloat16, 1e-7)):
        w, b, a = (torch.from_numpy(random.standard_normal(s)).to(dtype) for s in ((m, k), (m, r), (r, k)))
        wide = [x.double().numpy() for x in (w, b, a)]
        found = kernels.dora_norm(w, b, a, scaling=2.0)
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        want = reference.dora_norm(*wide, scaling=2.0)
        np.testing.assert_allclose(found.double().numpy(), want, rtol=4 * slack, atol=0)
        other = kernels.dora_norm(w.mT, b, a, scaling=2.0, layout="transposed")
        assert torch.equal(found, other)
        start = kernels.dora_norm(w, 0 * b, a, scaling=2.0)
        assert torch.equal(start, kernels.dora_magnitude(w))
b, a = (torch.from_numpy(random.standard_normal(s)).float() for s in ((40, 4), (4, 200)))
w = (1e-4 * torch.randn(40, 200) - b @ a).float()
want = reference.dora_norm(*(x.double().numpy() for x in (w, b, a)), scaling=1.0)
np.testing.assert_allclose(kernels.dora_norm(w, b, a, scaling=1.0).numpy(), want, rtol=1e-6)
print("interpreted")
"""

COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from lowbit.accel.torch_cuda.triton import dora

kernel = dora._dora_norm
for kind in ("fp32", "bf16", "fp64"):
    types = {"w": "*" + kind, "b": "*fp32", "a": "*fp32", "norms": "*fp32"}
    constants = {"ROWS": 4, "BLOCK": 256}
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in kernel.arg_names}
    fixed = {(kernel.arg_names.index(n),): v for n, v in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed)
    text = compile(source, target=GPUTarget("cuda", 80, 32), options={"enable_fp_fusion": True}).asm["ptx"]
    assert "fma.rn.f64" in text and "sqrt.rn.f64" in text
print("compiled")
"""


def run(script: str, interpret: str) -> str:
    environment = {**os.environ, "TRITON_INTERPRET": interpret, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_triton
def test_the_fused_norm_in_the_interpreter() -> None:
    assert run(INTERPRET, "1") == "interpreted"


@needs_triton
def test_the_fused_norm_compiles_for_cuda_in_float64() -> None:
    assert run(COMPILE, "0") == "compiled"
