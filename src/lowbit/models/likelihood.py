"""Likelihood of a text under versions of a model, block by block, so that a model larger than memory is measured too.

Each window of tokens predicts its tokens from the ones before, all but those that are given. Logits are float32;
likelihoods are computed from them in float32, divergences in float64, and all sums are float64.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lowbit.runs.errors import RecipeError
from lowbit.runs.events import Evaluated, EvaluationProgress, OnEvent

from .decoder import Decoder, Sample
from .weights import Factors, Reader

__all__ = ["Distance", "Likelihood", "Mean", "Variant", "stream_likelihood"]

_POSITIONS = 128  # positions whose logits are in memory at a time
_ROWS = 16  # of them, those whose probabilities are there in float64


class Variant(NamedTuple):
    """One version of the weights to measure."""

    name: str
    decoder: Decoder  # what runs it, and has what lies outside its blocks
    block: Callable[[int], tuple[Reader | None, Factors | None]]  # block index → its weights and adapters
    outer: Reader | None = None  # of what lies outside the blocks, None: the checkpoint


class Mean(NamedTuple):
    """A mean over windows."""

    value: float
    error: float | None  # its standard error, None of a single window

    @classmethod
    def of(cls, values: npt.NDArray[np.float64]) -> Mean:
        """Of one value a window."""
        several = len(values) > 1
        return cls(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values)) if several else None)


class Distance(NamedTuple):
    """How far a model is from the reference."""

    kl: Mean  # KL(reference ‖ model) per token in nats
    agreement: Mean  # share of the tokens whose most probable one is that of the reference

    def record(self) -> dict[str, float | None]:
        """The entry of a record."""
        return {
            "kl": self.kl.value,
            "kl_error": self.kl.error,
            "agreement": self.agreement.value,
            "agreement_error": self.agreement.error,
        }


@dataclass(frozen=True)
class Likelihood:
    """What one variant gives, window by window; all windows predict the same number of tokens.

    Attributes:
        losses: negative log-likelihood of each window, nats, float64 (windows,).
        tokens: predicted tokens in all.
        divergences: KL(reference ‖ variant) = Σ p (log p − log q), summed over the predictions of each window, nats.
        agreements: predictions of each window whose most probable token is that of the reference.
    """

    losses: npt.NDArray[np.float64]
    tokens: int
    divergences: npt.NDArray[np.float64] | None = None
    agreements: npt.NDArray[np.float64] | None = None

    @property
    def nll(self) -> float:
        """Nats in all."""
        return float(sum(self.losses.tolist()))

    @property
    def perplexity(self) -> float:
        """exp(nll / tokens), infinity beyond the range of a float."""
        try:
            return math.exp(self.nll / self.tokens)
        except OverflowError:
            return math.inf

    def per_token(self, sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Means of the windows from their sums."""
        return sums * (len(sums) / self.tokens)

    @property
    def perplexity_error(self) -> float | None:
        """Standard error of the perplexity: itself times that of the mean it is the exponential of."""
        error = Mean.of(self.per_token(self.losses)).error
        return None if error is None else self.perplexity * error

    @property
    def distance(self) -> Distance | None:
        """None of the reference itself, and without one."""
        if self.divergences is None or self.agreements is None:
            return None
        return Distance(Mean.of(self.per_token(self.divergences)), Mean.of(self.per_token(self.agreements)))


