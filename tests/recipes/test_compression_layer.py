"""One layer solved with nothing but tensors: no model, no file."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lowbit.compression.arrays import Arrays
from lowbit.compression.compensate import compensate
from lowbit.compression.layer import LayerSolver, Solution
from lowbit.compression.method import Method
from lowbit.formats.packed.compressed_tensors import dequantize_module
from lowbit.models.linears import Linear
from lowbit.runs.clock import Clock
from lowbit.runs.errors import RecipeError

M, K = 12, 32


def method(**changes: Any) -> Method:
    fields: dict[str, Any] = {
        "bits": 3,
        "scheme": "asymmetric",
        "group_size": 16,
        "quantizer": "rtn",
        "act_order": False,
        "static_groups": True,
        "clip_search": False,
        "damping": 0.01,
        "sparsity": None,
        "pruner": "sparsegpt",
        "compensate": "eora",
        "rank": 3,
        "rounds": 1,
        "adapter_aware": False,
        "adapter_bits": None,
        "adapter_damping": 0.01,
        "spectrum": True,
        "storage": torch.float32,
    }
    return Method(**(fields | changes))


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (m, k) and inputs (tokens, k), some of them much larger than others."""
    draw = torch.Generator().manual_seed(1)
    return torch.randn(M, K, generator=draw), torch.randn(200, K, generator=draw) * torch.logspace(0, -2, K)


def solve(how: Method, *, transposed: bool = False) -> tuple[Solution, Clock]:
    w, x = problem()
    clock = Clock()
    arrays = Arrays.load("reference", device="cpu", threads=None)
    c = arrays.give((x.double().T @ x.double()) / len(x))
    solver = LayerSolver(how, arrays, clock)
    return solver.solve("a.b", 7, Linear("b", (M, K), transposed), w, c, x.abs().mean(0)), clock


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bits": 4, "scheme": "symmetric-full", "compensate": "none"},
        {"quantizer": "gptq", "act_order": True, "adapter_aware": True, "rounds": 2},
        {"sparsity": "2:4", "bits": 16, "compensate": "svd"},
        {"sparsity": "2:4", "pruner": "wanda", "compensate": "act-svd", "adapter_bits": 4},
        {"sparsity": "2:4", "quantizer": "gptq", "spectrum": False},
    ],
    ids=lambda changes: " ".join(f"{key}={value}" for key, value in changes.items()) or "plain",
)
def test_measures_are_those_of_the_tensors(changes: dict[str, Any]) -> None:
    """The two objectives again, from what would be stored and from the inputs themselves."""
    how = method(**changes)
    solution, _ = solve(how)
    w, x = problem()
    if how.bits == 16:
        weight = solution.tensors["a.b.weight"]
    else:
        weight = dequantize_module(
            {name.removeprefix("a.b."): tensor for name, tensor in solution.tensors.items()},
            bits=how.bits,
            scheme=how.scheme,
        )
    if how.sparsity:
        assert int((weight == 0).reshape(M, -1, 4).sum(-1).min()) >= 2
    d = (w - weight).double()
    errors = [(d, "objective_uncompensated")]
    if solution.factors is not None:
        b, a = solution.factors
        assert (b.shape, a.shape) == ((M, 3), (3, K))
        errors.append((d - b.double() @ a.double(), "objective_compensated"))
    assert (solution.factors is None) == (how.compensate == "none")
    for error, field in errors:
        exact = float((error @ x.double().T).square().sum()) / len(x)
        # w − Ŵ and B A are float32: each entry of the error is off by a few units of 2^-24 of the entries of w
        assert math.isclose(solution.measures[field], exact, rel_tol=1e-5), field
    assert solution.measures["method"] == how.label(patched=solution.factors is not None)
    assert (solution.measures["spectrum"] is None) == (not how.spectrum)


def test_a_transposed_layer_is_stored_dense_in_its_layout() -> None:
    packed, dense = solve(method())[0], solve(method(), transposed=True)[0]
    assert list(dense.tensors) == ["a.b.weight"]
    assert dense.tensors["a.b.weight"].shape == (K, M)
    assert dense.measures["objective_compensated"] == packed.measures["objective_compensated"]


def test_the_clock_knows_each_kind_of_work() -> None:
    _, clock = solve(method())
    timings = clock.timings()
    assert timings.keys() == {"quantize", "errors", "compensate", "spectrum", "other"}
    assert min(timings.values()) >= 0
    assert math.isclose(sum(timings.values()), clock.elapsed(), abs_tol=0.1)
    clock.move("errors", "elsewhere", timings["errors"])
    assert clock.timings()["elsewhere"] == timings["errors"]


def test_factors_too_large_for_their_type_are_refused() -> None:
    arrays = Arrays.load("reference", device="cpu", threads=None)
    how = method(compensate="svd", storage=torch.float16)
    with pytest.raises(RecipeError, match=r"a factor of its adapter holds .*, which float16 cannot hold"):
        compensate(how, arrays, torch.full((M, K), 1e12), None, None, torch.ones(K))


@pytest.mark.parametrize("backend", ["reference", "torch", "numba"])
def test_an_adapter_of_all_directions_leaves_gptq_the_whole_moment(backend: str) -> None:
    """Six tokens span six directions: an adapter of rank six restores any error there and says nothing of others."""
    w, x = problem()
    x = x[:6]
    arrays = Arrays.load(backend, device="cpu", threads=None)
    c = arrays.give(((x.double().T @ x.double()) / len(x)).to(arrays.moment_dtype))

    def solution(rank: int, **changes: Any) -> Solution:
        how = method(quantizer="gptq", act_order=True, rank=rank, **changes)
        return LayerSolver(how, arrays, Clock()).solve("a.b", 7, Linear("b", (M, K), False), w, c, x.abs().mean(0))

    aware, plain = solution(6, adapter_aware=True, damping=0.1, rounds=2), solution(6)
    assert (aware.full_rank, plain.full_rank) == (True, False)
    assert torch.equal(aware.tensors["a.b.weight_packed"], plain.tensors["a.b.weight_packed"])
    assert not solution(5, adapter_aware=True, damping=0.1).full_rank
