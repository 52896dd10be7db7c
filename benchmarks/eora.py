"""The compensation solve: the certified EoRA of the fast backends against the published recipe.

Problem: D is the error of a uniform quantizer with log-normal row scales, C = Q diag(λ) Qᵀ over six decades, once as a
power law ("power") and once log-linear ("loglin", the flatter and harder head); both float32, given. The published
recipe is a float64 eigendecomposition of C and a full float32 singular value decomposition of D C^{1/2}.

Gate: J of every contender's factors, in float64, is within 1e-6 of the exact optimum, and no certificate is above it.
"within" is the same certified solve without the two numbers J and lower bound, which cost m k² products of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import Case
from torch import Tensor

import lowbit
from lowbit.accel.numba_cpu.eigenspace import eora_within as numba_within
from lowbit.accel.torch_cuda.eigenspace import eora_within as torch_within

RANK = 64
LIMIT = 1e-6  # excess over the optimum that the comparison allows

SMALL = ((576, 576), (1536, 576), (576, 1536))
MIDDLE = ((2048, 2048),)
LARGE = ((4096, 4096),)


def problem(m: int, k: int, spectrum: str, *, decades: float = 6.0) -> tuple[Tensor, Tensor]:
    """Error D (m, k) and second moment C (k, k), both float32; the same bytes in every run."""
    generator = torch.Generator().manual_seed(m + k)
    scale = torch.exp(0.5 * torch.randn(m, 1, generator=generator))
    d = (torch.rand(m, k, generator=generator) - 0.5) * 0.01 * scale
    q = torch.linalg.qr(torch.randn(k, k, generator=generator))[0]
    i = torch.arange(1, k + 1, dtype=torch.float64)
    values = i ** (-decades / math.log10(k)) if spectrum == "power" else 10 ** (-decades * (i - 1) / (k - 1))
    c = (q * values.to(torch.float32)) @ q.T
    return d, (c + c.T) / 2


def published(d: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The published recipe, statement by statement, on torch."""
    values, q = torch.linalg.eigh(c.to(torch.float64))
    if bool((values < 0).any()):
        values = torch.where(values < 0, values[values > 0].min(), values)
    root = values.sqrt()
    u, s, vt = torch.linalg.svd(d @ (q * root).to(d.dtype), full_matrices=False)
    half = s[:RANK].sqrt()
    return u[:, :RANK] * half, (half[:, None] * vt[:RANK]) @ (q / root).T.to(d.dtype)


def best(d: Tensor, c: Tensor) -> float:
    """Exact optimum in float64: the eigenvalues of M = D C Dᵀ, on the smaller side, beyond the first r."""
    wide, moment = d.to(torch.float64), c.to(torch.float64)
    if d.shape[0] > d.shape[1]:
        q, wide = torch.linalg.qr(wide)
        del q
    gram = wide @ moment @ wide.T
    return float(torch.linalg.eigvalsh((gram + gram.T) / 2)[:-RANK].clamp_min(0).sum())


def objective(d: Tensor, c: Tensor, b: Tensor, a: Tensor) -> float:
    """tr[(D − BA) C (D − BA)ᵀ] in float64, by rows."""
    moment, total = c.to(torch.float64), 0.0
    for i in range(0, d.shape[0], 1024):
        e = d[i : i + 1024].to(torch.float64) - b[i : i + 1024].to(torch.float64) @ a.to(torch.float64)
        total += float(((e @ moment) * e).sum())
    return total


def gate(d: Tensor, c: Tensor, results: dict[str, Any]) -> dict[str, float]:
    """Excess over the optimum of every contender, and how far below it each certificate stays."""
    optimum = best(d, c)
    figures: dict[str, float] = {}
    for name, result in results.items():
        b, a = (torch.as_tensor(np.asarray(x)) for x in result[:2])
        excess = objective(d, c, b, a) / optimum - 1
        figures[f"{name}: excess"] = excess
        assert excess <= LIMIT, f"{name}: J is {excess:.1e} above the optimum"
        if hasattr(result, "lower_bound"):
            figures[f"{name}: bound gap"] = gap = 1 - result.lower_bound / optimum
            assert gap >= -1e-9, f"{name}: lower bound is {-gap:.1e} above the optimum"
            assert result.objective <= result.lower_bound * (1 + LIMIT), f"{name}: certificate does not close"
    return figures


def case(m: int, k: int, spectrum: str, *, repeats: int, memory: bool = True) -> Case:
    """One shape and spectrum, all contenders."""
    fast, numba = lowbit.load("torch"), lowbit.load("numba")
    d, c = problem(m, k, spectrum)
    d_array, c_array = d.numpy(), c.numpy()
    contenders: dict[str, Callable[[], Any]] = {
        "published": partial(published, d, c),
        "torch": partial(fast.eora_certified, d, c, rank=RANK),
        "torch within": partial(torch_within, d, c, rank=RANK),
        "numba": partial(numba.eora_certified, d_array, c_array, rank=RANK),
        "numba within": partial(numba_within, d_array, c_array, rank=RANK),
    }
    return Case(
        name=f"eora {m}x{k} rank {RANK} {spectrum}",
        baseline="published",
        contenders=contenders,
        gate=partial(gate, d, c),
        repeats=repeats,
        note=f"J within {LIMIT:g} of the exact float64 optimum; certificates below it",
        memory=memory,
    )


def cases(*, quick: bool) -> Iterator[Case]:
    """Shapes of one decoder of 0.1 and 1 billion parameters; ``quick`` leaves out the largest."""
    for m, k in SMALL + MIDDLE if quick else SMALL + MIDDLE + LARGE:
        for spectrum in ("power", "loglin"):
            yield case(m, k, spectrum, repeats=5 if max(m, k) <= 2048 else 3)
