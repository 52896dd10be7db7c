"""What the options of a compression or of a plan mean for the model at hand: what computes, a method, and tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lowbit.compression.arrays import Arrays
from lowbit.compression.method import Method
from lowbit.data.text import TokenRows, load_rows
from lowbit.formats.checkpoint import Checkpoint, open_checkpoint
from lowbit.formats.errors import CheckpointError
from lowbit.models.decoder import Decoder
from lowbit.models.machine import check_device
from lowbit.runs.errors import RecipeError
from lowbit.runs.events import Note, OnEvent

from .options import CompressOptions

__all__ = ["Job", "one_kind_of_error", "open_job", "tokens_of"]


@contextlib.contextmanager
def one_kind_of_error() -> Iterator[None]:
    """What is wrong with a model's files is what a user can put right."""
    try:
        yield
    except CheckpointError as error:
        raise RecipeError(str(error)) from error


class Job(NamedTuple):
    """A model, and what works on it."""

    checkpoint: Checkpoint
    decoder: Decoder
    arrays: Arrays
    method: Method


def open_job(options: CompressOptions, tell: OnEvent, checkpoint: Checkpoint | None = None) -> Job:
    """Open the model of the options, or take a ``checkpoint`` that is open already.

    Raises:
        RecipeError: a model or a device that cannot be served.
    """
    check_device(options.device)
    checkpoint = checkpoint or open_checkpoint(options.model)
    _require_original(checkpoint, Path(options.model).expanduser(), tell)
    decoder = Decoder(checkpoint, dtype=options.dtype, device=options.device)
    decoder.inventory.check_length(options.length)
    arrays = Arrays.load(options.backend, device=options.device, threads=options.threads)
    return Job(checkpoint, decoder, arrays, _method(options, decoder.storage))


def _require_original(checkpoint: Checkpoint, folder: Path, tell: OnEvent) -> None:
    """Say it of a model that was compressed before, and refuse one whose adapter would be left out."""
    if (folder / "adapter" / "adapter_config.json").exists():
        raise RecipeError(
            f"{checkpoint.source}: its adapter in {folder / 'adapter'} would be left out; start from the "
            "full-precision model, or merge the adapter into it first"
        )
    if checkpoint.quantization is not None:
        tell(
            Note(
                f"{checkpoint.source} was compressed before: what that lost is taken for the model, and no measure of "
                "this run shows it"
            )
        )


def _method(options: CompressOptions, storage: torch.dtype) -> Method:
    """The options with nothing left open."""
    assert options.quantizer is not None
    # Joint pruning and quantization fits no grid, but the guess at its adapter does, and may search.
    clips = options.clips or (options.clip_search is None and options.compensate == "eora" and options.bits < 16)
    return Method(
        bits=options.bits,
        scheme=options.scheme,
        group_size=options.group_size,
        quantizer=options.quantizer,
        act_order=options.orders,
        static_groups=options.static_groups,
        clip_search=clips,
        damping=options.damps,
        sparsity=options.sparsity,
        pruner=options.pruner,
        compensate=options.compensate,
        rank=1 if options.decides else options.rank,  # every setting has its own
        rounds=options.rounds,
        adapter_aware=options.aware,
        adapter_bits=options.adapter_bits,
        adapter_damping=options.adapter_damps,
        spectrum=options.spectrum,
        storage=storage,
    )


def tokens_of(options: CompressOptions, tokenizer: Any) -> tuple[TokenRows, TokenRows | None]:
    """Rows to calibrate on, and windows to evaluate on if that is asked for."""
    rows = load_rows(
        options.calibration,
        tokenizer,
        samples=options.samples,
        length=options.length,
        seed=options.seed if options.sampling == "random" else None,
        **_as_text(options),
    )
    if options.evaluate is None:
        return rows, None
    tokens = options.evaluate_tokens
    windows = load_rows(
        options.evaluate,
        tokenizer,
        samples=None if tokens is None else max(1, tokens // options.evaluate_length),
        length=options.evaluate_length,
        skip=options.evaluate_skip,
        purpose="evaluation",
        **_as_text(options),
    )
    return rows, windows


def _as_text(options: CompressOptions) -> dict[str, Any]:
    """How text becomes tokens, the same for both."""
    return {
        "field": options.text_field,
        "chat_template": options.chat_template,
        "special_tokens": options.special_tokens,
    }
