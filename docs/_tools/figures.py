"""The figures of the chapter pages, computed by ``lowbit.reference`` and written as SVG.

    python docs/_tools/figures.py            write docs/figures/*.svg
    python docs/_tools/figures.py --check    compare with what is there

The files are committed and pasted into the pages, so they take the colours of the page in light and dark, need no
script and are read out by their title. Coordinates have one decimal: another processor's last bits do not show.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from statistics import NormalDist

import numpy as np

from lowbit import reference as ref
from lowbit.reference import lut
from lowbit.reference.coreset import acs_weight
from lowbit.reference.types import TABLE_TIES, Purpose

FOLDER = Path(__file__).resolve().parent.parent / "figures"
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


def rounding() -> str:
    """R: three rules, which differ on ties only."""
    rules: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "half to even (R-1)": ref.round_half_even,
        "half away from zero": lambda v: np.trunc(v + np.copysign(0.5, v)),
        "half up, floor(x + 1/2)": lambda v: np.floor(v + 0.5),
    }
    parts = []
    for i, (name, rule) in enumerate(rules.items()):
        a = Axes((-2.8, 2.8), (-3.4, 3.4), box=(28 + i * 214, 30, 190, 190))
        a.frame({v: str(v) for v in (-2, -1, 0, 1, 2)}, {v: str(v) for v in (-3, -2, -1, 0, 1, 2, 3)})
        a.text(28 + i * 214 + 95, 18, name, size=13)
        for n in range(-3, 4):
            lo, hi = max(n - 0.5, -2.8), min(n + 0.5, 2.8)
            if lo < hi:
                a.line([(a.px(lo), a.py(n)), (a.px(hi), a.py(n))], stroke=COLOURS[i], width=2.5)
        ties = np.arange(-2.5, 3)
        chosen = rule(ties)
        for t, c in zip(ties, chosen, strict=True):
            for n in (t - 0.5, t + 0.5):
                a.parts.append(a.mark(a.px(t), a.py(n), i, size=3.4, hollow=n != c))
        parts.append(a)
    return svg("Staircases of three rounding rules; filled markers are the integers chosen for ties.", 660, 250, *parts)


def philox() -> str:
    """P: pairs of uniforms at consecutive addresses, and the avalanche round by round."""
    n = 4096
    counters = np.zeros((n, 4), np.int64)
    counters[:, 2], counters[:, 3] = np.arange(n), Purpose.SAMPLE
    u = ref.philox_uniform(counters, seed=1)
    left = Axes((0, 1), (0, 1), box=(48, 24, 230, 230))
    left.frame({v: f"{v:g}" for v in (0, 0.5, 1)}, {v: f"{v:g}" for v in (0, 0.5, 1)})
    left.parts += [left.mark(left.px(a), left.py(b), 0, size=0.8) for a, b in u[:, :2]]
    right = Axes((1, 10), (0, 18), box=(370, 24, 270, 230))
    right.frame(
        {v: str(v) for v in range(1, 11)}, {v: str(v) for v in (0, 4, 8, 12, 16)},
        xlabel="rounds", ylabel="bits changed",
    )  # fmt: skip
    changed = []
    for rounds in range(1, 11):
        plain, flips = mixed(counters[:64], rounds), []
        for bit in range(32):
            other = counters[:64].copy()
            other[:, 2] ^= 1 << bit
            flips.append(np.bitwise_count(plain[:, 0] ^ mixed(other, rounds)[:, 0]).mean())
        changed.append(float(np.mean(flips)))
    right.curve(range(1, 11), changed, 1)
    return svg(
        "Pairs of uniforms fill the square; one flipped bit of an address flips half of a word.", 660, 300, left, right
    )


def mixed(counters: np.ndarray, rounds: int) -> np.ndarray:
    """Words after fewer rounds than the specification takes."""
    x0, x1, x2, x3 = (counters[:, i].astype(np.uint64) for i in range(4))
    k0, k1, word = 1, 0, np.uint64(32)
    for _ in range(rounds):
        p0, p1 = x0 * np.uint64(0xD2511F53), x2 * np.uint64(0xCD9E8D57)
        low = np.uint64(2**32 - 1)
        x0, x1, x2, x3 = (p1 >> word) ^ x1 ^ np.uint64(k0), p1 & low, (p0 >> word) ^ x3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return np.stack([x0, x1, x2, x3], axis=1)


def grids() -> str:
    """Q: the levels of the four schemes for a mixed and for a positive group."""
    rng = np.random.default_rng(3)
    mixed = np.round(np.clip(rng.normal(0.15, 0.4, 24), -0.62, 1.0), 3)
    mixed[:2] = -0.62, 1.0
    parts = []
    for panel, (name, x) in enumerate((("values of both signs", mixed), ("no negative value", np.abs(mixed)))):
        a = Axes((-1.3, 1.3), (0, 5), box=(138, 34 + panel * 190, 500, 140))
        a.frame({v: f"{v:g}" for v in (-1, -0.5, 0, 0.5, 1)}, {})
        a.text(388, 22 + panel * 190, name, size=13)
        for i, scheme in enumerate(("asymmetric", "symmetric", "symmetric-full", "symmetric-gptq")):
            s, z = ref.fit_grid(x[None], bits=3, scheme=scheme)
            codes = np.arange(8) if scheme == "asymmetric" else np.arange(-4, 4)
            levels = ref.dequantize(codes[None], s, z)[0]
            y = a.py(4.4 - i)
            a.text(128, y + 4, scheme, anchor="end")
            a.line([(a.px(-1.3), y), (a.px(1.3), y)], stroke=GRID)
            a.parts += [a.mark(a.px(v), y, i, size=4) for v in levels if -1.3 <= v <= 1.3]
        y = a.py(0.5)
        a.text(128, y + 4, "values", anchor="end")
        for v in x:
            a.line([(a.px(v), y - 6), (a.px(v), y + 6)], stroke="currentColor", width=1)
        parts.append(a)
    return svg("Levels of four 3-bit schemes fitted to the same values.", 660, 400, *parts)


def codebooks() -> str:
    """N: levels of three widths, and the error of LoftQ from turn to turn."""
    rows: dict[str, np.ndarray] = {f"NF{b}": ref.normal_float(bits=b) for b in (2, 3, 4)}
    rows["uniform, 4 bits"] = np.arange(-7, 8) / 7
    a = Axes((-1.05, 1.05), (0, 5), box=(100, 16, 260, 250))
    a.frame({v: f"{v:g}" for v in (-1, -0.5, 0, 0.5, 1)}, {}, xlabel="value, in units of the block's scale")
    grid = np.linspace(-1, 1, 81)
    density = np.exp(-((grid * 1.848) ** 2) / 2)  # a level of 1 is the quantile of the outermost probability
    a.line([(a.px(x), a.py(4.9 * y)) for x, y in zip(grid, density, strict=True)], stroke=GRID, width=6)
    for i, (name, levels) in enumerate(rows.items()):
        y = a.py(4.2 - i)
        a.text(92, y + 4, name, anchor="end")
        a.line([(a.px(-1), y), (a.px(1), y)], stroke=GRID)
        a.parts += [a.mark(a.px(v), y, i, size=3.6) for v in levels]
    b = Axes((1, 8), (0.5, 1), box=(432, 16, 212, 250))
    b.frame(
        {v: str(v) for v in range(1, 9)},
        {v: f"{v:g}" for v in (0.5, 0.6, 0.7, 0.8, 0.9, 1)},
        xlabel="iteration",
        ylabel="error, relative to plain quantization",
    )
    w = np.random.default_rng(2).standard_normal((64, 64))
    for i, bits in enumerate((2, 3, 4)):
        plain = np.linalg.norm(w - ref.loftq(w, rank=1, bits=bits, iterations=1).weight)
        found = ref.loftq(w, rank=8, bits=bits, iterations=8)
        b.curve(range(1, 9), found.errors / plain, i)
        place = b.px(found.step), b.py(float(found.errors[found.step - 1] / plain))
        ring = f'cx="{number(place[0])}" cy="{number(place[1])}" r="8"'
        b.parts.append(f'<circle {ring} fill="none" stroke="{COLOURS[i]}" stroke-width="1.5"/>')
    b.legend(["2 bits", "3 bits", "4 bits"], 560, 40)
    return svg("Levels of NormalFloat at three widths; error of LoftQ after each of eight iterations.", 660, 320, a, b)


def binary_coding() -> str:
    """B: error of the methods against the number of planes, beside uniform grids."""
    w = np.random.default_rng(0).standard_normal((16, 1024))
    planes = (1, 2, 3, 4)
    share: dict[str, list[float]] = {}
    for bits in planes:
        for name, options in (
            ("greedy", {"method": "greedy"}),
            ("refined greedy", {"method": "refined"}),
            ("alternating, 2 rounds", {"rounds": 2}),
            ("alternating, 15 rounds", {"rounds": 15}),
        ):
            fitted = ref.bcq_weight(*ref.bcq(w, bits=bits, group_size=128, **options))
            share.setdefault(name, []).append(float(((fitted - w) ** 2).sum() / (w**2).sum()))
        grid = ref.fit_grid(w, bits=bits, granularity="group", group_size=128)
        rounded = ref.dequantize(ref.quantize(w, *grid, bits=bits), *grid)
        share.setdefault("uniform grid, min-max", []).append(float(((rounded - w) ** 2).sum() / (w**2).sum()))
    a = Axes((0.8, 4.2), (5e-3, 2), log_y=True)
    a.frame(
        {v: str(v) for v in planes},
        {v: f"{v:g}" for v in (0.01, 0.1, 1)},
        xlabel="planes, or bits of a uniform grid",
        ylabel="relative squared error",
    )
    for i, values in enumerate(share.values()):
        a.curve(planes, values, i)
    a.legend(list(share), 400, 36)
    return svg("Relative squared error of binary codes, falling with planes and with rounds.", 660, 320, a)


def ternary() -> str:
    """T: squared error of ternary weights for every threshold and three distributions."""
    p = (np.arange(4096) + 0.5) / 4096
    weights = {
        "uniform": p - 0.5,
        "normal": np.array([NormalDist().inv_cdf(v) for v in p]),
        "Laplace": np.sign(p - 0.5) * -np.log(1 - 2 * np.abs(p - 0.5)),
    }
    thresholds = [i / 50 for i in range(50)]
    a = Axes((0, 1), (0, 0.6))
    a.frame(
        {v: f"{v:g}" for v in (0, 0.2, 0.4, 0.6, 0.7, 0.8, 1)}, {v: f"{v:g}" for v in (0, 0.2, 0.4, 0.6)},
        xlabel="threshold t", ylabel="squared error, relative",
    )  # fmt: skip
    for i, w in enumerate(weights.values()):
        errors = [float(np.sum((w - ref.twn(w, threshold=t)) ** 2) / np.sum(w**2)) for t in thresholds]
        a.curve(thresholds, errors, i, dots=False)
        at = thresholds.index(0.7)
        a.parts.append(a.mark(a.px(0.7), a.py(errors[at]), i))
    a.legend([*weights], 480, 36)
    return svg("Squared error of ternary weights for every threshold and three distributions.", 660, 320, a)


def learned_step() -> str:
    """S: the value on the grid, and its two derivatives, over the quotient."""
    options = {"bits": 3, "count": "unscaled"}
    v = np.arange(-6, 5.001, 0.02)
    each = [ref.lsq_gradient([1.0], [x], [1.0], **options) for x in v]
    a = Axes((-6, 5), (-5, 4))
    a.frame(
        {t: str(t) for t in range(-6, 6)}, {t: str(t) for t in range(-5, 5)},
        xlabel="quotient x / s, at 3 bits", ylabel="in steps; derivatives",
    )  # fmt: skip
    curves = {
        "value": ref.lsq(v, [1.0], bits=3),
        "derivative by the step": np.array([d.step[0] for d in each]),
        "derivative by the input": np.array([d.x[0] for d in each]),
    }
    for i, ys in enumerate(curves.values()):
        a.curve(v.tolist(), ys.tolist(), i, dots=False)
    a.legend([*curves], 90, 36, dots=False)
    return svg("Value, derivative by the step and by the input of a learned-step quantizer of 3 bits.", 660, 320, a)


def oscillation() -> str:
    """O: error of StatsQ by width, and the share of weights that annealing leaves trainable."""
    p = (np.arange(4096) + 0.5) / 4096
    weights = {
        "uniform": p - 0.5,
        "normal": np.array([NormalDist().inv_cdf(v) for v in p]),
        "Laplace": np.sign(p - 0.5) * -np.log(1 - 2 * np.abs(p - 0.5)),
    }
    widths, ranges = list(range(1, 9)), [i / 20 for i in range(11)]
    a = Axes((1, 8), (1e-4, 1), box=(64, 20, 240, 240), log_y=True)
    a.frame(
        {v: str(v) for v in widths}, {v: f"{v:g}" for v in (1e-4, 1e-3, 1e-2, 1e-1, 1)},
        xlabel="bits", ylabel="squared error, relative",
    )  # fmt: skip
    b = Axes((0, 0.5), (0, 1), box=(400, 20, 240, 240))
    b.frame(
        {v: f"{v:g}" for v in (0, 0.1, 0.2, 0.3, 0.4, 0.5)}, {v: f"{v:g}" for v in (0, 0.25, 0.5, 0.75, 1)},
        xlabel="boundary range", ylabel="share that trains, 2 bits",
    )  # fmt: skip
    for i, w in enumerate(weights.values()):
        errors = [float(np.sum((w - ref.statsq(w[None], bits=n).values[0]) ** 2) / np.sum(w**2)) for n in widths]
        a.curve(widths, errors, i)
        b.curve(ranges, [float(ref.cga_mask(w[None], bits=2, boundary_range=r).mean()) for r in ranges], i)
    b.legend([*weights], 420, 36)
    return svg("Error of StatsQ by bits, and the share of weights that annealing trains, by range.", 660, 310, a, b)


def scale_tuning() -> str:
    """U: output error after a task moved the weights, for scales left alone and fitted."""
    rng = np.random.default_rng(5)
    m, k, bits = 24, 256, (1, 2, 3, 4)
    w = rng.standard_normal((m, k))
    c = correlated(rng, k, 1)
    task = w * (1 + 0.3 * rng.standard_normal((m, 1))) + 0.1 * rng.standard_normal((m, k))
    left: dict[str, list[float]] = {}
    for q in bits:
        for size in (k, 32):
            codes, scale = greedy_code(w, q, size)
            for train in ("none", "first", "all") if size == k else ("first",):
                on = ref.trainable_scales(scale, train="all" if train == "all" else "first") & (train != "none")
                fitted = ref.fit_scales(task, c, codes, scale, on)
                planes = 2.0 * (codes[..., None] >> np.arange(q) & 1) - 1
                w_hat = (planes * np.repeat(fitted, size, axis=1)).sum(axis=-1)
                name = {"none": "scales left alone", "first": "first scale of a row", "all": "all scales of a row"}[
                    train
                ]
                name = name if size == k else "first scale of groups of 32"
                left.setdefault(name, []).append(ref.objective(task - w_hat, c) / ref.objective(task, c))
    a = Axes((1, 4), (0.02, 0.6), log_y=True)
    a.frame(
        {v: str(v) for v in bits},
        {v: f"{v:g}" for v in (0.02, 0.05, 0.1, 0.2, 0.5)},
        xlabel="bits of the code", ylabel="output error, relative",
    )  # fmt: skip
    for i, values in enumerate(left.values()):
        a.curve(bits, values, i)
    a.legend([*left], 400, 36)
    return svg("Output error after a task moved the weights, for scales left alone and fitted.", 660, 320, a)


def greedy_code(w: np.ndarray, bits: int, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Greedy binary codes (m, k) and scales (m, G, q)."""
    rest, codes = w.reshape(len(w), -1, group_size).copy(), np.zeros(w.shape, np.int32)
    scale = np.zeros((*rest.shape[:2], bits))
    for i in range(bits):
        scale[..., i] = np.abs(rest).mean(axis=-1)
        codes |= (rest >= 0).astype(np.int32).reshape(w.shape) << i
        rest -= np.where(rest < 0, -1, 1) * scale[..., i, None]
    return codes, scale


