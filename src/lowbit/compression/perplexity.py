"""Perplexity of the original, the compressed and the compensated model, in one pass over the blocks."""

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
    """The entry of the record: one number a variant, None where there is none; measured once, then in the journal."""
    if shards.perplexity is not None:
        return shards.perplexity
    variants = [
        Variant("base", lambda _: (None, None)),
        Variant("compressed", lambda index: (shards.block(index)[0], None), shards.outer),
    ]
    if method.patches:
        variants.append(Variant("compensated", shards.block, shards.outer))
    measured = stream_likelihood(decoder, windows.ids, variants, tell, given=windows.given)
    perplexity: dict[str, Any] = {
        name: measured[name].perplexity if name in measured else None for name in ("base", "compressed", "compensated")
    }
    perplexity |= {"tokens": measured["base"].tokens, "source": windows.source}
    perplexity = {key: None if value == math.inf else value for key, value in perplexity.items()}
    shards.journal.append({"step": "evaluated", "perplexity": perplexity})
    return perplexity
