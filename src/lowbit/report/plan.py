"""The page of a plan: what every size of the model would cost, and what one choice consists of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.backends import load
from lowbit.console import byte_size
from lowbit.runs.errors import RecipeError

from .parts import Cell, bit_map, flat_pairs, frontier_figure, nats, page_of, setting_text, uniform_text, without_beaten
from .schema import first_problem, load_schema

__all__ = ["frontier_points", "render_plan", "require_plan"]

_POINTS = 200  # of a curve that a record keeps
_SIZES = 12  # rows of the table
_DENSE = [16, None, 0, 16]
_EXACT = 2**53  # bytes that a sum may reach
_WORST = 1e100  # nats, far beyond any divergence: scales of a figure are finite below


def require_plan(record: Any, where: str) -> None:
    """Refuse what is no complete record of a plan.

    Raises:
        RecipeError: naming the first place that is wrong.
    """
    wrong = first_problem(record, load_schema("lowbit-plan-1")) or _mismatch(record)
    if wrong is not None:
        raise RecipeError(f"{where}: no record of a finished plan ({wrong}); plan into another directory")


def _mismatch(record: Mapping[str, Any]) -> str | None:
    """What no schema says: lengths that belong together, sums that can be computed with."""
    names = [module["name"] for module in record["modules"]]
    if len(set(names)) < len(names):
        return f"$.modules: {next(name for name in names if names.count(name) > 1)!r:.80} is there twice"
    if len({tuple(setting) for setting in record["settings"]}) < len(record["settings"]):
        return "$.settings: one is there twice"
    largest, worst = record["fixed_bytes"], 0.0
    for number, module in enumerate(record["modules"]):
        place, sizes, losses = f"$.modules[{number}]", module["bytes"], module["kl"]
        if not len(sizes) == len(losses) == len(record["settings"]):
            return f"{place}: {len(sizes)} bytes and {len(losses)} kl for {len(record['settings'])} settings"
        if any((size is None) != (loss is None) for size, loss in zip(sizes, losses, strict=True)):
            return f"{place}: bytes and kl are not known of the same settings"
        if all(size is None for size in sizes):
            return f"{place}: no setting fits it"
        largest += max(size for size in sizes if size is not None)
        worst += max(loss for loss in losses if loss is not None)
    if not 0 < largest < _EXACT or not worst < _WORST:
        return f"$.modules: {largest} bytes and {worst} nats in all"
    return None


def _table(record: Mapping[str, Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Bytes and nats (modules, settings); −1 and infinity where a setting does not fit."""
    sizes = np.array([[-1 if size is None else size for size in m["bytes"]] for m in record["modules"]], np.int64)
    losses = np.array([[math.inf if kl is None else kl for kl in m["kl"]] for m in record["modules"]], float)
    return sizes, losses