def mixed_precision() -> str:
    """M: error against size of the greedy allocation, its lower bound, and equal bits for all blocks."""
    rng = np.random.default_rng(2)
    n, widths = 12, np.arange(1, 6)
    sensitivity = np.exp(rng.normal(0, 1.5, n))
    errors = sensitivity[:, None] * np.array([0.363, 0.118, 0.037, 0.0115, 0.004])
    weights = np.where(np.arange(n) % 2, 2, 1)
    sizes = weights[:, None] * widths
    budgets = range(int(sizes[:, 0].sum()), int(sizes[:, -1].sum()) + 1)
    found = [ref.allocate_bits(errors, sizes, budget=s) for s in budgets]
    average = [f.size / weights.sum() for f in found]
    a = Axes((1, 5), (errors[:, -1].sum() * 0.8, errors[:, 0].sum() * 1.2), log_y=True)
    a.frame(
        {int(v): str(v) for v in widths},
        {v: f"{v:g}" for v in (0.2, 0.5, 1, 2, 5, 10)},
        xlabel="bits per weight, on average", ylabel="summed error",
    )  # fmt: skip
    bound = [(a.px(s / weights.sum()), a.py(f.lower_bound)) for s, f in zip(budgets, found, strict=True)]
    a.line(bound, stroke=GRID, width=9)
    a.curve(average, [f.error for f in found], 0, dots=False)
    a.parts += [a.mark(a.px(q), a.py(errors[:, q - 1].sum()), 1, size=4) for q in widths]
    a.line([(400, 40), (430, 40)], stroke=COLOURS[0], width=2)
    a.text(438, 44, "allocation by sensitivity", anchor="start")
    a.parts.append(a.mark(415, 59, 1, size=4))
    a.text(438, 63, "equal bits for all blocks", anchor="start")
    a.line([(400, 78), (430, 78)], stroke=GRID, width=9)
    a.text(438, 82, "lower bound", anchor="start")
    return svg("Summed error against average bits: allocation by sensitivity and equal bits for all.", 660, 320, a)


