"""Chapter O against the authors' code.

Differences, each by an option or stated in the specification: rows of zeros (NaN there), the level that half precision
adds there, targets of frozen weights ("rewritten" there), thresholds of the mask ("occupied" there), query biases
("dropped" there).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lowbit.reference as ref
from lowbit.reference.types import QkrQuantizers

from .bounds import Array
from .golden import Vector, load, manifest

STATSQ = ["ofq_statsq2_2d", "ofq_statsq2_2d_adv", "ofq_statsq2_3d", "ofq_statsq3_2d", "ofq_statsq4_2d"]
HALF = "ofq_statsq2_bfloat16"
TRACKERS = ["ofq_oscillation_track", "ofq_oscillation_freeze"]
MASKS = ["ofq_cga_0", "ofq_cga_1", "ofq_cga_2"]
QKR, PLAIN = "ofq_qkr", "ofq_qkr_noquant"


def test_every_golden_file_of_this_chapter_is_covered(shared: Path) -> None:
    there = {file.removesuffix(".npz") for file in manifest(shared) if file.startswith("ofq_") and "_lsq_" not in file}
    assert {*STATSQ, HALF, *TRACKERS, *MASKS, QKR, PLAIN} == there


@pytest.mark.parametrize("file", STATSQ)
def test_o1_o3_the_authors_quantizer(shared: Path, file: str) -> None:
    """Rows of zeros are NaN there and 0 here; everything else agrees, ties included."""
    v = load(shared, file)
    found = ref.statsq(v["W"], bits=v.parameters["bits"])
    good = np.isfinite(v["y"])
    assert int((~good).sum()) == v.parameters["nonfinite"]
    assert not found.values[~good].any()
    np.testing.assert_array_equal(found.codes[good], v["codes"][good])
    assert np.abs(found.values[good] - v["y"][good]).max() <= v.tolerances["y"] * np.abs(v["y"][good]).max()
    np.testing.assert_allclose(found.scale, v["scale"], rtol=1e-12)
    grad = ref.statsq_grad(v["W"], v["grad_out"], bits=v.parameters["bits"])
    np.testing.assert_array_equal(grad, v["grad_in"])


def test_o2_the_level_that_bfloat16_adds(shared: Path) -> None:
    """The module left in float32 stays legal, the module in bfloat16 does not: here neither adds a level."""
    v = load(shared, HALF)
    found = ref.statsq(v["W"], bits=2)
    assert v["codes_cast"].max() == 2
    assert found.codes.max() == v["codes"].max() == 1
    legal = v["codes_cast"] < 2
    top = (v["W"] >= found.scale * (1 - 2.0**-8)) & ~legal
    assert (found.codes[top] == 1).all()
    assert int(top.sum()) == int((~legal).sum())


def after(codes: Any, state: Any, **options: Any) -> Any:
    """State of a tracker after one step."""
    return ref.track_oscillation(codes, *state, **options)


@pytest.mark.parametrize("file", TRACKERS)
def test_o4_the_authors_tracker(shared: Path, file: str) -> None:
    """Its threshold 0 is None here; it is started with its first codes."""
    v = load(shared, file)
    p = v.parameters
    codes = v["codes"].astype(np.int64)
    state: Any = ref.start_oscillation(codes[0])
    for t, row in enumerate(codes):
        state = after(
            row,
            state,
            momentum=p["momentum"],
            threshold=p["threshold"] or None,
            freeze_to="average" if p["freeze_to_ema"] else "current",
            targets="rewritten",
        )
        np.testing.assert_array_equal(state.codes, v["out"][t])
        np.testing.assert_array_equal(state.total, v["total"][t])
        np.testing.assert_allclose(state.frequency, v["ema"][t], atol=v.tolerances["ema"] * v["ema"].max())
        if p["threshold"]:
            np.testing.assert_array_equal(state.frozen, v["frozen"][t])


@pytest.mark.parametrize("file", MASKS)
def test_o6_the_authors_mask(shared: Path, file: str) -> None:
    v = load(shared, file)
    p = v.parameters
    mask = ref.cga_mask(v["W"], bits=p["bits"], boundary_range=p["boundary_range"], thresholds="occupied")
    np.testing.assert_array_equal(mask, v["freeze"] < 1)
    assert int(mask.sum()) == p["active"]


def lsq(x: Array, step: Array, low: int, high: int) -> Array:
    """A learned step, applied."""
    s = np.maximum(step, 1e-5)
    return np.asarray(np.round(np.clip(x / s, low, high)) * s)


def shifted(v: Vector, x: Array, before: str, after: str, steps: Array) -> Array:
    """Offset, signed learned step of 3 bits, offset."""
    a, b = (v[f"param/{part}.bias"].astype(np.float64) for part in (before, after))
    assert v.parameters["act_bits"] == 3
    return lsq(x + a, steps, -4, 3) + b


def test_o9_the_authors_attention_with_its_quantizers(shared: Path) -> None:
    """Learned steps and offsets as they stand in the file; quantizers see the authors' float32 numbers up to ties."""
    v = load(shared, QKR)
    H, N = v.parameters["heads"], v.parameters["N"]

    def step(name: str) -> Array:
        return np.asarray(v[f"param/{name}.s"], np.float64)

    def offset(name: str) -> Array:
        return np.tile(v[f"param/{name}.bias"].reshape(H, -1), (N, 1))

    seen: dict[str, Array] = {}

    def note(name: str, value: Array) -> Array:
        seen[name] = value
        return value

    quantizers = QkrQuantizers(
        input=lambda x: note(
            "x_hat", shifted(v, x, "quant_x_4_qkv.move_b4", "quant_x_4_qkv.move_aft",
                             step("quant_x_4_qkv.input_quant_fn")[:, None])
        ),
        product=lambda w: note("W_qk_hat", ref.statsq(note("W_qk", w), bits=2).values),
        keys=lambda u: note(
            "U_hat", lsq(u + offset("move_qkx_b4"), step("quan_a_qkx_fn")[:, None], -4, 3)
        ) + offset("move_qkx_aft"),
        attention=lambda a: note("attn_hat", lsq(note("attn", a), step("quan_a_softmax_fn")[:, None], 0, 7)),
        value_weight=lambda w: note("Wv_hat", ref.statsq(w, bits=2).values),
        value=lambda x: note(
            "v_hat", lsq(x + v["param/move_v_b4.bias"], step("quan_a_v_fn"), -4, 3)
        ) + v["param/move_v_aft.bias"],
    )  # fmt: skip
    context = ref.qkr_attention(
        v["x"], v["Wq"], v["Wk"], v["Wv"], None, v["bv"], heads=H, biases="dropped", quantizers=quantizers
    )
    for name, value in seen.items():
        expected = v[name]
        assert np.abs(value - expected).max() <= 2e-6 * np.abs(expected).max(), name
    w, b = ref.statsq(v["proj_W"], bits=2).values, v["proj_b"]
    inner = shifted(v, context, "proj.move_b4", "proj.move_aft", step("proj.input_quant_fn")[:, None])
    y = inner @ w.T + b
    assert np.abs(y - v["y"]).max() <= 2e-6 * np.abs(v["y"]).max()


def test_o8a_the_authors_gradients(shared: Path) -> None:
    """The stack's straight-through gradient reaches the latent weights; the offset after the keys gets none."""
    v = load(shared, QKR)
    found = ref.qkr_grad(v["Wq"], v["Wk"], v["grad_W_qk"], heads=v.parameters["heads"])
    v.close(found.q, v["grad_Wq"], "grad_Wq")
    v.close(found.k, v["grad_Wk"], "grad_Wk")
    scale = np.abs(v["grad/move_qkx_b4.bias"]).max()
    assert np.abs(v["grad/move_qkx_aft.bias"]).max() < 1e-4 * scale


def test_o9_without_quantizers(shared: Path) -> None:
    v = load(shared, PLAIN)
    found = ref.qkr_attention(v["x"], v["Wq"], v["Wk"], v["Wv"], None, v["bv"], heads=v.parameters["heads"])
    v.close(found, v["context"], "context")
