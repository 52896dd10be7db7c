"""Tiny models with random weights and a byte-level tokenizer, saved as anyone would save theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

HIDDEN = 32
VOCABULARY = 264  # 256 bytes and a few special tokens

_EXPERTS = {"num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_SIZES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "qwen2": {
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "layer_types": ["full_attention", "sliding_attention"],
        "sliding_window": 6,
    },
    "mistral": {"num_key_value_heads": 2, "sliding_window": 8},
    "phi": {},
    "gpt2": {},
    "opt": {"word_embed_proj_dim": 16, "ffn_dim": 64},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6},
    "gemma3n_text": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_kv_shared_layers": 1,
        "layer_types": ["full_attention", "full_attention"],
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": VOCABULARY,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "gpt_neox": {},
    "gpt_bigcode": {},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": _EXPERTS | {"shared_expert_intermediate_size": 32},
    "qwen3_moe": _EXPERTS,
    "laguna": _EXPERTS
    | {
        "head_dim": 8,
        "shared_expert_intermediate_size": 32,
        "mlp_layer_types": ["dense", "sparse"],
        "layer_types": ["full_attention", "full_attention"],
        "num_attention_heads_per_layer": [4, 4],
    },
    "granitemoe": {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    "llama4_text": {"num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2, "moe_layers": [0, 1]},
    "gpt_oss": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "intermediate_size": 32,
    },
}


def tiny_config(kind: str, blocks: int = 2, **changes: Any) -> Any:
    """Configuration of a model with hidden size 32."""
    names = {
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": blocks,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "vocab_size": VOCABULARY,
        "bos_token_id": 256,
        "eos_token_id": 256,
        "pad_token_id": 257,
        "tie_word_embeddings": kind in {"gpt2", "opt", "gemma3_text"},
    }
    if kind in ("gpt2", "gpt_bigcode"):
        for old, new in {
            "hidden_size": "n_embd",
            "intermediate_size": "n_inner",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "max_position_embeddings": "n_positions",
        }.items():
            names[new] = names.pop(old)
    elif kind == "opt":
        names.pop("intermediate_size")
    names |= _SIZES[kind] | changes
    return transformers.AutoConfig.for_model(kind, **names)


def byte_tokenizer() -> Any:
    """One token per byte: no training, no download."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", pad_token="<pad>"
    )


def special_tokenizer(single: str) -> Any:
    """The byte tokenizer, with special tokens around a text: ``"<s> $A"``."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    names = [name for name in single.split() if name != "$A"]
    ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in names]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=ids)
    return tokenizer


def save_tiny(folder: Path, kind: str = "llama", *, seed: int = 0, dtype: Any = None, **changes: Any) -> Path:
    """Write a model of ``kind`` with random weights and its tokenizer; returns the folder."""
    torch.manual_seed(seed)
    config = tiny_config(kind, **changes)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype or torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.25 if "embed" in name or "wte" in name else 0.12)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.05)
    model.config.dtype = dtype or torch.float32
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


TEXT = "\n".join(
    f"Line {number}: the quick brown fox jumps over {number * number % 97} lazy dogs, and then it rests a little."
    for number in range(60)
)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