def correlated(rng: np.random.Generator, k: int, decades: float) -> np.ndarray:
    """A second moment whose eigenvalues fall by the given number of decades, in a random basis."""
    q = np.linalg.qr(rng.standard_normal((k, k)))[0]
    return (q * 10 ** -np.linspace(0, decades, k)) @ q.T


def second_order() -> str:
    """G: what GPTQ gains over rounding to nearest, against the spread of the inputs' spectrum."""
    rng = np.random.default_rng(0)
    w, decades = rng.standard_normal((32, 64)), np.linspace(0, 4, 9)
    share: dict[str, list[float]] = {}
    for d in decades:
        c = correlated(rng, 64, float(d))
        q = ref.fit_grid(w, bits=3)
        rtn = ref.objective(w - ref.dequantize(ref.quantize(w, *q, bits=3), *q), c)
        for name, options in (("GPTQ", {}), ("GPTQ, act-order", {"act_order": True})):
            share.setdefault(name, []).append(ref.objective(w - ref.gptq(w, c, bits=3, **options).weight, c) / rtn)
        pruned = ref.wanda(w, np.diag(c)).weight
        sparse = ref.sparsegpt(w, c).weight
        share.setdefault("SparseGPT 2:4 (against Wanda)", []).append(
            ref.objective(w - sparse, c) / ref.objective(w - pruned, c)
        )
    a = Axes((0, 4), (0, 1.1))
    a.frame(
        {v: str(v) for v in range(5)},
        {v: f"{v:g}" for v in (0, 0.25, 0.5, 0.75, 1)},
        xlabel="decades between the largest and the smallest eigenvalue of the inputs' second moment",
        ylabel="output error, relative",
    )
    for i, values in enumerate(share.values()):
        a.curve(decades, values, i)
    a.legend(list(share), 380, 36)
    return svg(
        "Output error of GPTQ relative to rounding to nearest, falling as inputs become correlated.", 660, 320, a
    )


