"""GGUF files written here as llama.cpp's converters write them, read back and compared with transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from lowbit.formats.checkpoint import open_checkpoint
from lowbit.formats.configs import decoder_class
from lowbit.formats.errors import CheckpointError
from lowbit.formats.gguf import ARCHITECTURES
from lowbit.formats.gguf_config import LAYOUTS, llama3_factors
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


def stated(kind: str, config: Any) -> dict[str, Any]:
    """The metadata that llama.cpp's converter writes for a tiny model, without the prefix of its architecture."""
    found: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": getattr(config, "max_position_embeddings", 64),
        "embedding_length": 64,
        "feed_forward_length": 256 if kind in ("gpt2", "bloom") else 96,
        "attention.head_count": 4,
        "vocab_size": VOCABULARY,
    }
    if kind in ("gpt2", "bloom", "nemotron", "starcoder2", "stablelm"):
        found["attention.layer_norm_epsilon"] = 1e-5
    else:
        found["attention.layer_norm_rms_epsilon"] = config.rms_norm_eps
    if kind not in ("gpt2", "bloom"):
        found |= {"attention.head_count_kv": 2, "rope.freq_base": 10000.0}
        rope = config.rope_parameters
        head = getattr(config, "head_dim", None) or 16
        found["rope.dimension_count"] = int(head * rope.get("partial_rotary_factor", 1.0))
    if kind in ("qwen3", "gemma2", "gemma3"):
        found |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    if kind in ("gemma2", "gemma3"):
        found["attention.sliding_window"] = config.sliding_window
    if kind == "gemma2":
        found["attn_logit_softcapping"] = config.attn_logit_softcapping
        found["final_logit_softcapping"] = config.final_logit_softcapping
    if kind == "stablelm":
        found["use_parallel_residual"] = config.use_parallel_residual
    return found


TOKENS = ["<unk>", "<s>", "</s>", *(chr(33 + i) for i in range(VOCABULARY - 4)), "!!"]
TOKENIZER = {
    "ggml.model": "gpt2",
    "ggml.pre": "gpt-2",
    "ggml.tokens": TOKENS,
    "ggml.token_type": [3, 3, 3] + [1] * (VOCABULARY - 3),
    "ggml.merges": ["! !"],
    "ggml.bos_token_id": 1,
    "ggml.eos_token_id": 2,
    "ggml.unknown_token_id": 0,
    "ggml.padding_token_id": 0,
    "chat_template": "{{ messages }}",
}


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds.get(type(value), writer.add_array)(key, value)


def write_gguf(
    path: Path,
    kind: str = "llama",
    quantized: Any = F32,
    architecture: str | None = None,
    extra: dict[str, np.ndarray] | None = None,
    drop: str = "",
    config: Any = None,
    metadata: dict[str, Any] | None = None,
) -> Any:
    """A tiny model as GGUF with a byte-level BPE vocabulary; returns the model that it holds.

    ``metadata`` change what is stated, None takes a key away; those of the architecture go without its prefix.
    """
    model = tiny_model(kind, config)
    config = model.config
    arch = architecture or kind
    writer = gguf.GGUFWriter(path, arch)
    everything = stated(kind, config) | {f"tokenizer.{key}": value for key, value in TOKENIZER.items()}
    for key, value in (everything | (metadata or {})).items():
        if value is not None:
            plain = key.startswith(("tokenizer.", "general.", "split.", "adapter.", "somebody."))
            add(writer, key if plain else f"{arch}.{key}", value)
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
    for stored_name, data in (extra or {}).items():
        writer.add_tensor(stored_name, data)
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
        "architectures": ["LlamaForCausalLM"],
        "_name_or_path": "",
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

    factors = llama3_factors(16, 10000.0, 8.0).astype(np.float32)
    write_gguf(tmp_path / "m.gguf", extra={"rope_freqs.weight": factors})
    config: Any = open_checkpoint(tmp_path / "m.gguf").config
    assert config.rope_parameters["rope_type"] == "llama3"
    scaled: Any = LlamaForCausalLM(config)
    plain: Any = LlamaForCausalLM(tiny_config())
    ratio = plain.model.rotary_emb.inv_freq / scaled.model.rotary_emb.inv_freq
    assert torch.equal(ratio.to(torch.float16), torch.from_numpy(factors).to(torch.float16))
    write_gguf(tmp_path / "n.gguf", extra={"rope_freqs.weight": factors * np.float32(1.5)})
    assert "is not the rotary scaling of Llama 3" in refusal(tmp_path / "n.gguf")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(torch.arange(3, 91).reshape(2, 44)).logits
    return out


