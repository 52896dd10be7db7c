"""A sentence from a model, from its compressed form, or from that with its adapter, for a first look."""

from __future__ import annotations

from pathlib import Path

import torch

from lowbit.data.text import leading_tokens
from lowbit.formats.checkpoint import open_checkpoint
from lowbit.formats.dtypes import FLOATS
from lowbit.formats.errors import CheckpointError
from lowbit.models.adapters import adapter_factors, split_factors
from lowbit.models.decoder import Decoder
from lowbit.models.machine import check_device, thread_count
from lowbit.runs.errors import RecipeError

__all__ = ["generate"]


def generate(
    path: str | Path,
    prompt: str,
    *,
    adapter: str | Path | None = None,
    max_new_tokens: int = 24,
    greedy: bool = True,
    seed: int = 0,
    dtype: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
) -> str:
    """Continue ``prompt``; the whole model is held in memory, dense.

    Args:
        path: model directory, compressed directory, hub id or GGUF file.
        prompt: text to continue.
        adapter: PEFT directory, or packed factors, made for this base; kept as separate factors.
        max_new_tokens: at most this many tokens.
        greedy: take the likeliest token each time; otherwise draw with ``seed``.
        seed: of the draws, unused when greedy.
        dtype: "auto" (the checkpoint's), "float32", "bfloat16" or "float16".
        device: a torch device.
        threads: of torch; None leaves them as they are.

    Returns:
        The continuation without the prompt.

    Raises:
        RecipeError: anything wrong with the inputs, in one sentence.
    """
    if not prompt:
        raise RecipeError("the prompt is empty")
    if dtype != "auto" and dtype not in FLOATS:
        raise RecipeError(f"dtype {dtype!r} is none of auto, {', '.join(FLOATS)}")
    check_device(device)
    with thread_count(threads):
        try:
            checkpoint = open_checkpoint(path)
            factors = adapter_factors(path, adapter)
            tokenizer = checkpoint.tokenizer()
        except CheckpointError as error:
            raise RecipeError(str(error)) from error
        decoder = Decoder(checkpoint, dtype=dtype, device=device)
        by_block = split_factors(decoder.inventory, factors, str(path))
        plain = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        leading = torch.tensor([leading_tokens(tokenizer)], dtype=plain.dtype)
        ids = torch.cat([leading, plain], dim=1).to(device)
        generator = torch.random.fork_rng() if not greedy else torch.no_grad()
        with decoder.weights.whole(by_block) as model, generator:
            if not greedy:
                torch.manual_seed(seed)
            stop = tokenizer.eos_token_id
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=not greedy,
                pad_token_id=stop if stop is not None else 0,
                use_cache=True,
            )
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
