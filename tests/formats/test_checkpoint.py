"""Opening a model: what is read, and what each kind of bad input says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowbit.formats.check import check_directory
from lowbit.formats.checkpoint import open_checkpoint, weights_hash
from lowbit.formats.errors import CheckpointError
from lowbit.formats.safetensors_file import SafetensorsFile, write_tensors
from lowbit.models.decoder import Decoder
from lowbit.models.policy import Reason, Unsupported, causal_class
from lowbit.runs import files
from lowbit.runs.errors import RecipeError
from lowbit.runs.files import digest, write_bytes

from .test_gguf import write_gguf

Write = Callable[..., Path]
SHARD = "200KB"


def test_every_tensor_equals_what_transformers_saved(llama: Any, write_model: Write) -> None:
    checkpoint = open_checkpoint(write_model(llama))
    state = llama.state_dict()
    assert checkpoint.kind == "safetensors"
    assert checkpoint.quantization is None
    assert sorted(checkpoint.names()) == sorted(state)
    for name in checkpoint.names():
        assert torch.equal(checkpoint.read(name), state[name])
        assert checkpoint.shape(name) == tuple(state[name].shape)
        assert checkpoint.dtype(name) == state[name].dtype
    rows = checkpoint.read("model.embed_tokens.weight", (5, 9))
    assert torch.equal(rows, state["model.embed_tokens.weight"][5:9])
    assert checkpoint.tokenizer()("w3 w90").input_ids == [3, 90]


def test_shards_are_found_through_the_index(llama: Any, write_model: Write) -> None:
    folder = write_model(llama, max_shard_size=SHARD)
    assert len(list(folder.glob("*.safetensors"))) > 1
    checkpoint = open_checkpoint(str(folder))
    assert all(torch.equal(checkpoint.read(name), value) for name, value in llama.state_dict().items())
    (folder / "model.safetensors.index.json").unlink()
    assert sorted(open_checkpoint(folder).names()) == sorted(llama.state_dict())


def test_bfloat16_is_read_as_stored(llama: Any, write_model: Write) -> None:
    folder = write_model(llama)
    weights = {name: value.to(torch.bfloat16) for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    checkpoint = open_checkpoint(folder)
    assert all(torch.equal(checkpoint.read(name), value) for name, value in weights.items())


def test_side_files_are_copied_byte_for_byte(llama: Any, write_model: Write, tmp_path: Path) -> None:
    folder = write_model(llama)
    out = tmp_path / "out"
    out.mkdir()
    open_checkpoint(folder).save_side_files(out)
    assert {"tokenizer.json", "tokenizer_config.json"} <= {path.name for path in out.iterdir()}
    assert not (out / "config.json").exists()
    assert all(path.read_bytes() == (folder / path.name).read_bytes() for path in out.iterdir())


def test_fingerprint_and_weights_hash_follow_the_content(llama: Any, write_model: Write) -> None:
    folder = write_model(llama)
    first, base = open_checkpoint(folder).fingerprint(), weights_hash(folder)
    assert first["model.safetensors"] == digest(folder / "model.safetensors")
    (folder / "generation_config.json").write_text("{}")
    assert open_checkpoint(folder).fingerprint() != first
    assert weights_hash(folder) == base
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert weights_hash(folder) != base


# ---- bad input: one sentence each -----------------------------------------------------------------------------------


def refusal(source: str | Path) -> str:
    with pytest.raises(CheckpointError) as info:
        open_checkpoint(source)
    return str(info.value)


def test_missing_shard(llama: Any, write_model: Write) -> None:
    folder = write_model(llama, max_shard_size=SHARD)
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.unlink()
    assert refusal(folder) == (
        f"{shard}: missing shard; model.safetensors.index.json lists it, so download or copy it again"
    )
    (folder / "model.safetensors.index.json").unlink()
    assert "and no model.safetensors.index.json; download the rest" in refusal(folder)


def test_truncated_file(llama: Any, write_model: Write) -> None:
    folder = write_model(llama)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    message = refusal(folder)
    assert message.startswith(f"{path}: truncated: tensor ")
    assert message.endswith(f"ends at byte {len(content)}, the file has {len(content) - 10}; download it again")
    path.write_bytes(content[:100])
    assert refusal(folder) == (
        f"{path}: truncated or not a safetensors file: 100 bytes do not hold its header; download it again"
    )
    path.write_bytes((4).to_bytes(8, "little") + b"nope")
    assert refusal(folder) == f"{path}: not a safetensors file: its header is not valid JSON"


def test_header_that_contradicts_itself(tmp_path: Path) -> None:
    raw = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(12))
    with pytest.raises(CheckpointError, match=r"should take 16 bytes, its header says 12; the file is damaged"):
        SafetensorsFile(tmp_path / "x.safetensors")


def test_absent_tensor_names_its_neighbours(llama: Any, write_model: Write) -> None:
    folder = write_model(llama)
    with pytest.raises(CheckpointError, match=r"no tensor model\.norm\.weights; it has model\.norm\.weight"):
        open_checkpoint(folder).read("model.norm.weights")


def test_index_that_misplaces_a_tensor(llama: Any, write_model: Write) -> None:
    folder = write_model(llama, max_shard_size=SHARD)
    index = folder / "model.safetensors.index.json"
    listing = json.loads(index.read_text())
    shards = sorted(set(listing["weight_map"].values()))
    name = next(n for n, shard in listing["weight_map"].items() if shard == shards[0])
    listing["weight_map"][name] = shards[1]
    index.write_text(json.dumps(listing))
    assert refusal(folder) == (
        f"{folder / shards[1]}: lacks tensor {name}, which model.safetensors.index.json places there"
    )
    listing["weight_map"][name] = "../elsewhere.safetensors"
    index.write_text(json.dumps(listing))
    assert refusal(folder) == f"{index}: names a file outside its directory: ../elsewhere.safetensors"


def test_pickles_are_refused(llama: Any, write_model: Write) -> None:
    folder = write_model(llama)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = refusal(folder)
    assert message.startswith(f"{folder / 'pytorch_model.bin'}: a pickle, which can run any code when it is opened")
    assert refusal(folder / "pytorch_model.bin") == message


def test_places_where_no_model_is(tmp_path: Path, llama: Any, write_model: Write) -> None:
    assert refusal(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'}: no such file or directory"
    assert "no model.safetensors" in refusal(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "an adapter directory, not a model" in refusal(tmp_path)
    folder = write_model(llama)
    assert refusal(folder / "model.safetensors").endswith(f"not this file; pass its directory {folder}")
    (folder / "config.json").unlink()
    assert refusal(folder) == f"{folder}: no config.json"
    assert "as a hub id it cannot be downloaded" in refusal("no-such-organization/no-such-model")


@pytest.mark.parametrize(
    "config, name",
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "BertForMaskedLM"),
        ({"model_type": "bert"}, "BertConfig"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "T5ForConditionalGeneration"),
        ({"model_type": "vit", "architectures": ["ViTForImageClassification"]}, "ViTForImageClassification"),
    ],
)
def test_models_that_are_not_decoders(config: dict[str, Any], name: str, llama: Any, write_model: Write) -> None:
    folder = write_model(llama)
    (folder / "config.json").write_text(json.dumps(config))
    opened = open_checkpoint(folder)
    with pytest.raises(Unsupported) as info:
        causal_class(opened.config, str(folder))
    assert info.value.reason is Reason.NOT_A_DECODER
    assert str(info.value) == (
        f"{folder}: architecture {name} is not a decoder-only language model (…ForCausalLM) of transformers"
    )


@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM", "T5ForConditionalGeneration", "ViTModel"])
def test_models_of_any_kind_are_opened(kind: str, tmp_path: Path) -> None:
    """Encoders, encoder-decoders and vision models: names, shapes and values are those of the file."""
    import transformers

    sizes: dict[str, dict[str, Any]] = {
        "Bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64},
        "T5": {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_ff": 32, "d_kv": 8, "vocab_size": 64},
        "ViT": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16, "patch_size": 8},
    }
    family = next(family for family in sizes if kind.startswith(family))
    config = getattr(transformers, f"{family}Config")(**sizes[family])
    getattr(transformers, kind)(config).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config.architectures == [kind]
    state = load_file(tmp_path / "model.safetensors")
    assert sorted(checkpoint.names()) == sorted(state)
    for name in checkpoint.names():
        assert checkpoint.shape(name) == tuple(state[name].shape)
        assert checkpoint.dtype(name) == state[name].dtype
        assert torch.equal(checkpoint.read(name), state[name])


@pytest.mark.parametrize("kind", ["GPTNeoX", "OPT", "Phi", "Mistral", "Qwen3", "GPT2", "Bloom", "Falcon", "StableLm"])
def test_decoders_of_many_families_are_accepted(kind: str) -> None:
    import transformers

    config = getattr(transformers, f"{kind}Config")()
    cls = causal_class(config, "x")
    assert cls.__name__.startswith(kind)
    config.architectures = [cls.__name__]
    assert causal_class(config, "x") is cls


def test_unknown_architecture_and_remote_code(llama: Any, write_model: Write) -> None:
    folder = write_model(llama)
    (folder / "config.json").write_text(json.dumps({"model_type": "novel", "auto_map": {"AutoConfig": "x.Y"}}))
    assert "never runs code shipped with a model" in refusal(folder)


def test_other_quantizations_are_named(llama: Any, write_model: Write) -> None:
    folder = write_model(llama)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (folder / "config.json").write_text(json.dumps(config))
    assert refusal(folder) == (
        f"{folder}: already quantized by gptq, which lowbit does not read; start from the full-precision model"
    )


# ---- writing --------------------------------------------------------------------------------------------------------


def test_written_files_are_those_of_the_library_and_always_the_same(tmp_path: Path) -> None:
    tensors = {
        "b.weight": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "a": torch.tensor([1, 2], dtype=torch.int64),
        "empty": torch.zeros(0, 4),
        "c": torch.tensor([[1.5]]),
        "scalar": torch.tensor(7, dtype=torch.int32),
    }
    path = tmp_path / "x.safetensors"
    write_tensors(path, tensors, metadata={"z": "1", "a": "2"})
    loaded = load_file(path)
    assert sorted(loaded) == sorted(tensors)
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())
    again = tmp_path / "y.safetensors"
    write_tensors(again, dict(reversed(list(tensors.items()))), metadata={"a": "2", "z": "1"})
    assert path.read_bytes() == again.read_bytes()
    assert SafetensorsFile(path).metadata == {"a": "2", "z": "1"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.safetensors", "y.safetensors"]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")

    def full(path: Path, mode: str) -> Any:
        path.touch()
        return open("/dev/full", mode.replace("x", "w"))

    monkeypatch.setattr(files, "open", full, raising=False)
    with pytest.raises(RecipeError, match="no space left"):
        write_tensors(tmp_path / "x.safetensors", {"w": torch.zeros(1 << 16)})
    with pytest.raises(RecipeError, match="no space left"):
        write_bytes(tmp_path / "config.json", b"{}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "key", ["_attn_implementation", "attn_implementation", "_experts_implementation", "experts_implementation"]
)
def test_a_configuration_never_chooses_a_kernel(
    key: str, llama: Any, write_model: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.modeling_utils as loading

    folder = write_model(llama)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: "somebody/kernel"}))
    monkeypatch.setattr(loading, "lazy_import_flash_attention", lambda *_, **__: pytest.fail("a kernel of the hub"))
    assert all(verdict.passed for verdict in check_directory(folder, ["transformers", "peft"])[1])
    assert Decoder(open_checkpoint(folder)).inventory.attention == "sdpa"


def test_code_beside_a_model_is_never_run(
    llama: Any, write_model: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = write_model(llama)
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass T: pass\n")
    names = {"AutoConfig": "evil.T", "AutoModelForCausalLM": "evil.T", "AutoTokenizer": ["evil.T", "evil.T"]}
    for name in ("config.json", "tokenizer_config.json"):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(settings | {"auto_map": names, "custom_generate": "evil.py"}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tokenizer()("w5 w6").input_ids == [5, 6]
    Decoder(checkpoint)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "Evil"}))
    with pytest.raises(CheckpointError, match="its tokenizer cannot be loaded"):
        checkpoint.tokenizer()
    (folder / "config.json").write_text(json.dumps({"model_type": "novel", "auto_map": names}))
    with pytest.raises(CheckpointError, match="never runs code shipped with a model"):
        open_checkpoint(folder)
    assert not ran.exists()


def test_the_tokenizer_is_that_of_the_directory(llama: Any, write_model: Write, tmp_path: Path) -> None:
    write_gguf(tmp_path / "other.gguf")
    folder = write_model(llama)
    (folder / "tokenizer.json").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    place = {"gguf_file": str(tmp_path / "other.gguf")}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | place))
    with pytest.raises(CheckpointError, match="its tokenizer cannot be loaded"):
        open_checkpoint(folder).tokenizer()
