"""What the pages share: how they are made, the curve of divergence against size, and the map of bits and ranks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from lowbit._hints import hint
from lowbit.console import byte_size

from .svg import Series, fitted_axis, line_chart

__all__ = [
    "Cell",
    "bit_map",
    "flat_pairs",
    "frontier_figure",
    "nats",
    "page_of",
    "setting_text",
    "uniform_text",
    "without_beaten",
]

_DECADES = 1e-5  # of the largest divergence: what lies below is drawn there
_SHOWN = 400  # points of a curve that are drawn


def page_of(template: str, values: Mapping[str, Any]) -> str:
    """A page out of its template.

    Raises:
        ImportError: jinja2 is missing; the message names the extra.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise ImportError(f"the report needs jinja2: {hint('report')}") from error
    loader = PackageLoader("lowbit.report", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = Markup(loader.get_source(environment, "style.css")[0])
    return environment.get_template(template).render({"style": style, **values})


def flat_pairs(record: Mapping[str, Any], part: str) -> list[tuple[str, str]]:
    """A part of a record as names and texts; nothing where it is no object."""
    value = record.get(part)
    if not isinstance(value, Mapping):
        return []
    return [(str(key).replace("_", " "), _flat(item)) for key, item in value.items()]


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flat(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_flat(item) for item in value) or "none"
    return "none" if value is None else str(value)


def nats(value: float) -> str:
    """A divergence with three digits."""
    return f"{value:.3g}"


def setting_text(setting: Sequence[Any]) -> str:
    """``3 bits, groups of 64, rank 16 in 8 bits``."""
    bits, group_size, rank, factor_bits = setting
    if bits == 16:
        text = "16 bits"
    else:
        text = f"{bits} bits, {f'groups of {group_size}' if group_size else 'one scale per row'}"
    return f"{text}, rank {rank} in {factor_bits} bits" if rank else text


def uniform_text(point: Mapping[str, Any]) -> str:
    """Of a point with one setting for every layer, what that is."""
    text, outer = setting_text(point["setting"]), point.get("outer")
    if outer is None or outer[:2] == point["setting"][:2]:
        return text
    return f"{text}; embedding and head {setting_text(outer)}"


# ---- the curve ------------------------------------------------------------------------------------------------------


def without_beaten(points: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Points by rising size, without those that another is at least as good as in both measures."""
    found: list[Mapping[str, Any]] = []
    for point in sorted(points, key=lambda p: (p["bytes"], p["kl"])):
        if not found or point["kl"] < found[-1]["kl"]:
            found.append(point)
    return found


def frontier_figure(
    points: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any] | None, *, measured: float | None = None
) -> dict[str, Any] | None:
    """The curve, the uniform settings beside it and the point that was chosen; None where there is no curve.

    Args:
        points: of :func:`~lowbit.report.plan.frontier_points`.
        chosen: with ``bytes`` and ``kl_predicted``.
        measured: divergence of the result, where it was measured.
    """
    curve = [point for point in points if not point.get("setting")]
    uniform = [point for point in points if point.get("setting")]
    largest = max((point["kl"] for point in points), default=0.0)
    if not curve or largest <= 0:
        return None
    floor = largest * _DECADES
    shown = [point["kl"] for point in points if point["kl"] > floor]
    if chosen is not None:
        shown += [kl for kl in (chosen["kl_predicted"], measured) if kl is not None and kl > floor]
    sizes = [point["bytes"] / 1e6 for point in points] + ([chosen["bytes"] / 1e6] if chosen else [])
    x = fitted_axis(min(sizes), max(sizes), lambda v: f"{v:g}")
    y = fitted_axis(min(shown), max(shown), lambda v: f"{v:g}")

    def series(label: str, some: Sequence[Mapping[str, Any]], style: str, *, joined: bool = False) -> Series:
        return Series(label, [(p["bytes"] / 1e6, max(p["kl"], floor)) for p in some], style, joined)

    dense = [point for point in uniform if point.get("outer") and point["outer"][0] == 16]
    alike = [point for point in uniform if not (point.get("outer") and point["outer"][0] == 16)]
    thin = curve[:: -(-len(curve) // _SHOWN)] + curve[-1:]
    lines = [
        series("one setting for every layer, embedding and head in 16 bits", dense, "s3"),
        series("one setting for every module", alike, "s1"),
        series("settings chosen together", thin, "after", joined=True),
    ]
    if chosen is not None:
        at = chosen["bytes"] / 1e6
        lines.append(Series("chosen", [(at, max(chosen["kl_predicted"], floor))], "after", joined=False))
        if measured is not None:
            lines.append(Series("chosen, measured", [(at, max(measured, floor))], "compressed", joined=False))
    lines = [line for line in lines if line.points]
    low, high = curve[0], curve[-1]
    text = (
        f"From {byte_size(low['bytes'])} at {nats(low['kl'])} nats per token to {byte_size(high['bytes'])} at "
        f"{nats(high['kl'])}."
    )
    if chosen is not None:
        text += f" Chosen: {byte_size(chosen['bytes'])} at {nats(chosen['kl_predicted'])}."
    return {
        "chart": line_chart(
            lines,
            x,
            y,
            key="front",
            title="Divergence against size",
            description=f"{text} The table has more of the numbers.",
            x_label="size of the files, MB",
            y_label="predicted KL, nats per token",
            mark=(chosen["bytes"] / 1e6, "chosen") if chosen else None,
        ),
        "legend": [(line.label, line.style) for line in lines],
    }


# ---- the map --------------------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """Of a map: what one module got."""

    bits: int
    rank: int


def bit_map(modules: Sequence[tuple[str, int | None, Cell]]) -> dict[str, Any] | None:
    """Blocks as rows, kinds of layers as columns, and what lies outside the blocks; None where all is alike.

    Args:
        modules: full name, block (None outside the blocks) and what it got, in the order of the model.
    """
    if len({cell for _, _, cell in modules}) < 2:
        return None
    rows: dict[int, dict[str, Cell]] = {}
    outer: list[tuple[str, Cell]] = []
    for name, block, cell in modules:
        if block is None:
            outer.append((name, cell))
        else:
            rows.setdefault(block, {})[re.split(rf"\.{block}\.", name, maxsplit=1)[-1]] = cell
    paths = list(dict.fromkeys(path for row in rows.values() for path in row))
    leaves = [path.rpartition(".")[2] for path in paths]
    return {
        "columns": [leaf if leaves.count(leaf) == 1 else path for path, leaf in zip(paths, leaves, strict=True)],
        "rows": [(block, [row.get(path) for path in paths]) for block, row in sorted(rows.items())],
        "outer": outer,
        "bits": sorted({cell.bits for _, _, cell in modules}),
    }
