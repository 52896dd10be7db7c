"""pack-quantized against the two programs that load it: compressed-tensors itself and transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowbit.formats.checkpoint import SafetensorsCheckpoint, open_checkpoint
from lowbit.formats.errors import CheckpointError, UnreadError
from lowbit.formats.packed import FORMATS, PackedFormat, PackedWeight, compressed_tensors, open_packed
from lowbit.formats.packed.compressed_tensors import (
    TRANSPOSED_KEY,
    CompressedTensors,
    dequantize_module,
    pack_module,
    quantization_config,
    unpack_module,
)
from lowbit.formats.packed.packing import pack_padded
from lowbit.formats.safetensors_file import SafetensorsFile, write_tensors

Write = Callable[..., Path]
BITS = (2, 3, 4, 5, 6, 8)


def grid(seed: int, shape: tuple[int, int], bits: int, scheme: str, groups: int, dtype: torch.dtype) -> tuple[Any, ...]:
    """Codes, scale and zero point that fill the whole range of a scheme."""
    rng = np.random.default_rng(seed)
    low = -(1 << (bits - 1)) if scheme != "asymmetric" else 0
    codes = rng.integers(low, low + (1 << bits), shape, dtype=np.int32)
    codes.reshape(-1)[:2] = low, low + (1 << bits) - 1
    scale = torch.from_numpy(rng.uniform(0.001, 0.1, (shape[0], groups))).to(dtype)
    zeros = rng.integers(0, 1 << bits, (shape[0], groups), dtype=np.int32)
    return codes, scale, zeros if scheme == "asymmetric" else np.zeros_like(zeros)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric-full"])
@pytest.mark.parametrize("shape, groups", [((24, 64), 4), ((7, 96), 1), ((33, 40), 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dequantizes_bit_for_bit_as_the_library(
    bits: int, scheme: str, shape: tuple[int, int], groups: int, dtype: torch.dtype
) -> None:
    library = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    codes, scale, zeros = grid(bits, shape, bits, scheme, groups, dtype)
    tensors = pack_module("m", codes, scale, zeros, bits=bits, scheme=scheme)
    config = quantization_config(
        bits=bits, scheme=scheme, group_size=shape[1] // groups if groups > 1 else None, ignore=[], act_order=False
    )
    group = quantization.QuantizationScheme.model_validate(config["config_groups"]["group_0"])
    parts = {name.removeprefix("m."): value for name, value in tensors.items()}
    theirs = library.PackedQuantizationCompressor.decompress(parts, group)["weight"]
    ours = dequantize_module(tensors, bits=bits, scheme=scheme)
    assert ours.dtype == dtype
    assert torch.equal(ours, theirs)
    back = unpack_module(tensors, bits=bits, scheme=scheme)
    assert np.array_equal(back[0].numpy(), codes)
    assert np.array_equal(back[2].numpy(), zeros)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rows", [1, 2, 10, 11])
def test_zero_points_of_few_rows_are_written(rows: int, bits: int, tmp_path: Path) -> None:
    """One word holds them all: a tensor of one value, whose strides say nothing."""
    codes, scale, zeros = grid(bits, (rows, 32), bits, "asymmetric", 1, torch.float32)
    tensors = pack_module("m", codes, scale, zeros, bits=bits, scheme="asymmetric")
    write_tensors(tmp_path / "m.safetensors", tensors)
    file = SafetensorsFile(tmp_path / "m.safetensors")
    read = unpack_module({name: file.read(name) for name in tensors}, bits=bits, scheme="asymmetric")
    assert np.array_equal(read.zero_point, zeros)
    assert np.array_equal(read.codes, codes)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
def test_the_old_padded_layout_is_recognised_by_its_width(bits: int) -> None:
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 1 << bits, (40, 96), dtype=np.int32)
    zeros = rng.integers(0, 1 << bits, (40, 3), dtype=np.int32)
    tensors = {
        "weight_packed": torch.from_numpy(pack_padded(codes, bits)),
        "weight_zero_point": torch.from_numpy(pack_padded(zeros.T.copy(), bits).T.copy()),
        "weight_scale": torch.ones(40, 3),
        "weight_shape": torch.tensor([40, 96]),
    }
    back = unpack_module(tensors, bits=bits, scheme="asymmetric")
    assert np.array_equal(back[0].numpy(), codes)
    assert np.array_equal(back[2].numpy(), zeros)


def test_permuted_groups_travel_in_g_idx() -> None:
    codes, scale, zeros = grid(5, (8, 32), 4, "asymmetric", 4, torch.float32)
    index = np.random.default_rng(0).permutation(np.repeat(np.arange(4, dtype=np.int32), 8))
    tensors = pack_module("m", codes, scale, zeros, bits=4, scheme="asymmetric", group_index=index)
    expected = scale[:, index] * torch.from_numpy(codes - zeros[:, index])
    assert torch.equal(dequantize_module(tensors, bits=4, scheme="asymmetric"), expected)
    plain = pack_module("m", codes, scale, zeros, bits=4, scheme="asymmetric", group_index=np.repeat(np.arange(4), 8))
    assert "m.weight_g_idx" not in plain


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric-full"])
def test_a_large_weight_is_unpacked_by_rows(bits: int, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, scale, zeros = grid(bits, (167, 48), bits, scheme, 3, torch.bfloat16)
    tensors = pack_module("m", codes, scale, zeros, bits=bits, scheme=scheme)
    whole = unpack_module(tensors, bits=bits, scheme=scheme).dequantize()
    heights: list[int] = []

    def watched(parts: Any, **given: Any) -> PackedWeight:
        heights.append(len(parts["weight_packed"]))
        return unpack_module(parts, **given)

    monkeypatch.setattr(compressed_tensors, "_VALUES", 64 * 48)
    monkeypatch.setattr(compressed_tensors, "unpack_module", watched)
    assert torch.equal(dequantize_module(tensors, bits=bits, scheme=scheme), whole)
    assert heights == [64, 64, 39]


# ---- whole models ---------------------------------------------------------------------------------------------------


def compress(
    model: Any, folder: Path, bits: int, scheme: str, dtype: torch.dtype, group: int | None, every: bool = False
) -> dict[str, Any]:
    """Rewrites a saved model with packed ``…_proj``, or every linear layer; returns the dense state it loads as."""
    head = model.get_output_embeddings()
    linears = {name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
    tensors: dict[str, torch.Tensor] = {}
    dense: dict[str, torch.Tensor] = {}
    for seed, (name, value) in enumerate(model.state_dict().items()):
        module = name.removesuffix(".weight")
        if module in linears if every else name.endswith("_proj.weight"):
            codes, scale, zeros = grid(
                seed, tuple(value.shape), bits, scheme, value.shape[1] // (group or value.shape[1]), dtype
            )
            parts = pack_module(module, codes, scale, zeros, bits=bits, scheme=scheme)
            tensors |= parts
            dense[name] = dequantize_module(parts, bits=bits, scheme=scheme)
        else:
            tensors[name] = dense[name] = value.to(dtype)
    write_tensors(folder / "model.safetensors", tensors)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    config["quantization_config"] = quantization_config(
        bits=bits, scheme=scheme, group_size=group, ignore=["lm_head"], act_order=False
    )
    (folder / "config.json").write_text(json.dumps(config))
    return dense


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(torch.arange(3, 43).reshape(2, 20)).logits
    return out


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", [32, None])
def test_symmetric_models_load_as_they_are(bits: int, group: int | None, llama: Any, write_model: Write) -> None:
    from transformers import AutoModelForCausalLM

    folder = write_model(llama)
    dense = compress(llama, folder, bits, "symmetric-full", torch.float32, group)
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    expected = AutoModelForCausalLM.from_config(llama.config).eval()
    expected.load_state_dict(dense)
    assert torch.equal(logits(loaded), logits(expected))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.names() == list(dense) or sorted(checkpoint.names()) == sorted(dense)
    for name, value in dense.items():
        assert torch.equal(checkpoint.read(name), value)
        assert checkpoint.shape(name) == tuple(value.shape)
        assert checkpoint.dtype(name) == value.dtype


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_asymmetric_models_need_dequantize(bits: int, dtype: torch.dtype, llama: Any, write_model: Write) -> None:
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    folder = write_model(llama)
    dense = compress(llama, folder, bits, "asymmetric", dtype, 32)
    with pytest.raises(RuntimeError, match=r"(?i)mismatch"):
        AutoModelForCausalLM.from_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder, quantization_config=CompressedTensorsConfig(dequantize=True))
    state = loaded.state_dict()
    checkpoint = open_checkpoint(folder)
    for name, value in dense.items():
        assert torch.equal(state[name], value)
        assert torch.equal(checkpoint.read(name), value)
    assert torch.equal(
        checkpoint.read("model.layers.0.mlp.up_proj.weight", (3, 9)), state["model.layers.0.mlp.up_proj.weight"][3:9]
    )


def test_conv1d_weights_come_back_in_their_own_orientation(write_model: Write) -> None:
    from .conftest import tiny_model

    model = tiny_model("gpt2")
    folder = write_model(model)
    name = "transformer.h.0.attn.c_attn"
    tensors = {
        key: value for key, value in model.state_dict().items() if key not in (f"{name}.weight", "lm_head.weight")
    }
    codes, scale, zeros = grid(0, (192, 64), 4, "symmetric", 2, torch.float32)
    parts = pack_module(name, codes, scale, zeros, bits=4, scheme="symmetric")
    write_tensors(folder / "model.safetensors", tensors | parts, metadata={"format": "pt", TRANSPOSED_KEY: name})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = quantization_config(
        bits=4, scheme="symmetric", group_size=32, ignore=["lm_head"], act_order=False
    )
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(folder)
    assert isinstance(checkpoint, SafetensorsCheckpoint)
    assert checkpoint.shape(f"{name}.weight") == (64, 192)
    assert torch.equal(checkpoint.read(f"{name}.weight"), dequantize_module(parts, bits=4, scheme="symmetric").T)


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_by_name() -> None:
    codes, scale, zeros = grid(1, (8, 32), 4, "asymmetric", 4, torch.float32)
    kinds: list[tuple[dict[str, Any], str]] = [
        ({"bits": 7}, "m: pack-quantized is written at 2, 3, 4, 5, 6, 8 bits, not 7"),
        ({"bits": 3}, "m: codes lie in 0..15, 3 bits hold 0..7"),
        ({"scheme": "symmetric"}, "m: codes lie in 0..15, 4 bits hold -8..7"),
        ({"scheme": "round"}, "m: unknown scheme 'round'"),
        ({"zero_point": None}, "m: an asymmetric grid needs its zero points"),
        ({"zero_point": zeros - 20}, f"m: zero_point lie in {zeros.min() - 20}..{zeros.max() - 20}, 4 bits hold 0..15"),
        ({"zero_point": zeros[:, :2]}, "m: zero_point (8, 2) does not match scale (8, 4)"),
        ({"scale": scale[:, :3]}, "m: 3 groups do not divide 32 columns"),
        ({"scale": scale.double()}, "m: scale has type torch.float64; float32, float16 or bfloat16 can be stored"),
        ({"group_index": np.zeros(5, np.int32)}, "m: group_index (5,) must hold 32 groups in 0..3"),
    ]
    for change, message in kinds:
        arguments: dict[str, Any] = {
            "codes": codes,
            "scale": scale,
            "zero_point": zeros,
            "bits": 4,
            "scheme": "asymmetric",
        }
        arguments |= change
        with pytest.raises(CheckpointError) as info:
            pack_module("m", **arguments)
        assert str(info.value) == message


def test_damaged_modules_are_refused() -> None:
    codes, scale, zeros = grid(1, (8, 32), 4, "asymmetric", 4, torch.float32)
    whole = pack_module("m", codes, scale, zeros, bits=4, scheme="asymmetric")
    with pytest.raises(CheckpointError, match="packed module lacks weight_zero_point"):
        unpack_module({k: v for k, v in whole.items() if "zero" not in k}, bits=4, scheme="asymmetric")
    with pytest.raises(
        CheckpointError, match=r"weight_packed has 4 words per line; 32 codes of 8 bits take 8 \(dense\)"
    ):
        unpack_module(whole, bits=8, scheme="asymmetric")
    with pytest.raises(CheckpointError, match="do not fit weight_shape"):
        unpack_module(whole | {"m.weight_shape": torch.tensor([9, 32])}, bits=4, scheme="asymmetric")


def test_rows_that_take_no_bytes_are_refused_at_once() -> None:
    empty = {"weight_packed": torch.empty(1 << 40, 0, dtype=torch.int32), "weight_scale": torch.empty(1 << 40, 0)}
    with pytest.raises(CheckpointError, match="do not fit weight_shape"):
        dequantize_module(empty | {"weight_shape": torch.tensor([1 << 40, 0])}, bits=4, scheme="symmetric")


def test_groups_of_other_writers_are_matched_by_name_then_class() -> None:
    args = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
    config = {
        "format": "pack-quantized",
        "config_groups": {
            "a": {"targets": ["Linear"], "weights": args},
            "b": {"targets": [r"re:.*down_proj$"], "weights": args | {"num_bits": 8, "symmetric": False}},
        },
    }
    schemes = CompressedTensors(config, "x")
    assert schemes.scheme("model.layers.0.mlp.up_proj") == (4, "symmetric", 128)
    assert schemes.scheme("model.layers.0.mlp.down_proj") == (8, "asymmetric", 128)
    groups = config["config_groups"]
    head = {"c": {"targets": ["lm_head", "re:.*o_proj$", "model.layers.0.self_attn.o_proj"], "weights": args}}
    schemes = CompressedTensors(config | {"config_groups": head | groups}, "x")
    assert schemes.scheme("lm_head") == schemes.scheme("model.layers.0.mlp.up_proj") == (4, "symmetric", 128)
    eight = {"d": {"targets": ["lm_head"], "weights": args | {"num_bits": 8}}}
    assert CompressedTensors(config | {"config_groups": eight | groups}, "x").scheme("model.up_proj").bits == 4
    named = {"e": {"targets": ["model.o_proj"], "weights": args | {"num_bits": 6}}}
    pattern = {"f": {"targets": ["re:.*o_proj"], "weights": args | {"num_bits": 2}}}
    assert CompressedTensors(config | {"config_groups": pattern | named}, "x").scheme("model.o_proj").bits == 6
    tables = {"g": {"targets": ["Embedding"], "weights": args | {"num_bits": 8}}}
    with pytest.raises(UnreadError, match="those of the classes Embedding and Linear differ"):
        CompressedTensors(config | {"config_groups": tables | groups}, "x").scheme("model.embed_tokens")
    with pytest.raises(CheckpointError, match=r"x: compressed-tensors format 'float-quantized' is not read"):
        CompressedTensors(config | {"format": "float-quantized"}, "x")
    with pytest.raises(CheckpointError, match="names no group of weights"):
        CompressedTensors({"format": "pack-quantized"}, "x")


@pytest.mark.parametrize("method", FORMATS)
@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("ordered", [False, True])
def test_a_packed_format_gives_back_what_it_took(method: str, scheme: str, ordered: bool) -> None:
    """The protocol, for every format: codes, scales, zero points and groups survive, and so do shape and names."""
    config = quantization_config(bits=4, scheme=scheme, group_size=8, ignore=[], act_order=False)
    packed: PackedFormat = open_packed(config | {"quant_method": method}, "x")
    codes, scale, zeros = (torch.as_tensor(x) for x in grid(3, (6, 24), 4, scheme, 3, torch.float16))
    index = torch.arange(24, dtype=torch.int32) % 3 if ordered else None
    given = PackedWeight(codes, scale, zeros, index, 4, scheme)
    tensors = packed.pack("a.b", given)
    assert packed.holds([*tensors, "a.norm.weight"]) == {"a.b": tuple(name for name in tensors)}
    assert packed.scheme("a.b") == (4, scheme, 8)
    assert packed.shape("a.b", tensors.__getitem__) == (6, 24)
    assert tensors[packed.scale_of("a.b")].dtype == torch.float16
    found = packed.unpack("a.b", tensors)
    for part in ("codes", "scale", "zero_point"):
        assert torch.equal(getattr(found, part), getattr(given, part))
    if index is None or found.group_index is None:
        assert found.group_index is index
    else:
        assert torch.equal(found.group_index, index)
    assert found[4:] == given[4:]
    group = torch.arange(24) // 8 if index is None else index.long()
    dense = (codes - zeros[:, group]).half() * scale[:, group]
    assert torch.equal(found.dequantize(), dense)


INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


@pytest.mark.parametrize(
    "place, fields, message",
    [
        ("group", {"input_activations": INT8}, "config_groups.group_0: input_activations = "),
        ("group", {"output_activations": INT8}, "quantizes more than weights"),
        ("config", {"kv_cache_scheme": INT8}, "kv_cache_scheme = "),
        ("config", {"transform_config": {"config_groups": {"R1": {"type": "hadamard"}}}}, "rotates activations"),
        ("config", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config = 'sparse-24-bitmask' is a"),
        ("config", {"smoothing": 0.5}, "quantization_config: smoothing = 0.5 is unknown here and may change what is"),
        ("weights", {"strategy": "block", "block_structure": [128, 128]}, "strategy = 'block' is not read"),
        ("weights", {"dynamic": True}, "dynamic = True has no fixed scales to read"),
        ("weights", {"num_bits": "4"}, "num_bits = '4' is no width of codes"),
        ("weights", {"num_bits": 16}, "num_bits = 16 is no width of codes"),
        ("group", {"weights": {"symmetric": True}}, "config_groups.group_0 lacks targets, or num_bits of its weights"),
        ("group", {"targets": None}, "config_groups.group_0 lacks targets"),
    ],
)
def test_more_than_weights_is_refused(place: str, fields: dict[str, Any], message: str) -> None:
    config = quantization_config(bits=4, scheme="symmetric-full", group_size=32, ignore=["lm_head"], act_order=False)
    group = config["config_groups"]["group_0"]
    {"config": config, "group": group, "weights": group["weights"]}[place].update(fields)
    with pytest.raises(UnreadError) as info:
        open_packed(config, "m")
    assert message in str(info.value)


def test_what_the_library_writes_has_rules() -> None:
    """Every key of the installed library's own configuration, and a sparsity that is none."""
    quantization = pytest.importorskip("compressed_tensors.quantization")
    ours = quantization_config(bits=4, scheme="symmetric-full", group_size=32, ignore=[], act_order=True)
    theirs = quantization.QuantizationConfig.model_validate(ours).model_dump(mode="json")
    theirs |= {"sparsity_config": {"format": "dense", "targets": []}, "transform_config": {}, "version": "0.20.0"}
    assert open_packed(theirs, "m").scheme("x").bits == 4
