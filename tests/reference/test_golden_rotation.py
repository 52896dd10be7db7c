"""Chapter H against what QuaRot and RoLoRA answered.

Differences that have names: their tables are other Hadamard matrices of the same orders (``kronecker_transform``), the
embedding is centred whatever the norm (``centre=True``), and their 1/√n is a float32 number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import lowbit.reference as ref
from lowbit.reference.types import DecoderBlock

from .golden import Vector, load, manifest
from .llama import Array, Decoder, forward, same

HADAMARD = [f"hadamard_{n}" for n in (12, 20, 40, 64, 96, 576, 1536)]
RANDOM = [f"random_hadamard_{n}" for n in (12, 32, 40)]
MODELS = ["rolora_llama_r1_f64", "rolora_llama_r1r4_f32", "quarot_llama"]


def test_every_golden_file_of_the_chapter_is_covered(shared: Path) -> None:
    prefixes = ("hadamard_", "random_", "rolora_llama_", "quarot_")
    there = {file.removesuffix(".npz") for file in manifest(shared) if file.startswith(prefixes)}
    assert there == {*HADAMARD, *RANDOM, "random_orthogonal", *MODELS}


def table(v: Vector) -> npt.NDArray[Any]:
    """The published table, or that of order 1."""
    return v["table"] if "table" in v.arrays else np.ones((1, 1), np.int8)


@pytest.mark.parametrize("file", HADAMARD)
def test_h2b_transforms_with_the_published_tables(shared: Path, file: str) -> None:
    v = load(shared, file)
    v.close(ref.kronecker_transform(v["x"], table(v)), v["y"], "y")
    v.close(ref.kronecker_transform(v["x"], table(v), transpose=True), v["y_transpose_option"], "y_transpose_option")


@pytest.mark.parametrize("file", HADAMARD)
def test_h2_our_matrix_does_what_theirs_does(shared: Path, file: str) -> None:
    """Other bits, the same effect: energy is kept and the one-hot token becomes flat."""
    v = load(shared, file)
    ours = ref.hadamard_transform(v["x"])
    v.close(np.linalg.norm(ours, axis=1), np.linalg.norm(v["y"].astype(np.float64), axis=1), "y")
    v.close(np.abs(ours[0]), np.abs(v["y"][0]), "y")
    if table(v).shape == (1, 1):
        v.close(ours, v["y"], "y")


@pytest.mark.parametrize("file", RANDOM)
def test_h3_random_hadamard_rotations(shared: Path, file: str) -> None:
    """Q = diag(s) Hᵀ/√n with their table and signs: row i is their transform of s_i e_i."""
    v = load(shared, file)
    n, K = v.parameters["n"], v.parameters["K"]
    T = table(load(shared, f"hadamard_{K}")) if K > 1 else np.ones((1, 1), np.int8)
    Q = ref.kronecker_transform(np.diag(v["signs"]), T)
    v.close(Q, v["Q"], "Q")
    exact = np.abs(Q.T @ Q - np.eye(n)).max()
    theirs = np.abs(v["Q"].T @ v["Q"] - np.eye(n)).max()
    assert exact < theirs or n == 4 ** (n.bit_length() // 2)  # 1/√n in float64, not in float32


def test_h4_orthogonal_factor(shared: Path) -> None:
    v = load(shared, "random_orthogonal")
    v.close(ref.orthogonal_factor(v["Z"]), v["Q"], "Q")


# --- whole models

PARTS = {
    "input_norm": "input_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
    "o": "self_attn.o_proj", "post_norm": "post_attention_layernorm", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}  # fmt: skip


def decoder(v: Vector, kind: str, parameters: dict[str, Any], *, fallback: str = "rot") -> Decoder:
    """The model stored under ``kind``; norms of changed models are ones."""

    def weight(name: str, *, norm: bool = False) -> Array:
        found = v.arrays.get(f"{kind}/{name}.weight", v.arrays.get(f"{fallback}/{name}.weight"))
        return np.ones(parameters["hidden"]) if norm and kind != "orig" else np.asarray(found, np.float64)

    blocks = [
        DecoderBlock(*(weight(f"model.layers.{i}.{name}", norm="layernorm" in name) for name in PARTS.values()))
        for i in range(parameters["layers"])
    ]
    return Decoder(
        weight("model.embed_tokens"), blocks, weight("model.norm", norm=True), weight("lm_head"), parameters["heads"],
        parameters["rope_theta"], parameters["rms_eps"],
    )  # fmt: skip


def rolora(v: Vector, model: Decoder, *, online: bool) -> Decoder:
    """What RoLoRA does to a model, with our own R4."""
    blocks = [ref.rotate_block(b, v["Q"], online=online) for b in model.blocks]
    ends = ref.rotate_ends(model.embedding, model.norm, model.head, v["Q"], centre=True)
    return model._replace(embedding=ends.embedding, head=ends.head, norm=np.ones_like(model.norm), blocks=blocks)


@pytest.mark.parametrize("file", MODELS[:2])
def test_h7_rolora_models(shared: Path, file: str) -> None:
    v = load(shared, file)
    parameters, online = v.parameters["config"], file.endswith("r1r4_f32")
    original, theirs = decoder(v, "orig", parameters), decoder(v, "rot", parameters)
    ids = v["input_ids"]
    logits = forward(original, ids)
    v.close(logits, v["logits_original"], "logits_original")
    centred = original._replace(embedding=original.embedding - original.embedding.mean(axis=1, keepdims=True))
    v.close(forward(centred, ids), v["logits_centred"], "logits_centred")
    T = load(shared, "hadamard_40")["table"] if online else np.ones((1, 1))

    def transform(x: Array) -> Array:
        return ref.kronecker_transform(x, T)

    ours = rolora(v, original, online=False)
    weight_tolerance = v.tolerances["logits_rotated"]  # float32 weights differ by one rounding of theirs
    for mine, published in zip(ours.blocks, theirs.blocks, strict=True):
        for name in PARTS:
            expected = getattr(published, name)
            found = transform(mine.down) if online and name == "down" else getattr(mine, name)
            assert np.abs(found - expected).max() <= weight_tolerance * np.abs(expected).max(), name
    v.close(forward(theirs, ids, down_input=transform if online else same), v["logits_rotated"], "logits_rotated")
    # the function is that of the centred model, whichever Hadamard matrix is used, and not that of the original
    found = forward(rolora(v, original, online=online), ids, down_input=ref.hadamard_transform if online else same)
    v.close(found, v["logits_centred"], "invariance")
    assert np.abs(found - logits).max() > 1
    uncentred = ref.rotate_ends(original.embedding, original.norm, original.head, v["Q"])
    mended = rolora(v, original, online=online)._replace(embedding=uncentred.embedding)
    found = forward(mended, ids, down_input=ref.hadamard_transform if online else same)
    v.close(found, v["logits_original"], "logits_original")


def test_h9_rolora_quantized_weights_and_activations(shared: Path) -> None:
    """4-bit weights by the clip search per row, 8-bit activations per token behind the online transform."""
    v = load(shared, "rolora_llama_r1r4_f32")
    parameters = v.parameters["config"]
    rot, quantized = decoder(v, "rot", parameters), decoder(v, "quant", parameters)
    for b, published in zip(rot.blocks, quantized.blocks, strict=True):
        for name in PARTS:
            if name.endswith("norm"):
                continue
            w = getattr(b, name)
            grid = ref.clip_search(w, bits=4, scheme="symmetric", range_floor=1e-5)
            restored = ref.dequantize(ref.quantize(w, *grid[:2], bits=4, scheme="symmetric"), *grid[:2])
            expected = getattr(published, name)
            assert np.abs(restored - expected).max() <= v.tolerances["logits_w4"] * np.abs(expected).max(), name
    T = load(shared, "hadamard_40")["table"]

    def transform(x: Array) -> Array:
        return ref.kronecker_transform(x, T)

    def rounded(x: Array) -> Array:
        return ref.quantize_activations(x, bits=v.parameters["activation_bits"]).values

    v.close(forward(quantized, v["input_ids"], down_input=transform), v["logits_w4"], "logits_w4")
    found = forward(quantized, v["input_ids"], down_input=transform, inputs=rounded)
    v.close(found, v["logits_w4a"], "logits_w4a")


def test_h7_quarot_model(shared: Path) -> None:
    """QuaRot rotates v by a Hadamard matrix per head, o by the one of the hidden size, and across heads online."""
    v = load(shared, "quarot_llama")
    p = v.parameters
    original, theirs = decoder(v, "orig", p), decoder(v, "rot", p)
    ids, width, f = v["input_ids"], p["head_dim"], p["intermediate"]
    v.close(forward(original, ids), v["logits_original"], "logits_original")
    T = load(shared, "hadamard_12")["table"]
    ours = [ref.rotate_block(b, v["Q"], online=False) for b in original.blocks]
    head = ref.hadamard_matrix(order=width) / np.sqrt(width)  # Sylvester's, symmetric
    for mine, published in zip(ours, theirs.blocks, strict=True):
        changed = mine._replace(
            v=ref.rotate_outputs(mine.v, head),
            o=ref.hadamard_transform(mine.o),
            down=ref.kronecker_transform(mine.down, T),
        )
        for name in PARTS:
            expected = getattr(published, name)
            allowed = v.tolerances["invariance"] * np.abs(expected).max()
            assert np.abs(getattr(changed, name) - expected).max() <= allowed, name

    def across_heads(x: Array) -> Array:
        heads = x.reshape(*x.shape[:-1], p["heads"], width)
        return np.swapaxes(ref.hadamard_transform(np.swapaxes(heads, -1, -2)), -1, -2).reshape(x.shape)

    found = forward(theirs, ids, down_input=lambda x: ref.kronecker_transform(x, T), o_input=across_heads)
    v.close(found, v["logits_rotated"], "invariance")
    v.close(found, v["logits_original"], "invariance")
    # with our own R2 per head nothing is left to do online before o
    blocks = [ref.rotate_block(b, v["Q"], head) for b in original.blocks]
    ends = ref.rotate_ends(original.embedding, original.norm, original.head, v["Q"])
    mine = original._replace(embedding=ends.embedding, head=ends.head, norm=np.ones(p["hidden"]), blocks=blocks)
    v.close(forward(mine, ids, down_input=ref.hadamard_transform), v["logits_original"], "invariance")
    assert f == 24
