"""The configuration that the metadata of a GGUF file states, key by key: applied, without effect, or refused.

Names and defaults are those of llama.cpp, which defines the format: where a file is silent, what llama.cpp computes
then is written into the configuration, never the default of a class of ``transformers``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import CheckpointError, UnreadError
from .keys import Rule, applied, harmless, only, require_known

__all__ = ["LAYOUTS", "ROPE_TENSORS", "model_settings"]

F32 = npt.NDArray[np.float32]
Stated = dict[str, Any]  # metadata of the architecture, without its prefix

ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that belong to the configuration: rotary scalings that are no formula of one factor."""

_THETA = 10000.0  # llama.cpp's, where a file states none
_LLAMA3_CONTEXT = 8192  # original context length of every Llama 3 release
_LLAMA3_LOW, _LLAMA3_HIGH = 1.0, 4.0

_SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}
_RMS, _NORM = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
_WIDTHS = ("attention.key_length", "attention.value_length")
_WINDOW = "attention.sliding_window"


class _Layout(NamedTuple):
    """How one architecture of llama.cpp corresponds to a configuration of ``transformers``."""

    model_type: str
    names: dict[str, str]  # key → setting; a file that lacks one of them, and has no default below, is refused
    head: bool = True  # the configuration states the width of a head; otherwise it is hidden size / heads
    rope: str = "whole"  # "whole" heads are rotated, or "partial" ones, or "none"
    more: Callable[[Stated, Mapping[str, Any], int], Stated] = lambda stated, tensors, head: {}
    rules: Mapping[str, Rule] = {}


def _biases(**tensors: str) -> Callable[[Stated, Mapping[str, Any], int], Stated]:
    """Settings that a file states by having a tensor in its first block."""
    return lambda stated, present, head: {name: f"blk.0.{tensor}" in present for name, tensor in tensors.items()}


def _gemma(large: int, **defaults: float) -> Callable[[Stated, Mapping[str, Any], int], Stated]:
    """Attention of Gemma; nothing in a file states its scale, and llama.cpp knows the 27B models by their blocks."""

    def more(stated: Stated, tensors: Mapping[str, Any], head: int) -> Stated:
        stated = defaults | stated
        width = stated["embedding_length"] // stated["attention.head_count"]
        return {
            "query_pre_attn_scalar": width if stated["block_count"] == large else head,
            "sliding_window": stated[_WINDOW],
            **{cap: stated.get(cap) or None for cap in ("attn_logit_softcapping", "final_logit_softcapping")},
        }

    return more


def _stablelm(stated: Stated, tensors: Mapping[str, Any], head: int) -> Stated:
    parallel = "blk.0.ffn_norm.weight" not in tensors
    if bool(stated.get("use_parallel_residual", parallel)) != parallel:
        raise CheckpointError("use_parallel_residual contradicts the norms that the file has")
    return {"use_parallel_residual": parallel, "use_qkv_bias": "blk.0.attn_q.bias" in tensors}


def _phi3(stated: Stated, tensors: Mapping[str, Any], head: int) -> Stated:
    context = stated.get("rope.scaling.original_context_length", stated["context_length"])
    return {"sliding_window": stated.get(_WINDOW) or None, "original_max_position_embeddings": context}


_SEEN = applied("the settings of its architecture")
_GEMMA = {
    _WINDOW: _SEEN,
    "attn_logit_softcapping": _SEEN,
    "final_logit_softcapping": _SEEN,
}