def weighting() -> str:
    """C: how much the running update weighs each sample, measured with the operation itself."""
    total = 64
    a = Axes((0, total - 1), (0, 1.1))
    a.frame(
        {v: str(v) for v in (0, 16, 32, 48, 63)},
        {v: f"{v:g}" for v in (0, 0.25, 0.5, 0.75, 1)},
        xlabel="place of the sample in the calibration set",
        ylabel="weight, relative to the last",
    )
    # Sample j has its only token on channel j, so entry (j, j) of the result is its weight.
    eye = np.eye(total)
    for i, batch in enumerate((1, 16)):
        samples = eye.reshape(-1, batch, 1, total)
        weights = np.diag(ref.recency_moment(list(samples), total=total))
        a.curve(range(total), weights / weights[-1], i, dots=False)
    nodes = ()
    for j in range(total):
        nodes = ref.moment_merge(nodes, ref.moment_leaf(eye[j : j + 1], index=j))
    mean = np.diag(ref.moment_total(nodes).matrix)
    a.curve(range(total), mean / mean[-1], 2, dots=False)
    a.legend(
        ["published update, batches of 1", "published update, batches of 16", "mean (moment_total)"],
        370,
        210,
        dots=False,
    )
    return svg("Weight of each calibration sample under the published running update and under the mean.", 660, 320, a)