def opened(path: Path) -> torch.Tensor:
    """Logits of the model that a file is read as."""
    checkpoint = open_checkpoint(path)
    cls: Any = decoder_class(checkpoint.config)
    model = cls(checkpoint.config).eval()
    missing, unexpected = model.load_state_dict({n: checkpoint.read(n) for n in checkpoint.names()}, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    model.tie_weights()
    return logits(model)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
YARN_KEYS = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 16,
}
LINEAR_KEYS = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
BASE = {"rope_theta": 500.0}
FACTORS = {"long_factor": [1.0 + i / 4 for i in range(6)], "short_factor": [1.0 + i / 8 for i in range(6)]}


@pytest.mark.parametrize(
    "kind, settings, metadata",
    [
        ("llama", {"rope_parameters": BASE}, {"rope.freq_base": 500.0}),
        ("llama", {"rope_parameters": BASE | {"rope_type": "linear", "factor": 4.0}}, LINEAR_KEYS),
        ("llama", {"rope_parameters": BASE | {"rope_type": "linear", "factor": 4.0}}, {"rope.scale_linear": 4.0}),
        ("llama", {"rope_parameters": BASE | YARN}, YARN_KEYS),
        (
            "llama",
            {"rope_parameters": BASE | YARN | {"beta_fast": 16.0, "beta_slow": 2.0}},
            YARN_KEYS | {"rope.scaling.yarn_beta_fast": 16.0, "rope.scaling.yarn_beta_slow": 2.0},
        ),
        ("llama", {"rope_parameters": BASE}, {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}),
        ("llama", {"head_dim": 32}, {"attention.key_length": 32, "attention.value_length": 32}),
        ("llama", {"rms_norm_eps": 0.1}, {"feed_forward_length": [96, 96]}),
        ("llama", {"attention_bias": True, "mlp_bias": True}, {}),
        ("qwen2", {"rope_parameters": BASE | YARN}, YARN_KEYS),
        ("qwen3", {"head_dim": 32, "rope_parameters": BASE}, {}),
        ("starcoder2", {"rope_parameters": BASE}, {}),
        ("stablelm", {"rope_parameters": BASE | {"partial_rotary_factor": 0.5}, "use_qkv_bias": True}, {}),
        ("stablelm", {"rope_parameters": BASE, "use_parallel_residual": True}, {}),
        ("nemotron", {"rope_parameters": BASE | {"partial_rotary_factor": 0.25}, "norm_eps": 0.1}, {}),
        ("phi3", {"rope_parameters": BASE | {"partial_rotary_factor": 0.75}, "sliding_window": 8}, {}),
        (
            "phi3",
            {
                "original_max_position_embeddings": 16,
                "rope_parameters": BASE
                | FACTORS
                | {
                    "rope_type": "longrope",
                    "partial_rotary_factor": 0.75,
                    "attention_factor": 1.25,
                    "original_max_position_embeddings": 16,
                },
            },
            {
                "rope.scaling.type": "longrope",
                "rope.scaling.attn_factor": 1.25,
                "rope.scaling.original_context_length": 16,
            },
        ),
        ("gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "sliding_window": 8}, {}),
        (
            "gemma3",
            {
                "num_hidden_layers": 6,
                "layer_types": [*["sliding_attention"] * 5, "full_attention"],
                "sliding_window": 8,
                "rope_parameters": {
                    "full_attention": BASE | {"rope_type": "linear", "factor": 4.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
                },
            },
            LINEAR_KEYS | {"rope.freq_base_swa": 300.0},
        ),
        ("gpt2", {"layer_norm_epsilon": 0.1, "n_inner": 96}, {"feed_forward_length": 96}),
        ("bloom", {"layer_norm_epsilon": 0.1}, {}),
    ],
)
def test_what_the_metadata_state_is_what_is_computed(
    kind: str, settings: dict[str, Any], metadata: dict[str, Any], tmp_path: Path
) -> None:
    """Settings that no default has: the file's model computes what the model computed that was written."""
    own = {"query_pre_attn_scalar": 16} if kind.startswith("gemma") else {}
    config = type(tiny_config(kind))(**tiny_config(kind).to_dict() | own | settings)
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    keys: dict[str, Any] = {"rope.freq_base": rope["rope_theta"]} if rope else {}
    if kind == "phi3":
        keys["attention.sliding_window"] = settings.get("sliding_window", 0)
    for name in ("layer_norm_epsilon", "norm_eps", "rms_norm_eps"):
        if name in settings:
            kept = "norm_rms" if name == "rms_norm_eps" else "norm"
            keys[f"attention.layer_{kept}_epsilon"] = settings[name]
    factors = {name.removesuffix("_factor"): np.array(rope[name], np.float32) for name in FACTORS if name in rope}
    extra = {f"rope_factors_{name}.weight": value for name, value in factors.items()}
    model = write_gguf(tmp_path / "m.gguf", kind, config=config, metadata=keys | metadata, extra=extra)
    # Norms of some kinds are stored as 1 + w, rounded to float32 once.
    assert (opened(tmp_path / "m.gguf") - logits(model)).abs().max() <= 1e-5


def test_gemma_of_27b_has_a_scale_of_its_own(tmp_path: Path) -> None:
    config = tiny_config("gemma2")
    config.num_hidden_layers, config.head_dim = 46, 32
    config.layer_types = ["sliding_attention", "full_attention"] * 23
    write_gguf(tmp_path / "m.gguf", "gemma2", config=config)
    assert open_checkpoint(tmp_path / "m.gguf").config.query_pre_attn_scalar == 16  # hidden size / heads


@pytest.mark.parametrize(
    "kind, metadata, message",
    [
        ("llama", {"rope.dimension_count": 8}, "rope.dimension_count 8 of a head of width 16"),
        ("llama", {"rope.freq_base": 0.0}, "its metadata make no llama model: rope.freq_base 0.0"),
        ("llama", {"rope.freq_base": float("nan")}, "llama.rope.freq_base is nan; the file is damaged"),
        ("llama", {"attention.head_count_kv": 0}, "its configuration makes no LlamaForCausalLM"),
        ("llama", {"tokenizer.ggml.padding_token_id": 5000}, "its configuration makes no LlamaForCausalLM"),
        ("llama", {"attention.head_count": 0}, "its metadata make no llama model"),
        ("llama", {"attention.value_length": 8}, "heads of width 16 with values of 8"),
        ("llama", {"rope.scaling.type": "longrope"}, "rope.scaling.type longrope with attn_factor 1.0 is not read"),
        ("llama", {"rope.scaling.attn_factor": 1.5}, "rope.scaling.type linear with attn_factor 1.5 is not read"),
        ("llama", {"rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor = 0.5 is a mixture of scalings"),
        ("llama", {"attention.sliding_window": 8}, "llama: attention.sliding_window = 8 limits attention to a window"),
        ("llama", {"logit_scale": 0.5}, "logit_scale = 0.5 changes what this architecture computes in transformers"),
        ("llama", {"attention.causal": False}, "attention.causal = False is no decoder"),
        ("llama", {"expert_count": 8}, "expert_count = 8 is a mixture of experts"),
        ("llama", {"swin_norm": True}, "swin_norm = True is unknown here and may change what is computed"),
        ("llama", {"block_count": None}, "its metadata make no llama model: lacks 'block_count'"),
        ("llama", {"block_count": 16385}, "its metadata make no llama model: 16385 blocks in a file of"),
        ("llama", {"feed_forward_length": [96, 64]}, "intermediate_size"),
        ("gpt2", {"rope.freq_base": 10000.0}, "gpt2: rope.freq_base = 10000.0 is unknown here"),
        ("gemma3", {"attention.sliding_window": None}, "lacks 'attention.sliding_window'"),
        ("gemma3", {"attention.sliding_window_pattern": 4}, "sliding_window_pattern = 4 is not the pattern of Gemma 3"),
        ("stablelm", {"use_parallel_residual": True}, "use_parallel_residual contradicts the norms"),
        ("llama", {"general.type": "adapter"}, "general.type = 'adapter' is not a model"),
        ("llama", {"adapter.lora.alpha": 8.0}, "adapter.lora.alpha belongs to no language model"),
        ("llama", {"split.count": 2}, "split.count = 2 parts make up the model: join them"),
    ],
)
def test_metadata_that_would_be_ignored_are_refused(
    kind: str, metadata: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", kind, metadata=metadata)
    assert message in refusal(tmp_path / "m.gguf")


def test_every_architecture_has_a_configuration_and_an_order_of_values() -> None:
    assert set(LAYOUTS) == set(ARCHITECTURES)


def test_notes_of_whoever_made_the_file_are_not(tmp_path: Path) -> None:
    notes = {"general.name": "x", "somebody.said": "y", "split.count": 1, "expert_count": 0, "logit_scale": 0.0}
    write_gguf(tmp_path / "m.gguf", metadata=notes | {"rope.scaling.finetuned": True})
    open_checkpoint(tmp_path / "m.gguf")


# ---- the tokenizer --------------------------------------------------------------------------------------------------


def test_nothing_beside_the_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither code nor a tokenizer nor a template: the same file gives the same output in any directory."""
    write_gguf(tmp_path / "m.gguf")
    expected = open_checkpoint(tmp_path / "m.gguf").tokenizer()("a!!b c").input_ids
    ran = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass T: pass\n")
    settings = {"auto_map": {"AutoTokenizer": [None, "evil.T"]}, "tokenizer_class": "Evil", "bos_token": "!"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text("evil")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "auto_map": {"AutoConfig": "evil.T"}}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    tokenizer = open_checkpoint(tmp_path / "m.gguf").tokenizer()
    assert tokenizer("a!!b c").input_ids == expected
    assert (tokenizer.chat_template, tokenizer.bos_token) == ("{{ messages }}", "<s>")
    assert not ran.exists()


def test_a_file_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "m.gguf")
    parsed: list[Any] = []
    plain = gguf.GGUFReader.__init__

    def counted(self: Any, *arguments: Any) -> None:
        parsed.append(arguments)
        plain(self, *arguments)

    monkeypatch.setattr(gguf.GGUFReader, "__init__", counted)
    for name in ("reader.read_gguf_metadata", "reader.GgufHeader.from_file"):
        monkeypatch.setattr(f"transformers.integrations.gguf.{name}", lambda *_: pytest.fail("parsed again"))
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    checkpoint.tokenizer()
    (tmp_path / "out").mkdir()
    checkpoint.save_side_files(tmp_path / "out")
    assert len(parsed) == 1


@pytest.mark.parametrize(
    "metadata, text, pieces",
    [
        ({"ggml.pre": "gpt-2"}, "!!!", ["!!", "!"]),
        ({"ggml.pre": "smollm", "ggml.merges": ["1 2"]}, "12", ["1", "2"]),  # digits stay alone
        ({"ggml.pre": "gpt-2", "ggml.merges": ["1 2"]}, "12", ["12"]),
        ({"ggml.pre": "llama-bpe"}, "!!", ["<s>", "!!"]),  # begins with BOS where a file does not say
        ({"ggml.pre": "llama-bpe", "ggml.add_bos_token": False}, "!!", ["!!"]),
        ({"ggml.pre": "llama-bpe", "ggml.merges": ["1 2"]}, "!!", ["<s>", "!!"]),  # whole words are looked up first
        ({"ggml.pre": "bloom"}, "!!", ["!!"]),
        ({"ggml.pre": "stablelm2", "ggml.merges": ["1 2"]}, "12", ["1", "2"]),
        ({"ggml.add_bos_token": True, "ggml.add_eos_token": True}, "!", ["<s>", "!", "</s>"]),
    ],
)
def test_text_is_split_as_the_file_says(metadata: dict[str, Any], text: str, pieces: list[str], tmp_path: Path) -> None:
    tokens = ["12" if token == "`" and "ggml.merges" in metadata else token for token in TOKENS]
    changed = {"ggml.tokens": tokens} | metadata
    write_gguf(tmp_path / "m.gguf", metadata={f"tokenizer.{key}": value for key, value in changed.items()})
    tokenizer = open_checkpoint(tmp_path / "m.gguf").tokenizer()
    assert tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids) == pieces


SENTENCES = {
    "ggml.model": "llama",
    "ggml.pre": "default",
    "ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", *(f"<0x{i:02X}>" for i in range(VOCABULARY - 7))],
    "ggml.token_type": [2, 3, 3, 1, 1, 1, 1, *([6] * (VOCABULARY - 7))],
    "ggml.scores": [-float(i) for i in range(VOCABULARY)],
    "ggml.merges": None,
}


@pytest.mark.parametrize(
    "metadata, pieces",
    [
        ({}, ["<s>", "▁a", "▁", "b"]),
        ({"ggml.add_space_prefix": False}, ["<s>", "a", "▁", "b"]),
        ({"ggml.add_bos_token": False}, ["▁a", "▁", "b"]),
    ],
)
def test_sentencepiece_begins_as_the_file_says(metadata: dict[str, Any], pieces: list[str], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    keys = {f"tokenizer.{key}": value for key, value in (SENTENCES | metadata).items()}
    write_gguf(tmp_path / "m.gguf", metadata=keys)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    tokenizer = checkpoint.tokenizer()
    ids = tokenizer("a b").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == pieces
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a b"
    (tmp_path / "out").mkdir()
    checkpoint.save_side_files(tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("a b").input_ids == ids
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 has no other of its names


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({"ggml.pre": "default"}, "tokenizer.ggml.pre = 'default' is a way to split text that is not known here"),
        ({"ggml.pre": None}, "tokenizer.ggml.pre = '' is a way to split text"),
        ({"ggml.model": "t5"}, "ggml.model = 't5' is a kind of tokenizer that is not read"),
        ({"ggml.remove_extra_whitespaces": True}, "remove_extra_whitespaces = True rewrites the text"),
        ({"ggml.lowercase": True}, "tokenizer: ggml.lowercase = True is unknown here"),
        ({"ggml.bos_token_id": 5000}, "its tokenizer cannot be rebuilt"),
        ({"ggml.tokens": None}, "its tokenizer cannot be rebuilt"),
    ],
)
def test_tokenizers_that_would_be_another_are_refused(metadata: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", metadata={f"tokenizer.{key}": value for key, value in metadata.items()})
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError) as info:
        checkpoint.tokenizer()
    assert message in str(info.value)


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
