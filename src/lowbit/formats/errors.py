"""What a file can do wrong, said in one sentence with the file, the tensor and the way out."""

from __future__ import annotations

__all__ = ["AdapterError", "CheckpointError", "UnreadError"]


class CheckpointError(ValueError):
    """A checkpoint cannot be opened or read; the message names the file or tensor and says what to do."""


class AdapterError(CheckpointError):
    """An adapter directory cannot be read, or belongs to another base model."""


class UnreadError(CheckpointError):
    """Nothing is wrong with the file: it is of a kind that lowbit does not read, though others may."""
