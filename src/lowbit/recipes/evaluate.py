"""Perplexity, block by block: a model larger than memory is measured as easily as a small one.

The text is cut into windows of ``length`` tokens that do not overlap; each window predicts its tokens 2..length from
the ones before. Perplexity is exp(mean negative log-likelihood over all predicted tokens). Likelihoods are computed in
float32 from the model's logits and summed in float64.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt
import torch

from lowbit.data.text import load_rows
from lowbit.formats.checkpoint import open_checkpoint, weights_hash
from lowbit.formats.errors import CheckpointError
from lowbit.formats.peft import read_adapter, require_base
from lowbit.runs.errors import RecipeError
from lowbit.runs.events import Evaluated, EvaluationProgress, Event, OnEvent

from .options import EvalOptions
from .streaming import Decoder, Factors, Reader, check_device

__all__ = [
    "EvalResult",
    "Likelihood",
    "Variant",
    "adapter_factors",
    "evaluate",
    "split_factors",
    "stream_likelihood",
    "thread_count",
]

_POSITIONS = 128  # positions whose logits are in memory at a time


class Variant(NamedTuple):
    """One version of the weights to measure."""

    name: str
    block: Callable[[int], tuple[Reader | None, Factors | None]]  # block index → its weights and adapters


class Likelihood(NamedTuple):
    """Sum over predicted tokens."""

    nll: float  # nats
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(nll / tokens), infinity beyond the range of a float."""
        try:
            return math.exp(self.nll / self.tokens)
        except OverflowError:
            return math.inf


@dataclass(frozen=True)
class EvalResult:
    """What :func:`evaluate` measured."""

    perplexity: float
    tokens: int  # predicted tokens, length - 1 per window
    nll: float  # nats in all
    windows: int
    length: int
    source: str
    sha256: str  # of the token ids
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
            "text": {"source": self.source, "sha256": self.sha256, "skip_tokens": options.skip_tokens},
            "dtype": self.dtype,
            "seconds": self.seconds,
        }


@contextlib.contextmanager
def thread_count(threads: int | None) -> Iterator[int]:
    """Number of threads of torch while the block runs; the caller's choice is restored after it."""
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def stream_likelihood(
    decoder: Decoder,
    windows: npt.NDArray[Any],
    variants: Sequence[Variant],
    on_event: OnEvent | None = None,
) -> dict[str, Likelihood]:
    """Likelihood of ``windows`` (n, length) under each variant, all in one pass over the blocks.

    The variants share what lies outside the blocks (embeddings, final norm, head), which ``decoder`` supplies.

    Raises:
        RecipeError: logits that are not finite; the message names the variant and the window.
    """
    tell = on_event or (lambda _: None)
    with decoder.outer(head=False):
        first = decoder.embed(list(windows))
    states: dict[str, list[torch.Tensor]] = {variant.name: list(first) for variant in variants}
    del first
    for index in range(decoder.blocks):
        started = time.perf_counter()
        for variant in variants:
            read, factors = variant.block(index)
            with decoder.block(index, read, factors):
                own = states[variant.name]
                for window in range(len(own)):
                    own[window] = decoder.run(index, own[window])
        tell(EvaluationProgress(index, decoder.blocks, time.perf_counter() - started))
    results: dict[str, Likelihood] = {}
    with decoder.outer(head=True):
        for variant in variants:
            nll = 0.0
            for window, hidden in enumerate(states[variant.name]):
                nll += _window_nll(decoder, hidden, windows[window], variant.name, window)
            tokens = windows.shape[0] * (windows.shape[1] - 1)
            results[variant.name] = Likelihood(nll, tokens)
            tell(Evaluated(variant.name, results[variant.name].perplexity, tokens))
    return results


