"""Chapter G on torch tensors. In float64 the decisions are those of the specification, whatever the blocking."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lowbit  # noqa: E402
from lowbit import reference  # noqa: E402
from lowbit.conformance import compare  # noqa: E402
from lowbit.reference.errors import SpecError  # noqa: E402

from .torch_cases import DTYPES, float64, moment, poisoned, weights  # noqa: E402, F401

torch_cuda: Any = lowbit.load("torch")

U64 = compare.unit_roundoff("float64")
M, K = 5, 48


def close(observed: Any, expected: Any, h: Any) -> None:
    """Equal up to what rounding in float64 can do to a sweep over k columns of this conditioning."""
    kappa = float(np.linalg.cond(float64(h) + 0.01 * np.trace(float64(h)) / len(h) * np.eye(len(h))))
    scale = max(1.0, float(np.abs(expected).max())) if np.size(expected) else 1.0
    allowed = np.full(np.shape(expected), compare.layout_slack(K, kappa, U64) * scale)
    observed = float64(observed) if isinstance(observed, torch.Tensor) else np.asarray(observed)
    assert compare.forward(observed, np.asarray(expected, np.float64), allowed).margin <= 1


def agree(found: Any, expected: Any, h: Any) -> None:
    """Field by field: integers and masks exactly, numbers up to rounding."""
    for name in expected._fields:
        mine, theirs = getattr(found, name), getattr(expected, name)
        if theirs is None:
            assert mine is None
        elif isinstance(mine, torch.Tensor) and not mine.is_floating_point():
            assert np.array_equal(mine.numpy(), theirs), name
        else:
            close(mine, theirs, h)


@pytest.mark.parametrize("k", [0, 1, 7, 600])
def test_inverse_cholesky(k: int) -> None:
    h = moment(k, k) if k else torch.zeros(0, 0, dtype=torch.float64)
    factor, dead = torch_cuda.inverse_cholesky(h)
    assert not dead.any()
    damped = float64(h) + (0.01 * np.trace(float64(h)) / k * np.eye(k) if k else 0)
    assert torch.equal(factor, factor.triu())
    assert (factor.diagonal() > 0).all()
    # Uᵀ U (H + damp I) = I, error of k-term products of factors whose norms multiply to the condition number
    kappa = float(np.linalg.cond(damped)) if k else 1.0
    residual = float64(factor).T @ float64(factor) @ damped - np.eye(k)
    assert np.abs(residual).max(initial=0.0) <= compare.layout_slack(max(k, 1), kappa, U64)


def test_dead_columns_are_found_repaired_and_zeroed() -> None:
    h = moment(2, K, dead=(3, 17))
    found, expected = torch_cuda.inverse_cholesky(h), reference.inverse_cholesky(h.numpy())
    assert np.array_equal(found.dead.numpy(), expected.dead)
    close(found.factor, expected.factor, h)
    w = weights(3, M, K)
    assert (torch_cuda.gptq(w, h, bits=3).weight[:, [3, 17]] == 0).all()
    assert torch_cuda.sparsegpt(w, h).mask[:, [3, 17]].all()


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("group_size", [None, 8, 12, 24, 1])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("static_groups", [False, True])
@pytest.mark.parametrize("group_scales", ["current", "block"])
def test_gptq_decides_as_the_specification(
    scheme: Any, group_size: int | None, act_order: bool, static_groups: bool, group_scales: Any
) -> None:
    w, h = weights(4, M, 24), moment(5, 24, dead=(7,))
    w[1] = 0.0
    for block_size in (16, 5, 128):  # shorter than a group, across groups, all columns
        options: Any = {
            "bits": 3, "scheme": scheme, "group_size": group_size, "act_order": act_order,
            "static_groups": static_groups, "group_scales": group_scales, "block_size": block_size,
        }  # fmt: skip
        agree(torch_cuda.gptq(w, h, **options), reference.gptq(w.numpy(), h.numpy(), **options), h)


def test_gptq_with_clip_search_and_rounded_scales() -> None:
    w, h = weights(6, M, K), moment(7, K)
    for group_size in (None, 16):
        options: Any = {"bits": 4, "group_size": group_size, "clip_search": True, "scale_dtype": "float16"}
        agree(torch_cuda.gptq(w, h, **options), reference.gptq(w.numpy(), h.numpy(), **options), h)


def test_blocks_and_panels_do_not_change_a_long_row() -> None:
    w, h = weights(8, 3, 300), moment(9, 300)
    one = torch_cuda.gptq(w, h, bits=4, group_size=20, block_size=300)
    for block_size in (20, 33, 128):
        other = torch_cuda.gptq(w, h, bits=4, group_size=20, block_size=block_size)
        assert torch.equal(one.codes, other.codes)
        close(other.scale, float64(one.scale), h)


@pytest.mark.parametrize("dtype", DTYPES)
def test_lower_precision_loses_nothing_that_counts(dtype: str) -> None:
    w, h = weights(10, 32, 64, dtype=dtype), moment(11, 64, dtype="float64" if dtype == "float64" else "float32")
    found = torch_cuda.gptq(w, h, bits=4, group_size=16)
    exact = reference.gptq(float64(w), float64(h), bits=4, group_size=16)
    rounded = reference.quantize_adapter(float64(w), np.eye(64), np.eye(64), bits=4, method="rtn", group_size=16).B
    nearest = float(((float64(w) - rounded.weight) @ float64(h) * (float64(w) - rounded.weight)).sum() / 2)
    # a rounding that falls the other way starts another, equally good path
    assert abs(found.loss - exact.loss) < abs(nearest - exact.loss) / 4
    assert torch.equal(found.weight, torch_cuda.dequantize(found.codes, found.scale, found.zero_point))


def test_act_order_takes_equal_columns_by_index() -> None:
    h = torch.diag(torch.tensor([1.0, 4.0, 1.0, 4.0, 0.0, 1.0], dtype=torch.float64))
    found = torch_cuda.gptq(weights(12, 2, 6), h, bits=2, group_size=1, act_order=True)
    assert found.group_index.tolist() == [2, 0, 3, 1, 4, 5]


def test_white_inputs_round_to_nearest() -> None:
    w = weights(13, M, 16, dtype="float32")
    found = torch_cuda.gptq(w, torch.eye(16), bits=4)
    assert torch.equal(found.codes, torch_cuda.quantize(w, found.scale, found.zero_point, bits=4))


@pytest.mark.parametrize("shape", [(0, 8), (3, 0)])
def test_empty_weights(shape: tuple[int, int]) -> None:
    w, h = torch.zeros(shape), torch.eye(shape[1])
    found = torch_cuda.gptq(w, h, bits=4, group_size=4)
    assert found.codes.shape == shape
    assert found.scale.shape == (shape[0], shape[1] // 4)
    assert found.loss == 0.0
    assert torch_cuda.sparsegpt(w, h, bits=4).mask.shape == shape
    assert torch_cuda.wanda(w, torch.ones(shape[1])).mask.shape == shape


@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 2), (4, 8), (3, 4), (4, 4), (1, 12)])
@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("group_scales", ["current", "block"])
def test_sparsegpt_decides_as_the_specification(keep: int, of: int, bits: int | None, group_scales: Any) -> None:
    w, h = weights(14, M, K), moment(15, K, dead=(7,))
    w[2] = 0.0
    for block_size in (24, 48):
        for group_size in (None, 8, 12, 6, 3) if bits else (None,):  # groups that hold tuples, and that cut them
            options: Any = {
                "keep": keep, "of": of, "bits": bits, "group_size": group_size, "group_scales": group_scales,
                "block_size": block_size,
            }  # fmt: skip
            agree(torch_cuda.sparsegpt(w, h, **options), reference.sparsegpt(w.numpy(), h.numpy(), **options), h)


def test_tiny_weights_are_not_ties() -> None:
    w = torch.tensor([[3e-30, 1e-30, 2e-30, 4e-30]])  # their squares underflow
    assert torch_cuda.sparsegpt(w, torch.eye(4)).mask.tolist() == [[False, True, True, False]]
    assert torch_cuda.wanda(w, torch.full((4,), 1e-30)).mask.tolist() == [[False, True, True, False]]


@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 2), (4, 8), (4, 4), (1, 12)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_wanda_is_that_of_the_specification(keep: int, of: int, dtype: str) -> None:
    w = weights(16, M, K, dtype=dtype)
    w[:, ::3] = 0.5  # ties
    m = weights(17, K, dtype=dtype).abs().round()
    found, expected = (
        torch_cuda.wanda(w, m, keep=keep, of=of),
        reference.wanda(float64(w), float64(m), keep=keep, of=of),
    )
    assert np.array_equal(found.mask.numpy(), expected.mask)
    assert np.array_equal(float64(found.weight), expected.weight)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w, h: torch_cuda.gptq(w, h[:3, :3], bits=4), "[G-2] h must be of shape (8, 8), got (3, 3)"),
        (lambda w, h: torch_cuda.gptq(w[0], h, bits=4), "[G-2] w must have shape (any, any), got (8,)"),
        (lambda w, h: torch_cuda.gptq(w, h.tril(), bits=4), "[G-2] h must be symmetric, the largest difference"),
        (lambda w, h: torch_cuda.gptq(w, h - 99 * torch.eye(8), bits=4), "[G-2] h must have a diagonal >= 0, got"),
        (lambda w, h: torch_cuda.gptq(w, h, bits=4, damping=-1.0), "[G-2] damping must be finite and not negative"),
        (lambda w, h: torch_cuda.gptq(w, h, bits=4, group_size=3), "[Q-2] group size 3 does not divide axis length 8"),
        (
            lambda w, h: torch_cuda.gptq(w * 1e9, h, bits=4, scale_dtype="float16", clip_search=True),
            "[Q-2] the scale of group (0, 0) is too large for float16",
        ),
        (lambda w, h: torch_cuda.gptq(w, h, bits=4, block_size=0), "[G-2] block_size must be a positive integer"),
        (
            lambda w, h: torch_cuda.gptq(w, h, bits=4, group_scales="late"),
            "[G-2] group_scales must be 'current' or 'block', got 'late'",
        ),
        (
            lambda w, h: torch_cuda.gptq(w, torch.ones(8, 8), bits=4, damping=0.0),
            "[G-1] h is not positive definite with damping 0.0: the factorization stops at column 6; raise the damping",
        ),
        (lambda w, h: torch_cuda.sparsegpt(w, h, keep=5), "[G-5] keep must be between 1 and of, got keep=5 of=4"),
        (
            lambda w, h: torch_cuda.sparsegpt(w, h, of=3, keep=1),
            "[G-5] 1:3 sparsity needs an input axis divisible by 3",
        ),
        (lambda w, h: torch_cuda.sparsegpt(w, h, block_size=6), "[G-5] tuples of 4 do not divide block size 6"),
        (lambda w, h: torch_cuda.sparsegpt(w, h, group_size=4), "[G-5] group_size 4 without bits"),
        (lambda w, h: torch_cuda.wanda(w, -h.diagonal()), "[G-6] feature_moment must be >= 0, the smallest is"),
        (lambda w, h: torch_cuda.wanda(w, h), "[G-6] feature_moment must have shape (8), got (8, 8)"),
    ],
)
def test_bad_arguments(call: Any, message: str) -> None:
    with pytest.raises(SpecError) as raised:
        call(weights(0, 2, 8), moment(1, 8))
    assert str(raised.value).startswith(message)


def test_summation_noise_in_a_moment_is_averaged_away() -> None:
    w, h = weights(18, M, K, dtype="float32"), moment(19, K, dtype="float32")
    noisy = h.clone()
    noisy[3, 9] = torch.nextafter(noisy[3, 9], torch.tensor(torch.inf))
    kept = noisy.clone()
    both = torch_cuda.gptq(w, noisy, bits=4), torch_cuda.gptq(w, noisy.mT, bits=4)
    assert torch.equal(both[0].weight, both[1].weight)
    assert torch.equal(noisy, kept)