def compensation() -> str:
    """E: what is left of the output error after a patch of rank r."""
    rng = np.random.default_rng(1)
    m, k = 48, 64
    w = rng.standard_normal((m, k)) * rng.lognormal(size=(m, 1))
    x = rng.standard_normal((2048, k)) @ np.linalg.cholesky(correlated(rng, k, 3)).T * rng.lognormal(sigma=0.7, size=k)
    moment = ref.moment_total(ref.moment_leaf(x, index=0))
    c = moment.matrix
    q = ref.fit_grid(w, bits=3)
    d = w - ref.dequantize(ref.quantize(w, *q, bits=3), *q)
    before, ranks = ref.objective(d, c), (1, 2, 4, 8, 16, 32)
    patches: dict[str, Callable[[int], tuple[np.ndarray, np.ndarray]]] = {
        "SVD": lambda r: ref.svd_patch(d, rank=r),
        "activation-scaled SVD": lambda r: ref.scaled_svd_patch(d, moment.magnitude, rank=r),
        "EoRA": lambda r: ref.eora(d, c, rank=r),
    }
    a = Axes((1, 32), (1e-4, 1), log_x=True, log_y=True)
    a.frame(
        {v: str(v) for v in ranks},
        {v: f"{v:g}" for v in (0.0001, 0.001, 0.01, 0.1, 1)},
        xlabel="rank of the patch",
        ylabel="output error left",
    )
    optimum = [ref.optimum(d, c, rank=r) / before for r in ranks]
    points = [(a.px(r), a.py(v)) for r, v in zip(ranks, optimum, strict=True)]
    a.line(points, stroke=GRID, width=9)
    for i, patch in enumerate(patches.values()):
        left = [ref.objective(d - np.matmul(*patch(r)), c) / before for r in ranks]
        a.curve(ranks, left, i)
    a.legend([*patches], 80, 196)
    a.line([(80, 253), (110, 253)], stroke=GRID, width=9)
    a.text(118, 257, "sum of the squared singular values beyond r", anchor="start")
    return svg("Output error left by patches of rank r: EoRA lies on the optimum.", 660, 320, a)


