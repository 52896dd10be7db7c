"""Factors of stacked experts in the terms of PEFT: one pair of matrices for all of them, on a parameter, not a module.

PEFT (``target_parameters``) wraps the module that owns a parameter (experts, out, in) or (experts, in, out) and keeps

    lora_A (experts · r, in):  row e r + i of expert e;     lora_B (out, r · experts):  column i experts + e

A second parameter of a module is wrapped around the first, so that names say ``base_layer`` once for every wrapper
outside. Experts of transformers have two parameters, and define ``down_proj`` last: it is outermost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from .errors import AdapterError

__all__ = ["flatten", "parameter_of", "unflatten"]

Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor]]

_INSIDE = ".base_layer"
_OUTERMOST = "down_proj"


def flatten(factors: Factors, by_parameter: Collection[str]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Plain factors by the name of PEFT's wrapper, its ``target_modules`` and its ``target_parameters``.

    Args:
        factors: full module path → (B (m, r), A (r, k)), and full name of a parameter → (B (experts, m, r),
            A (experts, r, k)).
        by_parameter: modules whose weight is named as a parameter: PEFT takes a module with the name that an expert's
            layer has in files for such a layer.
    """
    plain: dict[str, Any] = {}
    for name, (b, a) in factors.items():
        if b.ndim == 3:
            module, _, leaf = name.rpartition(".")
            wrapper = module + _INSIDE if leaf != _OUTERMOST and f"{module}.{_OUTERMOST}" in factors else module
            plain[wrapper] = (b.permute(1, 2, 0).reshape(b.shape[1], -1), a.reshape(-1, a.shape[2]))
        else:
            plain[name] = (b, a)
    modules = sorted(name for name, (b, _) in factors.items() if b.ndim == 2 and name not in by_parameter)
    parameters = [name if b.ndim == 3 else f"{name}.weight" for name, (b, _) in factors.items() if name not in modules]
    return plain, modules, sorted(parameters)


def parameter_of(wrapper: str, targets: Iterable[str]) -> str:
    """Full name of the parameter of a ``wrapper``, whose name says ``base_layer`` for every wrapper outside.

    Raises:
        AdapterError: none of the ``targets``, the ``target_parameters``, or one that cannot be told from its fellows.
    """
    module = wrapper.replace(_INSIDE, "")
    found: set[str] = set()
    for target in targets:
        head, _, leaf = target.rpartition(".")
        if not head or f".{module}".endswith(f".{head}"):
            found.add(leaf)
    outside_in = sorted(found, key=lambda leaf: leaf != _OUTERMOST)
    depth = wrapper.count(_INSIDE)
    if depth >= len(outside_in) or len(outside_in) > 1 + (_OUTERMOST in found):
        raise AdapterError(f"factors of {wrapper} belong to none of the target_parameters that lowbit can tell apart")
    return f"{module}.{outside_in[depth]}"


def unflatten(name: str, rank: Any, b: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """B (experts, m, r) and A (experts, r, k) of the parameter ``name``, from (m, r · experts) and (experts · r, k).

    Raises:
        AdapterError: factors that do not fit the ``rank`` of one expert.
    """
    if not isinstance(rank, int) or rank < 1 or a.shape[0] % rank:
        raise AdapterError(f"factors of {name} have {a.shape[0]} rows, which is no multiple of the rank {rank}")
    experts = a.shape[0] // rank
    return b.reshape(b.shape[0], rank, experts).permute(2, 0, 1).contiguous(), a.reshape(experts, rank, -1)
