"""Statistics of a model and, from them, what every setting of every module would take and cost: the table of a plan.

A plan is made once a model and calibration text. Any size after that is decided from its ``plan.json`` alone, in a
second, and a compression takes the moments of gradients out of its directory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.compression.decision import Decision, Table, as_row, parse_size
from lowbit.runs.errors import RecipeError
from lowbit.runs.events import Event

from .options import CompressOptions, PlanOptions

__all__ = ["PlanResult", "chosen", "is_plan", "plan", "read_plan", "table_of", "told"]

_RECORD = "plan.json"
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

    def sizes(self, count: int) -> list[Decision]:
        """Decisions at ``count`` sizes in equal ratios, from the smallest files to those that lose next to nothing."""
        curve = self.table.frontier()
        most = next(size for size, kl in curve if kl <= _NEXT_TO_NOTHING or size == curve[-1][0])
        ratio = (most / self.table.least) ** (1 / max(1, count - 1))
        return [self.table.within(int(self.table.least * ratio**step) + 1) for step in range(count)]


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


def is_plan(folder: Path) -> bool:
    """Whether a directory holds a plan."""
    return (folder / _RECORD).is_file()


def read_plan(folder: Path) -> dict[str, Any]:
    """The record of a finished plan.

    Raises:
        RecipeError: there is none, or it is damaged.
    """
    from lowbit.report.plan import require_plan

    path = folder / _RECORD
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: no plan ({' '.join(str(error).split())[:100]})") from error
    require_plan(record, str(path))
    found: dict[str, Any] = record
    return found


def table_of(record: Mapping[str, Any], options: CompressOptions) -> Table:
    """The table of a plan with what the options pin in it."""
    return Table(record, keep=options.kept, bits_of=options.pinned)


def told(record: Mapping[str, Any], decision: Decision) -> dict[str, Any]:
    """What the record of a compression says of a decision, with the curve that it lies on."""
    from lowbit.report.plan import frontier_points

    return {
        "bytes": decision.bytes,
        "kl_predicted": decision.kl,
        "lower_bound": decision.lower_bound,
        "settings": {name: as_row(setting) for name, setting in decision.settings.items()},
        "frontier": frontier_points(record),
    }


def chosen(table: Table, options: CompressOptions) -> Decision | None:
    """What the options decide, or None where they ask for no size.

    Raises:
        RecipeError: no settings are that small.
    """
    if options.size is not None:
        return table.within(parse_size(options.size))
    if options.bits_per_weight is not None:
        return table.within(int(options.bits_per_weight * table.weights / 8))
    if options.max_kl is not None:
        return table.below(options.max_kl)
    return None
