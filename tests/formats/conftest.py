"""Tiny models on disk, written by transformers itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")

VOCABULARY = 96


def tiny_tokenizer(folder: Path) -> None:
    """A word-level tokenizer of 96 words, in the files that transformers reads."""
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    raw = Tokenizer(WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)


def tiny_config(kind: str = "llama") -> Any:
    """A two-block decoder of width 64; ``kind`` is a ``general.architecture`` of GGUF."""
    import transformers

    if kind == "gpt2":
        return transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=1024, n_embd=64, n_layer=2, n_head=4)
    if kind == "bloom":
        return transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=64, n_layer=2, n_head=4)
    cls, extra = {
        "llama": (transformers.LlamaConfig, {}),
        "qwen2": (transformers.Qwen2Config, {}),
        "qwen3": (transformers.Qwen3Config, {"head_dim": 128}),
        "gemma2": (transformers.Gemma2Config, {"head_dim": 16}),
        "gemma3": (transformers.Gemma3TextConfig, {"head_dim": 16}),
        "phi3": (transformers.Phi3Config, {"pad_token_id": 0}),
        "nemotron": (transformers.NemotronConfig, {"head_dim": 16}),
        "starcoder2": (transformers.Starcoder2Config, {}),
        "stablelm": (transformers.StableLmConfig, {}),
    }[kind]
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": kind in ("gemma2", "gemma3", "starcoder2"),
    }
    return cls(**settings | extra)


def tiny_model(kind: str = "llama", config: Any = None) -> Any:
    """A seeded model whose norms and biases are not all ones and zeros."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config or tiny_config(kind))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="session")
def llama() -> Any:
    """The tiny Llama in memory."""
    return tiny_model()


@pytest.fixture
def write_model(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model and a tokenizer into a fresh directory."""

    def write(model: Any, name: str = "model", **options: Any) -> Path:
        folder = tmp_path / name
        model.save_pretrained(folder, **options)
        tiny_tokenizer(folder)
        return folder

    return write
