"""What the original, the compressed and the compensated model make of a text, in one pass over the blocks."""

from __future__ import annotations

import math
from typing import Any

from lowbit.data.text import TokenRows
from lowbit.models.decoder import Decoder
from lowbit.models.likelihood import Variant, stream_likelihood
from lowbit.runs.events import OnEvent

from .method import Method
from .shards import Shards

__all__ = ["measure_perplexity"]


def measure_perplexity(
    decoder: Decoder, shards: Shards, method: Method, windows: TokenRows, tell: OnEvent
) -> dict[str, Any]:
    """The entry of the record, measured once and then in the journal.

    One perplexity a variant, None where there is none, and under ``against_base`` how far the others are from the
    original.
    """
    if shards.perplexity is not None:
        return shards.perplexity
    own, outer = decoder, None
    if method.outer(decoder.inventory):  # two embeddings are in memory, and a decoder has room for one
        own, outer = decoder.twin(), shards.outer
    variants = [
        Variant("base", decoder, lambda _: (None, None)),
        Variant("compressed", own, lambda index: (shards.block(index)[0], None), outer),
    ]
    if method.patches:
        variants.append(Variant("compensated", own, shards.block, outer))
    measured = stream_likelihood(windows.ids, variants, tell, given=windows.given, reference="base")
    perplexity: dict[str, Any] = {
        name: measured[name].perplexity if name in measured else None for name in ("base", "compressed", "compensated")
    }
    perplexity |= {"tokens": measured["base"].tokens, "source": windows.source}
    perplexity = {key: None if value == math.inf else value for key, value in perplexity.items()}
    distances = {name: found.distance for name, found in measured.items()}
    perplexity["against_base"] = {
        name: None if (distance := distances.get(name)) is None else distance.record()
        for name in ("compressed", "compensated")
    }
    shards.journal.append({"step": "evaluated", "perplexity": perplexity})
    return perplexity
