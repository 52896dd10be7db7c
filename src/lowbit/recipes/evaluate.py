"""Perplexity, block by block: a model larger than memory is measured as easily as a small one.

The text is cut into windows of ``length`` tokens that do not overlap; each window predicts its tokens 2..length from
the ones before. Special tokens that begin a window (:mod:`lowbit.data.text`) are not predicted. Perplexity is exp(mean
negative log-likelihood over all predicted tokens). Likelihoods are computed in float32 from the model's logits and
summed in float64.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.data.text import load_rows
from lowbit.formats.checkpoint import open_checkpoint
from lowbit.formats.dtypes import name_of
from lowbit.formats.errors import CheckpointError
from lowbit.models.adapters import adapter_factors, split_factors
from lowbit.models.decoder import Decoder
from lowbit.models.likelihood import Variant, stream_likelihood
from lowbit.models.machine import check_device, thread_count
from lowbit.runs.errors import RecipeError
from lowbit.runs.events import Event, Step

from .options import EvalOptions

__all__ = ["EvalResult", "evaluate"]


@dataclass(frozen=True)
class EvalResult:
    """What :func:`evaluate` measured."""

    perplexity: float
    tokens: int  # predicted tokens: all of a window but its first, or but the special tokens that begin it
    nll: float  # nats in all
    windows: int
    length: int
    source: str
    sha256: str  # of the token ids
    special_tokens: tuple[int, ...]  # that begin every window and are not predicted
    dtype: str
    seconds: float

    def record(self, options: EvalOptions) -> dict[str, Any]:
        """The JSON record of the ``eval`` command."""
        return {
            "schema": "lowbit.eval/1",
            "path": options.path,
            "adapter": None if options.adapter is None else str(options.adapter),
            "perplexity": self.perplexity,
            "tokens": self.tokens,
            "nll": self.nll,
            "windows": self.windows,
            "length": self.length,
            "text": {
                "source": self.source,
                "sha256": self.sha256,
                "skip_tokens": options.skip_tokens,
                "special_tokens": list(self.special_tokens),
            },
            "dtype": self.dtype,
            "seconds": self.seconds,
        }


def evaluate(options: EvalOptions, on_event: Callable[[Event], None] | None = None) -> EvalResult:
    """Perplexity of a model, of a compressed directory (from its packed files), or of one with its adapter.

    The adapter stays apart: a module computes ``W x + B (A x)``, as it does when it is served.

    Raises:
        RecipeError: anything wrong with the inputs, in one sentence.
    """
    started = time.perf_counter()
    tell = on_event or (lambda _: None)
    check_device(options.device)
    with thread_count(options.threads):
        try:
            checkpoint = open_checkpoint(options.path)
            if options.adapter is not None:
                tell(Step(f"hashing the weights of {Path(options.path).name}"))
            factors = adapter_factors(options.path, options.adapter)
            tokenizer = checkpoint.tokenizer()
        except CheckpointError as error:
            raise RecipeError(str(error)) from error
        decoder = Decoder(checkpoint, dtype=options.dtype, device=options.device)
        by_block = split_factors(decoder.inventory, factors, options.path)
        samples = None if options.tokens is None else max(1, options.tokens // options.length)
        length = options.length if options.tokens is None else min(options.length, options.tokens)
        decoder.inventory.check_length(length)
        tell(Step(f"tokenizing {Path(options.text).name}"))
        rows = load_rows(
            options.text,
            tokenizer,
            samples=samples,
            length=length,
            skip=options.skip_tokens,
            field=options.text_field,
            chat_template=options.chat_template,
            special_tokens=options.special_tokens,
            purpose="evaluation",
        )
        name = "compensated" if factors else "compressed" if checkpoint.quantization else "base"
        variant = Variant(name, lambda index: (None, by_block[index]))
        likelihood = stream_likelihood(decoder, rows.ids, [variant], tell, given=rows.given)[name]
    return EvalResult(
        perplexity=likelihood.perplexity,
        tokens=likelihood.tokens,
        nll=likelihood.nll,
        windows=len(rows.ids),
        length=length,
        source=rows.source,
        sha256=rows.sha256,
        special_tokens=rows.leading,
        dtype=name_of(decoder.weights.dtype),
        seconds=time.perf_counter() - started,
    )
