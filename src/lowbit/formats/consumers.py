"""What the programs that load an output make of one architecture, found by asking their code or read in it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from .configs import empty_model
from .peft import WEIGHTS, module_names, read_config
from .safetensors_file import SafetensorsFile

__all__ = ["peft_refusal", "unpacked_alone"]

_PLACES = ("target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern")
_PLAIN = re.compile(r"[\w.^$-]*")  # an expression that is matched without search


def peft_refusal(model: Any, folder: Path) -> str | None:
    """Why PEFT loads nothing of the adapter in ``folder``, or which factors it leaves out; "" where it takes all.

    PEFT turns targets and names of factors into those of the classes of today, experts among them, and says nothing of
    what it then finds no place for. It is seen by letting it load factors without values into a ``model`` without
    values, which is not the same after it. None where patterns of the file would have to be given to PEFT.

    Raises:
        CheckpointError: an adapter that cannot be read.
    """
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    config = read_config(folder)
    settings = {key: config[key] for key in ("r", "rank_pattern", *_PLACES) if config.get(key) is not None}
    entries = SafetensorsFile(folder / WEIGHTS).entries
    modules = module_names(entries)
    if not all(_PLAIN.fullmatch(pattern) for pattern in _patterns(settings)):
        return None
    empty = {name: torch.empty(entries[name].shape, device="meta") for name in modules}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings), low_cpu_mem_usage=True)
            found = set_peft_model_state_dict(adapted, empty, low_cpu_mem_usage=True)
        except Exception as error:  # whatever its arithmetic raises
            return f"PEFT refuses the adapter: {' '.join(str(error).split())[:300]}"
    # What was renamed to no purpose is missing under its own name.
    left = set(module_names([*found.unexpected_keys, *found.missing_keys]).values())
    left = left & set(modules.values()) or set(found.unexpected_keys)
    return f"PEFT leaves out the factors of {', '.join(sorted(left))}" if left else ""


def _patterns(settings: Mapping[str, Any]) -> list[str]:
    """What PEFT takes for regular expressions."""
    names = [settings.get(key, ()) for key in ("target_modules", "exclude_modules")]
    layers = settings.get("layers_pattern", ())
    stated = [name for name in [*names, layers] if isinstance(name, str)]
    return [*stated, *(layers if isinstance(layers, list) else ()), *settings.get("rank_pattern", ())]


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
