"""What the programs that load an output make of one architecture, found by asking their code or read in it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from .configs import empty_model

__all__ = ["peft_refusal", "unpacked_alone"]

# As PEFT 0.21 checks the targets of models of these types.
_PEFT_TYPES = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
_PEFT_REFUSED = ("out_proj", "conv1d")


def peft_refusal(model_type: str, modules: Iterable[str]) -> str | None:
    """Why PEFT loads no adapter with factors of these modules; None where it does."""
    refused = [name for name in modules if name.rpartition(".")[2] in _PEFT_REFUSED]
    if model_type in _PEFT_TYPES and refused:
        return f"PEFT refuses an adapter of {refused[0]} in models of type {model_type}"
    return None


def unpacked_alone(cls: type[Any], config: Any, modules: Iterable[str]) -> str | None:
    """Why ``from_pretrained`` cannot keep these modules of the class packed; None where it can.

    Once it has placed the weights of a file, transformers runs the initialisation of every module, and a packed one has
    no ``weight``. Whether a class minds is seen by running its initialisation without values.
    """
    model = empty_model(cls, config, cls.__name__)
    with torch.device("meta"), torch.no_grad():
        packed = set(modules)
        for name, module in model.named_modules():
            module._is_hf_initialized = False  # by its constructor
            if name in packed:
                del module.weight
        try:
            model.initialize_weights()
        except AttributeError as error:
            return f"{cls.__name__} of transformers initialises weights that a packed layer does not have ({error})"
    return None
