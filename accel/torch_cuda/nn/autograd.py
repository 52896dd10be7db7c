"""What all modules share around the operations: gradients, and what compiling and half precision ask of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lowbit.reference.errors import SpecError

__all__ = ["applied", "unless_overflown", "without_autocast"]


def _apply(function: Any, args: tuple[Any, ...]) -> Tensor:
    y: Tensor = function.apply(*args)
    return y


def applied(function: type[torch.autograd.Function], *args: Any) -> Tensor:
    """``function.apply(*args)``, left alone by torch.compile: operations look at values, and switch precisions."""
    if torch.compiler.is_compiling():
        y: Tensor = torch.compiler.disable(_apply)(function, args)  # type: ignore[no-untyped-call]
        return y
    return _apply(function, args)


def without_autocast(x: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """``compute(x)``; under autocast without it, for an ``x`` of its dtype, as a linear layer would take it."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return compute(x)
    with torch.autocast(kind, enabled=False):
        return compute(x if x.dtype == torch.float64 else x.to(torch.get_autocast_dtype(kind)))


def unless_overflown(compute: Callable[[], tuple[Any, ...]], *like: Tensor | None) -> tuple[Any, ...]:
    """Gradients in the dtypes of ``like``, or NaN in its shapes where the one that came in has overflowed.

    Operations refuse what is not finite (A-4). In training with a GradScaler an overflow is how the scale is found:
    it has to reach the parameters, as it does in torch.
    """
    found: tuple[Any, ...]
    try:
        found = compute()
    except SpecError as error:
        if error.clause != "A-4":
            raise
        found = tuple(None if x is None else torch.full_like(x, torch.nan) for x in like)
    return tuple(None if x is None else g.to(x.dtype) for g, x in zip(found, like, strict=True))
