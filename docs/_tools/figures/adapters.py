"""Figures of the chapters on adapters and rotations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from canvas import GRID, Axes, svg
from compensation import correlated

from lowbit import reference as ref


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
