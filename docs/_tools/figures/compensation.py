"""Figures of the chapters on second-order compression and compensation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from canvas import GRID, Axes, svg

from lowbit import reference as ref


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
