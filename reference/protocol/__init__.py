"""The backend contract: one Protocol per chapter, satisfied by a plain module or any object.

Arrays are positional-only and of the backend's own type; options are keyword-only. A backend may leave out
operations ("not implemented" in a report); what it has must keep the clauses named in brackets. The normative text
of each operation is the docstring of the function of the same name in :mod:`lowbit.reference`.

Every operation: never writes to its inputs [A-1], accepts non-contiguous arrays [A-2], refuses bad arguments with
:class:`~lowbit.reference.errors.SpecError` before any work [A-3], and refuses NaN and infinities in weights,
errors and statistics naming the argument and the first position [A-4].

Floating results have the input's dtype, at least float32; codes are int32; masks are bool; moment nodes float64, and
so are random numbers and look-up tables. Of floats of several widths the widest counts, but for second moments and
other statistics beside a weight or an error: they are float64 often, and do not widen what is computed with them.
An option may be a number of NumPy's, such as another operation answers, and is taken as Python's of its value [A-3a];
matrices and masked arrays are refused [A-3b].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

from ..types import Arr
from .chapters import chapter_of
from .codes import BinaryOps, CodebookOps, MixedPrecisionOps, PhiloxOps, RoundingOps, TernaryOps, UniformOps
from .layers import (
    ChoiceOps,
    DivergenceOps,
    EigenspaceOps,
    GptqOps,
    LoftqOps,
    LowRankOps,
    MomentOps,
    RankBudgetOps,
    RotationOps,
)
from .tables import LutSearchOps, TableOps
from .training import CoresetOps, DiagnosticOps, DistillOps, DoraOps, LearnedStepOps, OscillationOps, ScaleTuningOps


@runtime_checkable
class Backend(Protocol[Arr]):
    """What every backend says of itself; everything else is optional, chapter by chapter."""

    name: str  # short name for reports
    compute_dtype: str  # "float64" or "float32": the precision of sums when inputs are float32
    device: str  # "cpu", "cuda", ... for reports

    def asarray(self, x: npt.NDArray[Any], /) -> Arr:
        """NumPy → own array on the backend's device, same dtype and values."""
        ...

    def to_numpy(self, x: Arr, /) -> npt.NDArray[Any]:
        """Own array → NumPy, same dtype and values."""
        ...


class Complete(
    Backend[Arr],
    PhiloxOps[Arr],
    RoundingOps[Arr],
    UniformOps[Arr],
    CodebookOps[Arr],
    TernaryOps[Arr],
    LearnedStepOps[Arr],
    OscillationOps[Arr],
    BinaryOps[Arr],
    ScaleTuningOps[Arr],
    MixedPrecisionOps[Arr],
    GptqOps[Arr],
    MomentOps[Arr],
    LowRankOps[Arr],
    LoftqOps[Arr],
    EigenspaceOps[Arr],
    DivergenceOps[Arr],
    RankBudgetOps[Arr],
    ChoiceOps[Arr],
    DoraOps[Arr],
    RotationOps[Arr],
    TableOps[Arr],
    LutSearchOps[Arr],
    CoresetOps[Arr],
    DistillOps[Arr],
    DiagnosticOps[Arr],
    Protocol[Arr],
):
    """A backend with every operation, for type checkers: what :func:`lowbit.load` gives.

    A backend that lacks an operation has no attribute of its name.
    """


PROTOCOLS: tuple[type, ...] = (
    PhiloxOps,
    RoundingOps,
    UniformOps,
    CodebookOps,
    TernaryOps,
    LearnedStepOps,
    OscillationOps,
    BinaryOps,
    ScaleTuningOps,
    MixedPrecisionOps,
    GptqOps,
    MomentOps,
    LowRankOps,
    LoftqOps,
    EigenspaceOps,
    DivergenceOps,
    RankBudgetOps,
    ChoiceOps,
    DoraOps,
    RotationOps,
    TableOps,
    LutSearchOps,
    CoresetOps,
    DistillOps,
    DiagnosticOps,
)
"""One or more for each chapter, in reading order."""

CHAPTERS: dict[str, str] = {}
"""Letter and title of every chapter, in reading order."""
for _protocol in PROTOCOLS:
    CHAPTERS.setdefault(*chapter_of(_protocol))


@cache
def declarations() -> dict[str, Callable[..., Any]]:
    """Every operation of the contract as its protocol declares it, in reading order."""
    return {name: method for proto in PROTOCOLS for name, method in vars(proto).items() if not name.startswith("_")}


def operations() -> tuple[str, ...]:
    """Names of every operation of the contract, in reading order."""
    return tuple(declarations())


@cache
def letter(operation: str) -> str:
    """Letter of the chapter that an operation belongs to."""
    return next(chapter_of(proto)[0] for proto in PROTOCOLS if operation in vars(proto))


__all__ = [
    "CHAPTERS",
    "PROTOCOLS",
    "Backend",
    "BinaryOps",
    "ChoiceOps",
    "CodebookOps",
    "Complete",
    "CoresetOps",
    "DiagnosticOps",
    "DistillOps",
    "DivergenceOps",
    "DoraOps",
    "EigenspaceOps",
    "GptqOps",
    "LearnedStepOps",
    "LoftqOps",
    "LowRankOps",
    "LutSearchOps",
    "MixedPrecisionOps",
    "MomentOps",
    "OscillationOps",
    "PhiloxOps",
    "RankBudgetOps",
    "RotationOps",
    "RoundingOps",
    "ScaleTuningOps",
    "TableOps",
    "TernaryOps",
    "UniformOps",
    "declarations",
    "letter",
    "operations",
]