LAYOUTS: dict[str, _Layout] = {
    "llama": _Layout(
        "llama",
        _SIZES | {_RMS: "rms_norm_eps"},
        more=_biases(attention_bias="attn_output.bias", mlp_bias="ffn_down.bias"),
    ),
    "qwen2": _Layout("qwen2", _SIZES | {_RMS: "rms_norm_eps"}),
    "qwen3": _Layout("qwen3", _SIZES | {_RMS: "rms_norm_eps"}, more=_biases(attention_bias="attn_output.bias")),
    "gemma2": _Layout(
        "gemma2",
        _SIZES | {_RMS: "rms_norm_eps"},
        more=_gemma(46, **{_WINDOW: 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}),
        rules=_GEMMA | {"attention.sliding_window_pattern": only("is not the pattern of Gemma 2", 2)},
    ),
    "gemma3": _Layout(
        "gemma3_text",
        _SIZES | {_RMS: "rms_norm_eps"},
        more=_gemma(62),
        rules=_GEMMA
        | {"attention.sliding_window_pattern": only("is not the pattern of Gemma 3", 6), "rope.freq_base_swa": _SEEN},
    ),
    "nemotron": _Layout(
        "nemotron",
        _SIZES | {_NORM: "norm_eps"},
        rope="partial",
        more=_biases(attention_bias="attn_output.bias", mlp_bias="ffn_down.bias"),
    ),
    "phi3": _Layout(
        "phi3", _SIZES | {_RMS: "rms_norm_eps"}, head=False, rope="partial", more=_phi3, rules={_WINDOW: _SEEN}
    ),
    "stablelm": _Layout(
        "stablelm",
        _SIZES | {_NORM: "layer_norm_eps"},
        head=False,
        rope="partial",
        more=_stablelm,
        rules={"use_parallel_residual": _SEEN},
    ),
    "starcoder2": _Layout(
        "starcoder2", _SIZES | {_NORM: "norm_epsilon"}, head=False, more=_biases(use_bias="attn_q.bias")
    ),
    "gpt2": _Layout(
        "gpt2",
        {
            "block_count": "n_layer",
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            _NORM: "layer_norm_epsilon",
        },
        head=False,
        rope="none",
    ),
    "bloom": _Layout(
        "bloom",
        {
            "block_count": "n_layer",
            "embedding_length": "hidden_size",
            "attention.head_count": "n_head",
            _NORM: "layer_norm_epsilon",
        },
        head=False,
        rope="none",
        rules={
            "context_length": harmless("distances are linear biases, without a limit"),
            "feed_forward_length": harmless("four times the width; the tensors' shapes are compared"),
            "attention.max_alibi_bias": only("is not the bias of BLOOM", 8.0),
        },
    ),
}
"""``general.architecture`` → its configuration."""

_ROPE_RULES: dict[str, Rule] = {
    "rope.dimension_count": _SEEN,
    "rope.freq_base": _SEEN,
    **{
        f"rope.scaling.{name}": _SEEN
        for name in ("type", "factor", "original_context_length", "attn_factor", "yarn_beta_fast", "yarn_beta_slow")
    },
    "rope.scale_linear": _SEEN,
    "rope.scaling.finetuned": harmless("how the scaling was found"),
    "rope.scaling.yarn_ext_factor": only("is a mixture of scalings that transformers lacks", 1.0),
    "rope.scaling.yarn_attn_factor": only("is a factor that transformers lacks", 1.0),
    "rope.scaling.yarn_log_multiplier": only("is a factor that transformers lacks", 0.0),
}
_NEUTRAL: dict[str, Rule] = {
    "vocab_size": harmless("the rows of the embedding say it"),
    "tensor_data_layout": harmless("converters of either layout wrote one order"),
    "pooling_type": harmless("of embeddings of whole texts"),
    "attention.causal": only("is no decoder", True),
    _WINDOW: only("limits attention to a window, which this architecture does not in transformers", 0),
    **dict.fromkeys(
        ("expert_count", "expert_used_count"), only("is a mixture of experts, whose tensors are not parameters", 0)
    ),
    **dict.fromkeys(
        ("logit_scale", "residual_scale", "embedding_scale", "attention.scale", "attention.clamp_kqv",
         "attention.max_alibi_bias"),
        only("changes what this architecture computes in transformers", 0.0),
    ),
}  # fmt: skip
_OTHER: dict[str, Rule] = {
    "general.type": only("is not a model", "model"),
    "split.count": only("parts make up the model: join them with llama.cpp's gguf-split", 0, 1),
}
_FOREIGN = ("adapter", "clip", "diffusion")  # namespaces of files that are no language model


