"""GGUF files written here as llama.cpp's converters write them, read back and compared with transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from lowbit.formats.checkpoint import open_checkpoint
from lowbit.formats.errors import CheckpointError
from lowbit.formats.gguf import ARCHITECTURES, _llama3_factors
from lowbit.models.machine import storage_dtype

from .conftest import VOCABULARY, tiny_config, tiny_model

F32 = gguf.GGMLQuantizationType.F32
Change = Callable[[str, np.ndarray], np.ndarray]


def permute(w: np.ndarray, heads: int) -> np.ndarray:
    """What the LLaMA converter does to q and k: halves of each head become pairs."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def to_llama(name: str, w: np.ndarray) -> np.ndarray:
    return permute(w, 4) if ".attn_q." in name else permute(w, 2) if ".attn_k." in name else w


def to_gpt2(name: str, w: np.ndarray) -> np.ndarray:
    turned = (".attn_qkv.weight", ".attn_output.weight", ".ffn_up.weight", ".ffn_down.weight")
    return w.T if name.endswith(turned) else w


def to_gemma(name: str, w: np.ndarray) -> np.ndarray:
    return w + 1 if name.endswith("norm.weight") else w


def same(name: str, w: np.ndarray) -> np.ndarray:
    return w


def to_bloom(name: str, w: np.ndarray) -> np.ndarray:
    if ".attn_qkv." not in name:
        return w
    parts = w.reshape(4, 3, 16, *w.shape[1:])  # heads, q k v, width of a head
    return np.ascontiguousarray(parts.swapaxes(0, 1)).reshape(w.shape)


CONVERT: dict[str, Change] = dict.fromkeys(ARCHITECTURES, same) | {
    "llama": to_llama,
    "gpt2": to_gpt2,
    "gemma2": to_gemma,
    "gemma3": to_gemma,
    "nemotron": to_gemma,
    "bloom": to_bloom,
}
OFFSET = ("gemma2", "gemma3", "nemotron")  # files hold 1 + w for their norms


