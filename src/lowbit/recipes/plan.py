"""Statistics of a model and, from them, what every setting of every module would take and cost: the table of a plan.

A plan is made once a model and calibration text. Any size after that is decided from its ``plan.json`` alone, in a
second, and a compression takes the moments of gradients out of its directory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.compression.decision import Decision, Table
from lowbit.runs.events import Event

from .decide import chosen, is_plan, read_plan, table_of, told
from .options import PlanOptions

__all__ = ["PlanResult", "plan"]

_NEXT_TO_NOTHING = 0.001  # nats per token


@dataclass(frozen=True)
class PlanResult:
    """What :func:`plan` found."""

    record: dict[str, Any]  # content of plan.json
    table: Table
    decision: Decision | None  # where a size was asked for
    out: Path

    @property
    def settled(self) -> dict[str, Any] | None:
        """The decision, JSON-ready."""
        return None if self.decision is None else told(self.record, self.decision)

    def sizes(self, count: int) -> list[tuple[int, float]]:
        """Bytes and nats at about ``count`` sizes in equal ratios from the smallest files on: vertices of the curve.

        The last lose next to nothing, or are as large as what was given.
        """
        curve = self.table.frontier()
        most = next(size for size, kl in curve if kl <= _NEXT_TO_NOTHING or size == curve[-1][0])
        most = max(self.table.least, min(most, self.table.given))
        ratio = (most / self.table.least) ** (1 / max(1, count - 1))
        targets = [self.table.least * ratio**step * (1 + 1e-9) for step in range(count)]
        return list(dict.fromkeys(max(point for point in curve if point[0] <= target) for target in targets))


def plan(options: PlanOptions, on_event: Callable[[Event], None] | None = None) -> PlanResult:
    """Plan the compression of ``options.model`` into the directory ``options.out``, and decide if a size is given.

    Where ``options.model`` is the directory of a plan already, it is only read.

    Raises:
        RecipeError: anything that a user can put right; finished blocks stay, and the same command continues.
    """
    folder = Path(options.model).expanduser()
    if is_plan(folder):
        record, out = read_plan(folder), folder
    else:
        from .planning import make_plan_folder

        record, out = make_plan_folder(options, on_event or (lambda _: None)), options.out
    table = table_of(record, options)
    return PlanResult(record, table, chosen(table, options), out)
