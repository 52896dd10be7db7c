"""Chapter N against what LoftQ, PEFT and bitsandbytes answered.

The published loops return the last iterate and no scaling: keep="last". Tolerances are the manifest's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import lowbit.reference as ref

from .golden import load, manifest

QUANTIZER = {"loftq_nf2": 2, "loftq_nf4": 4}
UNIFORM = "loftq_uniform2"
INIT = ["loftq_init_normal_float2_r4_T5", "loftq_init_normal_float4_r3_T3", "loftq_init_uniform2_r2_T2"]
PEFT = ["loftq_peft_nf4_r3_T3", "loftq_peft_nf4_r4_T1"]


def test_every_golden_file_of_the_chapter_is_covered(shared: Path) -> None:
    there = {file.removesuffix(".npz") for file in manifest(shared) if file.startswith("loftq_")}
    assert {*QUANTIZER, UNIFORM, *INIT, *PEFT} == there


@pytest.mark.parametrize("file", QUANTIZER)
def test_n1_n4_normal_float_quantizer(shared: Path, file: str) -> None:
    v = load(shared, file)
    levels = ref.normal_float(bits=v.parameters["bits"])
    v.close(levels, v["levels"], "levels")
    scale = ref.block_scale(v["W"], block_size=v.parameters["block"])
    codes = ref.quantize_blocks(v["W"], scale, levels, block_size=v.parameters["block"])
    assert (codes.ravel() == v["index"].ravel()).all()  # blocks of 64 over rows of 32 and of 64
    v.close(ref.dequantize_blocks(codes, scale, levels, block_size=v.parameters["block"]), v["y"], "y")


def test_n7d_uniform_quantizer(shared: Path) -> None:
    """The first iterate quantizes the weight itself."""
    v = load(shared, UNIFORM)
    found = ref.loftq(v["W"], rank=1, bits=v.parameters["bits"], quantizer="uniform", iterations=1)
    v.close(found.weight, v["y"], "y")


@pytest.mark.parametrize("file", INIT)
def test_n7_every_iterate_is_the_published_one(shared: Path, file: str) -> None:
    v = load(shared, file)
    method = {"normal_float": "normal-float", "uniform": "uniform"}[v.parameters["method"]]
    for t in range(v.parameters["iterations"]):
        found = ref.loftq(
            v["W"], rank=v.parameters["rank"], bits=v.parameters["bits"], iterations=t + 1, keep="last",
            quantizer=method,  # type: ignore[arg-type]
        )  # fmt: skip
        v.close(found.weight, v["Q"][t], "Q all iterations")
        v.close(found.B @ found.A, v["L"][t].astype(np.float64) @ v["R"][t], "L@R")
        expected = v.parameters["residual_norm_per_iteration"][: t + 1]
        v.close(found.errors, expected, "L@R")
    plain = np.linalg.norm(v["W"] - ref.loftq(
        v["W"], rank=1, bits=v.parameters["bits"], iterations=1, quantizer=method,  # type: ignore[arg-type]
    ).weight)  # fmt: skip
    v.close(plain, v.parameters["plain_quantisation_error"], "L@R")


def test_n7_the_published_iterates_rise_again(shared: Path) -> None:
    """Five iterates at 2 bits: the second is the best of them, and "best" returns it."""
    v = load(shared, INIT[0])
    found = ref.loftq(v["W"], rank=v.parameters["rank"], bits=2)
    assert found.step == 1 + int(np.argmin(v.parameters["residual_norm_per_iteration"])) < 5


@pytest.mark.parametrize("file", PEFT)
def test_n7_peft(shared: Path, file: str) -> None:
    v = load(shared, file)
    found = ref.loftq(v["W"], rank=v.parameters["rank"], iterations=v.parameters["iterations"], keep="last")
    v.close(found.weight, v["Q"], "Q")
    v.close(found.B @ found.A, v["B"].astype(np.float64) @ v["A"], "B@A")
    scale = ref.block_scale(v["W"])
    if v.parameters["iterations"] == 1:  # the table that bitsandbytes ships, as an argument
        codes = ref.quantize_blocks(v["W"], scale, v["levels"])
        v.close(ref.dequantize_blocks(codes, scale, v["levels"]), v["Q"], "Q")
