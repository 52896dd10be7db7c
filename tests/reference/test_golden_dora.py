"""Chapter D against PEFT and the authors' code.

Where they divide by a norm of 0 they answer NaN; the specification does not, and that is the only difference.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import lowbit.reference as ref
from lowbit.reference.errors import SpecError

from .bounds import Array
from .golden import Vector, load, manifest

NVLABS = ["dora_nvlabs_full", "dora_nvlabs_simple"]
MAGNITUDE_ONLY = "dora_nvlabs_magnitude_only"
PEFT = ["dora_peft_linear_f32", "dora_peft_linear_f64_rslora", "dora_peft_linear_zero_row"]
CONV, EMBEDDING = "dora_peft_conv2d", "dora_peft_embedding"


def test_every_golden_file_of_this_chapter_is_covered(shared: Path) -> None:
    there = {file.removesuffix(".npz") for file in manifest(shared) if file.startswith("dora_")}
    assert {*NVLABS, MAGNITUDE_ONLY, *PEFT, CONV, EMBEDDING} == there


@pytest.mark.parametrize("file", NVLABS)
def test_d5_d6_the_authors_layer(shared: Path, file: str) -> None:
    """Its two backward passes: simple (the norm detached) and full."""
    v = load(shared, file)
    s, m = v.parameters["scaling"], v["m"][:, 0]
    y = ref.dora_forward(v["x"], v["x"], v["W"], v["bias"], v["B"], v["A"], m, scaling=s)
    v.close(y, v["y"], "y")
    G = v["grad_out"].T @ v["x"]
    detach = v.parameters["dora_simple"]
    found = ref.dora_gradient(G, v["W"], v["B"], v["A"], m, scaling=s, detach=detach)
    v.close(found.B, v["grad_B"], "grad_B")
    v.close(found.A, v["grad_A"], "grad_A")
    v.close(found.magnitude, v["grad_m"][:, 0], "grad_m")
    other = ref.dora_gradient(G, v["W"], v["B"], v["A"], m, scaling=s, detach=not detach)
    assert np.abs(other.B - v["grad_B"]).max() > 1e-3  # the two are told apart


def test_d5_d6_the_authors_magnitude_only_layer(shared: Path) -> None:
    """Modules of Wdecompose_target_modules: factors of rank 0."""
    v = load(shared, MAGNITUDE_ONLY)
    b, a, m = np.zeros((len(v["W"]), 0)), np.zeros((0, v["W"].shape[1])), v["m"][:, 0]
    v.close(ref.dora_forward(v["x"], v["x"], v["W"], v["bias"], b, a, m, scaling=1.0), v["y"], "y")
    found = ref.dora_gradient(v["grad_out"].T @ v["x"], v["W"], b, a, m, scaling=1.0)
    v.close(found.magnitude, v["grad_m"][:, 0], "grad_m")


@pytest.mark.parametrize("file", PEFT)
def test_d1_d5_d6_d7_the_linear_layer_of_peft(shared: Path, file: str) -> None:
    v = load(shared, file)
    s, zero = v.parameters["scaling"], v.parameters["zero_row"]
    bias = v.arrays.get("bias", np.zeros(len(v["W"])))
    v.close(ref.dora_magnitude(v["W"]), v["m_init"], "m_init")
    start = ref.dora_magnitude(v["W"])
    y = ref.dora_forward(v["x"], v["x"], v["W"], bias, 0 * v["B"], v["A_init"], start, scaling=s)
    sound: Array = np.asarray(np.isfinite(v["y_init"]).all(axis=0))
    assert zero is None or not sound[zero]  # their 0 / 0
    v.close(y[:, sound], v["y_init"][:, sound], "y_init")
    if zero is not None:
        assert np.array_equal(y[:, zero], np.full(len(y), np.float64(bias[zero])))
    y = ref.dora_forward(v["x"], v["x"], v["W"], bias, v["B"], v["A"], v["m"], scaling=s)
    v.close(y, v["y"], "y")
    G = v["grad_out"].astype(np.float64).T @ v["x"]
    found = ref.dora_gradient(G, v["W"], v["B"], v["A"], v["m"], scaling=s)
    v.close(found.B, v["grad_B"], "grad_B")
    v.close(found.A, v["grad_A"], "grad_A")
    v.close(found.magnitude, v["grad_m"], "grad_m")
    merged = ref.dora_merge(v["W"], v["B"], v["A"], v["m"], scaling=s)
    v.close(v["grad_out"].astype(np.float64) @ merged.weight, v["grad_x"], "grad_x")
    v.close(merged.weight, v["W_merged"], "merged")
    if zero is None:
        v.close(ref.dora_unmerge(merged.weight, v["B"], v["A"], merged.factor, scaling=s), v["W_unmerged"], "unmerged")
    else:  # m of that row is still 0, so the merge erases it: NaN there, refused here
        assert np.isnan(v["W_unmerged"][zero]).all()
        assert not merged.weight[zero].any()
        with pytest.raises(SpecError, match=f"factor is 0 in row {zero}"):
            ref.dora_unmerge(merged.weight, v["B"], v["A"], merged.factor, scaling=s)
        others = np.arange(len(v["W"])) != zero
        back = ref.dora_unmerge(merged.weight[others], v["B"][others], v["A"], merged.factor[others], scaling=s)
        v.close(back, v["W_unmerged"][others], "unmerged")


def convolved(x: Array, w: Array, padding: int) -> Array:
    """Plain cross-correlation, stride 1: y[n, o, i, j] = Σ x[n, c, i + p, j + q] w[o, c, p, q]."""
    x = np.pad(x, [(0, 0), (0, 0), (padding, padding), (padding, padding)])
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
    return np.asarray(np.einsum("ncijpq,ocpq->noij", windows, w))


def weight_gradient(v: Vector) -> Array:
    """dL/dW' of that convolution."""
    p = v.parameters["padding"]
    x = np.pad(v["x"].astype(np.float64), [(0, 0), (0, 0), (p, p), (p, p)])
    windows = np.lib.stride_tricks.sliding_window_view(x, v["W"].shape[2:], axis=(2, 3))
    return np.asarray(np.einsum("ncijpq,noij->ocpq", windows, v["grad_out"].astype(np.float64)))


