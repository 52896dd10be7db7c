"""Chapter S against the learned-step quantizers of OFQ and ACS: granularity, count, floor and first step as options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lowbit.reference as ref

from .golden import load, manifest

OFQ = {
    "ofq_lsq_quantizer4v_2bit_3d_n": -1,
    "ofq_lsq_quantizer_3bit_unsigned_4d_softmax": -2,
    "ofq_lsq_quantizer_4bit_3d_n": -2,
    "ofq_lsq_quantizerweight_3bit_2d_n": -2,
    "ofq_lsq_quantizerweight_4bit_2d_tiny": -2,
}
ACTIVATIONS = ["acs_lsq_act_3bit_unsigned_2d", "acs_lsq_act_4bit_4d"]
WEIGHTS = ["acs_lsq_weight_2bit_2d", "acs_lsq_weight_4bit_4d"]


def test_every_golden_file_of_the_chapter_is_covered(shared: Path) -> None:
    there = {file.removesuffix(".npz") for file in manifest(shared) if file.startswith(("ofq_lsq_", "acs_lsq_"))}
    assert {*OFQ, *ACTIVATIONS, *WEIGHTS} == there


@pytest.mark.parametrize("file", OFQ)
def test_s1_s5_ofq(shared: Path, file: str) -> None:
    v = load(shared, file)
    p = v.parameters
    assert p["scale_axis"] == OFQ[file]
    shape: dict[str, Any] = {"bits": p["bits"], "signed": not p["unsigned"], "axis": p["scale_axis"]}
    v.close(ref.lsq_init(v["x"], rule="mean-doubled", **shape).step, v["s_init"], "init")
    v.close(ref.lsq(v["x"], v["s"], epsilon=1e-5, **shape), v["y"], "y")
    found = ref.lsq_gradient(v["grad_out"], v["x"], v["s"], epsilon=1e-5, **shape)
    v.close(found.x, v["grad_x"], "grad_x")
    v.close(found.step, v["grad_s"], "grad_s")
    assert p["mode"] != "tiny" or (v["s"] < 1e-5).any()  # a step below the floor has a gradient


@pytest.mark.parametrize("file", ACTIVATIONS)
def test_s1_s5_acs_activations(shared: Path, file: str) -> None:
    v = load(shared, file)
    shape: dict[str, Any] = {"bits": v.parameters["bits"], "signed": v.parameters["signed"]}
    v.close(ref.lsq_init(v["w"], **shape).step, v["alpha_init"], "alpha_init")
    v.close(ref.lsq(v["w"], v["alpha"], **shape), v["y"], "y")
    found = ref.lsq_gradient(v["grad_out"], v["w"], v["alpha"], **shape)
    v.close(found.x, v["grad_w"], "grad_w")
    v.close(found.step, v["grad_alpha"], "grad_alpha")


@pytest.mark.parametrize("file", WEIGHTS)
def test_s1_s5_acs_layers(shared: Path, file: str) -> None:
    """A linear layer and a convolution without padding: the gradient reaches the weight through the inputs."""
    v = load(shared, file)
    bits = v.parameters["bits"]
    v.close(ref.lsq_init(v["w"], bits=bits).step, v["alpha_init"], "alpha_init")
    weight = ref.lsq(v["w"], v["alpha"], bits=bits)
    x = v["x"].astype(np.float64)
    if x.ndim == 2:
        y, slope = x @ weight.T, v["grad_out"].astype(np.float64).T @ x
    else:
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
        y = np.einsum("bcijuv,mcuv->bmij", windows, weight)
        slope = np.einsum("bcijuv,bmij->mcuv", windows, v["grad_out"])
    v.close(y, v["y"], "y")
    found = ref.lsq_gradient(slope, v["w"], v["alpha"], bits=bits)
    v.close(found.x, v["grad_w"], "grad_w")
    v.close(found.step, v["grad_alpha"], "grad_alpha")
