"""What the record of a plan answers: its table under the options that pin something, and the choice for a size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowbit.compression.decision import Decision, Table, as_row, parse_size
from lowbit.report.plan import frontier_points, require_plan
from lowbit.runs.errors import RecipeError

from .options import DecisionOptions

__all__ = ["RECORD", "chosen", "is_plan", "read_plan", "table_of", "told"]

RECORD = "plan.json"


def is_plan(folder: str | Path) -> bool:
    """Whether a directory holds a plan."""
    return (Path(folder).expanduser() / RECORD).is_file()


def read_plan(folder: Path) -> dict[str, Any]:
    """The record of a finished plan.

    Raises:
        RecipeError: there is none, or it is damaged.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: no plan ({' '.join(str(error).split())[:100]})") from error
    require_plan(record, str(path))
    found: dict[str, Any] = record
    return found


def table_of(record: Mapping[str, Any], options: DecisionOptions) -> Table:
    """The table of a plan with what the options pin in it."""
    return Table(record, keep=options.kept, bits_of=options.pinned)


def told(record: Mapping[str, Any], decision: Decision) -> dict[str, Any]:
    """What the record of a compression says of a decision, with the curve that it lies on."""
    return {
        "bytes": decision.bytes,
        "kl_predicted": decision.kl,
        "lower_bound": decision.lower_bound,
        "settings": {name: as_row(setting) for name, setting in decision.settings.items()},
        "frontier": frontier_points(record),
    }


def chosen(table: Table, options: DecisionOptions) -> Decision | None:
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
