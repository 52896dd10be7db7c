"""What comes in at the door of every operation: arrays of the backend's own library, and plain Python numbers.

Operations answer NumPy's scalars where they decide something per layer, such as a rank, and the next one takes them as
options. Python's own number of the same value goes in, so that no arithmetic with an option wraps at eight bits.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from lowbit.reference.errors import SpecError
from lowbit.reference.protocol import declarations

__all__ = ["guard", "refuse_unlike"]


def refuse_unlike(name: str, x: Any) -> None:
    """Refuse NumPy arrays that compute otherwise: matrices, and masked ones, whose mask would be lost."""
    if isinstance(x, np.matrix | np.ma.MaskedArray):
        raise SpecError("A-3", f"{name} must be a plain array, got {_kind(x)}")


def _kind(x: object) -> str:
    return f"{type(x).__module__}.{type(x).__qualname__}".removeprefix("builtins.")


def _plain(x: Any) -> Any:
    """Python's numbers for NumPy's, also inside tuples and lists."""
    if isinstance(x, np.generic):
        return x.item()
    if isinstance(x, tuple | list):
        return type(x)(*map(_plain, x)) if hasattr(x, "_fields") else type(x)(map(_plain, x))
    return x


def _refuse_foreign(name: str, x: Any, own: type, kind: str) -> None:
    """Refuse arrays of another library, also inside tuples and lists."""
    if isinstance(x, tuple | list):
        for part in x:
            _refuse_foreign(name, part, own, kind)
    elif not isinstance(x, own | np.generic) and hasattr(type(x), "__array__"):
        raise SpecError("A-3", f"{name} must be a {kind}, got {_kind(x)}; convert it with asarray()")
    else:
        refuse_unlike(name, x)


def _arrays(operation: str) -> dict[str, type]:
    """Arguments that are one array by the contract, with None's class for those that may be left out."""
    hints = get_type_hints(declarations()[operation]) if operation in declarations() else {}
    kinds = {
        name: get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,) for name, hint in hints.items()
    }
    return {
        n: kind[-1] for n, kind in kinds.items() if isinstance(kind[0], TypeVar) and kind[1:] in ((), (type(None),))
    }


def _guarded(function: Callable[..., Any], own: type, kind: str) -> Callable[..., Any]:
    arrays = _arrays(function.__name__)
    names = [p.name for p in inspect.signature(function).parameters.values()]

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        for name, x in zip(names, args, strict=False):
            _refuse_foreign(name, x, own, kind)
            if name in arrays and not isinstance(x, own) and (x is not None or arrays[name] is not type(None)):
                raise SpecError("A-3", f"{name} must be a {kind}, got {_kind(x)}; convert it with asarray()")
        return function(*map(_plain, args), **{name: _plain(x) for name, x in options.items()})

    return run


def guard(operations: dict[str, Any], own: type, kind: str) -> None:
    """Put the door before every function of a module's namespace.

    Args:
        operations: the namespace; public functions in it are replaced.
        own: class of the backend's arrays.
        kind: what a refusal calls them.
    """
    for name, function in operations.items():
        if inspect.isfunction(function) and not name.startswith("_"):
            operations[name] = _guarded(function, own, kind)
            operations[name].__module__ = operations["__name__"]  # where pickle finds it