def small_model(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spectra (24, 32), cost and 1 - overlap of 24 modules of three shapes, rounded to 2 bits, on unlike inputs."""
    spectra, cost, sensitivity = np.zeros((24, 32)), [], []
    for j in range(24):
        m, k = ((32, 32), (32, 48), (64, 32))[j % 3]
        w = rng.standard_normal((m, k)) * rng.lognormal(sigma=0.4, size=(m, 1))
        c = correlated(rng, k, rng.uniform(0.5, 4)) * rng.lognormal(sigma=1.0)
        grid = ref.fit_grid(w, bits=2)
        w_hat = ref.dequantize(ref.quantize(w, *grid, bits=2), *grid)
        spectra[j] = ref.error_spectrum(w - w_hat, c)
        sensitivity.append(1 - ref.subspace_overlap(w, w_hat, c, rank=8)[-1])
        cost.append(m + k)
    return spectra, np.array(cost), np.array(sensitivity)


def ranks() -> str:
    """K: error left by the three rules and by one rank for all, over the budget."""
    spectra, cost, sensitivity = small_model(np.random.default_rng(4))
    ones, none, all_ = np.ones(24), np.zeros(24, int), np.full(24, 32)
    whole, mean_ranks = ref.allocation_objective(spectra, ones, none), range(1, 25)
    rules: dict[str, Callable[[int], np.ndarray]] = {
        "A, greedy": lambda p: ref.allocate_greedy(spectra, ones, cost, none, all_, budget=p),
        "B, threshold": lambda p: ref.allocate_threshold(spectra, cost, none, all_, budget=p),
        "C, proportional": lambda p: ref.allocate_proportional(sensitivity, cost, none, all_, budget=p),
        "one rank for all": lambda p: np.full(24, p // cost.sum()),
    }
    a = Axes((1, 24), (1e-3, 1), log_y=True)
    a.frame(
        {v: str(v) for v in (1, 4, 8, 12, 16, 20, 24)},
        {v: f"{v:g}" for v in (0.001, 0.01, 0.1, 1)},
        xlabel="budget, as mean rank",
        ylabel="output error left",
    )
    bounds = [
        ref.allocation_bound(spectra, ones, cost, none, all_, budget=int(r * cost.sum())) / whole for r in mean_ranks
    ]
    a.line([(a.px(r), a.py(v)) for r, v in zip(mean_ranks, bounds, strict=True)], stroke=GRID, width=9)
    for i, rule in enumerate(rules.values()):
        chosen = [rule(int(r * cost.sum())) for r in mean_ranks]
        a.curve(mean_ranks, [ref.allocation_objective(spectra, ones, r) / whole for r in chosen], i)
    a.legend([*rules], 90, 172)
    a.line([(90, 248), (120, 248)], stroke=GRID, width=9)
    a.text(128, 252, "no allocation is below", anchor="start")
    return svg("Output error left by three allocation rules and by equal ranks, over the budget.", 660, 320, a)


def decomposition() -> str:
    """D: what one step of training changes, magnitude or direction, for full weights, LoRA and DoRA."""
    rng = np.random.default_rng(0)
    m, k, r, tokens, steps = 24, 32, 4, 256, 60
    start = rng.standard_normal((m, k))
    x = rng.standard_normal((tokens, k))
    # a target that turns every row and stretches few: what a new task asks of a layer
    turned = start + 0.5 * rng.standard_normal((m, 2)) @ rng.standard_normal((2, k))
    wanted = turned / ref.dora_magnitude(turned)[:, None] * ref.dora_magnitude(start)[:, None]
    wanted *= 1 + 0.3 * (np.arange(m) % 6 == 0)[:, None]
    moment = x.T @ x / tokens
    a0 = rng.standard_normal((r, k)) / np.sqrt(k)
    tracks: dict[str, list[tuple[float, float]]] = {}
    for name in ("all weights", "LoRA", "DoRA"):
        w, b, a, g = start.copy(), np.zeros((m, r)), a0.copy(), ref.dora_magnitude(start)
        track = []
        for step in range(steps + 1):
            now = {"all weights": w, "LoRA": start + b @ a}.get(name)
            now = ref.dora_weight(start, b, a, g, scaling=1.0) if now is None else now
            if step % 6 == 0:
                track.append((*ref.decomposition_change(now, start),))
            grad = (now - wanted) @ moment
            if name == "DoRA":
                parts = ref.dora_gradient(grad, start, b, a, g, scaling=1.0)
                b, a, g = b - 0.08 * parts.B, a - 0.08 * parts.A, g - 0.08 * parts.magnitude
            else:
                w, b, a = w - 0.03 * grad, b - 0.08 * grad @ a.T, a - 0.08 * b.T @ grad
        tracks[name] = track
    top = max(v[1] for t in tracks.values() for v in t), max(v[0] for t in tracks.values() for v in t)
    box = Axes((0, 1.1 * top[0]), (0, 1.1 * top[1]))
    box.frame(
        {v: f"{v:g}" for v in (0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3) if v < 1.1 * top[0]},
        {v: f"{v:g}" for v in (0, 0.1, 0.2, 0.3, 0.4, 0.5) if v < 1.1 * top[1]},
        xlabel="change of direction, ΔD",
        ylabel="change of magnitude, ΔM",
    )
    for i, track in enumerate(tracks.values()):
        box.curve([v[1] for v in track], [v[0] for v in track], i)
    box.legend(list(tracks), 90, 36)
    return svg(
        "Paths of training through changes of direction and magnitude, of all weights, LoRA and DoRA.", 660, 320, box
    )


def rotation() -> str:
    """H: what one outlier feature costs a 4-bit token, and what a rotation does about it."""
    rng = np.random.default_rng(4)
    n, factors = 256, [2.0 ** (p / 2) for p in range(13)]
    plain = rng.standard_normal((64, n))
    turns: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "no rotation": lambda x: x,
        "Hadamard with random signs": lambda x: x @ ref.random_hadamard(order=n, seed=1),
        "Haar": lambda x: x @ ref.random_orthogonal(order=n, seed=1),
    }
    a = Axes((1, 64), (1e-3, 1), log_x=True, log_y=True)
    a.frame(
        {2.0**p: str(2**p) for p in range(7)}, {v: f"{v:g}" for v in (0.001, 0.01, 0.1, 1)},
        xlabel="size of the outlier feature, relative to the others", ylabel="error, relative to the energy",
    )  # fmt: skip
    for i, turn in enumerate(turns.values()):
        errors = []
        for factor in factors:
            x = plain.copy()
            x[:, 7] *= factor
            y = turn(x)
            errors.append(float(((ref.quantize_activations(y, bits=4).values - y) ** 2).sum() / (y**2).sum()))
        a.curve(factors, errors, i)
    a.legend([*turns], 380, 36)
    return svg("Error of 4-bit activations as one feature grows, with and without rotation.", 660, 320, a)


def tables() -> str:
    """L: eight lines for GELU, and the largest error at every scale under both tie rules."""
    knots = np.array([-3.0, -2.25, -1.0, -0.5, 0.0, 0.625, 2.75])
    table = lut.chord_table("gelu", knots)
    f = lut.FUNCTIONS["gelu"].value
    a = Axes((-4.0, 4.0), (-0.6, 4.0), box=(44, 20, 250, 240))
    a.frame({v: str(v) for v in (-4, -2, 0, 2, 4)}, {v: str(v) for v in (0, 1, 2, 3, 4)}, xlabel="x")
    fine = np.linspace(-4, 4, 161)
    a.curve(fine, f(fine), 0, dots=False)
    edges = np.concatenate([[-4.0], knots, [4.0]])
    for lo, hi in itertools.pairwise(edges):
        ends = ref.evaluate_table([lo, hi - 2.0**-20], table, tie="right")
        a.line([(a.px(lo), a.py(ends[0])), (a.px(hi), a.py(ends[1]))], stroke=COLOURS[1], width=2, dash=DASHES[1])
    a.parts += [a.mark(a.px(p), a.py(float(f(p))), 1) for p in knots]
    a.legend(["GELU", "8 lines"], 64, 40, dots=False)
    b = Axes((0.0, 6.0), (0.005, 0.2), box=(390, 20, 250, 240), log_y=True)
    b.frame(
        {v: str(v) for v in range(7)},
        {v: f"{v:g}" for v in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)},
        xlabel="b, codes of scale 2⁻ᵇ",
        ylabel="largest error of all codes",
    )
    for i, tie in enumerate(TABLE_TIES):
        report = lut.table_report("gelu", table, tie=tie)
        b.curve([*report], [r.max_error for r in report.values()], i)
    b.legend(["tie to the left", "tie to the right"], 480, 36)
    return svg(
        "Eight straight lines for GELU, and the largest error at every scale under both tie rules.", 660, 310, a, b
    )


def coreset() -> str:
    """X: mislabelled samples in an ACS coreset over the training, by schedule."""
    rng = np.random.default_rng(7)
    n, classes, epochs = 4000, 10, 40
    truth = rng.integers(0, classes, n)
    logits = rng.gamma(4, 1, n)[:, None] * np.eye(classes)[truth] + 0.7 * rng.standard_normal((n, classes))
    quantized = logits + 0.8 * rng.standard_normal((n, classes))
    wrong = rng.permutation(n) < n // 10
    labels = np.where(wrong, (truth + rng.integers(1, classes, n)) % classes, truth)
    own, gap = ref.error_vector_score(quantized, labels), ref.disagreement_score(quantized, logits)
    a = Axes((0, 1), (0, 1.02))
    a.frame(
        {v: f"{v:g}" for v in (0, 0.25, 0.5, 0.75, 1)},
        {v: f"{v:.0%}".replace("%", " %") for v in (0, 0.25, 0.5, 0.75, 1)},
        xlabel="training done, t / E", ylabel="mislabelled in the coreset",
    )  # fmt: skip
    times = np.linspace(0, 1, epochs + 1)
    for i, schedule in enumerate(("paper", "cosine", "linear")):
        shares = []
        for t in range(epochs + 1):
            weight = acs_weight(epoch=t, epochs=epochs, schedule=schedule)
            chosen = ref.select_coreset(weight * own + (1 - weight) * gap, labels, fraction=0.1)
            shares.append(float(wrong[chosen].mean()))
        a.curve(times, shares, i, dots=False)
    a.legend(["paper: cos(πt/2E)", "code: its square", "code: linear"], 90, 200, dots=False)
    return svg("Share of mislabelled samples in the coreset over the training, for three schedules.", 660, 320, a)


def distillation() -> str:
    """W: what an error of one half in one attention score costs, by the teacher's probability of that key."""
    n, share = 64, np.geomspace(1e-4, 0.6, 33).tolist()
    maps, scores = [], []
    for p in share:
        teacher = np.zeros((1, 1, n, n))
        teacher[..., 0] = np.log(p / (1 - p) * (n - 1))
        student = teacher.copy()
        student[..., 0] += 0.5
        maps.append(ref.attention_map_loss(student, teacher, [n]).loss)
        scores.append(ref.score_loss(student, teacher).loss)
    a = Axes((1e-4, 1), (1e-6, 1e-1), log_x=True, log_y=True)
    a.frame(
        {v: f"{v:g}" for v in (1e-4, 1e-3, 1e-2, 1e-1, 1)}, {v: f"{v:g}" for v in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)},
        xlabel="the teacher's attention to the key", ylabel="loss",
    )  # fmt: skip
    for i, values in enumerate((maps, scores)):
        a.curve(share, values, i, dots=False)
    a.legend(["attention map", "attention score"], 430, 200, dots=False)
    return svg("Loss of an error of one half in one score, against the teacher's attention to its key.", 660, 320, a)


