"""The Torch backend as a whole: what it offers, where arrays live, dtypes, and how little it disturbs its caller."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

import lowbit  # noqa: E402
from lowbit.accel.torch_cuda import policy  # noqa: E402
from lowbit.accel.torch_cuda.triton import KERNELS  # noqa: E402
from lowbit.conformance import calls  # noqa: E402
from lowbit.conformance.runner import run  # noqa: E402
from lowbit.reference.errors import SpecError  # noqa: E402
from lowbit.reference.protocol import Backend, operations  # noqa: E402

from .torch_cases import DTYPES, HALVES, NAMED, case, moment, poisoned, tensors, weights  # noqa: E402, F401

torch_cuda: Any = lowbit.load("torch")

OPS = operations()


def answer(call: calls.Call) -> list[Tensor]:
    """Tensors of the answer."""
    return tensors(getattr(torch_cuda, call.op)(*call.arrays, **call.options))


def test_every_operation_of_the_contract_is_there() -> None:
    backend = lowbit.load("torch")
    assert isinstance(backend, Backend)
    assert (backend.name, backend.compute_dtype, backend.device) == ("torch", "float32", "cpu")
    assert [op for op in OPS if not callable(getattr(backend, op, None))] == []
    assert [op for op in OPS if not getattr(lowbit.load("torch", device="cpu"), op).__doc__] == []


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_are_kept_dtypes_follow_the_rule_and_bytes_repeat(name: str, dtype: str) -> None:
    call = case(name, dtype)
    given = tensors(call.arrays)
    before = [t.clone() for t in given]
    first = answer(call)
    assert all(torch.equal(x, y) for x, y in zip(given, before, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(first, answer(call), strict=True))
    floats = {t.dtype for t in first if t.is_floating_point()}
    if call.op in calls.float64():
        assert floats == {torch.float64}
    elif call.op in calls.float32():
        assert floats == {torch.float32}
    elif floats:
        assert floats == {torch.float64 if dtype == "float64" else torch.float32}
    assert {t.dtype for t in first} <= {torch.float32, torch.float64, torch.int32, torch.bool}


@pytest.mark.parametrize("name", NAMED)
def test_strides_do_not_matter(name: str) -> None:
    def stretched(value: Tensor) -> Tensor:
        wide = torch.full((*value.shape, 2), 7, dtype=value.dtype)
        wide[..., 0] = value
        return wide[..., 0]

    plain, strided = answer(case(name, "float64")), answer(case(name, "float64", stretched))
    for x, y in zip(plain, strided, strict=True):
        if x.is_floating_point():  # products may take another route through the library
            torch.testing.assert_close(x, y)
        else:
            assert torch.equal(x, y)


@pytest.mark.parametrize("name", NAMED)
def test_no_graph_is_recorded_and_autocast_is_ignored(name: str) -> None:
    call = case(name, "float32")
    plain = answer(call)
    learned = [t.requires_grad_() for t in tensors(call.arrays) if t.is_floating_point()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = answer(call)
    assert all(torch.equal(x, y) for x, y in zip(plain, cast, strict=True))
    assert not any(t.requires_grad for t in cast if all(t is not x for x in learned))  # lone nodes are passed on
    assert all(t.requires_grad for t in learned)


@pytest.mark.parametrize("clause", ("A-2a", "A-3"))
def test_empty_and_wrong_calls(clause: str) -> None:
    assert {(outcome.status, outcome.note) for outcome in run(torch_cuda, [clause])} == {("pass", "")}


def test_products_are_full_precision_and_the_callers_choice_survives() -> None:
    x, w, h = weights(0, 64, 64, dtype="float32"), weights(1, 32, 64, dtype="float32"), moment(2, 64, dtype="float32")
    exact = (torch_cuda.moment_leaf(x, index=0)[0].sum, torch_cuda.gptq(w, h, bits=3).weight)
    try:
        torch.set_float32_matmul_precision("medium")
        loose = (torch_cuda.moment_leaf(x, index=0)[0].sum, torch_cuda.gptq(w, h, bits=3).weight)
        assert torch.get_float32_matmul_precision() == "medium"
        with pytest.raises(SpecError):
            torch_cuda.gptq(w, -h, bits=3)
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(torch.equal(x, y) for x, y in zip(exact, loose, strict=True))


def test_default_dtype_and_default_device_are_ignored() -> None:
    call = case("gptq", "float32")
    plain = answer(call)
    try:
        torch.set_default_dtype(torch.float16)
        torch.set_default_device("meta")
        other = answer(call)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(x, y) for x, y in zip(plain, other, strict=True))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3)])
def test_arrays_come_and_go_unchanged(dtype: str, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=shape) * 4
    x = np.asarray(x).astype(dtype)
    back = torch_cuda.to_numpy(torch_cuda.asarray(x))
    assert back.dtype == x.dtype
    assert back.shape == x.shape
    assert back.tobytes() == x.tobytes()


def test_arrays_of_any_layout_are_taken() -> None:
    x = np.arange(12.0).reshape(3, 4)
    frozen = x.copy()
    frozen.flags.writeable = False
    for view in (x.T, x[::-1], x[:, ::2], frozen, x.astype(">f8")):
        assert torch_cuda.asarray(view).tolist() == view.tolist()


def test_bfloat16_arrays_are_taken_and_come_back_exact() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.array([1.0, -2.5, 3e38], dtype=ml_dtypes.bfloat16)
    t = torch_cuda.asarray(x)
    assert t.dtype == torch.bfloat16
    assert torch_cuda.to_numpy(t).tolist() == x.astype(np.float32).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernels": "fast"}, "kernels must be one of auto, torch, triton, got 'fast'"),
        ({"device": "nowhere"}, "unknown device 'nowhere': "),
        ({"device": "meta"}, "device 'meta' cannot be used: "),
        ({"device": "cuda:99"}, "device 'cuda:99' "),
    ],
)
def test_configure_refuses_aloud(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        torch_cuda.configure(**options)


def test_without_a_gpu_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"^device 'cuda' is not available: torch {torch.__version__.split('+')[0]}"):
        torch_cuda.configure(device="cuda")


def test_supports_gives_reasons() -> None:
    assert torch_cuda.supports("gptq") == "gptq has no Triton kernel: torch serves it"
    assert torch_cuda.supports("quantize") == "kernels='auto' uses Triton on cuda only, not on cpu"
    assert torch_cuda.configure(kernels="torch").supports("quantize") == "kernels='torch' was asked for"
    assert repr(torch_cuda.configure(kernels="torch")) == "TorchBackend(device='cpu', kernels='torch')"


FROM_NOTHING: tuple[tuple[str, dict[str, Any]], ...] = (
    ("normal_float", {"bits": 4}),
    ("dynamic_float", {"bits": 4}),
    ("hadamard_matrix", {"order": 12}),
    ("random_hadamard", {"order": 12, "seed": 1}),
    ("knot_grid", {"function": "exp", "fraction_bits": 1}),
    ("random_score", {"size": 3, "seed": 1}),
)


@pytest.mark.parametrize(("op", "options"), FROM_NOTHING)
def test_arrays_from_nothing_live_where_the_object_says(op: str, options: dict[str, Any]) -> None:
    """And nowhere else: not after a refusal, not in another thread, not for another object."""
    there = torch_cuda.TorchBackend("meta")
    assert getattr(there, op)(**options).device.type == "meta"
    with pytest.raises(SpecError):
        there.normal_float(bits=99)
    assert getattr(torch_cuda, op)(**options).device.type == "cpu"
    policy_of = policy.under(there, lambda: (policy.device().type, pool.submit(policy.device).result().type))
    with ThreadPoolExecutor(1) as pool:
        assert policy_of() == ("meta", "cpu")
    inner = policy.under(there, lambda: getattr(torch_cuda.configure(), op)(**options))
    assert inner().device.type == "cpu"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", KERNELS)
def test_cuda_tensors_are_served_as_supports_says(op: str, dtype: str) -> None:
    with FakeTensorMode():
        x = torch.empty(3, dtype=getattr(torch, dtype), device="cuda")
    expected = torch_cuda.supports(op, device="cuda", dtype=x.dtype) is True
    assert policy.by_kernel(op, x) is expected
    assert policy.by_kernel(op, torch.zeros(3, dtype=x.dtype)) is False
    assert policy.under(torch_cuda.configure(kernels="torch"), policy.by_kernel)(op, x) is False
    wide = torch_cuda.supports(op, device="cuda", dtype=torch.float64) is True
    with FakeTensorMode():
        assert policy.by_kernel(op, x, torch.empty(1, dtype=torch.float64, device="cuda")) is wide


def test_objects_are_copied_and_pickled() -> None:
    given = torch_cuda.configure(kernels="torch")
    for other in (copy.copy(given), copy.deepcopy(given), pickle.loads(pickle.dumps(given))):
        assert repr(other) == repr(given)
        assert other.round_half_even(torch.tensor([0.5])).tolist() == [0.0]
        other.kernels = "auto"
        assert given.supports("quantize") == "kernels='torch' was asked for"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: torch_cuda.fit_grid(np.ones((2, 2)), bits=4), "[A-3] x must be a torch.Tensor, got numpy.ndarray"),
        (lambda: torch_cuda.fit_grid(torch.ones(2, 2, dtype=torch.int32), bits=4), "[Q-2] x must be float16"),
        (lambda: torch_cuda.fit_grid(torch.ones(2, 2).to_sparse(), bits=4), "[Q-2] x must be a dense tensor"),
        (lambda: torch_cuda.pack(torch.ones(2, 2), bits=4), "[Q-6] codes must hold integers, got float32"),
        (
            lambda: torch_cuda.quantize(
                torch.ones(2, 2), torch.ones(2, 1, device="meta"), torch.zeros(2, 1, dtype=torch.int32), bits=4
            ),
            "[Q-3] scale is on meta, the other arguments are on cpu",
        ),
        (
            lambda: torch_cuda.gptq(torch.tensor([[1.0, torch.nan], [torch.inf, 0.0]]), torch.eye(2), bits=4),
            "[A-4] w holds 2 NaN or infinite values, the first at (0, 1) (clause G-2)",
        ),
    ],
)
def test_wrong_arguments_are_named(call: Any, message: str) -> None:
    with pytest.raises(SpecError) as raised:
        call()
    assert str(raised.value).startswith(message)


def test_a_sum_that_overflows_is_not_taken_for_an_infinity() -> None:
    x = torch.full((4, 4), 3e38)
    assert torch.isfinite(torch_cuda.fit_grid(x, bits=8).scale).all()
    assert set(HALVES) < set(DTYPES)