def model_settings(
    metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], F32], source: str
) -> dict[str, Any]:
    """Settings of the configuration class of ``transformers``, ``model_type`` among them.

    Args:
        metadata: of the file, decoded.
        shapes: of its tensors, slowest axis first.
        read: one tensor.
        source: the file, for messages.

    Raises:
        UnreadError: an architecture outside :data:`LAYOUTS`, or a key that would change what is computed.
        CheckpointError: a key that is missing, or of a value that makes no model.
    """
    architecture = str(metadata["general.architecture"])
    if architecture not in LAYOUTS:
        raise UnreadError(
            f"{source}: GGUF architecture {architecture!r} is not read; those that are: {', '.join(sorted(LAYOUTS))}"
        )
    layout = LAYOUTS[architecture]
    require_known({k: v for k, v in metadata.items() if k in _OTHER}, _OTHER, source=source, error=UnreadError)
    foreign = next((key for key in metadata if key.partition(".")[0] in _FOREIGN), None)
    if foreign is not None:
        raise UnreadError(f"{source}: {foreign} belongs to no language model")
    prefix = f"{architecture}."
    stated = {key.removeprefix(prefix): _one(value) for key, value in metadata.items() if key.startswith(prefix)}
    rules = _NEUTRAL | dict.fromkeys((*layout.names, *_WIDTHS, "attention.head_count_kv"), _SEEN)
    rules |= ({} if layout.rope == "none" else _ROPE_RULES) | dict(layout.rules)
    require_known(stated, rules, source=f"{source}: {architecture}", error=UnreadError)
    bad = next((key for key, value in stated.items() if isinstance(value, float) and not math.isfinite(value)), None)
    if bad is not None:
        raise CheckpointError(f"{source}: {prefix}{bad} is {stated[bad]}; the file is damaged")
    try:
        return _settings(layout, stated, shapes, read) | _tokens(metadata, shapes)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise CheckpointError(f"{source}: its metadata make no {architecture} model: {what}") from error


def _one(value: Any) -> Any:
    """A number that the file repeats for every block."""
    return value[0] if isinstance(value, list) and value and all(item == value[0] for item in value) else value


def _settings(layout: _Layout, stated: Stated, shapes: Mapping[str, Any], read: Callable[[str], F32]) -> Stated:
    if not 0 < stated["block_count"] <= len(shapes):  # tables and lists of all blocks are made of it
        raise ValueError(f"{stated['block_count']} blocks in a file of {len(shapes)} tensors")
    heads = stated["attention.head_count"]
    stated.setdefault("attention.head_count_kv", heads)
    width = stated["embedding_length"] // heads
    head = stated.get("attention.key_length", width)
    if stated.get("attention.value_length", head) != head or (head != width and not layout.head):
        raise ValueError(f"heads of width {head} with values of {stated.get('attention.value_length', head)}")
    if layout.rope == "none" and stated["attention.head_count_kv"] != heads:
        raise ValueError(f"{stated['attention.head_count_kv']} heads of keys for {heads} of queries")
    settings = {"model_type": layout.model_type} | {setting: stated[key] for key, setting in layout.names.items()}
    if layout.head:
        settings["head_dim"] = head
    if layout.rope != "none":
        rope = _rope(layout, stated, head, shapes, read)
        if layout.model_type == "gemma3_text":  # its windows have a rotation of their own, never scaled
            near = {"rope_type": "default", "rope_theta": stated.get("rope.freq_base_swa", _THETA)}
            rope = {"full_attention": rope, "sliding_attention": near}
        settings["rope_parameters"] = rope
    return settings | layout.more(stated, shapes, head)


