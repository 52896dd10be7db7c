"""Factors stored as codes: what is written is what is read, and anything else is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lowbit.formats.check import check_directory
from lowbit.formats.errors import AdapterError, UnreadError
from lowbit.formats.factors import (
    MANIFEST,
    METADATA,
    WEIGHTS,
    Coded,
    FactorForm,
    factor_parts,
    pack_factors,
    read_factors,
    unpack_factors,
    write_factors,
)
from lowbit.formats.safetensors_file import SafetensorsFile, write_tensors

Stored = dict[str, tuple[FactorForm, dict[str, torch.Tensor]]]


def coded(rows: int, columns: int, groups: int, bits: int, dtype: torch.dtype, draw: torch.Generator) -> Coded:
    return Coded(
        torch.randint(0, 1 << bits, (rows, columns), generator=draw, dtype=torch.int32),
        (torch.rand(rows, groups, generator=draw) / 8 + 0.01).to(dtype),
        torch.randint(0, 1 << bits, (rows, groups), generator=draw, dtype=torch.int32),
    )


def value(part: Coded) -> torch.Tensor:
    each = part.codes.shape[1] // part.scale.shape[1]
    whole = (part.codes - part.zero_point.repeat_interleave(each, 1)).to(part.scale.dtype)
    return whole * part.scale.repeat_interleave(each, 1)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "shape, rank, group", [((24, 32), 4, 8), ((7, 33), 5, 16), ((40, 16), 1, None), ((9, 6), 6, 3)]
)
def test_what_is_packed_comes_back(
    bits: int, dtype: torch.dtype, shape: tuple[int, int], rank: int, group: int | None, tmp_path: Path
) -> None:
    form, draw = FactorForm(shape, rank, bits, group), torch.Generator().manual_seed(bits)
    (m, k), (of_a, of_b) = shape, form.groups()
    assert (of_a, of_b) == tuple(n // group if group and n % group == 0 else 1 for n in (k, m))
    a, b = coded(rank, k, of_a, bits, dtype, draw), coded(rank, m, of_b, bits, dtype, draw)
    parts = pack_factors(a, b, bits)
    assert {key: (part.dtype, tuple(part.shape)) for key, part in parts.items()} == factor_parts(form, dtype)
    write_factors(tmp_path, {"x.y": (form, parts)}, base_hash="ab")
    read = read_factors(tmp_path)
    assert read.base_hash == "ab"
    for found in (read.factors["x.y"], unpack_factors(parts, form)):
        assert torch.equal(found[0], value(b).T)
        assert torch.equal(found[1], value(a))
        assert (found[0].dtype, found[1].dtype) == (dtype, dtype)


def several() -> Stored:
    """A coded layer, a stack of coded experts and a layer left in the type of storage."""
    draw = torch.Generator().manual_seed(0)
    plain, stack = FactorForm((12, 16), 2, 4, 8), FactorForm((8, 16), 3, 3, 8, experts=2)

    def layer(rank: int, bits: int, k: tuple[int, int], m: tuple[int, int]) -> dict[str, torch.Tensor]:
        a, b = (coded(rank, columns, groups, bits, torch.float32, draw) for columns, groups in (k, m))
        return pack_factors(a, b, bits)

    layers = [layer(3, 3, (16, 2), (8, 1)) for _ in range(2)]
    stored: Stored = {
        "a": (plain, layer(2, 4, (16, 2), (12, 1))),
        "e": (stack, {key: torch.stack([one[key] for one in layers]) for key in layers[0]}),
        "d": (FactorForm((6, 4), 2, 16, None), {"A": torch.randn(2, 4), "B": torch.randn(6, 2)}),
    }
    for expert, own in enumerate(layers):
        found = unpack_factors(stored["e"][1], stack)[1][expert]
        assert torch.equal(found, unpack_factors(own, stack._replace(experts=0))[1])
    return stored


def test_stacks_and_dense_factors_lie_beside_coded_ones(tmp_path: Path) -> None:
    stored = several()
    write_factors(tmp_path, stored, base_hash="0")
    read = read_factors(tmp_path).factors
    assert {name: (tuple(b.shape), tuple(a.shape)) for name, (b, a) in read.items()} == {
        "a": ((12, 2), (2, 16)),
        "e": ((2, 8, 3), (2, 3, 16)),
        "d": ((6, 2), (2, 4)),
    }
    assert torch.equal(read["d"][0], stored["d"][1]["B"])
    with pytest.raises(UnreadError, match="packed factors, which lowbit alone reads"):
        check_directory(tmp_path)


def change(field: str, new: Any) -> Callable[[dict[str, Any]], None]:
    return lambda found: found["modules"]["a"].update({field: new})


@pytest.mark.parametrize(
    "edit, message",
    [
        (change("rank", 3), "a.codes is torch.int32 (2, 4), factors.json asks for torch.int32 (3, 4)"),
        (change("bits", 5), "a: no form of factors but"),
        (change("bits", True), "a: no form of factors but"),
        (change("group_size", 0), "a: no form of factors but"),
        (change("shape", [12]), "a: no form of factors but"),
        (change("shape", [12, 1 << 40]), "a: no form of factors but"),
        (change("scaling", 2.0), "a: no form of factors but"),
        (change("bits", 16), "a.A is missing"),
        (lambda found: found.update(schema="lowbit.factors/2"), "not lowbit.factors/1"),
        (lambda found: found.update(alpha=1), "not lowbit.factors/1"),
        (lambda found: found["modules"].pop("a"), "tensor a.codes, of which factors.json says nothing"),
        (lambda found: found.update(modules={}), "needs the fingerprint of a base and at least one module"),
        (lambda found: found.update(base_hash=None), "needs the fingerprint of a base and at least one module"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    edit: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    write_factors(tmp_path, several(), base_hash="0")
    found = json.loads((tmp_path / MANIFEST).read_text())
    edit(found)
    (tmp_path / MANIFEST).write_text(json.dumps(found))
    with pytest.raises(AdapterError) as info:
        read_factors(tmp_path)
    assert message in str(info.value)


def test_tensors_of_another_format_are_refused(tmp_path: Path) -> None:
    write_factors(tmp_path, several(), base_hash="0")
    file = SafetensorsFile(tmp_path / WEIGHTS)
    tensors = {name: file.read(name) for name in file.entries}
    write_tensors(tmp_path / WEIGHTS, tensors, metadata=METADATA | {"version": "2"})
    with pytest.raises(AdapterError, match="not the factors of version 1"):
        read_factors(tmp_path)
    write_tensors(tmp_path / WEIGHTS, tensors | {"a.scale": tensors["a.scale"].double()}, metadata=METADATA)
    with pytest.raises(AdapterError, match=r"a\.scale has type torch\.float64; float32, float16 or bfloat16"):
        read_factors(tmp_path)


def test_a_small_rank_costs_little_more_than_its_bits() -> None:
    """4 bits, rank 4, groups of 64: half a byte a value, a scale and a zero point for 64 of them."""
    parts = factor_parts(FactorForm((576, 1536), 4, 4, 64), torch.bfloat16)
    stored = sum(math.prod(shape) * dtype.itemsize for dtype, shape in parts.values())
    assert stored / (4 * (576 + 1536)) <= 0.5 + (2 + 1) / 64
