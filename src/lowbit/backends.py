"""The door to backends: by name or import path, never by the type of an array."""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

from ._hints import hint

if TYPE_CHECKING:
    from lowbit.reference.protocol import Complete

__all__ = ["BackendError", "available", "load"]

_GROUP = "lowbit.backends"
_EXTRAS = {"numba": "numba", "llvmlite": "numba", "torch": "torch", "triton": "torch"}


class BackendError(ImportError):
    """A backend cannot be found, imported or configured; the message says what to do."""


def available() -> dict[str, str]:
    """Names of the registered backends and where each lives: ``{"numba": "lowbit.accel.numba_cpu", ...}``.

    Nothing is imported, so a name listed here may still lack its dependency.
    """
    return {point.name: point.value for point in sorted(metadata.entry_points(group=_GROUP), key=lambda p: p.name)}


def load(name: str, /, **options: Any) -> Complete[Any]:
    """Load a backend by entry-point name or import path; never by looking at array types, never a silent substitute.

    Args:
        name: a name from :func:`available`, ``"package.module"`` or ``"package.module:attribute"``.
        options: passed to the backend's ``configure(**options)``, such as ``device="cuda"``.

    Returns:
        The module or object, which satisfies :class:`lowbit.reference.protocol.Backend`. Type checkers take it to have
        every operation of the contract.

    Raises:
        BackendError: unknown name, missing dependency (with the extra to install), options that the backend
            does not take, or an object that is not a backend.
    """
    target = available().get(name, name)
    module_name, _, attribute = target.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise BackendError(f"no backend {name!r}: neither a registered name nor the path of a module")
    try:
        backend: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in _EXTRAS:
            raise BackendError(f"backend {name!r} needs {missing}: {hint(_EXTRAS[missing])}") from error
        if missing and module_name.split(".")[0] == missing:
            known = ", ".join(available()) or "none"
            raise BackendError(
                f"no backend {name!r}: neither a registered name ({known}) nor an importable module"
            ) from error
        raise BackendError(f"backend {name!r} cannot be imported: {error}") from error
    for part in filter(None, attribute.split(".")):
        if not hasattr(backend, part):
            raise BackendError(f"backend {name!r}: module {module_name!r} has no attribute {attribute!r}")
        backend = getattr(backend, part)
    if options:
        configure = getattr(backend, "configure", None)
        if configure is None:
            raise BackendError(f"backend {name!r} takes no options, got {', '.join(sorted(options))}")
        try:
            backend = configure(**options)
        except (TypeError, ValueError) as error:
            raise BackendError(f"backend {name!r} refuses its options: {error}") from error
    required = ("name", "compute_dtype", "device", "asarray", "to_numpy")
    absent = [field for field in required if not hasattr(backend, field)]
    if absent:
        raise BackendError(f"{name!r} is not a backend: it lacks {', '.join(absent)}")
    return backend  # type: ignore[no-any-return]