def table_search() -> str:
    """L: the published search of a GELU table of 8 entries, three seeds, and the optimum on a grid."""
    generations = 120
    grid = ref.knot_grid(function="gelu", fraction_bits=3)
    problem = ref.search_problem(grid, function="gelu")
    optimal = ref.optimal_search(*problem, entries=8)
    a = Axes((0, generations), (5e-5, 5e-3), box=(64, 16, 250, 230), log_y=True)
    a.frame(
        {v: str(v) for v in (0, 40, 80, 120)}, {v: f"{v:g}" for v in (1e-4, 3e-4, 1e-3, 3e-3)},
        xlabel="generation", ylabel="mean squared error",
    )  # fmt: skip
    b = Axes((-4, 4), (-0.03, 0.03), box=(400, 16, 240, 230))
    b.frame(
        {v: str(v) for v in (-4, -2, 0, 2, 4)}, {v: f"{v:g}" for v in (-0.03, 0, 0.03)},
        xlabel="x", ylabel="error of the table",
    )  # fmt: skip
    for series, seed in enumerate((42, 1)):
        found = ref.genetic_search(function="gelu", entries=8, seed=seed, draws="published", generations=generations)
        a.curve(range(0, generations + 1, 4), found.best[::4].tolist(), series, dots=False)
        if seed == 42:
            genetic = found
    a.curve([0, generations], [optimal.objective] * 2, 2, dots=False)
    a.legend(["seed 42", "seed 1", "optimum"], 190, 30, dots=False)
    x, y = problem.x[::4], problem.y[::4]
    for series, table in ((0, genetic), (2, optimal)):
        piece = np.searchsorted(table.breakpoints, x, side="right")
        b.curve(x.tolist(), (table.slopes[piece] * x + table.intercepts[piece] - y).tolist(), series, dots=False)
    return svg("Best error of two genetic searches by generation, and the optimum; errors along x.", 660, 300, a, b)