def frontier_points(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The least divergence that each size can have, as its table predicts it, and what uniform settings have.

    Args:
        record: of a plan that :func:`require_plan` accepts.

    Returns:
        By rising size at most 200 vertices ``{"bytes", "kl"}`` of the convex curve, settings mixed freely (clause
        K-12); then for every setting that fits every layer of the blocks ``{"bytes", "kl", "setting", "outer"}``,
        where ``outer`` is what embedding and head have: 16 bits, or the same bits without an adapter. ``bytes`` are
        those of all files of weights, ``kl`` nats per token.
    """
    sizes, losses = _table(record)
    first = (sizes >= 0).argmax(axis=1)[:, None]
    curve = load("reference").choice_frontier(
        np.where(sizes >= 0, sizes, np.take_along_axis(sizes, first, 1)),
        np.where(sizes >= 0, losses, np.take_along_axis(losses, first, 1)),
    )
    bytes_ = np.asarray(curve.cost, np.int64) + record["fixed_bytes"]
    if len(bytes_) > _POINTS:
        grid = np.geomspace(max(1, bytes_[0]), bytes_[-1], _POINTS - 1)
        kept = np.unique([0, *(np.searchsorted(bytes_, grid, side="right") - 1).clip(0), len(bytes_) - 1])
    else:
        kept = np.arange(len(bytes_))
    points: list[dict[str, Any]] = [
        {"bytes": int(size), "kl": max(0.0, float(kl))}
        for size, kl in zip(bytes_[kept], np.asarray(curve.loss)[kept], strict=True)
    ]
    return points + _uniform(record, sizes, losses)


def _uniform(
    record: Mapping[str, Any], sizes: npt.NDArray[np.int64], losses: npt.NDArray[np.float64]
) -> list[dict[str, Any]]:
    settings = [list(setting) for setting in record["settings"]]
    inside = np.array([module["block"] is not None for module in record["modules"]])
    found = []
    for number, setting in enumerate(settings):
        if not inside.any() or (sizes[inside, number] < 0).any():
            continue
        alike = next((other for other in settings if other[:3] == [*setting[:2], 0]), None)
        for outer in [_DENSE] if alike in (None, _DENSE) else [_DENSE, alike]:
            own: list[Any] | None = None if inside.all() else outer
            place = number if own is None else settings.index(own) if own in settings else None
            if place is None or (sizes[~inside, place] < 0).any():
                continue
            bytes_ = int(sizes[inside, number].sum() + sizes[~inside, place].sum()) + record["fixed_bytes"]
            kl = float(losses[inside, number].sum() + losses[~inside, place].sum())
            found.append({"bytes": bytes_, "kl": kl, "setting": setting, "outer": own})
            if own is None:
                break
    return found


def _sizes(least: int, most: int) -> list[int]:
    """About a dozen sizes of two digits between the smallest and the largest."""
    found = {least}
    for size in np.geomspace(least, most, _SIZES):
        step = 10 ** max(0, math.floor(math.log10(size)) - 1)
        found.add(max(least, int(size // step * step)))
    return sorted(found)


def _rows(record: Mapping[str, Any], points: list[dict[str, Any]]) -> list[list[str]]:
    curve = [point for point in points if "setting" not in point]
    uniform = without_beaten(point for point in points if "setting" in point)
    rows = []
    for size in _sizes(curve[0]["bytes"], curve[-1]["bytes"]):
        best = [point for point in curve if point["bytes"] <= size][-1]
        rival = [point for point in uniform if point["bytes"] <= size][-1:]
        rows.append(
            [
                byte_size(size),
                f"{16 * size / record['bytes_16']:.2f}",
                nats(best["kl"]),
                *([nats(rival[0]["kl"]), uniform_text(rival[0])] if rival else ["–", "–"]),
            ]
        )
    return rows


def _tiles(
    record: Mapping[str, Any], points: list[dict[str, Any]], chosen: Mapping[str, Any] | None
) -> list[tuple[str, str, str]]:
    least = points[0]
    tiles = [
        ("given", byte_size(record["bytes_given"]), f"{byte_size(record['bytes_16'])} in 16 bits"),
        (
            "smallest",
            byte_size(least["bytes"]),
            f"{16 * least['bytes'] / record['bytes_16']:.2f} bits per weight, {nats(least['kl'])} nats per token",
        ),
    ]
    if chosen is not None:
        share = chosen["bytes"] / record["bytes_given"]
        tiles += [
            (
                "chosen",
                byte_size(chosen["bytes"]),
                f"{16 * chosen['bytes'] / record['bytes_16']:.2f} bits per weight, {100 * share:.0f} % of what was "
                "given",
            ),
            (
                "predicted KL",
                nats(chosen["kl_predicted"]),
                f"nats per token; no choice of this size is below {nats(chosen['lower_bound'])}",
            ),
        ]
    return tiles


def render_plan(record: Mapping[str, Any], chosen: Mapping[str, Any] | None = None) -> str:
    """The page of a ``lowbit.plan/1`` record.

    Args:
        record: one that :func:`require_plan` accepts.
        chosen: ``{"bytes", "kl_predicted", "lower_bound", "settings"}`` of one size, as a record of a compression has
            it under ``decision``.

    Raises:
        ValueError: a record of another schema.
        ImportError: jinja2 is missing; the message names the extra.
    """
    schema = str(record.get("schema"))
    if schema.rpartition("/")[0] != "lowbit.plan":
        raise ValueError(f"the page of a plan needs a record of schema lowbit.plan/1, got {schema!r}")
    points = frontier_points(record)
    bits = None
    if chosen is not None:
        given = chosen["settings"]
        bits = bit_map(
            [
                (m["name"], m["block"], Cell(given[m["name"]][0], given[m["name"]][2]))
                for m in record["modules"]
                if m["name"] in given
            ]
        )
    return page_of(
        "plan.html.j2",
        {
            "name": record["options"]["model"],
            "tiles": _tiles(record, points, chosen),
            "frontier": frontier_figure(points, chosen),
            "rows": _rows(record, points),
            "bits": bits,
            "offered": [setting_text(setting) for setting in record["settings"]],
            "modules": len(record["modules"]),
            "version": str(record["versions"]["lowbit"]),
            **{
                part: flat_pairs(record, part)
                for part in ("model", "options", "calibration", "inputs", "machine", "versions")
            },
        },
    )
