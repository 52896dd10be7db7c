"""Axes and SVG elements that the figures are drawn with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

# Series differ by colour, dash and marker. The page sets the colours; the second value serves a file opened by itself.
COLOURS = tuple(f"var(--lb-{i},{c})" for i, c in enumerate(("#0072b2", "#d55e00", "#008a62", "#8a4f7d", "#7a6a00"), 1))
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2")
GRID = "var(--lb-grid,#8884)"


def number(x: float) -> str:
    """One decimal, without a trailing zero and without minus zero."""
    text = f"{x:.1f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


@dataclass
class Axes:
    """A rectangle with two scales, drawn into SVG elements; ``log`` of an axis takes decades."""

    x: tuple[float, float]
    y: tuple[float, float]
    box: tuple[float, float, float, float] = (64, 16, 560, 250)  # left, top, width, height
    log_x: bool = False
    log_y: bool = False
    parts: list[str] = field(default_factory=list)

    def px(self, v: float) -> float:
        """Horizontal place of a value."""
        lo, hi = self.x
        t = np.log(v / lo) / np.log(hi / lo) if self.log_x else (v - lo) / (hi - lo)
        return self.box[0] + float(t) * self.box[2]

    def py(self, v: float) -> float:
        """Vertical place of a value."""
        lo, hi = self.y
        t = np.log(v / lo) / np.log(hi / lo) if self.log_y else (v - lo) / (hi - lo)
        return self.box[1] + (1 - float(t)) * self.box[3]

    def text(
        self, x: float, y: float, s: str, *, anchor: str = "middle", fill: str = "currentColor", size: int = 12
    ) -> None:
        """Text at a place in pixels."""
        place = f'x="{number(x)}" y="{number(y)}" text-anchor="{anchor}"'
        self.parts.append(f'<text {place} font-size="{size}" fill="{fill}">{escape(s)}</text>')

    def line(self, points: Sequence[tuple[float, float]], *, stroke: str, width: float = 1, dash: str = "") -> None:
        """A polyline through places in pixels."""
        d = "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<path d="{d}" fill="none" stroke="{stroke}" stroke-width="{width}"{dashed}/>')

    def frame(
        self,
        xticks: dict[float, str],
        yticks: dict[float, str],
        *,
        xlabel: str = "",
        ylabel: str = "",
        grid: bool = True,
    ) -> None:
        """Ticks, grid lines and labels."""
        left, top, width, height = self.box
        for v, label in xticks.items():
            x = self.px(v)
            if grid:
                self.line([(x, top), (x, top + height)], stroke=GRID)
            self.text(x, top + height + 17, label)
        for v, label in yticks.items():
            y = self.py(v)
            if grid:
                self.line([(left, y), (left + width, y)], stroke=GRID)
            self.text(left - 8, y + 4, label, anchor="end")
        self.line([(left, top), (left, top + height), (left + width, top + height)], stroke="currentColor")
        if xlabel:
            self.text(left + width / 2, top + height + 38, xlabel)
        if ylabel:
            x, y = left - 48, top + height / 2
            self.parts.append(
                f'<text transform="translate({number(x)} {number(y)}) rotate(-90)" text-anchor="middle" font-size="12" '
                f'fill="currentColor">{escape(ylabel)}</text>'
            )

    def curve(self, xs: Sequence[float], ys: Sequence[float], series: int, *, dots: bool = True) -> None:
        """A series: colour, dash and marker all say which."""
        colour = COLOURS[series]
        points = [(self.px(x), self.py(y)) for x, y in zip(xs, ys, strict=True)]
        self.line(points, stroke=colour, width=2, dash=DASHES[series])
        if dots:
            self.parts += [self.mark(x, y, series) for x, y in points]

    @staticmethod
    def mark(x: float, y: float, series: int, *, size: float = 3.2, hollow: bool = False) -> str:
        """Circle, square, diamond, triangle or cross."""
        colour = COLOURS[series]
        fill = "var(--md-default-bg-color,#fff)" if hollow else colour
        style = f'fill="{fill}" stroke="{colour}" stroke-width="1.5"'
        x_, y_, s = number(x), number(y), size
        if series == 0:
            return f'<circle cx="{x_}" cy="{y_}" r="{s}" {style}/>'
        if series == 1:
            side = f'width="{number(2 * s)}" height="{number(2 * s)}"'
            return f'<rect x="{number(x - s)}" y="{number(y - s)}" {side} {style}/>'
        shape = {
            2: [(0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)],
            3: [(0, -1.4), (1.3, 1), (-1.3, 1)],
            4: [(0, 1.4), (1.3, -1), (-1.3, -1)],
        }[series]
        d = "M" + "L".join(f"{number(x + a * s)} {number(y + b * s)}" for a, b in shape) + "Z"
        return f'<path d="{d}" {style}/>'

    def legend(self, names: Sequence[str], x: float, y: float, *, step: float = 19, dots: bool = True) -> None:
        """Names beside a piece of their line."""
        for i, name in enumerate(names):
            at = y + i * step
            self.line([(x, at), (x + 30, at)], stroke=COLOURS[i], width=2, dash=DASHES[i])
            if dots:
                self.parts.append(self.mark(x + 15, at, i))
            self.text(x + 38, at + 4, name, anchor="start")


def svg(title: str, width: int, height: int, *axes: Axes) -> str:
    """The file: one line per element, no blank lines, so that it can stand in a Markdown page."""
    lines = [
        f'<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img" font-family="inherit">',
        f"<title>{escape(title)}</title>",
        *(part for a in axes for part in a.parts),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"