def curvature() -> str:
    """W: both rules to stop a power iteration, and what the residual knows, by the distance of two eigenvalues."""
    n, gaps = 40, [0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01]
    rng = np.random.default_rng(3)
    q, start = np.linalg.qr(rng.standard_normal((n, n)))[0], rng.standard_normal((1, n))
    bound: list[float] = []
    error: list[float] = []
    for gap in gaps:
        spectrum = np.concatenate([[1.0, 1 - gap], np.linspace(-0.4, 0.4, n - 2)])
        found = ref.power_eigenvalues(q @ np.diag(spectrum) @ q.T, start)
        bound.append(float(found.residual[0]))
        error.append(abs(float(found.value[0]) - 1))
    a = Axes((0.01, 0.5), (1e-5, 1), log_x=True, log_y=True)
    a.frame(
        {v: f"{v:g}" for v in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)}, {10.0**e: f"{10.0**e:g}" for e in range(-5, 1)},
        xlabel="distance of the second eigenvalue from the first, which is 1", ylabel="error of the value",
    )  # fmt: skip
    for i, values in enumerate((bound, error)):
        a.curve(gaps, values, i)
    a.legend(["certificate", "true error"], 430, 40)
    return svg("Error of an eigenvalue under the published rule to stop, and the certificate.", 660, 320, a)


FIGURES: dict[str, Callable[[], str]] = {
    "philox": philox,
    "rounding": rounding,
    "grids": grids,
    "codebooks": codebooks,
    "ternary": ternary,
    "learned_step": learned_step,
    "oscillation": oscillation,
    "binary_coding": binary_coding,
    "scale_tuning": scale_tuning,
    "mixed_precision": mixed_precision,
    "second_order": second_order,
    "weighting": weighting,
    "compensation": compensation,
    "decomposition": decomposition,
    "rotation": rotation,
    "tables": tables,
    "ranks": ranks,
    "table_search": table_search,
    "coreset": coreset,
    "distillation": distillation,
    "curvature": curvature,
}

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def differences(old: str, new: str, *, pixels: float = 0.25) -> str | None:
    """What distinguishes two figures beyond a quarter of a pixel, or None."""
    if _NUMBER.sub("#", old) != _NUMBER.sub("#", new):
        return "other elements"
    a, b = (np.array(_NUMBER.findall(text), dtype=float) for text in (old, new))
    worst = float(np.abs(a - b).max()) if a.size else 0.0
    return f"a coordinate moved by {worst:g}" if worst > pixels else None


def main(arguments: Sequence[str]) -> int:
    """Write or check all figures; the number of those that differ."""
    FOLDER.mkdir(exist_ok=True)
    wrong = 0
    for name, draw in FIGURES.items():
        path, text = FOLDER / f"{name}.svg", draw()
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or (what := differences(path.read_text(encoding="utf-8"), text)):
            print(f"{path.name}: {what if path.exists() else 'missing'}")
            wrong += 1
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
