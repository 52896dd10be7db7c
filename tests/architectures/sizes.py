"""Small configurations of every decoder type that the installed transformers has.

One table of small values serves all types: of a class, those options are set that it has. What a few types need
besides stands in a second table.
"""

from __future__ import annotations

from typing import Any

import transformers

VOCABULARY = 264  # 256 bytes and a few special tokens
HIDDEN = 32

_SMALL: dict[str, Any] = {
    # width
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "lru_width", "attention_hidden_size"), HIDDEN),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("encoder_ffn_dim", "dff", "d_ff", "d_inner", "dim_ff", "intermediate_dim"), 64),
    "word_embed_proj_dim": HIDDEN,
    "emb_dim": HIDDEN,
    "embedding_size": HIDDEN,
    # depth
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    # heads
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "attention_heads",
            "swa_num_attention_heads",
            "linear_num_heads",
        ),
        4,
    ),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(
        ("head_dim", "dim_head", "d_kv", "kv_channels", "attention_head_size", "swa_head_dim", "linear_head_dim"), 8
    ),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 16),
    # tokens
    "vocab_size": VOCABULARY,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "pad_token_id": 0,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "context_length"), 128),
    **dict.fromkeys(("sliding_window", "attention_window_size", "window_size", "local_window_size"), 8),
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 16,
    # experts
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "top_k_experts", "moe_topk"), 2),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "expert_intermediate_size"), 32),
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    # states
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size", "mamba_num_heads", "mamba_n_heads"), 8),
    "mamba_d_head": 8,
    "mamba_head_dim": 8,
    "mamba_n_groups": 1,
    "mamba_d_ssm": 64,
    "mamba_chunk_size": 8,
    "use_mamba_kernels": False,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}

_VISION: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim", "out_hidden_size", "output_hidden_size"), HIDDEN),
    **dict.fromkeys(("intermediate_size", "mlp_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "depth", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads"), 4),
    "image_size": 28,
    "patch_size": 14,
}

_MLA = {"num_key_value_heads": 4, "head_dim": 16}  # latent attention has as many keys as queries
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
_TEXT_MROPE: dict[str, Any] = {"text_config": _MROPE}
_MORE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note"), _MLA),
    **dict.fromkeys(("dots3_note_text", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash", "minicpm3", "youtu"), _MLA),
    "mistral4": {"num_key_value_heads": 4, "head_dim": 32},
    **{kind: {"text_config": _MLA} for kind in ("kimi_k25", "mistral_large4")},
    **dict.fromkeys(("glm46v", "glm4v", "glm_ocr", "glmga", "paddleocr_vl", "qwen2_vl", "qwen2_5_vl"), _TEXT_MROPE),
    "qwen2_5_omni_thinker": _TEXT_MROPE,
    "glm4v_moe": {"text_config": _MROPE | {"partial_rotary_factor": 1.0}},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "zamba": {
        "num_hidden_layers": 4,
        "layer_types": ["mamba", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "hybrid_layer_ids": [1, 3],
        "num_mem_blocks": 1,
        "num_hidden_layers": 4,
        "layer_types": ["mamba", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zaya": {"num_experts_per_tok": 1},
    "xglm": {"num_layers": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "intermediate_size": [64] * 4,
        "vocab_size_per_layer_input": 264,
        "hidden_size_per_layer_input": 16,
        "laurel_rank": 8,
    },
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": dict.fromkeys(("sliding_attention", "full_attention"), _MROPE["rope_parameters"]),
    },
    "deepseek_v4": {"num_key_value_heads": 1, "head_dim": 32, "q_lora_rank": 32},
    "gemma4": {"text_config": {"global_head_dim": 8}},
    "gemma4_text": {"global_head_dim": 8},
    "cohere_compass": {
        "text_config": {
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": dict.fromkeys(("sliding_attention", "full_attention"), _MROPE["rope_parameters"]),
        }
    },
    "cosmos3_edge": _TEXT_MROPE,
    "ernie4_5_vl_moe": {"text_config": {"moe_intermediate_size": [32, 32]}},
    "glm5_next": {"text_config": _MLA | {"qk_rope_head_dim": 0}},
    "inkling2": {"vision_config": {"text_hidden_size": 32}},
    "florence2": {"vision_config": None},
    "emu3": {"vocabulary_map": {"<image>": 260}},
    "chameleon": {"vocabulary_map": {"<image>": 260}},
    **{kind: {"text_config": {"pad_token_id": 0}} for kind in ("kosmos-2", "kosmos-2.5")},
}


_CONTRADICTS = "its configuration contradicts itself at this size"
NOT_TRIED: dict[str, str] = {
    **dict.fromkeys(("deepseek_ocr2", "dots3_note", "granite4_vision", "molmo2", "muse_spark"), _CONTRADICTS),
    **dict.fromkeys(("nemotron_h_omni", "ernie4_5_vl_moe"), _CONTRADICTS),
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), "drafts for another model, not alone"),
    "shieldgemma2": "transformers does not read back what it writes",
}
"""Types without a small model, and why."""


def small_config(kind: str) -> Any:
    """A configuration of ``kind`` that builds a model of a few thousand parameters."""
    cls = transformers.models.auto.configuration_auto.CONFIG_MAPPING[kind]
    values, more = _small(cls, _SMALL), _MORE.get(kind, {})
    for name, value in more.items():
        values[name] = values[name] | value if isinstance(value, dict) and name in values else value
    return cls(**{name: value for name, value in values.items() if value is not None})


def _small(cls: Any, table: dict[str, Any]) -> dict[str, Any]:
    plain = cls()
    known = set(plain.to_dict()) | set(cls.attribute_map)
    values = {name: value for name, value in table.items() if name in known}
    for name, part in getattr(cls, "sub_configs", {}).items():
        if part is transformers.AutoConfig:
            default = getattr(plain, name, None)
            if default is None:
                continue
            part = type(default)
        text = "text" in name or "decoder" in name or "llm" in name
        inner = _small(part, _SMALL if text else _VISION)
        values[name] = inner | {"model_type": part.model_type}
    return values
