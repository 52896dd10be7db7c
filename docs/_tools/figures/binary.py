"""Figures of the chapters on binary codes."""

from __future__ import annotations

import numpy as np
from canvas import COLOURS, GRID, Axes, svg
from compensation import correlated

from lowbit import reference as ref


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
