"""Charts without scripts and outside files: lines as inline SVG with scales and ticks, bars as boxes of the page.

Every number is printed with a fixed format, so equal records give equal bytes. Colours and fonts come from the page's
style sheet through classes, which is how one drawing serves the light and the dark page. Each chart carries a title and
a description for readers who hear the page; the page puts the same numbers in a table beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = ["Axis", "Series", "bars", "fitted_axis", "line_chart", "linear_axis", "log_axis"]


def _n(value: float) -> str:
    """A coordinate: two decimals are a hundredth of a pixel."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


@dataclass(frozen=True)
class Axis:
    """A scale from data to the unit interval, with its labelled ticks."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def __call__(self, value: float) -> float:
        """Position of ``value`` in 0..1, clamped to the axis."""
        if self.log:
            low, high, at = math.log(self.low), math.log(self.high), math.log(max(value, self.low))
        else:
            low, high, at = self.low, self.high, value
        return min(1.0, max(0.0, (at - low) / (high - low))) if high > low else 0.5


def linear_axis(high: float, text: Callable[[float], str], *, low: float = 0.0, count: int = 4) -> Axis:
    """Axis from ``low`` to a round number at or above ``high``, with steps of 1, 2 or 5 times a power of ten."""
    span = high - low if math.isfinite(high) and high > low else 1.0
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    steps = max(1, math.ceil(span / step - 1e-9))
    return Axis(low, low + steps * step, tuple((low + i * step, text(low + i * step)) for i in range(steps + 1)))


def log_axis(low: float, high: float, text: Callable[[float], str], *, base: int = 10, count: int = 6) -> Axis:
    """Axis over whole powers of ``base`` that cover ``low`` .. ``high``."""
    first = math.floor(math.log(low, base) + 1e-9)
    last = max(first + 1, math.ceil(math.log(high, base) - 1e-9))
    every = max(1, math.ceil((last - first) / count))
    ticks = tuple((float(base) ** i, text(float(base) ** i)) for i in range(first, last + 1, every))
    return Axis(float(base) ** first, float(base) ** last, ticks, log=True)


def fitted_axis(low: float, high: float, text: Callable[[float], str]) -> Axis:
    """Logarithmic axis over ``low`` .. ``high`` and no more; ticks at the fewest round numbers that are four."""
    if not high > low:
        low, high = low / 2, high * 2
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), tuple(1 + i / 10 for i in range(90))):
        ticks = [tick for power in powers for factor in factors if low <= (tick := factor * 10.0**power) <= high]
        if len(ticks) >= 4:
            break
    every = max(1, math.ceil(len(ticks) / 8))
    return Axis(low, high, tuple((tick, text(tick)) for tick in ticks[::every]), log=True)


@dataclass(frozen=True)
class Series:
    """One line of a chart, or its points alone."""

    label: str
    points: Sequence[tuple[float, float]]
    style: str  # class of the style sheet: s0, s1, ... or before, after
    joined: bool = True


def _open(width: int, height: int, title: str, description: str, key: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-labelledby="{key}-t {key}-d">'
        f'<title id="{key}-t">{escape(title)}</title><desc id="{key}-d">{escape(description)}</desc>'
    )


def line_chart(
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    key: str,
    title: str,
    description: str,
    width: int = 520,
    height: int = 280,
    x_label: str = "",
    y_label: str = "",
    mark: tuple[float, str] | None = None,
    dots: bool = False,
    heading: bool = False,
) -> Markup:
    """Lines over a light grid.

    Args:
        series: the lines, drawn in this order.
        x, y: the scales.
        key: unique on the page; prefix of the ids.
        title, description: for readers who hear the page; ``heading`` also prints the title.
        width, height: of the drawing's own coordinates; it scales to its place.
        x_label, y_label: printed at the axes.
        mark: a vertical dashed line at this x, with a label.
        dots: also mark the points.
        heading: print the title above the plot.
    """
    left, right, top, bottom = 48, 14, 26 if heading or y_label else 12, 40 if x_label else 24
    inner_w, inner_h = width - left - right, height - top - bottom
    parts = [_open(width, height, title, description, key)]

    def px(value: float) -> str:
        return _n(left + x(value) * inner_w)

    def py(value: float) -> str:
        return _n(top + (1 - y(value)) * inner_h)

    if heading:
        parts.append(f'<text class="head" x="{left}" y="14">{escape(title)}</text>')
    for value, label in y.ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{py(value)}" y2="{py(value)}"/>')
        parts.append(
            f'<text class="tick" x="{left - 7}" y="{py(value)}" dy="4" text-anchor="end">{escape(label)}</text>'
        )
    for value, label in x.ticks:
        parts.append(
            f'<text class="tick" x="{px(value)}" y="{top + inner_h + 16}" text-anchor="middle">{escape(label)}</text>'
        )
    parts.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{top + inner_h}" y2="{top + inner_h}"/>')
    if mark is not None and mark[0] >= x.low:
        at = px(mark[0])
        parts.append(f'<line class="mark" x1="{at}" x2="{at}" y1="{top}" y2="{top + inner_h}"/>')
        parts.append(f'<text class="note" x="{at}" y="{top - 6}" text-anchor="middle">{escape(mark[1])}</text>')
    for line in series:
        points = [(px(a), py(b)) for a, b in line.points if math.isfinite(b)]
        if len(points) > 1 and line.joined:
            path = " ".join(f"{a},{b}" for a, b in points)
            parts.append(f'<polyline class="line {line.style}" points="{path}"/>')
        if dots or not line.joined or len(points) == 1:
            parts += [f'<circle class="dot {line.style}" cx="{a}" cy="{b}" r="3"/>' for a, b in points]
    if x_label:
        parts.append(
            f'<text class="label" x="{_n(left + inner_w / 2)}" y="{height - 6}" text-anchor="middle">'
            f"{escape(x_label)}</text>"
        )
    if y_label and not heading:
        parts.append(f'<text class="label" x="4" y="12">{escape(y_label)}</text>')
    parts.append("</svg>")
    return Markup("".join(parts))


def bars(rows: Sequence[tuple[str, str, Sequence[tuple[float, str]]]], *, title: str, description: str) -> Markup:
    """Horizontal bars as boxes of the page, so that their text keeps its size on a screen of any width.

    Args:
        rows: label, printed value, parts of the bar as (share of the full length, class).
        title, description: for readers who hear the page.
    """
    out = [f'<div class="bars" role="img" aria-label="{escape(title)}. {escape(description)}">']
    for label, text, parts in rows:
        boxes = "".join(f'<i class="{style}" style="width:{_n(100 * part)}%"></i>' for part, style in parts if part > 0)
        out.append(f'<div><span>{escape(label)}</span><span class="track">{boxes}</span><b>{escape(text)}</b></div>')
    return Markup("".join([*out, "</div>"]))
