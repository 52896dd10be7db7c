"""What may be compressed. Formats open anything they can read; a workflow asks here before it works."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowbit.formats.configs import decoder_class, not_a_decoder
from lowbit.formats.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["causal_class"]


def causal_class(config: PretrainedConfig, source: str) -> type[Any]:
    """The decoder-only class of ``transformers`` that computes this configuration.

    Raises:
        CheckpointError: encoders, encoder-decoders, and anything else that does not predict the next token.
    """
    found = decoder_class(config)
    if found is None:
        raise CheckpointError(f"{source}: {not_a_decoder(config)}")
    return found
