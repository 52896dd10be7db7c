"""Figures of the chapters on quantizers that networks are trained with."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from canvas import Axes, svg

from lowbit import reference as ref


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
