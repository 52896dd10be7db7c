"""Chapter T against what KD-QAT's code answered: its clip of 2.5, its epsilon, its statistics after the clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lowbit.reference as ref

from .golden import load, manifest

CLIP = 2.5
FILES: dict[str, tuple[Any, dict[str, Any]]] = {
    "kdqat_twn2_tensor_2d": (ref.twn, {}),
    "kdqat_twn2_row_2d": (ref.twn, {"granularity": "row"}),
    "kdqat_twnmx4_tensor_2d": (ref.clamped_uniform, {"bits": 4}),
    "kdqat_sym8_tensor_3d": (ref.min_max, {}),
    "kdqat_sym8_row_3d": (ref.min_max, {"granularity": "row"}),
    "kdqat_sym8_row_4d": (ref.min_max, {"granularity": "matrix"}),
    "kdqat_asym8_tensor_2d": (ref.min_max, {"scheme": "asymmetric", "epsilon": 1e-8}),
}
LINEAR: dict[str, Any] = {"kdqat_linear_w2a8": ref.twn, "kdqat_linear_w4a8": ref.clamped_uniform}


def test_every_golden_file_of_the_chapter_is_covered(shared: Path) -> None:
    names = ("kdqat_twn", "kdqat_sym", "kdqat_asym", "kdqat_linear")
    there = {file.removesuffix(".npz") for file in manifest(shared) if file.startswith(names)}
    assert {*FILES, *LINEAR} == there


@pytest.mark.parametrize("file", FILES)
def test_t1_t5_quantizers_and_their_gradients(shared: Path, file: str) -> None:
    v = load(shared, file)
    operation, options = FILES[file]
    assert v.parameters["clip_val"] == CLIP
    bad = ~np.isfinite(v["y"])
    assert bad.sum() == v.parameters["nonfinite"]
    found = operation(v["x"], clip=CLIP, **options)
    assert (v["x"][bad] == 0).all()  # the published NaN of a row of zeros
    assert (found[bad] == 0).all()
    v.close(found[~bad], v["y"][~bad], "y")
    gradient = ref.straight_through(v["grad_out"], v["x"], clip=CLIP)
    v.close(gradient, v["grad_in"], "grad")
    at = np.abs(v["x"]) == CLIP
    assert at.any()
    assert (gradient[at] == 0).all()


@pytest.mark.parametrize("file", LINEAR)
def test_t2_t5_the_linear_layer_of_the_student(shared: Path, file: str) -> None:
    """Weights ternary or of 4 bits, inputs symmetric with 8: one scale per tensor."""
    v = load(shared, file)
    weight, x = LINEAR[file](v["W"], clip=CLIP), ref.min_max(v["x"], clip=CLIP)
    v.close(x @ weight.T + v["b"], v["y"], "y")
    grad = v["grad_out"].astype(np.float64)
    v.close(ref.straight_through(grad @ weight, v["x"], clip=CLIP), v["grad_x"], "grad_x")
    slope = np.einsum("btm,btk->mk", grad, x)
    v.close(ref.straight_through(slope, v["W"], clip=CLIP), v["grad_W"], "grad_W")
    np.testing.assert_allclose(grad.sum(axis=(0, 1)), v["grad_b"], rtol=1e-5)
