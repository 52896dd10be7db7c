"""Likelihood of a text under versions of a model, block by block, so that a model larger than memory is measured too.

Each window of tokens predicts its tokens from the ones before, all but those that are given. Likelihoods are computed
in float32 from the model's logits and summed in float64.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy.typing as npt
import torch

from lowbit.runs.errors import RecipeError
from lowbit.runs.events import Evaluated, EvaluationProgress, OnEvent

from .decoder import Decoder, Sample
from .weights import Factors, Reader

__all__ = ["Likelihood", "Variant", "stream_likelihood"]

_POSITIONS = 128  # positions whose logits are in memory at a time


class Variant(NamedTuple):
    """One version of the weights to measure."""

    name: str
    block: Callable[[int], tuple[Reader | None, Factors | None]]  # block index → its weights and adapters
    outer: Reader | None = None  # of what lies outside the blocks, None: the checkpoint


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


def stream_likelihood(
    decoder: Decoder,
    windows: npt.NDArray[Any],
    variants: Sequence[Variant],
    on_event: OnEvent | None = None,
    *,
    given: int = 1,
) -> dict[str, Likelihood]:
    """Likelihood of ``windows`` (n, length) under each variant, all in one pass over the blocks.

    Variants of one ``outer`` share what lies outside the blocks (embeddings, final norm, head). The first ``given``
    tokens of a window are not predicted.

    Raises:
        RecipeError: logits that are not finite; the message names the variant and the window.
    """
    tell = on_event or (lambda _: None)
    blocks = len(decoder.inventory.blocks)
    states: dict[str, list[Sample]] = {}
    outers = list(dict.fromkeys(variant.outer for variant in variants))
    for outer in outers:
        with decoder.weights.outer(head=False, read=outer):
            first = decoder.embed(list(windows))
        states |= {v.name: [sample.fork() for sample in first] for v in variants if v.outer == outer}
        del first
    for index in range(blocks):
        started = time.perf_counter()
        for variant in variants:
            read, factors = variant.block(index)
            with decoder.weights.block(index, read, factors):
                decoder.advance(index, states[variant.name])
        tell(EvaluationProgress(index, blocks, time.perf_counter() - started))
    results: dict[str, Likelihood] = {}
    for outer in outers:
        with decoder.weights.outer(head=True, read=outer):
            for variant in (v for v in variants if v.outer == outer):
                nll = 0.0
                for window, sample in enumerate(states[variant.name]):
                    nll += _window_nll(decoder, sample, windows[window], variant.name, window, given)
                tokens = windows.shape[0] * (windows.shape[1] - given)
                results[variant.name] = Likelihood(nll, tokens)
                tell(Evaluated(variant.name, results[variant.name].perplexity, tokens))
    return results


@torch.no_grad()
def _window_nll(
    decoder: Decoder, sample: Sample, ids: npt.NDArray[Any], variant: str, window: int, given: int
) -> float:
    """Negative log-likelihood of the tokens of one window behind the ``given`` ones, in nats."""
    targets = torch.as_tensor(ids[given:], dtype=torch.long, device=decoder.weights.device)
    total = 0.0
    for start in range(0, len(targets), _POSITIONS):
        stop = min(start + _POSITIONS, len(targets))
        logits = decoder.logits(sample, given - 1 + start, given - 1 + stop).to(torch.float32)
        loss = torch.nn.functional.cross_entropy(logits, targets[start:stop], reduction="none")
        if not bool(torch.isfinite(loss).all()):
            raise RecipeError(f"the {variant} model gives NaN or infinite logits in window {window} of the evaluation")
        total += float(loss.to(torch.float64).sum())
    return total