@torch.no_grad()
def _window_nll(decoder: Decoder, hidden: torch.Tensor, ids: npt.NDArray[Any], variant: str, window: int) -> float:
    """Negative log-likelihood of tokens 1.. of one window, in nats."""
    targets = torch.as_tensor(ids[1:], dtype=torch.long, device=decoder.device)
    total = 0.0
    for start in range(0, len(targets), _POSITIONS):
        stop = min(start + _POSITIONS, len(targets))
        logits = decoder.logits(hidden[:, start:stop]).to(torch.float32)
        loss = torch.nn.functional.cross_entropy(logits, targets[start:stop], reduction="none")
        if not bool(torch.isfinite(loss).all()):
            raise RecipeError(f"the {variant} model gives NaN or infinite logits in window {window} of the evaluation")
        total += float(loss.to(torch.float64).sum())
    return total


def evaluate(options: EvalOptions, on_event: Callable[[Event], None] | None = None) -> EvalResult:
    """Perplexity of a model, of a compressed directory (from its packed files), or of one with its adapter.

    The adapter stays apart: a module computes ``W x + B (A x)``, as it does when it is served.

    Raises:
        RecipeError: anything wrong with the inputs, in one sentence.
    """
    started = time.perf_counter()
    check_device(options.device)
    with thread_count(options.threads):
        try:
            checkpoint = open_checkpoint(options.path)
            factors = adapter_factors(options.path, options.adapter)
            tokenizer = checkpoint.tokenizer()
        except CheckpointError as error:
            raise RecipeError(str(error)) from error
        decoder = Decoder(checkpoint, dtype=options.dtype, device=options.device)
        by_block = split_factors(decoder, factors, options.path)
        samples = None if options.tokens is None else max(1, options.tokens // options.length)
        length = options.length if options.tokens is None else min(options.length, options.tokens)
        decoder.check_length(length)
        rows = load_rows(
            options.text,
            tokenizer,
            samples=samples,
            length=length,
            skip=options.skip_tokens,
            field=options.text_field,
            purpose="evaluation",
        )
        name = "compensated" if factors else "compressed" if checkpoint.quantization else "base"
        variant = Variant(name, lambda index: (None, by_block[index]))
        likelihood = stream_likelihood(decoder, rows.ids, [variant], on_event)[name]
    return EvalResult(
        perplexity=likelihood.perplexity,
        tokens=likelihood.tokens,
        nll=likelihood.nll,
        windows=len(rows.ids),
        length=length,
        source=rows.source,
        sha256=rows.sha256,
        dtype=str(decoder.dtype).removeprefix("torch."),
        seconds=time.perf_counter() - started,
    )


def adapter_factors(path: str | Path, adapter: str | Path | None) -> Factors:
    """Factors of an adapter directory, after checking that it was made for the base at ``path``."""
    if adapter is None:
        return {}
    loaded = read_adapter(adapter)
    if loaded.base_hash is not None:
        require_base(loaded, weights_hash(path), adapter_path=adapter, base_path=path)
    return loaded.factors


def split_factors(decoder: Decoder, factors: Factors, source: str) -> list[dict[str, Any]]:
    """Adapters by block, each checked against the shape of its module.

    Raises:
        RecipeError: a module that the model lacks, or factors of other shapes.
    """
    by_block: list[dict[str, Any]] = [{} for _ in range(decoder.blocks)]
    for index, linears in enumerate(decoder.linears):
        for linear in linears:
            path = f"{decoder.block_prefix}.{index}.{linear.name}"
            if path in factors:
                b, a = factors[path]
                if (b.shape[0], a.shape[1]) != linear.shape:
                    raise RecipeError(
                        f"the adapter of {path} has B {tuple(b.shape)} and A {tuple(a.shape)}, "
                        f"but the module in {source} is {linear.shape}: it belongs to another model"
                    )
                by_block[index][path] = (b, a)
    unknown = set(factors) - {path for block in by_block for path in block}
    if unknown:
        raise RecipeError(f"the adapter names {min(unknown)}, which is no linear layer in the blocks of {source}")
    return by_block