def write_gguf(
    path: Path,
    kind: str = "llama",
    quantized: Any = F32,
    architecture: str | None = None,
    extra: dict[str, np.ndarray] | None = None,
    drop: str = "",
    config: Any = None,
) -> Any:
    """A tiny model as GGUF with a byte-level BPE vocabulary; returns the model that it holds."""
    model = tiny_model(kind, config)
    config = model.config
    arch = architecture or kind
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(getattr(config, "max_position_embeddings", 64))
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(256 if kind in ("gpt2", "bloom") else 96)
    writer.add_head_count(4)
    if kind in ("gpt2", "bloom", "nemotron", "starcoder2", "stablelm"):
        writer.add_layer_norm_eps(1e-5)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if kind not in ("gpt2", "bloom"):
        writer.add_head_count_kv(2)
        writer.add_rope_freq_base(10000.0)
        writer.add_rope_dimension_count(16)
    if kind in ("qwen3", "gemma2", "gemma3"):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if kind in ("gemma2", "gemma3"):
        writer.add_sliding_window(config.sliding_window)
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_vocab_size(VOCABULARY)
    tokens = ["<unk>", "<s>", "</s>", *(chr(33 + i) for i in range(VOCABULARY - 4)), "!!"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (VOCABULARY - 3))
    writer.add_token_merges(["! !"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_chat_template("{{ messages }}")
    table = gguf.get_tensor_name_map(
        next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == kind), config.num_hidden_layers
    )
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        module, _, suffix = name.rpartition(".")
        base = table.get_name(module) or table.get_name(module.removeprefix("transformer."))
        stored = f"{base}.{suffix}"
        if stored == drop:
            continue
        data = np.ascontiguousarray(CONVERT[kind](stored, value.numpy()))
        if data.ndim == 2 and quantized != F32:
            writer.add_tensor(stored, gguf.quants.quantize(data, quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(stored, data)
    for stored, data in (extra or {}).items():
        writer.add_tensor(stored, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_unquantized_files_give_back_every_parameter(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    model = write_gguf(path, kind)
    checkpoint = open_checkpoint(path)
    assert checkpoint.kind == "gguf"
    state = model.state_dict()
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    assert set(checkpoint.names()) == set(state) - tied
    for name in checkpoint.names():
        ours = checkpoint.read(name)
        assert ours.dtype == checkpoint.dtype(name) == torch.float32
        assert checkpoint.shape(name) == tuple(ours.shape)
        if kind in OFFSET and name.endswith("norm.weight"):
            assert torch.equal(ours, (state[name] + 1) - 1)  # the file holds 1 + w
        else:
            assert torch.equal(ours, state[name])
    assert checkpoint.config.architectures == [type(model).__name__]
    assert storage_dtype(checkpoint) == torch.float32


@pytest.mark.parametrize(
    "kind, quantized",
    [
        *((kind, "Q8_0") for kind in sorted(ARCHITECTURES)),
        *(("llama", kind) for kind in ("Q4_1", "Q5_0", "F16", "BF16")),
    ],
)
def test_quantized_files_equal_what_transformers_loads(kind: str, quantized: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    path = tmp_path / "m.gguf"
    write_gguf(path, kind, gguf.GGMLQuantizationType[quantized])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).state_dict()
    checkpoint = open_checkpoint(path)
    for name in checkpoint.names():
        assert torch.equal(checkpoint.read(name), theirs[name])
    rows = checkpoint.read(checkpoint.names()[0], (4, 7))
    assert torch.equal(rows, theirs[checkpoint.names()[0]][4:7])
    # The values are float32; what they are stored as again is no wider than what the file holds of them.
    assert storage_dtype(checkpoint) == (torch.float16 if quantized == "F16" else torch.bfloat16)


def test_context_length_sizes_learned_positions(tmp_path: Path) -> None:
    config = tiny_config("gpt2")
    config.n_positions = 32
    model = write_gguf(tmp_path / "m.gguf", "gpt2", config=config)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert torch.equal(checkpoint.read("transformer.wpe.weight"), model.state_dict()["transformer.wpe.weight"])


def test_head_width_that_is_not_the_default(tmp_path: Path) -> None:
    config = tiny_config("qwen3")
    config.head_dim = 16
    model = write_gguf(tmp_path / "m.gguf", "qwen3", config=config)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(checkpoint.read(name), model.state_dict()[name])


def test_config_tokenizer_and_side_files(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    path = tmp_path / "m.gguf"
    write_gguf(path)
    checkpoint = open_checkpoint(str(path))
    theirs = AutoConfig.from_pretrained(tmp_path, gguf_file="m.gguf").to_dict()
    assert {k: v for k, v in checkpoint.config.to_dict().items() if theirs.get(k) != v} == {
        "architectures": ["LlamaForCausalLM"]
    }
    out = tmp_path / "out"
    out.mkdir()
    checkpoint.save_side_files(out)
    again = AutoTokenizer.from_pretrained(out)
    text = "a!!b c"
    assert again(text).input_ids == checkpoint.tokenizer()(text).input_ids
    assert again(text).input_ids == AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")(text).input_ids
    assert again.chat_template == "{{ messages }}"
    assert not (out / "config.json").exists()
    assert list(checkpoint.fingerprint()) == ["m.gguf"]


def test_llama3_rotary_scaling_returns_to_the_configuration(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    factors = _llama3_factors(16, 10000.0, 8.0).astype(np.float32)
    write_gguf(tmp_path / "m.gguf", extra={"rope_freqs.weight": factors})
    config: Any = open_checkpoint(tmp_path / "m.gguf").config
    assert config.rope_parameters["rope_type"] == "llama3"
    scaled: Any = LlamaForCausalLM(config)
    plain: Any = LlamaForCausalLM(tiny_config())
    ratio = plain.model.rotary_emb.inv_freq / scaled.model.rotary_emb.inv_freq
    assert torch.equal(ratio.to(torch.float16), torch.from_numpy(factors).to(torch.float16))
    write_gguf(tmp_path / "n.gguf", extra={"rope_freqs.weight": factors * np.float32(1.5)})
    assert "is not the rotary scaling of Llama 3" in refusal(tmp_path / "n.gguf")


# ---- refusals -------------------------------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as info:
        open_checkpoint(path)
    return str(info.value)


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert refusal(path).startswith(f"{path}: truncated or not a GGUF file (")
    path.write_bytes(b"not a model at all, only text")
    assert refusal(path) == f"{path}: truncated or not a GGUF file (GGUF magic invalid); download it again"


def test_a_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path)
    checkpoint = open_checkpoint(path)
    path.write_bytes(path.read_bytes()[:8000])
    with pytest.raises(CheckpointError, match="replaced or changed since it was opened"):
        checkpoint.read("model.layers.1.mlp.down_proj.weight")


def test_missing_surplus_and_unknown(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, drop="blk.1.ffn_up.weight")
    assert refusal(path) == (f"{path}: no tensor for parameter model.layers.1.mlp.up_proj.weight of LlamaForCausalLM")
    write_gguf(path, extra={"blk.0.novelty.weight": np.ones(4, np.float32)})
    assert refusal(path) == f"{path}: tensor blk.0.novelty.weight belongs to no parameter of LlamaForCausalLM"
    write_gguf(path, architecture="mamba")
    assert refusal(path) == (
        f"{path}: GGUF architecture 'mamba' is not read; those that are: {', '.join(sorted(ARCHITECTURES))}"
    )
    write_gguf(path)
    with pytest.raises(CheckpointError, match="no tensor novelty"):
        open_checkpoint(path).read("novelty")


def test_a_type_without_numpy_code_is_named(tmp_path: Path) -> None:
    from lowbit.formats.gguf import GgufCheckpoint

    path = tmp_path / "m.gguf"
    write_gguf(path)
    checkpoint = open_checkpoint(path)
    assert isinstance(checkpoint, GgufCheckpoint)
    stored = "blk.0.attn_q.weight"
    checkpoint._file.tensors[stored] = checkpoint._file.tensors[stored]._replace(kind=gguf.GGMLQuantizationType.I16)
    with pytest.raises(CheckpointError, match=r"tensor blk\.0\.attn_q\.weight has type I16"):
        checkpoint.read("model.layers.0.self_attn.q_proj.weight")


@pytest.mark.model
def test_smollm2_equals_what_transformers_loads(smollm2: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint = open_checkpoint(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32)
    theirs = model.state_dict()
    assert set(theirs) - set(checkpoint.names()) == {"lm_head.weight"}
    for name in checkpoint.names():
        assert torch.equal(checkpoint.read(name), theirs[name])
    text = "def main():\n    return 12345  # naïve café\n"
    tokenizer = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    assert checkpoint.tokenizer()(text).input_ids == tokenizer(text).input_ids
