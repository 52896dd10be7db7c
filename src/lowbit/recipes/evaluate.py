"""Perplexity and distance from another model, block by block: one larger than memory is measured as easily.

The text is cut into windows of ``length`` tokens that do not overlap; each window predicts its tokens 2..length from
the ones before. Special tokens that begin a window (:mod:`lowbit.data.text`) are not predicted. Perplexity is exp(mean
negative log-likelihood over all predicted tokens). Likelihoods are computed in float32 from the model's logits and
summed in float64.

Against another model, whose tokens must be the same, is measured KL(other ‖ model) per predicted token in nats, in
float64 from the logits on, and the share of tokens that both hold most probable. Standard errors are those of means
over windows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lowbit.data.text import TokenRows, load_rows
from lowbit.formats.checkpoint import open_checkpoint
from lowbit.formats.dtypes import name_of
from lowbit.formats.errors import CheckpointError
from lowbit.models.adapters import adapter_factors, split_factors
from lowbit.models.decoder import Decoder
from lowbit.models.likelihood import Distance, Likelihood, Variant, stream_likelihood
from lowbit.models.machine import check_device, thread_count
from lowbit.runs.errors import RecipeError
from lowbit.runs.events import Event, OnEvent, Step

from .options import EvalOptions, TextOptions

__all__ = ["EvalResult", "Measured", "evaluate", "measure"]


@dataclass(frozen=True)
class EvalResult:
    """What :func:`evaluate` measured."""

    perplexity: float
    perplexity_error: float | None  # standard error; None of a single window, as all errors
    against: Distance | None  # KL(other ‖ model) per token and agreement with the other; None without one
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
            "perplexity_error": self.perplexity_error,
            "against": None if self.against is None else {"path": options.against, **self.against.record()},
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


class Measured(NamedTuple):
    """What :func:`measure` gives."""

    rows: TokenRows
    likelihoods: dict[str, Likelihood]
    dtypes: dict[str, str]  # of forward passes


def evaluate(options: EvalOptions, on_event: Callable[[Event], None] | None = None) -> EvalResult:
    """Perplexity of a model, of a compressed directory (from its packed files), or of one with its adapter.

    The adapter stays apart: a module computes ``W x + B (A x)``, as it does when it is served. With ``against``, also
    how far the model is from that one.

    Raises:
        RecipeError: anything wrong with the inputs, in one sentence.
    """
    started = time.perf_counter()
    name = "measured" if options.adapter is None else "compensated"
    models: dict[str, tuple[str, Path | None]] = {name: (options.path, options.adapter)}
    if options.against is not None:
        models["original"] = (options.against, None)
    measured = measure(models, options, on_event, reference=None if options.against is None else "original")
    likelihood, rows = measured.likelihoods[name], measured.rows
    return EvalResult(
        perplexity=likelihood.perplexity,
        perplexity_error=likelihood.perplexity_error,
        against=likelihood.distance,
        tokens=likelihood.tokens,
        nll=likelihood.nll,
        windows=len(rows.ids),
        length=rows.ids.shape[1],
        source=rows.source,
        sha256=rows.sha256,
        special_tokens=rows.leading,
        dtype=measured.dtypes[name],
        seconds=time.perf_counter() - started,
    )


def measure(
    models: Mapping[str, tuple[str, Path | None]],
    options: TextOptions,
    on_event: OnEvent | None = None,
    *,
    reference: str | None = None,
    least: int = 1,
) -> Measured:
    """Likelihood of one text under several models, each with its adapter if it has one.

    Args:
        models: name in events and messages → model and adapter.
        options: the text, and how it is run.
        on_event: called with every event.
        reference: name of the model that the others are compared with.
        least: windows that are needed.

    Raises:
        RecipeError: anything wrong with the inputs; models that make other tokens of the text.
    """
    tell = on_event or (lambda _: None)
    check_device(options.device)
    length = options.length if options.tokens is None else min(options.length, options.tokens)
    variants: list[Variant] = []
    found: list[TokenRows] = []
    with thread_count(options.threads):
        for name, (path, adapter) in models.items():
            variant, rows = _open(name, path, adapter, length, options, tell)
            variants.append(variant)
            found.append(rows)
            if rows.sha256 != found[0].sha256 or rows.leading != found[0].leading:
                raise RecipeError(
                    f"{path} makes other tokens of {rows.source} than {next(iter(models.values()))[0]}: models are "
                    "compared token by token and need one tokenizer"
                )
        rows = found[0]
        if len(rows.ids) < least:
            raise RecipeError(
                f"{rows.source} gives {len(rows.ids)} window of {length} tokens, but a comparison needs at least "
                f"{least}: take more tokens or a smaller length"
            )
        likelihoods = stream_likelihood(rows.ids, variants, tell, given=rows.given, reference=reference)
    return Measured(rows, likelihoods, {each.name: name_of(each.decoder.weights.dtype) for each in variants})


def _open(
    name: str, path: str, adapter: Path | None, length: int, options: TextOptions, tell: OnEvent
) -> tuple[Variant, TokenRows]:
    """One model, ready to be measured, and the text in its tokens."""
    try:
        checkpoint = open_checkpoint(path)
        if adapter is not None:
            tell(Step(f"hashing the weights of {Path(path).name}"))
        factors = adapter_factors(path, adapter, tell)
        tokenizer = checkpoint.tokenizer()
    except CheckpointError as error:
        raise RecipeError(str(error)) from error
    decoder = Decoder(checkpoint, dtype=options.dtype, device=options.device)
    by_block = split_factors(decoder.inventory, factors, path)
    decoder.inventory.check_length(length)
    tell(Step(f"tokenizing {Path(options.text).name}"))
    rows = load_rows(
        options.text,
        tokenizer,
        samples=None if options.tokens is None else max(1, options.tokens // options.length),
        length=length,
        skip=options.skip_tokens,
        field=options.text_field,
        chat_template=options.chat_template,
        special_tokens=options.special_tokens,
        purpose="evaluation",
    )
    return Variant(name, decoder, lambda index: (None, by_block[index])), rows
