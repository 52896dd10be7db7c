"""Coreset scores of a data set the size of ImageNet, 1.28 million samples with 1000 logits: against reading them once.

Scores are sums over logits that nobody needs again, so the memory sets the pace. The baseline only reads: torch.sum of
the same numbers with the same threads. 5 GB of float32 logits need not be held: a block of 256,000 samples, far larger
than any cache, is scored five times. The named peer, on fewer samples for it takes its time, is what one writes by hand
in torch: softmax minus one-hot and its norm, in chunks that fit the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import Case

import lowbit

CLASSES = 1000
CHUNK = 256  # rows of the plain formulation at a time: 1 MB


def read(*arrays: torch.Tensor, times: int) -> torch.Tensor:
    """Touch every number once per pass."""
    total = torch.zeros(())
    for _ in range(times):
        for a in arrays:
            total = total + a.sum()
    return total


def plain_torch(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """‖softmax(x) − one-hot‖, chunk by chunk."""
    out = torch.empty(len(x))
    for start in range(0, len(x), CHUNK):
        rows = slice(start, start + CHUNK)
        p = torch.softmax(x[rows], dim=1)
        p[torch.arange(len(p)), y[rows]] -= 1
        out[rows] = p.norm(dim=1)
    return out


def repeated(operation: Callable[..., Any], *arrays: Any, times: int, **options: Any) -> Any:
    """A pass over 1.28 million samples: the block, several times."""
    result = operation(*arrays, **options)
    for _ in range(times - 1):
        result = operation(*arrays, **options)
    return result


def gate(results: dict[str, Any], *, arrays: tuple[np.ndarray, ...], operation: str, options: Any) -> dict[str, float]:
    """Every 997th score against the float64 specification; the error is absolute, scores being at most √2."""
    reference = lowbit.load("reference")
    want = getattr(reference, operation)(*(a[::997] for a in arrays), **options)
    figures: dict[str, float] = {}
    for name, scores in results.items():
        if name.startswith("read"):
            assert np.isfinite(float(scores)), "the logits do not sum to a number"
            continue
        error = float(np.abs(np.asarray(scores, np.float64)[::997] - want).max())
        assert error <= 64 * 2.0**-24, f"{name}: a score is off by {error}"
        figures[f"{name}: largest error"] = error
    return figures


def cases(*, quick: bool) -> Iterator[Case]:
    """The error vectors alone, the mix of both scores, and the peer."""
    rows, few, times = (16_384, 4096, 1) if quick else (256_000, 32_768, 5)
    repeats = 3 if quick else 5
    draw = np.random.default_rng(0)
    y = draw.integers(0, CLASSES, rows).astype(np.int32)
    x = draw.standard_normal((rows, CLASSES), dtype=np.float32)
    x *= 3
    numba, backend = lowbit.load("numba"), lowbit.load("torch")
    tensor, labels = torch.from_numpy(x), torch.from_numpy(y)
    note = "" if quick else "1.28 million samples: a block of 256,000, five times."
    yield Case(
        name=f"error vectors, {rows * times} x {CLASSES}",
        baseline="read once (torch.sum)",
        contenders={
            "read once (torch.sum)": partial(read, tensor, times=times),
            "lowbit numba": partial(repeated, numba.error_vector_score, x, y, times=times),
        },
        gate=partial(gate, arrays=(x, y), operation="error_vector_score", options={}),
        repeats=repeats,
        note=note,
    )
    t = x + 0.5 * draw.standard_normal((rows, CLASSES), dtype=np.float32)
    options = {"epoch": 40, "epochs": 120}
    yield Case(
        name=f"ACS, two models, {rows * times} x {CLASSES}",
        baseline="read both once (torch.sum)",
        contenders={
            "read both once (torch.sum)": partial(read, tensor, torch.from_numpy(t), times=times),
            "lowbit numba": partial(repeated, numba.acs_score, x, t, y, times=times, **options),
        },
        gate=partial(gate, arrays=(x, t, y), operation="acs_score", options=options),
        repeats=repeats,
        note=note,
    )
    part = tensor[:few], labels[:few]
    yield Case(
        name=f"error vectors, {few} x {CLASSES}, against plain torch",
        baseline="plain torch",
        contenders={
            "plain torch": partial(plain_torch, part[0], part[1].long()),
            "lowbit numba": partial(numba.error_vector_score, x[:few], y[:few]),
            "lowbit torch": partial(backend.error_vector_score, *part),
        },
        gate=partial(gate, arrays=(x[:few], y[:few]), operation="error_vector_score", options={}),
        repeats=repeats,
    )