def _tokens(metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Stated:
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    tokens, _ = shapes["token_embd.weight"]
    return {
        "vocab_size": tokens,
        "tie_word_embeddings": "output.weight" not in shapes,
        **{setting: metadata.get(f"tokenizer.ggml.{name}_token_id") for setting, name in names.items()},
    }


def _rope(
    layout: _Layout, stated: Stated, head: int, shapes: Mapping[str, Any], read: Callable[[str], F32]
) -> dict[str, Any]:
    """``rope_parameters``: the base, the rotated part of a head, and the scaling, a formula or a tensor."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": stated.get("rope.freq_base", _THETA)}
    if rope["rope_theta"] <= 0:
        raise ValueError(f"rope.freq_base {rope['rope_theta']}")
    turned = stated.get("rope.dimension_count", head)
    if layout.rope == "partial":
        share = turned / head
        while int(head * share) < turned:  # transformers multiplies again and cuts
            share = math.nextafter(share, 2.0)
        rope["partial_rotary_factor"] = share
    elif turned != head:
        raise ValueError(f"rope.dimension_count {turned} of a head of width {head}")
    kind = stated.get("rope.scaling.type", "linear")  # llama.cpp's, where a file states none
    factor = stated.get("rope.scaling.factor", stated.get("rope.scale_linear", 0.0)) or 1.0
    attention = stated.get("rope.scaling.attn_factor", 1.0)
    context = stated.get("rope.scaling.original_context_length", stated["context_length"])
    tensors = [name for name in ROPE_TENSORS if name in shapes]
    if kind == "longrope" and tensors == list(ROPE_TENSORS[1:]) and layout.model_type == "phi3":
        long, short = (read(name).reshape(-1).tolist() for name in tensors)
        scaling = {"rope_type": "longrope", "long_factor": long, "short_factor": short}
        return rope | scaling | {"attention_factor": attention, "original_max_position_embeddings": context}
    if kind == "yarn" and not tensors and factor != 1.0:
        rope |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": context}
        if attention != 1.0:
            rope["attention_factor"] = attention * (0.1 * math.log(factor) + 1.0)
        betas = {name: stated.get(f"rope.scaling.yarn_{name}") for name in ("beta_fast", "beta_slow")}
        return rope | {name: value for name, value in betas.items() if value is not None}
    if kind not in ("none", "linear", "yarn") or attention != 1.0:
        raise ValueError(f"rope.scaling.type {kind} with attn_factor {attention} is not read")
    if tensors == [ROPE_TENSORS[0]] and (kind == "none" or factor == 1.0):
        return rope | _llama3(read(ROPE_TENSORS[0]), rope["rope_theta"])
    if tensors:
        raise ValueError(f"rope.scaling.type {kind} beside the tensor {tensors[0]}")
    return rope if kind == "none" or factor == 1.0 else rope | {"rope_type": "linear", "factor": factor}


def llama3_factors(dim: int, base: float, factor: float) -> npt.NDArray[np.float64]:
    """Frequency divisors of Llama 3.1's rotary scaling (dim/2,), as its reference code computes them."""
    wavelength = 2 * math.pi * base ** (np.arange(0, dim, 2) / dim)
    smooth = (_LLAMA3_CONTEXT / wavelength - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW)
    middle = 1 / ((1 - smooth) / factor + smooth)
    divisors = np.where(wavelength > _LLAMA3_CONTEXT / _LLAMA3_LOW, factor, middle)
    return np.where(wavelength < _LLAMA3_CONTEXT / _LLAMA3_HIGH, 1.0, divisors)


def _llama3(tensor: F32, base: float) -> dict[str, Any]:
    """Llama 3.1 and later keep their rotary scaling as a tensor of divisors; back into its formula."""
    factors = tensor.astype(np.float64).reshape(-1)
    factor = float(factors.max(initial=1.0))
    if factor == 1.0:
        return {}
    expected = llama3_factors(2 * factors.size, base, factor)
    if not np.array_equal(expected.astype(np.float16), factors.astype(np.float16)):
        raise ValueError(f"{ROPE_TENSORS[0]} is not the rotary scaling of Llama 3; lowbit cannot express it")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LLAMA3_LOW,
        "high_freq_factor": _LLAMA3_HIGH,
        "original_max_position_embeddings": _LLAMA3_CONTEXT,
    }
