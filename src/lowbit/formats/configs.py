"""Configurations of ``transformers``: opened without running anybody's code, and what they say of the model's class."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, UnreadError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["build_config", "decoder_class", "empty_model", "load_config", "not_a_decoder"]


def load_config(folder: Path, source: str) -> PretrainedConfig:
    """The configuration of a model directory, from known architectures only.

    Raises:
        UnreadError: an architecture that the installed transformers does not know.
    """
    from transformers import AutoConfig

    with _known(source):
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        # A file may name a kernel of the hub, which is code; which implementation runs is its caller's choice.
        config._attn_implementation = None
        config._experts_implementation = None
    return config


def build_config(settings: Mapping[str, Any], source: str) -> PretrainedConfig:
    """The configuration of these settings, ``model_type`` among them.

    Raises:
        UnreadError: as :func:`load_config`.
    """
    from transformers import AutoConfig

    with _known(source):
        return AutoConfig.for_model(**settings)


def empty_model(cls: type[Any], config: PretrainedConfig, source: str) -> Any:
    """The model of this configuration without values.

    Raises:
        CheckpointError: sizes that make no model.
    """
    import torch

    try:
        with torch.device("meta"):
            return cls(config)
    except Exception as error:  # each layer has its own way to say it
        raise CheckpointError(
            f"{source}: its configuration makes no {cls.__name__} ({' '.join(str(error).split())[:300]})"
        ) from error


@contextlib.contextmanager
def _known(source: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each class of configurations has its own way to say it
        reason = " ".join(str(error).split())
        raise UnreadError(
            f"{source}: its configuration is not one that the installed transformers knows, and lowbit never runs "
            f"code shipped with a model ({reason[:300]})"
        ) from error


def decoder_class(config: PretrainedConfig) -> type[Any] | None:
    """The class of a decoder-only language model that computes this configuration, or None for any other model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    stated = list(getattr(config, "architectures", None) or [])
    cls: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if isinstance(cls, (tuple, list)):
        cls = next((item for item in cls if item.__name__ in stated), cls[0])
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
