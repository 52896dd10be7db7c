"""Chapter C and the quantized adapter on torch tensors."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lowbit  # noqa: E402
from lowbit import reference  # noqa: E402
from lowbit.conformance import compare  # noqa: E402
from lowbit.reference.errors import SpecError  # noqa: E402
from lowbit.reference.types import MomentNode  # noqa: E402

from .torch_cases import DTYPES, float64, moment, poisoned, weights  # noqa: E402, F401

torch_cuda: Any = lowbit.load("torch")

U32, U64 = compare.unit_roundoff("float32"), compare.unit_roundoff("float64")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(40, 7), (0, 3), (5, 0), (1, 1), (9, 800)])  # the last in more than one strip
def test_leaf(dtype: str, shape: tuple[int, int]) -> None:
    x = weights(1, *shape, dtype=dtype)
    (node,) = torch_cuda.moment_leaf(x, index=3)
    assert (node.level, node.index, node.tokens) == (0, 3, shape[0])
    assert torch.equal(node.sum, node.sum.mT)
    wide, u = float64(x), U64 if dtype == "float64" else U32
    allowed = compare.gamma(shape[0] + 1, u) * (np.abs(wide).T @ np.abs(wide))
    assert compare.forward(float64(node.sum), wide.T @ wide, allowed).margin <= 1
    allowed = compare.gamma(shape[0] + 1, u) * np.abs(wide).sum(0)
    assert compare.forward(float64(node.magnitude), np.abs(wide).sum(0), allowed).margin <= 1


def test_leaf_takes_large_values() -> None:
    x = torch.full((8, 2), 1e38)
    assert torch_cuda.moment_leaf(x, index=0)[0].magnitude[0].item() == pytest.approx(8e38)
    x = torch.full((8, 2), 32768.0, dtype=torch.float16)
    assert torch_cuda.moment_leaf(x, index=0)[0].sum[0, 1].item() == 2.0**33


@pytest.mark.parametrize("leaves", [(0,), (5,), (0, 1, 2), (1, 2), (3, 4, 5, 9), (0, 2, 4, 7, 8, 15)])
def test_bytes_depend_on_the_set_of_leaves_alone(leaves: tuple[int, ...]) -> None:
    parts = {i: torch_cuda.moment_leaf(weights(i, 6, 5), index=i) for i in leaves}
    totals = []
    for order in itertools.islice(itertools.permutations(leaves), 0, 24, 5):
        merged: Any = ()
        for i in order:
            merged = torch_cuda.moment_merge(parts[i], merged)
        totals.append(torch_cuda.moment_total(merged))
    halves = [torch_cuda.moment_merge(sum((parts[i] for i in leaves[j::2]), ()), ()) for j in (0, 1)]
    totals.append(torch_cuda.moment_total(torch_cuda.moment_merge(*halves)))
    assert all(torch.equal(t.matrix, totals[0].matrix) for t in totals)
    assert all(torch.equal(t.magnitude, totals[0].magnitude) for t in totals)
    expected = reference.moment_total(
        [MomentNode(n.level, n.index, float64(n.sum), float64(n.magnitude), n.tokens)
         for i in leaves for n in parts[i]]
    )  # fmt: skip
    assert np.array_equal(float64(totals[0].matrix), expected.matrix)
    assert np.array_equal(float64(totals[0].magnitude), expected.magnitude)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: torch_cuda.moment_leaf(x, index=-1), "[C-1] index must be a non-negative integer, got -1"),
        (lambda x: torch_cuda.moment_leaf(x[0], index=0), "[C-1] x must have shape (any, any), got (3,)"),
        (
            lambda x: torch_cuda.moment_merge(torch_cuda.moment_leaf(x, index=4), torch_cuda.moment_leaf(x, index=4)),
            "[C-2] leaf 4 is counted twice",
        ),
        (
            lambda x: torch_cuda.moment_merge(
                torch_cuda.moment_leaf(x, index=4), torch_cuda.moment_leaf(x.mT, index=5)
            ),
            "[C-2] nodes of different widths: (3, 3) and (2, 2)",
        ),
        (lambda x: torch_cuda.moment_total(()), "[C-2] a moment set without tokens has no mean"),
        (lambda x: torch_cuda.moment_merge((x,), ()), "[C-2] moment sets hold MomentNode tuples, got Tensor"),
        (lambda x: torch_cuda.recency_moment([], total=1), "[C-3] batches must hold at least one (b, T, k) array"),
        (lambda x: torch_cuda.recency_moment([x[None]], total=0), "[C-3] total must be a positive integer, got 0"),
        (lambda x: torch_cuda.recency_moment([x], total=1), "[C-3] batches[0] must have shape (any, any, any)"),
        (
            lambda x: torch_cuda.recency_moment([x[None], x[None] * torch.nan], total=1),
            "[A-4] batches[1] holds 6 NaN or infinite values, the first at (0, 0, 0) (clause C-3)",
        ),
        (lambda x: torch_cuda.svd_patch(x, rank=3), "[C-4] rank must be between 1 and 2 for shape (2, 3), got 3"),
        (lambda x: torch_cuda.svd_patch(x, rank=1, split="right"), "[C-4] split must be 'balanced' or 'left'"),
        (lambda x: torch_cuda.scaled_svd_patch(x, -x[0].abs(), rank=1), "[C-5] channel_scale must be >= 0"),
        (lambda x: torch_cuda.quantize_adapter(x, x, x, bits=4), "[E-7] a must have shape (3, any), got (2, 3)"),
    ],
)
def test_bad_arguments(call: Any, message: str) -> None:
    with pytest.raises(SpecError) as raised:
        call(weights(0, 2, 3))
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("dtype", DTYPES)
def test_recency_weighting(dtype: str) -> None:
    batches = [weights(i, b, 6, 5, dtype=dtype) for i, b in enumerate((2, 1, 3))]
    found = torch_cuda.recency_moment(batches, total=6)
    expected = reference.recency_moment([float64(b) for b in batches], total=6)
    size = reference.recency_moment([np.abs(float64(b)) for b in batches], total=6)
    u = U64 if dtype == "float64" else U32
    assert compare.forward(float64(found), expected, compare.gamma(6 * 3 + 3 * 4, u) * size).margin <= 1


@pytest.mark.parametrize("split", ["balanced", "left"])
def test_patches_reach_their_optimum(split: Any) -> None:
    d, a = weights(2, 9, 6), torch.tensor([1.0, 0.0, 3.0, 2.0, 1e-3, 5.0], dtype=torch.float64)
    B, A = torch_cuda.svd_patch(d, rank=3, split=split)
    tail = np.linalg.svd(float64(d), compute_uv=False)[3:]
    assert float((d - B @ A).norm()) == pytest.approx(np.sqrt((tail**2).sum()))
    balanced = torch.allclose(B.norm(dim=0), A.norm(dim=1))
    assert balanced == (split == "balanced")
    B, A = torch_cuda.scaled_svd_patch(d, a, rank=3, split=split)
    tail = np.linalg.svd(float64(d * a), compute_uv=False)[3:]
    assert float(((d - B @ A) * a).norm()) == pytest.approx(np.sqrt((tail**2).sum()))
    assert (A[:, 1] == 0).all()


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("group_size", [None, 4, 8, 64])
def test_adapters_are_quantized_as_two_layers(method: Any, group_size: int | None) -> None:
    b, a, c = weights(3, 10, 6), weights(4, 6, 16), moment(5, 16, dead=(2,))
    options: Any = {"bits": 4, "method": method, "group_size": group_size, "scale_dtype": "float16"}
    found = torch_cuda.quantize_adapter(b, a, c, **options)
    expected = reference.quantize_adapter(b.numpy(), a.numpy(), c.numpy(), **options)
    for mine, theirs in zip(found, expected, strict=True):
        assert np.array_equal(mine.codes.numpy(), theirs.codes)
        assert np.array_equal(float64(mine.scale), theirs.scale)
        assert np.array_equal(float64(mine.weight), theirs.weight)
        assert np.array_equal(mine.group_index.numpy(), theirs.group_index)
        assert mine.loss == pytest.approx(theirs.loss)
