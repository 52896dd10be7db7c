"""Configurations of ``transformers``: opened without running anybody's code, and what they say of the model's class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["decoder_class", "load_config", "not_a_decoder"]


def load_config(folder: Path, source: str, **options: Any) -> PretrainedConfig:
    """The configuration of a model, from known architectures only.

    Raises:
        CheckpointError: an architecture that the installed transformers does not know.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, **options)
    except (ValueError, KeyError, OSError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{source}: its configuration is not one that the installed transformers knows, and lowbit never runs "
            f"code shipped with a model ({reason[:300]})"
        ) from error


def decoder_class(config: PretrainedConfig) -> type[Any] | None:
    """The class of a decoder-only language model that computes this configuration, or None for any other model.

    A vision-language model is one too: its language tower predicts the next token.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
    )

    stated = list(getattr(config, "architectures", None) or [])
    found: list[Any] = []
    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING):
        entry = mapping.get(type(config), None)
        found += entry if isinstance(entry, (tuple, list)) else [entry]
    found = [item for item in found if item is not None]
    own = [item for item in found if item.config_class is type(config)]  # others take the text part of it
    cls: Any = next((item for item in found if item.__name__ in stated), next(iter([*own, *found]), None))
    # BERT and its kin have a causal class too, for use as half of an encoder-decoder; GPT-NeoX says is_decoder=False
    # although it is nothing else.
    encoder = getattr(config, "is_decoder", True) is False and type(config) in MODEL_FOR_MASKED_LM_MAPPING
    encoder = encoder or getattr(config, "is_encoder_decoder", False)
    if cls is None or encoder or (stated and cls.__name__ not in stated):
        return None
    return cls  # type: ignore[no-any-return]


def not_a_decoder(config: PretrainedConfig) -> str:
    """Why :func:`decoder_class` has nothing to offer."""
    stated = list(getattr(config, "architectures", None) or [])
    name = stated[0] if stated else type(config).__name__
    return f"architecture {name} is not a decoder-only language model (…ForCausalLM) of transformers"
