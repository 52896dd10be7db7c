"""What a configuration may ask for: nothing that its files cannot answer, and nothing that only some readers see.

A few digits in ``config.json`` make transformers build a million blocks or allocate a terabyte. The files themselves
say how much there can be.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from .errors import CheckpointError

__all__ = ["building", "require_plain", "require_sizes"]

# Whole numbers by the name they stand under; in use are 126 blocks, a thousand experts, ten million places.
_LIMITS = (
    (re.compile("layer|block|depth|expert|attention_types|pattern"), 100_000),
    (re.compile("position|ctx|seq|context"), 1 << 25),
    (re.compile("theta|base|max_length|seed|token"), 1 << 63),
    (re.compile(""), 1 << 32),
)
_ELSEWHERE = ("transformers_weights", "configuration_files")


class _Stored(Protocol):
    source: str

    def names(self) -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...


def require_plain(config: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """The ``quantization_config`` of a ``config.json``, None for a dense model.

    Raises:
        CheckpointError: sizes out of all proportion, a key that leads to other files, or a quantization that is no
            object.
    """
    for key in _ELSEWHERE:
        if config.get(key) is not None:
            raise CheckpointError(
                f"{where}: {key} = {str(config[key])[:100]} leads to files of other names, which lowbit does not "
                "follow; give them the usual names and remove the key"
            )
    require_sizes(config, where)
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise CheckpointError(f"{where}: architectures = {str(names)[:100]} is not a list of names")
    quantization = config.get("quantization_config")
    if quantization is not None and not isinstance(quantization, dict):
        raise CheckpointError(f"{where}: quantization_config is not an object but {type(quantization).__name__}")
    return quantization


def require_sizes(value: Any, where: str, key: str = "") -> None:
    """Refuse whole numbers, at any depth, that are no size of a model: constructors make lists of that length.

    Raises:
        CheckpointError: naming the number and what it stands under.
    """
    if isinstance(value, Mapping):
        for name, item in value.items():
            require_sizes(item, where, str(name))
    elif isinstance(value, list):
        for item in value:
            require_sizes(item, where, key)
    elif isinstance(value, int):
        limit = next(limit for pattern, limit in _LIMITS if pattern.search(key))
        if abs(value) > limit:
            raise CheckpointError(f"{where}: {key} is larger than {limit}, which no model is")


@contextlib.contextmanager
def building(checkpoint: _Stored) -> Iterator[None]:
    """Lets a model be constructed that ``checkpoint`` can fill, and stops one that it cannot.

    Raises:
        CheckpointError: more parameters than tensors, a parameter larger than all of them together, or whatever
            transformers raises on a configuration that contradicts itself.
    """
    names = checkpoint.names()
    values = sum(math.prod(checkpoint.shape(name)) for name in names)
    most = 1000 + 4 * len(names)  # parameters that share a tensor, or are replaced during construction
    count, thread = 0, threading.get_ident()

    def registered(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        if parameter is None or threading.get_ident() != thread:
            return
        count += 1
        if count > most or parameter.numel() > values:
            what = f"more than {most} parameters" if count > most else f"a parameter of {parameter.numel()} values"
            raise CheckpointError(
                f"{checkpoint.source}: its configuration needs {what}, the files hold {len(names)} tensors of {values} "
                "values in all: they do not belong together"
            )

    hook = register_module_parameter_registration_hook(registered)
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # constructors raise whatever their arithmetic does: ZeroDivisionError, KeyError, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{checkpoint.source}: transformers cannot build this model: {reason[:300]}") from error
    finally:
        hook.remove()