def stream_likelihood(
    windows: npt.NDArray[Any],
    variants: Sequence[Variant],
    on_event: OnEvent | None = None,
    *,
    given: int = 1,
    reference: str | None = None,
) -> dict[str, Likelihood]:
    """Likelihood of ``windows`` (n, length) under each variant, all in one pass over the blocks.

    Variants of one decoder and ``outer`` share what lies outside the blocks (embeddings, final norm, head). In memory
    are one block at a time, the states of all windows, and at the end what lies outside the blocks of two decoders. The
    first ``given`` tokens of a window are not predicted. With ``reference``, the name of a variant, the others are also
    compared with that one.

    Raises:
        RecipeError: logits that are not finite, the message names the variant and the window; or a variant with
            another vocabulary than the reference.
    """
    tell = on_event or (lambda _: None)
    decoders = list(dict.fromkeys(variant.decoder for variant in variants))
    blocks = sum(len(decoder.inventory.blocks) for decoder in decoders)
    base = next((variant for variant in variants if variant.name == reference), None)
    if base is not None:
        _require_one_vocabulary(base.decoder, decoders)
    if any(len({variant.outer for variant in variants if variant.decoder is decoder}) > 1 for decoder in decoders):
        raise ValueError("a decoder holds one embedding and one head: variants with others need one of their own")
    outers = {id(variant.decoder): variant.outer for variant in variants}
    states: dict[str, list[Sample]] = {}
    done = 0
    for decoder in decoders:
        own = [variant for variant in variants if variant.decoder is decoder]
        with decoder.weights.outer(head=False, read=outers[id(decoder)]):
            first = decoder.embed(list(windows))
        states |= {variant.name: [sample.fork() for sample in first] for variant in own}
        del first
        for index in range(len(decoder.inventory.blocks)):
            started = time.perf_counter()
            for variant in own:
                read, factors = variant.block(index)
                with decoder.weights.block(index, read, factors):
                    decoder.advance(index, states[variant.name])
            tell(EvaluationProgress(done, blocks, time.perf_counter() - started))
            done += 1
    results: dict[str, Likelihood] = {}
    for decoder in decoders:
        own = [variant for variant in variants if variant.decoder is decoder]
        with contextlib.ExitStack() as stack:
            stack.enter_context(decoder.weights.outer(head=True, read=outers[id(decoder)]))
            if base is not None and base.decoder is not decoder:
                stack.enter_context(base.decoder.weights.outer(head=True, read=base.outer))
            sums = np.zeros((len(own), 3, len(windows)))
            for window, ids in enumerate(windows):
                sums[:, :, window] = _window(own, base, states, ids, window, given)
        for variant, (losses, divergences, agreements) in zip(own, sums, strict=True):
            compared = (divergences, agreements) if base is not None and variant is not base else (None, None)
            found = Likelihood(losses, windows.shape[0] * (windows.shape[1] - given), *compared)
            results[variant.name] = found
            tell(Evaluated(variant.name, found.perplexity, found.tokens))
    return results


def _require_one_vocabulary(base: Decoder, decoders: Sequence[Decoder]) -> None:
    sizes = {each: each.inventory.model.get_input_embeddings().num_embeddings for each in (base, *decoders)}
    for decoder, size in sizes.items():
        if size != sizes[base]:
            raise RecipeError(
                f"{decoder.inventory.source} knows {size} tokens and {base.inventory.source} {sizes[base]}: "
                "models are compared token by token and need one vocabulary"
            )


@torch.no_grad()
def _window(
    variants: Sequence[Variant],
    base: Variant | None,
    states: dict[str, list[Sample]],
    ids: npt.NDArray[Any],
    window: int,
    given: int,
) -> npt.NDArray[np.float64]:
    """Sums over the predictions of one window, (variants, 3): loss, divergence from ``base``, agreement with it."""
    sums = np.zeros((len(variants), 3))
    for start in range(given - 1, len(ids) - 1, _POSITIONS):
        stop = min(start + _POSITIONS, len(ids) - 1)
        place = start, stop
        targets = torch.as_tensor(ids[start + 1 : stop + 1], dtype=torch.long)
        ours = None if base is None else _logits(base, states, window, place)
        for row, variant in enumerate(variants):
            known = ours is not None and variant is base
            logits = ours if known and ours is not None else _logits(variant, states, window, place)
            loss = torch.nn.functional.cross_entropy(logits, targets.to(logits.device), reduction="none")
            if not bool(torch.isfinite(loss).all()):
                raise _not_finite(variant, window)
            sums[row, 0] += float(loss.to(torch.float64).sum())
            if base is not None and ours is not None and not known:
                divergence = _divergence(ours, logits)
                if not math.isfinite(divergence):  # the loss sees no −∞ at a token that does not come
                    raise _not_finite(variant if bool(torch.isfinite(ours.logsumexp(-1)).all()) else base, window)
                sums[row, 1] += divergence
                sums[row, 2] += int((ours.argmax(-1) == logits.argmax(-1)).sum())
    return sums


def _logits(variant: Variant, states: dict[str, list[Sample]], window: int, place: tuple[int, int]) -> torch.Tensor:
    return variant.decoder.logits(states[variant.name][window], *place).to(torch.float32)


def _not_finite(variant: Variant, window: int) -> RecipeError:
    return RecipeError(f"the {variant.name} model gives NaN or infinite logits in window {window} of the evaluation")


def _divergence(reference: torch.Tensor, logits: torch.Tensor) -> float:
    """KL(reference ‖ logits), summed over the rows of (positions, vocabulary).

    In float64 from the logits on: where two models nearly agree, their log-probabilities differ by less than float32
    resolves.
    """
    total = 0.0
    for ours, theirs in zip(torch.split(reference, _ROWS), torch.split(logits, _ROWS), strict=True):
        log_p, log_q = (torch.log_softmax(part.to(torch.float64), -1) for part in (ours, theirs))
        p = log_p.exp()
        total += float((p * (log_p - log_q)).masked_fill_(p == 0, 0).sum())  # 0 log 0 = 0
    return total
