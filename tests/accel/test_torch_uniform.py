"""Chapter Q on torch tensors: in float64 the same numbers as the specification, in lower precision its own laws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lowbit  # noqa: E402
from lowbit import reference  # noqa: E402
from lowbit.conformance import compare  # noqa: E402
from lowbit.reference.errors import SpecError  # noqa: E402
from lowbit.reference.types import SCHEMES  # noqa: E402

from .torch_cases import DTYPES, HALVES, float64, poisoned, weights  # noqa: E402, F401

torch_cuda: Any = lowbit.load("torch")

U64 = compare.unit_roundoff("float64")
GRANULARITIES = (("tensor", None), ("row", None), ("token", None), ("group", 4))


def hard(seed: int) -> Any:
    """Rows of every kind: mixed, zero, positive, constant, tiny, far from 0."""
    x = weights(seed, 6, 12)
    x[1], x[2], x[3], x[4] = 0.0, x[2].abs(), -1.25, x[4] * 2.0**-140
    x[5] += 1000.0
    return x


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("granularity", "group_size"), GRANULARITIES)
@pytest.mark.parametrize("scale_dtype", [None, "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("include_zero", [True, False])
def test_grids_are_those_of_the_specification(
    scheme: Any, granularity: Any, group_size: int | None, scale_dtype: Any, include_zero: bool
) -> None:
    x = hard(0)
    for bits in (2, 3, 8):
        options: Any = {
            "bits": bits, "scheme": scheme, "granularity": granularity, "group_size": group_size,
            "scale_dtype": scale_dtype, "include_zero": include_zero, "clip_ratio": 0.875, "range_floor": 1e-5,
        }  # fmt: skip
        grid, expected = torch_cuda.fit_grid(x, **options), reference.fit_grid(x.numpy(), **options)
        scale = float64(grid.scale)
        assert compare.forward(scale, expected.scale, compare.gamma(4, U64) * expected.scale).margin <= 1
        assert grid.zero_point.tolist() == expected.zero_point.tolist()
        codes = torch_cuda.quantize(x, *grid, bits=bits, scheme=scheme)
        assert (
            codes.tolist()
            == reference.quantize(x.numpy(), scale, expected.zero_point, bits=bits, scheme=scheme).tolist()
        )
        values = torch_cuda.dequantize(codes, *grid)
        assert np.array_equal(float64(values), reference.dequantize(codes.numpy(), scale, expected.zero_point))
        assert (values[1] == 0).all() or granularity == "tensor"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_lower_precision_stays_inside_the_tie_band(dtype: str, scheme: Any) -> None:
    x = weights(1, 8, 64, dtype=dtype)
    grid = torch_cuda.fit_grid(x, bits=4, scheme=scheme, granularity="group", group_size=16)
    codes = torch_cuda.quantize(x, *grid, bits=4, scheme=scheme)
    ratio = float64(x) / np.repeat(float64(grid.scale), 16, axis=1)
    u = compare.unit_roundoff("float64" if dtype == "float64" else "float32")
    expected = reference.quantize(float64(x), float64(grid.scale), grid.zero_point.numpy(), bits=4, scheme=scheme)
    assert compare.codes(codes.numpy(), expected, ratio, compare.tie_band(ratio, u, 1)).margin <= 1


def test_zero_points_far_away_are_exact() -> None:
    x = torch.tensor([[1000.0, 1000.0 + 2.0**-10]])  # z is near -16 million, beyond the integers of float32
    grid = torch_cuda.fit_grid(x, bits=4, include_zero=False)
    assert abs(int(grid.zero_point)) > 2**22
    codes = torch_cuda.quantize(x, *grid, bits=4)
    assert (
        codes.tolist() == reference.quantize(float64(x), float64(grid.scale), grid.zero_point.numpy(), bits=4).tolist()
    )
    assert torch.isfinite(torch_cuda.dequantize(codes, *grid)).all()
    narrow = torch.tensor([[1e9, 1e9 + 64.0]])  # a zero point that int32 lacks: the range with 0 instead
    assert torch_cuda.fit_grid(narrow, bits=8, include_zero=False).zero_point.item() == 0


def test_ratios_saturate_instead_of_overflowing() -> None:
    x, scale, zero = torch.tensor([[3e38, -3e38]]), torch.tensor([[1e-38]]), torch.zeros(1, 1, dtype=torch.int32)
    assert torch_cuda.quantize(x, scale, zero, bits=4).tolist() == [[15, 0]]
    assert torch_cuda.fit_grid(x, bits=8).scale.item() == pytest.approx(6e38 / 255)
    with pytest.raises(SpecError, match=r"^\[Q-2\] the scale of group \(0, 0\) is too large for float16"):
        torch_cuda.fit_grid(x, bits=8, scale_dtype="float16")


@pytest.mark.parametrize("dtype", HALVES)
def test_scales_round_once_into_their_dtype(dtype: Any) -> None:
    x = weights(2, 400, 8)
    grid = torch_cuda.fit_grid(x, bits=3, scheme="symmetric", scale_dtype=dtype)
    assert torch.equal(grid.scale, grid.scale.to(getattr(torch, dtype)).to(torch.float64))
    # just above a tie of the target, by less than float32 sees: a detour through float32 would round to even, down
    above = 1.0 + 2.0 ** -(11 if dtype == "float16" else 8) + 2.0**-40
    grid = torch_cuda.fit_grid(
        torch.tensor([[3 * above]], dtype=torch.float64), bits=3, scheme="symmetric", scale_dtype=dtype
    )
    assert grid.scale.item() > 1.0


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("granularity", "group_size"), GRANULARITIES)
def test_clip_search_is_that_of_the_specification(scheme: Any, granularity: Any, group_size: int | None) -> None:
    x = hard(3)[:5]
    options: Any = {"bits": 3, "scheme": scheme, "granularity": granularity, "group_size": group_size}
    extras: tuple[dict[str, Any], ...] = ({}, {"norm": 2.0, "grid": 20, "max_shrink": 0.5}, {"max_shrink": 0.0})
    for extra in extras:
        found = torch_cuda.clip_search(x, **options, **extra)
        expected = reference.clip_search(x.numpy(), **options, **extra)
        assert found.step.tolist() == expected.step.tolist()
        assert found.zero_point.tolist() == expected.zero_point.tolist()
        allowed = compare.gamma(4, U64) * expected.scale
        assert compare.forward(float64(found.scale), expected.scale, allowed).margin <= 1


def test_clip_search_works_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from lowbit.accel.torch_cuda import arrays, uniform

    x = weights(4, 37, 16)
    whole = torch_cuda.clip_search(x, bits=2)
    monkeypatch.setattr(
        uniform, "row_chunks", lambda rows, width, device: arrays.row_chunks(rows, width, device, elements=5 * width)
    )
    assert all(torch.equal(a, b) for a, b in zip(whole, torch_cuda.clip_search(x, bits=2), strict=True))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_empty_inputs(shape: tuple[int, int]) -> None:
    x = torch.ones(shape)
    for granularity in ("tensor", "row", "token"):
        grid = torch_cuda.fit_grid(x, bits=4, granularity=granularity)
        assert grid.scale.shape == reference.fit_grid(np.ones(shape), bits=4, granularity=granularity).scale.shape
        assert torch_cuda.quantize(x, *grid, bits=4).shape == shape
        assert torch_cuda.clip_search(x, bits=4, granularity=granularity).step.shape == grid.scale.shape
    grid = torch_cuda.fit_grid(x, bits=4, granularity="group", group_size=2)
    assert torch_cuda.dequantize(torch_cuda.quantize(x, *grid, bits=4), *grid).shape == shape


def test_scalars_and_many_axes() -> None:
    grid = torch_cuda.fit_grid(torch.tensor(3.0), bits=2, granularity="tensor")
    assert grid.scale.shape == ()
    assert torch_cuda.quantize(torch.tensor(3.0), *grid, bits=2).item() == 3
    x = weights(5, 2, 3, 4, 8)
    grid = torch_cuda.fit_grid(x, bits=4, granularity="group", group_size=4)
    whole = torch_cuda.quantize(x, *grid, bits=4)
    rows = torch_cuda.quantize(x.reshape(24, 8), *(t.reshape(24, 2) for t in grid), bits=4)
    assert torch.equal(whole.reshape(24, 8), rows)
    shared = torch_cuda.quantize(x, grid.scale[:1, :1, :1], grid.zero_point[:1, :1, :1], bits=4)
    assert shared.shape == x.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 9}, "[Q-1]"),
        ({"bits": 1, "scheme": "symmetric"}, "[Q-1]"),
        ({"scheme": "affine"}, "[Q-1] unknown scheme 'affine'"),
        ({"granularity": "group", "group_size": 5}, "[Q-2] group size 5 does not divide axis length 12"),
        ({"granularity": "row", "group_size": 4}, "[Q-2]"),
        ({"clip_ratio": 0.0}, "[Q-2] clip_ratio must be in (0, 1], got 0.0"),
        ({"range_floor": -1.0}, "[Q-2] range_floor must be finite and not negative, got -1.0"),
        ({"scale_dtype": "int8"}, "[Q-2] scale_dtype must be one of float32, float16, bfloat16 or None, got 'int8'"),
    ],
)
def test_bad_grid_parameters(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as raised:
        torch_cuda.fit_grid(weights(0, 3, 12), **{"bits": 4, **change})
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("scale", "zero", "message"),
    [
        ((3, 1), (3, 2), "[Q-3] scale and zero_point must have one shape, got (3, 1) and (3, 2)"),
        ((2, 1), (2, 1), "[Q-3] scale has length 2 on axis 0, the values have 3"),
        ((3, 5), (3, 5), "[Q-3] scale has 5 groups, which do not divide axis length 12"),
        ((1,), (1,), "[Q-3] scale must have 2 axes as the values have, got shape (1,)"),
    ],
)
def test_bad_scale_shapes(scale: tuple[int, ...], zero: tuple[int, ...], message: str) -> None:
    with pytest.raises(SpecError) as raised:
        torch_cuda.quantize(weights(0, 3, 12), torch.ones(scale), torch.zeros(zero, dtype=torch.int32), bits=4)
    assert str(raised.value).startswith(message)


def test_scales_must_be_positive() -> None:
    zero = torch.zeros(1, 1, dtype=torch.int32)
    for value, message in (
        (0.0, "[Q-3] scale must be positive, the smallest is 0.0"),
        (torch.nan, "[A-4] scale holds"),
    ):
        with pytest.raises(SpecError) as raised:
            torch_cuda.quantize(torch.ones(1, 1), torch.full((1, 1), value), zero, bits=4)
        assert str(raised.value).startswith(message)


@pytest.mark.parametrize("layout", ["dense", "padded"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_is_that_of_the_specification(bits: int, layout: Any) -> None:
    rng = np.random.default_rng(bits)
    for k in (0, 1, 5, 31, 32, 33, 96, 101):
        codes = rng.integers(0, 2**bits, size=(3, k)).astype(np.int32)
        words = torch_cuda.pack(torch.from_numpy(codes), bits=bits, layout=layout)
        assert words.dtype == torch.int32
        assert np.array_equal(words.numpy(), reference.pack(codes, bits=bits, layout=layout))
        assert np.array_equal(torch_cuda.unpack(words, bits=bits, length=k, layout=layout).numpy(), codes)


def test_packed_weights_dequantize_without_their_codes() -> None:
    w = weights(7, 5, 40, dtype="float32")
    for scheme, offset in (("asymmetric", 0), ("symmetric", 4)):
        grid = torch_cuda.fit_grid(w, bits=3, scheme=scheme, granularity="group", group_size=8)
        codes = torch_cuda.quantize(w, *grid, bits=3, scheme=scheme)
        words = torch_cuda.pack(codes + offset, bits=3)
        values = torch_cuda.dequantize_packed(words, *grid, bits=3, length=40, offset=offset)
        assert torch.equal(values, torch_cuda.dequantize(codes, *grid))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: torch_cuda.pack(torch.full((1, 2), 8), bits=3), "[Q-6] codes of 3 bits lie in 0..7, got 8"),
        (lambda: torch_cuda.pack(torch.full((1, 2), -1), bits=3, layout="padded"), "[Q-7] codes of 3 bits lie in 0..7"),
        (lambda: torch_cuda.pack(torch.zeros(1, 2, dtype=torch.int32), bits=0), "[Q-6] packing takes 1 to 8 bits"),
        (lambda: torch_cuda.pack(torch.zeros(2, dtype=torch.int32), bits=3), "[Q-6] codes must have shape"),
        (
            lambda: torch_cuda.pack(torch.zeros(1, 2, dtype=torch.int32), bits=3, layout="sparse"),  # type: ignore[arg-type]
            "[Q-6] layout must be 'dense' or 'padded', got 'sparse'",
        ),
        (
            lambda: torch_cuda.unpack(torch.zeros(1, 2, dtype=torch.int32), bits=3, length=32),
            "[Q-6] 32 codes of 3 bits fill 3 words per row in the dense layout, got 2",
        ),
        (
            lambda: torch_cuda.unpack(torch.zeros(1, 2, dtype=torch.int64), bits=3, length=20),
            "[Q-6] words must be int32, got int64",
        ),
    ],
)
def test_bad_packing(call: Any, message: str) -> None:
    with pytest.raises(SpecError) as raised:
        call()
    assert str(raised.value).startswith(message)
