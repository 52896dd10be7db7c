"""lowbit: low-bit compression and adaptation of neural networks, specified, checked and usable.

Importing this package loads neither torch, numba, transformers nor hypothesis.

>>> import lowbit
>>> reference = lowbit.load("reference")
>>> reference.round_half_even([0.5, 1.5, -0.5]).tolist()
[0.0, 2.0, -0.0]
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from importlib import metadata
from typing import TYPE_CHECKING, Any

from ._hints import hint

if TYPE_CHECKING:
    from lowbit.recipes.compress import CompressResult
    from lowbit.recipes.evaluate import EvalResult

__all__ = ["SPEC_VERSION", "BackendError", "__version__", "available", "compress", "evaluate", "load"]

__version__ = "0.1.0"
SPEC_VERSION = 1
"""Version of the specification: golden vectors and clause ids are frozen per version."""

_GROUP = "lowbit.backends"
_EXTRAS = {"numba": "numba", "llvmlite": "numba", "torch": "torch", "triton": "torch"}


class BackendError(ImportError):
    """A backend cannot be found, imported or configured; the message says what to do."""


def available() -> dict[str, str]:
    """Names of the registered backends and where each lives: ``{"numba": "lowbit.accel.numba_cpu", ...}``.

    Nothing is imported, so a name listed here may still lack its dependency.
    """
    return {point.name: point.value for point in sorted(metadata.entry_points(group=_GROUP), key=lambda p: p.name)}


def load(name: str, /, **options: Any) -> Any:
    """Load a backend by entry-point name or import path; never by looking at array types, never a silent substitute.

    Args:
        name: a name from :func:`available`, ``"package.module"`` or ``"package.module:attribute"``.
        options: passed to the backend's ``configure(**options)``, such as ``device="cuda"``.

    Returns:
        The module or object, which satisfies :class:`lowbit.reference.protocol.Backend`.

    Raises:
        BackendError: unknown name, missing dependency (with the extra to install), options that the backend
            does not take, or an object that is not a backend.
    """
    target = available().get(name, name)
    module_name, _, attribute = target.partition(":")
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
    return backend


def compress(
    model: Any,
    tokenizer: Any = None,
    /,
    *,
    out: str | os.PathLike[str],
    on_event: Callable[[Any], None] | None = None,
    **options: Any,
) -> CompressResult:
    """Compress a language model, as the command ``lowbit compress`` does; needs the extra ``hf``.

    ``lowbit.compress("model", out="out", bits=3)`` reads a directory, a GGUF file or a hub id;
    ``lowbit.compress(model, tokenizer, out="out", bits=3)`` takes a model of ``transformers`` that is in memory and
    gives the same bytes as its saved directory would.

    Args:
        model: a place, or a ``PreTrainedModel``, which is not changed.
        tokenizer: of a model in memory; a place brings its own.
        out: output directory; an interrupted run of the same call continues there.
        on_event: called with every :class:`lowbit.runs.events.Event`.
        options: fields of :class:`lowbit.recipes.options.CompressOptions`.

    Raises:
        RecipeError: anything that a user can put right, in one message.
        CheckpointError: a model in memory that is quantized already, or whose weights are elsewhere.
    """
    from lowbit.recipes.compress import compress as work
    from lowbit.recipes.options import CompressOptions, parse_options
    from lowbit.runs.errors import RecipeError

    named = isinstance(model, (str, os.PathLike))
    if named is not (tokenizer is None):
        raise RecipeError("a model in memory needs its tokenizer, and a model that is named brings its own")
    if named:
        return work(parse_options(CompressOptions, model=os.fspath(model), out=out, **options), on_event)
    from lowbit.formats.memory import MemoryCheckpoint

    checkpoint = MemoryCheckpoint(model, tokenizer)
    return work(
        parse_options(CompressOptions, model=checkpoint.source, out=out, **options), on_event, checkpoint=checkpoint
    )


def evaluate(
    path: str | os.PathLike[str], *, on_event: Callable[[Any], None] | None = None, **options: Any
) -> EvalResult:
    """Perplexity of a model, as the command ``lowbit eval`` measures it; needs the extra ``hf``.

    ``lowbit.evaluate("out", text="test.txt", adapter="out/adapter")``

    Args:
        path: model directory, compressed directory, hub id or GGUF file.
        on_event: called with every :class:`lowbit.runs.events.Event`.
        options: fields of :class:`lowbit.recipes.options.EvalOptions`.

    Raises:
        RecipeError: anything wrong with the inputs, in one message.
    """
    from lowbit.recipes.evaluate import evaluate as work
    from lowbit.recipes.options import EvalOptions, parse_options

    return work(parse_options(EvalOptions, path=os.fspath(path), **options), on_event)
