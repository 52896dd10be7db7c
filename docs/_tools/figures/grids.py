"""Figures of the chapters on rounding, grids and codebooks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from canvas import COLOURS, GRID, Axes, number, svg

from lowbit import reference as ref


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
