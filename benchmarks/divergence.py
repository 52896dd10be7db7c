"""Errors of layers as divergence at the output: the library's backends against the textbook, written in SciPy.

The textbook takes the square roots of both moments from their eigenvectors, then a full singular value decomposition
of R D C^½ in float64, and goes back with both inverses. It makes the same patch, and knows its optimum. Labels are
drawn beside it by ``torch.multinomial``, from float32 probabilities and another generator.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import scipy.linalg
import torch
from harness import Case

import lowbit

DAMPING = 0.1
CLOSE = 1e-5  # relative: results are float32, and the optimum is a sum of squares of float32 errors


def moment(rng: np.random.Generator, n: int) -> np.ndarray:
    """A second moment of rank n with a long decay."""
    x = rng.standard_normal((2 * n, n)) * np.exp(-np.arange(n) / (n / 6)) @ rng.standard_normal((n, n))
    return (x.T @ x / len(x)).astype(np.float32)


def roots(c: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """C^½, its inverse, R and its inverse."""
    found = []
    for x, damping in ((c, 0.0), (g, DAMPING)):
        values, vectors = scipy.linalg.eigh(x.astype(np.float64))
        scale = np.sqrt(values.clip(1e-12 * values[-1]) + damping * float(np.trace(x)) / len(x))
        found += [(vectors * scale) @ vectors.T, (vectors / scale) @ vectors.T]
    return found[0], found[1], found[2], found[3]


def textbook_patch(d: np.ndarray, c: np.ndarray, g: np.ndarray, *, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """B and A of the best patch."""
    right, back, left, undo = roots(c, g)
    u, s, vt = scipy.linalg.svd(left @ d.astype(np.float64) @ right, full_matrices=False)
    return undo @ (u[:, :rank] * s[:rank]), vt[:rank] @ back


def textbook_spectrum(d: np.ndarray, c: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Singular values of R D C^½ / √2."""
    right, _, left, _ = roots(c, g)
    values: np.ndarray = scipy.linalg.svdvals(left @ d.astype(np.float64) @ right) / np.sqrt(2.0)
    return values


def textbook_divergence(d: np.ndarray, c: np.ndarray, g: np.ndarray) -> float:
    """½ tr(G D C Dᵀ) as it is written."""
    d, c, g = (x.astype(np.float64) for x in (d, c, g))
    return float(np.trace(g @ d @ c @ d.T)) / 2


def gate_patch(results: dict[str, Any], *, d: np.ndarray, c: np.ndarray, g: np.ndarray) -> dict[str, float]:
    """Every patch leaves what the best leaves, and no bound is above it."""
    damped = g.astype(np.float64) + DAMPING * float(np.trace(g)) / len(g) * np.eye(len(g))
    left = {}
    for name, found in results.items():
        b, a = (np.asarray(x, np.float64) for x in found[:2])
        left[name] = textbook_divergence(d - b @ a, c, damped)
        bound = getattr(found, "lower_bound", None)
        assert bound is None or bound <= left["SciPy"] * (1 + CLOSE), f"{name}: a bound of {bound} above the optimum"
        assert left[name] <= left["SciPy"] * (1 + CLOSE), f"{name}: leaves {left[name]}, the best {left['SciPy']}"
    return {f"{name}: above the optimum": value / left["SciPy"] - 1 for name, value in left.items()}


def gate_values(results: dict[str, Any]) -> dict[str, float]:
    """All values within a share of the largest."""
    best = np.asarray(results["SciPy"], np.float64)
    gaps = {n: float(np.abs(np.asarray(x, np.float64) - best).max() / best.max()) for n, x in results.items()}
    for name, gap in gaps.items():
        assert gap <= CLOSE, f"{name}: off by {gap} of the largest value"
    return gaps


def gate_labels(results: dict[str, Any], *, logits: np.ndarray) -> dict[str, float]:
    """Labels of the backends are those of the specification, and all follow the distribution: their mean surprise."""
    some = lowbit.load("reference").draw_labels(logits[:64], seed=1)
    p = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    surprise = -np.log(p / p.sum(axis=1, keepdims=True))
    share = p / p.sum(axis=1, keepdims=True)
    mean = (share * surprise).sum(axis=1)
    spread = np.sqrt(((share * surprise**2).sum(axis=1) - mean**2).sum())
    found = {}
    for name, labels in results.items():
        drawn = np.asarray(labels).reshape(-1)
        same = float(np.mean(drawn[:64] == some))
        assert name == "torch.multinomial" or same == 1.0, f"{name}: {same:.3f} of the labels are the specification's"
        found[name] = float((surprise[np.arange(len(drawn)), drawn] - mean).sum() / spread)
        assert abs(found[name]) < 5, f"{name}: {found[name]} deviations from the entropy"
    return {f"{name}: deviations from the entropy": value for name, value in found.items()}


def cases(*, quick: bool) -> Iterator[Case]:
    """A square layer, and a batch of positions with the vocabulary of a small language model."""
    rng, n, rank = np.random.default_rng(0), 256 if quick else 1024, 16 if quick else 64
    problem = d, c, g = rng.standard_normal((n, n)).astype(np.float32), moment(rng, n), moment(rng, n)
    tensors = [torch.from_numpy(x) for x in problem]
    numba, own = lowbit.load("numba"), lowbit.load("torch")
    yield Case(
        name=f"patch of rank {rank}, {n} x {n}",
        baseline="SciPy",
        contenders={
            "SciPy": partial(textbook_patch, *problem, rank=rank),
            "numba": partial(numba.divergence_patch, *problem, rank=rank, damping=DAMPING),
            "torch": partial(own.divergence_patch, *tensors, rank=rank, damping=DAMPING),
        },
        gate=partial(gate_patch, d=d, c=c, g=g),
        repeats=5,
        note="The backends give a certificate beside the patch.",
    )
    for name, textbook, op, options in (
        ("spectrum", textbook_spectrum, "divergence_spectrum", {"damping": DAMPING}),
        ("divergence", textbook_divergence, "divergence", {}),
    ):
        yield Case(
            name=f"{name}, {n} x {n}",
            baseline="SciPy",
            contenders={
                "SciPy": partial(textbook, *problem),
                "numba": partial(getattr(numba, op), *problem, **options),
                "torch": partial(getattr(own, op), *tensors, **options),
            },
            gate=gate_values,
            repeats=5,
        )
    tokens, vocabulary = (256, 4096) if quick else (1024, 32000)
    logits = 2 * rng.standard_normal((tokens, vocabulary)).astype(np.float32)
    scores = torch.from_numpy(logits)
    yield Case(
        name=f"labels of {tokens} positions, {vocabulary} tokens",
        baseline="torch.multinomial",
        contenders={
            "torch.multinomial": lambda: torch.multinomial(scores.softmax(1), 1),
            "numba": partial(numba.draw_labels, logits, seed=1),
            "torch": partial(own.draw_labels, scores, seed=1),
        },
        gate=partial(gate_labels, logits=logits),
        repeats=5,
        note="The backends sum in float64 and draw by position, so that batches do not matter.",
    )
