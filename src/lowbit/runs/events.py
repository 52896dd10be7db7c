"""What a recipe tells while it works: plain dataclasses, so that a console, a log or a notebook can show them.

Durations are seconds, memory is bytes (peak resident set of the process). Nothing here reaches ``lowbit.json``:
timings differ between runs, results do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

__all__ = [
    "BlockDone",
    "BlockResumed",
    "BlockStarted",
    "Estimated",
    "Evaluated",
    "EvaluationProgress",
    "Event",
    "Finished",
    "ModuleDone",
    "Note",
    "OnEvent",
    "Started",
    "Step",
]


@dataclass(frozen=True)
class Event:
    """Base of all events."""

    def as_dict(self) -> dict[str, Any]:
        """Fields plus ``event``, the class name: one JSON line."""
        return {"event": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class Started(Event):
    """Inputs are checked, work begins."""

    model: str
    out: str
    blocks: int
    modules: int
    samples: int
    length: int
    resumed_blocks: int  # blocks that an earlier, interrupted run has finished


@dataclass(frozen=True)
class Estimated(Event):
    """What the work to come will take, before it begins."""

    seconds_low: float  # of the whole run, what has passed included: between these two, if the machine stays as busy
    seconds_high: float
    memory: int  # peak resident set, about
    bytes_given: int  # of the weight files that were opened
    bytes_shipped: int  # of those of the result, the adapter included


@dataclass(frozen=True)
class Step(Event):
    """Something begins that may take a while and tells nothing of itself: "hashing the files of SmolLM2"."""

    what: str


@dataclass(frozen=True)
class Note(Event):
    """Something worth knowing that is not an error."""

    message: str


@dataclass(frozen=True)
class BlockStarted(Event):
    """A decoder block is read and its statistics are collected."""

    index: int
    total: int


@dataclass(frozen=True)
class ModuleDone(Event):
    """One linear layer is compressed and compensated."""

    name: str
    before: float  # relative output error ‖(W − Ŵ) Xᵀ‖ / ‖W Xᵀ‖ without the adapter
    after: float | None  # the same with the adapter, None without one
    seconds: float
    share: float | None = None  # of the weights in the linear layers of its block


@dataclass(frozen=True)
class BlockResumed(Event):
    """A block of the interrupted run was verified and its forward pass repeated."""

    index: int
    total: int
    seconds: float


@dataclass(frozen=True)
class BlockDone(Event):
    """A decoder block is written and verified."""

    index: int
    total: int
    seconds: float
    peak_memory: int
    seconds_left: float | None  # estimate over the remaining blocks


@dataclass(frozen=True)
class EvaluationProgress(Event):
    """One block of the evaluation pass is done."""

    index: int
    total: int
    seconds: float


@dataclass(frozen=True)
class Evaluated(Event):
    """Perplexity of one variant: "base", "compressed", "compensated" ..."""

    name: str
    perplexity: float
    tokens: int


@dataclass(frozen=True)
class Finished(Event):
    """Everything is written."""

    out: str
    seconds: float
    peak_memory: int
    bytes_before: int
    bytes_after: int
    already_done: bool  # True when an earlier run had finished: nothing was computed
    evaluation: float = 0.0  # of the seconds, those of the evaluation


OnEvent = Callable[[Event], None]
