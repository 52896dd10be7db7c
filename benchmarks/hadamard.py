"""Normalised Hadamard transform of activations: the library's backends against a memory copy and what else there is.

A copy reads and writes what a transform has to read and write, into fresh memory as the transforms do. The contenders
are the package ``hadamard-transform`` (powers of two only; when it is missing its algorithm, written here, takes its
place under a name that says so), the product with the dense matrix, and the published way with a table: butterflies in
torch along the power of two, then a batched product with the table.

Widths: 576 = 36 · 16 (SmolLM2), 4096 (LLaMA), 14336 = 28 · 512 (the down projection of LLaMA 3).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import Case

import lowbit


def halves(x: torch.Tensor) -> torch.Tensor:
    """Butterflies by halves and concatenation, the algorithm of the package ``hadamard-transform``."""
    tokens, n = x.shape
    h = 2
    while h <= n:
        parts = x.view(tokens, n // h, h)
        a, b = parts[..., : h // 2], parts[..., h // 2 :]
        x = torch.cat((a + b, a - b), dim=-1)
        h *= 2
    return (x / math.sqrt(n)).view(tokens, n)


def with_table(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The published way: butterflies on the power of two, then the table, (T ⊗ H) x / √n."""
    tokens, n = x.shape
    order = len(table)
    y = x.reshape(tokens, n, 1)
    while y.shape[1] > order:
        pairs = y.view(tokens, y.shape[1] // 2, 2, y.shape[2])
        y = torch.stack((pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]), dim=2)
        y = y.view(tokens, pairs.shape[1], -1)
    return (table @ y).reshape(tokens, n) / math.sqrt(n)


def butterfly_of_a_package() -> tuple[str, Callable[[torch.Tensor], torch.Tensor]]:
    """The package when it is installed, else its algorithm."""
    try:
        package: Any = importlib.import_module("hadamard_transform")
    except ImportError:
        return "algorithm of hadamard-transform", halves
    return "hadamard-transform", package.hadamard_transform


def gate(results: dict[str, Any], *, x: np.ndarray, matrix: np.ndarray) -> dict[str, float]:
    """A few tokens against the product in float64; every token keeps its energy."""
    figures: dict[str, float] = {}
    n = x.shape[1]
    few = np.linspace(0, len(x) - 1, 5).astype(int)
    exact = x[few].astype(np.float64) @ matrix.T / math.sqrt(n)
    size = np.abs(x[few].astype(np.float64)).sum(axis=1, keepdims=True) / math.sqrt(n)
    energy = np.linalg.norm(x, axis=1)
    for name, result in results.items():
        y = np.asarray(result)
        if name == "memory copy":
            assert np.array_equal(y, x), "the copy is not one"
            continue
        error = np.abs(y[few] - exact)
        bits = 2.0**-9 if "bfloat16" in name else 2.0**-24
        assert np.all(error <= (n + 4) * bits * size), f"{name}: a transform is off by {error.max():.3g}"
        kept = np.abs(np.linalg.norm(y.astype(np.float32), axis=1) / energy - 1).max()
        assert kept <= 8 * math.log2(n) * bits, f"{name}: energy changes by {kept:.3g}"
        figures[f"{name}: largest error / largest value"] = float(error.max() / np.abs(exact).max())
    return figures


def cases(*, quick: bool) -> Iterator[Case]:
    """4096 tokens (quick: 256) of the three widths."""
    tokens = 256 if quick else 4096
    numba, torch_ = lowbit.load("numba"), lowbit.load("torch")
    label, package = butterfly_of_a_package()
    for n in (576, 4096, 14336):
        matrix = numba.hadamard_matrix(order=n)
        order = {576: 36, 4096: 1, 14336: 28}[n]
        table = torch.from_numpy(np.ascontiguousarray(matrix[:: n // order, :: n // order])).float()
        x = np.random.default_rng(n).standard_normal((tokens, n), dtype=np.float32)
        tensor = torch.from_numpy(x)
        contenders: dict[str, Callable[[], Any]] = {
            "memory copy": x.copy,
            "lowbit numba": partial(numba.hadamard_transform, x),
            "lowbit torch": partial(torch_.hadamard_transform, tensor),
        }
        if order == 1:
            contenders[label] = partial(package, tensor)
        elif n == 576:
            contenders["butterflies and table in torch"] = partial(with_table, tensor, table)
        if n == 576:
            dense = torch.from_numpy(matrix).float() / math.sqrt(n)
            contenders["dense product in torch"] = partial(torch.mm, tensor, dense.T)
        yield Case(
            name=f"{tokens} tokens of {n}" + ("" if order == 1 else f" = {order} x {n // order}"),
            baseline="memory copy",
            contenders=contenders,
            gate=partial(gate, x=x, matrix=matrix),
            repeats=3 if quick else 5,
            note="Speed-up 0.5 means that the transform takes as long as two copies.",
        )
