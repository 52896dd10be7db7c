"""Chapter B against what LUT-GEMM's example answered.

Its algorithm is :func:`~lowbit.reference.binary_coding.published_bcq`, with its own choices under that name; what
:func:`lowbit.reference.bcq` computes from the same weights is never worse.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lowbit.reference as ref
from lowbit.reference.binary_coding import published_bcq, published_pack, published_unpack, signs
from lowbit.reference.types import BinaryMethod

from .golden import load, manifest

FITS = [
    "bcq_alt15_q2", "bcq_alt15_q2_adv", "bcq_alt15_q3_g24", "bcq_alt15_q4", "bcq_alt2_q3", "bcq_alt5_q1",
    "bcq_greedy_q1", "bcq_greedy_q2_adv", "bcq_greedy_q3", "bcq_refined_q2", "bcq_refined_q3_g16",
]  # fmt: skip
AWKWARD = 5  # rows of the "adv" files whose codes depend on ties: zero, constant, ±c, a ramp, one entry


def test_every_golden_file_of_the_chapter_is_covered(shared: Path) -> None:
    there = {file.removesuffix(".npz") for file in manifest(shared) if file.startswith("bcq_")}
    assert there == {*FITS, "bcq_from_uniform", "bcq_pack"}


@pytest.mark.parametrize("file", FITS)
def test_published_codes_scales_and_weights(shared: Path, file: str) -> None:
    v = load(shared, file)
    q, rounds, group = (v.parameters[name] for name in ("q", "rounds", "group_size"))
    found = published_bcq(v["W"], bits=q, group_size=group, rounds=rounds)
    v.close(found.weight, v["w_hat"], "w_hat")
    v.close(found.alpha, v["alpha"], "alpha")
    first = AWKWARD if file.endswith("_adv") else 0
    np.testing.assert_array_equal(found.B[first:], v["B"][first:])
    if rounds == 0:
        np.testing.assert_array_equal(found.B, v["B"])  # zeros of sign(0) included


@pytest.mark.parametrize("file", FITS)
def test_ours_is_never_worse(shared: Path, file: str) -> None:
    v = load(shared, file)
    q, rounds, group = (v.parameters[name] for name in ("q", "rounds", "group_size"))
    method: BinaryMethod = "alternating" if rounds else "greedy"
    code: Any = ref.bcq(v["W"], bits=q, group_size=group, rounds=rounds, method=method)
    ours, theirs = (float(((w - v["W"].astype(np.float64)) ** 2).sum()) for w in (ref.bcq_weight(*code), v["w_hat"]))
    assert ours <= theirs * (1 + v.tolerances["w_hat"])
    if rounds == 0 and not file.endswith("_adv"):
        np.testing.assert_array_equal(signs(code.codes, q), v["B"].reshape(*v["W"].shape, q))
        v.close(code.scale, v["alpha"], "alpha")


def test_a_uniform_grid_as_binary_code(shared: Path) -> None:
    v = load(shared, "bcq_from_uniform")
    m, G, g = v["codes"].shape
    codes = v["codes"].reshape(m, G * g).astype(np.int32)
    zero = v["zero"][..., 0]
    assert (zero == np.rint(zero)).all()
    code: Any = ref.bcq_from_grid(codes, v["scale"][..., 0], zero.astype(np.int32), bits=3)
    np.testing.assert_array_equal(code.scale, v["alpha"])
    np.testing.assert_array_equal(signs(code.codes, 3), v["B"].reshape(m, G * g, 3))
    tolerance = "deq = sum alpha B + offset"
    v.close(code.offset, v["offset"][..., 0], tolerance)
    v.close(ref.bcq_weight(*code), v["dequantised"], tolerance)


def test_storage_of_the_example(shared: Path) -> None:
    v = load(shared, "bcq_pack")
    np.testing.assert_array_equal(published_pack(v["b"]), v["packed"])
    np.testing.assert_array_equal(published_unpack(v["packed"], shape=v["b"].shape), v["unpacked"])
