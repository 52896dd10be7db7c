"""What both backends let in, and how they treat what differs from the ordinary: widths, libraries, numbers of NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")
torch = pytest.importorskip("torch")

import lowbit  # noqa: E402
from lowbit import reference  # noqa: E402
from lowbit.conformance import calls  # noqa: E402
from lowbit.conformance.calls import Call, each, leaves  # noqa: E402
from lowbit.conformance.kit import Kit  # noqa: E402
from lowbit.reference.errors import SpecError  # noqa: E402
from lowbit.reference.types import QkrQuantizers  # noqa: E402

NUMBA: Any = lowbit.load("numba")
TORCH: Any = lowbit.load("torch")
BACKENDS = pytest.mark.parametrize("backend", [reference, NUMBA, TORCH], ids=["reference", "numba", "torch"])


def dtypes(backend: Any, call: Call, arrays: list[Any]) -> list[str]:
    result = Kit(backend).call(call.op, *arrays, **call.options)
    return [value.dtype.name for value in leaves(result) if isinstance(value, np.ndarray)]


@pytest.mark.parametrize("width", ["float64", "float16"])
def test_one_argument_of_another_width_promotes_alike(width: str) -> None:
    tried = 0
    for call in calls.ordinary("float32"):
        for i, given in enumerate(call.arrays):
            changed = each(given, lambda x: x.astype(width) if x.dtype == np.float32 else x)
            if all(
                a.dtype == b.dtype for a, b in zip(leaves(changed), leaves(given), strict=True) if hasattr(a, "dtype")
            ):
                continue
            arrays = [*call.arrays[:i], changed, *call.arrays[i + 1 :]]
            name = f"{call.op}, {calls.arguments(call.op)[i]}"
            assert dtypes(NUMBA, call, arrays) == dtypes(TORCH, call, arrays), name
            tried += 1
    assert tried > 100


def test_a_quantizer_may_answer_in_another_width() -> None:
    x, w = torch.randn(2, 3, 8), [torch.randn(8, 8) for _ in range(3)]
    fields = dict.fromkeys(QkrQuantizers._fields)
    for field in fields:
        wide = QkrQuantizers(**{**fields, field: lambda t: t.double()})
        found = TORCH.qkr_attention(x, *w, heads=2, quantizers=wide)
        assert found.dtype == torch.float64
        narrow = NUMBA.qkr_attention(
            x.numpy(), *(a.numpy() for a in w), heads=2, quantizers=wide._replace(**{field: lambda a: a.astype(float)})
        )
        assert narrow.dtype == np.float64
        np.testing.assert_allclose(found.numpy(), narrow, rtol=1e-4, atol=1e-5)


def test_arrays_of_the_other_library_are_refused_by_name() -> None:
    for call in calls.ordinary():
        for i, given in enumerate(call.arrays):
            if not any(isinstance(x, np.ndarray) for x in leaves(given)):
                continue
            name = calls.arguments(call.op)[i]
            arrays = [*call.arrays[:i], each(given, TORCH.asarray), *call.arrays[i + 1 :]]
            with pytest.raises(SpecError, match=rf"{name} must be a NumPy array, got torch.Tensor; convert"):
                getattr(NUMBA, call.op)(*arrays, **call.options)
            own = [each(x, TORCH.asarray) for x in call.arrays]
            own[i] = given
            with pytest.raises(SpecError, match=rf"{name} must be a torch.Tensor, got numpy.ndarray; convert"):
                getattr(TORCH, call.op)(*own, **call.options)


def test_what_numpy_cannot_read_is_refused_by_the_specification() -> None:
    for x in (torch.ones(2, 2, requires_grad=True), torch.ones(2, 2, dtype=torch.bfloat16), [[1.0], [1.0, 2.0]]):
        with pytest.raises(SpecError, match="x is not an array"):
            reference.fit_grid(x, bits=4)


@BACKENDS
def test_results_are_options_of_the_next_operation(backend: Any) -> None:
    own = backend.asarray
    gain, one, none = np.array([[4.0, 2.0, 1.0], [3.0, 1.0, 0.5]]), np.ones(2, np.int32), np.zeros(2, np.int32)
    ranks = backend.allocate_greedy(*map(own, (gain, np.ones(2), one, none, 3 * one)), budget=4)
    w = own(np.arange(32.0).reshape(4, 8) % 5)
    for rank in backend.to_numpy(ranks):
        assert backend.eora(w, own(np.eye(8)), rank=rank).B.shape == (4, rank)
    bits = backend.to_numpy(backend.allocate_bits(own(gain[:1]), own(np.array([[1, 2, 3]], np.int32)), budget=3).bits)
    assert backend.bcq(w, bits=bits[0]).scale.shape == (4, 1, bits[0])


@BACKENDS
def test_results_are_arguments_of_the_next_operation(backend: Any) -> None:
    own = backend.asarray
    table = backend.hadamard_matrix(order=4)
    w = own(np.arange(8.0, dtype=np.float32).reshape(2, 4))
    np.testing.assert_allclose(
        backend.to_numpy(backend.kronecker_transform(w, table)),
        backend.to_numpy(backend.hadamard_transform(w)),
        atol=1e-6,
    )
    score = backend.forgetting_score(own(np.array([[True, False, True], [False, True, False]])))
    assert backend.to_numpy(backend.select_coreset(score, fraction=0.5)).tolist() == [0, 2]
    state = backend.start_oscillation(own(np.array(3, np.int32)))
    assert backend.to_numpy(backend.track_oscillation(state.codes, *state).codes) == 3
