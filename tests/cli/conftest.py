"""A tiny model, a text, and one compressed directory shared by the tests of the command line."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

WORDS = 96


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``model`` and ``text.txt``; tests write beside them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
    )
    model.save_pretrained(folder / "model")
    raw = Tokenizer(WordLevel({"<unk>": 0, "</s>": 1} | {f"w{i}": i for i in range(2, WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="</s>").save_pretrained(folder / "model")
    draw = random.Random(0)
    (folder / "text.txt").write_text(" ".join(f"w{draw.randrange(2, WORDS)}" for _ in range(2000)))
    return folder


def compress_arguments(folder: Path, out: str, **options: Any) -> list[str]:
    """``lowbit compress`` of the tiny model; keywords override or add options."""
    settings: dict[str, Any] = {
        "calibration": folder / "text.txt",
        "samples": 4,
        "length": 32,
        "group-size": 32,
        "rank": 4,
        "threads": 1,
    } | {key.replace("_", "-"): value for key, value in options.items()}
    arguments = ["compress", str(folder / "model"), "-o", str(folder / out)]
    for key, value in settings.items():
        arguments += [f"--{key}"] if value is True else [f"--{key}", str(value)]
    return arguments


@pytest.fixture(scope="session")
def compressed(workplace: Path) -> Path:
    """``out`` in the workplace, made by the command, with its record in ``out.json``."""
    from lowbit.cli import run

    arguments = compress_arguments(
        workplace,
        "out",
        evaluate=workplace / "text.txt",
        evaluate_tokens=256,
        evaluate_length=32,
        json=workplace / "out.json",
        quiet=True,
    )
    assert run(arguments) == 0
    return workplace / "out"
