"""What may be compressed. Formats open anything they can read; a workflow asks here before it works."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

from lowbit.formats.configs import decoder_class, not_a_decoder
from lowbit.runs.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["Reason", "Unsupported", "causal_class"]


class Reason(enum.Enum):
    """Why an architecture that ``transformers`` runs is not compressed: all the reasons there are."""

    NOT_A_DECODER = "does not predict the next token from those before it"
    NOT_BUILT = "transformers cannot build the model from this configuration"
    NO_BLOCKS = "has no list of decoder blocks"
    NO_LINEARS = "has no linear layers in its blocks"
    BETWEEN = "computes on the hidden state between its blocks, or calls a block more than once"
    SKIPS = "does not call all of its blocks"
    CARRIES = "hands more than the hidden state from block to block"
    OUTPUT = "has blocks that return something other than a hidden state of the size of their input"
    LENGTH = "computes on sequences of another length than that of the text"
    INPUTS = "needs more than the tokens of a text"
    LAYOUT = "keeps weights in a layout that cannot hold them compressed"


class Unsupported(RecipeError):
    """An architecture that is not compressed.

    Attributes:
        reason: why, one of a fixed list.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    @classmethod
    def of(cls, reason: Reason, source: str, name: str, detail: str = "") -> Unsupported:
        """With the usual message: the class ``name``, the reason, and what was seen."""
        where = f" ({detail})" if detail else ""
        return cls(reason, f"{source}: {name} {reason.value}{where}; such architectures are not supported")


def causal_class(config: PretrainedConfig, source: str) -> type[Any]:
    """The class of ``transformers`` that computes this configuration and predicts the next token.

    Raises:
        Unsupported: encoders, encoder-decoders, and anything else that does not predict the next token.
    """
    found = decoder_class(config)
    if found is None:
        raise Unsupported(Reason.NOT_A_DECODER, f"{source}: {not_a_decoder(config)}")
    return found
