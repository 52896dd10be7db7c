"""lowbit: low-bit compression and adaptation of neural networks, specified, checked and usable.

Importing this package loads neither torch, numba, transformers nor hypothesis.

>>> import lowbit
>>> reference = lowbit.load("reference")
>>> reference.round_half_even([0.5, 1.5, -0.5]).tolist()
[0.0, 2.0, -0.0]
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._version import SPEC_VERSION, __version__
from .backends import BackendError, available, load

if TYPE_CHECKING:
    from lowbit.recipes.compress import CompressResult
    from lowbit.recipes.evaluate import EvalResult
    from lowbit.recipes.plan import PlanResult

__all__ = ["SPEC_VERSION", "BackendError", "__version__", "available", "compress", "evaluate", "load", "plan"]


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


def plan(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    on_event: Callable[[Any], None] | None = None,
    **options: Any,
) -> PlanResult:
    """What a model would lose at every size, as the command ``lowbit plan`` says it; needs the extra ``hf``.

    ``lowbit.plan("model", "plan", size="70MB").decision``

    Args:
        model: directory, hub id or GGUF file; or the directory of a plan, which is then read.
        out: directory of the plan; needed unless ``model`` is one.
        on_event: called with every :class:`lowbit.runs.events.Event`.
        options: fields of :class:`lowbit.recipes.options.PlanOptions`.

    Raises:
        RecipeError: anything wrong with the inputs, in one message.
    """
    from lowbit.recipes.decide import is_plan
    from lowbit.recipes.options import PlanOptions, parse_options
    from lowbit.recipes.plan import plan as work

    folder = os.fspath(model)
    if out is None and is_plan(folder):
        out = folder
    given = options if out is None else {"out": os.fspath(out), **options}
    return work(parse_options(PlanOptions, model=folder, **given), on_event)


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