def test_the_convolution_of_peft(shared: Path) -> None:
    v = load(shared, CONV)
    s, m = v.parameters["scaling"], v["m"].reshape(-1)
    v.close(ref.dora_magnitude(v["W"], layout="conv"), v["m_init"].reshape(-1), "m_init")
    weight = ref.dora_weight(v["W"], v["B"], v["A"], m, scaling=s, layout="conv")
    v.close(weight, v["W_merged"], "merged")
    y = convolved(v["x"].astype(np.float64), weight, v.parameters["padding"]) + v["bias"][:, None, None]
    v.close(y, v["y"], "y")
    found = ref.dora_gradient(weight_gradient(v), v["W"], v["B"], v["A"], m, scaling=s, layout="conv")
    v.close(found.B, v["grad_B"], "grad_B")
    v.close(found.A, v["grad_A"], "grad_A")
    v.close(found.magnitude, v["grad_m"].reshape(-1), "grad_m")


def test_the_embedding_of_peft(shared: Path) -> None:
    """Stored transposed: vocabulary by features, one magnitude per feature. There A starts at zero and B is random."""
    v = load(shared, EMBEDDING)
    s = v.parameters["scaling"]
    assert not v["A_init"].any()
    assert v["B_init"].any()
    v.close(ref.dora_magnitude(v["W"], layout="transposed"), v["m_init"], "m_init")
    weight = ref.dora_weight(v["W"], v["B"], v["A"], v["m"], scaling=s, layout="transposed")
    v.close(weight, v["W_merged"], "merged")
    v.close(weight[v["ids"]], v["y"], "y")
    G = np.zeros(v["W"].shape)
    np.add.at(G, v["ids"], v["grad_out"].astype(np.float64))
    found = ref.dora_gradient(G, v["W"], v["B"], v["A"], v["m"], scaling=s, layout="transposed")
    v.close(found.B, v["grad_B"], "grad_B")
    v.close(found.A, v["grad_A"], "grad_A")
    v.close(found.magnitude, v["grad_m"], "grad_m")
