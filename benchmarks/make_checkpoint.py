"""Write a synthetic LLaMA-architecture checkpoint of a chosen size, shard by shard, in bounded memory.

It exists to measure memory: a model that is larger than what a streaming job may hold. Weights are random with the
usual scales (a few input channels are louder than the rest, as in trained models), so compression runs on ordinary
numbers and perplexity means nothing. The tokenizer gives one token per byte and needs no download.

    python benchmarks/make_checkpoint.py OUT --gigabytes 3
    /usr/bin/time -v lowbit compress OUT --bits 4 --samples 2 --length 1024 -o OUT-4bit

One decoder block is one shard; one tensor is in memory at a time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from lowbit.formats.dtypes import FLOATS
from lowbit.formats.safetensors_file import TensorSource, write_tensors
from lowbit.runs.files import make_folder, write_json

VOCABULARY = 264  # 256 bytes and room for special tokens


def configuration(gigabytes: float, hidden: int, vocabulary: int, dtype: str) -> dict[str, Any]:
    """``config.json`` of the smallest number of blocks that reaches ``gigabytes`` (10^9 bytes)."""
    intermediate = 64 * math.ceil(hidden * 8 / 3 / 64)
    heads = hidden // 64
    values = sum(math.prod(shape) for _, shape in block_shapes(hidden, intermediate, heads, 0))
    outside = sum(math.prod(shape) for _, shape in outer_shapes(hidden, vocabulary))
    size = FLOATS[dtype].itemsize
    blocks = max(1, math.ceil((gigabytes * 1e9 / size - outside) / values))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 4),
        "head_dim": 64,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "vocab_size": vocabulary,
        "bos_token_id": 256,
        "eos_token_id": 256,
        "pad_token_id": 257,
        "tie_word_embeddings": False,
        "dtype": dtype,
    }


def block_shapes(hidden: int, intermediate: int, heads: int, index: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of one decoder block."""
    prefix = f"model.layers.{index}."
    small = 64 * max(1, heads // 4)
    yield prefix + "input_layernorm.weight", (hidden,)
    yield prefix + "mlp.down_proj.weight", (hidden, intermediate)
    yield prefix + "mlp.gate_proj.weight", (intermediate, hidden)
    yield prefix + "mlp.up_proj.weight", (intermediate, hidden)
    yield prefix + "post_attention_layernorm.weight", (hidden,)
    yield prefix + "self_attn.k_proj.weight", (small, hidden)
    yield prefix + "self_attn.o_proj.weight", (hidden, hidden)
    yield prefix + "self_attn.q_proj.weight", (hidden, hidden)
    yield prefix + "self_attn.v_proj.weight", (small, hidden)


def outer_shapes(hidden: int, vocabulary: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of what lies outside the blocks."""
    yield "lm_head.weight", (vocabulary, hidden)
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    yield "model.norm.weight", (hidden,)


def values(name: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Random values that depend on the name and the seed alone."""
    key = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "little"))
    if len(shape) == 1:  # a norm: a few channels pass more
        weight = torch.ones(shape)
        weight[torch.randint(shape[0], (max(1, shape[0] // 64),), generator=generator)] = 4.0
        return weight.to(dtype)
    weight = torch.empty(shape)
    weight.normal_(0, 1.0 if "embed" in name else shape[1] ** -0.5, generator=generator)
    return weight.to(dtype)


def write_checkpoint(
    out: Path,
    *,
    gigabytes: float = 3.0,
    hidden: int = 2048,
    vocabulary: int = 32000,
    dtype: str = "float32",
    seed: int = 0,
) -> int:
    """Write the checkpoint into ``out``; returns the bytes of its tensors.

    Args:
        out: new directory.
        gigabytes: 10^9 bytes that the tensors have at least.
        hidden: hidden size, a multiple of 256.
        vocabulary: rows of the embedding, at least 264; the tokenizer uses the first 258.
        dtype: "float32", "bfloat16" or "float16".
        seed: of the values.

    Raises:
        ValueError: a hidden size or vocabulary that does not fit.
    """
    if hidden % 256 or vocabulary < VOCABULARY:
        raise ValueError(f"hidden must be a multiple of 256 and vocabulary at least {VOCABULARY}")
    config = configuration(gigabytes, hidden, vocabulary, dtype)
    blocks, kind = int(config["num_hidden_layers"]), FLOATS[dtype]
    make_folder(out)
    parts = [list(outer_shapes(hidden, vocabulary))]
    heads = int(config["num_attention_heads"])
    parts += [list(block_shapes(hidden, int(config["intermediate_size"]), heads, index)) for index in range(blocks)]
    weight_map: dict[str, str] = {}
    total = 0
    for number, part in enumerate(parts, 1):
        shard = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        sources = {
            name: TensorSource(kind, shape, lambda name=name, shape=shape: values(name, shape, kind, seed))
            for name, shape in part
        }
        write_tensors(out / shard, sources)
        weight_map |= dict.fromkeys(sources, shard)
        total += sum(source.nbytes for source in sources.values())
    write_tokenizer(out)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(out / "model.safetensors.index.json", index)
    write_json(out / "config.json", config)
    return total


def write_tokenizer(out: Path) -> None:
    """A tokenizer with one token per byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", pad_token="<pad>"
    ).save_pretrained(out)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write a synthetic LLaMA-architecture checkpoint.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--dtype", choices=sorted(FLOATS), default="float32")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    total = write_checkpoint(
        options.out,
        gigabytes=options.gigabytes,
        hidden=options.hidden,
        vocabulary=options.vocabulary,
        dtype=options.dtype,
        seed=options.seed,
    )
    print(json.dumps({"out": str(options.out), "bytes": total}))


if __name__ == "__main__":
    main()
